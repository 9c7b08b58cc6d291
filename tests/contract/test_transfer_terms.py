"""How files are moved: what stays, what is verified, what a job is told, and what data streams through."""
# ruff: noqa: PLR0917  what a test needs are fixtures

import os
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transfers import KIB, POLICY, digest

from airflow_hpc_provider.client import arrival, jobs, transfers
from airflow_hpc_provider.client.errors import (
    HpcError,
    InvalidInputError,
    TransferError,
    UnavailableError,
)
from airflow_hpc_provider.client.places import BytesSource, LocalSource
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.client.staging import Pace, Terms, download_file, upload_file
from airflow_hpc_provider.client.wake import command
from airflow_hpc_provider.devgateway.directives import Submission

# Each moves files by jobs, which take their time.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_pieces")]

PART = 64 * KIB
SIZE = 10 * PART + 5
PACE = Pace(policy=POLICY, patience=0)


@pytest.fixture
def gateway(narrow):
    return narrow


@pytest.fixture
def move(client, system, wait):
    """Upload bytes or a path to ``target``, or download it; how is told by keywords of ``Terms``."""

    class Move:
        def up(self, source, target, wait=None, **terms):
            if isinstance(source, bytes):
                source = BytesSource("given", source)
            wait = wait or self.wait
            return upload_file(
                client, system, source, str(target), wait=wait, terms=Terms(**terms), pace=PACE
            )

        def down(self, source, target, wait=None, **terms):
            wait = wait or self.wait
            return download_file(
                client, system, str(source), target, wait=wait, terms=Terms(**terms), pace=PACE
            )

    Move.wait = staticmethod(wait)
    return Move()


@pytest.fixture
def target(gateway, tmp_path):
    folder = gateway.home / tmp_path.name
    folder.mkdir()
    return folder / "target.bin"


def active(gateway, name="IngressFileTransfer"):
    return [
        record.base_id
        for record in gateway.scheduler.records()
        if record.name == name and record.state in ("RUNNING", "PENDING")
    ]


# --- what is there already --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, SIZE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("if_exists", "there", "skipped"),
    [
        ("skip", "other", True),
        ("skip", None, False),
        ("verify", "same", True),
        ("verify", "other", False),
        ("verify", "shorter", False),
        ("verify", None, False),
        ("newer", "old", False),
        ("newer", "young", True),
        ("overwrite", "same", False),
    ],
)
def test_what_is_there_already_stays_or_goes(
    move, gateway, target, tmp_path, size, if_exists, there, skipped
):
    content = os.urandom(size)
    before = {"same": content, "other": os.urandom(size), "shorter": content[1:]}.get(there or "", b"else")
    time_ = {"old": 1_000_000_000, "young": time.time() + 3600}.get(there or "", time.time())
    local = tmp_path / "local.bin"
    for here, far in ((local, target), (target, local)):
        here.write_bytes(content)
        far.unlink(missing_ok=True)
        if there:
            far.write_bytes(before)
            os.utime(far, (time_, time_))
        gateway.requests.clear()
        moved = (move.up if here is local else move.down)(here, far, if_exists=if_exists)
        assert moved.skipped is skipped
        assert far.read_bytes() == (before if skipped else content)
        if skipped:
            assert gateway.requests.count("POST .*") == 0
            assert moved.sha256 == (digest(content) if if_exists == "verify" else None)


@pytest.mark.parametrize("size", [100, SIZE], ids=["small", "large"])
def test_what_must_not_be_there_fails_the_transfer_for_good(move, gateway, target, tmp_path, size):
    local = tmp_path / "local.bin"
    local.write_bytes(b"x" * size)
    target.write_bytes(b"y" * size)
    for transfer in (
        lambda: move.up(local, target, if_exists="fail"),
        lambda: move.down(target, local, if_exists="fail"),
    ):
        with pytest.raises(TransferError, match="exists; if_exists='fail'") as caught:
            transfer()
        assert not caught.value.transient
    assert (local.read_bytes(), target.read_bytes()) == (b"x" * size, b"y" * size)


def test_newer_needs_a_time(move, target):
    target.write_bytes(b"x")
    with pytest.raises(InvalidInputError, match="knows when it was changed"):
        move.up(b"y", target, if_exists="newer")


@pytest.mark.parametrize(
    "terms",
    [
        {"verify": "maybe"},
        {"if_exists": "ask"},
        {"connections": 0},
        {"connections": 65},
        {"connections": True},
    ],
)
def test_terms_that_nobody_knows_are_refused(terms):
    with pytest.raises(InvalidInputError, match=next(iter(terms))):
        Terms(**terms)


# --- verified ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, SIZE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("verify", "small", "large"),
    [("auto", "size", "sha256"), ("always", "sha256", "sha256"), ("never", "size", "size")],
)
def test_what_is_compared_is_told(move, gateway, target, tmp_path, size, verify, small, large):
    wanted = small if size == 100 else large
    assert move.up(b"x" * size, target, verify=verify).verified == wanted
    assert move.down(target, tmp_path / "back", verify=verify).verified == wanted
    assert (gateway.requests.count("checksum") == 0) is (wanted == "size")


def test_a_sum_that_takes_too_long_for_the_gateway_is_left_or_computed_by_a_job(
    move, gateway, target, tmp_path, caplog
):
    gateway.faults.respond(408, on="checksum", times=None)
    assert move.up(b"x" * SIZE, target).verified == "size"
    assert gateway.requests.count("checksum") == 1
    assert "only the size was compared: the gateway does not wait" in caplog.text
    assert move.up(b"y" * SIZE, target, verify="always").verified == "sha256"
    assert move.down(target, tmp_path / "back", verify="always").verified == "sha256"
    assert "a job computes the sha256" in caplog.text
    assert [path.name for path in gateway.home.iterdir() if "checksum" in path.name] == []


def test_a_name_that_the_gateway_sums_no_files_of_is_verified_by_its_size(move, gateway, target, caplog):
    gateway.faults.respond(500, {"message": "Invalid output: deadbeef"}, on="checksum", times=None)
    assert move.up(b"x" * SIZE, target).verified == "size"
    assert "only the size was compared" in caplog.text


@pytest.mark.parametrize("status", [500, 408])
@pytest.mark.parametrize("size", [100, SIZE], ids=["small", "large"])
def test_what_cannot_be_known_to_be_the_same_is_moved(move, gateway, target, tmp_path, status, size, caplog):
    gateway.faults.respond(status, {"message": "Invalid output: deadbeef"}, on="checksum", times=None)
    here, content = tmp_path / "here", os.urandom(size)
    here.write_bytes(content)
    target.write_bytes(content)
    assert not move.up(content, target, if_exists="verify").skipped
    assert not move.down(target, here, if_exists="verify").skipped
    assert caplog.text.count("has the same content cannot be known") == 2


def test_a_job_compares_what_is_there_where_all_is_to_be_verified(move, gateway, target, tmp_path):
    gateway.faults.respond(408, on="checksum", times=None)
    here, content = tmp_path / "here", os.urandom(SIZE)
    here.write_bytes(content)
    target.write_bytes(content)
    for moved in (
        move.up(content, target, if_exists="verify", verify="always"),
        move.down(target, here, if_exists="verify", verify="always"),
    ):
        assert (moved.skipped, moved.sha256) == (True, digest(content))
    assert gateway.requests.count("transfer_.*load") == 0
    assert list(gateway.home.glob(".checksum*")) == []


def test_a_checksum_job_that_goes_wrong_leaves_no_file(move, gateway, target):
    def broken(job_id):
        job = move.wait(job_id)
        if gateway.requests.count("submit"):
            raise RuntimeError
        return job

    gateway.faults.respond(408, on="checksum", times=None)
    with pytest.raises(RuntimeError):
        move.up(b"x" * SIZE, target, verify="always", wait=broken)
    assert list(gateway.home.glob(".checksum*")) == []


@pytest.mark.parametrize("before", [None, b"older"], ids=["new", "over another"])
@pytest.mark.parametrize("atomic", [False, True], ids=["", "atomic"])
def test_a_bad_copy_is_removed_and_both_digests_are_told(move, target, before, atomic):
    if before:
        target.write_bytes(before)
    content = os.urandom(SIZE)

    def spoiled(job_id):
        job = move.wait(job_id)
        (written,) = [path for path in target.parent.iterdir() if path.stat().st_size == SIZE]
        written.write_bytes(b"?" * SIZE)
        return job

    with pytest.raises(TransferError) as caught:
        move.up(content, target, wait=spoiled, atomic=atomic)
    assert digest(content) in str(caught.value)
    assert digest(b"?" * SIZE) in str(caught.value)
    kept = {"target.bin": b"older"} if before and atomic else {}
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == kept


def test_a_job_that_fails_leaves_what_was_there_before(move, gateway, target):
    target.write_bytes(b"older")

    def failed(job_id):
        gateway.scheduler.end(job_id, "NODE_FAIL")
        return move.wait(job_id)

    gateway.faults.respond(404, on="head_object", times=None)
    with pytest.raises(TransferError, match="NODE_FAIL"):
        move.up(b"x" * SIZE, target, wait=failed)
    assert target.read_bytes() == b"older"


def test_a_job_that_breaks_amid_the_file_leaves_nothing(move, gateway, target):
    gateway.faults.respond(500, on="get_object", skip=3, times=None)
    with pytest.raises(TransferError, match="Download failed: part 4"):
        move.up(b"x" * SIZE, target)
    assert list(target.parent.iterdir()) == []


def test_a_full_disk_on_the_system_is_found_out(move, target):
    """The job of a real gateway ends well all the same."""

    def full(job_id):
        job = move.wait(job_id)
        os.truncate(target, SIZE // 2)
        return job

    with pytest.raises(TransferError, match=f"has {SIZE // 2} bytes, here it has {SIZE}"):
        move.up(b"x" * SIZE, target, wait=full)
    assert list(target.parent.iterdir()) == []


def test_a_full_disk_here_ends_the_download_at_once_and_leaves_nothing(
    move, target, tmp_path, monkeypatch, caplog
):
    target.write_bytes(os.urandom(SIZE))
    write = os.pwrite

    def full(descriptor, data, offset):
        if offset > SIZE // 2:
            raise OSError(28, "No space left on device")
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(TransferError, match="cannot be written: No space left on device"):
        move.down(target, tmp_path / "back")
    assert "Trying again" not in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_known_before_anything_comes(
    move, gateway, target, tmp_path, monkeypatch
):
    target.write_bytes(os.urandom(SIZE))
    real = os.fstatvfs

    def small(descriptor):
        told = real(descriptor)
        return os.statvfs_result((*told[:4], 1, *told[5:]))

    monkeypatch.setattr(os, "fstatvfs", small)
    with pytest.raises(TransferError, match=r"No room for .*back: 655365 bytes come") as caught:
        move.down(target, tmp_path / "back")
    assert not caught.value.transient
    assert list(tmp_path.iterdir()) == []
    assert [e for e in gateway.requests.of("get_object") if "httpx" in e.headers.get("user-agent", "")] == []


# --- atomic, mode, time -----------------------------------------------------------------------------------


def test_an_atomic_upload_is_seen_when_it_is_whole(move, gateway, target):
    target.write_bytes(b"older")
    seen = []

    def looking(job_id):
        job = move.wait(job_id)
        seen.append(target.read_bytes() == b"older")
        return job

    content = os.urandom(SIZE)
    moved = move.up(content, target, wait=looking, atomic=True)
    assert (moved.path, moved.verified, seen) == (str(target), "sha256", [True, False])
    assert [path.name for path in target.parent.iterdir()] == ["target.bin"]
    assert target.read_bytes() == content


def test_an_atomic_upload_that_cannot_be_moved_says_so_and_leaves_nothing(move, gateway, target):
    """The job that moves ends well all the same."""

    def lost(job_id):
        job = move.wait(job_id)
        if gateway.requests.count("transfer_mv"):
            target.unlink()
        return job

    with pytest.raises(TransferError, match="did not move"):
        move.up(os.urandom(SIZE), target, wait=lost, atomic=True)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("status", [403, 500])
def test_an_atomic_upload_whose_move_is_refused_leaves_nothing(move, gateway, target, status):
    gateway.faults.respond(status, {"message": "permission denied"}, on="transfer_mv", times=None)
    with pytest.raises(HpcError, match="permission denied"):
        move.up(os.urandom(SIZE), target, atomic=True)
    assert list(target.parent.iterdir()) == []


def test_an_atomic_upload_survives_a_lost_answer_to_its_move(move, gateway, target):
    gateway.faults.lose_answer(on="transfer_mv", status=502)
    content = os.urandom(SIZE)
    assert move.up(content, target, atomic=True).verified == "sha256"
    assert [path.name for path in target.parent.iterdir()] == ["target.bin"]
    assert target.read_bytes() == content


@pytest.mark.parametrize("name", ["x" * 255, "x" * 250, "é" * 127, "x" * 249])
def test_a_name_is_as_long_as_the_file_system_lets_it_be(move, gateway, target, tmp_path, name):
    content = os.urandom(SIZE)
    assert move.up(content, target.with_name(name)).verified == "sha256"
    assert [path.name for path in target.parent.iterdir()] == [name]
    assert gateway.requests.count("transfer_mv") == (len(name.encode()) > 249)
    assert move.down(target.with_name(name), tmp_path / "back").sha256 == digest(content)


@pytest.mark.parametrize("size", [100, SIZE], ids=["small", "large"])
def test_mode_and_time_are_kept_when_wanted(move, target, tmp_path, size):
    source = tmp_path / "source"
    source.write_bytes(b"x" * size)
    source.chmod(0o750)
    move.up(source, target, preserve_mode=True)
    assert target.stat().st_mode & 0o777 == 0o750
    os.utime(target, (1_000_000_000, 1_000_000_000))
    move.down(target, tmp_path / "back", preserve_mode=True, preserve_mtime=True)
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "back").stat().st_mtime == 1_000_000_000


# --- what the gateway's jobs leave --------------------------------------------------------------------------


@pytest.fixture
def logs(gateway):
    before = set(gateway.home.glob(".f7t_*"))
    return lambda: [path.name for path in gateway.home.glob(".f7t_*") if path not in before]


@pytest.mark.parametrize("atomic", [False, True], ids=["", "atomic"])
def test_no_log_of_a_transfer_job_stays(move, gateway, target, tmp_path, logs, atomic):
    move.up(os.urandom(SIZE), target, atomic=atomic)
    assert logs() == []
    assert gateway.requests.count("rm") == 2 * (1 + atomic)
    gateway.requests.clear()
    move.down(target, tmp_path / "back")
    assert logs() == []
    assert gateway.requests.count("rm") == 2


def test_the_log_of_a_job_that_failed_goes_when_its_end_has_been_told(move, gateway, target, logs):
    gateway.faults.respond(500, on="get_object", skip=3, times=None)
    with pytest.raises(TransferError, match="Download failed: part 4"):
        move.up(b"x" * SIZE, target)
    assert logs() == []


def test_a_log_that_cannot_be_removed_fails_nothing(move, gateway, target, logs):
    gateway.faults.respond(403, on="rm", times=None)
    assert move.up(b"x" * SIZE, target).verified == "sha256"
    assert len(logs()) == 2


def test_only_what_looks_like_a_log_of_the_gateway_is_removed(client, gateway, target):
    job = transfers.TransferJob(
        job_id="1", system=gateway.system, output_log=str(gateway.home), error_log=f"{target.parent}/mine.log"
    )
    arrival.remove_logs(client, job)
    assert gateway.requests.count("rm") == 0


# --- streams ----------------------------------------------------------------------------------------------


class StreamSource(BytesSource):
    """Reading it twice is dear: what is read is counted."""

    rereadable = False

    def __init__(self, content):
        super().__init__("stream", content)
        self.read = 0

    def read_at(self, offset, length):
        piece = super().read_at(offset, min(length, 10_000))
        self.read += len(piece)
        return piece


class StreamSink:
    """Takes bytes in order only."""

    name = "stream"
    in_order = True
    place = None

    def __init__(self):
        self.content = bytearray()
        self.whole = None
        self.discarded = False
        self._busy = threading.Lock()

    def existing(self):
        return None

    def start(self, size, place=None):
        return False

    def write_at(self, offset, data):
        with self._busy:
            assert offset == len(self.content)
            self.content += data

    def sync(self):
        raise AssertionError("a stream knows no sync")

    def commit(self, *, mode=None, mtime=None):
        self.whole = bytes(self.content)

    def leave(self):
        pass

    def discard(self):
        self.discarded = True


@pytest.mark.parametrize("connections", [1, 4])
def test_a_stream_is_read_once_and_written_in_order(move, gateway, target, connections):
    content = os.urandom(SIZE)
    source = StreamSource(content)
    gateway.faults.delay(0.3, on="get_object", skip=12)
    moved = move.up(source, target, connections=connections)
    assert (moved.sha256, source.read) == (digest(content), SIZE)
    sink = StreamSink()
    got = move.down(target, sink, connections=connections)
    assert sink.whole == content
    assert (got.sha256, got.verified) == (digest(content), "sha256")


def test_a_part_of_a_stream_that_is_sent_again_is_hashed_once(move, gateway, target):
    gateway.faults.lose_answer(on="put_part", skip=3)
    content = os.urandom(SIZE)
    assert move.up(StreamSource(content), target).sha256 == digest(content)


def test_a_stream_that_cannot_be_written_ends_the_download(move, target):
    class Broken(StreamSink):
        def write_at(self, offset, data):
            raise TransferError("the bucket is gone", transient=False)

    target.write_bytes(os.urandom(SIZE))
    sink = Broken()
    with pytest.raises(TransferError, match="the bucket is gone"):
        move.down(target, sink)
    assert sink.discarded


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=3 * PART) | st.integers(0, 4 * PART + 1).map(os.urandom))
def test_any_bytes_go_there_and_back(move, target, tmp_path, content):
    sent = move.up(content, target)
    got = move.down(target, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert sent.sha256 == got.sha256 == digest(content)
    assert sent.staged is (len(content) > 64 * KIB)


# --- many connections -------------------------------------------------------------------------------------


def test_several_connections_carry_it_at_once(move, gateway, target, tmp_path):
    content = os.urandom(SIZE)
    gateway.faults.delay(0.4, on="put_part", times=None)
    begun = time.monotonic()
    move.up(content, target, connections=11)
    assert time.monotonic() - begun < 11 * 0.4
    entries = gateway.requests.of("put_part")
    assert max(entry.at for entry in entries) - min(entry.at for entry in entries) < 0.4 * 5


def test_a_part_that_fails_three_times_works_at_last(client, gateway, system, move, target):
    gateway.faults.respond(500, "", on=r"PUT .*", times=3)
    pace = Pace(policy=RetryPolicy(attempts=6, base=0.01))
    moved = upload_file(client, system, BytesSource("x", b"z" * SIZE), str(target), wait=move.wait, pace=pace)
    assert moved.verified == "sha256"
    assert gateway.requests.count("put_part") == 11 + 3


def test_a_server_that_cuts_at_37_percent_is_gone_on_with(move, gateway, target, tmp_path):
    content = os.urandom(SIZE)
    target.write_bytes(content)
    gateway.faults.truncate(on="get_object", keep=0.37, times=5)
    move.down(target, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    spans = [entry.headers["range"] for entry in gateway.requests.of("get_object")]
    assert len(spans) == len(set(spans)) == 11 + 5


def test_a_server_without_ranges_is_understood(move, gateway, target, tmp_path):
    content = os.urandom(SIZE)
    target.write_bytes(content)
    real = gateway.storage._get

    def whole(request):
        headers = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
        request.scope["headers"] = headers
        request._headers = None
        del request._headers
        return real(request)

    gateway.storage._get = whole
    try:
        move.down(target, tmp_path / "back")
    finally:
        del gateway.storage._get
    assert (tmp_path / "back").read_bytes() == content


def test_another_object_of_the_same_name_is_told(move, gateway, target, tmp_path):
    target.write_bytes(os.urandom(SIZE))
    gateway.faults.respond(412, "", on="get_object", skip=4, times=None)
    with pytest.raises(TransferError, match="the object changed while it was fetched"):
        move.down(target, tmp_path / "back")
    assert list(tmp_path.iterdir()) == []


class Hasty:
    """Four seconds pass between two looks at it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 4.0
        return self.now


@pytest.mark.parametrize("direction", ["Upload", "Download"])
def test_speed_and_percentage_are_told_every_ten_seconds(
    client, gateway, system, move, target, tmp_path, caplog, direction
):
    content, back = os.urandom(SIZE), tmp_path / "back"
    if direction == "Download":
        target.write_bytes(content)
    gateway.faults.delay(0.1, on="put_part" if direction == "Upload" else "get_object", times=None)
    told = []
    pace = Pace(policy=POLICY, clock=Hasty(), told=lambda *moved: told.append(moved))
    options = {"wait": move.wait, "pace": pace, "terms": Terms(connections=1)}
    if direction == "Upload":
        upload_file(client, system, BytesSource("source", content), str(target), **options)
    else:
        download_file(client, system, str(target), back, **options)
    percents = re.findall(rf"{direction} of \S+: (\d+) % \(\d.* of 655 kB\), \d.*B/s, .* left\.", caplog.text)
    assert percents == sorted(percents, key=int)
    ((size, seconds),) = told
    assert 2 <= len(percents) <= seconds / 10
    assert size == SIZE
    assert re.search(rf"{direction} of \S+: 655 kB in {seconds:.1f} s, ", caplog.text)


# --- files that change ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.truncate(path, 10),
        lambda path: os.truncate(path, SIZE + 10),
        lambda path: os.utime(path, (1, 1)),
        lambda path: path.write_bytes(os.urandom(SIZE)),
        lambda path: (path.unlink(missing_ok=True), path.write_bytes(os.urandom(SIZE))),
        lambda path: path.unlink(missing_ok=True),
    ],
    ids=["shrinks", "grows", "touched", "written", "replaced", "removed"],
)
def test_a_file_that_changes_under_way_is_refused_and_leaves_nothing(
    client, gateway, system, move, target, tmp_path, change
):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(SIZE))

    class Changing(LocalSource):
        def read_at(self, offset, length):
            if offset == 5 * PART:
                change(source)
            return super().read_at(offset, length)

    before = {record.base_id for record in gateway.scheduler.records()}
    with pytest.raises(TransferError, match=r"changed while|became shorter|went away") as caught:
        move.up(Changing(source), target)
    assert not caught.value.transient
    assert list(target.parent.iterdir()) == []
    states = {r.state.split()[0] for r in gateway.scheduler.records() if r.base_id not in before}
    assert states == {"CANCELLED"}


def test_a_sparse_file_arrives_with_its_holes_as_zeros(move, target, tmp_path):
    source = tmp_path / "sparse"
    with source.open("wb") as stream:
        stream.seek(SIZE - 1)
        stream.write(b"\0")
    assert move.up(source, target).verified == "sha256"
    assert target.read_bytes() == bytes(SIZE)


# --- lost answers -----------------------------------------------------------------------------------------


def test_a_transfer_whose_answer_was_lost_leaves_no_job_of_it_waiting(move, gateway, target, caplog):
    other = target.with_name("target.bin.other")
    neighbour = gateway.scheduler.submit(
        Submission(
            script=f"#!/bin/bash\nsleep 30 # {other}\n",
            working_directory=str(gateway.home),
            name="IngressFileTransfer",
        )
    )
    try:
        gateway.faults.lose_answer(on="transfer_upload", status=500)
        assert move.up(b"x" * SIZE, target).verified == "sha256"
        assert gateway.requests.count("transfer_upload") == 2
        assert "which waited for the same file, cancelled" in caplog.text
        assert active(gateway) == [neighbour]
    finally:
        gateway.scheduler.cancel(neighbour)


def test_two_jobs_that_it_may_be_are_left_alone(client, gateway, system, target, caplog):
    twins = [
        gateway.scheduler.submit(
            Submission(
                script=f'#!/bin/bash\ntarget_file="{target}"\nsleep 30\n',
                working_directory=str(gateway.home),
                name="IngressFileTransfer",
            )
        )
        for _ in range(2)
    ]
    try:
        gateway.faults.respond(500, on="transfer_upload", times=None)
        call = transfers.start_upload(system.name, str(target), SIZE)
        with pytest.raises(UnavailableError):
            transfers.start_once(client, call, policy=RetryPolicy(attempts=1), sleep=lambda _: None)
        assert "whose they are nobody can tell" in caplog.text
        assert sorted(active(gateway)) == sorted(twins)
    finally:
        for job_id in twins:
            gateway.scheduler.cancel(job_id)


def test_a_list_that_cannot_be_read_hides_no_error(client, gateway, system, target, caplog):
    gateway.faults.respond(500, on="transfer_upload", times=None)
    gateway.faults.respond(403, on="jobs", times=None)
    call = transfers.start_upload(system.name, str(target), SIZE)
    with pytest.raises(UnavailableError):
        transfers.start_once(client, call, policy=RetryPolicy(attempts=1), sleep=lambda _: None)
    assert "cannot be learned" in caplog.text


def test_a_refusal_is_not_asked_for_again(client, gateway, system, target):
    gateway.faults.respond(400, on="transfer_upload", times=None)
    with pytest.raises(HpcError):
        transfers.start_once(client, transfers.start_upload(system.name, str(target), SIZE))
    assert gateway.requests.count("transfer_upload") == 1


# --- awake ------------------------------------------------------------------------------------------------


@pytest.fixture
def drowsy(gateway):
    """The gateway's jobs look once a minute, as in reality."""
    gateway._world.ingress_poll = 60.0
    yield
    gateway._world.ingress_poll = 0.02


def asleep(gateway, job_id):
    """The job's ``sleep`` processes."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            named, told = (process / "comm").read_text(), (process / "environ").read_bytes()
        except OSError:
            continue
        if named == "sleep\n" and f"SLURM_JOB_ID={job_id}".encode() in told.split(b"\0"):
            found.append(process.name)
    return found


def until(ready):
    end = time.monotonic() + 20
    while not (found := ready()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_the_job_of_an_upload_is_woken_and_no_other(gateway, client, move, target, drowsy, caplog):
    other = gateway.scheduler.submit(
        Submission(script="#!/bin/bash\nsleep 50\n", working_directory=str(gateway.home))
    )
    try:
        until(lambda: asleep(gateway, other))
        gateway.faults.delay(1.0, on="put_part", times=1)  # the job looks in vain before the parts are there
        begun = time.monotonic()
        assert move.up(os.urandom(SIZE), target).verified == "sha256"
        assert time.monotonic() - begun < 15
        assert "was told that the object is complete" in caplog.text
        assert asleep(gateway, other)
        assert client.send(jobs.get(gateway.system, other)).state.value == "RUNNING"
    finally:
        gateway.scheduler.cancel(other)


def test_waking_can_be_switched_off(gateway, move, target):
    move.up(b"x" * SIZE, target, wake=False)
    assert gateway.requests.count("attach") == 0


def test_a_job_that_cannot_be_told_wakes_by_itself(gateway, move, target, caplog):
    gateway._world.ingress_poll = 0.5
    gateway.faults.respond(404, on="head_object")
    gateway.faults.respond(403, on="attach", times=None)
    try:
        assert move.up(b"x" * SIZE, target).verified == "sha256"
        assert "it could not be told" in caplog.text
    finally:
        gateway._world.ingress_poll = 0.02


def test_in_rest_mode_nobody_tries(gateway, client, system, move, target, caplog):
    from dataclasses import replace

    rest = replace(system, connection_mode="rest")
    upload_file(client, rest, BytesSource("x", b"x" * SIZE), str(target), wait=move.wait, pace=PACE)
    assert gateway.requests.count("attach") == 0
    assert "cannot be told in REST mode" in caplog.text


def test_the_command_ends_the_naps_of_one_job_only_and_does_no_harm_early_late_or_twice(tmp_path):
    """As the login node's shell and srun would run it."""

    def nap(job_id, name="sleep", job_name="IngressFileTransfer"):
        env = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": job_id, "SLURM_JOB_NAME": job_name}
        return subprocess.Popen([name, "20"], env=env)

    tail = tmp_path / "nosleep"
    tail.symlink_to("/bin/sleep")
    mine, other, longer, odd = nap("417"), nap("4170"), nap("41"), nap("417", str(tail))
    foreign = nap("417", job_name="train")  # of another cluster, on the same machine
    try:
        until(lambda: asleep(None, "417") and asleep(None, "4170") and asleep(None, "41"))
        env = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "417"}
        runs = [subprocess.Popen(["/bin/sh", "-c", command("417")], env=env) for _ in range(2)]
        assert [run.wait(10) for run in runs] == [0, 0]
        assert mine.wait(5) == -15
        assert [process.poll() for process in (other, longer, odd, foreign)] == [None] * 4
        late = subprocess.run(
            ["/bin/sh", "-c", command("417")], env=env, capture_output=True, timeout=10, check=True
        )
        assert (late.stdout, late.stderr) == (b"", b"")
        assert [process.poll() for process in (other, longer, odd, foreign)] == [None] * 4
    finally:
        for process in (mine, other, longer, odd, foreign):
            process.kill()
            process.wait()


@pytest.mark.parametrize("job_id", ["1; reboot", "$(id)", "1'", "", "x"])
def test_what_is_no_job_id_makes_no_command(job_id):
    with pytest.raises(InvalidInputError):
        command(job_id)
