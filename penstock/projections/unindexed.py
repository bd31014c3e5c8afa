"""What the text index has yet to take in: the jobs whose texts changed, by the offset that the commit reached.

::

    fold ──▶ commit: {next offset: jobs whose payload, tags, type or errors changed} ──▶ indexer ──▶ text index
                                                                        │                               │ on the disk
                                                                        └◀── rows are let go, ◀─────────┘
                                                                             "all below this offset is taken"

The rows come in the same batch as the fold's own, so none can be missed, and go only once the index is on the disk. A
search looks at the jobs that they name besides what the index says, and is never behind. Where nothing indexes, no rows
are kept, nor the note of how far an index once was: one that is switched on later begins with all jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from penstock.core.job_state import Job
from penstock.log.kv import Batch, KeyValueStore
from penstock.projections.rows import UNINDEXED, encode, number

Note = tuple[str, bool]
"""A job's key, and whether its life began with this commit."""

_TAKEN = b"\xff"
"""Key of the row with the offset below which an index has all. Offsets begin with a zero byte."""

_decode_notes = msgspec.msgpack.Decoder(list[Note]).decode


class Noted(NamedTuple):
    """What one commit told. ``offset`` is the next that it left to fold."""

    offset: int
    notes: list[Note]


class Unindexed:
    """The rows of one partition. What is noted waits in memory for the commit.

    Args:
        kept: whether an index takes them in.
    """

    def __init__(self, kv: KeyValueStore, *, kept: bool) -> None:
        self._kept = kept
        self._kv = kv
        self._notes: list[Note] = []
        self._left_over = not kept and next(kv.scan(UNINDEXED, limit=1), None) is not None
        self.jobs = sum(len(row.notes) for row in self.rows()) if kept else 0
        """How many notes are stored; a job may have several."""

    def note(self, key: str, before: Job | None, after: Job | None, *, failed: bool) -> None:
        """A job changed between two commits; ``failed``: so did its errors."""
        if self._kept and (before is None or after is None or failed or _text_changed(before, after)):
            self._notes.append((key, before is None))

    def write(self, batch: Batch, next_offset: int) -> None:
        """Put what was noted into a commit."""
        if self._left_over:
            batch.delete_range(UNINDEXED, b"", _TAKEN + b"\0")
        if self._notes:
            batch.put(UNINDEXED, number(next_offset), encode(self._notes))

    def written(self) -> None:
        """What was noted is stored."""
        self._left_over = False
        self.jobs += len(self._notes)
        self._notes = []

    # The indexer's side

    @property
    def taken(self) -> int | None:
        """Offset below which some index has all; None where that is not known of any."""
        data = self._kv.get(UNINDEXED, _TAKEN)
        return None if data is None else int.from_bytes(data, "big")

    def rows(self, behind: int = 0) -> Iterator[Noted]:
        """Rows of commits that went beyond an offset, oldest first."""
        for key, data in self._kv.scan(UNINDEXED, number(behind + 1), _TAKEN):
            yield Noted(int.from_bytes(key, "big"), _decode_notes(data))

    def take_away(self, offset: int) -> None:
        """An index on the disk has all below an offset."""
        gone = 0
        batch = self._kv.batch()
        for row in self.rows():
            if row.offset > offset:
                break
            gone += len(row.notes)
            batch.delete(UNINDEXED, number(row.offset))
        batch.put(UNINDEXED, _TAKEN, number(offset))
        self._kv.write(batch)
        self.jobs -= gone

    def newest(self) -> set[str]:
        """Keys of all jobs that are noted."""
        return {key for row in self.rows() for key, _ in row.notes}


def _text_changed(before: Job, after: Job) -> bool:
    return (
        before.payload_hash != after.payload_hash
        or before.created_at_ms != after.created_at_ms
        or before.job_type != after.job_type
        or before.tags != after.tags
    )
