"""Several threads on one piece of work: the first failure ends all of them, and so does leaving the wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

__all__ = ["Lanes", "StoppedError"]

_JOIN_SECONDS = 3.0


class StoppedError(Exception):
    """This thread is to end: another one failed, or nobody waits for it any more."""


class Lanes:
    """Threads that work, while the caller waits and keeps the books.

    :param on_stop: wakes threads that are blocked in what they do
    """

    def __init__(self, on_stop: Callable[[], None]) -> None:
        self._on_stop = on_stop
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._running = 0
        self._error: BaseException | None = None

    def check(self) -> None:
        """End this thread if it is to end.

        :raises StoppedError: it is
        """
        if self._stop.is_set():
            raise StoppedError

    def pause(self, seconds: float) -> None:
        """Sleep, unless this thread is to end.

        :raises StoppedError: it is
        """
        if self._stop.wait(seconds):
            raise StoppedError

    def tell(self) -> None:
        """Let the caller look after the books now, and let threads look again that wait for others."""
        with self._news:
            self._news.notify_all()

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait for what other threads do; ``tell`` says that they did something.

        :raises StoppedError: this thread is to end
        """
        with self._news:
            self._news.wait_for(lambda: ready() or self._stop.is_set())
        self.check()

    def run(self, work: Sequence[Callable[[], None]], *, tick: Callable[[], None], every: float) -> None:
        """Run each in a thread of its own, until all are through.

        :param tick: called in the caller's thread whenever there are news, and else
        :param every: so many seconds
        :raises BaseException: the first that a thread raised
        """
        threads = [threading.Thread(target=self._one, args=(act,), daemon=True) for act in work]
        self._running = len(threads)
        try:
            for thread in threads:
                thread.start()
            while self._running and self._error is None:
                with self._news:
                    if self._running and self._error is None:
                        self._news.wait(every)
                tick()
        finally:
            self._stop.set()
            self.tell()
            if self._running:
                self._on_stop()
            until = time.monotonic() + _JOIN_SECONDS
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, until - time.monotonic()))
        if self._error is not None:
            raise self._error

    def _one(self, act: Callable[[], None]) -> None:
        error: BaseException | None = None
        try:
            act()
        except BaseException as raised:  # noqa: BLE001  it is raised again where somebody waits
            error = raised
        with self._news:
            self._running -= 1
            # What a thread raises because it is to end, in whatever words, is no news.
            if self._error is None and not self._stop.is_set():
                self._error = error
            if error is not None:
                self._stop.set()
            self._news.notify_all()
        if error is not None:
            self._on_stop()
