"""The log as one process reaches it: the log port, with a network between.

An append takes time there and back, may be refused, lost, late, or written without a word of it; once it is on its way
it lands whether its process lives or not. Hints may be lost although they were acknowledged, doubled, late, and so out
of order. A reader learns of new records a little later than they stand there, in chunks of any size, and not at all
while its host is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from penstock.log.memory_topics import Fault
from penstock.log.port import Appended, Bounds, Headers, Record, TopicPartition, TopicSpec
from penstock.schemas.errors import (
    AppendUnknown,
    LogError,
    LogUnavailable,
    OffsetBeyondEnd,
    OffsetTrimmed,
)
from tests.sim.loop import ProcessLoop
from tests.sim.world import World, void

CLUSTER = "sim"
SILENT_MS = 15_000
"""A log that does not answer for so long is told to be unavailable."""


class Senses:
    """What a host can reach and see. Times are the world's ms."""

    def __init__(self) -> None:
        self.cut_until_ms = -1
        """The network is gone."""
        self.blind_until_ms = -1
        """No record of the jobs topic comes."""
        self.deaf_until_ms = -1
        """No heartbeat, beat, delivery or signal comes."""

    def clear(self) -> None:
        self.cut_until_ms = self.blind_until_ms = self.deaf_until_ms = -1


class SimLog:
    """See :class:`penstock.log.port.Log`."""

    def __init__(self, world: World, loop: ProcessLoop, senses: Senses) -> None:
        self.world, self.loop, self.senses = world, loop, senses
        self._hints = {*world.names.work_topics, world.names.signals, world.names.workers}
        self.closed = False
        self.tails: list[SimTail] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True
        for tail in self.tails:
            tail.wake()

    @property
    def cluster_id(self) -> str:
        return CLUSTER

    @property
    def cut(self) -> bool:
        return self.world.mono_ms < self.senses.cut_until_ms

    # Writing

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> Appended:
        if self.closed or self.loop.dead:
            raise LogUnavailable("The log is closed.")
        world = self.world
        world.topics.check_append(topic, partition, value, key, headers)
        future: asyncio.Future[Appended] = self.loop.create_future()
        record = (topic, partition, value, key, headers)
        if self.cut:
            world.after(world.between(500, 10_000), lambda: self._cut_append(record, future))
        elif topic in self._hints:
            world.after(self._hop_ms(), lambda: self._hint(record, future))
        else:
            fault = world.append_fault()
            world.after(self._hop_ms(), lambda: self._arrive(fault, record, future))
        return await future

    def _hop_ms(self) -> int:
        dice = self.world.random.random()
        return 0 if dice < 0.5 else 1 if dice < 0.8 else self.world.random.randint(2, 12)

    def _arrive(self, fault: Fault | None, record: Any, future: asyncio.Future[Appended]) -> None:
        world = self.world
        outcome: Any
        try:
            outcome = world.topics.append_with(fault, *record)
        except LogError as error:
            outcome = error
        # Not to know takes longer than to know.
        back_ms = world.between(50, 3_000) if isinstance(outcome, AppendUnknown) else self._hop_ms()
        world.after(back_ms, lambda: self.loop.complete(future, outcome))

    def _hint(self, record: Any, future: asyncio.Future[Appended]) -> None:
        world, weather = self.world, self.world.weather
        topic, partition = record[:2]
        standing = Appended(world.topics.bounds(topic, partition).end, world.now_ms)
        outcome: Any = standing
        if world.chance(weather.hint_lost):
            world.stats["hints lost"] += 1
            if world.random.random() < 0.3:
                outcome = AppendUnknown("The hint was lost.")
        elif world.chance(weather.hint_late):
            world.stats["hints late"] += 1
            world.after(world.between(50, 6_000), lambda: void(world.topics.append_with(None, *record)))
        else:
            outcome = world.topics.append_with(None, *record)
            if world.chance(weather.hint_doubled):
                world.stats["hints doubled"] += 1
                world.after(world.between(0, 3_000), lambda: void(world.topics.append_with(None, *record)))
        world.after(self._hop_ms(), lambda: self.loop.complete(future, outcome))

    def _cut_append(self, record: Any, future: asyncio.Future[Appended]) -> None:
        """It waited for a network that did not come; what is buffered may still go out later."""
        world = self.world
        world.stats["appends cut off"] += 1
        if world.random.random() < 0.5:
            wait_ms = max(0, self.senses.cut_until_ms - world.mono_ms) + world.between(0, 500)
            world.after(wait_ms, lambda: void(world.topics.append_with(None, *record)))
        self.loop.complete(future, AppendUnknown("The log did not answer."))

    # Asking

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        await self._asked()
        self.world.topics.ensure(specs)

    async def topic_names(self) -> frozenset[str]:
        await self._asked()
        return frozenset(self.world.topics.specs)

    async def bounds(self, topic: str, partition: int) -> Bounds:
        await self._asked()
        return self.world.topics.bounds(topic, partition)

    async def offset_at(self, topic: str, partition: int, time_ms: int) -> int:
        await self._asked()
        return self.world.topics.offset_at(topic, partition, time_ms)

    async def truncate(self, topic: str, partition: int, before_offset: int) -> None:
        await self._asked()
        self.world.topics.truncate(topic, partition, before_offset)

    async def _asked(self) -> None:
        if self.closed:
            raise LogUnavailable("The log is closed.")
        future: asyncio.Future[None] = self.loop.create_future()
        error = LogUnavailable("The log does not answer.") if self.cut else None
        wait_ms = self.world.between(1_000, 10_000) if self.cut else self._hop_ms()
        self.world.after(wait_ms, lambda: self.loop.complete(future, error))
        await future

    def tail(self, starts: Mapping[TopicPartition, int]) -> SimTail:
        tail = SimTail(self, starts)
        self.tails.append(tail)
        return tail


class SimTail:
    """See :class:`penstock.log.port.Tail`."""

    def __init__(self, log: SimLog, starts: Mapping[TopicPartition, int]) -> None:
        self._log = log
        self._world = log.world
        self._positions: dict[TopicPartition, int] = {}
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._ringing = False
        self._answered_ms = log.world.mono_ms
        for (topic, partition), offset in starts.items():
            self.follow(topic, partition, offset)
        log.loop.on_death.append(self._unlisten)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._unlisten()
        self.wake()

    def _unlisten(self) -> None:
        self._world.deafen(self)

    def follow(self, topic: str, partition: int, offset: int) -> None:
        if (topic, partition) not in self._positions:
            self._world.listen(self, (topic, partition))
        self._positions[topic, partition] = offset
        self.wake()

    def drop(self, topic: str, partition: int) -> None:
        if self._positions.pop((topic, partition), None) is not None:
            self._world.listeners[topic, partition].remove(self)

    def wake(self) -> None:
        """There is something new, or the end of it."""
        if self._waiter is None or self._ringing:
            return
        self._ringing = True
        self._world.after(self._world.random.choice((0, 0, 1, 3)), self._ring)

    def _ring(self) -> None:
        self._ringing = False
        if self._waiter is not None:
            self._log.loop.complete(self._waiter, None)

    async def poll(self, max_wait_ms: int, max_records: int = 5_000) -> Sequence[Record]:
        loop, world = self._log.loop, self._world
        deadline_s = loop.time() + max_wait_ms / 1_000
        await asyncio.sleep(0)
        while True:
            if self._closed or self._log.closed:
                raise LogUnavailable("The log or this tail of it is closed.")
            if not self._log.cut:
                self._answered_ms = world.mono_ms
            elif world.mono_ms - self._answered_ms > SILENT_MS:
                raise LogUnavailable("The log has not answered for long.")
            records = self._take(min(max_records, world.random.choice((1, 3, 64, 5_000))))
            left_s = deadline_s - loop.time()
            if records or left_s <= 0:
                return records
            self._waiter = loop.create_future()
            try:
                await asyncio.wait((self._waiter,), timeout=left_s)
            finally:
                self._waiter = None

    def _take(self, max_records: int) -> list[Record]:
        taken: list[Record] = []
        topics = self._world.topics
        news = [place for place, offset in self._positions.items() if topics.end_of(place) != offset]
        for place in news:
            if len(taken) >= max_records:
                break
            topic, partition = place
            if not self._sees(topic):
                continue
            offset = self._positions[place]
            try:
                records = topics.read(topic, partition, offset, max_records - len(taken))
            except (OffsetTrimmed, OffsetBeyondEnd):
                if taken:
                    break
                raise
            taken.extend(records)
            # Behind the others for the next poll.
            del self._positions[place]
            self._positions[place] = records[-1].offset + 1
        return taken

    def _sees(self, topic: str) -> bool:
        world, senses = self._world, self._log.senses
        until_ms = senses.blind_until_ms if topic == world.names.jobs else senses.deaf_until_ms
        return world.mono_ms >= max(until_ms, senses.cut_until_ms)
