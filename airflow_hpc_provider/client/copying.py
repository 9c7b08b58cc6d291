"""Copying and moving within a system, by a job of the gateway; verified, and taken up again after a crash.

``begin_copy`` starts the job, ``finish_copy`` looks whether it did its work: another process may do that. A
job ends well whatever its command did, so that its log and a look at the result decide.
"""

from __future__ import annotations

import logging
import posixpath
from dataclasses import asdict, dataclass, replace
from typing import Any

from . import files, jobs, transfers
from .arrival import given_up, leaves
from .calls import JSONObject
from .checkpoint import Journal, Keeper
from .errors import HpcError, InvalidInputError, TransferError
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
    "resolve_target",
    "skipped",
]

log = logging.getLogger(__name__)

# Of a copy that was about to begin.
_NO_JOB = TransferJob(job_id="", system="", output_log="", error_log="")


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
        account=account,
        move=move,
        if_exists=if_exists,
        keeper=keeper,
    )
    if isinstance(begun, Copied):
        return begun

    def clean() -> None:
        Journal(keeper, begun.key).forget()
        _sweep(client, system, begun, wait=wait, account=account)

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
    if earlier := _earlier(client, system, journal):
        return earlier
    stat = client.send(files.stat(system.name, source, dereference=not move))
    if move and guard and stat.is_directory:
        check_identities(client, system, guard, [source])
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
    build = transfers.move if move else transfers.copy
    job = client.send(build(system.name, source, path, account=account))
    log.info("Job %s on system %s: %s to %s.", job.job_id, system.name, source, path)
    begun = replace(begun, job=job)
    journal.save(begun.to_json())
    return begun


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
        journal.forget()
        _sweep(client, system, begun, wait=wait, account=account)
        raise
    journal.forget()
    return _copied(system, begun)


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


def _earlier(client: Client, system: System, journal: Journal) -> Copied | Copying | None:
    """What an earlier try of the same task began, as far as it can be taken up."""
    about, ours = journal.load()
    if about is None or not ours:
        return None
    try:
        begun = Copying.from_json(about)
    except (TypeError, KeyError):
        return None
    if begun.job.job_id:
        try:
            job = client.send(jobs.get(system.name, begun.job.job_id))
        except HpcError as error:
            log.info("Job %s of an earlier try: %s", begun.job.job_id, error)
        else:
            if job.state.succeeded or not job.state.final:
                log.info("Going on with job %s of an earlier try.", job.job_id)
                return begun
    journal.forget()
    if begun.move and _arrived(client, system, begun):
        log.info("%s was moved to %s by an earlier try.", begun.source, begun.target)
        return _copied(system, begun)
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


def _sweep(client: Client, system: System, begun: Copying, *, wait: Wait, account: str | None) -> None:
    """Remove what a broken copy left, where nothing was before."""
    path = begun.target
    if begun.move or begun.replaces:
        return
    try:
        if look(client, system, path) is not None:
            remove(client, system, path, wait=wait, account=account)
            log.info("The broken copy %s on system %s is removed.", path, system.name)
    except HpcError as error:
        log.warning("The broken copy %s on system %s is still there: %s", path, system.name, error)
