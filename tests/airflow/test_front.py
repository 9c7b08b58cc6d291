"""The TLS front of docker-compose.yaml, run by its own start-up file, between the provider and a gateway."""

import json
import os
import shutil
from pathlib import Path

import httpx
import pytest
from live_airflow import Process, until

from airflow_hpc_provider.client import systems
from airflow_hpc_provider.client.errors import HpcError
from airflow_hpc_provider.devgateway import Gateway
from airflow_hpc_provider.hooks.hpc import HpcHook

pytestmark = pytest.mark.airflow

SCRIPT = Path(__file__).parents[2] / ".docker" / "start" / "front.sh"


@pytest.fixture
def front(tmp_path):
    """The front of a gateway; gives the gateway and the authority's certificate."""
    if not shutil.which("stunnel4") and not os.environ.get("CI"):
        pytest.skip("stunnel4 is missing: install Debian's package stunnel4")
    with Gateway(tmp_path / "gateway", scheduler="local") as gateway:
        environment = {
            "PATH": os.environ["PATH"],
            "FRONT_ADDRESS": "127.0.0.1",
            "FRONT_CA": str(tmp_path),
            "GATEWAY": gateway.url.removeprefix("http://"),
        }
        process = Process("front", ["bash", str(SCRIPT)], environment, tmp_path)
        process.start()
        ca = tmp_path / "ca.crt"

        def answers() -> bool:
            assert process.alive, process.tail()
            try:
                httpx.get("https://localhost:8443/status/liveness", verify=False)
            except httpx.TransportError:
                return False
            return ca.exists()

        try:
            until(answers, 30, process.tail)
            yield gateway, ca
        finally:
            process.stop()


def test_the_provider_trusts_the_authority_of_its_connection_only(front, monkeypatch):
    gateway, ca = front
    given = gateway.connection()
    token_url = httpx.URL(given["extra"]["token_url"]).copy_with(scheme="https", host="localhost", port=8443)
    for conn_id, bundle in (("trusting", str(ca)), ("doubting", None)):
        extra = given["extra"] | {"token_url": str(token_url), "ca_bundle": bundle}
        connection = given | {"host": "https://localhost:8443", "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))
    with HpcHook("trusting").client() as client:
        assert [system.name for system in client.send(systems.listing())] == ["embedded"]
    with HpcHook("doubting").client() as client, pytest.raises(HpcError, match="certificate"):
        client.send(systems.listing())
