"""Which files of a tree are meant: ``include`` and ``exclude`` patterns, and globs; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from .errors import InvalidInputError

__all__ = [
    "HIDDEN",
    "Choice",
    "Names",
    "Taking",
    "escape",
    "files_pattern",
    "find_pattern",
    "is_glob",
    "split_glob",
]

#: How the names of our own temporary directories start, on both sides. No tree that moves holds them.
HIDDEN = ".airflow-hpc-"

_WILD = frozenset("*?[")
_PLAIN = re.compile(r"[A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True)
class Choice:
    """What to take of a tree.

    A pattern without a slash is about the last name, at any depth: ``*.nc``. One with a slash is about the
    path below the tree's root: ``/*.nc``, ``logs/2026-*``, ``**/cache/x``. ``*`` and ``?`` match any
    character but a slash, also a leading dot; ``[a-z]`` and ``[!a-z]`` one of some; ``**`` any number of
    directories. A directory stands for all that is below it.

    :param include: what to take; nothing means everything
    :param exclude: what to leave out of that
    :param ours: our own temporary directories are meant, too
    :raises InvalidInputError: a pattern cannot be understood
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    ours: bool = False
    _take: re.Pattern[str] | None = field(init=False, repr=False, compare=False)
    _leave: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compile."""
        taken = _compiled("include", self.include) if self.include else None
        object.__setattr__(self, "_take", taken)
        left = self.exclude if self.ours else (*self.exclude, f"{HIDDEN}*")
        object.__setattr__(self, "_leave", _compiled("exclude", left) if left else None)

    @classmethod
    def of(
        cls, include: Iterable[str] | str, exclude: Iterable[str] | str = (), *, ours: bool = False
    ) -> Choice:
        """From what a user gives: one pattern, or several."""
        one, other = ((given,) if isinstance(given, str) else tuple(given) for given in (include, exclude))
        return cls(one, other, ours)

    @property
    def everything(self) -> bool:
        """Nothing is left out."""
        return not (self.include or self.exclude)

    def takes(self, name: str) -> bool:
        """Whether something is meant.

        :param name: path below the tree's root, without a slash at either end
        """
        return not self.leaves(name) and (self._take is None or self._take.fullmatch(name) is not None)

    def leaves(self, name: str) -> bool:
        """Whether something is left out with all that is below it."""
        return self._leave is not None and self._leave.fullmatch(name) is not None


class Taking(Protocol):
    """Tells what is meant of a tree."""

    def takes(self, name: str) -> bool:
        """Whether something is meant, by its path below the tree's root."""


class Names:
    """Just these names; of thousands it is quicker than patterns.

    :param names: paths below the tree's root
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)

    def takes(self, name: str) -> bool:
        """Whether it is one of them."""
        return name in self._names


def is_glob(text: str) -> bool:
    """Whether it holds wildcards."""
    return not _WILD.isdisjoint(text)


def escape(name: str) -> str:
    """A pattern that means just this name."""
    return re.sub(r"[*?\[]", r"[\g<0>]", name)


def split_glob(path: str) -> tuple[str, str | None]:
    """Cut a path before its first wildcard.

    :return: the directory, and the pattern of what is meant below it; None without wildcards
    """
    names = path.split("/")
    at = next((index for index, name in enumerate(names) if is_glob(name)), None)
    if at is None:
        return path, None
    base = "/".join(names[:at])
    return base or ("/" if path.startswith("/") else "."), "/" + "/".join(names[at:])


def find_pattern(directory: str, pattern: str) -> str:
    """A regular expression for ``find -regex`` that matches all that a pattern means, and perhaps more.

    It has nothing in it that two shells would touch, or that dialects of regular expressions read in
    different ways. What is too much is left out when the archive is unpacked.

    :param directory: name of the tree's root, which the paths that ``find`` sees start with
    :param pattern: pattern of a :class:`Choice`
    """
    above = "" if "/" in pattern.rstrip("/") else ".*"
    names = [name for name in pattern.split("/") if name not in ("", ".")]
    wanted = "/".join(".*" if name == "**" else _loosely(name) for name in names)
    # Any number of directories may be none.
    wanted = wanted.replace(".*/", ".*")
    return f"[.]/{_loosely(directory)}/{above}{wanted}.*"


def files_pattern(directory: str, start: str, end: str) -> str:
    """The same for files that lie in a directory itself, and whose names start and end in some way.

    :param directory: name of that directory
    :param start: how all names start, as far as that is the same
    :param end: how all names end
    """
    return f"[.]/{_loosely(directory)}/{_loosely(start)}[^/]*{_loosely(end)}"


def _loosely(name: str) -> str:
    """A name, where all that is not plain may be anything."""
    text = "".join(
        "[.]" if part == "." else part if _PLAIN.fullmatch(part) else "[^/]*" for part in _parts(name)
    )
    return re.sub(r"(?:\[\^/\]\*)+", "[^/]*", text)


def _compiled(field_name: str, patterns: Iterable[str]) -> re.Pattern[str]:
    found = []
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern.strip("/"):
            raise InvalidInputError(field_name, f"{pattern!r} is no pattern of a name.")
        try:
            found.append(re.compile(_regex(pattern), re.DOTALL).pattern)
        except re.error as error:
            raise InvalidInputError(field_name, f"{pattern!r} cannot be understood: {error}.") from error
    return re.compile(f"(?:{'|'.join(found)})(?:/.*)?", re.DOTALL)


def _regex(pattern: str) -> str:
    if "/" not in pattern.rstrip("/"):
        return "(?:.*/)?" + "".join(map(_exactly, _parts(pattern.rstrip("/"))))
    names = [name for name in pattern.split("/") if name not in ("", ".")]
    text = ""
    for index, name in enumerate(names):
        last = index == len(names) - 1
        if name == "**":
            text += ".*" if last else "(?:[^/]+/)*"
        else:
            text += "".join(map(_exactly, _parts(name))) + ("" if last else "/")
    return text


def _parts(text: str) -> list[str]:
    """Cut into characters, with ``[...]`` whole; a bracket that is never closed is a character."""
    return re.findall(r"\[!?\]?[^\]/]*\]|.", text, re.DOTALL)


def _exactly(part: str) -> str:
    if part == "*":
        return "[^/]*"
    if part == "?":
        return "[^/]"
    if len(part) == 1:
        return re.escape(part)
    negated, inner = part[1] == "!", part[2:-1] if part[1] == "!" else part[1:-1]
    inner = re.sub(r"[^\w-]", r"\\\g<0>", inner, flags=re.ASCII)
    return f"(?!/)[{'^' if negated else ''}{inner}]"
