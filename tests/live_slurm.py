"""A running Slurm for tests: munge, MariaDB, slurmdbd, slurmctld and slurmd as processes, on loopback."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from live_airflow import CannotRunError, Process, until
from loopback import closed_port

from airflow_hpc_provider.devgateway import Gateway

__all__ = [
    "ACCOUNTS",
    "CPUS",
    "NODE",
    "PARTITIONS",
    "USER",
    "CannotRunError",
    "Slurm",
    "make_slurm_gateway",
    "slurm",
    "slurm_gateway",
    "slurm_in",
]

# Whose jobs they are: a user that every Debian has, and that may do nothing.
USER = "nobody"
# Whose daemons they are: Debian's packages make it.
_SLURM_USER = "slurm"
ACCOUNTS = ("staff", "users")
NODE = "nid001"
PARTITIONS = ("normal", "debug")
CPUS = 256
# Where Debian keeps daemons, which not every PATH names.
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_PACKAGES = {
    "munged": "munge",
    "mariadbd": "mariadb-server",
    "slurmdbd": "slurmdbd",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
}

_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")

# The node pretends to be a large one. Memory is watched, not bound: no cgroups, which need privileges in a
# container. What Slurm does within minutes by default it does within seconds here.
_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=slurm
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/state/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=64
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,default_queue_depth=1000
PriorityType=priority/basic
MaxArraySize=2001
MaxJobCount=20000
ReturnToService=2
JobRequeue=1
MinJobAge=10
KillWait=2
OverTimeLimit=0
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting_port}
AccountingStoragePass={folder}/munge/socket
AccountingStorageEnforce=associations
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=65536 State=UNKNOWN
PartitionName={partitions[0]} Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP
PartitionName={partitions[1]} Nodes=ALL MaxTime=01:00:00 State=UP
"""
_DBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting_port}
SlurmUser=slurm
PidFile={folder}/state/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""
_SQL = """\
CREATE DATABASE IF NOT EXISTS slurm;
CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL ON slurm.* TO slurm@'127.0.0.1';
"""


class Slurm:
    """One node that pretends many CPUs, two partitions, accounting, and an unprivileged user.

    All it has lies in one temporary directory. What runs on the node lives in a PID namespace, so that it
    ends with its slurmd, and that one with the tests, however they end. A container without CAP_SYS_ADMIN
    allows no namespace: there jobs end with ``stop``, and outlive tests that are killed.

    :param log_folder: where the daemons' logs go
    """

    def __init__(self, log_folder: Path) -> None:
        self._check()
        # Not pytest's: sockets have short paths, and the jobs' user has to pass.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)
        host = socket.gethostname().partition(".")[0]
        self._values: dict[str, Any] = {
            "folder": self.folder,
            "host": host,
            "node": NODE,
            "cpus": CPUS,
            "partitions": PARTITIONS,
            "password": secrets.token_hex(16),
        }
        for name in ("controller", "node", "accounting", "database"):
            self._values[f"{name}_port"] = closed_port()
        self.conf = self.folder / "slurm.conf"
        self.environment = {"PATH": _PATH, "LC_ALL": "C.UTF-8", "SLURM_CONF": str(self.conf)}
        self._logs = log_folder
        munge, data = self.folder / "munge", self.folder / "data"
        self._munge = self._daemon(
            "munged",
            *("--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket"),
            *(f"--pid-file={munge}/pid", f"--seed-file={munge}/seed", f"--log-file={munge}/log"),
        )
        options = ["--no-defaults", f"--datadir={data}", f"--tmpdir={self.folder}/tmp", "--user=root"]
        self._install_db = self._daemon(
            "mariadb-install-db", *options, "--auth-root-authentication-method=socket", "--skip-test-db"
        )
        self._database = self._daemon(
            "mariadbd",
            *options,
            *("--bind-address=127.0.0.1", f"--port={self._values['database_port']}", "--skip-name-resolve"),
            *(f"--socket={self.folder}/mariadb", f"--pid-file={self.folder}/mariadb.pid"),
            *(
                "--innodb-buffer-pool-size=64M",
                "--innodb-log-file-size=48M",
                "--innodb-lock-wait-timeout=900",
            ),
            *("--innodb-flush-log-at-trx-commit=0", "--skip-log-bin", f"--init-file={self.folder}/init.sql"),
        )
        self.accounting = self._daemon("slurmdbd", "-D", user=_SLURM_USER)
        self.controller = self._daemon("slurmctld", "-D", "-i", user=_SLURM_USER)
        if subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False).returncode == 0:
            # unshare heeds no SIGTERM. The shell reaps what falls to the first process of the namespace.
            command = ("setpriv", "--pdeathsig", "KILL", *_NAMESPACE, "sh", "-c", "slurmd -D & wait")
        else:
            command = ("slurmd", "-D")
        self.node = self._daemon(*command)

    @staticmethod
    def _check() -> None:
        missing = [package for name, package in _PACKAGES.items() if not shutil.which(name, path=_PATH)]
        if missing:
            raise CannotRunError(f"Slurm is missing: install Debian's packages {' '.join(missing)}")
        if os.geteuid() != 0:
            raise CannotRunError("slurmd starts jobs of other users: only root can run it")

    def _daemon(self, name: str, *options: str, user: str | None = None) -> Process:
        program = shutil.which(name, path=_PATH) or name
        return Process(name, [program, *options], self.environment, self._logs, user=user)

    @property
    def daemons(self) -> list[Process]:
        """In the order in which they start."""
        return [self._munge, self._database, self.accounting, self.controller, self.node]

    # --- life ---

    def start(self) -> Self:
        try:
            self._lay_out()
            self._munge.start()
            assert self._install_db.run(timeout=60), self._install_db.tail()
            self._database.start()
            until(self._database_answers, 30, self.tails, pause=0.1)
            self.start_accounting()
            self._add_accounts()
            self.start_controller()
            self.node.start()
            until(self._node_is_idle, 30, self.tails, pause=0.1)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        # Nothing of it is read again.
        for daemon in reversed(self.daemons):
            daemon.kill()
        until(lambda: not self._kill_jobs(), 10, "the end of all jobs", pause=0.05)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _lay_out(self) -> None:
        for name in ("munge", "data", "tmp", "state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge" / "key"
        key.touch(mode=0o400)
        key.write_bytes(os.urandom(128))
        self.conf.write_text(_CONF.format(**self._values))
        # Of the two plugins the older one asks for no privileges where nothing is bound.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for name, text in (("slurmdbd.conf", _DBD), ("init.sql", _SQL)):
            secret = self.folder / name
            secret.touch(mode=0o600)
            secret.write_text(text.format(**self._values))
        for name in ("state", "slurmdbd.conf"):
            shutil.chown(self.folder / name, _SLURM_USER)

    def start_accounting(self) -> None:
        """Start slurmdbd, and wait until it answers."""
        self.accounting.start()
        until(
            lambda: self._answers(self.accounting, "sacctmgr", "list", "cluster"), 60, self.tails, pause=0.1
        )

    def start_controller(self) -> None:
        """Start slurmctld, and wait until it answers."""
        self.controller.start()
        until(lambda: self._answers(self.controller, "scontrol", "ping"), 30, self.tails, pause=0.1)

    def _answers(self, daemon: Process, *command: str) -> bool:
        assert daemon.alive, f"{daemon.name} ended:\n{daemon.tail()}"
        return self._completed(*command).returncode == 0

    def _database_answers(self) -> bool:
        assert self._database.alive, self._database.tail()
        try:
            socket.create_connection(("127.0.0.1", self._values["database_port"]), timeout=1).close()
        except OSError:
            return False
        return True

    def _add_accounts(self) -> None:
        self.run("sacctmgr", "--immediate", "add", "cluster", "tests")
        self.run("sacctmgr", "--immediate", "add", "account", ",".join(ACCOUNTS))
        # Root's jobs are no business of the tests, apart from one that nobody else may cancel.
        for user in (USER, "root"):
            words = f"user {user} account={','.join(ACCOUNTS)} defaultaccount={ACCOUNTS[0]}"
            self.run("sacctmgr", "--immediate", "add", *words.split())

    def _node_is_idle(self) -> bool:
        assert self.node.alive, self.node.tail()
        return self._completed("sinfo", "--noheader", "--format=%T").stdout.split() == ["idle"]

    def tails(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {one.name}\n{one.tail()}" for one in self.daemons if one.log.exists())

    # --- what administrators do ---

    def run(self, *command: str) -> str:
        """Run one of Slurm's commands as root, and return what it says."""
        done = self._completed(*command)
        # What sacctmgr is to add is there already: it has nothing to do.
        assert done.returncode == 0 or "Nothing new added" in done.stdout, (
            f"{command}: {done.stdout}{done.stderr}"
        )
        return done.stdout

    def end(self, job_id: str) -> None:
        """End a job at once, unless it is over."""
        self._completed("scancel", "--quiet", "--full", "--signal=KILL", job_id)
        self._completed("scancel", "--quiet", job_id)

    def process_states(self, job_id: str) -> set[str]:
        """Letters as of ps(1) for the processes of a job: R, S, T ..."""
        found = set()
        for process in self._processes(f"SLURM_CONF={self.conf}", f"SLURM_JOB_ID={job_id}"):
            with contextlib.suppress(OSError):
                found.add((process / "stat").read_text().rpartition(")")[2].split()[0])
        return found

    def _kill_jobs(self) -> list[Path]:
        """Kill what still has this Slurm's configuration, and return it: jobs have sessions of their own."""
        left = [*self._processes(f"SLURM_CONF={self.conf}")]
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)
        return left

    @staticmethod
    def _processes(*variables: str) -> Iterator[Path]:
        """Folders in /proc of the processes that were started with these environment variables."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if {*variables} <= {*(process / "environ").read_bytes().decode(errors="replace").split("\0")}:
                    yield process

    def _completed(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=30, check=False
        )

    def gateway(self, **options: Any) -> Gateway:
        """A gateway whose jobs run here.

        :param options: as for Gateway
        """
        root = Path(tempfile.mkdtemp(prefix="gateway-", dir=self.folder))
        root.chmod(0o755)
        return Gateway(root, **{"scheduler": "slurm", "user": USER, "accounts": ACCOUNTS} | options)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Slurm, started once."""
    with slurm_in(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@contextlib.contextmanager
def slurm_in(log_folder: Path) -> Iterator[Slurm]:
    """Slurm for a while; this process and its children use it, and what they write, its jobs may change."""
    try:
        cluster = Slurm(log_folder)
    except CannotRunError as error:
        if os.environ.get("CI") or os.environ.get("HPC_TESTS_REQUIRE"):
            raise
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patched, cluster:
        patched.setenv("SLURM_CONF", str(cluster.conf))
        umask = os.umask(0)
        try:
            yield cluster
        finally:
            os.umask(umask)


@pytest.fixture
def make_slurm_gateway(slurm: Slurm) -> Iterator[Callable[..., Gateway]]:
    """Start gateways on Slurm, with any argument of Gateway; they stop with the test."""
    started: list[Gateway] = []

    def make(**options: Any) -> Gateway:
        started.append(slurm.gateway(**options).start())
        return started[-1]

    yield make
    for one in started:
        one.stop()


@pytest.fixture(scope="session")
def slurm_gateway(slurm: Slurm) -> Iterator[Gateway]:
    """One gateway on Slurm for all tests: use names and folders of your own."""
    with slurm.gateway() as started:
        yield started
