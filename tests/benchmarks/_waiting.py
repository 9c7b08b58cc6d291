"""One side of the benchmark in a process of its own: waits for so many jobs, tells what it cost.

Reads its orders as JSON from the command line, prints its figures as JSON.
"""

import asyncio
import gc
import json
import os
import random
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from _gateway import SYSTEM

# A task that waits: given a job id, it returns when that job is over.
Wait = Callable[[str], Awaitable[None]]


def ours(url: str, interval: float) -> Wait:
    """A trigger a job, all waiting through the hub."""
    from airflow_hpc_provider.client.auth import AccessToken
    from airflow_hpc_provider.client.session import AsyncClient
    from airflow_hpc_provider.hub import POLICY, hub_for
    from airflow_hpc_provider.triggers.jobs import HpcJobTrigger

    async def open_client() -> AsyncClient:
        return AsyncClient(url, AccessToken(url, "token"), policy=POLICY)

    async def wait(job_id: str) -> None:
        trigger = HpcJobTrigger(
            hpc_conn_id="hpc_default",
            system=SYSTEM,
            job_id=job_id,
            since=time.time() - 60,
            poll_interval=interval,
            cancel_on_kill=True,
            carry={"name": f"train-{job_id}", "generation": 1, "submitted_at": "2026-01-01T00:00:00+00:00"},
        )
        await hub_for((url, "client"), SYSTEM, open_client).wait(trigger.watch)

    return wait


def theirs(url: str, interval: float) -> Wait:
    """A coroutine a job, each asking for its own through pyfirecrest."""
    from firecrest.v2 import AsyncFirecrest

    class Ready:
        def get_access_token(self) -> str:
            return "token"

    client = AsyncFirecrest(url, Ready())
    client.disable_client_logging = True

    async def wait(job_id: str) -> None:
        await asyncio.sleep(random.random() * interval)
        while True:
            records = await client.job_info(SYSTEM, job_id)
            if records[0]["status"]["state"] == "COMPLETED":
                return
            await asyncio.sleep(interval)

    return wait


def resident_kib() -> int:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def ask(url: str, data: Any = None) -> Any:
    """Speak to the gateway beside the clients that are measured."""
    body = None if data is None else json.dumps(data).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=60) as answer:
        return json.load(answer)


async def wait_for_all(wait: Wait, orders: dict[str, Any]) -> None:
    """Wait for all jobs; never returns, since most do not end."""
    url, told = orders["url"], {}
    begun = time.time()
    ends = {job_id: begun + after for job_id, after in orders["ends"].items()}
    ask(f"{url}/plan", {"count": orders["jobs"], "ends": ends})
    before, used = resident_kib(), time.process_time()

    def finish() -> None:
        figures = {
            "cpu": time.process_time() - used,
            "seconds": time.time() - begun,
            **ask(f"{url}/counts"),
            # Of a job that nobody has told of yet, the delay so far.
            "delays": [told.get(job_id, time.time()) - end for job_id, end in ends.items()],
            "kib": resident_kib() - before,
        }
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()
        os._exit(0)

    # A thread of its own: an event loop with ten thousand requests in flight may not come to it for minutes.
    threading.Timer(orders["seconds"], finish).start()

    async def one(job_id: str) -> None:
        try:
            await wait(job_id)
        except Exception:  # noqa: BLE001  whatever it is, it makes the figures void
            traceback.print_exc()
            os._exit(1)
        told[job_id] = time.time()

    await asyncio.gather(*(one(str(number)) for number in range(1, orders["jobs"] + 1)))
    await asyncio.Event().wait()


def main() -> None:
    orders = json.loads(sys.argv[1])
    wait = {"ours": ours, "theirs": theirs}[orders["side"]](orders["url"], orders["interval"])
    asyncio.run(wait_for_all(wait, orders))


if __name__ == "__main__":
    main()
