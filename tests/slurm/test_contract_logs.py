"""The output of jobs again, while a real Slurm runs them."""

import contract.test_logs as local
import pytest
from schedulers import once_more

pytestmark = pytest.mark.slurm

_SHORT = "a job of a second may end between two looks: test_logs.py has jobs that wait to be read"
globals().update(
    once_more(
        local,
        but={
            "test_a_trigger_logs_through_its_own_logger": _SHORT,
            "test_the_lines_of_two_triggers_go_to_their_own_logs": _SHORT,
        },
    )
)


@pytest.fixture(scope="module")
def gateway(slurm):
    """One of its own, whose requests are counted."""
    with slurm.gateway() as gateway:
        yield gateway


@pytest.fixture
def make_gateway(make_slurm_gateway):
    return make_slurm_gateway
