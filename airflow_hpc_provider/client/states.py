"""States of jobs as Slurm names them, what each means for those who wait, and what to tell users about it."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable

__all__ = ["JobState", "advice", "stuck", "worst"]

_WAITING, _RUNNING, _ENDED, _UNKNOWN = "waiting", "running", "ended", "unknown"
# What may be true of a state that ends a job.
_INFRASTRUCTURE, _REQUEUEABLE = "infrastructure", "requeueable"


class JobState(enum.Enum):
    """State of a job, of one element of an array, or of a step.

    The one table of states, after Slurm's "Job State Codes" and the man page of ``squeue``: name, short code,
    phase, and what else is true of it. **The order counts:** of several states, :func:`worst` takes the one
    that comes first here: whatever still runs, then what still waits, then the failure that explains most:
    first those that the job caused, which come again if it is repeated, then those of the infrastructure,
    then cancellation, which is often the consequence of another's failure, and success last.
    """

    # Nodes are allocated and the script has begun, or its remains are being cleared away.
    RUNNING = ("RUNNING", "R", _RUNNING)
    SIGNALING = ("SIGNALING", "SI", _RUNNING)
    RESIZING = ("RESIZING", "RS", _RUNNING)
    EXPEDITING = ("EXPEDITING", "", _RUNNING)
    SUSPENDED = ("SUSPENDED", "S", _RUNNING)
    STOPPED = ("STOPPED", "ST", _RUNNING)
    STAGE_OUT = ("STAGE_OUT", "SO", _RUNNING)
    COMPLETING = ("COMPLETING", "CG", _RUNNING)
    UPDATE_DB = ("UPDATE_DB", "", _RUNNING)
    # The script has not begun, or will begin anew.
    CONFIGURING = ("CONFIGURING", "CF", _WAITING)
    POWER_UP_NODE = ("POWER_UP_NODE", "", _WAITING)
    # Held: somebody has to release the job.
    SPECIAL_EXIT = ("SPECIAL_EXIT", "SE", _WAITING)
    REQUEUE_HOLD = ("REQUEUE_HOLD", "RH", _WAITING)
    RESV_DEL_HOLD = ("RESV_DEL_HOLD", "RD", _WAITING)
    REQUEUED = ("REQUEUED", "RQ", _WAITING)
    REQUEUE_FED = ("REQUEUE_FED", "RF", _WAITING)
    PENDING = ("PENDING", "PD", _WAITING)
    # A word that is in no table, or none at all: the job may be anywhere, so it is not over.
    UNKNOWN = ("UNKNOWN", "", _UNKNOWN)
    # Over, by the job's own doing.
    OUT_OF_MEMORY = ("OUT_OF_MEMORY", "OOM", _ENDED)
    TIMEOUT = ("TIMEOUT", "TO", _ENDED)
    FAILED = ("FAILED", "F", _ENDED)
    DEADLINE = ("DEADLINE", "DL", _ENDED)
    # Over, by no fault of the job. Slurm requeues after the failure of a node and after preemption (sbatch
    # --requeue).
    NODE_FAIL = ("NODE_FAIL", "NF", _ENDED, _INFRASTRUCTURE, _REQUEUEABLE)
    BOOT_FAIL = ("BOOT_FAIL", "BF", _ENDED, _INFRASTRUCTURE, _REQUEUEABLE)
    LAUNCH_FAILED = ("LAUNCH_FAILED", "", _ENDED, _INFRASTRUCTURE, _REQUEUEABLE)
    RECONFIG_FAIL = ("RECONFIG_FAIL", "", _ENDED, _INFRASTRUCTURE, _REQUEUEABLE)
    PREEMPTED = ("PREEMPTED", "PR", _ENDED, _INFRASTRUCTURE, _REQUEUEABLE)
    # Another cluster of the federation runs it: over here, but not to be repeated.
    REVOKED = ("REVOKED", "RV", _ENDED)
    CANCELLED = ("CANCELLED", "CA", _ENDED)
    COMPLETED = ("COMPLETED", "CD", _ENDED)

    code: str
    """Short code, as ``squeue -o %t`` prints it."""
    _phase: str
    _traits: tuple[str, ...]

    def __new__(cls, name: str, code: str, phase: str, *traits: str) -> JobState:  # noqa: PYI034 (enums have no subclasses)
        """One row of the table; the value of the member is its name, which is how it is stored and sent."""
        member = object.__new__(cls)
        member._value_ = name
        member.code = code
        member._phase = phase
        member._traits = traits
        return member

    @classmethod
    def read(cls, value: object) -> JobState:
        """The state in what a gateway answered.

        Takes ``CANCELLED by 1001`` and ``CANCELLED+`` of sacct, the short codes of squeue, the letters of PBS
        that mean nothing else in Slurm, and the lists of Slurm's REST API: a base state and its flags. Of
        these, what is not final wins (``["COMPLETED", "COMPLETING"]`` is not over), the last one if there are
        more, since flags come after the base state and tell more.

        :param value: text, a list of texts, or anything else
        :return: the state; ``UNKNOWN`` for whatever cannot be read
        """
        if isinstance(value, list | tuple):
            states = [cls.read(item) for item in value]
            going_on = [state for state in states if not state.final]
            known = [state for state in going_on if state is not cls.UNKNOWN]
            return (known or going_on)[-1] if going_on else worst(states)
        if not isinstance(value, str):
            return cls.UNKNOWN
        word = re.match(r"[A-Z_]+(?=\s|\+|$)", value.strip().upper())
        return _BY_NAME.get(word[0], cls.UNKNOWN) if word else cls.UNKNOWN

    @classmethod
    def read_pbs(cls, value: object, exit_code: int | None) -> JobState:
        """The state in a PBS letter; for systems whose scheduler is PBS.

        FirecREST passes the letters of ``qstat`` on as they are, and there ``F`` (in Slurm: failed) and ``X``
        only say that the job is over; how it went is in its exit status alone.

        :param value: what stands for the state: a letter of ``qstat``
        :param exit_code: ``Exit_status`` of the job; PBS gives -29 to jobs over their time and -27 to those
            over their memory
        """
        if value not in ("F", "X"):
            return cls.read(value)
        ends = {0: cls.COMPLETED, -29: cls.TIMEOUT, -27: cls.OUT_OF_MEMORY, None: cls.UNKNOWN}
        return ends.get(exit_code, cls.FAILED)

    @property
    def final(self) -> bool:
        """The job is over. Slurm may still requeue it: see ``requeueable``."""
        return self._phase == _ENDED

    @property
    def succeeded(self) -> bool:
        """All processes ended with exit code zero."""
        return self is JobState.COMPLETED

    @property
    def running(self) -> bool:
        """The script has begun and is not done with: running, suspended, or being cleared away."""
        return self._phase == _RUNNING

    @property
    def waiting(self) -> bool:
        """The script has not begun, or will begin anew: queued, held, requeued, or its nodes boot."""
        return self._phase == _WAITING

    @property
    def held(self) -> bool:
        """It waits until somebody releases it."""
        return self in (JobState.SPECIAL_EXIT, JobState.REQUEUE_HOLD, JobState.RESV_DEL_HOLD)

    @property
    def infrastructure(self) -> bool:
        """It is over by no fault of its own: the same job may well succeed when it is submitted again."""
        return _INFRASTRUCTURE in self._traits

    @property
    def requeueable(self) -> bool:
        """It is over, but Slurm may start the same job again: believe it only when it still stands later."""
        return _REQUEUEABLE in self._traits


# PBS letters (qstat) that are no short codes of Slurm. F and X are left out: see JobState.read_pbs.
_PBS = {
    "B": JobState.RUNNING,
    "E": JobState.COMPLETING,
    "H": JobState.PENDING,
    "Q": JobState.PENDING,
    "T": JobState.PENDING,
    "U": JobState.SUSPENDED,
    "W": JobState.PENDING,
}
_BY_NAME = (
    _PBS
    | {state.code: state for state in JobState if state.code}
    | {state.value: state for state in JobState}
)
_ORDER = {state: place for place, state in enumerate(JobState)}


def worst(states: Iterable[JobState]) -> JobState:
    """The state of a whole from the states of its parts, such as of an array from its elements.

    :param states: states of the parts
    :return: one of them: what is not final while any is not, COMPLETED if all are, otherwise the failure that
        explains most, in the order of the table in :class:`JobState`; ``UNKNOWN`` if there are none
    """
    return min(states, key=_ORDER.__getitem__, default=JobState.UNKNOWN)


_LATER = "let the task retry"
_RELEASE = "it stays until somebody releases it (scontrol release)"
_ADVICE = {
    JobState.TIMEOUT: (
        "It reached its time limit: ask for more (sbatch_options time), or go on from a checkpoint."
    ),
    JobState.OUT_OF_MEMORY: (
        "It used more memory than it asked for: ask for more (sbatch_options mem or mem_per_cpu), or spread "
        "it over more nodes."
    ),
    JobState.NODE_FAIL: f"One of its nodes failed, not the job: {_LATER}.",
    JobState.BOOT_FAIL: f"A node for it did not boot: {_LATER}.",
    JobState.LAUNCH_FAILED: f"Slurm could not launch it, because a prolog failed for example: {_LATER}.",
    JobState.RECONFIG_FAIL: f"Slurm could not configure its nodes: {_LATER}.",
    JobState.PREEMPTED: (
        f"A job of higher priority took its nodes: {_LATER}, or use a QOS that is not preempted."
    ),
    JobState.DEADLINE: (
        "It could not end before its deadline: give a later one (sbatch_options deadline), or a shorter time."
    ),
    JobState.CANCELLED: "A user or an administrator cancelled it (scancel).",
    JobState.REVOKED: "Another cluster of the federation started it: look for it there.",
    JobState.SPECIAL_EXIT: f"It is held in a special exit state of the site: {_RELEASE}.",
    JobState.REQUEUE_HOLD: f"It was requeued and held: {_RELEASE}.",
    JobState.RESV_DEL_HOLD: f"Its reservation was deleted: {_RELEASE}.",
}


def advice(state: JobState, reason: str | None) -> str | None:
    """What a user can do about a state, in one line.

    :param state: state of the job
    :param reason: Slurm's reason; a job that is over may still carry its last reason for waiting, so it is
        heeded only where it explains the end
    :return: the line, or None if there is nothing to say
    """
    word = _reason_word(reason)
    if state.waiting:
        return stuck(reason) or _ADVICE.get(state)
    if state is JobState.CANCELLED and word == "dependencyneversatisfied":
        return "Slurm cancelled it because a job that it depends on did not end as needed: look at that job."
    if state is JobState.FAILED and word == "joblaunchfailure":
        return "It could not be launched: check that its working directory and the folders of its logs exist."
    if state is JobState.FAILED and word == "outofmemory":
        return _ADVICE[JobState.OUT_OF_MEMORY]
    return _ADVICE.get(state)


_SMALLER = "Cancel it and submit it with a smaller request"
# Reasons for waiting that do not pass by themselves, from Slurm's "Job Reason Codes", in lower case; the
# first that matches the whole word counts. What is not here passes: other jobs end, limits count only what
# runs now.
_STUCK = {
    "dependencyneversatisfied": "a job that it depends on ended in another way than asked for. Cancel it.",
    "jobhelduser": "it is held. Release it (scontrol release), or cancel it and submit it without hold.",
    "jobheldadmin": "an administrator holds it. Ask the centre's support.",
    "jobholdmaxrequeue": "it failed to start so often that Slurm holds it. Ask the centre's support.",
    "launch_failed_requeued_held": "its launch failed and Slurm holds it. Ask the centre's support.",
    "reservationdeleted": "its reservation is gone. Cancel it and submit it without, or with another.",
    "invalidaccount": "its account is not valid. Cancel it and give another account.",
    "accountnotallowed": "its account may not use this partition. Cancel it and give another of either.",
    "invalidqos|qosnotallowed": "its QOS is not valid here. Cancel it and give another (sbatch_options qos).",
    "badconstraints": f"no node can ever satisfy it. {_SMALLER} or other constraints.",
    "(assoc|qos)max.*wall.*|(association|qos)timelimit|partitiontimelimit": (
        "it asks for more time than allowed. Cancel it and ask for less (sbatch_options time), or use "
        "another partition or QOS."
    ),
    "(assoc|qos)max.*per(job|node).*": f"it asks for more than one job may have. {_SMALLER}.",
    "maxmemperlimit": f"it asks for more memory than a node or CPU of it may have. {_SMALLER}.",
    "qosmin.*": "it asks for less than its QOS demands. Cancel it and ask for more, or use another QOS.",
    # The budget of past, present and future jobs; limits on the minutes of what runs now (RunMinutes) pass.
    "(assoc|qos)grp(?!.*run).*minutes.*": (
        "the budget of its account or QOS is used up. Ask for more, or use another account."
    ),
    "partitionnodelimit|partitionconfig": (
        f"it asks for what its partition does not have or allow. {_SMALLER}, or use another partition."
    ),
    "burstbufferoperation": "its burst buffer failed. Cancel it and check its burst buffer options.",
    "deadline": "it can no longer end before its deadline. Cancel it, or give a later one.",
    "reqnodenotavail|nodedown": (
        "nodes that it needs are down, drained or taken, and it starts only when they are back. Do not "
        "ask for certain nodes, or ask the centre's support."
    ),
}


def stuck(reason: str | None) -> str | None:
    """Why a waiting job will not start by itself.

    :param reason: Slurm's reason for waiting, such as ``Resources`` or ``ReqNodeNotAvail,
        UnavailableNodes:n1``
    :return: a sentence that says so and what to do, or None if the reason passes by itself or is not known
    """
    word = _reason_word(reason)
    # Nodes that are kept for a maintenance or for others come back at a time that is already fixed.
    if reason and word == "reqnodenotavail" and "reserved" in reason.lower():
        return None
    for pattern, sentence in _STUCK.items():
        if re.fullmatch(pattern, word):
            return f"It will not start by itself ({(reason or '').strip(' ()')}): {sentence}"
    return None


def _reason_word(reason: str | None) -> str:
    """The code at the start of a reason, in lower case, without squeue's parentheses and what follows."""
    text = (reason or "").strip().lstrip("(").lower()
    held = re.match(r"launch[ _]failed[ _]requeued[ _]held", text)
    return held[0].replace(" ", "_") if held else re.split(r"[^a-z0-9_]", text, maxsplit=1)[0]
