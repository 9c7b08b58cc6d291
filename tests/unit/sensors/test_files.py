"""The sensor that waits for files: in a worker, rescheduled and deferred."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSensorTimeout, AirflowSkipException
from airflow_home import wait_with

from airflow_hpc_provider.client.errors import InvalidInputError, WatchError
from airflow_hpc_provider.sensors.files import HpcFileSensor

MODES = pytest.mark.parametrize(
    "mode",
    [{"mode": "poke"}, {"mode": "reschedule"}, {"deferrable": True}],
    ids=["poke", "reschedule", "deferred"],
)


def sensor(path: Any, **options: Any) -> HpcFileSensor:
    options = {"poke_interval": 0.1, "timeout": 15, "stable_for": 0, "deferrable": False} | options
    return HpcFileSensor(task_id="files", path=path, **options)


@pytest.fixture
def folder(connected, request) -> Path:
    path = connected.scratch / "sensed" / f"{abs(hash(request.node.nodeid)):x}"
    path.mkdir(parents=True)
    return path


@MODES
def test_a_file_that_is_there_is_found(folder, mode):
    (folder / "a").write_text("four")
    assert wait_with(sensor(f"{folder}/a", **mode)) == {"files": [{"path": f"{folder}/a", "size": 4}]}


@MODES
def test_a_file_that_comes_later_is_waited_for(folder, mode):
    writing = threading.Timer(0.4, (folder / "late").write_text, ["late"])
    writing.start()
    found = wait_with(sensor(f"{folder}/late", **mode))
    writing.join()
    assert found["files"][0]["path"] == f"{folder}/late"


@MODES
def test_a_file_that_still_grows_is_not_there_yet(folder, mode):
    path = folder / "grows"

    def append() -> None:
        for _ in range(8):
            with path.open("a") as stream:
                stream.write("x" * 100)
            time.sleep(0.12)

    writing = threading.Thread(target=append)
    writing.start()
    found = wait_with(sensor(str(path), stable_for=1.0, **mode))
    still_writing = writing.is_alive()
    writing.join()
    assert not still_writing
    assert found == {"files": [{"path": str(path), "size": 800}]}


@MODES
def test_a_glob_gives_all_that_match_in_order(folder, mode):
    for name in ("b.cif", "a.cif", "a.txt", ".hidden.cif"):
        (folder / name).write_text(name)
    (folder / "folder.cif").mkdir()
    found = wait_with(sensor(str(folder), glob="*.cif", **mode))
    assert found["files"] == [{"path": f"{folder}/{name}", "size": 5} for name in ("a.cif", "b.cif")]


def test_a_glob_in_a_directory_that_is_made_later_is_waited_for(folder):
    def make() -> None:
        (folder / "new").mkdir()
        (folder / "new" / "x.cif").write_text("x")

    making = threading.Timer(0.4, make)
    making.start()
    assert wait_with(sensor(f"{folder}/new", glob="*.cif"))["files"][0]["path"] == f"{folder}/new/x.cif"
    making.join()


def test_a_link_counts_as_what_it_points_to(folder):
    (folder / "target").write_text("target")
    (folder / "link").symlink_to(folder / "target")
    assert wait_with(sensor(f"{folder}/link"))["files"] == [{"path": f"{folder}/link", "size": 6}]


def test_working_dir_stands_for_the_connections(connected):
    (connected.home / "sensed.txt").write_text("x")
    found = wait_with(sensor("{working_dir}/sensed.txt"))
    assert found["files"][0]["path"] == f"{connected.home}/sensed.txt"


@MODES
def test_a_timeout_fails_the_task(folder, mode):
    with pytest.raises(AirflowSensorTimeout):
        wait_with(sensor(f"{folder}/never", **mode | {"timeout": 0.4}))


@MODES
def test_with_soft_fail_a_timeout_skips_the_task(folder, mode):
    with pytest.raises(AirflowSkipException):
        wait_with(sensor(f"{folder}/never", soft_fail=True, **mode | {"timeout": 0.4}))


@MODES
def test_a_path_outside_the_file_systems_fails_at_once(connected, mode):
    begun = time.monotonic()
    with pytest.raises(WatchError) as refusal:
        wait_with(sensor("/no/file/system", **mode))
    assert time.monotonic() - begun < 5
    assert not refusal.value.transient


@MODES
def test_with_never_fail_any_failure_skips_the_task(connected, mode):
    with pytest.raises(AirflowSkipException):
        wait_with(sensor("/no/file/system", never_fail=True, **mode))


@MODES
def test_a_gateway_that_stumbles_is_asked_again(folder, connected, mode):
    (folder / "a").write_text("x")
    fault = connected.faults.respond(503, on="stat", times=2)
    assert wait_with(sensor(f"{folder}/a", **mode))["files"]
    assert fault.hits == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"path": "relative"}, "path: .*is relative"),
        ({"path": ""}, "path: is empty"),
        ({"path": None}, "path: is NoneType"),
        ({"path": "/it's"}, "a single quote"),
        ({"path": "/x", "glob": "a/*"}, "glob: .*put the directory into path"),
        ({"path": "/x", "glob": "it's*"}, "glob: .*a single quote"),
        ({"path": "{working_dir}/../up"}, "path: .*climbs"),
    ],
)
def test_what_cannot_be_looked_for_is_refused_unsent(connected, arguments, words):
    before = connected.requests.count("filesystem")
    with pytest.raises(InvalidInputError, match=words):
        wait_with(sensor(**arguments))
    assert connected.requests.count("filesystem") == before
