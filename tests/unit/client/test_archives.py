"""What goes into an archive comes out of it, if it is chosen; and nothing malicious gets out of its place."""

import contextlib
import gzip
import io
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import warnings
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_hpc_provider.client import archives, unpacking
from airflow_hpc_provider.client.archives import Packed, TarSource, survey
from airflow_hpc_provider.client.choices import Choice, escape, find_pattern, is_glob, split_glob
from airflow_hpc_provider.client.errors import InvalidInputError, TransferError
from airflow_hpc_provider.client.unpacking import Unpacking

EVERYTHING = Choice()
ODD = ["it's", 'a "b"', "$HOME", "`id`", "new\nline", "tab\t", "-rf", "\\", "é", "日本", " ", "*", "x" * 255]

names = st.one_of(
    st.sampled_from(ODD),
    st.binary(min_size=1, max_size=12)
    .map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_"))
    .filter(lambda raw: raw not in (b".", b".."))
    .map(os.fsdecode),
).filter(lambda name: not name.startswith(".airflow-hpc-"))
modes = st.sampled_from([0o644, 0o600, 0o755, 0o640, 0o444, 0o777])
leaves = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=2000), modes),
    st.tuples(st.just("link"), st.lists(names, min_size=1, max_size=2), st.none()),
)
trees = st.recursive(
    leaves, lambda children: st.dictionaries(names, children, max_size=4), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


def build(root, tree, mode=0o755):
    root.mkdir()
    for name, what in tree.items():
        path = root / name
        if isinstance(what, dict):
            build(path, what)
        elif what[0] == "file":
            path.write_bytes(what[1])
            path.chmod(what[2])
            os.utime(path, (1_700_000_000, 1_700_000_000))
        else:
            path.symlink_to("/".join(what[1]))
    root.chmod(mode)


def seen(root):
    """Everything below a directory: kind, mode, time, content."""
    found = {}
    for path in root.rglob("*"):
        info = path.lstat()
        name = str(path.relative_to(root))
        if stat.S_ISLNK(info.st_mode):
            found[name] = os.readlink(path)  # noqa: PTH115  Path would change 'a/./b'
        elif stat.S_ISDIR(info.st_mode):
            found[name] = stat.S_IMODE(info.st_mode)
        else:
            found[name] = (stat.S_IMODE(info.st_mode), int(info.st_mtime), path.read_bytes())
    return found


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def content(source, step=1000):
    """All bytes of a source, by reads of an odd size."""
    data, at = b"", 0
    while chunk := source.read_at(at, step):
        data += chunk
        at += len(chunk)
    assert len(data) == source.size
    return data


def take(archive, target, *, root="root", below="", only=None, **given):
    with Unpacking(target, **given) as unpacking_:
        unpacking_.take(archive, root=root, below=below, only=only)
        return unpacking_.commit()


@pytest.fixture
def work():
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


# --- there and back ----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(tree=trees, form=st.sampled_from(["whole", "pieces", "tar"]))
@example(tree={"d": {}, "e": {"f": ("file", b"", 0o644)}}, form="pieces")
@example(tree={name: ("file", name.encode(), 0o600) for name in ODD}, form="tar")
def test_a_tree_comes_out_as_it_went_in(tree, form):
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        build(work / "root", tree)
        items = survey({"root": work / "root"}, EVERYTHING)
        if form == "tar":
            sources = [TarSource(items)]
        else:
            packed = Packed(items, piece=1_500 if form == "pieces" else 1 << 20)
            sources = packed.pieces() if form == "pieces" else [packed.whole()]
        with Unpacking(work / "target") as unpacking_:
            for source in sources:
                source.check()
                archive = work / "archive"
                archive.write_bytes(content(source))
                unpacking_.take(archive, root="root")
            if form != "tar":
                packed.close()
            unpacked = unpacking_.commit()
        assert seen(work / "target") == seen(work / "root")
        assert unpacked.size == sum(item.size for item in items)
        assert names_in(work) == ["archive", "root", "target"]


@pytest.mark.skipif(not shutil.which("tar"), reason="no tar")
@pytest.mark.parametrize("form", ["whole", "pieces", "tar"])
def test_tar_reads_it_too(work, form):
    build(
        work / "root",
        {name: ("file", os.urandom(1000), 0o640) for name in ODD} | {"l": ("link", ["x", "y"], None)},
    )
    (work / "root" / os.fsdecode(b"\xff\xfe")).write_bytes(b"raw")
    locked = work / "root" / "locked"
    build(locked, {str(n): ("file", os.urandom(1000), 0o400) for n in range(5)}, mode=0o500)
    items = survey(work / "root", EVERYTHING)
    packed = Packed(items, piece=4_000)
    sources = {"whole": [packed.whole()], "pieces": packed.pieces(), "tar": [TarSource(items)]}[form]
    assert form != "pieces" or len(sources) > 3
    (work / "target").mkdir()
    for source in sources:
        archive = work / ("a.tar" if form == "tar" else "a.tar.gz")
        archive.write_bytes(content(source))
        flags = "-xpf" if form == "tar" else "-xzpf"
        environment = {"LC_ALL": "C", "PATH": os.environ["PATH"]}
        done = subprocess.run(
            ["tar", flags, str(archive), "-C", str(work / "target")],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        assert done.stderr == ""
    packed.close()
    assert seen(work / "target") == seen(work / "root")


def test_tar_s_archives_are_read(work):
    build(work / "root", {"d": {"a": ("file", b"a" * 5000, 0o604)}, "l": ("link", ["d", "a"], None), "e": {}})
    os.link(work / "root" / "d" / "a", work / "root" / "hard")
    with (work / "root" / "sparse").open("wb") as file:
        file.seek(200_000)
        file.write(b"end")
    archive = work / "a.tar.gz"
    subprocess.run(["tar", "-Sczf", str(archive), "-C", str(work), "root"], check=True, capture_output=True)
    unpacked = take(archive, work / "target")
    assert seen(work / "target") == seen(work / "root")
    assert unpacked.links == ("l",)
    assert set(unpacked.files) == {"d/a", "hard", "sparse"}


def test_pieces_in_a_row_are_one_archive(work):
    build(work / "root", {str(n): ("file", os.urandom(3000), 0o644) for n in range(20)})
    items = survey({"root": work / "root"}, EVERYTHING)
    packed = Packed(items, piece=10_000)
    assert len(packed.pieces()) > 5
    assert all(source.size <= 10_000 for source in packed.pieces())
    assert packed.largest == max(source.size for source in packed.pieces())
    with tarfile.open(fileobj=io.BytesIO(content(packed.whole()))) as tar:
        assert len(tar.getnames()) == 21
    again = Packed(items, piece=10_000)
    assert again.whole().fingerprint() == packed.whole().fingerprint() != packed.pieces()[0].fingerprint()
    packed.close()
    again.close()


def test_no_piece_is_larger_than_it_may_be(work):
    build(work / "t", {f"{number:02}": ("file", os.urandom(1024), 0o644) for number in range(40)})
    items = survey(work / "t", Choice())
    for piece in range(20_000, 22_000, 5):
        with contextlib.closing(Packed(items, piece=piece)) as packed:
            assert packed.largest <= piece


def test_what_compresses_well_needs_no_more_pieces_than_that(work):
    build(work / "root", {str(n): ("file", bytes(30_000), 0o644) for n in range(20)})
    packed = Packed(survey(work / "root", EVERYTHING), piece=10_000)
    assert len(packed.pieces()) <= 2
    packed.close()


def test_privileges_do_not_travel(work):
    build(work / "root", {"a": ("file", b"", 0o644)})
    (work / "root" / "a").chmod(0o6755)
    items = survey({"root": work / "root"}, EVERYTHING)
    archive = work / "a.tar"
    archive.write_bytes(content(TarSource(items)))
    with tarfile.open(archive) as tar:
        assert [member.mode for member in tar if member.isfile()] == [0o755]
    hostile(archive, entry("root/b", b"x", mode=0o6755))
    take(archive, work / "target")
    assert stat.S_IMODE((work / "target" / "b").stat().st_mode) == 0o755


def test_directories_get_their_modes_when_they_are_full(work):
    build(work / "root", {"d": {"e": {"f": ("file", b"x", 0o400)}}})
    for path in ("d/e", "d"):
        (work / "root" / path).chmod(0o500)
    archive = work / "a.tar"
    archive.write_bytes(content(TarSource(survey({"root": work / "root"}, EVERYTHING))))
    take(archive, work / "target")
    assert seen(work / "target") == seen(work / "root")


# --- what is packed ----------------------------------------------------------------------------------------


def test_a_list_goes_by_last_names_and_a_mapping_by_its_own(work):
    build(work / "d", {"x": ("file", b"1", 0o644)})
    (work / "f").write_bytes(b"2")
    assert [item.name for item in survey([work / "d", str(work / "f")], EVERYTHING)] == ["d", "d/x", "f"]
    mapping = {"it's/$odd\n": work / "f", "e": work / "d"}
    assert [item.name for item in survey(mapping, EVERYTHING)] == ["e", "e/x", "it's/$odd\n"]


def test_a_glob_keeps_what_follows_its_first_wildcard(work):
    build(
        work / "run",
        {"a": {"1.nc": ("file", b"", 0o644)}, "b": {"2.nc": ("file", b"", 0o644), "t": ("file", b"", 0o644)}},
    )
    assert [item.name for item in survey(f"{work}/run/*/*.nc", EVERYTHING)] == ["a", "a/1.nc", "b", "b/2.nc"]
    assert [item.name for item in survey(f"{work}/run/b/*.nc", EVERYTHING)] == ["2.nc"]
    with pytest.raises(InvalidInputError, match=r"nothing matches .*\*\.txt"):
        survey(f"{work}/run/*.txt", EVERYTHING)


def test_a_name_that_looks_like_a_glob_is_itself_if_it_is_there(work):
    (work / "[1]").write_bytes(b"x")
    (work / "1").write_bytes(b"y")
    assert [item.name for item in survey([f"{work}/[1]"], EVERYTHING)] == ["[1]"]


def test_what_is_named_is_followed_and_what_is_found_is_not(work):
    build(work / "real", {"l": ("link", ["x"], None)})
    (work / "link").symlink_to("real")
    (item,) = survey(work / "link", EVERYTHING)
    assert (item.name, item.link) == ("l", "x")


@pytest.mark.parametrize("name", ["/abs", "../up", "a/../b", "", "a//b", "./a", "nul\0", "x" * 256])
def test_names_that_climb_are_refused(work, name):
    (work / "f").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="source"):
        survey({name: work / "f"}, EVERYTHING)


def test_two_of_one_name_are_refused(work):
    build(work / "a", {"x": ("file", b"", 0o644)})
    build(work / "b", {"x": ("file", b"", 0o644)})
    with pytest.raises(InvalidInputError, match="would both become 'x'"):
        survey([work / "a" / "x", work / "b" / "x"], EVERYTHING)
    with pytest.raises(InvalidInputError, match="a file and a directory"):
        survey({"y": work / "a" / "x", "y/z": work / "b" / "x"}, EVERYTHING)


def test_sockets_and_pipes_are_refused_unless_excluded(work):
    build(work / "root", {"a": ("file", b"", 0o644)})
    os.mkfifo(work / "root" / "pipe")
    # A socket's path must be short.
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(work / "root"):
        listening.bind("sock")
    with pytest.raises(InvalidInputError, match="exclude it"):
        survey(work / "root", EVERYTHING)
    assert [item.name for item in survey(work / "root", Choice((), ("pipe", "sock")))] == ["a"]


def test_too_much_is_refused_before_anything_is_read(work):
    build(work / "root", {"a": ("file", bytes(600), 0o644), "b": ("file", bytes(600), 0o644)})
    assert len(survey(work / "root", EVERYTHING, max_bytes=1200)) == 2
    with pytest.raises(InvalidInputError, match="max_bytes: there is more to upload than 1199 bytes"):
        survey(work / "root", EVERYTHING, max_bytes=1199)


def test_what_is_missing_is_told(work):
    with pytest.raises(InvalidInputError, match="cannot be read: No such file"):
        survey([work / "nothing"], EVERYTHING)
    (work / "empty").mkdir()
    assert survey(work / "empty", EVERYTHING) == []
    with pytest.raises(InvalidInputError, match="there is nothing"):
        survey(work / "empty", Choice(("*.nc",)))


@pytest.mark.parametrize("change", ["longer", "shorter", "in place", "gone"])
@pytest.mark.parametrize("form", ["packed", "tar"])
def test_a_file_that_changes_under_way_is_refused(work, change, form):
    build(work / "root", {"a": ("file", b"x" * 1000, 0o644)})
    items = survey(work / "root", EVERYTHING)
    path = work / "root" / "a"
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes({"longer": b"x" * 1001, "shorter": b"x" * 999, "in place": b"y" * 1000}[change])
    read = partial(Packed, piece=1 << 20) if form == "packed" else lambda items: content(TarSource(items))
    why = "cannot be read" if change == "gone" else "changed while it was packed"
    with pytest.raises(TransferError, match=why) as refused:
        read(items)
    assert not refused.value.transient
    with pytest.raises(TransferError):
        TarSource(items).check()


def test_an_empty_file_that_grows_is_refused(work):
    build(work / "root", {"a": ("file", b"", 0o644)})
    items = survey(work / "root", EVERYTHING)
    (work / "root" / "a").write_bytes(b"more")
    with pytest.raises(TransferError, match="4 instead of 0 bytes"):
        Packed(items, piece=1 << 20)


def test_a_full_disk_is_told(work, monkeypatch):
    build(work / "root", {"a": ("file", b"x", 0o644)})

    def full(*_args, **_kwargs):
        return Path("/dev/full").open("wb", buffering=0)

    monkeypatch.setattr(archives.tempfile, "TemporaryFile", full)
    with pytest.raises(TransferError, match="no room to pack"):
        Packed(survey(work / "root", EVERYTHING), piece=1 << 20)


# --- what is hostile ---------------------------------------------------------------------------------------


def entry(name, data=b"", *, kind=tarfile.REGTYPE, link="", mode=0o644, size=None):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, mode
    member.size = len(data) if size is None else size
    return member, data


def hostile(archive, *members, compressed=False):
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    raw = buffer.getvalue()
    archive.write_bytes(gzip.compress(raw) if compressed else raw)
    return archive


def link(name, to, kind=tarfile.SYMTYPE):
    return entry(name, kind=kind, link=to)


def folder(name, mode=0o755):
    return entry(name, kind=tarfile.DIRTYPE, mode=mode)


HOSTILE = {
    "an absolute path": [entry("/tmp/evil", b"x")],
    "an absolute path of the target": [entry("{outside}/evil", b"x")],
    "a path that climbs": [entry("root/../../evil", b"x")],
    "a path that climbs at once": [entry("../evil", b"x")],
    "another root": [entry("other/evil", b"x")],
    "an absolute link": [link("root/l", "{outside}")],
    "a link that climbs": [link("root/l", "../../outside")],
    "a link, then a file through it": [link("root/l", "../../outside"), entry("root/l/evil", b"x")],
    "a link inside, then a file through it": [
        folder("root/d"),
        link("root/l", "d"),
        entry("root/l/evil", b"x"),
    ],
    "a link, then a directory of its name, then below": [
        link("root/l", "../../outside"),
        folder("root/l"),
        entry("root/l/evil", b"x"),
    ],
    "a directory that becomes a link": [
        folder("root/d"),
        entry("root/d/a", b"x"),
        link("root/d", "../../outside"),
    ],
    "a link by way of another": [
        link("root/d/e/y", "../../s"),
        folder("root/s"),
        link("root/d/e/z", "y/../../outside"),
    ],
    "a link to itself, and on": [link("root/a", "b/../../.."), link("root/b", ".")],
    "a hard link out": [link("root/h", "{outside}/victim", tarfile.LNKTYPE)],
    "a hard link that climbs": [link("root/h", "root/../../outside/victim", tarfile.LNKTYPE)],
    "a hard link to a link out": [
        link("root/l", "../../outside/victim"),
        link("root/h", "root/l", tarfile.LNKTYPE),
        entry("root/h", b"x"),
    ],
    "a hard link to nothing": [link("root/h", "root/nothing", tarfile.LNKTYPE)],
    "a device": [entry("root/null", kind=tarfile.CHRTYPE)],
    "a disk": [entry("root/disk", kind=tarfile.BLKTYPE)],
    "a pipe": [entry("root/pipe", kind=tarfile.FIFOTYPE)],
    "something unknown": [entry("root/x", kind=b"Q")],
    "a file as a directory": [entry("root/f", b"x"), entry("root/f/evil", b"x")],
    "a directory as a file": [entry("root/d/f", b"x"), entry("root/d", b"x")],
    "a link as its root": [link("root", "../outside"), entry("root/evil", b"x")],
    "a name with no end": [entry("root/" + "x" * 300, b"x")],
}


@pytest.fixture
def arena(work):
    """A target that is there, beside what nothing may touch."""
    build(work / "outside", {"victim": ("file", b"precious", 0o644)})
    build(work / "target", {"mine": ("file", b"mine", 0o600)})
    build(work / "box", {})
    return work


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_hostile_is_written(arena, case, compressed):
    members = [
        entry(
            m.name.format(outside=arena / "outside"),
            data,
            kind=m.type,
            link=m.linkname.format(outside=arena / "outside"),
        )
        for m, data in HOSTILE[case]
    ]
    archive = hostile(arena / "box" / "a", *members, compressed=compressed)
    before = seen(arena)
    with pytest.raises((TransferError, InvalidInputError)) as refused:
        take(archive, arena / "target")
    assert seen(arena) == before
    assert not getattr(refused.value, "transient", False)
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("an absolute path", "absolute path"),
        ("a path that climbs", "leads out of the target"),
        ("another root", "is not below 'root'"),
        ("a link that climbs", "a symbolic link out of the target"),
        ("a link by way of another", "'d/e/z' is a symbolic link out of the target"),
        ("a hard link that climbs", "leads out of the target"),
        ("a device", "a device, a pipe or something unknown"),
        ("a file as a directory", "as a directory and as something else"),
    ],
)
def test_what_is_hostile_is_named(arena, case, why):
    with pytest.raises(TransferError, match=why):
        take(hostile(arena / "box" / "a", *HOSTILE[case]), arena / "target")


parts = st.sampled_from(["..", ".", "a", "b", "c", "", "/", "outside", "target"])
paths = st.lists(parts, min_size=1, max_size=5).map("/".join)
kinds = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
members = st.builds(
    lambda name, kind, to, hard: entry(
        f"root/{name}",
        b"evil" if kind == tarfile.REGTYPE else b"",
        kind=kind,
        link=f"root/{to}" if hard and kind == tarfile.LNKTYPE else to,
    ),
    paths,
    kinds,
    paths,
    st.booleans(),
)


@settings(max_examples=60)
@given(st.lists(members, max_size=6))
@example([link("root/a", "b"), link("root/b", "../../outside"), entry("root/a/victim", b"x")])
@example([link("root/a", "."), link("root/b", "a/../outside")])
def test_whatever_an_archive_holds_nothing_outside_changes(entries):
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        build(work / "outside", {"victim": ("file", b"precious", 0o644), "a": {}, "b": {}})
        build(work / "target", {"a": {"b": ("file", b"mine", 0o644)}})
        archive = hostile(work / "archive", *entries)
        before = seen(work / "outside")
        kept = seen(work / "target")
        try:
            take(archive, work / "target")
        except (TransferError, InvalidInputError):
            assert seen(work / "target") == kept
        assert seen(work / "outside") == before
        assert names_in(work) == ["archive", "outside", "target"]
        top = os.path.realpath(work / "target")
        assert all(os.path.realpath(path).startswith(top) for path in (work / "target").rglob("*"))


def test_a_bomb_ends_at_max_bytes(work):
    archive = hostile(work / "a", *[entry(f"root/{n}", bytes(100_000)) for n in range(50)], compressed=True)
    assert archive.stat().st_size < 20_000
    with pytest.raises(TransferError, match=r"more than max_bytes \(1000000\)") as refused:
        take(archive, work / "target", max_bytes=1_000_000)
    assert not refused.value.transient
    assert names_in(work) == ["a"]
    assert take(archive, work / "target", max_bytes=5_000_000).size == 5_000_000


def test_a_sparse_bomb_counts_with_its_holes(work):
    (work / "root").mkdir()
    with (work / "root" / "s").open("wb") as file:
        file.truncate(10**12)
    archive = work / "a.tar.gz"
    subprocess.run(["tar", "-Sczf", str(archive), "-C", str(work), "root"], check=True, capture_output=True)
    with pytest.raises(TransferError, match="more than max_bytes"):
        take(archive, work / "target", max_bytes=10**9)
    assert not (work / "target").exists()


def test_a_header_that_would_fill_the_memory_is_refused(work):
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, 5 * 10**9
    archive = work / "a"
    with gzip.open(archive, "wb") as file:
        file.write(member.tobuf())
        for _ in range(20):
            file.write(bytes(1_000_000))
    with pytest.raises(TransferError, match="a header of"):
        take(archive, work / "target")


def test_a_chain_of_headers_is_refused(work):
    archive = work / "a"
    with gzip.open(archive, "wb") as file:
        member = tarfile.TarInfo("././@LongLink")
        member.type, member.size = tarfile.GNUTYPE_LONGNAME, 5
        file.write((member.tobuf() + b"root\0".ljust(512, b"\0")) * (sys.getrecursionlimit() + 10))
    with pytest.raises(TransferError, match="damaged"):
        take(archive, work / "target")


def test_more_members_than_bearable_are_refused(work, monkeypatch):
    monkeypatch.setattr(unpacking, "_MAX_MEMBERS", 10)
    archive = hostile(work / "a", *[entry(f"root/{n}") for n in range(11)])
    with pytest.raises(TransferError, match="more than 10 files"):
        take(archive, work / "target")


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7, 0.95])
def test_a_cut_archive_is_refused(work, compressed, keep):
    entries = [entry(f"root/{n}", os.urandom(3000)) for n in range(10)]
    whole = hostile(work / "a", *entries, compressed=compressed).read_bytes()
    end = len(whole) if compressed else 10 * (512 + 3072) + 512
    (work / "a").write_bytes(whole[: int(end * keep)])
    with pytest.raises(TransferError, match="damaged"):
        take(work / "a", work / "target")
    assert not (work / "target").exists()


@settings(max_examples=40)
@given(st.integers(20, 20_000), st.integers(1, 255))
def test_a_flipped_byte_of_a_compressed_archive_is_noticed(at, flip):
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        content_ = bytes(range(256)) * 40
        archive = hostile(work / "a", entry("root/a", content_), entry("root/b", b"b"), compressed=True)
        raw = bytearray(archive.read_bytes())
        raw[10 + at % (len(raw) - 18)] ^= flip  # anywhere but in the header and the length at its end
        archive.write_bytes(raw)
        with pytest.raises(TransferError):
            take(archive, work / "target")
        assert not (work / "target").exists()


def test_a_broken_header_is_not_taken_for_the_end(work):
    archive = hostile(work / "a", entry("root/a", b"x"), entry("root/b", b"y"))
    raw = bytearray(archive.read_bytes())
    raw[1024:1030] = b"broken"
    archive.write_bytes(raw)
    with pytest.raises(TransferError, match="something after its end"):
        take(archive, work / "target")


def test_of_two_members_of_one_name_the_last_counts(work):
    archive = hostile(
        work / "a",
        entry("root/x", b"first"),
        link("root/y", "x"),
        entry("root/x", b"last"),
        entry("root/y", b"file"),
        entry("root/z", b"old"),
        link("root/z", "x"),
    )
    take(archive, work / "target")
    assert {k: v if isinstance(v, str | bytes) else v[2] for k, v in seen(work / "target").items()} == {
        "x": b"last", "y": b"file", "z": "x",
    }  # fmt: skip


# --- merging -----------------------------------------------------------------------------------------------


def test_an_existing_directory_is_merged(work):
    build(
        work / "target",
        {
            "d": {"old": ("file", b"old", 0o644), "both": ("file", b"before", 0o644)},
            "x": ("link", ["d"], None),
        },
        mode=0o750,
    )
    (work / "target" / "d").chmod(0o701)
    archive = hostile(
        work / "a",
        folder("root", 0o700),
        folder("root/d"),
        entry("root/d/both", b"after", mode=0o640),
        entry("root/d/new/deep", b"deep"),
        entry("root/x", b"no link any more"),
    )
    take(archive, work / "target")
    there = {key: value[2] for key, value in seen(work / "target").items() if isinstance(value, tuple)}
    assert there == {"d/old": b"old", "d/both": b"after", "d/new/deep": b"deep", "x": b"no link any more"}
    assert stat.S_IMODE((work / "target" / "d").stat().st_mode) == 0o701  # it was there
    assert stat.S_IMODE((work / "target").stat().st_mode) == 0o750


def test_a_link_in_place_of_a_directory_is_not_followed(arena):
    (arena / "target" / "d").symlink_to(arena / "outside")
    before = seen(arena)
    archive = hostile(arena / "box" / "a", entry("root/d/victim", b"evil"), entry("root/z", b"z"))
    before = seen(arena)
    with pytest.raises(TransferError, match="a symbolic link, which is not followed"):
        take(archive, arena / "target")
    assert seen(arena) == before


def test_a_link_that_appears_while_files_are_placed_is_not_followed(arena, monkeypatch):
    (arena / "target" / "d").mkdir()
    archive = hostile(arena / "box" / "a", entry("root/d/victim", b"evil"))
    planned = Unpacking._planned

    def swapped(self, top):
        plan = planned(self, top)
        (arena / "target" / "d").rmdir()
        (arena / "target" / "d").symlink_to(arena / "outside")
        return plan

    monkeypatch.setattr(Unpacking, "_planned", swapped)
    before = seen(arena / "outside")
    with pytest.raises(TransferError):
        take(archive, arena / "target")
    assert seen(arena / "outside") == before


@pytest.mark.parametrize("theirs", ["file", "directory"])
def test_what_is_in_the_way_is_told_before_anything_changes(work, theirs):
    build(
        work / "target",
        {"a": ("file", b"a", 0o644), "x": {"deep": {}} if theirs == "directory" else ("file", b"x", 0o644)},
    )
    member = entry("root/x", b"file") if theirs == "directory" else entry("root/x/y", b"below")
    archive = hostile(work / "box", entry("root/a", b"new"), member)
    before = seen(work)
    with pytest.raises(
        TransferError, match=r"target/x is (a|no) directory, where the download has something else"
    ):
        take(archive, work / "target")
    assert seen(work) == before


def test_a_target_that_is_no_directory_is_refused(work):
    (work / "file").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="is no directory"):
        Unpacking(work / "file")
    with pytest.raises(InvalidInputError, match="does not exist"):
        Unpacking(work / "no" / "where")


def test_a_full_disk_leaves_nothing(work, monkeypatch):
    archive = hostile(work / "a", entry("root/a", b"x"), entry("root/b", b"x"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpacking.os, "write", full)
    with pytest.raises(TransferError, match="No space left on device"):
        take(archive, work / "target")
    assert names_in(work) == ["a"]


def test_several_archives_become_one_tree(work):
    hostile(work / "a", entry("one", kind=tarfile.DIRTYPE, mode=0o700), entry("one/x", b"1"))
    hostile(work / "b", entry("two", b"2"))
    with Unpacking(work / "target") as unpacking_:
        unpacking_.take(work / "a", root="one", below="one")
        unpacking_.take(work / "b", root="two", below="renamed")
        unpacked = unpacking_.commit()
    assert unpacked.files == ("one/x", "renamed")
    assert (work / "target" / "renamed").read_bytes() == b"2"


def test_what_is_not_chosen_does_not_appear(work):
    archive = hostile(
        work / "a",
        folder("root/empty"),
        folder("root/d", 0o711),
        entry("root/d/a.nc", b"a"),
        entry("root/d/a.txt", b"t"),
        link("root/d/out", "/etc"),
        entry("root/tmp/b.nc", b"b"),
    )
    unpacked = take(archive, work / "target", choice=Choice(("*.nc",), ("tmp",)), max_bytes=1)
    assert (unpacked.files, unpacked.directories, unpacked.links) == (("d/a.nc",), ("d",), ())
    assert stat.S_IMODE((work / "target" / "d").stat().st_mode) == 0o711


def test_a_hard_link_to_what_is_not_chosen_gets_its_content(work):
    archive = hostile(
        work / "a",
        entry("root/a.txt", b"content"),
        link("root/b.nc", "root/a.txt", tarfile.LNKTYPE),
        link("root/c.nc", "root/a.txt", tarfile.LNKTYPE),
    )
    unpacked = take(archive, work / "target", choice=Choice(("*.nc",)))
    assert unpacked.files == ("b.nc", "c.nc")
    assert (work / "target" / "c.nc").read_bytes() == b"content"


# --- patterns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.nc", ["a.nc", "d/a.nc", ".nc", "d/x.nc/below"], ["a.ncx", "nc"]),
        ("/*.nc", ["a.nc", "a.nc/x"], ["d/a.nc"]),
        ("d/*.nc", ["d/a.nc"], ["e/d/a.nc", "d/e/a.nc"]),
        ("**/a", ["a", "d/a", "d/e/a", "d/a/b"], ["xa"]),
        ("d/**", ["d/a", "d/e/f"], ["d", "e/d"]),
        ("d/**/a", ["d/a", "d/e/f/a"], ["d/ea"]),
        ("d/", ["d", "d/a", "e/d"], ["dd"]),
        ("a?c", ["abc", "a\nc", "aéc"], ["ac", "a/c"]),
        ("[a-c]1", ["a1", "b1"], ["d1"]),
        ("[!a-c]1", ["d1", "/1/1"[1:3] + "x1"], ["a1"]),
        ("[]]", ["]"], ["["]),
        ("[", ["["], ["a"]),
        ("a[*]b", ["a*b"], ["axb"]),
        ("(a|b)+.^$", ["(a|b)+.^$"], ["a"]),
        ("a[+-9]b", ["a5b"], ["a/b"]),
        ("new\nline*", ["new\nline\n2"], ["new"]),
    ],
)
def test_patterns(pattern, yes, no):
    choice = Choice((pattern,))
    assert [name for name in yes if not choice.takes(name)] == []
    assert [name for name in no if choice.takes(name)] == []
    without = Choice((), (pattern,))
    assert [name for name in yes if without.takes(name)] == []


@pytest.mark.parametrize("pattern", ["", "/", "[z-a]", None])
def test_a_pattern_that_means_nothing_is_refused(pattern):
    with pytest.raises(InvalidInputError, match="include"):
        Choice((pattern,))


def test_our_own_temporary_names_are_never_taken():
    assert not EVERYTHING.takes("d/.airflow-hpc-1234/0.tar.gz")


@given(names)
def test_an_escaped_name_means_itself(name):
    choice = Choice((f"/{escape(name)}",))
    assert choice.takes(name)
    assert choice.takes(f"{name}/below")
    assert not choice.takes(f"{name}x")
    assert not choice.takes(f"above/{name}")


@pytest.mark.parametrize(
    ("path", "cut"),
    [
        ("/data/run", ("/data/run", None)),
        ("/data/run/*.nc", ("/data/run", "/*.nc")),
        ("/data/[ab]/x", ("/data", "/[ab]/x")),
        ("/*", ("/", "/*")),
        ("*.nc", (".", "/*.nc")),
        ("d/**", ("d", "/**")),
    ],
)
def test_globs_are_cut_before_their_first_wildcard(path, cut):
    assert split_glob(path) == cut
    assert is_glob(path) is (cut[1] is not None)


plain_names = st.text(alphabet="ab.-_ é+[(*?'$\\\n", min_size=1, max_size=6).filter(
    lambda name: name not in (".", "..")
)
patterns = st.lists(
    st.one_of(st.sampled_from(["*", "**", "*.b", "a?", "[ab]*", "[!a]"]), plain_names.map(escape)),
    min_size=1, max_size=3,
).map("/".join)  # fmt: skip


@settings(max_examples=60)
@given(patterns, st.booleans(), st.lists(plain_names, min_size=1, max_size=4).map("/".join))
def test_what_find_is_asked_for_holds_all_that_a_pattern_means(pattern, rooted, name):
    pattern = f"/{pattern}" if rooted else pattern
    asked = find_pattern("my run+1", pattern)
    assert set(asked).isdisjoint("'\"$`\\\n\r\0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expression = re.compile(asked, re.DOTALL)
    if Choice((pattern,)).takes(name):
        assert expression.fullmatch(f"./my run+1/{name}")


@pytest.mark.skipif(not shutil.which("find"), reason="no find")
def test_find_understands_it(work):
    build(
        work / "run.1",
        {
            "a.nc": ("file", b"", 0o644),
            "d": {"b.nc": ("file", b"", 0o644), "x+y": ("file", b"", 0o644)},
            "anc": ("file", b"", 0o644),
        },
    )
    build(work / "other", {"a.nc": ("file", b"", 0o644)})

    def found(pattern):
        done = subprocess.run(
            ["find", ".", "-type", "f", "-regex", find_pattern("run.1", pattern)],
            cwd=work,
            capture_output=True,
            text=True,
            check=True,
        )
        return sorted(done.stdout.split())

    assert found("*.nc") == ["./run.1/a.nc", "./run.1/d/b.nc"]
    assert found("/*.nc") == ["./run.1/a.nc"]
    assert found("d/**") == ["./run.1/d/b.nc", "./run.1/d/x+y"]
    assert found("x+y") == ["./run.1/d/x+y"]
