"""The file system ``hpc`` against the embedded gateway, and fsspec's own abstract suite."""

import csv
import errno
import itertools
import json
import logging
import os
import pickle
import stat
import unicodedata
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_hpc_provider.client import session
from airflow_hpc_provider.client.errors import HpcError, InvalidInputError
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.devgateway import Gateway
from airflow_hpc_provider.filesystem import HpcFileSystem
from airflow_hpc_provider.locations import locate
from airflow_hpc_provider.streams import LargeFile, SmallFile

# Each moves files by jobs, which take their time.
pytestmark = pytest.mark.slow

LIMIT = 64 * 1024
LARGE = bytes(range(256)) * 400
NO_SPACE = {"errorType": "error", "message": "bash: line 1: /x: No space left on device"}
numbers = itertools.count()
# What the gateway's shell would run, mangle or take for something else; anything else must come back.
UNSAFE = set("'\"$`\\;&|<>")
# As long as a name may be, in bytes; and longer.
NAMES = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=90),
    st.text(st.sampled_from("aé漢𝄞 -.*[]{}()!#~%+,:=@^_?"), min_size=50, max_size=260),
    st.sampled_from(
        ["x" * 255, "é" * 127, "漢" * 85, "x" * 256, "漢" * 86, "a b", " a", "a ", "*", "~", "#", "%41"]
    ),
    st.sampled_from(sorted(UNSAFE)).map("a{}b".format),
).filter(lambda name: name != ".")


def may_be_refused(name):
    """Whether the gateway cannot be told a name safely, or no system has such a one."""
    return (
        bool(UNSAFE & set(name))
        or any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name)
        or name.startswith("-")
        or name == ".."
        or len(name.encode()) > 255
    )


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with Gateway(
        tmp_path_factory.mktemp("gateway"),
        scheduler="local",
        systems=("here", "there"),
        max_ops_file_size=LIMIT,
        max_part_size=50_000,
        ingress_poll=0.02,
    ) as gateway:
        yield gateway


@pytest.fixture
def fs(connected, monkeypatch, caplog):
    """A file system that was used before: it has a token and knows the systems."""
    monkeypatch.setattr(session, "RetryPolicy", lambda: RetryPolicy(attempts=2, base=0.001))
    caplog.set_level(logging.DEBUG)
    fs = HpcFileSystem(poll_interval=0.05, skip_instance_cache=True)
    fs._system(locate("/"))
    connected.requests.clear()
    yield fs
    assert connected.leaked_tokens == 0
    for record in caplog.get_records("call"):
        if not record.name.startswith("uvicorn"):  # the gateway's own log
            assert "X-Amz-Signature" not in record.getMessage(), record.name


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def home(connected):
    """A directory of this test's own; on the gateway's machine and in the file system it has one path."""
    home = connected.home / f"test{next(numbers)}"
    home.mkdir()
    return home


@pytest.fixture
def asked(connected):
    """Names of the requests since the last look."""

    def ask():
        names = [entry.operation for entry in connected.requests]
        connected.requests.clear()
        return names

    return ask


# --- looking ---


def test_looking_takes_one_request(fs, home, asked):
    (home / "a").write_bytes(b"12345")
    assert fs.info(f"{home}/a")["size"] == 5
    assert asked() == ["stat"]
    assert [entry["name"] for entry in fs.ls(str(home))] == [f"{home}/a"]
    assert asked() == ["ls"]
    assert fs.exists(f"{home}/a")
    assert not fs.exists(f"{home}/b")
    assert not fs.isdir(f"{home}/a")
    assert not fs.isfile(f"{home}/a/b")
    assert asked() == ["stat"] * 4


def test_reading_a_small_file_takes_two_requests(fs, home, asked):
    (home / "a").write_bytes(b"12345")
    assert fs.cat(f"{home}/a") == b"12345"
    assert asked() == ["stat", "download"]
    assert fs.cat_ranges([f"{home}/a"] * 4, [0, 1, -2, None], [2, -1, None, 3]) == [
        b"12",
        b"234",
        b"45",
        b"123",
    ]
    assert asked() == ["stat", "download"]


def test_a_tree_is_found_in_one_request(fs, home, asked):
    for number in range(1000):
        (home / f"{number:03}").touch()
    assert fs.find(str(home)) == [f"{home}/{number:03}" for number in range(1000)]
    assert asked() == ["ls"]
    (home / "sub" / "sub").mkdir(parents=True)
    (home / "sub" / "sub" / ".hidden").write_bytes(b"12")
    assert fs.find(f"{home}/sub") == [f"{home}/sub/sub/.hidden"]
    assert fs.find(f"{home}/sub", withdirs=True)[:2] == [f"{home}/sub", f"{home}/sub/sub"]
    assert fs.du(f"{home}/sub") == 2
    assert asked() == ["ls"] * 3
    assert fs.glob(f"{home}/00?") == [f"{home}/00{number}" for number in range(10)]
    assert asked() == ["ls"]
    assert fs.find(f"{home}/001") == [f"{home}/001"]
    assert fs.find(f"{home}/nothing") == []


def test_a_tree_too_large_for_one_request_is_walked(fs, home, connected):
    (home / "sub").mkdir()
    (home / "sub" / "a").touch()
    connected.faults.respond(408, on="ls")
    assert fs.find(str(home)) == [f"{home}/sub/a"]
    # The whole tree, asked for once only, and then each directory.
    assert connected.requests.count("ls") == 3


def test_a_walk_steps_over_what_is_denied_and_over_nothing_else(fs, home, connected):
    for name in ("a", "b"):
        (home / name).mkdir()
        (home / name / "file").touch()
    denied = {"errorType": "error", "message": "ls: cannot open directory: Permission denied"}
    connected.faults.respond(408, on="ls")
    connected.faults.respond(403, denied, on="ls", skip=1)
    assert fs.find(str(home)) == [f"{home}/b/file"]
    connected.faults.respond(500, on="ls", skip=1, times=None)
    with pytest.raises(OSError, match="HTTP 500"):
        list(fs.walk(str(home)))
    connected.faults.clear()
    connected.faults.respond(500, on="ls", times=None)
    with pytest.raises(OSError, match="HTTP 500"):
        fs.glob(f"{home}/*")


def test_an_answer_other_than_yes_or_no_is_no_answer(fs, home, connected):
    connected.faults.respond(503, on="stat", times=None)
    for ask in (fs.exists, fs.isfile, fs.isdir, fs.lexists):
        with pytest.raises(OSError, match="HTTP 503") as caught:
            ask(f"{home}/a")
        assert isinstance(caught.value.__cause__, HpcError)
    connected.faults.clear()
    with pytest.raises(OSError, match="nowhere") as caught:
        fs.exists("nowhere/home")
    assert not isinstance(caught.value, FileNotFoundError)


def test_info_says_what_stat_says(fs, home):
    (home / "a").write_bytes(b"12345")
    (home / "a").chmod(0o640)
    true, info = (home / "a").stat(), fs.info(f"here{home}/a")
    assert info == {
        "name": f"here{home}/a",
        "size": 5,
        "type": "file",
        "islink": False,
        "mode": true.st_mode,
        "uid": true.st_uid,
        "gid": true.st_gid,
        "nlink": 1,
        "ino": true.st_ino,
        "mtime": int(true.st_mtime),
        "created": int(true.st_ctime),
    }
    assert fs.modified(f"{home}/a").timestamp() == int(true.st_mtime)
    assert fs.created(f"{home}/a").timestamp() == int(true.st_ctime)
    (listed,) = fs.ls(f"here{home}")
    assert (listed["name"], listed["size"], listed["mode"]) == (f"here{home}/a", 5, true.st_mode)
    assert fs.ls(f"{home}/a", detail=False) == [f"{home}/a"]


def test_a_file_has_another_key_and_checksum_when_it_changes(fs, home):
    path = f"{home}/a"
    fs.pipe(path, b"1")
    before = fs.ukey(path), fs.checksum(path)
    assert (fs.ukey(path), fs.checksum(path)) == before
    fs.pipe(path, b"22")
    assert fs.ukey(path) != before[0]
    assert fs.checksum(path) != before[1]


def test_links_are_listed_as_links_and_followed_elsewhere(fs, home):
    (home / "real").mkdir()
    (home / "real" / "file").write_bytes(b"12345")
    (home / "dir").symlink_to("real")
    (home / "file").symlink_to(home / "dir" / "file")
    (home / "lost").symlink_to("nothing")
    listed = {entry["name"]: entry for entry in fs.ls(str(home))}
    assert {Path(name).name: entry["type"] for name, entry in listed.items()} == {
        "real": "directory",
        "dir": "link",
        "file": "link",
        "lost": "link",
    }
    assert listed[f"{home}/dir"]["destination"] == "real"
    assert fs.find(str(home)) == [f"{home}/{name}" for name in ("dir", "file", "lost", "real/file")]
    assert fs.isdir(f"{home}/dir")
    assert fs.ls(f"{home}/dir", detail=False) == [f"{home}/dir/file"]
    assert fs.cat(f"{home}/file") == b"12345"
    info = fs.info(f"{home}/file")
    assert (info["type"], info["size"], info["destination"]) == ("file", 5, f"{home}/dir/file")
    assert fs.lexists(f"{home}/lost")
    assert not fs.exists(f"{home}/lost")
    fs.rm(f"{home}/dir", recursive=True)
    assert (home / "real" / "file").exists()


def test_links_are_not_followed_for_ever(fs, home, monkeypatch):
    monkeypatch.setattr("airflow_hpc_provider.filesystem._LINKS", 3)
    for link, target in itertools.pairwise("abcd"):
        (home / link).symlink_to(home / target)
    (home / "d").mkdir()
    with pytest.raises(OSError, match="symbolic link"):
        fs.ls(f"{home}/a")
    assert fs.ls(f"{home}/b") == []


def test_all_systems_and_the_way_to_their_file_systems_can_be_listed(fs, home, connected):
    assert fs.ls("", detail=False) == ["here", "there"]
    assert fs.isdir("")
    assert fs.isdir("there")
    first = connected.root.parts[1]
    assert fs.ls("there", detail=False) == [f"there/{first}"]
    assert fs.ls("/", detail=False) == [f"/{first}"]
    assert fs.ls(f"there{connected.root}", detail=False) == [
        f"there{connected.root}/{n}" for n in ("home", "scratch")
    ]
    with pytest.raises(PermissionError):
        fs.ls("/nowhere")


# --- making and removing directories ---


def test_directories_are_made_and_removed(fs, home):
    fs.mkdir(f"{home}/a/b")
    assert (home / "a" / "b").is_dir()
    with pytest.raises(FileExistsError):
        fs.mkdir(f"{home}/a/b")
    with pytest.raises(FileExistsError):
        fs.makedirs(f"{home}/a/b")
    fs.makedirs(f"{home}/a/b", exist_ok=True)
    with pytest.raises(FileNotFoundError):
        fs.mkdir(f"{home}/c/d", create_parents=False)
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir(f"{home}/a")
    fs.rmdir(f"{home}/a/b")
    (home / "file").touch()
    with pytest.raises(FileExistsError):
        fs.makedirs(f"{home}/file", exist_ok=True)
    with pytest.raises(NotADirectoryError):
        fs.rmdir(f"{home}/file")
    assert fs.ls(str(home), detail=False) == [f"{home}/a", f"{home}/file"]


def test_removing_takes_directories_only_when_asked(fs, home, asked):
    (home / "a" / "b").mkdir(parents=True)
    for path in (f"{home}/a", f"{home}/*"):
        with pytest.raises(IsADirectoryError):
            fs.rm(path)
    with pytest.raises(NotImplementedError):
        fs.rm(f"{home}/a", recursive=True, maxdepth=1)
    asked()
    fs.rm(f"{home}/a", recursive=True)
    assert asked() == ["rm"]
    with pytest.raises(FileNotFoundError):
        fs.rm(f"{home}/a", recursive=True)
    with pytest.raises(FileNotFoundError):
        fs.rm_file(f"{home}/a")


@pytest.mark.parametrize("path", ["", "/", "here", "hpc://here/", "hpc:///"])
def test_no_whole_system_is_removed_or_moved(fs, home, path, asked):
    for act in (
        fs.rmdir,
        fs.rm_file,
        lambda path: fs.rm(path, recursive=True),
        lambda path: fs.mv(path, str(home)),
    ):
        with pytest.raises(PermissionError, match="a whole system"):
            act(path)
    assert asked() == []


def test_what_takes_long_to_remove_is_removed_by_a_job(fs, home, connected, asked):
    (home / "a" / "b").mkdir(parents=True)
    connected.faults.respond(408, on="rm")
    fs.rm(f"{home}/a", recursive=True)
    assert not (home / "a").exists()
    assert "transfer_rm" in asked()


def test_what_was_removed_although_the_answer_was_lost_is_removed(fs, home, connected, asked):
    (home / "a").mkdir()
    connected.faults.lose_answer(on="rm")
    fs.rm(f"{home}/a", recursive=True)
    assert "transfer_rm" not in asked()


# --- writing and reading ---


@settings(max_examples=20)
@given(content=st.binary(max_size=300) | st.binary(min_size=1, max_size=9).map(lambda block: block * 4000))
def test_any_bytes_come_back(shared, content):
    fs, home = shared
    fs.pipe(f"{home}/bytes", content)
    assert fs.cat(f"{home}/bytes") == content


@settings(max_examples=100)
@given(name=NAMES)
def test_a_file_of_any_name_comes_back_or_is_refused_unsent(shared, gateway, name):
    fs, home = shared
    path = f"{home}/names/{name}"
    gateway.requests.clear()
    if may_be_refused(name):
        for act in (lambda: fs.pipe_file(path, b"1"), lambda: fs.cat_file(path), lambda: fs.info(path)):
            with pytest.raises(OSError, match=r"rename it|climbs|a name ends at 255") as refused:
                act()
            assert isinstance(refused.value.__cause__, InvalidInputError)
        assert len(gateway.requests) == 0
        return
    fs.pipe_file(path, b"1")
    assert names_in(home / "names") == [name]
    assert fs.ls(f"{home}/names", detail=False) == [path]
    assert fs.cat_file(path) == b"1"
    fs.rm_file(path)
    assert names_in(home / "names") == []


@pytest.fixture(scope="module")
def shared(gateway):
    """A file system for many examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_HPC_DEFAULT", json.dumps(gateway.connection()))
        fs = HpcFileSystem(poll_interval=0.05, skip_instance_cache=True)
        home = gateway.home / "shared"
        (home / "names").mkdir(parents=True)
        yield fs, home


def test_a_small_file_is_written_and_looked_at_in_two_requests(fs, home, asked):
    fs.pipe(f"{home}/a", b"1")
    assert asked() == ["upload", "stat"]


def test_a_file_is_written_whole_or_not_at_all(fs, home, asked):
    def write(mode, **options):
        with fs.open(f"{home}/a.gz", mode, **options) as file:
            file.write("half" if mode == "w" else b"half")
            raise RuntimeError("in the middle")

    for mode, options in (("wb", {}), ("w", {}), ("xb", {}), ("wb", {"compression": "infer"})):
        with pytest.raises(RuntimeError):
            write(mode, **options)
    assert "upload" not in asked()
    assert list(home.iterdir()) == []


def test_a_file_that_arrived_short_is_an_error(fs, home, connected):
    connected.faults.respond(204, on="upload")
    (home / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="has 3 bytes, 5 were sent"):
        fs.pipe(f"{home}/a", b"12345")


def test_missing_directories_are_made_only_if_asked(fs, home, connected):
    with pytest.raises(FileNotFoundError):
        fs.touch(f"{home}/new/a")
    auto = HpcFileSystem(auto_mkdir=True, skip_instance_cache=True)
    auto.touch(f"{home}/new/a")
    assert (home / "new" / "a").read_bytes() == b""


def test_errors_of_writing_come_when_the_file_is_closed(fs, home, connected):
    file = fs.open(str(home), "wb")
    with pytest.raises(IsADirectoryError):
        file.close()
    with pytest.raises(IsADirectoryError):
        fs.open(str(home), "rb")
    connected.faults.respond(500, NO_SPACE, on="upload", times=None)
    with pytest.raises(OSError, match="No space left") as caught:
        fs.pipe(f"{home}/a", b"1")
    assert caught.value.errno == 28


def test_appending_and_creating(fs, home):
    path = f"{home}/a"
    with fs.open(path, "a") as file:
        file.write("1")
    with fs.open(path, "ab") as file:
        file.write(b"2")
    assert (home / "a").read_bytes() == b"12"
    with pytest.raises(FileExistsError):
        fs.open(path, "x")
    with pytest.raises(FileExistsError):
        fs.put_file(__file__, path, mode="create")
    (home / "a").write_bytes(LARGE)
    with pytest.raises(OSError, match="appending ends at"):
        fs.open(path, "ab")


def test_an_open_small_file_is_a_file_like_any_other(fs, home):
    (home / "a").write_text("one\ntwo\n")
    with fs.open(f"{home}/a") as file:
        assert isinstance(file, SmallFile)
        assert (file.size, file.info()["size"], file.readable(), file.writable()) == (8, 8, True, False)
        assert file.readline() == b"one\n"
        again = pickle.loads(pickle.dumps(file))
        assert again.read() == b"two\n"
        with pytest.raises(OSError, match="not open for writing"):
            file.write(b"x")
    with fs.open(f"{home}/a", "r") as file:
        assert list(file) == ["one\n", "two\n"]


def test_a_transaction_is_all_or_nothing(fs, home):
    with fs.transaction:
        fs.pipe(f"{home}/a", b"1")
        assert not (home / "a").exists()
    assert (home / "a").read_bytes() == b"1"

    def fail():
        with fs.transaction:
            fs.pipe(f"{home}/b", b"1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not (home / "b").exists()


def test_any_user_of_fsspec_can_open_a_url(connected, home):
    url = f"hpc://hpc_default@here{home}/table.csv.gz"
    HpcFileSystem.clear_instance_cache()
    with fsspec.open(url, "w", compression="infer", newline="") as file:
        csv.writer(file).writerows([["a", "é"], ["1", "2"]])
    assert (home / "table.csv.gz").read_bytes()[:2] == b"\x1f\x8b"
    with fsspec.open(url, "r", compression="infer", newline="") as file:
        assert list(csv.reader(file)) == [["a", "é"], ["1", "2"]]
    HpcFileSystem.clear_instance_cache()


@pytest.mark.parametrize("count", [10, 100_000])
def test_numpy_reads_and_writes_urls(connected, home, count):
    """A library that knows only open files; above the gateway's limit they are staged."""
    HpcFileSystem.clear_instance_cache()
    url, wanted = f"hpc://hpc_default@here{home}/array", np.arange(count)
    options = {"poll_interval": 0.05}
    with fsspec.open(f"{url}.npz", "wb", **options) as file:
        np.savez(file, a=wanted, b=wanted[::-1])
    connected.requests.clear()
    with fsspec.open(f"{url}.npz", "rb", **options) as file, np.load(file) as found:
        assert np.array_equal(found["b"], wanted[::-1])
    assert connected.requests.count("transfer_download") == (1 if wanted.nbytes > LIMIT else 0)
    with fsspec.open(f"{url}.csv.gz", "wt", compression="infer", **options) as file:
        np.savetxt(file, wanted[:1000], fmt="%d")
    with fsspec.open(f"{url}.csv.gz", "rt", compression="infer", **options) as file:
        assert np.array_equal(np.loadtxt(file, dtype=int), wanted[:1000])
    HpcFileSystem.clear_instance_cache()


# --- large files ---


def test_a_large_file_is_staged_once_for_all_its_readers(fs, home, connected):
    (home / "a").write_bytes(LARGE)
    path = f"{home}/a"
    connected.requests.clear()
    with fs.open(path, block_size=1000, cache_type="none") as file:
        assert isinstance(file, LargeFile)
        assert connected.requests.count() == 1
        assert file.read(10) == LARGE[:10]
        file.seek(-5, 2)
        assert file.read() == LARGE[-5:]
        copy = pickle.loads(pickle.dumps(file))
    assert fs.cat(path) == LARGE
    assert fs.cat_file(path, 1000, 1010) == LARGE[1000:1010]
    assert fs.cat_ranges([path, path], [7, 70_000], [8, 70_010]) == [LARGE[7:8], LARGE[70_000:70_010]]
    ranges = [entry.headers["range"] for entry in connected.requests.of("get_object")]
    assert ranges[:2] == ["bytes=0-9", f"bytes={len(LARGE) - 5}-{len(LARGE) - 1}"]
    assert connected.requests.count("transfer_download") == 1
    assert (copy.tell(), copy.path) == (len(LARGE), path)
    # Nothing of the URL is told.
    assert "X-Amz" not in repr(vars(file)) + repr(fs._session.__dict__)


def test_an_expired_url_is_renewed_if_the_file_is_the_same(fs, home, connected, asked):
    (home / "a").write_bytes(LARGE)
    with fs.open(f"{home}/a", cache_type="none") as file:
        assert file.read(3) == LARGE[:3]
        connected.faults.expire_storage_urls()
        assert file.read(3) == LARGE[3:6]
        assert asked().count("transfer_download") == 2
        connected.faults.expire_storage_urls()
        (home / "a").write_bytes(LARGE[::-1])
        os.utime(home / "a", (0, 0))
        with pytest.raises(OSError, match="changed while it was read"):
            file.read(3)


def test_a_large_file_that_changed_is_staged_anew(fs, home):
    (home / "a").write_bytes(LARGE)
    assert fs.cat(f"{home}/a") == LARGE
    (home / "a").write_bytes(LARGE[1:])
    assert fs.cat(f"{home}/a") == LARGE[1:]
    (home / "a").write_bytes(LARGE[2:])
    with fs.open(f"{home}/a") as file:
        (home / "a").write_bytes(LARGE)
        with pytest.raises(OSError, match=f"had {len(LARGE) - 2} bytes when it was opened, and {len(LARGE)}"):
            file.read(1)


def test_a_large_file_without_staging_is_refused(make_gateway, connect):
    gateway = make_gateway(max_ops_file_size=LIMIT, transfer_method=None)
    connect(gateway)
    fs = HpcFileSystem(skip_instance_cache=True)
    (gateway.home / "a").write_bytes(LARGE)
    with pytest.raises(OSError, match="has no staging, so downloads end at"):
        fs.cat(f"{gateway.home}/a")


def test_a_job_that_stages_nothing_is_told_of(fs, home, connected):
    (home / "a").write_bytes(LARGE)
    connected.faults.respond(403, on="put_part", times=None)
    with pytest.raises(OSError, match="ended FAILED"):
        fs.cat(f"{home}/a")


def test_a_job_whose_reader_was_interrupted_is_cancelled(fs, home, monkeypatch, asked):
    def interrupted(_):
        raise KeyboardInterrupt

    (home / "a").write_bytes(LARGE)
    monkeypatch.setattr(fs, "_wait", lambda system: interrupted)
    with pytest.raises(KeyboardInterrupt):
        fs.cat(f"{home}/a")
    assert asked()[-2:] == ["transfer_download", "cancel"]


def test_what_is_no_file_is_not_read(fs, home, tmp_path, asked):
    os.mkfifo(home / "pipe")
    for read in (fs.cat, lambda path: fs.get_file(path, tmp_path / "pipe")):
        with pytest.raises(OSError, match="is no regular file"):
            read(f"{home}/pipe")
    assert "download" not in asked()


def test_large_files_are_staged_both_ways(fs, home, tmp_path, asked):
    with fs.open(f"{home}/a", "wb") as file:
        file.write(LARGE)
        file.seek(1)
        file.write(b"!")
    wanted = LARGE[:1] + b"!" + LARGE[2:]
    assert (home / "a").read_bytes() == wanted
    fs.get_file(f"{home}/a", tmp_path / "new" / "b")
    assert (tmp_path / "new" / "b").read_bytes() == wanted
    done = asked()
    assert (done.count("transfer_upload"), done.count("transfer_download")) == (1, 1)


@pytest.mark.parametrize("size", [100, len(LARGE)])
def test_a_file_that_is_fetched_appears_whole_or_not_at_all(fs, home, tmp_path, monkeypatch, size):
    """The disk of this machine is full after half of it."""
    (home / "a").write_bytes(LARGE[:size])
    target = tmp_path / "b"
    target.write_bytes(b"old")

    def full(_, data, *__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            fs.get_file(f"{home}/a", target)
    assert (names_in(tmp_path), target.read_bytes()) == (["b"], b"old")
    fs.get_file(f"{home}/a", target)
    assert (names_in(tmp_path), target.read_bytes()) == (["b"], LARGE[:size])


def test_a_small_file_that_changed_before_it_came_is_an_error(fs, home, tmp_path, monkeypatch, asked):
    (home / "a").write_bytes(b"12345")
    look = fs._stat

    def written_to(place, **options):
        stat = look(place, **options)
        (home / "a").write_bytes(b"1234")
        return stat

    with monkeypatch.context() as patched:
        patched.setattr(fs, "_stat", written_to)
        with pytest.raises(OSError, match="5 bytes, here it has 4"):
            fs.get_file(f"{home}/a", tmp_path / "a")
    assert names_in(tmp_path) == []
    asked()
    fs.get_file(f"{home}/a", tmp_path / "a")
    assert asked() == ["stat", "download"]


# --- copying and moving ---


def test_small_files_are_copied_by_way_of_this_machine(fs, home, asked):
    (home / "a").write_bytes(b"#!")
    (home / "a").chmod(0o755)
    fs.cp_file(f"{home}/a", f"{home}/new/b")
    assert "transfer_cp" not in asked()
    assert (home / "new" / "b").read_bytes() == b"#!"
    assert stat.S_IMODE((home / "new" / "b").stat().st_mode) == 0o755
    asked()
    fs.cp_file(f"{home}/a", f"here{home}/a")
    assert asked() == ["stat"]


def test_large_files_are_copied_by_a_job_and_looked_at(fs, home, asked, connected):
    (home / "a").write_bytes(LARGE)
    fs.cp(f"{home}/a", f"{home}/new/b")
    assert (home / "new" / "b").read_bytes() == LARGE
    assert asked().count("transfer_cp") == 1
    with pytest.raises(IsADirectoryError):
        fs.cp_file(f"{home}/a", f"{home}/new")
    (home / "c").mkdir()
    (home / "c" / "b").mkdir()
    with pytest.raises(IsADirectoryError):
        fs.cp_file(f"{home}/a", f"{home}/c/b")


def test_a_job_that_copied_nothing_is_an_error(fs, home, connected):
    (home / "a").write_bytes(LARGE)
    (home / "b").write_bytes(LARGE)
    connected.faults.respond(200, {"output": {"content": "", "contentType": "bytes"}}, on="tail")
    with pytest.raises(OSError, match="has not copied it"):
        fs.cp_file(f"{home}/a", f"{home}/b")


def test_files_are_copied_between_systems(fs, home):
    (home / "a").write_bytes(b"12345")
    fs.cp_file(f"here{home}/a", f"there{home}/new/b")
    assert (home / "new" / "b").read_bytes() == b"12345"


def test_moving_is_one_job(fs, home, asked):
    (home / "tree" / "sub").mkdir(parents=True)
    (home / "tree" / "sub" / "a").write_bytes(b"1")
    fs.mv(f"{home}/tree", f"{home}/other", recursive=True)
    assert asked().count("transfer_mv") == 1
    assert (home / "other" / "sub" / "a").read_bytes() == b"1"
    fs.mv(f"{home}/other/sub/a", f"{home}/other")
    assert (home / "other" / "a").exists()
    fs.mv(f"{home}/other/a", f"{home}/other/a")
    with pytest.raises(FileNotFoundError):
        fs.mv(f"{home}/other/a", f"{home}/no/a")
    with pytest.raises(FileNotFoundError):
        fs.mv(f"{home}/no", f"{home}/yes")
    assert asked().count("transfer_mv") == 1


def test_a_move_that_did_not_happen_is_an_error(fs, home, connected):
    (home / "a").mkdir()
    (home / "b" / "a" / "full").mkdir(parents=True)
    with pytest.raises(FileExistsError):
        fs.mv(f"{home}/a", f"{home}/b")
    (home / "c").touch()
    with pytest.raises(OSError, match="has not moved it: ") as caught:
        fs.mv(f"{home}/a", f"{home}/c")
    assert isinstance(caught.value.__cause__, HpcError)
    assert (home / "a").is_dir()


def test_patterns_and_other_systems_are_moved_by_copying(fs, home, asked):
    for name in ("1.nc", "2.nc"):
        (home / name).write_bytes(b"1")
    (home / "to").mkdir()
    fs.mv(f"{home}/*.nc", f"{home}/to")
    fs.mv(f"here{home}/to/1.nc", f"there{home}/3.nc")
    assert sorted(path.name for path in home.rglob("*.nc")) == ["2.nc", "3.nc"]
    assert "transfer_mv" not in asked()


def test_a_link_to_a_directory_is_not_copied_as_an_empty_one(fs, home, tmp_path):
    (home / "tree").mkdir()
    (home / "real").mkdir()
    (home / "tree" / "link").symlink_to(home / "real")
    for copy, target in ((fs.get, f"{tmp_path}/copy"), (fs.copy, f"{home}/copy")):
        with pytest.raises(IsADirectoryError, match="copy that directory"):
            copy(f"{home}/tree", target, recursive=True)


# --- Airflow ---


@pytest.fixture
def base(connected, home):
    from airflow.sdk import ObjectStoragePath
    from airflow.sdk.io import store

    HpcFileSystem.clear_instance_cache()
    store._STORE_CACHE.clear()
    yield ObjectStoragePath(f"hpc://hpc_default@here{home}")
    HpcFileSystem.clear_instance_cache()
    store._STORE_CACHE.clear()


def test_object_storage_paths_do_it_all(base, home, tmp_path):
    from airflow.sdk import ObjectStoragePath

    path = base / "run1" / "out.txt"
    path.parent.mkdir()
    path.write_text("é\n")
    assert path.read_text() == "é\n"
    (base / "run1" / "b").write_bytes(b"\0")
    assert sorted(item.name for item in path.parent.iterdir()) == ["b", "out.txt"]
    assert sorted(str(item) for item in base.rglob("*.txt")) == [str(path)]
    true, found = (home / "run1" / "out.txt").stat(), path.stat()
    assert (found.st_size, found.st_mode, found.st_mtime) == (3, true.st_mode, int(true.st_mtime))
    assert (path.is_file(), path.parent.is_dir(), (base / "no").exists()) == (True, True, False)
    with path.open("rb") as file:
        file.seek(1)
        assert file.read(1) == b"\xa9"
    assert path.checksum() == (base / "run1" / "out.txt").checksum()

    local = ObjectStoragePath(f"file://{tmp_path}/here.txt")
    path.copy(local)
    assert (tmp_path / "here.txt").read_text() == "é\n"
    local.copy(base / "back.txt")
    path.copy(base / "again.txt")
    assert (home / "back.txt").read_text() == (home / "again.txt").read_text() == "é\n"
    (base / "again.txt").move(base / "moved.txt")
    assert (home / "moved.txt").read_text() == "é\n"

    path.unlink()
    with pytest.raises(FileNotFoundError):
        path.read_text()
    with pytest.raises(FileExistsError):
        (base / "run1").mkdir()
    (base / "run1").rmdir()
    assert names_in(home) == ["back.txt", "moved.txt"]


def test_without_a_connection_the_default_one_is_meant(base, home):
    from airflow.sdk import ObjectStoragePath

    (home / "a").write_bytes(b"1")
    assert ObjectStoragePath(f"hpc://{home}/a").read_bytes() == b"1"
    assert ObjectStoragePath(f"hpc://here{home}/a").read_bytes() == b"1"


# --- fsspec's abstract suite ---


class Fixtures(AbstractFixtures):
    @pytest.fixture
    def fs(self, connected):
        HpcFileSystem.clear_instance_cache()
        yield HpcFileSystem(auto_mkdir=True)
        HpcFileSystem.clear_instance_cache()

    @pytest.fixture
    def fs_join(self):
        return lambda *names: "/".join(str(name) for name in names)

    @pytest.fixture
    def fs_path(self, home):
        return f"here{home}"


class TestCopy(Fixtures, AbstractCopyTests):
    pass


class TestGet(Fixtures, AbstractGetTests):
    pass


class TestOpen(Fixtures, AbstractOpenTests):
    pass


class TestPipe(Fixtures, AbstractPipeTests):
    pass


class TestPut(Fixtures, AbstractPutTests):
    pass


class StagedFixtures(Fixtures):
    """No file is downloaded directly, and none of more than a byte is uploaded so."""

    @pytest.fixture
    def gateway(self, make_gateway):
        return make_gateway(systems=("here",), max_ops_file_size=1, ingress_poll=0.02)

    @pytest.fixture
    def fs(self, connected):
        HpcFileSystem.clear_instance_cache()
        yield HpcFileSystem(auto_mkdir=True, poll_interval=0.05)
        HpcFileSystem.clear_instance_cache()
        assert connected.requests.count("/transfer/") > 0


class TestStaged(StagedFixtures, AbstractOpenTests, AbstractPipeTests):
    """What the suite writes and reads again; the rest of it moves empty files."""

    test_get = AbstractGetTests.test_get_with_source_and_destination_as_list
    test_put = AbstractPutTests.test_copy_with_source_and_destination_as_list
