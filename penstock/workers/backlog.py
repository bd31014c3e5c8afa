"""Leases that wait in a worker for a free slot: most urgent first, then in the order they came.

Of a type with a limit no more are let in than may run; the others are parked until one of them has ended.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from itertools import islice

from penstock.schemas.events import PRIORITIES
from penstock.workers.lease import HeldLease

_RANK = {name: rank for rank, name in enumerate(PRIORITIES)}
_LOWEST = len(PRIORITIES) - 1


def _rank(lease: HeldLease) -> int:
    return _RANK.get(lease.delivery.priority, _LOWEST)


class Backlog:
    """What was received and not started.

    Args:
        limits: by job type, how many may run at once; types not named have none.
    """

    def __init__(self, limits: Mapping[str, int] | None = None) -> None:
        self._queues: tuple[deque[HeldLease], ...] = tuple(deque() for _ in PRIORITIES)
        self._limits = dict(limits or {})
        self._let_in: Counter[str] = Counter()
        """Of limited types: how many are in the queues or run."""
        self._parked: dict[str, list[HeldLease]] = {job_type: [] for job_type in self._limits}
        self.count = 0
        """How many may be started. (Asked before every job: a plain attribute.)"""

    def __len__(self) -> int:
        return self.count + sum(map(len, self._parked.values()))

    def put(self, leases: Iterable[HeldLease]) -> None:
        for lease in leases:
            if self._limits and not self._may_enter(lease):
                continue
            self._queues[_rank(lease)].append(lease)
        self.count = sum(map(len, self._queues))

    def _may_enter(self, lease: HeldLease) -> bool:
        """Let it in, or park it."""
        job_type = lease.delivery.job_type
        limit = self._limits.get(job_type)
        if limit is None:
            return True
        if self._let_in[job_type] >= limit:
            self._parked[job_type].append(lease)
            return False
        self._let_in[job_type] += 1
        return True

    def ended(self, job_type: str) -> bool:
        """One that was taken has ended; whether another of a limited type may be started for it."""
        if job_type not in self._limits:
            return False
        self._let_in[job_type] -= 1
        parked = self._parked[job_type]
        if not parked or self._let_in[job_type] >= self._limits[job_type]:
            return False
        lease = min(parked, key=_rank)
        parked.remove(lease)
        self.put([lease])
        return True

    def take(self) -> HeldLease | None:
        """The one to start next."""
        for queue in self._queues:
            if queue:
                self.count -= 1
                return queue.popleft()
        return None

    def take_parked(self, job_type: str) -> HeldLease | None:
        """The last that came of a limited type and waits for another of it to end."""
        parked = self._parked.get(job_type)
        return parked.pop() if parked else None

    def take_last(self) -> HeldLease | None:
        """The one to give back first: one that is parked, else the newest of the least urgent."""
        for parked in self._parked.values():
            if parked:
                return parked.pop()
        for queue in reversed(self._queues):
            if queue:
                self.count -= 1
                lease = queue.pop()
                self.ended(lease.delivery.job_type)
                return lease
        return None

    def remove(self, lease: HeldLease) -> bool:
        """False if it does not wait here."""
        parked = self._parked.get(lease.delivery.job_type, ())
        if lease in parked:
            self._parked[lease.delivery.job_type].remove(lease)
            return True
        try:
            self._queues[_rank(lease)].remove(lease)
        except ValueError:
            return False
        self.count -= 1
        self.ended(lease.delivery.job_type)
        return True

    def types(self) -> frozenset[str]:
        """Types of the first few that wait, which is what prefetching should look at."""
        found: set[str] = set()
        for queue in self._queues:
            if queue:
                found.update(lease.delivery.job_type for lease in islice(queue, 64))
        return frozenset(found)
