"""A throw-away Airflow for tests: home and settings, a migrated database, and what a task sees of it."""

import atexit
import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_hpc_provider.devgateway import Gateway
from airflow_hpc_provider.devgateway.directives import Submission

CONNECTION = "AIRFLOW_CONN_HPC_DEFAULT"


def isolate() -> Path:
    """Give this process and its children a home of their own; to be called before Airflow is imported."""
    if "airflow" in sys.modules:
        raise RuntimeError("Airflow was imported before its home was set: it may write into the user's own")
    home = Path(tempfile.mkdtemp(prefix="airflow-home-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    for name in [name for name in os.environ if name.startswith(("AIRFLOW__", "AIRFLOW_CONN_"))]:
        del os.environ[name]
    os.environ.update(environment(home), AIRFLOW__CORE__UNIT_TEST_MODE="True")
    return home


def environment(home: Path) -> dict[str, str]:
    """Settings of an Airflow that keeps all it has in one directory."""
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
    }


@pytest.fixture(scope="session")
def airflow_db() -> Path:
    """The home of this process with a migrated database, made once in a session."""
    home = Path(os.environ["AIRFLOW_HOME"])
    code = "from airflow.utils.db import initdb; initdb()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return home


def sync_dag(dag: Any) -> Any:
    """Make a DAG known to the database, which ``dag.test()`` needs."""
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.serialization.definitions.dag import SerializedDAG
    from airflow.serialization.serialized_objects import LazyDeserializedDAG
    from airflow.utils.session import create_session

    with create_session() as session:
        if session.get(DagBundleModel, "testing") is None:
            session.add(DagBundleModel(name="testing"))
            session.flush()
        lazy = LazyDeserializedDAG.from_dag(dag)
        SerializedDAG.bulk_write_to_db("testing", None, [lazy], session=session)
        SerializedDagModel.write_dag(lazy, bundle_name="testing", session=session)
    return dag


class StateStore(dict[str, Any]):
    """Airflow's task state store, in a dictionary, with values that went through JSON."""

    def set(self, key: str, value: Any, **_: Any) -> None:
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        self.pop(key, None)


@dataclass
class TaskInstance:
    """What an operator sees of its task instance."""

    task_id: str = "task"
    dag_id: str = "dag"
    run_id: str = "run"
    map_index: int = -1
    try_number: int = 1
    max_tries: int = 1
    start_date: datetime = field(default_factory=lambda: datetime.now(UTC))
    state: str = "running"
    xcoms: dict[str, Any] = field(default_factory=dict)
    first_rescheduled: datetime | None = None

    def get_first_reschedule_date(self, _: Any) -> datetime | None:
        return self.first_rescheduled

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value

    def get_task_states(
        self, dag_id: str, task_ids: list[str], run_ids: list[str], map_index: int | None = None
    ) -> dict[str, dict[str, str]]:
        assert (dag_id, task_ids, run_ids, map_index) == (
            self.dag_id,
            [self.task_id],
            [self.run_id],
            self.map_index,
        )
        key = self.task_id if self.map_index < 0 else f"{self.task_id}_{self.map_index}"
        return {self.run_id: {key: self.state}}


def context_of(task_id: str = "task", *, store: StateStore | None = None, **of_ti: Any) -> dict[str, Any]:
    """A context with a run of its own, so that no two tests share a job's name."""
    of_ti.setdefault("run_id", f"run-{os.urandom(4).hex()}")
    return {
        "ti": TaskInstance(task_id=task_id, **of_ti),
        "task_state_store": StateStore() if store is None else store,
    }


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make ``hpc_default`` a connection to a gateway, or any other connection."""

    def make(connection: Gateway | Mapping[str, Any], **extra: Any) -> None:
        if isinstance(connection, Gateway):
            connection = connection.connection(**extra)
        monkeypatch.setenv(CONNECTION, json.dumps(connection))

    return make


@pytest.fixture
def connected(gateway: Gateway, connect: Callable[..., None]) -> Iterator[Gateway]:
    """The session's gateway, as connection ``hpc_default``; healthy before and after."""
    connect(gateway)
    yield gateway
    gateway.faults.clear()
    for service in ("scheduler", "filesystem", "ssh", "s3"):
        gateway.set_health(service, healthy=True)


def wait_with(sensor: Any, context: dict[str, Any] | None = None, *, rounds: int = 200) -> Any:
    """Run a sensor as Airflow would: in the worker, rescheduled, or deferred."""
    import asyncio

    from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferred

    context = context or context_of(sensor.task_id)
    for _ in range(rounds):
        try:
            return sensor.execute(context)
        except AirflowRescheduleException as again:
            context["ti"].first_rescheduled = context["ti"].first_rescheduled or context["ti"].start_date
            time.sleep(max(0.0, (again.reschedule_date - datetime.now(UTC)).total_seconds()))
            # Airflow starts a rescheduled task in a new process, from the DAG's own copy.
            sensor = copy.copy(sensor)
            sensor.__dict__["_watch"] = None
        except TaskDeferred as deferral:
            arguments = json.loads(json.dumps(deferral.trigger.serialize()[1]))
            trigger = type(deferral.trigger)(**arguments)

            async def event(trigger: Any = trigger) -> Any:
                return await anext(trigger.run())

            payload = json.loads(json.dumps(asyncio.run(event()).payload))
            return sensor.resume_execution(deferral.method_name, {"event": payload}, context)
    raise AssertionError("the sensor was rescheduled for ever")


@pytest.fixture
def submitted(connected: Gateway) -> Iterator[Callable[[str], str]]:
    """Submit scripts straight to the scheduler; what still runs at the end is cancelled."""
    ids: list[str] = []
    scheduler = connected._world.systems[connected.system].scheduler

    def submit(script: str) -> str:
        ids.append(scheduler.submit(Submission(script=script, working_directory=str(connected.home))))
        return ids[-1]

    yield submit
    for job_id in ids:
        if any(record.state in ("PENDING", "RUNNING") for record in scheduler.records(job_id)):
            scheduler.cancel(job_id)
