"""The hub against a live gateway: what it asks for, and what it takes for the end of a job."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from schedulers import scheduler_of

from airflow_hpc_provider.client.auth import AccessToken, ClientCredentials
from airflow_hpc_provider.client.session import AsyncClient
from airflow_hpc_provider.devgateway import Gateway
from airflow_hpc_provider.devgateway.directives import Submission
from airflow_hpc_provider.hub import POLICY, Hub, hub_for
from airflow_hpc_provider.watch import JobWatch, Outcome, Verdict

INTERVAL = 1.0


def opener(gateway: Gateway) -> Callable[[], Awaitable[AsyncClient]]:
    async def open_client() -> AsyncClient:
        auth = ClientCredentials(
            gateway.url,
            token_url=gateway.token_url,
            client_id=gateway.client_id,
            client_secret=gateway.client_secret,
        )
        return AsyncClient(gateway.url, auth, policy=POLICY)

    return open_client


def hub_of(gateway: Gateway, system: str | None = None) -> Hub:
    return hub_for((gateway.url, gateway.client_id), system or gateway.system, opener(gateway))


def submit(gateway: Gateway, script: str = "sleep 1", *, system: str | None = None) -> str:
    job = Submission(script=f"#!/bin/bash\n{script}\n", working_directory=str(gateway.home))
    return scheduler_of(gateway, system).submit(job)


def watch(gateway: Gateway, job_id: str, **more: Any) -> JobWatch:
    arguments = {"system": gateway.system, "since": time.time(), "poll_interval": INTERVAL} | more
    return JobWatch(job_id=job_id, **arguments)


async def verdicts(gateway: Gateway, *watches: JobWatch) -> list[Verdict]:
    waits = [hub_of(gateway, one.system).wait(one) for one in watches]
    found = await asyncio.wait_for(asyncio.gather(*waits), 30)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return found


def wait_for(gateway: Gateway, *job_ids: str, **more: Any) -> list[Verdict]:
    return asyncio.run(verdicts(gateway, *(watch(gateway, job_id, **more) for job_id in job_ids)))


def states(found: list[Verdict]) -> list[str]:
    assert {verdict.outcome for verdict in found} == {Outcome.DONE}
    return [verdict.data["state"] for verdict in found]


def looks(gateway: Gateway) -> tuple[int, int]:
    """How many lists and how many single jobs were asked for."""
    return gateway.requests.count("jobs"), gateway.requests.count("job")


def test_fifty_jobs_are_watched_by_one_list_a_tick(make_gateway):
    gateway = make_gateway(job_cpus=64)
    ids = [submit(gateway, f"exit {number % 2}") for number in range(50)]
    last = submit(gateway, "sleep 2")
    begun = time.time()
    found = wait_for(gateway, *ids, last)
    assert states(found) == ["COMPLETED" if number % 2 == 0 else "FAILED" for number in range(50)] + [
        "COMPLETED"
    ]
    assert [verdict.data["job_id"] for verdict in found] == [*ids, last]
    lists, singles = looks(gateway)
    assert lists <= 2 + (time.time() - begun) / (INTERVAL / 4)
    # Once only one is left it is asked for by id.
    assert singles <= 8
    assert {entry.query for entry in gateway.requests.of("jobs")} == {"time_window=1h"}


@pytest.mark.parametrize("status", [408, 413])
def test_a_list_that_is_too_slow_or_too_large_gives_way_to_single_looks(make_gateway, status):
    gateway = make_gateway()
    gateway.faults.respond(status, on="jobs", times=None)
    assert states(wait_for(gateway, *(submit(gateway) for _ in range(6)))) == ["COMPLETED"] * 6
    assert gateway.requests.count("jobs") <= 2
    assert gateway.requests.count("job") >= 6


def test_a_wide_list_that_is_too_large_gives_way_to_a_narrow_one(make_gateway):
    gateway = make_gateway()
    gateway.faults.respond(413, on="jobs")
    old = time.time() - 2 * 86400
    assert states(wait_for(gateway, *(submit(gateway) for _ in range(6)), since=old)) == ["COMPLETED"] * 6
    windows = [entry.query for entry in gateway.requests.of("jobs")]
    assert windows[0] == "time_window=3d"
    assert set(windows[1:]) == {"time_window=1h"}


def test_retry_after_is_kept_by_all_of_an_identity(make_gateway):
    gateway = make_gateway(systems=["one", "two"])
    ids = [submit(gateway) for _ in range(4)]
    other = submit(gateway, system="two")
    gateway.faults.rate_limit(2, on="jobs")

    async def main():
        first = [asyncio.create_task(hub_of(gateway).wait(watch(gateway, job_id))) for job_id in ids[:3]]
        await asyncio.sleep(0.5)
        late = asyncio.create_task(hub_of(gateway).wait(watch(gateway, ids[3])))
        far = asyncio.create_task(hub_of(gateway, "two").wait(watch(gateway, other, system="two")))
        return await asyncio.wait_for(asyncio.gather(*first, late, far), 20)

    assert states(asyncio.run(main())) == ["COMPLETED"] * 5
    requests = gateway.requests.of("GET /compute/")
    limited = next(entry for entry in requests if entry.status == 429)
    # What was on its way already cannot be held back.
    later = [entry.at for entry in requests if entry.at > limited.at + 0.1]
    assert min(later) >= limited.at + 2


def test_a_health_gate_that_closes_for_a_while_fails_nobody(make_gateway):
    gateway = make_gateway()
    ids = [submit(gateway) for _ in range(5)]
    gateway.set_health("scheduler", healthy=False)

    def refused() -> list[float]:
        return [entry.at for entry in gateway.requests.of("jobs") if entry.status == 503]

    def heal() -> None:
        while not refused():
            time.sleep(0.05)
        time.sleep(2)
        gateway.set_health("scheduler", healthy=True)

    threading.Thread(target=heal, daemon=True).start()
    assert states(wait_for(gateway, *ids)) == ["COMPLETED"] * 5
    assert 2 <= len(refused()) <= 5


def test_jobs_that_the_list_leaves_out_are_asked_for_by_id(make_gateway):
    gateway = make_gateway(job_cpus=64)
    gateway.faults.respond(200, {"jobs": []}, on="jobs", times=None)
    ids = [submit(gateway, "exit 0") for _ in range(45)]
    assert states(wait_for(gateway, *ids)) == ["COMPLETED"] * 45
    singles = [entry.at for entry in gateway.requests.of("job")]
    # Ticks of 20 begin a quarter of the interval apart: a shorter window sees one begin, and where the
    # machine is slow the end of the one before.
    assert all(len([at for at in singles if one <= at < one + INTERVAL / 5]) <= 40 for one in singles)


def test_a_job_that_vanished_is_lost_and_the_others_are_not(make_gateway, monkeypatch):
    monkeypatch.setattr("airflow_hpc_provider.watch._LOST_AFTER", 1.0)
    gateway = make_gateway()
    ids = [submit(gateway) for _ in range(3)]
    gone = submit(gateway, "sleep 30")
    gateway.faults.vanish(gone)

    async def main():
        return await verdicts(
            gateway,
            *(watch(gateway, job_id) for job_id in ids),
            watch(gateway, gone, since=time.time() - 1000),
        )

    *others, lost = asyncio.run(main())
    assert states(others) == ["COMPLETED"] * 3
    assert lost.outcome is Outcome.LOST


def test_a_cancelled_wait_ends_no_other_one_and_the_last_one_closes_all(make_gateway):
    gateway = make_gateway()
    ids = [submit(gateway, "sleep 1") for _ in range(4)]
    stays = submit(gateway, "sleep 30")

    async def main():
        waits = [
            asyncio.create_task(hub_of(gateway).wait(watch(gateway, job_id))) for job_id in [stays, *ids]
        ]
        await asyncio.sleep(0.5)
        waits[1].cancel()
        found = await asyncio.gather(*waits[2:])
        waits[0].cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        asked = len(gateway.requests)
        await asyncio.sleep(1.2)
        assert len(gateway.requests) == asked
        return found

    assert states(asyncio.run(main())) == ["COMPLETED"] * 3


def test_a_gateway_that_restarts_in_mid_wait_is_waited_for(make_gateway):
    options = {"client_id": "me", "client_secret": "secret"}
    first = make_gateway(**options)
    port = int(first.url.split(":")[2].split("/")[0])
    ids = [submit(first, "sleep 30") for _ in range(4)]

    def restart() -> None:
        first.stop()
        time.sleep(0.5)
        # Another key for tokens, and the same ids for the same jobs.
        second = make_gateway(port=port, **options)
        assert [submit(second, "exit 0") for _ in range(4)] == ids

    thread = threading.Timer(1.0, restart)
    thread.start()
    found = wait_for(first, *ids)
    thread.join()
    assert states(found) == ["COMPLETED"] * 4


def test_tokens_that_expire_in_mid_wait_are_replaced(make_gateway):
    gateway = make_gateway()
    ids = [submit(gateway, "sleep 2") for _ in range(4)]
    threading.Timer(1.0, gateway.faults.expire_tokens).start()
    assert states(wait_for(gateway, *ids)) == ["COMPLETED"] * 4


def test_a_ready_token_that_expires_in_mid_wait_is_read_anew_from_the_connection(make_gateway):
    gateway = make_gateway()
    ids = [submit(gateway, "sleep 2") for _ in range(4)]
    threading.Timer(1.0, gateway.faults.expire_tokens).start()
    opened = []

    async def open_client() -> AsyncClient:
        opened.append(gateway.access_token())
        return AsyncClient(gateway.url, AccessToken(gateway.url, opened[-1]), policy=POLICY)

    async def main():
        hub = hub_for((gateway.url, "token"), gateway.system, open_client)
        return await asyncio.gather(*(hub.wait(watch(gateway, job_id)) for job_id in ids))

    assert states(asyncio.run(main())) == ["COMPLETED"] * 4
    assert len(opened) == 2


def must_wait_for_all_elements(gateway: Gateway, known: str | None) -> None:
    array = submit(gateway, "#SBATCH --array=0-2\nsleep $SLURM_ARRAY_TASK_ID")
    others = [submit(gateway, "sleep 1") for _ in range(3)]

    async def main():
        waits = [asyncio.create_task(hub_of(gateway).wait(watch(gateway, job_id))) for job_id in others]
        verdict = await hub_of(gateway).wait(watch(gateway, array, array=known))
        alive = [record for record in scheduler_of(gateway).records(array) if not record.over]
        await asyncio.gather(*waits)
        return verdict, alive

    verdict, alive = asyncio.run(main())
    assert alive == []
    assert [element["state"] for element in verdict.data["elements"]] == ["COMPLETED"] * 3


@pytest.mark.parametrize("known", ["0-2", None])
def test_an_array_is_not_over_before_its_last_element(make_gateway, known):
    must_wait_for_all_elements(make_gateway(), known)
