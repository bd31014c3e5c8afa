"""Copying a log: to another number of partitions, another namespace, another kind of log.

::

    source, partition by partition ──▶ fold ──▶ lines that got as far as their job ──▶ partition of the target
                                        │                                                     │
                                        └──────────── job rows compared ◀──── fold ◀──────────┘ ──▶ CopySealed

The copier folds the source, for only the fold knows which lines counted: what a partition stopped before its job (lines
of deposed leaders, misrouted ones, second copies, what cannot be decoded) stays behind, and so does what is about the
partition itself. All the rest is written in the source's order, each line with the place and time that it had, by
which the target's fold decides (:mod:`penstock.core.copying`). So every job comes out byte for byte as it was.

It may die anywhere. What stands in the target says how far it was: a copier that starts again folds both logs and goes
on behind the highest line that it finds. One record is on its way to a partition at a time, so that a record which
arrives late or twice lies below that mark and is dropped. Nothing is sealed that was not compared.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Self

from msgspec import Struct

from penstock.core.rules import RULES, RulesTable
from penstock.log.namespace import (
    LogShape,
    begin_namespace,
    control_records,
    is_sealed,
    read_shape,
    seal_namespace,
    topic_specs,
)
from penstock.log.port import Headers, Log, Record
from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line
from penstock.schemas.errors import (
    AppendRefused,
    AppendUnknown,
    Conflict,
    LogCopying,
    LogError,
    LogUnavailable,
    NotFound,
    TopicMismatch,
)
from penstock.schemas.ids import partition_of
from penstock.schemas.position import MAX_GENERATION, unpack
from penstock.schemas.topics import Topics
from penstock.state.copy_compare import Comparison, JobTotals, compare, totals
from penstock.state.copy_fold import RowFold, records_between
from penstock.state.copy_records import CopiedLine, SourceLines, copied_records
from penstock.state.partition_store import StoreFactory, rocks_store

ATTEMPTS = 10
AGAIN_S = 1.0
_SHOWN = 5


class End(Struct, frozen=True):
    """One side of a copy: an open log, and the topics of the namespace on it."""

    log: Log
    topics: Topics


class Copied(Struct):
    """What was done in this run, by partition of the target: lines and records written, lines that stood there."""

    lines: dict[int, int]
    records: dict[int, int]
    found: dict[int, int]


OnProgress = Callable[[int, int, int], None]
"""Called with a partition of the source, the next offset to be copied, and the one to reach."""


class LogCopier:
    """Copies one log. Use as an async context manager.

    Args:
        source: what is copied; nothing is written to it.
        target: where to; ``topics.partitions`` is how many partitions the copy has.
        folder: empty or missing, for both folds; whoever made it removes it.
        dry_run: only say what would be written; the target is not even looked at.

    Raises:
        NotFound: there is no log at the source.
        Conflict: the target is in use, or is another copy; the generation is at its end.
        LogCopying: the source is an unfinished copy itself.
    """

    def __init__(
        self,
        source: End,
        target: End,
        folder: Path,
        *,
        dry_run: bool = False,
        rules: RulesTable = RULES,
        store_factory: StoreFactory = rocks_store,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._source, self._target = source, target
        self._folder = folder
        self._dry_run = dry_run
        self._rules = rules
        self._store_factory = store_factory
        self._on_progress = on_progress
        self._shape = LogShape(target.topics.partitions)
        self._sources: list[RowFold] = []
        self._lines: list[SourceLines] = []
        self._targets: list[RowFold] = []
        self._marks: list[dict[int, int]] = []
        count = range(target.topics.partitions)
        self.copied = Copied(dict.fromkeys(count, 0), dict.fromkeys(count, 0), dict.fromkeys(count, 0))

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for fold in (*self._sources, *self._targets):
            fold.close()
        self._sources.clear()
        self._targets.clear()

    # Beginning

    async def _open(self) -> None:
        source, target = self._source, self._target
        shape = await source_shape(source)
        if shape.generation == MAX_GENERATION:
            raise Conflict(
                f"the source is generation {MAX_GENERATION} of its log already, and there is no next one"
            )
        topic = source.topics.jobs
        self._shape = LogShape(
            target.topics.partitions,
            shape.generation + 1,
            copy=f"{source.log.cluster_id}/{topic}",
            copied_from=f"{topic} of log {source.log.cluster_id}",
        )
        if not self._dry_run:
            await self._begin_target()
        for number in range(source.topics.partitions):
            self._sources.append(self._fold("source", number, source.topics.partitions))
            self._lines.append(SourceLines(number, source.topics.partitions))
        for number in range(target.topics.partitions):
            fold = self._fold("target", number, target.topics.partitions)
            self._targets.append(fold)
            if not self._dry_run:
                await fold.follow(target.log, target.topics.jobs)
            self._check_target(fold)
            self._marks.append(dict(fold.state.copied))
            self.copied.found[number] = fold.lines

    def _fold(self, side: str, number: int, partitions: int) -> RowFold:
        folder = self._folder / f"{side}-{number}"
        return RowFold(folder, number, partitions, rules=self._rules, store_factory=self._store_factory)

    async def _begin_target(self) -> None:
        target, wanted = self._target, self._shape
        await target.log.ensure_topics(topic_specs(target.topics))
        bounds = [
            await target.log.bounds(target.topics.jobs, number) for number in range(target.topics.partitions)
        ]
        fresh = (await target.log.bounds(target.topics.control, 0)).end == 0
        if fresh and any(one.end for one in bounds):
            raise Conflict(f"{target.topics.jobs!r} has records already, and they are of no copy")
        found = await begin_namespace(target.log, target.topics, wanted)
        if found.copy == wanted.copy and found.partitions != wanted.partitions:
            raise Conflict(f"this copy was begun with {found.partitions} partitions, not {wanted.partitions}")
        if found != wanted:
            raise Conflict(
                f"namespace {target.topics.namespace!r} is in use already"
                + (f", as a copy of {found.copied_from}" if found.copy else "")
                + ": a copy needs one of its own (--to-namespace)"
            )

    def _check_target(self, fold: RowFold) -> None:
        state = fold.state
        if fold.lines and not state.generation and state.copying != self._shape.copy:
            raise Conflict(f"partition {fold.partition} of the target begins with lines that are of no copy")

    # Copying

    async def copy(self) -> None:
        """Copy what the source has now and the target has not.

        Raises:
            Conflict: the target was sealed, and the source has more since.
            LogUnavailable, AppendRefused: a log does not answer; call again, or start again.
        """
        log, topic = self._source.log, self._source.topics.jobs
        for number, fold in enumerate(self._sources):
            end = (await log.bounds(topic, number)).end
            async with aclosing(records_between(log, topic, number, fold.next_offset, end)) as portions:
                async for records in portions:
                    await self._write(number, self._by_target(number, records))
                    if self._on_progress is not None:
                        self._on_progress(number, fold.next_offset, end)
            fold.reached(end)

    def _by_target(self, source: int, records: Sequence[Record]) -> dict[int, list[CopiedLine]]:
        """Fold the next records of a partition; their lines that are not copied yet, by partition of the target."""
        outgoing: dict[int, list[CopiedLine]] = defaultdict(list)
        for record in records:
            for line in self._lines[source].of(record, self._sources[source].fold(record)):
                target = partition_of(line.job, self._target.topics.partitions)
                if line.place.position > self._marks[target].get(source, -1):
                    outgoing[target].append(line)
        return outgoing

    async def _write(self, source: int, outgoing: dict[int, list[CopiedLine]]) -> None:
        work = [self._write_to(source, target, lines) for target, lines in outgoing.items()]
        for outcome in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _write_to(self, source: int, target: int, lines: list[CopiedLine]) -> None:
        if self._targets[target].state.generation:
            raise Conflict(
                f"the source has {len(lines)} lines or more that are not in the copy, which is sealed: they came later."
                " Copy again, into another namespace."
            )
        for value, headers in copied_records(self._shape.copy, source, lines):
            if not self._dry_run:
                await self._append(target, value, headers)
            self.copied.records[target] += 1
        self.copied.lines[target] += len(lines)
        self._marks[target][source] = lines[-1].place.position

    async def _append(self, target: int, value: bytes, headers: Headers = ()) -> None:
        """Write a record until it stands there: a second one of it is dropped by the fold."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._target.log.append(self._target.topics.jobs, target, value, headers=headers)
                return
            except LogError as error:
                passing = isinstance(error, AppendUnknown) or (
                    isinstance(error, AppendRefused) and bool(error.details.get("transient"))
                )
                if not passing:
                    raise
                if attempt == ATTEMPTS:
                    raise LogUnavailable(
                        f"the target did not take a record, {ATTEMPTS} times: {error.message} Start again to go on."
                    ) from error
            await asyncio.sleep(AGAIN_S)

    # Completing

    async def behind(self) -> int:
        """How many records the source has that are not copied yet."""
        topic = self._source.topics.jobs
        ends = [(await self._source.log.bounds(topic, fold.partition)).end for fold in self._sources]
        return sum(end - fold.next_offset for end, fold in zip(ends, self._sources, strict=True))

    async def compare(self) -> Comparison:
        """Fold what was written, from the target itself, and compare every job.

        Raises:
            Conflict: lines of others stand in the target, or lines wait to be forwarded at the source.
        """
        target = self._target
        for fold in self._targets:
            await fold.follow(target.log, target.topics.jobs)
        foreign = [str(unpack(fold.partition, place)) for fold in self._targets for place in fold.foreign]
        if foreign:
            raise Conflict(
                f"{len(foreign)} lines in the target are not of this copy ({', '.join(foreign[:_SHOWN])}): somebody"
                " writes to it. Stop that, and copy into another namespace.",
            )
        waiting = sum(fold.state.misrouted for fold in self._sources)
        if waiting:
            raise Conflict(
                f"{waiting} lines of the source stand in a wrong partition and were not forwarded yet: run its"
                " orchestrator until they are, stop it, and copy again to go on."
            )
        return compare(list(self._sources), list(self._targets))

    async def seal(self) -> None:
        """End the copy: from here on the target is a log of its own. To be called after :meth:`compare`."""
        target, shape = self._target, self._shape
        rules = max(fold.state.rules for fold in self._sources)
        event = ev.CopySealed(
            id=f"{shape.copy}.sealed",
            actor="penstock",
            copy=shape.copy,
            generation=shape.generation,
            rules=rules,
            copied_from=shape.copied_from,
        )
        for fold in self._targets:
            if not fold.state.generation:
                await self._append(fold.partition, encode_line(event))
                await fold.follow(target.log, target.topics.jobs)
            if fold.state.generation != shape.generation:
                raise TopicMismatch(f"partition {fold.partition} of the target could not be sealed")
        if not await is_sealed(target.log, target.topics, shape):
            await self._copy_control()
            await seal_namespace(target.log, target.topics, shape, rules)

    async def _copy_control(self) -> None:
        """Configuration, as it stands behind the first line of the source's control topic.

        Leaders copy it into their partitions anew: a partition begins with none. (A source that is a copy has its own
        seal there too, which closes and opens nothing here.)
        """
        source, target = self._source, self._target
        lines = [record async for record in control_records(source.log, source.topics)][1:]
        there = [record async for record in control_records(target.log, target.topics)][1:]
        for record in lines[len(there) :]:
            await target.log.append(target.topics.control, 0, record.value, key=record.key)

    @property
    def generation(self) -> int:
        """Of the copy."""
        return self._shape.generation

    def totals(self) -> JobTotals:
        """The jobs of the source, as far as it was copied."""
        return totals(self._sources)


async def source_shape(source: End) -> LogShape:
    """What is to be copied.

    Raises:
        NotFound: there is no such log.
        LogCopying: it is a copy, and not complete.
    """
    topics = source.topics
    try:
        if (await source.log.bounds(topics.control, 0)).end == 0:
            raise NotFound(f"there is no log in namespace {topics.namespace!r}")
        shape = await read_shape(source.log, topics)
    except TopicMismatch as error:
        raise NotFound(f"there is no log in namespace {topics.namespace!r}: {error.message}") from error
    if shape.copy and not await is_sealed(source.log, topics, shape):
        raise LogCopying(f"namespace {topics.namespace!r} is a copy that is not complete yet")
    return shape
