"""The log port: the one way in which everything above reaches an append-only, partitioned log.

Three implementations stand behind it: :mod:`penstock.log.memory` (tests and simulation),
:mod:`penstock.log.embedded` (durable, one process) and :mod:`penstock.log.kafka` (a cluster). One
conformance suite runs against all three, so what is written here is what each of them does.

What every implementation promises:

* A record whose append was acknowledged is durable (embedded: synced; Kafka: ``acks=all``) and is
  never changed. Readers never see a record that could still vanish.
* Offsets of a partition only grow; they may have gaps. ``end`` is the offset the next record gets at least.
* Appends by one caller to one partition, each awaited before the next, land in that order.
* An append either is acknowledged, or raises :class:`AppendRefused` (certainly not written) or
  :class:`AppendUnknown` (may be written, now or later). Nothing waits for ever.
* A topic that is not ``durable`` (deliveries, signals, heartbeats) may forget records when the process
  ends or after its retention; nothing correct may depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import msgspec

TopicPartition = tuple[str, int]
"""Name of a topic and the number of a partition in it."""

Headers = tuple[tuple[str, bytes], ...]


class Record(msgspec.Struct, frozen=True):
    """One record as read from the log.

    ``time_ms`` is Unix milliseconds; ``append_time`` tells whether the log itself stamped it (Kafka's
    ``LogAppendTime``) or a producer did, whom nobody may believe.
    """

    topic: str
    partition: int
    offset: int
    time_ms: int
    append_time: bool
    key: bytes | None
    value: bytes
    headers: Headers = ()


class Appended(NamedTuple):
    """Where and when (log time, Unix ms) an acknowledged record stands.

    After a retried write the offset is -1 if the broker cannot name it; never build on it.
    """

    offset: int
    time_ms: int


class Bounds(NamedTuple):
    """``start``: first offset still kept. ``end``: offset after the last record that readers may see."""

    start: int
    end: int


class TopicSpec(msgspec.Struct, frozen=True):
    """How a topic must be. ``retention_ms`` None keeps for ever; a topic that is not durable may live in memory."""

    name: str
    partitions: int
    durable: bool = True
    retention_ms: int | None = None
    max_record_bytes: int = 1_048_576


class Tail(Protocol):
    """Follows a set of partitions from given offsets. Use as an async context manager."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def poll(self, max_wait_ms: int, max_records: int = 5_000) -> Sequence[Record]:
        """Records in partition order (any interleaving of partitions), or an empty list after ``max_wait_ms``.

        Raises:
            OffsetTrimmed: the wanted offset is below the log's start: history is missing.
            OffsetBeyondEnd: the wanted offset is above the log's end: the topic was cut or made anew.
            LogUnavailable: the log has not answered for the configured time.

        What was read of other partitions is never lost with an error about one: it is returned first.
        """
        ...

    def follow(self, topic: str, partition: int, offset: int) -> None:
        """Add a partition, or move to ``offset`` in one already followed. Takes effect at the next poll."""
        ...

    def drop(self, topic: str, partition: int) -> None:
        """Stop following a partition; records of it are not returned by later polls."""
        ...


class Log(Protocol):
    """A partitioned, append-only log. Use as an async context manager."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def cluster_id(self) -> str:
        """Identity of the log, stable over restarts; another log has another."""
        ...

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create what is missing, check what exists.

        Raises:
            TopicMismatch: a topic exists with another partition count, compaction, retention, timestamp
                type or replication than it must have. The message says which, found and wanted.
            LogUnavailable: the log does not answer.
        """
        ...

    async def topic_names(self) -> frozenset[str]:
        """The topics that there are, of whatever namespace. Raises LogUnavailable."""
        ...

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> Appended:
        """Append one record and wait until it is durable.

        Raises:
            AppendRefused: certainly not written (too large, unknown topic, log closed, no space).
            AppendUnknown: written or not, now or later: retry only with the same event ids.
        """
        ...

    async def bounds(self, topic: str, partition: int) -> Bounds: ...

    async def offset_at(self, topic: str, partition: int, time_ms: int) -> int:
        """Offset of the first record with ``time_ms`` or later; the end where there is none."""
        ...

    async def truncate(self, topic: str, partition: int, before_offset: int) -> None:
        """Forget records below ``before_offset``; the start moves there."""
        ...

    def tail(self, starts: Mapping[TopicPartition, int]) -> Tail: ...
