"""The client's calls about files again, where a real Slurm runs the transfers that are jobs."""

import contract.test_files as local
import pytest
from loopback import Blocking
from schedulers import once_more

from airflow_hpc_provider.client.auth import AccessToken

pytestmark = pytest.mark.slurm

globals().update(
    once_more(local, but={"test_what_the_user_may_not_is_denied": "the gateway is root, who may do all"})
)


@pytest.fixture(scope="module")
def gateway(slurm):
    with slurm.gateway(
        max_ops_file_size=local.LIMIT, max_part_size=local.LIMIT, ingress_poll=0.05
    ) as gateway:
        yield gateway


@pytest.fixture
def send(gateway):
    """In one of the client's two worlds: to Slurm they are the same."""
    with Blocking(gateway.url, AccessToken(gateway.url, gateway.access_token())) as client:
        yield client.send
    gateway.faults.clear()
