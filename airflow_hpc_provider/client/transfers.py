"""Staged transfers: the calls that start them and what their answers mean; the bytes move in ``staging``."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from . import jobs
from .calls import Call, JSONObject, path, reading
from .coordinates import Coordinates, read_coordinates
from .errors import BadAnswerError, HpcError, InvalidInputError
from .files import check_pattern
from .paths import remote_path
from .retry import RetryPolicy
from .session import Client

__all__ = [
    "Compression",
    "DownloadPlan",
    "StreamPlan",
    "TransferJob",
    "UploadPlan",
    "cancel_orphan",
    "compress",
    "copy",
    "extract",
    "move",
    "parts",
    "remove",
    "start_download",
    "start_once",
    "start_stream_download",
    "start_stream_upload",
    "start_upload",
]

log = logging.getLogger(__name__)
T = TypeVar("T")

Compression = Literal["none", "bzip2", "gzip", "xz"]

# Names that the gateway gives to the jobs of staged transfers.
_NAMES = {"upload": "IngressFileTransfer", "download": "OutgressFileTransfer"}
# A transfer job may show up in the list a moment after its submission was answered with an error.
_LOOK_AGAIN = 2.0
# This machine's clock and the cluster's may differ by so many seconds.
_CLOCKS_DIFFER = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferJob:
    """The job on the system that moves data; its exit code says nothing, its log a little, the data all.

    :param job_id: id of the job
    :param output_log: path of its log
    :param error_log: path of its error log
    """

    job_id: str
    system: str
    output_log: str
    error_log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadPlan:
    """Where the parts of a file go. The URLs are credentials and appear in no text.

    :param part_urls: one presigned URL a part, in order
    :param complete_url: presigned URL that joins the parts
    :param part_size: bytes of every part but the last
    """

    job: TransferJob
    part_urls: tuple[str, ...] = field(repr=False)
    complete_url: str = field(repr=False)
    part_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadPlan:
    """Where a file can be fetched once its job is over. The URL is a credential and appears in no text."""

    job: TransferJob
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlan:
    """Where the job of a stream will listen. The coordinates are a credential and appear in no text."""

    job: TransferJob
    coordinates: Coordinates = field(repr=False)


def parts(size: int, part_size: int) -> list[tuple[int, int]]:
    """Cut a file into parts.

    :param size: bytes of the file
    :param part_size: bytes of a part
    :return: offset and length of each part; none for an empty file
    """
    return [(offset, min(part_size, size - offset)) for offset in range(0, size, part_size)]


def start_upload(system: str, target: str, size: int, *, account: str | None = None) -> Call[UploadPlan]:
    """Ask for a staged upload; starts a job that waits for the data.

    :param target: absolute path of the file to make
    :param size: bytes it will have, at least 1: for an empty file the gateway waits for ever
    :param account: account to charge; some systems demand one

    Endpoint: ``POST /filesystem/{system}/transfer/upload``.
    """
    if size < 1:
        raise InvalidInputError("size", "an empty file cannot be staged.")
    doing = f"start the upload to {target}"

    def build(body: JSONObject) -> UploadPlan:
        directives = _directives(doing, body, "s3")
        plan = UploadPlan(
            job=_job(body),
            part_urls=tuple(directives["partsUploadUrls"]),
            complete_url=directives["completeUploadUrl"],
            part_size=int(directives["maxPartSize"]),
        )
        if len(plan.part_urls) != len(parts(size, plan.part_size)):
            raise ValueError(f"{len(plan.part_urls)} part URLs for {size} bytes in parts of {plan.part_size}")
        return plan

    body = {
        "path": remote_path(target, "remote_path"),
        "transferDirectives": {"transferMethod": "s3", "fileSize": size},
        "account": account,
    }
    return _start(doing, "upload", system, body, build)


def start_download(system: str, source: str, *, account: str | None = None) -> Call[DownloadPlan]:
    """Ask for a staged download; starts a job that stages the file.

    :param source: absolute path of the file; the gateway does not quote it, so blanks are refused

    Endpoint: ``POST /filesystem/{system}/transfer/download``.
    """
    doing = f"start the download of {source}"

    def build(body: JSONObject) -> DownloadPlan:
        return DownloadPlan(job=_job(body), url=str(_directives(doing, body, "s3")["downloadUrl"]))

    body = {
        "path": remote_path(source, "remote_path", unquoted=True),
        "transferDirectives": {"transferMethod": "s3"},
        "account": account,
    }
    return _start(doing, "download", system, body, build)


def start_stream_upload(system: str, target: str, *, account: str | None = None) -> Call[StreamPlan]:
    """Ask for a streamed upload; starts a job that waits for one client, and overwrites nothing.

    :param target: absolute path of the file to make; the gateway does not quote it, so blanks are refused
    :param account: account to charge; some systems demand one

    Endpoint: ``POST /filesystem/{system}/transfer/upload``.
    """
    return _start_stream(f"start the upload to {target}", "upload", system, target, account)


def start_stream_download(system: str, source: str, *, account: str | None = None) -> Call[StreamPlan]:
    """Ask for a streamed download; starts a job that waits for one client.

    :param source: absolute path of the file; the gateway does not quote it, so blanks are refused

    Endpoint: ``POST /filesystem/{system}/transfer/download``.
    """
    return _start_stream(f"start the download of {source}", "download", system, source, account)


def _start_stream(doing: str, what: str, system: str, target: str, account: str | None) -> Call[StreamPlan]:
    def build(body: JSONObject) -> StreamPlan:
        directives = _directives(doing, body, "streamer")
        return StreamPlan(job=_job(body), coordinates=read_coordinates(directives["coordinates"]))

    body = {
        "path": remote_path(target, "remote_path", unquoted=True),
        "transferDirectives": {"transferMethod": "streamer"},
        "account": account,
    }
    return _start(doing, what, system, body, build)


def move(system: str, source: str, target: str, *, account: str | None = None) -> Call[TransferJob]:
    """Move on the system, by a job. Endpoint: ``POST /filesystem/{system}/transfer/mv``."""
    body = {"path": _path(source), "targetPath": _path(target), "account": account}
    return _start(f"move {source} to {target}", "mv", system, body, _job)


def copy(
    system: str, source: str, target: str, *, dereference: bool = False, account: str | None = None
) -> Call[TransferJob]:
    """Copy on the system, by a job. Endpoint: ``POST /filesystem/{system}/transfer/cp``."""
    body = {
        "path": _path(source),
        "targetPath": _path(target),
        "dereference": dereference,
        "account": account,
    }
    return _start(f"copy {source} to {target}", "cp", system, body, _job)


def compress(
    system: str,
    source: str,
    target: str,
    *,
    pattern: str | None = None,
    dereference: bool = False,
    compression: Compression = "gzip",
    account: str | None = None,
) -> Call[TransferJob]:
    """Make an archive, by a job. Endpoint: ``POST /filesystem/{system}/transfer/compress``."""
    body = {
        "path": remote_path(source, "remote_path", unquoted=pattern is not None),
        "targetPath": _path(target),
        "matchPattern": check_pattern(pattern) if pattern is not None else None,
        "dereference": dereference,
        "compression": compression,
        "account": account,
    }
    return _start(f"compress {source} into {target}", "compress", system, body, _job)


def extract(
    system: str,
    source: str,
    target: str,
    *,
    compression: Compression = "gzip",
    account: str | None = None,
) -> Call[TransferJob]:
    """Unpack an archive, by a job. Endpoint: ``POST /filesystem/{system}/transfer/extract``."""
    body = {
        "path": _path(source),
        "targetPath": _path(target),
        "compression": compression,
        "account": account,
    }
    return _start(f"extract {source} into {target}", "extract", system, body, _job)


def remove(system: str, target: str, *, account: str | None = None) -> Call[TransferJob]:
    """Remove a file or a whole directory, by a job. Endpoint: ``DELETE /filesystem/{system}/transfer/rm``."""
    doing = f"remove {target}"
    return Call(
        doing=doing,
        method="DELETE",
        path=path("filesystem", system, "transfer", "rm"),
        system=system,
        params={"path": _path(target)} | ({"account": account} if account else {}),
        read=reading(doing, _job),
        replayable=False,
    )


def start_once(
    client: Client,
    call: Call[T],
    *,
    policy: RetryPolicy | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> T:
    """Start a transfer; one whose answer was lost leaves no job behind that waits for data.

    The job of an upload, or of a stream, would hold its allocation until its time limit. It is found by the
    path in its script, and cancelled only if there is just one that it can be: job records do not tell who
    started them. The job of any other download ends by itself and is left alone. Nor does a job stay when the
    caller is killed amid this.

    :param client: an open client
    :param call: one that starts an upload or a download
    :param policy: when to try again
    :param sleep: waits between two tries
    :param clock: epoch seconds
    :raises HpcError: no try was answered well
    """
    policy = policy or RetryPolicy(attempts=3, base=1.0)
    attempt = 0
    while True:
        attempt, began = attempt + 1, clock()
        try:
            return client.send(call)
        except BaseException as error:
            failure = error if isinstance(error, HpcError) else None
            if failure is not None and not failure.ambiguous:
                raise
            log.warning(
                "%s Its job may have been submitted all the same.", failure or f"{call.doing}: ended."
            )
            if _waits(call):
                lost = call.system or "", call.path.rpartition("/")[2], str((call.json or {})["path"])
                if not cancel_orphan(client, *lost, began):
                    sleep(_LOOK_AGAIN)
                    cancel_orphan(client, *lost, began)
            delay = policy.delay(attempt, failure, replayable=True) if failure is not None else None
            if delay is None:
                raise
            sleep(delay)


def _waits(call: Call[Any]) -> bool:
    """Its job waits for somebody who brings or fetches the data."""
    method = (call.json or {})["transferDirectives"]["transferMethod"]
    return call.path.endswith("/upload") or method == "streamer"


def cancel_orphan(client: Client, system: str, what: str, target: str, since: float) -> bool:
    """Cancel the job of a transfer whose id was never learned; says so, and fails for nothing.

    :param client: an open client
    :param system: where it may be
    :param what: ``upload`` or ``download``
    :param target: the path that it was started for
    :param since: epoch seconds at which it was started
    :return: False if there is none, or not yet
    """
    name, found = _NAMES[what], list[str]()
    try:
        found = _waiting_jobs(client, system, name, target, since)
        if len(found) == 1 and client.send(jobs.cancel(system, found[0])):
            log.info("Transfer job %s, which waited for the same file, cancelled.", found[0])
        elif found:
            log.warning("Jobs %s wait for %s; whose they are nobody can tell.", ", ".join(found), target)
    except HpcError as error:
        log.warning(
            "Whether a job waits for %s cannot be learned: %s If one does, it is called %s and holds its "
            "allocation until its time limit.",
            *(target, error, name),
        )
        return True
    return bool(found)


def _waiting_jobs(client: Client, system: str, name: str, target: str, since: float) -> list[str]:
    """Ids of the jobs of a name that wait with a path in their script, and began not long before a moment."""
    word = re.compile(rf"(?<![^\s\"'=]){re.escape(target)}(?![^\s\"'])")
    found = []
    for job in client.send(jobs.listing(system, name=name, window="1h")):
        fresh = job.start is None or job.start.timestamp() > since - _CLOCKS_DIFFER
        if fresh and not job.state.final:
            script = client.send(jobs.metadata(system, job.job_id)).script or ""
            if word.search(script):
                found.append(job.job_id)
    return found


def _path(value: str) -> str:
    return remote_path(value, "remote_path")


def _start(doing: str, what: str, system: str, body: Mapping[str, Any], build: Any) -> Call[Any]:
    return Call(
        doing=doing,
        method="POST",
        path=path("filesystem", system, "transfer", what),
        system=system,
        json={key: value for key, value in body.items() if value is not None},
        read=reading(doing, build),
        # Each POST leaves a job of its own behind.
        replayable=False,
    )


def _job(body: JSONObject) -> TransferJob:
    job = body["transferJob"]
    return TransferJob(
        job_id=str(job["jobId"]),
        system=str(job["system"]),
        output_log=str(job["logs"]["outputLog"]),
        error_log=str(job["logs"]["errorLog"]),
    )


def _directives(doing: str, body: JSONObject, method: str) -> JSONObject:
    directives: JSONObject = body["transferDirectives"]
    if directives.get("transferMethod") != method:
        raise BadAnswerError(
            doing, f"the gateway chose the transfer method {directives.get('transferMethod')!r}."
        )
    return directives
