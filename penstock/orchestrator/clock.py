"""The log's time, as far as an orchestrator can know it: what the log stamped last, and the time that passed since.

A record's stamp is never later than the log's clock when the record was read, so each one seen is a lower
bound. The best of the last minute wins. Until something was seen, the machine's own clock serves.
"""

from __future__ import annotations

import time
from collections import deque

from penstock.orchestrator.outputs import Now
from penstock.schemas.errors import PenstockError

MAX_SKEW_MS = 60_000
_WINDOW_MS = 60_000


class ClockSkewed(PenstockError):
    """This machine's clock and the log's are more than a minute apart; timers would fire at wrong times."""

    code = "clock_skewed"


class LogClock:
    """Two clocks in one: see :class:`penstock.orchestrator.outputs.Now`."""

    def __init__(self) -> None:
        self._offsets: deque[tuple[int, int]] = deque()

    def now(self) -> Now:
        mono_ms = time.monotonic_ns() // 1_000_000
        wall_ms = time.time_ns() // 1_000_000
        log_ms = mono_ms + self._offsets[0][1] if self._offsets else wall_ms
        return Now(log_ms, mono_ms, wall_ms)

    def observe(self, stamp_ms: int, sent_ms: int) -> None:
        """A record was read that this process sent at ``sent_ms`` by its own clock and that the log stamped.

        Raises:
            ClockSkewed: the log's clock and this machine's differ by more than a minute.
        """
        mono_ms = time.monotonic_ns() // 1_000_000
        if abs(sent_ms - stamp_ms) > MAX_SKEW_MS:
            raise ClockSkewed(
                f"the log said {stamp_ms} when it was {sent_ms} here (Unix ms): set the clocks before going on"
            )
        offset = stamp_ms - mono_ms
        while self._offsets and self._offsets[-1][1] <= offset:
            self._offsets.pop()
        self._offsets.append((mono_ms, offset))
        while mono_ms - self._offsets[0][0] > _WINDOW_MS:
            self._offsets.popleft()
