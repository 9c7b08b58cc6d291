"""Slurm's own commands behind the same interface as the local scheduler."""

import contextlib
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from .directives import Submission
from .files import user_name
from .records import Record, Step
from .scheduler import SchedulerError, User, command_failed

__all__ = ["SlurmScheduler", "slurm_is_there"]

# A separator that no job name holds.
_SEPARATOR = "\x1f"
_SACCT = (
    "JobID JobIDRaw JobName State Reason ExitCode Account Partition User Group WorkDir Cluster NodeList "
    "AllocNodes Priority Submit Start End ElapsedRaw TimelimitRaw"
)
_SQUEUE = {
    "raw_id": "%A",
    "array_id": "%F",
    "nodes": "%N",
    "node_count": "%D",
    "group": "%g",
    "account": "%a",
    "name": "%j",
    "partition": "%P",
    "priority": "%Q",
    "state": "%T",
    "reason": "%r",
    "used": "%M",
    "submit": "%V",
    "start": "%S",
    "end": "%e",
    "limit": "%l",
    "user": "%u",
    "folder": "%Z",
}
_SINFO = "%N %c %O %e %f %o %n %T %R %w %m %C"
_SECONDS = 5.0
_NOT_KEPT = "accounting storage is disabled"
_TOO_LATE = "Command execution timeout limit exceeded."


def slurm_is_there() -> bool:
    """Whether Slurm's commands are installed and its controller answers."""
    if shutil.which("sinfo") is None:
        return False
    try:
        return _run(["sinfo", "--noheader"]).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _run(
    command: list[str], text: str | None = None, env: dict[str, str] | None = None, **options: Any
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603 - fixed commands, no shell
        command,
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_SECONDS,
        check=False,
        env=env,
        **options,
    )


def _other_user(name: str) -> pwd.struct_passwd | None:
    """Whom root acts for; nobody else may act for others."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return entry if os.geteuid() == 0 and entry.pw_uid != 0 else None


class SlurmScheduler:
    """Jobs in the Slurm of this machine: of the tokens' user where root runs the gateway, else of its own."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.version = "22.05.8"
        self._cluster = ""
        self._submitted: list[str] = []
        self._other = _other_user(user.name)
        # Slurm knows the process's own user, whatever name the tokens carry.
        self._login = self._other.pw_name if self._other else user_name(os.getuid())

    def start(self) -> None:
        if self._other:
            os.chown(self.user.home, self._other.pw_uid, self._other.pw_gid)
        match = re.search(r"\d+\.\d+\.\d+", self._said(["sinfo", "--version"]))
        self.version = match.group() if match else self.version
        cluster = re.search(r"ClusterName\s*=\s*(\S+)", self._said(["scontrol", "show", "config"]))
        self._cluster = cluster.group(1) if cluster else ""

    def stop(self) -> None:
        """Jobs do not outlive the gateway they came through."""
        if self._submitted:
            with contextlib.suppress(SchedulerError):
                self._completed(["scancel", "--quiet", *self._submitted])

    def submit(self, submission: Submission) -> str:
        exported = ",".join(["ALL", *(f"{key}={value}" for key, value in submission.env.items())])
        options = {
            "chdir": submission.working_directory,
            "export": exported,
            "partition": submission.partition,
            "reservation": submission.reservation,
            "account": submission.account,
            "job-name": submission.name,
            "error": submission.standard_error,
            "output": submission.standard_output,
            "input": submission.standard_input,
            "constraint": submission.constraint,
        }
        command = ["sbatch", *(f"--{key}={value}" for key, value in options.items() if value)]
        if submission.script_path:
            command += ["--", submission.script_path]
        said = self._said(command, None if submission.script_path else submission.script)
        match = re.search(r"Submitted batch job (\d+)", said)
        if match is None:
            raise SchedulerError("Unable to submit new job.")
        self._submitted.append(match.group(1))
        return match.group(1)

    def records(self, job_id: str | None = None) -> list[Record]:
        """Both sources as FirecREST merges them: accounting first, the queue where it knows better."""
        found: dict[str, Record] = {}
        try:
            for record in [*self._accounted(job_id), *self._queued(job_id)]:
                if record.job_id not in found or record.state == "PENDING":
                    found[record.job_id] = record
        except SchedulerError as error:
            raise SchedulerError("Error executing Slurm command.", caused_by=[error.message]) from error
        return list(found.values())

    def cancel(self, job_id: str) -> None:
        done = self._completed(["scancel", "--verbose", job_id])
        if done.returncode or "error:" in done.stderr:
            raise command_failed(done.stderr, status=done.returncode)

    def metadata(self, job_id: str) -> list[dict[str, Any]]:
        shown = self._completed(["scontrol", "show", "job", job_id])
        script = self._completed(["scontrol", "write", "batch_script", job_id, "-"])
        if shown.returncode or script.returncode:
            return []
        blocks = [_lines(block) for block in shown.stdout.strip().split("\n\n")]
        mine = next((block for block in blocks if block.get("JobId", "").split()[0] == job_id), blocks[0])
        return [
            {
                "jobId": job_id,
                "script": script.stdout,
                "standardInput": mine.get("StdIn"),
                "standardOutput": mine.get("StdOut"),
                "standardError": mine.get("StdErr"),
            }
        ]

    def attach(self, job_id: str, command: str) -> None:
        self._said(["srun", "--overlap", f"--jobid={job_id}", "/bin/sh", "-c", command])

    def nodes(self) -> list[dict[str, Any]]:
        rows = _rows(self._said(["sinfo", "--noheader", "--Node", "--format", _joined(_SINFO.split())]))
        return [_node(list(group)) for _, group in groupby(sorted(rows), key=lambda row: row[0])]

    def partitions(self) -> list[dict[str, Any]]:
        shown = self._said(["scontrol", "show", "partitions", "--oneliner"])
        return [
            {
                "name": words["PartitionName"],
                "cpus": int(words["TotalCPUs"]),
                "totalNodes": int(words["TotalNodes"]),
                "partition": words["State"],
            }
            for words in map(_words, shown.splitlines())
            if "PartitionName" in words
        ]

    def reservations(self) -> list[dict[str, Any]]:
        shown = self._said(["scontrol", "show", "reservations", "--oneliner"])
        return [
            {
                "name": words["ReservationName"],
                "nodeList": words["Nodes"],
                "endTime": _moment(words["EndTime"]) or 0,
                "startTime": _moment(words["StartTime"]) or 0,
                "features": None if words["Features"] == "(null)" else words["Features"],
                "state": words["State"].lower(),
            }
            for words in map(_words, shown.splitlines())
            if "ReservationName" in words
        ]

    def accounts(self) -> list[dict[str, Any]]:
        command = ["sacctmgr", "--noheader", "--parsable2", "show", "user", self._login, "withassoc"]
        done = self._completed([*command, "format=account,defaultaccount"])
        pairs = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == 1]
        if done.returncode or not pairs:
            first = self.user.accounts[0]
            return [{"name": name, "default": name == first} for name in self.user.accounts]
        return [{"name": name, "default": name == default} for name, default in pairs]

    # --- commands ---

    def _completed(self, command: list[str], text: str | None = None) -> "subprocess.CompletedProcess[str]":
        env = {
            "HOME": str(self.user.home),
            "USER": self._login,
            "LOGNAME": self._login,
            "SHELL": self.user.shell,
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "SLURM_TIME_FORMAT": "%s",
            **{key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ},
        }
        if command[0] == "sbatch":
            # The job would inherit it.
            del env["SLURM_TIME_FORMAT"]
        options: dict[str, Any] = {}
        if self._other:
            # In a directory that this user may enter.
            options = {
                "user": self._other.pw_uid,
                "group": self._other.pw_gid,
                "extra_groups": (),
                "cwd": "/",
            }
        try:
            return _run(command, text, env, **options)
        except subprocess.TimeoutExpired:
            raise SchedulerError(_TOO_LATE, status=408) from None

    def _said(self, command: list[str], text: str | None = None) -> str:
        done = self._completed(command, text)
        if done.returncode:
            raise command_failed(done.stderr, status=done.returncode)
        return done.stdout

    # --- records ---

    def _accounted(self, job_id: str | None) -> Iterator[Record]:
        which = [f"--user={self._login}", "--starttime=now-7days"]
        if job_id is not None:
            which = ["--allusers", f"--jobs={job_id}"]
        fields = _SACCT.replace(" ", ",")
        command = ["sacct", "--noheader", "--parsable2", f"--delimiter={_SEPARATOR}", f"--format={fields}"]
        done = self._completed([*command, *which])
        if _NOT_KEPT in done.stderr:
            # Without accounting only the queue is left, which forgets a job minutes after its end.
            return
        if done.returncode:
            raise command_failed(done.stderr, status=done.returncode)
        yield from _sacct_records(_rows(done.stdout))

    def _queued(self, job_id: str | None) -> Iterator[Record]:
        which = [f"--user={self._login}"] if job_id is None else [f"--jobs={job_id}"]
        command = ["squeue", "--noheader", f"--format={_joined(_SQUEUE.values())}"]
        done = self._completed([*command, *which])
        if done.returncode and "Invalid job id specified" not in done.stderr:
            raise command_failed(done.stderr, status=done.returncode)
        for row in _rows(done.stdout):
            yield _squeue_record(dict(zip(_SQUEUE, row, strict=True)), self._cluster)


def _joined(fields: Iterable[str]) -> str:
    return _SEPARATOR.join(fields)


def _rows(text: str) -> list[list[str]]:
    return [line.split(_SEPARATOR) for line in text.splitlines() if _SEPARATOR in line]


def _words(line: str) -> dict[str, str]:
    """``Key=value`` pairs of scontrol's one-line form."""
    return dict(word.partition("=")[::2] for word in line.split() if "=" in word)


def _lines(block: str) -> dict[str, str]:
    """The pairs of scontrol's long form whose values may hold blanks: one on each line."""
    return dict(line.strip().partition("=")[::2] for line in block.splitlines() if "=" in line)


def _sacct_records(rows: list[list[str]]) -> Iterator[Record]:
    fields = _SACCT.split()
    table = [dict(zip(fields, row, strict=True)) for row in rows]
    for row in table:
        if "." in row["JobIDRaw"]:
            continue
        steps = [one for one in table if one["JobID"].startswith(f"{row['JobID']}.")]
        code, signal = _exit(row["ExitCode"])
        yield Record(
            job_id=row["JobID"],
            base_id=row["JobID"].partition("_")[0],
            raw_id=row["JobIDRaw"],
            source="sacct",
            name=row["JobName"],
            state=row["State"],
            reason=row["Reason"],
            account=row["Account"],
            partition=row["Partition"],
            user=row["User"],
            group=row["Group"],
            working_directory=row["WorkDir"],
            cluster=row["Cluster"],
            nodes=row["NodeList"],
            node_count=int(row["AllocNodes"] or 0),
            priority=int(row["Priority"] or 0),
            submitted=_moment(row["Submit"]) or 0,
            limit=_minutes(row["TimelimitRaw"]),
            exit_code=code,
            signal=signal,
            start=_moment(row["Start"]),
            end=_moment(row["End"]),
            elapsed=int(row["ElapsedRaw"] or 0),
            steps=tuple(map(_step, steps)),
        )


def _step(row: dict[str, str]) -> Step:
    code, signal = _exit(row["ExitCode"])
    return Step(
        row["JobID"],
        row["JobName"],
        row["State"],
        code,
        signal,
        _moment(row["Start"]),
        _moment(row["End"]),
        int(row["ElapsedRaw"] or 0),
    )


def _squeue_record(row: dict[str, str], cluster: str) -> Record:
    return Record(
        job_id=row["raw_id"],
        base_id=row["array_id"],
        raw_id=row["raw_id"],
        source="squeue",
        name=row["name"],
        state=row["state"],
        reason=row["reason"],
        account=row["account"],
        partition=row["partition"],
        user=row["user"],
        group=row["group"],
        working_directory=row["folder"],
        cluster=cluster,
        nodes=row["nodes"],
        node_count=int(row["node_count"] or 0),
        priority=int(row["priority"] or 0),
        submitted=_moment(row["submit"]) or 0,
        limit=_seconds(row["limit"]),
        exit_code=None,
        signal=None,
        start=_moment(row["start"]),
        end=_moment(row["end"]),
        elapsed=_seconds(row["used"]) or 0,
    )


def _node(rows: list[list[str]]) -> dict[str, Any]:
    """One node from sinfo, which names it once for each of its partitions."""
    name, cpus, load, free, features, address, hostname, state, _, weight, memory, use = rows[0]
    allocated, idle, *_ = (int(number) for number in use.split("/"))
    return {
        "sockets": int(cpus),
        "cores": int(cpus),
        "threads": int(cpus),
        "cpus": int(cpus),
        "cpuLoad": float(load) if load != "N/A" else None,
        "freeMemory": int(free) if free.isdigit() else None,
        "features": features,
        "name": name,
        "address": address,
        "hostname": hostname,
        "state": [_node_state(state)],
        "partitions": [row[8] for row in rows],
        "weight": int(weight),
        "allocMemory": int(memory),
        "allocCpus": allocated,
        "idleCpus": idle,
    }


def _node_state(state: str) -> str:
    plain = state.rstrip("*~#!%$@^-").upper()
    return {"DRAINED": "DRAIN", "DRAINING": "DRAIN", "INVAL": "UNKNOWN"}.get(plain, plain)


def _exit(text: str) -> tuple[int, int]:
    code, _, signal = text.partition(":")
    return int(code or 0), int(signal or 0)


def _moment(text: str) -> float | None:
    return float(text) if text.isdigit() else None


def _minutes(text: str) -> int | None:
    return int(text) * 60 if text.isdigit() else None


def _seconds(text: str) -> int | None:
    """Slurm's ``1-02:03:04`` and ``3:04``."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts):
        return None
    total = 0
    for part in parts:
        total = total * 60 + int(part)
    return total + int(days or 0) * 86400
