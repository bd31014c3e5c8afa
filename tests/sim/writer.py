"""A process's writer to the jobs topic, as the bundler behaves: in order by partition, retrying what failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from penstock.schemas.errors import LogError
from tests.sim.world import World


class _Lines(NamedTuple):
    """What was put together. Exactly one of the two is called, once it is known which."""

    lines: list[bytes]
    written: Callable[[], None] | None
    failed: Callable[[], None] | None


class Writer:
    """Dies with its process; what it had not appended is lost. ``patient`` writers never give up."""

    def __init__(self, world: World, owner: str, *, patient: bool) -> None:
        self._world = world
        self._owner = owner
        self._patient = patient
        self._queues: dict[int, deque[_Lines]] = {}
        self._busy: dict[int, bool] = {}
        self.alive = True

    def put(
        self,
        partition: int,
        lines: list[bytes],
        written: Callable[[], None] | None = None,
        failed: Callable[[], None] | None = None,
    ) -> None:
        """Append these lines together; ``written`` is called once that is certain, ``failed`` when it is given up."""
        self._queues.setdefault(partition, deque()).append(_Lines(lines, written, failed))
        if not self._busy.get(partition):
            self._busy[partition] = True
            self._world.after(self._world.between(0, 4), lambda: self._flush(partition))

    def _flush(self, partition: int) -> None:
        if not self.alive:
            return
        queue = self._queues[partition]
        batch = [queue.popleft() for _ in range(min(len(queue), self._world.random.choice((1, 3, 50))))]
        self._append(partition, batch)

    def _append(self, partition: int, batch: list[_Lines]) -> None:
        if not self.alive:
            return
        world = self._world
        try:
            world.append_jobs(partition, [line for put in batch for line in put.lines])
        except LogError:
            if not self._patient and world.chance(world.weather.give_up):
                world.note(f"{self._owner} gives up a record for partition {partition}")
                for put in batch:
                    if put.failed is not None:
                        put.failed()
            else:
                world.after(world.between(5, 800), lambda: self._append(partition, batch))
                return
        else:
            for put in batch:
                if put.written is not None:
                    put.written()
        if self._queues[partition]:
            world.after(world.between(0, 4), lambda: self._flush(partition))
        else:
            self._busy[partition] = False
