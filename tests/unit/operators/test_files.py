"""Staging in and out: the operators against the embedded gateway, directly and through its storage."""

import hashlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.sdk.execution_time.context import OutletEventAccessors
from airflow_home import StateStore, context_of

from airflow_hpc_provider.client import staging
from airflow_hpc_provider.client.errors import (
    AccessDeniedError,
    BadAnswerError,
    BadRequestError,
    HpcError,
    InvalidInputError,
    NotFoundError,
    TransferError,
    WatchError,
)
from airflow_hpc_provider.client.moving import Pace
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator
from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator

KIB = 1024


def upload(local_path: Any, remote_path: Any, **options: Any) -> HpcUploadOperator:
    return HpcUploadOperator(
        task_id="upload", local_path=local_path, remote_path=remote_path, poll_interval=0.1, **options
    )


def download(remote_path: Any, local_path: Any, **options: Any) -> HpcDownloadOperator:
    return HpcDownloadOperator(
        task_id="download", remote_path=remote_path, local_path=local_path, poll_interval=0.1, **options
    )


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def there(connected, request) -> Path:
    """A directory on the cluster for one test."""
    folder = connected.scratch / "files" / hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def local(tmp_path) -> Path:
    """A small local file."""
    path = tmp_path / "input.dat"
    path.write_bytes(b"small\0content\n")
    return path


def changes(gateway) -> list[str]:
    """What was asked of the gateway beyond looking."""
    return [
        f"{entry.method} {entry.path}"
        for entry in gateway.requests
        if entry.method != "GET" and entry.operation != "token"
    ]


def test_the_outlets_are_told_what_was_moved(there, local):
    asset = Asset(f"hpc://embedded{there}/in.dat")
    context = context_of()
    context["outlet_events"] = OutletEventAccessors()
    result = upload(str(local), str(there / "in.dat"), outlets=[asset]).execute(context)
    told = {"system": "embedded", "path": result["remote_path"], "local_path": str(local), "size": 14}
    assert context["outlet_events"][asset].extra == told | {"sha256": sha256(local.read_bytes())}


# --- directly ---


def test_a_small_file_goes_directly(connected, there, local):
    result = upload(str(local), f"{there}/renamed.dat").execute({})
    assert result == {
        "system": "embedded",
        "remote_path": f"{there}/renamed.dat",
        "local_path": str(local),
        "size": 14,
        "sha256": sha256(local.read_bytes()),
        "staged": False,
        "verified": "size",
        "skipped": False,
    }
    assert (there / "renamed.dat").read_bytes() == local.read_bytes()
    assert json.loads(json.dumps(result)) == result


def test_a_small_file_comes_directly(connected, there, tmp_path):
    (there / "result.dat").write_bytes(b"result")
    result = download(f"{there}/result.dat", str(tmp_path / "new" / "folder" / "mine.dat")).execute({})
    assert (result["size"], result["sha256"], result["staged"]) == (6, sha256(b"result"), False)
    assert (tmp_path / "new" / "folder" / "mine.dat").read_bytes() == b"result"


def test_a_trailing_slash_means_into_the_directory(connected, there, local, tmp_path):
    sent = upload(local, f"{there}/").execute({})
    assert sent["remote_path"] == f"{there}/input.dat"
    back = download(sent["remote_path"], f"{tmp_path}/back/").execute({})
    assert back["local_path"] == f"{tmp_path}/back/input.dat"
    assert (tmp_path / "back" / "input.dat").read_bytes() == local.read_bytes()


def test_a_list_goes_into_a_directory_and_gives_a_list(connected, there, tmp_path):
    names = ["a.txt", "b ü.txt"]
    for name in names:
        (tmp_path / name).write_text(name)
    sent = upload([str(tmp_path / name) for name in names], str(there)).execute({})
    assert [item["remote_path"] for item in sent] == [f"{there}/{name}" for name in names]
    back = download([item["remote_path"] for item in sent], tmp_path / "back").execute({})
    assert [Path(item["local_path"]).read_text() for item in back] == names


def test_an_empty_list_moves_nothing(connected, there, tmp_path):
    assert upload([], str(there)).execute({}) == []
    assert download([], str(tmp_path)).execute({}) == []


def test_missing_directories_are_made_when_that_is_wanted(connected, there, local):
    upload(local, f"{there}/a/b/c.dat", make_parents=True).execute({})
    upload([local], f"{there}/d/e", make_parents=True).execute({})
    assert (there / "a/b/c.dat").is_file()
    assert (there / "d/e/input.dat").is_file()


def test_without_it_a_missing_local_directory_is_named(connected, there, tmp_path):
    (there / "x").write_text("x")
    with pytest.raises(InvalidInputError, match=r"local_path: directory .*/no does not exist"):
        download(f"{there}/x", tmp_path / "no" / "x", make_parents=False).execute({})


def test_working_dir_stands_for_the_connections(connected, local, tmp_path):
    sent = upload(local, "{working_dir}/here/in.dat", make_parents=True).execute({})
    assert sent["remote_path"] == f"{connected.home}/here/in.dat"
    back = download("{working_dir}/here/in.dat", tmp_path / "back.dat").execute({})
    assert back["remote_path"] == sent["remote_path"]


def test_a_job_gives_directory_id_and_system(connected, tmp_path):
    script = "#!/bin/bash\necho out\necho result > result.txt\n"
    job = HpcSubmitJobOperator(task_id="run", script=script, deferrable=False, poll_interval=0.1).execute(
        context_of("run")
    )
    got = download(["result.txt", "slurm-{job_id}.out", job["stderr"]], tmp_path, job=job).execute({})
    assert [Path(item["local_path"]).read_text() for item in got] == ["result\n", "out\n", ""]
    assert got[1]["local_path"].endswith(f"/slurm-{job['job_id']}.out")
    assert {item["system"] for item in got} == {"embedded"}


def test_a_download_replaces_an_older_file_only_when_it_is_complete(connected, there, tmp_path):
    target = tmp_path / "target"
    target.write_text("old")
    (there / "new").write_text("new")
    connected.faults.garbage(on="download", times=None)
    with pytest.raises(HpcError):
        _impatient(download(f"{there}/new", target)).execute({})
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    connected.faults.clear()
    download(f"{there}/new", target).execute({})
    assert target.read_text() == "new"


def _impatient(operator):
    """Answers that cannot be read are asked for again for half a minute, which is not the point here."""
    from airflow_hpc_provider.client.retry import RetryPolicy
    from airflow_hpc_provider.hooks.hpc import HpcHook

    class Impatient(HpcHook):
        def client(self, *, policy=None):
            return super().client(policy=policy or RetryPolicy(attempts=2, base=0.01))

    kind = type(operator)
    operator.__class__ = type(kind.__name__, (kind,), {"hook": property(lambda _: Impatient())})
    return operator


# --- staged ---


@pytest.mark.parametrize("size", [64 * KIB + 1, 150_000, 200_000])
def test_a_large_file_is_staged_and_its_sum_compared(small_limits, tmp_path, size):
    content = os.urandom(size)
    source = tmp_path / "large.bin"
    source.write_bytes(content)
    sent = upload(source, "{working_dir}/large.bin").execute({})
    assert (sent["staged"], sent["verified"], sent["sha256"]) == (True, "sha256", sha256(content))
    assert (small_limits.home / "large.bin").read_bytes() == content
    assert small_limits.requests.count("put_part") == -(-size // 50_000)
    back = download("{working_dir}/large.bin", tmp_path / "back.bin").execute({})
    assert (back["staged"], back["verified"]) == (True, "sha256")
    assert (tmp_path / "back.bin").read_bytes() == content
    assert small_limits.leaked_tokens == 0


def test_the_largest_file_that_need_not_be_staged_is_not(small_limits, tmp_path):
    source = tmp_path / "fits.bin"
    source.write_bytes(b"x" * (64 * KIB))
    assert upload(source, "{working_dir}/fits.bin").execute({})["staged"] is False


def test_a_part_that_is_lost_is_sent_again(small_limits, tmp_path):
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(120_000))
    cut = small_limits.faults.cut(on="put_part", times=1)
    busy = small_limits.faults.respond(
        503, "<Error><Code>SlowDown</Code></Error>", on="put_part", times=1, skip=1
    )
    assert upload(source, "{working_dir}/large.bin").execute({})["verified"] == "sha256"
    assert (cut.hits, busy.hits) == (1, 1)


def test_a_transfer_that_breaks_off_leaves_no_job_behind(small_limits, tmp_path):
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(120_000))
    small_limits.faults.respond(403, "<Error><Code>AccessDenied</Code></Error>", on="put_part", times=None)
    with pytest.raises(TransferError, match=r"upload part \d of 3 of large\.bin.*HTTP 403: AccessDenied"):
        upload(source, "{working_dir}/large.bin").execute({})
    states = {record.state.split()[0] for record in small_limits.scheduler.records()}
    assert states == {"CANCELLED"}


@pytest.fixture
def kill_soon():
    """Call an operator's ``on_kill`` as Airflow does: in a signal handler of the thread that works."""
    before = signal.getsignal(signal.SIGUSR1)
    timers: list[threading.Timer] = []

    def kill(operator, after) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: operator.on_kill())

        def when_ready() -> None:
            end = time.monotonic() + 10
            while not after() and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGUSR1)

        timers.append(threading.Timer(0, when_ready))
        timers[-1].start()

    yield kill
    for timer in timers:
        timer.join()
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("during", ["put_part", "job", "complete_object"])
def test_a_kill_ends_an_upload_at_once_and_leaves_no_job(small_limits, tmp_path, kill_soon, during):
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(120_000))
    small_limits.faults.delay(3.0, on=during, times=1)
    operator = upload(source, "{working_dir}/large.bin")
    kill_soon(operator, lambda: small_limits.requests.count(during))
    begun = time.monotonic()
    with pytest.raises(TransferError, match="told to end"):
        operator.execute({})
    assert time.monotonic() - begun < 2.5
    states = {record.state.split()[0] for record in small_limits.scheduler.records()}
    assert states <= {"CANCELLED", *(["COMPLETED"] if during == "job" else [])}


def timed_out(*_):
    raise AirflowTaskTimeout


@pytest.mark.parametrize("how", ["killed", "timed out", "out of patience"])
def test_what_ends_an_upload_while_its_job_writes_leaves_nothing_of_it(
    small_limits, tmp_path, kill_soon, how
):
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(220_000))
    small_limits.faults.delay(10.0, on="get_object", skip=2, times=1)
    operator = _impatient(upload(source, "{working_dir}/large.bin", gateway_patience=0.5))
    folder = small_limits.home
    writing = lambda: (folder / "large.bin").exists() and small_limits.requests.count("get_object") == 3  # noqa: E731
    if how == "out of patience":
        small_limits.faults.respond(503, on="job", skip=2, times=None)
    else:
        kill_soon(operator if how == "killed" else SimpleNamespace(on_kill=timed_out), writing)
    begun = time.monotonic()
    with pytest.raises((TransferError, AirflowTaskTimeout, WatchError)):
        operator.execute({})
    if how != "out of patience":
        assert time.monotonic() - begun < 5
    assert [path.name for path in folder.iterdir() if path.name.startswith("large")] == []
    assert [record.state.split()[0] for record in small_limits.scheduler.records()] == ["CANCELLED"]


@pytest.mark.parametrize("during", ["job", "get_object"])
def test_a_kill_ends_a_download_at_once_and_leaves_nothing(small_limits, tmp_path, kill_soon, during):
    (small_limits.home / "large.bin").write_bytes(os.urandom(120_000))
    small_limits.faults.delay(3.0, on=during, times=1)
    operator = download("{working_dir}/large.bin", tmp_path / "into" / "x")
    kill_soon(operator, lambda: small_limits.requests.count(during))
    begun = time.monotonic()
    with pytest.raises(TransferError, match="told to end"):
        operator.execute({})
    assert time.monotonic() - begun < 2.5
    assert list((tmp_path / "into").iterdir()) == []
    states = {record.state.split()[0] for record in small_limits.scheduler.records()}
    assert states <= {"CANCELLED", "COMPLETED"}


def test_a_kill_ends_the_wait_for_a_storage_that_is_away(small_limits, tmp_path, kill_soon):
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(120_000))
    small_limits.faults.respond(503, "", on="put_part", times=None)
    operator = upload(source, "{working_dir}/large.bin")
    kill_soon(operator, lambda: small_limits.requests.count("put_part") >= 6)
    with pytest.raises(TransferError, match="told to end"):
        operator.execute({})
    assert small_limits.requests.of("put_part")[-1].at > time.time() - 2.5
    assert [record.state.split()[0] for record in small_limits.scheduler.records()] == ["CANCELLED"]


def test_a_kill_before_a_transfer_does_no_harm(local):
    upload(local, "/x").on_kill()


def test_what_a_system_cannot_stage_is_refused_before_anything_is_sent(make_gateway, connect, tmp_path):
    gateway = make_gateway(max_ops_file_size=64 * KIB, transfer_method=None)
    connect(gateway)
    source = tmp_path / "large.bin"
    source.write_bytes(b"x" * 100_000)
    (gateway.home / "large.bin").write_bytes(b"x" * 100_000)
    with pytest.raises(
        InvalidInputError, match=r"large\.bin has 100000 bytes; .* uploads end at 65536 bytes"
    ):
        upload(source, "{working_dir}/large.bin").execute({})
    with pytest.raises(
        InvalidInputError, match=r"large\.bin has 100000 bytes; .* downloads end at 49149 bytes"
    ):
        download("{working_dir}/large.bin", tmp_path / "back.bin").execute({})
    assert changes(gateway) == []
    assert not (tmp_path / "back.bin").exists()


def test_an_account_is_asked_for_where_staging_is_charged(make_gateway, connect, tmp_path):
    gateway = make_gateway(
        max_ops_file_size=64 * KIB, directives=["#SBATCH --account={account}"], ingress_poll=0.1
    )
    source = tmp_path / "large.bin"
    source.write_bytes(b"x" * 100_000)
    connect(gateway, account=None)
    with pytest.raises(InvalidInputError, match="account: "):
        upload(source, "{working_dir}/large.bin").execute({})
    assert changes(gateway) == []
    assert upload(source, "{working_dir}/large.bin", account="users").execute({})["staged"]
    assert {record.account for record in gateway.scheduler.records()} == {"users"}


# --- what is refused before anything is sent ---


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("relative/path", "is relative"),
        ("", "is empty"),
        (None, "NoneType"),
        (7, "int"),
        ("/nul\0byte", "control character"),
        ("/it's", "a single quote"),
        ('/a"b', "a double quote"),
        ("/a$(reboot)", "a dollar sign"),
        ("/a`b`", "a backtick"),
        ("/a\nb", "a line break"),
        ("/a/../b", "climbs"),
        ("~/a", "not expanded"),
        ("/-rf", "starts with '-'"),
        ("/" + "x" * 300, "255"),
        ("{working_dir}/it's/", "a single quote"),
        ("{working_dir}/it's/x", "a single quote"),
        ("{working_dir}/../up", "climbs"),
        ("prefix/{working_dir}", "is relative"),
    ],
)
def test_a_remote_path_that_cannot_be_sent_is_refused_unsent(connected, local, tmp_path, path, words):
    before = len(connected.requests)
    with pytest.raises(InvalidInputError, match=r"^remote_path: ") as refusal:
        upload(local, path).execute({})
    assert words in str(refusal.value)
    with pytest.raises(InvalidInputError, match=r"^remote_path: ") as refusal:
        download(path, tmp_path / "x").execute({})
    assert words in str(refusal.value)
    assert len(connected.requests) == before


def test_one_bad_path_in_a_list_spoils_it_before_anything_moves(connected, there, tmp_path, local):
    (there / "good").write_text("good")
    before = len(connected.requests)
    with pytest.raises(InvalidInputError, match="remote_path"):
        download([f"{there}/good", "bad"], tmp_path / "into").execute({})
    with pytest.raises(InvalidInputError, match="local_path"):
        upload([local, tmp_path / "missing"], str(there)).execute({})
    assert len(connected.requests) == before
    assert not (tmp_path / "into").exists()


def test_two_files_of_one_name_never_replace_each_other(connected, there, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.dat").write_text(folder)
    before = len(connected.requests)
    with pytest.raises(InvalidInputError, match=r"^local_path: holds two files of the name 'same\.dat'"):
        upload([tmp_path / "a" / "same.dat", tmp_path / "b" / "same.dat"], str(there)).execute({})
    with pytest.raises(InvalidInputError, match=r"^remote_path: holds two files of the name 'same\.dat'"):
        download([f"{there}/a/same.dat", f"{there}/b/same.dat"], tmp_path / "into").execute({})
    assert len(connected.requests) == before


@pytest.mark.parametrize("path", ["", None, 7])
def test_a_place_for_a_download_that_is_no_path_is_refused_unsent(connected, there, path):
    before = len(connected.requests)
    with pytest.raises(InvalidInputError, match=r"^local_path: is "):
        download(f"{there}/x", path).execute({})
    assert len(connected.requests) == before


@pytest.mark.parametrize("of", ["missing", "no match", "a pipe", "empty", "none"])
def test_a_local_path_that_is_no_file_is_refused_unsent(connected, there, tmp_path, of):
    os.mkfifo(tmp_path / "pipe")
    paths = {"missing": f"{tmp_path}/missing", "a pipe": tmp_path / "pipe", "empty": "", "none": None}
    path = paths.get(of, f"{tmp_path}/*.none")
    before = len(connected.requests)
    with pytest.raises(InvalidInputError, match=r"^local_path: "):
        upload(path, f"{there}/x").execute({})
    assert len(connected.requests) == before


def test_a_download_onto_a_directory_is_refused(connected, there, tmp_path):
    (there / "x").write_text("x")
    with pytest.raises(InvalidInputError, match=r"^local_path: .* is a directory"):
        download(f"{there}/x", tmp_path).execute({})


@pytest.mark.parametrize(
    ("job", "path", "words"),
    [
        ({}, "out.txt", "that task did not run or returned nothing"),
        ("12", "out.txt", "is not the output of HpcSubmitJobOperator"),
        ({"job_id": "12"}, "out.txt", "is not the output of HpcSubmitJobOperator"),
        ({"job_id": "12_3", "working_directory": "/x"}, "out.txt", "one element of an array"),
        (None, "/x/slurm-{job_id}.out", r"job=submit\.output"),
    ],
)
def test_the_output_of_a_task_that_did_not_run_is_named(connected, tmp_path, job, path, words):
    before = len(connected.requests)
    with pytest.raises(InvalidInputError, match=rf"^job: .*{words}"):
        download(path, tmp_path / "x", job=job).execute({})
    assert len(connected.requests) == before


def test_a_relative_path_needs_a_job(connected, tmp_path):
    with pytest.raises(InvalidInputError, match=r"^remote_path: 'out\.txt' is relative"):
        download("out.txt", tmp_path / "x", job=None).execute({})


def test_an_unknown_system_is_answered_with_those_there_are(connected, local):
    with pytest.raises(InvalidInputError, match=r"no system 'daint'; it has: embedded\."):
        upload(local, "/x", system="daint").execute({})


# --- what the gateway refuses ---


def test_a_target_directory_that_is_missing_is_told_in_the_gateways_words(connected, there, local):
    with pytest.raises(NotFoundError, match=r"(?i)no such file or directory"):
        upload(local, f"{there}/no/x").execute({})


def test_the_same_of_a_large_file_is_told_before_it_is_staged(small_limits, tmp_path):
    source = tmp_path / "large.bin"
    source.write_bytes(b"x" * 100_000)
    with pytest.raises(NotFoundError, match=r"(?i)no such file or directory"):
        upload(source, "{working_dir}/no/x").execute({})
    assert changes(small_limits) == []


def test_a_source_that_is_missing_is_told_in_the_gateways_words(connected, there, tmp_path):
    with pytest.raises(NotFoundError, match=r"(?i)no such file or directory"):
        download(f"{there}/missing", tmp_path / "x").execute({})
    assert not (tmp_path / "x").exists()


def test_a_target_that_is_a_directory_is_refused(small_limits, tmp_path):
    source = tmp_path / "large.bin"
    source.write_bytes(b"x" * 100_000)
    (small_limits.home / "folder").mkdir()
    with pytest.raises(InvalidInputError, match=r"^remote_path: .* is a directory"):
        upload(source, "{working_dir}/folder").execute({})
    assert changes(small_limits) == []


def test_a_path_outside_the_file_systems_is_refused(connected, local, tmp_path):
    with pytest.raises(BadRequestError):
        upload(local, "/no/file/system").execute({})
    with pytest.raises(BadRequestError):
        download("/no/file/system", tmp_path / "x").execute({})


@pytest.mark.parametrize("on", ["upload", "stat"])
def test_a_lack_of_permission_is_told_in_the_gateways_words(connected, there, local, tmp_path, on):
    denied = {"errorType": "error", "message": "x: Permission denied"}
    connected.faults.respond(403, denied, on=on, times=2)
    operator = upload(local, f"{there}/x") if on == "upload" else download(f"{there}/x", tmp_path / "x")
    with pytest.raises(AccessDeniedError, match="Permission denied"):
        operator.execute({})


def test_a_portal_in_place_of_the_gateway_is_recognised(connected, there, local):
    connected.faults.garbage(on="upload", times=None)
    with pytest.raises(BadAnswerError, match=r"web page.*URL of a FirecREST v2 gateway"):
        _impatient(upload(local, f"{there}/x")).execute({})


def test_what_arrives_damaged_is_no_success(small_limits, tmp_path):
    (small_limits.home / "large.bin").write_bytes(b"x" * 100_000)
    small_limits.faults.respond(200, "y" * 100_000, on="get_object", times=None)
    with pytest.raises(TransferError, match="has sha256"):
        download("{working_dir}/large.bin", tmp_path / "x").execute({})
    assert not (tmp_path / "x").exists()


# --- how, and again ---


def test_terms_reach_the_transfer(small_limits, tmp_path):
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(120_000))
    source.chmod(0o750)
    sent = upload(
        source, "{working_dir}/large.bin", verify="never", atomic=True, wake=False, preserve_mode=True
    ).execute({})
    assert sent["verified"] == "size"
    assert small_limits.requests.count("transfer_mv") == 1
    assert small_limits.requests.count("attach") == 0
    there = small_limits.home / "large.bin"
    assert there.stat().st_mode & 0o777 == 0o750
    os.utime(there, (1_000_000_000, 1_000_000_000))
    back = tmp_path / "back.bin"
    download("{working_dir}/large.bin", back, preserve_mode=True, preserve_mtime=True).execute({})
    assert (back.stat().st_mode & 0o777, back.stat().st_mtime) == (0o750, 1_000_000_000)
    again = download("{working_dir}/large.bin", back, if_exists="verify").execute({})
    assert (again["skipped"], again["sha256"]) == (True, sha256(source.read_bytes()))


@pytest.mark.parametrize("bad", [{"verify": "x"}, {"if_exists": "x"}, {"connections": 0}])
def test_a_bad_term_is_refused_unsent(connected, local, tmp_path, bad):
    before = len(connected.requests)
    for operator in (upload(local, "/x", **bad), download("/x", tmp_path / "x", **bad)):
        with pytest.raises(InvalidInputError, match=f"^{next(iter(bad))}"):
            operator.execute({})
    assert len(connected.requests) == before


@pytest.mark.parametrize(
    ("state", "ended"), [("running", "a retry goes on with it"), ("failed", "was told to end")]
)
def test_a_redeploy_leaves_an_upload_to_the_retry_and_a_users_kill_ends_it(  # noqa: PLR0917 - fixtures
    small_limits, tmp_path, kill_soon, fernet, state, ended
):
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(500_000))
    context = context_of("upload", store=StateStore(), state=state)
    small_limits.faults.delay(30.0, on="put_part", skip=6, times=None)
    operator = upload(source, "{working_dir}/large.bin")
    kill_soon(operator, lambda: small_limits.requests.count("put_part") >= 8)
    begun = time.monotonic()
    with pytest.raises((TransferError, WatchError), match=ended):
        operator.execute(context)
    assert time.monotonic() - begun < 12
    small_limits.faults.clear()
    small_limits.requests.clear()
    states = [record.state.split()[0] for record in small_limits.scheduler.records()]
    assert "X-Amz" not in str(context["task_state_store"])
    if state == "failed":
        assert states == ["CANCELLED"]
        assert context["task_state_store"] == {}
        return
    assert states == ["RUNNING"]
    context["ti"].try_number = 2
    result = upload(source, "{working_dir}/large.bin").execute(context)
    assert result["sha256"] == sha256((small_limits.home / "large.bin").read_bytes())
    assert small_limits.requests.count("transfer_upload") == 0
    assert small_limits.requests.count("put_part") == 10 - 6


def test_a_kill_waits_for_the_end_of_a_talk_with_the_supervisor(small_limits, tmp_path, fernet):
    """A signal amid a request to the supervisor would leave its answer for the next request."""
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(200_000))
    operator = upload(source, "{working_dir}/large.bin")
    whole = []

    class Killing(StateStore):
        def set(self, key, value, **_):
            if small_limits.scheduler.records():
                operator.on_kill()
            super().set(key, value)
            whole.append(key)

    with pytest.raises(TransferError, match="was told to end"):
        operator.execute(context_of("upload", store=Killing(), state="failed"))
    assert len(whole) == 2
    assert [record.state.split()[0] for record in small_limits.scheduler.records()] == ["CANCELLED"]


def test_a_download_that_fails_for_now_is_gone_on_with_by_the_retry(
    small_limits, tmp_path, fernet, monkeypatch
):
    pace = Pace(policy=RetryPolicy(attempts=3, base=0.01), patience=0)
    monkeypatch.setattr(staging, "Pace", lambda **_: pace)
    content = os.urandom(300_000)
    (small_limits.home / "large.bin").write_bytes(content)
    context = context_of("download", store=StateStore(), max_tries=1)
    small_limits.faults.truncate(on="get_object", keep=0.4)
    small_limits.faults.respond(500, "", on="get_object", times=6)
    back = tmp_path / "into" / "back.bin"
    with pytest.raises(TransferError):
        download("{working_dir}/large.bin", back).execute(context)
    assert [path.suffix for path in back.parent.iterdir()] == [".part"]
    small_limits.faults.clear()
    small_limits.requests.clear()
    context["ti"].try_number = 2
    download("{working_dir}/large.bin", back).execute(context)
    (asked,) = [entry.headers["range"] for entry in small_limits.requests.of("get_object")]
    assert asked == "bytes=120000-299999"
    assert back.read_bytes() == content
    assert [path.name for path in back.parent.iterdir()] == ["back.bin"]


@pytest.mark.parametrize("spoiled", ["y" * 300_000, "y" * 299_000], ids=["other bytes", "too few"])
def test_a_download_of_wrong_bytes_is_healed_by_the_retry(small_limits, tmp_path, fernet, spoiled):
    content = os.urandom(300_000)
    (small_limits.home / "large.bin").write_bytes(content)
    context = context_of("download", store=StateStore(), max_tries=1)
    small_limits.faults.respond(200, spoiled, on="get_object", times=None)
    back = tmp_path / "into" / "back.bin"
    with pytest.raises(TransferError) as caught:
        download("{working_dir}/large.bin", back).execute(context)
    assert caught.value.transient
    assert list(back.parent.iterdir()) == []
    assert context["task_state_store"] == {}
    small_limits.faults.clear()
    context["ti"].try_number = 2
    assert download("{working_dir}/large.bin", back).execute(context)["verified"] == "sha256"
    assert back.read_bytes() == content
    assert small_limits.requests.count("transfer_download") == 2


def test_the_last_try_of_a_download_leaves_nothing(small_limits, tmp_path, fernet):
    (small_limits.home / "large.bin").write_bytes(os.urandom(300_000))
    context = context_of("download", store=StateStore(), max_tries=0)
    small_limits.faults.truncate(on="get_object", keep=0.4)
    small_limits.faults.respond(403, "", on="get_object", times=None)
    with pytest.raises(TransferError):
        download("{working_dir}/large.bin", tmp_path / "into" / "x").execute(context)
    assert list((tmp_path / "into").iterdir()) == []
    assert context["task_state_store"] == {}


def test_a_retry_of_a_list_moves_what_is_missing_alone(small_limits, tmp_path, fernet):
    sources = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for source in sources:
        source.write_bytes(os.urandom(100_000))
    context = context_of("upload", store=StateStore())
    small_limits.faults.respond(403, "", on="put_part", skip=2, times=None)
    with pytest.raises(TransferError):
        upload(sources, "{working_dir}").execute(context)
    small_limits.faults.clear()
    small_limits.requests.clear()
    context["ti"].try_number = 2
    results = upload(sources, "{working_dir}").execute(context)
    assert [(small_limits.home / source.name).read_bytes() for source in sources] == [
        source.read_bytes() for source in sources
    ]
    assert small_limits.requests.count("transfer_upload") == 1
    assert [result["verified"] for result in results] == ["sha256", "sha256"]
