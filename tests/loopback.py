"""A real HTTP server on loopback whose answers are a function: what the client's tests speak to."""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import parse_qs, urlsplit

import httpx

from airflow_hpc_provider.client.calls import Call
from airflow_hpc_provider.client.session import AsyncClient, Client

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One request as it came over the wire."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    connection: int

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return {key: values[0] for key, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def form(self) -> dict[str, str]:
        return {key: values[0] for key, values in parse_qs(self.body.decode()).items()}

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def token(self) -> str | None:
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        return token if kind == "Bearer" else None


@dataclass(frozen=True)
class Reply:
    """An answer.

    :param body: bytes or text as they are, anything else as JSON
    :param hang_up: close the connection afterwards without having said so
    """

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    hang_up: bool = False


@dataclass(frozen=True)
class Lost:
    """Close the connection without an answer, or in the middle of one."""

    halfway: bool = False


@dataclass(frozen=True)
class Silence:
    """Give no answer until the server goes down."""


Answer = Callable[[Request], Reply | Lost | Silence]


def gateway_error(status: int, message: str, **more: Any) -> Reply:
    """An error as FirecREST words it."""
    body = {"errorType": "error", "message": message, "data": None, "user": "fireuser"}
    return Reply(status, body | more)


def in_turn(*answers: Reply | Lost | Silence) -> Answer:
    """Give these answers one after another, and the last one for ever."""
    left = list(answers)
    lock = threading.Lock()

    def answer(_: Request) -> Reply | Lost | Silence:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return answer


class Server:
    """What a running server has seen."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    seen: Server

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # a client that gave up
            self.close_connection = True

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(self.command, self.path, headers, body, connection=self.client_address[1])
        self.seen.requests.append(request)
        reply = self.seen.answer(request)
        if isinstance(reply, Silence):
            self.seen.closing.wait(10)
            reply = Lost()
        if isinstance(reply, Lost):
            if reply.halfway:
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"{")
            self.close_connection = True
            return
        content, kind = self._encoded(reply.body)
        self.send_response(reply.status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content))} | dict(reply.headers)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = self.close_connection or reply.hang_up

    do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    @staticmethod
    def _encoded(body: Any) -> tuple[bytes, str]:
        if isinstance(body, bytes):
            return body, "application/octet-stream"
        if isinstance(body, str):
            return body.encode(), "text/html; charset=utf-8"
        return json.dumps(body).encode(), "application/json"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing on stderr."""


class _HTTPServer(ThreadingHTTPServer):
    request_queue_size = 128


@contextmanager
def serve(answer: Answer) -> Iterator[Server]:
    """Serve on a free loopback port for as long as the block runs."""
    server = Server(answer)
    handler = type("Handler", (_Handler,), {"seen": server})
    with _HTTPServer(("127.0.0.1", 0), handler) as listening:
        server.port = listening.server_address[1]
        thread = threading.Thread(target=listening.serve_forever, args=(0.005,))
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            listening.shutdown()
            thread.join()


def closed_port() -> int:
    """A loopback port on which nothing listens."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Blocking:
    """A client in the world of workers."""

    def __init__(self, url: str, auth: httpx.Auth, **options: Any) -> None:
        self._client = Client(url, auth, **options)

    def __enter__(self) -> Self:
        self._client.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.__exit__(kind, error, trace)

    def send(self, call: Call[T]) -> T:
        return self._client.send(call)


class OnLoop:
    """A client in the world of triggers, driven from outside its event loop."""

    def __init__(self, url: str, auth: httpx.Auth, **options: Any) -> None:
        self._client = AsyncClient(url, auth, **options)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._runner.__enter__()
        self._runner.run(self._client.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._client.__aexit__(kind, error, trace))
        self._runner.__exit__(kind, error, trace)

    def send(self, call: Call[T]) -> T:
        return self._runner.run(self._client.send(call))


WORLDS = (Blocking, OnLoop)
