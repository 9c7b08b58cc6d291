"""What a job gets after one that failed: more of what was lacking, fewer indices, and never too much."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hpc_provider.client.errors import InvalidInputError
from airflow_hpc_provider.client.jobs import Element, Job
from airflow_hpc_provider.client.request import JobRequest
from airflow_hpc_provider.client.script import array_indices
from airflow_hpc_provider.client.states import JobState
from airflow_hpc_provider.client.variation import Completed, Rules, Variation

SCRIPT = "#!/bin/bash\nhostname\n"
FIRST = Variation()


def asked(script=SCRIPT, array=None, **options):
    return JobRequest.checked(script=script, sbatch_options=options, array=array)


def ended(state, elements=(), job_id="7"):
    return Job(job_id=job_id, state=JobState(state), elements=tuple(elements))


def elements(states):
    return tuple(Element(index=index, state=JobState(state)) for index, state in states.items())


@pytest.mark.parametrize(
    ("options", "state", "scaled"),
    [
        ({"mem": "4G", "time": "1:00:00"}, "OUT_OF_MEMORY", {"mem": "8192M", "time": "01:00:00"}),
        ({"mem_per_cpu": "100M"}, "OUT_OF_MEMORY", {"mem-per-cpu": "200M"}),
        ({"mem_per_gpu": "1G"}, "OUT_OF_MEMORY", {"mem-per-gpu": "2048M"}),
        ({"mem": "1K"}, "OUT_OF_MEMORY", {"mem": "1M"}),
        ({"mem": "4G", "time": "1:00:00"}, "TIMEOUT", {"mem": "4G", "time": "01:30:00"}),
        ({"mem": "4G", "time": "0:01"}, "TIMEOUT", {"mem": "4G", "time": "00:00:02"}),
    ],
)
def test_a_job_gets_more_of_what_the_one_before_lacked(options, state, scaled):
    factors = {name: by for name, by in {"mem": 2.0, "time": 1.5}.items() if name in "".join(options)}
    rules = Rules.checked(asked(**options), escalate=factors)
    after = rules.after(ended(state), "job-a", FIRST)
    assert dict(rules.request_for(after).options) == scaled


def test_amounts_in_the_script_itself_grow_too():
    request = asked("#!/bin/bash\n#SBATCH --mem=4G -t 10\nhostname\n")
    rules = Rules.checked(request, escalate={"mem": 2, "time": 3})
    twice = rules.after(ended("TIMEOUT"), "b", rules.after(ended("OUT_OF_MEMORY"), "a", FIRST))
    script = rules.request_for(twice).spec("job", base_directory="/w").script
    assert "#SBATCH --mem=8192M\n#SBATCH --time=00:30:00\n##SBATCH --mem=4G -t 10\n" in script


def test_growth_ends_after_as_many_jobs_as_allowed():
    rules = Rules.checked(asked(mem="1G", time=10), escalate={"mem": 2, "time": 2}, at_most=2)
    one = rules.after(ended("OUT_OF_MEMORY"), "a", FIRST)
    two = rules.after(ended("TIMEOUT"), "b", one)
    assert (rules.grows(JobState.OUT_OF_MEMORY, one), two.scaled) == ("mem", {"mem": 1, "time": 1})
    assert rules.grows(JobState.OUT_OF_MEMORY, two) is None
    assert rules.after(ended("OUT_OF_MEMORY"), "c", two) == two


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "DEADLINE", "COMPLETED"])
def test_nothing_else_makes_a_job_grow(state):
    rules = Rules.checked(asked(mem="1G"), escalate={"mem": 2})
    assert rules.grows(JobState(state), FIRST) is None


@pytest.mark.parametrize(
    ("escalate", "words"),
    [
        ("mem", "mapping"),
        ({"nodes": 2}, "nodes"),
        ({"mem": 1}, "above 1"),
        ({"mem": "2"}, "above 1"),
        ({"mem": True}, "above 1"),
        ({"mem": 1000}, "above 1"),
        ({"time": 2}, "does not say how much"),
    ],
)
def test_growth_that_cannot_be_is_refused(escalate, words):
    with pytest.raises(InvalidInputError, match=words) as refusal:
        Rules.checked(asked(mem="1G"), escalate=escalate)
    assert refusal.value.field.startswith("escalate")


def test_all_there_is_cannot_grow():
    with pytest.raises(InvalidInputError, match="cannot grow"):
        Rules.checked(asked(mem=0), escalate={"mem": 2})


@pytest.mark.parametrize("at_most", [-1, 1.5, True, "3"])
def test_a_number_of_jobs_that_is_none_is_refused(at_most):
    with pytest.raises(InvalidInputError, match="max_escalations"):
        Rules.checked(asked(), at_most=at_most)


def test_failed_indices_without_an_array_are_refused():
    with pytest.raises(InvalidInputError, match="resubmit_failed_indices"):
        Rules.checked(asked(), failed_only=True)


def test_of_an_array_only_what_did_not_complete_runs_again_where_the_first_did():
    rules = Rules.checked(asked(array="0-5%2"), failed_only=True)
    states = {0: "COMPLETED", 1: "FAILED", 2: "COMPLETED", 3: "COMPLETED", 4: "CANCELLED"}
    after = rules.after(ended("FAILED", elements(states)), "first", FIRST)
    assert after == Variation(
        array="1,4-5%2", completed=(Completed("7", "first", "0,2-3"),), directory="first"
    )
    request = rules.request_for(after)
    spec = request.spec("second", base_directory="/w", directory=after.directory)
    assert (request.array, spec.working_directory) == ("1,4-5%2", "/w/first")
    last = rules.after(
        ended("FAILED", elements({1: "COMPLETED", 4: "FAILED", 5: "COMPLETED"}), "8"), "second", after
    )
    assert (last.array, last.directory) == ("4%2", "first")
    assert last.completed == (Completed("7", "first", "0,2-3"), Completed("8", "second", "1,5"))


@pytest.mark.parametrize("states", [{}, {0: "FAILED", 1: "FAILED"}, {0: "COMPLETED", 1: "COMPLETED"}])
def test_all_of_an_array_runs_again_where_nothing_can_be_left_out(states):
    rules = Rules.checked(asked(array="0-1"), failed_only=True)
    assert rules.after(ended("FAILED", elements(states)), "first", FIRST) == FIRST


def test_all_of_an_array_runs_again_unless_told_otherwise():
    rules = Rules.checked(asked(array="0-1"))
    failed = ended("FAILED", elements({0: "COMPLETED", 1: "FAILED"}))
    assert rules.after(failed, "first", FIRST) == FIRST


def test_a_job_that_began_had_its_dependencies_met_and_the_next_one_needs_none():
    from datetime import UTC, datetime

    rules = Rules.checked(asked(dependency="afterok:12"))
    began = Job(job_id="7", state=JobState.FAILED, start=datetime.now(UTC))
    assert "dependency" in rules.request_for(rules.after(ended("CANCELLED"), "a", FIRST)).options
    assert "dependency" not in rules.request_for(rules.after(began, "a", FIRST)).options


INDICES = st.sets(st.integers(0, 60), min_size=1)
ENDS = st.sampled_from(["COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "CANCELLED", "NODE_FAIL", None])


@given(INDICES, st.data())
def test_however_an_array_fails_each_index_is_either_completed_once_or_runs_again(indices, data):
    spec = ",".join(map(str, sorted(indices))) + "%3"
    rules = Rules.checked(asked(array=spec), failed_only=True)
    variation = FIRST
    for number in range(4):
        ran = array_indices(variation.array or spec)
        states = {index: data.draw(ENDS) for index in ran}
        known = {index: state for index, state in states.items() if state}
        if set(states.values()) == {"COMPLETED"}:
            break
        variation = rules.after(ended("FAILED", elements(known), str(number)), f"job-{number}", variation)
        over = [index for some in variation.completed for index in array_indices(some.indices)]
        left = array_indices(variation.array or spec)
        assert len(over) == len(set(over))
        assert sorted([*over, *left]) == sorted(indices)
        assert variation == Variation.from_json(json.loads(json.dumps(variation.to_json())))
    assert len(json.dumps(variation.to_json())) < 4096


def test_what_was_never_written_varies_nothing():
    assert Variation.from_json(None) == FIRST
