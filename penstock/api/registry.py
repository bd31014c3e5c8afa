"""Who is alive: the newest heartbeat of each worker, heard on the log.

Liveness is what others believe too: a worker whose heartbeats have stopped for longer than its lease is gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

import msgspec

from penstock.log.port import Log
from penstock.log.supervision import supervise, tell
from penstock.schemas.errors import LogError
from penstock.schemas.messages import Heartbeat, decode_reports
from penstock.schemas.topics import Topics

log = logging.getLogger("penstock.api")

LOOK_BACK_MS = 60_000
SILENT_MS = 15_000
"""A worker not heard of for this long is not counted as live, however long its lease."""

RETRY_S = 1.0


class Seen:
    """A worker's newest heartbeat. ``heard_ms`` is the log's time of it."""

    __slots__ = ("heard_at", "heard_ms", "heartbeat")

    def __init__(self, heartbeat: Heartbeat, heard_ms: int, heard_at: float) -> None:
        self.heartbeat = heartbeat
        self.heard_ms = heard_ms
        self.heard_at = heard_at


class WorkerRegistry:
    """Follows the workers topic. Use as an async context manager."""

    def __init__(
        self,
        log: Log,
        topics: Topics,
        *,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._log = log
        self._topics = topics
        self._clock = clock
        self._now_ms = now_ms
        self._seen: dict[str, Seen] = {}
        self._task: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[None] | None = None

    @property
    def failure(self) -> asyncio.Future[None]:
        """Gets the error that ended the registry."""
        if self._failure is None:
            self._failure = asyncio.get_running_loop().create_future()
        return self._failure

    async def __aenter__(self) -> Self:
        self._task = supervise(
            self._run(), "penstock-worker-registry", lambda error: tell(self.failure, error)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.failure.done() and not self.failure.cancelled():
            self.failure.exception()
        self.failure.cancel()

    # Asking

    def live(self) -> list[Seen]:
        """Workers heard of lately that have not said good-bye, by id."""
        now = self._clock()
        return [
            seen
            for _, seen in sorted(self._seen.items())
            if (now - seen.heard_at) * 1_000 < SILENT_MS and not _has_left(seen.heartbeat)
        ]

    def handled(self) -> set[tuple[str, str]]:
        """(pool, type) of everything that some live worker takes."""
        return {
            (seen.heartbeat.pool, job_type)
            for seen in self.live()
            if seen.heartbeat.takes_more
            for job_type in seen.heartbeat.types
        }

    # Hearing

    def hear(self, heartbeats: Iterable[Heartbeat], heard_ms: int) -> None:
        """Take in heartbeats of one record."""
        age_s = max(0, self._now_ms() - heard_ms) / 1_000
        for heartbeat in heartbeats:
            known = self._seen.get(heartbeat.worker)
            if known is not None and _older(heartbeat, known.heartbeat):
                continue
            if heartbeat.partial and known is not None:
                # It says nothing of what is held.
                heartbeat = msgspec.structs.replace(heartbeat, holding=known.heartbeat.holding)
            self._seen[heartbeat.worker] = Seen(heartbeat, heard_ms, self._clock() - age_s)

    def forget_silent(self) -> None:
        """Drop who has not been heard of for long, so that the registry does not grow for ever."""
        limit = self._clock() - LOOK_BACK_MS / 1_000
        for worker in [worker for worker, seen in self._seen.items() if seen.heard_at < limit]:
            del self._seen[worker]

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except LogError as error:
                log.warning("the worker registry cannot read the log: %s", error.message)
                await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        topic = self._topics.workers
        since_ms = self._now_ms() - LOOK_BACK_MS
        starts = {
            (topic, partition): await self._log.offset_at(topic, partition, since_ms)
            for partition in range(self._topics.worker_partitions)
        }
        async with self._log.tail(starts) as tail:
            while True:
                for record in await tail.poll(1_000):
                    reports = decode_reports(record.value)
                    self.hear([report for report in reports if isinstance(report, Heartbeat)], record.time_ms)
                self.forget_silent()


def _has_left(heartbeat: Heartbeat) -> bool:
    return heartbeat.leaving and not heartbeat.holding and not heartbeat.draining


def _older(heartbeat: Heartbeat, known: Heartbeat) -> bool:
    return (heartbeat.incarnation, heartbeat.seq) < (known.incarnation, known.seq)
