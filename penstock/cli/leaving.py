"""The end of a process in which something does not end.

A thread cannot be stopped from outside, and a coroutine may swallow every cancellation. Python waits for both at its
exit, so one handler that hangs would keep a process for ever that has already given its jobs back, or one that has
failed and is to be started anew by whatever supervises it.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
import time
from typing import NoReturn

LAST_WAIT_S = 2.0
"""How long tasks, and then threads, may take to end after the roles have."""

_left_behind = threading.Event()

_log = logging.getLogger("penstock.roles")


async def clear() -> bool:
    """End what is left on the running loop, and the threads of its executor; false if something goes on."""
    loop = asyncio.get_running_loop()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    # Waited for but not cancelled when the time is over: that would wait for its threads without an end.
    executor = asyncio.ensure_future(loop.shutdown_default_executor())
    _, left = await asyncio.wait({*others, executor}, timeout=LAST_WAIT_S)
    return not left


def threads_end() -> bool:
    """Wait for the threads that Python would wait for; false if some go on."""
    until_s = time.monotonic() + LAST_WAIT_S
    waited_for = [
        thread
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]
    for thread in waited_for:
        thread.join(max(0.0, until_s - time.monotonic()))
    return not any(thread.is_alive() for thread in waited_for)


def leave_behind() -> None:
    """Something goes on that nobody can end: no exit function is to wait for it."""
    _log.warning("something that was told to stop does not; the process ends without it")
    _left_behind.set()


def end(code: int | str | None) -> NoReturn:
    """Called last, with what ``sys.exit`` was given: ends the process, without taking the interpreter apart.

    That would wait for what goes on; and msgspec now and then reads what is gone already when its types are destroyed
    with their modules, which turned an exit code into a segmentation fault.
    """
    if isinstance(code, str):
        sys.stderr.write(code + "\n")
    logging.shutdown()
    if not _left_behind.is_set():
        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]  # what Python calls at its exit
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
