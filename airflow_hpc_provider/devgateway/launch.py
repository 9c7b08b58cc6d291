"""From a job to a process: its script, its logs, its environment."""

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .directives import JobOptions
from .jobs import NODE, Element, Job, Site

__all__ = ["Launcher", "PrologError", "fill_pattern", "spawning"]

_SRUN = Path(__file__).with_name("srun.py")
# A script that is still open for writing in another thread's child cannot be executed ("Text file
# busy"), so writing scripts and starting processes take turns.
spawning = threading.Lock()


class PrologError(Exception):
    """The job ends before its script starts: FAILED 0:53."""


class Launcher:
    """Starts elements of jobs as processes of this machine."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def prepare(self, job: Job) -> None:
        """Keep the script where a process can be started from."""
        job.folder.mkdir(parents=True, exist_ok=True)
        script = job.folder / "slurm_script"
        with spawning:
            script.write_text(job.script, encoding="utf-8")
            script.chmod(stat.S_IRWXU)

    def spawn(self, element: Element) -> "subprocess.Popen[bytes]":
        job = element.job
        folder = Path(job.submission.working_directory)
        if not folder.is_dir():
            raise PrologError
        with contextlib.ExitStack() as stack:
            try:
                stdin = stack.enter_context((folder / (job.options.input or "/dev/null")).open("rb"))
                out, err = self._open_logs(element, stack)
            except OSError as error:
                raise PrologError from error
            env = self.environment(element)
            with spawning:
                return subprocess.Popen(  # noqa: S603 - running the user's script is a scheduler's work
                    [str(job.folder / "slurm_script")],
                    cwd=folder,
                    env=env,
                    stdin=stdin,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )

    def _open_logs(self, element: Element, stack: contextlib.ExitStack) -> tuple[Any, Any]:
        mode = "ab" if element.job.options.append else "wb"
        output, error = self.log_paths(element)
        files: list[Any] = []
        for path in (output, error):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.append(stack.enter_context(path.open(mode)) if path != output or not files else files[0])
        return files[0], files[1]

    def environment(self, element: Element) -> dict[str, str]:
        job, options = element.job, element.job.options
        user = self._site.user
        base = {
            "HOME": str(user.home),
            "USER": user.name,
            "LOGNAME": user.name,
            "SHELL": user.shell,
            "PATH": os.environ.get("PATH", os.defpath),
            "TMPDIR": os.environ.get("TMPDIR", "/tmp"),  # noqa: S108 - what every login shell has
            "LANG": os.environ.get("LANG", "C.UTF-8"),
        }
        given = dict(job.submission.env)
        if self._site.rest:
            base = {}
            given = {key: value for key, value in given.items() if value}
        element.steps_folder.mkdir(exist_ok=True)
        env = {**base, **given, **self._slurm_variables(element, options)}
        if "PATH" in env:
            env["PATH"] = f"{self._shim()}{os.pathsep}{env['PATH']}"
        return env

    def _slurm_variables(self, element: Element, options: JobOptions) -> dict[str, str]:
        job = element.job
        values: dict[str, Any] = {
            "SLURM_JOB_ID": element.raw_id,
            "SLURM_JOBID": element.raw_id,
            "SLURM_JOB_NAME": self._site.name(job),
            "SLURM_JOB_USER": self._site.user.name,
            "SLURM_JOB_UID": self._site.user.uid,
            "SLURM_JOB_ACCOUNT": self._site.account(job),
            "SLURM_JOB_PARTITION": self._site.partition(job),
            "SLURM_JOBNODELIST": NODE,
            "SLURMNODELIST": NODE,
            "SLURM_JOB_NUMNODES": 1,
            "SLURM_NNODES": 1,
            "SLURMNODEID": 0,
            "SLURMDNODENAME": NODE,
            "SLURM_CLUSTER_NAME": self._site.cluster,
            "SLURM_SUBMIT_DIR": job.submission.working_directory,
            "SLURM_SUBMIT_HOST": socket.gethostname(),
            "SLURM_CPUS_ONNODE": options.cpus,
            "SLURM_JOB_CPUS_PERNODE": options.cpus,
            "SLURM_NTASKS": options.tasks,
            "SLURM_NPROCS": options.tasks,
            "SLURM_TASKS_PERNODE": options.tasks,
            "SLURM_PROCID": 0,
            "SLURM_LOCALID": 0,
            "SLURM_GTIDS": 0,
            "SLURM_CPUS_PER_TASK": options.cpus_per_task,
            "SLURM_MEM_PERNODE": options.mem or None,
            "SLURM_MEM_PER_CPU": options.mem_per_cpu or None,
            "SLURM_GPUS": options.gpus or None,
            "SLURM_RESTART_COUNT": element.restarts or None,
            "DEVGATEWAY_STEPS": element.steps_folder,
        }
        if options.array is not None:
            indices = options.array.indices
            values |= {
                "SLURM_ARRAY_JOB_ID": job.job_id,
                "SLURM_ARRAY_TASK_ID": element.index,
                "SLURM_ARRAY_TASK_COUNT": len(indices),
                "SLURM_ARRAY_TASK_MIN": indices[0],
                "SLURM_ARRAY_TASK_MAX": indices[-1],
                "SLURM_ARRAY_TASK_STEP": indices[1] - indices[0] if len(indices) > 1 else 1,
            }
        return {key: str(value) for key, value in values.items() if value is not None}

    def _shim(self) -> Path:
        """The folder with the stand-in for srun."""
        folder = self._site.spool / "bin"
        shim = folder / "srun"
        if not shim.exists():
            folder.mkdir(exist_ok=True)
            with spawning:
                shim.write_text(
                    f'#!/bin/sh\nexec "{sys.executable}" -I -S "{_SRUN}" "$@"\n', encoding="utf-8"
                )
                shim.chmod(0o755)
        return folder

    def log_paths(self, element: Element) -> tuple[Path, Path]:
        options = element.job.options
        default = "slurm-%j.out" if element.index is None else "slurm-%A_%a.out"
        folder = Path(element.job.submission.working_directory)
        output = folder / self._filled(options.output or default, element)
        return output, folder / self._filled(options.error, element) if options.error else output

    def _filled(self, pattern: str, element: Element) -> str:
        values = {
            "j": element.raw_id,
            "J": element.raw_id,
            "A": element.job.job_id,
            "a": "4294967294" if element.index is None else str(element.index),
            "x": self._site.name(element.job),
            "u": self._site.user.name,
            "N": NODE,
            "n": "0",
            "t": "0",
            "s": "batch",
        }
        return fill_pattern(pattern, values)

    def note(self, element: Element) -> None:
        """What slurmstepd writes into a job's error log when it is not the job that ends itself."""
        why = " DUE TO TIME LIMIT" if element.state == "TIMEOUT" else ""
        at = time.strftime("%Y-%m-%dT%H:%M:%S")
        text = f"slurmstepd: error: *** JOB {element.raw_id} ON {NODE} CANCELLED AT {at}{why} ***\n"
        with contextlib.suppress(OSError), self.log_paths(element)[1].open("a", encoding="utf-8") as file:
            file.write(text)


def fill_pattern(pattern: str, values: dict[str, str]) -> str:
    """Slurm's file name patterns; ``%4j`` pads with zeros, a backslash switches all of it off."""
    if "\\" in pattern:
        return pattern.replace("\\", "")
    text, rest = "", pattern
    while "%" in rest:
        plain, _, rest = rest.partition("%")
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        key, rest = rest[len(digits) : len(digits) + 1], rest[len(digits) + 1 :]
        value = "%" if key == "%" else values.get(key, f"%{digits}{key}")
        width = min(int(digits or 0), 10)
        text += plain + (value.zfill(width) if key in values and value.isdigit() else value)
    return text + rest
