"""What users name to be moved: paths, globs and lists, read and checked before anything is sent."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_hpc_provider.client.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from airflow_hpc_provider.client.files import Entry, Stat
    from airflow_hpc_provider.client.session import Client
    from airflow_hpc_provider.client.systems import System
    from airflow_hpc_provider.client.terms import Terms
    from airflow_hpc_provider.client.trees import LocalFiles
    from airflow_hpc_provider.endpoints import Endpoint

__all__ = [
    "HANDFUL",
    "Found",
    "check_archived",
    "check_distinct",
    "check_shape",
    "endpoint",
    "is_glob",
    "is_many",
    "job_output",
    "listed",
    "local_files",
    "look",
    "look_at_all",
    "naming",
    "needs_archive",
    "parent",
    "pattern_of",
    "place",
]

_NAME_BYTES = 255
# So many small files need fewer requests one by one than as an archive.
HANDFUL = 5


@dataclass(frozen=True, slots=True)
class Found:
    """What a user names on a system.

    :param path: absolute path or glob
    :param is_plain: the gateway can be told it
    :param stat: how it looks; None of what cannot be looked at
    :param matches: it is a glob, and not the name of something
    :param entry: how a listing of its directory shows it, of what needs no closer look
    """

    path: str
    is_plain: bool
    stat: Stat | None = None
    matches: bool = False
    entry: Entry | None = None

    @property
    def name(self) -> str:
        """Last name of the path."""
        return self.path.rpartition("/")[2]

    @property
    def is_many(self) -> bool:
        """It is a directory or a glob."""
        if self.entry is not None:
            return self.entry.is_directory
        return self.matches if self.stat is None else self.stat.is_directory

    @property
    def size(self) -> int | None:
        """Bytes; None if nobody has looked."""
        seen = self.entry or self.stat
        return seen.size if seen else None


def check_archived(terms: Terms, what: str) -> None:
    """Refuse terms that an archive cannot keep."""
    if terms.if_exists != "overwrite":
        raise InvalidInputError(
            "if_exists",
            f"{what} travels as an archive, which is merged with what is there: {terms.if_exists!r} is for "
            "files that travel one by one.",
        )
    if terms.atomic:
        raise InvalidInputError(
            "atomic", f"{what} travels as an archive, whose files appear one by one: leave it out."
        )


def listed(given: Any) -> tuple[list[Any], bool]:
    """What was given as a list, and whether it was one."""
    several = isinstance(given, Sequence) and not isinstance(given, str)
    return (list(given), True) if several else ([given], False)


def check_distinct(names: list[str], field: str) -> None:
    """In one directory the second file of a name would replace the first."""
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidInputError(field, f"holds two files of the name {twice!r}; move them one by one.")


def endpoint(path: Any) -> Endpoint:
    from airflow_hpc_provider.endpoints import endpoint_of

    return endpoint_of(path)


def is_glob(path: str) -> bool:
    from airflow_hpc_provider.client.choices import is_glob

    return is_glob(path)


def is_many(here: Endpoint) -> bool:
    """Whether it is a directory or a glob. Storages are asked when a file of them is opened.

    :raises InvalidInputError: there is nothing, or nothing that can be read
    """
    path = here.local
    if path is None:
        if here.is_directory_like:
            raise InvalidInputError(
                "local_path", f"{here} is a directory of a storage: give its files, or a list of them."
            )
        return False
    if path.is_dir():
        return True
    if path.is_file():
        return False
    if not os.path.lexists(path) and is_glob(str(path)):
        return True
    if path.exists():
        raise InvalidInputError("local_path", f"{str(path)!r} is neither a file nor a directory.")
    raise InvalidInputError("local_path", f"{str(path)!r} does not exist on this worker.")


def local_files(here: Sequence[Endpoint | None], *, several: bool) -> LocalFiles:
    """Local files as an archive's maker takes them: what is there is a path, a glob is text."""
    paths = [one.local for one in here if one is not None and one.local is not None]
    found = [path if os.path.lexists(path) else str(path) for path in paths]
    return found if several else found[0]


def pattern_of(one: Found) -> str:
    """How an archive's maker is told what there is: wildcards in a name that is there are none."""
    from airflow_hpc_provider.client.choices import escape

    if one.matches or not is_glob(one.path):
        return one.path
    if one.is_many:
        raise InvalidInputError(
            "remote_path",
            f"{one.path} is a directory, and its name looks like a glob: give the directory it is in, and "
            "its name as include.",
        )
    return "/".join(map(escape, one.path.split("/")))


def needs_archive(one: Found, system: System) -> bool:
    """Whether a file can only travel in an archive: the gateway leaves a path without quotes to stage it."""
    if one.is_many:
        return False
    if not one.is_plain:
        return True
    if one.size is None or one.size <= system.max_direct_download_bytes:
        return False
    return not _is_place(one.path, unquoted=True)


def _is_place(path: str, *, unquoted: bool) -> bool:
    from airflow_hpc_provider.client.paths import remote_path

    try:
        remote_path(path, "remote_path", unquoted=unquoted)
    except InvalidInputError:
        return False
    return True


def look(client: Client, system: System, path: str, is_plain: bool) -> Found:
    """Look at what is to be downloaded; what matches a glob is found when it is packed."""
    from airflow_hpc_provider.client import files

    if not is_plain:
        return Found(path, is_plain, matches=is_glob(path) and not _is_listed(client, system, path))
    try:
        return Found(path, is_plain, client.send(files.stat(system.name, path, dereference=True)))
    except NotFoundError:
        if is_glob(path):
            return Found(path, is_plain, matches=True)
        raise


def look_at_all(
    client: Client, system: System, sources: Sequence[tuple[str, bool]]
) -> tuple[list[Found], dict[str, tuple[Entry, ...]]]:
    """Look at a list: where many are in one directory, that is listed once.

    :return: what was found, and what is in the directories that were listed
    """
    from airflow_hpc_provider.client.trees import listed

    above = [parent(path) for path, _ in sources]
    counts = Counter(above)
    listings = {
        directory: entries
        for directory, count in counts.items()
        if count > HANDFUL and (entries := listed(client, system, directory)) is not None
    }
    named = {directory: {one.name: one for one in entries} for directory, entries in listings.items()}
    found = []
    for (path, is_plain), directory in zip(sources, above, strict=True):
        entry = named.get(directory, {}).get(path.rpartition("/")[2]) if is_plain else None
        known = entry is not None and (entry.is_file or entry.is_directory)
        found.append(Found(path, is_plain, entry=entry) if known else look(client, system, path, is_plain))
    return found, listings


def _is_listed(client: Client, system: System, path: str) -> bool:
    """Whether something has just this name, of which the gateway can be told the directory alone."""
    from airflow_hpc_provider.client import files

    above, _, name = path.rpartition("/")
    entries = client.send(files.listing(system.name, above, hidden=True))
    return any(entry.name == name for entry in entries)


def place(path: Any, field: str, *, base: str | None = None, archive: bool = False) -> tuple[str, bool]:
    """An absolute path, and whether the gateway can be told it.

    :param base: directory that a relative path is below
    :param archive: it may travel in an archive: then the last name is free
    :raises InvalidInputError: it can be sent in no way
    """
    from airflow_hpc_provider.client.paths import remote_path

    try:
        return remote_path(path, field, base=base), True
    except InvalidInputError:
        if not archive or not isinstance(path, str):
            raise
        above, slash, name = path.rpartition("/")
        if name in ("", ".", "..") or "\0" in name or len(os.fsencode(name)) > _NAME_BYTES:
            raise
        directory = "/"
        with contextlib.suppress(InvalidInputError):
            directory = remote_path(above if above or slash else ".", field, base=base)
        if directory == "/":
            raise
        return f"{directory}/{name}", False


def check_shape(path: Any, *, relative: bool = False, archive: bool = False) -> bool:
    """Refuse a bad remote path before the gateway is asked for anything.

    :return: whether the gateway can be told it
    """
    if isinstance(path, str) and path.startswith("{working_dir}"):
        path = path.replace("{working_dir}", "/any", 1)
    if isinstance(path, str):
        path = path.replace("{job_id}", "1")
    return place(path, "remote_path", base="/any" if relative else None, archive=archive)[1]


@contextlib.contextmanager
def naming(field: str) -> Iterator[None]:
    """Let an error about the source of an archive name the parameter that the source is here."""
    try:
        yield
    except InvalidInputError as error:
        if error.field != "source":
            raise
        raise InvalidInputError(field, str(error).removeprefix("source: ")) from error


def parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def job_output(job: Any, path: Any) -> Mapping[str, Any] | None:
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
