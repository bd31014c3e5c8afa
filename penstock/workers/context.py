"""What a handler knows about its job, and what it can tell while it runs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping, MutableMapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import msgspec

from penstock.schemas.messages import Delivery
from penstock.workers.errors import JobStopped
from penstock.workers.outcome import StopReason
from penstock.workers.progress import ProgressReporter, checkpoint_bytes, progress_message
from penstock.workers.run import Run

_logger = logging.getLogger("penstock.job")


class Context:
    """A running job, from inside its handler. Ask for it by a parameter annotated ``Context``.

    The same in ``async def`` and ``def`` handlers. What writes (:meth:`progress`, :meth:`save`) is awaited on
    the event loop, and waits by itself in a thread, where its answer can be ignored.
    """

    def __init__(self, run: Run, reporter: ProgressReporter, wall_ms: int) -> None:
        self._run = run
        self._reporter = reporter
        self._delivery = run.lease.delivery
        self._started_at = datetime.fromtimestamp(wall_ms / 1000, UTC)

    # The job

    @property
    def job_id(self) -> str:
        return self._delivery.job

    @property
    def tenant(self) -> str:
        return self._delivery.tenant

    @property
    def job_type(self) -> str:
        return self._delivery.job_type

    @property
    def queue(self) -> str:
        return self._delivery.queue

    @property
    def priority(self) -> str:
        return self._delivery.priority

    @property
    def attempt(self) -> int:
        """1 for the first."""
        return self._delivery.attempt

    @property
    def max_attempts(self) -> int:
        return self._delivery.max_attempts

    @property
    def lease(self) -> str:
        """Names this attempt."""
        return self._delivery.lease

    @property
    def fence(self) -> str:
        """The fencing token, decimal; grows with every attempt of the job. Fits a BIGINT.

        Hand it to whatever this job writes to and let that refuse a smaller one than it has seen.
        """
        return self._delivery.fence

    @property
    def trace(self) -> str:
        """The producer's W3C traceparent, or empty."""
        return self._delivery.trace

    @property
    def started_at(self) -> datetime:
        return self._started_at

    @property
    def deadline(self) -> datetime | None:
        """When this attempt is ended by its ``timeout_ms``; None if it has none."""
        timeout_ms = self._delivery.timeout_ms
        return self._started_at + timedelta(milliseconds=timeout_ms) if timeout_ms else None

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        return msgspec.json.decode(self._delivery.metadata) or {}

    @cached_property
    def checkpoint(self) -> Any:
        """The last checkpoint that was saved, by this attempt or one before it; None if there is none."""
        return msgspec.json.decode(self._delivery.checkpoint)

    @cached_property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger (``penstock.job``) whose records carry ``job``, ``job_type``, ``attempt`` and ``lease``."""
        return _JobLogger(_logger, job_fields(self._delivery))

    # Stopping

    @property
    def cancelled(self) -> bool:
        """Whether to stop: cancelled, timed out, shutting down, or the lease lost. See :attr:`stop_reason`.

        In a thread this flag is all there is; on the event loop the handler is cancelled as well.
        """
        return self._run.stop is not None

    @property
    def stop_reason(self) -> StopReason | None:
        """``cancelled``, ``timeout``, ``shutdown`` or ``lost``; None while there is none."""
        return self._run.stop

    def raise_if_cancelled(self) -> None:
        """Raise JobStopped if the handler is to stop."""
        if self._run.stop is not None:
            raise JobStopped(self._run.stop)

    def sleep(self, seconds: float) -> None:
        """Sleep in a thread, and wake with JobStopped if the handler is to stop."""
        if self._run.stopping is None:
            raise RuntimeError("ctx.sleep is for handlers in threads; on the event loop await asyncio.sleep")
        self._run.stopping.wait(seconds)
        self.raise_if_cancelled()

    # Telling

    def progress(
        self, percent: float | None = None, message: str = "", checkpoint: Any = None
    ) -> Awaitable[None]:
        """Tell how far the job is; ``percent`` from 0 to 100.

        With a checkpoint (anything JSON can say, at most 128 KiB) it is durable when this was awaited (in a
        thread: when it returns), and the next attempt finds it in :attr:`checkpoint`. Without one it is told at
        most four times a second, and costs nothing to await.

        Raises:
            LeaseLost: with a checkpoint, and the lease is no longer held.
            InvalidField, TooLarge: the checkpoint cannot be kept.
        """
        return self._report(
            percent, message, None if checkpoint is None else checkpoint_bytes(checkpoint), checkpoint
        )

    def save(self, checkpoint: Any) -> Awaitable[None]:
        """Save a checkpoint, None included, without telling progress. As durable, and raises, as
        :meth:`progress`.
        """
        return self._report(None, "", checkpoint_bytes(checkpoint), checkpoint)

    def _report(
        self, percent: float | None, message: str, encoded: bytes | None, checkpoint: Any
    ) -> Awaitable[None]:
        if percent is not None:
            percent = min(max(float(percent), 0.0), 100.0)
        saved = self._reporter.report(self._run, percent, progress_message(message), encoded)
        if encoded is not None:
            self.checkpoint = checkpoint
        return saved


def job_fields(delivery: Delivery) -> dict[str, Any]:
    """Fields of a job for structured logs."""
    return {
        "job": delivery.job,
        "tenant": delivery.tenant,
        "job_type": delivery.job_type,
        "attempt": delivery.attempt,
        "lease": delivery.lease,
    }


class _JobLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the job's fields to what the caller gave as ``extra``."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs
