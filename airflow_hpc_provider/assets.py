"""Assets on HPC systems: the scheme ``hpc``, and what the events of a task's outlets tell.

``hpc://system/path`` is the canonical URI. ``hpc://conn_id@system/path``, as the file system takes it, is the
same asset: which connection leads to a file does not make it another file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from .client.calls import JSONObject
from .client.choices import split_glob
from .client.errors import InvalidInputError
from .client.paths import is_inside, remote_path

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.sdk import Asset

__all__ = [
    "convert_asset_to_openlineage",
    "create_asset",
    "extra_for",
    "place_of",
    "sanitize_uri",
    "tell_moved",
    "tell_outlets",
    "uri_of",
]

_SYSTEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# So many files are named in one event at the most; ``count`` tells of the others.
_FILES = 100

Contents = Mapping[str, tuple[int, str]]


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """The canonical form of an asset's URI; what Airflow calls for the scheme ``hpc``.

    :param uri: the URI, split
    :raises InvalidInputError: it names no system or no path that a gateway may be asked for, or holds what
        does not belong to an asset: a password, a port, a query
    """
    user, at, system = uri.netloc.rpartition("@")
    if ":" in user:
        raise InvalidInputError("uri", "an asset holds no password; secrets belong into the connection.")
    if at and not user:
        raise InvalidInputError("uri", "there is an @ without the id of a connection before it.")
    if not _SYSTEM.fullmatch(system):
        raise InvalidInputError(
            "uri", f"{system!r} is no name of a system; an asset is written hpc://system/path."
        )
    if uri.query:
        raise InvalidInputError("uri", "an asset has no query: it is hpc://system/path, without a '?'.")
    path = remote_path(uri.path or "/", "uri")
    return uri._replace(scheme="hpc", netloc=system.lower(), path=path, query="", fragment="")


def uri_of(system: str, path: str) -> str:
    """The canonical URI of a file or directory.

    :param system: name of the system
    :param path: absolute path there
    :raises InvalidInputError: the system or the path is none that a gateway may be asked for
    """
    return sanitize_uri(SplitResult("hpc", system, path, "", "")).geturl()


def place_of(uri: str) -> tuple[str, str] | None:
    """System and path of an asset's URI; None if it is of another scheme.

    :param uri: as an asset holds it
    """
    if not uri.startswith("hpc:"):
        return None
    try:
        clean = sanitize_uri(urlsplit(uri))
    except ValueError:
        return None
    return clean.netloc, clean.path


def create_asset(*, system: str, path: str, extra: dict[str, Any] | None = None) -> Asset:
    """The asset of a file or directory; what Airflow calls for the scheme ``hpc``.

    :param system: name of the system
    :param path: absolute path there
    :param extra: what the asset is to hold beside its URI
    """
    from airflow.sdk import Asset  # noqa: PLC0415  a URI is checked often

    return Asset(uri=uri_of(system, path), extra=extra)


def convert_asset_to_openlineage(asset: Asset, lineage_context: Any) -> Dataset:
    """The OpenLineage dataset of an asset: namespace ``hpc://system``, name the path.

    :param asset: an asset of the scheme ``hpc``
    :param lineage_context: unused; Airflow passes it
    """
    from airflow.providers.common.compat.openlineage.facet import Dataset  # noqa: PLC0415  few need it

    del lineage_context
    clean = sanitize_uri(urlsplit(asset.uri))
    return Dataset(namespace=f"hpc://{clean.netloc}", name=clean.path)


def extra_for(uri: str | None, facts: Sequence[JSONObject], *, sole: bool) -> JSONObject:
    """What the event of one outlet tells of what a task did; pure.

    Facts with a ``path`` are about files: an outlet on the same system is told of its own file, or of those
    in its directory, and an outlet elsewhere of the file whose other end (``local_path``) it is. Facts
    without one are about a job: every outlet on its system is told.

    :param uri: of the outlet; None if it has none
    :param facts: plain JSON about each file or job, with its ``system``
    :param sole: it is the task's only outlet, which is told of everything if it is of another scheme
    :return: empty if there is nothing to tell
    """
    place = place_of(uri or "")
    if place is None:
        ends = [fact for fact in facts if uri in _uris(fact.get("local_path"))]
        return dict(ends[-1]) if ends else _told(facts) if sole else {}
    system, path = place
    here = [fact for fact in facts if str(fact.get("system", "")).lower() == system]
    own = [fact for fact in here if fact.get("path") == path]
    if own:
        return dict(own[-1])
    inside = [
        fact for fact in here if any(_is_about(fact, each, path) for each in _several(fact.get("path")))
    ]
    return _told([*inside, *(fact for fact in here if "path" not in fact)])


def _is_about(fact: JSONObject, place: str, path: str) -> bool:
    """Whether an outlet may be told; of an archive all of it, if nobody knows more."""
    return is_inside(place, path) or ("files" in fact and is_inside(path, place))


def _uris(local_path: Any) -> list[str]:
    return [uri for each in _several(local_path) for uri in (each, f"file://{each}")]


def _several(paths: Any) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths or ())


def _told(facts: Sequence[JSONObject]) -> JSONObject:
    if len(facts) < 2:
        return dict(facts[0]) if facts else {}
    return {"files": [dict(fact) for fact in facts[:_FILES]], "count": len(facts)}


def tell_outlets(context: Mapping[str, Any], outlets: Iterable[Any], facts: Sequence[JSONObject]) -> None:
    """Put what a task did into the events of its outlets.

    :param context: the task's context
    :param outlets: the task's; only assets are told
    :param facts: plain JSON about each file or job, with its ``system``
    """
    _tell(context, outlets, lambda _: facts)


def _tell(
    context: Mapping[str, Any], outlets: Iterable[Any], facts_for: Callable[[str], Sequence[JSONObject]]
) -> None:
    from airflow.sdk import Asset  # noqa: PLC0415  a URI is checked often

    events = context.get("outlet_events")
    assets = [outlet for outlet in outlets if isinstance(outlet, Asset)]
    if events is None:
        return
    for asset in assets:
        if extra := extra_for(asset.uri, facts_for(asset.uri), sole=len(assets) == 1):
            events[asset].extra.update(extra)


def tell_moved(
    context: Mapping[str, Any],
    outlets: Iterable[Any],
    moved: JSONObject | Sequence[JSONObject],
    *,
    job_id: str | None = None,
    contents: Contents | None = None,
) -> None:
    """Put what a transfer moved into the events of its outlets.

    Of a file that is path, size, sha256 and its other end; of an archive the path, the number of files and
    their size, or the same of what the outlet names in it.

    :param context: the task's context
    :param outlets: the task's
    :param moved: what the upload or download operator returns
    :param job_id: the job whose files these are, if there is one
    :param contents: size and sha256 of each file of an archive, by its path below the target
    """
    rows = [moved] if isinstance(moved, Mapping) else moved

    def facts_for(uri: str) -> list[JSONObject]:
        found = [
            fact
            for row in rows
            for fact in [_fact_of_tree(row, uri, contents or {}) if "files" in row else _fact_of_file(row)]
            if fact
        ]
        return [
            {name: value for name, value in (fact | {"job_id": job_id}).items() if value is not None}
            for fact in found
        ]

    _tell(context, outlets, facts_for)


def _fact_of_file(row: JSONObject) -> JSONObject:
    names = ("local_path", "size", "sha256")
    return {"system": row["system"], "path": row["remote_path"], **{name: row.get(name) for name in names}}


def _fact_of_tree(row: JSONObject, uri: str, contents: Contents) -> JSONObject | None:
    """What an outlet is told of an archive: all of it, or what it names in it; None if nothing is."""
    place = place_of(uri)
    given, glob = row["remote_path"], None
    bases = []
    for path in _several(given):
        base, pattern = split_glob(path)
        # In a list files and directories go by their last names.
        bases.append((base, base.rpartition("/")[2] if pattern is None and given != path else ""))
        glob = path if pattern is not None and given == path else glob
    whole = {
        "system": row["system"],
        "path": bases[0][0] if isinstance(given, str) else given,
        "glob": glob,
        "local_path": row["local_path"],
        "files": row["files"],
        "size": row["size"],
    }
    if place is not None:
        end = place[1]
    elif isinstance(row["local_path"], str):
        # Of this side an outlet may name what is below the directory.
        end, bases = uri.removeprefix("file://"), [(row["local_path"], "")]
    else:
        return whole
    inner = [(base, name) for base, name in bases if is_inside(end, base) and (name or end != base)]
    if not inner or not contents:
        return whole
    for base, name in inner:
        below = "/".join(part for part in (name, end[len(base.rstrip("/")) + 1 :]) if part)
        if fact := _fact_below(whole, end, below, contents, here=place is None):
            return fact
    return None


def _fact_below(
    whole: JSONObject, end: str, below: str, contents: Contents, *, here: bool
) -> JSONObject | None:
    """What is known of one file or directory of an archive.

    :param end: path that an outlet gives it, on this side or on the system
    :param below: its path below the target
    :param here: the outlet is on this side
    """
    at = {"system": whole["system"], "path": end}
    if here:
        at = {name: whole[name] for name in ("system", "path", "glob")} | {"local_path": end}
    if below in contents:
        size, sha256 = contents[below]
        return at | {"size": size, "sha256": sha256}
    sizes = [size for name, (size, _) in contents.items() if name.startswith(f"{below}/")]
    return at | {"files": len(sizes), "size": sum(sizes)} if sizes else None
