"""From the fold's jobs to what the API shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Raw

from penstock.core.job import LEASE_ENDS, Applied, Job, Place, apply
from penstock.core.partition import Folded
from penstock.projections.port import NULL, ErrorView, HistoryItem, JobView, ProgressView, UniqueView
from penstock.schemas import events as ev
from penstock.schemas.claims import claim_of, payload_url, result_url
from penstock.schemas.position import Position, generation_of, unpack
from penstock.schemas.times import time_text

SHOWN_ERRORS = 20
"""The newest failures that a job's view holds; its history holds all."""


class JobBodies(NamedTuple):
    """A job's bodies as raw JSON, None where null; in the order of ``BODY_KINDS``."""

    payload: bytes | None = None
    metadata: bytes | None = None
    checkpoint: bytes | None = None
    result: bytes | None = None


NO_BODIES = JobBodies()


class ErrorRow(msgspec.Struct, frozen=True, array_like=True):
    """One failed attempt as stored. ``details`` is raw JSON."""

    attempt: int
    code: str
    message: str
    details: bytes
    at_ms: int


def _time_or_none(time_ms: int) -> str | None:
    return time_text(time_ms) if time_ms else None


def _raw(body: bytes | None) -> Raw:
    return NULL if body is None else Raw(body)


def job_view(
    job: Job,
    partition: int,
    bodies: JobBodies = NO_BODIES,
    errors: Sequence[ErrorRow] = (),
    *,
    generation: int = 0,
    sealed_at: int = -1,
) -> JobView:
    """A job as shown. ``max_attempts`` counts what a retry has added.

    What has not changed since its log was copied changed on another log: as its position the copy's seal is shown.
    """
    seen = job.seen if generation_of(job.seen) == generation else sealed_at
    progress = None
    if job.percent is not None or job.message:
        progress = ProgressView(job.percent, job.message)
    return JobView(
        id=job.id,
        type=job.job_type,
        queue=job.queue,
        pool=job.pool,
        priority=job.priority,
        state=job.state,
        attempt=job.attempt,
        max_attempts=job.attempts_allowed,
        progress=progress,
        checkpoint=_raw(bodies.checkpoint),
        payload=_raw(bodies.payload),
        result=_raw(bodies.result),
        errors=[error_view(error) for error in errors],
        tags=list(job.tags),
        metadata=_raw(bodies.metadata),
        tenant=job.tenant,
        worker=job.worker or None,
        timeout_ms=job.timeout_ms or None,
        expires_at=_time_or_none(job.expires_at_ms),
        backoff=msgspec.structs.asdict(job.backoff),
        created_at=time_text(job.created_at_ms),
        updated_at=time_text(job.time_ms),
        scheduled_at=_time_or_none(job.scheduled_at_ms),
        started_at=_time_or_none(job.started_at_ms),
        finished_at=_time_or_none(job.finished_at_ms),
        cancel_requested=bool(job.cancel),
        enqueued_event=job.enqueued_id,
        unique=_unique_view(job),
        concurrency_key=job.concurrency_key or None,
        batch=job.batch or None,
        workflow=job.workflow or None,
        payload_url=payload_url(job.id) if bodies.payload and claim_of(bodies.payload) else None,
        result_url=result_url(job.id) if bodies.result and claim_of(bodies.result) else None,
        position=str(unpack(partition, seen)),
    )


def _unique_view(job: Job) -> UniqueView | None:
    if not job.unique_key:
        return None
    return UniqueView(job.unique_key, job.unique_scope, _time_or_none(job.unique_until_ms))


def enqueued_view(event: ev.Enqueued, position: Position, time_ms: int) -> JobView:
    """The job that ``event`` begins, if it stands at ``position`` and no job of its id was there before."""
    decision = apply(None, event, Place(position.packed, time_ms))
    assert isinstance(decision, Applied)
    assert decision.job is not None
    bodies = JobBodies(payload=bytes(event.payload), metadata=bytes(event.metadata))
    return job_view(decision.job, position.partition, bodies)


def error_view(error: ErrorRow) -> ErrorView:
    return ErrorView(
        error.attempt, error.code, error.message, Raw(error.details or b"null"), time_text(error.at_ms)
    )


def errors_of(line: Folded) -> list[ErrorRow]:
    """The failures that an accepted line tells of: of an attempt, or of parts of one that succeeded otherwise."""
    event, before = line.event, line.before
    if before is None:
        return []
    attempt, at_ms = before.attempt, line.time_ms
    match event:
        case ev.Failed():
            return [_error_row(attempt, event.error, at_ms)]
        case ev.Succeeded():
            return [_error_row(attempt, error, at_ms) for error in event.errors]
        case ev.LeaseExpired() if not event.refund:
            code, message = LEASE_ENDS[event.reason]
            return [ErrorRow(attempt, code, message, b"", at_ms)]
        case ev.Expired():
            after = line.after
            assert after is not None
            return [ErrorRow(attempt, after.error_code, after.error_message, b"", at_ms)]
        case _:
            return []


def _error_row(attempt: int, error: ev.JobError, at_ms: int) -> ErrorRow:
    return ErrorRow(attempt, error.code, error.message, bytes(error.details), at_ms)


class _Envelope(msgspec.Struct):
    type: str = ""
    actor: str = ""
    id: str = ""
    job: str = ""


_decode_envelope = msgspec.json.Decoder(_Envelope).decode


def history_item(
    partition: int, packed: int, time_ms: int, line: bytes, outcome: str = "applied", reason: str = ""
) -> HistoryItem:
    """A line about a job as shown."""
    envelope = _decode_envelope(line)
    return HistoryItem(
        type=envelope.type,
        actor=envelope.actor,
        at=time_text(time_ms),
        position=str(unpack(partition, packed)),
        outcome=outcome,
        reason=reason,
        event=Raw(line),
    )


def event_id_of(item: HistoryItem) -> str:
    """See :func:`event_id_in`."""
    return event_id_in(item.event)


def event_id_in(line: bytes | Raw) -> str:
    """The event's id; an ``Enqueued`` without one has its job's."""
    envelope = _decode_envelope(line)
    return envelope.id or envelope.job
