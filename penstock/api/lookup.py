"""Finding a job in the read model, and saying why there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, cast

from msgspec import Raw

from penstock.api.deps import ApiDeps
from penstock.api.intake import TENANT
from penstock.projections.port import HistoryPage, JobView
from penstock.schemas.claims import claim_of
from penstock.schemas.errors import ClaimsOff, JobDeleted, JobForgotten, JobNotFound
from penstock.schemas.ids import partition_of
from penstock.schemas.position import Position


async def shown_job(deps: ApiDeps, job_id: str) -> JobView:
    """The job as the read model has it now. Raises JobNotFound, JobForgotten, JobDeleted."""
    view = await deps.read_model.job(TENANT, job_id)
    if view is None:
        # A second look only where there is nothing to show anyway.
        if await deps.read_model.history(TENANT, job_id, 1) is not None:
            raise JobForgotten(f"The job {job_id[:200]!r} was forgotten; its history is still there.")
        raise unknown_job(job_id)
    if view.state == "deleted":
        raise JobDeleted(f"The job {job_id[:200]!r} was deleted; its history is still there.")
    return view


async def find_job(deps: ApiDeps, job_id: str) -> JobView:
    """The job, also one whose beginning the read model has yet to fold. Raises as :func:`shown_job`, and ReadBehind."""
    try:
        return await shown_job(deps, job_id)
    except JobNotFound:
        await fold_to_end(deps, [partition_of(job_id, deps.topics.partitions)])
    return await shown_job(deps, job_id)


async def find_history(deps: ApiDeps, job_id: str, limit: int, cursor: str) -> HistoryPage | None:
    """Of a job, also of one whose beginning the read model has yet to fold; None where it knows nothing of it.

    Raises:
        ReadBehind, ReadModelUnavailable: nobody can tell.
    """
    page = await deps.read_model.history(TENANT, job_id, limit, cursor)
    if page is None:
        await fold_to_end(deps, [partition_of(job_id, deps.topics.partitions)])
        page = await deps.read_model.history(TENANT, job_id, limit, cursor)
    return page


async def fold_to_end(deps: ApiDeps, partitions: Iterable[int]) -> None:
    """Wait until the read model has what is on the log now. Raises ReadBehind, ReadModelUnavailable."""
    await deps.read_model.wait(await log_ends(deps, partitions), deps.options.verdict_wait_ms)


async def log_ends(deps: ApiDeps, partitions: Iterable[int]) -> dict[int, Position]:
    """Where the last record of each partition stands that has any. Raises LogUnavailable."""
    numbers = list(partitions)
    bounds = await asyncio.gather(*(deps.log.bounds(deps.topics.jobs, number) for number in numbers))
    return {
        number: Position(number, found.end - 1, 0)
        for number, found in zip(numbers, bounds, strict=True)
        if found.end
    }


async def whole_body(deps: ApiDeps, job: JobView, body: Raw) -> bytes:
    """A body of a job as JSON, fetched from where it lies if it has a claim in its place.

    Raises:
        ClaimMissing, ClaimDamaged: it is not there as it was written.
        ClaimsOff, BlobsUnavailable: it cannot be fetched.
    """
    raw = bytes(cast("Any", body))
    claim = claim_of(raw)
    if claim is None:
        return raw
    if deps.claims is None:
        raise ClaimsOff(job_id=job.id)
    return await deps.claims.read(job.tenant, job.id, claim)


def unknown_job(job_id: str) -> JobNotFound:
    """Nothing was ever heard of it."""
    return JobNotFound(f"There is no job {job_id[:200]!r}.")
