"""What can go wrong, as one tree: each error says what failed, where, why, and whether a later try can help.

HpcError
├── InvalidInputError           refused here, before anything was sent
├── UnreachableError            no answer: refused or lost connection, time-out, TLS
├── BadAnswerError              an answer, but none of a FirecREST gateway (HTML, broken JSON)
├── TokenError                  no access token
│   ├── TokenRefusedError       the token endpoint refused the client
│   └── TokenUnavailableError   the token endpoint is down, slow or odd
├── ApiError                    the gateway said no
│   ├── BadRequestError         400
│   ├── UnauthorizedError       401
│   ├── AccessDeniedError       403
│   ├── QuotaError              403 of the scheduler's limits: room comes back
│   ├── NotFoundError           404
│   ├── TooLargeError           413
│   ├── RejectedError           500 in which the scheduler or the shell refused what was asked
│   ├── UnsupportedError        501
│   ├── RateLimitedError        429
│   └── UnavailableError        408, 424, other 5xx
├── TransferError               staged data did not arrive as sent
├── WatchError                  a wait ended without the thing waited for
└── JobError
    ├── JobFailedError          the job is over and did not complete
    └── JobLostError            the gateway no longer knows the job
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from .redact import redact

if TYPE_CHECKING:
    import httpx

__all__ = [
    "AccessDeniedError",
    "ApiError",
    "BadAnswerError",
    "BadRequestError",
    "HpcError",
    "InvalidInputError",
    "JobError",
    "JobFailedError",
    "JobLostError",
    "NotFoundError",
    "QuotaError",
    "RateLimitedError",
    "RejectedError",
    "TokenError",
    "TokenRefusedError",
    "TokenUnavailableError",
    "TooLargeError",
    "TransferError",
    "UnauthorizedError",
    "UnavailableError",
    "UnreachableError",
    "UnsupportedError",
    "WatchError",
    "asked_pause",
    "error_for",
]


class HpcError(Exception):
    """Root of the tree.

    :ivar transient: a later try of the same thing may well succeed
    :ivar ambiguous: the gateway may have done what was asked although it did not say so
    """

    transient = False
    ambiguous = False


class InvalidInputError(HpcError, ValueError):
    """Refused before anything was sent.

    :param field: the parameter, connection field or option at fault
    :param problem: what is wrong with it and what to do
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class UnreachableError(HpcError):
    """No answer came: the connection failed, was lost, or took too long.

    :param doing: what was being done
    :param cause: the transport's own words
    :param sent: whether the request may have reached the gateway
    :param transient: whether a later try can help
    """

    def __init__(self, doing: str, cause: str, *, sent: bool, transient: bool = True) -> None:
        fate = "It may or may not have been carried out." if sent else "It was not sent."
        super().__init__(f"Could not {doing}: {redact(cause)} {fate}")
        self.ambiguous = sent
        self.transient = transient


class BadAnswerError(HpcError):
    """An answer that FirecREST does not give: HTML, broken JSON, a redirect, missing fields."""

    def __init__(self, doing: str, problem: str, *, ambiguous: bool = True, transient: bool = True) -> None:
        super().__init__(
            f"Could not {doing}: {redact(problem)} "
            "Is the connection's host the URL of a FirecREST v2 gateway?"
        )
        self.ambiguous = ambiguous
        self.transient = transient


class TokenError(HpcError):
    """There is no access token to send."""


class TokenRefusedError(TokenError):
    """The token endpoint answered that it will not give this client a token."""


class TokenUnavailableError(TokenError):
    """The token endpoint did not answer, or answered with trouble of its own."""

    def __init__(self, message: str, *, transient: bool = True) -> None:
        super().__init__(redact(message))
        self.transient = transient


class ApiError(HpcError):
    """The gateway answered with an error.

    :param doing: what was being done, as an infinitive: ``read job 12``
    :param status: HTTP status
    :param message: the gateway's own message
    :param system: name of the system, if the call was about one
    :param request_id: id under which the gateway's operators find the request
    :param retry_after: seconds the gateway asked to wait, if it did
    """

    def __init__(
        self,
        doing: str,
        *,
        status: int,
        message: str,
        system: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        where = f" on system {system}" if system else ""
        text = f"Could not {doing}{where}: {message.strip().rstrip('.')}. (HTTP {status}"
        text += f", request {request_id})" if request_id else ")"
        super().__init__(f"{text} {self.advice}".rstrip())
        self.doing = doing
        self.status = status
        self.message = message
        self.system = system
        self.request_id = request_id
        self.retry_after = retry_after

    advice = ""


class BadRequestError(ApiError):
    """400: the gateway finds the request malformed, or a path outside its file systems."""


class UnauthorizedError(ApiError):
    """401: the token is refused, also after a fresh one was fetched."""

    advice = (
        "The gateway does not take this token: check that the connection's token_url and scope belong to "
        "this gateway, or that its access_token has not expired."
    )


class AccessDeniedError(ApiError):
    """403: the user may not."""


class QuotaError(ApiError):
    """403 of a scheduler limit: running jobs will make room."""

    transient = True
    advice = "Jobs that end make room: let the task retry later."


class NotFoundError(ApiError):
    """404: no such system, job or path."""


class TooLargeError(ApiError):
    """413: more bytes than the gateway moves in one request."""


class RejectedError(ApiError):
    """500 in which the scheduler or the shell refused what was asked; it will refuse it again."""


class UnsupportedError(ApiError):
    """501: not in this connection mode of the system."""


class RateLimitedError(ApiError):
    """429: too many requests."""

    transient = True


class UnavailableError(ApiError):
    """408, 424 or 5xx: the gateway or what stands behind it has trouble."""

    transient = True

    @property
    def ambiguous(self) -> bool:  # type: ignore[override]
        """A health gate (503) or a failed SSH login (424) stops a request before anything is done."""
        return self.status not in (424, 503)


class TransferError(HpcError):
    """Staged data is missing, short or different from what was sent."""

    def __init__(self, message: str, *, transient: bool = True) -> None:
        super().__init__(redact(message))
        self.transient = transient


class WatchError(HpcError):
    """A wait ended without the thing waited for: the gateway could not be asked, or would not answer."""

    def __init__(self, message: str, *, transient: bool = True) -> None:
        super().__init__(message)
        self.transient = transient


class JobError(HpcError):
    """Something about one job."""


class JobFailedError(JobError):
    """The job is over and its state is not COMPLETED.

    :param message: state, reason, exit code or signal, and the tail of its stderr
    :param state: the Slurm state
    :param transient: the infrastructure failed, not the job
    """

    def __init__(self, message: str, *, state: str, transient: bool = False) -> None:
        super().__init__(message)
        self.state = state
        self.transient = transient


class JobLostError(JobError):
    """The gateway does not know the job, and has not for longer than a new job may stay invisible."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequestError,
    401: UnauthorizedError,
    403: AccessDeniedError,
    404: NotFoundError,
    405: UnsupportedError,
    413: TooLargeError,
    422: BadRequestError,
    429: RateLimitedError,
    501: UnsupportedError,
}

# FirecREST answers 500 both when Slurm or the shell said no, which is final, and when something broke,
# which is not. The words of a no, as Slurm 22.05 to 24.11 and coreutils write them:
_REFUSALS = re.compile(
    r"invalid (account|partition|qos|job id|generic resource|feature|wckey|reservation|constraint|time)"
    r"|invalid dependency|bad job/step"
    r"|does not look like a batch script|DOS line breaks|unable to open file|unrecognized option"
    r"|invalid option|requested node configuration is not available|requested time limit is invalid"
    r"|more processors requested than permitted|memory specification can not be satisfied"
    r"|user's group not permitted|access/permission denied|permission denied|is a directory"
    r"|not a directory|file exists|no such file|directory not empty|field is required for job submission"
    r"|unexpected eof while looking|syntax error|invalid output|no ssh credentials|invalid argument"
    r"|invalid directive|invalid --|can not specify|already completing or completed",
    re.IGNORECASE,
)
_PASSING = re.compile(r"temporarily|timed out|try again|unable to contact|connection refused", re.IGNORECASE)


def error_for(doing: str, system: str | None, response: httpx.Response) -> ApiError:
    """Turn an error answer into the error it means.

    :param doing: what was being done, as an infinitive
    :param system: name of the system, if the call was about one
    :param response: an answer whose status is 400 or higher, body read
    :return: the error, with the gateway's own message
    """
    message = _message(response)
    status = response.status_code
    kind = _BY_STATUS.get(status, UnavailableError)
    if status == 403 and "limit" in message and "policy" in message:
        kind = QuotaError
    elif status == 500 and _REFUSALS.search(message) and not _PASSING.search(message):
        kind = RejectedError
    return kind(
        doing,
        status=status,
        message=redact(message),
        system=system,
        request_id=response.headers.get("x-request-id") or response.request.headers.get("x-request-id"),
        retry_after=asked_pause(response),
    )


def _message(response: httpx.Response) -> str:
    """The gateway's own words, whatever shape a proxy in between gave the body."""
    try:
        body: Any = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("message"), str):
        text = " ".join(re.sub(r"<[^>]*>", " ", response.text).split())
        return text[:300] or f"{response.reason_phrase} (empty answer)"
    message = _slurm_rest_message(body["message"]) or body["message"]
    causes = body.get("causedBy")
    causes = [str(cause).strip() for cause in causes if cause] if isinstance(causes, list) else []
    return "; ".join([message.strip(), *(cause for cause in causes if cause not in message)])


def _slurm_rest_message(message: str) -> str | None:
    """The one sentence inside slurmrestd's JSON, which FirecREST passes on whole."""
    found = re.search(r'"errors":\s*(\[.*?\])\s*,\s*"', message, re.DOTALL)
    if not found:
        return None
    try:
        errors = json.loads(found[1])
        return "; ".join(
            f"{error.get('description') or ''}: {error['error']}".lstrip(": ") for error in errors
        )
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None


def asked_pause(response: httpx.Response) -> float | None:
    """Seconds for which an answer asks not to be asked again; None if it does not.

    Retry-After (RFC 9110, 10.2.3); its date form is rare and read as unknown.
    """
    value = response.headers.get("retry-after")
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None
