"""The trigger that waits for a job: what it sees, and whom a kill kills."""

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from airflow_hpc_provider.triggers.jobs import HpcJobTrigger
from airflow_hpc_provider.watch import Outcome, Verdict


def trigger_for(job_id: str, **more: Any) -> HpcJobTrigger:
    arguments = {"since": time.time(), "poll_interval": 0.1} | more
    return HpcJobTrigger(hpc_conn_id="hpc_default", system="embedded", job_id=job_id, **arguments)


async def first(trigger) -> Verdict:
    payload = (await anext(trigger.run())).payload
    payload.pop("carry")
    return Verdict.from_event(payload)


def verdict_of(trigger) -> Verdict:
    return asyncio.run(asyncio.wait_for(first(trigger), 20))


def state_of(gateway, job_id: str) -> str:
    return gateway.scheduler.records(job_id)[0].state


def test_the_event_holds_the_jobs_record(connected, submitted):
    verdict = verdict_of(trigger_for(job_id := submitted("#!/bin/bash\nexit 2\n")))
    assert verdict.outcome is Outcome.DONE
    assert (verdict.data["job_id"], verdict.data["state"], verdict.data["exit_code"]) == (job_id, "FAILED", 2)


def test_a_job_that_is_not_visible_yet_is_waited_for(connected, submitted):
    connected.faults.visibility_lag = 1.0
    verdict = verdict_of(trigger_for(submitted("#!/bin/bash\n")))
    assert verdict.data["state"] == "COMPLETED"


def test_a_job_that_vanished_is_lost(connected, submitted, monkeypatch):
    monkeypatch.setattr("airflow_hpc_provider.watch._LOST_AFTER", 0.3)
    job_id = submitted("#!/bin/bash\nsleep 30\n")
    connected.faults.vanish(job_id)
    verdict = verdict_of(trigger_for(job_id, since=time.time() - 1000))
    assert verdict.outcome is Outcome.LOST
    assert not verdict.transient


def test_an_incomplete_record_of_a_short_job_is_no_trouble(connected, submitted):
    connected.faults.accounting_lag = 5.0
    assert verdict_of(trigger_for(submitted("#!/bin/bash\n"))).data["state"] == "COMPLETED"


def test_nothing_is_said_before_its_time(connected, submitted):
    begun = time.time()
    verdict = verdict_of(trigger_for(submitted("#!/bin/bash\n"), not_before=begun + 1.5))
    assert verdict.outcome is Outcome.DONE
    assert time.time() - begun >= 1.5


@pytest.mark.parametrize("cancel_on_kill", [True, False])
def test_a_deadline_ends_the_wait_and_the_job_if_it_may(connected, submitted, cancel_on_kill):
    job_id = submitted("#!/bin/bash\nsleep 30\n")
    verdict = verdict_of(trigger_for(job_id, deadline=time.time() + 0.5, cancel_on_kill=cancel_on_kill))
    assert verdict.outcome is Outcome.TIMEOUT
    assert state_of(connected, job_id).startswith("CANCELLED") is cancel_on_kill


def test_an_array_is_over_when_all_its_elements_are(connected, submitted):
    job_id = submitted('#!/bin/bash\n#SBATCH --array=0-2\nsleep "0.$SLURM_ARRAY_TASK_ID"\n')
    verdict = verdict_of(trigger_for(job_id, array="0-2"))
    assert [element["index"] for element in verdict.data["elements"]] == [0, 1, 2]
    assert verdict.data["state"] == "COMPLETED"


@pytest.fixture
def airflow_says(monkeypatch):
    """What Airflow knows about the task: the only thing that is not real here."""

    def say(state: str | None, *, map_index: int = -1) -> SimpleNamespace:
        ti = SimpleNamespace(dag_id="dag", run_id="run", task_id="task", map_index=map_index)
        key = "task" if map_index < 0 else f"task_{map_index}"
        threads: list[int] = []

        def states(dag_id, map_index=None, task_ids=None, run_ids=None, **_):
            threads.append(threading.get_ident())
            assert (dag_id, task_ids, run_ids, map_index) == ("dag", ["task"], ["run"], ti.map_index)
            return {"run": {key: state}} if state else {}

        monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(states))
        ti.asked_in = threads
        return ti

    return say


def killed(trigger, ti) -> None:
    trigger._task_instance = ti
    asyncio.run(trigger.on_kill())


@pytest.mark.parametrize("map_index", [-1, 0, 7])
@pytest.mark.parametrize("state", ["failed", "success", "restarting", "removed", None])
def test_a_user_who_ends_the_task_ends_the_job(connected, submitted, airflow_says, state, map_index):
    job_id = submitted("#!/bin/bash\nsleep 30\n")
    killed(trigger_for(job_id, cancel_on_kill=True), airflow_says(state, map_index=map_index))
    assert state_of(connected, job_id).startswith("CANCELLED")


def test_a_kill_that_takes_airflow_too_long_ends_the_job_all_the_same(connected, submitted, airflow_says):
    job_id = submitted("#!/bin/bash\nsleep 30\n")
    trigger = trigger_for(job_id, cancel_on_kill=True)
    trigger._task_instance = airflow_says("failed")

    async def given_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await trigger.on_kill()
        for _ in range(500):
            if state_of(connected, job_id).startswith("CANCELLED"):
                return
            await asyncio.sleep(0.01)

    asyncio.run(given_up())
    assert state_of(connected, job_id).startswith("CANCELLED")


@pytest.mark.parametrize("map_index", [-1, 7])
def test_a_trigger_that_is_only_moved_leaves_the_job_alone(connected, submitted, airflow_says, map_index):
    job_id = submitted("#!/bin/bash\nsleep 30\n")
    ti = airflow_says("deferred", map_index=map_index)
    killed(trigger_for(job_id, cancel_on_kill=True), ti)
    assert state_of(connected, job_id) in ("PENDING", "RUNNING")
    assert ti.asked_in, "Airflow was asked"
    assert threading.get_ident() not in ti.asked_in, "not on the event loop, which the question would block"


def test_a_job_that_shall_outlive_its_task_is_left_alone(connected, submitted, airflow_says):
    job_id = submitted("#!/bin/bash\nsleep 30\n")
    killed(trigger_for(job_id, cancel_on_kill=False), airflow_says("failed"))
    assert state_of(connected, job_id) in ("PENDING", "RUNNING")


def test_a_kill_after_the_end_of_the_job_is_no_error(connected, submitted, airflow_says):
    trigger = trigger_for(submitted("#!/bin/bash\n"), cancel_on_kill=True)
    verdict_of(trigger)
    killed(trigger, airflow_says("failed"))


def test_a_kill_is_carried_out_by_a_gateway_that_stumbles(connected, submitted, airflow_says):
    job_id = submitted("#!/bin/bash\nsleep 30\n")
    connected.faults.cut(on="cancel", times=2)
    killed(trigger_for(job_id, cancel_on_kill=True), airflow_says("failed"))
    assert state_of(connected, job_id).startswith("CANCELLED")
