"""Handlers of the acceptance tests; each run leaves a line in the file that `ACCEPTANCE_LEDGER` names, if it does."""

import asyncio
import os

from penstock import Context, task


@task
async def add(a: int, b: int, ctx: Context) -> int:
    _note(ctx)
    return a + b


@task
async def nap(seconds: float, ctx: Context) -> str:
    _note(ctx)
    await asyncio.sleep(seconds)
    return "slept"


@task
async def noop() -> None:
    """Does nothing."""


def _note(ctx: Context) -> None:
    path = os.environ.get("ACCEPTANCE_LEDGER")
    if path:
        # One write of a short line to a file opened for appending is never torn.
        with open(path, "a") as file:
            file.write(f"{ctx.job_id} {ctx.attempt} {ctx.fence}\n")
