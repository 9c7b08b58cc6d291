import hashlib
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hpc_provider.client import hashing
from airflow_hpc_provider.client.errors import TransferError
from airflow_hpc_provider.client.hashing import Follower
from airflow_hpc_provider.client.lanes import Lanes


class File:
    """A file that is moved by some threads, and what came of its digest."""

    def __init__(self, content: bytes, *, most: int = 1 << 20) -> None:
        self.lanes = Lanes(lambda: None)
        self.digest = hashlib.sha256()
        self.moved = self.reach = 0
        self.furthest = 0
        self._content, self._most, self._lock = content, most, threading.Lock()
        self.follower = Follower(
            self.lanes,
            size=len(content),
            reach=lambda: self.reach,
            read=self._read,
            update=self.digest.update,
        )
        self.hashed = 0

    def _read(self, at: int, length: int) -> bytes:
        assert at + length <= self.reach
        chunk = self._content[at : at + min(length, self._most)]
        self.hashed = at
        return chunk

    def move(self, at: int, end: int, step: int) -> None:
        """As a lane does: it moves a piece, tells of it, and is held up if need be."""
        while at < end:
            length = min(step, end - at)
            with self._lock:
                self.moved += length
                self.reach = max(self.reach, at + length)
                self.furthest = max(self.furthest, self.moved - self.hashed)
            self.follower.advanced()
            self.follower.hold(lambda: self.moved)
            at += length

    def run(self, *lanes) -> None:
        self.lanes.run([*lanes, self.follower.run], tick=lambda: None, every=0.01)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Little is much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "_CHUNK", 7)
        patch.setattr(hashing, "_LEAD", 64)
        patch.setattr(hashing, "_LEFT", 16)
        yield


@pytest.mark.timeout(30)
@given(
    content=st.binary(max_size=600),
    lanes=st.integers(1, 5),
    step=st.integers(1, 90),
    most=st.integers(1, 9),
)
def test_whoever_moves_what_when_the_digest_is_that_of_the_whole(content, lanes, step, most):
    file = File(content, most=most)
    share = -(-len(content) // lanes)

    def lane(number):
        return lambda: file.move(number * share, min((number + 1) * share, len(content)), step)

    file.run(*map(lane, range(lanes)))
    assert file.digest.hexdigest() == hashlib.sha256(content).hexdigest()


def test_who_moves_is_held_up_while_much_is_not_hashed():
    file = File(bytes(5000))
    file.run(lambda: file.move(0, 5000, 10))
    # What is being read, and what is moved before anybody asks.
    assert file.furthest <= 64 + 10 + 7
    assert file.digest.hexdigest() == hashlib.sha256(bytes(5000)).hexdigest()


def test_what_cannot_be_read_ends_all_of_them():
    file = File(bytes(5000))

    def unreadable(at, length):
        raise TransferError("It became shorter.")

    file.follower = Follower(
        file.lanes, size=5000, reach=lambda: file.reach, read=unreadable, update=file.digest.update
    )
    with pytest.raises(TransferError, match="shorter"):
        file.run(lambda: file.move(0, 5000, 10), lambda: file.lanes.pause(60))
