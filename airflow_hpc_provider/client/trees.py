"""Many files at once: directories, globs and lists travel as one compressed archive.

A file costs three requests or more, an archive of a thousand files about ten. Names below the source and the
target are free, since no shell ever sees them: they are in the archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, Unpack

from . import files, transfers
from .archives import Item, LocalFiles, Packed, TarSource, survey
from .arrival import check_transfer_job, given_up
from .calls import Call
from .checkpoint import Journal, Keeper
from .choices import HIDDEN, Choice, Names, Taking, escape, files_pattern, find_pattern, is_glob, split_glob
from .downloading import download_name
from .errors import (
    AccessDeniedError,
    BadRequestError,
    HpcError,
    InvalidInputError,
    NotFoundError,
    RejectedError,
    TooLargeError,
    TransferError,
    UnavailableError,
)
from .files import Compression, Entry, EntryKind
from .jobs import Job
from .moving import Pace
from .paths import remote_path
from .places import Source
from .progress import amount
from .session import Client
from .staging import (
    Means,
    begin_download,
    begin_upload,
    end_earlier,
    finish_download,
    finish_upload,
    remove_hidden,
)
from .systems import System, user_info
from .terms import Abandon, Begun, Halted, Moved, Over, Terms, Wait
from .transfers import TransferJob
from .unpacking import Unpacking
from .uploading import upload_name

__all__ = [
    "Contents",
    "LocalFiles",
    "Tree",
    "download_files",
    "download_tree",
    "listed",
    "upload_files",
    "upload_tree",
]

log = logging.getLogger(__name__)
T = TypeVar("T")
Contents = Mapping[str, tuple[int, str]]

# Up to so many bytes of files are compressed, into a temporary file; more are sent as they are, from where
# they are.
_COMPRESSED = 256 * 1024 * 1024
# So many archives that one request each can take are sent like that: it is quicker than one staged transfer.
_PIECES = 3
# What the gateway surely cannot pack or unpack in its five seconds is left to a job at once.
_SLOW = 2 * 1024 * 1024 * 1024
# Up to so many bytes more than are wanted may travel: packing one by one would take longer.
_TOO_MUCH = 32 * 1024 * 1024
# Seconds before the first look at a job: none ends sooner.
_PATIENCE = 1.0
# In so many archives at most what is wanted is packed apart from what is not.
_ARCHIVES = 4
# A file that is written by the gateway itself has these permissions, as far as the user's umask lets it.
_USUAL = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """What was moved.

    :param path: the directory on the system
    :param files: how many regular files
    :param directories: how many directories
    :param links: how many symbolic links
    :param size: bytes of all files
    :param packed: bytes of the archives that travelled
    :param staged: whether one of them went through the gateway's staging, by a job
    :param names: paths of files and links below the target
    :param contents: size and sha256 of each regular file; of an upload that is not compressed nothing
    """

    path: str
    files: int
    directories: int
    links: int
    size: int
    packed: int
    staged: bool
    names: tuple[str, ...]
    contents: Contents


def _always(_: BaseException) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Move:
    """What all steps share."""

    client: Client
    system: System
    waits: Wait
    account: str | None
    terms: Terms
    keeper: Keeper | None
    abandon: Abandon
    pace: Pace | None
    over: Over | None

    def wait(self, job_id: str) -> Job:
        time.sleep(_PATIENCE)
        return self.waits(job_id)

    def ended(self, job: TransferJob, stay: _Stay) -> Job:
        """The last record of a job that may take long: who waits for it may leave the rest to another."""
        with given_up(self.client, job, partial(self.gives_up, stay)):
            if self.over is None or not stay.alone:
                return self.wait(job.job_id)
            time.sleep(_PATIENCE)
            return self.over(job, stay.room or "")

    def send(self, call: Call[T]) -> T:
        return self.client.send(call)

    def means(self, compression: Compression, stay: _Stay) -> Means:
        """How an archive travels: a compressed one holds a checksum of its own, which unpacking compares."""
        verify = "never" if self.terms.verify == "auto" and compression != "none" else self.terms.verify
        terms = replace(self.terms, verify=verify, atomic=False, preserve_mode=False, preserve_mtime=False)
        return Means(
            account=self.account,
            terms=terms,
            keeper=self.keeper,
            abandon=partial(self.gives_up, stay),
            pace=self.pace,
        )

    def by_job(self, call: Call[TransferJob], stay: _Stay, archive: str) -> None:
        """Let a job do it, or go on with an earlier try's. Its exit code says nothing: its log is read."""
        job = stay.job
        if job is None:
            job = self.send(call)
            stay.keep(job=asdict(job), archive=archive)
        try:
            ended = self.ended(job, stay)
        except Exception:
            stay.keep(job=None)
            raise
        stay.keep(job=None)
        check_transfer_job(self.client, job, ended)
        said = self._tail(job.output_log)
        if "successfully" not in said:
            reason = self._tail(job.error_log) or said or "its log cannot be read"
            raise TransferError(f"Job {job.job_id} on system {job.system} could not {call.doing}: {reason}")

    def _tail(self, path: str) -> str:
        try:
            return self.send(files.tail(self.system.name, path, lines=5)).strip()
        except HpcError as error:
            return str(error)

    @contextlib.contextmanager
    def workspace(self, stay: _Stay, path: str, *, private: bool, parents: bool) -> Iterator[str]:
        """A directory on the system that is gone at the end, unless another try is to go on in it.

        :param private: nobody else may look into it
        :param parents: also make the directories above
        """
        if not (stay.resumes and stay.room == path and self._is_there(path)):
            if stay.moving is not None:
                end_earlier(self.client, self.system, self.keeper, stay.moving)
            if stay.room is not None:
                remove_hidden(self.client, self.system, stay.room)
            stay.begin(path)
        made = True
        try:
            if not stay.resumes:
                try:
                    self.send(files.make_directory(self.system.name, path, parents=parents))
                except HpcError as error:
                    made = error.ambiguous
                    raise
                if private:
                    self.send(files.change_mode(self.system.name, path, 0o700))
                stay.keep(made=True)
            yield path
        except BaseException as error:
            if self.gives_up(stay, error):
                self._clear(stay, path if made else None)
            raise
        self._clear(stay, path)

    def _is_there(self, path: str) -> bool:
        """Whether nobody has removed it, as a trigger does whose task is out of time."""
        try:
            return self.send(files.stat(self.system.name, path)).is_directory
        except NotFoundError:
            return False

    def gives_up(self, stay: _Stay, error: BaseException) -> bool:
        """Whether no other try goes on with what is there."""
        if self.keeper is None or (isinstance(error, Exception) and not stay.sound):
            return True
        return self.abandon(error)

    def _clear(self, stay: _Stay, path: str | None) -> None:
        if path is not None:
            remove_hidden(self.client, self.system, path)
        stay.forget()


class _Stay:
    """What is written down of a tree under way, for another try: to go on with it, or to remove what is left.

    :param keeper: where it is kept; None to keep none
    :param name: what is moved where
    """

    def __init__(self, keeper: Keeper | None, name: str) -> None:
        self._journal = Journal(keeper, name)
        about, self._ours = self._journal.load()
        self._about = about or {}
        #: The directory on this side.
        self.here = self._text("here")
        #: Only the wait for what travels alone can be left to another process.
        self.alone = True
        #: What is there is good, whatever error ends this try.
        self.sound = False

    @property
    def room(self) -> str | None:
        """The directory on the system."""
        return self._text("room")

    @property
    def resumes(self) -> bool:
        """The directory on the system is there, and this try may use it."""
        return self._ours and self.room is not None and bool(self._about.get("made"))

    @property
    def job(self) -> TransferJob | None:
        """A job that packs or unpacks."""
        try:
            return TransferJob(**self._about["job"]) if self._ours else None
        except (KeyError, TypeError):
            return None

    @property
    def moving(self) -> str | None:
        """Under which name the transfer of an archive is written down."""
        return self._text("moving")

    @property
    def archive(self) -> str:
        """What that job packs or unpacks."""
        return self._text("archive") or ""

    def packs(self, plans: Sequence[_Plan]) -> bool:
        """Whether an earlier try has archives of the same plans, or a job that makes one."""
        same = self.resumes and self._about.get("plans") == _plain(plans)
        return same and bool(self._about.get("packed") or self.job)

    @property
    def packed(self) -> dict[str, str]:
        """The archives that are there, by their numbers."""
        return dict(self._about.get("packed") or {})

    def begin(self, room: str) -> None:
        """Write a directory down that is to be made."""
        self._ours = True
        self._about = {"room": room}
        self.keep()

    def keep(self, **more: Any) -> None:
        """Write more down."""
        self._about |= {"here": self.here, **more}
        self._journal.save(self._about)

    def forget(self) -> None:
        """All is removed."""
        self._about = {}
        self._journal.forget()

    def _text(self, key: str) -> str | None:
        value = self._about.get(key)
        return value if isinstance(value, str) else None


def _fetch(move: _Move, archive: str, here: Path, stay: _Stay) -> Moved:
    """Download one archive."""
    means = move.means("gzip", stay)
    stay.keep(moving=download_name(move.system, archive, here.name))
    begun = begin_download(move.client, move.system, archive, here, **means)
    if isinstance(begun, Moved):
        return begun
    ended = move.ended(begun.job, stay)
    return finish_download(move.client, move.system, begun, ended, here, wait=move.wait, **means)


def _plain(plans: Sequence[_Plan]) -> list[list[str | None]]:
    return [[plan.path, plan.below, plan.pattern] for plan in plans]


def upload_tree(
    client: Client,
    system: System,
    source: LocalFiles,
    target: str,
    *,
    wait: Wait,
    include: Iterable[str] | str = (),
    exclude: Iterable[str] | str = (),
    max_bytes: int | None = None,
    over: Over | None = None,
    **means: Unpack[Means],
) -> Tree:
    """Copy many files to a directory of a system, which is made if it is not there, else merged with them.

    Modes, times to the second, symbolic links and empty directories are kept; owners and hard links are not.

    :param source: a directory, for what is in it; a glob (text), for what it matches by its path below the
        directory before the first wildcard; several of both and files, by their last names; or files and
        directories by the names that they are to get below the target
    :param target: absolute path of the directory on the system
    :param wait: waits for a job of this id and returns its last record
    :param include: patterns of what to take, see :class:`.choices.Choice`
    :param exclude: patterns of what to leave out of that
    :param max_bytes: how large all files together may be
    :param over: waits for a job that may take long, told the job and the directory on the system that must
        stay meanwhile. It may raise :class:`.terms.Halted` if there is a keeper: then the same call, perhaps
        of another process, goes on once the job is over. None: ``wait`` waits
    :param means: see :class:`.staging.Means`; ``if_exists`` must be ``overwrite``
    :raises InvalidInputError: a file is missing or unreadable, or too much is to be moved
    :raises TransferError: a file changed meanwhile, or what arrived is not what was sent
    """
    path, move = remote_path(target, "remote_path"), _move(client, system, wait, over, **means)
    items = survey(source, Choice.of(include, exclude), max_bytes=max_bytes)
    if not items:
        move.send(files.make_directory(system.name, path, parents=True))
        return _uploaded(path, items, ())
    return _upload(move, items, path, parents=True)


def upload_files(
    client: Client,
    system: System,
    sources: Mapping[str, Path],
    target: str,
    *,
    wait: Wait,
    parents: bool,
    over: Over | None = None,
    **means: Unpack[Means],
) -> dict[str, Moved]:
    """Copy small files into a directory of a system as one archive; they end as if each had gone alone.

    :param sources: files, by the names that they are to get
    :param target: absolute path of the directory
    :param wait: waits for a job of this id and returns its last record
    :param parents: make the directory if it is not there, with those above it
    :param over: see :func:`upload_tree`
    :param means: see :class:`.staging.Means`; ``if_exists`` must be ``overwrite``
    :return: what was moved, by its name
    :raises TransferError: a file changed meanwhile, or what arrived is not what was sent
    """
    move = _move(client, system, wait, over, **means)
    mode = None if move.terms.preserve_mode else _USUAL
    items = {item.name: replace(item, mode=mode) for item in survey(sources, Choice(ours=True))}
    tree = _upload(move, list(items.values()), remote_path(target, "remote_path"), parents=parents)
    contents = tree.contents or {name: (item.size, _digest_of(item)) for name, item in items.items()}
    return _each(tree, sources, contents)


def _each(tree: Tree, names: Iterable[str], contents: Contents) -> dict[str, Moved]:
    """What is told of each file that travelled in an archive; unpacking compared the archive's checksum."""
    base = tree.path.rstrip("/")
    return {
        name: Moved(path=f"{base}/{name}", size=size, sha256=sha256, staged=tree.staged, verified="size")
        for name in names
        for size, sha256 in [contents[name]]
    }


def _digest_of(item: Item) -> str:
    """The sha256 of what was sent: a file that has changed since is refused."""
    digest = hashlib.sha256()
    for chunk in item.chunks():
        digest.update(chunk)
    item.check()
    return digest.hexdigest()


def _move(
    client: Client,
    system: System,
    wait: Wait,
    over: Over | None,
    *,
    account: str | None = None,
    terms: Terms | None = None,
    keeper: Keeper | None = None,
    abandon: Abandon = _always,
    pace: Pace | None = None,
) -> _Move:
    return _Move(
        client=client,
        system=system,
        waits=wait,
        over=over,
        account=account,
        terms=_checked(terms),
        keeper=keeper,
        abandon=abandon,
        pace=pace,
    )


def _upload(move: _Move, items: Sequence[Item], path: str, *, parents: bool) -> Tree:
    """Pack, send and unpack."""
    system, total = move.system, sum(item.size for item in items)
    contents: Contents = {}
    with contextlib.ExitStack() as stack:
        compression: Compression = "gzip" if total <= _COMPRESSED else "none"
        sources: Sequence[Source]
        if compression == "gzip":
            packed = Packed(items, piece=system.max_direct_bytes)
            stack.callback(packed.close)
            contents = packed.contents
            sources = packed.pieces()
            if len(sources) > _PIECES or packed.largest > system.max_direct_bytes:
                sources = [packed.whole()]
        else:
            sources = [TarSource(items)]
        log.info(
            "Uploading %d files (%s) to %s in %d archives of %s.",
            sum(1 for item in items if not item.is_directory),
            *(amount(total), path, len(sources), amount(sum(each.size for each in sources))),
        )
        # Another try goes on with an archive of the same content and name.
        token = sources[0].fingerprint()[:16] if move.keeper is not None else secrets.token_hex(8)
        room = f"{path.rstrip('/')}/{HIDDEN}{token}"
        private = any(item.private for item in items)
        stay = _Stay(move.keeper, f"tree up {system.name} {path}")
        stay.alone = len(sources) == 1
        with move.workspace(stay, room, private=private, parents=parents):
            slow = total > _SLOW
            for number, each in enumerate(sources):
                archive = f"{room}/{number}.tar{'.gz' if compression == 'gzip' else ''}"
                if stay.job is None or stay.archive != archive:
                    stay.keep(job=None)
                    _send(move, each, archive, stay, compression)
                slow = _extract(move, archive, path, stay, compression, slow=slow)
            _compare(move, path, items)
    tree = _uploaded(path, items, [each.size for each in sources], contents)
    return replace(tree, staged=any(each.size > system.max_direct_bytes for each in sources))


def _uploaded(
    path: str, items: Sequence[Item], packed: Sequence[int], contents: Contents | None = None
) -> Tree:
    links = [item for item in items if item.link is not None]
    directories = [item for item in items if item.is_directory]
    return Tree(
        path=path,
        files=len(items) - len(links) - len(directories),
        directories=len(directories),
        links=len(links),
        size=sum(item.size for item in items),
        packed=sum(packed),
        staged=False,
        names=tuple(sorted(item.name for item in items if not item.is_directory)),
        contents=contents or {},
    )


def _send(move: _Move, source: Source, archive: str, stay: _Stay, compression: Compression) -> None:
    """Upload one archive."""
    system = move.system
    if source.size <= system.max_direct_bytes and move.terms.verify != "always" and compression == "gzip":
        # One request: unpacking it compares its checksum.
        directory, _, name = archive.rpartition("/")
        content = source.read_at(0, source.size)
        while len(content) < source.size:
            content += source.read_at(len(content), source.size - len(content))
        move.send(files.upload(system.name, directory, name, content))
        return
    means = move.means(compression, stay)
    stay.keep(moving=upload_name(system, source, archive))
    begun = begin_upload(move.client, system, source, archive, **means)
    if isinstance(begun, Begun):
        ended = move.ended(begun.job, stay)
        finish_upload(move.client, system, begun, ended, wait=move.wait, **means)


def _extract(
    move: _Move, archive: str, target: str, stay: _Stay, compression: Compression, *, slow: bool
) -> bool:
    """Unpack an archive on the system.

    :return: whether the gateway has no patience for it
    """
    name = move.system.name
    if not slow and stay.job is None:
        try:
            move.send(files.extract(name, archive, target, compression=compression))
        except UnavailableError as error:
            log.info("A job unpacks %s: %s", archive, error)
        except AccessDeniedError as error:
            raise TransferError(
                f"The files cannot be written to {target} on system {name}: {error}", transient=False
            ) from error
        else:
            return False
    call = transfers.extract(name, archive, target, compression=compression, account=move.account)
    move.by_job(call, stay, archive)
    return True


def _compare(move: _Move, target: str, items: Sequence[Item]) -> None:
    """Look whether all files are there, with their sizes, if the system can tell quickly."""
    entries = listed(move.client, move.system, target, recursive=any("/" in item.name for item in items))
    if entries is None:
        log.info("%s is too large to be listed: its files were not counted after unpacking.", target)
        return
    there = {entry.name: entry for entry in entries}
    for item in items:
        entry = there.get(item.name)
        if entry is None and _is_plain(item.name):
            raise TransferError(f"{target}/{item.name} is not there after unpacking.")
        if entry is not None and entry.kind is EntryKind.FILE and entry.size != item.size:
            raise TransferError(
                f"{target}/{item.name} has {entry.size} bytes after unpacking, here it has {item.size}."
            )
    if len(there) < len(items):
        raise TransferError(f"{target} has fewer files after unpacking than were sent.")


def _is_plain(name: str) -> bool:
    """Whether a listing shows just this name: some names look alike in one."""
    return "\\" not in name and name.isprintable()


def listed(client: Client, system: System, path: str, *, recursive: bool = False) -> tuple[Entry, ...] | None:
    """What is in a directory; None if the gateway has no patience, or no room, for the list.

    :param path: absolute path of the directory
    :param recursive: all directories below, too
    """
    call = files.listing(system.name, path, hidden=True, recursive=recursive)
    try:
        # One try is enough for what is only slow.
        return client.send(replace(call, replayable=False))
    except (UnavailableError, TooLargeError, RejectedError, AccessDeniedError) as error:
        log.info("%s", error)
        return None


def download_tree(
    client: Client,
    system: System,
    source: str | Sequence[str],
    target: Path,
    *,
    wait: Wait,
    include: Iterable[str] | str = (),
    exclude: Iterable[str] | str = (),
    max_bytes: int | None = None,
    workspace: str | None = None,
    over: Over | None = None,
    **means: Unpack[Means],
) -> Tree:
    """Copy many files from a system to a directory, which is made if it is not there, else merged with them.

    Nothing appears in the directory before everything is here. Then each file appears by renaming.

    :param source: absolute path of a directory, for what is in it, or of a file; a glob, for what it matches
        by its path below the directory before the first wildcard; several of these, by their last names
    :param target: the directory on this side; its parent must be there
    :param wait: waits for a job of this id and returns its last record
    :param include: patterns of what to take, see :class:`.choices.Choice`
    :param exclude: patterns of what to leave out of that
    :param max_bytes: how large all files together may be
    :param workspace: directory on the system where the archive may lie meanwhile; else it lies beside the
        source or, if that cannot be written to, in the user's own directory
    :param over: see :func:`upload_tree`
    :param means: see :class:`.staging.Means`; ``if_exists`` must be ``overwrite``
    :raises InvalidInputError: there is nothing to move, or too much
    :raises TransferError: the archive is damaged or too large, or holds what could reach out of the target
    """
    move, choice = _move(client, system, wait, over, **means), Choice.of(include, exclude)
    picks = _picks(source)
    stay = _Stay(move.keeper, f"tree down {system.name} {picks[0].base} {target}")
    unpacking = Unpacking(
        target, choice=choice, max_bytes=max_bytes, left=stay.here, keeps=_keeps_here(move, stay)
    )
    plans: list[_Plan] = []
    expected: set[str] | None = set()
    for pick in picks:
        more, names = _planned(move, pick, choice, max_bytes)
        plans += more
        expected = None if expected is None or names is None else expected | names
    return _download(move, plans, expected, unpacking, stay, workspace=workspace, base=picks[0].base)


def _keeps_here(move: _Move, stay: _Stay) -> Callable[[BaseException], bool]:
    """Whether the directory on this side is of use to another try: one that is halted may go on elsewhere."""
    return lambda error: not isinstance(error, Halted) and not move.gives_up(stay, error)


def download_files(
    client: Client,
    system: System,
    directory: str,
    target: Path,
    *,
    names: Sequence[str],
    entries: Sequence[Entry],
    wait: Wait,
    over: Over | None = None,
    **means: Unpack[Means],
) -> dict[str, Moved] | None:
    """Copy small files from a directory of a system as one archive; they end as if each had come alone.

    :param directory: absolute path of the directory that they are in
    :param target: the directory on this side, which must be there
    :param names: their names in it
    :param entries: what is in it, with what is hidden
    :param wait: waits for a job of this id and returns its last record
    :param over: see :func:`upload_tree`
    :param means: see :class:`.staging.Means`; ``if_exists`` must be ``overwrite``
    :return: what was moved, by its name; None if no archive would hold them without much else
    :raises TransferError: the archive is damaged, or the files are not there any more
    """
    plan = _plan_of_files(directory, names, entries)
    if plan is None:
        return None
    move = _move(client, system, wait, over, **means)
    stay = _Stay(move.keeper, f"tree down {system.name} {directory} {target}")
    unpacking = Unpacking(
        target,
        choice=Choice(ours=True),
        preserve_mode=move.terms.preserve_mode,
        preserve_mtime=move.terms.preserve_mtime,
        left=stay.here,
        keeps=_keeps_here(move, stay),
    )
    tree = _download(move, [plan], set(names), unpacking, stay, base=directory)
    return _each(tree, names, tree.contents)


def _plan_of_files(directory: str, names: Sequence[str], entries: Sequence[Entry]) -> _Plan | None:
    """How to pack some files of a directory without much else; pure."""
    wanted = frozenset(names)
    size = _sum(entry for entry in entries if entry.name in wanted)
    start = _common(names)
    end = _common([name[len(start) :][::-1] for name in names])[::-1]
    pattern = files_pattern(directory.rpartition("/")[2], start, end)
    like = [entry for entry in entries if entry.name.startswith(start) and entry.name.endswith(end)]
    # What is in directories below is not known, and only a pattern leaves it out.
    packed: dict[str | None, int] = {}
    if not any(entry.is_directory for entry in entries):
        packed[None] = _sum(entries)
    with contextlib.suppress(InvalidInputError):
        remote_path(directory, "source", unquoted=True)
        packed[pattern] = _sum(like)
    best = min(packed, key=packed.__getitem__, default=None)
    if best not in packed or packed[best] - size > max(_TOO_MUCH, size):
        return None
    return _Plan(path=directory, only=Names(names), pattern=best, size=packed[best])


def _common(names: Sequence[str]) -> str:
    """How all of them start."""
    pairs = zip(min(names), max(names), strict=False)
    return "".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _download(
    move: _Move,
    plans: Sequence[_Plan],
    expected: set[str] | None,
    unpacking: Unpacking,
    stay: _Stay,
    *,
    base: str,
    workspace: str | None = None,
) -> Tree:
    """Pack, fetch and unpack.

    :param expected: what should come, if that is known
    :param base: what to call it
    """
    packed, staged, slow = 0, False, False
    stay.alone, stay.here = len(plans) == 1, str(unpacking.room)
    with _somewhere(move, stay, plans, workspace) as room, unpacking:
        stay.keep(plans=_plain(plans))
        made = stay.packed
        for number, plan in enumerate(plans):
            archive = made.get(str(number))
            if archive is None:
                archive, slow = _compress(
                    move, plan, f"{room}/{number}", stay, slow=slow or plan.size > _SLOW
                )
                made[str(number)] = archive
                stay.keep(packed=made)
            here = unpacking.room / str(number)
            stay.sound = True
            moved = _fetch(move, archive, here, stay)
            stay.sound = False
            packed, staged = packed + moved.size, staged or moved.staged
            root = plan.path.rpartition("/")[2]
            unpacking.take(here, root=root, below=plan.below, only=plan.only)
            here.unlink()
        if expected is not None and unpacking.count < len(expected):
            raise TransferError(
                f"The archive holds {unpacking.count} files instead of {len(expected)}: "
                f"{base} on system {move.system.name} changed while it was packed."
            )
        unpacked = unpacking.commit()
    log.info("%d files (%s) are in %s.", len(unpacked.files), amount(unpacked.size), unpacking.target)
    return Tree(
        path=base,
        files=len(unpacked.files),
        directories=len(unpacked.directories),
        links=len(unpacked.links),
        size=unpacked.size,
        packed=packed,
        staged=staged,
        names=tuple(sorted((*unpacked.files, *unpacked.links))),
        contents=unpacked.contents,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pick:
    """What a user names.

    :param base: directory, or whatever it is if nothing is chosen below it
    :param below: where it goes to below the target
    :param only: patterns of what is meant in the directory
    :param items: they are just names in it
    """

    base: str
    below: str = ""
    only: tuple[str, ...] = ()
    items: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One archive to make.

    :param path: what to pack
    :param below: where it goes to below the target
    :param only: what of it is meant
    :param pattern: what to pack of it, for ``find``
    :param size: bytes of what is packed, as far as known
    """

    path: str
    below: str = ""
    only: Taking | None = None
    pattern: str | None = None
    size: int = 0


def _picks(source: str | Sequence[str]) -> list[_Pick]:
    """Read what a user names."""
    if isinstance(source, str):
        return [_pick(source)]
    if not source:
        raise InvalidInputError("source", "names nothing.")
    picks, beside, seen = [], dict[str, list[str]](), set[str]()
    for given in source:
        if is_glob(given):
            picks.append(_pick(given))
            continue
        above, _, name = given.rstrip("/").rpartition("/")
        if name in ("", ".", ".."):
            raise InvalidInputError("source", f"{given!r} does not end in a name.")
        if name in seen:
            raise InvalidInputError("source", f"two of them are called {name!r}.")
        seen.add(name)
        beside.setdefault(_parent(given, above), []).append(name)
    for above, names in beside.items():
        paths = [_legal(f"{above.rstrip('/')}/{name}") for name in names]
        if len(names) <= _ARCHIVES and all(paths):
            picks += [_Pick(base=path, below=name) for path, name in zip(paths, names, strict=True) if path]
        else:
            only = tuple(f"/{escape(name)}" for name in names)
            picks.append(_Pick(base=_directory(above), only=only, items=tuple(names)))
    return picks


def _pick(given: str) -> _Pick:
    base, pattern = split_glob(given)
    if pattern is not None:
        return _Pick(base=_directory(remote_path(base, "source")), only=(pattern,))
    if path := _legal(given):
        return _Pick(base=_directory(path))
    # A name that no shell may see: it is found in the archive of the directory that it is in.
    above, _, name = given.rstrip("/").rpartition("/")
    return _Pick(base=_directory(_parent(given, above)), only=(f"/{escape(name)}",), items=(name,))


def _legal(path: str) -> str | None:
    try:
        return remote_path(path, "source")
    except InvalidInputError:
        return None


def _parent(given: str, above: str) -> str:
    """The directory that something with any name is in."""
    return remote_path(above or "/" if given.startswith("/") else given, "source")


def _directory(path: str) -> str:
    if path == "/":
        raise InvalidInputError("source", "'/' cannot be packed.")
    return path


def _planned(
    move: _Move, pick: _Pick, choice: Choice, max_bytes: int | None
) -> tuple[list[_Plan], set[str] | None]:
    """Which archives to make for a pick, and what should be in them, if that can be known."""
    only = Choice(pick.only) if pick.only else None
    whole = _Plan(path=pick.base, below=pick.below, only=only)
    if only is None and choice.everything and max_bytes is None:
        return [whole], None
    entries = listed(move.client, move.system, pick.base, recursive=True)
    if entries is None:
        return _narrowed(pick, choice, only) or [whole], None

    def place(entry: Entry) -> str:
        if entry.name == pick.base:  # a file, and not a directory
            return pick.below or pick.base.rpartition("/")[2]
        return f"{pick.below}/{entry.name}" if pick.below else entry.name

    wanted = [
        entry for entry in entries if choice.takes(place(entry)) and (only is None or only.takes(entry.name))
    ]
    if not wanted and not all(map(_is_plain, pick.items)):
        # It may be there: its name looks like another in a listing.
        return [replace(whole, size=_sum(entries))], None
    if not wanted and (pick.only or choice.include):
        raise InvalidInputError("source", f"nothing in {pick.base} on system {move.system.name} matches.")
    size, everything = _sum(wanted), _sum(entries)
    if max_bytes is not None and size > max_bytes:
        raise InvalidInputError(
            "max_bytes",
            f"{size} bytes are to be downloaded from {pick.base}, which is more than {max_bytes}.",
        )
    names = {place(entry) for entry in wanted if entry.kind in (EntryKind.FILE, EntryKind.LINK)}
    if everything - size > max(_TOO_MUCH, size):
        # ``find`` packs files only.
        plain = pick.items or all(entry.kind is EntryKind.FILE for entry in wanted)
        if plain and (plans := _narrowed(pick, choice, only, size=size)):
            return plans, names
        log.warning(
            "%s is packed as a whole (%s) although only %s of it are wanted.",
            *(pick.base, amount(everything), amount(size)),
        )
    return [replace(whole, size=everything)], names


def _narrowed(pick: _Pick, choice: Choice, only: Choice | None, *, size: int = 0) -> list[_Plan]:
    """Archives of what is wanted alone, as far as the gateway can make them; none if it cannot."""
    paths = [_legal(f"{pick.base}/{name}") for name in pick.items]
    if paths and all(paths):
        return [
            _Plan(path=path, below=name, size=size)
            for path, name in zip(paths, pick.items, strict=True)
            if path
        ]
    try:
        remote_path(pick.base, "source", unquoted=True)
    except InvalidInputError:
        return []
    root = pick.base.rpartition("/")[2]
    return [
        _Plan(path=pick.base, below=pick.below, only=only, pattern=find_pattern(root, pattern), size=size)
        for pattern in pick.only or choice.include
    ]


def _sum(entries: Iterable[Entry]) -> int:
    return sum(entry.size for entry in entries if entry.kind is EntryKind.FILE)


@contextlib.contextmanager
def _somewhere(move: _Move, stay: _Stay, plans: Sequence[_Plan], workspace: str | None) -> Iterator[str]:
    """A directory for archives: where the user says, beside the source, or in the user's own directory."""
    with contextlib.ExitStack() as stack:
        if stay.room is not None and stay.packs(plans):
            yield stack.enter_context(move.workspace(stay, stay.room, private=True, parents=False))
        else:
            yield _room(move, stay, plans[0].path, workspace, stack)


def _room(move: _Move, stay: _Stay, source: str, workspace: str | None, stack: contextlib.ExitStack) -> str:
    def enter(directory: str) -> str:
        # The gateway does not quote it when it stages the archive.
        path = remote_path(f"{directory}/{HIDDEN}{secrets.token_hex(8)}", "workspace", unquoted=True)
        return stack.enter_context(move.workspace(stay, path, private=True, parents=False))

    if workspace is not None:
        return enter(workspace)
    try:
        return enter(source.rpartition("/")[0])
    except (InvalidInputError, AccessDeniedError, BadRequestError, NotFoundError, RejectedError) as error:
        base = move.system.default_directory
        if base is None:
            raise
        log.info("The archive is put into the user's own directory: %s", error)
    return enter(f"{base.rstrip('/')}/{move.send(user_info(move.system.name)).name}")


def _compress(move: _Move, plan: _Plan, stem: str, stay: _Stay, *, slow: bool) -> tuple[str, bool]:
    """Make an archive on the system.

    :return: its path, and whether the gateway has no patience for it
    """
    name, archive = move.system.name, stay.archive if stay.job else f"{stem}.tar.gz"
    if not slow and stay.job is None:
        try:
            move.send(files.compress(name, plan.path, archive, pattern=plan.pattern))
        except UnavailableError as error:
            log.info("A job packs %s: %s", plan.path, error)
            # The gateway may still write to the first one.
            archive = f"{stem}-again.tar.gz"
        except AccessDeniedError as error:
            raise TransferError(
                f"{plan.path} on system {name} holds something that you may not read: {error}",
                transient=False,
            ) from error
        else:
            return archive, False
    call = transfers.compress(name, plan.path, archive, pattern=plan.pattern, account=move.account)
    move.by_job(call, stay, archive)
    return archive, True


def _checked(terms: Terms | None) -> Terms:
    terms = terms or Terms()
    if terms.if_exists != "overwrite":
        raise InvalidInputError("if_exists", "of a directory must be 'overwrite': it is merged.")
    return terms
