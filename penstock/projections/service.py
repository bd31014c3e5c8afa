"""The read model of a set of partitions: follows the jobs log, folds it, and answers.

::

    jobs topic ─▶ tail ─▶ Projector of each partition ─▶ commit: fold, views and next offset in one batch
                              (in memory, by slices)        │
                                                            ├─▶ those who wait for a position
    who asks ◀──── LocalReads, merged over partitions ◀─────┘

One task follows the log. It folds in slices of a few milliseconds and lets readers run in between; they see what is
committed, so each answer stands at one offset of each partition. A commit comes as soon as somebody waits for what is
folded or nothing more arrives, else now and then (:mod:`penstock.state.pacing`), and wakes those who wait for a
position. Whatever goes wrong with the log or a store ends the service: its ``failure`` gets the exception, waiting
readers get ``ReadModelUnavailable``, and whoever runs the process ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.core.rules import RULES, RulesTable
from penstock.log.port import Log, Record, Tail
from penstock.log.supervision import supervise
from penstock.projections.read_model import ReadModelService
from penstock.projections.rows import FAMILIES, LAYOUT
from penstock.schemas.topics import Topics
from penstock.state.keeping import StateKeeper
from penstock.state.pacing import MOST_ROWS, QUIET_MS
from penstock.state.partition_store import PartitionStore, StoreFactory, StoreIdentity, rocks_store
from penstock.state.snapshots import Snapshots
from penstock.state.snapshots_restoring import StateKind, open_partitions

POLL_MS = 1_000
POLL_RECORDS = 256
SLICE_S = 0.005
BUSY_LINES = 16
LINGER_S = 0.025
"""How long the log is left alone after a fetch of at least so many lines."""
COMMIT_BYTES = 8 * 1024 * 1024
SNAPSHOT_KIND = "projection"


def projection_path(folder: Path | str, partition: int) -> Path:
    """Where below a projection's ``folder`` the states of a partition are."""
    return Path(folder) / f"partition-{partition}"


def projection_store(
    folder: Path | str, identity: StoreIdentity, store_factory: StoreFactory = rocks_store
) -> PartitionStore:
    """Open the read model's store of one partition below ``folder``. Raises like ``PartitionStore.open``."""
    path = projection_path(folder, identity.partition)
    return PartitionStore.open(
        path, identity=identity, extra=FAMILIES, layout=LAYOUT, store_factory=store_factory
    )


class ProjectionService(ReadModelService):
    """See the module. A :class:`~penstock.projections.port.ReadModel` of its own partitions.

    Args:
        folder: one store for each partition is kept below it.
        partitions: which to serve; all of the topic's where None.
        generation: of the log; a store of another is refused.
        history_age_ms: how long the history of a forgotten job stays; for ever where None.
        snapshots: taken while it runs, and restored from where a folder is missing or too old.
        rules: those that this program has.
        text_index: whether texts of jobs are indexed.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        folder: Path | str,
        *,
        partitions: Iterable[int] | None = None,
        generation: int = 0,
        history_age_ms: int | None = None,
        snapshots: Snapshots | None = None,
        store_factory: StoreFactory = rocks_store,
        rules: RulesTable = RULES,
        text_index: bool = False,
    ) -> None:
        super().__init__(
            log,
            topics,
            partitions=partitions,
            history_age_ms=history_age_ms,
            text_index=Path(folder) if text_index else None,
        )
        self._folder = Path(folder)
        self._generation = generation
        self._snapshots = snapshots
        self._kind = StateKind(SNAPSHOT_KIND, FAMILIES, LAYOUT, store_factory, rules)
        self._keeper: StateKeeper | None = None
        self._tails = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the stores and check each against the log.

        Raises:
            HistoryChanged, OffsetBeyondEnd, OffsetTrimmed: a store is the fold of another history.
            StoreLocked: another process has a store.
            BlobsUnavailable: a snapshot is needed and cannot be had.
        """
        self.failure = asyncio.get_running_loop().create_future()
        try:
            places = [
                (projection_path(self._folder, partition), self._identity(partition))
                for partition in self._partitions
            ]
            for store in await open_partitions(self._log, places, self._kind, self._snapshots):
                self.attach(store)
            await self._ask_ends()
            for part in self._parts.values():
                part.first_end = part.end_offset
            # Entered here and not by the task: what cannot start is told to whoever starts it, and is not cut short.
            starts = {
                (self.topics.jobs, number): part.store.next_offset for number, part in self._parts.items()
            }
            tail = await self._tails.enter_async_context(self._log.tail(starts))
        except BaseException:
            self._close_stores()
            raise
        self._keeper = StateKeeper(
            SNAPSHOT_KIND,
            [part.store for part in self._parts.values()],
            caught_up=lambda store: not self.lags.get(store.partition),
            snapshots=self._snapshots,
        )
        self._tasks = [
            supervise(self._follow(tail), "projection", self._fail),
            supervise(self._keeper.run(), "projection-keeper", self._fail),
        ]
        self._watch()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop_tasks()
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

    def _identity(self, partition: int) -> StoreIdentity:
        return StoreIdentity(
            self._log.cluster_id, self.topics.jobs, partition, self.topics.partitions, self._generation
        )

    def snapshot_numbers(self) -> Mapping[str, float]:
        """About the snapshots of this process, for metrics."""
        return {} if self._keeper is None else self._keeper.numbers()

    def _close_stores(self) -> None:
        stores = [part.store for part in self._parts.values()]
        self.detach()
        with contextlib.ExitStack() as stack:
            for store in stores:
                stack.callback(store.close)

    # Following the log

    async def _follow(self, tail: Tail) -> None:
        while True:
            lines = self.numbers.lines
            dirty = any(part.projector.dirty for part in self._parts.values())
            records = await tail.poll(QUIET_MS if dirty else POLL_MS, POLL_RECORDS)
            await self._fold(records)
            await self._commit_due(quiet=not records)
            if self.numbers.lines - lines >= BUSY_LINES:
                await self._linger()

    async def _linger(self) -> None:
        """Let more come together, unless somebody waits: a job that is done by then is written only once."""
        self._asked.clear()
        if any(len(part.waiters) for part in self._parts.values()):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._asked.wait()

    async def _fold(self, records: Sequence[Record]) -> None:
        """Fold a fetch, slice by slice."""
        slice_began = time.perf_counter()
        for record in records:
            part = self._parts[record.partition]
            began = time.perf_counter()
            part.projector.fold(record)
            now = time.perf_counter()
            self.numbers.fold_s += now - began
            if part.store.touched >= MOST_ROWS or part.store.pending_bytes >= COMMIT_BYTES:
                self._commit(part)
            if now - slice_began > SLICE_S:
                await self._let_readers_run()
                slice_began = time.perf_counter()

    async def _commit_due(self, *, quiet: bool) -> None:
        """Commit what somebody waits for, and what was left long enough."""
        for part in self._parts.values():
            late = (time.perf_counter() - part.committed_s) * 1_000 >= self._pace.wait_ms
            if part.projector.dirty and (quiet or late or part.projector.awaited):
                self._commit(part)
                await self._let_readers_run()

    def _commit_all(self) -> None:
        for part in self._parts.values():
            if part.projector.dirty:
                self._commit(part)
