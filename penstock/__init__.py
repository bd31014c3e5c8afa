"""Penstock: background jobs that are never lost, can be explained and can be proved.

What handlers need is here::

    from penstock import task


    @task
    async def hello(name: str) -> str:
        return f"Hello, {name}!"

The names are imported when they are first used, so that a process that runs no handlers loads nothing of them.
"""

from __future__ import annotations

import atexit
import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.client.http import Client
    from penstock.client.http_async import AsyncClient
    from penstock.schemas.errors import PenstockError
    from penstock.workers.app import App
    from penstock.workers.around import Call
    from penstock.workers.command import command_task
    from penstock.workers.context import Context
    from penstock.workers.dependencies import Depends
    from penstock.workers.errors import Fatal, HandlerError, JobStopped, NonRetryable, RetryLater
    from penstock.workers.task import Task, task
    from penstock.workers.values import Cancel, PartError, Partial, Retry, Snooze

__version__ = "0.1.0"

# Types of msgspec's structs corrupt memory where the interpreter collects them at its end (a known bug, in 0.22 still),
# and a program that did all it should ends with a segmentation fault. What is frozen is not collected.
atexit.register(gc.freeze)

__all__ = [
    "App",
    "AsyncClient",
    "Call",
    "Cancel",
    "Client",
    "Context",
    "Depends",
    "Fatal",
    "HandlerError",
    "JobStopped",
    "NonRetryable",
    "PartError",
    "Partial",
    "PenstockError",
    "Retry",
    "RetryLater",
    "Snooze",
    "Task",
    "__version__",
    "command_task",
    "task",
]

_HOMES = {
    "App": "workers.app",
    "AsyncClient": "client.http_async",
    "Call": "workers.around",
    "Cancel": "workers.values",
    "Client": "client.http",
    "Context": "workers.context",
    "Depends": "workers.dependencies",
    "Fatal": "workers.errors",
    "HandlerError": "workers.errors",
    "JobStopped": "workers.errors",
    "NonRetryable": "workers.errors",
    "PartError": "workers.values",
    "Partial": "workers.values",
    "PenstockError": "schemas.errors",
    "Retry": "workers.values",
    "RetryLater": "workers.errors",
    "Snooze": "workers.values",
    "Task": "workers.task",
    "command_task": "workers.command",
    "task": "workers.task",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"penstock.{home}"), name)
