"""Leases of a led partition: who holds what, until when, and what becomes of a holder that falls silent.

Times are the monotonic clock's, ms. A lease runs out only by time in which heartbeats were in fact being
heard: whoever takes over, or was deaf for a while, grants every lease anew in full.
"""

from __future__ import annotations

from typing import Literal

from penstock.core.job import Job
from penstock.orchestrator.fleet import URGENT_RANKS, Session
from penstock.orchestrator.rows import RANK

TIMEOUT_MARGIN_MS = 2_000
"""The worker ends a job that runs past its timeout; the leader does so this much later, if the worker did not."""

CANCEL_GRACE_MS = 30_000
"""A running job whose cancel is not acknowledged for so long is cancelled over its holder's head."""

AGAIN_MS = 5_000
"""The end of a lease that was written but did not come back from the log is written again after this."""

MISSED_BEATS = 2
"""Full heartbeats of the holder that do not name a lease before it is delivered again."""

Ending = Literal["silent", "timeout", "cancel"]


class Lease:
    """What the leader knows of a lease beyond the fold."""

    __slots__ = (
        "cancel_ms",
        "ending_ms",
        "expires_ms",
        "incarnation",
        "job_type",
        "lease",
        "lease_ms",
        "missed",
        "named",
        "run_ms",
        "session",
        "timeout_ms",
    )

    def __init__(self, job: Job, session: Session, now_ms: int) -> None:
        self.lease = job.lease
        self.lease_ms = job.lease_ms
        self.incarnation = job.incarnation
        self.job_type = job.job_type
        self.timeout_ms = job.timeout_ms
        self.session = session
        self.expires_ms = now_ms + job.lease_ms
        self.run_ms = 0
        self.missed = 0
        self.named = False
        """Whether its holder ever named it."""
        self.ending_ms = 0
        self.cancel_ms = now_ms + CANCEL_GRACE_MS if job.cancel else 0


class LeaseKeeper:
    """The leases of one partition."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._leases: dict[str, Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def get(self, key: str) -> Lease | None:
        return self._leases.get(key)

    def grant(self, key: str, job: Job, session: Session, now_ms: int) -> Lease:
        """Keep a lease that the fold accepted, or that was found at takeover: in full from now."""
        lease = self._leases[key] = Lease(job, session, now_ms)
        session.hold((self._partition, key), job.job_type, yields=RANK[job.priority] >= URGENT_RANKS)
        return lease

    def end(self, key: str) -> Lease | None:
        """The fold says that the lease has ended."""
        lease = self._leases.pop(key, None)
        if lease is not None:
            lease.session.let_go((self._partition, key))
        return lease

    def release(self) -> None:
        """Forget all: another leads."""
        for key in list(self._leases):
            self.end(key)

    def renew(self, lease: Lease, key: str, session: Session, run_ms: int, now_ms: int) -> None:
        """Its holder named it in a heartbeat, perhaps by another way than it was reached before."""
        if lease.session is not session:
            yields = lease.session.let_go((self._partition, key))
            session.hold((self._partition, key), lease.job_type, yields=yields)
            lease.session = session
        lease.expires_ms = now_ms + lease.lease_ms
        lease.run_ms = run_ms
        lease.missed = 0
        lease.named = True

    def missed(self, key: str) -> bool:
        """A full heartbeat of the holder did not name the lease; true when it is to be delivered again."""
        lease = self._leases[key]
        lease.missed += 1
        if lease.missed < MISSED_BEATS:
            return False
        lease.missed = 0
        return True

    def grant_anew(self, now_ms: int) -> None:
        """Nothing could be heard for a while: every lease is as new."""
        for lease in self._leases.values():
            lease.expires_ms = max(lease.expires_ms, now_ms + lease.lease_ms)

    def overdue(self, now_ms: int) -> list[tuple[str, Lease, Ending]]:
        """Leases to end, each with ``silent``, ``timeout`` or ``cancel``.

        Each is named again until the fold ends it.
        """
        found: list[tuple[str, Lease, Ending]] = []
        for key, lease in self._leases.items():
            if now_ms < lease.ending_ms:
                continue
            if lease.timeout_ms and lease.run_ms > lease.timeout_ms + TIMEOUT_MARGIN_MS:
                reason: Ending = "timeout"
            elif lease.cancel_ms and now_ms >= lease.cancel_ms:
                reason = "cancel"
            elif now_ms >= lease.expires_ms:
                reason = "silent"
            else:
                continue
            lease.ending_ms = now_ms + AGAIN_MS
            found.append((key, lease, reason))
        return found
