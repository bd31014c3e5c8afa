"""A worker: takes jobs from a transport, runs their handlers, and tells how they ended.

::

    async with Worker(app, LogTransport(log, topics), concurrency=20) as worker:
        await worker.failure

It holds as many leases as it runs handlers, and more while jobs are so short that it would wait for the log
(:mod:`penstock.workers.runtimes`). What it cannot run soon it gives back, which costs the job nothing. At the
end it takes no more, gives back what was not started, lets what runs end for a while, stops the rest and gives
it back, and says good-bye.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Self

from penstock.client.idgen import new_id
from penstock.log.supervision import supervise, tell
from penstock.workers.app import AnyTask, App, collect
from penstock.workers.around import Around
from penstock.workers.children import Children
from penstock.workers.dependencies import Dependencies, Overrides
from penstock.workers.executor import STOP_MS, Executor, limits_of
from penstock.workers.hub import monotonic_ms, wall_clock_ms
from penstock.workers.lease import HeldLease
from penstock.workers.loading import source_of
from penstock.workers.outcome import GivenBack, Outcome, event_of
from penstock.workers.output import OutputKeeper
from penstock.workers.progress import ProgressReporter
from penstock.workers.runtimes import RunTimes
from penstock.workers.scaling import Load
from penstock.workers.transport import Transport, WorkerProfile

BUSY_TICK_MS = 50
IDLE_TICK_MS = 250
SHRUNK_MS = 1_000
"""For so long after the capacity shrank, what was leased under the larger one is not surplus yet."""

STALLED_MS = 500
"""When nothing was started for so long, what was prefetched goes back: the estimate was wrong."""

FLUSH_MS = 10_000

_log = logging.getLogger(__name__)


class Worker:
    """Runs tasks. Use as an async context manager; leaving it is the graceful shutdown.

    Args:
        tasks: an App, or tasks.
        transport: where jobs come from.
        concurrency: handlers run at once.
        pool: whose jobs.
        name: stays the same over restarts, so that a restarted worker frees its old leases at once; made up if empty.
        lease_ms: how long a lease it wants: a worker that falls silent keeps its jobs from others so long.
        grace_ms: at shutdown, how long running handlers may go on.
        overrides: providers, and what is used in their stead.
        output_level: what handlers log from this level on is kept, where there is a place for it.
        processes: whether tasks that ask for a process of their own get one; else they run in threads.

    Raises:
        AppInvalid, TaskInvalid: the tasks cannot be run.
    """

    def __init__(
        self, tasks: App | Iterable[AnyTask], transport: Transport, *, concurrency: int = 10, pool: str = "default",
        name: str = "", lease_ms: int = 30_000, grace_ms: int = 10_000, overrides: Overrides | None = None,
        processes: bool = True, output_level: int = logging.INFO,
        now_ms: Callable[[], float] = monotonic_ms, wall_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:  # fmt: skip
        if concurrency < 1:
            raise ValueError("concurrency is at least 1")
        self._app = collect(tasks)
        self._tasks = self._app.tasks
        in_processes = (
            {name for name, task in self._tasks.items() if task.process} if processes else set[str]()
        )
        here = {name: task for name, task in self._tasks.items() if name not in in_processes}
        self._in_processes = sorted(in_processes)
        self._dependencies = Dependencies(here, overrides, self._app.lifespans)
        self._transport = transport
        self._output_level = output_level
        self._output: OutputKeeper | None = None
        self._grace_ms = grace_ms
        self._now_ms = now_ms
        self._wall_ms = wall_ms
        self.profile = WorkerProfile(
            worker=name or f"{_host()}-{os.getpid()}-{new_id()[-6:]}", incarnation=new_id(), pool=pool,
            types=tuple(sorted(self._tasks)), concurrency=concurrency, lease_ms=lease_ms, host=_host(),
            version=_version(), limits=limits_of(self._tasks, concurrency),
        )  # fmt: skip
        self.run_times = RunTimes()
        self.capacity = concurrency
        self.left = asyncio.Event()
        """Set when a signal asked the worker to stop; whoever runs it should then leave its context."""
        self._limit = concurrency
        self._shrunk_ms = -math.inf
        self._limits = self.profile.limits
        self._limits_shrunk_ms = -math.inf
        self._draining = False
        self._finished = 0
        self._executor: Executor | None = None
        self._reporter: ProgressReporter | None = None
        self._children: Children | None = None
        self._failure: asyncio.Future[None] | None = None
        self._tick_task: asyncio.Task[None] | None = None

    # Service

    async def __aenter__(self) -> Self:
        self._failure = asyncio.get_running_loop().create_future()
        self._reporter = ProgressReporter(self._transport, self._now_ms, self._wall_ms)
        self._children = Children(self._sources(), self._in_processes, self._reporter)
        around = Around({name: self._app.middleware_of(name) for name in self._tasks}, self._dependencies)
        self._output = OutputKeeper(self._transport.bodies, self._output_level, self._wall_ms)
        keeper = self._output if self._transport.bodies.keeps_output else None
        self._executor = Executor(
            self._tasks, self.profile.concurrency, self._reporter, around=around, children=self._children,
            bodies=self._transport.bodies, output=keeper, settle=self._settle, measure=self._measure,
            now_ms=self._now_ms, wall_ms=self._wall_ms,
        )  # fmt: skip
        self._executor.start()
        try:
            await self._output.__aenter__()
            await self._children.open()
            await self._dependencies.open()
            await self._transport.start(self.profile, self)
        except BaseException:
            await self._close()
            raise
        self._transport.failure.add_done_callback(self._transport_failed)
        self._tick_task = supervise(self._tick(), "worker-tick", self._fail)
        _log.info("worker %s runs %s", self.profile.worker, ", ".join(self.profile.types))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._leave(self._grace_ms if error is None else 0)
        finally:
            if self._tick_task is not None:
                self._tick_task.cancel()
                await asyncio.gather(self._tick_task, return_exceptions=True)
            await self._close()
            if not self.failure.done():
                self.failure.cancel()

    async def _close(self) -> None:
        """Let go of everything, in the order in which one needs the other."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._transport.close)
            if self._output is not None:
                stack.push_async_exit(self._output)
            if self._reporter is not None:
                stack.push_async_callback(self._reporter.close)
            stack.push_async_callback(self._dependencies.close)
            if self._children is not None:
                stack.push_async_callback(self._children.close)
            stack.push_async_callback(self.executor.close)

    def _sources(self) -> list[str]:
        """Where a child process finds the tasks again."""
        return list(self._app.sources) or sorted(
            {source_of(self._tasks[name]) for name in self._in_processes}
        )

    @property
    def failure(self) -> asyncio.Future[None]:
        """Gets an exception when the worker cannot go on."""
        assert self._failure is not None, "the worker is not entered"
        return self._failure

    @property
    def executor(self) -> Executor:
        assert self._executor is not None, "the worker is not entered"
        return self._executor

    @property
    def busy(self) -> int:
        """Handlers running now."""
        return len(self.executor.runs)

    def load(self) -> Load:
        """How much it has to do."""
        executor = self.executor
        return Load(
            concurrency=self.profile.concurrency,
            busy=len(executor.runs),
            stuck=executor.stuck,
            held=len(executor.backlog),
            waiting=self._transport.waiting(),
            finished=self._finished,
        )

    async def _leave(self, grace_ms: int) -> None:
        """Take no more, finish or give back, and see it written."""
        self._draining = True
        self._transport.stop_taking()
        self._give_back_waiting("shutdown")
        if not await self.executor.quiet(grace_ms):
            for lease in list(self.executor.runs):
                self.executor.stop(lease, "shutdown")
            await self.executor.quiet(STOP_MS["shutdown"])
            for run in list(self.executor.runs.values()):
                self.executor.speak_for(run)
        unwritten = await self._transport.flush(FLUSH_MS)
        if unwritten:
            _log.warning("%d outcomes were not written; their jobs run again", unwritten)

    # What the transport brings

    def receive(self, leases: Sequence[HeldLease]) -> None:
        """New leases: into the backlog, and what there is no room for goes back."""
        executor = self.executor
        running = {lease.delivery.lease for lease in executor.runs}
        taken: list[HeldLease] = []
        for lease in leases:
            if self._draining:
                self._settle(lease, GivenBack("shutdown"))
            elif lease.delivery.job_type not in self._tasks:
                self._settle(lease, GivenBack("no_handler"))
            elif running and lease.id in running:
                # It was lost once, and the handler that would not stop still runs.
                self._settle(lease, GivenBack("still_running"))
            else:
                taken.append(lease)
        executor.backlog.put(taken)
        self._give_back_surplus()
        executor.wake()

    def cancel(self, lease: HeldLease) -> None:
        if self.executor.backlog.remove(lease):
            self._settle(lease, GivenBack("cancelled"))
        else:
            self.executor.stop(lease, "cancelled", lease.cancel_reason or "")

    def lose(self, lease: HeldLease) -> None:
        if not self.executor.backlog.remove(lease):
            self.executor.stop(lease, "lost", lease.lost_reason)

    def drain(self, stop: bool) -> None:
        self._draining = True
        self._transport.stop_taking()
        self._give_back_waiting("drained")
        if stop:
            self.left.set()

    # Giving back

    def _give_back_waiting(self, reason: str) -> None:
        while (lease := self.executor.backlog.take_last()) is not None:
            self._settle(lease, GivenBack(reason))

    def _give_back_surplus(self) -> None:
        """Keep to the limit: the newest of the least urgent goes back first."""
        backlog = self.executor.backlog
        # The limit has no slots of stuck handlers in it, so what they run is not counted a second time: a worker
        # that asked for a job and then had no room would give it back and get it again without end.
        room = max(self._limit - (len(self.executor.runs) - self.executor.stuck), 0)
        while len(backlog) > room and (lease := backlog.take_last()) is not None:
            self._settle(lease, GivenBack("surplus"))

    def _give_back_parked(self) -> None:
        """What came of a limited type before others knew that its slots are lost would wait for no one knows whom."""
        for job_type, limit in self._limits.items():
            if limit < self.profile.limits[job_type]:
                while (lease := self.executor.backlog.take_parked(job_type)) is not None:
                    self._settle(lease, GivenBack("surplus"))

    # Ends

    def _settle(self, lease: HeldLease, outcome: Outcome) -> None:
        self._finished += 1
        event = event_of(outcome, lease.delivery, lease.run_ms(0.0), self._wall_ms())
        if event is not None:
            self._transport.finish(lease, event)

    def _measure(self, job_type: str, run_ms: float) -> None:
        if self.run_times.add(job_type, run_ms):
            self._resize()

    # Time

    def _resize(self) -> None:
        """Fit the capacity to what runs how long."""
        executor = self.executor
        free_slots = max(self.profile.concurrency - executor.stuck, 0)
        demand = self._transport.demand() | executor.backlog.types()
        prefetch = self.run_times.prefetch(free_slots, demand) if not self._draining else 0
        capacity = free_slots + prefetch
        if capacity < self.capacity:
            self._shrunk_ms = self._now_ms()
        self.capacity = capacity
        self._limit = max(self._limit, capacity)
        self._transport.resize(capacity, len(executor.runs))
        self._fit_limits()

    def _fit_limits(self) -> None:
        """A handler that does not stop keeps one of its type's slots as well."""
        limits = self.executor.limits()
        if limits == self._limits:
            return
        if any(limit < self._limits[job_type] for job_type, limit in limits.items()):
            self._limits_shrunk_ms = self._now_ms()
        self._limits = limits
        self._transport.limit(limits)

    async def _tick(self) -> None:
        while True:
            now_ms = self._now_ms()
            tick_ms = BUSY_TICK_MS if self.executor.runs else IDLE_TICK_MS
            until_ms = min(tick_ms, max(self.executor.next_deadline_ms() - now_ms, 1))
            await asyncio.sleep(until_ms / 1000)
            self._tick_once()

    def _tick_once(self) -> None:
        now_ms = self._now_ms()
        executor = self.executor
        executor.tick()
        waiting = len(executor.backlog)
        if waiting and executor.runs and now_ms - executor.started_ms > STALLED_MS:
            for run in executor.runs.values():
                self.run_times.slow(run.lease.delivery.job_type, run.lease.run_ms(now_ms))
            self._shrunk_ms = -math.inf
        self._resize()
        if now_ms - self._shrunk_ms > SHRUNK_MS and self._limit > self.capacity:
            self._limit = self.capacity
            self._give_back_surplus()
        if now_ms - self._limits_shrunk_ms > SHRUNK_MS:
            self._give_back_parked()

    def _transport_failed(self, failure: asyncio.Future[None]) -> None:
        if not failure.cancelled() and (error := failure.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        tell(self.failure, error)


def _host() -> str:
    return socket.gethostname().split(".")[0] or "worker"


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return ""
