"""Changing a job that is there: each verb is put on the log, and what the fold makes of it is the answer.

Two that race are decided by their order on the log, and each hears what became of its own. A verb may be sent again
with the same ``Idempotency-Key``: it is done once, and answered alike.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from penstock.api.appending import append_line
from penstock.api.deps import deps_of
from penstock.api.http import (
    KEY_HEADER,
    POSITION_HEADER,
    Answer,
    Operation,
    answer,
    idempotency_key,
    query,
    read_json,
)
from penstock.api.intake import ACTOR, TENANT, trace_of
from penstock.api.jobs import READ_HEADERS, wait_for
from penstock.api.lookup import find_job, unknown_job
from penstock.api.models import ReadQuery
from penstock.client.idgen import new_id
from penstock.client.verbs import VERB_AGE_MS, VERBS, Verb
from penstock.projections.port import JobView, VerdictView
from penstock.schemas.codec import encode_line
from penstock.schemas.errors import (
    Conflict,
    PenstockError,
    ReadBehind,
)
from penstock.schemas.ids import partition_of
from penstock.schemas.position import Position

MOST_BYTES = 8_192


async def propose(request: Request, verb: Verb) -> Response:
    """Put a verb on the log and answer with the job, once the fold has decided."""
    job, position = await decided(request, verb)
    return answer(job, 200, {POSITION_HEADER: str(position)})


async def decided(request: Request, verb: Verb) -> tuple[JobView, Position]:
    """The job after the verb that a request asks of it, and where that stands. Raises Conflict where it was refused."""
    deps = deps_of(request)
    await wait_for(request, deps, query(request, ReadQuery))
    own = verb.own(await read_json(request, verb.request, MOST_BYTES, empty=b"{}"))
    key = idempotency_key(request) or new_id()
    job = await find_job(deps, str(request.path_params["id"]))
    now_ms = deps.now_ms()
    event = verb.event(
        id=f"{verb.name}.{key}",
        job=job.id,
        tenant=TENANT,
        actor=ACTOR,
        trace=trace_of(request),
        at=now_ms,
        of=job.enqueued_event,
        not_after=now_ms + VERB_AGE_MS,
        **own,
    )
    try:
        partition = partition_of(job.id, deps.topics.partitions)
        place = await append_line(deps, job.id, partition, encode_line(event))
        position = Position(partition, place.offset, place.line_no)
        [verdict] = await deps.read_model.verdicts(
            [(position, TENANT, job.id, event.id)], deps.options.verdict_wait_ms
        )
    except PenstockError as error:
        # With it a repeat is known for what it is.
        error.details["idempotency_key"] = key
        raise
    return _changed(job.id, verdict), position


def _changed(job_id: str, verdict: VerdictView) -> JobView:
    """The job, if the verb had its effect."""
    if verdict.outcome == "applied" and verdict.job is not None:
        return verdict.job
    if verdict.job is None or verdict.outcome == "unknown_job":
        raise unknown_job(job_id)
    if verdict.outcome == "unknown":
        raise ReadBehind(verdict.reason, job_id=job_id)
    raise Conflict(verdict.reason, job_id=job_id, job_state=verdict.job.state)


_HEADERS = {
    KEY_HEADER: "Names this wish: sent again with it, it is done once and answered alike.",
    "traceparent": "W3C trace context, kept with the event.",
    **READ_HEADERS,
}


def _operation(verb: Verb) -> Operation:
    async def endpoint(request: Request) -> Response:
        return await propose(request, verb)

    endpoint.__name__ = f"{verb.name}_job"
    deletes = verb.name == "delete"
    return Operation(
        method="DELETE" if deletes else "POST",
        path="/api/v1/jobs/{id}" if deletes else f"/api/v1/jobs/{{id}}/{verb.name}",
        endpoint=endpoint,
        summary=verb.summary,
        tag="jobs",
        query=ReadQuery,
        body=None if deletes else verb.request,
        body_required=verb.needs_body,
        headers=_HEADERS,
        answers={
            200: Answer(
                "It is done: the job.", JobView, headers={POSITION_HEADER: "Position token of the write."}
            )
        },
        problems=(400, 404, 409, 413, 415, 422, 503),
    )


OPERATIONS = tuple(map(_operation, VERBS.values()))
