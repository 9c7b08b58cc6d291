"""What a user asks for: refused by the name of the parameter at fault, or made into exactly one job."""

import subprocess
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from airflow_hpc_provider.client.errors import InvalidInputError
from airflow_hpc_provider.client.jobs import Element, Job, JobSpec
from airflow_hpc_provider.client.request import JobRequest, dependency, result_of
from airflow_hpc_provider.client.states import JobState

SCRIPT = "#!/bin/bash\nhostname\n"
PYTHON = "#!/usr/bin/env python3\nprint()\n"


def made(script=SCRIPT, *, name="job-1", base="/scratch", rest=False, account=None, **given):
    """The spec of a request."""
    if "script_path" in given:
        script = None
    request = JobRequest.checked(script=script, **given)
    return request.spec(name, base_directory=base, rest_mode=rest, account=account)


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "script"),
        ({"script": SCRIPT, "script_path": "/w/job.sh"}, "script"),
        ({"script": ""}, "script"),
        ({"script": "hostname\n"}, "script"),
        ({"script": "\n#!/bin/sh\n"}, "script"),
        ({"script": "#!/bin/sh\r\n"}, "script"),
        ({"script": "#!/bin/sh\0\n"}, "script"),
        ({"script": b"#!/bin/sh\n"}, "script"),
        ({"script_path": ""}, "script_path"),
        ({"script_path": "job.sh"}, "script_path"),
        ({"script_path": "~/job.sh"}, "script_path"),
        ({"script_path": "/w/../job.sh"}, "script_path"),
        ({"script_path": "/w/it's.sh"}, "script_path"),
        ({"script_path": '/w/".sh'}, "script_path"),
        ({"script_path": "/w/\0.sh"}, "script_path"),
        ({"script_path": "/w/my job.sh"}, "script_path"),
        ({"script_path": 7}, "script_path"),
        ({"script": SCRIPT, "sbatch_options": {"nodez": 2}}, 'sbatch_options["nodez"]'),
        ({"script": SCRIPT, "sbatch_options": {"N": 2}}, 'sbatch_options["N"]'),
        ({"script": SCRIPT, "sbatch_options": {"chdir": "/w"}}, 'sbatch_options["chdir"]'),
        ({"script": SCRIPT, "sbatch_options": {"time": 1.5}}, 'sbatch_options["time"]'),
        ({"script": SCRIPT, "sbatch_options": {"time": "soon"}}, 'sbatch_options["time"]'),
        ({"script": SCRIPT, "sbatch_options": {"time": True}}, 'sbatch_options["time"]'),
        ({"script": SCRIPT, "sbatch_options": {"mem": "much"}}, 'sbatch_options["mem"]'),
        ({"script": SCRIPT, "sbatch_options": {"mem": 1.5}}, 'sbatch_options["mem"]'),
        ({"script": SCRIPT, "sbatch_options": {"mem": 1, "mem_per_cpu": 1}}, "sbatch_options"),
        ({"script": SCRIPT, "sbatch_options": {"array": "4-2"}}, 'sbatch_options["array"]'),
        ({"script": SCRIPT, "array": "0-3", "sbatch_options": {"array": "0-3"}}, "array"),
        ({"script": SCRIPT, "array": "4-2"}, 'sbatch_options["array"]'),
        ({"script": SCRIPT, "array": []}, "array"),
        ({"script": SCRIPT, "array": {"a": 1}}, "array"),
        ({"script": SCRIPT, "array": b"0-3"}, "array"),
        ({"script": SCRIPT, "array": 3}, "array"),
        ({"script": SCRIPT, "array": ["a", object()]}, "array[1]"),
        ({"script": SCRIPT, "array": ["a", "b\0"]}, 'array[1]["HPC_INPUT"]'),
        ({"script": SCRIPT, "array": ["a"], "env": {"HPC_INPUT": "b"}}, 'env["HPC_INPUT"]'),
        ({"script": SCRIPT, "array_limit": 2}, "array_limit"),
        ({"script": SCRIPT, "array": "0-3", "array_limit": 0}, "array_limit"),
        ({"script": SCRIPT, "array": "0-3", "array_limit": True}, "array_limit"),
        ({"script": SCRIPT, "array": "0-3%2", "array_limit": 2}, "array_limit"),
        ({"script": SCRIPT, "account": "a", "sbatch_options": {"account": "b"}}, "account"),
        ({"script": SCRIPT, "partition": "a", "sbatch_options": {"partition": "b"}}, "partition"),
        ({"script": SCRIPT, "account": "it's"}, 'sbatch_options["account"]'),
        ({"script": SCRIPT, "working_directory": "w"}, "working_directory"),
        ({"script": SCRIPT, "working_directory": "/w/$HOME"}, "working_directory"),
        ({"script": "#!/bin/sh\n#SBATCH --chdir=w\n"}, "working_directory"),
        ({"script": SCRIPT, "stdout": "../out"}, "stdout"),
        ({"script": SCRIPT, "stdout": "it's"}, "stdout"),
        ({"script": SCRIPT, "stderr": "a\0b"}, "stderr"),
        ({"script": SCRIPT, "stderr": 7}, "stderr"),
        ({"script": "#!/bin/sh\n#SBATCH -o 'a;b'\n"}, "stdout"),
        ({"script": SCRIPT, "job_name": "my job"}, "job_name"),
        ({"script": SCRIPT, "job_name": 'a"b'}, "job_name"),
        ({"script": SCRIPT, "job_name": "x" * 129}, "job_name"),
        ({"script": SCRIPT, "job_name": 7}, "job_name"),
        ({"script": SCRIPT, "env": {"1A": "x"}}, 'env["1A"]'),
        ({"script": SCRIPT, "env": {"A": None}}, 'env["A"]'),
        ({"script": SCRIPT, "env": {"A": "\0"}}, 'env["A"]'),
        ({"script": SCRIPT, "env": {"UID": "0"}}, 'env["UID"]'),
        ({"script": PYTHON, "env": {"A": "1,2"}}, 'env["A"]'),
        ({"script_path": "/w/job.sh", "env": {"A": ""}}, 'env["A"]'),
        ({"script_path": "/w/job.sh", "env": {"A": "it's"}}, 'env["A"]'),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent_naming_the_parameter(given, field):
    with pytest.raises(InvalidInputError) as caught:
        JobRequest.checked(**given)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


def test_an_option_beside_a_script_on_the_system_is_refused_since_nothing_can_carry_it():
    with pytest.raises(InvalidInputError, match="put nodes, time into it") as caught:
        made(script_path="/w/job.sh", sbatch_options={"nodes": 2, "account": "staff", "time": 5})
    assert caught.value.field == "sbatch_options"


# --- the job that is made ---------------------------------------------------------------------------------


def test_a_bare_script_becomes_a_job_in_a_directory_of_its_own():
    assert made(account="default") == JobSpec(
        name="job-1",
        working_directory="/scratch/job-1",
        script=SCRIPT,
        account="default",
        stdout="/scratch/job-1/slurm-%j.out",
        stderr="/scratch/job-1/slurm-%j.err",
    )


def test_a_script_on_the_system_is_named_with_the_options_that_have_fields():
    spec = made(
        script_path="/w/job.sh",
        working_directory="/w/",
        partition="debug",
        sbatch_options={"account": "staff", "constraint": "gpu", "reservation": "course"},
        env={"A": "1"},
    )
    assert (spec.script, spec.script_path, spec.working_directory) == (None, "/w/job.sh", "/w")
    assert (spec.account, spec.partition, spec.constraints, spec.reservation) == (
        "staff",
        "debug",
        "gpu",
        "course",
    )
    assert spec.env == {"A": "1"}


def test_options_travel_in_the_script_and_those_with_fields_in_fields():
    spec = made(
        sbatch_options={"nodes": 2, "time": 90, "requeue": True, "account": "staff"}, partition="debug"
    )
    assert (spec.account, spec.partition) == ("staff", "debug")
    assert spec.script.splitlines()[:4] == [
        "#!/bin/bash",
        "#SBATCH --nodes=2",
        "#SBATCH --time=01:30:00",
        "#SBATCH --requeue",
    ]


def test_the_users_account_is_stronger_than_the_connections():
    spec = JobRequest.checked(script=SCRIPT, sbatch_options={"account": "mine"})
    assert spec.spec("n", base_directory="/s", account="default").account == "mine"


OWN = """#!/bin/bash
#SBATCH -J mine
#SBATCH --chdir=/w --account=staff
#SBATCH -p debug -C gpu
#SBATCH --reservation=course -o out-%j -e /logs/err
hostname
"""


@pytest.mark.parametrize("rest", [False, True], ids=["ssh", "REST"])
def test_what_the_script_says_of_itself_is_lifted_into_fields(rest):
    spec = made(OWN, rest=rest)
    assert JobRequest.checked(script=OWN).job_name == "mine"
    assert (spec.working_directory, spec.account, spec.partition) == ("/w", "staff", "debug")
    assert (spec.constraints, spec.reservation) == ("gpu", "course")
    assert (spec.stdout, spec.stderr) == ("/w/out-%j", "/logs/err")


def test_a_parameter_is_stronger_than_the_script():
    request = JobRequest.checked(
        script=OWN,
        job_name="given",
        working_directory="/x",
        account="a",
        partition="p",
        stdout="o",
        stderr="e",
    )
    spec = request.spec("n", base_directory="/s")
    assert request.job_name == "given"
    assert (spec.working_directory, spec.account, spec.partition) == ("/x", "a", "p")
    assert (spec.stdout, spec.stderr) == ("/x/o", "/x/e")


@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_template_means_not_given(empty):
    given = dict.fromkeys(
        ("job_name", "working_directory", "account", "partition", "stdout", "stderr"), empty
    )
    assert JobRequest.checked(script=SCRIPT, env=None, sbatch_options=None, **given) == JobRequest(
        script=SCRIPT
    )


def test_variables_travel_in_a_shell_script_where_nothing_cuts_them():
    spec = made(env={"A": "1,2", "B": "it's"})
    assert spec.env == {}
    assert "export A=1,2\n" in spec.script
    assert spec.script.index("export A") < spec.script.index("hostname")


def test_variables_of_other_scripts_travel_in_firecrests_field():
    spec = made(PYTHON, env={"A": "1"})
    assert (spec.env, spec.script) == ({"A": "1"}, PYTHON)


def test_a_script_of_comments_alone_is_sent_as_it_is():
    assert made("#!/bin/sh\n# nothing").script == "#!/bin/sh\n# nothing\n"


def test_a_job_in_rest_mode_gets_a_path_since_it_has_no_environment():
    assert made(rest=True).env == {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    assert made(PYTHON, rest=True, env={"A": "1"}).env == {"PATH": "/usr/local/bin:/usr/bin:/bin", "A": "1"}
    assert made(PYTHON, rest=True, env={"PATH": "/opt"}).env == {"PATH": "/opt"}
    assert made().env == {}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"sbatch_options": {"array": "0-9", "time": 5}}, "--array, --time"),
        ({"script": "#!/bin/sh\n#SBATCH --array=0-9 -t 5\n"}, "--array, --time"),
        ({"script": "#!/bin/sh\n#SBATCH -a 1\n", "sbatch_options": {"array": "0-9"}}, "--array"),
        ({"sbatch_options": {"nodes": 2}}, "--nodes"),
    ],
)
def test_rest_mode_refuses_by_name_what_it_would_drop(given, named):
    with pytest.raises(InvalidInputError, match=f"would ignore {named}; it takes only account, ") as caught:
        made(**given, rest=True)
    assert caught.value.field == "sbatch_options"


def test_rest_mode_takes_what_has_a_field():
    assert made(script_path="/w/job.sh", rest=True).script_path == "/w/job.sh"
    spec = made(rest=True, sbatch_options={"account": "staff", "constraint": "gpu"}, stdout="o", job_name="n")
    assert (spec.account, spec.constraints, spec.stdout) == ("staff", "gpu", "/scratch/job-1/o")


# --- arrays -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "array"),
    [
        ({"script": SCRIPT}, None),
        ({"script": SCRIPT, "sbatch_options": {"array": range(3)}}, "0-2"),
        ({"script": "#!/bin/sh\n#SBATCH -a 1,3%2\n"}, "1,3%2"),
        ({"script": "#!/bin/sh\n#SBATCH -a 1,3\n", "sbatch_options": {"array": [7]}}, "7"),
        ({"script_path": "/w/job.sh"}, None),
    ],
)
def test_the_array_is_that_of_the_options_or_else_of_the_script(given, array):
    assert JobRequest.checked(**given).array == array


def test_each_element_of_an_array_writes_files_of_its_own():
    spec = made(sbatch_options={"array": "0-2"}, working_directory="/w")
    assert (spec.stdout, spec.stderr) == ("/w/slurm-%A_%a.out", "/w/slurm-%A_%a.err")


# --- the result -------------------------------------------------------------------------------------------

JOB = Job(
    job_id="27",
    state=JobState.COMPLETED,
    exit_code=0,
    user="fireuser",
    start=datetime(2026, 11, 22, 5, tzinfo=UTC),
    end=datetime(2026, 11, 22, 6, tzinfo=UTC),
    elapsed=3600,
    nodes="nid001",
)
SPEC = JobSpec(name="n", working_directory="/w", stdout="/w/slurm-%j.out", stderr="/w/%x-%u.err")
SENT = "2026-11-22T04:59:00+00:00"


def test_the_result_is_plain_and_tells_where_the_output_is():
    assert result_of(JOB, spec=SPEC, system="daint", submitted_at=SENT, array=None) == {
        "job_id": "27",
        "name": "n",
        "system": "daint",
        "state": "COMPLETED",
        "reason": None,
        "exit_code": 0,
        "signal": None,
        "working_directory": "/w",
        "stdout": "/w/slurm-27.out",
        "stderr": "/w/n-fireuser.err",
        "submit_time": SENT,
        "start_time": "2026-11-22T05:00:00+00:00",
        "end_time": "2026-11-22T06:00:00+00:00",
        "elapsed": 3600,
        "nodes": "nid001",
    }


def test_a_job_that_never_began_has_a_result_too():
    job = Job(job_id="27", state=JobState.CANCELLED)
    spec = replace(SPEC, stdout=None, stderr=None)
    result = result_of(job, spec=spec, system="daint", submitted_at=SENT, array=None)
    assert (result["start_time"], result["end_time"], result["stdout"], result["stderr"]) == (
        None,
        None,
        "",
        "",
    )


def test_the_result_of_an_array_tells_of_each_element_even_of_one_that_was_never_seen():
    spec = replace(SPEC, stdout="/w/slurm-%A_%2a.out", stderr="/w/%j.err")
    job = replace(
        JOB,
        elements=(
            Element(index=0, state=JobState.COMPLETED, exit_code=0, elapsed=5),
            Element(index=2, state=JobState.FAILED, exit_code=1, signal=9, elapsed=4),
        ),
    )
    result = result_of(job, spec=spec, system="daint", submitted_at=SENT, array="0-1%1")
    assert result["elements"] == [
        {
            "index": 0,
            "job_id": "27",
            "state": "COMPLETED",
            "exit_code": 0,
            "signal": None,
            "elapsed": 5,
            "stdout": "/w/slurm-27_00.out",
            "stderr": "/w/27.err",
        },
        {
            "index": 1,
            "job_id": "27",
            "state": "UNKNOWN",
            "exit_code": None,
            "signal": None,
            "elapsed": None,
            "stdout": "/w/slurm-27_01.out",
            "stderr": "/w/27.err",
        },
        {
            "index": 2,
            "job_id": "27",
            "state": "FAILED",
            "exit_code": 1,
            "signal": 9,
            "elapsed": 4,
            "stdout": "/w/slurm-27_02.out",
            "stderr": "/w/27.err",
        },
    ]


# --- dependencies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "value"),
    [
        ({}, None),
        ({"after_ok": None, "after_any": []}, None),
        ({"after_ok": "12"}, "afterok:12"),
        ({"after_ok": [{"job_id": "12", "system": "Daint"}, 13, "12"]}, "afterok:12:13"),
        (
            {"after_ok": 1, "after_not_ok": [2], "after_any": (3,), "after": 4},
            "afterok:1,afternotok:2,afterany:3,after:4",
        ),
    ],
)
def test_jobs_to_wait_for_become_one_dependency(after, value):
    assert dependency(after, system="daint") == value


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({"after_ok": [None]}, "there is no job id"),
        ({"after_any": ["x"]}, "no job id"),
        ({"after_ok": [{"job_id": "5", "system": "eiger"}]}, "on system eiger; a job on daint cannot wait"),
    ],
)
def test_what_is_no_job_here_cannot_be_waited_for(after, words):
    with pytest.raises(InvalidInputError, match=words) as caught:
        dependency(after, system="daint")
    assert caught.value.field in after


# --- arrays -----------------------------------------------------------------------------------------------


def test_a_list_of_inputs_is_an_array_whose_elements_find_each_its_own(tmp_path):
    inputs = ["plain", "it's\n$HOME `id`", 3, 1.5, {"lr": 0.1, "name": "é"}, [1, None], True, ""]
    request = JobRequest.checked(
        script='#!/bin/sh\nprintf %s "$HPC_INPUT"\n', array=inputs, array_limit=2, env={"A": "1"}
    )
    assert request.array == "0-7%2"
    script = tmp_path / "job.sh"
    script.write_text(request.spec("job", base_directory="/w").script)
    seen = [
        subprocess.run(
            ["/bin/sh", script],
            env={"SLURM_ARRAY_TASK_ID": str(index)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for index in range(len(inputs))
    ]
    assert seen == [*map(str, inputs[:4]), '{"lr": 0.1, "name": "é"}', "[1, null]", "true", ""]


def test_inputs_need_a_shell_to_find_them():
    with pytest.raises(InvalidInputError, match="array: cannot be set: the script's interpreter"):
        made(PYTHON, array=["a", "b"])


@pytest.mark.parametrize(
    ("given", "array"),
    [
        ({"array": "0-99"}, "0-99"),
        ({"array": range(4), "array_limit": 2}, "0-3%2"),
        ({"array": "1,3", "array_limit": 1}, "1,3%1"),
        ({"script": "#!/bin/sh\n#SBATCH -a 0-5\n", "array_limit": 2}, "0-5%2"),
        ({"script": "#!/bin/sh\n#SBATCH -a 0-5\n"}, "0-5"),
        ({}, None),
    ],
)
def test_an_array_is_known_by_its_indices_and_its_limit(given, array):
    assert JobRequest.checked(**{"script": SCRIPT} | given).array == array


def test_elements_that_completed_in_a_former_job_are_told_of_with_its_id():
    spec = replace(SPEC, stdout="/w/%x-%A_%a.out", stderr="/w/%j.err")
    done = Element(index=0, state=JobState.COMPLETED, exit_code=0, elapsed=5)
    former = replace(
        JOB, job_id="20", name="former", elements=(done, replace(done, index=1, state=JobState.FAILED))
    )
    job = replace(JOB, elements=(replace(done, index=1, elapsed=7),))
    result = result_of(
        job, spec=spec, system="daint", submitted_at=SENT, array="1", earlier=[(former, [0]), (former, [2])]
    )
    told = [(e["index"], e["job_id"], e["state"], e["elapsed"], e["stdout"]) for e in result["elements"]]
    assert told == [
        (0, "20", "COMPLETED", 5, "/w/former-20_0.out"),
        (1, "27", "COMPLETED", 7, f"/w/{SPEC.name}-27_1.out"),
        (2, "20", "UNKNOWN", None, "/w/former-20_2.out"),
    ]
