"""The file system ``hpc`` without a gateway: paths, errors, open files, and what others see of it."""

import errno
import gzip
import io
import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hpc_provider.client import errors
from airflow_hpc_provider.filesystem import HpcFileSystem, _mode
from airflow_hpc_provider.locations import Location, connection_of, locate, parent, strip
from airflow_hpc_provider.os_errors import os_error
from airflow_hpc_provider.streams import CompressedWriter, TextWriter, Writer

NAMES = st.text(
    st.characters(exclude_characters="/", exclude_categories=("Cs",)), min_size=1, max_size=8
).filter(lambda name: name != ".")


# --- paths ---


@pytest.mark.parametrize(
    ("url", "path", "system", "there", "conn_id"),
    [
        (
            "hpc://conn@daint/scratch/me/out.nc",
            "daint/scratch/me/out.nc",
            "daint",
            "/scratch/me/out.nc",
            "conn",
        ),
        ("hpc://daint/scratch/me/", "daint/scratch/me", "daint", "/scratch/me", None),
        ("hpc://daint//scratch/./me", "daint/scratch/me", "daint", "/scratch/me", None),
        ("hpc://conn@/scratch", "/scratch", None, "/scratch", "conn"),
        ("hpc:///scratch", "/scratch", None, "/scratch", None),
        ("hpc:/scratch", "/scratch", None, "/scratch", None),
        ("hpc:///", "/", None, "/", None),
        ("hpc://daint", "daint", "daint", "/", None),
        ("hpc://conn@daint/", "daint", "daint", "/", "conn"),
        ("hpc://", "", None, "", None),
        ("daint/scratch", "daint/scratch", "daint", "/scratch", None),
        ("/scratch/a@b/hpc:c", "/scratch/a@b/hpc:c", None, "/scratch/a@b/hpc:c", None),
        ("/", "/", None, "/", None),
    ],
)
def test_a_url_names_connection_system_and_path(url, path, system, there, conn_id):
    assert strip(url) == path
    assert locate(url) == Location(system, there)
    assert connection_of(url) == conn_id


@given(system=st.none() | st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True), names=st.lists(NAMES))
def test_a_place_is_read_back_from_its_path(system, names):
    place = Location(system, "/" + "/".join(names))
    assert locate(str(place)) == place
    assert locate(f"hpc://conn@{place}") == place
    assert strip(str(place)) == str(place)


@pytest.mark.parametrize(
    ("path", "above"),
    [
        ("daint/scratch/me", "daint/scratch"),
        ("daint/scratch", "daint"),
        ("daint", ""),
        ("", ""),
        ("/scratch/me", "/scratch"),
        ("/scratch", "/"),
        ("/", "/"),
    ],
)
def test_a_path_lies_in_its_parent(path, above):
    assert parent(path) == above
    assert HpcFileSystem._parent(f"hpc://conn@{path}") == above


@pytest.mark.parametrize(
    ("fs", "path", "url"),
    [
        (HpcFileSystem(), "daint/scratch", "hpc://hpc_default@daint/scratch"),
        (HpcFileSystem("other"), "/scratch", "hpc://other@/scratch"),
        (HpcFileSystem("other", "daint"), "/scratch", "hpc://other@daint/scratch"),
        (HpcFileSystem("other", "daint"), "eiger/scratch", "hpc://other@eiger/scratch"),
    ],
)
def test_a_path_becomes_a_url_that_leads_to_it_from_anywhere(fs, path, url):
    assert fs.unstrip_protocol(path) == url
    assert HpcFileSystem._get_kwargs_from_urls(url) == {"conn_id": fs.conn_id}


@pytest.mark.parametrize(
    ("permissions", "mode"),
    [
        ("rwxr-x---", 0o750),
        ("rw-r--r--+", 0o644),
        ("rwsr-Sr-t", 0o7744 | 0o001),
        ("rwxrwxrwT", 0o1776),
        ("", 0),
    ],
)
def test_permissions_become_bits(permissions, mode):
    assert oct(_mode(permissions)) == oct(mode)


# --- errors ---


def api(kind, status, message):
    return kind("look at /x", status=status, message=message, system="daint")


@pytest.mark.parametrize(
    ("error", "kind", "number"),
    [
        (
            api(errors.NotFoundError, 404, "stat: cannot statx '/x': No such file or directory"),
            FileNotFoundError,
            errno.ENOENT,
        ),
        (api(errors.NotFoundError, 404, "Not found"), FileNotFoundError, errno.ENOENT),
        (api(errors.NotFoundError, 404, "System not found"), OSError, errno.ENXIO),
        (api(errors.AccessDeniedError, 403, "ls: /x: Permission denied"), PermissionError, errno.EACCES),
        (api(errors.AccessDeniedError, 403, "Forbidden"), PermissionError, errno.EACCES),
        (
            api(errors.BadRequestError, 400, "mkdir: cannot create '/x': File exists"),
            FileExistsError,
            errno.EEXIST,
        ),
        (api(errors.BadRequestError, 400, "no"), OSError, errno.EINVAL),
        (
            api(
                errors.BadRequestError,
                400,
                "The provided path (/etc) does not match any of the defined filesystem paths for the system",
            ),
            PermissionError,
            errno.EACCES,
        ),
        (
            api(errors.RejectedError, 500, "base64: read error: Is a directory"),
            IsADirectoryError,
            errno.EISDIR,
        ),
        (api(errors.RejectedError, 500, "ls: '/x/y': Not a directory"), NotADirectoryError, errno.ENOTDIR),
        (
            api(errors.UnavailableError, 500, "cat: write error: No space left on device"),
            OSError,
            errno.ENOSPC,
        ),
        (
            api(errors.AccessDeniedError, 403, "cannot open '/no such file or directory': Permission denied"),
            PermissionError,
            errno.EACCES,
        ),
        (api(errors.TooLargeError, 413, "too large"), OSError, errno.EFBIG),
        (api(errors.UnsupportedError, 501, "no"), OSError, errno.ENOTSUP),
        (api(errors.UnavailableError, 503, "unhealthy"), OSError, errno.EIO),
        (api(errors.UnauthorizedError, 401, "expired"), ConnectionRefusedError, errno.ECONNREFUSED),
        (errors.TokenRefusedError("no"), ConnectionRefusedError, errno.ECONNREFUSED),
        (errors.UnreachableError("look", "refused", sent=False), ConnectionResetError, errno.ECONNRESET),
        (errors.InvalidInputError("path", "holds a quote"), OSError, errno.EINVAL),
        (errors.TransferError("not the same"), OSError, errno.EIO),
    ],
)
def test_an_error_becomes_the_one_of_the_operating_system(error, kind, number):
    found = os_error(error, "daint/x")
    assert (type(found), found.errno, found.filename) == (kind, number, "daint/x")
    assert str(error) in str(found)


# --- files open for writing ---


@pytest.fixture
def sent():
    return []


@pytest.fixture
def writer(sent):
    def send(content):
        sent.append(content if isinstance(content, bytes) else content.read_bytes())

    return lambda **options: Writer("daint/x", send, **{"limit": 10, **options})


@given(st.lists(st.tuples(st.integers(0, 30), st.binary(max_size=12))))
def test_a_file_is_sent_as_it_was_written_whatever_its_size(pieces):
    sent, wanted = [], io.BytesIO()

    def send(content):
        sent.append(content if isinstance(content, bytes) else content.read_bytes())

    with Writer("daint/x", send, limit=10) as file:
        for place, piece in pieces:
            file.seek(place)
            wanted.seek(place)
            assert file.write(piece) == wanted.write(piece)
            assert file.tell() == wanted.tell()
    assert sent == [wanted.getvalue()]


def test_a_large_file_is_sent_from_disk_and_gone_there_afterwards():
    seen = []
    with Writer("daint/x", seen.append, limit=10) as file:
        file.write(b"x" * 10)
        assert file._on_disk is None
        file.write(b"x")
        assert file._on_disk.exists()
        file.seek(0)
        assert file.read() == b"x" * 11
        assert file.truncate(4) == 4
    assert isinstance(seen[0], Path)
    assert not seen[0].exists()


def test_a_closed_file_is_sent_once_and_takes_no_more(writer, sent):
    file = writer()
    file.write(b"a")
    file.close()
    file.close()
    assert sent == [b"a"]
    with pytest.raises(ValueError, match="closed"):
        file.write(b"b")


def test_appending_writes_at_the_end(writer, sent):
    with writer(mode="ab", content=b"old ") as file:
        file.seek(0)
        file.write(b"new")
    assert sent == [b"old new"]


def test_a_failed_sending_is_raised_once():
    def send(_):
        raise OSError("full")

    file = Writer("daint/x", send, limit=10)
    with pytest.raises(OSError, match="full"):
        file.close()
    file.close()


@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize(
    "wrapped",
    [
        lambda file: file,
        TextWriter,
        lambda file: CompressedWriter(gzip.GzipFile(fileobj=file, mode="w"), file),
        lambda file: TextWriter(CompressedWriter(gzip.GzipFile(fileobj=file, mode="w"), file)),
    ],
    ids=["bytes", "text", "gzip", "gzipped text"],
)
def test_after_an_exception_nothing_is_sent(writer, sent, wrapped, size):
    file = wrapped(writer())

    def write():
        with file:
            file.write("x" * size if isinstance(file, TextWriter) else b"x" * size)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write()
    assert file.closed
    file.close()
    assert sent == []


@pytest.mark.parametrize("text", [False, True])
def test_what_is_never_closed_is_not_sent_and_the_log_says_so(writer, sent, caplog, text):
    caplog.set_level(logging.WARNING)
    file = writer()
    file.write(b"half")
    if text:
        file = TextWriter(file)
        file.write("half")
    del file
    assert sent == []
    assert text or "daint/x was never closed, so it is not written." in caplog.messages


def test_text_and_compression_end_with_the_file(writer, sent):
    file = writer(limit=1000)
    with TextWriter(CompressedWriter(gzip.GzipFile(fileobj=file, mode="w"), file), encoding="utf-8") as text:
        text.write("é\n")
    assert gzip.decompress(sent[0]).decode() == "é\n"


def test_without_autocommit_a_file_waits_for_its_transaction(writer, sent):
    kept, dropped = writer(autocommit=False), writer(autocommit=False)
    for file in (kept, dropped):
        with file:
            file.write(b"a")
    assert sent == []
    kept.commit()
    dropped.discard()
    dropped.commit()
    assert sent == [b"a"]


# --- what others see ---


def test_fsspec_finds_it_by_its_scheme():
    fs, path = fsspec.core.url_to_fs("hpc://conn@daint/scratch/x")
    assert (type(fs), fs.conn_id, path) == (HpcFileSystem, "conn", "daint/scratch/x")
    assert fsspec.filesystem("hpc") is fsspec.filesystem("hpc")
    assert fsspec.filesystem("hpc", conn_id="a") != fsspec.filesystem("hpc", conn_id="b")


def test_it_travels_without_secrets():
    fs = HpcFileSystem("conn", "daint", poll_interval=1.0)
    assert pickle.loads(pickle.dumps(fs)) == fs
    plain = fs.to_json()
    assert fsspec.AbstractFileSystem.from_json(plain) == fs
    assert json.loads(plain).keys() == {"cls", "protocol", "args", "poll_interval"}
    assert (repr(fs), fs.fsid) == ("<HpcFileSystem hpc-conn-daint>", "hpc-conn-daint")


def test_listings_are_never_kept():
    assert not HpcFileSystem(use_listings_cache=True).dircache.use_listings_cache


def test_another_process_gets_a_session_of_its_own(monkeypatch, connect):
    connect({"conn_type": "firecrest", "host": "http://127.0.0.1:9", "extra": {"access_token": "t"}})
    fs = HpcFileSystem("hpc_default", skip_instance_cache=True)
    session = fs._session
    assert fs._session is session
    monkeypatch.setattr("os.getpid", lambda: 1)
    assert fs._session is not session


@pytest.mark.parametrize("mode", ["r+b", "w+b", "zb"])
def test_a_mode_that_cannot_work_is_refused(mode):
    with pytest.raises(ValueError, match="is none of rb, wb, xb and ab"):
        HpcFileSystem().open("/x", mode)


def test_nothing_signs_a_path():
    with pytest.raises(NotImplementedError):
        HpcFileSystem().sign("/x")


@pytest.mark.parametrize("url", ["hpc://conn@daint/scratch/me/out.nc", "hpc://conn@/scratch/me/out.nc"])
def test_airflow_knows_its_paths(url):
    from airflow.sdk import ObjectStoragePath

    path = ObjectStoragePath(url)  # a warning would be an error
    assert str(path) == url
    assert str(path.parent / "b") == url.replace("out.nc", "b")
    assert (path.conn_id, path.name, path.fs) == ("conn", "out.nc", HpcFileSystem("conn"))
    assert ObjectStoragePath.deserialize(path.serialize(), 1) == path
    assert ObjectStoragePath("hpc:///scratch").fs.conn_id == "hpc_default"


def test_an_absolute_path_stays_on_its_system():
    from airflow.sdk import ObjectStoragePath

    assert str(ObjectStoragePath("hpc://conn@daint/a") / "/b" / "c") == "hpc://conn@daint/b/c"
    assert str(ObjectStoragePath("hpc://conn@/a") / "/b") == "hpc://conn@/b"


def test_airflow_loads_it_only_where_it_is_used():
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

    assert "airflow_hpc_provider.object_storage" in ProvidersManagerTaskRuntime().filesystem_module_names
    # Airflow imports that module for each ObjectStoragePath, of whatever scheme.
    program = "import sys, airflow_hpc_provider.object_storage; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert not {"airflow", "fsspec", "httpx", "airflow_hpc_provider.filesystem"} & set(run.stdout.split())
