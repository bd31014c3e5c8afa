"""Reading an archive of the jobs log: which offsets it has, their records, and whether it is what it says.

Segments may overlap, where two wrote at the same time; of those that hold an offset, the one that reaches farthest is
read. What is listed is remembered: an archive only grows, so a list is asked for again only where something is wanted
that it does not have.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

from msgspec import Struct

from penstock.log.archive_format import (
    Index,
    Manifest,
    ObjectRef,
    SegmentBuilder,
    blocks_from,
    decode_block,
    decode_manifest,
    decompressed,
    folder,
    offsets_of,
)
from penstock.log.blobs import Blobs
from penstock.log.chain import FIRST_LINK
from penstock.log.port import Bounds, Record
from penstock.schemas.errors import ArchiveDamaged, BlobMissing, HistoryChanged, OffsetTrimmed

OTHERS_STEPS = 5
"""Turns of the event loop that others have after each block: this may run in a process that answers."""
_LARGE_BYTES = 1024 * 1024
_KEPT_MANIFESTS = 4_096
_INDEX_BYTES = 64 * 1024 * 1024
SHORT_S = 5.0
LOOKUPS = 4


class Segment(NamedTuple):
    """A segment as listed: every record with ``first <= offset < next``."""

    first: int
    next: int
    key: str
    """Of its manifest."""


class Verified(Struct, frozen=True, kw_only=True):
    """What checking a partition's archive found. ``digest`` is the log digest below ``next_offset``, hex."""

    partition: int
    first_offset: int
    next_offset: int
    segments: int
    records: int
    lines: int
    digest: str


class Archive:
    """The archive of one topic in a store of objects. Safe for concurrent tasks of one loop.

    Args:
        cluster_id: of the log it must be an archive of; may be set later, and is not checked while empty.
    """

    def __init__(self, blobs: Blobs, topic: str, *, cluster_id: str = "") -> None:
        self.blobs = blobs
        self.topic = topic
        self.cluster_id = cluster_id
        self._covers: dict[int, list[Segment]] = {}
        self._manifests: OrderedDict[str, Manifest] = OrderedDict()
        self._indexes: OrderedDict[str, Index] = OrderedDict()
        self._index_bytes = 0
        self._short_until_s: dict[int, float] = {}
        self.lookups = asyncio.Semaphore(LOOKUPS)
        """Histories looked for at once: each may read much."""

    # What there is

    async def segments(self, partition: int, *, anew: bool = False) -> list[Segment]:
        """The segments to read, in order, each beginning no later than the one before ends. Raises BlobsUnavailable."""
        known = self._covers.get(partition)
        if known is None or anew:
            known = self._covers[partition] = await self._list(partition)
        return known

    async def _list(self, partition: int) -> list[Segment]:
        found: list[Segment] = []
        for info in await self.blobs.list(folder(self.topic, partition)):
            offsets = offsets_of(info.key)
            if offsets is not None:
                found.append(Segment(*offsets, info.key))
        return cover(found)

    async def bounds(self, partition: int, *, anew: bool = False) -> Bounds | None:
        """First offset and the one after the last; None where nothing is archived. Raises BlobsUnavailable."""
        segments = await self.segments(partition, anew=anew)
        return Bounds(segments[0].first, segments[-1].next) if segments else None

    async def reaches(self, partition: int, offset: int) -> bool:
        """Whether everything from the archive's first offset up to ``offset`` (exclusive) is archived.

        Where it was not, that is taken for true for some seconds: this is asked often, and a list is dear.
        """
        for anew in (False, True):
            if anew and time.monotonic() < self._short_until_s.get(partition, 0.0):
                return False
            bounds = await self.bounds(partition, anew=anew)
            if bounds is not None and bounds.end >= offset:
                return True
        self._short_until_s[partition] = time.monotonic() + SHORT_S
        return False

    async def segment_of(self, partition: int, offset: int) -> Segment | None:
        """The segment that holds ``offset``."""
        for anew in (False, True):
            for segment in await self.segments(partition, anew=anew):
                if segment.first <= offset < segment.next:
                    return segment
        return None

    async def manifest(self, segment: Segment) -> Manifest:
        """A segment's manifest.

        Raises:
            ArchiveDamaged: it is none.
            HistoryChanged: it is of another log.
            BlobsUnavailable: the store does not answer.
        """
        key = segment.key
        known = self._manifests.get(key)
        if known is None:
            known = decode_manifest(key, await self._get(key))
            self._manifests[key] = known
            while len(self._manifests) > _KEPT_MANIFESTS:
                self._manifests.popitem(last=False)
        if known.topic != self.topic or (self.cluster_id and known.cluster_id != self.cluster_id):
            raise HistoryChanged(
                f"{key} in {self.blobs.url} is of the log {known.cluster_id} ({known.topic});"
                f" this one is {self.cluster_id} ({self.topic}).",
                found=known.cluster_id,
                wanted=self.cluster_id,
            )
        return known

    async def _get(self, key: str) -> bytes:
        try:
            return await self.blobs.get(key)
        except BlobMissing as error:
            raise ArchiveDamaged(f"{key} is missing in {self.blobs.url}.", key=key) from error

    async def object(self, wanted: ObjectRef) -> bytes:
        """An object that a manifest names. Raises ArchiveDamaged when it is not there, or not what it was."""
        data = await self._get(wanted.key)
        whole = len(data) == wanted.size_bytes
        # Hashing leaves the loop to others when it is done in a thread; for little that is not worth it.
        found = await asyncio.to_thread(sha256, data) if whole and len(data) > _LARGE_BYTES else sha256(data)
        if not whole or found.hexdigest() != wanted.sha256:
            raise ArchiveDamaged(f"{wanted.key} in {self.blobs.url} is not what was written.", key=wanted.key)
        return data

    async def index(self, manifest: Manifest) -> Index:
        """Which of a segment's blocks speak of which job."""
        key = manifest.index.key
        known = self._indexes.get(key)
        if known is None:
            known = Index.decode(await self.object(manifest.index))
            if key not in self._indexes:
                self._indexes[key] = known
                self._index_bytes += known.size_bytes
            while self._index_bytes > _INDEX_BYTES and len(self._indexes) > 1:
                _, oldest = self._indexes.popitem(last=False)
                self._index_bytes -= oldest.size_bytes
        return known

    # Reading

    def read(self, partition: int, offset: int) -> ArchiveCursor:
        """Reads records from ``offset`` on."""
        return ArchiveCursor(self, partition, offset)

    async def offset_at(self, partition: int, time_ms: int, below: int) -> int | None:
        """The first offset below ``below`` of a record with ``time_ms`` or later, if one is archived."""
        for segment in await self.segments(partition):
            if segment.first >= below:
                break
            manifest = await self.manifest(segment)
            if manifest.highest_time_ms < time_ms:
                continue
            cursor = self.read(partition, segment.first)
            while cursor.offset < min(segment.next, below):
                for record in await cursor.next():
                    if record.offset >= below:
                        return None
                    if record.time_ms >= time_ms:
                        return record.offset
        return None

    # Proof

    async def verify(
        self,
        partition: int,
        *,
        start: int | None = None,
        stop: int | None = None,
        on_segment: Callable[[Manifest], None] | None = None,
    ) -> Verified | None:
        """Read segments back whole and compute everything in their manifests anew; None where there are none.

        Args:
            start, stop: only segments with offsets in between; all where None.

        Raises:
            ArchiveDamaged: an object is missing or another one, the chain is broken, or an index is wrong.
            HistoryChanged: a segment is of another log.
            BlobsUnavailable: the store does not answer.
        """
        chosen = [
            segment
            for segment in await self.segments(partition, anew=True)
            if (start is None or segment.next > start) and (stop is None or segment.first < stop)
        ]
        previous: Manifest | None = None
        records = lines = 0
        for segment in chosen:
            manifest = await self.manifest(segment)
            check_join(previous, manifest)
            await self._verify_segment(manifest)
            previous = manifest
            records += manifest.records
            lines += manifest.lines
            if on_segment is not None:
                on_segment(manifest)
        if previous is None:
            return None
        return Verified(
            partition=partition,
            first_offset=chosen[0].first,
            next_offset=previous.next_offset,
            segments=len(chosen),
            records=records,
            lines=lines,
            digest=previous.digest_after,
        )

    async def _verify_segment(self, manifest: Manifest) -> None:
        data = await self.object(manifest.data)
        time_ms = manifest.blocks[0].log_time_ms if manifest.blocks else 0
        builder = SegmentBuilder(bytes.fromhex(manifest.digest_before), time_ms)
        for block in manifest.blocks:
            encoded = data[block.at : block.at + block.size_bytes]
            for record in decode_block(self.topic, manifest.partition, encoded):
                builder.add(record)
            if builder.unfinished:
                builder.close_block(encoded)
            for _ in range(OTHERS_STEPS):
                await asyncio.sleep(0)
        last = builder.last
        whole = last is not None and (
            builder.blocks == manifest.blocks
            and builder.digest.hex() == manifest.digest_after
            and (builder.records, builder.lines, builder.value_bytes)
            == (manifest.records, manifest.lines, manifest.value_bytes)
            and last.offset == manifest.last_offset < manifest.next_offset
            and sha256(last.value).hexdigest() == manifest.last_hash
            and builder.index() == decompressed(await self.object(manifest.index))
        )
        if not whole:
            raise ArchiveDamaged(
                f"{manifest.data.key} does not hold what its manifest says.", key=manifest.data.key
            )


class ArchiveCursor:
    """Reads a partition's archive forward, a block at a time. ``offset`` is what comes next."""

    def __init__(self, archive: Archive, partition: int, offset: int) -> None:
        self.offset = offset
        self.partition = partition
        self._archive = archive
        self._manifest: Manifest | None = None
        self._data = b""
        self._records: Sequence[Record] = ()

    async def next(self, limit: int = 5_000) -> Sequence[Record]:
        """The next records in order, at most ``limit``; none where the archive ends.

        Raises:
            OffsetTrimmed: the archive begins later.
            ArchiveDamaged, HistoryChanged, BlobsUnavailable: see :class:`Archive`.
        """
        while not self._records:
            manifest = await self._segment()
            if manifest is None:
                return ()
            _, block = next(blocks_from(manifest, self.offset))
            data = self._data[block.at : block.at + block.size_bytes]
            found = decode_block(self._archive.topic, self.partition, data)
            self._records = [record for record in found if record.offset >= self.offset]
            if not self._records:
                self.offset = manifest.next_offset
        taken, self._records = self._records[:limit], self._records[limit:]
        self.offset = taken[-1].offset + 1
        if not self._records and self._manifest is not None and self.offset > self._manifest.last_offset:
            # Offsets behind the last record are the segment's too: there is nothing there.
            self.offset = self._manifest.next_offset
        return taken

    async def _segment(self) -> Manifest | None:
        """The segment in which the next record stands, with its data at hand."""
        current = self._manifest
        if current is not None and current.first_offset <= self.offset < current.next_offset:
            return current
        archive, partition = self._archive, self.partition
        segment = await archive.segment_of(partition, self.offset)
        if segment is None:
            bounds = await archive.bounds(partition)
            if bounds is not None and self.offset < bounds.start:
                raise OffsetTrimmed(
                    f"{archive.topic}-{partition} is archived from offset {bounds.start} on; {self.offset} was wanted."
                )
            return None
        manifest = await archive.manifest(segment)
        check_join(current, manifest)
        self._data = await archive.object(manifest.data)
        self._manifest = manifest
        return manifest


def cover(segments: Sequence[Segment]) -> list[Segment]:
    """Of all listed segments those to read: from the lowest offset on without a gap, as few as possible."""
    chosen: list[Segment] = []
    ordered = sorted(segments, key=lambda segment: (segment.first, segment.next))
    at = 0
    while at < len(ordered):
        reached = chosen[-1].next if chosen else ordered[0].first
        best: Segment | None = None
        while at < len(ordered) and ordered[at].first <= reached:
            if ordered[at].next > reached and (best is None or ordered[at].next > best.next):
                best = ordered[at]
            at += 1
        if best is None:
            break
        chosen.append(best)
    return chosen


def check_join(previous: Manifest | None, manifest: Manifest) -> None:
    """Raise ArchiveDamaged where a segment does not go on from the one before it."""
    if previous is None:
        if manifest.first_offset == 0 and manifest.digest_before != FIRST_LINK.hex():
            raise ArchiveDamaged(f"The archive of {manifest.topic}-{manifest.partition} has no beginning.")
        return
    if (
        manifest.first_offset == previous.next_offset and manifest.digest_before != previous.digest_after
    ) or (manifest.partitions, manifest.generation) != (previous.partitions, previous.generation):
        raise ArchiveDamaged(
            f"The segments of {manifest.topic}-{manifest.partition} do not join at offset {manifest.first_offset}."
        )
