"""The output of jobs again, while a real Slurm runs them."""

import contract.test_logs as local
import pytest
from schedulers import once_more

pytestmark = pytest.mark.slurm

globals().update(once_more(local, but={}))


@pytest.fixture(scope="module")
def gateway(slurm):
    """One of its own, whose requests are counted."""
    with slurm.gateway() as gateway:
        yield gateway


@pytest.fixture
def make_gateway(make_slurm_gateway):
    return make_slurm_gateway
