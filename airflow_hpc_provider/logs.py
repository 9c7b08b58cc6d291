"""``JobLogs``: which part of which output file of a job to read next, and which lines that brings.

The core is pure: it answers with an :class:`Ask`, takes what came of it, and gives lines. Its state is plain
JSON and travels with a deferred task; every line is logged once, wherever the task waits. One case is
different: if a triggerer dies, the next one begins with what the task was deferred with, so lines may come
twice. They are never lost.

The gateway answers text, not bytes. A file is therefore read from an offset that is known in bytes, and what
is logged is counted from there in characters, which no replacement character can make uncertain. FirecREST
cuts its answer by characters and its file in blocks of the size asked for: an offset that is no multiple of
the size shifts the answer where the text is not ASCII. So offsets are multiples of the size, as long as a
file is UTF-8.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from .client import files
from .client.calls import Call, JSONObject
from .client.errors import (
    ApiError,
    BadRequestError,
    HpcError,
    NotFoundError,
    TooLargeError,
)
from .client.script import expand_pattern
from .watch import JobWatch, Watch

if TYPE_CHECKING:
    from .client.jobs import Job
    from .client.session import Client

__all__ = ["Ask", "JobLogs", "LiveLogs", "OutputFile", "finish", "follow_logs"]

Say = Callable[[str], None]

# Bytes of one read at the most, and what offsets are multiples of.
_READ, _GRAIN = 2**20, 4096
# A file is read from so many grains before what is new at the most, to find an offset with many divisors.
_BACK = 16
# Lines that are logged before others on the event loop get their turn.
_SLICE = 20
# Bytes of ``limit`` that are kept for the end of the output.
_RESERVE = 2**16
# The pause between two reads grows up to so many times ``interval`` while nothing new comes.
_QUIETEST = 8.0
# Elements of an array that are followed at a time, in all while the array runs, and shown in all.
_AT_A_TIME, _LIVE, _SHOWN = 4, 6, 10
# Lines at the end of standard error that explain a failure, and characters of them at the most.
_TELLING, _TELLING_MOST = 30, 16384
# A file system may show a new file, or the rest of one, so many seconds late.
_LATE = 2.0
# Where ``tail`` is used, a file that grows meanwhile is tried again so often.
_TRIES = 3
_BAD = "\ufffd"
# A trigger that begins more than so many seconds after its task was deferred may not be the first one.
_SOON = 20.0
_LONG = 3600.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing to ask of the gateway.

    :param kind: the operation
    :param key: the file it is for, as :class:`JobLogs` calls it
    :param path: absolute path
    :param offset: bytes to skip
    :param size: bytes to read
    """

    kind: Literal["view", "tail", "stat"]
    key: str
    path: str
    offset: int = 0
    size: int = 0

    def call(self, system: str) -> Call[Any]:
        """The call that asks it: text, or the size of the file.

        :raises InvalidInputError: the path cannot travel safely
        """
        if self.kind == "view":
            return files.view(system, self.path, offset=self.offset, size=self.size)
        if self.kind == "tail":
            return files.tail(system, self.path, size=self.size)
        return files.stat(system, self.path, dereference=True).then(lambda stat: stat.size)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _lines(text: str) -> list[str]:
    """Lines as a terminal would leave them: of a progress bar the last state."""
    lines = text.replace("\r\n", "\n").split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.rstrip("\r").rpartition("\r")[2] for line in lines]


def _window(at: int, most: int) -> int:
    """Bytes to read from an offset: the largest size of which it is a multiple."""
    grains, most_grains = at // _GRAIN, most // _GRAIN
    if at == 0 or at % _GRAIN or not most_grains:
        return most
    return _GRAIN * next(size for size in range(min(grains, most_grains), 0, -1) if grains % size == 0)


@dataclass(kw_only=True)
class OutputFile:
    """How far one file is logged; pure.

    :param path: absolute path
    :param at: offset in bytes from which it is read
    :param skip: characters behind it that are logged
    :param mark: CRC-32 of these; None if they are not known for sure
    :param lead: how many of the first ones are rests of a character that began before ``at``
    :param logged: bytes of the file that are logged or left out
    :param seen: it was there
    :param most: bytes of one read at the most
    """

    path: str
    at: int = 0
    skip: int = 0
    mark: int | None = 0
    lead: int = 0
    logged: int = 0
    seen: bool = False
    most: int = _READ

    def __post_init__(self) -> None:
        self.done = False  # read to its end
        self.size: int | None = None  # as far as it was asked for
        self.wants_size = False
        self.doubts = 0
        self.recent: list[str] = []
        self.notes: list[str] = []
        self.trims: list[int] = []  # characters of ever shorter answers
        self._leap: int | None = None

    def to_json(self) -> list[Any]:
        """State, short."""
        return [self.at, self.skip, self.mark, self.lead, self.logged, self.seen]

    def view(self) -> tuple[int, int]:
        """Offset and size of the next read."""
        return self.at, max(1, _window(self.at, self.most) - len(self.trims))

    def leap(self, size: int, share: int) -> None:
        """Leave out what lies before the last bytes.

        :param size: size of the file
        :param share: how many bytes of it are still to be logged
        """
        self._leap = target = max(self.logged, size - share)
        top = target // _GRAIN
        best = max(range(max(0, top - _BACK + 1), top + 1), key=self._reach)
        self._start(best * _GRAIN)

    def take(self, text: str, size: int, *, final: bool, allow: float) -> Iterator[tuple[list[str], int]]:
        """Take what a read of ``size`` bytes brought.

        Between two slices the state is that of the lines given so far, so that one may stop at any of them.

        :param text: the answer
        :param size: bytes that were asked for
        :param final: nobody writes to the file any more
        :param allow: bytes that may be logged
        :return: slices of new lines, and how many bytes these are
        """
        self.seen = True
        if self.trims:
            yield from self._trimmed(text, final=final)
            return
        if not self._known(text):
            return
        low, high = self._weigh(text)
        full = low >= size or (high >= size and (final or (self.size or 0) >= self.at + size))
        if self._leap is not None:
            self._leapt(text)
        end = self._end(text, full=full, final=final)
        begun = self.skip
        stop = begun
        while self.skip < end and allow > 0:
            stop = self._slice(text, end)
            taken = text[self.skip : stop]
            weight = len(_encoded(taken))
            if weight > allow:
                taken = _encoded(taken)[: int(allow)].decode("utf-8", "ignore")
                taken = taken[: taken.rfind("\n") + 1] or taken
                stop = self.skip + len(taken)
            self.mark = None if self.mark is None else zlib.crc32(_encoded(taken), self.mark)
            self.logged += len(_encoded(taken)) - 2 * taken.count(_BAD)
            self.skip = stop
            yield _lines(taken), weight
            allow -= weight
        if self.skip < end:
            return
        self.recent = _lines(text[max(self.lead, end - _TELLING_MOST) : end])[-_TELLING:]
        if final and not full:
            self.done = True
            return
        moved = self._move(text, end, size, full=full)
        if full and not moved:
            self._over(text, end, size, low)
        elif not full and high >= size and self.skip == begun:
            self.wants_size = True  # an answer that is full, or shows all there is: its bytes do not tell

    def sized(self, size: int) -> None:
        """Take the size of the file."""
        self.size, self.wants_size = size, False

    def _known(self, text: str) -> bool:
        """Whether what is logged is still there; a file system may be behind for a moment."""
        same = len(text) >= self.skip
        if same and self.mark is not None:
            same = zlib.crc32(_encoded(text[: self.skip])) == self.mark
        if same:
            self.doubts = 0
            return True
        self.doubts += 1
        if self.doubts > 1:
            self._start(0)
            self.logged = self.doubts = 0
            self.size = None
            self.notes.append(f"{self.path} was cut short or written anew; here it begins again.")
        return False

    def _weigh(self, text: str) -> tuple[int, int]:
        """How many bytes the text is at least and at most."""
        high = len(_encoded(text)) - 2 * min(self.lead, len(text))
        return high - 2 * text.count(_BAD, self.lead), high

    def _end(self, text: str, *, full: bool, final: bool) -> int:
        """Up to which character the text may be logged."""
        end = len(text)
        if final and not full:
            return end
        if text.endswith(_BAD) and end > self.skip:
            end -= 1  # perhaps the first part of a character
        if line := text.rfind("\n", self.skip, end) + 1:
            return line
        if not full:
            return self.skip
        # A line longer than one read is logged in pieces.
        return end - 1 if text[end - 1 : end] == "\r" and end - 1 > self.skip else end

    def _slice(self, text: str, end: int) -> int:
        stop = self.skip
        for _ in range(_SLICE):
            stop = text.find("\n", stop, end) + 1
            if not stop:
                return end
        return stop

    def _start(self, at: int, *, skip: int = 0, mark: int | None = 0, lead: int = 0) -> None:
        self.at, self.skip, self.mark, self.lead = at, skip, mark, lead
        self.trims = []

    def _reach(self, grain: int) -> tuple[int, int]:
        return grain * _GRAIN + _window(grain * _GRAIN, self.most), grain

    def _move(self, text: str, end: int, size: int, *, full: bool) -> bool:
        """Read from further on: as far as the bytes of what is logged can be counted.

        :param end: how many characters are logged
        :param size: bytes of the read
        :param full: the next read must show more than this one
        :return: whether it will
        """
        first = text.find(_BAD, self.lead, end)
        begin = self.at + self.lead
        sure = _encoded(text[self.lead : end if first < 0 else first])
        top = (begin + len(sure)) // _GRAIN
        grains = [grain for grain in range(max(0, top - _BACK + 1), top + 1) if grain * _GRAIN > begin]
        if not grains or begin + len(sure) - self.at < min(_BACK // 2 * _GRAIN, size // 2):
            return False
        best = max(grains, key=self._reach)
        needed = self.at + size if full else begin + len(_encoded(text[self.lead : end]))
        if self._reach(best)[0] <= needed:
            return False
        cut = best * _GRAIN - begin
        rest = sure[cut : cut + 3]
        lead = len(rest) - len(rest.lstrip(bytes(range(0x80, 0xC0))))
        before = self.lead + len(sure[:cut].decode("utf-8", "replace"))
        kept = _BAD * lead + text[before:end]
        self._start(best * _GRAIN, skip=len(kept), mark=zlib.crc32(_encoded(kept)), lead=lead)
        return True

    def _over(self, text: str, end: int, size: int, low: int) -> None:
        """Go on behind a full answer of which the bytes cannot be counted."""
        if end < len(text) and text[end:] != _BAD:
            return  # the rest of it is a line that does not end: its turn comes first
        if end < len(text):
            self.trims = [len(text)]
            return
        if low <= size:
            self._start(self.at + size)
            return
        # The gateway counts characters: those that lie within ``size`` bytes for sure are behind us.
        past = _encoded(text.replace(_BAD, "?"))[:size].decode("utf-8", "ignore")
        self._start(self.at + size, skip=max(0, end - len(past)), mark=None)

    def _trimmed(self, text: str, *, final: bool) -> Iterator[tuple[list[str], int]]:
        """Find where the last character begins that a full answer may have cut, by shorter answers.

        An answer that is one byte longer has one character more if, and only if, that byte begins one.
        """
        if len(text) < self.skip:
            self._start(self.at + _window(self.at, self.most))
            return
        if self.trims[-1] > len(text):
            self._start(self.at + _window(self.at, self.most) - len(self.trims))
            return
        self.trims.append(len(text))
        if len(self.trims) > 4:  # bytes of a character at the most: the answer was not full
            self.done, self.trims = final, []
            if final:
                self.skip += 1
                self.logged += 1
                yield [_BAD], 1

    def _leapt(self, text: str) -> None:
        """Begin after a cut with a whole line, if there is one."""
        wanted, self._leap = (self._leap or 0) - self.at, None
        head = _encoded(text.replace(_BAD, "?"))[:wanted].decode("utf-8", "ignore")
        begin = len(head)
        if wanted and text[begin - 1 : begin] != "\n":
            begin = text.find("\n", begin) + 1 or begin
        past = self.at + len(_encoded(text[:begin].replace(_BAD, "?")))
        left, self.logged = past - self.logged, past
        self.skip, self.mark = begin, zlib.crc32(_encoded(text[:begin]))
        if left > 0:
            self.notes.append(f"… {left} bytes of {self.path} are left out here …")


@dataclass(kw_only=True)
class JobLogs:
    """What is logged of one job's output, and what to read next; pure, the clock is passed in.

    Of an array a few elements are followed while it runs, the lowest indices first, each until it is over; at
    the end those are completed and some that failed are shown.

    :param system: name of the system
    :param job_id: id of the job or array
    :param name: name of the job
    :param stdout: path or Slurm pattern of its output, absolute
    :param stderr: the same for standard error
    :param array: the array it was submitted with, as ``0-99%10``, if it is one
    :param interval: seconds between two reads of one file at the least
    :param limit: bytes that are logged in all; the end of the output is always among them
    :param user: name of the user on the cluster, once it is known
    :param spent: bytes that are logged
    :param full: no more is logged before the job is over
    :param by_tail: the gateway has no ``view``
    :param most: bytes of one read at the most
    :param begun: epoch seconds at which a trigger was given this
    :param files: how far each file is logged
    :param followed: indices of the elements that were followed, in order
    """

    system: str
    job_id: str
    name: str
    stdout: str
    stderr: str
    array: str | None = None
    interval: float = 15.0
    limit: int = 10 * 2**20
    user: str | None = None
    spent: int = 0
    full: bool = False
    by_tail: bool = False
    most: int = _READ
    begun: float | None = None
    files: JSONObject = field(default_factory=dict)
    followed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._files: dict[str, OutputFile] = {}
        self._due: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        self._active: list[str] = []
        self._over: set[str] = set()
        self._complained: set[str] = set()
        self._ending = False
        self._left_out = 0
        self._shares: dict[str, float] = {}
        self._waited: set[str] = set()
        self._tails: dict[str, tuple[int, str | None, int]] = {}
        self.pause = 0.0

    def to_json(self) -> JSONObject:
        """Arguments that make this again where it is now."""
        known = {key: of.to_json() for key, of in self._files.items()}
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "files": self.files | known,
            "followed": list(self.followed),
        }

    @classmethod
    def from_json(cls, plain: JSONObject) -> JobLogs:
        """What :meth:`to_json` told of."""
        return cls(**plain)

    # --- what is there ---

    def saw(self, watch: Watch[Any], now: float) -> None:
        """Take the last sight of the job: what runs is read, what is over is read to its end.

        :param watch: a watch of the job that has just looked
        :param now: epoch seconds
        """
        job: Job | None = watch.job if isinstance(watch, JobWatch) else None
        if job is None or self._ending:
            return
        self.user = self.user or job.user
        if self.array is None:
            if not job.state.waiting and job.state.value != "UNKNOWN":
                self._follow(None, now)
            return
        states = {element.index: element.state for element in job.elements}
        for index in self.followed:
            if index in states and not states[index].waiting:
                self._follow(index, now)
                if states[index].final:
                    self._over.update(self._keys(index))
        reading = {key.partition(" ")[0] for key in self._active if not self._files[key].done}
        for index, state in sorted(states.items()):
            if len(reading) >= _AT_A_TIME or len(self.followed) >= _LIVE:
                break
            if index not in self.followed and not state.waiting and not state.final:
                self.followed.append(index)
                self._follow(index, now)
                reading.add(str(index))

    def end(self, job: Job | None) -> None:
        """The job is over: what is missing is read now, and nothing twice.

        :param job: its last sight, if there is one
        """
        self._ending = True
        self._active = []
        indices: list[int | None] = [None]
        if job is not None:
            self.user = self.user or job.user
        if self.array is not None:
            elements = job.elements if job else ()
            failed = [item.index for item in elements if item.state.final and not item.state.succeeded]
            others = [item.index for item in elements]
            shown = list(dict.fromkeys([*self.followed, *failed, *others]))[:_SHOWN]
            # An element that failed says most.
            shown.sort(key=lambda index: (index not in failed, index))
            self._left_out = len({*others, *shown}) - len(shown)
            indices = list(shown)
        for index in indices:
            self._follow(index, 0.0)
        self._over.update(self._active)

    def paths(self, index: int | None = None) -> dict[str, str]:
        """The files of the job, or of one element: path by ``stdout`` and ``stderr``."""
        of = {
            stream: expand_pattern(
                pattern,
                job_id=self.job_id,
                name=self.name,
                user=self.user,
                index=index,
                array_job_id=self.job_id,
            )
            for stream, pattern in (("stdout", self.stdout), ("stderr", self.stderr))
            if pattern
        }
        if of.get("stdout") == of.get("stderr"):
            of.pop("stderr", None)
        return of

    def tail(self, index: int | None = None) -> list[str] | None:
        """The last lines of standard error, if they were read; None if they were not.

        :param index: of an array, which element
        """
        prefix = "" if index is None else f"{index} "
        of = self._files.get(f"{prefix}stderr") or self._files.get(f"{prefix}stdout")
        return of.recent if of and of.done else None

    # --- what to read ---

    @property
    def due(self) -> float:
        """Epoch seconds at which :meth:`next` has something to ask; infinite if only a sight brings it."""
        if self.full and not self._ending:
            return float("inf")
        return min(
            (self._due[key] for key in self._active if not self._files[key].done), default=float("inf")
        )

    def next(self, now: float) -> Ask | None:
        """What to ask now, if anything: the file that waits for longest.

        :param now: epoch seconds
        """
        waiting = [key for key in self._active if not self._files[key].done]
        if not waiting or (self.full and not self._ending):
            return None
        key = waiting[0] if self._ending else min(waiting, key=self._due.__getitem__)
        if not self._ending and self._due[key] > now:
            return None
        return self._ask(key)

    def took(self, ask: Ask, answer: Any, now: float) -> Iterator[list[str]]:
        """Take an answer.

        Between two slices the state is that of the lines given so far.

        :param answer: what the call returned
        :param now: epoch seconds
        :return: slices of lines to log
        """
        of = self._files[ask.key]
        self._complained.discard(ask.key)
        self.pause = 0.0
        before = (of.logged, of.at, of.wants_size)
        if ask.kind == "stat":
            text = self._sized(ask.key, of, int(answer))
            size = 2**62
        elif ask.kind == "tail":
            self._tails[ask.key] = (self._tails[ask.key][0], answer, self._tails[ask.key][2])
            return
        else:
            text, size = answer, ask.size
        if text is not None:
            if ask.kind == "view" and len(text) > ask.size:
                self.by_tail = True  # it pays no heed to what was asked for
                return
            ending = self._ending or ask.key in self._over
            for lines, weight in of.take(text, size, final=ending, allow=self._allowed(ask.key)):
                self.spent += weight
                yield self._labelled(ask.key, lines)
            if of.notes:
                yield self._labelled(ask.key, [])
        if not self._ending and not self.full and self._allowed(ask.key) <= 0:
            self.full = True
            text = "as much as is logged of this job before it is over. The end of its output follows then"
            yield [f"{self.spent} bytes are {text}; all of it is in {of.path}."]
        self._plan(ask.key, of, now, news=before != (of.logged, of.at, of.wants_size))

    def missed(self, ask: Ask, error: HpcError, now: float) -> list[str]:
        """Take a failure; it is never one of the task.

        :param now: epoch seconds
        :return: lines to log
        """
        of = self._files[ask.key]
        self.pause = 0.0
        self._tails.pop(ask.key, None)
        if ask.kind == "view" and _unknown(error):
            self.by_tail = True
            return []
        large = isinstance(error, TooLargeError) or (
            isinstance(error, BadRequestError) and "size" in error.message
        )
        if large and of.most > _GRAIN:
            # A gateway that moves less in one request.
            self.most = of.most = max(_GRAIN, of.most // 2)
            return []
        asked = error.retry_after or 0.0 if isinstance(error, ApiError) else 0.0
        self._plan(ask.key, of, now + asked, news=False)
        absent = isinstance(error, NotFoundError)
        if self._ending:
            if absent and not of.seen and ask.key.endswith("stdout") and ask.key not in self._waited:
                self._waited.add(ask.key)
                self.pause = _LATE
                return []
            of.done = True
        if absent or ask.key in self._complained:
            return []
        self._complained.add(ask.key)
        later = "It is in the file." if self._ending else "It is tried again."
        return [f"The output cannot be read at the moment: {error} {later}"]

    def closing(self) -> list[str]:
        """Lines at the end: whose output is not shown, and where it is."""
        if not self._left_out:
            return []
        return [f"The output of {self._left_out} more elements of the array is left out here: {self.stdout}"]

    def beside(self, client: Client, say: Say) -> LiveLogs:
        """What logs beside a wait in a worker.

        :param client: an open client
        :param say: logs one line
        """
        return LiveLogs(client, self, say)

    # --- within ---

    def _keys(self, index: int | None) -> list[str]:
        return [stream if index is None else f"{index} {stream}" for stream in self.paths(index)]

    def _follow(self, index: int | None, now: float) -> None:
        for key, path in zip(self._keys(index), self.paths(index).values(), strict=True):
            if key not in self._files:
                at, skip, mark, lead, logged, seen = self.files.get(key, [0, 0, 0, 0, 0, False])
                self._files[key] = OutputFile(
                    path=path,
                    at=at,
                    skip=skip,
                    mark=mark,
                    lead=lead,
                    logged=logged,
                    seen=seen,
                    most=self.most,
                )
            elif not self._files[key].seen:
                self._files[key].path = path
            if key not in self._active:
                self._active.append(key)
                self._due.setdefault(key, now)
                self._pauses.setdefault(key, self.interval)

    def _ask(self, key: str) -> Ask:
        of = self._files[key]
        if self._ending and key not in self._shares and self._allowed(key) <= 0:
            of.wants_size = True
        if of.wants_size:
            return Ask("stat", key, of.path)
        if not self.by_tail:
            offset, size = of.view()
            return Ask("view", key, of.path, offset, size)
        size, text, tries = self._tails.get(key, (-1, None, 0))
        if size < 0 or text is not None:
            return Ask("stat", key, of.path)
        del tries
        return Ask("tail", key, of.path, size=size - of.at)

    def _allowed(self, key: str) -> float:
        """Bytes of a file that may be logged now."""
        return self._shares.get(key, self.limit - min(_RESERVE, self.limit // 2) - self.spent)

    def _sized(self, key: str, of: OutputFile, size: int) -> str | None:
        """Take the size of a file; where there is no ``view``, it tells which text there is."""
        if of.wants_size:
            of.sized(size)
            if self._ending and key not in self._shares and self._allowed(key) <= 0:
                self._shares[key] = float("inf")
                files = sum(1 for other in self._active if not self._files[other].done)
                share = min(_RESERVE, self.limit // 2) // max(1, files)
                if size - of.logged > share:
                    of.leap(size, share)
            return None
        known, text, tries = self._tails.pop(key, (-1, None, 0))
        if text is None:
            if size <= of.at:
                return ""
            if size - of.at > of.most:
                of.leap(size, of.most - _BACK * _GRAIN)
            self._tails[key] = (size, None, tries)
            return None
        if size == known:
            return text
        if tries < _TRIES:  # it grew: nobody knows where the text begins
            self._tails[key] = (size, None, tries + 1)
        return None

    def _plan(self, key: str, of: OutputFile, now: float, *, news: bool) -> None:
        """When to read a file again: later and later while it is quiet."""
        if of.wants_size or key in self._tails or of.trims:
            return
        if self._ending:
            self.pause = _LATE if of.doubts else 0.0
            return
        pause = self.interval if news else min(self._pauses[key] * 2, self.interval * _QUIETEST)
        self._pauses[key] = pause
        self._due[key] = now + pause

    def _labelled(self, key: str, lines: list[str]) -> list[str]:
        element, _, stream = key.rpartition(" ")
        label = (f"[{element}] " if element else "") + ("stderr: " if stream == "stderr" else "")
        of = self._files[key]
        notes, of.notes = of.notes, []
        return [*notes, *(label + line for line in lines)]


def _unknown(error: HpcError) -> bool:
    """Whether the gateway does not know an operation."""
    if not isinstance(error, ApiError):
        return False
    text = error.message.lower()
    if error.status == 404:
        return "not found" in text and not any(word in text for word in ("no such file", "system", "job"))
    return error.status in (405, 501)


class LiveLogs:
    """Logs a job's output beside a wait in a worker, in a thread of its own: the wait is never longer by it.

    :param client: an open client
    :param logs: what to read
    :param say: logs one line
    :param clock: epoch seconds
    """

    def __init__(
        self, client: Client, logs: JobLogs, say: Say, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._client, self._logs, self._say, self._clock = client, logs, say, clock
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="hpc-logs", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End at once: a read that is under way counts no more."""
        with self._lock:
            self._ended.set()
        self._news.set()

    def saw(self, watch: Watch[Any]) -> None:
        """Take the last sight of the job."""
        with self._lock:
            self._logs.saw(watch, self._clock())
        self._news.set()

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self._step()
        except Exception as error:  # noqa: BLE001  a log that cannot be read fails no task
            self._tell([f"The job's output is not read any more before its end: {type(error).__name__}."])

    def _step(self) -> None:
        """Wait for something to read, and read it."""
        self._news.clear()
        with self._lock:
            if self._ended.is_set():
                return
            ask, due = self._logs.next(self._clock()), self._logs.due
        if ask is None:
            self._news.wait(min(max(0.0, due - self._clock()), _LONG))
            return
        try:
            answer = self._client.send(ask.call(self._logs.system))
        except HpcError as error:
            with self._lock:
                lines = [] if self._ended.is_set() else self._logs.missed(ask, error, self._clock())
            self._tell(lines)
            return
        slices = self._logs.took(ask, answer, self._clock())
        more = True
        while more:
            with self._lock:
                if self._ended.is_set():
                    break
                more = False
                for lines in itertools.islice(slices, 1):
                    more = True
                    for line in lines:
                        self._say(line)

    def _tell(self, lines: list[str]) -> None:
        with self._lock:
            for line in [] if self._ended.is_set() else lines:
                self._say(line)


async def follow_logs(
    logs: JobLogs,
    send: Callable[[Call[Any]], Awaitable[Any]],
    say: Say,
    news: asyncio.Event,
    *,
    clock: Callable[[], float] = time.time,
) -> None:
    """Log a job's output on an event loop, until cancelled; the state is always that of what was logged.

    :param logs: what to read
    :param send: carries out a call, in turn with others
    :param say: logs one line
    :param news: set after each sight that ``logs`` was told of
    :param clock: epoch seconds
    """
    warned = logs.begun is None or clock() - logs.begun < _SOON
    while True:
        news.clear()
        ask = logs.next(clock())
        if ask is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(logs.due - clock(), _LONG)):
                    await news.wait()
            continue
        try:
            answer = await send(ask.call(logs.system))
        except HpcError as error:
            for line in logs.missed(ask, error, clock()):
                say(line)
            continue
        for lines in logs.took(ask, answer, clock()):
            if not warned:
                say("This wait was taken up late, perhaps by another triggerer: some lines may come twice.")
                warned = True
            for line in lines:
                say(line)
            await asyncio.sleep(0)


def finish(
    client: Client,
    logs: JobLogs,
    job: Job | None,
    say: Say,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> None:
    """Log what is missing once the job is over.

    :param client: an open client
    :param logs: what to read
    :param job: the last sight of the job, if there is one
    :param say: logs one line
    :param sleep: waits for a file system that is behind
    :param clock: epoch seconds
    """
    logs.end(job)
    while (ask := logs.next(clock())) is not None:
        try:
            answer = client.send(ask.call(logs.system))
        except HpcError as error:
            for line in logs.missed(ask, error, clock()):
                say(line)
        else:
            for lines in logs.took(ask, answer, clock()):
                for line in lines:
                    say(line)
        if logs.pause:
            sleep(logs.pause)
    for line in logs.closing():
        say(line)
