"""Telling how far a handler is: durable with a checkpoint, now and then without one."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from msgspec import Raw

from penstock.schemas.errors import InvalidField, LeaseLost, TooLarge
from penstock.schemas.events import Progressed
from penstock.schemas.limits import MAX_CHECKPOINT_BYTES, MAX_PROGRESS_MESSAGE_CHARS
from penstock.workers.outcome import clean, to_json, too_deep
from penstock.workers.run import Run
from penstock.workers.transport import Transport

PROGRESS_EVERY_MS = 250
"""Progress without a checkpoint is told at most this often a job; between, the latest waits."""

STOP_POLL_S = 0.1

_log = logging.getLogger(__name__)


class ProgressReporter:
    """Writes the progress of one worker's runs. Made on the event loop's thread; :meth:`report` may be called
    from any.
    """

    def __init__(self, transport: Transport, now_ms: Callable[[], float], wall_ms: Callable[[], int]) -> None:
        self._transport = transport
        self._now_ms = now_ms
        self._wall_ms = wall_ms
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def on_loop(self) -> bool:
        """Whether this is asked on the event loop's thread."""
        return threading.get_ident() == self._thread

    def report(
        self, run: Run, percent: float | None, message: str, checkpoint: bytes | None
    ) -> Awaitable[None]:
        """See :meth:`penstock.workers.context.Context.progress`."""
        if self.on_loop:
            return self._on_loop(run, percent, message, checkpoint)
        if checkpoint is None:
            self._loop.call_soon_threadsafe(self._now_or_later, run, percent, message)
        else:
            self._from_thread(run, self._write(run, percent, message, checkpoint))
        return NOTHING_TO_AWAIT

    def flush(self, run: Run) -> None:
        """Tell progress that was held back, if its time has come."""
        pending = run.pending_progress
        if pending is not None and self._now_ms() - run.progress_ms >= PROGRESS_EVERY_MS:
            run.pending_progress = None
            self._now_or_later(run, *pending)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_loop(
        self, run: Run, percent: float | None, message: str, checkpoint: bytes | None
    ) -> Awaitable[None]:
        if checkpoint is None:
            self._now_or_later(run, percent, message)
            return NOTHING_TO_AWAIT
        return self._spawn(
            self._transport.progress(run.lease, self._event(run, percent, message, checkpoint))
        )

    def _now_or_later(self, run: Run, percent: float | None, message: str) -> None:
        if run.stop == "lost" or run.lease.finished:
            return
        if self._now_ms() - run.progress_ms < PROGRESS_EVERY_MS:
            run.pending_progress = (percent, message)
            return
        self._spawn(self._transport.progress(run.lease, self._event(run, percent, message, None)))

    async def _write(self, run: Run, percent: float | None, message: str, checkpoint: bytes | None) -> None:
        await self._transport.progress(run.lease, self._event(run, percent, message, checkpoint))

    def _event(self, run: Run, percent: float | None, message: str, checkpoint: bytes | None) -> Progressed:
        """The next event of a run. Made on the loop and at once, so that numbers follow the order of the calls."""
        if run.stop == "lost" or run.lease.finished:
            raise LeaseLost(run.stop_detail or None)
        if run.pending_progress is not None:
            # What was held back is older than this: it only fills what this leaves open.
            held_percent, held_message = run.pending_progress
            percent = held_percent if percent is None else percent
            message = message or held_message
            run.pending_progress = None
        run.progress_seq += 1
        run.progress_ms = self._now_ms()
        delivery = run.lease.delivery
        return Progressed(
            id=f"{delivery.lease}.p{run.progress_seq}", job=delivery.job, tenant=delivery.tenant,
            actor=f"worker:{delivery.worker}", trace=delivery.trace, at=self._wall_ms(), lease=delivery.lease,
            seq=run.progress_seq, percent=percent, message=message,
            checkpoint=None if checkpoint is None else Raw(checkpoint),
        )  # fmt: skip

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Whoever awaits the task gets its error; where nobody does, it is no more than a line in the log."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.debug("progress was not written: %s", task.exception())

    def _from_thread(self, run: Run, work: Coroutine[Any, Any, None]) -> None:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        while True:
            try:
                future.result(STOP_POLL_S)
            except FutureTimeout:
                if run.stop == "lost":
                    future.cancel()
                    raise LeaseLost(run.stop_detail or None) from None
                continue
            return


class _Nothing(Awaitable[None]):
    """Awaiting it takes no time."""

    def __await__(self) -> Any:
        return iter(())


NOTHING_TO_AWAIT = _Nothing()


def checkpoint_bytes(value: Any) -> bytes:
    """A checkpoint as JSON.

    Raises:
        InvalidField: it is not JSON, or nested too deep.
        TooLarge: it has more than 128 KiB.
    """
    try:
        encoded = to_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidField(f"the checkpoint cannot be said in JSON: {error}", field="checkpoint") from error
    if len(encoded) > MAX_CHECKPOINT_BYTES:
        raise TooLarge(
            f"the checkpoint has {len(encoded)} bytes, at most {MAX_CHECKPOINT_BYTES} are kept",
            field="checkpoint",
        )
    if too_deep(encoded):
        raise InvalidField("the checkpoint is nested too deep", field="checkpoint")
    return encoded


def progress_message(text: str) -> str:
    return clean(text)[:MAX_PROGRESS_MESSAGE_CHARS]
