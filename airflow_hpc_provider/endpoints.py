"""Where data lies on Airflow's side: a path of this machine, or anything that its object storage reaches.

What comes from or goes to a storage passes through memory, a few MiB at a time: this machine's disk is not
touched, and nothing is to be seen under the final name before all of it is there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from .client.errors import HpcError, InvalidInputError, TransferError
from .client.places import BytesSource, LocalSink, LocalSource, Sink, Source

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

__all__ = [
    "Endpoint",
    "LocalEndpoint",
    "StorageEndpoint",
    "StorageSink",
    "StorageSource",
    "endpoint_of",
    "sink_of",
    "source_of",
    "source_of_content",
]

log = logging.getLogger(__name__)

_MIB = 1024 * 1024
# Read ahead in blocks: one that is read from, one before it, one that is on its way.
_READ_BLOCK = 4 * _MIB
_BLOCKS = 2
_WRITE_BLOCK = 8 * _MIB
# S3 takes 10,000 parts. What is larger than that many blocks needs larger ones.
_MOST_PARTS = 9_000

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LOCAL = ("", "file", "local")
_LOCAL_URL = re.compile(r"(?:file|local)://(?:[^/@]*@)?(/.*)", re.DOTALL | re.IGNORECASE)
# A file of these appears when it is committed, and can be thrown away before.
_COMMITTING = {"s3", "s3a", "gs", "gcs"}
# These have no directories to make, and would take the first name for a bucket to make.
_BUCKETS = _COMMITTING | {"abfs", "abfss", "adl", "az", "oss", "wasb", "wasbs"}
_TAGS = ("etag", "e_tag", "generation", "md5hash", "ino")
_TIMES = ("mtime", "lastmodified", "last_modified", "updated", "modified", "created")
# A later try of the same thing will be refused as well.
_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, NotImplementedError)


class Endpoint(Protocol):
    """One place on Airflow's side: a file, or a directory of files.

    ``str()`` gives its path or URL, for logs and results.
    """

    @property
    def name(self) -> str:
        """Its last name; empty if it has none, as a whole bucket."""

    @property
    def is_directory_like(self) -> bool:
        """It was given with a slash at its end, or can be nothing but a directory."""

    @property
    def local(self) -> Path | None:
        """Its path, if it is on this machine."""

    def below(self, name: str) -> Self:
        """A name in it, if it is a directory."""

    def parent(self) -> Self:
        """The directory it is in."""

    def make_directories(self) -> None:
        """Make it a directory, with those above it, where there are directories."""

    def source(self) -> Source:
        """Open it to be uploaded.

        :raises InvalidInputError: it is no file that can be read
        """

    def sink(self) -> Sink:
        """What a download to it makes.

        :raises InvalidInputError: it can be no file
        """


def endpoint_of(value: Any, field: str = "local_path") -> Endpoint:
    """What a user named as a place on Airflow's side.

    :param value: path, ``file://`` URL, URL of an object storage (``s3://conn_id@bucket/key``), ``Path`` or
        ``ObjectStoragePath``
    :param field: name of the parameter, for the error text
    :raises InvalidInputError: it is none of these, or a storage that this Airflow cannot reach
    """
    # Airflow's own path type is none of Python's.
    known = isinstance(value, str | os.PathLike) or isinstance(getattr(value, "protocol", None), str)
    if not known or not str(value):
        said = "is empty" if value == "" else f"is {type(value).__name__}"
        raise InvalidInputError(
            field, f"{said}; if it comes from another task, that task did not run or returned nothing."
        )
    text = str(value)
    scheme = _protocol(value, text)
    if scheme == "hpc":
        raise InvalidInputError(
            field, f"{text} is on a system behind a gateway: HpcCopyOperator copies from system to system."
        )
    if scheme not in _LOCAL:
        return StorageEndpoint(_storage_path(value, field), field, is_directory_like=text.endswith("/"))
    path = text
    if _SCHEME.match(text):
        found = _LOCAL_URL.fullmatch(text)
        if not found:
            raise InvalidInputError(field, f"{text}: write the absolute path behind file://.")
        path = found[1]
    return LocalEndpoint(Path(path), is_directory_like=text.endswith("/"))


def source_of(value: Any, field: str = "local_path") -> Source:
    """Open what a user named, to be uploaded; parameters and errors are those of :func:`endpoint_of`."""
    return endpoint_of(value, field).source()


def sink_of(value: Any, field: str = "local_path") -> Sink:
    """What a download makes there; parameters and errors are those of :func:`endpoint_of`."""
    return endpoint_of(value, field).sink()


def source_of_content(content: Any, name: str) -> BytesSource:
    """Content that the task itself holds, to be uploaded.

    :param content: text, sent as UTF-8, or bytes
    :param name: what logs and errors call it
    :raises InvalidInputError: it is neither
    """
    if isinstance(content, bytes | bytearray | memoryview):
        return BytesSource(name, bytes(content))
    if not isinstance(content, str):
        raise InvalidInputError(
            "content",
            f"is {type(content).__name__}, not text or bytes; turn other values into text in the template: "
            "{{ ti.xcom_pull(...) | tojson }}.",
        )
    try:
        return BytesSource(name, content.encode())
    except UnicodeEncodeError as error:
        raise InvalidInputError("content", f"is no text that UTF-8 can hold: {error.reason}.") from error


class LocalEndpoint:
    """A path of this machine.

    :param path: the path
    :param is_directory_like: it was given with a slash at its end
    """

    def __init__(self, path: Path, *, is_directory_like: bool = False) -> None:
        self.local: Path | None = path
        self.is_directory_like = is_directory_like
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    @property
    def name(self) -> str:
        """Last name of the path."""
        return self._path.name

    def below(self, name: str) -> LocalEndpoint:
        """A name in this directory."""
        return LocalEndpoint(self._path / name)

    def parent(self) -> LocalEndpoint:
        """The directory it is in."""
        return LocalEndpoint(self._path.parent)

    def make_directories(self) -> None:
        """Make the directory and those above it."""
        self._path.mkdir(parents=True, exist_ok=True)

    def source(self) -> LocalSource:
        """The open file."""
        return LocalSource(self._path)

    def sink(self) -> LocalSink:
        """A file to make."""
        return LocalSink(self._path)


class StorageEndpoint:
    """A place in a storage that Airflow reaches.

    :param path: the place; Airflow's connection in it is looked up when the storage is first asked
    :param field: name of the parameter, for the error text
    :param is_directory_like: it was given with a slash at its end
    """

    local: Path | None = None

    def __init__(self, path: ObjectStoragePath, field: str, *, is_directory_like: bool = False) -> None:
        self._path = path
        self._field = field
        self.is_directory_like = is_directory_like or not path.name

    def __str__(self) -> str:
        return str(self._path)

    @property
    def name(self) -> str:
        """Last name of the key."""
        return str(self._path.name)

    def below(self, name: str) -> StorageEndpoint:
        """A key below this one."""
        return StorageEndpoint(self._path / name, self._field)

    def parent(self) -> StorageEndpoint:
        """The key without its last name."""
        return StorageEndpoint(self._path.parent, self._field, is_directory_like=True)

    def make_directories(self) -> None:
        """Make the directory where there are any; a bucket has none, and is not made."""
        if self._path.protocol not in _BUCKETS:
            with _telling(self, "made"):
                _file_system(self._path, self._field).makedirs(self._path.path, exist_ok=True)

    def source(self) -> StorageSource:
        """The object, to be streamed."""
        return StorageSource(self._path, field=self._field)

    def sink(self) -> StorageSink:
        """An object to make."""
        if not self.name:
            raise InvalidInputError(self._field, f"{self} has no key; give the place of the object to make.")
        return StorageSink(self._path, field=self._field)


class StorageSource:
    """An object that is streamed, while the next of its blocks is fetched already.

    :param path: its place
    :param field: name of the parameter, for the error text
    :raises InvalidInputError: there is no such object, or nobody knows its size
    """

    # Each reading costs traffic.
    rereadable = False
    mode: int | None = None

    def __init__(self, path: ObjectStoragePath, *, field: str = "local_path") -> None:
        self._path = path
        self._fs = _file_system(path, field)
        self._lock = threading.Lock()
        self._file: Any = None
        try:
            info = self._look()
        except FileNotFoundError as error:
            raise InvalidInputError(field, f"{path} does not exist.") from error
        if info.get("type") == "directory":
            raise InvalidInputError(field, f"{path} is a directory; give the place of an object.")
        if info.get("size") is None:
            raise InvalidInputError(
                field, f"{path}: the storage does not tell its size, so it cannot be sent."
            )
        self.name = str(path.name)
        self.size = int(info["size"])
        self.mtime = _modified(info)
        self._identity = _identity(info)

    def fingerprint(self) -> str:
        """URL, size, time and the storage's own tag."""
        return f"{self._path} {' '.join(map(str, self._identity))}"

    def read_at(self, offset: int, length: int) -> bytes:
        """Read, one thread at a time; best with rising offsets."""
        with self._lock:
            try:
                with _telling(self._path, "read"):
                    file = self._opened()
                    file.seek(offset)
                    content: bytes = file.read(length)
                    return content
            except TransferError:
                # What was read ahead may be an error that would be told again and again.
                self._shut()
                raise

    def check(self) -> None:
        """The object is still the one that was found first."""
        try:
            with _telling(self._path, "looked at"):
                now = self._look()
        except TransferError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise TransferError(f"{self._path} went away while it was read.", transient=False) from error
            raise
        if _identity(now) != self._identity:
            change = (
                f"from {self.size} to {now.get('size')} bytes" if now.get("size") != self.size else "in place"
            )
            raise TransferError(f"{self._path} changed while it was read, {change}.", transient=False)

    def close(self) -> None:
        """Close it."""
        with self._lock:
            self._shut()

    def _opened(self) -> Any:
        if self._file is None:
            self._file = self._fs.open(
                self._path.path,
                "rb",
                block_size=_READ_BLOCK,
                cache_type="background",
                cache_options={"maxblocks": _BLOCKS},
            )
        return self._file

    def _shut(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(Exception):
                file.close()

    def _look(self) -> Mapping[str, Any]:
        return _look(self._fs, self._path)


class StorageSink:
    """An object that is written as a stream. It cannot be gone on with after an interruption.

    :param path: its place
    :param field: name of the parameter, for the error text
    """

    in_order = True
    # An unfinished upload to a storage belongs to the client that began it.
    place: str | None = None

    def __init__(self, path: ObjectStoragePath, *, field: str = "local_path") -> None:
        self._path = path
        self._fs = _file_system(path, field)
        self.name = str(path.name)
        self._commits = path.protocol in _COMMITTING
        self._writes_to = path if self._commits else path.parent / f".{secrets.token_hex(8)}.part"
        self._file: Any = None
        self._begun = False
        self._written = 0

    def existing(self) -> tuple[int, float] | None:
        """Size and time of the object of this name; 0 for a time that the storage does not tell."""
        with _telling(self._path, "looked at"):
            try:
                info = _look(self._fs, self._path)
            except FileNotFoundError:
                return None
        if info.get("type") == "directory":
            return None
        return int(info.get("size") or 0), _modified(info) or 0.0

    def read_existing(self) -> Iterator[bytes]:
        """Read the object of this name."""
        with contextlib.closing(StorageSource(self._path)) as there:
            at = 0
            while chunk := there.read_at(at, _MIB):
                at += len(chunk)
                yield chunk

    def start(self, size: int, place: str | None = None) -> bool:
        """Begin an upload to the storage; never one that goes on."""
        del place
        block = -(-max(_WRITE_BLOCK, size // _MOST_PARTS) // _MIB) * _MIB
        options: dict[str, Any] = {"autocommit": False} if self._commits else {}
        with _telling(self._path, "made"):
            self._begun = True
            self._written = 0
            self._file = self._fs.open(self._writes_to.path, "wb", block_size=block, **options)
        return False

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Hand the next bytes on."""
        if self._file is None:
            raise TransferError(f"{self._path} is not being written.", transient=False)
        if offset != self._written:
            raise ValueError(f"{self._written} bytes are written, these come at {offset}")
        view = memoryview(data)
        with _telling(self._path, "written"):
            # Much at once would be held beside the block that is being filled.
            for at in range(0, len(view), _MIB):
                self._file.write(bytes(view[at : at + _MIB]))
        self._written += len(view)

    def read_at(self, offset: int, length: int) -> bytes:
        """Never called of a stream."""
        raise NotImplementedError

    def sync(self) -> None:
        """A stream cannot be gone on with, so there is nothing to make safe."""

    def commit(self, *, mode: int | None = None, mtime: float | None = None) -> None:
        """Let the object appear. Objects have no permissions, and the time is the storage's own."""
        del mode, mtime
        if self._file is None:
            raise TransferError(f"{self._path} is not being written.", transient=False)
        with _telling(self._path, "finished"):
            self._file.close()
            if self._commits:
                self._file.commit()
                self._compare(self._path)
            else:
                self._compare(self._writes_to)
                self._rename()
        self._file, self._begun = None, False

    def leave(self) -> None:
        """Give up, since no later try can go on."""
        self.discard()

    def discard(self) -> None:
        """Abort the upload; says so if the storage does not."""
        file, self._file = self._file, None
        begun, self._begun = self._begun, False
        if not begun:
            return
        try:
            if self._commits and file is not None:
                file.discard()
                # Else it would be flushed when it is forgotten.
                file.closed = True
            elif not self._commits:
                if file is not None:
                    with contextlib.suppress(Exception):
                        file.close()
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(self._writes_to.path)
        except Exception as error:  # noqa: BLE001  every storage has errors of its own
            log.warning("What is unfinished of %s could not be removed: %s", self._path, error)

    def _compare(self, place: ObjectStoragePath) -> None:
        size = _look(self._fs, place).get("size")
        if size != self._written:
            with contextlib.suppress(Exception):
                self._fs.rm_file(place.path)
            raise TransferError(f"{self._path} got {self._written} bytes, and has {size}.")

    def _rename(self) -> None:
        from fsspec.spec import AbstractFileSystem  # noqa: PLC0415  a storage is in use, so it is loaded

        part, final = self._writes_to.path, self._path.path
        if type(self._fs).mv is AbstractFileSystem.mv:
            # Its general way would take brackets and stars in a name for patterns.
            self._fs.cp_file(part, final)
            self._fs.rm_file(part)
        else:
            self._fs.mv(part, final)


def _protocol(value: Any, text: str) -> str:
    protocol = getattr(value, "protocol", None)
    if isinstance(protocol, str):
        return protocol.lower()
    found = _SCHEME.match(text) if isinstance(value, str) else None
    return found[1].lower() if found else ""


def _storage_path(value: Any, field: str) -> ObjectStoragePath:
    from airflow.sdk import ObjectStoragePath  # noqa: PLC0415  takes long to load, and few need it

    try:
        return value if isinstance(value, ObjectStoragePath) else ObjectStoragePath(value)
    except (ValueError, ImportError) as error:
        raise InvalidInputError(field, _unknown(str(value), error)) from error


def _file_system(path: ObjectStoragePath, field: str) -> Any:
    try:
        return path.fs
    except (ValueError, ImportError) as error:
        raise InvalidInputError(field, _unknown(str(path), error)) from error


def _unknown(where: str, error: Exception) -> str:
    why = str(error).rstrip(".")
    return f"{where} is in no storage that this Airflow reaches: {why}. Its provider may not be installed."


def _look(file_system: Any, path: ObjectStoragePath) -> Mapping[str, Any]:
    """What the storage says now; it may remember an old listing."""
    file_system.invalidate_cache(path.path)
    info: Mapping[str, Any] = file_system.info(path.path)
    return info


def _identity(info: Mapping[str, Any]) -> tuple[Any, ...]:
    """Differs if the content does. Storages tell more or less, under names of their own."""
    lower = {key.lower(): value for key, value in info.items()}
    tag = next((lower[name] for name in _TAGS if lower.get(name)), None)
    return lower.get("size"), _modified(info), tag


def _modified(info: Mapping[str, Any]) -> float | None:
    """Epoch seconds of the last change, if the storage tells."""
    lower = {key.lower(): value for key, value in info.items()}
    for value in (lower[name] for name in _TIMES if lower.get(name)):
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, datetime):
            return value.timestamp()
        with contextlib.suppress(TypeError, ValueError):
            return datetime.fromisoformat(value).timestamp()
    return None


@contextlib.contextmanager
def _telling(path: object, what: str) -> Iterator[None]:
    try:
        yield
    except HpcError:
        raise
    except Exception as error:
        # Every storage has errors of its own.
        final = isinstance(error, _FINAL)
        why = f"{type(error).__name__}: {error}".rstrip(".")
        raise TransferError(f"{path} cannot be {what}: {why}.", transient=not final) from error
