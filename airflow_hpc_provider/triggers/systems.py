"""``HpcSystemTrigger``: until a system is healthy."""

from __future__ import annotations

from airflow_hpc_provider.watch import SystemWatch

from .base import HpcTrigger

__all__ = ["HpcSystemTrigger"]


class HpcSystemTrigger(HpcTrigger):
    """Waits until the gateway finds a system healthy.

    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system
    :param services: kinds of service that must be healthy; empty for all
    :param since: epoch seconds at which the wait began
    :param deadline: epoch seconds at which to give up
    :param poll_interval: seconds between two looks at the most
    """

    watch_type = SystemWatch
