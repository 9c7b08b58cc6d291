"""What `sbatch` reads: its options on `#SBATCH` lines and in a submission."""

import getopt
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = [
    "ArraySpec",
    "Dependency",
    "JobOptions",
    "SbatchError",
    "Submission",
    "format_indices",
    "parse_script",
    "parse_time",
]

_SHORT = "A:a:B:b:C:c:D:d:e:F:G:Hh:I:i:J:kL:M:m:N:n:o:Op:Qq:S:st:uVvW:w:x:"
_ALIAS = {
    "A": "account",
    "a": "array",
    "b": "begin",
    "C": "constraint",
    "c": "cpus-per-task",
    "D": "chdir",
    "d": "dependency",
    "e": "error",
    "H": "hold",
    "i": "input",
    "J": "job-name",
    "N": "nodes",
    "n": "ntasks",
    "o": "output",
    "p": "partition",
    "t": "time",
    "workdir": "chdir",
}
# Every long option of sbatch; a trailing "=" takes a value. Those without a meaning here are accepted.
_LONG = [
    "account=",
    "acctg-freq=",
    "array=",
    "batch=",
    "bb=",
    "bbf=",
    "begin=",
    "chdir=",
    "cluster-constraint=",
    "clusters=",
    "comment=",
    "constraint=",
    "container=",
    "contiguous",
    "core-spec=",
    "cores-per-socket=",
    "cpu-freq=",
    "cpus-per-gpu=",
    "cpus-per-task=",
    "deadline=",
    "delay-boot=",
    "dependency=",
    "distribution=",
    "error=",
    "exclude=",
    "exclusive",
    "export=",
    "export-file=",
    "extra-node-info=",
    "get-user-env",
    "gid=",
    "gpu-bind=",
    "gpu-freq=",
    "gpus=",
    "gpus-per-node=",
    "gpus-per-socket=",
    "gpus-per-task=",
    "gres=",
    "gres-flags=",
    "help",
    "hint=",
    "hold",
    "ignore-pbs",
    "input=",
    "job-name=",
    "kill-on-invalid-dep=",
    "licenses=",
    "mail-type=",
    "mail-user=",
    "mcs-label=",
    "mem=",
    "mem-bind=",
    "mem-per-cpu=",
    "mem-per-gpu=",
    "mincpus=",
    "network=",
    "nice",
    "no-kill",
    "no-requeue",
    "nodefile=",
    "nodelist=",
    "nodes=",
    "ntasks=",
    "ntasks-per-core=",
    "ntasks-per-gpu=",
    "ntasks-per-node=",
    "ntasks-per-socket=",
    "open-mode=",
    "output=",
    "overcommit",
    "oversubscribe",
    "parsable",
    "partition=",
    "power=",
    "prefer=",
    "priority=",
    "profile=",
    "propagate",
    "qos=",
    "quiet",
    "reboot",
    "requeue",
    "reservation=",
    "signal=",
    "sockets-per-node=",
    "spread-job",
    "switches=",
    "test-only",
    "thread-spec=",
    "threads-per-core=",
    "time=",
    "time-min=",
    "tmp=",
    "uid=",
    "use-min-nodes",
    "usage",
    "verbose",
    "version",
    "wait",
    "wait-all-nodes=",
    "wckey=",
    "workdir=",
    "wrap=",
    "tres-per-task=",
    "segment=",
    "resv-ports=",
]

# Their value is optional; getopt knows no such thing.
_OPTIONAL = {"--exclusive", "--nice", "--propagate", "--no-kill", "--get-user-env", "--oversubscribe"}

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_BEGIN = re.compile(r"now(?:\+(\d+)\s*(second|minute|hour|day|week)?s?)?", re.IGNORECASE)
_DAY = 86400
DependencyKind = Literal["after", "afterany", "afterok", "afternotok", "aftercorr", "singleton"]


class SbatchError(Exception):
    """sbatch refuses; the text is what it prints."""


def _failed(reason: str) -> SbatchError:
    return SbatchError(f"sbatch: error: Batch job submission failed: {reason}\n")


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """``--array``: which elements, and how many at a time."""

    indices: tuple[int, ...]
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Dependency:
    kind: str
    job_id: str = ""
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The options of one job, from its script and from its submission."""

    name: str = ""
    account: str = ""
    partition: str = ""
    reservation: str = ""
    constraint: str = ""
    array: ArraySpec | None = None
    time_limit: int | None = None
    output: str = ""
    error: str = ""
    input: str = ""
    append: bool = False
    begin: float = 0.0
    dependencies: tuple[Dependency, ...] = ()
    any_dependency: bool = False
    hold: bool = False
    nodes: int = 1
    ntasks: int = 1
    ntasks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str = ""
    mem_per_cpu: str = ""
    gpus: str = ""

    @property
    def tasks(self) -> int:
        if self.ntasks_per_node is not None and self.ntasks == 1:
            return self.ntasks_per_node * self.nodes
        return self.ntasks

    @property
    def cpus(self) -> int:
        return self.tasks * (self.cpus_per_task or 1)


@dataclass(frozen=True, slots=True)
class Submission:
    """One job as FirecREST hands it to the scheduler."""

    working_directory: str
    script: str
    script_path: str | None = None
    name: str = ""
    account: str = ""
    partition: str = ""
    reservation: str = ""
    constraint: str = ""
    standard_input: str = ""
    standard_output: str = ""
    standard_error: str = ""
    env: Mapping[str, str] = field(default_factory=dict)

    def over(self, options: JobOptions) -> JobOptions:
        """FirecREST's fields become sbatch's own arguments, which win over the script's lines."""
        given = {
            "name": self.name,
            "account": self.account,
            "partition": self.partition,
            "reservation": self.reservation,
            "constraint": self.constraint,
            "output": self.standard_output,
            "error": self.standard_error,
            "input": self.standard_input,
        }
        return replace(options, **{key: value for key, value in given.items() if value})  # type: ignore[arg-type]


def parse_script(script: str) -> JobOptions:
    """Read the header of a job script as sbatch does, or fail with its words."""
    _check_script(script)
    found: dict[str, str] = {}
    for line in script.splitlines()[1:]:
        if line.startswith("#SBATCH"):
            found.update(_options(line[len("#SBATCH") :]))
        elif line.strip() and not line.startswith("#"):
            break
    return _job_options(found)


def _check_script(script: str) -> None:
    if not script.startswith("#!"):
        raise SbatchError(
            "sbatch: error: This does not look like a batch script.  The first\n"
            "sbatch: error: line must start with #! followed by the path to an interpreter.\n"
            "sbatch: error: For instance: #!/bin/sh\n"
        )
    if "\r\n" in script:
        raise SbatchError(
            "sbatch: error: Batch script contains DOS line breaks (\\r\\n)\n"
            "sbatch: error: instead of expected UNIX line breaks (\\n).\n"
        )


def _options(text: str) -> dict[str, str]:
    try:
        words = [_without_optional(word) for word in shlex.split(text, comments=True)]
        pairs, _ = getopt.gnu_getopt(words, _SHORT, _LONG)
    except ValueError:
        raise SbatchError("sbatch: error: Unmatched quote in batch script\n") from None
    except getopt.GetoptError as error:
        raise _unrecognized(error) from None
    plain = ((key.lstrip("-"), value) for key, value in pairs)
    return {_ALIAS.get(key, key): value for key, value in plain}


def _without_optional(word: str) -> str:
    name, _, _ = word.partition("=")
    return name if name in _OPTIONAL else word


def _unrecognized(error: getopt.GetoptError) -> SbatchError:
    hint = 'Try "sbatch --help" for more information\n'
    if "requires argument" in error.msg:
        return SbatchError(f"sbatch: option '--{error.opt}' requires an argument\n{hint}")
    if len(error.opt) == 1:
        return SbatchError(f"sbatch: invalid option -- '{error.opt}'\n{hint}")
    return SbatchError(f"sbatch: unrecognized option '--{error.opt}'\n{hint}")


def _job_options(found: Mapping[str, str]) -> JobOptions:
    text = {
        key: found.get(key.replace("_", "-"), "") for key in ("account", "partition", "reservation", "mem")
    }
    dependencies, any_dependency = _dependencies(found.get("dependency", ""))
    return JobOptions(
        name=found.get("job-name", ""),
        constraint=found.get("constraint", ""),
        array=_array(found["array"]) if "array" in found else None,
        time_limit=parse_time(found["time"]) if "time" in found else None,
        output=found.get("output", ""),
        error=found.get("error", ""),
        input=found.get("input", ""),
        append=found.get("open-mode", "").lower().startswith("a"),
        begin=_begin(found["begin"]) if "begin" in found else 0.0,
        dependencies=dependencies,
        any_dependency=any_dependency,
        hold="hold" in found,
        nodes=_number(found, "nodes", 1),
        ntasks=_number(found, "ntasks", 1),
        ntasks_per_node=_number(found, "ntasks-per-node", 0) or None,
        cpus_per_task=_number(found, "cpus-per-task", 0) or None,
        mem_per_cpu=found.get("mem-per-cpu", ""),
        gpus=found.get("gpus", ""),
        **text,
    )


def _number(found: Mapping[str, str], key: str, default: int) -> int:
    if key not in found:
        return default
    # "--nodes=2-4" asks for at least two; one machine gives the least.
    match = re.match(r"\d+", found[key])
    if match is None or int(match.group()) < 1:
        raise SbatchError(f'sbatch: error: Invalid numeric value "{found[key]}" for --{key}.\n')
    return int(match.group())


def parse_time(text: str) -> int | None:
    """Slurm's time formats, in seconds; None has no limit.

    Slurm rounds up to whole minutes. This scheduler does not, so that a test can wait for a time limit.
    """
    if text.upper() in {"UNLIMITED", "INFINITE", "-1"}:
        return None
    days, separator, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in [*parts, *([days] if separator else [])]) or len(parts) > 3:
        raise SbatchError("sbatch: error: Invalid --time specification\n")
    numbers = [int(part) for part in parts]
    if separator:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        return int(days) * _DAY + hours * 3600 + minutes * 60 + seconds
    if len(numbers) == 3:
        return numbers[0] * 3600 + numbers[1] * 60 + numbers[2]
    return numbers[0] * 60 + (numbers[1] if len(numbers) == 2 else 0)


def _begin(text: str) -> float:
    """The wall-clock time before which a job must not start."""
    match = _BEGIN.fullmatch(text.strip())
    if match:
        return time.time() + int(match.group(1) or 0) * _UNITS[(match.group(2) or "second").lower()]
    for pattern in ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d"):
        try:
            return time.mktime(time.strptime(text, pattern))
        except ValueError:
            continue
    return _clock(text)


def _clock(text: str) -> float:
    words = {"midnight": "00:00", "noon": "12:00", "fika": "15:00", "teatime": "16:00", "tomorrow": ""}
    text = words.get(text.lower(), text)
    if not text:
        return time.time() + _DAY
    match = re.fullmatch(r"(\d{1,2}):(\d{2})(?::(\d{2}))?", text)
    if match is None:
        raise SbatchError(f'sbatch: error: Invalid time specification (pos=0): "{text}"\n')
    hour, minute, second = (int(group or 0) for group in match.groups())
    now = time.localtime()
    today = (now.tm_year, now.tm_mon, now.tm_mday, hour, minute, second, 0, 0, -1)
    moment = time.mktime(today)
    return moment if moment > time.time() else moment + _DAY


def _array(text: str) -> ArraySpec:
    spec, _, limit = text.partition("%")
    indices: set[int] = set()
    for part in spec.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part.strip())
        if match is None:
            raise _failed("Invalid job array specification")
        first = int(match.group(1))
        last = int(match.group(2) or first)
        indices.update(range(first, last + 1, int(match.group(3) or 1)))
    if not indices or (limit and not limit.isdigit()) or max(indices) > 4_000_000:
        raise _failed("Invalid job array specification")
    return ArraySpec(tuple(sorted(indices)), int(limit) or None if limit else None)


def format_indices(indices: list[int], limit: int | None) -> str:
    """The rest of an array as Slurm writes it: ``[2-5,9%2]``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"[{text}%{limit}]" if limit else f"[{text}]"


def _dependencies(text: str) -> tuple[tuple[Dependency, ...], bool]:
    """``afterok:1:2,afterany:3``: a comma asks for all of them, a question mark for any."""
    if not text:
        return (), False
    found: list[Dependency] = []
    for part in re.split(r"[,?]", text):
        kind, *targets = part.split(":")
        if kind not in DependencyKind.__args__ or not (targets or kind == "singleton"):  # type: ignore[attr-defined]
            raise _failed("Job dependency problem")
        if kind == "singleton":
            found.append(Dependency("singleton"))
        found.extend(_dependency(kind, target) for target in targets)
    return tuple(found), "?" in text


def _dependency(kind: str, target: str) -> Dependency:
    match = re.fullmatch(r"(\d+(?:_\d+)?)(?:\+(\d+))?", target)
    if match is None:
        raise _failed("Job dependency problem")
    return Dependency(kind, match.group(1), 60.0 * int(match.group(2) or 0))
