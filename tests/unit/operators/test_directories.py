"""What happens on the systems: making, listing, deleting and copying, against the embedded gateway."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow_home import StateStore, context_of

from airflow_hpc_provider.client import copying, relay, remote
from airflow_hpc_provider.client.errors import (
    BadRequestError,
    InvalidInputError,
    NotFoundError,
    TransferError,
    UnavailableError,
    WatchError,
)
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.operators.directories import (
    HpcCopyOperator,
    HpcDeleteOperator,
    HpcListOperator,
    HpcMakeDirectoryOperator,
)

# Each moves files by jobs, which take their time.
pytestmark = pytest.mark.slow

KIB = 1024


class Store(StateStore):
    """Airflow's task state store, from which things can be deleted, too."""

    def delete(self, key: str) -> None:
        self.pop(key, None)


def make(path: Any, **options: Any) -> Any:
    return HpcMakeDirectoryOperator(task_id="make", path=path, **options).execute({})


def listed(path: Any, **options: Any) -> Any:
    return HpcListOperator(task_id="list", path=path, **options).execute({})


def delete(path: Any, **options: Any) -> Any:
    return HpcDeleteOperator(task_id="delete", path=path, poll_interval=0.1, **options).execute({})


def copy(source: Any, target: Any, context: Any = None, **options: Any) -> Any:
    return copier(source, target, **options).execute(context or {"ti": context_of()["ti"]})


def copier(source: Any, target: Any, **options: Any) -> HpcCopyOperator:
    return HpcCopyOperator(
        task_id="copy",
        source_path=str(source),
        target_path=str(target),
        **{"poll_interval": 0.1, "deferrable": False, **options},
    )


@pytest.fixture
def there(connected, request) -> Path:
    """A directory on the cluster for one test."""
    folder = connected.scratch / "dirs" / hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def two(make_gateway, connect, monkeypatch):
    """Two gateways on which little is large, and a connection to each."""
    limits = {"max_ops_file_size": 64 * KIB, "max_part_size": 50_000, "ingress_poll": 0.1}
    here, elsewhere = make_gateway(system="here", **limits), make_gateway(system="there", **limits)
    connect(here)
    monkeypatch.setenv("AIRFLOW_CONN_ELSEWHERE", json.dumps(elsewhere.connection()))
    return here, elsewhere


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def asked(gateway, *operations: str) -> int:
    return sum(gateway.requests.count(operation) for operation in operations)


# --- make ---


def test_directories_are_made_with_those_above_and_made_again(connected, there):
    for _ in range(2):
        assert make(f"{there}/a/b//c/") == f"{there}/a/b/c"
    assert make([f"{there}/d", f"{there}/e f"], mode="750") == [f"{there}/d", f"{there}/e f"]
    assert (there / "a/b/c").is_dir()
    assert (there / "e f").stat().st_mode & 0o777 == 0o750
    assert make("{working_dir}/dirs/made") == f"{connected.home}/dirs/made"


def test_without_parents_an_existing_directory_is_an_error(connected, there):
    make(f"{there}/a", parents=False)
    with pytest.raises(BadRequestError, match="File exists"):
        make(f"{there}/a", parents=False)
    with pytest.raises(NotFoundError):
        make(f"{there}/no/b", parents=False)


# --- list ---


def test_a_listing_is_plain_and_sorted(connected, there):
    fill(there, "b.txt", "a.nc", "sub/c.nc", ".hidden")
    (there / "link").symlink_to(there / "a.nc")
    found = listed(str(there))
    assert [(entry["name"], entry["type"]) for entry in found] == [
        ("a.nc", "file"),
        ("b.txt", "file"),
        ("link", "link"),
        ("sub", "directory"),
    ]
    assert found[0] == {
        "path": f"{there}/a.nc",
        "name": "a.nc",
        "type": "file",
        "size": 4,
        "modified": found[0]["modified"],
        "permissions": "rw-r--r--",
        "user": found[0]["user"],
        "group": found[0]["group"],
        "link_target": None,
    }
    assert found[2]["link_target"] == f"{there}/a.nc"
    assert json.loads(json.dumps(found)) == found
    assert [entry["name"] for entry in listed(str(there), hidden=True, kind="file")] == [
        ".hidden",
        "a.nc",
        "b.txt",
    ]


def test_a_listing_is_filtered_by_glob_kind_and_limit(connected, there):
    fill(there, "a.nc", "b.txt", "sub/c.nc", "sub/deep/d.nc")

    def names(**options: Any) -> list[str]:
        return [path.removeprefix(f"{there}/") for path in listed(str(there), paths_only=True, **options)]

    assert names(glob="*.nc") == ["a.nc"]
    assert names(glob="*.nc", recursive=True) == ["a.nc", "sub/c.nc", "sub/deep/d.nc"]
    assert names(glob=["/*.nc", "*.txt"], recursive=True) == ["a.nc", "b.txt"]
    assert names(glob="sub/*/*.nc", recursive=True) == ["sub/deep/d.nc"]
    assert names(kind="directory", recursive=True) == ["sub", "sub/deep"]
    assert names(limit=2, recursive=True) == ["a.nc", "b.txt"]
    assert names(limit="1") == ["a.nc"]
    assert names(glob="none*") == []


def test_a_file_and_a_link_to_a_directory_are_listed_as_one_means_it(connected, there):
    fill(there, "sub/a.nc")
    (there / "link").symlink_to(there / "sub")
    (there / "chain").symlink_to("link")
    assert listed(f"{there}/sub/a.nc", paths_only=True) == [f"{there}/sub/a.nc"]
    assert listed(f"{there}/link", paths_only=True) == [f"{there}/link/a.nc"]
    assert listed(f"{there}/chain/", paths_only=True) == [f"{there}/chain/a.nc"]


def test_a_tree_too_large_for_one_request_is_walked(connected, there):
    fill(there, "a", "sub/b", "sub/deep/c", "other/d")
    connected.faults.respond(408, on="ls", times=1)
    before = asked(connected, "ls")
    assert [entry["name"] for entry in listed(str(there), recursive=True)] == [
        "a",
        "other",
        "other/d",
        "sub",
        "sub/b",
        "sub/deep",
        "sub/deep/c",
    ]
    assert asked(connected, "ls") - before == 5
    connected.faults.respond(408, on="ls", times=None)
    with pytest.raises(TransferError, match=r"cannot list .* in its five seconds"):
        listed(str(there))


@pytest.mark.parametrize("count", [200, pytest.param(5_000, marks=pytest.mark.slow)])
def test_thousands_of_entries_are_one_request(connected, there, count):
    for number in range(count):
        (there / f"{number:04}").touch()
    before = asked(connected, "ls")
    assert len(listed(str(there), paths_only=True)) == count
    assert asked(connected, "ls") - before == 1


def test_what_is_not_there_or_not_understood_is_an_error(connected, there):
    with pytest.raises(NotFoundError):
        listed(f"{there}/none")
    with pytest.raises(InvalidInputError, match=r"^kind: 'dir' is none of file, directory, link"):
        listed(str(there), kind="dir")
    with pytest.raises(InvalidInputError, match=r"^limit: "):
        listed(str(there), limit=0)


# --- delete ---


def test_files_directories_and_links_are_deleted(connected, there):
    fill(there, "a", "keep/x", "sub/deep/b", "c d")
    (there / "link").symlink_to(there / "keep")
    gone = [f"{there}/a", f"{there}/sub/", f"{there}/c d", f"{there}/link"]
    assert delete(gone) == [path.rstrip("/") for path in gone]
    assert sorted(path.name for path in there.iterdir()) == ["keep"]
    assert (there / "keep/x").read_text() == "keep/x"


def test_what_is_not_there_is_an_error_unless_that_is_fine(connected, there):
    with pytest.raises(NotFoundError):
        delete(f"{there}/none")
    assert delete([f"{there}/none", f"{there}/no*", f"{there}/no/x*"], allow_glob=True, missing_ok=True) == []
    with pytest.raises(InvalidInputError, match=r"nothing in .* matches 'no\*'; see missing_ok"):
        delete(f"{there}/no*", allow_glob=True)
    with pytest.raises(NotFoundError):
        delete(f"{there}/no/x*", allow_glob=True)


def test_what_a_transfer_has_left_is_listed_and_deleted(connected, there):
    left = there / ".airflow-hpc-0123456789abcdef"
    left.mkdir()
    (left / "0.tar.gz").write_bytes(b"archive")
    assert listed(str(there), hidden=True, paths_only=True) == [str(left)]
    assert listed(str(there), hidden=True, glob=".airflow-hpc-*", paths_only=True) == [str(left)]
    assert listed(str(there), hidden=True, recursive=True, kind="file", paths_only=True) == [
        f"{left}/0.tar.gz"
    ]
    assert delete(f"{there}/.airflow-hpc-*", allow_glob=True) == [str(left)]
    assert not left.exists()


def test_a_glob_deletes_what_matches_here_with_one_listing(connected, there):
    fill(there, "a.tmp", "b.tmp", ".c.tmp", "d.nc", "e.tmp/x", "sub/f.tmp")
    before = asked(connected, "ls")
    assert delete(f"{there}/*.tmp", allow_glob=True) == [f"{there}/{name}.tmp" for name in "abe"]
    assert asked(connected, "ls") - before == 1
    assert sorted(path.name for path in there.iterdir()) == [".c.tmp", "d.nc", "sub"]
    assert delete(f"{there}/.c*", allow_glob=True) == [f"{there}/.c.tmp"]


def test_a_name_with_wildcards_in_it_is_deleted_alone(connected, there):
    fill(there, "a*", "ab", "a[1]")
    assert delete(f"{there}/a[*]", allow_glob=True) == [f"{there}/a*"]
    assert delete(f"{there}/a[[]1]", allow_glob=True) == [f"{there}/a[1]"]
    assert [path.name for path in there.iterdir()] == ["ab"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/", "the root directory"),
        ("{working_dir}", "the connection's working directory|home directory"),
        ("{working_dir}/", "the connection's working directory|home directory"),
        ("{root}/home", "mount point"),
        ("{root}/scratch", "mount point"),
        ("{root}", "above"),
        ("{root}/scratch/{user}", "directory of"),
        ("{root}/ho*", "allow_glob"),
        ("{working_dir}/..", "climbs"),
        ("~", "'~'"),
        ("", "is empty"),
        (None, "is None"),
        ("/$HOME", "dollar"),
    ],
)
def test_home_mount_points_and_what_is_above_stay(connected, path, words):
    (connected.scratch / connected.user).mkdir(exist_ok=True)
    before = asked(connected, "rm", "transfer_rm")
    if path is not None:
        path = path.replace("{root}", str(connected.root)).replace("{user}", connected.user)
    with pytest.raises(InvalidInputError, match=words):
        delete(path)
    with pytest.raises(InvalidInputError, match=words):
        delete(["/scratch/innocent", path], missing_ok=True)
    assert asked(connected, "rm", "transfer_rm") == before
    assert connected.home.is_dir()


@pytest.mark.parametrize("pattern", ["{root}/*", "{root}/home/*", "{root}/sc*", "/*"])
def test_a_glob_reaches_none_of_them(connected, pattern):
    (connected.home / "precious").touch()
    before = asked(connected, "rm")
    with pytest.raises((InvalidInputError, BadRequestError)):
        delete(pattern.replace("{root}", str(connected.root)), allow_glob=True)
    assert (connected.home / "precious").exists()
    assert asked(connected, "rm") == before


def test_a_link_above_gives_home_no_other_name(connected, there):
    (connected.home / "precious").touch()
    (there / "link").symlink_to(connected.root / "home")
    for path, glob in ((f"{there}/link/{connected.user}", False), (f"{there}/link/*", True)):
        with pytest.raises(InvalidInputError, match=r"is another name of .*: it stays"):
            delete(path, allow_glob=glob)
    assert (connected.home / "precious").exists()


@pytest.fixture
def deep(connected, there, monkeypatch) -> Path:
    """The connection's working directory, far below what the gateway shows."""
    place = there / "airflow" / "deep" / "work"
    place.mkdir(parents=True)
    (place / "precious").touch()
    connection = connected.connection(working_dir=str(place))
    monkeypatch.setenv("AIRFLOW_CONN_HPC_DEFAULT", json.dumps(connection))
    return place


@pytest.mark.parametrize("above", ["airflow", "airflow/deep", "airflow/deep/work"])
@pytest.mark.parametrize("act", ["delete", "glob", "move"])
def test_what_is_above_the_working_directory_has_no_other_name_either(connected, there, deep, above, act):
    (there / "link").symlink_to(there)
    path = f"{there}/link/{above}"
    acts = {
        "delete": lambda: delete(path),
        "glob": lambda: delete(f"{path[:-1]}*", allow_glob=True),
        "move": lambda: copy(path, f"{there}/stolen", move=True),
    }
    before = asked(connected, "rm", "transfer_mv")
    with pytest.raises(InvalidInputError, match=r"is another name of .*: it stays"):
        acts[act]()
    assert (deep / "precious").exists()
    assert asked(connected, "rm", "transfer_mv") == before


@pytest.mark.parametrize("link", ["work", "way/work"])
def test_a_working_directory_that_a_link_leads_to_stays_with_what_is_above(
    connected, there, deep, monkeypatch, link
):
    (there / "way").symlink_to(deep.parent)
    (there / "work").symlink_to("way/work")
    connection = connected.connection(working_dir=f"{there}/{link}")
    monkeypatch.setenv("AIRFLOW_CONN_HPC_DEFAULT", json.dumps(connection))
    for path in (deep, *list(deep.parents)[:2]):
        with pytest.raises(InvalidInputError, match=r"is another name of|is above"):
            delete(str(path))
    # The link itself is none of the directories on the way.
    fill(there, "other/x")
    assert delete(f"{there}/other") == [f"{there}/other"]
    assert (deep / "precious").exists()


def test_the_way_to_what_stays_is_asked_for_once(connected, there, deep):
    fill(there, "sub/x", "file")
    before = asked(connected, "stat", "ls")
    delete(f"{there}/file")
    assert asked(connected, "stat", "ls") - before == 1
    before = asked(connected, "stat", "ls")
    delete(f"{there}/sub")
    # The working directory and all above it, the other file system and the user's directory on each.
    way = deep.relative_to(connected.root).parts
    assert asked(connected, "stat", "ls") - before == 2 + len(way) + 3


def test_one_path_that_stays_keeps_all_others(connected, there):
    fill(there, "a")
    with pytest.raises(InvalidInputError):
        delete([f"{there}/a", str(connected.home)])
    assert (there / "a").exists()


def test_what_takes_too_long_is_deleted_by_a_job(connected, there):
    fill(there, "sub/deep/a")
    late = connected.faults.respond(408, on="rm", times=None)
    assert delete(f"{there}/sub") == [f"{there}/sub"]
    assert not (there / "sub").exists()
    assert late.hits == 1


def test_a_job_that_deletes_nothing_is_noticed_although_it_ends_well(connected, there, monkeypatch):
    fill(there, "sub/a")
    connected.faults.respond(408, on="rm", times=None)
    _break_command(monkeypatch, "false")
    with pytest.raises(
        TransferError, match=f"{there}/sub on system embedded is still there: .*Unable to delete"
    ):
        delete(f"{there}/sub")


def _break_command(monkeypatch, command: str) -> None:
    """Let the jobs that the gateway submits for commands run another one."""
    _change_command(monkeypatch, lambda _: command)


def _change_command(monkeypatch, change: Callable[[str], str]) -> None:
    from airflow_hpc_provider.devgateway import transfer

    real = transfer._command

    def changed(call: Any, name: str, command: str, *rest: Any, **options: Any) -> Any:
        return real(call, name, change(command), *rest, **options)

    monkeypatch.setattr(transfer, "_command", changed)


def test_an_answer_that_is_lost_leaves_it_deleted(connected, there):
    fill(there, "a")
    connected.faults.lose_answer(on="rm", times=1)
    assert delete(f"{there}/a") == [f"{there}/a"]


# --- copy and move on one system ---


@pytest.mark.parametrize("move", [False, True])
def test_files_and_directories_are_copied_and_moved_by_a_job(connected, there, move):
    fill(there, "a b", "tree/deep/x")
    into = there / "into"
    into.mkdir()
    result = copy(there / "a b", there / "c", move=move)
    assert result == {
        "source_path": f"{there}/a b",
        "target_path": f"{there}/c",
        "source_system": "embedded",
        "target_system": "embedded",
        "size": 3,
        "skipped": False,
        "moved": move,
    }
    assert (there / "c").read_text() == "a b"
    assert copy(there / "tree", into, move=move)["target_path"] == f"{into}/tree"
    assert (into / "tree/deep/x").read_text() == "tree/deep/x"
    assert (there / "a b").exists() is not move
    assert (there / "tree").exists() is not move
    assert json.loads(json.dumps(result)) == result


def test_a_slash_at_the_end_means_into_the_directory(connected, there):
    fill(there, "a", "sub/b")
    assert copy(there / "a", f"{there}/sub/")["target_path"] == f"{there}/sub/a"
    with pytest.raises(NotFoundError):
        copy(there / "a", f"{there}/none/")
    assert asked(connected, "transfer_mv") == 0 or not (there / "none").exists()


@pytest.mark.parametrize("move", [False, True])
def test_what_cannot_be_copied_is_refused_before_a_job(connected, there, move):
    fill(there, "a", "tree/x", "into/tree/y", "file")
    (there / "same").symlink_to(there / "a")
    before = asked(connected, "transfer_cp", "transfer_mv")
    for source, target, words in (
        ("a", "a", "is .*/a itself"),
        ("a", "same", "is .*/a itself"),
        ("tree", "tree/new", "inside of"),
        ("tree", "tree", "inside of"),
        ("tree", "into", "directories are not merged"),
        ("tree", "file", "is a file that is there already"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            copy(there / source, there / target, move=move)
    for source, target in (("none", "b"), ("a", "no/b")):
        with pytest.raises(NotFoundError):
            copy(there / source, there / target, move=move)
    assert asked(connected, "transfer_cp", "transfer_mv") == before


@pytest.mark.parametrize("source", ["/", "{working_dir}", "{root}/scratch"])
def test_home_and_mount_points_are_not_moved_away(connected, there, source):
    with pytest.raises(InvalidInputError, match="it is not moved"):
        copy(source.replace("{root}", str(connected.root)), there, move=True)


def test_home_is_not_moved_by_another_name_either(connected, there):
    (there / "link").symlink_to(connected.root / "home")
    with pytest.raises(InvalidInputError, match="is another name of"):
        copy(f"{there}/link/{connected.user}", f"{there}/stolen", move=True)
    assert connected.home.is_dir()


def test_what_is_there_already_is_treated_as_wished(connected, there):
    fill(there, "a", "b", "tree/x", "into/tree/y")
    (there / "same").write_text("a")
    assert copy(there / "a", there / "b", if_exists="skip")["skipped"]
    assert copy(there / "tree", there / "into", if_exists="skip")["skipped"]
    assert copy(there / "a", there / "same", if_exists="verify")["skipped"]
    for source, target in (("a", "b"), ("tree", "into")):
        with pytest.raises(TransferError, match="if_exists='fail'"):
            copy(there / source, there / target, if_exists="fail")
    assert (there / "b").read_text() == "b"
    os.utime(there / "b", (1, 1))
    assert not copy(there / "a", there / "b", if_exists="newer")["skipped"]
    assert (there / "b").read_text() == "a"
    assert copy(there / "a", there / "b", if_exists="newer")["skipped"]
    fill(there, "b")
    copy(there / "a", there / "b")
    assert (there / "b").read_text() == "a"


@pytest.mark.parametrize(
    ("command", "words"),
    [("false", "Unable to"), ("true); exit 3; (true", "ended FAILED"), ("true", "was not")],
)
@pytest.mark.parametrize("move", [False, True])
def test_a_job_that_has_not_worked_is_noticed(there, monkeypatch, command, words, move):
    fill(there, "a")
    _break_command(monkeypatch, command)
    with pytest.raises(TransferError, match=words):
        copy(there / "a", there / "b", move=move)
    assert [path.name for path in there.iterdir()] == ["a"]


def test_a_copy_that_breaks_off_leaves_nothing(connected, there, monkeypatch):
    fill(there, "tree/a")
    _break_command(monkeypatch, f"mkdir {there}/new; touch {there}/new/a; false")
    with pytest.raises(TransferError, match="was not copied"):
        copy(there / "tree", there / "new")
    assert [path.name for path in there.iterdir()] == ["tree"]


def test_a_full_disk_is_no_reason_to_try_again(connected, there, monkeypatch):
    fill(there, "a")
    _break_command(monkeypatch, "echo No space left on device; false")
    with pytest.raises(TransferError, match="No space left") as full:
        copy(there / "a", there / "b")
    assert not full.value.transient


def test_a_retry_sees_that_a_move_is_done(connected, there):
    fill(there, "a")
    store = Store()
    context = context_of(store=store)
    connected.faults.respond(500, on="job", times=None)
    connected.faults.respond(500, on="jobs", times=None)
    seen: list[str] = []
    hook_wait = HpcHook.waiting

    def crash(self: HpcHook, client: Any, system: Any, **options: Any) -> Any:
        def wait(job_id: str) -> Any:
            end = time.monotonic() + 10
            while (there / "a").exists() and time.monotonic() < end:
                time.sleep(0.02)
            seen.append(job_id)
            raise SystemExit

        return wait

    HpcHook.waiting = crash  # type: ignore[method-assign]
    try:
        operator = copier(there / "a", there / "b", move=True)
        operator._still_wanted = lambda _: True  # type: ignore[method-assign]
        with pytest.raises(SystemExit):
            _leaving(operator).execute(context)
    finally:
        HpcHook.waiting = hook_wait  # type: ignore[method-assign]
    connected.faults.clear()
    connected.faults.vanish(seen[0])
    assert copy(there / "a", there / "b", context, move=True)["target_path"] == f"{there}/b"
    assert (there / "b").read_text() == "a"
    assert store == {}


def _leaving(operator: HpcCopyOperator) -> HpcCopyOperator:
    """A worker that dies in no time: nothing is cleaned up."""
    from unittest.mock import patch

    real = operator.execute

    def execute(context: Any) -> Any:
        with patch("airflow_hpc_provider.client.copying.given_up", lambda *_: contextlib.nullcontext()):
            return real(context)

    operator.execute = execute  # type: ignore[method-assign]
    return operator


def test_a_retry_takes_up_the_job_of_a_try_before_it(connected, there, monkeypatch):
    fill(there, "a")
    store = Store()
    context = context_of(store=store)
    _break_command(monkeypatch, f"sleep 1; cp {there}/a {there}/b")

    def crash(self: HpcHook, client: Any, system: Any, **options: Any) -> Any:
        def wait(_: str) -> Any:
            raise SystemExit

        return wait

    with monkeypatch.context() as patched:
        patched.setattr(HpcHook, "waiting", crash)
        with pytest.raises(SystemExit):
            _leaving(copier(there / "a", there / "b")).execute(context)
    before = asked(connected, "transfer_cp")
    assert copy(there / "a", there / "b", context)["size"] == 1
    assert asked(connected, "transfer_cp") == before
    assert store == {}


class Dying:
    """A worker that is killed when its copy's job has done this much: nothing is cleaned up.

    :param until: waited for before it dies
    """

    def __init__(self, monkeypatch: Any, until: Path) -> None:
        self.jobs: list[str] = []
        self._patch = monkeypatch
        self._until = until

    def run(self, operator: HpcCopyOperator, context: Any) -> None:
        def waiting(*_: Any, **__: Any) -> Any:
            def wait(job_id: str) -> Any:
                self.jobs.append(job_id)
                end = time.monotonic() + 10
                while not self._until.exists() and time.monotonic() < end:
                    time.sleep(0.02)
                raise SystemExit

            return wait

        with self._patch.context() as patched:
            patched.setattr(HpcHook, "waiting", waiting)
            with pytest.raises(SystemExit):
                _leaving(operator).execute(context)


def same_trees(one: Path, other: Path) -> bool:
    def seen(folder: Path) -> dict[str, bytes | None]:
        return {
            str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*")
        }

    return seen(one) == seen(other)


@pytest.mark.parametrize("fate", ["failed", "forgotten", "running"])
def test_a_directory_copy_is_tried_again_without_nesting(connected, there, monkeypatch, fate):
    """A worker is killed in mid-copy, and its job fails, is forgotten, or goes on."""
    fill(there, "tree/a", "tree/deep/b")
    context = context_of(store=Store())
    rest = "sleep 1; cp -r {0}/tree/. {0}/new; rm {0}/new/half" if fate == "running" else "sleep 60"
    with monkeypatch.context() as patched:
        _break_command(patched, f"mkdir {there}/new; touch {there}/new/half; {rest}".format(there))
        dying = Dying(monkeypatch, there / "new/half")
        dying.run(copier(there / "tree", there / "new"), context)
    if fate != "running":
        connected.scheduler.cancel(dying.jobs[0])
    if fate == "forgotten":
        connected.faults.vanish(dying.jobs[0])
    before = asked(connected, "transfer_cp")
    assert copy(there / "tree", there / "new", context)["target_path"] == f"{there}/new"
    assert same_trees(there / "tree", there / "new")
    assert asked(connected, "transfer_cp") - before == (0 if fate == "running" else 1)
    assert context["task_state_store"] == {}


def test_a_cleared_copy_ends_the_job_of_the_run_before_it(connected, there, monkeypatch):
    fill(there, "tree/a")
    store = Store()
    with monkeypatch.context() as patched:
        _break_command(patched, f"mkdir {there}/new; touch {there}/new/half; sleep 60")
        dying = Dying(monkeypatch, there / "new/half")
        dying.run(copier(there / "tree", there / "new"), context_of(store=store))
    copy(there / "tree", there / "new", context_of(store=store, max_tries=3))
    assert same_trees(there / "tree", there / "new")
    assert connected.scheduler.records(dying.jobs[0])[0].state.startswith("CANCELLED")


@pytest.mark.parametrize("move", [False, True])
def test_a_job_whose_submission_was_answered_with_an_error_is_taken_up(connected, there, monkeypatch, move):
    fill(there, "tree/a")
    operation = "transfer_mv" if move else "transfer_cp"
    _change_command(monkeypatch, lambda command: f"sleep 1; {command}")
    before = asked(connected, operation)
    connected.faults.lose_answer(on=operation, status=500)
    assert copy(there / "tree", there / "new", move=move)["target_path"] == f"{there}/new"
    assert [path.name for path in (there / "new").iterdir()] == ["a"]
    assert asked(connected, operation) - before == 1


def test_a_job_that_was_never_submitted_is_submitted_by_the_retry(connected, there, monkeypatch):
    monkeypatch.setattr(copying, "_LOOK_AGAIN", 0.0)
    fill(there, "tree/a")
    (there / "into").mkdir()
    context = context_of(store=Store())
    connected.faults.respond(500, on="transfer_cp")
    with pytest.raises(UnavailableError) as lost:
        copy(there / "tree", there / "into", context)
    assert lost.value.transient
    fill(there, "into/tree/half")
    copy(there / "tree", there / "into", context)
    assert same_trees(there / "tree", there / "into/tree")
    assert context["task_state_store"] == {}


def test_a_job_that_does_not_tell_what_it_copies_is_waited_for(connected, there, monkeypatch, submitted):
    fill(there, "tree/a")
    _change_command(monkeypatch, lambda command: f"sleep 1; {command}")
    connected.faults.lose_answer(on="transfer_cp", status=500)
    connected.faults.respond(501, on="metadata")
    context = context_of(store=Store())
    with pytest.raises(TransferError, match=r"may be the one that copies .*: try again when") as dim:
        copy(there / "tree", there / "new", context)
    assert dim.value.transient
    copy(there / "tree", there / "new", context)
    assert same_trees(there / "tree", there / "new")


def test_a_directory_that_was_moved_in_part_is_left_as_it_is(connected, there, monkeypatch):
    fill(there, "tree/a", "tree/b")
    context = context_of(store=Store())
    with monkeypatch.context() as patched:
        _break_command(patched, f"mkdir {there}/new; mv {there}/tree/a {there}/new; sleep 60")
        dying = Dying(monkeypatch, there / "new/a")
        dying.run(copier(there / "tree", there / "new", move=True), context)
    connected.scheduler.cancel(dying.jobs[0])
    with pytest.raises(TransferError, match="both are there, and either may miss something") as broken:
        copy(there / "tree", there / "new", context, move=True)
    assert not broken.value.transient
    assert sorted(str(path.relative_to(there)) for path in there.rglob("[ab]")) == ["new/a", "tree/b"]


def test_a_file_that_was_replaced_in_part_is_no_reason_to_leave_it(connected, there, monkeypatch):
    """The half copy is newer than the source, and of the task's own making."""
    fill(there, "a")
    (there / "b").write_text("old")
    os.utime(there / "b", (1, 1))
    context = context_of(store=Store())
    with monkeypatch.context() as patched:
        _break_command(patched, f"echo half > {there}/b; touch {there}/half; sleep 60")
        dying = Dying(monkeypatch, there / "half")
        dying.run(copier(there / "a", there / "b", if_exists="newer"), context)
    connected.scheduler.cancel(dying.jobs[0])
    assert not copy(there / "a", there / "b", context, if_exists="newer")["skipped"]
    assert (there / "b").read_text() == "a"


def test_a_copy_waits_in_the_triggerer(connected, there, monkeypatch):
    from airflow.sdk.exceptions import TaskDeferred

    monkeypatch.setattr("airflow_hpc_provider.operators.moving._QUIET", 0.0)
    fill(there, "tree/a")
    context = context_of("copy", store=Store())
    with pytest.raises(TaskDeferred) as deferral:
        copier(there / "tree", there / "new", deferrable=True).execute(context)
    arguments = json.loads(json.dumps(deferral.value.trigger.serialize()[1]))

    async def event() -> Any:
        return await anext(type(deferral.value.trigger)(**arguments).run())

    payload = json.loads(json.dumps(asyncio.run(event()).payload))
    operator = copier(there / "tree", there / "new", deferrable=True)
    result = operator.resume_execution(deferral.value.method_name, {"event": payload}, context)
    assert (result["target_path"], result["size"]) == (f"{there}/new", None)
    assert (there / "new/a").read_text() == "tree/a"
    assert context["task_state_store"] == {}
    fill(there, "x", "y")
    assert copier(there / "x", there / "y", deferrable=True, if_exists="skip").execute(context)["skipped"]


def deferred(operator: HpcCopyOperator, context: Any) -> Any:
    """The trigger that a task waits with, as a triggerer makes it."""
    from airflow.sdk.exceptions import TaskDeferred

    with pytest.raises(TaskDeferred) as deferral:
        operator.execute(context)
    return type(deferral.value.trigger)(**json.loads(json.dumps(deferral.value.trigger.serialize()[1])))


@pytest.mark.parametrize("target", ["new", "old"])
def test_the_half_copy_of_a_deferred_task_goes_with_its_kill(connected, there, monkeypatch, target):
    fill(there, "tree/a", "a", "old")
    source = "tree" if target == "new" else "a"
    _break_command(monkeypatch, f"mkdir {there}/new; touch {there}/new/half {there}/begun; sleep 60")
    trigger = deferred(copier(there / source, there / target, deferrable=True), context_of(store=Store()))
    end = time.monotonic() + 10
    while not (there / "begun").exists() and time.monotonic() < end:
        time.sleep(0.02)
    asyncio.run(trigger.on_kill())
    assert connected.scheduler.records(trigger.watch.job_id)[0].state.startswith("CANCELLED")
    assert (there / "new").exists() is (target != "new")
    assert (there / "old").exists()


def test_a_kill_cancels_the_job_and_leaves_nothing(connected, there, monkeypatch):
    fill(there, "a")
    _break_command(monkeypatch, f"touch {there}/b; sleep 60")
    operator = copier(there / "a", there / "b")
    before = signal.signal(signal.SIGUSR1, lambda *_: operator.on_kill())

    def kill() -> None:
        end = time.monotonic() + 10
        while not (there / "b").exists() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        with pytest.raises((TransferError, WatchError), match="told to end"):
            operator.execute({"ti": context_of()["ti"]})
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert [path.name for path in there.iterdir()] == ["a"]


# --- from one system to another ---


@pytest.mark.parametrize("size", [0, 10, 200_000])
@pytest.mark.parametrize("move", [False, True])
def test_a_file_passes_from_one_gateway_to_another(two, size, move):
    here, elsewhere = two
    content = os.urandom(size)
    source = here.home / f"out{size}{move}.bin"
    source.write_bytes(content)
    source.chmod(0o750)
    result = copy(
        "{working_dir}/" + source.name, "{working_dir}/got.bin", target_conn_id="elsewhere", move=move
    )
    assert result == {
        "source_path": str(source),
        "target_path": f"{elsewhere.home}/got.bin",
        "source_system": "here",
        "target_system": "there",
        "size": size,
        "skipped": False,
        "moved": move,
    }
    got = elsewhere.home / "got.bin"
    assert got.read_bytes() == content
    assert got.stat().st_mode & 0o777 == 0o750
    assert source.exists() is not move


def test_nothing_of_it_touches_the_disk_of_this_machine(two, monkeypatch):
    here, elsewhere = two
    (here.home / "x").write_bytes(os.urandom(200_000))
    # What the gateway says of its systems is kept in a file, by all tasks alike.
    monkeypatch.setattr("airflow_hpc_provider.known.save", lambda *_: None)
    for name in ("mkstemp", "NamedTemporaryFile", "TemporaryFile"):
        monkeypatch.setattr(f"tempfile.{name}", lambda *_, **__: pytest.fail("a temporary file was made"))
    copy("{working_dir}/x", "{working_dir}/x", target_conn_id="elsewhere")
    assert (elsewhere.home / "x").read_bytes() == (here.home / "x").read_bytes()


def test_two_systems_of_one_connection_are_two_sides(make_gateway, connect):
    gateway = make_gateway(systems=["alpha", "beta"], ingress_poll=0.1)
    connect(gateway)
    (gateway.home / "x").write_text("x")
    result = copy(gateway.home / "x", gateway.home / "y", system="alpha", target_system="beta")
    assert (result["source_system"], result["target_system"]) == ("alpha", "beta")
    assert (gateway.home / "y").read_text() == "x"
    assert asked(gateway, "transfer_cp") == 0
    copy(gateway.home / "x", gateway.home / "z", system="beta", target_system="beta")
    assert asked(gateway, "transfer_cp") == 1


def test_a_file_that_both_systems_show_is_not_moved_onto_itself(make_gateway, connect):
    gateway = make_gateway(systems=["alpha", "beta"])
    connect(gateway)
    (gateway.home / "x").write_text("precious")
    with pytest.raises(InvalidInputError, match="both share a file system"):
        copy(gateway.home / "x", gateway.home / "x", system="alpha", target_system="beta", move=True)
    assert (gateway.home / "x").read_text() == "precious"


def test_a_directory_is_not_copied_between_systems(two):
    here, _ = two
    fill(here.home, "tree/x")
    with pytest.raises(InvalidInputError, match="is a directory; between systems single files"):
        copy("{working_dir}/tree", "{working_dir}/tree", target_conn_id="elsewhere")


def test_what_is_there_on_the_other_system_is_treated_as_wished(two):
    here, elsewhere = two
    fill(here.home, "x")
    (elsewhere.home / "x").write_text("old")

    def again(if_exists: str) -> Any:
        return copy("{working_dir}/x", "{working_dir}/x", target_conn_id="elsewhere", if_exists=if_exists)

    assert again("skip")["skipped"]
    with pytest.raises(TransferError, match="if_exists='fail'"):
        again("fail")
    assert not again("verify")["skipped"]
    assert (elsewhere.home / "x").read_text() == "x"
    assert again("verify")["skipped"]
    assert again("newer")["skipped"]


def test_a_file_that_changes_on_its_way_is_refused(two, monkeypatch):
    here, elsewhere = two
    (here.home / "x").write_bytes(os.urandom(200_000))
    stage = relay.RemoteSource.stage

    def changed(self: relay.RemoteSource) -> None:
        stage(self)
        (here.home / "x").write_bytes(os.urandom(200_001))

    monkeypatch.setattr(relay.RemoteSource, "stage", changed)
    with pytest.raises(TransferError, match="changed while it was copied"):
        copy("{working_dir}/x", "{working_dir}/y", target_conn_id="elsewhere", move=True)
    assert (here.home / "x").exists()
    assert not (elsewhere.home / "y").exists()


def test_a_copy_that_is_not_what_the_source_has_is_removed(two):
    here, elsewhere = two
    (here.home / "x").write_bytes(os.urandom(200_000))
    body = {"output": {"algorithm": "SHA256", "checksum": "0" * 64}}
    here.faults.respond(200, body, on="checksum", times=None)
    with pytest.raises(TransferError, match="has sha256 0000"):
        copy("{working_dir}/x", "{working_dir}/y", target_conn_id="elsewhere", move=True)
    assert (here.home / "x").exists()
    assert not (elsewhere.home / "y").exists()


@pytest.mark.parametrize("size", [10, 200_000])
@pytest.mark.parametrize("moment", ["amid", "at the end"])
def test_a_source_that_changes_amid_a_move_stays_and_so_does_its_copy(two, monkeypatch, size, moment):
    here, elsewhere = two
    source, content = here.home / "x", os.urandom(size)
    source.write_bytes(content)
    what = "upload_file" if moment == "amid" else "_compare"
    real = getattr(relay, what)

    def changing(*arguments: Any, **options: Any) -> Any:
        """Somebody writes to the source when all of it has been read."""
        done = real(*arguments, **options)
        source.write_bytes(content[:-1])
        return done

    monkeypatch.setattr(relay, what, changing)
    with pytest.raises(TransferError, match=r"changed while it was moved to .*: it stays") as changed:
        copy("{working_dir}/x", "{working_dir}/y", target_conn_id="elsewhere", move=True)
    assert not changed.value.transient
    assert source.read_bytes() == content[:-1]
    assert (elsewhere.home / "y").read_bytes() == content


@pytest.mark.parametrize("size", [10, 200_000])
@pytest.mark.parametrize("side", ["here", "there"])
def test_a_move_compares_the_sha256_of_both_sides(two, size, side):
    here, elsewhere = two
    (here.home / "x").write_bytes(os.urandom(size))
    body = {"output": {"algorithm": "SHA256", "checksum": "0" * 64}}
    (here if side == "here" else elsewhere).faults.respond(200, body, on="checksum", times=None)
    with pytest.raises(TransferError, match="has sha256 0000"):
        copy("{working_dir}/x", "{working_dir}/y", target_conn_id="elsewhere", move=True)
    assert (here.home / "x").exists()
    assert not (elsewhere.home / "y").exists()


@pytest.mark.parametrize("size", [10, 200_000])
@pytest.mark.parametrize("options", [{"move": True}, {"verify": "always"}])
def test_a_sha256_that_the_gateway_cannot_tell_is_computed_by_a_job(two, size, options):
    here, elsewhere = two
    (here.home / "a b").write_bytes(os.urandom(size))
    for gateway in two:
        gateway.faults.respond(408, on="checksum", times=None)
    if size > KIB:
        (here.home / "a b").rename(here.home / "ab")
    source = "{working_dir}/ab" if size > KIB else "{working_dir}/a b"
    copy(source, "{working_dir}/y", target_conn_id="elsewhere", **options)
    assert (elsewhere.home / "y").stat().st_size == size
    assert asked(here, "submit") == asked(elsewhere, "submit") == 1


@pytest.mark.parametrize("size", [10, 200_000])
@pytest.mark.parametrize("options", [{"move": True}, {"verify": "always"}])
def test_without_a_sha256_it_fails_and_the_source_stays(two, size, options):
    here, _ = two
    (here.home / "x").write_bytes(os.urandom(size))
    here.faults.respond(408, on="checksum", times=None)
    refusal = "sbatch: error: Batch job submission failed: Invalid account"
    here.faults.respond(500, {"errorType": "error", "message": refusal}, on="submit", times=None)
    with pytest.raises(TransferError, match=r"The sha256 of .*/x on system here cannot be had"):
        copy("{working_dir}/x", "{working_dir}/y", target_conn_id="elsewhere", **options)
    assert (here.home / "x").exists()
    copy("{working_dir}/x", "{working_dir}/y", target_conn_id="elsewhere", **options | {"verify": "never"})
    assert (here.home / "x").exists() is not options.get("move", False)


@pytest.mark.parametrize("size", [10, 200_000])
def test_a_move_whose_source_is_gone_is_finished_by_the_retry(two, monkeypatch, size):
    here, elsewhere = two
    content = os.urandom(size)
    (here.home / "x").write_bytes(content)
    context = context_of(store=Store())

    def last(*arguments: Any, **options: Any) -> Any:
        remote.remove(*arguments, **options)
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(relay, "remove", last)
        with pytest.raises(SystemExit):
            copy("{working_dir}/x", "{working_dir}/", context, target_conn_id="elsewhere", move=True)
    assert not (here.home / "x").exists()
    result = copy("{working_dir}/x", "{working_dir}/", context, target_conn_id="elsewhere", move=True)
    assert (result["target_path"], result["size"], result["moved"]) == (f"{elsewhere.home}/x", size, True)
    assert (elsewhere.home / "x").read_bytes() == content
    with pytest.raises(NotFoundError):
        copy("{working_dir}/x", "{working_dir}/", context, target_conn_id="elsewhere", move=True)


@pytest.mark.parametrize("if_exists", ["skip", "newer", "fail"])
def test_a_retry_does_not_take_its_own_half_copy_for_the_users(two, monkeypatch, if_exists):
    here, elsewhere = two
    fill(here.home, "x")
    os.utime(here.home / "x", (1e9, 1e9))
    context = context_of(store=Store())
    options = {"target_conn_id": "elsewhere", "if_exists": if_exists}

    def half(*_: Any, **__: Any) -> Any:
        (elsewhere.home / "y").write_text("half")
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(relay, "upload_file", half)
        with pytest.raises(SystemExit):
            copy("{working_dir}/x", "{working_dir}/y", context, **options)
    assert not copy("{working_dir}/x", "{working_dir}/y", context, **options)["skipped"]
    assert (elsewhere.home / "y").read_text() == "x"


def test_a_storage_that_hangs_up_is_asked_again(two):
    here, elsewhere = two
    (here.home / "x").write_bytes(os.urandom(200_000))
    here.faults.cut(on="get_object", times=1, skip=1)
    elsewhere.faults.cut(on="put_part", times=1)
    copy("{working_dir}/x", "{working_dir}/y", target_conn_id="elsewhere")
    assert (elsewhere.home / "y").read_bytes() == (here.home / "x").read_bytes()


# --- reading ahead ---


def test_blocks_are_read_ahead_and_few_are_held():
    content = os.urandom(1000)
    live: set[tuple[int, int]] = set()

    def fetch(start: int, end: int) -> bytes:
        live.add((start, end))
        return content[start:end]

    ahead = relay.Ahead(fetch, len(content), block=64, blocks=3)
    got, at = b"", 0
    while piece := ahead.read(at, 50):
        got += piece
        at += len(piece)
        assert len(ahead._blocks) <= 3
    assert got == content
    assert ahead.read(64, 10) == content[64:74]
    ahead.close()
    assert (960, 1000) in live


def test_a_block_that_failed_is_asked_for_again():
    answers = iter([TransferError("broken"), b"x" * 10])

    def fetch(start: int, end: int) -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    ahead = relay.Ahead(fetch, 10, block=10, blocks=1)
    with pytest.raises(TransferError):
        ahead.read(0, 10)
    assert ahead.read(0, 10) == b"x" * 10
    ahead.close()


# --- the hook ---


def test_the_hook_does_the_same(connected, there):
    hook = HpcHook()
    assert hook.make_directory(f"{there}/new", mode=0o700) == f"{there}/new"
    fill(there, "new/a")
    assert hook.copy(f"{there}/new/a", f"{there}/b", poll_interval=0.1).size == 5
    assert [entry["name"] for entry in hook.list(str(there), recursive=True)] == ["b", "new", "new/a"]
    assert hook.delete(f"{there}/*", allow_glob=True) == [f"{there}/b", f"{there}/new"]
    with pytest.raises(InvalidInputError):
        hook.delete("{working_dir}")


def test_paths_that_cannot_be_sent_are_refused_unsent(connected):
    before = len(connected.requests)
    for act in (make, listed, delete, lambda path: copy(path, "/x"), lambda path: copy("/x", path)):
        for path in ("relative", "/it's", "/a\nb", "{working_dir}/../x", "", None if act is not copy else ""):
            with pytest.raises(InvalidInputError):
                act(path)
    assert len(connected.requests) == before


def test_templates_reach_all_that_names_something():
    for kind, fields in (
        (HpcMakeDirectoryOperator, {"path", "mode", "system", "hpc_conn_id"}),
        (HpcListOperator, {"path", "glob", "system", "hpc_conn_id"}),
        (HpcDeleteOperator, {"path", "account", "system", "hpc_conn_id"}),
        (HpcCopyOperator, {"source_path", "target_path", "target_system", "target_conn_id", "hpc_conn_id"}),
    ):
        assert fields <= set(kind.template_fields)
        assert re.search(r":param path|:param source_path", kind.__doc__ or "")
