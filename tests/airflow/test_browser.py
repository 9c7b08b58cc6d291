"""What people see: the connections page, a job's log and its links, in a real browser."""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from live_airflow import Airflow, until
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(300)]

# So that Chromium starts as root, and asks nobody but Airflow.
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    # A container has little of it.
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; Playwright's own would have to be fetched."""
    program = shutil.which("chromium")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is missing: install Debian's package chromium")
        pytest.skip("Chromium is missing: install Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, airflow: Airflow) -> Iterator[Page]:
    """A window in which the admin has signed in."""
    page = browser.new_page(base_url=airflow.url, viewport={"width": 1280, "height": 960})
    page.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    page.goto("/")
    page.locator("input[name=username]").fill("admin")
    page.locator("input[name=password]").fill(airflow.password)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("link", name="Home").first).to_be_visible()
    yield page
    page.close()


@pytest.fixture(scope="session")
def shoot(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Page, str], None]:
    """Keep a picture of a page, in the folder HPC_TESTS_ARTIFACTS if that is set."""
    folder = Path(os.environ.get("HPC_TESTS_ARTIFACTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)

    def save(page: Page, name: str) -> None:
        # Menus and dialogs slide in.
        page.wait_for_timeout(700)
        page.screenshot(path=folder / f"{name}.png")

    return save


def fill_in(
    page: Page, airflow: Airflow, conn_id: str, shoot: Callable[[Page, str], None], **changes: str
) -> Locator:
    """Fill in the form for a connection, as a user does; gives the form."""
    given = airflow.gateway.connection()
    host, _, port = given["host"].rpartition(":")
    fields = {"host": host, "port": port, "login": given["login"], "password": given["password"]} | changes
    page.set_viewport_size({"width": 1280, "height": 1600})
    page.goto("/connections")
    page.get_by_role("button", name="Add Connection").click()
    form = page.get_by_role("dialog")
    form.locator("[name=connection_id]").fill(conn_id)
    form.get_by_role("combobox").last.click()
    page.keyboard.type("FirecREST")
    page.get_by_role("option", name="FirecREST (HPC gateway)").click()
    for name, value in fields.items():
        form.locator(f"[name={name}]").fill(value)
    shoot(page, f"connection-form-{conn_id}")
    form.get_by_role("button", name="Extra Fields", exact=True).click()
    # What the pictures show is no path of this machine.
    for name, value in (given["extra"] | {"working_dir": "/scratch/alice"}).items():
        form.locator(f"[name=element_{name}]").fill(value)
    shoot(page, f"connection-form-{conn_id}-extra")
    page.set_viewport_size({"width": 1280, "height": 960})
    return form


ANSWERS = {
    "good": ("Test Connection Successful", "Connected; systems: embedded (healthy)."),
    "bad": (
        "Test Connection Failed",
        re.compile(
            r"^The token endpoint on 127\.0\.0\.1 answered HTTP 401: .* Check the connection's login "
        ),
    ),
}


@pytest.mark.parametrize("conn_id", ANSWERS)
def test_a_connection_is_added_and_tested_in_the_form(page, airflow, shoot, conn_id):
    changes = {"password": "not-the-secret"} if conn_id == "bad" else {}
    title, said = ANSWERS[conn_id]
    form = fill_in(page, airflow, conn_id, shoot, **changes)
    form.get_by_role("button", name="Save").click()
    expect(form).to_be_hidden()
    try:
        row = page.get_by_role("row", name=re.compile(rf"\b{conn_id}\b"))
        row.get_by_role("button", name="Test Connection").click()
        expect(page.get_by_text(title)).to_be_visible()
        expect(page.get_by_text(said)).to_be_visible()
        shoot(page, f"connection-test-{conn_id}")
        assert "not-the-secret" not in page.content()
    finally:
        airflow.call("DELETE", f"connections/{conn_id}")


def test_a_job_that_ran_can_be_read_in_the_browser(page, launch, shoot):
    work = launch("deferred")
    work.run.wait_for("deferred")
    until(lambda: "RUNNING" in work.states(), 60, "the job")
    task = f"/dags/{work.run.dag_id}/runs/{work.run.run_id}/tasks/job"
    page.goto(task)
    lines = page.get_by_text(re.compile(rf"line \d of {work.mark}"))
    # While the job runs.
    expect(lines.first).to_be_visible()
    shoot(page, "task-log-while-the-job-runs")
    work.gate.open()
    work.run.wait("success")
    page.goto(task)
    expect(lines).to_have_count(5)
    shoot(page, "task-log")


class Site(BaseHTTPRequestHandler):
    """The centre's web interface."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(f"<h1>The centre's page</h1><p>{self.path}</p>".encode())

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_ran_is_shown_and_its_page_is_a_click_away(page, airflow, shoot, site):
    given = airflow.gateway.connection()
    extra = json.dumps(given["extra"] | {"ui_url": site})
    airflow.call("POST", "connections", json=given | {"connection_id": "hpc_linked", "extra": extra})
    try:
        run = airflow.trigger("linked")
        run.wait("success", timeout=120)
    finally:
        airflow.call("DELETE", "connections/hpc_linked")
    task = f"/dags/linked/runs/{run.run_id}/tasks/job"
    page.goto(f"{task}/rendered_templates")
    expect(page.get_by_text("#SBATCH --time=00:05:00").first).to_be_visible()
    expect(page.get_by_text("#SBATCH --ntasks=1").first).to_be_visible()
    assert "tell-nobody" not in page.content()
    shoot(page, "task-rendered-script")
    page.goto(f"{task}/details")
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Job page").click()
    expect(opened.value.get_by_role("heading", name="The centre's page")).to_be_visible()
    job_id = airflow.call("GET", f"dags/linked/dagRuns/{run.run_id}/taskInstances/job/xcomEntries/job_id")
    path = f"/compute/systems/embedded/accounts/staff/jobs/{job_id['value']}"
    expect(opened.value.get_by_text(path, exact=True)).to_be_visible()
    shoot(opened.value, "job-page")
