"""A job anew: another one with the same payload and settings, and with what is asked for besides.

It is as the first one is now (moved, with another priority), with the attempts and the backoff that it began with. When
it runs is not taken over: a clone runs at once, and does not expire, unless that is asked for. A field that is null in
the request is not taken over either: without it the clone is as a new job would be.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, cast

import msgspec
from msgspec import Raw
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.deps import ApiDeps, deps_of
from penstock.api.http import Operation, idempotency_key, query, read_json
from penstock.api.intake import TENANT, Intake, trace_of
from penstock.api.jobs import CREATE_HEADERS, READ_HEADERS, TAKEN_ANSWERS, told, wait_for, with_key
from penstock.api.lookup import find_job, whole_body
from penstock.api.models import CloneRequest, ReadQuery, decode_job
from penstock.projections.port import JobView

_encode = msgspec.json.Encoder().encode
_fields_in = msgspec.json.Decoder(dict[str, Raw]).decode

_AS_IT_IS = (
    "type",
    "queue",
    "pool",
    "priority",
    "payload",
    "tags",
    "metadata",
    "timeout_ms",
    "concurrency_key",
    "batch",
    "workflow",
)
_AS_IT_BEGAN = ("max_attempts", "backoff")
_NONE = (b"null", b"[]")


async def clone_job(request: Request) -> Response:
    deps = deps_of(request)
    await wait_for(request, deps, query(request, ReadQuery))
    asked = await read_json(request, dict[str, Raw], deps.job_max_bytes, empty=b"{}")
    job = await find_job(deps, str(request.path_params["id"]))
    wanted, hashed = decode_job(_encode({**await _taken_over(deps, job, asked), **asked}))
    wanted = with_key(wanted, idempotency_key(request))
    intake = Intake(deps)
    prepared = intake.prepare(wanted, hashed, deps.now_ms(), trace_of(request), cause=job.enqueued_event)
    return told(await intake.take(prepared))


async def _taken_over(deps: ApiDeps, job: JobView, asked: Container[str]) -> dict[str, Raw]:
    """Fields of a request for the same job, save for those that the caller has his own word on."""
    shown = _fields_in(_encode(job))
    found = {name: shown[name] for name in _AS_IT_IS}
    if "payload" not in asked:
        # One that lies beside the log is the first job's alone, and goes with it.
        found["payload"] = Raw(await whole_body(deps, job, job.payload))
    page = await deps.read_model.history(TENANT, job.id, 1)
    first = page.items[0] if page is not None and page.items else None
    if first is not None and first.type == "Enqueued":
        began = _fields_in(first.event)
        found.update((name, began[name]) for name in _AS_IT_BEGAN if name in began)
    return {
        name: value
        for name, value in found.items()
        if name not in asked and bytes(cast("Any", value)) not in _NONE
    }


CLONE = Operation(
    method="POST",
    path="/api/v1/jobs/{id}/clone",
    endpoint=clone_job,
    summary="Put the same job in anew, with changes",
    tag="jobs",
    query=ReadQuery,
    body=CloneRequest,
    body_required=False,
    headers={**CREATE_HEADERS, **READ_HEADERS},
    answers=TAKEN_ANSWERS,
    problems=(400, 404, 409, 413, 415, 422, 503),
)
