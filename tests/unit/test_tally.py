"""The tally that guards CI: what needs a service is not skipped there, in whichever way."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CONFTEST = """
from tally import *
"""
PYTEST_INI = """
[pytest]
markers =
    slow
    slurm
    airflow
"""
PASSES = "import pytest\n@pytest.mark.slurm\ndef test_it(): pass\n"
SKIPPED = {
    "a test": "import pytest\n@pytest.mark.slurm\ndef test_it(): pytest.skip('none here')\n",
    "by a mark": "import pytest\npytestmark = pytest.mark.slurm\n@pytest.mark.skip\ndef test_it(): pass\n",
    "by a fixture": "import pytest\n@pytest.fixture\ndef one(): pytest.skip('none here')\n"
    "@pytest.mark.airflow\ndef test_it(one): pass\n",
    "a module": "import pytest\npytest.skip('none here', allow_module_level=True)\n",
    "a module without a package": "import pytest\npytest.importorskip('no_such_package')\n",
}


@pytest.fixture
def run(tmp_path):
    """Runs some modules by a pytest of their own, in CI or not."""

    def run(sources, *options, ci=True, folder="slurm"):
        (tmp_path / "pytest.ini").write_text(PYTEST_INI)
        (tmp_path / "conftest.py").write_text(CONFTEST)
        (tmp_path / folder).mkdir()
        for number, source in enumerate(sources):
            (tmp_path / folder / f"test_{number}.py").write_text(source)
        kept = {key: value for key, value in os.environ.items() if key != "CI" and "PYTEST" not in key}
        ours = {"PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | ({"CI": "1"} if ci else {})
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
            cwd=tmp_path,
            env=kept | ours,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "2")], ids=["alone", "by workers"])
def test_what_needs_a_service_must_not_be_skipped_in_ci(run, options):
    done = run([*SKIPPED.values(), PASSES], *options)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    told = re.findall(r"skipped, though CI has what it needs: slurm/test_(\d)\.py", done.stdout)
    assert sorted(told) == [str(number) for number in range(len(SKIPPED))]
    assert "tests under marker slurm: 1 passed, 0 failed, 0 errors, 4 skipped" in done.stdout
    assert "tests under marker airflow: 0 passed, 0 failed, 0 errors, 1 skipped" in done.stdout


def test_modules_alone_that_are_skipped_are_not_taken_for_nothing_to_do(run):
    done = run([SKIPPED["a module"]])
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout


def test_elsewhere_they_may_be_skipped(run):
    assert run([*SKIPPED.values(), PASSES], ci=False).returncode == pytest.ExitCode.OK


def test_what_needs_no_service_may_be_skipped_in_ci_too(run):
    skips = "import pytest\ndef test_it(): pytest.skip('none here')\n"
    done = run([skips, SKIPPED["a module"], "def test_it(): pass"], folder="unit")
    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert "tests under marker default: 1 passed, 0 failed, 0 errors, 2 skipped" in done.stdout


def test_errors_are_counted_under_their_marker(run):
    broken = "import pytest\n@pytest.fixture\ndef one(): raise ValueError\n"
    tests = "@pytest.mark.slurm\ndef test_it(one): pass\n@pytest.mark.slurm\ndef test_more(): assert 0\n"
    done = run([PASSES, broken + tests])
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "tests under marker slurm: 1 passed, 1 failed, 1 errors, 0 skipped" in done.stdout
