"""The gateway as a whole: life, names, health, and what it must not import."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import pytest

from airflow_hpc_provider import devgateway
from airflow_hpc_provider.devgateway import Gateway


def test_its_public_names_are_there():
    assert all(getattr(devgateway, name) for name in devgateway.__all__)


def test_it_starts_and_stops_quickly_and_cleans_up():
    started = time.monotonic()
    gateway = Gateway(scheduler="local")
    with gateway:
        assert gateway.home.is_dir()
        client = httpx.Client()
        assert client.get(f"{gateway.url}/status/systems").status_code == 401
        # A connection left open by a client does not hold the gateway up.
        client_open = client
    assert time.monotonic() - started < 1.5
    assert not gateway.root.exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(gateway.url)
    client_open.close()


def test_it_serves_this_machine_only():
    with pytest.raises(ValueError, match="this machine only"):
        Gateway(host="0.0.0.0")


def test_its_connection_is_airflows(gateway):
    connection = json.loads(json.dumps(gateway.connection(timeout=5)))
    assert connection["conn_type"] == "firecrest"
    assert connection["extra"]["timeout"] == 5
    assert Path(connection["extra"]["working_dir"]).is_dir()


def test_request_ids_must_be_uuids_and_come_back(api):
    known = {"X-Request-ID": str(uuid.uuid4()), "X-Correlation-ID": str(uuid.uuid4())}
    answer = api.http.get("/status/systems", headers=known)
    assert {name: answer.headers[name] for name in known} == known
    assert answer.headers["f7t-appversion"] == "2.5.7"
    for name in known:
        refused = api.http.get("/status/systems", headers={name: "dag.run.task"})
        assert (refused.status_code, refused.content) == (400, b"")


def test_system_names_are_lower_cased(api):
    assert api.http.get(f"/compute/{api.system.upper()}/jobs").status_code == 200


def test_a_system_with_a_failed_probe_closes_its_gate(make_gateway, make_api):
    gateway = make_gateway(systems=["well", "ill"], unhealthy={"ill": "scheduler"})
    well, ill = make_api(gateway, "well"), make_api(gateway, "ill")
    answer = ill.try_submit("#!/bin/sh\n")
    assert (answer.status_code, answer.json()["message"]) == (
        503,
        "The scheduler service for the requested system (ill) is unhealthy.",
    )
    assert well.try_submit("#!/bin/sh\n").status_code == 201
    assert ill.get("filesystem/ops/ls", path=str(gateway.home)).status_code == 200
    gateway.set_health("scheduler", healthy=True, system="ill")
    gateway.set_health("filesystem", healthy=False, system="ill", message="stale handle")
    assert ill.try_submit("#!/bin/sh\n").status_code == 201
    answer = ill.get("filesystem/ops/ls", path=str(gateway.home))
    assert (answer.status_code, "requested filesystem" in answer.json()["message"]) == (503, True)
    systems = {system["name"]: system for system in ill.http.get("/status/systems").json()["systems"]}
    sick = [service for service in systems["ill"]["servicesHealth"] if not service["healthy"]]
    assert {service["message"] for service in sick} == {"stale handle"}
    assert all(service["healthy"] for service in systems["well"]["servicesHealth"])


def test_two_gateways_do_not_know_each_other(make_gateway, make_api):
    one, two = make_gateway(), make_gateway()
    api = make_api(one)
    job_id = api.submit("#!/bin/sh\n")
    api.wait(job_id)
    assert make_api(two).get("compute/jobs").json() == {"jobs": []}
    answer = httpx.get(f"{two.url}/status/systems", headers={"authorization": f"Bearer {one.access_token()}"})
    assert answer.status_code == 401


def test_it_imports_nothing_of_the_rest():
    folder = Path(devgateway.__file__).parent
    code = "import sys, airflow_hpc_provider.devgateway; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder.parents[1])
    ours = [name for name in found.stdout.split() if name.startswith("airflow_hpc_provider.")]
    assert all(name.startswith("airflow_hpc_provider.devgateway") for name in ours)
    assert "airflow" not in found.stdout.split()


def run_main(*arguments, **env):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "airflow_hpc_provider.devgateway", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | env,
    )


def test_the_command_serves_until_it_is_told_to_end(tmp_path):
    with run_main(
        "--root", str(tmp_path), "--scheduler", "local", "--write-env", str(tmp_path / "env")
    ) as process:
        line = process.stdout.readline()
        assert line.startswith("export AIRFLOW_CONN_HPC_DEFAULT='{")
        url = json.loads(line.partition("=")[2].strip("'\n"))["host"]
        assert httpx.get(f"{url}/status/systems").status_code == 401
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "Traceback" not in stderr
    assert (tmp_path / "env").stat().st_mode & 0o777 == 0o600


def test_the_command_does_not_repeat_a_secret_that_it_was_given(tmp_path):
    given = {"HPC_DEVGATEWAY_CLIENT_ID": "airflow", "HPC_DEVGATEWAY_CLIENT_SECRET": "c4nary"}
    with run_main("--root", str(tmp_path), "--scheduler", "local", **given) as process:
        line = process.stderr.readline()
        assert "HPC_DEVGATEWAY_CLIENT_SECRET" in line
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=10)
    assert "c4nary" not in line + "".join(rest)


def test_the_command_refuses_other_hosts_without_known_secrets():
    with run_main("--host", "0.0.0.0", "--allow-remote") as process:
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 2
    assert "HPC_DEVGATEWAY_CLIENT_SECRET" in stderr
