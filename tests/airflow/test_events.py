"""Files that start DAGs, outlets that tell of jobs, and what is to be seen of a job in Airflow afterwards."""

import contextlib
import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from live_airflow import Airflow, Process, Run, until

from airflow_hpc_provider.arrivals import GRACE

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


def events(airflow: Airflow, name: str) -> list[dict[str, Any]]:
    """What the events of an asset tell, oldest first."""
    where = {"name_pattern": name, "order_by": "timestamp", "limit": 100}

    def look() -> Any:
        # Airflow 3.3 answers 500 while a run that one of the events has started is queued.
        with contextlib.suppress(AssertionError):
            return airflow.call("GET", "assets/events", params=where)
        return None

    return [event["extra"] for event in until(look, 60, "the events")["asset_events"]]


def files(extras: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Name and size of each file in some events of a watcher."""
    told = [file for extra in extras for file in extra["payload"]["files"]]
    assert not any("repeated" in file for file in told)
    return [(Path(file["path"]).name, file["size"]) for file in told]


def deliver(path: Path, content: str) -> None:
    """Lay a file down at once."""
    part = path.with_suffix(".part")
    part.write_text(content)
    part.rename(path)


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


class Courier(threading.Thread):
    """Lays a file down now and then, until it is told to stop.

    :param inbox: where
    """

    def __init__(self, inbox: Path) -> None:
        super().__init__(daemon=True)
        self._inbox = inbox
        self._over = threading.Event()
        self.names: list[str] = []

    def run(self) -> None:
        while not self._over.wait(0.5):
            name = f"k{len(self.names)}.dat"
            deliver(self._inbox / name, "x")
            self.names.append(name)

    def stop(self) -> None:
        self._over.set()
        self.join()


def just_fired(triggerers: list[Process]) -> Process:
    """The triggerer whose watcher is the next to fire, at that moment."""
    words = "on system embedded: "
    sizes = {one: one.log.stat().st_size for one in triggerers}

    def fired() -> Process | None:
        for one, size in sizes.items():
            with one.log.open(errors="replace") as log:
                log.seek(size)
                if any("new or changed file" in line and words in line for line in log):
                    return one
        return None

    found = until(fired, 60, "an event", pause=0.02)
    assert found is not None
    return found


def test_triggerers_that_end_right_at_an_event_lose_no_file_and_what_they_repeat_is_marked(airflow):
    inbox = Path(airflow.gateway.connection()["extra"]["working_dir"]) / "inbox"
    inbox.mkdir(exist_ok=True)
    before = len(events(airflow, "inbox"))
    courier = Courier(inbox)
    courier.start()
    try:
        for end in (Process.kill, Process.stop):
            one = just_fired(airflow.triggerers)
            end(one)
            ended = time.time()
            # The other one takes over, in the midst of new files.
            just_fired([other for other in airflow.triggerers if other is not one])
            airflow.restart(one)
    finally:
        courier.stop()

    def told() -> list[dict[str, Any]]:
        found = events(airflow, "inbox")[before:]
        return [file for extra in found for file in extra["payload"]["files"]]

    def names(repeated: bool) -> Counter[str]:
        return Counter(Path(file["path"]).name for file in told() if file.get("repeated", False) is repeated)

    until(lambda: {*names(False), *names(True)} >= set(courier.names), 150, lambda: told()[-5:], pause=1)
    # Of what nobody knows whether it was told, it is told once more.
    time.sleep(max(0.0, ended + GRACE + 10 - time.time()))
    assert set(names(False).values()) == {1}, names(False)
    assert {*names(False), *names(True)} == set(courier.names)


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
    waiting = airflow.call("GET", path)
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
