"""Copies the jobs log into its archive, segment by segment, behind everybody else.

::

    the archive's end ──▶ is anything due? ──▶ read on the log ──▶ blocks ──▶ records, index ──▶ manifest
           ▲                                   (one record back: it must be the one archived last)  │
           └────────────────────────────────────────────────────────────────────────────────────────┘

A stretch is due when its first record has reached an age, or when it is about a segment long. It owes nothing in
memory: where to go on stands in the archive, and a crash at any moment leaves whole segments and objects that nobody
reads. Several processes may do this at the same time; then some of it is done twice, and read once.

The archive is joined, never patched: the log must still hold the record that was archived last (or begin right behind
it), and a log that begins later than the archive ends is refused, for what lies in between is lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from hashlib import sha256
from types import TracebackType
from typing import Self

from msgspec import Struct

from penstock.log import archive_format as fmt
from penstock.log.archive_log import ArchivedLog
from penstock.log.chain import FIRST_LINK
from penstock.log.namespace import Namespace
from penstock.log.port import Bounds, Record
from penstock.log.supervision import supervise, tell
from penstock.schemas.errors import (
    BlobsUnavailable,
    HistoryChanged,
    LogUnavailable,
    OffsetBeyondEnd,
    OffsetTrimmed,
    PenstockError,
)

_log = logging.getLogger("penstock.archive")

ROUND_EVERY_S = 10.0
SEGMENT_BYTES = 64 * 1024 * 1024
AFTER_MS = 6 * 3_600_000
POLL_MS = 500
POLL_RECORDS = 256
EMPTY_POLLS = 4
"""After so many, what is left of the log's offsets were never records."""
SLICE_S = 0.005
_GUESSED_RECORD_BYTES = 4_096


class ArchiverNumbers(Struct, kw_only=True):
    """What an archiver has done since it started, for metrics."""

    segments: int = 0
    records: int = 0
    value_bytes: int = 0
    stored_bytes: int = 0
    failures: int = 0
    """Rounds in which a partition could not be archived."""


class Archiver:
    """Keeps the archive of a namespace's jobs topic up with the log. Use as an async context manager.

    Args:
        log: the log with its archive.
        after_ms: a record is archived once it is this old, by the log's time, at the latest.
        segment_bytes: of values, after which a segment ends.
        pause_s: how long others have the loop after each few milliseconds of work.
    """

    failure: asyncio.Future[None]
    """Gets what ends the service: a bug. A store or log that does not answer is asked again, and told in the log."""

    def __init__(
        self,
        log: ArchivedLog,
        namespace: Namespace,
        *,
        after_ms: int = AFTER_MS,
        segment_bytes: int = SEGMENT_BYTES,
        pause_s: float = SLICE_S,
    ) -> None:
        self.numbers = ArchiverNumbers()
        self._live = log.live
        self._archive = log.archive
        self._topics = namespace.topics
        self._generation = namespace.generation
        self._after_ms = after_ms
        self._segment_bytes = segment_bytes
        self._pause_s = pause_s
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin. A store that does not answer yet is no reason not to.

        Raises:
            HistoryChanged, OffsetBeyondEnd: the archive is of another log.
            OffsetTrimmed: the log begins after the archive ends.
            ArchiveDamaged: the archive cannot be read.
        """
        self.failure = asyncio.get_running_loop().create_future()
        try:
            for partition in range(self._topics.partitions):
                await self._last(partition)
        except (BlobsUnavailable, LogUnavailable) as error:
            _log.warning("the archive is not checked yet: %s", error)
        self._task = supervise(self._run(), "archiver", lambda error: tell(self.failure, error))
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

    async def round(self, *, everything: bool = False) -> int:
        """Archive what is due in every partition, or all there is; how many segments were written."""
        written = 0
        count = self._topics.partitions
        # Processes that do the same begin in different places.
        for partition in ((os.getpid() + number) % count for number in range(count)):
            try:
                written += await self.archive(partition, everything=everything)
            except PenstockError as error:
                self.numbers.failures += 1
                if everything:
                    raise
                told = _log.warning if isinstance(error, BlobsUnavailable | LogUnavailable) else _log.error
                told("partition %d is not archived: %s", partition, error)
        return written

    async def archive(self, partition: int, *, everything: bool = False) -> int:
        """Write a partition's due segments; how many.

        Raises:
            HistoryChanged, OffsetTrimmed: the archive cannot go on from where it ends.
            ArchiveDamaged, BlobsUnavailable, LogUnavailable.
        """
        written = 0
        while True:
            # Lists are dear: only where something is due by what is known is it asked what others have done since.
            last, bounds = await self._last(partition, anew=everything)
            if not await self._is_due(partition, last, bounds, everything):
                return written
            last, bounds = await self._last(partition)
            if not await self._is_due(partition, last, bounds, everything):
                return written
            if not await self._segment(partition, last, bounds):
                return written
            written += 1

    async def _last(self, partition: int, *, anew: bool = True) -> tuple[fmt.Manifest | None, Bounds]:
        """The archive's last segment, and the log's bounds; checked that they join."""
        bounds = await self._live.bounds(self._topics.jobs, partition)
        segments = await self._archive.segments(partition, anew=anew)
        last = await self._archive.manifest(segments[-1]) if segments else None
        where = f"{self._topics.jobs}-{partition}"
        if last is not None and (last.partitions, last.generation) != (
            self._topics.partitions,
            self._generation,
        ):
            raise HistoryChanged(
                f"The archive of {where} is of a log with {last.partitions} partitions in generation"
                f" {last.generation}; this one has {self._topics.partitions} in generation {self._generation}."
            )
        reached = 0 if last is None else last.next_offset
        if bounds.end < reached:
            raise OffsetBeyondEnd(
                f"{where} ends at offset {bounds.end}; up to {reached} it was archived: the topic was cut or made anew."
            )
        if bounds.start > reached and not anew:
            # Another process has archived on, and trimmed.
            return await self._last(partition)
        if bounds.start > reached:
            raise OffsetTrimmed(
                f"{where} begins at offset {bounds.start}, its archive ends at {reached}: what lies between is lost."
            )
        return last, bounds

    async def _is_due(
        self, partition: int, last: fmt.Manifest | None, bounds: Bounds, everything: bool
    ) -> bool:
        reached = 0 if last is None else last.next_offset
        if reached >= bounds.end:
            return False
        each = _GUESSED_RECORD_BYTES if last is None else max(1, last.value_bytes // last.records)
        if everything or (bounds.end - reached) * each >= self._segment_bytes:
            return True
        oldest_ms = time.time_ns() // 1_000_000 - self._after_ms
        return await self._live.offset_at(self._topics.jobs, partition, oldest_ms) > reached

    # Writing a segment

    async def _segment(self, partition: int, last: fmt.Manifest | None, bounds: Bounds) -> bool:
        """Write the next segment; whether there was anything."""
        if last is None:
            first, builder = 0, fmt.SegmentBuilder(FIRST_LINK, 0)
        else:
            first = last.next_offset
            builder = fmt.SegmentBuilder(bytes.fromhex(last.digest_after), last.log_time_ms)
        await self._fill(builder, partition, last, bounds)
        if builder.last is None:
            return False
        if builder.unfinished:
            builder.close_block(await asyncio.to_thread(fmt.encode_block, builder.unfinished))
        await self._store(builder, partition, first)
        return True

    async def _fill(
        self, builder: fmt.SegmentBuilder, partition: int, last: fmt.Manifest | None, bounds: Bounds
    ) -> None:
        """Take records up to the log's end as it was, or until the segment is full."""
        topic = self._topics.jobs
        # The record that was archived last comes again, to be compared, where the log still has it.
        join = last if last is not None and last.last_offset >= bounds.start else None
        offset = bounds.start if join is None else join.last_offset
        empty = 0
        async with self._live.tail({(topic, partition): offset}) as tail:
            while offset < bounds.end and builder.value_bytes < self._segment_bytes:
                records = await tail.poll(POLL_MS, POLL_RECORDS)
                empty = 0 if records else empty + 1
                if empty == EMPTY_POLLS:
                    return
                began = time.perf_counter()
                for record in records:
                    offset = record.offset + 1
                    if join is not None:
                        _check_same(record, join)
                        join = None
                        continue
                    if record.offset >= bounds.end or builder.value_bytes >= self._segment_bytes:
                        return
                    builder.add(record)
                    if builder.block_full:
                        builder.close_block(await asyncio.to_thread(fmt.encode_block, builder.unfinished))
                    if time.perf_counter() - began > SLICE_S:
                        await asyncio.sleep(self._pause_s)
                        began = time.perf_counter()

    async def _store(self, builder: fmt.SegmentBuilder, partition: int, first: int) -> None:
        """The records, then the index, and the manifest last: from then on the segment counts."""
        last = builder.last
        assert last is not None
        archive, topic = self._archive, self._topics.jobs
        where, name = fmt.folder(topic, partition), fmt.stem(first, last.offset + 1)
        data, index, data_ref, index_ref = await asyncio.to_thread(_objects, builder, where, name)
        manifest = fmt.Manifest(
            cluster_id=self._live.cluster_id,
            topic=topic,
            partition=partition,
            partitions=self._topics.partitions,
            generation=self._generation,
            first_offset=first,
            next_offset=last.offset + 1,
            last_offset=last.offset,
            first_time_ms=builder.first_time_ms,
            last_time_ms=last.time_ms,
            highest_time_ms=builder.highest_time_ms,
            log_time_ms=builder.log_time_ms,
            records=builder.records,
            lines=builder.lines,
            value_bytes=builder.value_bytes,
            digest_before=builder.digest_before.hex(),
            digest_after=builder.digest.hex(),
            last_hash=sha256(last.value).hexdigest(),
            data=data_ref,
            index=index_ref,
            blocks=builder.blocks,
        )
        await archive.blobs.put(manifest.data.key, data)
        await archive.blobs.put(manifest.index.key, index)
        key = fmt.manifest_key(topic, partition, manifest.first_offset, manifest.next_offset)
        await archive.blobs.put(key, fmt.encode_manifest(manifest))
        await archive.segments(partition, anew=True)
        numbers = self.numbers
        numbers.segments += 1
        numbers.records += manifest.records
        numbers.value_bytes += manifest.value_bytes
        numbers.stored_bytes += len(data) + len(index)


def _objects(
    builder: fmt.SegmentBuilder, where: str, name: str
) -> tuple[bytes, bytes, fmt.ObjectRef, fmt.ObjectRef]:
    """Records and index as they are stored, and what a manifest says of them."""
    data, index = b"".join(builder.data), fmt.compressed(builder.index())
    return data, index, fmt.records_reference(where, name, data), fmt.index_reference(where, name, index)


def _check_same(record: Record, last: fmt.Manifest) -> None:
    if record.offset == last.last_offset and sha256(record.value).hexdigest() == last.last_hash:
        return
    raise HistoryChanged(
        f"The record at offset {record.offset} of {last.topic}-{last.partition} is not the one that was archived:"
        " the topic was made anew.",
        topic=last.topic,
        partition=last.partition,
        offset=record.offset,
    )
