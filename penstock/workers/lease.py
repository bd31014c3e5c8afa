"""A job in a worker's hands: from the moment it is delivered until the log has its outcome."""

from __future__ import annotations

import math
from collections.abc import Callable

from msgspec import Struct

from penstock.log.bundler import LinePosition
from penstock.schemas.messages import Delivery


class HeldLease(Struct, eq=False):
    """A lease that this worker holds. Times are the monotonic clock's, ms.

    The runtime writes ``started_ms`` and ``ended_ms``; the transport everything else.
    """

    delivery: Delivery
    received_ms: float
    started_ms: float = 0.0
    """When its handler was started; 0 while it waits."""
    ended_ms: float = 0.0
    line: bytes = b""
    """The outcome on its way to the log; empty while there is none."""
    lost_reason: str = ""
    """Why it is no longer held; empty while it is."""
    cancel_reason: str | None = None
    """Why it is to stop, once that was asked for."""
    renew_until_ms: float = math.inf
    """Heartbeats name it until then."""
    on_written: Callable[[HeldLease, LinePosition], None] | None = None

    @property
    def id(self) -> str:
        return self.delivery.lease

    @property
    def finished(self) -> bool:
        """Whether it has an outcome, written or on its way."""
        return bool(self.line)

    def run_ms(self, now_ms: float) -> int:
        """How long its handler has run; 0 while it waits, at least 1 once it runs."""
        if not self.started_ms:
            return 0
        run_ms = int((self.ended_ms or now_ms) - self.started_ms)
        return run_ms if run_ms > 0 else 1

    # What the writer of outcomes asks of a line

    @property
    def wanted(self) -> bool:
        """Whether the outcome is still worth another try."""
        return not self.lost_reason

    def written(self, position: LinePosition) -> None:
        """The log has the outcome."""
        if self.on_written is not None:
            self.on_written(self, position)

    def gave_up(self, error: Exception) -> None:
        """The outcome will not be written: nothing is gained by naming the lease any longer, and it runs out."""
        self.renew_until_ms = -math.inf
