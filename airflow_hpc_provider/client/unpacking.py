"""Unpacking archives from elsewhere: nothing in one can reach outside the directory it is meant for.

What an archive holds goes to a new hidden directory first, which nobody else can enter and which holds no
symbolic link before all else is written. It appears under its names, by renaming, when everything is there
and has been looked at.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat as modes
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from gzip import BadGzipFile, GzipFile
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from .choices import HIDDEN, Choice, Taking
from .errors import InvalidInputError, TransferError

__all__ = ["Unpacked", "Unpacking"]

_CHUNK = 1024 * 1024
# No name is as long. Headers are read at once, so that one that claims to be longer would fill the memory.
_LARGEST_HEADER = 1024 * 1024
# What may follow the end of an archive: tar fills the last 10 KiB.
_LARGEST_END = 16 * _CHUNK
_MAX_MEMBERS = 10_000_000
_GZIP = b"\x1f\x8b"
_PERMISSIONS = 0o777
_OURS = 0o700
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _never(_: BaseException) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """What came out.

    :param files: paths of the regular files below the target
    :param directories: of the directories
    :param links: of the symbolic links
    :param size: bytes of all files
    :param contents: size and sha256 of each regular file
    """

    files: tuple[str, ...]
    directories: tuple[str, ...]
    links: tuple[str, ...]
    size: int
    contents: dict[str, tuple[int, str]]


class Unpacking:
    """One directory that archives are unpacked into; use as a context manager, and ``commit`` at the end.

    :param target: the directory; what is there already is merged with what comes. Its parent must be there
    :param choice: what to take, by the paths below the target
    :param max_bytes: how large all files together may be
    :param preserve_mode: give files the permissions in the archive, else the usual ones
    :param preserve_mtime: give files the time in the archive
    :param left: hidden directory of an earlier try, to be used again
    :param keeps: asked of an error that ends it: whether the hidden directory stays for another try
    :raises InvalidInputError: the target is no directory, or has none to be in
    """

    def __init__(
        self,
        target: Path,
        *,
        choice: Choice | None = None,
        max_bytes: int | None = None,
        preserve_mode: bool = True,
        preserve_mtime: bool = True,
        left: str | None = None,
        keeps: Callable[[BaseException], bool] = _never,
    ) -> None:
        if os.path.lexists(target) and not target.is_dir():
            raise InvalidInputError("local_path", f"{target} is no directory.")
        if not target.parent.is_dir():
            raise InvalidInputError("local_path", f"directory {target.parent} does not exist.")
        self._target = target
        self._choice = choice or Choice()
        self._max_bytes = max_bytes
        self._mode = None if preserve_mode else _usual(0o666)
        self._preserve_mtime = preserve_mtime
        self._files: dict[str, int] = {}
        self._contents: dict[str, tuple[int, str]] = {}
        self._links: dict[str, str] = {}
        self._made: set[str] = set()
        self._directories: dict[str, tuple[int, float]] = {}
        self._wanted: set[str] = set()
        self._root = self._below = ""
        self._only: Taking | None = None
        self._size = 0
        self._members = 0
        self._keeps = keeps
        beside = target if target.is_dir() else target.parent
        self._left = self._ours(left)
        self._temporary = self._left or beside / f"{HIDDEN}{secrets.token_hex(8)}"

    def __enter__(self) -> Self:
        """Make the hidden directory: in the target, or beside it if there is none yet."""
        with self._telling():
            if self._left is None:
                self._temporary.mkdir(mode=_OURS)
            else:
                shutil.rmtree(self._tree, ignore_errors=True)
            self._tree.mkdir(mode=_OURS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the hidden directory."""
        if error is None or not self._keeps(error):
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _ours(self, left: str | None) -> Path | None:
        """A directory that an earlier try has left here, if it can be nothing else."""
        path = Path(left or "")
        if not path.name.startswith(HIDDEN) or path.parent not in (self._target, self._target.parent):
            return None
        try:
            info = path.lstat()
        except OSError:
            return None
        return path if modes.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() else None

    @property
    def target(self) -> Path:
        """The directory."""
        return self._target

    @property
    def room(self) -> Path:
        """A directory for the archives, on the same disk, that is removed at the end."""
        return self._temporary

    @property
    def count(self) -> int:
        """How many files and links there are so far."""
        return len(self._files) + len(self._links)

    @property
    def _tree(self) -> Path:
        return self.room / "tree"

    def take(self, archive: Path, *, root: str, below: str = "", only: Taking | None = None) -> None:
        """Unpack an archive.

        :param archive: a tar file, compressed with gzip or not
        :param root: first name of all paths in it, as ``tar -C parent root`` makes them
        :param below: what takes the place of that name, if it is a directory
        :param only: what to take, by the paths below that name
        :raises TransferError: the archive is damaged or too large, or holds what could reach outside
        """
        self._root, self._below, self._only = root, below, only
        missing = self._pass(archive, {})
        if missing:
            # Hard links to what was left out: their content has gone by already.
            left = self._pass(archive, missing)
            if left:
                raise TransferError(
                    f"The archive holds {next(iter(left.values()))[0]!r} as a hard link to nothing in it.",
                    transient=False,
                )

    def commit(self) -> Unpacked:
        """Let everything appear under its name.

        :raises TransferError: a symbolic link leads out of the target, or what is there is in the way: a
            directory where a file or link should be, or anything else where a directory should be
        """
        with self._telling():
            self._make_links()
            for name in self._wanted - self._made:
                self._make_directory(name)
            self._settle()
            there = self._place()
            self._set_modes(there)
        return Unpacked(
            files=tuple(sorted(self._files)),
            directories=tuple(sorted(self._made)),
            links=tuple(sorted(self._links)),
            size=self._size,
            contents=self._contents,
        )

    def _pass(self, archive: Path, wanted: dict[str, list[str]]) -> dict[str, list[str]]:
        """Read the archive once: all that is chosen, or only some files, each under other names."""
        again = bool(wanted)
        missing: dict[str, list[str]] = dict(wanted)
        with self._telling(), _opened(archive) as stream, _tar(stream) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else all of them stay in memory
                self._count()
                name = self._name(member)
                if again:
                    if member.isreg() and (names := missing.pop(name, None)):
                        self._write(names[0], member, tar)
                        for other in names[1:]:
                            self._join(names[0], other)
                elif name or member.isdir():
                    self._one(name, member, tar, missing)
            stream.end()
        return missing

    def _one(
        self, name: str, member: tarfile.TarInfo, tar: tarfile.TarFile, missing: dict[str, list[str]]
    ) -> None:
        if member.isdir():
            if name and self._choice.leaves(name):
                return
            self._directories[name] = (member.mode, _time(member))
            if not name or self._takes(name):
                self._wanted.update({name} - {""})
            return
        if not (member.isreg() or member.issym() or member.islnk()):
            raise self._refused(member, "is a device, a pipe or something unknown")
        if not self._takes(name):
            return
        if member.issym():
            self._replace(name)
            self._links[name] = self._lead(name, member)
        elif member.isreg():
            self._write(name, member, tar)
        else:
            first = self._path(member.linkname, member)
            if first in self._files or first in self._links:
                self._join(first, name)
            elif not self._takes(first):
                missing.setdefault(first, []).append(name)
            else:
                raise self._refused(member, "is a hard link to nothing in the archive")

    def _takes(self, name: str) -> bool:
        return self._choice.takes(name) and (self._only is None or self._only.takes(name))

    def _name(self, member: tarfile.TarInfo) -> str:
        name = self._path(member.name, member)
        if name != self._below or member.isdir():
            return name
        if member.issym():
            raise InvalidInputError(
                "source", f"{self._root} is a symbolic link; give what it leads to: {member.linkname}"
            )
        return self._below or self._root

    def _path(self, path: str, member: tarfile.TarInfo) -> str:
        """Where a path in the archive is below the target."""
        if path.startswith("/"):
            raise self._refused(member, f"leads to the absolute path {path!r}")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in path:
            raise self._refused(member, f"leads out of the target: {path!r}")
        if not parts and member.isdir():
            return self._below
        if not parts or parts[0] != self._root:
            raise self._refused(member, f"is not below {self._root!r}")
        return "/".join([self._below, *parts[1:]] if self._below else parts[1:])

    def _refused(self, member: tarfile.TarInfo, why: str) -> TransferError:
        return TransferError(
            f"The archive was not unpacked: {_shown(member.name)} {why}. Nothing was written to "
            f"{self._target}.",
            transient=False,
        )

    def _count(self) -> None:
        self._members += 1
        if self._members > _MAX_MEMBERS:
            raise TransferError(f"The archive holds more than {_MAX_MEMBERS} files.", transient=False)

    def _too_large(self) -> TransferError:
        return TransferError(
            f"The archive holds more than max_bytes ({self._max_bytes}); nothing was written to "
            f"{self._target}.",
            transient=False,
        )

    def _lead(self, name: str, member: tarfile.TarInfo) -> str:
        lead = member.linkname
        if not lead or "\0" in lead:
            raise self._refused(member, "is a symbolic link to nothing")
        if lead.startswith("/"):
            raise self._leads_out(name, lead)
        return lead

    def _leads_out(self, name: str, lead: str) -> TransferError:
        return TransferError(
            f"The archive was not unpacked: {_shown(name)} is a symbolic link out of the target, to "
            f"{lead!r}: exclude it. Nothing was written to {self._target}.",
            transient=False,
        )

    def _replace(self, name: str) -> Path:
        """Make way for a file or link: of two members of one name the last one counts."""
        above = name.rpartition("/")[0]
        if above:
            self._make_directory(above)
        if name in self._made or name in self._wanted:
            raise self._clash(name)
        if name in self._files:
            del self._files[name]
            self._contents.pop(name, None)
            (self._tree / name).unlink()
        self._links.pop(name, None)
        return self._tree / name

    def _make_directory(self, name: str) -> None:
        if name in self._made:
            return
        above = ""
        for part in name.split("/"):
            above = f"{above}/{part}" if above else part
            if above in self._made:
                continue
            if above in self._files or above in self._links:
                raise self._clash(above)
            (self._tree / above).mkdir(mode=_OURS)
            self._made.add(above)

    def _clash(self, name: str) -> TransferError:
        return TransferError(
            f"The archive was not unpacked: it holds {_shown(name)} as a directory and as something else.",
            transient=False,
        )

    def _write(self, name: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        if self._max_bytes is not None and self._size + member.size > self._max_bytes:
            raise self._too_large()
        path = self._replace(name)
        content = tar.extractfile(member)
        if content is None:  # pragma: no cover  regular files have content
            raise self._refused(member, "has no content")
        descriptor = os.open(path, _NEW, 0o600)
        self._files[name] = member.mode & _PERMISSIONS if self._mode is None else self._mode
        try:
            size, digest = 0, hashlib.sha256()
            while chunk := content.read(_CHUNK):
                size += len(chunk)
                digest.update(chunk)
                view = memoryview(chunk)
                while view:
                    view = view[os.write(descriptor, view) :]
            if size != member.size:
                raise TransferError(f"The archive is damaged: {_shown(name)} ends too early.")
            if self._preserve_mtime:
                os.utime(descriptor, (_time(member), _time(member)))
        finally:
            os.close(descriptor)
        self._contents[name] = size, digest.hexdigest()
        self._size += size

    def _join(self, first: str, name: str) -> None:
        """Another name of the same file."""
        if first == name:
            return
        path = self._replace(name)
        if first in self._links:
            self._links[name] = self._links[first]
            return
        os.link(self._tree / first, path, follow_symlinks=False)
        self._files[name], self._contents[name] = self._files[first], self._contents[first]

    def _make_links(self) -> None:
        """The only time that the tree gets links: all else is written, and they are not followed."""
        for name, lead in self._links.items():
            os.symlink(lead, self._tree / name)  # noqa: PTH211  Path would change 'a/./b'
        top = os.path.realpath(self._tree)
        for name, lead in self._links.items():
            end = os.path.realpath(self._tree / name)
            if end != top and not end.startswith(top + "/"):
                raise self._leads_out(name, lead)

    def _settle(self) -> None:
        """Flush what was written, so that no name appears whose data a crash would take."""
        for name, mode in self._files.items():
            descriptor = os.open(self._tree / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fdatasync(descriptor)
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)

    def _place(self) -> set[str] | None:
        """Rename everything to where it belongs.

        :return: directories that were there before; None if there was nothing
        """
        if not os.path.lexists(self._target):
            os.rename(self._tree, self._target)  # noqa: PTH104  errors name both
            return None
        top = os.open(self._target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            moves, there = self._planned(top)
            for above, names in moves.items():
                with _directory(top, above) as descriptor:
                    for name in names:
                        os.rename(self._tree / above / name, name, dst_dir_fd=descriptor)
                    with contextlib.suppress(OSError):
                        os.fsync(descriptor)
        finally:
            os.close(top)
        return there

    def _planned(self, top: int) -> tuple[dict[str, list[str]], set[str]]:
        """What to rename, by the directory it goes to, before anything is."""
        moves: dict[str, list[str]] = {}
        there, todo = {""}, [""]
        while todo:
            above = todo.pop()
            with _directory(top, above) as descriptor, os.scandir(self._tree / above) as entries:
                for entry in entries:
                    name = f"{above}/{entry.name}" if above else entry.name
                    try:
                        found = os.stat(entry.name, dir_fd=descriptor, follow_symlinks=False).st_mode
                    except FileNotFoundError:
                        found = None
                    is_directory = entry.is_dir(follow_symlinks=False)
                    if found is not None and is_directory != modes.S_ISDIR(found):
                        raise self._in_the_way(name, found)
                    if found is not None and is_directory:
                        there.add(name)
                        todo.append(name)
                    else:
                        moves.setdefault(above, []).append(entry.name)
        return moves, there

    def _in_the_way(self, name: str, mode: int) -> TransferError:
        kind = "a directory" if modes.S_ISDIR(mode) else "no directory"
        if modes.S_ISLNK(mode):
            kind = "a symbolic link, which is not followed"
        return TransferError(
            f"{self._target}/{name} is {kind}, where the download has something else. Nothing was changed "
            f"in {self._target}.",
            transient=False,
        )

    def _set_modes(self, there: set[str] | None) -> None:
        """Give the new directories their modes and times, when nothing more is put into them."""
        usual = _usual(_PERMISSIONS)
        top = os.open(self._target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in sorted(self._made | {""}, key=lambda name: -name.count("/") if name else 1):
                if there is not None and name in there:
                    continue
                mode, mtime = self._directories.get(name, (usual, None))
                with _directory(top, name) as descriptor:
                    if mtime is not None:
                        os.utime(descriptor, (mtime, mtime))
                    os.fchmod(descriptor, mode & _PERMISSIONS)
        finally:
            os.close(top)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (
            tarfile.TarError,
            BadGzipFile,
            EOFError,
            zlib.error,
            ValueError,
            OverflowError,
            RecursionError,
        ) as error:
            if isinstance(error, InvalidInputError):
                raise
            raise TransferError(f"The archive is damaged: {error}.") from error
        except OSError as error:
            transient = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
            raise TransferError(
                f"Files cannot be written to {self._target}: {error.strerror or error}.", transient=transient
            ) from error


class _Stream:
    """An archive as ``tarfile`` reads it: forwards only, and never much at once."""

    def __init__(self, file: IO[bytes] | GzipFile) -> None:
        self._file = file
        self._at = 0
        self._last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise TransferError(f"The archive is damaged: a header of {size} bytes.", transient=False)
        data = self._last = self._file.read(size)
        self._at += len(data)
        return data

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, _whence: int = 0) -> int:
        if offset < self._at:
            raise TransferError("The archive is damaged: it goes backwards.", transient=False)
        while self._at < offset and self.read(min(_CHUNK, offset - self._at)):
            pass
        return self._at

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def end(self) -> None:
        """Read to the end, where the checksum is. ``tarfile`` takes a broken header for the end, too."""
        until = self._at + _LARGEST_END
        data = self._last
        if len(data) != tarfile.BLOCKSIZE:
            raise TransferError("The archive is damaged: it ends too early.")
        while data:
            if any(data) or self._at > until:
                raise TransferError("The archive is damaged: there is something after its end.")
            data = self.read(_CHUNK)


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[_Stream]:
    with archive.open("rb") as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        if packed:
            with GzipFile(fileobj=file) as unzipped:
                yield _Stream(unzipped)
        else:
            yield _Stream(file)


@contextlib.contextmanager
def _tar(stream: _Stream) -> Iterator[tarfile.TarFile]:
    with tarfile.open(
        fileobj=stream,  # type: ignore[call-overload]
        mode="r:",
        encoding="utf-8",
        errors="surrogateescape",
    ) as tar:
        yield tar


@contextlib.contextmanager
def _directory(top: int, name: str) -> Iterator[int]:
    """Open a directory below another, and follow no symbolic link on the way."""
    descriptor = os.dup(top)
    try:
        for part in name.split("/") if name else ():
            below = os.open(part, _DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _usual(mode: int) -> int:
    """Permissions without those that the process gives to nobody."""
    umask = os.umask(0)
    os.umask(umask)
    return mode & ~umask


def _time(member: tarfile.TarInfo) -> float:
    """Its time, if a file can have it."""
    return float(member.mtime) if abs(member.mtime) < 2**40 else 0.0


def _shown(name: str) -> str:
    return repr(name) if len(name) <= 120 else f"{name[:100]!r}..."
