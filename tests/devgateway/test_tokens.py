"""The token endpoint, and what the gateway says about tokens."""

import time
import uuid

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def ask(gateway, auth=None, **form):
    return httpx.post(gateway.token_url, data={"grant_type": "client_credentials", **form}, auth=auth)


def systems(gateway, token):
    return httpx.get(f"{gateway.url}/status/systems", headers={"authorization": f"Bearer {token}"})


def test_a_secret_in_the_form_or_in_the_header_gets_a_token(gateway):
    pair = gateway.client_id, gateway.client_secret
    for answer in (ask(gateway, client_id=pair[0], client_secret=pair[1]), ask(gateway, auth=pair)):
        body = answer.json()
        assert (answer.status_code, body["expires_in"], body["token_type"]) == (200, 300, "Bearer")
        assert systems(gateway, body["access_token"]).status_code == 200


def test_a_wrong_secret_is_refused(gateway):
    for form in ({"client_id": gateway.client_id, "client_secret": "x"}, {"client_id": "x"}, {}):
        answer = ask(gateway, **form)
        assert answer.status_code == 401
        assert answer.json() == {
            "error": "unauthorized_client",
            "error_description": "Invalid client or Invalid client credentials",
        }


def test_only_client_credentials_are_granted(gateway):
    answer = ask(gateway, (gateway.client_id, gateway.client_secret), grant_type="password")
    assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_grant_type")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_a_registered_key_gets_a_token_once_an_assertion(gateway, algorithm):
    key = (
        ec.generate_private_key(ec.SECP256R1())
        if algorithm == "ES256"
        else rsa.generate_private_key(65537, 2048)
    )
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    gateway.add_client(algorithm, public_key_pem=key.public_key().public_bytes(encoding, form).decode())
    claims = {"iss": algorithm, "sub": algorithm, "aud": gateway.token_url, "exp": time.time() + 60}
    assertion = jwt.encode({**claims, "jti": uuid.uuid4().hex}, key, algorithm)
    form = {"client_assertion_type": ASSERTION, "client_assertion": assertion}
    answer = ask(gateway, **form)
    assert answer.status_code == 200, answer.text
    assert systems(gateway, answer.json()["access_token"]).status_code == 200
    assert ask(gateway, **form).status_code == 400
    other = (
        rsa.generate_private_key(65537, 2048)
        if algorithm == "RS256"
        else ec.generate_private_key(ec.SECP256R1())
    )
    form["client_assertion"] = jwt.encode({**claims, "jti": "x"}, other, algorithm)
    assert ask(gateway, **form).status_code == 401


def test_a_refusal_hands_the_token_back(gateway):
    token = gateway.access_token(10)
    answer = systems(gateway, token)
    assert answer.status_code == 401
    assert answer.headers["auth-token"] == token


def test_tokens_can_expire_at_once(make_gateway):
    gateway = make_gateway()
    old = gateway.access_token()
    gateway.faults.expire_tokens()
    assert systems(gateway, old).json()["message"] == "Access token expired"
    assert systems(gateway, gateway.access_token()).status_code == 200


def test_lifetimes_are_configurable(make_gateway):
    gateway = make_gateway(token_lifetime=35, min_token_ttl=1)
    answer = ask(gateway, (gateway.client_id, gateway.client_secret))
    assert answer.json()["expires_in"] == 35
    assert systems(gateway, gateway.access_token(2)).status_code == 200
