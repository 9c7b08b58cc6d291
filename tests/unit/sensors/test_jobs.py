"""The sensor that waits for a job that something else submitted."""

import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSensorTimeout, AirflowSkipException, AirflowTaskTimeout
from airflow_home import context_of, wait_with

from airflow_hpc_provider.client.errors import InvalidInputError, JobFailedError, JobLostError
from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator
from airflow_hpc_provider.sensors.jobs import HpcJobSensor

MODES = pytest.mark.parametrize(
    "mode",
    [{"mode": "poke"}, {"mode": "reschedule"}, {"deferrable": True}],
    ids=["poke", "reschedule", "deferred"],
)
LONG = "#!/bin/bash\nsleep 60\n"


def sensor(job: Any, **options: Any) -> HpcJobSensor:
    options = {"poke_interval": 0.1, "timeout": 15, "deferrable": False} | options
    return HpcJobSensor(task_id="job", job=job, **options)


@MODES
def test_the_end_of_a_job_gives_its_record(submitted, mode):
    job_id = submitted("#!/bin/bash\nsleep 0.3\n")
    result = wait_with(sensor(job_id, **mode))
    assert (result["job_id"], result["state"], result["exit_code"]) == (job_id, "COMPLETED", 0)


@MODES
def test_a_job_that_failed_fails_the_sensor(submitted, mode):
    with pytest.raises(JobFailedError, match=r"is FAILED\. Exit code 4") as failure:
        wait_with(sensor(submitted("#!/bin/bash\nexit 4\n"), **mode))
    assert failure.value.state == "FAILED"


@MODES
def test_an_expected_state_is_a_success(submitted, mode):
    job_id = submitted("#!/bin/bash\nexit 4\n")
    assert wait_with(sensor(job_id, expected_states=["COMPLETED", "failed"], **mode))["state"] == "FAILED"


@MODES
def test_an_array_is_waited_for_to_its_last_element(submitted, mode):
    job_id = submitted('#!/bin/bash\n#SBATCH --array=0-2\nsleep "0.$((SLURM_ARRAY_TASK_ID * 3))"\n')
    result = wait_with(sensor(job_id, **mode))
    assert [element["state"] for element in result["elements"]] == ["COMPLETED"] * 3


def test_failed_elements_are_named(submitted):
    job_id = submitted("#!/bin/bash\n#SBATCH --array=0-2\nexit $SLURM_ARRAY_TASK_ID\n")
    with pytest.raises(JobFailedError, match=r"Failed indices: 1, 2\."):
        wait_with(sensor(job_id))


def test_the_output_of_a_submit_task_gives_job_system_and_array(make_gateway, connect):
    gateway = make_gateway(systems=["alps", "eiger"])
    connect(gateway)
    job = HpcSubmitJobOperator(
        task_id="submit",
        script="#!/bin/bash\nsleep 0.2\n",
        sbatch_options={"array": "0-1"},
        wait=False,
        system="eiger",
    ).execute(context_of("submit"))
    result = wait_with(sensor(job))
    assert [element["index"] for element in result["elements"]] == [0, 1]
    assert gateway.requests.count("^/compute/alps") == 0


@MODES
def test_a_node_that_failed_ends_the_wait_once_slurm_does_not_requeue(
    connected, submitted, monkeypatch, mode
):
    monkeypatch.setattr("airflow_hpc_provider.watch._CONFIRM_AFTER", 0.5)
    job_id = submitted(LONG)
    connected.scheduler.end(job_id, "NODE_FAIL")
    with pytest.raises(JobFailedError) as failure:
        wait_with(sensor(job_id, **mode))
    assert failure.value.transient


@MODES
def test_a_job_that_nobody_knows_is_lost(connected, monkeypatch, mode):
    monkeypatch.setattr("airflow_hpc_provider.watch._VISIBLE_WITHIN", 0.5)
    monkeypatch.setattr("airflow_hpc_provider.watch._LOST_AFTER", 0.3)
    monkeypatch.setattr("airflow_hpc_provider.watch._LOST_AFTER", 0.0)
    with pytest.raises(JobLostError):
        wait_with(sensor("999999", **mode))


@MODES
def test_a_timeout_fails_the_sensor_and_leaves_the_job(connected, submitted, mode):
    job_id = submitted(LONG)
    with pytest.raises(AirflowSensorTimeout):
        wait_with(sensor(job_id, **mode | {"timeout": 0.4}))
    assert connected.scheduler.records(job_id)[0].state == "RUNNING"


@MODES
def test_with_soft_fail_a_timeout_skips_the_task(submitted, mode):
    with pytest.raises(AirflowSkipException):
        wait_with(sensor(submitted(LONG), soft_fail=True, **mode | {"timeout": 0.4}))


def test_execution_timeout_holds_while_the_sensor_is_deferred(submitted):
    with pytest.raises(AirflowTaskTimeout):
        wait_with(sensor(submitted(LONG), deferrable=True, execution_timeout=timedelta(seconds=0.5)))


@MODES
def test_a_failure_does_not_count_as_one_with_never_fail(submitted, mode):
    with pytest.raises(AirflowSkipException):
        wait_with(sensor(submitted("#!/bin/bash\nexit 1\n"), never_fail=True, **mode))


@MODES
def test_a_gateway_that_is_down_for_a_while_is_waited_for(connected, submitted, mode):
    fault = connected.faults.cut(on="job", times=None)
    healing = threading.Timer(1.0, connected.faults.clear)
    healing.start()
    assert wait_with(sensor(submitted("#!/bin/bash\n"), **mode))["state"] == "COMPLETED"
    healing.join()
    assert fault.hits


def test_a_sensor_that_is_killed_leaves_the_job_alone(connected, submitted):
    job_id = submitted(LONG)
    task = sensor(job_id)

    def wait() -> None:
        with pytest.raises(JobFailedError):
            wait_with(task)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    time.sleep(0.3)
    task.on_kill()
    assert connected.scheduler.records(job_id)[0].state == "RUNNING"
    connected.scheduler.end(job_id, "FAILED")
    waiting.join(10)


@pytest.mark.parametrize("job", [None, "", {}, "12_3", "x y", True])
def test_what_is_no_job_is_refused_unsent(connected, job):
    before = len(connected.requests)
    with pytest.raises(InvalidInputError, match=r"^job: "):
        wait_with(sensor(job))
    assert len(connected.requests) == before


@pytest.mark.parametrize("state", ["RUNNING", "NO_STATE", ""])
def test_a_state_in_which_no_job_is_over_is_refused(connected, state):
    with pytest.raises(InvalidInputError, match=r"^expected_states: "):
        wait_with(sensor("1", expected_states=[state]))
