"""The trigger that waits for a file."""

import asyncio
import threading
import time

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
