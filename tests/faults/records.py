"""The jobs topic from its first record to its last, read without any of Penstock's own code for reading it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, KafkaException, TopicPartition

from penstock.log.embedded import EmbeddedLog
from penstock.schemas.topics import Topics

_READ_S = 30.0


class RawRecord(NamedTuple):
    partition: int
    offset: int
    time_ms: int
    append_time: bool
    value: bytes


def of_cluster(bootstrap: str, topics: Topics) -> Iterator[RawRecord]:
    """All records of a jobs topic, partition by partition. AssertionError when one cannot be read to its end."""
    options = {"bootstrap.servers": bootstrap, "group.id": "faults", "enable.auto.commit": False}
    consumer = Consumer({**options, "isolation.level": "read_uncommitted", "log_level": 0})
    try:
        for partition in range(topics.partitions):
            yield from _partition(consumer, topics.jobs, partition)
    finally:
        consumer.close()


def _partition(consumer: Consumer, topic: str, partition: int) -> Iterator[RawRecord]:
    start, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_READ_S)
    assert start == 0, f"{topic}-{partition} begins at {start}"
    consumer.assign([TopicPartition(topic, partition, start)])
    next_offset = start
    while next_offset < end:
        message = consumer.poll(_READ_S)
        assert message is not None, f"{topic}-{partition} cannot be read beyond {next_offset} of {end}"
        if message.error() is not None:
            raise KafkaException(message.error())
        kind, time_ms = message.timestamp()
        offset = message.offset()
        assert offset is not None
        next_offset = offset + 1
        append_time = kind == TIMESTAMP_LOG_APPEND_TIME
        yield RawRecord(partition, offset, time_ms, append_time, message.value() or b"")


def of_folder(path: Path, topics: Topics) -> list[RawRecord]:
    """The same of an embedded log that no process has open. Raises LogCorrupt."""
    return asyncio.run(_of_folder(path, topics))


async def _of_folder(path: Path, topics: Topics) -> list[RawRecord]:
    found: list[RawRecord] = []
    async with EmbeddedLog(path) as log:
        for partition in range(topics.partitions):
            end = (await log.bounds(topics.jobs, partition)).end
            offset = 0
            async with log.tail({(topics.jobs, partition): 0}) as tail:
                while offset < end:
                    for record in await tail.poll(1_000):
                        found.append(
                            RawRecord(
                                partition, record.offset, record.time_ms, record.append_time, record.value
                            )
                        )
                        offset = record.offset + 1
    return found
