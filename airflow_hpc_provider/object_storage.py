"""What Airflow asks for when an ``ObjectStoragePath`` has the scheme ``hpc``.

Airflow imports this for every ``ObjectStoragePath``, of whatever scheme, so it imports nothing itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .filesystem import HpcFileSystem

__all__ = ["get_fs", "schemes"]

schemes = ["hpc"]


def get_fs(conn_id: str | None, storage_options: dict[str, Any] | None = None) -> HpcFileSystem:
    """The file system behind a connection.

    :param conn_id: id of a connection of type ``firecrest``; None for ``hpc_default``
    :param storage_options: parameters of :class:`~airflow_hpc_provider.filesystem.HpcFileSystem`
    """
    from .filesystem import HpcFileSystem  # noqa: PLC0415  imported when it is used

    return HpcFileSystem(conn_id, **storage_options or {})
