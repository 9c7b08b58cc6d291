"""One side of the benchmark in a process of its own: waits for so many jobs, tells what it cost.

Reads its orders as JSON from the command line, prints its figures as JSON.
"""

import asyncio
import gc
import json
import random
import sys
import time
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


async def measure(wait: Wait, orders: dict[str, Any]) -> dict[str, Any]:
    import httpx

    told: dict[str, float] = {}

    async def one(job_id: str) -> None:
        await wait(job_id)
        told[job_id] = time.time()

    async with httpx.AsyncClient(base_url=orders["url"], timeout=60) as control:
        begun = time.time()
        ends = {job_id: begun + after for job_id, after in orders["ends"].items()}
        await control.post("/plan", json={"count": orders["jobs"], "ends": ends})
        before, used = resident_kib(), time.process_time()
        tasks = [asyncio.create_task(one(str(number))) for number in range(1, orders["jobs"] + 1)]
        await asyncio.sleep(max(0.0, begun + orders["seconds"] - time.time()))
        used, after = time.process_time() - used, resident_kib()
        counts = (await control.get("/counts")).json()
        seconds = time.time() - begun
        failed = [task.exception() for task in tasks if task.done() and task.exception()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if failed:
        raise RuntimeError(f"{len(failed)} waits failed, such as: {failed[0]!r}")
    # Of a job that nobody has told of yet, the delay so far.
    delays = [told.get(job_id, begun + seconds) - end for job_id, end in ends.items()]
    return {**counts, "seconds": seconds, "cpu": used, "kib": after - before, "delays": delays}


def main() -> None:
    orders = json.loads(sys.argv[1])
    wait = {"ours": ours, "theirs": theirs}[orders["side"]](orders["url"], orders["interval"])
    sys.stdout.write(json.dumps(asyncio.run(measure(wait, orders))) + "\n")


if __name__ == "__main__":
    main()
