"""Assets on HPC systems: the scheme ``hpc``, and what the events of a task's outlets tell.

``hpc://system/path`` is the canonical URI. ``hpc://conn_id@system/path``, as the file system takes it, is the
same asset: which connection leads to a file does not make it another file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from .client.calls import JSONObject
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
        ends = [fact for fact in facts if fact.get("local_path") and uri in _uris(fact["local_path"])]
        return dict(ends[-1]) if ends else _told(facts) if sole else {}
    system, path = place
    here = [fact for fact in facts if str(fact.get("system", "")).lower() == system]
    own = [fact for fact in here if fact.get("path") == path]
    if own:
        return dict(own[-1])
    inside = [fact for fact in here if "path" in fact and is_inside(fact["path"], path)]
    return _told([*inside, *(fact for fact in here if "path" not in fact)])


def _uris(local_path: str) -> tuple[str, str]:
    return local_path, f"file://{local_path}"


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
    from airflow.sdk import Asset  # noqa: PLC0415  a URI is checked often

    events = context.get("outlet_events")
    assets = [outlet for outlet in outlets if isinstance(outlet, Asset)]
    if events is None:
        return
    for asset in assets:
        if extra := extra_for(asset.uri, facts, sole=len(assets) == 1):
            events[asset].extra.update(extra)


def tell_moved(
    context: Mapping[str, Any],
    outlets: Iterable[Any],
    moved: JSONObject | Sequence[JSONObject],
    *,
    job_id: str | None = None,
) -> None:
    """Put what a transfer moved into the events of its outlets: path, size, sha256 and its other end.

    :param context: the task's context
    :param outlets: the task's
    :param moved: what the upload or download operator returns
    :param job_id: the job whose files these are, if there is one
    """
    facts = []
    for one in [moved] if isinstance(moved, Mapping) else moved:
        fact = {
            "system": one["system"],
            "path": one["remote_path"],
            "local_path": one.get("local_path"),
            "size": one.get("size"),
            "sha256": one.get("sha256"),
            "job_id": job_id,
        }
        if isinstance(fact["path"], str):
            facts.append({name: value for name, value in fact.items() if value is not None})
    tell_outlets(context, outlets, facts)
