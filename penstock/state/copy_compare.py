"""Are the jobs of two logs, or of two folders, the same? Digests first, then counts, then the first job that differs.

Compared are job rows, and those only: they are the same however many partitions a log has, while what a partition knows
of itself (its leader, its counters) is its own.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Protocol

from msgspec import Struct, structs

from penstock.core.job import Job
from penstock.core.rows import DIGEST_MODULUS, decode_job_row, row_digest

Group = tuple[str, str, str]
"""State, queue and type."""


class HasJobs(Protocol):
    """A fold of one partition."""

    def job_rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and bytes of each job's row, by key."""
        ...


class JobTotals(Struct, frozen=True):
    """All jobs of all partitions. ``digest`` is the sum of the rows' shares of the state digests, hex."""

    digest: str
    jobs: int
    groups: dict[Group, int]

    def by_state(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for (state, _, _), jobs in self.groups.items():
            found[state] += jobs
        return found


class Difference(Struct, frozen=True):
    """The first job, by key, that is not the same on both sides."""

    key: str
    a: Job | None
    b: Job | None

    def fields(self) -> dict[str, tuple[object, object]]:
        """What differs, by name of the row's field; empty where only one side has the job."""
        if self.a is None or self.b is None:
            return {}
        a, b = structs.asdict(self.a), structs.asdict(self.b)
        return {name: (a[name], b[name]) for name in a if a[name] != b[name]}


class Comparison(Struct, frozen=True):
    """``difference`` is None where all jobs are the same."""

    a: JobTotals
    b: JobTotals
    difference: Difference | None

    @property
    def same(self) -> bool:
        return self.difference is None and self.a.digest == self.b.digest


def totals(parts: Iterable[HasJobs]) -> JobTotals:
    """Add up every job of these partitions."""
    digest = 0
    groups: Counter[Group] = Counter()
    for row, data in chain.from_iterable(part.job_rows() for part in parts):
        digest += row_digest(row, data)
        job = decode_job_row(data)
        groups[job.state, job.queue, job.job_type] += 1
    text = (digest % DIGEST_MODULUS).to_bytes(32, "big").hex()
    return JobTotals(text, sum(groups.values()), dict(sorted(groups.items())))


def compare(a: list[HasJobs], b: list[HasJobs]) -> Comparison:
    """Compare two sets of partitions; walks over them a second time only where they differ."""
    one, other = totals(a), totals(b)
    return Comparison(one, other, None if one.digest == other.digest else first_difference(a, b))


def first_difference(a: Iterable[HasJobs], b: Iterable[HasJobs]) -> Difference | None:
    """Walk over the jobs of both sides, by key, up to the first that is not the same."""
    left, right = (heapq.merge(*(part.job_rows() for part in side)) for side in (a, b))
    one, other = next(left, None), next(right, None)
    while one is not None or other is not None:
        if one == other:
            one, other = next(left, None), next(right, None)
            continue
        keys = [row[0] for row in (one, other) if row is not None]
        key = min(keys)
        mine = decode_job_row(one[1]) if one is not None and one[0] == key else None
        theirs = decode_job_row(other[1]) if other is not None and other[0] == key else None
        return Difference(key[1:].decode(), mine, theirs)
    return None
