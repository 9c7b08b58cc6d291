"""Files: what each call sends, how answers are read, what may be repeated, and which paths never leave."""

import hashlib
import shlex

import httpx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from loopback import WORLDS, Reply, gateway_error, in_turn, serve

from airflow_hpc_provider.client import files
from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.errors import (
    ApiError,
    BadAnswerError,
    InvalidInputError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
)
from airflow_hpc_provider.client.files import Entry, EntryKind, Stat
from airflow_hpc_provider.client.retry import RetryPolicy

POLICY = RetryPolicy(attempts=3, base=0)
MISSING = gateway_error(404, "rm: cannot remove '/home/u/x': No such file or directory")
TIMED_OUT = gateway_error(408, "Command execution timeout limit exceeded.")
SUM = hashlib.sha256(b"data").hexdigest()


def gateway_entry(**changes):
    entry = {
        "name": "hello.txt",
        "type": "-",
        "linkTarget": None,
        "user": "fireuser",
        "group": "users",
        "permissions": "rw-r--r--",
        "lastModified": "2026-11-22T04:17:49",
        "size": "21",
    }
    return entry | changes


def entry(**changes):
    plain = {
        "name": "hello.txt",
        "kind": EntryKind.FILE,
        "size": 21,
        "user": "fireuser",
        "group": "users",
        "permissions": "rw-r--r--",
        "modified": "2026-11-22T04:17:49",
    }
    return Entry(**(plain | changes))


@pytest.fixture(params=WORLDS, ids=["blocking", "on-loop"])
def world(request):
    return request.param


def carried_out(call, *answers, world=WORLDS[0]):
    """Result of a call that is answered like this, and the requests that came."""
    with (
        serve(in_turn(*answers)) as server,
        world(server.url, AccessToken(server.url, "t"), policy=POLICY) as client,
    ):
        return client.send(call), server.requests


def output(value, status=200):
    return Reply(status, {"output": value})


QUERIES = {
    "listing": (
        files.listing("daint", "/home/u/"),
        "GET",
        "ls",
        {
            "path": "/home/u",
            "showHidden": "false",
            "numericUid": "false",
            "recursive": "false",
            "dereference": "false",
        },
        [gateway_entry()],
        (entry(),),
    ),
    "listing of all": (
        files.listing("daint", "/home/u", hidden=True, numeric=True, recursive=True, dereference=True),
        "GET",
        "ls",
        {
            "path": "/home/u",
            "showHidden": "true",
            "numericUid": "true",
            "recursive": "true",
            "dereference": "true",
        },
        None,
        (),
    ),
    "stat": (
        files.stat("daint", "/home/u/a b", dereference=True),
        "GET",
        "stat",
        {"path": "/home/u/a b", "dereference": "true"},
        {
            "mode": 33188,
            "ino": 1572922,
            "dev": 65024,
            "nlink": 1,
            "uid": 1001,
            "gid": 100,
            "size": 21,
            "atime": 3,
            "ctime": 2,
            "mtime": 1,
        },
        Stat(
            mode=0o100644,
            size=21,
            uid=1001,
            gid=100,
            links=1,
            inode=1572922,
            device=65024,
            accessed=3,
            modified=1,
            changed=2,
        ),
    ),
    "file type": (
        files.file_type("daint", "/home/u/é"),
        "GET",
        "file",
        {"path": "/home/u/é"},
        "ASCII text",
        "ASCII text",
    ),
    "head": (
        files.head("daint", "/x"),
        "GET",
        "head",
        {"path": "/x", "lines": "10"},
        {"content": "a\n"},
        "a\n",
    ),
    "head in lines": (
        files.head("daint", "/x", lines=2),
        "GET",
        "head",
        {"path": "/x", "lines": "2"},
        {"content": "é\n"},
        "é\n",
    ),
    "head in bytes": (
        files.head("daint", "/x", size=5),
        "GET",
        "head",
        {"path": "/x", "bytes": "5"},
        {"content": ""},
        "",
    ),
    "tail": (files.tail("daint", "/x", lines=7), "GET", "tail", {"path": "/x", "lines": "7"}, None, ""),
    "tail in bytes": (
        files.tail("daint", "/x", size=7),
        "GET",
        "tail",
        {"path": "/x", "bytes": "7"},
        {"content": "end"},
        "end",
    ),
    "view": (files.view("daint", "/x"), "GET", "view", {"path": "/x", "offset": "0"}, "all", "all"),
    "view of a part": (
        files.view("daint", "/x", offset=3, size=4),
        "GET",
        "view",
        {"path": "/x", "offset": "3", "size": "4"},
        {"content": "part"},
        "part",
    ),
    "checksum": (
        files.checksum("daint", "/x"),
        "GET",
        "checksum",
        {"path": "/x"},
        {"algorithm": "SHA256", "checksum": SUM.upper()},
        SUM,
    ),
}


@pytest.mark.parametrize(
    ("call", "method", "operation", "query", "answer", "result"), QUERIES.values(), ids=QUERIES
)
def test_looking_asks_its_endpoint_and_may_be_repeated(  # noqa: PLR0917
    world, call, method, operation, query, answer, result
):
    got, requests = carried_out(call, TIMED_OUT, output(answer), world=world)
    assert got == result
    assert len(requests) == 2
    for request in requests:
        assert (request.method, request.path) == (method, f"/filesystem/daint/ops/{operation}")
        assert request.query == query


CHANGES = {
    "make directory": (
        files.make_directory("daint", "/a"),
        ("POST", "mkdir", {"path": "/a", "parent": False}),
        False,
    ),
    "make directories": (
        files.make_directory("daint", "/a", parents=True),
        ("POST", "mkdir", {"path": "/a", "parent": True}),
        True,
    ),
    "mode": (files.change_mode("daint", "/a", 0o640), ("PUT", "chmod", {"path": "/a", "mode": "640"}), True),
    "mode in digits": (
        files.change_mode("daint", "/a", "0755"),
        ("PUT", "chmod", {"path": "/a", "mode": "0755"}),
        True,
    ),
    "owner": (
        files.change_owner("daint", "/a", owner="me"),
        ("PUT", "chown", {"path": "/a", "owner": "me", "group": ""}),
        True,
    ),
    "group": (
        files.change_owner("daint", "/a", group="g_1.x-y"),
        ("PUT", "chown", {"path": "/a", "owner": "", "group": "g_1.x-y"}),
        True,
    ),
    "link": (files.link("daint", "/a", "/l"), ("POST", "symlink", {"path": "/a", "linkPath": "/l"}), False),
}


@pytest.mark.parametrize(("call", "expected", "replayable"), CHANGES.values(), ids=CHANGES)
def test_changing_tells_how_it_looks_now(world, call, expected, replayable):
    got, requests = carried_out(call, output(gateway_entry(), status=201), world=world)
    assert got == entry()
    (request,) = requests
    assert (request.method, request.path.rpartition("/")[2], request.json) == expected
    assert call.replayable is replayable
    assert carried_out(call, output(None))[0] is None


PACK = {"path": "/a/run", "targetPath": "/a/run.tgz", "dereference": False, "compression": "gzip"}


@pytest.mark.parametrize(
    ("call", "operation", "body"),
    [
        (files.compress("daint", "/a/run", "/a/run.tgz"), "compress", PACK),
        (
            files.compress("daint", "/a/run", "/a/run.tgz", dereference=True, compression="xz"),
            "compress",
            PACK | {"dereference": True, "compression": "xz"},
        ),
        (
            files.compress("daint", "/a/run", "/a/run.tgz", pattern=r"\./run/.*\.nc"),
            "compress",
            PACK | {"matchPattern": r"\./run/.*\.nc"},
        ),
        (
            files.extract("daint", "/a/run.tar", "/b", compression="none"),
            "extract",
            {"path": "/a/run.tar", "targetPath": "/b", "compression": "none"},
        ),
    ],
)
def test_archives_are_made_and_unpacked_once(world, call, operation, body):
    got, requests = carried_out(call, Reply(204, b""), world=world)
    assert got is None
    assert (requests[0].path, requests[0].json) == (f"/filesystem/daint/ops/{operation}", body)
    with pytest.raises(UnavailableError, match="timeout"):
        carried_out(call, TIMED_OUT, Reply(204, b""))


def test_removing_is_sent_once_unless_a_missing_file_is_as_good(world):
    call = files.remove("daint", "/home/u/x")
    got, requests = carried_out(call, Reply(204, b""), world=world)
    assert got is None
    assert (requests[0].method, requests[0].target) == (
        "DELETE",
        "/filesystem/daint/ops/rm?path=%2Fhome%2Fu%2Fx",
    )
    with pytest.raises(NotFoundError):
        carried_out(call, MISSING, world=world)
    with pytest.raises(UnavailableError):
        carried_out(call, TIMED_OUT, Reply(204, b""), world=world)


def test_removing_what_a_first_try_removed_is_done(world):
    call = files.remove("daint", "/home/u/x", missing_ok=True)
    assert carried_out(call, MISSING, world=world)[0] is None
    got, requests = carried_out(call, TIMED_OUT, MISSING, world=world)
    assert got is None
    assert len(requests) == 2


@pytest.mark.parametrize(
    "answer",
    [
        gateway_error(404, "System not found"),
        gateway_error(404, "Not Found"),
        gateway_error(403, "rm: cannot remove '/x': Permission denied"),
        gateway_error(400, "no such file system: The provided path does not match"),
    ],
)
def test_only_a_missing_file_passes_for_removed(answer):
    with pytest.raises(ApiError):
        carried_out(files.remove("daint", "/home/u/x", missing_ok=True), answer)


def test_an_upload_travels_as_a_form_and_may_be_repeated(world):
    content = bytes(range(256))
    call = files.upload("daint", "/home/u", "a é.bin", content)
    trouble = gateway_error(500, "('Channel not open for sending',)")
    got, requests = carried_out(call, trouble, Reply(204, b""), world=world)
    assert got is None
    assert len(requests) == 2
    for request in requests:
        assert (request.method, request.path) == ("POST", "/filesystem/daint/ops/upload")
        assert request.query == {"path": "/home/u"}
        assert 'name="file"; filename="a é.bin"'.encode() in request.body
        assert b"\r\n\r\n" + content + b"\r\n--" in request.body


def test_an_empty_upload_is_done_although_the_gateway_waits_for_it_in_vain(world):
    got, requests = carried_out(files.upload("daint", "/home/u", "empty", b""), TIMED_OUT, world=world)
    assert got is None
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (b"x", TIMED_OUT),
        (b"", gateway_error(503, "unhealthy")),
        (b"", MISSING),
        (b"", gateway_error(500, "?")),
    ],
)
def test_no_other_failed_upload_passes_for_done(content, answer):
    with pytest.raises(ApiError):
        carried_out(files.upload("daint", "/home/u", "name", content), answer)


def test_a_file_that_is_too_large_is_told_at_once(world):
    with pytest.raises(TooLargeError):
        carried_out(
            files.upload("daint", "/a", "b", b"x"),
            gateway_error(413, "File to upload is too large."),
            world=world,
        )


@pytest.mark.parametrize("content", [b"", b"line\n", bytes(range(256)), b"<html>", b"{}"])
def test_a_download_gives_the_bytes_as_they_are(world, content):
    got, requests = carried_out(files.download("daint", "/home/u/x"), Reply(200, content), world=world)
    assert got == content
    assert requests[0].target == "/filesystem/daint/ops/download?path=%2Fhome%2Fu%2Fx"


def test_a_sign_in_page_is_not_a_downloads_content(world):
    with pytest.raises(BadAnswerError, match="web page"):
        carried_out(files.download("daint", "/home/u/x"), Reply(200, "<html>Sign in</html>"), world=world)


@pytest.mark.parametrize("value", [SUM, "\\" + SUM, SUM.upper()])
def test_a_checksum_is_read_bare(value):
    assert carried_out(files.checksum("daint", "/x"), output({"checksum": value}))[0] == SUM


@pytest.mark.parametrize("value", ["", SUM[:-1], SUM + "0", "\\\\" + SUM, "g" * 64, SUM + "\n", None, 5])
def test_what_is_no_sha256_is_told(value):
    with pytest.raises(BadAnswerError, match="compute the checksum of /x"):
        carried_out(files.checksum("daint", "/x"), output({"checksum": value}))


@pytest.mark.parametrize(
    ("call", "value"),
    [
        (files.listing("daint", "/x"), [{"name": "x"}]),
        (files.listing("daint", "/x"), [gateway_entry(size="big")]),
        (files.listing("daint", "/x"), ["x"]),
        (files.listing("daint", "/x"), 5),
        (files.stat("daint", "/x"), None),
        (files.stat("daint", "/x"), {"mode": 1}),
        (files.head("daint", "/x"), {"text": "x"}),
        (files.view("daint", "/x"), 5),
        (files.change_mode("daint", "/x", "600"), {"name": "x"}),
    ],
)
def test_an_answer_of_another_shape_is_told(call, value):
    with pytest.raises(BadAnswerError, match=f"Could not {call.doing}"):
        carried_out(call, output(value))


@pytest.mark.parametrize(
    ("letter", "kind"),
    [
        ("-", EntryKind.FILE),
        ("d", EntryKind.DIRECTORY),
        ("l", EntryKind.LINK),
        ("p", EntryKind.PIPE),
        ("s", EntryKind.SOCKET),
        ("c", EntryKind.CHARACTER_DEVICE),
        ("b", EntryKind.BLOCK_DEVICE),
        ("?", EntryKind.UNKNOWN),
        ("D", EntryKind.UNKNOWN),
    ],
)
def test_the_letter_of_ls_tells_the_kind(letter, kind):
    (found,), _ = carried_out(files.listing("daint", "/x"), output([gateway_entry(type=letter)]))
    assert found.kind is kind


def test_an_entry_reads_in_snake_case_too():
    raw = gateway_entry(link_target="/t", last_modified="2026-01-01T00:00:00", size=3, type="l")
    del raw["linkTarget"], raw["lastModified"]
    (found,), _ = carried_out(files.listing("daint", "/x"), output([raw]))
    assert found == entry(kind=EntryKind.LINK, size=3, link_target="/t", modified="2026-01-01T00:00:00")


@pytest.mark.parametrize(
    ("mode", "names"),
    [(0o100644, "file"), (0o040755, "directory"), (0o120777, "link"), (0o010644, "none")],
)
def test_the_mode_tells_what_it_is(mode, names):
    numbers = dict.fromkeys(("size", "uid", "gid", "links", "inode", "device"), 0)
    status = Stat(mode=mode, accessed=0, modified=0, changed=0, **numbers)
    kinds = {"file": status.is_file, "directory": status.is_directory, "link": status.is_link}
    assert [name for name, true in kinds.items() if true] == [name for name in kinds if name == names]


LETTERS = {7: "a", 8: "b", 9: "t", 10: "n", 11: "v", 12: "f", 13: "r"}


def as_the_gateway_lists(name: bytes, *, utf8: bool) -> str:
    """A name after ``ls --quoting-style=c`` on the system and ``shlex.split`` in the gateway."""
    quoted = []
    for character in name.decode(errors="surrogateescape"):
        if character in '"\\':
            quoted.append("\\" + character)
        elif ord(character) in LETTERS:
            quoted.append("\\" + LETTERS[ord(character)])
        elif character.isprintable() and (utf8 or character.isascii()):
            quoted.append(character)
        else:
            quoted += [f"\\{byte:03o}" for byte in character.encode(errors="surrogateescape")]
    (token,) = shlex.split(f'"{"".join(quoted)}"')
    return token


def listed(raw):
    (found,) = files.listing("daint", "/x").read(
        httpx.Response(200, json={"output": [gateway_entry(name=raw, linkTarget=raw)]})
    )
    assert found.link_target == found.name
    return found.name


NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1)


@given(NAMES, st.booleans())
def test_a_listed_name_is_read_back_as_it_is_on_the_system(name, utf8):
    assume("\\" not in name)
    assert listed(as_the_gateway_lists(name.encode(), utf8=utf8)) == name


@given(NAMES, st.booleans())
def test_a_backslash_before_no_escape_is_read_back_too(name, utf8):
    name = "\\".join(f"é {part}" for part in name.split("\\"))
    assert listed(as_the_gateway_lists(name.encode(), utf8=utf8)) == name


@given(st.binary(min_size=1), st.booleans())
def test_a_name_that_is_no_utf8_stays_as_the_gateway_writes_it(name, utf8):
    try:
        name.decode()
    except UnicodeDecodeError:
        raw = as_the_gateway_lists(name, utf8=utf8)
        assert listed(raw) == raw


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (r"\303\251t\303\251", "été"),
        (r"two\nlines", "two\nlines"),
        (r"a\tb\a\b\v\f\r", "a\tb\a\b\v\f\r"),
        (r"it's \"quoted\"", r"it's \"quoted\""),
        (r"\x \8 \400", r"\x \8 \400"),
        ("été/\\303\\251", "été/é"),
        (r"\377", r"\377"),
    ],
)
def test_escapes_of_ls_are_undone(raw, name):
    assert listed(raw) == name


UNSAFE = [
    "relative",
    "",
    "/a/../b",
    "/it's",
    '/a"b',
    "/a$HOME",
    "/a`id`",
    "/a;b",
    "/a&b",
    "/a\nb",
    "/-rf",
    None,
]
TAKING_A_PATH = {
    "listing": lambda path: files.listing("daint", path),
    "stat": lambda path: files.stat("daint", path),
    "file_type": lambda path: files.file_type("daint", path),
    "head": lambda path: files.head("daint", path),
    "tail": lambda path: files.tail("daint", path),
    "view": lambda path: files.view("daint", path),
    "checksum": lambda path: files.checksum("daint", path),
    "make_directory": lambda path: files.make_directory("daint", path),
    "remove": lambda path: files.remove("daint", path, missing_ok=True),
    "change_mode": lambda path: files.change_mode("daint", path, 0o600),
    "change_owner": lambda path: files.change_owner("daint", path, owner="u"),
    "link": lambda path: files.link("daint", path, "/ok"),
    "link_path": lambda path: files.link("daint", "/ok", path),
    "compress": lambda path: files.compress("daint", path, "/ok"),
    "compress_target": lambda path: files.compress("daint", "/ok", path),
    "extract": lambda path: files.extract("daint", path, "/ok"),
    "extract_target": lambda path: files.extract("daint", "/ok", path),
    "upload": lambda path: files.upload("daint", path, "name", b"x"),
    "download": lambda path: files.download("daint", path),
}


@pytest.mark.parametrize("path", UNSAFE)
@pytest.mark.parametrize("make", TAKING_A_PATH.values(), ids=TAKING_A_PATH)
def test_an_unsafe_path_makes_no_call(make, path):
    with pytest.raises(InvalidInputError):
        make(path)


def test_every_call_is_among_those_that_are_tried_with_unsafe_paths():
    calls = {name for name in files.__all__ if name[0].islower() and not name.startswith("check_")}
    assert calls == {name.removesuffix("_target").removesuffix("_path") for name in TAKING_A_PATH}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "it's", 'a"b', "a\nb", "-x", None])
def test_an_unsafe_name_is_not_uploaded(name):
    with pytest.raises(InvalidInputError, match="name: "):
        files.upload("daint", "/home/u", name, b"x")


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: files.head("daint", "/x", lines=0), "lines"),
        (lambda: files.head("daint", "/x", size=0), "size"),
        (lambda: files.tail("daint", "/x", lines=-1), "lines"),
        (lambda: files.tail("daint", "/x", lines=1, size=1), "lines"),
        (lambda: files.view("daint", "/x", offset=-1), "offset"),
        (lambda: files.view("daint", "/x", size=0), "size"),
        (lambda: files.change_mode("daint", "/x", "u+x"), "mode"),
        (lambda: files.change_mode("daint", "/x", "0o644"), "mode"),
        (lambda: files.change_mode("daint", "/x", ""), "mode"),
        (lambda: files.change_mode("daint", "/x", -1), "mode"),
        (lambda: files.change_mode("daint", "/x", 0o100644), "mode"),
        (lambda: files.change_owner("daint", "/x"), "owner"),
        (lambda: files.change_owner("daint", "/x", owner="a;b"), "owner"),
        (lambda: files.change_owner("daint", "/x", owner="u", group="-R"), "group"),
        (lambda: files.compress("daint", "/x", "/y", compression="zip"), "compression"),
        (lambda: files.extract("daint", "/x", "/y", compression=""), "compression"),
        (lambda: files.compress("daint", "/x", "/y", pattern=".*", compression="xz"), "compression"),
        (lambda: files.compress("daint", "/x", "/y", pattern=""), "pattern"),
        (lambda: files.compress("daint", "/x", "/y", pattern="'; id; '"), "pattern"),
        (lambda: files.compress("daint", "/x", "/y", pattern="$(id)"), "pattern"),
        (lambda: files.compress("daint", "/a b/x", "/y", pattern=".*"), "source"),
    ],
)
def test_an_input_that_cannot_work_is_refused_by_name(make, field):
    with pytest.raises(InvalidInputError, match=f"^{field}: "):
        make()


def test_a_blank_in_the_source_is_fine_without_a_pattern():
    assert files.compress("daint", "/a b/x", "/y").json["path"] == "/a b/x"


@pytest.mark.parametrize("make", TAKING_A_PATH.values(), ids=TAKING_A_PATH)
def test_each_call_says_what_it_does_and_where(make):
    call = make("/home/u/x")
    assert "/home/u/x" in call.doing
    assert call.system == "daint"
    assert call.path.startswith("/filesystem/daint/ops/")
