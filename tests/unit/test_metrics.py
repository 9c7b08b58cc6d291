"""Stats through Airflow's own loggers: in this process into memory, in another one over the wire."""

import asyncio
import gzip
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime

import pytest
from airflow.sdk._shared.observability.metrics import validators
from airflow.sdk._shared.observability.metrics.otel_logger import SafeOtelLogger
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils
from airflow_home import environment
from loopback import Reply, gateway_error, in_turn, serve
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from airflow_hpc_provider import metrics
from airflow_hpc_provider.client import jobs
from airflow_hpc_provider.client.jobs import Job
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.client.session import Sent
from airflow_hpc_provider.client.states import JobState
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator
from airflow_hpc_provider.watch import JobWatch, Outcome, Verdict

TROUBLE = gateway_error(503, "Later")
FINE = Reply(200, {"jobs": []})
QUICK = RetryPolicy(base=0)
SECRET = "swordfish-7c1f9a0e"


def at(seconds):
    return datetime.fromtimestamp(seconds, tz=UTC)


DONE = Job(job_id="12", state=JobState.COMPLETED, start=at(1060), end=at(1360))


@pytest.fixture(autouse=True)
def as_configured():
    """Every test leaves Airflow's stats as it found them, and may complain anew."""
    metrics._complain.cache_clear()
    yield
    stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)


@pytest.fixture
def kept():
    """What Airflow's logger for OpenTelemetry made of the stats: name, tags, and value or [count, sum]."""
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    stats.initialize(
        factory=lambda: SafeOtelLogger(provider, "airflow", validators.get_validator()),
        export_legacy_names=True,
    )

    def read():
        data = json.loads(reader.get_metrics_data().to_json())
        return {
            (metric["name"].removeprefix("airflow."), *sorted(point["attributes"].items())): (
                point["value"] if "value" in point else [point["count"], point["sum"]]
            )
            for resource in data["resource_metrics"]
            for scope in resource["scope_metrics"]
            for metric in scope["metrics"]
            for point in metric["data"]["data_points"]
        }

    yield read
    provider.shutdown()


def connect_to(monkeypatch, server):
    connection = {"conn_type": "firecrest", "host": server.url, "extra": {"access_token": SECRET}}
    monkeypatch.setenv("AIRFLOW_CONN_HPC_DEFAULT", json.dumps(connection))


def ask(system):
    with HpcHook().client(policy=QUICK) as client:
        return client.send(jobs.listing(system))


def ask_on_loop(system):
    async def asking():
        async with await HpcHook().async_client(policy=QUICK) as client:
            return await client.send(jobs.listing(system))

    return asyncio.run(asking())


WORLDS = pytest.mark.parametrize("asked", [ask, ask_on_loop], ids=["blocking", "on-loop"])


@WORLDS
def test_a_call_that_is_tried_three_times_is_three_requests_and_two_retries(asked, kept, monkeypatch):
    with serve(in_turn(TROUBLE, TROUBLE, FINE)) as server:
        connect_to(monkeypatch, server)
        asked("eiger")
    about = [("operation", "get.compute.jobs"), ("system", "eiger")]
    seen = kept()
    assert seen[("hpc.requests", about[0], ("status", "503"), about[1])] == 2
    assert seen[("hpc.requests", about[0], ("status", "200"), about[1])] == 1
    assert seen[("hpc.retries", *about)] == 2
    count, milliseconds = seen[("hpc.request_time", *about)]
    assert count == 3
    assert 0 < milliseconds < 20_000


@WORLDS
def test_a_call_that_works_at_once_is_no_retry(asked, kept, monkeypatch):
    with serve(in_turn(FINE)) as server:
        connect_to(monkeypatch, server)
        asked("eiger")
    assert {key[0] for key in kept()} == {"hpc.requests", "hpc.request_time"}


@WORLDS
def test_broken_stats_fail_no_call_and_are_told_of_once(asked, monkeypatch, caplog):
    def broken():
        raise RuntimeError(f"cannot send to https://stats.example.org/?token={SECRET}")

    stats.initialize(factory=broken, export_legacy_names=True)
    with serve(in_turn(TROUBLE, FINE)) as server:
        connect_to(monkeypatch, server)
        assert asked("eiger") == ()
    said = [r for r in caplog.records if r.name == metrics.__name__ and r.levelno == logging.WARNING]
    assert len(said) == 1
    assert "RuntimeError: cannot send to" in said[0].getMessage()
    assert SECRET not in said[0].getMessage()


@WORLDS
def test_stats_that_are_off_are_no_trouble(asked, monkeypatch, caplog):
    with serve(in_turn(TROUBLE, FINE)) as server:
        connect_to(monkeypatch, server)
        assert asked("eiger") == ()
    assert not [record for record in caplog.records if record.name == metrics.__name__]


def test_an_answer_that_never_came_has_no_status(kept):
    metrics.requested(Sent("get.status.systems", None, 1, None, 0.25))
    assert kept() == {
        ("hpc.requests", ("operation", "get.status.systems"), ("status", "none")): 1,
        ("hpc.request_time", ("operation", "get.status.systems")): [1, 250],
    }


@pytest.mark.parametrize("system", ["Zürich 2", "a,b=c", "a|b:c#d", "x" * 100 + "\n"])
def test_a_tag_is_no_reason_to_drop_a_stat(system, kept):
    metrics.polled(system, "job")
    [(_, _, (_, told))] = kept()
    line = f"hpc.polls,system={told},look=job"
    allowed = {*validators.ALLOWED_CHARACTERS, ",", "="}
    assert validators.stat_name_default_handler(line, allowed_chars=allowed) == line


def test_polls_are_counted_by_what_was_asked_for(kept):
    for look in ("list", "list", "job"):
        metrics.polled("eiger", look)
    assert kept() == {
        ("hpc.polls", ("look", "list"), ("system", "eiger")): 2,
        ("hpc.polls", ("look", "job"), ("system", "eiger")): 1,
    }


def test_watched_jobs_are_told_as_they_are_now(kept):
    where = ("hpc.jobs_watched", ("hostname", socket.gethostname()), ("system", "eiger"))
    metrics.jobs_watched("eiger", 3)
    assert kept() == {where: 3}
    metrics.jobs_watched("eiger", 0)
    assert kept() == {where: 0}


def test_a_job_tells_how_long_it_waited_and_how_long_it_ran(kept):
    metrics.job_ended(DONE, "eiger", at(1000))
    about = (("state", "COMPLETED"), ("system", "eiger"))
    assert kept() == {("hpc.queue_time", *about): [1, 60_000], ("hpc.run_time", *about): [1, 300_000]}


def test_a_clock_that_is_behind_makes_no_negative_time(kept):
    metrics.job_ended(DONE, "eiger", at(1061))
    assert kept()[("hpc.queue_time", ("state", "COMPLETED"), ("system", "eiger"))] == [1, 0]


def test_a_job_that_never_started_neither_waited_nor_ran(kept):
    stats.incr("hpc.other")
    metrics.job_ended(Job(job_id="12", state=JobState.CANCELLED, end=at(1360)), "eiger", at(1000))
    assert kept() == {("hpc.other",): 1}


WATCH = JobWatch(system="eiger", job_id="12", since=1000.0)
DELAY = ("hpc.detection_delay", ("system", "eiger"))


@pytest.mark.parametrize(("now", "milliseconds"), [(1370.0, 10_000), (1360.5, 500), (1359.0, 0)])
def test_the_time_from_a_jobs_end_to_the_verdict_is_told(kept, now, milliseconds):
    metrics.detected(WATCH, Verdict(Outcome.DONE, data=DONE.to_json()), now)
    assert kept() == {DELAY: [1, milliseconds]}


@pytest.mark.parametrize(
    ("since", "verdict"),
    [
        (1361.0, Verdict(Outcome.DONE, data=DONE.to_json())),
        (1000.0, Verdict(Outcome.DONE, data={"files": []})),
        (1000.0, Verdict(Outcome.DONE, data=Job(job_id="12", state=JobState.FAILED).to_json())),
        (1000.0, Verdict(Outcome.TIMEOUT, data=DONE.to_json())),
        (1000.0, Verdict(Outcome.LOST)),
    ],
    ids=["over before the wait", "no job", "no end", "not done", "lost"],
)
def test_only_a_job_that_ended_meanwhile_was_detected(kept, since, verdict):
    stats.incr("hpc.other")
    metrics.detected(JobWatch(system="eiger", job_id="12", since=since), verdict, 1370.0)
    assert kept() == {("hpc.other",): 1}


# --- over the wire, as [metrics] says ---

PROGRAM = """
import asyncio
from airflow_hpc_provider.client import jobs
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator

hook, quick = HpcHook(), RetryPolicy(base=0)

async def ask_on_loop():
    async with await hook.async_client(policy=quick) as client:
        await client.send(jobs.listing("eiger"))

with hook.client(policy=quick) as client:
    client.send(jobs.listing("daint"))
asyncio.run(ask_on_loop())
"""


def run_with(settings, tmp_path):
    """Try one call three times in each world, in an interpreter that reads these settings."""
    with serve(in_turn(*[TROUBLE, TROUBLE, FINE] * 2)) as server:
        connection = {"conn_type": "firecrest", "host": server.url, "extra": {"access_token": SECRET}}
        done = subprocess.run(
            [sys.executable, "-W", "error::DeprecationWarning:airflow_hpc_provider", "-c", PROGRAM],
            env=os.environ
            | environment(tmp_path)
            | {"AIRFLOW_CONN_HPC_DEFAULT": json.dumps(connection)}
            | {f"AIRFLOW__METRICS__{name}": value for name, value in settings.items()},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("tagged", [False, True])
def test_a_statsd_server_gets_them(tagged, tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        host, port = sink.getsockname()
        where = {"STATSD_ON": "True", "STATSD_HOST": host, "STATSD_PORT": str(port)}
        run_with(where | {"STATSD_INFLUXDB_ENABLED": str(tagged)}, tmp_path)
        sink.setblocking(False)
        seen = Counter()
        while True:
            try:
                name, _, value = sink.recv(65_536).decode().rpartition(":")
            except BlockingIOError:
                break
            seen[name] += 1
            assert value.endswith("ms") if name.partition(",")[0].endswith("_time") else value
    assert SECRET not in str(seen)
    if not tagged:
        assert (seen["airflow.hpc.requests"], seen["airflow.hpc.retries"]) == (6, 4)
        return
    for system in ("daint", "eiger"):
        about = f"system={system},operation=get.compute.jobs"
        assert seen[f"airflow.hpc.requests,{about},status=503"] == 2
        assert seen[f"airflow.hpc.requests,{about},status=200"] == 1
        assert seen[f"airflow.hpc.retries,{about}"] == 2


@pytest.mark.slow
def test_an_opentelemetry_collector_gets_them(tmp_path, monkeypatch):
    with serve(lambda _: Reply(200, b"")) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{collector.url}/v1/metrics")
        run_with({"OTEL_ON": "True"}, tmp_path)
        bodies = [
            gzip.decompress(request.body)
            if "gzip" in request.headers.get("content-encoding", "")
            else request.body
            for request in collector.requests
        ]
    assert SECRET.encode() not in b"".join(bodies)
    seen = Counter()
    for resource in ExportMetricsServiceRequest.FromString(bodies[-1]).resource_metrics:
        for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
            for point in metric.sum.data_points:
                seen[metric.name] += point.as_int
    assert (seen["airflow.hpc.requests"], seen["airflow.hpc.retries"]) == (6, 4)


def test_staged_transfers_are_timed_and_their_rates_told(kept, small_limits, tmp_path):
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(120_000))
    options = {"task_id": "move", "poll_interval": 0.1, "deferrable": False}
    up = HpcUploadOperator(local_path=source, remote_path="{working_dir}/large.bin", **options)
    down = HpcDownloadOperator(local_path=tmp_path / "back", remote_path="{working_dir}/large.bin", **options)
    began = time.monotonic()
    up.execute({})
    down.execute({})
    passed = time.monotonic() - began
    told = kept()
    for direction in ("up", "down"):
        tags = ("direction", direction), ("system", "embedded")
        count, milliseconds = told["hpc.transfer_time", *tags]
        rate = told["hpc.transfer_rate", *tags]
        assert count == 1
        assert 0 < milliseconds <= passed * 1000
        assert rate == pytest.approx(120_000 / (milliseconds / 1000), rel=0.01)
