"""Presigned requests to the staging storage (S3), each with retry. It never sees the gateway's token."""

from __future__ import annotations

import calendar
import contextlib
import logging
import math
import re
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar, cast
from urllib.parse import parse_qsl, urlsplit
from urllib.request import getproxies, proxy_bypass
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import httpx

from .errors import TransferError
from .redact import guard_logs
from .retry import RetryPolicy
from .session import storage_trust, why_lost
from .wire import Slice, Wire

__all__ = ["Fetched", "Piece", "Storage", "UrlExpiredError", "expires_at"]

log = logging.getLogger(__name__)
T = TypeVar("T")
#: Some bytes of a part, as they are sent or fetched.
Piece: TypeAlias = bytes | memoryview


class UrlExpiredError(TransferError):
    """A presigned URL is no longer valid: the gateway has to give a new one."""


class _AwayError(TransferError):
    """The storage did not answer, or had trouble of its own that passes."""


class _TakerError(Exception):
    """Who gets the bytes cannot take them: asking the storage again would be no help."""

    def __init__(self, error: TransferError) -> None:
        super().__init__()
        self.error = error


@dataclass(frozen=True, slots=True)
class Fetched:
    """What an answer tells of the whole object.

    :param etag: tells one content from another
    :param size: bytes of the whole
    """

    etag: str | None
    size: int | None


class Storage:
    """Sends parts and fetches ranges; safe to use from several threads.

    It goes by :class:`~.wire.Wire`, or by httpx's own transport where the environment names a proxy.

    :param trust: whose certificates are good; see :attr:`.session.Client.storage_trust`
    :param timeout: seconds that connecting, sending and each read may take
    :param policy: when to try a part again
    :param patience: seconds for which a storage that is away is waited for, beyond what the policy says
    :param sleep: waits between two tries
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        *,
        trust: ssl.SSLContext | None = None,
        timeout: float = 60.0,
        policy: RetryPolicy | None = None,
        patience: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        guard_logs()
        self._trust = trust or storage_trust()
        self._timeout = timeout
        self._policy = policy or RetryPolicy()
        self._patience = patience
        self._waits = False
        self._clock = clock
        self._sockets: list[Any] = []
        #: Waits between two tries; may raise to give up.
        self.sleep = sleep

    def __enter__(self) -> Self:
        """Open the connection pool."""
        timeout = httpx.Timeout(self._timeout, connect=min(10.0, self._timeout))
        self._wire = Wire(self._trust)
        self._direct = httpx.Client(transport=self._wire, timeout=timeout)
        self._proxies = getproxies()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._proxied = (
            httpx.Client(verify=self._trust, timeout=timeout, limits=limits)
            if self._proxies
            else self._direct
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        self._direct.close()
        self._proxied.close()

    def abort(self) -> None:
        """End all that is under way at once: threads blocked in it get an error."""
        self._wire.abort()
        for sock in list(self._sockets):
            with contextlib.suppress(OSError, ValueError):
                sock.shutdown(socket.SHUT_RDWR)

    def _http(self, url: str) -> httpx.Client:
        parts = urlsplit(url)
        proxy = self._proxies.get(parts.scheme) or self._proxies.get("all")
        return self._proxied if proxy and not proxy_bypass(parts.netloc) else self._direct

    def put(self, url: str, read: Callable[[], Iterator[Piece | Slice]], length: int, what: str) -> str:
        """Upload one part and return its tag.

        :param read: begins to read the part, anew for each try; a piece is done with when
            the next is asked for
        :param length: bytes of the part
        :param what: name of the part, for errors
        :raises UrlExpiredError: the URL is too old
        :raises TransferError: the storage did not take it
        """

        def send() -> str:
            http, pieces = self._http(url), _exactly(read(), length)
            answer = http.put(
                url,
                content=cast("Iterator[bytes]", pieces) if http is self._direct else map(bytes, pieces),
                headers={"Content-Length": str(length)},
                extensions=self._traced(),
            )
            _check(answer, what, url)
            tag = answer.headers.get("etag")
            if not tag:
                raise TransferError(f"Could not {what}: the storage gave no tag for it.")
            return str(tag)

        return self._persist(send, url, what)

    def complete(self, url: str, tags: Sequence[str], *, again: bool = False) -> None:
        """Join the uploaded parts (S3 ``CompleteMultipartUpload``).

        :param tags: tag of each part, in order
        :param again: they may have been joined before
        """
        rows = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
            for number, tag in enumerate(tags, start=1)
        )
        body = f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()
        # Joining thousands of parts takes S3 minutes.
        patient = httpx.Timeout(max(300.0, self._timeout), connect=10.0)

        def send() -> None:
            nonlocal again
            before, again = again, True
            answer = self._http(url).post(
                url,
                content=body,
                headers={"Content-Type": "application/xml"},
                extensions=self._traced(),
                timeout=patient,
            )
            # A try whose answer was lost has joined them, and then there is no such upload any more.
            if before and answer.status_code == 404 and "NoSuchUpload" in answer.text:
                return
            _check(answer, "join the parts", url)
            # S3 may answer 200 and put the failure into the body.
            with contextlib.suppress(ET.ParseError):
                if _local(ET.fromstring(answer.content or b"<ok/>").tag) == "Error":  # noqa: S314
                    raise TransferError(f"Could not join the parts: {_s3_message(answer)}.")

        self._persist(send, url, "join the parts")

    def fetch(
        self,
        url: str,
        start: int,
        end: int,
        *,
        what: str,
        take: Callable[[Piece], None],
        buffer: bytearray | None = None,
        etag: Callable[[], str | None] = lambda: None,
        seen: Callable[[Fetched], None] = lambda _: None,
    ) -> None:
        """Download the bytes of an object from ``start`` to ``end``; a try goes on where the last broke.

        :param what: name of the range, for errors
        :param take: gets the bytes, in order; what it raises ends the download
        :param buffer: what they are read into: pieces are views of it, which hold until ``take`` returns
        :param etag: tag that the object must have by now; None if any will do
        :param seen: told of the object before the first byte
        :raises UrlExpiredError: the URL is too old
        :raises TransferError: the storage did not give it, or another object
        """
        at = start

        def taken(piece: Piece) -> None:
            nonlocal at
            try:
                take(piece)
            except TransferError as error:
                raise _TakerError(error) from error
            at += len(piece)

        def receive() -> None:
            headers = {"Range": f"bytes={at}-{end - 1}", "Accept-Encoding": "identity"}
            if wanted := etag():
                headers["If-Match"] = wanted
            more = self._traced() | ({} if buffer is None else {"buffer": buffer})
            with self._http(url).stream("GET", url, headers=headers, extensions=more) as answer:
                if not answer.is_success:
                    answer.read()
                    _check(answer, what, url)
                seen(Fetched(answer.headers.get("etag"), _whole_size(answer)))
                for piece in _span_of(answer, at, end):
                    taken(piece)
            if at < end:
                raise TransferError(f"Could not {what}: {at - start} of {end - start} bytes came.")

        try:
            self._persist(receive, url, what, lambda: at)
        except _TakerError as unable:
            raise unable.error from None

    def _traced(self) -> dict[str, Any]:
        return {"trace": self._saw}

    def _saw(self, event: str, info: dict[str, Any]) -> None:
        """Remember each socket of httpx's own; a thread blocked on one can be woken through it only."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            sock = info["return_value"].get_extra_info("socket")
            if sock is not None:
                self._sockets.append(sock)

    def _persist(
        self, act: Callable[[], T], url: str, what: str, reached: Callable[[], int] = lambda: 0
    ) -> T:
        """Try until it works or the policy gives up; a try that got further than all before is the first."""
        attempt, furthest, since = 0, reached(), math.inf
        while True:
            attempt += 1
            try:
                done = act()
            except httpx.TransportError as error:
                words, passing = why_lost(error, httpx.URL(url))
                failure: TransferError = _AwayError(f"Could not {what}: {words}", transient=passing)
                failure.__cause__ = error
            except UrlExpiredError:
                raise
            except TransferError as error:
                failure = error
            else:
                self._waits = False
                return done
            since = min(since, self._clock())
            if (now := reached()) > furthest:
                attempt, furthest, since = 1, now, self._clock()
            self.sleep(self._pause(attempt, failure, self._clock() - since))

    def _pause(self, attempt: int, failure: TransferError, passed: float) -> float:
        """Seconds until the next try.

        :param passed: seconds since the first failure
        :raises TransferError: there is none
        """
        delay = self._policy.delay(attempt, failure, replayable=True)
        if delay is not None:
            log.warning("%s Trying again.", failure)
            return delay
        if not isinstance(failure, _AwayError) or passed >= self._patience:
            raise failure
        delay = replace(self._policy, attempts=sys.maxsize).delay(attempt, failure, replayable=True)
        if delay is None:
            raise failure
        if not self._waits:
            self._waits = True
            log.warning("%s The storage is waited for, %.0f s at the most.", failure, self._patience)
        return delay


def expires_at(url: str) -> float | None:
    """Epoch seconds at which a presigned URL expires, as it says itself; None if it does not.

    :param url: a URL signed by AWS's version 4
    """
    said = {key.lower(): value for key, value in parse_qsl(urlsplit(url).query)}
    try:
        signed = calendar.timegm(time.strptime(said["x-amz-date"], "%Y%m%dT%H%M%SZ"))
        return signed + float(said["x-amz-expires"])
    except (KeyError, ValueError):
        return None


def _exactly(chunks: Iterable[Piece | Slice], length: int) -> Iterator[Piece | Slice]:
    """The chunks, which must have the promised length: a server would wait for what is missing."""
    for chunk in chunks:
        length -= len(chunk)
        if length < 0:
            break
        yield chunk
    if length:
        raise TransferError("What is uploaded changed its size while it was uploaded.", transient=False)


def _span_of(answer: httpx.Response, start: int, end: int) -> Iterator[Piece]:
    """The wanted bytes of an answer: who does not know ranges sends all from the beginning."""
    skip = 0 if answer.status_code == httpx.codes.PARTIAL_CONTENT else start
    left = end - start
    for chunk in answer.iter_raw():
        piece = chunk[skip : skip + left]
        skip = max(0, skip - len(chunk))
        if piece:
            yield piece
        left -= len(piece)
        if not left:
            return


def _whole_size(answer: httpx.Response) -> int | None:
    """Bytes of the whole object, as an answer tells."""
    partial = answer.status_code == httpx.codes.PARTIAL_CONTENT
    size = answer.headers.get("content-range" if partial else "content-length", "").rpartition("/")[2]
    return int(size) if size.isdigit() else None


def _check(answer: httpx.Response, what: str, url: str) -> None:
    if answer.is_success:
        return
    status, said = answer.status_code, _s3_message(answer)
    host = answer.request.url.host
    text = f"Could not {what}: the storage on {host} answered HTTP {status}: {said.rstrip('.')}."
    if status in (400, 401, 403):
        over = expires_at(url)
        if re.search(r"expired", said, re.IGNORECASE) or (over is not None and over < time.time()):
            raise UrlExpiredError(text)
    if status == 412:
        raise TransferError(f"Could not {what}: the object changed while it was fetched.", transient=False)
    if status in (408, 429) or status >= 500:
        raise _AwayError(text)
    raise TransferError(text, transient=False)


def _s3_message(answer: httpx.Response) -> str:
    """Code and message of S3's error document."""
    try:
        document = ET.fromstring(answer.content)  # noqa: S314  two words are read from it
    except ET.ParseError:
        return re.sub(r"\s+", " ", answer.text)[:200] or answer.reason_phrase
    said = {_local(item.tag): item.text or "" for item in document}
    return ": ".join(word for word in (said.get("Code"), said.get("Message")) if word).rstrip(".")


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
