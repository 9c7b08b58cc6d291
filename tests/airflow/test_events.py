"""Files that start DAGs, outlets that tell of jobs, and what is to be seen of a job in Airflow afterwards."""

import functools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from live_airflow import Airflow, Run, until
from watched import deliver, events, files

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(600)]


def runs(airflow: Airflow, dag_id: str) -> list[str]:
    """Ids of the runs of a DAG, oldest first."""
    until(lambda: dag_id in airflow.dags(), 60, airflow.tails)
    found = airflow.call("GET", f"dags/{dag_id}/dagRuns", params={"order_by": "id", "limit": 100})
    return [run["dag_run_id"] for run in found["dag_runs"]]


def returned(airflow: Airflow, dag_id: str, run_id: str, task_id: str = "tell") -> Any:
    """What a task returned, when its run is over."""
    Run(airflow, dag_id, run_id).wait("success")
    path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
    value = airflow.call("GET", path, params={"deserialize": True})["value"]
    return json.loads(value) if isinstance(value, str) else value


def test_each_version_of_a_file_starts_one_run_also_when_the_triggerer_dies(airflow):
    inbox = Path(airflow.gateway.connection()["extra"]["working_dir"]) / "inbox"
    inbox.mkdir()
    deliver(inbox / "one.dat", "first")
    until(lambda: runs(airflow, "on_files"), 60, airflow.tails)
    until(lambda: runs(airflow, "on_one_file"), 60, airflow.tails)
    assert files(returned(airflow, "on_files", runs(airflow, "on_files")[0])) == [("one.dat", 5)]

    deliver(inbox / "one.dat", "second version")
    until(lambda: len(runs(airflow, "on_files")) == 2, 60, airflow.tails)
    until(lambda: len(runs(airflow, "on_one_file")) == 2, 60, airflow.tails)
    assert files(returned(airflow, "on_files", runs(airflow, "on_files")[1])) == [("one.dat", 14)]
    time.sleep(5)

    for triggerer in airflow.triggerers:
        triggerer.kill()
    deliver(inbox / "late.dat", "while nobody looked")
    for triggerer in airflow.triggerers:
        airflow.restart(triggerer)
    until(lambda: len(runs(airflow, "on_files")) == 3, 90, airflow.tails)
    time.sleep(10)
    assert files(events(airflow, "inbox")) == [
        ("one.dat", 5),
        ("one.dat", 14),
        ("late.dat", len("while nobody looked")),
    ]
    assert files(events(airflow, "one")) == [("one.dat", 5), ("one.dat", 14)]
    assert (len(runs(airflow, "on_files")), len(runs(airflow, "on_one_file"))) == (3, 2)


def test_an_outage_of_the_gateway_loses_no_file(airflow):
    inbox = Path(airflow.gateway.connection()["extra"]["working_dir"]) / "inbox"
    inbox.mkdir(exist_ok=True)
    before = len(events(airflow, "inbox"))
    airflow.gateway.faults.bad_gateway(times=None)
    deliver(inbox / "outage.dat", "x")
    time.sleep(6)
    assert len(events(airflow, "inbox")) == before
    airflow.gateway.faults.clear()
    until(lambda: len(events(airflow, "inbox")) > before, 90, airflow.tails)
    assert files(events(airflow, "inbox")[before:]) == [("outage.dat", 1)]


def test_triggerers_that_end_right_at_an_event_lose_no_file(airflow, interrupted):
    until(interrupted.told, 150, lambda: interrupted.files()[-5:], pause=1)


def test_a_job_is_linked_shown_and_told_of(airflow):
    extra = airflow.gateway.connection()["extra"] | {"ui_url": "https://my.example.org"}
    connection = {
        **airflow.gateway.connection(),
        "connection_id": "hpc_linked",
        "extra": json.dumps(extra),
    }
    airflow.call("POST", "connections", json=connection)
    before = len(runs(airflow, "on_job"))
    run = airflow.trigger("linked")
    run.wait_for("deferred", timeout=90)
    path = f"dags/linked/dagRuns/{run.run_id}/taskInstances/job"
    # Airflow tells what was rendered a moment after the state.
    look = functools.partial(airflow.call, "GET", path)
    until(lambda: look()["rendered_fields"].get("submitted_script"), 5, look)
    waiting = look()
    assert waiting["state"] == "deferred"
    links = airflow.call("GET", f"{path}/links")["extra_links"]
    run.wait("success", timeout=120)
    task = airflow.call("GET", path)

    job_id = str(airflow.call("GET", f"{path}/xcomEntries/job_id")["value"]).strip('"')
    page = f"https://my.example.org/compute/systems/embedded/accounts/staff/jobs/{job_id}"
    assert links == {"Job page": page}
    assert airflow.call("GET", f"{path}/links")["extra_links"] == {"Job page": page}

    sent = airflow.gateway.scheduler.metadata(job_id)[0]["script"]
    secret = f"tell-nobody-{run.run_id}"
    assert secret in sent
    shown = task["rendered_fields"]["submitted_script"]
    assert shown == sent.replace(secret, "'***'")
    assert "#SBATCH --time=00:05:00" in shown
    assert "#SBATCH --ntasks=1" in shown
    assert waiting["rendered_fields"]["submitted_script"] == shown
    beside = task["rendered_fields"]["submitted"]
    assert beside["account"] == "staff"
    assert secret not in json.dumps(task)

    until(lambda: len(runs(airflow, "on_job")) > before, 60, airflow.tails)
    (told,) = returned(airflow, "on_job", runs(airflow, "on_job")[-1])
    assert told == {
        "job_id": job_id,
        "name": beside["name"],
        "system": "embedded",
        "state": "COMPLETED",
        "working_directory": beside["workingDirectory"],
    }
