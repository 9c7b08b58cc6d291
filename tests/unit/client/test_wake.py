"""Waking a transfer job: accounting may not know yet that it runs."""

import pytest
from loopback import Reply, gateway_error, serve

from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.client.session import Client
from airflow_hpc_provider.client.wake import wake


def record(state):
    return Reply(200, {"jobs": [{"jobId": "7", "name": "allocation", "status": {"state": state}}]})


def told(look, attached=None, *, then=None):
    """What waking said, and how often the job was told; the job may look another way then."""

    class Known:
        name, rest_mode = "cluster", False

    def answer(request):
        if request.method != "GET":
            return attached or Reply(204)
        before = any(seen.method == "PUT" for seen in server.requests)
        return then if then and before else look

    with (
        serve(answer) as server,
        Client(server.url, AccessToken(server.url, "token"), policy=RetryPolicy(attempts=1)) as client,
    ):
        said = wake(client, Known(), "7")
        return said, [request.method for request in server.requests].count("PUT")


@pytest.mark.parametrize(
    "look",
    [record("RUNNING"), record("PENDING"), gateway_error(404, "Job not found.")],
    ids=["running", "pending for accounting", "unknown to accounting"],
)
def test_a_job_that_may_run_is_told(look):
    said, times = told(look)
    assert (said, times) == ("Job 7 was told that the object is complete.", 1)


def test_a_job_that_truly_waits_needs_no_waking():
    refusal = gateway_error(500, "srun: error: Unable to confirm allocation: Job is pending execution")
    said, times = told(record("PENDING"), refusal)
    assert (said, times) == ("Job 7 is PENDING: it needs no waking.", 1)


def test_a_job_that_is_over_is_left_alone():
    assert told(record("COMPLETED")) == ("Job 7 is COMPLETED: it needs no waking.", 0)


def test_a_job_that_runs_and_cannot_be_told_looks_by_itself():
    said, times = told(record("RUNNING"), gateway_error(500, "srun: error: no"))
    assert times == 1
    assert "once a minute" in said


def test_a_job_that_ends_while_it_is_told_needed_no_waking():
    refusal = gateway_error(500, "exit_status:143 std_err:srun: Job step aborted")
    said, times = told(record("RUNNING"), refusal, then=record("COMPLETED"))
    assert (said, times) == ("Job 7 is COMPLETED: it needs no waking.", 1)
