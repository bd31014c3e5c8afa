"""Liveness, readiness by progress, and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from penstock.api.deps import ApiDeps, deps_of
from penstock.api.http import Answer, Operation, answer
from penstock.api.models import Health, PartitionReadiness, Readiness
from penstock.api.progress import ProgressWatch
from penstock.api.queues import counts_of
from penstock.projections.port import PartitionStatus
from penstock.schemas.errors import NotReady, PenstockError

LOG_TIMEOUT_S = 2.0


async def readiness(deps: ApiDeps, watch: ProgressWatch) -> Readiness:
    """Whether the log answers and every partition's projection moves."""
    problems: list[str] = []
    ends = await _ends(deps, problems)
    statuses = await _statuses(deps, problems)
    now_ms = deps.now_ms()
    partitions: list[PartitionReadiness] = []
    for status in statuses:
        end_offset = max(status.end_offset, ends.get(status.partition, 0))
        partitions.append(
            PartitionReadiness(
                partition=status.partition,
                next_offset=status.next_offset,
                end_offset=end_offset,
                lag=max(0, end_offset - status.next_offset),
                leader=status.leader,
                digest=status.digest,
            )
        )
        stalled_ms = watch.stalled_ms(status.partition, status.next_offset, end_offset, now_ms)
        if stalled_ms >= deps.options.stalled_ms:
            problems.append(
                f"partition {status.partition}: nothing folded for {stalled_ms} ms and behind the log"
            )
    missing = set(range(deps.topics.partitions)) - {status.partition for status in statuses}
    if missing and statuses:
        problems.append(f"no projection answers for partitions {', '.join(map(str, sorted(missing)))}")
    return Readiness("unready" if problems else "ready", problems, partitions)


async def _ends(deps: ApiDeps, problems: list[str]) -> dict[int, int]:
    numbers = range(deps.topics.partitions)
    try:
        async with asyncio.timeout(LOG_TIMEOUT_S):
            bounds = await asyncio.gather(*(deps.log.bounds(deps.topics.jobs, number) for number in numbers))
    except TimeoutError:
        problems.append("the log does not answer")
        return {}
    except PenstockError as error:
        problems.append(f"the log: {error.message}")
        return {}
    return {number: bound.end for number, bound in zip(numbers, bounds, strict=True)}


async def _statuses(deps: ApiDeps, problems: list[str]) -> Sequence[PartitionStatus]:
    try:
        async with asyncio.timeout(LOG_TIMEOUT_S):
            return await deps.read_model.status()
    except TimeoutError:
        problems.append("the read model does not answer")
    except PenstockError as error:
        problems.append(f"the read model: {error.message}")
    return []


async def get_health(request: Request) -> Response:
    deps = deps_of(request)
    uptime_ms = int((asyncio.get_running_loop().time() - deps.metrics.started_at) * 1_000)
    return answer(Health("ok", deps.version, uptime_ms))


async def get_readiness(request: Request) -> Response:
    deps = deps_of(request)
    found = await readiness(deps, deps.metrics.progress)
    if found.problems:
        raise NotReady("; ".join(found.problems), problems=found.problems, partitions=found.partitions)
    return answer(found)


async def get_metrics(request: Request) -> Response:
    deps = deps_of(request)
    statuses = await _statuses(deps, [])
    try:
        counts = await counts_of(deps)
    except PenstockError:
        # Metrics are wanted most when something is broken: what cannot be asked is left out.
        counts = None
    return Response(deps.metrics.text(deps, statuses, counts), media_type=deps.metrics.media_type)


OPERATIONS = (
    Operation(
        method="GET",
        path="/healthz",
        endpoint=get_health,
        summary="The process is alive",
        tag="health",
        answers={200: Answer("It is.", Health)},
    ),
    Operation(
        method="GET",
        path="/readyz",
        endpoint=get_readiness,
        summary="The log answers and every partition is being folded",
        tag="health",
        answers={200: Answer("Ready.", Readiness)},
        problems=(503,),
    ),
    Operation(
        method="GET",
        path="/metrics",
        endpoint=get_metrics,
        summary="Metrics in Prometheus's text format",
        tag="health",
        answers={200: Answer("The metrics.", None, "text/plain")},
    ),
)
