"""How many tests ran under each marker; and in CI, none that needs a service may have been skipped."""

import os
from collections import Counter
from typing import Any

import pytest

__all__ = ["pytest_runtest_makereport", "pytest_sessionfinish", "pytest_terminal_summary"]

MARKERS = ("slow", "slurm", "airflow")
NEED_SERVICES = ("slurm", "airflow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    report = yield
    found = [name for name in MARKERS if item.get_closest_marker(name)]
    report.user_properties.append(("marker", found[-1] if found else "default"))
    return report


def marker_of(report: pytest.TestReport) -> str:
    return str(dict(report.user_properties).get("marker", "default"))


def reports(config: pytest.Config, outcome: str) -> list[pytest.TestReport]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    found = reporter.stats.get(outcome, []) if reporter else []
    return [report for report in found if isinstance(report, pytest.TestReport)]


def must_have_run(config: pytest.Config) -> list[pytest.TestReport]:
    """Skipped tests whose services CI installs."""
    if not os.environ.get("CI"):
        return []
    return [report for report in reports(config, "skipped") if marker_of(report) in NEED_SERVICES]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and must_have_run(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    tally = {
        outcome: Counter(marker_of(report) for report in reports(config, outcome))
        for outcome in ("passed", "failed", "skipped")
    }
    for marker in sorted(set().union(*tally.values())):
        told = ", ".join(f"{tally[outcome][marker]} {outcome}" for outcome in tally)
        terminalreporter.write_line(f"tests under marker {marker}: {told}")
    for report in must_have_run(config):
        terminalreporter.write_line(f"skipped, though CI has what it needs: {report.nodeid}", red=True)
