"""The poll decision, with a clock of the test's own: what a look means, and when to look again."""

import asyncio
import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hpc_provider.client.errors import (
    AccessDeniedError,
    BadAnswerError,
    BadRequestError,
    InvalidInputError,
    NotFoundError,
    RateLimitedError,
    RejectedError,
    TokenRefusedError,
    TokenUnavailableError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from airflow_hpc_provider.client.files import EntryKind, Stat
from airflow_hpc_provider.client.jobs import Element, Job
from airflow_hpc_provider.client.states import JobState
from airflow_hpc_provider.client.systems import ServiceHealth, System
from airflow_hpc_provider.watch import (
    FileWatch,
    JobWatch,
    Outcome,
    SystemWatch,
    Verdict,
    Watch,
    follow,
    follow_async,
    watch_from_json,
)

NOW = 1_795_320_000.0


def api(kind, status, message="Trouble", **more):
    return kind("look", status=status, message=message, **more)


GONE = api(NotFoundError, 404, "Job not found.")
NO_FILE = api(NotFoundError, 404, "stat: cannot stat '/w/x': No such file or directory")
NO_SYSTEM = api(NotFoundError, 404, "System not found")
DOWN = api(UnavailableError, 503)
UNREACHABLE = UnreachableError("look", "connection refused.", sent=False)
NO_TOKEN = TokenRefusedError("The token endpoint said no.")
TRANSIENT = [
    DOWN,
    api(UnavailableError, 500),
    api(RateLimitedError, 429),
    UNREACHABLE,
    BadAnswerError("look", "a page"),
    TokenUnavailableError("no token"),
]
WAITED_FOR = [*TRANSIENT, NO_TOKEN, api(UnauthorizedError, 401)]
PERMANENT = [
    api(AccessDeniedError, 403),
    api(BadRequestError, 400),
    api(RejectedError, 500),
    NO_SYSTEM,
    InvalidInputError("x", "y"),
    UnreachableError("look", "TLS failed.", sent=False, transient=False),
]


def names(error):
    return f"{type(error).__name__}"


def job_watch(**given):
    return JobWatch(**{"system": "daint", "since": NOW, "job_id": "7"} | given)


def file_watch(**given):
    return FileWatch(**{"system": "daint", "since": NOW, "path": "/w/x"} | given)


def system_watch(**given):
    return SystemWatch(**{"system": "daint", "since": NOW} | given)


def job(state="RUNNING", **given):
    return Job(**{"job_id": "7", "state": JobState[state]} | given)


# --- jobs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"])
def test_a_job_that_is_over_ends_the_wait_with_all_that_is_known(state):
    seen = job(state, exit_code=3)
    verdict = job_watch().saw(seen, NOW + 1)
    assert verdict == Verdict(Outcome.DONE, f"Job 7 on system daint is {state}.", data=seen.to_json())


@pytest.mark.parametrize("state", [state.value for state in JobState if not state.final])
def test_a_job_that_is_not_over_is_waited_for(state):
    assert job_watch().saw(job(state), NOW + 10**7) is None


def test_a_job_may_be_invisible_for_two_minutes():
    watch = job_watch()
    assert watch.news == "not visible yet"
    assert watch.missed(GONE, NOW) is None
    assert watch.missed(GONE, NOW + 119) is None
    assert watch.saw(job("PENDING", reason="Priority"), NOW + 119.5) is None
    assert watch.news == "PENDING (Priority)"
    assert watch.saw(job("RUNNING", reason="Priority"), NOW + 120) is None
    assert watch.news == "RUNNING"


def test_a_job_nobody_knows_any_more_is_lost():
    watch = job_watch()
    assert watch.missed(GONE, NOW + 120) is None
    assert watch.missed(GONE, NOW + 149) is None
    verdict = watch.missed(GONE, NOW + 150)
    assert (verdict.outcome, verdict.transient) == (Outcome.LOST, False)
    assert "Job 7 on system daint is lost: the gateway does not find it" in verdict.message


def test_a_job_that_comes_back_into_sight_was_never_lost():
    watch = job_watch()
    assert watch.missed(GONE, NOW + 120) is None
    assert watch.saw(job("RUNNING"), NOW + 140) is None
    assert watch.news == "RUNNING"
    assert watch.missed(GONE, NOW + 160) is None
    assert watch.news == "out of sight"
    assert watch.missed(GONE, NOW + 189) is None
    assert watch.missed(GONE, NOW + 190).outcome is Outcome.LOST


def test_a_job_out_of_sight_is_looked_for_by_id_and_by_name_in_turn():
    watch = job_watch(name="train-0123456789")
    assert watch.look().path == "/compute/daint/jobs/7"
    watch.missed(GONE, NOW + 120)
    by_name = watch.look()
    assert (by_name.path, by_name.params["name"]) == ("/compute/daint/jobs", "train-0123456789")
    assert watch.saw(None, NOW + 130) is None
    assert watch.look().path == "/compute/daint/jobs/7"
    watch.missed(GONE, NOW + 140)
    assert "no job has its name either" in watch.saw(None, NOW + 151).message


def test_a_job_found_by_its_name_is_watched_on():
    watch = job_watch(name="train-0123456789")
    watch.missed(GONE, NOW + 120)
    found = job("RUNNING", name="train-0123456789")
    body = {"jobs": [{"jobId": "7", "name": found.name, "status": {"state": "RUNNING"}}]}
    seen = watch.look().read(httpx.Response(200, json=body))
    assert (seen.job_id, seen.state) == ("7", JobState.RUNNING)
    assert watch.saw(seen, NOW + 130) is None
    assert watch.look().path == "/compute/daint/jobs/7"


@pytest.mark.parametrize(
    "stranger",
    [
        {"name": "somebody-elses"},
        {"name": "train-0123456789", "start": datetime.fromtimestamp(NOW - 86400, tz=UTC)},
    ],
    ids=["another name", "an older start"],
)
def test_a_job_id_that_was_given_anew_is_not_ours(stranger):
    watch = job_watch(name="train-0123456789")
    assert watch.saw(job("COMPLETED", **stranger), NOW + 130) is None
    assert watch.saw(None, NOW + 150) is None
    verdict = watch.saw(job("COMPLETED", **stranger), NOW + 170)
    assert verdict.outcome is Outcome.LOST
    assert "its id now belongs to" in verdict.message
    assert "its name" not in verdict.message
    by_name = watch.saw(None, NOW + 171)
    assert by_name.outcome is Outcome.LOST
    assert re.search(r"its id now belongs to .*, and no job has its name either\.", by_name.message)


@pytest.mark.parametrize("name", ["train-0123456789", "allocation", None])
def test_a_job_id_under_which_another_users_job_is_seen_is_not_ours_any_more(name):
    watch = job_watch(name="train-0123456789")
    assert watch.saw(job(name="train-0123456789", user="alice"), NOW + 130) is None
    assert watch.saw(job("COMPLETED", name=name, user="bob"), NOW + 140) is None
    assert watch.saw(job("COMPLETED", name=name, user="bob"), NOW + 170).outcome is Outcome.LOST


def test_a_record_that_tells_no_user_is_ours_all_the_same():
    watch = job_watch(name="train-0123456789")
    assert watch.saw(job(name="train-0123456789", user="alice"), NOW + 130) is None
    assert watch.saw(job("COMPLETED", name="allocation", user=""), NOW + 140).outcome is Outcome.DONE


@pytest.mark.parametrize("name", ["train-0123456789", "allocation", None])
def test_a_job_under_its_own_name_or_that_of_haste_or_none_is_ours(name):
    verdict = job_watch(name="train-0123456789").saw(job("COMPLETED", name=name), NOW + 5)
    assert verdict.outcome is Outcome.DONE


def test_a_sensor_takes_an_old_job_of_any_name():
    old = job("COMPLETED", name="any", start=datetime.fromtimestamp(NOW - 86400, tz=UTC))
    assert job_watch().saw(old, NOW + 5).outcome is Outcome.DONE


def test_a_job_that_waits_for_what_will_not_come_is_told_of_at_once_and_left_waiting():
    watch = job_watch()
    assert watch.saw(job("PENDING", reason="DependencyNeverSatisfied"), NOW) is None
    assert "It will not start by itself" in watch.news
    assert watch.saw(job("PENDING", reason="DependencyNeverSatisfied"), NOW + 86400) is None


def test_a_job_that_waits_in_vain_is_given_up_after_its_grace():
    watch = job_watch(pending_grace=60)
    assert watch.saw(job("PENDING", reason="BadConstraints"), NOW) is None
    assert watch.saw(job("PENDING", reason="Priority"), NOW + 50) is None
    assert "by itself" not in watch.news
    assert watch.saw(job("PENDING", reason="BadConstraints"), NOW + 70) is None
    assert watch.saw(job("PENDING", reason="BadConstraints"), NOW + 129) is None
    verdict = watch.saw(job("PENDING", reason="BadConstraints"), NOW + 130)
    assert (verdict.outcome, verdict.transient) == (Outcome.STUCK, False)
    assert "It will not start by itself (BadConstraints)" in verdict.message


def test_a_job_that_is_invisible_is_an_answer_and_no_trouble_of_the_gateway():
    watch = job_watch(patience=100, deadline=NOW + 110)
    assert watch.missed(api(RateLimitedError, 429, retry_after=60.0), NOW) is None
    assert watch.missed(GONE, NOW + 60) is None
    assert watch.delay(NOW + 60) < 60
    assert watch.missed(DOWN, NOW + 105) is None
    assert watch.missed(GONE, NOW + 106) is None
    assert "could not be asked" not in watch.missed(GONE, NOW + 110).message


def test_a_system_that_is_not_there_is_no_lost_job():
    verdict = job_watch().missed(NO_SYSTEM, NOW + 1)
    assert (verdict.outcome, verdict.transient) == (Outcome.FAILED, False)
    assert "System not found" in verdict.message


@pytest.mark.parametrize("state", [state.value for state in JobState if state.requeueable])
def test_an_end_that_slurm_may_take_back_is_believed_when_it_still_stands_later(state):
    watch = job_watch()
    assert watch.saw(job(state), NOW) is None
    assert watch.saw(job(state), NOW + 14.9) is None
    assert watch.pending
    assert watch.saw(job(state), NOW + 15).outcome is Outcome.DONE


def test_an_end_that_was_taken_back_is_forgotten():
    watch = job_watch()
    assert watch.saw(job("NODE_FAIL"), NOW) is None
    assert watch.saw(job("PENDING"), NOW + 10) is None
    assert watch.saw(job("NODE_FAIL"), NOW + 20) is None
    assert watch.saw(job("PREEMPTED"), NOW + 34) is None
    assert watch.saw(job("PREEMPTED"), NOW + 48) is None
    assert watch.saw(job("PREEMPTED"), NOW + 49).outcome is Outcome.DONE


def test_of_an_array_every_element_is_asked_for():
    record = {"jobId": "7_0", "status": {"state": "COMPLETED"}}
    answer = httpx.Response(200, json={"jobs": [record]})
    assert job_watch(array="0-1").look().read(answer).state is JobState.PENDING
    assert job_watch(array="0").look().read(answer).state is JobState.COMPLETED
    assert job_watch().look().path == "/compute/daint/jobs/7"


# --- trouble ----------------------------------------------------------------------------------------------

every_watch = pytest.mark.parametrize(
    "make", [job_watch, file_watch, system_watch], ids=["job", "file", "system"]
)


@every_watch
@pytest.mark.parametrize("error", WAITED_FOR, ids=names)
def test_a_gateway_that_cannot_be_asked_is_waited_for_with_patience(make, error):
    watch = make(patience=100)
    assert watch.missed(error, NOW + 500) is None
    assert watch.missed(error, NOW + 599) is None
    verdict = watch.missed(error, NOW + 600)
    assert (verdict.outcome, verdict.transient) == (Outcome.FAILED, True)
    assert "could not be asked for 100 s" in verdict.message
    assert str(error) in verdict.message


@every_watch
@pytest.mark.parametrize("error", PERMANENT, ids=names)
def test_a_refusal_ends_the_wait_at_once(make, error):
    verdict = make().missed(error, NOW)
    assert (verdict.outcome, verdict.transient) == (Outcome.FAILED, False)
    assert str(error) in verdict.message


def quiet_sight(watch):
    """A look that saw nothing new, for any watch."""
    return {"job": job(), "file": {}, "system": (system(ssh=False),)}[watch.kind]


@every_watch
def test_an_outage_is_told_in_the_words_of_its_first_error_until_it_is_over(make):
    watch = make(patience=900)
    watch.saw(quiet_sight(watch), NOW)
    before = watch.news
    gate = api(UnavailableError, 503, "The scheduler service for the requested system (daint) is unhealthy.")
    watch.missed(gate, NOW + 10)
    told = watch.news
    assert "cannot be asked" in told
    assert "patience of 900 s" in told
    assert told.endswith(f" s. {gate}")
    for later, error in enumerate([DOWN, NO_TOKEN, UNREACHABLE, api(RateLimitedError, 429)], 1):
        watch.missed(error, NOW + 10 + later)
        assert watch.news == told
    watch.saw(quiet_sight(watch), NOW + 60)
    assert watch.news == before
    watch.missed(UNREACHABLE, NOW + 90)
    assert str(UNREACHABLE).rstrip(".") in watch.news
    assert str(gate) not in watch.news


def test_what_is_not_there_is_told_as_such_and_is_no_outage():
    for watch, answer in [(job_watch(), GONE), (file_watch(), NO_FILE)]:
        before = watch.news
        watch.missed(DOWN, NOW)
        assert watch.news != before
        watch.missed(answer, NOW + 1)
        assert watch.news == before


@every_watch
@pytest.mark.parametrize("asked", [None, 70.0, 10**6], ids=["no pause", "a pause", "a very long pause"])
def test_patience_with_an_outage_ends_on_time_whatever_pause_the_gateway_asks_for(make, asked):
    watch = make(patience=100, poll_interval=80)
    assert watch.gives_up_at == float("inf")
    now, verdict = NOW + 1000, None
    while verdict is None:
        verdict = watch.missed(api(RateLimitedError, 429, retry_after=asked), now)
        assert watch.gives_up_at == NOW + 1100
        now += 0 if verdict else watch.delay(now)
    assert now == pytest.approx(NOW + 1100)
    assert verdict.outcome is Outcome.FAILED


def test_a_wait_gives_up_at_the_earlier_of_its_ends_but_never_before_it_may_speak():
    watch = job_watch(deadline=NOW + 60, patience=100)
    assert watch.gives_up_at == NOW + 60
    watch.missed(DOWN, NOW - 50)
    assert watch.gives_up_at == NOW + 50
    watch.saw(job(), NOW)
    assert watch.gives_up_at == NOW + 60
    assert job_watch(deadline=NOW + 60, not_before=NOW + 70).gives_up_at == NOW + 70


def test_a_sight_makes_patience_begin_anew():
    watch = job_watch(patience=100)
    assert watch.missed(DOWN, NOW) is None
    assert watch.saw(job(), NOW + 90) is None
    assert watch.missed(DOWN, NOW + 150) is None
    assert watch.missed(DOWN, NOW + 249) is None
    assert watch.missed(DOWN, NOW + 250).outcome is Outcome.FAILED


def test_the_deadline_ends_the_wait_with_the_last_sight():
    watch = job_watch(deadline=NOW + 60)
    assert watch.saw(job(), NOW + 59) is None
    verdict = watch.saw(job(), NOW + 60)
    assert verdict == Verdict(
        Outcome.TIMEOUT, "Job 7 on system daint: the time-out came after 60 s.", data=job().to_json()
    )


def test_a_job_that_is_over_beats_the_deadline():
    assert job_watch(deadline=NOW + 60).saw(job("COMPLETED"), NOW + 100).outcome is Outcome.DONE


def test_the_deadline_also_ends_a_wait_for_what_was_never_seen():
    watch = job_watch(deadline=NOW + 60)
    assert watch.missed(GONE, NOW + 59) is None
    verdict = watch.missed(GONE, NOW + 60)
    assert (verdict.outcome, verdict.data) == (Outcome.TIMEOUT, {})


def test_a_time_out_says_if_the_gateway_could_not_be_asked():
    watch = file_watch(deadline=NOW + 60)
    verdict = watch.missed(DOWN, NOW + 60)
    assert verdict.outcome is Outcome.TIMEOUT
    assert f"The gateway could not be asked: {DOWN}" in verdict.message
    assert watch.saw({}, NOW + 61).message.endswith("after 61 s.")


@every_watch
@pytest.mark.parametrize(
    "feed",
    [
        lambda watch, now: watch.missed(PERMANENT[0], now),
        lambda watch, now: watch.missed(DOWN, now),
        lambda watch, now: watch.missed(GONE, now) if watch.kind == "job" else watch.missed(DOWN, now),
    ],
    ids=["refused", "down", "gone"],
)
def test_there_is_no_verdict_before_its_time(make, feed):
    watch = make(since=NOW - 10**4, not_before=NOW + 3, patience=0, deadline=NOW - 1)
    assert feed(watch, NOW) is None
    assert feed(watch, NOW + 2.9) is None
    assert 0 < watch.delay(NOW) <= 3
    assert feed(watch, NOW + 3) is not None


def test_a_job_that_is_over_is_told_no_earlier_than_allowed():
    watch = job_watch(not_before=NOW + 3, deadline=NOW + 1)
    assert watch.saw(job("COMPLETED"), NOW + 2) is None
    assert watch.saw(job("COMPLETED"), NOW + 3).outcome is Outcome.DONE


# --- when to look again -----------------------------------------------------------------------------------


def test_looks_are_frequent_at_first_and_after_a_change_and_rare_in_quiet():
    watch = job_watch(poll_interval=30)
    assert watch.delay(NOW) == 1
    watch.saw(job("PENDING"), NOW)
    assert watch.delay(NOW + 50) == 10
    assert watch.delay(NOW + 5000) == 30
    watch.saw(job("RUNNING"), NOW + 5000)
    assert watch.delay(NOW + 5000) == 1


def test_a_new_reason_for_waiting_or_a_new_element_is_a_change():
    watch = job_watch(poll_interval=1000)
    sights = [
        job("PENDING", reason="Priority"),
        job("PENDING", reason="Resources"),
        job("RUNNING", reason="Resources"),
        job("RUNNING", elements=(Element(index=0, state=JobState.RUNNING),)),
    ]
    for number, seen in enumerate(sights):
        watch.saw(seen, NOW + 100 * number)
        assert watch.delay(NOW + 100 * number) == 1
    watch.saw(replace(sights[-1], reason="None"), NOW + 1000)
    assert watch.delay(NOW + 1000) > 100


def test_a_pause_that_the_gateway_asks_for_is_kept_once():
    watch = job_watch()
    watch.missed(api(RateLimitedError, 429, retry_after=77.0), NOW)
    assert watch.delay(NOW) == 77
    watch.missed(DOWN, NOW + 77)
    assert watch.delay(NOW + 77) < 77
    watch.missed(api(RateLimitedError, 429, retry_after=77.0), NOW + 80)
    watch.saw(job(), NOW + 160)
    assert watch.delay(NOW + 160) == 1


def test_a_pause_never_outlasts_patience_or_the_deadline():
    watch = job_watch(patience=50)
    watch.missed(api(RateLimitedError, 429, retry_after=float("inf")), NOW)
    assert watch.delay(NOW) == 50
    late = job_watch(deadline=NOW + 10)
    late.missed(api(RateLimitedError, 429, retry_after=1000.0), NOW)
    assert late.delay(NOW) == 10


def test_a_file_that_is_still_changing_keeps_no_watch_from_its_pause():
    watch = file_watch(stable_for=5)
    watch.saw({"/w/x": (1, 1)}, NOW)
    watch.missed(api(RateLimitedError, 429, retry_after=60.0), NOW + 1)
    assert watch.delay(NOW + 1) == 60


TIMES = st.integers(0, 400_000).map(lambda quarters: quarters / 4)


@every_watch
@given(
    elapsed=TIMES,
    deadline=st.none() | TIMES,
    poll=st.floats(1, 600),
    not_before=TIMES,
    asked=st.none() | TIMES,
    rand=st.floats(0, 1, exclude_max=True),
)
def test_the_next_look_is_never_too_late_and_never_too_early(
    make, *, elapsed, deadline, poll, not_before, asked, rand
):
    watch = make(
        deadline=None if deadline is None else NOW + deadline, poll_interval=poll, not_before=NOW + not_before
    )
    now = NOW + elapsed
    if asked is not None:
        watch.missed(api(RateLimitedError, 429, retry_after=asked), now)
    delay = watch.delay(now, rand)
    assert 0 <= delay <= max(poll * 1.1, asked or 0)
    if deadline is not None and deadline > elapsed:
        assert now + delay <= NOW + deadline + 1e-3
    elif asked:
        assert delay >= min(asked, watch.patience)


# --- files ------------------------------------------------------------------------------------------------


def test_a_file_that_appears_grows_and_rests_is_there():
    watch = file_watch(stable_for=10)
    assert watch.missed(NO_FILE, NOW) is None
    assert (watch.pending, watch.news) == (False, "not there yet")
    assert watch.saw({"/w/x": (1, 100)}, NOW + 60) is None
    assert (watch.pending, watch.news) == (True, "1 seen, still changing")
    assert watch.delay(NOW + 60) <= 10
    assert watch.saw({"/w/x": (2, 101)}, NOW + 69) is None
    assert watch.saw({"/w/x": (2, 102)}, NOW + 70) is None
    assert watch.saw({"/w/x": (2, 102)}, NOW + 79.9) is None
    assert watch.saw({"/w/x": (2, 102)}, NOW + 80) == Verdict(
        Outcome.DONE, "/w/x is there on system daint.", data={"files": [{"path": "/w/x", "size": 2}]}
    )


def test_a_file_that_vanishes_begins_anew():
    watch = file_watch(stable_for=10)
    assert watch.saw({"/w/x": (1, 100)}, NOW) is None
    assert watch.missed(NO_FILE, NOW + 5) is None
    assert not watch.pending
    assert watch.saw({"/w/x": (1, 100)}, NOW + 11) is None
    assert watch.saw({"/w/x": (1, 100)}, NOW + 21).outcome is Outcome.DONE


def test_a_gateway_in_trouble_is_no_sight_of_a_file():
    watch = file_watch(stable_for=10)
    watch.saw({"/w/x": (1, 100)}, NOW)
    watch.missed(DOWN, NOW + 5)
    assert watch.pending
    assert watch.saw({"/w/x": (1, 100)}, NOW + 10).outcome is Outcome.DONE


def test_without_a_time_to_rest_the_first_sight_counts():
    assert file_watch(stable_for=0).saw({"/w/x": (0, 1)}, NOW).outcome is Outcome.DONE


def test_of_many_files_those_that_rest_are_told():
    watch = file_watch(path="/w", glob="*.nc", stable_for=10)
    assert watch.describe() == "/w/*.nc on system daint"
    assert watch.saw({"/w/b.nc": (1, 1), "/w/a.nc": (1, 1)}, NOW) is None
    verdict = watch.saw({"/w/b.nc": (1, 1), "/w/a.nc": (1, 1), "/w/c.nc": (1, 1)}, NOW + 10)
    assert verdict.message == "2 files are there on system daint."
    assert [found["path"] for found in verdict.data["files"]] == ["/w/a.nc", "/w/b.nc"]


def test_a_missing_system_is_no_missing_file():
    assert file_watch().missed(NO_SYSTEM, NOW).outcome is Outcome.FAILED


def test_one_path_is_looked_at_through_links():
    call = file_watch().look()
    assert (call.path, call.params) == ("/filesystem/daint/ops/stat", {"path": "/w/x", "dereference": "true"})
    fields = ("mode", "size", "uid", "gid", "nlink", "ino", "dev", "atime", "mtime", "ctime")
    stat = Stat(mode=0, size=1, uid=2, gid=3, links=4, inode=5, device=6, accessed=7, modified=8, changed=9)
    body = {"output": {name: number for number, name in enumerate(fields)}}
    assert call.read(httpx.Response(200, json=body)) == {"/w/x": (stat.size, stat.modified)}


def entry(name, kind=EntryKind.FILE):
    return {
        "name": name,
        "type": kind.value,
        "size": "5",
        "user": "u",
        "group": "g",
        "permissions": "rw-------",
        "lastModified": "2026-11-22T04:17:49",
        "linkTarget": None,
    }


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("*.nc", ["/w/a.nc", "/w/l.nc"]),
        ("?.NC", ["/w/B.NC"]),
        (".*", ["/w/.hidden.nc"]),
        ("[ab].nc", ["/w/a.nc"]),
        ("none", []),
    ],
)
@pytest.mark.parametrize("path", ["/w", "/w/"])
def test_a_glob_is_a_shells_and_takes_no_directory(glob, found, path):
    names = ["a.nc", "B.NC"] + [".hidden.nc"] * glob.startswith(".")
    entries = [*map(entry, names), entry("d.nc", EntryKind.DIRECTORY), entry("l.nc", EntryKind.LINK)]
    call = file_watch(path=path, glob=glob).look()
    assert (call.path, call.params["showHidden"]) == (
        "/filesystem/daint/ops/ls",
        "true" if glob[0] == "." else "false",
    )
    seen = call.read(httpx.Response(200, json={"output": entries}))
    assert seen == dict.fromkeys(found, (5, "2026-11-22T04:17:49"))


# --- systems ----------------------------------------------------------------------------------------------


def system(name="daint", **health):
    entries = (
        ServiceHealth(kind=kind, healthy=fine, message=None if fine else "odd")
        for kind, fine in health.items()
    )
    return System(name=name, health=tuple(entries))


def test_a_healthy_system_ends_the_wait():
    seen = (system("Alps"), system("Daint", scheduler=True, ssh=True))
    assert system_watch().saw(seen, NOW) == Verdict(
        Outcome.DONE, "System Daint is healthy.", data={"system": "Daint"}
    )


def test_an_unhealthy_system_is_waited_for_and_its_trouble_told():
    watch = system_watch()
    assert watch.news == "not asked yet"
    assert watch.saw((system(scheduler=False, ssh=True, s3=False),), NOW) is None
    assert watch.news == "unhealthy: scheduler: odd; s3: odd"
    assert watch.look().path == "/status/systems"


def test_a_probe_without_words_says_so():
    watch = system_watch()
    ill = System(name="daint", health=(ServiceHealth(kind="ssh", healthy=False),))
    assert watch.saw((ill,), NOW) is None
    assert watch.news == "unhealthy: ssh: no reason given"


@pytest.mark.parametrize(("services", "done"), [(["ssh"], True), (["scheduler", "ssh"], False), ([], False)])
def test_only_the_services_asked_for_must_be_healthy(services, done):
    verdict = system_watch(services=services).saw((system(scheduler=False, ssh=True),), NOW)
    assert (verdict is not None) is done


@pytest.mark.parametrize(
    ("there", "told"), [((system("alps"), system("eiger")), "alps, eiger"), ((), "none")]
)
def test_an_unknown_system_fails_and_the_known_ones_are_named(there, told):
    verdict = system_watch().saw(there, NOW)
    assert (verdict.outcome, verdict.transient) == (Outcome.FAILED, False)
    assert verdict.message == f"There is no system daint on this gateway; it has: {told}."


# --- JSON -------------------------------------------------------------------------------------------------

PLAIN = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=3)
VERDICTS = st.builds(
    Verdict,
    outcome=st.sampled_from(Outcome),
    message=st.text(max_size=20),
    data=PLAIN,
    transient=st.booleans(),
)


@given(VERDICTS)
def test_a_verdict_survives_as_an_event(verdict):
    assert Verdict.from_event(json.loads(json.dumps(verdict.to_event()))) == verdict


@pytest.mark.parametrize(
    "event", [None, {}, "done", ["done"], {"status": "success"}, {"outcome": "splendid"}]
)
def test_what_is_no_verdict_is_told(event):
    with pytest.raises(ValueError, match=r"no verdict|not a valid"):
        Verdict.from_event(event)


MOMENTS = st.floats(0, 2**33)
COMMON = {
    "system": st.text(min_size=1, max_size=5),
    "since": MOMENTS,
    "deadline": st.none() | MOMENTS,
    "poll_interval": MOMENTS,
    "patience": MOMENTS,
    "not_before": MOMENTS,
}
TEXTS = st.text(max_size=5)
WATCHES = st.one_of(
    st.builds(JobWatch, job_id=TEXTS, array=st.none() | TEXTS, **COMMON),
    st.builds(FileWatch, path=TEXTS, glob=st.none() | TEXTS, stable_for=MOMENTS, **COMMON),
    st.builds(SystemWatch, services=st.lists(TEXTS, max_size=3), **COMMON),
)


@given(WATCHES)
def test_a_watch_survives_its_way_through_json(watch):
    plain = json.loads(json.dumps(watch.to_json()))
    again = watch_from_json(plain)
    assert type(again) is type(watch)
    assert again == watch
    assert again.to_json() == plain


def test_a_watch_of_nothing_is_none():
    watch = Watch(system="daint", since=NOW)
    for ask in (watch.look, watch.describe, watch.last_sight, lambda: watch.decide(None, NOW)):
        with pytest.raises(NotImplementedError):
            ask()
    assert not watch.pending


# --- the two loops ----------------------------------------------------------------------------------------


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now = NOW
        self.slept = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert seconds >= 0
        self.slept.append(seconds)
        self.now += seconds

    async def sleep_on_loop(self, seconds):
        self.sleep(seconds)


class Script:
    """A client whose answers are written down; the last one comes for ever."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def send(self, call):
        assert call.path == "/compute/daint/jobs/7"
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class ScriptOnLoop(Script):
    async def send(self, call):
        return super().send(call)


def in_worker(answers, after_look=lambda: None, **given):
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("airflow_hpc_provider.watch.random.random", lambda: 0.5)
        verdict = follow(
            Script(*answers), job_watch(**given), sleep=clock.sleep, clock=clock, after_look=after_look
        )
    return verdict, clock.slept


def on_loop(answers, after_look=lambda: None, **given):
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("airflow_hpc_provider.watch.random.random", lambda: 0.5)
        verdict = asyncio.run(
            follow_async(
                ScriptOnLoop(*answers),
                job_watch(**given),
                sleep=clock.sleep_on_loop,
                clock=clock,
                after_look=after_look,
            )
        )
    return verdict, clock.slept


SIGHTS = st.one_of(
    st.sampled_from([*map(job, ("PENDING", "RUNNING", "COMPLETED", "NODE_FAIL", "UNKNOWN"))]),
    st.sampled_from([GONE, *WAITED_FOR, *PERMANENT, api(RateLimitedError, 429, retry_after=40.0)]),
)


@given(st.lists(SIGHTS, min_size=1, max_size=12))
def test_worker_and_loop_come_to_the_same_verdict_after_the_same_looks(sights):
    given = {"deadline": NOW + 1000, "patience": 300}
    assert in_worker(sights, **given) == on_loop(sights, **given)


@pytest.mark.parametrize("run", [in_worker, on_loop])
def test_a_job_is_followed_to_its_end_through_all_trouble(run):
    answers = [
        GONE,
        job("PENDING"),
        DOWN,
        NO_TOKEN,
        job("NODE_FAIL"),
        job("PENDING"),
        job(),
        job("COMPLETED"),
    ]
    verdict, slept = run(answers)
    assert (verdict.outcome, verdict.data["state"]) == (Outcome.DONE, "COMPLETED")
    assert len(slept) == len(answers) - 1


@pytest.mark.parametrize("run", [in_worker, on_loop])
def test_whoever_looks_along_can_end_the_wait(run):
    looks = []

    def after_look():
        looks.append(1)
        if len(looks) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([job()], after_look=after_look)
    assert len(looks) == 3


@pytest.mark.parametrize("run", [in_worker, on_loop])
def test_a_wait_ends_at_its_deadline_and_not_seconds_later(run):
    verdict, slept = run([job()], deadline=NOW + 100.5)
    assert verdict.outcome is Outcome.TIMEOUT
    assert sum(slept) == pytest.approx(100.5)
