"""The client's calls about jobs again, with jobs of a real Slurm."""

import contract.test_jobs as local
import pytest
from loopback import Blocking
from schedulers import job_when, once_more, over

pytestmark = pytest.mark.slurm

globals().update(
    once_more(
        local,
        but={"test_a_job_over_its_time_limit_is_told_with_its_signal": "takes a minute: test_time_limit.py"},
    )
)


@pytest.fixture(scope="module")
def gateway(slurm):
    with slurm.gateway(systems=[*local.MODES], connection_mode=local.MODES) as gateway:
        yield gateway


@pytest.fixture
def client(gateway):
    """In one of the client's two worlds: to Slurm they are the same."""
    with Blocking(gateway.url, local.auth_of(gateway), policy=local.POLICY) as client:
        yield client
    gateway.faults.clear()


@pytest.fixture
def ended(client, request):
    """As with local jobs, but of a short job accounting learns the name late."""
    wants_name = any(words in request.node.name for words in ("how_it_went", "listed"))

    def ended(job_id, system="ssh-like", until=over, **given):
        def holds(job):
            return until(job) and not (wants_name and job.name == "allocation")

        return job_when(client.send, system, job_id, holds, **given)

    return ended
