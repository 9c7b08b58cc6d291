"""``Client`` and ``AsyncClient``: two short loops over one generator where retry, errors and reading meet."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import httpx

from .auth import TOKEN_REQUEST
from .calls import Call
from .errors import (
    BadAnswerError,
    HpcError,
    InvalidInputError,
    TokenUnavailableError,
    UnreachableError,
    asked_pause,
    error_for,
)
from .redact import guard_logs, redact
from .retry import RateBudget, RetryPolicy

__all__ = ["AsyncClient", "Client", "Observer", "Sent", "exchange", "storage_trust", "why_lost"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Outcome: TypeAlias = httpx.Response | httpx.TransportError | HpcError

# The request never left: nothing can have been done.
_UNSENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)
# What OpenSSL finds wrong with a certificate's form if it is to be strict: X509_V_ERR_INVALID_CA to
# X509_V_ERR_EC_KEY_EXPLICIT_PARAMS.
_MALFORMED = range(79, 95)


@dataclass(frozen=True, slots=True)
class Sent:
    """One try of a call, as an observer is told of it: nothing in it is secret or of one job alone.

    :param operation: see :attr:`Call.operation`
    :param system: name of the system it was about
    :param attempt: which try it was, from 1
    :param status: HTTP status of the answer; None if there is none, or none that can be read
    :param seconds: how long the answer took, with the time for a token if one had to be fetched
    """

    operation: str
    system: str | None
    attempt: int
    status: int | None
    seconds: float


Observer: TypeAlias = Callable[[Sent], None]


def exchange(call: Call[T], policy: RetryPolicy) -> Generator[float, Outcome, T]:
    """Carry out a call: yields seconds to wait before each try, takes its outcome, returns the result.

    :param call: what to do
    :param policy: when to try again
    :raises HpcError: the last outcome, once the policy gives up
    """
    attempt, wait = 0, 0.0
    while True:
        outcome = yield wait
        attempt += 1
        try:
            return _result(call, outcome)
        except HpcError as error:
            delay = policy.delay(attempt, error, replayable=call.replayable)
            if delay is None:
                raise
            wait = delay


def _result(call: Call[T], outcome: Outcome) -> T:
    """Read one outcome, or raise the error it means."""
    if isinstance(outcome, HpcError):
        raise outcome
    if isinstance(outcome, httpx.TransportError):
        raise _unreachable(call, outcome) from outcome
    if outcome.is_success:
        # A portal's page instead of an answer, which must not pass for done, nor for a file's content.
        if outcome.headers.get("content-type", "").startswith("text/html"):
            raise BadAnswerError(call.doing, f"the answer (HTTP {outcome.status_code}) is a web page.")
        return call.read(outcome)
    if outcome.is_error:
        return call.refused(error_for(call.doing, call.system, outcome))
    target = outcome.next_request.url.host if outcome.next_request else "another page"
    raise BadAnswerError(
        call.doing,
        f"the answer is a redirect (HTTP {outcome.status_code}) to {target}.",
        ambiguous=False,
        transient=False,
    )


def _unreachable(call: Call[T], error: httpx.TransportError) -> HpcError:
    """What a failed connection means, in words that name the host and the remedy."""
    try:
        url, for_token = error.request.url, TOKEN_REQUEST in error.request.extensions
    except RuntimeError:  # the error knows no request
        url, for_token = httpx.URL("https://gateway"), False
    words, passing = why_lost(error, url)
    if for_token:
        return TokenUnavailableError(
            f"Could not {call.doing}: no access token: token endpoint: {words}", transient=passing
        )
    return UnreachableError(call.doing, words, sent=not isinstance(error, _UNSENT), transient=passing)


def why_lost(error: httpx.TransportError, url: httpx.URL) -> tuple[str, bool]:
    """Why there is no answer, and whether a later try can help.

    :param url: what was asked for; the words name its host only
    """
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    at = f"{url.host}:{url.port}" if url.port else url.host
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"the host {url.host} does not resolve.", True
    if tls := next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None):
        refused = getattr(tls, "verify_message", "") or getattr(tls, "reason", "") or str(tls)
        hint = "If the centre has a CA of its own, set the connection's ca_bundle."
        if getattr(tls, "verify_code", 0) in _MALFORMED:
            hint = (
                "Python 3.13 and later refuse certificates against RFC 5280: the site has to renew its own."
            )
        return f"TLS with {at} failed: {refused}. {hint}", False
    if isinstance(error, httpx.TimeoutException):
        return f"{at} did not answer in time ({type(error).__name__}).", True
    if isinstance(error, httpx.ConnectError):
        return f"{at} refuses the connection: {error}.", True
    return f"the connection to {at} was lost: {str(error) or type(error).__name__}.", True


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(10.0, seconds))


@functools.lru_cache(maxsize=16)
def _tls(ca_bundle: str | None) -> ssl.SSLContext:
    """Trust of one CA bundle (None: certifi's, or SSL_CERT_FILE's); loading it takes tens of milliseconds."""
    if ca_bundle is None:
        return storage_trust()
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except OSError as error:  # no such file, or no certificates in it
        raise InvalidInputError(
            "ca_bundle", f"{ca_bundle} is no file of CA certificates: {error}."
        ) from error


@functools.lru_cache(maxsize=16)
def storage_trust(ca_bundle: str | None = None) -> ssl.SSLContext:
    """Trust of the usual CAs and of a bundle's: a storage may be the centre's own, or anybody's.

    :param ca_bundle: file of CA certificates
    """
    context = httpx.create_ssl_context()
    if ca_bundle is not None:
        context.load_verify_locations(cafile=ca_bundle)
    return context


class _Base:
    """What both clients are told."""

    def __init__(
        self,
        url: str,
        auth: httpx.Auth,
        *,
        timeout: float = 30.0,
        ca_bundle: str | None = None,
        policy: RetryPolicy | None = None,
        budget: RateBudget | None = None,
        observe: Observer | None = None,
    ) -> None:
        """Prepare; nothing is sent.

        :param url: URL of the gateway, with its path prefix if it has one
        :param auth: signs requests to the gateway's own origin
        :param timeout: seconds that connecting, sending and each read may take
        :param ca_bundle: file of CA certificates to trust instead of the usual ones
        :param policy: when to try again
        :param budget: how many requests a second; share one object to share the limit
        :param observe: told of each try, between two of them: it must be quick; once it has raised, it is
            told no more
        """
        guard_logs()
        self._url = httpx.URL(url.rstrip("/") + "/")
        self._auth = auth
        self._policy = policy or RetryPolicy()
        self._budget = budget or RateBudget()
        self._observe = observe
        self._options: dict[str, Any] = {"timeout": _timeout(timeout), "verify": _tls(ca_bundle)}
        self._ca_bundle = ca_bundle

    @property
    def storage_trust(self) -> ssl.SSLContext:
        """What TLS with the staging storage trusts: the usual CAs, and those of ``ca_bundle``."""
        return storage_trust(self._ca_bundle)

    def _request(self, http: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
        request = http.build_request(
            call.method,
            self._url.copy_with(raw_path=self._url.raw_path.rstrip(b"/") + call.path.encode()),
            params=dict(call.params) or None,
            json=call.json,
            files={"file": call.file} if call.file else None,
            # FirecREST takes UUIDs only, and answers 400 with an empty body to anything else.
            headers={"X-Request-ID": str(uuid.uuid4()), "Accept": "application/json, */*;q=0.5"},
        )
        request.read()  # so that it can be sent again after a 401
        return request

    def _heed(self, outcome: Outcome) -> None:
        """A gateway that asks one caller to slow down gets its pause from all that share the allowance."""
        if isinstance(outcome, httpx.Response) and outcome.status_code == httpx.codes.TOO_MANY_REQUESTS:
            self._budget.hold(min(asked_pause(outcome) or 0.0, self._policy.longest_retry_after))

    def _told(self, call: Call[Any], attempt: int, outcome: Outcome, seconds: float) -> None:
        """Tell the observer of one try; nothing it does can spoil the call."""
        if (observe := self._observe) is None:
            return
        status = outcome.status_code if isinstance(outcome, httpx.Response) else None
        try:
            observe(Sent(call.operation, call.system, attempt, status, seconds))
        except Exception as error:  # noqa: BLE001  whatever it is, the call goes on
            self._observe = None
            kind, text = type(error).__name__, redact(str(error))
            log.warning("The observer of requests failed and is told no more: %s: %s", kind, text)


class Client(_Base):
    """A blocking client of one gateway, for one identity; thread-safe.

    >>> with Client("https://api.example.org/firecrest/v2", auth) as client:
    ...     jobs = client.send(jobs.listing("daint"))
    """

    def __enter__(self) -> Self:
        """Open the connection pool."""
        self._http = httpx.Client(auth=self._auth, **self._options)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """Carry out a call, with retries.

        :raises HpcError: it failed, and no further try can help or is allowed
        """
        steps, attempt = exchange(call, self._policy), 0
        wait = next(steps)
        while True:
            time.sleep(wait)
            time.sleep(self._budget.reserve())
            attempt, began = attempt + 1, time.monotonic()
            outcome: Outcome
            try:
                outcome = self._http.send(self._request(self._http, call))
            except (httpx.TransportError, HpcError) as error:
                outcome = error
            except httpx.HTTPError as error:
                outcome = BadAnswerError(call.doing, f"{error}.")
            self._told(call, attempt, outcome, time.monotonic() - began)
            self._heed(outcome)
            try:
                wait = steps.send(outcome)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]


class AsyncClient(_Base):
    """The same on an event loop, for triggers: it looks and cancels, and never blocks the loop."""

    async def __aenter__(self) -> Self:
        """Open the connection pool."""
        self._http = httpx.AsyncClient(auth=self._auth, **self._options)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Carry out a call, with retries.

        :raises HpcError: it failed, and no further try can help or is allowed
        """
        steps, attempt = exchange(call, self._policy), 0
        wait = next(steps)
        while True:
            await asyncio.sleep(wait)
            await asyncio.sleep(self._budget.reserve())
            attempt, began = attempt + 1, time.monotonic()
            outcome: Outcome
            try:
                outcome = await self._http.send(self._request(self._http, call))
            except (httpx.TransportError, HpcError) as error:
                outcome = error
            except httpx.HTTPError as error:
                outcome = BadAnswerError(call.doing, f"{error}.")
            self._told(call, attempt, outcome, time.monotonic() - began)
            self._heed(outcome)
            try:
                wait = steps.send(outcome)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
