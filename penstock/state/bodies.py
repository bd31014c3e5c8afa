"""Payloads, metadata, checkpoints and results of jobs, as raw JSON, beside the rows that hold only their hashes.

They are no part of the fold's state (the digest covers them by hash), but who delivers or shows a job needs them. A
body that is JSON null is not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Literal

from penstock.core.partition import Folded
from penstock.log.kv import Batch, Family
from penstock.schemas import events as ev

BODIES = "bodies"
"""Family of the store."""

BodyKind = Literal["payload", "metadata", "checkpoint", "result"]
BODY_KINDS: tuple[BodyKind, ...] = ("payload", "metadata", "checkpoint", "result")

_SUFFIX: dict[BodyKind, bytes] = {
    "payload": b"\x00p",
    "metadata": b"\x00m",
    "checkpoint": b"\x00c",
    "result": b"\x00r",
}
_SUFFIXES = tuple(_SUFFIX.values())
_NULL = b"null"


def body_row_key(key: str, kind: BodyKind) -> bytes:
    """Where a job's body is stored."""
    return key.encode() + _SUFFIX[kind]


class Bodies:
    """Bodies of one partition's jobs: the stored ones, and on top of them those not yet committed."""

    __slots__ = ("_get", "_multi_get", "_pending", "pending_bytes")

    def __init__(self, family: Family) -> None:
        self._get: Callable[[bytes], bytes | None] = family.get
        self._multi_get: Callable[[Sequence[bytes]], list[bytes | None]] = family.multi_get
        self._pending: dict[bytes, bytes | None] = {}
        self.pending_bytes = 0
        """Bytes that wait to be committed."""

    def take(self, lines: Iterable[Folded]) -> None:
        """Keep the bodies of accepted lines; drop those of forgotten jobs."""
        takers = self._takers
        for line in lines:
            if line.outcome == "applied":
                take = takers.get(type(line.event))
                if take is not None:
                    take(self, line)

    def get(self, key: str, kind: BodyKind) -> bytes | None:
        row = body_row_key(key, kind)
        if row in self._pending:
            return self._pending[row]
        return self._get(row)

    def get_many(self, wanted: Sequence[tuple[str, BodyKind]]) -> list[bytes | None]:
        """One body for each (job key, kind), None where there is none."""
        rows = [body_row_key(key, kind) for key, kind in wanted]
        if not self._pending:
            return self._multi_get(rows)
        stored = self._multi_get(rows)
        return [self._pending.get(row, value) for row, value in zip(rows, stored, strict=True)]

    def write(self, batch: Batch) -> None:
        """Put what is pending into ``batch``."""
        for row, data in self._pending.items():
            if data is None:
                batch.delete(BODIES, row)
            else:
                batch.put(BODIES, row, data)

    def written(self) -> None:
        """What was pending is stored now."""
        self._pending.clear()
        self.pending_bytes = 0

    def _put(self, row: bytes, body: bytes, *, replaces: bool) -> None:
        if body != _NULL:
            self._pending[row] = body
            self.pending_bytes += len(body)
        elif replaces:
            self._pending[row] = None

    # What each event brings. An applied `Enqueued` finds no job, and `Forgotten` has deleted what an earlier life left.

    def _enqueued(self, line: Folded) -> None:
        event = line.event
        assert isinstance(event, ev.Enqueued)
        key = line.key.encode()
        self._put(key + b"\x00p", bytes(event.payload), replaces=False)
        if event.metadata is not ev.NULL:
            self._put(key + b"\x00m", bytes(event.metadata), replaces=False)

    def _progressed(self, line: Folded) -> None:
        event = line.event
        assert isinstance(event, ev.Progressed)
        if event.checkpoint is not None:
            self._put(line.key.encode() + b"\x00c", bytes(event.checkpoint), replaces=True)

    def _succeeded(self, line: Folded) -> None:
        event = line.event
        assert isinstance(event, ev.Succeeded)
        if event.result is not ev.NULL:
            self._put(line.key.encode() + b"\x00r", bytes(event.result), replaces=False)

    def _forgotten(self, line: Folded) -> None:
        key = line.key.encode()
        for suffix in _SUFFIXES:
            self._pending[key + suffix] = None

    _takers: ClassVar[dict[type, Callable[[Bodies, Folded], None]]] = {
        ev.Enqueued: _enqueued,
        ev.Progressed: _progressed,
        ev.Succeeded: _succeeded,
        ev.Forgotten: _forgotten,
    }
