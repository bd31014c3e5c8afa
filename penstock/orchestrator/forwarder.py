"""Lines that stand in a wrong partition, on their way to the right one.

Forwarded in log order, one batch in flight: the target keeps the highest origin it has taken from each source
and drops what is not above it, so a batch may be sent again as often as needed. ``Forwarded`` lines then
strike them off here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import msgspec

from penstock.orchestrator.outputs import Forward
from penstock.schemas.codec import decode_line, encode_line
from penstock.schemas.ids import partition_of
from penstock.schemas.limits import MAX_BUNDLE_BYTES
from penstock.schemas.position import unpack

BATCH_LINES = 1_000
AGAIN_MS = 5_000


class Forwarder:
    """Owed forwards of one led partition."""

    def __init__(self, partition: int, partitions: int, batches: Iterator[int]) -> None:
        """``batches`` numbers them: never twice in a process, or an old one's landing would pass for a new one's."""
        self._partition = partition
        self._partitions = partitions
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._in_flight: dict[int, list[tuple[int, int]]] = {}
        self._batches = batches
        self._landed: dict[int, tuple[int, int]] = {}
        """Target of each line that stands there, and when its striking off was last written, ms; 0 is never."""

    def load(self, rows: Iterable[tuple[int, bytes]]) -> None:
        """Owed lines as of takeover: packed position and raw line, in log order."""
        self._waiting.extend(rows)

    def add(self, position: int, line: bytes) -> None:
        self._waiting.append((position, line))

    def __bool__(self) -> bool:
        return bool(self._waiting or self._in_flight or self._landed)

    def next(self) -> list[Forward]:
        """The next batch, one part a target; nothing while one is in flight."""
        if self._in_flight or not self._waiting:
            return []
        lines: dict[int, list[bytes]] = {}
        places: dict[int, list[tuple[int, int]]] = {}
        size = count = 0
        # A part must fit into one record: were it cut in two and the first half late, its target would drop that.
        while self._waiting and count < BATCH_LINES and (
            not count or size + len(self._waiting[0][1]) <= MAX_BUNDLE_BYTES // 2
        ):  # fmt: skip
            position, line = self._waiting.popleft()
            count += 1
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
            batch = next(self._batches)
            self._in_flight[batch] = places[target]
            forwards.append(Forward(self._partition, target, batch, of_target))
        return forwards

    def landed(self, batch: int) -> None:
        """A part of the batch stands in its partition."""
        for position, target in self._in_flight.pop(batch, []):
            self._landed[position] = (target, 0)

    def to_strike_off(self, now_ms: int) -> list[tuple[int, int]]:
        """Packed position and target of landed lines; each again, now and then, until :meth:`struck_off`."""
        due = [
            (position, target)
            for position, (target, written_ms) in self._landed.items()
            if not written_ms or now_ms - written_ms >= AGAIN_MS
        ]
        for position, target in due:
            self._landed[position] = (target, max(1, now_ms))
        return due

    def struck_off(self, position: int) -> None:
        """The fold knows that the line at this position is forwarded."""
        self._landed.pop(position, None)
