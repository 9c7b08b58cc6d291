"""A task with a warning that seems to come from the provider: proof that such a one would be found."""

import warnings

from airflow.sdk import DAG, task

with DAG("warning", schedule=None):

    @task
    def warn() -> None:
        warnings.warn_explicit(
            "found", DeprecationWarning, filename="/somewhere/airflow_hpc_provider/no_module.py", lineno=1
        )

    warn()
