"""Waiting for a job to end, or to change: the answer comes when it has, or when the time is up, with the job as it is.

A look at the job, then a wait for the next record of its partition, and so on. What was on the log before the look is
waited for first, so no change falls between the two. Looks become rarer the longer it takes: whoever waits makes the
read model commit early, and many may wait in a partition where much happens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from penstock.api.deps import ApiDeps
from penstock.api.lookup import find_job, shown_job
from penstock.api.models import JobQuery
from penstock.core.job_state import TERMINAL
from penstock.projections.port import JobView
from penstock.schemas.errors import ReadBehind
from penstock.schemas.ids import partition_of
from penstock.schemas.position import Position, parse

DEFAULT_WAIT_MS = 20_000
PAUSE_MS = (10, 250)
"""Between two looks: the first and the longest pause."""


async def awaited_job(
    deps: ApiDeps, job_id: str, asked: JobQuery, known_positions: Mapping[int, Position]
) -> JobView:
    """The job once it is as it is waited for, or when the time is up.

    Args:
        known_positions: what came after these, by partition, is a change.

    Raises:
        JobNotFound, JobForgotten, JobDeleted: there is no such job, or not any more.
        ReadModelUnavailable: the read model is gone, or the server stops.
    """
    wait_ms = DEFAULT_WAIT_MS if asked.wait_ms is None else asked.wait_ms
    until_s = time.monotonic() + wait_ms / 1_000
    partition = partition_of(job_id, deps.topics.partitions)
    known = known_positions.get(partition)
    pause_ms = PAUSE_MS[0]
    first = view = await find_job(deps, job_id)
    async with deps.parked.wait():
        while not _is_awaited(asked, first, view, known):
            end = (await deps.log.bounds(deps.topics.jobs, partition)).end
            if not await _folded(deps, Position(partition, end - 1, 0), until_s):
                break
            view = await shown_job(deps, job_id)
            if _is_awaited(asked, first, view, known):
                break
            await asyncio.sleep(min(pause_ms / 1_000, max(0.0, until_s - time.monotonic())))
            pause_ms = min(2 * pause_ms, PAUSE_MS[1])
            if not await _folded(deps, Position(partition, end, 0), until_s):
                break
    return view


def _is_awaited(asked: JobQuery, first: JobView, view: JobView, known: Position | None) -> bool:
    if asked.until == "finished":
        return view.state in TERMINAL
    if known is not None and parse(view.position) > known:
        return True
    return view != first


async def _folded(deps: ApiDeps, position: Position, until_s: float) -> bool:
    """Whether the read model comes that far in time."""
    left_ms = round((until_s - time.monotonic()) * 1_000)
    if left_ms <= 0:
        return False
    if position.offset < 0:
        return True
    try:
        await deps.read_model.wait({position.partition: position}, left_ms)
    except ReadBehind:
        return False
    return True
