"""pyfirecrest, FirecREST's own client, does its whole job against the embedded gateway."""

import asyncio
import os
import random
import time

import firecrest
import pytest
from firecrest.FirecrestException import (
    FirecrestException,
    TransferJobFailedException,
    UnexpectedStatusException,
)
from live_airflow import until

from airflow_hpc_provider.devgateway import Gateway

# Its way to complete an upload is one that httpx deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
SMALL, LARGE = 300_000, 3_000_000


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with Gateway(tmp_path_factory.mktemp("gateway"), scheduler="local", ingress_poll=0.2) as started:
        yield started


def authorization(gateway, method="client_secret_post"):
    return firecrest.ClientCredentialsAuth(
        gateway.client_id,
        gateway.client_secret,
        gateway.token_url,
        min_token_validity=40,
        client_auth_method=method,
    )


@pytest.fixture
def client(gateway):
    client = firecrest.v2.Firecrest(gateway.url, authorization(gateway))
    yield client
    client.close_session()


@pytest.fixture
def place(gateway, request):
    folder = gateway.home / request.node.name
    folder.mkdir()
    return folder


@pytest.fixture
def naps(monkeypatch):
    """pyfirecrest's waits double from half a second on; the gateway's jobs are quicker than that."""
    nap = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: nap(min(seconds, 0.05)))


def random_bytes(size):
    return random.Random(size).randbytes(size)


def test_it_reads_the_version_and_all_of_status(gateway, client):
    assert client.server_version() == "2.5.7"
    system = client.systems()[0]
    assert system["name"] == gateway.system
    assert client.nodes(gateway.system)[0]["cpus"] >= 64
    assert [p["name"] for p in client.partitions(gateway.system)] == ["normal", "debug"]
    assert client.reservations(gateway.system) == []
    assert client.userinfo(gateway.system)["user"]["name"] == gateway.user


def test_it_authenticates_by_basic_too(gateway):
    client = firecrest.v2.Firecrest(gateway.url, authorization(gateway, "client_secret_basic"))
    assert client.systems()
    client.close_session()


def test_it_submits_waits_and_reads_the_job(gateway, client, place, naps):
    script = "#!/bin/bash\n#SBATCH --job-name=hello\necho hello $NAME; sleep 0.2\n"
    job_id = client.submit(gateway.system, str(place), script_str=script, env_vars={"NAME": "world"})["jobId"]
    job = client.wait_for_job(gateway.system, job_id, timeout=20)[0]
    assert (job["status"]["state"], job["status"]["exitCode"]) == ("COMPLETED", 0)
    # Of a short job Slurm's accounting learns the name late.
    until(lambda: client.job_info(gateway.system, job_id)[0]["name"] == "hello", 15, "the job's name")
    assert job_id in [one["jobId"] for one in client.job_info(gateway.system)]
    metadata = client.job_metadata(gateway.system, job_id)[0]
    assert metadata["script"] == script
    assert client.view(gateway.system, metadata["standardOutput"]) == "hello world\n"


def test_it_submits_scripts_from_both_sides(gateway, client, place, tmp_path, naps):
    for kind, folder in (("script_local_path", tmp_path), ("script_remote_path", place)):
        (folder / "job.sh").write_text("#!/bin/sh\nexit 3\n")
        job_id = client.submit(gateway.system, str(place), **{kind: str(folder / "job.sh")})["jobId"]
        job = client.wait_for_job(gateway.system, job_id, timeout=20)[0]
        assert (job["status"]["state"], job["status"]["exitCode"]) == ("FAILED", 3)


def test_it_cancels_and_attaches(gateway, client, place, naps):
    job_id = client.submit(gateway.system, str(place), script_str="#!/bin/sh\nsleep 60\n")["jobId"]
    deadline = time.monotonic() + 10
    while client.job_info(gateway.system, job_id)[0]["status"]["state"] != "RUNNING":
        assert time.monotonic() < deadline
    client.attach_to_job(gateway.system, job_id, f"echo $SLURM_JOB_ID > {place}/attached")
    assert (place / "attached").read_text() == f"{job_id}\n"
    client.cancel_job(gateway.system, job_id)
    assert client.wait_for_job(gateway.system, job_id)[0]["status"]["state"].startswith("CANCELLED by ")


def test_it_is_told_of_jobs_that_are_not_there(gateway, client):
    with pytest.raises(FirecrestException, match="Job not found"):
        client.job_info(gateway.system, "999999")


def test_it_looks_at_files(gateway, client, place):
    text = "".join(f"line {number}\n" for number in range(1, 21))
    (place / "text.txt").write_text(text)
    system, path = gateway.system, str(place / "text.txt")
    assert [line["name"] for line in client.list_files(system, str(place))] == ["text.txt"]
    assert client.stat(system, path)["size"] == len(text)
    assert client.head(system, path, num_lines=1)["content"] == "line 1\n"
    assert client.head(system, path, num_bytes=4)["content"] == "line"
    assert client.head(system, path, num_lines=19, exclude_trailing=True)["content"] == "line 1\n"
    assert client.tail(system, path, num_lines=1)["content"] == "line 20\n"
    assert client.tail(system, path, num_lines=20, exclude_beginning=True)["content"] == "line 20\n"
    assert client.view(system, path) == text
    assert client.checksum(system, path)["algorithm"] == "SHA256"
    assert client.file_type(system, path) == "ASCII text"


def test_it_changes_files(gateway, client, place, naps):
    system = gateway.system
    (place / "a").write_text("a")
    assert client.mkdir(system, str(place / "x/y"), create_parents=True)["type"] == "d"
    assert client.chmod(system, str(place / "a"), "640")["permissions"] == "rw-r-----"
    assert client.chown(system, str(place / "a"), gateway.user, "")["size"] == "1"
    client.symlink(system, str(place / "a"), str(place / "link"))
    assert (place / "link").readlink() == place / "a"
    client.cp(system, str(place / "a"), str(place / "b"), blocking=True)
    client.mv(system, str(place / "b"), str(place / "x/c"), blocking=True)
    assert (place / "x/c").read_text() == "a"
    client.rm(system, str(place / "a"))
    assert not (place / "a").exists()


def test_it_learns_from_the_log_that_a_copy_failed(gateway, client, place, naps):
    with pytest.raises(TransferJobFailedException):
        client.cp(gateway.system, str(place / "nope"), str(place / "copy"), blocking=True)


def test_it_compresses_and_extracts(gateway, client, place, naps):
    (place / "tree/deep").mkdir(parents=True)
    (place / "tree/deep/file").write_text("content")
    client.compress(gateway.system, str(place / "tree"), str(place / "tree.tar.gz"))
    client.mkdir(gateway.system, str(place / "out"))
    client.extract(gateway.system, str(place / "tree.tar.gz"), str(place / "out"))
    assert (place / "out/tree/deep/file").read_text() == "content"


def test_it_falls_back_to_transfer_jobs(gateway, client, place, naps):
    (place / "tree").mkdir()
    (place / "tree/file").write_text("content")
    (place / "out").mkdir()
    archive = str(place / "tree.tar.gz")
    gateway.faults.respond(408, on="compress")
    client.compress(gateway.system, str(place / "tree"), archive)
    gateway.faults.respond(408, on="extract")
    client.extract(gateway.system, archive, str(place / "out"))
    assert (place / "out/tree/file").read_text() == "content"
    gateway.faults.respond(408, on="rm")
    client.rm(gateway.system, str(place / "out"), blocking=True)
    assert not (place / "out").exists()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_it_moves_bytes_up_and_down(gateway, client, place, tmp_path, naps, size):  # noqa: PLR0917 - fixtures
    data = random_bytes(size)
    (tmp_path / "up").write_bytes(data)
    client.upload(gateway.system, tmp_path / "up", str(place), "file.bin", blocking=True)
    assert (place / "file.bin").read_bytes() == data
    client.download(gateway.system, str(place / "file.bin"), tmp_path / "down", blocking=True)
    assert (tmp_path / "down").read_bytes() == data
    assert gateway.leaked_tokens == 0


def test_it_uploads_in_many_parts(tmp_path, naps):
    data = random_bytes(LARGE)
    (tmp_path / "up").write_bytes(data)
    with Gateway(tmp_path, scheduler="local", max_part_size=700_000, ingress_poll=0.1) as gateway:
        client = firecrest.v2.Firecrest(gateway.url, authorization(gateway))
        client.upload(gateway.system, tmp_path / "up", str(gateway.scratch), "file.bin", blocking=True)
        client.download(gateway.system, str(gateway.scratch / "file.bin"), tmp_path / "down", blocking=True)
        client.close_session()
    assert (tmp_path / "down").read_bytes() == data
    # Five parts of the upload, and five of the download's own upload to the storage.
    assert gateway.requests.count("put_part") == 10


def test_it_waits_out_a_rate_limit(gateway, client, naps):
    fault = gateway.faults.rate_limit(1, on="systems", times=2)
    assert client.systems()
    assert fault.hits == 2


def test_it_sees_errors_as_the_server_words_them(gateway, client):
    with pytest.raises(UnexpectedStatusException) as caught:
        client.list_files(gateway.system, "/etc")
    assert caught.value.responses[-1].status_code == 400
    with pytest.raises(FirecrestException, match="System not found"):
        client.nodes("nosuch")


def test_its_async_client_works_too(gateway, place):
    async def job():
        client = firecrest.v2.AsyncFirecrest(gateway.url, authorization(gateway))
        made = await client.submit(gateway.system, str(place), script_str="#!/bin/sh\nhostname\n")
        jobs = await asyncio.gather(*(client.job_info(gateway.system, made["jobId"]) for _ in range(5)))
        ended = await client.wait_for_job(gateway.system, made["jobId"], timeout=30)
        listed = await client.list_files(gateway.system, str(place))
        await client.close_session()
        return jobs, ended, listed

    jobs, ended, listed = asyncio.run(job())
    assert len(jobs) == 5
    assert ended[0]["status"]["state"] == "COMPLETED"
    assert [line["name"] for line in listed] == [f"slurm-{ended[0]['jobId']}.out"]
    assert os.fspath(place)
