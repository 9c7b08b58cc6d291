"""Where data lies on this side: sources to read from, and sinks in which a file appears whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat as modes
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from .errors import InvalidInputError, TransferError

__all__ = ["BytesSource", "LocalSink", "LocalSource", "Sink", "Source"]

_CHUNK = 1024 * 1024
_PERMISSIONS = 0o7777


class Source(Protocol):
    """What is uploaded. Several threads read it at once."""

    @property
    def name(self) -> str:
        """What logs and errors call it."""

    @property
    def size(self) -> int:
        """Bytes, as they were when it was opened."""

    @property
    def mtime(self) -> float | None:
        """Epoch seconds of the last change; None if nobody knows."""

    @property
    def mode(self) -> int | None:
        """Permission bits; None where there are none."""

    @property
    def rereadable(self) -> bool:
        """Reading it a second time costs little; others are read once, one part after another."""

    def fingerprint(self) -> str:
        """Another text for other content; tells a retry whether it may go on."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Some bytes from an offset on; fewer than asked for where that is more natural, none at the end.

        :raises TransferError: they cannot be read
        """

    def check(self) -> None:
        """Nothing has changed since it was opened.

        :raises TransferError: something has
        """

    def close(self) -> None:
        """Free what reading needed; may be called twice."""


class Sink(Protocol):
    """What a download makes: nothing is to be seen of it before ``commit``."""

    @property
    def name(self) -> str:
        """What logs and errors call it."""

    @property
    def in_order(self) -> bool:
        """It takes a stream: ``write_at`` is called with rising offsets, by one thread at a time."""

    @property
    def place(self) -> str | None:
        """Where the unfinished data lies, for a later try to go on; None if it cannot."""

    def existing(self) -> tuple[int, float] | None:
        """Size in bytes and time (epoch seconds) of what is there under the final name."""

    def read_existing(self) -> Iterator[bytes]:
        """What is there under the final name."""

    def start(self, size: int, place: str | None = None) -> bool:
        """Begin.

        :param size: bytes to come
        :param place: where an earlier try left its data
        :return: whether that data is still there and is gone on with
        :raises TransferError: there is no room
        """

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Take some bytes; thread-safe unless ``in_order``.

        :raises TransferError: they cannot be written
        """

    def read_at(self, offset: int, length: int) -> bytes:
        """Read what was written before; not called if ``in_order``."""

    def sync(self) -> None:
        """What was written so far outlives a crash."""

    def commit(self, *, mode: int | None = None, mtime: float | None = None) -> None:
        """Let the file appear under its name.

        :param mode: permission bits; None for the usual ones
        :param mtime: epoch seconds; None for now
        """

    def leave(self) -> None:
        """Stop here; a later try goes on."""

    def discard(self) -> None:
        """Remove what is unfinished; may be called at any time."""


class LocalSource:
    """A file on this machine.

    :param path: its path
    :raises InvalidInputError: it is no file that can be read
    """

    rereadable = True

    def __init__(self, path: Path) -> None:
        try:
            if path.is_dir():
                raise InvalidInputError("local_path", f"{path} is a directory; give the path of a file.")
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise InvalidInputError("local_path", f"{path} cannot be read: {error.strerror}.") from error
        self._path = path
        self._stat = os.fstat(self._file.fileno())
        if not modes.S_ISREG(self._stat.st_mode):
            self._file.close()
            raise InvalidInputError("local_path", f"{path} is no regular file, so its size is not known.")
        self.name = path.name
        self.size = self._stat.st_size
        self.mtime: float | None = self._stat.st_mtime
        self.mode: int | None = self._stat.st_mode & _PERMISSIONS

    def fingerprint(self) -> str:
        """Path, inode, size and time."""
        return f"{self._path.absolute()} {' '.join(map(str, _identity(self._stat)))}"

    def fileno(self) -> int:
        """Descriptor of the open file, for who can send from it."""
        return self._file.fileno()

    def read_at(self, offset: int, length: int) -> bytes:
        """Read, without moving anybody else's position."""
        try:
            return os.pread(self._file.fileno(), length, offset)
        except OSError as error:
            raise TransferError(f"{self._path} cannot be read: {error.strerror}.") from error

    def check(self) -> None:
        """Neither the open file nor the one of this name has changed."""
        try:
            now = os.fstat(self._file.fileno()), self._path.stat()
        except OSError as error:
            raise TransferError(
                f"{self._path} went away while it was uploaded: {error.strerror}.", transient=False
            ) from error
        for seen in now:
            if _identity(seen) != _identity(self._stat):
                change = (
                    f"from {self.size} to {seen.st_size} bytes" if seen.st_size != self.size else "in place"
                )
                raise TransferError(f"{self._path} changed while it was uploaded, {change}.", transient=False)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


class BytesSource:
    """Bytes in memory.

    :param name: what logs and errors call them
    :param content: the bytes
    """

    rereadable = True

    def __init__(self, name: str, content: bytes) -> None:
        self.name = name
        self.size = len(content)
        self.mtime: float | None = None
        self.mode: int | None = None
        self._content = content

    def fingerprint(self) -> str:
        """Digest of the bytes."""
        return hashlib.sha256(self._content).hexdigest()

    def read_at(self, offset: int, length: int) -> bytes:
        """Cut a piece out."""
        return self._content[offset : offset + length]

    def check(self) -> None:
        """Bytes never change."""

    def close(self) -> None:
        """Nothing to free."""


class LocalSink:
    """A file on this machine; unfinished, it has a hidden temporary name beside its own.

    :param target: path of the file to make; its directory must be there
    :raises InvalidInputError: the path is a directory, or its directory is missing
    """

    in_order = False

    def __init__(self, target: Path) -> None:
        if target.is_dir():
            raise InvalidInputError(
                "local_path", f"{target} is a directory; give the path of the file to make."
            )
        if not target.parent.is_dir():
            raise InvalidInputError("local_path", f"directory {target.parent} does not exist.")
        self.name = target.name
        self._target = target
        # A name may have 255 bytes, and the temporary one is longer.
        self._prefix = f".{target.name.encode(errors='surrogateescape')[:100].decode(errors='ignore')}."
        self._part: Path | None = None
        self._file: IO[bytes] | None = None
        self._writing = threading.Lock()

    @property
    def place(self) -> str | None:
        """Name of the temporary file."""
        return self._part.name if self._part else None

    def existing(self) -> tuple[int, float] | None:
        """Size and time of the file of this name."""
        try:
            stat = self._target.stat()
        except FileNotFoundError:
            return None
        return stat.st_size, stat.st_mtime

    def read_existing(self) -> Iterator[bytes]:
        """Read the file of this name."""
        with self._target.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk

    def start(self, size: int, place: str | None = None) -> bool:
        """Open the temporary file of an earlier try, or make one."""
        with self._telling("made"):
            resumed = place is not None and self._reopen(place)
            if not resumed:
                descriptor, name = tempfile.mkstemp(
                    prefix=self._prefix, suffix=".part", dir=self._target.parent
                )
                self._part, self._file = Path(name), os.fdopen(descriptor, "r+b", buffering=0)
            there = os.fstat(self._fd())
            room = os.fstatvfs(self._fd())
            missing = size - there.st_blocks * 512
            if missing > room.f_bavail * room.f_frsize:
                free = room.f_bavail * room.f_frsize
                raise TransferError(
                    f"No room for {self._target}: {size} bytes come, {free} are free.", transient=False
                )
        return resumed

    def _reopen(self, place: str) -> bool:
        part = self._target.parent / place
        # The name comes from where a try wrote it down: it must not lead anywhere else.
        if part.name != place or not place.startswith(self._prefix) or not place.endswith(".part"):
            return False
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        self._part, self._file = part, os.fdopen(descriptor, "r+b", buffering=0)
        return True

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of it."""
        done = 0
        # Linux has one thread at a time write to a file, and the others burn their processors until they may.
        with self._writing, self._telling("written"), memoryview(data) as view:
            while done < len(view):
                done += os.pwrite(self._fd(), view[done:], offset + done)

    def read_at(self, offset: int, length: int) -> bytes:
        """Read it again, most likely from memory."""
        with self._telling("read"):
            return os.pread(self._fd(), length, offset)

    def sync(self) -> None:
        """Flush the data to the disk."""
        with self._telling("written"):
            os.fdatasync(self._fd())

    def commit(self, *, mode: int | None = None, mtime: float | None = None) -> None:
        """Flush and rename."""
        part = self._part
        if part is None:
            raise ValueError("not started")
        if mode is None:
            # The temporary file is private; the final one gets the usual mode.
            umask = os.umask(0)
            os.umask(umask)
            mode = 0o666 & ~umask
        with self._telling("finished"):
            os.fchmod(self._fd(), mode & 0o777)
            if mtime is not None:
                os.utime(self._fd(), (mtime, mtime))
            os.fsync(self._fd())
            self.leave()
            part.replace(self._target)
            self._part = None
            directory = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                # The new name too outlives a crash; not every file system can say so.
                with contextlib.suppress(OSError):
                    os.fsync(directory)
            finally:
                os.close(directory)

    def leave(self) -> None:
        """Close the temporary file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Remove the temporary file."""
        self.leave()
        if self._part is not None:
            self._part.unlink(missing_ok=True)
            self._part = None

    def _fd(self) -> int:
        if self._file is None:
            raise TransferError(f"{self._target} is not being written.", transient=False)
        return self._file.fileno()

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TransferError(f"{self._target} cannot be {what}: {error.strerror}.") from error
