"""Lines that stand in a wrong partition, on their way to the right one.

Forwarded in log order, one batch in flight: the target keeps the highest origin it has taken from each source
and drops what is not above it, so a batch may be sent again as often as needed. ``Forwarded`` lines then
strike them off here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from penstock.orchestrator.outputs import Forward
from penstock.schemas.codec import decode_line, encode_line
from penstock.schemas.ids import partition_of
from penstock.schemas.limits import MAX_BUNDLE_BYTES
from penstock.schemas.position import unpack

BATCH_LINES = 1_000


class Forwarder:
    """Owed forwards of one led partition."""

    def __init__(self, partition: int, partitions: int) -> None:
        self._partition = partition
        self._partitions = partitions
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._in_flight: dict[int, list[tuple[int, int]]] = {}
        self._batches = 0

    def load(self, rows: Iterable[tuple[int, bytes]]) -> None:
        """Owed lines as of takeover: packed position and raw line, in log order."""
        self._waiting.extend(rows)

    def add(self, position: int, line: bytes) -> None:
        self._waiting.append((position, line))

    def __bool__(self) -> bool:
        return bool(self._waiting or self._in_flight)

    def next(self) -> list[Forward]:
        """The next batch, one part a target; nothing while one is in flight."""
        if self._in_flight or not self._waiting:
            return []
        lines: dict[int, list[bytes]] = {}
        places: dict[int, list[tuple[int, int]]] = {}
        size = 0
        while self._waiting and len(lines) < BATCH_LINES and size < MAX_BUNDLE_BYTES // 2:
            position, line = self._waiting.popleft()
            event = decode_line(line)
            target = partition_of(event.job, self._partitions)
            copy = msgspec.structs.replace(
                event, id=event.id or event.job, origin=str(unpack(self._partition, position))
            )
            lines.setdefault(target, []).append(encode_line(copy))
            places.setdefault(target, []).append((position, target))
            size += len(line)
        forwards: list[Forward] = []
        for target, of_target in lines.items():
            self._batches += 1
            self._in_flight[self._batches] = places[target]
            forwards.append(Forward(self._partition, target, self._batches, of_target))
        return forwards

    def landed(self, batch: int) -> list[tuple[int, int]]:
        """A part of the batch stands in its partition: packed position and target of each of its lines."""
        return self._in_flight.pop(batch, [])
