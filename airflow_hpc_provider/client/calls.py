"""``Call[T]``: a request as a value: what to send, how to read the answer, whether it may be repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

from .errors import ApiError, BadAnswerError, InvalidInputError

if TYPE_CHECKING:
    import httpx

__all__ = ["Call", "JSONObject", "nothing", "path", "plain", "read_json", "reading"]

T = TypeVar("T")
U = TypeVar("U")
JSONObject = dict[str, Any]


def _fail(error: ApiError) -> Any:
    raise error


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """A request as a value. ``Client.send(call)`` and ``AsyncClient.send(call)`` carry it out.

    :param doing: what it does, as an infinitive, for error texts: ``read job 12``
    :param method: HTTP method
    :param path: path below the gateway's URL, segments percent-encoded (see :func:`path`)
    :param read: turns a successful answer into the result; raises ``BadAnswerError`` if it cannot
    :param replayable: carrying it out twice leaves the same state as once, so it may be repeated even when
        its fate is unknown; others are repeated only when the gateway surely did nothing
    :param system: name of the system it is about
    :param params: query parameters
    :param json: JSON body
    :param file: file name and content of a multipart upload
    :param refused: turns an error answer that is no failure into the result; re-raises all others
    """

    doing: str
    method: str
    path: str
    read: Callable[[httpx.Response], T]
    replayable: bool
    system: str | None = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    file: tuple[str, bytes] | None = None
    refused: Callable[[ApiError], T] = _fail

    @property
    def operation(self) -> str:
        """Method and path without the names of systems and jobs: one of few words, for counting calls."""
        name = quote(self.system, safe="") if self.system else None
        area, *segments = self.path.strip("/").split("/")
        if segments[:1] == [name]:
            segments = segments[1:]
        # An id of a job begins with a digit, a word of the API with none.
        words = ["id" if segment[:1].isdigit() else segment for segment in segments]
        return ".".join([self.method.lower(), area, *words])

    def then(self, change: Callable[[T], U]) -> Call[U]:
        """The same call with its result changed by a function."""
        call: Call[Any] = self
        return replace(
            call,
            read=lambda response: change(self.read(response)),
            refused=lambda error: change(self.refused(error)),
        )


def path(*segments: str) -> str:
    """A path below the gateway's URL.

    :param segments: raw segments; each is percent-encoded, so that none can add segments of its own
    :raises InvalidInputError: a segment is empty or takes another one away (``..``)
    """
    for segment in segments:
        if segment in ("", ".", ".."):
            raise InvalidInputError("name", f"{segment!r} is no name of a system and no id of a job.")
    return "/" + "/".join(quote(segment, safe="") for segment in segments)


def nothing(_: httpx.Response) -> None:
    """Read an answer that says nothing but success."""


def read_json(response: httpx.Response) -> JSONObject:
    """The JSON object in an answer.

    :raises ValueError: the body is no JSON
    :raises TypeError: it is JSON, but no object
    """
    body = response.json()
    if not isinstance(body, dict):
        raise TypeError(f"a JSON {type(body).__name__} instead of an object")
    return body


def plain(raw: Any) -> JSONObject:
    """A JSON object in one spelling: FirecREST mixes ``maxPartSize`` and ``max_part_size``, null and missing.

    :param raw: what should be a JSON object
    :return: its members, but for nulls, with keys in lower case and without underscores
    :raises AttributeError: it is none
    """
    return {key.replace("_", "").lower(): value for key, value in raw.items() if value is not None}


def reading(doing: str, build: Callable[[JSONObject], T]) -> Callable[[httpx.Response], T]:
    """A ``Call.read`` for JSON answers.

    :param doing: what the call does, as an infinitive
    :param build: builds the result from the JSON object; may raise ``LookupError``, ``TypeError``,
        ``ValueError`` or ``AttributeError``
    :return: a reader that raises ``BadAnswerError`` for anything that is not such an answer
    """

    def read(response: httpx.Response) -> T:
        try:
            return build(read_json(response))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            kind = response.headers.get("content-type", "no content type")
            raise BadAnswerError(
                doing, f"the answer (HTTP {response.status_code}, {kind}) is not FirecREST's: {error!r}."
            ) from error

    return read
