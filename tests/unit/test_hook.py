"""The hook: when it reads the connection, what it finds at the gateway, and what the Test button says."""

import datetime as dt
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowNotFoundException
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from loopback import Reply, closed_port, serve

from airflow_hpc_provider.client import systems
from airflow_hpc_provider.client.auth import forget_tokens
from airflow_hpc_provider.client.errors import InvalidInputError
from airflow_hpc_provider.hooks.hpc import HpcHook

SECRET = "swordfish-7c1f9a0e"


@pytest.fixture(autouse=True)
def fresh_tokens():
    """No test lives on another's token."""
    forget_tokens()


def plain_connection(**changes: Any) -> dict[str, Any]:
    """A connection to nowhere, with a secret that must never be shown."""
    extra = changes.pop("extra", {})
    return {
        "conn_type": "firecrest",
        "host": "http://127.0.0.1:1",
        "login": "me",
        "password": SECRET,
        "extra": {"token_url": "http://127.0.0.1:1/token", "system": "embedded"} | extra,
    } | changes


# --- reading the connection ---


def test_making_a_hook_needs_no_connection(monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_HPC_DEFAULT", raising=False)
    hook = HpcHook("not_there")
    with pytest.raises(AirflowNotFoundException, match="not_there"):
        hook.settings  # noqa: B018


def test_the_connection_is_read_once(connected, connect):
    hook = HpcHook()
    assert hook.settings.url == connected.url
    connect(plain_connection())
    assert hook.settings.url == connected.url


def test_a_port_in_its_own_field_is_used(connected, connect):
    host, _, port = connected.url.rpartition(":")
    connect(connected.connection() | {"host": host, "port": int(port)})
    with HpcHook().client() as client:
        assert [system.name for system in client.send(systems.listing())] == ["embedded"]


def test_neither_hook_nor_client_shows_the_secret(connect):
    connect(plain_connection(extra={"access_token": "token-of-mine"}))
    hook = HpcHook()
    shown = f"{hook!r} {hook.settings!r} {hook.client()!r} {vars(hook)}"
    assert SECRET not in shown
    assert "token-of-mine" not in shown


# --- what the gateway knows ---


def test_without_a_system_the_gateways_systems_are_listed(make_gateway, connect):
    gateway = make_gateway(systems=["alps", "eiger"])
    connect(gateway, system=None)
    with pytest.raises(
        InvalidInputError, match=r"system: no system is given.* the gateway has: alps, eiger\."
    ):
        HpcHook().system_name()
    assert HpcHook().system_name(" eiger ") == "eiger"


def test_an_unknown_system_is_answered_with_those_there_are(connected):
    with (
        HpcHook().client() as client,
        pytest.raises(InvalidInputError, match=r"no system 'daint'; it has: embedded\."),
    ):
        HpcHook().system(client, "daint")


def test_the_case_of_a_systems_name_does_not_matter(connected):
    with HpcHook().client() as client:
        assert HpcHook().system(client, "EMBEDDED").name == "embedded"


@pytest.mark.parametrize("given", ["/scratch/team", "/scratch/team/"])
def test_the_connections_working_directory_wins(connected, connect, given):
    connect(connected, working_dir=given)
    hook = HpcHook()
    with hook.client() as client:
        assert hook.working_dir(client, hook.system(client)) == "/scratch/team"


def test_else_jobs_work_in_the_users_directory_on_the_default_file_system(connected, connect):
    connect(connected, working_dir=None)
    hook = HpcHook()
    with hook.client() as client:
        assert hook.working_dir(client, hook.system(client)) == str(connected.home)


def test_a_system_without_a_default_file_system_wants_a_working_directory(connected, connect):
    connect(connected, working_dir=None)
    hook = HpcHook()
    with (
        hook.client() as client,
        pytest.raises(InvalidInputError, match="working_dir: connection hpc_default has none"),
    ):
        hook.working_dir(client, systems.System(name="bare"))


def test_working_dir_in_a_path_is_replaced_and_other_paths_cost_no_request(connected):
    hook = HpcHook()
    with hook.client() as client:
        system = hook.system(client)
        before = len(connected.requests)
        assert hook.resolve_path(client, system, "/plain/{job_id}") == "/plain/{job_id}"
        assert len(connected.requests) == before
        assert hook.resolve_path(client, system, "{working_dir}/a") == f"{connected.home}/a"


# --- requests a second ---


def test_all_hooks_of_an_identity_share_one_budget_of_requests(connected, connect):
    connect(connected, max_requests_per_second=10)
    with HpcHook().client() as warm:
        warm.send(systems.listing())

    def ask():
        with HpcHook().client() as client:
            for _ in range(3):
                client.send(systems.listing())

    threads = [threading.Thread(target=ask) for _ in range(3)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begun > 0.85, "nine requests at ten a second take nine tenths of a second"


def test_without_a_limit_nobody_waits(connected):
    hook = HpcHook()
    assert hook.client()._budget.reserve() == 0
    assert hook.client()._budget.reserve() == 0


# --- the Test button ---


def said() -> tuple[bool, str]:
    """What the Test button shows: one line, soon, without secrets."""
    begun = time.monotonic()
    well, text = HpcHook().test_connection()
    assert time.monotonic() - begun < 20
    assert "\n" not in text
    assert len(text) < 500
    assert SECRET not in text
    assert "Traceback" not in text
    return well, text


def test_the_button_names_healthy_systems(make_gateway, connect):
    connect(make_gateway(systems=["alps", "eiger"]), system="alps")
    assert said() == (True, "Connected; systems: alps (healthy), eiger (healthy).")


def test_the_button_names_an_ill_system_and_what_ails_it(make_gateway, connect):
    connect(make_gateway(unhealthy={"embedded": "scheduler"}))
    well, text = said()
    assert well
    assert "embedded (unhealthy: scheduler: The scheduler service did not answer its probe" in text


def test_the_button_notes_a_system_that_is_not_there(connected, connect):
    connect(connected, system="daint")
    well, text = said()
    assert well
    assert "The connection's system 'daint' is not among them." in text


def test_the_button_misses_the_host(connect):
    connect(plain_connection(host=""))
    well, text = said()
    assert not well
    assert text.startswith("host: connection hpc_default names no gateway; give its URL")


def test_the_button_says_that_there_is_no_such_connection(monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_HPC_DEFAULT", raising=False)
    well, text = said()
    assert not well
    assert "hpc_default" in text


def test_the_button_says_that_a_host_does_not_resolve(connect):
    connect(plain_connection(host="https://gateway.invalid", extra={"access_token": "token"}))
    well, text = said()
    assert not well
    assert "the host gateway.invalid does not resolve" in text


def test_the_button_says_that_the_token_endpoints_host_does_not_resolve(connected, connect):
    connect(connected, token_url="https://login.invalid/token")
    well, text = said()
    assert not well
    assert "token endpoint: the host login.invalid does not resolve" in text


@pytest.fixture
def self_signed(tmp_path):
    """A loopback TLS server whose certificate nobody has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem, private = tmp_path / "certificate.pem", tmp_path / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    listening = socket.create_server(("127.0.0.1", 0))

    def refuse_all() -> None:
        while True:
            try:
                plain, _ = listening.accept()
            except OSError:
                return
            plain.settimeout(10)
            try:
                context.wrap_socket(plain, server_side=True).close()
            except OSError:
                plain.close()

    thread = threading.Thread(target=refuse_all)
    thread.start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(10)


def test_the_button_says_why_tls_was_refused_and_what_to_do(connect, self_signed):
    connect(plain_connection(host=f"https://127.0.0.1:{self_signed}", extra={"access_token": "token"}))
    well, text = said()
    assert not well
    assert f"TLS with 127.0.0.1:{self_signed} failed: self" in text
    assert "ca_bundle" in text


def test_the_button_says_that_nothing_listens(connect):
    port = closed_port()
    connect(plain_connection(host=f"http://127.0.0.1:{port}", extra={"access_token": "token"}))
    well, text = said()
    assert not well
    assert f"127.0.0.1:{port} refuses the connection" in text


def test_the_button_says_that_the_token_endpoint_refuses_the_client(connected, connect):
    connect(connected.connection() | {"password": SECRET})
    well, text = said()
    assert not well
    assert "The token endpoint on 127.0.0.1 answered HTTP 401" in text
    assert "Check the connection's login (client id), password (client secret)" in text


def test_the_button_tells_a_refused_token_from_a_refused_client(make_gateway, connected, connect):
    other = make_gateway()
    connection = other.connection()
    connect(
        connection
        | {"extra": connection["extra"] | {"token_url": connected.token_url}, **own_client(connected)}
    )
    well, text = said()
    assert not well
    assert text == "The token endpoint gave a token, but the gateway refuses it: Access token is invalid."


def own_client(gateway) -> dict[str, Any]:
    return {"login": gateway.client_id, "password": gateway.client_secret}


def test_the_button_says_that_the_gateway_denies_access(connected):
    connected.faults.respond(403, {"errorType": "error", "message": "Not a member."}, on="systems", times=1)
    assert said() == (
        False,
        "The token endpoint gave a token, but the gateway refuses it: Not a member.",
    )


def test_the_button_says_that_a_ready_token_is_refused(connected, connect):
    connect(connected, access_token="not-a-token")
    well, text = said()
    assert not well
    assert text == "The gateway refuses the connection's access_token: Access token is invalid."


def test_the_button_says_that_a_portal_answers(connect):
    with serve(lambda _: Reply(200, "<html>Sign in</html>")) as portal:
        connect(plain_connection(host=portal.url, extra={"access_token": "token"}))
        well, text = said()
    assert not well
    assert "web page" in text
    assert "URL of a FirecREST v2 gateway" in text


def test_the_button_does_not_try_a_failing_gateway_again_and_again(connected):
    fault = connected.faults.bad_gateway(on="systems", times=None)
    well, text = said()
    assert not well
    assert "502 Bad Gateway" in text
    assert fault.hits == 1


def test_the_button_gives_up_on_a_gateway_that_says_nothing(connect):
    silent = socket.create_server(("127.0.0.1", 0))
    with silent:
        port = silent.getsockname()[1]
        connect(plain_connection(host=f"http://127.0.0.1:{port}", extra={"access_token": "token"}))
        well, text = said()
    assert not well
    assert "did not answer in time" in text


def test_the_button_names_a_bad_ca_bundle(connect, tmp_path: Path):
    missing = tmp_path / "missing.pem"
    connect(plain_connection(extra={"ca_bundle": str(missing)}))
    well, text = said()
    assert not well
    assert text.startswith(f"ca_bundle: {missing} is no file of CA certificates")
