"""``Hub``: one poll loop for all deferred jobs of one gateway identity and system on an event loop.

Airflow 3.3's shared trigger streams carry deferred tasks too, but they hand every sight of every job to every
trigger: with 1,000 deferred tasks each tick wakes 1,000 coroutines. A hub asks once a tick and wakes only the
triggers whose wait is over, works the same outside a triggerer, and its errors end nobody else's wait. So the
hub is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from .client import jobs
from .client.errors import HpcError, NotFoundError, TokenError, TooLargeError, UnauthorizedError
from .client.jobs import Job, Window
from .client.session import AsyncClient
from .watch import JobWatch, Verdict

__all__ = ["Hub", "Plan", "hub_for", "plan"]

log = logging.getLogger(__name__)

# So few jobs are asked for one by one: that costs the scheduler less than a list.
_FEW = 2
# Jobs that a list does not tell of are asked for by id, so many a tick: a list that is wrong about all of
# them must not become a storm.
_SINGLE_LOOKS = 20
# A list is never asked for more often than this part of the shortest poll interval.
_LIST_SHARE = 0.25

Opener = Callable[[], Awaitable[AsyncClient]]


@dataclass(slots=True, eq=False)
class Entry:
    """One watched job.

    :param due: epoch seconds of its next look
    :param seen: epoch seconds of the last look that told of it; before one, when it was submitted
    :param done: resolves to the verdict
    """

    watch: JobWatch
    due: float
    seen: float
    done: asyncio.Future[Verdict]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask in one tick.

    :param window: window of the list to ask for; None to ask for no list
    :param singles: entries to ask for by id
    """

    window: Window | None
    singles: tuple[Entry, ...]


def plan(entries: Iterable[Entry], now: float, *, list_works: bool = True) -> Plan:
    """Decide what one tick asks; pure.

    :param entries: all that are watched
    :param now: epoch seconds
    :param list_works: False after the gateway's list was too large or too slow
    """
    watched = list(entries)
    if len(watched) <= _FEW:
        return Plan(None, tuple(entry for entry in watched if entry.due <= now))
    if not list_works:
        due = sorted((entry for entry in watched if entry.due <= now), key=lambda entry: entry.due)
        return Plan(None, tuple(due[:_SINGLE_LOOKS]))
    return Plan(jobs.window_for(now - min(entry.seen for entry in watched)), ())


class Hub:
    """Watches many jobs of one system with one request a tick.

    :param system: name of the system
    :param open_client: makes a client; called again when the gateway refuses the token
    :param clock: epoch seconds
    """

    def __init__(self, system: str, open_client: Opener, *, clock: Callable[[], float] = time.time) -> None:
        self._system = system
        self._open = open_client
        self._clock = clock
        self._entries: dict[Entry, None] = {}
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._listed = 0.0
        self._list_fails_until = 0.0

    @property
    def watched(self) -> int:
        """How many jobs are watched."""
        return len(self._entries)

    async def wait(self, watch: JobWatch) -> Verdict:
        """Wait for the verdict on one job."""
        now = self._clock()
        entry = Entry(watch, due=now, seen=watch.since, done=asyncio.get_running_loop().create_future())
        self._entries[entry] = None
        self._news.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"hpc-hub-{self._system}")
        try:
            return await entry.done
        finally:
            self._entries.pop(entry, None)
            self._news.set()

    async def _run(self) -> None:
        """Tick while anything is watched."""
        try:
            while self._entries:
                async with await self._open() as client:
                    await self._tick_until_refused(client)
        except HpcError as error:  # the connection itself is wrong
            for entry in list(self._entries):
                self._missed(entry, error)
                if not entry.done.done():
                    entry.done.set_exception(error)
        except Exception as error:
            log.exception("The poll loop of system %s failed.", self._system)
            for entry in list(self._entries):
                if not entry.done.done():
                    entry.done.set_exception(error)

    async def _tick_until_refused(self, client: AsyncClient) -> None:
        while self._entries:
            refused = await self._tick(client)
            await self._pause()
            if refused:
                return

    async def _pause(self) -> None:
        """Sleep until something is due, or somebody comes or goes."""
        self._news.clear()
        if not self._entries:
            return
        now = self._clock()
        wake = min(entry.due for entry in self._entries)
        if len(self._entries) > _FEW:
            shortest = min(entry.watch.poll_interval for entry in self._entries)
            wake = max(wake, self._listed + shortest * _LIST_SHARE)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), max(0.01, wake - now))
        if len(self._entries) > _FEW:  # many come at once: let them, rather than list for each
            now = self._clock()
            shortest = min(entry.watch.poll_interval for entry in self._entries)
            early = self._listed + shortest * _LIST_SHARE - now
            if early > 0:
                await asyncio.sleep(early)

    async def _tick(self, client: AsyncClient) -> bool:
        """Ask, and tell each watch; True if the gateway refuses the token."""
        now = self._clock()
        asked = plan(self._entries, now, list_works=now >= self._list_fails_until)
        singles = list(asked.singles)
        if asked.window is not None:
            self._listed = now
            try:
                found = await client.send(jobs.listing(self._system, window=asked.window))
            except HpcError as error:
                if isinstance(error, TooLargeError) or getattr(error, "status", None) == 408:
                    log.warning("%s Jobs are asked for one by one for a while.", error)
                    self._list_fails_until = now + 600
                for entry in list(self._entries):
                    self._missed(entry, error)
                return isinstance(error, TokenError | UnauthorizedError)
            singles = self._tell({job.job_id: job for job in found})
        refused = False
        for entry in singles[:_SINGLE_LOOKS]:
            try:
                self._saw(entry, await client.send(entry.watch.look()))
            except HpcError as error:
                self._missed(entry, error)
                refused = refused or isinstance(error, TokenError | UnauthorizedError)
        return refused

    def _tell(self, found: dict[str, Job]) -> list[Entry]:
        """Tell each watch what the list says of its job; returns those that it does not tell of."""
        missing = []
        for entry in list(self._entries):
            job = found.get(entry.watch.job_id)
            # A list does not know with which indices an array was submitted: its end is looked at by id.
            if job is None or (job.state.final and entry.watch.array):
                missing.append(entry)
            else:
                self._saw(entry, job)
        missing.sort(key=lambda entry: entry.due)
        return missing

    def _saw(self, entry: Entry, job: Job) -> None:
        now = self._clock()
        entry.seen = now
        self._settle(entry, entry.watch.saw(job, now), now)

    def _missed(self, entry: Entry, error: HpcError) -> None:
        now = self._clock()
        if not isinstance(error, NotFoundError):
            log.debug("%s", error)
        self._settle(entry, entry.watch.missed(error, now), now)

    def _settle(self, entry: Entry, verdict: Verdict | None, now: float) -> None:
        if verdict is None:
            entry.due = now + entry.watch.delay(now, random.random())  # noqa: S311  spreads looks
        elif not entry.done.done():
            entry.done.set_result(verdict)


_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, ...], Hub]] = WeakKeyDictionary()


def hub_for(identity: tuple[str, ...], system: str, open_client: Opener) -> Hub:
    """The hub of this event loop for one gateway identity and system.

    :param identity: URL of the gateway and who asks
    :param open_client: makes a client for a new hub
    """
    hubs = _hubs.setdefault(asyncio.get_running_loop(), {})
    key = (*identity, system.lower())
    if key not in hubs:
        hubs[key] = Hub(system, open_client)
    return hubs[key]
