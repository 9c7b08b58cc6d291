"""Faults on demand: a test says which calls go wrong, how, and how often.

A fault names its calls by operation (``submit``, ``jobs``, ``put_part``; see operations.py), by
``"METHOD regex"`` or by a regex of the path. Of several that match, the oldest serves first.
"""

import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode

from .operations import OPERATIONS, STORAGE_OPERATIONS

__all__ = ["Entry", "Fault", "Faults", "RequestLog"]

_NAMES = {*OPERATIONS, *STORAGE_OPERATIONS.values()}
_SECRET_QUERY = ("x-amz-signature", "x-amz-credential")
BAD_GATEWAY = "<html><head><title>502 Bad Gateway</title></head><body>502 Bad Gateway</body></html>"

When = Literal["before", "after"]


@dataclass(slots=True)
class Entry:
    """One request as the gateway saw it; ``status`` stays None when no answer left."""

    at: float
    method: str
    path: str
    query: str
    operation: str
    headers: dict[str, str] = field(repr=False)
    status: int | None = None
    fault: str | None = None
    seconds: float | None = None


class RequestLog:
    """The requests in the order of arrival, without signatures."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=100_000)

    def open(self, method: str, path: str, query: str, operation: str, headers: dict[str, str]) -> Entry:
        pairs = parse_qsl(query, keep_blank_values=True)
        safe = urlencode([(key, value) for key, value in pairs if key.lower() not in _SECRET_QUERY])
        kept = {name: value for name, value in headers.items() if name != "authorization"}
        entry = Entry(time.time(), method, path, safe, operation, kept)
        self._entries.append(entry)
        return entry

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, on: str) -> list[Entry]:
        """The requests that an operation name, ``"METHOD regex"`` or regex stands for."""
        wanted = _matcher(on)
        return [entry for entry in self if wanted(entry)]

    def count(self, on: str = "") -> int:
        return len(self.of(on))

    def clear(self) -> None:
        self._entries.clear()


def _matcher(on: str) -> Callable[[Entry], bool]:
    if on in _NAMES:
        return lambda entry: entry.operation == on
    method, separator, pattern = on.partition(" ")
    if not (separator and method.isupper()):
        method, pattern = "", on
    compiled = re.compile(pattern)
    return lambda entry: (not method or entry.method == method) and bool(compiled.search(entry.path))


@dataclass(slots=True)
class Fault:
    """What happens to the calls it matches; ``hits`` counts them."""

    on: str
    kind: str
    times: int | None = 1
    skip: int = 0
    probability: float = 1.0
    status: int | None = None
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    when: When = "before"
    cut: bool = False
    reset: bool = False
    seconds: float = 0.0
    chunk: int | None = None
    keep: float | None = None
    hits: int = 0

    @property
    def spent(self) -> bool:
        return self.times is not None and self.hits >= self.times


class Faults:
    """The faults in force; safe to change from any thread while the gateway serves."""

    def __init__(self, *, seed: int | None = None) -> None:
        self._lock = threading.Lock()
        self._faults: list[tuple[Fault, Callable[[Entry], bool]]] = []
        self._random = random.Random(seed)  # noqa: S311 - dice, not keys
        self.on_expire_tokens: Callable[[], None] = lambda: None
        #: A job is invisible for so many seconds after its submission.
        self.visibility_lag = 0.0
        #: An ended job's record is incomplete for so many seconds (name "allocation", no partition ...).
        self.accounting_lag = 0.0
        #: Jobs that answer 404 and are in no list.
        self.vanished: set[str] = set()
        self.on_expire_storage_urls: Callable[[], None] = lambda: None

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append((fault, _matcher(fault.on)))
        return fault

    def clear(self) -> None:
        """Back to health."""
        with self._lock:
            self._faults.clear()
        self.visibility_lag = self.accounting_lag = 0.0
        self.vanished = set()

    def take(self, entry: Entry) -> Fault | None:
        """The fault that this request meets, if any."""
        with self._lock:
            for fault, matches in self._faults:
                if fault.spent or not matches(entry):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                if self._random.random() >= fault.probability:
                    continue
                fault.hits += 1
                return fault
        return None

    def respond(
        self,
        status: int,
        body: Any = None,
        *,
        on: str = "",
        headers: Mapping[str, str] | None = None,
        when: When = "before",
        **how_often: Any,
    ) -> Fault:
        """Answer this instead: before the work (not done), or after it (done, but the answer is lost)."""
        if body is None:
            body = _error_body(f"Fault on demand: {status}")
        kind = f"respond {status}"
        fault = Fault(on, kind, status=status, body=body, headers=dict(headers or {}), when=when, **how_often)
        return self.add(fault)

    def rate_limit(self, retry_after: str | float | None = 1, *, on: str = "", **how_often: Any) -> Fault:
        headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        return self.respond(429, _error_body("Too many requests"), on=on, headers=headers, **how_often)

    def unhealthy(self, system: str, *, service: str = "scheduler", on: str = "", **how_often: Any) -> Fault:
        """The health gate's 503, as long as the fault lasts (for a lasting one see Gateway.set_health)."""
        text = f"The {service} service for the requested system ({system}) is unhealthy."
        return self.respond(503, _error_body(text), on=on, **how_often)

    def bad_gateway(self, *, on: str = "", when: When = "before", **how_often: Any) -> Fault:
        """A proxy's 502 in HTML."""
        return self.respond(502, BAD_GATEWAY, on=on, when=when, **how_often)

    def garbage(self, body: str = "<html>Sign in</html>", *, on: str = "", **how_often: Any) -> Fault:
        """A 200 that is no JSON."""
        return self.respond(200, body, on=on, **how_often)

    def cut(self, *, on: str = "", when: When = "before", reset: bool = False, **how_often: Any) -> Fault:
        """Close the connection without an answer, before or after the work; ``reset`` sends a RST."""
        return self.add(Fault(on, f"cut {when}", cut=True, when=when, reset=reset, **how_often))

    def lose_answer(self, *, on: str = "", status: int | None = None, **how_often: Any) -> Fault:
        """Do the work, then cut the connection, or answer ``status``."""
        if status is None:
            return self.cut(on=on, when="after", **how_often)
        text = "('Channel not open for sending',)" if status == 500 else "Fault on demand: answer lost"
        return self.respond(status, _error_body(text), on=on, when="after", **how_often)

    def delay(self, seconds: float, *, on: str = "", when: When = "before", **how_often: Any) -> Fault:
        return self.add(Fault(on, f"delay {when}", seconds=seconds, when=when, **how_often))

    def dribble(self, *, on: str = "", chunk: int = 1, pause: float = 0.01, **how_often: Any) -> Fault:
        """Send the true answer in small pieces with a pause between them."""
        return self.add(Fault(on, "dribble", chunk=chunk, seconds=pause, when="after", **how_often))

    def truncate(self, *, on: str = "", keep: float = 0.5, **how_often: Any) -> Fault:
        """Send the true answer's head and a part of its body, then close the connection."""
        return self.add(Fault(on, "truncate", keep=keep, when="after", **how_often))

    def vanish(self, job_id: str) -> None:
        self.vanished = {*self.vanished, str(job_id)}

    def reappear(self, job_id: str) -> None:
        self.vanished = self.vanished - {str(job_id)}

    def expire_tokens(self) -> None:
        """Every token handed out so far is expired now."""
        self.on_expire_tokens()

    def expire_storage_urls(self) -> None:
        """Every presigned URL handed out so far is expired now."""
        self.on_expire_storage_urls()


def _error_body(message: str) -> dict[str, Any]:
    return {"errorType": "error", "message": message, "causedBy": None, "data": None, "user": None}
