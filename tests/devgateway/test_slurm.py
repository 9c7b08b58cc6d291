"""The gateway on Slurm's own commands: the same calls, jobs of the real scheduler."""

import os
import re
import time

import pytest
from live_airflow import until
from live_slurm import USER

from airflow_hpc_provider.devgateway import slurm
from airflow_hpc_provider.devgateway.slurm import SlurmScheduler, slurm_is_there


class TestParsing:
    """What Slurm prints becomes records; no Slurm is needed for it."""

    def test_accounting_rows_become_jobs_with_steps(self):
        job = "12_3|14|n|FAILED|None|1:0|staff|normal|u|g|/d|c|nid001|1|42|100|101|104|3|60"
        step = "12_3.batch|14.batch|batch|FAILED||1:0|staff||||/d|c|nid001|1||101|101|104|3|"
        (record,) = slurm._sacct_records([job.split("|"), step.split("|")])
        body = record.body()
        assert (body["jobId"], record.base_id, record.raw_id) == ("12_3", "12", "14")
        assert body["status"] == {
            "state": "FAILED",
            "stateReason": "None",
            "exitCode": 1,
            "interruptSignal": 0,
        }
        assert body["time"] == {"elapsed": 3, "start": 101, "end": 104, "suspended": 0, "limit": 3600}
        assert [task["id"] for task in body["tasks"]] == ["12_3.batch"]

    @pytest.mark.parametrize(
        ("text", "seconds"), [("0:05", 5), ("1:00:00", 3600), ("2-01:00:00", 176400), ("UNLIMITED", None)]
    )
    def test_durations(self, text, seconds):
        assert slurm._seconds(text) == seconds

    @pytest.mark.parametrize(
        ("text", "state"), [("idle", "IDLE"), ("mixed*", "MIXED"), ("drained", "DRAIN"), ("down$", "DOWN")]
    )
    def test_node_states(self, text, state):
        assert slurm._node_state(text) == state

    def test_without_slurm_auto_means_local(self, monkeypatch, make_gateway):
        monkeypatch.setenv("PATH", os.devnull)
        assert not slurm_is_there()
        assert not isinstance(make_gateway(scheduler="auto").scheduler, SlurmScheduler)


@pytest.mark.slurm
class TestSlurm:
    """Against a running slurmctld."""

    @pytest.fixture
    def gateway(self, make_slurm_gateway):
        return make_slurm_gateway(ingress_poll=0.2)

    @pytest.fixture
    def api(self, gateway, make_api):
        return make_api(gateway)

    def settled(self, api, job_id, elements=1):
        """Accounting hears of a short job some seconds after its end: first of that, then of its name."""

        def settled():
            answer = api.get(f"compute/jobs/{job_id}")
            # What has ended meanwhile is in no list of Slurm's until then.
            assert answer.status_code in {200, 404}, answer.text
            jobs = answer.json().get("jobs", [])
            named = all(job["name"] != "allocation" for job in jobs)
            return len(jobs) >= elements and over(jobs) and named and jobs

        return until(settled, 20, f"the end of job {job_id}", pause=0.05)

    def test_status(self, gateway, api):
        assert re.fullmatch(
            r"\d+\.\d+\.\d+", api.http.get("/status/systems").json()["systems"][0]["scheduler"]["version"]
        )
        partitions = [partition["name"] for partition in api.get("status/partitions").json()["partitions"]]
        node = api.get("status/nodes").json()["nodes"][0]
        assert sorted(node["partitions"]) == sorted(partitions)
        assert api.get("status/reservations").json() == {"reservations": []}
        assert api.get("status/userinfo").json()["accounts"]
        with pytest.raises(TypeError, match="hands its jobs to Slurm"):
            _ = gateway.scheduler

    def test_a_job_from_submission_to_log(self, gateway, api):
        script = "#!/bin/bash\n#SBATCH --job-name=real\necho $HOME $A; srun hostname; exit 3\n"
        job_id = api.submit(script, env={"A": "1"})
        metadata = api.get(f"compute/jobs/{job_id}/metadata").json()["jobs"][0]
        assert metadata["script"] == script
        job = self.settled(api, job_id)[0]
        assert (job["name"], job["status"]["state"], job["status"]["exitCode"]) == ("real", "FAILED", 3)
        assert [task["id"] for task in job["tasks"]] == [f"{job_id}.batch", f"{job_id}.0"]
        text = api.get("filesystem/ops/view", path=metadata["standardOutput"]).json()["output"]
        assert text.startswith(f"{gateway.home} 1\n")
        assert job_id in [one["jobId"] for one in api.get("compute/jobs", name="real").json()["jobs"]]

    def test_refusals_have_sbatchs_words(self, api):
        for script, words in (
            ("#!/bin/sh\n#SBATCH -p nope\n", "invalid partition specified: nope"),
            ("hostname\n", "does not look like a batch script"),
            ("#!/bin/sh\n#SBATCH --nope\n", "unrecognized option '--nope'"),
        ):
            answer = api.try_submit(script)
            assert (answer.status_code, words in answer.json()["message"]) == (500, True), answer.text
        assert api.get("compute/jobs/99999").status_code == 404
        assert "Bad job/step" in api.get("compute/jobs/abc").json()["causedBy"][0]

    def test_arrays(self, api):
        job_id = api.submit("#!/bin/sh\n#SBATCH --array=0-3%2\nsleep 1; exit $((SLURM_ARRAY_TASK_ID == 2))\n")
        jobs = self.settled(api, job_id, elements=4)
        assert len(jobs) == 4
        assert {job["jobId"]: job["status"]["exitCode"] for job in jobs} == {
            f"{job_id}_{index}": int(index == 2) for index in range(4)
        }

    def test_cancelling(self, api):
        job_id = api.submit("#!/bin/sh\nsleep 60\n")
        api.wait_for(job_id, "RUNNING")
        assert api.delete(f"compute/jobs/{job_id}").status_code == 204
        assert api.wait_for(job_id, "CANCELLED by ")
        again = api.delete(f"compute/jobs/{job_id}")
        assert (again.status_code, "already completing or completed" in again.json()["message"]) == (
            500,
            True,
        )

    def test_attaching(self, gateway, api):
        job_id = api.submit("#!/bin/sh\nsleep 60\n")
        api.wait_for(job_id, "RUNNING")
        command = f"echo $SLURM_JOB_ID > {gateway.home}/at"
        assert api.put(f"compute/jobs/{job_id}/attach", command=command).status_code == 204
        assert (gateway.home / "at").read_text() == f"{job_id}\n"
        api.delete(f"compute/jobs/{job_id}")

    def test_a_transfer_job(self, gateway, api):
        (gateway.home / "a").write_text("x")
        paths = {"path": str(gateway.home / "a"), "targetPath": str(gateway.home / "b")}
        assert api.post("filesystem/transfer/cp", **paths).status_code == 201
        target = gateway.home / "b"
        until(lambda: target.exists() and target.read_text() == "x", 20, "the copy", pause=0.05)
        assert target.owner() == USER

    def test_stopping_cancels_what_still_runs(self, gateway, api):
        job_id = api.submit("#!/bin/sh\nsleep 60\n")
        api.wait_for(job_id, "RUNNING")
        gateway.stop()
        scheduler = gateway._world.systems[gateway.system].scheduler
        deadline = time.monotonic() + 20
        while not over([record.body() for record in scheduler.records(job_id)]):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def over(jobs):
    return all(job["status"]["state"].split()[0] not in ("PENDING", "RUNNING", "COMPLETING") for job in jobs)
