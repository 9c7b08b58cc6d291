"""Presigned requests to the staging storage (S3), each with retry. It never sees the gateway's token."""

from __future__ import annotations

import calendar
import contextlib
import logging
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import httpx

from .errors import TransferError
from .redact import guard_logs, redact
from .retry import RetryPolicy

__all__ = ["Fetched", "Storage", "UrlExpiredError", "expires_at"]

log = logging.getLogger(__name__)
T = TypeVar("T")


class UrlExpiredError(TransferError):
    """A presigned URL is no longer valid: the gateway has to give a new one."""


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

    :param timeout: seconds that connecting, sending and each read may take
    :param policy: when to try a part again
    :param sleep: waits between two tries
    """

    def __init__(
        self,
        *,
        timeout: float = 60.0,
        policy: RetryPolicy | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        guard_logs()
        self._timeout = timeout
        self._policy = policy or RetryPolicy()
        self._sockets: list[Any] = []
        #: Waits between two tries; may raise to give up.
        self.sleep = sleep

    def __enter__(self) -> Self:
        """Open the connection pool."""
        self._http = httpx.Client(
            timeout=httpx.Timeout(self._timeout, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        self._http.close()

    def abort(self) -> None:
        """End all that is under way at once: threads blocked in it get an error."""
        for sock in list(self._sockets):
            with contextlib.suppress(OSError, ValueError):
                sock.shutdown(socket.SHUT_RDWR)

    def put(self, url: str, read: Callable[[], Iterator[bytes]], length: int, what: str) -> str:
        """Upload one part and return its tag.

        :param read: begins to read the part, anew for each try
        :param length: bytes of the part
        :param what: name of the part, for errors
        :raises UrlExpiredError: the URL is too old
        :raises TransferError: the storage did not take it
        """

        def send() -> str:
            answer = self._http.put(
                url,
                content=_exactly(read(), length),
                headers={"Content-Length": str(length)},
                extensions=self._traced(),
            )
            _check(answer, what, url)
            tag = answer.headers.get("etag")
            if not tag:
                raise TransferError(f"Could not {what}: the storage gave no tag for it.")
            return str(tag)

        return self._persist(send, what)

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
            answer = self._http.post(
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

        self._persist(send, "join the parts")

    def fetch(
        self,
        url: str,
        start: int,
        end: int,
        *,
        what: str,
        take: Callable[[bytes], None],
        etag: Callable[[], str | None] = lambda: None,
        seen: Callable[[Fetched], None] = lambda _: None,
    ) -> None:
        """Download the bytes of an object from ``start`` to ``end``; a try goes on where the last broke.

        :param what: name of the range, for errors
        :param take: gets the bytes, in order; what it raises ends the download
        :param etag: tag that the object must have by now; None if any will do
        :param seen: told of the object before the first byte
        :raises UrlExpiredError: the URL is too old
        :raises TransferError: the storage did not give it, or another object
        """
        at = start

        def taken(piece: bytes) -> None:
            nonlocal at
            try:
                take(piece)
            except TransferError as error:
                raise _TakerError(error) from error
            at += len(piece)

        def receive() -> bool:
            began = at
            headers = {"Range": f"bytes={at}-{end - 1}", "Accept-Encoding": "identity"}
            if wanted := etag():
                headers["If-Match"] = wanted
            with self._http.stream("GET", url, headers=headers, extensions=self._traced()) as answer:
                if not answer.is_success:
                    answer.read()
                    _check(answer, what, url)
                seen(Fetched(answer.headers.get("etag"), _whole_size(answer)))
                for piece in _span_of(answer, at, end):
                    taken(piece)
            if at < end and at == began:
                raise TransferError(f"Could not {what}: {at - start} of {end - start} bytes came.")
            return at == end

        try:
            while not self._persist(receive, what):
                # Some bytes came, so the next try counts as the first.
                log.warning("Could not %s: %d of %d bytes came. Going on.", what, at - start, end - start)
        except _TakerError as unable:
            raise unable.error from None

    def _traced(self) -> dict[str, Any]:
        return {"trace": self._saw}

    def _saw(self, event: str, info: dict[str, Any]) -> None:
        """Remember each connection's socket; a thread blocked on one can be woken through it only."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            sock = info["return_value"].get_extra_info("socket")
            if sock is not None:
                self._sockets.append(sock)

    def _persist(self, act: Callable[[], T], what: str) -> T:
        attempt = 0
        while True:
            attempt += 1
            try:
                return act()
            except httpx.TransportError as error:
                failure = TransferError(f"Could not {what}: {redact(str(error)) or type(error).__name__}.")
                failure.__cause__ = error
            except UrlExpiredError:
                raise
            except TransferError as error:
                failure = error
            delay = self._policy.delay(attempt, failure, replayable=True)
            if delay is None:
                raise failure
            self.sleep(delay)
            log.warning("%s Trying again.", failure)


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


def _exactly(chunks: Iterable[bytes], length: int) -> Iterator[bytes]:
    """The chunks, which must have the promised length: a server would wait for what is missing."""
    for chunk in chunks:
        length -= len(chunk)
        if length < 0:
            break
        yield chunk
    if length:
        raise TransferError("What is uploaded changed its size while it was uploaded.", transient=False)


def _span_of(answer: httpx.Response, start: int, end: int) -> Iterator[bytes]:
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
    passing = status in (408, 429) or status >= 500
    raise TransferError(text, transient=passing)


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
