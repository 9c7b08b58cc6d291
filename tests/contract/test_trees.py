"""Many files to the embedded gateway and back as one archive: few requests, any name, nothing left behind."""

import dataclasses
import itertools
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from schedulers import job_when
from transfers import DiskKeeper

from airflow_hpc_provider.client import files, systems, trees
from airflow_hpc_provider.client.archives import Packed
from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.errors import (
    ApiError,
    HpcError,
    InvalidInputError,
    NotFoundError,
    TransferError,
)
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.client.session import Client
from airflow_hpc_provider.client.staging import Pace, Terms
from airflow_hpc_provider.client.trees import download_tree, upload_tree
from airflow_hpc_provider.client.unpacking import Unpacking
from airflow_hpc_provider.devgateway import Gateway

# Each moves files by jobs, which take their time.
pytestmark = pytest.mark.slow

POLICY = RetryPolicy(attempts=3, base=0.01)
ODD = [
    "it's", 'a "b"', "$HOME", "`id`", "$(touch evil)", "new\nline", "tab\t", "-rf", "a;b&c|d<e>f", "é",
    "日本", "a b", "*", "[1]?", "\\n", ".hidden", "x" * 255, "é" * 127,
]  # fmt: skip
SMALL = 64 * 1024
numbers = itertools.count()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with Gateway(tmp_path_factory.mktemp("gateway"), scheduler="local", ingress_poll=0.02) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A gateway that stages all but the smallest files."""
    with Gateway(
        tmp_path_factory.mktemp("narrow"), scheduler="local", ingress_poll=0.02, max_ops_file_size=SMALL
    ) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def healthy(gateway, narrow, caplog, monkeypatch):
    monkeypatch.setattr(trees, "_PATIENCE", 0.0)
    caplog.set_level(logging.INFO)
    yield
    for one in (gateway, narrow):
        one.faults.clear()


class End:
    """One gateway, the client of it, and a directory of the test's own on either side."""

    def __init__(self, gateway, here):
        self.gateway = gateway
        self.here = here
        self.there = gateway.home / f"tree-{next(numbers)}"
        self.there.mkdir()
        self.client = Client(gateway.url, AccessToken(gateway.url, gateway.access_token()), policy=POLICY)
        self.polls = 0.02

    def __enter__(self):
        self.client.__enter__()
        (self.system,) = self.client.send(systems.listing())
        self.gateway.requests.clear()
        self.before = self.left()
        return self

    def __exit__(self, *error):
        self.client.__exit__(*error)

    def wait(self, job_id):
        return job_when(self.client.send, self.gateway.system, job_id, pause=self.polls)

    def up(self, source, target=None, **given):
        options = {"wait": self.wait, "pace": Pace(policy=POLICY, patience=0)} | given
        return upload_tree(
            self.client, given.pop("system", self.system), source, str(target or self.there), **options
        )

    def down(self, source=None, target=None, **given):
        options = {"wait": self.wait, "pace": Pace(policy=POLICY, patience=0)} | given
        source = str(self.there) if source is None else source
        return download_tree(self.client, self.system, source, target or self.here / "down", **options)

    def asked(self):
        """Operations of the gateway, not of its storage."""
        ours = ("/compute/", "/filesystem/", "/status/")
        return [one.operation for one in self.gateway.requests if any(part in one.path for part in ours)]

    def left(self):
        """What has one of our temporary names, on both sides."""
        tops = (self.gateway.root, self.here)
        return [path for top in tops for path in top.rglob("*") if path.name.startswith(".airflow-hpc-")]


@pytest.fixture
def end(gateway, tmp_path):
    with End(gateway, tmp_path) as end:
        yield end
        assert end.left() == end.before


@pytest.fixture
def small(narrow, tmp_path):
    with End(narrow, tmp_path) as end:
        yield end
        assert end.left() == end.before


def fill(root, tree):
    root.mkdir(exist_ok=True)
    for name, what in tree.items():
        path = root / name
        if isinstance(what, dict):
            fill(path, what)
        elif isinstance(what, str):
            path.symlink_to(what)
        else:
            path.write_bytes(what)
    return root


def seen(root):
    found = {}
    for path in root.rglob("*"):
        info = path.lstat()
        name = str(path.relative_to(root))
        if stat.S_ISLNK(info.st_mode):
            found[name] = str(path.readlink())
        else:
            found[name] = (stat.S_IMODE(info.st_mode), path.read_bytes() if path.is_file() else b"")
    return found


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def odd_tree(root):
    tree = {name: os.urandom(300) for name in ODD} | {"link": "sub/file", "dangling": "nowhere", "empty": {}}
    fill(root, tree | {"sub": {"file": b"x", "it's $(deep)": {"\n": b""}}})
    (root / os.fsdecode(b"\xff\xfe")).write_bytes(b"raw")
    (root / "é").chmod(0o640)
    (root / "a b").chmod(0o755)
    (root / "sub").chmod(0o750)
    return root


# --- whole trees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["end", "small"])
def test_any_tree_goes_up_and_comes_back(which, request):
    end = request.getfixturevalue(which)
    source = odd_tree(end.here / "source")
    fill(source, {"big": os.urandom(100_000)})
    up = end.up(source)
    assert seen(end.there) == seen(source)
    down = end.down()
    assert seen(end.here / "down") == seen(source)
    assert (up.files, up.links, up.directories, up.size) == (len(ODD) + 4, 2, 3, down.size)
    assert (up.files, up.links, up.directories, up.names) == (
        down.files,
        down.links,
        down.directories,
        down.names,
    )
    assert "sub/it's $(deep)/\n" in up.names
    assert json.loads(json.dumps(dataclasses.asdict(up)))["path"] == str(end.there)
    assert not list(end.gateway.home.rglob("evil"))


def test_times_are_kept(end):
    source = fill(end.here / "source", {"a": b"1"})
    os.utime(source / "a", (10**9, 10**9))
    end.up(source)
    end.down()
    assert (end.there / "a").stat().st_mtime == (end.here / "down" / "a").stat().st_mtime == 10**9


@pytest.mark.parametrize(
    ("which", "count", "size"),
    # Both are just below twice what one request takes.
    [("small", 90, 1024), pytest.param("end", 1000, 10 * 1024, marks=pytest.mark.slow)],
)
def test_many_files_need_about_ten_requests_each_way(request, monkeypatch, which, count, size):
    end = request.getfixturevalue(which)
    source = fill(end.here / "source", {f"{n:04}.dat": os.urandom(size) for n in range(count)})
    end.polls = 1.0  # an operator looks no more often
    monkeypatch.setattr(trees, "_PATIENCE", 1.0)
    end.client.send(systems.listing())
    up = end.up(source)
    assert (up.files, up.size) == (count, count * size)
    assert end.asked() == [
        "systems",
        "mkdir",
        *["upload", "extract"] * (len(end.asked()) // 2 - 2),
        "ls",
        "rm",
    ]
    assert len(end.asked()) <= 10
    end.gateway.requests.clear()
    end.client.send(systems.listing())
    began = time.monotonic()
    down = end.down()
    looks = [one for one in end.asked() if one in ("job", "jobs")]
    besides = [one for one in end.asked() if one not in looks]
    assert down.names == up.names
    # One look, and another for each interval that the job takes.
    assert len(besides) <= 10, besides
    assert len(looks) <= 1 + (time.monotonic() - began) / end.polls, looks
    # Two of them remove the logs of the job that stages the archive.
    assert besides.count("rm") == 3
    assert seen(end.here / "down") == seen(source)


def test_five_thousand_files_in_one_directory(end):
    source = fill(end.here / "source", {f"file {n}'s": b"%d" % n for n in range(5000)})
    end.up(source)
    assert end.down(max_bytes=10**6).files == 5000
    assert len(end.asked()) <= 20
    assert seen(end.here / "down") == seen(source)


def test_an_empty_directory_is_made(end):
    tree = end.up(fill(end.here / "source", {}), end.there / "new")
    assert (end.there / "new").is_dir()
    assert (tree.files, tree.packed) == (0, 0)
    assert end.down(str(end.there / "new")).files == 0
    assert (end.here / "down").is_dir()


def test_both_sides_are_merged_with_what_is_there(end):
    source = fill(end.here / "source", {"d": {"a": b"new"}})
    fill(end.there, {"d": {"a": b"old", "b": b"kept"}})
    end.up(source)
    fill(end.here / "down", {"d": {"c": b"mine"}})
    end.down()
    assert {key: value[1] for key, value in seen(end.here / "down").items()} == {
        "d": b"", "d/a": b"new", "d/b": b"kept", "d/c": b"mine",
    }  # fmt: skip


# --- parts of trees ----------------------------------------------------------------------------------------


def test_include_and_exclude_choose_on_both_ways(end):
    source = fill(
        end.here / "source", {"a.nc": b"1", "b.txt": b"2", "d": {"c.nc": b"3", "tmp": {"e.nc": b"4"}}}
    )
    assert end.up(source, include=["*.nc"], exclude=["tmp"]).names == ("a.nc", "d/c.nc")
    assert sorted(seen(end.there)) == ["a.nc", "d", "d/c.nc"]
    end.up(source)
    assert end.down(include=["/d/*"], exclude="tmp").names == ("d/c.nc",)
    assert sorted(seen(end.here / "down")) == ["d", "d/c.nc"]
    with pytest.raises(InvalidInputError, match=r"nothing in .* matches"):
        end.down(include=["*.zip"])


def test_globs_work_on_both_ways(end):
    source = fill(end.here / "source", {"a.nc": b"1", "b.txt": b"2", "d": {"c.nc": b"3"}})
    assert end.up(f"{source}/*.nc").names == ("a.nc",)
    end.up(source)
    assert end.down(f"{end.there}/**/*.nc").names == ("a.nc", "d/c.nc")
    assert end.down(f"{end.there}/d/*", end.here / "other").names == ("c.nc",)


@pytest.mark.parametrize("count", [2, 6])
def test_lists_go_by_their_last_names(end, count):
    fill(end.there, {f"{n}": {"x": b"%d" % n} for n in range(5)} | {"5": b"file", "other": b"no"})
    wanted = [f"{end.there}/{n}" for n in range(6 - count, 6)]
    tree = end.down(wanted)
    assert tree.names == tuple(sorted(f"{n}/x" if n < 5 else "5" for n in range(6 - count, 6)))
    assert names_in(end.here / "down") == sorted(str(n) for n in range(6 - count, 6))


def test_one_file_with_a_name_that_no_shell_may_see(end):
    name = "it's $(touch evil)\n"
    (end.here / "plain").write_bytes(b"content")
    end.up({name: end.here / "plain"})
    assert (end.there / name).read_bytes() == b"content"
    assert end.down(f"{end.there}/{name}").names == (name,)
    assert (end.here / "down" / name).read_bytes() == b"content"
    end.down([f"{end.there}/{name}"], end.here / "again")
    assert (end.here / "again" / name).read_bytes() == b"content"


def test_one_plain_file_lands_under_its_name(end):
    (end.here / "f").write_bytes(b"content")
    assert end.up(end.here / "f").names == ("f",)
    assert end.down(f"{end.there}/f", max_bytes=7).names == ("f",)


def test_what_is_not_wanted_does_not_travel_if_it_is_much(end, monkeypatch):
    monkeypatch.setattr(trees, "_TOO_MUCH", 1000)
    fill(
        end.there,
        {
            "run": {
                "a.nc": b"small",
                "huge": os.urandom(2_000_000),
                "b.nc": b"small",
                "d": {"it's.nc": b"deep"},
            }
        },
    )
    tree = end.down(f"{end.there}/run/*.nc")
    assert (tree.names, tree.packed < 2000) == (("a.nc", "b.nc"), True)
    tree = end.down(f"{end.there}/run", include=["*.nc"])
    assert (tree.names, tree.packed < 2000) == (("a.nc", "b.nc", "d/it's.nc"), True)
    tree = end.down([f"{end.there}/run/{name}" for name in ("a.nc", "b.nc", "d")])
    assert (tree.names, tree.packed < 2000) == (("a.nc", "b.nc", "d/it's.nc"), True)


def test_a_directory_too_large_to_be_listed_is_packed_by_pattern(end):
    fill(end.there, {"run": {"a.nc": b"1", "b.txt": b"2"}})
    end.gateway.faults.respond(408, on="ls", times=None)
    assert end.down(f"{end.there}/run/*.nc", max_bytes=10).names == ("a.nc",)
    assert end.down(f"{end.there}/run", max_bytes=10).names == ("a.nc", "b.txt")
    with pytest.raises(TransferError, match="max_bytes"):
        end.down(f"{end.there}/run", end.here / "other", max_bytes=1)


def test_a_link_is_not_taken_for_what_it_leads_to(end):
    fill(end.there, {"real": {"a": b"1"}, "link": "real"})
    with pytest.raises(InvalidInputError, match="is a symbolic link; give what it leads to: real"):
        end.down(f"{end.there}/link")


# --- limits ------------------------------------------------------------------------------------------------


def test_max_bytes_refuses_before_anything_travels(end):
    source = fill(end.here / "source", {"a": bytes(600), "b": bytes(600)})
    with pytest.raises(InvalidInputError, match="max_bytes"):
        end.up(source, max_bytes=1000)
    assert end.asked() == []
    end.up(source)
    end.gateway.requests.clear()
    with pytest.raises(InvalidInputError, match="1200 bytes are to be downloaded"):
        end.down(max_bytes=1000)
    assert end.asked() == ["ls"]
    assert end.down(max_bytes=1000, exclude=["b"]).size == 600
    assert names_in(end.here / "down") == ["a"]


def test_terms_of_single_files_are_refused(end):
    with pytest.raises(InvalidInputError, match="if_exists"):
        end.up(end.here, terms=Terms(if_exists="skip"))
    with pytest.raises(InvalidInputError, match="if_exists"):
        end.down(terms=Terms(if_exists="verify"))


@pytest.mark.parametrize("bad", ["/", "relative", "", "/*", "/home/../etc"])
def test_paths_that_cannot_be_packed_are_refused(end, bad):
    with pytest.raises(InvalidInputError):
        end.down(bad)
    with pytest.raises(InvalidInputError):
        end.down([bad])
    assert end.asked() == []


def test_an_account_is_asked_for_before_anything_is_packed_for_a_job(small):
    fill(small.there, {"a": os.urandom(2 * SMALL)})
    small.system = dataclasses.replace(small.system, needs_account=True)
    with pytest.raises(InvalidInputError, match="account"):
        small.down()


# --- how it travels ----------------------------------------------------------------------------------------


def test_an_archive_in_pieces_needs_no_job(end, small):
    source = fill(small.here / "source", {str(n): os.urandom(10_000) for n in range(15)})
    tree = small.up(source)
    assert small.asked() == ["mkdir", *["upload", "extract"] * 3, "ls", "rm"]
    assert tree.packed > 150_000
    assert seen(small.there) == seen(source)


def test_more_than_a_few_pieces_are_staged_at_once(small):
    source = fill(small.here / "source", {str(n): os.urandom(10_000) for n in range(50)})
    small.up(source)
    assert small.asked().count("extract") == 1
    assert "transfer_upload" in small.asked()
    assert seen(small.there) == seen(source)


def test_much_is_sent_as_it_is_and_without_a_temporary_file(small, monkeypatch):
    monkeypatch.setattr(trees, "_COMPRESSED", 1000)
    monkeypatch.setattr(trees, "Packed", None)
    source = odd_tree(small.here / "source")
    fill(source, {"big": os.urandom(3 * SMALL)})
    tree = small.up(source)
    assert tree.packed > tree.size
    assert "checksum" in small.asked()
    assert seen(small.there) == seen(source)


def test_what_others_may_not_read_travels_in_what_they_may_not_read(end, monkeypatch):
    source = fill(end.here / "source", {"secret": b"s"})
    (source / "secret").chmod(0o600)
    modes = []
    extract = files.extract

    def looked(system, archive, target, **given):
        modes.append(stat.S_IMODE(Path(archive).parent.stat().st_mode))
        return extract(system, archive, target, **given)

    compress = files.compress

    def looked_too(system, path, archive, **given):
        modes.append(stat.S_IMODE(Path(archive).parent.stat().st_mode))
        return compress(system, path, archive, **given)

    monkeypatch.setattr(files, "extract", looked)
    monkeypatch.setattr(files, "compress", looked_too)
    end.up(source)
    end.down()
    assert modes == [0o700, 0o700]


def test_sha256_is_compared_if_it_must_be(end):
    source = fill(end.here / "source", {"a": b"1"})
    end.up(source, terms=Terms(verify="always"))
    end.down(terms=Terms(verify="always"))
    assert end.asked().count("checksum") == 2


def test_a_directory_beside_which_nothing_may_be_written(end, monkeypatch):
    fill(end.there, {"a": b"1"})
    end.gateway.faults.respond(403, on="mkdir")
    assert end.down().files == 1
    (mkdir,) = [entry for entry in end.gateway.requests.of("mkdir") if entry.status != 403]
    assert "userinfo" in end.asked() or mkdir
    with pytest.raises(ApiError):
        end.down(workspace=f"{end.gateway.home}/nowhere")
    assert end.down(workspace=str(end.gateway.home)).files == 1


def test_a_blank_above_the_source_does_no_harm(end):
    fill(end.there, {"with blank": {"run": {"a": b"1", "b": b"2"}}})
    assert end.down(f"{end.there}/with blank/run").files == 2
    assert end.down(f"{end.there}/with blank/run/a*").files == 1


# --- faults ------------------------------------------------------------------------------------------------


def test_packing_that_is_slow_is_left_to_a_job(end):
    source = odd_tree(end.here / "source")
    end.up(source)
    end.gateway.faults.respond(408, on="compress")
    end.down()
    assert "transfer_compress" in end.asked()
    assert seen(end.here / "down") == seen(source)


def test_packing_by_pattern_that_is_slow_is_left_to_a_job(end, monkeypatch):
    monkeypatch.setattr(trees, "_TOO_MUCH", 1000)
    fill(end.there, {"run": {"a.nc": b"small", "huge": os.urandom(100_000), "d": {"it's.nc": b"deep"}}})
    end.gateway.faults.respond(408, on="compress")
    tree = end.down(f"{end.there}/run", include=["*.nc"])
    assert (tree.names, tree.packed < 2000) == (("a.nc", "d/it's.nc"), True)


@pytest.mark.parametrize("when", ["before", "after"])
def test_unpacking_that_is_slow_is_left_to_a_job(end, when):
    source = odd_tree(end.here / "source")
    end.gateway.faults.respond(408, on="extract", when=when)
    end.up(source)
    assert "transfer_extract" in end.asked()
    assert seen(end.there) == seen(source)


def test_a_job_that_ends_well_but_did_nothing_is_noticed(end):
    source = fill(end.here / "source", {"a": b"1"})
    end.there.rmdir()
    end.there.write_bytes(b"a file")
    end.gateway.faults.respond(408, on="extract", times=None)
    with pytest.raises(HpcError):
        end.up(source, end.there / "below")
    end.there.unlink()
    end.there.mkdir()

    def break_archive(call):
        Path(call.path)

    upload = files.upload

    def spoiled(system, directory, name, content):
        return upload(system, directory, name, content[:-30])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "upload", spoiled)
        with pytest.raises(TransferError, match="could not extract"):
            end.up(source)


def test_a_spoiled_archive_is_noticed_by_unpacking_it(end, monkeypatch):
    source = fill(end.here / "source", {"a": os.urandom(5000)})
    upload = files.upload

    def spoiled(system, directory, name, content):
        return upload(system, directory, name, content[:2000] + b"X" + content[2001:])

    monkeypatch.setattr(files, "upload", spoiled)
    with pytest.raises(HpcError):
        end.up(source)


def test_a_file_that_is_missing_after_unpacking_is_noticed(end, monkeypatch):
    source = fill(end.here / "source", {"a": b"1", "b": b"2"})
    listing = files.listing

    def gone(system, path, **given):
        (end.there / "b").unlink()
        return listing(system, path, **given)

    monkeypatch.setattr(files, "listing", gone)
    with pytest.raises(TransferError, match="b is not there after unpacking"):
        end.up(source)


def test_a_file_of_another_size_after_unpacking_is_noticed(end, monkeypatch):
    source = fill(end.here / "source", {"a": b"1", "b": b"2"})
    listing = files.listing

    def longer(system, path, **given):
        (end.there / "b").write_bytes(b"longer")
        return listing(system, path, **given)

    monkeypatch.setattr(files, "listing", longer)
    with pytest.raises(TransferError, match="b has 6 bytes after unpacking, here it has 1"):
        end.up(source)


def test_a_file_that_vanishes_before_it_is_packed_is_noticed(end, monkeypatch):
    fill(end.there, {"a": b"1", "b": b"2"})
    compress = files.compress

    def gone(*args, **given):
        (end.there / "b").unlink()
        return compress(*args, **given)

    monkeypatch.setattr(files, "compress", gone)
    with pytest.raises(TransferError, match="1 files instead of 2") as noticed:
        end.down(max_bytes=100)
    assert noticed.value.transient
    assert not (end.here / "down").exists()


def test_an_unreadable_file_is_told(end):
    fill(end.there, {"a": b"1"})
    text = {"errorType": "error", "message": "tar: a: Cannot open: Permission denied"}
    end.gateway.faults.respond(403, text, on="compress")
    with pytest.raises(TransferError, match="holds something that you may not read") as told:
        end.down()
    assert not told.value.transient


def test_a_source_that_is_missing_is_told(end):
    with pytest.raises(NotFoundError):
        end.down(f"{end.there}/nothing")
    with pytest.raises(NotFoundError):
        end.down(f"{end.there}/nothing/*.nc")
    assert not (end.there / "nothing").exists()
    assert not (end.here / "down").exists()


@pytest.mark.parametrize("operation", ["mkdir", "upload", "extract", "ls"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failed_upload_leaves_no_archive(end, operation, when):
    source = fill(end.here / "source", {"a": b"1"})
    # Of a 400 one may trust that nothing was done.
    status = 500 if operation == "mkdir" else 400
    end.gateway.faults.respond(status, on=operation, when=when, times=None)
    with pytest.raises(HpcError):
        end.up(source)
    assert end.left() == end.before


@pytest.mark.parametrize("operation", ["mkdir", "chmod", "compress", "stat", "download"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failed_download_leaves_nothing(end, operation, when):
    fill(end.there, {"a": b"1"})
    # Of a 400 one may trust that nothing was done.
    status = 500 if operation == "mkdir" else 400
    end.gateway.faults.respond(status, on=operation, when=when, times=None)
    with pytest.raises(HpcError):
        end.down()
    assert end.left() == end.before
    assert names_in(end.here) == []


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_kill_while_a_job_works_cancels_it_and_leaves_nothing(small, way):
    class Killed(BaseException):
        pass

    def killed(_job_id):
        raise Killed

    fill(small.there if way == "down" else small.here / "source", {"a": os.urandom(10 * SMALL)})
    small.gateway.faults.respond(408, on="compress")
    with pytest.raises(Killed):
        small.up(small.here / "source", wait=killed) if way == "up" else small.down(wait=killed)
    assert "cancel" in small.asked()
    assert small.left() == small.before


class Memory:
    """What a task writes down."""

    generation, seals = "1", True

    def __init__(self):
        self.kept = {}

    def get(self, key):
        return self.kept.get(key)

    def set(self, key, value):
        self.kept[key] = json.loads(json.dumps(value))

    def delete(self, key):
        self.kept.pop(key, None)

    def seal(self, secret):
        return secret.hex()

    def unseal(self, sealed):
        return bytes.fromhex(sealed)


def test_another_try_goes_on_with_the_archive_of_the_one_before(small):
    class Redeployed(BaseException):
        pass

    def redeployed(_job_id):
        raise Redeployed

    source = fill(small.here / "source", {"a": os.urandom(4 * SMALL)})
    keeper = Memory()
    with pytest.raises(Redeployed):
        small.up(source, wait=redeployed, keeper=keeper, abandon=lambda _: False)
    assert len(small.left()) >= len(small.before)
    small.up(source, keeper=keeper)
    assert small.asked().count("transfer_upload") == 1
    assert seen(small.there) == seen(source)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from transfers import DiskKeeper
from airflow_hpc_provider.client import systems, trees
from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.session import Client
trees._PATIENCE = 0
def wait(job_id):
    os.kill(os.getpid(), signal.SIGKILL)
with Client({url!r}, AccessToken({url!r}, {token!r})) as client:
    (system,) = client.send(systems.listing())
    trees.{call}, wait=wait, keeper=DiskKeeper(Path({kept!r})))
"""


def killed_amid(end, keeper, call):
    tests = str(Path(__file__).parent.parent)
    text = KILLED.format(
        tests=tests,
        url=end.gateway.url,
        token=end.gateway.access_token(),
        call=call,
        kept=str(keeper.folder),
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("same", [True, False])
def test_the_try_after_a_killed_download_goes_on_or_removes_what_is_left(small, same):
    fill(small.there, {"run": {"a": os.urandom(4 * SMALL)}, "other": {"b": b"b"}})
    keeper = DiskKeeper(small.here / "kept")
    target = small.here / "down"
    target.mkdir()
    call = f"download_tree(client, system, {str(small.there / 'run')!r}, Path({str(target)!r})"
    killed_amid(small, keeper, call)
    # A directory on either side.
    assert len(small.left()) == len(small.before) + 2
    if not same:
        # A user has cleared the task: what the earlier one did is of no use.
        keeper.generation = "2"
    small.down(str(small.there / "run"), target, keeper=keeper)
    assert (target / "a").read_bytes() == (small.there / "run" / "a").read_bytes()
    assert small.asked().count("compress") == small.asked().count("transfer_download") == (1 if same else 2)
    assert keeper.keys == []
    assert small.left() == small.before


def test_the_try_after_a_killed_upload_removes_what_is_left_of_other_content(small):
    source = fill(small.here / "source", {"a": os.urandom(4 * SMALL)})
    keeper = DiskKeeper(small.here / "kept")
    killed_amid(small, keeper, f"upload_tree(client, system, Path({str(source)!r}), {str(small.there)!r}")
    assert len(small.left()) == len(small.before) + 1
    fill(source, {"a": os.urandom(4 * SMALL)})
    small.up(source, keeper=keeper)
    assert seen(small.there) == seen(source)
    assert small.left() == small.before
    assert small.asked().count("cancel") == 1


def test_the_try_after_one_that_was_killed_amid_the_start_of_a_job_cancels_that_job(small, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(client, call):
        client.send(call)
        raise Killed

    source = fill(small.here / "source", {"a": os.urandom(4 * SMALL)})
    keeper = Memory()
    monkeypatch.setattr("airflow_hpc_provider.client.transfers.start_once", killed)
    with pytest.raises(Killed):
        small.up(source, keeper=keeper, abandon=lambda _: False)
    monkeypatch.undo()
    fill(source, {"a": os.urandom(4 * SMALL)})
    small.up(source, keeper=keeper)
    assert seen(small.there) == seen(source)
    assert small.asked().count("cancel") == 1
    assert small.left() == small.before


@pytest.mark.parametrize("slow", [None, "compress"])
def test_a_redeploy_amid_a_download_leaves_it_to_the_next_try(small, slow):
    class Redeployed(BaseException):
        pass

    def redeployed(_job_id):
        raise Redeployed

    fill(small.there, {"run": {"a": os.urandom(4 * SMALL)}})
    keeper = Memory()
    if slow:
        small.gateway.faults.respond(408, on=slow)
    with pytest.raises(Redeployed):
        small.down(str(small.there / "run"), wait=redeployed, keeper=keeper, abandon=lambda _: False)
    assert "cancel" not in small.asked()
    small.down(str(small.there / "run"), keeper=keeper)
    assert (small.here / "down" / "a").read_bytes() == (small.there / "run" / "a").read_bytes()
    assert small.asked().count("compress") == 1
    assert small.asked().count("transfer_compress") == (1 if slow else 0)
    assert small.asked().count("transfer_download") == 1
    assert keeper.kept == {}


def test_without_a_keeper_a_redeploy_leaves_no_job_that_nobody_would_find(small):
    class Redeployed(BaseException):
        pass

    def redeployed(_job_id):
        raise Redeployed

    fill(small.there, {"run": {"a": os.urandom(4 * SMALL)}})
    with pytest.raises(Redeployed):
        small.down(str(small.there / "run"), wait=redeployed, abandon=lambda _: False)
    assert "cancel" in small.asked()


def test_a_fetch_that_fails_for_now_is_gone_on_with_and_a_bad_archive_is_not(small):
    fill(small.there, {"run": {"a": os.urandom(8 * SMALL)}})
    keeper = Memory()
    goes_on = {"keeper": keeper, "abandon": lambda error: not error.transient}
    small.gateway.faults.respond(500, "", on="get_object", times=9)
    with pytest.raises(TransferError):
        small.down(str(small.there / "run"), **goes_on)
    small.gateway.faults.clear()
    take = Unpacking.take

    def damaged(self, archive, **given):
        archive.write_bytes(archive.read_bytes()[:-100])
        take(self, archive, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Unpacking, "take", damaged)
        with pytest.raises(TransferError, match="damaged"):
            small.down(str(small.there / "run"), **goes_on)
    assert small.asked().count("compress") == 1
    assert small.left() == small.before
    small.down(str(small.there / "run"), **goes_on)
    assert small.asked().count("compress") == 2
    assert keeper.kept == {}


def test_what_is_malicious_on_the_system_stays_there(end, monkeypatch):
    fill(end.there, {"a": b"1", "l": "/etc", "d": {}})
    with pytest.raises(
        TransferError, match="'l' is a symbolic link out of the target, to '/etc': exclude it"
    ):
        end.down()
    assert not (end.here / "down").exists()
    assert end.down(exclude=["l"]).names == ("a",)


def test_a_file_that_changes_while_it_is_packed_is_told_before_anything_is_sent(end, monkeypatch):
    source = fill(end.here / "source", {"a": b"1"})
    init = Packed.__init__

    def changed(self, items, **given):
        (source / "a").write_bytes(b"22")
        init(self, items, **given)

    monkeypatch.setattr(Packed, "__init__", changed)
    with pytest.raises(TransferError, match="changed while it was packed"):
        end.up(source)
    assert end.asked() == []
