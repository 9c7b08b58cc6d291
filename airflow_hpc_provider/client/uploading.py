"""The first half of an upload: directly, or the parts to the storage; and going on with an earlier try's."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from . import files, transfers
from .arrival import (
    PERMISSIONS,
    Side,
    cancel_transfer,
    given_up,
    identity,
    leaves,
    needs_staging,
    parent,
    verify,
)
from .calls import JSONObject
from .checkpoint import Journal
from .errors import InvalidInputError, TransferError
from .files import Stat
from .moving import send_parts
from .places import Source
from .progress import amount
from .storage import UrlExpiredError, expires_at
from .streamed import clear, stream_up
from .terms import Begun, Moved
from .transfers import UploadPlan
from .wake import wake

__all__ = ["Upload", "note_done"]

log = logging.getLogger(__name__)

_CHUNK = 1024 * 1024
# How often new URLs are asked for in place of expired ones.
_RENEWALS = 3
# URLs that are valid for less than so many seconds are worth a word.
_SHORT = 3600.0


class Upload:
    """The first half of an upload."""

    def __init__(self, side: Side, source: Source, target: str) -> None:
        self._side = side
        self._source = source
        self._target = target
        self._name = f"up {side.system.name} {source.name} {target}"
        self._journal = Journal(side.keeper, self._name)

    def begin(self) -> Moved | Begun:
        side, size, system = self._side, self._source.size, self._side.system
        small = size <= system.max_direct_bytes
        if not small:
            needs_staging(
                system,
                self._source.name,
                size,
                what="uploads",
                limit=system.max_direct_bytes,
                account=side.account,
                streams=True,
            )
        there = None
        if not small or side.terms.if_exists != "overwrite":
            there = self._look()
        if there is not None and (skipped := self._skips(there)):
            return skipped
        if small:
            return self._direct()
        return self._streamed(there) if system.transfer_method == "streamer" else self._staged(there)

    def _look(self) -> Stat | None:
        """What is there. A transfer job may end well without a place to put the file."""
        side = self._side
        there = side.stat(self._target)
        if there is None:
            side.client.send(files.stat(side.system.name, parent(self._target), dereference=True))
        elif there.is_directory:
            raise InvalidInputError(
                "remote_path",
                f"{self._target} on system {side.system.name} is a directory; "
                "give the path of the file to make.",
            )
        return there

    def _skips(self, there: Stat) -> Moved | None:
        source, side = self._source, self._side
        same: list[str] = []

        def is_same() -> bool:
            if there.size != source.size:
                return False
            remote = side.checksum(self._target)
            if remote is None:
                return False
            same.append(_digest_of(source))
            return same[0] == remote

        where = f"{self._target} on system {side.system.name}"
        if not leaves(side.terms.if_exists, where, there.modified, source.mtime, is_same):
            return None
        if side.terms.if_exists == "verify":
            return Moved(
                path=self._target,
                size=there.size,
                sha256=same[0],
                staged=False,
                verified="sha256",
                skipped=True,
            )
        return Moved(
            path=self._target, size=there.size, sha256=None, staged=False, verified="none", skipped=True
        )

    def _direct(self) -> Moved:
        side, target = self._side, self._target
        content = self._source.read_at(0, self._source.size)
        while len(content) < self._source.size:
            more = self._source.read_at(len(content), self._source.size - len(content))
            if not more:
                raise TransferError(f"{self._source.name} became shorter while it was read.", transient=False)
            content += more
        self._source.check()
        digest = hashlib.sha256(content).hexdigest()
        directory, name = parent(target), target.rpartition("/")[2]
        side.client.send(files.upload(side.system.name, directory, name, content))
        try:
            verified, _ = verify(side, target, len(content), digest, wait=None, staged=False)
        except TransferError:
            side.client.send(files.remove(side.system.name, target, missing_ok=True))
            raise
        if side.terms.preserve_mode and self._source.mode is not None:
            side.client.send(files.change_mode(side.system.name, target, self._source.mode & PERMISSIONS))
        return Moved(path=target, size=len(content), sha256=digest, staged=False, verified=verified)

    def _streamed(self, there: Stat | None) -> Moved:
        """All of it at once: of a stream of an earlier try nothing can be gone on with."""
        about, _ = self._journal.load()
        broken = _Sent.from_json(about) if about and about.get("phase") == "stream" else None
        if broken is not None:
            clear(self._side, broken.begun)
        earlier = self._earlier(there)
        if isinstance(earlier, Moved):
            return earlier

        def note(begun: Begun) -> None:
            self._journal.save(self._about("stream", _Sent(begun=begun, part_size=0, count=0)))

        try:
            moved, seen = stream_up(self._side, self._source, self._target, name=self._name, note=note)
        except BaseException as error:
            if self._side.abandon(error):
                self._journal.forget()
            raise
        note_done(self._journal, moved, seen)
        return moved

    def _staged(self, there: Stat | None) -> Moved | Begun:
        for renewal in range(_RENEWALS + 1):
            earlier = self._earlier(there)
            if isinstance(earlier, Moved | Begun):
                return earlier
            try:
                return self._send(there, earlier)
            except UrlExpiredError as error:
                if renewal == _RENEWALS:
                    raise
                # Only whoever signed the URLs can sign others, and the gateway does so for new uploads only.
                log.warning("%s The storage takes no more parts of this upload: it starts over.", error)
                self._journal.forget()
        raise AssertionError("unreachable")  # pragma: no cover

    def _earlier(self, there: Stat | None) -> Moved | Begun | _Sent | None:
        """What an earlier try of this task has done, as far as one can go on with it."""
        about, ours = self._journal.load()
        if about is None:
            return None
        side = self._side
        wanted = (self._source.fingerprint(), self._target, side.system.name)
        same = ours and (about.get("source"), about.get("target"), about.get("system")) == wanted
        if about.get("phase") == "done":
            return _done_before(there, about) if same else None
        sent = _Sent.from_json(about)
        if sent is None:
            return None
        job = side.job_state(sent.begun.job)
        if same and job is not None:
            if about["phase"] == "joined" and (job.state.succeeded or not job.state.final):
                log.info("Job %s of an earlier try has all of %s.", job.job_id, self._source.name)
                return sent.begun
            if about["phase"] == "parts" and not job.state.final:
                urls = self._journal.urls(job.job_id, sent.count + 1)
                if urls is not None:
                    tags = self._journal.tags(job.job_id, sent.count)
                    log.info(
                        "Going on with an earlier try: %d of %d parts of %s are uploaded, job %s waits.",
                        *(len(tags), sent.count, self._source.name, job.job_id),
                    )
                    return replace(sent, urls=urls, tags=tags)
        if job is not None and not job.state.final:
            cancel_transfer(side.client, sent.begun)
        self._journal.forget()
        return None

    def _send(self, there: Stat | None, earlier: _Sent | None) -> Begun:
        side, source, terms = self._side, self._source, self._side.terms
        sent = earlier or self._start(there)
        with self._given_up(sent):
            log.info(
                "Staging %s in: %s in %d parts of %s over %d connections, job %s.",
                *(self._target, amount(source.size), sent.count, amount(sent.part_size)),
                *(min(terms.connections, sent.count), sent.begun.job.job_id),
            )
            digest = send_parts(
                source,
                sent.urls[:-1],
                part_size=sent.part_size,
                complete_url=sent.urls[-1],
                tags=sent.tags,
                pace=side.pace,
                trust=side.client.storage_trust,
                again=earlier is not None,
                saved=partial(self._journal.keep_tags, sent.begun.job.job_id),
            )
            begun = replace(sent.begun, sha256=digest)
            self._journal.save(self._about("joined", replace(sent, begun=begun)))
            if terms.wake:
                log.info("%s", wake(side.client, side.system, begun.job.job_id))
            return begun

    def _start(self, there: Stat | None) -> _Sent:
        side, source = self._side, self._source
        landing = f"{parent(self._target).rstrip('/')}/{_hidden(self._target)}" if side.terms.atomic else None
        call = transfers.start_upload(
            side.system.name, landing or self._target, source.size, account=side.account
        )
        plan: UploadPlan = transfers.start_once(side.client, call)
        begun = Begun(
            job=plan.job,
            path=self._target,
            size=source.size,
            landing=landing,
            before=identity(there) if there is not None and landing is None else None,
            mode=source.mode if side.terms.preserve_mode else None,
            parts=len(plan.part_urls),
            name=self._name,
        )
        sent = _Sent(
            begun=begun,
            part_size=plan.part_size,
            count=len(plan.part_urls),
            urls=[*plan.part_urls, plan.complete_url],
        )
        with self._given_up(sent):
            until = expires_at(plan.complete_url)
            if until is not None and until - time.time() < _SHORT:
                log.info("The storage takes parts for %d s.", until - time.time())
            # First the URLs: a record without them could not be gone on with.
            if not self._journal.keep_urls(plan.job.job_id, sent.urls) and side.keeper is not None:
                log.info("There is no Fernet key to keep the upload's URLs with: a retry would start over.")
            self._journal.save(self._about("parts", sent))
        return sent

    def _given_up(self, sent: _Sent) -> contextlib.AbstractContextManager[None]:
        side = self._side
        return given_up(side.client, sent.begun.job, side.abandon, self._journal.forget)

    def _about(self, phase: str, sent: _Sent) -> JSONObject:
        return {
            "phase": phase,
            "source": self._source.fingerprint(),
            "target": self._target,
            "system": self._side.system.name,
            **sent.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """An upload's parts: where they go, and which are there. The last URL joins them."""

    begun: Begun
    part_size: int
    count: int
    urls: list[str] = field(default_factory=list, repr=False)
    tags: dict[int, str] = field(default_factory=dict)

    def to_json(self) -> JSONObject:
        return {"begun": self.begun.to_json(), "part_size": self.part_size, "count": self.count}

    @classmethod
    def from_json(cls, plain: Any) -> _Sent | None:
        try:
            begun = Begun.from_json(plain["begun"])
            return cls(begun=begun, part_size=int(plain["part_size"]), count=int(plain["count"]))
        except (TypeError, KeyError, ValueError, AttributeError):
            return None


def note_done(journal: Journal, moved: Moved, seen: Stat) -> None:
    """Of several files of one task, a retry need not move those again that are there."""
    about, ours = journal.load()
    if about is None or not ours or "source" not in about:
        return
    known = {key: about[key] for key in ("source", "target", "system")}
    journal.save(known | {"phase": "done", "seen": list(identity(seen)), "moved": asdict(moved)})
    journal.forget_pages()


def _done_before(there: Stat | None, about: JSONObject) -> Moved | None:
    """What an earlier try has moved, if it is still there and nobody has touched it."""
    if there is None or list(identity(there)) != about.get("seen"):
        return None
    try:
        moved = Moved(**about["moved"])
    except (TypeError, KeyError):
        return None
    log.info("%s is there, from an earlier try of this task.", moved.path)
    return moved


def _digest_of(source: Source) -> str:
    digest, at = hashlib.sha256(), 0
    while chunk := source.read_at(at, _CHUNK):
        digest.update(chunk)
        at += len(chunk)
    return digest.hexdigest()


def _hidden(path: str) -> str:
    """A temporary name beside a path."""
    name = path.rpartition("/")[2].encode()[:100].decode(errors="ignore")
    return f".{name}.{secrets.token_hex(4)}.part"
