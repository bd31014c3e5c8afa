"""A host: a name, clocks and a disk, and on it one process after the other, each with a loop of its own."""

from __future__ import annotations

import asyncio
import traceback
from abc import ABC, abstractmethod
from functools import partial

from penstock.schemas.errors import (
    AppendRefused,
    AppendUnknown,
    LogUnavailable,
    OffsetTrimmed,
    ServerUnreachable,
)
from tests.sim.clocks import Clock
from tests.sim.disk import Disk
from tests.sim.loop import ProcessLoop
from tests.sim.simlog import Senses, SimLog
from tests.sim.world import World

ENDED_BY_THE_WEATHER = (LogUnavailable, AppendUnknown, AppendRefused, ServerUnreachable)
"""What may end a process that is otherwise well: whoever runs it starts it again."""

STOPS_WITHIN_MS = 60_000
"""A process that is told to stop must have ended by then."""


class Host(ABC):
    """Runs :meth:`live` in a process, again and again."""

    role = "host"

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.disk = Disk(world, self.role)
        self.senses = Senses()
        weather = world.weather
        self.clock = Clock(
            world,
            skew_ms=world.between(-weather.skew_ms, weather.skew_ms),
            rate=1.0 + (world.random.random() * 2 - 1) * weather.drift,
            up_ms=world.between(1_000, 10_000_000),
        )
        self.lives = 0
        self.loop: ProcessLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._leaving = False
        self._retired = False

    @abstractmethod
    async def live(self, log: SimLog) -> None:
        """The process: returns, or raises, when it has ended by itself."""

    async def until_end(self, *failures: asyncio.Future[None]) -> None:
        """All has started: return when told to stop, raise what fails."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ProcessLoop)
        loop.started = True
        wanted = asyncio.ensure_future(loop.stop.wait())
        try:
            done, _ = await asyncio.wait((wanted, *failures), return_when=asyncio.FIRST_COMPLETED)
        finally:
            wanted.cancel()
        for future in done:
            future.result()

    def forget(self) -> None:  # noqa: B027 # not every role is reached by others
        """The process is gone, and with it what others could reach of it."""

    # Life and death

    @property
    def alive(self) -> bool:
        return self.loop is not None and not self.loop.dead

    def start(self) -> None:
        if self.alive or self._retired:
            return
        world = self.world
        self.lives += 1
        self._leaving = False
        self.senses.clear()
        loop = self.loop = ProcessLoop(
            world, f"{self.name}.{self.lives}", self.clock, slow=world.weather.slow_turns
        )
        loop.cut_until_ms = lambda: self.senses.cut_until_ms
        loop.killer = partial(self._blow, loop)
        world.note(f"{loop.name} starts")
        loop.call_soon(partial(self._begin, loop))

    def _blow(self, loop: ProcessLoop) -> None:
        if loop is self.loop:
            self.crash()
        else:
            loop.kill()

    def _begin(self, loop: ProcessLoop) -> None:
        main = self._main = loop.create_task(self._live(loop), name=loop.name)
        main.add_done_callback(partial(self._ended, loop))

    async def _live(self, loop: ProcessLoop) -> None:
        log = SimLog(self.world, loop, self.senses)
        async with log:
            await self.live(log)

    def _ended(self, loop: ProcessLoop, main: asyncio.Task[None]) -> None:
        error = None if main.cancelled() else main.exception()
        asked = main.cancelled() or (self._leaving and loop is self.loop)
        world = self.world
        if error is not None and not self.may_end_with(error):
            told = "".join(traceback.format_exception(error))
            world.complaints.append(f"{loop.name} ended: {told}")
        world.note(f"{loop.name} has ended{'' if error is None else f': {error!r}'[:200]}")
        world.stats[f"{self.role} {'left' if asked else 'ended by itself'}"] += 1
        loop.kill()
        if loop is self.loop:
            self.forget()
            world.after(world.between(20, 3_000), self.start)

    def may_end_with(self, error: BaseException) -> bool:
        return isinstance(error, ENDED_BY_THE_WEATHER) or (
            # The log was trimmed past a slow one: it comes back with a snapshot.
            bool(self.world.weather.snapshots_ms) and isinstance(error, OffsetTrimmed)
        )

    def crash(self) -> None:
        """Die at once. What was committed stays on the disk, or a part of it, or nothing."""
        loop = self.loop
        if loop is None or loop.dead:
            return
        world = self.world
        world.stats[f"{self.role} crashes"] += 1
        world.note(f"{loop.name} crashes")
        loop.kill()
        self.disk.lose_power()
        self.forget()
        world.after(self.down_ms(), self.start)

    def down_ms(self) -> int:
        """How long until a crashed process is started again."""
        return self.world.between(20, 6_000)

    def retire(self) -> None:
        """Die, and never come back."""
        self._retired = True
        if self.loop is not None:
            self.loop.kill()

    def fuse(self) -> None:
        """Die at some await soon."""
        if self.alive and self.loop is not None:
            self.loop.fuse = self.world.random.choice((1, 5, 30, 200)) + self.world.between(0, 20)

    def pause(self, for_ms: int) -> None:
        """Stop wherever it is, and go on later as if nothing had been."""
        loop = self.loop
        if loop is None or loop.dead or loop.paused:
            return
        self.world.stats[f"{self.role} pauses"] += 1
        self.world.note(f"{loop.name} pauses for {for_ms} ms")
        loop.pause()
        self._wake_later(loop, for_ms)

    def _wake_later(self, loop: ProcessLoop, after_ms: int) -> None:
        world = self.world
        world.last_fault_ms = max(world.last_fault_ms, world.mono_ms + after_ms)
        world.after(after_ms, partial(self._resume, loop))

    def _resume(self, loop: ProcessLoop) -> None:
        if not loop.dead:
            self.world.note(f"{loop.name} wakes")
            loop.resume()

    def leave(self) -> None:
        """Stop in good order, as at SIGTERM; then start anew."""
        loop, main = self.loop, self._main
        if loop is None or loop.dead or loop.paused or main is None or self._leaving:
            return
        self.world.stats[f"{self.role} told to stop"] += 1
        self.world.note(f"{loop.name} is told to stop")
        self._leaving = True
        # Nothing runs yet that could be left in good order, before all has started.
        loop.call_soon(loop.stop.set if loop.started else main.cancel)
        self.world.after(STOPS_WITHIN_MS, partial(self._must_have_stopped, loop))

    def _must_have_stopped(self, loop: ProcessLoop) -> None:
        if not loop.dead and not loop.paused:
            self.world.violated(f"{loop.name} does not stop")

    def replace(self, wakes_after_ms: int) -> None:
        """The process sleeps, another is started in its place, and later it wakes and does not know."""
        loop = self.loop
        if loop is None or loop.dead or loop.paused:
            return
        self.world.stats["zombies"] += 1
        self.world.note(f"{loop.name} sleeps and is replaced")
        loop.pause()
        self._wake_later(loop, wakes_after_ms)
        self.world.after(self.world.between(wakes_after_ms, wakes_after_ms + 40_000), loop.kill)
        self.loop = None
        self.start()

    def step_clock(self) -> None:
        weather = self.world.weather
        self.clock.skew_ms = self.world.between(-weather.skew_ms, weather.skew_ms)
