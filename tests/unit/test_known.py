"""What a gateway tells of its systems is asked for once in a while, not by each task."""

import json
import os
import time
from dataclasses import replace

import pytest

from airflow_hpc_provider import known
from airflow_hpc_provider.client.systems import FileSystem, ServiceHealth, System
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.settings import Settings

SETTINGS = Settings(conn_id="c", url="https://gateway", client_id="me", client_secret="a secret")
SYSTEM = System(
    name="daint",
    connection_mode="rest",
    health=(ServiceHealth(kind="ssh", healthy=True),),
    file_systems=(FileSystem(path="/scratch", kind="scratch", default_directory=True),),
    transfer_method="s3",
)


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    monkeypatch.setattr(known, "KEEP_SECONDS", 600.0)
    return tmp_path


def test_what_was_kept_is_told_again_without_its_health(place):
    known.save(SETTINGS, (SYSTEM,))
    assert known.load(SETTINGS) == (replace(SYSTEM, health=()),)
    [file] = place.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert "secret" not in file.name + file.read_text()


@pytest.mark.parametrize(
    "other",
    [{"url": "https://other"}, {"client_id": "you"}, {"client_secret": "new"}, {"access_token": "token"}],
)
def test_another_connection_is_told_nothing(other):
    known.save(SETTINGS, (SYSTEM,))
    assert known.load(replace(SETTINGS, **other)) == ()


@pytest.mark.parametrize("age", [601, -5])
def test_what_is_old_or_of_the_future_is_not_told(place, age):
    known.save(SETTINGS, (SYSTEM,))
    [file] = place.iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"at": time.time() - age}))
    assert known.load(SETTINGS) == ()


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"{}", b'{"at": "now"}', b"\xff"])
def test_junk_is_not_told(place, junk):
    known.save(SETTINGS, (SYSTEM,))
    [file] = place.iterdir()
    file.write_bytes(junk)
    assert known.load(SETTINGS) == ()


def test_a_link_that_somebody_laid_is_not_read(place):
    known.save(SETTINGS, (SYSTEM,))
    [file] = place.iterdir()
    kept = file.rename(place / "kept")
    file.symlink_to(kept)
    assert known.load(SETTINGS) == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_another_user_has_put_there_is_not_read(place):
    known.save(SETTINGS, (SYSTEM,))
    [file] = place.iterdir()
    os.chown(file, 12345, 12345)
    assert known.load(SETTINGS) == ()


def test_nothing_can_be_kept_where_nothing_can_be_written(monkeypatch, place):
    monkeypatch.setenv("AIRFLOW_HOME", str(place / "missing"))
    known.save(SETTINGS, (SYSTEM,))
    assert known.load(SETTINGS) == ()


def test_a_hook_asks_once_and_again_for_a_system_that_it_does_not_know(connected):
    connected.requests.clear()
    for _ in range(3):
        hook = HpcHook()
        with hook.client() as client:
            assert hook.system(client).name == connected.system
    assert connected.requests.count("systems") == 1
    with hook.client() as client, pytest.raises(ValueError, match="no system 'other'"):
        hook.system(client, "other")
    assert connected.requests.count("systems") == 2
