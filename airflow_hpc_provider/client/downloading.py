"""Both halves of a download, and going on with an earlier try's."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from dataclasses import asdict, replace
from functools import partial

from . import files, transfers
from .arrival import (
    PERMISSIONS,
    Side,
    cancel_intended,
    cancel_transfer,
    check_transfer_job,
    compare_size,
    given_up,
    intent,
    learn_sum,
    leaves,
    needs_staging,
    remove_logs,
    verify,
)
from .calls import JSONObject
from .checkpoint import Journal
from .errors import InvalidInputError, TooLargeError, TransferError
from .files import Stat
from .jobs import Job
from .moving import Delivery, SpoiledError, fetch_ranges
from .places import Sink
from .progress import amount
from .spans import Spans
from .storage import UrlExpiredError
from .streamed import stream_down
from .systems import System
from .terms import Begun, Moved, Wait
from .transfers import DownloadPlan

__all__ = ["Download", "download_name"]

log = logging.getLogger(__name__)

# How often a new URL is asked for in place of an expired one.
_RENEWALS = 3


class Download:
    """Both halves of a download."""

    def __init__(self, side: Side, source: str, sink: Sink) -> None:
        self._side = side
        self._source = source
        self._sink = sink
        self._name = download_name(side.system, source, sink.name)
        self._journal = Journal(side.keeper, self._name)

    def begin(self, stat: Stat | None, wait: Wait | None) -> Moved | Begun:
        side, system = self._side, self._side.system
        stat = stat or side.client.send(files.stat(system.name, self._source, dereference=True))
        if stat.is_directory:
            raise InvalidInputError(
                "remote_path",
                f"{self._source} on system {system.name} is a directory; give the path of a file.",
            )
        if there := self._done_before(stat) or self._skips(stat, wait):
            return there
        if stat.size <= system.max_direct_download_bytes and (moved := self._direct(stat)):
            return moved
        limit = system.max_direct_download_bytes
        needs_staging(
            system,
            self._source,
            stat.size,
            what="downloads",
            limit=limit,
            account=side.account,
            streams=True,
        )
        adopted = self._adopted(stat)
        return self._streamed(stat) if system.transfer_method == "streamer" else adopted or self._stage(stat)

    def finish(self, begun: Begun, ended: Job, wait: Wait) -> Moved:
        side, sink = self._side, self._sink
        try:
            check_transfer_job(side.client, begun.job, ended)
            begun, digest = self._fetch(begun, wait)
            verified, seen = verify(side, self._source, begun.size, digest, wait=wait, staged=True)
            sink.commit(
                mode=seen.mode & PERMISSIONS if side.terms.preserve_mode else None,
                mtime=float(seen.modified) if side.terms.preserve_mtime else None,
            )
        except BaseException as error:
            if isinstance(error, SpoiledError) or side.abandon(error):
                self._discard()
            else:
                sink.leave()
            raise
        moved = Moved(path=self._source, size=begun.size, sha256=digest, staged=True, verified=verified)
        self._note_done(moved, seen)
        remove_logs(side.client, begun.job)
        return moved

    def _skips(self, stat: Stat, wait: Wait | None) -> Moved | None:
        """What is there already on this side, and can stay."""
        side, sink = self._side, self._sink
        if side.terms.if_exists == "overwrite" or (there := sink.existing()) is None:
            return None
        size, mtime = there
        same: list[str] = []

        def is_same() -> bool:
            if size != stat.size:
                return False
            remote, why = learn_sum(side, self._source, wait)
            if remote is None:
                log.info("Whether %s has the same content cannot be known: %s", self._source, why)
                return False
            digest = hashlib.sha256()
            for chunk in sink.read_existing():
                digest.update(chunk)
            same.append(digest.hexdigest())
            return same[0] == remote

        if not leaves(side.terms.if_exists, sink.name, mtime, float(stat.modified), is_same):
            return None
        verified = "sha256" if same else "none"
        sha256 = same[0] if same else None
        return Moved(
            path=self._source, size=size, sha256=sha256, staged=False, verified=verified, skipped=True
        )

    def _direct(self, stat: Stat) -> Moved | None:
        side, sink = self._side, self._sink
        try:
            content = side.client.send(files.download(side.system.name, self._source))
        except TooLargeError:
            return None
        digest = hashlib.sha256(content).hexdigest()
        compare_size(side.system, self._source, stat.size, len(content))
        verified = "size"
        if side.terms.verify == "always":
            verified, _ = verify(side, self._source, len(content), digest, wait=None, staged=False)
        try:
            sink.start(len(content))
            if content:
                sink.write_at(0, content)
            sink.commit(
                mode=stat.mode & PERMISSIONS if side.terms.preserve_mode else None,
                mtime=float(stat.modified) if side.terms.preserve_mtime else None,
            )
        except BaseException:
            sink.discard()
            raise
        moved = Moved(path=self._source, size=len(content), sha256=digest, staged=False, verified=verified)
        self._note_done(moved, stat)
        return moved

    def _streamed(self, stat: Stat) -> Moved:
        """All of it at once: a stream cannot be gone on with."""

        def note(begun: Begun | str) -> None:
            if isinstance(begun, str):
                self._journal.save({"phase": "intent"} | intent(begun))
            else:
                self._note(begun, Delivery(begun.size), None)

        try:
            moved = stream_down(self._side, self._source, stat, self._sink, name=self._name, note=note)
        except BaseException as error:
            if self._side.abandon(error):
                self._journal.forget()
            raise
        self._note_done(moved, stat)
        return moved

    def _stage(self, stat: Stat, delivery: Delivery | None = None) -> Begun:
        side = self._side
        call = transfers.start_download(side.system.name, self._source, account=side.account)
        plan: DownloadPlan = transfers.start_once(side.client, call)
        begun = Begun(
            job=plan.job,
            path=self._source,
            size=stat.size,
            modified=stat.modified,
            name=self._name,
            url=plan.url,
        )
        with given_up(side.client, plan.job, side.abandon, self._discard):
            log.info("Staging %s out: %s, job %s.", self._source, amount(stat.size), plan.job.job_id)
            self._journal.keep_urls(plan.job.job_id, [plan.url])
            if delivery is None:
                place, spans = self._left(begun)
                self._note(begun, Delivery(stat.size, spans), place)
            else:
                self._note(begun, delivery, self._sink.place)
        return begun

    def _adopted(self, stat: Stat) -> Begun | None:
        """The job of an earlier try, if it is any good."""
        about, ours = self._journal.load()
        if about is not None and about.get("phase") == "intent":
            cancel_intended(self._side.client, self._side.system, "download", about)
            self._journal.forget()
        begun = _begun_in(about)
        if begun is None:
            return None
        job = self._side.job_state(begun.job)
        urls = self._journal.urls(begun.job.job_id, 1)
        same = ours and (begun.size, begun.modified) == (stat.size, stat.modified)
        if same and urls and job is not None and (job.state.succeeded or not job.state.final):
            log.info("Going on with the download of an earlier try: job %s.", begun.job.job_id)
            return replace(begun, url=urls[0])
        if job is not None and not job.state.final:
            cancel_transfer(self._side.client, begun)
        if not same:
            self._discard()
        return None

    def _fetch(self, begun: Begun, wait: Wait) -> tuple[Begun, str]:
        """Fetch what is missing; where the URL has expired, let the file be staged once more."""
        side, sink = self._side, self._sink
        delivery = self._resumed(begun)
        for renewal in range(_RENEWALS + 1):
            url = begun.url or next(iter(self._journal.urls(begun.job.job_id, 1) or ()), None)
            if url is None:
                raise TransferError(f"Where {self._source} was staged to is not known any more.")
            there = delivery.spans.total
            log.info(
                "Fetching %s: %s over %d connections%s.",
                *(sink.name, amount(begun.size - there), side.terms.connections),
                f"; {amount(there)} are here already" if there else "",
            )
            try:
                return begun, fetch_ranges(
                    url,
                    sink,
                    delivery,
                    pace=side.pace,
                    trust=side.client.storage_trust,
                    saved=partial(self._save, begun, delivery),
                )
            except UrlExpiredError as error:
                if renewal == _RENEWALS:
                    raise
                log.warning("%s The file is staged once more; what is here already stays.", error)
                stat = side.client.send(files.stat(side.system.name, self._source, dereference=True))
                if (stat.size, stat.modified) != (begun.size, begun.modified):
                    raise TransferError(f"{self._source} changed while it was downloaded.") from error
                delivery.etag = None
                begun = self._stage(stat, delivery)
                with given_up(side.client, begun.job, side.abandon):
                    ended = wait(begun.job.job_id)
                check_transfer_job(side.client, begun.job, ended)
        raise AssertionError("unreachable")  # pragma: no cover

    def _left(self, begun: Begun) -> tuple[str | None, Spans]:
        """Where an earlier try left unfinished data of the same file, and what of it is there."""
        about, ours = self._journal.load()
        known = _begun_in(about)
        if about is None or known is None or not ours:
            return None, Spans()
        if (known.size, known.modified) != (begun.size, begun.modified):
            return None, Spans()
        place = about.get("place")
        try:
            return (place, Spans(about["spans"])) if isinstance(place, str) else (None, Spans())
        except (KeyError, TypeError, ValueError):
            return None, Spans()

    def _resumed(self, begun: Begun) -> Delivery:
        """Start the sink, with what an earlier try has left."""
        place, spans = self._left(begun)
        resumed = self._sink.start(begun.size, place)
        delivery = Delivery(begun.size, spans if resumed else Spans())
        about, _ = self._journal.load()
        known = _begun_in(about)
        if resumed and about is not None and known is not None and known.job.job_id == begun.job.job_id:
            etag = about.get("etag")
            delivery.etag = etag if isinstance(etag, str) else None
        self._note(begun, delivery, self._sink.place)
        return delivery

    def _save(self, begun: Begun, delivery: Delivery) -> None:
        """Write down how far it is: what is noted must be there even after a crash."""
        if self._side.keeper is not None:
            now = Delivery(delivery.size, Spans(delivery.spans.to_json()), delivery.etag)
            self._sink.sync()
            self._note(begun, now, self._sink.place)

    def _note(self, begun: Begun, delivery: Delivery, place: str | None) -> None:
        self._journal.save(
            {
                "phase": "fetching",
                "begun": begun.to_json(),
                "place": place,
                "spans": delivery.spans.to_json(),
                "etag": delivery.etag,
            }
        )

    def _note_done(self, moved: Moved, stat: Stat) -> None:
        """Where a file must not be there, a retry must know its own."""
        there = self._sink.existing() if self._side.terms.if_exists == "fail" else None
        self._journal.forget()
        if there is not None:
            seen = [stat.size, stat.modified, *there]
            self._journal.save({"phase": "done", "seen": seen, "moved": asdict(moved)})

    def _done_before(self, stat: Stat) -> Moved | None:
        """What an earlier try has moved, if it is still here and nobody has touched it, nor the source."""
        there = self._sink.existing() if self._side.terms.if_exists == "fail" else None
        if there is None:
            return None
        about, ours = self._journal.load()
        if not ours or about is None or about.get("seen") != [stat.size, stat.modified, *there]:
            return None
        log.info("%s is here, from an earlier try of this task.", self._sink.name)
        return Moved(**about["moved"])

    def _discard(self) -> None:
        """Remove what is unfinished, an earlier try's too, and what was written down about it."""
        about, _ = self._journal.load()
        place = (about or {}).get("place")
        if self._sink.place is None and isinstance(place, str):
            with contextlib.suppress(TransferError):
                self._sink.start(0, place)
        self._sink.discard()
        self._journal.forget()


def download_name(system: System, source: str, sink: str) -> str:
    """Under which a download is written down."""
    return f"down {system.name} {source} {sink}"


def _begun_in(about: JSONObject | None) -> Begun | None:
    """The transfer that was written down, if it can be read."""
    try:
        return Begun.from_json(about["begun"]) if about else None
    except (TypeError, KeyError, ValueError, AttributeError):
        return None
