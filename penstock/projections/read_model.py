"""Answering for a set of partitions: reads, waiting for positions, how far behind; whoever may be folding them.

:class:`ReadModelService` answers from stores that somebody keeps folded: :class:`~penstock.projections.service
.ProjectionService` follows the log itself, :class:`SharedReadModel` answers from the stores of an orchestrator in the
same process, where one fold serves both.
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

from penstock.log.port import Log
from penstock.log.supervision import supervise, tell
from penstock.projections.indexing import IndexedPart, Indexer
from penstock.projections.merge import QuarantinePage
from penstock.projections.operated import remove_operated
from penstock.projections.port import (
    ALL,
    CountRow,
    HistoryPage,
    JobFilter,
    JobsPage,
    JobsQuery,
    JobView,
    Moment,
    OperatedPage,
    PartitionStatus,
    SearchPage,
    SearchQuery,
    VerdictView,
)
from penstock.projections.projector import ProjectionNumbers, Projector
from penstock.projections.queries import PartitionQueries
from penstock.projections.reads import LocalReads
from penstock.projections.retention import JOBS_A_TURN, SWEEP_EVERY_S, remove_histories
from penstock.projections.rows import FAMILIES, LAYOUT
from penstock.schemas.errors import (
    InvalidField,
    LogUnavailable,
    PenstockError,
    ReadBehind,
    ReadModelUnavailable,
)
from penstock.schemas.position import Position
from penstock.schemas.times import time_text
from penstock.schemas.topics import Topics
from penstock.state.pacing import CommitPace
from penstock.state.partition_store import PartitionStore

_log = logging.getLogger(__name__)

READER_STEPS = 5
"""Turns of the event loop between two slices: a request takes about so many from the socket to its answer."""
ENDS_EVERY_S = 2.0
ENDS_FRESH_S = 0.2
VERDICTS_A_SLICE = 200


class Part:
    """One partition: its projector, its readers, and where the log ended when last asked."""

    def __init__(self, store: PartitionStore, numbers: ProjectionNumbers, *, indexed: bool) -> None:
        self.store = store
        self.projector = Projector(store, numbers, indexed=indexed)
        self.queries = PartitionQueries(store, self.projector.groups)
        self.waiters = self.projector.waiters
        self.end_offset = store.next_offset
        self.first_end = 0
        """Where the log ended as the service began."""
        self.committed_s = 0.0
        """When it was last committed by its own service, by the performance counter."""


class ReadModelService:
    """A :class:`~penstock.projections.port.ReadModel` of the partitions attached to it.

    Args:
        partitions: which to serve; all of the topic's where None.
        history_age_ms: how long the history of a forgotten job stays; for ever where None.
        text_index: a folder to keep the text index in; none is kept where None.
    """

    failure: asyncio.Future[None]
    """Gets the exception that ended the service."""

    def __init__(
        self,
        log: Log,
        topics: Topics,
        *,
        partitions: Iterable[int] | None = None,
        history_age_ms: int | None = None,
        text_index: Path | None = None,
    ) -> None:
        self.numbers = ProjectionNumbers()
        self.topics = topics
        self._log = log
        self._partitions = sorted(range(topics.partitions) if partitions is None else set(partitions))
        self.history_age_ms = history_age_ms
        self._parts: dict[int, Part] = {}
        self._reads = LocalReads({}, topics.partitions)
        self._tasks: list[asyncio.Task[None]] = []
        self._ends_asked_at = 0.0
        self._asked = asyncio.Event()
        """Set when somebody begins to wait for a position."""
        self._pace = CommitPace(len(self._partitions))
        self._indexer = None if text_index is None else Indexer(text_index, lambda: self.numbers.lines)

    def attach(self, store: PartitionStore) -> None:
        """Answer for a store from now on: what is folded into it comes into the read model as well."""
        part = Part(store, self.numbers, indexed=self._indexer is not None)
        self._parts[store.partition] = part
        if self._indexer is not None:
            self._indexer.attach(IndexedPart(store, part.queries, part.projector.unindexed))
        queries = {partition: part.queries for partition, part in self._parts.items()}
        self._reads = LocalReads(queries, self.topics.partitions)

    def detach(self) -> None:
        """The stores are about to be closed: nothing is answered any more."""
        self._fail_waiters()
        if self._indexer is not None:
            self._indexer.detach()
        self._parts = {}
        self._reads = LocalReads({}, self.topics.partitions)

    def _watch(self) -> None:
        self._tasks.append(supervise(self._watch_ends(), "projection-ends", self._fail))
        if self.history_age_ms is not None:
            sweep = self._remove_histories(self.history_age_ms)
            self._tasks.append(supervise(sweep, "projection-retention", self._fail))
        if self._indexer is not None:
            self._tasks.append(supervise(self._indexer.run(), "text-index", self._fail))

    async def _stop_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _fail(self, error: BaseException) -> None:
        _log.error("the projection ends: %s", error)
        tell(self.failure, error)
        self._fail_waiters()

    def _fail_waiters(self) -> None:
        for part in self._parts.values():
            part.waiters.fail(ReadModelUnavailable("The projection has ended."))

    async def _watch_ends(self) -> None:
        """Keep the known ends of the log young, for the lag. A log that does not answer is the follower's business."""
        while True:
            await asyncio.sleep(ENDS_EVERY_S)
            try:
                await self._ask_ends()
            except LogUnavailable as error:
                _log.warning("the log does not tell its end: %s", error)

    async def _remove_histories(self, age_ms: int) -> None:
        """Now and then: let go of what was kept of jobs that were forgotten long ago."""
        while True:
            before_ms = time.time_ns() // 1_000_000 - age_ms
            for number, part in list(self._parts.items()):
                # Stores come and go while others have their turn.
                while self._parts.get(number) is part:
                    removed = remove_histories(part.store.store, before_ms)
                    removed += remove_operated(part.store.store, before_ms, JOBS_A_TURN)
                    await self._let_readers_run()
                    if removed < JOBS_A_TURN:
                        break
            await asyncio.sleep(SWEEP_EVERY_S)

    async def _ask_ends(self) -> None:
        numbers = list(self._parts)
        bounds = await asyncio.gather(*(self._log.bounds(self.topics.jobs, number) for number in numbers))
        for number, found in zip(numbers, bounds, strict=True):
            if number in self._parts:
                self._parts[number].end_offset = found.end
        self._ends_asked_at = time.monotonic()

    async def _let_readers_run(self) -> None:
        for _ in range(READER_STEPS):
            await asyncio.sleep(0)

    # How far

    @property
    def unindexed(self) -> dict[int, int]:
        """Jobs that wait for the text index, by partition that it has whole."""
        return {
            number: part.projector.unindexed.jobs
            for number, part in self._parts.items()
            if part.queries.text_indexed
        }

    @property
    def offsets(self) -> dict[int, int]:
        """Next offset to fold by partition."""
        return {number: part.store.committed_offset for number, part in self._parts.items()}

    @property
    def served(self) -> dict[int, int]:
        """Next offset to fold by partition, of those that are folded up to where the log ended as the service began.

        Others would answer with a part of what was long there.
        """
        return {
            number: part.store.committed_offset
            for number, part in self._parts.items()
            if part.store.committed_offset >= part.first_end
        }

    @property
    def lags(self) -> dict[int, int]:
        """Records not yet folded, by partition, as of the log's end when last asked."""
        return {
            number: max(0, part.end_offset - part.store.committed_offset)
            for number, part in self._parts.items()
        }

    async def wait(self, positions: Mapping[int, Position], timeout_ms: int) -> None:
        """See the port. What is folded and waits for its commit is committed now."""
        self.numbers.waits += 1
        futures: list[asyncio.Future[None]] = []
        for number, position in positions.items():
            part = self._part(number)
            if part.store.committed_offset <= position.offset < part.store.next_offset:
                self._commit(part)
            if part.store.committed_offset <= position.offset:
                futures.append(part.waiters.wait(position.offset))
        if not futures:
            return
        self._check_alive()
        self._asked.set()
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

    def _commit(self, part: Part) -> None:
        began = time.perf_counter()
        part.store.commit()
        part.committed_s = time.perf_counter()
        took_s = part.committed_s - began
        self.numbers.commit_s += took_s
        self._pace.took(took_s * 1_000)

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

    def _part(self, number: int) -> Part:
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

    async def job_as_of(self, tenant: str, job_id: str, moment: int | None, packed: int) -> JobView | None:
        return self._reads.job_as_of(tenant, job_id, moment, packed)

    async def history(
        self, tenant: str, job_id: str, limit: int = 1_000, cursor: str = ""
    ) -> HistoryPage | None:
        return self._reads.history(tenant, job_id, limit, cursor)

    async def verdicts(
        self,
        wanted: Sequence[tuple[Position, str, str, str]],
        timeout_ms: int,
        unique_keys: Sequence[str] = (),
    ) -> list[VerdictView]:
        highest: dict[int, Position] = {}
        for position, *_ in wanted:
            highest[position.partition] = max(position, highest.get(position.partition, position))
        await self.wait(highest, timeout_ms)
        found: list[VerdictView] = []
        for start in range(0, len(wanted), VERDICTS_A_SLICE):
            slice_ = slice(start, start + VERDICTS_A_SLICE)
            found += self._reads.verdicts(wanted[slice_], unique_keys[slice_])
            if len(found) < len(wanted):
                await asyncio.sleep(0)
        return found

    async def outcomes(self, lines: Sequence[tuple[Position, str, str]], wanted: JobFilter) -> list[str]:
        return self._reads.outcomes(lines, wanted)

    async def list_jobs(self, query: JobsQuery, partitions: Collection[int] | None = None) -> JobsPage:
        return self._reads.list_jobs(query, partitions)

    async def search(self, query: SearchQuery, partitions: Collection[int] | None = None) -> SearchPage:
        self._check_kept(query.at)
        return await self._reads.search(query, partitions)

    async def operated(
        self, operation: str, limit: int = 100, cursor: str = "", partitions: Collection[int] | None = None
    ) -> OperatedPage:
        return self._reads.operated(operation, limit, cursor, partitions)

    async def counts(
        self, tenant: str = "default", at: Moment | None = None, partitions: Collection[int] | None = None, *,
        among: JobFilter = ALL,
    ) -> list[CountRow]:  # fmt: skip
        if at is None:
            return self._reads.counts(tenant, partitions, among=among)
        self._check_kept(at)
        return await self._reads.counts_at(tenant, at, partitions, among=among)

    def _check_kept(self, at: Moment | None) -> None:
        """Jobs that were forgotten since the moment must still have their histories. Raises InvalidField."""
        if at is not None and self.history_age_ms is not None:
            kept_ms = time.time_ns() // 1_000_000 - self.history_age_ms
            if at.time_ms < kept_ms:
                raise InvalidField(
                    f"at: what was forgotten is remembered since {time_text(kept_ms)} only", field="at"
                )

    async def quarantined(
        self, limit: int = 100, cursor: str = "", partitions: Collection[int] | None = None
    ) -> QuarantinePage:
        return self._reads.quarantined(limit, cursor, partitions)

    async def status(self, partitions: Collection[int] | None = None) -> list[PartitionStatus]:
        if time.monotonic() - self._ends_asked_at > ENDS_FRESH_S:
            with contextlib.suppress(PenstockError):
                await self._ask_ends()
        asked = [self._part(number) for number in (self._parts if partitions is None else partitions)]
        return [
            part.queries.status(
                part.end_offset, part.projector.applied_at_ms, unindexed_jobs=part.projector.unindexed.jobs
            )
            for part in asked
        ]


class SharedReadModel(ReadModelService):
    """The read model over an orchestrator's own stores: it folds and commits them, and closes them.

    Enter it before the orchestrator, which attaches its stores, and leave it after.
    """

    families: Sequence[str] = FAMILIES
    layout = LAYOUT

    async def __aenter__(self) -> Self:
        self.failure = asyncio.get_running_loop().create_future()
        self._watch()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop_tasks()
        self.detach()
        if not self.failure.done():
            self.failure.cancel()
        elif not self.failure.cancelled():
            self.failure.exception()
