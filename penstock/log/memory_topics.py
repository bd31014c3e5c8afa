"""Partitioned records in memory, synchronous: the core under the memory log, and what a simulator drives.

Faults are armed by the test and taken by the next appends (of one partition, or of any), in the order they were armed.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from penstock.log.port import Appended, Bounds, Headers, Record, TopicPartition, TopicSpec
from penstock.log.sizes import check_size
from penstock.schemas.errors import (
    AppendRefused,
    AppendUnknown,
    OffsetBeyondEnd,
    OffsetTrimmed,
    TopicMismatch,
)


class Fault(enum.Enum):
    """What may go wrong with one append."""

    REFUSED = "refused"
    """AppendRefused; nothing is written."""
    WRITTEN_UNKNOWN = "written_unknown"
    """AppendUnknown; the record is there at once."""
    LOST_UNKNOWN = "lost_unknown"
    """AppendUnknown; the record never comes."""
    LATE_UNKNOWN = "late_unknown"
    """AppendUnknown; the record lands later: at :meth:`MemoryTopics.land_late`, behind what came meanwhile."""
    OFFSET_UNKNOWN = "offset_unknown"
    """Acknowledged, but the offset is -1, as after a repeated batch."""


class Armed(msgspec.Struct, frozen=True):
    """A fault waiting for an append to ``where`` (None: to any partition), acknowledged ``delay_ms`` later."""

    fault: Fault | None
    where: TopicPartition | None = None
    delay_ms: int = 0


class Partition:
    """Records of one partition. Offsets may have gaps; ``next_offset`` is what the next record gets."""

    __slots__ = ("next_offset", "offsets", "records", "start")

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.offsets: list[int] = []
        self.start = 0
        self.next_offset = 0


class MemoryTopics:
    """All topics of one memory log. ``now_ms`` is the log's clock and stamps every record."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self.specs: dict[str, TopicSpec] = {}
        self._partitions: dict[TopicPartition, Partition] = {}
        self._armed: deque[Armed] = deque()
        self._late: list[tuple[str, int, bytes, bytes | None, Headers]] = []
        self.listeners: list[Callable[[], None]] = []
        """Called after every write."""

    def ensure(self, specs: Sequence[TopicSpec]) -> None:
        """Create what is missing; raise TopicMismatch where the partition count or durability differs."""
        for spec in specs:
            known = self.specs.get(spec.name)
            if known is None:
                self.specs[spec.name] = spec
                for number in range(spec.partitions):
                    self._partitions[spec.name, number] = Partition()
                continue
            check_same_spec(known, spec)

    def append(
        self, topic: str, partition: int, value: bytes, key: bytes | None = None, headers: Headers = ()
    ) -> Appended:
        """Append one record, or do what the next armed fault says.

        Raises:
            AppendRefused: unknown topic or partition, too large, or a fault.
            AppendUnknown: a fault.
        """
        self.check_append(topic, partition, value, key, headers)
        armed = self.take_fault((topic, partition))
        return self.append_with(armed.fault if armed else None, topic, partition, value, key, headers)

    def check_append(
        self, topic: str, partition: int, value: bytes, key: bytes | None, headers: Headers
    ) -> None:
        """Raise AppendRefused for a partition that is not there or a record that is too large."""
        if (topic, partition) not in self._partitions:
            raise AppendRefused(f"There is no partition {partition} of topic {topic!r}.")
        check_size(self.specs[topic].max_record_bytes, topic, value, key, headers)

    def append_with(
        self,
        fault: Fault | None,
        topic: str,
        partition: int,
        value: bytes,
        key: bytes | None,
        headers: Headers,
    ) -> Appended:
        """Append under a fault already taken (None: none)."""
        if fault is Fault.REFUSED:
            raise AppendRefused("The append was refused by an armed fault.", transient=True)
        if fault is Fault.LOST_UNKNOWN:
            raise AppendUnknown("The append was lost by an armed fault.")
        if fault is Fault.LATE_UNKNOWN:
            self._late.append((topic, partition, value, key, headers))
            raise AppendUnknown("The append is late by an armed fault.")
        appended = self._write(topic, partition, value, key, headers)
        if fault is Fault.WRITTEN_UNKNOWN:
            raise AppendUnknown("The acknowledgement was lost by an armed fault.")
        if fault is Fault.OFFSET_UNKNOWN:
            return Appended(-1, appended.time_ms)
        return appended

    def read(self, topic: str, partition: int, offset: int, max_records: int = 5_000) -> Sequence[Record]:
        """Records from ``offset`` on; empty at the end.

        Raises:
            OffsetTrimmed, OffsetBeyondEnd: see :class:`penstock.log.port.Tail`.
            TopicMismatch: there is no such partition.
        """
        found = self._partition(topic, partition)
        check_offset(topic, partition, offset, Bounds(found.start, found.next_offset))
        at = bisect_left(found.offsets, offset)
        return found.records[at : at + max_records]

    def bounds(self, topic: str, partition: int) -> Bounds:
        found = self._partition(topic, partition)
        return Bounds(found.start, found.next_offset)

    def offset_at(self, topic: str, partition: int, time_ms: int) -> int:
        found = self._partition(topic, partition)
        return next(
            (record.offset for record in found.records if record.time_ms >= time_ms), found.next_offset
        )

    def truncate(self, topic: str, partition: int, before_offset: int) -> None:
        found = self._partition(topic, partition)
        if before_offset > found.next_offset:
            raise OffsetBeyondEnd(f"{topic}-{partition} ends at {found.next_offset}, before {before_offset}.")
        found.start = max(found.start, before_offset)
        cut = bisect_left(found.offsets, found.start)
        del found.records[:cut]
        del found.offsets[:cut]

    # Faults

    def arm(
        self, *faults: Fault | None, topic: str | None = None, partition: int = 0, delay_ms: int = 0
    ) -> None:
        """The next appends (to that partition, or to any) meet these faults, one each; None is a good append."""
        where = None if topic is None else (topic, partition)
        self._armed.extend(Armed(fault, where, delay_ms) for fault in faults)

    def take_fault(self, where: TopicPartition) -> Armed | None:
        """Take the first fault armed for this partition off the list."""
        for armed in self._armed:
            if armed.where is None or armed.where == where:
                self._armed.remove(armed)
                return armed
        return None

    def land_late(self) -> int:
        """Write every late record now, in the order they were sent. Returns how many."""
        late, self._late = self._late, []
        for topic, partition, value, key, headers in late:
            self._write(topic, partition, value, key, headers)
        return len(late)

    def skip_offsets(self, topic: str, partition: int, count: int) -> None:
        """Leave a gap, as transaction markers and compaction do on a cluster."""
        self._partition(topic, partition).next_offset += count

    def forget(self, topic: str) -> None:
        """Empty a topic and begin at offset 0, as when it is deleted and made anew."""
        for number in range(self.specs[topic].partitions):
            self._partitions[topic, number] = Partition()

    def _write(
        self, topic: str, partition: int, value: bytes, key: bytes | None, headers: Headers
    ) -> Appended:
        found = self._partition(topic, partition)
        offset, now_ms = found.next_offset, self._now_ms()
        found.records.append(Record(topic, partition, offset, now_ms, True, key, value, headers))
        found.offsets.append(offset)
        found.next_offset = offset + 1
        for listener in self.listeners:
            listener()
        return Appended(offset, now_ms)

    def _partition(self, topic: str, partition: int) -> Partition:
        found = self._partitions.get((topic, partition))
        if found is None:
            raise TopicMismatch(f"There is no partition {partition} of topic {topic!r} on the log.")
        return found


def check_offset(topic: str, partition: int, offset: int, bounds: Bounds) -> None:
    """Raise OffsetTrimmed or OffsetBeyondEnd when nothing can be read from ``offset``; the end itself is fine."""
    if offset < bounds.start:
        raise OffsetTrimmed(
            f"{topic}-{partition} begins at offset {bounds.start}; {offset} was wanted.",
            topic=topic, partition=partition, wanted=offset, start=bounds.start, end=bounds.end,
        )  # fmt: skip
    if offset > bounds.end:
        raise OffsetBeyondEnd(
            f"{topic}-{partition} ends at offset {bounds.end}; {offset} was wanted.",
            topic=topic, partition=partition, wanted=offset, start=bounds.start, end=bounds.end,
        )  # fmt: skip


def check_same_spec(known: TopicSpec, wanted: TopicSpec) -> None:
    """Raise TopicMismatch when an existing topic differs in what can no longer be changed."""
    for name in ("partitions", "durable", "retention_ms"):
        found, want = getattr(known, name), getattr(wanted, name)
        if found != want:
            raise TopicMismatch(
                f"Topic {wanted.name!r}: {name} is {found}, wanted {want}.",
                topic=wanted.name, setting=name, found=found, wanted=want,
            )  # fmt: skip
