"""Handlers under fire. Each leaves a line at its start and one at its end in the file that `FAULTS_RUNS` names."""

from __future__ import annotations

import asyncio
import os
import time

from penstock import Context, task

STEPS = 4


@task
async def add(a: int, b: int, ctx: Context) -> int:
    _note("start", ctx)
    _note("end", ctx)
    return a + b


@task
async def nap(seconds: float, ctx: Context) -> str:
    _note("start", ctx)
    await asyncio.sleep(seconds)
    _note("end", ctx)
    return "slept"


@task
def blocking(seconds: float, ctx: Context) -> str:
    """Runs in a thread."""
    _note("start", ctx)
    ctx.sleep(seconds)
    _note("end", ctx)
    return "slept"


@task
async def steps(ctx: Context) -> int:
    """Takes up its work where the last attempt saved it."""
    _note("start", ctx)
    done = int(ctx.checkpoint or 0)
    while done < STEPS:
        await asyncio.sleep(0.3)
        done += 1
        await ctx.save(done)
    _note("end", ctx)
    return done


@task
async def flaky(ctx: Context) -> str:
    """Fails once."""
    _note("start", ctx)
    if ctx.attempt == 1:
        raise RuntimeError("not the first time")
    _note("end", ctx)
    return "at last"


@task
async def doomed(ctx: Context) -> None:
    """Never works."""
    _note("start", ctx)
    raise RuntimeError("never")


def _note(what: str, ctx: Context) -> None:
    # The monotonic clock is one for the whole machine, and nobody's wall clock can be trusted here. One write of a
    # short line to a file opened for appending is never torn.
    line = f"{what} {ctx.job_id} {ctx.attempt} {ctx.fence} {time.monotonic():.6f}\n"
    with open(os.environ["FAULTS_RUNS"], "a") as file:
        file.write(line)
