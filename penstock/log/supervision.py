"""Loops that a service lives by: whatever ends one of them, unless it was asked to end, is told.

A client library may cancel futures of its own while it stops, and let that out of the call that waits for them. A
loop would then end as if somebody had asked it to, and its service would stand there alive but dead. Whether a task
was asked to end is what :meth:`asyncio.Task.cancelling` knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class EndedByItself(RuntimeError):
    """A loop that should have gone on ended although nobody had asked it to."""


def supervise(
    work: Coroutine[Any, Any, None], name: str, on_failure: Callable[[BaseException], None]
) -> asyncio.Task[None]:
    """Run a loop that ends only when its task is cancelled; ``on_failure`` is called with what ends it otherwise.

    The task is the caller's to cancel. It holds the error as well, which counts as looked at.
    """
    task = asyncio.create_task(work, name=name)

    def ended(task: asyncio.Task[None]) -> None:
        error = why_ended(task)
        if error is not None:
            on_failure(error)

    task.add_done_callback(ended)
    return task


def why_ended(task: asyncio.Task[Any]) -> BaseException | None:
    """What ended a task that should not have ended; None if it was asked to."""
    if not task.cancelled():
        error = task.exception()
        if error is not None:
            return error
    if task.cancelling():
        return None
    how = "was cancelled from within" if task.cancelled() else "returned"
    return EndedByItself(f"{task.get_name()} {how}, although nobody had asked it to end")


def asked_to_end() -> bool:
    """Whether a CancelledError that is being handled is meant for the current task, and not let out by a library."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def tell(failure: asyncio.Future[None], error: BaseException) -> None:
    """Set a service's ``failure``; the first error counts."""
    if not failure.done():
        failure.set_exception(error)
