"""``Watch``: when to look again, and what a look means; pure, the clock is passed in.

Operators, sensors and triggers feed one of the watches below with what they saw or failed to see. It answers
with a ``Verdict`` once there is one. :func:`follow` and :func:`follow_async` are the two loops around it.
"""

from __future__ import annotations

import asyncio
import fnmatch
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from .client.calls import Call, JSONObject
from .client.errors import ApiError, HpcError, NotFoundError, TokenError, UnauthorizedError

if TYPE_CHECKING:
    from .client.files import Entry
    from .client.jobs import Job
    from .client.states import JobState
    from .client.systems import System

__all__ = [
    "FileWatch",
    "JobWatch",
    "Outcome",
    "Sends",
    "SendsOnLoop",
    "SystemWatch",
    "Verdict",
    "Watch",
    "follow",
    "follow_async",
    "matching",
    "watch_from_json",
]

T = TypeVar("T")

# A job may stay invisible for so many seconds after it was submitted.
_VISIBLE_WITHIN = 120.0
# A job that was visible may be out of sight for so many seconds, while accounting is behind.
_LOST_AFTER = 30.0
# This machine's clock and the cluster's may differ by so many seconds.
_CLOCKS_DIFFER = 600.0
_NAMES_OF_HASTE = ("allocation",)
_NOT_FOUND = "the gateway does not find it"
# Slurm may requeue a job that ended in some states: such an end is believed when it still stands this many
# seconds later.
_CONFIRM_AFTER = 15.0


class Sends(Protocol):
    """What the looks of a worker are sent with: a ``Client``, or something in front of one."""

    def send(self, call: Call[T], /) -> T:
        """Carry out a call.

        :raises HpcError: it failed
        """
        ...


class SendsOnLoop(Protocol):
    """The same on an event loop: an ``AsyncClient``, or something in front of one."""

    async def send(self, call: Call[T], /) -> T:
        """Carry out a call.

        :raises HpcError: it failed
        """
        ...


class Outcome(StrEnum):
    """How a watch ended."""

    DONE = "done"  # what was waited for has come: the job is over, the file is there, the system is healthy
    LOST = "lost"  # the gateway does not know the job any more
    TIMEOUT = "timeout"  # the deadline passed first
    FAILED = "failed"  # the gateway could not be asked, or refused to answer
    STOPPED = "stopped"  # the process that waited was told to end
    STUCK = "stuck"  # the job waits for what will not come


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a watch, as it travels from a trigger to its operator.

    :param outcome: how it ended
    :param message: one sentence for the log and for errors
    :param data: plain JSON about what was watched: the job, the files, the system
    :param transient: for ``FAILED``, whether a retry of the task can help
    """

    outcome: Outcome
    message: str = ""
    data: JSONObject = field(default_factory=dict)
    transient: bool = True

    def to_event(self) -> JSONObject:
        """The payload of a trigger event."""
        return asdict(self) | {"outcome": self.outcome.value}

    @classmethod
    def from_event(cls, event: Any) -> Verdict:
        """The verdict in an event.

        :raises ValueError: the event holds none
        """
        if not isinstance(event, dict) or "outcome" not in event:
            raise ValueError(f"the trigger sent {event!r}, which is no verdict")
        return cls(**event | {"outcome": Outcome(event["outcome"])})


@dataclass(kw_only=True)
class Watch(Generic[T]):
    """Looks at one thing until there is a verdict. Arguments are plain JSON: a trigger carries them.

    :param system: name of the system
    :param since: epoch seconds at which the wait began; of a job, when it was submitted
    :param deadline: epoch seconds at which to give up, or None
    :param poll_interval: seconds between two looks at the most
    :param patience: seconds for which a gateway that cannot be asked is waited for
    :param not_before: epoch seconds before which no verdict is given
    """

    kind: ClassVar[str]

    system: str
    since: float
    deadline: float | None = None
    poll_interval: float = 30.0
    patience: float = 1800.0
    not_before: float = 0.0

    def __post_init__(self) -> None:
        self._changed = self.since
        self._last: Any = None
        # Since when the gateway cannot be asked, and how that began.
        self._outage: tuple[float, HpcError] | None = None
        self._pause = 0.0
        self._error: HpcError | None = None

    def to_json(self) -> JSONObject:
        """Arguments that make this watch again, and its kind."""
        return asdict(self) | {"kind": self.kind}

    def look(self) -> Call[T]:
        """The call that looks."""
        raise NotImplementedError

    def decide(self, seen: T, now: float) -> Verdict | None:
        """What one sight means."""
        raise NotImplementedError

    def describe(self) -> str:
        """What is waited for, in a few words."""
        raise NotImplementedError

    def last_sight(self) -> str:
        """What was there when it was last seen, in a few words."""
        raise NotImplementedError

    @property
    def news(self) -> str:
        """What the log should tell now: the last sight, or that there is none and why.

        It stays the same throughout an outage of the gateway, in the words of its first error, so that
        whoever logs what is new logs an outage once.
        """
        if self._outage is None:
            return self.last_sight()
        why = str(self._outage[1]).rstrip(".")
        return (
            f"the gateway cannot be asked and is waited for with a patience of {self.patience:.0f} s. {why}"
        )

    @property
    def gives_up_at(self) -> float:
        """Epoch seconds at which, as things stand, the wait ends without another word of the gateway.

        That is the deadline, or the end of the patience with an outage; infinity if there is neither.
        """
        return max(min(self._ends, default=math.inf), self.not_before)

    @property
    def _ends(self) -> list[float]:
        ends = [] if self.deadline is None else [self.deadline]
        return ends if self._outage is None else [*ends, self._outage[0] + self.patience]

    def saw(self, seen: T, now: float) -> Verdict | None:
        """Take what a look saw.

        :param seen: the result of the call
        :param now: epoch seconds
        :return: the verdict, if this is the end
        """
        self._answered()
        return self._unless_early(self.decide(seen, now) or self._late(now), now)

    def missed(self, error: HpcError, now: float) -> Verdict | None:
        """Take a look that failed. A gateway that cannot be asked says nothing about what is watched.

        :param error: how it failed
        :param now: epoch seconds
        :return: the verdict, if this is the end
        """
        self._error = error
        asked = error.retry_after or 0.0 if isinstance(error, ApiError) else 0.0
        self._pause = min(asked, self.patience)
        self._outage = self._outage or (now, error)
        waits = error.transient or isinstance(error, TokenError | UnauthorizedError)
        if not waits:
            refusal = Verdict(Outcome.FAILED, f"{self.describe()}: {error}", transient=False)
            return self._unless_early(refusal, now)
        began = self._outage[0]
        if now >= began + self.patience:
            text = f"{self.describe()}: the gateway could not be asked for {now - began:.0f} s. Last: {error}"
            return self._unless_early(Verdict(Outcome.FAILED, text), now)
        return self._late(now)

    def delay(self, now: float, rand: float = 0.5) -> float:
        """Seconds to wait before the next look: short at first and after a change, longer in quiet.

        :param now: epoch seconds
        :param rand: a number in [0, 1) that spreads the looks of many watches
        """
        quiet = max(0.0, now - self._changed)
        pace = min(self.poll_interval, max(1.0, quiet / 5)) * (0.9 + rand / 5)
        if now < self.not_before:
            pace = min(pace, self.not_before - now)
        return min([max(pace, self._pause), *(end - now for end in self._ends if now < end)])

    @property
    def pending(self) -> bool:
        """Whether something is in sight that may end the wait in a moment."""
        return False

    def _noted(self, state: Any, now: float) -> bool:
        """Remember what is there now; True if it is new."""
        if state == self._last:
            return False
        self._last, self._changed = state, now
        return True

    def _answered(self) -> None:
        self._outage, self._pause, self._error = None, 0.0, None

    def _unless_early(self, verdict: Verdict | None, now: float) -> Verdict | None:
        return verdict if now >= self.not_before else None

    def _late(self, now: float) -> Verdict | None:
        if self.deadline is None or now < max(self.deadline, self.not_before):
            return None
        text = f"{self.describe()}: the time-out came after {now - self.since:.0f} s."
        if self._error:
            text += f" The gateway could not be asked: {self._error}"
        return Verdict(Outcome.TIMEOUT, text, data=self._sight())

    def _sight(self) -> JSONObject:
        """What a time-out tells of the thing watched."""
        return {}


@dataclass(kw_only=True)
class JobWatch(Watch["Job | None"]):
    """Until a job, or every element of an array, is over.

    :param job_id: id of the job
    :param array: the array it was submitted with, as ``0-99%10``, if it is one and it is known
    :param name: name it was submitted under, if that is known to be its own: it is looked for by it when
        its id is not known, and a job of another name under its id is another job
    :param pending_grace: seconds for which it may wait for a reason that does not pass by itself
    """

    kind: ClassVar[str] = "job"

    job_id: str
    array: str | None = None
    name: str | None = None
    pending_grace: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._ended: tuple[JobState, float] | None = None
        self._job: Job | None = None
        self._gone: float | None = None
        self._stuck: float | None = None
        self._why = _NOT_FOUND
        self._by_name = False

    @property
    def job(self) -> Job | None:
        """The last sight of the job."""
        return self._job

    def describe(self) -> str:
        return f"Job {self.job_id} on system {self.system}"

    def look(self) -> Call[Job | None]:
        from .client.jobs import get as get_job
        from .client.jobs import listing as list_jobs
        from .client.jobs import window_for
        from .client.script import array_indices

        if self._by_name and self.name:
            listing = list_jobs(self.system, name=self.name, window=window_for(self._age))
            return listing.then(lambda found: found[0] if found else None)
        indices = array_indices(self.array) if self.array else ()
        return get_job(self.system, self.job_id, expected=indices).then(lambda job: job)

    def decide(self, seen: Job | None, now: float) -> Verdict | None:
        if seen is None:
            return self._absent(None, now)
        if not self._is_ours(seen):
            return self._absent(f"its id now belongs to job {seen.name} of {seen.user}", now)
        self._gone, self._by_name = None, False
        self._job = seen
        self._noted((seen.state, seen.reason if seen.state.waiting else None, len(seen.elements)), now)
        if not seen.state.final:
            self._ended = None
            return self._kept_waiting(seen, now)
        if seen.state.requeueable:
            if self._ended is None or self._ended[0] is not seen.state:
                self._ended = (seen.state, now)
            if now - self._ended[1] < _CONFIRM_AFTER:
                return None
        return Verdict(Outcome.DONE, f"{self.describe()} is {seen.state.value}.", data=seen.to_json())

    @property
    def pending(self) -> bool:
        return self._ended is not None or self._gone is not None

    def missed(self, error: HpcError, now: float) -> Verdict | None:
        if isinstance(error, NotFoundError) and "job" in error.message.lower():
            self._answered()
            return self._unless_early(self._absent(_NOT_FOUND, now), now) or self._late(now)
        return super().missed(error, now)

    @property
    def _age(self) -> float:
        return max(0.0, (self._gone or self.since) - self.since)

    def _is_ours(self, seen: Job) -> bool:
        """Whether a record is of the job that is watched: the scheduler gives old ids anew.

        Accounting shows a short job under a wrong name at first, and REST mode without any.
        """
        if self.name is None:
            return True
        if seen.name and seen.name not in (self.name, *_NAMES_OF_HASTE):
            return False
        if self._job and self._job.user and seen.user and seen.user != self._job.user:
            return False
        return seen.start is None or seen.start.timestamp() > self.since - _CLOCKS_DIFFER

    def _absent(self, why: str | None, now: float) -> Verdict | None:
        """Not visible yet, out of sight for a moment, or lost: looked for by id and by name in turn.

        :param why: what the look by id found instead; None after one by name, which found nothing
        """
        self._why = why or self._why
        if now - self.since < _VISIBLE_WITHIN:
            return None
        self._gone = now if self._gone is None else self._gone
        self._by_name = not self._by_name
        if now - self._gone < _LOST_AFTER:
            return None
        found = self._why if why else f"{self._why}, and no job has its name either"
        text = (
            f"{self.describe()} is lost: {found}. Look for it in Slurm's accounting: sacct -j {self.job_id}."
        )
        return Verdict(Outcome.LOST, text, transient=False)

    def _kept_waiting(self, seen: Job, now: float) -> Verdict | None:
        """A job that waits for what will not come is told of at once, and given up after a grace."""
        from .client.states import stuck

        why = stuck(seen.reason) if seen.state.waiting else None
        if why is None:
            self._stuck = None
            return None
        self._stuck = now if self._stuck is None else self._stuck
        if self.pending_grace is None or now - self._stuck < self.pending_grace:
            return None
        return Verdict(Outcome.STUCK, f"{self.describe()}: {why}", data=seen.to_json(), transient=False)

    def _sight(self) -> JSONObject:
        return self._job.to_json() if self._job else {}

    def last_sight(self) -> str:
        from .client.states import stuck

        if self._job is None:
            return "not visible yet"
        if self._gone is not None:
            return "out of sight"
        if not self._job.state.waiting or not self._job.reason:
            return str(self._job.state.value)
        told = f"{self._job.state.value} ({self._job.reason})"
        return told if self._stuck is None else f"{told}. {stuck(self._job.reason) or ''}".rstrip(". ")


def matching(entries: Iterable[Entry], directory: str, glob: str) -> dict[str, tuple[int, int | str]]:
    """Size and time of change of those files in a directory whose names match, by path.

    :param entries: a listing of the directory, which may tell of more than a shell would match
    :param directory: its absolute path
    :param glob: pattern of file names, as in a shell
    """
    from .client.files import EntryKind

    base, hidden = directory.rstrip("/"), glob.startswith(".")
    return {
        f"{base}/{entry.name}": (entry.size, entry.modified)
        for entry in entries
        if entry.kind is not EntryKind.DIRECTORY
        and (hidden or not entry.name.startswith("."))
        and fnmatch.fnmatchcase(entry.name, glob)
    }


@dataclass(kw_only=True)
class FileWatch(Watch[dict[str, tuple[int, int | str]]]):
    """Until a path, or a file that matches a glob, is there and keeps its size.

    :param path: absolute path; with ``glob`` the directory to look in
    :param glob: pattern of file names, as in a shell
    :param stable_for: seconds for which size and time of change must stay the same; 0 takes the first sight
    """

    kind: ClassVar[str] = "file"

    path: str
    glob: str | None = None
    stable_for: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._since: dict[str, tuple[tuple[int, int | str], float]] = {}

    def describe(self) -> str:
        return f"{self.path}{'/' + self.glob if self.glob else ''} on system {self.system}"

    def look(self) -> Call[dict[str, tuple[int, int | str]]]:
        from .client.files import listing as list_directory
        from .client.files import stat as stat_file

        if self.glob is None:
            return stat_file(self.system, self.path, dereference=True).then(
                lambda stat: {self.path: (stat.size, stat.modified)}
            )
        directory, glob = self.path, self.glob
        return list_directory(self.system, directory, hidden=glob.startswith(".")).then(
            lambda entries: matching(entries, directory, glob)
        )

    def decide(self, seen: dict[str, tuple[int, int | str]], now: float) -> Verdict | None:
        self._noted(seen, now)
        for name, sight in seen.items():
            if name not in self._since or self._since[name][0] != sight:
                self._since[name] = (sight, now)
        self._since = {name: known for name, known in self._since.items() if name in seen}
        ready = sorted(name for name, (_, at) in self._since.items() if now - at >= self.stable_for)
        if not ready:
            return None
        found = [{"path": name, "size": self._since[name][0][0]} for name in ready]
        text = f"{ready[0]} is there" if len(ready) == 1 else f"{len(ready)} files are there"
        return Verdict(Outcome.DONE, f"{text} on system {self.system}.", data={"files": found})

    def missed(self, error: HpcError, now: float) -> Verdict | None:
        if isinstance(error, NotFoundError) and "system not found" not in error.message.lower():
            return self.saw({}, now)
        return super().missed(error, now)

    @property
    def pending(self) -> bool:
        return bool(self._since)

    def delay(self, now: float, rand: float = 0.5) -> float:
        pending = [at + self.stable_for - now for _, at in self._since.values()]
        return min([super().delay(now, rand), *(max(1.0, self._pause, left) for left in pending)])

    def last_sight(self) -> str:
        return f"{len(self._since)} seen, still changing" if self._since else "not there yet"


@dataclass(kw_only=True)
class SystemWatch(Watch["tuple[System, ...]"]):
    """Until a system is healthy.

    :param services: kinds of service that must be healthy (``scheduler``, ``ssh``, …); empty for all
    """

    kind: ClassVar[str] = "system"

    services: list[str] = field(default_factory=list)

    def describe(self) -> str:
        return f"System {self.system}"

    def look(self) -> Call[tuple[System, ...]]:
        from .client.systems import listing as list_systems

        return list_systems()

    def decide(self, seen: tuple[System, ...], now: float) -> Verdict | None:
        found = next((system for system in seen if system.name.lower() == self.system.lower()), None)
        if found is None:
            names = ", ".join(system.name for system in seen) or "none"
            text = f"There is no system {self.system} on this gateway; it has: {names}."
            return Verdict(Outcome.FAILED, text, transient=False)
        ill = [
            f"{item.kind}: {item.message or 'no reason given'}"
            for item in found.unhealthy
            if self._counts(item.kind)
        ]
        self._noted(ill, now)
        if ill:
            return None
        return Verdict(Outcome.DONE, f"System {found.name} is healthy.", data={"system": found.name})

    def _counts(self, kind: str) -> bool:
        return not self.services or kind in self.services

    def last_sight(self) -> str:
        return "unhealthy: " + "; ".join(self._last) if self._last else "not asked yet"


_KINDS: dict[str, type[JobWatch | FileWatch | SystemWatch]] = {
    of.kind: of for of in (JobWatch, FileWatch, SystemWatch)
}


def watch_from_json(plain: JSONObject) -> JobWatch | FileWatch | SystemWatch:
    """The watch that ``to_json`` told of."""
    arguments = dict(plain)
    return _KINDS[arguments.pop("kind")](**arguments)


def follow(
    client: Sends,
    watch: Watch[T],
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
    after_look: Callable[[], None] = lambda: None,
) -> Verdict:
    """Look until there is a verdict, in a worker.

    :param after_look: called after each look; may raise to end the wait
    """
    while True:
        try:
            verdict = watch.saw(client.send(watch.look()), clock())
        except HpcError as error:
            verdict = watch.missed(error, clock())
        if verdict:
            return verdict
        after_look()
        sleep(watch.delay(clock(), random.random()))  # noqa: S311  spreads looks, guards nothing


async def follow_async(
    client: SendsOnLoop,
    watch: Watch[T],
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.time,
    after_look: Callable[[], None] = lambda: None,
) -> Verdict:
    """Look until there is a verdict, on an event loop."""
    while True:
        try:
            verdict = watch.saw(await client.send(watch.look()), clock())
        except HpcError as error:
            verdict = watch.missed(error, clock())
        if verdict:
            return verdict
        after_look()
        await sleep(watch.delay(clock(), random.random()))  # noqa: S311  spreads looks, guards nothing
