"""What the operators that move data share: the kill that ends a transfer, and the wait for its job."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_hpc_provider.client.calls import JSONObject
from airflow_hpc_provider.client.errors import TransferError, WatchError
from airflow_hpc_provider.tasks import HpcTask, deadline, default_deferrable
from airflow_hpc_provider.triggers.jobs import HpcTransferTrigger
from airflow_hpc_provider.watch import JobWatch, Outcome, Verdict

if TYPE_CHECKING:
    from airflow_hpc_provider.client.copying import Copying
    from airflow_hpc_provider.client.jobs import Job
    from airflow_hpc_provider.client.session import Client
    from airflow_hpc_provider.client.systems import System
    from airflow_hpc_provider.client.terms import Begun, IfExists, Terms, Verify, Wait
    from airflow_hpc_provider.client.transfers import TransferJob

__all__ = ["Killed", "Switch", "TransferOperator"]

# A transfer job that ends within so many seconds is waited for in the worker: a trigger would take longer.
_SOON = 5.0
# A trigger that fires sooner may find its task not yet deferred.
_QUIET = 5.0


class Killed(BaseException):
    """Raised amid a transfer by a signal handler: nothing that catches errors to try again must catch it."""


class Switch:
    """Ends a transfer from a signal handler, but not amid what must not be broken off."""

    def __init__(self) -> None:
        self._on = False
        self._tripped = False
        self._shields = 0

    def trip(self) -> None:
        """End the transfer, now or after the present talk with the supervisor."""
        if not self._on:
            return
        self._tripped = True
        if not self._shields:
            self._raise()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While data moves, a kill ends it."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    @contextlib.contextmanager
    def shield(self) -> Iterator[None]:
        """A kill waits until this is over."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        if self._tripped and self._on and not self._shields:
            self._raise()

    def _raise(self) -> NoReturn:
        self._on = False
        raise Killed


class TransferOperator(HpcTask):
    """Base of operators that move data by jobs of the gateway."""

    ui_color = "#eaf6ec"

    def __init__(
        self,
        *,
        account: str | None = None,
        connections: int = 4,
        verify: Verify = "auto",
        if_exists: IfExists = "overwrite",
        preserve_mode: bool = False,
        deferrable: bool | None = None,
        poll_interval: float = 10.0,
        gateway_patience: float = 1800.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.account = account
        self.connections = connections
        self.verify = verify
        self.if_exists = if_exists
        self.preserve_mode = preserve_mode
        self.deferrable = default_deferrable() if deferrable is None else deferrable
        self.poll_interval = poll_interval
        self.gateway_patience = gateway_patience
        self._switch: Switch | None = None

    def on_kill(self) -> None:
        """End the transfer where it stands; what becomes of its job depends on why."""
        if self._switch is not None:
            self._switch.trip()

    @contextlib.contextmanager
    def _while_moving(self, context: Any) -> Iterator[JSONObject]:
        """Arguments of a transfer that a kill ends, and that a retry goes on with."""
        from airflow_hpc_provider.checkpoints import TaskKeeper
        from airflow_hpc_provider.client.terms import Halted

        self._switch = switch = Switch()
        keeper = TaskKeeper.of(context, shield=switch.shield)
        left: list[bool] = []

        def abandon(error: BaseException) -> bool:
            """Whether nobody will go on with the transfer."""
            if isinstance(error, Halted):
                return False
            if keeper is None or not keeper.seals:
                return True
            if not isinstance(error, Killed):
                return not (getattr(error, "transient", False) and self._tried_again(context))
            if not left:
                left.append(self._still_wanted(context))
            return not left[0]

        try:
            with switch.watching():
                yield {"keeper": keeper, "abandon": abandon}
        except Killed:
            if left == [True]:
                raise WatchError(
                    "This worker was told to end while it moved data; a retry goes on with it."
                ) from None
            raise TransferError("The task was told to end while it moved data.") from None

    def _tried_again(self, context: Any) -> bool:
        """Another try follows if this one fails."""
        ti = context["ti"]
        return bool(ti.try_number <= ti.max_tries)

    def _still_wanted(self, context: Any) -> bool:
        """The process is ended by those who run Airflow, not by a user who wants the task to end."""
        ti = context["ti"]
        try:
            states = ti.get_task_states(
                dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
            )
        except Exception as error:  # noqa: BLE001  whatever it is, the transfer is cleaned up
            self.log.warning("Why this task is ended cannot be learned: %s", error)
            return False
        return "running" in states.get(ti.run_id, {}).values()

    def _terms(self, **more: Any) -> Terms:
        """How to move files.

        :raises InvalidInputError: naming the parameter at fault
        """
        from airflow_hpc_provider.client.terms import Terms

        return Terms(
            connections=self.connections,
            verify=self.verify,
            if_exists=self.if_exists,
            preserve_mode=self.preserve_mode,
            **more,
        )

    def _watch(self, system: str, job_id: str, **more: Any) -> JobWatch:
        return JobWatch(
            system=system,
            job_id=job_id,
            since=time.time(),
            poll_interval=self.poll_interval,
            patience=self.gateway_patience,
            **more,
        )

    def _wait(self, client: Client, system: System) -> Wait:
        """Waits for the job that moves the data on the system's side."""

        def wait(job_id: str) -> Job:
            return _record(self.follow(client, self._watch(system.name, job_id)))

        return wait

    def _ended(self, client: Client, job: TransferJob, *, defer: bool) -> Job | None:
        """The last record of a transfer job.

        :param defer: only look whether it is over soon, as a job is that finds all it needs
        :return: the record; None of a job that is to be waited for elsewhere
        """
        begun = time.time()
        if not defer:
            return _record(self.follow(client, self._watch(job.system, job.job_id)))
        verdict = self.follow(client, self._watch(job.system, job.job_id, deadline=begun + _SOON))
        passed = time.time() - begun
        if verdict.outcome is Outcome.TIMEOUT:
            self.log.info("Job %s is not over after %.0f s: no worker waits for it.", job.job_id, passed)
            return None
        ended = _record(verdict)
        self.log.info("Job %s was over within %.1f s: no trigger had to wait.", job.job_id, passed)
        return ended

    def _defer_until_over(
        self,
        context: Any,
        job: TransferJob,
        carry: JSONObject,
        *,
        upload: Begun | None = None,
        copy: Copying | None = None,
        workspace: str | None = None,
    ) -> NoReturn:
        """Free the worker until a transfer job is over.

        :param carry: plain JSON for the method that resumes
        :param upload: what the job writes, to be removed with it when a user ends the task
        :param copy: the same of a copy
        :param workspace: a directory on the system, to be removed then, too
        """
        until = deadline(context, self.execution_timeout)
        trigger = HpcTransferTrigger(
            hpc_conn_id=self.hpc_conn_id,
            carry=carry,
            cancel_on_kill=True,
            upload=upload.to_json() if upload else None,
            copy=copy.to_json() if copy else None,
            workspace=workspace,
            system=job.system,
            job_id=job.job_id,
            since=time.time(),
            not_before=time.time() + _QUIET,
            deadline=until,
            poll_interval=self.poll_interval,
            patience=self.gateway_patience,
        )
        self.log.info("Waiting in the triggerer for job %s on system %s.", job.job_id, job.system)
        self.defer_to(trigger, until=until)

    def _resumed(
        self,
        client: Client,
        verdict: Verdict,
        job: TransferJob,
        kept: JSONObject,
        clean: Callable[[], object] = lambda: None,
    ) -> Job:
        """The last record of a job that a trigger waited for.

        :param kept: what ``_while_moving`` gave
        :param clean: removes what the job leaves unfinished when it is cancelled
        :raises AirflowTaskTimeout: the task's time was up
        :raises WatchError: there is none
        """
        from airflow_hpc_provider.client.arrival import cancel_transfer

        if verdict.outcome is Outcome.DONE:
            return _record(verdict)
        error: BaseException = WatchError(verdict.message, transient=verdict.transient)
        if verdict.outcome is Outcome.TIMEOUT:
            error = AirflowTaskTimeout(verdict.message)
        # A job that goes on is found by the next try.
        if kept["abandon"](error):
            cancel_transfer(client, job)
            clean()
        raise error


def _record(verdict: Verdict) -> Job:
    """The last record of a job that is over.

    :raises WatchError: it is not, or nobody knows
    """
    from airflow_hpc_provider.client.jobs import Job

    if verdict.outcome is not Outcome.DONE:
        raise WatchError(verdict.message, transient=verdict.transient)
    return Job.from_json(verdict.data)
