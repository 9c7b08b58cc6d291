"""The hub again, and what it makes of many jobs, of silent accounting and of a controller that restarts."""

import asyncio
import os
import threading
import time
from concurrent.futures import Future

import contract.test_hub as original
import pytest
from contract.test_hub import (
    test_a_cancelled_wait_ends_no_other_one_and_the_last_one_closes_all,
    test_a_health_gate_that_closes_for_a_while_fails_nobody,
    test_a_list_that_is_too_slow_or_too_large_gives_way_to_single_looks,
    test_jobs_that_the_list_leaves_out_are_asked_for_by_id,
    test_tokens_that_expire_in_mid_wait_are_replaced,
    verdicts,
    watch,
)

from airflow_hpc_provider.devgateway.directives import Submission

__all__ = [
    "test_a_cancelled_wait_ends_no_other_one_and_the_last_one_closes_all",
    "test_a_health_gate_that_closes_for_a_while_fails_nobody",
    "test_a_list_that_is_too_slow_or_too_large_gives_way_to_single_looks",
    "test_jobs_that_the_list_leaves_out_are_asked_for_by_id",
    "test_tokens_that_expire_in_mid_wait_are_replaced",
]

pytestmark = pytest.mark.slurm

# Seconds for which accounting is down.
OUTAGE = float(os.environ.get("HPC_TESTS_OUTAGE", "60"))


@pytest.fixture
def make_gateway(make_slurm_gateway):
    def make(**options):
        options.pop("job_cpus", None)
        return make_slurm_gateway(**options)

    return make


def submit(gateway, script="sleep 1", *, system=None):
    job = Submission(script=f"#!/bin/bash\n{script}\n", working_directory=str(gateway.home))
    return gateway._world.systems[system or gateway.system].scheduler.submit(job)


@pytest.fixture(autouse=True)
def _to_slurm(monkeypatch):
    monkeypatch.setattr(original, "submit", submit)


def wait_for(gateway, *job_ids, seconds=60, **more):
    async def main():
        waits = [original.hub_of(gateway).wait(watch(gateway, job_id, **more)) for job_id in job_ids]
        return await asyncio.wait_for(asyncio.gather(*waits), seconds)

    return asyncio.run(main())


def in_background(gateway, *job_ids):
    """Wait in another thread: a daemon ends with the thread that started it, so this one starts them."""
    waiting: Future = Future()

    def run():
        try:
            waiting.set_result(wait_for(gateway, *job_ids))
        except BaseException as error:  # noqa: BLE001  it belongs to whoever waits
            waiting.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return waiting


def states(found):
    return [verdict.data.get("state", verdict) for verdict in found]


def test_two_hundred_jobs_at_once_each_come_to_their_own_end(make_gateway):
    gateway = make_gateway()
    array = submit(gateway, "#SBATCH --array=0-49%10\nexit 0")
    ids = [submit(gateway, f"exit {number % 3}") for number in range(199)]
    found = wait_for(gateway, *ids)
    assert states(found) == ["FAILED" if number % 3 else "COMPLETED" for number in range(199)]
    assert [verdict.data["exit_code"] for verdict in found] == [number % 3 for number in range(199)]
    (whole,) = wait_for(gateway, array, array="0-49")
    assert len(whole.data["elements"]) == 50


def test_while_accounting_is_down_jobs_are_submitted_and_waited_for(make_gateway, slurm):
    gateway = make_gateway()
    ids = [submit(gateway, "sleep 1") for _ in range(3)]
    slurm.accounting.stop()
    try:
        ids.append(submit(gateway, "exit 5"))
        waiting = in_background(gateway, *ids)
        time.sleep(OUTAGE)
    finally:
        slurm.start_accounting()
    found = waiting.result(60)
    assert states(found) == ["COMPLETED"] * 3 + ["FAILED"]
    refused = [entry for entry in gateway.requests if entry.status == 500]
    assert refused
    assert len(gateway.requests) < 40 + 2 * OUTAGE


def test_a_controller_that_restarts_in_mid_wait_is_waited_for(make_gateway, slurm):
    gateway = make_gateway()
    ids = [submit(gateway, f"sleep {number}") for number in (1, 3, 5)]
    slurm.controller.stop()
    try:
        waiting = in_background(gateway, *ids)
        time.sleep(4)
    finally:
        slurm.start_controller()
    found = waiting.result(60)
    assert states(found) == ["COMPLETED"] * 3


def test_verdicts_are_of_the_jobs_asked_for(make_gateway):
    gateway = make_gateway()
    (found,) = asyncio.run(verdicts(gateway, watch(gateway, submit(gateway, "kill -SEGV $$"))))
    assert (found.data["state"], found.data["signal"]) == ("FAILED", 11)
