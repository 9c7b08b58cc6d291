"""``Variation``: how a job that follows one that failed differs: more memory or time, fewer indices; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta

from .calls import JSONObject
from .errors import InvalidInputError
from .jobs import Job
from .request import JobRequest
from .script import array_indices, array_text, format_time, narrowed, parse_memory, parse_time
from .states import JobState

__all__ = ["Completed", "Rules", "Variation"]

# What a failure asks more of, and the options that say how much there is. Of the memory options Slurm takes
# one.
_ASKS_FOR = {JobState.OUT_OF_MEMORY: "mem", JobState.TIMEOUT: "time"}
_OPTIONS = {"mem": ("mem", "mem-per-cpu", "mem-per-gpu"), "time": ("time",)}
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Completed:
    """Elements of an array that completed in an earlier job and do not run again.

    :param job_id: id of that job
    :param name: its name
    :param indices: their indices, as ``0-3,7``
    """

    job_id: str
    name: str
    indices: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """What is different about a job that follows one that failed. The first job of a task varies nothing.

    :param scaled: how often more was asked for, by ``mem`` and ``time``
    :param array: the indices still to run, as sbatch takes them; None for all
    :param completed: those that need not run again
    :param directory: name of the job in whose own directory the array began; None for the job's own name
    :param free: the job before has begun, so that what it depended on was met. Slurm forgets old jobs, and
        refuses a dependency on one that it has forgotten
    """

    scaled: Mapping[str, int] = field(default_factory=dict)
    array: str | None = None
    completed: tuple[Completed, ...] = ()
    directory: str | None = None
    free: bool = False

    def to_json(self) -> JSONObject:
        """Plain JSON, for the task state store and triggers."""
        return asdict(self) | {"completed": [asdict(some) for some in self.completed]}

    @classmethod
    def from_json(cls, plain: JSONObject | None) -> Variation:
        """The variation that :meth:`to_json` told of; None varies nothing."""
        if not plain:
            return cls()
        return cls(**plain | {"completed": tuple(Completed(**some) for some in plain["completed"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a user asked for, and what may vary of it.

    :param request: the job
    :param factors: by how much ``mem`` and ``time`` grow when a job had too little of them
    :param at_most: how often they may grow, in all
    :param failed_only: of an array that failed, run only those elements again that did not complete
    """

    request: JobRequest
    factors: Mapping[str, float] = field(default_factory=dict)
    at_most: int = 3
    failed_only: bool = False

    @classmethod
    def checked(
        cls, request: JobRequest, *, escalate: object = None, at_most: object = 3, failed_only: bool = False
    ) -> Rules:
        """Check what the user gave.

        :param request: the job; what shall grow must be given in it
        :param escalate: factors by ``mem`` and ``time``
        :raises InvalidInputError: naming the parameter at fault
        """
        if escalate is not None and not isinstance(escalate, Mapping):
            raise InvalidInputError("escalate", "is no mapping. Give one: {'mem': 2.0, 'time': 1.5}.")
        for name, factor in (escalate or {}).items():
            if name not in _OPTIONS:
                raise InvalidInputError("escalate", f"{name!r} cannot grow; mem and time can.")
            number = isinstance(factor, int | float) and not isinstance(factor, bool)
            if not number or not 1 < factor <= 100:
                raise InvalidInputError(f"escalate[{name!r}]", f"{factor!r} is no number above 1, up to 100.")
            _amount(request, name)
        if isinstance(at_most, bool) or not isinstance(at_most, int) or at_most < 0:
            raise InvalidInputError("max_escalations", f"{at_most!r} is no number of jobs.")
        if failed_only and request.array is None:
            raise InvalidInputError("resubmit_failed_indices", "is for job arrays, and this job is none.")
        return cls(request=request, factors=dict(escalate or {}), at_most=at_most, failed_only=failed_only)

    def grows(self, state: JobState, before: Variation) -> str | None:
        """What a job that ended so shall get more of, if it may: ``mem`` or ``time``."""
        lacking = _ASKS_FOR.get(state)
        return lacking if lacking in self.factors and sum(before.scaled.values()) < self.at_most else None

    def after(self, job: Job, name: str, before: Variation) -> Variation:
        """The variation for the job that follows one that failed.

        :param job: the one that failed
        :param name: the name it was submitted under
        :param before: how the failed job varied
        """
        after = replace(before, free=before.free or job.start is not None)
        if lacking := self.grows(job.state, before):
            after = replace(after, scaled={**before.scaled, lacking: before.scaled.get(lacking, 0) + 1})
        whole = self.request.array
        if not self.failed_only or whole is None:
            return after
        ran = before.array or whole
        over = [element.index for element in job.elements if element.state.succeeded]
        left = sorted(set(array_indices(ran)) - set(over))
        if not over or not left:
            return after
        return replace(
            after,
            array=narrowed(ran, left),
            completed=(*before.completed, Completed(job.job_id, name, array_text(over))),
            directory=before.directory or name,
        )

    def request_for(self, variation: Variation) -> JobRequest:
        """The request for a job that varies."""
        options = dict(self.request.options)
        for name, times in variation.scaled.items():
            option, amount = _amount(self.request, name)
            options[option] = _text(name, amount * self.factors.get(name, 1.0) ** times)
        if variation.array is not None:
            options["array"] = variation.array
        if variation.free:
            options.pop("dependency", None)
        return replace(self.request, options=options)


def _amount(request: JobRequest, name: str) -> tuple[str, float]:
    """The option that says how much there is of something, and how much: bytes, or seconds.

    :raises InvalidInputError: none does, or it is one that cannot grow
    """
    given = request.all_options
    for option in _OPTIONS[name]:
        value = given.get(option)
        if value is None:
            continue
        if name == "time":
            return option, parse_time(value, "escalate['time']").total_seconds()
        amount = parse_memory(value, "escalate['mem']")
        if amount is None:
            raise InvalidInputError("escalate['mem']", f"--{option}=0 is all there is; it cannot grow.")
        return option, amount
    raise InvalidInputError(
        f"escalate[{name!r}]",
        f"the job does not say how much it gets at first: give {name} in sbatch_options or the script.",
    )


def _text(name: str, amount: float) -> str:
    if name == "time":
        return format_time(timedelta(seconds=math.ceil(amount)))
    return f"{math.ceil(amount / _MIB)}M"
