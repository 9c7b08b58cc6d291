"""A DAG that starts when a file is there: no task waits for it.

An asset watcher looks at the directory ``inbox`` of the working directory, in Airflow's triggerer. Each CSV
file that appears there or changes, and then rests for ten seconds, starts this DAG once, across restarts of
the triggerer. The files that arrived are the inputs of a job array, which counts their rows. Run it as it is,
with a file that it lays down itself: ``uv run dags_examples/on_new_file.py``.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # Airflow reads its settings when it is imported, so this comes first
    import standalone

    sys.exit(standalone.run(__file__))

from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator
from airflow_hpc_provider.triggers.files import HpcFileTrigger

INBOX = "{working_dir}/inbox"
PATTERN = "*.csv"

COUNT = """\
#!/bin/bash
echo "$(wc -l < "$HPC_INPUT") rows in $HPC_INPUT"
"""


def demo_input() -> None:
    """Lay a file down, and show what the watcher makes of it."""
    import asyncio

    from airflow_hpc_provider.client import files
    from airflow_hpc_provider.hooks.hpc import HpcHook

    hook = HpcHook()
    with hook.client() as client:
        system = hook.system(client)
        inbox = hook.resolve_path(client, system, INBOX)
        client.send(files.make_directory(system.name, inbox, parents=True))
        client.send(files.upload(system.name, inbox, "energies.csv", b"a,1\nb,2\nc,3\n"))

    async def first_event() -> Any:
        watcher = HpcFileTrigger(path=INBOX, glob=PATTERN, stable_for=1, poll_interval=1)
        return (await anext(watcher.run())).payload

    print(f"The watcher fires: {asyncio.run(first_event())}", flush=True)


inbox = Asset(
    name="hpc_inbox",
    watchers=[
        AssetWatcher(
            name="hpc_inbox_csv", trigger=HpcFileTrigger(path=INBOX, glob=PATTERN, poll_interval=30)
        ),
    ],
)

with DAG(
    dag_id="on_new_file",
    schedule=[inbox],
    catchup=False,
    tags=["hpc", "example"],
    doc_md=__doc__,
) as dag:

    @task
    def arrived(triggering_asset_events: Any = None) -> list[str]:
        """Paths of the files that started this run; of all in the inbox, if somebody started it by hand."""
        events = [event for some in (triggering_asset_events or {}).values() for event in some]
        if events:
            return sorted({file["path"] for event in events for file in event.extra["payload"]["files"]})

        from fnmatch import fnmatch

        from airflow_hpc_provider.client import files
        from airflow_hpc_provider.hooks.hpc import HpcHook

        hook = HpcHook()
        with hook.client() as client:
            system = hook.system(client)
            folder = hook.resolve_path(client, system, INBOX)
            found = client.send(files.listing(system.name, folder))
        return sorted(f"{folder}/{entry.name}" for entry in found if fnmatch(entry.name, PATTERN))

    HpcSubmitJobOperator(
        task_id="count_rows",
        script=COUNT,
        array=arrived(),  # type: ignore[arg-type]
        sbatch_options={"ntasks": 1, "time": "00:05:00"},
        poll_interval=10,
    )
