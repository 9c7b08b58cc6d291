"""The conversation of a streamed transfer: one file over one websocket, to or from a job on the system.

The job runs the server of FirecREST's streamer on the first free port of a range, for one client that knows
its secret. Secret and bytes travel unencrypted, and whoever listens on an earlier port of the same machine is
told the secret, too. So what is said here proves nothing: only the gateway's word on the file does.

The messages: ``init`` with the size, the bytes in pieces of 5 MiB, ``eof`` with their sha256. The receiver of
streamer 0.0.21 knows an ``eof`` only in a text message without blanks, and takes any other for bytes of the
file; its sender sends it in a binary one with blanks. What goes from here is in the form that is understood,
what comes may have any.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .coordinates import Coordinates
from .errors import InvalidInputError, TransferError
from .lanes import Lanes
from .moving import Pace
from .places import Sink, Source
from .progress import Progress

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

__all__ = [
    "CHUNK",
    "Link",
    "check_streamer",
    "eof_message",
    "init_message",
    "reach",
    "read_eof",
    "read_init",
    "receive",
    "send",
]

log = logging.getLogger(__name__)

# What the peer sends at once; it counts every message as so many bytes, however short.
CHUNK = 5 * 1024 * 1024
# As large as the peer lets a message become.
_LARGEST = CHUNK * 5 // 4
# Messages that wait here to be written: each may have 5 MiB.
_QUEUED = 2
_OPEN_SECONDS = 5.0
_CLOSE_SECONDS = 5.0
_DRAIN_SECONDS = 0.2
_STALL_SECONDS = 300.0
_TICK = 0.5
_DIGEST = re.compile(r"[0-9a-f]{64}")
# The peer ends a stream that went well with "normal closure", or with "going away" as its server stops.
_WELL = (1000, 1001)
_TOO_BIG = 1009
# What the peer names after exceptions that come again with every try.
_FINAL = frozenset(
    {
        "FileExistsError",
        "FileNotFoundError",
        "IsADirectoryError",
        "NotADirectoryError",
        "PermissionError",
    }
)


def check_streamer(system: str, name: str, size: int, limit: int | None) -> None:
    """Refuse what no stream can carry, before anything is sent.

    :param system: name of the system
    :param name: the file
    :param size: its bytes
    :param limit: bytes that the system takes by a stream; None for a download
    :raises InvalidInputError: the extra ``streamer`` is not installed, or the file is too large
    """
    try:
        import websockets.sync.client  # noqa: F401, PLC0415  only few need it
    except ImportError as error:
        raise InvalidInputError(
            "remote_path",
            f"{name} has {size} bytes; system {system} moves such files by the streamer, which is not "
            "installed here: pip install 'airflow-hpc-provider[streamer]'.",
        ) from error
    # The receiver counts whole pieces.
    if limit is not None and -(-size // CHUNK) * CHUNK > limit:
        raise InvalidInputError(
            "remote_path",
            f"{name} has {size} bytes; system {system} takes {limit // CHUNK * CHUNK} by its streamer. "
            "Split or compress it, or ask the site for a higher limit or for staging by S3.",
        )


def init_message(size: int) -> bytes:
    """The first message, which the peer reads only from bytes.

    :param size: bytes of the file
    """
    return json.dumps({"type": "init", "num_chunks": -(-size // CHUNK), "file_size": size}).encode()


def eof_message(digest: str) -> str:
    """The last message, in the only form that streamer 0.0.21 knows: text without blanks.

    :param digest: sha256 of the bytes, in hex
    """
    return json.dumps({"type": "eof", "sha256_hash": digest}, separators=(",", ":"))


def read_init(message: str | bytes) -> int:
    """The size in a first message.

    :raises TransferError: it is none, or tells of an error
    """
    plain = _read(message, "init")
    size = plain.get("file_size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise TransferError("The job's server told no size.")
    return size


def read_eof(message: str | bytes) -> str:
    """The sha256 in a last message, whichever form it has.

    :raises TransferError: it is none: there are more bytes than were told
    """
    digest = _read(message, "eof").get("sha256_hash")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest.lower()):
        raise TransferError("The job's server told no sha256.")
    return digest.lower()


def _read(message: str | bytes, kind: str) -> dict[str, Any]:
    try:
        plain = json.loads(message) if len(message) < 65536 else None
    except (ValueError, RecursionError):
        plain = None
    if isinstance(plain, dict) and plain.get("type") == "error":
        raise _told("told of an error", str(plain.get("error")), final=False)
    if not isinstance(plain, dict) or plain.get("type") != kind:
        raise TransferError(f"The job's server sent something else where {kind!r} was due.")
    return plain


def _told(what: str, words: str, *, final: bool) -> TransferError:
    """The peer's own words, as far as they can be shown."""
    shown = "".join(character if character.isprintable() else " " for character in words)[:200].strip()
    text = f"The job's server {what}{f': {shown}' if shown else ''}."
    return TransferError(text, transient=not final and shown not in _FINAL)


class Link:
    """A connection to the job's server.

    :param connection: the websocket
    :param sock: below it
    :param leave: closes the websocket
    """

    def __init__(self, connection: ClientConnection, sock: socket.socket, leave: Callable[[], None]) -> None:
        self._connection = connection
        self._socket = sock
        self._leave = leave
        self._aborted = False

    def say(self, message: str | bytes) -> None:
        """Send one message.

        :raises TransferError: the stream has ended
        """
        from websockets.exceptions import ConnectionClosed  # noqa: PLC0415  see reach

        try:
            self._connection.send(message)
        except ConnectionClosed as error:
            raise _broken(error) from None

    def hear(self) -> str | bytes:
        """Wait for the next message.

        :raises TransferError: the stream has ended
        """
        from websockets.exceptions import ConnectionClosed  # noqa: PLC0415  see reach

        try:
            return self._connection.recv()
        except ConnectionClosed as error:
            raise _broken(error) from None

    def hear_end(self) -> None:
        """Wait until the peer, who has everything, ends the stream.

        :raises TransferError: it says that something went wrong
        """
        from websockets.exceptions import ConnectionClosed  # noqa: PLC0415  see reach

        try:
            self._connection.recv()
        except ConnectionClosed as error:
            if error.rcvd is None or error.rcvd.code not in _WELL:
                raise _broken(error) from None
        else:
            raise TransferError("The job's server sent something where it was to end.")

    def abort(self) -> None:
        """End it at once, whatever another thread is about to send or waits for."""
        self._aborted = True
        with contextlib.suppress(OSError):
            # A reset: a peer that still sends would else wait minutes for room.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it in good order; after ``abort`` at once."""
        with contextlib.suppress(Exception):
            while self._aborted:
                # Full of what nobody takes, the websocket would not see that it has ended.
                self._connection.recv(timeout=_DRAIN_SECONDS)
        self._leave()


def _broken(error: Any) -> TransferError:
    """A websocket's end, in words. What it says is the peer's, never ours."""
    if error.rcvd is None:
        return TransferError("The stream to the job's server broke off.")
    code, reason = error.rcvd.code, error.rcvd.reason
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        reason = str(json.loads(reason).get("error", reason))
    return _told(f"ended the stream (code {code})", reason, final=code == _TOO_BIG)


def reach(coordinates: Coordinates, *, seconds: float = _OPEN_SECONDS) -> Link | None:
    """Look on every host and port once for the server that takes the secret.

    :param coordinates: where it may be
    :param seconds: to wait for each
    :return: a connection to it; None if it does not listen (yet)
    """
    from websockets.exceptions import WebSocketException  # noqa: PLC0415  only few need it
    from websockets.sync.client import connect  # noqa: PLC0415  only few need it

    for host, port in coordinates.places():
        try:
            sock = socket.create_connection((host, port), timeout=seconds)
        except OSError:
            continue
        sock.settimeout(None)
        stack = contextlib.ExitStack()
        try:
            connection = stack.enter_context(
                connect(
                    f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}",
                    # Our own: nothing leads the secret elsewhere, neither a proxy nor a redirect.
                    sock=sock,
                    additional_headers={"Authorization": f"Bearer {coordinates.secret}"},
                    compression=None,
                    open_timeout=seconds,
                    close_timeout=_CLOSE_SECONDS,
                    # A pong may wait behind megabytes: whether anything moves is seen in the bytes.
                    ping_timeout=None,
                    max_size=_LARGEST,
                    max_queue=_QUEUED,
                    logger=_silent(),
                )
            )
        except (OSError, ValueError, WebSocketException):
            # A redirect is a ValueError.
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return Link(connection, sock, stack.close)
    return None


def _silent() -> logging.Logger:
    """A logger that nobody hears: at DEBUG the websocket's own would tell headers and contents."""
    logger = logging.Logger("streamer", level=logging.CRITICAL)  # noqa: LOG001  it must not be in the tree
    logger.disabled = True
    return logger


class _Stream:
    """What both directions share: a thread that talks, while this one watches the clock."""

    def __init__(self, link: Link, what: str, size: int, pace: Pace, stall: float) -> None:
        self._link = link
        self._what = what
        self._size = size
        self._pace = pace
        self._stall = stall
        self._done = 0
        self._digest = hashlib.sha256()
        began = pace.clock()
        self._moved = (began, -1)
        self._progress = Progress(size, began, every=pace.every)
        self._lanes = Lanes(link.abort)

    def run(self, talk: Callable[[], None]) -> str:
        try:
            self._lanes.run([talk], tick=self._tick, every=_TICK)
        finally:
            self._link.close()
        log.info("%s: %s", self._what, self._progress.end(self._pace.clock()))
        return self._digest.hexdigest()

    def _tick(self) -> None:
        now, done = self._pace.clock(), self._done
        if done != self._moved[1]:
            self._moved = (now, done)
        elif now - self._moved[0] > self._stall:
            raise TransferError(f"{self._what}: nothing moved for {self._stall:.0f} s.")
        if line := self._progress.line(done, now):
            log.info("%s: %s", self._what, line)


class _Sending(_Stream):
    """One upload."""

    def __init__(self, link: Link, source: Source, pace: Pace, stall: float) -> None:
        super().__init__(link, f"Upload of {source.name}", source.size, pace, stall)
        self._source = source

    def talk(self) -> None:
        self._link.say(init_message(self._size))
        for offset in range(0, self._size, CHUNK):
            self._lanes.check()
            piece = self._piece(offset, min(CHUNK, self._size - offset))
            self._digest.update(piece)
            self._link.say(piece)
            self._done += len(piece)
        self._source.check()
        self._link.say(eof_message(self._digest.hexdigest()))
        self._link.hear_end()

    def _piece(self, offset: int, length: int) -> bytes:
        """A whole piece: a short one would count as much."""
        piece = bytearray()
        while len(piece) < length:
            more = self._source.read_at(offset + len(piece), length - len(piece))
            if not more:
                raise TransferError(
                    f"{self._source.name} became shorter while it was uploaded.", transient=False
                )
            piece += more
        return bytes(piece)


class _Receiving(_Stream):
    """One download."""

    def __init__(self, link: Link, sink: Sink, size: int, pace: Pace, stall: float) -> None:
        super().__init__(link, f"Download of {sink.name}", size, pace, stall)
        self._sink = sink

    def talk(self) -> None:
        size = read_init(self._link.hear())
        if size != self._size:
            raise TransferError(
                f"{self._sink.name} has {size} bytes now, and had {self._size} when it was asked for."
            )
        while self._done < size:
            self._lanes.check()
            piece = self._link.hear()
            if isinstance(piece, str):
                # Says what went wrong, if it can be read.
                read_eof(piece)
                raise TransferError(f"The stream ended after {self._done} of {size} bytes.")
            if len(piece) > size - self._done:
                raise TransferError(f"The job's server sent more than the {size} bytes it told of.")
            self._digest.update(piece)
            self._sink.write_at(self._done, piece)
            self._done += len(piece)
        there, here = read_eof(self._link.hear()), self._digest.hexdigest()
        if there != here:
            raise TransferError(f"What was sent has sha256 {there}, what arrived {here}.")


def send(link: Link, source: Source, *, pace: Pace, stall: float = _STALL_SECONDS) -> str:
    """Send a file, and close the connection.

    :param link: to a server that receives
    :param source: open for reading
    :param pace: how often to tell how far it is
    :param stall: seconds without a piece after which the stream is dead
    :return: sha256 of what was sent
    :raises TransferError: the stream broke, or the source changed
    """
    sending = _Sending(link, source, pace, stall)
    return sending.run(sending.talk)


def receive(link: Link, sink: Sink, size: int, *, pace: Pace, stall: float = _STALL_SECONDS) -> str:
    """Take a file, and close the connection.

    :param link: to a server that sends
    :param sink: started
    :param size: bytes that are to come
    :param pace: how often to tell how far it is
    :param stall: seconds without a piece after which the stream is dead
    :return: sha256 of what came, the same that the server told
    :raises TransferError: the stream broke, or brought something else
    """
    receiving = _Receiving(link, sink, size, pace, stall)
    return receiving.run(receiving.talk)
