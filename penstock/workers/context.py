"""What a handler knows about its job, and what it can tell while it runs."""

from __future__ import annotations

import asyncio
import inspect
import logging
import typing
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import msgspec

from penstock.schemas.errors import InvalidField, TooLarge
from penstock.schemas.messages import Delivery
from penstock.workers.errors import JobStopped
from penstock.workers.outcome import StopReason, to_json
from penstock.workers.progress import ProgressReporter, checkpoint_bytes, progress_message
from penstock.workers.run import Run
from penstock.workers.steps import TOO_MUCH, Saved

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

    @property
    def checkpoint(self) -> Any:
        """The last checkpoint that was saved, by this attempt or one before it; None if there is none."""
        return self._saved.checkpoint

    @cached_property
    def _saved(self) -> Saved:
        return Saved(bytes(self._delivery.checkpoint))

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
        if self._run.stopping is None or self._reporter.on_loop:
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
        if checkpoint is None:
            return self._report(percent, message, None)
        return self._report_checkpoint(percent, message, checkpoint)

    def save(self, checkpoint: Any) -> Awaitable[None]:
        """Save a checkpoint, None included, without telling progress. As durable, and raises, as
        :meth:`progress`.
        """
        return self._report_checkpoint(None, "", checkpoint)

    def _report_checkpoint(self, percent: float | None, message: str, checkpoint: Any) -> Awaitable[None]:
        encoded = checkpoint_bytes(self._saved.with_checkpoint(checkpoint))
        reported = self._report(percent, message, encoded)
        self._saved.checkpoint = checkpoint
        return reported

    def _report(self, percent: float | None, message: str, encoded: bytes | None) -> Awaitable[None]:
        if percent is not None:
            percent = min(max(float(percent), 0.0), 100.0)
        return self._reporter.report(self._run, percent, progress_message(message), encoded)

    # Steps

    def step(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Do a part of the work once, however many attempts the job takes.

        ``function(*args, **kwargs)`` is called, and what it returns is durable before this returns; an attempt that
        comes later gets it without the call. Await it on the event loop, where a ``def`` function is called in a
        thread; in a thread this returns the result itself. The result is what JSON makes of it, the first time too.
        Steps may run beside each other (:func:`asyncio.gather`). A process that dies between a step's end and its
        saving leaves it undone: what a step does should bear being done twice, or use :attr:`fence`.

        Args:
            name: names the step in this job, the same in each attempt: ``f"page-{number}"`` in a loop.

        Raises:
            whatever the function raises; nothing is saved then.
            LeaseLost: the lease is no longer held.
            InvalidField, TooLarge: the result cannot be kept; all results and the checkpoint have 128 KiB together.
            NonRetryable: the name was used already in this attempt, or is no name.
        """
        self._saved.begin(name)
        if not self._reporter.on_loop:
            return self._step_in_thread(name, function, args, kwargs)
        return self._step(name, function, args, kwargs)

    async def _step(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not self._saved.has(name):
            if inspect.iscoroutinefunction(function):
                value = await function(*args, **kwargs)
            else:
                value = await asyncio.to_thread(function, *args, **kwargs)
                value = await value if inspect.isawaitable(value) else value
            await self._save_step(name, value)
        return self._saved.result(name)

    def _step_in_thread(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not self._saved.has(name):
            self.raise_if_cancelled()
            value = function(*args, **kwargs)
            if inspect.iscoroutine(value):
                value.close()
                raise TypeError(f"step {name!r} of a def handler is a coroutine; make the handler async def")
            self._save_step(name, value)
        return self._saved.result(name)

    def _save_step(self, name: str, value: Any) -> Awaitable[None]:
        try:
            result = msgspec.json.decode(to_json(value))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidField(f"the result of step {name!r} cannot be said in JSON: {error}") from error
        try:
            encoded = checkpoint_bytes(self._saved.with_result(name, result))
        except TooLarge as error:
            raise TooLarge(f"step {name!r}: {TOO_MUCH}") from error
        # Kept before it is written: steps that end meanwhile save it along, in an event that comes later.
        self._saved.keep(name, result)
        return self._report(None, f"step {name}", encoded)


def asks_for_context(hint: Any) -> bool:
    """Whether an annotation is the context, or a choice of it and nothing."""
    if isinstance(hint, type):
        return issubclass(hint, Context)
    return any(asks_for_context(part) for part in typing.get_args(hint) if part is not type(None))


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
