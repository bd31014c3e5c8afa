"""Searching jobs: whatever is asked, in any order, a page at a time, and never a scan of all in one go.

::

    filter ──▶ where to look: a unique key's jobs, ids with a prefix, the text index, a tag's jobs, those with errors,
                    │         or groups by state, queue, pool and type
                    │ keys in creation order, a slice at a time
                    ▼
               the jobs' rows ──▶ pass? ──▶ their errors and bodies, only where those are asked for ──▶ pass? ──▶ page

A call looks at no more than :data:`EXAMINED_ROWS`. Where that does not fill a page, what was found is answered with a
cursor that goes on from the last job looked at, so a page may be short, or empty, and not the last. Cursors are a place
in the order: what comes or goes meanwhile neither repeats a job nor skips one that stays as it is.

By creation time a search walks along an index. Other orders need all matches at once, and are for filters that leave at
most :data:`MOST_SORTED` jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from penstock.core.job_state import Job
from penstock.projections.candidates import ListKey
from penstock.projections.filters import passes_inside, row_test
from penstock.projections.merge import check_limit, decode_cursor, encode_cursor, parse_place, view_time_ms
from penstock.projections.port import JobView, SearchPage, SearchQuery, Sort
from penstock.projections.queries import PAGE_BYTES, PartitionQueries
from penstock.schemas.errors import InvalidCursor, InvalidField
from penstock.schemas.ids import job_key

EXAMINED_ROWS = 10_000
FIRST_ROWS = 64
"""Looked at first, of each partition: where most jobs match that fills a page."""

SLICE_ROWS = 256
SHOWN_TOGETHER = 64
MOST_SORTED = 10_000
MOST_SORTED_EXAMINED = 200_000


_SEARCH = "a search"


class Order:
    """A sort, as a direction and the value that jobs are compared by."""

    def __init__(self, sort: Sort) -> None:
        self.sort = sort
        self.descending = sort.startswith("-")
        self.field = sort.removeprefix("-")
        self.by_creation = self.field == "created_at"
        self._attribute = {"updated_at": "time_ms"}.get(self.field, f"{self.field}_ms")

    def of(self, job: Job) -> ListKey:
        """Where a job stands."""
        return int(getattr(job, self._attribute)), job.id

    def of_view(self, job: JobView) -> ListKey:
        """As :meth:`of`, of a job as it is shown."""
        text = getattr(job, self.field)
        return 0 if text is None else view_time_ms(text), job.id

    def behind(self, key: ListKey, other: ListKey) -> bool:
        """Whether a job comes after another."""
        return key < other if self.descending else key > other

    def nearest(self, keys: Sequence[ListKey]) -> ListKey:
        """The one that comes first."""
        return max(keys) if self.descending else min(keys)

    def cursor(self, key: ListKey) -> str:
        """Goes on behind this place."""
        return encode_cursor(f"{self.sort} {key[0]}.{key[1]}")

    def parse(self, cursor: str) -> ListKey | None:
        """The place that a cursor goes on behind; None for no cursor. Raises InvalidCursor."""
        if not cursor:
            return None
        sort, _, place = decode_cursor(cursor, _SEARCH).partition(" ")
        key = parse_place(place, _SEARCH)
        if sort != self.sort:
            raise InvalidCursor(f"cursor is of a search sorted by {sort}")
        return key


class _Match(NamedTuple):
    key: ListKey
    partition: int


def _in_creation(job: Job) -> ListKey:
    return job.created_at_ms, job.id


class Search:
    """One page over the partitions of one process.

    Args:
        queries: by partition.
    """

    def __init__(self, query: SearchQuery, queries: Mapping[int, PartitionQueries]) -> None:
        check_limit(query.limit)
        self._query = query
        self._queries = queries
        self._order = Order(query.sort)
        self._after = self._order.parse(query.cursor)
        self._passes = row_test(query.filter)

    async def page(self) -> SearchPage:
        """Look until the page is full, or enough was looked at. Others have their turns in between."""
        if self._order.by_creation:
            matches, edges = await self._along_the_index()
        else:
            matches, edges = await self._sorted(), []
        order, limit = self._order, self._query.limit
        if edges:
            edge = order.nearest(edges)
            matches = [match for match in matches if not order.behind(match.key, edge)]
        matches.sort(key=lambda match: match.key, reverse=order.descending)
        shown = self._shown(matches[:limit])
        if len(shown) < len(matches):
            next_cursor = order.cursor(matches[len(shown) - 1].key)
        else:
            next_cursor = order.cursor(order.nearest(edges)) if edges else None
        return SearchPage([view for view in shown if view is not None], next_cursor, self._total())

    def _total(self) -> int | None:
        wanted = self._query.filter
        if not wanted.counted:
            return None
        return sum(queries.number_of(self._query.tenant, wanted) for queries in self._queries.values())

    def _places(
        self, queries: PartitionQueries, edge: ListKey | None, *, descending: bool
    ) -> Iterator[ListKey]:
        return queries.candidates.of(self._query.tenant, self._query.filter, edge, descending=descending)

    async def _along_the_index(self) -> tuple[list[_Match], list[ListKey]]:
        """Matches, and for each partition that was not looked at to its end how far it was."""
        found: list[_Match] = []
        edges: list[ListKey] = []
        most = max(SLICE_ROWS, EXAMINED_ROWS // max(1, len(self._queries)))
        for partition, queries in self._queries.items():
            places = self._places(queries, self._after, descending=self._order.descending)
            rows, examined, here = FIRST_ROWS, 0, 0
            while True:
                keys = list(islice(places, rows))
                matches = self._matching(queries, keys)
                found.extend(_Match(key, partition) for key in matches)
                examined += len(keys)
                here += len(matches)
                if len(keys) < rows:
                    break
                if here > self._query.limit or examined >= most:
                    edges.append(keys[-1])
                    break
                rows = SLICE_ROWS
                await asyncio.sleep(0)
        return found, edges

    async def _sorted(self) -> list[_Match]:
        """All matches that come after the cursor."""
        order = self._order
        found: list[_Match] = []
        matching = examined = 0
        for partition, queries in self._queries.items():
            walk = self._places(queries, None, descending=True)
            while True:
                keys = list(islice(walk, SLICE_ROWS))
                places = self._matching(queries, keys, order.of)
                examined += len(keys)
                matching += len(places)
                if matching > MOST_SORTED or examined > MOST_SORTED_EXAMINED:
                    raise InvalidField(
                        f"sort: too many jobs to sort by {order.field}: narrow the filter down, or sort by created_at",
                        field="sort",
                    )
                found.extend(
                    _Match(place, partition)
                    for place in places
                    if self._after is None or order.behind(place, self._after)
                )
                if len(keys) < SLICE_ROWS:
                    break
                await asyncio.sleep(0)
        return found

    def _matching(
        self,
        queries: PartitionQueries,
        keys: Sequence[ListKey],
        place_of: Callable[[Job], ListKey] = _in_creation,
    ) -> list[ListKey]:
        """Those that match, each as its place. Of a job that has begun anew an index may know its former life too."""
        tenant, passes = self._query.tenant, self._passes
        names = [job_key(tenant, job_id) for _, job_id in keys]
        passed = [
            job
            for key, job in zip(keys, queries.jobs(names), strict=True)
            if job is not None and job.created_at_ms == key[0] and passes(job)
        ]
        wanted = self._query.filter
        if wanted.looks_inside:
            passed = [inside.job for inside in queries.insides(passed) if passes_inside(wanted, inside)]
        return [place_of(job) for job in passed]

    def _shown(self, matches: Sequence[_Match]) -> list[JobView | None]:
        """Views in order, as many as fit a page: the first always does. None for one that has gone meanwhile."""
        shown: list[JobView | None] = []
        size = 0
        for start in range(0, len(matches), SHOWN_TOGETHER):
            for view in self._views(matches[start : start + SHOWN_TOGETHER]):
                if view is not None:
                    size += len(view.payload) + len(view.result) + len(view.checkpoint) + len(view.metadata)
                if size > PAGE_BYTES and shown:
                    return shown
                shown.append(view)
        return shown

    def _views(self, matches: Sequence[_Match]) -> list[JobView | None]:
        by_partition: dict[int, list[int]] = {}
        for number, match in enumerate(matches):
            by_partition.setdefault(match.partition, []).append(number)
        views: dict[int, JobView | None] = {}
        for partition, numbers in by_partition.items():
            keys = [job_key(self._query.tenant, matches[number].key[1]) for number in numbers]
            views.update(zip(numbers, self._queries[partition].views(keys), strict=True))
        return [views[number] for number in range(len(matches))]


def merge_search_pages(pages: Sequence[SearchPage], query: SearchQuery) -> SearchPage:
    """Pages of several processes as one."""
    order = Order(query.sort)
    edges = [edge for page in pages if (edge := order.parse(page.next_cursor or "")) is not None]
    items = [item for page in pages for item in page.items]
    items.sort(key=order.of_view, reverse=order.descending)
    if edges:
        edge = order.nearest(edges)
        items = [item for item in items if not order.behind(order.of_view(item), edge)]
    totals = [page.total for page in pages]
    total = None if None in totals else sum(filter(None, totals))
    if len(items) > query.limit:
        items = items[: query.limit]
        return SearchPage(items, order.cursor(order.of_view(items[-1])), total)
    return SearchPage(items, order.cursor(order.nearest(edges)) if edges else None, total)
