"""What a worker remembers of leases it no longer holds, so that a late or repeated message does no harm.

Deliveries and signals may come late, twice, or in the wrong order for as long as their topics keep them. Pure:
time (the monotonic clock's ms) is an argument. Bounded by age, by count and by bytes; what is forgotten early
costs a rerun that the fold refuses, never a wrong result.
"""

from __future__ import annotations

from collections import OrderedDict

from penstock.schemas.topics import HINT_RETENTION_MS


class FinishedLeases:
    """Ids of leases that ended here, with the line that said how."""

    def __init__(self, *, max_leases: int = 200_000, max_bytes: int = 32_000_000) -> None:
        self._max_leases = max_leases
        self._max_bytes = max_bytes
        self._lines: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    def __contains__(self, lease: str) -> bool:
        return lease in self._lines

    def __len__(self) -> int:
        return len(self._lines)

    def remember(self, lease: str, line: bytes, now_ms: float) -> None:
        """A line too large to keep among many is remembered as empty: known, not to be repeated."""
        if len(line) > self._max_bytes // 64:
            line = b""
        self.forget(lease)
        self._lines[lease] = (now_ms + HINT_RETENTION_MS, line)
        self._bytes += len(line)
        while self._bytes > self._max_bytes or len(self._lines) > self._max_leases:
            self._drop_oldest()

    def line(self, lease: str) -> bytes | None:
        """The outcome as written; empty if it was not kept; None if the lease is not known."""
        found = self._lines.get(lease)
        return None if found is None else found[1]

    def forget(self, lease: str) -> None:
        found = self._lines.pop(lease, None)
        if found is not None:
            self._bytes -= len(found[1])

    def prune(self, now_ms: float) -> None:
        """Forget what no message can be about any more."""
        while self._lines and next(iter(self._lines.values()))[0] <= now_ms:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, (_, line) = self._lines.popitem(last=False)
        self._bytes -= len(line)


class Tombstones:
    """Signals about leases that are not known yet: the delivery may come behind them."""

    def __init__(self, *, max_leases: int = 10_000) -> None:
        self._max_leases = max_leases
        self._signals: OrderedDict[str, tuple[float, str, str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._signals)

    def put(self, lease: str, kind: str, reason: str, now_ms: float) -> None:
        """``kind`` is ``cancel`` or ``gone``; gone is never overwritten."""
        if self.kind(lease) == "gone":
            return
        self._signals[lease] = (now_ms + HINT_RETENTION_MS, kind, reason)
        if len(self._signals) > self._max_leases:
            self._signals.popitem(last=False)

    def kind(self, lease: str) -> str:
        """``cancel``, ``gone``, or empty."""
        found = self._signals.get(lease)
        return found[1] if found else ""

    def forget(self, lease: str) -> None:
        self._signals.pop(lease, None)

    def prune(self, now_ms: float) -> None:
        while self._signals and next(iter(self._signals.values()))[0] <= now_ms:
            self._signals.popitem(last=False)
