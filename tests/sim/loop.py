"""One process's event loop under virtual time.

The world has one line of time and many loops on it. A loop keeps asyncio's promise that callbacks run in the order in
which they were scheduled; what is drawn from the seed is when a loop gets its turn, how long that takes, and when what
it waits for from outside comes. A loop that is killed is simply never given a turn again: no ``finally`` runs, as if
the power had gone, and what was on its way to others still arrives.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from penstock.client.idgen import UlidSource
from tests.sim.clocks import Clock
from tests.sim.world import World

# A loop has to reach into asyncio's handles, as asyncio's own do.

PRUNE_TASKS = 256
MOST_CLOSINGS = 50


class _Numbered:
    """Has a hash that follows from the seed: the order of a set of tasks or futures must not hang on addresses."""

    def __new__(cls, *_: Any, loop: ProcessLoop, **__: Any) -> Any:
        made = super().__new__(cls)
        made._number = loop.world.next_number()
        return made

    def __hash__(self) -> int:
        return self._number

    __eq__ = object.__eq__


class SimTask(_Numbered, asyncio.Task[Any]):
    """A task of a simulated process."""


class SimFuture(_Numbered, asyncio.Future[Any]):
    """A future of a simulated process."""


class ProcessLoop(asyncio.AbstractEventLoop):
    """The loop of one life of one process."""

    def __init__(self, world: World, name: str, clock: Clock, *, slow: float = 0.0) -> None:
        self.world = world
        self.name = name
        self.clock = clock
        self.dead = False
        self.paused = False
        self.fuse = -1
        """Dies after so many more callbacks; -1: does not."""
        self.killer: Callable[[], None] = self.kill
        """What a burnt fuse sets off."""
        self.on_death: list[Callable[[], None]] = []
        self.cut_until_ms: Callable[[], int] = lambda: -1
        """Until when its host reaches nobody, the world's ms."""
        self.stop = asyncio.Event()
        """Set when the process is told to stop."""
        self.started = False
        """Whether all of it has started, so that it can stop in good order."""
        self.ids = UlidSource(lambda: int(clock.wall_ms()), world.random.randbytes)
        self._slow = slow
        self._ready: deque[asyncio.Handle] = deque()
        self._turn_planned = False
        self._tasks: list[asyncio.Task[Any]] = []
        self._prune_at = PRUNE_TASKS
        world.loops.append(self)

    # Life and death

    def kill(self) -> None:
        """No more turns, ever."""
        if self.dead:
            return
        self.dead = True
        self._ready.clear()
        for told in self.on_death:
            told()

    def pause(self) -> None:
        """As SIGSTOP does: what is due waits, and clocks go on."""
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._plan_turn()

    def bury(self) -> None:
        """Close what was left hanging, once nobody looks any more."""
        self.kill()
        for task in self._tasks:
            task._log_destroy_pending = False
            coroutine = task.get_coro()
            for _ in range(MOST_CLOSINGS):
                try:
                    coroutine.close()
                    break
                except (Exception, asyncio.CancelledError, GeneratorExit):  # noqa: BLE001 # it clung to life; again
                    continue
        self._tasks.clear()
        self._ready.clear()
        self.on_death.clear()

    # Turns

    def _plan_turn(self) -> None:
        if self._turn_planned or self.dead or self.paused or not self._ready:
            return
        self._turn_planned = True
        world = self.world
        dice = world.random.random()
        delay_ms = 0 if dice < 0.7 else 1
        if dice < self._slow and world.raining:
            delay_ms = world.random.randint(2, 300)
        world.after(delay_ms, self._turn)

    def _turn(self) -> None:
        self._turn_planned = False
        if self.dead or self.paused:
            return
        ready = self._ready
        world = self.world
        world.current = self
        events._set_running_loop(self)
        try:
            for _ in range(len(ready)):
                if self.fuse >= 0:
                    self.fuse -= 1
                    if self.fuse < 0:
                        self.killer()
                        return
                handle = ready.popleft()
                if not handle._cancelled:
                    handle._run()
                world.steps += 1
                if self.dead or self.paused:
                    break
        finally:
            events._set_running_loop(None)
            world.current = None
        if world.complaints:
            world.violated(world.complaints[0])
        self._plan_turn()

    def complete(self, future: asyncio.Future[Any], outcome: Any) -> None:
        """Something from outside is there: an exception or a value."""
        if not self.dead:
            self.call_soon(_settle, future, outcome)

    # What asyncio asks of a loop

    def time(self) -> float:
        return self.clock.monotonic_ms() / 1_000

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self.dead:
            self._ready.append(handle)
            self._plan_turn()
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        delay_ms = (when * 1_000 - self.clock.monotonic_ms()) / self.clock.rate
        # Up to the next whole millisecond, so that the clock never says that it is too early.
        self.world.after(int(-(-delay_ms // 1)), partial(self._ring, timer))
        return timer

    def _ring(self, timer: asyncio.TimerHandle) -> None:
        if not timer._cancelled and not self.dead:
            self._ready.append(timer)
            self._plan_turn()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It stays where it is and rings unheard."""

    def create_future(self) -> asyncio.Future[Any]:
        return SimFuture(loop=self)

    def create_task(
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Any = None
    ) -> asyncio.Task[Any]:
        task = SimTask(coro, loop=self, name=name or "task", context=context)
        self._tasks.append(task)
        if len(self._tasks) > self._prune_at:
            self._tasks = [known for known in self._tasks if not known.done()]
            self._prune_at = max(PRUNE_TASKS, 2 * len(self._tasks))
        return task

    async def create_server(
        self, protocol_factory: Callable[[], Any], host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        return self.world.network.listen(self, protocol_factory, port or 0)

    async def create_connection(
        self, protocol_factory: Callable[[], Any], host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        return await self.world.network.connect(self, protocol_factory, port)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.dead

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not self.dead:
            self.world.complaints.append(f"{self.name}: {context.get('message')}: {error!r}")

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
