"""No secret gets out: what a DAG run at the most talkative level prints and stores is searched."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from airflow_home import environment

SECRET = "swordfish-5d41402abc4b2a76"
CANARIES = {"log": "canary-in-the-log", "xcom": "canary-in-an-xcom", "field": "canary-in-a-rendered-field"}

DAG_FILE = """
import logging, os
from pathlib import Path
from airflow.sdk import DAG, task
from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator
from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator
from airflow_hpc_provider.sensors.files import HpcFileSensor
from airflow_hpc_provider.sensors.systems import HpcSystemSensor

FOLDER = Path(os.environ["AIRFLOW_HOME"]) / "data"

with DAG("secrets", schedule=None) as dag:

    @task
    def make():
        from airflow_hpc_provider.hooks.hpc import HpcHook

        hook = HpcHook()
        with hook.client() as client:
            logging.getLogger("some.dependency").debug("canary-in-the-log %r %r", hook, hook.settings)
            print(hook, hook.settings, client, client._auth, vars(hook), repr(client._http))
        FOLDER.mkdir()
        (FOLDER / "large.bin").write_bytes(os.urandom(150_000))
        return "canary-in-an-xcom"

    healthy = HpcSystemSensor(task_id="healthy", deferrable=True)
    stage_in = HpcUploadOperator(
        task_id="stage_in",
        local_path=str(FOLDER / "large.bin"),
        remote_path="{working_dir}/in.bin",
        poll_interval=0.2,
    )
    there = HpcFileSensor(task_id="there", path="{working_dir}/in.bin", stable_for=0.5, deferrable=True)
    run = HpcSubmitJobOperator(
        task_id="run",
        script="#!/bin/bash\\necho $CANARY\\n",
        env={"CANARY": "canary-in-a-rendered-field"},
        deferrable=False,
        poll_interval=0.2,
    )
    stage_out = HpcDownloadOperator(
        task_id="stage_out",
        remote_path="{working_dir}/in.bin",
        local_path=str(FOLDER / "out.bin"),
        poll_interval=0.2,
    )
    broken = HpcUploadOperator(
        task_id="broken",
        local_path=str(FOLDER / "large.bin"),
        remote_path="{working_dir}/in.bin",
        system="eiger",
    )
    make() >> healthy >> stage_in >> there >> run >> stage_out >> broken
"""
RUNNER = """
import logging, sys
import standalone
from airflow.utils.db import initdb

initdb()
standalone._keep_secrets_quiet()
logging.getLogger().setLevel(logging.DEBUG)
logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))
for name in list(logging.root.manager.loggerDict):
    logging.getLogger(name).setLevel(logging.DEBUG)
logging.getLogger("asyncio").setLevel(logging.DEBUG)
import importlib.util

spec = importlib.util.spec_from_file_location("secrets_dag", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["secrets_dag"] = module
spec.loader.exec_module(module)
result = module.dag.test()
print("STATES", *sorted(f"{one.task_id}={one.state}" for one in result.get_task_instances()))
"""


@pytest.fixture
def leaks(tmp_path_factory):
    """All that one run told, in one place: by name of the place."""
    from airflow_hpc_provider.devgateway import Gateway

    home = tmp_path_factory.mktemp("home")
    (home / "dags").mkdir()
    (home / "dags" / "secrets_dag.py").write_text(DAG_FILE)
    gateway = Gateway(
        tmp_path_factory.mktemp("gateway"),
        scheduler="local",
        systems=["alps", "eiger"],
        client_secret=SECRET,
        max_ops_file_size=64 * 1024,
        max_part_size=60_000,
        ingress_poll=0.1,
    )
    given: set[str] = set()
    mint, signature = gateway._tokens.mint, gateway.storage._signature

    def minted(*arguments):
        given.add(token := mint(*arguments))
        return token

    def signed(*arguments):
        given.add(one := signature(*arguments))
        return one

    gateway._tokens.mint, gateway.storage._signature = minted, signed
    with gateway:
        # A part that fails once, a token that expires amid the run, and an upload that is refused for good.
        gateway.faults.respond(503, "<Error><Code>SlowDown</Code></Error>", on="put_part", times=1)
        last = "^/filesystem/eiger/transfer/upload"
        gateway.faults.delay(1.0, on=last)

        def after(request: str, act: Callable[[], object]) -> None:
            end = time.monotonic() + 60
            while not gateway.requests.count(request) and time.monotonic() < end:
                time.sleep(0.05)
            act()

        def deny() -> None:
            gateway.faults.respond(403, "<Error><Code>AccessDenied</Code></Error>", on="put_part", times=None)

        threading.Thread(target=after, args=("submit", gateway.faults.expire_tokens), daemon=True).start()
        threading.Thread(target=after, args=(last, deny), daemon=True).start()
        kept = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", RUNNER, str(home / "dags" / "secrets_dag.py")],
            env=kept
            | environment(home)
            | {
                "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
                "PYTHONPATH": str(Path(__file__).parents[2] / "dags_examples"),
                "AIRFLOW_CONN_HPC_DEFAULT": json.dumps(gateway.connection()),
            },
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        refusals = [entry for entry in gateway.requests if entry.status == 401]
    places = {"stdout": done.stdout, "stderr": done.stderr}
    with sqlite3.connect(home / "airflow.db") as database:
        places["database"] = "\n".join(database.iterdump())
    database.close()
    for path in home.rglob("*"):
        if path.is_file() and "data" not in path.parts:
            places[str(path.relative_to(home))] = path.read_bytes().decode("utf-8", "replace")
    states = re.search(r"^STATES (.*)$", done.stdout, re.MULTILINE)
    assert states, done.stdout[-3000:] + done.stderr[-3000:]
    places["states"] = states[1]
    assert refusals, "no token was refused, so the gateway echoed none"
    return places, {SECRET, *given}


@pytest.mark.slow
def test_no_secret_token_or_signature_gets_out(leaks):
    places, secrets = leaks
    _took_every_way_that_handles_secrets(places["states"], secrets)
    _would_be_found_where_it_is(places)
    found = [
        (name, secret[:12], text[max(0, at - 150) : at])
        for name, text in places.items()
        for secret in secrets
        if (at := text.find(secret)) >= 0
    ]
    assert found == []
    # A token's signature or payload alone would be of use to nobody, but should not be there either.
    parts = {part for secret in secrets if secret.startswith("eyJ") for part in secret.split(".")[1:]}
    assert not [(name, part[:12]) for name, text in places.items() for part in parts if part in text]


def _took_every_way_that_handles_secrets(told, secrets):
    states = dict(one.split("=") for one in told.split())
    assert states.pop("broken", None) == "failed", states
    assert set(states.values()) == {"success"}
    assert len([one for one in secrets if one.startswith("eyJ")]) >= 2, "a second token was given"
    assert len([one for one in secrets if re.fullmatch("[0-9a-f]{64}", one)]) >= 5, "URLs were signed"


def _would_be_found_where_it_is(places):
    """What is no secret is found in the same places: the search looks where something is."""
    assert any(CANARIES["log"] in places[name] for name in ("stdout", "stderr"))
    assert CANARIES["xcom"] in places["database"]
    assert CANARIES["field"] in places["database"]
    told = places["stdout"] + places["stderr"]
    assert "httpcore.http11" in told
    # URLs of the storage are told, but for their queries.
    assert re.search(r"HTTP Request: PUT http://127\.0\.0\.1:\d+/\S+\?\*\*\*", told)
