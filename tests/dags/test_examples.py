"""The example DAGs: run as their users run them, and parsed as Airflow parses them."""

import csv
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "dags_examples"


class Run:
    """An example that was run as a script, in a temporary directory of its own."""

    def __init__(self, name: str, folder: Path, *, results: bool = True, **environment: str) -> None:
        self.folder = folder
        self._left = ["airflow-hpc-results"] if results else []
        kept = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
        self.done = subprocess.run(
            [sys.executable, str(EXAMPLES / name)],
            env=kept | {"TMPDIR": str(folder)} | environment,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        self.output = self.done.stdout

    @property
    def results(self) -> Path:
        return self.folder / "airflow-hpc-results"

    def leftovers(self) -> list[str]:
        """Processes that work for the example, which they inherit its temporary directory from."""
        mark = f"TMPDIR={self.folder}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def must_have_gone_well(self) -> None:
        assert self.done.returncode == 0, self.output + self.done.stderr
        assert re.search(r"^DAG run success after \d+ s\.$", self.output, re.MULTILINE)
        assert "Traceback" not in self.output + self.done.stderr
        end = time.monotonic() + 5
        while (left := self.leftovers()) and time.monotonic() < end:
            time.sleep(0.1)
        assert left == [], "a process was left behind"
        assert [path.name for path in self.folder.iterdir()] == self._left


def test_a_process_that_was_left_behind_would_be_found(tmp_path):
    (tmp_path / "run").mkdir()
    with subprocess.Popen(
        ["sleep", "30"], env={"TMPDIR": str(tmp_path / "run"), "PATH": os.environ["PATH"]}
    ) as left:
        run = Run.__new__(Run)
        run.folder = tmp_path / "run"
        end = time.monotonic() + 5
        while run.leftovers() != ["sleep 30 "]:
            assert time.monotonic() < end
            time.sleep(0.01)
        left.kill()


@pytest.mark.slow
def test_the_quick_start_trains_shows_and_draws(tmp_path):
    run = Run("train_model.py", tmp_path)
    run.must_have_gone_well()
    assert "started an embedded gateway on http://127.0.0.1:" in run.output
    rows = re.findall(
        r"^ +(\d) +(0\.\d+) +(0\.\d+) +(\d+\.\d{4}) +(0\.\d{4}) +\d+\.\d\d( <- best)?$",
        run.output,
        re.MULTILINE,
    )
    assert [int(row[0]) for row in rows] == list(range(9))
    best = [row for row in rows if row[5]]
    assert len(best) == 1
    assert float(best[0][3]) == min(float(row[3]) for row in rows)
    assert float(best[0][4]) > 0.9
    shown = re.search(r"^Plot: (.+)$", run.output, re.MULTILINE)
    assert shown
    plot = Path(shown[1])
    assert plot.is_relative_to(run.results)
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (run.results / "train_model" / "best-model.json").is_file()


@pytest.mark.slow
def test_the_check_judges_the_output(tmp_path):
    run = Run("ci_check.py", tmp_path)
    run.must_have_gone_well()
    shown = re.search(r"^Check passed: sum of 1 to 100 is 5050\. Output: (.+)$", run.output, re.MULTILINE)
    assert shown
    assert Path(shown[1]).read_text() == "sum of 1 to 100 is 5050\n"


@pytest.mark.slow
def test_quantum_espresso_computes_an_energy(tmp_path):
    if not shutil.which("pw.x"):
        if os.environ.get("CI"):
            pytest.fail("pw.x is missing: install quantum-espresso and quantum-espresso-data")
        pytest.skip("pw.x is not installed")
    run = Run("quantum_espresso.py", tmp_path)
    run.must_have_gone_well()
    with (run.results / "quantum_espresso" / "energies.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["structure"] for row in rows] == ["silicon"]
    assert -16 < float(rows[0]["total_energy_ry"]) < -15.5
    assert not (run.results / "quantum_espresso" / "inbox" / "silicon.in").exists()


@pytest.mark.slow
def test_a_new_file_fires_and_is_counted(tmp_path):
    run = Run("on_new_file.py", tmp_path, results=False)
    run.must_have_gone_well()
    assert re.search(r"^The watcher fires: .*/inbox/energies\.csv', 'size': 12, ", run.output, re.MULTILINE)
    assert re.search(r"3 rows in \S+/inbox/energies\.csv", run.output + run.done.stderr)


@pytest.mark.slow
def test_a_given_connection_is_used_instead_and_an_unhealthy_system_refused(tmp_path, make_gateway):
    import json

    gateway = make_gateway(unhealthy={"embedded": "scheduler"})
    run = Run("ci_check.py", tmp_path, AIRFLOW_CONN_HPC_DEFAULT=json.dumps(gateway.connection()))
    assert run.done.returncode == 1, run.output
    assert "Using the gateway of AIRFLOW_CONN_HPC_DEFAULT." in run.output
    assert gateway.requests.count("submit") == 0
    assert run.leftovers() == []


PARSE = """
import socket, sys
def refuse(*_): raise AssertionError("a DAG file opened a connection while it was parsed")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(dag_folder=sys.argv[1], load_op_links=False)
assert not bag.import_errors, bag.import_errors
unwanted = ("airflow_hpc_provider.devgateway", "uvicorn", "sklearn", "matplotlib")
loaded = [name for name in sys.modules if name.startswith(unwanted)]
assert not loaded, loaded
for name, dag in sorted(bag.dags.items()):
    from airflow.serialization.serialized_objects import DagSerialization
    DagSerialization.to_dict(dag)
    print("DAG", name, len(dag.tasks))
"""


def test_all_parse_without_connection_gateway_network_or_the_packages_they_draw_with(tmp_path):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
    home = {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "True",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PARSE, str(EXAMPLES)],
        env=kept | home,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("DAG ")]
    assert found == ["DAG ci_check 4", "DAG on_new_file 2", "DAG quantum_espresso 6", "DAG train_model 7"]
