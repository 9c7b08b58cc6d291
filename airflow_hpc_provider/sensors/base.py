"""``HpcSensor``: a watch in a worker, rescheduled, or in a trigger."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.exceptions import AirflowSensorTimeout, AirflowSkipException, AirflowTaskTimeout

from airflow_hpc_provider.client.calls import JSONObject
from airflow_hpc_provider.client.errors import HpcError, JobLostError, WatchError
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.tasks import HpcTask, carried, deadline, default_deferrable
from airflow_hpc_provider.triggers.base import HpcTrigger
from airflow_hpc_provider.watch import Outcome, Verdict, Watch

if TYPE_CHECKING:
    from airflow_hpc_provider.client.session import Client

__all__ = ["HpcSensor"]


class HpcSensor(HpcTask, BaseSensorOperator):
    """Base of the sensors. All waits end in :meth:`done`, wherever they took place.

    :param deferrable: wait in the triggerer, without holding a worker.
        Default: Airflow's ``[operators] default_deferrable``
    :param poke_interval: seconds between two looks; in the triggerer, at the most
    :param timeout: seconds after which the sensor gives up
    :param gateway_patience: seconds for which a gateway that cannot be asked is waited for, whatever a single
        look comes to. A sensor in ``reschedule`` mode starts anew with each look and does not remember how
        long it has been so: there ``timeout`` is the bound
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default: the connection's
    """

    trigger_type: type[HpcTrigger]

    def __init__(
        self,
        *,
        deferrable: bool | None = None,
        poke_interval: Any = 30.0,
        gateway_patience: float = 1800.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.deferrable = default_deferrable() if deferrable is None else deferrable
        self.gateway_patience = gateway_patience
        self._watch: Watch[Any] | None = None
        self._said = ""

    def watch_for(self, client: Client, hook: HpcHook, **common: Any) -> Watch[Any]:
        """The watch of this sensor.

        :param common: arguments of every watch
        """
        raise NotImplementedError

    def done(self, verdict: Verdict) -> Any:
        """The sensor's result, of a verdict that says that what was waited for has come."""
        return verdict.data

    def execute(self, context: Any) -> Any:
        """Wait."""
        if not self.deferrable:
            return super().execute(context)
        with self.hook.client() as client:
            watch = self._made(client, context)
            watch.deadline = time.time() + self.timeout
            # Airflow does not enforce it while a task is deferred.
            limit = deadline(context, self.execution_timeout)
            limited = limit is not None and limit < watch.deadline
            watch.deadline = limit if limited else watch.deadline
            carry = {"execution_timeout": limited}
            verdict = self._look(client, watch)
        if verdict is not None:
            return self._judged(verdict, carry)
        trigger = self.trigger_type(hpc_conn_id=self.hpc_conn_id, carry=carry, **asdict(watch))
        return self.defer_to(trigger, until=watch.deadline)

    def execute_complete(self, context: Any, event: Any) -> Any:
        """Take up the task after the trigger's verdict."""
        del context
        return self._judged(*carried(event))

    def _judged(self, verdict: Verdict, carry: JSONObject) -> Any:
        """What Airflow makes of errors of a sensor that pokes, for one that was deferred."""
        if verdict.outcome is Outcome.TIMEOUT and carry["execution_timeout"]:
            raise AirflowTaskTimeout(verdict.message)
        try:
            return self._end(verdict)
        except HpcError as error:
            if self.never_fail:
                raise AirflowSkipException("Skipping due to never_fail is set to True.") from error
            raise

    def poke(self, context: Any) -> PokeReturnValue:
        """Look once; again at once only while something is seen that may be about to come."""
        with self.hook.client() as client:
            watch = self._watch = self._watch or self._made(client, context)
            verdict = self._look(client, watch)
            while verdict is None and self.reschedule and watch.pending:
                time.sleep(watch.delay(time.time()))
                verdict = self._look(client, watch)
        return PokeReturnValue(
            is_done=verdict is not None, xcom_value=self._end(verdict) if verdict else None
        )

    def _made(self, client: Client, context: Any) -> Watch[Any]:
        # A sensor that is rescheduled starts anew each time, but its wait began with the first.
        first = context["ti"].get_first_reschedule_date(context) if self.reschedule else None
        since = first.timestamp() if first else time.time()
        self._said = ""
        return self.watch_for(
            client, self.hook, since=since, poll_interval=self.poke_interval, patience=self.gateway_patience
        )

    def _look(self, client: Client, watch: Watch[Any]) -> Verdict | None:
        from airflow_hpc_provider import metrics

        metrics.polled(watch.system, watch.kind)
        try:
            verdict = watch.saw(client.send(watch.look()), time.time())
        except HpcError as error:
            verdict = watch.missed(error, time.time())
        if verdict is not None:
            metrics.detected(watch, verdict, time.time())
        elif watch.news != self._said:
            self._said = watch.news
            self.log.info("%s: %s.", watch.describe(), self._said)
        return verdict

    def _end(self, verdict: Verdict) -> Any:
        self.log.info("%s", verdict.message)
        if verdict.outcome is Outcome.DONE:
            return self.done(verdict)
        if verdict.outcome is Outcome.TIMEOUT:
            if self.soft_fail:
                raise AirflowSkipException(verdict.message)
            raise AirflowSensorTimeout(verdict.message)
        if verdict.outcome is Outcome.LOST:
            raise JobLostError(verdict.message)
        raise WatchError(verdict.message, transient=verdict.transient)
