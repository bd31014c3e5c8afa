"""Readers that wait until a partition is folded past a position."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count

_SPARE = 64


class OffsetWaiters:
    """Waiters of one partition, by offset."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ticket = count()
        self._gone = 0

    def __len__(self) -> int:
        return len(self._heap) - self._gone

    def wait(self, offset: int) -> asyncio.Future[None]:
        """A future that is done once the record at ``offset`` is folded. Cancel it to give up."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heap, (offset, next(self._ticket), future))
        future.add_done_callback(self._done)
        return future

    def awaits(self, next_offset: int) -> bool:
        """Whether somebody waits for a record below ``next_offset``."""
        return bool(self._heap) and self._heap[0][0] < next_offset

    def reached(self, next_offset: int) -> None:
        """Everything below ``next_offset`` is folded."""
        heap = self._heap
        while heap and heap[0][0] < next_offset:
            future = heapq.heappop(heap)[2]
            if future.done():
                self._gone -= 1
            else:
                future.set_result(None)

    def fail(self, error: Exception) -> None:
        """Nothing more will be folded."""
        for _, _, future in self._heap:
            if not future.done():
                future.set_exception(error)
        self._heap.clear()
        self._gone = 0

    def _done(self, future: asyncio.Future[None]) -> None:
        """Forget those who gave up, in bulk: a stranger's position may never be reached."""
        if not future.cancelled():
            return
        self._gone += 1
        if self._gone > _SPARE and self._gone * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if not entry[2].done()]
            heapq.heapify(self._heap)
            self._gone = 0
