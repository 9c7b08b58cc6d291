"""The open files of :class:`~airflow_hpc_provider.filesystem.HpcFileSystem`."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from .client.ranged import StagedFile

__all__ = ["CompressedWriter", "LargeFile", "SmallFile", "TextWriter", "Writer"]

log = logging.getLogger(__name__)


class SmallFile(io.BytesIO):
    """A file that was read whole when it was opened.

    :param fs: its file system
    :param path: its path there
    :param details: what ``fs.info`` says of it
    :param content: its bytes
    """

    mode = "rb"

    def __init__(self, fs: AbstractFileSystem, path: str, details: dict[str, Any], content: bytes) -> None:
        super().__init__(content)
        self.fs = fs
        self.path = path
        self.details = {**details, "size": len(content)}
        self.size = len(content)

    def info(self) -> dict[str, Any]:
        """What is known of the file since it was opened."""
        return self.details

    def write(self, _: Any) -> int:
        """Refused: it is open for reading."""
        raise io.UnsupportedOperation("not open for writing")

    def writable(self) -> bool:
        """It is not."""
        return False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"

    def __reduce__(self) -> Any:
        """Travel without the content: it is read again where this arrives."""
        return _reopened, (self.fs, self.path, self.tell())


def _reopened(fs: AbstractFileSystem, path: str, position: int) -> Any:
    file = fs.open(path, "rb")
    file.seek(position)
    return file


class LargeFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file of which ranges are read.

    :param fs: its file system
    :param path: its path there
    :param details: what ``fs.info`` says of it
    :param staged: reads the ranges
    :param options: ``block_size``, ``cache_type`` and ``cache_options`` of fsspec
    """

    def __init__(
        self,
        fs: AbstractFileSystem,
        path: str,
        details: dict[str, Any],
        staged: StagedFile,
        **options: Any,
    ) -> None:
        self._staged = staged
        self._details = details
        super().__init__(fs, path, "rb", size=details["size"], **options)

    def _fetch_range(self, start: int, end: int) -> bytes:
        with self.fs.translated(self.path):
            return self._staged.read(start, end)


class Writer(io.BufferedIOBase):
    """A file that is sent when it is closed, whole or not at all.

    Until then it is kept here, in memory while it is small, and may be read and changed anywhere. After an
    exception inside a ``with`` block, or if it is never closed, nothing is sent.

    :param path: where it will be, for messages
    :param send: sends the bytes of a small file, or a local file
    :param mode: ``wb``, ``xb`` or ``ab``
    :param limit: bytes that are kept in memory at the most
    :param content: what the file begins with
    :param autocommit: send when closed; else with :meth:`commit`
    """

    def __init__(
        self,
        path: str,
        send: Callable[[bytes | Path], None],
        *,
        mode: str = "wb",
        limit: int,
        content: bytes = b"",
        autocommit: bool = True,
    ) -> None:
        super().__init__()
        self.path = path
        self.mode = mode
        self.autocommit = autocommit
        self._send = send
        self._limit = limit
        self._kept: IO[bytes] | None = io.BytesIO()
        self._on_disk: Path | None = None
        self.write(content)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"

    def readable(self) -> bool:
        """What was written can be read."""
        return True

    def writable(self) -> bool:
        """It is open for writing."""
        return True

    def seekable(self) -> bool:
        """It is kept here until it is closed."""
        return True

    def write(self, data: Any) -> int:
        """Write at the position, at the end in mode ``ab``."""
        kept = self._open()
        if self.mode == "ab":
            kept.seek(0, io.SEEK_END)
        size = memoryview(data).nbytes
        if self._on_disk is None and kept.tell() + size > self._limit:
            kept = self._move_to_disk(kept)
        kept.write(data)
        return size

    def read(self, size: int | None = -1) -> bytes:
        """Read what was written, from the position."""
        return self._open().read(-1 if size is None else size)

    def read1(self, size: int = -1) -> bytes:
        """The same as :meth:`read`."""
        return self.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position."""
        return self._open().seek(offset, whence)

    def tell(self) -> int:
        """The position."""
        return self._open().tell()

    def truncate(self, size: int | None = None) -> int:
        """Cut the file, at the position unless a size is given."""
        return self._open().truncate(size)

    def close(self) -> None:
        """Send the file."""
        if self.closed:
            return
        try:
            if self.autocommit:
                self.commit()
        finally:
            super().close()

    def commit(self) -> None:
        """Send the file now; a transaction of fsspec calls this for all of its files."""
        kept = self._kept
        if kept is None:
            return
        try:
            kept.flush()
            if self._on_disk is None:
                kept.seek(0)
                self._send(kept.read())
            else:
                self._send(self._on_disk)
        finally:
            self.discard()

    def discard(self) -> None:
        """Forget what was written; nothing is sent any more."""
        if self._kept is not None:
            self._kept.close()
        self._kept = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.discard()
        self.close()

    def __del__(self) -> None:
        # What nobody closed may have been left in the middle.
        if not self.closed and getattr(self, "_kept", None) is not None and self.autocommit:
            log.warning("%s was never closed, so it is not written.", self.path)
            self.discard()

    def _open(self) -> IO[bytes]:
        if self.closed or self._kept is None:
            raise ValueError("I/O operation on closed file.")
        return self._kept

    def _move_to_disk(self, kept: IO[bytes]) -> IO[bytes]:
        """From here on the file is too large for memory, and staging wants it to have a name."""
        position = kept.tell()
        kept.seek(0)
        file = cast("IO[bytes]", tempfile.NamedTemporaryFile(prefix="hpc-"))  # noqa: SIM115  discard closes it
        file.write(kept.read())
        file.seek(position)
        kept.close()
        self._kept, self._on_disk = file, Path(file.name)
        return file


class CompressedWriter:
    """A compressor on top of a :class:`Writer`: both are closed, or neither is sent.

    :param compressor: one of fsspec's
    :param writer: what it writes to
    """

    def __init__(self, compressor: Any, writer: Writer) -> None:
        self._compressor = compressor
        self._writer = writer

    def __getattr__(self, name: str) -> Any:
        """All else is the compressor's."""
        return getattr(self._compressor, name)

    def discard(self) -> None:
        """Forget what was written; nothing is sent any more."""
        self._writer.discard()
        # What the compressor still holds has no place to go.
        with contextlib.suppress(Exception):
            self._compressor.close()

    def close(self) -> None:
        """Send the file."""
        if not self._writer.closed:
            self._compressor.close()
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.discard()
        self.close()


class TextWriter(io.TextIOWrapper):
    """Text on top of a :class:`Writer` or a :class:`CompressedWriter`."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._forget()
        else:
            self.close()

    def __del__(self) -> None:
        if not self.closed:
            self._forget()

    def _forget(self) -> None:
        buffer: Any = self.buffer
        buffer.discard()
        buffer.close()
