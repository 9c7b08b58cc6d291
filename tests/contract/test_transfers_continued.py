"""Staged transfers that are broken off: what another process goes on with, and what it cleans up."""
# ruff: noqa: PLR0917  what a test needs are fixtures

import base64
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from transfers import KIB, POLICY, DiskKeeper, digest, transfer_jobs

from airflow_hpc_provider.client.checkpoint import Journal
from airflow_hpc_provider.client.errors import (
    HpcError,
    NotFoundError,
    TransferError,
    UnavailableError,
    UnreachableError,
)
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.client.staging import (
    Begun,
    Pace,
    Terms,
    begin_download,
    begin_upload,
    download_file,
    finish_download,
    finish_upload,
    upload_file,
)

# Each moves files by jobs, which take their time.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_pieces")]

PART = 64 * KIB
PARTS = 16
SIZE = PARTS * PART - 7
PACE = Pace(policy=POLICY, patience=0, save_every=0)


class Dead(BaseException):
    """As if the process were no more."""


@pytest.fixture
def gateway(narrow):
    return narrow


@pytest.fixture
def dead():
    def wait(job_id):
        raise Dead(job_id)

    return wait


@pytest.fixture
def keeper(tmp_path):
    return DiskKeeper(tmp_path / "kept")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def target(gateway, tmp_path):
    return gateway.home / f"{tmp_path.name}.bin"


class Unable(RetryPolicy):
    """Lets a transfer die at its first failure."""

    def delay(self, *_, **__):
        raise Dead


DYING = Pace(policy=Unable(), patience=0, save_every=0)
# Of several connections some have parts under way when one dies, so that nobody could count.
ONE = Terms(connections=1)


def left(_):
    return False


def posts(gateway, on="transfer_upload"):
    return gateway.requests.count(on)


# --- up ---------------------------------------------------------------------------------------------------


def break_off(gateway, client, system, source, target, keeper, *, after):
    """Let an upload die when so many of its parts are there."""
    gateway.faults.respond(403, "<Error><Code>No</Code></Error>", on="put_part", skip=after, times=None)

    with pytest.raises(Dead):
        upload_file(
            client,
            system,
            source,
            str(target),
            wait=None,
            keeper=keeper,
            abandon=left,
            pace=DYING,
            terms=ONE,
        )
    gateway.faults.clear()
    gateway.requests.clear()


def test_a_retry_sends_the_missing_parts_alone(gateway, client, system, source, target, keeper, wait, caplog):
    break_off(gateway, client, system, source, target, keeper, after=9)
    moved = upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    assert moved.verified == "sha256"
    assert moved.sha256 == digest(source.read_bytes()) == digest(target.read_bytes())
    assert gateway.requests.count("put_part") == PARTS - 9
    assert posts(gateway) == 0
    assert "9 of 16 parts of source.bin are uploaded" in caplog.text


def test_what_is_written_down_tells_no_secret_and_ends_small(
    gateway, client, system, source, target, keeper, wait
):
    break_off(gateway, client, system, source, target, keeper, after=4)
    assert len(keeper.keys) == 3
    assert "X-Amz" not in keeper.text
    assert "http" not in keeper.text
    upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    (key,) = keeper.keys
    assert keeper.get(key)["about"]["phase"] == "done"


def test_a_retry_of_what_is_done_moves_nothing(gateway, client, system, source, target, keeper, wait):
    first = upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    gateway.requests.clear()
    again = upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    assert again == first
    assert (posts(gateway), gateway.requests.count("put_part")) == (0, 0)
    target.write_bytes(b"touched")
    upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    assert digest(target.read_bytes()) == first.sha256


def test_without_a_key_a_retry_starts_over_and_the_first_job_goes(
    gateway, client, system, source, target, tmp_path, wait
):
    keeper = DiskKeeper(tmp_path / "kept", seals=False)
    break_off(gateway, client, system, source, target, keeper, after=9)
    before = transfer_jobs(gateway, "IngressFileTransfer")
    upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    assert gateway.requests.count("put_part") == PARTS
    after = transfer_jobs(gateway, "IngressFileTransfer")
    waited = [job_id for job_id, state in before.items() if state in ("RUNNING", "PENDING")]
    assert [after[job_id] for job_id in waited] == ["CANCELLED"]
    assert digest(target.read_bytes()) == digest(source.read_bytes())


CHANGES = {
    "the task was cleared": lambda keeper, source: setattr(keeper, "generation", "2"),
    "the source was touched": lambda keeper, source: os.utime(source, (1, 1)),
    "the source has other bytes": lambda keeper, source: source.write_bytes(os.urandom(SIZE)),
    "the key is another one": lambda keeper, source: keeper.__init__(_other_key(keeper)),
    "a page is lost": lambda keeper, source: keeper.delete(next(key for key in keeper.keys if "urls" in key)),
    "a page is garbage": lambda keeper, source: keeper.set(
        next(key for key in keeper.keys if "urls" in key), "garbage"
    ),
    "the job is gone": None,
}


def _other_key(keeper):
    (keeper.folder / "key").unlink()
    return keeper.folder


@pytest.mark.parametrize("change", [*CHANGES.values()], ids=[*CHANGES])
def test_what_cannot_be_gone_on_with_starts_over_and_is_cleaned_up(
    gateway, client, system, source, target, keeper, wait, change
):
    break_off(gateway, client, system, source, target, keeper, after=9)
    if change is None:
        for job_id, state in transfer_jobs(gateway, "IngressFileTransfer").items():
            if state in ("RUNNING", "PENDING"):
                gateway.scheduler.cancel(job_id)
    else:
        change(keeper, source)
    upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    assert gateway.requests.count("put_part") == PARTS
    assert digest(target.read_bytes()) == digest(source.read_bytes())
    assert {*transfer_jobs(gateway, "IngressFileTransfer").values()} <= {"CANCELLED", "COMPLETED"}
    assert len(keeper.keys) == 1


@pytest.mark.parametrize(
    "garbled",
    [[], {"about": {"phase": "parts", "begun": 1}}, {"about": {"phase": "intent"}}],
    ids=["list", "no job", "no path"],
)
def test_a_garbled_record_is_no_hindrance(gateway, client, system, source, target, keeper, wait, garbled):
    break_off(gateway, client, system, source, target, keeper, after=2)
    keeper.set(min(keeper.keys, key=len), garbled and {"generation": "1", **garbled})
    upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    assert digest(target.read_bytes()) == digest(source.read_bytes())


def test_a_job_that_has_all_the_parts_is_adopted(gateway, client, system, source, target, keeper, wait, dead):
    with pytest.raises(Dead):
        upload_file(client, system, source, str(target), wait=dead, keeper=keeper, abandon=left, pace=PACE)
    gateway.requests.clear()
    moved = upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    assert (posts(gateway), gateway.requests.count("put_part")) == (0, 0)
    assert moved.sha256 == digest(source.read_bytes()) == digest(target.read_bytes())


def test_nothing_of_an_upload_that_went_wrong_is_taken_for_a_later_one(
    gateway, client, system, source, target, keeper, wait
):
    def spoiled(job_id):
        job = wait(job_id)
        target.write_bytes(b"?" * SIZE)
        return job

    with pytest.raises(TransferError, match="has sha256"):
        upload_file(client, system, source, str(target), wait=spoiled, keeper=keeper, pace=PACE)
    assert keeper.keys == []
    moved = upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    assert moved.sha256 == digest(target.read_bytes())


def test_a_gateway_that_is_away_after_the_job_ended_costs_no_second_upload(
    gateway, client, system, source, target, keeper, wait
):
    def away(job_id):
        job = wait(job_id)
        gateway.faults.cut(on="stat", times=None)
        return job

    with pytest.raises(UnreachableError):
        upload_file(client, system, source, str(target), wait=away, keeper=keeper, pace=PACE)
    gateway.faults.clear()
    gateway.requests.clear()
    assert target.exists()
    moved = upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    assert (moved.verified, posts(gateway)) == ("sha256", 0)


def test_both_halves_may_be_two_processes(gateway, client, system, source, target, keeper, wait, tmp_path):
    begun = begin_upload(client, system, source, str(target), keeper=keeper, pace=PACE)
    ended = wait(begun.job.job_id)
    begun = Begun.from_json(json.loads(json.dumps(begun.to_json())))
    sent = finish_upload(client, system, begun, ended, wait=wait, keeper=keeper)
    assert sent.sha256 == digest(target.read_bytes())
    back = tmp_path / "back.bin"
    begun = begin_download(client, system, str(target), back, keeper=keeper)
    ended = wait(begun.job.job_id)
    assert "X-Amz" not in repr(begun) + json.dumps(begun.to_json())
    begun = Begun.from_json(json.loads(json.dumps(begun.to_json())))
    got = finish_download(client, system, begun, ended, back, wait=wait, keeper=keeper, pace=PACE)
    assert got.sha256 == sent.sha256 == digest(back.read_bytes())
    assert "X-Amz" not in keeper.text


def test_a_download_whose_url_nobody_kept_says_so(gateway, client, system, source, target, wait, tmp_path):
    target.write_bytes(source.read_bytes())
    begun = begin_download(client, system, str(target), tmp_path / "back.bin")
    ended = wait(begun.job.job_id)
    begun = Begun.from_json(begun.to_json())
    with pytest.raises(TransferError, match="is not known any more"):
        finish_download(client, system, begun, ended, tmp_path / "back.bin", wait=wait)
    assert [path.name for path in tmp_path.iterdir()] == ["source.bin"]


# --- what an earlier try left at the target ---------------------------------------------------------------


def die_amid_the_job(gateway, client, system, source, target, keeper, wait, **terms):
    """Let the worker die, and then the job, with half of the file written."""

    def half(job_id):
        wait(job_id)
        raise Dead

    gateway.faults.respond(500, on="get_object", skip=PARTS // 2, times=None)
    options = {"keeper": keeper, "abandon": left, "pace": PACE, "terms": Terms(**terms)}
    with pytest.raises(Dead):
        upload_file(client, system, source, str(target), wait=half, **options)
    gateway.faults.clear()
    assert target.stat().st_size == PARTS // 2 * PART


@pytest.mark.parametrize("if_exists", ["skip", "newer", "fail", "verify", "overwrite"])
def test_half_a_file_of_an_earlier_try_is_not_taken_for_one_that_was_there(
    gateway, client, system, source, target, keeper, wait, if_exists
):
    die_amid_the_job(gateway, client, system, source, target, keeper, wait, if_exists=if_exists)
    terms = Terms(if_exists=if_exists)
    moved = upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE, terms=terms)
    assert (moved.skipped, moved.sha256) == (False, digest(target.read_bytes()))
    assert [path.name for path in target.parent.glob(f"{target.name}*")] == [target.name]


@pytest.mark.parametrize("if_exists", ["skip", "newer", "fail"])
def test_a_job_that_still_writes_is_adopted_whatever_is_to_be_done_with_what_exists(
    gateway, client, system, source, target, keeper, wait, if_exists
):
    def soon(job_id):
        until = time.monotonic() + 15
        while not target.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        raise Dead

    gateway.faults.delay(1.0, on="get_object", skip=PARTS // 2, times=1)
    options = {"keeper": keeper, "pace": PACE, "terms": Terms(if_exists=if_exists)}
    with pytest.raises(Dead):
        upload_file(client, system, source, str(target), wait=soon, abandon=left, **options)
    moved = upload_file(client, system, source, str(target), wait=wait, **options)
    assert (moved.skipped, moved.sha256) == (False, digest(target.read_bytes()))
    assert posts(gateway) == 1


@pytest.mark.parametrize("size", [SIZE, 100], ids=["large", "small"])
def test_a_file_of_this_very_task_does_not_fail_its_retry(
    gateway, client, system, target, keeper, wait, tmp_path, size
):
    source = tmp_path / "mine.bin"
    source.write_bytes(os.urandom(size))
    options = {"wait": wait, "keeper": keeper, "pace": PACE, "terms": Terms(if_exists="fail")}
    first = upload_file(client, system, source, str(target), **options)
    assert upload_file(client, system, source, str(target), **options) == first
    target.write_bytes(b"another's")
    with pytest.raises(TransferError, match="if_exists='fail'"):
        upload_file(client, system, source, str(target), **options)


@pytest.mark.parametrize("size", [SIZE, 100], ids=["large", "small"])
def test_a_download_of_this_very_task_does_not_fail_its_retry(
    gateway, client, system, target, keeper, wait, tmp_path, size
):
    target.write_bytes(os.urandom(size))
    back = tmp_path / "back.bin"
    options = {"wait": wait, "keeper": keeper, "pace": PACE, "terms": Terms(if_exists="fail")}
    first = download_file(client, system, str(target), back, **options)
    assert download_file(client, system, str(target), back, **options) == first
    back.write_bytes(b"another's")
    with pytest.raises(TransferError, match="if_exists='fail'"):
        download_file(client, system, str(target), back, **options)


def test_what_others_put_there_since_stays(gateway, client, system, source, target, keeper, wait):
    die_amid_the_job(gateway, client, system, source, target, keeper, wait)
    target.write_bytes(b"by hand")
    os.utime(target, (time.time() + 3600,) * 2)
    options = {"wait": wait, "keeper": keeper, "pace": PACE, "terms": Terms(if_exists="skip")}
    assert upload_file(client, system, source, str(target), **options).skipped
    assert target.read_bytes() == b"by hand"


def die_amid_the_move(gateway, wait):
    """Let the worker die when the job that moves an atomic upload to its place is over."""

    def waiting(job_id):
        job = wait(job_id)
        if gateway.requests.count("transfer_mv"):
            raise Dead
        return job

    return waiting


@pytest.mark.parametrize("before", [None, b"x" * SIZE], ids=["new", "over another"])
def test_an_atomic_upload_that_was_moved_by_a_dead_worker_is_done(
    gateway, client, system, source, target, keeper, wait, before
):
    if before:
        target.write_bytes(before)
    options = {"keeper": keeper, "pace": PACE, "terms": Terms(atomic=True)}
    dying = die_amid_the_move(gateway, wait)
    with pytest.raises(Dead):
        upload_file(client, system, source, str(target), wait=dying, abandon=left, **options)
    assert digest(target.read_bytes()) == digest(source.read_bytes())
    moved = upload_file(client, system, source, str(target), wait=wait, **options)
    assert (moved.verified, moved.sha256) == ("sha256", digest(source.read_bytes()))
    assert (posts(gateway), posts(gateway, "transfer_mv")) == (1, 1)


def test_an_atomic_upload_of_which_nothing_is_left_is_not_taken_for_the_file_before_it(
    gateway, client, system, source, target, keeper, wait
):
    target.write_bytes(b"x" * SIZE)

    def lost(job_id):
        job = wait(job_id)
        (landing,) = target.parent.glob(f".{target.name}.*.part")
        landing.unlink()
        return job

    terms = Terms(atomic=True, verify="never")
    with pytest.raises(NotFoundError):
        upload_file(client, system, source, str(target), wait=lost, keeper=keeper, pace=PACE, terms=terms)
    assert target.read_bytes() == b"x" * SIZE


# --- jobs that nobody would know of -----------------------------------------------------------------------


@pytest.fixture
def waiting(gateway):
    """Jobs of this test that wait for an upload."""
    before = transfer_jobs(gateway, "IngressFileTransfer").keys()
    return lambda: [
        job_id
        for job_id, state in transfer_jobs(gateway, "IngressFileTransfer").items()
        if state in ("RUNNING", "PENDING") and job_id not in before
    ]


def test_a_try_that_was_killed_amid_the_start_of_its_job_leaves_it_to_the_next(
    gateway, client, system, source, target, keeper, wait, monkeypatch, waiting
):
    def killed(client, call):
        client.send(call)
        raise Dead

    monkeypatch.setattr("airflow_hpc_provider.client.transfers.start_once", killed)
    with pytest.raises(Dead):
        upload_file(client, system, source, str(target), wait=wait, keeper=keeper, abandon=left, pace=PACE)
    monkeypatch.undo()
    (orphan,) = waiting()
    upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    assert transfer_jobs(gateway, "IngressFileTransfer")[orphan] == "CANCELLED"
    assert waiting() == []


def test_a_kill_amid_the_start_of_a_job_ends_the_job_too(
    gateway, client, system, source, target, keeper, waiting
):
    class Killed:
        def __getattr__(self, name):
            return getattr(client, name)

        def send(self, call):
            answer = client.send(call)
            if call.method == "POST":
                raise Dead
            return answer

    with pytest.raises(Dead):
        upload_file(Killed(), system, source, str(target), wait=None, keeper=keeper, pace=PACE)
    assert waiting() == []


def test_a_refused_start_leaves_nothing_in_the_books(gateway, client, system, source, target, keeper):
    gateway.faults.respond(400, on="transfer_upload")
    with pytest.raises(HpcError):
        upload_file(client, system, source, str(target), wait=None, keeper=keeper, pace=PACE)
    assert keeper.keys == []


def test_a_try_that_was_killed_before_its_urls_were_kept_leaves_its_job_to_the_next(
    gateway, client, system, source, target, keeper, wait, monkeypatch, waiting
):
    def killed(self, *_):
        raise Dead

    monkeypatch.setattr(Journal, "keep_urls", killed)
    with pytest.raises(Dead):
        upload_file(client, system, source, str(target), wait=wait, keeper=keeper, abandon=left, pace=PACE)
    monkeypatch.undo()
    (orphan,) = waiting()
    upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    assert transfer_jobs(gateway, "IngressFileTransfer")[orphan] == "CANCELLED"


def test_a_gateway_that_cannot_tell_of_the_job_now_costs_nothing(
    gateway, client, system, source, target, keeper, wait
):
    break_off(gateway, client, system, source, target, keeper, after=9)
    gateway.faults.respond(503, on="job", times=None)
    with pytest.raises(UnavailableError):
        upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    assert posts(gateway) == 0
    gateway.faults.clear()
    upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    assert (posts(gateway), gateway.requests.count("put_part")) == (0, PARTS - 9)


def test_a_job_that_the_gateway_will_not_tell_of_is_cancelled(
    gateway, client, system, source, target, keeper, wait, waiting
):
    break_off(gateway, client, system, source, target, keeper, after=9)
    (first,) = waiting()
    gateway.faults.respond(403, on="job")
    upload_file(client, system, source, str(target), wait=wait, keeper=keeper, pace=PACE)
    assert transfer_jobs(gateway, "IngressFileTransfer")[first] == "CANCELLED"
    assert gateway.requests.count("put_part") == PARTS


# --- URLs that expire -------------------------------------------------------------------------------------


def expire_at(gateway, monkeypatch, operation, number):
    """All URLs handed out so far expire when the storage gets request number so and so."""
    check, seen = gateway.storage._check, []

    def counting(request):
        if request.method == operation:
            seen.append(request)
            if len(seen) == number:
                gateway.faults.expire_storage_urls()
        return check(request)

    monkeypatch.setattr(gateway.storage, "_check", counting)


def test_an_upload_whose_urls_expire_gets_new_ones(
    gateway, client, system, source, target, wait, monkeypatch, caplog
):
    expire_at(gateway, monkeypatch, "PUT", 5)
    moved = upload_file(client, system, source, str(target), wait=wait, pace=PACE)
    assert moved.sha256 == digest(target.read_bytes())
    assert posts(gateway) == 2
    assert "it starts over" in caplog.text
    assert "COMPLETED" in transfer_jobs(gateway, "IngressFileTransfer").values()


def test_urls_that_expire_at_once_are_not_asked_for_for_ever(gateway, client, system, source, target, wait):
    text = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
    gateway.faults.respond(403, text, on="put_part", times=None)
    before = transfer_jobs(gateway, "IngressFileTransfer").keys()
    with pytest.raises(TransferError, match="Request has expired") as caught:
        upload_file(client, system, source, str(target), wait=wait, pace=PACE)
    assert caught.value.transient
    assert posts(gateway) == 4
    jobs_now = transfer_jobs(gateway, "IngressFileTransfer")
    assert [jobs_now[job_id] for job_id in jobs_now.keys() - before] == ["CANCELLED"] * 4


def fetched(gateway):
    """Bytes that were asked for."""
    spans = [
        entry.headers["range"].partition("=")[2].split("-")
        for entry in gateway.requests.of("get_object")
        if "range" in entry.headers and entry.headers.get("user-agent", "").startswith("python-httpx")
    ]
    return sum(int(last) - int(first) + 1 for first, last in spans)


def test_a_download_whose_url_expires_goes_on_with_a_new_one(
    gateway, client, system, source, target, wait, monkeypatch, tmp_path
):
    target.write_bytes(source.read_bytes())
    expire_at(gateway, monkeypatch, "GET", 9)
    moved = download_file(client, system, str(target), tmp_path / "back.bin", wait=wait, pace=PACE)
    assert moved.sha256 == digest(source.read_bytes()) == digest((tmp_path / "back.bin").read_bytes())
    assert posts(gateway, "transfer_download") == 2
    assert fetched(gateway) <= SIZE + 5 * PART


def test_a_file_that_changed_before_its_url_was_renewed_is_told(
    gateway, client, system, source, target, wait, monkeypatch, tmp_path
):
    target.write_bytes(source.read_bytes())

    def change_too(job_id):
        job = wait(job_id)
        os.utime(target, (1, 1))
        return job

    expire_at(gateway, monkeypatch, "GET", 9)
    with pytest.raises(TransferError, match="changed while it was downloaded"):
        download_file(client, system, str(target), tmp_path / "back.bin", wait=change_too, pace=PACE)
    assert [path.name for path in tmp_path.iterdir()] == ["source.bin"]


# --- down -------------------------------------------------------------------------------------------------


def break_off_download(gateway, client, system, target, back, keeper, wait, *, after):
    gateway.faults.respond(500, "", on="get_object", skip=after, times=None)

    with pytest.raises(Dead):
        download_file(
            client,
            system,
            str(target),
            back,
            wait=wait,
            keeper=keeper,
            abandon=left,
            pace=DYING,
            terms=ONE,
        )
    gateway.faults.clear()
    gateway.requests.clear()


def test_a_download_goes_on_where_it_broke_off(
    gateway, client, system, source, target, keeper, wait, tmp_path, caplog
):
    target.write_bytes(source.read_bytes())
    back = tmp_path / "back.bin"
    break_off_download(gateway, client, system, target, back, keeper, wait, after=9)
    assert not back.exists()
    moved = download_file(client, system, str(target), back, wait=wait, keeper=keeper, pace=PACE)
    assert moved.sha256 == digest(source.read_bytes()) == digest(back.read_bytes())
    assert fetched(gateway) <= (PARTS - 9) * PART
    assert posts(gateway, "transfer_download") == 0
    assert all("if-match" in entry.headers for entry in gateway.requests.of("get_object"))
    assert "are here already" in caplog.text
    assert keeper.keys == []


def test_a_download_without_a_key_goes_on_after_the_file_was_staged_again(
    gateway, client, system, source, target, wait, tmp_path
):
    keeper = DiskKeeper(tmp_path / "kept", seals=False)
    target.write_bytes(source.read_bytes())
    back = tmp_path / "back.bin"
    break_off_download(gateway, client, system, target, back, keeper, wait, after=9)
    download_file(client, system, str(target), back, wait=wait, keeper=keeper, pace=PACE)
    assert posts(gateway, "transfer_download") == 1
    assert fetched(gateway) <= (PARTS - 9) * PART
    assert digest(back.read_bytes()) == digest(source.read_bytes())


@pytest.mark.parametrize("change", ["cleared", "other file", "part gone", "part elsewhere"])
def test_a_download_that_cannot_go_on_starts_over_and_leaves_nothing(
    gateway, client, system, source, target, keeper, wait, tmp_path, change
):
    target.write_bytes(source.read_bytes())
    back = tmp_path / "back" / "back.bin"
    back.parent.mkdir()
    break_off_download(gateway, client, system, target, back, keeper, wait, after=9)
    (part,) = back.parent.iterdir()
    if change == "cleared":
        keeper.generation = "2"
    elif change == "other file":
        target.write_bytes(os.urandom(SIZE))
        os.utime(target, (1, 1))
    elif change == "part gone":
        part.unlink()
    else:
        (key,) = [key for key in keeper.keys if "urls" not in key]
        written = keeper.get(key)
        written["about"]["place"] = "../../etc/.back.bin.x.part"
        keeper.set(key, written)
        part.unlink()
    moved = download_file(client, system, str(target), back, wait=wait, keeper=keeper, pace=PACE)
    assert moved.sha256 == digest(target.read_bytes()) == digest(back.read_bytes())
    assert [path.name for path in back.parent.iterdir()] == ["back.bin"]
    assert fetched(gateway) == SIZE


def test_an_unfinished_file_of_wrong_bytes_is_found_out(
    gateway, client, system, source, target, keeper, wait, tmp_path
):
    target.write_bytes(source.read_bytes())
    back = tmp_path / "back.bin"
    break_off_download(gateway, client, system, target, back, keeper, wait, after=9)
    (part,) = [path for path in tmp_path.iterdir() if path.suffix == ".part"]
    with part.open("r+b") as stream:
        stream.write(b"spoiled")
    with pytest.raises(TransferError, match="has sha256"):
        download_file(client, system, str(target), back, wait=wait, keeper=keeper, pace=PACE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "source.bin"]


# --- killed -----------------------------------------------------------------------------------------------

WORKER = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from transfers import DiskKeeper
from airflow_hpc_provider.client import jobs, moving, systems
from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.session import Client
from airflow_hpc_provider.client.staging import Pace, download_file, upload_file
moving._SMALLEST = moving._LARGEST = {part}
keeper = DiskKeeper(Path({kept!r}))
with Client({url!r}, AccessToken({url!r}, {token!r})) as client:
    (system,) = client.send(systems.listing())
    def wait(job_id):
        while not (job := client.send(jobs.get(system.name, job_id))).state.final:
            time.sleep(0.02)
        return job
    moved = {move}(client, system, {source}, {target}, wait=wait, keeper=keeper, pace=Pace(save_every=0))
    print(json.dumps({{"sha256": moved.sha256}}), flush=True)
"""


def worker(gateway, keeper, move, source, target):
    text = WORKER.format(
        tests=str(Path(__file__).parent.parent),
        part=PART,
        kept=str(keeper.folder),
        url=gateway.url,
        token=gateway.access_token(),
        move=move,
        source=source,
        target=target,
    )
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)


def kill_when(process, ready):
    until = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def in_the_books(keeper):
    """How many parts are written down."""
    pages = [keeper.get(key) for key in keeper.keys if "_tags_" in key]
    # The first of each page is the job's id.
    return sum(bool(tag) for page in pages for tag in json.loads(zlib.decompress(base64.b64decode(page)))[1:])


def test_the_try_after_a_killed_upload_sends_the_missing_parts_and_one_more_at_most(
    gateway, keeper, source, target
):
    gateway.faults.delay(30, on="put_part", skip=PARTS // 2, times=None)
    there = f"{str(target)!r}"
    first = worker(gateway, keeper, "upload_file", f"Path({str(source)!r})", there)
    done = lambda: [e for e in gateway.requests.of("put_part") if e.status == 200]  # noqa: E731
    # A part is in the books a moment after the storage has it.
    kill_when(first, lambda: len(done()) == PARTS // 2 and in_the_books(keeper) >= PARTS // 2 - 1)
    missing = PARTS - len(done())
    gateway.faults.clear()
    gateway.requests.clear()
    second = worker(gateway, keeper, "upload_file", f"Path({str(source)!r})", there)
    told, _ = second.communicate(timeout=60)
    assert json.loads(told)["sha256"] == digest(source.read_bytes()) == digest(target.read_bytes())
    assert gateway.requests.count("put_part") <= missing + 1
    assert posts(gateway) == 0


def test_the_try_after_a_killed_download_fetches_what_is_missing(gateway, keeper, source, target, tmp_path):
    target.write_bytes(source.read_bytes())
    back = tmp_path / "back.bin"
    gateway.faults.delay(30, on="get_object", skip=PARTS // 2, times=None)
    names = f"{str(target)!r}", f"Path({str(back)!r})"
    first = worker(gateway, keeper, "download_file", *names)

    def half():
        about = [keeper.get(key)["about"] for key in keeper.keys if "urls" not in key]
        there = sum(end - start for start, end in (about[0]["spans"] if about else []))
        return there >= PARTS // 2 * PART

    kill_when(first, half)
    gateway.faults.clear()
    gateway.requests.clear()
    second = worker(gateway, keeper, "download_file", *names)
    told, _ = second.communicate(timeout=60)
    assert json.loads(told)["sha256"] == digest(source.read_bytes()) == digest(back.read_bytes())
    assert fetched(gateway) <= SIZE - PARTS // 2 * PART + PART
    assert [path for path in tmp_path.iterdir() if path.suffix == ".part"] == []


OPERATOR = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from airflow_home import TaskInstance
from transfers import DiskKeeper
from airflow_hpc_provider.operators.files import HpcUploadOperator
context = {{"ti": TaskInstance(task_id="up"), "task_state_store": DiskKeeper(Path({kept!r}))}}
upload = HpcUploadOperator(
    task_id="up", local_path={source!r}, remote_path={target!r}, poll_interval=0.1, deferrable=False
)
print(json.dumps(upload.execute(context)), flush=True)
"""


def task(gateway, keeper, source, target):
    """A process that runs the operator, with a task state store on disk."""
    text = OPERATOR.format(
        tests=str(Path(__file__).parent.parent),
        kept=str(keeper.folder),
        source=str(source),
        target=str(target),
    )
    known = {
        "AIRFLOW_CONN_HPC_DEFAULT": json.dumps(gateway.connection()),
        "AIRFLOW__CORE__FERNET_KEY": (keeper.folder / "key").read_text(),
    }
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", text],
        env=os.environ | known,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_try_after_a_killed_task_sends_the_missing_parts_and_one_more_at_most(
    gateway, keeper, source, target
):
    gateway.faults.delay(60, on="put_part", skip=PARTS // 2, times=None)
    first = task(gateway, keeper, source, target)
    done = lambda: [e for e in gateway.requests.of("put_part") if e.status == 200]  # noqa: E731
    kill_when(first, lambda: len(done()) == PARTS // 2 and in_the_books(keeper) >= PARTS // 2 - 1)
    assert "X-Amz" not in keeper.text
    gateway.faults.clear()
    gateway.requests.clear()
    told, _ = task(gateway, keeper, source, target).communicate(timeout=90)
    result = json.loads(told.splitlines()[-1])
    assert (result["sha256"], result["verified"]) == (digest(source.read_bytes()), "sha256")
    assert gateway.requests.count("put_part") <= PARTS // 2 + 1
    assert posts(gateway) == 0
