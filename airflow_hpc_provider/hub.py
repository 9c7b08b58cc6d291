"""``Hub``: one poll loop for all deferred jobs of one gateway identity and system on an event loop.

Airflow 3.3's shared trigger streams carry deferred tasks too; a loop of our own was measured against
them. For 1,000 jobs a tick costs streams 45 ms of CPU and 1,000 wake-ups, the hub 30 ms and none; for
10,000 jobs 550 ms, up to 1.3 s of it in one piece, against 400 ms in pieces of at most 0.3 s (310 ms of
either go into reading the answer); a job takes 5 to 9 KiB against 3 to 5. What counts more: a stream
does not know which jobs are watched, so it cannot ask by id for those that a list leaves out, and an
error in it fails every task.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from . import metrics
from .client import jobs
from .client.calls import Call, JSONObject, reading
from .client.errors import (
    ApiError,
    BadAnswerError,
    HpcError,
    NotFoundError,
    RateLimitedError,
    TokenError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
    WatchError,
)
from .client.jobs import Job, Window
from .client.redact import redact
from .client.retry import RetryPolicy
from .client.session import AsyncClient
from .watch import JobWatch, Verdict

__all__ = ["POLICY", "Entry", "Gate", "Hub", "Limits", "Plan", "gate_for", "hub_for", "next_tick", "plan"]

log = logging.getLogger(__name__)

# For clients of a hub: one more try after a lost connection; a gateway that asks for a pause gets it from the
# hub, so that everybody else pauses too.
POLICY = RetryPolicy(attempts=2, longest_retry_after=0.0)

# So few jobs are asked for one by one: that costs the scheduler less than a list.
_FEW = 2
# Jobs that a list does not tell of are asked for by id, so many a tick: a list that is wrong about all of
# them must not become a storm.
_SINGLE_LOOKS = 20
# Ticks are at least this part of the shortest poll interval apart. Lists of many jobs are big answers: they
# are further apart, up to the second part at so many jobs, or where the gateway needs long for one.
_TICK_SHARE, _LIST_SHARE, _MANY = 0.25, 0.8, 1000
_LIST_DUTY = 10.0
# A list that is too large, too slow or refused is left alone for so many seconds; one that failed so often in
# a row, although it should work, for fewer.
_LIST_REST, _LIST_SHORT_REST, _LIST_STRIKES = 600.0, 60.0, 3
# A gateway may ask for a pause of at most so many seconds.
_LONGEST_PAUSE = 1800.0
# So many jobs are told of a list before others on the event loop get their turn.
_SLICE = 100
_SHORTEST_DELAY = 0.05
_CLOSING_SECONDS = 5.0
# What is asked beside the looks, such as the output of jobs, begins so many seconds apart.
_ASIDE = 1.0

T = TypeVar("T")

Opener = Callable[[], Awaitable[AsyncClient]]


@dataclass(slots=True, eq=False)
class Entry:
    """One watched job.

    :param due: epoch seconds at which it wants its next look
    :param seen: epoch seconds of the last look that told of it; before one, when it was submitted
    :param done: resolves to the verdict
    :param after_look: called after each look at it
    :param untold: the last list did not tell of it, or not enough
    """

    watch: JobWatch
    due: float
    seen: float
    done: asyncio.Future[Verdict]
    after_look: Callable[[], None] | None = None
    untold: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be asked, and when.

    :param widest: widest window of a list; None while lists do not work
    :param list_from: epoch seconds from which a list may be asked for
    :param look_from: epoch seconds from which single jobs may be asked for
    """

    widest: Window | None = "7d"
    list_from: float = 0.0
    look_from: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask in one tick.

    :param window: window of the list to ask for; None to ask for no list
    :param singles: entries to ask for by id, unless the list tells of them
    """

    window: Window | None
    singles: tuple[Entry, ...]


def plan(entries: Iterable[Entry], now: float, limits: Limits) -> Plan:
    """Decide what one tick asks; pure.

    :param entries: all that are watched
    :param now: epoch seconds
    :param limits: what may be asked
    """
    watched = list(entries)
    due = sorted((entry for entry in watched if entry.due <= now), key=lambda entry: entry.due)
    if len(watched) <= _FEW:
        return Plan(None, tuple(due))
    window = None
    if limits.widest is not None:
        if due and now >= limits.list_from:
            window = _narrower(jobs.window_for(now - min(entry.seen for entry in watched)), limits.widest)
        due = [entry for entry in due if entry.untold]
    # Whoever has been due for longest comes first, so that none starves.
    return Plan(window, tuple(due[:_SINGLE_LOOKS]) if now >= limits.look_from else ())


def next_tick(entries: Iterable[Entry], limits: Limits) -> float:
    """Epoch seconds at which :func:`plan` will next ask for something; pure.

    :param entries: all that are watched, at least one
    """
    watched = list(entries)
    first = min(entry.due for entry in watched)
    if len(watched) <= _FEW:
        return first
    if limits.widest is None:
        return max(first, limits.look_from)
    alone = min((entry.due for entry in watched if entry.untold), default=None)
    tick = max(first, limits.list_from)
    return tick if alone is None else min(tick, max(alone, limits.look_from))


def _narrower(one: Window, other: Window) -> Window:
    order: tuple[Window, ...] = ("1h", "8h", "24h", "3d", "7d")
    return order[min(order.index(one), order.index(other))]


class Gate:
    """When an identity may ask again: what a gateway says to one poll loop of it goes for all."""

    def __init__(self) -> None:
        self.closed_until = 0.0

    def heed(self, error: HpcError, now: float) -> None:
        """A gateway that asks for a pause gets it from all poll loops of the identity.

        :param error: its answer
        :param now: epoch seconds
        """
        if isinstance(error, ApiError) and error.retry_after:
            self.closed_until = max(self.closed_until, now + min(error.retry_after, _LONGEST_PAUSE))


class Hub:
    """Watches many jobs of one system with one request a tick.

    :param system: name of the system
    :param open_client: makes a client; called again when the gateway refuses the token
    :param clock: epoch seconds
    :param gate: shared by the hubs of one identity
    """

    def __init__(
        self,
        system: str,
        open_client: Opener,
        *,
        clock: Callable[[], float] = time.time,
        gate: Gate | None = None,
    ) -> None:
        self.open_client = open_client
        self._system = system
        self._clock = clock
        self._gate = gate or Gate()
        self._entries: dict[Entry, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._client: AsyncClient | None = None
        self._turn = asyncio.Lock()
        self._aside_from = 0.0
        self._news = asyncio.Event()
        self._wake = 0.0
        # Of the last list and the last tick: when they were, and how long the list took.
        self._listed = self._ticked = self._took = 0.0
        self._widest: Window | None = "7d"
        self._widest_until = 0.0
        self._windowless = False
        self._strikes = self._failures = 0
        self._rest_until = 0.0
        self._trouble: HpcError = WatchError("The gateway was not asked yet.")

    @property
    def watched(self) -> int:
        """How many jobs are watched."""
        return len(self._entries)

    async def wait(self, watch: JobWatch, after_look: Callable[[], None] | None = None) -> Verdict:
        """Wait for the verdict on one job.

        :param watch: the job
        :param after_look: called after each look at it, in the caller's context
        """
        loop = asyncio.get_running_loop()
        entry = Entry(watch, due=self._clock(), seen=watch.since, done=loop.create_future())
        if after_look is not None:
            entry.after_look = functools.partial(contextvars.copy_context().run, after_look)
        self._entries[entry] = None
        self._hurry(entry)
        if self._task is None:
            self._news = asyncio.Event()
            # In a context of its own: what the loop logs must not end up in the first task's log.
            self._task = loop.create_task(
                self._run(), name=f"hpc-hub-{self._system}", context=contextvars.Context()
            )
        try:
            return await entry.done
        finally:
            del self._entries[entry]
            if not self._entries:
                await self._stop()

    async def send(self, call: Call[T]) -> T:
        """Carry out a call beside the looks: one at a time, in turn, and not while the gateway wants a pause.

        Only whoever waits for a job at the same time may ask: the client is that of the poll loop.

        :raises HpcError: it failed
        """
        async with self._turn:
            while True:
                left = max(self._closed_until(), self._aside_from) - self._clock()
                client = self._client
                if client is None or left > 0:
                    await asyncio.sleep(max(_SHORTEST_DELAY, left))
                    continue
                self._aside_from = self._clock() + _ASIDE
                try:
                    return await client.send(call)
                except (HpcError, RuntimeError) as error:
                    if isinstance(error, ApiError):
                        self._heed(error)
                    elif self._client is not client and call.replayable:
                        continue  # the poll loop has replaced its client, and closed this one
                    raise

    @contextlib.contextmanager
    def _lent(self, client: AsyncClient) -> Iterator[None]:
        """Let others ask with a client of the poll loop while it is open."""
        self._client = client
        try:
            yield
        finally:
            if self._client is client:
                self._client = None

    def _heed(self, error: HpcError) -> None:
        self._gate.heed(error, self._clock())

    async def _stop(self) -> None:
        """End the poll loop; whoever comes meanwhile starts another one."""
        task, self._task = self._task, None
        self._count()
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=_CLOSING_SECONDS)

    async def _run(self) -> None:
        """Tick, until cancelled."""
        try:
            while True:
                try:
                    async with await self.open_client() as client:
                        with self._lent(client):
                            while not await self._tick(client):
                                await self._pause()
                except Exception as error:  # noqa: BLE001  whatever it is, no job has failed by it
                    self._failed(error)
                await self._pause()
        finally:
            if self._task is asyncio.current_task():  # cancelled by somebody else: the event loop closes
                self._task = None
                for entry in self._entries:
                    entry.done.cancel()

    def _count(self) -> None:
        """Tell how many jobs of this system are watched here, by this and other identities."""
        hubs = _hubs.get(asyncio.get_running_loop(), {})
        count = sum(hub.watched for key, hub in hubs.items() if key[-1] == self._system.lower())
        metrics.jobs_watched(self._system, count)

    # --- when ---

    def _limits(self, now: float) -> Limits:
        if now >= self._widest_until:
            self._widest = "7d"
        shortest, many = self._shortest(), len(self._entries)
        part = min(_LIST_SHARE, max(_TICK_SHARE, many / _MANY))
        gap = max(shortest * part, min(shortest * _LIST_SHARE, self._took * _LIST_DUTY))
        return Limits(self._widest, self._listed + gap, self._ticked + shortest * _TICK_SHARE)

    def _shortest(self) -> float:
        return min((entry.watch.poll_interval for entry in self._entries), default=_SHORTEST_DELAY)

    def _closed_until(self) -> float:
        return max(self._rest_until, self._gate.closed_until)

    async def _pause(self) -> None:
        """Sleep until there is something to ask."""
        await asyncio.sleep(0)
        closed = self._closed_until()
        self._wake = max(next_tick(self._entries, self._limits(self._clock())), closed)
        if closed > self._clock():
            self._wake = min(self._wake, *(_end_of(entry) for entry in self._entries), closed)
        while (left := self._wake - self._clock()) > 0:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._news.wait()

    def _hurry(self, entry: Entry) -> None:
        """Wake the poll loop earlier, if somebody new needs it."""
        earliest = self._closed_until()
        if len(self._entries) > _FEW + 1 and self._widest is not None:
            earliest = max(earliest, self._listed + entry.watch.poll_interval * _TICK_SHARE)
        if earliest < self._wake:
            self._wake = earliest
            self._news.set()

    # --- what ---

    async def _tick(self, client: AsyncClient) -> bool:
        """Ask, and tell each watch; True if the gateway refuses the token."""
        now = self._clock()
        self._count()
        if now < self._closed_until():
            for entry in [entry for entry in self._entries if _end_of(entry) <= now]:
                self._tell(entry, functools.partial(entry.watch.missed, self._trouble))
            return False
        try:
            asked = plan(self._entries, now, self._limits(now))
            if asked.window is not None:
                await self._list(client, asked.window)
                asked = plan(self._entries, self._clock(), self._limits(now))
            if asked.singles:
                self._ticked = now
            for entry in asked.singles:
                if self._clock() - now > self._shortest() / 2 or not await self._look(client, entry):
                    break
        except HpcError as error:
            self._failed(error)
            return isinstance(error, TokenError | UnauthorizedError)
        self._failures = 0
        return False

    async def _list(self, client: AsyncClient, window: Window) -> None:
        """Ask for all jobs at once.

        :raises HpcError: the gateway cannot be asked
        """
        sent, entries = self._clock(), list(self._entries)
        self._listed = sent
        call = _listing(self._system, entries, None if self._windowless else window)
        metrics.polled(self._system, "list")
        try:
            found = await client.send(call)
        except HpcError as error:
            self._unlisted(error, window)
            return
        self._strikes, self._took = 0, self._clock() - sent
        for place, entry in enumerate(entries, 1):
            if place % _SLICE == 0:
                await asyncio.sleep(0)
            job = _job(entry.watch, found.get(entry.watch.job_id))
            entry.untold = job is None
            if job is not None:
                entry.seen = sent
                self._tell(entry, functools.partial(entry.watch.saw, job))

    def _unlisted(self, error: HpcError, window: Window) -> None:
        """What to ask instead of a list that failed.

        :raises HpcError: the same error, if it is not about the list
        """
        now, status = self._clock(), error.status if isinstance(error, ApiError) else None
        if status in (408, 413):  # too slow, too large
            narrower = window != "1h" and not self._windowless
            self._narrow("1h" if narrower else None, now + _LIST_REST, error)
        elif status in (400, 422) and not self._windowless:
            self._windowless = True
        elif isinstance(error, ApiError) and not error.transient and status != 401:
            self._narrow(None, now + _LIST_REST, error)
        else:
            self._strikes += error.ambiguous
            if self._strikes >= _LIST_STRIKES:
                self._narrow(None, now + _LIST_SHORT_REST, error)
            raise error

    def _narrow(self, widest: Window | None, until: float, error: HpcError) -> None:
        instead = "one by one" if widest is None else f"in lists of {widest}"
        log.warning("Jobs of system %s are asked for %s for a while. %s", self._system, instead, error)
        self._widest, self._widest_until = widest, until

    async def _look(self, client: AsyncClient, entry: Entry) -> bool:
        """Ask for one job; False if there is trouble, which may well hit the next one too.

        :raises HpcError: the gateway cannot be asked
        """
        sent = self._clock()
        if entry.done.done():
            return True
        metrics.polled(self._system, entry.watch.kind)
        try:
            job = await client.send(entry.watch.look())
        except HpcError as error:
            if _of_gateway(error):
                raise
            self._tell(entry, functools.partial(entry.watch.missed, error))
            return not error.transient
        if job is not None:
            entry.seen = sent
        self._tell(entry, functools.partial(entry.watch.saw, job))
        return True

    def _failed(self, error: Exception) -> None:
        """The gateway cannot be asked: tell all, and leave it alone for a moment."""
        if not isinstance(error, HpcError):
            log.error("The poll loop of system %s goes on after an error.", self._system, exc_info=error)
            error = WatchError(f"{type(error).__name__}: {redact(str(error))}")
        elif not self._failures:
            log.warning("System %s cannot be asked for jobs; it is tried again. %s", self._system, error)
        now = self._clock()
        pause = min(self._shortest(), 2.0 ** min(self._failures, 10)) * (0.75 + random.random() / 4)  # noqa: S311
        self._rest_until = now + pause
        self._failures += 1
        self._heed(error)
        if not (error.transient or isinstance(error, TokenError | UnauthorizedError)):
            error = WatchError(str(error))  # a gateway in maintenance says odd things: no reason to give up
        self._trouble = error
        for entry in list(self._entries):
            self._tell(entry, functools.partial(entry.watch.missed, error))

    def _tell(self, entry: Entry, look: Callable[[float], Verdict | None]) -> None:
        """Tell a watch, and whoever waits for it if that was the end; an error in it is its own."""
        if entry.done.done():
            return
        now = self._clock()
        try:
            verdict = look(now)
            if entry.after_look is not None:
                entry.after_look()
            if verdict is not None:
                metrics.detected(entry.watch, verdict, now)
                entry.done.set_result(verdict)
                return
            delay = entry.watch.delay(now, random.random() / 2)  # noqa: S311  spreads looks, guards nothing
        except Exception as error:  # noqa: BLE001
            entry.done.set_exception(error)
            return
        # Single looks are made on ticks: who needs one is due a tick earlier.
        entry.due = now + max(_SHORTEST_DELAY, delay * (1 - _TICK_SHARE if entry.untold else 1))


def _end_of(entry: Entry) -> float:
    """When a watch gives up, whatever the gateway says."""
    return entry.watch.gives_up_at


def _listing(
    system: str, entries: Iterable[Entry], window: Window | None
) -> Call[dict[str, list[JSONObject]]]:
    """The list, read into the records of those jobs that are watched: a user may have thousands more."""
    wanted = {entry.watch.job_id for entry in entries}

    def build(body: JSONObject) -> dict[str, list[JSONObject]]:
        found: dict[str, list[JSONObject]] = {}
        for record in body["jobs"] or []:
            job_id = str(record["jobId"]).partition("_")[0].partition("+")[0]
            if job_id in wanted:
                found.setdefault(job_id, []).append(record)
        return found

    call: Call[Any] = jobs.listing(system, window=window)
    return replace(call, read=reading(call.doing, build))


def _job(watch: JobWatch, records: list[JSONObject] | None) -> Job | None:
    """The job in a list's records, if they tell enough.

    A list shows living elements of an array under raw ids of their own, where nothing tells whose they are:
    an array that looks as if it were over is asked for by id.
    """
    if not records:
        return None
    try:
        job = jobs.read_job(watch.job_id, records)
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    return None if job.state.final and (watch.array or job.elements) else job


def _of_gateway(error: HpcError) -> bool:
    """Whether an answer to the question for one job is about the gateway rather than that job."""
    if isinstance(error, UnavailableError):
        return error.status in (424, 503)
    if isinstance(error, NotFoundError):  # a proxy's, while the gateway is away
        return not any(word in error.message.lower() for word in ("job", "system"))
    if isinstance(error, BadAnswerError):
        return not error.transient
    return isinstance(error, TokenError | UnauthorizedError | UnreachableError | RateLimitedError)


_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, ...], Hub]] = WeakKeyDictionary()
_gates: WeakValueDictionary[tuple[str, ...], Gate] = WeakValueDictionary()


def gate_for(identity: tuple[str, ...]) -> Gate:
    """The gate of a gateway identity, for as long as somebody holds on to it.

    :param identity: URL of the gateway and who asks
    """
    return _gates.setdefault(identity, Gate())


def hub_for(identity: tuple[str, ...], system: str, open_client: Opener) -> Hub:
    """The hub of this event loop for one gateway identity and system; to be waited on at once.

    :param identity: URL of the gateway and who asks
    :param open_client: makes a client, of the newest connection; it must not hold on to a trigger
    """
    for loop in [loop for loop in _hubs if loop.is_closed()]:
        del _hubs[loop]
    hubs = _hubs.setdefault(asyncio.get_running_loop(), {})
    key = (*identity, system.lower())
    for idle in [other for other, hub in hubs.items() if not hub.watched and other != key]:
        del hubs[idle]
    if key not in hubs:
        hubs[key] = Hub(system, open_client, gate=gate_for(identity))
    hubs[key].open_client = open_client
    return hubs[key]
