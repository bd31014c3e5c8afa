"""Queues and counts, from the read model's counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from penstock.api.deps import ApiDeps, deps_of
from penstock.api.filtering import FilterRequest, given_in
from penstock.api.http import Answer, Operation, answer, query
from penstock.api.jobs import READ_HEADERS, TENANT, wait_for
from penstock.api.models import Counts, CountsQuery, Queues, QueueView, ReadQuery, Unhandled
from penstock.api.moments import moment_of
from penstock.projections.port import ALL, CountRow, JobFilter, Moment
from penstock.schemas.errors import InvalidField

_WHEN = ("after", "wait_ms", "at")
"""Of what counts take: the rest says of which jobs."""


def unhandled(rows: Sequence[CountRow], handled: set[tuple[str, str]]) -> list[Unhandled]:
    """Ready jobs by type and pool that no live worker takes; most first."""
    ready: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row.state == "ready" and (row.pool, row.type) not in handled:
            ready[row.type, row.pool] += row.jobs
    return [Unhandled(job_type, pool, jobs) for (job_type, pool), jobs in ready.most_common() if jobs]


async def counts_of(deps: ApiDeps, at: Moment | None = None, among: JobFilter = ALL) -> Counts:
    """Counts of the tenant, or of one batch or workflow, in every direction. As of a moment nothing is told of workers,
    who leave no trace."""
    rows = [row for row in await deps.read_model.counts(TENANT, at, among=among) if row.jobs]
    states: Counter[str] = Counter()
    queues: Counter[str] = Counter()
    types: Counter[str] = Counter()
    for row in rows:
        states[row.state] += row.jobs
        queues[row.queue] += row.jobs
        types[row.type] += row.jobs
    waiting = unhandled(rows, deps.registry.handled()) if at is None else []
    return Counts(states.total(), dict(states), dict(queues), dict(types), rows, waiting)


async def get_counts(request: Request) -> Response:
    deps = deps_of(request)
    asked = query(request, CountsQuery)
    await wait_for(request, deps, asked)
    if asked.batch is not None and asked.workflow is not None:
        raise InvalidField("workflow: give it or a batch, not both", field="workflow")
    among = FilterRequest(**given_in(asked, _WHEN)).plain()
    at = None if asked.at is None else await moment_of(deps, asked.at)
    return answer(await counts_of(deps, at, among))


async def list_queues(request: Request) -> Response:
    deps = deps_of(request)
    await wait_for(request, deps, query(request, ReadQuery))
    queues: dict[str, Counter[str]] = {}
    for row in await deps.read_model.counts(TENANT):
        queues.setdefault(row.queue, Counter())[row.state] += row.jobs
    items = [
        QueueView(name, states.total(), {state: jobs for state, jobs in states.items() if jobs})
        for name, states in sorted(queues.items())
    ]
    return answer(Queues(items))


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/queues",
        endpoint=list_queues,
        summary="Queues and their jobs by state",
        tag="queues",
        query=ReadQuery,
        headers=READ_HEADERS,
        answers={200: Answer("All queues.", Queues)},
        problems=(422, 503),
    ),
    Operation(
        method="GET",
        path="/api/v1/counts",
        endpoint=get_counts,
        summary="Exact counts by state, queue and type, and what no worker handles",
        tag="queues",
        query=CountsQuery,
        headers=READ_HEADERS,
        answers={200: Answer("The counts.", Counts)},
        problems=(422, 503),
    ),
)
