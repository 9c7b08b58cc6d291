"""Calls as values: paths that nobody can bend, answers read or refused, results changed."""

from urllib.parse import unquote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hpc_provider.client import files, jobs, systems, transfers
from airflow_hpc_provider.client.calls import Call, nothing, path, plain, read_json, reading
from airflow_hpc_provider.client.errors import BadAnswerError, InvalidInputError, NotFoundError

NO = NotFoundError("look", status=404, message="Job not found.")


def answer(body=None, **options):
    options.setdefault("json", body)
    return httpx.Response(200, request=httpx.Request("GET", "http://gateway"), **options)


def look(**changes):
    given = {"doing": "look", "method": "GET", "path": "/x", "replayable": True, "read": lambda _: 20}
    return Call(**given | changes)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4))
def test_no_segment_can_add_or_take_away_segments(segments):
    if {".", ".."} & set(segments):
        with pytest.raises(InvalidInputError):
            path(*segments)
        return
    made = path(*segments)
    assert made.isascii()
    assert not set(made) & set("?# \\")
    assert [unquote(segment) for segment in made.removeprefix("/").split("/")] == segments


@pytest.mark.parametrize("segment", ["", ".", ".."])
def test_a_segment_that_would_vanish_is_refused(segment):
    with pytest.raises(InvalidInputError, match="no name of a system"):
        path("compute", segment, "jobs")


def test_an_error_answer_is_an_error_unless_a_call_knows_better():
    with pytest.raises(NotFoundError) as caught:
        look().refused(NO)
    assert caught.value is NO


def test_a_result_can_be_changed_on_both_ways():
    call = look(refused=lambda _: 10).then(lambda number: number + 1)
    assert (call.read(answer()), call.refused(NO)) == (21, 11)
    assert (call.doing, call.path, call.replayable) == ("look", "/x", True)


def test_a_change_of_the_result_leaves_errors_alone():
    with pytest.raises(NotFoundError):
        look().then(str).refused(NO)


def test_a_call_is_a_value():
    read = dict.get
    assert look(read=read) == look(read=read)
    with pytest.raises(AttributeError):
        look().path = "/y"


def test_an_answer_that_says_nothing_is_read_as_nothing():
    assert nothing(answer(content=b"whatever")) is None


def test_an_object_is_read_and_anything_else_is_none():
    assert read_json(answer({"a": 1})) == {"a": 1}
    for content in (b"[]", b'"x"', b"1", b"null"):
        with pytest.raises(TypeError, match="instead of an object"):
            read_json(answer(content=content))


def test_both_spellings_and_nulls_read_alike():
    assert plain({"maxPartSize": 1, "max_part_size_2": 2, "gone": None}) == {
        "maxpartsize": 1,
        "maxpartsize2": 2,
    }
    with pytest.raises(AttributeError):
        plain(["no", "object"])


@pytest.mark.parametrize(
    ("build", "response"),
    [
        (lambda body: body["gone"], answer({})),
        (lambda body: body["jobs"][0], answer({"jobs": []})),
        (lambda body: body["jobs"]["x"], answer({"jobs": []})),
        (lambda body: int(body["x"]), answer({"x": "y"})),
        (lambda body: body["x"].name, answer({"x": 1})),
        (lambda body: body, answer([])),
        (lambda body: body, answer(json=None, content=b"<html>", headers={"content-type": "text/html"})),
        (lambda body: body, answer(json=None, content=b"")),
        (lambda body: body, answer(json=None, content=b"\xff\xfe{")),
    ],
)
def test_whatever_is_not_the_expected_answer_is_told_with_what_was_done(build, response):
    with pytest.raises(BadAnswerError, match=r"Could not read job 7: the answer \(HTTP 200, ") as caught:
        reading("read job 7", build)(response)
    assert caught.value.__cause__ is not None
    assert "FirecREST v2 gateway" in str(caught.value)


def test_an_answer_that_is_refused_here_is_a_bad_answer_too():
    def build(_):
        raise InvalidInputError("job_id", "is none")

    with pytest.raises(BadAnswerError):
        reading("look", build)(answer({}))


# Few enough to be counted apart.
OPERATIONS = {
    "delete.compute.jobs.id": jobs.cancel,
    "get.compute.jobs": lambda system, job: jobs.listing(system, name=f"job-{job}"),
    "get.compute.jobs.id": jobs.get,
    "get.compute.jobs.id.metadata": jobs.metadata,
    "post.compute.jobs": lambda system, job: jobs.submit(
        system, jobs.JobSpec(name=f"job-{job}", script="#!/bin/sh", working_directory=f"/{system}")
    ),
    "put.compute.jobs.id.attach": lambda system, job: jobs.attach(system, job, "hostname"),
    "get.filesystem.ops.ls": lambda system, job: files.listing(system, f"/scratch/{job}"),
    "get.filesystem.ops.tail": lambda system, job: files.tail(system, f"/scratch/{job}", lines=1),
    "delete.filesystem.transfer.rm": lambda system, job: transfers.remove(system, f"/scratch/{job}"),
    "get.status.nodes": lambda system, _: systems.nodes(system),
    "get.status.systems": lambda _, __: systems.listing(),
    "get.status.userinfo": lambda system, _: systems.user_info(system),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("system", ["daint", "Zürich 2/a", "jobs", "7", "status"])
def test_an_operation_names_neither_system_nor_job_nor_file(operation, system):
    call = OPERATIONS[operation](system, "12345")
    assert call.operation == operation
    assert call.then(str).operation == operation
