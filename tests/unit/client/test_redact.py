"""No credential in error texts or in the logs of httpx and httpcore."""

import asyncio
import base64
import json
import logging
from contextlib import suppress

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import WORLDS, Lost, Reply, in_turn, serve

from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.calls import Call, nothing
from airflow_hpc_provider.client.errors import ApiError, BadAnswerError, HpcError, TransferError
from airflow_hpc_provider.client.redact import guard_logs, redact
from airflow_hpc_provider.client.retry import RetryPolicy

BASE64URL = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", min_size=20)
HEX = st.text("0123456789abcdef", min_size=32, max_size=64)
WORDS = st.text("abc XYZ.,:;()[]{}\n\t'\"=/&äß", max_size=40)
SEPARATORS = st.sampled_from([" ", "\n", "'", '"', "<", ">"])


def jwt_of(claims, signature):
    header, payload = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "RS256", "typ": "JWT"}, claims)
    )
    return f"{header}.{payload}.{signature}"


JWTS = st.builds(jwt_of, st.dictionaries(st.text(max_size=5), st.integers()), BASE64URL)
OPAQUE = st.text("ABCDEFabcdef0123456789._~+/-", min_size=20)
PRESIGNED = st.builds(
    lambda scheme, path, before, name, secret, after: (
        f"{scheme}://s3.example.org:9000/bucket/{path}?{before}{name}={secret}{after}",
        secret,
    ),
    st.sampled_from(["https", "http", "HTTPS"]),
    st.text("abc/%20.-_", max_size=20),
    st.sampled_from(["", "X-Amz-Date=20260101T000000Z&", "partNumber=1&uploadId=abc&", "a=1&amp;"]),
    st.sampled_from(
        [
            "X-Amz-Signature",
            "X-Amz-Credential",
            "X-Amz-Security-Token",
            "X-Goog-Signature",
            "Signature",
            "sig",
            "temp_url_sig",
            "token",
        ]
    ),
    HEX,
    st.sampled_from(["", "&X-Amz-Expires=604800", "&se=2026", "#x"]),
)


@given(PRESIGNED)
def test_of_a_presigned_url_without_its_host_no_secret_stays(presigned):
    url, secret = presigned
    told = redact(f"Cannot PUT {url.partition('9000')[2]} and no more")
    assert secret not in told
    assert told.startswith("Cannot PUT /bucket/")
    assert told.endswith("no more")


@given(WORDS, SEPARATORS, PRESIGNED, SEPARATORS, WORDS)
def test_the_query_of_a_presigned_url_vanishes_and_the_rest_stays(before, left, url, right, after):
    text, secret = url
    shown = redact(f"{before}{left}{text}{right}{after}")
    assert secret not in shown
    assert text.split("?")[0] + "?***" in shown
    assert shown.startswith(before)
    assert shown.endswith(after)


@given(WORDS, JWTS, WORDS)
def test_a_json_web_token_vanishes(before, token, after):
    shown = redact(f"{before} {token} {after}")
    assert token not in shown
    assert token.rsplit(".", 1)[1] not in shown
    assert shown.startswith(before)
    assert shown.endswith(after)


@given(WORDS, st.sampled_from(["Bearer ", "bearer ", "BEARER  "]), OPAQUE, WORDS)
def test_a_bearer_token_vanishes_whatever_its_form(before, scheme, token, after):
    shown = redact(f"Authorization: {before} {scheme}{token} {after}")
    assert token not in shown
    assert shown.endswith(after)


@given(st.sampled_from(["auth-token", "Auth-Token", "authorization"]), OPAQUE, st.booleans())
def test_headers_that_carry_a_token_are_logged_without_it(name, token, raw):
    headers = [(b"date", b"today"), (name.encode(), token.encode())] if raw else [(name, token)]
    assert token not in redact(repr(headers))


@given(WORDS)
def test_other_text_stays_as_it_is(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "https://gateway.example.org/filesystem/daint/ops/ls?path=%2Fhome&recursive=true",
        "slurm-12.out: eye.witness.report",
        "the bearer",
        "sbatch: error: Batch job submission failed: Invalid account",
    ],
)
def test_plain_words_and_urls_stay_as_they_are(text):
    assert redact(text) == text


@given(PRESIGNED, JWTS)
def test_redacting_twice_is_redacting_once(url, token):
    once = redact(f"{url[0]} {token}")
    assert redact(once) == once


@given(PRESIGNED, JWTS)
def test_errors_hide_credentials_in_what_others_said(url, token):
    said = f"failed at {url[0]} with Bearer {token}"
    for error in (
        BadAnswerError("look", said),
        TransferError(said),
    ):
        assert url[1] not in str(error)
        assert token not in str(error)


TOKEN = jwt_of({"sub": "airflow"}, "c2lnbmF0dXJlc2lnbmF0dXJl")
SIGNATURE = "f00dfeed" * 8


@pytest.mark.parametrize("world", WORLDS, ids=["blocking", "on-loop"])
def test_no_log_of_a_call_holds_a_token_even_if_the_gateway_echoes_it(world, caplog):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="httpx")  # Airflow quietens it
    call: Call[None] = Call(doing="look", method="GET", path="/status", read=nothing, replayable=True)
    refusal = Reply(401, {"message": f"bad token {TOKEN}"}, {"Auth-Token": TOKEN})
    with (
        serve(in_turn(refusal)) as server,
        world(server.url, AccessToken(server.url, TOKEN), policy=RetryPolicy(attempts=1)) as client,
        pytest.raises(ApiError, match=r"bad token \*\*\*") as caught,
    ):
        client.send(call)
    assert TOKEN not in caplog.text
    assert TOKEN not in str(caught.value) + caught.value.message
    assert "auth-token" in caplog.text.lower(), "the header itself was logged"
    assert {"httpx", "httpcore.http11", "httpcore.connection"} <= {record.name for record in caplog.records}


@pytest.mark.parametrize("answer", [Reply(200, b"data"), Reply(403, b"<Error/>"), Lost()])
def test_no_log_of_a_presigned_request_holds_its_signature(answer, caplog):
    guard_logs()
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="httpx")  # Airflow quietens it
    with serve(in_turn(answer)) as storage:
        url = f"{storage.url}/bucket/key?X-Amz-Credential=AKIA&X-Amz-Signature={SIGNATURE}"
        with suppress(httpx.TransportError):
            httpx.get(url, headers={"X-Echo": url})

        async def same_on_a_loop():
            async with httpx.AsyncClient() as http:
                with suppress(httpx.TransportError):
                    await http.get(url)

        asyncio.run(same_on_a_loop())
        assert len(storage.requests) == 2
    assert SIGNATURE not in caplog.text
    assert caplog.records


def test_a_redirect_to_a_presigned_url_is_logged_without_its_query(caplog):
    guard_logs()
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="httpx")  # Airflow quietens it
    target = f"https://s3.example.org/b/k?X-Amz-Signature={SIGNATURE}"
    with serve(in_turn(Reply(302, b"", {"Location": target}))) as server:
        httpx.get(server.url)
    assert "s3.example.org/b/k?***" in caplog.text
    assert SIGNATURE not in caplog.text


def test_guarding_twice_changes_nothing():
    guard_logs()
    before = {name: list(logging.getLogger(name).filters) for name in ("httpx", "httpcore.http11")}
    guard_logs()
    assert before == {name: list(logging.getLogger(name).filters) for name in before}
    assert all(len(filters) == 1 for filters in before.values())


def test_every_logger_of_httpx_and_httpcore_is_guarded():
    import httpcore  # noqa: F401

    guard_logs()
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("httpx", "httpcore")]
    loggers = [logging.getLogger(name) for name in names]
    used = [logger for logger in loggers if logger.name != "httpcore"]
    assert len(used) >= 5
    assert all(logger.filters for logger in used)


def test_an_error_text_of_the_gateway_is_kept_without_its_credentials():
    request = httpx.Request("GET", "http://gateway/x")
    url = f"https://s3.example.org/b/k?X-Amz-Signature={SIGNATURE}"
    answer = httpx.Response(500, json={"message": f"('Could not connect: \"{url}\"',)"}, request=request)
    from airflow_hpc_provider.client.errors import error_for

    error: HpcError = error_for("look", None, answer)
    assert "s3.example.org/b/k?***" in str(error)
    assert SIGNATURE not in str(error)
