"""Operators that stage files in and out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_hpc_provider.client.calls import JSONObject
from airflow_hpc_provider.client.errors import InvalidInputError, TransferError, WatchError
from airflow_hpc_provider.tasks import HpcTask
from airflow_hpc_provider.watch import JobWatch, Outcome

if TYPE_CHECKING:
    from airflow_hpc_provider.client.jobs import Job
    from airflow_hpc_provider.client.session import Client
    from airflow_hpc_provider.client.staging import Moved, Wait
    from airflow_hpc_provider.client.systems import System

__all__ = ["HpcDownloadOperator", "HpcUploadOperator"]


class _Killed(BaseException):
    """Raised amid a transfer by a signal handler: nothing that catches errors to try again must catch it."""


class _TransferOperator(HpcTask):
    """What both directions share."""

    ui_color = "#eaf6ec"

    def __init__(self, *, account: str | None = None, poll_interval: float = 10.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.account = account
        self.poll_interval = poll_interval
        self._moving = False

    def on_kill(self) -> None:
        """End the transfer where it stands, which cancels its job on the system."""
        if self._moving:
            self._moving = False
            raise _Killed

    @contextlib.contextmanager
    def _while_moving(self) -> Iterator[None]:
        """While data moves, a kill ends it."""
        self._moving = True
        try:
            yield
        except _Killed:
            raise TransferError("The worker was told to end while it moved data.") from None
        finally:
            self._moving = False

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

    def _report(self, moved: Moved, system: str, local_path: Path, verb: str) -> JSONObject:
        way = "staged" if moved.staged else "directly"
        self.log.info(
            "%s %s (%d bytes, %s, verified by %s).", verb, moved.path, moved.size, way, moved.verified
        )
        plain = asdict(moved)
        return {
            "system": system,
            "remote_path": plain.pop("path"),
            "local_path": str(local_path),
            **plain,
        }


class HpcUploadOperator(_TransferOperator):
    """Stage in: copy a local file to a system. Small files go directly, large ones through S3 staging.

    :param local_path: file on the worker; or a list of files
    :param remote_path: absolute path of the file to make; with a list, or ending in ``/``, the directory to
        copy into. ``{working_dir}`` in it stands for the connection's working directory
    :param make_parents: make the directory if it is missing
    :param account: account for the transfer job of a large file. Default: the connection's
    :param poll_interval: seconds between two looks at that job at the most
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default: the connection's
    :return: system, remote path, local path, size in bytes, sha256, whether it was staged and how it was
        verified; with a list, a list of these
    """

    template_fields: Sequence[str] = ("local_path", "remote_path", "account", "system", "hpc_conn_id")

    def __init__(
        self,
        *,
        local_path: str | Path | Sequence[str | Path],
        remote_path: str,
        make_parents: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.local_path = local_path
        self.remote_path = remote_path
        self.make_parents = make_parents

    def execute(self, context: Any) -> JSONObject | list[JSONObject]:
        """Copy."""
        from airflow_hpc_provider.client import files
        from airflow_hpc_provider.client.paths import file_name, remote_path
        from airflow_hpc_provider.client.staging import upload_file

        del context
        given, several = _listed(self.local_path)
        sources = [_local_file(path) for path in given]
        _check_distinct([source.name for source in sources], "local_path")
        _check_shape(self.remote_path)
        hook = self.hook
        with hook.client() as client:
            system = hook.system(client, self.system)
            path = hook.resolve_path(client, system, self.remote_path)
            into = several or path.endswith("/")
            target = remote_path(path, "remote_path")
            targets = [
                f"{target.rstrip('/')}/{file_name(source.name, 'local_path')}" if into else target
                for source in sources
            ]
            if self.make_parents:
                client.send(
                    files.make_directory(system.name, target if into else _parent(target), parents=True)
                )
            account = self.account or hook.settings.account
            with self._while_moving():
                done = [
                    self._report(
                        upload_file(
                            client, system, source, there, wait=self._wait(client, system), account=account
                        ),
                        system.name,
                        source,
                        "Uploaded",
                    )
                    for source, there in zip(sources, targets, strict=True)
                ]
        return done if several else done[0]


class HpcDownloadOperator(_TransferOperator):
    """Stage out: copy a file from a system to the worker. It appears under its name when it is complete.

    :param remote_path: absolute path on the system, or relative to the working directory of ``job``; or a
        list. ``{job_id}`` in it stands for the job's id, ``{working_dir}`` for the connection's working
        directory
    :param local_path: file to make on the worker; with a list, or ending in ``/``, the directory to copy into
    :param job: output of the task that submitted a job: ``job=submit.output``
    :param make_parents: make the local directory if it is missing
    :param account: account for the transfer job of a large file. Default: the connection's
    :param poll_interval: seconds between two looks at that job at the most
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default: that of ``job``, else the connection's
    :return: system, remote path, local path, size in bytes, sha256, whether it was staged and how it was
        verified; with a list, a list of these
    """

    template_fields: Sequence[str] = ("remote_path", "local_path", "job", "account", "system", "hpc_conn_id")

    def __init__(
        self,
        *,
        remote_path: str | Sequence[str],
        local_path: str | Path,
        job: Any = None,
        make_parents: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.remote_path = remote_path
        self.local_path = local_path
        self.job = job
        self.make_parents = make_parents

    def execute(self, context: Any) -> JSONObject | list[JSONObject]:
        """Copy."""
        from airflow_hpc_provider.client.paths import remote_path
        from airflow_hpc_provider.client.staging import download_file

        del context
        job = _job_output(self.job, self.remote_path)
        wanted, several = _listed(self.remote_path)
        for path in wanted:
            _check_shape(path, relative=job is not None)
        _check_distinct([path.rpartition("/")[2] for path in wanted], "remote_path")
        local = _local(self.local_path)
        into = several or str(self.local_path).endswith("/")
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
                (local if into else local.parent).mkdir(parents=True, exist_ok=True)
            account = self.account or hook.settings.account
            with self._while_moving():
                done = []
                for source in sources:
                    target = local / source.rpartition("/")[2] if into else local
                    moved = download_file(
                        client, system, source, target, wait=self._wait(client, system), account=account
                    )
                    done.append(self._report(moved, system.name, target, "Downloaded"))
        return done if several else done[0]


def _listed(given: Any) -> tuple[list[Any], bool]:
    """What was given as a list, and whether it was one."""
    several = isinstance(given, Sequence) and not isinstance(given, str)
    return (list(given), True) if several else ([given], False)


def _check_distinct(names: list[str], field: str) -> None:
    """In one directory the second file of a name would replace the first."""
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidInputError(field, f"holds two files of the name {twice!r}; move them one by one.")


def _local(path: Any) -> Path:
    if not isinstance(path, str | Path) or not str(path):
        said = "is empty" if path == "" else f"is {type(path).__name__}"
        raise InvalidInputError(
            "local_path", f"{said}; if it comes from another task, that task did not run or returned nothing."
        )
    return Path(path)


def _local_file(path: Any) -> Path:
    """A local path that names a file, or nothing is asked of the gateway."""
    local = _local(path)
    if not local.exists():
        raise InvalidInputError("local_path", f"{str(path)!r} does not exist on this worker.")
    if not local.is_file():
        raise InvalidInputError(
            "local_path", f"{str(path)!r} is no file; give files, or an archive of the directory."
        )
    return local


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
