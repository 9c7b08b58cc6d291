"""Coordinates, messages, and the conversation with peers that are well and with such that are not."""

import base64
import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import tracemalloc

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import closed_port
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from airflow_hpc_provider.client import streaming, systems, transfers
from airflow_hpc_provider.client.coordinates import Coordinates, read_coordinates
from airflow_hpc_provider.client.errors import BadAnswerError, InvalidInputError, TransferError
from airflow_hpc_provider.client.moving import Pace
from airflow_hpc_provider.client.places import BytesSource, LocalSink, LocalSource
from airflow_hpc_provider.client.streaming import CHUNK, check_streamer, reach, receive, send

SECRET = "Tell-nobody_123"
CONTENT = b"0123456789" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PACE = Pace()
EOF = {"type": "eof", "sha256_hash": DIGEST}


def coded(**changes):
    plain = {"ports": [5665, 5675], "ips": ["127.0.0.1", "login.site.org", "::1"], "secret": SECRET} | changes
    return base64.urlsafe_b64encode(json.dumps(plain).encode()).decode()


# --- coordinates --------------------------------------------------------------------------------------------


def test_coordinates_are_read_and_every_place_is_told_in_the_servers_order():
    read = read_coordinates(coded(ports=[5665, 5666]))
    assert read.secret == SECRET
    assert list(read.places()) == [
        ("127.0.0.1", 5665),
        ("127.0.0.1", 5666),
        ("login.site.org", 5665),
        ("login.site.org", 5666),
        ("::1", 5665),
        ("::1", 5666),
    ]


@given(
    st.lists(
        st.from_regex(r"[a-z0-9]{1,20}(\.[a-z]{2,5})?", fullmatch=True) | st.ip_addresses().map(str),
        min_size=1,
    ),
    st.lists(st.integers(1, 65535), min_size=2, max_size=2).map(sorted),
    st.from_regex(r"[A-Za-z0-9_-]{1,60}", fullmatch=True),
    st.booleans(),
)
def test_whatever_a_gateway_may_tell_is_read(hosts, ports, secret, padded):
    text = coded(ips=hosts[:64], ports=ports, secret=secret)
    read = read_coordinates(text if padded else text.rstrip("="))
    assert (read.hosts, read.ports, read.secret) == (tuple(hosts[:64]), tuple(ports), secret)


@pytest.mark.parametrize(
    "hostile",
    [
        None,
        7,
        "",
        "{}",
        "not base64!",
        "ключ",
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        base64.urlsafe_b64encode(b"[1]").decode(),
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
        coded(ips=None),
        coded(ips=[]),
        coded(ips="127.0.0.1"),
        coded(ips=["127.0.0.1"] * 65),
        coded(ips=[7]),
        coded(ips=[""]),
        coded(ips=["host/path?x"]),
        coded(ips=["user@host"]),
        coded(ips=["host:80"]),
        coded(ips=["a b"]),
        coded(ips=["a\r\nX: y"]),
        coded(ips=["fe80::1%eth0"]),
        coded(ips=["a" * 254]),
        coded(ports=None),
        coded(ports=[5665]),
        coded(ports=[5665, 5666, 5667]),
        coded(ports=[5675, 5665]),
        coded(ports=[0, 1]),
        coded(ports=[1, 65536]),
        coded(ports=[True, 5]),
        coded(ports=["5665", "5675"]),
        coded(ports=[5665.0, 5675.0]),
        coded(secret=None),
        coded(secret=""),
        coded(secret=7),
        coded(secret="a b"),
        coded(secret="a\r\nX-Evil: 1"),
        coded(secret="ü"),
        coded(secret="a" * 4097),
    ],
)
def test_hostile_coordinates_are_refused_and_not_repeated(hostile):
    with pytest.raises(ValueError, match=r"^coordinates that are no|^coordinates without") as caught:
        read_coordinates(hostile)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@given(st.text() | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_no_text_breaks_the_reader(text):
    with contextlib.suppress(ValueError):
        read_coordinates(text)


def test_coordinates_show_no_secret():
    assert SECRET not in repr(read_coordinates(coded()))


def test_a_jobs_log_is_shown_without_its_coordinates():
    told = f"listening\nUse these coordinates to connect: {coded()}\nsrun --secret {SECRET}\nkilled"
    assert read_coordinates(coded()).scrub(told) == "listening\nsrun --secret ***\nkilled"


# --- asking for a stream ------------------------------------------------------------------------------------

JOB = {
    "jobId": 7,
    "system": "daint",
    "workingDirectory": "/w",
    "logs": {"outputLog": "/w/out.log", "errorLog": "/w/err.log"},
}


def plan(call, coordinates, method="streamer"):
    directives = {"transferMethod": method, "coordinates": coordinates}
    return call.read(httpx.Response(201, json={"transferJob": JOB, "transferDirectives": directives}))


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (transfers.start_stream_upload("daint", "/w/a.bin", account="staff"), "upload"),
        (transfers.start_stream_download("daint", "/w/a.bin", account="staff"), "download"),
    ],
)
def test_a_stream_is_asked_for_and_its_plan_read(call, path):
    assert (call.method, call.path) == ("POST", f"/filesystem/daint/transfer/{path}")
    assert call.json == {
        "path": "/w/a.bin",
        "transferDirectives": {"transferMethod": "streamer"},
        "account": "staff",
    }
    assert not call.replayable
    read = plan(call, coded())
    assert (read.job.job_id, read.job.output_log) == ("7", "/w/out.log")
    assert read.coordinates.secret == SECRET
    assert SECRET not in repr(read)


@pytest.mark.parametrize("start", [transfers.start_stream_upload, transfers.start_stream_download])
@pytest.mark.parametrize("path", ["/a b", "/a*", "a", "/a;b"])
def test_a_path_that_the_script_cannot_bear_is_refused(start, path):
    with pytest.raises(InvalidInputError):
        start("daint", path)


@pytest.mark.parametrize(
    ("coordinates", "method", "problem"),
    [
        (coded(ips=["a b"]), "streamer", "coordinates without addresses"),
        (None, "streamer", "coordinates that are no"),
        (coded(), "s3", "chose the transfer method 's3'"),
    ],
)
def test_an_answer_that_starts_no_stream_is_told_without_the_secret(coordinates, method, problem):
    with pytest.raises(BadAnswerError, match=problem) as caught:
        plan(transfers.start_stream_upload("daint", "/w/a.bin"), coordinates, method)
    assert SECRET not in str(caught.value)


def test_the_largest_stream_is_read_from_the_system():
    raw = {"name": "daint", "dataOperation": {"data_transfer": {"serviceType": "streamer"}}}
    for told, limit in (({}, None), ({"inboundTransferLimit": 5}, 5)):
        raw["dataOperation"]["data_transfer"] |= told
        (system,) = systems.listing().read(httpx.Response(200, json={"systems": [raw]}))
        assert (system.transfer_method, system.max_stream_bytes) == ("streamer", limit)


# --- what cannot be streamed --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [CHUNK * 2, CHUNK * 2 - 1, 1, 0])
def test_what_the_peer_takes_is_not_refused(size):
    check_streamer("daint", "a.bin", size, CHUNK * 2)
    check_streamer("daint", "a.bin", 10**15, None)


@pytest.mark.parametrize("limit", [CHUNK * 2, CHUNK * 3 - 1])
def test_the_peer_counts_whole_pieces_and_so_does_the_refusal(limit):
    with pytest.raises(
        InvalidInputError, match=rf"a.bin has {CHUNK * 2 + 1} bytes; system daint takes {CHUNK * 2} by"
    ):
        check_streamer("daint", "a.bin", CHUNK * 2 + 1, limit)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets.sync.client", None)
    with pytest.raises(InvalidInputError, match=r"pip install 'airflow-hpc-provider\[streamer\]'"):
        check_streamer("daint", "a.bin", 1, None)


# --- messages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 1), (CHUNK, 1), (CHUNK + 1, 2)])
def test_the_first_message_is_bytes_with_size_and_count(size, count):
    message = streaming.init_message(size)
    assert isinstance(message, bytes)
    assert json.loads(message) == {"type": "init", "num_chunks": count, "file_size": size}
    assert streaming.read_init(message) == streaming.read_init(message.decode()) == size


def test_the_last_message_is_text_as_the_peer_compares_it():
    assert streaming.eof_message(DIGEST).startswith('{"type":"eof"')


@pytest.mark.parametrize(
    "message", [json.dumps(EOF), json.dumps(EOF).encode(), streaming.eof_message(DIGEST.upper())]
)
def test_the_last_message_is_read_in_any_form(message):
    assert streaming.read_eof(message) == DIGEST


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x00" * 100_000,
        "[",
        "[" * 60_000,
        "[]",
        "{}",
        b'{"type": "init"}',
        '{"type":"eof","sha256_hash":7}',
    ],
)
def test_what_is_no_last_message_is_refused(message):
    with pytest.raises(TransferError):
        streaming.read_eof(message)


@pytest.mark.parametrize("size", [-1, "1", None, True, 1.5])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(TransferError, match="told no size"):
        streaming.read_init(json.dumps({"type": "init", "file_size": size}))


# --- peers --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def peer(talk, *, host="127.0.0.1", port=0, secret=SECRET):
    """A server of which one knows what it says."""

    def check(connection, request):
        if request.headers.get("Authorization") != f"Bearer {secret}":
            return connection.respond(403, "Invalid secret\n")
        return None

    quiet = logging.getLogger("tests.peer")
    with serve(
        talk,
        host,
        port,
        process_request=check,
        max_size=CHUNK * 5 // 4,
        max_queue=1,
        logger=quiet,
        close_timeout=0.5,
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


def at(port, *hosts):
    return Coordinates(hosts=hosts or ("127.0.0.1",), ports=(port, port), secret=SECRET)


def told(*messages, code=1000, reason=""):
    """A peer that says this and ends."""

    def talk(connection):
        for message in messages:
            connection.send(message)
        connection.close(code, reason)

    return talk


def init(size=10_000):
    return json.dumps({"type": "init", "num_chunks": 1, "file_size": size}).encode()


class Kept:
    """A peer that takes a file."""

    def __init__(self, *, end=(1000, ""), after=None):
        self.messages = []
        self.end = end
        self.after = after

    def __call__(self, connection):
        for message in connection:
            self.messages.append(message)
            if isinstance(message, str) or len(self.messages) == self.after:
                break
        connection.close(*self.end)


@pytest.fixture
def sink(tmp_path):
    sink = LocalSink(tmp_path / "came.bin")
    sink.start(len(CONTENT))
    yield sink
    sink.discard()


def fetched(talk, sink, **given):
    with peer(talk) as port:
        return receive(reach(at(port)), sink, len(CONTENT), pace=PACE, **given)


@pytest.mark.parametrize(
    "content",
    [b"", b"1", CONTENT, os.urandom(CHUNK), os.urandom(2 * CHUNK + 1)],
    ids=["empty", "one byte", "less than a piece", "one piece", "two pieces and a byte"],
)
def test_a_file_goes_in_whole_pieces_between_first_and_last_message(content):
    kept = Kept()
    with peer(kept) as port:
        digest = send(reach(at(port)), BytesSource("a.bin", content), pace=PACE)
    assert digest == hashlib.sha256(content).hexdigest()
    assert kept.messages[0] == streaming.init_message(len(content))
    assert kept.messages[-1] == streaming.eof_message(digest)
    pieces = kept.messages[1:-1]
    assert b"".join(pieces) == content
    assert all(len(piece) == CHUNK for piece in pieces[:-1])


def test_a_source_that_gives_little_at_once_is_sent_in_whole_pieces():
    class Drops(BytesSource):
        def read_at(self, offset, length):
            return super().read_at(offset, min(length, CHUNK // 3))

    kept = Kept()
    with peer(kept) as port:
        send(reach(at(port)), Drops("a.bin", bytes(CHUNK + 7)), pace=PACE)
    assert [len(message) for message in kept.messages[1:-1]] == [CHUNK, 7]


@pytest.mark.parametrize("end", [json.dumps(EOF), json.dumps(EOF).encode(), streaming.eof_message(DIGEST)])
def test_a_file_comes_whatever_form_its_end_has(sink, tmp_path, end):
    assert fetched(told(init(), CONTENT[:1], b"", CONTENT[1:], end), sink) == DIGEST
    sink.commit()
    assert (tmp_path / "came.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("talk", "problem"),
    [
        (told(init(), CONTENT, json.dumps(EOF | {"sha256_hash": "0" * 64})), "has sha256 0000"),
        (told(init(len(CONTENT) + 1)), "has 10001 bytes now"),
        (told(init(), CONTENT + b"x"), "more than the 10000 bytes"),
        (told(init(), CONTENT, b"more", json.dumps(EOF)), "something else where 'eof' was due"),
        (told(init(), CONTENT[:5], json.dumps(EOF)), "ended after 5 of 10000 bytes"),
        (told(init(), CONTENT[:5], "what?"), "something else where 'eof' was due"),
        (told(init(), CONTENT[:5], '{"type":"error","error":"OSError"}'), "told of an error: OSError"),
        (told(init(), CONTENT[:5]), r"ended the stream \(code 1000\)"),
        (told(init(), CONTENT), r"ended the stream \(code 1000\)"),
        (told(b"hello"), "something else where 'init' was due"),
        (told(b'{"type":"init"}'), "told no size"),
        (told(init(), bytes(CHUNK * 5 // 4 + 1)), "broke off"),
        (told(code=1011, reason='{"type": "error", "error": "ValueError"}'), r"\(code 1011\): ValueError\."),
    ],
)
def test_a_download_that_brings_something_else_fails_and_may_be_tried_again(sink, talk, problem):
    with pytest.raises(TransferError, match=problem) as caught:
        fetched(talk, sink)
    assert caught.value.transient


@pytest.mark.parametrize(
    ("end", "problem", "transient"),
    [
        ((3003, '{"type": "error", "error": "FileNotFoundError"}'), "FileNotFoundError", False),
        ((1011, '{"type": "error", "error": "PermissionError"}'), "PermissionError", False),
        ((1011, '{"type": "error", "error": "OSError"}'), "OSError", True),
        ((1009, "Inbound transfer limit exceeded, max allowed: 5 bytes."), "limit exceeded", False),
        ((1011, "\x1b[31mred\r\n"), r"code 1011\): \[31mred\.", True),
        ((1011, "[1]"), r"\[1\]", True),
        ((1002, ""), r"\(code 1002\)\.", True),
    ],
)
@pytest.mark.parametrize("after", [2, 99], ids=["in the middle", "at the end"])
def test_a_receiver_that_says_why_it_ends_is_quoted(end, problem, transient, after):
    with peer(Kept(end=end, after=after)) as port, pytest.raises(TransferError, match=problem) as caught:
        send(reach(at(port)), BytesSource("a.bin", bytes(4 * CHUNK)), pace=PACE)
    assert caught.value.transient is transient


def cut(connection):
    connection.recv()
    connection.socket.shutdown(socket.SHUT_RDWR)


def test_a_connection_that_is_cut_breaks_off(sink):
    def half(connection):
        connection.send(init())
        connection.send(CONTENT[:5])
        connection.socket.shutdown(socket.SHUT_RDWR)

    with pytest.raises(TransferError, match="broke off") as caught:
        fetched(half, sink)
    assert caught.value.transient
    with peer(cut) as port, pytest.raises(TransferError, match="broke off") as caught:
        send(reach(at(port)), BytesSource("a.bin", bytes(4 * CHUNK)), pace=PACE)
    assert caught.value.transient


def test_a_receiver_that_answers_the_end_with_words_is_none():
    def talk(connection):
        for message in connection:
            if isinstance(message, str):
                connection.send("thanks")
                break

    with peer(talk) as port, pytest.raises(TransferError, match="where it was to end"):
        send(reach(at(port)), BytesSource("a.bin", CONTENT), pace=PACE)


class Idle:
    """A peer that says nothing, or only this, until the test is over."""

    def __init__(self, *messages):
        self.messages = messages
        self.over = threading.Event()

    def __call__(self, connection):
        with contextlib.suppress(ConnectionClosed):
            for message in self.messages:
                connection.send(message)
        self.over.wait(20)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()


def test_a_sender_that_never_begins_is_given_up(sink, monkeypatch):
    monkeypatch.setattr(streaming, "_TICK", 0.05)
    idle = Idle()
    with peer(idle) as port, idle, pytest.raises(TransferError, match="nothing moved for 0 s") as caught:
        receive(reach(at(port)), sink, len(CONTENT), pace=PACE, stall=0.1)
    assert caught.value.transient


def test_a_receiver_that_takes_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(streaming, "_TICK", 0.05)
    idle = Idle()
    with peer(idle) as port, idle, pytest.raises(TransferError, match="nothing moved"):
        send(reach(at(port)), BytesSource("a.bin", bytes(20 * CHUNK)), pace=PACE, stall=0.3)


class Killed(BaseException):
    """As the operator's."""


class Stuck:
    """A sink that takes its time."""

    name, in_order = "came.bin", True

    def write_at(self, offset, data):
        time.sleep(0.5)


def sending(link):
    send(link, BytesSource("a.bin", bytes(20 * CHUNK)), pace=PACE)


def receiving(link):
    receive(link, Stuck(), 20 * CHUNK, pace=PACE)


@pytest.mark.parametrize(
    ("idle", "move"),
    [
        (Idle(), sending),
        (Idle(), receiving),
        (Idle(init(20 * CHUNK), *[bytes(CHUNK)] * 20), receiving),
    ],
    ids=["nobody takes", "nobody sends", "much waits"],
)
def test_a_kill_ends_it_at_once(idle, move):
    def kill(*_):
        raise Killed

    before = signal.signal(signal.SIGUSR1, kill)
    timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        with peer(idle) as port, idle:
            link = reach(at(port))
            timer.start()
            began = time.monotonic()
            with pytest.raises(Killed):
                move(link)
            assert time.monotonic() - began < 2
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_source_that_changes_or_shrinks_ends_the_upload_for_good(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    with contextlib.closing(LocalSource(path)) as source, peer(Kept()) as port:
        path.write_bytes(CONTENT + b"x")
        with pytest.raises(TransferError, match="changed while") as caught:
            send(reach(at(port)), source, pace=PACE)
    assert not caught.value.transient
    short = BytesSource("a.bin", CONTENT)
    short.size += 1
    with peer(Kept()) as port, pytest.raises(TransferError, match="became shorter") as caught:
        send(reach(at(port)), short, pace=PACE)
    assert not caught.value.transient


def test_a_sink_that_cannot_write_ends_the_download(sink):
    def full(offset, data):
        raise TransferError("No room.", transient=False)

    sink.write_at = full
    with pytest.raises(TransferError, match=r"No room\.") as caught:
        fetched(told(init(), CONTENT, json.dumps(EOF)), sink)
    assert not caught.value.transient


def test_little_is_held_of_a_large_file(tmp_path):
    count = 16

    class Slow:
        name, in_order = "came.bin", True

        def write_at(self, offset, data):
            time.sleep(0.01)

    def talk(connection):
        connection.send(init(count * CHUNK))
        piece, digest = bytes(CHUNK), hashlib.sha256()
        for _ in range(count):
            connection.send(piece)
            digest.update(piece)
        connection.send(streaming.eof_message(digest.hexdigest()))

    with peer(talk) as port:
        link = reach(at(port))
        tracemalloc.start()
        try:
            receive(link, Slow(), count * CHUNK, pace=PACE)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    # The peer of this test is in the same process.
    assert peak < 9 * CHUNK


def test_progress_is_told(caplog):
    caplog.set_level(logging.INFO)
    ticks = iter(range(1000))
    pace = Pace(clock=lambda: next(ticks), every=1)
    with peer(Kept()) as port:
        send(reach(at(port)), BytesSource("a.bin", CONTENT), pace=pace)
    assert any("Upload of a.bin: 10.0 kB in" in record.getMessage() for record in caplog.records)


# --- finding the server -------------------------------------------------------------------------------------


def test_nothing_listens_yet():
    assert reach(at(closed_port())) is None


def test_another_jobs_server_and_a_silent_one_are_passed_by():
    kept = Kept()
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(peer(Kept(), secret="another"))
        silent = stack.enter_context(socket.create_server(("127.0.0.2", port)))
        web = stack.enter_context(socket.create_server(("127.0.0.3", port)))
        stack.enter_context(peer(kept, host="127.0.0.5", port=port))

        def answer():
            taken, _ = web.accept()
            with taken:
                taken.recv(65536)
                taken.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")

        thread = threading.Thread(target=answer)
        thread.start()
        link = reach(at(port, "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"), seconds=0.3)
        thread.join()
        assert link is not None
        send(link, BytesSource("a.bin", CONTENT), pace=PACE)
        assert silent.fileno() > 0
    assert b"".join(kept.messages[1:-1]) == CONTENT


def test_a_redirect_takes_the_secret_nowhere():
    seen = []

    def elsewhere(connection, request):
        response = connection.respond(302, "there\n")
        response.headers["Location"] = f"ws://127.0.0.2:{other}/"
        return response

    def note(connection, request):
        seen.append(request)

    with contextlib.ExitStack() as stack:
        quiet = logging.getLogger("tests.peer")
        servers = [
            stack.enter_context(serve(Kept(), host, 0, process_request=act, logger=quiet))
            for host, act in (("127.0.0.1", elsewhere), ("127.0.0.2", note))
        ]
        port, other = (server.socket.getsockname()[1] for server in servers)
        threads = [threading.Thread(target=server.serve_forever) for server in servers]
        for thread in threads:
            thread.start()
        try:
            assert reach(at(port), seconds=1) is None
        finally:
            for server, thread in zip(servers, threads, strict=True):
                server.shutdown()
                thread.join()
    assert seen == []


def test_no_proxy_is_told_the_secret(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "socks_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    with peer(Kept()) as port:
        assert send(reach(at(port)), BytesSource("a.bin", CONTENT), pace=PACE) == DIGEST


def test_neither_secret_nor_content_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    with peer(Kept()) as port:
        send(reach(at(port)), BytesSource("a.bin", CONTENT), pace=PACE)
    said = "\n".join(record.getMessage() for record in caplog.records if record.name != "tests.peer")
    assert SECRET not in said
    assert "0123456789" not in said
