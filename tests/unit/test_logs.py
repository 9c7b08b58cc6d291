"""What is read of a job's output and what is logged of it: every line, and once."""

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_hpc_provider import logs as module
from airflow_hpc_provider.client.errors import HpcError, UnreachableError, error_for
from airflow_hpc_provider.client.jobs import Element, Job
from airflow_hpc_provider.client.states import JobState
from airflow_hpc_provider.logs import Ask, JobLogs, OutputFile, finish, follow_logs
from airflow_hpc_provider.watch import JobWatch

NOW = 1_000_000.0


# --- files and gateways of our own ---


def by_bytes(data: bytes, offset: int, size: int) -> str:
    """A gateway that cuts its answer by bytes."""
    return data[offset : offset + size].decode(errors="replace")


def by_characters(data: bytes, offset: int, size: int) -> str:
    """FirecREST: ``dd bs=SIZE skip=OFFSET/SIZE count=2``, then cut by characters."""
    begin = offset // size * size
    return data[begin : begin + 2 * size].decode(errors="replace")[offset % size :][:size]


class Disk:
    """Files on a system, and what a gateway answers about them."""

    def __init__(self, read: Callable[[bytes, int, int], str] = by_bytes, **content: bytes) -> None:
        self.read = read
        self.files = {f"/{name}": data for name, data in content.items()}
        self.asked: list[Ask] = []
        self.wrong: Callable[[Ask], HpcError | None] = lambda ask: None
        self.grows: Callable[[], None] = lambda: None

    def answer(self, ask: Ask) -> Any:
        self.asked.append(ask)
        if error := self.wrong(ask):
            raise error
        if ask.path not in self.files:
            raise api_error(404, f"dd: failed to open '{ask.path}': No such file or directory")
        data = self.files[ask.path]
        if ask.kind == "stat":
            return len(data)
        if ask.kind == "tail":
            self.grows()
            return self.files[ask.path][-ask.size :].decode(errors="replace")
        return self.read(data, ask.offset, ask.size)


def api_error(status: int, message: str = "no", **headers: str) -> HpcError:
    request = httpx.Request("GET", "http://gateway/")
    return error_for(
        "read", "s", httpx.Response(status, json={"message": message}, headers=headers, request=request)
    )


def unknown_route() -> HpcError:
    request = httpx.Request("GET", "http://gateway/")
    return error_for("read", "s", httpx.Response(404, json={"detail": "Not Found"}, request=request))


def logs_of(**more: Any) -> JobLogs:
    return JobLogs(
        **{"system": "s", "job_id": "12", "name": "job", "stdout": "/out", "stderr": "/err"} | more
    )


def job(state: str = "RUNNING", **elements: str) -> Job:
    return Job(
        job_id="12",
        state=JobState.read(state),
        user="me",
        elements=tuple(
            Element(index=int(index[1:]), state=JobState.read(of)) for index, of in elements.items()
        ),
    )


def saw(logs: JobLogs, state: str = "RUNNING", now: float = NOW, **elements: str) -> None:
    watch = JobWatch(system="s", job_id="12", since=NOW)
    watch._job = job(state, **elements)
    logs.saw(watch, now)


def step(logs: JobLogs, disk: Disk, now: float = NOW) -> list[str]:
    """All that is to be read now."""
    said: list[str] = []
    while ask := logs.next(now):
        try:
            answer = disk.answer(ask)
        except HpcError as error:
            said += logs.missed(ask, error, now)
        else:
            said += [line for lines in logs.took(ask, answer, now) for line in lines]
    return said


def end(logs: JobLogs, disk: Disk, of: Job | None = None) -> list[str]:
    said: list[str] = []
    client = SimpleNamespace(send=disk.answer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ask, "call", lambda self, system: self)
        finish(client, logs, of or job("COMPLETED"), said.append, sleep=lambda _: None)  # type: ignore[arg-type]
    return said


# --- one file, any content ---

pieces = st.one_of(
    st.text(max_size=12).map(str.encode),
    st.sampled_from(
        [b"\n", b"a\n", b"\xff", b"\xc3", b"\xe2\x82", b"\xac", b"\xf0\x9f", "é€😀\ufffd".encode(), b"x" * 50]
    ),
    st.binary(max_size=8),
)
schedules = st.lists(st.lists(pieces, max_size=8).map(b"".join), max_size=8)


def read_all(schedule: list[bytes], most: int, read: Callable[[bytes, int, int], str]) -> str:
    """What is logged of a file that grows as told, sent through JSON after each read; no line is split."""
    data, taken, of = b"", "", OutputFile(path="/f", most=most)
    original = module._lines
    raw: list[str] = []

    def keep(text: str) -> list[str]:
        raw.append(text)
        return original(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_GRAIN", 8)
        patch.setattr(module, "_BACK", 4)
        patch.setattr(module, "_SLICE", 3)
        patch.setattr(module, "_lines", keep)
        for place, more in enumerate([*schedule, None]):
            data += more or b""
            for _ in range(5 if more is not None else 10_000):
                if of.done:
                    break
                if of.wants_size:
                    of.sized(len(data))
                    continue
                offset, size = of.view()
                raw.clear()
                for lines, weight in of.take(
                    read(data, offset, size), size, final=more is None, allow=float("inf")
                ):
                    # Of a slice the text is the last that was split but for the one at the end.
                    taken += raw[-1] if raw else lines[0]
                    assert weight
                if place % 2 and not of.trims and not of.wants_size:
                    size_known = of.size
                    of = from_state(of)
                    of.sized(size_known) if size_known else None
            assert more is not None or of.done
    return taken


def from_state(of: OutputFile) -> OutputFile:
    at, skip, mark, lead, logged, seen = json.loads(json.dumps(of.to_json()))
    done, again = of.done, OutputFile(path=of.path, at=at, skip=skip, mark=mark, lead=lead, most=of.most)
    again.logged, again.seen, again.done, again.doubts = logged, seen, done, of.doubts
    return again


@settings(max_examples=120)
@given(schedules, st.integers(2, 12))
@example([b"\xe2\x82" * 40, b"\xac" * 9], 2)
@example([("é" * 7).encode() + b"\xff" + "€".encode() * 30], 3)
def test_any_bytes_are_logged_once(schedule, grains):
    assert read_all(schedule, grains * 8, by_bytes) == b"".join(schedule).decode(errors="replace")


texts = st.lists(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=30) | st.just("\n"), max_size=8)
    .map("".join)
    .map(str.encode),
    max_size=8,
)


@settings(max_examples=80)
@given(texts.map(lambda found: [part.replace("\ufffd".encode(), b"?") for part in found]), st.integers(2, 12))
@example([("é" * 100 + "\n").encode() * 3, "€".encode() * 50], 2)
def test_any_utf8_is_logged_once_by_a_gateway_that_cuts_by_characters(schedule, grains):
    assert read_all(schedule, grains * 8, by_characters) == b"".join(schedule).decode()


def test_a_file_that_is_no_utf8_goes_on_while_the_job_runs():
    disk, logs = Disk(out=b"Z\xfcrich\n" * 2000), logs_of(stderr="", most=4096)
    saw(logs)
    said = [line for _ in range(60) for line in step(logs, disk, max(NOW, logs.due))]
    assert "".join(said) == "Z\ufffdrich" * 2000
    disk.files["/out"] += b"Basel\n"
    assert step(logs, disk, logs.due) == ["Basel"]


# --- one job ---


def test_lines_appear_while_the_job_runs_and_the_rest_at_its_end():
    disk, logs = Disk(out=b"one\ntwo\nth", err=b"oh\n"), logs_of()
    saw(logs)
    assert step(logs, disk) == ["one", "two", "stderr: oh"]
    disk.files["/out"] += b"ree\nfour"
    assert step(logs, disk, NOW + 15) == ["three"]
    logs = JobLogs.from_json(json.loads(json.dumps(logs.to_json())))
    assert end(logs, disk) == ["four"]
    assert logs.tail() == ["oh"]


def test_nothing_is_read_of_a_job_that_waits():
    disk, logs = Disk(out=b"old\n"), logs_of()
    for state in ("PENDING", "UNKNOWN"):
        saw(logs, state)
        assert step(logs, disk) == []
    assert disk.asked == []
    assert logs.due == float("inf")


def test_a_job_that_ended_before_anything_was_read_costs_one_read_a_file():
    disk, logs = Disk(out=b"hello\nworld", err=b""), logs_of()
    assert end(logs, disk) == ["hello", "world"]
    assert [ask.path for ask in disk.asked] == ["/out", "/err"]
    assert logs.tail() == []


def test_a_file_is_read_once_an_interval_and_less_often_while_it_is_quiet():
    disk, logs = Disk(out=b"a\n"), logs_of(stderr="/out")
    saw(logs)
    at, reads = NOW, []
    while at < NOW + 1000:
        step(logs, disk, at)
        reads.append(at - NOW)
        if at == NOW + 225:
            disk.files["/out"] += b"b\n"
        at = logs.due
    assert reads[:8] == [0, 15, 45, 105, 225, 345, 360, 390]


def test_one_file_for_both_streams_is_read_once():
    disk = Disk(out=b"both\n")
    assert end(logs_of(stderr="/out"), disk) == ["both"]
    assert len(disk.asked) == 1


def test_files_that_are_not_there_are_no_error():
    disk, logs = Disk(), logs_of()
    saw(logs)
    assert step(logs, disk) == []
    assert end(logs, disk) == []


def test_output_that_a_file_system_shows_late_is_waited_for():
    disk = Disk(err=b"")
    first = [True]

    def wrong(ask: Ask) -> HpcError | None:
        if ask.path == "/out" and first:
            first.clear()
            disk.files["/out"] = b"late\n"
            return api_error(404, "No such file or directory")
        return None

    disk.wrong = wrong
    assert end(logs_of(), disk) == ["late"]


def test_a_read_that_fails_is_told_once_and_tried_again():
    disk, logs = Disk(out=b"a\n"), logs_of(stderr="")
    saw(logs)
    disk.wrong = lambda ask: UnreachableError("read", "gone.", sent=True)
    assert len(step(logs, disk)) == 1
    assert step(logs, disk, logs.due) == []
    disk.wrong = lambda ask: None
    assert step(logs, disk, logs.due) == ["a"]
    disk.wrong = lambda ask: UnreachableError("read", "gone.", sent=True)
    assert len(step(logs, disk, logs.due)) == 1


def test_a_gateway_that_asks_for_a_pause_gets_it():
    disk, logs = Disk(out=b"a\n"), logs_of(stderr="")
    saw(logs)
    disk.wrong = lambda ask: api_error(429, "slow", **{"Retry-After": "300"})
    step(logs, disk)
    assert logs.due >= NOW + 300


def test_at_the_end_a_file_that_cannot_be_read_is_told_and_left():
    disk = Disk(out=b"a\n", err=b"b\n")
    disk.wrong = lambda ask: api_error(500, "trouble") if ask.path == "/out" else None
    said = end(logs_of(), disk)
    assert "trouble" in said[0]
    assert said[1:] == ["stderr: b"]


@pytest.mark.parametrize("status", [400, 413])
def test_a_gateway_that_moves_less_is_asked_for_less(status):
    disk, logs = Disk(out=b"line\n" * 80_000), logs_of(stderr="")
    disk.wrong = lambda ask: api_error(status, "`size` value") if ask.size > 70_000 else None
    assert end(logs, disk) == ["line"] * 80_000
    assert max(ask.size for ask in disk.asked[-3:]) <= 70_000


def test_a_read_is_never_larger_than_a_mebibyte():
    disk = Disk(out=b"x" * 79 + b"\n")
    disk.files["/out"] *= 2**16
    assert len(end(logs_of(stderr=""), disk)) == 2**16
    assert max(ask.size for ask in disk.asked) == 2**20
    assert len(disk.asked) <= 7


@pytest.mark.parametrize("limit", [200_000, 5000])
def test_a_limit_cuts_out_the_middle_and_marks_it(limit):
    lines = [f"line {number}" for number in range(50_000)]
    disk, logs = Disk(out="".join(f"{line}\n" for line in lines).encode()), logs_of(stderr="", limit=limit)
    saw(logs)
    said = step(logs, disk)
    assert "is in /out" in said.pop()
    assert logs.next(NOW + 1000) is None
    said += end(logs, disk)
    at = next(place for place, line in enumerate(said) if line.startswith("…"))
    assert said[:at] == lines[:at]
    assert said[at + 1 :] == lines[-(len(said) - at - 1) :]
    left = sum(len(line) + 1 for line in lines) - sum(
        len(line) + 1 for line in said if not line.startswith("…")
    )
    assert said[at] == f"… {left} bytes of /out are left out here …"
    assert limit * 0.9 < sum(len(line) + 1 for line in said) < limit * 1.1


def test_short_rests_of_a_job_over_its_limit_are_logged_whole():
    disk, logs = Disk(out=b"a line\n" * 100, err=b"oh\n" * 10), logs_of(limit=1000)
    assert end(logs, disk)[-10:] == ["stderr: oh"] * 10


@pytest.mark.parametrize("new", [b"n\n", b"new line\nnew line\n"])
def test_a_file_that_is_written_anew_is_read_from_its_beginning(new):
    disk, logs = Disk(out=b"old line\n"), logs_of(stderr="")
    saw(logs)
    assert step(logs, disk) == ["old line"]
    disk.files["/out"] = new
    assert step(logs, disk, logs.due) == [], "a file system may be behind for a moment"
    said = step(logs, disk, logs.due) + step(logs, disk, NOW + 1000)
    assert "written anew" in said[0]
    assert said[1:] == new.decode().split()[:1] or said[1:] == ["new line"] * 2


def test_a_file_system_that_is_behind_for_a_moment_repeats_nothing():
    disk, logs = Disk(out=b"one\ntwo\n"), logs_of(stderr="")
    saw(logs)
    assert step(logs, disk) == ["one", "two"]
    disk.files["/out"] = b"one\n"
    assert step(logs, disk, logs.due) == []
    disk.files["/out"] = b"one\ntwo\nthree\n"
    assert step(logs, disk, logs.due) == ["three"]


def test_a_progress_bar_shows_its_last_state_and_windows_lines_are_lines():
    disk = Disk(out=b"1%\r50%\r100%\nnext\r\n\r\nlast")
    assert end(logs_of(stderr=""), disk) == ["100%", "next", "", "last"]


# --- arrays ---


def array(**more: Any) -> JobLogs:
    return logs_of(**{"array": "0-999", "stdout": "/o_%a", "stderr": "/e_%a"} | more)


def test_of_an_array_a_few_elements_are_followed_each_until_it_is_over():
    disk = Disk(**{f"o_{index}": f"{index}\n".encode() for index in range(1000)})
    logs, running = array(), {f"_{index}": "RUNNING" for index in range(1000)}
    saw(logs, **running)
    assert step(logs, disk) == ["[0] 0", "[1] 1", "[2] 2", "[3] 3"]
    assert len(disk.asked) == 8
    disk.files["/o_1"] += b"end"
    saw(logs, now=NOW + 20, **running | {"_1": "COMPLETED"})
    assert step(logs, disk, NOW + 20) == ["[1] end"]
    saw(logs, now=NOW + 40, **running | {"_1": "COMPLETED"})
    assert step(logs, disk, NOW + 40)[-1:] in (["[4] 4"], [])
    assert len(disk.asked) < 30


def test_at_the_end_failed_elements_come_first_and_the_others_are_counted():
    disk = Disk(**{f"o_{index}": f"{index}\n".encode() for index in range(1000)}, e_500=b"oh\n")
    logs = array()
    over = {f"_{index}": "FAILED" if index == 500 else "COMPLETED" for index in range(1000)}
    said = end(logs, disk, job("FAILED", **over))
    assert said[:3] == ["[500] 500", "[500] stderr: oh", "[0] 0"]
    assert said[-1] == "The output of 990 more elements of the array is left out here: /o_%a"
    assert len(disk.asked) <= 30
    assert logs.tail(500) == ["oh"]


# --- older gateways ---


def test_without_view_the_tail_is_read():
    disk, logs = Disk(out=b"one\ntw"), logs_of(stderr="")
    disk.wrong = lambda ask: unknown_route() if ask.kind == "view" else None
    saw(logs)
    assert step(logs, disk) == ["one"]
    disk.files["/out"] += "o\nünf".encode()
    logs = JobLogs.from_json(json.loads(json.dumps(logs.to_json())))
    assert logs.by_tail
    saw(logs)
    assert step(logs, disk, NOW + 100) == ["two"]
    assert end(logs, disk) == ["ünf"]
    assert {ask.kind for ask in disk.asked[1:]} == {"stat", "tail"}


def test_a_tail_of_a_file_that_grows_meanwhile_is_not_trusted():
    disk, logs = Disk(out=b"one\n"), logs_of(stderr="")
    disk.wrong = lambda ask: api_error(405) if ask.kind == "view" else None
    said = []
    saw(logs)

    def grow() -> None:
        if len(disk.files["/out"]) < 40:
            disk.files["/out"] += b"more\n"

    disk.grows = grow
    for _ in range(20):
        said += step(logs, disk, NOW if not said else logs.due)
        if logs.due < float("inf"):
            said += step(logs, disk, logs.due)
    said += end(logs, disk)
    assert "\n".join(said) + "\n" == disk.files["/out"].decode()


def test_without_view_the_middle_of_a_large_file_is_left_out():
    lines = [f"line {number}" for number in range(200_000)]
    disk, logs = Disk(out="".join(f"{line}\n" for line in lines).encode()), logs_of(stderr="")
    disk.wrong = lambda ask: api_error(405) if ask.kind == "view" else None
    said = end(logs, disk)
    assert said[0].endswith("of /out are left out here …")
    assert said[1:] == lines[-len(said) + 1 :]
    assert max(ask.size for ask in disk.asked) <= 2**20


# --- on an event loop ---


@pytest.mark.parametrize("turns", range(0, 40, 3))
def test_a_wait_that_ends_at_any_moment_leaves_a_true_state(turns):
    lines = [f"line {number}" for number in range(5000)]
    disk, logs = Disk(out="".join(f"{line}\n" for line in lines).encode(), err=b"x\n"), logs_of()
    said: list[str] = []
    saw(logs)

    async def send(ask: Any) -> Any:
        await asyncio.sleep(0)
        return disk.answer(ask)

    async def main() -> None:
        news = asyncio.Event()
        reading = asyncio.create_task(follow_logs(logs, send, said.append, news, clock=lambda: NOW))
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ask, "call", lambda self, system: self)
        asyncio.run(main())
    again = JobLogs.from_json(json.loads(json.dumps(logs.to_json())))
    said += end(again, disk)
    assert [line for line in said if not line.startswith("stderr")] == lines
    assert said.count("stderr: x") == 1


def test_a_trigger_that_begins_late_says_that_lines_may_come_twice():
    logs = logs_of(stderr="", begun=NOW - 60)
    disk, said = Disk(out=b"one\n"), []
    saw(logs)

    async def send(ask: Any) -> Any:
        return disk.answer(ask)

    async def main() -> None:
        reading = asyncio.create_task(
            follow_logs(logs, send, said.append, asyncio.Event(), clock=lambda: NOW)
        )
        await asyncio.sleep(0.05)
        reading.cancel()
        await asyncio.wait([reading])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ask, "call", lambda self, system: self)
        asyncio.run(main())
    assert "may come twice" in said[0]
    assert said[1:] == ["one"]


def test_the_state_is_small_enough_to_travel():
    disk = Disk(**{f"o_{index}": b"a\n" * 5000 for index in range(9)})
    logs = array(stderr="/very/long/path" * 10)
    saw(logs, **{f"_{index}": "RUNNING" for index in range(9)})
    step(logs, disk)
    assert len(json.dumps(logs.to_json())) < 2000
