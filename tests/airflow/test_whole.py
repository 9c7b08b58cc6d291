"""The provider in a whole Airflow: DAG files without a gateway, examples through the API, quiet logs."""

import re
import shutil

import pytest
from live_airflow import FOLDERS, until

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(600)]


def test_dag_files_are_read_without_a_gateway(airflow):
    failed = airflow.call("GET", "importErrors")["import_errors"]
    assert failed == []
    wanted = {"train_model", "ci_check", "quantum_espresso", "deferred", "many"}
    assert airflow.dags() >= wanted


@pytest.mark.parametrize("example", ["train_model", "ci_check", "quantum_espresso"])
def test_the_examples_run_in_airflow(airflow, tmp_path, example):
    conf = {"results": str(tmp_path)}
    if example == "quantum_espresso":
        if not shutil.which("pw.x"):
            pytest.skip("pw.x is not installed")
        structure = tmp_path / "silicon.in"
        source = (FOLDERS["examples"] / "quantum_espresso.py").read_text()
        structure.write_text(source.partition('SILICON = """\\\n')[2].partition('"""')[0])
        conf["structure"] = str(structure)
    before = len(airflow.gateway.scheduler.records())
    run = airflow.trigger(example, **conf)
    run.wait("success", timeout=180)
    assert len(airflow.gateway.scheduler.records()) > before
    assert {task["try_number"] for task in run.tasks()} == {1}


# Last, when all others have made the components speak.
def test_no_component_and_no_task_warns_of_the_provider(airflow):
    run = airflow.trigger("warning")
    run.wait("success")
    ours = re.compile(r"airflow_hpc_provider/\S+?\.py.*Warning|Warning.*airflow_hpc_provider/\S+?\.py")

    def found() -> set[str]:
        return {
            line
            for log in airflow.home.rglob("*.log*")
            for line in log.read_text(errors="replace").splitlines()
            if ours.search(line)
        }

    control = until(lambda: {line for line in found() if "no_module" in line}, 10, "the control")
    assert found() - control == set()
