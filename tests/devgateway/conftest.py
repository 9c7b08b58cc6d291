"""The gateway as tests of the gateway itself speak to it."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from airflow_hpc_provider.devgateway import Gateway


class Api:
    """The gateway as plain HTTP, the way a test speaks to it."""

    def __init__(self, gateway: Gateway, system: str | None = None) -> None:
        self.gateway = gateway
        self.system = system or gateway.system
        self.http = httpx.Client(base_url=gateway.url, timeout=20)
        self.http.headers["authorization"] = f"Bearer {gateway.access_token()}"

    def get(self, path: str, /, **params: Any) -> httpx.Response:
        return self.http.get(self.place(path), params=params)

    def post(self, path: str, /, **body: Any) -> httpx.Response:
        return self.http.post(self.place(path), json=body)

    def put(self, path: str, /, **body: Any) -> httpx.Response:
        return self.http.put(self.place(path), json=body)

    def delete(self, path: str, /, **params: Any) -> httpx.Response:
        return self.http.delete(self.place(path), params=params)

    def place(self, path: str) -> str:
        group, _, rest = path.partition("/")
        return f"/{group}/{self.system}/{rest}"

    def try_submit(self, script: str, **job: Any) -> httpx.Response:
        job.setdefault("workingDirectory", str(self.gateway.home))
        return self.post("compute/jobs", job={"script": script, **job})

    def submit(self, script: str, **job: Any) -> str:
        answer = self.try_submit(script, **job)
        assert answer.status_code == 201, answer.text
        return answer.json()["jobId"]

    def jobs(self, job_id: str) -> list[dict[str, Any]]:
        answer = self.get(f"compute/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()["jobs"]

    def state(self, job_id: str) -> str:
        return self.jobs(job_id)[0]["status"]["state"]

    def wait(
        self, job_id: str, until: Callable[[list[dict[str, Any]]], bool] | None = None
    ) -> list[dict[str, Any]]:
        wanted = until or over
        deadline = time.monotonic() + 20
        while not wanted(jobs := self.jobs(job_id)):
            assert time.monotonic() < deadline, jobs
            time.sleep(0.02)
        return jobs

    def wait_until_gone(self, job_id: str) -> None:
        """Until every process of an ended job is gone."""
        deadline = time.monotonic() + 10
        while any(element.process for element in self.gateway.scheduler._named(job_id)):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def wait_for(self, job_id: str, state: str) -> dict[str, Any]:
        return self.wait(job_id, lambda jobs: jobs[0]["status"]["state"].startswith(state))[0]


def over(jobs: list[dict[str, Any]]) -> bool:
    return all(job["status"]["state"].split()[0] not in ("PENDING", "RUNNING") for job in jobs)


@pytest.fixture
def make_api() -> Iterator[Callable[..., Api]]:
    made: list[Api] = []

    def make(gateway: Gateway, system: str | None = None) -> Api:
        made.append(Api(gateway, system))
        return made[-1]

    yield make
    for api in made:
        api.http.close()


@pytest.fixture
def api(gateway: Gateway, make_api: Callable[..., Api]) -> Api:
    return make_api(gateway)
