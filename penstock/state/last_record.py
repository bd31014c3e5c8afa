"""Is the log still the one that was folded? Only its last folded record tells: offsets look the same in a new topic."""

from __future__ import annotations

import asyncio
from hashlib import sha256

from penstock.log.port import Log, Record
from penstock.schemas.errors import HistoryChanged, LogUnavailable, OffsetBeyondEnd, OffsetTrimmed

_POLL_MS = 500


async def check_last_record(
    log: Log, topic: str, partition: int, offset: int, value_hash: bytes, timeout_ms: int
) -> None:
    """Check that the record at ``offset`` has this SHA-256; -1 stands for nothing folded yet.

    A record that was trimmed, with the next one still there, cannot be checked and passes.

    Raises:
        HistoryChanged, OffsetBeyondEnd, OffsetTrimmed, LogUnavailable: see ``PartitionStore.verify_last_record``.
    """
    bounds = await log.bounds(topic, partition)
    where = f"{topic}-{partition}"
    if offset + 1 < bounds.start:
        raise OffsetTrimmed(f"{where} begins at offset {bounds.start}; {offset + 1} is the next to fold.")
    if offset >= bounds.end:
        raise OffsetBeyondEnd(f"{where} ends at offset {bounds.end}; {offset} was folded already.")
    if offset < bounds.start:
        return
    record = await _first_record(log, topic, partition, offset, timeout_ms)
    if record.offset != offset or sha256(record.value).digest() != value_hash:
        raise HistoryChanged(
            f"The record at offset {offset} of {where} is not the one that was folded: the topic was made anew.",
            topic=topic,
            partition=partition,
            offset=offset,
        )


async def _first_record(log: Log, topic: str, partition: int, offset: int, timeout_ms: int) -> Record:
    try:
        async with asyncio.timeout(timeout_ms / 1000), log.tail({(topic, partition): offset}) as tail:
            while True:
                records = await tail.poll(_POLL_MS, 1)
                if records:
                    return records[0]
    except TimeoutError as error:
        raise LogUnavailable(f"{topic}-{partition} could not be read at offset {offset}.") from error
