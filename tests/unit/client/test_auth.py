"""Access tokens: a real token endpoint and a real gateway on two ports, blocking and on an event loop."""

import asyncio
import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from urllib.parse import unquote_plus

import httpx
import jwt
import pytest
from authlib.oauth2.rfc6749 import wrappers
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import WORLDS, Lost, Reply, Request, Silence, closed_port, gateway_error, in_turn, serve

from airflow_hpc_provider.client import auth
from airflow_hpc_provider.client.auth import AccessToken, ClientCredentials, forget_tokens, leeway
from airflow_hpc_provider.client.calls import Call, path, reading
from airflow_hpc_provider.client.errors import (
    InvalidInputError,
    TokenRefusedError,
    TokenUnavailableError,
    UnauthorizedError,
)
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.client.session import AsyncClient, Client

POLICY = RetryPolicy(attempts=3, base=0)
LOOK: Call[str] = Call(
    doing="look",
    method="GET",
    path=path("status", "systems"),
    read=reading("look", lambda body: str(body["token"])),
    replayable=True,
)
SECRET = "s3cret+/= %é"


@pytest.fixture(autouse=True)
def _fresh_tokens():
    forget_tokens()
    yield
    forget_tokens()


@pytest.fixture(params=WORLDS, ids=["blocking", "on-loop"])
def world(request):
    return request.param


@dataclass
class Issuer:
    """A token endpoint that numbers its tokens."""

    fields: dict = field(default_factory=lambda: {"token_type": "Bearer", "expires_in": 300})
    issued: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, _: Request) -> Reply:
        with self.lock:
            self.issued += 1
            return Reply(200, {"access_token": f"token-{self.issued}"} | self.fields)


def echo(request: Request) -> Reply:
    """A gateway that tells which token it got."""
    return Reply(200, {"token": request.token})


def credentials(gateway, issuer, **changes):
    options = {"token_url": f"{issuer.url}/token", "client_id": "airflow", "client_secret": SECRET}
    return ClientCredentials(gateway.url, **(options | changes))


def ask(world, gateway, issuer, *calls, timeout=30.0, **changes):
    """Results of calls sent one after another by one client."""
    with world(
        gateway.url, credentials(gateway, issuer, **changes), policy=POLICY, timeout=timeout
    ) as client:
        return [client.send(call) for call in calls or (LOOK,)]


def test_one_token_serves_many_calls_and_clients(world):
    with serve(echo) as gateway, serve(Issuer()) as issuer:
        assert ask(world, gateway, issuer, LOOK, LOOK) == ["token-1"] * 2
        assert ask(world, gateway, issuer) == ["token-1"]
        assert len(issuer.requests) == 1


def test_both_worlds_share_a_token():
    with serve(echo) as gateway, serve(Issuer()) as issuer:
        assert [ask(world, gateway, issuer)[0] for world in WORLDS] == ["token-1"] * 2


@pytest.mark.parametrize("change", [{"client_id": "other"}, {"client_secret": "other"}, {"scope": "other"}])
def test_another_identity_gets_another_token(world, change):
    with serve(echo) as gateway, serve(Issuer()) as issuer:
        assert ask(world, gateway, issuer) == ["token-1"]
        assert ask(world, gateway, issuer, **change) == ["token-2"]


def test_the_secret_travels_in_the_form(world):
    with serve(echo) as gateway, serve(Issuer()) as issuer:
        ask(world, gateway, issuer)
        request = issuer.requests[0]
    assert (request.method, request.target) == ("POST", "/token")
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.form == {
        "grant_type": "client_credentials",
        "client_id": "airflow",
        "client_secret": SECRET,
    }
    assert "authorization" not in request.headers


def test_the_scope_is_sent(world):
    with serve(echo) as gateway, serve(Issuer()) as issuer:
        ask(world, gateway, issuer, scope="openid firecrest")
        assert issuer.requests[0].form["scope"] == "openid firecrest"


def test_basic_authentication_encodes_id_and_secret_as_the_rfc_says(world):
    with serve(echo) as gateway, serve(Issuer()) as issuer:
        ask(world, gateway, issuer, method="client_secret_basic", client_id="air:flow")
        request = issuer.requests[0]
    scheme, _, value = request.headers["authorization"].partition(" ")
    assert scheme == "Basic"
    parts = base64.b64decode(value).decode("ascii").split(":")
    assert [unquote_plus(part) for part in parts] == ["air:flow", SECRET]
    assert request.form == {"grant_type": "client_credentials"}


def pem(key, form=PrivateFormat.PKCS8, encryption=None):
    return key.private_bytes(Encoding.PEM, form, encryption or NoEncryption()).decode()


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (RSA, "RS256"),
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (ec.generate_private_key(ec.SECP521R1()), "ES512"),
        pytest.param(
            ed25519.Ed25519PrivateKey.generate(),
            "EdDSA",
            # joserfc prefers the new name of RFC 9864, which identity providers do not know yet.
            marks=pytest.mark.filterwarnings("ignore:EdDSA is deprecated"),
        ),
    ],
    ids=["RSA", "P-256", "P-384", "P-521", "Ed25519"],
)
def test_a_private_key_signs_an_assertion_that_its_public_key_verifies(world, key, algorithm):
    with serve(echo) as gateway, serve(Issuer()) as issuer:
        assert ask(world, gateway, issuer, method="private_key_jwt", client_secret=pem(key)) == ["token-1"]
        form = issuer.requests[0].form
        claims = jwt.decode(
            form["client_assertion"],
            key.public_key(),
            algorithms=[algorithm],
            audience=f"{issuer.url}/token",
            options={"require": ["iss", "sub", "aud", "exp", "jti"]},
        )
    assert claims["iss"] == claims["sub"] == "airflow"
    assert form["grant_type"] == "client_credentials"
    assert form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    assert "client_secret" not in form


@pytest.mark.parametrize("end", [" ", "", "\r\n", "\\n"], ids=["blanks", "nothing", "CRLF", "escapes"])
def test_a_private_key_survives_a_form_that_makes_one_line_of_it(world, end):
    with serve(echo) as gateway, serve(Issuer()) as issuer:
        folded = pem(RSA).replace("\n", end)
        assert ask(world, gateway, issuer, method="private_key_jwt", client_secret=folded) == ["token-1"]


def test_each_assertion_is_used_once(world):
    with serve(in_turn(gateway_error(401, "Expired"))) as gateway, serve(Issuer()) as issuer:
        with pytest.raises(UnauthorizedError):
            ask(world, gateway, issuer, method="private_key_jwt", client_secret=pem(RSA))
        assertions = {request.form["client_assertion"] for request in issuer.requests}
    assert len(assertions) == 2


@pytest.mark.parametrize(
    "key",
    [
        "no key at all",
        "",
        pem(RSA, encryption=BestAvailableEncryption(b"x")),
        pem(ec.generate_private_key(ec.SECP256K1())),
        RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
    ],
    ids=["text", "empty", "encrypted", "odd curve", "public"],
)
def test_a_key_that_cannot_sign_is_refused_before_anything_is_sent(key):
    with pytest.raises(InvalidInputError, match=r"password: .*private key in PEM") as caught:
        ClientCredentials(
            "https://gateway",
            token_url="https://issuer/token",
            client_id="airflow",
            client_secret=key,
            method="private_key_jwt",
        )
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    ("lifetime", "spare"), [(300, 45), (60, 45), (40, 35), (32, 31), (30, 15), (10, 5), (1, 0.5)]
)
def test_the_spare_time_of_a_token_is_as_designed(lifetime, spare):
    assert leeway(lifetime) == spare


@given(st.floats(min_value=0.001, max_value=10**9))
def test_no_token_is_kept_into_its_last_30_seconds_nor_for_no_time_at_all(lifetime):
    assert 0 < leeway(lifetime) <= lifetime
    if lifetime > 30:
        assert leeway(lifetime) >= 30


@settings(max_examples=30)
@given(
    lifetime=st.integers(1, 400),
    start=st.floats(1e9, 2e9),
    pauses=st.lists(st.floats(0, 200), min_size=1, max_size=6),
)
def test_a_token_with_less_than_30_seconds_left_is_never_sent(lifetime, start, pauses):
    clock = SimpleNamespace(now=start)
    ends: dict[str, float] = {}
    issuing = Issuer({"expires_in": lifetime})

    def issue(request: Request) -> Reply:
        reply = issuing(request)
        ends[reply.body["access_token"]] = clock.now + lifetime
        return reply

    forget_tokens()
    with pytest.MonkeyPatch.context() as patch, serve(echo) as gateway, serve(issue) as issuer:
        patch.setattr(wrappers, "time", SimpleNamespace(time=lambda: clock.now))
        with Client(gateway.url, credentials(gateway, issuer), policy=POLICY) as client:
            for pause in pauses:
                clock.now += pause
                left = ends[client.send(LOOK)] - clock.now
                assert left > 0
                assert left >= min(30, lifetime / 2 - 1) or left == lifetime


def test_a_token_is_renewed_before_its_end_but_not_long_before(world, monkeypatch):
    clock = SimpleNamespace(now=1_800_000_000.0)
    monkeypatch.setattr(wrappers, "time", SimpleNamespace(time=lambda: clock.now))
    with serve(echo) as gateway, serve(Issuer()) as issuer:
        assert ask(world, gateway, issuer) == ["token-1"]
        clock.now += 254
        assert ask(world, gateway, issuer) == ["token-1"]
        clock.now += 2
        assert ask(world, gateway, issuer) == ["token-2"]


@pytest.mark.parametrize("expires_in", ["300", 300.9, None, "soon", [], 10**30, float("inf")])
def test_odd_lifetimes_are_read_or_taken_for_unknown(world, expires_in):
    with serve(echo) as gateway, serve(Issuer({"expires_in": expires_in})) as issuer:
        assert ask(world, gateway, issuer, LOOK, LOOK) == ["token-1"] * 2


def test_a_missing_lifetime_is_unknown(world):
    with serve(echo) as gateway, serve(Issuer({"expires_at": 1})) as issuer:
        assert ask(world, gateway, issuer, LOOK, LOOK) == ["token-1"] * 2


@pytest.mark.parametrize("expires_in", [0, -5, 1])
def test_a_token_that_ends_at_once_is_used_once(world, expires_in):
    with serve(echo) as gateway, serve(Issuer({"expires_in": expires_in})) as issuer:
        assert ask(world, gateway, issuer, LOOK, LOOK) == ["token-1", "token-2"]


def test_20_threads_fetch_one_token():
    together = threading.Barrier(20)

    def look(client):
        together.wait(10)
        return client.send(LOOK)

    with serve(echo) as gateway, serve(Issuer()) as issuer:
        with ThreadPoolExecutor(20) as pool:
            clients = [Client(gateway.url, credentials(gateway, issuer), policy=POLICY) for _ in range(20)]
            for client in clients:
                client.__enter__()
            tokens = list(pool.map(look, clients))
            for client in clients:
                client.__exit__(None, None, None)
        assert tokens == ["token-1"] * 20
        assert len(issuer.requests) == 1


def test_20_tasks_fetch_one_token_with_an_endpoint_that_takes_its_time():
    asked, go = threading.Event(), threading.Event()
    issue = Issuer()

    def slowly(request: Request) -> Reply:
        asked.set()
        go.wait(10)
        return issue(request)

    async def all_at_once(gateway, issuer):
        async def look():
            async with AsyncClient(gateway.url, credentials(gateway, issuer), policy=POLICY) as client:
                return await client.send(LOOK)

        tasks = [asyncio.ensure_future(look()) for _ in range(20)]
        await asyncio.to_thread(asked.wait, 10)
        go.set()
        return await asyncio.gather(*tasks)

    with serve(echo) as gateway, serve(slowly) as issuer:
        assert asyncio.run(all_at_once(gateway, issuer)) == ["token-1"] * 20
        assert len(issuer.requests) == 1


def test_a_cancelled_task_leaves_the_way_free_for_the_others():
    asked = threading.Event()
    late = in_turn(Silence(), Reply(200, {"access_token": "second", "expires_in": 300}))

    def answer(request: Request):
        asked.set()
        return late(request)

    async def give_up_then_ask(gateway, issuer):
        async with AsyncClient(gateway.url, credentials(gateway, issuer), policy=POLICY) as client:
            first = asyncio.ensure_future(client.send(LOOK))
            await asyncio.to_thread(asked.wait, 10)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            return await client.send(LOOK)

    with serve(echo) as gateway, serve(answer) as issuer:
        assert asyncio.run(give_up_then_ask(gateway, issuer)) == "second"


def test_a_refused_token_is_replaced_once_and_the_body_sent_again(world):
    def picky(request: Request) -> Reply:
        return echo(request) if request.token == "token-2" else gateway_error(401, "Access token expired")

    post = replace(LOOK, method="POST", json={"job": {"name": "x"}}, replayable=False)
    with serve(picky) as gateway, serve(Issuer()) as issuer:
        assert ask(world, gateway, issuer, post, LOOK) == ["token-2"] * 2
        assert [request.token for request in gateway.requests] == ["token-1", "token-2", "token-2"]
        assert [request.json for request in gateway.requests[:2]] == [{"job": {"name": "x"}}] * 2
        assert len(issuer.requests) == 2


def test_a_gateway_that_refuses_the_new_token_too_is_told(world):
    with serve(in_turn(gateway_error(401, "Access token is invalid."))) as gateway, serve(Issuer()) as issuer:
        with pytest.raises(
            UnauthorizedError, match=r"Access token is invalid\. .*check that the connection's token_url"
        ):
            ask(world, gateway, issuer)
        assert len(gateway.requests) == 2
        assert len(issuer.requests) == 2


def test_callers_whose_token_was_refused_together_fetch_one_new_one():
    together = threading.Barrier(8)

    def picky(request: Request) -> Reply:
        if request.token == "token-1":
            together.wait(10)
            return gateway_error(401, "Access token expired")
        return echo(request)

    with serve(picky) as gateway, serve(Issuer()) as issuer, ThreadPoolExecutor(8) as pool:
        with Client(gateway.url, credentials(gateway, issuer), policy=POLICY) as client:
            tokens = list(pool.map(client.send, [LOOK] * 8))
        assert tokens == ["token-2"] * 8
        assert len(issuer.requests) == 2


def test_tasks_whose_token_was_refused_together_fetch_one_new_one():
    together = threading.Barrier(8)

    def picky(request: Request) -> Reply:
        if request.token == "token-1":
            together.wait(10)
            return gateway_error(401, "Access token expired")
        return echo(request)

    async def all_at_once(gateway, issuer):
        async with AsyncClient(gateway.url, credentials(gateway, issuer), policy=POLICY) as client:
            return await asyncio.gather(*(client.send(LOOK) for _ in range(8)))

    with serve(picky) as gateway, serve(Issuer()) as issuer:
        assert asyncio.run(all_at_once(gateway, issuer)) == ["token-2"] * 8
        assert len(issuer.requests) == 2


@pytest.mark.parametrize("kind", ["credentials", "ready token"])
def test_a_bearer_token_goes_to_the_gateways_own_origin_only(kind):
    with serve(echo) as gateway, serve(echo) as storage, serve(Issuer()) as issuer:
        signer = (
            credentials(gateway, issuer) if kind == "credentials" else AccessToken(gateway.url, "token-1")
        )
        with httpx.Client(auth=signer) as http:
            assert http.get(f"{gateway.url}/any").json() == {"token": "token-1"}
            assert http.get(f"{storage.url}/bucket/key?X-Amz-Signature=1").json() == {"token": None}
            other_name = gateway.url.replace("127.0.0.1", "localhost")
            assert http.get(f"{other_name}/any").json() == {"token": None}

        async def same_on_a_loop():
            async with httpx.AsyncClient(auth=signer) as http:
                return (await http.get(f"{storage.url}/bucket/key")).json()

        assert asyncio.run(same_on_a_loop()) == {"token": None}
        assert all("authorization" not in request.headers for request in storage.requests)


@pytest.mark.parametrize(
    ("gateway", "target", "signed"),
    [
        ("https://g.example.org/v2", "https://g.example.org:443/x", True),
        ("http://g.example.org:80", "http://g.example.org/x", True),
        ("https://G.example.org", "https://g.example.org/x", True),
        ("https://g.example.org", "http://g.example.org/x", False),
        ("https://g.example.org", "https://g.example.org:8443/x", False),
        ("https://g.example.org", "https://g.example.org.evil.example/x", False),
        ("https://g.example.org", "https://evil.example/?g.example.org", False),
    ],
)
def test_an_origin_is_scheme_host_and_port(gateway, target, signed):
    request = httpx.Request("GET", target)
    next(AccessToken(gateway, "t").auth_flow(request))
    assert ("authorization" in request.headers) == signed


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_client_that_the_endpoint_refuses_is_not_tried_again(world, status):
    said = {"error": "unauthorized_client", "error_description": "Invalid client credentials"}
    with serve(echo) as gateway, serve(in_turn(Reply(status, said))) as issuer:
        with pytest.raises(TokenRefusedError, match="unauthorized_client Invalid client cred") as caught:
            ask(world, gateway, issuer)
        assert len(issuer.requests) == 1
        assert not gateway.requests
    assert f"HTTP {status}" in str(caught.value)
    assert "127.0.0.1" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert not caught.value.transient


TROUBLE = {
    "503": Reply(503, "<html>Down</html>"),
    "429": Reply(429, {"error": "slow_down"}),
    "408": Reply(408, {}),
    "redirect": Reply(302, b"", {"Location": "https://login.example.org"}),
    "web page": Reply(200, "<html>Sign in</html>"),
    "list": Reply(200, [1]),
    "no token": Reply(200, {"token_type": "Bearer"}),
    "empty token": Reply(200, {"access_token": ""}),
    "token with a line break": Reply(200, {"access_token": "a\r\nX-Evil: 1"}),
    "number": Reply(200, {"access_token": 12}),
    "lost": Lost(),
    "lost halfway": Lost(halfway=True),
}


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
def test_an_endpoint_in_trouble_is_tried_again(world, trouble):
    fine = Reply(200, {"access_token": "late", "expires_in": 300})
    post = replace(LOOK, method="POST", json={}, replayable=False)
    with serve(echo) as gateway, serve(in_turn(trouble, trouble, fine)) as issuer:
        assert ask(world, gateway, issuer, post) == ["late"]
        assert len(gateway.requests) == 1


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
def test_an_endpoint_that_stays_in_trouble_is_told(world, trouble):
    with serve(echo) as gateway, serve(in_turn(trouble)) as issuer:
        with pytest.raises(TokenUnavailableError, match=r"token endpoint.*127\.0\.0\.1") as caught:
            ask(world, gateway, issuer)
        assert len(issuer.requests) == POLICY.attempts
        assert not gateway.requests
    assert caught.value.transient
    assert not caught.value.ambiguous


def test_an_endpoint_that_is_silent_is_left_after_the_clients_own_time_out(world):
    with (
        serve(echo) as gateway,
        serve(in_turn(Silence())) as issuer,
        pytest.raises(TokenUnavailableError, match="did not answer in time"),
    ):
        ask(world, gateway, issuer, timeout=0.05)


def test_an_endpoint_that_refuses_connections_is_told(world):
    with serve(echo) as gateway:
        nobody = SimpleNamespace(url=f"http://127.0.0.1:{closed_port()}")
        with pytest.raises(TokenUnavailableError, match="token endpoint"):
            ask(world, gateway, nobody)
        assert not gateway.requests


def test_a_token_in_an_endpoints_words_is_hidden(world):
    token = jwt.encode({"sub": "x"}, "k" * 32)
    answer = Reply(400, {"error": "invalid_grant", "error_description": f"bad {token}"})
    with (
        serve(echo) as gateway,
        serve(in_turn(answer)) as issuer,
        pytest.raises(TokenRefusedError, match=r"invalid_grant bad \*\*\*") as caught,
    ):
        ask(world, gateway, issuer)
    assert token not in str(caught.value)


def test_forgotten_tokens_are_fetched_anew(world):
    with serve(echo) as gateway, serve(Issuer()) as issuer:
        assert ask(world, gateway, issuer) == ["token-1"]
        forget_tokens()
        assert ask(world, gateway, issuer) == ["token-2"]


def test_a_forked_process_starts_without_tokens():
    import multiprocessing
    import warnings

    with serve(echo) as gateway, serve(Issuer()) as issuer:
        ask(WORLDS[0], gateway, issuer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads
            child = multiprocessing.get_context("fork").Process(target=_exit_with_number_of_tokens)
            child.start()
        child.join(10)
    assert child.exitcode == 0


def _exit_with_number_of_tokens():
    import os

    os._exit(len(auth._slots))
