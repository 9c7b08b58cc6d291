"""Watchers of files in Airflow's shared streams, against the embedded gateway: one poll loop for all."""

import asyncio
import json
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import structlog
from airflow.providers.common.compat import connection
from airflow.sdk import Asset
from airflow.sdk._shared.module_loading import import_string
from airflow.sdk.exceptions import AirflowSecretsBackendAccessDenied
from airflow.sdk.execution_time.context import AssetStateStoreAccessors
from airflow.triggers.shared_stream import SharedStreamManager

from airflow_hpc_provider import lookout
from airflow_hpc_provider.client.errors import WatchError
from airflow_hpc_provider.triggers import files
from airflow_hpc_provider.triggers.files import HpcFileTrigger

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr(files, "_SETTLES_AFTER", 0.05)
    monkeypatch.setattr(files, "_STORED_AFTER", 0.3)


class Store:
    """Airflow's asset state store, which survives triggerers; ``down`` makes it fail."""

    def __init__(self):
        self.kept, self.down, self.lag = {}, False, 0.0

    async def aget(self, key, default=None):
        found = self.kept.get(key)
        await asyncio.sleep(self.lag)
        if self.down:
            raise RuntimeError("no API server")
        return default if found is None else json.loads(found)

    async def aset(self, key, value):
        await asyncio.sleep(self.lag)
        if self.down:
            raise RuntimeError("no API server")
        self.kept[key] = json.dumps(value)


class Triggerer:
    """What Airflow's triggerer does with watchers, up to the database."""

    def __init__(self, *, stores=True):
        self.events, self._tasks, self._stores = [], [], stores
        self.streams = SharedStreamManager(
            log=structlog.get_logger(), max_subscriber_queue=1024, ack_timeout=300, cohort_grace_period=0
        )

    def start(self, trigger, store=None):
        path, arguments = trigger.serialize()
        made = import_string(path)(**json.loads(json.dumps(arguments)))
        made.asset_state_store = store
        number = len(self._tasks)
        self._tasks.append(asyncio.create_task(self._run(number, made)))

    async def _run(self, number, trigger):
        key = trigger.shared_stream_key()
        stream = self.streams.subscribe(trigger_id=number, trigger=trigger, key=key)
        try:
            async for event in trigger.filter_shared_stream(stream):
                self.events.append(event.payload)
                seq = self.streams.bind_pending_event(trigger_id=number, key=key)
                if self._stores and seq is not None:
                    asyncio.get_running_loop().call_later(0.1, self.streams.confirm_persisted, [seq])
        finally:
            await self.streams.unsubscribe(number, key)

    def fired(self):
        return [
            (file["path"].rpartition("/")[2], file["size"])
            for event in self.events
            for file in event["files"]
        ]

    async def until(self, count, seconds=15.0):
        end = time.monotonic() + seconds
        while len(self.fired()) < count:
            for task in self._tasks:
                assert not task.done(), task
            assert time.monotonic() < end, self.events
            await asyncio.sleep(0.02)

    async def stop(self):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.streams.stop_all()


def watcher(path, **options):
    return HpcFileTrigger(**{"path": str(path), "stable_for": 0, "poll_interval": 0.2} | options)


def run(test):
    return asyncio.run(asyncio.wait_for(test, 60))


@pytest.fixture
def inbox(connected, request):
    folder = connected.scratch / "lookout" / f"{abs(hash(request.node.nodeid)):x}"
    folder.mkdir(parents=True)
    return folder


def asked(gateway):
    return gateway.requests.count("stat"), gateway.requests.count("ls")


def test_each_version_fires_once_across_restarts(inbox):
    store = Store()

    async def versions():
        first = Triggerer()
        first.start(watcher(inbox / "in"), store)
        (inbox / "in").write_text("1")
        await first.until(1)
        (inbox / "in").write_text("22")
        await first.until(2)
        await asyncio.sleep(0.5)
        store.down = True  # it dies: it writes nothing any more
        await first.stop()
        await asyncio.sleep(0.5)
        store.down = False
        assert [json.loads(kept)["begun"] for kept in store.kept.values()] == [{}]
        second = Triggerer()
        second.start(watcher(inbox / "in"), store)
        await asyncio.sleep(1)
        assert second.fired() == []
        (inbox / "in").write_text("333")
        await second.until(1)
        await asyncio.sleep(0.5)
        await second.stop()
        return first.fired(), second.fired()

    assert run(versions()) == ([("in", 1), ("in", 2)], [("in", 3)])


def test_a_trigger_that_is_moved_right_after_an_event_writes_that_down(inbox):
    store = Store()
    (inbox / "in").write_text("1")

    async def moved():
        first = Triggerer(stores=False)
        first.start(watcher(inbox / "in"), store)
        await first.until(1)
        await first.stop()
        second = Triggerer()
        second.start(watcher(inbox / "in"), store)
        await asyncio.sleep(1.5)
        await second.stop()
        return second.fired(), [json.loads(kept)["begun"] for kept in store.kept.values()]

    assert run(moved()) == ([], [{}])


@pytest.mark.parametrize("lag", [0.0, 0.3], ids=["quick store", "slow store"])
def test_of_two_triggerers_that_run_one_watcher_for_a_while_only_one_fires(inbox, lag):
    store = Store()
    store.lag = lag
    ready = threading.Barrier(3)

    async def one():
        triggerer = Triggerer()
        triggerer.start(watcher(inbox, glob="*.dat"), store)
        await asyncio.to_thread(ready.wait)
        await asyncio.sleep(8 + 20 * lag)
        await triggerer.stop()
        return triggerer.fired()

    with ThreadPoolExecutor() as pool:
        both = [pool.submit(run, one()) for _ in range(2)]
        ready.wait()
        for number in range(4):
            time.sleep(1.5)
            (inbox / f"{number}.dat").write_text("x")
        fired = [one for each in both for one in each.result()]
    assert sorted(fired) == [(f"{number}.dat", 1) for number in range(4)]


def test_a_state_store_that_fails_for_a_while_loses_and_repeats_nothing(inbox):
    store = Store()

    async def down():
        triggerer = Triggerer()
        triggerer.start(watcher(inbox / "in"), store)
        await asyncio.sleep(0.5)
        store.down = True
        (inbox / "in").write_text("1")
        await asyncio.sleep(1)
        assert triggerer.fired() == []
        store.down = False
        await triggerer.until(1)
        await asyncio.sleep(0.6)
        await triggerer.stop()
        return triggerer.fired()

    assert run(down()) == [("in", 1)]


def test_an_outage_is_logged_once_and_loses_nothing(inbox, connected, caplog):
    caplog.set_level(logging.INFO)

    async def outage():
        triggerer = Triggerer()
        triggerer.start(watcher(inbox / "in"), Store())
        await asyncio.sleep(0.5)
        connected.faults.bad_gateway(times=None)
        (inbox / "in").write_text("1")
        await asyncio.sleep(1.5)
        assert triggerer.fired() == []
        connected.faults.clear()
        await triggerer.until(1)
        await triggerer.stop()

    run(outage())
    said = [
        record.getMessage() for record in caplog.records if record.name.startswith("airflow_hpc_provider")
    ]
    assert len([line for line in said if "cannot be asked for files" in line]) == 1, said


def test_a_gateway_that_asks_for_a_pause_gets_it(inbox, connected):
    async def paused():
        triggerer = Triggerer()
        triggerer.start(watcher(inbox / "in"), Store())
        await asyncio.sleep(0.5)
        connected.faults.rate_limit(2, on="stat", times=1)
        (inbox / "in").write_text("1")
        await asyncio.sleep(0.5)
        before = asked(connected)
        await asyncio.sleep(1)
        assert asked(connected) == before
        await triggerer.until(1)
        await triggerer.stop()

    run(paused())


def test_where_a_directory_cannot_be_listed_its_files_are_asked_for_one_by_one(inbox, connected):
    connected.faults.respond(413, {"message": "too large"}, on="ls", times=None)

    async def singly():
        triggerer = Triggerer()
        for number in range(4):
            (inbox / f"{number}").write_text("x")
            triggerer.start(watcher(inbox / f"{number}"), Store())
        await triggerer.until(4)
        await asyncio.sleep(0.5)
        await triggerer.stop()

    connected.requests.clear()
    run(singly())
    assert connected.requests.count("ls") == 1


def test_a_refused_token_is_renewed(inbox, connected):
    async def expired():
        triggerer = Triggerer()
        triggerer.start(watcher(inbox / "in"), Store())
        await asyncio.sleep(0.5)
        connected.faults.expire_tokens()
        (inbox / "in").write_text("1")
        await triggerer.until(1)
        await triggerer.stop()

    run(expired())


def test_a_secret_that_is_rotated_is_read_anew(inbox, connected, connect):
    connect(connected.connection() | {"password": "wrong"})
    (inbox / "in").write_text("1")

    async def rotated():
        triggerer = Triggerer()
        triggerer.start(watcher(inbox / "in"), Store())
        await asyncio.sleep(1)
        assert triggerer.fired() == []
        connect(connected)
        await triggerer.until(1)
        await triggerer.stop()

    run(rotated())


@pytest.fixture
def denials(monkeypatch):
    """Errors of the secrets backend: as long as there is one, no connection can be read."""
    found, look_up = [], connection.get_async_connection

    async def ask(*arguments):
        if found:
            raise found[0]
        return await look_up(*arguments)

    monkeypatch.setattr(connection, "get_async_connection", ask)
    return found


@pytest.mark.parametrize("running", [False, True], ids=["at the start", "while it runs"])
def test_a_connection_that_cannot_be_read_for_a_while_ends_no_watcher(
    inbox, connected, connect, denials, running
):
    denial = AirflowSecretsBackendAccessDenied("not for you")
    (inbox / "in").write_text("1")

    async def denied():
        triggerer = Triggerer()
        if running:
            connect(connected.connection() | {"password": "wrong"})
        else:
            denials.append(denial)
        triggerer.start(watcher(inbox / "in"), Store())
        await asyncio.sleep(1)
        denials[:] = [denial]
        await asyncio.sleep(1)
        assert triggerer.fired() == []
        denials.clear()
        connect(connected)
        await triggerer.until(1)
        await triggerer.stop()

    run(denied())


def test_a_connection_that_is_changed_leads_its_watchers_elsewhere(make_gateway, connect, monkeypatch):
    monkeypatch.setattr(lookout, "_CONNECTION_REST", 0.5)
    gateway = make_gateway(systems=["one", "two"])
    for name in ("a", "b"):
        (gateway.home / name).mkdir()
        (gateway.home / name / "in").write_text(name)

    async def moved():
        triggerer = Triggerer()
        connect(gateway, system="one", working_dir=f"{gateway.home}/a")
        triggerer.start(watcher("{working_dir}/in"), Store())
        await triggerer.until(1)
        connect(gateway, system="two", working_dir=f"{gateway.home}/b")
        # It joins the poll loop of the other one.
        triggerer.start(watcher("{working_dir}/in", stable_for=0.1), Store())
        await triggerer.until(3)
        await asyncio.sleep(0.5)
        await triggerer.stop()
        return [(event["system"], event["files"][0]["path"]) for event in triggerer.events]

    first, *others = run(moved())
    assert first == ("one", f"{gateway.home}/a/in")
    assert others == [("two", f"{gateway.home}/b/in")] * 2


def test_watchers_of_one_connection_look_at_their_own_systems(make_gateway, connect):
    gateway = make_gateway(systems=["one", "two"])
    (gateway.home / "in").write_text("1")

    async def both():
        triggerer = Triggerer()
        connect(gateway, system="one")
        triggerer.start(watcher("{working_dir}/in"), Store())
        await triggerer.until(1)
        connect(gateway, system="two")
        triggerer.start(watcher("{working_dir}/in", stable_for=0.1), Store())
        await triggerer.until(2)
        await triggerer.stop()
        return [event["system"] for event in triggerer.events]

    assert run(both()) == ["one", "two"]
    assert gateway.requests.count("/filesystem/two/.*/stat") > 0


def test_a_file_that_rests_is_not_left_until_the_next_long_interval(inbox):
    (inbox / "in").write_text("1")

    async def soon():
        triggerer = Triggerer()
        triggerer.start(watcher(inbox / "in", stable_for=0.5, poll_interval=600), Store())
        await triggerer.until(1, seconds=5)
        await triggerer.stop()

    run(soon())


def test_watchers_of_one_place_share_the_looks(inbox, connected):
    async def looks(count):
        triggerer = Triggerer()
        for number in range(count):
            # Watchers that are alike in all are one trigger for Airflow.
            triggerer.start(watcher(inbox / "never", stable_for=number))
        await asyncio.sleep(0.3)
        before = asked(connected)
        await asyncio.sleep(2)
        after = asked(connected)
        await triggerer.stop()
        return after[0] - before[0]

    alone, together = run(looks(1)), run(looks(10))
    assert 3 < alone < 15
    assert 3 < together < 15


def test_many_files_of_a_directory_are_one_list_and_only_what_changed_is_looked_at(inbox, connected):
    async def looks():
        triggerer = Triggerer()
        for number in range(12):
            (inbox / f"{number}").write_text("x")
            triggerer.start(watcher(inbox / f"{number}"), Store())
        await triggerer.until(12)
        await asyncio.sleep(1.5)
        before = asked(connected)
        await asyncio.sleep(2)
        quiet = asked(connected)
        (inbox / "new").write_text("changed")
        (inbox / "new").rename(inbox / "7")
        await triggerer.until(13)
        await asyncio.sleep(0.3)
        after = asked(connected)
        await triggerer.stop()
        return triggerer.fired()[-1], quiet[0] - before[0], quiet[1] - before[1], after[0] - quiet[0]

    last, stats, lists, stats_of_change = run(looks())
    assert last == ("7", 7)
    assert stats == 0
    assert stats_of_change <= 3
    assert 2 < lists < 25


@pytest.mark.parametrize("beside", [0, 4], ids=["alone", "one of many"])
def test_the_same_content_laid_down_anew_is_another_version(inbox, beside):
    async def replaced():
        triggerer = Triggerer()
        path = inbox / "in"
        path.write_text("same")
        for number in range(beside):
            triggerer.start(watcher(inbox / f"never-{number}", poll_interval=1), Store())
        triggerer.start(watcher(path, poll_interval=1), Store())
        await triggerer.until(1)
        await asyncio.sleep(0.5)
        (inbox / "other").write_text("same")
        # A list, which tells whole seconds and no inode, tells the same of it.
        os.utime(inbox / "other", ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        (inbox / "other").rename(path)
        await triggerer.until(2)
        await triggerer.stop()

    run(replaced())


def test_a_watcher_of_several_assets_keeps_its_state_with_each(monkeypatch):
    """Airflow has no public way to reach the stores of all assets: it may rename what is read here."""
    monkeypatch.setattr(files, "_STORE_TRIES", 1)
    trigger = watcher("/in")
    for assets in ([Asset("one")], [Asset("one"), Asset("two")]):
        trigger.asset_state_store = AssetStateStoreAccessors(inlets=assets)
        assert trigger._stores() == [trigger.asset_state_store[asset] for asset in assets]


class Nameless(Store):
    """As Airflow's own, were its attributes named otherwise.

    :param assets: how many assets it is for
    """

    def __init__(self, assets):
        super().__init__()
        self.assets = assets

    async def aget(self, key, default=None):
        if self.assets != 1:
            raise ValueError(f"Task has {self.assets} concrete inlets and outlets")
        return await super().aget(key, default)


def test_where_the_stores_of_several_assets_cannot_be_told_apart_one_will_do_and_two_are_refused(
    inbox, monkeypatch
):
    monkeypatch.setattr(files, "_STORE_TRIES", 1)
    (inbox / "in").write_text("1")

    async def watched(assets):
        triggerer = Triggerer()
        triggerer.start(watcher(inbox / "in"), Nameless(assets))
        try:
            if assets == 1:
                await triggerer.until(1)
            else:
                await triggerer._tasks[0]
        finally:
            await triggerer.stop()

    run(watched(1))
    with pytest.raises(WatchError, match=f"{inbox}/in .* several assets, .* one asset each"):
        run(watched(2))


def test_a_path_that_may_not_be_looked_at_is_told_once_and_watched_on(connected, inbox, caplog):
    async def refused():
        triggerer = Triggerer()
        triggerer.start(watcher("/no/file/system"), Store())
        triggerer.start(watcher(inbox / "in"), Store())
        (inbox / "in").write_text("1")
        await triggerer.until(1)
        await asyncio.sleep(0.6)
        await triggerer.stop()

    run(refused())
    assert len([1 for record in caplog.records if "/no/file/system" in record.getMessage()]) <= 1


def test_the_working_directory_of_the_connection_and_its_system_are_found(connected, connect):
    connect(connected, system="embedded")
    folder = connected.home / "lookout-inbox"
    folder.mkdir(exist_ok=True)

    async def found():
        triggerer = Triggerer()
        triggerer.start(watcher("{working_dir}/lookout-inbox", glob="*.csv"), Store())
        (folder / "a.csv").write_text("a")
        (folder / "a.txt").write_text("a")
        await triggerer.until(1)
        await triggerer.stop()
        return triggerer.events

    (event,) = run(found())
    assert event["system"] == "embedded"
    assert [file["path"] for file in event["files"]] == [f"{folder}/a.csv"]
