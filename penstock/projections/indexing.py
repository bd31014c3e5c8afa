"""Keeps the text index up with the read model, in what time the fold leaves.

A job's text is indexed as it is when its turn comes. A partition of which the index does not know enough (a new folder,
a restored store, another log) is indexed whole first, job by job; until that is done, searches in it look at jobs in
order, as they do while more is waiting than :data:`MOST_WAITING`. Nothing here can make a search wrong, only slow, so
whatever goes wrong with the index is told, and after a while it is opened anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from heapq import merge
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from penstock.projections.candidates import ListKey, Window
from penstock.projections.filters import searched_text
from penstock.projections.port import JobFilter
from penstock.projections.queries import PartitionQueries
from penstock.projections.text_index import (
    Covered,
    Entry,
    TextIndex,
    TextIndexFailed,
    open_index,
    remove_index,
    terms_of,
)
from penstock.projections.unindexed import Unindexed
from penstock.schemas.errors import ReadModelUnavailable
from penstock.schemas.ids import job_key
from penstock.state.partition_store import PartitionStore

T = TypeVar("T")

_log = logging.getLogger(__name__)

MOST_WAITING = 500
"""Jobs that a search looks at besides what the index says; with more waiting it does without the index."""

SLICE_JOBS = 32
COMMIT_JOBS = 5_000
COMMIT_AFTER_S = 0.5
IDLE_S = 0.1
REST = 2.0
"""Pause after a slice, in times of what it took."""

BUSY_REST = 40.0
BUSY_LINES_PER_S = 2_000
"""With more lines folded in a second the fold is busy, and indexing takes short turns."""

MEASURED_S = 0.25
AGAIN_S = 30.0


class IndexedPart:
    """One partition in the text index: what is known of it there, and the way to ask."""

    def __init__(self, store: PartitionStore, queries: PartitionQueries, unindexed: Unindexed) -> None:
        self.store = store
        self.queries = queries
        self.unindexed = unindexed
        self.index: TextIndex | None = None
        """None where it does not have the partition whole, yet."""
        self.added = 0
        """Offset below which all was given to the index, if it may not be on the disk yet."""
        self.damage: TextIndexFailed | None = None
        """What a search found."""

    @property
    def whole(self) -> bool:
        """See :class:`penstock.projections.candidates.Texts`."""
        return self.index is not None

    def begin(self, index: TextIndex) -> bool:
        """Whether the index has enough of the partition to go on from there."""
        taken, covered = self.unindexed.taken, index.covered(self.store.identity)
        if taken is None or covered < taken:
            return False
        self.index, self.added = index, taken
        return True

    def places(self, tenant: str, wanted: JobFilter, window: Window) -> Iterator[ListKey] | None:
        """See :class:`penstock.projections.candidates.Texts`."""
        index = self.index
        if index is None or self.unindexed.jobs > MOST_WAITING:
            return None
        terms = terms_of(wanted)
        try:
            if not index.narrows(terms):
                return None
        except TextIndexFailed as error:
            self.index, self.damage = None, error
            return None
        finder = index.finder(self.store.partition, tenant, terms, descending=window.descending)
        waiting = sorted(filter(window.has, self._waiting(tenant)), reverse=window.descending)
        told = merge(self._told(finder.places(window)), waiting, reverse=window.descending)
        return (place for place, _ in groupby(told))

    def _told(self, places: Iterator[ListKey]) -> Iterator[ListKey]:
        try:
            yield from places
        except TextIndexFailed as error:
            self.index, self.damage = None, error
            raise ReadModelUnavailable(
                "The text index is damaged and is made anew: the next search does without it."
            ) from error

    def _waiting(self, tenant: str) -> list[ListKey]:
        """Places of a tenant's jobs that the index may not know as they are."""
        prefix = job_key(tenant, "")
        names = [key for key in self.unindexed.newest() if key.startswith(prefix)]
        return [(job.created_at_ms, job.id) for job in self.queries.jobs(names) if job is not None]


class Indexer:
    """Run :meth:`run` as a task; partitions come and go meanwhile.

    Args:
        folder: the index is kept in a folder below it.
        lines: how many lines were folded so far.
    """

    def __init__(self, folder: Path, lines: Callable[[], int]) -> None:
        self._folder = folder
        self._load = _Load(lines)
        self._parts: dict[int, IndexedPart] = {}
        self._thread = ThreadPoolExecutor(1, "text-index")
        self._uncommitted = 0
        self._since_s = 0.0

    def attach(self, part: IndexedPart) -> None:
        """Index a partition from now on."""
        self._parts[part.store.partition] = part
        part.queries.candidates.texts = part

    def detach(self) -> None:
        """The stores are about to be closed."""
        self._parts = {}

    async def run(self) -> None:
        """Index for ever."""
        try:
            work = self._go_on
            while True:
                try:
                    await work()
                except (OSError, TextIndexFailed) as error:
                    _log.warning("the text index cannot be used, searches do without it: %s", error)
                except Exception:  # noqa: BLE001 - the read model is worth more than its index
                    _log.exception("indexing failed, searches do without it")
                self._let_go()
                await asyncio.sleep(AGAIN_S)
                work = self._begin_anew
        finally:
            self._let_go()
            # What is being written is brought to its end, for the folder may be opened anew.
            await asyncio.shield(self._apart(_nothing))
            self._thread.shutdown(wait=False)

    async def _begin_anew(self) -> None:
        await self._apart(lambda: remove_index(self._folder))
        await self._go_on()

    async def _go_on(self) -> None:
        index = await self._apart(lambda: open_index(self._folder))
        with contextlib.closing(index):
            while True:
                await self._take_turns(index)

    async def _take_turns(self, index: TextIndex) -> None:
        """Each partition once, and a commit if it is time for one."""
        worked = False
        for part in list(self._parts.values()):
            if not self._has(part):
                continue
            if part.damage is not None:
                raise part.damage
            if part.index is None and not part.begin(index):
                await self._take_all(index, part)
            elif await self._take_some(index, part):
                worked = True
        waited_s = time.monotonic() - self._since_s
        if self._uncommitted >= COMMIT_JOBS or (self._uncommitted and waited_s >= COMMIT_AFTER_S):
            await self._commit(index, {part: part.added for part in self._parts.values() if part.whole})
        if not worked:
            await asyncio.sleep(IDLE_S)

    def _let_go(self) -> None:
        for part in self._parts.values():
            part.index = part.damage = None
        self._uncommitted = 0

    async def _apart(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _has(self, part: IndexedPart) -> bool:
        return self._parts.get(part.store.partition) is part

    # What is indexed

    async def _take_some(self, index: TextIndex, part: IndexedPart) -> bool:
        """Index what some commits told of; whether there was anything."""
        fresh: dict[str, bool] = {}
        offset = part.added
        for row in part.unindexed.rows(part.added):
            for key, begun in row.notes:
                fresh[key] = begun and key not in fresh
            offset = row.offset
            if len(fresh) >= SLICE_JOBS:
                break
        keys = list(fresh)
        for start in range(0, len(keys), SLICE_JOBS):
            if not self._has(part):
                return False
            began_s = time.perf_counter()
            self._add(index, part, {key: fresh[key] for key in keys[start : start + SLICE_JOBS]})
            await self._load.rest(began_s)
        part.added = offset
        return bool(keys)

    async def _take_all(self, index: TextIndex, part: IndexedPart) -> None:
        """Index a partition whole, from nothing."""
        partition, offset = part.store.partition, part.store.committed_offset
        index.remove_partition(partition)
        last = ""
        while self._has(part):
            began_s = time.perf_counter()
            jobs = part.queries.jobs_behind(last, SLICE_JOBS)
            keys = [job_key(job.tenant, job.id) for job in jobs]
            self._add(index, part, dict.fromkeys(keys, True))
            if len(keys) < SLICE_JOBS:
                await self._commit(index, {part: offset})
                if self._has(part):
                    part.begin(index)
                    _log.info("partition %d is whole in the text index", partition)
                return
            last = keys[-1]
            await self._load.rest(began_s)

    def _add(self, index: TextIndex, part: IndexedPart, fresh: dict[str, bool]) -> None:
        """Index these jobs as they are now."""
        partition = part.store.partition
        jobs = dict(zip(fresh, part.queries.jobs(list(fresh)), strict=True))
        for key, job in jobs.items():
            if job is None:
                index.remove(partition, key)
        there = [job for job in jobs.values() if job is not None]
        for inside in part.queries.insides(there):
            job = inside.job
            key = job_key(job.tenant, job.id)
            entry = Entry(job.tenant, key, job.id, job.created_at_ms, searched_text(inside))
            index.add(partition, entry, fresh=fresh[key])
        if not self._uncommitted:
            self._since_s = time.monotonic()
        self._uncommitted += len(fresh)

    async def _commit(self, index: TextIndex, reached: dict[IndexedPart, int]) -> None:
        """Bring what was added to the disk, and then let go of the notes about it."""
        for part, offset in reached.items():
            index.cover(Covered(part.store.identity, offset))
        self._uncommitted = 0
        await self._apart(index.commit)
        for part, offset in reached.items():
            if self._has(part):
                part.unindexed.take_away(offset)


class _Load:
    """How busy the fold is, and how long to leave it alone."""

    def __init__(self, lines: Callable[[], int]) -> None:
        self._lines = lines
        self._measured_s = time.perf_counter()
        self._measured_lines = lines()
        self._busy = False

    async def rest(self, began_s: float) -> None:
        """Let others work, after a slice that began then."""
        now_s = time.perf_counter()
        past_s = now_s - self._measured_s
        if past_s >= MEASURED_S:
            lines = self._lines()
            self._busy = (lines - self._measured_lines) / past_s > BUSY_LINES_PER_S
            self._measured_s, self._measured_lines = now_s, lines
        await asyncio.sleep((now_s - began_s) * (BUSY_REST if self._busy else REST))


def _nothing() -> None:
    """Done in the index's thread, it is done once all before it is."""
