"""``JobRequest``: what a user asks for, checked and made into a ``JobSpec`` before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .calls import JSONObject
from .errors import InvalidInputError
from .jobs import Job, JobSpec, check_job_id
from .paths import remote_path
from .script import (
    SCHEDULER_FIELDS,
    array_indices,
    check_env,
    check_job_name,
    check_script,
    directives,
    expand_pattern,
    exports_env,
    plain_env_value,
    render_script,
    script_directives,
)

__all__ = ["DEPENDENCIES", "JobRequest", "dependency", "result_of"]

# Parameters that make a job wait for others, and what sbatch calls them.
DEPENDENCIES = {
    "after_ok": "afterok",
    "after_not_ok": "afternotok",
    "after_any": "afterany",
    "after": "after",
}

# A job in REST mode has only the environment it is sent; without this not even `srun hostname` is found.
_REST_PATH = "/usr/local/bin:/usr/bin:/bin"
# Options of a script that FirecREST's own fields take over, since it sends those with every job.
_LIFTED = {"job-name", "chdir", "output", "error"} | set(SCHEDULER_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A checked request for a job.

    :param script: text of the job script; or
    :param script_path: absolute path of a script on the system
    :param options: sbatch options as long names with values, None for flags
    :param env: environment variables of the job
    :param job_name: first part of the job's name, or None for the task's
    :param working_directory: where the job runs, or None for a directory of its own
    :param stdout: path or pattern for standard output; relative to the working directory
    :param stderr: path or pattern for standard error; None for one beside stdout
    """

    script: str | None = None
    script_path: str | None = None
    options: Mapping[str, str | None] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    job_name: str | None = None
    working_directory: str | None = None
    stdout: str | None = None
    stderr: str | None = None

    @classmethod
    def checked(
        cls,
        *,
        script: object = None,
        script_path: object = None,
        sbatch_options: Mapping[str, object] | None = None,
        env: Mapping[str, object] | None = None,
        job_name: object = None,
        working_directory: object = None,
        account: object = None,
        partition: object = None,
        stdout: object = None,
        stderr: object = None,
    ) -> JobRequest:
        """Check everything that can be checked without the gateway.

        :raises InvalidInputError: naming the parameter at fault
        """
        if (script is None) == (script_path is None):
            raise InvalidInputError("script", "give either script (text or a template file) or script_path.")
        given = dict(sbatch_options or {})
        for name, value in (("account", account), ("partition", partition)):
            if value not in (None, ""):
                if given.get(name) is not None:
                    raise InvalidInputError(name, f"is given twice: as {name} and in sbatch_options.")
                given[name] = value
        options = directives(given)
        if script_path is not None and (lost := [name for name in options if name not in SCHEDULER_FIELDS]):
            raise InvalidInputError(
                "sbatch_options", f"a script on the system is sent as it is: put {', '.join(lost)} into it."
            )
        text = check_script(script) if script is not None else None
        if text is not None:
            own = {name: value for name, value, _ in script_directives(text)}
            job_name = job_name or own.get("job-name")
            working_directory = working_directory or own.get("chdir")
            stdout, stderr = stdout or own.get("output"), stderr or own.get("error")
            lifted = {name: own[name] for name in SCHEDULER_FIELDS if own.get(name) and name not in options}
            options = {**options, **lifted}
        variables = check_env(env or {})
        if variables and (text is None or not exports_env(text)):
            _refuse_cut_values(variables)
        path = None if script_path is None else remote_path(script_path, "script_path", unquoted=True)
        where = None if not working_directory else remote_path(working_directory, "working_directory")
        return cls(
            script=text,
            script_path=path,
            options=options,
            env=variables,
            job_name=check_job_name(job_name) if job_name else None,
            working_directory=where,
            stdout=_pattern(stdout, "stdout"),
            stderr=_pattern(stderr, "stderr"),
        )

    @property
    def array(self) -> str | None:
        """The array specification, of the options or else of the script."""
        if "array" in self.options:
            return self.options["array"]
        if self.script is None:
            return None
        return next((value for name, value, _ in script_directives(self.script) if name == "array"), None)

    def spec(
        self, name: str, *, base_directory: str, rest_mode: bool = False, account: str | None = None
    ) -> JobSpec:
        """The job to submit.

        :param name: its name
        :param base_directory: where a directory of its own is made if the user named none
        :param rest_mode: the system ignores ``#SBATCH`` lines; what needs one is refused
        :param account: account to charge where the user named none
        :raises InvalidInputError: the system would silently ignore an option
        """
        if rest_mode:
            self._check_rest_mode()
        carried = {key: value for key, value in self.options.items() if key in SCHEDULER_FIELDS}
        lines = {key: value for key, value in self.options.items() if key not in SCHEDULER_FIELDS}
        in_script = self.script is not None and (not self.env or exports_env(self.script))
        script = self.script
        if script is not None:
            script = render_script(script, lines, self.env if in_script else {})
        env = {} if in_script else dict(self.env)
        if rest_mode:
            env = {"PATH": _REST_PATH} | env
        stem = "slurm-%A_%a" if self.array else "slurm-%j"
        directory = self.working_directory or remote_path(name, "job_name", base=base_directory)
        return JobSpec(
            name=name,
            working_directory=directory,
            script=script,
            script_path=self.script_path,
            account=carried.get("account") or account,
            partition=carried.get("partition"),
            reservation=carried.get("reservation"),
            constraints=carried.get("constraint"),
            stdout=_inside(directory, self.stdout or f"{stem}.out"),
            stderr=_inside(directory, self.stderr or f"{stem}.err"),
            env=env,
        )

    def _check_rest_mode(self) -> None:
        """REST mode drops directives without a word: an array would run once, a time limit not at all."""
        dropped = [f"--{name}" for name in self.options if name not in SCHEDULER_FIELDS]
        if self.script is not None:
            dropped += [f"--{name}" for name, _, _ in script_directives(self.script) if name not in _LIFTED]
        if dropped:
            raise InvalidInputError(
                "sbatch_options",
                f"this system is in REST mode and would ignore {', '.join(dict.fromkeys(dropped))}; "
                f"it takes only {', '.join(sorted(SCHEDULER_FIELDS))}, job name, directory and output files.",
            )


def dependency(after: Mapping[str, object], *, system: str) -> str | None:
    """A value for ``--dependency``, of jobs that others submitted.

    :param after: by parameter (``after_ok``, …): a job or a list of jobs, each an id or the output of the
        task that submitted it; None for none
    :param system: name of the system, on which the jobs must be too; empty if it is not known yet
    :return: as ``afterok:12:13,afterany:14``; all must be satisfied
    :raises InvalidInputError: one is no job, or on another system
    """
    told = []
    for name, given in after.items():
        if given is None:
            continue
        some = list(given) if isinstance(given, list | tuple | set) else [given]
        ids = [check_job_id(job, name) for job in some]
        for job, job_id in zip(some, ids, strict=True):
            where = job.get("system") if isinstance(job, Mapping) else None
            if system and where is not None and str(where).lower() != system.lower():
                raise InvalidInputError(
                    name, f"job {job_id} is on system {where}; a job on {system} cannot wait for it."
                )
        if ids:
            told.append(":".join([DEPENDENCIES[name], *dict.fromkeys(ids)]))
    return ",".join(told) or None


def result_of(job: Job, *, spec: JobSpec, system: str, submitted_at: str, array: str | None) -> JSONObject:
    """What a submit task returns: plain JSON.

    :param job: last sight of the job
    :param spec: what was submitted; accounting's record of a short job lacks much of it
    :param submitted_at: ISO 8601
    :param array: the array specification, if it is an array
    """
    stdout, stderr = spec.stdout or "", spec.stderr or ""

    def where(pattern: str, index: int | None) -> str:
        return expand_pattern(
            pattern, job_id=job.job_id, name=spec.name, user=job.user, index=index, array_job_id=job.job_id
        )

    result: JSONObject = {
        "job_id": job.job_id,
        "name": spec.name,
        "system": system,
        "state": job.state.value,
        "reason": job.reason,
        "exit_code": job.exit_code,
        "signal": job.signal,
        "working_directory": spec.working_directory,
        "stdout": where(stdout, None),
        "stderr": where(stderr, None),
        "submit_time": submitted_at,
        "start_time": job.start.isoformat() if job.start else None,
        "end_time": job.end.isoformat() if job.end else None,
        "elapsed": job.elapsed,
        "nodes": job.nodes,
    }
    if array:
        known = {element.index: element for element in job.elements}
        result["elements"] = [
            {
                "index": index,
                "state": known[index].state.value if index in known else "UNKNOWN",
                "exit_code": known[index].exit_code if index in known else None,
                "signal": known[index].signal if index in known else None,
                "elapsed": known[index].elapsed if index in known else None,
                "stdout": where(stdout, index),
                "stderr": where(stderr, index),
            }
            for index in sorted({*array_indices(array), *known})
        ]
    return result


def _refuse_cut_values(env: Mapping[str, str]) -> None:
    """Outside a shell script the variables travel in FirecREST's own field, which cuts some values."""
    for name, value in env.items():
        if not plain_env_value(value):
            raise InvalidInputError(
                f'env["{name}"]',
                "this value cannot be passed to a script that is on the system or no shell script: commas, "
                "quotes, newlines and empty values are lost there. Wrap the program in a shell script.",
            )


def _pattern(value: object, name: str) -> str | None:
    """A path or pattern for an output file, absolute or inside the working directory."""
    if value is None or value == "":
        return None
    checked = remote_path(value, name, base="/")
    return checked if str(value).startswith("/") else checked.lstrip("/")


def _inside(directory: str, pattern: str) -> str:
    return pattern if pattern.startswith("/") else f"{directory.rstrip('/')}/{pattern}"
