"""The staging storage: whom it trusts, by which way it is reached, and what its errors say."""

import os
import ssl
import traceback

import pytest
from raw_server import RawServer, authority

from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.errors import TransferError
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.client.session import AsyncClient, Client
from airflow_hpc_provider.client.storage import Storage
from airflow_hpc_provider.client.wire import Slice

ONCE = RetryPolicy(attempts=1)
TWICE = RetryPolicy(attempts=2, base=0)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def content():
    return os.urandom(300_000)


def ranges(content, heads=None):
    """Serves ranges of some content, and takes parts."""

    def handle(peer, _):
        while head := peer.head():
            body = peer.body(head)
            if heads is not None:
                heads.append(head)
            if head.startswith("PUT"):
                peer.answer(b"", "200 OK", f'ETag: "{len(body)}"')
                continue
            start, end = (int(word) for word in head.partition("bytes=")[2].split("\r\n")[0].split("-"))
            there = f"Content-Range: bytes {start}-{end}/{len(content)}"
            peer.answer(content[start : end + 1], "206 Partial Content", there, 'ETag: "a"')

    return handle


def fetched(storage, url, size, **options):
    got = bytearray()
    storage.fetch(url, 0, size, what="fetch it", take=got.extend, **options)
    return bytes(got)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_storage_s_certificate_may_be_of_the_connection_s_ca(tmp_path, content, kind):
    bundle, tls = authority(tmp_path)
    client = kind("https://gateway", AccessToken("https://gateway", "t"), ca_bundle=str(bundle))
    assert client.storage_trust is client.storage_trust
    with RawServer(ranges(content), tls) as server, Storage(trust=client.storage_trust) as storage:
        assert fetched(storage, server.url, len(content)) == content
        assert storage.put(server.url, lambda: iter([b"abc"]), 3, "send it") == '"3"'


def test_the_usual_cas_are_trusted_beside_the_connection_s(tmp_path):
    bundle, _ = authority(tmp_path)
    usual = Client("https://gateway", AccessToken("https://gateway", "t")).storage_trust
    both = Client("https://gateway", AccessToken("https://gateway", "t"), ca_bundle=str(bundle)).storage_trust
    assert len(both.get_ca_certs()) == len(usual.get_ca_certs()) + 1 > 1


def test_an_unknown_ca_is_told_at_once_with_host_and_remedy(tmp_path):
    _, tls = authority(tmp_path, "theirs")
    bundle, _ = authority(tmp_path, "ours")
    client = Client("https://gateway", AccessToken("https://gateway", "t"), ca_bundle=str(bundle))
    with RawServer(ranges(b""), tls) as server, Storage(trust=client.storage_trust) as storage:
        with pytest.raises(TransferError, match=rf"TLS with 127\.0\.0\.1:{server.port} failed") as caught:
            fetched(storage, server.url, 1)
        assert server.connections == 1
    assert "set the connection's ca_bundle" in str(caught.value)
    assert not caught.value.transient
    assert "5ec2e7" not in "".join(traceback.format_exception(caught.value))


def test_a_certificate_that_breaks_its_rfc_is_the_site_s_to_renew(tmp_path):
    bundle, tls = authority(tmp_path, identified=False)
    trust = Client(
        "https://gateway", AccessToken("https://gateway", "t"), ca_bundle=str(bundle)
    ).storage_trust
    # The context is shared by all of one bundle, of which this test has the only one.
    trust.verify_flags |= ssl.VERIFY_X509_STRICT
    with RawServer(ranges(b""), tls) as server, Storage(trust=trust) as storage:
        with pytest.raises(TransferError, match="Missing Authority Key Identifier") as caught:
            fetched(storage, server.url, 1)
        assert server.connections == 1
    assert "the site has to renew its own" in str(caught.value)
    assert "ca_bundle" not in str(caught.value)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_where_there_is_a_proxy_it_is_gone_by(monkeypatch, tmp_path, content, name):
    heads, source = [], tmp_path / "source"
    source.write_bytes(content)
    with RawServer(ranges(content, heads)) as proxy, source.open("rb") as file:
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        with Storage() as storage:
            url = "http://storage.example/bucket/key?X-Amz-Signature=5ec2e7"
            assert fetched(storage, url, len(content), buffer=bytearray(10_000)) == content
            piece = Slice("source", file.fileno(), 0, len(content))
            assert storage.put(url, lambda: iter([piece]), len(content), "send it") == f'"{len(content)}"'
    assert [head.split(" ")[1] for head in heads] == [url] * 2


@pytest.mark.parametrize("exempt", ["127.0.0.1", "localhost,127.0.0.1", "*"])
def test_a_host_that_needs_no_proxy_is_reached_directly(monkeypatch, content, exempt):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", exempt)
    with RawServer(ranges(content)) as server, Storage(policy=ONCE) as storage:
        assert fetched(storage, server.url, len(content)) == content


def test_a_try_that_got_further_counts_as_the_first(content):
    def cut(peer, number):
        whole = ranges(content)
        if number == 6:
            whole(peer, number)
        start = int(peer.head().partition("bytes=")[2].partition("-")[0])
        peer.say("HTTP/1.1 206 Partial Content\r\n")
        peer.say(f"Content-Range: bytes {start}-{len(content) - 1}/{len(content)}\r\n")
        peer.say(f"Content-Length: {len(content) - start}\r\n\r\n", content[start : start + 10_000])

    with RawServer(cut) as server, Storage(policy=TWICE) as storage:
        assert fetched(storage, server.url, len(content), buffer=bytearray(7000)) == content
        assert server.connections == 6


def test_a_storage_that_gives_nothing_is_given_up(content):
    with RawServer(lambda peer, _: peer.head()) as server, Storage(policy=TWICE) as storage:
        with pytest.raises(TransferError, match=rf"Could not fetch it: .*127\.0\.0\.1:{server.port}.* lost"):
            fetched(storage, server.url, len(content))
        assert server.connections == 2


def test_a_range_keeps_its_connection(content):
    with RawServer(ranges(content)) as server, Storage() as storage:
        for _ in range(3):
            assert fetched(storage, server.url, 1000, buffer=bytearray(300)) == content[:1000]
        assert server.connections == 1


class Clock:
    """Time passes in pauses only."""

    def __init__(self):
        self.now = 0.0
        self.pauses = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


def answering(answers):
    """Gives these answers to parts, the last for ever; a None cuts the connection."""

    def handle(peer, _):
        while head := peer.head():
            peer.body(head)
            status = answers.pop(0) if len(answers) > 1 else answers[0]
            if status is None:
                return
            peer.answer(b"", status, 'ETag: "x"')

    return handle


def patient(clock, patience=600.0):
    policy = RetryPolicy(attempts=3, base=1.0, longest=30.0, random=lambda: 1.0)
    return Storage(policy=policy, patience=patience, sleep=clock.sleep, clock=clock)


@pytest.mark.parametrize("trouble", ["503 Slow Down", "429 Too Many", "408 Late", "500 No", None])
def test_a_storage_that_is_away_for_minutes_is_waited_for_and_that_is_said_once(trouble, caplog):
    clock = Clock()
    with RawServer(answering([trouble] * 20 + ["200 OK"])) as server, patient(clock) as storage:
        assert storage.put(server.url, lambda: iter([b"x"]), 1, "send it") == '"x"'
    assert clock.pauses[:6] == [1, 2, 4, 8, 16, 30]
    assert set(clock.pauses[6:]) == {30}
    assert caplog.text.count("The storage is waited for, 600 s at the most") == 1
    assert caplog.text.count("Trying again") == 2


def test_a_storage_that_stays_away_is_given_up_when_the_patience_is_over():
    clock = Clock()
    with (
        RawServer(answering(["503 Slow Down"])) as server,
        patient(clock) as storage,
        pytest.raises(TransferError, match="503"),
    ):
        storage.put(server.url, lambda: iter([b"x"]), 1, "send it")
    assert 600 <= clock.now <= 630


@pytest.mark.parametrize("refusal", ["403 No", "404 Gone", "400 Bad"])
def test_a_refusal_is_not_waited_for(refusal):
    clock = Clock()
    with RawServer(answering([refusal])) as server, patient(clock) as storage, pytest.raises(TransferError):
        storage.put(server.url, lambda: iter([b"x"]), 1, "send it")
    assert clock.pauses == []


def test_an_answer_without_a_tag_is_not_waited_for_long():
    def tagless(peer, _):
        while head := peer.head():
            peer.body(head)
            peer.answer(b"", "200 OK")

    clock = Clock()
    with (
        RawServer(tagless) as server,
        patient(clock) as storage,
        pytest.raises(TransferError, match="no tag"),
    ):
        storage.put(server.url, lambda: iter([b"x"]), 1, "send it")
    assert clock.pauses == [1, 2]
