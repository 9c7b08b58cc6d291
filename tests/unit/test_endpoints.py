"""Where data lies on Airflow's side: paths, object storages, and what passes between them and a system.

The storages here are fsspec's ``memory://`` and a small bucket of our own under ``s3://``, which keeps to
S3's rules: parts, a complete or an abort, and nothing to be seen before. No real S3 is asked.
"""

import contextlib
import hashlib
import io
import os
import threading
import time
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from hypothesis import given
from hypothesis import strategies as st

from airflow_hpc_provider.client import jobs
from airflow_hpc_provider.client.errors import InvalidInputError, TransferError
from airflow_hpc_provider.client.staging import Terms, download_file, upload_file
from airflow_hpc_provider.endpoints import (
    StorageSink,
    StorageSource,
    endpoint_of,
    sink_of,
    source_of,
    source_of_content,
)
from airflow_hpc_provider.hooks.hpc import HpcHook

# Each moves files by jobs, which take their time.
pytestmark = pytest.mark.slow

KIB = 1024
MIB = 1024 * KIB


class Bucket(AbstractFileSystem):
    """What S3 is like, in memory: an object is there when its upload is complete."""

    protocol = "s3"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.uploads: dict[int, list[bytes]] = {}
        self.fail_at: int | None = None
        self.fetched: list[tuple[int, int]] = []

    def put(self, key: str, content: bytes) -> None:
        self.objects[key] = content
        self.tags[key] = hashlib.sha256(content + os.urandom(8)).hexdigest()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path in self.objects:
            return {
                "name": path,
                "size": len(self.objects[path]),
                "type": "file",
                "ETag": self.tags[path],
                "LastModified": datetime(2026, 11, 22, tzinfo=UTC),
            }
        if any(key.startswith(f"{path}/") for key in self.objects):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def rm_file(self, path: str) -> None:
        del self.objects[self._strip_protocol(path)]

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return Upload(self, path, mode, **options)


class Upload(AbstractBufferedFile):
    """A file in a bucket."""

    def _initiate_upload(self) -> None:
        self.fs.uploads[id(self)] = []

    def _upload_chunk(self, final: bool = False) -> bool:
        if self.fs.fail_at is not None and self.loc >= self.fs.fail_at:
            raise PermissionError("the bucket is read-only now")
        self.fs.uploads[id(self)].append(self.buffer.getvalue())
        if final and self.autocommit:
            self.commit()
        return True

    def commit(self) -> None:
        self.fs.put(self.path, b"".join(self.fs.uploads.pop(id(self))))

    def discard(self) -> None:
        self.fs.uploads.pop(id(self), None)

    def _fetch_range(self, start: int, end: int) -> bytes:
        if self.fs.fail_at is not None and end > self.fs.fail_at:
            raise ConnectionError("the bucket hung up")
        self.fs.fetched.append((start, end))
        return self.fs.objects[self.path][start:end]


@pytest.fixture
def attached(monkeypatch):
    """Let Airflow reach a file system by a scheme, with or without a connection."""
    from airflow.sdk.io import attach
    from airflow.sdk.io import store as stores

    monkeypatch.setattr(stores, "_STORE_CACHE", {})

    def make(scheme: str, file_system: Any) -> Any:
        for conn_id in (None, "elsewhere"):
            attach(scheme, conn_id, fs=file_system)
        return file_system

    return make


@pytest.fixture
def memory(attached):
    """``memory://``, empty before and after."""
    MemoryFileSystem.store.clear()
    yield attached("memory", MemoryFileSystem())
    MemoryFileSystem.store.clear()


@pytest.fixture
def bucket(attached) -> Bucket:
    return attached("s3", Bucket())


@pytest.fixture
def small_limits(make_gateway, connect):
    """A gateway on which little is large: files above 64 KiB are staged, in parts of 50 KB."""
    gateway = make_gateway(max_ops_file_size=64 * KIB, max_part_size=50_000, ingress_poll=0.1)
    connect(gateway)
    return gateway


@pytest.fixture
def moving(small_limits):
    """Upload from and download to a place, as an operator does."""
    hook = HpcHook()
    with hook.client() as client:
        system = hook.system(client)

        def wait(job_id: str) -> jobs.Job:
            end = time.monotonic() + 20
            while time.monotonic() < end:
                job = client.send(jobs.get(system.name, job_id))
                if job.state.final:
                    return job
                time.sleep(0.05)
            raise AssertionError(f"job {job_id} did not end")

        def move(source: Any, target: Any, **terms: Any) -> Any:
            if isinstance(target, str) and target.startswith(str(small_limits.home)):
                return upload_file(client, system, source, target, wait=wait, terms=Terms(**terms))
            return download_file(client, system, source, target, wait=wait, terms=Terms(**terms))

        yield move


# --- what names a place ---


@pytest.mark.parametrize(
    ("given_", "path"),
    [
        ("/data/x", "/data/x"),
        (Path("/data/x"), "/data/x"),
        ("relative/x", "relative/x"),
        ("file:///data/x", "/data/x"),
        ("FILE:///data/x", "/data/x"),
        ("local:///data/x", "/data/x"),
        ("file://conn@/data/a b", "/data/a b"),
        ("/data/s3:x", "/data/s3:x"),
    ],
)
def test_a_path_and_a_file_url_are_on_this_machine(given_, path):
    endpoint = endpoint_of(given_)
    assert (str(endpoint), endpoint.local) == (path, Path(path))


def test_airflows_path_type_may_name_this_machine_too(tmp_path):
    from airflow.sdk import ObjectStoragePath

    (tmp_path / "x").write_text("x")
    for url in (f"{tmp_path}/x", f"file://{tmp_path}/x"):
        endpoint = endpoint_of(ObjectStoragePath(url))
        assert endpoint.local == tmp_path / "x"
        with contextlib.closing(endpoint.source()) as source:
            assert source.read_at(0, 10) == b"x"


def test_a_storage_is_named_by_a_url_or_by_airflows_path_type(bucket):
    from airflow.sdk import ObjectStoragePath

    for value in (
        "s3://elsewhere@data/run 1/x.nc",
        ObjectStoragePath("s3://data/run 1/x.nc", conn_id="elsewhere"),
    ):
        endpoint = endpoint_of(value)
        assert (str(endpoint), endpoint.name, endpoint.local) == (
            "s3://elsewhere@data/run 1/x.nc",
            "x.nc",
            None,
        )
        assert str(endpoint.parent()) == "s3://elsewhere@data/run 1"
        assert str(endpoint.parent().below("y.nc")) == "s3://elsewhere@data/run 1/y.nc"


def test_a_slash_at_the_end_and_a_whole_bucket_mean_a_directory(bucket):
    for value in ("s3://data/runs/", "s3://data", "s3://elsewhere@data/", "/data/", "file:///data/"):
        assert endpoint_of(value).is_directory_like, value
    for value in ("s3://data/runs", "/data", "file:///data"):
        assert not endpoint_of(value).is_directory_like, value
    with pytest.raises(InvalidInputError, match="has no key"):
        endpoint_of("s3://elsewhere@data").sink()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "is empty; if it comes from another task"),
        (None, "is NoneType; if it comes from another task"),
        (7, "is int"),
        (["/x"], "is list"),
        ("file://data/x", "write the absolute path behind file://"),
        ("hpc://conn@daint/x", "HpcCopyOperator copies from system to system"),
        ("nope://x/y", "in no storage that this Airflow reaches: .*nope"),
    ],
)
def test_what_names_no_place_is_refused(value, words):
    with pytest.raises(InvalidInputError, match=rf"^here: .*{words}"):
        endpoint_of(value, "here")


def test_a_storage_without_its_provider_is_refused(attached):
    for open_it in (source_of, sink_of):
        with pytest.raises(InvalidInputError, match=r"scheme gs\. Its provider may not be installed"):
            open_it("gs://data/x")


def test_directories_are_made_on_disks_and_never_as_buckets(tmp_path, bucket, memory, monkeypatch):
    endpoint_of(f"{tmp_path}/a/b").make_directories()
    endpoint_of("memory://data/a/b").make_directories()
    monkeypatch.setattr(
        Bucket, "makedirs", lambda *_, **__: pytest.fail("a bucket was to be made"), raising=False
    )
    endpoint_of("s3://data/a/b").make_directories()
    assert (tmp_path / "a/b").is_dir()
    assert memory.isdir("/data/a/b")


# --- content that the task holds ---


@given(st.text(st.characters(exclude_categories=["Cs"])), st.binary())
def test_text_is_sent_as_utf_8_and_bytes_as_they_are(text, content):
    assert source_of_content(text, "x").read_at(0, 10**6) == text.encode()
    for given_ in (content, bytearray(content), memoryview(content)):
        source = source_of_content(given_, "x")
        assert (source.size, source.read_at(0, 10**6)) == (len(content), content)


@pytest.mark.parametrize("content", [None, 7, {"a": 1}, ["a"], Path("/x")])
def test_other_content_is_refused_with_the_way_to_make_text_of_it(content):
    with pytest.raises(InvalidInputError, match=r"^content: is .*tojson"):
        source_of_content(content, "x")


def test_text_that_is_no_unicode_is_refused():
    with pytest.raises(InvalidInputError, match=r"^content: "):
        source_of_content("\ud800", "x")


# --- reading from a storage ---


@given(
    st.binary(min_size=1, max_size=300),
    st.lists(st.tuples(st.integers(0, 320), st.integers(1, 320)), max_size=12),
)
def test_a_storage_gives_any_piece_of_an_object(content, pieces):
    from unittest.mock import patch

    from airflow.sdk.io import attach
    from airflow.sdk.io import store as stores

    with patch.object(stores, "_STORE_CACHE", {}), patch("airflow_hpc_provider.endpoints._READ_BLOCK", 64):
        kept = Bucket()
        attach("s3", fs=kept)
        kept.put("data/x", content)
        with contextlib.closing(source_of("s3://data/x")) as source:
            for offset, length in pieces:
                assert source.read_at(offset, length) == content[offset : offset + length]


def test_an_object_is_read_in_blocks_the_next_one_ahead(bucket):
    bucket.put("data/x", os.urandom(10 * MIB))
    with contextlib.closing(source_of("s3://data/x")) as source:
        source.read_at(0, KIB)
        end = time.monotonic() + 5
        while len(bucket.fetched) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert sorted(bucket.fetched) == [(0, 4 * MIB), (4 * MIB, 8 * MIB)]


def test_several_threads_read_what_they_ask_for(memory):
    content = os.urandom(200 * KIB)
    memory.pipe("/data/x", content)
    wrong: list[int] = []
    with contextlib.closing(source_of("memory://data/x")) as source:

        def read(number: int) -> None:
            offsets = range(number * KIB, 200 * KIB, 4 * KIB)
            wrong.extend(at for at in offsets if source.read_at(at, KIB) != content[at : at + KIB])

        threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_source_tells_size_time_and_identity(bucket):
    bucket.put("data/x", b"abc")
    first = source_of("s3://data/x")
    assert (first.name, first.size, first.mode, first.rereadable) == ("x", 3, None, False)
    assert first.mtime == datetime(2026, 11, 22, tzinfo=UTC).timestamp()
    assert source_of("s3://data/x").fingerprint() == first.fingerprint()
    bucket.put("data/x", b"abc")
    assert source_of("s3://data/x").fingerprint() != first.fingerprint()


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ({"mtime": 12.5}, 12.5),
        ({"LastModified": datetime(1970, 1, 1, 0, 1, tzinfo=UTC)}, 60.0),
        ({"last_modified": datetime(1970, 1, 1, 0, 1, tzinfo=UTC)}, 60.0),
        ({"updated": "1970-01-01T00:01:00Z"}, 60.0),
        ({"mtime": "once", "created": 3}, 3.0),
        ({"mtime": None}, None),
        ({}, None),
    ],
)
def test_storages_tell_times_in_ways_of_their_own(bucket, monkeypatch, told, seconds):
    bucket.put("data/x", b"abc")
    monkeypatch.setattr(Bucket, "info", lambda *_, **__: {"type": "file", "size": 3, **told})
    assert source_of("s3://data/x").mtime == seconds
    assert sink_of("s3://data/x").existing() == (3, seconds or 0.0)


def test_what_is_no_object_of_known_size_is_refused(bucket, monkeypatch):
    bucket.put("data/run/x", b"abc")
    with pytest.raises(InvalidInputError, match=r"^local_path: s3://data/none does not exist\.$"):
        source_of("s3://data/none")
    with pytest.raises(InvalidInputError, match="is a directory"):
        source_of("s3://data/run")
    monkeypatch.setattr(Bucket, "info", lambda *_, **__: {"type": "file", "size": None})
    with pytest.raises(InvalidInputError, match="does not tell its size"):
        source_of("s3://data/run/x")


def test_an_object_that_changes_or_goes_away_is_noticed(bucket):
    bucket.put("data/x", b"abc")
    source = source_of("s3://data/x")
    source.check()
    bucket.put("data/x", b"abcd")
    with pytest.raises(TransferError, match="from 3 to 4 bytes") as changed:
        source.check()
    assert not changed.value.transient
    bucket.put("data/x", b"xyz")
    with pytest.raises(TransferError, match="in place"):
        source.check()
    bucket.rm_file("data/x")
    with pytest.raises(TransferError, match="went away"):
        source.check()


def test_after_an_error_a_block_is_asked_for_again(bucket):
    bucket.put("data/x", os.urandom(6 * MIB))
    bucket.fail_at = 5 * MIB
    with contextlib.closing(source_of("s3://data/x")) as source:
        source.read_at(0, KIB)
        with pytest.raises(TransferError, match="ConnectionError: the bucket hung up") as broken:
            source.read_at(5 * MIB, KIB)
        assert broken.value.transient
        bucket.fail_at = None
        assert source.read_at(5 * MIB, KIB) == bucket.objects["data/x"][5 * MIB : 5 * MIB + KIB]


# --- writing to a storage ---


@pytest.mark.parametrize("url", ["memory://data/out.nc", "s3://elsewhere@data/out.nc"])
@pytest.mark.parametrize("size", [0, 1, 3 * MIB])
def test_an_object_appears_whole_and_only_at_the_end(memory, bucket, url, size):
    file_system = memory if url.startswith("memory") else bucket
    path = "/data/out.nc" if file_system is memory else "data/out.nc"
    content = os.urandom(size)
    sink = sink_of(url)
    assert sink.existing() is None
    assert sink.start(size, "anything") is False
    for at in range(0, size, MIB):
        sink.write_at(at, bytearray(content[at : at + MIB]))
        assert not _there(file_system, path)
    sink.commit(mode=0o600, mtime=1.0)
    assert file_system.cat_file(path) == content
    assert sink.existing() is not None
    assert b"".join(sink.read_existing()) == content
    sink.discard()
    assert file_system.cat_file(path) == content
    assert _leftovers(file_system) == []


def _there(file_system, path) -> bool:
    try:
        file_system.info(path)
    except FileNotFoundError:
        return False
    return True


def _leftovers(file_system) -> list[Any]:
    if isinstance(file_system, Bucket):
        return [*file_system.uploads.values(), *(key for key in file_system.objects if "part" in key)]
    return [key for key in file_system.store if "part" in key]


@pytest.mark.parametrize("url", ["memory://data/out.nc", "s3://data/out.nc"])
@pytest.mark.parametrize("end", ["discard", "leave"])
@pytest.mark.parametrize("size", [10, 9 * MIB])
def test_a_given_up_object_leaves_what_was_there_before(memory, bucket, url, end, size):
    file_system = memory if url.startswith("memory") else bucket
    before = sink_of(url)
    before.start(3)
    before.write_at(0, b"old")
    before.commit()
    sink = sink_of(url)
    sink.start(size)
    sink.write_at(0, bytes(size))
    assert _leftovers(file_system) != [] or size == 10
    getattr(sink, end)()
    sink.discard()
    del sink
    assert b"".join(sink_of(url).read_existing()) == b"old"
    assert _leftovers(file_system) == []


def test_a_storage_that_refuses_leaves_nothing(bucket):
    bucket.fail_at = 8 * MIB
    sink = sink_of("s3://data/x")
    sink.start(20 * MIB)
    with pytest.raises(TransferError, match="PermissionError: the bucket is read-only now") as refused:
        sink.write_at(0, bytes(20 * MIB))
    assert not refused.value.transient
    sink.discard()
    assert (bucket.objects, bucket.uploads) == ({}, {})


def test_bytes_that_a_storage_loses_are_noticed(bucket, monkeypatch):
    sink = sink_of("s3://data/x")
    sink.start(3)
    sink.write_at(0, b"abc")
    monkeypatch.setattr(Bucket, "put", lambda self, key, content: self.objects.update({key: b"ab"}))
    bucket.tags["data/x"] = "tag"
    with pytest.raises(TransferError, match="got 3 bytes, and has 2"):
        sink.commit()
    assert bucket.objects == {}


def test_a_name_like_a_pattern_is_a_name(memory):
    memory.pipe("/data/[a]x", b"another")
    sink = sink_of("memory://data/[a]*")
    deeper = sink_of("memory://data/[ab]/x")
    deeper.start(0)
    deeper.commit()
    assert memory.cat_file("/data/[ab]/x") == b""
    sink.start(1)
    sink.write_at(0, b"1")
    sink.commit()
    assert memory.cat_file("/data/[a]*") == b"1"
    assert memory.cat_file("/data/[a]x") == b"another"


def test_a_stream_takes_bytes_in_their_order_only(bucket):
    sink = sink_of("s3://data/x")
    with pytest.raises(TransferError, match="is not being written"):
        sink.write_at(0, b"")
    with pytest.raises(TransferError, match="is not being written"):
        sink.commit()
    sink.start(10)
    with pytest.raises(ValueError, match="0 bytes are written, these come at 5"):
        sink.write_at(5, b"x")
    sink.discard()


def test_objects_of_any_size_fit_into_the_number_of_parts_that_s3_takes(bucket, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(
        Bucket,
        "_open",
        lambda self, path, mode, **options: asked.append(options["block_size"]) or io.BytesIO(),
    )
    for size in (0, 78 * 1024 * MIB, 1024 * 1024 * MIB):
        sink_of("s3://data/x").start(size)
        assert size / asked[-1] < 10_000
        assert asked[-1] % (256 * KIB) == 0
    assert asked[:1] == [8 * MIB]


def test_a_stream_holds_little_in_memory(bucket, monkeypatch):
    monkeypatch.setattr(Upload, "_upload_chunk", lambda self, final=False: True)
    monkeypatch.setattr(Upload, "commit", lambda self: self.fs.put(self.path, b""))
    monkeypatch.setattr(Upload, "_fetch_range", lambda self, start, end: bytes(end - start))
    monkeypatch.setattr(Bucket, "info", lambda *_, **__: {"type": "file", "size": 100 * MIB})
    sink = sink_of("s3://data/x")
    tracemalloc.start()
    try:
        with contextlib.closing(source_of("s3://data/y")) as source:
            sink.start(100 * MIB)
            for at in range(0, 100 * MIB, MIB):
                sink.write_at(at, source.read_at(at, MIB))
            sink.commit()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 48 * MIB


# --- to and from a system ---


@pytest.mark.parametrize("size", [0, 230_000])
@pytest.mark.parametrize("scheme", ["memory", "s3"])
def test_an_object_travels_to_a_system_and_back(small_limits, moving, attached, scheme, size):
    content = os.urandom(size)
    storage = attached(scheme, MemoryFileSystem() if scheme == "memory" else Bucket())
    sink = sink_of(f"{scheme}://elsewhere@data/in put.bin")
    sink.start(size)
    sink.write_at(0, content)
    sink.commit()
    there = f"{small_limits.home}/x{scheme}{size}.bin"
    sent = moving(source_of(f"{scheme}://elsewhere@data/in put.bin"), there)
    assert (sent.size, sent.sha256) == (size, hashlib.sha256(content).hexdigest())
    assert Path(there).read_bytes() == content
    got = moving(there, sink_of(f"{scheme}://elsewhere@data/back.bin"))
    assert (got.size, got.sha256, got.staged) == (size, sent.sha256, size > 64 * KIB)
    assert storage.cat_file("/data/back.bin" if scheme == "memory" else "data/back.bin") == content
    assert _leftovers(storage) == []
    MemoryFileSystem.store.clear()


def test_nothing_of_it_touches_the_disk_of_this_machine(small_limits, moving, memory, monkeypatch):
    memory.pipe("/data/x", os.urandom(230_000))
    for name in ("mkstemp", "NamedTemporaryFile", "TemporaryFile"):
        monkeypatch.setattr(f"tempfile.{name}", lambda *_, **__: pytest.fail("a temporary file was made"))
    moving(source_of("memory://data/x"), f"{small_limits.home}/streamed")
    moving(f"{small_limits.home}/streamed", sink_of("memory://data/y"))
    assert memory.cat_file("/data/y") == memory.cat_file("/data/x")


def test_a_part_that_is_lost_is_read_from_the_storage_again(small_limits, moving, bucket):
    bucket.put("data/x", os.urandom(120_000))
    small_limits.faults.cut(on="put_part", times=1)
    small_limits.faults.respond(503, "<Error><Code>SlowDown</Code></Error>", on="put_part", times=1, skip=1)
    assert moving(source_of("s3://data/x"), f"{small_limits.home}/lossy").verified == "sha256"
    assert (small_limits.home / "lossy").read_bytes() == bucket.objects["data/x"]


def test_a_download_that_breaks_off_leaves_no_object(small_limits, moving, bucket):
    (small_limits.home / "large").write_bytes(os.urandom(120_000))
    small_limits.faults.respond(403, "<Error><Code>AccessDenied</Code></Error>", on="get_object", times=None)
    with pytest.raises(TransferError):
        moving(f"{small_limits.home}/large", sink_of("s3://data/x"))
    assert (bucket.objects, bucket.uploads) == ({}, {})


def test_a_storage_that_refuses_a_download_ends_it(small_limits, moving, bucket):
    (small_limits.home / "refused").write_bytes(os.urandom(120_000))
    bucket.fail_at = 0
    with pytest.raises(TransferError, match="the bucket is read-only now"):
        moving(f"{small_limits.home}/refused", sink_of("s3://data/x"))
    assert (bucket.objects, bucket.uploads) == ({}, {})


def test_an_object_that_changes_while_it_is_sent_is_refused(small_limits, moving, bucket, monkeypatch):
    bucket.put("data/x", os.urandom(120_000))
    read = StorageSource.read_at

    def change(self: StorageSource, offset: int, length: int) -> bytes:
        content = read(self, offset, length)
        bucket.put("data/x", bucket.objects["data/x"])
        return content

    monkeypatch.setattr(StorageSource, "read_at", change)
    with pytest.raises(TransferError, match="changed while it was read"):
        moving(source_of("s3://data/x"), f"{small_limits.home}/changed")
    assert not (small_limits.home / "changed").exists()


def test_an_object_with_the_same_content_is_left(small_limits, moving, bucket):
    content = os.urandom(100)
    bucket.put("data/x", content)
    (small_limits.home / "same").write_bytes(content)
    assert moving(source_of("s3://data/x"), f"{small_limits.home}/same", if_exists="verify").skipped
    assert moving(f"{small_limits.home}/same", sink_of("s3://data/x"), if_exists="verify").skipped
    assert isinstance(sink_of("s3://data/x"), StorageSink)
