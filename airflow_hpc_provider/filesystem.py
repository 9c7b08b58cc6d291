"""Files behind a gateway for everything that speaks fsspec: ``hpc://conn_id@system/scratch/me/out.nc``."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import shutil
import stat as modes
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from glob import has_magic
from pathlib import Path
from typing import Any, TypeVar

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.compression import compr
from fsspec.core import get_compression
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike

from . import locations
from .client import files, staging, systems, transfers
from .client.arrival import check_transfer_job, given_up
from .client.calls import Call
from .client.errors import HpcError, TooLargeError, TransferError, UnavailableError, WatchError
from .client.files import Entry, EntryKind, Stat
from .client.jobs import Job
from .client.ranged import StagedFile, same_file
from .client.systems import System
from .client.terms import Wait
from .client.transfers import TransferJob
from .hooks.hpc import HpcHook
from .locations import Location, locate
from .os_errors import os_error
from .streams import CompressedWriter, LargeFile, SmallFile, TextWriter, Writer
from .watch import JobWatch, Outcome, follow

__all__ = ["HpcFileSystem"]

T = TypeVar("T")
Info = dict[str, Any]

_KINDS = {EntryKind.FILE: "file", EntryKind.DIRECTORY: "directory", EntryKind.LINK: "link"}
_FORMATS = {
    EntryKind.FILE: modes.S_IFREG,
    EntryKind.DIRECTORY: modes.S_IFDIR,
    EntryKind.LINK: modes.S_IFLNK,
    EntryKind.PIPE: modes.S_IFIFO,
    EntryKind.SOCKET: modes.S_IFSOCK,
    EntryKind.CHARACTER_DEVICE: modes.S_IFCHR,
    EntryKind.BLOCK_DEVICE: modes.S_IFBLK,
}
# So many links in a row are followed, as Linux does.
_LINKS = 40
# So many large files stay staged for the next reader.
_STAGED = 8


class HpcFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The files of all systems behind one gateway.

    A path begins with the name of a system (``daint/scratch/me/out.nc``), or with a slash, which is the
    default system (``/scratch/me/out.nc``). Nothing is kept between two calls but the connection and large
    files that were staged for reading, so a listing is never stale.

    Small files are one request, and those beyond the gateway's limit are staged through its storage by a job.
    Within a system, large files are copied, and everything is moved, by jobs there; small files are copied
    by way of this machine, which is quicker than a job. What a listing says of a link is about the link
    itself (``type`` is ``link``); ``info`` follows it. Other exceptions from what fsspec describes:

    * Copying a link to a directory is refused: name that directory instead.
    * Names that the gateway would mangle or run as a command are refused with ``OSError``; large files can be
      read only without blanks and brackets in the path.
    * A file is sent when it is closed, so errors of writing come then. Creating exclusively (``xb``) and
      removing an empty directory look first, which is not atomic. ``ab`` reads the file and writes it anew,
      small ones only, and ``r+b`` is refused.
    * An exception inside ``with fs.open(...)`` leaves nothing behind; ``fsspec.open(...)`` does not tell the
      file of the exception and sends what was written so far.
    * Missing directories above a written file are made only with ``auto_mkdir``, and by ``put`` and ``copy``.
    * Times of modification have whole seconds, and a listing has them without time zone (``lastmodified``).
      ``touch(truncate=False)`` cannot change them. ``created`` is the last change of status, as in
      fsspec's local file system.
    * ``rm(recursive=True)`` removes whole directories in one request, and takes no ``maxdepth``.
    * ``sign`` is not implemented: what the storage's URLs give access to is temporary copies.

    :param conn_id: id of a connection of type ``firecrest``
    :param system: default system. Default: the connection's
    :param auto_mkdir: make missing directories above a file that is written
    :param poll_interval: seconds between two looks at a transfer job at the most
    """

    protocol = "hpc"
    root_marker = ""

    def __init__(
        self,
        conn_id: str | None = None,
        system: str | None = None,
        *,
        auto_mkdir: bool = False,
        poll_interval: float = 10.0,
        **storage_options: Any,
    ) -> None:
        super().__init__(**{**storage_options, "use_listings_cache": False})
        self.conn_id = conn_id or HpcHook.default_conn_name
        self.system = system
        self.auto_mkdir = auto_mkdir
        self.poll_interval = poll_interval
        self._sessions: dict[int, _Session] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.fsid}>"

    # --- names ---

    @property
    def fsid(self) -> str:
        """What tells this file system from others."""
        return f"hpc-{self.conn_id}-{self.system}" if self.system else f"hpc-{self.conn_id}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [locations.strip(one) for one in path]
        return locations.strip(path)

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        conn_id = locations.connection_of(path)
        return {} if conn_id is None else {"conn_id": conn_id}

    @classmethod
    def _parent(cls, path: str) -> str:
        return locations.parent(path)

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path, with the connection, and with the system if this file system has its own."""
        place = locate(name)
        if place.path and place.system is None and self.system:
            place = Location(self.system, place.path)
        return f"hpc://{self.conn_id}@{place}"

    # --- looking ---

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """List a directory, or one file: one request. Of a link to a directory, list that."""
        del kwargs
        infos = self._list(locate(path))
        return infos if detail else [info["name"] for info in infos]

    def info(self, path: str, **kwargs: Any) -> Info:
        """What there is: one request, three for a link, which is followed."""
        del kwargs
        place = locate(path)
        if not place.path:
            return _directory("")
        try:
            stat = self._stat(place, dereference=False)
        except PermissionError:
            if self._mounts_below(place):
                return _directory(str(place))
            raise
        if not stat.is_link:
            return _stat_info(place, stat)
        shown = self._send(place, lambda system: files.listing(system, place.path))
        target = shown[0].link_target if shown else None
        return _stat_info(place, self._stat(place), destination=target)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is something; an answer other than yes or no is raised."""
        del kwargs
        return self._seen(path) is not None

    def lexists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is something, be it a link that leads nowhere."""
        del kwargs
        place = locate(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return not place.path or bool(self._stat(place, dereference=False))
        return False

    def isdir(self, path: str) -> bool:
        """Whether it is a directory, or a link to one."""
        info = self._seen(path)
        return info is not None and info["type"] == "directory"

    def isfile(self, path: str) -> bool:
        """Whether it is a file, or a link to one."""
        info = self._seen(path)
        return info is not None and info["type"] == "file"

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: Any = "omit",
        **kwargs: Any,
    ) -> Iterator[Any]:
        """As ``os.walk``, one request a directory. Only what is denied or gone is omitted."""
        handler = _raise_others if on_error == "omit" else on_error
        yield from super().walk(path, maxdepth, topdown, handler, **kwargs)

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **kwargs: Any,
    ) -> Any:
        """All files below a path: one request if the gateway can list the whole tree in its time."""
        del kwargs
        top = self._strip_protocol(path)
        infos = self._tree(top, maxdepth)
        found = {info["name"]: info for info in infos or () if withdirs or info["type"] != "directory"}
        if withdirs and top and infos is not None and top not in found:
            found[top] = _directory(top)
        return {name: found[name] for name in sorted(found)} if detail else sorted(found)

    def du(
        self,
        path: str,
        total: bool = True,
        maxdepth: int | None = None,
        withdirs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Bytes of all files below a path, or of each: asks no more than :meth:`find`."""
        found = self.find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True, **kwargs)
        sizes = {name: info["size"] for name, info in found.items()}
        return sum(sizes.values()) if total else sizes

    def created(self, path: str) -> datetime:
        """When content or status changed last: file systems of Unix keep no time of creation."""
        return datetime.fromtimestamp(self.info(path)["created"], UTC)

    def modified(self, path: str) -> datetime:
        """When the content changed last."""
        return datetime.fromtimestamp(self.info(path)["mtime"], UTC)

    def checksum(self, path: str) -> int:
        """SHA-256 of the content as a number, computed on the system, which has five seconds for it."""
        place = locate(path)
        return int(self._send(place, lambda system: files.checksum(system, place.path)), 16)

    # --- directories ---

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Make a directory.

        :raises FileExistsError: there is one
        """
        del kwargs
        place = locate(path)
        try:
            self._send(place, lambda system: files.make_directory(system, place.path))
        except FileNotFoundError:
            if not create_parents:
                raise
            self.makedirs(path, exist_ok=True)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory and those above it."""
        if not exist_ok:
            self.mkdir(path)
            return
        place = locate(path)
        self._send(place, lambda system: files.make_directory(system, place.path, parents=True))

    def rmdir(self, path: str) -> None:
        """Remove a directory if it is empty: looks first, so what is made in that moment goes too."""
        place = self._removable(path)
        if not self._stat(place, dereference=False).is_directory:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if self._list(place):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        self._remove(place)

    def rm_file(self, path: str) -> None:
        """Remove a file or a link."""
        place = self._removable(path)
        if self._stat(place, dereference=False).is_directory:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self._remove(place)

    def _rm(self, path: str) -> None:
        self.rm_file(path)

    def rm(self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files; directories only if ``recursive``, with all that is in them, one request each."""
        if recursive and maxdepth is not None:
            raise NotImplementedError("rm removes whole directories: it takes no maxdepth")
        for one in reversed(self.expand_path(path)):
            if recursive:
                self._remove(self._removable(one))
            else:
                self.rm_file(one)

    # --- copying and moving ---

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy a file, or make a directory of the same name. Missing directories above it are made."""
        del kwargs
        source, target = locate(path1), locate(path2)
        stat = self._stat(source)
        if stat.is_directory:
            if self._stat(source, dereference=False).is_link:
                raise _linked(path1)
            self.makedirs(path2, exist_ok=True)
        elif self._name_of(source) != self._name_of(target):
            with self.open(path1) as read, self._writer(target, parents=True) as written:
                shutil.copyfileobj(read, written, self.blocksize)
        elif source.path == target.path:
            return
        elif stat.size <= self._system(source).max_direct_download_bytes:
            self._store(target, self._load(source), parents=True)
            if stat.mode & 0o111:
                mode = stat.mode & 0o777
                self._send(target, lambda system: files.change_mode(system, target.path, mode))
        else:
            self._copy_by_job(source, target, stat)

    def mv(
        self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any
    ) -> None:
        """Move a file or a directory by a job; between systems, and lists and patterns, copy and remove."""
        if not isinstance(path1, str) or not isinstance(path2, str) or maxdepth is not None:
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **kwargs)
            return
        source, target = self._removable(path1), locate(path2)
        if self._name_of(source) != self._name_of(target) or has_magic(path1):
            super().mv(path1, path2, recursive=recursive, **kwargs)
            return
        there = self._seen(path2)
        if path2.endswith("/") or (there is not None and there["type"] == "directory"):
            target = target.below(source.name)
            there = self._seen(str(target))
        if source.path == target.path:
            return
        stat = self._stat(source, dereference=False)
        if there is not None and there["type"] == "directory":
            # The command would move into it, one level deeper than asked.
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        if there is None:
            self._stat(target.directory)
        self._by_job(
            target,
            lambda system, account: transfers.move(system, source.path, target.path, account=account),
            "moved",
        )
        moved = self._stat(target, dereference=False)
        other = moved.is_directory != stat.is_directory or (not stat.is_directory and moved.size != stat.size)
        if other or self.lexists(path1):
            raise OSError(errno.EIO, f"The job that moves {path1} did not move it", path2)

    # --- reading and writing ---

    def open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: dict[str, Any] | None = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Open a file; see the class for what writing means.

        :param path: path or URL
        :param mode: ``rb``, ``wb``, ``xb`` or ``ab``, or one of them for text: ``r``, ``w``, ``x``, ``a``
        :param block_size: bytes that one read of a large file fetches at the least
        :param compression: name of a compression, or ``infer`` from the name of the file
        """
        if "r" in mode:
            return super().open(path, mode, block_size, cache_options, compression, **kwargs)
        text = {key: kwargs.pop(key) for key in ("encoding", "errors", "newline") if key in kwargs}
        binary = mode.replace("t", "").replace("b", "") + "b"
        opened = super().open(path, binary, block_size, cache_options, **kwargs)
        if named := get_compression(path, compression):
            opened = CompressedWriter(compr[named](opened, mode=mode[0]), opened)
        return opened if "b" in mode else TextWriter(opened, **text)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        place = locate(path)
        if mode == "rb":
            return self._reader(place, block_size=block_size, cache_options=cache_options, **kwargs)
        if mode not in ("wb", "xb", "ab"):
            raise ValueError(f"mode {mode!r} is none of rb, wb, xb and ab")
        if mode == "xb" and self.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        before = self._before(place) if mode == "ab" else b""
        parents = self.auto_mkdir
        return self._writer(place, parents=parents, mode=mode, content=before, autocommit=autocommit)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a file whole.

        :param mode: ``create`` refuses a file that is there
        """
        with self.open(path, "xb" if mode == "create" else "wb", **kwargs) as file:
            file.write(value)

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Read ranges of files, each opened once."""
        if max_gap is not None:
            raise NotImplementedError("max_gap is not supported")
        count = len(paths)
        wanted = zip(
            paths,
            starts if isinstance(starts, Sequence) else [starts] * count,
            ends if isinstance(ends, Sequence) else [ends] * count,
            strict=True,
        )
        opened: dict[str, Any] = {}
        found: list[Any] = []
        with contextlib.ExitStack() as stack:
            for path, start, end in wanted:
                try:
                    if path not in opened:
                        opened[path] = stack.enter_context(self.open(path, "rb", **kwargs))
                    found.append(_between(opened[path], start, end))
                except Exception as error:
                    if on_error != "return":
                        raise
                    found.append(error)
        return found

    def get_file(
        self,
        rpath: str,
        lpath: Any = None,
        callback: Any = DEFAULT_CALLBACK,
        outfile: Any = None,
        **kwargs: Any,
    ) -> None:
        """Copy a file to this machine; a directory is made."""
        if outfile is not None or isfilelike(lpath):
            super().get_file(rpath, lpath, callback=callback, outfile=outfile, **kwargs)
            return
        place, target = locate(rpath), Path(lpath)
        stat = self._stat(place)
        if stat.is_directory:
            if self._stat(place, dereference=False).is_link:
                raise _linked(rpath)
            target.mkdir(parents=True, exist_ok=True)
            return
        if not stat.is_file:
            raise OSError(errno.EINVAL, "is no regular file", rpath)
        callback.set_size(stat.size)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.translated(rpath):
            system = self._system(place)
            _bring(self._session, system, place.path, target, self._wait(system), stat=stat)
        callback.relative_update(stat.size)

    def put_file(
        self, lpath: Any, rpath: str, callback: Any = DEFAULT_CALLBACK, mode: str = "overwrite", **kwargs: Any
    ) -> None:
        """Copy a file of this machine to a system; directories above it are made."""
        del kwargs
        source = Path(lpath)
        if source.is_dir():
            self.makedirs(rpath, exist_ok=True)
            return
        if mode == "create" and self.lexists(rpath):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), rpath)
        place, size = locate(rpath), source.stat().st_size
        callback.set_size(size)
        small = size <= self._system(place).max_direct_bytes
        self._store(place, source.read_bytes() if small else source, parents=True)
        callback.relative_update(size)

    # --- how it is done ---

    @property
    def _session(self) -> _Session:
        """This process's own connection: a fork must not share sockets. Threads may meet here."""
        here = os.getpid()
        found = self._sessions.get(here)
        return found or self._sessions.setdefault(here, _Session(self.conn_id))

    @contextlib.contextmanager
    def translated(self, path: str) -> Iterator[None]:
        """Raise what the client raises as the ``OSError`` that it means."""
        try:
            yield
        except HpcError as error:
            raise os_error(error, path) from error

    def _send(self, place: Location, build: Callable[[str], Call[T]]) -> T:
        with self.translated(str(place)):
            return self._session.client.send(build(self._name_of(place)))

    def _name_of(self, place: Location) -> str:
        with self.translated(str(place)):
            return self._session.hook.system_name(place.system or self.system)

    def _system(self, place: Location) -> System:
        with self.translated(str(place)):
            return self._session.system(self._name_of(place))

    def _stat(self, place: Location, *, dereference: bool = True) -> Stat:
        return self._send(place, lambda system: files.stat(system, place.path, dereference=dereference))

    def _seen(self, path: str) -> Info | None:
        try:
            return self.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _list(self, place: Location, *, recursive: bool = False) -> list[Info]:
        if not place.path:
            with self.translated(""):
                known = self._session.client.send(systems.listing())
            return [_directory(system.name) for system in known]
        shown = place
        for _ in range(_LINKS):
            try:
                entries = self._entries(shown, recursive=recursive)
            except PermissionError:
                if below := self._mounts_below(place):
                    return [_directory(str(place.below(name))) for name in below]
                raise
            # A directory is answered with what is in it, anything else with itself, by its whole path.
            if len(entries) != 1 or not entries[0].name.startswith("/"):
                return [_entry_info(place.below(entry.name), entry) for entry in entries]
            (entry,) = entries
            if entry.kind is not EntryKind.LINK or entry.link_target is None:
                return [_entry_info(place, entry)]
            path = posixpath.normpath(posixpath.join(shown.directory.path, entry.link_target))
            shown = Location(shown.system, path)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(place))

    def _entries(self, place: Location, *, recursive: bool) -> tuple[Entry, ...]:
        def build(system: str) -> Call[tuple[Entry, ...]]:
            call = files.listing(system, place.path, hidden=True, recursive=recursive)
            # A tree that takes longer than the gateway waits does so each time.
            return replace(call, replayable=not recursive)

        return self._send(place, build)

    def _mounts_below(self, place: Location) -> list[str]:
        """Names that lead from a directory outside the gateway's file systems to one of them."""
        above = place.path.rstrip("/") + "/"
        mounts = [mounted.path for mounted in self._system(place).file_systems]
        return sorted({path[len(above) :].partition("/")[0] for path in mounts if path.startswith(above)})

    def _tree(self, path: str, maxdepth: int | None) -> list[Info] | None:
        """All that is below a path; None if there is nothing."""
        if maxdepth is None and locate(path).path:
            try:
                return self._list(locate(path), recursive=True)
            except ConnectionError:
                raise
            except OSError:
                # One directory that is denied, or too large a tree, spoils the whole listing.
                pass
        found: list[Info] | None = None
        for _, directories, others in self.walk(path, maxdepth, detail=True):
            found = [*(found or ()), *directories.values(), *others.values()]
        return found

    def _removable(self, path: str) -> Location:
        place = locate(path)
        if place.path in ("", "/"):
            raise PermissionError(errno.EPERM, "a whole system is not removed or moved", path)
        return place

    def _remove(self, place: Location) -> None:
        """Remove at once, or by a job what takes longer than the gateway waits."""
        try:
            self._send(place, lambda system: files.remove(system, place.path))
        except OSError as error:
            cause = error.__cause__
            if not (isinstance(cause, HpcError) and cause.ambiguous):
                raise
            if not self.lexists(str(place)):
                return
            if not isinstance(cause, UnavailableError):
                raise
            self._by_job(
                place,
                lambda system, account: transfers.remove(system, place.path, account=account),
                "deleted",
            )

    def _load(self, place: Location) -> bytes:
        """The bytes of a small file."""
        return self._send(place, lambda system: files.download(system, place.path))

    def _before(self, place: Location) -> bytes:
        """What a file holds that is to be appended to."""
        try:
            size = self._stat(place).size
        except FileNotFoundError:
            return b""
        limit = self._system(place).max_direct_download_bytes
        if size > limit:
            raise OSError(errno.EFBIG, f"has {size} bytes; appending ends at {limit}", str(place))
        return self._load(place)

    def _writer(self, place: Location, *, parents: bool, **options: Any) -> Writer:
        limit = self._system(place).max_direct_bytes
        return Writer(
            str(place), lambda content: self._store(place, content, parents=parents), limit=limit, **options
        )

    def _reader(self, place: Location, *, size: int | None = None, **options: Any) -> Any:
        del size  # of the file when it was pickled
        path, stat = str(place), self._stat(place)
        info = _stat_info(place, stat)
        if stat.is_directory:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.is_file:
            raise OSError(errno.EINVAL, "is no regular file", path)
        if stat.size <= self._system(place).max_direct_download_bytes:
            try:
                return SmallFile(self, path, info, self._load(place))
            except OSError as error:
                # It has grown meanwhile, or the gateway's limit is lower than it says.
                if not isinstance(error.__cause__, TooLargeError):
                    raise
        return LargeFile(self, path, info, self._staged(place, stat), **options)

    def _staged(self, place: Location, stat: Stat) -> StagedFile:
        """A large file, staged once for all who read it while it does not change."""
        system, session = self._system(place), self._session
        return session.staged(
            (system.name, place.path),
            stat,
            lambda: StagedFile(
                session.client,
                system,
                place.path,
                stat,
                wait=self._wait(system),
                account=session.hook.settings.account,
            ),
        )

    def _store(self, place: Location, content: bytes | Path, *, parents: bool) -> None:
        """Write a file: bytes in one request, a local file through the staging."""
        try:
            self._store_there(place, content)
        except FileNotFoundError:
            if not parents:
                raise
            self.makedirs(str(place.directory), exist_ok=True)
            self._store_there(place, content)

    def _store_there(self, place: Location, content: bytes | Path) -> None:
        if not isinstance(content, bytes):
            system = self._system(place)
            with self.translated(str(place)):
                _stage_in(self._session, system, content, place.path, self._wait(system))
            return
        where, name = place.directory.path, place.name
        self._send(place, lambda system: files.upload(system, where, name, content))
        there = self._stat(place).size
        if there != len(content):
            raise OSError(errno.EIO, f"has {there} bytes, {len(content)} were sent", str(place))

    def _copy_by_job(self, source: Location, target: Location, stat: Stat) -> None:
        self.makedirs(str(target.directory), exist_ok=True)
        if self.isdir(str(target)):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        self._by_job(
            target,
            lambda system, account: transfers.copy(
                system, source.path, target.path, dereference=True, account=account
            ),
            "copied",
        )
        if (there := self._stat(target).size) != stat.size:
            raise OSError(errno.EIO, f"has {there} bytes, {source} has {stat.size}", str(target))

    def _by_job(
        self, place: Location, build: Callable[[str, str | None], Call[TransferJob]], done: str
    ) -> None:
        """Let a job on the system do it. Such a job ends well whatever happened; its log tells."""
        system, session = self._system(place), self._session
        with self.translated(str(place)):
            client = session.client
            job = client.send(build(system.name, session.hook.settings.account))
            with given_up(client, job, lambda _: True):
                ended = self._wait(system)(job.job_id)
            check_transfer_job(client, job, ended)
            if f"successfully {done}" not in client.send(files.tail(system.name, job.output_log, lines=5)):
                said = client.send(files.tail(system.name, job.error_log, lines=5)).strip()
                raise TransferError(f"Job {job.job_id} on system {system.name} has not {done} it: {said}")

    def _wait(self, system: System) -> Wait:
        client = self._session.client

        def wait(job_id: str) -> Job:
            watch = JobWatch(
                system=system.name, job_id=job_id, since=time.time(), poll_interval=self.poll_interval
            )
            verdict = follow(client, watch)
            if verdict.outcome is not Outcome.DONE:
                raise WatchError(verdict.message, transient=verdict.transient)
            return Job.from_json(verdict.data)

        return wait


class _Session:
    """One process's connection to the gateway, and what it has learned through it.

    :param conn_id: id of the connection
    """

    def __init__(self, conn_id: str) -> None:
        self.hook = HpcHook(conn_id)
        self.client = self.hook.client()
        self.client.__enter__()
        # It closes when no file system holds it any more.
        weakref.finalize(self, self.client.__exit__, None, None, None)
        self._systems: dict[str, System] = {}
        self._staged: dict[tuple[str, str], StagedFile] = {}

    def system(self, name: str) -> System:
        """What the gateway says about a system; asked once."""
        if name not in self._systems:
            self._systems[name] = self.hook.system(self.client, name)
        return self._systems[name]

    def staged(self, key: tuple[str, str], stat: Stat, make: Callable[[], StagedFile]) -> StagedFile:
        """The staged file of a system and path if it is still the same, else a new one."""
        found = self._staged.pop(key, None)
        if found is None or not same_file(found.stat, stat):
            found = make()
        self._staged[key] = found
        for oldest in list(self._staged)[:-_STAGED]:
            self._staged.pop(oldest, None)
        return found


def _linked(path: str) -> OSError:
    """What is behind a link in a tree is not listed with it, so its copy would be empty."""
    return IsADirectoryError(errno.EISDIR, "is a link to a directory; copy that directory", path)


def _directory(name: str) -> Info:
    return {"name": name, "size": 0, "type": "directory", "islink": False}


def _stat_info(place: Location, stat: Stat, *, destination: str | None = None) -> Info:
    """What fsspec wants to know, from a status."""
    kind = "directory" if stat.is_directory else "file" if stat.is_file else "other"
    info = {
        "name": str(place),
        "size": 0 if stat.is_directory else stat.size,
        "type": kind,
        "islink": destination is not None,
        "mode": stat.mode,
        "uid": stat.uid,
        "gid": stat.gid,
        "nlink": stat.links,
        "ino": stat.inode,
        "mtime": float(stat.modified),
        "created": float(stat.changed),
    }
    return info if destination is None else {**info, "destination": destination}


def _entry_info(place: Location, entry: Entry) -> Info:
    """What fsspec wants to know, from a line of a listing."""
    info = {
        "name": str(place),
        "size": 0 if entry.kind is EntryKind.DIRECTORY else entry.size,
        "type": _KINDS.get(entry.kind, "other"),
        "islink": entry.kind is EntryKind.LINK,
        "mode": _FORMATS.get(entry.kind, 0) | _mode(entry.permissions),
        "owner": entry.user,
        "group": entry.group,
        "lastmodified": entry.modified,
    }
    return info if entry.link_target is None else {**info, "destination": entry.link_target}


def _mode(permissions: str) -> int:
    """Permission bits of ``rwxr-x---``; what follows them (an access list's ``+``) is left out."""
    mode = 0
    for shift, special in ((6, modes.S_ISUID), (3, modes.S_ISGID), (0, modes.S_ISVTX)):
        read, write, execute = (permissions[at : at + 1] for at in range(3))
        permissions = permissions[3:]
        bits = 4 * (read == "r") + 2 * (write == "w") + (execute in ("x", "s", "t"))
        mode |= bits << shift | special * (execute in ("s", "S", "t", "T"))
    return mode


def _between(file: Any, start: int | None, end: int | None) -> bytes:
    """A slice of an open file."""
    first, last, _ = slice(start, end).indices(file.size)
    file.seek(first)
    content: bytes = file.read(max(0, last - first))
    return content


def _raise_others(error: OSError) -> None:
    """A walk steps over what may not be read or is gone; anything else would make it incomplete."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
        raise error


def _stage_in(session: _Session, system: System, source: Path, target: str, wait: Wait) -> None:
    staging.upload_file(
        session.client, system, source, target, wait=wait, account=session.hook.settings.account
    )


def _bring(session: _Session, system: System, source: str, target: Path, wait: Wait, *, stat: Stat) -> None:
    """Copy a file to this machine, where it appears when it is complete."""
    client, account = session.client, session.hook.settings.account
    begun = staging.begin_download(client, system, source, target, stat=stat, account=account)
    if isinstance(begun, staging.Begun):
        with given_up(client, begun.job, lambda _: True):
            ended = wait(begun.job.job_id)
        staging.finish_download(client, system, begun, ended, target, wait=wait, account=account)
