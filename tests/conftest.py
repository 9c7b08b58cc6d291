"""For all tests. Its being here also puts ``tests`` on the import path: ``from loopback import serve``."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow_home import airflow_db, connect, connected, isolate, submitted
from hypothesis import settings
from live_slurm import make_slurm_gateway, slurm, slurm_gateway
from tally import pytest_runtest_makereport, pytest_sessionfinish, pytest_terminal_summary
from transfers import fernet, small_limits

from airflow_hpc_provider.devgateway import Gateway

__all__ = [
    "airflow_db",
    "connect",
    "connected",
    "fernet",
    "make_slurm_gateway",
    "pytest_runtest_makereport",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
    "slurm",
    "slurm_gateway",
    "small_limits",
    "submitted",
]

# Before anything imports Airflow: tests never touch the user's own.
isolate()

# The same examples everywhere, and no failure because the machine is busy.
settings.register_profile("steady", deadline=None, derandomize=True)
# Where the same tests run once more, with other versions.
settings.register_profile("quick", settings.get_profile("steady"), max_examples=5)
settings.load_profile("steady")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Tests wait more than they compute. One running Airflow serves all of its tests, in one process.

    Each process starts a Slurm of its own, which has little to do: four share the tests.
    """
    chosen = config.option.markexpr
    few = {"airflow": 0, "slurm": 4}
    return min(
        (number for name, number in few.items() if name in chosen and f"not {name}" not in chosen),
        default=2 * (os.cpu_count() or 1),
    )


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway with local jobs for all tests: use names and folders of your own."""
    with Gateway(tmp_path_factory.mktemp("gateway"), scheduler="local") as started:
        yield started


@pytest.fixture
def make_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Gateway]]:
    """Start gateways of one's own, with any argument of Gateway; they stop with the test."""
    started: list[Gateway] = []

    def make(**options: Any) -> Gateway:
        root = options.pop("root", None) or tmp_path_factory.mktemp("gateway")
        options.setdefault("scheduler", "local")
        started.append(Gateway(root, **options).start())
        return started[-1]

    yield make
    for one in started:
        one.stop()


@pytest.fixture(autouse=True)
def _ask_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test asks its gateway for its systems, whatever another test was told."""
    monkeypatch.setattr("airflow_hpc_provider.known.KEEP_SECONDS", 0.0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests run only where ``-m`` names them, also beside another choice of markers."""
    if "slow" in config.option.markexpr:
        return
    left = [item for item in items if item.get_closest_marker("slow") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(left)])
    items[:] = left
