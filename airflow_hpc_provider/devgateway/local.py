"""A scheduler of local processes that looks like Slurm through its records, texts and environment."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from itertools import count
from typing import IO, Any

from .directives import Dependency, JobOptions, SbatchError, Submission, parse_script
from .jobs import NODE, Accounting, Element, Job, Site
from .launch import Launcher, PrologError, spawning
from .records import Record
from .scheduler import SchedulerError, command_failed

__all__ = ["LocalScheduler"]

_TOP_PRIORITY = 4294901760
# Seconds that the gateway waits for a command which it attaches to a job.
_ATTACHED_TIMEOUT = 5.0


class LocalScheduler:
    """Runs jobs as process groups of this machine, within a pool of pretended CPUs."""

    version = "22.05.8"

    def __init__(self, site: Site, *, kill_wait: float = 2.0, requeue_delay: float = 0.5) -> None:
        self.kill_wait = kill_wait
        self.requeue_delay = requeue_delay
        #: What /status/.../reservations answers; jobs may name them.
        self.reserved: list[dict[str, Any]] = []
        self._site = site
        self._accounting = Accounting(site)
        self._launcher = Launcher(site)
        self._jobs: dict[str, Job] = {}
        # Jobs the dispatcher still has to think about; the others are history.
        self._live: dict[str, Job] = {}
        self._by_raw_id: dict[str, Element] = {}
        self._ids = count(1)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._stopping = False
        self._waiters: set[threading.Thread] = set()
        self._dispatcher = threading.Thread(target=self._dispatch, name="devgateway-scheduler", daemon=True)

    def start(self) -> None:
        self._site.spool.mkdir(parents=True, exist_ok=True)
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
                return [record for job in self._jobs.values() for record in self._accounting.job_records(job)]
            if not job_id.isdigit():
                text = f"sacct: fatal: Bad job/step specified: {job_id}\n"
                cause = f"Unexpected Slurm command response. exit_status:1 std_err:{text}"
                raise SchedulerError("Error executing Slurm command.", caused_by=[cause])
            if job_id in self._jobs:
                return self._accounting.job_records(self._jobs[job_id])
            element = self._by_raw_id.get(job_id)
            return list(self._accounting.element_records(element)) if element else []

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
                self._end(
                    element, f"CANCELLED by {self._site.user.uid}", batch=("CANCELLED", 0, signal.SIGTERM)
                )
                self._terminate(element)
            self._changed.notify_all()

    def metadata(self, job_id: str) -> list[dict[str, Any]]:
        with self._lock:
            elements = self._named(job_id)
            if not elements:
                return []
            job = elements[0].job
            shown = job.last_started or elements[-1]
            output, error = self._launcher.log_paths(shown)
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
        with tempfile.TemporaryFile() as errors:
            with self._lock:
                running = [element for element in self._named(job_id) if element.state == "RUNNING"]
                if not running:
                    why = "Invalid job id specified"
                    raise command_failed(
                        f"srun: error: Unable to confirm allocation for job {job_id}: {why}\n"
                    )
                element = running[0]
                with spawning:
                    process = subprocess.Popen(  # noqa: S603 - attaching a command is what the call is for
                        ["/bin/sh", "-c", command],
                        cwd=element.job.submission.working_directory,
                        env=self._launcher.environment(element),
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=errors,
                        start_new_session=True,
                    )
                element.attached.add(process)
            self._wait_attached(element, process, errors)

    def nodes(self) -> list[dict[str, Any]]:
        with self._lock:
            busy = self._busy()
        state = "IDLE" if busy == 0 else "ALLOCATED" if busy >= self._site.cpus else "MIXED"
        return [
            {
                "sockets": self._site.cpus,
                "cores": self._site.cpus,
                "threads": self._site.cpus,
                "cpus": self._site.cpus,
                "cpuLoad": round(os.getloadavg()[0], 2),
                "freeMemory": 16000,
                "features": "mc",
                "name": NODE,
                "address": "127.0.0.1",
                "hostname": socket.gethostname(),
                "state": [state],
                "partitions": list(self._site.partitions),
                "weight": 1,
                "allocMemory": 20000,
                "allocCpus": busy,
                "idleCpus": max(0, self._site.cpus - busy),
            }
        ]

    def partitions(self) -> list[dict[str, Any]]:
        names = self._site.partitions
        return [{"name": name, "cpus": self._site.cpus, "totalNodes": 1, "partition": "UP"} for name in names]

    def reservations(self) -> list[dict[str, Any]]:
        return list(self.reserved)

    def accounts(self) -> list[dict[str, Any]]:
        first = self._site.user.accounts[0]
        return [{"name": name, "default": name == first} for name in sorted(self._site.user.accounts)]

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

    def _options(self, submission: Submission) -> JobOptions:
        try:
            options = parse_script(submission.script) if not self._site.rest else JobOptions()
        except SbatchError as error:
            raise command_failed(str(error)) from None
        return submission.over(options)

    def _check(self, options: JobOptions) -> None:
        if options.partition and options.partition not in self._site.partitions:
            raise command_failed(
                f"sbatch: error: invalid partition specified: {options.partition}\n"
                "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
            )
        reserved = {reservation["name"] for reservation in self.reserved}
        problem = ""
        if options.account and options.account not in self._site.user.accounts:
            problem = "Invalid account or account/partition combination specified"
        elif options.reservation and options.reservation not in reserved:
            problem = "Requested reservation is invalid"
        elif options.constraint and options.constraint != "mc":
            problem = "Invalid feature specification"
        elif not all(d.kind == "singleton" or self._named(d.job_id) for d in options.dependencies):
            problem = "Job dependency problem"
        if problem:
            raise command_failed(f"sbatch: error: Batch job submission failed: {problem}\n")
        if options.cpus > self._site.cpus:
            raise command_failed(
                "sbatch: error: CPU count per node can not be satisfied\n"
                "sbatch: error: Batch job submission failed: Requested node configuration is not available\n"
            )

    def _enter(self, submission: Submission, options: JobOptions) -> Job:
        number = next(self._ids)
        job_id = str(number)
        folder = self._site.spool / f"job{number:06d}"
        job = Job(job_id, submission, options, submission.script, time.time(), _TOP_PRIORITY - number, folder)
        job.held = options.hold
        indices: Iterable[int | None] = options.array.indices if options.array else (None,)
        job.elements = [Element(job, index, job_id, ready_at=options.begin) for index in indices]
        if options.array is None:
            self._by_raw_id[job_id] = job.elements[0]
        self._launcher.prepare(job)
        self._jobs[job_id] = self._live[job_id] = job
        self._judge(job, time.time(), blocked=False)
        return job

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

    def _judge(self, job: Job, now: float, *, blocked: bool) -> Element | None:
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
        elif not reason and (blocked or self._busy() + job.options.cpus > self._site.cpus):
            reason = "Priority" if blocked else "Resources"
        if not reason:
            return next((e for e in ready if not self._waits_for_twin(e)), None)
        for element in waiting:
            element.reason = reason
        return None

    def _dependency_reason(self, job: Job, waiting: list[Element]) -> str:
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

    def _met(self, job: Job, dependency: Dependency) -> bool | None:
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

    def _alone(self, job: Job) -> bool:
        earlier = (other for other in self._live.values() if other.submitted < job.submitted)
        return not any(
            self._site.name(other) == self._site.name(job) and any(e.active for e in other.elements)
            for other in earlier
        )

    def _waits_for_twin(self, element: Element) -> bool:
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

    def _launch(self, element: Element) -> None:
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
            element.process = self._launcher.spawn(element)
        except PrologError:
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

    def _wait(self, element: Element, process: "subprocess.Popen[bytes]", run: int) -> None:
        # The zombie stays until the lock is held: nobody can signal a process group that is not ours.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._changed:
            _signal_group(process, signal.SIGKILL)
            code = process.wait()
            if element.process is process:
                element.process = None
                element.kill_at = None
            if element.run == run and element.state == "RUNNING":
                self._finish(element, code)
            self._waiters.discard(threading.current_thread())
            self._changed.notify_all()

    def _finish(self, element: Element, code: int) -> None:
        if code == 0:
            self._end(element, "COMPLETED", batch=("COMPLETED", 0, 0))
        elif code < 0:
            element.signal = -code
            self._end(element, "FAILED", batch=("CANCELLED", 0, -code))
        else:
            # FirecREST's ssh mode loses 128 of the exit codes above it.
            element.exit_code = code & 127 if code > 128 else code
            self._end(element, "FAILED", batch=("FAILED", element.exit_code, 0))

    def _end(self, element: Element, state: str, *, batch: tuple[str, int, int] | None) -> None:
        element.batch = batch if element.started is not None else None
        element.state = state
        element.ended = time.time()
        for process in element.attached:
            _signal_group(process, signal.SIGTERM)

    def _terminate(self, element: Element) -> None:
        if element.process is not None:
            self._launcher.note(element)
            self._signal(element, signal.SIGTERM)
            self._signal(element, signal.SIGCONT)
            element.kill_at = time.time() + self.kill_wait

    def _signal(self, element: Element, number: int) -> None:
        if element.process is not None:
            _signal_group(element.process, number)

    def _wait_attached(self, element: Element, process: "subprocess.Popen[bytes]", errors: IO[bytes]) -> None:
        def give_up() -> None:
            with self._lock:
                if process in element.attached:
                    _signal_group(process, signal.SIGKILL)

        late = threading.Timer(_ATTACHED_TIMEOUT, give_up)
        late.start()
        # As with jobs: nobody can signal a process group that is not ours.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        in_time = late.is_alive()
        late.cancel()
        with self._lock:
            _signal_group(process, signal.SIGKILL)
            element.attached.discard(process)
            code = process.wait()
        if not in_time:
            raise SchedulerError("Command execution timeout limit exceeded.", status=408)
        if code:
            errors.seek(0)
            text = errors.read().decode(errors="replace")
            if code < 0:
                name = signal.Signals(-code).name
                text += f"srun: Job step aborted\nsrun: error: {NODE}: task 0: {name}\n"
            raise command_failed(text, status=code if code > 0 else 128 - code)

    def _elements(self) -> list[Element]:
        return [element for job in self._live.values() for element in job.elements]

    def _busy(self) -> int:
        return sum(job.options.cpus * len(job.running()) for job in self._live.values())

    def _named(self, job_id: str) -> list[Element]:
        """The elements behind a job id, a raw id, or an array index like ``12_3``."""
        base, _, index = job_id.partition("_")
        if base in self._jobs:
            elements = self._jobs[base].elements
            return [e for e in elements if str(e.index) == index] if index else list(elements)
        element = self._by_raw_id.get(job_id)
        return [element] if element else []


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    """Signal a process that nobody has waited for yet, and all of its group that are left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
