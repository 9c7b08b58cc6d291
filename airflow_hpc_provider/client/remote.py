"""What happens on a system alone: making directories, listing, and removing.

The gateway gives a command five seconds. What takes longer is left to a job, and such a job ends well
whatever its command did: its log and a look at the result tell.
"""

from __future__ import annotations

import contextlib
import logging
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TypeVar

from . import files, transfers
from .arrival import check_transfer_job, given_up
from .calls import Call, JSONObject
from .choices import Choice
from .errors import (
    AccessDeniedError,
    ApiError,
    BadRequestError,
    HpcError,
    InvalidInputError,
    NotFoundError,
    RejectedError,
    TransferError,
)
from .files import Entry, EntryKind, Stat
from .jobs import Job
from .paths import is_inside, remote_path
from .removal import Guard, split_removal
from .session import Client
from .systems import System
from .terms import Abandon, Wait
from .transfers import TransferJob

__all__ = [
    "KINDS",
    "check_identities",
    "checksum",
    "complaint",
    "delete",
    "failed",
    "listing",
    "look",
    "make_directory",
    "remove",
]

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Kinds of entries that a listing tells apart.
KINDS = {"file": EntryKind.FILE, "directory": EntryKind.DIRECTORY, "link": EntryKind.LINK}
_NAMES = {kind: name for name, kind in KINDS.items()}
# So many links in a row are followed, as Linux does.
_LINKS = 40
# Words of a command that will fail again in the same way.
_FINAL = re.compile(
    r"no such file|permission denied|not permitted|not a directory|is a directory|omitting directory"
    r"|file exists|same file|into itself|read-only|no space left|quota|too long",
    re.IGNORECASE,
)


class _LateError(Exception):
    """The gateway ended a command after its five seconds."""


def _always(_: BaseException) -> bool:
    return True


def look(client: Client, system: System, path: str, *, dereference: bool = False) -> Stat | None:
    """How something looks; None if there is nothing.

    :param client: an open client
    :param system: the system
    :param path: absolute path
    :param dereference: follow a symbolic link
    """
    try:
        return client.send(files.stat(system.name, path, dereference=dereference))
    except NotFoundError as error:
        if "system" in error.message.lower():
            raise
        return None


def checksum(client: Client, system: System, path: str) -> str | None:
    """The sha256 of a file; None if the gateway has no time for it, or cannot tell it of such a name."""
    try:
        return _in_time(client, files.checksum(system.name, path))
    except (_LateError, RejectedError) as error:
        log.info("The gateway cannot tell the sha256 of %s. %s", path, error)
        return None


def make_directory(
    client: Client, system: System, path: str, *, parents: bool = True, mode: int | str | None = None
) -> str:
    """Make a directory.

    :param path: absolute path
    :param parents: also make those above, and let an existing one be
    :param mode: permission bits (``0o750``) or their octal digits (``"750"``)
    :return: its path, normalised
    """
    path = remote_path(path, "path")
    client.send(files.make_directory(system.name, path, parents=parents))
    if mode is not None:
        client.send(files.change_mode(system.name, path, mode))
    return path


# --- listing ---


def listing(
    client: Client,
    system: System,
    path: str,
    *,
    glob: str | Iterable[str] = (),
    recursive: bool = False,
    hidden: bool = False,
    kind: str | None = None,
    limit: int | None = None,
) -> list[JSONObject]:
    """List a directory, or what a link to one leads to; or a single file.

    :param path: absolute path
    :param glob: only what matches this pattern, or one of these, see :class:`~.choices.Choice`
    :param recursive: all directories below, too; one request if the gateway can list the tree in its time
    :param hidden: also names that start with a dot
    :param kind: only ``file``, ``directory`` or ``link``
    :param limit: so many entries at the most, by the order of their names
    :return: plain JSON of each: ``path``, ``name`` below the listed directory, ``type``, ``size`` in bytes,
        ``modified`` (in the system's time zone, which is not told), ``permissions``, ``user``, ``group``,
        ``link_target``
    """
    path = remote_path(path, "path")
    if kind is not None and kind not in KINDS:
        raise InvalidInputError("kind", f"{kind!r} is none of {', '.join(KINDS)}.")
    if limit is not None and limit < 1:
        raise InvalidInputError("limit", f"must be 1 or more, not {limit}.")
    choice = Choice.of(glob, ours=True)
    base, found = _entries(client, system, path, recursive=recursive, hidden=hidden)
    wanted = sorted((entry for entry in found if _wants(choice, entry, kind)), key=lambda entry: entry.name)
    if limit is not None and len(wanted) > limit:
        log.warning("%s: %d of %d entries are listed (limit).", path, limit, len(wanted))
    return [_plain(base, entry) for entry in wanted[:limit]]


def _wants(choice: Choice, entry: Entry, kind: str | None) -> bool:
    return choice.takes(entry.name.lstrip("/")) and (kind is None or entry.kind is KINDS[kind])


def _entries(
    client: Client, system: System, path: str, *, recursive: bool, hidden: bool
) -> tuple[str, Sequence[Entry]]:
    """The directory that was listed, and what is in it; of a file its own directory and itself."""
    shown = path
    for _ in range(_LINKS):
        found = _listed(client, system, shown, recursive=recursive, hidden=hidden)
        # A directory is answered with what is in it, anything else with itself, by its whole path.
        if len(found) != 1 or not found[0].name.startswith("/"):
            return path, found
        (entry,) = found
        if entry.kind is not EntryKind.LINK or entry.link_target is None:
            return posixpath.dirname(path), [replace(entry, name=posixpath.basename(path))]
        shown = posixpath.normpath(posixpath.join(posixpath.dirname(shown), entry.link_target))
    raise InvalidInputError("path", f"{path}: too many links lead from one to the next.")


def _listed(client: Client, system: System, path: str, *, recursive: bool, hidden: bool) -> Sequence[Entry]:
    try:
        return _in_time(client, files.listing(system.name, path, hidden=hidden, recursive=recursive))
    except _LateError:
        if not recursive:
            raise TransferError(
                f"The gateway cannot list {path} on system {system.name} in its five seconds."
            ) from None
    log.info("%s: the gateway does not list the whole tree in time; each directory is listed.", path)
    return _walked(client, system, path, hidden=hidden)


def _walked(client: Client, system: System, path: str, *, hidden: bool) -> list[Entry]:
    """A tree, directory by directory."""
    found: list[Entry] = []
    below = [""]
    while below:
        prefix = below.pop()
        for entry in _listed(client, system, f"{path}/{prefix}", recursive=False, hidden=hidden):
            name = f"{prefix}{entry.name}"
            found.append(replace(entry, name=name))
            if entry.kind is EntryKind.DIRECTORY:
                below.append(f"{name}/")
    return found


def _plain(base: str, entry: Entry) -> JSONObject:
    return {
        "path": f"{base.rstrip('/')}/{entry.name}",
        "name": entry.name,
        "type": _NAMES.get(entry.kind, "other"),
        "size": entry.size,
        "modified": entry.modified,
        "permissions": entry.permissions,
        "user": entry.user,
        "group": entry.group,
        "link_target": entry.link_target,
    }


# --- removing ---


def delete(
    client: Client,
    system: System,
    path: str,
    *,
    guard: Guard,
    wait: Wait,
    account: str | None = None,
    allow_glob: bool = False,
    missing_ok: bool = False,
    abandon: Abandon = _always,
) -> list[str]:
    """Remove a file, a link, or a directory with all that is in it; or all that match a pattern.

    :param path: absolute path; with ``allow_glob`` its last name may hold wildcards, which are matched here:
        as in a shell they match no leading dot
    :param guard: what is never removed
    :param wait: waits for a job of this id and returns its last record
    :param account: account for the job that removes what takes long
    :param missing_ok: it is no error if there is nothing
    :param abandon: see :func:`~.staging.upload_file`
    :return: the paths that were removed
    :raises InvalidInputError: it must not be removed
    :raises NotFoundError: there is nothing of this name
    :raises TransferError: something is still there; the text tells what was removed before
    """
    place, pattern = split_removal(path, allow_glob=allow_glob)
    if pattern is None:
        guard.check(place)
        found = _single(client, system, place, missing_ok=missing_ok)
    else:
        found = _matching(client, system, place, pattern, missing_ok=missing_ok)
    for one in found:
        guard.check(one)
    if any(found.values()):
        check_identities(client, system, guard, [one for one, is_directory in found.items() if is_directory])
    done: list[str] = []
    for one in found:
        try:
            remove(client, system, one, wait=wait, account=account, abandon=abandon)
        except HpcError:
            if done:
                log.warning("Removed before this error: %s", ", ".join(done))
            raise
        done.append(one)
    return done


def _single(client: Client, system: System, path: str, *, missing_ok: bool) -> dict[str, bool]:
    """What to remove, and whether it is a directory."""
    try:
        stat = client.send(files.stat(system.name, path))
    except NotFoundError as error:
        if not missing_ok or "system" in error.message.lower():
            raise
        log.info("%s is not there.", path)
        return {}
    return {path: stat.is_directory}


def _matching(
    client: Client, system: System, directory: str, pattern: str, *, missing_ok: bool
) -> dict[str, bool]:
    """What matches, and whether it is a directory."""
    choice = Choice.of(f"/{pattern}", ours=True)
    try:
        base, found = _entries(
            client, system, directory, recursive=False, hidden=pattern.startswith((".", "[."))
        )
    except NotFoundError as error:
        if not missing_ok or "system" in error.message.lower():
            raise
        base, found = directory, ()
    chosen = {
        f"{base.rstrip('/')}/{entry.name}": entry.kind is EntryKind.DIRECTORY
        for entry in sorted(found, key=lambda entry: entry.name)
        if choice.takes(entry.name)
    }
    if not chosen:
        if not missing_ok:
            raise InvalidInputError(
                "path", f"nothing in {directory} on system {system.name} matches {pattern!r}; see missing_ok."
            )
        log.info("Nothing in %s matches %r.", directory, pattern)
    return chosen


def check_identities(client: Client, system: System, guard: Guard, directories: Iterable[str]) -> None:
    """A link above a path gives what stays another name; inode and device tell.

    Each place that stays, and each directory above one, is asked for once, as far as the gateway shows them.

    :param guard: what stays
    :param directories: what would be removed or moved
    :raises InvalidInputError: one of them stays, or is above what stays
    """
    staying: dict[tuple[int, int], str] = {}
    seen: set[str] = set()
    for place, what in guard.places.items():
        for identity, path in _way(client, system, place, seen):
            label = f"{place}, {what}" if path == place else f"{path}, which leads to {place}, {what}"
            staying.setdefault(identity, label)
    for path in directories:
        stat = client.send(files.stat(system.name, path))
        if same := staying.get((stat.device, stat.inode)):
            raise InvalidInputError("path", f"{path} is another name of {same}: it stays.")


def _way(client: Client, system: System, place: str, seen: set[str]) -> Iterator[tuple[tuple[int, int], str]]:
    """Device and inode of a place and of each directory on the way to it, also on that of a link.

    :param seen: what has been asked for, and is not again; filled on the way
    """
    mounts = [mounted.path for mounted in system.file_systems] or ["/"]
    for path in (place, *map(str, PurePosixPath(place).parents)):
        if path in seen or not any(is_inside(path, mount) for mount in mounts):
            continue
        seen.add(path)
        # What is not there, or must not be seen, leads nowhere.
        with contextlib.suppress(NotFoundError, AccessDeniedError, BadRequestError):
            stat = client.send(files.stat(system.name, path))
            if not stat.is_link:
                yield (stat.device, stat.inode), path
                continue
            behind = client.send(files.stat(system.name, path, dereference=True))
            yield (behind.device, behind.inode), path
            entries = client.send(files.listing(system.name, path))
            if len(entries) == 1 and (target := entries[0].link_target) is not None:
                leads = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
                yield from _way(client, system, leads, seen)


def remove(
    client: Client,
    system: System,
    path: str,
    *,
    wait: Wait,
    account: str | None = None,
    abandon: Abandon = _always,
) -> None:
    """Remove one thing unguarded: at once, or by a job if the gateway's time is too short. It may be gone.

    :param path: absolute path
    :param wait: waits for a job of this id and returns its last record
    :param account: account for that job
    :param abandon: see :func:`~.staging.upload_file`
    :raises TransferError: it is still there
    """
    try:
        _in_time(client, files.remove(system.name, path, missing_ok=True))
    except _LateError:
        log.info("%s: the gateway does not wait that long; a job removes it.", path)
        job = client.send(transfers.remove(system.name, path, account=account))
        with given_up(client, job, abandon):
            ended = wait(job.job_id)
        problem = complaint(client, job, ended, "deleted")
        if look(client, system, path) is not None:
            raise failed(f"{path} on system {system.name} is still there", problem) from None


# --- jobs that carry out a command ---


def complaint(client: Client, job: TransferJob, ended: Job, done: str) -> str | None:
    """What went wrong in a job, or None if its log says that it is done.

    :param ended: its last record
    :param done: the gateway's word: ``copied``, ``moved`` or ``deleted``
    :raises TransferError: it was ended by the scheduler or a user
    """
    check_transfer_job(client, job, ended)
    if f"successfully {done}" in _tail(client, job.system, job.output_log):
        return None
    return _tail(client, job.system, job.error_log) or "the job's log does not tell."


def failed(what: str, problem: str | None) -> TransferError:
    """The error of a job that has not done its work.

    :param what: what is wrong with the result
    :param problem: what :func:`complaint` gave
    """
    return TransferError(
        f"{what}: {problem}" if problem else f"{what}.", transient=not _FINAL.search(problem or "")
    )


def _tail(client: Client, system: str, path: str) -> str:
    try:
        return client.send(files.tail(system, path, lines=5)).strip()
    except HpcError as error:
        log.debug("%s", error)
        return ""


def _in_time(client: Client, call: Call[T]) -> T:
    """Carry out a call that the gateway may end after five seconds; another try would not help then.

    :raises _LateError: it was ended
    """

    def refused(error: ApiError) -> T:
        if error.status == 408:
            raise _LateError
        return call.refused(error)

    return client.send(replace(call, refused=refused))
