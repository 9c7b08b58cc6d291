"""The file systems of a system, and what FirecREST's commands do in them, without any shell."""

import grp
import hashlib
import os
import pwd
import re
import shutil
import stat
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from .errors import GatewayError

__all__ = ["FileSystem", "FileSystems", "group_name", "user_name"]

_BLOCK = 1 << 20
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}
_STATUS_OF = {FileNotFoundError: 404, PermissionError: 403, FileExistsError: 400}
_SIGNATURES = {
    b"\x1f\x8b": "gzip compressed data",
    b"BZh": "bzip2 compressed data",
    b"\xfd7zXZ": "XZ compressed data",
    b"\x7fELF": "ELF executable",
    b"\x89PNG": "PNG image data",
    b"%PDF": "PDF document",
    b"#!": "a script, text executable",
    b"PK": "Zip archive data",
}
Compression = Literal["none", "gzip", "bzip2", "xz"]
_TAR_MODE = {"none": "", "gzip": "gz", "bzip2": "bz2", "xz": "xz"}


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A mounted file system as the configuration of FirecREST knows it."""

    path: Path
    data_type: str
    default_work_dir: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "dataType": self.data_type,
            "defaultWorkDir": self.default_work_dir,
        }


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def failed(command: str, error: OSError, *, code: int = 1, said: str | None = None) -> GatewayError:
    """The gateway's wording of a command that failed: exit status and error text of the tool."""
    reason = error.strerror or str(error)
    status = next((s for kind, s in _STATUS_OF.items() if isinstance(error, kind)), 500)
    prefix = f"Remote process failed with exit status:{code} and error message:{command}: "
    return GatewayError(status, prefix + (f"{said}: {reason}" if said else reason))


class FileSystems:
    """Every path a request names goes through ``locate``: nothing outside is ever touched."""

    def __init__(self, system: str, mounts: list[FileSystem], *, output_limit: int, owner: str) -> None:
        self.system = system
        self.mounts = mounts
        self.output_limit = output_limit
        self._owner = owner

    def locate(self, path: str, *, follow: bool = True) -> Path:
        """The path, if it lies in a file system, also behind its symbolic links."""
        if not path.startswith("/") or "\0" in path:
            raise GatewayError(400, f"The provided path ({path}) is not an absolute path.")
        plain = Path(os.path.normpath("/" + path.lstrip("/")))
        real = plain.resolve() if follow else plain.parent.resolve() / plain.name
        for candidate in (plain, real):
            if self.mount_of(candidate) is None:
                text = "does not match any of the defined filesystem paths for the requested system"
                raise GatewayError(400, f"The provided path ({candidate}) {text} ({self.system}).")
        return plain

    def mount_of(self, path: Path) -> FileSystem | None:
        return next((mount for mount in self.mounts if path.is_relative_to(mount.path)), None)

    def ls(
        self, path: str, *, hidden: bool, numeric: bool, recursive: bool, dereference: bool
    ) -> list[dict[str, Any]]:
        # `ls` shows a link itself only with -l on a link to a file; a link to a directory is entered with -L.
        place = self.locate(path, follow=dereference)
        try:
            info = place.stat() if dereference else place.lstat()
            if not stat.S_ISDIR(info.st_mode):
                return [self.line(place, name=str(place), numeric=numeric, dereference=dereference)]
            names = _names(place, "", hidden=hidden, recursive=recursive)
            return [self.line(child, name=n, numeric=numeric, dereference=dereference) for child, n in names]
        except OSError as error:
            verb = "cannot open directory" if isinstance(error, PermissionError) else "cannot access"
            raise failed("ls", error, code=2, said=f"{verb} '{place}'") from error

    def line(
        self, place: Path, *, name: str | None = None, numeric: bool = False, dereference: bool = False
    ) -> dict[str, Any]:
        """One line of ``ls -l``."""
        inside = not place.is_symlink() or self.mount_of(place.resolve()) is not None
        info = place.stat() if dereference and inside and place.exists() else place.lstat()
        text = stat.filemode(info.st_mode)
        target = str(place.readlink()) if stat.S_ISLNK(info.st_mode) else None
        return {
            "name": _escaped(str(place) if name is None else name),
            "type": text[0],
            "linkTarget": None if target is None else _escaped(target),
            "user": str(info.st_uid) if numeric else user_name(info.st_uid),
            "group": str(info.st_gid) if numeric else group_name(info.st_gid),
            "permissions": text[1:],
            "lastModified": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(info.st_mtime)),
            "size": str(info.st_size),
        }

    def stat(self, path: str, *, dereference: bool) -> dict[str, int]:
        place = self.locate(path, follow=dereference)
        try:
            info = place.stat() if dereference else place.lstat()
        except OSError as error:
            raise failed("stat", error, said=f"cannot statx '{place}'") from error
        numbers = {
            key: getattr(info, f"st_{key}") for key in ("mode", "ino", "dev", "nlink", "uid", "gid", "size")
        }
        times = {key: int(getattr(info, f"st_{key}")) for key in ("atime", "ctime", "mtime")}
        return {**numbers, **times}

    def kind(self, path: str) -> str:
        """What ``file --brief`` says of it, roughly."""
        place = self.locate(path)
        if place.is_dir():
            return "directory"
        try:
            with place.open("rb") as file:
                head = file.read(4096)
        except FileNotFoundError:
            return f"cannot open `{place}' (No such file or directory)"
        except OSError as error:
            raise failed("file", error, said=f"cannot open `{place}'") from error
        return _kind_of(head)

    def checksum(self, path: str) -> dict[str, str]:
        place = self.locate(path)
        try:
            with place.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise failed("sha256sum", error, said=str(place)) from error
        return {"algorithm": "SHA256", "checksum": digest}

    def head(self, path: str, *, count: int, unit: str, skip: bool) -> str:
        return self._text(path, "head", "for reading", lambda data: _first(data, count, unit, skip=skip))

    def tail(self, path: str, *, count: int, unit: str, skip: bool) -> str:
        return self._text(path, "tail", "for reading", lambda data: _last(data, count, unit, skip=skip))

    def view(self, path: str, *, size: int, offset: int) -> str:
        place = self.locate(path)
        blocks, rest = divmod(offset, size)
        try:
            with place.open("rb") as file:
                file.seek(blocks * size)
                data = file.read(2 * size)
        except OSError as error:
            raise failed("dd", error, said=f"failed to open '{place}'") from error
        # The real one reads two blocks with dd, and cuts characters out of what it has decoded, not bytes.
        return self._output(data).decode(errors="replace")[rest : rest + size]

    def _text(self, path: str, tool: str, purpose: str, part: Callable[[BinaryIO], bytes]) -> str:
        place = self.locate(path)
        try:
            with place.open("rb") as file:
                data = part(file)
        except IsADirectoryError as error:
            raise failed(tool, error, said=f"error reading '{place}'") from error
        except OSError as error:
            raise failed(tool, error, said=f"cannot open '{place}' {purpose}") from error
        return self._output(data).decode(errors="replace")

    def _output(self, data: bytes) -> bytes:
        if len(data) >= self.output_limit:
            raise GatewayError(413, "Command output exceeded buffer limit.")
        return data

    def download(self, path: str) -> bytes:
        """The real gateway carries the file as base64 through a buffer, hence the odd limit."""
        place = self.locate(path)
        try:
            with place.open("rb") as file:
                data = file.read(self.output_limit)
        except IsADirectoryError as error:
            raise failed("base64", error, said="read error") from error
        except OSError as error:
            raise failed("base64", error, said=str(place)) from error
        if (len(data) + 2) // 3 * 4 >= self.output_limit:
            raise GatewayError(413, "Command output exceeded buffer limit.")
        return data

    def upload(self, folder: str, name: str, data: bytes) -> None:
        place = self.locate(f"{folder}/{name}")
        try:
            with place.open("wb") as file:
                file.write(data)
        except OSError as error:
            raise failed("bash", error, said=f"line 1: {place}") from error

    def chmod(self, path: str, mode: str) -> dict[str, Any]:
        place = self.locate(path)
        try:
            place.chmod(int(mode, 8))
            return self.line(place)
        except ValueError:
            text = f"Remote process failed with exit status:1 and error message:chmod: invalid mode: '{mode}'"
            raise GatewayError(500, text) from None
        except OSError as error:
            raise failed("chmod", error, said=f"cannot access '{place}'") from error

    def chown(self, path: str, owner: str, group: str) -> dict[str, Any]:
        place = self.locate(path)
        try:
            place.lstat()
            # Whatever the machine would allow (it may be root): on a cluster nobody gives files away.
            if owner and owner not in (self._owner, user_name(os.getuid())):
                raise PermissionError(1, "Operation not permitted")
            if group:
                shutil.chown(place, group=group)
            return self.line(place)
        except LookupError as error:
            text = (
                f"Remote process failed with exit status:1 and error message:chown: invalid group: '{group}'"
            )
            raise GatewayError(500, text) from error
        except OSError as error:
            raise failed("chown", error, said=f"changing ownership of '{place}'") from error

    def mkdir(self, path: str, *, parent: bool) -> dict[str, Any]:
        place = self.locate(path)
        try:
            place.mkdir(parents=parent, exist_ok=parent)
            return self.line(place)
        except OSError as error:
            raise failed("mkdir", error, said=f"cannot create directory '{place}'") from error

    def symlink(self, target: str, link: str) -> dict[str, Any]:
        pointed = self.locate(target)
        place = self.locate(link, follow=False)
        try:
            place.symlink_to(pointed)
            return self.line(place)
        except OSError as error:
            raise failed("ln", error, said=f"failed to create symbolic link '{place}'") from error

    def rm(self, path: str) -> None:
        place = self.locate(path, follow=False)
        try:
            if place.is_dir() and not place.is_symlink():
                self._keep_mounts(place)
                shutil.rmtree(place)
            else:
                place.unlink()
        except OSError as error:
            raise failed("rm", error, said=f"cannot remove '{place}'") from error

    def _keep_mounts(self, place: Path) -> None:
        if any(mount.path.is_relative_to(place) for mount in self.mounts):
            raise PermissionError(13, "Permission denied")

    def compress(
        self, source: str, target: str, *, compression: str, dereference: bool, pattern: str | None
    ) -> None:
        place, archive = self.locate(source, follow=False), self.locate(target)
        if not os.path.lexists(place):
            text = f"tar: {place.name}: Cannot stat: No such file or directory"
            end = "tar: Exiting with failure status due to previous errors"
            raise GatewayError(
                404, f"Remote process failed with exit status:2 and error message:{text}\n{end}"
            )
        try:
            mode = cast("Literal['w']", f"w:{_TAR_MODE[compression]}")
            # As hard as gzip itself tries; Python's own default takes twice as long.
            level: dict[str, Any] = {"compresslevel": 6} if compression == "gzip" else {}
            with tarfile.open(archive, mode, dereference=dereference, **level) as tar:
                self._add(tar, place, dereference, pattern)
        except OSError as error:
            raise failed("tar", error, code=2, said=f"{archive}: Cannot open") from error

    def _add(self, tar: tarfile.TarFile, place: Path, dereference: bool, pattern: str | None) -> None:

        wanted = re.compile(pattern) if pattern else None

        def keep(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
            path = place.parent / member.name
            if dereference and self.mount_of(path.resolve()) is None:
                return None
            if wanted and member.isfile() and not wanted.fullmatch(f"./{member.name}"):
                return None
            return member

        tar.add(place, arcname=place.name, filter=keep)

    def extract(self, source: str, target: str) -> None:
        archive, folder = self.locate(source), self.locate(target)
        if not folder.is_dir():
            text = f"tar: {folder}: Cannot open: No such file or directory"
            end = "tar: Error is not recoverable: exiting now"
            raise GatewayError(
                404, f"Remote process failed with exit status:2 and error message:{text}\n{end}"
            )
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="tar")
        except tarfile.TarError as error:
            text = f"tar: {error}\ntar: Error is not recoverable: exiting now"
            raise GatewayError(
                500, f"Remote process failed with exit status:2 and error message:{text}"
            ) from error
        except OSError as error:
            raise failed("tar", error, code=2, said=f"{archive}: Cannot open") from error


def _names(folder: Path, prefix: str, *, hidden: bool, recursive: bool) -> Iterator[tuple[Path, str]]:
    """What ``ls``, or ``ls -R``, lists and in which order."""
    children = sorted(child for child in folder.iterdir() if hidden or not child.name.startswith("."))
    yield from ((child, prefix + child.name) for child in children)
    for child in children if recursive else ():
        if child.is_dir() and not child.is_symlink():
            yield from _names(child, f"{prefix}{child.name}/", hidden=hidden, recursive=True)


def _escaped(name: str) -> str:
    """A name as ``ls --quoting-style=c`` prints it, with quotes and backslashes already undone."""
    raw = os.fsencode(name)
    return "".join(chr(b) if 32 <= b < 127 else _ESCAPES.get(chr(b), f"\\{b:03o}") for b in raw)


def _kind_of(head: bytes) -> str:
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    if not head or b"\0" in head:
        return "data" if head else "empty"
    return "ASCII text" if head.isascii() else _encoding_of(head)


def _encoding_of(head: bytes) -> str:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        # The last character may be cut by the size of the sample.
        return "Unicode text, UTF-8 text" if error.start > len(head) - 4 else "ISO-8859 text"
    return "Unicode text, UTF-8 text"


def _first(file: BinaryIO, count: int, unit: str, *, skip: bool) -> bytes:
    """``head``: the first ``count``, or all but the last ``count``."""
    if unit == "bytes":
        data = file.read() if skip else file.read(count)
        return data[: max(0, len(data) - count)] if skip else data
    if skip:
        return b"".join(file.readlines()[: -count or None])
    return b"".join(line for _, line in zip(range(count), file, strict=False))


def _last(file: BinaryIO, count: int, unit: str, *, skip: bool) -> bytes:
    """``tail``: the last ``count``, or everything from number ``count`` on."""
    if unit == "bytes":
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, count - 1) if skip else max(0, size - count))
        return file.read()
    lines = file.readlines()
    if skip:
        return b"".join(lines[max(0, count - 1) :])
    return b"".join(lines[-count:] if count else [])
