"""The sensor that waits for a healthy system."""

import functools
import threading
import time
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSensorTimeout, AirflowSkipException
from airflow_home import wait_with

from airflow_hpc_provider.client.errors import InvalidInputError, WatchError
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.sensors.systems import HpcSystemSensor

MODES = pytest.mark.parametrize(
    "mode",
    [{"mode": "poke"}, {"mode": "reschedule"}, {"deferrable": True}],
    ids=["poke", "reschedule", "deferred"],
)


def sensor(**options: Any) -> HpcSystemSensor:
    options = {"poke_interval": 0.1, "timeout": 15, "deferrable": False} | options
    return HpcSystemSensor(task_id="system", **options)


@MODES
def test_a_healthy_system_is_named(connected, mode):
    assert wait_with(sensor(**mode)) == "embedded"


@MODES
def test_a_system_that_recovers_is_waited_for(connected, mode):
    connected.set_health("scheduler", healthy=False)
    healing = threading.Timer(0.5, connected.set_health, ["scheduler"], {"healthy": True})
    healing.start()
    assert wait_with(sensor(**mode)) == "embedded"
    healing.join()


@MODES
def test_without_a_timeout_an_unhealthy_system_is_refused_at_once(connected, mode):
    connected.set_health("scheduler", healthy=False)
    begun = time.monotonic()
    with pytest.raises(AirflowSensorTimeout):
        wait_with(sensor(**mode | {"timeout": 0}))
    assert time.monotonic() - begun < 5


@MODES
def test_without_a_timeout_a_healthy_system_is_taken(connected, mode):
    assert wait_with(sensor(**mode | {"timeout": 0})) == "embedded"


@MODES
def test_with_soft_fail_an_unhealthy_system_skips_the_task(connected, mode):
    connected.set_health("ssh", healthy=False)
    with pytest.raises(AirflowSkipException):
        wait_with(sensor(soft_fail=True, **mode | {"timeout": 0.3}))


@MODES
def test_services_that_do_not_matter_may_be_ill(connected, mode):
    connected.set_health("s3", healthy=False)
    assert wait_with(sensor(services=["scheduler", "filesystem"], **mode)) == "embedded"


@MODES
def test_a_system_that_is_not_there_fails_at_once(connected, mode):
    with pytest.raises(WatchError, match="it has: embedded"):
        wait_with(sensor(system="daint", **mode))


@MODES
def test_why_it_is_not_healthy_goes_to_the_log(connected, capsys, mode):
    connected.set_health("scheduler", healthy=False, message="slurmctld is away")
    with pytest.raises(AirflowSensorTimeout):
        wait_with(sensor(**mode | {"timeout": 0.3}))
    assert "scheduler: slurmctld is away" in capsys.readouterr().out


def test_the_log_of_a_healthy_system_says_just_that(connected, capsys):
    wait_with(sensor())
    shown = capsys.readouterr().out
    assert "System embedded is healthy." in shown
    assert "not asked yet" not in shown


def test_a_service_that_nobody_knows_is_refused_unsent(connected):
    before = len(connected.requests)
    with pytest.raises(InvalidInputError, match=r"^services: 'gpu' is not one of scheduler"):
        wait_with(sensor(services=["gpu"]))
    assert len(connected.requests) == before


# --- a gateway that cannot be asked ---


@pytest.fixture
def hurried(monkeypatch):
    """Between the tries of one look a client waits as if time passed fast."""
    for module in ("client.session", "triggers.base"):
        monkeypatch.setattr(
            f"airflow_hpc_provider.{module}.RetryPolicy", functools.partial(RetryPolicy, base=0.001)
        )


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("mode", [{"mode": "poke"}, {"deferrable": True}], ids=["poke", "deferred"])
def test_an_outage_is_logged_once_in_the_gateways_first_words(connected, capsys, mode):
    connected.set_health("scheduler", healthy=False, message="slurmctld is away")
    connected.faults.unhealthy("embedded", on="systems", skip=1, times=6)
    outage = connected.faults.bad_gateway(on="systems", skip=1, times=12)

    def heal() -> None:
        while not outage.spent:
            time.sleep(0.01)
        time.sleep(0.5)
        connected.set_health("scheduler", healthy=True)

    healing = threading.Thread(target=heal)
    healing.start()
    assert wait_with(sensor(**mode)) == "embedded"
    healing.join()
    shown = capsys.readouterr().out
    assert shown.count("cannot be asked and is waited for with a patience of 1800 s") == 1
    assert shown.count("the requested system (embedded) is unhealthy. (HTTP 503") == 1
    assert shown.count("slurmctld is away") == 2, "before the outage and after it"


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("mode", [{"mode": "poke"}, {"deferrable": True}], ids=["poke", "deferred"])
def test_patience_with_a_gateway_that_cannot_be_asked_has_an_end(connected, mode):
    connected.faults.cut(on="systems", times=None)
    with pytest.raises(WatchError, match="could not be asked for") as failure:
        wait_with(sensor(gateway_patience=0.5, **mode))
    assert failure.value.transient


@pytest.mark.usefixtures("hurried")
def test_a_rescheduled_sensor_knows_no_patience_but_its_timeout(connected):
    connected.faults.cut(on="systems", times=None)
    with pytest.raises(AirflowSensorTimeout):
        wait_with(sensor(mode="reschedule", gateway_patience=0.2, timeout=0.8))
