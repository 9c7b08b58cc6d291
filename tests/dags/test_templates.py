"""A DAG run in which every field that may be a template is one, rendered by Airflow itself."""

import os
from pathlib import Path

import pytest
from airflow.sdk import DAG, XComArg, task
from airflow_home import sync_dag

from airflow_hpc_provider.operators import jobs
from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator
from airflow_hpc_provider.operators.jobs import HpcCancelJobOperator, HpcSubmitJobOperator
from airflow_hpc_provider.sensors.files import HpcFileSensor
from airflow_hpc_provider.sensors.jobs import HpcJobSensor
from airflow_hpc_provider.sensors.systems import HpcSystemSensor
from airflow_hpc_provider.tasks import HpcTask

WHERE = {"system": "{{ params.system }}", "hpc_conn_id": "{{ params.conn }}"}
SCRIPT = """\
#!/bin/bash
# rendered by {{ task.task_id }}
echo "$GREETING from {{ params.name }}"
"""


@pytest.fixture
def dag(connected, connect, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_HPC_TEMPLATED", os.environ["AIRFLOW_CONN_HPC_DEFAULT"])
    monkeypatch.delenv("AIRFLOW_CONN_HPC_DEFAULT")
    monkeypatch.setattr(jobs, "_QUIET", 0.0)
    (tmp_path / "job.sh").write_text(SCRIPT)
    (tmp_path / "tree").mkdir()
    for name in ("a.txt", "b.txt", "Ada.txt", "c.dat"):
        (tmp_path / "tree" / name).write_text(name)
    (connected.scratch / "templated").mkdir(exist_ok=True)
    (connected.scratch / "templated" / "other.sh").write_text("#!/bin/bash\ncat given.txt\n")
    params = {
        "system": "embedded",
        "conn": "hpc_templated",
        "name": "Ada",
        "local": str(tmp_path),
        "remote": f"{connected.scratch}/templated",
        "account": "users",
        "partition": "debug",
    }
    with DAG("templates", schedule=None, params=params, template_searchpath=str(tmp_path)) as dag:

        @task
        def prepare(folder: str) -> str:
            path = Path(folder) / "given.txt"
            path.write_text("given\n")
            return str(path)

        given = prepare("{{ params.local }}")
        healthy = HpcSystemSensor(task_id="healthy", services=["{{ 'scheduler' }}"], deferrable=True, **WHERE)
        stage_in = HpcUploadOperator(
            task_id="stage_in",
            local_path=[given, "{{ params.local }}/job.sh"],
            remote_path="{{ params.remote }}/{{ run_id }}/",
            account="{{ params.account }}",
            make_parents=True,
            **WHERE,
        )
        HpcUploadOperator(
            task_id="tree",
            local_path="{{ params.local }}/tree",
            remote_path="{{ params.remote }}/{{ run_id }}/tree",
            include="*.{{ 'txt' }}",
            exclude=["{{ params.name }}.*"],
            max_bytes="{{ 100 }}",
            **WHERE,
        ) >> HpcDownloadOperator(
            task_id="tree_back",
            remote_path="{{ params.remote }}/{{ run_id }}/tree/*",
            local_path="{{ params.local }}/{{ run_id }}-tree",
            include=["{{ 'a' }}.txt"],
            exclude="{{ params.name }}.*",
            max_bytes="{{ 100 }}",
            **WHERE,
        )
        HpcUploadOperator(
            task_id="text",
            content="{{ run_id }}",
            remote_path="{{ params.remote }}/{{ run_id }}.txt",
            **WHERE,
        )
        there = HpcFileSensor(
            task_id="there",
            path="{{ params.remote }}/{{ run_id }}",
            glob="{{ 'given' }}.*",
            stable_for=0,
            deferrable=False,
            **WHERE,
        )
        run = HpcSubmitJobOperator(
            task_id="run",
            script="job.sh",
            sbatch_options={"time": "00:0{{ 5 }}:00", "comment": "{{ params.name }}"},
            env={"GREETING": "hello, {{ params.name }}.sh"},
            job_name="job-{{ params.name }}",
            working_directory="{{ params.remote }}/{{ run_id }}",
            account="{{ params.account }}",
            partition="{{ params.partition }}",
            stdout="{{ params.name }}.out",
            stderr="{{ params.name }}.err",
            poll_interval=0.2,
            deferrable=False,
            **WHERE,
        )
        other = HpcSubmitJobOperator(
            task_id="other",
            script_path="{{ params.remote }}/other.sh",
            working_directory="{{ params.remote }}/{{ run_id }}",
            poll_interval=0.2,
            wait=False,
            **WHERE,
        )
        over = HpcJobSensor(
            task_id="over", job="{{ ti.xcom_pull(task_ids='other')['job_id'] }}", deferrable=True, **WHERE
        )
        cancel = HpcCancelJobOperator(
            task_id="cancel", job="{{ ti.xcom_pull(task_ids='run', key='job_id') }}", **WHERE
        )
        fails = HpcSubmitJobOperator(
            task_id="fails", script="#!/bin/bash\nexit {{ 1 }}\n", wait=False, **WHERE
        )
        last = HpcSubmitJobOperator(
            task_id="last",
            script="#!/bin/bash\n# {{ run_id }}\n",
            array="0-{{ 0 }}",
            after_ok="{{ ti.xcom_pull(task_ids='run', key='job_id') }}",
            after_not_ok=["{{ ti.xcom_pull(task_ids='fails', key='job_id') }}"],
            after_any=["{{ ti.xcom_pull(task_ids='other', key='job_id') }}", run.output],
            after=fails.output,
            poll_interval=0.2,
            deferrable=False,
            **WHERE,
        )
        stage_out = HpcDownloadOperator(
            task_id="stage_out",
            job=run.output,
            remote_path=["{{ params.name }}.out", "{{ params.remote }}/{{ run_id }}/given.txt"],
            local_path="{{ params.local }}/{{ run_id }}/",
            account="{{ params.account }}",
            **WHERE,
        )
        healthy >> stage_in >> there >> run >> [cancel, stage_out]
        there >> other >> over
        [run, other] >> fails >> last
    return dag


def test_every_template_field_is_a_template_here(dag):
    ours = [operator for operator in dag.task_dict.values() if isinstance(operator, HpcTask)]
    for kind in {type(operator) for operator in ours}:
        # What was submitted is only shown: the operator itself fills these.
        for field in (name for name in kind.template_fields if not name.startswith("submitted")):
            values = [getattr(operator, field) for operator in ours if type(operator) is kind]
            given = [value for value in values if value is not None]
            # The script is a template file, and a task's output is a template of its own.
            assert any(
                "{{" in str(value) or value == "job.sh" or isinstance(value, XComArg) for value in given
            ), field


# Airflow's own modules, loaded on the first ``dag.test()``, warn of each other.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient` is deprecated")
def test_all_of_them_are_rendered(airflow_db, dag, connected, tmp_path):
    run = sync_dag(dag).test()
    states = {instance.task_id: instance.state for instance in run.get_task_instances()}
    assert states == dict.fromkeys(dag.task_dict, "success")
    results = tmp_path / run.run_id
    assert (results / "Ada.out").read_text() == "hello, Ada.sh from Ada\n"
    assert (results / "given.txt").read_text() == "given\n"
    assert [path.name for path in (tmp_path / f"{run.run_id}-tree").iterdir()] == ["a.txt"]
    folder = connected.scratch / "templated" / run.run_id
    assert (folder / "Ada.err").is_file()
    uploaded = (folder / "job.sh").read_text()
    assert uploaded == SCRIPT, "a file that is uploaded is no template"
    record = next(record for record in connected.scheduler.records() if record.name.startswith("job-Ada-"))
    assert (record.account, record.partition, record.limit) == ("users", "debug", 300)
