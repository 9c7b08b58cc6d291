"""What operators and sensors share: defaults, deadlines, and what a trigger carries."""

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow_home import context_of

from airflow_hpc_provider.operators.files import HpcUploadOperator
from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator
from airflow_hpc_provider.sensors.systems import HpcSystemSensor
from airflow_hpc_provider.tasks import HpcTask, carried, deadline, default_deferrable
from airflow_hpc_provider.triggers.systems import HpcSystemTrigger
from airflow_hpc_provider.watch import Outcome, SystemWatch, Verdict


@pytest.mark.parametrize("setting", ["True", "False", None])
def test_airflows_setting_decides_where_to_wait_unless_the_task_does(monkeypatch, setting):
    if setting is not None:
        monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", setting)
    expected = setting == "True"
    assert default_deferrable() is expected
    assert HpcSubmitJobOperator(task_id="a", script="x").deferrable is expected
    assert HpcSystemSensor(task_id="b").deferrable is expected
    assert HpcSubmitJobOperator(task_id="c", script="x", deferrable=not expected).deferrable is not expected
    assert HpcSystemSensor(task_id="d", deferrable=not expected).deferrable is not expected


def test_a_hook_is_made_anew_so_that_a_task_holds_no_secret(connected):
    task = HpcUploadOperator(task_id="task", local_path="/a", remote_path="/b")
    task.hook.settings  # noqa: B018
    assert task.hook is not task.hook
    assert connected.client_secret not in repr(vars(task))


def test_a_deadline_counts_from_the_start_of_the_task():
    start = datetime.now(UTC) - timedelta(minutes=5)
    context = context_of(start_date=start)
    assert deadline(context, timedelta(minutes=8)) == start.timestamp() + 480
    assert deadline(context, None) is None


def test_a_deadline_counts_from_now_where_the_start_is_not_known():
    assert deadline({}, timedelta(minutes=1)) == pytest.approx(time.time() + 60, abs=2)


@pytest.mark.parametrize(("left", "net"), [(3600.0, 4200), (-5.0, 600), (None, None)])
def test_airflows_own_limit_lies_ten_minutes_behind_the_triggers(left, net):
    trigger = HpcSystemTrigger(hpc_conn_id="hpc_default", system="embedded", since=0)
    until = None if left is None else time.time() + left
    with pytest.raises(TaskDeferred) as deferral:
        HpcTask(task_id="task").defer_to(trigger, until=until)
    assert deferral.value.trigger is trigger
    assert deferral.value.method_name == "execute_complete"
    timeout = deferral.value.timeout
    assert (timeout and timeout.total_seconds()) == (net and pytest.approx(net, abs=2))


def test_what_a_trigger_carries_comes_back_beside_the_verdict():
    verdict = Verdict(Outcome.DONE, "Done.", {"system": "embedded"})
    event = verdict.to_event() | {"carry": {"mine": 1}}
    assert carried(event) == (verdict, {"mine": 1})
    assert carried(verdict.to_event()) == (verdict, {})
    assert "carry" in event, "the event itself is left as it is"


@pytest.mark.parametrize("event", [{}, {"status": "success"}])
def test_an_event_of_something_else_is_an_error_that_shows_it(event):
    with pytest.raises(ValueError, match="no verdict"):
        carried(event)


def test_a_wait_in_the_worker_ends_when_it_is_told_to(connected):
    connected.set_health("scheduler", healthy=False)
    task = HpcTask(task_id="task")
    stop = threading.Event()
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    watch = SystemWatch(system="embedded", since=time.time(), poll_interval=30)
    begun = time.monotonic()
    with task.hook.client() as client:
        verdict = task.follow(client, watch, stop)
    timer.join()
    assert verdict.outcome is Outcome.STOPPED
    assert time.monotonic() - begun < 2


def test_a_wait_in_the_worker_tells_news_once(connected, capsys):
    connected.set_health("scheduler", healthy=False, message="slurmctld is away")
    task = HpcTask(task_id="task")
    watch = SystemWatch(system="embedded", since=time.time(), poll_interval=0.1, deadline=time.time() + 1)
    with task.hook.client() as client:
        assert task.follow(client, watch).outcome is Outcome.TIMEOUT
    assert capsys.readouterr().out.count("slurmctld is away") == 1
