"""uvicorn in a thread: the port is known before it starts, and stopping leaves nothing open."""

import asyncio
import ipaddress
import logging
import socket
import struct
import threading
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Server", "is_loopback"]

_START_SECONDS = 10.0
_RESET = struct.pack("ii", 1, 0)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Protocol(H11Protocol):
    """Lets an application cut its connection: ``scope["state"]["cut"]()``; logs no request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Presigned URLs are credentials. The logger, which other servers use too, may be anyhow.
        self.access_log = False
        self.app_state = {**self.app_state, "cut": self._cut}

    def _cut(self, *, reset: bool = False) -> None:
        if reset:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()


class _Uvicorn(uvicorn.Server):
    """A server that ends at once, as a test wants it, and closes every transport."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self.servers:
            await server.wait_closed()
        for sock in sockets or []:
            sock.close()


class Server:
    """One ASGI application on one socket in one thread with its own event loop."""

    def __init__(
        self, app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, name: str = "gateway"
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio switches Nagle's 40 ms off only where the protocol is said to be TCP.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
        except OSError:
            self._socket.close()
            raise
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        self._uvicorn = _Uvicorn(_config(app))
        self._thread = threading.Thread(target=self._serve, name=f"devgateway-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()
        waited = threading.Event()
        for _ in range(int(_START_SECONDS / 0.005)):
            if self._uvicorn.started:
                return
            waited.wait(0.005)
        raise TimeoutError(f"the embedded gateway did not start on port {self.port}")

    def ask_to_stop(self) -> None:
        self._uvicorn.should_exit = True

    def stop(self) -> None:
        self.ask_to_stop()
        if self._thread.ident is None:
            self._socket.close()
        else:
            self._thread.join(_START_SECONDS)

    def _serve(self) -> None:
        self._uvicorn.run(sockets=[self._socket])


def _config(app: ASGIApp) -> uvicorn.Config:
    # Cut connections are wanted here; uvicorn's errors about them are not.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    options: dict[str, Any] = {
        "http": _Protocol,
        "ws": "none",
        "loop": "asyncio",
        "lifespan": "off",
        "log_config": None,
        "server_header": False,
        "timeout_keep_alive": 60,
        "backlog": 2048,
    }
    return uvicorn.Config(app, **options)
