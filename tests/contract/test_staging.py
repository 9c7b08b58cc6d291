"""Whole files to the embedded gateway and back: small, staged, spoiled, abandoned; and who sees what."""

import itertools
import logging
import os
import traceback
from dataclasses import replace

import pytest
from schedulers import scheduler_of
from transfers import KIB, POLICY, digest

from airflow_hpc_provider.client.errors import (
    ApiError,
    HpcError,
    InvalidInputError,
    NotFoundError,
    TransferError,
)
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.client.staging import Moved, Pace, download_file, upload_file
from airflow_hpc_provider.client.storage import Storage

LIMIT = 64 * KIB
PART = 20_000
DOWN = (LIMIT - 1) // 4 * 3
LARGE = 5 * PART + 1
S3_ERROR = "<Error><Code>{}</Code><Message>Not this time</Message></Error>"
numbers = itertools.count()


@pytest.fixture
def gateway(narrow):
    return narrow


@pytest.fixture(autouse=True)
def no_secret_escapes(gateway, caplog):
    """No test of these lets a presigned URL into any log, or the gateway's token to the storage."""
    caplog.set_level(logging.DEBUG)
    gateway.requests.clear()
    yield
    gateway.faults.clear()
    assert gateway.leaked_tokens == 0
    for record in (*caplog.get_records("setup"), *caplog.get_records("call")):
        if record.name.startswith("uvicorn"):  # the gateway's own log
            continue
        text = record.getMessage() + (record.exc_text or "")
        assert "X-Amz-Signature" not in text, record.name
        assert "eyJ" not in text, record.name


@pytest.fixture
def there(gateway):
    """A directory of the test's own on the system."""
    folder = gateway.home / f"test-{next(numbers)}"
    folder.mkdir()
    return folder


@pytest.fixture
def here(tmp_path):
    """A directory of the test's own on this machine, which nothing may litter."""
    yield tmp_path
    assert [path for path in tmp_path.rglob("*") if path.name.endswith(".part")] == []


@pytest.fixture
def upload(client, system, here, there, wait):
    def upload(content, target=None, **given):
        source = here / "source.bin"
        source.write_bytes(content)
        target = target or f"{there}/target.bin"
        return upload_file(
            client,
            given.pop("system", system),
            source,
            target,
            **{"wait": wait, "pace": Pace(policy=POLICY, patience=0)} | given,
        )

    return upload


@pytest.fixture
def download(client, system, here, there, wait):
    def download(content, source="source.bin", **given):
        (there / source).write_bytes(content)
        return download_file(
            client,
            given.pop("system", system),
            f"{there}/{source}",
            here / "down" / "target.bin",
            **{"wait": wait, "pace": Pace(policy=POLICY, patience=0)} | given,
        )

    (here / "down").mkdir()
    return download


def some(size):
    return os.urandom(size)


def transfer_jobs(gateway):
    """States of the jobs that move data."""
    names = ("IngressFileTransfer", "OutgressFileTransfer")
    records = scheduler_of(gateway).records()
    return {record.base_id: record.state for record in records if record.name in names}


@pytest.fixture
def new_jobs(gateway):
    """States of the transfer jobs of this test alone."""
    before = transfer_jobs(gateway).keys()
    return lambda: [state for job_id, state in transfer_jobs(gateway).items() if job_id not in before]


# --- up ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, LIMIT - 1, LIMIT])
def test_a_small_file_goes_up_in_one_request(upload, there, gateway, new_jobs, size):
    content = some(size)
    assert upload(content) == Moved(
        path=f"{there}/target.bin", size=size, sha256=digest(content), staged=False, verified="size"
    )
    assert (there / "target.bin").read_bytes() == content
    assert new_jobs() == []


@pytest.mark.parametrize("size", [LIMIT + 1, 4 * PART, LARGE])
def test_a_large_file_goes_up_in_parts_and_is_verified(upload, there, gateway, new_jobs, size):
    content = some(size)
    assert upload(content) == Moved(
        path=f"{there}/target.bin", size=size, sha256=digest(content), staged=True, verified="sha256"
    )
    assert (there / "target.bin").read_bytes() == content
    assert gateway.requests.count("put_part") == -(-size // PART)
    assert new_jobs() == ["COMPLETED"]


PASSING = {
    "500": lambda faults, on: faults.respond(500, S3_ERROR.format("InternalError"), on=on),
    "503": lambda faults, on: faults.respond(503, S3_ERROR.format("SlowDown"), on=on, times=2),
    "a page": lambda faults, on: faults.bad_gateway(on=on),
    "cut": lambda faults, on: faults.cut(on=on),
    "reset": lambda faults, on: faults.cut(on=on, reset=True),
    "lost answer": lambda faults, on: faults.lose_answer(on=on),
    "lost answer of the third": lambda faults, on: faults.lose_answer(on=on, skip=2),
}


@pytest.mark.parametrize("spoil", [*PASSING.values()], ids=[*PASSING])
def test_a_part_that_fails_once_is_sent_again(upload, there, gateway, spoil):
    spoil(gateway.faults, "put_part")
    content = some(LARGE)
    assert upload(content).sha256 == digest(content)
    assert (there / "target.bin").read_bytes() == content
    assert gateway.requests.count("put_part") > 6


@pytest.mark.parametrize("spoil", [*PASSING.values()][:-1], ids=[*PASSING][:-1])
def test_parts_are_joined_in_spite_of_trouble(upload, there, gateway, spoil):
    spoil(gateway.faults, "complete_object")
    content = some(LARGE)
    assert upload(content).sha256 == digest(content)


def test_an_upload_the_storage_never_knew_is_not_taken_for_joined(upload, gateway):
    gateway.faults.respond(404, S3_ERROR.format("NoSuchUpload"), on="complete_object")
    with pytest.raises(TransferError, match="NoSuchUpload"):
        upload(some(LARGE))


def test_an_error_inside_of_a_200_is_none_the_less_one(upload, gateway):
    gateway.faults.respond(200, S3_ERROR.format("InternalError"), on="complete_object")
    assert upload(some(LARGE)).staged
    assert gateway.requests.count("complete_object") == 2


def test_a_part_without_a_tag_is_sent_again_and_then_given_up(upload, gateway):
    gateway.faults.respond(200, {}, on="put_part")
    assert upload(some(LARGE)).staged
    gateway.faults.respond(200, {}, on="put_part", times=None)
    with pytest.raises(TransferError, match=r"part \d of 6 of source\.bin: the storage gave no tag"):
        upload(some(LARGE))


SPOILED = {
    "403 of a part": lambda faults: faults.respond(
        403, S3_ERROR.format("AccessDenied"), on="put_part", skip=2
    ),
    "500 of a part": lambda faults: faults.respond(500, "<html>no</html>", on="put_part", times=None),
    "part cut": lambda faults: faults.cut(on="put_part", times=None),
    "part reset": lambda faults: faults.cut(on="put_part", times=None, reset=True),
    "403 of the whole": lambda faults: faults.respond(403, "", on="complete_object"),
    "error in 200": lambda faults: faults.respond(
        200, S3_ERROR.format("X"), on="complete_object", times=None
    ),
    "joined cut": lambda faults: faults.cut(on="complete_object", times=None),
}


@pytest.mark.parametrize("spoil", [*SPOILED.values()], ids=[*SPOILED])
def test_a_storage_that_will_not_take_the_file_fails_the_upload_and_its_job_is_cancelled(
    upload, there, gateway, new_jobs, spoil
):
    spoil(gateway.faults)
    with pytest.raises(TransferError, match=r"Could not (upload part|join)") as caught:
        upload(some(LARGE))
    assert "X-Amz" not in "".join(traceback.format_exception(caught.value))
    assert not (there / "target.bin").exists()
    assert [state.split()[0] for state in new_jobs()] == ["CANCELLED"]


def test_a_refusal_of_the_storage_is_not_asked_for_again(upload, gateway):
    gateway.faults.respond(403, S3_ERROR.format("AccessDenied"), on="put_part", times=None)
    with pytest.raises(TransferError, match=r"HTTP 403: AccessDenied: Not this time") as caught:
        upload(some(LARGE))
    assert not caught.value.transient
    asked = [entry.query for entry in gateway.requests.of("put_part")]
    assert len(asked) == len(set(asked)) <= 6


def test_a_storage_that_echoes_the_request_tells_no_secret(upload, gateway, caplog):
    gateway.faults.respond(403, "Cannot PUT /b/k?partNumber=1&X-Amz-Signature=5ec2e7", on="put_part")
    with pytest.raises(TransferError, match=r"Cannot PUT /b/k\?partNumber=1") as caught:
        upload(some(LARGE))
    assert "5ec2e7" not in "".join(traceback.format_exception(caught.value)) + caplog.text


def test_a_transfer_job_that_fails_is_told_with_its_log(upload, there, gateway):
    gateway.faults.respond(500, on="get_object", times=None)
    with pytest.raises(
        TransferError, match=r"(?s)ended FAILED \(exit code 1\).*Download failed: part 1"
    ) as caught:
        upload(some(LARGE))
    assert not caught.value.transient


def test_a_transfer_job_whose_node_fails_may_be_tried_again(upload, gateway, wait):
    def lost(job_id):
        gateway.scheduler.end(job_id, "NODE_FAIL")
        return wait(job_id)

    gateway.faults.respond(404, on="head_object", times=None)
    gateway.faults.respond(404, on="tail", times=None)
    with pytest.raises(TransferError, match=r"ended NODE_FAIL. Its log ends: nothing") as caught:
        upload(some(LARGE), wait=lost)
    assert caught.value.transient


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: b"x" + content[1:], "has sha256"),
        (lambda content: content[1:], f"has {LARGE - 1} bytes, here"),
    ],
    ids=["other bytes", "too few"],
)
def test_what_a_job_wrote_wrongly_is_found_out(upload, there, wait, change, problem):
    content = b"y" * LARGE

    def spoiled(job_id):
        job = wait(job_id)
        (there / "target.bin").write_bytes(change(content))
        return job

    with pytest.raises(TransferError, match=problem):
        upload(content, wait=spoiled)


def test_a_job_that_ends_well_without_writing_anything_is_found_out(upload, there, wait):
    def nothing_written(job_id):
        job = wait(job_id)
        (there / "target.bin").unlink()
        return job

    with pytest.raises(NotFoundError):
        upload(some(LARGE), wait=nothing_written)


def test_a_file_too_large_for_a_checksum_in_time_is_verified_by_its_size(upload, gateway, caplog):
    gateway.faults.respond(408, on="checksum", times=None)
    assert upload(some(LARGE)).verified == "size"
    assert "only the size was compared" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_abandoned_upload_cancels_its_job(upload, gateway, new_jobs, error):
    def given_up(_):
        raise error

    gateway.faults.respond(404, on="head_object", times=None)
    with pytest.raises(error):
        upload(some(LARGE), wait=given_up)
    assert [state.split()[0] for state in new_jobs()] == ["CANCELLED"]


def test_an_abandoned_job_that_cannot_be_cancelled_hides_no_error(upload, gateway):
    gateway.faults.respond(403, on="cancel", times=None)
    gateway.faults.respond(403, S3_ERROR.format("AccessDenied"), on="put_part")
    with pytest.raises(TransferError, match="AccessDenied"):
        upload(some(LARGE))


@pytest.mark.parametrize(
    "change", [lambda path: path.write_bytes(b"x"), lambda path: path.write_bytes(some(LARGE + 1))]
)
def test_a_file_that_changes_under_way_is_told(upload, here, monkeypatch, new_jobs, change):
    put = Storage.put

    def changing(self, *where):
        tag = put(self, *where)
        change(here / "source.bin")
        return tag

    monkeypatch.setattr(Storage, "put", changing)
    with pytest.raises(TransferError, match=r"became shorter while|changed while") as caught:
        upload(some(LARGE))
    assert not caught.value.transient
    assert [state.split()[0] for state in new_jobs()] == ["CANCELLED"]


def test_a_storage_of_its_own_pace_can_be_had(here):
    slept = []
    refused = "http://127.0.0.1:9/x?X-Amz-Signature=5ec2e7"
    policy = RetryPolicy(attempts=2, base=4, random=lambda: 0)
    with (
        Storage(policy=policy, sleep=slept.append, timeout=1) as storage,
        pytest.raises(TransferError, match="Could not send it") as caught,
    ):
        storage.put(refused, lambda: iter([b"x"]), 1, "send it")
    assert slept == [2]
    assert "5ec2e7" not in "".join(traceback.format_exception(caught.value))


# --- what is refused before anything moves ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["it's", 'a"b', "a$b", "a`b`", "a;b", "a\nb", "-rf", "a\\b"])
@pytest.mark.parametrize("size", [1, LARGE], ids=["small", "large"])
def test_a_target_the_gateway_would_not_quote_is_refused(upload, there, gateway, name, size):
    with pytest.raises(InvalidInputError) as caught:
        upload(some(size), target=f"{there}/{name}")
    assert caught.value.field == "remote_path"
    assert {entry.operation for entry in gateway.requests} <= {"systems", "head_object"}


@pytest.mark.parametrize("size", [1, LARGE], ids=["small", "large"])
def test_a_target_without_its_directory_is_not_found(upload, there, new_jobs, size):
    with pytest.raises(ApiError, match=r"[Nn]o such file"):
        upload(some(size), target=f"{there}/gone/target.bin")
    assert new_jobs() == []


def test_a_large_file_onto_a_directory_is_refused_before_a_job_starts(upload, there, new_jobs):
    with pytest.raises(InvalidInputError, match="is a directory") as caught:
        upload(some(LARGE), target=f"{there}")
    assert (caught.value.field, new_jobs()) == ("remote_path", [])


def test_a_large_file_may_replace_another(upload, there):
    (there / "target.bin").write_bytes(b"old")
    content = some(LARGE)
    upload(content)
    assert (there / "target.bin").read_bytes() == content


@pytest.mark.parametrize("local", ["gone", "."])
def test_what_is_no_local_file_is_refused(client, system, here, there, wait, local):  # noqa: PLR0917 - fixtures
    with pytest.raises(InvalidInputError, match=r"cannot be read|is a directory") as caught:
        upload_file(client, system, here / local, f"{there}/x", wait=wait)
    assert caught.value.field == "local_path"


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"transfer_method": None}, "remote_path", "has no staging"),
        ({"transfer_method": "wormhole"}, "remote_path", "stages by wormhole, which is not supported"),
        ({"needs_account": True}, "account", "charges staged transfers to an account"),
    ],
)
def test_a_system_that_cannot_stage_is_told_before_a_job_starts(  # noqa: PLR0917 - fixtures
    upload, download, system, new_jobs, changes, field, problem
):
    for move in (upload, download):
        with pytest.raises(InvalidInputError, match=problem) as caught:
            move(some(LARGE), system=replace(system, **changes))
        assert caught.value.field == field
    assert new_jobs() == []
    assert upload(b"small", system=replace(system, **changes)).staged is False


def test_an_account_reaches_the_transfer_job(upload, download, system, gateway):
    needs = replace(system, needs_account=True)
    assert upload(some(LARGE), system=needs, account="users").staged
    assert download(some(LARGE), system=needs, account="users").staged


# --- down -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, DOWN - 1, DOWN])
def test_a_small_file_comes_down_in_one_request(download, here, there, new_jobs, size):
    content = some(size)
    assert download(content) == Moved(
        path=f"{there}/source.bin", size=size, sha256=digest(content), staged=False, verified="size"
    )
    assert (here / "down" / "target.bin").read_bytes() == content
    assert new_jobs() == []


@pytest.mark.parametrize("size", [DOWN + 1, LIMIT, LARGE])
def test_a_large_file_comes_down_through_the_storage_and_is_verified(download, here, there, new_jobs, size):
    content = some(size)
    assert download(content) == Moved(
        path=f"{there}/source.bin", size=size, sha256=digest(content), staged=True, verified="sha256"
    )
    assert (here / "down" / "target.bin").read_bytes() == content
    assert new_jobs() == ["COMPLETED"]


def test_a_downloaded_file_has_the_usual_mode(download, here):
    before = os.umask(0o027)
    try:
        download(b"x")
    finally:
        os.umask(before)
    assert (here / "down" / "target.bin").stat().st_mode & 0o777 == 0o640


def test_a_file_the_gateway_finds_too_large_after_all_is_staged(download, here, gateway):
    gateway.faults.respond(413, on="download")
    assert download(b"small").staged
    assert (here / "down" / "target.bin").read_bytes() == b"small"


@pytest.mark.parametrize(
    "spoil",
    [
        *[PASSING[name] for name in ("500", "503", "a page", "cut", "reset")],
        lambda faults, on: faults.truncate(on=on),
        lambda faults, on: faults.dribble(on=on, chunk=30_000),
    ],
    ids=["500", "503", "a page", "cut", "reset", "truncated", "slow"],
)
def test_a_download_that_breaks_begins_anew(download, here, gateway, spoil):
    spoil(gateway.faults, "get_object")
    content = some(LARGE)
    assert download(content).sha256 == digest(content)
    assert (here / "down" / "target.bin").read_bytes() == content


def spoiled_job(faults):
    faults.respond(500, on="put_part", times=None)


FAILING = {
    "403": lambda faults: faults.respond(403, S3_ERROR.format("AccessDenied"), on="get_object"),
    "404": lambda faults: faults.respond(404, "", on="get_object"),
    "cut for ever": lambda faults: faults.cut(on="get_object", times=None),
    "short for ever": lambda faults: faults.truncate(on="get_object", times=None),
    "the job": spoiled_job,
    "the plan": lambda faults: faults.respond(400, on="transfer_download"),
    "the checksum": lambda faults: faults.respond(200, {"output": {"checksum": "0" * 64}}, on="checksum"),
    "the size": lambda faults: faults.cut(on="stat", skip=1, times=None),
}


@pytest.mark.parametrize("spoil", [*FAILING.values()], ids=[*FAILING])
@pytest.mark.parametrize("old", [None, b"old"], ids=["new", "over another"])
def test_a_download_that_fails_leaves_nothing_behind_and_takes_nothing_away(
    download, here, gateway, spoil, old
):
    target = here / "down" / "target.bin"
    if old:
        target.write_bytes(old)
    spoil(gateway.faults)
    with pytest.raises(HpcError) as caught:
        download(some(LARGE))
    assert "X-Amz" not in "".join(traceback.format_exception(caught.value))
    assert [path.name for path in (here / "down").iterdir()] == (["target.bin"] if old else [])
    if old:
        assert target.read_bytes() == old


def test_a_file_that_changes_after_it_was_staged_is_found_out(download, there, here, wait):
    def changed(job_id):
        job = wait(job_id)
        (there / "source.bin").write_bytes(some(LARGE))
        return job

    with pytest.raises(TransferError, match="has sha256"):
        download(some(LARGE), wait=changed)
    assert [*(here / "down").iterdir()] == []


def test_a_small_file_that_comes_short_is_told(download, here, gateway):
    gateway.faults.respond(200, {}, on="download")
    with pytest.raises(TransferError, match="has 5 bytes, here it has 2"):
        download(b"12345")
    assert [*(here / "down").iterdir()] == []


def test_an_abandoned_download_cancels_its_job_and_leaves_nothing(download, gateway, here, new_jobs):
    gateway.faults.delay(2, on="put_part", times=None)

    def given_up(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(some(LARGE), wait=given_up)
    assert [state.split()[0] for state in new_jobs()] == ["CANCELLED"]
    assert [*(here / "down").iterdir()] == []


@pytest.mark.parametrize("name", ["a b", "a(1)", "a*b", "a#b"])
def test_a_staged_download_refuses_a_name_that_would_need_quotes_and_a_small_one_does_not(
    download, here, gateway, new_jobs, name
):
    with pytest.raises(InvalidInputError) as caught:
        download(some(LARGE), name)
    assert (caught.value.field, new_jobs()) == ("remote_path", [])
    assert download(b"small", name).size == 5


@pytest.mark.parametrize(
    ("source", "target", "field", "problem"),
    [
        ("it's", "down/x", "remote_path", "single quote"),
        (".", "down/x", "remote_path", "is a directory"),
        ("source.bin", "down", "local_path", "is a directory"),
        ("source.bin", "gone/x", "local_path", "does not exist"),
    ],
)
def test_what_cannot_come_down_is_refused_naming_the_parameter(  # noqa: PLR0917 - fixtures
    client, system, here, there, wait, source, target, field, problem
):
    (here / "down").mkdir()
    (there / "source.bin").touch()
    with pytest.raises(InvalidInputError, match=problem) as caught:
        download_file(client, system, f"{there}/{source}", here / target, wait=wait)
    assert caught.value.field == field


def test_a_file_that_is_not_there_is_not_found(client, system, here, there, wait):
    with pytest.raises(NotFoundError):
        download_file(client, system, f"{there}/gone", here / "x", wait=wait)
    assert [*here.iterdir()] == []


@pytest.mark.parametrize("name", ["x" * 250, "é" * 120])
def test_a_name_as_long_as_it_may_be_is_fine(client, system, here, there, wait, name):  # noqa: PLR0917 - fixtures
    (there / "source.bin").write_bytes(b"x")
    download_file(client, system, f"{there}/source.bin", here / name, wait=wait)
    assert (here / name).read_bytes() == b"x"
