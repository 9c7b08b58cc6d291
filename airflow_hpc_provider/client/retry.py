"""When to try again and how fast to ask: rules that look and answer, and never sleep."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from .errors import ApiError, HpcError

__all__ = ["RateBudget", "RetryPolicy"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how far apart a call is repeated.

    :param attempts: tries in all
    :param base: seconds before the second try, doubled for each further one
    :param longest: seconds between two tries at the most
    :param longest_retry_after: a gateway that asks for a longer pause than this many seconds gets no
        further try: coming back earlier than asked would be rude, holding a worker longer would be useless
    :param random: a number in [0, 1); spreads the tries of many callers
    """

    attempts: int = 6
    base: float = 0.5
    longest: float = 20.0
    longest_retry_after: float = 120.0
    random: Callable[[], float] = random.random

    def delay(self, attempt: int, error: HpcError, *, replayable: bool) -> float | None:
        """Seconds to wait before the next try, or None to give up.

        :param attempt: tries made so far, from 1
        :param error: how the last one failed
        :param replayable: the call may be repeated even if the gateway may have carried it out
        """
        if attempt >= self.attempts or not error.transient or (error.ambiguous and not replayable):
            return None
        backoff = min(self.longest, self.base * 2.0 ** min(attempt - 1, 60)) * (0.5 + self.random() / 2)
        asked = error.retry_after if isinstance(error, ApiError) else None
        if asked is None:
            return backoff
        if asked > self.longest_retry_after:
            return None
        return asked + backoff * self.random()


class RateBudget:
    """At most so many requests a second, evenly spaced, shared by all threads and tasks that hold it.

    :param per_second: requests a second; None for no limit
    :param clock: monotonic seconds
    """

    def __init__(self, per_second: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 1.0 / per_second if per_second else 0.0
        self._clock = clock
        self._next = 0.0
        self._lock = threading.Lock()

    def hold(self, seconds: float) -> None:
        """Let nobody ask for so many seconds: what a gateway says to one caller (429) goes for all."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)

    def reserve(self) -> float:
        """Take the next place and return the seconds to wait for it."""
        with self._lock:
            now = self._clock()
            at = max(now, self._next)
            self._next = at + self._interval
            return at - now
