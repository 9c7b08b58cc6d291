"""The trigger that waits for a file."""

import asyncio
import threading
import time

import pytest
from airflow.sdk import serde
from airflow.sdk._shared.module_loading import import_string

from airflow_hpc_provider.client.errors import InvalidInputError
from airflow_hpc_provider.triggers.files import HpcFileTrigger


def payload_of(**arguments):
    trigger = HpcFileTrigger(
        hpc_conn_id="hpc_default", system="embedded", since=time.time(), poll_interval=0.1, **arguments
    )

    async def first():
        return (await anext(trigger.run())).payload

    return asyncio.run(asyncio.wait_for(first(), 20))


def test_a_file_that_comes_later_is_found_with_its_size(connected):
    path = connected.scratch / "trigger-late.dat"
    writing = threading.Timer(0.5, path.write_text, ["content"])
    writing.start()
    event = payload_of(path=str(path), stable_for=0)
    writing.join()
    assert event["outcome"] == "done"
    assert event["data"] == {"files": [{"path": str(path), "size": 7}]}


def test_a_deadline_becomes_an_event(connected):
    event = payload_of(path=f"{connected.scratch}/never", deadline=time.time() + 0.3)
    assert event["outcome"] == "timeout"


def test_a_path_outside_the_file_systems_fails_at_once(connected):
    event = payload_of(path="/no/file/system")
    assert event["outcome"] == "failed"
    assert event["transient"] is False


# --- as a watcher ---


def watcher(path, **options):
    return HpcFileTrigger(**{"path": str(path), "stable_for": 0, "poll_interval": 0.2} | options)


def test_as_a_watcher_it_fires_for_each_version(connected):
    path = connected.scratch / "watched.dat"
    path.write_text("1")
    trigger = watcher(path)

    async def two():
        running = trigger.run()
        first = await anext(running)
        asyncio.get_running_loop().call_later(0.2, path.write_text, "22")
        second = await anext(running)
        await running.aclose()
        return [first.payload, second.payload]

    events = asyncio.run(asyncio.wait_for(two(), 20))
    assert [event["system"] for event in events] == ["embedded", "embedded"]
    files = [file for event in events for file in event["files"]]
    assert [(file["path"], file["size"]) for file in files] == [(str(path), 1), (str(path), 2)]
    assert files[0]["version"] != files[1]["version"]


def test_a_watcher_travels_through_the_database_and_is_alike_where_its_arguments_are():
    trigger = watcher("/in", glob="*.csv", system="daint")
    path, arguments = trigger.serialize()
    assert serde.deserialize(serde.serialize(arguments)) == arguments
    assert import_string(path)(**arguments).serialize() == (path, arguments)
    assert HpcFileTrigger.hash(path, arguments) == HpcFileTrigger.hash(
        *watcher("/in", glob="*.csv", system="daint").serialize()
    )
    assert trigger.shared_stream_key() == watcher("/other", system="Daint").shared_stream_key()
    assert trigger.shared_stream_key() != watcher("/in", system="eiger").shared_stream_key()
    assert watcher("/in", system="daint", since=1.0).shared_stream_key() is None


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"path": "relative"}, "path"),
        ({"path": "/in/$(rm)"}, "path"),
        ({"path": "/in", "glob": "a/b"}, "glob"),
        ({"path": "/in", "stable_for": -1}, "stable_for"),
        ({"path": "/in", "poll_interval": 0}, "poll_interval"),
        ({"path": "/in", "poll_interval": "soon"}, "poll_interval"),
    ],
)
def test_what_can_never_be_watched_is_refused_where_the_dag_is_parsed(options, field):
    with pytest.raises(InvalidInputError) as refused:
        HpcFileTrigger(**options)
    assert refused.value.field == field
