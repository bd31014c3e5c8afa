"""Where a search finds jobs in one partition: as they are now, or as they were at a moment.

What was is had from what is: a job whose last line is older than the moment has not changed since; any other is made
from its own history. Jobs that were forgotten since are noted by the time of it, with their histories kept for as long
as the read model keeps them; a moment from before that is refused.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from heapq import merge
from itertools import groupby
from typing import Protocol

from penstock.core.job_state import Job
from penstock.projections.as_of import Life
from penstock.projections.candidates import ListKey, Window
from penstock.projections.filters import Inside, passes_inside, row_test
from penstock.projections.port import NULL, CountRow, JobFilter, JobView, Moment
from penstock.projections.queries import PartitionQueries
from penstock.schemas.errors import InvalidField
from penstock.schemas.ids import job_key

MOST_FORGOTTEN = 100_000
SLICE_JOBS = 200


class Source(Protocol):
    """One partition, as a search sees it."""

    def places(
        self, tenant: str, wanted: JobFilter, edge: ListKey | None, *, descending: bool
    ) -> Iterator[ListKey]:
        """See :meth:`penstock.projections.candidates.Candidates.of`."""
        ...

    def matching(self, tenant: str, wanted: JobFilter, places: Sequence[ListKey]) -> list[Job]:
        """Those of the jobs in these places that match. A place may be of a job's former life, or of none."""
        ...

    def views(self, keys: Sequence[str]) -> list[JobView | None]:
        """Jobs as they are shown, in order."""
        ...

    def number_of(self, tenant: str, wanted: JobFilter) -> int | None:
        """How many match, where that is known without looking at them."""
        ...


class Present:
    """Jobs as they are."""

    def __init__(self, queries: PartitionQueries) -> None:
        self._queries = queries
        self.views = queries.views

    def places(
        self, tenant: str, wanted: JobFilter, edge: ListKey | None, *, descending: bool
    ) -> Iterator[ListKey]:
        return self._queries.candidates.of(tenant, wanted, edge, descending=descending)

    def matching(self, tenant: str, wanted: JobFilter, places: Sequence[ListKey]) -> list[Job]:
        passes = row_test(wanted)
        jobs = self._queries.jobs([job_key(tenant, job_id) for _, job_id in places])
        passed = [
            job
            for place, job in zip(places, jobs, strict=True)
            if job is not None and job.created_at_ms == place[0] and passes(job)
        ]
        if not wanted.looks_inside:
            return passed
        return [inside.job for inside in self._queries.insides(passed) if passes_inside(wanted, inside)]

    def number_of(self, tenant: str, wanted: JobFilter) -> int | None:
        return self._queries.number_of(tenant, wanted) if wanted.counted else None


class Past:
    """Jobs as they were. Raises InvalidField where too many were forgotten since."""

    def __init__(self, queries: PartitionQueries, at: Moment) -> None:
        self._queries = queries
        self._at = at
        self._exactly = at.packed if at.partition == queries.partition else None
        forgotten = queries.forgotten_since(at.time_ms - 1, MOST_FORGOTTEN + 1)
        if len(forgotten) > MOST_FORGOTTEN:
            raise InvalidField(f"at: more than {MOST_FORGOTTEN} jobs were forgotten since", field="at")
        self._forgotten = dict.fromkeys(forgotten)

    def places(
        self, tenant: str, wanted: JobFilter, edge: ListKey | None, *, descending: bool
    ) -> Iterator[ListKey]:
        """Only what never changes narrows down where to look: when a job was created, and its id."""
        until_ms = min(self._at.time_ms + 1, wanted.created_before or self._at.time_ms + 1)
        fixed = JobFilter(
            created_after=wanted.created_after, created_before=until_ms, id_prefix=wanted.id_prefix
        )
        window = Window(fixed, edge, descending=descending)
        prefix = job_key(tenant, "")
        lives = self.lives([key for key in self._forgotten if key.startswith(prefix)])
        gone = {(life.job.created_at_ms, life.job.id) for life in lives if life is not None}
        told = merge(
            self._queries.candidates.of(tenant, fixed, edge, descending=descending),
            self._queries.candidates.deleted(tenant, window),
            sorted(filter(window.has, gone), reverse=descending),
            reverse=descending,
        )
        return (place for place, _ in groupby(told))

    def matching(self, tenant: str, wanted: JobFilter, places: Sequence[ListKey]) -> list[Job]:
        passes = row_test(wanted)
        lives = self.lives([job_key(tenant, job_id) for _, job_id in places])
        return [
            life.job
            for place, life in zip(places, lives, strict=True)
            if life is not None
            and life.job.created_at_ms == place[0]
            and passes(life.job)
            and (not wanted.looks_inside or passes_inside(wanted, _inside(life)))
        ]

    def views(self, keys: Sequence[str]) -> list[JobView | None]:
        lives = self.lives(keys)
        return [None if life is None else self._queries.view_of(life) for life in lives]

    def number_of(self, tenant: str, wanted: JobFilter) -> int | None:
        return None

    def lives(self, keys: Sequence[str]) -> list[Life | None]:
        """Jobs with all that is told of them, in order."""
        moment = self._at.time_ms if self._exactly is None else None
        return [self._queries.life_as_of(key, moment, self._exactly or 0) for key in keys]

    async def counts(self, tenant: str) -> list[CountRow]:
        """Counted job by job, with everybody else's turn in between: some microseconds for a job that has not changed
        since, some tens for one that has."""
        counted: Counter[tuple[str, str, str, str]] = Counter()
        gone = [key for key in self._forgotten if key.startswith(job_key(tenant, ""))]
        async for job in self._jobs(tenant, gone):
            if job.tenant == tenant and job.state != "deleted":
                counted[job.state, job.queue, job.pool, job.job_type] += 1
        return [CountRow(*name, jobs) for name, jobs in counted.items()]

    async def _jobs(self, tenant: str, gone: Sequence[str]) -> AsyncIterator[Job]:
        for start in range(0, len(gone), SLICE_JOBS):
            for life in self.lives(gone[start : start + SLICE_JOBS]):
                if life is not None:
                    yield life.job
            await asyncio.sleep(0)
        last = job_key(tenant, "")
        while True:
            jobs = self._queries.jobs_behind(last, SLICE_JOBS)
            for job in jobs:
                key = last = job_key(job.tenant, job.id)
                if key in self._forgotten:
                    continue
                if self._unchanged(job):
                    yield job
                elif job.created_at_ms <= self._at.time_ms and (life := self.lives([key])[0]) is not None:
                    yield life.job
            if len(jobs) < SLICE_JOBS or jobs[-1].tenant != tenant:
                return
            await asyncio.sleep(0)

    def _unchanged(self, job: Job) -> bool:
        """Whether its last line is from before: in the moment's own millisecond there may be later ones."""
        last_ms = job.time_ms
        return last_ms < self._at.time_ms or (self._exactly is None and last_ms == self._at.time_ms)


def _inside(life: Life) -> Inside:
    return Inside(life.job, life.bodies.payload or bytes(NULL), life.errors)
