"""From the records of a log to those of its copy: which lines are copied, and how they are put together again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from penstock.core.partition import Folded, decided_by_its_job
from penstock.log.port import Headers, Record
from penstock.log.sizes import record_bytes
from penstock.schemas import events as ev
from penstock.schemas.codec import bundle
from penstock.schemas.copies import (
    COPY_HEADER,
    CopiedPlace,
    copy_header,
    decode_copied_from,
    encode_copied_from,
)
from penstock.schemas.limits import MAX_BUNDLE_BYTES, MAX_BUNDLE_LINES
from penstock.schemas.position import LINE_MASK, ordinal

MAX_RECORD_BYTES = 1_000_000
"""Value and header of a copied record; a topic takes a little more."""


class CopiedLine(NamedTuple):
    """A line of the source: where and when it counted, and under which rules."""

    job: str
    data: bytes
    place: CopiedPlace
    rules: int
    generation: int
    """Of the source, where the line stands."""


class SourceLines:
    """One partition of the source, folded from its first record on."""

    def __init__(self, partition: int, partitions: int) -> None:
        self.partition = partition
        self._partitions = partitions
        self._generation = 0
        self._rules = 1

    def of(self, record: Record, folded: Sequence[Folded]) -> Iterator[CopiedLine]:
        """The lines of the next record that are to be copied; ``folded`` is what the fold made of it."""
        header = copy_header(record.headers)
        source = None if header is None else decode_copied_from(header)
        # The source may be a copy itself: below its seal, lines counted by what their header says.
        places = [] if source is None or not _taken(folded) else source.places()
        for line in folded:
            event = line.event
            if decided_by_its_job(line, self.partition, self._partitions):
                assert event is not None
                rules = self._rules if source is None else source.rules
                place = CopiedPlace(line.position, ordinal(self._generation, line.position), line.time_ms)
                if places:
                    place = place._replace(ordinal=places[line.position & LINE_MASK].ordinal)
                yield CopiedLine(event.job, line.line, place, rules, self._generation)
            elif line.outcome != "applied":
                continue
            elif isinstance(event, ev.RulesActivated):
                self._rules = event.version
            elif isinstance(event, ev.CopySealed):
                self._generation, self._rules = event.generation, event.rules


def _taken(folded: Sequence[Folded]) -> bool:
    return any(line.key for line in folded)


def copied_records(copy: str, partition: int, lines: Sequence[CopiedLine]) -> Iterator[tuple[bytes, Headers]]:
    """Values and headers of the records that hold these lines, of one partition of the source and in its order."""
    start = size = 0
    for index, line in enumerate(lines):
        full = size + len(line.data) + 1 > MAX_BUNDLE_BYTES or index - start == MAX_BUNDLE_LINES
        first = lines[start]
        if index > start and (full or (line.rules, line.generation) != (first.rules, first.generation)):
            yield from _records(copy, partition, lines[start:index])
            start, size = index, 0
        size += len(line.data) + 1
    if start < len(lines):
        yield from _records(copy, partition, lines[start:])


def _records(copy: str, partition: int, lines: Sequence[CopiedLine]) -> Iterator[tuple[bytes, Headers]]:
    value = bundle([line.data for line in lines])
    rules, generation = lines[0].rules, lines[0].generation
    header = encode_copied_from(copy, partition, rules, generation, [line.place for line in lines])
    headers: Headers = ((COPY_HEADER, header),)
    if len(lines) > 1 and record_bytes(value, None, headers) > MAX_RECORD_BYTES:
        half = len(lines) // 2
        yield from _records(copy, partition, lines[:half])
        yield from _records(copy, partition, lines[half:])
        return
    yield value, headers
