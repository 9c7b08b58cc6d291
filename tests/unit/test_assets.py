"""Assets of the scheme ``hpc``: one URI for one file, and what the events of outlets tell."""

from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from airflow.sdk import Asset, AssetAlias
from hypothesis import assume, given
from hypothesis import strategies as st

from airflow_hpc_provider.assets import (
    convert_asset_to_openlineage,
    create_asset,
    extra_for,
    place_of,
    sanitize_uri,
    tell_moved,
    tell_outlets,
    uri_of,
)
from airflow_hpc_provider.client.errors import InvalidInputError


def clean(uri: str) -> str:
    return sanitize_uri(urlsplit(uri)).geturl()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("hpc://daint/scratch/in.nc", "hpc://daint/scratch/in.nc"),
        ("HPC://Daint//scratch/./in.nc/", "hpc://daint/scratch/in.nc"),
        ("hpc://hpc_default@daint/scratch/in.nc", "hpc://daint/scratch/in.nc"),
        ("hpc://daint/scratch/Zürich 1.nc", "hpc://daint/scratch/Zürich 1.nc"),
        ("hpc://daint", "hpc://daint/"),
        ("hpc://daint/a#part", "hpc://daint/a"),
    ],
)
def test_one_file_has_one_uri(given, wanted):
    assert clean(given) == wanted


@pytest.mark.parametrize(
    "uri",
    [
        "hpc:///scratch/in.nc",
        "hpc://user:hunter2@daint/in",
        "hpc://@daint/in",
        "hpc://daint:22/in",
        "hpc://da int/in",
        "hpc://daint/in?token=hunter2",
        "hpc://daint/../etc/passwd",
        "hpc://daint/in;rm",
        "hpc://daint/$HOME/in",
        "hpc://daint/it's",
        "hpc://-daint/in",
    ],
)
def test_what_is_no_file_on_a_system_is_refused_without_telling_secrets(uri):
    with pytest.raises(InvalidInputError) as refused:
        clean(uri)
    assert refused.value.field == "uri"
    assert "hunter2" not in str(refused.value)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=20)


@given(st.lists(NAMES, max_size=5), st.sampled_from(["daint", "Eiger.alps", "a-1_b"]))
def test_a_clean_uri_stays_as_it_is_and_names_its_place(names, system):
    path = "/" + "/".join(names)
    assume("?" not in path and "#" not in path)
    try:
        uri = clean(f"hpc://{system}{path}")
    except InvalidInputError:
        return
    assert clean(uri) == uri
    assert clean(f"hpc://me@{system}{path}") == uri
    place = place_of(uri)
    assert place is not None
    assert uri_of(*place) == uri
    assert "//" not in place[1]


def test_airflow_asks_this_provider():
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

    manager = ProvidersManagerTaskRuntime()
    assert manager.asset_uri_handlers["hpc"] is sanitize_uri
    assert Asset("hpc://hpc_default@Daint/scratch//in.nc").uri == "hpc://daint/scratch/in.nc"
    with pytest.raises(ValueError, match="no query"):
        Asset("hpc://daint/in?x=1")


def test_an_asset_is_made_from_system_and_path():
    asset = create_asset(system="Daint", path="/scratch/in.nc", extra={"owner": "me"})
    assert (asset.uri, asset.extra) == ("hpc://daint/scratch/in.nc", {"owner": "me"})


def test_openlineage_knows_system_and_path(monkeypatch):
    # OpenLineage may not be installed; its dataset has just these two.
    monkeypatch.setattr("airflow.providers.common.compat.openlineage.facet.Dataset", SimpleNamespace)
    dataset = convert_asset_to_openlineage(create_asset(system="daint", path="/scratch/in.nc"), None)
    assert (dataset.namespace, dataset.name) == ("hpc://daint", "/scratch/in.nc")


FILE = {"system": "daint", "path": "/out/a.nc", "size": 3, "sha256": "ab"}
OTHER = {"system": "daint", "path": "/out/b/b.nc", "size": 4, "sha256": "cd"}
JOB = {"job_id": "7", "system": "daint", "state": "COMPLETED", "working_directory": "/out"}


@pytest.mark.parametrize(
    ("uri", "facts", "sole", "told"),
    [
        ("hpc://daint/out/a.nc", [FILE, OTHER], False, FILE),
        ("hpc://daint/out/b", [FILE, OTHER], False, OTHER),
        ("hpc://daint/out", [FILE, OTHER], False, {"files": [FILE, OTHER], "count": 2}),
        ("hpc://daint/elsewhere", [FILE], True, {}),
        ("hpc://eiger/out/a.nc", [FILE], True, {}),
        ("hpc://daint/anywhere", [JOB], False, JOB),
        ("hpc://eiger/anywhere", [JOB], True, {}),
        ("s3://bucket/a.nc", [FILE], True, FILE),
        ("s3://bucket/a.nc", [FILE], False, {}),
        ("s3://bucket/", [FILE, OTHER], True, {"files": [FILE, OTHER], "count": 2}),
        (None, [JOB], True, JOB),
        ("hpc://daint/out", [], True, {}),
    ],
)
def test_an_outlet_is_told_of_its_own(uri, facts, sole, told):
    assert extra_for(uri, facts, sole=sole) == told


def test_an_event_names_only_so_many_files():
    facts = [FILE | {"path": f"/out/{number}"} for number in range(1000)]
    told = extra_for("hpc://daint/out", facts, sole=True)
    assert (len(told["files"]), told["count"]) == (100, 1000)


def test_airflows_events_are_filled_and_keep_what_was_there():
    from airflow.sdk.execution_time.context import OutletEventAccessors

    own, other = Asset("hpc://daint/out/a.nc"), Asset("s3://bucket/x")
    events = OutletEventAccessors()
    events[own].extra["by"] = "hand"
    tell_outlets({"outlet_events": events}, [own, other, AssetAlias("any")], [FILE])
    assert events[own].extra == {"by": "hand", **FILE}
    assert events[other].extra == {}
    tell_outlets({}, [own], [FILE])


def test_the_outlet_of_a_download_is_told_of_its_file():
    from airflow.sdk.execution_time.context import OutletEventAccessors

    moved = [
        {
            "system": "daint",
            "remote_path": f"/out/{name}",
            "local_path": f"/data/{name}",
            "size": 3,
            "sha256": "ab",
        }
        for name in "ab"
    ]
    first, second, there = Asset("file:///data/a"), Asset("hpc://daint/out/b"), Asset("s3://bucket/c")
    events = OutletEventAccessors()
    tell_moved({"outlet_events": events}, [first, second, there], moved, job_id="7")
    told = {"system": "daint", "size": 3, "sha256": "ab", "job_id": "7"}
    assert events[first].extra == told | {"path": "/out/a", "local_path": "/data/a"}
    assert events[second].extra == told | {"path": "/out/b", "local_path": "/data/b"}
    assert events[there].extra == {}


def test_what_was_not_looked_at_is_left_out():
    from airflow.sdk.execution_time.context import OutletEventAccessors

    outlet, events = Asset("hpc://daint/out/a"), OutletEventAccessors()
    moved = {"system": "daint", "remote_path": "/out/a", "local_path": None, "size": 3, "sha256": None}
    tell_moved({"outlet_events": events}, [outlet], moved)
    assert events[outlet].extra == {"system": "daint", "path": "/out/a", "size": 3}


CONTENTS = {"a.nc": (3, "ab"), "run/b.nc": (4, "cd"), "run/c.nc": (5, "ef")}
TREE = {"system": "daint", "local_path": "/data", "files": 3, "size": 12, "how": "archive"}


@pytest.mark.parametrize(
    ("remote_path", "uri", "told"),
    [
        ("/out", "hpc://daint/out", {"path": "/out", "local_path": "/data", "files": 3, "size": 12}),
        ("/out", "hpc://daint/", {"path": "/out", "local_path": "/data", "files": 3, "size": 12}),
        ("/out", "hpc://daint/out/a.nc", {"path": "/out/a.nc", "size": 3, "sha256": "ab"}),
        ("/out", "hpc://daint/out/run", {"path": "/out/run", "files": 2, "size": 9}),
        ("/out", "hpc://daint/out/other", {}),
        ("/out", "hpc://eiger/out", {}),
        ("/out", "file:///data", {"path": "/out", "local_path": "/data", "files": 3, "size": 12}),
        (
            "/out",
            "file:///data/run/b.nc",
            {"path": "/out", "local_path": "/data/run/b.nc", "size": 4, "sha256": "cd"},
        ),
        (
            "/out/*.nc",
            "hpc://daint/out",
            {"path": "/out", "glob": "/out/*.nc", "local_path": "/data", "files": 3, "size": 12},
        ),
        ("/out/*", "hpc://daint/out/a.nc", {"path": "/out/a.nc", "size": 3, "sha256": "ab"}),
        (
            ["/out/a.nc", "/out/run"],
            "hpc://daint/out",
            {"path": ["/out/a.nc", "/out/run"], "local_path": "/data", "files": 3, "size": 12},
        ),
        (["/x/a.nc", "/out/run"], "hpc://daint/x/a.nc", {"path": "/x/a.nc", "size": 3, "sha256": "ab"}),
        (["/x/a.nc", "/out/run"], "hpc://daint/out/run", {"path": "/out/run", "files": 2, "size": 9}),
        (["/x/a.nc", "/run/*"], "hpc://daint/run/a.nc", {"path": "/run/a.nc", "size": 3, "sha256": "ab"}),
    ],
)
def test_an_outlet_is_told_of_what_an_archive_holds(remote_path, uri, told):
    from airflow.sdk.execution_time.context import OutletEventAccessors

    outlet, other, events = Asset(uri), Asset("s3://bucket/x"), OutletEventAccessors()
    tell_moved(
        {"outlet_events": events},
        [outlet, other],
        TREE | {"remote_path": remote_path},
        job_id="7",
        contents=CONTENTS,
    )
    assert events[outlet].extra == (told and {"system": "daint", "job_id": "7", **told})
    assert events[other].extra == {}


def test_of_files_that_nobody_counted_the_archive_is_told():
    from airflow.sdk.execution_time.context import OutletEventAccessors

    outlet, events = Asset("hpc://daint/in/a.nc"), OutletEventAccessors()
    tell_moved(
        {"outlet_events": events}, [outlet], TREE | {"remote_path": "/in", "local_path": ["/data/a.nc"]}
    )
    assert events[outlet].extra == {
        "system": "daint", "path": "/in", "local_path": ["/data/a.nc"], "files": 3, "size": 12,
    }  # fmt: skip
