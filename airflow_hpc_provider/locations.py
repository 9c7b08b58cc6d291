"""Paths of the file system ``hpc``: which system a path is on, and where there. No input or output."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass

from fsspec.utils import stringify_path

__all__ = ["Location", "connection_of", "locate", "parent", "strip"]

# UPath and urllib leave one slash of an empty host out: ``hpc:/scratch``.
_URL = re.compile(r"hpc:(?://(?:([^/@]*)@)?)?")


@dataclass(frozen=True, slots=True)
class Location:
    """A place on a system.

    :param system: name of the system; None for the default one
    :param path: absolute path there; empty above all systems, where the systems themselves are listed
    """

    system: str | None
    path: str

    def __str__(self) -> str:
        """The path as fsspec knows it; :func:`locate` reads it back."""
        if self.system is None:
            return self.path
        return self.system if self.path == "/" else f"{self.system}{self.path}"

    def below(self, name: str) -> Location:
        """The place of a name, or of names parted by slashes, in this directory."""
        return Location(self.system, f"{self.path.rstrip('/')}/{name}")

    @property
    def directory(self) -> Location:
        """The directory that this is in."""
        return Location(self.system, posixpath.dirname(self.path) or "/")

    @property
    def name(self) -> str:
        """The last name."""
        return posixpath.basename(self.path)


def strip(url: str | os.PathLike[str]) -> str:
    """A path as fsspec knows it, from one or from a URL.

    ``hpc://conn_id@daint/scratch/me`` becomes ``daint/scratch/me``: the first name is the system. Without a
    system, ``hpc:///scratch/me`` becomes ``/scratch/me``: what starts with a slash is on the default system.

    :param url: path or URL
    :return: the path without empty names, ``.`` and a slash at its end
    """
    text = str(stringify_path(url))
    found = _URL.match(text)
    rest = text[found.end() :] if found else text
    names = [name for name in rest.split("/") if name not in ("", ".")]
    return "/" * rest.startswith("/") + "/".join(names)


def locate(path: str) -> Location:
    """The place that a path of :func:`strip` stands for."""
    path = strip(path)
    if not path:
        return Location(None, "")
    system, slash, rest = path.partition("/")
    return Location(system or None, slash + rest or "/")


def connection_of(url: str) -> str | None:
    """The id of the connection in a URL, or None."""
    found = _URL.match(url)
    return (found[1] or None) if found else None


def parent(path: str) -> str:
    """The directory above; a root is its own, and above a system are all systems."""
    head, slash, _ = strip(path).rpartition("/")
    return head or slash
