"""Large files over the real streamer's websocket, to a job of the embedded gateway and back."""

import hashlib
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from airflow_home import context_of
from live_airflow import until
from loopback import closed_port
from transfers import DiskKeeper

from airflow_hpc_provider.client import jobs, streamed, systems, transfers
from airflow_hpc_provider.client.arrival import Side
from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.errors import ApiError, InvalidInputError, TransferError, UnavailableError
from airflow_hpc_provider.client.places import BytesSource, LocalSink, LocalSource
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.client.session import Client
from airflow_hpc_provider.client.staging import Moved, Pace, Terms, download_file, upload_file
from airflow_hpc_provider.client.streaming import CHUNK
from airflow_hpc_provider.devgateway import Gateway
from airflow_hpc_provider.devgateway.streamer import Streamer
from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator

pytestmark = pytest.mark.slow
LIMIT = 64 * 1024
LARGE = LIMIT + 1
POLICY = RetryPolicy(attempts=2, base=0.01)
numbers = itertools.count()


def streamer(**changes):
    first = closed_port()
    return Streamer(**{"ports": (first, min(first + 10, 65535))} | changes)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with Gateway(
        tmp_path_factory.mktemp("gateway"),
        scheduler="local",
        max_ops_file_size=LIMIT,
        transfer_method="streamer",
        streamer=streamer(),
    ) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def client(gateway):
    with Client(gateway.url, AccessToken(gateway.url, gateway.access_token()), policy=POLICY) as client:
        yield client


@pytest.fixture
def system(client):
    (system,) = client.send(systems.listing())
    return system


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Look at the job often, and warn in each test."""
    monkeypatch.setattr(streamed, "_FIRST_LOOK", 0.05)
    monkeypatch.setattr(streamed, "_LONGEST_PAUSE", 0.2)
    streamed._warn.cache_clear()


@pytest.fixture
def no_secret_escapes(gateway, caplog, monkeypatch):
    """No test lets coordinates into any log; gives the secrets of its jobs."""
    caplog.set_level(logging.DEBUG)
    gateway.faults.clear()
    told = []
    prepare = Streamer.prepare

    def noting(self, operation, path):
        script, directives = prepare(self, operation, path)
        told.extend([directives["coordinates"], script.split("--secret ")[1].split()[0]])
        return script, directives

    monkeypatch.setattr(Streamer, "prepare", noting)
    yield told
    gateway.faults.clear()
    for record in (*caplog.get_records("setup"), *caplog.get_records("call")):
        text = record.getMessage() + (record.exc_text or "")
        assert not any(secret in text for secret in told), record.name


@pytest.fixture
def there(gateway):
    """A directory of the test's own on the system, in which nothing unfinished stays."""
    folder = gateway.home / f"test-{next(numbers)}"
    folder.mkdir()
    yield folder
    assert [path for path in folder.rglob("*") if path.name.endswith(".part")] == []


@pytest.fixture
def here(tmp_path):
    """A directory of the test's own on this machine, in which nothing unfinished stays."""
    yield tmp_path
    assert [path for path in tmp_path.rglob("*") if path.name.endswith(".part")] == []


@pytest.fixture
def upload(client, system, there, no_secret_escapes):
    def upload(content, target=None, **given):
        return upload_file(
            client,
            given.pop("system", system),
            BytesSource("source.bin", content),
            target or f"{there}/target.bin",
            **{"wait": None, "pace": Pace(policy=POLICY)} | given,
        )

    return upload


@pytest.fixture
def download(client, system, here, there, no_secret_escapes):
    def download(content, source="source.bin", **given):
        (there / source).write_bytes(content)
        return download_file(
            client,
            given.pop("system", system),
            f"{there}/{source}",
            here / "target.bin",
            **{"wait": None, "pace": Pace(policy=POLICY)} | given,
        )

    return download


@pytest.fixture
def new_jobs(gateway):
    """States of the jobs of this test that stream."""
    names = ("IngressFileTransfer", "OutgressFileTransfer")
    before = {record.base_id for record in gateway.scheduler.records()}

    def new(*, over=True):
        until = time.monotonic() + 20
        while True:
            states = [
                record.state.split()[0]
                for record in gateway.scheduler.records()
                if record.name in names and record.base_id not in before
            ]
            if not over or not set(states) & {"PENDING", "RUNNING", "COMPLETING"}:
                return states
            assert time.monotonic() < until, states
            time.sleep(0.05)

    return new


def digest(content):
    return hashlib.sha256(content).hexdigest()


# --- both ways --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [LARGE, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_a_large_file_goes_up_and_comes_down_verified(upload, download, here, there, new_jobs, size):  # noqa: PLR0917 - fixtures
    content = os.urandom(size)
    moved = Moved(
        path=f"{there}/target.bin", size=size, sha256=digest(content), staged=True, verified="sha256"
    )
    assert upload(content) == moved
    assert (there / "target.bin").read_bytes() == content
    assert download(content) == replace(moved, path=f"{there}/source.bin")
    assert (here / "target.bin").read_bytes() == content
    assert new_jobs() == ["COMPLETED", "COMPLETED"]


def test_a_small_file_needs_no_stream(upload, download, new_jobs):
    assert not upload(b"x" * LIMIT).staged
    assert not download(b"x").staged
    assert new_jobs() == []


@pytest.fixture
def side(client, system):
    return Side(
        client=client,
        system=system,
        account=None,
        terms=Terms(),
        keeper=None,
        abandon=lambda _: True,
        pace=Pace(policy=POLICY),
    )


def test_an_empty_file_can_be_streamed_too(side, client, there, here):
    moved, _ = streamed.stream_up(side, BytesSource("empty", b""), f"{there}/empty", name="")
    assert (moved.size, (there / "empty").read_bytes()) == (0, b"")
    stat = side.stat(f"{there}/empty")
    moved = streamed.stream_down(side, f"{there}/empty", stat, LocalSink(here / "empty"), name="")
    assert (moved.sha256, (here / "empty").read_bytes()) == (digest(b""), b"")


def test_what_was_moved_and_how_fast_is_told_once(upload, download):
    told = []
    pace = Pace(policy=POLICY, told=lambda size, seconds: told.append(size))
    upload(bytes(LARGE), pace=pace)
    download(bytes(LARGE), pace=pace)
    assert told == [LARGE, LARGE]


def test_permissions_and_time_travel_where_asked(upload, download, here, there, tmp_path, client, system):  # noqa: PLR0917 - fixtures
    path = tmp_path / "tool"
    path.write_bytes(bytes(LARGE))
    path.chmod(0o750)
    terms = Terms(preserve_mode=True, preserve_mtime=True)
    upload_file(client, system, path, f"{there}/tool", wait=None, terms=terms)
    assert (there / "tool").stat().st_mode & 0o777 == 0o750
    os.utime(there / "tool", (1000, 1000))
    download_file(client, system, f"{there}/tool", here / "back", wait=None, terms=terms)
    stat = (here / "back").stat()
    assert (stat.st_mode & 0o777, stat.st_mtime) == (0o750, 1000)


def test_that_all_goes_unencrypted_is_said_once(upload, caplog):
    upload(bytes(LARGE))
    upload(bytes(LARGE))
    said = [record for record in caplog.records if "unencrypted" in record.getMessage()]
    assert [record.levelname for record in said] == ["WARNING"]


# --- what is there already --------------------------------------------------------------------------------


def test_an_existing_file_is_replaced_when_the_new_one_is_there(upload, there):
    (there / "target.bin").write_bytes(b"old")
    content = os.urandom(LARGE)
    assert upload(content).verified == "sha256"
    assert (there / "target.bin").read_bytes() == content
    assert upload(content, terms=Terms(if_exists="verify")).skipped


def test_an_existing_file_is_left_where_asked(upload, there, new_jobs):
    (there / "target.bin").write_bytes(b"old")
    assert upload(bytes(LARGE), terms=Terms(if_exists="skip")).skipped
    with pytest.raises(TransferError, match="if_exists='fail'"):
        upload(bytes(LARGE), terms=Terms(if_exists="fail"))
    assert ((there / "target.bin").read_bytes(), new_jobs()) == (b"old", [])


def test_a_target_without_its_directory_starts_no_job(upload, there, new_jobs):
    with pytest.raises(ApiError, match=r"[Nn]o such file"):
        upload(bytes(LARGE), target=f"{there}/gone/target.bin")
    assert new_jobs() == []


def test_blanks_are_refused_where_the_script_cannot_bear_them(upload, download, there, new_jobs):
    assert upload(bytes(LARGE), target=f"{there}/a name.bin").staged
    (there / "a folder").mkdir()
    with pytest.raises(InvalidInputError, match="blank"):
        upload(bytes(LARGE), target=f"{there}/a folder/x")
    with pytest.raises(InvalidInputError, match="blank"):
        download(bytes(LARGE), source="a source.bin")
    assert len(new_jobs()) == 1


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "problem"),
    [("wormhole", "stages by wormhole, which is not supported"), (None, "has no staging")],
)
def test_another_method_is_refused_before_a_job_starts(upload, download, system, new_jobs, method, problem):  # noqa: PLR0917 - fixtures
    for move, limit in ((upload, LIMIT), (download, system.max_direct_download_bytes)):
        with pytest.raises(InvalidInputError, match=problem) as caught:
            move(bytes(LARGE), system=replace(system, transfer_method=method))
        text = str(caught.value)
        for fact in ("source.bin", str(LARGE), f"end at {limit} bytes", system.name, "ask the site for"):
            assert fact in text
    assert new_jobs() == []


def test_a_missing_extra_is_told_before_anything_is_sent(upload, gateway, monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets.sync.client", None)
    gateway.requests.clear()
    with pytest.raises(InvalidInputError, match=r"pip install 'airflow-hpc-provider\[streamer\]'"):
        upload(bytes(LARGE))
    assert len(gateway.requests) == 0


def test_more_than_the_system_takes_is_refused_before_anything_is_sent(upload, system, gateway):
    assert system.max_stream_bytes == 5 * 2**30
    small = replace(system, max_stream_bytes=CHUNK)
    gateway.requests.clear()
    with pytest.raises(InvalidInputError, match=f"takes {CHUNK} by its streamer"):
        upload(bytes(CHUNK + 1), system=small)
    assert len(gateway.requests) == 0
    assert upload(bytes(CHUNK), system=small).staged


def test_a_limit_that_was_not_told_ends_the_stream_for_good(client, system, gateway, there, monkeypatch):
    limited = replace(gateway._world.systems[gateway.system].streamer, inbound_limit=CHUNK)
    monkeypatch.setattr(gateway._world.systems[gateway.system], "streamer", limited)
    began = len(gateway.scheduler.records())
    with pytest.raises(TransferError, match="limit exceeded"):
        upload_file(
            client,
            system,
            BytesSource("a.bin", bytes(2 * CHUNK)),
            f"{there}/a.bin",
            wait=None,
            pace=Pace(policy=POLICY),
        )
    assert len(gateway.scheduler.records()) == began + 1
    assert list(there.iterdir()) == []


# --- what goes wrong --------------------------------------------------------------------------------------


def test_a_job_that_ends_before_its_stream_is_tried_again(upload, new_jobs, monkeypatch):
    good = Streamer.prepare

    def broken(self, operation, path):
        monkeypatch.setattr(Streamer, "prepare", good)
        _, directives = good(self, operation, path)
        return (
            f"echo 'Use these coordinates: {directives['coordinates']}'; echo no python; exit 3",
            directives,
        )

    monkeypatch.setattr(Streamer, "prepare", broken)
    content = os.urandom(LARGE)
    assert upload(content).sha256 == digest(content)
    assert sorted(new_jobs()) == ["COMPLETED", "FAILED"]


def test_a_job_that_never_gets_on_names_its_log_without_the_secret(
    upload, there, new_jobs, no_secret_escapes, monkeypatch
):
    good = Streamer.prepare

    def broken(self, operation, path):
        _, directives = good(self, operation, path)
        return (
            f"echo 'Use these coordinates: {directives['coordinates']}'; echo no python; exit 3",
            directives,
        )

    monkeypatch.setattr(Streamer, "prepare", broken)
    with pytest.raises(TransferError, match="no python") as caught:
        upload(os.urandom(LARGE))
    assert "ended FAILED before its stream began" in str(caught.value)
    assert "coordinates" not in str(caught.value)
    assert not any(secret in str(caught.value) for secret in no_secret_escapes)
    assert new_jobs() == ["FAILED", "FAILED"]
    assert list(there.iterdir()) == []


def test_a_server_that_cannot_be_reached_is_given_up(upload, new_jobs, monkeypatch):
    monkeypatch.setattr(streamed, "_START_SECONDS", 0.3)
    monkeypatch.setattr(streamed, "reach", lambda _: None)
    with pytest.raises(TransferError, match="Are the ports open from this machine"):
        upload(bytes(LARGE))
    assert new_jobs() == ["CANCELLED", "CANCELLED"]


def test_a_job_that_ends_well_and_wrote_nothing_is_no_success(upload, there, new_jobs, monkeypatch):
    good = Streamer.prepare
    monkeypatch.setattr(Streamer, "prepare", lambda self, what, path: good(self, what, f"{path}.lost"))
    with pytest.raises(TransferError, match=r"left nothing of .*/target.bin"):
        upload(bytes(LARGE))
    # Cancelled as it ended, or just before.
    assert len(new_jobs()) == 2
    for path in there.iterdir():
        assert path.name.endswith(".lost")
        path.unlink()


def test_a_file_that_was_spoilt_after_the_stream_is_found_out(upload, there, monkeypatch):
    good = Streamer.prepare

    def spoiling(self, operation, path):
        script, directives = good(self, operation, path)
        return f"{script}printf X | dd of={path} conv=notrunc status=none\n", directives

    monkeypatch.setattr(Streamer, "prepare", spoiling)
    send = streamed.send

    def late(*given, **named):
        told = send(*given, **named)
        time.sleep(1)
        return told

    monkeypatch.setattr(streamed, "send", late)
    with pytest.raises(TransferError, match="has sha256"):
        upload(bytes(LARGE))
    assert list(there.iterdir()) == []


def test_another_file_that_poses_as_the_source_is_found_out(download, here, gateway, monkeypatch):
    (gateway.home / "other.bin").write_bytes(b"x" * LARGE)
    good = Streamer.prepare
    monkeypatch.setattr(
        Streamer, "prepare", lambda self, what, path: good(self, what, f"{gateway.home}/other.bin")
    )
    with pytest.raises(TransferError, match="has sha256"):
        download(bytes(LARGE))
    assert list(here.iterdir()) == []


def test_a_source_that_grows_meanwhile_comes_as_it_is_then(download, here, there, monkeypatch):
    good, grown = Streamer.prepare, os.urandom(LARGE + 5)

    def growing(self, operation, path):
        (there / "source.bin").write_bytes(grown)
        return good(self, operation, path)

    monkeypatch.setattr(Streamer, "prepare", growing)
    assert download(bytes(LARGE)).size == LARGE + 5
    assert (here / "target.bin").read_bytes() == grown


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_lost_answer_leaves_no_job_waiting(upload, download, gateway, new_jobs, direction):
    gateway.faults.lose_answer(on=f"transfer_{direction}load")
    assert (upload if direction == "up" else download)(os.urandom(LARGE)).verified == "sha256"
    assert sorted(new_jobs()) == ["CANCELLED", "COMPLETED"]


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_gateway_that_is_away_for_a_while_costs_no_stream(upload, download, gateway, new_jobs, direction):
    # As often as a call is tried, and once more.
    gateway.faults.respond(503, "Maintenance", on="job", times=POLICY.attempts + 1)
    assert (upload if direction == "up" else download)(os.urandom(LARGE)).verified == "sha256"
    assert new_jobs() == ["COMPLETED"]


def test_a_gateway_that_stays_away_ends_the_transfer_and_its_job(upload, gateway, new_jobs, monkeypatch):
    monkeypatch.setattr(streamed, "_SILENT_SECONDS", 0.3)
    gateway.faults.respond(503, "Maintenance", on="job", times=1000)
    with pytest.raises(UnavailableError, match="Maintenance"):
        upload(os.urandom(LARGE))
    assert new_jobs() == ["CANCELLED"]


def test_a_neighbours_servers_are_passed_by(upload, download, client, system, there, new_jobs):  # noqa: PLR0917 - fixtures
    plans = [
        client.send(transfers.start_stream_upload(system.name, f"{there}/neighbour-{index}"))
        for index in range(2)
    ]
    try:
        until = time.monotonic() + 20
        while any(client.send(jobs.get(system.name, plan.job.job_id)).state.waiting for plan in plans):
            assert time.monotonic() < until
        time.sleep(1)
        content = os.urandom(LARGE)
        assert upload(content).sha256 == digest(content)
        assert download(content).sha256 == digest(content)
        assert new_jobs(over=False).count("RUNNING") >= 2
    finally:
        for plan in plans:
            client.send(jobs.cancel(system.name, plan.job.job_id))


# --- kills and crashes ------------------------------------------------------------------------------------


class Killed(BaseException):
    """As the operator's."""


@pytest.mark.parametrize("moment", ["while the job waits", "in the middle"])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_kill_cancels_the_job_and_leaves_nothing(  # noqa: PLR0917 - fixtures
    upload, download, here, there, new_jobs, monkeypatch, moment, direction
):
    def kill(*_):
        raise Killed

    if moment == "in the middle":
        monkeypatch.setattr(BytesSource, "check", kill)
        monkeypatch.setattr(LocalSink, "write_at", kill)
    else:
        monkeypatch.setattr(streamed, "reach", kill)
    with pytest.raises(Killed):
        (upload if direction == "up" else download)(os.urandom(2 * CHUNK))
    # The server ends by itself when its stream breaks.
    assert new_jobs() in (["CANCELLED"], ["COMPLETED"])[: 2 if moment == "in the middle" else 1]
    assert [path.name for path in there.iterdir()] == ([] if direction == "up" else ["source.bin"])
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("moment", ["as the job starts", "while the job waits", "in the middle"])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_what_a_dead_worker_left_is_cleaned_up_by_the_next_try(  # noqa: PLR0917 - fixtures
    upload, download, there, tmp_path_factory, new_jobs, monkeypatch, direction, moment
):
    keeper = DiskKeeper(tmp_path_factory.mktemp("keeper"))
    move = upload if direction == "up" else download
    content = os.urandom(LARGE)

    def left():
        return [path for path in there.iterdir() if path.suffix == ".part"]

    def die(*_):
        # What a server has not read yet when its stream breaks is lost, down to the first message.
        if moment == "in the middle" and direction == "up":
            until(left, 20, "the server's file", pause=0.01)
        raise Killed

    with monkeypatch.context() as dying:
        # As after kill -9: nothing is cleaned up, but for what this test could not do without.
        dying.setattr(streamed, "clear", lambda *_: None)
        if moment == "in the middle":
            dying.setattr(BytesSource, "check", die)
            dying.setattr(LocalSink, "write_at", die)
        elif moment == "while the job waits":
            dying.setattr(streamed, "reach", die)
        else:
            dying.setattr(transfers, "start_once", lambda client, call: die(client.send(call)))
        with pytest.raises(Killed):
            move(content, keeper=keeper, abandon=lambda _: False)
    if moment == "in the middle":
        assert len(left()) == (direction == "up")
    else:
        assert new_jobs(over=False)[0] in {"PENDING", "RUNNING"}
    assert "secret" not in keeper.text
    assert move(content, keeper=keeper).verified == "sha256"
    first, *_, last = new_jobs()
    assert (first == "CANCELLED" or moment == "in the middle", last) == (True, "COMPLETED")


# --- in Airflow -------------------------------------------------------------------------------------------


def test_the_operators_need_not_know(gateway, connect, there, here):
    connect(gateway)
    content = os.urandom(LARGE)
    (here / "source.bin").write_bytes(content)
    up = HpcUploadOperator(
        task_id="up", local_path=str(here / "source.bin"), remote_path=f"{there}/x.bin", deferrable=True
    )
    told = up.execute(context_of("up"))
    assert (told["staged"], told["verified"], told["sha256"]) == (True, "sha256", digest(content))
    down = HpcDownloadOperator(
        task_id="down", remote_path=f"{there}/x.bin", local_path=str(here / "back.bin"), deferrable=False
    )
    assert down.execute(context_of("down"))["verified"] == "sha256"
    assert (here / "back.bin").read_bytes() == content


def test_a_kill_of_the_task_cancels_the_job_at_once(gateway, connect, there, here, new_jobs, monkeypatch):  # noqa: PLR0917 - fixtures
    connect(gateway)
    (here / "source.bin").write_bytes(bytes(4 * CHUNK))
    read = LocalSource.read_at

    def slowly(self, offset, length):
        time.sleep(0.02)
        return read(self, offset, min(length, 64 * 1024))

    monkeypatch.setattr(LocalSource, "read_at", slowly)
    operator = HpcUploadOperator(
        task_id="up", local_path=str(here / "source.bin"), remote_path=f"{there}/x.bin"
    )
    at = []

    def kill():
        while not list(there.iterdir()):
            time.sleep(0.01)
        at.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: operator.on_kill())
    killer = threading.Thread(target=kill)
    try:
        killer.start()
        with pytest.raises(TransferError, match="told to end"):
            operator.execute(context_of("up"))
        # So long Airflow lets a killed worker live; the rest of the stream would take longer.
        assert time.monotonic() - at[0] < 5
    finally:
        killer.join()
        signal.signal(signal.SIGUSR1, before)
    assert len(new_jobs()) == 1
    assert list(there.iterdir()) == []


# --- the peer ---------------------------------------------------------------------------------------------


def test_the_systems_record_is_as_the_contract_says(gateway, client):
    record = gateway._world.systems[gateway.system].to_json("", 0)["dataOperation"]["data_transfer"]
    assert set(record) == {
        "serviceType",
        "pypiIndexUrl",
        "host",
        "portRange",
        "publicIps",
        "waitTimeout",
        "inboundTransferLimit",
    }
    assert record["serviceType"] == "streamer"


@pytest.mark.parametrize("direction", ["send", "receive"])
def test_the_streamers_own_client_leaves_the_end_of_the_talk_in_the_file_and_ours_does_not(  # noqa: PLR0917 - fixtures
    client, system, upload, download, there, here, no_secret_escapes, direction
):
    """Why this package holds the conversation itself, see ``client/streaming.py``: pyfirecrest uses it."""
    content = os.urandom(CHUNK + 1)
    if direction == "send":
        source, target = here / "source.bin", there / "theirs.bin"
        call = transfers.start_stream_upload(system.name, str(target))
    else:
        source, target = there / "source.bin", here / "theirs.bin"
        call = transfers.start_stream_download(system.name, str(source))
    source.write_bytes(content)
    client.send(call)
    coordinates = no_secret_escapes[-2]
    local = here / source.name if direction == "send" else target
    command = [
        sys.executable,
        "-m",
        "streamer",
        direction,
        "--coordinates",
        coordinates,
        "--path",
        str(local),
    ]
    junk = json.dumps({"type": "eof", "sha256_hash": digest(content)}).encode()
    until = time.monotonic() + 20
    # It knocks once, and ends well even if nobody listens yet.
    while not target.exists() or target.stat().st_size < len(content) + len(junk):
        assert time.monotonic() < until
        if direction == "receive":
            target.unlink(missing_ok=True)
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert target.read_bytes() == content + junk
    move, mine = (upload, there / "target.bin") if direction == "send" else (download, here / "target.bin")
    move(content)
    assert mine.read_bytes() == content
