"""Penstock's handlers in the benchmarks; the peers have the same in their own words."""

from __future__ import annotations

import os

from benchmarks import tally
from penstock import Context, task
from penstock.schemas.ids import partition_of

FAILING = 10
"""Every so manieth `flaky` job fails the first time that it runs."""


class FailsOnce(Exception):
    """What a `flaky` handler raises."""


@task
async def noop() -> None:
    tally.count()


@task
async def payload(text: str) -> None:
    tally.count()


@task
async def tagged(number: int, to: str) -> None:
    tally.count()


@task
async def flaky(number: int, ctx: Context) -> None:
    tally.count()
    if number % FAILING == 0 and ctx.attempt == 1:
        raise FailsOnce


@task
async def since(sent_ns: int) -> None:
    tally.since(sent_ns)


@task
async def placed(ctx: Context) -> None:
    tally.place(partition_of(ctx.job_id, int(os.environ["PENSTOCK_PARTITIONS"])))
