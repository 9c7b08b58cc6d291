"""Client and AsyncClient against a real server: retries, errors, connections, in both worlds."""

import ssl
import time
import uuid
from collections import Counter
from dataclasses import replace

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import (
    WORLDS,
    Lost,
    Reply,
    Request,
    Server,
    Silence,
    closed_port,
    gateway_error,
    in_turn,
    serve,
)

from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.calls import Call, nothing, path, reading
from airflow_hpc_provider.client.errors import (
    BadAnswerError,
    HpcError,
    InvalidInputError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from airflow_hpc_provider.client.retry import RateBudget, RetryPolicy
from airflow_hpc_provider.client.session import AsyncClient, Client, Sent

POLICY = RetryPolicy(attempts=4, base=0)
FINE = Reply(200, {"value": 42})
LOOK: Call[int] = Call(
    doing="look",
    method="GET",
    path=path("status", "systems"),
    read=reading("look", lambda body: int(body["value"])),
    replayable=True,
    system="daint",
)
ACT = replace(LOOK, doing="act", method="POST", json={"job": {}}, replayable=False)


@pytest.fixture(params=WORLDS, ids=["blocking", "on-loop"])
def world(request):
    return request.param


def carried_out(world, server: Server, call: Call[int], **options):
    options = {"policy": POLICY, **options}
    with world(server.url, AccessToken(server.url, "a-token"), **options) as client:
        return client.send(call)


@pytest.mark.parametrize("status", [408, 424, 429, 500, 502, 503, 504])
def test_a_replayable_call_is_repeated_until_trouble_is_over(world, status):
    with serve(in_turn(gateway_error(status, "Trouble"), gateway_error(status, "Trouble"), FINE)) as server:
        assert carried_out(world, server, LOOK) == 42
        assert len(server.requests) == 3


@pytest.mark.parametrize("status", [408, 424, 429, 500, 502, 503, 504])
def test_the_last_error_is_raised_when_trouble_does_not_end(world, status):
    with serve(in_turn(gateway_error(status, "Trouble"))) as server:
        with pytest.raises(HpcError, match=f"Could not look on system daint: Trouble. .HTTP {status}"):
            carried_out(world, server, LOOK)
        assert len(server.requests) == POLICY.attempts


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422, 501])
def test_a_no_is_never_asked_again(world, status):
    with serve(in_turn(gateway_error(status, "No"), FINE)) as server:
        with pytest.raises(HpcError):
            carried_out(world, server, LOOK)
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [424, 429, 503])
def test_what_cannot_be_replayed_is_repeated_when_nothing_was_done(world, status):
    with serve(in_turn(gateway_error(status, "Later"), FINE)) as server:
        assert carried_out(world, server, ACT) == 42
        assert [request.json for request in server.requests] == [{"job": {}}] * 2


@pytest.mark.parametrize(
    "answer",
    [*(gateway_error(status, "Trouble") for status in (408, 500, 502, 504)), Lost(), Lost(halfway=True)],
    ids=["408", "500", "502", "504", "lost", "lost halfway"],
)
def test_what_cannot_be_replayed_is_sent_once_when_its_fate_is_unknown(world, answer):
    with serve(in_turn(answer, FINE)) as server:
        with pytest.raises(HpcError) as caught:
            carried_out(world, server, ACT)
        assert caught.value.ambiguous
        assert caught.value.transient
        assert len(server.requests) == 1


@pytest.mark.parametrize("answer", [Lost(), Lost(halfway=True)], ids=["lost", "lost halfway"])
def test_a_replayable_call_is_repeated_after_a_lost_connection(world, answer):
    with serve(in_turn(answer, answer, FINE)) as server:
        assert carried_out(world, server, LOOK) == 42


def test_a_refused_connection_is_tried_again_and_then_told(world):
    waits = []
    policy = RetryPolicy(attempts=3, base=0, random=lambda: waits.append(1) or 0.0)
    url = f"http://127.0.0.1:{closed_port()}"
    with (
        world(url, AccessToken(url, "a-token"), policy=policy) as client,
        pytest.raises(UnreachableError, match=r"Could not act: .*127\.0\.0\.1.*not sent") as caught,
    ):
        client.send(ACT)
    assert not caught.value.ambiguous
    assert len(waits) == 2


def test_a_pause_the_gateway_asks_for_is_kept(world, monkeypatch):
    slept = []

    async def sleeping(seconds):
        slept.append(seconds)

    monkeypatch.setattr("airflow_hpc_provider.client.session.time.sleep", slept.append)
    monkeypatch.setattr("airflow_hpc_provider.client.session.asyncio.sleep", sleeping)
    answers = in_turn(Reply(429, {}, {"Retry-After": "7"}), Reply(503, {}, {"Retry-After": "9"}), FINE)
    with serve(answers) as server:
        assert carried_out(world, server, ACT) == 42
    # Time stands still here, so the allowance asks for what is left of the pause, too.
    assert [seconds for seconds in slept if seconds in (7, 9)] == [7, 9]


@pytest.mark.parametrize("asked", ["121", "86400", "inf"])
def test_a_pause_longer_than_the_ceiling_gives_up_at_once(world, asked):
    with serve(in_turn(Reply(429, {"message": "Slow down"}, {"Retry-After": asked}), FINE)) as server:
        with pytest.raises(HpcError, match="Slow down") as caught:
            carried_out(world, server, LOOK)
        assert caught.value.retry_after == float(asked)
        assert len(server.requests) == 1


@pytest.mark.parametrize("asked", ["Wed, 21 Oct 2026 07:28:00 GMT", "soon", "-3", "nan"])
def test_an_odd_pause_does_not_stop_the_retries(world, asked):
    with serve(in_turn(Reply(503, {}, {"Retry-After": asked}), FINE)) as server:
        assert carried_out(world, server, LOOK) == 42


def test_a_refused_ready_token_is_told_at_once(world):
    with serve(in_turn(gateway_error(401, "Access token expired"))) as server:
        with pytest.raises(UnauthorizedError, match="Access token expired"):
            carried_out(world, server, LOOK)
        assert len(server.requests) == 1, "a ready token cannot be renewed"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Reply(200, "<html>Sign in</html>"), "is a web page"),
        (Reply(200, b'{"value": 4', {"Content-Type": "application/json"}), "is not FirecREST's: JSONDecode"),
        (Reply(200, b"", {"Content-Type": "application/json"}), "is not FirecREST's"),
        (Reply(200, b"\xff\xfe", {"Content-Type": "application/json"}), "is not FirecREST's"),
        (Reply(200, [1, 2]), "a JSON list instead of an object"),
        (Reply(200, {"other": 1}), r"KeyError\('value'\)"),
        (Reply(200, {"value": None}), "TypeError"),
        (Reply(200, b"plain", {"Content-Encoding": "gzip"}), "incorrect header check"),
    ],
    ids=["html", "cut", "empty", "binary", "list", "other fields", "null", "not gzip"],
)
def test_an_answer_of_something_else_is_told_as_such(world, answer, said):
    with serve(in_turn(answer)) as server:
        with pytest.raises(BadAnswerError, match=f"(?s)Could not look: .*{said}.*FirecREST v2 gateway"):
            carried_out(world, server, LOOK)
        assert len(server.requests) == POLICY.attempts


def test_a_web_page_is_neither_success_nor_content(world):
    done = replace(ACT, read=nothing)
    with serve(in_turn(Reply(200, "<html>Sign in</html>"))) as server:
        with pytest.raises(BadAnswerError, match="web page") as caught:
            carried_out(world, server, done)
        assert caught.value.ambiguous
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("headers", "target"),
    [({"Location": "https://login.example.org/?x=1"}, "login.example.org"), ({}, "another page")],
)
def test_a_redirect_is_not_followed(world, headers, target):
    with serve(in_turn(Reply(302, b"", headers))) as server:
        with pytest.raises(BadAnswerError, match=f"redirect .HTTP 302. to {target}") as caught:
            carried_out(world, server, ACT)
        assert not caught.value.ambiguous


def test_each_try_has_an_id_of_its_own_which_the_error_names(world):
    with serve(in_turn(gateway_error(500, "Trouble"))) as server:
        with pytest.raises(UnavailableError) as caught:
            carried_out(world, server, LOOK)
        ids = [request.headers["x-request-id"] for request in server.requests]
    assert [str(uuid.UUID(text)) for text in ids] == ids
    assert len(set(ids)) == POLICY.attempts
    assert caught.value.request_id == ids[-1]
    assert f"request {ids[-1]}" in str(caught.value)


def test_the_gateways_own_request_id_goes_before_ours(world):
    with (
        serve(in_turn(Reply(404, {"message": "Job not found."}, {"X-Request-ID": "abc"}))) as server,
        pytest.raises(NotFoundError, match=r"Job not found\. \(HTTP 404, request abc\)"),
    ):
        carried_out(world, server, LOOK)


def test_an_error_answer_may_be_a_result(world):
    call = replace(LOOK, refused=lambda error: error.status)
    with serve(in_turn(gateway_error(404, "Job not found."))) as server:
        assert carried_out(world, server, call) == 404


def test_a_call_keeps_its_ways_when_its_result_is_changed(world):
    call = replace(LOOK, refused=lambda error: error.status).then(lambda value: -value)
    with serve(in_turn(FINE, gateway_error(404, "Job not found."))) as server:
        assert carried_out(world, server, call) == -42
        assert carried_out(world, server, call) == -404


def test_a_connection_is_kept_for_the_next_call(world):
    with serve(in_turn(FINE)) as server:
        with world(server.url, AccessToken(server.url, "a-token"), policy=POLICY) as client:
            assert [client.send(LOOK), client.send(ACT), client.send(LOOK)] == [42] * 3
        assert len({request.connection for request in server.requests}) == 1


def test_a_500_that_closes_the_kept_connection_does_not_spoil_the_next_call(world):
    answers = in_turn(
        FINE, replace(gateway_error(500, "('Channel not open for sending',)"), hang_up=True), FINE
    )
    with serve(answers) as server:
        with world(server.url, AccessToken(server.url, "a-token"), policy=POLICY) as client:
            assert client.send(LOOK) == 42
            with pytest.raises(UnavailableError):
                client.send(ACT)
            assert client.send(LOOK) == 42
        assert len({request.connection for request in server.requests}) == 2


def test_silence_ends_with_the_time_out(world):
    with serve(in_turn(Silence())) as server:
        with pytest.raises(UnreachableError, match=r"did not answer in time.*may or may not") as caught:
            carried_out(world, server, ACT, timeout=0.05)
        assert caught.value.ambiguous


def test_a_replayable_call_is_repeated_after_a_time_out(world):
    with serve(in_turn(Silence(), FINE)) as server:
        assert carried_out(world, server, LOOK, timeout=0.2) == 42


@pytest.mark.parametrize(
    ("segments", "target"),
    [
        (("compute", "a/b c?d#e", "jobs"), "/compute/a%2Fb%20c%3Fd%23e/jobs"),
        (("compute", "daint", "jobs", "../x"), "/compute/daint/jobs/..%2Fx"),
        (("compute", "zürich%20", "jobs"), "/compute/z%C3%BCrich%2520/jobs"),
    ],
)
def test_names_in_a_path_stay_one_segment(world, segments, target):
    with serve(in_turn(FINE)) as server:
        carried_out(world, server, replace(LOOK, path=path(*segments)))
        assert server.requests[0].target == target


@pytest.mark.parametrize("segment", ["", ".", ".."])
def test_a_segment_that_would_vanish_is_refused(segment):
    with pytest.raises(InvalidInputError):
        path("compute", segment, "jobs")


@pytest.mark.parametrize("prefix", ["/firecrest/v2", "/firecrest/v2/", "", "/"])
def test_the_gateway_may_live_below_a_prefix(world, prefix):
    with serve(in_turn(FINE)) as server:
        url = server.url + prefix
        with world(url, AccessToken(url, "a-token"), policy=POLICY) as client:
            assert client.send(replace(LOOK, params={"path": "/a b", "lines": 3})) == 42
        assert server.requests[0].target == f"{prefix.rstrip('/')}/status/systems?path=%2Fa+b&lines=3"


def test_a_file_travels_as_a_form(world):
    call = replace(ACT, json=None, file=("data é.bin", b"\0\1\2"), read=nothing)
    with serve(in_turn(Reply(204, b""))) as server:
        assert carried_out(world, server, call) is None
        request = server.requests[0]
    assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert 'name="file"; filename="data é.bin"'.encode() in request.body
    assert b"\r\n\r\n\0\1\2\r\n" in request.body


def test_a_bearer_token_is_sent(world):
    with serve(in_turn(FINE)) as server:
        carried_out(world, server, LOOK)
        assert server.requests[0].token == "a-token"


def test_a_budget_is_asked_before_every_try_and_after_the_pause(world):
    asked = []

    class Budget(RateBudget):
        def reserve(self):
            asked.append(1)
            return super().reserve()

    with serve(in_turn(gateway_error(500, "Trouble"), FINE)) as server:
        carried_out(world, server, LOOK, budget=Budget(1000))
    assert len(asked) == 2


def test_an_observer_is_told_of_every_try(world):
    told = []
    with serve(in_turn(gateway_error(503, "Later"), gateway_error(503, "Later"), FINE)) as server:
        assert carried_out(world, server, LOOK, observe=told.append) == 42
    assert [(sent.attempt, sent.status) for sent in told] == [(1, 503), (2, 503), (3, 200)]
    assert {(sent.operation, sent.system) for sent in told} == {("get.status.systems", "daint")}
    assert all(0 < sent.seconds < 10 for sent in told)


def test_an_observer_counts_the_tries_of_each_call_from_one(world):
    told = []
    with (
        serve(in_turn(FINE)) as server,
        world(server.url, AccessToken(server.url, "t"), observe=told.append) as client,
    ):
        client.send(LOOK)
        client.send(LOOK)
    assert [sent.attempt for sent in told] == [1, 1]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (gateway_error(404, "No"), 404),
        (Reply(200, "<html>"), 200),
        (Lost(), None),
        (Reply(200, b"plain", {"Content-Encoding": "gzip"}), None),
    ],
    ids=["refused", "web page", "lost", "not gzip"],
)
def test_an_observer_is_told_of_failures_too(world, answer, status):
    told = []
    with serve(in_turn(answer)) as server, pytest.raises(HpcError):
        carried_out(world, server, LOOK, observe=told.append, policy=RetryPolicy(attempts=1))
    assert [sent.status for sent in told] == [status]


def test_an_observer_that_fails_spoils_no_call_and_is_told_no_more(world, caplog):
    told = []

    def failing(sent):
        told.append(sent)
        raise OSError("no such sink; Authorization: Bearer swordfish")

    with serve(in_turn(gateway_error(503, "Later"), FINE)) as server:
        assert carried_out(world, server, LOOK, observe=failing) == 42
    assert len(told) == 1
    [said] = [record.getMessage() for record in caplog.records if record.name.endswith("client.session")]
    assert "OSError: no such sink" in said
    assert "swordfish" not in said


def test_an_observer_cannot_swallow_the_end_of_a_task(world):
    class End(BaseException):
        pass

    def ended(_: Sent) -> None:
        raise End

    with serve(in_turn(FINE)) as server, pytest.raises(End):
        carried_out(world, server, LOOK, observe=ended)


def test_without_an_observer_nothing_is_noted(world, monkeypatch):
    made = []
    monkeypatch.setattr("airflow_hpc_provider.client.session.Sent", lambda *told: made.append(told))
    with serve(in_turn(FINE)) as server:
        assert carried_out(world, server, LOOK) == 42
    assert made == []


def test_a_missing_ca_bundle_is_named(world, tmp_path):
    empty = tmp_path / "empty.pem"
    empty.touch()
    for bundle in (str(tmp_path / "none.pem"), str(empty)):
        with pytest.raises(InvalidInputError, match=f"ca_bundle: {bundle}"):
            world("https://gateway.example.org", AccessToken("https://x", "t"), ca_bundle=bundle)


def test_a_ca_bundle_replaces_the_usual_ones():
    import certifi

    client = Client("https://gateway.example.org", AccessToken("https://x", "t"), ca_bundle=certifi.where())
    assert isinstance(client._options["verify"], ssl.SSLContext)


def test_a_gateway_without_tls_is_told_so_and_asked_once(world):
    with serve(in_turn(FINE)) as server:
        url = server.url.replace("http:", "https:")
        with (
            world(url, AccessToken(url, "a-token"), policy=POLICY) as client,
            pytest.raises(UnreachableError, match="TLS with") as caught,
        ):
            client.send(LOOK)
    assert not caught.value.transient


def test_a_host_that_does_not_resolve_is_named(world):
    url = "http://no-such-host.invalid"
    with (
        world(url, AccessToken(url, "a-token"), policy=replace(POLICY, attempts=1)) as client,
        pytest.raises(UnreachableError, match=r"no-such-host\.invalid does not resolve"),
    ):
        client.send(LOOK)


def test_an_error_without_a_request_is_told_all_the_same(world, monkeypatch):
    def lost(*_):
        raise httpx.ReadError("gone")

    with (
        serve(in_turn(FINE)) as server,
        world(server.url, AccessToken(server.url, "t"), policy=replace(POLICY, attempts=1)) as client,
    ):
        monkeypatch.setattr(client._client, "_request", lost)
        with pytest.raises(UnreachableError, match="was lost: gone"):
            client.send(LOOK)


ANSWERS = st.one_of(
    st.sampled_from([200, 200, 400, 401, 404, 408, 424, 429, 500, 502, 503]),
    st.sampled_from(["lost", "html"]),
)


@settings(max_examples=40)
@given(script=st.lists(ANSWERS, min_size=1, max_size=5), replayable=st.booleans())
def test_both_worlds_do_the_same_and_never_repeat_what_may_have_been_done(script, replayable):
    answers = []
    for step in script:
        if step == "lost":
            answers.append(Lost())
        elif step == "html":
            answers.append(Reply(200, "<html>"))
        else:
            answers.append(FINE if step == 200 else gateway_error(step, f"Said {step}"))
    call = replace(LOOK, method="POST", json={}, replayable=replayable)
    seen = []
    for world in WORLDS:
        with serve(in_turn(*answers)) as server:
            try:
                end: object = carried_out(world, server, call)
            except HpcError as error:
                end = type(error)
            seen.append((end, len(server.requests)))
    assert seen[0] == seen[1]
    end, tries = seen[0]
    asked = (script + [script[-1]] * POLICY.attempts)[:tries]
    unknown = {408, 500, 502, "lost", "html"}
    passing = {424, 429, 503} | (unknown if replayable else set())
    assert all(step in passing for step in asked[:-1])
    assert tries <= POLICY.attempts
    assert (end == 42) == (asked[-1] == 200)


def test_many_threads_share_one_client():
    from concurrent.futures import ThreadPoolExecutor

    def echo(request: Request) -> Reply:
        return Reply(200, {"value": int(request.query["n"])})

    with (
        serve(echo) as server,
        Client(server.url, AccessToken(server.url, "t"), policy=POLICY) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        numbers = list(range(40))
        got = list(pool.map(lambda n: client.send(replace(LOOK, params={"n": n})), numbers))
    assert got == numbers


def test_many_tasks_share_one_client():
    import asyncio

    async def ask(server):
        async with AsyncClient(server.url, AccessToken(server.url, "t"), policy=POLICY) as client:
            calls = [client.send(replace(LOOK, params={"n": n})) for n in range(40)]
            return await asyncio.gather(*calls)

    with serve(lambda request: Reply(200, {"value": int(request.query["n"])})) as server:
        assert asyncio.run(ask(server)) == list(range(40))
        assert max(Counter(request.query["n"] for request in server.requests).values()) == 1


def test_a_pause_that_one_caller_is_asked_for_is_kept_by_all_of_an_allowance(world):
    budget = RateBudget()
    slow_down = Reply(429, {"message": "Slow down"}, {"Retry-After": "1"})
    with serve(in_turn(slow_down, FINE)) as server:
        with pytest.raises(HpcError):
            carried_out(world, server, LOOK, policy=RetryPolicy(attempts=1), budget=budget)
        asked = time.monotonic()
        assert carried_out(world, server, LOOK, budget=budget) == 42
    assert time.monotonic() - asked > 0.5


def test_a_pause_longer_than_a_caller_would_wait_holds_the_others_up_no_longer(world):
    budget = RateBudget()
    slow_down = Reply(429, {"message": "Slow down"}, {"Retry-After": "3600"})
    with serve(in_turn(slow_down)) as server, pytest.raises(HpcError):
        carried_out(world, server, LOOK, policy=RetryPolicy(longest_retry_after=5), budget=budget)
    assert 4 < budget.reserve() <= 5
