"""The types of the public names, as a type checker sees them from a user's file."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_users_file_is_accepted_by_mypy_strict():
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "api.py"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
