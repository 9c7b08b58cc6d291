"""Access tokens: OAuth2 client credentials (RFC 6749, 4.4) as an ``httpx.Auth``; the only user of Authlib."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import re
import threading
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus
from weakref import WeakKeyDictionary

import httpx

from .errors import InvalidInputError, TokenRefusedError, TokenUnavailableError
from .redact import redact

# Authlib is imported where it is used: DAG files are parsed often and need none of it.
if TYPE_CHECKING:
    from authlib.oauth2.rfc6749 import OAuth2Token

__all__ = ["TOKEN_REQUEST", "AccessToken", "ClientCredentials", "forget_tokens", "leeway"]

# Marks a token request in ``request.extensions``, so that a lost connection can be told from the gateway's.
TOKEN_REQUEST = "airflow_hpc_provider.token_request"  # noqa: S105  a name, not a secret

# FirecREST refuses a token with less than 30 s left; the rest is for clocks that differ and slow networks.
_REFUSED_BELOW = 30.0
_MARGIN = 15.0


def leeway(lifetime: float) -> float:
    """Seconds before its expiry at which a token is no longer used.

    :param lifetime: seconds the token was issued for
    """
    if lifetime <= _REFUSED_BELOW:
        return lifetime / 2
    return min(_REFUSED_BELOW + _MARGIN, _REFUSED_BELOW + (lifetime - _REFUSED_BELOW) / 2)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    default = {"https": 443, "http": 80}.get(url.scheme)
    return url.scheme, url.host, url.port or default


class AccessToken(httpx.Auth):
    """A ready token, sent to one origin only.

    :param gateway: URL of the gateway
    :param token: the access token
    """

    def __init__(self, gateway: str, token: str) -> None:
        self._origin = _origin(httpx.URL(gateway))
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Sign a request to the gateway's own origin; leave all others alone."""
        if _origin(request.url) == self._origin:
            request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


@dataclass(slots=True)
class _Slot:
    """The token of one identity, and the locks that make its callers wait for one request."""

    token: OAuth2Token | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    loops: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = field(
        default_factory=WeakKeyDictionary
    )

    def async_lock(self) -> asyncio.Lock:
        """A lock of the running event loop: asyncio's locks belong to one."""
        return self.loops.setdefault(asyncio.get_running_loop(), asyncio.Lock())


# One token for all clients of an identity in this process: a triggerer holds one client a task.
_slots: dict[tuple[str, ...], _Slot] = {}
os.register_at_fork(after_in_child=_slots.clear)


def forget_tokens() -> None:
    """Drop every token kept in this process."""
    _slots.clear()


class ClientCredentials(httpx.Auth):
    """Tokens of the client-credentials grant: fetched once for many callers, early, and again after a 401.

    :param gateway: URL of the gateway; only requests to its origin are signed
    :param token_url: URL of the token endpoint
    :param client_id: OAuth2 client id
    :param client_secret: the client's secret, or its private key (PEM) for ``private_key_jwt``
    :param method: ``client_secret_post``, ``client_secret_basic`` (RFC 6749, 2.3.1) or
        ``private_key_jwt`` (RFC 7523)
    :param scope: space-separated scopes
    """

    def __init__(
        self,
        gateway: str,
        *,
        token_url: str,
        client_id: str,
        client_secret: str,
        method: str = "client_secret_post",
        scope: str | None = None,
    ) -> None:
        from authlib.oauth2.auth import ClientAuth  # noqa: PLC0415

        self._origin = _origin(httpx.URL(gateway))
        self._token_url = token_url
        self._scope = scope
        if method == "private_key_jwt":
            key, signer = _private_key(client_secret, token_url)
            self._client = ClientAuth(client_id, key, signer)
        elif method == "client_secret_basic":
            # RFC 6749 encodes both as in a form first; Authlib does not, and knows Latin 1 only.
            self._client = ClientAuth(quote_plus(client_id), quote_plus(client_secret), method)
        else:
            self._client = ClientAuth(client_id, client_secret, method)
        digest = hashlib.sha256(client_secret.encode()).hexdigest()
        self._slot = _slots.setdefault((token_url, client_id, digest, method, scope or ""), _Slot())

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Sign, and once more with a new token after a 401. Every body we send can be sent again."""
        if _origin(request.url) != self._origin:
            yield request
            return
        refused: OAuth2Token | None = None
        for _ in range(2):
            with self._slot.lock:
                token = self._usable(refused)
                if token is None:
                    answer = yield self._token_request(request)
                    answer.read()
                    token = self._keep(answer)
            response = yield _signed(request, token)
            if response.status_code != httpx.codes.UNAUTHORIZED:
                return
            refused = token

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """The same on an event loop."""
        if _origin(request.url) != self._origin:
            yield request
            return
        refused: OAuth2Token | None = None
        for _ in range(2):
            async with self._slot.async_lock():
                token = self._usable(refused)
                if token is None:
                    answer = yield self._token_request(request)
                    await answer.aread()
                    token = self._keep(answer)
            response = yield _signed(request, token)
            if response.status_code != httpx.codes.UNAUTHORIZED:
                return
            refused = token

    def _usable(self, refused: OAuth2Token | None) -> OAuth2Token | None:
        """The kept token, unless it is the refused one or near its end."""
        token = self._slot.token
        if token is None or (refused and token["access_token"] == refused["access_token"]):
            return None
        spare = math.ceil(leeway(float(str(token["expires_in"] or 0))))
        return None if token.is_expired(spare) else token

    def _token_request(self, like: httpx.Request) -> httpx.Request:
        from authlib.oauth2.rfc6749.parameters import prepare_token_request  # noqa: PLC0415

        body = prepare_token_request("client_credentials", **({"scope": self._scope} if self._scope else {}))
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        url, headers, body = self._client.prepare("POST", self._token_url, headers, body)  # type: ignore[no-untyped-call]
        # A bare request inside an auth flow has no time-out: it takes over the one of the signed request.
        extensions = {**like.extensions, TOKEN_REQUEST: True}
        return httpx.Request("POST", url, headers=headers, content=body, extensions=extensions)

    def _keep(self, answer: httpx.Response) -> OAuth2Token:
        """Keep the token of an answer.

        :raises TokenRefusedError: the endpoint says no
        :raises TokenUnavailableError: the endpoint has trouble, or its answer is none
        """
        try:
            body: Any = answer.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            body = {}
        host = answer.request.url.host
        token = body.get("access_token")
        # Only what RFC 6750 lets a token consist of: anything else could not be sent, or not as one header.
        if answer.is_success and isinstance(token, str) and re.fullmatch(r"[\w.~+/=-]+", token, re.ASCII):
            body.pop("expires_at", None)
            body["expires_in"] = _seconds(body.get("expires_in"))
            from authlib.oauth2.rfc6749 import OAuth2Token  # noqa: PLC0415

            self._slot.token = OAuth2Token(body)
            return self._slot.token
        said = " ".join(str(body[key]) for key in ("error", "error_description") if body.get(key))
        said = redact(said) or "no OAuth2 answer"
        text = f"The token endpoint on {host} answered HTTP {answer.status_code}: {said}."
        if answer.is_client_error and answer.status_code not in (408, 425, 429):
            raise TokenRefusedError(
                f"{text} Check the connection's login (client id), password (client secret), token_url, "
                "token_auth_method and scope."
            )
        raise TokenUnavailableError(text)


def _signed(request: httpx.Request, token: OAuth2Token) -> httpx.Request:
    request.headers["Authorization"] = f"Bearer {token['access_token']}"
    return request


def _seconds(value: Any) -> int | None:
    """``expires_in`` as sent by endpoints that make a text of it, or leave it out."""
    try:
        return min(max(1, int(value)), 10**9)
    except (TypeError, ValueError, OverflowError):
        return None


def _unfolded(pem: str) -> str:
    """A key whose line ends a form has dropped or made blanks of, with its lines again (RFC 7468)."""
    found = re.fullmatch(
        r"\s*(-----BEGIN [A-Z ]+-----)(.*?)(-----END [A-Z ]+-----)(?:\s|\\n)*", pem, re.DOTALL
    )
    if not found:
        return pem
    body = re.sub(r"\s+|\\n", "", found[2])
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return "\n".join([found[1], *lines, found[3], ""])


def _private_key(pem: str, token_url: str) -> tuple[Any, Any]:
    """Key and signer for ``private_key_jwt``; imported here, since few connections need the cryptography."""
    from authlib.oauth2.rfc7523 import PrivateKeyJWT  # noqa: PLC0415
    from joserfc.errors import JoseError  # noqa: PLC0415
    from joserfc.jwk import ECKey, OKPKey, RSAKey  # noqa: PLC0415

    curves = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}
    for kind in (RSAKey, ECKey, OKPKey):
        try:
            key = kind.import_key(_unfolded(pem))
        except (JoseError, ValueError, TypeError):
            continue
        algorithm = "RS256" if kind is RSAKey else curves.get(str(key.get("crv")))
        if key.is_private and algorithm:
            return key, PrivateKeyJWT(token_url, alg=algorithm)
    raise InvalidInputError(
        "password",
        "with token_auth_method private_key_jwt it must hold an RSA, EC or Ed25519 private key in PEM.",
    )
