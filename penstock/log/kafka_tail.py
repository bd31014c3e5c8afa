"""Following partitions of a cluster: assigned by hand, offsets of one's own, no consumer group.

One consumer follows all partitions of a tail: a broker answers a fetch as soon as any of its partitions has a record,
so none waits for another. Only a *change* of what is followed waits for the fetch under way (``fetch_wait_ms``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import ConsumerStoppedError, IllegalStateError, KafkaError, OffsetOutOfRangeError

from penstock.log import port
from penstock.log.kafka_options import KafkaOptions, within
from penstock.log.memory_topics import check_offset
from penstock.log.supervision import asked_to_end
from penstock.schemas.errors import LogUnavailable

_FETCH_BYTES = 32 * 1024 * 1024
_PARTITION_FETCH_BYTES = 4 * 1024 * 1024
_STOP_MS = 2_000
_STALLED = 0.5
"""A poll that returns late by this share of the longest silence tells that the process itself was stopped."""
_LOG_APPEND_TIME = 1


class _Bounds(Protocol):
    async def bounds(self, topic: str, partition: int) -> port.Bounds: ...

    async def topic_names(self) -> frozenset[str]: ...


class KafkaTail:
    """See :class:`penstock.log.port.Tail`."""

    def __init__(
        self, options: KafkaOptions, log: _Bounds, starts: Mapping[port.TopicPartition, int]
    ) -> None:
        self._options = options
        self._log = log
        self._positions = {TopicPartition(*where): offset for where, offset in starts.items()}
        # The consumer's own annotations are partial; what is used of it is checked here by tests.
        self._consumer: Any = None
        self._dirty = True
        self._answers: dict[TopicPartition, tuple[int | None, float]] = {}
        """By partition: the consumer's stamp of the last answer about it, and since when (monotonic) it is that."""

    async def __aenter__(self) -> Self:
        consumer: Any = AIOKafkaConsumer(
            group_id=None,
            auto_offset_reset="none",
            enable_auto_commit=False,
            isolation_level="read_uncommitted",
            fetch_min_bytes=1,
            fetch_max_wait_ms=self._options.fetch_wait_ms,
            fetch_max_bytes=_FETCH_BYTES,
            max_partition_fetch_bytes=_PARTITION_FETCH_BYTES,
            # The checksum is computed in C and costs less than copying the record.
            check_crcs=True,
            request_timeout_ms=self._options.request_timeout_ms,
            **self._options.connection(),
        )
        try:
            await within(self._options.request_timeout_ms, "starting a consumer", consumer.start())
        except BaseException:
            await _stop(consumer)
            raise
        self._consumer = consumer
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await _stop(consumer)

    def follow(self, topic: str, partition: int, offset: int) -> None:
        self._positions[TopicPartition(topic, partition)] = offset
        self._dirty = True

    def drop(self, topic: str, partition: int) -> None:
        self._dirty |= self._positions.pop(TopicPartition(topic, partition), None) is not None

    async def poll(self, max_wait_ms: int, max_records: int = 5_000) -> Sequence[port.Record]:
        consumer = self._open()
        if self._dirty:
            self._assign(consumer)
        if not self._positions:
            await asyncio.sleep(max_wait_ms / 1000)
            return []
        started = time.monotonic()
        try:
            fetched: dict[TopicPartition, list[ConsumerRecord[bytes | None, bytes | None]]]
            fetched = await consumer.getmany(timeout_ms=max_wait_ms, max_records=max_records)
        except OffsetOutOfRangeError as error:
            await self._out_of_range()
            raise LogUnavailable(f"Kafka says that an offset is out of range: {error}") from error
        except (ConsumerStoppedError, IllegalStateError) as error:
            raise LogUnavailable("The log or this tail of it is closed.") from error
        except KafkaError as error:
            raise LogUnavailable(f"Kafka failed while it was read: {error!r}") from error
        except asyncio.CancelledError as error:
            if asked_to_end():
                raise
            raise LogUnavailable("Kafka's client gave up while it was read.") from error
        self._open()
        records: list[port.Record] = []
        for where, batch in fetched.items():
            # A seek or drop during the wait makes what was fetched before it stale.
            if batch and self._positions.get(where, -1) <= batch[0].offset and not self._dirty:
                records.extend(map(_record, batch))
                self._positions[where] = batch[-1].offset + 1
        if records:
            self._answers.clear()
        elif not self._dirty:  # else the consumer does not know yet what is followed
            silent = self._silent(consumer, time.monotonic() - started - max_wait_ms / 1000)
            if silent is not None:
                raise await self._unheard_of(silent)
        return records

    def _assign(self, consumer: Any) -> None:
        self._dirty = False
        positions = dict(self._positions)
        consumer.assign(list(positions))
        for where, offset in positions.items():
            consumer.seek(where, offset)
        self._answers.clear()

    def _silent(self, consumer: Any, late_s: float) -> TopicPartition | None:
        """A partition that has been waited for longer than ``silence_ms``, and no broker answered about it.

        Measured on the monotonic clock, by whether the consumer's stamps change: wall clocks jump. ``late_s`` is how
        much later than asked for the poll returned. A process that was stopped meanwhile has answers that it has not
        looked at yet, so its wait begins anew.
        """
        limit_ms = self._options.silence_ms
        if late_s * 1000 > limit_ms * _STALLED:
            self._answers.clear()
        now_s = time.monotonic()
        for where in self._positions:
            stamp = consumer.last_poll_timestamp(where)
            seen = self._answers.get(where)
            if seen is None or seen[0] != stamp:
                self._answers[where] = (stamp, now_s)
            elif (now_s - seen[1]) * 1000 >= limit_ms:
                return where
        return None

    async def _unheard_of(self, where: TopicPartition) -> LogUnavailable:
        """What to say of a partition about which no broker answers any more."""
        said = (
            f"No broker has answered about {where.topic}-{where.partition} for {self._options.silence_ms} ms."
        )
        with contextlib.suppress(LogUnavailable):
            if where.topic not in await self._log.topic_names():
                said = f"Topic {where.topic!r} is gone: it was deleted."
        return LogUnavailable(said, topic=where.topic, partition=where.partition)

    async def _out_of_range(self) -> None:
        for where, offset in list(self._positions.items()):
            bounds = await self._log.bounds(where.topic, where.partition)
            check_offset(where.topic, where.partition, offset, bounds)

    def _open(self) -> Any:
        if self._consumer is None:
            raise LogUnavailable("The log or this tail of it is closed.")
        return self._consumer


def _record(found: ConsumerRecord[bytes | None, bytes | None]) -> port.Record:
    return port.Record(
        found.topic,
        found.partition,
        found.offset,
        found.timestamp,
        found.timestamp_type == _LOG_APPEND_TIME,
        found.key,
        found.value or b"",
        tuple(found.headers),
    )


async def _stop(consumer: Any) -> None:
    """Stop within limits; a consumer that cannot say goodbye is abandoned with its connections."""
    with contextlib.suppress(LogUnavailable):
        await within(_STOP_MS, "stopping a consumer", consumer.stop())
