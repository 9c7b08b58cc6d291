"""The gateway's errors as the ``OSError`` that a program expects of a file system."""

from __future__ import annotations

import errno
import re

from .client.errors import (
    AccessDeniedError,
    ApiError,
    BadRequestError,
    HpcError,
    InvalidInputError,
    NotFoundError,
    TokenError,
    TooLargeError,
    UnauthorizedError,
    UnreachableError,
    UnsupportedError,
)

__all__ = ["os_error"]

# How the C library calls them, which is what the gateway passes on of the shell's commands.
_REASONS = {
    "directory not empty": errno.ENOTEMPTY,
    "disk quota exceeded": errno.EDQUOT,
    "does not match any of the defined filesystem paths": errno.EACCES,
    "file exists": errno.EEXIST,
    "file name too long": errno.ENAMETOOLONG,
    "is a directory": errno.EISDIR,
    "no such file or directory": errno.ENOENT,
    "no space left on device": errno.ENOSPC,
    "not a directory": errno.ENOTDIR,
    "operation not permitted": errno.EPERM,
    "permission denied": errno.EACCES,
    "read-only file system": errno.EROFS,
    "too many levels of symbolic links": errno.ELOOP,
}
# After a colon or a closing bracket, so that a name in the text is not taken for a reason.
_REASON = re.compile(rf"[:)]\s*({'|'.join(_REASONS)})", re.IGNORECASE)
_NUMBERS: tuple[tuple[type[HpcError], int], ...] = (
    (InvalidInputError, errno.EINVAL),
    (BadRequestError, errno.EINVAL),
    (AccessDeniedError, errno.EACCES),
    (TooLargeError, errno.EFBIG),
    (UnsupportedError, errno.ENOTSUP),
    # No PermissionError: nothing is known about the file, and a walk must not step over it.
    (TokenError, errno.ECONNREFUSED),
    (UnauthorizedError, errno.ECONNREFUSED),
    (UnreachableError, errno.ECONNRESET),
)


def os_error(error: HpcError, path: str) -> OSError:
    """The ``OSError`` that means the same; Python gives it the class of its number.

    :param error: what the client raised
    :param path: path that was asked for
    :return: ``FileNotFoundError``, ``PermissionError``, ``ConnectionError``...; with the client's own words
    """
    return OSError(_number(error), str(error), path)


def _number(error: HpcError) -> int:
    if isinstance(error, ApiError):
        if reasons := _REASON.findall(error.message):
            return _REASONS[reasons[-1].lower()]
        if isinstance(error, NotFoundError):
            # A misspelt system says nothing about the file.
            return errno.ENXIO if "system" in error.message.lower() else errno.ENOENT
    return next((number for kind, number in _NUMBERS if isinstance(error, kind)), errno.EIO)
