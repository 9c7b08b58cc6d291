"""The calls of FirecREST v2 by name: one table for the routes, the faults and the request log."""

import re

__all__ = [
    "OPERATIONS",
    "STORAGE_OPERATIONS",
    "TOKEN_PATH",
    "VERSION",
    "operation_of",
    "storage_operation_of",
]

VERSION = "2.5.7"
TOKEN_PATH = "/auth/realms/devgateway/protocol/openid-connect/token"  # noqa: S105 - a path, not a secret

_OPS = {
    "chmod": "PUT",
    "chown": "PUT",
    "ls": "GET",
    "head": "GET",
    "view": "GET",
    "tail": "GET",
    "checksum": "GET",
    "file": "GET",
    "stat": "GET",
    "rm": "DELETE",
    "mkdir": "POST",
    "symlink": "POST",
    "download": "GET",
    "upload": "POST",
    "compress": "POST",
    "extract": "POST",
}
_TRANSFERS = {
    "upload": "POST",
    "download": "POST",
    "mv": "POST",
    "cp": "POST",
    "rm": "DELETE",
    "compress": "POST",
    "extract": "POST",
}

OPERATIONS: dict[str, tuple[str, str]] = {
    "token": ("POST", TOKEN_PATH),
    "systems": ("GET", "/status/systems"),
    "liveness": ("GET", "/status/liveness/"),
    "nodes": ("GET", "/status/{system}/nodes"),
    "reservations": ("GET", "/status/{system}/reservations"),
    "partitions": ("GET", "/status/{system}/partitions"),
    "userinfo": ("GET", "/status/{system}/userinfo"),
    "submit": ("POST", "/compute/{system}/jobs"),
    "jobs": ("GET", "/compute/{system}/jobs"),
    "job": ("GET", "/compute/{system}/jobs/{job_id}"),
    "cancel": ("DELETE", "/compute/{system}/jobs/{job_id}"),
    "metadata": ("GET", "/compute/{system}/jobs/{job_id}/metadata"),
    "attach": ("PUT", "/compute/{system}/jobs/{job_id}/attach"),
    **{name: (method, f"/filesystem/{{system}}/ops/{name}") for name, method in _OPS.items()},
    **{f"transfer_{n}": (m, f"/filesystem/{{system}}/transfer/{n}") for n, m in _TRANSFERS.items()},
}
STORAGE_OPERATIONS = {
    "PUT": "put_part",
    "POST": "complete_object",
    "GET": "get_object",
    "HEAD": "head_object",
}

_PATTERNS = {
    name: (method, re.compile(re.sub(r"\{\w+\}", "[^/]+", template)))
    for name, (method, template) in OPERATIONS.items()
}


def operation_of(method: str, path: str) -> str:
    """The name of the call behind a method and a path, or the empty string."""
    for name, (wanted, pattern) in _PATTERNS.items():
        if method == wanted and pattern.fullmatch(path):
            return name
    return ""


def storage_operation_of(method: str, _path: str) -> str:
    return STORAGE_OPERATIONS.get(method, "")
