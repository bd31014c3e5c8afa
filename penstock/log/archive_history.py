"""The history of one job out of an archive: what its lines were, and what became of each.

What became of a line is nowhere written: it is folded. For one job that takes its own lines, those of the jobs that
share its home (a unique key is held by one of them), and those about the partition itself (who led, which rules held),
which every index has. They are folded as if all other lines were blank, so that each stands at its own position.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from msgspec import Struct

from penstock.core.partition import Folded, PartitionFold
from penstock.log.archive import Archive, Segment
from penstock.log.archive_format import (
    COPIES,
    Index,
    Landmark,
    Manifest,
    about,
    decode_block,
    family_of,
    is_landmark,
    named_like_its_home,
)
from penstock.log.archive_log import ArchivedLog
from penstock.log.port import Record
from penstock.schemas.codec import split
from penstock.schemas.copies import copy_header

_POLL_MS = 1_000
_BLANK = b" "
_FETCHES = 16


class ArchivedHistory(Struct, frozen=True, kw_only=True):
    """Every line about a job, in log order, each with its outcome.

    ``gone``: at its end the job was forgotten, so nothing is to follow but a new job of that id. ``next_offset``: up to
    where the log was looked at.
    """

    lines: list[Folded]
    gone: bool
    next_offset: int


class _Record:
    """Some lines of a record that had ``count``."""

    __slots__ = ("copied", "count", "lines", "time_ms")

    def __init__(self, time_ms: int, count: int, lines: dict[int, bytes], copied: bytes | None) -> None:
        self.time_ms = time_ms
        self.count = count
        self.lines = lines
        self.copied = copied


class _Sparse:
    """Some lines of some records, each at its place."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._family = family_of(key)
        self._records: dict[int, _Record] = {}
        self._found = False

    def take(self, record: Record, time_ms: int) -> None:
        """Keep what matters of a record. ``time_ms``: the log's time of it."""
        copied = copy_header(record.headers) if record.headers else None
        lines = split(record.value)
        kept: dict[int, bytes] = {}
        for number, line in enumerate(lines):
            kind, key = about(line)
            if key and family_of(key) == self._family:
                self._found = self._found or key == self._key
                kept[number] = line
            elif is_landmark(kind, key):
                kept[number] = line
        if kept or copied is not None:
            self._records[record.offset] = _Record(time_ms, len(lines), kept, copied)

    def take_landmark(self, landmark: Landmark) -> None:
        """Keep a line about the partition; a record that was taken whole has it already."""
        known = self._records.setdefault(landmark.offset, _Record(landmark.time_ms, 0, {}, None))
        known.lines[landmark.line] = landmark.data
        known.count = max(known.count, landmark.line + 1)

    def history(self, partition: int, partitions: int, next_offset: int) -> ArchivedHistory | None:
        """What became of the job's lines; None where none of them counts as one."""
        if not self._found:
            return None
        fold = PartitionFold(partition, partitions, lambda _: None)
        lines: list[Folded] = []
        for offset, record in sorted(self._records.items()):
            value = b"\n".join(record.lines.get(number, _BLANK) for number in range(record.count))
            folded = fold.fold(offset, record.time_ms, True, value, record.copied)
            for line in folded:
                lines.extend(one for one in (line, line.also) if one is not None and one.key == self._key)
        if not lines:
            return None
        return ArchivedHistory(lines=lines, gone=fold.job(self._key) is None, next_offset=next_offset)


async def archived_history(
    archive: Archive, partition: int, partitions: int, key: str
) -> ArchivedHistory | None:
    """What the archive has about the job ``key``; None where it has no line of it.

    Args:
        partition: the one that the job lives in, of ``partitions``.

    Raises:
        ArchiveDamaged, HistoryChanged, BlobsUnavailable: see :class:`~penstock.log.archive.Archive`.
    """
    sparse = _Sparse(key)
    async with archive.lookups:
        next_offset, _ = await _from_archive(archive, partition, key, sparse)
    return sparse.history(partition, partitions, next_offset)


async def whole_history(
    log: ArchivedLog, partition: int, partitions: int, key: str
) -> ArchivedHistory | None:
    """As :func:`archived_history`, and what stands on the log behind the archive: that is read line by line.

    Raises:
        LogUnavailable: as well.
    """
    sparse = _Sparse(key)
    offset, time_ms = await _from_archive(log.archive, partition, key, sparse)
    topic = log.archive.topic
    end = (await log.live.bounds(topic, partition)).end
    async with log.tail({(topic, partition): offset}) as tail:
        while offset < end:
            records = await tail.poll(_POLL_MS)
            if not records:
                break
            for record in records:
                time_ms = record.time_ms if record.append_time else time_ms
                sparse.take(record, time_ms)
                offset = record.offset + 1
    return sparse.history(partition, partitions, offset)


async def _from_archive(archive: Archive, partition: int, key: str, sparse: _Sparse) -> tuple[int, int]:
    """Gather what the archive has; where it ends, and the last time that the log had stamped there."""
    next_offset = time_ms = 0
    names = {key, named_like_its_home(key), family_of(key), COPIES}
    async for manifest, index in _indexes(archive, partition):
        for landmark in index.landmarks:
            sparse.take_landmark(landmark)
        blocks = sorted({block for name in names for block in index.blocks_of(name)})
        data = await archive.object(manifest.data) if blocks else b""
        for number in blocks:
            block = manifest.blocks[number]
            log_time_ms = block.log_time_ms
            for record in decode_block(
                archive.topic, partition, data[block.at : block.at + block.size_bytes]
            ):
                log_time_ms = record.time_ms if record.append_time else log_time_ms
                sparse.take(record, log_time_ms)
            await asyncio.sleep(0)
        next_offset, time_ms = manifest.next_offset, manifest.log_time_ms
    return next_offset, time_ms


async def _indexes(archive: Archive, partition: int) -> AsyncIterator[tuple[Manifest, Index]]:
    """Every segment's manifest and index, in order; some are fetched at a time."""

    async def fetch(segment: Segment) -> tuple[Manifest, Index]:
        manifest = await archive.manifest(segment)
        return manifest, await archive.index(manifest)

    segments = await archive.segments(partition, anew=True)
    for first in range(0, len(segments), _FETCHES):
        for found in await asyncio.gather(*map(fetch, segments[first : first + _FETCHES])):
            yield found
