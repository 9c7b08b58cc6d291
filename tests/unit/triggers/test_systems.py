"""The trigger that waits for a healthy system."""

import asyncio
import threading
import time

from airflow_hpc_provider.triggers.systems import HpcSystemTrigger


def payload_of(**arguments):
    options = {"system": "embedded", "since": time.time(), "poll_interval": 0.1} | arguments
    trigger = HpcSystemTrigger(hpc_conn_id="hpc_default", **options)

    async def first():
        return (await anext(trigger.run())).payload

    return asyncio.run(asyncio.wait_for(first(), 20))


def test_a_system_that_recovers_ends_the_wait(connected):
    connected.set_health("scheduler", healthy=False)
    healing = threading.Timer(0.5, connected.set_health, ["scheduler"], {"healthy": True})
    healing.start()
    event = payload_of()
    healing.join()
    assert (event["outcome"], event["data"]) == ("done", {"system": "embedded"})


def test_services_that_do_not_matter_do_not_count(connected):
    connected.set_health("s3", healthy=False)
    assert payload_of(services=["scheduler"])["outcome"] == "done"


def test_a_system_that_is_not_there_fails_at_once(connected):
    event = payload_of(system="daint")
    assert (event["outcome"], event["transient"]) == ("failed", False)
    assert "it has: embedded" in event["message"]
