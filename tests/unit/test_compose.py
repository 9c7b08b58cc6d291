"""docker-compose.yaml without a container engine: its form, its secrets, and that what it starts exists."""

import base64
import json
import re
import shlex
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import jsonschema
import live_airflow
import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
SCRIPTS = [ROOT / ".ci/run", *sorted(ROOT.glob(".docker/**/*.sh"))]
DOCKERFILES = sorted(ROOT.glob(".docker/*.Dockerfile"))

# A release, not a series of them.
PINNED = r":(RELEASE\.\d{4}-|\d+\.\d+)[\w.-]*$"
# ${NAME}, ${NAME:?message}; $$ is a plain dollar.
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)([^}]*)\}")


def read_env(text):
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def interpolate(text, env):
    return VARIABLE.sub(lambda found: env[found[1]], text).replace("$$", "$")


EXAMPLE = read_env((ROOT / ".env.example").read_text())


def words(command):
    return shlex.split(command) if isinstance(command, str) else command


def airflow_commands():
    """Every `airflow ...` of the services, their health checks and their scripts, without options."""
    for name, service in SERVICES.items():
        for command in (words(service.get("command", [])), service["healthcheck"]["test"][1:]):
            if command[:1] == ["airflow"]:
                yield pytest.param(command[1:], id=f"{name}: {' '.join(command)}")
    for script in SCRIPTS:
        for found in re.findall(r"^(?:exec )?airflow (.+)$", script.read_text(), re.MULTILINE):
            yield pytest.param(shlex.split(found), id=f"{script.name}: airflow {found}")


def test_follows_the_compose_specification():
    schema = files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json")
    jsonschema.validate(COMPOSE, json.loads(schema.read_text()))


def test_has_the_services_of_an_airflow_installation_and_both_gateways():
    default = {name for name, service in SERVICES.items() if "profiles" not in service}
    airflow = {"api-server", "scheduler", "dag-processor", "triggerer"}
    assert default == {"postgres", "gateway", "front"} | airflow
    assert {name for name in SERVICES if SERVICES[name].get("profiles") == ["firecrest"]} == set(
        SERVICES
    ) - default


@pytest.mark.parametrize("name", SERVICES)
def test_image_is_pinned(name):
    service = SERVICES[name]
    # What is built here bears the name of what it is built of.
    own = service["image"].startswith("airflow-hpc/hpc")
    assert re.search(r":debian-12$" if own else PINNED, service["image"])


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_base_image_is_pinned_and_copied_files_exist(dockerfile):
    text = dockerfile.read_text()
    for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert re.search(PINNED, image)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?:--\S+ )*(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert f"!{source.split('/')[0]}" in ignored


def test_every_built_image_has_its_dockerfile():
    built = {service["build"]["dockerfile"] for service in SERVICES.values() if "build" in service}
    assert built == {str(path.relative_to(ROOT)) for path in DOCKERFILES}


@pytest.mark.parametrize("name", SERVICES)
def test_service_has_a_health_check(name):
    assert SERVICES[name]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name):
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_jobs_cannot_reach_the_database():
    hpc = {name for name, service in SERVICES.items() if "hpc" in service["networks"]}
    assert {"gateway", "cluster"} <= hpc
    assert "postgres" not in hpc


def test_every_dependency_and_volume_exists():
    for service in SERVICES.values():
        assert set(service.get("depends_on", [])) <= set(SERVICES)
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_a_default_service_depends_on_no_profile():
    for service in SERVICES.values():
        if "profiles" not in service:
            assert all("profiles" not in SERVICES[other] for other in service.get("depends_on", []))


def test_variables_and_example_agree():
    used = {name for name, _ in VARIABLE.findall(TEXT)}
    from_environment = {secret["environment"] for secret in COMPOSE["secrets"].values()}
    assert used | from_environment == set(EXAMPLE)


@pytest.mark.parametrize("name", EXAMPLE)
def test_variable_is_refused_when_empty(name):
    assert f"${{{name}:?set {name} in .env}}" in TEXT


def test_example_holds_no_secret():
    assert {name: value for name, value in EXAMPLE.items() if value} == {
        "HPC_DEVGATEWAY_CLIENT_ID": "airflow"
    }


SECRET_KEY = re.compile(r"(password|secret|_key|token)$", re.IGNORECASE)


def test_no_literal_secret_in_an_environment():
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if SECRET_KEY.search(key):
                assert VARIABLE.match(value), f"{name}: {key}"
            # Of the passwords inside URLs, too, none is literal.
            assert not re.search(r"://\w*:[^@$/]+@", value), f"{name}: {key}"


@pytest.mark.parametrize("name", ["firecrest.yaml", "realm.json"])
def test_no_literal_secret_in_the_configuration_of_firecrest(name):
    def leaves(value, key=""):
        if isinstance(value, dict):
            for inner, item in value.items():
                yield from leaves(item, inner)
        elif isinstance(value, list):
            for item in value:
                yield from leaves(item, key)
        else:
            yield key, value

    found = [
        value
        for key, value in leaves(yaml.safe_load((ROOT / ".docker/firecrest" / name).read_text()))
        if re.search(r"secret|private_key", key)
    ]
    assert found
    for value in found:
        assert value.startswith(("secret_file:/run/secrets/", "secret_file:/firecrest-keys/", "${")), value


def test_firecrest_knows_the_client_of_the_realm():
    firecrest = yaml.safe_load((ROOT / ".docker/firecrest/firecrest.yaml").read_text())
    realm = json.loads((ROOT / ".docker/firecrest/realm.json").read_text())
    clients = {client["clientId"]: client for client in realm["clients"]}
    (cluster,) = firecrest["clusters"]
    assert cluster["service_account"]["client_id"] in clients
    assert "airflow" in clients
    claim = firecrest["auth"]["authentication"]["usernameClaim"]
    for client in clients.values():
        (mapper,) = client["protocolMappers"]
        assert mapper["config"]["claim.name"] == claim
        assert mapper["config"]["claim.value"] in firecrest["ssh_credentials"]["keys"]
    variables = set(re.findall(r"\$\{(\w+)\}", json.dumps(realm)))
    assert variables == set(SERVICES["keycloak"]["environment"])


@pytest.mark.parametrize(
    ("variable", "gateway"), [("AIRFLOW_CONN_HPC_DEFAULT", "8443"), ("AIRFLOW_CONN_HPC_FIRECREST", "8444")]
)
@pytest.mark.parametrize("name", ["api-server", "scheduler", "triggerer"])
def test_connection_is_one_that_the_provider_accepts(name, variable, gateway):
    from airflow.sdk import Connection

    from airflow_hpc_provider.settings import Settings

    value = interpolate(SERVICES[name]["environment"][variable], dict.fromkeys(EXAMPLE, "0123abcd"))
    connection = Connection.from_json(value, conn_id="hpc")
    settings = Settings.from_connection(connection)
    assert connection.conn_type == "firecrest"
    assert settings.url == f"https://front:{gateway}"
    assert settings.client_secret == "0123abcd"
    volumes = SERVICES[name]["volumes"]
    assert any(volume.split(":")[1] == str(Path(settings.ca_bundle).parent) for volume in volumes)


def test_front_listens_where_the_connections_point():
    script = (ROOT / ".docker/start/front.sh").read_text()
    listening = set(re.findall(r"^accept = \$\{at\}(\d+)$", script, re.MULTILINE))
    firecrest = (ROOT / ".docker/firecrest/firecrest.yaml").read_text()
    asked = set(re.findall(r"https://front:(\d+)", TEXT + firecrest))
    asked |= set(re.findall(r'"https://front", "port": (\d+)', TEXT))
    assert asked == listening


def test_token_is_asked_for_where_the_embedded_gateway_gives_it():
    from airflow_hpc_provider.devgateway.operations import TOKEN_PATH

    connection = json.loads(
        interpolate(
            SERVICES["scheduler"]["environment"]["AIRFLOW_CONN_HPC_DEFAULT"], dict.fromkeys(EXAMPLE, "x")
        )
    )
    assert connection["extra"]["token_url"] == f"https://front:8443{TOKEN_PATH}"


@pytest.mark.parametrize("name", SERVICES)
def test_command_names_a_start_up_file_or_airflow(name):
    command = words(SERVICES[name].get("command", []))
    if command[:1] == ["bash"]:
        _, script = command
        assert script.startswith("/opt/start/")
        assert (ROOT / ".docker/start" / Path(script).name).is_file()
    elif "build" in SERVICES[name]:
        assert command[0] == "airflow"


def test_what_it_starts_of_airflow_is_what_the_tests_of_a_running_airflow_start():
    commands = {name: words(SERVICES[name]["command"]) for name in live_airflow.COMPONENTS}
    assert commands.pop("api-server") == ["bash", f"/opt/start/{live_airflow.API_SERVER.name}"]
    assert commands == {name: ["airflow", name] for name in commands}
    assert {name for name, one in SERVICES.items() if one["image"].startswith("airflow-hpc/airflow")} == set(
        live_airflow.COMPONENTS
    )


@pytest.mark.parametrize("command", [*airflow_commands()])
def test_airflow_knows_the_command(command):
    from airflow.cli import cli_parser

    # Ends the test by SystemExit if it does not.
    arguments = cli_parser.get_parser().parse_args(command)
    assert callable(arguments.func)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_sound(script):
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert re.search(r"^set -E?euo pipefail$", text, re.MULTILINE)
    assert script.stat().st_mode & 0o111
    subprocess.run([shutil.which("bash"), "-n", str(script)], check=True)


def new_env():
    ran = subprocess.run(
        [shutil.which("bash"), str(ROOT / ".docker/new-env.sh")], capture_output=True, text=True, check=True
    )
    return read_env(ran.stdout)


def test_new_env_fills_every_value_and_never_the_same():
    one, other = new_env(), new_env()
    assert set(one) == set(other) == set(EXAMPLE)
    assert {name for name in one if one[name] == other[name]} == {"HPC_DEVGATEWAY_CLIENT_ID"}
    for name, value in one.items():
        if name == "AIRFLOW_FERNET_KEY":
            assert len(base64.urlsafe_b64decode(value)) == 32
        else:
            assert re.fullmatch(r"airflow|[0-9a-f]{64}", value)
