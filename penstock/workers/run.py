"""One handler's run, as the executor, its context and its progress share it."""

from __future__ import annotations

import asyncio
import threading

from penstock.workers.lease import HeldLease
from penstock.workers.outcome import StopReason


class Run:
    """A lease whose handler was started. Times are the monotonic clock's, ms.

    Written on the event loop only; a handler's thread reads ``stop`` and waits for ``stopping``.
    """

    __slots__ = (
        "deadline_ms", "in_thread", "lease", "pending_progress", "progress_ms", "progress_seq", "report_by_ms",
        "reported", "runner", "stop", "stop_detail", "stopping",
    )  # fmt: skip

    def __init__(self, lease: HeldLease, runner: asyncio.Task[None], in_thread: bool) -> None:
        self.lease = lease
        self.runner = runner
        self.in_thread = in_thread
        self.stop: StopReason | None = None
        self.stop_detail = ""
        self.stopping = threading.Event() if in_thread else None
        timeout_ms = lease.delivery.timeout_ms
        self.deadline_ms = lease.started_ms + timeout_ms if timeout_ms else 0.0
        """When it has run for its whole ``timeout_ms``; 0 is never."""
        self.report_by_ms = 0.0
        """Once stopped: when its outcome is told even if it still runs."""
        self.reported = False
        self.progress_seq = 0
        self.progress_ms = float("-inf")
        self.pending_progress: tuple[float | None, str] | None = None
        """Progress held back because the last was told only just before."""
