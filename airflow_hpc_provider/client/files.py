"""Files on a system, one request each: listing, looking, changing, and moving up to a few MiB.

All of these run as the user's own shell command on the system, ended by the gateway after five seconds (408),
and all take absolute paths only. What is larger or takes longer is a job: see ``transfers``.
"""

from __future__ import annotations

import re
import stat as modes
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, get_args

import httpx

from .calls import Call, JSONObject, nothing, plain, reading
from .calls import path as endpoint
from .errors import ApiError, InvalidInputError, NotFoundError, UnavailableError
from .paths import file_name, remote_path

__all__ = [
    "Compression",
    "Entry",
    "EntryKind",
    "Stat",
    "change_mode",
    "change_owner",
    "check_pattern",
    "checksum",
    "compress",
    "download",
    "extract",
    "file_type",
    "head",
    "link",
    "listing",
    "make_directory",
    "remove",
    "stat",
    "tail",
    "upload",
    "view",
]

Compression = Literal["none", "gzip", "bzip2", "xz"]


class EntryKind(Enum):
    """Kind of a directory entry, by the letter that ``ls -l`` gives it."""

    FILE = "-"
    DIRECTORY = "d"
    LINK = "l"
    PIPE = "p"
    SOCKET = "s"
    CHARACTER_DEVICE = "c"
    BLOCK_DEVICE = "b"
    UNKNOWN = "?"

    @classmethod
    def _missing_(cls, _: object) -> EntryKind:
        return cls.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A directory entry, as ``ls -l`` sees it.

    :param name: name; below the listed directory in a recursive listing (``a/b``); the whole path if the
        listed path is a file
    :param kind: what it is
    :param size: size in bytes
    :param user: owner's name or, in a numeric listing, uid
    :param group: group's name or gid
    :param permissions: ``rwxr-x---``
    :param modified: last modification, ``2026-11-22T04:17:49``, in the system's time zone, which is not told
    :param link_target: where a symbolic link leads
    """

    name: str
    kind: EntryKind
    size: int
    user: str
    group: str
    permissions: str
    modified: str
    link_target: str | None = None

    @property
    def is_file(self) -> bool:
        """It is a regular file."""
        return self.kind is EntryKind.FILE

    @property
    def is_directory(self) -> bool:
        """It is a directory."""
        return self.kind is EntryKind.DIRECTORY


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """Status of a file or directory.

    :param mode: type and permission bits, as in ``os.stat_result.st_mode``
    :param size: size in bytes
    :param uid: numeric owner
    :param gid: numeric group
    :param links: number of hard links
    :param inode: inode number
    :param device: number of the device it lives on
    :param accessed: last access (seconds since 1970)
    :param modified: last modification of the content
    :param changed: last change of content or status
    """

    mode: int
    size: int
    uid: int
    gid: int
    links: int
    inode: int
    device: int
    accessed: int
    modified: int
    changed: int

    @property
    def is_file(self) -> bool:
        """It is a regular file."""
        return modes.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        """It is a directory."""
        return modes.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """It is a symbolic link, and was not followed."""
        return modes.S_ISLNK(self.mode)


def listing(
    system: str,
    path: str,
    *,
    hidden: bool = False,
    numeric: bool = False,
    recursive: bool = False,
    dereference: bool = False,
) -> Call[tuple[Entry, ...]]:
    """List a directory, or one file (``GET /filesystem/{system}/ops/ls``).

    :param system: name of the system
    :param path: absolute path
    :param hidden: also names that start with a dot
    :param numeric: uid and gid instead of names
    :param recursive: all directories below, too
    :param dereference: of symbolic links, show what they lead to
    :return: entries in the gateway's order
    :raises InvalidInputError: the path is not absolute or cannot travel safely
    """
    path = remote_path(path, "path")
    doing = f"list {path}"
    return Call(
        doing=doing,
        method="GET",
        path=_ops(system, "ls"),
        params={
            "path": path,
            "showHidden": _flag(hidden),
            "numericUid": _flag(numeric),
            "recursive": _flag(recursive),
            "dereference": _flag(dereference),
        },
        read=reading(doing, lambda body: tuple(_entry(raw) for raw in body["output"] or ())),
        replayable=True,
        system=system,
    )


def stat(system: str, path: str, *, dereference: bool = False) -> Call[Stat]:
    """Read size, times, owner and mode (``GET /filesystem/{system}/ops/stat``).

    :param system: name of the system
    :param path: absolute path
    :param dereference: follow a symbolic link
    :raises InvalidInputError: the path is not absolute or cannot travel safely
    """
    path = remote_path(path, "path")
    doing = f"look at {path}"
    return Call(
        doing=doing,
        method="GET",
        path=_ops(system, "stat"),
        params={"path": path, "dereference": _flag(dereference)},
        read=reading(doing, lambda body: _stat(body["output"])),
        replayable=True,
        system=system,
    )


def file_type(system: str, path: str) -> Call[str]:
    """Guess what a file holds, in the words of ``file`` (``GET /filesystem/{system}/ops/file``).

    :param system: name of the system
    :param path: absolute path
    :return: ``ASCII text``, ``directory``, ...
    :raises InvalidInputError: the path is not absolute or cannot travel safely
    """
    return _text("tell the type of", system, "file", remote_path(path, "path"))


def head(system: str, path: str, *, lines: int | None = None, size: int | None = None) -> Call[str]:
    """Read the beginning of a text file (``GET /filesystem/{system}/ops/head``).

    :param system: name of the system
    :param path: absolute path
    :param lines: number of lines; 10 if neither is given
    :param size: number of bytes, instead of lines
    :raises InvalidInputError: both are given or one is below 1, or the path is not absolute or cannot
        travel safely
    """
    return _text("read the head of", system, "head", remote_path(path, "path"), **_amount(lines, size))


def tail(system: str, path: str, *, lines: int | None = None, size: int | None = None) -> Call[str]:
    """Read the end of a text file (``GET /filesystem/{system}/ops/tail``).

    :param system: name of the system
    :param path: absolute path
    :param lines: number of lines; 10 if neither is given
    :param size: number of bytes, instead of lines
    :raises InvalidInputError: both are given or one is below 1, or the path is not absolute or cannot
        travel safely
    """
    return _text("read the tail of", system, "tail", remote_path(path, "path"), **_amount(lines, size))


def view(system: str, path: str, *, offset: int = 0, size: int | None = None) -> Call[str]:
    """Read a part of a text file (``GET /filesystem/{system}/ops/view``).

    :param system: name of the system
    :param path: absolute path
    :param offset: bytes to skip
    :param size: bytes to read; the gateway's limit for direct transfers if not given, and 413 if the file
        is larger than that
    :raises InvalidInputError: a number is too small, or the path is not absolute or cannot travel safely
    """
    if offset < 0:
        raise InvalidInputError("offset", f"must be 0 or more bytes, not {offset}.")
    amount = {} if size is None else {"size": _at_least_one("size", size)}
    return _text("read", system, "view", remote_path(path, "path"), offset=offset, **amount)


def checksum(system: str, path: str) -> Call[str]:
    """Compute the SHA-256 of a file on the system (``GET /filesystem/{system}/ops/checksum``).

    Files of some GiB take longer than the gateway waits: 408, which is no fault of the file.

    :param system: name of the system
    :param path: absolute path
    :return: 64 hexadecimal digits, lower case
    :raises InvalidInputError: the path is not absolute or cannot travel safely
    """
    path = remote_path(path, "path")
    doing = f"compute the checksum of {path}"

    def build(body: JSONObject) -> str:
        # sha256sum puts a backslash before the sum of a file whose name it has to escape.
        found = re.fullmatch(r"\\?([0-9a-f]{64})", body["output"]["checksum"].lower())
        if not found:
            raise ValueError("no SHA-256")
        return found[1]

    return Call(
        doing=doing,
        method="GET",
        path=_ops(system, "checksum"),
        params={"path": path},
        read=reading(doing, build),
        replayable=True,
        system=system,
    )


def make_directory(system: str, path: str, *, parents: bool = False) -> Call[Entry | None]:
    """Make a directory (``POST /filesystem/{system}/ops/mkdir``).

    :param system: name of the system
    :param path: absolute path
    :param parents: also make the directories above, and let an existing one be
    :return: the directory, if the gateway shows it
    :raises InvalidInputError: the path is not absolute or cannot travel safely
    """
    path = remote_path(path, "path")
    return _change(
        f"make directory {path}",
        "POST",
        system,
        "mkdir",
        {"path": path, "parent": parents},
        replayable=parents,  # without parents a second try finds its own directory and calls it an error
    )


def remove(system: str, path: str, *, missing_ok: bool = False) -> Call[None]:
    """Remove a file, or a directory with all that is in it (``DELETE /filesystem/{system}/ops/rm``).

    :param system: name of the system
    :param path: absolute path
    :param missing_ok: a path that is not there is as good as removed; then the call may be repeated
    :raises InvalidInputError: the path is not absolute or cannot travel safely
    """
    path = remote_path(path, "path")

    def gone(error: ApiError) -> None:
        # "System not found" is a 404 too, and nothing is removed then.
        if not (missing_ok and isinstance(error, NotFoundError) and "no such file" in error.message.lower()):
            raise error

    return Call(
        doing=f"remove {path}",
        method="DELETE",
        path=_ops(system, "rm"),
        params={"path": path},
        read=nothing,
        refused=gone,
        replayable=missing_ok,
        system=system,
    )


def change_mode(system: str, path: str, mode: int | str) -> Call[Entry | None]:
    """Change the permissions (``PUT /filesystem/{system}/ops/chmod``).

    :param system: name of the system
    :param path: absolute path
    :param mode: permission bits (``0o640``), or their octal digits as text (``"640"``)
    :return: the file, if the gateway shows it
    :raises InvalidInputError: the mode is no permission bits, or the path is not absolute or cannot travel
        safely
    """
    path = remote_path(path, "path")
    digits = f"{mode:o}" if isinstance(mode, int) else mode
    if not re.fullmatch(r"[0-7]{1,4}", digits):
        raise InvalidInputError("mode", f"{mode!r} is not one to four octal digits such as '640' or 0o640.")
    return _change(
        f"change the mode of {path}", "PUT", system, "chmod", {"path": path, "mode": digits}, replayable=True
    )


def change_owner(system: str, path: str, *, owner: str = "", group: str = "") -> Call[Entry | None]:
    """Change owner or group (``PUT /filesystem/{system}/ops/chown``).

    :param system: name of the system
    :param path: absolute path
    :param owner: name of the new owner; empty to leave it
    :param group: name of the new group; empty to leave it
    :return: the file, if the gateway shows it
    :raises InvalidInputError: neither is given, a name is none of Unix, or the path is not absolute or
        cannot travel safely
    """
    path = remote_path(path, "path")
    if not (owner or group):
        raise InvalidInputError("owner", "give a new owner, a new group or both.")
    for field, name in (("owner", owner), ("group", group)):
        if name and not re.fullmatch(r"[\w.@][\w.@-]*", name, re.ASCII):
            raise InvalidInputError(field, f"{name!r} is no name of a Unix user or group.")
    return _change(
        f"change the owner of {path}",
        "PUT",
        system,
        "chown",
        {"path": path, "owner": owner, "group": group},
        replayable=True,
    )


def link(system: str, path: str, link_path: str) -> Call[Entry | None]:
    """Make a symbolic link (``POST /filesystem/{system}/ops/symlink``).

    :param system: name of the system
    :param path: absolute path that the link leads to
    :param link_path: absolute path of the link
    :return: the link, if the gateway shows it
    :raises InvalidInputError: a path is not absolute or cannot travel safely
    """
    path, link_path = remote_path(path, "path"), remote_path(link_path, "link_path")
    return _change(
        f"link {link_path} to {path}",
        "POST",
        system,
        "symlink",
        {"path": path, "linkPath": link_path},
        replayable=False,  # a second try finds its own link and calls it an error
    )


def compress(
    system: str,
    source: str,
    target: str,
    *,
    pattern: str | None = None,
    dereference: bool = False,
    compression: Compression = "gzip",
) -> Call[None]:
    r"""Pack a file or directory into a tar archive (``POST /filesystem/{system}/ops/compress``).

    Not repeated after a time-out: the first try may still be writing. More than five seconds of work are for
    a transfer job.

    :param system: name of the system
    :param source: absolute path to pack; names in the archive start with its last part
    :param target: absolute path of the archive; overwritten
    :param pattern: pack only files whose path matches this regular expression of ``find -regex``. It sees
        whole paths from the directory that ``source`` lies in, neighbours too: ``\./run/.*\.nc``
    :param dereference: pack what symbolic links lead to
    :param compression: ``none``, ``gzip``, ``bzip2`` or ``xz``; with a pattern ``gzip`` only
    :raises InvalidInputError: a path, the pattern or the compression cannot travel safely
    """
    # With a pattern the gateway changes into the directory of ``source`` without quoting it, and runs the
    # pattern through two shells.
    source = remote_path(source, "source", unquoted=pattern is not None)
    target = remote_path(target, "target")
    body: JSONObject = {
        "path": source,
        "targetPath": target,
        "dereference": dereference,
        "compression": _known(compression),
    }
    if pattern is not None:
        check_pattern(pattern)
        if compression != "gzip":
            raise InvalidInputError("compression", "with a pattern the gateway packs with gzip only.")
        body["matchPattern"] = pattern
    return Call(
        doing=f"compress {source} to {target}",
        method="POST",
        path=_ops(system, "compress"),
        json=body,
        read=nothing,
        replayable=False,
        system=system,
    )


def extract(system: str, source: str, target: str, *, compression: Compression = "gzip") -> Call[None]:
    """Unpack a tar archive (``POST /filesystem/{system}/ops/extract``).

    Not repeated after a time-out: the first try may still be writing. More than five seconds of work are for
    a transfer job.

    :param system: name of the system
    :param source: absolute path of the archive
    :param target: absolute path of an existing directory
    :param compression: as the archive was packed
    :raises InvalidInputError: a path cannot travel safely, or the compression is unknown
    """
    source, target = remote_path(source, "source"), remote_path(target, "target")
    return Call(
        doing=f"extract {source} to {target}",
        method="POST",
        path=_ops(system, "extract"),
        json={"path": source, "targetPath": target, "compression": _known(compression)},
        read=nothing,
        replayable=False,
        system=system,
    )


def upload(system: str, directory: str, name: str, content: bytes) -> Call[None]:
    """Write a small file; an existing one is overwritten (``POST /filesystem/{system}/ops/upload``).

    :param system: name of the system
    :param directory: absolute path of an existing directory
    :param name: name of the file in it
    :param content: its bytes, at most ``System.max_direct_bytes``
    :raises InvalidInputError: the directory is not absolute, or it or the name cannot travel safely
    """
    directory, name = remote_path(directory, "directory"), file_name(name, "name")

    def created(error: ApiError) -> None:
        # Of an empty upload nothing reaches the standard input of the command that writes the file, and it
        # waits until FirecREST ends it: 408, but the empty file is there.
        if content or not (isinstance(error, UnavailableError) and error.status == 408):
            raise error

    return Call(
        doing=f"upload {name} to {directory}",
        method="POST",
        path=_ops(system, "upload"),
        params={"path": directory},
        file=(name, content),
        read=nothing,
        refused=created,
        replayable=True,
        system=system,
    )


def download(system: str, path: str) -> Call[bytes]:
    """Read a small file whole (``GET /filesystem/{system}/ops/download``).

    :param system: name of the system
    :param path: absolute path of a file of at most ``System.max_direct_download_bytes``; a larger one is
        answered 413, 408 or 500
    :return: its bytes
    :raises InvalidInputError: the path is not absolute or cannot travel safely
    """
    path = remote_path(path, "path")

    def content(response: httpx.Response) -> bytes:
        return response.content

    return Call(
        doing=f"download {path}",
        method="GET",
        path=_ops(system, "download"),
        params={"path": path},
        read=content,
        replayable=True,
        system=system,
    )


def check_pattern(pattern: str) -> str:
    """A regular expression for ``compress`` that the gateway's two shells leave as it is.

    :raises InvalidInputError: it cannot travel safely
    """
    if not pattern or set(pattern) & set("'\"$`\n\r\0"):
        raise InvalidInputError("pattern", "must not be empty and not hold quotes, $, ` or line breaks.")
    return pattern


def _ops(system: str, operation: str) -> str:
    return endpoint("filesystem", system, "ops", operation)


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _at_least_one(field: str, value: int) -> int:
    if value < 1:
        raise InvalidInputError(field, f"must be 1 or more, not {value}.")
    return value


def _amount(lines: int | None, size: int | None) -> dict[str, int]:
    """Query of head and tail, which take one of the two, and 0 for neither."""
    if lines is not None and size is not None:
        raise InvalidInputError("lines", "give lines or size, not both.")
    if size is not None:
        return {"bytes": _at_least_one("size", size)}
    return {"lines": _at_least_one("lines", 10 if lines is None else lines)}


def _known(compression: str) -> str:
    if compression not in get_args(Compression):
        raise InvalidInputError(
            "compression", f"{compression!r} is none of {', '.join(get_args(Compression))}."
        )
    return compression


def _text(verb: str, system: str, operation: str, path: str, **params: int) -> Call[str]:
    """A call that answers text, bare or with its position around it."""
    doing = f"{verb} {path}"

    def build(body: JSONObject) -> str:
        output = body["output"]
        text = output["content"] if isinstance(output, dict) else output
        if not isinstance(text, str | None):
            raise TypeError("no text")
        return text or ""

    return Call(
        doing=doing,
        method="GET",
        path=_ops(system, operation),
        params={"path": path, **params},
        read=reading(doing, build),
        replayable=True,
        system=system,
    )


def _change(
    doing: str, method: str, system: str, operation: str, body: JSONObject, *, replayable: bool
) -> Call[Entry | None]:
    """A call that changes one file and answers how it looks now."""

    def build(answer: JSONObject) -> Entry | None:
        return _entry(answer["output"]) if answer.get("output") else None

    return Call(
        doing=doing,
        method=method,
        path=_ops(system, operation),
        json=body,
        read=reading(doing, build),
        replayable=replayable,
        system=system,
    )


def _entry(raw: Any) -> Entry:
    item = plain(raw)
    target = item.get("linktarget")
    return Entry(
        name=_unescaped(item["name"]),
        kind=EntryKind(item["type"]),
        size=int(item["size"]),
        user=item["user"],
        group=item["group"],
        permissions=item["permissions"],
        modified=item["lastmodified"],
        link_target=None if target is None else _unescaped(target),
    )


def _stat(raw: Any) -> Stat:
    item = plain(raw)
    return Stat(
        mode=int(item["mode"]),
        size=int(item["size"]),
        uid=int(item["uid"]),
        gid=int(item["gid"]),
        links=int(item["nlink"]),
        inode=int(item["ino"]),
        device=int(item["dev"]),
        accessed=int(item["atime"]),
        modified=int(item["mtime"]),
        changed=int(item["ctime"]),
    )


_ESCAPES = {"a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13}


def _unescaped(name: str) -> str:
    r"""A name without the C escapes of ``ls --quoting-style=c``: ``\303\251`` is ``é``.

    FirecREST has already undone those of ``"`` and of the backslash itself. So a backslash followed by what
    looks like an escape is read as one, although the file may really be called so; nothing tells the two
    apart. A name that is no UTF-8 stays as the gateway writes it.
    """
    if "\\" not in name:
        return name
    parts = re.split(r"\\([0-3][0-7]{2}|[abfnrtv])", name)
    raw = b"".join(
        bytes([_ESCAPES[part] if part in _ESCAPES else int(part, 8)]) if index % 2 else part.encode()
        for index, part in enumerate(parts)
    )
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return name
