"""The hub again, and what it makes of jobs of a real Slurm."""

import contract.test_hub as local
import pytest
from schedulers import once_more

pytestmark = pytest.mark.slurm

globals().update(
    once_more(
        local,
        but={
            "test_a_gateway_that_restarts_in_mid_wait_is_waited_for": "one that stops takes its jobs along",
            "test_fifty_jobs_are_watched_by_one_list_a_tick": "the list lacks what ended before accounting "
            "knew of it: test_many_jobs.py",
            "test_an_array_is_not_over_before_its_last_element": "who does not know its elements may miss "
            "some of a short one, of which accounting knows late",
        },
    )
)


def test_an_array_is_not_over_before_its_last_element(make_gateway):
    local.must_wait_for_all_elements(make_gateway(), "0-2")


@pytest.fixture
def make_gateway(make_slurm_gateway):
    def make(*, job_cpus=None, **options):
        """Slurm's node has its own number of CPUs."""
        return make_slurm_gateway(**options)

    return make
