"""DAGs of assets: one that a watcher of files starts, and one whose task tells its outlet."""

from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator
from airflow_hpc_provider.triggers.files import HpcFileTrigger

WATCHER = AssetWatcher(
    name="inbox",
    trigger=HpcFileTrigger(path="{working_dir}/inbox", glob="*.dat", stable_for=1, poll_interval=2),
)
# Of the same connection and system, so both share one poll loop.
OTHER = AssetWatcher(
    name="one",
    trigger=HpcFileTrigger(path="{working_dir}/inbox/one.dat", stable_for=1, poll_interval=2),
)


def told(dag_id: str, asset: Asset) -> None:
    """A DAG whose only task returns what its events tell."""
    with DAG(dag_id, schedule=[asset]):

        @task
        def tell(triggering_asset_events: Any = None) -> list[Any]:
            return [event.extra for events in triggering_asset_events.values() for event in events]

        tell()


told("on_files", Asset("inbox", watchers=[WATCHER]))
told("on_one_file", Asset("one", watchers=[OTHER]))

JOB = Asset("hpc://hpc_linked@embedded/scratch//results/")
SCRIPT = """\
#!/bin/bash
#SBATCH --ntasks=1
echo "$WORD"
"""

with DAG("linked", schedule=None):
    HpcSubmitJobOperator(
        task_id="job",
        hpc_conn_id="hpc_linked",
        script=SCRIPT + "sleep 8\n",
        sbatch_options={"time": "00:05:00"},
        env={"WORD": "{{ run_id }}", "API_TOKEN": "tell-nobody-{{ run_id }}"},
        deferrable=True,
        poll_interval=2,
        outlets=[JOB],
    )

told("on_job", JOB)
