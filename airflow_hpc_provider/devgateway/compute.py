"""`/compute`: submit, list, look at, cancel and attach to jobs."""

import re
import time
from collections.abc import Iterable

from starlette.responses import JSONResponse, Response

from .directives import Submission
from .errors import GatewayError
from .fields import Fields
from .records import Record
from .systems import Call

__all__ = ["HANDLERS"]

_WINDOWS = {"1h": 3600, "8h": 8 * 3600, "24h": 24 * 3600, "3d": 3 * 86400, "7d": 7 * 86400}
_JOB_ID = re.compile(r"[a-zA-Z0-9]+")
_LONGEST_NAME = 235


def submit(call: Call) -> Response:
    job = Fields(call.body).child("job")
    folder = job.text("workingDirectory")
    call.system.require("scheduler", "ssh")
    script, path = job.maybe_text("script"), job.maybe_text("scriptPath")
    if script is None and path is None:
        # sbatch waits for a script on its standard input until the gateway loses patience.
        raise GatewayError(408, "Command execution timeout limit exceeded.")
    submission = Submission(
        working_directory=folder,
        script=_remote_script(path) if script is None and path is not None else script or "",
        script_path=path,
        name=job.maybe_text("name") or "",
        account=job.maybe_text("account") or "",
        partition=job.maybe_text("partition") or "",
        reservation=job.maybe_text("reservation") or "",
        constraint=job.maybe_text("constraints") or "",
        standard_input=job.maybe_text("standardInput") or "",
        standard_output=job.maybe_text("standardOutput") or "",
        standard_error=job.maybe_text("standardError") or "",
        env=_environment(job, rest=call.system.rest),
    )
    return JSONResponse({"jobId": call.system.scheduler.submit(submission)}, status_code=201)


def _remote_script(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:  # noqa: PTH123 - not a Path yet
            return file.read()
    except OSError:
        text = f"sbatch: error: Unable to open file {path}\n"
        raise GatewayError(500, f"Unexpected Slurm command response. exit_status:1 std_err:{text}") from None


def _environment(job: Fields, *, rest: bool) -> dict[str, str]:
    given = job.get("env")
    if given is None:
        given = {"F7T_version": "v2.0.0"}
    if isinstance(given, list):
        given = dict(str(item).partition("=")[::2] for item in given)
    if not isinstance(given, dict):
        raise job.refuse("env", "Input should be a valid dictionary", "dict_type", given)
    if rest:
        return {str(key): str(value) for key, value in given.items()}
    # The ssh mode makes one --export=ALL,A=1,B=2 of them: a comma in a value ends it there.
    pieces = ",".join(f"{key}={value}" for key, value in given.items()).split(",")
    return dict(piece.partition("=")[::2] for piece in pieces if "=" in piece)


def jobs(call: Call) -> Response:
    query = Fields(call.query, "query")
    window = _WINDOWS[query.choice("time_window", _WINDOWS, "24h")]
    account, name = query.maybe_text("account"), query.maybe_text("name")
    if name is not None and len(name) > _LONGEST_NAME:
        text = f"String should have at most {_LONGEST_NAME} characters"
        raise query.refuse("name", text, "string_too_long", name)
    query.flag("allusers")
    call.system.require("scheduler", "ssh")
    names = name.split(",") if name else None
    since = time.time() - window
    found = [
        record
        for record in _visible(call, call.system.scheduler.records())
        if (not account or record.account == account)
        and (names is None or record.name in names)
        and not (record.over and record.end is not None and record.end < since)
    ]
    return _answer(call, found)


def job(call: Call) -> Response:
    job_id = _job_id(call)
    found = list(_visible(call, call.system.scheduler.records(job_id)))
    if not found:
        raise GatewayError(404, "Job not found.")
    return _answer(call, found)


def cancel(call: Call) -> Response:
    job_id = _job_id(call)
    if call.system.rest and _over(call, job_id):
        return Response(status_code=204)
    call.system.scheduler.cancel(job_id)
    return Response(status_code=204, media_type="application/json")


def _over(call: Call, job_id: str) -> bool:
    found = call.system.scheduler.records(job_id)
    return bool(found) and all(record.over for record in found)


def metadata(call: Call) -> Response:
    job_id = _job_id(call)
    if call.system.rest:
        text = "Scheduler can't handle this request when configured to use rest connection mode"
        raise GatewayError(501, text)
    found = [] if job_id in call.world.faults.vanished else call.system.scheduler.metadata(job_id)
    if not found:
        raise GatewayError(404, "Job not found.")
    return JSONResponse({"jobs": found})


def attach(call: Call) -> Response:
    job_id = _job_id(call)
    command = Fields(call.body).text("command")
    if not call.system.rest:
        call.system.scheduler.attach(job_id, command)
    return Response(status_code=204, media_type="application/json")


def _job_id(call: Call) -> str:
    job_id = call.path_params["job_id"]
    if not _JOB_ID.fullmatch(job_id):
        text = "String should match pattern '^[a-zA-Z0-9]+$'"
        raise Fields({}, "path").refuse("job_id", text, "string_pattern_mismatch", job_id)
    call.system.require("scheduler", "ssh")
    return job_id


def _visible(call: Call, records: Iterable[Record]) -> Iterable[Record]:
    """What accounting shows of the truth at this moment, faults included."""
    faults, now = call.world.faults, time.time()
    for record in records:
        if record.base_id in faults.vanished or record.raw_id in faults.vanished:
            continue
        if now - record.submitted < faults.visibility_lag:
            continue
        late = record.over and record.end is not None and now - record.end < faults.accounting_lag
        yield record.incomplete() if late else record


def _answer(call: Call, records: list[Record]) -> Response:
    return JSONResponse({"jobs": [record.body(rest=call.system.rest) for record in records]})


HANDLERS = {
    "submit": submit,
    "jobs": jobs,
    "job": job,
    "cancel": cancel,
    "metadata": metadata,
    "attach": attach,
}
