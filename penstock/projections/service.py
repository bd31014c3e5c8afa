"""The read model of a set of partitions: follows the jobs log, folds it, and answers.

::

    jobs topic ─▶ tail ─▶ Projector of each partition ─▶ commit: fold, views and next offset in one batch
                              (in memory, by slices)        │
                                                            ├─▶ those who wait for a position
    who asks ◀──── LocalReads, merged over partitions ◀─────┘

One task follows the log. It folds in slices of a few milliseconds and lets readers run in between; they see what is
committed, so each answer stands at one offset of each partition. A commit comes when a fetch is folded, or sooner when
much is touched, and wakes those who wait for a position. Whatever goes wrong with the log or a store ends the service:
its ``failure`` gets the exception, waiting readers get ``ReadModelUnavailable``, and whoever runs the process ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from msgspec import Struct

from penstock.log.port import Log, Record, Tail
from penstock.log.supervision import supervise, tell
from penstock.projections.merge import QuarantinePage
from penstock.projections.port import (
    CountRow,
    HistoryPage,
    JobsPage,
    JobsQuery,
    JobView,
    PartitionStatus,
    VerdictView,
)
from penstock.projections.projector import Projector
from penstock.projections.queries import PartitionQueries
from penstock.projections.reads import LocalReads
from penstock.projections.rows import FAMILIES, LAYOUT
from penstock.projections.waiting import OffsetWaiters
from penstock.schemas.errors import LogUnavailable, PenstockError, ReadBehind, ReadModelUnavailable
from penstock.schemas.position import Position
from penstock.schemas.topics import Topics
from penstock.state.partition_store import PartitionStore, StoreFactory, StoreIdentity, rocks_store

_log = logging.getLogger(__name__)

POLL_MS = 1_000
POLL_RECORDS = 256
SLICE_S = 0.005
READER_STEPS = 5
"""Turns of the event loop between two slices: a request takes about so many from the socket to its answer."""
COMMIT_ROWS = 1_000
COMMIT_BYTES = 8 * 1024 * 1024
ENDS_EVERY_S = 2.0
ENDS_FRESH_S = 0.2
VERDICTS_A_SLICE = 200


class ProjectionNumbers(Struct, kw_only=True):
    """What a projection has done since it started, for metrics."""

    records: int = 0
    lines: int = 0
    commits: int = 0
    fold_s: float = 0.0
    commit_s: float = 0.0
    waits: int = 0
    waits_behind: int = 0


def projection_store(
    folder: Path | str, identity: StoreIdentity, store_factory: StoreFactory = rocks_store
) -> PartitionStore:
    """Open the read model's store of one partition below ``folder``. Raises like ``PartitionStore.open``."""
    path = Path(folder) / f"partition-{identity.partition}"
    return PartitionStore.open(
        path, identity=identity, extra=FAMILIES, layout=LAYOUT, store_factory=store_factory
    )


class _Part:
    """One partition: its projector, its readers, and where the log ended when last asked."""

    def __init__(self, store: PartitionStore) -> None:
        self.store = store
        self.projector = Projector(store)
        self.queries = PartitionQueries(store, self.projector.groups)
        self.waiters = OffsetWaiters()
        self.end_offset = store.next_offset
        self.applied_at_ms = 0


class ProjectionService:
    """See the module. A :class:`~penstock.projections.port.ReadModel` of its own partitions.

    Args:
        folder: one store for each partition is kept below it.
        partitions: which to serve; all of the topic's where None.
        generation: of the log; a store of another is refused.
    """

    failure: asyncio.Future[None]
    """Gets the exception that ended the service."""

    def __init__(
        self,
        log: Log,
        topics: Topics,
        folder: Path | str,
        *,
        partitions: Iterable[int] | None = None,
        generation: int = 0,
        store_factory: StoreFactory = rocks_store,
    ) -> None:
        self.numbers = ProjectionNumbers()
        self.topics = topics
        self._log = log
        self._folder = Path(folder)
        self._partitions = sorted(range(topics.partitions) if partitions is None else set(partitions))
        self._generation = generation
        self._store_factory = store_factory
        self._parts: dict[int, _Part] = {}
        self._reads = LocalReads({}, topics.partitions)
        self._tasks: list[asyncio.Task[None]] = []
        self._tails = contextlib.AsyncExitStack()
        self._ends_asked_at = 0.0

    async def __aenter__(self) -> Self:
        """Open the stores and check each against the log.

        Raises:
            HistoryChanged, OffsetBeyondEnd, OffsetTrimmed: a store is the fold of another history.
            StoreLocked: another process has a store.
        """
        self.failure = asyncio.get_running_loop().create_future()
        try:
            for partition in self._partitions:
                self._open_part(partition)
            async with asyncio.TaskGroup() as checks:
                for part in self._parts.values():
                    checks.create_task(part.store.verify_last_record(self._log))
            await self._ask_ends()
            # Entered here and not by the task: what cannot start is told to whoever starts it, and is not cut short.
            starts = {
                (self.topics.jobs, number): part.store.next_offset for number, part in self._parts.items()
            }
            tail = await self._tails.enter_async_context(self._log.tail(starts))
        except BaseExceptionGroup as group:
            self._close_stores()
            raise group.exceptions[0] from group
        except BaseException:
            self._close_stores()
            raise
        queries = {partition: part.queries for partition, part in self._parts.items()}
        self._reads = LocalReads(queries, self.topics.partitions)
        self._tasks = [
            supervise(self._follow(tail), "projection", self._fail),
            supervise(self._watch_ends(), "projection-ends", self._fail),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_waiters()
        try:
            await self._tails.aclose()
            if not self.failure.done():
                self._commit_all()
                self.failure.cancel()
            elif not self.failure.cancelled():
                self.failure.exception()
        finally:
            self._close_stores()

    def _open_part(self, partition: int) -> None:
        identity = StoreIdentity(
            self._log.cluster_id, self.topics.jobs, partition, self.topics.partitions, self._generation
        )
        self._parts[partition] = _Part(projection_store(self._folder, identity, self._store_factory))

    def _close_stores(self) -> None:
        parts, self._parts = self._parts, {}
        self._reads = LocalReads({}, self.topics.partitions)
        with contextlib.ExitStack() as stack:
            for part in parts.values():
                stack.callback(part.store.close)

    # Following the log

    def _fail(self, error: BaseException) -> None:
        _log.error("the projection ends: %s", error)
        tell(self.failure, error)
        self._fail_waiters()

    def _fail_waiters(self) -> None:
        for part in self._parts.values():
            part.waiters.fail(ReadModelUnavailable("The projection has ended."))

    async def _follow(self, tail: Tail) -> None:
        while True:
            await self._fold(await tail.poll(POLL_MS, POLL_RECORDS))

    async def _fold(self, records: Sequence[Record]) -> None:
        """Fold a fetch, slice by slice, and commit."""
        slice_began = time.perf_counter()
        for record in records:
            part = self._parts[record.partition]
            began = time.perf_counter()
            part.projector.fold(record)
            now = time.perf_counter()
            self.numbers.fold_s += now - began
            self.numbers.records += 1
            if part.store.touched >= COMMIT_ROWS or part.store.pending_bytes >= COMMIT_BYTES:
                self._commit(part)
            if now - slice_began > SLICE_S:
                await self._let_readers_run()
                slice_began = time.perf_counter()
        for part in self._parts.values():
            if part.projector.dirty:
                self._commit(part)
                if time.perf_counter() - slice_began > SLICE_S:
                    await self._let_readers_run()
                    slice_began = time.perf_counter()

    async def _let_readers_run(self) -> None:
        for _ in range(READER_STEPS):
            await asyncio.sleep(0)

    def _commit(self, part: _Part) -> None:
        began = time.perf_counter()
        part.projector.commit()
        self.numbers.commit_s += time.perf_counter() - began
        self.numbers.commits += 1
        self.numbers.lines += part.projector.take_lines_folded()
        part.applied_at_ms = time.time_ns() // 1_000_000
        part.end_offset = max(part.end_offset, part.store.next_offset)
        part.waiters.reached(part.store.committed_offset)

    def _commit_all(self) -> None:
        for part in self._parts.values():
            if part.projector.dirty:
                self._commit(part)

    async def _watch_ends(self) -> None:
        """Keep the known ends of the log young, for the lag. A log that does not answer is the follower's business."""
        while True:
            await asyncio.sleep(ENDS_EVERY_S)
            try:
                await self._ask_ends()
            except LogUnavailable as error:
                _log.warning("the log does not tell its end: %s", error)

    async def _ask_ends(self) -> None:
        numbers = list(self._parts)
        bounds = await asyncio.gather(*(self._log.bounds(self.topics.jobs, number) for number in numbers))
        for number, found in zip(numbers, bounds, strict=True):
            if number in self._parts:
                self._parts[number].end_offset = found.end
        self._ends_asked_at = time.monotonic()

    # How far

    @property
    def offsets(self) -> dict[int, int]:
        """Next offset to fold by partition."""
        return {number: part.store.committed_offset for number, part in self._parts.items()}

    @property
    def lags(self) -> dict[int, int]:
        """Records not yet folded, by partition, as of the log's end when last asked."""
        return {
            number: max(0, part.end_offset - part.store.committed_offset)
            for number, part in self._parts.items()
        }

    async def wait(self, positions: Mapping[int, Position], timeout_ms: int) -> None:
        """See the port."""
        self.numbers.waits += 1
        futures: list[asyncio.Future[None]] = []
        for number, position in positions.items():
            part = self._part(number)
            if part.store.committed_offset <= position.offset:
                futures.append(part.waiters.wait(position.offset))
        if not futures:
            return
        self._check_alive()
        try:
            done, pending = await asyncio.wait(futures, timeout=timeout_ms / 1000)
        finally:
            for future in futures:
                future.cancel()
        ended = [future.exception() for future in done]
        error = next(filter(None, ended), None)
        if error is not None:
            raise error
        if pending:
            self.numbers.waits_behind += 1
            raise self._behind(positions)

    def _behind(self, positions: Mapping[int, Position]) -> ReadBehind:
        behind = [
            {
                "partition": number,
                "wanted": str(position),
                "folded": self._part(number).store.committed_offset,
                "lag_records": position.offset + 1 - self._part(number).store.committed_offset,
            }
            for number, position in positions.items()
            if self._part(number).store.committed_offset <= position.offset
        ]
        return ReadBehind("The read model has not folded the wanted position yet.", behind=behind)

    def _part(self, number: int) -> _Part:
        part = self._parts.get(number)
        if part is None:
            raise ReadModelUnavailable(f"Partition {number} is not served here.", partition=number)
        return part

    def _check_alive(self) -> None:
        if self.failure.done():
            raise ReadModelUnavailable("The projection has ended.")

    # Reads; see the port

    async def job(self, tenant: str, job_id: str) -> JobView | None:
        return self._reads.job(tenant, job_id)

    async def history(
        self, tenant: str, job_id: str, limit: int = 1_000, cursor: str = ""
    ) -> HistoryPage | None:
        return self._reads.history(tenant, job_id, limit, cursor)

    async def verdicts(
        self, wanted: Sequence[tuple[Position, str, str, str]], timeout_ms: int
    ) -> list[VerdictView]:
        highest: dict[int, Position] = {}
        for position, *_ in wanted:
            highest[position.partition] = max(position, highest.get(position.partition, position))
        await self.wait(highest, timeout_ms)
        found: list[VerdictView] = []
        for number, (position, tenant, job_id, event_id) in enumerate(wanted, 1):
            found.append(self._reads.verdict(position, tenant, job_id, event_id))
            if number % VERDICTS_A_SLICE == 0:
                await asyncio.sleep(0)
        return found

    async def list_jobs(self, query: JobsQuery, partitions: Collection[int] | None = None) -> JobsPage:
        return self._reads.list_jobs(query, partitions)

    async def counts(
        self, tenant: str = "default", partitions: Collection[int] | None = None
    ) -> list[CountRow]:
        return self._reads.counts(tenant, partitions)

    async def quarantined(
        self, limit: int = 100, cursor: str = "", partitions: Collection[int] | None = None
    ) -> QuarantinePage:
        return self._reads.quarantined(limit, cursor, partitions)

    async def status(self, partitions: Collection[int] | None = None) -> list[PartitionStatus]:
        if time.monotonic() - self._ends_asked_at > ENDS_FRESH_S:
            with contextlib.suppress(PenstockError):
                await self._ask_ends()
        asked = [self._part(number) for number in (self._parts if partitions is None else partitions)]
        return [part.queries.status(part.end_offset, part.applied_at_ms) for part in asked]
