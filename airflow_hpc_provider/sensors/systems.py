"""``HpcSystemSensor``: waits for a healthy system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_hpc_provider.client.errors import InvalidInputError
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.triggers.systems import HpcSystemTrigger
from airflow_hpc_provider.watch import SystemWatch, Verdict

from .base import HpcSensor

if TYPE_CHECKING:
    from airflow_hpc_provider.client.session import Client

__all__ = ["HpcSystemSensor"]

_SERVICES = ("scheduler", "filesystem", "ssh", "s3")


class HpcSystemSensor(HpcSensor):
    """Wait until the gateway finds a system and its services healthy.

    With ``timeout=0`` it refuses at once where the system is not.

    :param services: kinds of service that must be healthy: ``scheduler``, ``filesystem``, ``ssh``, ``s3``.
        Default: all that the system has
    :param deferrable: wait in the triggerer, without holding a worker
    :param poke_interval: seconds between two looks; in the triggerer, at the most
    :param timeout: seconds after which the sensor gives up
    :param gateway_patience: seconds for which a gateway that cannot be asked is waited for; in ``reschedule``
        mode ``timeout`` alone is the bound
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default: the connection's
    :return: name of the system
    """

    template_fields: Sequence[str] = ("services", "system", "hpc_conn_id")
    trigger_type = HpcSystemTrigger

    def __init__(self, *, services: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.services = services

    def watch_for(self, client: Client, hook: HpcHook, **common: Any) -> SystemWatch:
        """A watch on the system."""
        del client
        for service in self.services:
            if service not in _SERVICES:
                raise InvalidInputError("services", f"{service!r} is not one of {', '.join(_SERVICES)}.")
        return SystemWatch(system=hook.system_name(self.system), services=list(self.services), **common)

    def done(self, verdict: Verdict) -> str:
        """The system's name."""
        return str(verdict.data["system"])
