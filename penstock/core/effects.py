"""What each accepted event does to its job: a job is changed in place here, and is always the copy that `next_of` made.

What people ask for is in :mod:`penstock.core.verbs`. Whether an event is accepted at all is decided in
:mod:`penstock.core.job`.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from msgspec import Raw, msgpack, structs

from penstock.core.job_state import GroupedJob, Job, KeyedJob, Place, SerialJob, State, Verdict, copy_of
from penstock.core.retry import delay_ms
from penstock.schemas import events as ev


def next_of(job: Job, event: ev.AnyEvent, place: Place) -> Job:
    """A copy of the job at the event's place and time, to be changed by the event's own function."""
    after = copy_of(job)
    if place.time_ms > job.time_ms:
        after.time_ms = place.time_ms
    if type(event) is not ev.Progressed:
        after.seen = place.position
        after.last_event = event.id
    if job.verdicts:
        after.verdicts = tuple(unexpired(after))
    return after


def unexpired(job: Job) -> list[Verdict]:
    """Of a job: the verdicts of which a late copy may still have to find the same answer."""
    return [verdict for verdict in job.verdicts if verdict.not_after_ms >= job.time_ms]


# Beginning and waiting


def body_hash(body: Raw | bytes) -> bytes:
    """SHA-256 of a body's bytes as written; empty for JSON null, which is no body."""
    data = bytes(body)
    return b"" if data == b"null" else sha256(data).digest()


def request_hash(event: ev.Enqueued) -> str:
    """Identity of what was asked for, when the writer gave none: all fields but those of the envelope that vary
    by sending.

    Every field stands in it, default or not, in msgpack: one way to write it, on every version of Python and msgspec.
    """
    asked = (
        event.job, event.tenant, event.job_type, event.queue, event.pool, event.priority, bytes(event.payload),
        event.tags, bytes(event.metadata), event.run_at, event.delay_ms, event.timeout_ms, event.expires_at,
        event.max_attempts, event.backoff, sorted(event.sealed.items()) if event.sealed else (),
    )  # fmt: skip
    if event.unique is not None:
        unique = event.unique
        asked = (*asked, unique.key, unique.scope, unique.period_ms, unique.on_conflict)
    if event.concurrency_key:
        asked = (*asked, "concurrency_key", event.concurrency_key)
    if event.batch:
        asked = (*asked, "batch", event.batch)
    if event.workflow:
        asked = (*asked, "workflow", event.workflow)
    return sha256(_encode(asked)).hexdigest()[:32]


_encode = msgpack.Encoder().encode


def enqueued(event: ev.Enqueued, place: Place, hashed: str) -> Job:
    position, now_ms = place.position, place.time_ms
    due_at_ms = max(event.run_at, now_ms + event.delay_ms if event.delay_ms else 0)
    waits = due_at_ms > now_ms
    event_id = event.id or event.job
    job = Job(
        id=event.job, tenant=event.tenant, job_type=event.job_type, queue=event.queue, pool=event.pool,
        priority=event.priority, enqueued_id=event_id, request_hash=hashed,
        payload_hash=body_hash(event.payload), metadata_hash=body_hash(event.metadata), tags=event.tags,
        max_attempts=event.max_attempts, attempts_allowed=event.max_attempts, backoff=event.backoff,
        timeout_ms=event.timeout_ms, expires_at_ms=event.expires_at,
        state="scheduled" if waits else "ready", seen=position, order=position, last_event=event_id,
        time_ms=now_ms, due_at_ms=due_at_ms if waits else 0, created_at_ms=now_ms,
        scheduled_at_ms=max(due_at_ms, now_ms),
    )  # fmt: skip
    unique, key = event.unique, event.concurrency_key
    grouped = event.batch or event.workflow
    if unique is None and not key and not grouped:
        return job
    fields = structs.asdict(job)
    if unique is not None:
        until_ms = now_ms + unique.period_ms if unique.scope == "period" else 0
        fields.update(unique_key=unique.key, unique_scope=unique.scope, unique_until_ms=until_ms)
    if grouped:
        return GroupedJob(**fields, concurrency_key=key, batch=event.batch, workflow=event.workflow)
    return SerialJob(**fields, concurrency_key=key) if key else KeyedJob(**fields)


def due(job: Job, event: ev.Due, place: Place) -> Job:
    return make_ready(job, place)


def make_ready(job: Job, place: Place) -> Job:
    """Behind all that are ready already."""
    job.state = "ready"
    job.order = place.position
    job.due_at_ms = 0
    return job


def wait_until(job: Job, due_at_ms: int, place: Place) -> Job:
    """The job waits for a time; ready where that has come already."""
    if due_at_ms <= job.time_ms:
        return make_ready(job, place)
    job.state = "retrying" if job.attempt else "scheduled"
    job.due_at_ms = due_at_ms
    return job


def expired(job: Job, event: ev.Expired, place: Place) -> Job:
    job.error_code, job.error_message = "expired", "not started before it expired"
    return finish(job, "expired")


def finish(job: Job, state: State) -> Job:
    """The job has ended in this state."""
    job.state = state
    job.finished_at_ms = job.time_ms
    job.due_at_ms = 0
    job.cancel = ""
    return job


# Running


def leased(job: Job, event: ev.Leased, place: Place) -> Job:
    job.state = "active"
    job.attempt += 1
    job.lease = event.id
    job.leased_at = place.position
    job.lease_ms = event.lease_ms
    job.worker, job.incarnation, job.via = event.worker, event.incarnation, event.via
    job.progress_seq = 0
    job.started_at_ms = job.time_ms
    return job


def progressed(job: Job, event: ev.Progressed, place: Place) -> Job:
    job.progress_seq = event.seq
    if event.percent is not None:
        job.percent = event.percent
    if event.message:
        job.message = event.message
    if event.checkpoint is not None:
        job.checkpoint_hash = body_hash(event.checkpoint)
    return job


def succeeded(job: Job, event: ev.Succeeded, place: Place) -> Job:
    job.outcome_id = event.id
    job.result_hash = body_hash(event.result)
    job.last_run_ms = event.run_ms
    if event.errors:
        job.error_code, job.error_message = event.errors[0].code, event.errors[0].message
        return finish(job, "partial")
    job.error_code = job.error_message = ""
    return finish(job, "succeeded")


def failed(job: Job, event: ev.Failed, place: Place) -> Job:
    job.outcome_id = event.id
    job.last_run_ms = event.run_ms
    job.refunds = 0
    job.error_code, job.error_message = event.error.code, event.error.message
    return _after_failure(job, place, retryable=event.error.retryable, delay=event.retry_after_ms)


def _after_failure(job: Job, place: Place, *, retryable: bool, delay: int | None) -> Job:
    if job.cancel:
        return finish(job, "cancelled")
    if not retryable or job.attempt >= job.attempts_allowed:
        return finish(job, "dead")
    wait_ms = delay_ms(job.backoff, job.key, job.attempt) if delay is None else delay
    if wait_ms == 0:
        return make_ready(job, place)
    job.state = "retrying"
    job.due_at_ms = job.time_ms + wait_ms
    return job


def returned(job: Job, event: ev.Returned, place: Place) -> Job:
    job.outcome_id = event.id
    return _give_back(job, cancel=event.cancel)


def snoozed(job: Job, event: ev.Snoozed, place: Place) -> Job:
    job.outcome_id = event.id
    job.refunds = 0
    job = _give_back(job)
    return job if job.state == "cancelled" else wait_until(job, job.time_ms + event.delay_ms, place)


def _give_back(job: Job, *, cancel: bool = False) -> Job:
    job.attempt -= 1
    if job.cancel or cancel:
        return finish(job, "cancelled")
    job.state = "ready"
    return job


def lease_expired(job: Job, event: ev.LeaseExpired, place: Place) -> Job:
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


# Ends


def cancelled(job: Job, event: ev.Cancelled, place: Place) -> Job:
    job.outcome_id = event.id
    return finish(job, "cancelled")


def dead_lettered(job: Job, event: ev.DeadLettered, place: Place) -> Job:
    job.dead_lettered = True
    return job
