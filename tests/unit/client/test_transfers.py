"""Staged transfers: what is asked for, how plans are read, and what never becomes visible."""

from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hpc_provider.client import transfers
from airflow_hpc_provider.client.errors import BadAnswerError, InvalidInputError
from airflow_hpc_provider.client.transfers import DownloadPlan, TransferJob, UploadPlan, parts

SECRET = "X-Amz-Signature=5ec2e7"
JOB = {
    "jobId": 42,
    "system": "daint",
    "workingDirectory": "/home/u",
    "logs": {"outputLog": "/home/u/.f7t_1.log", "errorLog": "/home/u/.f7t_2.log"},
}
TOLD = TransferJob(
    job_id="42", system="daint", output_log="/home/u/.f7t_1.log", error_log="/home/u/.f7t_2.log"
)


def upload_answer(count=2, **changes):
    directives = {
        "transferMethod": "s3",
        "partsUploadUrls": [f"https://s3/x?partNumber={number}&{SECRET}" for number in range(count)],
        "completeUploadUrl": f"https://s3/x?uploadId=1&{SECRET}",
        "maxPartSize": 10,
    }
    return {"transferJob": JOB, "transferDirectives": directives | changes}


def download_answer(**changes):
    directives = {"transferMethod": "s3", "downloadUrl": f"https://s3/x?{SECRET}"}
    return {"transferJob": JOB, "transferDirectives": directives | changes}


def ask(call, body):
    return call.read(httpx.Response(201, json=body, request=httpx.Request("POST", "http://gateway")))


@given(st.integers(0, 10_000), st.integers(1, 500))
def test_parts_cover_a_file_without_gap_or_overlap(size, part_size):
    cut = parts(size, part_size)
    assert sum(length for _, length in cut) == size
    assert all(offset + length == following for (offset, length), (following, _) in pairwise(cut))
    assert all(length == part_size for _, length in cut[:-1])
    assert all(0 < length <= part_size for _, length in cut)
    assert [offset for offset, _ in cut[:1]] == ([0] if size else [])


def test_an_upload_is_asked_for_with_its_size():
    call = transfers.start_upload("da/int", "/w//in.nc", 11, account="staff")
    assert (call.method, call.path, call.replayable) == (
        "POST",
        "/filesystem/da%2Fint/transfer/upload",
        False,
    )
    assert call.json == {
        "path": "/w/in.nc",
        "transferDirectives": {"transferMethod": "s3", "fileSize": 11},
        "account": "staff",
    }


def test_the_plan_of_an_upload_is_read():
    plan = ask(transfers.start_upload("daint", "/w/in.nc", 11), upload_answer())
    assert isinstance(plan, UploadPlan)
    assert (plan.job, plan.part_size, len(plan.part_urls)) == (TOLD, 10, 2)
    assert plan.complete_url.endswith(SECRET)


def test_the_plan_of_a_download_is_read():
    call = transfers.start_download("daint", "/w/out.nc")
    assert (call.path, call.json) == (
        "/filesystem/daint/transfer/download",
        {"path": "/w/out.nc", "transferDirectives": {"transferMethod": "s3"}},
    )
    plan = ask(call, download_answer())
    assert isinstance(plan, DownloadPlan)
    assert (plan.job, plan.url) == (TOLD, f"https://s3/x?{SECRET}")


def test_presigned_urls_are_in_no_repr():
    up = ask(transfers.start_upload("daint", "/w/in.nc", 11), upload_answer())
    down = ask(transfers.start_download("daint", "/w/out.nc"), download_answer())
    assert "https" not in f"{up!r} {up} {down!r} {down}"


def test_an_empty_file_is_never_staged():
    with pytest.raises(InvalidInputError, match="empty file"):
        transfers.start_upload("daint", "/w/in.nc", 0)


@pytest.mark.parametrize(
    "answer",
    [
        upload_answer(count=1),
        upload_answer(count=3),
        upload_answer(maxPartSize=None),
        upload_answer(maxPartSize=0),
        upload_answer(partsUploadUrls=None),
        upload_answer() | {"transferJob": {"jobId": 1}},
        upload_answer() | {"transferDirectives": None},
        {},
    ],
)
def test_a_plan_that_does_not_fit_the_file_is_no_plan(answer):
    with pytest.raises(BadAnswerError, match=r"start the upload to /w/in.nc"):
        ask(transfers.start_upload("daint", "/w/in.nc", 11), answer)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (transfers.start_upload("daint", "/w/in.nc", 11), upload_answer(transferMethod="streamer")),
        (transfers.start_download("daint", "/w/out.nc"), download_answer(transferMethod="wormhole")),
        (transfers.start_download("daint", "/w/out.nc"), {"transferJob": JOB, "transferDirectives": {}}),
    ],
)
def test_another_method_of_transfer_is_told(call, answer):
    with pytest.raises(BadAnswerError, match="chose the transfer method"):
        ask(call, answer)


@pytest.mark.parametrize(
    ("call", "method", "path", "sent"),
    [
        (
            transfers.move("daint", "/a", "/b"),
            "POST",
            "/filesystem/daint/transfer/mv",
            {"path": "/a", "targetPath": "/b"},
        ),
        (
            transfers.copy("daint", "/a", "/b", dereference=True, account="staff"),
            "POST",
            "/filesystem/daint/transfer/cp",
            {"path": "/a", "targetPath": "/b", "dereference": True, "account": "staff"},
        ),
        (
            transfers.compress("daint", "/a", "/b.tar.gz"),
            "POST",
            "/filesystem/daint/transfer/compress",
            {"path": "/a", "targetPath": "/b.tar.gz", "dereference": False, "compression": "gzip"},
        ),
        (
            transfers.compress("daint", "/a", "/b.tar", pattern="*.nc", compression="none"),
            "POST",
            "/filesystem/daint/transfer/compress",
            {
                "path": "/a",
                "targetPath": "/b.tar",
                "matchPattern": "*.nc",
                "dereference": False,
                "compression": "none",
            },
        ),
        (
            transfers.extract("daint", "/b.tar.xz", "/a", compression="xz"),
            "POST",
            "/filesystem/daint/transfer/extract",
            {"path": "/b.tar.xz", "targetPath": "/a", "compression": "xz"},
        ),
    ],
    ids=["move", "copy", "compress", "compress some", "extract"],
)
def test_each_job_is_asked_for_in_firecrests_words_and_never_twice(call, method, path, sent):
    assert (call.method, call.path, call.json, call.replayable) == (method, path, sent, False)
    assert ask(call, {"transferJob": JOB}) == TOLD


def test_a_removal_names_its_path_in_the_query():
    call = transfers.remove("daint", "/a b")
    assert (call.method, call.path, call.params) == (
        "DELETE",
        "/filesystem/daint/transfer/rm",
        {"path": "/a b"},
    )
    assert not call.replayable
    assert transfers.remove("daint", "/a", account="staff").params == {"path": "/a", "account": "staff"}
    assert ask(call, {"transferJob": JOB}) == TOLD


BAD = [
    "",
    "relative",
    "~/x",
    "/a/../b",
    "/it's",
    '/a"b',
    "/a$b",
    "/a`b`",
    "/a;b",
    "/a\nb",
    "/a\x00b",
    "/-rf",
    None,
]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "call",
    [
        lambda bad: transfers.start_upload("daint", bad, 1),
        lambda bad: transfers.start_download("daint", bad),
        lambda bad: transfers.move("daint", bad, "/b"),
        lambda bad: transfers.move("daint", "/a", bad),
        lambda bad: transfers.copy("daint", bad, "/b"),
        lambda bad: transfers.copy("daint", "/a", bad),
        lambda bad: transfers.compress("daint", bad, "/b"),
        lambda bad: transfers.compress("daint", "/a", bad),
        lambda bad: transfers.extract("daint", bad, "/b"),
        lambda bad: transfers.extract("daint", "/a", bad),
        lambda bad: transfers.remove("daint", bad),
    ],
    ids=["up", "down", "mv", "mv to", "cp", "cp to", "tar", "tar to", "untar", "untar to", "rm"],
)
def test_a_path_the_gateway_would_not_quote_is_refused_before_anything_is_sent(call, bad):
    with pytest.raises(InvalidInputError) as caught:
        call(bad)
    assert caught.value.field == "remote_path"


@pytest.mark.parametrize("name", ["/a b", "/a(1)", "/a*", "/a[1]", "/a{1,2}", "/a#b", "/a!b"])
def test_a_staged_download_also_refuses_what_only_quotes_would_save(name):
    transfers.start_upload("daint", name, 1)
    with pytest.raises(InvalidInputError):
        transfers.start_download("daint", name)


@pytest.mark.parametrize("pattern", ["it's", "$x", "`x`", 'say "x"', ""])
def test_a_pattern_that_a_shell_would_run_is_refused(pattern):
    with pytest.raises(InvalidInputError) as caught:
        transfers.compress("daint", "/a", "/b", pattern=pattern)
    assert caught.value.field == "pattern"
