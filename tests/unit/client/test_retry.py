"""RetryPolicy and RateBudget: pure rules, by example and by property."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hpc_provider.client.errors import (
    BadAnswerError,
    InvalidInputError,
    NotFoundError,
    RateLimitedError,
    RejectedError,
    TokenRefusedError,
    TokenUnavailableError,
    UnavailableError,
    UnreachableError,
)
from airflow_hpc_provider.client.retry import RateBudget, RetryPolicy


def limited(retry_after):
    return RateLimitedError("look", status=429, message="Slow down", retry_after=retry_after)


def unavailable(status, retry_after=None):
    return UnavailableError("look", status=status, message="Trouble", retry_after=retry_after)


FINAL = [
    InvalidInputError("path", "is empty"),
    NotFoundError("look", status=404, message="Job not found."),
    RejectedError("submit", status=500, message="Invalid account"),
    TokenRefusedError("no"),
    UnreachableError("look", "TLS failed.", sent=False, transient=False),
]
PASSING_BUT_UNKNOWN = [
    *(unavailable(status) for status in (408, 500, 502, 504)),
    UnreachableError("look", "lost.", sent=True),
    BadAnswerError("look", "HTML."),
]
PASSING_AND_UNDONE = [
    unavailable(424),
    unavailable(503),
    limited(None),
    UnreachableError("look", "refused.", sent=False),
    TokenUnavailableError("down"),
    BadAnswerError("look", "a redirect.", ambiguous=False),
]
ERRORS = st.sampled_from([*FINAL, *PASSING_BUT_UNKNOWN, *PASSING_AND_UNDONE])
POLICIES = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 10**6),
    base=st.floats(0, 100),
    longest=st.floats(0, 1000),
    longest_retry_after=st.floats(0, 1000),
    random=st.floats(0, 1, exclude_max=True).map(lambda number: lambda: number),
)


def test_pauses_double_up_to_the_longest():
    policy = RetryPolicy(attempts=9, base=0.5, longest=20, random=lambda: 1.0)
    pauses = [policy.delay(attempt, unavailable(503), replayable=True) for attempt in range(1, 10)]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 20, 20, None]


def test_many_callers_are_spread_over_half_of_a_pause():
    pauses = [
        RetryPolicy(base=8, random=lambda number=number: number).delay(1, unavailable(503), replayable=True)
        for number in (0.0, 0.5, 0.999)
    ]
    assert pauses == pytest.approx([4, 6, 8], abs=0.01)


def test_the_default_policy_gives_up_within_a_minute():
    policy = RetryPolicy(random=lambda: 1.0)
    pauses = []
    while (pause := policy.delay(len(pauses) + 1, unavailable(500), replayable=True)) is not None:
        pauses.append(pause)
    assert len(pauses) == policy.attempts - 1
    assert sum(pauses) < 60


@given(POLICIES, st.integers(1, 10**6), ERRORS, st.booleans())
def test_pauses_are_bounded_and_only_given_where_a_try_is_safe_and_can_help(
    policy, attempt, error, replayable
):
    pause = policy.delay(attempt, error, replayable=replayable)
    allowed = error in PASSING_AND_UNDONE or (replayable and error in PASSING_BUT_UNKNOWN)
    assert (pause is not None) == (allowed and attempt < policy.attempts)
    if pause is not None:
        assert 0 <= pause <= policy.longest


@given(POLICIES, st.floats(0, 10**6), st.sampled_from([429, 503]))
def test_a_gateway_is_never_asked_earlier_than_it_said(policy, asked, status):
    error = limited(asked) if status == 429 else unavailable(503, retry_after=asked)
    pause = policy.delay(1, error, replayable=True)
    if policy.attempts == 1 or asked > policy.longest_retry_after:
        assert pause is None
    else:
        assert asked <= pause <= asked + policy.longest


def test_a_budget_without_a_rate_never_waits():
    assert [RateBudget().reserve() for _ in range(100)] == [0.0] * 100


@pytest.mark.parametrize("rate", [None, 4])
def test_a_held_budget_lets_nobody_ask_until_its_end(rate):
    clock = SimpleNamespace(now=100.0)
    budget = RateBudget(rate, clock=lambda: clock.now)
    budget.hold(10)
    budget.hold(3)
    assert budget.reserve() == 10, "a shorter pause does not end a longer one"
    clock.now += 10 + (1 / rate if rate else 0)
    assert budget.reserve() == 0


def test_a_budget_spaces_requests_evenly():
    clock = SimpleNamespace(now=100.0)
    budget = RateBudget(4, clock=lambda: clock.now)
    assert [budget.reserve() for _ in range(4)] == [0, 0.25, 0.5, 0.75]
    clock.now += 10
    assert budget.reserve() == 0, "a quiet time leaves no debt,"
    assert budget.reserve() == 0.25, "nor anything to spend at once"


@given(
    rate=st.floats(0.1, 100),
    gaps=st.lists(st.floats(0, 3), min_size=2, max_size=30),
    window=st.floats(0.1, 20),
)
def test_a_budget_holds_its_rate_in_every_window(rate, gaps, window):
    clock = SimpleNamespace(now=0.0)
    budget = RateBudget(rate, clock=lambda: clock.now)
    starts = []
    for gap in gaps:
        clock.now += gap
        starts.append(clock.now + budget.reserve())
    assert starts == sorted(starts)
    for start in starts:
        inside = sum(start <= other < start + window for other in starts)
        assert inside <= window * rate * (1 + 1e-9) + 1 + 1e-6


def test_threads_never_share_a_place():
    budget = RateBudget(10, clock=lambda: 0.0)
    together = threading.Barrier(16)

    def reserve(_):
        together.wait(10)
        return [budget.reserve() for _ in range(20)]

    with ThreadPoolExecutor(16) as pool:
        places = sorted(place for some in pool.map(reserve, range(16)) for place in some)
    assert places == pytest.approx([number / 10 for number in range(320)])
