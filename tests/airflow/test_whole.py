"""The provider in a whole Airflow: DAG files without a gateway, examples through the API, quiet logs."""

import functools
import re
import shutil
import time
from pathlib import Path

import httpx
import pytest
from live_airflow import FOLDERS, Run, until

from airflow_hpc_provider.arrivals import GRACE

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def arrived(running):
    """Files for the example that watches, which take most of a minute to be told of; gives their names."""
    inbox = Path(running.gateway.connection()["extra"]["working_dir"]) / "inbox"
    inbox.mkdir(exist_ok=True)
    for name, rows in (("a.csv", 2), ("b.csv", 3)):
        (inbox / name).write_text("row\n" * rows)
    return ["a.csv", "b.csv"]


def test_dag_files_are_read_without_a_gateway(airflow):
    failed = airflow.call("GET", "importErrors")["import_errors"]
    assert failed == []
    wanted = {"train_model", "ci_check", "quantum_espresso", "on_new_file", "deferred", "many"}
    assert airflow.dags() >= wanted
    # The DAG processor's connections do lead nowhere.
    assert airflow.call("GET", "dags/warning")["description"].split() == [airflow.nowhere] * 2
    with pytest.raises(httpx.ConnectError):
        httpx.get(airflow.nowhere)


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


def test_files_that_arrive_start_the_example_that_watches_and_are_the_inputs_of_its_job(airflow, arrived):
    def told() -> set[str]:
        runs = airflow.call("GET", "dags/on_new_file/dagRuns")["dag_runs"]
        done = [Run(airflow, "on_new_file", run["dag_run_id"]) for run in runs]
        for run in done:
            run.wait("success", timeout=120)
        return {
            found[1]
            for run in done
            for found in re.finditer(r"rows in \S+/(\w+\.csv)", "\n".join(run.log("count_rows")))
        }

    until(lambda: told() == set(arrived), 120, told, pause=1)


def test_what_triggerers_repeat_that_ended_right_at_an_event_is_marked(airflow, interrupted):
    # Of what nobody knows whether it was told, it is told once more.
    time.sleep(max(0.0, interrupted.ended + GRACE + 10 - time.time()))
    assert set(interrupted.names(repeated=False).values()) == {1}, interrupted.names(repeated=False)
    assert interrupted.told()


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

    def control(name: str) -> set[str]:
        return {line for line in found() if f"/no_module{name}.py" in line}

    # A task's warning would be found, and one of each component.
    for name in ("", *(f"_in_{component.name}" for component in airflow.components)):
        until(functools.partial(control, name), 10, f"the control{name}")
    assert {line for line in found() if "/no_module" not in line} == set()
