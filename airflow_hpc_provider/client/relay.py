"""From one system to another, through this machine's memory: its disk is not touched."""

from __future__ import annotations

import logging
import posixpath
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from . import files
from .arrival import Side, identity, leaves, verify
from .calls import JSONObject
from .checkpoint import Journal, Keeper
from .copying import Copied, movable, resolve_target, skipped
from .errors import (
    AccessDeniedError,
    BadRequestError,
    InvalidInputError,
    RejectedError,
    TransferError,
    UnsupportedError,
)
from .files import Stat
from .moving import Pace
from .paths import remote_path
from .places import BytesSource, Source
from .ranged import StagedFile, same_file
from .remote import checksum, look, remove
from .removal import Guard
from .session import Client
from .staging import upload_file
from .systems import System
from .terms import Abandon, IfExists, Terms, Verify, Wait

__all__ = ["Ahead", "End", "RemoteSource", "relay"]

log = logging.getLogger(__name__)

_MIB = 1024 * 1024
# So many blocks of this size are held or on their way.
_BLOCK = 4 * _MIB
_BLOCKS = 3
_PERMISSIONS = 0o777


def _always(_: BaseException) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One of the two systems.

    :param client: an open client
    :param system: the system
    :param wait: waits for a job of this id there and returns its last record
    :param account: account for its transfer jobs
    """

    client: Client
    system: System
    wait: Wait
    account: str | None = None


class Ahead:
    """Reads a file in blocks, the next ones while one is used.

    :param fetch: reads the bytes from an offset up to another; several threads call it
    :param size: bytes of the file
    :param block: bytes of a block
    :param blocks: how many are held or on their way at the most
    """

    def __init__(
        self, fetch: Callable[[int, int], bytes], size: int, *, block: int = _BLOCK, blocks: int = _BLOCKS
    ) -> None:
        self._fetch = fetch
        self._size = size
        self._block = block
        self._count = blocks
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(blocks, thread_name_prefix="ahead")
        self._blocks: OrderedDict[int, Future[bytes]] = OrderedDict()

    def read(self, offset: int, length: int) -> bytes:
        """Some bytes from an offset on, up to the end of their block; none at the end of the file."""
        if offset >= self._size or length < 1:
            return b""
        index, at = divmod(offset, self._block)
        with self._lock:
            future = self._ask(index)
        try:
            content = future.result()
        except BaseException:
            # Another try shall ask anew.
            with self._lock:
                if self._blocks.get(index) is future:
                    del self._blocks[index]
            raise
        return content[at : at + length]

    def close(self) -> None:
        """Ask for nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, index: int) -> Future[bytes]:
        """The block, with those after it on their way; what lies outside of this window is dropped."""
        window = range(index, min(index + self._count, -(-self._size // self._block)))
        for old in [known for known in self._blocks if known not in window]:
            self._blocks.pop(old).cancel()
        for wanted in window:
            if wanted not in self._blocks:
                start = wanted * self._block
                end = min(start + self._block, self._size)
                self._blocks[wanted] = self._pool.submit(self._fetch, start, end)
        return self._blocks[index]


class RemoteSource:
    """A large file on a system, to be uploaded to another: staged once, read ahead, never kept.

    :param end: where it is
    :param path: absolute path there
    :param stat: how it looks, links followed
    """

    rereadable = False

    def __init__(self, end: End, path: str, stat: Stat) -> None:
        self._end = end
        self._path = path
        self._stat = stat
        staged = StagedFile(end.client, end.system, path, stat, wait=end.wait, account=end.account)
        self._ahead = Ahead(staged.read, stat.size)
        self._staged = staged
        self.name = posixpath.basename(path)
        self.size = stat.size
        self.mtime: float | None = float(stat.modified)
        self.mode: int | None = stat.mode & _PERMISSIONS

    def stage(self) -> None:
        """Let the file be staged now, in this thread: it may take long, and may be broken off."""
        self._staged.read(0, 1)

    def fingerprint(self) -> str:
        """System, path, inode, size and times."""
        stat = self._stat
        seen = (stat.device, stat.inode, stat.size, stat.modified, stat.changed)
        return f"{self._end.system.name} {self._path} {' '.join(map(str, seen))}"

    def read_at(self, offset: int, length: int) -> bytes:
        """Read; best with rising offsets."""
        return self._ahead.read(offset, length)

    def check(self) -> None:
        """The file on the system is still the same."""
        now = self._end.client.send(files.stat(self._end.system.name, self._path, dereference=True))
        if not same_file(now, self._stat):
            raise TransferError(f"{self._path} changed while it was copied.", transient=False)

    def close(self) -> None:
        """Read nothing more."""
        self._ahead.close()


def relay(
    origin: End,
    source: str,
    goal: End,
    target: str,
    *,
    guard: Guard | None = None,
    move: bool = False,
    terms: Terms | None = None,
    keeper: Keeper | None = None,
    abandon: Abandon = _always,
) -> Copied:
    """Copy or move a file from one system to another.

    :param origin: where it is
    :param source: absolute path there
    :param goal: where it goes
    :param target: absolute path of the copy; or of a directory to copy into: one that is there, or with a
        slash at its end
    :param guard: what is never moved away; needed to move
    :param move: remove the source once both sides have the sha256 of what passed through here; with
        ``verify="never"`` once the sizes are the same
    :param terms: how the file is uploaded, and what is compared
    :param keeper: where it is written down, so that a retry goes on with it
    :param abandon: see :func:`~.staging.upload_file`
    :raises NotFoundError: there is no source, or no directory for the copy
    :raises InvalidInputError: it is a directory
    :raises TransferError: it did not arrive; or, of what was to be moved, cannot be verified, or changed
        meanwhile: then the source stays
    """
    terms = terms or Terms(preserve_mode=True)
    source = movable(guard, source) if move else remote_path(source, "source")
    journal = Journal(keeper, f"relay {origin.system.name} {source} {goal.system.name} {target}")
    earlier = _Relayed.of(journal)
    stat = look(origin.client, origin.system, source, dereference=True)
    if stat is None and earlier is not None and earlier.sha256 is not None:
        log.info("%s was moved to %s by an earlier try.", source, earlier.target)
        done = earlier
        _compare(goal, done.target, done, "auto", abandon)
    else:
        found = _begin(origin, source, goal, target, stat=stat, if_exists=terms.if_exists, earlier=earlier)
        if isinstance(found, Copied):
            return found
        stat, path = found
        done = _Relayed(target=path, seen=identity(stat), size=stat.size)
        journal.save(done.to_json())
        done = _pass_on(
            origin, source, stat, goal, done, move=move, terms=terms, keeper=keeper, abandon=abandon
        )
    if move and stat is not None:
        now = look(origin.client, origin.system, source, dereference=True)
        if now is not None and not done.is_of(now):
            raise _changed(origin, source, goal, done.target)
        # From here on a retry must not need the source.
        journal.save(done.to_json())
        remove(origin.client, origin.system, source, wait=origin.wait, account=origin.account)
    journal.forget()
    return Copied(
        source=source,
        target=done.target,
        source_system=origin.system.name,
        target_system=goal.system.name,
        size=done.size,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Relayed:
    """A copy as it is written down.

    :param target: absolute path that it has, or will have
    :param seen: inode, size and time of the source
    :param size: bytes
    :param sha256: digest of what was copied and compared; None before that
    """

    target: str
    seen: tuple[int, int, int]
    size: int
    sha256: str | None = None

    def to_json(self) -> JSONObject:
        return asdict(self)

    @classmethod
    def of(cls, journal: Journal) -> _Relayed | None:
        """What an earlier try of the same task has written down."""
        about, _ = journal.load()
        try:
            return cls(**about | {"seen": tuple(about["seen"])}) if about else None
        except (TypeError, KeyError):
            return None

    def is_of(self, stat: Stat) -> bool:
        """It is the copy of what looks so."""
        return identity(stat) == self.seen


def _begin(
    origin: End,
    source: str,
    goal: End,
    target: str,
    *,
    stat: Stat | None,
    if_exists: IfExists,
    earlier: _Relayed | None,
) -> Copied | tuple[Stat, str]:
    """How the source looks, and the path that its copy gets; or what is there already, and stays."""
    if stat is None:
        # The gateway's own words for it.
        stat = origin.client.send(files.stat(origin.system.name, source, dereference=True))
    if stat.is_directory:
        raise InvalidInputError(
            "source",
            f"{source} on system {origin.system.name} is a directory; between systems single files are "
            "copied: pack it into an archive.",
        )
    if earlier is not None:
        # What was decided then is not asked again: what lies there now may be half a copy.
        return stat, earlier.target
    path, there = resolve_target(goal.client, goal.system, target, posixpath.basename(source))
    where = f"{path} on system {goal.system.name}"
    if there is not None and _looks_same(there, stat):
        raise InvalidInputError(
            "target", f"{where} is {source} on system {origin.system.name} itself: both share a file system."
        )
    if there is None or not leaves(
        if_exists,
        where,
        there.modified,
        float(stat.modified),
        lambda: there.size == stat.size and _same_content(origin, source, goal, path),
    ):
        return stat, path
    return skipped(origin.system.name, source, goal.system.name, path, there)


def _pass_on(
    origin: End,
    source: str,
    stat: Stat,
    goal: End,
    begun: _Relayed,
    *,
    move: bool,
    terms: Terms,
    keeper: Keeper | None,
    abandon: Abandon,
) -> _Relayed:
    """Copy, and compare both sides with what passed through here."""
    strict = terms.verify == "always" or (move and terms.verify != "never")
    path = begun.target
    moved = upload_file(
        goal.client,
        goal.system,
        _open(origin, source, stat),
        path,
        wait=goal.wait,
        account=goal.account,
        # An upload of few bytes fails where only a job can tell their sha256.
        terms=replace(terms, if_exists="overwrite", verify="auto" if strict else terms.verify),
        keeper=keeper,
        abandon=abandon,
    )
    done = replace(begun, sha256=moved.sha256)
    try:
        if strict and moved.verified != "sha256":
            _compare(goal, path, done, "always", abandon)
        if strict or (moved.staged and terms.verify == "auto"):
            _compare(origin, source, done, "always" if strict else "auto", abandon)
    except TransferError as error:
        now = look(origin.client, origin.system, source, dereference=True)
        if move and now is not None and not done.is_of(now):
            raise _changed(origin, source, goal, path) from error
        remove(goal.client, goal.system, path, wait=goal.wait, account=goal.account)
        raise
    return done


def _compare(end: End, path: str, done: _Relayed, want: Verify, abandon: Abandon) -> None:
    """Compare size and sha256 of one side with what passed through here.

    :raises TransferError: they differ, or cannot be had although they must
    """
    side = Side(
        client=end.client,
        system=end.system,
        account=end.account,
        terms=Terms(verify=want),
        keeper=None,
        abandon=abandon,
        pace=Pace(),
    )
    try:
        verify(side, path, done.size, done.sha256 or "", wait=end.wait, staged=True)
    except (AccessDeniedError, BadRequestError, RejectedError, UnsupportedError) as error:
        raise TransferError(
            f"The sha256 of {path} on system {end.system.name} cannot be had, so nobody knows whether the "
            f"copy is good; verify='never' does without. {error}",
            transient=False,
        ) from error


def _changed(origin: End, source: str, goal: End, path: str) -> TransferError:
    return TransferError(
        f"{source} on system {origin.system.name} changed while it was moved to {path} on system "
        f"{goal.system.name}: it stays, and so does the copy of what it was. Clear the task to move it anew.",
        transient=False,
    )


def _looks_same(one: Stat, other: Stat) -> bool:
    """Whether two systems show one file. Each numbers its devices in its own way."""
    return (one.inode, one.size, one.modified) == (other.inode, other.size, other.modified)


def _open(end: End, path: str, stat: Stat) -> Source:
    if stat.size > end.system.max_direct_download_bytes:
        source = RemoteSource(end, path, stat)
        source.stage()
        return source
    content = end.client.send(files.download(end.system.name, path))
    if len(content) != stat.size:
        raise TransferError(f"{path} on system {end.system.name} has {stat.size} bytes, {len(content)} came.")
    small = BytesSource(posixpath.basename(path), content)
    small.mode = stat.mode & _PERMISSIONS
    return small


def _same_content(one: End, path: str, other: End, other_path: str) -> bool:
    found = checksum(one.client, one.system, path)
    return found is not None and found == checksum(other.client, other.system, other_path)
