"""The calls about jobs and systems against the embedded gateway, by worker and by event loop."""

import time

import pytest
from live_airflow import until
from loopback import WORLDS
from schedulers import job_when, over

from airflow_hpc_provider.client import jobs, systems
from airflow_hpc_provider.client.auth import ClientCredentials
from airflow_hpc_provider.client.errors import (
    HpcError,
    NotFoundError,
    RejectedError,
    UnavailableError,
    UnsupportedError,
)
from airflow_hpc_provider.client.jobs import JobSpec
from airflow_hpc_provider.client.retry import RetryPolicy
from airflow_hpc_provider.client.states import JobState
from airflow_hpc_provider.devgateway import Gateway

MODES = {"ssh-like": "ssh", "rest-like": "rest"}
POLICY = RetryPolicy(attempts=2, base=0.01)


def auth_of(gateway):
    return ClientCredentials(
        gateway.url,
        token_url=gateway.token_url,
        client_id=gateway.client_id,
        client_secret=gateway.client_secret,
    )


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    root = tmp_path_factory.mktemp("gateway")
    with Gateway(root, systems=[*MODES], connection_mode=MODES, scheduler="local") as gateway:
        yield gateway


@pytest.fixture(params=WORLDS, ids=["blocking", "on-loop"])
def client(gateway, request):
    with request.param(gateway.url, auth_of(gateway), policy=POLICY) as client:
        yield client
    gateway.faults.clear()


@pytest.fixture
def submit(gateway, client):
    def submit(commands, system="ssh-like", **given):
        whole = {"name": "job", "working_directory": str(gateway.home), "script": f"#!/bin/sh\n{commands}\n"}
        return client.send(jobs.submit(system, JobSpec(**whole | given)))

    return submit


@pytest.fixture
def ended(client):
    def ended(job_id, system="ssh-like", until=over, **given):
        return job_when(client.send, system, job_id, until, **given)

    return ended


@pytest.mark.parametrize("system", [*MODES])
def test_a_job_runs_and_tells_how_it_went(gateway, submit, ended, system):
    out = gateway.home / f"{system}.out"
    job_id = submit(
        "echo $GREETING", system, name="hello", stdout=str(out), account="staff", env={"GREETING": "hi"}
    )
    job = ended(job_id, system)
    assert (job.state, job.exit_code, job.signal) == (JobState.COMPLETED, 0, None)
    assert (job.job_id, job.name, job.account, job.user) == (job_id, "hello", "staff", gateway.user)
    assert job.working_directory == str(gateway.home)
    assert job.start <= job.end
    assert job.elapsed is not None
    assert out.read_text() == "hi\n"


@pytest.mark.parametrize(
    ("script", "state", "exit_code", "signal"),
    [("exit 3", "FAILED", 3, None), ("kill -SEGV $$", "FAILED", 0, 11)],
)
def test_a_job_that_fails_tells_why(submit, ended, script, state, exit_code, signal):  # noqa: PLR0917 - fixtures
    job = ended(submit(script))
    assert (job.state.value, job.exit_code, job.signal) == (state, exit_code, signal)


def test_a_job_over_its_time_limit_is_told_with_its_signal(submit, ended, gateway):
    job_id = submit("exec sleep 30")
    ended(job_id, until=lambda job: job.state.running)
    gateway.scheduler.end(job_id, "TIMEOUT")
    job = ended(job_id)
    assert (job.state, job.exit_code, job.signal) == (JobState.TIMEOUT, 0, 15)


def test_a_waiting_job_is_told_with_its_reason_and_without_guesses(submit, client):
    job_id = submit("#SBATCH --begin=now+1hour\ntrue")
    job = client.send(jobs.get("ssh-like", job_id))
    assert (job.state, job.reason, job.start, job.end, job.exit_code) == (
        JobState.PENDING,
        "BeginTime",
        None,
        None,
        None,
    )
    assert client.send(jobs.cancel("ssh-like", job_id)) is True


@pytest.mark.parametrize("system", [*MODES])
def test_a_job_is_cancelled_once_and_then_there_is_nothing_left_to_cancel(submit, ended, client, system):
    job_id = submit("exec sleep 30", system)
    ended(job_id, system, until=lambda job: job.state.running)
    assert client.send(jobs.cancel(system, job_id)) is True
    assert ended(job_id, system).state is JobState.CANCELLED
    # REST mode says yes to everything.
    assert client.send(jobs.cancel(system, job_id)) is (system == "rest-like")


def test_a_job_that_nobody_knows_cannot_be_cancelled(client):
    assert client.send(jobs.cancel("ssh-like", "99999")) is False


def test_a_job_that_nobody_knows_is_not_found(client):
    with pytest.raises(NotFoundError, match="Job not found"):
        client.send(jobs.get("ssh-like", "99999"))
    with pytest.raises(NotFoundError, match="System not found"):
        client.send(jobs.get("nowhere", "1"))


def test_an_array_is_one_job_from_the_start_to_its_end(submit, client):
    job_id = submit("#SBATCH --array=0-3%2\nsleep 0.2; exit $SLURM_ARRAY_TASK_ID")
    seen = []

    def ended(job):
        seen.append(job)
        return job.state.final

    job_when(client.send, "ssh-like", job_id, ended, expected=range(4))
    assert JobState.COMPLETED not in [job.state for job in seen]
    assert (seen[-1].state, seen[-1].failed_indices) == (JobState.FAILED, (1, 2, 3))
    assert [item.exit_code for item in seen[-1].elements] == [0, 1, 2, 3]


def test_a_cancelled_array_is_over_with_all_its_elements(submit, ended, client):
    job_id = submit("#SBATCH --array=1-50%1\nexec sleep 30")
    ended(job_id, until=lambda job: job.state.running)
    assert client.send(jobs.cancel("ssh-like", job_id)) is True
    job = ended(job_id, expected=range(1, 51))
    assert (job.state, len(job.elements)) == (JobState.CANCELLED, 50)


def test_running_elements_are_known_by_the_ids_of_the_array(submit, ended, client):
    job_id = submit("#SBATCH --array=0-2\nexec sleep 30")
    ended(
        job_id, until=lambda job: all(item.state.running for item in job.elements) and len(job.elements) == 3
    )
    assert {f"{job_id}_0", f"{job_id}_1", f"{job_id}_2"} < client.send(jobs.ids("ssh-like", job_id))
    client.send(jobs.cancel("ssh-like", job_id))


def test_jobs_are_listed_by_name_and_window(submit, ended, client):
    ids = [
        submit("true", name="listed-one"),
        submit("true", name="listed-one"),
        submit("true", name="listed-two"),
    ]
    for job_id in ids:
        ended(job_id)
    assert [job.job_id for job in client.send(jobs.listing("ssh-like", name="listed-one", window="1h"))][
        -2:
    ] == ids[:2]
    assert {*ids} <= {
        job.job_id for job in client.send(jobs.listing("ssh-like", all_users=True, account="staff"))
    }
    assert client.send(jobs.listing("ssh-like", name="listed-never")) == ()


def test_metadata_hold_the_script_and_the_paths_of_its_output(submit, client, gateway):
    job_id = submit("true", stdout=f"{gateway.home}/meta-%j.out", stderr=f"{gateway.home}/meta-%j.err")
    told = client.send(jobs.metadata("ssh-like", job_id))
    assert (told.job_id, told.script) == (job_id, "#!/bin/sh\ntrue\n")
    assert (told.stdout, told.stderr) == (
        f"{gateway.home}/meta-{job_id}.out",
        f"{gateway.home}/meta-{job_id}.err",
    )
    with pytest.raises(UnsupportedError):
        client.send(jobs.metadata("rest-like", "1"))


def test_a_command_runs_inside_a_job(submit, ended, client, gateway):
    mark = gateway.home / f"attached-{time.monotonic_ns()}"
    job_id = submit("exec sleep 30")
    ended(job_id, until=lambda job: job.state.running)
    assert client.send(jobs.attach("ssh-like", job_id, f"echo $SLURM_JOB_ID > {mark}")) is None
    until(lambda: mark.exists() and mark.read_text(), 10, "the command's output", pause=0.02)
    assert mark.read_text() == f"{job_id}\n"
    client.send(jobs.cancel("ssh-like", job_id))


def test_a_command_inside_a_job_ends_with_it(submit, ended, client, gateway):
    mark = gateway.home / f"attached-{time.monotonic_ns()}"
    job_id = submit(f"until [ -e {mark} ]; do sleep 0.1; done")
    ended(job_id, until=lambda job: job.state.running)
    with pytest.raises(HpcError) as caught:
        client.send(jobs.attach("ssh-like", job_id, f"touch {mark}; exec sleep 30"))
    assert caught.value.status == 500
    assert "exit_status:143" in str(caught.value)
    assert "srun: Job step aborted" in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"script": "hostname\n"},
        {"partition": "none"},
        {"account": "nobody"},
        {"script": None, "script_path": "/no/such/script"},
    ],
    ids=["no interpreter", "partition", "account", "no script"],
)
def test_what_the_scheduler_refuses_is_refused_for_good(submit, given):
    with pytest.raises(RejectedError) as caught:
        submit("true", **given)
    assert not caught.value.transient
    assert not caught.value.ambiguous


def test_a_script_on_the_system_is_run(submit, ended, gateway):
    path = gateway.home / "on-the-system.sh"
    path.write_text("#!/bin/sh\nexit 7\n")
    assert ended(submit("", script=None, script_path=str(path))).exit_code == 7


def test_a_lost_answer_leaves_the_fate_of_a_job_open(submit, client, gateway):
    gateway.faults.lose_answer(on="submit")
    with pytest.raises(HpcError, match="may or may not") as caught:
        submit("true", name="lost")
    assert caught.value.ambiguous
    # Of a short job Slurm's accounting learns the name late.
    until(lambda: client.send(jobs.listing("ssh-like", name="lost")), 15, "the job in the list", pause=0.1)


def test_a_look_is_repeated_through_trouble(submit, client, gateway):
    job_id = submit("exec sleep 30")
    for spoil in (
        lambda: gateway.faults.respond(500, on="job"),
        lambda: gateway.faults.cut(on="job"),
        lambda: gateway.faults.truncate(on="job"),
        lambda: gateway.faults.bad_gateway(on="job"),
        lambda: gateway.faults.rate_limit(0, on="job"),
    ):
        spoil()
        assert client.send(jobs.get("ssh-like", job_id)).job_id == job_id
    client.send(jobs.cancel("ssh-like", job_id))


def test_an_expired_token_is_fetched_anew(client, gateway):
    client.send(systems.listing())
    gateway.faults.expire_tokens()
    assert client.send(systems.listing())


# --- systems ----------------------------------------------------------------------------------------------


def test_the_systems_are_told_with_modes_limits_and_health(client, gateway):
    told = {system.name: system for system in client.send(systems.listing())}
    assert {name: system.connection_mode for name, system in told.items()} == MODES
    system = told["ssh-like"]
    assert (system.scheduler, system.transfer_method, system.max_direct_bytes) == ("slurm", "s3", 5 * 2**20)
    assert system.default_directory == str(gateway.home.parent)
    assert system.healthy
    gateway.set_health("scheduler", healthy=False, message="gone fishing")
    try:
        ill = next(item for item in client.send(systems.listing()) if item.name == "ssh-like")
        assert [(service.kind, service.message) for service in ill.unhealthy] == [
            ("scheduler", "gone fishing")
        ]
        with pytest.raises(UnavailableError) as caught:
            client.send(jobs.get("ssh-like", "1"))
        assert not caught.value.ambiguous
    finally:
        gateway.set_health("scheduler", healthy=True)


def test_nodes_partitions_reservations_and_the_user_are_told(client, gateway):
    assert [node.name for node in client.send(systems.nodes("ssh-like"))] == ["nid001"]
    assert [(item.name, item.up) for item in client.send(systems.partitions("ssh-like"))] == [
        ("normal", True),
        ("debug", True),
    ]
    assert client.send(systems.reservations("ssh-like")) == ()
    user = client.send(systems.user_info("ssh-like"))
    assert (user.name, user.accounts, user.default_account) == (gateway.user, ("staff", "users"), "staff")
    assert {*client.send(systems.liveness()).checked} == {*MODES}
