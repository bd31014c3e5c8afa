"""Positions name events for ever; fences order the holders of one job; tokens let a reader wait for its own write.

Inside a partition a position is one integer, ``offset << 15 | line``. Across partitions it is the triple, written
``partition:offset:line``.

A log that was copied begins its offsets anew, and what was decided on the old one still counts on the new one. So what
a job's rows say of places (``seen``, ``order``, the lease's) is an *ordinal*: the packed position with the log's
generation in front. On a log that is no copy the two are the same number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from penstock.schemas.errors import InvalidCursor

LINE_BITS = 15
LINE_MASK = (1 << LINE_BITS) - 1
OFFSET_BITS = 40
PACKED_BITS = OFFSET_BITS + LINE_BITS
PACKED_MASK = (1 << PACKED_BITS) - 1
MAX_GENERATION = 255


class Position(NamedTuple):
    """An event's place: partition, offset of its record, number of its line in the record (from 0)."""

    partition: int
    offset: int
    line: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}:{self.line}"

    @property
    def packed(self) -> int:
        return self.offset << LINE_BITS | self.line


def pack(offset: int, line: int) -> int:
    return offset << LINE_BITS | line


def unpack(partition: int, packed: int) -> Position:
    """The position; of an ordinal, without its generation."""
    return Position(partition, (packed & PACKED_MASK) >> LINE_BITS, packed & LINE_MASK)


def parse(text: str) -> Position:
    """Read ``partition:offset:line``.

    Raises:
        InvalidCursor: the text is not a position.
    """
    parts = text.split(":")
    if len(parts) == 3 and all(part.isascii() and part.isdigit() and len(part) <= 15 for part in parts):
        position = Position(*(int(part) for part in parts))
        # Beyond these bounds a packed position would no longer order lines, nor fit 64 bits.
        if position.offset >> OFFSET_BITS == 0 and position.line <= LINE_MASK:
            return position
    raise InvalidCursor(f"{text[:60]!r} is not a position (partition:offset:line)")


def ordinal(generation: int, packed: int) -> int:
    """A packed position with its log's generation in front: ``generation (8 bits) | offset (40) | line (15)``."""
    return generation << PACKED_BITS | packed


def generation_of(number: int) -> int:
    """The generation of the log in which an ordinal was given."""
    return number >> PACKED_BITS


def fence(leased_at: int) -> str:
    """The fencing token of a lease: the ordinal of its ``Leased``, in decimal. Fits a BIGINT."""
    return str(leased_at)


def token(positions: Iterable[Position]) -> str:
    """Position token of a write: the highest position of each partition it touched, comma separated."""
    highest: dict[int, Position] = {}
    for position in positions:
        if position.partition not in highest or position > highest[position.partition]:
            highest[position.partition] = position
    return ",".join(str(highest[partition]) for partition in sorted(highest))


def parse_token(text: str) -> Mapping[int, Position]:
    """Positions by partition of a token.

    Raises:
        InvalidCursor: the text is not a token.
    """
    found: dict[int, Position] = {}
    for part in text.split(","):
        position = parse(part.strip())
        if position.partition not in found or position > found[position.partition]:
            found[position.partition] = position
    return found
