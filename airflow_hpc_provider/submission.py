"""Exactly-one submission: a name to find a job again by, the intent written down first, and the look-up."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .client import jobs
from .client.calls import Call, JSONObject
from .client.errors import HpcError, JobError, NotFoundError, WatchError
from .client.jobs import Job, JobSpec
from .client.script import slug
from .client.variation import Variation

if TYPE_CHECKING:
    from .client.session import Client

__all__ = [
    "STATE_KEY",
    "Identity",
    "OnExisting",
    "Record",
    "Store",
    "Submission",
    "fingerprint",
    "job_name",
    "settle",
    "submit_once",
]

log = logging.getLogger(__name__)
T = TypeVar("T")
OnExisting = Literal["attach", "fail", "resubmit"]

# Key in Airflow's task state store. Running tasks depend on it: it never changes.
STATE_KEY = "hpc_job"

# After an answer that leaves the fate of a submission open, the job is looked for this long, in seconds:
# the gateway gives up on sbatch after 5 s, and accounting may show a job's name some seconds late.
_LOOK_FOR = 15.0
_LOOK_EVERY = 3.0
_SENDS = 4
# So many seconds after its intent a job may still be on its way: it is sent again after a doubtful answer,
# and after a pause that the gateway asks for.
_SENT_WITHIN = 900.0
_AS_ASKED = Variation()
# This machine's clock and the cluster's may differ by so many seconds.
_CLOCKS_DIFFER = 180.0
# Accounting may know a short job only by this name for so many seconds after its end.
_NAMELESS, _NAMELESS_FOR = (None, "allocation"), 90.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a task instance one of its kind; a retry keeps it, a clear starts a new generation."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the task state store holds about a submission.

    :param phase: ``intent`` before the job is sent, ``submitted`` once its id is known
    :param name: job name
    :param generation: 0, and one more after a clear or after a job that failed
    :param fingerprint: of what the user asked for, whatever a generation varies
    :param max_tries: the task instance's, which a retry keeps and a clear raises
    :param at: epoch seconds of the intent
    :param job_id: id of the job, once known
    :param system: system it was sent to
    :param variation: how it differs from what the user asked for
    """

    phase: Literal["intent", "submitted"]
    name: str
    generation: int
    fingerprint: str
    max_tries: int
    at: float
    system: str
    job_id: str | None = None
    variation: Variation = _AS_ASKED

    def to_json(self) -> JSONObject:
        """Plain JSON for the store."""
        return asdict(self) | {"variation": self.variation.to_json()}

    @classmethod
    def from_json(cls, plain: Any) -> Record | None:
        """The record in the store, or None if there is none that can be read."""
        try:
            # A later version may have written more: a job that is known must not be lost by it.
            known = {item.name: plain[item.name] for item in fields(cls) if item.name in plain}
            return cls(**known | {"variation": Variation.from_json(known.get("variation"))})
        except (TypeError, KeyError):
            return None


class Store:
    """The one key of the task state store that is used here; keeps nothing where Airflow has no store.

    :param accessor: ``context["task_state_store"]``, or None
    """

    def __init__(self, accessor: Any) -> None:
        self._accessor = accessor

    @property
    def durable(self) -> bool:
        """Whether what is saved outlives this try."""
        return self._accessor is not None

    def load(self) -> Record | None:
        """The record of an earlier try."""
        return Record.from_json(self._accessor.get(STATE_KEY)) if self._accessor is not None else None

    def save(self, record: Record) -> None:
        """Write a record down."""
        if self._accessor is not None:
            self._accessor.set(STATE_KEY, record.to_json())


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """The job that a task stands for.

    :param job_id: its id
    :param name: its name
    :param since: epoch seconds at which it was sent, or the intent of it written down
    :param adopted: it was there already
    :param variation: how it differs from what the user asked for
    """

    job_id: str
    name: str
    since: float
    adopted: bool = False
    variation: Variation = _AS_ASKED


def job_name(base: str, identity: Identity, generation: int) -> str:
    """A name that only this task instance and generation give: ``<base>-<10 hex digits>``.

    :param base: the user's job name, or the task id
    :return: at most 128 characters of ``[A-Za-z0-9._-]``
    """
    told = json.dumps([identity.dag_id, identity.run_id, identity.task_id, identity.map_index, generation])
    digest = hashlib.sha256(told.encode()).hexdigest()[:10]
    return f"{slug(base, 117)}-{digest}"


def fingerprint(spec: JobSpec) -> str:
    """A digest of what is submitted, apart from its name: another script is another job."""
    told = json.dumps(replace(spec, name="").body(), sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def submit_once(
    client: Client,
    system: str,
    spec_for: Callable[[str, Variation], JobSpec],
    *,
    base_name: str,
    identity: Identity,
    store: Store,
    max_tries: int,
    on_existing: OnExisting = "attach",
    vary: Callable[[Job, str, Variation], Variation] = lambda _job, _name, before: before,
    prepare: Callable[[JobSpec], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> Submission:
    """Find the job of this task instance, or submit it; never twice.

    :param spec_for: makes the job of a name and a variation
    :param base_name: first part of the job's name
    :param identity: the task instance
    :param store: where the intent is written before the job is sent
    :param max_tries: the task instance's, which tells a retry from a clear
    :param on_existing: what to do if an earlier try's job waits, runs or has completed: ``attach`` to it,
        ``fail``, or cancel it and ``resubmit``; one that failed is always followed by another
    :param vary: how the job differs that follows one that failed: given that job, its name and its variation
    :param prepare: called with a job right before it is sent
    :raises JobError: there is such a job, and it shall not be
    :raises HpcError: the gateway refused the job, or its fate could not be learned
    """
    # The fingerprint is of what the user asked for: without a name and as yet without variation.
    digest = fingerprint(spec_for("fingerprint", _AS_ASKED))
    written = store.load()
    generation = written.generation if written else 0
    record = written
    if written and (why := _starts_anew(written, digest, system, max_tries)):
        log.info("%s: a new job is submitted.", why)
        _cancel_quietly(client, written)
        generation, record = generation + 1, None
    variation = record.variation if record else _AS_ASKED
    # Without a store nobody knows whether an earlier try sent the job: only its name can tell.
    look_first = record is not None or not store.durable
    while True:
        # What an earlier try has sent is found by the name it had then.
        name = record.name if record else job_name(base_name, identity, generation)
        intent = Record(
            phase="intent",
            name=name,
            generation=generation,
            fingerprint=digest,
            max_tries=max_tries,
            at=record.at if record else clock(),
            system=system,
            variation=variation,
        )
        found = _known(client, system, name, record, sleep=sleep, clock=clock) if look_first else None
        if found is None:
            break
        good = found.state.succeeded or not found.state.final
        if good and on_existing == "fail":
            raise JobError(
                f"Job {found.job_id} ({name}) of an earlier try is {found.state.value}; "
                "on_existing='fail' forbids to go on with it."
            )
        if good and on_existing == "attach":
            store.save(replace(intent, phase="submitted", job_id=found.job_id))
            log.info("Job %s (%s) is there already and %s: attached.", found.job_id, name, found.state.value)
            return Submission(
                job_id=found.job_id, name=name, since=intent.at, adopted=True, variation=variation
            )
        log.info("Job %s (%s) is %s; another one follows.", found.job_id, name, found.state.value)
        if not found.state.final:
            client.send(jobs.cancel(system, found.job_id))
        if not good:
            variation = vary(found, name, variation)
        generation, record, look_first = generation + 1, None, not store.durable
    spec = spec_for(name, variation)
    prepare(spec)
    intent = replace(intent, at=clock())
    store.save(intent)
    job_id = _send(client, system, spec, sleep=sleep, clock=clock)
    submission = Submission(job_id=job_id, name=name, since=intent.at, variation=variation)
    try:
        store.save(replace(intent, phase="submitted", job_id=job_id))
    except Exception:
        # A process that Airflow has given up can write nothing any more, and another try may run beside it.
        settle(client, system, submission, Store(None))
        raise
    return submission


def _starts_anew(record: Record, digest: str, system: str, max_tries: int) -> str | None:
    """Why what an earlier try wrote down does not count any more."""
    if record.max_tries != max_tries:
        return "The task was cleared"
    if record.fingerprint != digest or record.system != system:
        return "What is submitted has changed since the last try"
    return None


def settle(
    client: Client, system: str, submission: Submission, store: Store
) -> tuple[Submission, Job | None]:
    """Look for a job by its name a moment after it was sent: of two tries side by side both may send it.

    Airflow may start a task again while its former process lives on: its heartbeat was lost, or its parent
    was killed. Both look here, and both come to the same end: the earliest job is the task's, the others are
    cancelled.

    :return: the job that the task stands for, and what was seen of it, if it can be seen by its name yet
    :raises HpcError: the gateway could not be asked
    """
    found = _by_name(client, system, submission.name, since=submission.since, ours=submission.job_id)
    if found is None or found.job_id == submission.job_id:
        return submission, found
    if _number(found.job_id) > _number(submission.job_id):
        # Ours cannot be seen by its name yet, another try's can: that one is the later of the two.
        if not found.state.final:
            log.warning("Job %s has the same name as job %s: cancelled.", found.job_id, submission.job_id)
            client.send(jobs.cancel(system, found.job_id))
        return submission, None
    log.warning(
        "Job %s was submitted before job %s and has its name: attached.", found.job_id, submission.job_id
    )
    client.send(jobs.cancel(system, submission.job_id))
    if record := store.load():
        store.save(replace(record, job_id=found.job_id))
    return replace(submission, job_id=found.job_id, adopted=True), found


def _known(
    client: Client,
    system: str,
    name: str,
    record: Record | None,
    *,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> Job | None:
    """The job of an earlier try: by its id where that is known, else by its name."""
    if record is None:
        return _by_name(client, system, name)
    if record.job_id is None:
        # The try before may have been lost a moment ago, between sending and the answer.
        until = clock() + (_LOOK_FOR if clock() - record.at < _SENT_WITHIN else 0.0)
        return _look_for(client, system, name, since=record.at, until=until, sleep=sleep, clock=clock)
    try:
        return client.send(jobs.get(system, record.job_id))
    except NotFoundError:
        log.info("Job %s is not known by its id; looking for its name %s.", record.job_id, name)
    return _by_name(client, system, name, since=record.at)


def _by_name(
    client: Client, system: str, name: str, *, since: float | None = None, ours: str | None = None
) -> Job | None:
    """The earliest job of a name; later ones come of two tries that ran side by side, and are cancelled.

    :param since: epoch seconds before which no job can be meant: a DAG run that was deleted and made anew
        gives its jobs the names of the former one's
    :param ours: id of the job that is looked for, if it is known
    """
    window = jobs.window_for(time.time() - since) if since else "24h"
    found = [
        job
        for job in client.send(jobs.listing(system, name=name, window=window))
        if not since or job.start is None or job.start.timestamp() >= since - _CLOCKS_DIFFER
    ]
    if not found or [job.job_id for job in found] == [ours]:
        return found[0] if found else None
    first, own = _whole(client, system, found[0], ours)
    for twin in found[1:] if own else []:
        if twin.job_id not in own | {first.job_id} and not twin.state.final:
            log.warning("Job %s has the same name as job %s: cancelled.", twin.job_id, first.job_id)
            client.send(jobs.cancel(system, twin.job_id))
    return first


def _whole(client: Client, system: str, job: Job, ours: str | None) -> tuple[Job, frozenset[str]]:
    """The job, or the array that it is an element of, and all ids of that; none if it cannot be seen.

    Running elements of an array are listed under raw ids, and for a while perhaps without their array.
    """
    own = _ids(client, system, job.job_id)
    arrays = {job_id.partition("_")[0] for job_id in own if "_" in job_id} - {job.job_id}
    if ours is not None and job.job_id != ours and job.job_id in _ids(client, system, ours):
        arrays = {ours}
    for array in arrays:
        with contextlib.suppress(NotFoundError):
            return client.send(jobs.get(system, array)), own | _ids(client, system, array)
    return job, own


def _ids(client: Client, system: str, job_id: str) -> frozenset[str]:
    try:
        return client.send(jobs.ids(system, job_id))
    except NotFoundError:
        return frozenset()


def _send(
    client: Client,
    system: str,
    spec: JobSpec,
    *,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> str:
    """Send a job. A POST is never blindly repeated: after an answer that leaves its fate open, look first."""
    call: Call[str] = jobs.submit(system, spec)
    doubtful = False
    for attempt in range(1, _SENDS + 1):
        try:
            job_id = client.send(call)
        except HpcError as error:
            if not error.ambiguous:
                raise
            doubtful = True
            log.warning("%s Looking for job %s before sending it again.", error, spec.name)
            until = clock() + _LOOK_FOR
            try:
                found = _look_for(client, system, spec.name, until=until, sleep=sleep, clock=clock)
            except HpcError as trouble:
                # Whatever keeps us from looking, the job may be there: only a retry can tell.
                raise WatchError(
                    f"Job {spec.name} may or may not have been submitted to system {system}; a retry looks "
                    f"for it. {trouble}"
                ) from trouble
            if found is not None:
                log.info("Job %s is %s: it was submitted after all.", spec.name, found.job_id)
                return found.job_id
            if attempt == _SENDS:
                raise
            continue
        if doubtful:
            # The one before may come late: of two, the earliest is ours. When this one shows up, so has that.
            until, found = clock() + _LOOK_FOR, None
            with contextlib.suppress(HpcError):  # this one is known, and must not be lost
                found = _look_for(client, system, spec.name, until=until, sleep=sleep, clock=clock)
            if found is not None and _number(found.job_id) < _number(job_id):
                log.warning("Job %s was submitted before job %s, which is cancelled.", found.job_id, job_id)
                client.send(jobs.cancel(system, job_id))
                return found.job_id
        return job_id
    raise AssertionError("unreachable")  # pragma: no cover


def _number(job_id: str) -> tuple[int, str]:
    """Ids of a scheduler rise, and are compared as numbers."""
    return len(job_id), job_id


def _look_for(
    client: Client,
    system: str,
    name: str,
    *,
    until: float,
    since: float | None = None,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> Job | None:
    """Look for a job by its name until it is there, or the time is over.

    That takes longer while there is a job whose name accounting has yet to learn: it may be the one.
    """
    begun = clock()
    while True:
        last = clock() >= until
        # Asked before the look by name: its name may become known in between.
        hidden = (
            last
            and begun < until
            and clock() < until + _NAMELESS_FOR
            and _any_nameless(client, system, since or begun - _LOOK_FOR)
        )
        found = _by_name(client, system, name, since=since)
        if found is not None or (last and not hidden):
            return found
        sleep(_LOOK_EVERY)


def _any_nameless(client: Client, system: str, since: float) -> bool:
    """Whether a job that is over, and began no earlier than that, has no name yet."""
    return any(
        job.state.final
        and job.name in _NAMELESS
        and (job.start is None or job.start.timestamp() >= since - _CLOCKS_DIFFER)
        for job in client.send(jobs.listing(system, window="1h"))
    )


def _cancel_quietly(client: Client, record: Record) -> None:
    """Cancel the job of a former generation if it is still there."""
    try:
        if record.job_id:
            client.send(jobs.cancel(record.system, record.job_id))
            return
        found = _by_name(client, record.system, record.name, since=record.at)
        if found and not found.state.final:
            client.send(jobs.cancel(record.system, found.job_id))
    except HpcError as error:
        log.warning("The job of the former run (%s) could not be cancelled: %s", record.name, error)
