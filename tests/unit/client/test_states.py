"""States of jobs: what gateways answer, what each state means, what users are told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hpc_provider.client.states import JobState, advice, stuck, worst

FINAL = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "LAUNCH_FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "RECONFIG_FAIL",
    "REVOKED",
    "TIMEOUT",
}
ANY_STATE = st.sampled_from(JobState)


@pytest.mark.parametrize(
    ("answered", "state"),
    [
        ("COMPLETED", JobState.COMPLETED),
        ("completed", JobState.COMPLETED),
        (" RUNNING\n", JobState.RUNNING),
        ("CANCELLED by 1001", JobState.CANCELLED),
        ("CANCELLED+", JobState.CANCELLED),
        ("OUT_OF_MEMORY", JobState.OUT_OF_MEMORY),
        ("PD", JobState.PENDING),
        ("CG", JobState.COMPLETING),
        ("F", JobState.FAILED),
        ("S", JobState.SUSPENDED),
        ("Q", JobState.PENDING),
        ("E", JobState.COMPLETING),
        (["RUNNING"], JobState.RUNNING),
        (["COMPLETED", "COMPLETING"], JobState.COMPLETING),
        (["FAILED", "REQUEUE_HOLD"], JobState.REQUEUE_HOLD),
        (["PENDING", "LAUNCH_FAILED"], JobState.PENDING),
        (["RUNNING", "SOMETHING_NEW"], JobState.RUNNING),
        (["COMPLETED", "SOMETHING_NEW"], JobState.UNKNOWN),
        (("CANCELLED", "COMPLETED"), JobState.CANCELLED),
        (["COMPLETED"], JobState.COMPLETED),
        ([], JobState.UNKNOWN),
        ([None], JobState.UNKNOWN),
        (None, JobState.UNKNOWN),
        ("", JobState.UNKNOWN),
        ("allocating", JobState.UNKNOWN),
        ("RUNNING2", JobState.UNKNOWN),
        (3, JobState.UNKNOWN),
        ({"state": "RUNNING"}, JobState.UNKNOWN),
    ],
)
def test_a_state_is_read_as_gateways_answer_it(answered, state):
    assert JobState.read(answered) is state


@given(st.text() | st.lists(st.text()) | st.none() | st.integers() | st.floats())
def test_reading_never_fails(answered):
    assert isinstance(JobState.read(answered), JobState)


@given(ANY_STATE)
def test_every_state_is_read_from_its_name_its_code_and_its_value(state):
    assert JobState.read(state.value) is JobState.read(state.value.lower()) is JobState(state.value) is state
    if state.code:
        assert JobState.read(state.code) is state


@pytest.mark.parametrize(
    ("letter", "exit_code", "state"),
    [
        ("F", 0, JobState.COMPLETED),
        ("X", 0, JobState.COMPLETED),
        ("F", 1, JobState.FAILED),
        ("F", 271, JobState.FAILED),
        ("F", -29, JobState.TIMEOUT),
        ("F", -27, JobState.OUT_OF_MEMORY),
        ("F", None, JobState.UNKNOWN),
        ("R", 0, JobState.RUNNING),
        ("H", None, JobState.PENDING),
        ("?", 0, JobState.UNKNOWN),
        (None, 0, JobState.UNKNOWN),
    ],
)
def test_a_letter_of_pbs_is_read_with_the_exit_code(letter, exit_code, state):
    assert JobState.read_pbs(letter, exit_code) is state


def test_exactly_the_states_that_end_a_job_are_final():
    assert {state.value for state in JobState if state.final} == FINAL


def test_every_other_state_waits_or_runs_or_is_unknown():
    for state in JobState:
        assert [state.final, state.running, state.waiting, state is JobState.UNKNOWN].count(True) == 1


def test_only_completed_has_succeeded():
    assert [state for state in JobState if state.succeeded] == [JobState.COMPLETED]


def test_infrastructure_and_requeue_concern_only_final_failures():
    kinds = {JobState.NODE_FAIL, JobState.BOOT_FAIL, JobState.PREEMPTED, JobState.LAUNCH_FAILED}
    kinds |= {JobState.RECONFIG_FAIL}
    assert {state for state in JobState if state.infrastructure} == kinds
    assert {state for state in JobState if state.requeueable} == kinds
    assert all(state.final and not state.succeeded for state in kinds)


def test_held_jobs_wait():
    held = [state for state in JobState if state.held]
    assert len(held) == 3
    assert all(state.waiting for state in held)


@pytest.mark.parametrize(
    ("states", "whole"),
    [
        ("COMPLETED COMPLETED", "COMPLETED"),
        ("COMPLETED RUNNING FAILED", "RUNNING"),
        ("COMPLETED PENDING FAILED", "PENDING"),
        ("PENDING RUNNING", "RUNNING"),
        ("UNKNOWN COMPLETED", "UNKNOWN"),
        ("UNKNOWN PENDING", "PENDING"),
        ("CANCELLED FAILED COMPLETED", "FAILED"),
        ("NODE_FAIL FAILED", "FAILED"),
        ("FAILED OUT_OF_MEMORY TIMEOUT", "OUT_OF_MEMORY"),
        ("NODE_FAIL CANCELLED", "NODE_FAIL"),
        ("CANCELLED COMPLETED", "CANCELLED"),
        ("", "UNKNOWN"),
    ],
)
def test_an_array_is_as_far_as_its_last_element_and_as_bad_as_its_worst(states, whole):
    assert worst(JobState(state) for state in states.split()) is JobState(whole)


@given(st.lists(ANY_STATE, min_size=1))
def test_a_whole_is_one_of_its_parts_and_over_only_when_all_are(states):
    whole = worst(states)
    assert whole in states
    assert whole.final == all(state.final for state in states)
    assert whole.succeeded == all(state.succeeded for state in states)
    assert worst(reversed(states)) is whole


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        (JobState.TIMEOUT, None, "time limit"),
        (JobState.TIMEOUT, "TimeLimit", "time limit"),
        (JobState.OUT_OF_MEMORY, "OutOfMemory", "more memory"),
        (JobState.FAILED, "OutOfMemory", "more memory"),
        (JobState.FAILED, "JobLaunchFailure", "working directory"),
        (JobState.NODE_FAIL, None, "let the task retry"),
        (JobState.BOOT_FAIL, None, "did not boot"),
        (JobState.LAUNCH_FAILED, None, "could not launch"),
        (JobState.RECONFIG_FAIL, None, "could not configure"),
        (JobState.PREEMPTED, None, "higher priority"),
        (JobState.DEADLINE, None, "deadline"),
        (JobState.CANCELLED, "None", "cancelled it"),
        (JobState.CANCELLED, "DependencyNeverSatisfied", "depends on"),
        (JobState.REVOKED, None, "federation"),
        (JobState.REQUEUE_HOLD, "None", "scontrol release"),
        (JobState.PENDING, "InvalidQOS", "QOS is not valid"),
    ],
)
def test_a_state_with_a_remedy_has_one_line_of_advice(state, reason, words):
    line = advice(state, reason)
    assert words in line
    assert "\n" not in line
    assert line.endswith(".")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (JobState.COMPLETED, "BeginTime"),
        (JobState.FAILED, "NonZeroExitCode"),
        (JobState.FAILED, "DependencyNeverSatisfied"),
        (JobState.RUNNING, "JobHeldUser"),
        (JobState.PENDING, "Resources"),
        (JobState.UNKNOWN, None),
    ],
)
def test_a_state_without_a_remedy_has_no_advice_whatever_its_last_reason(state, reason):
    assert advice(state, reason) is None


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("DependencyNeverSatisfied", "depends on"),
        ("(DependencyNeverSatisfied)", "(DependencyNeverSatisfied): a job that it depends on"),
        ("JobHeldUser", "scontrol release"),
        ("JobHeldAdmin", "administrator"),
        ("JobHoldMaxRequeue", "failed to start so often"),
        ("launch failed requeued held", "launch failed"),
        ("(launch_failed_requeued_held)", "launch failed"),
        ("ReservationDeleted", "reservation is gone"),
        ("InvalidAccount", "account is not valid"),
        ("AccountNotAllowed", "partition"),
        ("InvalidQOS", "QOS"),
        ("QOSNotAllowed", "QOS"),
        ("BadConstraints", "no node"),
        ("AssocMaxWallDurationPerJobLimit", "more time"),
        ("QOSMaxWallDurationPerJobLimit", "more time"),
        ("QOSTimeLimit", "more time"),
        ("PartitionTimeLimit", "more time"),
        ("QOSMaxCpuPerJobLimit", "more than one job"),
        ("AssocMaxNodePerJobLimit", "more than one job"),
        ("QOSMaxGRESPerNode", "more than one job"),
        ("MaxMemPerLimit", "more memory"),
        ("QOSMinCpuNotSatisfied", "less than"),
        ("AssocGrpCPUMinutesLimit", "budget"),
        ("QOSGrpBillingMinutes", "budget"),
        ("PartitionNodeLimit", "partition"),
        ("PartitionConfig", "partition"),
        ("BurstBufferOperation", "burst buffer"),
        ("DeadLine", "deadline"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "down, drained"),
        ("ReqNodeNotAvail", "down, drained"),
        ("NodeDown", "down, drained"),
    ],
)
def test_a_reason_that_never_passes_is_explained(reason, words):
    sentence = stuck(reason)
    assert sentence.startswith("It will not start by itself (")
    assert words in sentence


@pytest.mark.parametrize(
    "reason",
    [
        None,
        "",
        "None",
        "Resources",
        "Priority",
        "BeginTime",
        "Dependency",
        "JobArrayTaskLimit",
        "Licenses",
        "Reservation",
        "Cleaning",
        "Prolog",
        "PartitionDown",
        "AssocGrpCpuLimit",
        "AssocGrpCPURunMinutesLimit",
        "AssocMaxJobsLimit",
        "QOSMaxJobsPerUserLimit",
        "QOSMaxCpuPerUserLimit",
        "QOSGrpNodeLimit",
        "AssocGrpWallLimit",
        "ReqNodeNotAvail, Reserved for maintenance",
        "ReqNodeNotAvail, May be reserved for other job",
        "SomethingNew",
    ],
)
def test_a_reason_that_passes_by_itself_says_nothing(reason):
    assert stuck(reason) is None


@given(st.text())
def test_any_reason_can_be_asked_about(reason):
    stuck(reason)
    for state in JobState:
        advice(state, reason)
