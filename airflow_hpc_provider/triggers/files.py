"""``HpcFileTrigger``: until a file is there and no longer grows."""

from __future__ import annotations

from airflow_hpc_provider.watch import FileWatch

from .base import HpcTrigger

__all__ = ["HpcFileTrigger"]


class HpcFileTrigger(HpcTrigger):
    """Waits for a path, or for a file in a directory that matches a glob.

    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system
    :param path: absolute path; with ``glob`` the directory to look in
    :param glob: pattern of file names
    :param stable_for: seconds for which the file must keep its size
    :param since: epoch seconds at which the wait began
    :param deadline: epoch seconds at which to give up
    :param poll_interval: seconds between two looks at the most
    """

    watch_type = FileWatch
