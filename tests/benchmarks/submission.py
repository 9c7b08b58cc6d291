"""Requests for the whole life of a job: this provider against FirecREST's own example operators.

    uv run tests/benchmarks/submission.py --tasks 200 --json submission.json

Both sides submit the same jobs at the same time, each to an embedded gateway of its own, wait for their ends
and finish their tasks. *Ours* are deferrable ``HpcSubmitJobOperator`` tasks with logs off, each step in a
process of its own, all deferred ones in one triggerer, as Airflow runs them. *Theirs* is the life of a job in
the operators that FirecREST's documentation shows for Airflow, on pyfirecrest's blocking client: submit,
sleep 10 s, ask for the job every 10 s while it is pending or running, ask once more for its state.

Counted are requests to the gateway; token requests are not, on either side. The poll interval is the same.
The jobs run for real, and start at once. All traffic stays on loopback.

- requests: a job, from its submission to the end of its task
- delay: from a job's end until its task is over, in seconds
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from _run import Run, jobs_by_task

from airflow_hpc_provider.devgateway import Gateway

_WORKERS = 64
_AT_LEAST = 10.0


class Theirs:
    """Blocking tasks of another make, a thread each.

    Steps and pauses are those of ``FirecRESTSubmitOperator`` in FirecREST's documentation (use cases,
    workflow orchestrator).
    """

    def __init__(self, gateway: Gateway, starts: dict[str, float], seconds: float, interval: float) -> None:
        self._gateway, self._seconds, self._interval = gateway, seconds, interval
        self._token = gateway.access_token(lifetime=3600)
        self.ended: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self._threads = [
            threading.Thread(target=self._task, args=(task, start), daemon=True)
            for task, start in starts.items()
        ]
        for thread in self._threads:
            thread.start()

    def get_access_token(self) -> str:
        return self._token

    def _task(self, task: str, start: float) -> None:
        time.sleep(start)
        try:
            self._execute(task)
        except Exception as error:  # noqa: BLE001  whatever it is, it makes the figures void
            self.failed[task] = f"{type(error).__name__}: {error}"

    def _execute(self, task: str) -> None:
        from firecrest.v2 import Firecrest

        client, system = Firecrest(self._gateway.url, self), self._gateway.system
        client.disable_client_logging = True
        job = client.submit(
            system, script_str=script(self._seconds, task), working_dir=str(self._gateway.home)
        )
        time.sleep(self._interval)
        while client.job_info(system, job["jobId"])[0]["status"]["state"] in ("PENDING", "RUNNING"):
            time.sleep(self._interval)
        state = client.job_info(system, job["jobId"])[0]["status"]["state"]
        client.close_session()
        if state != "COMPLETED":
            raise RuntimeError(f"Job state: {state}")
        self.ended[task] = time.time()

    def join(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                raise TimeoutError("their tasks did not end in time")


def script(seconds: float, name: str = "") -> str:
    title = f"#SBATCH --job-name={name}-theirs\n" if name else ""
    return f"#!/bin/sh\n{title}exec sleep {seconds:g}\n"


def options(seconds: float, interval: float) -> dict[str, Any]:
    """Arguments of an operator that deferrably runs a job of so many seconds, with logs off."""
    return {
        "script": script(seconds),
        "deferrable": True,
        "poll_interval": interval,
        "log_interval": None,
    }


def requests_of(gateway: Gateway) -> Counter[str]:
    """How often each call was made, but for tokens."""
    names = (f"{one.operation} ({one.method})" for one in gateway.requests if one.operation != "token")
    return Counter(names)


def figures(gateway: Gateway, ended: dict[str, float]) -> dict[str, float]:
    """Requests a job and how late the ends were noticed, of one side."""
    ends = {task: records[0].end for task, records in jobs_by_task(gateway).items()}
    delays = sorted(at - ends[task] for task, at in ended.items())
    return {
        "requests_per_job": sum(requests_of(gateway).values()) / len(ended),
        "delay_p50": delays[len(delays) // 2],
        "delay_p95": delays[min(len(delays) - 1, int(len(delays) * 0.95))],
    }


def show(ours: Gateway, theirs: Gateway, tasks: int) -> None:
    counts = [requests_of(gateway) for gateway in (ours, theirs)]
    print(f"{'requests per job':<24}{'ours':>10}{'theirs':>10}")
    for name in sorted({*counts[0], *counts[1]}):
        mine, other = (count[name] / tasks for count in counts)
        print(f"{name:<24}{mine:>10.2f}{other:>10.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=200, help="how many tasks on each side")
    parser.add_argument("--seconds", type=float, default=60.0, help="for which each job runs")
    parser.add_argument("--poll-interval", type=float, default=10.0, help="seconds, of both sides")
    parser.add_argument("--spread", type=float, default=10.0, help="seconds over which the starts are spread")
    parser.add_argument("--json", type=Path, help="file for the figures")
    chosen = parser.parse_args()
    starts = {f"task{number:04d}": chosen.spread * number / chosen.tasks for number in range(chosen.tasks)}
    limit = 4 * (chosen.seconds + chosen.spread) + chosen.tasks + 60
    with (
        tempfile.TemporaryDirectory() as home,
        Gateway(scheduler="local", job_cpus=chosen.tasks + 1) as ours,
        Gateway(scheduler="local", job_cpus=chosen.tasks + 1) as theirs,
    ):
        of_each = options(chosen.seconds, chosen.poll_interval)
        orders = {
            "tasks": [
                {"task_id": task, "start": start, "options": of_each} for task, start in starts.items()
            ],
            "workers": _WORKERS,
            "retries": 0,
        }
        run = Run(ours.connection(), orders, Path(home))
        try:
            others = Theirs(theirs, starts, chosen.seconds, chosen.poll_interval)
            results = run.results(limit)
            others.join(limit)
        finally:
            run.stop()
        wrong = {one["task_id"]: one.get("error") for one in results["tasks"] if one["state"] != "success"}
        wrong |= {f"{task} (theirs)": error for task, error in others.failed.items()}
        for task, error in wrong.items():
            print(f"{task} failed: {error}", file=sys.stderr)
        if wrong:
            return 1
        print(
            f"{chosen.tasks} jobs of {chosen.seconds:g} s, poll interval {chosen.poll_interval:g} s, "
            "from submission to the end of the task:"
        )
        show(ours, theirs, chosen.tasks)
        mine = figures(ours, {one["task_id"]: one["ended"] for one in results["tasks"]})
        other = figures(theirs, others.ended)
    ratio = mine["requests_per_job"] / other["requests_per_job"]
    for name, label in (("requests_per_job", "all"), ("delay_p50", "delay p50"), ("delay_p95", "delay p95")):
        print(f"{label:<24}{mine[name]:>10.2f}{other[name]:>10.2f}")
    print(f"Ours sends {ratio:.2f} times the requests of theirs.")
    if chosen.json:
        flat = {"tasks": chosen.tasks, "seconds": chosen.seconds, "poll_interval": chosen.poll_interval}
        flat |= {f"ours_{name}": value for name, value in mine.items()}
        flat |= {f"theirs_{name}": value for name, value in other.items()}
        chosen.json.write_text(json.dumps({**flat, "ratio": ratio}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
