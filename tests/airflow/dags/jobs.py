"""Jobs that wait at a gate; see ``Gate`` in live_airflow.py."""

import os
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator

SCRIPT = """\
#!/bin/bash
for number in 1 2 3; do echo "line $number of $MARK"; done
flock --shared "$GATE" true
for number in 4 5; do echo "line $number of $MARK"; done
"""
ENV = {"GATE": "{{ dag_run.conf['gate'] }}", "MARK": "{{ dag_run.conf['mark'] }}"}
COMMON: dict[str, Any] = {
    "task_id": "job",
    "script": SCRIPT,
    "job_name": "{{ dag_run.conf['mark'] }}",
    "poll_interval": 2,
    "retries": 2,
    "retry_delay": timedelta(0),
}


def one_job(dag_id: str, **options: Any) -> None:
    """A DAG of one task."""
    with DAG(dag_id, schedule=None):
        HpcSubmitJobOperator(**COMMON | {"env": ENV} | options)


one_job("deferred", deferrable=True)
one_job("in_worker", deferrable=False)
one_job("deferred_kept", deferrable=True, cancel_on_kill=False)
one_job("in_worker_kept", deferrable=False, cancel_on_kill=False)
one_job("limited", deferrable=True, execution_timeout=timedelta(seconds=20), retries=0)
one_job("on_slurm", deferrable=True, hpc_conn_id="hpc_slurm")
one_job("patient", deferrable=False, hpc_conn_id="hpc_patient")

# Hundreds of them take minutes: nothing is done here that one task shows as well.
MANY = {"script": '#!/bin/bash\nflock --shared "$GATE" true\n', "log_interval": None, "deferrable": True}

with DAG("many", schedule=None):
    HpcSubmitJobOperator.partial(**COMMON | MANY).expand(
        env=[ENV | {"NUMBER": str(number)} for number in range(int(os.environ["HPC_TESTS_MANY"]))]
    )
