import os

import pytest

from airflow_hpc_provider.client.errors import InvalidInputError, TransferError
from airflow_hpc_provider.client.places import BytesSource, LocalSink, LocalSource


def test_bytes_are_read_where_asked():
    source = BytesSource("text", b"0123456789")
    assert (source.size, source.read_at(3, 4), source.read_at(8, 9), source.read_at(10, 1)) == (
        10,
        b"3456",
        b"89",
        b"",
    )
    assert source.fingerprint() != BytesSource("text", b"0123456780").fingerprint()
    source.check()
    source.close()


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
        # Somebody who writes, or opening it would wait for one.
        writer = os.open(path, os.O_RDWR)
    with pytest.raises(InvalidInputError, match="local_path"):
        LocalSource(path)
    if kind == "pipe":
        os.close(writer)


def test_a_file_that_changed_has_another_fingerprint(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    seen = set()
    for change in (lambda: None, lambda: os.utime(path, (1, 1)), lambda: path.write_bytes(b"abcd")):
        change()
        source = LocalSource(path)
        seen.add(source.fingerprint())
        source.close()
    assert len(seen) == 3


@pytest.mark.parametrize("name", ["x", "n" * 255, "ü" * 127, "a b'c\"\n$"])
def test_a_file_of_any_name_appears_when_it_is_whole(tmp_path, name):
    sink = LocalSink(tmp_path / name)
    assert not sink.start(6)
    sink.write_at(3, b"def")
    sink.write_at(0, memoryview(b"abc"))
    assert sink.read_at(1, 3) == b"bcd"
    assert not (tmp_path / name).exists()
    sink.commit(mode=0o640, mtime=1_000.0)
    stat = (tmp_path / name).stat()
    assert ((tmp_path / name).read_bytes(), stat.st_mode & 0o777, stat.st_mtime) == (b"abcdef", 0o640, 1_000)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    sink.discard()
    assert (tmp_path / name).exists()


def test_a_later_sink_goes_on_with_what_was_left(tmp_path):
    first = LocalSink(tmp_path / "x")
    first.start(6)
    first.write_at(0, b"abc")
    first.sync()
    place = first.place
    first.leave()
    second = LocalSink(tmp_path / "x")
    assert second.start(6, place)
    second.write_at(3, b"def")
    second.commit()
    assert (tmp_path / "x").read_bytes() == b"abcdef"


@pytest.mark.parametrize(
    "place", ["../x/.x.1.part", "/etc/passwd", ".y.1.part", ".x.1", ".x.link.part", ".x.gone.part"]
)
def test_a_place_that_is_none_of_ours_is_not_opened(tmp_path, place):
    victim = tmp_path / "victim"
    victim.write_bytes(b"victim")
    (tmp_path / ".x.link.part").symlink_to(victim)
    (tmp_path / ".y.1.part").write_bytes(b"")
    (tmp_path / ".x.1").write_bytes(b"")
    sink = LocalSink(tmp_path / "x")
    assert not sink.start(3, place)
    sink.write_at(0, b"abc")
    sink.discard()
    assert victim.read_bytes() == b"victim"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.1", ".x.link.part", ".y.1.part", "victim"]


def test_what_is_not_being_written_says_so(tmp_path):
    sink = LocalSink(tmp_path / "x")
    sink.discard()
    with pytest.raises(TransferError, match="is not being written"):
        sink.write_at(0, b"x")
    with pytest.raises(ValueError, match="not started"):
        sink.commit()


def test_a_directory_that_cannot_be_written_is_told(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    sink = LocalSink(folder / "x")
    folder.rmdir()
    with pytest.raises(TransferError, match="cannot be made: No such file"):
        sink.start(1)
