"""What all triggers share: they travel as plain JSON, never block the loop, and end in one event."""

import asyncio
import contextlib
import json
import threading
import time
from typing import Any

import pytest
from airflow.sdk import serde
from airflow.sdk._shared.module_loading import import_string

from airflow_hpc_provider.client.auth import forget_tokens
from airflow_hpc_provider.triggers.files import HpcFileTrigger
from airflow_hpc_provider.triggers.jobs import HpcJobTrigger
from airflow_hpc_provider.triggers.systems import HpcSystemTrigger
from airflow_hpc_provider.watch import Outcome, Verdict


def common(**more: Any) -> dict[str, Any]:
    return {"hpc_conn_id": "hpc_default", "system": "embedded", "since": time.time()} | more


TRIGGERS = [
    (
        HpcJobTrigger,
        {
            "job_id": "12",
            "array": "0-3%2",
            "deadline": 2e9,
            "poll_interval": 0.2,
            "cancel_on_kill": True,
            "carry": {"spec": {"name": "Zürich"}, "array": None},
        },
    ),
    (HpcFileTrigger, {"path": "/scratch", "glob": "*.cif", "stable_for": 1.5}),
    (HpcSystemTrigger, {"services": ["scheduler"], "patience": 60.0}),
]
each = pytest.mark.parametrize(("kind", "arguments"), TRIGGERS, ids=[kind.__name__ for kind, _ in TRIGGERS])


@each
def test_a_trigger_survives_airflows_database(kind, arguments):
    path, sent = kind(**common(**arguments)).serialize()
    assert path == f"{kind.__module__}.{kind.__name__}"
    assert arguments.items() <= sent.items()
    assert json.loads(json.dumps(sent)) == sent
    assert serde.deserialize(serde.serialize(sent)) == sent
    assert import_string(path)(**sent).serialize() == (path, sent)


@each
def test_what_a_trigger_shows_of_itself_tells_no_secret(kind, arguments, connected):
    shown = f"{kind(**common(**arguments))!r} {kind(**common(**arguments)).serialize()}"
    assert connected.client_secret not in shown


async def events_of(trigger) -> list[dict[str, Any]]:
    return [event.payload async for event in trigger.run()]


def verdict_of(trigger) -> Verdict:
    events = asyncio.run(asyncio.wait_for(events_of(trigger), 30))
    assert len(events) == 1
    assert json.loads(json.dumps(events[0])) == events[0]
    carry = events[0].pop("carry")
    assert carry == trigger.carry
    return Verdict.from_event(events[0])


@each
def test_a_connection_that_cannot_be_used_becomes_an_event(kind, arguments, connect):
    connect({"conn_type": "firecrest", "host": "http://example.org"})
    verdict = verdict_of(kind(**common(**arguments)))
    assert verdict.outcome is Outcome.FAILED
    assert not verdict.transient
    assert "unencrypted" in verdict.message


@each
def test_a_connection_that_is_not_there_becomes_an_event(kind, arguments, monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_HPC_DEFAULT", raising=False)
    verdict = verdict_of(kind(**common(**arguments)))
    assert verdict.outcome is Outcome.FAILED
    assert "hpc_default" in verdict.message


@each
def test_a_refused_client_is_waited_for_as_long_as_there_is_patience(kind, arguments, connected, connect):
    connect(connected.connection() | {"password": "wrong"})
    begun = time.monotonic()
    verdict = verdict_of(kind(**common(**arguments | {"patience": 0.8})))
    assert time.monotonic() - begun > 0.7
    assert verdict.outcome is Outcome.FAILED
    assert verdict.transient
    assert "The token endpoint on 127.0.0.1 answered HTTP 401" in verdict.message


@pytest.mark.parametrize("trouble", ["cut", "bad_gateway", "garbage", "rate_limit"])
def test_a_gateway_in_trouble_for_a_while_is_waited_for(connected, trouble):
    fault = getattr(connected.faults, trouble)(on="systems", times=None)
    healing = threading.Timer(1.2, connected.faults.clear)
    healing.start()
    verdict = verdict_of(HpcSystemTrigger(**common(poll_interval=0.1)))
    healing.join()
    assert verdict.outcome is Outcome.DONE, verdict
    assert fault.hits


def test_tokens_that_expire_during_a_wait_are_renewed(make_gateway, connect):
    gateway = make_gateway(unhealthy={"embedded": "scheduler"})
    connect(gateway)

    def later() -> None:
        gateway.faults.expire_tokens()
        gateway.set_health("scheduler", healthy=True)

    healing = threading.Timer(1, later)
    healing.start()
    assert verdict_of(HpcSystemTrigger(**common(poll_interval=0.1))).outcome is Outcome.DONE
    healing.join()
    assert gateway.requests.count("token") == 2


def test_many_triggers_never_hold_up_the_loop_they_share(connected):
    """From the first token to the last event, and with a gateway that answers slowly."""
    forget_tokens()
    connected.faults.delay(0.3, on="job", times=None)
    job = connected.scheduler.submit(_sleep_job(connected, 2))
    triggers: list[Any] = [HpcJobTrigger(**common(job_id=job, poll_interval=0.1)) for _ in range(10)]
    triggers += [HpcSystemTrigger(**common(poll_interval=0.1)) for _ in range(5)]
    triggers += [
        HpcFileTrigger(
            **common(path=str(connected.home), glob="*.never", poll_interval=0.1, deadline=time.time() + 2)
        )
        for _ in range(5)
    ]
    gaps: list[float] = []

    async def heartbeat() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    async def everything() -> list[list[dict[str, Any]]]:
        beating = asyncio.create_task(heartbeat())
        ends = await asyncio.gather(*(events_of(trigger) for trigger in triggers))
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating
        return list(ends)

    ends = asyncio.run(asyncio.wait_for(everything(), 30))
    outcomes = [end[0]["outcome"] for end in ends]
    assert outcomes == ["done"] * 15 + ["timeout"] * 5
    assert max(gaps) < 0.5, f"the loop stood still for {max(gaps):.2f} s"
    assert connected.requests.count("token") >= 1


def _sleep_job(gateway, seconds: float):
    from airflow_hpc_provider.devgateway.directives import Submission

    return Submission(script=f"#!/bin/bash\nsleep {seconds}\n", working_directory=str(gateway.home))
