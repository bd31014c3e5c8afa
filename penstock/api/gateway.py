"""The gateway: workers that speak HTTP, each as a session on the log.

Kafka out of reach, another language, a shell script: such a worker fetches, reports and heartbeats over HTTP, and this
module is its presence on the log, through one :class:`~penstock.workers.hub.SessionHub` for all of them.

* **Credit is what is being asked for.** A session's capacity is what its worker holds and what its waiting fetches have
  room for, so nothing is leased to a worker that does not ask.
* **Only what the client names is renewed.** A grant counts as named when it is handed out, then in each heartbeat,
  report or fetch that names it. Each naming lasts two fifths of the lease; clients should heartbeat each third of it.
* **An answer may be lost.** A grant that was handed out and never named since is handed out again by a later fetch, at
  the earliest a second after the first time: the same lease, which a client that has it ignores.
* **A grant may come late**, when the fetch that wanted it is gone. Another waiting fetch takes it; after a second it is
  returned, which costs the job no attempt.
* A client that says that it leaves is gone once it holds nothing; until then it is shown as one that takes no more.
* A client that vanishes is forgotten; its leases run out like those of any worker that falls silent.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

import msgspec

from penstock.api.remote_worker import RemoteWorker
from penstock.log.port import Log
from penstock.log.supervision import supervise
from penstock.schemas.errors import Conflict
from penstock.schemas.topics import Topics
from penstock.workers.hub import SessionHub
from penstock.workers.transport import WorkerProfile

log = logging.getLogger("penstock.api")

FORGET_MS = 30_000
"""A client not heard of for so long (or its lease, if that is longer) is forgotten."""

TICK_S = 0.1


class Gateway:
    """Every worker that speaks HTTP to this process. Use as an async context manager.

    Args:
        incarnation: tells this gateway from others and from its earlier lives (a ulid).
    """

    def __init__(self, log: Log, topics: Topics, incarnation: str) -> None:
        self.hub = SessionHub(log, topics, via=incarnation, route_name=incarnation)
        self.incarnation = incarnation
        self._workers: dict[str, RemoteWorker] = {}
        self._opening = asyncio.Lock()
        self._ticking: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def __aenter__(self) -> Self:
        await self.hub.__aenter__()
        self._ticking = supervise(self._tick(), "gateway-tick", self.hub.fail)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        await self.hub.flush(2_000)
        sessions = [worker.session for worker in self._workers.values()]
        self._workers.clear()
        await asyncio.gather(*(self.hub.close(session) for session in sessions), *self._closing)
        await self.hub.__aexit__(kind, error, trace)

    @property
    def failure(self) -> asyncio.Future[None]:
        """Gets an exception when the gateway cannot go on."""
        return self.hub.failure

    @property
    def sessions(self) -> int:
        """Workers known now."""
        return len(self._workers)

    @property
    def parked(self) -> int:
        """Fetches that wait."""
        return sum(worker.parked for worker in self._workers.values())

    def stop(self) -> None:
        """Let every waiting fetch answer, and let none wait from now on."""
        self._stopped = True
        for worker in self._workers.values():
            worker.close()

    def worker(self, name: str, incarnation: str) -> RemoteWorker | None:
        """The worker, if it is known under this incarnation (empty: under any).

        A newer one that has been silent for longer than its leases last stands in nobody's way: a clock that was set
        back gives a later process an earlier incarnation.

        Raises:
            Conflict: a newer incarnation of it is known.
        """
        worker = self._workers.get(name)
        if worker is None:
            return None
        now_ms = self.hub.now_ms()
        known = worker.session.incarnation
        if incarnation and incarnation < known:
            if not worker.parked and now_ms - worker.heard_ms > worker.session.profile.lease_ms:
                return None
            raise Conflict(f"a newer incarnation of the worker {name!r} is known", worker=name)
        worker.heard_ms = now_ms
        return worker if not incarnation or incarnation == known else None

    async def open(self, profile: WorkerProfile) -> RemoteWorker:
        """The worker, with a session for this profile; an older incarnation's session ends.

        Raises:
            Conflict: a newer incarnation is known, or the worker holds jobs of another pool.
            LogError: the log does not answer.
        """
        async with self._opening:
            worker = self.worker(profile.worker, profile.incarnation)
            if worker is not None:
                if self._fits(worker, profile):
                    return worker
                profile = msgspec.structs.replace(profile, incarnation=worker.session.incarnation)
            old = self._workers.pop(profile.worker, None)
            if old is not None:
                self._close(old)
            made = RemoteWorker(self.hub)
            made.session = await self.hub.open(profile, made)
            if self._stopped:
                made.close()
            self._workers[profile.worker] = made
            return made

    @staticmethod
    def _fits(worker: RemoteWorker, profile: WorkerProfile) -> bool:
        session = worker.session
        if session.profile.pool != profile.pool:
            if not worker.idle:
                raise Conflict(
                    f"the worker {profile.worker!r} holds jobs of the pool {session.profile.pool!r}"
                )
            return False
        if session.profile.lease_ms != profile.lease_ms:
            session.profile = msgspec.structs.replace(session.profile, lease_ms=profile.lease_ms)
            session.touch()
        return True

    def _close(self, worker: RemoteWorker) -> None:
        worker.close()
        task = asyncio.create_task(self.hub.close(worker.session))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_ms = self.hub.now_ms()
            for name, worker in list(self._workers.items()):
                worker.tick(now_ms)
                if worker.leaving and worker.idle:
                    del self._workers[name]
                    self._close(worker)
                    continue
                silent_ms = now_ms - worker.heard_ms
                if not worker.parked and silent_ms > max(FORGET_MS, worker.session.profile.lease_ms):
                    log.info("worker %s is forgotten: not heard of for %d ms", name, silent_ms)
                    del self._workers[name]
                    self._close(worker)
