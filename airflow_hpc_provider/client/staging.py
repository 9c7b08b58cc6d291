"""Moving a file to or from a system: directly if it is small, else staged through S3; verified."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import httpx

from . import files, jobs, transfers
from .errors import (
    HpcError,
    InvalidInputError,
    NotFoundError,
    TooLargeError,
    TransferError,
    UnavailableError,
)
from .jobs import Job
from .paths import remote_path
from .redact import guard_logs, redact
from .retry import RetryPolicy
from .session import Client
from .systems import System
from .transfers import TransferJob

__all__ = ["Moved", "Storage", "download_file", "upload_file"]

log = logging.getLogger(__name__)
T = TypeVar("T")

_CHUNK = 1024 * 1024
Wait = Callable[[str], Job]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a transfer moved.

    :param path: absolute path on the system
    :param size: bytes
    :param sha256: hex digest of the bytes as read or written here
    :param staged: whether it went through the gateway's staging
    :param verified: ``sha256`` if the digest of both sides was compared, else ``size``
    """

    path: str
    size: int
    sha256: str
    staged: bool
    verified: str


class Storage:
    """Presigned requests to the staging storage, each with retry. It never sees the gateway's token.

    :param timeout: seconds that connecting, sending and each read may take
    :param policy: when to try a part again
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
        self._sleep = sleep

    def __enter__(self) -> Self:
        """Open the connection pool."""
        self._http = httpx.Client(timeout=httpx.Timeout(self._timeout, connect=10.0))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        self._http.close()

    def put(self, url: str, source: Path, offset: int, length: int, what: str) -> str:
        """Upload one part and return its tag.

        :param source: file to read from
        :param offset: first byte of the part
        :param length: bytes of the part
        :param what: name of the part, for errors
        """

        def send() -> str:
            headers = {"Content-Length": str(length)}
            answer = self._http.put(url, content=_slice(source, offset, length), headers=headers)
            _check(answer, what)
            tag = answer.headers.get("etag")
            if not tag:
                raise TransferError(f"Could not {what}: the storage gave no tag for it.")
            return str(tag)

        return self._persist(send, what)

    def complete(self, url: str, tags: list[str]) -> None:
        """Join the uploaded parts (S3 ``CompleteMultipartUpload``)."""
        rows = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
            for number, tag in enumerate(tags, start=1)
        )
        body = f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()

        tries = 0

        def send() -> None:
            nonlocal tries
            tries += 1
            answer = self._http.post(url, content=body, headers={"Content-Type": "application/xml"})
            # A try whose answer was lost has joined them, and then there is no such upload any more.
            if tries > 1 and answer.status_code == 404 and "NoSuchUpload" in answer.text:
                return
            _check(answer, "join the parts")
            # S3 may answer 200 and put the failure into the body.
            with contextlib.suppress(ET.ParseError):
                if _local(ET.fromstring(answer.content or b"<ok/>").tag) == "Error":  # noqa: S314
                    raise TransferError(f"Could not join the parts: {_s3_message(answer)}.")

        self._persist(send, "join the parts")

    def fetch(self, url: str, target: IO[bytes], what: str) -> str:
        """Download an object into an empty file and return its sha256.

        :param target: opened for writing; rewound for each try
        """

        def receive() -> str:
            digest = hashlib.sha256()
            target.seek(0)
            target.truncate()
            with self._http.stream("GET", url) as answer:
                if not answer.is_success:
                    answer.read()
                    _check(answer, what)
                count = 0
                for chunk in answer.iter_bytes(_CHUNK):
                    target.write(chunk)
                    digest.update(chunk)
                    count += len(chunk)
                expected = answer.headers.get("content-length")
                if expected is not None and int(expected) != count:
                    raise TransferError(f"Could not {what}: {count} of {expected} bytes came.")
            return digest.hexdigest()

        return self._persist(receive, what)

    def _persist(self, act: Callable[[], T], what: str) -> T:
        attempt = 0
        while True:
            attempt += 1
            try:
                return act()
            except httpx.TransportError as error:
                failure = TransferError(f"Could not {what}: {redact(str(error)) or type(error).__name__}.")
                failure.__cause__ = error
            except TransferError as error:
                failure = error
            delay = self._policy.delay(attempt, failure, replayable=True)
            if delay is None:
                raise failure
            log.warning("%s Trying again in %.1f s.", failure, delay)
            self._sleep(delay)


def upload_file(
    client: Client,
    system: System,
    source: Path,
    target: str,
    *,
    wait: Wait,
    account: str | None = None,
) -> Moved:
    """Copy a local file to a system.

    :param source: local file
    :param target: absolute path of the file to make; its directory must be there
    :param wait: waits for a job of this id and returns its last record
    :param account: account for the transfer job of a large file
    :raises InvalidInputError: the local file is none, or too large for a system without staging
    :raises TransferError: what arrived is not what was sent
    """
    target = remote_path(target, "remote_path")
    size = _local_size(source)
    directory, _, name = target.rpartition("/")
    if size <= system.max_direct_bytes:
        content = source.read_bytes()
        size, digest = len(content), hashlib.sha256(content).hexdigest()
        client.send(files.upload(system.name, directory or "/", name, content))
        staged = False
    else:
        _needs_staging(
            system, source.name, size, what="uploads", limit=system.max_direct_bytes, account=account
        )
        _check_target(client, system, target, directory or "/")
        digest = _stage_in(client, system, source, target, size, wait=wait, account=account)
        staged = True
    verified = _verify(client, system, target, size, digest, checksum=staged)
    return Moved(path=target, size=size, sha256=digest, staged=staged, verified=verified)


def download_file(
    client: Client,
    system: System,
    source: str,
    target: Path,
    *,
    wait: Wait,
    account: str | None = None,
) -> Moved:
    """Copy a file from a system to this machine; the file appears under its name when it is complete.

    :param source: absolute path on the system
    :param target: local file to make; its directory must be there
    :param wait: waits for a job of this id and returns its last record
    :param account: account for the transfer job of a large file
    :raises NotFoundError: there is no such file
    :raises TransferError: what arrived is not what is there
    """
    source = remote_path(source, "remote_path")
    if target.is_dir():
        raise InvalidInputError("local_path", f"{target} is a directory; give the path of the file to make.")
    if not target.parent.is_dir():
        raise InvalidInputError("local_path", f"directory {target.parent} does not exist.")
    stat = client.send(files.stat(system.name, source, dereference=True))
    if stat.is_directory:
        raise InvalidInputError(
            "remote_path", f"{source} on system {system.name} is a directory; give the path of a file."
        )
    with _arriving(target) as temporary:
        if stat.size <= system.max_direct_download_bytes:
            try:
                content = client.send(files.download(system.name, source))
            except TooLargeError:
                content = None
            if content is not None:
                temporary.write(content)
                _compare_size(system, source, stat.size, len(content))
                digest = hashlib.sha256(content).hexdigest()
                return Moved(path=source, size=len(content), sha256=digest, staged=False, verified="size")
        _needs_staging(
            system,
            source,
            stat.size,
            what="downloads",
            limit=system.max_direct_download_bytes,
            account=account,
        )
        digest = _stage_out(client, system, source, temporary, wait=wait, account=account)
        size = temporary.tell()
        verified = _verify(client, system, source, size, digest, checksum=True)
    return Moved(path=source, size=size, sha256=digest, staged=True, verified=verified)


def _stage_in(
    client: Client, system: System, source: Path, target: str, size: int, *, wait: Wait, account: str | None
) -> str:
    """Put the parts, join them, and wait for the job that fetches the whole."""
    plan = client.send(transfers.start_upload(system.name, target, size, account=account))
    log.info(
        "Staging %s in: %d bytes in %d parts, job %s.", target, size, len(plan.part_urls), plan.job.job_id
    )
    with _abandoned_job_is_cancelled(client, plan.job):
        digest = hashlib.sha256()
        tags: list[str] = []
        with Storage() as storage:
            for number, (url, (offset, length)) in enumerate(
                zip(plan.part_urls, transfers.parts(size, plan.part_size), strict=True), start=1
            ):
                what = f"upload part {number} of {len(plan.part_urls)} of {source.name}"
                tags.append(storage.put(url, source, offset, length, what))
            for chunk in _slice(source, 0, size):
                digest.update(chunk)
            if _local_size(source) != size:
                raise TransferError(f"{source} changed while it was uploaded.", transient=False)
            storage.complete(plan.complete_url, tags)
        _check_transfer_job(client, plan.job, wait(plan.job.job_id))
    return digest.hexdigest()


def _stage_out(
    client: Client, system: System, source: str, target: IO[bytes], *, wait: Wait, account: str | None
) -> str:
    """Let the job stage the file, then fetch it."""
    plan = client.send(transfers.start_download(system.name, source, account=account))
    log.info("Staging %s out: job %s.", source, plan.job.job_id)
    with _abandoned_job_is_cancelled(client, plan.job):
        _check_transfer_job(client, plan.job, wait(plan.job.job_id))
    with Storage() as storage:
        return storage.fetch(plan.url, target, f"fetch {source.rpartition('/')[2]} from the staging storage")


@contextlib.contextmanager
def _abandoned_job_is_cancelled(client: Client, job: TransferJob) -> Iterator[None]:
    """A transfer job whose client has gone would hold its allocation for a day."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(HpcError):
            if client.send(jobs.cancel(job.system, job.job_id)):
                log.info("Transfer job %s cancelled.", job.job_id)
        raise


def _check_transfer_job(client: Client, job: TransferJob, ended: Job) -> None:
    if ended.state.succeeded:
        return
    tail = ""
    with contextlib.suppress(HpcError):
        tail = client.send(files.tail(job.system, job.output_log, lines=5)).strip()
    raise TransferError(
        f"Transfer job {job.job_id} on system {job.system} ended {ended.state.value}"
        f"{f' (exit code {ended.exit_code})' if ended.exit_code else ''}. Its log ends: {tail or 'nothing'}",
        transient=ended.state.infrastructure,
    )


def _verify(client: Client, system: System, target: str, size: int, digest: str, *, checksum: bool) -> str:
    """Compare both sides. A transfer job that ended well may have written nothing, or garbage."""
    _compare_size(system, target, client.send(files.stat(system.name, target, dereference=True)).size, size)
    if not checksum:
        return "size"
    try:
        there = client.send(files.checksum(system.name, target))
    except UnavailableError as error:
        # The gateway gives a checksum 5 s, which a very large file exceeds.
        log.warning("%s: only the size was compared. %s", target, error)
        return "size"
    if there != digest:
        raise TransferError(f"{target} on system {system.name} has sha256 {there}, here it is {digest}.")
    return "sha256"


def _compare_size(system: System, target: str, there: int, here: int) -> None:
    if there != here:
        raise TransferError(f"{target} on system {system.name} has {there} bytes, here it has {here}.")


def _check_target(client: Client, system: System, target: str, directory: str) -> None:
    """A transfer job may end well without a place to put the file, so that is looked at before."""
    try:
        there = client.send(files.stat(system.name, target, dereference=True))
    except NotFoundError:
        client.send(files.stat(system.name, directory, dereference=True))
        return
    if there.is_directory:
        raise InvalidInputError(
            "remote_path",
            f"{target} on system {system.name} is a directory; give the path of the file to make.",
        )


def _needs_staging(
    system: System, name: str, size: int, *, what: str, limit: int, account: str | None
) -> None:
    """Refuse what the system cannot stage, before a job is started for it."""
    if system.transfer_method != "s3":
        how = (
            f"stages by {system.transfer_method}, which is not supported"
            if system.transfer_method
            else "has no staging"
        )
        raise InvalidInputError(
            "remote_path",
            f"{name} has {size} bytes; system {system.name} {how}, so {what} end at {limit} bytes.",
        )
    if system.needs_account and not account:
        raise InvalidInputError(
            "account",
            f"system {system.name} charges staged transfers to an account; name one, or in the connection.",
        )


def _local_size(source: Path) -> int:
    if source.is_dir():
        raise InvalidInputError("local_path", f"{source} is a directory; give the path of a file.")
    try:
        return source.stat().st_size
    except OSError as error:
        raise InvalidInputError("local_path", f"{source} cannot be read: {error.strerror}.") from error


def _slice(source: Path, offset: int, length: int) -> Iterator[bytes]:
    """A part of a file in pieces. A file that became shorter ends early, which the server notices."""
    with source.open("rb") as stream:
        stream.seek(offset)
        while length > 0:
            chunk = stream.read(min(_CHUNK, length))
            if not chunk:
                raise TransferError(f"{source} became shorter while it was uploaded.", transient=False)
            length -= len(chunk)
            yield chunk


@contextlib.contextmanager
def _arriving(target: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside the target, renamed to it when all went well."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".part", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; a downloaded one gets the usual mode.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _check(answer: httpx.Response, what: str) -> None:
    if answer.is_success:
        return
    status = answer.status_code
    passing = status in (408, 429) or status >= 500
    raise TransferError(
        f"Could not {what}: the storage on {answer.request.url.host} answered HTTP {status}: "
        f"{_s3_message(answer)}.",
        transient=passing,
    )


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
