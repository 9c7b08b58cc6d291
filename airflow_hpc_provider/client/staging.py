"""Moving a file to or from a system: directly if it is small, else staged through S3; verified, continued.

A staged transfer has two halves with a job of the system between them, and each may be another process's:
``begin_upload`` moves the bytes to the storage, the job writes them to the system, ``finish_upload`` looks
whether they arrived; ``begin_download`` lets the job stage the file, ``finish_download`` fetches it.
``upload_file`` and ``download_file`` do both and wait between them. Where a system has the streamer in place
of S3, there are no halves: what begins such a transfer ends it, too.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

from . import files
from .arrival import (
    Side,
    cancel_intended,
    cancel_transfer,
    check_transfer_job,
    given_up,
    identity,
    move,
    remove_logs,
    remove_written,
    sweep,
    until_over,
    verify,
)
from .checkpoint import Journal, Keeper
from .choices import HIDDEN
from .downloading import Download
from .errors import HpcError, NotFoundError, TransferError
from .files import Stat
from .jobs import Job
from .moving import Pace
from .paths import remote_path
from .places import LocalSink, LocalSource, Sink, Source
from .session import Client
from .systems import System
from .terms import Abandon, Begun, IfExists, Moved, Terms, Verify, Wait
from .uploading import Upload, note_done

__all__ = [
    "Abandon",
    "Begun",
    "IfExists",
    "Means",
    "Moved",
    "Pace",
    "Terms",
    "Verify",
    "Wait",
    "begin_download",
    "begin_upload",
    "cancel_transfer",
    "download_file",
    "end_earlier",
    "finish_download",
    "finish_upload",
    "remove_hidden",
    "remove_unfinished",
    "remove_workspace",
    "upload_file",
]

log = logging.getLogger(__name__)

_PERMISSIONS = 0o777


def _always(_: BaseException) -> bool:
    return True


class Means(TypedDict, total=False):
    """Keywords that all functions here take.

    :param account: account for the transfer job of a large file
    :param terms: how
    :param keeper: where a large transfer is written down, so that another process can go on with it
    :param abandon: asked when a kill ends the transfer, or any error the fetching of a staged file or the end
        of an atomic upload: whether to cancel its job and remove what is unfinished; else both are left for
        another try. Other errors do that unasked, and a copy that is not what was sent never stays
    :param pace: how fast, and whom to tell; its ``connections`` are those of ``terms``
    """

    account: str | None
    terms: Terms | None
    keeper: Keeper | None
    abandon: Abandon
    pace: Pace | None


def upload_file(
    client: Client, system: System, source: Source | Path, target: str, *, wait: Wait, **means: Unpack[Means]
) -> Moved:
    """Copy a file to a system.

    :param source: what to copy; closed at the end
    :param target: absolute path of the file to make; its directory must be there
    :param wait: waits for a job of this id and returns its last record
    :param means: see :class:`Means`
    :raises InvalidInputError: the local file is none, or too large for a system without staging
    :raises TransferError: what arrived is not what was sent
    """
    begun = begin_upload(client, system, source, target, wait=wait, **means)
    if isinstance(begun, Moved):
        return begun
    clean = partial(remove_unfinished, client, system, begun, keeper=means.get("keeper"))
    with given_up(client, begun.job, means.get("abandon", _always), clean):
        ended = wait(begun.job.job_id)
    return finish_upload(client, system, begun, ended, wait=wait, **means)


def begin_upload(
    client: Client,
    system: System,
    source: Source | Path,
    target: str,
    *,
    wait: Wait | None = None,
    **means: Unpack[Means],
) -> Moved | Begun:
    """Bring the bytes on their way: to the system if they are few, else to the storage.

    Other parameters are those of :func:`upload_file`.

    :param wait: waits for a job that compares what is there already; None to do without
    :return: what was moved, if nothing is left to do; else what to wait for
    """
    path = remote_path(target, "remote_path")
    side = _side(client, system, **means)
    opened = LocalSource(source) if isinstance(source, Path) else source
    with contextlib.closing(opened):
        return Upload(side, opened, path).begin(wait)


def finish_upload(
    client: Client, system: System, begun: Begun, ended: Job, *, wait: Wait, **means: Unpack[Means]
) -> Moved:
    """Look whether the job has written what was sent; a bad copy is removed.

    :param begun: what :func:`begin_upload` gave, perhaps to another process
    :param ended: last record of its job
    :param wait: waits for another job that this may need
    :param means: see :class:`Means`
    """
    side = _side(client, system, **means)
    journal = Journal(side.keeper, begun.name)
    try:
        check_transfer_job(client, begun.job, ended)
        verified, seen = _arrived(side, begun, wait)
    except BaseException as error:
        # Other errors leave open whether the copy is good: another try will look again. Without one, what has
        # not come under its name would be litter.
        if isinstance(error, TransferError | NotFoundError) or (begun.landing and side.abandon(error)):
            sweep(side, begun)
            journal.forget()
        raise
    if begun.mode is not None:
        client.send(files.change_mode(system.name, begun.path, begun.mode & _PERMISSIONS))
    moved = Moved(path=begun.path, size=begun.size, sha256=begun.sha256, staged=True, verified=verified)
    note_done(journal, moved, seen)
    remove_logs(client, begun.job)
    return moved


def _arrived(side: Side, begun: Begun, wait: Wait) -> tuple[str, Stat]:
    """Verify what an upload's job has written, and let it appear under its name.

    :return: what was compared, and the file as it is
    """
    digest = begun.sha256 or ""
    if begun.landing is None:
        return verify(side, begun.path, begun.size, digest, wait=wait, staged=True)
    try:
        verified, _ = verify(side, begun.landing, begun.size, digest, wait=wait, staged=True)
    except NotFoundError:
        # An earlier try may have moved it, and have died before it knew.
        there = side.stat(begun.path)
        if there is None or identity(there) == begun.before:
            raise
        log.info("%s was moved to its place by an earlier try.", begun.path)
        return verify(side, begun.path, begun.size, digest, wait=wait, staged=True)
    return verified, move(side, begun, wait)


def download_file(
    client: Client, system: System, source: str, sink: Sink | Path, *, wait: Wait, **means: Unpack[Means]
) -> Moved:
    """Copy a file from a system; it appears under its name when it is complete and verified.

    :param source: absolute path on the system
    :param sink: where it goes to; of a path, the directory must be there
    :param wait: waits for a job of this id and returns its last record
    :param means: see :class:`Means`
    :raises NotFoundError: there is no such file
    :raises TransferError: what arrived is not what is there
    """
    target = LocalSink(sink) if isinstance(sink, Path) else sink
    begun = begin_download(client, system, source, target, wait=wait, **means)
    if isinstance(begun, Moved):
        return begun
    with given_up(client, begun.job, means.get("abandon", _always)):
        ended = wait(begun.job.job_id)
    return finish_download(client, system, begun, ended, target, wait=wait, **means)


def begin_download(
    client: Client,
    system: System,
    source: str,
    sink: Sink | Path,
    *,
    stat: Stat | None = None,
    wait: Wait | None = None,
    **means: Unpack[Means],
) -> Moved | Begun:
    """Fetch a small file; let a job stage a large one.

    Other parameters are those of :func:`download_file`.

    :param stat: how the file looks, if that was asked just now
    :param wait: see :func:`begin_upload`
    :return: what was moved, if nothing is left to do; else what to wait for
    """
    path = remote_path(source, "remote_path")
    side = _side(client, system, **means)
    return Download(side, path, LocalSink(sink) if isinstance(sink, Path) else sink).begin(stat, wait)


def finish_download(
    client: Client,
    system: System,
    begun: Begun,
    ended: Job,
    sink: Sink | Path,
    *,
    wait: Wait,
    **means: Unpack[Means],
) -> Moved:
    """Fetch what the job has staged, verify it, and let it appear under its name.

    :param begun: what :func:`begin_download` gave, perhaps to another process
    :param ended: last record of its job
    :param wait: waits for another job that this may need
    :param means: see :class:`Means`
    """
    side = _side(client, system, **means)
    target = LocalSink(sink) if isinstance(sink, Path) else sink
    return Download(side, begun.path, target).finish(begun, ended, wait)


def remove_unfinished(client: Client, system: System, begun: Begun, *, keeper: Keeper | None = None) -> None:
    """Remove what the cancelled job of an upload has written; what was there before stays.

    :param begun: the upload
    :param keeper: where it was written down, to be forgotten
    """
    remove_written(_side(client, system), begun)
    Journal(keeper, begun.name).forget()


def remove_workspace(client: Client, system: System, job_id: str, workspace: str) -> None:
    """Remove the directory that a cancelled job of a tree worked in.

    :param job_id: id of the job
    :param workspace: absolute path of the directory
    """
    until_over(client, system.name, job_id)
    remove_hidden(client, system, workspace)


def end_earlier(client: Client, system: System, keeper: Keeper | None, name: str) -> None:
    """End a transfer of an earlier try that nobody can go on with, and forget it.

    :param name: under which it is written down
    """
    journal = Journal(keeper, name)
    about, _ = journal.load()
    if about is None:
        return
    if about.get("phase") == "intent":
        cancel_intended(client, system, "upload" if name.startswith("up ") else "download", about)
    with contextlib.suppress(TypeError, KeyError, ValueError, AttributeError):
        begun = Begun.from_json(about["begun"])
        if about.get("phase") != "done":
            cancel_transfer(client, begun)
    journal.forget()


def remove_hidden(client: Client, system: System, path: str) -> None:
    """Remove one of our own temporary directories; says so if that fails.

    :param path: absolute path; of any other name than such a one has, nothing is removed
    """
    if not path.rpartition("/")[2].startswith(HIDDEN):
        return
    try:
        client.send(files.remove(system.name, path, missing_ok=True))
    except HpcError as error:
        log.warning("%s on system %s could not be removed: %s", path, system.name, error)


def _side(
    client: Client,
    system: System,
    *,
    account: str | None = None,
    terms: Terms | None = None,
    keeper: Keeper | None = None,
    abandon: Abandon = _always,
    pace: Pace | None = None,
) -> Side:
    terms = terms or Terms()
    pace = replace(pace or Pace(), connections=terms.connections)
    return Side(
        client=client,
        system=system,
        account=account,
        terms=terms,
        keeper=keeper,
        abandon=abandon,
        pace=pace,
    )
