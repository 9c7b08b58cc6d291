"""How far a transfer is, in words: pure, the clock is passed in."""

from __future__ import annotations

__all__ = ["Progress", "amount"]

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def amount(size: float) -> str:
    """A number of bytes in words: ``512 bytes``, ``1.5 GB``."""
    unit = 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 or size >= 99.5 else f"{size:.1f} {_UNITS[unit]}"


class Progress:
    """Says every some seconds how far a transfer is.

    :param total: bytes in all
    :param now: monotonic seconds
    :param done: bytes that were there before it began
    :param every: seconds between two lines
    """

    def __init__(self, total: int, now: float, *, done: int = 0, every: float = 10.0) -> None:
        self.total = total
        self._began = now
        self._before = done
        self._every = every
        self._last = (now, done)

    def line(self, done: int, now: float) -> str | None:
        """The next line, if it is time for one.

        :param done: bytes that are there by now
        :param now: monotonic seconds
        """
        at, before = self._last
        if now - at < self._every:
            return None
        self._last = (now, done)
        rate = max(0.0, (done - before) / (now - at))
        percent = 100 * done // self.total if self.total else 100
        text = f"{percent} % ({amount(done)} of {amount(self.total)}), {amount(rate)}/s"
        return f"{text}, {_span((self.total - done) / rate)} left." if rate else f"{text}."

    def end(self, now: float) -> str:
        """What was moved, in what time."""
        seconds, moved = now - self._began, self.total - self._before
        return f"{amount(moved)} in {seconds:.1f} s, {amount(self.rate(now))}/s."

    def rate(self, now: float) -> float:
        """Bytes per second, over all."""
        return (self.total - self._before) / max(now - self._began, 1e-3)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
