"""Where ``transfers.py`` moves files to: a gateway with a fast storage, the links there, and ``curl``."""

import contextlib
import itertools
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from airflow_hpc_provider.client import jobs, transfers
from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.session import Client
from airflow_hpc_provider.devgateway import Gateway

_HERE = Path(__file__).parent
# Bytes per second of a connection, and seconds there and back.
_RATE, _ROUND_TRIP = 25e6, 0.03


class WrongError(Exception):
    """What came is not what was sent."""


@contextlib.contextmanager
def helper(script: str, *words: str) -> Iterator[str]:
    """A process of its own that serves for as long as the block runs; gives its URL."""
    command = [sys.executable, "-I", str(_HERE / script), *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass(frozen=True)
class Link:
    """The near end of a link.

    :param gateway: URL of the gateway
    :param storage: URL of its storage
    """

    gateway: str
    storage: str


class Site:
    """A gateway with its storage, and the links that lead there.

    :param folder: for all that it keeps
    :param part_size: bytes of a part of an upload at the most
    :param nap: seconds between two looks of an upload's job for its object
    :param hollow: keep the length of what is uploaded only
    """

    def __init__(self, folder: Path, *, part_size: int, nap: float, hollow: bool) -> None:
        self._stack = contextlib.ExitStack()
        self.hollow = hollow
        self._storage = self._stack.enter_context(
            helper("_s3.py", str(folder), *(["--hollow"] if hollow else []))
        )
        root = folder / "gateway"
        root.mkdir()
        self.gateway = Gateway(
            root, scheduler="local", max_part_size=part_size, ingress_poll=nap, token_lifetime=86400
        )
        # The URLs are the gateway's, what they lead to is not: its own storage is made for tests.
        self.gateway.storage.private_url = self._storage
        # Job ids are as unlike those of other gateways on this machine as those of two clusters' nodes are:
        # naps are ended by them.
        self.gateway.scheduler._ids = itertools.count(random.randrange(10**6, 10**8))
        self._stack.enter_context(self.gateway)
        self.token = self.gateway.access_token()
        self._links = {
            "loopback": Link(self.gateway.url, self._storage),
            "wan": Link(self._relay(self.gateway.url), self._relay(self._storage)),
        }

    def _relay(self, url: str) -> str:
        port = url.rpartition(":")[2]
        words = [port, "--rate", f"{_RATE}", "--round-trip", f"{_ROUND_TRIP}"]
        return self._stack.enter_context(helper("_links.py", *words))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def use(self, link: str) -> Link:
        """Sign URLs that lead over this link from now on."""
        self.gateway.storage.public_url = self._links[link].storage
        return self._links[link]

    def clear(self) -> None:
        """Let no job wait, and empty the storage."""
        for record in self.gateway.scheduler.records():
            if record.state in ("PENDING", "RUNNING"):
                self.gateway.scheduler.cancel(record.job_id)
        with urllib.request.urlopen(urllib.request.Request(f"{self._storage}/", method="DELETE")):
            pass

    def client(self) -> Client:
        """A client of the harness itself, by the shortest way."""
        return Client(self.gateway.url, AccessToken(self.gateway.url, self.token))


class Wire:
    """``curl`` on presigned URLs.

    :param folder: for what it sends and fetches
    :param source: the file
    :param connections: how many at once
    """

    def __init__(self, site: Site, folder: Path, source: Path, connections: int) -> None:
        self._site, self._folder, self._source = site, folder, source
        self._connections = connections
        self._size = source.stat().st_size

    def upload(self, remote: Path) -> dict[str, float]:
        with self._site.client() as client:
            plan = client.send(transfers.start_upload(self._site.gateway.system, str(remote), self._size))
        spans = transfers.parts(self._size, plan.part_size)
        files = [self._part(index, *span) for index, span in enumerate(spans)]
        heads = [self._folder / f"head.{index}" for index in range(len(spans))]
        requests = [
            {
                "url": url,
                "upload-file": str(file),
                "dump-header": str(head),
                "output": os.devnull,
                # Without asking first whether the body is wanted.
                "header": "Expect:",
            }
            for url, file, head in zip(plan.part_urls, files, heads, strict=True)
        ]
        try:
            with self._metered() as figures:
                self._curl(requests)
                self._complete(plan.complete_url, [_tag(head) for head in heads])
        finally:
            for file in [*files, *heads]:
                file.unlink(missing_ok=True)
        return figures

    def _part(self, index: int, offset: int, length: int) -> Path:
        """A file with one part, since ``curl`` sends whole files only."""
        file = self._folder / f"part.{index}"
        if self._site.hollow:
            with file.open("wb") as target:
                target.truncate(length)
        else:
            cut(self._source, offset, length, file)
        return file

    def _complete(self, url: str, tags: list[str]) -> None:
        rows = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>"
            for number, tag in enumerate(tags, start=1)
        )
        body = f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()
        with urllib.request.urlopen(url, data=body, timeout=60):
            pass

    def download(self, remote: Path) -> dict[str, float]:
        with self._site.client() as client:
            plan = client.send(transfers.start_download(self._site.gateway.system, str(remote)))
            while not client.send(jobs.get(plan.job.system, plan.job.job_id)).state.final:
                time.sleep(0.1)
        each = -(-self._size // self._connections)
        starts = range(0, self._size, each)
        files = [self._folder / f"range.{index}" for index in range(len(starts))]
        requests = [
            {"url": plan.url, "range": f"{start}-{min(start + each, self._size) - 1}", "output": str(file)}
            for start, file in zip(starts, files, strict=True)
        ]
        try:
            with self._metered() as figures:
                self._curl(requests)
            if sum(file.stat().st_size for file in files) != self._size:
                raise WrongError("the wire's ranges have another size")
        finally:
            for file in files:
                file.unlink(missing_ok=True)
        return figures

    @contextlib.contextmanager
    def _metered(self) -> Iterator[dict[str, float]]:
        figures: dict[str, float] = {}
        cpu, began = _cpu_of_children(), time.monotonic()
        yield figures
        figures |= {"seconds": time.monotonic() - began, "cpu": _cpu_of_children() - cpu}

    def _curl(self, requests: list[dict[str, str]]) -> None:
        # The URLs are credentials: no list of processes shows them.
        lines = ["parallel", "parallel-immediate", f"parallel-max = {self._connections}", "no-progress-meter"]
        for number, options in enumerate(requests):
            lines += ["next"] if number else []
            lines += ["fail", *(f'{name} = "{value}"' for name, value in options.items())]
        subprocess.run(["curl", "--config", "-"], input="\n".join(lines), text=True, check=True)


def cut(source: Path, offset: int, length: int, target: Path) -> None:
    """Copy a piece of a file."""
    with source.open("rb") as taken, target.open("wb") as made:
        taken.seek(offset)
        while length:
            block = taken.read(min(length, 1024 * 1024))
            made.write(block)
            length -= len(block)


def curl_is_there() -> bool:
    return shutil.which("curl") is not None


def _tag(head: Path) -> str:
    found = re.search(r"^ETag: (\S+)", head.read_text(), re.IGNORECASE | re.MULTILINE)
    if not found:
        raise WrongError("the wire got no tag for a part")
    return found[1]


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
