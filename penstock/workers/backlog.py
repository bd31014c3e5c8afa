"""Leases that wait in a worker for a free slot: most urgent first, then in the order they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice

from penstock.schemas.events import PRIORITIES
from penstock.workers.lease import HeldLease

_RANK = {name: rank for rank, name in enumerate(PRIORITIES)}
_LOWEST = len(PRIORITIES) - 1


class Backlog:
    """What was received and not started."""

    def __init__(self) -> None:
        self._queues: tuple[deque[HeldLease], ...] = tuple(deque() for _ in PRIORITIES)
        self.count = 0
        """How many wait. (Asked before every job: a plain attribute.)"""

    def __len__(self) -> int:
        return self.count

    def put(self, leases: Iterable[HeldLease]) -> None:
        for lease in leases:
            self._queues[_RANK.get(lease.delivery.priority, _LOWEST)].append(lease)
        self.count = sum(map(len, self._queues))

    def take(self) -> HeldLease | None:
        """The one to start next."""
        for queue in self._queues:
            if queue:
                self.count -= 1
                return queue.popleft()
        return None

    def take_last(self) -> HeldLease | None:
        """The one to give back first: the newest of the least urgent."""
        for queue in reversed(self._queues):
            if queue:
                self.count -= 1
                return queue.pop()
        return None

    def remove(self, lease: HeldLease) -> bool:
        """False if it does not wait here."""
        queue = self._queues[_RANK.get(lease.delivery.priority, _LOWEST)]
        try:
            queue.remove(lease)
        except ValueError:
            return False
        self.count -= 1
        return True

    def types(self) -> frozenset[str]:
        """Types of the first few that wait, which is what prefetching should look at."""
        found: set[str] = set()
        for queue in self._queues:
            if queue:
                found.update(lease.delivery.job_type for lease in islice(queue, 64))
        return frozenset(found)
