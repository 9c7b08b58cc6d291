"""Operators that stage files in and out."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_hpc_provider.client.calls import JSONObject
from airflow_hpc_provider.client.errors import InvalidInputError, TransferError, WatchError
from airflow_hpc_provider.tasks import HpcTask
from airflow_hpc_provider.watch import JobWatch, Outcome

if TYPE_CHECKING:
    from airflow_hpc_provider.client.jobs import Job
    from airflow_hpc_provider.client.places import Source
    from airflow_hpc_provider.client.session import Client
    from airflow_hpc_provider.client.staging import IfExists, Moved, Pace, Terms, Verify, Wait
    from airflow_hpc_provider.client.systems import System
    from airflow_hpc_provider.endpoints import Endpoint

__all__ = ["HpcDownloadOperator", "HpcUploadOperator"]


class _Killed(BaseException):
    """Raised amid a transfer by a signal handler: nothing that catches errors to try again must catch it."""


class _Switch:
    """Ends a transfer from a signal handler, but not amid what must not be broken off."""

    def __init__(self) -> None:
        self._on = False
        self._tripped = False
        self._shields = 0

    def trip(self) -> None:
        """End the transfer, now or after the present talk with the supervisor."""
        if not self._on:
            return
        self._tripped = True
        if not self._shields:
            self._raise()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While data moves, a kill ends it."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    @contextlib.contextmanager
    def shield(self) -> Iterator[None]:
        """A kill waits until this is over."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        if self._tripped and self._on and not self._shields:
            self._raise()

    def _raise(self) -> NoReturn:
        self._on = False
        raise _Killed


class _TransferOperator(HpcTask):
    """What both directions share."""

    ui_color = "#eaf6ec"

    def __init__(
        self,
        *,
        account: str | None = None,
        connections: int = 4,
        verify: Verify = "auto",
        if_exists: IfExists = "overwrite",
        preserve_mode: bool = False,
        poll_interval: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.account = account
        self.connections = connections
        self.verify = verify
        self.if_exists = if_exists
        self.preserve_mode = preserve_mode
        self.poll_interval = poll_interval
        self._switch: _Switch | None = None

    def on_kill(self) -> None:
        """End the transfer where it stands; what becomes of its job depends on why."""
        if self._switch is not None:
            self._switch.trip()

    @contextlib.contextmanager
    def _while_moving(self, context: Any) -> Iterator[JSONObject]:
        """Arguments of a transfer that a kill ends, and that a retry goes on with."""
        from airflow_hpc_provider.checkpoints import TaskKeeper

        self._switch = switch = _Switch()
        keeper = TaskKeeper.of(context, shield=switch.shield)
        left: list[bool] = []

        def abandon(error: BaseException) -> bool:
            """Whether nobody will go on with the transfer."""
            if keeper is None or not keeper.seals:
                return True
            if not isinstance(error, _Killed):
                return not (getattr(error, "transient", False) and self._tried_again(context))
            if not left:
                left.append(self._still_wanted(context))
            return not left[0]

        try:
            with switch.watching():
                yield {"keeper": keeper, "abandon": abandon}
        except _Killed:
            if left == [True]:
                raise WatchError(
                    "This worker was told to end while it moved data; a retry goes on with it."
                ) from None
            raise TransferError("The task was told to end while it moved data.") from None

    def _tried_again(self, context: Any) -> bool:
        """Another try follows if this one fails."""
        ti = context["ti"]
        return bool(ti.try_number <= ti.max_tries)

    def _still_wanted(self, context: Any) -> bool:
        """The process is ended by those who run Airflow, not by a user who wants the task to end."""
        ti = context["ti"]
        try:
            states = ti.get_task_states(
                dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
            )
        except Exception as error:  # noqa: BLE001  whatever it is, the transfer is cleaned up
            self.log.warning("Why this task is ended cannot be learned: %s", error)
            return False
        return "running" in states.get(ti.run_id, {}).values()

    def _terms(self, **more: Any) -> Terms:
        """How to move files.

        :raises InvalidInputError: naming the parameter at fault
        """
        from airflow_hpc_provider.client.staging import Terms

        return Terms(
            connections=self.connections,
            verify=self.verify,
            if_exists=self.if_exists,
            preserve_mode=self.preserve_mode,
            **more,
        )

    def _wait(self, client: Client, system: System) -> Wait:
        """Waits for the job that moves the data on the system's side."""
        from airflow_hpc_provider.client.jobs import Job

        def wait(job_id: str) -> Job:
            watch = JobWatch(
                system=system.name, job_id=job_id, since=time.time(), poll_interval=self.poll_interval
            )
            verdict = self.follow(client, watch)
            if verdict.outcome is not Outcome.DONE:
                raise WatchError(verdict.message, transient=verdict.transient)
            return Job.from_json(verdict.data)

        return wait

    def _report(self, moved: Moved, system: str, local_path: Endpoint | None, verb: str) -> JSONObject:
        if not moved.skipped:
            way = "staged" if moved.staged else "directly"
            self.log.info(
                "%s %s (%d bytes, %s, verified by %s).", verb, moved.path, moved.size, way, moved.verified
            )
        plain = asdict(moved)
        return {
            "system": system,
            "remote_path": plain.pop("path"),
            "local_path": None if local_path is None else str(local_path),
            **plain,
        }


class HpcUploadOperator(_TransferOperator):
    """Stage in: copy a local file to a system. Small files go directly, large ones through S3 staging.

    :param local_path: file on the worker, or in a storage that Airflow reaches: a URL such as
        ``s3://conn_id@bucket/key`` or an ``ObjectStoragePath``, streamed without touching the worker's disk;
        or a list of these
    :param content: text (sent as UTF-8) or bytes, instead of ``local_path``
    :param remote_path: absolute path of the file to make; with a list, or ending in ``/``, the directory to
        copy into. ``{working_dir}`` in it stands for the connection's working directory
    :param make_parents: make the directory if it is missing
    :param if_exists: what to do with a file that is there already: ``overwrite``; ``verify``: leave it if
        size and sha256 are the same; ``fail``; ``skip``; ``newer``: overwrite it if it is older
    :param verify: compare the sha256 of both sides: ``auto`` for large files, if the gateway can compute it
        in time; ``always``, by a job if need be; ``never``. The size is always compared
    :param connections: how many carry a large file at once
    :param atomic: let a large file appear under its name only when it is complete and verified; that takes a
        second job
    :param wake: end the naps of the job that waits for a large file, which looks for it once a minute
    :param preserve_mode: give the copy the permissions of the original
    :param account: account for the transfer job of a large file. Default: the connection's
    :param poll_interval: seconds between two looks at that job at the most
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default: the connection's
    :return: system, remote path, local path, size in bytes, sha256 (None if skipped unseen), whether it was
        staged, how it was verified and whether it was skipped; with a list, a list of these
    """

    template_fields: Sequence[str] = (
        "local_path",
        "content",
        "remote_path",
        "account",
        "system",
        "hpc_conn_id",
    )

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

    def execute(self, context: Any) -> JSONObject | list[JSONObject]:
        """Copy."""
        from airflow_hpc_provider.client import files
        from airflow_hpc_provider.client.paths import file_name, remote_path
        from airflow_hpc_provider.client.staging import upload_file

        terms = self._terms(atomic=self.atomic, wake=self.wake)
        if self.content is not None and self.local_path is not None:
            raise InvalidInputError("content", "give either content or local_path.")
        _check_shape(self.remote_path)
        if self.content is not None and str(self.remote_path).endswith("/"):
            raise InvalidInputError("remote_path", "content needs the path of a file, not of a directory.")
        given, several = _listed(self.local_path) if self.content is None else ([], False)
        endpoints = [_local_file(path) for path in given]
        _check_distinct([endpoint.name for endpoint in endpoints], "local_path")
        hook = self.hook
        with hook.client() as client:
            system = hook.system(client, self.system)
            path = hook.resolve_path(client, system, self.remote_path)
            into = several or path.endswith("/")
            target = remote_path(path, "remote_path")
            targets = [
                f"{target.rstrip('/')}/{file_name(endpoint.name, 'local_path')}" if into else target
                for endpoint in endpoints
            ] or ([] if several else [target])
            if self.make_parents:
                client.send(
                    files.make_directory(system.name, target if into else _parent(target), parents=True)
                )
            account = self.account or hook.settings.account
            wait = self._wait(client, system)
            done = []
            pace = _pace(system, "up")
            given_as: list[Endpoint | None] = [*endpoints] or [None] * len(targets)
            with self._while_moving(context) as kept:
                for endpoint, there in zip(given_as, targets, strict=True):
                    moved = upload_file(
                        client,
                        system,
                        self._source(endpoint, there),
                        there,
                        wait=wait,
                        account=account,
                        terms=terms,
                        pace=pace,
                        **kept,
                    )
                    done.append(self._report(moved, system.name, endpoint, "Uploaded"))
        return done if several else done[0]

    def _source(self, endpoint: Endpoint | None, target: str) -> Source:
        from airflow_hpc_provider.endpoints import source_of_content

        if endpoint is not None:
            return endpoint.source()
        return source_of_content(self.content, target.rpartition("/")[2])


class HpcDownloadOperator(_TransferOperator):
    """Stage out: copy a file from a system to the worker. It appears under its name when it is complete.

    :param remote_path: absolute path on the system, or relative to the working directory of ``job``; or a
        list. ``{job_id}`` in it stands for the job's id, ``{working_dir}`` for the connection's working
        directory
    :param local_path: file to make on the worker, or in a storage that Airflow reaches: a URL such as
        ``s3://conn_id@bucket/key`` or an ``ObjectStoragePath``, streamed without touching the worker's disk;
        with a list, or ending in ``/``, the directory to copy into
    :param job: output of the task that submitted a job: ``job=submit.output``
    :param make_parents: make the local directory if it is missing
    :param if_exists: what to do with a file that is there already, see :class:`HpcUploadOperator`
    :param verify: compare the sha256 of both sides, see :class:`HpcUploadOperator`
    :param connections: how many carry a large file at once
    :param preserve_mode: give the copy the permissions of the original
    :param preserve_mtime: give the copy the time of the original
    :param account: account for the transfer job of a large file. Default: the connection's
    :param poll_interval: seconds between two looks at that job at the most
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default: that of ``job``, else the connection's
    :return: system, remote path, local path, size in bytes, sha256 (None if skipped unseen), whether it was
        staged, how it was verified and whether it was skipped; with a list, a list of these
    """

    template_fields: Sequence[str] = ("remote_path", "local_path", "job", "account", "system", "hpc_conn_id")

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

    def execute(self, context: Any) -> JSONObject | list[JSONObject]:
        """Copy."""
        from airflow_hpc_provider.client.paths import remote_path
        from airflow_hpc_provider.client.staging import download_file
        from airflow_hpc_provider.endpoints import endpoint_of

        terms = self._terms(preserve_mtime=self.preserve_mtime)
        job = _job_output(self.job, self.remote_path)
        wanted, several = _listed(self.remote_path)
        for path in wanted:
            _check_shape(path, relative=job is not None)
        _check_distinct([path.rpartition("/")[2] for path in wanted], "remote_path")
        local = endpoint_of(self.local_path)
        into = several or local.is_directory_like
        hook = self.hook
        with hook.client() as client:
            system = hook.system(client, self.system or (job or {}).get("system"))
            base = job["working_directory"] if job else None
            sources = [
                remote_path(
                    hook.resolve_path(
                        client, system, path.replace("{job_id}", job["job_id"] if job else "{job_id}")
                    ),
                    "remote_path",
                    base=base,
                )
                for path in wanted
            ]
            if self.make_parents:
                (local if into else local.parent()).make_directories()
            account = self.account or hook.settings.account
            wait = self._wait(client, system)
            pace = _pace(system, "down")
            done = []
            with self._while_moving(context) as kept:
                for source in sources:
                    target = local.below(source.rpartition("/")[2]) if into else local
                    moved = download_file(
                        client,
                        system,
                        source,
                        target.sink(),
                        wait=wait,
                        account=account,
                        terms=terms,
                        pace=pace,
                        **kept,
                    )
                    done.append(self._report(moved, system.name, target, "Downloaded"))
        return done if several else done[0]


def _pace(system: System, direction: str) -> Pace:
    """How to move, and whom to tell how fast it went."""
    from airflow_hpc_provider import metrics
    from airflow_hpc_provider.client.staging import Pace

    return Pace(told=functools.partial(metrics.transferred, system.name, direction))


def _listed(given: Any) -> tuple[list[Any], bool]:
    """What was given as a list, and whether it was one."""
    several = isinstance(given, Sequence) and not isinstance(given, str)
    return (list(given), True) if several else ([given], False)


def _check_distinct(names: list[str], field: str) -> None:
    """In one directory the second file of a name would replace the first."""
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidInputError(field, f"holds two files of the name {twice!r}; move them one by one.")


def _local_file(path: Any) -> Endpoint:
    """A place that names a file, or nothing is asked of the gateway. Storages are asked when it is opened."""
    from airflow_hpc_provider.endpoints import endpoint_of

    endpoint = endpoint_of(path)
    if endpoint.local is None:
        return endpoint
    if not endpoint.local.exists():
        raise InvalidInputError("local_path", f"{str(path)!r} does not exist on this worker.")
    if not endpoint.local.is_file():
        raise InvalidInputError(
            "local_path", f"{str(path)!r} is no file; give files, or an archive of the directory."
        )
    return endpoint


def _check_shape(path: Any, *, relative: bool = False) -> None:
    """Refuse a bad remote path before the gateway is asked for anything."""
    from airflow_hpc_provider.client.paths import remote_path

    if isinstance(path, str) and path.startswith("{working_dir}"):
        path = path.replace("{working_dir}", "/", 1)
    if isinstance(path, str):
        path = path.replace("{job_id}", "1")
    remote_path(path, "remote_path", base="/" if relative else None)


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _job_output(job: Any, path: Any) -> Mapping[str, Any] | None:
    """The output of a submit task, checked; a job id alone does not tell where the job ran."""
    from airflow_hpc_provider.client.jobs import check_job_id

    if job is None:
        if "{job_id}" in str(path):
            raise InvalidInputError(
                "job", "remote_path holds {job_id}, so the job must be given: job=submit.output."
            )
        return None
    job_id = check_job_id(job, "job")
    if not isinstance(job, Mapping) or not job.get("working_directory"):
        raise InvalidInputError(
            "job",
            f"{job!r} is not the output of HpcSubmitJobOperator; give job=submit.output, or absolute paths.",
        )
    return {**job, "job_id": job_id}
