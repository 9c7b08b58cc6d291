"""``HpcHook``: an authenticated client for the gateway that an Airflow connection names."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from airflow_hpc_provider.client.errors import (
    AccessDeniedError,
    HpcError,
    InvalidInputError,
    UnauthorizedError,
)
from airflow_hpc_provider.client.redact import redact
from airflow_hpc_provider.client.retry import RateBudget, RetryPolicy

if TYPE_CHECKING:
    import httpx

    from airflow_hpc_provider.client.session import AsyncClient, Client
    from airflow_hpc_provider.client.systems import System
    from airflow_hpc_provider.settings import Settings

__all__ = ["HpcHook"]

_WORKING_DIR = "{working_dir}"
_TEST_SECONDS = 12.0
_TOKEN_REFUSED = "The token endpoint gave a token, but the gateway refuses it"  # noqa: S105  a sentence


class HpcHook(BaseHook):
    """Talks to an HPC centre's web gateway (FirecREST v2).

    The connection is read when it is first needed, never in the constructor, so that DAGs can be parsed
    without it.

    :param hpc_conn_id: id of a connection of type ``firecrest``
    """

    conn_name_attr = "hpc_conn_id"
    default_conn_name = "hpc_default"
    conn_type = "firecrest"
    hook_name = "FirecREST (HPC gateway)"

    def __init__(self, hpc_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hpc_conn_id = hpc_conn_id

    @functools.cached_property
    def settings(self) -> Settings:
        """The connection, checked.

        :raises InvalidInputError: naming the field at fault
        :raises AirflowNotFoundException: there is no such connection
        """
        from airflow_hpc_provider.settings import Settings

        return Settings.from_connection(self.get_connection(self.hpc_conn_id))

    def client(self, *, policy: RetryPolicy | None = None) -> Client:
        """A blocking client, to be used in a ``with`` statement.

        :param policy: when to try a failed call again
        """
        from airflow_hpc_provider.client.session import Client

        return Client(self.settings.url, **_options(self.settings, policy))

    async def load(self) -> None:
        """Read the connection on an event loop; afterwards ``settings`` is there."""
        from airflow_hpc_provider.settings import Settings

        if "settings" not in self.__dict__:
            from airflow.providers.common.compat.connection import get_async_connection

            connection = await get_async_connection(self.hpc_conn_id, type(self))
            self.__dict__["settings"] = Settings.from_connection(connection)

    async def async_client(self, *, policy: RetryPolicy | None = None) -> AsyncClient:
        """A client for event loops, to be used in an ``async with`` statement.

        :param policy: when to try a failed call again
        """
        from airflow_hpc_provider.client.session import AsyncClient

        await self.load()
        return AsyncClient(self.settings.url, **_options(self.settings, policy))

    def system_name(self, system: str | None = None) -> str:
        """The system to use: the given one, else the connection's.

        :raises InvalidInputError: neither is given; the text lists the systems of the gateway
        """
        from airflow_hpc_provider.client.systems import listing as list_systems

        name = (system or self.settings.system or "").strip()
        if name:
            return name
        with self.client() as client:
            known = ", ".join(item.name for item in client.send(list_systems())) or "none"
        raise InvalidInputError(
            "system",
            f"no system is given, neither to the task nor in connection {self.hpc_conn_id}; "
            f"the gateway has: {known}.",
        )

    def system(self, client: Client, system: str | None = None) -> System:
        """What the gateway says about a system; that is kept on this machine for ten minutes.

        :param client: an open client
        :param system: its name; None for the connection's
        :return: the system; its health is told only where the gateway was asked just now
        :raises InvalidInputError: the gateway has no such system; the text lists those it has
        """
        from airflow_hpc_provider import known as kept
        from airflow_hpc_provider.client.systems import listing as list_systems

        name = self.system_name(system)
        found = next((item for item in kept.load(self.settings) if item.name.lower() == name.lower()), None)
        if found is not None:
            return found
        known = client.send(list_systems())
        kept.save(self.settings, known)
        found = next((item for item in known if item.name.lower() == name.lower()), None)
        if found is None:
            names = ", ".join(item.name for item in known) or "none"
            raise InvalidInputError("system", f"the gateway has no system {name!r}; it has: {names}.")
        return found

    def working_dir(self, client: Client, system: System) -> str:
        """The directory below which jobs work: the connection's, else the user's on the default file system.

        :param client: an open client
        :param system: the system
        :return: an absolute path
        :raises InvalidInputError: the connection names none and the system has no default
        """
        from airflow_hpc_provider.client.systems import user_info

        if self.settings.working_dir:
            return self.settings.working_dir.rstrip("/") or "/"
        base = system.default_directory
        if base is None:
            raise InvalidInputError(
                "working_dir",
                f"connection {self.hpc_conn_id} has none and system {system.name} has no default.",
            )
        return f"{base.rstrip('/')}/{client.send(user_info(system.name)).name}"

    def resolve_path(self, client: Client, system: System, path: str) -> str:
        """Put the connection's working directory in place of ``{working_dir}`` in a remote path."""
        if isinstance(path, str) and _WORKING_DIR in path:
            return path.replace(_WORKING_DIR, self.working_dir(client, system))
        return path

    def test_connection(self) -> tuple[bool, str]:
        """Ask for a token and the systems; answers within 15 s, in one sentence.

        :return: whether it works, and what was found
        """
        found: list[tuple[bool, str]] = []
        # Looking up a name has no time-out of its own, so the whole runs beside us.
        probe = threading.Thread(target=lambda: found.append(self._probe()), daemon=True)
        probe.start()
        probe.join(_TEST_SECONDS)
        return found[0] if found else (False, f"No answer within {_TEST_SECONDS:.0f} s.")

    def _probe(self) -> tuple[bool, str]:
        from airflow_hpc_provider.client.session import Client
        from airflow_hpc_provider.client.systems import listing as list_systems

        try:
            options = _options(self.settings, RetryPolicy(attempts=1))
            options["timeout"] = min(self.settings.timeout, _TEST_SECONDS / 3)
            with Client(self.settings.url, **options) as client:
                return True, _health(self.settings, client.send(list_systems()))
        except (UnauthorizedError, AccessDeniedError) as error:
            ready = bool(self.settings.access_token)
            which = "The gateway refuses the connection's access_token" if ready else _TOKEN_REFUSED
            return False, f"{which}: {error.message.rstrip('.')}."
        except HpcError as error:
            return False, str(error)
        except Exception as error:  # noqa: BLE001  whatever it is, the user of the button wants a sentence
            return False, f"{type(error).__name__}: {redact(str(error))}"


# Clients of one identity share one allowance, however many there are in this process.
_budgets: dict[tuple[str, str, float | None], RateBudget] = {}


def _options(settings: Settings, policy: RetryPolicy | None) -> dict[str, Any]:
    """Arguments of a client: how to sign, how fast to ask, whom to trust, whom to tell."""
    from airflow_hpc_provider import metrics
    from airflow_hpc_provider.client.auth import AccessToken, ClientCredentials

    auth: httpx.Auth
    if settings.access_token:
        auth = AccessToken(settings.url, settings.access_token)
    else:
        auth = ClientCredentials(
            settings.url,
            token_url=settings.token_url or "",
            client_id=settings.client_id or "",
            client_secret=settings.client_secret or "",
            method=settings.token_auth_method,
            scope=settings.scope,
        )
    rate = settings.max_requests_per_second
    budget = _budgets.setdefault((*settings.identity, rate), RateBudget(rate))
    return {
        "auth": auth,
        "timeout": settings.timeout,
        "ca_bundle": settings.ca_bundle,
        "policy": policy,
        "budget": budget,
        "observe": metrics.requested,
    }


def _health(settings: Settings, systems: tuple[System, ...]) -> str:
    """One sentence about the gateway's systems."""
    if not systems:
        return "Connected, but the gateway shows no systems to this client."
    told = [
        f"{item.name} (unhealthy: {'; '.join(f'{ill.kind}: {ill.message}' for ill in item.unhealthy)})"
        if item.unhealthy
        else f"{item.name} (healthy)"
        for item in systems
    ]
    text = f"Connected; systems: {', '.join(told)}."
    if settings.system and settings.system.lower() not in {item.name.lower() for item in systems}:
        text += f" The connection's system {settings.system!r} is not among them."
    return text
