"""Systems behind the gateway: health, file systems, limits, nodes, partitions, and who the user is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .calls import Call, path, plain, reading

__all__ = [
    "FileSystem",
    "Liveness",
    "Node",
    "Partition",
    "Reservation",
    "ServiceHealth",
    "System",
    "UserInfo",
    "listing",
    "liveness",
    "nodes",
    "partitions",
    "reservations",
    "user_info",
]

# FirecREST's default of max_ops_file_size.
_DIRECT_LIMIT = 5 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceHealth:
    """What the gateway's last probe of one service found; a probe is minutes old at the most.

    :param kind: ``scheduler``, ``ssh``, ``filesystem``, ``s3`` or ``exception``
    :param healthy: the service answered as it should
    :param message: the probe's own words
    :param path: mount point, of a file system
    :param last_checked: when (ISO 8601)
    """

    kind: str
    healthy: bool
    message: str | None = None
    path: str | None = None
    last_checked: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """A file system that the gateway opens to its users.

    :param path: mount point; paths outside all mount points are refused
    :param kind: ``users``, ``store``, ``archive``, ``apps``, ``scratch`` or ``project``
    :param default_directory: users' own directories are here by default
    """

    path: str
    kind: str
    default_directory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One system, as ``GET /status/systems`` tells of it, without the storage's keys and addresses.

    :param name: name, in the gateway's spelling; it takes any case
    :param scheduler: ``slurm`` or ``pbs``
    :param scheduler_version: version of the scheduler
    :param connection_mode: how the gateway reaches the scheduler: ``ssh``, ``rest`` or ``hybrid``
    :param health: one entry for each service probed; empty if there are no probes
    :param file_systems: what is mounted
    :param max_direct_bytes: largest file that one upload request takes
    :param transfer_method: how larger files travel: ``s3``, ``streamer``, ``wormhole`` or None (not at all)
    :param max_part_bytes: largest part of a staged upload, if the gateway says so
    :param max_stream_bytes: largest file that a streamed upload takes, if the gateway says so
    :param needs_account: staged transfers must name an account
    """

    name: str
    scheduler: str = "slurm"
    scheduler_version: str | None = None
    connection_mode: str = "ssh"
    health: tuple[ServiceHealth, ...] = ()
    file_systems: tuple[FileSystem, ...] = ()
    max_direct_bytes: int = _DIRECT_LIMIT
    transfer_method: str | None = None
    max_part_bytes: int | None = None
    max_stream_bytes: int | None = None
    needs_account: bool = False

    @property
    def unhealthy(self) -> tuple[ServiceHealth, ...]:
        """Services that failed their last probe: calls that need them are answered 503 until the next."""
        return tuple(service for service in self.health if not service.healthy)

    @property
    def healthy(self) -> bool:
        """No service failed its last probe."""
        return not self.unhealthy

    @property
    def default_directory(self) -> str | None:
        """Mount point below which users' own directories are, if the gateway names one."""
        return next((mounted.path for mounted in self.file_systems if mounted.default_directory), None)

    @property
    def rest_mode(self) -> bool:
        """The gateway speaks to slurmrestd, which ignores ``#SBATCH`` lines."""
        return self.connection_mode == "rest"

    @property
    def max_direct_download_bytes(self) -> int:
        """Largest file that one download request gives: its base64 must stay below ``max_direct_bytes``."""
        return max(0, (self.max_direct_bytes - 1) // 4 * 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A compute node: what FirecREST tells alike in all connection modes.

    Left out are sockets, cores, threads, load and allocated memory, which it reads wrongly in one mode or
    gives in another unit.

    :param state: scheduler states that hold together: ``("IDLE", "DRAIN")``
    :param cpus: number of CPUs
    :param allocated_cpus: CPUs that run jobs
    :param free_memory: free memory in MiB
    """

    name: str
    state: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    cpus: int | None = None
    allocated_cpus: int | None = None
    free_memory: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition (queue).

    :param state: scheduler states that hold together, mostly one: ``("UP",)``
    :param cpus: CPUs of all its nodes
    :param nodes: number of its nodes
    """

    name: str
    state: tuple[str, ...] = ()
    cpus: int | None = None
    nodes: int | None = None

    @property
    def up(self) -> bool:
        """It takes jobs and starts them."""
        return "UP" in self.state


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A reservation of nodes.

    :param nodes: node list as Slurm writes it: ``nid[001-004]``
    :param start: when it starts (seconds since 1970)
    :param end: when it ends
    :param state: the scheduler's word for its state: ``active``
    """

    name: str
    nodes: str = ""
    start: int | None = None
    end: int | None = None
    features: tuple[str, ...] = ()
    state: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UserInfo:
    """The user that the gateway's token stands for, on one system.

    :param name: unix user name
    :param group: primary group
    :param groups: all groups
    :param accounts: accounts that may be charged
    :param default_account: account that is charged if a job names none
    """

    name: str
    group: str | None = None
    groups: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    default_account: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """Whether the gateway's health probes still run.

    :param checked: by name of system, when its last round of probes ended (ISO 8601)
    :param age: seconds since the last round
    """

    checked: Mapping[str, str] = field(default_factory=dict)
    age: int | None = None


def listing() -> Call[tuple[System, ...]]:
    """List the systems with their health, file systems and limits (``GET /status/systems``).

    The gateway answers from memory, in milliseconds: no system is asked.
    """
    doing = "list the systems"
    return Call(
        doing=doing,
        method="GET",
        path=path("status", "systems"),
        read=reading(doing, lambda body: tuple(_system(raw) for raw in body["systems"])),
        replayable=True,
    )


def nodes(system: str) -> Call[tuple[Node, ...]]:
    """List the compute nodes (``GET /status/{system}/nodes``).

    :param system: name of the system
    """
    doing = "list the nodes"
    return Call(
        doing=doing,
        method="GET",
        path=path("status", system, "nodes"),
        read=reading(doing, lambda body: tuple(_node(raw) for raw in body["nodes"])),
        replayable=True,
        system=system,
    )


def partitions(system: str, *, show_hidden: bool = False) -> Call[tuple[Partition, ...]]:
    """List the partitions (``GET /status/{system}/partitions``).

    :param system: name of the system
    :param show_hidden: also those that the scheduler hides
    """
    doing = "list the partitions"
    return Call(
        doing=doing,
        method="GET",
        path=path("status", system, "partitions"),
        params={"show_hidden": "true" if show_hidden else "false"},
        read=reading(doing, lambda body: tuple(_partition(raw) for raw in body["partitions"])),
        replayable=True,
        system=system,
    )


def reservations(system: str) -> Call[tuple[Reservation, ...]]:
    """List the reservations (``GET /status/{system}/reservations``).

    :param system: name of the system
    """
    doing = "list the reservations"
    return Call(
        doing=doing,
        method="GET",
        path=path("status", system, "reservations"),
        read=reading(doing, lambda body: tuple(_reservation(raw) for raw in body["reservations"])),
        replayable=True,
        system=system,
    )


def user_info(system: str) -> Call[UserInfo]:
    """Tell who the user is: name, groups and accounts (``GET /status/{system}/userinfo``).

    :param system: name of the system
    """
    doing = "read who the user is"
    return Call(
        doing=doing,
        method="GET",
        path=path("status", system, "userinfo"),
        read=reading(doing, _user_info),
        replayable=True,
        system=system,
    )


def liveness() -> Call[Liveness]:
    """Tell when the gateway last probed its systems (``GET /status/liveness/``)."""
    doing = "read when the systems were last probed"
    return Call(
        doing=doing,
        method="GET",
        path=path("status", "liveness") + "/",  # without the slash the answer is a redirect
        read=reading(doing, _liveness),
        replayable=True,
    )


def _system(raw: Any) -> System:
    item = plain(raw)
    scheduler = plain(item.get("scheduler", {}))
    data = plain(item.get("dataoperation", {}))
    # Only these two leave the storage's entry, which has fields for its keys.
    transfer = plain(data.get("datatransfer", {}))
    multipart = plain(transfer.get("multipart", {}))
    return System(
        name=item["name"],
        scheduler=scheduler.get("type", "slurm"),
        scheduler_version=scheduler.get("version"),
        connection_mode=scheduler.get("connectionmode", "ssh"),
        health=tuple(_health(service) for service in item.get("serviceshealth", ())),
        file_systems=tuple(_file_system(mounted) for mounted in item.get("filesystems", ())),
        max_direct_bytes=int(data.get("maxopsfilesize", _DIRECT_LIMIT)),
        transfer_method=transfer.get("servicetype"),
        max_part_bytes=_number(multipart.get("maxpartsize")),
        max_stream_bytes=_number(transfer.get("inboundtransferlimit")),
        needs_account=any("{account}" in line for line in data.get("datatransferjobsdirectives", ())),
    )


def _health(raw: Any) -> ServiceHealth:
    item = plain(raw)
    return ServiceHealth(
        kind=item["servicetype"],
        healthy=bool(item.get("healthy", False)),
        message=item.get("message"),
        path=item.get("path"),
        last_checked=item.get("lastchecked"),
    )


def _file_system(raw: Any) -> FileSystem:
    item = plain(raw)
    return FileSystem(
        path=item["path"],
        kind=item.get("datatype", ""),
        default_directory=bool(item.get("defaultworkdir", False)),
    )


def _node(raw: Any) -> Node:
    item = plain(raw)
    return Node(
        name=item["name"],
        state=_words(item.get("state")),
        partitions=_words(item.get("partitions")),
        features=_words(item.get("features")),
        cpus=_number(item.get("cpus")),
        allocated_cpus=_number(item.get("alloccpus")),
        free_memory=_number(item.get("freememory")),
    )


def _partition(raw: Any) -> Partition:
    item = plain(raw)
    return Partition(
        name=item["name"],
        state=_words(item.get("partition")),
        cpus=_number(item.get("cpus")),
        nodes=_number(item.get("totalnodes")),
    )


def _reservation(raw: Any) -> Reservation:
    item = plain(raw)
    return Reservation(
        name=item["name"],
        nodes=item.get("nodelist", ""),
        start=_number(item.get("starttime")),
        end=_number(item.get("endtime")),
        features=_words(item.get("features")),
        state=item.get("state"),
    )


def _user_info(raw: Any) -> UserInfo:
    item = plain(raw)
    accounts = [plain(account) for account in item.get("accounts", ())]
    return UserInfo(
        name=plain(item["user"])["name"],
        group=plain(item.get("group", {})).get("name"),
        groups=tuple(plain(group)["name"] for group in item.get("groups", ())),
        accounts=tuple(account["name"] for account in accounts),
        default_account=next((account["name"] for account in accounts if account.get("default")), None),
    )


def _liveness(raw: Any) -> Liveness:
    item = plain(raw)
    return Liveness(checked=dict(item.get("healthcheckruns", {})), age=_number(item.get("lastupdate")))


def _words(value: Any) -> tuple[str, ...]:
    """A list of words, which comes as a list in one connection mode and as ``a,b`` in another."""
    if value is None:
        return ()
    words = value.split(",") if isinstance(value, str) else value
    return tuple(word.strip() for word in words if word.strip())


def _number(value: Any) -> int | None:
    return None if value is None else int(value)
