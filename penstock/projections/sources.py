"""Where a search finds jobs in one partition: as they are now, or as they were at a moment.

What was is had from what is: a job whose last line is older than the moment has not changed since; any other is made
from its own history. Jobs that were forgotten since are noted by the time of it, with their histories kept for as long
as the read model keeps them; a moment from before that is refused.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from heapq import merge
from itertools import groupby, islice
from typing import Protocol, Self

from penstock.core.job_state import Job
from penstock.projections.as_of import Life
from penstock.projections.candidates import ListKey, Window
from penstock.projections.filters import Inside, passes_inside, row_test
from penstock.projections.port import ALL, NULL, CountRow, JobFilter, JobView, Moment
from penstock.projections.queries import PartitionQueries
from penstock.schemas.ids import job_key

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
        jobs = self._queries.jobs([job_key(tenant, job_id) for _, job_id in places])
        there = [
            job
            for place, job in zip(places, jobs, strict=True)
            if job is not None and job.created_at_ms == place[0]
        ]
        return self._queries.passing(there, wanted)

    def number_of(self, tenant: str, wanted: JobFilter) -> int | None:
        return self._queries.number_of(tenant, wanted) if wanted.counted else None


class Past:
    """Jobs as they were; see :meth:`of`."""

    def __init__(self, queries: PartitionQueries, at: Moment, gone: Mapping[str, ListKey]) -> None:
        self._queries = queries
        self._at = at
        self._gone = gone

    @classmethod
    async def of(cls, queries: PartitionQueries, at: Moment) -> Self:
        """A partition as it was. Raises InvalidField where too many jobs were forgotten since."""
        return cls(queries, at, await queries.forgotten.since(at))

    def places(
        self, tenant: str, wanted: JobFilter, edge: ListKey | None, *, descending: bool
    ) -> Iterator[ListKey]:
        """Only what never changes narrows down where to look: when a job was created, its id, and what it was put in
        with."""
        until_ms = min(self._at.time_ms + 1, wanted.created_before or self._at.time_ms + 1)
        fixed = JobFilter(
            created_after=wanted.created_after, created_before=until_ms, id_prefix=wanted.id_prefix,
            tags=wanted.tags, tags_any=wanted.tags_any, batch=wanted.batch, workflow=wanted.workflow,
            unique_key=wanted.unique_key, concurrency_key=wanted.concurrency_key,
        )  # fmt: skip
        window = Window(fixed, edge, descending=descending)
        gone = [self._gone[key] for key in self._gone_of(tenant)]
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
        return [self._queries.life_at(key, self._at) for key in keys]

    def _gone_of(self, tenant: str) -> list[str]:
        prefix = job_key(tenant, "")
        return [key for key in self._gone if key.startswith(prefix)]

    async def counts(self, tenant: str, among: JobFilter = ALL) -> list[CountRow]:
        """Counted job by job, with everybody else's turn in between: some microseconds for a job that has not changed
        since, some tens for one that has."""
        counted: Counter[tuple[str, str, str, str]] = Counter()
        async for job in self._jobs(tenant) if among == ALL else self._some(tenant, among):
            if job.tenant == tenant and job.state != "deleted":
                counted[job.state, job.queue, job.pool, job.job_type] += 1
        return [CountRow(*name, jobs) for name, jobs in counted.items()]

    async def _some(self, tenant: str, wanted: JobFilter) -> AsyncIterator[Job]:
        places = self.places(tenant, wanted, None, descending=True)
        while slice_ := list(islice(places, SLICE_JOBS)):
            for job in self.matching(tenant, wanted, slice_):
                yield job
            await asyncio.sleep(0)

    async def _jobs(self, tenant: str) -> AsyncIterator[Job]:
        gone = self._gone_of(tenant)
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
                if key in self._gone:
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
        exactly = self._at.partition == self._queries.partition
        return job.time_ms < self._at.time_ms or (not exactly and job.time_ms == self._at.time_ms)


def _inside(life: Life) -> Inside:
    return Inside(life.job, life.bodies.payload or bytes(NULL), life.errors)
