"""What was submitted, as a task shows it: kept in the task state store, since a task is resumed elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .client.calls import JSONObject

if TYPE_CHECKING:
    from .client.jobs import JobSpec

__all__ = ["SUBMITTED_KEY", "keep", "kept", "masked"]

# The key in the task state store.
SUBMITTED_KEY = "hpc_submitted"


def masked(value: Any) -> Any:
    """A value without what Airflow masks: its secrets, and the values of names like one."""
    from airflow.sdk.log import redact  # type: ignore[attr-defined]  # noqa: PLC0415  a DAG file is parsed often

    return redact(value)


def keep(store: Any, spec: JobSpec) -> tuple[str | None, JSONObject]:
    """Write down what is about to be submitted.

    :param store: ``context["task_state_store"]``, or None
    :param spec: the job, made of masked values
    :return: the script, None if it is a file on the system; and what is sent beside it
    """
    script = None if spec.script is None else str(masked(spec.script))
    beside = masked(replace(spec, script=None).body()["job"])
    if store is not None:
        store.set(SUBMITTED_KEY, {"script": script, "beside": beside})
    return script, beside


def kept(store: Any) -> tuple[str | None, JSONObject | None]:
    """What an earlier try, or the worker that deferred, wrote down; twice None if there is nothing."""
    found = store.get(SUBMITTED_KEY) if store is not None else None
    found = found if isinstance(found, dict) else {}
    return found.get("script"), found.get("beside")
