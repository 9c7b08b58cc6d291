"""Submitting and cancelling jobs, with the wait in a worker or a trigger, against the embedded gateway."""

import asyncio
import copy
import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowSkipException, AirflowTaskTimeout, TaskDeferred
from airflow.sdk.execution_time.timeout import timeout
from airflow_home import StateStore, context_of

from airflow_hpc_provider.client.errors import (
    HpcError,
    InvalidInputError,
    JobFailedError,
    JobLostError,
    NotFoundError,
    RejectedError,
    WatchError,
)
from airflow_hpc_provider.operators import jobs
from airflow_hpc_provider.operators.jobs import HpcCancelJobOperator, HpcSubmitJobOperator
from airflow_hpc_provider.submission import STATE_KEY

HELLO = "#!/bin/bash\necho hello\n"
LONG = "#!/bin/bash\nsleep 60\n"
MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["in the worker", "deferred"])


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """Defer at once and let the trigger speak at once: the pauses protect Airflow, not the operator."""
    monkeypatch.setattr(jobs, "_SETTLES_AFTER", 0.0)
    monkeypatch.setattr(jobs, "_QUIET", 0.0)


def submit(script: str | None = HELLO, **options: Any) -> HpcSubmitJobOperator:
    options.setdefault("task_id", "task")
    options.setdefault("poll_interval", 0.1)
    options.setdefault("deferrable", False)
    if options["deferrable"] and script and "#SBATCH" not in script:
        # A job that is over at once is not deferred.
        script = script.replace("\n", "\nsleep 0.3\n", 1)
    return HpcSubmitJobOperator(script=script, **options)


def deferral_of(operator, context):
    with pytest.raises(TaskDeferred) as deferral:
        operator.execute(context)
    return deferral.value


async def event_of(trigger):
    return await anext(trigger.run())


def execute(operator, context):
    """Execute a task as Airflow would, with the trigger's arguments sent through its database."""
    if not operator.deferrable:
        return operator.execute(context)
    deferral = deferral_of(operator, context)
    arguments = json.loads(json.dumps(deferral.trigger.serialize()[1]))
    event = asyncio.run(event_of(type(deferral.trigger)(**arguments)))
    # A task that is resumed is another object in another process.
    payload = json.loads(json.dumps(event.payload))
    return getattr(operator, deferral.method_name)(context, event=payload)


def to_the_end(operator, context):
    """Execute a task as Airflow would, however often it defers."""
    try:
        return operator.execute(context)
    except TaskDeferred as first:
        deferral = first
    while True:
        arguments = json.loads(json.dumps(deferral.trigger.serialize()[1]))
        event = asyncio.run(event_of(type(deferral.trigger)(**arguments)))
        try:
            payload = json.loads(json.dumps(event.payload))
            return getattr(copy.copy(operator), deferral.method_name)(context, event=payload)
        except TaskDeferred as another:
            deferral = another


def submissions(gateway) -> int:
    return gateway.requests.count("submit")


def state_of(gateway, job_id: str) -> str:
    return gateway.scheduler.records(job_id)[0].state


def until(condition, seconds: float = 10.0):
    """Wait for a condition and return what made it true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)
    return value


class InBackground:
    """A task that waits in a thread."""

    def __init__(self, operator, context) -> None:
        self.operator, self.context = operator, context
        self.error: BaseException | None = None
        self.result: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self.operator.execute(self.context)
        except BaseException as error:  # noqa: BLE001
            self.error = error

    @property
    def job_id(self) -> str:
        return until(lambda: self.context["ti"].xcoms.get("job_id"))

    def end(self, seconds: float = 15) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive()


# --- the result ---


@MODES
def test_a_job_that_completes_gives_its_record(connected, deferrable):
    context = context_of("hello")
    result = execute(submit(task_id="hello", deferrable=deferrable), context)
    job_id = result["job_id"]
    directory = f"{connected.home}/{result['name']}"
    assert result | {"submit_time": "", "start_time": "", "end_time": "", "elapsed": 0} == {
        "job_id": job_id,
        "name": result["name"],
        "system": "embedded",
        "state": "COMPLETED",
        "reason": None,
        "exit_code": 0,
        "signal": None,
        "working_directory": directory,
        "stdout": f"{directory}/slurm-{job_id}.out",
        "stderr": f"{directory}/slurm-{job_id}.err",
        "submit_time": "",
        "start_time": "",
        "end_time": "",
        "elapsed": 0,
        "nodes": "nid001",
    }
    times = [datetime.fromisoformat(result[f"{name}_time"]) for name in ("submit", "start", "end")]
    assert all(when.tzinfo is not None for when in times)
    assert abs((times[1] - times[0]).total_seconds()) < 5
    assert times[1] <= times[2]
    assert Path(result["stdout"]).read_text() == "hello\n"
    assert context["ti"].xcoms["job_id"] == job_id
    assert json.loads(json.dumps(result)) == result


def test_both_ways_to_wait_end_in_the_same_result(connected):
    differing = {
        "job_id",
        "name",
        "working_directory",
        "stdout",
        "stderr",
        "submit_time",
        "start_time",
        "end_time",
    }
    options = {"sbatch_options": {"array": "0-1"}, "task_id": "same"}
    here, there = (execute(submit(deferrable=way, **options), context_of("same")) for way in (False, True))
    assert here.keys() == there.keys()
    assert {k: v for k, v in here.items() if k not in {*differing, "elements"}} == {
        k: v for k, v in there.items() if k not in {*differing, "elements"}
    }
    for one, other in zip(here["elements"], there["elements"], strict=True):
        assert one.keys() == other.keys()
        assert [one[key] for key in ("index", "state", "exit_code", "signal")] == [
            other[key] for key in ("index", "state", "exit_code", "signal")
        ]


@MODES
def test_an_array_gives_the_same_for_each_element(connected, deferrable):
    script = "#!/bin/bash\necho element $SLURM_ARRAY_TASK_ID\n"
    result = execute(submit(script, sbatch_options={"array": "1-5:2"}, deferrable=deferrable), context_of())
    assert result["state"] == "COMPLETED"
    assert [element["index"] for element in result["elements"]] == [1, 3, 5]
    for element in result["elements"]:
        assert (element["state"], element["exit_code"]) == ("COMPLETED", 0)
        assert element["stdout"].endswith(f"/slurm-{result['job_id']}_{element['index']}.out")
        assert Path(element["stdout"]).read_text() == f"element {element['index']}\n"
        assert Path(element["stderr"]).read_text() == ""


@MODES
def test_the_output_of_a_job_is_in_the_task_log_once_while_it_runs_and_after(connected, deferrable, capsys):
    script = "#!/bin/bash\necho first\necho trouble >&2\nsleep 1\necho last\n"
    said = []

    def listen(line):
        said.append((line, time.monotonic()))

    operator = submit(script, deferrable=deferrable, log_interval=0.1)
    operator.say = listen
    result = execute(operator, context_of())
    if deferrable:
        told = capsys.readouterr().out
        assert [told.count(line) + [each for each, _ in said].count(line) for line in ("first", "last")] == [
            1,
            1,
        ]
    else:
        assert sorted(line for line, _ in said) == ["first", "last", "stderr: trouble"]
        at = dict(said)
        assert at["first"] < at["last"] - 0.3, "the first line came while the job ran"
    assert result["state"] == "COMPLETED"


def test_of_too_much_output_the_end_is_logged_and_the_cut_is_marked(connected):
    said = []
    operator = submit("#!/bin/bash\nseq 1 100000\n", log_limit=100_000)
    operator.say = said.append
    execute(operator, context_of())
    assert said[0] == "1"
    assert said[-1] == "100000"
    assert [line for line in said if "bytes of /" in line and "are left out here" in line]
    assert sum(len(line) + 1 for line in said) < 102_000


def test_no_output_is_read_if_none_is_wanted(connected):
    connected.requests.clear()
    execute(submit(log_interval=None), context_of())
    assert connected.requests.count("tail") + connected.requests.count("view") == 0


@pytest.mark.parametrize("options", [{"log_interval": 0}, {"log_limit": 0}])
def test_logs_that_cannot_be_are_refused(options):
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        submit(**options)


def test_without_wait_the_task_ends_with_a_pending_job(connected):
    result = submit(LONG, wait=False).execute(context_of())
    assert result["state"] == "PENDING"
    assert state_of(connected, result["job_id"]) in ("PENDING", "RUNNING")
    assert HpcCancelJobOperator(task_id="cancel", job=result).execute({}) is True


def test_a_very_short_job_is_never_deferred(connected, monkeypatch):
    monkeypatch.undo()
    connected_environment(monkeypatch, connected)
    assert submit(deferrable=True).execute(context_of())["state"] == "COMPLETED"


def connected_environment(monkeypatch, gateway) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_HPC_DEFAULT", json.dumps(gateway.connection()))


def test_the_trigger_of_a_deferred_job_keeps_quiet_at_first(connected, monkeypatch):
    monkeypatch.setattr(jobs, "_QUIET", 5.0)
    deferral = deferral_of(submit(deferrable=True), context_of())
    assert 4 < deferral.trigger.watch.not_before - time.time() < 5.1


# --- failures ---


@MODES
def test_a_failed_job_fails_the_task_with_its_last_words(connected, deferrable):
    script = "#!/bin/bash\necho fine\necho 'cannot read input.nml' >&2\nexit 3\n"
    with pytest.raises(JobFailedError) as failure:
        execute(submit(script, deferrable=deferrable), context_of())
    text = str(failure.value)
    assert "is FAILED (exit code 3, after 0 s" in text
    assert text.endswith(".err:\ncannot read input.nml")
    assert failure.value.state == "FAILED"
    assert not failure.value.transient


def test_a_job_that_wrote_no_error_says_where_it_would_have_been(connected):
    with pytest.raises(JobFailedError, match=r"\nNothing was written to /.*/slurm-\d+\.err\.$"):
        execute(submit("#!/bin/bash\nexit 1\n"), context_of())


@MODES
def test_a_job_that_a_signal_ended_names_it(connected, deferrable):
    with pytest.raises(JobFailedError, match=r"FAILED .*signal 11"):
        execute(submit("#!/bin/bash\nkill -SEGV $$\n", deferrable=deferrable), context_of())


@MODES
def test_a_job_over_its_time_limit_says_so_and_what_to_do(connected, deferrable):
    options = {"sbatch_options": {"time": timedelta(seconds=1)}, "deferrable": deferrable}
    with pytest.raises(
        JobFailedError, match=r"is TIMEOUT .*reached its time limit.*sbatch_options time"
    ) as failure:
        execute(submit(LONG, **options), context_of())
    assert failure.value.state == "TIMEOUT"


@MODES
def test_an_array_names_the_elements_that_failed(connected, deferrable):
    script = '#!/bin/bash\nif ((SLURM_ARRAY_TASK_ID % 2)); then echo "odd one" >&2; exit 7; fi\n'
    with pytest.raises(JobFailedError) as failure:
        execute(submit(script, sbatch_options={"array": "0-4"}, deferrable=deferrable), context_of())
    text = str(failure.value)
    assert "Failed indices: 1, 3 (2 of 5)." in text
    assert "_1.err:\nodd one" in text


def test_a_node_that_fails_is_worth_a_retry(connected, monkeypatch):
    monkeypatch.setattr("airflow_hpc_provider.watch._CONFIRM_AFTER", 0.3)
    task = InBackground(submit(LONG), context_of())
    connected.scheduler.end(task.job_id, "NODE_FAIL")
    task.end()
    assert isinstance(task.error, JobFailedError)
    assert task.error.transient
    assert "let the task retry" in str(task.error)


def test_a_requeued_job_is_waited_for_to_its_end(connected):
    script = '#!/bin/bash\n[ -n "$SLURM_RESTART_COUNT" ] || sleep 60\n'
    task = InBackground(submit(script), context_of())
    job_id = task.job_id
    until(lambda: state_of(connected, job_id) == "RUNNING")
    connected.scheduler.requeue(job_id)
    task.end()
    assert task.result["state"] == "COMPLETED"
    assert task.result["job_id"] == job_id


def test_a_job_that_is_cancelled_by_others_fails_the_task(connected):
    task = InBackground(submit(LONG), context_of())
    connected.scheduler.cancel(task.job_id)
    task.end()
    assert isinstance(task.error, JobFailedError)
    assert task.error.state == "CANCELLED"


def test_a_job_that_nobody_knows_any_more_is_lost_not_completed(connected, monkeypatch):
    monkeypatch.setattr("airflow_hpc_provider.watch._VISIBLE_WITHIN", 0.0)
    monkeypatch.setattr("airflow_hpc_provider.watch._LOST_AFTER", 0.3)
    monkeypatch.setattr("airflow_hpc_provider.watch._LOST_AFTER", 0.0)
    task = InBackground(submit(LONG), context_of())
    connected.scheduler.forget(task.job_id)
    task.end()
    assert isinstance(task.error, JobLostError)
    assert "accounting" in str(task.error)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "gpu"}, "invalid partition specified: gpu"),
        ({"account": "strangers"}, "Invalid account"),
    ],
)
def test_what_slurm_refuses_fails_at_once_with_its_words(connected, options, words):
    before = submissions(connected)
    with pytest.raises(RejectedError, match=words) as refusal:
        submit(**options).execute(context_of())
    assert not refusal.value.transient
    assert submissions(connected) == before + 1


# --- what is submitted ---


def test_a_script_beside_the_dag_is_found_and_rendered(connected, tmp_path):
    for name, text in [("a.sh", "sh"), ("b.sbatch", "sbatch"), ("c.slurm", "slurm")]:
        (tmp_path / name).write_text(
            f"#!/bin/bash\necho {text} {{{{ task.task_id }}}} {{{{ params.word }}}}\n"
        )
        with DAG("beside", schedule=None, template_searchpath=str(tmp_path), params={"word": "hi"}) as dag:
            operator = submit(name, task_id=text)
        operator.resolve_template_files()
        operator.render_template_fields({"dag": dag, "task": operator, "params": {"word": "hi"}})
        result = execute(operator, context_of(text))
        assert Path(result["stdout"]).read_text() == f"{text} {text} hi\n"


@pytest.mark.parametrize("name", ["missing.sh", "missing.sbatch", "missing.slurm"])
def test_a_script_file_that_is_missing_is_named(connected, name, tmp_path):
    with DAG("missing", schedule=None, template_searchpath=str(tmp_path)) as dag:
        operator = submit(name)
    operator.resolve_template_files()
    with pytest.raises(InvalidInputError, match=rf"script: .*{name}"):
        operator.render_template_fields({"dag": dag, "task": operator})


def test_remote_paths_and_variables_that_end_in_sh_are_no_template_files(connected, tmp_path):
    folder = connected.scratch / "scripts"
    folder.mkdir(exist_ok=True)
    (folder / "run.sh").write_text("#!/bin/bash\necho $TOOL\n")
    with DAG("remote", schedule=None, template_searchpath=str(tmp_path)) as dag:
        operator = submit(
            None,
            script_path="{{ folder }}/run.sh",
            env={"TOOL": "{{ tool }}/setup.sh"},
            stdout="{{ task.task_id }}.slurm",
        )
    operator.resolve_template_files()
    operator.render_template_fields({"dag": dag, "task": operator, "folder": str(folder), "tool": "/opt"})
    assert operator.script_path == f"{folder}/run.sh"
    result = execute(operator, context_of())
    assert result["stdout"].endswith("/task.slurm")
    assert Path(result["stdout"]).read_text() == "/opt/setup.sh\n"


AWKWARD = {
    "COMMAS": "a,b,c",
    "QUOTES": 'it\'s "quoted" `x` $HOME \\ !',
    "LINES": "first\nsecond\n\nfourth",
    "BLANK": "  ",
    "EMPTY": "",
    "UMLAUTS": "Zürich → 北京",
    "EQUALS": "a=b=c",
}


def test_variables_arrive_as_they_were_given(connected):
    script = "#!/bin/bash\n" + "".join(f'printf "%s\\0" "${{{name}-unset}}"\n' for name in AWKWARD)
    result = execute(submit(script, env=AWKWARD, log_interval=None), context_of())
    assert Path(result["stdout"]).read_text().split("\0")[:-1] == list(AWKWARD.values())


def test_the_working_directory_is_made(connected):
    result = execute(submit("#!/bin/bash\npwd\n", working_directory="{working_dir}/deep/er"), context_of())
    assert result["working_directory"] == f"{connected.home}/deep/er"
    assert Path(result["stdout"]).read_text().strip() == f"{connected.home}/deep/er"


def test_the_directories_of_the_outputs_are_made(connected):
    result = execute(submit(stdout="logs/%x.out", stderr=f"{connected.scratch}/errors/%j.err"), context_of())
    assert result["stdout"] == f"{result['working_directory']}/logs/{result['name']}.out"
    assert Path(result["stdout"]).read_text() == "hello\n"
    assert Path(f"{connected.scratch}/errors/{result['job_id']}.err").is_file()


def test_options_become_directives_and_win_over_the_script(connected):
    script = "#!/bin/bash\n#SBATCH --cpus-per-task=2 --ntasks=1\necho $SLURM_CPUS_PER_TASK $SLURM_NTASKS\n"
    options = {"cpus_per_task": 3, "time": timedelta(minutes=90), "exclusive": False}
    result = execute(submit(script, sbatch_options=options), context_of())
    assert Path(result["stdout"]).read_text() == "3 1\n"
    assert connected.scheduler.records(result["job_id"])[0].limit == 5400


def test_the_jobs_name_starts_with_the_task_or_the_name_given(connected):
    names = [
        execute(submit(task_id="group.train"), context_of("group.train"))["name"],
        execute(submit(job_name="sweep"), context_of())["name"],
        execute(submit("#!/bin/bash\n#SBATCH --job-name=inside\n"), context_of())["name"],
    ]
    bases = [name.rpartition("-")[0] for name in names]
    assert bases == ["group.train", "sweep", "inside"]


def test_account_and_partition_default_to_the_connections_and_the_systems(connected, connect):
    connect(connected, account="users")
    script = "#!/bin/bash\necho $SLURM_JOB_ACCOUNT $SLURM_JOB_PARTITION\n"
    default = execute(submit(script), context_of())
    named = execute(submit(script, account="staff", partition="debug"), context_of())
    assert Path(default["stdout"]).read_text() == "users normal\n"
    assert Path(named["stdout"]).read_text() == "staff debug\n"


def test_a_system_in_rest_mode_gets_no_job_that_it_would_misunderstand(make_gateway, connect):
    gateway = make_gateway(connection_mode="rest")
    connect(gateway)
    with pytest.raises(InvalidInputError, match=r"REST mode and would ignore --array"):
        submit(sbatch_options={"array": "0-3"}).execute(context_of())
    assert gateway.requests.count("POST ^/(compute|filesystem)") == 0
    result = execute(submit(), context_of())
    assert Path(result["stdout"]).read_text() == "hello\n"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"script": None}, "script"),
        ({"script": HELLO, "script_path": "/a.sh"}, "script"),
        ({"script": "echo no shebang"}, "script"),
        ({"script": ""}, "script"),
        ({"script": None, "script_path": "relative.sh"}, "script_path"),
        ({"working_directory": "relative"}, "working_directory"),
        ({"working_directory": "/it's"}, "working_directory"),
        ({"working_directory": "/nul\0"}, "working_directory"),
        ({"sbatch_options": {"no such": 1}}, "no such"),
        ({"env": {"A-B": "1"}}, "A-B"),
        ({"account": "a", "sbatch_options": {"account": "b"}}, "account"),
        ({"stdout": "../up"}, "stdout"),
        ({"job_name": "my sweep"}, "job_name"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made(connected, options, field):
    connected.requests.clear()
    options = {"script": HELLO} | options
    with pytest.raises(InvalidInputError, match=field):
        submit(options.pop("script"), **options).execute(context_of())
    assert connected.requests.count("POST ^/(compute|filesystem)") == 0


# --- jobs that follow one that failed ---

# The first is over its time limit of a second.
SLOW = "#!/bin/bash\nsleep 1.3\necho enough\n"


@pytest.mark.parametrize(
    ("deferrable", "store"), [(False, False), (True, True)], ids=["without a state store", "deferred"]
)
def test_a_job_that_had_too_little_time_is_followed_by_one_with_more(connected, deferrable, store, capsys):
    context, before = context_of(), submissions(connected)
    if not store:
        del context["task_state_store"]
    operator = submit(SLOW, deferrable=deferrable, sbatch_options={"time": "0:01"}, escalate={"time": 5.0})
    result = to_the_end(operator, context)
    assert (result["state"], submissions(connected)) == ("COMPLETED", before + 2)
    assert context["ti"].xcoms["job_id"] == result["job_id"]
    assert "is TIMEOUT: another one gets 5 times the time" in capsys.readouterr().out


def test_growth_that_does_not_help_ends_and_the_task_fails(connected):
    context, before = context_of(), submissions(connected)
    operator = submit(
        "#!/bin/bash\nsleep 60\n",
        sbatch_options={"mem": "1M", "time": "1:00"},
        escalate={"mem": 2.0},
        max_escalations=1,
    )
    started = InBackground(operator, context)
    for _ in range(2):
        job_id = started.job_id
        until(lambda job_id=job_id: state_of(connected, job_id) == "RUNNING")
        connected.scheduler.end(job_id, "OUT_OF_MEMORY")
        until(lambda job_id=job_id: context["ti"].xcoms["job_id"] != job_id or started.error)
    started.end()
    assert isinstance(started.error, JobFailedError)
    assert submissions(connected) == before + 2
    # A retry goes on from there, with no less than was too little.
    retried = InBackground(operator, context)
    third = until(lambda: context["ti"].xcoms["job_id"] != job_id and context["ti"].xcoms["job_id"])
    assert context["task_state_store"][STATE_KEY]["variation"]["scaled"] == {"mem": 1}
    connected.scheduler.end(third, "FAILED", exit_code=1)
    retried.end()


@pytest.mark.parametrize(
    "options",
    [
        {"escalate": {"mem": 2.0}},
        {"escalate": {"gpus": 2.0}},
        {"escalate": {"time": 0.5}, "sbatch_options": {"time": 5}},
        {"max_escalations": -1},
        {"resubmit_failed_indices": True},
        {"array": "0-3%2", "array_limit": 3},
    ],
)
def test_growth_and_arrays_that_cannot_be_are_refused_before_anything_is_sent(connected, options):
    connected.requests.clear()
    with pytest.raises(InvalidInputError):
        submit(**options).execute(context_of())
    assert len(connected.requests) == 0


# --- arrays ---


@MODES
def test_an_array_over_a_list_gives_each_element_its_input(connected, deferrable):
    script = '#!/bin/bash\necho "got $HPC_INPUT"\n'
    operator = submit(script, array=["a b", {"lr": 1}], array_limit=1, deferrable=deferrable)
    result = to_the_end(operator, context_of())
    read = [Path(element["stdout"]).read_text() for element in result["elements"]]
    assert read == ["got a b\n", 'got {"lr": 1}\n']


def test_an_empty_list_of_inputs_skips_the_task(connected):
    connected.requests.clear()
    with pytest.raises(AirflowSkipException, match="empty"):
        submit(array=[]).execute(context_of())
    assert len(connected.requests) == 0


@MODES
def test_a_retry_runs_only_the_indices_that_failed_and_tells_of_all(connected, deferrable):
    # Index 2 completes where its mark is there, which the first try leaves.
    script = (
        "#!/bin/bash\nif [ $SLURM_ARRAY_TASK_ID = 2 ] && [ ! -e mark ]; then touch mark; exit 3; fi\n"
        "echo $SLURM_ARRAY_JOB_ID >> ran_$SLURM_ARRAY_TASK_ID\n"
    )
    context = context_of()
    operator = submit(script, array="0-3", resubmit_failed_indices=True, deferrable=deferrable)
    with pytest.raises(JobFailedError, match=r"Failed indices: 2 \(1 of 4\)"):
        to_the_end(operator, context)
    first = context["ti"].xcoms["job_id"]
    result = to_the_end(operator, context)
    assert [(e["index"], e["job_id"], e["state"]) for e in result["elements"]] == [
        (0, first, "COMPLETED"),
        (1, first, "COMPLETED"),
        (2, result["job_id"], "COMPLETED"),
        (3, first, "COMPLETED"),
    ]
    ran = {path.name: path.read_text().split() for path in Path(result["working_directory"]).glob("ran_*")}
    assert ran == {"ran_0": [first], "ran_1": [first], "ran_2": [result["job_id"]], "ran_3": [first]}
    assert all(Path(element["stdout"]).exists() for element in result["elements"])
    # The scheduler forgets; what completed stays so.
    connected.scheduler.forget(first)
    again = to_the_end(operator, context)
    assert [e["state"] for e in again["elements"]] == ["COMPLETED"] * 4


# --- once, whatever happens ---


def test_two_tries_at_the_very_same_moment_end_with_one_job(connected):
    before, run_id = submissions(connected), f"run-{os.urandom(4).hex()}"
    # Each try sees an empty store: the other has not written yet.
    tries = [InBackground(submit("#!/bin/bash\nsleep 1\n"), context_of(run_id=run_id)) for _ in range(2)]
    for one in tries:
        one.end()
    assert [one.error for one in tries] == [None, None]
    assert len({one.result["job_id"] for one in tries}) == 1
    states = sorted(
        record.state for record in connected.scheduler.records() if record.name == tries[0].result["name"]
    )
    assert submissions(connected) == before + 2
    assert [state.split()[0] for state in states] == ["CANCELLED", "COMPLETED"]


@pytest.mark.parametrize("store", [True, False], ids=["with the state store", "without"])
def test_a_second_try_finds_the_job_of_the_first(connected, store):
    before = submissions(connected)
    context = context_of(store=StateStore())
    if not store:
        del context["task_state_store"]
    first = deferral_of(submit(LONG, deferrable=True), context)
    second = deferral_of(submit(LONG, deferrable=True), context)
    assert first.trigger.watch.job_id == second.trigger.watch.job_id
    assert submissions(connected) == before + 1
    connected.scheduler.cancel(first.trigger.watch.job_id)


def test_a_try_after_a_completed_job_takes_its_result(connected):
    before, context = submissions(connected), context_of()
    first, second = (execute(submit(), context) for _ in range(2))
    assert first == second
    assert submissions(connected) == before + 1


def test_a_try_after_a_failed_job_submits_a_new_one(connected):
    before, context = submissions(connected), context_of()
    for _ in range(2):
        with pytest.raises(JobFailedError):
            execute(submit("#!/bin/bash\nexit 1\n"), context)
    assert submissions(connected) == before + 2


def test_a_cleared_task_cancels_its_job_and_submits_a_new_one(connected):
    context = context_of()
    first = deferral_of(submit(LONG, deferrable=True), context).trigger.watch.job_id
    context["ti"].max_tries += 1
    second = deferral_of(submit(LONG, deferrable=True), context).trigger.watch.job_id
    assert first != second
    assert state_of(connected, first).startswith("CANCELLED")
    connected.scheduler.cancel(second)


def test_the_intent_is_written_down_before_the_job_is_sent(connected):
    context = context_of()
    connected.faults.respond(403, {"errorType": "error", "message": "No."}, on="submit", times=1)
    with pytest.raises(HpcError):
        submit().execute(context)
    record = context["task_state_store"][STATE_KEY]
    assert (record["phase"], record["job_id"]) == ("intent", None)


def test_an_answer_that_is_lost_does_not_double_the_job(connected, monkeypatch):
    monkeypatch.setattr("airflow_hpc_provider.submission._LOOK_EVERY", 0.2)
    before = submissions(connected)
    connected.faults.lose_answer(on="submit", times=1)
    assert execute(submit(), context_of())["state"] == "COMPLETED"
    assert submissions(connected) == before + 1


# --- time-outs ---


def test_execution_timeout_cancels_the_job_of_a_task_that_waits(connected):
    context = context_of()
    with pytest.raises(AirflowTaskTimeout, match="the time-out came after"):
        submit(LONG, execution_timeout=timedelta(seconds=1)).execute(context)
    assert state_of(connected, context["ti"].xcoms["job_id"]).startswith("CANCELLED")


def test_airflows_own_alarm_cancels_the_job_too(connected):
    context = context_of()
    with pytest.raises(AirflowTaskTimeout, match="Timeout"), timeout(1):
        submit(LONG, poll_interval=20).execute(context)
    assert state_of(connected, context["ti"].xcoms["job_id"]).startswith("CANCELLED")


def test_execution_timeout_holds_while_the_task_is_deferred(connected):
    context = context_of()
    operator = submit(LONG, deferrable=True, execution_timeout=timedelta(seconds=1))
    deferral = deferral_of(operator, context)
    assert timedelta(minutes=9) < deferral.timeout < timedelta(minutes=11)
    event = asyncio.run(event_of(deferral.trigger))
    job_id = context["ti"].xcoms["job_id"]
    assert state_of(connected, job_id).startswith("CANCELLED"), "the trigger cancels, nobody else would"
    with pytest.raises(AirflowTaskTimeout):
        operator.execute_complete(context, event.payload)


def test_a_job_that_shall_outlive_its_task_is_left_alone_by_a_timeout(connected):
    for deferrable in (False, True):
        context = context_of()
        options = {"cancel_on_kill": False, "execution_timeout": timedelta(seconds=0.5)}
        with pytest.raises(AirflowTaskTimeout):
            execute(submit(LONG, deferrable=deferrable, **options), context)
        job_id = context["ti"].xcoms["job_id"]
        assert state_of(connected, job_id) == "RUNNING"
        connected.scheduler.cancel(job_id)


def test_the_time_already_spent_counts(connected):
    context = context_of(start_date=datetime.now(UTC) - timedelta(hours=1))
    with pytest.raises(AirflowTaskTimeout):
        submit(LONG, execution_timeout=timedelta(minutes=30)).execute(context)


# --- kills ---


def test_a_restart_of_the_worker_leaves_the_job_alone(connected):
    task = InBackground(submit(LONG, poll_interval=20), context_of(state="running"))
    job_id = task.job_id
    task.operator.on_kill()
    task.end()
    assert isinstance(task.error, WatchError)
    assert task.error.transient
    assert "goes on; a retry finds it" in str(task.error)
    assert state_of(connected, job_id) == "RUNNING"
    connected.scheduler.cancel(job_id)


@pytest.mark.parametrize("state", ["failed", "success", "restarting", None])
def test_a_users_kill_cancels_the_job_within_seconds(connected, state):
    task = InBackground(submit(LONG, poll_interval=20), context_of(state=state))
    job_id = task.job_id
    until(lambda: state_of(connected, job_id) == "RUNNING")
    begun = time.monotonic()
    task.operator.on_kill()
    task.end()
    assert time.monotonic() - begun < 4, "Airflow waits five seconds before it kills for good"
    assert isinstance(task.error, WatchError)
    assert state_of(connected, job_id).startswith("CANCELLED")


def test_a_users_kill_leaves_a_job_that_shall_outlive_its_task(connected):
    task = InBackground(submit(LONG, poll_interval=20, cancel_on_kill=False), context_of(state="failed"))
    job_id = task.job_id
    task.operator.on_kill()
    task.end()
    assert isinstance(task.error, WatchError)
    assert "goes on" in str(task.error)
    assert state_of(connected, job_id) in ("PENDING", "RUNNING")
    connected.scheduler.cancel(job_id)


@MODES
def test_a_kill_while_the_job_is_being_submitted_is_not_forgotten(connected, deferrable):
    connected.faults.delay(1.0, on="submit", times=1)
    before = submissions(connected)
    task = InBackground(submit(LONG, poll_interval=20, deferrable=deferrable), context_of(state="failed"))
    until(lambda: submissions(connected) > before)
    task.operator.on_kill()
    task.end()
    assert isinstance(task.error, WatchError), repr(task.error)
    assert state_of(connected, task.job_id).startswith("CANCELLED")


def test_a_kill_before_anything_was_done_does_no_harm(connected):
    submit().on_kill()


def test_an_operator_can_be_copied_while_it_has_never_run(connected):
    import copy

    assert copy.deepcopy(submit()).script == HELLO


# --- a gateway in trouble ---


@MODES
def test_a_gateway_that_is_down_for_a_while_does_not_end_the_wait(connected, deferrable):
    script = "#!/bin/bash\nsleep 1\n"
    fault = connected.faults.cut(on="job", times=3)
    begun = time.monotonic()
    assert execute(submit(script, deferrable=deferrable), context_of())["state"] == "COMPLETED"
    assert fault.hits == 3
    assert time.monotonic() - begun < 30


# --- cancelling ---


def test_a_running_job_is_cancelled(connected):
    job = submit(LONG, wait=False).execute(context_of())
    assert HpcCancelJobOperator(task_id="cancel", job=job["job_id"]).execute({}) is True
    assert state_of(connected, job["job_id"]).startswith("CANCELLED")


def test_a_job_that_is_over_is_no_failure(connected):
    job = execute(submit(), context_of())
    assert HpcCancelJobOperator(task_id="cancel", job=job).execute({}) is False
    assert state_of(connected, job["job_id"]) == "COMPLETED"


def test_an_id_that_was_never_given_is_an_error(connected):
    with pytest.raises(NotFoundError, match="Job not found"):
        HpcCancelJobOperator(task_id="cancel", job="999999").execute({})


@pytest.mark.parametrize("job", [None, "", {}, {"job_id": None}, "12_3", "-1", "1; rm", True, 1.5])
def test_what_is_no_job_is_refused_and_named(connected, job):
    before = len(connected.requests)
    with pytest.raises(InvalidInputError, match=r"^job: "):
        HpcCancelJobOperator(task_id="cancel", job=job).execute({})
    assert len(connected.requests) == before


def test_the_system_of_a_job_is_that_of_its_task(make_gateway, connect):
    gateway = make_gateway(systems=["alps", "eiger"])
    connect(gateway)
    job = submit(LONG, wait=False, system="eiger").execute(context_of())
    assert job["system"] == "eiger"
    assert HpcCancelJobOperator(task_id="cancel", job=job).execute({}) is True
    assert gateway.scheduler_of("eiger").records(job["job_id"])[0].state.startswith("CANCELLED")


# --- dependencies -----------------------------------------------------------------------------------------


@MODES
def test_a_job_waits_in_the_queue_for_one_that_still_runs(connected, deferrable):
    first = submit("#!/bin/bash\nsleep 2\n", task_id="first", wait=False).execute(context_of(task_id="first"))
    second = execute(
        submit(task_id="second", after_ok=[first], deferrable=deferrable), context_of(task_id="second")
    )
    assert state_of(connected, first["job_id"]) == "COMPLETED"
    assert second["state"] == "COMPLETED"
    assert datetime.fromisoformat(second["submit_time"]) < datetime.fromisoformat(second["start_time"])


def test_a_job_whose_dependency_failed_is_given_up_after_its_grace(connected):
    first = submit("#!/bin/bash\nexit 1\n", task_id="first", wait=False).execute(context_of(task_id="first"))
    second = submit(task_id="second", after_ok=first, pending_grace=0.2)
    with pytest.raises(JobFailedError, match="DependencyNeverSatisfied"):
        execute(second, context_of(task_id="second"))
    ours = second._job[1]
    until(lambda: state_of(connected, ours).startswith("CANCELLED"))


def test_a_dependency_given_twice_is_refused_before_anything_is_sent(connected):
    operator = submit(after_ok=["1"], sbatch_options={"dependency": "afterok:2"})
    before = submissions(connected)
    with pytest.raises(InvalidInputError, match="give one of them"):
        operator.execute(context_of())
    assert submissions(connected) == before


# --- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"script": None}, "script"),
        ({"script": "echo no interpreter\n"}, "script"),
        ({"script_path": "/run.sh"}, "script"),
        ({"script": None, "script_path": 5}, "script_path"),
        ({"sbatch_options": {"nods": 1}}, "nods"),
        ({"sbatch_options": {"time": 1.5}}, "time"),
        ({"sbatch_options": {"mem": "4 GB"}}, "mem"),
        ({"working_directory": "relative"}, "working_directory"),
        ({"working_directory": "{working_dir}/it's"}, "working_directory"),
        ({"working_directory": "/a\0b"}, "working_directory"),
        ({"stdout": "a;b"}, "stdout"),
        ({"env": {"1A": "x"}}, "env"),
        ({"after_ok": [None]}, "after_ok"),
        ({"job_name": "a b|c"}, "job_name"),
    ],
)
def test_bad_input_is_refused_before_the_gateway_is_asked_for_anything(connected, bad, field):
    before = len(list(connected.requests))
    with pytest.raises(InvalidInputError) as caught:
        submit(**bad).execute(context_of())
    assert field in caught.value.field
    assert len(list(connected.requests)) == before


# --- what is to be seen afterwards ---


def in_two_processes(context, **options):
    """Run a task as Airflow would: one that is resumed is another object. The last one, and its result."""
    first = submit(**options)
    if not first.deferrable:
        return first, first.execute(context)
    deferral = deferral_of(first, context)
    event = asyncio.run(event_of(type(deferral.trigger)(**deferral.trigger.serialize()[1])))
    second = submit(**options)
    return second, getattr(second, deferral.method_name)(context, event=event.payload)


def shown(operator) -> dict[str, Any]:
    """The rendered fields as Airflow stores them at the end of a task."""
    from airflow.sdk.execution_time.task_runner import _serialize_rendered_fields

    assert operator.overwrite_rtif_after_execution
    return _serialize_rendered_fields(operator)


def received(gateway, job_id: str) -> str:
    """The script as the gateway got it."""
    return str(gateway.scheduler.metadata(job_id)[0]["script"])


@MODES
@pytest.mark.parametrize("array", [None, "0-1"], ids=["one", "array"])
def test_the_rendered_fields_show_what_the_gateway_received(connected, deferrable, array):
    operator, result = in_two_processes(
        context_of(),
        script="#!/bin/bash\n#SBATCH --ntasks=1\nsleep 1\n",
        sbatch_options={"time": "00:05:00"},
        env={"GREETING": "hello, world"},
        array=array,
        deferrable=deferrable,
    )
    fields = shown(operator)
    sent = received(connected, result["job_id"])
    assert fields["submitted_script"] == sent
    assert "#SBATCH --time=00:05:00" in sent
    assert "hello, world" in sent
    assert fields["submitted"]["name"] == result["name"]
    assert fields["submitted"]["workingDirectory"] == result["working_directory"]
    assert fields["submitted"]["account"] == "staff"
    assert "script" not in fields["submitted"]


def test_the_rendered_fields_show_no_secret(connected):
    secret = "it's $ecret"
    operator = submit(
        env={"API_TOKEN": secret, "PLAIN": "plain"},
        array=[{"password": "hunter2-hunter2", "n": 1}, {"password": "hunter2-hunter2", "n": 2}],
    )
    context = context_of()
    result = execute(operator, context)
    sent = received(connected, result["job_id"])
    assert "$ecret" in sent
    assert "hunter2" in sent
    told = json.dumps(shown(operator)) + json.dumps(context["task_state_store"])
    assert "$ecret" not in told
    assert "hunter2" not in told
    assert "PLAIN=plain" in shown(operator)["submitted_script"]


def test_a_retry_that_attaches_shows_what_the_first_try_sent(connected):
    store, run_id = StateStore(), f"run-{os.urandom(4).hex()}"
    first = submit(LONG, wait=False)
    sent = execute(first, context_of(store=store, run_id=run_id))
    second = submit(LONG, wait=False)
    assert execute(second, context_of(store=store, run_id=run_id, try_number=2))["job_id"] == sent["job_id"]
    assert shown(second)["submitted_script"] == received(connected, sent["job_id"])
    connected.scheduler.cancel(sent["job_id"])


def test_a_job_that_follows_with_more_shows_the_last_one(connected):
    operator = submit(
        "#!/bin/bash\n[ -e ../again ] && exit 0\ntouch ../again\nsleep 60\n",
        working_directory="{working_dir}/escalated/run",
        sbatch_options={"time": timedelta(seconds=2)},
        escalate={"time": 10},
    )
    result = execute(operator, context_of())
    assert "--time=00:00:20" in shown(operator)["submitted_script"]
    assert shown(operator)["submitted_script"] == received(connected, result["job_id"])


@MODES
def test_the_task_links_to_its_job(connected, connect, deferrable):
    connect(connected, ui_url="https://my.hpc.ch/{system}/{account}/{job_id}")
    context = context_of()
    operator, result = in_two_processes(context, deferrable=deferrable)
    page = f"https://my.hpc.ch/embedded/staff/{result['job_id']}"
    (link,) = operator.operator_extra_links
    assert link.get_link(operator, ti_key=context["ti"]) == page
    assert context["ti"].xcoms[link.xcom_key] == page


@MODES
def test_the_outlets_are_told_of_the_job(connected, deferrable):
    from airflow.sdk import Asset
    from airflow.sdk.execution_time.context import OutletEventAccessors

    asset, context = Asset("hpc://embedded/results"), context_of()
    context["outlet_events"] = OutletEventAccessors()
    result = execute(submit(deferrable=deferrable, outlets=[asset]), context)
    told = ("job_id", "name", "system", "state", "working_directory")
    assert context["outlet_events"][asset].extra == {name: result[name] for name in told}
    assert result["state"] == "COMPLETED"
