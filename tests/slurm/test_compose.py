"""The start-up files of docker-compose.yaml that start a Slurm, each run as its service is."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from container import Container

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
SERVICES = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yaml").read_text())["services"]
# What tasks do with the connection of docker-compose.yaml, but for the TLS front.
SUBMIT = """
import json, sys, time
from airflow_hpc_provider.client import jobs
from airflow_hpc_provider.client.auth import ClientCredentials
from airflow_hpc_provider.client.session import Client
from airflow_hpc_provider.watch import JobWatch, follow
url, token_url, client_id, secret = sys.argv[1:]
auth = ClientCredentials(url, token_url=token_url, client_id=client_id, client_secret=secret)
with Client(url, auth) as client:
    spec = jobs.JobSpec(name="who", working_directory="/srv/hpc/home/hpc", script="#!/bin/bash\\nid -un\\n")
    job_id = client.send(jobs.submit("embedded", spec))
    watch = JobWatch(system="embedded", job_id=job_id, since=time.time(), poll_interval=1)
    job = jobs.Job.from_json(follow(client, watch).data)
    print(json.dumps([job.state.value, open(f"/srv/hpc/home/hpc/slurm-{job_id}.out").read()]))
"""


@pytest.fixture
def contain(tmp_path):
    def make(name, **environment):
        needed = {"slurmctld": "slurmctld", "mariadbd-safe": "mariadb-server", "sshd": "openssh-server"}
        missing = [package for program, package in needed.items() if not shutil.which(program, path=PATH)]
        if missing and not os.environ.get("CI"):
            pytest.skip(f"install Debian's packages {' '.join(missing)}")
        return Container(SERVICES[name], name, environment, tmp_path)

    return make


def test_the_gateway_takes_jobs_of_its_user(contain):
    secret = os.urandom(16).hex()
    given = {"HPC_DEVGATEWAY_CLIENT_ID": "airflow", "HPC_DEVGATEWAY_CLIENT_SECRET": secret}
    with contain("gateway", **given) as gateway:
        gateway.wait_until_healthy(120)
        url = "http://localhost:8000"
        token_url = f"{url}/auth/realms/devgateway/protocol/openid-connect/token"
        done = gateway.run("/opt/venv/bin/python", "-c", SUBMIT, url, token_url, "airflow", secret)
        assert done.returncode == 0, f"{done.stderr}\n{gateway.said()}"
        assert json.loads(done.stdout) == ["COMPLETED", "hpc\n"]
        assert secret not in gateway.said()


def test_the_cluster_lets_in_who_has_its_key(contain):
    with contain("cluster") as cluster:
        cluster.wait_until_healthy(120)
        key = "/firecrest-keys/hpc"
        options = ("-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes")
        done = cluster.run("ssh", *options, "-i", key, "hpc@localhost", "srun --immediate=20 id -un")
        assert (done.returncode, done.stdout) == (0, "hpc\n"), f"{done.stderr}\n{cluster.said()}"
        refused = cluster.run("ssh", *options, "hpc@localhost", "true")
        assert "Permission denied" in refused.stderr
