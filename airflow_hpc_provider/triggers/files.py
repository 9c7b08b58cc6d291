"""``HpcFileTrigger``: until a file is there and rests, or whenever one is new or has changed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Hashable
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_hpc_provider.arrivals import Arrivals
from airflow_hpc_provider.client.calls import JSONObject
from airflow_hpc_provider.client.errors import HpcError, InvalidInputError, WatchError
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.watch import FileWatch

from .base import HpcTrigger

if TYPE_CHECKING:
    from airflow.triggers.shared_stream import SharedStreamProducer

    from airflow_hpc_provider.arrivals import Sight
    from airflow_hpc_provider.lookout import Bearings, Look, Lookout, Place, Wish

__all__ = ["HpcFileTrigger"]

_WORKING_DIR = "{working_dir}"
# The state store of Airflow is asked so many times, with a second in between, before the trigger fails.
_STORE_TRIES = 5
# Of two triggerers that begin the same version, one gives way, so many seconds after both have written that;
# and twice as long as the store takes to be read and written, since the other one may just be at it.
_SETTLES_AFTER = 0.5
# An event that was sent is in the database so many seconds later, unless the triggerer dies.
_STORED_AFTER = 5.0
# What is to be written down after a trigger was moved elsewhere: an event loop itself holds on to no task.
_partings: set[asyncio.Task[None]] = set()


class HpcFileTrigger(HpcTrigger, BaseEventTrigger):
    """Watches a path, or the files in a directory that match a glob.

    In an ``AssetWatcher`` it fires for ever, once for each version of each file: when a file appears, and
    when it has changed since (its size, time of change or inode). What it has fired is kept in Airflow's
    asset state store, so a restart of the triggerer loses nothing and repeats nothing. Only a triggerer that
    ends, stopped or killed, in the very seconds in which Airflow stores an event leaves open whether it did:
    that version is fired again a minute later, with ``repeated`` in its file. All watchers of one connection
    and system share one poll loop, which follows a changed connection within minutes. The payload of an event
    holds ``system`` and ``files``: path, size in bytes, time of change and version.

    With ``since`` it waits once, for ``HpcFileSensor``.

    :param path: absolute path; with ``glob`` the directory to look in. In a watcher, ``{working_dir}`` in it
        stands for the connection's working directory
    :param glob: pattern of file names, as in a shell: ``*.cif``
    :param stable_for: seconds for which a file must stay the same before it counts
    :param poll_interval: seconds between two looks at the most, and between two events at least
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default, in a watcher: the connection's
    :param since: epoch seconds at which a single wait began; None fires for ever
    :param watch: of a single wait: ``deadline``, ``patience`` and ``not_before``
    :raises InvalidInputError: path, glob or a number is none
    """

    # Read only where a task defers.
    supports_triggerer_queue = True
    watch_type = FileWatch
    watch: FileWatch

    def __init__(
        self,
        *,
        path: str,
        glob: str | None = None,
        stable_for: float = 10.0,
        poll_interval: float = 30.0,
        hpc_conn_id: str = HpcHook.default_conn_name,
        system: str | None = None,
        since: float | None = None,
        carry: JSONObject | None = None,
        **watch: Any,
    ) -> None:
        super().__init__(
            hpc_conn_id=hpc_conn_id,
            carry=carry,
            system=system or "",
            path=path,
            glob=glob,
            stable_for=stable_for,
            poll_interval=poll_interval,
            since=since or 0.0,
            **watch,
        )
        self.forever = since is None
        if self.forever:
            _check(self.watch)
        self._arrivals = Arrivals(owner=secrets.token_hex(4), stable_for=self.watch.stable_for)
        self._fired = 0.0
        self._yielded = -1
        self._bearings: Bearings | None = None
        self._written = True
        self._trouble = ""

    def serialize(self) -> tuple[str, JSONObject]:
        """Class path and plain JSON arguments."""
        path, arguments = super().serialize()
        if not self.forever:
            return path, arguments
        kept = ("hpc_conn_id", "system", "path", "glob", "stable_for", "poll_interval")
        return path, {name: arguments[name] for name in kept}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is a verdict and send it; or, in a watcher that is on its own, for ever."""
        if not self.forever:
            async for event in super().run():
                yield event
            return
        lookout = self._lookout(self.serialize()[1], str(id(self)))
        async for event in self._events(_looks(lookout), (*self._key(), str(id(self)))):
            number = lookout.number
            yield event
            await lookout.stored(number)

    # --- one stream for all watchers of a connection and system ---

    def shared_stream_key(self) -> Hashable | None:
        """Which watchers share a poll loop; None for a single wait."""
        return self._key() if self.forever else None

    def _key(self) -> tuple[str, ...]:
        return "hpc-files", self.hpc_conn_id, self.watch.system.lower()

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """The poll loop of a group of watchers."""
        return cls._lookout(kwargs)

    @classmethod
    def _lookout(cls, kwargs: dict[str, Any], *apart: str) -> Lookout:
        from airflow_hpc_provider.lookout import Lookout

        key = (*cls(**kwargs)._key(), *apart)  # noqa: SLF001  of this class
        return Lookout(key, kwargs["hpc_conn_id"])

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Look]) -> AsyncIterator[TriggerEvent]:
        """This watcher's events, out of what the group's poll loop sees."""
        async for event in self._events(shared_stream, self._key()):
            yield event

    async def _events(
        self, looks: AsyncIterator[Look], key: tuple[str, ...]
    ) -> AsyncGenerator[TriggerEvent, None]:
        from airflow_hpc_provider.lookout import Wish, wish_for

        place = await self._place()
        await self._learn(tries=_STORE_TRIES)
        wish = Wish(place, self.watch.poll_interval, stored=self._stored)
        examined = None
        try:
            with wish_for(key, wish):
                async for look in looks:
                    if look.bearings not in (None, self._bearings, examined):
                        if (found := await self._found()) is None:
                            continue
                        examined = look.bearings
                        wish.place = place = found
                        wish.again(time.time())
                    sight = look.sights.get(place)
                    if isinstance(sight, HpcError):
                        self._tell(sight)
                    elif sight is not None:
                        self._tell(None)
                        if files := await self._due(look.number, sight):
                            self._fired, self._yielded = time.time(), look.number
                            self._say(place.system, files)
                            yield TriggerEvent({"system": place.system, "files": files})  # type: ignore[no-untyped-call]
                        self._wish_again(wish)
        finally:
            if self._arrivals.begun:
                parting = asyncio.create_task(self._part(), name=f"hpc-files-{self.watch.path}")
                _partings.add(parting)
                parting.add_done_callback(_partings.discard)

    async def _due(self, number: int, sight: Sight) -> list[JSONObject]:
        """The files that this trigger is to fire now, after that is written down."""
        arrivals, now = self._arrivals, time.time()
        files = arrivals.saw(sight, now)
        if not files or now - self._fired < self.watch.poll_interval:
            if not self._written:
                await self._keep()
            return []
        try:
            # Another triggerer may watch the same, if Airflow has moved this trigger and not yet ended it.
            started = time.monotonic()
            await self._learn()
            if files := arrivals.fresh(time.time()):
                arrivals.begin(number, files, time.time())
                await self._write()
                if self._stores():
                    await asyncio.sleep(_SETTLES_AFTER + 2 * (time.monotonic() - started))
                    if not arrivals.holds(number, await self._learn()):
                        arrivals.undo(number)
                        await self._write()
                        return []
        except Exception as error:  # noqa: BLE001  whatever it is, the file is fired later
            arrivals.undo(number)
            self._not_written(error)
            return []
        return files

    def _wish_again(self, wish: Wish) -> None:
        now, longest = time.time(), self.watch.poll_interval
        wish.again(now + max(self._arrivals.delay(now, longest), min(longest, self._fired + longest - now)))

    async def _stored(self, number: int) -> None:
        """Airflow has stored the events up to a look: from here on they are never fired again."""
        if self._arrivals.end(number):
            await self._keep()

    async def _part(self) -> None:
        """Write down what was fired, when this trigger was moved elsewhere and the process lives on."""
        for number in self._arrivals.begun:
            if number > self._yielded:
                self._arrivals.undo(number)
        if self._arrivals.begun:
            await asyncio.sleep(_STORED_AFTER)
            self._arrivals.end(self._yielded)
        with contextlib.suppress(Exception):  # the one that took over fires again, and marks it
            await self._learn()
            await self._write()

    def _say(self, system: str, files: list[JSONObject]) -> None:
        names = ", ".join(file["path"] for file in files[:3]) + ", …" * (len(files) > 3)
        told = "new or changed file" if len(files) == 1 else "new or changed files"
        self.log.info("%d %s on system %s: %s.", len(files), told, system, names)

    def _tell(self, error: HpcError | None) -> None:
        """Log trouble once, and its end."""
        said, self._trouble = self._trouble, str(error or "")
        if error is not None and not said:
            self.log.warning("%s is watched on. %s", self.watch.describe(), error)
        elif error is None and said:
            self.log.info("%s can be looked at again.", self.watch.describe())

    # --- where it looks ---

    async def _place(self) -> Place:
        """The place to watch, as soon as it can be told."""
        while True:
            if (found := await self._found()) is not None:
                return found
            await asyncio.sleep(self.watch.poll_interval)

    async def _found(self) -> Place | None:
        """The place to watch, which the gateway may have to tell; None if there is trouble, which is told."""
        from airflow_hpc_provider.lookout import Place, bearings_of, trouble_of

        hook = HpcHook(self.hpc_conn_id)
        try:
            await hook.load()
            system, path = await self._resolved(hook)
        except Exception as error:  # noqa: BLE001  whatever it is, this trigger must live on
            self._tell(trouble_of(error))
            return None
        self._bearings = bearings_of(hook.settings)
        return Place(system, path, self.watch.glob)

    async def _resolved(self, hook: HpcHook) -> tuple[str, str]:
        name, path = self.watch.system or hook.settings.system or "", self.watch.path
        if name and _WORKING_DIR not in path:
            return name, path

        def ask() -> tuple[str, str]:
            with hook.client() as client:
                system = hook.system(client, name)
                return system.name, hook.resolve_path(client, system, path)

        return await asyncio.to_thread(ask)

    # --- what must outlive the triggerer ---

    @property
    def _state_key(self) -> str:
        told = json.dumps([self.hpc_conn_id, self.watch.system, self.watch.path, self.watch.glob])
        return f"hpc-files-{hashlib.sha256(told.encode()).hexdigest()[:16]}"

    def _stores(self) -> list[Any]:
        """The state stores of all assets that this trigger watches for; none outside of a triggerer.

        Airflow's public way leads to the store of an only asset, or of one that is named.
        """
        store: Any = self.asset_state_store
        if store is None:
            return []
        of_each = [*getattr(store, "_by_name", {}).values(), *getattr(store, "_by_uri", {}).values()]
        return of_each or [store]

    async def _learn(self, tries: int = 1) -> Any:
        """Read what was written down; an error is no beginning, since all would be fired again."""
        found = None
        for store in self._stores():
            for left in reversed(range(tries)):
                try:
                    found = await store.aget(self._state_key)
                    break
                except ValueError as error:
                    raise WatchError(
                        f"{self.watch.path} is watched for several assets, and this version of Airflow "
                        "does not tell which. Give watchers of one asset each: with another stable_for they "
                        "are not one trigger."
                    ) from error
                except Exception:
                    if not left:
                        raise
                    await asyncio.sleep(1)
            self._arrivals.learn(found, time.time())
        return found

    async def _write(self) -> None:
        for store in self._stores():
            await store.aset(self._state_key, self._arrivals.to_json())
        self._arrivals.written()
        self._written = True

    async def _keep(self) -> None:
        """Write down what is known; what cannot be written now is written at the next look."""
        try:
            await self._learn()
            await self._write()
        except Exception as error:  # noqa: BLE001  whatever it is, this trigger must live on
            self._not_written(error)

    def _not_written(self, error: Exception) -> None:
        if self._written:
            self.log.warning("What was fired cannot be written down; it is tried again.", exc_info=error)
        self._written = False


async def _looks(lookout: Lookout) -> AsyncIterator[Look]:
    async for look, _ in lookout.open_stream():
        yield look


def _check(watch: FileWatch) -> None:
    """Refuse what can never be watched, where the DAG is parsed.

    :raises InvalidInputError: naming the parameter
    """
    from airflow_hpc_provider.client.paths import file_name, remote_path

    path = watch.path
    if isinstance(path, str) and path.startswith(_WORKING_DIR):
        path = path.replace(_WORKING_DIR, "/any", 1)
    remote_path(path, "path")
    if watch.glob is not None:
        file_name(watch.glob, "glob")
    for name, lowest in (("stable_for", "0 s or more"), ("poll_interval", "above 0 s")):
        value = getattr(watch, name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and value < float("inf")
        if not number or value < 0 or (value == 0 and name == "poll_interval"):
            raise InvalidInputError(name, f"must be {lowest}, not {value!r}.")
