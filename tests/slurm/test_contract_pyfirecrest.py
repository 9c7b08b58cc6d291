"""pyfirecrest again, with jobs of a real Slurm."""

import contract.test_pyfirecrest as local
import pytest
from schedulers import once_more

pytestmark = [pytest.mark.slurm, local.pytestmark]

globals().update(once_more(local, but={}))


@pytest.fixture(scope="module")
def gateway(slurm):
    """Its jobs are of the gateway's own user: what these tests make on the system, only that one may read."""
    with slurm.gateway(user="root", ingress_poll=0.2) as started:
        yield started


@pytest.fixture
def naps():
    """Slurm's jobs take their time: pyfirecrest waits as long as it means to."""
