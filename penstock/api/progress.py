"""Whether projections move: what readiness goes by."""

from __future__ import annotations


class ProgressWatch:
    """Tells a partition that is behind but folding from one that is stuck: by how far it came since last asked."""

    def __init__(self) -> None:
        self._moved: dict[int, tuple[int, int]] = {}

    def stalled_ms(self, partition: int, next_offset: int, end_offset: int, now_ms: int) -> int:
        """How long it has been behind without any progress; 0 when it is not behind or came further."""
        known = self._moved.get(partition)
        if known is None or known[0] != next_offset or next_offset >= end_offset:
            self._moved[partition] = (next_offset, now_ms)
            return 0
        return now_ms - known[1]
