"""Continuous integration on a supercomputer: refuse an unhealthy system, run a check, judge its output.

Fails unless the system is healthy now, the job is COMPLETED and its output is as expected. Run it as it is:
``uv run dags_examples/ci_check.py``.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # Airflow reads its settings when it is imported, so this comes first
    import standalone

    sys.exit(standalone.run(__file__))

import re
import tempfile
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_hpc_provider.operators.files import HpcDownloadOperator
from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator
from airflow_hpc_provider.sensors.systems import HpcSystemSensor

RESULTS = Path(tempfile.gettempdir()) / "airflow-hpc-results" / "ci_check"

with DAG(
    dag_id="ci_check",
    schedule=None,
    catchup=False,
    tags=["hpc", "example"],
    params={
        "expected": Param(r"^sum of 1 to 100 is 5050$", type="string", description="Pattern of the output"),
        "results": Param(str(RESULTS), type="string", description="Local directory for results"),
    },
    doc_md=__doc__,
) as dag:

    @task
    def judge(output: dict[str, Any], expected: str) -> str:
        """Fail unless the output is as expected."""
        text = Path(output["local_path"]).read_text()
        found = re.search(expected, text, re.MULTILINE)
        if not found:
            raise ValueError(f"the output does not match {expected!r}:\n{text}")
        print(f"Check passed: {found[0]}. Output: {output['local_path']}")
        return found[0]

    healthy = HpcSystemSensor(task_id="healthy", timeout=0)

    check = HpcSubmitJobOperator(
        task_id="check",
        script=(
            "#!/bin/bash\n"
            "set -euo pipefail\n"
            "total=0\n"
            "for number in $(seq 1 100); do total=$((total + number)); done\n"
            'echo "sum of 1 to 100 is ${total}"\n'
        ),
        sbatch_options={"ntasks": 1, "time": "00:05:00"},
        poll_interval=10,
        deferrable=True,
    )

    output = HpcDownloadOperator(
        task_id="output",
        job=check.output,
        remote_path="slurm-{job_id}.out",
        local_path="{{ params.results }}/{{ run_id }}/",
    )

    healthy >> check
    judge(output.output, "{{ params.expected }}")  # type: ignore[arg-type]
