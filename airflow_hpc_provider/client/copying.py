"""Copying and moving within a system, by a job of the gateway; verified, and taken up again after a crash.

``begin_copy`` starts the job, ``finish_copy`` looks whether it did its work: another process may do that. A
job ends well whatever its command did, so that its log and a look at the result decide.
"""

from __future__ import annotations

import logging
import posixpath
import re
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from . import files, jobs, transfers
from .arrival import cancel_transfer, given_up, leaves, until_over
from .calls import JSONObject
from .checkpoint import Journal, Keeper
from .errors import HpcError, InvalidInputError, NotFoundError, TransferError, UnsupportedError
from .files import Stat
from .jobs import Job
from .paths import is_inside, remote_path
from .remote import check_identities, checksum, complaint, failed, look, remove
from .removal import Guard
from .session import Client
from .systems import System
from .terms import Abandon, IfExists, Wait
from .transfers import TransferJob

__all__ = [
    "Copied",
    "Copying",
    "begin_copy",
    "check_target",
    "copy",
    "finish_copy",
    "movable",
    "remove_unfinished",
    "resolve_target",
    "skipped",
]

log = logging.getLogger(__name__)

# Of a copy that was about to begin.
_NO_JOB = TransferJob(job_id="", system="", output_log="", error_log="")
# Names that the gateway gives to the jobs that copy and move.
_NAMES = {False: "CopyFiles", True: "MoveFiles"}
# A job may show up in the list a moment after its submission was answered with an error.
_LOOK_AGAIN = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What was copied or moved.

    :param source: absolute path it was copied from
    :param target: absolute path it was copied to
    :param source_system: name of the system it was on
    :param target_system: name of the system it is on
    :param size: bytes of a file; None of a directory
    :param skipped: nothing was done, since it was there already
    """

    source: str
    target: str
    source_system: str
    target_system: str
    size: int | None
    skipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Copying:
    """A copy whose job is under way.

    :param source: absolute path
    :param target: absolute path that it will have
    :param move: the source goes
    :param size: bytes of a file; None of a directory
    :param modified: when the source was changed (epoch seconds)
    :param replaces: something was there before
    :param key: under which it is written down
    :param job: the job to wait for
    """

    source: str
    target: str
    move: bool
    size: int | None
    modified: int
    replaces: bool
    key: str
    job: TransferJob = _NO_JOB

    def to_json(self) -> JSONObject:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Any) -> Copying:
        """What ``to_json`` gave."""
        return cls(**plain | {"job": TransferJob(**plain["job"])})


def _always(_: BaseException) -> bool:
    return True


def copy(
    client: Client,
    system: System,
    source: str,
    target: str,
    *,
    guard: Guard | None = None,
    wait: Wait,
    account: str | None = None,
    move: bool = False,
    if_exists: IfExists = "overwrite",
    keeper: Keeper | None = None,
    abandon: Abandon = _always,
) -> Copied:
    """Copy or move a file or a directory within a system.

    :param source: absolute path
    :param target: absolute path of the copy; or of a directory to copy into: one that is there, or with a
        slash at its end
    :param guard: what is never moved away; needed to move
    :param wait: waits for a job of this id and returns its last record
    :param account: account for the job
    :param move: remove the source
    :param if_exists: what to do with a file that is there already, see :class:`~.terms.Terms`; a directory
        that is there is never replaced or merged
    :param keeper: where it is written down, so that a retry takes up the job or sees that it is done
    :param abandon: see :func:`~.staging.upload_file`
    :raises NotFoundError: there is no source, or no directory for the copy
    :raises InvalidInputError: it cannot be copied there
    :raises TransferError: it did not arrive
    """
    begun = begin_copy(
        client,
        system,
        source,
        target,
        guard=guard,
        wait=wait,
        account=account,
        move=move,
        if_exists=if_exists,
        keeper=keeper,
    )
    if isinstance(begun, Copied):
        return begun

    def clean() -> None:
        if remove_unfinished(client, system, begun, wait=wait, account=account):
            Journal(keeper, begun.key).forget()

    with given_up(client, begun.job, abandon, clean):
        ended = wait(begun.job.job_id)
    return finish_copy(client, system, begun, ended, wait=wait, account=account, keeper=keeper)


def begin_copy(
    client: Client,
    system: System,
    source: str,
    target: str,
    *,
    guard: Guard | None = None,
    wait: Wait,
    account: str | None = None,
    move: bool = False,
    if_exists: IfExists = "overwrite",
    keeper: Keeper | None = None,
) -> Copied | Copying:
    """Start the job. Parameters are those of :func:`copy`.

    :return: what was copied, if nothing is left to do; else what to wait for
    """
    source = movable(guard, source) if move else remote_path(source, "source")
    key = f"{'move' if move else 'copy'} {system.name} {source} {target}"
    journal = Journal(keeper, key)
    earlier = _earlier(client, system, journal, wait=wait, account=account)
    if isinstance(earlier, Copied) or (earlier is not None and earlier.job.job_id):
        return earlier
    stat = client.send(files.stat(system.name, source, dereference=not move))
    if move and guard and stat.is_directory:
        check_identities(client, system, guard, [source])
    if earlier is not None:
        # What was decided then is not asked again: what lies there now may be half a copy.
        path, there = earlier.target, look(client, system, earlier.target, dereference=True)
        check_target(system, source, stat, path, there)
    else:
        path, there = resolve_target(client, system, target, posixpath.basename(source))
        if there is not None and if_exists in ("skip", "fail") and there.is_directory == stat.is_directory:
            leaves(if_exists, f"{path} on system {system.name}", 0.0, None, lambda: False)
            return skipped(system.name, source, system.name, path, there)
        check_target(system, source, stat, path, there)
        if there is not None and leaves(
            if_exists,
            f"{path} on system {system.name}",
            there.modified,
            float(stat.modified),
            lambda: there.size == stat.size and _same_content(client, system, source, path),
        ):
            return skipped(system.name, source, system.name, path, there)
    # A job would end well without a place to put the copy.
    client.send(files.stat(system.name, posixpath.dirname(path), dereference=True))
    begun = Copying(
        source=source,
        target=path,
        move=move,
        size=_size(stat),
        modified=stat.modified,
        replaces=there is not None,
        key=key,
    )
    journal.save(begun.to_json())
    begun = replace(begun, job=_start(client, system, begun, account))
    log.info("Job %s on system %s: %s to %s.", begun.job.job_id, system.name, source, path)
    journal.save(begun.to_json())
    return begun


def _start(client: Client, system: System, begun: Copying, account: str | None) -> TransferJob:
    """Start the job; one whose answer was lost is looked for."""
    build = transfers.move if begun.move else transfers.copy
    try:
        return client.send(build(system.name, begun.source, begun.target, account=account))
    except HpcError as error:
        if not error.ambiguous:
            raise
        log.warning("%s The job may have been submitted all the same.", error)
        found = _find(client, system, begun)
        if found is None:
            time.sleep(_LOOK_AGAIN)
            found = _find(client, system, begun)
        if found is None:
            raise
        return found


def _find(client: Client, system: System, begun: Copying) -> TransferJob | None:
    """The job that copies just this, while it waits or runs; its script tells.

    :raises TransferError: there is one of which nobody can tell what it copies
    """
    source, target = (f"[\"']?{re.escape(path)}[\"']?" for path in (begun.source, begun.target))
    words = re.compile(rf"(?<!\S){source}\s+{target}(?=[\s)])")
    for job in client.send(jobs.listing(system.name, name=_NAMES[begun.move], window="1h")):
        if job.state.final:
            continue
        try:
            about = client.send(jobs.metadata(system.name, job.job_id))
        except NotFoundError:
            continue
        except UnsupportedError as error:
            raise TransferError(
                f"Job {job.job_id} on system {system.name} may be the one that copies {begun.source} to "
                f"{begun.target}, which the system does not tell: try again when it is over.",
            ) from error
        if about.stdout and words.search(about.script or ""):
            log.info("Job %s copies %s to %s.", job.job_id, begun.source, begun.target)
            return TransferJob(
                job_id=job.job_id,
                system=system.name,
                output_log=about.stdout,
                error_log=about.stderr or about.stdout,
            )
    return None


def finish_copy(
    client: Client,
    system: System,
    begun: Copying,
    ended: Job,
    *,
    wait: Wait,
    account: str | None = None,
    keeper: Keeper | None = None,
) -> Copied:
    """Look whether the job did its work; a broken copy is removed, where nothing was before.

    :param begun: what :func:`begin_copy` gave, perhaps to another process
    :param ended: last record of its job
    :param wait: waits for a job that removes a broken copy
    """
    journal = Journal(keeper, begun.key)
    done = "moved" if begun.move else "copied"
    try:
        problem = complaint(client, begun.job, ended, done)
        # A move is proven by what is there and no longer here, whatever the log says.
        if not (_arrived(client, system, begun) and (begun.move or problem is None)):
            raise failed(f"{begun.source} was not {done} to {begun.target} on system {system.name}", problem)
    except TransferError:
        # Any other error leaves open whether it is done: another try will look again.
        if _sweep(client, system, begun, wait=wait, account=account):
            journal.forget()
        raise
    journal.forget()
    return _copied(system, begun)


def remove_unfinished(
    client: Client, system: System, begun: Copying, *, wait: Wait, account: str | None = None
) -> bool:
    """Remove what the cancelled job of a copy has written; what was there before stays.

    :param begun: the copy
    :param wait: waits for a job that removes it
    :return: whether nothing is there any more
    """
    until_over(client, system.name, begun.job.job_id)
    return _sweep(client, system, begun, wait=wait, account=account)


def resolve_target(client: Client, system: System, target: str, name: str) -> tuple[str, Stat | None]:
    """Where something goes: into a directory that is there, or that a slash at the end tells of.

    :param target: absolute path
    :param name: name of what is copied
    :return: the path it will have, and what is there already
    """
    path = remote_path(target, "target")
    there = look(client, system, path, dereference=True)
    if target.endswith("/") or (there is not None and there.is_directory):
        path = remote_path(f"{path}/{name}", "target")
        there = look(client, system, path, dereference=True)
    return path, there


def check_target(system: System, source: str, stat: Stat, path: str, there: Stat | None) -> None:
    """Refuse what cannot be copied somewhere on the same system.

    :param stat: how the source looks
    :param there: what is there already
    :raises InvalidInputError: it is the same, inside of itself, or a directory is involved that is there
    """
    same = there is not None and (there.device, there.inode) == (stat.device, stat.inode)
    if path == source or same:
        raise InvalidInputError("target", f"{path} is {source} itself.")
    if stat.is_directory and is_inside(path, source):
        raise InvalidInputError("target", f"{path} is inside of {source}.")
    if there is not None and (there.is_directory or stat.is_directory):
        what = "directory" if there.is_directory else "file"
        raise InvalidInputError(
            "target",
            f"{path} on system {system.name} is a {what} that is there already; directories are not merged.",
        )


def movable(guard: Guard | None, source: str) -> str:
    """A path that may be moved away.

    :raises InvalidInputError: it may not
    """
    if guard is None:
        raise ValueError("to move something needs a guard")
    return guard.check(source, "source", "moved")


def _earlier(
    client: Client, system: System, journal: Journal, *, wait: Wait, account: str | None
) -> Copied | Copying | None:
    """What an earlier try of the same task began; a half copy of its is removed.

    :return: what it has moved; or what to wait for; or, without a job, what to do once more
    """
    about, ours = journal.load()
    try:
        begun = Copying.from_json(about)
    except (TypeError, KeyError):
        return None
    if not begun.job.job_id and (found := _find(client, system, begun)):
        begun = replace(begun, job=found)
        journal.save(begun.to_json())
    job = _state(client, begun.job)
    if job is not None and ours and (job.state.succeeded or not job.state.final):
        log.info("Going on with job %s of an earlier try.", job.job_id)
        return begun
    if job is not None and not job.state.final:
        cancel_transfer(client, begun.job)
        until_over(client, system.name, begun.job.job_id)
    if begun.move and _arrived(client, system, begun):
        log.info("%s was moved to %s by an earlier try.", begun.source, begun.target)
        journal.forget()
        return _copied(system, begun)
    cleared = _sweep(client, system, begun, wait=wait, account=account)
    if not cleared and begun.move and begun.size is None:
        # From one file system to another, a move copies all of it before it removes the source.
        raise TransferError(
            f"An earlier try's move of {begun.source} to {begun.target} on system {system.name} broke off: "
            "both are there, and either may miss something. Compare them, remove one, and clear the task.",
            transient=False,
        )
    if not (cleared or begun.move or begun.replaces):
        raise TransferError(
            f"What an earlier try left of {begun.target} on system {system.name} cannot be removed."
        )
    return replace(begun, job=_NO_JOB)


def _state(client: Client, job: TransferJob) -> Job | None:
    """A job as it is; None if there is none, or the gateway knows it no more."""
    if not job.job_id:
        return None
    try:
        return client.send(jobs.get(job.system, job.job_id))
    except NotFoundError as error:
        log.info("Job %s of an earlier try: %s", job.job_id, error)
        return None


def _arrived(client: Client, system: System, begun: Copying) -> bool:
    there = look(client, system, begun.target, dereference=not begun.move)
    if there is None or _size(there) != begun.size:
        return False
    # Moving keeps the time of the content.
    return not begun.move or (look(client, system, begun.source) is None and there.modified == begun.modified)


def _size(stat: Stat) -> int | None:
    return None if stat.is_directory else stat.size


def skipped(source_system: str, source: str, target_system: str, target: str, there: Stat) -> Copied:
    """Nothing was copied, since something is there already.

    :param there: what is there
    """
    return Copied(
        source=source,
        target=target,
        source_system=source_system,
        target_system=target_system,
        size=_size(there),
        skipped=True,
    )


def _copied(system: System, begun: Copying) -> Copied:
    return Copied(
        source=begun.source,
        target=begun.target,
        source_system=system.name,
        target_system=system.name,
        size=begun.size,
    )


def _same_content(client: Client, system: System, one: str, other: str) -> bool:
    found = checksum(client, system, one)
    return found is not None and found == checksum(client, system, other)


def _sweep(client: Client, system: System, begun: Copying, *, wait: Wait, account: str | None) -> bool:
    """Remove what a broken copy left, where nothing was before.

    :return: whether nothing is there
    """
    path = begun.target
    try:
        left = look(client, system, path) is not None
        if left and not (begun.move or begun.replaces):
            remove(client, system, path, wait=wait, account=account)
            log.info("The broken copy %s on system %s is removed.", path, system.name)
            left = False
    except HpcError as error:
        log.warning("The broken copy %s on system %s is still there: %s", path, system.name, error)
        return False
    return not left
