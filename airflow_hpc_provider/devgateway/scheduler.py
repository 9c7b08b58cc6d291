"""What the routes need of a scheduler, and of the user whose jobs it runs."""

import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .directives import Submission
from .records import Record

__all__ = ["Scheduler", "SchedulerError", "User", "command_failed"]


class SchedulerError(Exception):
    """The scheduler refuses; ``caused_by`` is where FirecREST hides the true reason of failed look-ups."""

    def __init__(self, message: str, *, status: int = 500, caused_by: list[str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.caused_by = caused_by


def command_failed(text: str, *, status: int = 1) -> SchedulerError:
    return SchedulerError(f"Unexpected Slurm command response. exit_status:{status} std_err:{text}")


@dataclass(frozen=True, slots=True)
class User:
    """The one user whom the gateway serves."""

    name: str
    home: Path
    accounts: tuple[str, ...]

    @property
    def uid(self) -> int:
        return os.getuid()

    @property
    def gid(self) -> int:
        return os.getgid()

    @property
    def group(self) -> str:
        try:
            return grp.getgrgid(self.gid).gr_name
        except KeyError:
            return str(self.gid)

    @property
    def shell(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_shell or "/bin/sh"
        except KeyError:
            return "/bin/sh"


class Scheduler(Protocol):
    """What the routes need of a scheduler."""

    version: str

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def submit(self, submission: Submission) -> str: ...
    def records(self, job_id: str | None = None) -> list[Record]: ...
    def cancel(self, job_id: str) -> None: ...
    def metadata(self, job_id: str) -> list[dict[str, Any]]: ...
    def attach(self, job_id: str, command: str) -> None: ...
    def nodes(self) -> list[dict[str, Any]]: ...
    def partitions(self) -> list[dict[str, Any]]: ...
    def reservations(self) -> list[dict[str, Any]]: ...
    def accounts(self) -> list[dict[str, Any]]: ...
