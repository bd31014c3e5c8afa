"""Running handlers: a fixed set of runners takes leases from the backlog, one at a time each.

``async def`` handlers run inside their runner's task, so that a job costs no task of its own; ``def`` handlers
run in a thread that the runner waits for, or in a child process where their task says so. One runner takes job after
job for as long as their handlers end without waiting for anything; only when one waits are others woken, to go on
beside it. To stop a handler, a coroutine is cancelled, a thread sees a flag, and a child process is killed. One that
does not stop in time is spoken for (its outcome is told) and keeps its slot until it ends; what it returns then is
dropped.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec
from msgspec import Raw

from penstock.schemas.claims import Claim, claim_of
from penstock.schemas.errors import BlobsUnavailable, ClaimDamaged, ClaimMissing, PenstockError
from penstock.schemas.limits import CLAIM_ABOVE_BYTES
from penstock.workers.arguments import PayloadMismatch
from penstock.workers.around import Around
from penstock.workers.backlog import Backlog
from penstock.workers.bodies import Bodies
from penstock.workers.children import Children
from penstock.workers.context import Context, job_fields
from penstock.workers.lease import HeldLease
from penstock.workers.outcome import (
    Done,
    Errored,
    Outcome,
    StopReason,
    field_errors,
    job_error,
    permanent,
    resolve,
    result_too_large,
    returned_value,
    stopped,
)
from penstock.workers.output import OutputKeeper
from penstock.workers.progress import ProgressReporter
from penstock.workers.run import Run
from penstock.workers.task import Task

YIELD_MS = 5
"""Runners together let others have the loop after so long, however short their jobs are."""

STOP_MS: Mapping[StopReason, int] = {"timeout": 1_000, "cancelled": 20_000, "shutdown": 2_000, "lost": 0}
"""How long a handler that was told to stop may take before its outcome is told without it."""

RELIEF = 2
"""Runners woken at once: two more by each whose handler waits, so all are soon at work where that is needed, and one
is where it is not."""

LAST_WAIT_S = 2.0
"""How long closing waits for handlers that were told to stop long ago."""

_log = logging.getLogger(__name__)

Settle = Callable[[HeldLease, Outcome], None]


def limits_of(tasks: Mapping[str, Task[..., Any]], concurrency: int) -> dict[str, int]:
    """By job type, how many run at once where that is fewer than of all."""
    return {
        name: task.concurrency
        for name, task in tasks.items()
        if task.concurrency is not None and task.concurrency < concurrency
    }


class Executor:
    """Runs what is in a backlog with so many slots. Use from one event loop.

    Args:
        tasks: by job type.
        around: calls handlers that something is done around.
        children: runs those that have a process of their own.
        bodies: where payloads and results are that are too large for the log.
        output: keeps what handlers log; None keeps nothing.
        settle: told the outcome of every lease that was started, once.
        measure: told the type and the run time in ms of every handler that ended by itself.
    """

    def __init__(
        self, tasks: Mapping[str, Task[..., Any]], concurrency: int, reporter: ProgressReporter, *,
        around: Around, children: Children, bodies: Bodies,
        output: OutputKeeper | None, settle: Settle, measure: Callable[[str, float], None],
        now_ms: Callable[[], float], wall_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        self._limits = limits_of(tasks, concurrency)
        self.backlog = Backlog(self._limits)
        self.runs: dict[HeldLease, Run] = {}
        """What runs now, those included that were told to stop and don't."""
        self.concurrency = concurrency
        self._tasks = tasks
        self._reporter = reporter
        self._around = around
        self._children = children
        self._bodies = bodies
        self._output = output
        self._settle = settle
        self._measure = measure
        self._now_ms = now_ms
        self._wall_ms = wall_ms
        self._runners: set[asyncio.Task[None]] = set()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._threads: ThreadPoolExecutor | None = None
        self._closing = False
        self._slice_began_ms: float | None = None
        self._heir = False
        """Whether a runner goes on in the next round of the loop."""
        self._quiet = asyncio.Event()
        """Set when nothing runs any more; cleared by who waits for that."""
        self.started_ms = now_ms()
        """When a job was last started."""

    # For the runtime

    def start(self) -> None:
        for _ in range(self.concurrency):
            self._spawn(contextvars.copy_context())

    def wake(self) -> None:
        """Something was put into the backlog."""
        wanted = min(len(self.backlog), RELIEF)
        while wanted > 0 and self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                wanted -= 1

    @property
    def stuck(self) -> int:
        """Slots held by handlers that were told to stop and whose outcome was told for them."""
        return sum(1 for run in self.runs.values() if run.reported)

    def limits(self) -> dict[str, int]:
        """Of each limited type, how many slots are not held so."""
        free = dict(self._limits)
        if free:
            for run in self.runs.values():
                job_type = run.lease.delivery.job_type
                if run.reported and free.get(job_type):
                    free[job_type] -= 1
        return free

    def stop(self, lease: HeldLease, reason: StopReason, detail: str = "") -> bool:
        """Tell a running handler to stop; false if it does not run. A lost lease outranks every other reason."""
        run = self.runs.get(lease)
        if run is None:
            return False
        if run.stop is None:
            run.stop, run.stop_detail = reason, detail
            run.report_by_ms = self._now_ms() + STOP_MS[reason]
            if run.in_thread and run.stopping is not None:
                run.stopping.set()
            else:
                run.runner.cancel()
        elif reason == "lost":
            run.stop, run.stop_detail = reason, detail
            run.report_by_ms = self._now_ms()
        return True

    def tick(self) -> None:
        """What only time brings about: timeouts, progress held back, handlers that do not stop."""
        now_ms = self._now_ms()
        for run in list(self.runs.values()):
            if run.stop is None:
                if run.deadline_ms and now_ms >= run.deadline_ms:
                    timeout_ms = run.lease.delivery.timeout_ms
                    self.stop(run.lease, "timeout", f"the attempt ran longer than {timeout_ms} ms")
                elif run.pending_progress is not None:
                    self._reporter.flush(run)
            elif now_ms >= run.report_by_ms and not run.reported:
                self.speak_for(run)

    def next_deadline_ms(self) -> float:
        """The earliest timeout of what runs."""
        deadlines = (run.deadline_ms for run in self.runs.values() if run.deadline_ms and run.stop is None)
        return min(deadlines, default=float("inf"))

    def speak_for(self, run: Run) -> None:
        """Tell the outcome of a handler that was told to stop and still runs."""
        if run.stop is None or run.reported:
            return
        run.reported = True
        if run.stop != "lost":
            _log.warning(
                "a handler does not stop (%s) and keeps its slot",
                run.stop,
                extra=job_fields(run.lease.delivery),
            )
        if not run.in_thread:
            run.runner.cancel()
        run.lease.ended_ms = self._now_ms()
        self._settle(run.lease, stopped(run.stop, run.stop_detail))

    async def quiet(self, timeout_ms: float) -> bool:
        """Wait until nothing runs; false after ``timeout_ms``."""
        if not self.runs:
            return True
        self._quiet.clear()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._quiet.wait()
        except TimeoutError:
            return not self.runs
        return True

    async def close(self) -> None:
        """End the runners. Threads, and handlers that go on whatever they are told, are left behind."""
        self._closing = True
        for runner in list(self._runners):
            runner.cancel()
        if self._runners:
            _, deaf = await asyncio.wait(self._runners, timeout=LAST_WAIT_S)
            for runner in deaf:
                _log.error("a handler swallows its cancellation and is left behind: %s", runner.get_name())
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    # Runners

    def _spawn(self, context: contextvars.Context) -> None:
        runner = asyncio.get_running_loop().create_task(
            self._run_jobs(context), name="penstock-runner", context=context.copy()
        )
        self._runners.add(runner)
        runner.add_done_callback(self._runners.discard)

    async def _run_jobs(self, clean: contextvars.Context) -> None:
        """Take job after job. A handler that changed context variables leaves its runner to be replaced by a
        clean one.
        """
        runner = asyncio.current_task()
        assert runner is not None
        before = contextvars.copy_context()
        now_ms = self._now_ms()
        while not self._closing:
            if not self.backlog.count:
                await self._rest()
                now_ms = self._now_ms()
                continue
            if self._slice_over(now_ms):
                await self._yield()
                now_ms = self._now_ms()
                continue
            lease = self.backlog.take()
            assert lease is not None
            now_ms = await self._run(lease, runner, now_ms)
            if contextvars.copy_context() != before:
                self._spawn(clean)
                return

    def _slice_over(self, now_ms: float) -> bool:
        """Whether the runners have had this round of the event loop for long enough."""
        if self._slice_began_ms is None:
            self._slice_began_ms = now_ms
            asyncio.get_running_loop().call_soon(self._next_slice)
        return now_ms - self._slice_began_ms > YIELD_MS

    def _next_slice(self) -> None:
        """The loop has come round since a job was started. Where jobs wait and no runner is to go on with them by
        itself, it was its handler that let go of the loop: now others take over."""
        self._slice_began_ms = None
        if not self._heir:
            self.wake()

    async def _yield(self) -> None:
        """One runner goes on in the next round; the others need not all look in to find the time used up again."""
        if self._heir:
            await self._rest()
            return
        self._heir = True
        try:
            await asyncio.sleep(0)
        finally:
            self._heir = False

    async def _rest(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(waiter)
        await waiter

    async def _run(self, lease: HeldLease, runner: asyncio.Task[None], now_ms: float) -> float:
        """Run one job to its end; returns when that was."""
        task = self._tasks[lease.delivery.job_type]
        lease.started_ms = self.started_ms = now_ms
        payload = bytes(lease.delivery.payload)
        if (claim := claim_of(payload)) is not None:
            if not await self._bring(lease, runner, claim):
                return self._now_ms()
            payload = bytes(lease.delivery.payload)
        try:
            kwargs = task.arguments.read(payload)
        except PayloadMismatch as error:
            return self._not_run(lease, field_errors(error.problems), now_ms)
        except Exception as error:  # noqa: BLE001 - a validator of the user's own may raise anything
            return self._not_run(
                lease, permanent("invalid_payload", f"{type(error).__name__}: {error}"), now_ms
            )
        run = self.runs[lease] = Run(lease, runner)
        value: Any = None
        failure: BaseException | None = None
        output = None if self._output is None else self._output.begin(lease)
        try:
            value = await self._call(run, task, kwargs)
            if value is not None and run.stop is None:
                value = returned_value(value, self._bodies.max_result_bytes)
                if type(value) is Done and len(value.result) > CLAIM_ABOVE_BYTES:
                    value = await self._take_away(lease, value)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its job's outcome
            failure = error
        if output is not None and self._output is not None:
            self._output.end(output)
        now_ms = self._now_ms()
        self._end(run, value, failure, now_ms)
        if failure is not None and self._ends_runner(failure):
            raise failure
        return now_ms

    def _ends_runner(self, failure: BaseException) -> bool:
        if isinstance(failure, KeyboardInterrupt):
            # Where somebody listens to Ctrl-C, this is none: the handler has raised it.
            return signal.getsignal(signal.SIGINT) is signal.default_int_handler
        return isinstance(failure, GeneratorExit) or (
            self._closing and isinstance(failure, asyncio.CancelledError)
        )

    async def _bring(self, lease: HeldLease, runner: asyncio.Task[None], claim: Claim) -> bool:
        """Fetch a payload that lies beside the log; false if that was the end of the attempt."""
        run = self.runs[lease] = Run(lease, runner)
        try:
            payload = await self._bodies.payload(lease.delivery, claim)
        except PenstockError as error:
            retryable = not isinstance(error, ClaimMissing | ClaimDamaged)
            failure = Errored(job_error(error.code, error.message, None, retryable=retryable))
            self._end(run, failure, None, self._now_ms())
            return False
        except BaseException as error:
            self._end(run, None, error, self._now_ms())
            if self._ends_runner(error):
                raise
            return False
        del self.runs[lease]
        lease.delivery = msgspec.structs.replace(lease.delivery, payload=Raw(payload))
        return True

    async def _take_away(self, lease: HeldLease, done: Done) -> Outcome:
        """The same outcome with a result that the log has room for."""
        most_bytes = self._bodies.max_result_bytes
        if len(done.result) > most_bytes:
            return result_too_large(len(done.result), most_bytes)
        try:
            return done._replace(result=await self._bodies.result(lease.delivery, done.result))
        except BlobsUnavailable as error:
            return Errored(job_error(error.code, error.message, None, retryable=True))

    def _not_run(self, lease: HeldLease, outcome: Outcome, now_ms: float) -> float:
        lease.ended_ms = now_ms
        self._settle(lease, outcome)
        self.backlog.ended(lease.delivery.job_type)
        return self._now_ms()

    def _call(self, run: Run, task: Task[..., Any], kwargs: dict[str, Any]) -> Awaitable[Any]:
        """What a handler returns. Middleware and dependencies of one in a child are in the child as well."""
        if task.name in self._children.types:
            return self._children.run(run)
        context_name, around = task.arguments.context_name, task.name in self._around.types
        handler = task.function if task.is_async else partial(self._in_thread, run, task.function)
        if not context_name and not around:
            return handler(**kwargs)
        context = Context(run, self._reporter, self._wall_ms())
        if context_name:
            kwargs[context_name] = context
        return self._around.call(context, handler, kwargs) if around else handler(**kwargs)

    def _end(self, run: Run, value: Any, failure: BaseException | None, now_ms: float) -> None:
        lease = run.lease
        del self.runs[lease]
        if not self.runs:
            self._quiet.set()
        if self.backlog.ended(lease.delivery.job_type):
            self.wake()
        if run.stop is None:
            lease.ended_ms = now_ms
            self._measure(lease.delivery.job_type, lease.ended_ms - lease.started_ms)
        else:
            while run.runner.cancelling():
                run.runner.uncancel()
        if run.reported:
            return
        run.reported = True
        lease.ended_ms = lease.ended_ms or now_ms
        self._settle(lease, resolve(run.stop, run.stop_detail, value, failure))

    async def _in_thread(self, run: Run, function: Callable[..., Any], /, **kwargs: Any) -> Any:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.concurrency, "penstock-handler")
        call = partial(contextvars.copy_context().run, function, **kwargs)
        run.enter_thread()
        try:
            value = await asyncio.get_running_loop().run_in_executor(self._threads, call)
        finally:
            run.in_thread = False
        if inspect.iscoroutine(value):
            value.close()
            raise TypeError("a def handler returned a coroutine; make it async def")
        return value
