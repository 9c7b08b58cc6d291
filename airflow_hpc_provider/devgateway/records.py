"""Job records as FirecREST answers them: what sacct knows, and what squeue knows."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["Record", "Step"]

_SIGTERM = 15


@dataclass(frozen=True, slots=True)
class Step:
    """One of Slurm's steps: FirecREST calls them tasks."""

    step_id: str
    name: str
    state: str
    exit_code: int = 0
    signal: int = 0
    start: float | None = None
    end: float | None = None
    elapsed: int = 0

    def body(self, *, rest: bool) -> dict[str, Any]:
        return {
            "id": self.step_id,
            "name": self.name,
            "status": _status(self.state, None, self.exit_code, self.signal, rest=rest),
            "time": {
                "elapsed": self.elapsed,
                "start": _whole(self.start),
                "end": _whole(self.end, 0 if rest else None),
                "suspended": 0,
                "limit": None,
            },
        }


@dataclass(frozen=True, slots=True)
class Record:
    """One job, array element or pending rest of an array, from one of Slurm's two sources."""

    job_id: str
    #: The id of the job or array it belongs to, and Slurm's number for it alone.
    base_id: str
    raw_id: str
    source: str
    name: str
    state: str
    reason: str
    account: str
    partition: str
    user: str
    group: str
    working_directory: str
    cluster: str
    nodes: str
    node_count: int
    priority: int
    submitted: float
    limit: int | None
    exit_code: int | None = 0
    signal: int | None = 0
    start: float | None = None
    end: float | None = None
    elapsed: int = 0
    steps: tuple[Step, ...] = field(default=())
    killed_by: str = ""

    @property
    def over(self) -> bool:
        return self.state.split(" ")[0] not in {"PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"}

    def incomplete(self) -> "Record":
        """What accounting tells for a few seconds after a short job's end."""
        return replace(
            self,
            name="allocation",
            partition="",
            working_directory="",
            group="root",
            limit=None,
            priority=0,
        )

    def body(self, *, rest: bool = False) -> dict[str, Any]:
        if rest:
            return self._rest_body()
        squeue = self.source == "squeue"
        status = (
            {"state": self.state, "stateReason": self.reason, "exitCode": None, "interruptSignal": None}
            if squeue
            else _status(self.state, self.reason, self.exit_code, self.signal, rest=False)
        )
        return {
            "jobId": self.job_id,
            "name": self.name,
            "status": status,
            "tasks": [step.body(rest=False) for step in self.steps],
            "time": {
                "elapsed": self.elapsed,
                "start": _whole(self.start),
                "end": _whole(self.end),
                "suspended": None if squeue else 0,
                "limit": self.limit,
            },
            **self._identity(),
        }

    def _identity(self) -> dict[str, Any]:
        return {
            "account": self.account,
            "allocationNodes": self.node_count,
            "cluster": self.cluster,
            "group": self.group,
            "nodes": self.nodes,
            "partition": self.partition,
            "killRequestUser": None,
            "user": self.user,
            "workingDirectory": self.working_directory,
            "priority": self.priority,
        }

    def _rest_body(self) -> dict[str, Any]:
        """The same job as slurmrestd shows it."""
        pending = self.state == "PENDING"
        state, _, _ = self.state.partition(" ")
        body = {
            "jobId": self.job_id,
            "name": self.name,
            "status": _status(state, self.reason, self.exit_code, self.signal, rest=True),
            "tasks": None if pending else [step.body(rest=True) for step in self.steps],
            "time": {
                "elapsed": None if pending else self.elapsed,
                "start": _whole(self.start, 0),
                "end": _whole(self.end, 0),
                "suspended": 0,
                "limit": self.limit,
            },
            **self._identity(),
        }
        if pending:
            return {**body, "allocationNodes": 0, "group": None, "nodes": ""}
        # Whoever gave no name sees "allocation" as soon as accounting has the job.
        return {**body, "name": self.name or "allocation", "killRequestUser": self.killed_by}


def _status(
    state: str, reason: str | None, exit_code: int | None, signal: int | None, *, rest: bool
) -> dict[str, Any]:
    if rest:
        by_signal = bool(signal) and signal != _SIGTERM
        exit_code, signal = (None, signal) if by_signal else (exit_code or 0, None)
    return {"state": state, "stateReason": reason, "exitCode": exit_code, "interruptSignal": signal}


def _whole(moment: float | None, default: int | None = None) -> int | None:
    return default if moment is None else math.floor(moment)
