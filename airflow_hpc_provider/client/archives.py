"""Many local files as one tar archive: what is in it, and its bytes, compressed or made on the way."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
import os
import stat as modes
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .choices import HIDDEN, Choice, is_glob, split_glob
from .errors import InvalidInputError, TransferError

__all__ = ["Item", "LocalFiles", "Packed", "PackedSource", "TarSource", "check_name", "survey"]

#: A directory, a file or a glob; several of them; or files and directories by their name in the target.
LocalFiles = Path | str | Sequence[Path | str] | Mapping[str, Path]

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1024 * 1024
_NAME_BYTES = 255
# Fast: on a fast line, compression must not be what one waits for.
_LEVEL = 1
# zlib writes a header for every few KiB that it cannot compress.
_GROWTH = 1.001
_SLACK = 256
_END = bytes(2 * _BLOCK)


@dataclass(frozen=True, slots=True)
class Item:
    """One member of an archive.

    :param name: path below the target
    :param path: where it is on this machine
    :param info: its status
    :param link: where a symbolic link leads to
    :param mode: permissions that the copy is to get; None for its own
    """

    name: str
    path: Path
    info: os.stat_result
    link: str | None = None
    mode: int | None = None

    @property
    def is_directory(self) -> bool:
        """It is a directory."""
        return self.link is None and modes.S_ISDIR(self.info.st_mode)

    @property
    def is_file(self) -> bool:
        """It is a regular file."""
        return self.link is None and modes.S_ISREG(self.info.st_mode)

    @property
    def size(self) -> int:
        """Bytes of content: those of a regular file."""
        return self.info.st_size if self.is_file else 0

    @property
    def private(self) -> bool:
        """Not everybody may read it."""
        wanted = modes.S_IROTH | modes.S_IXOTH if self.is_directory else modes.S_IROTH
        return self.link is None and self._permissions & wanted != wanted

    @property
    def _permissions(self) -> int:
        return self.info.st_mode & 0o777 if self.mode is None else self.mode

    def header(self, *, writable: bool = False) -> bytes:
        """What precedes the content: names travel as raw bytes, whatever they are.

        :param writable: of a directory: let its owner put something into it
        """
        member = tarfile.TarInfo(self.name)
        member.mode = self._permissions | (0o700 if writable else 0)
        member.mtime = int(self.info.st_mtime)
        if self.link is not None:
            member.type, member.linkname = tarfile.SYMTYPE, self.link
        elif self.is_directory:
            member.type = tarfile.DIRTYPE
        else:
            member.size = self.size
        return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")

    def read(self, offset: int, length: int) -> bytes:
        """A part of a file's content. That it did not change meanwhile is for ``check`` to tell.

        :raises TransferError: the file has changed since it was looked at
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise TransferError(f"{self.path} cannot be read: {error.strerror}.", transient=False) from error
        try:
            self._same(os.fstat(descriptor))
            content = b""
            while len(content) < length:
                more = os.pread(descriptor, length - len(content), offset + len(content))
                if not more:
                    raise self._changed("shorter")
                content += more
        except OSError as error:
            raise TransferError(f"{self.path} cannot be read: {error.strerror}.") from error
        finally:
            os.close(descriptor)
        return content

    def chunks(self) -> Iterator[bytes]:
        """A file's content, piece by piece."""
        for offset in range(0, self.size, _CHUNK):
            yield self.read(offset, min(_CHUNK, self.size - offset))

    def check(self) -> None:
        """Nothing has changed since it was looked at.

        :raises TransferError: something has
        """
        if self.link is not None or self.is_directory:
            return
        try:
            self._same(self.path.stat())
        except OSError as error:
            raise TransferError(f"{self.path} went away: {error.strerror}.", transient=False) from error

    def _same(self, now: os.stat_result) -> None:
        if now.st_size != self.info.st_size:
            raise self._changed(f"{now.st_size} instead of {self.info.st_size} bytes")
        if _identity(now) != _identity(self.info):
            raise self._changed("in place")

    def _changed(self, how: str) -> TransferError:
        return TransferError(f"{self.path} changed while it was packed: {how}.", transient=False)


def _identity(info: os.stat_result) -> tuple[int, ...]:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def survey(source: LocalFiles, choice: Choice, *, max_bytes: int | None = None) -> list[Item]:
    """Look at what is to be packed.

    What is named itself is followed if it is a symbolic link; links found below it stay links.

    :param source: a directory, for what is in it; else files, directories and globs by their last name, or
        by the name that they are to get
    :param choice: what to take, by the names in the archive
    :param max_bytes: how large all files together may be
    :return: members, directories before what is in them
    :raises InvalidInputError: something is missing, unreadable, too large, or neither a file, a directory
        nor a link; or two have one name
    """
    found: dict[str, Item] = {}
    total = 0
    for item in _chosen(source, choice):
        there = found.get(item.name)
        if there is not None and not (there.is_directory and item.is_directory):
            raise InvalidInputError(
                "source", f"{there.path} and {item.path} would both become {item.name!r}."
            )
        found[item.name] = item
        total += item.size
        if max_bytes is not None and total > max_bytes:
            raise InvalidInputError("max_bytes", f"there is more to upload than {max_bytes} bytes.")
    items = sorted(found.values(), key=lambda item: item.name.split("/"))
    for before, item in itertools.pairwise(items):
        if item.name.startswith(before.name + "/") and not before.is_directory:
            raise InvalidInputError("source", f"{before.name!r} cannot be a file and a directory.")
    if not items and not (choice.everything and isinstance(source, Path | str) and Path(source).is_dir()):
        raise InvalidInputError("source", "there is nothing that include and exclude would leave to upload.")
    return items


def check_name(name: str) -> str:
    """A path below some directory, as it may stand in an archive.

    :raises InvalidInputError: it is absolute, climbs, or is none
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise InvalidInputError("source", f"{name!r} is no path below a directory.")
    if any(len(os.fsencode(part)) > _NAME_BYTES for part in parts):
        raise InvalidInputError("source", f"{name!r}: a name ends at {_NAME_BYTES} bytes.")
    return name


def _chosen(source: LocalFiles, choice: Choice) -> Iterator[Item]:
    if isinstance(source, Mapping):
        for name, path in source.items():
            yield from _below(check_name(name), Path(path), choice.takes, choice)
    elif isinstance(source, Path | str):
        yield from _one(source, choice, contents=True)
    else:
        for each in source:
            yield from _one(each, choice, contents=False)


def _one(given: Path | str, choice: Choice, *, contents: bool) -> Iterator[Item]:
    """One thing that a user names: a glob, a directory, a file."""
    if isinstance(given, str) and is_glob(given) and not os.path.lexists(given):
        base, pattern = split_glob(given)
        only = Choice((pattern or "*",))
        found = list(_below("", Path(base), lambda name: only.takes(name) and choice.takes(name), choice))
        if not found:
            raise InvalidInputError("source", f"nothing matches {given}.")
        yield from found
        return
    path = Path(given)
    name = "" if contents and path.is_dir() else check_name(path.name or path.resolve().name)
    yield from _below(name, path, choice.takes, choice)


def _below(name: str, root: Path, takes: Callable[[str], bool], choice: Choice) -> Iterator[Item]:
    """A file, or a directory with what is wanted of all that is below it."""
    with _readable(root):
        info = root.stat()
    if name and takes(name):
        yield _item(name, root, info)
    if not name or modes.S_ISDIR(info.st_mode):
        # Directories that are there only if something in them is wanted.
        pending = {} if not name or takes(name) else {name: _item(name, root, info)}
        yield from _inside(name, root, takes, choice, pending)


def _inside(
    name: str, root: Path, takes: Callable[[str], bool], choice: Choice, pending: dict[str, Item]
) -> Iterator[Item]:
    todo = [(name, root)]
    while todo:
        above, directory = todo.pop()
        for child, path, entry in _entries(above, directory):
            if choice.leaves(child):
                continue
            with _readable(path):
                info = entry.stat(follow_symlinks=False)
            wanted, is_directory = takes(child), modes.S_ISDIR(info.st_mode)
            if is_directory:
                todo.append((child, path))
            if wanted:
                yield from _above(child, pending)
                yield _item(child, path, info)
            elif is_directory:
                pending[child] = _item(child, path, info)


def _above(name: str, pending: dict[str, Item]) -> Iterator[Item]:
    while name := name.rpartition("/")[0]:
        if (item := pending.pop(name, None)) is not None:
            yield item


def _entries(above: str, directory: Path) -> list[tuple[str, Path, os.DirEntry[str]]]:
    """Name in the archive, path and entry of all that is in a directory."""
    prefix = f"{above}/" if above else ""
    with _readable(directory), os.scandir(directory) as entries:
        return [(prefix + entry.name, directory / entry.name, entry) for entry in entries]


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidInputError("source", f"{path} cannot be read: {error.strerror}.") from error


def _item(name: str, path: Path, info: os.stat_result) -> Item:
    mode = info.st_mode
    if modes.S_ISLNK(mode):
        return Item(name, path, info, os.readlink(path))  # noqa: PTH115  Path would change 'a/./b'
    if not (modes.S_ISREG(mode) or modes.S_ISDIR(mode)):
        raise InvalidInputError(
            "source", f"{path} is a socket, a pipe or a device, and cannot be copied: exclude it."
        )
    return Item(name, path, info)


def _padding(size: int) -> int:
    return -size % _BLOCK


class TarSource:
    """An uncompressed archive that is nowhere: its bytes are made of the files when they are asked for.

    :param items: members, directories before what is in them
    """

    rereadable = True

    def __init__(self, items: Sequence[Item]) -> None:
        self._members = _members(items)
        self._starts: list[int] = []
        at = 0
        for item, writable in self._members:
            self._starts.append(at)
            at += len(item.header(writable=writable)) + item.size + _padding(item.size)
        self._end = at
        self.name = f"archive of {len(items)} files"
        self.size = at + len(_END)
        self.mtime: float | None = None
        self.mode: int | None = None

    def fingerprint(self) -> str:
        """Digest of what would be seen if a file changed."""
        digest = hashlib.sha256()
        for item, _ in self._members:
            digest.update(item.header() + repr(_identity(item.info)).encode())
        return digest.hexdigest()

    def read_at(self, offset: int, length: int) -> bytes:
        """Some bytes of headers, files and padding; all that were asked for, but at the end."""
        end, content = min(offset + length, self.size), []
        while offset < end:
            piece = self._piece(offset, end)
            content.append(piece)
            offset += len(piece)
        return b"".join(content)

    def _piece(self, at: int, end: int) -> bytes:
        """Some bytes of one member's header, content or padding."""
        if at >= self._end:
            return bytes(end - at)
        index = bisect.bisect_right(self._starts, at) - 1
        item, writable = self._members[index]
        at, end = at - self._starts[index], end - self._starts[index]
        header = item.header(writable=writable)
        if at < len(header):
            return header[at:end]
        at, end = at - len(header), end - len(header)
        if at < item.size:
            return item.read(at, min(end, item.size) - at)
        return bytes(min(end, item.size + _padding(item.size)) - at)

    def check(self) -> None:
        """No file has changed."""
        for item, _ in self._members:
            item.check()

    def close(self) -> None:
        """Nothing is open."""


def _members(items: Sequence[Item]) -> list[tuple[Item, bool]]:
    """What an archive holds, one after another.

    A directory that its owner may not write to can be filled first, and gets its mode at the end: what is in
    it may come from several archives.
    """
    locked = [item for item in items if item.is_directory and item.info.st_mode & 0o700 != 0o700]
    # Deepest first, while what is above can still be entered.
    return [(item, item.is_directory) for item in items] + [(item, False) for item in reversed(locked)]


def _gzip() -> zlib._Compress:
    """Makes a gzip file, without a name or time in it: the same files give the same bytes."""
    return zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)


class Packed:
    """A compressed archive in a temporary file, which may be sent whole or in pieces.

    Each piece is an archive of its own. All of them in a row are one, since gzip files may be joined and the
    blocks that end an archive are kept apart.

    :param items: members, directories before what is in them
    :param piece: bytes that a piece may have
    """

    #: size and sha256 of each regular file, by its name in the archive
    contents: dict[str, tuple[int, str]]

    def __init__(self, items: Sequence[Item], *, piece: int) -> None:
        self.contents = {}
        end = _gzip()
        self._tail = end.compress(_END) + end.flush()
        self._limit = piece - len(self._tail)
        self._name = f"archive of {len(items)} files"
        self._cuts: list[int] = [0]
        self._at = 0
        self._digest = hashlib.sha256()
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix=HIDDEN, buffering=0)  # noqa: SIM115
        try:
            self._write(_members(items))
        except OSError as error:
            self.close()
            raise TransferError(f"There is no room to pack the files: {error.strerror}.") from error
        except BaseException:
            self.close()
            raise

    @property
    def largest(self) -> int:
        """Bytes of the largest piece."""
        return max(end - start for start, end in self._pieces()) + len(self._tail)

    def pieces(self) -> list[PackedSource]:
        """Each piece."""
        count = len(self._pieces())
        return [
            self._source(start, end, f" ({number} of {count})")
            for number, (start, end) in enumerate(self._pieces(), 1)
        ]

    def whole(self) -> PackedSource:
        """All of it."""
        return self._source(0, self._cuts[-1], "")

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()

    def _source(self, start: int, end: int, which: str) -> PackedSource:
        name = f"{self._name}{which}"
        digest = f"{self._digest.hexdigest()} {start} {end}"
        return PackedSource(name, self._file.fileno(), (start, end), self._tail, digest)

    def _pieces(self) -> list[tuple[int, int]]:
        return list(itertools.pairwise(self._cuts))

    def _write(self, members: Iterable[tuple[Item, bool]]) -> None:
        gzip, fed, start = _gzip(), 0, 0
        for item, writable in members:
            header = item.header(writable=writable)
            size = len(header) + item.size + _padding(item.size)
            careful = self._at - self._cuts[-1] + (fed + size) * _GROWTH + _SLACK > self._limit
            if careful:
                # The piece may end before this file, so a gzip file does.
                if fed:
                    self._put(gzip.flush())
                gzip, fed, start = _gzip(), 0, self._at
            fed += size
            self._put(gzip.compress(header))
            digest = hashlib.sha256()
            for chunk in item.chunks():
                digest.update(chunk)
                self._put(gzip.compress(chunk))
            self._put(gzip.compress(bytes(_padding(item.size))))
            item.check()
            if item.is_file:
                self.contents[item.name] = item.size, digest.hexdigest()
            if careful:
                self._put(gzip.flush())
                if self._at - self._cuts[-1] > self._limit and start > self._cuts[-1]:
                    self._cuts.append(start)
                gzip, fed, start = _gzip(), 0, self._at
        if fed:
            self._put(gzip.flush())
        self._cuts.append(self._at)

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._at += len(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


class PackedSource:
    """A part of a compressed archive, with the end of one."""

    rereadable = True

    def __init__(self, name: str, descriptor: int, span: tuple[int, int], tail: bytes, digest: str) -> None:
        start, end = span
        self.name = name
        self.size = end - start + len(tail)
        self.mtime: float | None = None
        self.mode: int | None = None
        self._descriptor = descriptor
        self._start = start
        self._body = end - start
        self._tail = tail
        self._fingerprint = digest

    def fingerprint(self) -> str:
        """Digest of the archive, and which part of it this is."""
        return self._fingerprint

    def read_at(self, offset: int, length: int) -> bytes:
        """Some bytes."""
        if offset >= self._body:
            return self._tail[offset - self._body :][:length]
        try:
            return os.pread(self._descriptor, min(length, self._body - offset), self._start + offset)
        except OSError as error:
            raise TransferError(f"The packed files cannot be read: {error.strerror}.") from error

    def check(self) -> None:
        """Nobody else can reach the file."""

    def close(self) -> None:
        """The file is closed by whoever packed it."""
