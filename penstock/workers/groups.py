"""Processes that are started in a group of their own (``start_new_session``), so that all they start ends with them."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import Process
from contextlib import suppress
from typing import Any

LOOK_AGAIN_S = 0.1


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
    await exited(process)
    # Who left the group may still hold the other ends; asyncio has no public way to close these.
    transport: Any = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()
