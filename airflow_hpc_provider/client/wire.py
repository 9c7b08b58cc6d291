"""An httpx transport for large bodies: their bytes are copied once, between the kernel and one buffer.

httpx's own hands them out in pieces of 64 KiB, through several copies that all threads make under one lock.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import select
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias, cast

import httpx

from .errors import TransferError

__all__ = ["Slice", "Wire"]

_Origin: TypeAlias = tuple[str, str, int]
_Timeouts: TypeAlias = Mapping[str, float | None]

# Of an answer whose taker has lent no buffer.
_PIECE = 256 * 1024
# What is encrypted at a time.
_RECORDS = 64 * 1024
# Seconds to wait for the answer of who did not want the body.
_LAST_WORD = 1.0
# Characters of what a server says instead of an answer.
_TOLD = 200
_CUT = "peer closed connection without sending complete message body (received {} bytes, expected {})"


@dataclass(frozen=True, slots=True)
class Slice:
    """Some bytes of an open file, as a piece of a request's body: the kernel sends them, if it can.

    :param name: what errors call the file
    :param descriptor: of the file
    :param offset: first byte
    :param length: bytes
    """

    name: str
    descriptor: int
    offset: int
    length: int

    def __len__(self) -> int:
        """Bytes."""
        return self.length

    def __bytes__(self) -> bytes:
        """Read all of them."""
        pieces, at = [], 0
        while at < self.length:
            pieces.append(self.read(at, self.length - at))
            at += len(pieces[-1])
        return b"".join(pieces)

    def read(self, start: int, size: int) -> bytes:
        """Read some of them.

        :param start: the first, counted from ``offset``
        :param size: bytes at the most
        :raises TransferError: the file has become shorter
        """
        piece = os.pread(self.descriptor, min(size, self.length - start), self.offset + start)
        if not piece:
            raise self.shorter()
        return piece

    def shorter(self) -> TransferError:
        """What it means that the file ends before the slice does."""
        return TransferError(f"{self.name} became shorter while it was uploaded.", transient=False)


class _StaleError(Exception):
    """A kept connection had ended before it was used again: nothing of the request has been done."""


class Wire(httpx.BaseTransport):
    """HTTP/1.1 over kept connections, without proxies; thread-safe.

    Requests need their length beforehand; their bodies may have :class:`Slice` and ``memoryview`` as pieces.
    A request may lend a buffer, as its extension ``buffer``: each piece of a good answer's body is a view of
    it then, which holds until the next is asked for. When an answer comes before the whole body has been
    sent, as refusals do, the rest is not sent.

    :param trust: whose certificates are good
    """

    def __init__(self, trust: ssl.SSLContext) -> None:
        self._trust = trust
        self._lock = threading.Lock()
        self._idle: dict[_Origin, list[_Line]] = {}
        self._sockets: set[socket.socket] = set()
        self._closed = self._aborted = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read the head of its answer.

        :raises httpx.TransportError: there is no answer
        """
        if "content-length" not in request.headers and "transfer-encoding" in request.headers:
            raise httpx.LocalProtocolError("The length of the body must be known.")
        timeouts: _Timeouts = request.extensions.get("timeout", {})
        url = request.url
        origin = (url.scheme, url.raw_host.decode(), url.port or (443 if url.scheme == "https" else 80))
        while True:
            line = self._kept(origin) or self._connect(origin, timeouts.get("connect"))
            try:
                return line.ask(request, timeouts)
            except _StaleError:
                line.close()
            except BaseException:
                line.close()
                raise

    def close(self) -> None:
        """Close the connections: those in use, when they are not any more."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
        for line in (line for lines in idle.values() for line in lines):
            line.close()

    def abort(self) -> None:
        """End all that is under way at once, for good: threads blocked in it get an error."""
        with self._lock:
            self._aborted = True
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    # Not by SSLSocket's own, which takes the cipher away from who is using it.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def keep(self, line: _Line) -> None:
        """Have a connection ready for the next request."""
        with self._lock:
            if not self._closed:
                self._idle.setdefault(line.origin, []).append(line)
                return
        line.close()

    def forget(self, sock: socket.socket) -> None:
        """A socket is closed now: its number may be another's soon."""
        with self._lock:
            self._sockets.discard(sock)
            sock.close()

    def _kept(self, origin: _Origin) -> _Line | None:
        """A connection that is open still, as far as can be seen."""
        while True:
            with self._lock:
                lines = self._idle.get(origin)
                line = lines.pop() if lines else None
            if line is None or not line.has_news():
                return line
            line.close()

    def _connect(self, origin: _Origin, timeout: float | None) -> _Line:
        scheme, host, port = origin
        try:
            sock = self._dial(host, port, timeout)
            if scheme == "https":
                sock = self._encrypted(sock, host)
        except OSError as error:
            raise _meant(error, httpx.ConnectTimeout, httpx.ConnectError) from error
        return _Line(self, origin, sock)

    def _dial(self, host: str, port: int, timeout: float | None) -> socket.socket:
        failure = OSError("it has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            self._enlist(sock)
            try:
                sock.settimeout(timeout)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                self.forget(sock)
                failure = error
            else:
                return sock
        raise failure

    def _encrypted(self, sock: socket.socket, host: str) -> ssl.SSLSocket:
        try:
            secure = self._trust.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        finally:
            # The new one has its descriptor.
            self.forget(sock)
        self._enlist(secure)
        try:
            secure.do_handshake()
        except BaseException:
            self.forget(secure)
            raise
        return secure

    def _enlist(self, sock: socket.socket) -> None:
        with self._lock:
            aborted = self._aborted
            if not aborted:
                self._sockets.add(sock)
        if aborted:
            sock.close()
            raise OSError("given up")


class _Line:
    """One connection: requests one after another."""

    def __init__(self, wire: Wire, origin: _Origin, sock: socket.socket) -> None:
        self.origin = origin
        self._wire = wire
        self._sock = sock
        # What comes over TLS unasked need be no answer.
        self._plain = not isinstance(sock, ssl.SSLSocket)
        self._http = http.client.HTTPConnection(origin[1], origin[2])
        self._http.auto_open = 0
        self._http.sock = sock
        self._used = False
        self._begun = False
        self._ahead = b""

    def keep(self) -> None:
        """Be ready for another request."""
        self._wire.keep(self)

    def close(self) -> None:
        self._http.close()
        self._wire.forget(self._sock)

    def has_news(self) -> bool:
        """Something has come, or the connection has ended."""
        return bool(_events(self._sock, select.POLLIN, 0))

    def ask(self, request: httpx.Request, timeouts: _Timeouts) -> httpx.Response:
        """Send a request and read the head of its answer.

        :raises _StaleError: it has to be sent over another connection
        """
        used, self._used, self._begun = self._used, True, False
        failure, whole = None, False
        try:
            whole = self._send(request, timeouts.get("write"))
        except OSError as error:
            # Who refuses a body may answer, and end the connection without having read it.
            failure = error
        try:
            self._sock.settimeout(timeouts.get("read") if failure is None else _LAST_WORD)
            if self._ahead:
                # What of a socket an answer is read by.
                file = io.BufferedReader(_Ahead(self._ahead, self._sock))
                self._http.sock = SimpleNamespace(makefile=lambda _mode: file, close=lambda: None)
            answer = self._http.getresponse()
        except (OSError, http.client.HTTPException) as error:
            if used and not self._begun and isinstance(failure or error, ConnectionError):
                raise _StaleError from error
            if failure is not None:
                raise _meant(failure, httpx.WriteTimeout, httpx.WriteError) from failure
            raise _meant(error, httpx.ReadTimeout, httpx.ReadError) from error
        buffer = request.extensions.get("buffer") if answer.status // 100 == 2 else None
        return httpx.Response(
            answer.status,
            headers=[
                (name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.getheaders()
            ],
            stream=_Body(self, answer, buffer, whole=whole),
            extensions={
                "http_version": b"HTTP/1.0" if answer.version == 10 else b"HTTP/1.1",
                "reason_phrase": answer.reason.encode("latin-1"),
            },
        )

    def _send(self, request: httpx.Request, timeout: float | None) -> bool:
        """Send a request; whether all of it, since an answer may come before."""
        self._sock.settimeout(timeout)
        target = request.url.raw_path.decode("ascii")
        self._http.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.raw:
            self._http.putheader(name, value)
        self._http.endheaders()
        # From here on it is poll(2) that waits, for either way.
        self._sock.settimeout(0)
        if int(request.headers.get("content-length", 0)):
            if self.has_news() and self._is_answered():
                return False
            self._begun = True
        pieces = cast("Iterable[bytes | memoryview | Slice]", request.stream)
        return all(self._put(piece, timeout) for piece in pieces)

    def _put(self, piece: bytes | memoryview | Slice, timeout: float | None) -> bool:
        """Send a piece of the body; whether all of it."""
        at, end = 0, len(piece)
        while at < end:
            events = _events(self._sock, select.POLLIN | select.POLLOUT, timeout)
            if not events:
                raise TimeoutError("timed out")
            if events != select.POLLOUT and self._is_answered():
                return False
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                at += self._put_some(piece, at)
        return True

    def _put_some(self, piece: bytes | memoryview | Slice, at: int) -> int:
        if not isinstance(piece, Slice):
            # Encrypting takes a while, in which nobody looks for an answer.
            return self._sock.send(memoryview(piece)[at : None if self._plain else at + _RECORDS])
        if not self._plain:
            return self._sock.send(piece.read(at, _RECORDS))
        to = self._sock.fileno()
        count = os.sendfile(to, piece.descriptor, piece.offset + at, piece.length - at)
        if not count:
            raise piece.shorter()
        return count

    def _is_answered(self) -> bool:
        """Of news: whether they are an answer, or the end. Over TLS other things come, too."""
        if self._plain:
            return True
        try:
            self._ahead = self._sock.recv(_PIECE)
        except ssl.SSLWantReadError:
            return False
        return True


class _Ahead(io.RawIOBase):
    """A socket, some of whose bytes have been read already."""

    def __init__(self, ahead: bytes, sock: socket.socket) -> None:
        self._ahead = ahead
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._ahead:
            return self._sock.recv_into(buffer)
        count = min(len(buffer), len(self._ahead))
        buffer[:count], self._ahead = self._ahead[:count], self._ahead[count:]
        return count


class _Body(httpx.SyncByteStream):
    """What follows the head of an answer.

    :param buffer: lent by who asked
    :param whole: all of the request was sent
    """

    def __init__(
        self, line: _Line, answer: http.client.HTTPResponse, buffer: bytearray | None, *, whole: bool
    ) -> None:
        self._line = line
        self._answer = answer
        self._buffer = buffer
        self._whole = whole
        self._reusable = whole and not answer.will_close
        self._size = None if answer.chunked else answer.length
        self._got = 0
        self._ended = False
        self._closed = False

    def __iter__(self) -> Iterator[Any]:
        """The bytes; of an answer whose length is known, in pieces as large as the buffer.

        :raises httpx.TransportError: it broke off
        """
        try:
            if self._size is None:
                yield from self._unmeasured()
            else:
                yield from self._measured(self._size)
        except httpx.TransportError:
            # Who ends a connection with a body on its way takes some of his own words back.
            if self._whole:
                raise
        else:
            self._ended = True

    def close(self) -> None:
        """Have the connection ready for the next request, or end it."""
        if not self._closed:
            self._closed = True
            self._answer.close()
            if self._reusable and (self._ended or self._got == self._size):
                self._line.keep()
            else:
                self._line.close()

    def _unmeasured(self) -> Iterator[bytes]:
        try:
            while piece := self._answer.read1(_PIECE):
                self._got += len(piece)
                yield piece
        except (OSError, http.client.HTTPException) as error:
            raise _meant(error, httpx.ReadTimeout, httpx.ReadError) from error
        if not (self._answer.chunked or self._got):
            # It looks the same when the connection ends within the head.
            raise httpx.RemoteProtocolError(_CUT.format(0, "some"))

    def _measured(self, size: int) -> Iterator[bytes | memoryview]:
        lent = self._buffer is not None
        with memoryview(self._buffer or bytearray(min(size, _PIECE))) as view:
            while self._got < size:
                count, failure = self._fill(view[: size - self._got])
                self._got += count
                if count:
                    yield view[:count] if lent else bytes(view[:count])
                if failure is not None:
                    raise failure
                if count == 0:
                    raise httpx.RemoteProtocolError(_CUT.format(self._got, size))

    def _fill(self, view: memoryview) -> tuple[int, httpx.TransportError | None]:
        """Fill the view, less at the end; what came before a failure is not lost by it."""
        count = 0
        try:
            while count < len(view) and (more := self._answer.fp.readinto1(view[count:])):
                count += more
        except OSError as error:
            failure = _meant(error, httpx.ReadTimeout, httpx.ReadError)
            failure.__cause__ = error
            return count, failure
        return count, None


def _events(sock: socket.socket, wanted: int, timeout: float | None) -> int:
    """What poll(2) says of a socket, after so many seconds at the most."""
    poll = select.poll()
    poll.register(sock, wanted)
    found = poll.poll(None if timeout is None else timeout * 1000)
    return found[0][1] if found else 0


def _meant(
    error: OSError | http.client.HTTPException,
    late: type[httpx.TransportError],
    broken: type[httpx.TransportError],
) -> httpx.TransportError:
    """What httpx would call an error."""
    text = str(error)[:_TOLD] or type(error).__name__
    if isinstance(error, http.client.HTTPException):
        return httpx.RemoteProtocolError(text)
    return (late if isinstance(error, TimeoutError) else broken)(text)
