"""The public names as users write them; never run, only checked: ``mypy --strict tests/typing/api.py``."""

from datetime import timedelta
from pathlib import Path
from typing import assert_type

from airflow.sdk import DAG

from airflow_hpc_provider.client import AsyncClient, Client, HpcError, RetryPolicy, jobs, systems
from airflow_hpc_provider.client.jobs import Job
from airflow_hpc_provider.client.systems import System
from airflow_hpc_provider.devgateway import Gateway
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator
from airflow_hpc_provider.operators.jobs import HpcCancelJobOperator, HpcSubmitJobOperator
from airflow_hpc_provider.retries import HpcRetryPolicy
from airflow_hpc_provider.sensors.files import HpcFileSensor
from airflow_hpc_provider.sensors.jobs import HpcJobSensor
from airflow_hpc_provider.sensors.systems import HpcSystemSensor

with DAG("typed", schedule=None) as dag:
    healthy = HpcSystemSensor(task_id="healthy", services=["scheduler"], timeout=0, deferrable=True)
    stage_in = HpcUploadOperator(
        task_id="stage_in",
        local_path=[Path("a.txt"), "b.txt"],
        remote_path="{working_dir}/in/",
        make_parents=True,
        account="staff",
        poll_interval=5.0,
    )
    run = HpcSubmitJobOperator(
        task_id="run",
        script="job.sbatch",
        sbatch_options={"nodes": 2, "time": timedelta(hours=1), "array": "0-9%2", "exclusive": True},
        env={"OMP_NUM_THREADS": "4"},
        job_name="typed",
        working_directory="{working_dir}/in",
        account="staff",
        partition="normal",
        stdout="out.txt",
        stderr="err.txt",
        wait=True,
        deferrable=True,
        poll_interval=60,
        cancel_on_kill=True,
        log_interval=5.0,
        log_limit=1000,
        array=[{"rate": 0.1}],
        escalate={"mem": 2.0},
        hpc_conn_id="hpc_default",
        system="alps",
        retries=3,
        retry_policy=HpcRetryPolicy(),
        execution_timeout=timedelta(days=1),
    )
    there = HpcFileSensor(task_id="there", path="/scratch", glob="*.cif", stable_for=30, poke_interval=60)
    over = HpcJobSensor(task_id="over", job=run.output, expected_states=("COMPLETED",), mode="reschedule")
    stage_out = HpcDownloadOperator(
        task_id="stage_out", job=run.output, remote_path=["slurm-{job_id}.out"], local_path=Path("results")
    )
    cancel = HpcCancelJobOperator(task_id="cancel", job=run.output)
    healthy >> stage_in >> run >> [over, stage_out] >> cancel
    there >> run


def in_a_task() -> str:
    hook = HpcHook("hpc_default")
    with hook.client(policy=RetryPolicy(attempts=3)) as client:
        assert_type(client, Client)
        system = hook.system(client)
        assert_type(system, System)
        try:
            found = client.send(jobs.listing(system.name, name="typed", window="1h"))
        except HpcError as error:
            assert_type(error.transient, bool)
            raise
        assert_type(found, tuple[Job, ...])
        assert_type(client.send(jobs.cancel(system.name, found[0].job_id)), bool)
    assert_type(hook.test_connection(), tuple[bool, str])
    return found[0].job_id


async def on_a_loop() -> tuple[System, ...]:
    async with await HpcHook().async_client() as client:
        assert_type(client, AsyncClient)
        return await client.send(systems.listing())


def for_a_demo() -> None:
    with Gateway(scheduler="local") as gateway:
        assert_type(gateway.url, str)
        gateway.faults.rate_limit(5, on="job", times=2)
        assert gateway.connection(system="embedded")
