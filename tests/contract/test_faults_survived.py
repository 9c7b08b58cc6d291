"""A task and its job through every fault of the gateway: one job, waited for to its end, cancelled by nobody.

Each task runs as in Airflow: the real operator in a worker, or deferred, with what it says sent through JSON.
"""

import asyncio
import functools
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout, TaskDeferred
from airflow_home import context_of, wait_with

from airflow_hpc_provider import hub, submission, tasks
from airflow_hpc_provider.client.errors import (
    HpcError,
    JobFailedError,
    JobLostError,
    RateLimitedError,
    WatchError,
)
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.devgateway import Gateway, records
from airflow_hpc_provider.devgateway.directives import Submission
from airflow_hpc_provider.devgateway.faults import Faults
from airflow_hpc_provider.devgateway.server import Server
from airflow_hpc_provider.operators import jobs
from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator
from airflow_hpc_provider.sensors.systems import HpcSystemSensor

SHORT = "#!/bin/bash\n"
LONG = "#!/bin/bash\nsleep 60\n"
ENDS_WHEN_STARTED_AGAIN = '#!/bin/bash\n[ -n "$SLURM_RESTART_COUNT" ] || sleep 60\n'
MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["in the worker", "deferred"])


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """All pauses are short, and in proportion: what is tested is what happens, not how long it takes."""
    monkeypatch.setattr(jobs, "_SETTLES_AFTER", 0.0)
    monkeypatch.setattr(jobs, "_QUIET", 0.0)
    monkeypatch.setattr(submission, "_LOOK_EVERY", 0.05)
    monkeypatch.setattr(submission, "_LOOK_FOR", 0.4)
    hasty = functools.partial(RetryPolicy, base=0.001)
    for module in ("client.session", "tasks", "triggers.base", "triggers.jobs"):
        monkeypatch.setattr(f"airflow_hpc_provider.{module}.RetryPolicy", hasty)
    monkeypatch.setattr(hub, "POLICY", hasty(attempts=2, longest_retry_after=0.0))


@pytest.fixture
def soon_lost(monkeypatch):
    monkeypatch.setattr("airflow_hpc_provider.watch._VISIBLE_WITHIN", 0.0)
    monkeypatch.setattr("airflow_hpc_provider.watch._LOST_AFTER", 0.4)


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait for a condition and return what made it true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)
    return value


async def event_of(trigger: Any) -> Any:
    return json.loads(json.dumps((await anext(trigger.run())).payload))


def resumed(deferral: TaskDeferred) -> Any:
    """The trigger as a triggerer makes it of what the database holds."""
    return type(deferral.trigger)(**json.loads(json.dumps(deferral.trigger.serialize()[1])))


class Task:
    """A task that submits a job and waits for it, in a thread of its own."""

    def __init__(self, gateway: Gateway, script: str, *, deferrable: bool, **options: Any) -> None:
        self.gateway = gateway
        self.task_id = f"task-{os.urandom(4).hex()}"
        self.context = context_of(self.task_id)
        self._options = {"script": script, "deferrable": deferrable, "poll_interval": 0.05} | options

    def operator(self) -> HpcSubmitJobOperator:
        """Each process has an operator of its own."""
        return HpcSubmitJobOperator(task_id=self.task_id, **self._options)

    def deferral(self) -> TaskDeferred:
        with pytest.raises(TaskDeferred) as deferral:
            self.operator().execute(self.context)
        return deferral.value

    def run(self) -> dict[str, Any]:
        """One try, from the worker through the triggerer to the worker."""
        return self.start().end()

    def start(self) -> "Task":
        self._trying: Future[dict[str, Any]] = Future()
        threading.Thread(target=self._try, daemon=True).start()
        return self

    def end(self) -> dict[str, Any]:
        return self._trying.result(timeout=15)

    def _try(self) -> None:
        trying = self._trying
        self.running = self.operator()
        try:
            try:
                result = self.running.execute(self.context)
            except TaskDeferred as deferral:
                event = asyncio.run(event_of(resumed(deferral)))
                result = getattr(self.operator(), deferral.method_name)(self.context, event=event)
        except BaseException as error:  # noqa: BLE001  a time-out of Airflow is no Exception
            trying.set_exception(error)
        else:
            trying.set_result(result)

    @property
    def job_id(self) -> str:
        return until(lambda: self.context["ti"].xcoms.get("job_id"))

    @property
    def state(self) -> str:
        """Of its one job."""
        job_id = self.job_id
        return self.jobs[job_id]

    @property
    def looks(self) -> int:
        """How often its job was asked for by its id."""
        return self.gateway.requests.count(rf"GET /jobs/{self.job_id}$")

    def looked_at(self, times: int = 1) -> "Task":
        """Wait until its job was looked at so many times more."""
        before = self.looks
        until(lambda: self.looks >= before + times)
        return self

    def completes(self) -> "Task":
        """Its job comes to a good end."""
        self.gateway.scheduler.end(self.job_id, "COMPLETED")
        return self

    @property
    def jobs(self) -> dict[str, str]:
        """All jobs that this task has ever had, and what became of them."""
        known = self.gateway.scheduler.records()
        return {one.base_id: one.state for one in known if one.name.startswith(self.task_id)}

    @property
    def cancelled(self) -> int:
        """How often one of its jobs was cancelled."""
        return sum(self.gateway.requests.count(rf"DELETE /jobs/{job_id}$") for job_id in self.jobs)

    def ran_once(self, result: dict[str, Any]) -> None:
        assert result["state"] == "COMPLETED"
        assert self.jobs == {result["job_id"]: "COMPLETED"}
        assert self.cancelled == 0


class Together:
    """Deferred tasks whose triggers share an event loop, as in one triggerer."""

    def __init__(self, several: list[Task]) -> None:
        self._tasks = several
        self._deferrals = [one.deferral() for one in several]

    def start(self) -> "Together":
        self._events: Future[list[Any]] = Future()
        threading.Thread(target=self._wait, daemon=True).start()
        return self

    def _wait(self) -> None:
        async def wait() -> list[Any]:
            return await asyncio.gather(*(event_of(resumed(deferral)) for deferral in self._deferrals))

        self._events.set_result(asyncio.run(wait()))

    def all_ran_once(self) -> None:
        for one in self._tasks:
            one.completes()
        for one, event in zip(self._tasks, self._events.result(timeout=15), strict=True):
            one.ran_once(one.operator().execute_complete(one.context, event=event))


@pytest.fixture
def task(connected: Gateway) -> Iterator[Callable[..., Task]]:
    """Tasks on the session's gateway; what they leave behind is cancelled."""
    made: list[Task] = []

    def make(script: str = SHORT, *, gateway: Gateway = connected, **options: Any) -> Task:
        made.append(Task(gateway, script, **options))
        return made[-1]

    yield make
    for one in made:
        for job_id, state in one.jobs.items():
            if state in ("PENDING", "RUNNING"):
                one.gateway.scheduler.cancel(job_id)


PAGE = "<html><title>Sign in</title></html>"


# --- an answer to the submission that is lost -------------------------------------------------------------

LOST: dict[str, Callable[[Faults], Any]] = {
    "cut": lambda faults: faults.lose_answer(on="submit"),
    "reset": lambda faults: faults.cut(on="submit", when="after", reset=True),
    "halfway": lambda faults: faults.truncate(on="submit"),
    "408": lambda faults: faults.lose_answer(on="submit", status=408),
    "500": lambda faults: faults.lose_answer(on="submit", status=500),
    "502": lambda faults: faults.bad_gateway(on="submit", when="after"),
    "504": lambda faults: faults.lose_answer(on="submit", status=504),
    "a portal's page": lambda faults: faults.garbage(PAGE, on="submit", when="after"),
}


@MODES
@pytest.mark.parametrize("lose", [*LOST.values()], ids=[*LOST])
def test_a_lost_answer_makes_no_second_job(connected, task, lose, deferrable):
    lose(connected.faults)
    one = task(deferrable=deferrable)
    before = connected.requests.count("submit")
    one.ran_once(one.run())
    assert connected.requests.count("submit") == before + 1


@MODES
@pytest.mark.parametrize(
    "trouble",
    [
        lambda faults: faults.rate_limit("0.01", on="jobs", times=5),
        lambda faults: faults.bad_gateway(on="jobs", times=5),
        lambda faults: faults.garbage(PAGE, on="jobs", times=5),
        lambda faults: faults.unhealthy("embedded", on="jobs", times=5),
    ],
    ids=["429", "502", "a portal's page", "503"],
)
def test_a_gateway_in_trouble_while_the_job_is_looked_for_makes_no_second_job(
    connected, task, trouble, deferrable
):
    connected.faults.lose_answer(on="submit")
    trouble(connected.faults)
    one = task(deferrable=deferrable)
    one.ran_once(one.run())


# --- a gateway that is away -------------------------------------------------------------------------------


def restart(gateway: Gateway, *, away: float = 0.3) -> None:
    """Another process serves on the same port; jobs and keys are what they were."""
    before = gateway._server
    before.stop()
    time.sleep(away)
    gateway._server = Server(before._uvicorn.config.app, port=before.port)
    gateway._server.start()


@MODES
def test_a_gateway_that_restarts_in_mid_wait_is_waited_for(make_gateway, connect, task, deferrable):
    gateway = make_gateway()
    connect(gateway)
    one = task(LONG, gateway=gateway, deferrable=deferrable).start().looked_at()
    restart(gateway)
    one.ran_once(one.completes().end())


def test_a_gateway_that_restarts_is_waited_for_by_all_who_share_a_list(make_gateway, connect, task):
    gateway = make_gateway()
    connect(gateway)
    together = Together([task(LONG, gateway=gateway, deferrable=True) for _ in range(4)]).start()
    before = gateway.requests.count("jobs")
    until(lambda: gateway.requests.count("jobs") > before)
    restart(gateway)
    together.all_ran_once()


# --- looks that fail --------------------------------------------------------------------------------------

TROUBLE: dict[str, Callable[..., Any]] = {
    "429": lambda faults, on: faults.rate_limit("0.01", on=on, times=12),
    "503": lambda faults, on: faults.unhealthy("embedded", on=on, times=12),
    "502": lambda faults, on: faults.bad_gateway(on=on, times=12),
    "a portal's page": lambda faults, on: faults.garbage(PAGE, on=on, times=12),
    "cut": lambda faults, on: faults.cut(on=on, times=12),
}


@MODES
@pytest.mark.parametrize("trouble", [*TROUBLE.values()], ids=[*TROUBLE])
def test_looks_that_fail_fail_no_job(connected, task, trouble, deferrable):
    fault = trouble(connected.faults, "job")
    one = task(LONG, deferrable=deferrable).start()
    until(lambda: fault.spent)
    one.ran_once(one.completes().end())


@pytest.mark.parametrize("trouble", [*TROUBLE.values()], ids=[*TROUBLE])
def test_lists_that_fail_fail_no_job(connected, task, trouble):
    together = Together([task(LONG, deferrable=True) for _ in range(4)])
    fault = trouble(connected.faults, "jobs")
    fault.times = 4
    together.start()
    until(lambda: fault.spent)
    together.all_ran_once()


# --- too many requests ------------------------------------------------------------------------------------


@MODES
def test_a_submission_that_comes_too_fast_is_sent_again_until_it_is_taken(connected, task, deferrable):
    storm = connected.faults.rate_limit("0.02", on="submit", times=5)
    one = task(deferrable=deferrable)
    one.ran_once(one.run())
    assert storm.hits == 5


@MODES
def test_a_storm_without_end_fails_a_try_and_the_next_one_submits_the_one_job(connected, task, deferrable):
    connected.faults.rate_limit("0.001", on="submit", times=None)
    one = task(deferrable=deferrable)
    with pytest.raises(RateLimitedError) as failure:
        one.run()
    assert failure.value.transient
    assert one.jobs == {}
    connected.faults.clear()
    one.ran_once(one.run())


# --- the health gate --------------------------------------------------------------------------------------


class Clock:
    """Time that passes only while somebody sleeps; things happen then."""

    def __init__(self, happens: Callable[[float], None]) -> None:
        self.begun = self.now = time.time()
        self._happens = happens

    @property
    def passed(self) -> float:
        return self.now - self.begun

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._happens(self.passed)


@pytest.fixture
def time_passes(monkeypatch):
    """The wait of a worker is by a clock of the test's own, and none of its looks takes long."""

    def pass_by(happens: Callable[[float], None]) -> Clock:
        clock, real = Clock(happens), tasks.follow

        def follow(client: Any, watch: Any, *, sleep: Any, **more: Any) -> Any:
            del sleep
            return real(client, watch, sleep=clock.sleep, clock=clock, **more)

        monkeypatch.setattr(tasks, "follow", follow)
        policy = functools.partial(RetryPolicy, base=0.001, attempts=2)
        monkeypatch.setattr("airflow_hpc_provider.client.session.RetryPolicy", policy)
        return clock

    return pass_by


def test_a_health_gate_that_is_closed_for_minutes_is_waited_out_and_logged_once(
    connected, task, time_passes, capsys
):
    one = task(LONG, deferrable=False, poll_interval=30)

    def happens(passed: float) -> None:
        connected.set_health("scheduler", healthy=passed > 900)
        if passed > 900:
            connected.scheduler.end(one.job_id, "COMPLETED")

    clock = time_passes(happens)
    one.ran_once(one.run())
    assert 900 < clock.passed < 960
    shown = capsys.readouterr().out
    assert shown.count("cannot be asked and is waited for with a patience of 1800 s") == 1
    assert shown.count("The scheduler service for the requested system (embedded) is unhealthy") == 1


@MODES
def test_patience_with_a_closed_gate_ends_and_the_next_try_finds_the_job(connected, task, deferrable):
    one = task(LONG, deferrable=deferrable, gateway_patience=0.5).start().looked_at()
    connected.set_health("scheduler", healthy=False)
    with pytest.raises(WatchError, match=r"could not be asked for \d s.* a retry finds it again") as end:
        one.end()
    assert end.value.transient
    connected.set_health("scheduler", healthy=True)
    one.ran_once(one.start().looked_at().completes().end())


def test_patience_does_not_wait_for_the_end_of_a_pause_that_the_gateway_asks_for(make_gateway, connect, task):
    gateway = make_gateway()
    connect(gateway)
    one = task(LONG, gateway=gateway, deferrable=True, gateway_patience=0.5).start().looked_at()
    gateway.faults.rate_limit(60, on="job", times=None)
    with pytest.raises(WatchError, match="could not be asked for"):
        one.end()


@MODES
def test_a_health_gate_that_closes_in_mid_wait_is_waited_out(connected, task, deferrable, capsys):
    one = task(LONG, deferrable=deferrable).start().looked_at()
    connected.set_health("scheduler", healthy=False)
    one.looked_at(15)
    connected.set_health("scheduler", healthy=True)
    one.ran_once(one.looked_at(2).completes().end())
    assert capsys.readouterr().out.count("cannot be asked and is waited for") == 1


# --- tokens -----------------------------------------------------------------------------------------------


@MODES
def test_tokens_that_are_revoked_in_mid_wait_are_replaced(connected, task, deferrable):
    one = task(LONG, deferrable=deferrable).start().looked_at()
    before = connected.requests.count("token")
    connected.faults.expire_tokens()
    one.ran_once(one.looked_at(2).completes().end())
    assert connected.requests.count("token") > before


def rotate(gateway: Gateway, connect: Callable[..., None]) -> None:
    """The centre and then the connection have another secret, and no old token serves any more."""
    gateway.add_client(gateway.client_id, "another secret")
    connect(gateway.connection() | {"password": "another secret"})
    gateway.faults.expire_tokens()


@MODES
def test_a_secret_that_is_rotated_in_mid_wait_is_read_anew_from_the_connection(
    make_gateway, connect, task, deferrable
):
    gateway = make_gateway()
    connect(gateway)
    one = task(LONG, gateway=gateway, deferrable=deferrable).start().looked_at()
    rotate(gateway, connect)
    one.ran_once(one.looked_at(2).completes().end())


def test_a_deferred_sensor_reads_a_secret_that_is_rotated_anew_too(make_gateway, connect):
    gateway = make_gateway(unhealthy={"embedded": "scheduler"})
    connect(gateway)

    def later() -> None:
        until(lambda: gateway.requests.count("systems") > 2)
        rotate(gateway, connect)
        refused = gateway.requests.count("systems")
        until(lambda: gateway.requests.count("systems") > refused)
        gateway.set_health("scheduler", healthy=True)

    with ThreadPoolExecutor(1) as beside:
        beside.submit(later)
        sensor = HpcSystemSensor(task_id="system", deferrable=True, poke_interval=0.1, timeout=10)
        assert wait_with(sensor) == "embedded"


# --- accounting that is behind ----------------------------------------------------------------------------


@MODES
@pytest.mark.usefixtures("soon_lost")
def test_accounting_that_is_a_minute_behind_hides_no_end(connected, task, deferrable):
    connected.faults.accounting_lag = 60
    one = task(LONG, deferrable=deferrable).start().looked_at()
    result = one.completes().end()
    one.ran_once(result)
    assert result["name"].startswith(one.task_id)


@MODES
def test_a_short_job_whose_name_accounting_learns_late_is_found_after_a_lost_answer(
    connected, connect, task, monkeypatch, deferrable
):
    monkeypatch.setattr(submission, "_LOOK_FOR", 3.0)
    connect(connected, timeout=0.3)
    connected.faults.accounting_lag = 0.6
    connected.faults.delay(0.5, on="submit", when="after")
    one = task(deferrable=deferrable)
    one.ran_once(one.run())


def test_a_short_job_whose_name_accounting_learns_very_late_is_waited_for_before_it_is_sent_again(
    connected, connect, task, monkeypatch
):
    monkeypatch.setattr(submission, "_LOOK_FOR", 0.1)
    connect(connected, timeout=0.3)
    connected.faults.accounting_lag = 1.5
    connected.faults.delay(0.5, on="submit", when="after")
    one = task(deferrable=False)
    one.ran_once(one.run())


# --- jobs out of sight ------------------------------------------------------------------------------------


@MODES
@pytest.mark.usefixtures("soon_lost")
def test_a_job_that_nobody_knows_any_more_is_lost_and_said_to_be(connected, task, deferrable):
    one = task(LONG, deferrable=deferrable).start().looked_at()
    connected.faults.vanish(one.job_id)
    with pytest.raises(JobLostError, match=rf"is lost.*sacct -j {one.job_id}"):
        one.end()
    assert one.cancelled == 0


@MODES
@pytest.mark.usefixtures("soon_lost")
def test_a_job_that_comes_back_is_not_lost(connected, task, deferrable):
    one = task(LONG, deferrable=deferrable).start().looked_at()
    connected.faults.vanish(one.job_id)
    one.looked_at(2)
    connected.faults.reappear(one.job_id)
    one.ran_once(one.completes().end())


# --- ends that Slurm takes back ---------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL"])
def test_a_job_that_slurm_requeues_is_waited_for_to_its_last_end(connected, task, state, deferrable):
    one = task(ENDS_WHEN_STARTED_AGAIN, deferrable=deferrable).start()
    until(lambda: one.state == "RUNNING")
    connected.scheduler.end(one.job_id, state)
    one.looked_at(2)
    connected.scheduler.requeue_delay = 0.05
    connected.scheduler.requeue(one.job_id)
    one.ran_once(one.end())


@MODES
@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL"])
def test_a_job_that_slurm_does_not_requeue_ends_in_what_it_is(
    connected, task, monkeypatch, state, deferrable
):
    monkeypatch.setattr("airflow_hpc_provider.watch._CONFIRM_AFTER", 0.2)
    one = task(LONG, deferrable=deferrable).start()
    until(lambda: one.state == "RUNNING")
    connected.scheduler.end(one.job_id, state)
    with pytest.raises(JobFailedError) as failure:
        one.end()
    assert (failure.value.state, failure.value.transient) == (state, True)


# --- ids that are given anew ------------------------------------------------------------------------------


def give_anew(gateway: Gateway, job_id: str, name: str) -> None:
    """The scheduler counts from the start again, and the id is another job's, which is over."""
    scheduler = gateway.scheduler
    after, scheduler._ids = scheduler._ids, itertools.count(int(job_id))
    scheduler.forget(job_id)
    job = Submission(script=SHORT, working_directory=str(gateway.home), name=name)
    assert scheduler.submit(job) == job_id
    scheduler._ids = after


@MODES
@pytest.mark.usefixtures("soon_lost")
def test_another_job_under_a_recycled_id_is_not_taken_for_ours(connected, task, deferrable):
    one = task(LONG, deferrable=deferrable).start().looked_at()
    give_anew(connected, one.job_id, "somebody-elses")
    with pytest.raises(JobLostError, match="its id now belongs to job somebody-elses"):
        one.end()


@MODES
@pytest.mark.usefixtures("soon_lost")
def test_a_job_of_long_ago_under_the_same_id_and_name_is_not_taken_for_ours(
    connected, task, monkeypatch, deferrable
):
    one = task(LONG, deferrable=deferrable).start().looked_at()
    monkeypatch.setattr(records, "_whole", by_a_clock_off_by(-86400))
    connected.scheduler.end(one.job_id, "COMPLETED")
    with pytest.raises(JobLostError, match="its id now belongs to"):
        one.end()


# --- clocks that differ -----------------------------------------------------------------------------------

real_whole = records._whole


def by_a_clock_off_by(seconds: float) -> Callable[..., int | None]:
    """The cluster's times by a clock that is so many seconds ahead."""

    def whole(moment: float | None, default: int | None = None) -> int | None:
        return real_whole(None if moment is None else moment + seconds, default)

    return whole


@MODES
@pytest.mark.parametrize("ahead", [-120, 120])
@pytest.mark.parametrize("lost", [0, 1], ids=["told", "answer lost"])
@pytest.mark.usefixtures("soon_lost")
def test_a_cluster_whose_clock_differs_runs_the_job_once(  # noqa: PLR0917
    connected, task, monkeypatch, ahead, lost, deferrable
):
    monkeypatch.setattr(records, "_whole", by_a_clock_off_by(ahead))
    connected.faults.lose_answer(on="submit", times=lost)
    one = task(LONG, deferrable=deferrable).start().looked_at()
    one.ran_once(one.completes().end())


@MODES
@pytest.mark.parametrize("ahead", [-120, 0, 120])
def test_a_try_that_ends_before_it_knows_its_job_leaves_it_to_the_next_one(
    connected, task, monkeypatch, ahead, deferrable
):
    monkeypatch.setattr(records, "_whole", by_a_clock_off_by(ahead))
    connected.faults.lose_answer(on="submit")
    connected.faults.cut(on="jobs", times=None)
    one = task(LONG, deferrable=deferrable)
    with pytest.raises(HpcError):
        one.run()
    until(lambda: [*one.jobs.values()] == ["RUNNING"])
    connected.faults.clear()
    one.ran_once(one.start().looked_at().completes().end())


@MODES
@pytest.mark.parametrize("ahead", [-120, 120])
def test_the_time_out_is_by_our_clock(connected, task, monkeypatch, ahead, deferrable):
    monkeypatch.setattr(records, "_whole", by_a_clock_off_by(ahead))
    one = task(LONG, deferrable=deferrable, execution_timeout=timedelta(seconds=0.6))
    begun = time.monotonic()
    with pytest.raises(AirflowTaskTimeout):
        one.run()
    assert 0.4 < time.monotonic() - begun < 5
    assert [state.startswith("CANCELLED") for state in one.jobs.values()] == [True]


# --- two of one -------------------------------------------------------------------------------------------


def test_two_triggerers_with_the_same_trigger_come_to_the_same_verdict_on_the_one_job(connected, task):
    one = task(LONG, deferrable=True)
    deferral = one.deferral()

    def triggerer() -> Any:
        return asyncio.run(event_of(resumed(deferral)))

    with ThreadPoolExecutor(2) as both:
        waiting = [both.submit(triggerer) for _ in range(2)]
        one.looked_at(6).completes()
        first, second = (each.result(timeout=15) for each in waiting)
    assert first == second
    for event in (first, second):
        one.ran_once(one.operator().execute_complete(one.context, event=event))


def test_a_triggerer_that_stops_leaves_the_job_to_the_next_one(connected, task):
    one = task(LONG, deferrable=True)
    deferral = one.deferral()

    async def stopped() -> None:
        waiting = asyncio.create_task(event_of(resumed(deferral)))
        await asyncio.to_thread(one.looked_at, 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(stopped())
    one.completes()
    event = asyncio.run(event_of(resumed(deferral)))
    one.ran_once(one.operator().execute_complete(one.context, event=event))


# --- kills through a gateway in trouble -------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [*TROUBLE.values()], ids=[*TROUBLE])
def test_a_users_kill_gets_through_a_gateway_in_trouble(connected, task, trouble):
    one = task(LONG, deferrable=False).start().looked_at()
    one.context["ti"].state = "failed"
    trouble(connected.faults, "cancel").times = 3
    one.running.on_kill()
    with pytest.raises(WatchError, match="is cancelled"):
        one.end()
    assert [state.startswith("CANCELLED") for state in one.jobs.values()] == [True]


@pytest.mark.parametrize(
    "trouble",
    [
        lambda faults: faults.rate_limit(60, on="job", times=None),
        lambda faults: faults.unhealthy("embedded", on="job", times=None),
        lambda faults: faults.cut(on="job", times=None),
    ],
    ids=["429", "503", "cut"],
)
def test_a_users_kill_does_not_wait_for_the_looks_to_go_well(connected, task, monkeypatch, trouble):
    for module in ("client.session", "tasks"):
        monkeypatch.setattr(f"airflow_hpc_provider.{module}.RetryPolicy", RetryPolicy)
    one = task(LONG, deferrable=False).start().looked_at()
    one.context["ti"].state = "failed"
    trouble(connected.faults)
    one.looked_at()
    begun = time.monotonic()
    one.running.on_kill()
    with pytest.raises(WatchError, match="is cancelled"):
        one.end()
    assert time.monotonic() - begun < 4, "Airflow waits five seconds before it kills for good"
    assert [state.startswith("CANCELLED") for state in one.jobs.values()] == [True]


def test_a_restart_of_the_worker_leaves_its_job_to_the_next_try(connected, task):
    one = task(LONG, deferrable=False).start().looked_at()
    one.running.on_kill()
    with pytest.raises(WatchError, match="a retry finds it"):
        one.end()
    one.ran_once(one.start().completes().end())
