"""Hundreds of jobs at a gateway that fails at random, under an Airflow that dies at random.

    uv run tests/benchmarks/chaos.py --jobs 500 --json chaos.json

Every job must complete, once: as many successes as tasks, one job for each in the gateway's scheduler, and
none that another try has sent again. Exits 1 otherwise.

At the gateway (embedded, with real short jobs) any request may meet a fault for as long as the tasks live,
those for tokens included: cut before or after the work was done, refused, answered by a proxy, by a web page
or by half an answer, slow, slower than the client waits. Now and then all older tokens expire. Half of the
tasks defer, half wait in the worker; tries are killed at chosen points and at any moment, triggers are
dropped and started again from their arguments, and the triggerer is killed as a whole (see ``_airflow.py``).

What a seed repeats: which tries and triggers are killed, and which request of each kind meets which fault:
the 17th submission, the 200th look at a list. Which task sends the 17th submission is for the operating
system to decide, so counts of requests and tries differ a little from run to run. All traffic stays on
loopback.
"""

import argparse
import json
import random
import secrets
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from _run import Run, jobs_by_task

from airflow_hpc_provider.devgateway import Gateway
from airflow_hpc_provider.devgateway.faults import Entry, Fault, Faults

_WORKERS = 64
_RETRIES = 3
_POLL_INTERVAL = 5.0
# Seconds for which the client waits for an answer, and for which the gateway keeps it waiting.
_PATIENCE, _SLOW, _TOO_SLOW = 8.0, 1.0, 10.0
# Tokens expire after so many requests, all but those that are younger than so many seconds.
_TOKENS_LIVE, _YOUNG = (150, 350), 3.0
# Jobs of so many seconds: waited for in the worker, and deferred, where the shortest ends before that.
_SECONDS = {False: (0, 2, 4, 6), True: (1, 7, 9, 11, 13)}
_TRIGGERER_KILLS = (0.3, 0.7)


def kinds() -> dict[str, Fault]:
    """All that may happen to a request."""
    make = Faults()
    return {
        "cut before the work": make.cut(),
        "reset before the work": make.cut(reset=True),
        "cut after the work": make.cut(when="after"),
        "reset after the work": make.cut(when="after", reset=True),
        "500 before the work": make.respond(500),
        "500 after the work": make.lose_answer(status=500),
        "502 page before": make.bad_gateway(),
        "502 page after": make.bad_gateway(when="after"),
        "503 health gate": make.unhealthy("embedded"),
        "504 before the work": make.respond(504),
        "504 after the work": make.lose_answer(status=504),
        "408 before the work": make.respond(408),
        "408 after the work": make.lose_answer(status=408),
        "429 retry after 1 s": make.rate_limit(1),
        "web page with 200": make.garbage(),
        "half an answer": make.truncate(),
        "slow": make.delay(_SLOW),
        "too slow before": make.delay(_TOO_SLOW),
        "too slow after": make.delay(_TOO_SLOW, when="after"),
    }


class Chaos:
    """Which request meets which fault: the seed says it of the n-th request of each kind."""

    def __init__(self, gateway: Gateway, seed: int, rate: float) -> None:
        self.hits: Counter[str] = Counter()
        self._gateway, self._seed, self._rate = gateway, seed, rate
        self._kinds = kinds()
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._dice = random.Random(f"{seed}/tokens")
        self._tokens_until = self._dice.randint(*_TOKENS_LIVE)
        gateway.faults.take = self.take  # type: ignore[method-assign]

    def take(self, entry: Entry) -> Fault | None:
        """The fault that this request meets, if any."""
        with self._lock:
            number = self._seen[entry.operation]
            self._seen[entry.operation] += 1
            if self._seen.total() >= self._tokens_until:
                self._tokens_until += self._dice.randint(*_TOKENS_LIVE)
                self.hits["tokens expire"] += 1
                self._gateway._tokens._expired_before = entry.at - _YOUNG
            dice = random.Random(f"{self._seed}/{entry.operation}/{number}")
            if dice.random() >= self._rate:
                return None
            kind = dice.choice(list(self._kinds))
            self.hits[kind] += 1
            return self._kinds[kind]


def plan(seed: int, jobs: int, kill_rate: float) -> dict[str, Any]:
    """The tasks, and which of their tries and triggers are killed."""
    dice = random.Random(f"{seed}/tasks")
    spread = jobs / 10

    def kill() -> str | float | None:
        if dice.random() >= kill_rate:
            return None
        return dice.choice(["unsent", "sent", "known", "over", dice.uniform(0.1, 6.0)])

    tasks = []
    for number in range(jobs):
        deferrable = number % 2 == 0
        options = {
            "script": f"#!/bin/sh\nexec sleep {dice.choice(_SECONDS[deferrable])}\n",
            "deferrable": deferrable,
            "poll_interval": _POLL_INTERVAL,
        }
        tasks.append(
            {
                "task_id": f"task{number:04d}",
                "start": spread * number / jobs,
                "options": options,
                # The last tries are left alone: a task whose tries are all killed has failed, and rightly so.
                "kills": [kill(), kill()],
                "abandon": dice.uniform(0.0, 8.0) if dice.random() < kill_rate else None,
            }
        )
    return {
        "tasks": tasks,
        "workers": _WORKERS,
        "retries": _RETRIES,
        "triggerer_kills": [5 + part * spread for part in _TRIGGERER_KILLS] if kill_rate else [],
    }


def wrongs(gateway: Gateway, results: dict[str, Any]) -> list[str]:
    """What is not as it must be, a sentence each."""
    told = []
    jobs = jobs_by_task(gateway)
    for task in results["tasks"]:
        name = task["task_id"]
        if task["state"] != "success":
            told.append(f"{name} failed in try {task['tries']}: {task['error']}")
        found = jobs.pop(name, [])
        if [record.state for record in found] != ["COMPLETED"]:
            states = ", ".join(f"{record.name} ({record.job_id}): {record.state}" for record in found)
            told.append(f"{name} has {len(found)} jobs instead of one that completed. {states}")
        elif task["state"] == "success" and found[0].job_id != task["job_id"]:
            told.append(f"{name} tells of job {task['job_id']}, but its job is {found[0].job_id}.")
    told += [f"Job {records[0].name} belongs to no task." for records in jobs.values()]
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--rate", type=float, default=0.05, help="part of all requests that meet a fault")
    parser.add_argument("--kill-rate", type=float, default=0.1, help="part of tries and triggers killed")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="repeats a run")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--logs", type=Path, help="new folder for what the tasks log")
    chosen = parser.parse_args()
    print(f"Seed {chosen.seed}: {chosen.jobs} jobs, faults at {chosen.rate:.1%} of all requests.", flush=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        Gateway(scheduler="local", job_cpus=chosen.jobs + 1) as gateway,
    ):
        home = chosen.logs or Path(scratch) / "airflow"
        home.mkdir(parents=True)
        chaos = Chaos(gateway, chosen.seed, chosen.rate)
        orders = plan(chosen.seed, chosen.jobs, chosen.kill_rate)
        run = Run(gateway.connection(timeout=_PATIENCE), orders, home)
        try:
            results = run.results(300 + chosen.jobs)
        finally:
            run.stop()
        told = wrongs(gateway, results)
        in_gateway = len(gateway.scheduler.records())
        requests = Counter(one.operation for one in gateway.requests)
    succeeded = sum(task["state"] == "success" for task in results["tasks"])
    print(f"\n{'requests':<26}{'all':>7}")
    for name, count in requests.most_common():
        print(f"{name:<26}{count:>7}")
    print(f"\n{'faults':<26}{'times':>7}")
    for name, count in sorted(chaos.hits.items()):
        print(f"{name:<26}{count:>7}")
    print(
        f"\n{results['tries']} tries, {results['killed']} of their processes killed; "
        f"{results['triggers']} deferrals, {results['abandoned']} triggers dropped, "
        f"{results['triggerer_kills']} triggerers killed."
    )
    for sentence in told:
        print(sentence, file=sys.stderr)
    print(
        f"{succeeded} of {chosen.jobs} tasks succeeded with {in_gateway} jobs, {requests.total()} requests "
        f"and {chaos.hits.total()} faults in {results['seconds']:.0f} s."
    )
    if chosen.json:
        flat = {
            "tasks": chosen.jobs,
            "succeeded": succeeded,
            "jobs_in_gateway": in_gateway,
            "wrong": len(told),
            "seed": chosen.seed,
            "rate": chosen.rate,
            "kill_rate": chosen.kill_rate,
            "requests": requests.total(),
            "faults": chaos.hits.total(),
            **{f"fault_{name.replace(' ', '_')}": count for name, count in sorted(chaos.hits.items())},
            **{name: value for name, value in results.items() if name != "tasks"},
        }
        chosen.json.write_text(json.dumps(flat, indent=1) + "\n")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
