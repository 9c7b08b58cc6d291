"""Whether a file arrived: the job's end, the size, the sha256; and what becomes of a bad copy."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from . import files, jobs, transfers
from .calls import JSONObject
from .checkpoint import Keeper
from .errors import (
    ApiError,
    HpcError,
    InvalidInputError,
    NotFoundError,
    RejectedError,
    TransferError,
    UnavailableError,
)
from .files import Stat
from .jobs import Job, JobSpec
from .moving import Pace, SpoiledError
from .session import Client
from .streaming import check_streamer
from .systems import System, user_info
from .terms import Abandon, Begun, IfExists, Terms, Wait
from .transfers import TransferJob

__all__ = [
    "PERMISSIONS",
    "Identity",
    "Side",
    "cancel_intended",
    "cancel_transfer",
    "check_transfer_job",
    "compare_size",
    "given_up",
    "identity",
    "intent",
    "learn_sum",
    "leaves",
    "move",
    "needs_staging",
    "parent",
    "remove_logs",
    "remove_written",
    "sweep",
    "until_over",
    "verify",
    "wrote",
]

log = logging.getLogger(__name__)

PERMISSIONS = 0o777
#: Inode, size and time of a file.
Identity: TypeAlias = tuple[int, int, int]

# What FirecREST calls the logs of its transfer jobs.
_LOG = re.compile(r"\.f7t_[\w.-]+\.log")
# A job that was cancelled may write for a moment. A killed worker has five seconds in all.
_DIES_WITHIN = 2.0
_LOOK_AGAIN = 0.25
# A file may bear a time so many seconds later than the end of the job that wrote it.
_END_IS_LATE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What all steps of one transfer share."""

    client: Client
    system: System
    account: str | None
    terms: Terms
    keeper: Keeper | None
    abandon: Abandon
    pace: Pace

    def stat(self, path: str) -> Stat | None:
        try:
            return self.client.send(files.stat(self.system.name, path, dereference=True))
        except NotFoundError:
            return None

    def job_state(self, job: TransferJob) -> Job | None:
        """A job as it is; None if the gateway does not know it, or refuses to tell: then it is cancelled.

        :raises HpcError: it cannot tell now
        """
        try:
            return self.client.send(jobs.get(job.system, job.job_id))
        except HpcError as error:
            if error.transient:
                raise
            log.info("Job %s of an earlier try: %s", job.job_id, error)
            if not isinstance(error, NotFoundError):
                cancel_transfer(self.client, job)
            return None

    def checksum(self, path: str) -> tuple[str | None, str]:
        """The gateway's sha256; or None, and why it cannot be known."""
        call = files.checksum(self.system.name, path)

        def late(error: ApiError) -> str:
            if error.status == 408:
                return ""
            raise error

        try:
            digest = self.client.send(replace(call, refused=late))
        except (UnavailableError, RejectedError) as error:
            # The gateway knows no checksum of a name with a blank in it.
            return None, str(error)
        return digest or None, "the gateway does not wait that long for its sha256."


def cancel_transfer(client: Client, begun: Begun | TransferJob) -> None:
    """Cancel the job of a transfer that is given up; says so, and fails for nothing.

    :param client: an open client
    :param begun: the transfer, or its job
    """
    job = begun.job if isinstance(begun, Begun) else begun
    try:
        if client.send(jobs.cancel(job.system, job.job_id)):
            log.info("Transfer job %s cancelled.", job.job_id)
    except HpcError as error:
        log.warning("Transfer job %s could not be cancelled. %s", job.job_id, error)


def intent(path: str) -> JSONObject:
    """What a record says before the start of a transfer job, whose id its client may never learn.

    :param path: what the job is started for
    """
    return {"path": path, "at": time.time()}


def cancel_intended(
    client: Client, system: System, what: Literal["upload", "download"], about: JSONObject
) -> None:
    """Cancel the job, if there is one, amid whose start an earlier try ended.

    :param about: a record with an intent
    """
    path, at = about.get("path"), about.get("at")
    if isinstance(path, str) and isinstance(at, int | float):
        log.info("An earlier try ended amid the start of a transfer job, which is looked for.")
        transfers.cancel_orphan(client, system.name, what, path, at)


@contextlib.contextmanager
def given_up(
    client: Client, job: TransferJob, abandon: Abandon, clean: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """A transfer job whose client has gone would hold its allocation for a day."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or abandon(error):
            cancel_transfer(client, job)
            clean()
        raise


def needs_staging(
    system: System,
    name: str,
    size: int,
    *,
    what: str,
    limit: int,
    account: str | None,
    streams: bool = False,
) -> None:
    """Refuse what the system cannot stage, before a job is started for it.

    :param streams: a stream of the whole file will do
    """
    method = system.transfer_method
    if method == "streamer" and streams:
        check_streamer(system.name, name, size, system.max_stream_bytes if what == "uploads" else None)
    elif method != "s3":
        why = "gives no parts of a file" if method == "streamer" else "is not supported"
        how = f"stages by {method}, which {why}" if method else "has no staging"
        raise InvalidInputError(
            "remote_path",
            f"{name} has {size} bytes; system {system.name} {how}, so {what} end at {limit} bytes. "
            "Split or compress the file, use another system, or ask the site for staging by S3.",
        )
    if system.needs_account and not account:
        raise InvalidInputError(
            "account",
            f"system {system.name} charges staged transfers to an account; name one, or in the connection.",
        )


def leaves(
    if_exists: IfExists, where: str, theirs: float, ours: float | None, is_same: Callable[[], bool]
) -> bool:
    """Whether a file that is there already stays as it is.

    :param where: the file, for texts
    :param theirs: when it was changed (epoch seconds)
    :param ours: when the one to be copied was changed; None if nobody knows
    :param is_same: compares the content of both
    """
    if if_exists == "fail":
        raise TransferError(f"{where} exists; if_exists='fail' forbids to replace it.", transient=False)
    if if_exists == "newer" and ours is None:
        raise InvalidInputError("if_exists", "'newer' needs a source that knows when it was changed.")
    if if_exists == "skip":
        log.info("%s exists: skipped.", where)
        return True
    # The system tells whole seconds.
    if if_exists == "newer" and ours is not None and int(ours) <= int(theirs):
        log.info("%s is not older than what would replace it: skipped.", where)
        return True
    if if_exists == "verify" and is_same():
        log.info("%s has the same content: skipped.", where)
        return True
    return False


def check_transfer_job(client: Client, job: TransferJob, ended: Job) -> None:
    if ended.state.succeeded:
        return
    tail = ""
    with contextlib.suppress(HpcError):
        tail = client.send(files.tail(job.system, job.output_log, lines=5)).strip()
    remove_logs(client, job)
    raise TransferError(
        f"Transfer job {job.job_id} on system {job.system} ended {ended.state.value}"
        f"{f' (exit code {ended.exit_code})' if ended.exit_code else ''}. Its log ends: {tail or 'nothing'}",
        transient=ended.state.infrastructure,
    )


def remove_logs(client: Client, job: TransferJob) -> None:
    """Remove the logs that a transfer job leaves in its user's home; fails for nothing.

    :param client: an open client
    :param job: a job that is over
    """
    for path in dict.fromkeys((job.output_log, job.error_log)):
        # A directory would go whole.
        if not _LOG.fullmatch(path.rpartition("/")[2]):
            continue
        try:
            client.send(files.remove(job.system, path, missing_ok=True))
        except HpcError as error:
            log.info("The log of transfer job %s stays: %s", job.job_id, error)


def verify(
    side: Side, path: str, size: int, digest: str, *, wait: Wait | None, staged: bool
) -> tuple[str, Stat]:
    """Compare both sides. A transfer job that ended well may have written nothing, or garbage.

    :return: what was compared, and the file as it is
    """
    system, want = side.system, side.terms.verify
    stat = side.client.send(files.stat(system.name, path, dereference=True))
    compare_size(system, path, stat.size, size)
    if want == "never" or (want == "auto" and not staged):
        return "size", stat
    there, why = learn_sum(side, path, wait)
    if there is None and want == "always":
        raise TransferError(f"The sha256 of {path} on system {system.name} cannot be learned: {why}")
    if there is None:
        log.warning("%s: only the size was compared: %s", path, why)
        return "size", stat
    if there != digest:
        raise SpoiledError(f"{path} on system {system.name} has sha256 {there}, here it is {digest}.")
    return "sha256", stat


def learn_sum(side: Side, path: str, wait: Wait | None) -> tuple[str | None, str]:
    """The sha256 of a file on the system; or None, and why it cannot be known.

    :param wait: waits for a job that computes it where the terms are to verify always; None to do without
    """
    there, why = side.checksum(path)
    if there is None and side.terms.verify == "always" and wait is not None:
        log.info("%s: a job computes the sha256, since %s", path, why)
        there = _checksum_by_job(side, path, wait)
    return there, why


def _checksum_by_job(side: Side, path: str, wait: Wait) -> str:
    """The sha256 of a file, for which the gateway has no patience."""
    system, client = side.system, side.client
    base = system.default_directory
    home = f"{base.rstrip('/')}/{client.send(user_info(system.name)).name}" if base else parent(path)
    output = f"{home}/.checksum-{secrets.token_hex(6)}.out"
    # The path holds no quotes: the gateway is sent none that does.
    script = f"#!/bin/sh\nPATH=/usr/bin:/bin:$PATH\nexport PATH\nexec sha256sum -- '{path}'\n"
    spec = JobSpec(
        name="checksum",
        working_directory=home,
        script=script,
        account=side.account,
        stdout=output,
        stderr=output,
    )
    job_id = client.send(jobs.submit(system.name, spec))
    job = TransferJob(job_id=job_id, system=system.name, output_log=output, error_log=output)
    try:
        with given_up(client, job, side.abandon):
            check_transfer_job(client, job, wait(job_id))
            said = client.send(files.tail(system.name, output, lines=1))
    finally:
        with contextlib.suppress(HpcError):
            client.send(files.remove(system.name, output, missing_ok=True))
    found = re.match(r"\\?([0-9a-f]{64})\b", said)
    if not found:
        raise TransferError(f"Job {job_id} on system {system.name} gave no sha256 of {path}: {said[:200]}")
    return found[1]


def move(side: Side, begun: Begun, wait: Wait) -> Stat:
    """Let an upload appear under its name, by a job whose end says nothing."""
    system, client, landing = side.system, side.client, begun.landing or ""
    call = transfers.move(system.name, landing, begun.path, account=side.account)
    # Whichever of two such jobs is first moves it: the other finds nothing.
    job = client.send(replace(call, replayable=True))
    with given_up(client, job, side.abandon):
        ended = wait(job.job_id)
    check_transfer_job(client, job, ended)
    stat = side.stat(begun.path)
    if stat is None or stat.size != begun.size or side.stat(landing) is not None:
        raise TransferError(
            f"Job {job.job_id} on system {system.name} did not move {landing} to {begun.path}."
        )
    remove_logs(client, job)
    return stat


def sweep(side: Side, begun: Begun) -> None:
    """Remove a bad copy. What was there before stays, unless the job has taken it away already."""
    system, client, landing = side.system, side.client, begun.landing or begun.path
    try:
        there = side.stat(landing)
        if there is not None and identity(there) == begun.before:
            log.info("%s on system %s is still what it was before.", landing, system.name)
        elif there is not None:
            client.send(files.remove(system.name, landing, missing_ok=True))
            log.info("The bad copy %s on system %s is removed.", landing, system.name)
        for piece in _pieces(side, begun, landing):
            client.send(files.remove(system.name, piece, missing_ok=True))
    except HpcError as error:
        log.warning("What is left of %s on system %s could not be removed: %s", landing, system.name, error)


def until_over(client: Client, system: str, job_id: str) -> Job | None:
    """Wait a moment for the end of a job that was cancelled, which may write until then.

    :param client: an open client
    :param system: where it is
    :param job_id: id of the job
    :return: the job as it was seen last; None if it never was
    """
    until, seen = time.monotonic() + _DIES_WITHIN, None
    with contextlib.suppress(HpcError):
        while not (seen := client.send(jobs.get(system, job_id))).state.final:
            if time.monotonic() > until:
                log.info("Job %s still ends.", job_id)
                break
            time.sleep(_LOOK_AGAIN)
    return seen


def remove_written(side: Side, begun: Begun) -> None:
    """Remove what the job of an upload has written that is cancelled or broken; what was there before stays.

    A job that was faster than its cancellation has written all of it, which stays too, but for a landing.

    :param begun: the upload
    """
    job = until_over(side.client, begun.job.system, begun.job.job_id)
    if begun.landing is None and job is not None and job.state.succeeded:
        return
    sweep(side, begun)


def wrote(side: Side, begun: Begun, job: Job | None) -> bool:
    """Whether the job of an upload may have written what is there by now, or pieces of it.

    :param job: its last record; None if that is gone
    """
    there = side.stat(begun.path)
    if job is None or job.start is None or there is None:
        return job is None or job.start is not None
    end = job.end.timestamp() + _END_IS_LATE if job.end else math.inf
    return int(job.start.timestamp()) <= there.modified <= end


def _pieces(side: Side, begun: Begun, landing: str) -> list[str]:
    """What is left of the pieces that the job joins; no file of such a name that is older than the job."""
    job = side.job_state(begun.job) if begun.parts else None
    if job is None or job.start is None:
        return []
    since = int(job.start.timestamp())
    above, _, name = landing.rpartition("/")
    names = {f"{name}.{number}" for number in range(1, begun.parts + 1)}
    entries = side.client.send(files.listing(side.system.name, above or "/", hidden=True))
    found = [f"{above}/{entry.name}" for entry in entries if entry.name in names]
    seen = ((path, None if begun.landing else side.stat(path)) for path in found)
    return [path for path, stat in seen if stat is None or stat.modified >= since]


def compare_size(system: System, path: str, there: int, here: int) -> None:
    if there != here:
        raise SpoiledError(f"{path} on system {system.name} has {there} bytes, here it has {here}.")


def identity(stat: Stat) -> Identity:
    return stat.inode, stat.size, stat.modified


def parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"
