"""From one system to another, through this machine's memory: its disk is not touched."""

from __future__ import annotations

import logging
import posixpath
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from . import files
from .arrival import leaves
from .checkpoint import Keeper
from .copying import Copied, movable, resolve_target, skipped
from .errors import InvalidInputError, TransferError
from .files import Stat
from .paths import remote_path
from .places import BytesSource, Source
from .ranged import StagedFile, same_file
from .remote import checksum, remove
from .removal import Guard
from .session import Client
from .staging import upload_file
from .systems import System
from .terms import Abandon, Terms, Wait

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
    :param move: remove the source once its copy is verified
    :param terms: how the file is uploaded
    :param keeper: see :func:`~.staging.upload_file`
    :param abandon: see :func:`~.staging.upload_file`
    :raises NotFoundError: there is no source, or no directory for the copy
    :raises InvalidInputError: it is a directory
    :raises TransferError: it did not arrive
    """
    terms = terms or Terms(preserve_mode=True)
    source = movable(guard, source) if move else remote_path(source, "source")
    stat = origin.client.send(files.stat(origin.system.name, source, dereference=True))
    if stat.is_directory:
        raise InvalidInputError(
            "source",
            f"{source} on system {origin.system.name} is a directory; between systems single files are "
            "copied: pack it into an archive.",
        )
    path, there = resolve_target(goal.client, goal.system, target, posixpath.basename(source))
    where = f"{path} on system {goal.system.name}"
    if there is not None and _looks_same(there, stat):
        raise InvalidInputError(
            "target", f"{where} is {source} on system {origin.system.name} itself: both share a file system."
        )
    if there is not None and terms.if_exists == "verify":
        if there.size == stat.size and _same_content(origin, source, goal, path):
            log.info("%s has the same content: skipped.", where)
            return skipped(origin.system.name, source, goal.system.name, path, there)
    elif there is not None and leaves(
        terms.if_exists, where, there.modified, float(stat.modified), lambda: False
    ):
        return skipped(origin.system.name, source, goal.system.name, path, there)
    moved = upload_file(
        goal.client,
        goal.system,
        _open(origin, source, stat),
        path,
        wait=goal.wait,
        account=goal.account,
        terms=replace(terms, if_exists="overwrite"),
        keeper=keeper,
        abandon=abandon,
    )
    if moved.sha256 and (terms.verify == "always" or (terms.verify == "auto" and moved.staged)):
        here = checksum(origin.client, origin.system, source)
        if here is None:
            log.warning("%s: its sha256 on system %s cannot be had.", source, origin.system.name)
        elif here != moved.sha256:
            remove(goal.client, goal.system, path, wait=goal.wait, account=goal.account)
            raise TransferError(
                f"{source} on system {origin.system.name} has sha256 {here}, what was copied {moved.sha256}."
            )
    if move:
        remove(origin.client, origin.system, source, wait=origin.wait, account=origin.account)
    return Copied(
        source=source,
        target=path,
        source_system=origin.system.name,
        target_system=goal.system.name,
        size=moved.size,
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
