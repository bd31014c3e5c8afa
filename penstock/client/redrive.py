"""Reading one line of the log, and putting a line back on it: what the API and the command line share."""

from __future__ import annotations

import asyncio

from penstock.log.port import Log, Record
from penstock.schemas.codec import check_utf8, decode_line, split
from penstock.schemas.errors import InvalidField, LogUnavailable, NotFound, Undecodable
from penstock.schemas.events import JobEvent
from penstock.schemas.ids import partition_of
from penstock.schemas.position import Position
from penstock.schemas.topics import Topics

READ_TIMEOUT_S = 15.0
_POLL_MS = 500


async def record_at(log: Log, topics: Topics, partition: int, offset: int) -> Record:
    """One record of the jobs topic.

    Raises:
        NotFound: there is no such partition, or no record at this offset.
        LogUnavailable: the log does not give it within 15 s.
    """
    if partition >= topics.partitions:
        raise NotFound(f"there is no partition {partition}, only 0 to {topics.partitions - 1}")
    bounds = await log.bounds(topics.jobs, partition)
    if not bounds.start <= offset < bounds.end:
        raise NotFound(f"partition {partition} has offsets {bounds.start} to {bounds.end - 1}, not {offset}")
    try:
        async with asyncio.timeout(READ_TIMEOUT_S), log.tail({(topics.jobs, partition): offset}) as tail:
            records = await tail.poll(_POLL_MS, 1)
            while not records:
                records = await tail.poll(_POLL_MS, 1)
    except TimeoutError as error:
        raise LogUnavailable(f"the record {partition}:{offset} could not be read in time") from error
    if records[0].offset != offset:
        raise NotFound(f"there is no record at {partition}:{offset}")
    return records[0]


async def line_at(log: Log, topics: Topics, position: Position) -> bytes:
    """One line of the jobs topic as it stands there. Raises as :func:`record_at`."""
    lines = split((await record_at(log, topics, position.partition, position.offset)).value)
    if position.line >= len(lines):
        raise NotFound(f"the record {position.partition}:{position.offset} has no line {position.line}")
    return lines[position.line]


def redriven(line: bytes, partitions: int) -> tuple[int, bytes]:
    """Where a line that was refused belongs, and the line as it may be appended again.

    Raises:
        InvalidField: it still cannot be decoded, or only a leader may write it.
    """
    try:
        check_utf8(line)
        line = line.strip()
        event = decode_line(line)
    except Undecodable as error:
        raise InvalidField(
            f"the line cannot be put back as it is: {error.message}", reason=error.reason
        ) from error
    if b"\n" in line:
        raise InvalidField("an event is one line")
    if event.leader_only or not isinstance(event, JobEvent):
        raise InvalidField(f"{type(event).__name__} is not a line that may be put on the log by hand")
    return partition_of(event.job, partitions), line
