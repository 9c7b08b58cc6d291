"""Files that a running Airflow watches: who lays them down, and what their events tell."""

import contextlib
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from live_airflow import Airflow, Process, until

__all__ = ["Interrupted", "deliver", "events", "files"]


def events(airflow: Airflow, name: str) -> list[dict[str, Any]]:
    """What the events of an asset tell, oldest first."""
    where = {"name_pattern": name, "order_by": "timestamp", "limit": 100}

    def look() -> Any:
        # Airflow 3.3 answers 500 while a run that one of the events has started is queued.
        with contextlib.suppress(AssertionError):
            return airflow.call("GET", "assets/events", params=where)
        return None

    # The pattern lets other names in that have this one in them.
    found = until(look, 60, "the events")["asset_events"]
    return [event["extra"] for event in found if event["name"] == name]


def files(extras: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Name and size of each file in some events of a watcher."""
    told = [file for extra in extras for file in extra["payload"]["files"]]
    assert not any("repeated" in file for file in told)
    return [(Path(file["path"]).name, file["size"]) for file in told]


def deliver(path: Path, content: str) -> None:
    """Lay a file down at once."""
    part = path.with_suffix(".part")
    part.write_text(content)
    part.rename(path)


class Courier(threading.Thread):
    """Lays a file down now and then, until it is told to stop.

    :param inbox: where
    """

    def __init__(self, inbox: Path) -> None:
        super().__init__(daemon=True)
        self._inbox = inbox
        self._over = threading.Event()
        self.names: list[str] = []

    def run(self) -> None:
        while not self._over.wait(0.5):
            name = f"k{len(self.names)}.dat"
            deliver(self._inbox / name, "x")
            self.names.append(name)

    def stop(self) -> None:
        self._over.set()
        self.join()


def just_fired(triggerers: list[Process]) -> Process:
    """The triggerer whose watcher is the next to fire, at that moment."""
    words = "on system embedded: "
    sizes = {one: one.log.stat().st_size for one in triggerers}

    def fired() -> Process | None:
        for one, size in sizes.items():
            with one.log.open(errors="replace") as log:
                log.seek(size)
                if any("new or changed file" in line and words in line for line in log):
                    return one
        return None

    found = until(fired, 60, "an event", pause=0.02)
    assert found is not None
    return found


class Interrupted:
    """What became of the files that were laid down while triggerers ended, each right at an event.

    :param airflow: has the triggerers, which run again afterwards
    """

    def __init__(self, airflow: Airflow) -> None:
        self._airflow = airflow
        inbox = Path(airflow.gateway.connection()["extra"]["working_dir"]) / "inbox"
        inbox.mkdir(exist_ok=True)
        self._before = len(events(airflow, "inbox"))
        self._courier = Courier(inbox)

    def run(self) -> None:
        """End one after the other, in both ways that there are."""
        self._courier.start()
        try:
            for end in (Process.kill, Process.stop):
                one = just_fired(self._airflow.triggerers)
                end(one)
                self.ended = time.time()
                # The other one takes over, in the midst of new files.
                just_fired([other for other in self._airflow.triggerers if other is not one])
                self._airflow.restart(one)
        finally:
            self._courier.stop()

    def files(self) -> list[dict[str, Any]]:
        """What the events have told since then, file by file."""
        found = events(self._airflow, "inbox")[self._before :]
        return [file for extra in found for file in extra["payload"]["files"]]

    def names(self, *, repeated: bool) -> Counter[str]:
        """How often each file was told of, marked as repeated or not."""
        told = (file for file in self.files() if file.get("repeated", False) is repeated)
        return Counter(Path(file["path"]).name for file in told)

    def told(self) -> bool:
        """Whether all of them have been told of, and no other."""
        return {*self.names(repeated=False), *self.names(repeated=True)} == set(self._courier.names)
