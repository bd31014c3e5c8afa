"""The log in memory: for tests and simulation.

Time comes from a callable; faults are armed on :attr:`MemoryLog.topics`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from penstock.log.memory_topics import Fault, MemoryTopics
from penstock.log.port import Appended, Bounds, Headers, Record, TopicPartition, TopicSpec
from penstock.log.wakeup import Wakeup
from penstock.schemas.errors import AppendRefused, LogUnavailable, OffsetBeyondEnd, OffsetTrimmed

__all__ = ["Fault", "MemoryLog", "MemoryTail", "MemoryTopics"]


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryLog:
    """A log in this process. Several may share one ``topics``: they are then clients of one cluster."""

    def __init__(
        self,
        *,
        now_ms: Callable[[], int] = _wall_clock_ms,
        topics: MemoryTopics | None = None,
        cluster_id: str = "memory",
    ) -> None:
        self.topics = topics or MemoryTopics(now_ms)
        self._cluster_id = cluster_id
        self._closed = False
        self._wakeup = Wakeup()
        self.topics.listeners.append(self._wakeup.fire)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._closed:
            self._closed = True
            self.topics.listeners.remove(self._wakeup.fire)
            self._wakeup.fire()

    @property
    def cluster_id(self) -> str:
        return self._cluster_id

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def wakeup(self) -> Wakeup:
        """Fires when a record came, whoever wrote it."""
        return self._wakeup

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        self._check_open()
        self.topics.ensure(specs)

    async def topic_names(self) -> frozenset[str]:
        self._check_open()
        return frozenset(self.topics.specs)

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> Appended:
        if self._closed:
            raise AppendRefused("The log is closed.")
        self.topics.check_append(topic, partition, value, key, headers)
        armed = self.topics.take_fault((topic, partition))
        if armed is not None and armed.delay_ms:
            await asyncio.sleep(armed.delay_ms / 1000)
        fault = armed.fault if armed else None
        return self.topics.append_with(fault, topic, partition, value, key, headers)

    async def bounds(self, topic: str, partition: int) -> Bounds:
        self._check_open()
        return self.topics.bounds(topic, partition)

    async def offset_at(self, topic: str, partition: int, time_ms: int) -> int:
        self._check_open()
        return self.topics.offset_at(topic, partition, time_ms)

    async def truncate(self, topic: str, partition: int, before_offset: int) -> None:
        self._check_open()
        self.topics.truncate(topic, partition, before_offset)

    def tail(self, starts: Mapping[TopicPartition, int]) -> MemoryTail:
        return MemoryTail(self, starts)

    def _check_open(self) -> None:
        if self._closed:
            raise LogUnavailable("The log is closed.")


class MemoryTail:
    """See :class:`penstock.log.port.Tail`."""

    def __init__(self, log: MemoryLog, starts: Mapping[TopicPartition, int]) -> None:
        self._log = log
        self._positions = dict(starts)
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._log.wakeup.fire()

    def follow(self, topic: str, partition: int, offset: int) -> None:
        self._positions[topic, partition] = offset
        self._log.wakeup.fire()

    def drop(self, topic: str, partition: int) -> None:
        self._positions.pop((topic, partition), None)

    async def poll(self, max_wait_ms: int, max_records: int = 5_000) -> Sequence[Record]:
        return await self._log.wakeup.poll(
            lambda: self._take(max_records), max_wait_ms, lambda: self._closed or self._log.closed
        )

    def _take(self, max_records: int) -> list[Record]:
        taken: list[Record] = []
        for (topic, partition), offset in list(self._positions.items()):
            if len(taken) >= max_records:
                break
            try:
                records = self._log.topics.read(topic, partition, offset, max_records - len(taken))
            except (OffsetTrimmed, OffsetBeyondEnd):
                if taken:
                    break
                raise
            if records:
                taken.extend(records)
                # Behind the others for the next poll, so that one busy partition does not starve them.
                del self._positions[topic, partition]
                self._positions[topic, partition] = records[-1].offset + 1
        return taken
