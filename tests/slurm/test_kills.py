"""A user who ends a task ends its job in Slurm; a restart of what runs the task does not."""

import pytest
from live_airflow import until

from airflow_hpc_provider.client.errors import JobFailedError, WatchError

pytestmark = pytest.mark.slurm

LONG = "#!/bin/bash\nsleep 60\n"
ARRAYS = pytest.mark.parametrize("array", [None, "0-5%2"], ids=["job", "array"])


def states(slurm, running):
    """As Slurm itself tells of the job, or of the elements and the pending rest of an array."""
    told = slurm.run("squeue", "--noheader", "--states=all", f"--jobs={running.job_id}", "--format=%T")
    return {*told.split()}


def waits(running, *, deferred):
    running.wait_for("RUNNING")
    if deferred:
        until(lambda: running.deferred, 10, "the deferral", pause=0.05)


@ARRAYS
def test_a_kill_of_the_worker_by_a_user_cancels_the_job(task, slurm, array):
    running = task(LONG, array=array, poll_interval=20)
    waits(running, deferred=False)
    running.kill("failed")
    with pytest.raises(WatchError, match=f"job {running.job_id} .* is cancelled"):
        running.end(5)
    until(lambda: states(slurm, running) == {"CANCELLED"}, 10, lambda: states(slurm, running), pause=0.1)


@ARRAYS
def test_a_kill_of_a_deferred_task_by_a_user_cancels_the_job(task, slurm, array):
    running = task(LONG, array=array, deferrable=True)
    waits(running, deferred=True)
    running.kill("failed")
    until(lambda: states(slurm, running) == {"CANCELLED"}, 10, lambda: states(slurm, running), pause=0.1)
    with pytest.raises(JobFailedError, match="CANCELLED"):
        running.end()


def test_a_worker_that_restarts_leaves_the_job_alone(task, slurm):
    running = task(LONG, poll_interval=20)
    waits(running, deferred=False)
    running.kill("running")
    with pytest.raises(WatchError, match="a retry finds it"):
        running.end(5)
    assert states(slurm, running) == {"RUNNING"}
    again = task(LONG, context=running.context, task_id=running.context["ti"].task_id)
    assert again.job_id == running.job_id
    again.kill("failed")
    with pytest.raises(WatchError, match="is cancelled"):
        again.end(5)


def test_a_trigger_that_is_moved_to_another_triggerer_leaves_the_job_alone(task, slurm):
    running = task(LONG, deferrable=True)
    waits(running, deferred=True)
    running.kill("deferred")
    assert states(slurm, running) == {"RUNNING"}
    assert not running.over
