"""Ending the nap of a transfer job: it looks for its object once, and then only once a minute."""

from __future__ import annotations

import contextlib
import logging

from . import jobs
from .errors import HpcError, NotFoundError
from .jobs import check_job_id
from .session import Client
from .states import JobState
from .systems import System

__all__ = ["command", "wake"]

log = logging.getLogger(__name__)

_MARK = "HPC_WAKES"
# What FirecREST calls its jobs that wait for an object: two clusters may give one id to two jobs.
_NAME = "SLURM_JOB_NAME=IngressFileTransfer"


def command(job_id: str) -> str:
    """A shell command that ends the ``sleep`` of one job, on the machine where it runs.

    A process is ended only if its name is ``sleep`` and its own environment says that it belongs to a job of
    this id that waits for an object.
    The command looks for two seconds at the most, since the job may just be between two naps; its own naps
    bear a mark. It always succeeds. It is one word to the login node's shell and one to ``srun``: the gateway
    quotes neither.

    :param job_id: id of the job
    :raises InvalidInputError: that is no id
    """
    mine = f"SLURM_JOB_ID={check_job_id(job_id)}"
    look = (
        "for p in /proc/[0-9]*; do "
        'read -r name <"$p/comm" || continue; [ "$name" = sleep ] || continue; '
        'env=$(tr "\\0" "\\n" <"$p/environ") || continue; '
        'case "$env" in *' + _MARK + "=*) continue;; esac; "
        f'echo "$env" | grep -qx {mine} || continue; '
        f'echo "$env" | grep -qx {_NAME} || continue; '
        "kill ${p#/proc/} && done=yes; "
        "done"
    )
    naps = f'{look}; [ -z "$done" ] || break; {_MARK}=1 sleep 0.2'
    return f"sh -c '( done=; for i in 1 2 3 4 5 6 7 8 9; do {naps}; done ) 2>/dev/null; exit 0'"


def wake(client: Client, system: System, job_id: str) -> str:
    """Let a running transfer job look for its object now; whatever comes of it, waiting stays correct.

    :param client: an open client
    :param system: where the job is
    :param job_id: id of a job that waits for an object which is complete
    :return: what was done and why, as a sentence
    """
    if system.rest_mode:
        why = f"system {system.name} cannot be told in REST mode"
        return f"Job {job_id} looks for the object once a minute: {why}."
    state = None
    try:
        # Accounting is seconds behind: a job that runs may be pending for it, or not be there at all.
        state = _state(client, system, job_id)
        if state and state.final:
            return f"Job {job_id} is {state.value}: it needs no waking."
        client.send(jobs.attach(system.name, job_id, command(job_id)))
    except HpcError as error:
        # A job that ends meanwhile ends the command, too.
        if state and not state.waiting:
            with contextlib.suppress(HpcError):
                state = _state(client, system, job_id)
        if state and (state.waiting or state.final):
            return f"Job {job_id} is {state.value}: it needs no waking."
        return f"Job {job_id} looks for the object once a minute: it could not be told. {error}"
    return f"Job {job_id} was told that the object is complete."


def _state(client: Client, system: System, job_id: str) -> JobState | None:
    with contextlib.suppress(NotFoundError):
        return client.send(jobs.get(system.name, job_id)).state
    return None
