"""Jobs: what to submit, how to read the scheduler's records of one, and the calls under ``/compute``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal

from .calls import Call, JSONObject, nothing, path, reading
from .errors import ApiError, InvalidInputError, RejectedError
from .script import array_indices
from .states import JobState, worst

__all__ = [
    "Element",
    "Job",
    "JobMetadata",
    "JobSpec",
    "Window",
    "attach",
    "cancel",
    "check_job_id",
    "get",
    "ids",
    "listing",
    "metadata",
    "read_job",
    "submit",
    "window_for",
]

Window = Literal["1h", "8h", "24h", "3d", "7d"]
_WINDOWS: tuple[tuple[float, Window], ...] = (
    (3600, "1h"),
    (8 * 3600, "8h"),
    (24 * 3600, "24h"),
    (3 * 86400, "3d"),
)
# Slurm's "no value" and "infinite" in 32 bits, which the REST mode passes on as numbers.
_NO_NUMBER = 4294967294


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What is submitted (``POST /compute/{system}/jobs``).

    :param name: job name
    :param working_directory: absolute path on the system
    :param script: text of the job script; or
    :param script_path: absolute path of a script on the system
    :param account: account to charge
    :param partition: partition
    :param reservation: reservation
    :param constraints: node features, as Slurm's ``--constraint``
    :param stdout: path or pattern for standard output
    :param stderr: path or pattern for standard error
    :param env: environment sent beside the script; FirecREST cuts values at commas in ssh mode
    """

    name: str
    working_directory: str
    script: str | None = None
    script_path: str | None = None
    account: str | None = None
    partition: str | None = None
    reservation: str | None = None
    constraints: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> JSONObject:
        """The request body."""
        job = {
            "name": self.name,
            "workingDirectory": self.working_directory,
            "script": self.script,
            "scriptPath": self.script_path,
            "account": self.account,
            "partition": self.partition,
            "reservation": self.reservation,
            "constraints": self.constraints,
            "standardOutput": self.stdout,
            "standardError": self.stderr,
            "env": dict(self.env) or None,
        }
        return {"job": {key: value for key, value in job.items() if value is not None}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One element of a job array.

    :param index: its array index
    :param state: its state
    :param exit_code: exit code of its script, if it ended
    :param signal: signal that ended it, if one did
    :param elapsed: seconds it has run
    """

    index: int
    state: JobState
    exit_code: int | None = None
    signal: int | None = None
    elapsed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job as the scheduler tells of it; of an array, all of it.

    :param job_id: id of the job or of the whole array
    :param state: Slurm state; of an array, not final while one element is not
    :param state_text: the state as the gateway wrote it
    :param reason: Slurm's reason; it may be the last pending one of a job that ended long ago
    :param exit_code: exit code of the script
    :param signal: signal that ended it
    :param start: when it started, or None
    :param end: when it ended, or None
    :param elapsed: seconds it has run
    :param limit: its time limit in seconds
    :param nodes: node list as Slurm writes it
    :param elements: elements of an array whose index is known, in order
    """

    job_id: str
    state: JobState
    state_text: str = ""
    name: str | None = None
    reason: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    user: str | None = None
    account: str | None = None
    partition: str | None = None
    working_directory: str | None = None
    nodes: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    elapsed: int | None = None
    limit: int | None = None
    elements: tuple[Element, ...] = ()

    def to_json(self) -> JSONObject:
        """Plain JSON, for events and XCom."""
        plain: JSONObject = {item.name: getattr(self, item.name) for item in fields(self)}
        return plain | {
            "state": self.state.value,
            "start": self.start.isoformat() if self.start else None,
            "end": self.end.isoformat() if self.end else None,
            "elements": [
                {item.name: getattr(element, item.name) for item in fields(element)}
                | {"state": element.state.value}
                for element in self.elements
            ],
        }

    @classmethod
    def from_json(cls, plain: JSONObject) -> Job:
        """The job that :meth:`to_json` told of."""
        given = dict(plain)
        for key in ("start", "end"):
            given[key] = datetime.fromisoformat(plain[key]) if plain[key] else None
        given["state"] = JobState.read(plain["state"])
        given["elements"] = tuple(
            Element(**item | {"state": JobState.read(item["state"])}) for item in plain["elements"]
        )
        return cls(**given)

    @property
    def failed_indices(self) -> tuple[int, ...]:
        """Indices of the elements that are over and did not complete."""
        return tuple(item.index for item in self.elements if item.state.final and not item.state.succeeded)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobMetadata:
    """What the scheduler keeps beside a job's record; known while it runs and for some minutes after."""

    job_id: str
    script: str | None
    stdin: str | None
    stdout: str | None
    stderr: str | None


def check_job_id(value: object, field_name: str = "job_id") -> str:
    """A job id as the gateway takes it.

    :param value: an id as text or number, or the result of a submit task (a mapping with ``job_id``)
    :param field_name: parameter to name in the error
    :raises InvalidInputError: it is none, for example the XCom of a task that did not run
    """
    if isinstance(value, Mapping):
        value = value.get("job_id")
    if value is None or value == "":
        raise InvalidInputError(
            field_name,
            "there is no job id; if it comes from another task, that task did not run or returned nothing.",
        )
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if re.fullmatch(r"[0-9]+_[0-9]+", text):
        raise InvalidInputError(
            field_name,
            f"{text!r} is one element of an array; the gateway takes the id of the whole array only.",
        )
    if not re.fullmatch(r"[0-9][0-9A-Za-z]*", text):
        raise InvalidInputError(field_name, f"{value!r} is no job id.")
    return text


def window_for(age: float) -> Window:
    """The narrowest window of the list endpoint that covers an age.

    :param age: seconds since the oldest job of interest was submitted
    """
    return next((name for limit, name in _WINDOWS if age < limit * 0.9), "7d")


def submit(system: str, spec: JobSpec) -> Call[str]:
    """Submit a job and return its id.

    An error that is ``ambiguous`` may have left a job behind: look for its name before sending it again.

    Endpoint: ``POST /compute/{system}/jobs``.
    """
    doing = f"submit job {spec.name}"
    return Call(
        doing=doing,
        method="POST",
        path=path("compute", system, "jobs"),
        system=system,
        json=spec.body(),
        read=reading(doing, lambda body: check_job_id(body["jobId"])),
        replayable=False,
    )


def get(system: str, job_id: str, *, expected: Iterable[int] = ()) -> Call[Job]:
    """Read one job.

    :param expected: indices the array was submitted with, if it is one and they are known
    :raises NotFoundError: the gateway does not know the id, or not yet

    Endpoint: ``GET /compute/{system}/jobs/{job_id}``.
    """
    doing = f"read job {job_id}"
    indices = frozenset(expected)
    return Call(
        doing=doing,
        method="GET",
        path=path("compute", system, "jobs", check_job_id(job_id)),
        system=system,
        read=reading(doing, lambda body: read_job(job_id, body["jobs"] or [], expected=indices)),
        replayable=True,
    )


def ids(system: str, job_id: str) -> Call[frozenset[str]]:
    """Read all ids under which the scheduler tells of a job: elements of an array have raw ids of their own.

    :raises NotFoundError: the gateway does not know the id, or not yet

    Endpoint: ``GET /compute/{system}/jobs/{job_id}``.
    """
    doing = f"read the ids of job {job_id}"
    return Call(
        doing=doing,
        method="GET",
        path=path("compute", system, "jobs", check_job_id(job_id)),
        system=system,
        read=reading(doing, lambda body: frozenset(str(record["jobId"]) for record in body["jobs"] or [])),
        replayable=True,
    )


def listing(
    system: str,
    *,
    name: str | None = None,
    account: str | None = None,
    all_users: bool = False,
    window: Window | None = None,
) -> Call[tuple[Job, ...]]:
    """List jobs: all that wait or run, and those that ended within a window (the gateway's default: 24 h).

    :param name: only jobs of this name; servers before 2.6 ignore it, so the answer is filtered again
    :param account: only jobs of this account
    :param all_users: jobs of all users that the caller may see
    :param window: how far back to look for jobs that ended
    :return: jobs in the order of their ids; an array counts as one, but while it lives its elements may
        show up again under raw ids (see :func:`ids`)

    Endpoint: ``GET /compute/{system}/jobs``.
    """
    doing = f"list jobs named {name}" if name else "list jobs"
    given = {
        "name": name,
        "account": account,
        "time_window": window,
        "allusers": "true" if all_users else None,
    }

    def build(body: JSONObject) -> tuple[Job, ...]:
        groups: dict[str, list[JSONObject]] = {}
        for record in body["jobs"] or []:
            groups.setdefault(_base(str(record["jobId"])), []).append(record)
        jobs = sorted((read_job(job_id, records) for job_id, records in groups.items()), key=_by_id)
        return tuple(job for job in jobs if name is None or job.name == name)

    return Call(
        doing=doing,
        method="GET",
        path=path("compute", system, "jobs"),
        system=system,
        params={key: value for key, value in given.items() if value is not None},
        read=reading(doing, build),
        replayable=True,
    )


def metadata(system: str, job_id: str) -> Call[JobMetadata]:
    """Read a job's script and the paths of its output files.

    :raises NotFoundError: not known, or no longer
    :raises UnsupportedError: the system is in REST mode

    Endpoint: ``GET /compute/{system}/jobs/{job_id}/metadata``.
    """
    doing = f"read the metadata of job {job_id}"

    def build(body: JSONObject) -> JobMetadata:
        entry = body["jobs"][0]
        return JobMetadata(
            job_id=str(entry["jobId"]),
            script=entry.get("script"),
            stdin=entry.get("standardInput"),
            stdout=entry.get("standardOutput"),
            stderr=entry.get("standardError"),
        )

    return Call(
        doing=doing,
        method="GET",
        path=path("compute", system, "jobs", check_job_id(job_id), "metadata"),
        system=system,
        read=reading(doing, build),
        replayable=True,
    )


def cancel(system: str, job_id: str) -> Call[bool]:
    """Cancel a job or a whole array.

    :return: False if there was nothing left to cancel

    Endpoint: ``DELETE /compute/{system}/jobs/{job_id}``.
    """

    def refused(error: ApiError) -> bool:
        over = re.search(r"already completing or completed|invalid job id", error.message, re.IGNORECASE)
        if isinstance(error, RejectedError) and over:
            return False
        raise error

    return Call(
        doing=f"cancel job {job_id}",
        method="DELETE",
        path=path("compute", system, "jobs", check_job_id(job_id)),
        system=system,
        read=lambda _: True,
        refused=refused,
        replayable=True,
    )


def attach(system: str, job_id: str, command: str) -> Call[None]:
    """Run a command inside a running job's allocation; a system in REST mode says yes and does nothing.

    Endpoint: ``PUT /compute/{system}/jobs/{job_id}/attach``.
    """
    return Call(
        doing=f"run a command in job {job_id}",
        method="PUT",
        path=path("compute", system, "jobs", check_job_id(job_id), "attach"),
        system=system,
        json={"command": command},
        read=nothing,
        replayable=False,
    )


def read_job(job_id: str, records: list[JSONObject], *, expected: frozenset[int] = frozenset()) -> Job:
    """Make one job of the gateway's records of it.

    A plain job has one record. An array has many, and while it lives some elements appear twice: once from
    accounting as ``12_0`` or ``12_[1-5%2]``, once from the queue under a raw id of their own.

    :param job_id: the id asked for
    :param records: ``jobs`` of the answer
    :param expected: indices the array was submitted with, if known: it is over when all of them are
    :raises ValueError: there is no record
    """
    if not records:
        raise ValueError("no record of the job")
    states = [JobState.read(record["status"]["state"]) for record in records]
    elements = _elements(records)
    if elements or expected:
        missing = not _cut_off(records) and expected - elements.keys()
        state = worst([*states, *([JobState.PENDING] if missing else [])])
    else:
        state = worst(states)
    # What the whole is like is told best by a record that shares its state, and has the most to say.
    told = max(
        (record for record, of in zip(records, states, strict=True) if of is state),
        key=_completeness,
        default=records[0],
    )
    status = told["status"]
    times = [record.get("time") or {} for record in records]
    starts = [at for at in (_number(time.get("start")) for time in times) if at]
    ends = [at for at in (_number(time.get("end")) for time in times) if at]
    runs = [seconds for seconds in (_number(time.get("elapsed")) for time in times) if seconds is not None]
    waiting = all(of.waiting for of in states)
    return Job(
        job_id=job_id,
        state=state,
        state_text=str(status["state"]),
        name=told.get("name") or None,
        reason=_word(status.get("stateReason")),
        # REST mode tells 0 of a job that has not even begun.
        exit_code=_number(status.get("exitCode")) if state.final else None,
        signal=_number(status.get("interruptSignal")) or _step_signal(told),
        user=told.get("user"),
        account=told.get("account"),
        partition=told.get("partition") or None,
        working_directory=told.get("workingDirectory") or None,
        nodes=_word(told.get("nodes")),
        # A waiting job's times are the scheduler's guesses, and so is a running one's end.
        start=None if waiting or not starts else _when(min(starts)),
        end=_when(max(ends)) if state.final and ends else None,
        elapsed=max(runs, default=None),
        limit=_number((told.get("time") or {}).get("limit")),
        elements=tuple(elements[index] for index in sorted(elements)),
    )


def _elements(records: list[JSONObject]) -> dict[int, Element]:
    """Elements by index. Of two records of one element, the one that is not final speaks."""
    elements: dict[int, Element] = {}
    for record in records:
        found = re.fullmatch(r"[0-9]+_(?:([0-9]+)|\[([^\]]*)\])", str(record["jobId"]))
        if not found:
            continue
        status = record["status"]
        state = JobState.read(status["state"])
        for index in [int(found[1])] if found[1] else _rest(found[2]):
            if index in elements and not elements[index].state.final:
                continue
            elements[index] = Element(
                index=index,
                state=state,
                exit_code=_number(status.get("exitCode")) if state.final else None,
                signal=_number(status.get("interruptSignal")) or _step_signal(record),
                elapsed=_number((record.get("time") or {}).get("elapsed")),
            )
    return elements


def _cut_off(records: list[JSONObject]) -> bool:
    """Whether Slurm cut off a list of indices with dots: then that record speaks for all that is missing."""
    return any(re.search(r"_\[.*\.\.\.", str(record["jobId"])) for record in records)


def _rest(spec: str) -> list[int]:
    """Indices of ``12_[1,3-9%2]``; of a list that Slurm cut off they stay unknown."""
    try:
        return array_indices(spec.split("%", maxsplit=1)[0])
    except InvalidInputError:
        return []


def _step_signal(record: JSONObject) -> int | None:
    """Signal that ended the batch step: of a job over its time limit only the step tells it."""
    for step in record.get("tasks") or []:
        if str(step.get("name")) == "batch":
            return _number((step.get("status") or {}).get("interruptSignal")) or None
    return None


def _completeness(record: JSONObject) -> int:
    """Accounting's first record of a short job lacks its directory and partition and has a wrong name."""
    return sum(1 for key in ("workingDirectory", "partition", "nodes") if record.get(key))


def _number(value: Any) -> int | None:
    return (
        value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _NO_NUMBER else None
    )


def _word(value: Any) -> str | None:
    return str(value) if value and value not in ("None", "None assigned") else None


def _when(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)


def _base(job_id: str) -> str:
    return re.split(r"[_+]", job_id, maxsplit=1)[0]


def _by_id(job: Job) -> tuple[int, str]:
    return (int(job.job_id) if job.job_id.isdigit() else 0), job.job_id
