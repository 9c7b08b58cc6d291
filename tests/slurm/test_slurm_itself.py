"""The Slurm of these tests leaves nothing behind."""

import live_slurm
import pytest
from live_airflow import until
from live_slurm import Slurm

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize("namespace", [True, False], ids=["in a namespace", "where none is allowed"])
def test_jobs_end_with_it(tmp_path, monkeypatch, namespace):
    if not namespace:
        monkeypatch.setattr(live_slurm, "_NAMESPACE", ("false",))
    with Slurm(tmp_path) as cluster:
        job_id = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 100").strip()
        until(lambda: cluster.process_states(job_id), 20, "the job's processes", pause=0.1)
    assert cluster.process_states(job_id) == set()
