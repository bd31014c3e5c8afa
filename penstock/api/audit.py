"""What an auditor asks for: the log with its hash chain, and the lines that could not be decoded."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from penstock.api.deps import ApiDeps, deps_of
from penstock.api.http import NDJSON, Answer, Operation, answer, query
from penstock.api.jobs import wait_for
from penstock.api.models import AuditQuery, PageQuery, Quarantine
from penstock.api.problems import FieldError, invalid
from penstock.schemas.position import LINE_BITS
from penstock.state.audit import export

MAX_OFFSET = 1 << (55 - LINE_BITS)


async def _ranges(deps: ApiDeps, asked: AuditQuery) -> dict[int, tuple[int, int]] | None:
    offsets_given = asked.start is not None or asked.stop is not None
    times_given = asked.since_ms is not None or asked.until_ms is not None
    if offsets_given and times_given:
        raise invalid([FieldError("since_ms", "since_ms, until_ms: times do not go with from and to")])
    if asked.partition is None:
        if offsets_given:
            raise invalid([FieldError("partition", "partition: from and to are offsets of one partition")])
        if not times_given:
            return None
        return {number: await _between(deps, number, asked) for number in range(deps.topics.partitions)}
    if asked.partition >= deps.topics.partitions:
        raise invalid([FieldError("partition", f"partition: there is no partition {asked.partition}")])
    if times_given:
        return {asked.partition: await _between(deps, asked.partition, asked)}
    bounds = await deps.log.bounds(deps.topics.jobs, asked.partition)
    start = bounds.start if asked.start is None else asked.start
    if start < bounds.start:
        raise invalid([FieldError("from", f"from: the log begins at offset {bounds.start}")])
    return {asked.partition: (start, MAX_OFFSET if asked.stop is None else asked.stop)}


async def _between(deps: ApiDeps, partition: int, asked: AuditQuery) -> tuple[int, int]:
    """Offsets of the records between two log times."""
    log, topic = deps.log, deps.topics.jobs
    bounds = await log.bounds(topic, partition)
    start = bounds.start if asked.since_ms is None else await log.offset_at(topic, partition, asked.since_ms)
    stop = bounds.end if asked.until_ms is None else await log.offset_at(topic, partition, asked.until_ms)
    return start, max(start, stop)


async def export_audit(request: Request) -> Response:
    deps = deps_of(request)
    ranges = await _ranges(deps, query(request, AuditQuery))
    chunks = export(deps.log, deps.topics, ranges=ranges, generation=deps.generation)
    # The first chunk needs the log: while it does not answer, this is still a 503 and not a broken stream.
    first = await anext(chunks)

    async def stream():
        yield first
        async for chunk in chunks:
            yield chunk

    return StreamingResponse(stream(), media_type=NDJSON)


async def list_quarantine(request: Request) -> Response:
    deps = deps_of(request)
    asked = query(request, PageQuery)
    await wait_for(request, deps, asked)
    items, next_cursor = await deps.read_model.quarantined(asked.limit, asked.cursor)
    return answer(Quarantine(items, next_cursor))


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/audit/export",
        endpoint=export_audit,
        summary="The jobs log with its hash chain, as NDJSON",
        tag="audit",
        query=AuditQuery,
        answers={200: Answer("One JSON object a line.", None, NDJSON)},
        problems=(422, 503),
    ),
    Operation(
        method="GET",
        path="/api/v1/quarantine",
        endpoint=list_quarantine,
        summary="Lines on the log that could not be decoded",
        tag="audit",
        query=PageQuery,
        answers={200: Answer("A page of lines.", Quarantine)},
        problems=(422, 503),
    ),
)
