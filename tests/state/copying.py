"""A source with several partitions and jobs in every state, and copies of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

from penstock.core.job import Job
from penstock.log.memory import MemoryLog
from penstock.log.namespace import LogShape, begin_namespace, open_namespace
from penstock.log.port import Headers
from penstock.schemas.ids import partition_of
from penstock.schemas.topics import Topics
from penstock.state.copy_log import End, LogCopier
from tests.state.shelf import Shelf
from tests.state.writing import OPS, START_MS, Op, Writer

SOURCE = Topics(namespace="source", partitions=3, work_partitions=2)
JOBS_EACH = 6


def target_topics(partitions: int, namespace: str = "target") -> Topics:
    return Topics(namespace=namespace, partitions=partitions, work_partitions=2)


def numbers_of(partition: int, partitions: int = SOURCE.partitions) -> list[int]:
    """Numbers of jobs that live in a partition."""
    return [n for n in range(1_000) if partition_of(f"job-{n}", partitions) == partition][:JOBS_EACH]


def random_ops(random: Random, partition: int, count: int = 150) -> list[Op]:
    numbers = numbers_of(partition)
    ops = [(random.choice(OPS), random.choice(numbers), random.randrange(400)) for _ in range(count)]
    # A stranger to another partition would wait to be forwarded, and nobody leads here.
    return [op for op in ops if op[0] != "stranger" or partition_of(f"job-{op[1]}-unknown", 3) == partition]


class Clock:
    """The log's clock, set by hand."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


class World:
    """One memory log with a source on it. ``writers`` hold what each partition should have."""

    def __init__(self, topics: Topics = SOURCE) -> None:
        self.clock = Clock()
        self.log = MemoryLog(now_ms=self.clock)
        self.topics = topics
        self.writers = [
            Writer(partition=number, partitions=topics.partitions, topic=topics.jobs)
            for number in range(topics.partitions)
        ]
        self._written = [0] * topics.partitions

    async def begin(self) -> None:
        await open_namespace(self.log, self.topics)

    async def play(self, ops_of: Callable[[int], Iterable[Op]]) -> None:
        for number, writer in enumerate(self.writers):
            writer.play(list(ops_of(number)))
        await self.write()

    async def write(self) -> None:
        """Bring what the writers wrote onto the log, with its offsets and times."""
        for number, writer in enumerate(self.writers):
            writer.end_record()
            for record in writer.records[self._written[number] :]:
                gap = record.offset - (await self.log.bounds(self.topics.jobs, number)).end
                if gap:
                    self.log.topics.skip_offsets(self.topics.jobs, number, gap)
                self.clock.now_ms = record.time_ms
                await self.log.append(self.topics.jobs, number, record.value, headers=record.headers)
            self._written[number] = len(writer.records)
        self.clock.now_ms += 86_400_000

    def jobs(self) -> dict[str, Job]:
        return {
            key: job for writer in self.writers for key, job in writer._fold.touched_jobs() if job is not None
        }

    def copier(
        self, target: Topics, log: Any = None, source: Topics | None = None, **options: Any
    ) -> LogCopier:
        shelf = Shelf()
        return LogCopier(
            End(self.log, source or self.topics),
            End(log or self.log, target),
            Path("nowhere"),
            store_factory=shelf,
            **options,
        )


async def random_world(seed: int) -> World:
    world = World()
    await world.begin()
    random = Random(seed)
    await world.play(lambda number: random_ops(random, number))
    return world


class Dying(MemoryLog):
    """A client of the same log that dies at its ``appends``-th append, just before or just after it landed."""

    def __init__(self, world: World, appends: int, *, landed: bool) -> None:
        super().__init__(topics=world.log.topics)
        self.left = appends
        self.landed = landed

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> Any:
        self.left -= 1
        if self.left < 0 or (self.left == 0 and not self.landed):
            raise Died
        appended = await super().append(topic, partition, value, key=key, headers=headers)
        if self.left == 0:
            raise Died
        return appended


class Died(Exception):
    """As a process that was killed."""


async def made_anew(world: World, topics: Topics) -> None:
    """A namespace that says it is a copy, and stays unfinished."""
    await begin_namespace(world.log, topics, LogShape(topics.partitions, 1, "another", "elsewhere"))
