"""The worker protocol over HTTP: fetch, report, heartbeat."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from penstock.api.deps import ApiDeps, deps_of
from penstock.api.gateway_models import (
    Fetched,
    FetchedJob,
    FetchRequest,
    GatewaySignal,
    HeartbeatAnswer,
    HeartbeatRequest,
    Leases,
    Reported,
    ReportEnvelope,
    ReportRequest,
)
from penstock.api.http import Answer, Operation, answer, read_json
from penstock.api.remote_worker import Named, RemoteWorker
from penstock.api.reports import Reports
from penstock.schemas.claims import claim_of, payload_url
from penstock.schemas.limits import MAX_RESULT_BYTES
from penstock.schemas.times import time_text
from penstock.workers.lease import HeldLease
from penstock.workers.transport import WorkerProfile

MOST_WAIT_MS = 60_000
LEAST_WAIT_MS = 250
"""A fetch that does not want to wait still gives the orchestrators time to grant: they hear of it through the log."""

FETCH_MAX_BYTES = 2 * 1024 * 1024
REPORT_MAX_BYTES = 64 * MAX_RESULT_BYTES
"""And as much besides as one result may have that goes to the store of claims."""


def _named(leases: Leases) -> list[Named]:
    return [Named(item) if isinstance(item, str) else Named(item.lease, item.job) for item in leases]


async def fetch_jobs(request: Request) -> Response:
    deps = deps_of(request)
    asked = await read_json(request, FetchRequest, FETCH_MAX_BYTES)
    worker = await deps.gateway.open(
        WorkerProfile(
            worker=asked.worker,
            incarnation=asked.incarnation,
            pool=asked.pool,
            types=tuple(sorted(set(asked.types))),
            concurrency=0,
            lease_ms=asked.lease_ms,
            host=asked.host or (request.client.host if request.client else ""),
            version=asked.version,
        )
    )
    worker.stay()
    worker.name(_named(asked.leases))
    worker.wants(asked.types)
    worker.session.set_limits(asked.limits)
    types = frozenset(asked.types)
    leases = worker.take(types, asked.max)
    if not leases:
        wait_ms = max(LEAST_WAIT_MS, min(asked.wait_ms, MOST_WAIT_MS))
        leases = await _wait(request, worker, types, asked.max, wait_ms)
    return answer(Fetched([_job(lease, deps) for lease in leases], worker.drained))


async def _wait(
    request: Request, worker: RemoteWorker, types: frozenset[str], most: int, wait_ms: int
) -> list[HeldLease]:
    """Wait for grants, but not for a client that has gone: what comes is for another then."""
    waiting = asyncio.ensure_future(worker.wait(types, most, wait_ms))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnect
        return waiting.result()
    finally:
        for task in (waiting, gone):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _job(lease: HeldLease, deps: ApiDeps) -> FetchedJob:
    delivery = lease.delivery
    timeout_ms = delivery.timeout_ms
    return FetchedJob(
        id=delivery.job,
        type=delivery.job_type,
        queue=delivery.queue,
        priority=delivery.priority,
        payload=delivery.payload,
        payload_url=payload_url(delivery.job) if claim_of(delivery.payload) else None,
        metadata=delivery.metadata,
        attempt=delivery.attempt,
        max_attempts=delivery.max_attempts,
        lease=delivery.lease,
        lease_ms=delivery.lease_ms,
        fence=delivery.fence,
        checkpoint=delivery.checkpoint,
        timeout_ms=timeout_ms or None,
        deadline=time_text(deps.now_ms() + timeout_ms) if timeout_ms else None,
        trace=delivery.trace,
        rules=delivery.rules,
    )


async def report_jobs(request: Request) -> Response:
    deps = deps_of(request)
    beside_bytes = 0 if deps.claims is None else deps.claims.max_bytes
    asked = await read_json(request, ReportEnvelope, REPORT_MAX_BYTES + beside_bytes)
    worker = deps.gateway.worker(asked.worker, asked.incarnation)
    return answer(Reported(await Reports(deps, asked.worker, worker).take(asked.events)))


async def heartbeat(request: Request) -> Response:
    deps = deps_of(request)
    asked = await read_json(request, HeartbeatRequest, FETCH_MAX_BYTES)
    leases = _named(asked.leases)
    worker = deps.gateway.worker(asked.worker, asked.incarnation)
    if worker is None and any(item.job for item in leases):
        worker = await deps.gateway.open(
            WorkerProfile(worker=asked.worker, incarnation=asked.incarnation, concurrency=0)
        )
    if worker is None:
        gone = [GatewaySignal(type="LeaseGone", lease=item.lease, reason="unknown") for item in leases]
        return answer(HeartbeatAnswer(gone))
    worker.name(leases)
    if asked.leaving:
        worker.leave()
    return answer(HeartbeatAnswer(worker.signals(leases)))


OPERATIONS = (
    Operation(
        method="POST",
        path="/api/v1/worker/fetch",
        endpoint=fetch_jobs,
        summary="Take jobs to run; waits for them",
        tag="worker protocol",
        body=FetchRequest,
        answers={200: Answer("The jobs granted to the worker.", Fetched)},
        problems=(400, 409, 413, 415, 422, 503),
    ),
    Operation(
        method="POST",
        path="/api/v1/worker/report",
        endpoint=report_jobs,
        summary="Tell what became of jobs",
        tag="worker protocol",
        body=ReportRequest,
        answers={200: Answer("What became of each event.", Reported)},
        problems=(400, 409, 413, 415, 422, 503),
    ),
    Operation(
        method="POST",
        path="/api/v1/worker/heartbeat",
        endpoint=heartbeat,
        summary="Keep leases; hear of cancels",
        tag="worker protocol",
        body=HeartbeatRequest,
        answers={200: Answer("What the worker has to know.", HeartbeatAnswer)},
        problems=(400, 409, 413, 415, 422, 503),
    ),
)
