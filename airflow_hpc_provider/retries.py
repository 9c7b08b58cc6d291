"""``HpcRetryPolicy``: which failures of an HPC task are worth a retry."""

from __future__ import annotations

from typing import Any

from airflow.sdk import RetryDecision, RetryPolicy

from .client.errors import HpcError, JobError

__all__ = ["HpcRetryPolicy"]


class HpcRetryPolicy(RetryPolicy):
    """Errors that no retry can mend fail the task at once; all others follow the task's ``retries``.

    A wrong account, a missing file or a refused client stay wrong. A gateway in trouble, a node that failed
    and a job that did not complete may do better next time. All operators and sensors of this provider use
    it unless they are given another ``retry_policy``.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Any = None
    ) -> RetryDecision:
        """Decide about one failure."""
        del try_number, max_tries, context
        if (
            isinstance(exception, HpcError)
            and not exception.transient
            and not isinstance(exception, JobError)
        ):
            return RetryDecision.fail(f"{type(exception).__name__}: a retry cannot mend this")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """There is nothing to configure."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> HpcRetryPolicy:
        """The policy again."""
        del data
        return cls()
