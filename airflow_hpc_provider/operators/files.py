"""Operators that stage files in and out, one by one or many as one archive."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_hpc_provider.client.calls import JSONObject
from airflow_hpc_provider.client.errors import InvalidInputError, TransferError
from airflow_hpc_provider.tasks import carried
from airflow_hpc_provider.watch import Outcome, Verdict

from . import named
from .moving import TransferOperator

if TYPE_CHECKING:
    from airflow_hpc_provider.client.files import Entry
    from airflow_hpc_provider.client.jobs import Job
    from airflow_hpc_provider.client.places import Source
    from airflow_hpc_provider.client.session import Client
    from airflow_hpc_provider.client.staging import Begun, Moved, Pace, Terms
    from airflow_hpc_provider.client.systems import System
    from airflow_hpc_provider.client.transfers import TransferJob
    from airflow_hpc_provider.client.trees import Contents, LocalFiles, Tree
    from airflow_hpc_provider.endpoints import Endpoint

__all__ = ["HpcDownloadOperator", "HpcUploadOperator"]

_CHUNK = 1024 * 1024
# What is no file of the worker, and has an odd name, is copied to its disk first.
_MOST_ON_DISK = 256 * 1024 * 1024
_USUAL = 0o644


@dataclass(frozen=True, slots=True)
class _Progress:
    """How far a task is when it begins, or is taken up after a trigger's verdict.

    :param done: results of the files that are moved
    :param packed: results of those behind them that travelled as one archive, by their place in the list
    :param begun: the transfer whose job the trigger waited for
    :param verdict: what became of that
    """

    done: list[JSONObject] = field(default_factory=list)
    packed: dict[int, JSONObject] = field(default_factory=dict)
    begun: Begun | None = None
    verdict: Verdict | None = None

    @property
    def fresh(self) -> bool:
        """Nothing is done yet."""
        return self.begun is None

    def started(self, number: int) -> bool:
        """Whether a file need not be looked at any more.

        :param number: its place in the list
        """
        return number < len(self.done) + (self.begun is not None) or number in self.packed

    @property
    def size(self) -> int:
        """Bytes of these files."""
        rows = [*self.done, *self.packed.values()]
        return sum(int(row["size"]) for row in rows) + (self.begun.size if self.begun else 0)

    def to_json(self, done: list[JSONObject], begun: Begun) -> JSONObject:
        """Plain JSON for a trigger to carry.

        :param done: results by now
        :param begun: what the trigger is to wait for
        """
        packed = [[number, row] for number, row in self.packed.items() if number >= len(done)]
        return {"done": done, "packed": packed, "begun": begun.to_json()}

    @classmethod
    def from_json(cls, plain: JSONObject, verdict: Verdict) -> _Progress:
        """What a trigger carried, perhaps of version 0.1, which knew no archives of lists."""
        from airflow_hpc_provider.client.terms import Begun

        packed, begun = dict(plain.get("packed", ())), Begun.from_json(plain["begun"])
        return cls(plain["done"], packed, begun, verdict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One file to move.

    :param here: where it is on this side; None of content
    :param begin: moves it, or brings it on its way
    :param finish: ends what ``begin`` began, with the last record of the job
    """

    here: Endpoint | None
    begin: Callable[[JSONObject], Moved | Begun]
    finish: Callable[[Begun, Job, JSONObject], Moved]


class _FilesOperator(TransferOperator):
    """What both directions share."""

    job: Any = None
    _verb: str

    def __init__(
        self,
        *,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        max_bytes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.include = include
        self.exclude = exclude
        self.max_bytes = max_bytes
        self._contents: Contents = {}

    def execute(self, context: Any) -> JSONObject | list[JSONObject]:
        """Copy."""
        return self._told(context, self._run(context, _Progress()))

    def execute_complete(self, context: Any, event: Any) -> JSONObject | list[JSONObject]:
        """Go on with the file whose job is over, and with those behind it."""
        verdict, carry = carried(event)
        if "workspace" in carry:
            self._check_halted(context, verdict, carry)
            progress = _Progress(packed=dict(carry["packed"]))
        else:
            progress = _Progress.from_json(carry, verdict)
        return self._told(context, self._run(context, progress))

    def _check_halted(self, context: Any, verdict: Verdict, carry: JSONObject) -> None:
        """Go on with an archive only if its job is over; else remove what nobody will go on with."""
        from airflow_hpc_provider.client.staging import remove_workspace
        from airflow_hpc_provider.client.transfers import TransferJob

        if verdict.outcome is Outcome.DONE:
            return
        job, hook = TransferJob(**carry["job"]), self.hook
        with self._while_moving(context) as kept, hook.client() as client:
            try:
                self._resumed(client, verdict, job, kept)
            except BaseException as error:
                if kept["abandon"](error):
                    remove_workspace(client, hook.system(client, job.system), job.job_id, carry["workspace"])
                raise

    def _over(self, client: Client, job: TransferJob, workspace: str, *, defer: bool) -> Job:
        """Wait for a job of an archive."""
        from airflow_hpc_provider.client.terms import Halted

        ended = self._ended(client, job, defer=defer)
        if ended is None:
            raise Halted(job, workspace)
        return ended

    @contextlib.contextmanager
    def _moving_tree(
        self, context: Any, client: Client, system: System, packed: Mapping[int, JSONObject] | None = None
    ) -> Iterator[JSONObject]:
        """Arguments of a tree's move, whose wait for a long job leaves the worker.

        :param packed: what the resumed task need not move any more
        """
        from airflow_hpc_provider.client.terms import Halted

        wait = self._wait(client, system)
        try:
            with self._while_moving(context) as kept:
                keeper, defers = kept["keeper"], self._defers(kept)

                over = functools.partial(self._over, client, defer=defers and keeper is not None)
                yield {"wait": wait, "over": over, **kept}
        except Halted as halted:
            carry = {
                "workspace": halted.workspace,
                "job": asdict(halted.job),
                "packed": list((packed or {}).items()),
            }
            self._defer_until_over(context, halted.job, carry, workspace=halted.workspace)

    def _told(self, context: Any, moved: JSONObject | list[JSONObject]) -> JSONObject | list[JSONObject]:
        """Tell the events of the outlets what was moved."""
        from airflow_hpc_provider.assets import tell_moved

        job_id = self.job.get("job_id") if isinstance(self.job, Mapping) else None
        tell_moved(context, self.outlets, moved, job_id=job_id, contents=self._contents)
        return moved

    def _run(self, context: Any, progress: _Progress) -> JSONObject | list[JSONObject]:
        raise NotImplementedError

    def _defers(self, kept: JSONObject) -> bool:
        """Whether a trigger may wait for the job of a file."""
        del kept
        return self.deferrable

    def _swept(self, begun: Begun) -> Begun | None:
        """What a killed job leaves unfinished on its system."""
        del begun
        return None

    def _clean(self, client: Client, system: System, begun: Begun, kept: JSONObject) -> None:
        """Remove what a cancelled job leaves unfinished."""
        from airflow_hpc_provider.client.staging import remove_unfinished

        if (upload := self._swept(begun)) is not None:
            remove_unfinished(client, system, upload, keeper=kept["keeper"])

    def _move(
        self, context: Any, client: Client, system: System, steps: Sequence[_Step], progress: _Progress
    ) -> list[JSONObject]:
        """Move files one after another; leaves the worker where one waits long for its job."""
        from airflow_hpc_provider.client.arrival import given_up
        from airflow_hpc_provider.client.terms import Moved

        done, begun, verdict = list(progress.done), progress.begun, progress.verdict
        with self._while_moving(context) as kept:
            for number, step in enumerate(steps[len(done) :], len(done)):
                if (row := progress.packed.get(number)) is not None:
                    done.append(row)
                    continue
                if begun is not None and verdict is not None:
                    clean = functools.partial(self._clean, client, system, begun, kept)
                    ended = self._resumed(client, verdict, begun.job, kept, clean)
                    moved = step.finish(begun, ended, kept)
                    begun = None
                else:
                    first = step.begin(kept)
                    if isinstance(first, Moved):
                        moved = first
                    else:
                        clean = functools.partial(self._clean, client, system, first, kept)
                        with given_up(client, first.job, kept["abandon"], clean):
                            over = self._ended(client, first.job, defer=self._defers(kept))
                        if over is None:
                            begun = first
                            break
                        moved = step.finish(first, over, kept)
                done.append(self._report(moved, system.name, step.here))
        if begun is not None:
            carry = progress.to_json(done, begun)
            self._defer_until_over(context, begun.job, carry, upload=self._swept(begun))
        return done

    def _report(
        self, moved: Moved, system: str, here: Endpoint | None, *, packed: bool = False
    ) -> JSONObject:
        if not (moved.skipped or packed):
            way = "staged" if moved.staged else "directly"
            self.log.info(
                "%s %s (%d bytes, %s, verified by %s).",
                *(self._verb, moved.path, moved.size, way, moved.verified),
            )
        plain = asdict(moved)
        return {
            "system": system,
            "remote_path": plain.pop("path"),
            "local_path": None if here is None else str(here),
            **plain,
        }

    def _summary(self, tree: Tree, system: str, remote: Any, local: Any) -> JSONObject:
        self.log.info("%s %d files (%d bytes) as an archive.", self._verb, tree.files, tree.size)
        self._contents = tree.contents
        return {
            "system": system,
            "remote_path": remote,
            "local_path": local,
            **{name: getattr(tree, name) for name in ("files", "directories", "links", "size", "packed")},
            "skipped": False,
            "how": "archive",
        }

    def _reports(
        self, moved: Mapping[str, Moved], system: System, here: Mapping[int, Endpoint | None]
    ) -> dict[int, JSONObject]:
        """What is told of files that travelled as one archive, by their places in the list."""
        if moved:
            size = sum(each.size for each in moved.values())
            self.log.info("%s %d files (%d bytes) as an archive.", self._verb, len(moved), size)
        return {
            number: self._report(moved[one.name], system.name, one, packed=True)
            for number, one in here.items()
            if one is not None and one.name in moved
        }

    def _together(self, sizes: Mapping[int, int | None], limit: int, terms: Terms) -> list[int]:
        """Which files of a list travel as one archive: small ones, if they are many.

        :param sizes: bytes of each that could, by its place in the list
        :param limit: bytes of a small file
        """
        if terms.if_exists != "overwrite" or terms.verify == "always":
            # These are asked of each file.
            return []
        small = [number for number, size in sizes.items() if size is not None and size <= limit]
        return small if len(small) > named.HANDFUL else []

    @property
    def _chosen(self) -> JSONObject:
        """Arguments of a tree: what to take of it.

        :raises InvalidInputError: naming the parameter at fault
        """
        from airflow_hpc_provider.client.choices import Choice

        include, exclude = self.include or (), self.exclude or ()
        Choice.of(include, exclude)
        return {"include": include, "exclude": exclude, "max_bytes": self._most}

    @property
    def _most(self) -> int | None:
        """How many bytes may travel."""
        given: Any = self.max_bytes
        if given is None or given == "":
            return None
        try:
            most = int(given)
        except (TypeError, ValueError):
            most = -1
        if most < 0 or isinstance(given, bool):
            raise InvalidInputError("max_bytes", f"{given!r} is no number of bytes.")
        return most

    def _check_size(self, size: int) -> None:
        """Refuse what is too much."""
        if (most := self._most) is not None and size > most:
            raise InvalidInputError("max_bytes", f"{size} bytes are to be moved, which is more than {most}.")

    def _check_one_by_one(self) -> None:
        """Refuse to choose among what is one file."""
        for name in ("include", "exclude"):
            if getattr(self, name):
                raise InvalidInputError(name, "chooses among many files: give a directory, a glob or a list.")


class HpcUploadOperator(_FilesOperator):
    """Stage in: copy local files to a system.

    Small files go directly, large ones through S3 staging. A directory, a glob, or a list that holds one
    travels as one compressed archive, in about ten requests however many files it holds; their modes, times
    and links are kept. So does a file whose name the gateway cannot be told, such as one with a quote in it.
    Of a list of files, the small ones travel as one archive if they are more than five and neither
    ``if_exists`` nor ``verify="always"`` asks for a look at each; large ones travel one by one.

    A directory stands for what is in it, with or without a slash at its end: ``results/a.nc`` becomes
    ``REMOTE_PATH/a.nc``. A glob stands for what it matches, by its path below the directory before the first
    wildcard: of ``data/*/in.nc``, ``data/1/in.nc`` becomes ``REMOTE_PATH/1/in.nc``. In a list, files and
    directories go by their last names.

    :param local_path: file, directory or glob (``data/*.nc``, ``data/**/*.nc``) on the worker; a file in a
        storage that Airflow reaches, as a URL such as ``s3://conn_id@bucket/key`` or an
        ``ObjectStoragePath``, streamed without touching the worker's disk, unless the name that it gets must
        travel in an archive (then 256 MiB at most); or a list of these. Directories and globs are those of
        the worker alone. A task that defers may go on on another worker: what it uploads must be there too
    :param content: text (sent as UTF-8) or bytes, instead of ``local_path``
    :param remote_path: absolute path of the file to make; with a list, or ending in ``/``, the directory to
        copy into; with a directory or a glob, the directory to make or to merge with. ``{working_dir}`` in it
        stands for the connection's working directory
    :param include: take only what matches this pattern, or one of these: without a slash it is about the last
        name (``*.nc``), with one about the path in the archive (``run-*/out/*.nc``); ``**`` stands for any
        number of directories. For directories, globs and lists
    :param exclude: leave out of that what matches this pattern, or one of these
    :param max_bytes: how large all files together may be; more are refused before they travel
    :param make_parents: make the directory if it is missing; with a directory or a glob it always is
    :param if_exists: what to do with a file that is there already: ``overwrite``; ``verify``: leave it if
        size and sha256 are the same; ``fail``; ``skip``; ``newer``: overwrite it if it is older. An archive
        always overwrites
    :param verify: compare the sha256 of both sides: ``auto`` for large files, if the gateway can compute it
        in time; ``always``, by a job if need be; ``never``. The size is always compared. Of an archive the
        sha256 is that of the archive
    :param connections: how many carry a large file at once
    :param atomic: let a large file appear under its name only when it is complete and verified; that takes a
        second job. Not for archives
    :param wake: end the naps of the job that waits for a large file, which looks for it once a minute
    :param preserve_mode: give the copy the permissions of the original
    :param account: account for the transfer job of a large file. Default: the connection's
    :param deferrable: where the job of a large file is not over within five seconds, wait for it in the
        triggerer, without holding a worker. So are the jobs of an archive, if it travels alone.
        Default: Airflow's ``[operators] default_deferrable``
    :param poll_interval: seconds between two looks at that job at the most
    :param gateway_patience: seconds for which a gateway that cannot be asked about that job is waited for, or
        a storage that is away
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default: the connection's
    :return: of a file: system, remote path, local path, size in bytes, sha256 (None if skipped unseen, or in
        an archive), whether it was staged, how it was verified and whether it was skipped; of a list of
        files, a list of these; of all else one summary: ``system``, ``remote_path``, ``local_path``, number
        of ``files``, ``directories`` and ``links``, their ``size`` and the archives' (``packed``) in bytes,
        ``skipped`` (False) and ``how`` (``archive``)
    """

    template_fields: Sequence[str] = (
        "local_path",
        "content",
        "remote_path",
        "include",
        "exclude",
        "max_bytes",
        "account",
        "system",
        "hpc_conn_id",
    )
    _verb = "Uploaded"

    def __init__(
        self,
        *,
        remote_path: str,
        local_path: Any = None,
        content: str | bytes | None = None,
        make_parents: bool = False,
        atomic: bool = False,
        wake: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.atomic = atomic
        self.wake = wake
        self.local_path = local_path
        self.content = content
        self.remote_path = remote_path
        self.make_parents = make_parents

    def _run(self, context: Any, progress: _Progress) -> JSONObject | list[JSONObject]:
        from airflow_hpc_provider.client import files
        from airflow_hpc_provider.client.paths import remote_path

        terms, chosen = self._terms(atomic=self.atomic, wake=self.wake), self._chosen
        here, several = self._given()
        # What an earlier process has sent need not be here any more.
        is_tree = progress.fresh and self._is_tree([path for path in here if path], several=several)
        left = [one for number, one in enumerate(here) if not progress.started(number)]
        self._check(left, several=several, is_tree=is_tree, terms=terms)
        hook = self.hook
        with hook.client() as client:
            system = hook.system(client, self.system)
            path = hook.resolve_path(client, system, self.remote_path)
            how: JSONObject = {
                "account": self.account or hook.settings.account,
                "terms": terms,
                "pace": _pace(system, "up", self.gateway_patience),
            }
            if is_tree:
                target = remote_path(path, "remote_path")
                source = named.local_files(here, several=several)
                with self._moving_tree(context, client, system) as moving:
                    tree = self._as_archive(client, system, source, target, **chosen, **how, **moving)
                names = [str(one) for one in here]
                return self._summary(tree, system.name, target, names if several else names[0])
            if into := several or path.endswith("/"):
                above = remote_path(path, "remote_path").rstrip("/")
                targets = [
                    named.place(f"{above}/{one.name}", "local_path", archive=True) for one in here if one
                ]
            else:
                targets = [named.place(path, "remote_path", archive=True)]
            if several and progress.fresh:
                packed = self._as_list(context, client, system, here, above or "/", **how)
                progress = replace(progress, packed=packed)
            if self.make_parents and progress.fresh and not progress.packed:
                directory = above or "/" if into else named.parent(targets[0][0])
                client.send(files.make_directory(system.name, directory, parents=True))
            steps = self._steps(client, system, list(zip(here, targets, strict=True)), progress, how)
            done = self._move(context, client, system, steps, progress)
        return done if several else done[0]

    def _given(self) -> tuple[list[Endpoint | None], bool]:
        """What to upload, None standing for the content; and whether it is a list."""
        if self.content is None:
            given, several = named.listed(self.local_path)
            return [named.endpoint(path) for path in given], several
        if self.local_path is not None:
            raise InvalidInputError("content", "give either content or local_path.")
        if str(self.remote_path).endswith("/"):
            raise InvalidInputError("remote_path", "content needs the path of a file, not of a directory.")
        return [None], False

    def _is_tree(self, here: Sequence[Endpoint], *, several: bool) -> bool:
        """Whether it travels as an archive: it is more than files, or something is to be chosen."""
        chooses = bool(self.include or self.exclude)
        if chooses and not several and not any(map(named.is_many, here)):
            self._check_one_by_one()
        is_tree = any(map(named.is_many, here)) or (chooses and bool(here))
        if is_tree and (stored := next((one for one in here if one.local is None), None)):
            raise InvalidInputError(
                "local_path",
                f"{stored} is in a storage, and directories and globs travel from this worker alone: "
                "give the storage's files one by one, or in a list without directories.",
            )
        return is_tree

    def _check(self, here: Sequence[Endpoint | None], *, several: bool, is_tree: bool, terms: Terms) -> None:
        """Refuse what can be seen to be wrong before the gateway is asked for anything."""
        if is_tree:
            from airflow_hpc_provider.client.archives import survey
            from airflow_hpc_provider.client.choices import Choice

            named.check_archived(terms, str(self.local_path))
            named.check_shape(self.remote_path)
            with named.naming("local_path"):
                choice = Choice.of(self.include or (), self.exclude or ())
                survey(named.local_files(here, several=several), choice, max_bytes=self._most)
            return
        files = [one for one in here if one is not None]
        local = [one.local for one in files if one.local is not None]
        into = several or (isinstance(self.remote_path, str) and self.remote_path.endswith("/"))
        all_plain = named.check_shape(self.remote_path, archive=bool(here) and not into)
        if into:
            for one in files:
                all_plain &= named.place(f"/any/{one.name}", "local_path", archive=True)[1]
            named.check_distinct([one.name for one in files], "local_path")
        if not all_plain:
            named.check_archived(terms, "a file whose name the gateway cannot be told")
        self._check_size(sum(path.stat().st_size for path in local if path.is_file()))

    def _steps(
        self,
        client: Client,
        system: System,
        pairs: Sequence[tuple[Endpoint | None, tuple[str, bool]]],
        progress: _Progress,
        how: JSONObject,
    ) -> list[_Step]:
        from airflow_hpc_provider.client.staging import begin_upload, finish_upload

        wait = self._wait(client, system)
        sizes = [progress.size]

        def begin(here: Endpoint | None, target: str, plain: bool, kept: JSONObject) -> Moved | Begun:
            if here is not None and here.local is not None and not plain:
                return self._in_archive(client, system, here.local, target, **how, **kept)
            source = self._source(here, target)
            sizes.append(source.size)
            try:
                self._check_size(sum(sizes))
            except InvalidInputError:
                source.close()
                raise
            if not plain:
                with contextlib.closing(source), _on_disk(source) as path:
                    return self._in_archive(client, system, path, target, **how, **kept)
            return begin_upload(client, system, source, target, wait=wait, **how, **kept)

        def finish(begun: Begun, ended: Job, kept: JSONObject) -> Moved:
            return finish_upload(client, system, begun, ended, wait=wait, **how, **kept)

        return [
            _Step(here=here, begin=functools.partial(begin, here, *target), finish=finish)
            for here, target in pairs
        ]

    def _source(self, here: Endpoint | None, target: str) -> Source:
        from airflow_hpc_provider.endpoints import source_of_content

        if here is not None:
            return here.source()
        return source_of_content(self.content, target.rpartition("/")[2])

    def _as_list(
        self,
        context: Any,
        client: Client,
        system: System,
        here: Sequence[Endpoint | None],
        target: str,
        **how: Any,
    ) -> dict[int, JSONObject]:
        """Upload the small files of a list as one archive."""
        from airflow_hpc_provider.client.trees import upload_files

        local = {number: one.local for number, one in enumerate(here) if one and one.local is not None}
        sizes = {number: path.stat().st_size for number, path in local.items()}
        numbers = self._together(sizes, system.max_direct_bytes, how["terms"])
        if not numbers:
            return {}
        sources = {local[number].name: local[number] for number in numbers}
        with self._moving_tree(context, client, system) as moving, named.naming("local_path"):
            moved = upload_files(client, system, sources, target, parents=self.make_parents, **how, **moving)
        return self._reports(moved, system, {number: here[number] for number in numbers})

    def _as_archive(
        self, client: Client, system: System, source: LocalFiles, target: str, **options: Any
    ) -> Tree:
        from airflow_hpc_provider.client.trees import upload_tree

        with named.naming("local_path"):
            return upload_tree(client, system, source, target, **options)

    def _in_archive(self, client: Client, system: System, here: Path, target: str, **options: Any) -> Moved:
        """Upload one file under a name that no shell may see."""
        directory, _, name = target.rpartition("/")
        wait = self._wait(client, system)
        tree = self._as_archive(client, system, {name: here}, directory, wait=wait, **options)
        return _moved(tree, target)

    def _swept(self, begun: Begun) -> Begun | None:
        return begun


class HpcDownloadOperator(_FilesOperator):
    """Stage out: copy files from a system to the worker. A file appears under its name when it is complete.

    Small files come directly, large ones through S3 staging. A directory, a glob, or a list that holds one
    comes as one compressed archive, in about ten requests however many files it holds; their modes, times and
    links are kept, and nothing appears before all of it is here. So does a file whose name the gateway cannot
    be told, such as one with a quote in it; it cannot come into a storage. Of a list of files, the small ones
    of one directory come as one archive, by the rules of :class:`HpcUploadOperator`, unless much that is not
    wanted would come with them.

    A directory stands for what is in it, with or without a slash at its end: ``run/a.nc`` becomes
    ``LOCAL_PATH/a.nc``. A glob stands for what it matches, by its path below the directory before the first
    wildcard: of ``run/*/out.nc``, ``run/1/out.nc`` becomes ``LOCAL_PATH/1/out.nc``. In a list, files and
    directories go by their last names.

    :param remote_path: absolute path of a file, a directory or a glob on the system, or relative to the
        working directory of ``job``; or a list. ``{job_id}`` in it stands for the job's id, ``{working_dir}``
        for the connection's working directory
    :param local_path: file to make on the worker, or in a storage that Airflow reaches: a URL such as
        ``s3://conn_id@bucket/key`` or an ``ObjectStoragePath``, streamed without touching the worker's disk;
        with a list, or ending in ``/``, the directory to copy into; with a directory or a glob, the directory
        of this worker to make or to merge with. A task that defers may go on on another worker: it writes
        there
    :param job: output of the task that submitted a job: ``job=submit.output``
    :param include: take only what matches this pattern, see :class:`HpcUploadOperator`
    :param exclude: leave out of that what matches this pattern
    :param max_bytes: how large all files together may be; more are refused before they travel, or when the
        system cannot list them in time, before any of them appears
    :param make_parents: make the local directory if it is missing
    :param if_exists: what to do with a file that is there already, see :class:`HpcUploadOperator`
    :param verify: compare the sha256 of both sides, see :class:`HpcUploadOperator`
    :param connections: how many carry a large file at once
    :param preserve_mode: give the copy the permissions of the original
    :param preserve_mtime: give the copy the time of the original
    :param account: account for the transfer job of a large file. Default: the connection's
    :param deferrable: where the job of a large file is not over within five seconds, wait for it in the
        triggerer, without holding a worker; without a Fernet key in the worker, since it has the URL to fetch
        the file from. So are the jobs of an archive, if it travels alone.
        Default: Airflow's ``[operators] default_deferrable``
    :param poll_interval: seconds between two looks at that job at the most
    :param gateway_patience: seconds for which a gateway that cannot be asked about that job is waited for, or
        a storage that is away
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default: that of ``job``, else the connection's
    :return: the same as :class:`HpcUploadOperator`
    """

    template_fields: Sequence[str] = (
        "remote_path",
        "local_path",
        "job",
        "include",
        "exclude",
        "max_bytes",
        "account",
        "system",
        "hpc_conn_id",
    )
    _verb = "Downloaded"

    def __init__(
        self,
        *,
        remote_path: str | Sequence[str],
        local_path: Any,
        job: Any = None,
        make_parents: bool = True,
        preserve_mtime: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.preserve_mtime = preserve_mtime
        self.remote_path = remote_path
        self.local_path = local_path
        self.job = job
        self.make_parents = make_parents

    def _run(self, context: Any, progress: _Progress) -> JSONObject | list[JSONObject]:
        terms, chosen = self._terms(preserve_mtime=self.preserve_mtime), self._chosen
        job = named.job_output(self.job, self.remote_path)
        wanted, several = named.listed(self.remote_path)
        for path in wanted:
            named.check_shape(path, relative=job is not None, archive=True)
        named.check_distinct(
            [path.rstrip("/").rpartition("/")[2] for path in wanted if not named.is_glob(path)], "remote_path"
        )
        local = named.endpoint(self.local_path)
        hook = self.hook
        with hook.client() as client:
            system = hook.system(client, self.system or (job or {}).get("system"))
            sources = [
                named.place(
                    hook.resolve_path(
                        client, system, path.replace("{job_id}", job["job_id"] if job else "{job_id}")
                    ),
                    "remote_path",
                    base=job["working_directory"] if job else None,
                    archive=True,
                )
                for path in wanted
            ]
            how: JSONObject = {
                "account": self.account or hook.settings.account,
                "terms": terms,
                "pace": _pace(system, "down", self.gateway_patience),
            }
            found, listings = self._found(client, system, sources, progress, several=several)
            if progress.fresh and self._is_tree(found, local, system, several=several, terms=terms):
                tree = self._tree(context, client, system, found, local, several=several, **chosen, **how)
                names = [one.path for one in found]
                return self._summary(tree, system.name, names if several else names[0], str(local))
            into = several or local.is_directory_like
            targets = [local.below(one.name) if into else local for one in found]
            self._check_size(progress.size + sum(one.size or 0 for one in found))
            if self.make_parents and progress.fresh:
                (local if into else local.parent()).make_directories()
            if listings and local.local is not None and local.local.is_dir():
                packed = self._as_lists(
                    context,
                    client,
                    system,
                    found,
                    local.local,
                    listings=listings,
                    done=progress.packed,
                    **how,
                )
                progress = replace(progress, packed=packed)
            pairs = list(zip(found, targets, strict=True))
            steps = self._steps(client, system, pairs, how, fresh=not several)
            done = self._move(context, client, system, steps, progress)
        return done if several else done[0]

    def _found(
        self,
        client: Client,
        system: System,
        sources: Sequence[tuple[str, bool]],
        progress: _Progress,
        *,
        several: bool,
    ) -> tuple[list[named.Found], dict[str, tuple[Entry, ...]]]:
        """Look at what is left to be downloaded, and in the directories where much of it is."""
        if several and progress.fresh:
            return named.look_at_all(client, system, sources)
        found = [
            named.Found(*source) if progress.started(number) else named.look(client, system, *source)
            for number, source in enumerate(sources)
        ]
        return found, {}

    def _as_lists(
        self,
        context: Any,
        client: Client,
        system: System,
        found: Sequence[named.Found],
        local: Path,
        *,
        listings: Mapping[str, tuple[Entry, ...]],
        done: Mapping[int, JSONObject],
        **how: Any,
    ) -> dict[int, JSONObject]:
        """Download the small files of a list as one archive for each directory that many are in."""
        from airflow_hpc_provider.client.trees import download_files
        from airflow_hpc_provider.endpoints import LocalEndpoint

        packed = dict(done)
        for directory, entries in listings.items():
            there = {
                number: one.size
                for number, one in enumerate(found)
                if one.entry is not None and one.entry.is_file and named.parent(one.path) == directory
            }
            numbers = self._together(there, system.max_direct_download_bytes, how["terms"])
            if not numbers or numbers[0] in packed:
                continue
            with (
                self._moving_tree(context, client, system, packed) as moving,
                named.naming("remote_path"),
            ):
                moved = download_files(
                    client,
                    system,
                    directory,
                    local,
                    names=[found[number].name for number in numbers],
                    entries=entries,
                    **how,
                    **moving,
                )
            here = LocalEndpoint(local)
            packed |= self._reports(
                moved or {}, system, {number: here.below(found[number].name) for number in numbers}
            )
        return packed

    def _is_tree(
        self, found: Sequence[named.Found], local: Endpoint, system: System, *, several: bool, terms: Terms
    ) -> bool:
        """Whether it travels as an archive: it is more than files, or something is to be chosen."""
        chooses, many = bool(self.include or self.exclude), any(one.is_many for one in found)
        if chooses and not several and not many:
            self._check_one_by_one()
        is_tree = many or (chooses and bool(found))
        if is_tree or any(named.needs_archive(one, system) for one in found):
            what = "a directory, a glob" if is_tree else "a file whose name the gateway cannot be told"
            named.check_archived(terms, what)
            if local.local is None:
                raise InvalidInputError(
                    "local_path",
                    f"{local} is in a storage; {what} travels as an archive, which is unpacked on this "
                    "worker alone: give the files one by one, or a directory of the worker.",
                )
        return is_tree

    def _tree(
        self,
        context: Any,
        client: Client,
        system: System,
        found: Sequence[named.Found],
        local: Endpoint,
        *,
        several: bool,
        **options: Any,
    ) -> Tree:
        if self.make_parents:
            local.parent().make_directories()
        sources = [named.pattern_of(one) for one in found]
        with self._moving_tree(context, client, system) as moving:
            source = sources if several else sources[0]
            return self._unpacked(client, system, source, local, **options, **moving)

    def _unpacked(
        self,
        client: Client,
        system: System,
        source: str | Sequence[str],
        local: Endpoint | Path,
        **options: Any,
    ) -> Tree:
        from airflow_hpc_provider.client.trees import download_tree

        with named.naming("remote_path"):
            return download_tree(client, system, source, Path(str(local)), **options)

    def _steps(
        self,
        client: Client,
        system: System,
        pairs: Sequence[tuple[named.Found, Endpoint]],
        how: JSONObject,
        *,
        fresh: bool,
    ) -> list[_Step]:
        from airflow_hpc_provider.client.staging import begin_download, finish_download

        wait = self._wait(client, system)

        def begin(one: named.Found, target: Endpoint, kept: JSONObject) -> Moved | Begun:
            sink = target.sink()
            if named.needs_archive(one, system) and target.local is not None:
                return self._in_archive(client, system, one, target.local, wait=wait, **how, **kept)
            # Of a list, a file may have changed since.
            stat = one.stat if fresh else None
            return begin_download(client, system, one.path, sink, stat=stat, wait=wait, **how, **kept)

        def finish(target: Endpoint, begun: Begun, ended: Job, kept: JSONObject) -> Moved:
            return finish_download(client, system, begun, ended, target.sink(), wait=wait, **how, **kept)

        return [
            _Step(
                here=target,
                begin=functools.partial(begin, one, target),
                finish=functools.partial(finish, target),
            )
            for one, target in pairs
        ]

    def _in_archive(
        self, client: Client, system: System, one: named.Found, target: Path, **options: Any
    ) -> Moved:
        """Download one file whose name no shell may see."""
        with _room_for(target) as room:
            tree = self._unpacked(
                client, system, named.pattern_of(one), room, max_bytes=self._most, **options
            )
            if len(tree.names) != 1 or tree.directories:
                raise InvalidInputError(
                    "remote_path",
                    f"{one.path} is a directory whose name the gateway cannot be told: give the directory it "
                    "is in, and its name as include.",
                )
            try:
                (room / tree.names[0]).replace(target)
            except OSError as error:
                raise TransferError(f"{target} cannot be finished: {error.strerror}.") from error
        return _moved(tree, one.path)

    def _defers(self, kept: JSONObject) -> bool:
        keeper = kept["keeper"]
        if self.deferrable and (keeper is None or not keeper.seals):
            self.log.info(
                "The job is waited for here: without a Fernet key nobody else could learn the file's URL."
            )
            return False
        return self.deferrable


def _pace(system: System, direction: str, patience: float) -> Pace:
    """How to move, and whom to tell how fast it went."""
    from airflow_hpc_provider import metrics
    from airflow_hpc_provider.client.staging import Pace

    return Pace(patience=patience, told=functools.partial(metrics.transferred, system.name, direction))


@contextlib.contextmanager
def _room_for(target: Path) -> Iterator[Path]:
    """A directory beside a file to make, which a retry finds again."""
    from airflow_hpc_provider.client.choices import HIDDEN

    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()
    room = target.parent / f"{HIDDEN}{digest[:16]}"
    room.mkdir(mode=0o700, exist_ok=True)
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


@contextlib.contextmanager
def _on_disk(source: Source) -> Iterator[Path]:
    """A temporary copy of what is to be packed and is no file of this worker."""
    if source.size > _MOST_ON_DISK:
        raise InvalidInputError(
            "remote_path",
            f"the gateway cannot be told the name of the file to make, and {source.name} is too large "
            f"({source.size} bytes, at most {_MOST_ON_DISK}) to be packed here: choose a plain name.",
        )
    with tempfile.NamedTemporaryFile() as file:
        at = 0
        while chunk := source.read_at(at, _CHUNK):
            file.write(chunk)
            at += len(chunk)
        source.check()
        file.flush()
        Path(file.name).chmod(_USUAL)
        yield Path(file.name)


def _moved(tree: Tree, path: str) -> Moved:
    """What is told of a file that travelled in an archive, whose checksum unpacking compared."""
    from airflow_hpc_provider.client.staging import Moved

    _, sha256 = next(iter(tree.contents.values()), (tree.size, None))
    return Moved(path=path, size=tree.size, sha256=sha256, staged=tree.staged, verified="size")
