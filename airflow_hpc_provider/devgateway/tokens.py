"""The identity provider: client credentials in, short-lived signed tokens out."""

import base64
import binascii
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

import jwt

from .errors import GatewayError

__all__ = ["Client", "Refused", "Tokens"]

_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
_SCOPE = "openid profile email firecrest"


class Refused(Exception):  # noqa: N818 - RFC 6749 calls it an error response, not an error
    """The token endpoint's error response."""

    def __init__(self, status: int, error: str, description: str) -> None:
        super().__init__(description)
        self.status = status
        self.body = {"error": error, "error_description": description}


@dataclass(frozen=True, slots=True)
class Client:
    """A registered client: it proves itself by a secret or by a key."""

    client_id: str
    user: str
    secret: str | None = None
    public_key_pem: str | None = None


def _refused_client() -> Refused:
    return Refused(401, "unauthorized_client", "Invalid client or Invalid client credentials")


class Tokens:
    """Mints and checks the gateway's access tokens."""

    def __init__(self, *, lifetime: float, min_ttl: float, issuer: str = "devgateway") -> None:
        self.lifetime = lifetime
        self.min_ttl = min_ttl
        self.token_url = ""
        self._issuer = issuer
        self._key = secrets.token_bytes(64)
        self._clients: dict[str, Client] = {}
        self._seen_assertions: set[str] = set()
        self._expired_before = 0.0
        self._lock = threading.Lock()

    def register(self, client: Client) -> None:
        with self._lock:
            self._clients[client.client_id] = client

    def expire_all(self) -> None:
        """Every token minted so far is expired from now on."""
        self._expired_before = time.time()

    def mint(self, client: Client, lifetime: float | None = None) -> str:
        now = time.time()
        claims = {
            "iss": self._issuer,
            "aud": "account",
            "azp": client.client_id,
            "sub": client.client_id,
            "preferred_username": client.user,
            "scope": _SCOPE,
            "iat": now,
            "exp": now + (self.lifetime if lifetime is None else lifetime),
            "jti": secrets.token_hex(8),
        }
        return jwt.encode(claims, self._key, algorithm="HS512")

    def grant(self, form: Mapping[str, str], authorization: str | None) -> dict[str, Any]:
        """Answer a token request (RFC 6749, section 4.4)."""
        client = self._authenticate(form, authorization)
        if form.get("grant_type") != "client_credentials":
            raise Refused(400, "unsupported_grant_type", "Unsupported grant_type")
        return {
            "access_token": self.mint(client),
            "expires_in": int(self.lifetime),
            "refresh_expires_in": 0,
            "token_type": "Bearer",
            "not-before-policy": 0,
            "scope": _SCOPE,
        }

    def user_of(self, authorization: str | None) -> str:
        """The user whom a request's Authorization header speaks for."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise GatewayError(401, "Not authenticated", headers={"www-authenticate": "Bearer"})
        # The real gateway hands the whole token back in a header of the refusal.
        headers = {"auth-token": token.strip()}
        try:
            claims = jwt.decode(
                token.strip(),
                self._key,
                algorithms=["HS512"],
                audience="account",
                options={"verify_exp": False},
            )
            expires, issued = float(claims["exp"]), float(claims["iat"])
        except (jwt.InvalidTokenError, KeyError, ValueError):
            raise GatewayError(401, "Access token is invalid.", headers=headers) from None
        left = expires - time.time()
        if left <= 0 or issued <= self._expired_before:
            raise GatewayError(401, "Access token expired", headers=headers)
        if left < self.min_ttl:
            text = f"Access token expires too soon (less than {self.min_ttl:g}s remaining)."
            raise GatewayError(401, text, headers=headers)
        return str(claims["preferred_username"])

    def _authenticate(self, form: Mapping[str, str], authorization: str | None) -> Client:
        if form.get("client_assertion_type") == _ASSERTION:
            return self._by_assertion(form.get("client_assertion", ""))
        if authorization and authorization.lower().startswith("basic "):
            return self._by_secret(*_basic(authorization))
        return self._by_secret(form.get("client_id", ""), form.get("client_secret", ""))

    def _by_secret(self, client_id: str, secret: str) -> Client:
        client = self._clients.get(client_id)
        if client is None or client.secret is None:
            raise _refused_client()
        if not secrets.compare_digest(client.secret.encode(), secret.encode()):
            raise _refused_client()
        return client

    def _by_assertion(self, assertion: str) -> Client:
        try:
            named = jwt.decode(assertion, options={"verify_signature": False})
            client = self._clients[str(named["sub"])]
            claims = jwt.decode(
                assertion,
                client.public_key_pem or "",
                algorithms=_ALGORITHMS,
                audience=[self.token_url, self._issuer],
                issuer=client.client_id,
                options={"require": ["exp", "iss", "sub", "aud"]},
            )
        except (jwt.PyJWTError, KeyError, ValueError):
            raise _refused_client() from None
        return self._once(client, str(claims.get("jti", assertion)))

    def _once(self, client: Client, assertion_id: str) -> Client:
        """An assertion serves one time, as Keycloak holds it."""
        with self._lock:
            if assertion_id in self._seen_assertions:
                raise Refused(400, "invalid_client", "Token reuse detected")
            self._seen_assertions.add(assertion_id)
        return client


def _basic(authorization: str) -> tuple[str, str]:
    try:
        pair = base64.b64decode(authorization[6:], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise _refused_client() from None
    client_id, _, secret = pair.partition(":")
    return unquote_plus(client_id), unquote_plus(secret)
