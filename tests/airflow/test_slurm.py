"""Deferred tasks of a running Airflow whose jobs run on a real Slurm."""

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from live_airflow import Airflow, Gate, Run, until
from live_slurm import Slurm, slurm_in

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster_of_its_own(running: Airflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Slurm and a gateway on it, to which the connection ``hpc_slurm`` leads."""
    with slurm_in(tmp_path_factory.mktemp("slurm")) as slurm, slurm.gateway() as gateway:
        given = gateway.connection()
        given |= {"connection_id": "hpc_slurm", "extra": json.dumps(given["extra"])}
        running.call("POST", "connections", json=given)
        try:
            yield slurm
        finally:
            running.call("DELETE", "connections/hpc_slurm")


@dataclass
class Work:
    """A DAG run, its jobs in Slurm, and the gate at which they wait."""

    run: Run
    gate: Gate
    mark: str
    slurm: Slurm

    def states(self) -> list[str]:
        """Of the jobs, in the order of their submission, as Slurm's accounting has them."""
        told = self.slurm.run("sacct", "-nXPa", "--starttime=now-1hour", "--format=JobID,JobName%60,State")
        rows = [line.split("|") for line in told.splitlines() if self.mark in line]
        return [state.split()[0] for _, _, state in sorted(rows, key=lambda row: int(row[0]))]

    def all_over(self, *states: str) -> None:
        until(lambda: self.states() == list(states), 60, lambda: f"{states}, but jobs are {self.states()}")


@pytest.fixture
def launch(airflow: Airflow, cluster_of_its_own: Slurm) -> Iterator[Callable[[], Work]]:
    """Trigger the DAG, and wait until its job runs and a triggerer waits for it."""
    launched: list[Work] = []

    def make() -> Work:
        mark = f"m{secrets.token_hex(4)}"
        gate = Gate(Path(cluster_of_its_own.folder) / f"{mark}.gate")
        run = airflow.trigger("on_slurm", gate=str(gate.path), mark=mark)
        launched.append(Work(run, gate, mark, cluster_of_its_own))
        run.wait_for_trigger()
        launched[-1].all_over("RUNNING")
        return launched[-1]

    yield make
    for one in launched:
        one.run.end()
        one.gate.open()


def test_a_job_of_slurm_runs_once_and_its_output_is_in_the_log_once_and_while_it_runs(launch):
    work = launch()

    def log() -> str:
        return "\n".join(work.run.log())

    until(lambda: f"line 3 of {work.mark}" in log(), 60, log, pause=1)
    work.gate.open()
    work.run.wait("success")
    work.all_over("COMPLETED")
    assert [log().count(f"line {number} of {work.mark}") for number in range(1, 6)] == [1] * 5, log()


def test_what_users_do_to_deferred_tasks_happens_to_their_jobs_in_slurm(launch):
    failed, cleared = launch(), launch()
    failed.run.set_state("failed")
    cleared.run.clear()
    failed.all_over("CANCELLED")
    cleared.all_over("CANCELLED", "RUNNING")
    cleared.gate.open()
    cleared.run.wait("success")
    cleared.all_over("CANCELLED", "COMPLETED")
