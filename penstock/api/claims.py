"""Sweeping the store of large bodies: what belongs to no job any more is taken away.

A body is stored before its line is appended, and kept for as long as its job. So an object whose job the fold does not
know is of a job that was forgotten, or of a call that never came to its line. The second look the same as one that is
about to be appended, which is why only what is old enough is touched; and the read model is asked only once it has
folded everything that stood on the log when the sweep began.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.deps import deps_of
from penstock.api.http import Answer, Operation, answer, query, read_json
from penstock.api.lookup import fold_to_end
from penstock.api.models import NoQuery
from penstock.schemas.limits import MAX_DURATION_MS, MIN_SWEPT_AGE_MS

BODY_BYTES = 4_096


class SweepRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """``older_than_ms``: how old an object must be to be looked at."""

    older_than_ms: Annotated[int, Meta(ge=MIN_SWEPT_AGE_MS, le=MAX_DURATION_MS)] = 7 * 86_400_000
    dry_run: bool = True


class Swept(Struct, frozen=True):
    """What belonged to no job: ``deleted`` says whether it is gone now."""

    jobs: int
    objects: int
    size_bytes: int
    deleted: bool


async def sweep_claims(request: Request) -> Response:
    deps = deps_of(request)
    query(request, NoQuery)
    asked = await read_json(request, SweepRequest, BODY_BYTES, empty=b"{}")
    store = deps.claim_store()
    before_ms = deps.now_ms() - asked.older_than_ms
    old = [found for found in await store.objects() if found.modified_ms < before_ms]
    await fold_to_end(deps, range(deps.topics.partitions))
    jobs = sorted({(found.tenant, found.job) for found in old})
    gone = {(tenant, job) for tenant, job in jobs if await deps.read_model.job(tenant, job) is None}
    unwanted = [found for found in old if (found.tenant, found.job) in gone]
    if not asked.dry_run:
        await store.delete(unwanted)
    return answer(
        Swept(len(gone), len(unwanted), sum(found.size_bytes for found in unwanted), not asked.dry_run)
    )


OPERATIONS = (
    Operation(
        method="POST",
        path="/api/v1/claims/sweep",
        endpoint=sweep_claims,
        summary="Take away large bodies that belong to no job any more",
        tag="audit",
        query=NoQuery,
        body=SweepRequest,
        body_required=False,
        answers={200: Answer("What was found, and whether it is gone.", Swept)},
        problems=(400, 413, 415, 422, 503),
    ),
)
