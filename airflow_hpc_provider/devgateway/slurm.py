"""Slurm's own commands behind the same interface as the local scheduler."""

import shutil
import subprocess
from typing import Any

from .directives import Submission
from .records import Record
from .scheduler import User

__all__ = ["SlurmScheduler", "slurm_is_there"]


def slurm_is_there() -> bool:
    sinfo = shutil.which("sinfo")
    if sinfo is None:
        return False
    try:
        return subprocess.run([sinfo], capture_output=True, timeout=5, check=False).returncode == 0  # noqa: S603
    except subprocess.TimeoutExpired:
        return False


class SlurmScheduler:
    """To come."""

    version = "22.05.8"

    def __init__(self, user: User) -> None:
        self.user = user

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def submit(self, submission: Submission) -> str:
        raise NotImplementedError

    def records(self, job_id: str | None = None) -> list[Record]:
        raise NotImplementedError

    def cancel(self, job_id: str) -> None:
        raise NotImplementedError

    def metadata(self, job_id: str) -> list[dict[str, Any]]:
        raise NotImplementedError

    def attach(self, job_id: str, command: str) -> None:
        raise NotImplementedError

    def nodes(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def partitions(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def reservations(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def accounts(self) -> list[dict[str, Any]]:
        raise NotImplementedError
