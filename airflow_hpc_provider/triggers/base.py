"""``HpcTrigger``: a watch on an event loop, ending in one event."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_hpc_provider.client.calls import Call, JSONObject
from airflow_hpc_provider.client.errors import HpcError, TokenError, UnauthorizedError
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.watch import Outcome, Verdict, Watch, follow_async

if TYPE_CHECKING:
    from airflow_hpc_provider.client.session import AsyncClient

__all__ = ["HpcTrigger"]

T = TypeVar("T")


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
        yield TriggerEvent(verdict.to_event() | {"carry": self.carried()})  # type: ignore[no-untyped-call]

    def carried(self) -> JSONObject:
        """What comes back in the event beside the verdict."""
        return self.carry

    async def wait(self) -> Verdict:
        """Look until there is a verdict."""
        async with _Looker(self.hpc_conn_id) as looker:
            verdict = await follow_async(looker, self.watch, after_look=self._looked)
        self._count()  # the last look is not told of
        return verdict

    def _looked(self) -> None:
        self._count()
        self.tell()

    def _count(self) -> None:
        from airflow_hpc_provider import metrics

        metrics.polled(self.watch.system, self.watch.kind)

    def tell(self) -> None:
        news = self.watch.news
        if news != getattr(self, "_said", None):
            self._said = news
            self.log.info("%s: %s.", self.watch.describe(), news)


class _Looker:
    """A client of the connection; when its token is refused another one takes its place.

    The secret may have changed since. The watch has patience of its own, so a look is not repeated for long.
    """

    def __init__(self, hpc_conn_id: str) -> None:
        self._hpc_conn_id = hpc_conn_id
        self._opened = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._opened.aclose()

    async def _open(self) -> None:
        client = await HpcHook(self._hpc_conn_id).async_client(policy=RetryPolicy(attempts=2))
        opened = contextlib.AsyncExitStack()
        self._client: AsyncClient = await opened.enter_async_context(client)
        await self._opened.aclose()
        self._opened = opened

    async def send(self, call: Call[T]) -> T:
        try:
            return await self._client.send(call)
        except (TokenError, UnauthorizedError):
            with contextlib.suppress(HpcError, AirflowException):
                await self._open()
            raise
