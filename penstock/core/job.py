"""The life of a job: which transitions are legal, and what each event does.

Rules of the machine:

1. Every event is a *proposal*. :func:`apply` accepts it and returns the job's next state, or refuses it and returns why.
   It looks at nothing but the job, the event and the line's place and time, so all who fold the same lines agree.
2. :data:`TRANSITIONS` is the whole of what is legal. A job state that is not a key of an event's row refuses the event;
   an accepted event leads to one of the states listed. The documentation's diagram is drawn from this table.
3. Whoever decides on a state says on which. Holder events (``Progressed``, ``Succeeded``, ``Failed``, ``Returned``) name
   the lease. A leader's name the lease, or ``seen``: the position of the job's last accepted change, and carry
   its epoch (checked in :mod:`penstock.core.partition`). Verbs name the ``Enqueued`` they mean. A mismatch is ``stale``.
4. An event id that was already accepted is a ``duplicate``: no effect.
5. Attempts are counted at ``Leased``. What gives a job back before it could fail gives the attempt back too.
6. A job's time never runs backwards: it is the later of its last time and the record's.
7. ``Progressed`` changes no position that others compare with (``seen``), or frequent progress would starve them.
8. With a cancel pending, success still wins; every other end of the lease is ``cancelled``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from hashlib import sha256
from typing import Literal, NamedTuple, cast

from msgspec import Raw, Struct

from penstock.core.retry import delay_ms
from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line
from penstock.schemas.ids import job_key

State = Literal[
    "scheduled", "blocked", "held", "ready", "active", "retrying", "succeeded", "partial", "dead", "cancelled", "expired"
]

WAITING: frozenset[State] = frozenset({"scheduled", "blocked", "held", "ready", "retrying"})
TERMINAL: frozenset[State] = frozenset({"succeeded", "partial", "dead", "cancelled", "expired"})

Table = Mapping[str, Mapping[State | None, frozenset[State | None]]]


def _to(*states: State | None) -> frozenset[State | None]:
    return frozenset(states)


TRANSITIONS: Table = {
    "Enqueued": {None: _to("scheduled", "ready")},
    "Due": {"scheduled": _to("ready"), "retrying": _to("ready")},
    "Leased": {"ready": _to("active")},
    "Progressed": {"active": _to("active")},
    "Succeeded": {"active": _to("succeeded")},
    "Failed": {"active": _to("retrying", "ready", "dead", "cancelled")},
    "Returned": {"active": _to("ready", "cancelled")},
    "LeaseExpired": {"active": _to("ready", "retrying", "dead", "cancelled")},
    "CancelRequested": {
        "scheduled": _to("cancelled"), "ready": _to("cancelled"), "retrying": _to("cancelled"), "active": _to("active"),
    },
    "Cancelled": {"active": _to("cancelled")},
    "RetryRequested": {"dead": _to("ready"), "cancelled": _to("ready"), "expired": _to("ready")},
    "DeadLettered": {"dead": _to("dead")},
    "Expired": {"scheduled": _to("expired"), "ready": _to("expired"), "retrying": _to("expired")},
    "Forgotten": {state: _to(None) for state in ("succeeded", "partial", "dead", "cancelled", "expired")},
}  # fmt: skip
"""Event type → state before (None: no such job) → states it may lead to (None: the job is gone)."""


class Verdict(Struct, array_like=True, frozen=True):
    """What became of a verb, kept until a late copy of it can no longer arrive."""

    event_id: str
    outcome: str
    not_after_ms: int


class Job(Struct, array_like=True, kw_only=True):
    """Everything the fold knows of a job. Bodies stand here by SHA-256 of their bytes as written.

    Encoded (msgpack, fields in this order) this is the row that state digests cover: only ever append fields, with defaults.
    Treat as immutable: :func:`apply` returns a changed copy.
    """

    id: str
    tenant: str
    job_type: str
    queue: str
    pool: str
    priority: ev.Priority
    enqueued_id: str
    request_hash: str
    payload_hash: bytes
    metadata_hash: bytes = b""
    tags: tuple[str, ...] = ()
    max_attempts: int
    backoff: ev.Backoff
    timeout_ms: int = 0
    expires_at_ms: int = 0

    state: State
    seen: int
    """Position (packed) of the last accepted change that counts for compare-and-set."""
    order: int
    """Position (packed) that ranks the job in its backlog; kept when the job is given back."""
    last_event: str
    time_ms: int
    """Log time of the last accepted line, never before the one before it."""

    attempt: int = 0
    attempts_allowed: int = 0
    """``max_attempts``, and more after a retry was asked for."""
    due_at_ms: int = 0
    """When a scheduled or retrying job may run."""
    lease: str = ""
    leased_at: int = -1
    """Position (packed) of the lease: the fence."""
    lease_ms: int = 0
    worker: str = ""
    incarnation: str = ""
    via: str = ""
    progress_seq: int = 0
    percent: float | None = None
    message: str = ""
    checkpoint_hash: bytes = b""
    cancel: str = ""
    """Event id of the pending ``CancelRequested``."""
    outcome_id: str = ""
    """Event id that ended the last lease."""
    result_hash: bytes = b""
    error_code: str = ""
    error_message: str = ""
    dead_lettered: bool = False
    created_at_ms: int = 0
    scheduled_at_ms: int = 0
    started_at_ms: int = 0
    finished_at_ms: int = 0
    verdicts: tuple[Verdict, ...] = ()
    last_run_ms: int = 0
    refunds: int = 0
    """Attempts given back in a row because their holder vanished before it started; bounds a job that kills its workers."""

    @property
    def key(self) -> str:
        """The job's name among all tenants."""
        return job_key(self.tenant, self.id)


Outcome = Literal["applied", "duplicate", "stale", "illegal", "conflict", "too_late", "too_early", "unknown_job"]


class Place(NamedTuple):
    """Where and when a line stands: packed position and the log's time in Unix ms."""

    position: int
    time_ms: int


class Applied(NamedTuple):
    """The event is accepted; ``job`` is the next state, None when the job is gone."""

    job: Job | None
    outcome: Outcome = "applied"


class Refused(NamedTuple):
    """The event has no effect. ``job`` is set only where the refusal itself must be remembered."""

    outcome: Outcome
    reason: str
    job: Job | None = None


Decision = Applied | Refused


def apply(job: Job | None, event: ev.AnyEvent, place: Place) -> Decision:
    """Decide on one event of one job. Pure and total: any event on any state gives a decision."""
    kind = type(event).__name__
    if kind == "Enqueued":
        return _enqueued(job, cast(ev.Enqueued, event), place)
    if job is None:
        return Refused("unknown_job", "there is no such job")
    if event.id and event.id in (job.last_event, job.outcome_id, job.lease, job.enqueued_id):
        return Refused("duplicate", "already applied")
    row = TRANSITIONS.get(kind)
    if row is None:
        return Refused("illegal", f"{kind} is not in force")
    if isinstance(event, ev.Verb):
        return _verb(job, event, place, row)
    refusal = _mismatch(job, event)
    if refusal is not None:
        return refusal
    if job.state not in row:
        return Refused("illegal", f"{kind} does not apply to a job that is {job.state}")
    if kind == "Forgotten":
        return _forgotten(job, place)
    after = _BODY[kind](_next(job, event, place), event, place)
    assert after.state in row[job.state], f"{kind} led from {job.state} to {after.state}"
    return Applied(after)


def _mismatch(job: Job, event: ev.AnyEvent) -> Refused | None:
    """Compare and set: does the event speak of the state that is?"""
    lease = getattr(event, "lease", None)
    if lease is not None:
        if job.state != "active" or job.lease != lease:
            return Refused("stale", "the lease is no longer held")
        if isinstance(event, ev.Progressed) and event.seq <= job.progress_seq:
            outcome: Outcome = "duplicate" if event.seq == job.progress_seq else "stale"
            return Refused(outcome, "progress is no newer than what is known")
        return None
    if getattr(event, "seen", -1) != job.seen:
        return Refused("stale", "the job has changed since")
    return None


def _next(job: Job, event: ev.AnyEvent, place: Place) -> Job:
    after = copy(job)
    after.time_ms = max(job.time_ms, place.time_ms)
    if not isinstance(event, ev.Progressed):
        after.seen = place.position
        after.last_event = event.id
    if job.verdicts:
        after.verdicts = tuple(verdict for verdict in job.verdicts if verdict.not_after_ms >= after.time_ms)
    return after


# Beginning and waiting


def body_hash(body: Raw | bytes) -> bytes:
    """SHA-256 of a body's bytes as written; empty for JSON null, which is no body."""
    data = bytes(body)
    return b"" if data == b"null" else sha256(data).digest()


def request_hash(event: ev.Enqueued) -> str:
    """Identity of what was asked for, when the writer gave none: all fields but those of the envelope that vary by sending."""
    bare = ev.Enqueued(
        job=event.job, tenant=event.tenant, job_type=event.job_type, queue=event.queue, pool=event.pool,
        priority=event.priority, payload=event.payload, tags=event.tags, metadata=event.metadata, run_at=event.run_at,
        delay_ms=event.delay_ms, timeout_ms=event.timeout_ms, expires_at=event.expires_at,
        max_attempts=event.max_attempts, backoff=event.backoff, sealed=event.sealed,
    )  # fmt: skip
    return sha256(encode_line(bare)).hexdigest()[:32]


def _enqueued(job: Job | None, event: ev.Enqueued, place: Place) -> Decision:
    hashed = event.request_hash or request_hash(event)
    if job is not None:
        if hashed == job.request_hash:
            return Refused("duplicate", "the job is already there")
        return Refused("conflict", "another job with this id is already there")
    due_at_ms = max(event.run_at, place.time_ms + event.delay_ms if event.delay_ms else 0)
    waits = due_at_ms > place.time_ms
    event_id = event.id or event.job
    return Applied(
        Job(
            id=event.job, tenant=event.tenant, job_type=event.job_type, queue=event.queue, pool=event.pool,
            priority=event.priority, enqueued_id=event_id, request_hash=hashed,
            payload_hash=body_hash(event.payload), metadata_hash=body_hash(event.metadata), tags=event.tags,
            max_attempts=event.max_attempts, attempts_allowed=event.max_attempts, backoff=event.backoff,
            timeout_ms=event.timeout_ms, expires_at_ms=event.expires_at,
            state="scheduled" if waits else "ready", seen=place.position, order=place.position, last_event=event_id,
            time_ms=place.time_ms, due_at_ms=due_at_ms if waits else 0, created_at_ms=place.time_ms,
            scheduled_at_ms=max(due_at_ms, place.time_ms),
        )
    )  # fmt: skip


def _due(job: Job, event: ev.Due, place: Place) -> Job:
    return _make_ready(job, place)


def _make_ready(job: Job, place: Place) -> Job:
    job.state = "ready"
    job.order = place.position
    job.due_at_ms = 0
    return job


def _expired(job: Job, event: ev.Expired, place: Place) -> Job:
    job.error_code, job.error_message = "expired", "not started before it expired"
    return _finish(job, "expired")


def _finish(job: Job, state: State) -> Job:
    job.state = state
    job.finished_at_ms = job.time_ms
    job.due_at_ms = 0
    job.cancel = ""
    return job


# Running


def _leased(job: Job, event: ev.Leased, place: Place) -> Job:
    job.state = "active"
    job.attempt += 1
    job.lease = event.id
    job.leased_at = place.position
    job.lease_ms = event.lease_ms
    job.worker, job.incarnation, job.via = event.worker, event.incarnation, event.via
    job.progress_seq = 0
    job.outcome_id = ""
    job.started_at_ms = job.time_ms
    return job


def _progressed(job: Job, event: ev.Progressed, place: Place) -> Job:
    job.progress_seq = event.seq
    if event.percent is not None:
        job.percent = event.percent
    if event.message:
        job.message = event.message
    if event.checkpoint is not None:
        job.checkpoint_hash = body_hash(event.checkpoint)
    return job


def _succeeded(job: Job, event: ev.Succeeded, place: Place) -> Job:
    job.outcome_id = event.id
    job.result_hash = body_hash(event.result)
    job.last_run_ms = event.run_ms
    job.error_code = job.error_message = ""
    return _finish(job, "succeeded")


def _failed(job: Job, event: ev.Failed, place: Place) -> Job:
    job.outcome_id = event.id
    job.last_run_ms = event.run_ms
    job.refunds = 0
    job.error_code, job.error_message = event.error.code, event.error.message
    return _after_failure(job, place, retryable=event.error.retryable, delay=event.retry_after_ms)


def _after_failure(job: Job, place: Place, *, retryable: bool, delay: int | None) -> Job:
    if job.cancel:
        return _finish(job, "cancelled")
    if not retryable or job.attempt >= job.attempts_allowed:
        return _finish(job, "dead")
    wait_ms = delay_ms(job.backoff, job.key, job.attempt) if delay is None else delay
    if wait_ms == 0:
        return _make_ready(job, place)
    job.state = "retrying"
    job.due_at_ms = job.time_ms + wait_ms
    return job


def _returned(job: Job, event: ev.Returned, place: Place) -> Job:
    job.outcome_id = event.id
    return _give_back(job)


def _give_back(job: Job) -> Job:
    job.attempt -= 1
    if job.cancel:
        return _finish(job, "cancelled")
    job.state = "ready"
    return job


def _lease_expired(job: Job, event: ev.LeaseExpired, place: Place) -> Job:
    job.outcome_id = event.id
    if event.refund and job.refunds < MAX_REFUNDS:
        job.refunds += 1
        return _give_back(job)
    job.error_code, job.error_message = LEASE_ENDS[event.reason]
    return _after_failure(job, place, retryable=True, delay=None if event.reason == "timeout" else 0)


MAX_REFUNDS = 3
"""Attempts in a row that a job gets back when its holder vanishes; then each such end counts."""

LEASE_ENDS: Mapping[str, tuple[str, str]] = {
    "silent": ("lease_expired", "the worker fell silent"),
    "superseded": ("worker_restarted", "the worker was restarted"),
    "timeout": ("timeout", "the attempt ran longer than timeout_ms"),
}
"""Error code and message of a lease that its leader ended, by reason."""


# Verbs


def _verb(job: Job, event: ev.Verb, place: Place, row: Mapping[State | None, frozenset[State | None]]) -> Decision:
    for verdict in job.verdicts:
        if verdict.event_id == event.id:
            return Refused("duplicate", f"already decided: {verdict.outcome}")
    kind = type(event).__name__
    if event.of != job.enqueued_id:
        return Refused("stale", "this job began with another event")
    now_ms = max(job.time_ms, place.time_ms)
    if event.not_after < now_ms:
        return Refused("too_late", "not_after has passed")
    if event.not_after > now_ms + MAX_VERB_AGE_MS:
        return Refused("illegal", f"not_after is more than {MAX_VERB_AGE_MS} ms ahead")
    if job.state not in row or (kind == "CancelRequested" and job.cancel):
        reason = f"{kind} does not apply to a job that is {'being cancelled' if job.cancel else job.state}"
        return Refused("illegal", reason, _remember(copy(job), event, "illegal"))
    after = _BODY[kind](_next(job, event, place), event, place)
    assert after.state in row[job.state], f"{kind} led from {job.state} to {after.state}"
    return Applied(_remember(after, event, "applied"))


MAX_VERB_AGE_MS = 600_000
"""How far ahead of log time a verb's ``not_after`` may lie."""

MAX_VERDICTS = 64
"""Verdicts kept at once; beyond, the oldest goes (a flood of verbs on one job must not grow its row without end)."""


def _remember(job: Job, event: ev.Verb, outcome: str) -> Job:
    job.verdicts = (*job.verdicts, Verdict(event.id, outcome, event.not_after))[-MAX_VERDICTS:]
    return job


def _cancel_requested(job: Job, event: ev.CancelRequested, place: Place) -> Job:
    if job.state == "active":
        job.cancel = event.id
        return job
    return _finish(job, "cancelled")


def _retry_requested(job: Job, event: ev.RetryRequested, place: Place) -> Job:
    job.attempts_allowed = job.attempt + (event.attempts or job.max_attempts)
    job.finished_at_ms = 0
    job.expires_at_ms = 0
    job.dead_lettered = False
    job.error_code = job.error_message = ""
    return _make_ready(job, place)


# Ends


def _cancelled(job: Job, event: ev.Cancelled, place: Place) -> Job:
    job.outcome_id = event.id
    return _finish(job, "cancelled")


def _dead_lettered(job: Job, event: ev.DeadLettered, place: Place) -> Job:
    job.dead_lettered = True
    return job


def _forgotten(job: Job, place: Place) -> Decision:
    """Only once no late copy of a line about this job can still be meant for it."""
    if job.finished_at_ms + 2 * MAX_VERB_AGE_MS > max(job.time_ms, place.time_ms):
        return Refused("too_early", "late copies of verbs may still arrive")
    return Applied(None)


_BODY: Mapping[str, Callable[[Job, ev.AnyEvent, Place], Job]] = cast(
    "Mapping[str, Callable[[Job, ev.AnyEvent, Place], Job]]",
    {
        "Due": _due, "Expired": _expired, "Leased": _leased, "Progressed": _progressed, "Succeeded": _succeeded,
        "Failed": _failed, "Returned": _returned, "LeaseExpired": _lease_expired, "CancelRequested": _cancel_requested,
        "RetryRequested": _retry_requested, "Cancelled": _cancelled, "DeadLettered": _dead_lettered,
    },
)  # fmt: skip
