"""Tasks whose jobs run on a real Slurm."""

import asyncio
import contextlib
import copy
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow_home import context_of
from live_airflow import until
from live_slurm import Slurm

from airflow_hpc_provider.client.calls import Call
from airflow_hpc_provider.client.errors import NotFoundError
from airflow_hpc_provider.client.jobs import Job
from airflow_hpc_provider.client.jobs import get as get_job
from airflow_hpc_provider.client.jobs import listing as list_jobs
from airflow_hpc_provider.devgateway import Gateway
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.operators import jobs
from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator
from airflow_hpc_provider.submission import STATE_KEY


@pytest.fixture(scope="session")
def gateway(slurm_gateway: Gateway) -> Gateway:
    """All tests of this folder share it."""
    return slurm_gateway


@pytest.fixture(scope="session")
def over_time(slurm_gateway: Gateway) -> "Task":
    """A job that will be over its time limit of a minute, which no other test should wait for."""
    return Task(
        slurm_gateway,
        "#!/bin/bash\ntrap '' TERM\nfor _ in {1..300}; do sleep 1; done\n",
        sbatch_options={"time": "00:01:00"},
        hpc_conn_id="hpc_over_time",
    )


@pytest.fixture(scope="session", autouse=True)
def _started_first(slurm_gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AIRFLOW_CONN_HPC_OVER_TIME", json.dumps(slurm_gateway.connection()))
        request.getfixturevalue("over_time").start()
        yield


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defer at once and let the trigger speak at once: the pauses protect Airflow, not the operator."""
    monkeypatch.setattr(jobs, "_SETTLES_AFTER", 0.0)
    monkeypatch.setattr(jobs, "_QUIET", 0.0)


class Task:
    """A task that submits a job and waits for it, in a thread of its own.

    :param gateway: what its connection leads to
    :param script: of its job
    :param options: of the operator
    """

    def __init__(self, gateway: Gateway, script: str, **options: Any) -> None:
        self.gateway = gateway
        task_id = options.pop("task_id", None) or f"task-{os.urandom(4).hex()}"
        self.context = options.pop("context", None) or context_of(task_id)
        # Where it waits while it is deferred.
        self.deferred: tuple[Any, asyncio.AbstractEventLoop] | None = None
        whole = {"script": script, "poll_interval": 1, "deferrable": False, "log_interval": None} | options
        self._operator = HpcSubmitJobOperator(task_id=task_id, **whole)
        self._hook = HpcHook(self._operator.hpc_conn_id)
        self._trying: Future[Any] = Future()

    def start(self) -> "Task":
        threading.Thread(target=self._try, daemon=True).start()
        return self

    def end(self, seconds: float = 40) -> Any:
        """What the task returns.

        :param seconds: that it may take
        """
        return self._trying.result(timeout=seconds)

    @property
    def over(self) -> bool:
        return self._trying.done()

    def _try(self) -> None:
        try:
            self._trying.set_result(self._to_the_end())
        except BaseException as error:  # noqa: BLE001  a time-out of Airflow is no Exception
            self._trying.set_exception(error)

    def _to_the_end(self) -> Any:
        try:
            return self._operator.execute(self.context)
        except TaskDeferred as first:
            deferral = first
        while True:
            # What is deferred goes through a database, and is taken up by another process.
            trigger = type(deferral.trigger)(**json.loads(json.dumps(deferral.trigger.serialize()[1])))
            event = json.loads(json.dumps(asyncio.run(self._event_of(trigger)).payload))
            try:
                return getattr(copy.copy(self._operator), deferral.method_name)(self.context, event=event)
            except TaskDeferred as another:
                deferral = another

    async def _event_of(self, trigger: Any) -> Any:
        self.deferred = trigger, asyncio.get_running_loop()
        try:
            return await anext(trigger.run())
        finally:
            self.deferred = None

    def kill(self, state: str) -> None:
        """Tell the task what Airflow tells one that shall end: in its worker, or in the triggerer.

        :param state: of the task in Airflow: whether a user has ended it is not told otherwise
        """
        ti = self.context["ti"]
        ti.state = state
        if self.deferred is None:
            self._operator.on_kill()
            return
        trigger, loop = self.deferred
        trigger._task_instance = ti
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(ti.get_task_states))
            asyncio.run_coroutine_threadsafe(trigger.on_kill(), loop).result(20)

    @property
    def job_id(self) -> str:
        return str(until(self._submitted, 20, "the job's id", pause=0.05))

    def _submitted(self) -> str | None:
        job_id = self.context["ti"].xcoms.get("job_id")
        if job_id is None and self._trying.done():
            self._trying.result()
        return job_id

    @property
    def name(self) -> str:
        """What the task has called its job."""
        return str(self.context["task_state_store"][STATE_KEY]["name"])

    def ids_by_name(self) -> list[str]:
        """The ids of all jobs of this name; of a short one accounting learns the name late."""
        return [job.job_id for job in self.send(list_jobs(self.gateway.system, name=self.name))]

    def job(self) -> Job:
        """The job, as the gateway tells of it."""
        return self.send(get_job(self.gateway.system, self.job_id))

    def looks_again(self) -> None:
        """Wait until the task has looked at its job twice more."""
        look = f"GET /jobs/{self.job_id}$"
        seen = self.gateway.requests.count(look)
        until(lambda: self.gateway.requests.count(look) >= seen + 2, 20, "looks at the job", pause=0.05)

    def send(self, call: Call[Any]) -> Any:
        with self._hook.client() as client:
            return client.send(call)

    def wait_for(self, *states: str, seconds: float = 20) -> Job:
        """Wait until the job is in one of these states."""
        seen: list[Job] = []

        def there() -> bool:
            # While Slurm requeues a job, it is in none of its tables for a moment.
            with contextlib.suppress(NotFoundError):
                seen.append(self.job())
            return bool(seen) and seen[-1].state.value in states

        until(there, seconds, lambda: f"{states}: {seen[-1:]}", pause=0.1)
        return seen[-1]


@pytest.fixture
def task(connected: Gateway, slurm: Slurm) -> Iterator[Callable[..., Task]]:
    """Start tasks; what is left of their jobs is cancelled at the end."""
    started: list[Task] = []

    def make(script: str = "#!/bin/bash\n", **options: Any) -> Task:
        started.append(Task(connected, script, **options).start())
        return started[-1]

    yield make
    for one in started:
        # Its job may be over, or go on although the task is.
        if job_id := one.context["ti"].xcoms.get("job_id"):
            slurm.end(job_id)
