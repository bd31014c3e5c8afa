"""One handler's run, as the executor, its context and its progress share it."""

from __future__ import annotations

import asyncio
import threading

from msgspec import Struct

from penstock.workers.lease import HeldLease
from penstock.workers.outcome import StopReason


class Run(Struct, eq=False):
    """A lease whose handler was started. Times are the monotonic clock's, ms.

    Written on the event loop only; a handler's thread reads ``stop`` and waits for ``stopping``.
    """

    lease: HeldLease
    runner: asyncio.Task[None]
    in_thread: bool = False
    """Whether it is in a thread now, where it cannot be cancelled and ``stopping`` tells it to stop."""
    stop: StopReason | None = None
    stop_detail: str = ""
    stopping: threading.Event | None = None
    deadline_ms: float = 0.0
    """When it has run for its whole ``timeout_ms``; 0 is never."""
    report_by_ms: float = 0.0
    """Once stopped: when its outcome is told even if it still runs."""
    reported: bool = False
    progress_seq: int = 0
    progress_ms: float = float("-inf")
    pending_progress: tuple[float | None, str] | None = None
    """Progress held back because the last was told only just before."""

    def __post_init__(self) -> None:
        timeout_ms = self.lease.delivery.timeout_ms
        if timeout_ms:
            self.deadline_ms = self.lease.started_ms + timeout_ms

    def enter_thread(self) -> None:
        """What comes runs in a thread."""
        self.stopping = threading.Event()
        self.in_thread = True
