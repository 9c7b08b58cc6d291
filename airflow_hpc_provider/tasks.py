"""What operators and sensors share: the connection, the retry policy, and the wait."""

from __future__ import annotations

import contextlib
import threading
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from airflow.sdk import BaseOperator, conf
from airflow.sdk.exceptions import AirflowException

from .client.calls import Call, JSONObject
from .client.errors import HpcError, TokenError, UnauthorizedError
from .client.retry import RetryPolicy
from .hooks.hpc import HpcHook
from .retries import HpcRetryPolicy
from .triggers.base import HpcTrigger
from .watch import Outcome, Verdict, Watch, follow

if TYPE_CHECKING:
    from .client.session import Client
    from .logs import JobLogs, LiveLogs

__all__ = ["HpcTask", "default_deferrable"]

T = TypeVar("T")

# Beyond the deadline that a trigger keeps itself, in case it cannot.
_SAFETY_NET = timedelta(minutes=10)


def default_deferrable() -> bool:
    """Airflow's ``[operators] default_deferrable``."""
    return bool(conf.getboolean("operators", "default_deferrable", fallback=False))


class HpcTask(BaseOperator):
    """Base of all operators and sensors of this provider.

    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system; None for the connection's
    """

    def __init__(
        self, *, hpc_conn_id: str = HpcHook.default_conn_name, system: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.hpc_conn_id = hpc_conn_id
        self.system = system
        if self.retry_policy is None:
            self.retry_policy = HpcRetryPolicy()

    @property
    def hook(self) -> HpcHook:
        """A hook on the task's connection; made anew, since a task holds no secrets."""
        return HpcHook(self.hpc_conn_id)

    def defer_to(self, trigger: HpcTrigger, *, until: float | None) -> NoReturn:
        """Free the worker until the trigger has a verdict.

        :param until: epoch seconds at which the trigger gives up, or None
        """
        left = timedelta(seconds=max(0.0, until - time.time())) + _SAFETY_NET if until is not None else None
        self.defer(trigger=trigger, method_name="execute_complete", timeout=left)
        raise AssertionError("defer() returned")  # pragma: no cover

    def follow(
        self,
        client: Client,
        watch: Watch[Any],
        stop: threading.Event | None = None,
        *,
        logs: JobLogs | None = None,
    ) -> Verdict:
        """Wait in the worker.

        :param stop: ends the wait early when set; the caller looks at it afterwards
        :param logs: what to log of the job's output meanwhile; afterwards it knows how far that went
        """
        from . import metrics  # noqa: PLC0415  a DAG file is parsed often

        said: list[str] = []

        def tell() -> None:
            metrics.polled(watch.system, watch.kind)
            news = watch.news
            if said[-1:] != [news]:
                said[:] = [news]
                self.log.info("%s: %s.", watch.describe(), news)
            if reading is not None:
                reading.saw(watch)

        class Stopped(Exception):  # noqa: N818  never leaves this method
            pass

        def sleep(seconds: float) -> None:
            if stop is None:
                time.sleep(seconds)
            elif stop.wait(seconds):
                raise Stopped

        reading: LiveLogs | None = None
        try:
            with contextlib.ExitStack() as meanwhile:
                if logs is not None:
                    reading = meanwhile.enter_context(logs.beside(client, self.say))
                looker = meanwhile.enter_context(_Looker(self))
                verdict = follow(looker, watch, sleep=sleep, after_look=tell)
        except Stopped:
            return Verdict(Outcome.STOPPED, f"{watch.describe()}: the worker was told to end.")
        metrics.polled(watch.system, watch.kind)  # the last look is not told of
        metrics.detected(watch, verdict, time.time())
        return verdict

    def say(self, line: str) -> None:
        """Log one line of a job's output."""
        self.log.info("%s", line)


class _Looker:
    """A client for the looks of a wait, of the connection as it is now.

    It makes no long pauses: the watch makes them, in a sleep that ends when the worker is told to. When its
    token is refused another one takes its place, since the secret may have changed.
    """

    def __init__(self, task: HpcTask) -> None:
        self._task = task
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def _open(self) -> None:
        policy = RetryPolicy(attempts=2, longest_retry_after=0.0)
        opened = contextlib.ExitStack()
        self._client = opened.enter_context(self._task.hook.client(policy=policy))
        self._opened.close()
        self._opened = opened

    def send(self, call: Call[T]) -> T:
        try:
            return self._client.send(call)
        except (TokenError, UnauthorizedError):
            with contextlib.suppress(HpcError, AirflowException):
                self._open()
            raise


def deadline(context: Any, limit: timedelta | None) -> float | None:
    """Epoch seconds at which ``execution_timeout`` ends, which Airflow does not enforce while deferred.

    :param context: the task's context
    :param limit: its time limit, or None
    """
    if limit is None:
        return None
    start: datetime | None = getattr(context.get("ti"), "start_date", None)
    return (start.timestamp() if start else time.time()) + limit.total_seconds()


def carried(event: Any) -> tuple[Verdict, JSONObject]:
    """The verdict in a trigger's event, and what the operator gave the trigger to carry."""
    plain = dict(event)
    carry = plain.pop("carry", None) or {}
    return Verdict.from_event(plain), carry
