"""Reading parts of a large file: it is staged out once, then ranges are fetched from the staging storage."""

from __future__ import annotations

import threading
import weakref

from . import files, transfers
from .arrival import check_transfer_job, given_up, needs_staging
from .errors import TransferError
from .files import Stat
from .retry import RetryPolicy
from .session import Client
from .storage import Fetched, Storage, UrlExpiredError
from .systems import System
from .terms import Wait

__all__ = ["StagedFile", "same_file"]


class StagedFile:
    """A file on a system of which any range can be read, as it was when it was first read; thread-safe.

    Nothing is asked for before the first read. The presigned URL is renewed when it has expired, if the file
    is still the same; connections to the storage close when nobody holds this any more.

    :param client: an open client
    :param system: the system
    :param path: absolute path there
    :param stat: how the file looks, links followed
    :param wait: waits for a job of this id and returns its last record
    :param account: account for the job that stages the file
    :param policy: when to try a range again
    """

    def __init__(
        self,
        client: Client,
        system: System,
        path: str,
        stat: Stat,
        *,
        wait: Wait,
        account: str | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        self.stat = stat
        self._client = client
        self._system = system
        self._path = path
        self._wait = wait
        self._account = account
        self._storage = Storage(trust=client.storage_trust, policy=policy)
        self._storage.__enter__()
        weakref.finalize(self, self._storage.__exit__, None, None, None)
        self._lock = threading.Lock()
        self._url: str | None = None
        self._tag: str | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._path} on {self._system.name}>"

    def read(self, start: int, end: int) -> bytes:
        """Read the bytes from ``start`` up to, and without, ``end``.

        :raises HpcError: the file cannot be staged, or changed since it was looked at
        """
        start, end = max(0, start), min(end, self.stat.size)
        if start >= end:
            return b""
        url = self._staged()
        try:
            return self._fetched(url, start, end)
        except UrlExpiredError:
            return self._fetched(self._renewed(url), start, end)

    def _fetched(self, url: str, start: int, end: int) -> bytes:
        content = bytearray()
        self._storage.fetch(
            url,
            start,
            end,
            what=f"read bytes {start} to {end - 1} of {self._path} from the staging storage",
            take=content.extend,
            etag=lambda: self._tag,
            seen=self._seen,
        )
        return bytes(content)

    def _seen(self, staged: Fetched) -> None:
        if staged.size is not None and staged.size != self.stat.size:
            raise TransferError(
                f"{self._path} had {self.stat.size} bytes when it was opened, and {staged.size} when it was "
                "staged.",
                transient=False,
            )
        self._tag = staged.etag

    def _staged(self) -> str:
        """The URL to read from; stages the file if there is none."""
        with self._lock:
            if self._url is None:
                self._url = self._stage()
            return self._url

    def _renewed(self, old: str) -> str:
        """A fresh URL, of the same content."""
        with self._lock:
            if self._url == old:  # else another thread was here
                now = self._client.send(files.stat(self._system.name, self._path, dereference=True))
                if not same_file(now, self.stat):
                    raise TransferError(f"{self._path} changed while it was read.", transient=False)
                self._url, self._tag = self._stage(), None
            return self._url or old

    def _stage(self) -> str:
        client, system, account = self._client, self._system, self._account
        limit = system.max_direct_download_bytes
        needs_staging(system, self._path, self.stat.size, what="downloads", limit=limit, account=account)
        call = transfers.start_download(system.name, self._path, account=account)
        plan = transfers.start_once(client, call)
        # When the reader has gone, nobody will fetch what the job stages.
        with given_up(client, plan.job, lambda _: True):
            ended = self._wait(plan.job.job_id)
        check_transfer_job(client, plan.job, ended)
        return plan.url


def same_file(one: Stat, other: Stat) -> bool:
    """Whether two looks saw the same content, as far as size, times and inode tell."""
    seen = [(look.device, look.inode, look.size, look.modified, look.changed) for look in (one, other)]
    return seen[0] == seen[1]
