"""How long jobs of each type take, and so how many more a worker should hold than it runs.

A worker that runs jobs of a tenth of a millisecond would wait for the log most of the time if it held only what
it runs. It therefore prefetches, but no more than it runs in 50 ms, and nothing of types that it has not
measured. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

PREFETCH_MS = 50
MAX_PREFETCH = 2_048
MEASURED_FROM = 8
"""Runs of a type before its times mean anything."""

SAMPLES = 128
EVERY = 32


def each(run_ms: float) -> int:
    """How many leases beyond the one that runs to hold for each slot: a power of two, or none."""
    fit = int(min(PREFETCH_MS / max(run_ms, 0.001), MAX_PREFETCH))
    return 1 << fit.bit_length() - 1 if fit else 0


class TypeTimes:
    """Run times of one type: the last 128, and the 95th percentile of them."""

    __slots__ = ("_samples", "count", "p95_ms")

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self.count = 0
        self.p95_ms: float | None = None

    def add(self, run_ms: float) -> bool:
        """Take a sample; true when it changed how many should be held for each slot."""
        self._samples.append(run_ms)
        self.count = count = self.count + 1
        if count % EVERY and count != MEASURED_FROM:
            return False
        before = self.p95_ms
        self._measure()
        return before is None or each(before) != each(self.p95_ms or 0.0)

    def slow(self, run_ms: float) -> None:
        """A run that is not over yet takes longer than it should: believe that at once."""
        self.add(run_ms)
        self.p95_ms = max(self.p95_ms or 0.0, run_ms)

    def _measure(self) -> None:
        ordered = sorted(self._samples)
        self.p95_ms = ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)]


class RunTimes:
    """Run times of all types of a worker."""

    def __init__(self) -> None:
        self._types: dict[str, TypeTimes] = {}

    def add(self, job_type: str, run_ms: float) -> bool:
        """Take a sample; true when the prefetch may have changed."""
        times = self._types.get(job_type)
        if times is None:
            times = self._types[job_type] = TypeTimes()
        return times.add(run_ms)

    def slow(self, job_type: str, run_ms: float) -> None:
        """See :meth:`TypeTimes.slow`."""
        self._types.setdefault(job_type, TypeTimes()).slow(run_ms)

    def p95_ms(self, job_type: str) -> float | None:
        """None for a type that was not measured."""
        times = self._types.get(job_type)
        return None if times is None else times.p95_ms

    def prefetch(self, concurrency: int, demand: Iterable[str]) -> int:
        """How many leases beyond ``concurrency`` to hold when jobs of these types are waiting.

        Where nothing is known of the demand, what was measured counts. Rounded down to a power of two a slot,
        so that it is not another number every time.
        """
        wanted = list(demand) or [name for name, times in self._types.items() if times.p95_ms is not None]
        slowest = 0.0
        for job_type in wanted:
            p95_ms = self.p95_ms(job_type)
            if p95_ms is None:
                return 0
            slowest = max(slowest, p95_ms)
        if not wanted:
            return 0
        return min(MAX_PREFETCH, concurrency * each(slowest))
