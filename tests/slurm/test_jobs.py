"""Whole lives of tasks whose jobs a real Slurm runs, holds, requeues, suspends, kills and forgets."""

from dataclasses import replace

import pytest
from live_airflow import until
from live_slurm import NODE, USER

from airflow_hpc_provider.client import jobs
from airflow_hpc_provider.client.errors import JobError, JobFailedError
from airflow_hpc_provider.client.states import JobState

pytestmark = pytest.mark.slurm

MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["in the worker", "deferred"])
HELLO = "#!/bin/bash\nid -un; echo $HOME; echo oh >&2\n"
LONG = "#!/bin/bash\nsleep 60\n"


@MODES
def test_a_job_runs_as_its_user_and_gives_its_record(task, connected, deferrable):
    running = task(HELLO, deferrable=deferrable, sbatch_options={"time": "00:05:00"})
    result = running.end()
    assert (result["state"], result["exit_code"], result["signal"]) == ("COMPLETED", 0, None)
    assert (result["job_id"], result["nodes"]) == (running.job_id, NODE)
    assert result["name"].startswith(running.context["ti"].task_id)
    out = connected.home.parent / result["stdout"].replace("%j", running.job_id)
    assert out.read_text() == f"{USER}\n{connected.home}\n"
    assert out.stat().st_uid == 65534


@MODES
def test_a_job_that_fails_tells_how(task, deferrable):
    with pytest.raises(JobFailedError, match=r"FAILED.*exit code 3(?s:.*)no such thing"):
        task("#!/bin/bash\necho no such thing >&2; exit 3\n", deferrable=deferrable).end()


@pytest.mark.parametrize("array", ["0-9%3", "1,5,7-8", "0-12:4%2"])
def test_every_element_of_an_array_is_waited_for(task, array):
    result = task("#!/bin/bash\nsleep 0.$((SLURM_ARRAY_TASK_ID % 10))\n", array=array, deferrable=True).end()
    indices = {"0-9%3": [*range(10)], "1,5,7-8": [1, 5, 7, 8], "0-12:4%2": [0, 4, 8, 12]}[array]
    assert [(item["index"], item["state"]) for item in result["elements"]] == [
        (index, "COMPLETED") for index in indices
    ]


def test_the_elements_of_an_array_that_fail_are_named(task):
    with pytest.raises(JobFailedError, match="3, 7"):
        task("#!/bin/bash\n[ $((SLURM_ARRAY_TASK_ID % 4)) != 3 ]\n", array="0-8").end()


def test_a_large_array_is_followed_to_its_end(task):
    result = task("#!/bin/bash\n", array="0-99%50", deferrable=True).end(60)
    assert [item["state"] for item in result["elements"]] == ["COMPLETED"] * 100


def test_a_job_waits_for_another_that_it_depends_on(task, connected):
    first = task("#!/bin/bash\nsleep 2\ndate +%s.%N > $HOME/first-ended\n", wait=False).end()
    second = task("#!/bin/bash\ncat $HOME/first-ended\n", after_ok=first).end()
    assert second["state"] == "COMPLETED"


@pytest.mark.parametrize(
    ("kind", "first"), [("after_not_ok", "exit 1"), ("after_any", "exit 1"), ("after", "sleep 60")]
)
def test_a_job_may_wait_for_another_to_fail_to_end_or_to_begin(task, kind, first):
    script = f"#!/bin/bash\n#SBATCH --begin=now+2\n{first}\n"
    other = task(script)
    job_id = other.job_id
    running = task(**{kind: job_id})
    assert running.wait_for("PENDING").reason == "Dependency"
    assert running.end()["state"] == "COMPLETED"
    # Accounting may call a job pending for a moment that runs.
    assert other.wait_for("RUNNING" if kind == "after" else "FAILED")
    if kind != "after":
        with pytest.raises(JobFailedError, match="exit code 1"):
            other.end()


def test_a_job_whose_dependency_failed_is_given_up_and_cancelled(task):
    first = task("#!/bin/bash\nexit 1\n", wait=False).end()
    second = task(after_ok=[first["job_id"]], pending_grace=1)
    with pytest.raises(JobError, match="DependencyNeverSatisfied"):
        second.end()
    assert second.wait_for("CANCELLED")


@MODES
def test_a_job_that_is_requeued_is_waited_for_until_it_ended_again(task, slurm, deferrable):
    running = task('#!/bin/bash\n[ "$SLURM_RESTART_COUNT" ] || sleep 60\necho again\n', deferrable=deferrable)
    running.wait_for("RUNNING")
    slurm.run("scontrol", "requeue", running.job_id)
    running.looks_again()
    assert not running.over
    result = running.end()
    assert (result["state"], result["job_id"]) == ("COMPLETED", running.job_id)


def test_a_job_that_uses_more_memory_than_it_asked_for_fails_with_slurms_words(task):
    script = "#!/bin/bash\n/usr/bin/python3 -c 'x = bytearray(300 << 20); import time; time.sleep(30)'\n"
    # Where Slurm watches memory itself, it kills with FAILED; where the kernel does, with OUT_OF_MEMORY.
    with pytest.raises(JobFailedError, match=r"(FAILED|OUT_OF_MEMORY)(?s:.*)exceeded memory limit"):
        task(script, sbatch_options={"mem": "50M"}).end()


def test_a_held_job_waits_until_it_is_released(task, slurm):
    running = task(sbatch_options={"hold": True})
    job = running.wait_for("PENDING")
    assert job.reason == "JobHeldUser"
    running.looks_again()
    assert not running.over
    slurm.run("scontrol", "release", running.job_id)
    assert running.end()["state"] == "COMPLETED"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hold": True}, "JobHeldUser"),
        ({"ntasks": 1000}, "PartitionConfig"),
        ({"partition": "debug", "time": "10:00:00"}, "PartitionTimeLimit"),
    ],
    ids=["held", "too large", "too long"],
)
def test_a_job_that_never_starts_is_given_up_and_cancelled(task, options, reason):
    partition = options.pop("partition", None)
    running = task(sbatch_options=options, partition=partition, pending_grace=1)
    with pytest.raises(JobError, match=reason):
        running.end()
    assert running.wait_for("CANCELLED")


def test_a_suspended_job_is_not_over(task, slurm, connected):
    running = task("#!/bin/bash\nuntil [ -e $HOME/go-$SLURM_JOB_ID ]; do sleep 0.2; done\n")
    running.wait_for("RUNNING")
    slurm.run("scontrol", "suspend", running.job_id)
    assert running.wait_for("SUSPENDED").state is JobState.SUSPENDED
    # Slurm says so before its processes are stopped.
    until(lambda: slurm.process_states(running.job_id) == {"T"}, 10, "stopped processes", pause=0.05)
    (connected.home / f"go-{running.job_id}").touch()
    running.looks_again()
    assert not running.over
    slurm.run("scontrol", "resume", running.job_id)
    assert running.end()["state"] == "COMPLETED"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_job_that_an_administrator_cancels_fails_its_task(task, slurm, state):
    running = task(LONG, sbatch_options={"begin": "now+1hour"} if state == "PENDING" else None)
    running.wait_for(state)
    slurm.run("scancel", running.job_id)
    with pytest.raises(JobFailedError, match="CANCELLED"):
        running.end()


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_job_is_cancelled_once(task, connected, state):
    running = task(LONG, sbatch_options={"begin": "now+1hour"} if state == "PENDING" else None)
    running.wait_for(state)
    call = jobs.cancel(connected.system, running.job_id)
    assert running.send(call) is True
    until(lambda: running.job().state.final, 20, "the job's end", pause=0.1)
    assert running.send(call) is False
    with pytest.raises(JobFailedError, match="CANCELLED"):
        running.end()


@pytest.mark.parametrize(
    "name", ["x" * 128, "-", "--array.1-9", "_.-A", "allocation", "1"], ids=lambda name: name[:12]
)
def test_a_job_is_found_by_its_name_whatever_that_was_made_of(task, connected, name):
    running = task(LONG, job_name=name)
    running.wait_for("RUNNING")
    assert len(running.name) <= 128
    until(lambda: running.ids_by_name() == [running.job_id], 10, "the job in the list", pause=0.2)
    running.send(jobs.cancel(connected.system, running.job_id))
    with pytest.raises(JobFailedError):
        running.end()


def test_a_job_that_is_not_ours_cannot_be_cancelled(task, connected, slurm):
    told = slurm.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 30")
    job_id = told.strip()
    running = task()
    with pytest.raises(Exception, match="Access/permission denied"):
        running.send(jobs.cancel(connected.system, job_id))
    slurm.run("scancel", job_id)
    assert running.end()["state"] == "COMPLETED"


def test_a_job_whose_submission_got_no_answer_is_found_and_not_sent_again(task, connected):
    connected.faults.lose_answer(on="submit")
    running = task(job_name="unanswered")
    result = running.end()
    assert result["state"] == "COMPLETED"
    until(lambda: running.ids_by_name() == [result["job_id"]], 10, "one job in the list", pause=0.2)


@MODES
def test_a_job_that_the_controller_has_forgotten_is_found_by_the_next_try(task, slurm, deferrable):
    first = task("#!/bin/bash\nexit 0\n", wait=False, job_name="forgotten")
    submitted = first.end()

    def forgotten():
        """The queue does not know the job any more; accounting does."""
        told = slurm.run("squeue", "--noheader", "--states=all", "--name", first.name)
        return not told and first.job().state is JobState.COMPLETED

    until(forgotten, 60, "Slurm to forget the job", pause=0.5)
    context = first.context | {"ti": replace(first.context["ti"], try_number=2, xcoms={})}
    again = task("#!/bin/bash\nexit 0\n", context=context, job_name="forgotten", deferrable=deferrable)
    result = again.end()
    assert (result["job_id"], result["state"]) == (submitted["job_id"], "COMPLETED")
    assert first.ids_by_name() == [submitted["job_id"]]
