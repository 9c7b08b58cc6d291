"""Job scripts and options of ``sbatch``: checked before they are sent, and put together without loss."""

from __future__ import annotations

import difflib
import enum
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from types import MappingProxyType

from .errors import InvalidInputError

__all__ = [
    "INPUT",
    "SCHEDULER_FIELDS",
    "array_indices",
    "array_text",
    "check_env",
    "check_job_name",
    "check_script",
    "directives",
    "expand_pattern",
    "exports_env",
    "format_time",
    "narrowed",
    "parse_memory",
    "parse_time",
    "plain_env_value",
    "render_script",
    "script_directives",
    "slug",
]

SCHEDULER_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "account": "account",
        "partition": "partition",
        "reservation": "reservation",
        "constraint": "constraints",
    }
)
"""Options that requests of FirecREST have a field for, with its name. Only these reach every system: one that
is driven through Slurm's REST API ignores all ``#SBATCH`` lines."""

# The variable in which an element of an array over a list finds its own input.
INPUT = "HPC_INPUT"

# Longest name of a job that Slurm's tools and FirecREST's filter by name handle well.
_JOB_NAME_LENGTH = 128
# Slurm's largest MaxArraySize is 4,000,001 and indices start at 0.
_LARGEST_INDEX = 4_000_000
# Slurm counts seconds of a time limit in 32 bits with a sign.
_LONGEST = timedelta(seconds=2**31 - 1)
# Longest "NAME=value" with its final NUL that Linux passes to a program (MAX_ARG_STRLEN).
_ENV_BYTES = 131_072
_SECOND = timedelta(seconds=1)
_UNITS = {"": 2**20, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


# --- values -----------------------------------------------------------------------------------------------


def parse_time(value: object, field: str) -> timedelta:
    """A time limit as ``sbatch --time`` reads it.

    :param value: a ``timedelta``, a number of minutes, or text in one of Slurm's forms: ``minutes``,
        ``minutes:seconds``, ``hours:minutes:seconds``, ``days-hours``, ``days-hours:minutes``,
        ``days-hours:minutes:seconds``
    :param field: name of the parameter, for the error text
    :return: the limit, rounded up to a second
    :raises InvalidInputError: it is none of these, not above zero, or longer than Slurm can count
    """
    if isinstance(value, timedelta):
        limit = _duration(seconds=_seconds(value))
    elif isinstance(value, int) and not isinstance(value, bool):
        limit = _duration(minutes=value)
    elif isinstance(value, str) and (parts := _TIME.fullmatch(value.strip())):
        # Each group is named by its unit and a number, since a name can stand only once in an expression.
        numbers = {unit[:-1]: int(text) for unit, text in parts.groupdict().items() if text}
        limit = _duration(**numbers)
    elif isinstance(value, str) and value.strip().lower() in ("unlimited", "infinite", "-1"):
        raise InvalidInputError(
            field, f"{value!r}: leave it out to get the partition's limit, or give a time."
        )
    else:
        raise InvalidInputError(
            field,
            f"{_shown(value)} is no time. Give minutes, '[days-]hours:minutes:seconds', 'days-hours' or a "
            f"timedelta.",
        )
    if limit <= timedelta(0):
        raise InvalidInputError(
            field, f"{_shown(value)} is not above zero. Leave it out to get the partition's own limit."
        )
    if limit > _LONGEST:
        raise InvalidInputError(
            field, f"{_shown(value)} is more than Slurm can count ({_LONGEST.days} days)."
        )
    return limit


_TIME = re.compile(
    r"(?P<days1>\d{1,9})-(?P<hours1>\d{1,9})(:(?P<minutes1>\d{1,9})(:(?P<seconds1>\d{1,9}))?)?"
    r"|(?P<hours2>\d{1,9}):(?P<minutes2>\d{1,9}):(?P<seconds2>\d{1,9})"
    r"|(?P<minutes3>\d{1,9})(:(?P<seconds3>\d{1,9}))?",
    re.ASCII,
)


def _seconds(duration: timedelta) -> int:
    """Rounded up."""
    whole, rest = divmod(duration, _SECOND)
    return whole + bool(rest)


def _duration(**numbers: int) -> timedelta:
    try:
        return timedelta(**numbers)
    except OverflowError:
        return timedelta.max


def format_time(limit: timedelta) -> str:
    """A time limit as Slurm writes it: ``[days-]HH:MM:SS``.

    :param limit: not negative; rounded up to a second
    """
    minutes, seconds = divmod(_seconds(limit), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days}-' if days else ''}{hours:02}:{minutes:02}:{seconds:02}"


def parse_memory(value: object, field: str) -> int | None:
    """An amount of memory as ``sbatch --mem`` reads it.

    :param value: a number of MiB, or text of digits and a unit: ``500M``, ``4G``
    :param field: name of the parameter, for the error text
    :return: bytes; None for ``0``, which Slurm reads as all memory of the node
    :raises InvalidInputError: it is none of these
    """
    number, unit = _memory(value, field)
    return number * _UNITS[unit] or None


def _memory(value: object, field: str) -> tuple[int, str]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value, "M"
    text = value.strip().upper() if isinstance(value, str) else ""
    found = re.fullmatch(r"(\d{1,18})(?:([KMGT])B?)?", text, re.ASCII)
    if not found:
        raise InvalidInputError(
            field,
            f"{_shown(value)} is no amount of memory. Give MiB, or a whole number with K, M, G or T right "
            f"after it: '4G'.",
        )
    return int(found[1]), found[2] or "M"


def array_indices(spec: str, field: str = "array") -> list[int]:
    """All indices of an array in rising order, each once.

    :param spec: as ``sbatch --array`` takes it or Slurm prints it: ``0-9:3%2``, ``1,3,5-9``, ``[5-9%2]``
    :param field: name of the parameter, for the error text
    :raises InvalidInputError: it is no such specification, or larger than any Slurm allows
    """
    return sorted({index for part in _array(spec, field)[0] for index in part})


def array_text(indices: Iterable[int]) -> str:
    """Indices as ``sbatch --array`` takes them, neighbours put together: ``0-3,7``.

    :param indices: at least one
    """
    return ",".join(map(_range_text, _runs(sorted(set(indices)))))


def narrowed(spec: str, indices: Iterable[int]) -> str:
    """An array of only some of the indices of another, with its limit of elements that run at once.

    :param spec: the other array, as ``0-99%10``
    :param indices: at least one
    """
    limit = _array(spec, "array")[1]
    return array_text(indices) + (f"%{limit}" if limit else "")


def _array(spec: str, field: str) -> tuple[list[range], int | None]:
    """The ranges of an array specification and its limit of elements that run at once."""
    text = re.sub(r"\s*,\s*", ",", spec.strip()).removeprefix("[").removesuffix("]")
    found = re.fullmatch(r"([0-9,:-]+)(?:%(\d{1,9}))?", text, re.ASCII)
    ranges = []
    for part in found[1].split(",") if found else [""]:
        numbers = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", part, re.ASCII)
        if not numbers:
            raise InvalidInputError(
                field, f"{_shown(spec)} is no list of indices. Give one like '0-99', '1,3,5-9:2' or '0-9%2'."
            )
        start, end, step = int(numbers[1]), int(numbers[2] or numbers[1]), int(numbers[3] or 1)
        if end < start or step == 0:
            raise InvalidInputError(field, f"{_shown(spec)}: the range {part} holds no index.")
        if end > _LARGEST_INDEX:
            raise InvalidInputError(
                field, f"{_shown(spec)}: index {end} is beyond {_LARGEST_INDEX}, the largest of any Slurm."
            )
        ranges.append(range(start, end + 1, step))
    limit = int(found[2]) if found and found[2] else None
    if limit == 0:
        raise InvalidInputError(field, f"{_shown(spec)}: with %0 no element would run.")
    if sum(map(len, ranges)) > _LARGEST_INDEX + 1:
        raise InvalidInputError(field, f"{_shown(spec)} names indices more than once, and too many.")
    return ranges, limit


def _array_text(value: object, field: str) -> str:
    if isinstance(value, str):
        ranges, limit = _array(value, field)
        return ",".join(map(_range_text, ranges)) + (f"%{limit}" if limit else "")
    if isinstance(value, int):
        raise InvalidInputError(
            field, f"{value}: give range({value}) for {value} elements, or [{value}] for one of that index."
        )
    if isinstance(value, range):
        text = _range_text(value if value.step > 0 else value[::-1]) if value else ""
    elif isinstance(value, list | tuple | set | frozenset) and all(
        isinstance(index, int) and not isinstance(index, bool) and index >= 0 for index in value
    ):
        text = array_text(value)
    else:
        raise InvalidInputError(
            field, f"{_shown(value)} is no list of indices. Give text, a range, or integers."
        )
    if not text:
        raise InvalidInputError(field, "holds no index.")
    _array(text, field)
    return text


def _runs(indices: list[int]) -> Iterator[range]:
    """Neighbours put together."""
    start = 0
    for place, index in enumerate(indices):
        if place + 1 == len(indices) or indices[place + 1] != index + 1:
            yield range(indices[start], index + 1)
            start = place + 1


def _range_text(indices: range) -> str:
    first, last, step = indices[0], indices[-1], indices.step
    if first == last:
        return str(first)
    return f"{first}-{last}" if step == 1 else f"{first}-{last}:{step}"


def _text(value: object, field: str) -> str:
    """One line of text that is not blank."""
    if not isinstance(value, str):
        raise InvalidInputError(field, f"{_shown(value)} is {type(value).__name__}. Give text.")
    if not value.strip():
        raise InvalidInputError(field, "is empty. Leave it out, or give None.")
    if bad := _control(value):
        raise InvalidInputError(field, f"{_shown(value)} holds {bad}.")
    return value


def _control(text: str) -> str | None:
    """Name of a character that would end or break a line, or None."""
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            name = f"the character U+{ord(character):04X}"
            return {"\n": "a line break", "\t": "a tab"}.get(character, name)
    return None


def _list(value: object, field: str) -> str:
    """Text, or a list of texts, joined with commas."""
    if isinstance(value, list | tuple):
        if not value:
            raise InvalidInputError(field, "is empty. Leave it out, or give None.")
        return ",".join(_list(item, field) for item in value)
    return _text(value, field)


def _integer(value: object, field: str, *, least: int | None) -> str:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value.strip(), re.ASCII):
        value = int(value)
    kind = {None: "a whole number", 0: "a whole number, zero or more", 1: "a whole number above zero"}[least]
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        raise InvalidInputError(field, f"{_shown(value)} is not {kind}.")
    return str(value)


def _count(value: object, field: str) -> str:
    return _integer(value, field, least=1)


def _natural(value: object, field: str) -> str:
    return _integer(value, field, least=0)


def _nodes(value: object, field: str) -> str:
    """A count, ``least-most``, or the lists and steps of Slurm 23.11: ``1,3-9:2``."""
    if not isinstance(value, str) or re.fullmatch(r"\s*[+-]?\d*\s*", value, re.ASCII):
        return _count(value, field)
    for part in value.strip().split(","):
        numbers = re.fullmatch(r"([1-9]\d{0,8})(?:-([1-9]\d{0,8}))?(?::[1-9]\d{0,8})?", part, re.ASCII)
        if not numbers or int(numbers[2] or numbers[1]) < int(numbers[1]):
            raise InvalidInputError(field, f"{_shown(value)} is no number of nodes. Give 2 or '2-4'.")
    return value.strip()


def _gpus(value: object, field: str) -> str:
    """A count, or ``type:count``, or several of these."""
    if isinstance(value, str) and ":" in value:
        parts = value.replace(" ", "").split(",")
        if all(re.fullmatch(r"[\w.-]+:[1-9]\d{0,8}", part, re.ASCII) for part in parts):
            return ",".join(parts)
        raise InvalidInputError(field, f"{_shown(value)} is no number of GPUs. Give 2 or 'a100:2'.")
    return _count(value, field)


def _moment(value: object, field: str) -> str:
    """Text as Slurm takes it, a ``timedelta`` from now, or a ``datetime`` in its own zone."""
    if isinstance(value, timedelta):
        return f"now+{max(0, _seconds(value))}seconds"
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InvalidInputError(field, f"{value.isoformat()} has no time zone. Give it one.")
        return f"uts{int(value.timestamp())}"
    return _text(value, field)


def _matching(pattern: str, example: str) -> _Convert:
    def convert(value: object, field: str) -> str:
        plain = isinstance(value, int) and not isinstance(value, bool)
        text = str(value) if plain else _text(value, field).strip()
        if not re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE):
            raise InvalidInputError(field, f"{_shown(value)} is not {example}.")
        return text

    return convert


def _yes_no(value: object, field: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _matching("yes|no", "'yes' or 'no'")(value, field)


def _time_text(value: object, field: str) -> str:
    return format_time(parse_time(value, field))


def _memory_text(value: object, field: str) -> str:
    number, unit = _memory(value, field)
    return f"{number}{unit}" if number else "0"


def _field_text(value: object, field: str) -> str:
    """Text of a field that FirecREST puts between single quotes into a shell command, without escaping."""
    text = _list(value, field)
    if bad := re.search(r"['\"$`\\;<>]", text):
        raise InvalidInputError(
            field, f"{_shown(text)} holds {bad[0]!r}, which the gateway cannot pass on safely. Leave it out."
        )
    return text


# --- the options of sbatch --------------------------------------------------------------------------------

_Convert = Callable[[object, str], str]


class _Takes(enum.Enum):
    """Whether an option takes a value, in the sense of getopt_long."""

    NOTHING = enum.auto()
    """A flag: True sets it."""
    MAYBE = enum.auto()
    """A flag that can also have a value, which must follow as ``=value``."""
    VALUE = enum.auto()


@dataclass(frozen=True, slots=True)
class _Option:
    """An option of sbatch.

    :param convert: makes its text of a user's value
    :param takes: whether it takes a value
    :param elsewhere: where a user sets it, if not among the options
    """

    convert: _Convert = _text
    takes: _Takes = _Takes.VALUE
    elsewhere: str | None = None


_FLAG = _Option(takes=_Takes.NOTHING)


def _maybe(convert: _Convert) -> _Option:
    return _Option(convert, _Takes.MAYBE)


def _set_by(where: str, takes: _Takes = _Takes.VALUE) -> _Option:
    return _Option(takes=takes, elsewhere=where)


_NOT_HERE = "it changes what sbatch prints or does, and the gateway runs sbatch"

# Long options of sbatch, from its man pages of Slurm 22.05 to 25.05, and of the plug-ins that many centres
# have.
_OPTIONS: dict[str, _Option] = {
    "account": _Option(_field_text),
    "acctg-freq": _Option(_list),
    "array": _Option(_array_text),
    "batch": _Option(),
    "bb": _Option(),
    "bbf": _Option(),
    "begin": _Option(_moment),
    "cluster-constraint": _Option(),
    "comment": _Option(),
    "constraint": _Option(_field_text),
    "container": _Option(),
    "contiguous": _FLAG,
    "core-spec": _Option(_natural),
    "cores-per-socket": _Option(_count),
    "cpu-freq": _Option(_matching(r"[\w:-]+", "a frequency like 'high' or '2400000-2600000:Performance'")),
    "cpus-per-gpu": _Option(_count),
    "cpus-per-task": _Option(_count),
    "deadline": _Option(_moment),
    "delay-boot": _Option(_time_text),
    "dependency": _Option(_list),
    "distribution": _Option(),
    "exclude": _Option(_list),
    "exclusive": _maybe(_matching("user|mcs|topo", "True, 'user', 'mcs' or 'topo'")),
    "extra": _Option(),
    "extra-node-info": _Option(),
    "gpu-bind": _Option(),
    "gpu-freq": _Option(),
    "gpus": _Option(_gpus),
    "gpus-per-node": _Option(_gpus),
    "gpus-per-socket": _Option(_gpus),
    "gpus-per-task": _Option(_gpus),
    "gres": _Option(_list),
    "gres-flags": _Option(_list),
    "hint": _Option(
        _matching(
            "compute_bound|memory_bound|(no)?multithread",
            "'compute_bound', 'memory_bound', 'multithread' or 'nomultithread'",
        )
    ),
    "hold": _FLAG,
    "ignore-pbs": _FLAG,
    "kill-on-invalid-dep": _Option(_yes_no),
    "licenses": _Option(_list),
    "mail-type": _Option(_list),
    "mail-user": _Option(_list),
    "mcs-label": _Option(),
    "mem": _Option(_memory_text),
    "mem-bind": _Option(),
    "mem-per-cpu": _Option(_memory_text),
    "mem-per-gpu": _Option(_memory_text),
    "mincpus": _Option(_count),
    "network": _Option(),
    "nice": _maybe(lambda value, field: _integer(value, field, least=None)),
    "no-kill": _maybe(_matching("off", "True or 'off'")),
    "no-requeue": _FLAG,
    "nodefile": _Option(),
    "nodelist": _Option(_list),
    "nodes": _Option(_nodes),
    "ntasks": _Option(_count),
    "ntasks-per-core": _Option(_count),
    "ntasks-per-gpu": _Option(_count),
    "ntasks-per-node": _Option(_count),
    "ntasks-per-socket": _Option(_count),
    "open-mode": _Option(_matching("append|truncate", "'append' or 'truncate'")),
    "overcommit": _FLAG,
    "oversubscribe": _FLAG,
    "partition": _Option(_field_text),
    "power": _Option(),
    "prefer": _Option(),
    "priority": _Option(_natural),
    "profile": _Option(_list),
    "propagate": _maybe(_list),
    "qos": _Option(),
    "reboot": _FLAG,
    "requeue": _FLAG,
    "reservation": _Option(_field_text),
    "resv-ports": _maybe(_count),
    "segment": _Option(_count),
    "signal": _Option(
        _matching(r"([RB]{1,2}:)?(SIG)?[A-Z0-9]+(@\d{1,5})?", "a signal like 'USR1', 'B:USR1@120' or 10")
    ),
    "sockets-per-node": _Option(_count),
    "spread-job": _FLAG,
    "stepmgr": _FLAG,
    "switches": _Option(_matching(r"\d+(@[\d:-]+)?", "a number of switches like 1 or '1@2:00:00'")),
    "thread-spec": _Option(_natural),
    "threads-per-core": _Option(_count),
    "time": _Option(_time_text),
    "time-min": _Option(_time_text),
    "tmp": _Option(_memory_text),
    "tres-bind": _Option(_list),
    "tres-per-task": _Option(_list),
    "use-min-nodes": _FLAG,
    "wait-all-nodes": _Option(_matching("[01]", "0 or 1")),
    "wckey": _Option(),
    # The uenv plug-in and the container engine of CSCS; pyxis of NVIDIA.
    "uenv": _Option(_list),
    "view": _Option(_list),
    "environment": _Option(),
    "container-image": _Option(),
    "container-mounts": _Option(_list),
    "container-workdir": _Option(),
    "container-name": _Option(),
    "container-save": _Option(),
    "container-env": _Option(_list),
    "container-mount-home": _FLAG,
    "no-container-mount-home": _FLAG,
    "container-remap-root": _FLAG,
    "no-container-remap-root": _FLAG,
    "container-entrypoint": _FLAG,
    "no-container-entrypoint": _FLAG,
    "container-writable": _FLAG,
    "container-readonly": _FLAG,
    # Options that others say.
    "chdir": _set_by("set it by the parameter working_directory"),
    "clusters": _set_by("choose the system by the parameter system"),
    "error": _set_by("set it by the parameter stderr"),
    "export": _set_by("set variables by the parameter env"),
    "export-file": _set_by("set variables by the parameter env"),
    "get-user-env": _set_by("set variables by the parameter env", _Takes.MAYBE),
    "gid": _set_by("the gateway submits as the user of the connection"),
    "help": _set_by(_NOT_HERE, _Takes.NOTHING),
    "input": _set_by("redirect the input in the script: program < file"),
    "job-name": _set_by("set it by the parameter job_name"),
    "output": _set_by("set it by the parameter stdout"),
    "parsable": _set_by(_NOT_HERE, _Takes.NOTHING),
    "quiet": _set_by(_NOT_HERE, _Takes.NOTHING),
    "test-only": _set_by(_NOT_HERE, _Takes.NOTHING),
    "uid": _set_by("the gateway submits as the user of the connection"),
    "usage": _set_by(_NOT_HERE, _Takes.NOTHING),
    "verbose": _set_by(_NOT_HERE, _Takes.NOTHING),
    "version": _set_by(_NOT_HERE, _Takes.NOTHING),
    "wait": _set_by("the task waits for the job anyway", _Takes.NOTHING),
    "wrap": _set_by("give the commands by the parameter script"),
}
# Other names that sbatch has or had for an option.
_ALIASES = {
    "cluster": "clusters",
    "share": "oversubscribe",
    "tasks": "ntasks",
    "tasks-per-node": "ntasks-per-node",
    "workdir": "chdir",
}
# FirecREST's name for it.
_USER_ALIASES = _ALIASES | {"constraints": "constraint"}
_SHORT = {
    "a": "array",
    "A": "account",
    "b": "begin",
    "B": "extra-node-info",
    "c": "cpus-per-task",
    "C": "constraint",
    "d": "dependency",
    "D": "chdir",
    "e": "error",
    "F": "nodefile",
    "G": "gpus",
    "h": "help",
    "H": "hold",
    "i": "input",
    "J": "job-name",
    "k": "no-kill",
    "L": "licenses",
    "m": "distribution",
    "M": "clusters",
    "n": "ntasks",
    "N": "nodes",
    "o": "output",
    "O": "overcommit",
    "p": "partition",
    "q": "qos",
    "Q": "quiet",
    "s": "oversubscribe",
    "S": "core-spec",
    "t": "time",
    "v": "verbose",
    "V": "version",
    "w": "nodelist",
    "W": "wait",
    "x": "exclude",
}
# Of each of these only one can be set: sbatch refuses, or lets the last one win.
_ONE_OF = (
    frozenset({"mem", "mem-per-cpu", "mem-per-gpu"}),
    frozenset({"requeue", "no-requeue"}),
    frozenset({"exclusive", "oversubscribe"}),
)


def directives(options: Mapping[str, object], field: str = "sbatch_options") -> dict[str, str | None]:
    """Check a user's options of sbatch and write them as sbatch takes them.

    :param options: values by long option, ``snake_case`` or ``kebab-case``. Values may also be text, as
        templates make it. Flags take True or False; None leaves an option out. Counts are above zero.
        ``time`` and ``time_min``: see :func:`parse_time`. ``mem``, ``mem_per_cpu``, ``mem_per_gpu`` and
        ``tmp``: see
        :func:`parse_memory`. ``array``: text, a range or a list of indices. ``begin`` and ``deadline``:
            Slurm's
        text, a ``timedelta`` from now, or a ``datetime`` with a time zone. What sbatch takes as a list may be
        one.
    :param field: name of the parameter, for the error text
    :return: text by long option in kebab-case, None for flags; those in :data:`SCHEDULER_FIELDS` among them
    :raises InvalidInputError: an option is unknown, set by another parameter, at odds with another, or its
        value is not of its kind; the text names it as ``sbatch_options["mem"]``
    """
    if not isinstance(options, Mapping):
        raise InvalidInputError(field, f"is {type(options).__name__}. Give a mapping: {{'nodes': 2}}.")
    result: dict[str, str | None] = {}
    named: dict[str, object] = {}
    for key, value in options.items():
        where = f'{field}["{key}"]'
        name = _option_name(key, where)
        if name in named:
            raise InvalidInputError(where, f'is the same option as "{named[name]}". Give one of them.')
        named[name] = key
        option = _OPTIONS[name]
        if value is None:
            continue
        if option.takes is not _Takes.VALUE and (flag := _flag(value)) is not None:
            if flag:
                result[name] = None
        elif option.takes is _Takes.NOTHING:
            raise InvalidInputError(where, f"{_shown(value)} is not True or False.")
        else:
            result[name] = option.convert(value, where)
    for group in _ONE_OF:
        if len(both := [f'"{named[name]}"' for name in result if name in group]) > 1:
            raise InvalidInputError(field, f"{' and '.join(both)} exclude each other. Give one of them.")
    return result


def _option_name(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise InvalidInputError(where, "is no text. Options go by their long names: 'nodes'.")
    if key in _SHORT:
        raise InvalidInputError(where, f'is a short option. Write "{_snake(_SHORT[key])}".')
    name = key.replace("_", "-")
    name = _USER_ALIASES.get(name, name)
    if name in _OPTIONS:
        if _OPTIONS[name].elsewhere:
            raise InvalidInputError(where, f"cannot be set here: {_OPTIONS[name].elsewhere}.")
        return name
    known = [name for name, option in _OPTIONS.items() if not option.elsewhere]
    close = difflib.get_close_matches(name.strip("- ").lower(), known, n=1, cutoff=0.6)
    hint = f'Did you mean "{_snake(close[0])}"? ' if close else ""
    raise InvalidInputError(
        where, f"is no option of sbatch known here. {hint}Others can stand in the script, as #SBATCH lines."
    )


def _snake(name: str) -> str:
    return name.replace("-", "_")


def _flag(value: object) -> bool | None:
    """True or False, also as text that a template made; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


# --- scripts ----------------------------------------------------------------------------------------------


def check_script(text: object, field: str = "script") -> str:
    """A job script as Slurm accepts it. Slurm's REST API accepts others too, and then the job fails.

    :param text: the whole script; its first bytes name its interpreter: ``#!/bin/bash``
    :param field: name of the parameter, for the error text
    :return: the script, with a line break at its end
    :raises InvalidInputError: Slurm would refuse it, or could not run it
    """
    if not isinstance(text, str):
        raise InvalidInputError(field, f"is {type(text).__name__}. Give the script as text.")
    if not text.strip():
        raise InvalidInputError(field, "is empty. Give a script that starts with #!/bin/bash.")
    if text.startswith("\ufeff"):
        raise InvalidInputError(field, "starts with a byte order mark. Save it as UTF-8 without one.")
    if "\0" in text:
        raise InvalidInputError(field, "holds a NUL character: it is a binary file, or not UTF-8.")
    if bad := re.search(r"[\ud800-\udfff]", text):
        raise InvalidInputError(
            field, f"holds the lone surrogate U+{ord(bad[0]):04X}: it was not read as UTF-8."
        )
    if "\r\n" in text or text.endswith("\r") or "\r" in text.split("\n", 1)[0]:
        raise InvalidInputError(
            field, "has line ends of Windows (CR LF); Slurm refuses them. Save it with LF."
        )
    if not text.startswith("#!"):
        where = " after blanks or lines" if text.lstrip().startswith("#!") else ""
        raise InvalidInputError(
            field, f"does not start with #! and an interpreter{where}. Let its first line be #!/bin/bash."
        )
    if not re.match(r"#![ \t]*/\S", text):
        raise InvalidInputError(
            field,
            f"{_shown(text.splitlines()[0])} names no interpreter by an absolute path, like #!/bin/bash.",
        )
    return text if text.endswith("\n") else f"{text}\n"


def script_directives(text: str) -> list[tuple[str, str | None, int]]:
    """The options in a script's ``#SBATCH`` lines, as sbatch reads them.

    sbatch reads lines that start with ``#SBATCH`` up to the first line that is neither blank nor a comment,
    and takes abbreviations of long options. ``hetjob``, which parts the options of a heterogeneous job, is
    given as an option without value.

    :param text: a job script
    :return: long option, its value or None, and the number of its line from 1; options that are not known
        here as they are written
    """
    return [
        (name, value, number)
        for number, line in _header(text)
        if line.startswith(_MAGIC)
        for name, value in _line_options(line)
    ]


_MAGIC = "#SBATCH"
# What isspace of C takes for blank; the blanks of Unicode are commands to a shell.
_BLANKS = " \t\v\f\r\n"


def _header(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of the lines before the first command."""
    for number, line in enumerate(text.split("\n"), 1):
        content = line.strip(_BLANKS)
        if content and not content.startswith("#"):
            return
        yield number, line


def _line_options(line: str) -> Iterator[tuple[str, str | None]]:
    """Options and values in a ``#SBATCH`` line, in the way of getopt_long."""
    words = _words(line.removeprefix(_MAGIC))
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            written, equals, value = word[2:].partition("=")
            name = _full_name(written)
            takes = _OPTIONS[name].takes if name in _OPTIONS else None
            if equals:
                yield name, value
            elif takes is _Takes.VALUE or (takes is None and words and not words[0].startswith("-")):
                yield name, words.pop(0) if words else None
            else:
                yield name, None
        elif word.startswith("-") and len(word) > 1:
            yield from _short_options(word[1:], words)
        else:
            yield word, None


def _short_options(letters: str, words: list[str]) -> Iterator[tuple[str, str | None]]:
    """Options in ``-N2`` or ``-HN 2``; takes a value from the following words if it needs one."""
    while letters:
        name, letters = _SHORT.get(letters[0], letters[0]), letters[1:]
        if name not in _OPTIONS or _OPTIONS[name].takes is not _Takes.VALUE:
            yield name, None
            continue
        yield name, letters or (words.pop(0) if words else None)
        return


def _full_name(written: str) -> str:
    """The option that a long name, an old name or an abbreviation stands for."""
    if written in _OPTIONS:
        return written
    if written in _ALIASES:
        return _ALIASES[written]
    meant = {_ALIASES.get(name, name) for name in (*_OPTIONS, *_ALIASES) if name.startswith(written)}
    return meant.pop() if len(meant) == 1 else written


def _words(text: str) -> list[str]:
    """Split like sbatch: quotes group, a backslash escapes (no blank outside quotes), # begins a comment."""
    words: list[str] = []
    word: str | None = None
    quote = ""
    escaped = False
    for character in text:
        if not quote and character in _BLANKS:
            words += [word] if word is not None else []
            word = None
            escaped = False
        elif escaped:
            word = (word or "") + character
            escaped = False
        elif character == "\\":
            escaped = True
        elif quote and character != quote:
            word = (word or "") + character
        elif character in ("'", '"'):
            quote = "" if quote else character
            word = word or ""
        elif character == "#":
            break
        else:
            word = (word or "") + character
    return [*words, word] if word is not None else words


def _quoted(value: str) -> str:
    """A value as a ``#SBATCH`` line has to write it."""
    if re.fullmatch(r"[A-Za-z0-9_.,:;/@%+=*\[\]-]+", value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _directive(name: str, value: str | None) -> str:
    return f"{_MAGIC} --{name}" if value is None else f"{_MAGIC} --{name}={_quoted(value)}"


def render_script(
    text: str,
    directives: Mapping[str, str | None],
    env: Mapping[str, str],
    inputs: Sequence[str] = (),
) -> str:
    """The script to submit: with options and environment variables of the task in it.

    The options come first. A line of the script that sets one of them too would win in sbatch, where the last
    one counts; it is made a plain comment, and what else it sets is kept on a line of its own: like options
    on sbatch's command line, the task's win. Variables are exported before the first command: FirecREST's own
    field cuts values at commas and breaks at quotes on systems that it reaches by ssh.

    :param text: a job script, see :func:`check_script`
    :param directives: options from :func:`directives`
    :param env: variables from :func:`check_env`
    :param inputs: one text for each element of an array, from index 0; each element finds its own in the
        variable ``HPC_INPUT``
    :raises InvalidInputError: variables or inputs are given and the interpreter is no shell, or options are
        given and the script has several parts (``#SBATCH hetjob``)
    """
    text = check_script(text)
    if (env or inputs) and not exports_env(text):
        raise InvalidInputError(
            "env" if env else "array",
            f"cannot be set: the script's interpreter ({text.splitlines()[0]}) is no shell. Set the "
            f"variables in the script.",
        )
    own = {name for name, _, _ in script_directives(text)}
    if directives and own & {"hetjob", "packjob"}:
        raise InvalidInputError(
            "sbatch_options", "cannot go with #SBATCH hetjob. Set the options of all parts in the script."
        )
    taken = set(directives).union(*(group for group in _ONE_OF if group & directives.keys()))
    header = [line for _, line in _header(text)]
    commands = text.split("\n")[len(header) :]
    # A script of comments alone ends with a line break, which splits off one empty line.
    if not commands:
        header, commands = header[:-1], [""]
    lines = [header[0], *(_directive(name, value) for name, value in directives.items())]
    for line in header[1:]:
        options = list(_line_options(line)) if line.startswith(_MAGIC) else []
        kept = [(name, value) for name, value in options if name not in taken]
        if len(kept) < len(options):
            lines += [f"#{line}", *(_directive(name, value) for name, value in kept)]
        else:
            lines.append(line)
    lines += [_export(name, value) for name, value in env.items()]
    if inputs:
        cases = [f"{index}) {_export(INPUT, value)} ;;" for index, value in enumerate(inputs)]
        lines += ['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"]
    return "\n".join([*lines, *commands])


def _export(name: str, value: str) -> str:
    """A command that exports a variable, for every shell of POSIX."""
    if "\r" not in value:
        return f"export {name}={shlex.quote(value)}"
    # Slurm refuses scripts with CR LF in them, so printf makes it; the x keeps line breaks at the end.
    escaped = value.replace("\\", "\\\\").replace("%", "%%").replace("\r", "\\015")
    return f'{name}="$(printf {shlex.quote(f"{escaped}x")})"; export {name}="${{{name}%x}}"'


_SHELLS = frozenset({"sh", "ash", "bash", "dash", "ksh", "ksh93", "mksh", "zsh"})


def exports_env(text: str) -> bool:
    """Whether a script's interpreter is a shell, so that variables can be exported in it.

    :param text: a job script; ``#!/usr/bin/env -S bash -e`` is read too
    """
    words = text.split("\n", 1)[0].removeprefix("#!").split()
    if words and PurePosixPath(words[0]).name == "env":
        words = [word.removeprefix("-S") for word in words[1:]]
        words = [word for word in words if word and not word.startswith("-") and "=" not in word]
    return bool(words) and PurePosixPath(words[0]).name in _SHELLS


# --- environment ------------------------------------------------------------------------------------------

# Shells forbid to set these, or change them as they like.
_SHELL_OWNED = frozenset(
    {
        "_",
        "BASHOPTS",
        "BASHPID",
        "BASH_ARGC",
        "BASH_ARGV",
        "BASH_COMMAND",
        "BASH_LINENO",
        "BASH_SOURCE",
        "BASH_SUBSHELL",
        "BASH_VERSINFO",
        "DIRSTACK",
        "EPOCHREALTIME",
        "EPOCHSECONDS",
        "EUID",
        "FUNCNAME",
        "GROUPS",
        "HISTCMD",
        "LINENO",
        "PPID",
        "RANDOM",
        "SECONDS",
        "SHELLOPTS",
        "SRANDOM",
        "UID",
    }
)


def check_env(env: object, field: str = "env") -> dict[str, str]:
    """Environment variables for a job.

    :param env: text or numbers by name
    :param field: name of the parameter, for the error text
    :return: text by name
    :raises InvalidInputError: a name or value is none that a shell can export
    """
    if not isinstance(env, Mapping):
        raise InvalidInputError(
            field, f"is {type(env).__name__}. Give a mapping: {{'OMP_NUM_THREADS': '8'}}."
        )
    return {name: _env_value(name, value, field) for name, value in env.items()}


def _env_value(name: object, value: object, field: str) -> str:
    where = f'{field}["{name}"]'
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise InvalidInputError(where, "is no name of a variable. Use letters, digits and _, no digit first.")
    if name in _SHELL_OWNED:
        raise InvalidInputError(where, "belongs to the shell, which would not take the value.")
    if isinstance(value, bool) or value is None or not isinstance(value, str | int | float):
        advice = " Write '1' or 'true', as the program expects it." if isinstance(value, bool) else ""
        raise InvalidInputError(where, f"is {type(value).__name__}. Give text or a number.{advice}")
    text = str(value)
    if bad := re.search(r"[\0\ud800-\udfff]", text):
        raise InvalidInputError(
            where, f"holds the character U+{ord(bad[0]):04X}, which no variable can hold."
        )
    if len(name.encode()) + len(text.encode()) + 2 > _ENV_BYTES:
        raise InvalidInputError(
            where, f"is longer than a program can be given ({_ENV_BYTES} bytes). Put it into a file."
        )
    return text


def plain_env_value(value: str) -> bool:
    """Whether a value passes unchanged through FirecREST's own field for the environment, on every system.

    By ssh a comma ends a value and quotes break it; through Slurm's REST API an empty value arrives unset.

    :param value: value of a variable
    """
    return (
        bool(value)
        and value == value.strip()
        and not re.search(r"[,'\"\\`\0]", value)
        and not _control(value)
    )


# --- names ------------------------------------------------------------------------------------------------


def expand_pattern(
    pattern: str,
    *,
    job_id: str,
    name: str,
    user: str | None,
    index: int | None,
    array_job_id: str | None = None,
) -> str:
    """The file that Slurm makes of a pattern like ``slurm-%A_%4a.out`` for a batch job's output.

    After "filename pattern" in the man page of sbatch: a number pads with zeros, up to ten; a backslash
    anywhere switches all replacement off.

    :param pattern: as given to sbatch
    :param job_id: the job's own id; of an element of an array, its raw one
    :param name: name of the job
    :param user: name of the user on the cluster, if known
    :param index: index of the array's element, None if it is none
    :param array_job_id: id of the whole array
    :return: the name; symbols that are not known here stay as they are
    """
    if "\\" in pattern:
        return pattern.replace("\\", "")
    # A batch script is the one task on the first node.
    numbers = {"A": array_job_id or job_id, "j": job_id, "n": "0", "t": "0"}
    if index is not None:
        numbers["a"] = str(index)
    texts = {"x": name, "%": "%"} | ({"u": user} if user is not None else {})

    def replace(symbol: re.Match[str]) -> str:
        width, letter = symbol.groups()
        if letter in numbers:
            return numbers[letter].zfill(min(int(width or 0), 10))
        return texts.get(letter, symbol[0])

    return re.sub(r"%(\d*)([A-Za-z%])", replace, pattern, flags=re.ASCII)


def check_job_name(name: object, field: str = "job_name") -> str:
    """A job name that survives: Slurm's and FirecREST's tables are split at blanks, commas and bars.

    :param name: what a user gave
    :param field: name of the parameter, for the error text
    :raises InvalidInputError: it is no text, empty, longer than 128, or holds other characters than
        ``A-Z a-z 0-9 . _ -``
    """
    if not isinstance(name, str):
        raise InvalidInputError(field, f"is {type(name).__name__}. Give text.")
    if not name:
        raise InvalidInputError(field, "is empty. Give a name, or leave it out.")
    if bad := re.search(r"[^A-Za-z0-9._-]", name):
        raise InvalidInputError(
            field,
            f"{_shown(name)} holds {bad[0]!r}. Use letters, digits, '.', '_' and '-': "
            f"{slug(name, _JOB_NAME_LENGTH)!r}.",
        )
    if len(name) > _JOB_NAME_LENGTH:
        raise InvalidInputError(field, f"has {len(name)} characters; a job name ends at {_JOB_NAME_LENGTH}.")
    return name


def slug(text: str, limit: int) -> str:
    """A name for a job, made of any text. Different texts may give the same.

    :param text: any text; letters with accents lose them, other characters become ``-``
    :param limit: most characters of the name, at least 1
    :return: one or more of ``A-Z a-z 0-9 . _ -``, with a letter or digit at its start
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._]+", "-", plain).lstrip("-._")[:limit].rstrip("-._")
    return name or "job"[:limit]


def _shown(value: object) -> str:
    """A value as an error shows it: escaped, and of bearable length."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}..."
