"""What a leader says to workers: deliveries and signals.

Hints only: each may be lost, and is said again when it matters.
"""

from __future__ import annotations

from typing import Literal

from penstock.core.job import Job
from penstock.orchestrator.fleet import Session
from penstock.orchestrator.outputs import Outputs
from penstock.schemas.events import NULL, Raw
from penstock.schemas.messages import CancelJob, Delivery, LeaseGone
from penstock.schemas.position import fence
from penstock.state.partition_store import PartitionStore

GoneReason = Literal["ended", "expired", "timeout", "unknown"]


class Courier:
    """Speaks to the holders of one partition's jobs."""

    def __init__(self, store: PartitionStore) -> None:
        self._store = store
        self._body = store.body
        self._partition = store.partition

    def deliver(self, job: Job, session: Session, time_ms: int, out: Outputs) -> None:
        """Send a granted job to its holder, unless that is unknown, another by now, or to be stopped anyway."""
        if session.seq < 0 or session.incarnation != job.incarnation or job.cancel:
            return
        payload = self._body(job.key, "payload") if job.payload_hash else None
        checkpoint = self._body(job.key, "checkpoint") if job.checkpoint_hash else None
        metadata = self._body(job.key, "metadata") if job.metadata_hash else None
        delivery = Delivery(
            worker=session.worker,
            incarnation=job.incarnation,
            via=session.via,
            partition=self._partition,
            job=job.id,
            tenant=job.tenant,
            job_type=job.job_type,
            queue=job.queue,
            priority=job.priority,
            attempt=job.attempt,
            max_attempts=job.attempts_allowed,
            lease=job.lease,
            lease_ms=job.lease_ms,
            fence=fence(job.leased_at),
            timeout_ms=job.timeout_ms,
            payload=NULL if payload is None else Raw(payload),
            checkpoint=NULL if checkpoint is None else Raw(checkpoint),
            metadata=NULL if metadata is None else Raw(metadata),
            enqueued_at=job.created_at_ms,
            leased_at=time_ms,
            rules=self._store.state.rules,
        )
        out.deliveries[job.priority, session.route, session.worker].append(delivery)

    def withdraw(self, job: Job, session: Session, out: Outputs) -> bool:
        """Take back a delivery of this very step, for its job is to be stopped; false if there is none."""
        place = (job.priority, session.route, session.worker)
        sent = out.deliveries.pop(place, [])
        left = [delivery for delivery in sent if delivery.lease != job.lease]
        if left:
            out.deliveries[place] = left
        return len(left) < len(sent)

    def lease_gone(
        self,
        session: Session,
        incarnation: str,
        job_id: str,
        tenant: str,
        lease: str,
        reason: GoneReason,
        out: Outputs,
    ) -> None:
        """Tell an incarnation of a worker, perhaps not the newest, that it does not hold a lease (any more)."""
        if session.seq >= 0:
            signal = LeaseGone(
                worker=session.worker,
                incarnation=incarnation,
                via=session.via,
                job=job_id,
                tenant=tenant,
                lease=lease,
                reason=reason,
            )
            out.signals[session.route].append(signal)

    def cancel(self, job: Job, session: Session, out: Outputs) -> None:
        """Tell the holder that its job is to be stopped."""
        if session.seq >= 0:
            signal = CancelJob(
                worker=session.worker,
                incarnation=session.incarnation,
                via=session.via,
                job=job.id,
                tenant=job.tenant,
                lease=job.lease,
            )
            out.signals[session.route].append(signal)
