"""A small honest worker on the log, independent of penstock.workers: what the protocol asks of one, and no more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from penstock.log.bundler import Bundler
from penstock.log.port import Log
from penstock.schemas.codec import encode_line
from penstock.schemas.events import AnyEvent, Failed, JobError, Succeeded
from penstock.schemas.messages import (
    Beat,
    Delivery,
    Heartbeat,
    Holding,
    decode_deliveries,
    decode_signals,
    encode_messages,
)
from penstock.schemas.topics import BROADCAST, Topics

Handler = Callable[[Delivery], AnyEvent | None]


def succeed(delivery: Delivery) -> AnyEvent:
    return Succeeded(id=f"{delivery.lease}.s", job=delivery.job, lease=delivery.lease, run_ms=1)


def fail(delivery: Delivery) -> AnyEvent:
    error = JobError(code="boom", message="as told")
    return Failed(id=f"{delivery.lease}.f", job=delivery.job, lease=delivery.lease, error=error)


def hang(delivery: Delivery) -> None:
    """Hold the lease and say nothing."""


class ModelWorker:
    """Takes what is delivered, runs ``handler``, writes its outcome, and names what it holds in heartbeats."""

    def __init__(
        self,
        log: Log,
        topics: Topics,
        name: str,
        *,
        handler: Handler = succeed,
        incarnation: str = "a",
        types: tuple[str, ...] = ("noop",),
        lease_ms: int = 30_000,
        beat_ms: int = 100,
        credits: int = 100,
    ) -> None:
        self.delivered: list[Delivery] = []
        self._log, self._topics, self._name, self._handler = log, topics, name, handler
        self._incarnation, self._types, self._lease_ms, self._beat_ms = incarnation, types, lease_ms, beat_ms
        self._credits = credits
        self._bundler = Bundler(log, topics.jobs)
        self._route = topics.route_of(name)
        self._held: dict[str, Delivery] = {}
        self._orchestrators: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        starts: dict[tuple[str, int], int] = {}
        for topic in self._topics.work_topics:
            starts[topic, self._route] = (await self._log.bounds(topic, self._route)).end
        for partition in (BROADCAST, self._route):
            starts[self._topics.signals, partition] = (
                await self._log.bounds(self._topics.signals, partition)
            ).end
        self._tasks = [asyncio.create_task(self._read(starts)), asyncio.create_task(self._beat())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._bundler.flush()

    async def _read(self, starts: dict[tuple[str, int], int]) -> None:
        async with self._log.tail(starts) as tail:
            while True:
                for record in await tail.poll(500):
                    if record.topic == self._topics.signals:
                        for signal in decode_signals(record.value):
                            if isinstance(signal, Beat):
                                self._orchestrators[signal.incarnation] = time.monotonic()
                    elif record.key == self._name.encode():
                        for delivery in decode_deliveries(record.value):
                            self._take(delivery)

    def _take(self, delivery: Delivery) -> None:
        if delivery.incarnation != self._incarnation or delivery.lease in self._held:
            return
        self.delivered.append(delivery)
        self._held[delivery.lease] = delivery
        outcome = self._handler(delivery)
        if outcome is not None:
            future = self._bundler.submit(delivery.partition, [encode_line(outcome)])
            future.add_done_callback(lambda _: self._held.pop(delivery.lease, None))

    async def _beat(self) -> None:
        seq = 0
        while True:
            seq += 1
            now = time.monotonic()
            live = [name for name, heard in self._orchestrators.items() if now - heard < 2.5]
            beat = Heartbeat(
                worker=self._name,
                incarnation=self._incarnation,
                seq=seq,
                types=self._types,
                concurrency=self._credits,
                credits={name: max(1, self._credits // len(live)) for name in live},
                route=self._route,
                holding=tuple(
                    Holding(held.partition, f"{held.tenant}/{held.job}", held.lease, 1)
                    for held in self._held.values()
                ),
                lease_ms=self._lease_ms,
            )
            partition = self._topics.reports_partition_of(self._name)
            await self._log.append(self._topics.workers, partition, encode_messages([beat]))
            await asyncio.sleep(self._beat_ms / 1_000)
