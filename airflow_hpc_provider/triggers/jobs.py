"""``HpcJobTrigger``: until a job is over."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from airflow_hpc_provider.client.calls import JSONObject
from airflow_hpc_provider.client.errors import HpcError
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.watch import JobWatch, Outcome, Verdict

from .base import HpcTrigger

if TYPE_CHECKING:
    from airflow_hpc_provider.client.session import AsyncClient
    from airflow_hpc_provider.hub import Hub
    from airflow_hpc_provider.logs import JobLogs

__all__ = ["HpcJobTrigger", "HpcTransferTrigger"]


# Kills under way: an event loop itself holds on to no task.
_kills: set[asyncio.Task[None]] = set()


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
    :param logs: how far the job's output is logged, as ``JobLogs.to_json`` tells; it comes back as ``logs``
        of ``carry`` in the event. None logs nothing
    """

    watch_type = JobWatch
    watch: JobWatch

    def __init__(
        self, *, cancel_on_kill: bool = False, logs: JSONObject | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.cancel_on_kill = cancel_on_kill
        self.logs = logs
        self._logs: JobLogs | None = None
        self._news = asyncio.Event()

    def serialize(self) -> tuple[str, JSONObject]:
        """Class path and plain JSON arguments."""
        path, arguments = super().serialize()
        return path, arguments | {"cancel_on_kill": self.cancel_on_kill, "logs": self.logs}

    def carried(self) -> JSONObject:
        """What comes back in the event; with how far the output is logged."""
        if self.logs is None:
            return self.carry
        return self.carry | {"logs": self._logs.to_json() if self._logs else self.logs}

    async def wait(self) -> Verdict:
        """Wait in the one poll loop for all jobs of this gateway identity and system on this event loop."""
        from airflow_hpc_provider.hub import hub_for

        hook = HpcHook(self.hpc_conn_id)
        await hook.load()
        hub = hub_for(hook.settings.identity, self.watch.system, functools.partial(_open, self.hpc_conn_id))
        async with self._logging(hub):
            verdict = await hub.wait(self.watch, after_look=self.tell)
        # After a time-out nobody else cancels: Airflow calls no ``on_kill`` for it.
        if verdict.outcome is Outcome.TIMEOUT and self.cancel_on_kill:
            with contextlib.suppress(HpcError):  # the operator tries again
                await self._cancel()
        return verdict

    def tell(self) -> None:
        super().tell()
        if self._logs is not None:
            self._logs.saw(self.watch, time.time())
            self._news.set()

    @contextlib.asynccontextmanager
    async def _logging(self, hub: Hub) -> AsyncIterator[None]:
        """Log the job's output meanwhile, in the context of this trigger: it belongs into its task's log."""
        if self.logs is None:
            yield
            return
        from airflow_hpc_provider.logs import JobLogs, follow_logs

        self._logs = JobLogs.from_json(self.logs)
        reading = asyncio.create_task(
            follow_logs(self._logs, hub.send, self._say, self._news), name=f"hpc-logs-{self.watch.job_id}"
        )
        try:
            yield
        finally:
            reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled() and (error := reading.exception()):
                self.log.warning("The job's output was not read to its end.", exc_info=error)

    def _say(self, line: str) -> None:
        self.log.info("%s", line)

    async def on_kill(self) -> None:
        """Cancel the job if a user ended the task; leave it if the trigger is only moved elsewhere."""
        if not self.cancel_on_kill:
            return
        # The first question of a triggerer to its API may take half a minute, and Airflow gives up on this
        # method meanwhile, or cancels it: the job shall end all the same.
        kill = asyncio.create_task(self._kill(), name=f"hpc-kill-{self.watch.job_id}")
        _kills.add(kill)
        kill.add_done_callback(_kills.discard)
        await asyncio.shield(kill)

    async def _kill(self) -> None:
        try:
            if not await self._still_deferred():
                await self._cancel()
        except Exception:
            # Nobody may be waiting for it any more.
            self.log.exception("%s could not be cancelled.", self.watch.describe())
            raise

    async def _cancel(self) -> bool:
        """Cancel the job; False if it was over already."""
        from airflow_hpc_provider.client import jobs

        async with await HpcHook(self.hpc_conn_id).async_client(policy=RetryPolicy(attempts=3)) as client:
            cancelled = await client.send(jobs.cancel(self.watch.system, self.watch.job_id))
        self.log.info("%s %s.", self.watch.describe(), "cancelled" if cancelled else "was over already")
        return cancelled

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


class HpcTransferTrigger(HpcJobTrigger):
    """Waits for the job of a staged transfer; other parameters are those of :class:`HpcJobTrigger`.

    What the job has written is removed when it is cancelled amid it; what was there before stays.

    :param upload: the upload that it is part of, as ``Begun.to_json`` tells
    :param copy: the copy that it makes, as ``Copying.to_json`` tells
    :param workspace: a directory on that system that is of use to the task alone: it is removed when a user
        ends the task
    """

    def __init__(
        self,
        *,
        upload: JSONObject | None = None,
        copy: JSONObject | None = None,
        workspace: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.upload = upload
        self.copy = copy
        self.workspace = workspace

    def serialize(self) -> tuple[str, JSONObject]:
        """Class path and plain JSON arguments."""
        path, arguments = super().serialize()
        return path, arguments | {"upload": self.upload, "copy": self.copy, "workspace": self.workspace}

    async def _cancel(self) -> bool:
        cancelled = await super()._cancel()
        written = self.upload is not None or self.copy is not None
        if self.workspace is not None or (cancelled and written):
            hook = HpcHook(self.hpc_conn_id)
            await hook.load()
            # Removing is the blocking client's: it is rare, and the connection is read already.
            await asyncio.to_thread(self._sweep, hook)
        return cancelled

    def _sweep(self, hook: HpcHook) -> None:
        from airflow_hpc_provider.client import copying, staging

        with hook.client(policy=RetryPolicy(attempts=3)) as client:
            system = hook.system(client, self.watch.system)
            if self.workspace is not None:
                staging.remove_workspace(client, system, self.watch.job_id, self.workspace)
            elif self.upload is not None:
                staging.remove_unfinished(client, system, staging.Begun.from_json(self.upload))
            elif self.copy is not None:
                copying.remove_unfinished(
                    client,
                    system,
                    copying.Copying.from_json(self.copy),
                    wait=hook.waiting(client, system),
                    account=hook.settings.account,
                )


async def _open(hpc_conn_id: str) -> AsyncClient:
    """A client of the connection as it is now: its secret may have changed since the last one."""
    from airflow_hpc_provider.hub import POLICY

    return await HpcHook(hpc_conn_id).async_client(policy=POLICY)
