"""The lines that a leader writes, as bytes: each with an id of its own and the epoch that gives it force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from penstock.core.job import Job
from penstock.orchestrator.fleet import Session
from penstock.orchestrator.leases import Lease
from penstock.orchestrator.outputs import Now
from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line, encode_text

LeaseEnd = Literal["silent", "superseded", "timeout"]


def lease_order(lease: str) -> tuple[int, int]:
    """The epoch in which a lease was granted and its number there, as its id tells; -1, -1 for any other text."""
    parts = lease.split(".")
    if len(lease) > 64 or len(parts) != 3 or not (parts[1].isdecimal() and parts[2].isdecimal()):
        return -1, -1
    return int(parts[1]), int(parts[2])


class LeaseLines:
    """Writes `Leased` lines that have their holder in common. Made by :meth:`LeaderLines.leases`.

    Their jobs' ids need no escapes; whatever else came from outside is encoded.
    """

    def __init__(self, next_id: Callable[[], str], shared: str) -> None:
        self._next_id = next_id
        self._shared = shared[1:]

    def leased(self, job: Job) -> tuple[str, bytes]:
        """The line, and its id, which names the lease."""
        lease = self._next_id()
        tenant = "" if job.tenant == "default" else f'"tenant":"{job.tenant}",'
        line = (
            f'{{"type":"Leased","id":"{lease}",{tenant}"job":"{job.id}","attempt":{job.attempt + 1},"seen":{job.seen},'
            f'"cause":{encode_text(job.last_event)},{self._shared}'
        )
        return lease, line.encode()


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

    def leases(self, session: Session, now: Now) -> LeaseLines:
        """For several leases to one session: what their lines have in common is encoded once."""
        shared: dict[str, str | int] = {
            "epoch": self.epoch,
            "actor": self._actor,
            "worker": session.worker,
            "incarnation": session.incarnation,
            "via": session.via,
            "lease_ms": session.lease_ms,
            "at": now.log_ms,
        }
        return LeaseLines(
            self._id, encode_text({name: value for name, value in shared.items() if value != ""})
        )

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
