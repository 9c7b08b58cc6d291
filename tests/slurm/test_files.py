"""Large files through transfer jobs that a real Slurm runs, as another user than the gateway's."""

import os
import time

import pytest
from airflow_home import context_of
from live_slurm import USER

from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.operators.directories import HpcCopyOperator
from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator

pytestmark = pytest.mark.slurm

SIZE = 20 * 2**20


@pytest.fixture(scope="module")
def gateway(slurm):
    """As in reality: a job looks for its object once, and then once a minute."""
    with slurm.gateway(ingress_poll=60, max_part_size=8 * 2**20) as gateway:
        yield gateway


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


def upload(large, **options):
    started = time.monotonic()
    operator = HpcUploadOperator(task_id="up", local_path=str(large), deferrable=False, **options)
    result = operator.execute(context_of("up"))
    return result, time.monotonic() - started


def transfer_jobs(gateway):
    scheduler = gateway._world.systems[gateway.system].scheduler
    return [
        (record.user, record.state) for record in scheduler.records() if record.name.endswith("FileTransfer")
    ]


def test_a_job_that_naps_is_woken_when_the_file_is_complete(connected, large):
    # Long enough for the job to have looked in vain and to nap for a minute.
    connected.faults.delay(4, on="complete_object")
    result, seconds = upload(large, remote_path=f"{connected.home}/woken.bin")
    assert connected.requests.count("attach") == 1
    assert (result["size"], result["verified"]) == (SIZE, "sha256")
    target = connected.home / "woken.bin"
    assert target.read_bytes() == large.read_bytes()
    assert target.owner() == USER
    assert seconds < 20


def test_a_large_file_goes_up_and_comes_down_by_jobs_of_the_user(connected, large, tmp_path):
    upload(large, remote_path=f"{connected.home}/there.bin", atomic=True)
    down = HpcDownloadOperator(
        task_id="down",
        remote_path=f"{connected.home}/there.bin",
        local_path=str(tmp_path / "back.bin"),
        deferrable=False,
    )
    assert down.execute(context_of("down"))["size"] == SIZE
    assert (tmp_path / "back.bin").read_bytes() == large.read_bytes()
    assert {user for user, _ in transfer_jobs(connected)} <= {USER, ""}


def test_a_tree_goes_up_is_copied_by_a_job_and_comes_down(connected, tmp_path):
    tree = tmp_path / "tree"
    for number in range(20):
        (tree / f"d{number % 3}").mkdir(parents=True, exist_ok=True)
        (tree / f"d{number % 3}" / f"{number}.txt").write_text(f"{number}\n")
    HpcUploadOperator(task_id="up", local_path=str(tree), remote_path=f"{connected.home}/tree").execute(
        context_of("up")
    )
    copy = HpcCopyOperator(
        task_id="copy", source_path=f"{connected.home}/tree", target_path=f"{connected.home}/copied"
    )
    copy.execute(context_of("copy"))
    HpcDownloadOperator(
        task_id="down", remote_path=f"{connected.home}/copied", local_path=str(tmp_path / "back")
    ).execute(context_of("down"))
    names = {str(path.relative_to(tree)) for path in tree.rglob("*.txt")}
    assert {str(path.relative_to(tmp_path / "back")) for path in (tmp_path / "back").rglob("*.txt")} == names
    assert (connected.home / "copied" / "d0" / "0.txt").owner() == USER


def test_a_directory_that_the_user_made_by_a_job_is_listed_and_removed(connected):
    hook = HpcHook("hpc_default")
    with hook.client() as client:
        system = hook.system(client)
    hook.make_directory(f"{connected.home}/made")
    assert system.name == connected.system
    hook.delete(f"{connected.home}/made")
    assert not (connected.home / "made").exists()
