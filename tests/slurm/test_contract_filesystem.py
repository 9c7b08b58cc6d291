"""The file system ``hpc`` again, where a real Slurm runs the jobs that copy, move and stage."""

import contract.test_filesystem as local
import pytest
from schedulers import once_more

pytestmark = pytest.mark.slurm

_SMALL = "fsspec's own suite moves small files, for which there are no jobs"
globals().update(
    once_more(
        local,
        but={name: _SMALL for name in vars(local) if name.startswith("Test")}
        | {
            "test_any_bytes_come_back": "small files",
            "test_a_file_of_any_name_comes_back_or_is_refused_unsent": "small files",
        },
    )
)


@pytest.fixture(scope="module")
def gateway(slurm):
    with slurm.gateway(
        systems=("here", "there"), max_ops_file_size=local.LIMIT, max_part_size=50_000, ingress_poll=0.05
    ) as gateway:
        yield gateway
