"""The transport of large bodies against a server of plain sockets, which misbehaves on purpose."""

import contextlib
import hashlib
import os
import random
import socket
import threading
import time
import traceback

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_server import RawServer, authority

from airflow_hpc_provider.client.errors import TransferError
from airflow_hpc_provider.client.session import storage_trust
from airflow_hpc_provider.client.wire import Slice, Wire

MIB = 1024 * 1024
QUICK = 0.2


@pytest.fixture
def serve():
    """Starts servers, which end with the test."""
    running = []

    def start(handle, tls=None):
        running.append(RawServer(handle, tls).__enter__())
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


@pytest.fixture
def wire():
    return Wire(storage_trust())


@pytest.fixture
def http(wire):
    with httpx.Client(transport=wire, timeout=10) as http:
        yield http


def repeated(act):
    """A handler that does the same to each request of a connection."""

    def handle(peer, _):
        while head := peer.head():
            act(peer, head)

    return handle


def fetch(http, url, size):
    """All bytes of an answer, by a buffer of some size; and its pieces' sizes."""
    buffer, content, sizes = bytearray(size), bytearray(), []
    with http.stream("GET", url, extensions={"buffer": buffer}) as answer:
        for piece in answer.iter_raw():
            content += piece
            sizes.append(len(piece))
    return bytes(content), sizes


def sent(http, url, *pieces, **options):
    length = sum(len(piece) for piece in pieces)
    return http.put(url, content=iter(pieces), headers={"Content-Length": str(length)}, **options)


# --- bodies arrive as they were sent ---


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(0, 300_000),
    buffer=st.integers(1, 100_000),
    chunk=st.integers(1, 100_000),
    seed=st.integers(0, 99),
)
def test_an_answer_is_the_same_whatever_the_pieces(size, buffer, chunk, seed):
    content = random.Random(seed).randbytes(size)

    def handle(peer, _):
        while peer.head():
            peer.say(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")
            for at in range(0, size, chunk):
                peer.say(content[at : at + chunk])

    with RawServer(handle) as server, httpx.Client(transport=Wire(storage_trust())) as http:
        got, sizes = fetch(http, server.url, max(buffer, size // 500 + 1))
        assert got == content
        assert len(set(sizes[:-1])) <= 1
        assert http.get(server.url).content == content
        assert server.connections == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["bytes", "view", "slice"]), st.integers(0, 200_000)), max_size=6))
def test_a_request_is_the_same_whatever_the_pieces(shape):
    got = []

    def take(peer, head):
        got.append(peer.body(head))
        peer.answer()

    content = random.Random(1).randbytes(sum(size for _, size in shape))
    descriptor = os.memfd_create("source")
    os.write(descriptor, content)
    pieces, at = [], 0
    for kind, size in shape:
        piece = content[at : at + size]
        if kind == "slice":
            pieces.append(Slice("source", descriptor, at, size))
            assert bytes(pieces[-1]) == piece
        else:
            pieces.append(memoryview(piece) if kind == "view" else piece)
        at += size
    try:
        with RawServer(repeated(take)) as server, httpx.Client(transport=Wire(storage_trust())) as http:
            assert sent(http, server.url, *pieces).status_code == 200
            assert sent(http, server.url, b"again").status_code == 200
            assert (got, server.connections) == ([content, b"again"], 1)
    finally:
        os.close(descriptor)


def test_eight_mebibytes_come_exactly_and_in_the_buffer_that_was_lent(serve, http):
    content = os.urandom(8 * MIB)
    server = serve(repeated(lambda peer, _: peer.answer(content)))
    got, sizes = fetch(http, server.url, MIB)
    assert (got, sizes) == (content, [MIB] * 8)


def test_pieces_without_a_buffer_may_be_kept(serve, http):
    content = os.urandom(MIB + 1)
    server = serve(repeated(lambda peer, _: peer.answer(content)))
    assert http.get(server.url).content == content


def test_an_error_s_text_is_never_read_into_the_buffer(serve, http):
    server = serve(repeated(lambda peer, _: peer.answer(b"<Error/>", "403 Forbidden")))
    buffer = bytearray(4)
    with http.stream("GET", server.url, extensions={"buffer": buffer}) as answer:
        assert (answer.read(), buffer) == (b"<Error/>", bytearray(4))


@pytest.mark.parametrize(
    ("words", "content"),
    [
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
            b"abcde",
        ),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b"x"),
        ("HTTP/1.1 204 No Content\r\n\r\n", b""),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b""),
        ("HTTP/1.1 200\r\ncontent-length:0\r\n\r\n", b""),
    ],
    ids=["chunked", "continue", "no content", "not modified", "no reason"],
)
def test_all_ways_to_say_how_long_an_answer_is_are_understood(serve, http, words, content):
    server = serve(repeated(lambda peer, _: peer.say(words)))
    for _ in range(2):
        got, _ = fetch(http, server.url, 4)
        assert got == content
    assert server.connections == 1


@pytest.mark.parametrize(
    "words", ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n"], ids=["1.1", "1.0"]
)
def test_an_answer_may_end_with_the_connection(serve, http, words):
    def handle(peer, _):
        peer.request()
        peer.say(words, "hello")

    server = serve(handle)
    assert [http.get(server.url).text for _ in range(2)] == ["hello"] * 2
    assert server.connections == 2


def test_the_answer_to_head_has_no_body(serve, http):
    server = serve(repeated(lambda peer, _: peer.say("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")))
    assert [http.head(server.url).headers["content-length"] for _ in range(2)] == ["99", "99"]
    assert server.connections == 1


def test_an_answer_that_says_close_is_the_last_of_its_connection(serve, http):
    server = serve(repeated(lambda peer, _: peer.answer(b"x", "200 OK", "Connection: close")))
    assert [http.get(server.url).text for _ in range(2)] == ["x", "x"]
    assert server.connections == 2


def test_what_was_asked_reaches_the_server(serve, http):
    heads = []

    def note(peer, head):
        heads.append(head)
        peer.answer(b"", "404 Nowhere", "ETag: \xe9")

    server = serve(repeated(note))
    answer = http.get(server.url, headers={"Range": "bytes=1-2"})
    assert (answer.status_code, answer.reason_phrase, answer.headers["etag"]) == (404, "Nowhere", "é")
    first, *lines = heads[0].split("\r\n")
    assert first == "GET /bucket/key?X-Amz-Signature=5ec2e7 HTTP/1.1"
    assert f"host: 127.0.0.1:{server.port}" in [line.lower() for line in lines]
    assert "Range: bytes=1-2" in lines


def test_a_body_of_unknown_length_is_not_sent(http):
    with pytest.raises(httpx.LocalProtocolError, match="length of the body"):
        http.put("http://127.0.0.1:9/", content=iter([b"x"]))


# --- connections ---


def test_many_threads_share_the_connections(serve, http):
    server = serve(repeated(lambda peer, head: peer.answer(head.split(" ")[1].encode() * 1000)))
    wrong = []

    def work(number):
        for turn in range(20):
            path = f"/{number}/{turn}"
            if http.get(f"http://127.0.0.1:{server.port}{path}").text != path * 1000:
                wrong.append(path)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (wrong, server.connections <= 6) == ([], True)


@pytest.mark.parametrize("how", ["at once", "when asked", "when asked, rudely"])
def test_a_kept_connection_that_has_ended_is_replaced(serve, http, how):
    def handle(peer, number):
        peer.request()
        peer.answer(b"first" if number == 1 else b"second")
        if number == 1 and how != "at once":
            peer.head()
            if "rudely" in how:
                peer.reset()

    server = serve(handle)
    assert http.get(server.url).text == "first"
    if how == "at once":
        time.sleep(0.05)
    assert http.get(server.url).text == "second"


@pytest.mark.parametrize("begun", [False, True])
def test_a_body_goes_to_another_connection_only_if_it_has_not_begun(serve, http, begun):
    def handle(peer, number):
        peer.request()
        peer.answer(b"first" if number == 1 else b"second")
        if begun:
            peer.head()
            peer.sock.recv(1)

    server = serve(handle)
    assert http.get(server.url).text == "first"
    if begun:
        with pytest.raises(httpx.TransportError):
            sent(http, server.url, b"x" * 3 * MIB)
    else:
        time.sleep(0.05)
        assert sent(http, server.url, b"x" * 3 * MIB).text == "second"
    assert server.connections == 2 - begun


def test_a_new_connection_that_ends_unanswered_is_no_stale_one(serve, http):
    server = serve(lambda peer, _: peer.head())
    with pytest.raises(httpx.RemoteProtocolError):
        http.get(server.url)
    assert server.connections == 1


def test_an_answer_left_in_the_middle_ends_its_connection(serve, http):
    server = serve(repeated(lambda peer, _: peer.answer(b"x" * MIB)))
    with http.stream("GET", server.url) as answer:
        next(answer.iter_raw())
    assert len(http.get(server.url).content) == MIB
    assert server.connections == 2


def test_an_answer_taken_to_its_last_byte_and_no_further_keeps_its_connection(serve, http):
    server = serve(repeated(lambda peer, _: peer.answer(b"x" * 10)))
    for _ in range(2):
        with http.stream("GET", server.url) as answer:
            assert next(answer.iter_raw()) == b"x" * 10
    assert server.connections == 1


def test_no_socket_stays_open(serve, wire, http):
    server = serve(repeated(lambda peer, _: peer.answer(b"x")))
    http.get(server.url)
    assert len(wire._sockets) == 1
    http.close()
    assert wire._sockets == set()


def test_a_connection_in_use_is_closed_when_its_answer_ends(serve, wire):
    server = serve(repeated(lambda peer, _: peer.answer(b"x" * MIB)))
    answer = wire.handle_request(httpx.Request("GET", server.url))
    wire.close()
    assert (len(answer.read()), wire._sockets) == (MIB, set())


# --- what goes wrong ---


def cut(peer, _):
    peer.request()
    peer.say(f"HTTP/1.1 200 OK\r\nContent-Length: {3 * MIB}\r\n\r\n", b"x" * int(0.37 * 3 * MIB))


def rude(peer, number):
    cut(peer, number)
    time.sleep(QUICK)  # so that what was sent is not thrown away
    peer.reset()


def slow_body(peer, number):
    cut(peer, number)
    peer.head()


def says(words):
    def handle(peer, _):
        peer.request()
        peer.say(words)

    return handle


def slow_head(peer, _):
    peer.request()
    peer.say("HTTP/1.1 200 OK\r\nContent-")
    peer.head()


FAILURES = {
    "cut": (cut, httpx.RemoteProtocolError, "received 1163919 bytes, expected 3145728"),
    "reset": (rude, httpx.ReadError, "reset"),
    "slow body": (slow_body, httpx.ReadTimeout, "timed out"),
    "slow head": (slow_head, httpx.ReadTimeout, "timed out"),
    "nothing": (lambda peer, _: peer.request(), httpx.RemoteProtocolError, "without response"),
    "half a head": (says("HTTP/1.1 200 OK\r\nConte"), httpx.RemoteProtocolError, "without sending complete"),
    "garbage": (says("SSH-2.0-OpenSSH_9.2\r\n"), httpx.RemoteProtocolError, "SSH-2.0-OpenSSH_9.2"),
    "long garbage": (says("x" * 100_000), httpx.RemoteProtocolError, "status line"),
    "many headers": (
        says("HTTP/1.1 200 OK\r\n" + "a: b\r\n" * 500 + "\r\n"),
        httpx.RemoteProtocolError,
        "headers",
    ),
    "half a chunk": (
        says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc"),
        httpx.RemoteProtocolError,
        "IncompleteRead",
    ),
    "no chunk": (
        says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello"),
        httpx.RemoteProtocolError,
        "IncompleteRead",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_goes_wrong_has_httpx_s_name_and_tells_no_secret(serve, http, name):
    handle, kind, text = FAILURES[name]
    server = serve(handle)
    with pytest.raises(kind) as caught:
        http.get(server.url, timeout=httpx.Timeout(10, read=2 * QUICK if name.startswith("slow") else 10))
    assert type(caught.value) is kind
    assert text in str(caught.value)
    assert caught.value.request.url == server.url
    assert "5ec2e7" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("handle", [cut, rude, slow_body])
@pytest.mark.parametrize("buffer", [1000, 4 * MIB])
def test_what_came_before_a_failure_is_not_lost(serve, http, handle, buffer):
    server, got = serve(handle), 0
    lent = {"buffer": bytearray(buffer)}
    with http.stream("GET", server.url, extensions=lent, timeout=2 * QUICK) as answer:
        pieces = answer.iter_raw()
        while got < int(0.37 * 3 * MIB):
            got += len(next(pieces))
        with pytest.raises(httpx.TransportError):
            next(pieces)
    assert got == int(0.37 * 3 * MIB)


def test_an_answer_longer_than_it_says_spoils_no_other(serve, http):
    server = serve(says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc"))
    assert [http.get(server.url).text for _ in range(3)] == ["ab"] * 3


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("reads", [0, MIB], ids=["unread", "half read"])
def test_a_refusal_amid_the_body_is_seen(serve, tmp_path, secure, reads):
    bundle, tls = authority(tmp_path)

    def handle(peer, _):
        peer.head()
        got = 0
        while got < reads:
            got += len(peer.sock.recv(65536))
        peer.answer(b"<Error/>", "403 Forbidden", "Connection: close")

    server = serve(handle, tls if secure else None)
    answers = []
    with httpx.Client(transport=Wire(storage_trust(str(bundle))), timeout=10) as http:
        # Who ends a connection with a body unread resets it, and often takes the answer back by that.
        for _ in range(10):
            with contextlib.suppress(httpx.TransportError):
                answers.append(sent(http, server.url, *[b"x" * MIB] * 64))
    assert answers
    assert {(answer.status_code, answer.text) for answer in answers} == {(403, "<Error/>")}


def test_a_refusal_whose_text_is_lost_is_one_all_the_same(serve, http):
    def handle(peer, _):
        peer.head()
        peer.say("HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\n<Err")

    answer = sent(http, serve(handle).url, *[b"x" * MIB] * 64)
    assert (answer.status_code, answer.text) == (403, "<Err")


def test_who_refuses_and_goes_on_reading_gets_a_new_connection(serve, http):
    def handle(peer, number):
        head = peer.head()
        if number == 1:
            peer.answer(b"", "503 Slow Down")
        peer.body(head)
        if number > 1:
            peer.answer(b"fine")

    server = serve(handle)
    answers = [sent(http, server.url, *[b"x" * MIB] * 16).status_code for _ in range(2)]
    assert (answers, server.connections) == ([503, 200], 2)


def test_who_does_not_read_is_not_waited_for(serve, http):
    over = threading.Event()
    server = serve(lambda peer, _: (peer.head(), over.wait(10)))
    with pytest.raises(httpx.WriteTimeout) as caught:
        sent(http, server.url, *[b"x" * MIB] * 64, timeout=httpx.Timeout(10, write=QUICK))
    over.set()
    assert "5ec2e7" not in "".join(traceback.format_exception(caught.value))


def test_who_hangs_up_on_a_body_is_told(serve, http):
    def handle(peer, _):
        peer.head()
        peer.reset()

    with pytest.raises((httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError)):
        sent(http, serve(handle).url, *[b"x" * MIB] * 64)


def test_a_body_that_breaks_off_ends_the_connection(serve, http):
    def broken():
        yield b"x"
        raise KeyError("mine")

    server = serve(repeated(lambda peer, head: (peer.body(head), peer.answer())))
    with pytest.raises(KeyError, match="mine"):
        http.put(server.url, content=broken(), headers={"Content-Length": "9"})
    assert sent(http, server.url, b"x").status_code == 200
    assert server.connections == 2


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_a_file_that_has_become_shorter_is_told(serve, tmp_path, secure):
    bundle, tls = authority(tmp_path)
    server = serve(repeated(lambda peer, head: peer.body(head)), tls if secure else None)
    with (
        (tmp_path / "x").open("w+b") as file,
        httpx.Client(transport=Wire(storage_trust(str(bundle)))) as http,
    ):
        file.truncate(10)
        with pytest.raises(TransferError, match="the file became shorter") as caught:
            sent(http, server.url, Slice("the file", file.fileno(), 5, 10))
    assert not caught.value.transient


def test_a_port_that_nobody_listens_on_is_told(http):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(httpx.ConnectError, match="refused"):
            http.get(f"http://127.0.0.1:{taken.getsockname()[1]}/?X-Amz-Signature=5ec2e7")


def test_a_host_that_does_not_take_connections_is_not_waited_for(http):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(address)
        with pytest.raises(httpx.ConnectTimeout):
            http.get(f"http://127.0.0.1:{address[1]}/", timeout=httpx.Timeout(10, connect=QUICK))
        for sock in waiting:
            sock.close()


# --- ending it ---


def blocked_in(http, server, act):
    """Do something that blocks, in a thread; gives the thread and what it raises."""
    raised = []

    def run():
        try:
            act(http, server.url)
        except Exception as error:  # noqa: BLE001  the test looks at it
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


@pytest.mark.parametrize(
    ("handle", "act"),
    [
        (lambda peer, _: (peer.head(), peer.head()), lambda http, url: http.get(url)),
        (slow_body, lambda http, url: fetch(http, url, MIB)),
        (lambda peer, _: (peer.head(), time.sleep(2)), lambda http, url: sent(http, url, *[b"x" * MIB] * 64)),
    ],
    ids=["head", "body", "sending"],
)
def test_abort_ends_at_once_whatever_blocks(serve, wire, http, handle, act):
    server = serve(handle)
    thread, raised = blocked_in(http, server, act)
    time.sleep(QUICK)
    began = time.monotonic()
    wire.abort()
    thread.join(5)
    assert time.monotonic() - began < 0.5
    assert isinstance(raised[0], httpx.TransportError)
    with pytest.raises(httpx.ConnectError, match="given up"):
        http.get(server.url)


def test_abort_ends_a_connection_in_the_making(wire, http):
    # It takes the connection, and never greets.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = type("Silent", (), {"url": f"https://127.0.0.1:{silent.getsockname()[1]}/"})
        thread, raised = blocked_in(http, server, lambda http, url: http.get(url))
        time.sleep(QUICK)
        wire.abort()
        thread.join(2)
        assert isinstance(raised[0], httpx.ConnectError)


# --- TLS ---


def test_bodies_are_the_same_over_tls(serve, tmp_path):
    bundle, tls = authority(tmp_path)
    content = os.urandom(5 * MIB + 3)
    (tmp_path / "x").write_bytes(content)

    def both(peer, head):
        taken = peer.body(head)
        peer.answer(hashlib.sha256(taken).digest() if taken else content)

    server = serve(repeated(both), tls)
    with (
        httpx.Client(transport=Wire(storage_trust(str(bundle))), timeout=10) as http,
        (tmp_path / "x").open("rb") as file,
    ):
        pieces = [Slice("x", file.fileno(), 0, 3 * MIB), memoryview(content)[3 * MIB :]]
        assert sent(http, server.url, *pieces).content == hashlib.sha256(content).digest()
        assert fetch(http, server.url, MIB)[0] == content
    assert server.connections == 1


def test_a_certificate_of_an_unknown_ca_is_not_trusted(serve, http, tmp_path):
    _, tls = authority(tmp_path)
    server = serve(repeated(lambda peer, _: peer.answer()), tls)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        http.get(server.url)
