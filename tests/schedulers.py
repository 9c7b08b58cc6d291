"""What tests of jobs ask of any scheduler, so that they run with local jobs and on a real Slurm alike."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from live_airflow import until

from airflow_hpc_provider.client import jobs
from airflow_hpc_provider.client.errors import NotFoundError
from airflow_hpc_provider.client.jobs import Job
from airflow_hpc_provider.devgateway import Gateway
from airflow_hpc_provider.devgateway.scheduler import Scheduler

__all__ = ["job_when", "once_more", "over", "scheduler_of"]


def scheduler_of(gateway: Gateway, system: str | None = None) -> Scheduler:
    """The scheduler of a system, or of the first one, whichever kind it is."""
    return gateway._world.systems[system or gateway.system].scheduler


def over(job: Job) -> bool:
    return job.state.final


def job_when(
    send: Callable[[Any], Job],
    system: str,
    job_id: str,
    holds: Callable[[Job], bool] = over,
    *,
    pause: float = 0.02,
    **given: Any,
) -> Job:
    """Look at a job until something holds of it.

    :param send: of a client
    :param holds: what is waited for
    :param pause: seconds between two looks
    :param given: more arguments of ``jobs.get``
    """
    seen: list[Job | NotFoundError] = []

    def there() -> Job | None:
        try:
            seen.append(job := send(jobs.get(system, job_id, **given)))
        except NotFoundError as error:
            # While Slurm's accounting takes a job over, no table has it for a moment.
            seen.append(error)
            return None
        return job if holds(job) else None

    found = until(there, 20, lambda: f"job {job_id}: {seen[-1]}", pause=pause)
    assert found is not None
    return found


def once_more(module: ModuleType, *, but: Mapping[str, str]) -> dict[str, Any]:
    """The tests and fixtures of a module, for another one that has other fixtures: ``globals().update(...)``.

    :param but: which are left out, and why
    """
    names = vars(module)
    assert but.keys() <= names.keys(), "what is left out has another name by now"
    return {
        name: value
        for name, value in names.items()
        if not name.startswith("__") and name not in {"pytestmark", *but}
    }
