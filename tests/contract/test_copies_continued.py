"""Copies on a system whose process is killed: what another one makes of them."""

import os
import signal
import subprocess
import sys
import time

import pytest
from transfers import KIB, DiskKeeper

from airflow_hpc_provider.client.copying import copy
from airflow_hpc_provider.devgateway import transfer

# Each moves files by jobs, which take their time.
pytestmark = pytest.mark.slow

PART = 64 * KIB

COPYING = """
import sys, time
from pathlib import Path
from transfers import DiskKeeper
from airflow_hpc_provider.client import systems
from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.copying import copy
from airflow_hpc_provider.client.session import Client

url, token, kept, source, target = sys.argv[1:]
with Client(url, AccessToken(url, token)) as client:
    (system,) = client.send(systems.listing())
    copy(client, system, source, target, wait=lambda _: time.sleep(60), keeper=DiskKeeper(Path(kept)))
"""


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("fate", ["goes on", "is cancelled"])
def test_a_directory_is_copied_whole_after_a_kill(  # noqa: PLR0917  what a test needs are fixtures
    narrow, client, system, wait, tmp_path, monkeypatch, into, fate
):
    """The process dies without a word while its job has made half of the copy."""
    home = narrow.home / tmp_path.name
    source, target = home / "tree", home / "copy"
    (source / "deep").mkdir(parents=True)
    for number in range(20):
        (source / "deep" / f"{number}").write_bytes(os.urandom(100))
    if into:
        target.mkdir()
    made = target / "tree" if into else target
    real = transfer._command

    def slowly(call, name, command, *rest):
        half = f"mkdir -p {made}/deep; cp {source}/deep/1* {made}/deep"
        return real(call, name, f"{half}; sleep 2; cp -r {source}/. {made}", *rest)

    with monkeypatch.context() as patched:
        patched.setattr(transfer, "_command", slowly)
        kept = tmp_path / "kept"
        command = [sys.executable, "-c", COPYING, narrow.url, narrow.access_token(), str(kept)]
        process = subprocess.Popen(
            [*command, str(source), str(target)], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        )
        try:
            until = time.monotonic() + 30
            while not (made / "deep" / "1").exists():
                assert time.monotonic() < until
                assert process.poll() is None
                time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    if fate == "is cancelled":
        (running,) = [job for job in narrow.scheduler.records() if job.state == "RUNNING"]
        narrow.scheduler.cancel(running.base_id)
    keeper = DiskKeeper(kept)
    assert copy(client, system, str(source), str(target), wait=wait, keeper=keeper).target == str(made)
    found = sorted(path.relative_to(made) for path in made.rglob("*"))
    assert found == sorted(path.relative_to(source) for path in source.rglob("*"))
    assert keeper.keys == []
