"""One side of ``transfers.py``: moves what it is told to, in a process of its own, and tells what it took.

Reads its orders as JSON from standard input and writes its figures as JSON to standard output. Peak memory is
what is added to a process that has imported all and spoken to the gateway: an idle worker.
"""

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_POLL_INTERVAL = 10.0
_STAGED_INTERVAL = 0.2


class Meter:
    """Seconds, CPU seconds and memory of what runs within ``with``."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        # The peak counts from here on.
        Path("/proc/self/clear_refs").write_text("5")
        idle, cpu, began = _memory("VmRSS"), _cpu(), time.monotonic()
        yield
        self.figures |= {
            "seconds": time.monotonic() - began,
            "cpu": _cpu() - cpu,
            "peak": _memory("VmHWM") - idle,
        }


def _memory(name: str) -> int:
    """Bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Memory:
    """Where our transfers are written down: what Airflow's task state store keeps, and its Fernet key."""

    generation, seals = "1", True

    def __init__(self) -> None:
        from cryptography.fernet import Fernet

        self._kept: dict[str, str] = {}
        self._fernet = Fernet(Fernet.generate_key())

    def get(self, key: str) -> Any:
        return json.loads(self._kept[key]) if key in self._kept else None

    def set(self, key: str, value: Any) -> None:
        self._kept[key] = json.dumps(value)

    def delete(self, key: str) -> None:
        self._kept.pop(key, None)

    def seal(self, secret: bytes) -> str:
        return self._fernet.encrypt(secret).decode()

    def unseal(self, sealed: str) -> bytes:
        return self._fernet.decrypt(sealed)


class Ours:
    """This provider's client, as its operators use it."""

    def __init__(self, orders: dict[str, Any], meter: Meter) -> None:
        from airflow_hpc_provider.client import staging
        from airflow_hpc_provider.client.auth import AccessToken
        from airflow_hpc_provider.client.session import Client

        self._staging = staging
        self._orders, self._meter = orders, meter
        self._keeper = Memory()
        self._remote, self._local = orders["remote"], Path(orders["local"])
        self._client = Client(orders["url"], AccessToken(orders["url"], orders["token"]))

    def run(self, name: str) -> None:
        from airflow_hpc_provider.client import systems

        with self._client:
            self._system = next(
                one for one in self._client.send(systems.listing()) if one.name == self._orders["system"]
            )
            getattr(self, name)()

    def _terms(self, **more: Any) -> Any:
        return self._staging.Terms(connections=self._orders["connections"], **more)

    def _wait(self, job_id: str) -> Any:
        from airflow_hpc_provider.client.jobs import Job
        from airflow_hpc_provider.watch import JobWatch, follow

        watch = JobWatch(
            system=self._system.name, job_id=job_id, since=time.time(), poll_interval=_POLL_INTERVAL
        )
        return Job.from_json(follow(self._client, watch).data)

    def upload(self) -> None:
        with self._meter():
            begun = self._staging.begin_upload(
                self._client,
                self._system,
                self._local,
                self._remote,
                terms=self._terms(wake=False),
                keeper=self._keeper,
            )
        self._meter.figures["sha256"] = begun.sha256

    def download(self) -> None:
        terms = self._terms(verify="never")
        begun = self._staging.begin_download(
            self._client, self._system, self._remote, self._local, terms=terms, keeper=self._keeper
        )
        ended = self._wait(begun.job.job_id)
        with self._meter():
            moved = self._staging.finish_download(
                self._client,
                self._system,
                begun,
                ended,
                self._local,
                wait=self._wait,
                terms=terms,
                keeper=self._keeper,
            )
        self._meter.figures["sha256"] = moved.sha256

    def end_to_end(self) -> None:
        with self._meter():
            moved = self._staging.upload_file(
                self._client,
                self._system,
                self._local,
                self._remote,
                wait=self._wait,
                terms=self._terms(),
                keeper=self._keeper,
            )
        self._meter.figures |= {"sha256": moved.sha256, "verified": moved.verified}

    def upload_files(self) -> None:
        from airflow_hpc_provider.client import trees

        with self._meter():
            trees.upload_tree(self._client, self._system, self._local, self._remote, wait=self._wait)

    def download_files(self) -> None:
        from airflow_hpc_provider.client import trees

        with self._meter():
            trees.download_tree(self._client, self._system, self._remote, self._local, wait=self._wait)

    def upload_each(self) -> None:
        with self._meter():
            for file in (self._local / name for name in self._orders["names"]):
                self._staging.upload_file(
                    self._client, self._system, file, f"{self._remote}/{file.name}", wait=self._wait
                )

    def download_each(self) -> None:
        with self._meter():
            for name in self._orders["names"]:
                self._staging.download_file(
                    self._client, self._system, f"{self._remote}/{name}", self._local / name, wait=self._wait
                )


def _over(records: list[dict[str, Any]]) -> bool:
    """Whether a job has ended; pyfirecrest's own wait looks ever more seldom, and is not what is measured."""
    return records[0]["status"]["state"] not in ("PENDING", "RUNNING")


class _Token:
    def __init__(self, token: str) -> None:
        self._token = token

    def get_access_token(self) -> str:
        return self._token


class Sync:
    """pyfirecrest's blocking client."""

    def __init__(self, orders: dict[str, Any], meter: Meter) -> None:
        from firecrest.v2 import Firecrest

        self._orders, self._meter = orders, meter
        self._system, self._remote, self._local = orders["system"], orders["remote"], orders["local"]
        self._client = Firecrest(orders["url"], _Token(orders["token"]))
        self._client.disable_client_logging = True

    def run(self, name: str) -> None:
        self._client.systems()
        getattr(self, name)()
        self._client.close_session()

    def upload(self, *, blocking: bool = False) -> None:
        directory, _, name = self._remote.rpartition("/")
        with self._meter():
            transfer = self._client.upload(self._system, self._local, directory, name, blocking=blocking)
            if not blocking:
                transfer.upload_file_to_stage()

    def end_to_end(self) -> None:
        self.upload(blocking=True)

    def download(self) -> None:
        transfer = self._client.download(self._system, self._remote, self._local, blocking=False)
        job_id = transfer.transfer_data["transferJob"]["jobId"]
        while not _over(self._client.job_info(self._system, job_id)):
            time.sleep(_STAGED_INTERVAL)
        with self._meter():
            transfer.download_file_from_stage()

    def upload_each(self) -> None:
        with self._meter():
            for file in (Path(self._local, name) for name in self._orders["names"]):
                self._client.upload(self._system, file, self._remote, file.name)

    def download_each(self) -> None:
        with self._meter():
            for name in self._orders["names"]:
                self._client.download(self._system, f"{self._remote}/{name}", f"{self._local}/{name}")


class Async:
    """pyfirecrest's client for event loops, with its own number of connections."""

    def __init__(self, orders: dict[str, Any], meter: Meter) -> None:
        self._orders, self._meter = orders, meter
        self._system, self._remote, self._local = orders["system"], orders["remote"], orders["local"]

    def run(self, name: str) -> None:
        act: Callable[[Any], Awaitable[None]] = getattr(self, name)
        asyncio.run(self._run(act))

    async def _run(self, act: Callable[[Any], Awaitable[None]]) -> None:
        from firecrest.v2 import AsyncFirecrest

        client = AsyncFirecrest(self._orders["url"], _Token(self._orders["token"]))
        client.disable_client_logging = True
        await client.systems()
        await act(client)
        await client.close_session()

    async def upload(self, client: Any) -> None:
        directory, _, name = self._remote.rpartition("/")
        with self._meter():
            transfer = await client.upload(self._system, self._local, directory, name, blocking=False)
            await transfer.upload_file_to_stage()

    async def download(self, client: Any) -> None:
        transfer = await client.download(self._system, self._remote, self._local, blocking=False)
        job_id = transfer.transfer_data["transferJob"]["jobId"]
        while not _over(await client.job_info(self._system, job_id)):  # noqa: ASYNC110
            await asyncio.sleep(_STAGED_INTERVAL)
        with self._meter():
            await transfer.download_file_from_stage()


SIDES = {"ours": Ours, "sync": Sync, "async": Async}


def main() -> None:
    orders = json.load(sys.stdin)
    meter = Meter()
    # What a library prints is no figure.
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    SIDES[orders["side"]](orders, meter).run(orders["act"])
    json.dump(meter.figures, answers)
    answers.close()


if __name__ == "__main__":
    main()
