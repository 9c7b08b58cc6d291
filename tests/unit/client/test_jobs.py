"""Jobs: reading the records of Slurm 22.05, 24.11 and its REST API as recorded, and what the calls say."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hpc_provider.client import jobs
from airflow_hpc_provider.client.errors import (
    AccessDeniedError,
    ApiError,
    BadAnswerError,
    InvalidInputError,
    NotFoundError,
    RejectedError,
    UnavailableError,
)
from airflow_hpc_provider.client.jobs import (
    Element,
    Job,
    JobMetadata,
    JobSpec,
    check_job_id,
    read_job,
    window_for,
)
from airflow_hpc_provider.client.states import JobState

# Recorded bodies of real gateways, if they lie beside the project; it does without.
RECORDED = Path(__file__).parents[4] / "shared" / "contract" / "responses"

START, END = 1795320761, 1795320843
BATCH = {
    "id": "20.batch",
    "name": "batch",
    "status": {"state": "CANCELLED", "exitCode": 0, "interruptSignal": 15},
}


def record(job_id="20", state="COMPLETED", **changes):
    """A record as Slurm 22.05 behind ssh gives it; None takes a field away."""
    status = {"state": state, "stateReason": "None", "exitCode": 0, "interruptSignal": 0}
    time = {"elapsed": 82, "start": START, "end": END, "suspended": 0, "limit": 60}
    whole = {
        "jobId": job_id,
        "name": "rec-job",
        "status": status | changes.pop("status", {}),
        "tasks": [],
        "time": time | changes.pop("time", {}),
        "account": "staff",
        "allocationNodes": 1,
        "cluster": "rig",
        "group": "users",
        "nodes": "nid001",
        "partition": "normal",
        "killRequestUser": None,
        "user": "fireuser",
        "workingDirectory": "/home/fireuser",
        "priority": 4294901744,
    }
    return whole | changes


def queued(job_id, state="RUNNING", **changes):
    """The same from the queue: no exit code, no steps, an end that is a guess."""
    return record(job_id, state, **{"status": {"exitCode": None, "interruptSignal": None}} | changes)


def at(seconds):
    return datetime.fromtimestamp(seconds, tz=UTC)


# --- plain jobs -------------------------------------------------------------------------------------------


def test_a_completed_job_is_read_whole():
    assert read_job("20", [record()]) == Job(
        job_id="20",
        state=JobState.COMPLETED,
        state_text="COMPLETED",
        name="rec-job",
        exit_code=0,
        user="fireuser",
        account="staff",
        partition="normal",
        working_directory="/home/fireuser",
        nodes="nid001",
        start=at(START),
        end=at(END),
        elapsed=82,
        limit=60,
    )


def test_the_predicted_times_of_a_pending_job_are_not_told():
    guess = {"elapsed": 0, "start": 1795320730, "end": 1795324330, "suspended": None, "limit": 3600}
    job = read_job("6", [queued("6", "PENDING", time=guess, nodes="", status={"stateReason": "BeginTime"})])
    assert (job.start, job.end, job.nodes) == (None, None, None)
    assert (job.state, job.reason, job.limit) == (JobState.PENDING, "BeginTime", 3600)


def test_the_predicted_end_of_a_running_job_is_not_told():
    job = read_job("6", [queued("6", "RUNNING")])
    assert (job.start, job.end) == (at(START), None)


def test_a_failed_job_tells_its_exit_code():
    job = read_job("7", [record("7", "FAILED", status={"exitCode": 3})])
    assert (job.state, job.exit_code, job.signal) == (JobState.FAILED, 3, None)


@pytest.mark.parametrize("exit_code", [0, None], ids=["ssh", "REST"])
def test_a_job_killed_by_a_signal_tells_it(exit_code):
    killed = record("8", "FAILED", status={"exitCode": exit_code, "interruptSignal": 11})
    assert (read_job("8", [killed]).exit_code, read_job("8", [killed]).signal) == (exit_code, 11)


def test_of_a_job_over_its_time_limit_the_batch_step_knows_the_signal():
    step = BATCH | {"id": "20.0", "name": "prog", "status": {"interruptSignal": 9}}
    job = read_job("20", [record("20", "TIMEOUT", tasks=[step, BATCH])])
    assert (job.state, job.exit_code, job.signal) == (JobState.TIMEOUT, 0, 15)


@pytest.mark.parametrize("tasks", [None, [], [{"name": "batch"}], [{"name": "batch", "status": None}], [{}]])
def test_steps_that_tell_nothing_are_no_signal(tasks):
    assert read_job("20", [record("20", "TIMEOUT", tasks=tasks)]).signal is None


def test_who_cancelled_a_job_stays_in_the_text_of_its_state():
    job = read_job("9", [record("9", "CANCELLED by 1001")])
    assert (job.state, job.state_text) == (JobState.CANCELLED, "CANCELLED by 1001")


@pytest.mark.parametrize("no_time", [0, 4294967294, 4294967295, None])
def test_the_rest_modes_numbers_for_none_are_none(no_time):
    pending = record(
        "1",
        "PENDING",
        name="",
        tasks=None,
        group=None,
        nodes="",
        killRequestUser="fireuser",
        status={"interruptSignal": None},
        time={"elapsed": None, "start": no_time, "end": no_time, "limit": no_time},
    )
    job = read_job("1", [pending])
    assert (job.name, job.start, job.end, job.elapsed, job.nodes) == (None,) * 5
    assert job.limit == (0 if no_time == 0 else None)


def test_a_running_job_of_rest_mode_has_no_end():
    job = read_job("1", [record("1", "RUNNING", time={"end": 0})])
    assert (job.start, job.end) == (at(START), None)


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "SOMETHING_NEW"])
def test_a_job_that_is_not_over_has_no_exit_code(state):
    # REST mode says 0 for a job that has not even begun.
    assert read_job("1", [record("1", state)]).exit_code is None


def test_an_incomplete_record_of_accounting_is_read_for_what_it_knows():
    job = read_job(
        "7",
        [
            record(
                "7",
                "FAILED",
                name="allocation",
                group="root",
                partition="",
                workingDirectory="",
                time={"limit": None},
            )
        ],
    )
    assert (job.state, job.name, job.partition, job.working_directory, job.limit) == (
        JobState.FAILED,
        "allocation",
        None,
        None,
        None,
    )


def test_of_two_records_the_one_that_says_more_describes_the_job():
    bare = record("7", "COMPLETED", name="allocation", partition="", workingDirectory="", nodes="")
    for records in ([bare, record("7")], [record("7"), bare]):
        assert read_job("7", records).name == "rec-job"


@pytest.mark.parametrize("state", ["SPLENDID", "", None, 7, [], {}])
def test_a_state_nobody_knows_is_never_final(state):
    job = read_job("7", [record("7", state)])
    assert job.state is JobState.UNKNOWN
    assert not job.state.final
    assert job.end is None


def test_no_record_is_no_job():
    with pytest.raises(ValueError, match="no record"):
        read_job("7", [])


# --- arrays -----------------------------------------------------------------------------------------------

FOUR = frozenset(range(4))


def test_an_array_just_submitted_is_one_pending_raw_id():
    job = read_job("12", [queued("12", "PENDING", time={"start": None, "end": None})], expected=FOUR)
    assert (job.state, job.elements, job.start) == (JobState.PENDING, (), None)


def test_an_array_of_which_only_raw_ids_are_known_runs():
    records = [
        queued("12", "PENDING", status={"stateReason": "JobArrayTaskLimit"}),
        queued("14"),
        queued("13"),
    ]
    job = read_job("12", records, expected=FOUR)
    assert (job.state, job.elements) == (JobState.RUNNING, ())


def test_a_running_array_is_told_by_both_sources_and_counted_once():
    records = [
        record("21_0", "RUNNING"),
        record("21_1", "COMPLETED"),
        record(
            "21_[2-5%2]", "PENDING", nodes="None assigned", time={"start": None, "end": None, "elapsed": 0}
        ),
        queued("22"),
        queued("21", "PENDING"),
    ]
    job = read_job("21", records, expected=frozenset(range(6)))
    assert job.state is JobState.RUNNING
    assert [(item.index, item.state.value) for item in job.elements] == [
        (0, "RUNNING"),
        (1, "COMPLETED"),
        (2, "PENDING"),
        (3, "PENDING"),
        (4, "PENDING"),
        (5, "PENDING"),
    ]
    assert job.failed_indices == ()
    assert [item.exit_code for item in job.elements] == [None, 0, None, None, None, None]


def test_a_waiting_rest_that_overlaps_what_runs_takes_nothing_back():
    # Slurm 24.11, seconds after the submission.
    records = [
        record("15_0", "RUNNING"),
        record("15_1", "RUNNING"),
        record("15_[0-3%2]", "PENDING"),
        queued("15", "PENDING"),
        queued("17"),
        queued("16"),
    ]
    job = read_job("15", records, expected=FOUR)
    assert [item.state.value for item in job.elements] == ["RUNNING", "RUNNING", "PENDING", "PENDING"]


def test_an_array_is_done_when_each_element_is_and_names_those_that_failed():
    states = ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"]
    records = [
        record(f"12_{index}", state, status={"exitCode": int(state == "FAILED")})
        for index, state in enumerate(states)
    ]
    job = read_job("12", records, expected=FOUR)
    assert (job.state, job.exit_code, job.failed_indices) == (JobState.FAILED, 1, (2,))
    assert job.elements[2] == Element(index=2, state=JobState.FAILED, exit_code=1, elapsed=82)


def test_the_times_of_an_array_span_all_its_elements():
    records = [
        record("12_0", time={"start": START, "end": START + 5, "elapsed": 5}),
        record("12_1", time={"start": START + 9, "end": END, "elapsed": END - START - 9}),
    ]
    job = read_job("12", records, expected=frozenset({0, 1}))
    assert (job.start, job.end, job.elapsed) == (at(START), at(END), END - START - 9)


def test_a_cancelled_array_is_over_with_the_rest_that_never_began():
    records = [
        record("16_0", "CANCELLED by 1001", tasks=[BATCH]),
        record("16_[1-999%1]", "CANCELLED by 1001", nodes="None assigned"),
    ]
    job = read_job("16", records, expected=frozenset(range(1000)))
    assert (job.state, len(job.elements), len(job.failed_indices)) == (JobState.CANCELLED, 1000, 1000)
    assert (job.elements[0].signal, job.elements[1].signal) == (15, None)


@pytest.mark.parametrize(("state", "final"), [("CANCELLED by 1001", True), ("PENDING", False)])
def test_a_rest_whose_list_slurm_cuts_off_stands_for_all_that_is_missing(state, final):
    records = [record("16_0"), record("16_[2,4,6,8,...%1]", state)]
    job = read_job("16", records, expected=frozenset(range(0, 1000, 2)))
    assert job.state.final is final
    assert not job.state.succeeded


def test_one_element_asked_for_by_its_raw_id_is_told_alone():
    job = read_job("28", [record("27_5", "RUNNING"), queued("28")])
    assert (job.job_id, job.state, [item.index for item in job.elements]) == ("28", JobState.RUNNING, [5])


def test_an_array_with_a_missing_element_waits_on():
    records = [record("12_0"), record("12_1")]
    assert read_job("12", records, expected=frozenset({0, 1})).state is JobState.COMPLETED
    job = read_job("12", records, expected=FOUR)
    assert job.state is JobState.PENDING
    assert job.state_text == "COMPLETED"
    assert job.end is None


WORDS = st.sampled_from(
    [
        "COMPLETED",
        "FAILED",
        "CANCELLED by 7",
        "TIMEOUT",
        "NODE_FAIL",
        "PENDING",
        "RUNNING",
        "COMPLETING",
        "ODD",
    ]
)
MOSTLY_OVER = st.one_of(st.just("COMPLETED"), WORDS)


@st.composite
def arrays(draw):
    """Expected indices, and records of some: of accounting, of waiting rests, of raw ids, repeatedly."""
    expected = draw(st.frozensets(st.integers(0, 30), min_size=1, max_size=8))
    state = draw(st.sampled_from([st.just("COMPLETED"), MOSTLY_OVER, WORDS]))
    singles = draw(st.lists(st.sampled_from(sorted(expected)), max_size=12))
    if draw(st.booleans()):
        singles += sorted(expected)
    records = [(f"12_{index}", draw(state), {index}) for index in singles]
    for _ in range(draw(st.integers(0, 2))):
        some = draw(st.sets(st.sampled_from(sorted(expected)), min_size=1))
        limit = draw(st.sampled_from(["", "%2"]))
        records.append((f"12_[{','.join(map(str, sorted(some)))}{limit}]", draw(state), some))
    records += [(str(raw), draw(state), set()) for raw in draw(st.lists(st.integers(12, 40), max_size=3))]
    return expected, draw(st.permutations(records or [("12", draw(state), set())]))


@given(arrays())
def test_an_array_is_final_only_if_every_element_is_and_completed_only_if_all_are(array):
    expected, told = array
    states = [JobState.read(word) for _, word, _ in told]
    over = all(state.final for state in states)
    seen = set().union(*(indices for _, _, indices in told))
    job = read_job("12", [record(job_id, word) for job_id, word, _ in told], expected=expected)
    assert job.state.final is (over and seen == expected)
    assert job.state.succeeded is (seen == expected and all(state.succeeded for state in states))
    assert {item.index for item in job.elements} == seen


# --- JSON -------------------------------------------------------------------------------------------------

TEXT = st.none() | st.text(max_size=10)
NUMBER = st.none() | st.integers(0, 10**6)
MOMENT = st.none() | st.integers(0, 2**32).map(at)
ELEMENTS = st.builds(
    Element,
    index=st.integers(0, 9),
    state=st.sampled_from(JobState),
    exit_code=NUMBER,
    signal=NUMBER,
    elapsed=NUMBER,
)
JOBS = st.builds(
    Job,
    job_id=st.from_regex(r"[0-9]{1,6}", fullmatch=True),
    state=st.sampled_from(JobState),
    state_text=st.text(max_size=10),
    **dict.fromkeys(("name", "reason", "user", "account", "partition", "working_directory", "nodes"), TEXT),
    **dict.fromkeys(("exit_code", "signal", "elapsed", "limit"), NUMBER),
    **dict.fromkeys(("start", "end"), MOMENT),
    elements=st.lists(ELEMENTS, max_size=3).map(tuple),
)


@given(JOBS)
def test_a_job_survives_its_way_through_json(job):
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


# --- recorded bodies --------------------------------------------------------------------------------------


def recorded():
    for file in sorted(RECORDED.glob("*job*.json")):
        body = json.loads(file.read_text())["body"]
        if isinstance(body, dict) and body.get("jobs") and "status" in body["jobs"][0]:
            yield pytest.param(body, id=file.stem)


@pytest.mark.parametrize(
    "body",
    [*recorded()]
    or [
        pytest.param(None, marks=pytest.mark.skip(reason="the recorded bodies of real gateways are not here"))
    ],
)
def test_every_recorded_answer_is_read(body):
    listed = ask(jobs.listing("daint"), body)
    assert listed
    for job in listed:
        assert job.state is not JobState.UNKNOWN
        assert Job.from_json(job.to_json()) == job
        assert job.state.final is (job.end is not None)
        assert job.start is None or job.start.year == 2026
        assert job.exit_code is None or job.state.final


# --- ids and windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "job_id"),
    [
        ("12", "12"),
        (12, "12"),
        (" 12\n", "12"),
        ({"job_id": "12", "state": "COMPLETED"}, "12"),
        ("123abc", "123abc"),
    ],
)
def test_a_job_id_is_text_a_number_or_a_result(value, job_id):
    assert check_job_id(value) == job_id


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "that task did not run"),
        ("", "that task did not run"),
        ({}, "that task did not run"),
        ({"job_id": None}, "that task did not run"),
        ("12_3", "one element of an array"),
        ("12_[0-3]", "no job id"),
        ("abc", "no job id"),
        ("1/2", "no job id"),
        ("../1", "no job id"),
        ("12 13", "no job id"),
        ("-1", "no job id"),
        (-1, "no job id"),
        (True, "no job id"),
        (1.0, "no job id"),
        (["12"], "no job id"),
        ("\uff11\uff12", "no job id"),
        ("12\x00", "no job id"),
    ],
)
def test_what_is_no_job_id_is_refused_by_the_name_of_its_parameter(value, problem):
    with pytest.raises(InvalidInputError, match=problem) as caught:
        check_job_id(value, "job")
    assert caught.value.field == "job"


HOUR = 3600
SPANS = {"1h": HOUR, "8h": 8 * HOUR, "24h": 24 * HOUR, "3d": 72 * HOUR, "7d": 168 * HOUR}


@pytest.mark.parametrize(
    ("age", "window"),
    [
        (0, "1h"),
        (0.89 * HOUR, "1h"),
        (0.91 * HOUR, "8h"),
        (7 * HOUR, "8h"),
        (8 * HOUR, "24h"),
        (23 * HOUR, "3d"),
        (71 * HOUR, "7d"),
        (10**9, "7d"),
        (-5, "1h"),
    ],
)
def test_the_window_is_the_narrowest_with_some_room(age, window):
    assert window_for(age) == window


@given(st.floats(0, 150 * HOUR))
def test_a_window_always_covers_the_age(age):
    assert SPANS[window_for(age)] > age


# --- calls ------------------------------------------------------------------------------------------------


def ask(call, body, status=200):
    """The result of a call that is answered like this."""
    response = httpx.Response(status, json=body, request=httpx.Request("GET", "http://gateway"))
    return call.read(response)


def test_a_submission_sends_what_is_set_in_firecrests_words():
    spec = JobSpec(
        name="n",
        working_directory="/w",
        script="#!/bin/sh\n",
        account="a",
        partition="p",
        reservation="r",
        constraints="c",
        stdout="/w/o",
        stderr="/w/e",
        env={"A": "1"},
    )
    call = jobs.submit("da/int", spec)
    assert (call.method, call.path, call.system, call.replayable) == (
        "POST",
        "/compute/da%2Fint/jobs",
        "da/int",
        False,
    )
    assert call.json == {
        "job": {
            "name": "n",
            "workingDirectory": "/w",
            "script": "#!/bin/sh\n",
            "account": "a",
            "partition": "p",
            "reservation": "r",
            "constraints": "c",
            "standardOutput": "/w/o",
            "standardError": "/w/e",
            "env": {"A": "1"},
        }
    }
    assert ask(call, {"jobId": "6"}, 201) == "6"
    assert ask(call, {"jobId": 6}, 201) == "6"


def test_a_submission_sends_no_nulls():
    spec = JobSpec(name="n", working_directory="/w", script_path="/w/job.sh")
    assert jobs.submit("daint", spec).json == {
        "job": {"name": "n", "workingDirectory": "/w", "scriptPath": "/w/job.sh"}
    }


@pytest.mark.parametrize("body", [{}, {"jobId": None}, {"jobId": ""}, {"jobId": "12_3"}, [], "6", None])
def test_an_answer_without_a_job_id_may_have_submitted_the_job(body):
    with pytest.raises(BadAnswerError, match="submit job n") as caught:
        ask(jobs.submit("daint", JobSpec(name="n", working_directory="/w")), body, 201)
    assert caught.value.ambiguous


@pytest.mark.parametrize(
    ("call", "method", "path", "params", "body", "replayable"),
    [
        (jobs.get("da int", "7"), "GET", "/compute/da%20int/jobs/7", {}, None, True),
        (jobs.ids("daint", "7"), "GET", "/compute/daint/jobs/7", {}, None, True),
        (jobs.listing("daint"), "GET", "/compute/daint/jobs", {}, None, True),
        (
            jobs.listing("daint", name="a b", account="staff", all_users=True, window="8h"),
            "GET",
            "/compute/daint/jobs",
            {"name": "a b", "account": "staff", "allusers": "true", "time_window": "8h"},
            None,
            True,
        ),
        (jobs.metadata("daint", "7"), "GET", "/compute/daint/jobs/7/metadata", {}, None, True),
        (jobs.cancel("daint", "7"), "DELETE", "/compute/daint/jobs/7", {}, None, True),
        (
            jobs.attach("daint", "7", "ls"),
            "PUT",
            "/compute/daint/jobs/7/attach",
            {},
            {"command": "ls"},
            False,
        ),
    ],
)
def test_each_call_asks_its_endpoint(call, method, path, params, body, replayable):  # noqa: PLR0917
    assert (call.method, call.path, dict(call.params), call.json, call.replayable) == (
        method,
        path,
        params,
        body,
        replayable,
    )


@pytest.mark.parametrize(
    "call",
    [
        jobs.get,
        jobs.ids,
        jobs.metadata,
        jobs.cancel,
        lambda system, job_id: jobs.attach(system, job_id, "ls"),
    ],
)
def test_no_job_id_can_lead_to_another_endpoint(call):
    for odd in ("", "../../status", "12/metadata", "12?x", "12_3"):
        with pytest.raises(InvalidInputError):
            call("daint", odd)


def test_a_job_is_read_by_what_it_was_submitted_with():
    call = jobs.get("daint", "12", expected=[0, 1])
    assert ask(call, {"jobs": [record("12_0")]}).state is JobState.PENDING
    assert ask(call, {"jobs": [record("12_0"), record("12_1")]}).state is JobState.COMPLETED


@pytest.mark.parametrize(
    "body", [{"jobs": []}, {"jobs": None}, {}, {"jobs": [{}]}, {"jobs": [{"jobId": "1"}]}, {"jobs": 1}]
)
def test_an_answer_without_a_record_is_told(body):
    with pytest.raises(BadAnswerError, match="read job 12"):
        ask(jobs.get("daint", "12"), body)


def test_the_ids_of_an_array_are_those_of_all_its_elements():
    body = {"jobs": [record("21_0", "RUNNING"), queued("22"), queued("21", "PENDING")]}
    assert ask(jobs.ids("daint", "21"), body) == {"21_0", "22", "21"}


def test_listed_arrays_are_put_together_and_jobs_come_in_the_order_of_their_ids():
    body = {
        "jobs": [
            record("100"),
            record("12_1", "RUNNING"),
            record("9"),
            record("12_0"),
            record("12_[2-3]", "PENDING"),
        ]
    }
    listed = ask(jobs.listing("daint"), body)
    assert [(job.job_id, job.state.value, len(job.elements)) for job in listed] == [
        ("9", "COMPLETED", 0),
        ("12", "RUNNING", 4),
        ("100", "COMPLETED", 0),
    ]


def test_an_id_that_is_no_number_comes_first():
    assert [job.job_id for job in ask(jobs.listing("x"), {"jobs": [record("5"), record("1a")]})] == [
        "1a",
        "5",
    ]


def test_a_gateway_that_ignores_the_name_is_not_believed():
    body = {"jobs": [record("1", name="mine"), record("2", name="mine-too"), record("3", name="allocation")]}
    assert [job.job_id for job in ask(jobs.listing("daint", name="mine"), body)] == ["1"]


@pytest.mark.parametrize("body", [{"jobs": []}, {"jobs": None}])
def test_no_jobs_are_no_jobs(body):
    assert ask(jobs.listing("daint"), body) == ()


def test_metadata_are_read_where_they_are_known():
    body = {"jobs": [{"jobId": 7, "script": "#!/bin/sh", "standardOutput": "/w/o", "standardError": None}]}
    assert ask(jobs.metadata("daint", "7"), body) == JobMetadata(
        job_id="7", script="#!/bin/sh", stdin=None, stdout="/w/o", stderr=None
    )
    with pytest.raises(BadAnswerError, match="metadata"):
        ask(jobs.metadata("daint", "7"), {"jobs": []})


# --- cancel -----------------------------------------------------------------------------------------------

SCANCEL = (
    "Unexpected Slurm command response. exit_status:{} std_err:scancel: error: Kill job error on job 9: {}\n"
)


def refusal(kind, status, message):
    return kind("cancel job 9", status=status, message=message)


def test_a_cancelled_job_is_cancelled():
    assert jobs.cancel("daint", "9").read(httpx.Response(204)) is True
    assert jobs.attach("daint", "9", "ls").read(httpx.Response(204)) is None


@pytest.mark.parametrize("words", ["Job/step already completing or completed", "Invalid job id specified"])
def test_a_job_that_is_over_leaves_nothing_to_cancel(words):
    assert jobs.cancel("daint", "9").refused(refusal(RejectedError, 500, SCANCEL.format(0, words))) is False


@pytest.mark.parametrize(
    "error",
    [
        refusal(RejectedError, 500, SCANCEL.format(210, "Access/permission denied")),
        refusal(UnavailableError, 500, "Error executing Slurm command."),
        refusal(UnavailableError, 503, "already completing or completed"),
        refusal(NotFoundError, 404, "System not found"),
        refusal(AccessDeniedError, 403, "no"),
    ],
    ids=lambda error: f"{error.status}",
)
def test_any_other_refusal_to_cancel_is_an_error(error):
    with pytest.raises(ApiError) as caught:
        jobs.cancel("daint", "9").refused(error)
    assert caught.value is error


def test_the_failed_indices_are_those_that_are_over_without_success():
    elements = tuple(Element(index=index, state=state) for index, state in enumerate(JobState))
    job = replace(read_job("1", [record("1")]), elements=elements)
    over = {state for state in JobState if state.final} - {JobState.COMPLETED}
    assert {elements[index].state for index in job.failed_indices} == over
