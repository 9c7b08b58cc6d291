"""A running Airflow for tests: PostgreSQL and every component as processes of their own, on loopback."""

import contextlib
import fcntl
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import airflow_home
import httpx
from loopback import closed_port

from airflow_hpc_provider.devgateway import Gateway

__all__ = ["Airflow", "CannotRunError", "Gate", "Postgres", "Process", "Run", "job_states", "until"]

T = TypeVar("T")

FOLDERS = {
    "tests": Path(__file__).parent / "airflow" / "dags",
    "examples": Path(__file__).parents[1] / "dags_examples",
}

# What Airflow consists of, here and in docker-compose.yaml.
COMPONENTS = ("api-server", "dag-processor", "scheduler", "triggerer")
# Of docker-compose.yaml: it brings the database up to date, makes the admin's password known, and serves.
API_SERVER = Path(__file__).parents[1] / ".docker" / "start" / "api-server.sh"

# How soon Airflow notices that something died; by default that takes half a minute and more.
QUICK = {
    "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "5",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
}
# Room for hundreds of tasks at once, and time on a slow machine.
ROOM = {
    "AIRFLOW__API__MAXIMUM_PAGE_LIMIT": "1000",
    "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "500",
    "AIRFLOW__CORE__PARALLELISM": "16",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_SIZE": "30",
    "AIRFLOW__SCHEDULER__MAX_TIS_PER_QUERY": "64",
    # The first kill makes a triggerer build its API, which takes it ten seconds of CPU time.
    "AIRFLOW__TRIGGERER__ON_KILL_TIMEOUT": "60",
}
# Each task is a fork of the scheduler: what that has imported, hundreds of tasks need not import again.
# A plugin that warns as if the provider did, in each process that reads plugins; see test_whole.py.
WARNING_PLUGIN = """
import os, warnings
name = os.environ["LOGNAME"]
warnings.warn_explicit("found", UserWarning, f"/somewhere/airflow_hpc_provider/no_module_in_{name}.py", 1)
"""
PRELOADED = """
import airflow.dag_processing.dagbag, airflow_hpc_provider.operators.jobs, airflow_hpc_provider.submission
from airflow.__main__ import main
main()
"""


class CannotRunError(Exception):
    """This machine lacks what a running Airflow needs."""


def until(look: Callable[[], T], timeout: float, what: Any, *, pause: float = 0.3) -> T:
    """Look until there is something, and return it.

    :param look: asked again and again for something true
    :param timeout: seconds after which the test fails
    :param what: what is waited for, or a function that tells it at the end
    :param pause: seconds between two looks
    """
    end = time.monotonic() + timeout
    while not (found := look()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout:.0f} s for {what() if callable(what) else what}")
        time.sleep(pause)
    return found


class Process:
    """A program in a session of its own, with all the processes it starts.

    :param name: of the program and its log
    :param command: what to run
    :param environment: all of its environment
    :param log_folder: where its log goes
    :param folder: where it runs, if not there
    :param user: who it runs as, if not this process's user
    :param stop_with: the signal that asks it to end
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str],
        log_folder: Path,
        *,
        folder: Path | None = None,
        user: str | None = None,
        stop_with: int = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.log = log_folder / f"{name}.log"
        # Should the tests be killed, then it is told to end by the kernel.
        setpriv = shutil.which("setpriv")
        self._command = [*([setpriv, "--pdeathsig", "TERM"] if setpriv else []), *command]
        self._options: dict[str, Any] = {"env": dict(environment), "cwd": folder or log_folder}
        if user is not None:
            self._options |= {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": ()}
        self._stop_with = stop_with
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def run(self, timeout: float) -> bool:
        """Start it, wait for its end, and tell whether that was a good one.

        :param timeout: seconds that it may take
        """
        try:
            self.start()
            until(lambda: not self.alive, timeout, f"the end of {self.name}", pause=0.05)
        finally:
            self.kill()
        return self._process is not None and self._process.returncode == 0

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **self._options,
            )

    def signal(self, number: int) -> None:
        """Send a signal to everyone in the session."""
        for pid in self.everyone():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def everyone(self) -> list[int]:
        """All processes of the session: tasks have process groups of their own."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(ProcessLookupError):
                    if os.getsid(int(entry.name)) == self.pid:
                        found.append(int(entry.name))
        return found

    def ask_to_stop(self) -> None:
        if self.alive:
            os.kill(self.pid, self._stop_with)

    def stop(self, timeout: float = 10.0) -> None:
        """Ask the program to end, then kill what is left of its session.

        :param timeout: seconds between the two
        """
        self.ask_to_stop()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
            self.kill()

    def kill(self) -> None:
        """Kill everyone in the session at once, as when a machine is lost."""
        if self._process is None:
            return

        def gone() -> bool:
            self.signal(signal.SIGKILL)
            return not self.alive and not self.everyone()

        until(gone, 10, f"the end of {self.name}", pause=0.02)

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Postgres:
    """A PostgreSQL server with a random password, on a free loopback port.

    :param log_folder: where its log goes
    """

    def __init__(self, log_folder: Path) -> None:
        self._programs = self._find()
        # The server refuses to run as root; and its user must be able to reach its files.
        self._user = None
        if os.geteuid() == 0:
            self._user = "postgres"
            try:
                pwd.getpwnam(self._user)
            except KeyError as error:
                raise CannotRunError(
                    "PostgreSQL does not run as root, and there is no user postgres"
                ) from error
        self._folder = Path(tempfile.mkdtemp(prefix="airflow-postgres-"))
        self._password = secrets.token_hex(16)
        self.port = closed_port()
        self.url = f"postgresql+psycopg2://airflow:{self._password}@127.0.0.1:{self.port}/postgres"
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
            "max_connections": 300,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = self._program("postgres", *options, log_folder=log_folder)
        self._initdb = self._program(
            *("initdb", "-U", "airflow", "-E", "UTF8", "--locale=C", "--no-sync"),
            *("-A", "scram-sha-256", f"--pwfile={self._folder / 'password'}"),
            log_folder=log_folder,
        )

    def _program(self, name: str, *options: str, log_folder: Path) -> Process:
        return Process(
            name,
            [str(self._programs / name), "-D", str(self._folder / "data"), *options],
            {"LC_ALL": "C", "PATH": os.environ["PATH"]},
            log_folder,
            folder=self._folder,
            user=self._user,
            stop_with=signal.SIGINT,
        )

    @staticmethod
    def _find() -> Path:
        """Debian keeps the server's programs off the path, a folder for each version."""
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: p.parts[-3])
        found = shutil.which("initdb") or (str(versions[-1]) if versions else None)
        if found is None:
            raise CannotRunError("PostgreSQL's initdb is missing: install Debian's package postgresql")
        return Path(found).resolve().parent

    def start(self) -> None:
        secret = self._folder / "password"
        secret.write_text(self._password)
        if self._user is not None:
            for path in (self._folder, secret):
                shutil.chown(path, self._user)
        if not self._initdb.run(timeout=60):
            raise CannotRunError(f"PostgreSQL's initdb failed:\n{self._initdb.tail()}")
        self._process.start()
        until(self._answers, 30, lambda: f"PostgreSQL:\n{self._process.tail()}", pause=0.1)

    def _answers(self) -> bool:
        import psycopg2

        assert self._process.alive, self._process.tail()
        with contextlib.suppress(psycopg2.OperationalError):
            psycopg2.connect(self.url.replace("+psycopg2", "")).close()
            return True
        return False

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


class Airflow:
    """PostgreSQL, API server, scheduler with LocalExecutor, DAG processor and two triggerers.

    Its components share a home; the DAG processor's connections lead to a closed port, so that no DAG file
    can reach the gateway.

    :param home: an empty directory
    :param gateway: what ``hpc_default`` leads to, and ``hpc_patient`` with five minutes for each answer
    """

    def __init__(self, home: Path, gateway: Gateway) -> None:
        self.home = home
        self.gateway = gateway
        self.logs = home / "components"
        self.logs.mkdir()
        self._postgres = Postgres(self.logs)
        port = closed_port()
        self.url = f"http://127.0.0.1:{port}"
        #: Of the user ``admin``.
        self.password = secrets.token_hex(16)
        self.environment = self._environment(port)
        (home / "plugins").mkdir()
        (home / "plugins" / "warns.py").write_text(WARNING_PLUGIN)
        #: What the connections of the DAG processor lead to.
        self.nowhere = f"http://127.0.0.1:{closed_port()}"
        dead = json.dumps(gateway.connection() | {"host": self.nowhere})
        reaches_nothing = dict.fromkeys((airflow_home.CONNECTION, "AIRFLOW_CONN_HPC_PATIENT"), dead)
        self.api_server = Process(
            "api-server",
            ["bash", str(API_SERVER)],
            self.environment | {"AIRFLOW_ADMIN_PASSWORD": self.password, "LOGNAME": "api-server"},
            self.logs,
        )
        self.scheduler = self._component("scheduler", "--skip-serve-logs")
        self.dag_processor = self._component("dag-processor", **reaches_nothing)
        self.triggerers = [
            self._component("triggerer", "--skip-serve-logs", name=f"triggerer-{number}") for number in (1, 2)
        ]
        self._api = httpx.Client(base_url=self.url, timeout=60)

    def _environment(self, port: int) -> dict[str, str]:
        bundles = [
            {
                "name": name,
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(path), "refresh_interval": 3600},
            }
            for name, path in FOLDERS.items()
        ]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
        return {
            **inherited,
            **airflow_home.environment(self.home),
            **QUICK,
            **ROOM,
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__FERNET_KEY": urlsafe_b64encode(os.urandom(32)).decode(),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.home / "passwords.json"),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self._postgres.url,
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
            airflow_home.CONNECTION: json.dumps(self.gateway.connection()),
            "AIRFLOW_CONN_HPC_PATIENT": json.dumps(self.gateway.connection(timeout=300)),
            # The start-up file calls Airflow by its name.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "default",
        }

    def _component(self, command: str, *options: str, name: str = "", **environment: str) -> Process:
        name = name or command
        # Airflow notes the user's name with each of its jobs: that tells one triggerer from the other.
        environment = {"LOGNAME": name, **environment}
        program = ["-c", PRELOADED] if command == "scheduler" else ["-m", "airflow"]
        words = [sys.executable, *program, command, *options]
        return Process(name, words, self.environment | environment, self.logs)

    @property
    def components(self) -> list[Process]:
        return [self.api_server, self.dag_processor, self.scheduler, *self.triggerers]

    # --- life ---

    def start(self) -> Self:
        try:
            self._postgres.start()
            self.api_server.start()
            until(self._answers, 240, self.tails)
            for component in self.components[1:]:
                component.start()
            until(self._healthy, 120, self.tails)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        self._api.close()
        for component in self.components:
            component.ask_to_stop()
        for component in self.components:
            component.stop(timeout=5)
        self._postgres.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        assert self.api_server.alive, self.api_server.tail()
        with contextlib.suppress(httpx.TransportError):
            said = self._api.post("/auth/token", json={"username": "admin", "password": self.password})
            token = said.raise_for_status().json()["access_token"]
            self._api.headers["authorization"] = f"Bearer {token}"
            return True
        return False

    def _healthy(self) -> bool:
        self._all_alive()
        health = self.call("GET", "monitor/health")
        wanted = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        parsed = {path.stem for folder in FOLDERS.values() for path in folder.glob("*.py")}
        return (
            all(health[name]["status"] == "healthy" for name in wanted)
            and len(self.alive_triggerers()) == len(self.triggerers)
            and {Path(dag["fileloc"]).stem for dag in self._dags()} >= parsed - {"standalone"}
        )

    def _all_alive(self) -> None:
        for component in self.components:
            assert component.alive, f"{component.name} ended:\n{component.tail()}"

    def tails(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {one.name}\n{one.tail()}" for one in self.components if one.log.exists())

    def alive_triggerers(self) -> dict[int, str]:
        """Names of the triggerers that Airflow believes to be alive, by the ids of their jobs."""
        found = self.call("GET", "jobs", params={"job_type": "TriggererJob", "is_alive": True})
        return {job["id"]: job["unixname"] for job in found["jobs"]}

    def restart(self, triggerer: Process) -> None:
        """Start a triggerer again, and wait until Airflow knows of it."""
        known = self.alive_triggerers()
        triggerer.start()
        until(lambda: self.alive_triggerers().keys() - known, 60, triggerer.tail)

    def triggerer_of(self, task: Mapping[str, Any]) -> Process | None:
        """The triggerer that has a deferred task, if one has it."""
        name = (task["triggerer_job"] or {}).get("unixname")
        return next((one for one in self.triggerers if one.name == name), None)

    # --- what users do ---

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Ask the public REST API."""
        answer = self._api.request(method, f"/api/v2/{path}", **options)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def dags(self) -> set[str]:
        return {dag["dag_id"] for dag in self._dags()}

    def _dags(self) -> list[dict[str, Any]]:
        return list(self.call("GET", "dags", params={"limit": 100})["dags"])

    def trigger(self, dag_id: str, **conf: Any) -> "Run":
        """Start a DAG run."""
        body = {"logical_date": None, "conf": conf}
        run = self.call("POST", f"dags/{dag_id}/dagRuns", json=body)
        return Run(self, dag_id, run["dag_run_id"])


class Run:
    """One DAG run, as the REST API shows it; a task is called ``job`` unless named."""

    def __init__(self, airflow: Airflow, dag_id: str, run_id: str) -> None:
        self.airflow = airflow
        self.dag_id = dag_id
        self.run_id = run_id
        self._path = f"dags/{dag_id}/dagRuns/{run_id}"

    @property
    def state(self) -> str:
        return str(self.airflow.call("GET", self._path)["state"])

    def tasks(self) -> list[dict[str, Any]]:
        """All task instances."""
        found = self.airflow.call("GET", f"{self._path}/taskInstances", params={"limit": 1000})
        return list(found["task_instances"])

    def count(self, state: str) -> int:
        """How many task instances are in a state; cheaper than all of them."""
        where = {"state": state, "limit": 1}
        return int(self.airflow.call("GET", f"{self._path}/taskInstances", params=where)["total_entries"])

    def end(self) -> None:
        """End the run, whatever its tasks are doing."""
        if self.state not in ("success", "failed"):
            self.airflow.call("PATCH", self._path, json={"state": "failed"})

    def task(self, task_id: str = "job") -> dict[str, Any]:
        """A task instance that is not mapped."""
        return dict(self.airflow.call("GET", f"{self._path}/taskInstances/{task_id}"))

    def wait(self, state: str, *, timeout: float = 90) -> None:
        """Wait until the run is over, and see how it ended."""
        until(lambda: self.state in ("success", "failed"), timeout, self._told, pause=0.5)
        assert self.state == state, self._told()

    def wait_for(self, *states: str, task_id: str = "job", timeout: float = 60) -> dict[str, Any]:
        """Wait until a task is in one of these states."""
        until(lambda: self.task(task_id)["state"] in states, timeout, self._told)
        return self.task(task_id)

    def wait_for_trigger(self, task_id: str = "job") -> None:
        """Wait until a triggerer runs the trigger of a task: before that, Airflow tells nobody of an end."""
        self.wait_for("deferred", task_id=task_id)
        said = re.compile(
            rf"trigger {self.dag_id}/{re.escape(self.run_id)}/{task_id}/\S+ \(ID \d+\) starting"
        )
        until(lambda: any(map(said.search, self.log(task_id))), 60, self._told, pause=0.5)

    def _told(self) -> str:
        told = [f"{self.dag_id} {self.run_id}: {self.state}"]
        for task in self.tasks()[:20]:
            told.append(f"{task['task_id']}[{task['map_index']}] try {task['try_number']}: {task['state']}")
            for number in range(1, (task["try_number"] or 0) + 1):
                with contextlib.suppress(AssertionError):
                    told += self.log(task["task_id"], try_number=number, map_index=task["map_index"])[-30:]
        return "\n".join(told)

    def set_state(self, state: str, task_id: str = "job") -> None:
        """Mark a task, as the buttons of the UI do."""
        self.airflow.call("PATCH", f"{self._path}/taskInstances/{task_id}", json={"new_state": state})

    def clear(self, task_id: str = "job") -> None:
        """Clear a task, so that it runs again."""
        body = {"dry_run": False, "dag_run_id": self.run_id, "task_ids": [task_id], "only_failed": False}
        self.airflow.call("POST", f"dags/{self.dag_id}/clearTaskInstances", json=body)

    def log(self, task_id: str = "job", *, try_number: int = 1, map_index: int = -1) -> list[str]:
        """The lines of a try's log as the API gives them."""
        found = self.airflow.call(
            "GET",
            f"{self._path}/taskInstances/{task_id}/logs/{try_number}",
            params={"full_content": True, "map_index": map_index},
            headers={"accept": "application/json"},
        )
        return [
            json.dumps(entry, ensure_ascii=False) if isinstance(entry, dict) else str(entry)
            for entry in found["content"]
        ]

    def pid(self, task_id: str = "job") -> int:
        """The process that runs a task, which is a child of the executor's worker."""
        return int(until(lambda: self.task(task_id)["pid"], 30, self._told))


class Gate:
    """A file on which jobs wait until the test opens it.

    :param path: where it is; jobs run ``flock --shared PATH true``
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def open(self) -> None:
        self._file.close()


def job_states(gateway: Gateway, name: str) -> dict[str, str]:
    """The states of all jobs whose names begin like this, by id."""
    records = [record for record in gateway.scheduler.records() if record.name.startswith(name)]
    return {record.base_id: record.state.split()[0] for record in records}
