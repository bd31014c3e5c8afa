"""The log on a Kafka cluster, or on anything that speaks its protocol.

Producers use ``acks=all`` and idempotence and no transactions; consumers read uncommitted, so that all folders see the
same lines, and are no members of a group. Everything has a time limit: brokers that go away make errors, not waits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import OffsetOutOfRangeError

from penstock.log import kafka_topics, port
from penstock.log.kafka_options import KafkaOptions, within
from penstock.log.kafka_producer import SupervisedProducer
from penstock.log.kafka_tail import KafkaTail
from penstock.log.port import Appended, Bounds, Headers, TopicSpec
from penstock.log.sizes import check_size
from penstock.schemas.errors import AppendRefused, LogUnavailable, OffsetBeyondEnd, TopicMismatch

__all__ = ["KafkaLog", "KafkaOptions", "KafkaTail"]

_T = TypeVar("_T")

_DEFAULT_MAX_RECORD_BYTES = 1_048_576
_STOP_MS = 2_000


class KafkaLog:
    """A log on the cluster at ``bootstrap`` ("host:port,host:port"). Use as an async context manager.

    ``replication`` None takes 3 where there are three brokers and else 1. ``options`` are fields of
    :class:`KafkaOptions`, among them ``client`` for TLS and SASL.
    """

    def __init__(self, bootstrap: str, *, replication: int | None = None, **options: Any) -> None:
        self._options = KafkaOptions(bootstrap=bootstrap, **options)
        self._replication = replication
        self._producer = SupervisedProducer(self._options)
        self._admin: AIOKafkaAdminClient | None = None
        self._reader: Any = None
        self._specs: dict[str, TopicSpec] = {}
        self._partitions: dict[str, int] = {}
        self._cluster_id = ""

    async def __aenter__(self) -> Self:
        """Connect. LogUnavailable when no broker answers in time."""
        timeout_ms = self._options.request_timeout_ms
        common: dict[str, Any] = {"request_timeout_ms": timeout_ms, **self._options.connection()}
        try:
            self._admin = AIOKafkaAdminClient(**common)
            await within(timeout_ms, f"connecting to {self._options.bootstrap}", self._admin.start())
            cluster = await within(timeout_ms, "describing the cluster", self._admin.describe_cluster())
            self._cluster_id = str(cluster["cluster_id"])
            self._partitions = await kafka_topics.partition_counts(self._admin, self._options)
            # Asks for offsets only: a consumer of its own, so that a question never waits behind a long fetch.
            self._reader = AIOKafkaConsumer(group_id=None, enable_auto_commit=False, **common)
            await within(timeout_ms, "starting a reader", self._reader.start())
            await self._producer.start()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    @property
    def cluster_id(self) -> str:
        return self._cluster_id

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        admin = self._opened()
        await kafka_topics.ensure(admin, self._options, specs, self._replication)
        for spec in specs:
            self._specs[spec.name] = spec
            self._partitions[spec.name] = spec.partitions

    async def topic_names(self) -> frozenset[str]:
        return frozenset(await kafka_topics.partition_counts(self._opened(), self._options))

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> Appended:
        if self._admin is None:
            raise AppendRefused("The log is closed.")
        if not 0 <= partition < self._partitions.get(topic, 0):
            try:
                await self._check_exists(topic, partition)
            except TopicMismatch as error:
                raise AppendRefused(error.message) from error
            except LogUnavailable as error:
                raise AppendRefused(f"Not sent: {error.message}", transient=True) from error
        spec = self._specs.get(topic)
        limit = spec.max_record_bytes if spec else _DEFAULT_MAX_RECORD_BYTES
        check_size(limit, topic, value, key, headers)
        return await self._producer.append(topic, partition, value, key, headers)

    async def bounds(self, topic: str, partition: int) -> Bounds:
        await self._check_exists(topic, partition)
        where = TopicPartition(topic, partition)
        reader = self._opened_reader()
        starts: dict[TopicPartition, int]
        ends: dict[TopicPartition, int]
        starts = await self._ask(f"the start of {topic}-{partition}", reader.beginning_offsets([where]))
        ends = await self._ask(f"the end of {topic}-{partition}", reader.end_offsets([where]))
        return Bounds(starts[where], ends[where])

    async def offset_at(self, topic: str, partition: int, time_ms: int) -> int:
        await self._check_exists(topic, partition)
        where = TopicPartition(topic, partition)
        asking = self._opened_reader().offsets_for_times({where: max(time_ms, 0)})
        found = (await self._ask(f"an offset by time in {topic}-{partition}", asking))[where]
        if found is not None:
            return int(found.offset)
        return (await self.bounds(topic, partition)).end

    async def truncate(self, topic: str, partition: int, before_offset: int) -> None:
        bounds = await self.bounds(topic, partition)
        if before_offset <= bounds.start:
            return
        where = TopicPartition(topic, partition)
        deleting = self._opened().delete_records({where: RecordsToDelete(before_offset)})
        try:
            await within(self._options.request_timeout_ms, "deleting records", _out_of_range(deleting))
        except _OutOfRange as error:
            raise OffsetBeyondEnd(
                f"{topic}-{partition} ends at {bounds.end}, before {before_offset}."
            ) from error

    def tail(self, starts: Mapping[port.TopicPartition, int]) -> KafkaTail:
        return KafkaTail(self._options, self, starts)

    async def _check_exists(self, topic: str, partition: int) -> None:
        """TopicMismatch for a partition that is not there. Asking for it by name might create it."""
        if 0 <= partition < self._partitions.get(topic, 0):
            return
        self._partitions.update(await kafka_topics.partition_counts(self._opened(), self._options))
        if not 0 <= partition < self._partitions.get(topic, 0):
            raise TopicMismatch(f"There is no partition {partition} of topic {topic!r} on the log.")

    async def _ask(self, what: str, asking: Awaitable[_T]) -> _T:
        return await within(self._options.request_timeout_ms, f"asking for {what}", asking)

    def _opened(self) -> AIOKafkaAdminClient:
        if self._admin is None:
            raise LogUnavailable("The log is closed.")
        return self._admin

    def _opened_reader(self) -> Any:
        if self._reader is None:
            raise LogUnavailable("The log is closed.")
        return self._reader

    async def _close(self) -> None:
        await self._producer.close()
        admin, self._admin = self._admin, None
        reader, self._reader = self._reader, None
        stops = [
            client_stop for client_stop in (reader and reader.stop, admin and admin.close) if client_stop
        ]
        for stop in stops:
            with contextlib.suppress(LogUnavailable):
                await within(_STOP_MS, "disconnecting", stop())


class _OutOfRange(Exception):
    """Carries OffsetOutOfRangeError past the place that turns every Kafka error into LogUnavailable."""


async def _out_of_range(deleting: Awaitable[_T]) -> _T:
    try:
        return await deleting
    except OffsetOutOfRangeError as error:
        raise _OutOfRange from error
