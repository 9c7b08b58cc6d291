"""Disks that are really full, on either side: the error names the cause, and nothing unfinished is left."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from airflow_hpc_provider.client import trees
from airflow_hpc_provider.client.errors import HpcError, TransferError
from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator

# Each moves files by jobs, which take their time.
pytestmark = pytest.mark.slow

ROOM = 200_704


@pytest.fixture
def disk(small_limits, tmp_path):
    """Make small disks: a file system in memory, mounted on a directory, with 196 KiB of room."""
    mounted = []

    def make(on: Path) -> Path:
        on.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={ROOM}"]
        done = subprocess.run(
            ["mount", *options, "tmpfs", str(on)], check=False, capture_output=True, timeout=20
        )
        if done.returncode:
            pytest.skip("only root can mount a file system")
        mounted.append(on)
        return on

    yield make
    for on in mounted:
        subprocess.run(["umount", str(on)], check=True, timeout=20)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(trees, "_PATIENCE", 0.0)


def up(local_path, remote_path, **options):
    return HpcUploadOperator(
        task_id="up", local_path=local_path, remote_path=str(remote_path), poll_interval=0.1, **options
    ).execute({})


def down(remote_path, local_path):
    return HpcDownloadOperator(
        task_id="down", remote_path=str(remote_path), local_path=local_path, poll_interval=0.1
    ).execute({})


def busy(gateway):
    return [one for one in gateway.scheduler.records() if one.state in ("PENDING", "RUNNING")]


@pytest.mark.parametrize("atomic", [False, True])
def test_a_large_file_onto_a_full_disk_of_the_system(small_limits, disk, tmp_path, atomic):
    there = disk(small_limits.home / "disk")
    (tmp_path / "large").write_bytes(os.urandom(2 * ROOM))
    with pytest.raises(TransferError):
        up(tmp_path / "large", there / "x", atomic=atomic)
    assert list(there.iterdir()) == []
    assert busy(small_limits) == []
    (tmp_path / "fits").write_bytes(os.urandom(ROOM // 2))
    assert up(tmp_path / "fits", there / "x")["verified"] == "sha256"


def test_a_small_file_onto_a_full_disk_of_the_system(small_limits, disk, tmp_path):
    there = disk(small_limits.home / "disk")
    (there / "filler").write_bytes(bytes(ROOM - 8192))
    (tmp_path / "small").write_bytes(os.urandom(60_000))
    with pytest.raises(HpcError):
        up(tmp_path / "small", there / "x")
    (there / "filler").unlink()
    up(tmp_path / "small", there / "x")
    assert (there / "x").read_bytes() == (tmp_path / "small").read_bytes()


def test_a_tree_onto_a_full_disk_of_the_system(small_limits, disk, tmp_path):
    there = disk(small_limits.home / "disk")
    (tmp_path / "tree").mkdir()
    for number in range(8):
        (tmp_path / "tree" / str(number)).write_bytes(bytes(60_000))
    with pytest.raises(HpcError):
        up(tmp_path / "tree", there / "x")
    assert [path for path in there.rglob("*") if path.name.startswith(".airflow-hpc-")] == []
    assert busy(small_limits) == []


def test_a_large_file_onto_a_full_disk_here(small_limits, disk, tmp_path):
    here = disk(tmp_path / "disk")
    (small_limits.home / "large").write_bytes(os.urandom(2 * ROOM))
    with pytest.raises(TransferError, match="No room"):
        down(small_limits.home / "large", here / "x")
    assert list(here.iterdir()) == []
    assert busy(small_limits) == []


def test_a_tree_onto_a_full_disk_here(small_limits, disk, tmp_path):
    here = disk(tmp_path / "disk")
    (small_limits.home / "tree").mkdir()
    for number in range(8):
        (small_limits.home / "tree" / str(number)).write_bytes(bytes(60_000))
    with pytest.raises(TransferError, match="No space left on device"):
        down(small_limits.home / "tree", here / "x")
    assert list(here.iterdir()) == []


def test_a_tree_that_cannot_be_packed_for_want_of_room(small_limits, disk, tmp_path, monkeypatch):
    room = disk(tmp_path / "disk")
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "x").write_bytes(os.urandom(2 * ROOM))
    before = len(small_limits.requests)
    with pytest.raises(TransferError, match="no room to pack the files: No space left"):
        up(tmp_path / "tree", small_limits.home / "x")
    assert {entry.method for entry in list(small_limits.requests)[before:]} <= {"GET", "POST"}
    assert not (small_limits.home / "x").exists()
    assert list(room.iterdir()) == []
