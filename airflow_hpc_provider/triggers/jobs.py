"""``HpcJobTrigger``: until a job is over."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from airflow_hpc_provider.client.calls import JSONObject
from airflow_hpc_provider.client.errors import HpcError
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.watch import JobWatch, Outcome, Verdict

from .base import HpcTrigger

if TYPE_CHECKING:
    from airflow_hpc_provider.client.session import AsyncClient

__all__ = ["HpcJobTrigger"]


class HpcJobTrigger(HpcTrigger):
    """Waits for a job, or for every element of an array.

    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system
    :param job_id: id of the job
    :param since: epoch seconds at which it was submitted
    :param array: the array it was submitted with, as ``0-99%10``
    :param deadline: epoch seconds at which to give up; then the job is cancelled too, if ``cancel_on_kill``
    :param poll_interval: seconds between two looks at the most
    :param cancel_on_kill: cancel the job when a user ends the deferred task
    """

    watch_type = JobWatch
    watch: JobWatch

    def __init__(self, *, cancel_on_kill: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cancel_on_kill = cancel_on_kill

    def serialize(self) -> tuple[str, JSONObject]:
        """Class path and plain JSON arguments."""
        path, arguments = super().serialize()
        return path, arguments | {"cancel_on_kill": self.cancel_on_kill}

    async def settle(self, client: AsyncClient, verdict: Verdict) -> None:
        """After a time-out nobody else cancels: Airflow calls no ``on_kill`` for it."""
        from airflow_hpc_provider.client import jobs

        if verdict.outcome is Outcome.TIMEOUT and self.cancel_on_kill:
            with contextlib.suppress(HpcError):  # the operator tries again
                await client.send(jobs.cancel(self.watch.system, self.watch.job_id))

    async def on_kill(self) -> None:
        """Cancel the job if a user ended the task; leave it if the trigger is only moved elsewhere."""
        from airflow_hpc_provider.client import jobs

        if not self.cancel_on_kill or await self._still_deferred():
            return
        async with await HpcHook(self.hpc_conn_id).async_client(policy=RetryPolicy(attempts=3)) as client:
            cancelled = await client.send(jobs.cancel(self.watch.system, self.watch.job_id))
        self.log.info("%s %s.", self.watch.describe(), "cancelled" if cancelled else "was over already")

    async def _still_deferred(self) -> bool:
        """A slow triggerer has its triggers moved, and then calls ``on_kill`` as for a user's kill."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
        from asgiref.sync import sync_to_async

        ti = self.task_instance
        if ti is None:
            return False
        states = await sync_to_async(RuntimeTaskInstance.get_task_states)(
            dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
        )
        key = ti.task_id if ti.map_index < 0 else f"{ti.task_id}_{ti.map_index}"
        return bool(states.get(ti.run_id, {}).get(key) == "deferred")
