"""A worker straight on the log: a hub with one session."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from penstock.log.port import Log
from penstock.schemas.events import Progressed
from penstock.schemas.topics import Topics
from penstock.workers.bodies import Bodies, InlineBodies
from penstock.workers.hub import SessionHub
from penstock.workers.lease import HeldLease
from penstock.workers.session import Session
from penstock.workers.transport import OutcomeEvent, Recipient, WorkerProfile


class LogTransport:
    """See :class:`penstock.workers.transport.Transport`. The log is the caller's; its topics exist.

    ``bodies``: where large ones are; None is nowhere.
    """

    def __init__(self, log: Log, topics: Topics, bodies: Bodies | None = None) -> None:
        self.bodies = bodies or InlineBodies()
        self._hub = SessionHub(log, topics)
        self._session: Session | None = None
        self._entered = False

    @property
    def failure(self) -> asyncio.Future[None]:
        return self._hub.failure

    @property
    def session(self) -> Session:
        assert self._session is not None, "the transport is not started"
        return self._session

    async def start(self, profile: WorkerProfile, recipient: Recipient) -> None:
        await self._hub.__aenter__()
        self._entered = True
        self._session = await self._hub.open(profile, recipient)

    def resize(self, capacity: int, busy: int) -> None:
        self.session.resize(capacity, busy)

    def limit(self, limits: Mapping[str, int]) -> None:
        self.session.set_limits(limits)

    def demand(self) -> frozenset[str]:
        return self.session.demand()

    def waiting(self) -> int:
        return self.session.waiting()

    def finish(self, lease: HeldLease, event: OutcomeEvent) -> None:
        if self._session is not None:
            self._session.finish(lease, event)

    async def progress(self, lease: HeldLease, event: Progressed) -> None:
        await self.session.report(lease, event)

    def stop_taking(self) -> None:
        self.session.stop_taking()

    async def flush(self, timeout_ms: int) -> int:
        return await self._hub.flush(timeout_ms)

    async def close(self) -> None:
        if not self._entered:
            return
        self._entered = False
        try:
            if self._session is not None:
                await self._hub.close(self._session)
        finally:
            await self._hub.__aexit__(None, None, None)
