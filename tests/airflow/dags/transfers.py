"""A large upload, whose job on the system takes some seconds; and a download of what a job has made."""

from airflow.sdk import DAG, Asset

from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator
from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator

with DAG("upload", schedule=None):
    HpcUploadOperator(
        task_id="job",
        local_path="{{ dag_run.conf['source'] }}",
        remote_path="{{ dag_run.conf['target'] }}",
        deferrable=True,
        wake=False,
        poll_interval=2,
    )

with DAG("fetch", schedule=None):
    made = HpcSubmitJobOperator(
        task_id="make", script="#!/bin/bash\necho content > result.txt\n", poll_interval=2
    )
    HpcDownloadOperator(
        task_id="job",
        job=made.output,
        remote_path="result.txt",
        local_path="{{ dag_run.conf['target'] }}",
        outlets=[Asset("fetched")],
    )
