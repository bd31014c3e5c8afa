"""The two ways of a worker to its jobs, and what passes between them and the runtime.

A :class:`Transport` brings leases and takes outcomes; the :class:`Recipient` (the runtime) runs them. One
runtime stands on both :class:`~penstock.workers.log_transport.LogTransport` and
:class:`~penstock.workers.http_transport.HttpTransport`.

A lease may be brought again after it was lost (the holder fell silent and nobody took the job): the same id, as
a new object. All calls are made on the event loop, and none of a recipient's may block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from penstock.schemas.events import Failed, Progressed, Returned, Snoozed, Succeeded
from penstock.workers.bodies import Bodies
from penstock.workers.lease import HeldLease

OutcomeEvent = Succeeded | Failed | Returned | Snoozed


class WorkerProfile(Struct, frozen=True, kw_only=True):
    """What a worker says of itself. ``lease_ms`` is how long a lease it wants; ``limits`` are those of single job types
    that it runs fewer of at once than ``concurrency``.
    """

    worker: str
    incarnation: str
    pool: str = "default"
    types: tuple[str, ...] = ()
    concurrency: int = 10
    limits: dict[str, int] = {}
    lease_ms: int = 30_000
    host: str = ""
    version: str = ""


class Recipient(Protocol):
    """Who runs what a transport brings."""

    def receive(self, leases: Sequence[HeldLease]) -> None:
        """New leases, none of them held or finished before."""
        ...

    def cancel(self, lease: HeldLease) -> None:
        """Stop it, its cancel was requested (``lease.cancel_reason``). May be called again. Its outcome still
        counts.
        """
        ...

    def lose(self, lease: HeldLease) -> None:
        """Stop it, it is no longer held (``lease.lost_reason``): no outcome will be taken."""
        ...

    def drain(self, stop: bool) -> None:
        """Take no more jobs; with ``stop``, leave when what is held is done."""
        ...


class Transport(Protocol):
    """Brings leases to a recipient and takes their outcomes."""

    @property
    def bodies(self) -> Bodies:
        """Where payloads and results are that are too large for the log."""
        ...

    @property
    def failure(self) -> asyncio.Future[None]:
        """Gets an exception when the transport cannot go on."""
        ...

    async def start(self, profile: WorkerProfile, recipient: Recipient) -> None:
        """Begin to take jobs, with a capacity of the profile's concurrency."""
        ...

    def resize(self, capacity: int, busy: int) -> None:
        """How many leases the worker wants at once, and how many handlers run now."""
        ...

    def limit(self, limits: Mapping[str, int]) -> None:
        """How many leases of those types that have a limit the worker wants at once, from now on; 0 is none."""
        ...

    def demand(self) -> frozenset[str]:
        """Of the profile's types, those known to have jobs waiting; empty where that is not known."""
        ...

    def waiting(self) -> int:
        """Jobs that wait for any worker of the profile's pool and types; ``MANY`` where there are some, and nobody
        knows how many.
        """
        ...

    def finish(self, lease: HeldLease, event: OutcomeEvent) -> None:
        """Take the outcome of a lease, to be written until it is written. Ignored if the lease was lost or has
        one.
        """
        ...

    async def progress(self, lease: HeldLease, event: Progressed) -> None:
        """Write progress; durable when it returns.

        Raises:
            LeaseLost: the lease is no longer held.
        """
        ...

    def stop_taking(self) -> None:
        """Ask for no more jobs; what is held goes on."""
        ...

    async def flush(self, timeout_ms: int) -> int:
        """Wait until every outcome taken is written; returns how many are not after ``timeout_ms``."""
        ...

    async def close(self) -> None:
        """Say good-bye and let go of everything."""
        ...
