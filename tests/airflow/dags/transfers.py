"""A large upload, whose job on the system takes some seconds."""

from airflow.sdk import DAG

from airflow_hpc_provider.operators.files import HpcUploadOperator

with DAG("upload", schedule=None):
    HpcUploadOperator(
        task_id="job",
        local_path="{{ dag_run.conf['source'] }}",
        remote_path="{{ dag_run.conf['target'] }}",
        deferrable=True,
        wake=False,
        poll_interval=2,
    )
