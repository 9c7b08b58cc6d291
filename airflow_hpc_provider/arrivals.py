"""``Arrivals``: which files of a watched place are new, and which of them Airflow was told of; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .client.calls import JSONObject

__all__ = ["GRACE", "Arrivals", "Sight", "version_of"]

# What is to be seen of each file: size, time of change and, where it is known, inode.
Sight: TypeAlias = Mapping[str, tuple[int | str, ...]]

# For so many seconds another process is trusted to tell Airflow of what it has begun. A triggerer that lost
# its heartbeat goes on for a while beside the one that took over.
GRACE = 60.0
# Of files that are gone, so many are remembered: one that is only out of sight for a moment is not new.
_GONE = 1000
# Who began what nobody answers for any more.
_NOBODY = ""


def version_of(seen: tuple[int | str, ...]) -> str:
    """What tells one content of a file from another: ``<size>-<time of change>-<inode>``."""
    return "-".join(map(str, seen))


@dataclass(slots=True)
class _Begun:
    """Versions by path that a process is about to tell Airflow of, and since when (epoch seconds)."""

    at: float
    versions: dict[str, str]


@dataclass(kw_only=True)
class Arrivals:
    """Says once of each version of each file that it is there, as soon as it rests.

    A version goes two ways: ``begin`` before Airflow is told of it, ``end`` when Airflow has kept that; both
    are written down, and read by whoever watches the same place. Of one that was only begun, by a process
    that is gone, nobody knows whether Airflow was told: it is told again, and marked.

    :param owner: names this process; another one may watch the same place for a while
    :param stable_for: seconds for which a version must stay the same before it counts
    """

    owner: str
    stable_for: float

    told: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._since: dict[str, tuple[tuple[int | str, ...], float]] = {}
        self._begun: dict[int, _Begun] = {}
        self._theirs: dict[str, _Begun] = {}
        self._doubtful: dict[str, str] = {}
        self._unwritten: dict[str, str] = {}
        self._changed = 0.0

    # --- what is written down ---

    def learn(self, plain: Any, now: float) -> None:
        """Take what was written down, by this process or another one.

        :param plain: what :meth:`to_json` told; anything else is a fresh beginning
        :param now: epoch seconds
        """
        kept = plain if isinstance(plain, dict) else {}
        self.told = {**self.told, **(kept.get("told") or {}), **self._unwritten}
        for owner, begun in (kept.get("begun") or {}).items():
            if owner == self.owner:
                continue
            if now - begun["at"] < GRACE:
                self._theirs[owner] = _Begun(begun["at"], begun["files"])
            else:
                self._theirs.pop(owner, None)
                self._doubtful |= begun["files"]
        for owner in self._theirs.keys() - (kept.get("begun") or {}).keys():
            del self._theirs[owner]
        self._doubtful = {
            path: version for path, version in self._doubtful.items() if self.told.get(path) != version
        }

    def to_json(self) -> JSONObject:
        """What others must know, and what must outlive this process."""
        begun = {owner: {"at": one.at, "files": one.versions} for owner, one in self._theirs.items()}
        if self._begun:
            own = {path: version for one in self._begun.values() for path, version in one.versions.items()}
            begun[self.owner] = {"at": max(one.at for one in self._begun.values()), "files": own}
        if self._doubtful:
            begun[_NOBODY] = {"at": 0.0, "files": self._doubtful}
        return {"told": self.told, "begun": begun}

    def written(self) -> None:
        """What :meth:`to_json` told is written down."""
        self._unwritten = {}

    # --- what is there ---

    def saw(self, sight: Sight, now: float) -> list[JSONObject]:
        """The files whose version is new and rests: path, size, time of change and version of each.

        :param sight: all that is there
        :param now: epoch seconds
        """
        for path, seen in sight.items():
            if path not in self._since or self._since[path][0] != seen:
                self._since[path] = (seen, now)
                if not self._known(path, version_of(seen), now):
                    self._changed = now
        self._since = {path: known for path, known in self._since.items() if path in sight}
        return self.fresh(now)

    def fresh(self, now: float) -> list[JSONObject]:
        """The same, of what was seen last."""
        return [
            self._file(path, seen)
            for path, (seen, since) in sorted(self._since.items())
            if now - since >= self.stable_for and not self._known(path, version_of(seen), now)
        ]

    def delay(self, now: float, longest: float) -> float:
        """Seconds until the next look is due: soon while something changes, later in quiet.

        :param now: epoch seconds
        :param longest: seconds between two looks at the most
        """
        resting = [
            since + self.stable_for - now
            for path, (seen, since) in self._since.items()
            if not self._known(path, version_of(seen), now)
        ]
        pace = min(longest, max(1.0, (now - self._changed) / 5))
        return max(min([pace, *resting]), min(1.0, longest))

    # --- what Airflow is told ---

    def begin(self, number: int, files: list[JSONObject], now: float) -> None:
        """Airflow is about to be told.

        :param number: of the look that found them; numbers rise
        :param files: what :meth:`saw` found
        :param now: epoch seconds
        """
        self._begun[number] = _Begun(now, {file["path"]: file["version"] for file in files})

    def holds(self, number: int, plain: Any) -> bool:
        """Whether what was begun is this process's to tell: what was written down still says so.

        :param number: of the look that it was begun with
        :param plain: what is written down now, already learnt
        """
        own = self._begun[number]
        begun = plain.get("begun", {}) if isinstance(plain, dict) else {}
        if not own.versions.items() <= begun.get(self.owner, {}).get("files", {}).items():
            return False
        if own.versions.items() & self.told.items():
            return False
        return not any(
            own.versions.items() & one.versions.items() and (one.at, owner) < (own.at, self.owner)
            for owner, one in self._theirs.items()
        )

    def undo(self, number: int) -> None:
        """Airflow was not told after all."""
        self._begun.pop(number, None)

    def end(self, number: int) -> bool:
        """Airflow has kept what was begun up to a number; True if there was something."""
        done = [self._begun.pop(other) for other in sorted(self._begun) if other <= number]
        for one in done:
            for path, version in one.versions.items():
                self._doubtful.pop(path, None)
                self.told.pop(path, None)  # the newest go to the end
                self.told[path] = self._unwritten[path] = version
        gone = [path for path in self.told if path not in self._since]
        for path in gone[: max(0, len(gone) - _GONE)]:
            del self.told[path]
        return bool(done)

    @property
    def begun(self) -> list[int]:
        """Numbers of the looks of which Airflow was begun to be told."""
        return sorted(self._begun)

    def _known(self, path: str, version: str, now: float) -> bool:
        theirs = [one for one in self._theirs.values() if now - one.at < GRACE]
        return self.told.get(path) == version or any(
            one.versions.get(path) == version for one in (*self._begun.values(), *theirs)
        )

    def _file(self, path: str, seen: tuple[int | str, ...]) -> JSONObject:
        version = version_of(seen)
        file: JSONObject = {"path": path, "size": seen[0], "modified": seen[1], "version": version}
        # Of what others began and never ended, nobody knows whether Airflow was told.
        begun = [self._doubtful, *(one.versions for one in self._theirs.values())]
        return file | ({"repeated": True} if any(one.get(path) == version for one in begun) else {})
