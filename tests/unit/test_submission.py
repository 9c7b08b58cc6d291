"""Exactly-one submission against a real gateway whose answers get lost: never two jobs, never none."""

import json
import re
import time
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hpc_provider.client import jobs
from airflow_hpc_provider.client.auth import AccessToken
from airflow_hpc_provider.client.calls import read_json
from airflow_hpc_provider.client.errors import HpcError, JobError, RejectedError, WatchError
from airflow_hpc_provider.client.jobs import JobSpec
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.client.session import Client
from airflow_hpc_provider.client.variation import Variation
from airflow_hpc_provider.devgateway import Gateway
from airflow_hpc_provider.submission import (
    STATE_KEY,
    Identity,
    Record,
    Store,
    Submission,
    fingerprint,
    job_name,
    settle,
    submit_once,
)

RUNS = "#!/bin/sh\nexec sleep 60\n"
SUCCEEDS = "#!/bin/sh\n"
FAILS = "#!/bin/sh\nexit 3\n"
ARRAY = "#!/bin/sh\n#SBATCH --array=0-5%3\nexec sleep 60\n"
ACTIVE = ("PENDING", "RUNNING")
POLICY = RetryPolicy(attempts=3, base=0.01)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    with Gateway(
        tmp_path_factory.mktemp("gateway"), systems=["first", "second"], scheduler="local"
    ) as gateway:
        yield gateway


@pytest.fixture
def gateway(started):
    started.faults.clear()
    started.requests.clear()
    yield started
    started.faults.clear()
    # Else the jobs of one test would sooner or later hold the CPUs that another one waits for.
    for system in started.systems:
        scheduler = started.scheduler_of(system)
        for job_id in {record.base_id for record in scheduler.records() if record.state in ACTIVE}:
            scheduler.forget(job_id)


@pytest.fixture
def client(gateway):
    auth = AccessToken(gateway.url, gateway.access_token())
    with Client(gateway.url, auth, policy=POLICY) as client:
        yield client


class Memory:
    """Airflow's task state store: JSON by key; remembers when each was written."""

    def __init__(self, gateway):
        self.kept = {}
        self.history = []
        self._gateway = gateway

    def get(self, key):
        return json.loads(self.kept[key]) if key in self.kept else None

    def set(self, key, value):
        self.kept[key] = json.dumps(value)
        self.history.append((value["phase"], self._gateway.requests.count("submit")))


class Clock:
    """Time that passes only while somebody sleeps; something may happen then."""

    def __init__(self):
        self.now = time.time()
        self.happens = lambda: None

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.happens()


class Task:
    """A task instance, tried again and again."""

    def __init__(self, client, gateway, run_id, memory):
        self.client = client
        self.gateway = gateway
        self.system = gateway.system
        self.identity = Identity("dag", run_id, "task")
        self.memory = memory
        self.clock = Clock()

    def spec(self, name, script):
        return JobSpec(name=name, working_directory=str(self.gateway.home), script=script)

    def submit(self, script=RUNS, *, max_tries=0, **changes):
        given = {
            "system": self.system,
            "spec_for": lambda name, _: self.spec(name, script),
            "base_name": "job",
        }
        return submit_once(
            self.client,
            **given | changes,
            identity=self.identity,
            store=Store(self.memory),
            max_tries=max_tries,
            sleep=self.clock.sleep,
            clock=self.clock,
        )

    def name(self, generation=0):
        return job_name("job", self.identity, generation)

    def by_hand(self, script=RUNS, generation=0, system=None):
        """A job that an earlier try has sent."""
        return self.client.send(jobs.submit(system or self.system, self.spec(self.name(generation), script)))

    def remember(self, phase="intent", *, script=RUNS, job_id=None, generation=0, **changes):
        """What an earlier try wrote down."""
        record = Record(
            phase=phase,
            name=self.name(generation),
            generation=generation,
            fingerprint=fingerprint(self.spec("", script)),
            max_tries=0,
            at=time.time(),
            system=self.system,
            job_id=job_id,
        )
        self.memory.kept[STATE_KEY] = json.dumps(replace(record, **changes).to_json())

    def hide_jobs(self, until):
        """No job is visible until, after some sleep, this is true."""
        self.gateway.faults.visibility_lag = 10**6

        def look():
            if until():
                self.gateway.faults.visibility_lag = 0.0

        self.clock.happens = look

    def recorded(self):
        return Store(self.memory).load()

    def all(self, generation=0, system=None):
        """All jobs of the name that this gateway has ever had, also those it does not show yet."""
        scheduler = self.gateway.scheduler_of(system or self.system)
        records = [record for record in scheduler.records() if record.name == self.name(generation)]
        return {record.base_id: record.state for record in records}

    def active(self, generation=0, system=None):
        return [job_id for job_id, state in self.all(generation, system).items() if state in ACTIVE]

    def wait(self, job_id):
        until = time.monotonic() + 10
        while not self.client.send(jobs.get(self.system, job_id)).state.final:
            assert time.monotonic() < until
            time.sleep(0.02)
        return job_id


@pytest.fixture
def task(client, gateway, request):
    return Task(client, gateway, request.node.name, Memory(gateway))


# --- one job, whatever happens to the answer --------------------------------------------------------------


def test_the_intent_is_written_down_before_the_job_is_sent_and_its_id_after(task):
    prepared = []
    submission = task.submit(prepare=prepared.append)
    assert task.all() == {submission.job_id: task.all()[submission.job_id]}
    assert task.memory.history == [("intent", 0), ("submitted", 1)]
    assert (submission.name, submission.adopted) == (task.name(), False)
    assert [spec.name for spec in prepared] == [task.name()]
    record = task.recorded()
    assert (record.job_id, record.system, record.generation) == (submission.job_id, "first", 0)
    assert record.at == submission.since


LOST = {
    "cut": lambda faults: faults.lose_answer(on="submit"),
    "reset": lambda faults: faults.cut(on="submit", when="after", reset=True),
    "500": lambda faults: faults.lose_answer(on="submit", status=500),
    "408": lambda faults: faults.lose_answer(on="submit", status=408),
    "504": lambda faults: faults.lose_answer(on="submit", status=504),
    "502": lambda faults: faults.bad_gateway(on="submit", when="after"),
    "halfway": lambda faults: faults.truncate(on="submit"),
    "a page": lambda faults: faults.respond(200, "<html>Sign in</html>", on="submit", when="after"),
    "an answer without id": lambda faults: faults.respond(201, {}, on="submit", when="after"),
}
NOT_DONE = {
    "503 of the health gate": lambda faults: faults.unhealthy("first", on="submit", times=2),
    "429": lambda faults: faults.rate_limit(0, on="submit", times=2),
    "cut before": lambda faults: faults.cut(on="submit"),
    "500 before": lambda faults: faults.respond(500, on="submit"),
    "502 before, twice": lambda faults: faults.bad_gateway(on="submit", times=2),
    "429, then lost": lambda faults: (faults.rate_limit(0, on="submit"), faults.lose_answer(on="submit")),
    "not done, then lost": lambda faults: (
        faults.cut(on="submit"),
        faults.lose_answer(on="submit", status=500),
    ),
}


@pytest.mark.parametrize("spoil", [*LOST.values()], ids=[*LOST])
def test_a_lost_answer_does_not_make_a_second_job(task, gateway, spoil):
    spoil(gateway.faults)
    submission = task.submit()
    assert [*task.all()] == [submission.job_id]
    assert gateway.requests.count("submit") == 1
    assert task.recorded().job_id == submission.job_id


@pytest.mark.parametrize("spoil", [*NOT_DONE.values()], ids=[*NOT_DONE])
def test_a_job_that_was_not_submitted_is_sent_again(task, gateway, spoil):
    spoil(gateway.faults)
    submission = task.submit()
    assert [*task.all()] == [submission.job_id]


def test_an_answer_that_comes_too_late_does_not_make_a_second_job(task, gateway):
    gateway.faults.delay(1, on="submit", when="after")
    auth = AccessToken(gateway.url, gateway.access_token())
    with Client(gateway.url, auth, policy=POLICY, timeout=0.4) as task.client:
        submission = task.submit()
    assert [*task.all()] == [submission.job_id]


@pytest.mark.parametrize("spoil", [LOST["cut"], LOST["500"]], ids=["cut", "500"])
def test_a_job_that_becomes_visible_late_is_found(task, gateway, spoil):
    spoil(gateway.faults)
    began = task.clock.now
    task.hide_jobs(until=lambda: task.clock.now > began + 10)
    submission = task.submit()
    assert [*task.all()] == [submission.job_id]
    assert gateway.requests.count("submit") == 1


@pytest.mark.parametrize("late", [False, True], ids=["both are seen", "the second is not"])
def test_of_a_job_that_becomes_visible_too_late_the_one_sent_in_doubt_is_cancelled(task, gateway, late):
    def sent_again():
        if gateway.requests.count("submit") < 2:
            return False
        if late:
            gateway.faults.vanish(max(task.all(), key=int))
        return True

    gateway.faults.lose_answer(on="submit")
    task.hide_jobs(until=sent_again)
    submission = task.submit()
    assert gateway.requests.count("submit") == 2
    assert task.active() == [submission.job_id] == [min(task.all(), key=int)]


def test_looking_for_the_job_goes_on_while_the_gateway_is_in_trouble(task, gateway):
    gateway.faults.lose_answer(on="submit")
    gateway.faults.respond(500, on="jobs")
    submission = task.submit()
    assert [*task.all()] == [submission.job_id]


def test_a_refused_job_is_an_error_at_once_and_there_is_no_job(task, gateway):
    script = "#!/bin/sh\n#SBATCH --partition=none\n"
    for _ in range(2):
        with pytest.raises(RejectedError, match=r"[Ii]nvalid partition"):
            task.submit(script)
    assert task.all() == {}
    assert gateway.requests.count("submit") == 2
    assert task.recorded().phase == "intent"


def test_a_gateway_that_never_answers_well_is_an_error_and_not_for_ever(task, gateway):
    gateway.faults.respond(500, on="submit", times=None)
    with pytest.raises(HpcError, match="HTTP 500"):
        task.submit()
    assert task.all() == {}
    assert gateway.requests.count("submit") == 4


# --- retries ----------------------------------------------------------------------------------------------


def test_a_retry_with_an_id_attaches_without_a_look_at_names(task, gateway):
    first = task.submit()
    gateway.faults.respond(500, on="jobs", times=None)
    again = task.submit()
    assert again == replace(first, adopted=True)
    assert [*task.all()] == [first.job_id]


def test_a_retry_with_an_id_that_is_not_known_looks_for_the_name(task, gateway):
    first = task.submit()
    gateway.faults.respond(404, {"errorType": "error", "message": "Job not found."}, on="job")
    assert task.submit().job_id == first.job_id
    assert [*task.all()] == [first.job_id]


def test_a_retry_with_an_intent_but_no_id_attaches_to_what_the_lost_try_sent(task):
    job_id = task.by_hand()
    task.remember()
    submission = task.submit()
    assert (submission.job_id, submission.adopted) == (job_id, True)
    assert [*task.all()] == [job_id]
    assert task.recorded().job_id == job_id


def test_a_retry_right_after_the_lost_try_waits_until_its_job_can_be_seen(task):
    began = task.clock.now
    task.hide_jobs(until=lambda: task.clock.now > began + 10)
    job_id = task.by_hand()
    task.remember()
    assert task.submit().job_id == job_id
    assert [*task.all()] == [job_id]


def test_a_retry_long_after_the_intent_does_not_wait(task, gateway):
    task.remember(at=time.time() - 2 * 3600)
    submission = task.submit()
    assert not submission.adopted
    assert [entry.query for entry in gateway.requests.of("jobs")] == [f"name={task.name()}&time_window=8h"]


def test_a_retry_finds_its_job_also_when_the_users_name_has_changed(task):
    job_id = task.by_hand()
    task.remember()
    assert task.submit(base_name="another").job_id == job_id


def test_a_completed_job_is_adopted(task):
    job_id = task.wait(task.by_hand(SUCCEEDS))
    task.remember("submitted", script=SUCCEEDS, job_id=job_id)
    assert task.submit(SUCCEEDS).job_id == job_id
    assert [*task.all()] == [job_id]


@pytest.mark.parametrize("phase", ["intent", "submitted"])
def test_a_failed_job_is_followed_by_the_next_generation(task, phase):
    failed = task.wait(task.by_hand(FAILS))
    task.remember(phase, script=FAILS, job_id=failed if phase == "submitted" else None)
    second = task.submit(FAILS)
    assert (second.name, second.adopted) == (task.name(1), False)
    assert ([*task.all(0)], [*task.all(1)]) == ([failed], [second.job_id])
    assert task.recorded().generation == 1
    task.wait(second.job_id)
    third = task.submit(FAILS)
    assert [*task.all(2)] == [third.job_id]


@pytest.mark.parametrize("script", [RUNS, SUCCEEDS], ids=["running", "completed"])
def test_a_task_that_must_not_go_on_with_a_job_fails_and_leaves_it(task, script):
    job_id = task.by_hand(script)
    if script is SUCCEEDS:
        task.wait(job_id)
    task.remember("submitted", script=script, job_id=job_id)
    with pytest.raises(JobError, match=f"Job {job_id} .* on_existing='fail'"):
        task.submit(script, on_existing="fail")
    assert [*task.all()] == [job_id]
    assert task.all()[job_id] in ("PENDING", "RUNNING", "COMPLETED")


def test_a_task_that_wants_a_job_of_its_own_cancels_the_one_before(task):
    job_id = task.by_hand()
    task.remember("submitted", job_id=job_id)
    second = task.submit(on_existing="resubmit")
    assert (second.name, second.adopted) == (task.name(1), False)
    assert (task.active(0), task.active(1)) == ([], [second.job_id])


@pytest.mark.parametrize("choice", ["fail", "resubmit"])
def test_a_job_that_failed_is_followed_by_another_whatever_the_choice(task, choice):
    failed = task.wait(task.by_hand(FAILS))
    task.remember("submitted", script=FAILS, job_id=failed)
    assert task.submit(FAILS, on_existing=choice).name == task.name(1)


def test_of_twins_the_earliest_is_kept_and_the_others_are_cancelled(task):
    ids = [task.by_hand() for _ in range(3)]
    task.remember()
    assert task.submit().job_id == ids[0]
    assert [*task.all()] == ids
    assert task.active() == ids[:1]


def test_a_twin_that_is_over_is_left_alone(task, gateway):
    kept, over = task.by_hand(), task.wait(task.by_hand(SUCCEEDS))
    task.remember()
    assert task.submit().job_id == kept
    assert gateway.requests.count("cancel") == 0
    assert task.all()[over] == "COMPLETED"


def test_the_elements_of_a_running_array_are_no_twins(task, gateway):
    job_id = task.by_hand(ARRAY)
    until = time.monotonic() + 10
    while len(task.client.send(jobs.listing(task.system, name=task.name()))) < 3:
        assert time.monotonic() < until, "the array's elements have not shown up under raw ids"
        time.sleep(0.02)
    task.remember(script=ARRAY)
    assert task.submit(ARRAY).job_id == job_id
    assert gateway.requests.count("cancel") == 0


def test_what_cannot_be_told_from_an_element_is_not_cancelled(task, gateway):
    ids = [task.by_hand() for _ in range(2)]
    task.remember()
    gateway.faults.respond(404, {"errorType": "error", "message": "Job not found."}, on="job")
    assert task.submit().job_id == ids[0]
    assert task.active() == ids


# --- clears and changes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["intent", "submitted"])
def test_a_cleared_task_cancels_its_job_and_starts_a_new_generation(task, phase):
    old = task.by_hand()
    task.remember(phase, job_id=old if phase == "submitted" else None)
    new = task.submit(max_tries=1)
    assert (new.name, new.adopted) == (task.name(1), False)
    assert (task.active(0), task.active(1)) == ([], [new.job_id])
    assert task.submit(max_tries=1).job_id == new.job_id


@pytest.mark.parametrize("job", [None, SUCCEEDS], ids=["no job", "a job that is over"])
def test_a_cleared_task_with_nothing_to_cancel_starts_anew_too(task, gateway, job):
    if job:
        task.wait(task.by_hand(job))
    task.remember()
    assert task.submit(max_tries=1).name == task.name(1)
    assert gateway.requests.count("cancel") == 0


def test_a_job_that_cannot_be_cancelled_does_not_stop_a_cleared_task(task, gateway, caplog):
    task.remember("submitted", job_id=task.by_hand())
    gateway.faults.respond(403, on="cancel")
    assert task.submit(max_tries=1).name == task.name(1)
    assert "could not be cancelled" in caplog.text


def test_a_changed_script_is_another_job(task):
    old = task.submit()
    new = task.submit("#!/bin/sh\nexec sleep 61\n")
    assert (task.active(0), task.active(1)) == ([], [new.job_id])
    assert old.job_id != new.job_id


def test_on_another_system_it_is_another_job(task):
    old = task.submit()
    new = task.submit(system="second")
    assert task.all(0)[old.job_id].startswith("CANCELLED")
    assert task.active(1, "second") == [new.job_id]
    assert task.recorded().system == "second"


# --- without Airflow's store ------------------------------------------------------------------------------


@pytest.fixture
def forgetful(client, gateway, request):
    return Task(client, gateway, request.node.name, None)


def test_without_a_store_the_name_alone_finds_the_job(forgetful):
    first = forgetful.submit()
    again = forgetful.submit()
    assert (first.adopted, again.adopted) == (False, True)
    assert [*forgetful.all()] == [first.job_id] == [again.job_id]


def test_without_a_store_failed_generations_are_passed_by(forgetful):
    for generation in range(2):
        forgetful.wait(forgetful.by_hand(FAILS, generation))
    third = forgetful.submit(FAILS)
    assert (third.name, third.adopted) == (forgetful.name(2), False)


def test_without_a_store_a_lost_answer_is_found_all_the_same(forgetful, gateway):
    gateway.faults.lose_answer(on="submit")
    assert [*forgetful.all()] == []
    assert [forgetful.submit().job_id] == [*forgetful.all()]


# --- records, names, fingerprints -------------------------------------------------------------------------


@pytest.mark.parametrize("junk", [None, 7, "x", [], {}, {"phase": "intent"}, {"of": "another version"}])
def test_a_record_that_cannot_be_read_is_none(task, junk):
    assert Record.from_json(junk) is None
    task.memory.kept[STATE_KEY] = json.dumps(junk)
    assert not task.submit().adopted


IDENTITIES = st.builds(Identity, st.text(), st.text(), st.text(), st.integers(-1, 9))


@given(st.text(), IDENTITIES, st.integers(0, 9))
def test_a_name_is_always_the_same_and_always_one_that_slurm_takes(base, identity, generation):
    name = job_name(base, identity, generation)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*-[0-9a-f]{10}", name)
    assert len(name) <= 128
    assert name == job_name(base, replace(identity), generation)


@given(IDENTITIES, IDENTITIES)
def test_no_two_task_instances_and_generations_share_a_name(one, other):
    names = [job_name("x", identity, generation) for identity in {one, other} for generation in (0, 1)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("field", [field.name for field in fields(Identity)])
def test_each_part_of_an_identity_counts(field):
    identity = Identity("1", "1", "1", 1)
    other = replace(identity, **{field: 2 if field == "map_index" else "2"})
    assert job_name("x", identity, 0) != job_name("x", other, 0)


@pytest.mark.parametrize("field", [field.name for field in fields(JobSpec)])
def test_a_fingerprint_is_of_all_that_is_submitted_but_the_name(field):
    spec = JobSpec(name="n", working_directory="/w")
    other = replace(spec, **{field: {"A": "1"} if field == "env" else "other"})
    assert (fingerprint(spec) == fingerprint(other)) is (field == "name")


def test_what_a_later_version_wrote_down_beside_is_no_reason_to_lose_the_job(task):
    job_id = task.by_hand()
    task.remember("submitted", job_id=job_id)
    record = json.loads(task.memory.kept[STATE_KEY])
    del record["variation"]
    task.memory.kept[STATE_KEY] = json.dumps(record | {"of_tomorrow": 1})
    assert task.submit().job_id == job_id


# --- two tries side by side -------------------------------------------------------------------------------


def settled(task, submission):
    return settle(task.client, task.system, submission, Store(task.memory))


def test_of_two_tries_that_both_sent_a_job_both_keep_the_earlier_one(task):
    first = task.submit()
    task.memory.kept.clear()  # the other try had looked before there was anything
    second = task.submit()
    assert len(task.active()) == 2
    kept, seen = settled(task, second)
    assert (kept.job_id, kept.adopted, seen.job_id) == (first.job_id, True, first.job_id)
    assert settled(task, first)[0] == first
    assert task.active() == [first.job_id]
    assert task.recorded().job_id == first.job_id


def test_a_later_twin_is_cancelled_though_our_own_job_cannot_be_seen_by_its_name_yet(task, gateway):
    ours = Submission(job_id="1", name=task.name(), since=time.time())
    twin = task.by_hand()
    assert settled(task, ours) == (ours, None)
    assert task.active() == []
    over = task.wait(task.by_hand(SUCCEEDS))
    assert settled(task, ours) == (ours, None)
    assert task.all()[over] == "COMPLETED"
    assert task.all()[twin].startswith("CANCELLED")


def test_an_element_of_our_own_array_is_no_twin_while_the_array_cannot_be_seen_by_its_name(task, gateway):
    ours = Submission(job_id=task.by_hand(ARRAY), name=task.name(), since=time.time())
    whole = replace(jobs.listing(task.system, name=ours.name), read=read_json)
    until = time.monotonic() + 10
    while True:
        records = task.client.send(whole)["jobs"]
        # An element that was started before the last one: it bears a raw id of its own.
        others = [one for one in records if one["jobId"].isdigit() and one["jobId"] != ours.job_id]
        if others:
            break
        assert time.monotonic() < until, "the array's elements have not shown up under raw ids"
        time.sleep(0.02)
    gateway.faults.respond(200, {"jobs": others}, on="jobs", times=2)
    kept, seen = settled(task, ours)
    assert (kept, seen.job_id) == (ours, ours.job_id)
    # So it is for a try that does not know the id.
    task.remember(script=ARRAY)
    assert task.submit(ARRAY).job_id == ours.job_id
    assert gateway.requests.count("cancel") == 0


def test_an_array_that_the_gateway_tells_of_by_its_elements_alone_is_adopted(task, gateway):
    job_id = task.by_hand(ARRAY)
    task.remember(script=ARRAY)
    whole = replace(jobs.get(task.system, job_id), read=read_json)
    records = task.client.send(whole)["jobs"]
    elements = [record for record in records if "_" in record["jobId"]]
    assert elements
    # A second job of the name, or its ids would not be asked for.
    twin = {
        **elements[0],
        "jobId": str(int(job_id) + 900),
        "status": {**elements[0]["status"], "state": "COMPLETED"},
    }
    gateway.faults.respond(200, {"jobs": [*elements, twin]}, on="jobs")
    gateway.faults.respond(200, {"jobs": elements}, on="job")
    assert task.submit(ARRAY).job_id == job_id
    assert gateway.requests.count("cancel") == 0


def test_a_job_alone_costs_one_request_to_settle(task, gateway):
    ours = task.submit()
    gateway.requests.clear()
    kept, seen = settled(task, ours)
    assert (kept, seen.job_id) == (ours, ours.job_id)
    assert len(gateway.requests) == 1


def test_a_job_of_a_run_that_was_deleted_and_made_anew_is_not_ours(task):
    former = task.wait(task.by_hand(SUCCEEDS))
    ours = task.submit()
    much_later = replace(ours, since=ours.since + 300)
    assert settled(task, much_later)[0].job_id != former
    assert ours.job_id in task.active()


def test_nothing_to_be_seen_yet_settles_nothing(task, gateway):
    ours = Submission(job_id="1", name=task.name(), since=time.time())
    assert settled(task, ours) == (ours, None)


# --- jobs that follow one that failed ---------------------------------------------------------------------


def test_a_job_that_follows_varies_as_its_task_says_and_a_retry_knows_how(task):
    def vary(job, name, before):
        assert (job.state.value, name) == ("FAILED", task.name(len(asked) - 1))
        return Variation(scaled={"mem": before.scaled.get("mem", 0) + 1})

    asked = []

    def spec_for(name, variation):
        if name == task.name(len(asked)):
            asked.append(variation)
        return task.spec(name, FAILS)

    for times in (0, 1, 2):
        submission = task.submit(FAILS, spec_for=spec_for, vary=vary)
        assert submission.variation.scaled == ({"mem": times} if times else {})
        assert task.recorded().variation == submission.variation
        # A try that dies now attaches to this very job.
        task.wait(submission.job_id)
    assert [variation.scaled for variation in asked] == [{}, {"mem": 1}, {"mem": 2}]


def test_a_cleared_task_varies_nothing(task):
    task.remember("submitted", job_id=task.wait(task.by_hand(FAILS)), variation=Variation(scaled={"mem": 2}))
    assert task.submit(max_tries=1).variation == Variation()


# --- what chaos has found ---------------------------------------------------------------------------------


def test_a_retry_waits_for_a_job_that_was_sent_again_long_after_its_intent(task):
    began = task.clock.now
    task.remember(at=time.time() - 60)
    sent = []

    def arrives():
        if not sent and task.clock.now > began + 5:
            sent.append(task.by_hand())

    task.clock.happens = arrives
    assert task.submit().job_id == sent[0]
    assert [*task.all()] == sent


def test_a_look_that_is_refused_for_good_leaves_the_job_to_a_retry(task, gateway):
    gateway.faults.lose_answer(on="submit")
    gateway.faults.respond(401, {"message": "Access token expired"}, on="jobs")
    with pytest.raises(WatchError, match="may or may not have been submitted") as failure:
        task.submit()
    assert failure.value.transient
    assert task.submit().adopted
    assert len(task.all()) == 1


def test_a_job_whose_answer_came_is_not_lost_because_nobody_can_look_for_another(task, gateway):
    gateway.faults.cut(on="submit")  # before anything was done
    gateway.faults.respond(403, {"message": "no"}, on="jobs", skip=7, times=None)
    assert task.submit().job_id in task.active()


def test_a_try_that_airflow_has_given_up_cancels_its_job_beside_that_of_the_next_one(task):
    ours = []

    def gone(key, value):
        if value["phase"] == "submitted" and value["job_id"]:
            raise OSError("the supervisor is gone")
        # While this try was at it, the next one has sent its job.
        ours.append(task.by_hand())

    task.memory.set = gone
    with pytest.raises(OSError, match="supervisor"):
        task.submit()
    assert task.active() == ours
