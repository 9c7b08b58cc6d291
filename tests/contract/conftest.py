"""For tests of staged transfers: a gateway on which little is large, and an open client of it."""

import logging
from collections.abc import Callable, Iterator

import pytest
from schedulers import job_when
from transfers import KIB, POLICY

from airflow_hpc_provider.client import hashing, moving, systems
from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.jobs import Job
from airflow_hpc_provider.client.session import Client
from airflow_hpc_provider.client.systems import System
from airflow_hpc_provider.devgateway import Gateway


@pytest.fixture(scope="module")
def narrow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that stages what is larger than 64 KiB, in parts of the module's ``PART`` bytes."""
    with Gateway(
        tmp_path_factory.mktemp("narrow"),
        scheduler="local",
        max_ops_file_size=64 * KIB,
        max_part_size=request.module.PART,
        ingress_poll=0.02,
    ) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def client(narrow: Gateway) -> Iterator[Client]:
    """An open client of it, which does not wait long."""
    with Client(narrow.url, AccessToken(narrow.url, narrow.access_token()), policy=POLICY) as client:
        yield client


@pytest.fixture
def system(client: Client) -> System:
    """Its only system."""
    (system,) = client.send(systems.listing())
    return system


@pytest.fixture
def wait(client: Client, narrow: Gateway) -> Callable[[str], Job]:
    """Waits for a job of it."""

    def wait(job_id: str) -> Job:
        return job_when(client.send, narrow.system, job_id)

    return wait


@pytest.fixture
def small_pieces(
    request: pytest.FixtureRequest,
    narrow: Gateway,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """What is fetched is fetched in small pieces; no secret escapes, and no fault outlives its test."""
    monkeypatch.setattr(moving, "_SMALLEST", request.module.PART)
    monkeypatch.setattr(moving, "_LARGEST", request.module.PART)
    monkeypatch.setattr(moving, "_CHUNK", 16 * KIB)
    monkeypatch.setattr(hashing, "_CHUNK", 16 * KIB)
    caplog.set_level(logging.INFO, "airflow_hpc_provider")
    narrow.requests.clear()
    yield
    narrow.faults.clear()
    assert narrow.leaked_tokens == 0
    assert "X-Amz" not in caplog.text
