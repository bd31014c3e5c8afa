"""The workers that are alive, and asking them to take no more jobs, or to leave."""

from __future__ import annotations

import asyncio
import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.deps import ApiDeps, deps_of
from penstock.api.http import Answer, Endpoint, Operation, answer, query
from penstock.api.models import NoQuery, Workers, WorkerView
from penstock.api.registry import Seen
from penstock.schemas.errors import NotFound
from penstock.schemas.messages import Drain, encode_messages
from penstock.schemas.times import time_text

HEARD_S = 5.0
"""How long is waited for a worker to say that it has heard."""
AGAIN_S = 0.25


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
        leaving=not heartbeat.takes_more,
        last_seen=time_text(seen.heard_ms),
    )


async def list_workers(request: Request) -> Response:
    query(request, NoQuery)
    return answer(Workers([_view(seen) for seen in deps_of(request).registry.live()]))


async def drain_worker(request: Request) -> Response:
    return await _told(request, stop=False)


async def stop_worker(request: Request) -> Response:
    return await _told(request, stop=True)


async def _told(request: Request, *, stop: bool) -> Response:
    """Tell a worker, and go on telling until its heartbeats say that it has heard."""
    query(request, NoQuery)
    deps = deps_of(request)
    worker = str(request.path_params["id"])
    seen = _live(deps, worker)
    if seen is None:
        raise NotFound(f"There is no live worker {worker[:200]!r}.")
    incarnation = seen.heartbeat.incarnation
    signal = encode_messages([Drain(worker=worker, stop=stop)])
    until_s = time.monotonic() + HEARD_S
    while True:
        await deps.log.append(deps.topics.signals, seen.heartbeat.route, signal)
        await asyncio.sleep(AGAIN_S)
        known = _live(deps, worker)
        if known is None or known.heartbeat.incarnation != incarnation:
            # It has left, and perhaps was started anew.
            return answer(msgspec.structs.replace(_view(seen), leaving=True))
        seen = known
        if not seen.heartbeat.takes_more:
            return answer(_view(seen))
        if time.monotonic() >= until_s:
            return answer(_view(seen), 202)


def _live(deps: ApiDeps, worker: str) -> Seen | None:
    return next((seen for seen in deps.registry.live() if seen.heartbeat.worker == worker), None)


def _telling(name: str, endpoint: Endpoint, summary: str) -> Operation:
    return Operation(
        method="POST",
        path=f"/api/v1/workers/{{id}}/{name}",
        endpoint=endpoint,
        summary=summary,
        tag="workers",
        query=NoQuery,
        answers={
            200: Answer("It has heard: the worker.", WorkerView),
            202: Answer("It was told, and has not shown yet that it has heard.", WorkerView),
        },
        problems=(404, 422, 503),
    )


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
    _telling("drain", drain_worker, "Let a worker take no more jobs, and finish what it has"),
    _telling("stop", stop_worker, "Let a worker finish or give back what it has, and leave"),
)
