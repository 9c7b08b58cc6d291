"""Faults on demand: each does what it says, as often as it says."""

import threading
import time

import httpx
import pytest


def names(api):
    return [job["name"] for job in api.get("compute/jobs").json()["jobs"]]


@pytest.fixture
def spoiled(make_gateway, make_api):
    return make_api(make_gateway())


@pytest.fixture
def faults(spoiled):
    return spoiled.gateway.faults


def test_a_rate_limit_with_retry_after(spoiled, faults):
    fault = faults.rate_limit(7, on="systems", times=2)
    answers = [spoiled.http.get("/status/systems") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert answers[0].headers["retry-after"] == "7"
    assert fault.hits == 2


def test_the_health_gate(spoiled, faults):
    faults.unhealthy(spoiled.system, on="submit")
    answer = spoiled.try_submit("#!/bin/sh\n")
    assert (answer.status_code, answer.json()["message"]) == (
        503,
        f"The scheduler service for the requested system ({spoiled.system}) is unhealthy.",
    )
    assert names(spoiled) == []


def test_a_proxys_answers_are_html(spoiled, faults):
    faults.bad_gateway(on="jobs")
    faults.garbage(on="jobs")
    answers = [spoiled.get("compute/jobs") for _ in range(2)]
    assert [(answer.status_code, answer.headers["content-type"]) for answer in answers] == [
        (502, "text/html"),
        (200, "text/html"),
    ]


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_before_the_work(spoiled, faults, reset):
    faults.cut(on="submit", reset=reset)
    # Which one depends on how far the request had got.
    with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
        spoiled.try_submit("#!/bin/sh\n", name="cut")
    assert names(spoiled) == []
    assert spoiled.gateway.requests.of("submit")[0].status is None


def test_a_lost_answer_of_work_that_was_done(spoiled, faults):
    faults.lose_answer(on="submit")
    faults.lose_answer(on="submit", status=504)
    with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
        spoiled.try_submit("#!/bin/sh\n", name="lost")
    assert spoiled.try_submit("#!/bin/sh\n", name="late").status_code == 504
    assert names(spoiled) == ["lost", "late"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_delay(spoiled, faults, when):
    faults.delay(0.3, on="submit", when=when)
    thread = threading.Thread(target=spoiled.submit, args=("#!/bin/sh\n",))
    thread.start()
    time.sleep(0.15)
    done = len(spoiled.gateway.scheduler.records())
    thread.join()
    assert done == (1 if when == "after" else 0)
    assert spoiled.gateway.requests.of("submit")[0].seconds >= 0.3


def test_a_dribbled_answer_arrives_whole(spoiled, faults):
    faults.dribble(on="liveness", chunk=20, pause=0.02)
    started = time.monotonic()
    assert spoiled.http.get("/status/liveness/").json()["healthcheckRuns"]
    assert time.monotonic() - started > 0.04


def test_a_truncated_answer_breaks_off(spoiled, faults):
    faults.truncate(on="systems")
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        spoiled.http.get("/status/systems")


def test_skips_patterns_and_probability(spoiled, faults):
    faults.respond(500, on=r"GET /status/\w+/nodes$", skip=1, times=1)
    assert [spoiled.get("status/nodes").status_code for _ in range(3)] == [200, 500, 200]
    faults.respond(500, on="nodes", times=None, probability=0.5)
    found = {spoiled.get("status/nodes").status_code for _ in range(40)}
    assert found == {200, 500}
    faults.clear()
    assert spoiled.get("status/nodes").status_code == 200


def test_lagging_and_vanished_jobs(spoiled, faults):
    faults.visibility_lag = 60
    job_id = spoiled.submit("#!/bin/sh\n", name="lag")
    assert spoiled.get(f"compute/jobs/{job_id}").status_code == 404
    assert names(spoiled) == []
    faults.visibility_lag = 0
    spoiled.wait(job_id)
    faults.accounting_lag = 60
    assert spoiled.jobs(job_id)[0]["name"] == "allocation"
    assert spoiled.get("compute/jobs", name="lag").json() == {"jobs": []}
    faults.accounting_lag = 0
    faults.vanish(job_id)
    assert spoiled.get(f"compute/jobs/{job_id}").status_code == 404
    faults.reappear(job_id)
    assert names(spoiled) == ["lag"]


def test_the_token_endpoint_and_the_storage_have_faults_too(spoiled, faults):
    gateway = spoiled.gateway
    faults.respond(503, on="token")
    form = {
        "grant_type": "client_credentials",
        "client_id": gateway.client_id,
        "client_secret": gateway.client_secret,
    }
    assert [httpx.post(gateway.token_url, data=form).status_code for _ in range(2)] == [503, 200]
    directives = {"transferMethod": "s3", "fileSize": 1}
    made = spoiled.post(
        "filesystem/transfer/upload", path=str(gateway.home / "f"), transferDirectives=directives
    )
    url = made.json()["transferDirectives"]["partsUploadUrls"][0]
    faults.respond(500, "<Error/>", on="put_part")
    faults.cut(on="put_part", reset=True)
    assert httpx.put(url, content=b"x").status_code == 500
    with pytest.raises(httpx.TransportError):
        httpx.put(url, content=b"x" * 1_000_000)
    assert httpx.put(url, content=b"x").status_code == 200


def test_the_log_counts_and_keeps_no_secrets(spoiled):
    gateway = spoiled.gateway
    gateway.requests.clear()
    spoiled.get("compute/jobs", name="x")
    spoiled.http.get("/status/systems")
    (listed,) = gateway.requests.of("jobs")
    assert (listed.method, listed.path, listed.query, listed.status) == (
        "GET",
        f"/compute/{spoiled.system}/jobs",
        "name=x",
        200,
    )
    assert (gateway.requests.count(), gateway.requests.count("GET /status")) == (2, 1)
    assert "authorization" not in listed.headers
    directives = {"transferMethod": "s3", "fileSize": 1}
    made = spoiled.post(
        "filesystem/transfer/upload", path=str(gateway.home / "f"), transferDirectives=directives
    )
    httpx.put(made.json()["transferDirectives"]["partsUploadUrls"][0], content=b"x")
    (put,) = gateway.requests.of("put_part")
    assert "partNumber=1" in put.query
    assert "Signature" not in put.query
