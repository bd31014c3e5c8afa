"""One line onto the jobs log, with the wait and the errors that every write of one job has."""

from __future__ import annotations

import asyncio

from penstock.api.deps import ApiDeps
from penstock.log.bundler import LinePosition
from penstock.schemas.errors import AppendUnknown, PenstockError


async def append_line(deps: ApiDeps, job_id: str, partition: int, line: bytes) -> LinePosition:
    """Append a job's line; where it stands.

    Raises:
        LogError: it was not acknowledged; ``details["job_id"]`` has the id with which to try again.
    """
    try:
        async with asyncio.timeout(deps.options.append_wait_ms / 1_000):
            place = await deps.writer.append(partition, line)
    except TimeoutError as error:
        raise AppendUnknown(job_id=job_id) from error
    except PenstockError as error:
        error.details["job_id"] = job_id
        raise
    deps.metrics.appended(1)
    return place
