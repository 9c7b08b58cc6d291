"""Operators that submit and cancel jobs."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk.exceptions import AirflowSkipException, AirflowTaskTimeout
from jinja2 import TemplateNotFound

from airflow_hpc_provider.client.calls import JSONObject
from airflow_hpc_provider.client.errors import (
    HpcError,
    InvalidInputError,
    JobFailedError,
    JobLostError,
    NotFoundError,
    WatchError,
)
from airflow_hpc_provider.hooks.hpc import HpcHook
from airflow_hpc_provider.links import HpcJobLink
from airflow_hpc_provider.tasks import HpcTask, carried, deadline, default_deferrable
from airflow_hpc_provider.triggers.jobs import HpcJobTrigger
from airflow_hpc_provider.watch import JobWatch, Outcome, Verdict

if TYPE_CHECKING:
    from airflow_hpc_provider.client.jobs import Job, JobSpec
    from airflow_hpc_provider.client.request import JobRequest
    from airflow_hpc_provider.client.session import Client
    from airflow_hpc_provider.client.variation import Completed, Rules, Variation
    from airflow_hpc_provider.logs import JobLogs
    from airflow_hpc_provider.submission import OnExisting, Submission

__all__ = ["HpcCancelJobOperator", "HpcSubmitJobOperator"]

# A job is looked at so many seconds after it was sent: a twin shows by then, and a very short job is over.
_SETTLES_AFTER = 2.0
# Airflow 3.3 may fail a task that is resumed within seconds of its deferral, so the trigger keeps quiet at
# first.
_QUIET = 5.0
# So many lines at the end of stderr tell of a failure.
_ERROR_LINES = 30


class HpcSubmitJobOperator(HpcTask):
    """Submit a Slurm job through the gateway, wait for its end, and return what became of it.

    The job is found again by its name after a lost answer or a dead worker, so that it runs once. Its
    working directory is made if it is missing. Afterwards the rendered fields of the task show under
    ``submitted`` and ``submitted_script`` what was sent, with its ``#SBATCH`` lines; of ``env`` and ``array``
    without the values of names like ``password`` or ``token``. Events of its outlets tell job id, name,
    system, state and working directory.

    :param script: the job script: its text, or the name of a ``.sh``, ``.sbatch`` or ``.slurm`` file, found
        and rendered like any Airflow template
    :param script_path: absolute path of a script on the system, instead of ``script``
    :param sbatch_options: options as sbatch's long names (``nodes``, ``ntasks``, ``cpus_per_task``, ``gpus``,
        ``mem``, ``time`` as text or ``timedelta``, ``array``, …); they become ``#SBATCH`` lines and win over
        the script's own
    :param array: makes it a job array: indices as sbatch takes them (``"0-99%10"``), a ``range``, or a list
        of inputs, of which each element finds its own in the variable ``HPC_INPUT``: text and numbers as
        they are, all else as JSON. An empty list skips the task
    :param array_limit: how many elements may run at once
    :param env: environment variables of the job
    :param job_name: first part of the job's name; a digest of the task instance is added. Default: task id
    :param working_directory: absolute path where the job runs; ``{working_dir}`` in it stands for the
        connection's. Default: a directory of its own below that, named like the job
    :param account: account to charge. Default: the connection's
    :param partition: partition to run in
    :param stdout: path or Slurm pattern of the output file, relative to the working directory.
        Default: ``slurm-%j.out`` (arrays: ``slurm-%A_%a.out``)
    :param stderr: the same for standard error. Default: ``slurm-%j.err``
    :param after_ok: jobs that must complete first, as Slurm dependencies: a list of ids or of the outputs of
        the tasks that submitted them with ``wait=False``, so that this job queues while they run
    :param after_not_ok: jobs that must fail first
    :param after_any: jobs that must end first
    :param after: jobs that must start first
    :param on_existing: what a retry does with a job of an earlier try that waits, runs or has completed:
        ``attach`` to it (default), ``fail``, or cancel it and ``resubmit``
    :param escalate: factors by which ``mem`` and ``time`` grow when the job ends OUT_OF_MEMORY or TIMEOUT;
        then another one is submitted at once, without a retry of the task: ``{"mem": 2.0, "time": 1.5}``
    :param max_escalations: how many jobs may follow the first one so
    :param resubmit_failed_indices: where another job follows an array that failed, let it run only those
        elements that did not complete; they work in the directory of the first
    :param wait: wait for the end of the job; False returns at once
    :param deferrable: wait in the triggerer, without holding a worker.
        Default: Airflow's ``[operators] default_deferrable``
    :param poll_interval: seconds between two looks at the most; a fresh job is looked at more often
    :param pending_grace: seconds for which the job may wait for what does not come by itself, such as a
        dependency that failed; then it is cancelled and the task fails. Default: for ever, with a warning
    :param gateway_patience: seconds for which a gateway that cannot be asked, or calls the system unhealthy,
        is waited for; then the task fails, and the job goes on
    :param cancel_on_kill: cancel the job when the task is killed by a user or by its time-out
    :param log_interval: seconds between two reads of the job's output for the task log, while it runs; quiet
        files are read less often. None logs no output: only a failure shows the end of stderr
    :param log_limit: bytes of output that go to the task log at the most; the end of it always does
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default: the connection's
    :return: job id, name, system, state, exit code, signal, working directory, stdout and stderr paths,
        submit, start and end time (ISO 8601), elapsed seconds and nodes; of an array a table under
        ``elements``: index, job id, state, exit code, signal, elapsed, stdout and stderr paths
    """

    template_fields: Sequence[str] = (
        "script",
        "script_path",
        "sbatch_options",
        "array",
        "env",
        "job_name",
        "working_directory",
        "account",
        "partition",
        "stdout",
        "stderr",
        "after_ok",
        "after_not_ok",
        "after_any",
        "after",
        "system",
        "hpc_conn_id",
        "submitted_script",
        "submitted",
    )
    template_ext: Sequence[str] = (".sh", ".sbatch", ".slurm")
    template_fields_renderers = {  # noqa: RUF012
        "script": "bash",
        "sbatch_options": "json",
        "env": "json",
        "submitted_script": "bash",
        "submitted": "json",
    }
    operator_extra_links = (HpcJobLink(),)
    # What is submitted is known only when the task has run.
    overwrite_rtif_after_execution = True
    ui_color = "#e8f0f7"

    def __init__(
        self,
        *,
        script: str | None = None,
        script_path: str | None = None,
        sbatch_options: Mapping[str, Any] | None = None,
        array: str | Sequence[Any] | None = None,
        array_limit: int | None = None,
        env: Mapping[str, str] | None = None,
        job_name: str | None = None,
        working_directory: str | None = None,
        account: str | None = None,
        partition: str | None = None,
        stdout: str | None = None,
        stderr: str | None = None,
        after_ok: Any = None,
        after_not_ok: Any = None,
        after_any: Any = None,
        after: Any = None,
        on_existing: OnExisting = "attach",
        escalate: Mapping[str, float] | None = None,
        max_escalations: int = 3,
        resubmit_failed_indices: bool = False,
        wait: bool = True,
        deferrable: bool | None = None,
        poll_interval: float = 30.0,
        pending_grace: float | None = None,
        gateway_patience: float = 1800.0,
        cancel_on_kill: bool = True,
        log_interval: float | None = 15.0,
        log_limit: int = 10 * 2**20,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.script = script
        self.script_path = script_path
        self.sbatch_options = sbatch_options
        self.array = array
        self.array_limit = array_limit
        self.env = env
        self.job_name = job_name
        self.working_directory = working_directory
        self.account = account
        self.partition = partition
        self.stdout = stdout
        self.stderr = stderr
        self.after_ok = after_ok
        self.after_not_ok = after_not_ok
        self.after_any = after_any
        self.after = after
        if on_existing not in ("attach", "fail", "resubmit"):
            raise InvalidInputError("on_existing", f"{on_existing!r} is not one of attach, fail, resubmit.")
        self.on_existing = on_existing
        self.escalate = escalate
        self.max_escalations = max_escalations
        self.resubmit_failed_indices = resubmit_failed_indices
        self.wait = wait
        self.deferrable = default_deferrable() if deferrable is None else deferrable
        self.poll_interval = poll_interval
        self.pending_grace = pending_grace
        self.gateway_patience = gateway_patience
        self.cancel_on_kill = cancel_on_kill
        if log_interval is not None and log_interval <= 0:
            raise InvalidInputError("log_interval", f"must be above 0 s, or None, not {log_interval}.")
        if log_limit < 1:
            raise InvalidInputError("log_limit", f"must be 1 byte or more, not {log_limit}.")
        self.log_interval = log_interval
        self.log_limit = log_limit
        self.submitted_script: str | None = None
        self.submitted: JSONObject | None = None
        self.job_page: str | None = None
        self._job: tuple[str, str] | None = None
        self._stop: threading.Event | None = None

    # Only ``script`` may name a template file: Airflow would take a remote path or a variable that ends in
    # ``.sh`` for one, too.
    def resolve_template_files(self) -> None:
        """Read the script's template file, if it names one."""
        fields, self.template_fields = self.template_fields, ("script",)
        try:
            super().resolve_template_files()
        finally:
            self.template_fields = fields

    def render_template(
        self, content: Any, context: Any, jinja_env: Any = None, seen_oids: Any = None
    ) -> Any:
        """Render a value; a name that ends in ``.sh`` is a file only if it is the script's."""
        if not (isinstance(content, str) and content.endswith(tuple(self.template_ext))):
            return super().render_template(content, context, jinja_env, seen_oids)
        if content != self.script or "\n" in content:
            return str(super().render_template(content + " ", context, jinja_env, seen_oids))[:-1]
        try:
            return super().render_template(content, context, jinja_env, seen_oids)
        except TemplateNotFound as error:
            raise InvalidInputError(
                "script", f"there is no file {content!r} beside the DAG or in its template_searchpath."
            ) from error

    def execute(self, context: Any) -> JSONObject:
        """Submit, or find the job of an earlier try, and wait."""
        with self._stoppable() as stop:
            return self._run(context, stop)

    def execute_complete(self, context: Any, event: Any) -> JSONObject:
        """Take up the task after the trigger's verdict."""
        from airflow_hpc_provider.submitted import kept

        verdict, carry = carried(event)
        self.submitted_script, self.submitted = kept(context.get("task_state_store"))
        self._link(context, carry)
        logs = self._logs(carry)
        with self._stoppable() as stop:
            with self.hook.client() as client:
                self._show(client, verdict, logs)
                if not self._goes_on(verdict, carry):
                    return self._tell(context, self._finish(client, verdict, carry, logs))
            return self._run(context, stop)

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[threading.Event]:
        """An event that ``on_kill`` sets."""
        # Made here, not in the constructor: an operator must be copied, and an event cannot be.
        self._stop = stop = threading.Event()
        try:
            yield stop
        finally:
            self._stop = None

    def _run(self, context: Any, stop: threading.Event) -> JSONObject:
        from airflow_hpc_provider.client.jobs import Job
        from airflow_hpc_provider.client.states import JobState

        if isinstance(self.array, list | tuple) and not self.array:
            raise AirflowSkipException("The array's list of inputs is empty: there is nothing to run.")
        hook = self.hook
        # Whatever can be seen to be wrong without the gateway is refused before it is asked for anything.
        self._rules(self._request(self.system or hook.settings.system or "", _any_working_dir))
        with hook.client() as client:
            system = hook.system(client, self.system)
            resolve = functools.partial(hook.resolve_path, client, system)
            request = self._request(system.name, resolve)
            shown = self._request(system.name, resolve, masked=True)
            rules = self._rules(request)
            base = request.working_directory or hook.working_dir(client, system)
            account = hook.settings.account

            def spec_for(name: str, variation: Variation, rules: Rules = rules) -> JobSpec:
                return rules.request_for(variation).spec(
                    name,
                    base_directory=base,
                    directory=variation.directory,
                    rest_mode=system.rest_mode,
                    account=account,
                )

            shown_for = functools.partial(spec_for, rules=replace(rules, request=shown))
            while True:
                submission, seen = self._submit(
                    client, system.name, rules, spec_for, shown_for, context=context, stop=stop
                )
                if stop.is_set():
                    self._stopped(client, context)
                spec = spec_for(submission.name, submission.variation)
                array = rules.request_for(submission.variation).array
                carry = {
                    "system": system.name,
                    "job_id": submission.job_id,
                    "account": spec.account,
                    "spec": {
                        key: getattr(spec, key) for key in ("name", "working_directory", "stdout", "stderr")
                    },
                    "since": datetime.fromtimestamp(submission.since, tz=UTC).isoformat(),
                    "array": array,
                    "variation": submission.variation.to_json(),
                }
                self._link(context, carry)
                if not self.wait:
                    pending = Job(job_id=submission.job_id, state=JobState.PENDING)
                    return self._tell(context, self._result(client, pending, carry))
                watch = JobWatch(
                    system=system.name,
                    job_id=submission.job_id,
                    since=submission.since,
                    array=array,
                    name=submission.name,
                    pending_grace=self.pending_grace,
                    patience=self.gateway_patience,
                    deadline=deadline(context, self.execution_timeout),
                    poll_interval=self.poll_interval,
                )
                logs = self._logs(carry)
                verdict = self._wait(client, watch, seen, carry, stop, logs=logs)
                if verdict.outcome is Outcome.STOPPED:
                    self._stopped(client, context)
                self._show(client, verdict, logs)
                if not self._goes_on(verdict, carry):
                    return self._tell(context, self._finish(client, verdict, carry, logs))

    def on_kill(self) -> None:
        """Tell the waiting loop; whether the job is cancelled depends on why the process is killed."""
        if self._stop is not None:
            self._stop.set()

    def _request(self, system: str, resolve: Callable[[str], str], *, masked: bool = False) -> JobRequest:
        """What the user asked for; masked, as it may be shown."""
        from airflow_hpc_provider import submitted
        from airflow_hpc_provider.client.request import DEPENDENCIES, JobRequest, dependency

        options = self.sbatch_options
        if after := dependency({name: getattr(self, name) for name in DEPENDENCIES}, system=system):
            if "dependency" in (options or {}):
                raise InvalidInputError(
                    "sbatch_options['dependency']", "is given beside after_ok and its like; give one of them."
                )
            options = {**(options or {}), "dependency": after}
        return JobRequest.checked(
            script=self.script,
            script_path=resolve(self.script_path) if self.script_path else self.script_path,
            sbatch_options=options,
            env=submitted.masked(self.env) if masked else self.env,
            job_name=self.job_name,
            working_directory=resolve(self.working_directory) if self.working_directory else None,
            account=self.account,
            partition=self.partition,
            stdout=self.stdout,
            stderr=self.stderr,
            array=submitted.masked(self.array) if masked else self.array,
            array_limit=self.array_limit,
        )

    def _rules(self, request: JobRequest) -> Rules:
        from airflow_hpc_provider.client.variation import Rules

        return Rules.checked(
            request,
            escalate=self.escalate,
            at_most=self.max_escalations,
            failed_only=self.resubmit_failed_indices,
        )

    def _submit(
        self,
        client: Client,
        system: str,
        rules: Rules,
        spec_for: Callable[[str, Variation], JobSpec],
        shown_for: Callable[[str, Variation], JobSpec],
        *,
        context: Any,
        stop: threading.Event,
    ) -> tuple[Submission, Job | None]:
        """The job that this task stands for, and what was seen of it a moment later."""
        from airflow_hpc_provider import submitted
        from airflow_hpc_provider.client import files
        from airflow_hpc_provider.client.variation import Variation
        from airflow_hpc_provider.submission import Identity, Store, settle, submit_once

        ti = context["ti"]
        kept = context.get("task_state_store")
        store = Store(kept)
        spec_for("check", Variation())  # refuses what this system would ignore before anything is made on it
        made: set[str] = set()
        varied: dict[str, Variation] = {}
        self.submitted_script, self.submitted = submitted.kept(kept)

        def varying(name: str, variation: Variation) -> JobSpec:
            varied[name] = variation
            return spec_for(name, variation)

        def prepare(spec: JobSpec) -> None:
            shown = shown_for(spec.name, varied[spec.name])
            self.submitted_script, self.submitted = submitted.keep(kept, shown)
            for path in (
                spec.working_directory,
                *(p.rpartition("/")[0] for p in (spec.stdout, spec.stderr) if p),
            ):
                if path and path not in made and "%" not in path:
                    made.add(path)
                    client.send(files.make_directory(system, path, parents=True))

        submission = submit_once(
            client,
            system,
            varying,
            prepare=prepare,
            base_name=rules.request.job_name or self.task_id,
            identity=Identity(
                ti.dag_id, ti.run_id, ti.task_id, ti.map_index if ti.map_index is not None else -1
            ),
            store=store,
            max_tries=ti.max_tries,
            on_existing=self.on_existing,
            vary=rules.after,
        )
        seen = None
        self._job = (system, submission.job_id)
        ti.xcom_push(key="job_id", value=submission.job_id)
        if submission.adopted:
            return submission, seen
        self.log.info("Submitted job %s (%s) to system %s.", submission.job_id, submission.name, system)
        try:
            if not stop.wait(_SETTLES_AFTER):
                submission, seen = settle(client, system, submission, store)
        except AirflowTaskTimeout:
            self._cancel(client, *self._job)
            raise
        except HpcError as error:
            self.log.warning("%s", error)
        if submission.adopted:
            self._job = (system, submission.job_id)
            ti.xcom_push(key="job_id", value=submission.job_id)
        return submission, seen

    def _link(self, context: Any, carry: JSONObject) -> None:
        """Keep the address of the job's page, for as long as the task runs and afterwards."""
        from airflow_hpc_provider.links import job_page

        ui_url = self.hook.settings.ui_url
        if ui_url is None:
            return
        self.job_page = job_page(
            ui_url, system=carry["system"], job_id=carry["job_id"], account=carry.get("account")
        )
        context["ti"].xcom_push(key=HpcJobLink().xcom_key, value=self.job_page)

    def _tell(self, context: Any, result: JSONObject) -> JSONObject:
        """Tell the outlets of the job, and return its result."""
        from airflow_hpc_provider.assets import tell_outlets

        told = ("job_id", "name", "system", "state", "working_directory")
        tell_outlets(context, self.outlets, [{name: result[name] for name in told}])
        return result

    def _wait(
        self,
        client: Client,
        watch: JobWatch,
        seen: Job | None,
        carry: JSONObject,
        stop: threading.Event,
        *,
        logs: JobLogs | None,
    ) -> Verdict:
        from airflow_hpc_provider import metrics

        try:
            if verdict := self._first_look(client, watch, seen):
                metrics.detected(watch, verdict, time.time())
                return verdict
            if self.deferrable:
                self._defer(watch, carry, logs)
            if stop.wait(watch.delay(time.time())):
                return Verdict(Outcome.STOPPED)
            return self.follow(client, watch, stop, logs=logs)
        except AirflowTaskTimeout:
            self._cancel(client, watch.system, watch.job_id)
            raise

    def _first_look(self, client: Client, watch: JobWatch, seen: Job | None) -> Verdict | None:
        """What is to be seen before anybody waits: a job that is over needs no trigger."""
        try:
            # A list tells too little of an array.
            if seen is None or watch.array:
                seen = client.send(watch.look())
            return watch.saw(seen, time.time())
        except HpcError as error:
            return watch.missed(error, time.time())

    def _defer(self, watch: JobWatch, carry: JSONObject, logs: JobLogs | None) -> NoReturn:
        arguments = asdict(watch) | {"not_before": time.time() + _QUIET}
        if logs is not None:
            logs.begun = time.time()
        trigger = HpcJobTrigger(
            hpc_conn_id=self.hpc_conn_id,
            carry=carry,
            cancel_on_kill=self.cancel_on_kill,
            logs=logs.to_json() if logs else None,
            **arguments,
        )
        self.log.info("%s: %s. Waiting in the triggerer.", watch.describe(), watch.news)
        self.defer_to(trigger, until=watch.deadline)

    def _logs(self, carry: JSONObject) -> JobLogs | None:
        """What to log of the job's output: from where a trigger got to, or from the beginning."""
        from airflow_hpc_provider.logs import JobLogs

        if self.log_interval is None:
            return None
        if known := carry.get("logs"):
            return JobLogs.from_json(known)
        spec = carry["spec"]
        return JobLogs(
            system=carry["system"],
            job_id=carry["job_id"],
            name=spec["name"],
            stdout=spec["stdout"] or "",
            stderr=spec["stderr"] or "",
            array=carry["array"],
            interval=self.log_interval,
            limit=self.log_limit,
        )

    def _show(self, client: Client, verdict: Verdict, logs: JobLogs | None) -> None:
        """Log what is missing of the output of a job that is over."""
        if logs is None or verdict.outcome is not Outcome.DONE:
            return
        from airflow_hpc_provider.client.jobs import Job
        from airflow_hpc_provider.logs import finish

        finish(client, logs, Job.from_json(verdict.data), self.say)

    def _goes_on(self, verdict: Verdict, carry: JSONObject) -> bool:
        """Whether another job shall follow one that had too little of something."""
        from airflow_hpc_provider import metrics
        from airflow_hpc_provider.client.jobs import Job
        from airflow_hpc_provider.client.variation import Variation

        if verdict.outcome is not Outcome.DONE or not self.escalate:
            return False
        job = Job.from_json(verdict.data)
        rules = self._rules(self._request(carry["system"], _any_working_dir))
        lacking = rules.grows(job.state, Variation.from_json(carry["variation"]))
        if lacking:
            metrics.job_ended(job, carry["system"], datetime.fromisoformat(carry["since"]))
            self.log.warning(
                "Job %s on system %s is %s: another one gets %g times the %s.",
                *(job.job_id, carry["system"], job.state.value, rules.factors[lacking], lacking),
            )
        return lacking is not None

    def _stopped(self, client: Client, context: Any) -> None:
        """The process was told to end: by a user, who wants the job gone, or by those who run Airflow."""
        system, job_id = self._job or ("", "")
        ti = context["ti"]
        states = ti.get_task_states(
            dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
        )
        if not self.cancel_on_kill or "running" in states.get(ti.run_id, {}).values():
            raise WatchError(
                f"This worker was told to end; job {job_id} on system {system} goes on; a retry finds it."
            )
        self._cancel(client, system, job_id)
        raise WatchError(f"The task was ended by a user; job {job_id} on system {system} is cancelled.")

    def _cancel(self, client: Client, system: str, job_id: str) -> None:
        from airflow_hpc_provider.client import jobs

        if not self.cancel_on_kill:
            return
        try:
            cancelled = client.send(jobs.cancel(system, job_id))
            self.log.info("Job %s %s.", job_id, "cancelled" if cancelled else "was over already")
        except HpcError as error:
            self.log.warning("Job %s could not be cancelled: %s", job_id, error)

    def _result(self, client: Client, job: Job, carry: JSONObject) -> JSONObject:
        from airflow_hpc_provider.client.jobs import JobSpec
        from airflow_hpc_provider.client.request import result_of
        from airflow_hpc_provider.client.variation import Variation

        completed = Variation.from_json(carry["variation"]).completed
        return result_of(
            job,
            spec=JobSpec(**carry["spec"]),
            system=carry["system"],
            submitted_at=carry["since"],
            array=carry["array"],
            earlier=[_earlier(client, carry["system"], some) for some in completed],
        )

    def _finish(
        self, client: Client, verdict: Verdict, carry: JSONObject, logs: JobLogs | None
    ) -> JSONObject:
        """The one end of both ways to wait."""
        from airflow_hpc_provider import metrics
        from airflow_hpc_provider.client.jobs import Job
        from airflow_hpc_provider.client.states import JobState

        system, job_id = carry["system"], carry["job_id"]
        if verdict.outcome is Outcome.TIMEOUT:
            self._cancel(client, system, job_id)
            raise AirflowTaskTimeout(verdict.message)
        if verdict.outcome is Outcome.STUCK:
            self._cancel(client, system, job_id)
            raise JobFailedError(verdict.message, state=JobState.PENDING.value)
        if verdict.outcome is Outcome.LOST:
            raise JobLostError(verdict.message)
        if verdict.outcome is not Outcome.DONE:
            raise WatchError(
                f"{verdict.message} The job goes on; a retry finds it again.", transient=verdict.transient
            )
        job = Job.from_json(verdict.data)
        metrics.job_ended(job, system, datetime.fromisoformat(carry["since"]))
        result = self._result(client, job, carry)
        self.log.info(
            "Job %s on system %s: %s, exit code %s, %s s on %s.",
            *(job_id, system, job.state.value, job.exit_code, job.elapsed, job.nodes or "no node"),
        )
        if job.state.succeeded:
            return result
        shown = _telling_element(result) if carry["array"] else result
        known = logs.tail(shown.get("index")) if logs else None
        errors = "\n".join(known) if known is not None else _tail(client, system, shown["stderr"])
        raise JobFailedError(
            _failure(job, system, result, errors), state=job.state.value, transient=job.state.infrastructure
        )


class HpcCancelJobOperator(HpcTask):
    """Cancel a job. A job that is over is left as it is, and that is no failure.

    :param job: id of the job, or the output of the task that submitted it
    :param hpc_conn_id: id of a connection of type ``firecrest``
    :param system: name of the system. Default: that of ``job`` if it is an output, else the connection's
    :return: True if the job was cancelled, False if it was over already
    """

    template_fields: Sequence[str] = ("job", "system", "hpc_conn_id")

    def __init__(self, *, job: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.job = job

    def execute(self, context: Any) -> bool:
        """Cancel."""
        from airflow_hpc_provider.client import jobs

        del context
        job_id = jobs.check_job_id(self.job, "job")
        hook: HpcHook = self.hook
        system = hook.system_name(self.system or _system_of(self.job))
        with hook.client() as client:
            if client.send(jobs.cancel(system, job_id)):
                self.log.info("Job %s on system %s cancelled.", job_id, system)
                return True
            # Slurm says the same of an ended job and of an id it never gave.
            state = client.send(jobs.get(system, job_id)).state
        self.log.info("Job %s on system %s was over already: %s.", job_id, system, state.value)
        return False


def _earlier(client: Client, system: str, completed: Completed) -> tuple[Job, list[int]]:
    """A former job of an array, and which of its elements count; the scheduler may have forgotten it."""
    from airflow_hpc_provider.client.jobs import Element, Job, get
    from airflow_hpc_provider.client.script import array_indices
    from airflow_hpc_provider.client.states import JobState

    indices = array_indices(completed.indices)
    try:
        job = client.send(get(system, completed.job_id))
    except HpcError:
        elements = tuple(Element(index=index, state=JobState.COMPLETED, exit_code=0) for index in indices)
        job = Job(job_id=completed.job_id, state=JobState.COMPLETED, elements=elements)
    return replace(job, name=completed.name), indices


def _any_working_dir(path: Any) -> Any:
    return path.replace("{working_dir}", "/any") if isinstance(path, str) else path


def _system_of(job: Any) -> str | None:
    return job.get("system") if isinstance(job, Mapping) else None


def _telling_element(result: JSONObject) -> JSONObject:
    """The element of an array whose output says most: the first that failed, else the first."""
    from airflow_hpc_provider.client.states import JobState

    elements: list[JSONObject] = result["elements"] or [result]
    return next((item for item in elements if item["state"] != JobState.COMPLETED.value), elements[0])


def _tail(client: Client, system: str, path: str) -> str:
    """The end of an output file; there may be none, and a file system may show it some seconds late."""
    from airflow_hpc_provider.client import files

    for pause in (2.0, 0.0):
        try:
            return client.send(files.tail(system, path, lines=_ERROR_LINES)).rstrip()
        except NotFoundError:
            time.sleep(pause)
        except HpcError:
            return ""
    return ""


def _failure(job: Job, system: str, result: JSONObject, errors: str) -> str:
    """What a person needs to know about a job that failed."""
    from airflow_hpc_provider.client.states import advice

    text = f"Job {job.job_id} on system {system} is {job.state.value}"
    told = [f"reason {job.reason}"] if job.reason else []
    if job.signal:
        told.append(f"signal {job.signal}")
    elif job.exit_code is not None:
        told.append(f"exit code {job.exit_code}")
    if job.elapsed is not None:
        told.append(f"after {job.elapsed} s" + (f" of {job.limit} s" if job.limit else ""))
    if job.nodes:
        told.append(f"on {job.nodes}")
    if told:
        text += f" ({', '.join(told)})"
    text += "."
    if failed := job.failed_indices:
        shown = ", ".join(map(str, failed[:50])) + (", …" if len(failed) > 50 else "")
        text += f" Failed indices: {shown} ({len(failed)} of {len(result['elements'])})."
    if hint := advice(job.state, job.reason):
        text += f" {hint}"
    where = _telling_element(result)["stderr"] if "elements" in result else result["stderr"]
    return f"{text}\nEnd of {where}:\n{errors}" if errors else f"{text}\nNothing was written to {where}."
