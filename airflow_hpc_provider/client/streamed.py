"""A whole streamed transfer: its job, the conversation with it, the proof, and what becomes of a broken one.

A stream cannot be gone on with: a broken one begins anew, with a new job, while the old one is cancelled. An
upload lands under a name of its own and is moved when it is verified, since its job overwrites nothing and
leaves what is half written.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from . import files, jobs, transfers
from .arrival import PERMISSIONS, Side, cancel_transfer, move, parent, remove_logs, verify
from .errors import HpcError, NotFoundError, TransferError
from .files import Stat
from .jobs import Job
from .places import Sink, Source
from .streaming import Link, reach, receive, send
from .terms import Begun, Moved
from .transfers import StreamPlan

__all__ = ["Note", "clear", "stream_down", "stream_up"]

log = logging.getLogger(__name__)
T = TypeVar("T")

Note = Callable[[Begun | str], None]
"""Writes down for which path a job starts, and then which one, for another process to clean up after this."""

# Seconds between two looks at a job: at first soon, then at leisure.
_FIRST_LOOK = 0.25
_LONGEST_PAUSE = 5.0
# A job that runs installs the streamer before it listens.
_START_SECONDS = 900.0
# A gateway may be down, or not know a new job, for so long.
_SILENT_SECONDS = 1800.0


def stream_up(
    side: Side, source: Source, target: str, *, name: str, note: Note = lambda _: None
) -> tuple[Moved, Stat]:
    """Upload a file by a stream.

    :param source: open for reading
    :param target: absolute path of the file to make; replaced if it is there
    :param name: under which the transfer is written down
    :param note: told of each job, and before of its path
    :return: what was moved, and the file as it is
    :raises TransferError: no try brought it there whole
    """
    _warn(side.system.name)
    began = side.pace.clock()
    moved = _tries(side, lambda _: _send_once(side, source, target, name, note))
    side.pace.told(source.size, side.pace.clock() - began)
    return moved


def _send_once(side: Side, source: Source, target: str, name: str, note: Note) -> tuple[Moved, Stat]:
    client, system = side.client, side.system
    # A name that the job's script can bear unquoted.
    landing = f"{parent(target).rstrip('/')}/.{secrets.token_hex(8)}.part"
    call = transfers.start_stream_upload(system.name, landing, account=side.account)
    note(landing)
    plan = transfers.start_once(client, call)
    begun = Begun(
        job=plan.job,
        path=target,
        size=source.size,
        landing=landing,
        mode=source.mode if side.terms.preserve_mode else None,
        name=name,
    )
    with _given_up(side, begun):
        note(begun)
        digest = send(_linked(side, plan), source, pace=side.pace)
        wait = functools.partial(_over, side)
        try:
            verified, _ = verify(side, landing, source.size, digest, wait=wait, staged=True)
        except NotFoundError as error:
            raise TransferError(
                f"Job {plan.job.job_id} on system {system.name} left nothing of {target}."
            ) from error
        seen = move(side, begun, wait)
        if begun.mode is not None:
            client.send(files.change_mode(system.name, target, begun.mode & PERMISSIONS))
    remove_logs(client, plan.job)
    return Moved(path=target, size=source.size, sha256=digest, staged=True, verified=verified), seen


def stream_down(
    side: Side, source: str, stat: Stat, sink: Sink, *, name: str, note: Note = lambda _: None
) -> Moved:
    """Download a file by a stream.

    :param source: absolute path on the system
    :param stat: the file as it was last seen
    :param sink: where it goes to, not started
    :param name: under which the transfer is written down
    :param note: told of each job, and before of its path
    :raises TransferError: no try brought it here whole
    """
    _warn(side.system.name)
    began = side.pace.clock()

    def once(attempt: int) -> Moved:
        seen = stat
        if attempt > 1:
            seen = side.client.send(files.stat(side.system.name, source, dereference=True))
        return _receive_once(side, source, seen, sink, name=name, note=note)

    moved = _tries(side, once)
    side.pace.told(moved.size, side.pace.clock() - began)
    return moved


def _receive_once(side: Side, source: str, stat: Stat, sink: Sink, *, name: str, note: Note) -> Moved:
    call = transfers.start_stream_download(side.system.name, source, account=side.account)
    note(source)
    plan = transfers.start_once(side.client, call)
    begun = Begun(job=plan.job, path=source, size=stat.size, modified=stat.modified, name=name)
    with _given_up(side, begun, sink.discard):
        note(begun)
        link = _linked(side, plan)
        try:
            sink.start(stat.size)
        except BaseException:
            link.abort()
            link.close()
            raise
        digest = receive(link, sink, stat.size, pace=side.pace)
        verified, seen = verify(
            side, source, stat.size, digest, wait=functools.partial(_over, side), staged=True
        )
        sink.commit(
            mode=seen.mode & PERMISSIONS if side.terms.preserve_mode else None,
            mtime=float(seen.modified) if side.terms.preserve_mtime else None,
        )
    remove_logs(side.client, plan.job)
    return Moved(path=source, size=stat.size, sha256=digest, staged=True, verified=verified)


def clear(side: Side, begun: Begun) -> None:
    """Cancel the job of a stream that is given up, and remove what it has written; fails for nothing.

    :param begun: the transfer, perhaps another process's
    """
    cancel_transfer(side.client, begun)
    if begun.landing is None:
        return
    try:
        side.client.send(files.remove(side.system.name, begun.landing, missing_ok=True))
    except HpcError as error:
        log.warning("%s on system %s could not be removed: %s", begun.landing, side.system.name, error)


@contextlib.contextmanager
def _given_up(side: Side, begun: Begun, clean: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Nobody can go on with a broken stream, so nothing of it stays."""
    try:
        yield
    except BaseException:
        clear(side, begun)
        clean()
        raise


def _tries(side: Side, once: Callable[[int], T]) -> T:
    attempt = 0
    while True:
        attempt += 1
        try:
            return once(attempt)
        except TransferError as error:
            delay = side.pace.policy.delay(attempt, error, replayable=True)
            if delay is None:
                raise
            log.warning("%s It begins anew in %.0f s, with another job.", error, delay)
            time.sleep(delay)


def _linked(side: Side, plan: StreamPlan) -> Link:
    """Wait until the job runs and its server listens."""
    clock, running = side.pace.clock, None
    log.info("Waiting for job %s to listen for the stream.", plan.job.job_id)
    for job in _looks(side, plan.job.job_id):
        if job is None:
            continue
        if job.state.final:
            raise _ended(side, plan, job)
        if not job.state.running:
            running = None
            continue
        running = clock() if running is None else running
        if link := reach(plan.coordinates):
            return link
        if clock() - running > _START_SECONDS:
            raise _unreachable(side, plan)
    raise AssertionError("unreachable")  # pragma: no cover


def _over(side: Side, job_id: str) -> Job:
    """Wait for a job's end."""
    return next(job for job in _looks(side, job_id) if job is not None and job.state.final)


def _looks(side: Side, job_id: str) -> Iterator[Job | None]:
    """Look at a job again and again; None while the gateway cannot tell of it.

    :raises HpcError: it cannot for too long
    """
    heard, pause = side.pace.clock(), _FIRST_LOOK
    while True:
        job = None
        try:
            job = side.client.send(jobs.get(side.system.name, job_id))
            heard = side.pace.clock()
        except HpcError as error:
            passing = error.transient or isinstance(error, NotFoundError)
            if not passing or side.pace.clock() - heard > _SILENT_SECONDS:
                raise
            log.info("Job %s: %s", job_id, error)
        yield job
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _ended(side: Side, plan: StreamPlan, job: Job) -> TransferError:
    return TransferError(
        f"Job {plan.job.job_id} on system {side.system.name} ended {job.state.value} before its stream began."
        f" Its log ends: {_log_of(side, plan) or 'nothing'}"
    )


def _unreachable(side: Side, plan: StreamPlan) -> TransferError:
    first, last = plan.coordinates.ports
    return TransferError(
        f"Job {plan.job.job_id} on system {side.system.name} runs, but on ports {first} to {last} of "
        f"{len(plan.coordinates.hosts)} addresses nothing took its secret in {_START_SECONDS:.0f} s. Are the "
        f"ports open from this machine? Its log ends: {_log_of(side, plan) or 'nothing'}"
    )


def _log_of(side: Side, plan: StreamPlan) -> str:
    """The end of the job's log, but for its secret."""
    told = []
    for path in (plan.job.output_log, plan.job.error_log):
        with contextlib.suppress(HpcError):
            told.append(side.client.send(files.tail(side.system.name, path, lines=5)))
    return plan.coordinates.scrub("\n".join(told)).strip()[-500:]


@functools.cache
def _warn(system: str) -> None:
    """Said once a process."""
    log.warning(
        "System %s moves large files by its streamer: content and secret travel unencrypted, for anybody on "
        "the way to read. What arrives is compared with the gateway's sha256.",
        system,
    )
