"""``HpcJobSensor``: waits for a job that something else submitted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_hpc_provider.client.calls import JSONObject
from airflow_hpc_provider.client.errors import InvalidInputError, JobFailedError
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.triggers.jobs import HpcJobTrigger
from airflow_hpc_provider.watch import JobWatch, Verdict

from .base import HpcSensor

if TYPE_CHECKING:
    from airflow_hpc_provider.client.session import Client

__all__ = ["HpcJobSensor"]


class HpcJobSensor(HpcSensor):
    """Wait until a job, or every element of an array, is over; fail unless it ended as expected.

    It only looks: a killed sensor leaves the job alone.

    :param job: id of the job, or the output of the task that submitted it
    :param expected_states: Slurm states with which the sensor succeeds
    :param deferrable: wait in the triggerer, without holding a worker
    :param poke_interval: seconds between two looks; in the triggerer, at the most
    :param timeout: seconds after which the sensor gives up
    :param gateway_patience: seconds for which a gateway that cannot be asked is waited for; in ``reschedule``
        mode ``timeout`` alone is the bound
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default: that of ``job`` if it is an output, else the connection's
    :return: the job's record: id, state, reason, exit code, signal, nodes, start and end, and of an array its
        elements
    """

    template_fields: Sequence[str] = ("job", "system", "hpc_conn_id")
    trigger_type = HpcJobTrigger

    def __init__(self, *, job: Any, expected_states: Collection[str] = ("COMPLETED",), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.job = job
        self.expected_states = expected_states

    def watch_for(self, client: Client, hook: HpcHook, **common: Any) -> JobWatch:
        """A watch on the job."""
        from airflow_hpc_provider.client.jobs import check_job_id
        from airflow_hpc_provider.client.states import JobState

        del client
        for state in self.expected_states:
            if not JobState.read(state).final:
                raise InvalidInputError("expected_states", f"{state!r} is no state in which a job is over.")
        given = self.job.get("system") if isinstance(self.job, Mapping) else None
        array = self.job.get("elements") if isinstance(self.job, Mapping) else None
        return JobWatch(
            system=hook.system_name(self.system or given),
            job_id=check_job_id(self.job, "job"),
            array=",".join(str(element["index"]) for element in array) if array else None,
            **common,
        )

    def done(self, verdict: Verdict) -> JSONObject:
        """The job's record."""
        from airflow_hpc_provider.client.jobs import Job
        from airflow_hpc_provider.client.states import JobState, advice

        job = Job.from_json(verdict.data)
        if job.state in {JobState.read(state) for state in self.expected_states}:
            return verdict.data
        failed = (
            f" Failed indices: {', '.join(map(str, job.failed_indices[:50]))}." if job.failed_indices else ""
        )
        hint = advice(job.state, job.reason)
        raise JobFailedError(
            f"{verdict.message}{failed} Exit code {job.exit_code}, signal {job.signal}. {hint or ''}".strip(),
            state=job.state.value,
            transient=job.state.infrastructure,
        )
