"""What importing this provider adds to a DAG file: the median over fresh interpreters, and what it loads.

    uv run tests/benchmarks/import_time.py --runs 15

Each run is a fresh interpreter; the two kinds alternate, so that a busy machine slows both. Exits 1 if the
provider loads what no DAG needs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

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
KINDS = {"airflow.sdk": AIRFLOW, "airflow.sdk + provider": f"{AIRFLOW}\n{PROVIDER}"}
FORBIDDEN = ("pandas", "numpy", "uvicorn", "starlette", "airflow_hpc_provider.devgateway", "pyfirecrest", "firecrest")
PROBE = """\
import json, sys, time
start = time.perf_counter()
{imports}
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted(sys.modules)]))
"""


def measure(imports: str, home: str) -> tuple[float, set[str]]:
    """Seconds and modules of one fresh interpreter."""
    environment = os.environ | {"AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE.format(imports=imports)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, modules = json.loads(done.stdout.splitlines()[-1])
    return seconds, set(modules)


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="fresh interpreters of each kind")
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    modules: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as home:
        for kind, imports in KINDS.items():  # once unmeasured: compiles what is not compiled yet
            modules[kind] = measure(imports, home)[1]
        for _ in range(runs):
            for kind, imports in KINDS.items():
                seconds[kind].append(measure(imports, home)[0])
    print(f"{'imports':<24} {'median':>8} {'fastest':>8} {'slowest':>8} {'modules':>8}")
    for kind, values in seconds.items():
        low, middle, high = (1000 * f(values) for f in (min, statistics.median, max))
        print(f"{kind:<24} {middle:>5.0f} ms {low:>5.0f} ms {high:>5.0f} ms {len(modules[kind]):>8}")
    base, ours = seconds.values()
    pairs = [1000 * (b - a) for a, b in zip(base, ours, strict=True)]
    between = 1000 * (statistics.median(ours) - statistics.median(base))
    fastest = 1000 * (min(ours) - min(base))
    print(f"The provider adds {between:.0f} ms (of medians; of the fastest {fastest:.0f} ms, of pairs {statistics.median(pairs):.0f} ms).")
    added = modules["airflow.sdk + provider"] - modules["airflow.sdk"]
    wrong = sorted(name for name in added if any(name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN))
    if wrong:
        print(f"The provider loads what no DAG needs: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
