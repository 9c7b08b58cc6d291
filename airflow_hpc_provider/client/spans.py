"""Which bytes are there: spans of a file, pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["Span", "Spans", "cut"]

Span = tuple[int, int]


class Spans:
    """The parts of a file that are there, as half-open spans: sorted, apart from each other.

    :param spans: pairs of first byte and end
    :raises ValueError: a pair is none of those
    """

    def __init__(self, spans: Iterable[Iterable[int]] = ()) -> None:
        self._spans: list[Span] = []
        for start, end in spans:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """These bytes are there now, too."""
        if not 0 <= start <= end:
            raise ValueError(f"no span: {start} to {end}")
        if start == end:
            return
        apart = [span for span in self._spans if span[1] < start or span[0] > end]
        joined = [span for span in self._spans if not (span[1] < start or span[0] > end)]
        start = min([start, *(span[0] for span in joined)])
        end = max([end, *(span[1] for span in joined)])
        self._spans = sorted([*apart, (start, end)])

    @property
    def total(self) -> int:
        """Bytes that are there."""
        return sum(end - start for start, end in self._spans)

    @property
    def prefix(self) -> int:
        """Bytes that are there from the beginning on, without a gap."""
        return self._spans[0][1] if self._spans and self._spans[0][0] == 0 else 0

    def gaps(self, size: int) -> list[Span]:
        """What is missing of a file.

        :param size: its bytes
        """
        missing, at = [], 0
        for start, end in [*self._spans, (size, size)]:
            if at < min(start, size):
                missing.append((at, min(start, size)))
            at = max(at, end)
        return missing

    def to_json(self) -> list[list[int]]:
        """Plain JSON."""
        return [list(span) for span in self._spans]


def cut(gaps: Iterable[Span], *, lanes: int, largest: int, smallest: int) -> Iterator[Span]:
    """Cut what is missing into pieces: large ones first, small ones last, so that all lanes end together.

    :param gaps: spans to fetch, in order
    :param lanes: connections that share the work
    :param largest: bytes of a piece at the most
    :param smallest: bytes below which nothing is cut
    """
    gaps = list(gaps)
    left = sum(end - start for start, end in gaps)
    for start, end in gaps:
        at = start
        while at < end:
            piece = min(largest, max(smallest, left // (2 * lanes)), end - at)
            yield at, at + piece
            at, left = at + piece, left - piece
