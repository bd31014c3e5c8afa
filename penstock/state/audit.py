"""The audit export: the jobs log as NDJSON that a stranger can check with nothing but SHA-256.

An export is one JSON object a line::

    {"audit": "penstock", "format": 1, "cluster_id", "topic", "partitions", "generation", "ranges": {"0": [from, to]}}
    {"partition", "offset", "line", "time", "event": "<the line as it stands on the log>", "hash"}
    ...
    {"audit": "end", "lines", "counts": {"0": 12}, "final": {"0": "<hash>"}}

An empty record stands there as one empty line. Lines that are not UTF-8 stand base64 encoded as ``event_base64``
instead of ``event``. ``ranges`` are offsets, the second one exclusive. Partitions follow one another, each in log
order. ``hash`` is a chain of its own a partition: lower-case hex of SHA-256 over the hash before it (32 bytes),
partition (4 bytes), offset (8), line (4), time (8; Unix ms), all big-endian, and the bytes of the line. The hash before
the first is :func:`first_hash`, which covers what the header says.

Where the log is a copy of another one, the first line of each copied record has ``copied``: base64 of the record's
header, which tells where and when its lines stood before. Its bytes are one more link, at the line's place and before
the line's own.

So a line that was changed, moved, inserted or left out breaks the chain where it stood, and an export that was cut has
no last line. Whoever forges the rest of a chain as well changes its final hash: keep those apart to compare with.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterable, Mapping
from hashlib import sha256
from typing import Any, cast

import msgspec
from msgspec import Struct

from penstock.log.port import Log, Record
from penstock.schemas.codec import split
from penstock.schemas.copies import copy_header
from penstock.schemas.errors import LogUnavailable
from penstock.schemas.topics import Topics

FORMAT = 1
SILENCE_MS = 30_000
"""How long the log may give nothing before an export ends with an error."""

_encode = msgspec.json.Encoder().encode


class AuditHeader(Struct, frozen=True, kw_only=True):
    """First line of an export: which log, and which offsets of each partition."""

    audit: str = "penstock"
    format: int = FORMAT
    cluster_id: str
    topic: str
    partitions: int
    generation: int = 0
    ranges: dict[str, tuple[int, int]]


class AuditLine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the log and its link of the chain."""

    partition: int
    offset: int
    line: int
    time: int
    event: str | None = None
    event_base64: str | None = None
    copied: str | None = None
    """Of the first line of a copied record: the header that tells where its lines stood before, base64."""
    hash: str


class AuditFooter(Struct, frozen=True, kw_only=True):
    """Last line of an export."""

    audit: str = "end"
    lines: int
    counts: dict[str, int]
    final: dict[str, str]


class Report(Struct, frozen=True, kw_only=True):
    """What checking an export found. ``line`` is the number (from 1) of its first line that is wrong, 0 for none."""

    ok: bool
    lines: int
    problem: str = ""
    line: int = 0
    header: AuditHeader | None = None
    final: dict[str, str] = {}


def first_hash(header: AuditHeader, partition: int) -> bytes:
    """What a partition's chain begins with: SHA-256 over log, topic, partition and the range that was asked for."""
    start, stop = header.ranges[str(partition)]
    text = (
        f"penstock-audit/{header.format}\n{header.cluster_id}\n{header.topic}\n{header.partitions}\n"
        f"{header.generation}\n{partition}\n{start}\n{stop}\n"
    )
    return sha256(text.encode()).digest()


def next_hash(previous: bytes, partition: int, offset: int, line: int, time_ms: int, data: bytes) -> bytes:
    """The next link: see the module."""
    place = (
        partition.to_bytes(4, "big")
        + offset.to_bytes(8, "big")
        + line.to_bytes(4, "big")
        + time_ms.to_bytes(8, "big", signed=True)
    )
    return sha256(previous + place + data).digest()


# Writing


async def export(
    log: Log,
    topics: Topics,
    *,
    ranges: Mapping[int, tuple[int, int]] | None = None,
    generation: int = 0,
    max_wait_ms: int = 1_000,
) -> AsyncIterator[bytes]:
    """Chunks of an export, each one or more whole lines.

    Args:
        ranges: offsets (from, to; the second exclusive, cut to what the log has) by partition; None for all of all.

    Raises:
        LogUnavailable: the log gave nothing for 30 s before the end was reached.
        OffsetTrimmed: a range begins before what the log still has.
    """
    found = await _ranges(log, topics, ranges)
    header = AuditHeader(
        cluster_id=log.cluster_id,
        topic=topics.jobs,
        partitions=topics.partitions,
        generation=generation,
        ranges={str(partition): found[partition] for partition in sorted(found)},
    )
    yield _encode(header) + b"\n"
    counts: dict[str, int] = {}
    final: dict[str, str] = {}
    for partition in sorted(found):
        chain = _Chain(header, partition)
        start, stop = found[partition]
        async for records in _records(log, topics.jobs, partition, start, stop, max_wait_ms):
            yield b"".join([chain.record(record) for record in records])
        counts[str(partition)] = chain.count
        final[str(partition)] = chain.hash.hex()
    yield _encode(AuditFooter(lines=sum(counts.values()), counts=counts, final=final)) + b"\n"


async def _ranges(
    log: Log, topics: Topics, wanted: Mapping[int, tuple[int, int]] | None
) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for partition in range(topics.partitions) if wanted is None else wanted:
        bounds = await log.bounds(topics.jobs, partition)
        start, stop = (bounds.start, bounds.end) if wanted is None else wanted[partition]
        found[partition] = start, max(start, min(stop, bounds.end))
    return found


async def _records(
    log: Log, topic: str, partition: int, start: int, stop: int, max_wait_ms: int
) -> AsyncIterator[list[Record]]:
    if start >= stop:
        return
    silent_ms = 0
    async with log.tail({(topic, partition): start}) as tail:
        while True:
            records = await tail.poll(max_wait_ms, max_records=500)
            if not records:
                silent_ms += max_wait_ms
                if silent_ms >= SILENCE_MS:
                    raise LogUnavailable(f"{topic}/{partition} gave nothing for {silent_ms} ms")
                continue
            silent_ms = 0
            yield [record for record in records if record.offset < stop]
            if records[-1].offset >= stop - 1:
                return


class _Chain:
    """The chain of one partition while it is written."""

    def __init__(self, header: AuditHeader, partition: int) -> None:
        self.hash = first_hash(header, partition)
        self.count = 0

    def record(self, record: Record) -> bytes:
        written: list[bytes] = []
        header = copy_header(record.headers) if record.headers else None
        # An empty record is one blank line, so that its place and time are in the chain.
        for number, data in enumerate(split(record.value) or [b""]):
            copied = header if number == 0 else None
            if copied is not None:
                self.hash = next_hash(self.hash, record.partition, record.offset, 0, record.time_ms, copied)
            self.hash = next_hash(self.hash, record.partition, record.offset, number, record.time_ms, data)
            self.count += 1
            text, encoded = _as_text(data)
            line = AuditLine(
                partition=record.partition,
                offset=record.offset,
                line=number,
                time=record.time_ms,
                event=text,
                event_base64=encoded,
                copied=None if copied is None else b64encode(copied).decode(),
                hash=self.hash.hex(),
            )
            written.append(_encode(line))
        return b"\n".join([*written, b""])


def _as_text(data: bytes) -> tuple[str | None, str | None]:
    try:
        return data.decode("utf-8", "strict"), None
    except UnicodeDecodeError:
        return None, b64encode(data).decode()


# Checking


def verify_export(lines: Iterable[bytes | str]) -> Report:
    """Compute an export's chain anew. ``lines`` are its lines in order, with or without newlines at their ends."""
    check = _Check()
    number = 0
    for number, line in enumerate(lines, start=1):
        data = line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line
        try:
            check.line(data)
        except (_Wrong, msgspec.DecodeError, ValueError, OverflowError) as error:
            return check.report(str(error), number)
    return check.report("" if check.ended else "the export was cut: its last line is missing", number + 1)


class _Wrong(Exception):
    """What is wrong with a line."""


_header = msgspec.json.Decoder(AuditHeader).decode
_line = msgspec.json.Decoder(AuditLine).decode
_footer = msgspec.json.Decoder(AuditFooter).decode


class _Check:
    def __init__(self) -> None:
        self.header: AuditHeader | None = None
        self.hashes: dict[int, bytes] = {}
        self.counts: dict[int, int] = {}
        self.last = (-1, -1, -1)
        self.ended = False

    def report(self, problem: str, number: int) -> Report:
        return Report(
            ok=not problem,
            lines=sum(self.counts.values()),
            problem=problem,
            line=number if problem else 0,
            header=self.header,
            final={str(partition): value.hex() for partition, value in self.hashes.items()},
        )

    def line(self, data: bytes) -> None:
        if self.ended:
            raise _Wrong("there is a line after the last one")
        if self.header is None:
            self._begin(_header(data))
            return
        fields: Any = msgspec.json.decode(data)
        if isinstance(fields, dict) and "audit" in cast("dict[str, Any]", fields):
            self._end(_footer(data))
        else:
            self._event(_line(data), self.header)

    def _begin(self, header: AuditHeader) -> None:
        if header.audit != "penstock" or header.format != FORMAT:
            raise _Wrong(f"not an export of format {FORMAT}")
        self.header = header
        for key in header.ranges:
            partition = int(key)
            self.hashes[partition] = first_hash(header, partition)
            self.counts[partition] = 0

    def _event(self, line: AuditLine, header: AuditHeader) -> None:
        place = (line.partition, line.offset, line.line)
        name = f"{line.partition}:{line.offset}:{line.line}"
        previous = self.hashes.get(line.partition)
        if previous is None:
            raise _Wrong(f"{name} lies in a partition that the header does not name")
        start, stop = header.ranges[str(line.partition)]
        if not start <= line.offset < stop:
            raise _Wrong(f"{name} lies outside the range of the header")
        if place <= self.last:
            raise _Wrong(f"{name} is out of order")
        if line.event is not None and line.event_base64 is not None:
            raise _Wrong(f"{name} stands there twice, as event and as event_base64")
        data = (
            b64decode(line.event_base64, validate=True) if line.event is None and line.event_base64 else None
        )
        data = (line.event or "").encode() if data is None else data
        if line.copied is not None:
            header_bytes = b64decode(line.copied, validate=True)
            previous = next_hash(previous, line.partition, line.offset, line.line, line.time, header_bytes)
        found = next_hash(previous, line.partition, line.offset, line.line, line.time, data)
        if found.hex() != line.hash:
            raise _Wrong(
                f"{name} does not have the hash that stands beside it: it or a line before it was changed"
            )
        self.hashes[line.partition] = found
        self.counts[line.partition] += 1
        self.last = place

    def _end(self, footer: AuditFooter) -> None:
        if footer.audit != "end":
            raise _Wrong("neither a line of the log nor the last line")
        counts = {str(partition): count for partition, count in self.counts.items()}
        final = {str(partition): value.hex() for partition, value in self.hashes.items()}
        if footer.counts != counts or footer.lines != sum(counts.values()):
            raise _Wrong(f"the last line counts {footer.lines} lines, {sum(counts.values())} were found")
        if footer.final != final:
            raise _Wrong("the last line names other final hashes than were found")
        self.ended = True
