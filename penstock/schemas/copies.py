"""Where copied lines stood before: the header of a record that a copy of a log is made of.

A copy holds the same lines on another log, with another number of partitions. What was decided about a job depends on
when and where its lines stood, so each copied record tells that of its lines, and the fold decides by it, up to the
line that seals the copy. The header is msgpack and small: a line that stood beside the one before it, in the same
record, costs a byte or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

from penstock.schemas.events import TimeMs
from penstock.schemas.limits import MAX_TIME_MS
from penstock.schemas.position import MAX_GENERATION, PACKED_MASK, ordinal

COPY_HEADER = "penstock-copy"
"""Name of the header."""


class CopiedPlace(NamedTuple):
    """Where a line stood: its packed position in the log it was copied from, and ordinal and log time (Unix ms) by
    which it counts. On a log that is no copy itself the ordinal is the position with the log's generation."""

    position: int
    ordinal: int
    time_ms: int


class CopiedFrom(Struct, frozen=True, array_like=True):
    """The lines of one record: all from one partition, and in their order there.

    ``steps`` lead from each line's position to the next, ``time_steps`` from each time; all times are alike where there
    are none. ``ordinals`` are there only for lines of which the source was a copy already.
    """

    copy: Annotated[str, Meta(min_length=1, max_length=256)]
    """Names the copy: records of another one are not of this log."""
    partition: Annotated[int, Meta(ge=0, lt=1 << 16)]
    """Of the source."""
    rules: Annotated[int, Meta(ge=1)]
    """Version that was in force where the lines stood."""
    generation: Annotated[int, Meta(ge=0, le=MAX_GENERATION)]
    """Of the source where they stood."""
    position: Annotated[int, Meta(ge=0, le=PACKED_MASK)]
    time_ms: TimeMs
    steps: tuple[Annotated[int, Meta(ge=1)], ...] = ()
    time_steps: tuple[int, ...] = ()
    ordinals: tuple[Annotated[int, Meta(ge=0, le=(1 << 63) - 1)], ...] = ()

    def places(self) -> list[CopiedPlace]:
        """Of each line.

        Raises:
            ValueError: there are not as many of one as of the other, or they are beyond what there can be.
        """
        positions = list(accumulate(self.steps, initial=self.position))
        times = list(accumulate(self.time_steps, initial=self.time_ms)) if self.time_steps else None
        if positions[-1] > PACKED_MASK or (times and (min(times) < 0 or max(times) > MAX_TIME_MS)):
            raise ValueError("no log has such places")
        ordinals = self.ordinals or [ordinal(self.generation, position) for position in positions]
        return [
            CopiedPlace(*place)
            for place in zip(positions, ordinals, times or [self.time_ms] * len(positions), strict=True)
        ]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(CopiedFrom).decode


def encode_copied_from(
    copy: str, partition: int, rules: int, generation: int, places: Sequence[CopiedPlace]
) -> bytes:
    """The header of lines that stood at ``places``: one or more, in ascending order of position."""
    first = places[0]
    times = tuple(after.time_ms - before.time_ms for before, after in pairwise(places))
    derived = all(place.ordinal == ordinal(generation, place.position) for place in places)
    return _encode(
        CopiedFrom(
            copy,
            partition,
            rules,
            generation,
            first.position,
            first.time_ms,
            tuple(after.position - before.position for before, after in pairwise(places)),
            times if any(times) else (),
            () if derived else tuple(place.ordinal for place in places),
        )
    )


def decode_copied_from(data: bytes) -> CopiedFrom | None:
    """The header, None where it cannot be read."""
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def copy_header(headers: Sequence[tuple[str, bytes]]) -> bytes | None:
    """The header's content among those of a record, None where there is none."""
    for name, content in headers:
        if name == COPY_HEADER:
            return content
    return None
