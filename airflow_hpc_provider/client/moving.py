"""Moving the bytes: parts up, ranges down, over several connections, hashed on the way in bounded memory.

A digest needs the bytes in order, while connections carry them in any order. Parts of an upload are as large
as the storage likes (up to 5 GiB), so none is ever held: each connection reads its part in small pieces, and
one more thread hashes the file in order right behind the furthest of them, from what the system still has in
memory. Downloads are hashed in the same way behind what was written. Where reading again is dear (a stream to
or from elsewhere), the bytes are hashed as they pass, in their turn.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from .errors import TransferError
from .hashing import Follower
from .lanes import Lanes
from .places import LocalSource, Sink, Source
from .progress import Progress
from .retry import RetryPolicy
from .spans import Span, Spans, cut
from .storage import Fetched, Piece, Storage
from .transfers import parts
from .wire import Slice

__all__ = ["Delivery", "Pace", "SpoiledError", "fetch_ranges", "send_parts"]

log = logging.getLogger(__name__)

_CHUNK = 1024 * 1024
# Ranges of a download: large ones need few requests, small ones let all connections end together.
_LARGEST = 128 * 1024 * 1024
_SMALLEST = 8 * 1024 * 1024
# Fewer bytes are not worth a connection of their own.
_SHARE = 1024 * 1024
# Of a stream each connection holds its range until that one's turn; this many bytes in all.
_HELD = 32 * 1024 * 1024
_TICK = 0.5


class SpoiledError(TransferError):
    """What came is not what is there: a copy that no other try can make good."""


def _nobody(_size: int, _seconds: float) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast to move, when to try again, and whom to tell.

    :param connections: how many at once
    :param policy: when to try a part again
    :param patience: seconds for which a storage that is away is waited for, beyond what the policy says
    :param every: seconds between two lines in the log
    :param save_every: seconds between two notes of how far a download is
    :param told: told at the end how many bytes were moved in how many seconds
    :param clock: monotonic seconds
    """

    connections: int = 4
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    patience: float = 1800.0
    every: float = 10.0
    save_every: float = 5.0
    told: Callable[[int, float], None] = _nobody
    clock: Callable[[], float] = time.monotonic


@dataclass(slots=True)
class Delivery:
    """How far a download is.

    :param size: bytes of the object
    :param spans: what is there
    :param etag: tells the object from others, once it has been seen
    """

    size: int
    spans: Spans = field(default_factory=Spans)
    etag: str | None = None


class _Crew:
    """What both directions share: the threads, the count of bytes, and the lines in the log."""

    def __init__(self, what: str, size: int, done: int, storage: Storage, pace: Pace) -> None:
        self._what = what
        self._size = size
        self._before = done
        self._pace = pace
        self._storage = storage
        self._lock = threading.Lock()
        self._done = done
        self._began = pace.clock()
        self._progress = Progress(size, self._began, done=done, every=pace.every)
        self._digest = hashlib.sha256()
        self._hashed = 0
        self.lanes = Lanes(storage.abort)
        storage.sleep = self.lanes.pause

    def follower(self, reach: Callable[[], int], read: Callable[[int, int], bytes]) -> Follower:
        """Who hashes behind the threads what can be read again."""
        return Follower(
            self.lanes,
            size=self._size,
            reach=reach,
            read=read,
            update=self._digest.update,
        )

    def _moved(self) -> int:
        return self._done - self._before

    def count(self, size: int) -> None:
        """So many bytes more are done; or fewer, if they have to be moved again."""
        with self._lock:
            self._done += size

    def say(self) -> None:
        """Log how far it is, if it is time."""
        if line := self._progress.line(self._done, self._pace.clock()):
            log.info("%s: %s", self._what, line)

    def run(self, lanes: int, work: Callable[[], None], *more: Callable[[], None]) -> None:
        """Let so many threads do the work, and one each what else there is."""
        try:
            self.lanes.run([work] * lanes + list(more), tick=self.tick, every=_TICK)
        except BaseException:
            # Another try goes on from the last entry in the books.
            with contextlib.suppress(TransferError):
                self.save()
            raise
        self.tick()

    def save(self) -> None:
        """Keep the books."""
        raise NotImplementedError

    def tick(self) -> None:
        """Keep the books, if it is time, and say how far it is."""
        raise NotImplementedError

    def ended(self) -> str:
        """Tell the rate; gives the digest."""
        now = self._pace.clock()
        log.info("%s: %s", self._what, self._progress.end(now))
        self._pace.told(self._size - self._before, now - self._began)
        return self._digest.hexdigest()


class _Sending(_Crew):
    """One upload."""

    def __init__(
        self,
        source: Source,
        urls: Sequence[str],
        *,
        part_size: int,
        tags: dict[int, str],
        saved: Callable[[Mapping[int, str]], None],
        storage: Storage,
        pace: Pace,
    ) -> None:
        self._cuts = parts(source.size, part_size)
        done = sum(length for index, (_, length) in enumerate(self._cuts) if index in tags)
        super().__init__(f"Upload of {source.name}", source.size, done, storage, pace)
        self._source = source
        self._urls = urls
        self._tags = tags
        self._saved = saved
        self._told = len(tags)
        self._sent: dict[int, int] = {}
        self._front = 0
        self._follower = self.follower(self._reach, self._piece)
        # All bytes of a stream pass here for the digest, even those that the storage has already.
        missing = [index for index in range(len(self._cuts)) if index not in tags or not source.rereadable]
        self._todo = iter(missing)
        self._missing = len(missing)

    def move(self) -> str:
        if self._source.rereadable:
            self.run(max(1, min(self._pace.connections, self._missing)), self._lane, self._follower.run)
        else:
            self.run(1, self._lane)
        self._source.check()
        return self.ended()

    def save(self) -> None:
        if len(self._tags) != self._told:
            tags = dict(self._tags)
            self._saved(tags)
            self._told = len(tags)

    def tick(self) -> None:
        self.save()
        self.say()

    def _lane(self) -> None:
        while True:
            with self._lock:
                index = next(self._todo, None)
            if index is None:
                return
            if index in self._tags:
                for _ in self._read(index):
                    pass
                continue
            what = f"upload part {index + 1} of {len(self._cuts)} of {self._source.name}"
            length = self._cuts[index][1]
            self._tags[index] = self._storage.put(self._urls[index], partial(self._read, index), length, what)
            self.lanes.tell()

    def _read(self, index: int) -> Iterator[Piece | Slice]:
        """The bytes of one part."""
        at, size = self._cuts[index]
        end = at + size
        counts = index not in self._tags
        self.count(-self._sent.pop(index, 0))
        while at < end:
            self.lanes.check()
            length = min(_CHUNK, end - at)
            chunk: bytes | Slice
            if isinstance(self._source, LocalSource):
                chunk = Slice(self._source.name, self._source.fileno(), at, length)
            else:
                chunk = self._piece(at, length)
                if not self._source.rereadable:
                    self._pass(at, chunk)
            at += len(chunk)
            if counts:
                self._sent[index] = self._sent.get(index, 0) + len(chunk)
                self.count(len(chunk))
            if at > self._front:
                self._front = at
                self._follower.advanced()
            yield chunk
            if self._source.rereadable:
                self._follower.hold(self._moved)

    def _pass(self, at: int, chunk: bytes) -> None:
        """Hash what has not been hashed before, as in a part that is sent again."""
        new = chunk[max(0, self._hashed - at) :]
        self._digest.update(new)
        self._hashed += len(new)

    def _reach(self) -> int:
        """How far it has been sent, so that the disk is read once."""
        return self._size if len(self._tags) == len(self._cuts) else self._front

    def _piece(self, at: int, length: int) -> bytes:
        chunk = self._source.read_at(at, length)
        if not chunk:
            raise TransferError(f"{self._source.name} became shorter while it was uploaded.", transient=False)
        return chunk


def send_parts(
    source: Source,
    urls: Sequence[str],
    *,
    part_size: int,
    complete_url: str,
    tags: dict[int, str],
    pace: Pace,
    trust: ssl.SSLContext | None = None,
    again: bool = False,
    saved: Callable[[Mapping[int, str]], None] = lambda _: None,
) -> str:
    """Upload the parts that are missing, join all, and return the sha256 of the source.

    :param source: open for reading
    :param urls: presigned URL of each part
    :param part_size: bytes of every part but the last
    :param complete_url: presigned URL that joins the parts
    :param tags: tag of each part that the storage has, by its index; filled on the way
    :param pace: how fast, and whom to tell
    :param trust: whose certificates are good; see :attr:`.session.Client.storage_trust`
    :param again: an earlier try may have joined them
    :param saved: called in this thread with all tags whenever there are more
    :raises UrlExpiredError: a URL is too old
    :raises TransferError: the storage did not take it, or the source changed
    """
    with Storage(trust=trust, policy=pace.policy, patience=pace.patience) as storage:
        sending = _Sending(
            source, urls, part_size=part_size, tags=tags, saved=saved, storage=storage, pace=pace
        )
        digest = sending.move()
        storage.sleep = time.sleep
        storage.complete(complete_url, [tags[index] for index in range(len(urls))], again=again)
    return digest


class _Fetching(_Crew):
    """One download."""

    def __init__(
        self,
        url: str,
        sink: Sink,
        delivery: Delivery,
        *,
        saved: Callable[[], None],
        storage: Storage,
        pace: Pace,
    ) -> None:
        size = delivery.size
        super().__init__(f"Download of {sink.name}", size, delivery.spans.total, storage, pace)
        self._url = url
        self._sink = sink
        self._delivery = delivery
        self._saved = saved
        self._last = self._began
        gaps = delivery.spans.gaps(size)
        missing = sum(end - at for at, end in gaps)
        self._lanes = max(1, min(pace.connections, -(-missing // _SHARE)))
        largest = _HELD // self._lanes if sink.in_order else _LARGEST
        smallest = min(_SMALLEST, -(-missing // self._lanes))
        self._todo = cut(gaps, lanes=self._lanes, largest=largest, smallest=smallest)
        self._first_asked = False
        self._follower = self.follower(self._ready, self._again)

    def move(self) -> str:
        more = [] if self._sink.in_order else [self._follower.run]
        self.run(self._lanes, self._lane, *more)
        return self.ended()

    def save(self) -> None:
        if not self._sink.in_order:
            self._saved()

    def tick(self) -> None:
        now = self._pace.clock()
        if now - self._last >= self._pace.save_every:
            self._last = now
            self.save()
        self.say()

    def _lane(self) -> None:
        buffer = bytearray(min(_CHUNK, self._size))
        while True:
            with self._lock:
                span = next(self._todo, None)
                first, self._first_asked = not self._first_asked, True
            if span is None:
                return
            if not first and self._delivery.etag is None:
                # The first answer tells which object this is; all others must be of the same.
                self.lanes.wait_until(lambda: self._delivery.etag is not None)
            if self._sink.in_order:
                self._hold(span, buffer)
            else:
                self._write(span, buffer)

    def _fetch(self, span: Span, take: Callable[[Piece], None], buffer: bytearray) -> None:
        start, end = span
        what = f"fetch bytes {start} to {end} of {self._sink.name} from the staging storage"
        self._storage.fetch(
            self._url,
            start,
            end,
            what=what,
            take=take,
            buffer=buffer,
            etag=lambda: self._delivery.etag or None,
            seen=self._seen,
        )

    def _seen(self, object_: Fetched) -> None:
        size = self._delivery.size
        if object_.size is not None and object_.size != size:
            raise SpoiledError(
                f"{self._sink.name} changed while it was staged, from {size} to {object_.size} bytes."
            )
        if self._delivery.etag is None:
            self._delivery.etag = object_.etag or ""
            self.lanes.tell()

    def _write(self, span: Span, buffer: bytearray) -> None:
        """Write what comes at once: before a failure too, so that it need not come again."""
        at = span[0]

        def take(piece: Piece) -> None:
            nonlocal at
            self.lanes.check()
            self._sink.write_at(at, piece)
            with self._lock:
                ready = self._delivery.spans.prefix
                self._delivery.spans.add(at, at + len(piece))
                self._done += len(piece)
                more = self._delivery.spans.prefix > ready
            at += len(piece)
            if more:
                self._follower.advanced()

        self._fetch(span, take, buffer)

    def _hold(self, span: Span, buffer: bytearray) -> None:
        """Fetch a range, and hand it on when all before it has been."""
        held = bytearray()

        def take(piece: Piece) -> None:
            self.lanes.check()
            held.extend(piece)
            self.count(len(piece))

        self._fetch(span, take, buffer)
        self.lanes.wait_until(lambda: self._hashed == span[0])
        self._digest.update(held)
        self._sink.write_at(span[0], held)
        with self._lock:
            self._delivery.spans.add(*span)
        self._hashed = span[1]
        self.lanes.tell()

    def _again(self, at: int, length: int) -> bytes:
        """What has been written."""
        chunk = self._sink.read_at(at, length)
        if not chunk:
            raise TransferError(f"{self._sink.name} became shorter while it was downloaded.")
        return chunk

    def _ready(self) -> int:
        with self._lock:
            return self._delivery.spans.prefix


def fetch_ranges(
    url: str,
    sink: Sink,
    delivery: Delivery,
    *,
    pace: Pace,
    trust: ssl.SSLContext | None = None,
    saved: Callable[[], None] = lambda: None,
) -> str:
    """Download what is missing of an object, and return the sha256 of all of it.

    :param url: presigned URL of the object
    :param sink: started, and with what is there already
    :param delivery: what is there already; kept up to date
    :param pace: how fast, and whom to tell
    :param trust: whose certificates are good; see :attr:`.session.Client.storage_trust`
    :param saved: called in this thread now and then, to write ``delivery`` down
    :raises UrlExpiredError: the URL is too old
    :raises TransferError: the storage did not give it, or it changed
    """
    with Storage(trust=trust, policy=pace.policy, patience=pace.patience) as storage:
        return _Fetching(url, sink, delivery, saved=saved, storage=storage, pace=pace).move()
