"""Operations: one verb for many jobs, by their ids or by a filter, with progress, outcomes and a dry run."""

# No `from __future__ import annotations`: msgspec reads these hints at run time.

import contextlib
from collections.abc import Mapping
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from penstock.api import operating
from penstock.api.deps import ApiDeps, deps_of
from penstock.api.filtering import FilterRequest
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
from penstock.api.intake import TENANT, Intake, trace_of
from penstock.api.jobs import READ_HEADERS, wait_for
from penstock.api.lookup import find_job
from penstock.api.models import Cursor, Limit, ReadQuery
from penstock.api.orders import OPERATION, OPERATION_TYPES, Action, Order, order_in
from penstock.api.verbs import decided
from penstock.client.requests import BackoffRequest, JobRequest, invalid_field, request_hash
from penstock.client.verbs import VERBS
from penstock.projections.port import JobFilter, JobView, OperatedItem, SearchQuery
from penstock.schemas.errors import InvalidField, JobNotFound, NotFound
from penstock.schemas.limits import MAX_PAYLOAD_BYTES
from penstock.schemas.names import CheckedJobId

MOST_BYTES = 1024 * 1024
MOST_IDS = 5_000
ATTEMPTS = 1_000
"""Of the job that an operation is: a process that dies in the middle of one must not end it."""

_NO_CHANGES: Mapping[str, Any] = {}


class OperationRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``args``: what the verb of a single job takes as its body. Exactly one of ``ids`` and ``filter`` says which jobs.

    ``requeue`` makes jobs ready whatever they wait for: those that ended without success, and those that wait for a
    time. With ``dry_run`` nothing is changed: it is counted what would be.
    """

    action: Action
    ids: Annotated[list[CheckedJobId], Meta(min_length=1, max_length=MOST_IDS)] | None = None
    filter: FilterRequest | None = None
    args: dict[str, Any] = {}
    dry_run: bool = False


class OperationView(Struct, frozen=True, kw_only=True):
    """An operation. ``matched`` are the jobs met so far, of ``total`` where that is known; ``outcomes`` counts what
    became of them: ``applied``, ``illegal`` (its state did not allow it), ``unknown_job``, ..."""

    id: str
    action: str
    state: str
    dry_run: bool
    matched: int
    total: int | None
    outcomes: dict[str, int]
    created_at: str
    finished_at: str | None
    cancel_requested: bool


class Operations(Struct, frozen=True):
    """Newest first."""

    items: list[OperationView]
    next_cursor: str | None
    total: int


class OperationItems(Struct, frozen=True):
    """What became of each job, by job id. Of a dry run there are none."""

    items: list[OperatedItem]
    next_cursor: str | None
    counts: dict[str, int]


class OperationsQuery(ReadQuery, frozen=True):
    """Paging."""

    limit: Limit = 50
    cursor: Cursor = ""


async def start(request: Request) -> Response:
    query(request, ReadQuery)
    deps = deps_of(request)
    asked = await read_json(request, OperationRequest, MOST_BYTES)
    order = _order(asked)
    payload = msgspec.to_builtins(order)
    intake = Intake(deps, max_payload_bytes=MAX_PAYLOAD_BYTES)
    wanted = JobRequest(
        type=order.job_type,
        queue=OPERATION,
        pool=OPERATION,
        priority="high",
        payload=payload,
        max_attempts=ATTEMPTS,
        backoff=BackoffRequest(kind="fixed", base_ms=operating.ATTEMPT_AFTER_MS),
        idempotency_key=idempotency_key(request) or None,
    )
    hashed = request_hash({"type": OPERATION, "payload": payload})
    taken = await intake.take(intake.prepare(wanted, hashed, deps.now_ms(), trace_of(request)))
    deps.operations.set()
    headers = {"Location": f"/api/v1/operations/{taken.view.id}", POSITION_HEADER: str(taken.position)}
    return answer(await _view(deps, taken.view, order), 202, headers)


def _order(asked: OperationRequest) -> Order:
    if (asked.ids is None) == (asked.filter is None):
        raise InvalidField("ids: give either ids or a filter", field="ids")
    wanted = None if asked.filter is None else asked.filter.plain()
    return Order(
        action=asked.action,
        ids=None if asked.ids is None else list(dict.fromkeys(asked.ids)),
        filter=wanted,
        changes=dict(_changes(asked)),
        dry_run=asked.dry_run,
    )


def _changes(asked: OperationRequest) -> Mapping[str, Any]:
    """What the verb's event has besides its envelope, checked as for a single job."""
    if asked.action == "requeue":
        if asked.args:
            raise InvalidField("args: requeue takes none", field="args")
        return _NO_CHANGES
    verb = VERBS[asked.action]
    try:
        own = verb.own(msgspec.convert(asked.args, verb.request))
    except msgspec.ValidationError as error:
        raise _in_args(invalid_field(error)) from error
    except InvalidField as error:
        raise _in_args(error) from error
    changes = own.get("changes")
    return own if changes is None else {"changes": msgspec.json.decode(changes)}


def _in_args(error: InvalidField) -> InvalidField:
    field = str(error.details.get("field", "$"))
    return InvalidField(f"args: {error.message}", field="args" if field == "$" else f"args.{field}")


async def get(request: Request) -> Response:
    deps = deps_of(request)
    await wait_for(request, deps, query(request, ReadQuery))
    return answer(await _view(deps, *await _operation(request)))


async def list_operations(request: Request) -> Response:
    deps = deps_of(request)
    asked = query(request, OperationsQuery)
    await wait_for(request, deps, asked)
    wanted = JobFilter(type=OPERATION_TYPES)
    page = await deps.read_model.search(
        SearchQuery(tenant=TENANT, filter=wanted, limit=asked.limit, cursor=asked.cursor)
    )
    found = ((job, order_in(job)) for job in page.items)
    views = [await _view(deps, job, order) for job, order in found if order is not None]
    return answer(Operations(views, page.next_cursor, page.total or 0))


async def items(request: Request) -> Response:
    deps = deps_of(request)
    asked = query(request, OperationsQuery)
    await wait_for(request, deps, asked)
    job, _ = await _operation(request)
    page = await deps.read_model.operated(job.id, asked.limit, asked.cursor)
    return answer(OperationItems(page.items, page.next_cursor, page.counts))


async def cancel(request: Request) -> Response:
    _, order = await _operation(request)
    job, position = await decided(request, VERBS["cancel"])
    return answer(await _view(deps_of(request), job, order), 200, {POSITION_HEADER: str(position)})


async def _operation(request: Request) -> tuple[JobView, Order]:
    """The job that an operation is, and what it asks for. Raises NotFound."""
    operation = str(request.path_params["id"])
    with contextlib.suppress(JobNotFound):
        job = await find_job(deps_of(request), operation)
        order = order_in(job)
        if order is not None:
            return job, order
    raise NotFound(f"There is no operation {operation[:200]!r}.")


async def _view(deps: ApiDeps, job: JobView, order: Order) -> OperationView:
    told = job.result if job.state == "succeeded" else job.checkpoint
    tally: dict[str, Any] = msgspec.json.decode(cast("Any", told)) or {}
    outcomes: dict[str, int] = tally.get("outcomes", {})
    if not order.dry_run:
        # The log's own count, whoever worked on it and however often that began.
        folded = (await deps.read_model.operated(job.id, 1)).counts
        outcomes = {
            **folded,
            **({"unknown_job": outcomes["unknown_job"]} if "unknown_job" in outcomes else {}),
        }
    return OperationView(
        id=job.id,
        action=order.action,
        state=job.state,
        dry_run=order.dry_run,
        matched=max(tally.get("matched", 0), sum(outcomes.values())),
        total=tally.get("total") if job.state != "succeeded" else tally.get("matched"),
        outcomes=outcomes,
        created_at=job.created_at,
        finished_at=job.finished_at,
        cancel_requested=job.cancel_requested,
    )


OPERATIONS = (
    Operation(
        method="POST",
        path="/api/v1/operations",
        endpoint=start,
        summary="Change many jobs",
        tag="operations",
        query=ReadQuery,
        body=OperationRequest,
        headers={
            KEY_HEADER: "Names this operation: sent again with it, it is begun once.",
            "traceparent": "W3C trace context, kept with the operation's job.",
        },
        answers={
            202: Answer(
                "It is durable, and begun as soon as somebody is free for it.",
                OperationView,
                headers={
                    "Location": "Address of the operation.",
                    POSITION_HEADER: "Position token: a read that sends it sees this write.",
                },
            )
        },
        problems=(400, 409, 413, 415, 422, 503),
    ),
    Operation(
        method="GET",
        path="/api/v1/operations",
        endpoint=list_operations,
        summary="Operations, newest first",
        tag="operations",
        query=OperationsQuery,
        headers=READ_HEADERS,
        answers={200: Answer("A page of operations.", Operations)},
        problems=(422, 503),
    ),
    Operation(
        method="GET",
        path="/api/v1/operations/{id}",
        endpoint=get,
        summary="An operation and how far it is",
        tag="operations",
        query=ReadQuery,
        headers=READ_HEADERS,
        answers={200: Answer("The operation.", OperationView)},
        problems=(404, 422, 503),
    ),
    Operation(
        method="GET",
        path="/api/v1/operations/{id}/items",
        endpoint=items,
        summary="What became of each job of an operation",
        tag="operations",
        query=OperationsQuery,
        headers=READ_HEADERS,
        answers={200: Answer("Jobs by id, each with its outcome.", OperationItems)},
        problems=(404, 422, 503),
    ),
    Operation(
        method="DELETE",
        path="/api/v1/operations/{id}",
        endpoint=cancel,
        summary="Stop an operation; what it has changed stays",
        tag="operations",
        query=ReadQuery,
        headers={KEY_HEADER: "Names this wish: sent again with it, it is done once and answered alike."},
        answers={
            200: Answer(
                "It is told to stop.",
                OperationView,
                headers={POSITION_HEADER: "Position token of the write."},
            )
        },
        problems=(404, 409, 415, 422, 503),
    ),
)
