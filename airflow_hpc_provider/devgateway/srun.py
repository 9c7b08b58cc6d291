"""A stand-in for `srun` inside local jobs: starts the tasks of one step and waits for them.

The scheduler puts a two-line shell script of this name into a job's PATH where Slurm is not
installed. It runs on the standard library alone, isolated from the job's Python packages.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# The options of srun that take no value; every other one swallows the next word unless it has a "=".
_FLAGS = frozenset(
    {"-l", "--label", "-K", "--kill-on-bad-exit", "-u", "--unbuffered", "-v", "--verbose", "-Q", "--quiet"}
    | {"-O", "--overcommit", "-s", "--oversubscribe", "-H", "--hold", "--overlap", "--exact", "--exclusive"}
    | {"--pty", "--no-kill"}
)
_COUNTS = {"-n": "ntasks", "--ntasks": "ntasks", "-c": "cpus", "--cpus-per-task": "cpus", "-N": "nodes"}


def split(words: list[str]) -> tuple[int, list[str]]:
    """How many tasks, and the command."""
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word == "--":
            break
        name, equals, value = word.partition("=")
        if not equals and len(word) > 2 and not word.startswith("--"):
            name, value, equals = word[:2], word[2:], "="
        if not equals and name not in _FLAGS and words:
            value = words.pop(0)
        if _COUNTS.get(name) == "ntasks" and value.isdigit():
            tasks = int(value)
    return tasks, words


def start(rank: int, tasks: int, step: str, command: list[str]) -> "subprocess.Popen[bytes]":
    given = {
        "SLURM_PROCID": rank,
        "SLURM_LOCALID": rank,
        "SLURM_NODEID": 0,
        "SLURM_NTASKS": tasks,
        "SLURM_NPROCS": tasks,
        "SLURM_STEP_ID": step,
        "SLURM_STEPID": step,
        "SLURM_STEP_NUM_TASKS": tasks,
    }
    env = os.environ | {key: str(value) for key, value in given.items()}
    return subprocess.Popen(command, env=env)  # noqa: S603 - the job's own command


def next_step(folder: Path) -> int:
    """Steps are numbered from 0; creating the file claims the number."""
    number = 0
    while True:
        try:
            (folder / f"step.{number}").touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return number


def main(words: list[str]) -> int:
    tasks, command = split(words)
    if not command:
        sys.stderr.write("srun: fatal: No command given to execute.\n")
        return 1
    folder = Path(os.environ["DEVGATEWAY_STEPS"])
    step = next_step(folder)
    began = time.time()
    try:
        started = [start(rank, tasks, str(step), command) for rank in range(tasks)]
    except OSError as error:
        sys.stderr.write(f"srun: error: execve(): {command[0]}: {error.strerror}\n")
        codes = [error.errno or 1]
    else:
        codes = [task.wait() for task in started]
    worst = max(codes, key=abs)
    line = f"{began} {time.time()} {worst} {Path(command[0]).name}\n"
    (folder / f"step.{step}").write_text(line, encoding="utf-8")
    return 128 - worst if worst < 0 else worst


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SystemExit(main(sys.argv[1:]))
