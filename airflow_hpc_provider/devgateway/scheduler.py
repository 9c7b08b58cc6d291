"""A scheduler of local processes that looks like Slurm through its records, texts and environment."""

import contextlib
import grp
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from .directives import Dependency, JobOptions, SbatchError, Submission, format_indices, parse_script
from .records import Record, Step

__all__ = ["LocalScheduler", "Scheduler", "SchedulerError", "User"]

_TOP_PRIORITY = 4294901760
_DEFAULT_LIMIT = 3600
_NODE = "nid001"
_SRUN = Path(__file__).with_name("srun.py")
_ACTIVE = {"PENDING", "RUNNING", "COMPLETING", "REQUEUED"}
# A script that is still open for writing in another thread's child cannot be executed ("Text file
# busy"), so writing scripts and starting processes take turns.
_spawning = threading.Lock()


class SchedulerError(Exception):
    """The scheduler refuses; ``caused_by`` is where FirecREST hides the true reason of failed look-ups."""

    def __init__(self, message: str, *, status: int = 500, caused_by: list[str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.caused_by = caused_by


def command_failed(text: str, *, status: int = 1) -> SchedulerError:
    return SchedulerError(f"Unexpected Slurm command response. exit_status:{status} std_err:{text}")


@dataclass(frozen=True, slots=True)
class User:
    """The one user whom the gateway serves."""

    name: str
    home: Path
    accounts: tuple[str, ...]

    @property
    def uid(self) -> int:
        return os.getuid()

    @property
    def gid(self) -> int:
        return os.getgid()

    @property
    def group(self) -> str:
        try:
            return grp.getgrgid(self.gid).gr_name
        except KeyError:
            return str(self.gid)

    @property
    def shell(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_shell or "/bin/sh"
        except KeyError:
            return "/bin/sh"


class Scheduler(Protocol):
    """What the routes need of a scheduler."""

    version: str

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def submit(self, submission: Submission) -> str: ...
    def records(self, job_id: str | None = None) -> list[Record]: ...
    def cancel(self, job_id: str) -> None: ...
    def metadata(self, job_id: str) -> list[dict[str, Any]]: ...
    def attach(self, job_id: str, command: str) -> None: ...
    def nodes(self) -> list[dict[str, Any]]: ...
    def partitions(self) -> list[dict[str, Any]]: ...
    def reservations(self) -> list[dict[str, Any]]: ...
    def accounts(self) -> list[dict[str, Any]]: ...


@dataclass(eq=False, slots=True)
class _Element:
    """One thing to run: a whole job, or one element of an array."""

    job: "_Job"
    index: int | None
    raw_id: str
    state: str = "PENDING"
    reason: str = "None"
    ready_at: float = 0.0
    started: float | None = None
    ended: float | None = None
    exit_code: int = 0
    signal: int = 0
    batch: tuple[str, int, int] | None = None
    process: "subprocess.Popen[bytes] | None" = None
    run: int = 0
    restarts: int = 0
    kill_at: float | None = None

    @property
    def active(self) -> bool:
        return self.state in _ACTIVE

    @property
    def job_id(self) -> str:
        return self.job.job_id if self.index is None else f"{self.job.job_id}_{self.index}"


@dataclass(eq=False, slots=True)
class _Job:
    job_id: str
    submission: Submission
    options: JobOptions
    script: str
    submitted: float
    priority: int
    folder: Path
    elements: list[_Element] = field(default_factory=list)
    held: bool = False
    last_started: _Element | None = None

    @property
    def limit(self) -> int | None:
        return self.options.time_limit

    @property
    def array_limit(self) -> int | None:
        return self.options.array.limit if self.options.array else None

    @property
    def live(self) -> bool:
        return any(element.active or element.process is not None for element in self.elements)

    def pending(self) -> list[_Element]:
        return [element for element in self.elements if element.state == "PENDING"]

    def running(self) -> list[_Element]:
        return [element for element in self.elements if element.state == "RUNNING"]


class LocalScheduler:
    """Runs jobs as process groups of this machine, within a pool of pretended CPUs."""

    version = "22.05.8"

    def __init__(
        self,
        user: User,
        spool: Path,
        *,
        cluster: str = "devgateway",
        cpus: int = 64,
        partitions: tuple[str, ...] = ("normal", "debug"),
        kill_wait: float = 2.0,
        requeue_delay: float = 0.5,
        directives: bool = True,
        bare_environment: bool = False,
    ) -> None:
        self.user = user
        self.cpus = cpus
        self.kill_wait = kill_wait
        self.requeue_delay = requeue_delay
        self.reserved: list[dict[str, Any]] = []
        self._spool = spool
        self._cluster = cluster
        self._partition_names = partitions
        self._directives = directives
        self._bare_environment = bare_environment
        self._jobs: dict[str, _Job] = {}
        # Jobs the dispatcher still has to think about; the others are history.
        self._live: dict[str, _Job] = {}
        self._by_raw_id: dict[str, _Element] = {}
        self._ids = count(1)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._stopping = False
        self._waiters: set[threading.Thread] = set()
        self._dispatcher = threading.Thread(target=self._dispatch, name="devgateway-scheduler", daemon=True)

    # --- life ---

    def start(self) -> None:
        self._spool.mkdir(parents=True, exist_ok=True)
        self._dispatcher.start()

    def stop(self) -> None:
        """Kill what runs and wait until it is gone."""
        with self._changed:
            self._stopping = True
            for element in self._elements():
                self._signal(element, signal.SIGKILL)
            self._changed.notify_all()
        if self._dispatcher.ident is not None:
            self._dispatcher.join()
        for waiter in list(self._waiters):
            waiter.join()

    # --- what the routes ask ---

    def submit(self, submission: Submission) -> str:
        options = self._options(submission)
        with self._changed:
            self._check(options)
            job = self._enter(submission, options)
            self._changed.notify_all()
            return job.job_id

    def records(self, job_id: str | None = None) -> list[Record]:
        with self._lock:
            if job_id is None:
                return [record for job in self._jobs.values() for record in self._job_records(job)]
            if not job_id.isdigit():
                text = f"sacct: fatal: Bad job/step specified: {job_id}\n"
                cause = f"Unexpected Slurm command response. exit_status:1 std_err:{text}"
                raise SchedulerError("Error executing Slurm command.", caused_by=[cause])
            if job_id in self._jobs:
                return self._job_records(self._jobs[job_id])
            element = self._by_raw_id.get(job_id)
            return list(self._element_records(element)) if element else []

    def cancel(self, job_id: str) -> None:
        with self._changed:
            elements = self._named(job_id)
            alive = [element for element in elements if element.active]
            prefix = f"scancel: Terminating job {job_id}\nscancel: error: Kill job error on job id {job_id}: "
            if not elements:
                raise command_failed(f"{prefix}Invalid job id specified\n", status=0)
            if not alive:
                raise command_failed(f"{prefix}Job/step already completing or completed\n", status=0)
            for element in alive:
                self._end(element, f"CANCELLED by {self.user.uid}", batch=("CANCELLED", 0, signal.SIGTERM))
                self._terminate(element)
            self._changed.notify_all()

    def metadata(self, job_id: str) -> list[dict[str, Any]]:
        with self._lock:
            elements = self._named(job_id)
            if not elements:
                return []
            job = elements[0].job
            shown = job.last_started or elements[-1]
            output, error = self._log_paths(shown)
            return [
                {
                    "jobId": job_id,
                    "script": job.script,
                    "standardInput": job.options.input or "/dev/null",
                    "standardOutput": str(output),
                    "standardError": str(error),
                }
            ]

    def attach(self, job_id: str, command: str) -> None:
        """``srun --overlap --jobid=N``: one more process in a running job's environment."""
        with self._lock:
            running = [element for element in self._named(job_id) if element.state == "RUNNING"]
            if not running:
                text = (
                    f"srun: error: Unable to confirm allocation for job {job_id}: Invalid job id specified\n"
                )
                raise command_failed(text)
            env = self._environment(running[0])
            folder = running[0].job.submission.working_directory
        with _spawning:
            process = subprocess.Popen(  # noqa: S603 - attaching a command is what the call is for
                ["/bin/sh", "-c", command],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        self._wait_attached(process)

    def nodes(self) -> list[dict[str, Any]]:
        with self._lock:
            busy = self._busy()
        state = "IDLE" if busy == 0 else "ALLOCATED" if busy >= self.cpus else "MIXED"
        return [
            {
                "sockets": self.cpus,
                "cores": self.cpus,
                "threads": self.cpus,
                "cpus": self.cpus,
                "cpuLoad": round(os.getloadavg()[0], 2),
                "freeMemory": 16000,
                "features": "mc",
                "name": _NODE,
                "address": "127.0.0.1",
                "hostname": socket.gethostname(),
                "state": [state],
                "partitions": list(self._partition_names),
                "weight": 1,
                "allocMemory": 20000,
                "allocCpus": busy,
                "idleCpus": max(0, self.cpus - busy),
            }
        ]

    def partitions(self) -> list[dict[str, Any]]:
        names = self._partition_names
        return [{"name": name, "cpus": self.cpus, "totalNodes": 1, "partition": "UP"} for name in names]

    def reservations(self) -> list[dict[str, Any]]:
        return list(self.reserved)

    def accounts(self) -> list[dict[str, Any]]:
        first = self.user.accounts[0]
        return [{"name": name, "default": name == first} for name in sorted(self.user.accounts)]

    # --- what a test asks on top of it ---

    def requeue(self, job_id: str) -> None:
        """Slurm takes the job off its node and starts it again later, under the same id."""
        with self._changed:
            for element in self._named(job_id):
                if element.state == "PENDING":
                    continue
                element.run += 1
                element.restarts += 1
                self._signal(element, signal.SIGKILL)
                self._live[element.job.job_id] = element.job
                element.state, element.reason, element.batch = "PENDING", "BeginTime", None
                element.started = element.ended = None
                element.exit_code = element.signal = 0
                element.ready_at = time.time() + self.requeue_delay
            self._changed.notify_all()

    def end(self, job_id: str, state: str, *, exit_code: int = 0, interrupt: int = 0) -> None:
        """The job ends in this state, as after NODE_FAIL, PREEMPTED or OUT_OF_MEMORY."""
        with self._changed:
            for element in self._named(job_id):
                if element.active:
                    element.exit_code, element.signal = exit_code, interrupt
                    self._end(element, state, batch=("CANCELLED", 0, signal.SIGTERM))
                    self._terminate(element)
            self._changed.notify_all()

    def release(self, job_id: str) -> None:
        """Let a held job go."""
        with self._changed:
            for element in self._named(job_id):
                element.job.held = False
            self._changed.notify_all()

    def forget(self, job_id: str) -> None:
        """No record is left of the job; what runs is killed."""
        with self._changed:
            job = self._jobs.pop(job_id, None)
            self._live.pop(job_id, None)
            for element in job.elements if job else []:
                self._signal(element, signal.SIGKILL)
                self._by_raw_id.pop(element.raw_id, None)

    # --- submission ---

    def _options(self, submission: Submission) -> JobOptions:
        try:
            options = parse_script(submission.script) if self._directives else JobOptions()
        except SbatchError as error:
            raise command_failed(str(error)) from None
        return submission.over(options)

    def _check(self, options: JobOptions) -> None:
        if options.partition and options.partition not in self._partition_names:
            raise command_failed(
                f"sbatch: error: invalid partition specified: {options.partition}\n"
                "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
            )
        reserved = {reservation["name"] for reservation in self.reserved}
        problem = ""
        if options.account and options.account not in self.user.accounts:
            problem = "Invalid account or account/partition combination specified"
        elif options.reservation and options.reservation not in reserved:
            problem = "Requested reservation is invalid"
        elif options.constraint and options.constraint != "mc":
            problem = "Invalid feature specification"
        elif not all(d.kind == "singleton" or self._named(d.job_id) for d in options.dependencies):
            problem = "Job dependency problem"
        if problem:
            raise command_failed(f"sbatch: error: Batch job submission failed: {problem}\n")
        if options.cpus > self.cpus:
            raise command_failed(
                "sbatch: error: CPU count per node can not be satisfied\n"
                "sbatch: error: Batch job submission failed: Requested node configuration is not available\n"
            )

    def _enter(self, submission: Submission, options: JobOptions) -> _Job:
        number = next(self._ids)
        job_id = str(number)
        folder = self._spool / f"job{number:06d}"
        job = _Job(
            job_id, submission, options, submission.script, time.time(), _TOP_PRIORITY - number, folder
        )
        job.held = options.hold
        indices: Iterable[int | None] = options.array.indices if options.array else (None,)
        job.elements = [_Element(job, index, job_id, ready_at=options.begin) for index in indices]
        if options.array is None:
            self._by_raw_id[job_id] = job.elements[0]
        folder.mkdir(parents=True, exist_ok=True)
        with _spawning:
            script = folder / "slurm_script"
            script.write_text(submission.script, encoding="utf-8")
            script.chmod(stat.S_IRWXU)
        self._jobs[job_id] = self._live[job_id] = job
        self._judge(job, time.time(), blocked=False)
        return job

    # --- the dispatcher ---

    def _dispatch(self) -> None:
        with self._changed:
            while not self._stopping:
                now = time.time()
                self._live = {job_id: job for job_id, job in self._live.items() if job.live}
                self._enforce_limits(now)
                self._start_what_fits(now)
                self._changed.wait(self._seconds_to_next(now))

    def _start_what_fits(self, now: float) -> None:
        blocked = False
        for job in list(self._live.values()):
            while element := self._judge(job, now, blocked=blocked):
                self._launch(element)
            blocked = blocked or any(e.reason == "Resources" for e in job.pending())

    def _judge(self, job: _Job, now: float, *, blocked: bool) -> _Element | None:
        """The element to start next, or the reason why there is none."""
        waiting = job.pending()
        if not waiting:
            return None
        ready = [element for element in waiting if element.ready_at <= now]
        reason = self._dependency_reason(job, ready or waiting)
        if job.held:
            reason = "JobHeldUser"
        elif not reason and not ready:
            reason = "BeginTime"
        elif not reason and job.array_limit and len(job.running()) >= job.array_limit:
            reason = "JobArrayTaskLimit"
        elif not reason and (blocked or self._busy() + job.options.cpus > self.cpus):
            reason = "Priority" if blocked else "Resources"
        if not reason:
            return next((e for e in ready if not self._waits_for_twin(e)), None)
        for element in waiting:
            element.reason = reason
        return None

    def _dependency_reason(self, job: _Job, waiting: list[_Element]) -> str:
        wanted = [d for d in job.options.dependencies if d.kind != "aftercorr"]
        verdicts = [self._met(job, dependency) for dependency in wanted]
        if job.options.any_dependency:
            if any(verdicts):
                return ""
            never = all(verdict is False for verdict in verdicts)
        else:
            if all(verdicts):
                return "Dependency" if all(self._waits_for_twin(e) for e in waiting) else ""
            never = any(verdict is False for verdict in verdicts)
        return "DependencyNeverSatisfied" if never else "Dependency"

    def _met(self, job: _Job, dependency: Dependency) -> bool | None:
        """Whether a dependency is met; False is for ever, None is not yet."""
        if dependency.kind == "singleton":
            return self._alone(job) or None
        elements = self._named(dependency.job_id)
        if dependency.kind == "after":
            begun = [e.started for e in elements if e.started is not None]
            started = len(begun) == len(elements)
            return (started and time.time() >= max(begun) + dependency.delay) or None
        if any(element.active for element in elements):
            return None
        good = all(element.state == "COMPLETED" for element in elements)
        return {"afterok": good, "afternotok": not good}.get(dependency.kind, True)

    def _alone(self, job: _Job) -> bool:
        earlier = (other for other in self._live.values() if other.submitted < job.submitted)
        return not any(
            self._name(other) == self._name(job) and any(e.active for e in other.elements)
            for other in earlier
        )

    def _waits_for_twin(self, element: _Element) -> bool:
        """``aftercorr``: element N waits for element N of the other array."""
        for dependency in element.job.options.dependencies:
            if dependency.kind != "aftercorr":
                continue
            twins = [e for e in self._named(dependency.job_id) if e.index == element.index]
            if any(twin.state != "COMPLETED" for twin in twins):
                return True
        return False

    def _enforce_limits(self, now: float) -> None:
        for element in self._elements():
            limit = element.job.limit
            if element.state == "RUNNING" and limit is not None and now >= (element.started or now) + limit:
                self._end(element, "TIMEOUT", batch=("CANCELLED", 0, signal.SIGTERM))
                self._terminate(element)
            if element.kill_at is not None and now >= element.kill_at:
                self._signal(element, signal.SIGKILL)
                element.kill_at = None

    def _seconds_to_next(self, now: float) -> float:
        """How long the dispatcher may sleep when nobody wakes it."""
        moments = [now + 5.0]
        for element in self._elements():
            if element.state == "PENDING" and element.ready_at > now:
                moments.append(element.ready_at)
            if element.state == "RUNNING" and element.job.limit is not None:
                moments.append((element.started or now) + element.job.limit)
            if element.kill_at is not None:
                moments.append(element.kill_at)
        waits_for_minutes = any(d.delay for job in self._live.values() for d in job.options.dependencies)
        return max(0.005, min(moments) - now) if not waits_for_minutes else 0.2

    # --- processes ---

    def _launch(self, element: _Element) -> None:
        job = element.job
        if element.index is not None and len(job.pending()) > 1:
            # Slurm splits a started element off the array; the last one keeps the array's own number.
            element.raw_id = str(next(self._ids))
        self._by_raw_id[element.raw_id] = element
        element.state = "RUNNING"
        element.started = time.time()
        element.run += 1
        job.last_started = element
        try:
            element.process = self._spawn(element)
        except _PrologError:
            self._end(element, "FAILED", batch=None)
            element.signal = 53
            return
        except OSError as error:
            element.exit_code = error.errno or 1
            self._end(element, "FAILED", batch=("FAILED", element.exit_code, 0))
            return
        waiter = threading.Thread(
            target=self._wait, args=(element, element.process, element.run), daemon=True
        )
        self._waiters.add(waiter)
        waiter.start()

    def _spawn(self, element: _Element) -> "subprocess.Popen[bytes]":
        job = element.job
        folder = Path(job.submission.working_directory)
        if not folder.is_dir():
            raise _PrologError
        with contextlib.ExitStack() as stack:
            try:
                stdin = stack.enter_context((folder / (job.options.input or "/dev/null")).open("rb"))
                out, err = self._open_logs(element, stack)
            except OSError as error:
                raise _PrologError from error
            env = self._environment(element)
            with _spawning:
                return subprocess.Popen(  # noqa: S603 - running the user's script is a scheduler's work
                    [str(job.folder / "slurm_script")],
                    cwd=folder,
                    env=env,
                    stdin=stdin,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )

    def _open_logs(self, element: _Element, stack: contextlib.ExitStack) -> tuple[Any, Any]:
        mode = "ab" if element.job.options.append else "wb"
        output, error = self._log_paths(element)
        files: list[Any] = []
        for path in (output, error):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.append(stack.enter_context(path.open(mode)) if path != output or not files else files[0])
        return files[0], files[1]

    def _wait(self, element: _Element, process: "subprocess.Popen[bytes]", run: int) -> None:
        # The zombie stays until the lock is held: nobody can signal a process group that is not ours.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._changed:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            if element.process is process:
                element.process = None
                element.kill_at = None
            if element.run == run and element.state == "RUNNING":
                self._finish(element, code)
            self._waiters.discard(threading.current_thread())
            self._changed.notify_all()

    def _finish(self, element: _Element, code: int) -> None:
        if code == 0:
            self._end(element, "COMPLETED", batch=("COMPLETED", 0, 0))
        elif code < 0:
            element.signal = -code
            self._end(element, "FAILED", batch=("CANCELLED", 0, -code))
        else:
            # FirecREST's ssh mode loses 128 of the exit codes above it.
            element.exit_code = code & 127 if code > 128 else code
            self._end(element, "FAILED", batch=("FAILED", element.exit_code, 0))

    def _end(self, element: _Element, state: str, *, batch: tuple[str, int, int] | None) -> None:
        element.batch = batch if element.started is not None else None
        element.state = state
        element.ended = time.time()

    def _terminate(self, element: _Element) -> None:
        if element.process is not None:
            self._note(element)
            self._signal(element, signal.SIGTERM)
            self._signal(element, signal.SIGCONT)
            element.kill_at = time.time() + self.kill_wait

    def _note(self, element: _Element) -> None:
        """What slurmstepd writes into a job's error log when it is not the job that ends itself."""
        why = " DUE TO TIME LIMIT" if element.state == "TIMEOUT" else ""
        at = time.strftime("%Y-%m-%dT%H:%M:%S")
        text = f"slurmstepd: error: *** JOB {element.raw_id} ON {_NODE} CANCELLED AT {at}{why} ***\n"
        with contextlib.suppress(OSError), self._log_paths(element)[1].open("a", encoding="utf-8") as file:
            file.write(text)

    def _signal(self, element: _Element, number: int) -> None:
        if element.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(element.process.pid, number)

    def _wait_attached(self, process: "subprocess.Popen[bytes]") -> None:
        try:
            _, stderr = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise SchedulerError("Command execution timeout limit exceeded.", status=408) from None
        if process.returncode:
            text = stderr.decode(errors="replace")
            raise command_failed(text, status=process.returncode)

    def _environment(self, element: _Element) -> dict[str, str]:
        job, options = element.job, element.job.options
        user = self.user
        base = {
            "HOME": str(user.home),
            "USER": user.name,
            "LOGNAME": user.name,
            "SHELL": user.shell,
            "PATH": os.environ.get("PATH", os.defpath),
            "TMPDIR": os.environ.get("TMPDIR", "/tmp"),  # noqa: S108 - what every login shell has
            "LANG": os.environ.get("LANG", "C.UTF-8"),
        }
        given = dict(job.submission.env)
        if self._bare_environment:
            base = {}
            given = {key: value for key, value in given.items() if value}
        env = {**base, **given, **self._slurm_variables(element, options)}
        if "PATH" in env:
            env["PATH"] = f"{self._shim()}{os.pathsep}{env['PATH']}"
        return env

    def _slurm_variables(self, element: _Element, options: JobOptions) -> dict[str, str]:
        job = element.job
        values: dict[str, Any] = {
            "SLURM_JOB_ID": element.raw_id,
            "SLURM_JOBID": element.raw_id,
            "SLURM_JOB_NAME": self._name(job),
            "SLURM_JOB_USER": self.user.name,
            "SLURM_JOB_UID": self.user.uid,
            "SLURM_JOB_ACCOUNT": options.account or self.user.accounts[0],
            "SLURM_JOB_PARTITION": options.partition or self._partition_names[0],
            "SLURM_JOB_NODELIST": _NODE,
            "SLURM_NODELIST": _NODE,
            "SLURM_JOB_NUM_NODES": 1,
            "SLURM_NNODES": 1,
            "SLURM_NODEID": 0,
            "SLURMD_NODENAME": _NODE,
            "SLURM_CLUSTER_NAME": self._cluster,
            "SLURM_SUBMIT_DIR": job.submission.working_directory,
            "SLURM_SUBMIT_HOST": socket.gethostname(),
            "SLURM_CPUS_ON_NODE": options.cpus,
            "SLURM_JOB_CPUS_PER_NODE": options.cpus,
            "SLURM_NTASKS": options.tasks,
            "SLURM_NPROCS": options.tasks,
            "SLURM_TASKS_PER_NODE": options.tasks,
            "SLURM_PROCID": 0,
            "SLURM_LOCALID": 0,
            "SLURM_GTIDS": 0,
            "SLURM_CPUS_PER_TASK": options.cpus_per_task,
            "SLURM_MEM_PER_NODE": options.mem or None,
            "SLURM_MEM_PER_CPU": options.mem_per_cpu or None,
            "SLURM_GPUS": options.gpus or None,
            "SLURM_RESTART_COUNT": element.restarts or None,
            "DEVGATEWAY_STEPS": self._steps_folder(element),
        }
        if options.array is not None:
            indices = options.array.indices
            values |= {
                "SLURM_ARRAY_JOB_ID": job.job_id,
                "SLURM_ARRAY_TASK_ID": element.index,
                "SLURM_ARRAY_TASK_COUNT": len(indices),
                "SLURM_ARRAY_TASK_MIN": indices[0],
                "SLURM_ARRAY_TASK_MAX": indices[-1],
                "SLURM_ARRAY_TASK_STEP": indices[1] - indices[0] if len(indices) > 1 else 1,
            }
        return {key: str(value) for key, value in values.items() if value is not None}

    def _steps_folder(self, element: _Element) -> Path:
        folder = element.job.folder / f"steps.{element.index if element.index is not None else 'batch'}"
        folder.mkdir(exist_ok=True)
        return folder

    def _shim(self) -> Path:
        """The folder with the stand-in for srun."""
        folder = self._spool / "bin"
        shim = folder / "srun"
        if not shim.exists():
            folder.mkdir(exist_ok=True)
            with _spawning:
                shim.write_text(
                    f'#!/bin/sh\nexec "{sys.executable}" -I -S "{_SRUN}" "$@"\n', encoding="utf-8"
                )
                shim.chmod(0o755)
        return folder

    # --- names and logs ---

    def _name(self, job: _Job) -> str:
        if job.options.name:
            return job.options.name
        if not self._directives:
            return ""
        path = job.submission.script_path
        return Path(path).name if path else "sbatch"

    def _log_paths(self, element: _Element) -> tuple[Path, Path]:
        options = element.job.options
        default = "slurm-%j.out" if element.index is None else "slurm-%A_%a.out"
        folder = Path(element.job.submission.working_directory)
        output = folder / self._filled(options.output or default, element)
        return output, folder / self._filled(options.error, element) if options.error else output

    def _filled(self, pattern: str, element: _Element) -> str:
        values = {
            "j": element.raw_id,
            "J": element.raw_id,
            "A": element.job.job_id,
            "a": "4294967294" if element.index is None else str(element.index),
            "x": self._name(element.job),
            "u": self.user.name,
            "N": _NODE,
            "n": "0",
            "t": "0",
            "s": "batch",
        }
        return _fill(pattern, values)

    # --- records ---

    def _elements(self) -> list[_Element]:
        return [element for job in self._live.values() for element in job.elements]

    def _busy(self) -> int:
        return sum(job.options.cpus * len(job.running()) for job in self._live.values())

    def _named(self, job_id: str) -> list[_Element]:
        """The elements behind a job id, a raw id, or an array index like ``12_3``."""
        base, _, index = job_id.partition("_")
        if base in self._jobs:
            elements = self._jobs[base].elements
            return [e for e in elements if str(e.index) == index] if index else list(elements)
        element = self._by_raw_id.get(job_id)
        return [element] if element else []

    def _job_records(self, job: _Job) -> list[Record]:
        if job.options.array is None:
            element = job.elements[0]
            return [self._squeue(element) if element.state == "PENDING" else self._sacct(element)]
        rest = [element for element in job.elements if element.started is None]
        known = [self._sacct(element) for element in job.elements if element.started is not None]
        known += self._rest_records(job, rest)
        running = sorted(job.running(), key=lambda element: int(element.raw_id), reverse=True)
        pending = [element for element in rest if element.state == "PENDING"]
        return known + [self._squeue(e) for e in pending[:1]] + [self._squeue(e) for e in running]

    def _rest_records(self, job: _Job, rest: list[_Element]) -> Iterator[Record]:
        """What did not start yet, or never will, is one record for each state."""
        for state in dict.fromkeys(element.state for element in rest):
            same = [element for element in rest if element.state == state]
            brackets = format_indices([e.index for e in same if e.index is not None], job.array_limit)
            yield self._sacct(same[0], job_id=f"{job.job_id}_{brackets}")

    def _element_records(self, element: _Element) -> Iterator[Record]:
        if element.state == "PENDING":
            yield self._squeue(element)
            return
        yield self._sacct(element)
        if element.state == "RUNNING" and element.index is not None:
            yield self._squeue(element)

    def _common(self, element: _Element) -> dict[str, Any]:
        job = element.job
        return {
            "base_id": job.job_id,
            "raw_id": element.raw_id,
            "name": self._name(job),
            "state": element.state,
            "reason": element.reason,
            "account": job.options.account or self.user.accounts[0],
            "partition": job.options.partition or self._partition_names[0],
            "user": self.user.name,
            "group": self.user.group,
            "working_directory": job.submission.working_directory,
            "cluster": self._cluster,
            "priority": 0 if job.held else job.priority,
            "submitted": job.submitted,
            "limit": _DEFAULT_LIMIT if job.limit is None else job.limit,
        }

    def _sacct(self, element: _Element, job_id: str | None = None) -> Record:
        started = element.started is not None
        return Record(
            job_id=job_id or element.job_id,
            source="sacct",
            nodes=_NODE if started else "None assigned",
            node_count=1 if started else 0,
            exit_code=element.exit_code,
            signal=element.signal,
            start=element.started,
            end=element.ended,
            elapsed=_elapsed(element.started, element.ended),
            steps=tuple(self._steps(element)),
            killed_by=self.user.name if element.state.startswith("CANCELLED") else "",
            **self._common(element),
        )

    def _squeue(self, element: _Element) -> Record:
        """Predicted times where Slurm predicts them: a begin time that was asked for, a running job's end."""
        start = element.started or (element.ready_at if element.ready_at > time.time() else None)
        limit = _DEFAULT_LIMIT if element.job.limit is None else element.job.limit
        return Record(
            job_id=element.raw_id,
            source="squeue",
            nodes=_NODE if element.started is not None else "",
            node_count=1,
            exit_code=None,
            signal=None,
            start=start,
            end=None if start is None else start + limit,
            elapsed=_elapsed(element.started, element.ended),
            **self._common(element),
        )

    def _steps(self, element: _Element) -> Iterator[Step]:
        if element.started is None:
            return
        state, code, number = element.batch or ("RUNNING", 0, 0)
        if element.batch is None and element.ended is not None:
            return
        elapsed = _elapsed(element.started, element.ended)
        yield Step(
            f"{element.job_id}.batch", "batch", state, code, number, element.started, element.ended, elapsed
        )
        yield from _read_steps(self._steps_folder(element), element.job_id)


class _PrologError(Exception):
    """The job ends before its script starts: FAILED 0:53."""


def _elapsed(start: float | None, end: float | None) -> int:
    return 0 if start is None else int((end if end is not None else time.time()) - start)


def _read_steps(folder: Path, job_id: str) -> Iterator[Step]:
    for file in sorted(folder.glob("step.*"), key=lambda path: int(path.suffix[1:])):
        began, _, rest = file.read_text(encoding="utf-8").partition(" ")
        if not rest:
            continue
        ended, code, name = rest.split(" ", 2)
        number = int(code)
        state = "COMPLETED" if number == 0 else "CANCELLED" if number < 0 else "FAILED"
        yield Step(
            f"{job_id}.{file.suffix[1:]}",
            name.strip(),
            state,
            max(0, number),
            max(0, -number),
            float(began),
            float(ended),
            int(float(ended) - float(began)),
        )


def _fill(pattern: str, values: dict[str, str]) -> str:
    """Slurm's file name patterns; ``%4j`` pads with zeros, a backslash switches all of it off."""
    if "\\" in pattern:
        return pattern.replace("\\", "")
    text, rest = "", pattern
    while "%" in rest:
        plain, _, rest = rest.partition("%")
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        key, rest = rest[len(digits) : len(digits) + 1], rest[len(digits) + 1 :]
        value = "%" if key == "%" else values.get(key, f"%{digits}{key}")
        width = min(int(digits or 0), 10)
        text += plain + (value.zfill(width) if key in values and value.isdigit() else value)
    return text + rest
