"""``JobRequest``: what a user asks for, checked and made into a ``JobSpec`` before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .calls import JSONObject
from .errors import InvalidInputError
from .jobs import Job, JobSpec, check_job_id
from .paths import remote_path
from .script import (
    INPUT,
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
    :param inputs: one text for each element of an array over a list
    """

    script: str | None = None
    script_path: str | None = None
    options: Mapping[str, str | None] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    job_name: str | None = None
    working_directory: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    inputs: tuple[str, ...] = ()

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
        array: object = None,
        array_limit: object = None,
    ) -> JobRequest:
        """Check everything that can be checked without the gateway.

        :param array: indices as sbatch takes them, a range, or a list with an input for each element
        :param array_limit: how many elements may run at once
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
        inputs: tuple[str, ...] = ()
        if array is not None:
            if given.get("array") is not None:
                raise InvalidInputError("array", "is given twice: as array and in sbatch_options.")
            inputs = _inputs(array, env or {})
            given["array"] = range(len(inputs)) if inputs else array
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
        checked = cls(
            script=text,
            script_path=path,
            options=options,
            env=variables,
            job_name=check_job_name(job_name) if job_name else None,
            working_directory=where,
            stdout=_pattern(stdout, "stdout"),
            stderr=_pattern(stderr, "stderr"),
            inputs=inputs,
        )
        return checked if array_limit is None else checked._limited(array_limit)

    def _limited(self, limit: object) -> JobRequest:
        """The same, with a limit of elements that run at once."""
        if self.array is None:
            raise InvalidInputError("array_limit", "is for job arrays, and this job is none.")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise InvalidInputError("array_limit", f"{limit!r} is no number of elements.")
        if "%" in self.array:
            raise InvalidInputError("array_limit", f"is given twice: {self.array} has a limit of its own.")
        return replace(self, options={**self.options, "array": f"{self.array}%{limit}"})

    @property
    def array(self) -> str | None:
        """The array specification, of the options or else of the script."""
        return self.all_options.get("array")

    @property
    def all_options(self) -> Mapping[str, str | None]:
        """Options of the script, and those that win over them."""
        own = script_directives(self.script) if self.script is not None else ()
        return {**{name: value for name, value, _ in own}, **self.options}

    def spec(
        self,
        name: str,
        *,
        base_directory: str,
        directory: str | None = None,
        rest_mode: bool = False,
        account: str | None = None,
    ) -> JobSpec:
        """The job to submit.

        :param name: its name
        :param base_directory: where a directory of its own is made if the user named none
        :param directory: name of that directory, if it is not the job's
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
            script = render_script(script, lines, self.env if in_script else {}, self.inputs)
        env = {} if in_script else dict(self.env)
        if rest_mode:
            env = {"PATH": _REST_PATH} | env
        stem = "slurm-%A_%a" if self.array else "slurm-%j"
        where = self.working_directory or remote_path(directory or name, "job_name", base=base_directory)
        return JobSpec(
            name=name,
            working_directory=where,
            script=script,
            script_path=self.script_path,
            account=carried.get("account") or account,
            partition=carried.get("partition"),
            reservation=carried.get("reservation"),
            constraints=carried.get("constraint"),
            stdout=_inside(where, self.stdout or f"{stem}.out"),
            stderr=_inside(where, self.stderr or f"{stem}.err"),
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


def result_of(
    job: Job,
    *,
    spec: JobSpec,
    system: str,
    submitted_at: str,
    array: str | None,
    earlier: Sequence[tuple[Job, Iterable[int]]] = (),
) -> JSONObject:
    """What a submit task returns: plain JSON.

    :param job: last sight of the job
    :param spec: what was submitted; accounting's record of a short job lacks much of it
    :param submitted_at: ISO 8601
    :param array: the array specification, if it is an array
    :param earlier: former jobs of the same array, and the indices that completed in each
    """
    stdout, stderr = spec.stdout or "", spec.stderr or ""

    def where(pattern: str, index: int | None, of: Job = job) -> str:
        name = spec.name if of is job else of.name or spec.name
        return expand_pattern(
            pattern, job_id=of.job_id, name=name, user=of.user, index=index, array_job_id=of.job_id
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
        ran = dict.fromkeys([*array_indices(array), *(item.index for item in job.elements)], job)
        ran |= {index: of for of, indices in earlier for index in indices}
        jobs = {of.job_id: of for of in ran.values()}
        known = {(job_id, item.index): item for job_id, of in jobs.items() for item in of.elements}
        result["elements"] = [
            {
                "index": index,
                "job_id": of.job_id,
                "state": element.state.value if element else "UNKNOWN",
                "exit_code": element.exit_code if element else None,
                "signal": element.signal if element else None,
                "elapsed": element.elapsed if element else None,
                "stdout": where(stdout, index, of),
                "stderr": where(stderr, index, of),
            }
            for index, of in sorted(ran.items())
            for element in [known.get((of.job_id, index))]
        ]
    return result


def _inputs(given: object, env: Mapping[str, object]) -> tuple[str, ...]:
    """A text for each element of a list: text and numbers as they are, all else as JSON; none of indices."""
    if isinstance(given, str | range):
        return ()
    if not isinstance(given, Sequence) or isinstance(given, bytes):
        raise InvalidInputError(
            "array",
            f"{type(given).__name__} is neither text like '0-99%10', nor a range, nor a list of inputs.",
        )
    if not given:
        raise InvalidInputError("array", "the list of inputs is empty.")
    if INPUT in env:
        raise InvalidInputError(f'env["{INPUT}"]', "is where each element of the array finds its input.")
    return tuple(_input(f"array[{index}]", value) for index, value in enumerate(given))


def _input(where: str, value: object) -> str:
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    try:
        return check_env({INPUT: value if plain else json.dumps(value, ensure_ascii=False)}, where)[INPUT]
    except (TypeError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(where, f"cannot be written as JSON: {error}.") from error


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
