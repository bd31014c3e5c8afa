"""Reading helpers: they wait for a condition, never for a time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from penstock.log.port import Log, Record, Tail, TopicPartition
from tests.waiting import PATIENCE_S


async def take(tail: Tail, count: int) -> list[Record]:
    """At least ``count`` records of a tail, or a failure."""
    records: list[Record] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(records) < count:
            records.extend(await tail.poll(500))
    return records


async def read(log: Log, starts: Mapping[TopicPartition, int]) -> list[Record]:
    """Every record from the given offsets to the present ends."""
    left = {where: (await log.bounds(*where)).end for where in starts}
    positions = dict(starts)
    records: list[Record] = []
    async with asyncio.timeout(PATIENCE_S), log.tail(starts) as tail:
        while any(positions[where] < end for where, end in left.items()):
            for record in await tail.poll(500):
                positions[record.topic, record.partition] = record.offset + 1
                records.append(record)
    return records
