"""``Lookout``: one poll loop for all files of one connection and system that asset watchers watch.

It is the producer of one of Airflow's shared trigger streams, in its mode with confirmations: each look goes
to all triggers of the group, and :meth:`Lookout.advance` hears when what they made of it is in the database.
An error never leaves the stream, since it would end every trigger of the group: it travels as the sight.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import posixpath
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from airflow.sdk.exceptions import AirflowException
from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer

from . import metrics
from .arrivals import Sight
from .client import files
from .client.calls import Call
from .client.errors import ApiError, HpcError, NotFoundError, TokenError, UnauthorizedError, WatchError
from .client.files import Entry, EntryKind
from .client.redact import redact
from .hooks.hpc import HpcHook
from .hub import POLICY, Gate, gate_for
from .watch import matching

if TYPE_CHECKING:
    from .client.session import AsyncClient

__all__ = ["Look", "Lookout", "Place", "Plan", "Wish", "plan", "wish_for"]

log = logging.getLogger(__name__)

# So many single files of one directory are asked for one by one; more of them by one list.
_FEW = 2
# So many single files are looked at in one tick; the others are due still.
_SINGLE_LOOKS = 20
# A directory whose list is too slow or too large is left alone for so many seconds.
_LIST_REST = 600.0
# Places that are due within this part of their interval are looked at together.
_EARLY = 0.2
_SHORTEST_DELAY, _BETWEEN, _LONGEST_PAUSE = 0.05, 1.0, 60.0

T = TypeVar("T")


class Place(NamedTuple):
    """What is watched.

    :param path: absolute path of a file; with ``glob`` the directory to look in
    :param glob: pattern of file names
    """

    path: str
    glob: str | None = None

    @property
    def directory(self) -> str:
        """The directory whose list shows it."""
        return self.path if self.glob else posixpath.dirname(self.path)


class Look(NamedTuple):
    """What one tick has seen.

    :param number: of the tick; numbers rise
    :param sights: what is there, by place; for a place that could not be looked at the error
    """

    number: int
    sights: dict[Place, Sight | HpcError]


@dataclass(eq=False, slots=True)
class Wish:
    """What one trigger wants to be told of.

    :param system: name of the system, the same for all of a stream
    :param interval: seconds between two looks at the most
    :param due: epoch seconds of the next look that it wants
    :param stored: called with the number of a look when what the trigger made of it is in the database
    """

    system: str
    place: Place
    interval: float
    due: float = 0.0
    stored: Callable[[int], Awaitable[None]] | None = None
    _news: asyncio.Event | None = None

    def again(self, at: float) -> None:
        """Wish another look.

        :param at: epoch seconds
        """
        self.due = at
        if self._news is not None:
            self._news.set()


@dataclass(slots=True)
class _Group:
    """The wishes of all triggers of one stream."""

    wishes: dict[Wish, None] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Plan(NamedTuple):
    """What to ask in one tick.

    :param lists: directories to list, with the places that are answered by it
    :param singles: files to ask for one by one
    """

    lists: dict[str, list[Place]]
    singles: list[Place]


_groups: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, ...], _Group]] = WeakKeyDictionary()


def _group_of(key: tuple[str, ...]) -> _Group:
    return _groups.setdefault(asyncio.get_running_loop(), {}).setdefault(key, _Group())


@contextlib.contextmanager
def wish_for(key: tuple[str, ...], wish: Wish) -> Iterator[Wish]:
    """Have a wish looked after for a while.

    :param key: of the stream
    """
    group = _group_of(key)
    group.wishes[wish] = None
    wish._news = group.news  # noqa: SLF001  the two belong together
    group.news.set()
    try:
        yield wish
    finally:
        del group.wishes[wish]


def plan(due: Iterable[Place], unlisted: Iterable[str] = ()) -> Plan:
    """Decide what one tick asks; pure.

    :param due: places to look at
    :param unlisted: directories that cannot be listed for now
    """
    by_directory: dict[str, list[Place]] = {}
    for place in dict.fromkeys(due):
        by_directory.setdefault(place.directory, []).append(place)
    lists, singles = {}, []
    for directory, places in by_directory.items():
        listed = any(place.glob for place in places)
        if listed or (len(places) > _FEW and directory not in unlisted):
            lists[directory] = places
        else:
            singles += places
    return Plan(lists, singles)


class Lookout(SharedStreamProducer):
    """Looks at the files that the triggers of one stream wish to be told of.

    :param key: of the stream
    :param hpc_conn_id: id of a connection of type ``firecrest``
    """

    def __init__(
        self, key: tuple[str, ...], hpc_conn_id: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._key = key
        self._hpc_conn_id = hpc_conn_id
        self._clock = clock
        self._number = 0
        self._gate: Gate | None = None
        self._rest_until = 0.0
        self._failures = 0
        self._unlisted: dict[str, float] = {}
        # Of single files: what the last list and the last look at the file itself told.
        self._known: dict[Place, tuple[Entry, Sight]] = {}

    @property
    def _group(self) -> _Group:
        return _group_of(self._key)

    async def open_stream(self) -> AsyncIterator[tuple[Look, int]]:
        """Look for ever: what was seen, and the number of the look."""
        while True:
            try:
                await self._pause()
                async with await self._open() as client:
                    answered = True
                    while answered:
                        await self._pause()
                        sights, answered = await self._tick(client)
                        yield self._look(sights)
            except (HpcError, AirflowException) as error:
                trouble = error if isinstance(error, HpcError) else WatchError(redact(str(error)))
                self._failed(trouble)
                yield self._look(dict.fromkeys(self._due(), trouble))

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Tell the triggers that what they made of some looks is in Airflow's database."""
        numbers = [item.broker_payload for item in batch if not item.outcome.failed]
        if numbers:
            await self.stored(max(numbers))

    @property
    def number(self) -> int:
        """The number of the last look."""
        return self._number

    async def stored(self, number: int) -> None:
        """Tell the triggers that what they made of the looks up to this one is in the database."""
        for wish in list(self._group.wishes):
            if wish.stored is not None:
                try:
                    await wish.stored(number)
                except Exception:
                    # An error here would end the whole stream.
                    log.exception("What %s was told could not be written down.", wish.place.path)

    @property
    def _system(self) -> str:
        return next((wish.system for wish in self._group.wishes), "")

    async def _open(self) -> AsyncClient:
        """A client of the connection as it is now: its secret may have changed since the last one."""
        hook = HpcHook(self._hpc_conn_id)
        client = await hook.async_client(policy=POLICY)
        self._gate = gate_for(hook.settings.identity)
        return client

    def _look(self, sights: dict[Place, Sight | HpcError]) -> tuple[Look, int]:
        self._number += 1
        return Look(self._number, sights), self._number

    # --- when ---

    def _due(self) -> list[Place]:
        """Places to look at, whoever has been due for longest first; they are not due any more then."""
        now = self._clock()
        wishes = sorted(self._group.wishes, key=lambda wish: wish.due)
        return list(dict.fromkeys(wish.place for wish in wishes if wish.due <= now + wish.interval * _EARLY))

    async def _pause(self) -> None:
        """Sleep until somebody wishes a look, and one may be made."""
        while True:
            group, now = self._group, self._clock()
            closed = max(self._rest_until, self._gate.closed_until if self._gate else 0.0)
            left = max(min((wish.due for wish in group.wishes), default=now + 3600.0), closed) - now
            if left <= 0:
                return
            group.news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(_SHORTEST_DELAY, left)):
                    await group.news.wait()
            await asyncio.sleep(0)

    # --- what ---

    async def _tick(self, client: AsyncClient) -> tuple[dict[Place, Sight | HpcError], bool]:
        """Look at what is due; False with it if the gateway refuses the token."""
        now, sights = self._clock(), dict[Place, Sight | HpcError]()
        self._unlisted = {path: until for path, until in self._unlisted.items() if until > now}
        due = self._due()
        asked = plan(due, self._unlisted)
        answered = True
        try:
            singles = dict.fromkeys(asked.singles, None)
            for directory, places in asked.lists.items():
                singles |= await self._list(client, directory, places, sights)
            for place in list(singles)[:_SINGLE_LOOKS]:
                sights[place] = await self._single(client, place, singles[place])
            if len(singles) > _SINGLE_LOOKS:  # the others are due still
                self._rest_until = self._clock() + _BETWEEN
            self._failures = 0
        except HpcError as error:
            self._failed(error)
            sights.update({place: error for place in due if place not in sights})
            answered = not isinstance(error, TokenError | UnauthorizedError)
        now = self._clock()
        for wish in self._group.wishes:
            if wish.place in sights:
                wish.due = now + wish.interval
        self._known = {
            place: known
            for place, known in self._known.items()
            if any(wish.place == place for wish in self._group.wishes)
        }
        return sights, answered

    async def _list(
        self,
        client: AsyncClient,
        directory: str,
        places: Sequence[Place],
        sights: dict[Place, Sight | HpcError],
    ) -> dict[Place, Entry | None]:
        """Look at many files at once; return those to ask for one by one, and what the list tells of them.

        :raises HpcError: the gateway cannot be asked
        """
        singles = [place for place in places if place.glob is None]
        hidden = any((place.glob or posixpath.basename(place.path)).startswith(".") for place in places)
        try:
            entries = await self._send(client, files.listing(self._system, directory, hidden=hidden))
        except HpcError as error:
            if not _of_place(error):
                raise
            if isinstance(error, ApiError) and error.status in (408, 413):
                self._unlisted[directory] = self._clock() + _LIST_REST
                log.warning("The files of %s are asked for one by one for a while. %s", directory, error)
            sights.update(
                {place: _absent(error) for place in places if place.glob or isinstance(error, NotFoundError)}
            )
            return {place: None for place in singles if place not in sights}
        names = {entry.name: entry for entry in entries}
        changed: dict[Place, Entry | None] = {}
        for place in places:
            if place.glob is not None:
                sights[place] = matching(entries, directory, place.glob)
                continue
            entry, known = names.get(posixpath.basename(place.path)), self._known.get(place)
            if entry is None:
                sights[place] = {}
            elif known is None or known[0] != entry or entry.kind is EntryKind.LINK:
                changed[place] = entry  # of a link the list does not tell what it leads to
            else:
                sights[place] = known[1]
        return changed

    async def _single(self, client: AsyncClient, place: Place, entry: Entry | None) -> Sight | HpcError:
        """Look at one file.

        :param entry: what the list tells of it, if there was one
        :raises HpcError: the gateway cannot be asked
        """
        self._known.pop(place, None)
        try:
            stat = await self._send(client, files.stat(self._system, place.path, dereference=True))
        except HpcError as error:
            if not _of_place(error):
                raise
            return _absent(error)
        sight: Sight = {place.path: (stat.size, stat.modified, stat.inode)}
        if entry is not None:
            self._known[place] = (entry, sight)
        return sight

    async def _send(self, client: AsyncClient, call: Call[T]) -> T:
        metrics.polled(self._system, "file")
        return await client.send(call)

    def _failed(self, error: HpcError) -> None:
        """The gateway cannot be asked: leave it alone for a moment."""
        now = self._clock()
        if not self._failures:
            log.warning("System %s cannot be asked for files; it is tried again. %s", self._system, error)
        longest = min((wish.interval for wish in self._group.wishes), default=1.0)
        pause = min(longest, _LONGEST_PAUSE, 2.0 ** min(self._failures, 10))
        self._rest_until = now + pause * (0.75 + random.random() / 4)  # noqa: S311  spreads looks, guards nothing
        self._failures += 1
        if self._gate is not None:
            self._gate.heed(error, now)


def _of_place(error: HpcError) -> bool:
    """Whether an error is about what was looked for rather than the gateway."""
    if isinstance(error, NotFoundError):
        # "System not found", or a proxy's while the gateway is away.
        return "no such file" in error.message.lower()
    if isinstance(error, ApiError) and error.status in (408, 413):
        return True
    return not error.transient and not isinstance(error, TokenError | UnauthorizedError)


def _absent(error: HpcError) -> Sight | HpcError:
    """What an error says of a place: nothing is there, or nobody knows."""
    return {} if isinstance(error, NotFoundError) else error
