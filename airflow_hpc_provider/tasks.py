"""What operators and sensors share: the connection, the retry policy, and the wait."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator, conf

from .client.calls import JSONObject
from .hooks.hpc import HpcHook
from .retries import HpcRetryPolicy
from .triggers.base import HpcTrigger
from .watch import Outcome, Verdict, Watch, follow

if TYPE_CHECKING:
    from .client.session import Client

__all__ = ["HpcTask", "default_deferrable"]

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

    def follow(self, client: Client, watch: Watch[Any], stop: threading.Event | None = None) -> Verdict:
        """Wait in the worker.

        :param stop: ends the wait early when set; the caller looks at it afterwards
        """
        said: list[str] = []

        def tell() -> None:
            news = getattr(watch, "news", "")
            if said[-1:] != [news]:
                said[:] = [news]
                self.log.info("%s: %s.", watch.describe(), news)

        class Stopped(Exception):  # noqa: N818  never leaves this method
            pass

        def sleep(seconds: float) -> None:
            if stop is None:
                time.sleep(seconds)
            elif stop.wait(seconds):
                raise Stopped

        try:
            return follow(client, watch, sleep=sleep, after_look=tell)
        except Stopped:
            return Verdict(Outcome.STOPPED, f"{watch.describe()}: the worker was told to end.")


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
