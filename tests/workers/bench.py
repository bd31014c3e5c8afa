"""A worker on the fake transport, and jobs for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from penstock.schemas.messages import Delivery
from penstock.workers.app import AnyTask
from penstock.workers.bodies import Bodies
from penstock.workers.runtime import Worker
from penstock.workers.runtimes import MEASURED_FROM
from tests.workers.fakes import FakeTransport, delivery


@asynccontextmanager
async def running(
    *tasks: AnyTask, bodies: Bodies | None = None, **options: Any
) -> AsyncIterator[tuple[FakeTransport, Worker]]:
    transport = FakeTransport(bodies)
    options.setdefault("grace_ms", 0)
    async with Worker(tasks, transport, **options) as worker:
        yield transport, worker


def job(name: str, lease: str = "0.1.1", payload: object = None, **fields: Any) -> Delivery:
    return delivery(lease, payload=payload, job_type=name, **fields)


def roomy(worker: Worker, *types: str) -> None:
    """Let the worker believe that these types are short, so that it holds more than it runs."""
    for job_type in types:
        for _ in range(MEASURED_FROM):
            worker._measure(job_type, 1.0)  # pyright: ignore[reportPrivateUsage]  # as if measured


class AtOnce:
    """Entered by handlers for as long as they run: how many do at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def __enter__(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        self.now -= 1
