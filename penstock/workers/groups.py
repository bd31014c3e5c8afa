"""Processes that are started in a group of their own, so that all that they start ends with them."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import Process
from contextlib import suppress
from typing import Any

LOOK_AGAIN_S = 0.1


async def start_group(*argv: str, **options: Any) -> Process:
    """Start a program as :func:`asyncio.create_subprocess_exec` does, in a group of its own.

    That function, when it is cancelled, kills the program alone and waits for whoever it has started by then. Here the
    start goes on, and its group is killed as soon as there is one.

    Raises:
        OSError: it cannot be started.
    """
    starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*argv, start_new_session=True, **options))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(_end_at_once)
        raise


def _end_at_once(started: asyncio.Future[Process]) -> None:
    if not started.cancelled() and started.exception() is None:
        signal_group(started.result(), signal.SIGKILL)
        _let_go(started.result())


def signal_group(process: Process, number: signal.Signals) -> None:
    """Send a signal to the process and all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


async def exited(process: Process) -> int:
    """Wait for the process itself; its exit code, or minus the signal that ended it.

    :meth:`Process.wait` alone also waits, in some versions of Python, for whoever else holds its pipes open.
    """
    while process.returncode is None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_AGAIN_S):
                await process.wait()
    return process.returncode


async def kill_group(process: Process) -> None:
    """End the process and all that it started, and let go of its pipes. To be called once."""
    signal_group(process, signal.SIGKILL)
    try:
        await exited(process)
    finally:
        _let_go(process)


def _let_go(process: Process) -> None:
    """Close its pipes: who left the group may still hold the other ends. asyncio has no public way to."""
    transport: Any = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()
