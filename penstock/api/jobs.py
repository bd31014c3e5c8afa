"""Jobs: put one in, look one up, its history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.deps import ApiDeps, deps_of
from penstock.api.http import (
    JSON,
    KEY_HEADER,
    POSITION_HEADER,
    Answer,
    JsonAnswer,
    Operation,
    answer,
    check_media_type,
    idempotency_key,
    query,
    read_body,
    wanted_positions,
)
from penstock.api.intake import TENANT, Intake, Taken, trace_of
from penstock.api.long_poll import awaited_job
from penstock.api.lookup import find_history, find_job, unknown_job, whole_body
from penstock.api.models import History, HistoryQuery, JobQuery, ReadQuery, decode_job
from penstock.api.moments import moment_in
from penstock.client.requests import JobRequest
from penstock.projections.archived import archived_page
from penstock.projections.port import HistoryItem, HistoryPage, JobView
from penstock.schemas.errors import Conflict, InvalidField, JobNotFound
from penstock.schemas.ids import job_key, partition_of
from penstock.schemas.position import Position

WITH_RESULT = frozenset({"succeeded", "partial"})

_encode = msgspec.json.Encoder().encode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


async def create_job(request: Request) -> Response:
    deps = deps_of(request)
    check_media_type(request, JSON)
    body = await read_body(request, deps.job_max_bytes)
    asked, hashed = decode_job(body)
    asked = with_key(asked, idempotency_key(request))
    intake = Intake(deps)
    trace = trace_of(request)
    return told(await intake.take(intake.prepare(asked, hashed, deps.now_ms(), trace)))


def with_key(asked: JobRequest, key: str) -> JobRequest:
    """The request with the key of its header, if it has one."""
    if not key:
        return asked
    if asked.idempotency_key not in (None, key):
        raise InvalidField("idempotency_key: another stands in the header", field="idempotency_key")
    return msgspec.structs.replace(asked, idempotency_key=key)


def told(taken: Taken) -> Response:
    """The answer to whoever put a job in."""
    headers = {"Location": f"/api/v1/jobs/{taken.view.id}", POSITION_HEADER: str(taken.position)}
    return answer(taken.view, 201 if taken.created else 200, headers)


async def wait_for(request: Request, deps: ApiDeps, asked: ReadQuery) -> Mapping[int, Position]:
    """Wait for the positions that this read asks for, and return them. Raises ReadBehind, ReadModelUnavailable."""
    wanted = wanted_positions(request, asked.after, deps.topics.partitions)
    if wanted:
        wait_ms = deps.options.read_wait_ms if asked.wait_ms is None else asked.wait_ms
        async with deps.parked.wait():
            await deps.read_model.wait(wanted, wait_ms)
    return wanted


async def get_job(request: Request) -> Response:
    return answer(await _asked_for(request))


async def get_result(request: Request) -> Response:
    job = await _asked_for(request)
    if job.state not in WITH_RESULT:
        raise Conflict(f"the job is {job.state}: it has no result", job_id=job.id, job_state=job.state)
    return JsonAnswer(await whole_body(deps_of(request), job, job.result), 200, None)


async def get_payload(request: Request) -> Response:
    deps = deps_of(request)
    await wait_for(request, deps, query(request, ReadQuery))
    job = await find_job(deps, str(request.path_params["id"]))
    return JsonAnswer(await whole_body(deps, job, job.payload), 200, None)


async def _asked_for(request: Request) -> JobView:
    """The job, at once or when it is as it is waited for."""
    deps = deps_of(request)
    asked = query(request, JobQuery)
    job_id = str(request.path_params["id"])
    if asked.at is not None:
        if asked.until is not None:
            raise InvalidField("at: what was does not change any more: give at or until", field="at")
        await wait_for(request, deps, asked)
        return await _as_it_was(deps, job_id, asked.at)
    if asked.until is None:
        await wait_for(request, deps, asked)
        return await find_job(deps, job_id)
    known = await wait_for(request, deps, ReadQuery(asked.after))
    return await awaited_job(deps, job_id, asked, known)


async def _as_it_was(deps: ApiDeps, job_id: str, at: str) -> JobView:
    moment, packed = moment_in(at, partition_of(job_id, deps.topics.partitions))
    view = await deps.read_model.job_as_of(TENANT, job_id, moment, packed)
    if view is None:
        raise JobNotFound(f"There was no job {job_id[:200]!r} at {at}.")
    return view


async def get_history(request: Request) -> Response:
    deps = deps_of(request)
    asked = query(request, HistoryQuery)
    await wait_for(request, deps, asked)
    job_id = str(request.path_params["id"])
    page = await find_history(deps, job_id, asked.limit, asked.cursor)
    if page is None:
        page = await _archived_history(deps, job_id, asked)
    if page is None:
        raise unknown_job(job_id)
    return answer(History([flat_item(item) for item in page.items], page.refused, page.next_cursor))


async def _archived_history(deps: ApiDeps, job_id: str, asked: HistoryQuery) -> HistoryPage | None:
    """Of a job that the read model has let go: only a whole life is told, for the read model has what is younger."""
    if deps.archive is None:
        return None
    from penstock.log.archive_history import archived_history

    partitions = deps.topics.partitions
    partition = partition_of(job_id, partitions)
    found = await archived_history(deps.archive, partition, partitions, job_key(TENANT, job_id))
    if found is None or not found.gone:
        return None
    page = archived_page(found.lines, partition, asked.limit, asked.cursor)
    # Lines about a job that never was are no history.
    return page if page.items or asked.cursor else None


def flat_item(item: HistoryItem) -> msgspec.Raw:
    """An item with the event's own fields in it; bodies pass through as they were written."""
    fields: dict[str, Any] = {
        "type": item.type,
        "actor": item.actor,
        "at": item.at,
        "position": item.position,
        "outcome": item.outcome,
    }
    if item.reason:
        fields["refusal"] = item.reason
    own = _fields(item.event)
    fields.update({name: value for name, value in own.items() if name not in fields})
    return msgspec.Raw(_encode(fields))


_WRITE_HEADERS = {
    "Location": "Address of the job.",
    POSITION_HEADER: "Position token: a read that sends it sees this write.",
}
TAKEN_ANSWERS = {
    201: Answer("The job is durable.", JobView, headers=_WRITE_HEADERS),
    200: Answer(
        "No new job: the same was there already, or another holds its unique key and is answered, as was asked for.",
        JobView,
        headers=_WRITE_HEADERS,
    ),
}
CREATE_HEADERS = {
    "traceparent": "W3C trace context, kept with the job.",
    KEY_HEADER: "Stands for the job's id: the same request again is no second job, another with it is refused (422).",
}
READ_HEADERS = {POSITION_HEADER: "Position token of a write that the read must see."}

CREATE = Operation(
    method="POST",
    path="/api/v1/jobs",
    endpoint=create_job,
    summary="Put a job in",
    tag="jobs",
    body=JobRequest,
    headers=CREATE_HEADERS,
    answers=TAKEN_ANSWERS,
    problems=(400, 409, 413, 415, 422, 503),
)

OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/jobs/{id}",
        endpoint=get_job,
        summary="A job, at once or when it has ended or changed",
        tag="jobs",
        query=JobQuery,
        headers=READ_HEADERS,
        answers={200: Answer("The job.", JobView)},
        problems=(404, 422, 503),
    ),
    Operation(
        method="GET",
        path="/api/v1/jobs/{id}/result",
        endpoint=get_result,
        summary="What a job that succeeded, in whole or in part, has returned",
        tag="jobs",
        query=JobQuery,
        headers=READ_HEADERS,
        answers={200: Answer("The result.", Any)},
        problems=(404, 409, 422, 503),
    ),
    Operation(
        method="GET",
        path="/api/v1/jobs/{id}/payload",
        endpoint=get_payload,
        summary="A job's payload, also one that lies beside the log",
        tag="jobs",
        query=ReadQuery,
        headers=READ_HEADERS,
        answers={200: Answer("The payload.", Any)},
        problems=(404, 422, 503),
    ),
    Operation(
        method="GET",
        path="/api/v1/jobs/{id}/history",
        endpoint=get_history,
        summary="Every line about a job",
        tag="jobs",
        query=HistoryQuery,
        headers=READ_HEADERS,
        answers={200: Answer("The history in log order.", History)},
        problems=(404, 422, 503),
    ),
)
