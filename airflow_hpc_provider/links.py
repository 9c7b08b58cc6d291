"""``HpcJobLink``: from a task to its job's page in the centre's web interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

__all__ = ["HpcJobLink", "job_page"]

# Routes of FirecREST UI.
_JOB = "/compute/systems/{system}/accounts/{account}/jobs/{job_id}"
_SYSTEM = "/compute/systems/{system}"


class HpcJobLink(BaseOperatorLink):
    """The job's page, if the connection names the centre's web interface (``ui_url``)."""

    @property
    def name(self) -> str:
        """What the button says."""
        return "Job page"

    @property
    def xcom_key(self) -> str:
        """Where the operator keeps the link."""
        return "hpc_job_page"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The link of the task that has just run; empty if there is none.

        :param operator: the task
        :param ti_key: its task instance
        """
        del ti_key
        task: Any = operator
        return str(getattr(task, "job_page", None) or "")


def job_page(ui_url: str, *, system: str, job_id: str, account: str | None) -> str:
    """The address of a job's page.

    :param ui_url: of the connection: where FirecREST UI is, or the pattern of any other page with
        ``{system}``, ``{job_id}`` and ``{account}`` in it
    :param system: name of the system
    :param job_id: id of the job
    :param account: account that the job is charged to; FirecREST UI has no page for a job without one, so
        that leads to its system's
    """
    page = ui_url if "{" in ui_url else ui_url.rstrip("/") + (_JOB if account else _SYSTEM)
    for name, value in (("system", system), ("job_id", job_id), ("account", account or "")):
        page = page.replace(f"{{{name}}}", quote(value, safe=""))
    return page
