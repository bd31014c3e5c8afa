"""The worker role: handlers on the log, or behind a server's HTTP gateway."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from penstock.cli.composition import OpenedLog
from penstock.cli.opening import claims_of
from penstock.cli.roles import request_stop
from penstock.cli.settings import Settings
from penstock.workers.app import App
from penstock.workers.bodies import StoredBodies
from penstock.workers.log_transport import LogTransport
from penstock.workers.runtime import Worker
from penstock.workers.transport import Transport

if TYPE_CHECKING:
    from penstock.cli.health import Numbers, Problems

OUTPUT_LEVELS = {
    "debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR,
    "off": logging.CRITICAL + 1,
}  # fmt: skip

DEV_WORKER = "dev"
"""Name of the worker that a service has which does everything in one process."""


async def start_log_worker(
    stack: AsyncExitStack, settings: Settings, opened: OpenedLog, tasks: App
) -> Worker:
    """Run ``tasks`` on the log. The process ends when the worker is told to leave."""
    return await _start_alone(stack, settings, _on_log(settings, opened), tasks)


async def start_dev_worker(
    stack: AsyncExitStack, settings: Settings, opened: OpenedLog, tasks: App
) -> Worker:
    """Run ``tasks`` beside everything else. When the worker is told to leave it takes no more, and the rest goes on."""
    return await _start(stack, settings, _on_log(settings, opened), tasks, DEV_WORKER)


async def start_http_worker(stack: AsyncExitStack, settings: Settings, tasks: App) -> Worker:
    """Run ``tasks`` through the gateway of ``settings.server``."""
    # An HTTP client is a tenth of a second to load, and a worker on the log has no use for one.
    from penstock.workers.http_transport import HttpTransport

    return await _start_alone(stack, settings, HttpTransport(settings.server), tasks)


def _on_log(settings: Settings, opened: OpenedLog) -> LogTransport:
    claims = claims_of(settings)
    bodies = None if claims is None else StoredBodies(claims)
    return LogTransport(opened.log, opened.namespace.topics, bodies)


async def _start_alone(stack: AsyncExitStack, settings: Settings, transport: Transport, tasks: App) -> Worker:
    """A worker that has the process to itself, and takes it along when it is told to leave."""
    worker = await _start(stack, settings, transport, tasks)
    await stack.enter_async_context(_LeaveWhenTold(worker))
    return worker


async def _start(
    stack: AsyncExitStack, settings: Settings, transport: Transport, tasks: App, name: str = ""
) -> Worker:
    worker = Worker(
        tasks,
        transport,
        concurrency=settings.concurrency,
        pool=settings.pool,
        name=settings.name or name,
        grace_ms=settings.grace_ms,
        output_level=OUTPUT_LEVELS[settings.output_level],
    )
    return await stack.enter_async_context(worker)


class _LeaveWhenTold:
    """Stops the process when the worker was drained for good by a signal on the log."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._watch(), name="leave-when-told")

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        await self._worker.left.wait()
        request_stop()


def worker_health(worker: Worker) -> tuple[Problems, Numbers]:
    """Ready until it fails or is asked to leave."""

    def problems() -> list[str]:
        return ["the worker takes no more jobs"] if worker.failure.done() or worker.left.is_set() else []

    def numbers() -> dict[str, float]:
        return {
            "penstock_worker_concurrency": worker.profile.concurrency,
            "penstock_worker_capacity": worker.capacity,
            "penstock_worker_busy": worker.busy,
            "penstock_worker_stuck": worker.executor.stuck,
        }

    return problems, numbers
