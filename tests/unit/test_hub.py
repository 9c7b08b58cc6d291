"""The hub: what it asks and when, in a time that costs nothing."""

import asyncio
import selectors
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from airflow_hpc_provider import hub as module
from airflow_hpc_provider.client import jobs
from airflow_hpc_provider.client.errors import (
    BadAnswerError,
    HpcError,
    InvalidInputError,
    NotFoundError,
    TokenRefusedError,
    UnauthorizedError,
    UnreachableError,
    error_for,
)
from airflow_hpc_provider.hub import Entry, Hub, Limits, hub_for, next_tick, plan
from airflow_hpc_provider.watch import JobWatch, Outcome, Verdict

NOW = 1_000_000.0
WINDOWS = {"1h": 3600, "8h": 8 * 3600, "24h": 86400, "3d": 3 * 86400, "7d": 7 * 86400}


# --- a clock of our own ---


class _Selector(selectors.SelectSelector):
    """Nothing is ever waited for: the time of the next timer comes at once."""

    loop: "VirtualLoop"

    def select(self, timeout=None):
        assert timeout is not None, "everybody waits, and nobody will ever come"
        self.loop.passed += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.passed = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self):
        return self.passed


def run(main):
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def clock() -> float:
    return NOW + asyncio.get_running_loop().time()


# --- a gateway of our own ---


def record(job_id: str, state: str = "RUNNING") -> dict[str, Any]:
    return {"jobId": job_id, "name": "j", "status": {"state": state, "exitCode": 0}, "time": {}}


def api_error(status: int, message: str = "no", **headers: str) -> HpcError:
    request = httpx.Request("GET", "http://gateway/")
    return error_for(
        "ask", "s", httpx.Response(status, json={"message": message}, headers=headers, request=request)
    )


@dataclass
class Script:
    """A gateway that answers as told: when jobs end, who is missing from lists, and what goes wrong."""

    ends: dict[str, float] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    latency: float = 0.0
    on_list: Callable[[str | None], Exception | None] = lambda window: None
    on_get: Callable[[str], Exception | None] = lambda job_id: None
    extra: list[Any] = field(default_factory=list)
    log: list[tuple[float, str, str | None]] = field(default_factory=list)
    elements: dict[str, Callable[[], list[Any]]] = field(default_factory=dict)
    opened: int = 0
    open: int = 0
    open_fails: list[Exception] = field(default_factory=list)

    async def client(self) -> Any:
        if self.open_fails:
            raise self.open_fails.pop(0)
        self.opened += 1
        return _Client(self)

    @property
    def lists(self) -> list[float]:
        return [at for at, kind, _ in self.log if kind == "list"]

    def gets(self, job_id: str | None = None) -> list[float]:
        return [at for at, kind, of in self.log if kind == "get" and job_id in (None, of)]

    def record(self, job_id: str) -> dict[str, Any]:
        return record(job_id, "COMPLETED" if self.ends.get(job_id, float("inf")) <= clock() else "RUNNING")

    async def answer(self, call: Any) -> Any:
        tail = call.path.rpartition("/")[2]
        window = call.params.get("time_window")
        listing = tail == "jobs"
        self.log.append((clock(), "list" if listing else "get", window if listing else tail))
        await asyncio.sleep(self.latency)
        if error := self.on_list(window) if listing else self.on_get(tail):
            raise error
        if listing:
            found = [self.record(job_id) for job_id in self.ends if job_id not in self.missing] + self.extra
        else:
            found = self.elements[tail]() if tail in self.elements else [self.record(tail)]
        return call.read(httpx.Response(200, json={"jobs": found}))


class _Client:
    def __init__(self, script: Script) -> None:
        self.script = script

    async def __aenter__(self):
        self.script.open += 1
        return self

    async def __aexit__(self, *_):
        self.script.open -= 1

    async def send(self, call):
        return await self.script.answer(call)


def watch(job_id: str, **more: Any) -> JobWatch:
    return JobWatch(system="s", job_id=job_id, **{"since": NOW - 600, "poll_interval": 30.0} | more)


async def gather(hub: Hub, *watches: JobWatch) -> list[Verdict]:
    return await asyncio.wait_for(asyncio.gather(*(hub.wait(one) for one in watches)), 100_000)


def script_of(count: int, *, end: float = 100.0, **more: Any) -> Script:
    return Script(ends={str(number): NOW + end for number in range(1, count + 1)}, **more)


def wait_for_all(script: Script, **of_watch: Any) -> list[Verdict]:
    async def main():
        hub = Hub("s", script.client, clock=clock)
        verdicts = await gather(hub, *(watch(job_id, **of_watch) for job_id in script.ends))
        assert (hub.watched, script.open) == (0, 0)
        return verdicts

    verdicts = run(main())
    assert [verdict.data.get("job_id", job_id) for verdict, job_id in zip(verdicts, script.ends, strict=True)]
    return verdicts


def outcomes(verdicts: list[Verdict]) -> set[Outcome]:
    return {verdict.outcome for verdict in verdicts}


# --- decisions ---


def entry(due: float = 0.0, *, seen: float = -60.0, untold: bool = False, interval: float = 30.0) -> Entry:
    one = watch("1", poll_interval=interval)
    return Entry(one, due=NOW + due, seen=NOW + seen, done=None, untold=untold)  # type: ignore[arg-type]


def test_one_or_two_jobs_are_asked_for_by_id():
    two = [entry(), entry(5)]
    assert plan(two, NOW, Limits()) == module.Plan(None, (two[0],))
    assert next_tick([two[1]], Limits()) == NOW + 5


def test_three_jobs_are_asked_for_in_one_list():
    assert plan([entry(), entry(5), entry(5)], NOW, Limits()) == module.Plan("1h", ())


def test_nothing_is_asked_while_nobody_needs_a_look():
    assert plan([entry(1), entry(2), entry(3)], NOW, Limits()) == module.Plan(None, ())


def test_a_job_that_the_list_left_out_is_asked_for_by_id():
    lost = entry(untold=True)
    assert plan([lost, entry(), entry()], NOW, Limits()).singles == (lost,)


def test_single_looks_are_few_and_the_longest_waiting_come_first():
    waiting = [entry(-number, untold=True) for number in range(100)]
    singles = plan(waiting, NOW, Limits()).singles
    assert singles == tuple(reversed(waiting[80:]))


def test_without_lists_jobs_are_asked_for_by_id():
    waiting = [entry(-number) for number in range(30)]
    asked = plan(waiting, NOW, Limits(widest=None))
    assert (asked.window, len(asked.singles)) == (None, 20)
    assert next_tick(waiting, Limits(widest=None, look_from=NOW + 3)) == NOW + 3


@pytest.mark.parametrize(("widest", "window"), [("7d", "3d"), ("24h", "24h"), ("1h", "1h")])
def test_a_window_covers_the_oldest_unless_the_gateway_cannot(widest, window):
    old = [entry(seen=-2 * 86400), entry(), entry()]
    assert plan(old, NOW, Limits(widest=widest)).window == window


entries = st.lists(
    st.builds(
        entry,
        due=st.floats(-100, 100),
        seen=st.floats(-600_000, 0),
        untold=st.booleans(),
        interval=st.sampled_from([1.0, 30.0, 300.0]),
    ),
    min_size=1,
    max_size=60,
)
limits = st.builds(
    Limits,
    widest=st.sampled_from([None, "1h", "7d"]),
    list_from=st.floats(NOW - 100, NOW + 100),
    look_from=st.floats(NOW - 100, NOW + 100),
)


@given(entries, limits)
def test_the_next_tick_asks_and_none_before_it_does(watched, limits):
    at = next_tick(watched, limits)
    assert plan(watched, at, limits) != module.Plan(None, ())
    assert plan(watched, at - 0.01, limits) == module.Plan(None, ())


@given(entries, limits)
def test_a_plan_keeps_its_promises(watched, limits):
    asked = plan(watched, NOW, limits)
    due = [one for one in watched if one.due <= NOW]
    assert len(asked.singles) <= 20
    assert set(asked.singles) <= set(due)
    if asked.window and limits.widest == "7d":
        oldest = NOW - min(one.seen for one in watched)
        assert oldest < WINDOWS[asked.window] or asked.window == "7d"
        narrower = [name for name, seconds in WINDOWS.items() if seconds < WINDOWS[asked.window]]
        assert not narrower or WINDOWS[narrower[-1]] * 0.9 <= oldest


# --- pace ---


@settings(max_examples=30)
@given(
    arrivals=st.lists(
        st.tuples(st.floats(0, 200), st.sampled_from([5.0, 30.0, 60.0]), st.booleans()),
        min_size=1,
        max_size=30,
    ),
    latency=st.sampled_from([0.0, 0.2]),
    outage=st.tuples(st.floats(0, 150), st.floats(0, 200)),
)
def test_every_job_is_looked_at_within_its_poll_interval_once_the_gateway_answers(arrivals, latency, outage):
    assume(sum(missing for _, _, missing in arrivals) <= 20)
    down, up = NOW + outage[0], NOW + outage[0] + outage[1]
    script = Script(latency=latency)

    def trouble(_: str | None) -> Exception | None:
        return api_error(503, "unhealthy") if down <= clock() <= up else None

    script.on_list = script.on_get = trouble

    async def arrive(hub: Hub, number: int, at: float, interval: float, missing: bool) -> None:
        await asyncio.sleep(at)
        job_id = str(number)
        script.ends[job_id] = float("inf")
        if missing:
            script.missing.add(job_id)
        await hub.wait(watch(job_id, poll_interval=interval, since=clock() - 600))

    async def main():
        hub = Hub("s", script.client, clock=clock)
        tasks = [asyncio.create_task(arrive(hub, number, *one)) for number, one in enumerate(arrivals)]
        await asyncio.sleep(450)
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(main())
    slack = 21 * latency + 0.1
    for number, (arrived, interval, _) in enumerate(arrivals):
        looks = [NOW + arrived, *sorted(script.lists + script.gets(str(number))), NOW + 450]
        looks = [at for at in looks if at >= NOW + arrived]
        for one, other in pairwise(looks):
            hit = one <= up and other >= down
            assert other - (max(one, up) if hit else one) <= interval + slack
    shortest = min(interval for _, interval, _ in arrivals)
    for one, other in pairwise(script.lists):
        assert other - one >= shortest * 0.24


def test_fresh_jobs_are_looked_at_often_and_quiet_ones_seldom():
    script = script_of(10, end=3600)
    wait_for_all(script, since=NOW)
    early = [at for at in script.lists if at < NOW + 60]
    late = [at for at in script.lists if NOW + 1800 <= at < NOW + 1860]
    assert len(early) >= 7
    assert 2 <= len(late) <= 3


def test_many_jobs_are_listed_less_often_than_few():
    few, many = script_of(10, end=60), script_of(1000, end=60)
    for script in (few, many):
        wait_for_all(script, since=NOW)
    assert len(many.lists) < len(few.lists)
    assert not many.gets()


def test_a_slow_list_is_asked_for_less_often():
    quick, slow = script_of(10, end=300), script_of(10, end=300, latency=3.0)
    for script in (quick, slow):
        wait_for_all(script, since=NOW)
    assert len(slow.lists) < 0.8 * len(quick.lists)


def test_two_jobs_are_waited_for_without_any_list():
    script = script_of(2)
    assert outcomes(wait_for_all(script)) == {Outcome.DONE}
    assert not script.lists


def test_jobs_that_come_one_by_one_share_the_lists():
    script = script_of(200, end=600)

    async def main():
        hub = Hub("s", script.client, clock=clock)

        async def come(number: int):
            await asyncio.sleep(number / 10)
            return await hub.wait(watch(str(number)))

        return await asyncio.gather(*(come(number) for number in range(1, 201)))

    run(main())
    assert len([at for at in script.lists if at < NOW + 21]) <= 4


# --- what a list leaves out ---


def test_a_thousand_missing_jobs_cost_few_looks_a_tick_and_none_starves():
    script = script_of(1000, end=0)
    script.missing = set(script.ends)
    assert outcomes(wait_for_all(script)) == {Outcome.DONE}
    at = script.gets()
    assert all(later - one >= 7 for one, later in zip(at, at[20:], strict=False))
    assert len(at) == 1000
    assert at[-1] - NOW <= 1000 / 20 * 30 * 0.25 + 30


def test_an_unreadable_record_is_asked_for_by_id():
    script = script_of(3)
    script.missing = {"3"}
    script.extra = [{"jobId": "3"}]
    assert outcomes(wait_for_all(script)) == {Outcome.DONE}
    assert script.gets("3")
    assert not script.gets("1")


@pytest.mark.parametrize("known", ["0-1", None])
def test_an_array_is_never_over_by_a_list(known):
    script = script_of(3, end=200)
    script.missing = {"3"}
    script.extra = [record("3_0", "COMPLETED")]  # 3_1 runs, and is listed under a raw id
    script.elements["3"] = lambda: [
        record("3_0", "COMPLETED"),
        record("3_1", "COMPLETED" if clock() > NOW + 150 else "RUNNING"),
    ]

    async def main():
        hub = Hub("s", script.client, clock=clock)
        verdicts = await gather(hub, watch("1"), watch("2"), watch("3", array=known))
        assert clock() >= NOW + 150
        return verdicts[2]

    assert len(run(main()).data["elements"]) == 2
    assert script.gets("3")


# --- trouble ---


@pytest.mark.parametrize("status", [408, 413, 403, 404, 501])
def test_a_list_that_does_not_work_is_replaced_by_single_looks(status):
    script = script_of(5)
    script.on_list = lambda _: api_error(status)
    assert outcomes(wait_for_all(script)) == {Outcome.DONE}
    assert len(script.lists) == 1


def test_a_wide_list_that_is_too_large_is_replaced_by_a_narrow_one():
    script = script_of(5)
    script.on_list = lambda window: None if window == "1h" else api_error(413)
    wait_for_all(script, since=NOW - 2 * 86400)
    assert [window for _, kind, window in script.log if kind == "list"][:3] == ["3d", "1h", "1h"]
    assert not script.gets()


def test_a_list_is_tried_again_after_a_while():
    script = script_of(5, end=2000)
    script.on_list = lambda _: api_error(413) if clock() < NOW + 10 else None
    wait_for_all(script)
    assert script.lists[1] >= NOW + 600


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_knows_no_window_is_asked_without(status):
    script = script_of(5)
    script.on_list = lambda window: api_error(status) if window else None
    wait_for_all(script)
    assert [window for _, kind, window in script.log if kind == "list"][:3] == ["1h", None, None]
    assert not script.gets()


@pytest.mark.parametrize("status", [400, 413])
def test_a_server_that_can_list_in_no_way_is_asked_by_id(status):
    script = script_of(5)
    script.on_list = lambda window: api_error(400) if window else api_error(status)
    assert outcomes(wait_for_all(script)) == {Outcome.DONE}
    assert len(script.lists) == 2


def test_a_list_that_fails_again_and_again_is_replaced_for_a_while():
    script = script_of(5)
    script.on_list = lambda _: api_error(500, "Error fetching Slurm API data.")
    assert outcomes(wait_for_all(script)) == {Outcome.DONE}
    assert len(script.lists) in (3, 4)


@pytest.mark.parametrize(
    "error",
    [
        api_error(500),
        api_error(503, "The scheduler service is unhealthy."),
        UnreachableError("list jobs", "TLS failed.", sent=False, transient=False),
        BadAnswerError("list jobs", "the answer is a redirect.", ambiguous=False, transient=False),
        RuntimeError("something else"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("count", [1, 5])
def test_no_job_fails_because_the_gateway_cannot_be_asked_for_a_while(error, count):
    script = script_of(count, end=50)
    script.on_list = script.on_get = lambda _: error if clock() < NOW + 600 else None
    assert outcomes(wait_for_all(script)) == {Outcome.DONE}
    assert len([at for at in (at for at, *_ in script.log) if at < NOW + 600]) <= 60


def test_patience_with_a_gateway_ends():
    script = script_of(5)
    script.on_list = script.on_get = lambda _: api_error(503)
    verdicts = wait_for_all(script, patience=300.0)
    assert outcomes(verdicts) == {Outcome.FAILED}
    assert all(verdict.transient for verdict in verdicts)


def test_a_proxys_404_is_no_word_about_a_job():
    script = script_of(1)
    script.on_get = lambda _: api_error(404, "404 page not found") if clock() < NOW + 60 else None
    assert outcomes(wait_for_all(script)) == {Outcome.DONE}


def test_a_404_about_a_job_or_a_system_is_one():
    script = script_of(2)
    script.on_get = lambda job_id: api_error(404, "Job not found." if job_id == "1" else "System not found")
    lost, failed = wait_for_all(script)
    assert (lost.outcome, failed.outcome) == (Outcome.LOST, Outcome.FAILED)
    assert isinstance(api_error(404), NotFoundError)


def test_a_pause_that_the_gateway_asks_for_is_kept_by_newcomers_and_other_hubs_of_the_identity():
    script = script_of(6, end=90)
    script.on_list = lambda _: api_error(429, **{"Retry-After": "60"}) if len(script.log) == 1 else None

    async def main():
        one, other = (
            hub_for(("url", "me"), "s", script.client),
            hub_for(("url", "me"), "t", script.client),
        )
        one._clock = other._clock = clock
        tasks = [asyncio.create_task(one.wait(watch(str(number)))) for number in range(1, 4)]
        await asyncio.sleep(1)
        tasks += [asyncio.create_task(one.wait(watch("4")))]
        tasks += [asyncio.create_task(other.wait(watch(number))) for number in "56"]
        await asyncio.gather(*tasks)

    run(main())
    assert [at for at, *_ in script.log if NOW < at < NOW + 59] == []
    assert len([at for at, *_ in script.log if at < NOW + 61]) >= 3


def test_an_endless_pause_is_cut_short():
    script = script_of(3, end=0)
    script.on_list = lambda _: api_error(429, **{"Retry-After": "1e9"}) if len(script.log) == 1 else None
    wait_for_all(script)
    assert script.lists[1] <= NOW + 1801


@pytest.mark.parametrize("count", [1, 3])
def test_a_deadline_ends_a_wait_also_while_the_gateway_wants_to_be_left_alone(count):
    script = script_of(count)
    script.on_list = script.on_get = lambda _: api_error(429, **{"Retry-After": "1000"})

    async def main():
        verdicts = await gather(
            Hub("s", script.client, clock=clock),
            *(watch(job_id, deadline=NOW + 100) for job_id in script.ends),
        )
        assert clock() <= NOW + 101
        return verdicts

    verdicts = run(main())
    assert outcomes(verdicts) == {Outcome.TIMEOUT}
    assert "429" in verdicts[0].message


@pytest.mark.parametrize("count", [1, 5])
def test_a_refused_token_opens_a_new_client(count):
    script = script_of(count)
    script.on_list = script.on_get = lambda _: (
        api_error(401) if script.opened == 1 and clock() > NOW + 40 else None
    )
    assert outcomes(wait_for_all(script)) == {Outcome.DONE}
    assert script.opened == 2
    assert isinstance(api_error(401), UnauthorizedError)


@pytest.mark.parametrize(
    "error",
    [TokenRefusedError("no"), InvalidInputError("token_url", "is none"), RuntimeError("no connection")],
    ids=lambda error: type(error).__name__,
)
def test_a_client_that_cannot_be_opened_is_tried_again(error):
    script = script_of(3)
    script.open_fails = [error] * 3
    assert outcomes(wait_for_all(script)) == {Outcome.DONE}


def test_one_look_that_fails_keeps_the_others_waiting_only_for_a_moment():
    script = script_of(30)
    script.missing = set(script.ends)
    script.on_get = lambda job_id: api_error(500) if job_id == "7" and clock() < NOW + 1000 else None
    assert outcomes(wait_for_all(script)) == {Outcome.DONE}
    assert max(max(script.gets(job_id)) for job_id in script.ends if job_id != "7") <= NOW + 300


def test_slow_single_looks_do_not_hold_up_the_list():
    script = script_of(30, end=400, latency=5.0)
    script.missing = {str(number) for number in range(1, 16)}
    wait_for_all(script)
    assert max(other - one for one, other in pairwise(script.lists)) <= 45


def test_an_error_in_one_watch_is_its_own():
    script = script_of(4)

    class Broken(JobWatch):
        def decide(self, seen, now):
            raise ZeroDivisionError

    async def main():
        hub = Hub("s", script.client, clock=clock)
        broken = Broken(system="s", job_id="1", since=NOW)
        good = [watch(job_id) for job_id in ("2", "3", "4")]
        return await asyncio.gather(
            *(hub.wait(one) for one in [broken, watch("12_3"), *good]), return_exceptions=True
        )

    broken, odd, *good = run(main())
    assert isinstance(broken, ZeroDivisionError)
    assert odd.outcome is Outcome.FAILED
    assert outcomes(good) == {Outcome.DONE}


# --- coming and going ---


def test_the_first_to_come_may_go():
    script = script_of(3)

    async def main():
        hub = Hub("s", script.client, clock=clock)
        first, *others = [asyncio.create_task(hub.wait(watch(job_id))) for job_id in script.ends]
        await asyncio.sleep(10)
        first.cancel()
        verdicts = await asyncio.gather(*others)
        assert first.cancelled()
        return verdicts

    assert outcomes(run(main())) == {Outcome.DONE}


def test_who_goes_while_the_others_are_told_is_not_told():
    script = script_of(300, end=50)

    async def main():
        hub = Hub("s", script.client, clock=clock)
        waits: list[asyncio.Task[Verdict]] = []

        def go() -> None:
            waits[-1].cancel()

        waits += [
            asyncio.create_task(hub.wait(watch(job_id), after_look=go if job_id == "1" else None))
            for job_id in script.ends
        ]
        *others, last = await asyncio.gather(*waits, return_exceptions=True)
        assert isinstance(last, asyncio.CancelledError)
        return others

    assert outcomes(run(main())) == {Outcome.DONE}


@pytest.mark.parametrize("latency", [0.0, 50.0])
def test_the_last_to_go_leaves_nothing_behind(latency):
    script = script_of(3, end=1e6, latency=latency)

    async def main():
        hub = hub_for(("url", "me"), "s", script.client)
        hub._clock = clock
        tasks = [asyncio.create_task(hub.wait(watch(job_id))) for job_id in script.ends]
        await asyncio.sleep(20)
        assert (hub.watched, script.open) == (3, 1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (hub.watched, script.open) == (0, 0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        asked = len(script.log)
        await asyncio.sleep(1000)
        assert len(script.log) == asked
        # And somebody new starts it again.
        assert (await hub.wait(watch("9", deadline=clock() + 5))).outcome is Outcome.TIMEOUT

    run(main())


def test_who_comes_while_the_last_one_leaves_is_served():
    script = script_of(2, end=60)

    async def main():
        hub = Hub("s", script.client, clock=clock)
        last = asyncio.create_task(hub.wait(watch("1")))
        await asyncio.sleep(5)
        last.cancel()
        verdict = await asyncio.gather(hub.wait(watch("2")), last, return_exceptions=True)
        assert verdict[0].outcome is Outcome.DONE
        assert script.open == 0

    run(main())


def test_an_event_loop_that_closes_takes_the_hub_with_it():
    script = script_of(3, end=1e6)
    waits = []

    async def main():
        hub = Hub("s", script.client, clock=clock)
        waits.extend(asyncio.create_task(hub.wait(watch(job_id))) for job_id in script.ends)
        await asyncio.sleep(20)

    run(main())
    assert all(one.cancelled() for one in waits)
    assert script.open == 0


def test_nobody_waits_for_a_poll_loop_that_was_cancelled():
    script = script_of(3, end=1e6)

    async def main():
        hub = Hub("s", script.client, clock=clock)
        waits = [asyncio.create_task(hub.wait(watch(job_id))) for job_id in script.ends]
        await asyncio.sleep(20)
        hub._task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        assert all(one.cancelled() for one in waits)

    run(main())


def test_there_is_one_hub_for_an_identity_and_a_system_of_a_loop():
    async def nobody():
        raise AssertionError

    async def another():
        raise AssertionError

    async def main():
        hub = hub_for(("url", "me"), "Daint", nobody)
        assert hub_for(("url", "me"), "daint", another) is hub
        assert hub.open_client is another
        assert hub_for(("url", "you"), "daint", nobody) is not hub
        assert hub_for(("url", "me"), "eiger", nobody) is not hub
        return hub

    assert run(main()) is not run(main())
    before = len(module._hubs)
    run(main())
    assert len(module._hubs) <= before


def test_each_look_is_told_in_the_callers_context():
    import contextvars

    who = contextvars.ContextVar("who", default="nobody")
    script = script_of(3)
    told = []

    async def main():
        hub = Hub("s", script.client, clock=clock)

        async def wait(job_id: str):
            who.set(job_id)
            await hub.wait(watch(job_id), after_look=lambda: told.append(who.get()))

        await asyncio.gather(*(asyncio.create_task(wait(job_id)) for job_id in script.ends))

    run(main())
    assert set(told) == {"1", "2", "3"}
    assert len(told) >= 9


def test_windows_of_a_list_are_those_of_the_client():
    assert set(WINDOWS) == set(jobs.Window.__args__)
