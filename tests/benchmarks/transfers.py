"""Files up and down: this provider against pyfirecrest and against the wire.

    uv run tests/benchmarks/transfers.py --size 1GiB --json transfers.json
    uv run tests/benchmarks/transfers.py --size 8GiB
    uv run tests/benchmarks/transfers.py --files 1000 --file-size 10KiB

All sides move the same file through presigned URLs of one embedded gateway, whose storage is a process of its
own in which the kernel moves the bytes (``_s3.py``): it is not the bottleneck. Each side runs in a process of
its own (``_movers.py``), one after another:

- ours: ``begin_upload`` and ``finish_download`` of the client, as the operators call them, with what they
  write down for a retry. That includes the sha256 of the bytes here, the flush to disk and the rename of a
  download, but not the comparison with the gateway's checksum. Files are kept in memory if there is room,
  where a flush costs nothing: ``--folder`` names a disk
- sync, async: pyfirecrest's blocking client and its client for event loops, with their own settings
- wire: ``curl`` with as many parallel connections as ours on URLs of the same kind; parts up, ranges down

Two links lead there. ``loopback``: the machine is the limit. ``wan``: as to a far site, each connection
carries 25 MB/s each way and takes 30 ms there and back, to the storage and to the gateway (``_links.py``).

Speeds are those of the fastest of some rounds; goals are judged from 500 MB on. ``peak`` is memory above an
idle worker, of the round that took most. *End to end* is an upload of 500 MB over the wan link until the file
is in its place on the system and, on our side, its sha256 compared. The job that fetches it there looks at
once and then every 60 s, as the real one does. All ratios are of speeds, ours over theirs.

Above 2 GiB, and with ``--hollow``, the file has zeros only and the storage keeps just their number, since it
is memory that such sizes are about; the wan link is left out unless asked for.

With ``--files``, a directory of small files with numbers as text goes as a tree, and file by file as ours
and as pyfirecrest's blocking client do it. Requests are those to the gateway, but for tokens and for what the
gateway says of its systems. All traffic stays on loopback.
"""

import argparse
import contextlib
import filecmp
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _site import Link, Site, Wire, WrongError, curl_is_there, cut

_MOVERS = Path(__file__).with_name("_movers.py")
_END_TO_END = 500_000_000
# Seconds between two looks of the gateway's own jobs.
_NAP = 60.0
_HOLLOW_FROM = 2 * 2**30
_LARGEST_PART = 128 * 2**20
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_LINKS = ("loopback", "wan")
_SIDES = {
    "ours": "ours",
    "sync": "pyfirecrest sync",
    "async": "pyfirecrest async",
    "wire": "the wire (curl)",
}
_DIRECTIONS = ("upload", "download")
# Of small files, so many are moved one by one.
_SAMPLE = 200
# So many times the speed of another side is wanted.
_GOALS = {
    ("wan", "upload", "sync"): 3.0,
    ("wan", "download", "sync"): 3.0,
    ("wan", "upload", "wire"): 0.9,
    ("wan", "download", "wire"): 0.9,
    ("loopback", "upload", "sync"): 1.2,
    ("loopback", "download", "sync"): 2.0,
    ("loopback", "upload", "wire"): 0.5,
    ("loopback", "download", "wire"): 0.5,
}
_GOAL_PEAK, _GOAL_END_TO_END = 96.0, 0.2
_GOAL_REQUESTS, _GOAL_FILES = 10, 20.0


def size_of(text: str) -> int:
    """Bytes: ``1GiB``, ``500MB``, ``4096``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    if not found or found[2].upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def verdict(*, met: bool) -> str:
    return "met" if met else "missed"


class Movers:
    """The sides that move files, each time in a process of its own."""

    def __init__(self, site: Site, connections: int) -> None:
        self._site, self._connections = site, connections

    def move(self, ends: Link, side: str, act: str, here: Path, there: Path, **more: Any) -> dict[str, Any]:
        """Let a side do something; gives its figures."""
        orders = {
            "side": side,
            "act": act,
            "url": ends.gateway,
            "token": self._site.token,
            "system": self._site.gateway.system,
            "local": str(here),
            "remote": str(there),
            "connections": self._connections,
            **more,
        }
        done = subprocess.run(
            [sys.executable, str(_MOVERS)],
            input=json.dumps(orders),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        figures: dict[str, Any] = json.loads(done.stdout)
        return figures


class Large:
    """One large file, on all links, by all sides."""

    def __init__(self, chosen: argparse.Namespace, site: Site, folder: Path) -> None:
        self._chosen, self._site, self._folder = chosen, site, folder
        self._size = chosen.size
        self._source = folder / "source"
        self._digest = self._make_source()
        self._movers = Movers(site, chosen.connections)
        self._wire = Wire(site, folder, self._source, chosen.connections)
        self._found: dict[tuple[str, str, str], dict[str, Any]] = {}

    def _make_source(self) -> str:
        digest, left = hashlib.sha256(), self._size
        with self._source.open("wb") as file:
            file.truncate(self._size)
            while left:
                count = min(left, 1024 * 1024)
                block = bytes(count) if self._site.hollow else os.urandom(count)
                if not self._site.hollow:
                    file.write(block)
                digest.update(block)
                left -= count
        return digest.hexdigest()

    def run(self) -> dict[str, Any]:
        """Measure and print; gives what goes into the JSON file."""
        self._show_head()
        for link in self._chosen.links:
            for _ in range(self._chosen.rounds if link == "loopback" else 1):
                for direction in _DIRECTIONS:
                    for side in self._chosen.sides:
                        self._measure(link, direction, side)
            self._show(link)
        self._show_peak()
        told: dict[str, Any] = {"size": self._size, "connections": self._chosen.connections}
        for link, direction, side in self._found:
            if side == "ours":
                told.setdefault(link, {})[direction] = self._figures(link, direction)
        if "wan" in self._chosen.links and {"ours", "sync"} <= set(self._chosen.sides):
            told |= self._end_to_end()
        return told

    def _measure(self, link: str, direction: str, side: str) -> None:
        here, there = self._source, self._site.gateway.home / "file"
        if direction == "download":
            here = self._folder / "target"
            os.link(self._source, there)
        ends = self._site.use(link)
        try:
            if side == "wire":
                act = self._wire.upload if direction == "upload" else self._wire.download
                figures: dict[str, Any] = act(there)
            else:
                figures = self._movers.move(ends, side, direction, here, there)
                right = figures.get("sha256", self._digest) == self._digest
                if not right or here.stat().st_size != self._size:
                    raise WrongError(f"{direction} by {side}")
        finally:
            self._site.clear()
            there.unlink(missing_ok=True)
            if direction == "download":
                here.unlink(missing_ok=True)
        known = self._found.setdefault((link, direction, side), {"peak": 0, **figures})
        known["seconds"] = min(known["seconds"], figures["seconds"])
        known["cpu"] = min(known["cpu"], figures["cpu"])
        known["peak"] = max(known["peak"], figures.get("peak", 0))

    def _ratio(self, link: str, direction: str, side: str) -> float | None:
        """Our speed over another's."""
        ours, other = (self._found.get((link, direction, one)) for one in ("ours", side))
        return other["seconds"] / ours["seconds"] if ours and other else None

    def _verdict(self, *, met: bool) -> str:
        """Of the goals, which are for files that take longer than it takes to begin."""
        judged = self._size >= _END_TO_END and self._chosen.nap >= _NAP
        return f" {verdict(met=met)}" if judged else ""

    def _figures(self, link: str, direction: str) -> dict[str, Any]:
        mine = self._found[link, direction, "ours"]
        return {
            "over_pyfirecrest_sync": self._ratio(link, direction, "sync"),
            "over_pyfirecrest_async": self._ratio(link, direction, "async"),
            "over_wire": self._ratio(link, direction, "wire"),
            "mb_per_s": self._size / mine["seconds"] / 1e6,
            "peak_mib_above_idle": mine["peak"] / 2**20,
            "cpu_s_per_gib": mine["cpu"] * 2**30 / self._size,
        }

    def _show_head(self) -> None:
        print(f"{self._size} bytes, {self._chosen.connections} connections of ours and of curl")
        heads = f"{'seconds':>9}{'MB/s':>8}{'ours is':>9}{'goal':>13}{'CPU s/GiB':>11}{'peak MiB':>10}"
        print(f"{'':<38}{heads}", flush=True)

    def _show(self, link: str) -> None:
        for direction in _DIRECTIONS:
            for side in self._chosen.sides:
                self._show_row(link, direction, side)

    def _show_peak(self) -> None:
        peaks = [found["peak"] / 2**20 for (_, _, side), found in self._found.items() if side == "ours"]
        if peaks:
            print(
                f"Our peak memory is {max(peaks):.0f} MiB above an idle worker "
                f"(goal: at most {_GOAL_PEAK:g}, {verdict(met=max(peaks) <= _GOAL_PEAK)}).",
                flush=True,
            )

    def _show_row(self, link: str, direction: str, side: str) -> None:
        found = self._found[link, direction, side]
        ratio = self._ratio(link, direction, side) if side != "ours" else None
        goal = _GOALS.get((link, direction, side))
        said = f"{goal:g}{self._verdict(met=ratio >= goal)}" if ratio and goal else ""
        times = f"{ratio:.2f} x" if ratio else ""
        peak = f"{found['peak'] / 2**20:.0f}" if found["peak"] else ""
        speed, cpu = self._size / found["seconds"] / 1e6, found["cpu"] * 2**30 / self._size
        row = f"{found['seconds']:>9.2f}{speed:>8.0f}{times:>9}{said:>13}{cpu:>11.2f}{peak:>10}"
        print(f"{f'{link} {direction}':<20}{_SIDES[side]:<18}{row}", flush=True)

    def _end_to_end(self) -> dict[str, Any]:
        """An upload until the file is on the system: ours, and pyfirecrest's."""
        source, there = self._folder / "part", self._site.gateway.home / "file"
        size = min(self._size, _END_TO_END)
        cut(self._source, 0, size, source)
        ends, found = self._site.use("wan"), {}
        for side in ("ours", "sync"):
            found[side] = self._movers.move(ends, side, "end_to_end", source, there)
            if not filecmp.cmp(source, there, shallow=False):
                raise WrongError(f"end to end by {side}")
            self._site.clear()
            there.unlink()
        ours, theirs = found["ours"]["seconds"], found["sync"]["seconds"]
        share = ours / theirs
        print(
            f"End to end, {size / 1e6:.0f} MB up over the wan link: ours {ours:.1f} s, verified by "
            f"{found['ours']['verified']}; pyfirecrest {theirs:.1f} s.\n"
            f"Ours takes {share:.2f} times their time "
            f"(goal: at most {_GOAL_END_TO_END:g}{self._verdict(met=share <= _GOAL_END_TO_END)})."
        )
        return {
            "end_to_end_upload_over_pyfirecrest": theirs / ours,
            "end_to_end_ours_s": ours,
            "end_to_end_pyfirecrest_s": theirs,
        }


class Small:
    """Many small files: as a tree, and one by one."""

    def __init__(self, chosen: argparse.Namespace, site: Site, folder: Path) -> None:
        self._chosen, self._site, self._folder = chosen, site, folder
        self._movers = Movers(site, chosen.connections)
        self._names = [f"file{number:05d}" for number in range(chosen.files)]
        self._source = folder / "source"
        self._make_sources(chosen.file_size)

    def _make_sources(self, size: int) -> None:
        self._source.mkdir()
        dice = random.Random(1)
        table = "".join(f"{dice.gauss(0, 1):.6f}\n" for _ in range(size // 4 + 1)).encode()
        for name in self._names:
            start = dice.randrange(len(table) - size)
            (self._source / name).write_bytes(table[start : start + size])

    def run(self) -> dict[str, Any]:
        """Measure and print; gives what goes into the JSON file."""
        count, size = self._chosen.files, self._chosen.file_size
        told: dict[str, Any] = {"files": count, "file_size": size}
        print(f"{count} files of {size} bytes; file by file: {min(count, _SAMPLE)} of them, scaled")
        print(f"{'':<20}{'requests':>9}{'seconds':>9}{'against ours':>18}{'pyfirecrest':>18}")
        for link in self._chosen.links:
            for direction in _DIRECTIONS:
                seconds, requests = self._move(link, direction, "ours", "files")
                ours = self._move(link, direction, "ours", "each")[0] / seconds
                theirs = self._move(link, direction, "sync", "each")[0] / seconds
                rows = "".join(f"{f'{ratio:.1f} x faster':>18}" for ratio in (ours, theirs))
                good = verdict(met=requests <= _GOAL_REQUESTS and theirs >= _GOAL_FILES)
                print(f"{f'{link} {direction}':<20}{requests:>9}{seconds:>9.2f}{rows}  {good}", flush=True)
                told.setdefault(link, {})[direction] = {
                    "gateway_requests": requests,
                    "seconds": seconds,
                    "over_ours_file_by_file": ours,
                    "over_pyfirecrest_file_by_file": theirs,
                }
        print(f"Goals: at most {_GOAL_REQUESTS} requests, {_GOAL_FILES:g} x faster than file by file.")
        return told

    def _move(self, link: str, direction: str, side: str, how: str) -> tuple[float, int]:
        """Seconds for all files, and requests to the gateway."""
        names = self._names if how == "files" else self._names[:_SAMPLE]
        here, there = self._folder / "target", self._site.gateway.scratch / "tree"
        here.mkdir()
        if direction == "upload":
            there.mkdir()
        else:
            shutil.copytree(self._source, there)
        local, landed = (self._source, there) if direction == "upload" else (here, here)
        log, ends = self._site.gateway.requests, self._site.use(link)
        log.clear()
        figures = self._movers.move(ends, side, f"{direction}_{how}", local, there, names=names)
        requests = sum(one.operation not in ("token", "systems") for one in log)
        _, wrong, missing = filecmp.cmpfiles(self._source, landed, names, shallow=False)
        if wrong or missing:
            raise WrongError(f"{direction} of files by {side}")
        self._site.clear()
        for folder in (here, there):
            shutil.rmtree(folder)
        return figures["seconds"] * len(self._names) / len(names), requests


def roomy(size: int) -> Path:
    """A folder that is faster than any disk, if there is room for some copies of the file."""
    memory = Path("/dev/shm")
    with contextlib.suppress(OSError):
        told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(told["MemAvailable"].split()[0]) * 1024
        if min(available, shutil.disk_usage(memory).free) > 6 * size + 2**30:
            return memory
    return Path(tempfile.gettempdir())


def arguments() -> argparse.Namespace:
    def words(known: Any) -> Any:
        def split(text: str) -> list[str]:
            if not set(text.split(",")) <= set(known):
                raise argparse.ArgumentTypeError(f"any of {', '.join(known)}")
            return text.split(",")

        return split

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=size_of, default="1GiB", help="of the file: 64MiB, 1GiB")
    parser.add_argument("--files", type=int, default=0, help="measure so many small files instead")
    parser.add_argument("--file-size", type=size_of, default="10KiB", help="of each of them")
    parser.add_argument("--connections", type=int, default=4, help="of ours and of curl")
    parser.add_argument("--part-size", type=size_of, help="largest part that the gateway takes")
    parser.add_argument("--links", type=words(_LINKS), help="default: loopback,wan; above 2 GiB loopback")
    parser.add_argument("--sides", type=words(_SIDES), default=",".join(_SIDES), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="on loopback")
    parser.add_argument("--nap", type=float, default=_NAP, help="seconds between looks of an upload's job")
    parser.add_argument("--hollow", action="store_true", help="move zeros that the storage does not keep")
    parser.add_argument("--folder", type=Path, help="for all files (default: memory, if there is room)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    chosen = parser.parse_args()
    if not chosen.files:
        chosen.hollow = chosen.hollow or chosen.size > _HOLLOW_FROM
    chosen.links = chosen.links or (["loopback"] if chosen.hollow else list(_LINKS))
    # Enough parts for all connections, however small the file is.
    chosen.part_size = chosen.part_size or min(_LARGEST_PART, -(-chosen.size // 8))
    if "wire" in chosen.sides and not curl_is_there():
        print("There is no curl, so the wire is not measured.", file=sys.stderr)
        chosen.sides.remove("wire")
    return chosen


def main() -> int:
    chosen = arguments()
    # Whoever ends it early leaves no process and no file behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    base = chosen.folder or roomy(chosen.size)
    with tempfile.TemporaryDirectory(prefix="transfers-", dir=base) as name:
        folder = Path(name)
        try:
            with Site(folder, part_size=chosen.part_size, nap=chosen.nap, hollow=chosen.hollow) as site:
                told = (Small if chosen.files else Large)(chosen, site, folder).run()
        except WrongError as error:
            print(f"Wrong content: {error}.", file=sys.stderr)
            return 1
    if chosen.json:
        chosen.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
