"""Which failures the default retry policy gives up on, and which tasks have it."""

import importlib
from datetime import timedelta

import pytest
from airflow.sdk import DAG, RetryDecision, RetryPolicy
from airflow.sdk.definitions.retry_policy import RetryAction

from airflow_hpc_provider.client import errors
from airflow_hpc_provider.client.errors import HpcError
from airflow_hpc_provider.operators.directories import (
    HpcCopyOperator,
    HpcDeleteOperator,
    HpcListOperator,
    HpcMakeDirectoryOperator,
)
from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator
from airflow_hpc_provider.operators.jobs import HpcCancelJobOperator, HpcSubmitJobOperator
from airflow_hpc_provider.retries import HpcRetryPolicy
from airflow_hpc_provider.sensors.files import HpcFileSensor
from airflow_hpc_provider.sensors.jobs import HpcJobSensor
from airflow_hpc_provider.sensors.systems import HpcSystemSensor

TASKS = [
    (HpcSubmitJobOperator, {"script": "#!/bin/bash\n"}),
    (HpcCancelJobOperator, {"job": "1"}),
    (HpcUploadOperator, {"local_path": "/a", "remote_path": "/b"}),
    (HpcDownloadOperator, {"remote_path": "/b", "local_path": "/a"}),
    (HpcMakeDirectoryOperator, {"path": "/a"}),
    (HpcListOperator, {"path": "/a"}),
    (HpcDeleteOperator, {"path": "/a"}),
    (HpcCopyOperator, {"source_path": "/a", "target_path": "/b"}),
    (HpcJobSensor, {"job": "1"}),
    (HpcFileSensor, {"path": "/a"}),
    (HpcSystemSensor, {}),
]


def api(kind, status):
    return kind("do it", status=status, message="No.")


FAILURES = {
    "bad input": (errors.InvalidInputError("script", "is empty."), "fail"),
    "TLS refused": (errors.UnreachableError("do it", "TLS.", sent=False, transient=False), "fail"),
    "no answer": (errors.UnreachableError("do it", "lost.", sent=True), "default"),
    "a web page": (errors.BadAnswerError("do it", "HTML."), "default"),
    "a redirect": (errors.BadAnswerError("do it", "elsewhere.", transient=False), "fail"),
    "client refused": (errors.TokenRefusedError("no"), "fail"),
    "token endpoint down": (errors.TokenUnavailableError("later"), "default"),
    "400": (api(errors.BadRequestError, 400), "fail"),
    "401": (api(errors.UnauthorizedError, 401), "fail"),
    "403": (api(errors.AccessDeniedError, 403), "fail"),
    "403 of a limit": (api(errors.QuotaError, 403), "default"),
    "404": (api(errors.NotFoundError, 404), "fail"),
    "413": (api(errors.TooLargeError, 413), "fail"),
    "500 of Slurm": (api(errors.RejectedError, 500), "fail"),
    "501": (api(errors.UnsupportedError, 501), "fail"),
    "429": (api(errors.RateLimitedError, 429), "default"),
    "503": (api(errors.UnavailableError, 503), "default"),
    "damaged data": (errors.TransferError("damaged"), "default"),
    "source changed": (errors.TransferError("changed", transient=False), "fail"),
    "gateway away for long": (errors.WatchError("away"), "default"),
    "no such system": (errors.WatchError("no system", transient=False), "fail"),
    "job failed": (errors.JobFailedError("exit code 1", state="FAILED"), "default"),
    "node failed": (errors.JobFailedError("node", state="NODE_FAIL", transient=True), "default"),
    "job lost": (errors.JobLostError("gone"), "default"),
    "an error of others": (ValueError("odd"), "default"),
}


def leaves(kind):
    below = kind.__subclasses__()
    return {leaf for sub in below for leaf in leaves(sub)} if below else {kind}


def test_the_table_below_has_every_kind_of_error():
    ours = {kind for kind in leaves(HpcError) if kind.__module__ == errors.__name__}
    assert ours <= {type(error) for error, _ in FAILURES.values()}


@pytest.mark.parametrize(("error", "action"), FAILURES.values(), ids=FAILURES)
def test_what_no_retry_can_mend_fails_at_once_and_the_rest_follows_the_task(error, action):
    decision = HpcRetryPolicy().evaluate(error, 1, 3, {})
    assert decision.action is RetryAction(action)
    if action == "fail":
        assert type(error).__name__ in decision.reason


def test_the_policy_survives_serialization():
    policy = HpcRetryPolicy()
    assert isinstance(HpcRetryPolicy.deserialize(policy.serialize()), HpcRetryPolicy)


@pytest.mark.parametrize(("kind", "arguments"), TASKS, ids=lambda item: getattr(item, "__name__", ""))
def test_every_task_has_the_policy_unless_it_is_given_another(kind, arguments):
    class Patient(RetryPolicy):
        def evaluate(self, exception, try_number, max_tries, context=None):
            return RetryDecision.retry(timedelta(hours=1))

    own = Patient()
    assert isinstance(kind(task_id="task", **arguments).retry_policy, HpcRetryPolicy)
    assert kind(task_id="task", retry_policy=own, **arguments).retry_policy is own
    with DAG("defaults", schedule=None, default_args={"retry_policy": own}):
        assert kind(task_id="task", **arguments).retry_policy is own


def test_no_task_of_the_provider_is_missing_above():
    from airflow_hpc_provider.provider_info import get_provider_info
    from airflow_hpc_provider.tasks import HpcTask

    info = get_provider_info()
    modules = [
        name for kind in ("operators", "sensors") for entry in info[kind] for name in entry["python-modules"]
    ]
    for name in modules:
        importlib.import_module(name)

    def public(kind):
        below = {sub for direct in kind.__subclasses__() for sub in public(direct)} | set(
            kind.__subclasses__()
        )
        return {sub for sub in below if not sub.__name__.startswith("_")}

    found = {kind.__name__ for kind in public(HpcTask) if kind.__module__ in modules}
    assert found == {kind.__name__ for kind, _ in TASKS}
