"""The worker protocol's messages as a client writes and reads them. docs/worker-protocol.md walks through them."""

# No `from __future__ import annotations`: msgspec reads these hints at run time.

from typing import Any

import msgspec
from msgspec import Raw, Struct

from penstock.schemas.events import Failed, JobError, Progressed, Returned, Snoozed, Succeeded
from penstock.schemas.messages import Delivery
from penstock.workers.transport import OutcomeEvent

NULL = Raw(b"null")

SETTLED = frozenset(
    {"applied", "duplicate", "stale", "illegal", "unknown_job", "invalid", "conflict", "too_late"}
)
"""Outcomes of a report after which there is no use in reporting again."""


class GrantedJob(Struct, frozen=True, kw_only=True):
    """A job as the server grants it. What a server may leave out has a default."""

    id: str
    type: str
    lease: str
    queue: str = "default"
    priority: str = "normal"
    payload: Raw = NULL
    metadata: Raw = NULL
    attempt: int = 1
    max_attempts: int = 0
    lease_ms: int = 30_000
    fence: str = ""
    checkpoint: Raw = NULL
    timeout_ms: int | None = None
    tenant: str = "default"
    trace: str = ""
    rules: int = 1


class Grants(Struct, frozen=True):
    jobs: list[GrantedJob] = []


class ReportedItem(Struct, frozen=True):
    """What became of one event."""

    outcome: str
    job: str = ""
    message: str = ""


class ReportAnswer(Struct, frozen=True):
    items: list[ReportedItem]


class SignalItem(Struct, frozen=True):
    """``CancelJob``, ``LeaseGone`` or ``Drain``; others are ignored."""

    type: str
    job: str = ""
    lease: str = ""
    reason: str = ""
    stop: bool = False


class HeartbeatAnswer(Struct, frozen=True):
    signals: list[SignalItem] = []


decode_grants = msgspec.json.Decoder(Grants).decode
decode_report_answer = msgspec.json.Decoder(ReportAnswer).decode
decode_heartbeat_answer = msgspec.json.Decoder(HeartbeatAnswer).decode
encode = msgspec.json.Encoder().encode


def delivery_of(job: GrantedJob, worker: str) -> Delivery:
    """A grant as the runtime knows it. Its partition is the server's business."""
    return Delivery(
        worker=worker, partition=0, job=job.id, tenant=job.tenant, job_type=job.type, queue=job.queue,
        priority=job.priority, attempt=job.attempt, max_attempts=job.max_attempts, lease=job.lease,
        lease_ms=job.lease_ms, fence=job.fence, timeout_ms=job.timeout_ms or 0, payload=job.payload,
        checkpoint=job.checkpoint, metadata=job.metadata, trace=job.trace, rules=job.rules,
    )  # fmt: skip


def report_of(event: OutcomeEvent | Progressed) -> bytes:
    """An event as it is reported."""
    fields: dict[str, Any] = {"type": type(event).__name__, "job": event.job, "lease": event.lease}
    match event:
        case Succeeded():
            fields |= {"result": event.result, "run_ms": event.run_ms}
            if event.errors:
                fields["errors"] = [_told(error) for error in event.errors]
        case Failed():
            fields["error"] = {**_told(event.error), "retryable": event.error.retryable}
            fields["run_ms"] = event.run_ms
            if event.retry_after_ms is not None:
                fields["retry_after_ms"] = event.retry_after_ms
        case Returned():
            fields["reason"] = event.reason
            if event.cancel:
                fields["cancel"] = True
        case Snoozed():
            fields |= {"delay_ms": event.delay_ms, "reason": event.reason}
        case Progressed():
            fields |= {"seq": event.seq, "message": event.message}
            if event.percent is not None:
                fields["percent"] = event.percent
            if event.checkpoint is not None:
                fields["checkpoint"] = event.checkpoint
    return encode(fields)


def _told(error: JobError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "details": error.details}
