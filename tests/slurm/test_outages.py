"""Slurm's daemons go down while tasks wait for their jobs: each wait survives, and no job is doubled."""

import contextlib
import os
import time

import pytest
from live_airflow import until

from airflow_hpc_provider.client.errors import JobFailedError

pytestmark = pytest.mark.slurm

# Seconds for which accounting is down.
OUTAGE = float(os.environ.get("HPC_TESTS_OUTAGE", "60"))


@pytest.fixture
def gateway(make_slurm_gateway):
    """One of its own, whose requests are counted."""
    return make_slurm_gateway()


@contextlib.contextmanager
def down(daemon, start):
    daemon.stop()
    try:
        yield
    finally:
        start()


def refused(gateway):
    """The looks that were answered by an error."""
    return [entry for entry in gateway.requests.of("GET /compute/") if (entry.status or 0) >= 400]


def until_all_wait(gateway, *tasks):
    """Wait until each task has its job and looks again and again whether that is over."""
    for one in tasks:
        one.wait_for("RUNNING")
    seen = len(gateway.requests.of("GET /compute/"))
    until(
        lambda: len(gateway.requests.of("GET /compute/")) >= seen + 2 * len(tasks),
        20,
        "looks at the jobs",
        pause=0.1,
    )


def waiting(task, home, name, end="exit 0", **options):
    """A task whose job goes on until there is a file."""
    return task(f"#!/bin/bash\nuntil [ -e {home}/{name} ]; do sleep 0.2; done\n{end}\n", **options)


@pytest.mark.timeout(OUTAGE + 120)
def test_accounting_goes_down_while_tasks_wait_and_jobs_end(task, connected, slurm):
    home = connected.home
    tasks = [
        waiting(task, home, "early"),
        waiting(task, home, "early", deferrable=True),
        waiting(task, home, "early", end="exit 5", deferrable=True),
        waiting(task, home, "late"),
        waiting(task, home, "late", array="0-2", deferrable=True),
    ]
    until_all_wait(connected, *tasks)
    with down(slurm.accounting, slurm.start_accounting):
        gone = time.monotonic()
        until(lambda: refused(connected), 20, "a look in vain", pause=0.1)
        (home / "early").touch()
        tasks.append(task("#!/bin/bash\nexit 0\n", deferrable=True))
        time.sleep(max(0.0, OUTAGE - (time.monotonic() - gone)))
        assert not any(one.over for one in tasks)
        assert len(connected.requests) < 60 + len(tasks) * 2 * OUTAGE
    (home / "late").touch()
    with pytest.raises(JobFailedError, match="exit code 5"):
        tasks.pop(2).end()
    assert [one.end()["state"] for one in tasks] == ["COMPLETED"] * 5
    assert connected.requests.count("submit") == 6


def test_the_controller_restarts_while_tasks_wait(task, connected, slurm):
    home = connected.home
    tasks = [
        waiting(task, home, "gate"),
        waiting(task, home, "gate", deferrable=True),
        waiting(task, home, "gate", array="0-2", deferrable=True),
    ]
    until_all_wait(connected, *tasks)
    with down(slurm.controller, slurm.start_controller):
        until(lambda: refused(connected), 30, "a look in vain", pause=0.1)
        assert not any(one.over for one in tasks)
    (home / "gate").touch()
    assert [one.end()["state"] for one in tasks] == ["COMPLETED"] * 3
    assert connected.requests.count("submit") == 3
