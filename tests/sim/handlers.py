"""Handlers that do what their job's payload says, and the witness who watches them.

The witness knows from the log who was granted what. A handler that runs without a grant, under another fence than the
log gave, or a second time for a lease whose handler has ended, is a violation.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import msgspec

from penstock.workers.app import App
from penstock.workers.context import Context
from penstock.workers.errors import HandlerError, NonRetryable, RetryLater
from penstock.workers.task import task
from penstock.workers.values import Cancel, PartError, Partial, Snooze
from tests.sim.loop import ProcessLoop
from tests.sim.referee import Referee
from tests.sim.world import World

DEAF_MS = 15_000
"""How long a handler goes on that hears no stop."""


class Witness:
    """Sees every handler start and end."""

    def __init__(self, world: World, referee: Referee) -> None:
        self.world, self.referee = world, referee
        self.running: Counter[tuple[str, str]] = Counter()
        """Handlers by process and lease."""
        self._ended: set[tuple[str, str]] = set()
        self.identities: dict[str, tuple[str, str]] = {}
        """Name of a process: its worker's name and incarnation."""
        self.limits: dict[str, dict[str, int]] = {}
        """By process: of some types, how many of its handlers may run at once."""
        self._contexts: dict[str, dict[str, Context]] = {}
        """By process: of each handler that runs, by lease."""

    def started(self, loop: ProcessLoop, ctx: Context, plan: list[str], ms: int) -> None:
        world, lease = self.world, ctx.lease
        grant = self.referee.grants.get(lease)
        world.require(grant is not None, f"{loop.name} runs {lease}, which nobody was granted")
        assert grant is not None
        known = self.identities.get(loop.name)
        world.require(
            known is None or known == (grant.worker, grant.incarnation),
            f"{loop.name} runs {lease}, which was granted to {grant.worker} {grant.incarnation}",
        )
        world.require(
            int(ctx.fence) == grant.fence, f"{lease} runs with fence {ctx.fence}, not {grant.fence}"
        )
        world.require(ctx.attempt == grant.attempt, f"{lease} runs as attempt {ctx.attempt}")
        book = self.referee.books[grant.job]
        found = msgspec.json.encode(ctx.checkpoint)
        # Delivered again, it may come with what it has saved itself.
        known_ones = {grant.checkpoint} if book.lease != lease or not book.seq else {grant.checkpoint, found}
        world.require(found in known_ones, f"{lease} finds {found!r} and not {grant.checkpoint!r}")
        world.require(
            msgspec.json.decode(grant.payload) == {"plan": plan, "ms": ms},
            f"{lease} runs with another payload",
        )
        world.require(
            (loop.name, lease) not in self._ended, f"{loop.name} runs {lease} again, which had ended here"
        )
        self.running[loop.name, lease] += 1
        world.require(self.running[loop.name, lease] == 1, f"{loop.name} runs {lease} twice at once")
        self._contexts.setdefault(loop.name, {})[lease] = ctx
        self._check_limit(loop.name, ctx.job_type)

    def _check_limit(self, name: str, job_type: str) -> None:
        """Of a limited type no more run at once; one that was told to stop and does not has left its place."""
        limit = self.limits.get(name, {}).get(job_type)
        if limit is None:
            return
        running = [
            lease
            for lease, ctx in self._contexts[name].items()
            if ctx.job_type == job_type and ctx.stop_reason is None
        ]
        self.world.stats["limited handlers"] += 1
        self.world.require(
            len(running) <= limit, f"{name} runs {running} at once: {limit} {job_type} is the limit"
        )

    def ended(self, loop: ProcessLoop, ctx: Context, *, by_itself: bool) -> None:
        self.running[loop.name, ctx.lease] -= 1
        self._contexts[loop.name].pop(ctx.lease, None)
        if by_itself:
            self._ended.add((loop.name, ctx.lease))

    def still_running(self) -> list[str]:
        alive = {loop.name for loop in self.world.loops if not loop.dead}
        return [
            f"{lease} in {name}" for (name, lease), count in self.running.items() if count and name in alive
        ]


async def play(witness: Witness, ctx: Context, plan: list[str], ms: int) -> Any:
    """One attempt: which part of the plan it plays follows from how many have been."""
    world = witness.world
    loop = world.current
    assert loop is not None
    witness.started(loop, ctx, plan, ms)
    # By runs, not attempts: a job that is given back would be given back for ever.
    run = world.runs[ctx.job_id]
    world.runs[ctx.job_id] += 1
    what = plan[min(run, len(plan) - 1)]
    world.stats[f"handler {what}"] += 1
    try:
        return await _do(what, ctx, ms)
    finally:
        if not loop.dead:
            witness.ended(loop, ctx, by_itself=ctx.stop_reason is None)


async def _do(what: str, ctx: Context, ms: int) -> Any:
    match what:
        case "slow":
            for part in range(1, 4):
                await asyncio.sleep(ms / 4_000)
                await ctx.progress(25.0 * part, checkpoint=part if part % 2 else None)
            await asyncio.sleep(ms / 4_000)
        case "hang":
            await asyncio.Event().wait()
        case "deaf":
            await _deaf()
        case "fail" | "back":
            await asyncio.sleep(ms / 2_000)
            await ctx.save({"attempt": ctx.attempt})
            await asyncio.sleep(ms / 2_000)
        case _:
            await asyncio.sleep(ms / 1_000)
    match what:
        case "fail":
            raise HandlerError("boom", code="boom")
        case "fatal":
            raise NonRetryable("boom", code="boom")
        case "back":
            raise RetryLater(300)
        case "cancelled":
            raise asyncio.CancelledError
        case "exit":
            raise SystemExit(1)
        case "snooze":
            return Snooze(ms // 4)
        case "part":
            return Partial("half", [PartError("part")])
        case "quit":
            return Cancel("nothing to do")
        case _:
            return "done"


async def _deaf() -> None:
    """Goes on whatever it is told, and so outlives its lease."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + DEAF_MS / 1_000
    while loop.time() < until_s:
        try:
            await asyncio.sleep(until_s - loop.time())
        except asyncio.CancelledError:
            continue


class Stage:
    """Whose handlers run now: tasks are made once, for making them is dear."""

    witness: Witness | None = None


async def _play(ctx: Context, plan: list[str], ms: int) -> Any:
    assert Stage.witness is not None
    return await play(Stage.witness, ctx, plan, ms)


@task(name="resize")
async def resize(plan: list[str], ms: int, ctx: Context) -> Any:
    return await _play(ctx, plan, ms)


@task(name="report")
async def report(plan: list[str], ms: int, ctx: Context) -> Any:
    return await _play(ctx, plan, ms)


@task(name="report", concurrency=1)
async def single_report(plan: list[str], ms: int, ctx: Context) -> Any:
    return await _play(ctx, plan, ms)


TASKS = {"resize": resize, "report": report}
LIMITED = {**TASKS, "report": single_report}
LIMITS = {"report": 1}


def app_of(types: tuple[str, ...], *, limited: bool) -> App:
    """``limited``: of some types not all may run at once that there is room for."""
    return App(*((LIMITED if limited else TASKS)[name] for name in types))
