"""One running Airflow for all tests of this folder."""

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from live_airflow import Airflow, CannotRunError, Gate, Run, job_states
from watched import Interrupted

from airflow_hpc_provider.devgateway import Gateway

# How many tasks are deferred at once where many are; fewer take less time on a small machine.
os.environ.setdefault("HPC_TESTS_MANY", "300")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that can run hundreds of jobs at once."""
    # A transfer job that nobody wakes looks for its object that often, in seconds.
    options = {"job_cpus": 1000, "ingress_poll": 30}
    with Gateway(tmp_path_factory.mktemp("cluster"), scheduler="local", **options) as started:
        yield started


@pytest.fixture(scope="session")
def running(cluster: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    """Airflow, started once; what its components say is kept in its home."""
    try:
        airflow = Airflow(tmp_path_factory.mktemp("airflow"), cluster)
        airflow.start()
    except CannotRunError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    try:
        yield airflow
    finally:
        airflow.stop()


@pytest.fixture
def airflow(running: Airflow) -> Iterator[Airflow]:
    """Airflow with all its components and a healthy gateway, before and after."""
    yield running
    running.gateway.faults.clear()
    for triggerer in running.triggerers:
        triggerer.signal(signal.SIGCONT)
        if not triggerer.alive:
            running.restart(triggerer)


@pytest.fixture(scope="session")
def interrupted(running: Airflow) -> Interrupted:
    """Files that were laid down while triggerers ended; what is repeated of them takes more than a minute."""
    files = Interrupted(running)
    files.run()
    return files


@dataclass
class Launched:
    """A DAG run, its jobs, and the gate at which they wait.

    :param mark: begins the names of its jobs, and is in every line they print
    """

    run: Run
    gate: Gate
    mark: str

    def jobs(self) -> dict[str, str]:
        """States of the jobs by id, from the scheduler itself."""
        return job_states(self.run.airflow.gateway, self.mark)

    def states(self) -> list[str]:
        return sorted(self.jobs().values())


@pytest.fixture
def launch(airflow: Airflow, tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Trigger a DAG of jobs; at the end the run is ended and the jobs let go."""
    launched: list[Launched] = []

    def make(dag_id: str) -> Launched:
        mark = f"m{secrets.token_hex(4)}"
        gate = Gate(tmp_path / f"{mark}.gate")
        launched.append(Launched(airflow.trigger(dag_id, gate=str(gate.path), mark=mark), gate, mark))
        return launched[-1]

    yield make
    for one in launched:
        one.run.end()
        one.gate.open()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    """Show what Airflow said when a test fails."""
    report = yield
    airflow = getattr(item, "funcargs", {}).get("running")
    if report.failed and isinstance(airflow, Airflow):
        report.sections.append((f"logs of Airflow, in {airflow.home}", airflow.tails()))
    return report
