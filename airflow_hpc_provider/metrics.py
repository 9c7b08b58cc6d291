"""Airflow's stats: what this provider counts and times, sent wherever ``[metrics]`` says.

All names begin with ``hpc.``. Tags have few values: systems, operations, states, never ids of jobs. Without
``[metrics]`` a call here does next to nothing, and whatever goes wrong with stats reaches no task.
"""

from __future__ import annotations

import functools
import logging
import re
import socket
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from .client.redact import redact
from .watch import Outcome, Verdict, Watch

if TYPE_CHECKING:
    from .client.jobs import Job
    from .client.session import Sent

__all__ = ["detected", "job_ended", "jobs_watched", "polled", "requested", "transferred"]

log = logging.getLogger(__name__)

# With InfluxDB's tags, Airflow drops a stat that has any other character in a tag.
_FOREIGN = re.compile(r"[^A-Za-z0-9_.-]")


def requested(sent: Sent) -> None:
    """Count and time one try of a call; what a client's ``observe`` takes.

    :param sent: the try
    """
    tags = {"system": sent.system, "operation": sent.operation}
    _emit("incr", "requests", tags=tags | {"status": str(sent.status or "none")})
    _emit("timing", "request_time", _span(sent.seconds), tags=tags)
    if sent.attempt > 1:
        _emit("incr", "retries", tags=tags)


def polled(system: str, look: str) -> None:
    """Count one look at what is waited for.

    :param system: name of the system
    :param look: what was asked for: ``list`` for many jobs at once, else the kind of the watch
    """
    _emit("incr", "polls", tags={"system": system, "look": look})


def jobs_watched(system: str, count: int) -> None:
    """Tell how many jobs of a system this triggerer watches.

    :param system: name of the system
    :param count: jobs
    """
    # Each triggerer has a number of its own, as with Airflow's ``triggers.running``.
    _emit("gauge", "jobs_watched", count, tags={"system": system, "hostname": socket.gethostname()})


def detected(watch: Watch[Any], verdict: Verdict, now: float) -> None:
    """Time how long after a job's end, by the scheduler's clock, there was a verdict on it.

    A job that was over before the wait began does not count: nobody could have seen it in time.

    :param watch: the wait; only that for a job tells when it was over
    :param verdict: how it ended
    :param now: epoch seconds
    """
    end = verdict.data.get("end") if verdict.outcome is Outcome.DONE else None
    if end and (over := datetime.fromisoformat(end).timestamp()) >= watch.since:
        _emit("timing", "detection_delay", _span(now - over), tags={"system": watch.system})


def job_ended(job: Job, system: str, since: datetime) -> None:
    """Time how long a job waited and how long it ran; an array from its first start to its last end.

    :param job: a job that is over; one that never started is left out
    :param system: name of the system
    :param since: when it was submitted
    """
    if job.start is None or job.end is None:
        return
    tags = {"system": system, "state": job.state.value}
    _emit("timing", "queue_time", _span((job.start - since).total_seconds()), tags=tags)
    _emit("timing", "run_time", _span((job.end - job.start).total_seconds()), tags=tags)


def transferred(system: str, direction: str, size: int, seconds: float) -> None:
    """Time how long the bytes of a staged transfer moved, and how fast.

    :param system: name of the system
    :param direction: ``up`` or ``down``
    :param size: bytes that moved
    :param seconds: how long that took
    """
    tags: dict[str, str | None] = {"system": system, "direction": direction}
    _emit("timing", "transfer_time", _span(seconds), tags=tags)
    _emit("gauge", "transfer_rate", size / max(seconds, 1e-3), tags=tags)


def _span(seconds: float) -> timedelta:
    """A time that no sink takes for another unit; between two clocks it may seem to be negative."""
    return timedelta(seconds=max(0.0, seconds))


def _emit(
    kind: Literal["incr", "gauge", "timing"],
    name: str,
    *value: float | timedelta,
    tags: dict[str, str | None],
) -> None:
    """Hand one stat to Airflow."""
    try:
        from airflow.sdk.observability import stats  # noqa: PLC0415  a DAG file is parsed often

        told = {key: _FOREIGN.sub("_", text) for key, text in tags.items() if text}
        getattr(stats, kind)(f"hpc.{name}", *value, tags=told)
    except Exception as error:  # noqa: BLE001  whatever it is, no task fails by its stats
        _complain(f"{type(error).__name__}: {redact(str(error))}")


@functools.lru_cache(maxsize=8)
def _complain(words: str) -> None:
    """Tell once what is wrong with the stats: every request has some."""
    log.warning("Airflow's stats do not work. %s", words)
