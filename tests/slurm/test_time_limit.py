"""What takes Slurm a minute at least: the job was started before all other tests of this folder."""

import pytest

from airflow_hpc_provider.client.errors import JobFailedError

pytestmark = pytest.mark.slurm


@pytest.mark.timeout(180)
def test_a_job_that_does_not_heed_its_time_limit_is_killed_and_told_of(over_time):
    with pytest.raises(JobFailedError, match=r"TIMEOUT.*sbatch_options time"):
        over_time.end(150)
