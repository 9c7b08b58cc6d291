"""Settings: what a connection says, whichever way it was written, and what is refused by the field's name."""

import json
from types import SimpleNamespace

import pytest
from airflow.models import connection as models
from airflow.sdk import Connection as TaskConnection

from airflow_hpc_provider.client.errors import InvalidInputError
from airflow_hpc_provider.settings import Settings

URL = "https://api.example.org/firecrest/v2"
TOKEN_URL = "https://idp.example.org/auth/token"
EXTRA_FIELDS = (
    "scope",
    "token_auth_method",
    "access_token",
    "system",
    "account",
    "working_dir",
    "ca_bundle",
    "ui_url",
    "timeout",
    "max_requests_per_second",
)


def connection(extra=None, **given):
    """A connection as Airflow hands it out, with all that is needed."""
    whole = {"conn_id": "hpc", "host": URL, "port": None, "schema": None, "login": "me", "password": "s3cret"}
    return SimpleNamespace(**whole | given, extra_dejson={"token_url": TOKEN_URL} | (extra or {}))


def read(extra=None, **given):
    return Settings.from_connection(connection(extra, **given))


def refused(extra=None, **given):
    with pytest.raises(InvalidInputError) as caught:
        read(extra, **given)
    return caught.value


# --- what is read -----------------------------------------------------------------------------------------


def test_the_least_that_is_needed_has_defaults_for_the_rest():
    assert read() == Settings(
        conn_id="hpc", url=URL, token_url=TOKEN_URL, client_id="me", client_secret="s3cret"
    )
    assert (read().token_auth_method, read().timeout) == ("client_secret_post", 30.0)


@pytest.mark.parametrize("empty", [None, ""])
def test_null_and_empty_mean_missing(empty):
    assert read(dict.fromkeys(EXTRA_FIELDS, empty), port=empty, schema=empty) == read()


@pytest.mark.parametrize("name", ["password", "token_url", "token_auth_method", "access_token"])
def test_a_mask_of_airflow_is_no_value(name):
    masked = {"password": "***"} if name == "password" else {"extra": {name: "***"}}
    said = f"{name}: is Airflow's mask ***, not a value; enter it anew (connection hpc)."
    assert str(refused(**masked)) == said


def test_everything_is_read():
    extra = {
        "scope": "openid jobs",
        "token_auth_method": "client_secret_basic",
        "system": "daint",
        "account": " staff ",
        "working_dir": "/scratch/me",
        "ca_bundle": "/etc/ca.pem",
        "timeout": "12.5",
        "max_requests_per_second": 4,
    }
    assert read(extra) == Settings(
        conn_id="hpc",
        url=URL,
        token_url=TOKEN_URL,
        client_id="me",
        client_secret="s3cret",
        scope="openid jobs",
        token_auth_method="client_secret_basic",
        system="daint",
        account="staff",
        working_dir="/scratch/me",
        ca_bundle="/etc/ca.pem",
        timeout=12.5,
        max_requests_per_second=4.0,
    )


def test_a_ready_token_needs_no_credentials():
    settings = read({"access_token": "a.b.c", "token_url": None}, login=None, password=None)
    assert (settings.access_token, settings.token_url, settings.client_id) == ("a.b.c", None, None)


def test_secrets_are_in_no_repr():
    settings = read({"access_token": "t0ken"})
    assert "s3cret" not in repr(settings)
    assert "t0ken" not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({"host": f" {URL}/ "}, URL),
        ({"host": "api.example.org"}, "https://api.example.org"),
        ({"host": "api.example.org/firecrest/v2"}, URL),
        ({"host": "api.example.org", "schema": "https"}, "https://api.example.org"),
        ({"host": "https://api.example.org/f7t", "port": 8443}, "https://api.example.org:8443/f7t"),
        ({"host": "https://api.example.org:9/f7t", "port": 8443}, "https://api.example.org:9/f7t"),
        ({"host": "localhost", "schema": "http", "port": 8080}, "http://localhost:8080"),
        ({"host": "http://localhost:8080"}, "http://localhost:8080"),
        ({"host": "http://gw.localhost:8080/v2"}, "http://gw.localhost:8080/v2"),
        ({"host": "http://127.0.0.9"}, "http://127.0.0.9"),
        ({"host": "http://[::1]", "port": 8080}, "http://[::1]:8080"),
        ({"host": "HTTPS://API.example.org"}, "https://API.example.org"),
    ],
)
def test_host_port_and_schema_make_one_url(given, url):
    assert read(**given).url == url


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        (None, "names no gateway"),
        ("", "names no gateway"),
        ("  ", "names no gateway"),
        ("http://api.example.org", "unencrypted to api.example.org; use https"),
        ("http://10.0.0.1", "unencrypted"),
        ("http://localhost.example.org", "unencrypted"),
        ("http://127.0.0.1.example.org", "unencrypted"),
        ("ftp://api.example.org", "no http"),
        ("https://", "no http"),
        ("https:///v2", "no http"),
        ("https://me:pw@api.example.org", "user name or password"),
        ("https://me@api.example.org", "user name or password"),
        ("me:pw@api.example.org", "user name or password"),
        ("https://api.example.org/?a=b", "end with its path"),
        ("https://api.example.org/#x", "end with its path"),
        ("https://api.example.org:port", "no URL"),
        ("https://api.example.org:99999", "no URL"),
        ("https://[::1", "no URL"),
        ("https://api example.org", "no http"),
        ("https://api.example.org\\@evil.org", "no http"),
        ("https://api.exa\nmple.org", "no http"),
    ],
)
def test_a_host_that_would_not_be_safe_to_ask_is_refused(host, problem):
    error = refused(host=host)
    assert error.field == "host"
    assert problem in str(error)
    assert "connection hpc" in str(error)


@pytest.mark.parametrize(
    "token_url", ["http://idp.example.org/token", "idp.example.org/token", "https://x/?y=1", 7]
)
def test_a_token_url_is_no_safer_than_a_host(token_url):
    assert refused({"token_url": token_url}).field == "token_url"


@pytest.mark.parametrize(
    "host",
    [
        "ftp://me:hunter2@x",
        "https://me:hunter2@x:99999",
        "me:hunter2@x",
        "https://me:hunter2@",
        "https://x/?key=hunter2",
    ],
)
def test_what_is_refused_is_not_repeated_with_its_password(host):
    assert "hunter2" not in str(refused(host=host))


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"extra": {"token_url": None}}, "token_url"),
        ({"login": None}, "login (client id)"),
        ({"password": ""}, "password (client secret)"),
        ({"extra": {"token_auth_method": "magic"}}, "token_auth_method"),
        ({"extra": {"timeout": "soon"}}, "timeout"),
        ({"extra": {"timeout": 0}}, "timeout"),
        ({"extra": {"timeout": -1}}, "timeout"),
        ({"extra": {"timeout": "nan"}}, "timeout"),
        ({"extra": {"timeout": "inf"}}, "timeout"),
        ({"extra": {"timeout": [1]}}, "timeout"),
        ({"extra": {"max_requests_per_second": "0"}}, "max_requests_per_second"),
        ({"extra": {"system": 7}}, "system"),
        ({"extra": {"scope": ["a"]}}, "scope"),
        ({"extra": {"working_dir": {"a": 1}}}, "working_dir"),
        ({"extra": {"access_token": True}}, "access_token"),
    ],
)
def test_a_field_at_fault_is_named(given, field):
    error = refused(**given)
    assert error.field == field
    assert str(error).startswith(f"{field}: ")


# --- with Airflow's own connections -----------------------------------------------------------------------

FULL = {
    "conn_type": "firecrest",
    "host": "https://api.example.org:8443/firecrest/v2",
    "login": "client/id@site",
    "password": "p@ss:w/rd%#?",
    "extra": {
        "token_url": "https://idp.example.org/realms/a/token",
        "system": "daint",
        "account": None,
        "timeout": 20,
        "max_requests_per_second": "2",
        "scope": "a b",
    },
}
READ = Settings(
    conn_id="hpc",
    url="https://api.example.org:8443/firecrest/v2",
    token_url="https://idp.example.org/realms/a/token",
    client_id="client/id@site",
    client_secret="p@ss:w/rd%#?",
    system="daint",
    scope="a b",
    timeout=20.0,
    max_requests_per_second=2.0,
)


@pytest.mark.parametrize("kind", [models.Connection, TaskConnection], ids=["models", "sdk"])
def test_a_real_connection_is_read(kind):
    made = kind(conn_id="hpc", **FULL | {"extra": json.dumps(FULL["extra"])})
    assert Settings.from_connection(made) == READ


def test_a_connection_survives_its_way_through_json():
    assert Settings.from_connection(models.Connection.from_json(json.dumps(FULL), conn_id="hpc")) == READ


@pytest.mark.parametrize("kind", [models.Connection, TaskConnection], ids=["models", "sdk"])
@pytest.mark.parametrize(
    "host",
    [
        {"host": "https://api.example.org/firecrest/v2"},
        {"host": "https://api.example.org/firecrest/v2", "port": 8443},
        {"host": "api.example.org", "port": 8443},
        {"host": "http://localhost", "port": 8080},
    ],
)
def test_a_connection_survives_its_way_through_a_uri(kind, host):
    made = kind(conn_id="hpc", **FULL | host | {"extra": json.dumps(FULL["extra"])})
    again = models.Connection(conn_id="hpc", uri=made.get_uri())
    assert Settings.from_connection(again) == Settings.from_connection(made)


# --- the web interface ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://my.example.org",
        "http://intranet/ui/",
        "https://my.example.org/{system}/jobs/{job_id}",
        "https://my.example.org/?job={job_id}#{account}",
    ],
)
def test_a_web_interface_is_a_url_or_the_pattern_of_one(url):
    assert read({"ui_url": f" {url} "}).ui_url == url


@pytest.mark.parametrize(
    "url",
    [
        "my.example.org",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "https://me:hunter2@my.example.org",
        "https://me@my.example.org",
        "https://my.example.org/?token=hunter2&job={job_id}",
        "https://my.example.org/?API_KEY=hunter2",
        "https://{system}.example.org/{job_id}",
        "https://my.example.org/{password}",
        "https://my.example.org/{}",
        "https://my.example.org/{job_id",
        "https://my.example.org/{system.__class__}",
        "https://my.example.org/{system:>9}",
        "https://my.example.org/?x=1",
        "https://my.example.org/<script>",
        "https://my example.org",
        "https://my.example.org:x/",
    ],
)
def test_what_nobody_may_open_or_see_is_no_web_interface(url):
    error = refused({"ui_url": url})
    assert error.field == "ui_url"
    assert "hunter2" not in str(error)
