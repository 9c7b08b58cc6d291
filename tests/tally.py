"""How many tests ran under each marker; and in CI, none that needs a service may have been skipped."""

import os
import re
from collections import Counter
from typing import Any

import pytest

__all__ = ["pytest_runtest_makereport", "pytest_sessionfinish", "pytest_terminal_summary"]

MARKERS = ("slow", "slurm", "airflow")
NEED_SERVICES = ("slurm", "airflow")
# By pytest's names, and by those in the tally.
OUTCOMES = {"passed": "passed", "failed": "failed", "error": "errors", "skipped": "skipped"}

Report = pytest.TestReport | pytest.CollectReport


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    report = yield
    found = [name for name in MARKERS if item.get_closest_marker(name)]
    report.user_properties.append(("marker", found[-1] if found else "default"))
    return report


def marker_of(report: Report) -> str:
    if isinstance(report, pytest.TestReport):
        return str(dict(report.user_properties).get("marker", "default"))
    # A module that was not read to its end may have told no marks: its folder and name tell.
    words = re.split(r"[\W_]", report.nodeid)
    return next((name for name in NEED_SERVICES if name in words), "default")


def reports(config: pytest.Config, outcome: str) -> list[Report]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    found = reporter.stats.get(outcome, []) if reporter else []
    # A module that cannot be collected is told of by every worker.
    modules = {report.nodeid: report for report in found if isinstance(report, pytest.CollectReport)}
    return [*(report for report in found if isinstance(report, pytest.TestReport)), *modules.values()]


def must_have_run(config: pytest.Config) -> list[Report]:
    """Skipped tests and modules whose services CI installs."""
    if not os.environ.get("CI"):
        return []
    return [report for report in reports(config, "skipped") if marker_of(report) in NEED_SERVICES]


def pytest_sessionfinish(session: pytest.Session) -> None:
    passed = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if session.exitstatus in passed and must_have_run(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    tally = {
        told: Counter(marker_of(report) for report in reports(config, outcome))
        for outcome, told in OUTCOMES.items()
    }
    for marker in sorted(set().union(*tally.values())):
        told = ", ".join(f"{counted[marker]} {outcome}" for outcome, counted in tally.items())
        terminalreporter.write_line(f"tests under marker {marker}: {told}")
    for report in must_have_run(config):
        terminalreporter.write_line(f"skipped, though CI has what it needs: {report.nodeid}", red=True)
