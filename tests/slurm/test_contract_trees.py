"""Many files as one archive again, where a real Slurm runs the jobs that pack, unpack and stage them."""

import os

import contract.test_trees as local
import pytest
from schedulers import once_more

pytestmark = pytest.mark.slurm

globals().update(
    once_more(
        local,
        but={
            "test_five_thousand_files_in_one_directory": "asks for no job, and takes long",
            "test_a_failed_upload_leaves_no_archive": "fails before any job",
            "test_a_failed_download_leaves_nothing": "fails before any job",
        },
    )
)


@pytest.fixture(scope="module", autouse=True)
def _usual_modes(slurm):
    """Of files, which elsewhere here are free to all, since another user's jobs have to change them."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def gateway(slurm):
    """Its jobs are of the gateway's own user, as on a cluster: archives under way are private."""
    with slurm.gateway(user="root", ingress_poll=0.05) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def narrow(slurm):
    with slurm.gateway(user="root", ingress_poll=0.05, max_ops_file_size=local.SMALL) as gateway:
        yield gateway
