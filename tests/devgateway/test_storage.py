"""Staged transfers, and the storage they go through."""

import contextlib
import hashlib
from pathlib import Path

import httpx
import pytest

MIB = 2**20


@pytest.fixture
def small(make_gateway):
    return make_gateway(max_part_size=MIB, ingress_poll=0.1)


@pytest.fixture
def api(small, make_api):
    return make_api(small)


def begin_upload(api, path, size):
    directives = {"transfer_method": "s3", "file_size": size}
    answer = api.post("filesystem/transfer/upload", path=str(path), transfer_directives=directives)
    assert answer.status_code == 201, answer.text
    return answer.json()


def put_parts(directives, data):
    size = directives["maxPartSize"]
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return [
        httpx.put(url, content=part) for url, part in zip(directives["partsUploadUrls"], parts, strict=True)
    ]


def complete(directives, tags):
    parts = "".join(
        f"<Part><ETag>{tag}</ETag><PartNumber>{number}</PartNumber></Part>"
        for number, tag in enumerate(tags, 1)
    )
    body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"
    return httpx.post(directives["completeUploadUrl"], content=body)


def test_an_upload_in_parts_becomes_a_file(small, api):
    data = bytes(range(256)) * 10_000
    target = small.home / "up.bin"
    made = begin_upload(api, target, len(data))
    directives = made["transferDirectives"]
    answers = put_parts(directives, data)
    assert answers[0].headers["etag"] == f'"{hashlib.md5(data[:MIB]).hexdigest()}"'
    ended = complete(directives, [answer.headers["etag"] for answer in answers])
    assert ended.status_code == 200
    assert "CompleteMultipartUploadResult" in ended.text
    job_id = made["transferJob"]["jobId"]
    job = api.wait(job_id)[0]
    assert (job["name"], job["status"]["state"]) == ("IngressFileTransfer", "COMPLETED")
    assert target.read_bytes() == data
    log = api.get("filesystem/ops/view", path=made["transferJob"]["logs"]["outputLog"]).json()["output"]
    assert "File was successfully downloaded" in log


def napping(gateway):
    """Whether a job of this gateway is in its `sleep` between two looks; others have jobs of the same id."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            mine = f"HOME={gateway.home}\0".encode() in (process / "environ").read_bytes()
            if mine and (process / "comm").read_text() == "sleep\n":
                return True
    return False


def test_attaching_ends_the_nap_of_an_upload(make_gateway, make_api):
    gateway = make_gateway(ingress_poll=60)
    api = make_api(gateway)
    made = begin_upload(api, gateway.home / "f", 3)
    job_id = made["transferJob"]["jobId"]
    api.wait(job_id, lambda _: napping(gateway))
    tags = [answer.headers["etag"] for answer in put_parts(made["transferDirectives"], b"abc")]
    complete(made["transferDirectives"], tags)
    kill_nap = "kill $(grep -lzx HOME=$HOME /proc/*/environ 2>&- | xargs -n1 dirname"
    kill_nap += " | while read p; do grep -qx sleep $p/comm && basename $p; done)"
    assert api.put(f"compute/jobs/{job_id}/attach", command=kill_nap).status_code == 204
    assert api.wait(job_id)[0]["status"]["state"] == "COMPLETED"
    assert (gateway.home / "f").read_text() == "abc"


def test_a_download_is_published_by_its_job(small, api):
    data = b"0123456789" * 300_000
    (small.scratch / "down.bin").write_bytes(data)
    directives = {"transferMethod": "s3"}
    path = str(small.scratch / "down.bin")
    made = api.post("filesystem/transfer/download", path=path, transferDirectives=directives)
    url = made.json()["transferDirectives"]["downloadUrl"]
    job = api.wait(made.json()["transferJob"]["jobId"])[0]
    assert (job["name"], job["status"]["state"]) == ("OutgressFileTransfer", "COMPLETED")
    whole = httpx.get(url)
    assert whole.content == data
    tag = whole.headers["etag"]
    part = httpx.get(url, headers={"range": "bytes=10-19", "if-match": tag})
    assert (part.status_code, part.content, part.headers["content-range"]) == (
        206,
        b"0123456789",
        f"bytes 10-19/{len(data)}",
    )
    assert httpx.get(url, headers={"if-match": '"other"'}).status_code == 412
    assert httpx.get(url, headers={"range": f"bytes={len(data)}-"}).status_code == 416


def test_a_download_url_is_empty_before_its_job_ran(make_gateway, make_api):
    gateway = make_gateway(job_cpus=1)
    api = make_api(gateway)
    (gateway.home / "f").write_text("x")
    blocker = api.submit("#!/bin/sh\nsleep 30\n")
    api.wait_for(blocker, "RUNNING")
    directives = {"transferMethod": "s3"}
    made = api.post(
        "filesystem/transfer/download", path=str(gateway.home / "f"), transferDirectives=directives
    )
    assert httpx.get(made.json()["transferDirectives"]["downloadUrl"]).status_code == 404


def test_jobs_reach_the_storage_under_its_near_name(make_gateway, make_api):
    gateway = make_gateway(public_host="gateway.example", ingress_poll=0.1)
    gateway.url = gateway.url.replace("gateway.example", "127.0.0.1")
    api = make_api(gateway)
    made = begin_upload(api, gateway.home / "f", 3)
    urls = [made["transferDirectives"]["partsUploadUrls"][0], made["transferDirectives"]["completeUploadUrl"]]
    # A client elsewhere resolves that name; here it is only what the signature holds.
    headers = {"host": httpx.URL(urls[0]).netloc.decode()}
    part, complete_url = (url.replace("gateway.example", "127.0.0.1") for url in urls)
    tag = httpx.put(part, content=b"abc", headers=headers).headers["etag"]
    body = f"<Part><PartNumber>1</PartNumber><ETag>{tag}</ETag></Part>"
    assert httpx.post(complete_url, content=body, headers=headers).status_code == 200
    assert api.wait(made["transferJob"]["jobId"])[0]["status"]["state"] == "COMPLETED"
    assert (gateway.home / "f").read_text() == "abc"


def test_an_empty_download_fails_its_job(small, api):
    (small.home / "empty").touch()
    directives = {"transferMethod": "s3"}
    made = api.post(
        "filesystem/transfer/download", path=str(small.home / "empty"), transferDirectives=directives
    )
    job = api.wait(made.json()["transferJob"]["jobId"])[0]
    assert (job["status"]["state"], job["status"]["exitCode"]) == ("FAILED", 70)


def test_an_upload_onto_a_directory_fails_its_job(small, api):
    made = begin_upload(api, small.home, 10)
    job = api.wait(made["transferJob"]["jobId"])[0]
    assert (job["status"]["state"], job["status"]["exitCode"]) == ("FAILED", 3)


def test_an_empty_upload_polls_on(small, api):
    made = begin_upload(api, small.home / "empty", 0)
    assert made["transferDirectives"]["partsUploadUrls"] == []
    api.wait_for(made["transferJob"]["jobId"], "RUNNING")
    api.delete(f"compute/jobs/{made['transferJob']['jobId']}")


def test_urls_are_bound_to_their_signature(small, api):
    url = begin_upload(api, small.home / "f", 10)["transferDirectives"]["partsUploadUrls"][0]
    assert httpx.put(url, content=b"x").status_code == 200
    for spoiled in (url.replace("partNumber=1", "partNumber=2"), url[:-1] + ("0" if url[-1] != "0" else "1")):
        answer = httpx.put(spoiled, content=b"x")
        assert (answer.status_code, "SignatureDoesNotMatch" in answer.text) == (403, True)
    assert httpx.get(url).status_code == 403
    assert httpx.put(url.split("?")[0], content=b"x").status_code == 403


def test_urls_expire(make_gateway, make_api):
    gateway = make_gateway(url_lifetime=-1)
    url = begin_upload(make_api(gateway), gateway.home / "f", 10)["transferDirectives"]["partsUploadUrls"][0]
    answer = httpx.put(url, content=b"x")
    assert (answer.status_code, "Request has expired" in answer.text) == (403, True)


def test_urls_expire_on_demand(small, api):
    old = begin_upload(api, small.home / "f", 10)["transferDirectives"]["partsUploadUrls"][0]
    small.faults.expire_storage_urls()
    new = begin_upload(api, small.home / "f", 10)["transferDirectives"]["partsUploadUrls"][0]
    assert [httpx.put(url, content=b"x").status_code for url in (old, new)] == [403, 200]


def test_a_leaked_bearer_is_noticed(small, api):
    url = begin_upload(api, small.home / "f", 10)["transferDirectives"]["partsUploadUrls"][0]
    assert httpx.put(url, content=b"x", headers={"authorization": "Bearer t"}).status_code == 400
    assert small.leaked_tokens == 1


def test_parts_must_be_whole_and_known(small, api):
    directives = begin_upload(api, small.home / "f", 2 * MIB)["transferDirectives"]
    url = directives["partsUploadUrls"][0]
    assert httpx.put(url, content=iter([b"chunked"])).status_code == 411
    assert complete(directives, []).status_code == 400
    tag = httpx.put(url, content=b"x").headers["etag"]
    assert "InvalidPart" in complete(directives, [tag, '"0"']).text
    assert complete(directives, [tag]).status_code == 200
    assert complete(directives, [tag]).status_code == 404


def test_the_account_is_asked_for_where_directives_name_it(make_gateway, make_api):
    gateway = make_gateway(directives=["#SBATCH --account={account}"])
    api = make_api(gateway)
    directives = {"transferMethod": "s3", "fileSize": 3}
    body = {"path": str(gateway.home / "f"), "transferDirectives": directives}
    answer = api.post("filesystem/transfer/upload", **body)
    assert (answer.status_code, answer.json()["message"]) == (
        400,
        "Account parameter is required on this system.",
    )
    made = api.post("filesystem/transfer/upload", **body, account="users").json()
    assert api.jobs(made["transferJob"]["jobId"])[0]["account"] == "users"


def test_a_gateway_without_storage_refuses_staging(make_gateway, make_api):
    gateway = make_gateway(transfer_method=None)
    api = make_api(gateway)
    assert api.http.get("/status/systems").json()["systems"][0]["dataOperation"]["data_transfer"] is None
    s3 = {"transferMethod": "s3"}
    answer = api.post("filesystem/transfer/download", path=str(gateway.home), transferDirectives=s3)
    assert answer.json()["message"] == "Requested transfer method is not available."


@pytest.mark.parametrize(
    ("call", "body", "done"),
    [
        ("cp", {"path": "tree", "targetPath": "copy"}, "copy/it's a file"),
        ("mv", {"path": "tree", "targetPath": "moved"}, "moved/it's a file"),
        ("compress", {"path": "tree", "targetPath": "t.tgz"}, "t.tgz"),
        ("compress", {"path": "tree/it's a file", "targetPath": "p.tgz", "matchPattern": ".*"}, "p.tgz"),
    ],
)
def test_transfer_jobs_do_their_work_whatever_the_names(small, api, call, body, done):
    (small.home / "tree").mkdir()
    (small.home / "tree/it's a file").write_text("x")
    paths = {key: str(small.home / value) if key != "matchPattern" else value for key, value in body.items()}
    made = api.post(f"filesystem/transfer/{call}", **paths).json()["transferJob"]
    assert api.wait(made["jobId"])[0]["status"]["state"] == "COMPLETED"
    assert (small.home / done).exists()
    assert "Files were successfully" in (small.home / made["logs"]["outputLog"]).read_text()


def test_a_transfer_job_that_fails_looks_completed(small, api):
    made = api.delete("filesystem/transfer/rm", path=str(small.home / "nope")).json()["transferJob"]
    job = api.wait(made["jobId"])[0]
    assert (job["name"], job["status"]["state"], job["status"]["exitCode"]) == ("DeleteFiles", "COMPLETED", 0)
    assert "Files were successfully" not in (small.home / made["logs"]["outputLog"]).read_text()
    assert "Unable to delete files exit code:0" in (small.home / made["logs"]["errorLog"]).read_text()
