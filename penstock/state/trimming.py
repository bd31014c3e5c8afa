"""Trimming the jobs log: what may go from it, what stands in the way, and doing it.

A record may go once nobody will want it from the log again::

    it is archived, and the archive was read back whole       else history would be lost
    every kept snapshot has folded it                         else who restores one would read the archive for long
    it is old enough                                          as told

The record archived last and the one that a snapshot folded last stay, so that whoever comes back can see that the log
is still the same. Trimming is idempotent: where several do it, the first one has done it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from msgspec import Struct

from penstock.log.archive_log import ArchivedLog
from penstock.log.supervision import supervise, tell
from penstock.schemas.errors import ArchiveDamaged, PenstockError
from penstock.schemas.topics import Topics
from penstock.state.snapshots import KINDS, Snapshots

_log = logging.getLogger("penstock.trim")

ROUND_EVERY_S = 300.0


class Limit(Struct, frozen=True):
    """Up to where records may go, and why not further. ``name``: ``archive``, ``snapshot`` or ``age``."""

    name: str
    offset: int
    reason: str


class TrimPlan(Struct, frozen=True, kw_only=True):
    """What is to go from a partition: everything on the log below ``before``."""

    partition: int
    start: int
    end: int
    limits: list[Limit]

    @property
    def before(self) -> int:
        return max(self.start, min((limit.offset for limit in self.limits), default=self.start))

    @property
    def records(self) -> int:
        """How many offsets go."""
        return self.before - self.start

    @property
    def obstacles(self) -> list[Limit]:
        """What keeps more from going."""
        return [limit for limit in self.limits if limit.offset <= self.before]


class Trimming:
    """Plans and trims. ``snapshots`` None: none are kept, and whoever starts anew folds from the archive."""

    def __init__(self, log: ArchivedLog, topics: Topics, snapshots: Snapshots | None = None) -> None:
        self._log = log
        self._topics = topics
        self._snapshots = snapshots

    async def plan(self, partition: int, *, before_ms: int | None = None) -> TrimPlan:
        """What may go from a partition.

        Args:
            before_ms: only records older than this, by the log's time.

        Raises:
            BlobsUnavailable, LogUnavailable: somebody does not answer.
            ArchiveDamaged, HistoryChanged: the archive is not one of this log.
        """
        topic = self._topics.jobs
        bounds = await self._log.live.bounds(topic, partition)
        limits = [await self._archived(partition)]
        limits += await self._snapshotted(partition)
        if before_ms is not None:
            offset = await self._log.live.offset_at(topic, partition, before_ms)
            limits.append(Limit("age", offset, f"records from offset {offset} on are too young"))
        return TrimPlan(partition=partition, start=bounds.start, end=bounds.end, limits=limits)

    async def _archived(self, partition: int) -> Limit:
        segments = await self._log.archive.segments(partition, anew=True)
        if not segments:
            return Limit("archive", 0, "nothing is archived")
        last = await self._log.archive.manifest(segments[-1])
        return Limit(
            "archive", last.last_offset, f"the archive ends with the record at offset {last.last_offset}"
        )

    async def _snapshotted(self, partition: int) -> list[Limit]:
        """One limit for each kind of which there are snapshots at all."""
        snapshots = self._snapshots
        if snapshots is None:
            return []
        limits: list[Limit] = []
        for kind in KINDS:
            kept = await snapshots.kept(kind, partition)
            if kept:
                oldest = min(kept, key=lambda manifest: manifest.next_offset)
                offset = max(0, oldest.last_offset)
                name = f"the oldest kept snapshot of the {kind}, {oldest.name},"
                limits.append(
                    Limit("snapshot", offset, f"{name} has folded only up to the record at {offset}")
                )
            elif await snapshots.partitions(kind):
                limits.append(Limit("snapshot", 0, f"there is no snapshot of the {kind} of this partition"))
        return limits or [Limit("snapshot", 0, "there is no snapshot of this partition")]

    async def trim(self, plan: TrimPlan, on_verified: Callable[[int], None] | None = None) -> int:
        """Read back the archive of what is to go, then let it go from the log; how many offsets went.

        Args:
            on_verified: called with the next offset after each segment that was read back.

        Raises:
            ArchiveDamaged, HistoryChanged: the archive does not hold it; nothing goes.
            BlobsUnavailable, LogUnavailable.
        """
        if not plan.records:
            return 0
        archive, partition = self._log.archive, plan.partition
        verified = await archive.verify(
            partition,
            start=plan.start,
            stop=plan.before,
            on_segment=None if on_verified is None else lambda manifest: on_verified(manifest.next_offset),
        )
        if verified is None or verified.first_offset > plan.start or verified.next_offset < plan.before:
            raise ArchiveDamaged(f"Partition {partition} is not archived from offset {plan.start} on.")
        await self._log.live.truncate(self._topics.jobs, partition, plan.before)
        return plan.records


class TrimmerNumbers(Struct, kw_only=True):
    """What a trimmer has done since it started, for metrics."""

    trimmed_offsets: int = 0
    failures: int = 0


class Trimmer:
    """Trims every partition now and then. Use as an async context manager.

    Args:
        after_ms: how old a record must be, by the log's time.
    """

    failure: asyncio.Future[None]
    """Gets what ends the service: a bug. What cannot be trimmed now is told in the log and tried again."""

    def __init__(self, trimming: Trimming, topics: Topics, *, after_ms: int) -> None:
        self.numbers = TrimmerNumbers()
        self._trimming = trimming
        self._topics = topics
        self._after_ms = after_ms
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.failure = asyncio.get_running_loop().create_future()
        self._task = supervise(self._run(), "trimmer", lambda error: tell(self.failure, error))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if not self.failure.done():
            self.failure.cancel()
        elif not self.failure.cancelled():
            self.failure.exception()

    async def _run(self) -> None:
        while True:
            await self.round()
            await asyncio.sleep(ROUND_EVERY_S)

    async def round(self) -> int:
        """Trim what may go; how many offsets went."""
        trimmed = 0
        before_ms = time.time_ns() // 1_000_000 - self._after_ms
        for partition in range(self._topics.partitions):
            try:
                plan = await self._trimming.plan(partition, before_ms=before_ms)
                trimmed += await self._trimming.trim(plan)
            except PenstockError as error:
                self.numbers.failures += 1
                _log.warning("partition %d is not trimmed: %s", partition, error)
        self.numbers.trimmed_offsets += trimmed
        return trimmed
