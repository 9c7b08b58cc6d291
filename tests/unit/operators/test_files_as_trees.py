"""Directories, globs and mixed lists as one archive, and files whose names no shell may see."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset, ObjectStoragePath
from airflow.sdk.execution_time.context import OutletEventAccessors
from airflow.sdk.io import attach
from airflow_home import context_of
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airflow_hpc_provider.client import trees
from airflow_hpc_provider.client.errors import InvalidInputError, NotFoundError, TransferError
from airflow_hpc_provider.devgateway.files import FileSystems
from airflow_hpc_provider.operators import files as operators
from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator
from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator

ODD = ["it's", 'a "b"', "$(touch evil)", "`id`", "new\nline", "tab\t", "-rf", "a;b&c|d<e>f", "\\n"]


def up(local_path: Any, remote_path: Any, **options: Any) -> Any:
    return HpcUploadOperator(
        task_id="up", local_path=local_path, remote_path=str(remote_path), poll_interval=0.1, **options
    ).execute({})


def down(remote_path: Any, local_path: Any, **options: Any) -> Any:
    return HpcDownloadOperator(
        task_id="down", remote_path=remote_path, local_path=local_path, poll_interval=0.1, **options
    ).execute({})


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(trees, "_PATIENCE", 0.0)


@pytest.fixture
def there(connected, tmp_path) -> Path:
    """A directory on the cluster for one test, in which nothing of ours is left."""
    folder = connected.scratch / "trees" / f"{tmp_path.parent.name}-{tmp_path.name}"
    folder.mkdir(parents=True)
    yield folder
    assert [path for path in folder.rglob("*") if path.name.startswith(".airflow-hpc-")] == []
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(".airflow-hpc-")] == []


@pytest.fixture
def work(tmp_path) -> Path:
    """A local directory with a few files in it."""
    folder = tmp_path / "work"
    fill(folder, "a.nc", "b.txt", "run-1/out.nc", "run-1/log", "run-2/out.nc", ".hidden")
    return folder


@pytest.fixture
def _memory(monkeypatch) -> None:
    monkeypatch.setattr("airflow.sdk.io.store._STORE_CACHE", {})
    attach("memory", fs=MemoryFileSystem())


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def content(folder: Path) -> dict[str, str]:
    """Each file below a directory, and what it holds."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def asked(gateway, before: int) -> list[str]:
    return [entry.operation for entry in list(gateway.requests)[before:] if entry.operation != "token"]


# --- what travels, and where to ---


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_directory_stands_for_what_is_in_it_both_ways(connected, there, work, tmp_path, slash):
    sent = up(f"{work}{slash}", f"{there}/new/place{slash}")
    assert content(there / "new/place") == content(work)
    assert sent == {
        "system": "embedded",
        "remote_path": f"{there}/new/place",
        "local_path": str(work),
        "files": 6,
        "directories": 2,
        "links": 0,
        "size": sum(map(len, content(work))),
        "packed": sent["packed"],
        "skipped": False,
        "how": "archive",
    }
    back = down(f"{there}/new/place{slash}", f"{tmp_path}/back{slash}")
    assert content(tmp_path / "back") == content(work)
    assert (back["remote_path"], back["local_path"]) == (f"{there}/new/place", f"{tmp_path}/back")
    assert (back["files"], back["directories"], back["how"]) == (6, 2, "archive")
    assert json.loads(json.dumps([sent, back])) == [sent, back]


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("*.nc", {"a.nc"}),
        ("**/*.nc", {"a.nc", "run-1/out.nc", "run-2/out.nc"}),
        ("run-*", {"run-1/out.nc", "run-1/log", "run-2/out.nc"}),
        ("run-[1]/*", {"run-1/out.nc", "run-1/log"}),
    ],
)
def test_a_glob_stands_for_what_it_matches_both_ways(there, work, tmp_path, glob, names):
    assert up(f"{work}/{glob}", there / "here")["files"] == len(names)
    assert set(content(there / "here")) == names
    up(work, there / "all")
    assert down(f"{there}/all/{glob}", tmp_path / "back")["files"] == len(names)
    assert set(content(tmp_path / "back")) == names


def test_a_list_that_mixes_files_directories_and_globs_is_one_archive(connected, there, work, tmp_path):
    before = len(connected.requests)
    sent = up([work / "a.nc", f"{work}/run-1", f"{work}/run-2/*"], there / "here")
    names = {"a.nc", "run-1/out.nc", "run-1/log", "out.nc"}
    assert set(content(there / "here")) == names
    assert asked(connected, before).count("extract") == 1
    assert (sent["files"], sent["local_path"]) == (4, [f"{work}/a.nc", f"{work}/run-1", f"{work}/run-2/*"])
    up(work, there / "all")
    wanted = [f"{there}/all/a.nc", f"{there}/all/run-1", f"{there}/all/run-2/*"]
    back = down(wanted, tmp_path / "back")
    assert set(content(tmp_path / "back")) == names
    assert (back["files"], back["remote_path"]) == (4, wanted)


def test_include_and_exclude_choose_both_ways(there, work, tmp_path):
    assert up(work, there / "some", include="*.nc", exclude=["run-2"])["files"] == 2
    assert set(content(there / "some")) == {"a.nc", "run-1/out.nc"}
    up(work, there / "all")
    down(str(there / "all"), tmp_path / "back", include=["*.nc"], exclude="run-2")
    assert set(content(tmp_path / "back")) == {"a.nc", "run-1/out.nc"}
    files = [work / "a.nc", work / "b.txt"]
    assert up(files, there / "listed", exclude="*.txt")["files"] == 1
    wanted = [f"{there}/all/a.nc", f"{there}/all/b.txt"]
    assert down(wanted, tmp_path / "listed", exclude="*.txt")["files"] == 1


@pytest.mark.slow
def test_a_directory_of_a_job_is_named_as_the_job_knows_it(connected, tmp_path):
    script = "#!/bin/bash\nmkdir -p out-$SLURM_JOB_ID\ntouch out-$SLURM_JOB_ID/{a,b}.nc\n"
    job = HpcSubmitJobOperator(task_id="run", script=script, deferrable=False, poll_interval=0.1).execute(
        context_of("run")
    )
    assert down("out-{job_id}", tmp_path / "all", job=job)["files"] == 2
    assert down("out-{job_id}/a*", tmp_path / "some", job=job)["files"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("count", [1000])
def test_a_thousand_small_files_take_ten_requests_each_way(connected, there, tmp_path, count):
    for number in range(count):
        (tmp_path / "many").mkdir(exist_ok=True)
        (tmp_path / "many" / f"{number}.txt").write_text(str(number))
    before = len(connected.requests)
    assert up(tmp_path / "many", there / "many")["files"] == count
    assert len(asked(connected, before)) <= 10
    before = len(connected.requests)
    assert down(f"{there}/many", tmp_path / "back")["files"] == count
    assert len(asked(connected, before)) <= 10
    assert content(tmp_path / "back") == content(tmp_path / "many")


def test_modes_and_links_are_kept(there, work, tmp_path):
    (work / "a.nc").chmod(0o750)
    (work / "link").symlink_to("a.nc")
    assert up(work, there / "here")["links"] == 1
    down(f"{there}/here", tmp_path / "back")
    assert (tmp_path / "back/a.nc").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "back/link").readlink() == Path("a.nc")


# --- names ---


@pytest.mark.parametrize("name", ODD)
def test_a_file_whose_name_no_shell_may_see_travels_in_an_archive(there, tmp_path, name):
    (tmp_path / name).write_bytes(b"odd\0")
    sent = up(tmp_path / name, f"{there}/")
    assert (sent["remote_path"], sent["size"], sent["verified"]) == (f"{there}/{name}", 4, "size")
    assert [path.name for path in there.iterdir()] == [name]
    up(tmp_path / name, f"{there}/other {name}")
    assert (there / f"other {name}").read_bytes() == b"odd\0"
    back = down(f"{there}/{name}", tmp_path / "plain")
    assert (tmp_path / "plain").read_bytes() == b"odd\0"
    assert (back["remote_path"], back["local_path"]) == (f"{there}/{name}", f"{tmp_path}/plain")
    down([f"{there}/{name}"], tmp_path / "listed")
    assert (tmp_path / "listed" / name).read_bytes() == b"odd\0"


def test_what_a_crash_left_of_an_odd_file_is_removed_by_the_next_try(there, tmp_path):
    fill(there, "it's")
    left = tmp_path / f".airflow-hpc-{hashlib.sha256(b'back').hexdigest()[:16]}"
    fill(left, ".airflow-hpc-0123/tree/it's")
    down(f"{there}/it's", tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["back"]


@pytest.mark.parametrize("name", [*ODD, "x" * 255])
@pytest.mark.usefixtures("_memory")
def test_content_and_objects_get_any_name_too(there, name):
    target = f"{there}/{name}"
    sent = HpcUploadOperator(task_id="text", content="téxt", remote_path=target).execute({})
    assert (there / name).read_text() == "téxt"
    assert (sent["remote_path"], sent["size"], sent["local_path"]) == (target, 5, None)
    assert sent["sha256"] == digest_of(there / name)
    assert (there / name).stat().st_mode & 0o777 == 0o644
    key = ObjectStoragePath("memory://bucket/plain")
    key.write_bytes(b"object")
    assert up(key, target)["local_path"] == str(key)
    assert (there / name).read_bytes() == b"object"
    assert [path.name for path in there.iterdir()] == [name]


@pytest.mark.usefixtures("_memory")
def test_an_object_with_an_odd_name_goes_into_a_directory_if_it_is_not_too_large(there, monkeypatch):
    key = ObjectStoragePath("memory://bucket/it's")
    key.write_bytes(b"object")
    up(key, f"{there}/")
    assert (there / "it's").read_bytes() == b"object"
    up([key], there)
    monkeypatch.setattr(operators, "_MOST_ON_DISK", 5)
    with pytest.raises(InvalidInputError, match=r"^remote_path: .*too large \(6 bytes, at most 5\)"):
        up(key, f"{there}/")
    with pytest.raises(InvalidInputError, match="if_exists"):
        HpcUploadOperator(task_id="text", content="x", remote_path=f"{there}/it's", if_exists="skip").execute(
            {}
        )


@pytest.mark.slow
def test_a_large_file_with_a_blank_in_its_name_comes_in_an_archive(make_gateway, connect, tmp_path):
    gateway = make_gateway(max_ops_file_size=64 * 1024, ingress_poll=0.05)
    connect(gateway)
    (gateway.home / "a b.bin").write_bytes(os.urandom(100_000))
    (gateway.home / "c [1].bin").write_bytes(os.urandom(100_000))
    down("{working_dir}/a b.bin", tmp_path / "ab")
    down("{working_dir}/c [1].bin", tmp_path / "c1")
    assert (tmp_path / "ab").read_bytes() == (gateway.home / "a b.bin").read_bytes()
    assert (tmp_path / "c1").read_bytes() == (gateway.home / "c [1].bin").read_bytes()


def test_a_name_that_looks_like_a_glob_is_itself_if_it_is_there(there, tmp_path):
    fill(tmp_path / "work", "data[1].nc", "data1.nc")
    up(tmp_path / "work" / "data[1].nc", f"{there}/")
    assert set(content(there)) == {"data[1].nc"}
    fill(there, "data1.nc")
    assert down(f"{there}/data[1].nc", tmp_path / "one")["size"] == len("data[1].nc")
    assert (tmp_path / "one").read_text() == "data[1].nc"


legal_names = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=60
).filter(lambda name: name not in (".", "..") and len(name.encode()) <= 200)


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(name=legal_names, data=st.binary(max_size=3000) | st.integers(64_000, 120_000).map(os.urandom))
@example(name="it's $(here); `there`", data=b"")
@example(name="*", data=b"\0")
@example(name="\\n", data=b"\n")
@example(name="a b", data=bytes(100_000))
def test_any_bytes_under_any_name_come_back(small_limits, tmp_path, name, data):
    there = small_limits.home
    source = tmp_path / "sent" / name
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(data)
    up(source, f"{there}/files/", make_parents=True)
    assert (there / "files" / name).read_bytes() == data
    down(f"{there}/files/{name}", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    up(tmp_path / "sent", there / "tree")
    down(f"{there}/tree", tmp_path / "tree")
    assert (tmp_path / "tree" / name).read_bytes() == data
    for path in (source, there / "files" / name, there / "tree" / name, tmp_path / "tree" / name):
        path.unlink()


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"if_exists": "skip"}, "if_exists"),
        ({"if_exists": "verify"}, "if_exists"),
        ({"atomic": True}, "atomic"),
        ({"include": ""}, None),
        ({"include": ["/"]}, "include"),
        ({"exclude": [7]}, "exclude"),
        ({"max_bytes": "many"}, "max_bytes"),
        ({"max_bytes": True}, "max_bytes"),
        ({"max_bytes": 10}, "max_bytes"),
        ({"include": "*.none"}, "local_path"),
        ({"account": None}, None),
    ],
)
def test_terms_that_an_archive_cannot_keep_are_refused_unsent(connected, there, work, options, field):
    before = len(connected.requests)
    if field is None:
        up(work, there / "x", **options)
        return
    for local_path in (str(work), f"{work}/*", [work / "a.nc", work / "run-1"]):
        with pytest.raises(InvalidInputError, match=f"^{field}: "):
            up(local_path, there / "x", **options)
    assert len(connected.requests) == before
    assert list(there.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"if_exists": "newer"}, "if_exists"),
        ({"max_bytes": 10}, "max_bytes"),
        ({"include": "*.none"}, "remote_path"),
    ],
)
def test_the_same_of_a_download_changes_nothing(  # noqa: PLR0917 - fixtures
    connected, there, work, tmp_path, options, field
):
    up(work, there / "x")
    before = len(connected.requests)
    for remote_path in (f"{there}/x", f"{there}/x/*", [f"{there}/x/a.nc", f"{there}/x"]):
        with pytest.raises(InvalidInputError, match=f"^{field}: "):
            down(remote_path, tmp_path / "back", **options)
    assert set(asked(connected, before)) <= {"status_systems", "systems", "stat", "ls", "list"}
    assert not (tmp_path / "back").exists()


def test_max_bytes_holds_for_single_files_and_for_all_of_a_list_together(connected, there, work, tmp_path):
    files = [work / "a.nc", work / "b.txt"]
    before = len(connected.requests)
    with pytest.raises(InvalidInputError, match=r"^max_bytes: 9 bytes are to be moved, .* than 8"):
        up(files, there, max_bytes=8)
    assert len(connected.requests) == before
    up(files, there, max_bytes="9")
    with pytest.raises(InvalidInputError, match=r"^max_bytes: "):
        HpcUploadOperator(task_id="text", content="123456", remote_path=f"{there}/c", max_bytes=5).execute({})
    wanted = [f"{there}/a.nc", f"{there}/b.txt"]
    with pytest.raises(InvalidInputError, match=r"^max_bytes: 9 bytes"):
        down(wanted, tmp_path / "into", max_bytes=8)
    assert not (tmp_path / "into").exists()
    assert len(down(wanted, tmp_path / "into", max_bytes=9)) == 2


def test_nothing_is_chosen_of_one_file(connected, there, work, tmp_path):
    with pytest.raises(InvalidInputError, match=r"^include: chooses among many files"):
        up(work / "a.nc", there / "x", include="*.nc")
    fill(there, "a")
    with pytest.raises(InvalidInputError, match=r"^exclude: chooses among many files"):
        down(f"{there}/a", tmp_path / "x", exclude="b")


def test_directories_of_storages_are_refused_in_a_sentence(connected, there, work, tmp_path):
    before = len(connected.requests)
    with pytest.raises(InvalidInputError, match=r"^local_path: .* is a directory of a storage"):
        up("memory://bucket/folder/", there / "x")
    with pytest.raises(InvalidInputError, match=r"^local_path: .* is in a storage"):
        up(["memory://bucket/key", work], there / "x")
    assert len(connected.requests) == before
    up(work, there / "x")
    with pytest.raises(InvalidInputError, match=r"^local_path: .* is in a storage; a directory"):
        down(f"{there}/x", "memory://bucket/folder/")
    fill(there, "it's")
    with pytest.raises(InvalidInputError, match=r"^local_path: .* is in a storage; a file whose name"):
        down(f"{there}/it's", "memory://bucket/key")


def test_what_is_missing_in_a_list_is_told_before_anything_moves(there, tmp_path):
    fill(there, "a")
    with pytest.raises(NotFoundError):
        down([f"{there}/a", f"{there}/missing"], tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_a_directory_whose_name_no_shell_may_see_is_refused_and_leaves_nothing(there, tmp_path):
    fill(there, "it's/a")
    with pytest.raises(InvalidInputError, match="is a directory whose name the gateway cannot be told"):
        down(f"{there}/it's", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    assert down(str(there), tmp_path / "x", include="it's")["files"] == 1


@pytest.mark.parametrize("operation", ["upload", "extract"])
def test_a_failed_upload_leaves_nothing(connected, there, work, operation):
    connected.faults.respond(403, {"message": "Permission denied"}, on=operation, times=1)
    with pytest.raises(Exception, match="denied"):
        up(work, there / "here")
    assert content(there) == {}


@pytest.mark.parametrize("operation", ["compress", "download"])
def test_a_failed_download_leaves_nothing(connected, there, work, tmp_path, operation):
    up(work, there / "here")
    connected.faults.respond(403, {"message": "Permission denied"}, on=operation, times=1)
    with pytest.raises(Exception, match="denied"):
        down(f"{there}/here", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert content(there / "here") == content(work)


def test_a_target_that_is_a_file_is_refused(there, work, tmp_path):
    up(work, there / "here")
    (tmp_path / "file").write_text("mine")
    with pytest.raises((InvalidInputError, TransferError), match="file"):
        down(f"{there}/here", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# --- lists of small files ---


def many(folder: Path, count: int) -> list[Path]:
    fill(folder, *(f"{number:04}.txt" for number in range(count)))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_list_of_small_files_takes_ten_requests_each_way(connected, there, tmp_path, count):
    files = many(tmp_path / "many", count)
    before = len(connected.requests)
    sent = up(files, there / "new/place", make_parents=True)
    assert len(asked(connected, before)) <= 10, asked(connected, before)
    rows = [
        {
            "system": "embedded",
            "remote_path": f"{there}/new/place/{path.name}",
            "local_path": str(path),
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "staged": False,
            "verified": "size",
            "skipped": False,
        }
        for path in files
    ]
    assert sent == rows
    fill(there, "new/place/unwanted")
    before = len(connected.requests)
    back = down([row["remote_path"] for row in reversed(rows)], tmp_path / "back/again")
    assert len(asked(connected, before)) <= 10, asked(connected, before)
    assert back == [
        row | {"local_path": f"{tmp_path}/back/again/{path.name}"}
        for row, path in zip(reversed(rows), reversed(files), strict=True)
    ]
    assert content(tmp_path / "back/again") == content(tmp_path / "many")


def test_what_is_large_or_odd_in_a_list_travels_beside_the_archive(small_limits, tmp_path):
    there, files = small_limits.home / "mixed", many(tmp_path / "many", 8)
    (tmp_path / "large").write_bytes(os.urandom(100_000))
    fill(tmp_path, "it's")
    files = [files[0], tmp_path / "large", tmp_path / "it's", *files[1:]]
    sent = up(files, there, make_parents=True)
    assert [row["remote_path"] for row in sent] == [f"{there}/{path.name}" for path in files]
    assert [row["staged"] for row in sent] == [False, True, *[False] * 8]
    assert small_limits.requests.count("extract") == 1
    back = down([f"{there}/{path.name}" for path in files], tmp_path / "back")
    assert [row["local_path"] for row in back] == [f"{tmp_path}/back/{path.name}" for path in files]
    # The odd one comes in an archive of its own, with all that is beside it.
    assert [row["staged"] for row in back] == [False, True, True, *[False] * 7]
    assert small_limits.requests.count("compress") == 2
    for path in files:
        assert (there / path.name).read_bytes() == path.read_bytes()
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("terms", [{"if_exists": "skip"}, {"verify": "always"}])
def test_terms_of_each_file_keep_a_list_out_of_an_archive(connected, there, tmp_path, terms):
    files = many(tmp_path / "many", 7)
    (there / files[0].name).write_text("mine")
    sent = up(files, there, **terms)
    assert [row["skipped"] for row in sent] == [terms == {"if_exists": "skip"}, *[False] * 6]
    assert sent[1]["verified"] == ("sha256" if "verify" in terms else "size")
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / files[0].name).write_text("mine")
    back = down([row["remote_path"] for row in sent], tmp_path / "back", **terms)
    assert [row["skipped"] for row in back] == [row["skipped"] for row in sent]


def test_files_of_a_list_look_as_if_they_had_travelled_alone(there, tmp_path):
    files = many(tmp_path / "many", 7)
    for path in files:
        path.chmod(0o700)
        os.utime(path, (10**9, 10**9))
    umask = os.umask(0o027)
    try:
        up(files, there)
        assert {path.stat().st_mode & 0o111 for path in there.iterdir()} == {0}
        names = [f"{there}/{path.name}" for path in files]
        down(names, tmp_path / "usual")
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "usual").iterdir()} == {0o640}
        assert all(path.stat().st_mtime > 10**9 for path in (tmp_path / "usual").iterdir())
        up(files, there, preserve_mode=True)
        down(names, tmp_path / "kept", preserve_mode=True, preserve_mtime=True)
    finally:
        os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "kept").iterdir()} == {0o700}
    times = [{path.stat().st_mtime for path in folder.iterdir()} for folder in (tmp_path / "kept", there)]
    assert times[0] == {int(time) for time in times[1]}


def test_what_a_list_needs_is_not_made_unless_that_is_wanted(there, tmp_path):
    files = many(tmp_path / "many", 7)
    with pytest.raises(NotFoundError):
        up(files, there / "missing")
    assert list(there.iterdir()) == []
    up(files, there)
    names = [f"{there}/{path.name}" for path in files]
    with pytest.raises(InvalidInputError, match=r"^local_path: directory .*missing does not exist"):
        down(names, tmp_path / "missing", make_parents=False)
    with pytest.raises(NotFoundError):
        down([*names, f"{there}/not there"], tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_list_brings_nothing_that_is_large_and_not_wanted(connected, there, tmp_path, monkeypatch):
    monkeypatch.setattr(trees, "_TOO_MUCH", 1000)
    files = many(there, 7)
    fill(there / "sub", "0001.txt")
    (there / "huge").write_bytes(os.urandom(100_000))
    (there / "sub/huge.txt").write_bytes(os.urandom(100_000))
    before = len(connected.requests)
    names = [str(path) for path in files]
    assert [row["size"] for row in down(names, tmp_path / "back")] == [8] * 7
    assert (asked(connected, before).count("compress"), asked(connected, before).count("download")) == (1, 1)
    # No pattern is narrow enough for these.
    (there / "0003.large.txt").write_bytes(os.urandom(100_000))
    before = len(connected.requests)
    assert len(down(names, tmp_path / "again")) == 7
    assert asked(connected, before).count("compress") == 0
    assert set(content(tmp_path / "again")) == {path.name for path in files}


def test_links_in_a_list_are_followed_as_they_are_alone(there, tmp_path):
    files = many(there, 7)
    (there / "link").symlink_to(files[0].name)
    back = down([f"{there}/link", *map(str, files)], tmp_path / "back")
    assert [row["size"] for row in back] == [8] * 8
    assert not (tmp_path / "back/link").is_symlink()
    up(sorted((tmp_path / "back").iterdir()), there / "sent", make_parents=True)
    assert len(content(there / "sent")) == 8


def test_a_file_of_a_list_that_vanishes_is_told(connected, there, tmp_path, monkeypatch):
    files = many(there, 7)
    compress = trees.files.compress

    def gone(*args: Any, **given: Any) -> Any:
        files[3].unlink()
        return compress(*args, **given)

    monkeypatch.setattr(trees.files, "compress", gone)
    with pytest.raises(TransferError, match=r"6 files instead of 7"):
        down([str(path) for path in files], tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []


# --- what the outlets are told ---


def told(operator: Any, *assets: Asset) -> list[dict[str, Any]]:
    context = context_of()
    context["outlet_events"] = OutletEventAccessors()
    operator.outlets = list(assets)
    operator.execute(context)
    return [context["outlet_events"][asset].extra for asset in assets]


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_outlets_of_a_download_are_told_of_directories_globs_and_lists(there, work, tmp_path):
    up(work, there / "out")
    base = f"hpc://embedded{there}/out"
    job = {"job_id": "7", "working_directory": str(there), "system": "embedded"}

    def tell(remote_path: Any, *assets: str) -> list[dict[str, Any]]:
        operator = HpcDownloadOperator(
            task_id="down", remote_path=remote_path, local_path=tmp_path / "back", job=job
        )
        return told(operator, *map(Asset, assets))

    known = {"system": "embedded", "job_id": "7"}
    end = {"local_path": f"{tmp_path}/back"}
    one = {"size": 4, "sha256": digest_of(work / "a.nc")}
    assert tell("out", base, f"{base}/run-1", f"{base}/a.nc", f"{base}/missing") == [
        known | end | {"path": f"{there}/out", "files": 6, "size": sum(map(len, content(work)))},
        known | {"path": f"{there}/out/run-1", "files": 2, "size": len("run-1/out.ncrun-1/log")},
        known | one | {"path": f"{there}/out/a.nc"},
        {},
    ]
    assert tell("out/*.nc", base, f"{base}/a.nc", f"file://{tmp_path}/back/a.nc") == [
        known | end | {"path": f"{there}/out", "glob": f"{there}/out/*.nc", "files": 1, "size": 4},
        known | one | {"path": f"{there}/out/a.nc"},
        known
        | one
        | {"path": f"{there}/out", "glob": f"{there}/out/*.nc", "local_path": f"{tmp_path}/back/a.nc"},
    ]
    both = [f"{there}/out/a.nc", f"{there}/out/run-2"]
    assert tell(["out/a.nc", "out/run-2"], base, f"{base}/a.nc", f"{base}/run-2/out.nc") == [
        known | end | {"path": both, "files": 2, "size": 4 + len("run-2/out.nc")},
        known | one | {"path": f"{there}/out/a.nc"},
        known
        | {
            "path": f"{there}/out/run-2/out.nc",
            "size": len("run-2/out.nc"),
            "sha256": digest_of(work / "run-2/out.nc"),
        },
    ]


def test_the_outlets_of_an_upload_are_told_of_what_an_archive_holds(there, work):
    operator = HpcUploadOperator(task_id="up", local_path=work, remote_path=f"{there}/in")
    base = f"hpc://embedded{there}/in"
    assert told(operator, Asset(base), Asset(f"{base}/a.nc")) == [
        {
            "system": "embedded",
            "path": f"{there}/in",
            "local_path": str(work),
            "files": 6,
            "size": sum(map(len, content(work))),
        },
        {"system": "embedded", "path": f"{there}/in/a.nc", "size": 4, "sha256": digest_of(work / "a.nc")},
    ]


# --- what is hostile, large or odd ---


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


HOSTILE = {
    "absolute": member("/tmp/airflow-hpc-evil"),
    "climbing": member("run/../../evil"),
    "link out": member("run/link", tarfile.SYMTYPE, "../../../outside"),
    "hard link out": member("run/link", tarfile.LNKTYPE, "/etc/passwd"),
    "device": member("run/null", tarfile.CHRTYPE),
    "bomb": member("run/bomb", size=10_000_000),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("several", [False, True])
def test_a_hostile_archive_leaves_nothing_on_either_side(  # noqa: PLR0917 - fixtures
    connected, there, tmp_path, monkeypatch, case, several
):
    names = [path.name for path in many(there / "run", 7)]
    before = {path for top in (connected.root, tmp_path) for path in top.rglob("*")}

    def hostile(_files: Any, _source: str, target: str, **_: Any) -> None:
        with tarfile.open(target, "w:gz") as tar:
            for name in names:
                tar.addfile(member(f"run/{name}"))
            tar.addfile(HOSTILE[case], io.BytesIO(bytes(HOSTILE[case].size)))

    monkeypatch.setattr(FileSystems, "compress", hostile)
    target = tmp_path / "back"
    if several:
        target.mkdir()
        before.add(target)
    given = [f"{there}/run/{name}" for name in names] if several else f"{there}/run"
    if several and case in {"link out", "hard link out", "bomb"}:
        # Only what is wanted is taken out of an archive, whatever else is in it.
        assert len(down(given, target, max_bytes=1000)) == 7
        before |= {target / name for name in names}
    else:
        with pytest.raises(TransferError):
            down(given, target, max_bytes=1000)
    assert {path for top in (connected.root, tmp_path) for path in top.rglob("*")} == before
    assert not Path("/tmp/airflow-hpc-evil").exists()


@pytest.mark.slow
def test_five_thousand_files_of_a_directory_go_both_ways(connected, there, tmp_path):
    many(tmp_path / "many", 5000)
    before = len(connected.requests)
    assert up(tmp_path / "many", there / "many")["files"] == 5000
    assert down(f"{there}/many", tmp_path / "back")["files"] == 5000
    assert len(asked(connected, before)) <= 20
    assert content(tmp_path / "back") == content(tmp_path / "many")


def test_names_that_are_no_utf_8_survive_in_a_tree(there, tmp_path):
    raw = os.fsencode(tmp_path / "work")
    Path(os.fsdecode(raw + b"/\xff\xfe")).mkdir(parents=True)
    for name in (b"\xff\xfe/\x80", b"\xe9t\xe9"):
        Path(os.fsdecode(raw + b"/" + name)).write_bytes(name)
    result = up(tmp_path / "work", there / "here")
    assert json.loads(json.dumps(result))["files"] == 2
    assert (
        Path(os.fsdecode(os.fsencode(there / "here") + b"/\xff\xfe/\x80"))
    ).read_bytes() == b"\xff\xfe/\x80"
    down(f"{there}/here", tmp_path / "back")
    names = {os.fsencode(path.relative_to(tmp_path / "back")) for path in (tmp_path / "back").rglob("*")}
    assert names == {b"\xff\xfe", b"\xff\xfe/\x80", b"\xe9t\xe9"}


def test_a_file_that_nobody_may_read_travels_if_its_owner_is_root_and_is_told_else(there, work, tmp_path):
    (work / "a.nc").chmod(0)
    if os.geteuid():
        with pytest.raises(TransferError, match=r"a\.nc cannot be read"):
            up(work, there / "here")
        assert list(there.iterdir()) == []
        return
    up(work, there / "here")
    assert (there / "here/a.nc").stat().st_mode & 0o777 == 0
    down(f"{there}/here", tmp_path / "back")
    assert (tmp_path / "back/a.nc").stat().st_mode & 0o777 == 0
    assert content(tmp_path / "back") == content(work)
