"""Times at which a led partition has something to do: delays, retries and expiries.

Only what falls due within a horizon is in memory; the rest waits in the store. A timer is a reminder, not a
decision: when it fires, the job is asked whether it still waits for that time.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from penstock.core.job import WAITING, Job
from penstock.orchestrator.rows import DUE, EXPIRY, Index

HORIZON_MS = 60_000
AGAIN_MS = 5_000
"""A timer whose line was written but did not come back from the log fires again after this."""


class Timers:
    """Timers of one partition. Times are the log's, Unix ms."""

    def __init__(self, index: Index, commit: Callable[[], None]) -> None:
        self._index = index
        self._commit = commit
        self._heap: list[tuple[int, int, bytes, str]] = []
        self._loaded_until_ms = 0

    def add(self, key: str, job: Job) -> None:
        """Remember what a waiting job waits for."""
        if job.state in ("scheduled", "retrying"):
            self._add(job.due_at_ms, DUE, key)
        if job.expires_at_ms and job.state in WAITING:
            self._add(job.expires_at_ms, EXPIRY, key)

    def _add(self, time_ms: int, kind: bytes, key: str) -> None:
        if time_ms < self._loaded_until_ms:
            heappush(self._heap, (time_ms, time_ms, kind, key))

    def next_ms(self) -> int | None:
        """When to look again."""
        near = self._heap[0][0] if self._heap else None
        horizon = self._loaded_until_ms - HORIZON_MS // 2
        return horizon if near is None else min(near, horizon)

    def fire(self, now_ms: int, job_of: Callable[[str], Job | None]) -> list[tuple[bytes, Job]]:
        """Jobs whose time has come, with the kind of timer. Each is reminded of again until the job has moved on."""
        if now_ms + HORIZON_MS // 2 >= self._loaded_until_ms:
            self._extend(now_ms)
        fired: list[tuple[bytes, Job]] = []
        while self._heap and self._heap[0][0] <= now_ms:
            _, time_ms, kind, key = heappop(self._heap)
            job = job_of(key)
            if job is None or not _waits_for(job, kind, time_ms):
                continue
            fired.append((kind, job))
            heappush(self._heap, (now_ms + AGAIN_MS, time_ms, kind, key))
        return fired

    def _extend(self, now_ms: int) -> None:
        self._commit()
        until_ms = now_ms + HORIZON_MS
        for time_ms, kind, key in self._index.timers_between(self._loaded_until_ms, until_ms):
            heappush(self._heap, (time_ms, time_ms, kind, key))
        self._loaded_until_ms = max(self._loaded_until_ms, until_ms)


def _waits_for(job: Job, kind: bytes, time_ms: int) -> bool:
    if kind == DUE:
        return job.state in ("scheduled", "retrying") and job.due_at_ms == time_ms
    return kind == EXPIRY and job.state in WAITING and job.expires_at_ms == time_ms
