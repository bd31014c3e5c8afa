"""The workers that are alive."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from penstock.api.deps import deps_of
from penstock.api.http import Answer, Operation, answer, query
from penstock.api.models import NoQuery, Workers, WorkerView
from penstock.api.registry import Seen
from penstock.projections.views import time_text


def _view(seen: Seen) -> WorkerView:
    heartbeat = seen.heartbeat
    return WorkerView(
        id=heartbeat.worker,
        pool=heartbeat.pool,
        types=sorted(heartbeat.types),
        concurrency=heartbeat.concurrency,
        busy=heartbeat.busy,
        holding=len(heartbeat.holding),
        incarnation=heartbeat.incarnation,
        via=heartbeat.via,
        host=heartbeat.host,
        version=heartbeat.version,
        leaving=heartbeat.leaving,
        last_seen=time_text(seen.heard_ms),
    )


async def list_workers(request: Request) -> Response:
    query(request, NoQuery)
    return answer(Workers([_view(seen) for seen in deps_of(request).registry.live()]))


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/workers",
        endpoint=list_workers,
        summary="Live workers, by their heartbeats",
        tag="workers",
        query=NoQuery,
        answers={200: Answer("Workers by id.", Workers)},
        problems=(422,),
    ),
)
