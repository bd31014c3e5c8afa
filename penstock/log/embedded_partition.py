"""Partitions of the embedded log: durable ones on the store, hints in rings in memory."""

from __future__ import annotations

from collections import deque
from itertools import islice

from penstock.log import embedded_format as fmt
from penstock.log.memory_topics import check_offset
from penstock.log.port import Appended, Bounds, Headers, Record, TopicSpec
from penstock.log.store import Store
from penstock.schemas.errors import LogCorrupt

RECORDS, TIMES, META = "records", "times", "meta"
FAMILIES = (RECORDS, TIMES, META)

_POLL_BYTES = 16 * 1024 * 1024
"""One poll returns about this much at most."""


class DurablePartition:
    """A partition on the store. ``next_offset`` counts what is written, ``end`` what is synced and may be read."""

    def __init__(self, store: Store, topic: str, topic_number: int, partition: int) -> None:
        self._records = store.family(RECORDS)
        self._times = store.family(TIMES)
        self.topic = topic
        self.partition = partition
        self.topic_number = topic_number
        self.start_key = b"start:" + fmt.record_key(topic_number, partition, 0)
        start = store.get(META, self.start_key)
        self.start = fmt.unpack_i64(start) if start else 0
        first, behind = fmt.partition_range(topic_number, partition)
        last = next(self._records.scan(first, behind, reverse=True, limit=1), None)
        self.end = max(self.start, fmt.offset_of(last[0]) + 1 if last else 0)
        self.next_offset = self.end
        self.block_time_ms = self._open_block_time()

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.start, self.end)

    def key(self, offset: int) -> bytes:
        return fmt.record_key(self.topic_number, self.partition, offset)

    def read(self, offset: int, max_records: int) -> list[Record]:
        """Synced records from ``offset`` on.

        Raises:
            OffsetTrimmed, OffsetBeyondEnd, LogCorrupt.
        """
        check_offset(self.topic, self.partition, offset, self.bounds)
        if offset == self.end:
            return []
        records: list[Record] = []
        expected, left_bytes = offset, _POLL_BYTES
        pairs = self._records.scan(self.key(offset), self.key(self.end), limit=max_records)
        try:
            for key, stored in pairs:
                if fmt.offset_of(key) != expected:
                    break
                records.append(fmt.decode(self.topic, self.partition, key, stored))
                expected += 1
                left_bytes -= len(stored)
                if left_bytes <= 0:
                    break
        except LogCorrupt:
            raise
        except Exception as error:
            raise self._damaged(expected) from error
        # Offsets have no gaps here, and a damaged table file may end a scan without an error.
        if not records or (expected < self.end and len(records) < max_records and left_bytes > 0):
            raise self._damaged(expected)
        return records

    def offset_at(self, time_ms: int) -> int:
        """First synced record with ``time_ms`` or later; the end where there is none."""
        first, behind = fmt.partition_range(self.topic_number, self.partition)
        open_block = self.next_offset >> fmt.BLOCK_SHIFT
        for key, latest in self._times.scan(max(first, self.key(self.start >> fmt.BLOCK_SHIFT)), behind):
            if fmt.unpack_i64(latest) >= time_ms:
                found = self._first_in_block(fmt.offset_of(key), time_ms)
                if found is not None:
                    return found
        found = self._first_in_block(open_block, time_ms)
        return self.end if found is None else found

    def _first_in_block(self, block: int, time_ms: int) -> int | None:
        low = max(self.start, block << fmt.BLOCK_SHIFT)
        high = min(self.end, (block + 1) << fmt.BLOCK_SHIFT)
        for key, stored in self._records.scan(self.key(low), self.key(max(low, high))):
            if fmt.time_of(stored) >= time_ms:
                return fmt.offset_of(key)
        return None

    def _open_block_time(self) -> int:
        low = (self.next_offset >> fmt.BLOCK_SHIFT) << fmt.BLOCK_SHIFT
        pairs = self._records.scan(self.key(max(low, self.start)), self.key(self.next_offset))
        return max((fmt.time_of(stored) for _, stored in pairs), default=0)

    def _damaged(self, offset: int) -> LogCorrupt:
        return LogCorrupt(
            f"{self.topic}-{self.partition} has no readable record at offset {offset}, below its end {self.end}.",
            topic=self.topic, partition=self.partition, offset=offset,
        )  # fmt: skip


class RingPartition:
    """A partition in memory: hints. Forgets what is older than its retention, or beyond its size.

    ``first_offset`` must be beyond every offset of an earlier process: offsets only grow.
    """

    def __init__(self, spec: TopicSpec, partition: int, first_offset: int, *, max_bytes: int) -> None:
        self.topic = spec.name
        self.partition = partition
        self._retention_ms = spec.retention_ms
        self._max_bytes = max_bytes
        self._records: deque[Record] = deque()
        self._bytes = 0
        self.start = self.end = first_offset

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.start, self.end)

    def append(self, now_ms: int, value: bytes, key: bytes | None, headers: Headers) -> Appended:
        offset = self.end
        self._records.append(Record(self.topic, self.partition, offset, now_ms, True, key, value, headers))
        self._bytes += len(value) + 200
        self.end = offset + 1
        oldest_ms = None if self._retention_ms is None else now_ms - self._retention_ms
        while self._bytes > self._max_bytes or (
            oldest_ms is not None and self._records[0].time_ms < oldest_ms
        ):
            self._forget_first()
        return Appended(offset, now_ms)

    def read(self, offset: int, max_records: int) -> list[Record]:
        check_offset(self.topic, self.partition, offset, self.bounds)
        records = self._records
        skip = offset - self.start
        if len(records) - skip <= min(max_records, skip):
            # Near the end: a deque is quick from both ends only.
            newest = list(islice(reversed(records), len(records) - skip))
            newest.reverse()
            return newest[:max_records]
        return list(islice(records, skip, skip + max_records))

    def offset_at(self, time_ms: int) -> int:
        return next((record.offset for record in self._records if record.time_ms >= time_ms), self.end)

    def truncate(self, before_offset: int) -> None:
        while self._records and self._records[0].offset < before_offset:
            self._forget_first()

    def _forget_first(self) -> None:
        gone = self._records.popleft()
        self._bytes -= len(gone.value) + 200
        self.start = gone.offset + 1
