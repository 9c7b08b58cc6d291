"""Airflow's side of continued transfers: the task state store, and the Fernet key for what is secret."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk.crypto import FernetProtocol

__all__ = ["TaskKeeper"]

log = logging.getLogger(__name__)

Shield = Callable[[], contextlib.AbstractContextManager[None]]


class TaskKeeper:
    """Keeps transfers in the task state store, which can be read through Airflow's REST API.

    So presigned URLs are written there only encrypted, with the key of ``[core] fernet_key``; without a key
    they are not written at all.

    :param accessor: ``context["task_state_store"]``
    :param generation: a retry has that of the try before it, a cleared task another one
    :param shield: entered around each use of the store: nothing must break off the talk with the supervisor
    """

    def __init__(self, accessor: Any, generation: str, *, shield: Shield = contextlib.nullcontext) -> None:
        self._accessor = accessor
        self._shield = shield
        self._fernet = _fernet()
        self.generation = generation

    @classmethod
    def of(cls, context: Any, *, shield: Shield = contextlib.nullcontext) -> TaskKeeper | None:
        """The keeper of a running task; None where Airflow has no store.

        :param context: the task's context
        """
        accessor = context.get("task_state_store")
        if accessor is None:
            return None
        return cls(accessor, str(getattr(context["ti"], "max_tries", 0)), shield=shield)

    @property
    def seals(self) -> bool:
        """There is a Fernet key."""
        return self._fernet is not None

    def get(self, key: str) -> Any:
        """The value of a key, or None."""
        with self._shield():
            return self._accessor.get(key)

    def set(self, key: str, value: Any) -> None:
        """Write a value."""
        with self._shield():
            self._accessor.set(key, value)

    def delete(self, key: str) -> None:
        """Forget a key."""
        with self._shield():
            self._accessor.delete(key)

    def seal(self, secret: bytes) -> str | None:
        """Encrypt with Airflow's Fernet key."""
        return self._fernet.encrypt(secret).decode() if self._fernet else None

    def unseal(self, sealed: str) -> bytes | None:
        """Decrypt; None if it is another key by now."""
        from cryptography.fernet import InvalidToken  # noqa: PLC0415  a DAG file is parsed often

        try:
            return self._fernet.decrypt(sealed.encode()) if self._fernet else None
        except InvalidToken:
            return None


def _fernet() -> FernetProtocol | None:
    """Airflow's encryption, if a key is configured."""
    # A DAG file is parsed often.
    from airflow.sdk.crypto import get_fernet  # noqa: PLC0415
    from airflow.sdk.exceptions import AirflowException  # noqa: PLC0415

    try:
        fernet = get_fernet()
    except AirflowException as error:
        log.warning("Nothing secret can be kept for a retry. %s", error)
        return None
    return fernet if fernet.is_encrypted else None
