"""Jobs of the local scheduler, as a client of the gateway sees them."""

import os
import time
from pathlib import Path

import pytest


def status(job):
    return job["status"]["state"], job["status"]["exitCode"], job["status"]["interruptSignal"]


def output(api, job_id):
    path = api.get(f"compute/jobs/{job_id}/metadata").json()["jobs"][0]["standardOutput"]
    return api.get("filesystem/ops/view", path=path).json()["output"]


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("exit 0", ("COMPLETED", 0, 0)),
        ("exit 7", ("FAILED", 7, 0)),
        ("exit 137", ("FAILED", 9, 0)),
        ("kill -KILL $$", ("FAILED", 0, 9)),
    ],
)
def test_how_a_script_ends_is_how_its_job_ends(api, script, wanted):
    assert status(api.wait(api.submit(f"#!/bin/bash\n{script}\n"))[0]) == wanted


def test_an_interpreter_that_is_not_there(api):
    assert status(api.wait(api.submit("#!/no/such/interpreter\n"))[0]) == ("FAILED", 2, 0)


def test_a_missing_working_directory_fails_before_the_script(api):
    job = api.wait(api.submit("#!/bin/sh\ntouch ran\n", workingDirectory="/nonexistent"))[0]
    assert status(job) == ("FAILED", 0, 53)
    assert job["tasks"] == []


def test_a_job_sees_slurms_environment(api, gateway):
    script = "#!/bin/sh\n#SBATCH -J see -n 2 -c 3\n"
    script += "echo $SLURM_JOB_ID $SLURM_JOB_NAME $SLURM_NTASKS $SLURM_CPUS_PER_TASK\n"
    script += "echo $HOME $PWD $SLURM_SUBMIT_DIR $GIVEN; srun -n 2 sh -c 'echo task $SLURM_PROCID' | sort\n"
    job_id = api.submit(script, env={"GIVEN": "it"})
    api.wait(job_id)
    home = str(gateway.home)
    assert output(api, job_id).split("\n")[:4] == [
        f"{job_id} see 2 3",
        f"{home} {home} {home} it",
        "task 0",
        "task 1",
    ]


def test_the_gateways_own_environment_stays_out_of_jobs(api, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SECRET", "secret")
    job_id = api.submit("#!/bin/sh\nenv\n")
    api.wait(job_id)
    assert "AIRFLOW" not in output(api, job_id)


def test_a_comma_cuts_an_environment_value(api):
    job_id = api.submit("#!/bin/sh\necho $A $B\n", env={"A": "1,2", "B": "x"})
    api.wait(job_id)
    assert output(api, job_id) == "1 x\n"


def test_logs_go_where_the_patterns_say(api, gateway):
    folder = gateway.home / "logs-test"
    folder.mkdir()
    script = "#!/bin/sh\n#SBATCH -J named -o deep/%x-%j.out -e err-%u\necho out; echo err >&2\n"
    job_id = api.submit(script, workingDirectory=str(folder))
    api.wait(job_id)
    assert (folder / f"deep/named-{job_id}.out").read_text() == "out\n"
    assert (folder / f"err-{gateway.user}").read_text() == "err\n"


def test_a_time_limit_ends_a_job_that_ignores_it(make_gateway, make_api):
    api = make_api(make_gateway(kill_wait=0.2))
    job_id = api.submit(
        "#!/bin/bash\n#SBATCH -t 0:01\ntrap 'echo asked' TERM\nwhile :; do sleep 0.05; done\n"
    )
    job = api.wait(job_id)[0]
    assert status(job) == ("TIMEOUT", 0, 0)
    assert (job["tasks"][0]["status"]["state"], job["tasks"][0]["status"]["interruptSignal"]) == (
        "CANCELLED",
        15,
    )
    api.wait_until_gone(job_id)
    assert "asked\n" in output(api, job_id)
    assert "DUE TO TIME LIMIT" in output(api, job_id)


def test_cancelling_ends_every_process_of_a_job(api, gateway):
    job_id = api.submit("#!/bin/bash\nsleep 300 &\necho $! > child\nwait\n")
    child = gateway.home / "child"
    api.wait(job_id, lambda _: child.exists() and child.read_text().strip())
    api.delete(f"compute/jobs/{job_id}")
    assert api.state(job_id) == f"CANCELLED by {os.getuid()}"
    api.wait_until_gone(job_id)
    assert gone(int(child.read_text()))


def gone(pid):
    """A killed process takes a moment to die on a busy machine, and stays as a zombie until it is reaped."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_what_a_script_leaves_behind_is_killed_with_it(api, gateway):
    job_id = api.submit("#!/bin/bash\nsleep 300 &\necho $! > left\n")
    api.wait(job_id)
    api.wait_until_gone(job_id)
    assert gone(int((gateway.home / "left").read_text()))


def test_arrays_run_at_most_so_many_at_a_time(api):
    job_id = api.submit("#!/bin/sh\n#SBATCH -a 1-6:1%2\nsleep 0.1; exit $((SLURM_ARRAY_TASK_ID == 4))\n")
    most = 0

    def watch(jobs):
        nonlocal most
        most = max(most, sum(job["status"]["state"] == "RUNNING" for job in jobs if "_" in job["jobId"]))
        return all(
            "[" not in job["jobId"] and job["status"]["state"] in ("COMPLETED", "FAILED") for job in jobs
        )

    jobs = api.wait(job_id, watch)
    assert most <= 2
    assert {job["jobId"]: job["status"]["exitCode"] for job in jobs} == {
        f"{job_id}_{index}": int(index == 4) for index in range(1, 7)
    }


def test_an_element_is_cancelled_by_its_raw_id(api):
    job_id = api.submit("#!/bin/sh\n#SBATCH -a 0-1\nsleep 30\n")
    jobs = api.wait(job_id, lambda jobs: [j["status"]["state"] for j in jobs[:2]] == ["RUNNING"] * 2)
    raw_id = next(job["jobId"] for job in jobs if "_" not in job["jobId"] and job["jobId"] != job_id)
    element = api.jobs(raw_id)[0]["jobId"]
    api.delete(f"compute/jobs/{raw_id}")
    states = {
        job["jobId"]: job["status"]["state"].split()[0] for job in api.jobs(job_id) if "_" in job["jobId"]
    }
    assert states.pop(element) == "CANCELLED"
    assert list(states.values()) == ["RUNNING"]
    api.delete(f"compute/jobs/{job_id}")


def test_dependencies_hold_until_they_are_met(api):
    first = api.submit("#!/bin/sh\nsleep 0.3\n")
    second = api.submit(f"#!/bin/sh\n#SBATCH -d afterok:{first}\n")
    third = api.submit(f"#!/bin/sh\n#SBATCH -d afternotok:{first}?afterany:{second}\n")
    assert api.jobs(second)[0]["status"]["stateReason"] == "Dependency"
    ended = [api.wait(job_id)[0] for job_id in (first, second, third)]
    assert [job["status"]["state"] for job in ended] == ["COMPLETED"] * 3
    assert ended[0]["time"]["end"] <= ended[1]["time"]["start"]


def test_a_dependency_on_nothing_is_refused(api):
    answer = api.try_submit("#!/bin/sh\n#SBATCH -d afterok:999999\n")
    assert answer.status_code == 500
    assert "Job dependency problem" in answer.json()["message"]


def test_a_begin_time_is_waited_for_and_remembered(api):
    job_id = api.submit("#!/bin/sh\n#SBATCH --begin=now+1\n")
    pending = api.jobs(job_id)[0]
    assert (pending["status"]["state"], pending["status"]["stateReason"]) == ("PENDING", "BeginTime")
    job = api.wait(job_id)[0]
    assert (job["status"]["state"], job["status"]["stateReason"]) == ("COMPLETED", "BeginTime")
    assert job["time"]["start"] >= pending["time"]["start"]


def test_a_held_job_runs_when_released(api, gateway):
    job_id = api.submit("#!/bin/sh\n#SBATCH --hold\n")
    assert api.jobs(job_id)[0]["status"]["stateReason"] == "JobHeldUser"
    gateway.scheduler.release(job_id)
    assert api.wait(job_id)[0]["status"]["state"] == "COMPLETED"


def test_jobs_wait_for_cpus(make_gateway, make_api):
    api = make_api(make_gateway(job_cpus=2))
    first = api.submit("#!/bin/sh\n#SBATCH -n 2\nsleep 30\n")
    api.wait_for(first, "RUNNING")
    second, third = api.submit("#!/bin/sh\n#SBATCH -c 2\n"), api.submit("#!/bin/sh\n")
    api.wait(third, lambda jobs: jobs[0]["status"]["stateReason"] == "Priority")
    assert api.jobs(second)[0]["status"]["stateReason"] == "Resources"
    node = api.get("status/nodes").json()["nodes"][0]
    assert (node["state"], node["allocCpus"], node["idleCpus"]) == (["ALLOCATED"], 2, 0)
    api.delete(f"compute/jobs/{first}")
    assert [api.wait(job_id)[0]["status"]["state"] for job_id in (second, third)] == ["COMPLETED"] * 2


def test_a_requeued_job_runs_again_under_its_id(make_gateway, make_api):
    gateway = make_gateway()
    gateway.scheduler.requeue_delay = 0.1
    api = make_api(gateway)
    script = "#!/bin/sh\n#SBATCH --open-mode=append\necho run ${SLURM_RESTART_COUNT:-0}\n"
    script += '[ -n "$SLURM_RESTART_COUNT" ] || sleep 30\n'
    job_id = api.submit(script)
    api.wait_for(job_id, "RUNNING")
    api.wait(job_id, lambda _: output(api, job_id) == "run 0\n")
    gateway.scheduler.requeue(job_id)
    assert api.state(job_id) == "PENDING"
    assert api.wait(job_id)[0]["status"]["state"] == "COMPLETED"
    assert output(api, job_id) == "run 0\nrun 1\n"


def test_a_finished_job_can_be_requeued_too(api, gateway):
    job_id = api.submit("#!/bin/sh\n")
    api.wait(job_id)
    gateway.scheduler.requeue(job_id)
    assert api.state(job_id) == "PENDING"
    assert api.wait(job_id)[0]["status"]["state"] == "COMPLETED"


@pytest.mark.parametrize("state", ["NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"])
def test_a_job_can_be_ended_by_the_infrastructure(api, gateway, state):
    job_id = api.submit("#!/bin/sh\nsleep 30\n")
    api.wait_for(job_id, "RUNNING")
    gateway.scheduler.end(job_id, state, exit_code=1)
    assert status(api.jobs(job_id)[0]) == (state, 1, 0)


def test_a_forgotten_job_is_unknown(api, gateway):
    job_id = api.submit("#!/bin/sh\nsleep 30\n")
    gateway.scheduler.forget(job_id)
    assert api.get(f"compute/jobs/{job_id}").status_code == 404


def test_lists_filter_by_name_and_account(api):
    one, two = (api.submit("#!/bin/sh\n", name=name) for name in ("list-one", "list-two"))
    other = api.submit("#!/bin/sh\n", name="list-one", account="users")

    def listed(**params):
        return [job["jobId"] for job in api.get("compute/jobs", **params).json()["jobs"]]

    assert listed(name="list-one") == [one, other]
    assert listed(name="list-two,list-one", account="staff") == [one, two]
    assert {one, two, other} <= set(listed())
    assert listed(name="x" * 235) == []
    assert api.get("compute/jobs", name="x" * 236).status_code == 400


def test_attaching_to_a_job(api, gateway):
    job_id = api.submit("#!/bin/sh\nsleep 30\n")
    api.wait_for(job_id, "RUNNING")
    assert api.put(f"compute/jobs/{job_id}/attach", command="echo $SLURM_JOB_ID > at").status_code == 204
    assert (gateway.home / "at").read_text() == f"{job_id}\n"
    assert api.put(f"compute/jobs/{job_id}/attach", command="exit 3").status_code == 500
    api.delete(f"compute/jobs/{job_id}")
    assert api.put(f"compute/jobs/{job_id}/attach", command="true").status_code == 500


def test_stopping_kills_what_runs(make_gateway, make_api):
    gateway = make_gateway(kill_wait=30)
    api = make_api(gateway)
    job_id = api.submit("#!/bin/bash\ntrap '' TERM\necho $$ > pid\nsleep 300\n")
    pid = gateway.home / "pid"
    api.wait(job_id, lambda _: pid.exists() and pid.read_text().strip())
    started = time.monotonic()
    gateway.stop()
    assert time.monotonic() - started < 2
    assert gone(int(pid.read_text()))


class TestRestMode:
    """slurmrestd's ways, where they differ."""

    @pytest.fixture
    def api(self, make_gateway, make_api):
        return make_api(make_gateway(connection_mode="rest"))

    def test_the_system_says_so(self, api):
        assert api.http.get("/status/systems").json()["systems"][0]["scheduler"]["connectionMode"] == "rest"
        assert api.get("status/partitions").json()["partitions"][0]["partition"] == ["UP"]

    def test_directives_are_ignored(self, api, gateway):
        job_id = api.submit("#!/bin/sh\n#SBATCH --array=0-3 -p nope -J named\nexit 2\n", env={"A": "1"})
        (job,) = api.wait(job_id)
        assert (job["name"], job["status"]["exitCode"], job["partition"]) == ("allocation", 2, "normal")

    def test_the_environment_is_only_what_was_given(self, api):
        job_id = api.submit(
            "#!/usr/bin/env bash\nenv > env.txt\n", env={"A": "1,2", "PATH": "/usr/bin:/bin", "E": ""}
        )
        api.wait(job_id)
        found = dict(
            line.partition("=")[::2] for line in (api.gateway.home / "env.txt").read_text().splitlines()
        )
        assert (found["A"], found.get("HOME"), found.get("E")) == ("1,2", None, None)

    def test_cancelling_twice_is_fine_and_metadata_is_not_implemented(self, api):
        job_id = api.submit("#!/bin/sh\nsleep 30\n", name="mine")
        api.wait_for(job_id, "RUNNING")
        assert [api.delete(f"compute/jobs/{job_id}").status_code for _ in range(2)] == [204, 204]
        job = api.jobs(job_id)[0]
        assert (job["status"]["state"], job["killRequestUser"]) == ("CANCELLED", api.gateway.user)
        assert api.get(f"compute/jobs/{job_id}/metadata").status_code == 501
        assert api.put(f"compute/jobs/{job_id}/attach", command="touch x").status_code == 204
        assert not (api.gateway.home / "x").exists()
