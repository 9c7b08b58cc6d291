"""``Lookout``: one poll loop for all files of one connection that asset watchers watch.

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
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar
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
    from .settings import Settings

__all__ = [
    "Bearings",
    "Look",
    "Lookout",
    "Place",
    "Plan",
    "Wish",
    "bearings_of",
    "plan",
    "trouble_of",
    "wish_for",
]

log = logging.getLogger(__name__)

# So many single files of one directory are asked for one by one; more of them by one list.
_FEW = 2
# So many single files are looked at in one tick; the others are due still.
_SINGLE_LOOKS = 20
# A directory whose list is too slow or too large is left alone for so many seconds.
_LIST_REST = 600.0
# Places that are due within this part of their interval are looked at together.
_EARLY = 0.2
# Whether the connection was changed is looked up after so many seconds; that asks no gateway.
_CONNECTION_REST = 300.0
# A list tells whole seconds: until one is over, what it tells of a file may stand for several contents.
_SECOND = 1.0
_SHORTEST_DELAY, _BETWEEN, _LONGEST_PAUSE = 0.05, 1.0, 60.0

T = TypeVar("T")

# What of a connection decides on where a watched place is.
Bearings: TypeAlias = tuple[str | None, ...]


def bearings_of(settings: Settings) -> Bearings:
    """Where a connection leads, and for whom."""
    return *settings.identity, settings.system, settings.working_dir


def trouble_of(error: Exception) -> HpcError:
    """An error of any kind as one that a wait outlives; a secrets backend may raise whatever it likes."""
    if isinstance(error, HpcError):
        return error
    said = redact(str(error))
    return WatchError(said if isinstance(error, AirflowException) else f"{type(error).__name__}: {said}")


class Place(NamedTuple):
    """What is watched.

    :param system: name of the system
    :param path: absolute path of a file; with ``glob`` the directory to look in
    :param glob: pattern of file names
    """

    system: str
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
    :param bearings: of the connection that was used; None as long as it could not be read
    """

    number: int
    sights: dict[Place, Sight | HpcError]
    bearings: Bearings | None


@dataclass(eq=False, slots=True)
class Wish:
    """What one trigger wants to be told of.

    :param interval: seconds between two looks at the most
    :param due: epoch seconds of the next look that it wants
    :param stored: called with the number of a look when what the trigger made of it is in the database
    """

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

    :param lists: systems and directories to list, with the places that are answered by it
    :param singles: files to ask for one by one
    """

    lists: dict[tuple[str, str], list[Place]]
    singles: list[Place]


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a single file beside what a list tells.

    :param entry: what the list tells
    :param since: epoch seconds since when it tells just that
    :param asked: epoch seconds of the look at the file itself
    """

    entry: Entry
    since: float
    asked: float
    sight: Sight

    def holds(self, now: float) -> bool:
        """Whether the file need not be looked at, as long as the list tells the same."""
        return self.asked - self.since >= _SECOND or now - self.since < _SECOND


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


def plan(due: Iterable[Place], unlisted: Iterable[tuple[str, str]] = ()) -> Plan:
    """Decide what one tick asks; pure.

    :param due: places to look at
    :param unlisted: systems and directories that cannot be listed for now
    """
    by_directory: dict[tuple[str, str], list[Place]] = {}
    for place in dict.fromkeys(due):
        by_directory.setdefault((place.system, place.directory), []).append(place)
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
        self._settings: Settings | None = None
        self._reread_at = 0.0
        self._unlisted: dict[tuple[str, str], float] = {}
        self._known: dict[Place, _Known] = {}

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
                    while answered and not await self._outdated():
                        sights, answered = await self._tick(client)
                        yield self._look(sights)
                        await self._pause()
            except Exception as error:  # noqa: BLE001  whatever it is, it would end every trigger of the group
                trouble = trouble_of(error)
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

    async def _open(self) -> AsyncClient:
        """A client of the connection as it is now: its secret may have changed since the last one."""
        hook = HpcHook(self._hpc_conn_id)
        client = await hook.async_client(policy=POLICY)
        self._settings, self._reread_at = hook.settings, self._clock() + _CONNECTION_REST
        self._gate = gate_for(hook.settings.identity)
        return client

    async def _outdated(self) -> bool:
        """Whether the connection was changed since the client was made."""
        if self._clock() < self._reread_at:
            return False
        self._reread_at = self._clock() + _CONNECTION_REST
        hook = HpcHook(self._hpc_conn_id)
        try:
            await hook.load()
        except Exception:  # noqa: BLE001  the client that is there may do
            return False
        return hook.settings != self._settings

    def _look(self, sights: dict[Place, Sight | HpcError]) -> tuple[Look, int]:
        self._number += 1
        bearings = None if self._settings is None else bearings_of(self._settings)
        return Look(self._number, sights, bearings), self._number

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
        self._unlisted = {where: until for where, until in self._unlisted.items() if until > now}
        due = self._due()
        asked = plan(due, self._unlisted)
        answered = True
        try:
            singles = dict.fromkeys(asked.singles, None)
            for (system, directory), places in asked.lists.items():
                singles |= await self._list(client, system, directory, places, sights)
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
        system: str,
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
            entries = await self._send(client, system, files.listing(system, directory, hidden=hidden))
        except HpcError as error:
            if not _of_place(error):
                raise
            if isinstance(error, ApiError) and error.status in (408, 413):
                self._unlisted[system, directory] = self._clock() + _LIST_REST
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
            elif known is None or known.entry != entry or entry.kind is EntryKind.LINK:
                changed[place] = entry  # of a link the list does not tell what it leads to
            elif known.holds(self._clock()):
                sights[place] = known.sight
            else:
                changed[place] = entry
        return changed

    async def _single(self, client: AsyncClient, place: Place, entry: Entry | None) -> Sight | HpcError:
        """Look at one file.

        :param entry: what the list tells of it, if there was one
        :raises HpcError: the gateway cannot be asked
        """
        known, now = self._known.pop(place, None), self._clock()
        try:
            stat = await self._send(
                client, place.system, files.stat(place.system, place.path, dereference=True)
            )
        except HpcError as error:
            if not _of_place(error):
                raise
            return _absent(error)
        sight: Sight = {place.path: (stat.size, stat.modified, stat.inode)}
        if entry is not None:
            since = known.since if known is not None and known.entry == entry else now
            self._known[place] = _Known(entry, since, now, sight)
        return sight

    async def _send(self, client: AsyncClient, system: str, call: Call[T]) -> T:
        metrics.polled(system, "file")
        return await client.send(call)

    def _failed(self, error: HpcError) -> None:
        """The gateway cannot be asked: leave it alone for a moment."""
        now = self._clock()
        if not self._failures:
            systems = ", ".join(sorted({wish.place.system for wish in self._group.wishes}))
            log.warning("System %s cannot be asked for files; it is tried again. %s", systems, error)
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
