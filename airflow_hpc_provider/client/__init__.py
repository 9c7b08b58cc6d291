"""A typed client for FirecREST v2, blocking and asynchronous; knows HTTP and HPC, and nothing of Airflow."""

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
