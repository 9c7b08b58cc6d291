"""Starts Airflow's part (``_airflow.py``) of a benchmark beside a gateway, and waits for its results."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from airflow_hpc_provider.devgateway import Gateway

_AIRFLOW = Path(__file__).with_name("_airflow.py")


class Run:
    """Tasks on their way; leave it by ``results`` or by ``stop``.

    :param connection: the connection ``hpc_default``
    :param home: an empty folder for all that Airflow keeps
    """

    def __init__(self, connection: dict[str, Any], orders: dict[str, Any], home: Path) -> None:
        self._results = home / "results.json"
        orders_file = home / "orders.json"
        orders_file.write_text(json.dumps(orders))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
        environment = {
            **kept,
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_HPC_DEFAULT": json.dumps(connection),
        }
        command = [sys.executable, "-W", "ignore", str(_AIRFLOW), str(orders_file), str(self._results)]
        # A group of its own: tries and triggerer end with it, whatever happens.
        self._process = subprocess.Popen(command, env=environment, start_new_session=True)

    def results(self, timeout: float) -> dict[str, Any]:
        """What became of the tasks.

        :param timeout: seconds to wait for them at the most
        :raises RuntimeError: Airflow's part failed
        """
        code = self._process.wait(timeout)
        if code:
            raise RuntimeError(f"Airflow's part ended with code {code}")
        found: dict[str, Any] = json.loads(self._results.read_text())
        return found

    def stop(self) -> None:
        """End whatever still runs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def jobs_by_task(gateway: Gateway) -> dict[str, list[Any]]:
    """The records of all jobs in a gateway's scheduler, by the first part of their names."""
    found: dict[str, list[Any]] = {}
    for record in gateway.scheduler.records():
        found.setdefault(record.name.rpartition("-")[0], []).append(record)
    return found
