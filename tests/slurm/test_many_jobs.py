"""Many tasks submit at once, and are watched as one."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow_home import context_of
from live_airflow import until

from airflow_hpc_provider.client.errors import JobFailedError
from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator

pytestmark = pytest.mark.slurm

JOBS = 200
# Tasks that a worker runs at once.
AT_ONCE = 16


@pytest.fixture
def gateway(make_slurm_gateway):
    """One of its own, whose requests are counted."""
    return make_slurm_gateway()


class Mapped:
    """One of many mapped tasks; its job exits with its index modulo 3."""

    def __init__(self, index):
        self.index = index
        self.context = context_of("many", run_id="at-once", map_index=index)
        self.operator = HpcSubmitJobOperator(
            task_id="many",
            script=f"#!/bin/bash\nexit {index % 3}\n",
            # Until all are there.
            sbatch_options={"hold": True},
            deferrable=True,
            poll_interval=2,
            log_interval=None,
        )

    def submit(self):
        try:
            return self.operator.execute(self.context)
        except TaskDeferred as deferral:
            return deferral.trigger

    def end(self, event):
        try:
            return self.operator.execute_complete(self.context, event)
        except JobFailedError as error:
            return error


@pytest.mark.timeout(240)
def test_two_hundred_tasks_at_once_each_come_to_the_end_of_their_own_job(connected, slurm):
    tasks = [Mapped(index) for index in range(JOBS)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        triggers = [*pool.map(Mapped.submit, tasks)]
    ids = [one.context["ti"].xcoms["job_id"] for one in tasks]
    assert len({*ids}) == connected.requests.count("submit") == JOBS
    connected.requests.clear()
    begun = time.monotonic()

    async def events():
        waits = [asyncio.ensure_future(anext(trigger.run())) for trigger in triggers]
        await asyncio.to_thread(until, lambda: connected.requests.count("jobs"), 30, "the first list")
        await asyncio.to_thread(slurm.run, "scontrol", "release", ",".join(ids))
        return [event.payload for event in await asyncio.wait_for(asyncio.gather(*waits), 100)]

    found = asyncio.run(events())
    seconds = time.monotonic() - begun
    assert [event["data"]["job_id"] for event in found] == ids
    assert [event["data"]["exit_code"] for event in found] == [index % 3 for index in range(JOBS)]
    # As one: not a look for each of them at each tick.
    assert connected.requests.count("job") + connected.requests.count("jobs") < JOBS + 2 * seconds
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ends = [*pool.map(Mapped.end, tasks, found)]
    assert [isinstance(end, JobFailedError) for end in ends] == [index % 3 > 0 for index in range(JOBS)]
