"""A typed client for FirecREST v2, blocking and asynchronous; knows HTTP and HPC, and nothing of Airflow.

The names below are loaded when they are first used: a DAG file is parsed often, and needs none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import files, jobs, systems, transfers
    from .auth import AccessToken, ClientCredentials
    from .calls import Call
    from .errors import HpcError
    from .retry import RateBudget, RetryPolicy
    from .session import AsyncClient, Client

__all__ = [
    "AccessToken",
    "AsyncClient",
    "Call",
    "Client",
    "ClientCredentials",
    "HpcError",
    "RateBudget",
    "RetryPolicy",
    "files",
    "jobs",
    "systems",
    "transfers",
]

_HOMES = {
    "AccessToken": "auth",
    "AsyncClient": "session",
    "Call": "calls",
    "Client": "session",
    "ClientCredentials": "auth",
    "HpcError": "errors",
    "RateBudget": "retry",
    "RetryPolicy": "retry",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_HOMES.get(name, name)}", __name__)
    return getattr(module, name) if name in _HOMES else module
