"""What version 0.1 left in Airflow's database is understood: triggers, their events, the task state store.

``stored_0_1.json`` never changes; a version that stores something else gets a file of its own.
"""

import json
import time
from pathlib import Path

import pytest
from airflow.sdk._shared.module_loading import import_string
from airflow_home import StateStore, context_of

from airflow_hpc_provider import submission, submitted
from airflow_hpc_provider.arrivals import GRACE, Arrivals
from airflow_hpc_provider.client import checkpoint, uploading
from airflow_hpc_provider.client.terms import Begun
from airflow_hpc_provider.operators.directories import HpcCopyOperator
from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator
from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator
from airflow_hpc_provider.sensors.files import HpcFileSensor
from airflow_hpc_provider.sensors.jobs import HpcJobSensor
from airflow_hpc_provider.sensors.systems import HpcSystemSensor
from airflow_hpc_provider.triggers.files import HpcFileTrigger


class DictKeeper:
    """A task state store without a Fernet key.

    :param kept: what is in it
    """

    generation = "7-1"
    seals = False

    def __init__(self, kept):
        self.kept = dict(kept)

    def get(self, key):
        return self.kept.get(key)

    def delete(self, key):
        self.kept.pop(key, None)


TEXT = (Path(__file__).parent / "stored_0_1.json").read_text()
STORED = json.loads(TEXT)


@pytest.mark.parametrize(
    ("path", "arguments"), STORED["triggers"], ids=[one for one, _ in STORED["triggers"]]
)
def test_a_stored_trigger_is_made_again_as_it_was(path, arguments):
    again, kept = import_string(path)(**arguments).serialize()
    assert again == path
    assert arguments.items() <= kept.items()


@pytest.mark.parametrize(
    "operator",
    [
        HpcSubmitJobOperator,
        HpcUploadOperator,
        HpcDownloadOperator,
        HpcCopyOperator,
        HpcJobSensor,
        HpcFileSensor,
        HpcSystemSensor,
    ],
)
def test_a_deferred_task_is_resumed_by_the_method_whose_name_is_stored(operator):
    assert callable(operator.execute_complete)


def test_the_keys_of_the_task_state_store_stay():
    assert submission.STATE_KEY == "hpc_job"
    assert submitted.SUBMITTED_KEY == "hpc_submitted"
    assert checkpoint._KEY == "hpc_transfer"


def test_a_watcher_finds_what_it_has_fired_and_fires_only_the_rest():
    [(key, state)] = STORED["watcher"].items()
    [arguments] = [plain for path, plain in STORED["triggers"] if plain.get("path") == "/scratch/me/in.nc"]
    assert HpcFileTrigger(**arguments)._state_key == key
    sight = {
        "/scratch/me/in.nc": (7, 1795576122, 4711),
        "/scratch/me/old.nc": (2, 1795576128, 43),
        "/scratch/me/new.nc": (3, 1795576125, 4712),
        "/scratch/me/doubt.nc": (2, 1795576000, 4000),
    }
    arrivals = Arrivals(owner="0", stable_for=0)
    arrivals.learn(state, 1795576131)
    found = {file["path"]: file.get("repeated") for file in arrivals.saw(sight, 1795576131)}
    # Another process may still tell of the new one.
    assert found == {"/scratch/me/old.nc": None, "/scratch/me/doubt.nc": True}
    later = {file["path"]: file.get("repeated") for file in arrivals.saw(sight, 1795576131 + GRACE)}
    assert later == found | {"/scratch/me/new.nc": True}


def test_what_a_watcher_stores_is_what_version_0_1_stored():
    [state] = STORED["watcher"].values()
    now = state["begun"]["5f3a9c01"]["at"]
    arrivals = Arrivals(owner="0", stable_for=0)
    arrivals.learn(state, now)
    assert json.loads(json.dumps(arrivals.to_json())) == state


def test_a_transfer_that_was_carried_is_read():
    begun = STORED["begun"]
    assert json.loads(json.dumps(Begun.from_json(begun).to_json())) == begun


def test_an_upload_that_was_written_down_is_gone_on_with():
    begun, keeper = Begun.from_json(STORED["begun"]), DictKeeper(STORED["transfer"])
    journal = checkpoint.Journal(keeper, begun.name)
    about, ours = journal.load()
    assert ours
    assert (about["phase"], about["target"], about["system"]) == ("parts", "/scratch/in.nc", "embedded")
    sent = uploading._Sent.from_json(about)
    assert (sent.begun, sent.part_size, sent.count) == (begun, 10485760, 2)
    assert journal.tags("44", 2) == {1: '"9b2cf535f27731c974343645a3985328"'}
    assert journal.tags("45", 2) == {}
    journal.forget()
    assert keeper.kept == {}


@pytest.fixture
def stored(connected):
    """A task that submitted a job, and what version 0.1 would have stored of it."""
    operator = HpcSubmitJobOperator(
        task_id="task",
        script="#!/bin/bash\necho done\n",
        working_directory=str(connected.home),
        stdout=str(connected.home / "slurm-%j.out"),
        stderr=str(connected.home / "slurm-%j.err"),
        poll_interval=0.2,
        retries=1,
        deferrable=False,
    )
    store = StateStore()
    context = context_of(store=store)
    result = operator.execute(context)
    record = store[submission.STATE_KEY]
    values = {
        "@JOB@": result["job_id"],
        "@NAME@": result["name"],
        "@HOME@": str(connected.home),
        "@FINGERPRINT@": record["fingerprint"],
    }
    text = TEXT
    for name, value in values.items():
        text = text.replace(name, value)
    return operator, context, result, json.loads(text)


def test_a_task_that_was_deferred_before_an_upgrade_ends_after_it(stored):
    operator, context, result, then = stored
    [trigger] = [arguments for path, arguments in then["triggers"] if path.endswith(".HpcJobTrigger")]
    event = then["event"] | {"carry": trigger["carry"]}
    ended = operator.execute_complete(context, event)
    assert (ended["job_id"], ended["state"]) == (result["job_id"], "COMPLETED")


def test_a_retry_after_an_upgrade_finds_the_job_of_the_try_before_it(stored, connected):
    operator, context, result, then = stored
    context["task_state_store"].clear()
    context["task_state_store"].set("hpc_job", then["job"] | {"at": time.time() - 5})
    connected.requests.clear()
    assert operator.execute(context)["job_id"] == result["job_id"]
    assert connected.requests.count("submit") == 0
