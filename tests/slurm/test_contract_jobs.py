"""The client's calls about jobs again, with jobs of a real Slurm."""

import time

import pytest
from contract.test_jobs import (
    MODES,
    submit,
    test_a_cancelled_array_is_over_with_all_its_elements,
    test_a_command_runs_inside_a_job,
    test_a_job_is_cancelled_once_and_then_there_is_nothing_left_to_cancel,
    test_a_job_runs_and_tells_how_it_went,
    test_a_job_that_fails_tells_why,
    test_a_job_that_nobody_knows_cannot_be_cancelled,
    test_a_job_that_nobody_knows_is_not_found,
    test_a_script_on_the_system_is_run,
    test_a_waiting_job_is_told_with_its_reason_and_without_guesses,
    test_an_array_is_one_job_from_the_start_to_its_end,
    test_jobs_are_listed_by_name_and_window,
    test_metadata_hold_the_script_and_the_paths_of_its_output,
    test_nodes_partitions_reservations_and_the_user_are_told,
    test_running_elements_are_known_by_the_ids_of_the_array,
    test_the_systems_are_told_with_modes_limits_and_health,
    test_what_the_scheduler_refuses_is_refused_for_good,
)

from airflow_hpc_provider.client import jobs
from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.errors import NotFoundError
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.client.session import Client

__all__ = [
    "submit",
    "test_a_cancelled_array_is_over_with_all_its_elements",
    "test_a_command_runs_inside_a_job",
    "test_a_job_is_cancelled_once_and_then_there_is_nothing_left_to_cancel",
    "test_a_job_runs_and_tells_how_it_went",
    "test_a_job_that_fails_tells_why",
    "test_a_job_that_nobody_knows_cannot_be_cancelled",
    "test_a_job_that_nobody_knows_is_not_found",
    "test_a_script_on_the_system_is_run",
    "test_a_waiting_job_is_told_with_its_reason_and_without_guesses",
    "test_an_array_is_one_job_from_the_start_to_its_end",
    "test_jobs_are_listed_by_name_and_window",
    "test_metadata_hold_the_script_and_the_paths_of_its_output",
    "test_nodes_partitions_reservations_and_the_user_are_told",
    "test_running_elements_are_known_by_the_ids_of_the_array",
    "test_the_systems_are_told_with_modes_limits_and_health",
    "test_what_the_scheduler_refuses_is_refused_for_good",
]

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def gateway(slurm):
    with slurm.gateway(systems=[*MODES], connection_mode=MODES) as gateway:
        yield gateway


@pytest.fixture
def client(gateway):
    policy = RetryPolicy(attempts=2, base=0.01)
    with Client(gateway.url, AccessToken(gateway.url, gateway.access_token()), policy=policy) as client:
        yield client
    gateway.faults.clear()


@pytest.fixture
def ended(client, request):
    """As with local jobs, but while accounting takes a job over, there may be none, or one without a name."""
    wants_name = any(words in request.node.name for words in ("how_it_went", "listed"))

    def seen(job_id, system, **given):
        try:
            return client.send(jobs.get(system, job_id, **given))
        except NotFoundError:
            return None

    def ended(job_id, system="ssh-like", until=lambda job: job.state.final, **given):
        give_up = time.monotonic() + 20
        while (
            not (job := seen(job_id, system, **given))
            or not until(job)
            or (wants_name and job.name == "allocation")
        ):
            assert time.monotonic() < give_up, job
            time.sleep(0.05)
        return job

    return ended
