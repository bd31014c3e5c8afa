"""The workers that an orchestrator hears, and how many more jobs each may be given.

A *session* is one worker as reached one way: directly, or through a gateway's incarnation (``via``). Its
credits are the most leases that this orchestrator may let it hold at once; proposed leases count as held from
the moment they are decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from msgspec import Struct

from penstock.orchestrator.rows import Lane
from penstock.schemas.messages import Heartbeat

SILENT_MS = 5_000
"""A session not heard for so long gets no new jobs."""

FORGET_MS = 120_000

SHORTEST_LEASE_MS, LONGEST_LEASE_MS = 1_000, 86_400_000
"""What a worker may ask for."""

MAX_NAME_CHARS = 256
"""As on the jobs log."""

URGENT_RANKS = 2
"""Critical and high."""

SessionKey = tuple[str, str]
LeaseKey = tuple[int, str]


class Session:
    """One worker as reached one way."""

    __slots__ = (
        "_limited", "_of_type", "concurrency", "credits", "heard_ms", "incarnation", "key", "lease_ms", "leases",
        "leaving", "limits", "pool", "proposed", "route", "seq", "surplus", "types", "via", "worker", "yielding",
    )  # fmt: skip

    def __init__(self, key: SessionKey) -> None:
        self.key = key
        self.worker, self.via = key
        self.incarnation = ""
        self.route = 0
        self.pool = "default"
        self.types: frozenset[str] = frozenset()
        self.concurrency = 1
        self.credits = 0
        self.limits: dict[str, int] = {}
        """Credits of single job types, beside those of all; types that are not named have none of their own."""
        self._of_type: Counter[str] = Counter()
        """Outstanding leases of types that were limited when they were proposed."""
        self._limited: dict[LeaseKey, str] = {}
        self.seq = -1
        self.lease_ms = 30_000
        self.heard_ms = 0
        self.leaving = False
        self.leases: dict[LeaseKey, bool] = {}
        """Accepted leases, by partition and job key, oldest first; whether each may make room for an urgent one."""
        self.yielding = 0
        """How many may."""
        self.proposed = 0
        self.surplus = False
        """It gave back for want of room, or because it leaves, since it was last heard."""

    @property
    def outstanding(self) -> int:
        return len(self.leases) + self.proposed

    def room(self, rank: int) -> int:
        """How many more jobs of this urgency it may be given now.

        Urgent ones may exceed the credits of a worker that prefetches: it gives back less urgent ones that it
        has not started. Where there are none it would give back the urgent ones, to get them again for ever.
        """
        if self.leaving or self.credits == 0:
            return 0
        urgent = rank < URGENT_RANKS and not self.surplus
        extra = min(self.concurrency, max(0, self.credits - self.concurrency), self.yielding) if urgent else 0
        return max(0, self.credits + extra - self.outstanding)

    def room_for(self, job_type: str) -> int | None:
        """How many more jobs of a type its limit allows; None if the type has none."""
        limit = self.limits.get(job_type)
        return None if limit is None else max(0, limit - self._of_type[job_type])

    def outstanding_limited(self) -> dict[str, int]:
        """Leases of the limited types."""
        return {job_type: self._of_type[job_type] for job_type in self.limits}

    def propose(self, job_type: str) -> None:
        """A lease is proposed for it."""
        self.proposed += 1
        if job_type in self.limits:
            self._of_type[job_type] += 1

    def retract(self, job_type: str) -> None:
        """A proposal is none any more: accepted, refused or given up."""
        self.proposed -= 1
        if self._of_type:
            self._count_out(job_type)

    def _count_out(self, job_type: str) -> None:
        # Those proposed before its limit was known were not counted.
        if self._of_type[job_type] > 0:
            self._of_type[job_type] -= 1

    def hold(self, lease: LeaseKey, job_type: str, *, yields: bool) -> None:
        """A lease is this worker's."""
        if lease in self.leases:
            self.let_go(lease)
        self.leases[lease] = yields
        self.yielding += yields
        if job_type in self.limits:
            self._limited[lease] = job_type
            self._of_type[job_type] += 1

    def let_go(self, lease: LeaseKey) -> bool:
        """A lease is no longer this worker's; whether it was one that may make room."""
        yields = self.leases.pop(lease, False)
        self.yielding -= yields
        if self._limited and (job_type := self._limited.pop(lease, None)) is not None:
            self._count_out(job_type)
        return yields

    def silence(self) -> None:
        """It let a lease run out: no more until it is heard again."""
        self.credits = 0

    def close_surplus(self) -> None:
        """It gave a job back for want of room, or because it leaves: no more until it says so anew."""
        self.credits = min(self.credits, self.outstanding)
        self.surplus = True

    def takes(self, lane: Lane) -> bool:
        return lane.pool == self.pool and lane.job_type in self.types and self.room_for(lane.job_type) != 0


class _Life(Struct):
    """The newest incarnation heard of a worker. Once it has been silent for longer than its leases last, or has said
    that it leaves, it stands in nobody's way: a clock that was set back gives a later process an earlier incarnation.
    """

    incarnation: str
    heard_ms: int
    lasts_ms: int


class Fleet:
    """Every session heard of. ``incarnation`` is that of the orchestrator whose credits count."""

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._sessions: dict[SessionKey, Session] = {}
        self._newest: dict[str, _Life] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def session(self, worker: str, via: str) -> Session:
        """The session, made if it is not known yet (a lease may outlive what is known of its holder)."""
        key = (worker, via)
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = Session(key)
        return session

    def hear(self, beat: Heartbeat, now_ms: int) -> Session | None:
        """Take a heartbeat; None if it is late news: of an older incarnation, or older than what is known.

        Names that do not fit on a ``Leased`` line are no worker's: what was leased to them would be refused for ever.
        """
        if (
            not 0 < len(beat.worker) <= MAX_NAME_CHARS
            or max(len(beat.incarnation), len(beat.via)) > MAX_NAME_CHARS
        ):
            return None
        newest = self._newest.get(beat.worker)
        if (
            newest is not None
            and beat.incarnation < newest.incarnation
            and now_ms - newest.heard_ms <= newest.lasts_ms
        ):
            return None
        session = self.session(beat.worker, beat.via)
        if beat.incarnation == session.incarnation and beat.seq <= session.seq:
            return None
        lease_ms = min(max(SHORTEST_LEASE_MS, beat.lease_ms), LONGEST_LEASE_MS)
        lasts_ms = -1 if beat.leaving else max(SILENT_MS, lease_ms)
        self._newest[beat.worker] = _Life(beat.incarnation, now_ms, lasts_ms)
        session.incarnation, session.seq = beat.incarnation, beat.seq
        session.route, session.pool = beat.route, beat.pool
        if len(session.types) != len(beat.types) or session.types != frozenset(beat.types):
            session.types = frozenset(beat.types)
        session.concurrency = beat.concurrency
        session.credits = beat.credits.get(self._incarnation, 0)
        session.limits = {
            job_type: shares.get(self._incarnation, 0) for job_type, shares in beat.limits.items()
        }
        session.surplus = False
        session.lease_ms = lease_ms
        session.leaving = beat.leaving
        session.heard_ms = now_ms
        return session

    def newest(self, worker: str) -> str:
        """The newest incarnation heard of a worker; empty if none gave one."""
        newest = self._newest.get(worker)
        return "" if newest is None else newest.incarnation

    def of_worker(self, worker: str) -> list[Session]:
        """Every session of a worker that holds something."""
        return [session for session in self._sessions.values() if session.worker == worker and session.leases]

    def rest(self, now_ms: int) -> None:
        """Stop giving to the silent, and forget those who are gone."""
        for session in list(self._sessions.values()):
            silent_ms = now_ms - session.heard_ms
            if silent_ms > SILENT_MS:
                session.credits = 0
            if (silent_ms > FORGET_MS or session.leaving) and not session.outstanding:
                del self._sessions[session.key]
        for worker, newest in list(self._newest.items()):
            if now_ms - newest.heard_ms > max(FORGET_MS, newest.lasts_ms):
                del self._newest[worker]

    def with_room(self, rank: int) -> list[Session]:
        """Sessions that may be given more, those with the most room first."""
        found = [session for session in self._sessions.values() if session.room(rank)]
        found.sort(key=lambda session: (-session.room(rank), session.key))
        return found
