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
    Identity,
    Side,
    cancel_intended,
    cancel_transfer,
    given_up,
    identity,
    intent,
    learn_sum,
    leaves,
    needs_staging,
    parent,
    remove_written,
    verify,
    wrote,
)
from .calls import JSONObject
from .checkpoint import Journal
from .errors import HpcError, InvalidInputError, TransferError
from .files import Stat
from .moving import send_parts
from .places import Source
from .progress import amount
from .storage import UrlExpiredError, expires_at
from .streamed import stream_up
from .systems import System
from .terms import Begun, Moved, Wait
from .transfers import UploadPlan
from .wake import wake

__all__ = ["Upload", "note_done", "upload_name"]

log = logging.getLogger(__name__)

_CHUNK = 1024 * 1024
# How often new URLs are asked for in place of expired ones.
_RENEWALS = 3
# URLs that are valid for less than so many seconds are worth a word.
_SHORT = 3600.0
# Bytes of a file's name on most file systems, and of the number that S3's last part adds to it (".10000").
_LONGEST_NAME = 255
_LONGEST_NUMBER = 6


class Upload:
    """The first half of an upload."""

    def __init__(self, side: Side, source: Source, target: str) -> None:
        self._side = side
        self._source = source
        self._target = target
        self._name = upload_name(side.system, source, target)
        self._journal = Journal(side.keeper, self._name)

    def begin(self, wait: Wait | None) -> Moved | Begun:
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
        # First what an earlier try has done: the file that is there may be of its making, and half of it.
        earlier = None if small and side.terms.if_exists != "fail" else self._earlier()
        if isinstance(earlier, Moved | Begun):
            return earlier
        there = None
        if earlier is None and (not small or side.terms.if_exists != "overwrite"):
            there = self._look()
            if there is not None and (skipped := self._skips(there, wait)):
                return skipped
        if small:
            return self._direct()
        if system.transfer_method == "streamer":
            return self._streamed()
        if earlier is not None:
            return self._staged(earlier, earlier.begun.before)
        return self._staged(None, identity(there) if there else None)

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

    def _skips(self, there: Stat, wait: Wait | None) -> Moved | None:
        source, side = self._source, self._side
        same: list[str] = []

        def is_same() -> bool:
            if there.size != source.size:
                return False
            remote, why = learn_sum(side, self._target, wait)
            if remote is None:
                log.info("Whether %s has the same content cannot be known: %s", self._target, why)
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
            verified, seen = verify(side, target, len(content), digest, wait=None, staged=False)
        except TransferError:
            side.client.send(files.remove(side.system.name, target, missing_ok=True))
            raise
        if side.terms.preserve_mode and self._source.mode is not None:
            side.client.send(files.change_mode(side.system.name, target, self._source.mode & PERMISSIONS))
        moved = Moved(path=target, size=len(content), sha256=digest, staged=False, verified=verified)
        if side.terms.if_exists == "fail":
            # A retry must know the file for its own.
            self._journal.save(self._about("done") | _told(moved, seen))
        return moved

    def _streamed(self) -> Moved:
        """All of it at once: a stream cannot be gone on with."""

        def note(begun: Begun | str) -> None:
            if isinstance(begun, str):
                self._journal.save(self._about("intent") | intent(begun))
            else:
                self._journal.save(self._about("stream", _Sent(begun=begun, part_size=0, count=0)))

        try:
            moved, seen = stream_up(self._side, self._source, self._target, name=self._name, note=note)
        except BaseException as error:
            if self._side.abandon(error):
                self._journal.forget()
            raise
        note_done(self._journal, moved, seen)
        return moved

    def _staged(self, sent: _Sent | None, before: Identity | None) -> Begun:
        """Send the parts.

        :param sent: what is there of an earlier try, to go on with
        :param before: what the upload replaces
        """
        for renewal in range(_RENEWALS + 1):
            try:
                return self._send(sent or self._start(before), again=sent is not None)
            except UrlExpiredError as error:
                if renewal == _RENEWALS:
                    raise
                # Only whoever signed the URLs can sign others, and the gateway does so for new uploads only.
                log.warning("%s The storage takes no more parts of this upload: it starts over.", error)
                self._journal.forget()
                sent = None
        raise AssertionError("unreachable")  # pragma: no cover

    def _earlier(self) -> Moved | Begun | _Sent | None:
        """What an earlier try of this task has done, as far as one can go on with it; the rest is removed."""
        about, ours = self._journal.load()
        if about is None:
            return None
        side, phase = self._side, about.get("phase")
        wanted = (self._source.fingerprint(), self._target, side.system.name)
        same = ours and (about.get("source"), about.get("target"), about.get("system")) == wanted
        if phase == "done":
            return _done_before(side.stat(self._target), about) if same else None
        if phase == "intent":
            cancel_intended(side.client, side.system, "upload", about)
            self._journal.forget()
            return None
        sent = _Sent.from_json(about)
        return self._continued(sent, phase if same else None) if sent else None

    def _continued(self, sent: _Sent, phase: Any) -> Begun | _Sent | None:
        """An earlier try's upload, if it is any good; else it is called off.

        :param phase: how far it was; None of what is not to be gone on with
        """
        side, begun = self._side, sent.begun
        job = side.job_state(begun.job)
        alive, succeeded = job is not None and not job.state.final, job is not None and job.state.succeeded
        tags = self._journal.tags(begun.job.job_id, sent.count)
        if phase == "joined" and (alive or succeeded):
            log.info("Job %s of an earlier try has all of %s.", begun.job.job_id, self._source.name)
            return begun
        if phase == "parts" and alive:
            urls = self._journal.urls(begun.job.job_id, sent.count + 1)
            if urls is not None:
                log.info(
                    "Going on with an earlier try: %d of %d parts of %s are uploaded, job %s waits.",
                    *(len(tags), sent.count, self._source.name, begun.job.job_id),
                )
                return replace(sent, urls=urls, tags=tags)
        if alive:
            cancel_transfer(side.client, begun)
        # Before all its parts were there, the job had nothing to write.
        complete = begun.sha256 is not None or len(tags) == sent.count
        if begun.landing or (complete and not succeeded and (alive or wrote(side, begun, job))):
            remove_written(side, begun)
        self._journal.forget()
        return None

    def _send(self, sent: _Sent, *, again: bool) -> Begun:
        side, source, terms = self._side, self._source, self._side.terms
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
                again=again,
                saved=partial(self._journal.keep_tags, sent.begun.job.job_id),
            )
            begun = replace(sent.begun, sha256=digest)
            self._journal.save(self._about("joined", replace(sent, begun=begun)))
            if terms.wake:
                log.info("%s", wake(side.client, side.system, begun.job.job_id))
            return begun

    def _start(self, before: Identity | None) -> _Sent:
        side, source = self._side, self._source
        path, landing = self._target, None
        # The job writes pieces beside its target, whose names are longer.
        if side.terms.atomic or len(path.rpartition("/")[2].encode()) > _LONGEST_NAME - _LONGEST_NUMBER:
            path = landing = f"{parent(path).rstrip('/')}/{_hidden(path)}"
        call = transfers.start_upload(side.system.name, path, source.size, account=side.account)
        # A job whose id nobody has learned would wait for its data until its time limit.
        self._journal.save(self._about("intent") | intent(path))
        try:
            plan: UploadPlan = transfers.start_once(side.client, call)
        except HpcError as error:
            if not error.ambiguous:
                self._journal.forget()
            raise
        begun = Begun(
            job=plan.job,
            path=self._target,
            size=source.size,
            landing=landing,
            before=before,
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
            # First the job, which another try must cancel if it finds no URLs.
            self._journal.save(self._about("parts", sent))
            until = expires_at(plan.complete_url)
            if until is not None and until - time.time() < _SHORT:
                log.info("The storage takes parts for %d s.", until - time.time())
            if not self._journal.keep_urls(plan.job.job_id, sent.urls) and side.keeper is not None:
                log.info("There is no Fernet key to keep the upload's URLs with: a retry would start over.")
        return sent

    def _given_up(self, sent: _Sent) -> contextlib.AbstractContextManager[None]:
        side = self._side

        def clean() -> None:
            # Before all its parts are there, the job has nothing to write.
            if len(sent.tags) == sent.count:
                remove_written(side, sent.begun)
            self._journal.forget()

        return given_up(side.client, sent.begun.job, side.abandon, clean)

    def _about(self, phase: str, sent: _Sent | None = None) -> JSONObject:
        return {
            "phase": phase,
            "source": self._source.fingerprint(),
            "target": self._target,
            "system": self._side.system.name,
        } | (sent.to_json() if sent else {})


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


def upload_name(system: System, source: Source, target: str) -> str:
    """Under which an upload is written down."""
    return f"up {system.name} {source.name} {target}"


def note_done(journal: Journal, moved: Moved, seen: Stat) -> None:
    """Of several files of one task, a retry need not move those again that are there."""
    about, ours = journal.load()
    if about is None or not ours or "source" not in about:
        return
    known = {key: about[key] for key in ("source", "target", "system")}
    journal.save(known | {"phase": "done"} | _told(moved, seen))
    journal.forget_pages()


def _told(moved: Moved, seen: Stat) -> JSONObject:
    """What a record says of a file that is there."""
    return {"seen": list(identity(seen)), "moved": asdict(moved)}


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
