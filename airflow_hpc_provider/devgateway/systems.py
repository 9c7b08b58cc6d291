"""One HPC system as the gateway knows it, and what the routes share."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .errors import GatewayError
from .faults import Faults
from .files import FileSystems
from .scheduler import Scheduler, User
from .storage import Storage
from .streamer import Streamer
from .tokens import Tokens

__all__ = ["Call", "System", "World"]

_SERVICES = ("scheduler", "ssh", "filesystem", "s3")


@dataclass(eq=False, slots=True)
class System:
    """A cluster behind the gateway."""

    name: str
    scheduler: Scheduler
    files: FileSystems
    connection_mode: str = "ssh"
    directives: tuple[str, ...] = ("#SBATCH --nodes=1", "#SBATCH --time=0-00:15:00")
    max_ops_file_size: int = 5 * 2**20
    max_part_size: int = 128 * 2**20
    transfer_method: str | None = "s3"
    streamer: Streamer = field(default_factory=Streamer)
    #: Services that are down, with the message of their last probe.
    unhealthy: dict[str, str | None] = field(default_factory=dict)
    checked_at: float = field(default_factory=time.time)

    @property
    def rest(self) -> bool:
        return self.connection_mode == "rest"

    def require(self, *services: str, path: str = "") -> None:
        """The health gate: a service whose last probe failed closes every call that needs it."""
        for service in services:
            if service not in self.unhealthy:
                continue
            text = f"The {service} service for the requested system ({self.name}) is unhealthy."
            if service == "filesystem":
                mount = next((str(m.path) for m in self.files.mounts if path.startswith(str(m.path))), path)
                text = f"The requested filesystem ({mount} on {self.name}) is unhealthy."
            raise GatewayError(503, text)

    def to_json(self, storage_url: str, url_lifetime: int) -> dict[str, Any]:
        return {
            "name": self.name,
            "ssh": _SSH,
            "scheduler": {
                "type": "slurm",
                "connectionMode": self.connection_mode,
                "version": self.scheduler.version,
                "apiUrl": "http://127.0.0.1:6820" if self.rest else None,
                "apiVersion": "0.0.42" if self.rest else None,
                "timeout": 10,
            },
            "servicesHealth": self._health(),
            "probing": {
                "services": {name: {"timeout": 20 if name == "s3" else 5} for name in _SERVICES},
                "intervalCheck": 120,
            },
            "lastHealthCheck": _stamp(self.checked_at),
            "fileSystems": [mount.to_json() for mount in self.files.mounts],
            "dataOperation": {
                "datatransfer_jobs_directives": list(self.directives),
                "max_ops_file_size": self.max_ops_file_size,
                "data_transfer": self._data_transfer(storage_url, url_lifetime),
            },
        }

    def _health(self) -> list[dict[str, Any]]:
        ping = "[{'mode': 'primary', 'hostname': 'localhost', 'pinged': 'UP'}]"
        probes = [self._probe("scheduler", ping), self._probe("ssh")]
        probes += [{**self._probe("filesystem"), "path": str(mount.path)} for mount in self.files.mounts]
        return [*probes, self._probe("s3")] if self.transfer_method == "s3" else probes

    def _probe(self, service: str, well: str | None = None) -> dict[str, Any]:
        return {
            "serviceType": service,
            "lastChecked": _stamp(self.checked_at),
            "latency": 0.01,
            "healthy": service not in self.unhealthy,
            "message": self.unhealthy.get(service, well),
        }

    def _data_transfer(self, storage_url: str, url_lifetime: int) -> dict[str, Any] | None:
        if self.transfer_method is None:
            return None
        if self.transfer_method == "streamer":
            return self.streamer.to_json()
        if self.transfer_method == "wormhole":
            return {"serviceType": "wormhole", "pypiIndexUrl": None}
        return {
            "serviceType": "s3",
            "name": "s3-storage",
            "privateUrl": _HIDDEN,
            "publicUrl": storage_url,
            "accessKeyId": _HIDDEN,
            "secretAccessKey": _HIDDEN,
            "region": "us-east-1",
            "ttl": url_lifetime,
            "tenant": None,
            "multipart": {
                "use_split": False,
                "max_part_size": self.max_part_size,
                "parallel_runs": 3,
                "tmp_folder": "tmp",
            },
            "bucketLifecycleConfiguration": {"days": 10},
        }


_HIDDEN = "**********"
_SSH = {
    "host": "127.0.0.1",
    "port": 22,
    "proxyHost": None,
    "proxyPort": None,
    "maxClients": 100,
    "timeout": {"connection": 5, "login": 5, "commandExecution": 5, "idleTimeout": 60, "keepAlive": 5},
}


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(eq=False, slots=True)
class World:
    """What every route may need."""

    systems: dict[str, System]
    user: User
    tokens: Tokens
    storage: Storage
    faults: Faults
    ingress_poll: float = 1.0

    def system(self, name: str) -> System:
        try:
            return self.systems[name]
        except KeyError:
            raise GatewayError(404, "System not found") from None


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated request to a route: where it goes and what it says."""

    world: World
    system: System
    path_params: dict[str, str]
    query: dict[str, str]
    body: dict[str, Any]
    upload_name: str = ""
    upload_data: bytes = b""
