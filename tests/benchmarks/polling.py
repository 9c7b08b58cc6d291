"""What it costs to wait for many jobs: the hub against one request per job and interval.

    uv run tests/benchmarks/polling.py --jobs 1000 --json polling.json

Both sides wait for the same jobs at the same gateway, one after the other, each in a process of its own.
*Ours* are job triggers that wait through the hub. *Theirs* is what a poll loop of coroutines makes of
pyfirecrest's async client: one ``AsyncFirecrest.job_info`` per job and poll interval. A fifth of the jobs (at
least twenty, if there are so many) end in the first half of the run.

A thousand real processes are too many for a small machine, so the gateway is a simulation in a process of
its own (``_gateway.py``): FirecREST's paths and bodies for jobs that exist only as records. It answers at
once, as no real one does. All traffic stays on loopback.

- requests: to the gateway, a minute
- MB: over the wire a minute, heads and bodies, both ways
- CPU: seconds of the waiting process, a minute
- KiB: growth of its resident memory per waiting job, all in
- delay: from a job's end until its wait is over, in seconds
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
# With fewer jobs the memory of one is lost in that of the process: the table shows none.
_ENOUGH = 1000


def measure(side: str, url: str, jobs: int, options: argparse.Namespace, home: str) -> dict[str, Any]:
    """One side's figures for so many jobs."""
    ending = min(jobs, max(20, jobs // 5))
    first, last = 2.0, max(2.5, options.seconds - 2.2 * options.poll_interval)
    every = max(1, jobs // ending)
    ends = {
        str(1 + place * every): first + (last - first) * (place + 0.5) / ending for place in range(ending)
    }
    orders = {
        "side": side,
        "url": url,
        "jobs": jobs,
        "ends": ends,
        "seconds": options.seconds,
        "interval": options.poll_interval,
    }
    environment = {**os.environ, "AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(_HERE / "_waiting.py"), json.dumps(orders)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=options.seconds + 120,
        check=True,
    )
    raw = json.loads(done.stdout.splitlines()[-1])
    delays = sorted(raw["delays"])
    return {
        "requests": raw["requests"] / raw["seconds"] * 60,
        "mb": raw["bytes"] / raw["seconds"] * 60 / 1e6,
        "cpu": raw["cpu"] / raw["seconds"] * 60,
        "kib": max(0, raw["kib"]) / jobs,
        "p50": delays[len(delays) // 2],
        "p95": delays[min(len(delays) - 1, int(len(delays) * 0.95))],
    }


def show(jobs: int, side: str, row: dict[str, Any]) -> None:
    kib = f"{row['kib']:.1f}" if jobs >= _ENOUGH else "-"
    print(
        f"{jobs:>6}  {side:<7}{row['requests']:>13.0f}{row['mb']:>9.2f}{row['cpu']:>9.2f}{kib:>10}"
        f"{row['p50']:>10.2f}{row['p95']:>10.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", default="1000", help="how many, or a list: 1,10,100,1000,10000")
    parser.add_argument("--poll-interval", type=float, default=5.0, help="seconds")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each side's run")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    sizes = sorted({int(size) for size in options.jobs.split(",")})
    rows: list[dict[str, Any]] = []
    command = [sys.executable, str(_HERE / "_gateway.py")]
    print(f"Jobs that wait with a poll interval of {options.poll_interval:g} s, figures a minute:")
    print("  jobs  side     requests/min   MB/min  CPU s/min  KiB/job  delay p50       p95")
    with (
        tempfile.TemporaryDirectory() as home,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as gateway,
    ):
        assert gateway.stdin
        assert gateway.stdout
        try:
            url = f"http://127.0.0.1:{int(gateway.stdout.readline())}"
            for jobs in sizes:
                row: dict[str, Any] = {"jobs": jobs}
                for side in ("ours", "theirs"):
                    row[side] = measure(side, url, jobs, options, home)
                    show(jobs, side, row[side])
                if row["theirs"]["requests"] < jobs * 30 / options.poll_interval:
                    print("        theirs cannot keep up: its client is busy with its own queue of requests")
                row["requests_ratio"] = row["theirs"]["requests"] / max(row["ours"]["requests"], 1e-9)
                rows.append(row)
        finally:
            gateway.stdin.close()
    judged = next((row for row in rows if row["jobs"] == 1000), rows[-1])
    result = {
        "jobs": judged["jobs"],
        "poll_interval": options.poll_interval,
        "requests_ratio": judged["requests_ratio"],
        "memory_per_job_kib": judged["ours"]["kib"],
        "delay_p95_over_interval": judged["ours"]["p95"] / options.poll_interval,
        "rows": rows,
    }
    print(
        f"At {judged['jobs']} jobs: theirs sends {result['requests_ratio']:.0f} times the requests of ours; "
        f"the p95 delay is {result['delay_p95_over_interval']:.2f} poll intervals."
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
