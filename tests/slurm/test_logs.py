"""The output of a job that Slurm runs, in the task's log while it runs."""

import pytest
from live_airflow import until

from airflow_hpc_provider.tasks import HpcTask
from airflow_hpc_provider.triggers.jobs import HpcJobTrigger

pytestmark = pytest.mark.slurm

MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["in the worker", "deferred"])
SCRIPT = """\
#!/bin/bash
echo "begun $SLURM_ARRAY_TASK_ID"
until [ -e "$HOME/{gate}" ]; do sleep 0.1; done
for number in 1 2 3; do echo "line $number"; done
echo oh >&2
printf "no end of line"
"""


@pytest.fixture
def said(monkeypatch):
    """What comes into the task's log, by the worker and by the triggerer."""
    lines = []
    monkeypatch.setattr(HpcTask, "say", lambda self, line: lines.append(line))
    monkeypatch.setattr(HpcJobTrigger, "_say", lambda self, line: lines.append(line))
    return lines


@MODES
@pytest.mark.parametrize("array", [None, "3-4"], ids=["job", "array"])
def test_output_appears_while_the_job_runs_and_each_line_once(  # noqa: PLR0917 - fixtures
    task, connected, said, request, deferrable, array
):
    gate = f"gate-{abs(hash(request.node.name))}"
    running = task(
        SCRIPT.format(gate=gate),
        array=array,
        deferrable=deferrable,
        log_interval=0.5,
        stdout="%x-%A-%a.out" if array else "%x-%j.out",
        stderr="%x-%A-%a.err" if array else "%x-%j.err",
    )
    labels = ["[3] ", "[4] "] if array else [""]
    begun = [f"{label}begun {label[1:2]}" for label in labels]
    until(lambda: sorted(said) == begun, 20, lambda: said, pause=0.1)
    assert not running.over
    (connected.home / gate).touch()
    assert running.end()["state"] == "COMPLETED"
    for label in labels:
        mine = [line.removeprefix(label) for line in said if line.startswith(label)]
        out = [line for line in mine if line != "stderr: oh"]
        assert out == [f"begun {label[1:2]}", "line 1", "line 2", "line 3", "no end of line"]
        assert mine.count("stderr: oh") == 1
    assert len(said) == 6 * len(labels)
