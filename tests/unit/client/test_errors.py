"""From an error answer to the error it means, with the words that gateways were seen to say."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hpc_provider.client import errors
from airflow_hpc_provider.client.errors import (
    AccessDeniedError,
    ApiError,
    BadRequestError,
    HpcError,
    InvalidInputError,
    JobFailedError,
    NotFoundError,
    QuotaError,
    RateLimitedError,
    RejectedError,
    TokenUnavailableError,
    TooLargeError,
    TransferError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
    UnsupportedError,
    WatchError,
    error_for,
)

REMOTE = "Remote process failed with exit status:1 and error message:"
SLURM = "Unexpected Slurm command response. exit_status:1 std_err:"
COMMAND = "Error executing Slurm command."
REST = (
    "Unexpected Slurm API response. status:500 message:{{\n"
    '  "errors": [\n    {{\n      "description": "{description}",\n      "error_number": 2045,\n'
    '      "error": "{error}",\n      "source": "slurm_submit_batch_job()"\n    }}\n  ],\n'
    '  "warnings": [],\n  "meta": {{}}\n}}'
)


def answer(status, body=None, *, headers=None, **raw):
    request = httpx.Request("GET", "http://gateway/x", headers={"X-Request-ID": "ours"})
    if not raw:
        raw = {"json": body}
    return httpx.Response(status, headers=headers, request=request, **raw)


def said(status, message, causes=None):
    body = {"errorType": "error", "message": message, "causedBy": causes, "data": None, "user": None}
    return error_for("do it", "daint", answer(status, body))


FAILED = f"{SLURM}sbatch: error: Batch job submission failed: "
NO_CANCEL = f"{SLURM}scancel: error: Kill job error on job id 9: "
NO_DATABASE = f"{SLURM}sacct: error: Problem talking to the database: Connection refused"

# What was answered: status, message, causes of the message.
TABLE = {
    BadRequestError: [
        (400, "The provided path (fs) is not an absolute path."),
        (400, f"{REMOTE}mkdir: cannot create directory '/a': File exists"),
        (400, "Account parameter is required on this system."),
        (422, "1 validation error"),
    ],
    UnauthorizedError: [(401, "Access token expires too soon (less than 30s remaining).")],
    AccessDeniedError: [(403, f"{REMOTE}base64: /x: Permission denied")],
    QuotaError: [
        (403, "Job submission rejected: accounting/QOS policy limit exceeded. AssocMaxSubmitJobLimit")
    ],
    NotFoundError: [
        (404, "Job not found."),
        (404, "System not found"),
        (404, f"{REMOTE}rm: cannot remove '/x': No such file or directory"),
    ],
    TooLargeError: [(413, "Command output exceeded buffer limit.")],
    RateLimitedError: [(429, "Too many requests")],
    UnsupportedError: [
        (405, "Method Not Allowed"),
        (501, "Scheduler can't handle this request when configured to use rest"),
    ],
    # 500: the scheduler or the shell said no
    RejectedError: [
        (500, f"{FAILED}Invalid account or account/partition combination specified"),
        (500, f"{FAILED}Invalid partition name specified"),
        (500, f"{FAILED}Requested node configuration is not available"),
        (500, f"{SLURM}sbatch: error: This does not look like a batch script.  The first"),
        (500, f"{SLURM}sbatch: error: Unable to open file /home/u/nope.sh"),
        (500, f"{NO_CANCEL}Job/step already completing or completed"),
        (500, f"{NO_CANCEL}Access/permission denied"),
        (500, f"{NO_CANCEL}Invalid job id specified"),
        (500, COMMAND, f"{SLURM}sacct: fatal: Bad job/step specified: abc"),
        (500, COMMAND, "No SSH credentials found for user:ghost"),
        (500, f"{REMOTE}sha256sum: /a: Is a directory"),
        (500, f"{REMOTE}bash: -c: line 1: unexpected EOF while looking for matching `''"),
        (500, "Invalid output: 0123 /a b"),
    ],
    # 408, 424, 5xx: something broke
    UnavailableError: [
        (408, "Command execution timeout limit exceeded."),
        (424, "SSH login failed"),
        (502, "Bad gateway"),
        (503, "The scheduler service for the requested system (daint) is unhealthy."),
        (504, "Gateway time-out"),
        (418, "I am a teapot"),
        (500, "('Channel not open for sending',)"),
        (500, "(111, 'Connection refused')"),
        (500, COMMAND),
        (500, COMMAND, "Command execution timeout limit exceeded."),
        (500, COMMAND, "Unable to open a new SSH channel."),
        (500, COMMAND, NO_DATABASE),
        (500, f"{FAILED}Socket timed out on send/recv operation"),
        (500, f"{FAILED}Unable to contact slurm controller"),
        (500, f"{FAILED}Invalid account: Resource temporarily unavailable"),
        (500, "('Could not connect to the endpoint URL: \"http://127.0.0.1:9000/fireuser\"',)"),
    ],
}


@pytest.mark.parametrize(("kind", "exchange"), [(kind, row) for kind, rows in TABLE.items() for row in rows])
def test_what_a_gateway_said_becomes_the_error_it_means(kind, exchange):
    status, message, *causes = exchange
    error = said(status, message, causes or None)
    assert type(error) is kind
    assert error.transient == (kind in {QuotaError, RateLimitedError, UnavailableError})
    assert error.ambiguous == (kind is UnavailableError and status not in {424, 503})
    assert (error.status, error.system) == (status, "daint")
    assert error.message == "; ".join([message, *causes])


def test_the_table_has_every_api_error():
    assert set(TABLE) == set(ApiError.__subclasses__())


def test_an_error_says_what_failed_where_and_why_and_under_which_id():
    assert str(said(404, " Job not found. \n")) == (
        "Could not do it on system daint: Job not found. (HTTP 404, request ours)"
    )


def test_an_error_without_system_and_id_is_a_sentence_too():
    error = ApiError("list systems", status=500, message="Trouble")
    assert str(error) == "Could not list systems: Trouble. (HTTP 500)"


def test_an_error_that_has_a_remedy_tells_it():
    assert str(said(403, "accounting/QOS policy limit exceeded")).endswith("let the task retry later.")
    assert "check that the connection's token_url" in str(said(401, "Access token is invalid."))


def test_causes_are_told_once():
    causes = [COMMAND, "No route\n", "No route" + " to host", None, ""]
    assert said(500, COMMAND, causes).message == f"{COMMAND}; No route; No route to host"


def test_the_sentence_in_slurms_json_is_told_alone():
    error = said(
        500,
        REST.format(
            description="Batch job submission failed",
            error="Invalid account or account\\/partition combination",
        ),
    )
    assert error.message == ("Batch job submission failed: Invalid account or account/partition combination")
    assert type(error) is RejectedError


@pytest.mark.parametrize(
    ("inside", "told"),
    [
        ('[{"error": "No"}]', "No"),
        ('[{"description": null, "error": "No"}, {"error": "Never"}]', "No; Never"),
    ],
)
def test_a_part_of_slurms_json_is_enough(inside, told):
    assert said(500, f'message:{{"errors": {inside}, "meta": 1}}').message == told


@pytest.mark.parametrize("inside", ["[{]", '["No"]', '[{"description": "x"}]', "[]", "[1]"])
def test_json_of_another_shape_is_told_whole(inside):
    message = f'message:{{"errors": {inside}, "meta": 1}}'
    assert said(500, message).message == message


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (
            {"html": "<html><head><title>502</title></head>\n<body>Bad   Gateway<br/></body>"},
            "502 Bad Gateway",
        ),
        ({"text": ""}, r"Bad Gateway (empty answer)"),
        ({"json": ["x"]}, '["x"]'),
        ({"json": {"detail": "Not Found"}}, '{"detail":"Not Found"}'),
        ({"json": {"message": None}}, '{"message":null}'),
        ({"content": b"\xff\xfe\x00"}, "\ufffd\ufffd\x00"),
        ({"text": "x" * 5000}, "x" * 300),
    ],
    ids=["html", "empty", "list", "other object", "null message", "binary", "long"],
)
def test_a_body_of_another_shape_is_told_as_text(raw, told):
    assert error_for("do it", None, answer(502, **raw)).message == told


@pytest.mark.parametrize("causes", ["No route", {"a": 1}, 7, [{"type": "x"}, 7]])
def test_causes_of_another_shape_do_no_harm(causes):
    assert said(500, "Trouble", causes).message.startswith("Trouble")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0.5", 0.5), ("-1", 0), ("soon", None), ("", None), (None, None)],
)
def test_the_pause_that_was_asked_for_is_read(header, seconds):
    headers = {} if header is None else {"Retry-After": header}
    assert error_for("do it", None, answer(429, {}, headers=headers)).retry_after == seconds


@given(
    st.integers(400, 599), st.binary(max_size=200), st.sampled_from(["application/json", "text/html", "x/y"])
)
def test_no_error_answer_whatever_makes_another_error(status, content, kind):
    error = error_for("do it", None, answer(status, content=content, headers={"content-type": kind}))
    assert isinstance(error, ApiError)
    assert f"HTTP {status}" in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(st.integers(400, 599), st.fixed_dictionaries({"message": JSON, "causedBy": JSON}))
def test_no_json_whatever_makes_another_error(status, body):
    import json

    content = json.dumps(body).encode()
    assert isinstance(error_for("do it", None, answer(status, content=content)), ApiError)


def test_every_error_is_in_the_tree_that_the_docstring_draws():
    kinds = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert all(issubclass(kind, HpcError) for kind in kinds)
    for kind in kinds:
        assert kind.__name__ in errors.__doc__
        assert kind.__doc__


def test_an_input_error_is_a_value_error_that_names_the_field():
    error = InvalidInputError("path", "is empty.")
    assert isinstance(error, ValueError)
    assert (str(error), error.field, error.transient) == ("path: is empty.", "path", False)


def test_a_lost_answer_is_told_with_the_fate_of_the_request():
    sent = UnreachableError("submit", "lost.", sent=True)
    unsent = UnreachableError("submit", "refused.", sent=False, transient=False)
    assert str(sent) == "Could not submit: lost. It may or may not have been carried out."
    assert str(unsent) == "Could not submit: refused. It was not sent."
    assert (sent.ambiguous, sent.transient) == (True, True)
    assert (unsent.ambiguous, unsent.transient) == (False, False)


def test_transience_is_told_where_it_depends_on_the_case():
    assert TransferError("short").transient
    assert not TransferError("no such file", transient=False).transient
    assert TokenUnavailableError("down").transient
    assert not TokenUnavailableError("TLS failed", transient=False).transient
    assert WatchError("the gateway is away").transient
    assert not WatchError("a user ended the task", transient=False).transient
    failed = JobFailedError("NODE_FAIL", state="NODE_FAIL", transient=True)
    assert (failed.state, failed.transient) == ("NODE_FAIL", True)
