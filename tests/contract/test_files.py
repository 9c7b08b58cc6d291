"""The calls about files, and those of transfers that are jobs, against the embedded gateway."""

import hashlib
import os
import tarfile

import pytest
from loopback import WORLDS
from schedulers import job_when

from airflow_hpc_provider.client import files, jobs, transfers
from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.errors import (
    AccessDeniedError,
    BadRequestError,
    NotFoundError,
    RejectedError,
    TooLargeError,
)
from airflow_hpc_provider.client.files import EntryKind
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.devgateway import Gateway

LIMIT = 64 * 1024


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    root = tmp_path_factory.mktemp("gateway")
    with Gateway(
        root, scheduler="local", max_ops_file_size=LIMIT, max_part_size=LIMIT, ingress_poll=0.05
    ) as gateway:
        yield gateway


@pytest.fixture(params=WORLDS, ids=["blocking", "on-loop"])
def send(gateway, request):
    auth = AccessToken(gateway.url, gateway.access_token())
    with request.param(gateway.url, auth, policy=RetryPolicy(attempts=2, base=0.01)) as client:
        yield client.send
    gateway.faults.clear()


@pytest.fixture
def system(gateway):
    return gateway.system


@pytest.fixture
def place(gateway, request):
    """A directory of the test's own on the system."""
    folder = gateway.home / f"{request.node.name} é".replace("[", "-").replace("]", "")
    folder.mkdir()
    return folder


def test_a_directory_is_made_listed_and_removed(send, system, place):
    made = send(files.make_directory(system, f"{place}/a/b", parents=True))
    assert made.kind is EntryKind.DIRECTORY
    send(files.make_directory(system, f"{place}/a/b", parents=True))
    (place / "a" / "file").write_bytes(b"12345")
    (place / "a" / ".hidden").touch()
    entries = {entry.name: entry for entry in send(files.listing(system, f"{place}/a"))}
    assert {name: entry.kind for name, entry in entries.items()} == {
        "b": EntryKind.DIRECTORY,
        "file": EntryKind.FILE,
    }
    assert entries["file"].size == 5
    assert ".hidden" in {entry.name for entry in send(files.listing(system, f"{place}/a", hidden=True))}
    assert len(send(files.listing(system, f"{place}", recursive=True))) >= 3
    send(files.remove(system, f"{place}/a"))
    assert not (place / "a").exists()


def test_what_is_there_already_is_refused_and_what_is_gone_may_be_fine(send, system, place):
    send(files.make_directory(system, f"{place}/a"))
    with pytest.raises(BadRequestError):
        send(files.make_directory(system, f"{place}/a"))
    send(files.remove(system, f"{place}/gone", missing_ok=True))
    with pytest.raises(NotFoundError):
        send(files.remove(system, f"{place}/gone"))
    with pytest.raises(NotFoundError, match="System not found"):
        send(files.remove("nowhere", f"{place}/gone", missing_ok=True))


def test_a_file_is_looked_at(send, system, place):
    path = place / "data.txt"
    path.write_text("one\ntwo\nthree\n")
    path.chmod(0o640)
    (place / "link").symlink_to(path)
    stat = send(files.stat(system, f"{path}"))
    assert (stat.size, stat.mode & 0o777, stat.uid, stat.is_file) == (14, 0o640, os.getuid(), True)
    assert stat.modified == int(path.stat().st_mtime)
    assert send(files.stat(system, f"{place}/link")).is_link
    assert send(files.stat(system, f"{place}/link", dereference=True)).size == 14
    assert send(files.stat(system, f"{place}")).is_directory
    assert send(files.checksum(system, f"{path}")) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "text" in send(files.file_type(system, f"{path}"))
    assert send(files.head(system, f"{path}", lines=1)).strip() == "one"
    assert send(files.head(system, f"{path}", size=2)).strip() == "on"
    assert send(files.tail(system, f"{path}", lines=1)).strip() == "three"
    assert send(files.tail(system, f"{path}", size=4)).strip() == "ree"
    assert send(files.view(system, f"{path}", offset=4, size=3)) == "two"


def test_a_file_is_changed(send, system, place):
    path = place / "data"
    path.touch()
    assert send(files.change_mode(system, f"{path}", 0o600)).permissions == "rw-------"
    assert path.stat().st_mode & 0o777 == 0o600
    send(files.link(system, f"{path}", f"{place}/link"))
    assert (place / "link").resolve() == path.resolve()


@pytest.mark.parametrize("size", [0, 1, 1000, (LIMIT - 1) // 4 * 3])
def test_a_small_file_goes_up_and_comes_down_unchanged(send, system, place, size):
    content = os.urandom(size)
    send(files.upload(system, f"{place}", "up.bin", content))
    assert (place / "up.bin").read_bytes() == content
    assert send(files.download(system, f"{place}/up.bin")) == content


def test_a_file_above_the_limit_is_refused_in_both_directions(send, system, place):
    send(files.upload(system, f"{place}", "limit", b"x" * LIMIT))
    with pytest.raises(TooLargeError):
        send(files.upload(system, f"{place}", "more", b"x" * (LIMIT + 1)))
    with pytest.raises(TooLargeError):
        send(files.download(system, f"{place}/limit"))


def test_a_tree_is_packed_and_unpacked(send, system, place):
    (place / "tree" / "deep").mkdir(parents=True)
    (place / "tree" / "deep" / "file").write_text("here")
    send(files.compress(system, f"{place}/tree", f"{place}/tree.tar.gz"))
    (place / "out").mkdir()
    send(files.extract(system, f"{place}/tree.tar.gz", f"{place}/out"))
    assert (place / "out" / "tree" / "deep" / "file").read_text() == "here"


@pytest.mark.parametrize("call", [files.stat, files.checksum, files.download, files.tail, files.listing])
def test_a_file_that_is_not_there_is_not_found(send, system, place, call):
    with pytest.raises(NotFoundError):
        send(call(system, f"{place}/gone"))


def test_a_directory_is_no_file(send, system, place):
    with pytest.raises(RejectedError):
        send(files.download(system, f"{place}"))


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is forbidden to root")
def test_what_the_user_may_not_is_denied(send, system, place):
    place.chmod(0)
    try:
        with pytest.raises(AccessDeniedError):
            send(files.listing(system, f"{place}"))
    finally:
        place.chmod(0o700)


def test_a_path_outside_the_file_systems_is_refused(send, system):
    with pytest.raises(BadRequestError):
        send(files.stat(system, "/etc/passwd"))


# --- transfers that are jobs ------------------------------------------------------------------------------


@pytest.fixture
def done(send, system):
    def done(call):
        job = send(call)
        assert job.system == system
        job_when(send, system, job.job_id)
        return send(files.tail(system, job.output_log, lines=5))

    return done


def test_files_are_copied_moved_packed_unpacked_and_removed_by_jobs(done, system, place):
    (place / "a").mkdir()
    (place / "a" / "file").write_text("here")
    assert "successfully copied" in done(transfers.copy(system, f"{place}/a", f"{place}/b"))
    assert "successfully moved" in done(transfers.move(system, f"{place}/b", f"{place}/c"))
    assert (place / "c" / "file").read_text() == "here"
    assert not (place / "b").exists()
    assert "successfully compressed" in done(transfers.compress(system, f"{place}/c", f"{place}/c.tar.gz"))
    with tarfile.open(place / "c.tar.gz") as archive:
        assert any(name.endswith("file") for name in archive.getnames())
    (place / "d").mkdir()
    assert "successfully extracted" in done(transfers.extract(system, f"{place}/c.tar.gz", f"{place}/d"))
    assert (place / "d" / "c" / "file").read_text() == "here"
    assert "successfully deleted" in done(transfers.remove(system, f"{place}/d"))
    assert not (place / "d").exists()


def test_a_plan_has_a_url_for_each_part(send, system, place, gateway):
    plan = send(transfers.start_upload(system, f"{place}/up", 2 * LIMIT + 1))
    assert (len(plan.part_urls), plan.part_size) == (3, LIMIT)
    assert all(url.startswith(gateway.storage_url) for url in (*plan.part_urls, plan.complete_url))
    assert send(jobs.cancel(system, plan.job.job_id)) is True


def test_a_download_of_what_is_not_there_starts_no_job(send, system, gateway):
    with pytest.raises(NotFoundError):
        send(transfers.start_download(system, f"{gateway.home}/gone"))
