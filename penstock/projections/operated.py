"""What operations on many jobs have done: which verb of which operation had which outcome, counted.

An operation asks each of its jobs with a verb whose event id names the operation, so what became of each stands on the
log, and this view is folded from there: it is right whoever worked on the operation, and however often that was begun
again.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from penstock.core.partition import Folded
from penstock.log.kv import Batch, KeyValueStore
from penstock.projections.rows import OPERATED, after_prefix, encode, number
from penstock.schemas.ids import operation_of


class OperatedRow(msgspec.Struct, frozen=True, array_like=True):
    """What became of one job. ``time_ms`` is the log's."""

    outcome: str
    reason: str
    time_ms: int


_decode = msgspec.msgpack.Decoder(OperatedRow).decode
_decode_counts = msgspec.msgpack.Decoder(dict[str, int]).decode

AGAIN = "duplicate"
"""A verb that was sent again: what became of it is known already."""


_BEGUN = b"\xff"
"""Begins the keys of rows that tell when an operation began here: no id begins so."""


def _prefix(operation: str) -> bytes:
    return operation.encode() + b"\0"


class Operated:
    """The rows of one partition. Those taken wait in memory for the commit."""

    def __init__(self, kv: KeyValueStore) -> None:
        self._kv = kv
        self._taken: dict[str, dict[str, OperatedRow]] = {}

    def take(self, line: Folded) -> None:
        """A verb was folded."""
        event = line.event
        operation = "" if event is None else operation_of(event.id)
        if operation and event is not None and line.outcome != AGAIN:
            rows = self._taken.setdefault(operation, {})
            rows[event.job] = OperatedRow(line.outcome, line.reason, line.time_ms)

    def write(self, batch: Batch) -> None:
        """Put what was taken into a commit."""
        for operation, rows in self._taken.items():
            prefix = _prefix(operation)
            counts = self.counts(operation)
            names = list(rows)
            if not counts:
                began_ms = min(row.time_ms for row in rows.values())
                batch.put(OPERATED, _BEGUN + number(began_ms) + operation.encode(), b"")
            known = self._kv.multi_get(OPERATED, [prefix + name.encode() for name in names])
            for name, data in zip(names, known, strict=True):
                row = rows[name]
                if data is not None:
                    counts[_decode(data).outcome] -= 1
                counts[row.outcome] = counts.get(row.outcome, 0) + 1
                batch.put(OPERATED, prefix + name.encode(), encode(row))
            batch.put(OPERATED, prefix, encode({name: jobs for name, jobs in counts.items() if jobs}))

    def written(self) -> None:
        """What was taken is stored."""
        self._taken.clear()

    # Reading

    def counts(self, operation: str) -> dict[str, int]:
        """Jobs by outcome."""
        data = self._kv.get(OPERATED, _prefix(operation))
        return {} if data is None else _decode_counts(data)

    def rows(self, operation: str, after: str, limit: int) -> Iterator[tuple[str, OperatedRow]]:
        """Job id and row of the first jobs behind ``after``, by id."""
        prefix = _prefix(operation)
        start = prefix + after.encode() + b"\0"
        for key, data in self._kv.scan(OPERATED, start, after_prefix(prefix), limit=limit):
            yield key[len(prefix) :].decode(), _decode(data)


def remove_operated(kv: KeyValueStore, before_ms: int, limit: int) -> int:
    """Remove rows of operations that began before a log time here, some at a time; how many there were."""
    batch = kv.batch()
    found = 0
    for begun, _ in kv.scan(OPERATED, _BEGUN, _BEGUN + number(max(0, before_ms)), limit=1):
        prefix = begun[len(_BEGUN) + 8 :] + b"\0"
        for key, _ in kv.scan(OPERATED, prefix, after_prefix(prefix), limit=limit):
            batch.delete(OPERATED, key)
            found += 1
        if found < limit:
            batch.delete(OPERATED, begun)
            found += 1
    if found:
        kv.write(batch)
    return found
