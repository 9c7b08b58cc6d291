"""What importing this provider adds to a DAG file: the median over fresh interpreters, and what it loads.

    uv run tests/benchmarks/import_time.py --runs 15

Each run is a fresh interpreter; the two kinds alternate, so that a busy machine slows both. The
provider's own share is measured once more inside the second kind, in CPU time, which others change less.
The garbage collector is off: a full collection of what Airflow has loaded takes 100 ms, and chance decides
in whose part it falls. Exits 1 if the provider loads what no DAG needs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass

# What every DAG file with a task of its own imports anyway; airflow.sdk itself loads its names lazily.
AIRFLOW = "from airflow.sdk import DAG, BaseHook, BaseOperator, BaseSensorOperator, Param, task"
PROVIDER = """\
from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator
from airflow_hpc_provider.operators.jobs import HpcCancelJobOperator, HpcSubmitJobOperator
from airflow_hpc_provider.sensors.files import HpcFileSensor
from airflow_hpc_provider.sensors.jobs import HpcJobSensor
from airflow_hpc_provider.sensors.systems import HpcSystemSensor
from airflow_hpc_provider.triggers.files import HpcFileTrigger
from airflow_hpc_provider.triggers.jobs import HpcJobTrigger
from airflow_hpc_provider.triggers.systems import HpcSystemTrigger"""
KINDS = {"airflow.sdk": "", "airflow.sdk + provider": PROVIDER}
FORBIDDEN = (
    "airflow_hpc_provider.devgateway",
    "firecrest",
    "matplotlib",
    "numpy",
    "pandas",
    "sklearn",
    "starlette",
    "uvicorn",
)
PROBE = """\
import gc, json, sys, time
gc.disable()
start = time.perf_counter()
{airflow}
begun = time.process_time()
{provider}
share = time.process_time() - begun
print(json.dumps([time.perf_counter() - start, share, sorted(sys.modules)]))
"""


@dataclass(frozen=True)
class Sample:
    """One fresh interpreter: seconds in all, CPU seconds of the provider's part, and what is loaded."""

    seconds: float
    share: float
    modules: frozenset[str]


def measure(provider: str, home: str) -> Sample:
    """Import in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE.format(airflow=AIRFLOW, provider=provider)],
        env=os.environ | {"AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, share, modules = json.loads(done.stdout.splitlines()[-1])
    return Sample(seconds, share, frozenset(modules))


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=15, help="fresh interpreters of each kind")
    runs = parser.parse_args().runs
    samples: dict[str, list[Sample]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as home:
        for provider in KINDS.values():  # once unmeasured: compiles what is not compiled yet
            measure(provider, home)
        for _ in range(runs):
            for kind, provider in KINDS.items():
                samples[kind].append(measure(provider, home))
    print(f"{'imports':<24} {'median':>8} {'fastest':>8} {'slowest':>8} {'modules':>8}")
    for kind, of in samples.items():
        low, middle, high = (1000 * f(one.seconds for one in of) for f in (min, statistics.median, max))
        print(f"{kind:<24} {middle:>5.0f} ms {low:>5.0f} ms {high:>5.0f} ms {len(of[0].modules):>8}")
    without, with_provider = samples.values()
    difference = [1000 * statistics.median(one.seconds for one in of) for of in (without, with_provider)]
    share = 1000 * statistics.median(one.share for one in with_provider)
    print(f"Difference of the medians: {difference[1] - difference[0]:.0f} ms.")
    print(f"The provider's own share: {share:.0f} ms of CPU time (median).")
    added = with_provider[0].modules - without[0].modules
    wrong = sorted(name for name in added if name.startswith(FORBIDDEN))
    if wrong:
        print(f"The provider loads what no DAG needs: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
