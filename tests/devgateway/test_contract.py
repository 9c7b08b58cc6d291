"""The gateway's answers beside recorded ones of a real FirecREST, and beside its OpenAPI document."""

import json
from pathlib import Path

import pytest

CONTRACT = Path(__file__).parents[2].parent / "shared/contract"
pytestmark = pytest.mark.skipif(
    not (CONTRACT / "openapi.json").is_file(), reason=f"no recorded contract in {CONTRACT}"
)

# Answered by the machinery around FirecREST, or by its health probes and failures, which are tests of faults.
STATUS = ["systems", "nodes", "partitions", "reservations_none", "userinfo", "liveness", "liveness_noslash"]
AUTH = {"missing": "", "garbage": "Bearer garbage", "wrong_scheme": "Basic abc"}
SUBMITS = [
    "201",
    "array_201",
    "full_201",
    "bad_account",
    "bad_partition_in_script",
    "bad_workdir",
    "no_script",
    "no_shebang",
    "script_path_201",
    "script_path_missing",
    "invalid_body",
]
FILES = [
    "upload_204",
    "stat_200",
    "stat_dir",
    "ls_200",
    "ls_recursive",
    "ls_file",
    "ls_missing",
    "ls_relative",
    "ls_outside",
    "ls_dotdot",
    "ls_no_path",
    "head_200",
    "tail_200",
    "tail_bytes",
    "tail_missing",
    "view_200",
    "view_too_large",
    "checksum_200",
    "checksum_dir",
    "checksum_missing",
    "checksum_md5_ignored",
    "file_200",
    "chmod_200",
    "mkdir_201",
    "mkdir_exists",
    "mkdir_no_parent",
    "mkdir_parent_exists_ok",
    "stat_missing",
    "symlink_201",
    "download_200",
    "download_missing",
    "download_dir",
    "download_4MB",
    "download_3932157_bytes",
    "download_3932158_bytes",
    "upload_overwrite",
    "upload_missing_dir",
    "upload_too_large",
    "upload_5MB",
    "upload_empty",
    "compress_204",
    "compress_missing",
    "extract_204",
    "extract_missing_target",
    "rm_204",
    "rm_missing",
    "rm_dir",
]
TRANSFERS = [
    "upload_201",
    "upload_zero_size",
    "upload_to_directory_201",
    "upload_no_directives",
    "upload_wrong_method",
    "download_201",
    "download_missing",
    "cp_201",
    "mv_201",
    "compress_201",
    "cp_missing_201",
    "rm",
]
UPLOADS = {"upload_empty": 0, "upload_too_large": 6 * 2**20, "upload_5MB": 5 * 2**20}
LIMITS = {"download_3932157_bytes": 3932157, "download_3932158_bytes": 3932158}


def recorded(name):
    return json.loads((CONTRACT / "responses" / f"{name}.json").read_text())


def here(value, api):
    """A recorded value with this gateway's names and paths."""
    text = json.dumps(value)
    gateway = api.gateway
    text = text.replace("/home/fireuser", str(gateway.home)).replace("/scratch/", f"{gateway.scratch}/")
    return json.loads(text.replace("cluster-slurm-ssh", api.system).replace("fireuser", gateway.user))


def replay(api, name, **options):
    record = recorded(name)
    request = here(record["request"], api)
    if request.get("files"):
        options["files"] = {"file": ("hello.txt", b"x" * UPLOADS.get(name.removeprefix("fs_"), 5))}
    if request["method"] in ("POST", "PUT") and "json" in request:
        options["json"] = request["json"]
    answer = api.http.request(request["method"], request["path"], params=request.get("params"), **options)
    return record, answer


def kind(value):
    """JSON's types; integers are numbers."""
    return "number" if isinstance(value, float) and not isinstance(value, bool) else type(value).__name__


def shape(value):
    """Keys and types, however many items there are."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        shapes = {json.dumps(shape(item), sort_keys=True) for item in value}
        return [json.loads(one) for one in sorted(shapes)]
    return {"float": "int", "number": "int"}.get(kind(value), kind(value))


def assert_alike(record, answer, api):
    assert answer.status_code == record["status"], answer.text
    body = answer.json() if answer.content and answer.headers["content-type"] == "application/json" else ""
    expected = here(record["body"], api)
    if isinstance(expected, str):
        # The recordings of downloads hold their length only.
        assert isinstance(body, str)
        return
    assert shape(body) == shape(expected)
    if answer.status_code >= 400:
        wanted = {key: expected[key] for key in ("errorType", "causedBy", "data", "user")}
        assert {key: body[key] for key in wanted} == wanted
        if expected["errorType"] != "validation":
            assert body["message"] == expected["message"]


@pytest.fixture
def fs(gateway):
    """The folder that the recordings of the file calls work in."""
    folder = gateway.home / "fs"
    (folder / "a/b").mkdir(parents=True, exist_ok=True)
    (folder / "a/hello.txt").write_text("line1\nline2\nline3\nl4\n")
    (folder / "a/empty.bin").touch()
    for megabytes in (4, 6):
        with (folder / f"{megabytes}MB.bin").open("wb") as file:
            file.truncate(megabytes * 2**20)
    (folder / "20MB.bin").write_bytes(b"x" * 1000)
    return folder


@pytest.fixture
def archive(api, fs):
    (fs / "ex").mkdir(exist_ok=True)
    assert api.post("filesystem/ops/compress", path=str(fs / "a"), targetPath=str(fs / "a.tar.gz")).is_success
    (fs / "link").unlink(missing_ok=True)


@pytest.mark.parametrize("name", STATUS)
def test_status_is_as_recorded(api, name):
    record, answer = replay(api, f"status_{name}")
    if name == "systems":
        record["body"]["systems"] = record["body"]["systems"][:1]
    if name.startswith("liveness"):
        record["body"] = record["body"] and {**record["body"], "healthcheckRuns": {api.system: "2026"}}
    assert_alike(record, answer, api)
    assert answer.headers["f7t-appversion"]


@pytest.mark.parametrize("name", AUTH)
def test_refused_tokens_are_as_recorded(api, name):
    record, answer = replay(api, f"auth_{name}", headers={"authorization": AUTH[name]})
    assert answer.status_code == record["status"]
    assert answer.json() == record["body"]
    assert answer.headers.get("www-authenticate") == record["headers"].get("www-authenticate")


@pytest.mark.parametrize(("name", "lifetime"), [("token_expired", -1), ("token_expires_too_soon", 20)])
def test_old_tokens_are_refused_as_recorded(gateway, api, name, lifetime):
    headers = {"authorization": f"Bearer {gateway.access_token(lifetime)}"}
    record, answer = replay(api, f"auth_{name}", headers=headers)
    assert (answer.status_code, answer.json()) == (record["status"], record["body"])


@pytest.mark.parametrize("name", SUBMITS)
def test_submissions_are_answered_as_recorded(gateway, api, name):
    (gateway.home / "remote.sh").write_text("#!/bin/sh\nexit 0\n")
    record, answer = replay(api, f"submit_{name}")
    assert_alike(record, answer, api)


def test_too_many_cpus_are_refused_as_newer_slurm_does(api):
    _, answer = replay(api, "submit_too_many_cpus")
    assert_alike(recorded("s24_submit_too_many_cpus"), answer, api)


@pytest.mark.parametrize("name", FILES)
def test_file_calls_are_answered_as_recorded(api, fs, archive, name):
    if name in LIMITS:
        (fs / "lim.bin").write_bytes(b"x" * LIMITS[name])
    if name == "mkdir_201":
        (fs / "a/b/c").mkdir(exist_ok=True)
    record, answer = replay(api, f"fs_{name}")
    assert_alike(record, answer, api)


@pytest.mark.parametrize("name", TRANSFERS)
def test_transfers_are_answered_as_recorded(api, fs, name):
    (fs / "moved.bin").touch()
    record, answer = replay(api, f"transfer_{name}")
    assert_alike(record, answer, api)
    if answer.status_code < 300:
        api.delete(f"compute/jobs/{answer.json()['transferJob']['jobId']}")


@pytest.mark.parametrize(
    "name",
    [
        "unknown_endpoint",
        "unknown_system_jobs",
        "unknown_system_ls",
        "unknown_system_nodes",
        "unknown_system_submit",
        "jobs_list_name_none",
        "jobs_list_bad_window",
        "job_unknown_id",
        "job_id_not_a_number",
        "job_id_with_underscore",
        "metadata_unknown_id",
        "cancel_unknown_id",
    ],
)
def test_refusals_are_as_recorded(api, name):
    assert_alike(*replay(api, name), api)


def job_recording(api, name, job_id):
    record = recorded(name)
    answer = api.get(f"compute/jobs/{job_id}")
    assert_alike(record, answer, api)
    assert states(answer.json()) == states(here(record["body"], api))


def states(body):
    """What identifies a record beside times and names: its state and how it ended."""
    return [
        (
            job["status"]["state"].split(" by ")[0],
            job["status"]["exitCode"],
            job["status"]["interruptSignal"],
            *tuple((task["status"]["state"], task["status"]["interruptSignal"]) for task in job["tasks"]),
        )
        for job in body["jobs"]
    ]


def test_a_jobs_records_are_as_recorded(api):
    script = recorded("submit_201")["request"]["json"]["job"]["script"].replace("now+6", "now+1")
    job_id = api.submit(script.replace("sleep 5", "sleep 0.5"))
    job_recording(api, "job_just_submitted", job_id)
    api.wait_for(job_id, "RUNNING")
    job_recording(api, "job_running", job_id)
    assert_alike(recorded("job_metadata_running"), api.get(f"compute/jobs/{job_id}/metadata"), api)
    api.wait(job_id)
    job_recording(api, "job_completed", job_id)
    assert api.jobs(job_id)[0]["status"]["stateReason"] == "BeginTime"


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("job_failed_after_minjobage", "exit 3"),
        ("s24_job_failed_signal", "kill -SEGV $$"),
        ("s24_job_with_steps_failed", "srun hostname; srun sleep 0.1; srun false"),
    ],
)
def test_failed_jobs_are_as_recorded(api, name, script):
    job_id = api.submit(f"#!/bin/bash\n{script}\n")
    api.wait(job_id)
    job_recording(api, name, job_id)


def test_a_timeout_is_as_recorded(api):
    job_id = api.submit("#!/bin/bash\n#SBATCH --time=0:01\nsleep 30\n")
    api.wait(job_id)
    job_recording(api, "job_timeout", job_id)


def test_cancelled_jobs_are_as_recorded(api):
    running, pending = api.submit("#!/bin/bash\nsleep 30\n"), api.submit("#!/bin/sh\n#SBATCH -b now+60\nid\n")
    api.wait_for(running, "RUNNING")
    for job_id, name in ((running, "job_cancelled"), (pending, "s24_job_cancelled_while_pending")):
        assert_alike(recorded("cancel_running_204"), api.delete(f"compute/jobs/{job_id}"), api)
        job_recording(api, name, job_id)
        again = api.delete(f"compute/jobs/{job_id}")
        message = recorded("cancel_already_cancelled")["body"]["message"].replace("job 9", f"job {job_id}")
        assert (again.status_code, again.json()["message"]) == (500, message.replace("id 9", f"id {job_id}"))


def test_waiting_jobs_are_as_recorded(api):
    held = api.submit("#!/bin/sh\n#SBATCH --hold\nid\n")
    job_recording(api, "job_pending_held", held)
    failed = api.submit("#!/bin/sh\nexit 1\n")
    never = api.submit(f"#!/bin/sh\n#SBATCH --dependency=afterok:{failed}\nid\n")
    api.wait(failed)
    api.wait(never, lambda jobs: jobs[0]["status"]["stateReason"] == "DependencyNeverSatisfied")
    job_recording(api, "job_pending_dependency_never_satisfied", never)
    for job_id in (held, never):
        api.delete(f"compute/jobs/{job_id}")


def test_an_arrays_records_are_as_recorded(api):
    script = recorded("submit_array_201")["request"]["json"]["job"]["script"].replace("0-3", "0-5")
    job_id = api.submit(script.replace("sleep 4", "sleep 0.4"))
    running = api.wait(job_id, lambda jobs: len(jobs) > 5)
    assert_alike(recorded("job_array_t1s"), api.get(f"compute/jobs/{job_id}"), api)
    expected = [f"{job_id}_0", f"{job_id}_1", f"{job_id}_[2-5%2]", job_id]
    assert [job["jobId"] for job in running][:4] == expected
    raw_id = running[-1]["jobId"]
    assert_alike(recorded("job_array_task_by_raw_id"), api.get(f"compute/jobs/{raw_id}"), api)
    done = api.wait(job_id)
    assert [job["jobId"] for job in done] == [f"{job_id}_{index}" for index in range(6)]
    assert [job["status"]["exitCode"] for job in done] == [0, 0, 1, 0, 0, 0]
    assert_alike(recorded("job_array_done"), api.get(f"compute/jobs/{job_id}"), api)
    metadata = api.get(f"compute/jobs/{job_id}/metadata").json()["jobs"][0]
    assert metadata["standardOutput"].endswith(f"slurm-{job_id}_5.out")


def test_a_cancelled_array_is_as_recorded(api):
    job_id = api.submit("#!/bin/sh\n#SBATCH --array=0-999%1\nsleep 30\n")
    api.wait(job_id, lambda jobs: jobs[0]["status"]["state"] == "RUNNING")
    api.delete(f"compute/jobs/{job_id}")
    job_recording(api, "s24_job_array_cancelled", job_id)
    assert [job["jobId"] for job in api.jobs(job_id)] == [f"{job_id}_0", f"{job_id}_[1-999%1]"]


def test_incomplete_accounting_is_as_recorded(api, gateway):
    gateway.faults.accounting_lag = 60
    job_id = api.submit("#!/bin/sh\nexit 3\n")
    api.wait(job_id)
    job_recording(api, "job_failed", job_id)
    record, job = recorded("job_failed")["body"]["jobs"][0], api.jobs(job_id)[0]
    gateway.faults.accounting_lag = 0
    for key in ("name", "group", "partition", "workingDirectory", "priority"):
        assert job[key] == record[key]
    assert api.jobs(job_id)[0]["name"] == "sbatch"


# --- the OpenAPI document ---


@pytest.fixture(scope="module")
def openapi():
    return json.loads((CONTRACT / "openapi.json").read_text())


@pytest.fixture(scope="module")
def validate(openapi):
    from jsonschema import Draft202012Validator
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT202012

    registry = Registry().with_resource("urn:openapi", Resource(openapi, DRAFT202012))

    def check(schema, body):
        located = json.loads(json.dumps(schema).replace('"#/', '"urn:openapi#/'))
        Draft202012Validator(located, registry=registry).validate(body)

    return check


def document_entry(openapi, method, path, system):
    """The operation of the document that serves a request."""
    wanted = path.replace(f"/{system}/", "/{system_name}/").split("/")
    for template, operations in openapi["paths"].items():
        parts = template.split("/")
        alike = len(parts) == len(wanted) and all(
            a in (b, "{job_id}") for a, b in zip(parts, wanted, strict=True)
        )
        if alike and method.lower() in operations:
            return operations[method.lower()]
    raise AssertionError(f"{method} {path} is not in the document")


def tour(api, fs):
    """Every call of the document once, and a refusal of each group."""
    hello, home = str(fs / "a/hello.txt"), str(api.gateway.home)
    job_id = api.submit("#!/bin/sh\nsleep 5\n")
    api.wait_for(job_id, "RUNNING")
    s3 = {"transferMethod": "s3"}
    yield api.http.get("/status/systems")
    yield api.http.get("/status/liveness/")
    for name in ("nodes", "reservations", "partitions", "userinfo"):
        yield api.get(f"status/{name}")
    yield api.try_submit("#!/bin/sh\nexit 0\n")
    yield api.get("compute/jobs", name="x", account="staff", allusers=True, time_window="1h")
    yield api.get(f"compute/jobs/{job_id}")
    yield api.get(f"compute/jobs/{job_id}/metadata")
    yield api.put(f"compute/jobs/{job_id}/attach", command="true")
    yield api.delete(f"compute/jobs/{job_id}")
    for name in ("ls", "head", "view", "tail", "checksum", "file", "stat"):
        yield api.get(f"filesystem/ops/{name}", path=hello)
    yield api.post("filesystem/ops/mkdir", path=str(fs / "new"), parent=True)
    yield api.put("filesystem/ops/chmod", path=hello, mode="644")
    yield api.put("filesystem/ops/chown", path=hello, owner=api.gateway.user)
    yield api.post("filesystem/ops/symlink", path=hello, linkPath=str(fs / "tour-link"))
    yield api.post("filesystem/ops/compress", path=str(fs / "a"), targetPath=str(fs / "tour.tar.gz"))
    yield api.post("filesystem/ops/extract", path=str(fs / "tour.tar.gz"), targetPath=str(fs / "new"))
    yield api.delete("filesystem/ops/rm", path=str(fs / "tour-link"))
    yield api.post(
        "filesystem/transfer/mv", path=str(fs / "tour.tar.gz"), targetPath=str(fs / "moved.tar.gz")
    )
    yield api.post("filesystem/transfer/cp", path=hello, targetPath=str(fs / "copy"))
    yield api.post("filesystem/transfer/compress", path=hello, targetPath=str(fs / "c.tar.gz"))
    yield api.post("filesystem/transfer/extract", path=str(fs / "c.tar.gz"), targetPath=str(fs))
    yield api.delete("filesystem/transfer/rm", path=str(fs / "nope"))
    yield api.post("filesystem/transfer/download", path=hello, transferDirectives=s3)
    directives = {**s3, "fileSize": 10}
    yield api.post("filesystem/transfer/upload", path=f"{home}/up", transferDirectives=directives)
    yield api.get("compute/jobs/99999")
    yield api.get("filesystem/ops/ls", path="/etc")
    yield api.try_submit("no shebang")


def test_a_tour_over_all_calls_agrees_with_the_document(api, fs, openapi, validate):
    seen = set()
    for answer in tour(api, fs):
        request = answer.request
        operation = document_entry(openapi, request.method, request.url.path, api.system)
        seen.add(operation["operationId"])
        code = str(answer.status_code)
        responses = operation["responses"]
        response = responses.get(code) or responses[f"{code[0]}XX"]
        schema = response.get("content", {}).get("application/json", {}).get("schema")
        if schema is None:
            assert answer.content == b""
        else:
            validate(schema, answer.json())
    every = {o["operationId"] for operations in openapi["paths"].values() for o in operations.values()}
    # The bytes of a small upload and download have no schema.
    assert {name.split("_filesystem")[0] for name in every - seen} <= {"get_download", "post_upload"}
