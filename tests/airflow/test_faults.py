"""What only real processes show: workers and triggerers that die at chosen moments, and users who step in."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from live_airflow import until

from airflow_hpc_provider.devgateway.faults import Fault

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(900)]

FOR_EVER = 3600.0
# See conftest.py.
MANY = int(os.environ["HPC_TESTS_MANY"])


def worker_of(pid: int) -> int:
    """The executor's process that looks after a task's process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def all_over(work, *states: str, timeout: float = 60) -> None:
    until(lambda: work.states() == sorted(states), timeout, lambda: f"{states}, but jobs are {work.jobs()}")


def looked(airflow, work) -> None:
    """Until the task looks at its job, and so has stored the job's id."""
    job_id = next(iter(until(work.jobs, 60, "the job")))
    look = f"GET /compute/.*/jobs/{job_id}$"
    until(lambda: airflow.gateway.requests.count(look), 60, "a look at the job")


def said(work, words: str) -> str:
    """The log of the first try, once these words are in it."""
    log = "\n".join(work.run.log())
    return log if words in log else ""


@pytest.mark.parametrize("dag_id", ["deferred", "in_worker"])
def test_a_job_runs_once_and_its_output_is_in_the_log_once_and_while_it_runs(launch, dag_id):
    work = launch(dag_id)
    work.run.wait_for("deferred" if dag_id == "deferred" else "running")
    until(lambda: said(work, f"line 3 of {work.mark}"), 60, "the output of the running job", pause=1)
    work.gate.open()
    work.run.wait("success")
    assert work.states() == ["COMPLETED"]
    log = "\n".join(work.run.log())
    assert [log.count(f"line {number} of {work.mark}") for number in range(1, 6)] == [1] * 5, log


def test_a_worker_killed_before_the_gateway_has_the_job_leaves_one_job_after_a_retry(airflow, launch):
    requests = airflow.gateway.requests
    sent = requests.count("submit")
    airflow.gateway.faults.add(Fault("submit", "never arrives", cut=True, seconds=FOR_EVER))
    work = launch("in_worker")
    until(lambda: requests.count("submit") > sent, 60, "the submission")
    os.kill(work.run.pid(), signal.SIGKILL)
    airflow.gateway.faults.clear()
    work.gate.open()
    work.run.wait("success", timeout=90)
    assert work.states() == ["COMPLETED"]
    assert work.run.task()["try_number"] == 2
    assert requests.count("submit") - sent == 2


def test_a_worker_killed_before_it_knows_the_id_of_its_job_finds_the_job_again(airflow, launch):
    requests = airflow.gateway.requests
    sent = requests.count("submit")
    airflow.gateway.faults.delay(FOR_EVER, on="submit", when="after")
    work = launch("in_worker")
    until(work.jobs, 60, "the job")
    os.kill(work.run.pid(), signal.SIGKILL)
    airflow.gateway.faults.clear()
    until(lambda: work.run.task()["try_number"] == 2, 60, "the retry")
    work.gate.open()
    work.run.wait("success")
    assert work.states() == ["COMPLETED"]
    assert requests.count("submit") - sent == 1


def test_a_worker_killed_between_submission_and_deferral_leaves_a_job_that_the_retry_defers_for(
    airflow, launch
):
    sent = airflow.gateway.requests.count("submit")
    work = launch("deferred")
    until(work.jobs, 60, "the job", pause=0.1)
    # The task looks at its job once before it defers.
    look = airflow.gateway.faults.delay(FOR_EVER, on="GET /compute/", times=None)
    until(lambda: look.hits, 30, "the look before the deferral", pause=0.1)
    assert work.run.task()["state"] == "running"
    os.kill(work.run.pid(), signal.SIGKILL)
    airflow.gateway.faults.clear()
    until(lambda: work.run.task()["try_number"] == 2, 60, "the retry")
    work.run.wait_for("deferred")
    assert work.states() == ["RUNNING"]
    work.gate.open()
    work.run.wait("success")
    assert work.states() == ["COMPLETED"]
    assert work.run.task()["try_number"] == 2
    assert airflow.gateway.requests.count("submit") - sent == 1


def test_a_worker_killed_while_it_waits_leaves_a_job_that_the_retry_waits_for(airflow, launch):
    sent = airflow.gateway.requests.count("submit")
    work = launch("in_worker")
    looked(airflow, work)
    os.kill(work.run.pid(), signal.SIGKILL)
    until(lambda: work.run.task()["try_number"] == 2, 60, "the retry")
    work.gate.open()
    work.run.wait("success")
    assert work.states() == ["COMPLETED"]
    assert airflow.gateway.requests.count("submit") - sent == 1


def test_workers_that_are_told_to_end_leave_their_jobs(airflow, launch):
    first, second = launch("in_worker"), launch("in_worker")
    for work in (first, second):
        looked(airflow, work)
    os.kill(first.run.pid(), signal.SIGTERM)
    os.kill(worker_of(second.run.pid()), signal.SIGTERM)
    for work in (first, second):
        until(lambda work=work: work.run.task()["try_number"] == 2, 60, "the retry")
        work.gate.open()
    for work in (first, second):
        work.run.wait("success")
        assert work.states() == ["COMPLETED"]


def test_triggerers_restarted_one_after_the_other_leave_all_jobs(airflow, launch):
    works = [launch("deferred") for _ in range(4)]
    for work in works:
        work.run.wait_for("deferred")
    for triggerer in airflow.triggerers:
        triggerer.stop()
        airflow.restart(triggerer)
    for work in works:
        assert work.states() == ["RUNNING"]
        work.gate.open()
    for work in works:
        work.run.wait("success")
        assert work.states() == ["COMPLETED"]
        assert work.run.task()["try_number"] == 1


def test_a_triggerer_that_hung_and_comes_back_leaves_the_jobs_that_moved(airflow, launch):
    work = launch("deferred")
    work.run.wait_for("deferred")
    hung = until(lambda: airflow.triggerer_of(work.run.task()), 30, "a triggerer to take the task")
    hung.signal(signal.SIGSTOP)
    until(lambda: airflow.triggerer_of(work.run.task()) not in (hung, None), 60, "the other one to take it")
    hung.signal(signal.SIGCONT)
    log = until(lambda: said(work, "trigger completed"), 60, "the triggerer to let go of the task")
    assert "invoking on_kill" in log
    assert work.states() == ["RUNNING"]
    work.gate.open()
    work.run.wait("success")
    assert work.states() == ["COMPLETED"]


def test_many_deferred_tasks_outlive_one_of_two_triggerers(airflow, launch):
    work = launch("many")
    until(lambda: work.run.count("deferred") == MANY, 400, lambda: work.run.count("deferred"), pause=2)

    def owners() -> Counter:
        return Counter(one and one.name for one in map(airflow.triggerer_of, work.run.tasks()))

    until(lambda: None not in owners(), 30, owners, pause=1)
    # Who has how many is left to Airflow.
    killed, other = sorted(airflow.triggerers, key=lambda one: -owners()[one.name])
    killed.kill()
    until(lambda: owners() == {other.name: MANY}, 60, owners, pause=1)
    assert work.states() == ["RUNNING"] * MANY
    work.gate.open()
    work.run.wait("success", timeout=400)
    assert work.states() == ["COMPLETED"] * MANY


def test_what_users_do_to_deferred_tasks_happens_to_their_jobs(launch):
    failed, succeeded, cleared, kept = (
        launch(dag_id) for dag_id in ("deferred", "deferred", "deferred", "deferred_kept")
    )
    for work in (failed, succeeded, cleared, kept):
        work.run.wait_for_trigger()
    kept.run.set_state("failed")
    failed.run.set_state("failed")
    succeeded.run.set_state("success")
    cleared.run.clear()
    all_over(failed, "CANCELLED")
    all_over(succeeded, "CANCELLED")
    all_over(cleared, "CANCELLED", "RUNNING")
    assert kept.states() == ["RUNNING"]
    for work in (kept, cleared):
        work.gate.open()
    cleared.run.wait("success")
    assert cleared.states() == ["CANCELLED", "COMPLETED"]
    all_over(kept, "COMPLETED")


def test_what_users_do_to_running_tasks_happens_to_their_jobs(airflow, launch):
    failed, kept = launch("in_worker"), launch("in_worker_kept")
    for work in (failed, kept):
        looked(airflow, work)
    for work in (kept, failed):
        work.run.set_state("failed")
    all_over(failed, "CANCELLED")
    kept.gate.open()
    all_over(kept, "COMPLETED")


def test_a_time_limit_holds_while_a_task_is_deferred(launch):
    work = launch("limited")
    work.run.wait_for("deferred")
    work.run.wait("failed")
    assert work.states() == ["CANCELLED"]
    assert "the time-out came after" in "\n".join(work.run.log())


def test_of_two_tries_side_by_side_one_job_is_left(airflow, launch):
    requests = airflow.gateway.requests
    sent = requests.count("submit")
    airflow.gateway.faults.delay(45, on="submit", when="before")
    work = launch("patient")
    until(lambda: requests.count("submit") > sent, 60, "the submission")
    orphan = work.run.pid()
    os.kill(worker_of(orphan), signal.SIGKILL)
    until(lambda: requests.count("submit") > sent + 1, 44, "the submission of the second try")
    assert Path(f"/proc/{orphan}").exists()
    until(lambda: len(work.jobs()) == 2, 50, "the late submission of the first try")
    all_over(work, "CANCELLED", "RUNNING", timeout=30)
    work.gate.open()
    work.run.wait("success")
    assert work.states() == ["CANCELLED", "COMPLETED"]
    until(lambda: not Path(f"/proc/{orphan}").exists(), 30, "the end of the orphan")
