"""Whole files to the gateway and back again, by transfer jobs that a real Slurm runs as another user."""

import contract.conftest as fixtures
import contract.test_staging as local
import pytest
from live_airflow import until
from schedulers import once_more, scheduler_of

pytestmark = pytest.mark.slurm

_STORAGE = "many ways in which the storage fails, which are the same to every job"
globals().update(
    once_more(fixtures, but={"small_pieces": "of other modules"})
    | once_more(
        local,
        but={
            "test_a_transfer_job_whose_node_fails_may_be_tried_again": "it is the node of all tests",
            "test_a_target_the_gateway_would_not_quote_is_refused": "before any job",
            "test_a_part_that_fails_once_is_sent_again": _STORAGE,
            "test_parts_are_joined_in_spite_of_trouble": _STORAGE,
            "test_a_download_that_breaks_begins_anew": _STORAGE,
            "test_a_download_that_fails_leaves_nothing_behind_and_takes_nothing_away": _STORAGE,
        },
    )
)


@pytest.fixture(scope="module")
def narrow(slurm):
    with slurm.gateway(max_ops_file_size=local.LIMIT, max_part_size=local.PART, ingress_poll=0.05) as gateway:
        yield gateway


@pytest.fixture
def new_jobs(gateway):
    """As with local jobs, by their ids: of a short job accounting learns the name late, and the end too."""
    scheduler = scheduler_of(gateway)
    before = len(scheduler._submitted)

    def states():
        ids = scheduler._submitted[before:]

        def ended():
            records = [record for job_id in ids for record in scheduler.records(job_id) if record.over]
            return (records,) if len(records) == len(ids) else None

        (records,) = until(ended, 20, "the end of the jobs", pause=0.1)
        return [record.state for record in records]

    return states
