import threading
import time

import pytest

from airflow_hpc_provider.client.lanes import Lanes, StoppedError


def run(lanes, *work, tick=lambda: None):
    lanes.run(work, tick=tick, every=0.01)


def test_all_work_is_done_and_the_books_are_kept_by_the_caller():
    done, ticks = [], []
    lanes = Lanes(lambda: None)

    def work():
        done.append(threading.current_thread())
        lanes.tell()
        lanes.pause(0.05)

    run(lanes, work, work, work, tick=lambda: ticks.append(threading.current_thread()))
    assert len({*done}) == 3
    assert {*ticks} == {threading.main_thread()}


def test_the_first_failure_ends_the_others_and_is_told():
    ended, woken = [], []
    lanes = Lanes(lambda: woken.append(1))

    def failing():
        raise ValueError("first")

    def pausing():
        try:
            lanes.pause(60)
        except StoppedError:
            ended.append("paused")
            raise

    def waiting():
        try:
            lanes.wait_until(lambda: False)
        except StoppedError:
            ended.append("waited")
            raise

    begun = time.monotonic()
    with pytest.raises(ValueError, match="first"):
        run(lanes, pausing, waiting, failing)
    assert time.monotonic() - begun < 5
    assert sorted(ended) == ["paused", "waited"]
    assert woken


def test_leaving_the_wait_ends_the_work_and_wakes_what_is_blocked():
    blocked = threading.Event()
    lanes = Lanes(blocked.set)

    def tick():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(lanes, lambda: blocked.wait(60), tick=tick)
    with pytest.raises(StoppedError):
        lanes.check()


def test_what_a_thread_raises_because_it_is_to_end_is_no_news():
    lanes = Lanes(lambda: None)

    def confused():
        try:
            lanes.pause(60)
        except StoppedError:
            raise OSError("socket closed") from None

    def failing():
        raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause"):
        run(lanes, confused, failing)
