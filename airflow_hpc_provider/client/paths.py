"""Which remote paths may be sent: the gateway makes shell commands of them, so one place decides."""

from __future__ import annotations

import unicodedata

from .errors import InvalidInputError

__all__ = ["file_name", "is_inside", "remote_path"]

# Limits of Linux (NAME_MAX, and PATH_MAX without its final NUL), in bytes.
_NAME_BYTES = 255
_PATH_BYTES = 4095

# FirecREST puts paths between single quotes in most commands, between double quotes in the script of a staged
# upload, and escapes for HTML there. Each of these characters ends the quotes, runs a command or arrives
# changed.
_UNSAFE = {
    "'": "a single quote",
    '"': "a double quote",
    "$": "a dollar sign",
    "`": "a backtick",
    "\\": "a backslash",
    ";": "a semicolon",
    "&": "an ampersand",
    "|": "a vertical bar",
    "<": "a less-than sign",
    ">": "a greater-than sign",
    "\n": "a line break",
    "\t": "a tab",
}
# The script of a staged download has its source without any quotes.
_UNSAFE_UNQUOTED = {
    " ": "a blank",
    "*": "an asterisk",
    "?": "a question mark",
    "[": "an opening bracket",
    "]": "a closing bracket",
    "(": "an opening parenthesis",
    ")": "a closing parenthesis",
    "{": "an opening brace",
    "}": "a closing brace",
    "!": "an exclamation mark",
    "#": "a hash sign",
    "~": "a tilde",
}
_UNSAFE_CATEGORIES = {
    "Cc": "the control character",
    "Cs": "the lone surrogate",
    "Zl": "the line separator",
    "Zp": "the paragraph separator",
}


def remote_path(value: object, field: str, *, base: str | None = None, unquoted: bool = False) -> str:
    """The normalised absolute POSIX path that may be sent to the gateway.

    FirecREST does not escape paths: a single quote in one ends the gateway's own quotes, and what follows
    runs as a command of the user on the cluster. So a path that holds anything but plain characters is
    refused.

    :param value: text from a user or from data
    :param field: name of the parameter, for the error text
    :param base: absolute directory that a relative path is below; without it relative paths are refused
    :param unquoted: the gateway will not quote it at all (source of a staged download, path of a remote
        script), so blanks and the shell's wildcards are refused too
    :return: the path without ``//``, ``/./`` and a slash at its end
    :raises InvalidInputError: it is no text, empty, relative without a base, too long, has a ``..``, a name
        that starts with ``-``, or a character that the gateway would not pass on unchanged
    """
    text = _text(value, field)
    if not text.startswith("/"):
        if text.startswith("~"):
            raise InvalidInputError(
                field, f"{_shown(text)}: '~' is not expanded. Write the home directory out."
            )
        if base is None:
            raise InvalidInputError(
                field, f"{_shown(text)} is relative. Give an absolute path: it starts with '/'."
            )
        text = f"{remote_path(base, f'base directory of {field}', unquoted=unquoted)}/{text}"
    names = [name for name in text.split("/") if name not in ("", ".")]
    for name in names:
        _check_name(name, text, field, unquoted=unquoted)
    path = "/" + "/".join(names)
    if (size := len(path.encode())) > _PATH_BYTES:
        raise InvalidInputError(field, f"{_shown(text)} has {size} bytes; a path ends at {_PATH_BYTES}.")
    return path


def file_name(value: object, field: str, *, unquoted: bool = False) -> str:
    """One name in a path, by the rules of :func:`remote_path`.

    :param value: text from a user or from data
    :param field: name of the parameter, for the error text
    :param unquoted: the gateway will not quote it, see :func:`remote_path`
    :raises InvalidInputError: it is no name of a file, or none that the gateway would pass on unchanged
    """
    text = _text(value, field)
    if "/" in text:
        raise InvalidInputError(field, f"{_shown(text)} holds a '/'. Give one name, without its directory.")
    if text == ".":
        raise InvalidInputError(field, "'.' is the directory itself. Give the name of something in it.")
    _check_name(text, text, field, unquoted=unquoted)
    return text


def is_inside(path: str, directory: str) -> bool:
    """Whether a path is a directory or something below it, as far as names tell: links are not followed.

    :param path: absolute path; one that climbs (``..``) is never inside
    :param directory: absolute path
    """
    if not path.startswith("/") or not directory.startswith("/"):
        return False
    names, above = ([name for name in text.split("/") if name not in ("", ".")] for text in (path, directory))
    return ".." not in names and ".." not in above and names[: len(above)] == above


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidInputError(field, f"is {type(value).__name__}. Give the path as text.")
    if not value:
        raise InvalidInputError(field, "is empty. Give a path.")
    return value


def _check_name(name: str, text: str, field: str, *, unquoted: bool) -> None:
    if name == "..":
        raise InvalidInputError(field, f"{_shown(text)} climbs with '..'. Write the path without it.")
    for character in name:
        if problem := _problem(character, unquoted=unquoted):
            more = " and no variable is expanded there" if character == "$" else ""
            raise InvalidInputError(
                field,
                f"{_shown(text)} holds {problem}. The gateway cannot pass that to the cluster's shell safely"
                f"{more}: rename it, or put it into an archive.",
            )
    # The gateway's tar takes such a name for an option, and some of tar's options run commands.
    if name.startswith("-"):
        raise InvalidInputError(
            field,
            f"{_shown(text)}: the name {_shown(name)} starts with '-' and would be taken for an option: "
            f"rename it, or put it into an archive.",
        )
    if (size := len(name.encode())) > _NAME_BYTES:
        raise InvalidInputError(
            field, f"the name {_shown(name)} has {size} bytes; a name ends at {_NAME_BYTES}."
        )


def _problem(character: str, *, unquoted: bool) -> str | None:
    """What is wrong with a character, in words, or None."""
    if name := _UNSAFE.get(character) or (_UNSAFE_UNQUOTED.get(character) if unquoted else None):
        return f"{name} ({character!r})"
    category = unicodedata.category(character)
    if unquoted and category == "Zs":
        return f"the blank U+{ord(character):04X}"
    if kind := _UNSAFE_CATEGORIES.get(category):
        return f"{kind} U+{ord(character):04X}"
    return None


def _shown(text: str) -> str:
    """A text as an error shows it: escaped, and of bearable length."""
    return repr(text) if len(text) <= 120 else f"{text[:100]!r}... ({len(text)} characters)"
