"""What each accepted event does to its job: a job is changed in place here, and is always the copy that `next_of` made.

Whether an event is accepted at all is decided in :mod:`penstock.core.job`.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from msgspec import Raw, msgpack

from penstock.core.job_state import Job, Place, State, Verdict, copy_of
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
        after.verdicts = tuple(_unexpired(after))
    return after


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
    return sha256(_encode(asked)).hexdigest()[:32]


_encode = msgpack.Encoder().encode


def enqueued(event: ev.Enqueued, place: Place, hashed: str) -> Job:
    position, now_ms = place.position, place.time_ms
    due_at_ms = max(event.run_at, now_ms + event.delay_ms if event.delay_ms else 0)
    waits = due_at_ms > now_ms
    event_id = event.id or event.job
    return Job(
        id=event.job, tenant=event.tenant, job_type=event.job_type, queue=event.queue, pool=event.pool,
        priority=event.priority, enqueued_id=event_id, request_hash=hashed,
        payload_hash=body_hash(event.payload), metadata_hash=body_hash(event.metadata), tags=event.tags,
        max_attempts=event.max_attempts, attempts_allowed=event.max_attempts, backoff=event.backoff,
        timeout_ms=event.timeout_ms, expires_at_ms=event.expires_at,
        state="scheduled" if waits else "ready", seen=position, order=position, last_event=event_id,
        time_ms=now_ms, due_at_ms=due_at_ms if waits else 0, created_at_ms=now_ms,
        scheduled_at_ms=max(due_at_ms, now_ms),
    )  # fmt: skip


def due(job: Job, event: ev.Due, place: Place) -> Job:
    return _make_ready(job, place)


def _make_ready(job: Job, place: Place) -> Job:
    job.state = "ready"
    job.order = place.position
    job.due_at_ms = 0
    return job


def expired(job: Job, event: ev.Expired, place: Place) -> Job:
    job.error_code, job.error_message = "expired", "not started before it expired"
    return _finish(job, "expired")


def _finish(job: Job, state: State) -> Job:
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
    job.error_code = job.error_message = ""
    return _finish(job, "succeeded")


def failed(job: Job, event: ev.Failed, place: Place) -> Job:
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


def returned(job: Job, event: ev.Returned, place: Place) -> Job:
    job.outcome_id = event.id
    return _give_back(job)


def _give_back(job: Job) -> Job:
    job.attempt -= 1
    if job.cancel:
        return _finish(job, "cancelled")
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


# Verbs


MAX_VERDICTS = 64
"""Verdicts kept at once; beyond, the oldest goes (a flood of verbs on one job must not grow its row without end)."""


def remember(job: Job, event: ev.Verb, outcome: str) -> Job:
    """The job with one more verdict, and without those of which no copy can have an effect any more."""
    kept = _unexpired(job)
    if len(kept) >= MAX_VERDICTS:
        # A refused verb that strikes late does less harm than an accepted one that strikes twice.
        kept.remove(next((verdict for verdict in kept if verdict.outcome != "applied"), kept[0]))
    after = copy_of(job)
    after.verdicts = (*kept, Verdict(event.id, outcome, event.not_after))
    return after


def _unexpired(job: Job) -> list[Verdict]:
    return [verdict for verdict in job.verdicts if verdict.not_after_ms >= job.time_ms]


def cancel_requested(job: Job, event: ev.CancelRequested, place: Place) -> Job:
    job = remember(job, event, "applied")
    if job.state == "active":
        job.cancel = event.id
        return job
    return _finish(job, "cancelled")


def retry_requested(job: Job, event: ev.RetryRequested, place: Place) -> Job:
    job = remember(job, event, "applied")
    job.attempts_allowed = job.attempt + (event.attempts or job.max_attempts)
    job.finished_at_ms = 0
    job.expires_at_ms = 0
    job.dead_lettered = False
    job.error_code = job.error_message = ""
    return _make_ready(job, place)


# Ends


def cancelled(job: Job, event: ev.Cancelled, place: Place) -> Job:
    job.outcome_id = event.id
    return _finish(job, "cancelled")


def dead_lettered(job: Job, event: ev.DeadLettered, place: Place) -> Job:
    job.dead_lettered = True
    return job
