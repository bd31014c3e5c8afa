"""The lines that a leader writes, as bytes: each with an id of its own and the epoch that gives it force."""

from __future__ import annotations

from typing import Literal

from penstock.core.job import Job
from penstock.orchestrator.fleet import Session
from penstock.orchestrator.leases import Lease
from penstock.orchestrator.outputs import Now
from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line

LeaseEnd = Literal["silent", "superseded", "timeout"]


def lease_order(lease: str) -> tuple[int, int]:
    """The epoch in which a lease was granted and its number there, as its id tells; -1, -1 for any other text."""
    parts = lease.split(".")
    if len(lease) > 64 or len(parts) != 3 or not (parts[1].isdecimal() and parts[2].isdecimal()):
        return -1, -1
    return int(parts[1]), int(parts[2])


class LeaderLines:
    """Writes for one partition, as one orchestrator. ``epoch`` is set when it begins to lead."""

    def __init__(self, partition: int, orchestrator: str, incarnation: str) -> None:
        self.epoch = -1
        self._partition = partition
        self._orchestrator = orchestrator
        self._incarnation = incarnation
        self._actor = f"orchestrator/{orchestrator}"
        self._written = 0

    def _id(self) -> str:
        self._written += 1
        return f"{self._partition}.{self.epoch}.{self._written}"

    def announced(self, supersedes: int, now: Now) -> bytes:
        return encode_line(
            ev.LeaderAnnounced(
                id=f"{self._incarnation}.{self._partition}.{now.mono_ms}",
                actor=self._actor,
                orchestrator=self._orchestrator,
                incarnation=self._incarnation,
                supersedes=supersedes,
                at=now.log_ms,
            )
        )

    def leased(self, job: Job, session: Session, now: Now) -> tuple[str, bytes]:
        """The line, and its id, which names the lease."""
        lease = self._id()
        line = ev.Leased(
            id=lease,
            job=job.id,
            tenant=job.tenant,
            epoch=self.epoch,
            actor=self._actor,
            cause=job.last_event,
            worker=session.worker,
            incarnation=session.incarnation,
            via=session.via,
            attempt=job.attempt + 1,
            lease_ms=session.lease_ms,
            seen=job.seen,
            at=now.log_ms,
        )
        return lease, encode_line(line)

    def lease_expired(self, key: str, lease: Lease, reason: LeaseEnd, now: Now) -> bytes:
        """The attempt is given back when its holder is not known to have begun it."""
        tenant, _, job_id = key.partition("/")
        return encode_line(
            ev.LeaseExpired(
                id=self._id(),
                job=job_id,
                tenant=tenant,
                epoch=self.epoch,
                actor=self._actor,
                cause=lease.lease,
                lease=lease.lease,
                reason=reason,
                refund=reason != "timeout" and lease.run_ms == 0,
                at=now.log_ms,
            )
        )

    def due(self, job: Job, now: Now) -> bytes:
        return self._about(ev.Due, job, now, seen=job.seen)

    def expired(self, job: Job, now: Now) -> bytes:
        return self._about(ev.Expired, job, now, seen=job.seen)

    def dead_lettered(self, job: Job, now: Now) -> bytes:
        return self._about(ev.DeadLettered, job, now, seen=job.seen, reason=job.error_code or "failed")

    def forgotten(self, job: Job, now: Now) -> bytes:
        return self._about(ev.Forgotten, job, now, seen=job.seen)

    def rules_activated(self, version: int, now: Now) -> bytes:
        return encode_line(
            ev.RulesActivated(
                id=self._id(), epoch=self.epoch, actor=self._actor, version=version, at=now.log_ms
            )
        )

    def cancelled(self, job: Job, now: Now) -> bytes:
        return self._about(ev.Cancelled, job, now, lease=job.lease)

    def _about(self, kind: type[ev.LeaderJobEvent], job: Job, now: Now, **fields: str | int) -> bytes:
        return encode_line(
            kind(
                id=self._id(),
                job=job.id,
                tenant=job.tenant,
                epoch=self.epoch,
                actor=self._actor,
                cause=job.last_event,
                at=now.log_ms,
                **fields,  # pyright: ignore[reportArgumentType]  # each caller gives its own type's fields
            )
        )

    def forwarded(self, line_position: int, target: int, now: Now) -> bytes:
        return encode_line(
            ev.Forwarded(
                id=self._id(),
                epoch=self.epoch,
                actor=self._actor,
                line_position=line_position,
                target=target,
                at=now.log_ms,
            )
        )
