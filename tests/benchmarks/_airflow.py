"""Airflow's part of a benchmark, in a process of its own: tries, retries, a task state store, a triggerer.

Every try runs in a process of its own, forked as Airflow's own workers fork it, so nothing is kept from one
to the next. A deferred task's trigger travels as JSON to the triggerer, which is one process with one event
loop; its event travels back the same way, and yet another process resumes the task. A try that raises, or
whose process dies, is followed by another with the same state store and ``max_tries``, unless the task's
retry policy says that no retry can mend it.

Tries and triggers are killed where the orders say so. A task's ``kills`` holds one word or None for each try:

- ``unsent``: once the intent is written down, before the job is sent
- ``sent``: once the job is sent, before its id is written down
- ``known``: once its id is written down
- ``over``: at the end of the task, before anybody learns of it
- a number: so many seconds after the try began, wherever it is

``abandon`` is the seconds after which its trigger is dropped and started again from its arguments, and
``triggerer_kills`` are moments at which the whole triggerer is killed. Reads its orders from one JSON file
and writes what became of the tasks to another; what the tasks log goes to files in the folder ``logs``.
"""

import asyncio
import gc
import heapq
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from airflow_home import TaskInstance

from airflow_hpc_provider.submission import STATE_KEY

log = logging.getLogger("benchmark")
_fork = multiprocessing.get_context("fork")
_RETRY_DELAY = 1.0
# An abandoned trigger is started again so many seconds later: another triggerer has to find it first.
_TAKE_OVER = 1.0


class Store:
    """The task state store: outlives tries, as Airflow's does; kills the try that comes to some point."""

    def __init__(self, file: Path, kill: Any) -> None:
        self._file = file
        self._kill = kill

    def get(self, key: str) -> Any:
        return self._load().get(key)

    def set(self, key: str, value: Any, **_: Any) -> None:
        phase = value["phase"] if key == STATE_KEY else None
        if phase == "submitted" and self._kill == "sent":
            _die()
        # In one step, as a database would.
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({**self._load(), key: value}))
        new.replace(self._file)
        if phase and self._kill == ("known" if phase == "submitted" else "unsent"):
            _die()

    def _load(self) -> dict[str, Any]:
        return json.loads(self._file.read_text()) if self._file.exists() else {}


@dataclass(eq=False)
class Task:
    """A task instance, and what became of it."""

    orders: dict[str, Any]
    tries: int = 1
    begun: float | None = None
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def kill(self) -> Any:
        kills = self.orders.get("kills") or []
        return kills[self.tries - 1] if self.tries <= len(kills) else None


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _log_to(file: Path) -> None:
    opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    form = "%(asctime)s %(levelname)s %(name)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, stream=sys.stderr, force=True)


def _attempt(task: Task, retries: int, home: Path, resume: Any, answers: Connection) -> None:
    """One process of a task: its execution, or what follows its deferral."""
    from airflow.sdk import RetryAction
    from airflow.sdk.exceptions import TaskDeferred

    from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator

    name = task.orders["task_id"]
    _log_to(home / "logs" / f"{name}.log")
    log.info("Try %d %s", task.tries, "is resumed" if resume else "begins")
    operator = HpcSubmitJobOperator(task_id=name, retries=retries, **task.orders["options"])
    context = {
        "ti": TaskInstance(task_id=name, try_number=task.tries, max_tries=retries),
        "task_state_store": Store(home / "store" / f"{name}.json", task.kill),
    }
    try:
        if resume:
            method, event = resume
            result = operator.resume_execution(method, {"event": event}, context)
        else:
            result = operator.execute(context)
        answer = {"state": "success", "job_id": result["job_id"]}
    except TaskDeferred as deferral:
        answer = {
            "state": "deferred",
            "trigger": deferral.trigger.serialize(),
            "method": deferral.method_name,
        }
    except Exception as error:
        log.exception("The try failed")
        decision = operator.retry_policy.evaluate(error, task.tries, retries, context)
        answer = {
            "state": "failed",
            "retry": decision.action is not RetryAction.FAIL,
            "error": f"{type(error).__name__}: {error}",
        }
    if answer["state"] == "success" and task.kill == "over":
        _die()
    answers.send_bytes(json.dumps(answer).encode())


def _run_triggers(home: Path, line: Connection) -> None:
    """The triggerer: all triggers on one event loop, until the line is closed."""
    from airflow.sdk.module_loading import import_string

    _log_to(home / "logs" / "triggerer.log")
    running: dict[int, asyncio.Task[None]] = {}

    async def run(key: int, path: str, arguments: dict[str, Any]) -> None:
        try:
            event = await anext(import_string(path)(**arguments).run())
            told = {"key": key, "event": event.payload}
        except Exception as error:
            log.exception("The trigger failed")
            told = {"key": key, "error": f"{type(error).__name__}: {error}"}
        line.send_bytes(json.dumps(told).encode())

    async def serve() -> None:
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def heed() -> None:
            try:
                order = json.loads(line.recv_bytes())
            except EOFError:
                loop.remove_reader(line.fileno())
                closed.set()
                return
            if "abandon" in order:
                if found := running.pop(order["abandon"], None):
                    found.cancel()
            else:
                running[order["key"]] = loop.create_task(run(order["key"], *order["trigger"]))

        loop.add_reader(line.fileno(), heed)
        await closed.wait()

    asyncio.run(serve())


class Airflow:
    """Scheduler and executor in one."""

    def __init__(self, orders: dict[str, Any], home: Path) -> None:
        self._home = home
        self._retries = orders["retries"]
        self._workers = orders["workers"]
        self._tasks = [Task(of_task) for of_task in orders["tasks"]]
        self._kills = sorted(orders.get("triggerer_kills", []), reverse=True)
        self._open = len(self._tasks)
        self._serial = 0
        # What happens later, by its moment: a method and its arguments.
        self._agenda: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self._waiting: list[tuple[Task, Any]] = []
        self._running: dict[Connection, tuple[Any, Task]] = {}
        self._deferred: dict[int, tuple[Task, Any, str]] = {}
        self.counts = dict.fromkeys(("tries", "killed", "triggers", "abandoned", "triggerer_kills"), 0)

    def run(self) -> list[dict[str, Any]]:
        """Run all tasks to their end."""
        begun = time.time()
        for task in self._tasks:
            self._later(begun + task.orders.get("start", 0.0), self._waiting.append, (task, None))
        for moment in self._kills:
            self._later(begun + moment, self._kill_triggerer)
        with self._triggerer():
            while self._open:
                self._do_what_is_due()
                while self._waiting and len(self._running) < self._workers:
                    self._start(*self._waiting.pop(0))
                pause = min(1.0, self._agenda[0][0] - time.time()) if self._agenda else 1.0
                for line in wait([*self._running, self._line], max(0.0, pause)):
                    if line is self._line:
                        self._hear_triggerer()
                    else:
                        self._end(line)
        return [{"task_id": task.orders["task_id"], "tries": task.tries, **task.told} for task in self._tasks]

    def _later(self, moment: float, method: Any, *arguments: Any) -> None:
        self._serial += 1
        heapq.heappush(self._agenda, (moment, self._serial, method, arguments))

    def _do_what_is_due(self) -> None:
        while self._agenda and self._agenda[0][0] <= time.time():
            _, _, method, arguments = heapq.heappop(self._agenda)
            method(*arguments)

    def _start(self, task: Task, resume: Any) -> None:
        if not resume:
            self.counts["tries"] += 1
            task.begun = task.begun or time.time()
        mine, its = _fork.Pipe(duplex=False)
        process = _fork.Process(target=_attempt, args=(task, self._retries, self._home, resume, its))
        process.start()
        its.close()
        self._running[mine] = (process, task)
        if isinstance(task.kill, float) and not resume:
            self._later(time.time() + task.kill, self._kill, mine)

    def _kill(self, line: Connection) -> None:
        if line in self._running:
            self._running[line][0].kill()

    def _end(self, line: Connection) -> None:
        process, task = self._running.pop(line)
        try:
            answer = json.loads(line.recv_bytes())
        except EOFError:
            self.counts["killed"] += 1
            answer = {"state": "failed", "retry": True, "error": "its process died"}
        line.close()
        process.join()
        process.close()
        if answer["state"] == "deferred":
            self._defer(task, answer["trigger"], answer["method"])
        else:
            self._finish(task, answer)

    def _finish(self, task: Task, answer: dict[str, Any]) -> None:
        if answer["state"] == "failed" and answer["retry"] and task.tries <= self._retries:
            task.tries += 1
            self._later(time.time() + _RETRY_DELAY, self._waiting.append, (task, None))
            return
        task.told = {**answer, "begun": task.begun, "ended": time.time()}
        self._open -= 1

    # --- the triggerer ---

    @contextmanager
    def _triggerer(self) -> Iterator[None]:
        self._start_triggerer()
        try:
            yield
        finally:
            self._line.close()
            self._process.join(5)
            self._process.kill()

    def _start_triggerer(self) -> None:
        self._line, its = _fork.Pipe()
        self._process = _fork.Process(target=self._serve_triggers, args=(self._line, its))
        self._process.start()
        its.close()

    def _serve_triggers(self, others: Connection, own: Connection) -> None:
        others.close()
        _run_triggers(self._home, own)

    def _kill_triggerer(self) -> None:
        self.counts["triggerer_kills"] += 1
        self._process.kill()
        self._process.join()
        while self._line.poll():  # what it had said is in the database already
            try:
                self._hear_triggerer()
            except (EOFError, ConnectionError):
                break
        self._line.close()
        self._start_triggerer()
        for key in self._deferred:
            self._send(key)

    def _defer(self, task: Task, trigger: Any, method: str) -> None:
        self.counts["triggers"] += 1
        key = self._keep(task, trigger, method)
        self._send(key)
        if task.orders.get("abandon") is not None:
            self._later(time.time() + task.orders["abandon"], self._abandon, key)

    def _keep(self, task: Task, trigger: Any, method: str) -> int:
        self._serial += 1
        self._deferred[self._serial] = (task, trigger, method)
        return self._serial

    def _send(self, key: int) -> None:
        if key in self._deferred:
            order = {"key": key, "trigger": self._deferred[key][1]}
            self._line.send_bytes(json.dumps(order).encode())

    def _abandon(self, key: int) -> None:
        if key not in self._deferred:
            return
        self.counts["abandoned"] += 1
        self._line.send_bytes(json.dumps({"abandon": key}).encode())
        # Under another key, so that nothing the dropped one may still say is taken for the new one's word.
        self._later(time.time() + _TAKE_OVER, self._send, self._keep(*self._deferred.pop(key)))

    def _hear_triggerer(self) -> None:
        told = json.loads(self._line.recv_bytes())
        if told["key"] not in self._deferred:
            return
        task, _, method = self._deferred.pop(told["key"])
        if "error" in told:
            self._finish(task, {"state": "failed", "retry": True, "error": told["error"]})
        else:
            self._waiting.append((task, (method, told["event"])))


def _preload() -> None:
    """Import what a task needs before the processes fork, as Airflow's workers have it loaded."""
    import airflow_hpc_provider.client.files
    import airflow_hpc_provider.client.request
    import airflow_hpc_provider.hub
    import airflow_hpc_provider.submission  # noqa: F401
    from airflow_hpc_provider.hooks.hpc import HpcHook
    from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator  # noqa: F401

    HpcHook().client()  # never opened: reads the certificates that all share
    gc.collect()
    gc.freeze()


def main() -> None:
    orders_file, results_file = map(Path, sys.argv[1:])
    orders = json.loads(orders_file.read_text())
    home = results_file.parent
    for folder in ("logs", "store"):
        (home / folder).mkdir()
    _preload()
    airflow = Airflow(orders, home)
    begun = time.time()
    tasks = airflow.run()
    results = {"tasks": tasks, "seconds": time.time() - begun, **airflow.counts}
    results_file.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
