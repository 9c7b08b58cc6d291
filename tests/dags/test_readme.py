"""The README is true: its DAGs run, its commands exist, its texts are the ones that users will see."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SOURCES = "\n".join(path.read_text() for path in (ROOT / "airflow_hpc_provider").rglob("*.py"))


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_dag_in_the_readme_runs(tmp_path):
    files = []
    for number, block in enumerate(blocks("python"), start=1):
        files.append(tmp_path / f"readme_{number}.py")
        files[-1].write_text(block)
    assert len(files) >= 5
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, standalone; sys.exit(standalone.run(*sys.argv[1:]))",
            *map(str, files),
        ],
        env=environment | {"PYTHONPATH": str(ROOT / "dags_examples")},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("DAG run success") == len(files)


def test_every_command_in_the_readme_starts_something_that_is_there():
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert "uv run pytest" in commands
    assert "bash .ci/run" in commands
    for command in commands:
        for file in re.findall(r"\S+\.py\b|\.ci/run", command):
            assert (ROOT / file).is_file(), command
        for module in re.findall(r"-m (\S+)", command):
            assert (ROOT / module.replace(".", "/") / "__main__.py").is_file(), command


def test_the_gate_runs_the_tests_as_the_readme_says():
    assert "run uv run pytest\n" in (ROOT / ".ci" / "run").read_text()


def test_the_table_of_what_is_proven_names_the_versions_that_are_tested():
    locked = {one["name"]: one for one in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (lowest,) = (one for one in project["dependencies"] if one.startswith("apache-airflow>="))
    rows = README.partition("What it proves:")[2].partition("\n\nThe embedded")[0].splitlines()[4:]
    newest = locked["apache-airflow"]["version"]
    assert [re.search(r"\d+\.\d+\.\d+", row)[0] for row in rows] == [
        newest,
        re.search(r">=(\d+\.\d+)", lowest)[1] + ".0",
        *[newest] * (len(rows) - 2),
    ]


def test_the_readme_names_every_connection_field():
    from airflow_hpc_provider.provider_info import get_provider_info

    (connection,) = get_provider_info()["connection-types"]
    table = README.partition("## The connection")[2].partition("## A first DAG")[0]
    for field in connection["conn-fields"]:
        assert f"extra `{field}`" in table


def test_every_text_under_troubleshooting_is_one_that_users_see():
    ours = {
        "names no gateway",
        "would send tokens unencrypted",
        "does not resolve",
        "The token endpoint on",
        "The token endpoint gave a token, but the gateway refuses it",
        "is not FirecREST's",
        "is a web page",
        "the gateway has no system",
        "no system is given",
        "is in REST mode and would ignore",
    }
    table = README.partition("## Troubleshooting")[2].partition("## Development")[0]
    for text in ours:
        assert text in table, text
        assert text in SOURCES, text
