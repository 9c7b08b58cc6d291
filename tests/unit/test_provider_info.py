"""One wrong provider info breaks every `airflow` command: ours is held against Airflow's own schemas."""

import copy
import importlib
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.resources import files

import jsonschema
import pytest
from airflow._shared.secrets_masker import should_hide_value_for_key

from airflow_hpc_provider.provider_info import get_provider_info

INFO = get_provider_info()
CONNECTION = INFO["connection-types"][0]
FIELDS = CONNECTION["conn-fields"]
MODULES = [
    module
    for kind in ("hooks", "operators", "sensors", "triggers")
    for entry in INFO[kind]
    for module in entry["python-modules"]
]


def airflow_schema(name):
    return json.loads(files("airflow").joinpath(name).read_text())


def test_matches_the_schema_read_at_run_time():
    jsonschema.validate(INFO, airflow_schema("provider_info.schema.json"))


@pytest.mark.parametrize(
    "part",
    [
        "asset-uris",
        "connection-types",
        "extra-links",
        "hooks",
        "integrations",
        "operators",
        "sensors",
        "triggers",
    ],
)
def test_matches_the_strict_schema_of_airflow_developers(part):
    jsonschema.validate(INFO[part], airflow_schema("provider.yaml.schema.json")["properties"][part])


def test_every_kind_belongs_to_a_listed_integration():
    listed = {integration["integration-name"] for integration in INFO["integrations"]}
    for kind in ("hooks", "operators", "sensors", "triggers"):
        assert {entry["integration-name"] for entry in INFO[kind]} <= listed


def test_package_name_is_the_installed_distribution():
    assert metadata.distribution("airflow-hpc-provider").metadata["Name"] == INFO["package-name"]


def test_entry_point_is_installed():
    points = metadata.distribution("airflow-hpc-provider").entry_points.select(
        group="apache_airflow_provider"
    )
    assert [point.load() for point in points] == [get_provider_info]


@pytest.mark.parametrize("module", MODULES)
def test_listed_module_can_be_imported(module):
    importlib.import_module(module)


def test_no_module_of_the_package_is_forgotten():
    package = files("airflow_hpc_provider")
    there = {
        f"airflow_hpc_provider.{kind}.{file.name.removesuffix('.py')}"
        for kind in ("hooks", "operators", "sensors", "triggers")
        for file in package.joinpath(kind).iterdir()
        if file.name.endswith(".py") and file.name not in ("__init__.py", "base.py", "moving.py", "named.py")
    }
    assert there == set(MODULES)


@pytest.mark.parametrize(
    "path",
    [
        *INFO["extra-links"],
        *(value for part in INFO["asset-uris"] for value in part.values() if isinstance(value, str)),
    ],
)
def test_what_airflow_loads_by_its_path_is_there(path):
    module, _, name = path.rpartition(".")
    loaded = importlib.import_module(module)
    assert callable(getattr(loaded, name))
    assert name in loaded.__all__


def test_hook_says_the_same():
    module, _, name = CONNECTION["hook-class-name"].rpartition(".")
    hook = getattr(importlib.import_module(module), name)
    assert hook.conn_type == CONNECTION["connection-type"]
    assert hook.hook_name == CONNECTION["hook-name"]
    assert hook.conn_name_attr == "hpc_conn_id"
    assert hook.default_conn_name == "hpc_default"


def test_connection_type_survives_the_ui_and_a_connection_uri():
    # The UI splits field names at "__", and "_" is no legal character of a URI scheme.
    assert CONNECTION["connection-type"].isalpha()


def test_port_can_be_filled_in():
    # Airflow 3.3.2's Test button refuses a connection without a port.
    assert CONNECTION["ui-field-behaviour"]["hidden-fields"] == ["schema"]


@pytest.mark.parametrize("name", FIELDS)
def test_extra_field_is_optional_and_described_with_an_example(name):
    field = FIELDS[name]
    assert "null" in field["schema"]["type"]
    assert "such as" in field["description"]


@pytest.mark.parametrize("name", FIELDS)
def test_extra_field_is_masked_if_and_only_if_secret(name):
    assert (FIELDS[name]["schema"].get("format") == "password") == (name == "access_token")


@pytest.mark.parametrize("name", FIELDS)
def test_the_form_fills_in_no_mask_of_its_own(name):
    # What Airflow masks by its name it masks also as a default, and the form stores what it shows.
    if should_hide_value_for_key(name):
        assert "default" not in FIELDS[name]["schema"]


def test_extra_fields_are_those_of_the_documentation():
    assert list(FIELDS) == [
        "token_url",
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
    ]


def test_each_call_answers_a_new_object():
    # Airflow writes into what it is given.
    first = get_provider_info()
    before = copy.deepcopy(first)
    first["connection-types"][0]["conn-fields"]["token_url"]["schema"]["type"].append("broken")
    assert get_provider_info() == before


def test_imports_nothing_of_airflow():
    code = (
        "import sys; from airflow_hpc_provider.provider_info import get_provider_info; get_provider_info(); "
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('airflow', 'httpx', 'authlib')))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["providers", "list"], {"package_name": "airflow-hpc-provider"}),
        (["providers", "get", "airflow-hpc-provider"], {"Provider": "airflow-hpc-provider"}),
        (
            ["providers", "hooks"],
            {
                "connection_type": "firecrest",
                "class": "airflow_hpc_provider.hooks.hpc.HpcHook",
                "conn_id_attribute_name": "hpc_conn_id",
                "package_name": "airflow-hpc-provider",
                "hook_name": "FirecREST (HPC gateway)",
            },
        ),
    ],
)
def test_airflow_lists_it(tmp_path, command, shown):
    airflow = shutil.which("airflow", path=os.path.dirname(sys.executable))  # noqa: PTH120
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")},
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/airflow.db",
    }
    ran = subprocess.run(
        [airflow, *command, "--output", "json"], capture_output=True, text=True, check=True, env=env
    )
    rows = json.loads(ran.stdout[ran.stdout.index("[") :])
    assert any(shown.items() <= row.items() for row in rows), ran.stdout + ran.stderr
