"""``HpcFileSensor``: waits for a file on a system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_hpc_provider.client.calls import JSONObject
from airflow_hpc_provider.client.errors import InvalidInputError
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.triggers.files import HpcFileTrigger
from airflow_hpc_provider.watch import FileWatch, Verdict

from .base import HpcSensor

if TYPE_CHECKING:
    from airflow_hpc_provider.client.session import Client

__all__ = ["HpcFileSensor"]


class HpcFileSensor(HpcSensor):
    """Wait until a path is there, or a file that matches a glob, and no longer changes its size.

    :param path: absolute path; with ``glob`` the directory to look in. ``{working_dir}`` in it stands for the
        connection's working directory
    :param glob: pattern of file names, as in a shell: ``*.cif``
    :param stable_for: seconds for which size and time of change must stay the same; 0 takes the first sight
    :param deferrable: wait in the triggerer, without holding a worker
    :param poke_interval: seconds between two looks; in the triggerer, at the most
    :param timeout: seconds after which the sensor gives up
    :param gateway_patience: seconds for which a gateway that cannot be asked is waited for; in ``reschedule``
        mode ``timeout`` alone is the bound
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default: the connection's
    :return: ``files``: path and size in bytes of each file that is there, in the order of their names
    """

    template_fields: Sequence[str] = ("path", "glob", "system", "hpc_conn_id")
    trigger_type = HpcFileTrigger

    def __init__(
        self, *, path: str, glob: str | None = None, stable_for: float = 10.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.glob = glob
        self.stable_for = stable_for

    def watch_for(self, client: Client, hook: HpcHook, **common: Any) -> FileWatch:
        """A watch on the path."""
        from airflow_hpc_provider.client.paths import file_name, remote_path

        if self.glob is not None and "/" in self.glob:
            raise InvalidInputError("glob", f"{self.glob!r} must match a name; put the directory into path.")
        if not isinstance(self.path, str) or "{working_dir}" not in self.path:
            remote_path(self.path, "path")
        name = hook.system_name(self.system)
        path = self.path
        if "{working_dir}" in path:
            path = hook.resolve_path(client, hook.system(client, name), path)
        return FileWatch(
            system=name,
            path=remote_path(path, "path"),
            glob=file_name(self.glob, "glob") if self.glob else None,
            stable_for=self.stable_for,
            **common,
        )

    def done(self, verdict: Verdict) -> JSONObject:
        """The files."""
        return verdict.data
