"""``Settings``: what an Airflow connection says about a gateway, checked once and free of I/O."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from .client.errors import InvalidInputError

__all__ = ["ConnectionLike", "Settings"]

_METHODS = ("client_secret_post", "client_secret_basic", "private_key_jwt")
# What Airflow's API shows in place of a secret, and of every field with a name like one.
_MASK = "***"

_PLACEHOLDERS = {"account", "job_id", "system"}
_SECRET = re.compile(r"(token|secret|passw|api_?key|auth)[^&]*=", re.IGNORECASE)


class ConnectionLike(Protocol):
    """The parts of an Airflow connection that are read here."""

    conn_id: Any
    host: Any
    port: Any
    schema: Any
    login: Any
    password: Any

    @property
    def extra_dejson(self) -> Any:
        """Extra fields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A checked connection.

    :param url: URL of the gateway
    :param token_url: URL of the token endpoint, unless there is an access token
    :param client_id: OAuth2 client id
    :param client_secret: its secret, or its private key in PEM
    :param token_auth_method: how the client proves itself to the token endpoint
    :param scope: scopes to ask for
    :param access_token: a ready token, used instead of client credentials
    :param system: system to use where an operator names none
    :param account: account to charge where an operator names none
    :param working_dir: absolute path below which jobs get their working directories
    :param ca_bundle: file of CA certificates to trust
    :param ui_url: the centre's web interface for people, or the pattern of its job pages
    :param timeout: seconds that connecting and each read may take
    :param max_requests_per_second: limit for everything in a process that uses this identity
    """

    conn_id: str
    url: str
    token_url: str | None = None
    client_id: str | None = None
    client_secret: str | None = field(default=None, repr=False)
    token_auth_method: str = "client_secret_post"  # noqa: S105  a method, not a secret
    scope: str | None = None
    access_token: str | None = field(default=None, repr=False)
    system: str | None = None
    account: str | None = None
    working_dir: str | None = None
    ca_bundle: str | None = None
    ui_url: str | None = None
    timeout: float = 30.0
    max_requests_per_second: float | None = None

    @property
    def identity(self) -> tuple[str, str]:
        """Which gateway is asked, and who asks."""
        if self.access_token:
            return self.url, hashlib.sha256(self.access_token.encode()).hexdigest()
        return self.url, self.client_id or ""

    @classmethod
    def from_connection(cls, connection: ConnectionLike) -> Settings:
        """Read and check a connection.

        :param connection: an Airflow connection of type ``firecrest``; null and empty mean not given
        :raises InvalidInputError: naming the field at fault
        """
        extra = _given(connection.extra_dejson)
        conn_id = str(connection.conn_id)
        for name, value in {"password": connection.password, **extra}.items():
            if value == _MASK:
                raise InvalidInputError(
                    name, f"is Airflow's mask {_MASK}, not a value; enter it anew (connection {conn_id})."
                )
        method = str(extra.get("token_auth_method", "client_secret_post"))
        if method not in _METHODS:
            raise InvalidInputError(
                "token_auth_method", f"{method!r} is not one of {', '.join(_METHODS)} (connection {conn_id})."
            )
        settings = cls(
            conn_id=conn_id,
            url=_gateway_url(connection),
            token_url=_url("token_url", extra.get("token_url"), conn_id) if extra.get("token_url") else None,
            client_id=connection.login or None,
            client_secret=connection.password or None,
            token_auth_method=method,
            scope=_text(extra, "scope"),
            access_token=_text(extra, "access_token"),
            system=_text(extra, "system"),
            account=_text(extra, "account"),
            working_dir=_text(extra, "working_dir"),
            ca_bundle=_text(extra, "ca_bundle"),
            ui_url=_page(_text(extra, "ui_url"), conn_id),
            timeout=_positive(extra, "timeout") or 30.0,
            max_requests_per_second=_positive(extra, "max_requests_per_second"),
        )
        settings._check_credentials()
        return settings

    def _check_credentials(self) -> None:
        if self.access_token:
            return
        missing = {
            "token_url": self.token_url,
            "login (client id)": self.client_id,
            "password (client secret)": self.client_secret,
        }
        for name, value in missing.items():
            if not value:
                raise InvalidInputError(
                    name,
                    f"connection {self.conn_id} has none; give client id, client secret and token_url, "
                    "or an access_token.",
                )


def _given(extra: Any) -> dict[str, Any]:
    """Extra fields that say something: the connections form stores untouched ones as null."""
    return {key: value for key, value in dict(extra or {}).items() if value is not None and value != ""}


def _text(extra: Mapping[str, Any], name: str) -> str | None:
    value = extra.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidInputError(name, f"must be text, not {type(value).__name__}.")
    return value.strip() or None if value else None


def _positive(extra: Mapping[str, Any], name: str) -> float | None:
    if name not in extra:
        return None
    try:
        number = float(extra[name])
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise InvalidInputError(name, f"must be a number above 0, not {extra[name]!r}.")
    return number


def _gateway_url(connection: ConnectionLike) -> str:
    """The gateway's URL from host, port and schema as the form, a URI or JSON fill them."""
    conn_id = str(connection.conn_id)
    host = (connection.host or "").strip()
    if not host:
        raise InvalidInputError(
            "host",
            f"connection {conn_id} names no gateway; give its URL, such as https://api.example.org/firecrest/v2.",
        )
    if "://" not in host:
        host = f"{connection.schema or 'https'}://{host}"
    url = urlsplit(_url("host", host, conn_id))
    if connection.port and url.port is None:
        name = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        url = url._replace(netloc=f"{name}:{connection.port}")
    return url.geturl().rstrip("/")


def _url(field_name: str, value: Any, conn_id: str) -> str:
    """A URL that may carry credentials: https, or http to this machine.

    :raises InvalidInputError: it is none, or would send credentials in the clear
    """
    text = str(value).strip()
    # What is wrong with a URL may be its secret's place in it, so that is not repeated.
    shown = repr(re.sub(r"//[^/]*@|(?<=[?#]).*", "***", text, flags=re.DOTALL))
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError as error:
        raise InvalidInputError(field_name, f"{shown} is no URL: {error} (connection {conn_id}).") from error
    plain = not re.search(r"[\s\\\x00-\x1f\x7f]", text)
    if not plain or url.scheme not in ("http", "https") or not url.hostname:
        raise InvalidInputError(field_name, f"{shown} is no http(s) URL (connection {conn_id}).")
    if url.username or url.password:
        raise InvalidInputError(field_name, f"must not hold a user name or password (connection {conn_id}).")
    if url.query or url.fragment:
        raise InvalidInputError(field_name, f"{shown} must end with its path (connection {conn_id}).")
    if url.scheme == "http" and not _is_loopback(url.hostname):
        raise InvalidInputError(
            field_name,
            f"{shown} would send tokens unencrypted to {url.hostname}; use https (connection {conn_id}).",
        )
    return text


def _page(text: str | None, conn_id: str) -> str | None:
    """A URL, or the pattern of one, that anybody may see and open.

    :raises InvalidInputError: it is none, or holds what nobody may see
    """
    if text is None:
        return None
    shown = repr(re.sub(r"//[^/]*@|(?<=[?#]).*", "***", text, flags=re.DOTALL))
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError as error:
        raise InvalidInputError("ui_url", f"{shown} is no URL: {error} (connection {conn_id}).") from error
    names = set(re.findall(r"{([^{}]*)}", text))
    odd = re.search(r"[\s\\\x00-\x1f\x7f\"<>{}]", re.sub(r"{[^{}]*}", "", text))
    if odd or url.scheme not in ("http", "https") or not url.hostname or "{" in url.netloc:
        raise InvalidInputError("ui_url", f"{shown} is no http(s) URL (connection {conn_id}).")
    if url.username is not None or _SECRET.search(url.query):
        raise InvalidInputError("ui_url", f"must not hold credentials: everybody sees it ({conn_id}).")
    if unknown := names - _PLACEHOLDERS:
        raise InvalidInputError(
            "ui_url",
            f"{shown}: {', '.join(sorted(unknown)) or 'an empty name'} in braces is none of "
            f"{', '.join(sorted(_PLACEHOLDERS))} (connection {conn_id}).",
        )
    if not names and (url.query or url.fragment):
        raise InvalidInputError("ui_url", f"{shown} must end with its path (connection {conn_id}).")
    return text


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
