"""The outermost layer: request log, faults, request ids, lower-cased paths."""

import asyncio
import json
import time
import uuid
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .faults import Entry, Fault, Faults, RequestLog
from .operations import VERSION

__all__ = ["FirecrestHeaders", "Front"]

_CUT_GRACE = 0.001


class Front:
    """Logs every request and lets a fault spoil it."""

    def __init__(
        self, app: ASGIApp, *, faults: Faults, log: RequestLog, operation_of: Callable[[str, str], str]
    ) -> None:
        self._app = app
        self._faults = faults
        self._log = log
        self._operation_of = operation_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        entry = self._open(scope)
        started = time.monotonic()

        async def logged_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                entry.seconds = time.monotonic() - started
            await send(message)

        fault = self._faults.take(entry)
        if fault is None:
            await self._app(scope, receive, logged_send)
            return
        entry.fault = fault.kind
        await _Spoiled(self._app, fault, scope, receive, logged_send).run()

    def _open(self, scope: Scope) -> Entry:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method, path = scope["method"], scope["path"]
        query = scope["query_string"].decode("latin-1")
        return self._log.open(method, path, query, self._operation_of(method, path.lower()), headers)


class _Spoiled:
    """One request under one fault."""

    def __init__(self, app: ASGIApp, fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
        self._app = app
        self._fault = fault
        self._scope = scope
        self._receive = receive
        self._send = send
        self._start: Message = {}
        self._body = b""

    async def run(self) -> None:
        fault = self._fault
        if fault.when == "before":
            await self._before()
            return
        await self._app(self._scope, self._receive, self._keep)
        if fault.kind == "delay after":
            await asyncio.sleep(fault.seconds)
        if fault.cut:
            await self._cut()
        elif fault.status is not None:
            await self._answer(fault.status)
        else:
            await self._replay()

    async def _before(self) -> None:
        fault = self._fault
        if fault.seconds:
            await asyncio.sleep(fault.seconds)
        if fault.cut:
            await self._cut()
        elif fault.status is not None:
            await self._drain()
            await self._answer(fault.status)
        else:
            await self._app(self._scope, self._receive, self._send)

    async def _keep(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")

    async def _drain(self) -> None:
        # An answer before the request was read in full would look like a cut to a client still sending.
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return

    async def _cut(self) -> None:
        self._scope["state"]["cut"](reset=self._fault.reset)
        # uvicorn learns of the closed connection on the next turn of the loop, and then stays quiet.
        await asyncio.sleep(_CUT_GRACE)

    async def _answer(self, status: int) -> None:
        body = self._fault.body
        kind = "text/html" if isinstance(body, str) else "application/json"
        raw = body.encode() if isinstance(body, str) else json.dumps(body, separators=(",", ":")).encode()
        headers = {"content-type": kind, "content-length": str(len(raw)), **self._fault.headers}
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})
        await self._send({"type": "http.response.body", "body": raw})

    async def _replay(self) -> None:
        """The true answer again: late, in small pieces, or not to its end."""
        await self._send(self._start)
        body = self._body
        if self._fault.keep is not None:
            await self._send(
                {
                    "type": "http.response.body",
                    "body": body[: int(len(body) * self._fault.keep)],
                    "more_body": True,
                }
            )
            # Returning with more body promised makes uvicorn flush and close the connection.
            return
        if self._fault.chunk is not None:
            while len(body) > self._fault.chunk:
                piece, body = body[: self._fault.chunk], body[self._fault.chunk :]
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
                await asyncio.sleep(self._fault.seconds)
        await self._send({"type": "http.response.body", "body": body})


class FirecrestHeaders:
    """The server's own habits: lower-cased paths, ids that must be UUIDs and come back, its version."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope["headers"])
        ids = {name: given[name] for name in (b"x-request-id", b"x-correlation-id") if name in given}
        if not all(_is_uuid(value) for value in ids.values()):
            await send({"type": "http.response.start", "status": 400, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        extra = [(b"f7t-appversion", VERSION.encode()), *ids.items()]

        async def stamped_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self._app({**scope, "path": scope["path"].lower()}, receive, stamped_send)


def _is_uuid(value: bytes) -> bool:
    try:
        uuid.UUID(value.decode("latin-1"))
    except ValueError:
        return False
    return True
