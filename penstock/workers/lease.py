"""A job in a worker's hands: from the moment it is delivered until the log has its outcome."""

from __future__ import annotations

import math
from collections.abc import Callable

from penstock.log.bundler import LinePosition
from penstock.schemas.messages import Delivery


class HeldLease:
    """A lease that this worker holds. Times are the monotonic clock's, ms.

    The runtime writes ``started_ms`` and ``ended_ms``; the transport everything else.
    """

    __slots__ = (
        "cancel_reason", "delivery", "ended_ms", "line", "lost_reason", "on_written", "received_ms",
        "renew_until_ms", "started_ms",
    )  # fmt: skip

    def __init__(self, delivery: Delivery, received_ms: float) -> None:
        self.delivery = delivery
        self.received_ms = received_ms
        self.started_ms = 0.0
        """When its handler was started; 0 while it waits."""
        self.ended_ms = 0.0
        self.line = b""
        """The outcome on its way to the log; empty while there is none."""
        self.lost_reason = ""
        """Why it is no longer held; empty while it is."""
        self.cancel_reason: str | None = None
        """Why it is to stop, once that was asked for."""
        self.renew_until_ms = math.inf
        """Heartbeats name it until then."""
        self.on_written: Callable[[HeldLease, LinePosition], None] | None = None

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
        return max(1, int((self.ended_ms or now_ms) - self.started_ms))

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
