"""The example DAGs again, with jobs of a real Slurm."""

import csv
import json
import os
import re
import shutil

import pytest
from dags.test_examples import Run
from live_airflow import until
from live_slurm import USER

pytestmark = pytest.mark.slurm


def jobs_of(gateway):
    """Users and states of the jobs that a gateway got, by the first part of their names."""
    scheduler = gateway._world.systems[gateway.system].scheduler
    return {
        record.name.rpartition("-")[0]: (record.user, record.state)
        for record in scheduler.records()
        if str(gateway.home) in record.working_directory
    }


@pytest.fixture
def run(make_slurm_gateway, tmp_path):
    gateway = make_slurm_gateway()

    def run(name, **options):
        connection = json.dumps(gateway.connection())
        done = Run(name, tmp_path, AIRFLOW_CONN_HPC_DEFAULT=connection, **options)
        done.must_have_gone_well()
        # Accounting knows a short job's name and directory some seconds after its end.
        return done, until(lambda: jobs_of(gateway), 20, "the job in accounting", pause=0.5)

    return run


def test_quantum_espresso_computes_an_energy_as_a_slurm_job(run):
    if not shutil.which("pw.x"):
        if os.environ.get("CI") or os.environ.get("HPC_TESTS_REQUIRE"):
            pytest.fail("pw.x is missing: install quantum-espresso and quantum-espresso-data")
        pytest.skip("pw.x is missing: install quantum-espresso and quantum-espresso-data")
    done, jobs = run("quantum_espresso.py")
    with (done.results / "quantum_espresso" / "energies.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["structure"] for row in rows] == ["silicon"]
    assert -16 < float(rows[0]["total_energy_ry"]) < -15.5
    assert jobs["run"] == (USER, "COMPLETED")


def test_the_check_runs_as_a_slurm_job(run):
    done, jobs = run("ci_check.py")
    assert "Check passed" in done.output
    assert {state for _, state in jobs.values()} == {"COMPLETED"}


def test_a_sweep_trains_as_an_array_of_slurm(run):
    done, jobs = run("train_model.py")
    metrics = [json.loads(path.read_text()) for path in (done.results / "train_model").glob("metrics-*.json")]
    assert sorted(item["index"] for item in metrics) == [*range(9)]
    assert (done.results / "train_model" / "best-model.json").is_file()
    assert jobs["sweep"] == (USER, "COMPLETED")


def test_the_files_that_arrived_are_the_inputs_of_an_array_of_slurm(run):
    done, jobs = run("on_new_file.py", results=False)
    assert re.search(r"3 rows in \S+/inbox/energies\.csv", done.output + done.done.stderr)
    assert jobs["count_rows"] == (USER, "COMPLETED")
