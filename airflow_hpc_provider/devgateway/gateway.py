"""The embedded gateway as one object: start it, point a client at it, spoil it, stop it."""

import getpass
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .app import build
from .faults import Faults, RequestLog
from .files import FileSystem, FileSystems
from .front import Front
from .jobs import Site
from .local import LocalScheduler
from .operations import TOKEN_PATH, operation_of, storage_operation_of
from .scheduler import Scheduler, User
from .server import Server, is_loopback
from .slurm import SlurmScheduler, slurm_is_there
from .storage import Storage
from .streamer import Streamer, streamer_is_there
from .systems import System, World
from .tokens import Client, Tokens

__all__ = ["Gateway"]


class Gateway:
    """FirecREST v2 on this machine, for demos and tests.

    :param root: where the file systems lie; a temporary directory, removed at the end, if none is given.
    :param system: the name of the system, or the first of ``systems``.
    :param user: who the tokens speak for; files and jobs are those of the process's own user.
    :param scheduler: ``local`` runs jobs as processes, ``slurm`` through Slurm's commands, ``auto`` chooses.
    :param connection_mode: ``ssh`` or ``rest``, for all systems or by name.
    :param unhealthy: services that are down from the start, by system.
    :param job_cpus: how many CPUs the local scheduler pretends to have.
    :param transfer_method: how large files travel: ``s3``, ``streamer``, ``wormhole`` (told, not served), or
        None for not at all.
    :param streamer: ports and limits of the method ``streamer``.
    :param ingress_poll: seconds between two looks of an upload's job for its object (60 in reality).
    """

    def __init__(
        self,
        root: Path | str | None = None,
        *,
        system: str = "embedded",
        systems: Iterable[str] = (),
        user: str | None = None,
        accounts: Iterable[str] = ("staff", "users"),
        partitions: Iterable[str] = ("normal", "debug"),
        scheduler: str = "auto",
        token_lifetime: float = 300,
        min_token_ttl: float = 30,
        max_part_size: int = 128 * 2**20,
        max_ops_file_size: int = 5 * 2**20,
        ingress_poll: float = 1.0,
        job_cpus: int = 64,
        kill_wait: float = 2.0,
        connection_mode: str | Mapping[str, str] = "ssh",
        unhealthy: Mapping[str, str | Iterable[str]] | None = None,
        transfer_method: str | None = "s3",
        streamer: Streamer | None = None,
        directives: Iterable[str] = ("#SBATCH --nodes=1", "#SBATCH --time=0-00:15:00"),
        url_lifetime: int = 604_800,
        host: str = "127.0.0.1",
        port: int = 0,
        storage_port: int = 0,
        public_host: str | None = None,
        allow_remote: bool = False,
        client_id: str | None = None,
        client_secret: str | None = None,
    ) -> None:
        if not (is_loopback(host) or allow_remote):
            raise ValueError(
                f"the embedded gateway serves this machine only, not {host!r} (see allow_remote)"
            )
        if transfer_method == "streamer" and not streamer_is_there():
            raise ValueError("no streamer here: pip install 'airflow-hpc-provider[devgateway,streamer]'")
        self._temporary = tempfile.mkdtemp(prefix="devgateway-") if root is None else None
        self.root = Path(self._temporary or root or "").resolve()
        self.user = user or getpass.getuser()
        self.home = self.root / "home" / self.user
        self.scratch = self.root / "scratch"
        self.client_id = client_id or f"devgateway-{secrets.token_hex(4)}"
        self.client_secret = client_secret or secrets.token_urlsafe(24)
        self.faults = Faults()
        self.requests = RequestLog()
        self._poster = User(self.user, self.home, tuple(accounts))
        self._tokens = Tokens(lifetime=token_lifetime, min_ttl=min_token_ttl)
        self.storage = Storage(self.root / ".staging", lifetime=url_lifetime)
        self._names = [name.lower() for name in (list(systems) or [system])]
        self._options: dict[str, Any] = {
            "max_part_size": max_part_size,
            "max_ops_file_size": max_ops_file_size,
            "transfer_method": transfer_method,
            "streamer": streamer or Streamer(),
            "directives": tuple(directives),
        }
        self._partitions = tuple(partitions)
        self._job_cpus = job_cpus
        self._kill_wait = kill_wait
        self._use_slurm = scheduler == "slurm" or (scheduler == "auto" and slurm_is_there())
        self._world = World(
            systems={name: self._system(name, connection_mode) for name in self._names},
            user=self._poster,
            tokens=self._tokens,
            storage=self.storage,
            faults=self.faults,
            ingress_poll=ingress_poll,
        )
        for name, services in (unhealthy or {}).items():
            for service in [services] if isinstance(services, str) else services:
                self.set_health(service, healthy=False, system=name)
        self._connect(host, port, storage_port, public_host)

    def _system(self, name: str, connection_mode: str | Mapping[str, str]) -> System:
        mode = connection_mode if isinstance(connection_mode, str) else connection_mode.get(name, "ssh")
        mounts = [
            FileSystem(self.root / "home", "users", default_work_dir=True),
            FileSystem(self.root / "scratch", "scratch"),
        ]
        limit = self._options["max_ops_file_size"]
        files = FileSystems(name, mounts, output_limit=limit, owner=self.user)
        return System(name, self._new_scheduler(name, mode), files, connection_mode=mode, **self._options)

    def _new_scheduler(self, name: str, mode: str) -> Scheduler:
        if self._use_slurm:
            return SlurmScheduler(self._poster)
        site = Site(
            self._poster,
            self.root / ".spool" / name,
            cluster=name,
            cpus=self._job_cpus,
            partitions=self._partitions,
            rest=mode == "rest",
        )
        return LocalScheduler(site, kill_wait=self._kill_wait)

    def _connect(self, host: str, port: int, storage_port: int, public_host: str | None) -> None:
        front = Front(build(self._world), faults=self.faults, log=self.requests, operation_of=operation_of)
        storage_app, log = self.storage.app(), self.requests
        storage = Front(storage_app, faults=self.faults, log=log, operation_of=storage_operation_of)
        self._server = Server(front, host=host, port=port)
        self._storage_server = Server(storage, host=host, port=storage_port, name="storage")
        shown = public_host or ("127.0.0.1" if host in ("0.0.0.0", "::") else host)  # noqa: S104 - compared, not bound
        bracketed = f"[{shown}]" if ":" in shown else shown
        self.url = f"http://{bracketed}:{self._server.port}"
        self.token_url = self._tokens.token_url = f"{self.url}{TOKEN_PATH}"
        self.storage_url = self.storage.public_url = f"http://{bracketed}:{self._storage_server.port}"
        near = f"[{host}]" if ":" in host else host
        near = near if is_loopback(host) else "127.0.0.1"
        self.storage.private_url = f"http://{near}:{self._storage_server.port}"
        self._default_client = Client(self.client_id, self.user, secret=self.client_secret)
        self._tokens.register(self._default_client)
        self.faults.on_expire_tokens = self._tokens.expire_all
        self.faults.on_expire_storage_urls = self.storage.expire_urls

    # --- life ---

    def start(self) -> Self:
        for folder in (self.home, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)
        for system in self._world.systems.values():
            system.scheduler.start()
        self._server.start()
        self._storage_server.start()
        return self

    def stop(self) -> None:
        """Close the sockets, kill the jobs, and remove the temporary root."""
        self._server.ask_to_stop()
        self._storage_server.ask_to_stop()
        for system in self._world.systems.values():
            system.scheduler.stop()
        self._server.stop()
        self._storage_server.stop()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- what a client needs ---

    @property
    def system(self) -> str:
        """The name of the first system."""
        return self._names[0]

    @property
    def systems(self) -> list[str]:
        return list(self._names)

    def connection(self, **extra: Any) -> dict[str, Any]:
        """An Airflow connection to this gateway; its JSON is a value for ``AIRFLOW_CONN_HPC_DEFAULT``."""
        return {
            "conn_type": "firecrest",
            "host": self.url,
            "login": self.client_id,
            "password": self.client_secret,
            "extra": {
                "token_url": self.token_url,
                "system": self.system,
                "account": self._poster.accounts[0],
                "working_dir": str(self.home),
                **extra,
            },
        }

    def access_token(self, lifetime: float | None = None) -> str:
        """A token of this gateway's user, as the token endpoint would give it."""
        return self._tokens.mint(self._default_client, lifetime)

    def add_client(
        self,
        client_id: str,
        secret: str | None = None,
        *,
        public_key_pem: str | None = None,
        user: str | None = None,
    ) -> None:
        """Register one more client, by a secret or by a public key (``private_key_jwt``)."""
        self._tokens.register(Client(client_id, user or self.user, secret, public_key_pem))

    # --- what a test turns ---

    @property
    def scheduler(self) -> LocalScheduler:
        """The first system's local scheduler: requeue, end, release or forget jobs."""
        return self.scheduler_of(self.system)

    def scheduler_of(self, system: str) -> LocalScheduler:
        scheduler = self._world.systems[system].scheduler
        if not isinstance(scheduler, LocalScheduler):
            raise TypeError("this gateway hands its jobs to Slurm: use Slurm's commands")
        return scheduler

    @property
    def leaked_tokens(self) -> int:
        """How many requests took an Authorization header to the storage."""
        return self.storage.leaked_tokens

    def set_health(
        self, service: str, *, healthy: bool, message: str | None = None, system: str | None = None
    ) -> None:
        """The last probe of a service (scheduler, ssh, filesystem, s3) failed, or went well again."""
        target = self._world.systems[system or self.system]
        if healthy:
            target.unhealthy.pop(service, None)
        else:
            target.unhealthy[service] = message or f"The {service} service did not answer its probe."
