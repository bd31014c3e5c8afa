"""Leases that wait in a worker for a free slot: most urgent first, then in the order they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from penstock.schemas.events import PRIORITIES
from penstock.workers.lease import HeldLease

_RANK = {name: rank for rank, name in enumerate(PRIORITIES)}
_LOWEST = len(PRIORITIES) - 1


class Backlog:
    """What was received and not started."""

    def __init__(self) -> None:
        self._queues: tuple[deque[HeldLease], ...] = tuple(deque() for _ in PRIORITIES)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, leases: Iterable[HeldLease]) -> None:
        for lease in leases:
            self._queues[_RANK.get(lease.delivery.priority, _LOWEST)].append(lease)
            self._count += 1

    def take(self) -> HeldLease | None:
        """The one to start next."""
        for queue in self._queues:
            if queue:
                self._count -= 1
                return queue.popleft()
        return None

    def put_back(self, lease: HeldLease) -> None:
        """Undo the last :meth:`take`."""
        self._queues[_RANK.get(lease.delivery.priority, _LOWEST)].appendleft(lease)
        self._count += 1

    def take_last(self) -> HeldLease | None:
        """The one to give back first: the newest of the least urgent."""
        for queue in reversed(self._queues):
            if queue:
                self._count -= 1
                return queue.pop()
        return None

    def remove(self, lease: HeldLease) -> bool:
        """False if it does not wait here."""
        queue = self._queues[_RANK.get(lease.delivery.priority, _LOWEST)]
        try:
            queue.remove(lease)
        except ValueError:
            return False
        self._count -= 1
        return True

    def types(self) -> frozenset[str]:
        """Types of the first few that wait, which is what prefetching should look at."""
        found: set[str] = set()
        for queue in self._queues:
            for index in range(min(len(queue), 64)):
                found.add(queue[index].delivery.job_type)
        return frozenset(found)
