"""A task with a warning that seems to come from the provider: proof that such a one would be found."""

import json
import os
import warnings

from airflow.sdk import DAG, task

# What the process that reads this file is told of the gateway: proof that it is not the truth.
HOSTS = [
    json.loads(os.environ[name])["host"] for name in ("AIRFLOW_CONN_HPC_DEFAULT", "AIRFLOW_CONN_HPC_PATIENT")
]

with DAG("warning", schedule=None, description=" ".join(HOSTS)):

    @task
    def warn() -> None:
        warnings.warn_explicit(
            "found", DeprecationWarning, filename="/somewhere/airflow_hpc_provider/no_module.py", lineno=1
        )

    warn()
