"""Searching jobs: whatever is asked, in any order, a page at a time, and never a scan of all in one go.

::

    filter ──▶ where to look: a unique key's jobs, ids with a prefix, the text index, a tag's jobs, those with errors,
                    │         or groups by state, queue, pool and type
                    │ of all partitions together in creation order, a slice at a time
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
from heapq import merge
from itertools import islice
from typing import NamedTuple

from penstock.core.job_state import Job
from penstock.projections.candidates import ListKey
from penstock.projections.merge import check_limit, decode_cursor, encode_cursor, parse_place
from penstock.projections.port import JobView, SearchPage, SearchQuery, Sort
from penstock.projections.queries import PAGE_BYTES
from penstock.projections.sources import Source
from penstock.schemas.errors import InvalidCursor, InvalidField
from penstock.schemas.ids import job_key
from penstock.schemas.times import text_time_ms

EXAMINED_ROWS = 10_000
FIRST_ROWS = 64
"""Looked at first: where most jobs match, that fills a page."""

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
        return 0 if text is None else text_time_ms(text), job.id

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


class Search:
    """One page over the partitions of one process.

    Args:
        sources: by partition.
    """

    def __init__(self, query: SearchQuery, sources: Mapping[int, Source]) -> None:
        check_limit(query.limit)
        self._query = query
        self._sources = sources
        self._order = Order(query.sort)
        self._after = self._order.parse(query.cursor)

    async def page(self) -> SearchPage:
        """Look until the page is full, or enough was looked at. Others have their turns in between."""
        order, limit = self._order, self._query.limit
        if order.by_creation:
            matches, edge = await self._along_the_index()
        else:
            matches, edge = await self._sorted(), None
        shown = self._shown(matches[:limit])
        if len(shown) < len(matches):
            edge = matches[len(shown) - 1].key
        next_cursor = None if edge is None else order.cursor(edge)
        return SearchPage([view for view in shown if view is not None], next_cursor, self._total())

    def _total(self) -> int | None:
        found = [
            source.number_of(self._query.tenant, self._query.filter) for source in self._sources.values()
        ]
        return None if None in found else sum(filter(None, found))

    async def _along_the_index(self) -> tuple[list[_Match], ListKey | None]:
        """Matches in order, and where looking ended, if that was not the end."""
        descending = self._order.descending
        places = merge(
            *(self._places(partition, self._after, descending) for partition in self._sources),
            key=_key_of,
            reverse=descending,
        )
        found: list[_Match] = []
        rows, examined = FIRST_ROWS, 0
        while True:
            some = list(islice(places, rows))
            found += self._matching(some, _in_creation)
            examined += len(some)
            if len(some) < rows:
                return found, None
            if len(found) > self._query.limit or examined >= EXAMINED_ROWS:
                return found, some[-1].key
            rows = SLICE_ROWS
            await asyncio.sleep(0)

    async def _sorted(self) -> list[_Match]:
        """All matches that come after the cursor, in order."""
        order = self._order
        found: list[_Match] = []
        matching = examined = 0
        for partition in self._sources:
            places = self._places(partition, None, descending=True)
            while some := list(islice(places, SLICE_ROWS)):
                matches = self._matching(some, order.of)
                examined += len(some)
                matching += len(matches)
                if matching > MOST_SORTED or examined > MOST_SORTED_EXAMINED:
                    raise InvalidField(
                        f"sort: too many jobs to sort by {order.field}: narrow the filter down, or sort by created_at",
                        field="sort",
                    )
                after = self._after
                found += [match for match in matches if after is None or order.behind(match.key, after)]
                await asyncio.sleep(0)
        found.sort(key=_key_of, reverse=order.descending)
        return found

    def _places(self, partition: int, edge: ListKey | None, descending: bool) -> Iterator[_Match]:
        wanted, tenant = self._query.filter, self._query.tenant
        places = self._sources[partition].places(tenant, wanted, edge, descending=descending)
        return (_Match(place, partition) for place in places)

    def _matching(self, places: Sequence[_Match], place_of: Callable[[Job], ListKey]) -> list[_Match]:
        """Those that match, in the order of the places, each with its own."""
        found: dict[ListKey, _Match] = {}
        for partition, some in _by_partition(places).items():
            source = self._sources[partition]
            for job in source.matching(self._query.tenant, self._query.filter, [place.key for place in some]):
                found[_in_creation(job)] = _Match(place_of(job), partition)
        return [found[place.key] for place in places if place.key in found]

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
        views: dict[_Match, JobView | None] = {}
        for partition, some in _by_partition(matches).items():
            keys = [job_key(self._query.tenant, match.key[1]) for match in some]
            views.update(zip(some, self._sources[partition].views(keys), strict=True))
        return [views[match] for match in matches]


def _in_creation(job: Job) -> ListKey:
    return job.created_at_ms, job.id


def _key_of(match: _Match) -> ListKey:
    return match.key


def _by_partition(matches: Sequence[_Match]) -> dict[int, list[_Match]]:
    found: dict[int, list[_Match]] = {}
    for match in matches:
        found.setdefault(match.partition, []).append(match)
    return found


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
