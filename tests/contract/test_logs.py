"""The output of jobs against a live gateway: beside a wait in a worker, and on an event loop."""

import asyncio
import contextlib
import json
import os
import threading
import time
from typing import Any

import pytest
from airflow_home import Gateway
from schedulers import scheduler_of

from airflow_hpc_provider import hub as hubs
from airflow_hpc_provider import logs as module
from airflow_hpc_provider.client import files
from airflow_hpc_provider.client.auth import ClientCredentials
from airflow_hpc_provider.client.errors import HpcError, RateLimitedError
from airflow_hpc_provider.client.session import AsyncClient, Client
from airflow_hpc_provider.hub import POLICY, hub_for
from airflow_hpc_provider.logs import JobLogs, finish
from airflow_hpc_provider.tasks import HpcTask
from airflow_hpc_provider.triggers.jobs import HpcJobTrigger
from airflow_hpc_provider.watch import JobWatch, Outcome


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(hubs, "_ASIDE", 0.05)
    monkeypatch.setattr(module, "_LATE", 0.1)


@pytest.fixture
def output(connected):
    """Output files of this test: written by the test, as if by the job."""
    folder = connected.home / f"logs-{os.urandom(4).hex()}"
    folder.mkdir(parents=True)
    return folder


def logs_of(gateway: Gateway, job_id: str, output: Any, **more: Any) -> JobLogs:
    paths = {"stdout": f"{output}/out", "stderr": f"{output}/err"}
    return JobLogs(
        **{"system": gateway.system, "job_id": job_id, "name": "job", "interval": 0.1} | paths | more
    )


def client_of(gateway: Gateway) -> Client:
    return Client(gateway.url, auth_of(gateway))


def auth_of(gateway: Gateway) -> ClientCredentials:
    return ClientCredentials(
        gateway.url,
        token_url=gateway.token_url,
        client_id=gateway.client_id,
        client_secret=gateway.client_secret,
    )


def watch_of(gateway: Gateway, job_id: str, **more: Any) -> JobWatch:
    return JobWatch(
        **{"system": gateway.system, "job_id": job_id, "since": time.time(), "poll_interval": 0.2} | more
    )


def until(condition, seconds: float = 10.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)
    return value


async def come(condition) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come true in time")


def append(path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


# --- in the worker ---


class Followed:
    """A task that waits for a job in a thread and keeps what it says."""

    def __init__(self, gateway: Gateway, job_id: str, logs: JobLogs | None, **of_watch: Any) -> None:
        self.said: list[str] = []
        self.stop = threading.Event()
        self.task = HpcTask(task_id="task")
        self.task.say = self.said.append  # type: ignore[method-assign]
        self.verdict: Any = None
        self.thread = threading.Thread(
            target=self._run, args=(gateway, watch_of(gateway, job_id, **of_watch), logs)
        )
        self.thread.start()

    def _run(self, gateway, watch, logs) -> None:
        with client_of(gateway) as client:
            self.verdict = self.task.follow(client, watch, self.stop, logs=logs)

    def end(self) -> Any:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.verdict


def finished(gateway: Gateway, logs: JobLogs) -> list[str]:
    said: list[str] = []
    with client_of(gateway) as client:
        finish(client, logs, None, said.append)
    return said


def test_lines_come_while_the_worker_waits_and_once(connected, submitted, output):
    append(output / "out", "one\n")
    append(output / "err", "")
    logs = logs_of(connected, job_id := submitted("#!/bin/bash\nsleep 60\n"), output)
    task = Followed(connected, job_id, logs)
    until(lambda: task.said == ["one"])
    append(output / "out", "two\nthr")
    append(output / "err", "oh\n")
    until(lambda: len(task.said) == 3)
    append(output / "out", "ee\nfour")
    scheduler_of(connected).cancel(job_id)
    assert task.end().outcome is Outcome.DONE
    said = task.said + finished(connected, logs)
    assert [line for line in said if not line.startswith("stderr")] == ["one", "two", "three", "four"]
    assert said.count("stderr: oh") == 1


def test_a_wait_is_not_longer_because_of_a_read_that_hangs(connected, submitted, output):
    append(output / "out", "one\n")
    connected.requests.clear()
    connected.faults.delay(2, on="view", times=None)
    job_id = submitted("#!/bin/bash\nsleep 60\n")
    logs = logs_of(connected, job_id, output)
    task = Followed(connected, job_id, logs)
    until(lambda: connected.requests.of("GET .*/view")[-1:] or None)
    begun = time.monotonic()
    task.stop.set()
    assert task.end().outcome is Outcome.STOPPED
    assert time.monotonic() - begun < 1.5
    assert task.said == []
    connected.faults.clear()
    assert finished(connected, logs) == ["one"]


def test_a_read_that_fails_fails_no_wait(connected, submitted, output):
    append(output / "out", "one\n")
    connected.faults.respond(500, on="view", times=2)
    connected.faults.rate_limit(0.2, on="view", times=1)
    job_id = submitted("#!/bin/bash\nsleep 1\n")
    logs = logs_of(connected, job_id, output)
    task = Followed(connected, job_id, logs)
    assert task.end().data["state"] == "COMPLETED"
    said = [line for line in task.said + finished(connected, logs) if "cannot be read" not in line]
    assert said == ["one"]


def test_a_wait_without_logs_reads_nothing(connected, submitted):
    before = connected.requests.count("view")
    Followed(connected, submitted("#!/bin/bash\n"), None).end()
    assert connected.requests.count("view") == before


def test_at_the_end_small_files_cost_one_request_each(connected, output):
    append(output / "out", "one\n")
    append(output / "err", "")
    connected.requests.clear()
    assert finished(connected, logs_of(connected, "1", output)) == ["one"]
    assert connected.requests.count("view") == 2
    assert connected.requests.count("stat") == 0


def test_a_file_that_appears_late_is_waited_for(connected, output):
    timer = threading.Timer(0.05, append, (output / "out", "late\n"))
    timer.start()
    assert finished(connected, logs_of(connected, "1", output)) == ["late"]
    timer.join()


@pytest.mark.parametrize(("status", "body"), [(404, {"detail": "Not Found"}), (501, None)])
def test_an_older_gateway_is_asked_for_the_tail(connected, output, status, body):
    connected.faults.respond(status, body, on="view", times=None)
    append(output / "out", "zwölf\n" * 3)
    assert finished(connected, logs_of(connected, "1", output)) == ["zwölf"] * 3


def test_a_gateway_with_a_small_limit_is_asked_for_less(make_gateway):
    gateway = make_gateway(max_ops_file_size=100_000)
    append(gateway.home / "out", "line\n" * 50_000)
    assert finished(gateway, logs_of(gateway, "1", gateway.home)) == ["line"] * 50_000


# --- on an event loop ---


def trigger_of(gateway: Gateway, job_id: str, logs: JobLogs | None, **more: Any) -> HpcJobTrigger:
    arguments = {"since": time.time(), "poll_interval": 0.2, "carry": {"mine": 1}} | more
    trigger = HpcJobTrigger(
        hpc_conn_id="hpc_default",
        system=gateway.system,
        job_id=job_id,
        logs=logs.to_json() if logs else None,
        **arguments,
    )
    return HpcJobTrigger(**json.loads(json.dumps(trigger.serialize()[1])))


async def event_of(trigger: HpcJobTrigger) -> dict[str, Any]:
    event = await asyncio.wait_for(anext(trigger.run()), 20)
    return json.loads(json.dumps(event.payload))


def test_lines_come_while_the_triggerer_waits_and_the_worker_goes_on_from_there(
    connected, submitted, output, monkeypatch
):
    append(output / "out", "one\n")
    job_id = submitted("#!/bin/bash\nsleep 60\n")
    trigger = trigger_of(connected, job_id, logs_of(connected, job_id, output))
    said: list[str] = []
    monkeypatch.setattr(trigger, "_say", said.append)

    async def main() -> dict[str, Any]:
        event = asyncio.create_task(event_of(trigger))
        await come(lambda: said == ["one"])
        append(output / "out", "two\nthr")
        await come(lambda: said == ["one", "two"])
        append(output / "out", "ee\n")
        append(output / "err", "oh")
        scheduler_of(connected).cancel(job_id)
        payload = await event
        assert [task for task in asyncio.all_tasks() if task.get_name().startswith("hpc-")] == []
        return payload

    carry = asyncio.run(asyncio.wait_for(main(), 20))["carry"]
    assert carry["mine"] == 1
    said += finished(connected, JobLogs.from_json(carry["logs"]))
    assert said == ["one", "two", "three", "stderr: oh"]


def test_the_lines_of_two_triggers_go_to_their_own_logs(connected, submitted, output, monkeypatch):
    import contextvars

    mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine")
    said: list[tuple[str, str]] = []
    monkeypatch.setattr(HpcJobTrigger, "_say", lambda self, line: said.append((mine.get(), line)))

    async def one(name: str) -> None:
        mine.set(name)
        folder = output / name
        folder.mkdir()
        append(folder / "out", f"{name}\n")
        job_id = submitted("#!/bin/bash\nsleep 1\n")
        await event_of(trigger_of(connected, job_id, logs_of(connected, job_id, folder)))

    async def main() -> None:
        await asyncio.gather(*(asyncio.create_task(one(name)) for name in ("a", "b", "c")))

    asyncio.run(main())
    assert sorted(said) == [("a", "a"), ("b", "b"), ("c", "c")]


def test_a_trigger_without_logs_reads_nothing_and_carries_nothing(connected, submitted):
    before = connected.requests.count("view")
    payload = asyncio.run(event_of(trigger_of(connected, submitted("#!/bin/bash\n"), None)))
    assert payload["carry"] == {"mine": 1}
    assert connected.requests.count("view") == before


def test_a_trigger_survives_a_log_that_cannot_be_read(connected, submitted, output):
    connected.faults.garbage(on="view", times=None)
    append(output / "out", "one\n")
    job_id = submitted("#!/bin/bash\nsleep 1\n")
    payload = asyncio.run(event_of(trigger_of(connected, job_id, logs_of(connected, job_id, output))))
    assert payload["outcome"] == "done"
    connected.faults.clear()
    assert finished(connected, JobLogs.from_json(payload["carry"]["logs"])) == ["one"]


def test_a_trigger_logs_through_its_own_logger(connected, submitted, output, capsys):
    append(output / "out", "100% done\n")
    job_id = submitted("#!/bin/bash\nsleep 1\n")
    asyncio.run(event_of(trigger_of(connected, job_id, logs_of(connected, job_id, output))))
    assert capsys.readouterr().out.count("100% done") == 1


# --- the hub ---


async def opener(gateway: Gateway) -> AsyncClient:
    return AsyncClient(gateway.url, auth_of(gateway), policy=POLICY)


def test_what_is_asked_beside_the_looks_goes_in_turn_at_a_pace(connected, submitted, monkeypatch):
    monkeypatch.setattr(hubs, "_ASIDE", 0.2)
    job_id = submitted("#!/bin/bash\nsleep 60\n")
    append(connected.home / "paced", "x\n")
    call = files.view(connected.system, str(connected.home / "paced"))

    async def main() -> None:
        hub = hub_for((connected.url, "paced"), connected.system, lambda: opener(connected))
        wait = asyncio.create_task(hub.wait(watch_of(connected, job_id)))
        await asyncio.gather(*(hub.send(call) for _ in range(5)))
        wait.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await wait

    connected.requests.clear()
    asyncio.run(asyncio.wait_for(main(), 10))
    reads = connected.requests.of("view")
    assert reads[-1].at - reads[0].at >= 0.5
    assert connected.requests.count("token") <= 1


def test_a_pause_asked_for_by_a_read_is_kept_by_all(connected, submitted):
    job_id = submitted("#!/bin/bash\nsleep 60\n")
    connected.faults.rate_limit(1, on="view")
    call = files.view(connected.system, str(connected.home))

    async def main() -> None:
        hub = hub_for((connected.url, "paused"), connected.system, lambda: opener(connected))
        wait = asyncio.create_task(hub.wait(watch_of(connected, job_id, poll_interval=0.1)))
        with pytest.raises(RateLimitedError):
            await hub.send(call)
        limited = time.time()
        with contextlib.suppress(HpcError):
            await hub.send(call)
        wait.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await wait
        later = [entry.at for entry in connected.requests if entry.at > limited]
        assert min(later) >= limited + 0.9

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_read_whose_client_is_closed_is_no_failure(connected, submitted):
    job_id = submitted("#!/bin/bash\nsleep 60\n")
    append(connected.home / "closed", "x\n")
    connected.faults.delay(0.3, on="view")
    call = files.view(connected.system, str(connected.home / "closed"))

    async def main() -> None:
        hub = hub_for((connected.url, "closed"), connected.system, lambda: opener(connected))
        first = asyncio.create_task(hub.wait(watch_of(connected, job_id)))
        read = asyncio.create_task(hub.send(call))
        await come(lambda: connected.requests.of("view"))
        first.cancel()
        await asyncio.wait([first])
        await asyncio.sleep(0.2)
        assert not read.done()
        second = asyncio.create_task(hub.wait(watch_of(connected, job_id)))
        assert await read == "x\n"
        second.cancel()
        await asyncio.wait([second])

    connected.requests.clear()
    asyncio.run(asyncio.wait_for(main(), 10))
