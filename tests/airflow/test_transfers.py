"""Uploads whose job is waited for in the triggerer of a running Airflow, and what a download tells."""

import hashlib
import os
import time
from functools import partial

import pytest
from live_airflow import until

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(300)]


@pytest.fixture
def upload(airflow, tmp_path):
    """A run of the DAG once it is deferred, what it sends, where to, and since when."""
    since = time.time()
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(6 * 1024 * 1024))
    folder = airflow.gateway.home / f"upload-{tmp_path.name}"
    folder.mkdir()
    run = airflow.trigger("upload", source=str(source), target=str(folder / "large.bin"))
    run.wait_for_trigger()
    yield run, source, folder / "large.bin", since
    run.end()


def transfer_states(airflow, since):
    return [
        record.state
        for record in airflow.gateway.scheduler.records()
        if record.name == "IngressFileTransfer" and record.submitted >= since
    ]


def test_an_upload_frees_the_worker_and_arrives(upload):
    run, source, target, _ = upload
    run.wait("success")
    assert target.read_bytes() == source.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["large.bin"]
    log = "\n".join(run.log())
    assert "Waiting in the triggerer" in log
    assert "Uploaded" in log
    assert "X-Amz-Signature" not in log
    assert run.task()["try_number"] == 1


def test_an_upload_that_a_user_ends_meanwhile_leaves_neither_job_nor_file(upload, airflow):
    run, _, target, since = upload
    run.set_state("failed")
    # A fresh triggerer takes half a minute to learn why it is to end something.
    states = partial(transfer_states, airflow, since)
    until(lambda: "CANCELLED" in str(states()), 60, states)
    until(lambda: not list(target.parent.iterdir()), 30, lambda: list(target.parent.iterdir()))


def test_a_download_tells_its_outlet_of_the_job_and_of_the_file(airflow, tmp_path):
    target = tmp_path / "result.txt"
    run = airflow.trigger("fetch", target=str(target))
    run.wait("success")
    found = airflow.call("GET", "assets/events", params={"name_pattern": "fetched"})["asset_events"]
    (told,) = [event["extra"] for event in found if event["source_run_id"] == run.run_id]
    path = f"dags/fetch/dagRuns/{run.run_id}/taskInstances/make/xcomEntries/job_id"
    assert told == {
        "system": "embedded",
        "path": told["path"],
        "local_path": str(target),
        "size": 8,
        "sha256": hashlib.sha256(b"content\n").hexdigest(),
        "job_id": str(airflow.call("GET", path)["value"]).strip('"'),
    }
    assert told["path"].endswith("/result.txt")
