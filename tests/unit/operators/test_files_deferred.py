"""Transfers whose job is waited for in the triggerer: carried, gone on with, killed and cleaned up."""

import asyncio
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout, TaskDeferred
from airflow_home import StateStore, context_of, sync_dag

from airflow_hpc_provider.client import trees
from airflow_hpc_provider.client.errors import InvalidInputError, TransferError, WatchError
from airflow_hpc_provider.operators import moving
from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator
from airflow_hpc_provider.triggers.jobs import HpcTransferTrigger

LARGE = 120_000


def upload(local_path: Any, remote_path: str, **options: Any) -> HpcUploadOperator:
    return HpcUploadOperator(
        task_id="upload",
        local_path=local_path,
        remote_path=remote_path,
        **{"poll_interval": 0.1, "deferrable": True, "wake": False} | options,
    )


def download(remote_path: Any, local_path: Any, **options: Any) -> HpcDownloadOperator:
    return HpcDownloadOperator(
        task_id="download",
        remote_path=remote_path,
        local_path=local_path,
        **{"poll_interval": 0.1, "deferrable": True} | options,
    )


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Whatever is not over at the first look is deferred, and triggers fire at once."""
    monkeypatch.setattr(moving, "_SOON", 0.0)
    monkeypatch.setattr(moving, "_QUIET", 0.0)
    monkeypatch.setattr(trees, "_PATIENCE", 0.0)


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(LARGE))
    return path


@pytest.fixture
def held(make_gateway, connect):
    """A gateway whose transfer jobs start when they are let go."""
    gateway = make_gateway(
        max_ops_file_size=64 * 1024, max_part_size=50_000, ingress_poll=0.1, directives=["#SBATCH --hold"]
    )
    connect(gateway)
    return gateway


def deferred(operator: Any, context: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as deferral:
        operator.execute(context)
    return deferral.value


def trigger_of(deferral: TaskDeferred) -> HpcTransferTrigger:
    """The trigger as a triggerer makes it, of what went through the database."""
    path, arguments = deferral.trigger.serialize()
    assert path == "airflow_hpc_provider.triggers.jobs.HpcTransferTrigger"
    return HpcTransferTrigger(**json.loads(json.dumps(arguments)))


def event_of(deferral: TaskDeferred, gateway: Any = None) -> Any:
    """What the trigger finds, once the job is let go."""
    if gateway is not None:
        gateway.scheduler.release(deferral.trigger.watch.job_id)

    async def event() -> Any:
        return await anext(trigger_of(deferral).run())

    return json.loads(json.dumps(asyncio.run(event()).payload))


def killed(deferral: TaskDeferred) -> None:
    asyncio.run(trigger_of(deferral).on_kill())


def resumed(operator: Any, deferral: TaskDeferred, context: Any, event: Any) -> Any:
    """Take up the task with an operator made anew."""
    return operator.resume_execution(deferral.method_name, {"event": event}, context)


def states(gateway) -> list[str]:
    return [record.state.split()[0] for record in gateway.scheduler.records()]


# --- the way there and back ---


def test_an_upload_waits_in_the_triggerer_and_needs_its_file_no_more(held, source):
    content, context = source.read_bytes(), context_of("upload")
    deferral = deferred(upload(source, "{working_dir}/there.bin"), context)
    source.unlink()
    event = event_of(deferral, held)
    result = resumed(upload(source, "{working_dir}/there.bin"), deferral, context, event)
    assert (held.home / "there.bin").read_bytes() == content
    assert (result["staged"], result["verified"], result["size"]) == (True, "sha256", LARGE)
    assert result["local_path"] == str(source)
    assert held.requests.count("transfer_upload") == 1


def test_a_download_waits_in_the_triggerer_and_its_url_is_nowhere_in_the_clear(
    held, tmp_path, fernet, caplog, capsys
):
    content = os.urandom(LARGE)
    (held.home / "large.bin").write_bytes(content)
    context = context_of("download", store=StateStore())
    deferral = deferred(download("{working_dir}/large.bin", tmp_path / "back"), context)
    event = event_of(deferral, held)
    for text in (
        str(deferral.trigger.serialize()),
        str(event),
        str(context["task_state_store"]),
        *(one.getMessage() for one in caplog.records if not one.name.startswith("uvicorn")),
        capsys.readouterr().out,
    ):
        assert "X-Amz" not in text
    result = resumed(download("{working_dir}/large.bin", tmp_path / "back"), deferral, context, event)
    assert (tmp_path / "back").read_bytes() == content
    assert (result["staged"], result["verified"]) == (True, "sha256")
    assert held.requests.count("transfer_download") == 1
    assert context["task_state_store"] == {}


def test_without_a_key_a_download_is_waited_for_in_the_worker(small_limits, tmp_path, capsys):
    (small_limits.home / "large.bin").write_bytes(os.urandom(LARGE))
    for context in (context_of("download"), {"ti": context_of()["ti"]}):
        assert download("{working_dir}/large.bin", tmp_path / "back").execute(context)["staged"]
    assert capsys.readouterr().out.count("without a Fernet key") == 2


def test_a_list_is_gone_on_with_file_by_file(held, source, tmp_path, fernet):
    (tmp_path / "small").write_text("small")
    other = tmp_path / "other.bin"
    other.write_bytes(os.urandom(LARGE))
    files, context = [source, tmp_path / "small", other], context_of("upload")
    first = deferred(upload(files, "{working_dir}/list", make_parents=True), context)
    with pytest.raises(TaskDeferred) as second:
        resumed(upload(files, "{working_dir}/list", make_parents=True), first, context, event_of(first, held))
    results = resumed(
        upload(files, "{working_dir}/list", make_parents=True),
        second.value,
        context,
        event_of(second.value, held),
    )
    assert [Path(row["local_path"]) for row in results] == files
    assert [row["staged"] for row in results] == [True, False, True]
    assert held.requests.count("transfer_upload") == 2
    assert held.requests.count("mkdir") == 1
    context, names = context_of("download"), [f"{{working_dir}}/list/{path.name}" for path in files]
    first = deferred(download(names, tmp_path / "back"), context)
    with pytest.raises(TaskDeferred) as second:
        resumed(download(names, tmp_path / "back"), first, context, event_of(first, held))
    results = resumed(download(names, tmp_path / "back"), second.value, context, event_of(second.value, held))
    assert [(tmp_path / "back" / path.name).read_bytes() for path in files] == [
        path.read_bytes() for path in files
    ]
    assert [row["staged"] for row in results] == [True, False, True]


def test_what_all_files_hold_counts_for_max_bytes_after_a_deferral_too(held, source, tmp_path):
    other = tmp_path / "other.bin"
    other.write_bytes(b"x")
    context = context_of("upload")
    first = deferred(upload([source, other], "{working_dir}", max_bytes=LARGE + 1), context)
    other.write_bytes(b"xx")
    with pytest.raises(InvalidInputError, match=f"max_bytes: {LARGE + 2} bytes"):
        resumed(
            upload([source, other], "{working_dir}", max_bytes=LARGE + 1),
            first,
            context,
            event_of(first, held),
        )


def test_nothing_counts_twice_for_max_bytes(held, tmp_path, fernet):
    (held.home / "large.bin").write_bytes(bytes(LARGE))
    (held.home / "small").write_bytes(b"x")
    names, context = ["{working_dir}/large.bin", "{working_dir}/small"], context_of("download")
    first = deferred(download(names, tmp_path / "back", max_bytes=LARGE + 1), context)
    again = download(names, tmp_path / "back", max_bytes=LARGE + 1)
    assert len(resumed(again, first, context, event_of(first, held))) == 2


@pytest.mark.slow
def test_a_job_that_is_woken_is_over_before_anybody_defers(
    make_gateway, connect, source, monkeypatch, capsys
):
    monkeypatch.setattr(moving, "_SOON", 5.0)
    gateway = make_gateway(max_ops_file_size=64 * 1024, max_part_size=50_000, ingress_poll=60)
    connect(gateway)
    result = upload(source, "{working_dir}/there.bin", wake=True).execute(context_of("upload"))
    assert result["verified"] == "sha256"
    assert "no trigger had to wait" in capsys.readouterr().out


def test_why_a_task_is_deferred_is_told(held, source, capsys):
    deferred(upload(source, "{working_dir}/there.bin"), context_of("upload"))
    told = capsys.readouterr().out
    assert "is not over after" in told
    assert "Waiting in the triggerer for job" in told


def test_airflow_s_default_decides(monkeypatch):
    for wanted in (True, False):
        monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", str(wanted))
        assert upload("x", "/x", deferrable=None).deferrable is wanted
        assert download("/x", "x", deferrable=None).deferrable is wanted


def test_default_args_reach_what_the_base_classes_take():
    more = {"deferrable": True, "max_bytes": 7, "gateway_patience": 5.0}
    operator = HpcUploadOperator(task_id="x", remote_path="/x", default_args=more)
    assert (operator.deferrable, operator.max_bytes, operator.gateway_patience) == (True, 7, 5.0)


def test_a_trigger_keeps_quiet_at_first_and_knows_deadline_and_patience(held, source, monkeypatch):
    monkeypatch.setattr(moving, "_QUIET", 5.0)
    context = context_of("upload")
    operator = upload(
        source, "{working_dir}/x", execution_timeout=timedelta(minutes=5), gateway_patience=77.0
    )
    deferral = deferred(operator, context)
    watch = trigger_of(deferral).watch
    assert watch.not_before == pytest.approx(time.time() + 5, abs=4)
    assert watch.deadline == pytest.approx(context["ti"].start_date.timestamp() + 300)
    assert watch.patience == 77.0
    assert deferral.timeout is not None


# --- archives ---


@pytest.fixture
def tree(tmp_path) -> Path:
    folder = tmp_path / "tree"
    (folder / "sub").mkdir(parents=True)
    (folder / "large.bin").write_bytes(os.urandom(2 * LARGE))
    (folder / "sub/small").write_bytes(b"small")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.name.startswith(".airflow-hpc-")]


def test_a_tree_waits_in_the_triggerer_both_ways(held, tree, tmp_path, fernet):
    context = context_of("upload", store=StateStore())
    deferral = deferred(upload(tree, "{working_dir}/there"), context)
    event = event_of(deferral, held)
    result = resumed(upload(tree, "{working_dir}/there"), deferral, context, event)
    assert content(held.home / "there") == content(tree)
    assert (result["files"], result["how"]) == (2, "archive")
    assert held.requests.count("transfer_upload") == 1
    context = context_of("download", store=StateStore())
    deferral = deferred(download("{working_dir}/there", tmp_path / "back"), context)
    # Nothing lies on a worker meanwhile: another one may go on.
    assert left(tmp_path) == []
    assert "X-Amz" not in str((deferral.trigger.serialize(), context["task_state_store"]))
    event = event_of(deferral, held)
    result = resumed(download("{working_dir}/there", tmp_path / "back"), deferral, context, event)
    assert content(tmp_path / "back") == content(tree)
    assert (result["files"], result["how"]) == (2, "archive")
    assert (held.requests.count("transfer_download"), held.requests.count("compress")) == (1, 1)
    assert context["task_state_store"] == {}
    assert left(tmp_path, held.home) == []


def test_what_packs_and_unpacks_a_tree_is_waited_for_there_too(held, tree, tmp_path, fernet):
    held.faults.respond(408, on="extract")
    context, operator = context_of("upload", store=StateStore()), upload(tree, "{working_dir}/there")
    first = deferred(operator, context)
    with pytest.raises(TaskDeferred) as second:
        resumed(operator, first, context, event_of(first, held))
    resumed(operator, second.value, context, event_of(second.value, held))
    assert content(held.home / "there") == content(tree)
    assert (held.requests.count("transfer_upload"), held.requests.count("transfer_extract")) == (1, 1)
    held.faults.respond(408, on="compress")
    context = context_of("download", store=StateStore())
    operator = download("{working_dir}/there", tmp_path / "back")
    first = deferred(operator, context)
    with pytest.raises(TaskDeferred) as second:
        resumed(operator, first, context, event_of(first, held))
    resumed(operator, second.value, context, event_of(second.value, held))
    assert content(tmp_path / "back") == content(tree)
    assert (held.requests.count("transfer_compress"), held.requests.count("transfer_download")) == (1, 1)
    assert left(tmp_path, held.home) == []


def test_a_list_of_small_files_waits_there_too_and_moves_nothing_twice(held, tmp_path, fernet):
    files = [tmp_path / "many" / f"{number}.bin" for number in range(8)]
    files[0].parent.mkdir()
    for path in files:
        path.write_bytes(os.urandom(40_000))
    large = tmp_path / "large.bin"
    large.write_bytes(os.urandom(LARGE))
    context, operator = (
        context_of("upload", store=StateStore()),
        upload([*files, large], "{working_dir}/list", make_parents=True),
    )
    first = deferred(operator, context)
    with pytest.raises(TaskDeferred) as second:
        resumed(operator, first, context, event_of(first, held))
    rows = resumed(operator, second.value, context, event_of(second.value, held))
    assert [Path(row["local_path"]) for row in rows] == [*files, large]
    assert held.requests.count("transfer_upload") == 2
    context = context_of("download", store=StateStore())
    operator = download([row["remote_path"] for row in rows], tmp_path / "back")
    first = deferred(operator, context)
    with pytest.raises(TaskDeferred) as second:
        resumed(operator, first, context, event_of(first, held))
    rows = resumed(operator, second.value, context, event_of(second.value, held))
    assert [Path(row["local_path"]).read_bytes() for row in rows] == [
        path.read_bytes() for path in [*files, large]
    ]
    assert (held.requests.count("compress"), held.requests.count("transfer_download")) == (1, 2)
    assert left(tmp_path, held.home) == []


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("end", ["kill", "timeout"])
def test_a_deferred_tree_that_is_ended_leaves_no_job_and_no_workspace(held, tree, tmp_path, fernet, way, end):  # noqa: PLR0917 - fixtures
    (held.home / "run").mkdir()
    (held.home / "run/large.bin").write_bytes(os.urandom(2 * LARGE))
    start = datetime.now(UTC) - timedelta(seconds=59)
    context = context_of("task", store=StateStore(), **({"start_date": start} if end == "timeout" else {}))
    options = {"execution_timeout": timedelta(seconds=62)} if end == "timeout" else {}
    operator = (
        upload(tree, "{working_dir}/there", **options)
        if way == "up"
        else download("{working_dir}/run", tmp_path / "back", **options)
    )
    deferral = deferred(operator, context)
    assert len(left(held.home)) == 1
    if end == "kill":
        killed(deferral)
    else:
        event = event_of(deferral)
        assert event["outcome"] == "timeout"
        with pytest.raises(AirflowTaskTimeout):
            resumed(operator, deferral, context, event)
    assert states(held) == ["CANCELLED"]
    assert left(held.home, tmp_path) == []
    if end == "timeout":
        # What is written down of it does no harm to a retry.
        context["ti"].start_date = datetime.now(UTC)
        again = deferred(operator, context)
        assert again.trigger.watch.job_id != deferral.trigger.watch.job_id
        resumed(operator, again, context, event_of(again, held))
        assert left(held.home, tmp_path) == []


def test_without_a_store_a_tree_is_waited_for_in_the_worker(small_limits, tree, tmp_path):
    context = {"ti": context_of()["ti"]}
    assert upload(tree, "{working_dir}/there").execute(context)["files"] == 2
    assert download("{working_dir}/there", tmp_path / "back").execute(context)["files"] == 2


# --- when it goes wrong ---


@pytest.mark.parametrize("atomic", [False, True])
def test_a_kill_while_deferred_cancels_the_job_and_removes_what_it_has_written(held, source, atomic):
    deferral = deferred(upload(source, "{working_dir}/there.bin", atomic=atomic), context_of("upload"))
    assert states(held) == ["PENDING"]
    landing = deferral.trigger.upload["landing"] or f"{held.home}/there.bin"
    Path(landing).write_bytes(b"half")
    killed(deferral)
    assert states(held) == ["CANCELLED"]
    assert not Path(landing).exists()
    assert not (held.home / "there.bin").exists()


def test_a_kill_while_deferred_leaves_what_was_there_before(held, source):
    (held.home / "there.bin").write_bytes(b"before")
    # The job would join pieces of such names.
    (held.home / "there.bin.2").write_bytes(b"mine")
    deferral = deferred(upload(source, "{working_dir}/there.bin"), context_of("upload"))
    killed(deferral)
    assert states(held) == ["CANCELLED"]
    assert (held.home / "there.bin").read_bytes() == b"before"
    assert (held.home / "there.bin.2").read_bytes() == b"mine"


def test_a_kill_after_the_job_is_over_leaves_its_work(held, source):
    deferral = deferred(upload(source, "{working_dir}/there.bin"), context_of("upload"))
    event_of(deferral, held)
    killed(deferral)
    assert (held.home / "there.bin").read_bytes() == source.read_bytes()


def test_a_kill_of_a_deferred_download_cancels_its_job(held, tmp_path, fernet):
    (held.home / "large.bin").write_bytes(os.urandom(LARGE))
    context = context_of("download", store=StateStore())
    deferral = deferred(download("{working_dir}/large.bin", tmp_path / "into" / "x"), context)
    assert deferral.trigger.upload is None
    killed(deferral)
    assert states(held) == ["CANCELLED"]
    assert list((tmp_path / "into").iterdir()) == []


def test_a_time_out_while_deferred_cancels_the_job(held, source):
    context = context_of("upload", start_date=datetime.now(UTC) - timedelta(seconds=59))
    operator = upload(source, "{working_dir}/there.bin", execution_timeout=timedelta(seconds=60))
    deferral = deferred(operator, context)
    event = event_of(deferral)
    assert event["outcome"] == "timeout"
    with pytest.raises(AirflowTaskTimeout):
        resumed(operator, deferral, context, event)
    assert states(held) == ["CANCELLED"]


def test_a_gateway_that_is_away_fails_the_try_and_the_next_one_finds_the_job(held, source, fernet):
    context = context_of("upload", store=StateStore(), max_tries=1)
    deferral = deferred(upload(source, "{working_dir}/there.bin"), context)
    away = {"outcome": "failed", "message": "The gateway is away.", "data": {}, "transient": True}
    event = away | {"carry": deferral.trigger.carry}
    with pytest.raises(WatchError, match="away") as error:
        resumed(upload(source, "{working_dir}/there.bin"), deferral, context, event)
    assert error.value.transient
    assert states(held) == ["PENDING"]
    context["ti"].try_number = 2
    again = deferred(upload(source, "{working_dir}/there.bin"), context)
    assert again.trigger.watch.job_id == deferral.trigger.watch.job_id
    assert held.requests.count("transfer_upload") == 1
    # Of the last try nobody is left to find it.
    with pytest.raises(WatchError):
        resumed(upload(source, "{working_dir}/there.bin"), again, context, event)
    assert states(held) == ["CANCELLED"]


def test_a_job_that_somebody_cancelled_fails_the_task_and_leaves_nothing(held, source):
    context = context_of("upload")
    deferral = deferred(upload(source, "{working_dir}/there.bin"), context)
    held.scheduler.cancel(deferral.trigger.watch.job_id)
    with pytest.raises(TransferError, match="ended CANCELLED"):
        resumed(upload(source, "{working_dir}/there.bin"), deferral, context, event_of(deferral))
    assert not (held.home / "there.bin").exists()


def test_what_a_job_wrote_wrongly_is_found_out_after_a_deferral(held, source):
    context = context_of("upload")
    deferral = deferred(upload(source, "{working_dir}/there.bin"), context)
    event = event_of(deferral, held)
    (held.home / "there.bin").write_bytes(os.urandom(LARGE))
    with pytest.raises(TransferError, match="sha256"):
        resumed(upload(source, "{working_dir}/there.bin"), deferral, context, event)
    assert not (held.home / "there.bin").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient` is deprecated")
def test_a_dag_defers_both_ways(airflow_db, small_limits, source, tmp_path, fernet):
    from airflow.sdk import DAG

    with DAG("deferred_files", schedule=None) as dag:
        there = upload("{{ params.source }}", "{working_dir}/{{ run_id }}.bin")
        back = download("{{ ti.xcom_pull(task_ids='upload')['remote_path'] }}", str(tmp_path / "back"))
        there >> back
    dag.params["source"] = str(source)
    run = sync_dag(dag).test()
    assert {ti.state for ti in run.get_task_instances()} == {"success"}
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
