"""``HpcHook``: an authenticated client for the gateway that an Airflow connection names."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow.sdk import BaseHook

from airflow_hpc_provider.client.calls import JSONObject
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

    from airflow_hpc_provider.client.copying import Copied
    from airflow_hpc_provider.client.removal import Guard
    from airflow_hpc_provider.client.session import AsyncClient, Client
    from airflow_hpc_provider.client.systems import System
    from airflow_hpc_provider.client.terms import Terms, Wait
    from airflow_hpc_provider.settings import Settings

__all__ = ["HpcHook"]

# ``list`` is a method here.
Entries: TypeAlias = list[JSONObject]
Paths: TypeAlias = list[str]

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

    def waiting(self, client: Client, system: System, *, poll_interval: float = 10.0) -> Wait:
        """How the client's functions wait for a job on a system.

        :param client: an open client
        :param system: the system
        :param poll_interval: seconds between two looks at the most
        """
        from airflow_hpc_provider.client.errors import WatchError
        from airflow_hpc_provider.client.jobs import Job
        from airflow_hpc_provider.watch import JobWatch, Outcome, follow

        def wait(job_id: str) -> Job:
            watch = JobWatch(
                system=system.name, job_id=job_id, since=time.time(), poll_interval=poll_interval
            )
            verdict = follow(client, watch)
            if verdict.outcome is not Outcome.DONE:
                raise WatchError(verdict.message, transient=verdict.transient)
            return Job.from_json(verdict.data)

        return wait

    def guard(self, client: Client, system: System) -> Guard:
        """What is never removed or moved away: root, mount points, the user's directories, ``working_dir``.

        :param client: an open client
        :param system: the system
        """
        from airflow_hpc_provider.client.removal import Guard
        from airflow_hpc_provider.client.systems import user_info

        return Guard.of(system, client.send(user_info(system.name)).name, self.settings.working_dir)

    def make_directory(
        self, path: str, *, system: str | None = None, parents: bool = True, mode: int | str | None = None
    ) -> str:
        """Make a directory on a system.

        :param path: absolute path; ``{working_dir}`` in it stands for the connection's working directory
        :param system: name of the system. Default: the connection's
        :param parents: also make those above, and let an existing one be
        :param mode: permission bits (``0o750``) or their octal digits (``"750"``)
        :return: its path
        """
        from airflow_hpc_provider.client import remote

        with self.client() as client:
            on = self.system(client, system)
            return remote.make_directory(
                client, on, self.resolve_path(client, on, path), parents=parents, mode=mode
            )

    def list(
        self,
        path: str,
        *,
        system: str | None = None,
        glob: str | Iterable[str] = (),
        recursive: bool = False,
        hidden: bool = False,
        kind: str | None = None,
        limit: int | None = None,
    ) -> Entries:
        """List a directory on a system, or one file.

        Parameters and result are those of :func:`airflow_hpc_provider.client.remote.listing`.
        """
        from airflow_hpc_provider.client import remote

        with self.client() as client:
            on = self.system(client, system)
            return remote.listing(
                client,
                on,
                self.resolve_path(client, on, path),
                glob=glob,
                recursive=recursive,
                hidden=hidden,
                kind=kind,
                limit=limit,
            )

    def delete(
        self,
        path: str | Sequence[str],
        *,
        system: str | None = None,
        allow_glob: bool = False,
        missing_ok: bool = False,
        account: str | None = None,
        poll_interval: float = 10.0,
    ) -> Paths:
        """Remove files, or directories with all that is in them; what :meth:`guard` tells of stays.

        :param path: absolute path, or several; with ``allow_glob`` the last name may hold wildcards
        :param system: name of the system. Default: the connection's
        :param allow_glob: ``*``, ``?`` and ``[`` are wildcards; else they are refused
        :param missing_ok: it is no error if there is nothing
        :param account: account for the job that removes what takes long. Default: the connection's
        :param poll_interval: seconds between two looks at that job at the most
        :return: the paths that were removed
        """
        from airflow_hpc_provider.client import remote
        from airflow_hpc_provider.client.removal import split_removal

        with self.client() as client:
            on = self.system(client, system)
            guard = self.guard(client, on)
            wanted = [
                self.resolve_path(client, on, one) for one in ([path] if isinstance(path, str) else path)
            ]
            for one in wanted:
                place, pattern = split_removal(one, allow_glob=allow_glob)
                if pattern is None:
                    guard.check(place)
            removed = []
            for one in wanted:
                removed += remote.delete(
                    client,
                    on,
                    one,
                    guard=guard,
                    wait=self.waiting(client, on, poll_interval=poll_interval),
                    account=account or self.settings.account,
                    allow_glob=allow_glob,
                    missing_ok=missing_ok,
                )
            return removed

    def copy(
        self,
        source: str,
        target: str,
        *,
        system: str | None = None,
        target_system: str | None = None,
        target_conn_id: str | None = None,
        move: bool = False,
        account: str | None = None,
        terms: Terms | None = None,
        poll_interval: float = 10.0,
        **kept: Any,
    ) -> Copied:
        """Copy or move within a system by a job, or a file from one system to another through this machine.

        :param source: absolute path; ``{working_dir}`` in it stands for the working directory of its own
            connection
        :param target: absolute path of the copy, or of a directory to copy into
        :param system: name of the source's system. Default: the connection's
        :param target_system: name of the target's system. Default: the source's; with another connection,
            that connection's
        :param target_conn_id: id of the target's connection. Default: this hook's
        :param move: remove the source
        :param account: account for the jobs. Default: that of each connection
        :param terms: what to do with what is there already; between systems also how to upload
        :param poll_interval: seconds between two looks at a job at the most
        :param kept: ``keeper`` and ``abandon`` of :func:`airflow_hpc_provider.client.copying.copy`
        """
        from airflow_hpc_provider.client import copying, relay
        from airflow_hpc_provider.client.terms import Terms

        elsewhere = HpcHook(target_conn_id) if target_conn_id not in (None, self.hpc_conn_id) else self
        with self.client() as client, elsewhere.client() as other:
            here = self.system(client, system)
            there = elsewhere.system(other, target_system or (here.name if elsewhere is self else None))
            source = self.resolve_path(client, here, source)
            target = elsewhere.resolve_path(other, there, target)
            origin = relay.End(
                client=client,
                system=here,
                wait=self.waiting(client, here, poll_interval=poll_interval),
                account=account or self.settings.account,
            )
            guard = self.guard(client, here) if move else None
            if elsewhere is self and here.name == there.name:
                return copying.copy(
                    client,
                    here,
                    source,
                    target,
                    guard=guard,
                    wait=origin.wait,
                    account=origin.account,
                    move=move,
                    if_exists=(terms or Terms()).if_exists,
                    **kept,
                )
            goal = relay.End(
                client=other,
                system=there,
                wait=elsewhere.waiting(other, there, poll_interval=poll_interval),
                account=account or elsewhere.settings.account,
            )
            return relay.relay(origin, source, goal, target, guard=guard, move=move, terms=terms, **kept)

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
