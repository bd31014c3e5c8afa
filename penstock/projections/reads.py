"""Reads over the partitions of one process. Nothing here waits: an answer is one moment of every partition in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from penstock.projections.candidates import ListKey
from penstock.projections.merge import (
    QuarantinePage,
    check_limit,
    list_cursor,
    merge_counts,
    merge_operated,
    merge_quarantine,
    parse_list_cursor,
    parse_quarantine_cursor,
)
from penstock.projections.port import (
    ALL,
    CountRow,
    HistoryPage,
    JobFilter,
    JobsPage,
    JobsQuery,
    JobView,
    Moment,
    OperatedItem,
    OperatedPage,
    SearchPage,
    SearchQuery,
    VerdictView,
)
from penstock.projections.queries import PAGE_BYTES, Asked, PartitionQueries
from penstock.projections.search import Search
from penstock.projections.sources import Past, Present, Source
from penstock.schemas.errors import ReadModelUnavailable
from penstock.schemas.ids import job_key, partition_of
from penstock.schemas.position import Position
from penstock.schemas.times import time_text

_CHUNK = 64


class LocalReads:
    """Answers from the partitions held here; ``partitions`` in a call narrows it to some of them."""

    def __init__(self, queries: Mapping[int, PartitionQueries], partition_count: int) -> None:
        self._queries = queries
        self._partition_count = partition_count

    def of_job(self, job_id: str) -> PartitionQueries:
        """The partition that a job lives in. Raises ReadModelUnavailable when it is not held here."""
        return self._held(partition_of(job_id, self._partition_count))

    def job(self, tenant: str, job_id: str) -> JobView | None:
        return self.of_job(job_id).view(job_key(tenant, job_id))

    def job_as_of(self, tenant: str, job_id: str, moment: int | None, packed: int) -> JobView | None:
        return self.of_job(job_id).view_as_of(job_key(tenant, job_id), moment, packed)

    def history(self, tenant: str, job_id: str, limit: int, cursor: str) -> HistoryPage | None:
        check_limit(limit)
        return self.of_job(job_id).history(job_key(tenant, job_id), limit, cursor)

    def verdicts(
        self, wanted: Sequence[tuple[Position, str, str, str]], unique_keys: Sequence[str] = ()
    ) -> list[VerdictView]:
        """For each (position, tenant, job id, event id), and unique key: what became of the event, in order."""
        by_partition: dict[int, list[int]] = {}
        asked: list[Asked] = []
        keys = unique_keys or [""] * len(wanted)
        for index, ((position, tenant, job_id, event_id), key) in enumerate(zip(wanted, keys, strict=True)):
            by_partition.setdefault(partition_of(job_id, self._partition_count), []).append(index)
            asked.append(Asked(position.packed, job_key(tenant, job_id), event_id, key))
        found: dict[int, VerdictView] = {}
        for partition, indexes in by_partition.items():
            verdicts = self._held(partition).verdicts([asked[index] for index in indexes])
            found.update(zip(indexes, verdicts, strict=True))
        return [found[index] for index in range(len(wanted))]

    def outcomes(self, lines: Sequence[tuple[Position, str, str]], wanted: JobFilter) -> list[str]:
        found: dict[int, str] = {}
        by_partition: dict[int, list[int]] = {}
        for index, (position, _, _) in enumerate(lines):
            by_partition.setdefault(position.partition, []).append(index)
        for partition, indexes in by_partition.items():
            asked = [(lines[index][0].packed, job_key(*lines[index][1:])) for index in indexes]
            found.update(zip(indexes, self._held(partition).outcomes(asked, wanted), strict=True))
        return [found[index] for index in range(len(lines))]

    def list_jobs(self, query: JobsQuery, partitions: Collection[int] | None = None) -> JobsPage:
        check_limit(query.limit)
        below = parse_list_cursor(query.cursor)
        asked = self._asked(partitions)
        found: list[tuple[ListKey, PartitionQueries]] = []
        for queries in asked:
            found.extend((pair, queries) for pair in queries.newest(query, below, query.limit + 1))
        found.sort(key=lambda entry: entry[0], reverse=True)
        items = self._views_within(query.tenant, found[: query.limit])
        next_cursor = list_cursor(*found[len(items) - 1][0]) if len(items) < len(found) else None
        return JobsPage(
            items, next_cursor, sum(queries.number_of(query.tenant, query.filter) for queries in asked)
        )

    async def search(self, query: SearchQuery, partitions: Collection[int] | None = None) -> SearchPage:
        """One page. As :meth:`counts_at`, this lets others have their turns in between."""
        at = query.at
        sources: dict[int, Source] = {
            queries.partition: Present(queries) if at is None else await Past.of(queries, at)
            for queries in self._asked(partitions)
        }
        return await Search(query, sources).page()

    def _views_within(self, tenant: str, found: Sequence[tuple[ListKey, PartitionQueries]]) -> list[JobView]:
        """Views in the order of ``found``, as many as fit a page: the first always does."""
        views: list[JobView] = []
        size = 0
        for start in range(0, len(found), _CHUNK):
            for view in self._views(tenant, found[start : start + _CHUNK]):
                size += len(view.payload) + len(view.result) + len(view.checkpoint) + len(view.metadata)
                if size > PAGE_BYTES and views:
                    return views
                views.append(view)
        return views

    def _views(self, tenant: str, found: Sequence[tuple[ListKey, PartitionQueries]]) -> list[JobView]:
        by_partition: dict[int, list[str]] = {}
        for (_, job_id), queries in found:
            by_partition.setdefault(queries.partition, []).append(job_key(tenant, job_id))
        views: dict[str, JobView] = {}
        for partition, keys in by_partition.items():
            for key, view in zip(keys, self._queries[partition].views(keys), strict=True):
                assert view is not None, f"{key} is in the index of partition {partition} and not in its fold"
                views[key] = view
        return [views[job_key(tenant, job_id)] for (_, job_id), _ in found]

    def operated(
        self, operation: str, limit: int, cursor: str, partitions: Collection[int] | None = None
    ) -> OperatedPage:
        check_limit(limit)
        pages: list[OperatedPage] = []
        for queries in self._asked(partitions):
            found = [
                OperatedItem(job, row.outcome, row.reason, time_text(row.time_ms))
                for job, row in queries.operated.rows(operation, cursor, limit + 1)
            ]
            more = found[limit - 1].job if len(found) > limit else None
            pages.append(OperatedPage(found[:limit], more, queries.operated.counts(operation)))
        return merge_operated(pages, limit)

    def counts(
        self, tenant: str, partitions: Collection[int] | None = None, *, among: JobFilter = ALL
    ) -> list[CountRow]:
        return merge_counts(
            row for queries in self._asked(partitions) for row in queries.counts(tenant, among)
        )

    async def counts_at(
        self, tenant: str, at: Moment, partitions: Collection[int] | None = None, *, among: JobFilter = ALL
    ) -> list[CountRow]:
        """The counts as they were, counted job by job."""
        counted: list[CountRow] = []
        for queries in self._asked(partitions):
            counted += await (await Past.of(queries, at)).counts(tenant, among)
        return merge_counts(counted)

    def quarantined(
        self, limit: int, cursor: str, partitions: Collection[int] | None = None
    ) -> QuarantinePage:
        check_limit(limit)
        shown = parse_quarantine_cursor(cursor)
        pages: list[QuarantinePage] = []
        for queries in self._asked(partitions):
            last = shown.get(queries.partition)
            items = queries.quarantined(None if last is None else last.packed, limit + 1)
            pages.append((items[:limit], "more" if len(items) > limit else None))
        return merge_quarantine(pages, limit, cursor)

    def _asked(self, partitions: Collection[int] | None) -> list[PartitionQueries]:
        if partitions is None:
            return list(self._queries.values())
        return [self._held(partition) for partition in partitions]

    def _held(self, partition: int) -> PartitionQueries:
        queries = self._queries.get(partition)
        if queries is None:
            raise ReadModelUnavailable(f"Partition {partition} is not served here.", partition=partition)
        return queries
