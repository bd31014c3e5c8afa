"""How far each partition is folded and with which digests; and putting a corrected line back on the log."""

from __future__ import annotations

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.deps import deps_of
from penstock.api.http import Answer, Operation, answer, query, read_body
from penstock.api.models import NoQuery
from penstock.client.redrive import line_at, redriven
from penstock.projections.port import PartitionStatus
from penstock.schemas.limits import MAX_LINE_BYTES
from penstock.schemas.position import Position, parse


class Partitions(Struct, frozen=True):
    """Every partition that a projection answers for, by number."""

    items: list[PartitionStatus]


class Redriven(Struct, frozen=True):
    """``position`` is where the line stands now: what becomes of it there is its job's history."""

    position: str
    line: str


async def list_partitions(request: Request) -> Response:
    query(request, NoQuery)
    statuses = await deps_of(request).read_model.status()
    return answer(Partitions(sorted(statuses, key=lambda status: status.partition)))


async def redrive_line(request: Request) -> Response:
    """The line in the body, or the one at ``position`` when there is no body, is appended to its own partition."""
    deps = deps_of(request)
    query(request, NoQuery)
    position = parse(request.path_params["position"])
    line = await read_body(request, MAX_LINE_BYTES) or await line_at(deps.log, deps.topics, position)
    partition, line = redriven(line, deps.topics.partitions)
    place = await deps.writer.append(partition, line)
    return answer(Redriven(str(Position(partition, place.offset, place.line_no)), line.decode()), 201)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/partitions",
        endpoint=list_partitions,
        summary="How far each partition is folded, and its digests",
        tag="audit",
        query=NoQuery,
        answers={200: Answer("Partitions by number.", Partitions)},
        problems=(422, 503),
    ),
    Operation(
        method="POST",
        path="/api/v1/quarantine/{position}/redrive",
        endpoint=redrive_line,
        summary="Put a refused line back on the log, as it is or corrected",
        tag="audit",
        query=NoQuery,
        body=None,
        answers={201: Answer("It is on the log again.", Redriven)},
        problems=(404, 413, 422, 503),
    ),
)
