"""Writing holders' lines to the jobs log, in bundles, until they are written.

While a bundle of a partition is on its way, what comes meanwhile waits and becomes the next one: the busier,
the larger the bundles, and one line alone waits for nobody. A write that fails, or whose fate is unknown, is
repeated with the same event ids, so that a second copy is a duplicate.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from penstock.log.bundler import LinePosition
from penstock.schemas.errors import LeaseLost, LogError, RecordTooLarge
from penstock.schemas.limits import MAX_BUNDLE_LINES

MAX_LINES = min(4_096, MAX_BUNDLE_LINES)
"""Lines given to the bundler at once."""

FIRST_RETRY_MS = 50
LONGEST_RETRY_MS = 2_000

LAST_WAIT_S = 1.0
"""How long closing waits for what is in the middle of being written."""

_log = logging.getLogger(__name__)


class Bundles(Protocol):
    """What :class:`penstock.log.bundler.Bundler` does."""

    async def append_many(self, partition: int, lines: Sequence[bytes]) -> Sequence[LinePosition]: ...

    async def flush(self) -> None: ...


class Pending(Protocol):
    """A line to be written, and who wants to know."""

    @property
    def line(self) -> bytes: ...

    @property
    def wanted(self) -> bool:
        """Whether it is worth another try after one that failed."""
        ...

    def written(self, position: LinePosition) -> None: ...

    def gave_up(self, error: Exception) -> None: ...


class AwaitedLine:
    """A line whose writer waits for it."""

    __slots__ = ("done", "line")

    def __init__(self, line: bytes) -> None:
        self.line = line
        self.done: asyncio.Future[LinePosition] = asyncio.get_running_loop().create_future()

    @property
    def wanted(self) -> bool:
        return not self.done.done()

    def written(self, position: LinePosition) -> None:
        if not self.done.done():
            self.done.set_result(position)

    def gave_up(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class OutcomeWriter:
    """Queues of lines by partition, each drained by at most one task."""

    def __init__(self, bundles: Bundles) -> None:
        self._bundles = bundles
        self._queues: dict[int, list[Pending]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, partition: int, pending: Pending) -> None:
        queue = self._queues.get(partition)
        if queue is None:
            queue = self._queues[partition] = []
        queue.append(pending)
        if partition not in self._tasks:
            self._idle.clear()
            task = asyncio.create_task(self._drain(partition, queue), name=f"outcomes-{partition}")
            self._tasks[partition] = task

    async def append(self, partition: int, line: bytes) -> LinePosition:
        """Write one line and return where it stands."""
        pending = AwaitedLine(line)
        self.put(partition, pending)
        return await pending.done

    def waiting(self) -> int:
        """Lines not written yet."""
        return sum(len(queue) for queue in self._queues.values())

    async def flush(self, timeout_ms: int) -> int:
        """Wait until nothing waits; returns how many lines still do after ``timeout_ms``."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._idle.wait()
        except TimeoutError:
            return self.waiting()
        return 0

    async def close(self) -> None:
        """Stop. What was not written is not."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WAIT_S):
                await self._bundles.flush()
        closed = LeaseLost("the worker has stopped")
        for queue in self._queues.values():
            for pending in queue:
                pending.gave_up(closed)
            queue.clear()

    async def _drain(self, partition: int, queue: list[Pending]) -> None:
        """Write until the queue is empty. The task goes before it ends, so that the next line starts another."""
        pause_ms = FIRST_RETRY_MS
        try:
            while queue:
                batch = queue[:MAX_LINES]
                try:
                    await self._write(partition, batch)
                except LogError as error:
                    self._drop_unwanted(queue, error)
                    _log.warning("outcomes of partition %d are not written yet: %s", partition, error.message)
                    await asyncio.sleep(pause_ms / 1000)
                    pause_ms = min(2 * pause_ms, LONGEST_RETRY_MS)
                else:
                    pause_ms = FIRST_RETRY_MS
                    del queue[: len(batch)]
        finally:
            del self._tasks[partition]
            if not self._tasks:
                self._idle.set()

    async def _write(self, partition: int, batch: list[Pending]) -> None:
        try:
            positions = await self._bundles.append_many(partition, [pending.line for pending in batch])
        except (RecordTooLarge, ValueError) as error:
            # A line that tears its record cannot be written either, and must not leave the others behind.
            await self._write_singly(partition, batch, error)
            return
        for pending, position in zip(batch, positions, strict=True):
            pending.written(position)

    async def _write_singly(self, partition: int, batch: list[Pending], error: Exception) -> None:
        """One line is too large for the log: find it, so that the others are not kept from being written."""
        if len(batch) == 1:
            _log.error("an outcome of %d bytes is given up: %s", len(batch[0].line), error)
            batch[0].gave_up(error)
            return
        for pending in batch:
            await self._write(partition, [pending])

    @staticmethod
    def _drop_unwanted(queue: list[Pending], error: Exception) -> None:
        kept: list[Pending] = []
        for pending in queue:
            if pending.wanted:
                kept.append(pending)
            else:
                pending.gave_up(error)
        queue[:] = kept
