"""The terms of a transfer, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from .calls import JSONObject
from .errors import InvalidInputError
from .jobs import Job
from .transfers import TransferJob

__all__ = ["Abandon", "Begun", "Halted", "IfExists", "Moved", "Over", "Terms", "Verify", "Wait"]

Verify = Literal["auto", "always", "never"]
IfExists = Literal["overwrite", "verify", "fail", "skip", "newer"]
Wait = Callable[[str], Job]
Abandon = Callable[[BaseException], bool]
Over = Callable[[TransferJob, str], Job]


class Halted(BaseException):
    """Raised by who waits for a job of a tree: another process goes on by the same call, once it is over.

    :param job: the job
    :param workspace: the directory on the system that is left for it
    """

    def __init__(self, job: TransferJob, workspace: str) -> None:
        super().__init__(job.job_id)
        self.job = job
        self.workspace = workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a file is moved.

    :param connections: how many carry it at once
    :param verify: compare sha256 of both sides: ``auto`` for staged transfers, if the gateway can compute it
        in time; ``always``, by a job if need be; ``never``. The size is always compared
    :param if_exists: what to do with a file that is there already: ``overwrite``; ``verify``: leave it if
        size and sha256 are the same, as far as that can be learned (see ``verify``); ``fail``; ``skip``;
        ``newer``: overwrite it if it is older
    :param atomic: let a staged upload appear under its name when it is whole and verified, by a second job;
        one whose name has more than 249 bytes always does, since its job writes pieces with longer names
    :param wake: end the nap of the job that looks for the uploaded object once a minute
    :param preserve_mode: give the copy the permissions of the original
    :param preserve_mtime: give a downloaded copy the time of the original
    """

    connections: int = 4
    verify: Verify = "auto"
    if_exists: IfExists = "overwrite"
    atomic: bool = False
    wake: bool = True
    preserve_mode: bool = False
    preserve_mtime: bool = False

    def __post_init__(self) -> None:
        """Check.

        :raises InvalidInputError: naming the one at fault
        """
        for name, known in (("verify", get_args(Verify)), ("if_exists", get_args(IfExists))):
            if getattr(self, name) not in known:
                raise InvalidInputError(name, f"{getattr(self, name)!r} is none of {', '.join(known)}.")
        if isinstance(self.connections, bool) or not isinstance(self.connections, int):
            raise InvalidInputError("connections", f"{self.connections!r} is no whole number.")
        if not 1 <= self.connections <= 64:
            raise InvalidInputError("connections", f"must be 1 to 64, not {self.connections}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a transfer moved.

    :param path: absolute path on the system
    :param size: bytes
    :param sha256: hex digest of the bytes as read or written here; None if they were not looked at
    :param staged: whether it went through the gateway's staging or a stream, by a job
    :param verified: ``sha256`` if the digest of both sides was compared, ``size``, or ``none`` if it was
        skipped unseen
    :param skipped: nothing was moved, since it was there already
    """

    path: str
    size: int
    sha256: str | None
    staged: bool
    verified: str
    skipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A staged transfer whose job on the system is under way.

    :param job: the job to wait for
    :param path: absolute path on the system, as it will be in the end
    :param size: bytes
    :param sha256: digest of an upload
    :param landing: where an upload's job writes to, if not to ``path``
    :param before: inode, size and time of what an upload replaces
    :param modified: time of a download's source (epoch seconds)
    :param mode: permissions that the copy is to get
    :param parts: how many parts an upload has; its job joins as many pieces beside ``path``
    :param name: under which the transfer is written down
    :param url: where a download can be fetched; a credential, so that it is in no text and no JSON
    """

    job: TransferJob
    path: str
    size: int
    sha256: str | None = None
    landing: str | None = None
    before: tuple[int, int, int] | None = None
    modified: int | None = None
    mode: int | None = None
    parts: int = 0
    name: str = ""
    url: str | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> JSONObject:
        """Plain JSON, without the URL."""
        plain = asdict(self)
        del plain["url"]
        return plain

    @classmethod
    def from_json(cls, plain: Any) -> Begun:
        """What ``to_json`` gave."""
        before = plain.get("before")
        return cls(
            **plain
            | {"job": TransferJob(**plain["job"]), "before": tuple(before) if before is not None else None}
        )
