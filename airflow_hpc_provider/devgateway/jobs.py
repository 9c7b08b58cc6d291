"""Jobs of the local scheduler, and the records that sacct and squeue would show of them."""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .directives import JobOptions, Submission, format_indices
from .records import Record, Step
from .scheduler import User

__all__ = ["NODE", "Accounting", "Element", "Job", "Site"]

NODE = "nid001"
_DEFAULT_LIMIT = 3600
_ACTIVE = {"PENDING", "RUNNING", "COMPLETING", "REQUEUED"}


@dataclass(eq=False, slots=True)
class Element:
    """One thing to run: a whole job, or one element of an array."""

    job: "Job"
    index: int | None
    raw_id: str
    state: str = "PENDING"
    reason: str = "None"
    ready_at: float = 0.0
    started: float | None = None
    ended: float | None = None
    exit_code: int = 0
    signal: int = 0
    batch: tuple[str, int, int] | None = None
    process: "subprocess.Popen[bytes] | None" = None
    attached: "set[subprocess.Popen[bytes]]" = field(default_factory=set)
    run: int = 0
    restarts: int = 0
    kill_at: float | None = None

    @property
    def active(self) -> bool:
        return self.state in _ACTIVE

    @property
    def job_id(self) -> str:
        return self.job.job_id if self.index is None else f"{self.job.job_id}_{self.index}"

    @property
    def steps_folder(self) -> Path:
        """Where the stand-in for srun notes its steps."""
        return self.job.folder / f"steps.{'batch' if self.index is None else self.index}"


@dataclass(eq=False, slots=True)
class Job:
    job_id: str
    submission: Submission
    options: JobOptions
    script: str
    submitted: float
    priority: int
    folder: Path
    elements: list[Element] = field(default_factory=list)
    held: bool = False
    last_started: Element | None = None

    @property
    def limit(self) -> int | None:
        return self.options.time_limit

    @property
    def array_limit(self) -> int | None:
        return self.options.array.limit if self.options.array else None

    @property
    def live(self) -> bool:
        return any(element.active or element.process is not None for element in self.elements)

    def pending(self) -> list[Element]:
        return [element for element in self.elements if element.state == "PENDING"]

    def running(self) -> list[Element]:
        return [element for element in self.elements if element.state == "RUNNING"]


@dataclass(frozen=True, slots=True)
class Site:
    """The pretended cluster: its names, its one node, and whether slurmrestd stands before it."""

    user: User
    spool: Path
    cluster: str
    cpus: int
    partitions: tuple[str, ...]
    rest: bool = False

    def name(self, job: "Job") -> str:
        if job.options.name:
            return job.options.name
        if self.rest:
            return ""
        path = job.submission.script_path
        return Path(path).name if path else "sbatch"

    def account(self, job: "Job") -> str:
        return job.options.account or self.user.accounts[0]

    def partition(self, job: "Job") -> str:
        return job.options.partition or self.partitions[0]


class Accounting:
    """Tells of jobs as FirecREST does after asking both sacct and squeue."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def job_records(self, job: Job) -> list[Record]:
        if job.options.array is None:
            element = job.elements[0]
            return [self._squeue(element) if element.state == "PENDING" else self._sacct(element)]
        rest = [element for element in job.elements if element.started is None]
        known = [self._sacct(element) for element in job.elements if element.started is not None]
        known += self._rest_records(job, rest)
        running = sorted(job.running(), key=lambda element: int(element.raw_id), reverse=True)
        pending = [element for element in rest if element.state == "PENDING"]
        return known + [self._squeue(e) for e in pending[:1]] + [self._squeue(e) for e in running]

    def _rest_records(self, job: Job, rest: list[Element]) -> Iterator[Record]:
        """What did not start yet, or never will, is one record for each state."""
        for state in dict.fromkeys(element.state for element in rest):
            same = [element for element in rest if element.state == state]
            brackets = format_indices([e.index for e in same if e.index is not None], job.array_limit)
            yield self._sacct(same[0], job_id=f"{job.job_id}_{brackets}")

    def element_records(self, element: Element) -> Iterator[Record]:
        if element.state == "PENDING":
            yield self._squeue(element)
            return
        yield self._sacct(element)
        if element.state == "RUNNING" and element.index is not None:
            yield self._squeue(element)

    def _common(self, element: Element) -> dict[str, Any]:
        job = element.job
        return {
            "base_id": job.job_id,
            "raw_id": element.raw_id,
            "name": self._site.name(job),
            "state": element.state,
            "reason": element.reason,
            "account": self._site.account(job),
            "partition": self._site.partition(job),
            "user": self._site.user.name,
            "group": self._site.user.group,
            "working_directory": job.submission.working_directory,
            "cluster": self._site.cluster,
            "priority": 0 if job.held else job.priority,
            "submitted": job.submitted,
            "limit": job.limit or _DEFAULT_LIMIT,
        }

    def _sacct(self, element: Element, job_id: str | None = None) -> Record:
        started = element.started is not None
        return Record(
            job_id=job_id or element.job_id,
            source="sacct",
            nodes=NODE if started else "None assigned",
            node_count=1 if started else 0,
            exit_code=element.exit_code,
            signal=element.signal,
            start=element.started,
            end=element.ended,
            elapsed=_elapsed(element.started, element.ended),
            steps=tuple(self._steps(element)),
            killed_by=self._site.user.name if element.state.startswith("CANCELLED") else "",
            **self._common(element),
        )

    def _squeue(self, element: Element) -> Record:
        """Predicted times where Slurm predicts them: a begin time that was asked for, a running job's end."""
        start = element.started or (element.ready_at if element.ready_at > time.time() else None)
        limit = element.job.limit or _DEFAULT_LIMIT
        return Record(
            job_id=element.raw_id,
            source="squeue",
            nodes=NODE if element.started is not None else "",
            node_count=1,
            exit_code=None,
            signal=None,
            start=start,
            end=None if start is None else start + limit,
            elapsed=_elapsed(element.started, element.ended),
            **self._common(element),
        )

    def _steps(self, element: Element) -> Iterator[Step]:
        if element.started is None:
            return
        state, code, number = element.batch or ("RUNNING", 0, 0)
        if element.batch is None and element.ended is not None:
            return
        elapsed = _elapsed(element.started, element.ended)
        yield Step(
            f"{element.job_id}.batch", "batch", state, code, number, element.started, element.ended, elapsed
        )
        yield from _read_steps(element.steps_folder, element.job_id)


def _elapsed(start: float | None, end: float | None) -> int:
    return 0 if start is None else int((end if end is not None else time.time()) - start)


def _read_steps(folder: Path, job_id: str) -> Iterator[Step]:
    for file in sorted(folder.glob("step.*"), key=lambda path: int(path.suffix[1:])):
        began, _, rest = file.read_text(encoding="utf-8").partition(" ")
        if not rest:
            continue
        ended, code, name = rest.split(" ", 2)
        number = int(code)
        state = "COMPLETED" if number == 0 else "CANCELLED" if number < 0 else "FAILED"
        yield Step(
            f"{job_id}.{file.suffix[1:]}",
            name.strip(),
            state,
            max(0, number),
            max(0, -number),
            float(began),
            float(ended),
            int(float(ended) - float(began)),
        )
