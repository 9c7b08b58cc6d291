"""A far site's link: each connection has a rate and a round trip of its own.

Runs in a process of its own, on loopback, on the standard library alone. Prints its port, passes on what
comes there, and ends when its standard input does. Bytes leave half a round trip after they came at the
earliest, and no faster than the rate; a new connection costs one round trip more, as its handshake does.
Connections do not share the rate: what limits a far one is its own window, long before any line is full.
"""

import argparse
import asyncio
import socket
import sys
import threading
from typing import Any

# So many seconds' worth of bytes is read ahead: a busy machine wakes the relay late.
_AHEAD = 0.02


class End(asyncio.Protocol):
    """One side of a connection: what it receives goes to its peer, in time."""

    def __init__(self, rate: float, delay: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._rate, self._delay = rate, delay
        self._free = 0.0
        self._holds: set[str] = set()
        self.peer: End | None = None
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.hold("peer")

    def meet(self, peer: "End") -> None:
        self.peer = peer
        self.release("peer")

    def data_received(self, data: bytes) -> None:
        now = self._loop.time()
        self._free = max(self._free, now) + len(data) / self._rate
        self._loop.call_at(self._free + self._delay, self._pass, data)
        if self._free - now > _AHEAD:
            self.hold("rate")
            self._loop.call_at(self._free - _AHEAD / 2, self.release, "rate")

    def eof_received(self) -> bool:
        self._loop.call_at(max(self._free, self._loop.time()) + self._delay, self._end)
        return True

    def connection_lost(self, _: Exception | None) -> None:
        # What is on its way still arrives.
        self._loop.call_at(max(self._free, self._loop.time()) + self._delay, self._close)

    def pause_writing(self) -> None:
        if self.peer:
            self.peer.hold("writing")

    def resume_writing(self) -> None:
        if self.peer:
            self.peer.release("writing")

    def hold(self, why: str) -> None:
        self._holds.add(why)
        self._transport.pause_reading()

    def release(self, why: str) -> None:
        self._holds.discard(why)
        if not self._holds and not self._transport.is_closing():
            self._transport.resume_reading()

    def _pass(self, data: bytes) -> None:
        if self.peer and not self.peer._transport.is_closing():
            self.peer._transport.write(data)

    def _end(self) -> None:
        if self.peer and not self.peer._transport.is_closing():
            self.peer._transport.write_eof()

    def _close(self) -> None:
        if self.peer:
            self.peer._transport.close()


class Link:
    """Where clients connect to.

    :param port: of the server behind it
    :param rate: bytes per second of a connection, each way
    :param delay: seconds from one end to the other
    """

    def __init__(self, port: int, rate: float, delay: float) -> None:
        self._port, self._rate, self._delay = port, rate, delay
        self._tasks: set[asyncio.Task[None]] = set()

    def near(self) -> End:
        end = End(self._rate, self._delay)
        task = asyncio.get_running_loop().create_task(self._connect(end))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return end

    async def _connect(self, near: End) -> None:
        await asyncio.sleep(2 * self._delay)
        loop = asyncio.get_running_loop()
        _, far = await loop.create_connection(lambda: End(self._rate, self._delay), "127.0.0.1", self._port)
        near.meet(far)
        far.meet(near)


async def serve(port: int, rate: float, delay: float) -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    link = Link(port, rate, delay)
    server = await loop.create_server(link.near, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()

    def end_with_parent() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(over.set)

    threading.Thread(target=end_with_parent, daemon=True).start()
    await over.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int, help="of the server behind the link")
    parser.add_argument("--rate", type=float, required=True, help="bytes per second of a connection")
    parser.add_argument("--round-trip", type=float, required=True, help="seconds")
    chosen = parser.parse_args()
    asyncio.run(serve(chosen.port, chosen.rate, chosen.round_trip / 2))


if __name__ == "__main__":
    main()
