"""Hashing a file in order, right behind the threads that move it in any order."""

from __future__ import annotations

from collections.abc import Callable

from .lanes import Lanes

__all__ = ["Follower"]

_CHUNK = 1024 * 1024
# Who moves is held up once so many bytes more are moved than hashed, and goes on when few are left of them.
# Else those who move take the processors from the one who hashes, who is left to do it on a single one when
# all is moved. And what is not far back is in the system's memory still when it is read for the digest.
_LEAD = 64 * 1024 * 1024
_LEFT = 8 * 1024 * 1024


class Follower:
    """Hashes, in a thread of its own, what others have moved.

    :param lanes: the threads that move, and this one
    :param size: bytes of the file
    :param reach: how far it can be read by now
    :param read: reads from an offset on so many bytes, or fewer, but not none
    :param update: takes the bytes, in order
    """

    def __init__(
        self,
        lanes: Lanes,
        *,
        size: int,
        reach: Callable[[], int],
        read: Callable[[int, int], bytes],
        update: Callable[[bytes], object],
    ) -> None:
        self._lanes = lanes
        self._size = size
        self._reach = reach
        self._read = read
        self._update = update
        self._hashed = 0
        self._waits = False
        self._tell_at = _LEFT

    def run(self) -> None:
        """Hash all of it.

        :raises StoppedError: this thread is to end
        """
        while self._hashed < self._size:
            self._lanes.check()
            ready = self._reach()
            if ready <= self._hashed:
                self._wait()
                continue
            chunk = self._read(self._hashed, min(_CHUNK, ready - self._hashed))
            self._update(chunk)
            self._hashed += len(chunk)
            # In steps, since waking costs: for whom there is too much left now, another one comes.
            if self._hashed >= self._tell_at:
                self._tell_at = self._hashed + _LEFT
                self._lanes.tell()

    def _wait(self) -> None:
        # Before anybody looks: from here on, who moves tells of it.
        self._waits = True
        self._lanes.wait_until(lambda: self._reach() > self._hashed)
        self._waits = False

    def advanced(self) -> None:
        """It can be read further than before. To be called by who moves."""
        if self._waits:
            self._lanes.tell()

    def hold(self, moved: Callable[[], int]) -> None:
        """Wait while much has been moved that is not hashed. To be called by who moves.

        :param moved: bytes that have been moved since this began; all of them can be read
        :raises StoppedError: this thread is to end
        """
        if moved() - self._hashed > _LEAD:
            self._lanes.wait_until(lambda: moved() - self._hashed <= _LEFT)
