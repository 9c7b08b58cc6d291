"""Runs an example DAG on its own: throw-away Airflow home, embedded gateway unless a connection is given."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from types import ModuleType
from typing import Any

CONNECTION = "AIRFLOW_CONN_HPC_DEFAULT"
SPEAKERS = (
    "airflow_hpc_provider",
    "airflow.task.operators.airflow_hpc_provider",
    "airflow.task.hooks.airflow_hpc_provider",
)


def run(*files: str) -> int:
    """Run the DAGs in some files as ``airflow dags test`` would, and show what happens.

    :param files: examples of one folder; the ``demo_input()`` of one that has it lays out what it waits for
    :return: 0 if every DAG run succeeded
    """
    paths = [Path(file).resolve() for file in files]
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airflow-hpc-")))
        _isolate(home, paths[0].parent)
        if CONNECTION in os.environ:
            print(f"Using the gateway of {CONNECTION}.")
        else:
            from airflow_hpc_provider.devgateway import Gateway

            gateway = stack.enter_context(Gateway(home / "cluster"))
            os.environ[CONNECTION] = json.dumps(gateway.connection())
            stack.callback(os.environ.pop, CONNECTION)
            print(f"No {CONNECTION} is set: started an embedded gateway on {gateway.url}.")
        _prepare()
        return max([_run(path) for path in paths])


def _isolate(home: Path, dags: Path) -> None:
    """Settings that Airflow reads when it is imported."""
    os.environ.update(
        {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        }
    )
    # What the operators and triggers of this provider say is the progress; what Airflow says is not.
    os.environ.setdefault("AIRFLOW__LOGGING__LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("AIRFLOW__LOGGING__NAMESPACE_LEVELS", " ".join(f"{name}=INFO" for name in SPEAKERS))
    # Airflow's own modules warn of each other.
    warnings.filterwarnings("ignore", module=r"airflow\.")


def _prepare() -> None:
    """Make Airflow's database."""
    print("Preparing a throw-away Airflow ...", flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from airflow.utils.db import initdb

        logging.getLogger("alembic").setLevel(logging.WARNING)
        with contextlib.redirect_stdout(sys.stderr):
            initdb()
        _keep_secrets_quiet()


def _keep_secrets_quiet() -> None:
    """Drop what Airflow logs at DEBUG when it is its own supervisor: the very values that it is to mask."""
    import structlog
    from airflow.sdk.execution_time.comms import MaskSecret

    def drop(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if isinstance(event.get("msg"), MaskSecret):
            raise structlog.DropEvent
        return event

    structlog.configure(processors=[drop, *structlog.get_config()["processors"]])


def _run(path: Path) -> int:
    started = time.monotonic()
    module = _load(path)
    if hasattr(module, "demo_input"):
        module.demo_input()
    dag = module.dag
    print(f"Running DAG {dag.dag_id} ({len(dag.tasks)} tasks) ...", flush=True)
    result = dag.test()
    for instance in sorted(result.get_task_instances(), key=lambda item: item.start_date or item.queued_dttm):
        seconds = f"{instance.duration:6.1f} s" if instance.duration is not None else ""
        print(f"  {instance.state or 'none':<10} {seconds}  {instance.task_id}")
    print(f"DAG run {result.state} after {time.monotonic() - started:.0f} s.", flush=True)
    return 0 if result.state == "success" else 1


def _load(path: Path) -> ModuleType | Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        sys.exit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
