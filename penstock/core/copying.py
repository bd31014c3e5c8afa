"""Which lines a partition takes while a copy of another log is written into it.

A partition becomes part of a copy by its very first record, and stops being one at ``CopySealed``. In between it takes
copied lines of that copy and nothing else; before and after, it takes no copied line at all. So a copied time and place
is believed only where nobody has decided anything yet, and a record that arrives late or twice changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from penstock.core.rows import PartitionState
from penstock.schemas.copies import CopiedFrom, CopiedPlace, decode_copied_from
from penstock.schemas.events import CopySealed
from penstock.schemas.position import generation_of

FOREIGN = "the partition is being copied, and this line is not of the copy"
NOT_COPYING = "copied lines are taken below the seal of a copy only"
UNREADABLE = "the header does not tell where the lines stood"
ALREADY_COPIED = "already copied"
NOT_ABOUT_A_JOB = "only lines about jobs are copied"

COPY_REFUSALS = frozenset({FOREIGN, NOT_COPYING, UNREADABLE, ALREADY_COPIED, NOT_ABOUT_A_JOB})


class Copied(NamedTuple):
    """A record that may be taken: its header, and the place of each of its lines."""

    source: CopiedFrom
    places: list[CopiedPlace]

    @property
    def generation(self) -> int:
        """The highest of its lines."""
        return max(generation_of(place.ordinal) for place in self.places)


def untouched(state: PartitionState) -> bool:
    """Whether the partition has never had a line."""
    return not (state.accepted or state.refused or state.quarantined or state.generation)


def opened(state: PartitionState, header: bytes, lines: int) -> Copied | str:
    """A copied record of so many lines, or why it is not taken."""
    source = decode_copied_from(header)
    if source is None:
        return UNREADABLE
    if not state.copying and not untouched(state):
        return NOT_COPYING
    if state.copying and source.copy != state.copying:
        return FOREIGN
    try:
        places = source.places()
    except ValueError:
        return UNREADABLE
    return Copied(source, places) if len(places) == lines else UNREADABLE


def seals(state: PartitionState, event: CopySealed) -> str:
    """Why this line does not end the copy; empty if it does."""
    if not event.copy or (event.copy != state.copying if state.copying else not untouched(state)):
        return "no such copy is being written here"
    if event.generation <= max(0, state.copied_generation):
        return "the generation must be above that of every copied line"
    return ""
