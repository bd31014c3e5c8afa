"""The worker of a sandbox: the real one, which is given one job at a time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping

from msgspec import Struct

from penstock.core.job_state import Job
from penstock.core.partition import Folded
from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line
from penstock.schemas.errors import LeaseLost
from penstock.schemas.messages import Delivery
from penstock.testing.instant import LEASE_MS, WORKER, InstantLog
from penstock.workers.app import App
from penstock.workers.bodies import InlineBodies
from penstock.workers.dependencies import Overrides
from penstock.workers.lease import HeldLease
from penstock.workers.runtime import Worker
from penstock.workers.transport import OutcomeEvent, Recipient, WorkerProfile


class Planned(Struct):
    """What is to go wrong."""

    failures: dict[str, list[ev.JobError]]
    crashes: Counter[str]
    """How often a job of a type is to lose its worker once its handler has returned."""


class Ran(Struct, frozen=True):
    """One attempt that was made."""

    job: str
    outcome: ev.AnyEvent | None
    """None where the worker was lost."""
    error: BaseException | None = None


class InstantTransport:
    """See :class:`penstock.workers.transport.Transport`: outcomes stand on the log when they are told."""

    def __init__(self, log: InstantLog, planned: Planned) -> None:
        self.bodies = InlineBodies()
        self._log = log
        self._planned = planned
        self._recipient: Recipient | None = None
        self._held: HeldLease | None = None
        self._ended: asyncio.Event | None = None
        self.outcome: OutcomeEvent | None = None
        self._loop = asyncio.get_running_loop()
        self.failure: asyncio.Future[None] = self._loop.create_future()

    async def start(self, profile: WorkerProfile, recipient: Recipient) -> None:
        self._recipient = recipient

    async def run(self, delivery: Delivery) -> OutcomeEvent | None:
        """Have one job done; its outcome, None where the worker was lost."""
        assert self._recipient is not None
        self._ended, self.outcome = asyncio.Event(), None
        self._held = HeldLease(delivery, time.monotonic() * 1_000)
        self._recipient.receive([self._held])
        await self._ended.wait()
        self._held = None
        return self.outcome

    def hear(self, folded: Folded) -> None:
        """A line was written, from whatever thread: if it asks for a cancel of what runs, its handler is told."""
        held, after = self._held, folded.after
        if held is not None and after is not None and after.cancel and after.lease == held.id:
            self._loop.call_soon_threadsafe(self._cancel, held)

    def _cancel(self, held: HeldLease) -> None:
        assert self._recipient is not None
        held.cancel_reason = "cancelled"
        self._recipient.cancel(held)

    def resize(self, capacity: int, busy: int) -> None:
        """There is one job at a time."""

    def limit(self, limits: Mapping[str, int]) -> None:
        """There is one job at a time."""

    def demand(self) -> frozenset[str]:
        return frozenset()

    def waiting(self) -> int:
        return 0

    def finish(self, lease: HeldLease, event: OutcomeEvent) -> None:
        if lease is not self._held or lease.line:
            return
        lease.line = encode_line(event)
        job_type = lease.delivery.job_type
        if self._planned.crashes[job_type] > 0:
            self._planned.crashes[job_type] -= 1
            self._log.lose(lease.delivery)
        else:
            self._log.write(lease.line)
            self.outcome = event
        assert self._ended is not None
        self._ended.set()

    async def progress(self, lease: HeldLease, event: ev.Progressed) -> None:
        folded = self._log.write(encode_line(event))
        if folded.outcome not in ("applied", "duplicate"):
            raise LeaseLost(folded.reason)

    def stop_taking(self) -> None:
        """Nothing comes by itself."""

    async def flush(self, timeout_ms: int) -> int:
        return 0

    async def close(self) -> None:
        self.failure.cancel()


class Drainer:
    """Runs the jobs of a sandbox in the event loop that it is called in."""

    def __init__(
        self, log: InstantLog, tasks: App, planned: Planned, overrides: Overrides | None = None
    ) -> None:
        self._log = log
        self._tasks = tasks
        self._overrides = overrides
        self._planned = planned

    async def drain(self, most: int, wanted: Callable[[Job], bool], then: Callable[[Ran], None]) -> int:
        """Run what is ready, and what that makes ready, until nothing is or ``most`` were run; how many were."""
        transport = InstantTransport(self._log, self._planned)
        worker = Worker(
            self._tasks,
            transport,
            concurrency=1,
            name=WORKER,
            lease_ms=LEASE_MS,
            grace_ms=0,
            overrides=self._overrides,
            processes=False,
            wall_ms=lambda: self._log.now_ms,
        )
        ran = 0
        self._log.on_write = transport.hear
        try:
            async with worker:
                while ran < most and (job := self._next(self._tasks.tasks.keys(), wanted)) is not None:
                    ran += 1
                    then(await self._attempt(transport, job))
        finally:
            self._log.on_write = None
        return ran

    def _next(self, types: Collection[str], wanted: Callable[[Job], bool]) -> Job | None:
        return next(filter(wanted, self._log.ready(types)), None)

    async def _attempt(self, transport: InstantTransport, job: Job) -> Ran:
        delivery = self._log.lease(job)
        assert delivery is not None, f"{job.id} is ready and cannot be leased"
        failures = self._planned.failures[job.job_type]
        if not failures:
            return Ran(job.id, await transport.run(delivery))
        failed = ev.Failed(
            id=f"{delivery.lease}.f", job=job.id, tenant=job.tenant, lease=delivery.lease, error=failures.pop(0),
            actor=f"worker:{WORKER}", at=self._log.now_ms,
        )  # fmt: skip
        self._log.write(encode_line(failed))
        return Ran(job.id, failed)


def nothing_planned() -> Planned:
    return Planned(defaultdict(list), Counter())
