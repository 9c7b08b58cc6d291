"""``HpcTrigger``: a watch on an event loop, ending in one event."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any, ClassVar

from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_hpc_provider.client.calls import JSONObject
from airflow_hpc_provider.client.errors import HpcError
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.watch import Outcome, Verdict, Watch, follow_async

__all__ = ["HpcTrigger"]


class HpcTrigger(BaseTrigger):
    """Watches one thing and fires once.

    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param carry: plain JSON that comes back in the event beside the verdict, for the operator that deferred
    :param watch: arguments of the watch
    """

    watch_type: ClassVar[type[Watch[Any]]]

    def __init__(self, *, hpc_conn_id: str, carry: JSONObject | None = None, **watch: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.hpc_conn_id = hpc_conn_id
        self.carry = carry or {}
        self.watch = self.watch_type(**watch)

    def serialize(self) -> tuple[str, JSONObject]:
        """Class path and plain JSON arguments."""
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {"hpc_conn_id": self.hpc_conn_id, "carry": self.carry, **asdict(self.watch)}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is a verdict, and send it."""
        try:
            verdict = await self.wait()
        except HpcError as error:
            verdict = Verdict(Outcome.FAILED, str(error), transient=error.transient)
        except AirflowException as error:  # the connection cannot be had
            verdict = Verdict(Outcome.FAILED, str(error))
        yield TriggerEvent(verdict.to_event() | {"carry": self.carry})  # type: ignore[no-untyped-call]

    async def wait(self) -> Verdict:
        """Look until there is a verdict."""
        # The watch has patience of its own, so a look is not repeated for long.
        async with await HpcHook(self.hpc_conn_id).async_client(policy=RetryPolicy(attempts=2)) as client:
            return await follow_async(client, self.watch, after_look=self.tell)

    def tell(self) -> None:
        news = getattr(self.watch, "news", "")
        if news != getattr(self, "_said", None):
            self._said = news
            self.log.info("%s: %s.", self.watch.describe(), news)
