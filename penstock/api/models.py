"""What the API is asked for and what it answers, beyond the job itself: request checks that name every wrong field.

A job's request is :class:`penstock.client.requests.JobRequest`, its answer :class:`penstock.projections.port.JobView`.
"""

# No `from __future__ import annotations`: msgspec reads these hints at run time.

from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from penstock.api.problems import FieldError, invalid
from penstock.client.requests import JobRequest, Moment, decode_request, decode_requests, invalid_field
from penstock.core.job import State
from penstock.projections.port import CountRow, JobView, QuarantinedItem, Sort
from penstock.schemas.errors import InvalidField, PenstockError
from penstock.schemas.events import Priority, TimeMs
from penstock.schemas.names import CheckedName

Limit = Annotated[int, Meta(ge=1, le=1_000)]
WaitMs = Annotated[int, Meta(ge=0, le=60_000)]
Cursor = Annotated[str, Meta(max_length=1_024)]
ShortText = Annotated[str, Meta(min_length=1, max_length=256)]

_ONE_BY_ONE = 8
"""So few bodies are not halved again to find the bad ones."""


def decode_job(body: bytes) -> tuple[JobRequest, str]:
    """A job's request and its hash.

    Raises:
        MalformedJson: the body is not JSON.
        InvalidField: with every field that is wrong in ``details["errors"]``.
    """
    try:
        request, hashed = decode_request(body)
    except InvalidField as error:
        raise invalid(_every_error(body) or _own(error)) from error
    if _given_twice(request):
        message = "delay_ms: give run_at or delay_ms, not both"
        raise invalid([FieldError("delay_ms", message)])
    return request, hashed


def decode_jobs(bodies: Sequence[bytes]) -> list[tuple[JobRequest, str] | PenstockError]:
    """What :func:`decode_job` gives or raises for each body. Good ones among their like cost a third."""
    found = decode_requests(bodies)
    if found is not None and not any(_given_twice(request) for request, _ in found):
        return [*found]
    if len(bodies) <= _ONE_BY_ONE:
        return [_decoded(body) for body in bodies]
    # The bad ones are searched for, so that a few of them make the others no dearer.
    middle = len(bodies) // 2
    return decode_jobs(bodies[:middle]) + decode_jobs(bodies[middle:])


def _decoded(body: bytes) -> tuple[JobRequest, str] | PenstockError:
    try:
        return decode_job(body)
    except PenstockError as error:
        return error


def _given_twice(request: JobRequest) -> bool:
    return request.delay_ms is not None and request.run_at is not None


_FIELDS = {field.encode_name: field.type for field in msgspec.structs.fields(JobRequest)}


def _own(error: InvalidField) -> list[FieldError]:
    return [FieldError(str(error.details.get("field", "$")), error.message)]


def _every_error(body: bytes) -> list[FieldError]:
    """Each wrong field for itself: the decoder stops at the first."""
    try:
        fields: Any = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return []
    if not isinstance(fields, dict):
        return []
    found: list[FieldError] = []
    for name, value in cast("dict[str, Any]", fields).items():
        if name not in _FIELDS:
            found.append(FieldError(name, f"{name}: unknown field"))
            continue
        try:
            msgspec.convert(value, _FIELDS[name])
        except msgspec.ValidationError as error:
            found += _own(invalid_field(error, name))
    if "type" not in fields:
        found.append(FieldError("type", "type: missing"))
    return found


class CloneRequest(JobRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As for a new job, and nothing is required: what is given replaces the first job's, and null drops it. What a job
    cannot be without is as in a new one then; only its type has no such default."""

    type: CheckedName | UnsetType = UNSET  # type: ignore[assignment]  # checked with the first job's fields in it


# Query parameters


class NoQuery(Struct, frozen=True):
    """An operation without parameters."""


class ReadQuery(Struct, frozen=True):
    """``after``: a position token; the read waits up to ``wait_ms`` until the read model has it."""

    after: Cursor | None = None
    wait_ms: WaitMs | None = None


AtText = Annotated[str, Meta(max_length=64)]
"""A time (RFC 3339) or a position of the log."""


class CountsQuery(ReadQuery, frozen=True):
    """``at``: as they were at a time (RFC 3339) or a position of the log. ``batch``, ``workflow``: of its jobs."""

    at: AtText | None = None
    batch: CheckedName | None = None
    workflow: CheckedName | None = None


class JobQuery(ReadQuery, frozen=True):
    """``until``: answer when the job is so, or after ``wait_ms`` (20 s if not given).

    ``changed`` is from ``after`` on, or from the moment that it is asked. ``at``: as it was at a time (RFC 3339) or a
    position.
    """

    until: Literal["finished", "changed"] | None = None
    at: AtText | None = None


class ListQuery(ReadQuery, frozen=True):
    """Filters, order and paging of the job list; ``POST /jobs/search`` takes more of them.

    ``at``: the jobs as they were at a time (RFC 3339) or a position of the log; ``total`` is null then.
    """

    state: State | None = None
    queue: CheckedName | None = None
    type: CheckedName | None = None
    pool: CheckedName | None = None
    priority: Priority | None = None
    tags: CheckedName | None = None
    worker: ShortText | None = None
    unique_key: ShortText | None = None
    concurrency_key: ShortText | None = None
    batch: CheckedName | None = None
    workflow: CheckedName | None = None
    id_prefix: ShortText | None = None
    has_errors: bool | None = None
    text: ShortText | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None
    finished_after: Moment | None = None
    finished_before: Moment | None = None
    sort: Sort = "-created_at"
    limit: Limit = 50
    cursor: Cursor = ""
    at: AtText | None = None


class PageQuery(ReadQuery, frozen=True):
    """Paging."""

    limit: Limit = 100
    cursor: Cursor = ""


class HistoryQuery(ReadQuery, frozen=True):
    """Paging of a history."""

    limit: Limit = 1_000
    cursor: Cursor = ""


class AuditQuery(Struct, frozen=True, rename={"start": "from", "stop": "to"}):
    """One partition, or all; ``from`` and ``to`` (exclusive) are offsets and need ``partition``.

    ``since_ms`` and ``until_ms`` (exclusive) are log times, Unix ms, for one partition or all.
    """

    partition: Annotated[int, Meta(ge=0)] | None = None
    start: Annotated[int, Meta(ge=0)] | None = None
    stop: Annotated[int, Meta(ge=0)] | None = None
    since_ms: TimeMs | None = None
    until_ms: TimeMs | None = None


# Answers


class JobList(Struct, frozen=True):
    """A page of jobs. ``total`` counts all that match, where state, queue, pool and type are all that is asked for."""

    items: list[JobView]
    next_cursor: str | None
    total: int | None


class History(Struct, frozen=True):
    """Lines about a job in log order. An item has ``type``, ``actor``, ``at`` (log time), ``position``, ``outcome``,
    ``refusal`` (why, when it was refused) and the event's own fields. ``refused`` counts refused lines; the last 20 are
    listed."""

    items: list[Raw]
    refused: int
    next_cursor: str | None


class BulkItem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one item. ``code`` on an accepted one: ``duplicate``, the same job was there already;
    ``existing``, another holds its unique key, and ``id`` is that one's.

    ``unknown``: the log did not acknowledge it, or the read model did not say in time what became of its id; sending it
    again with its ``id`` settles it.
    """

    index: int
    status: Literal["accepted", "rejected", "unknown"]
    id: str = ""
    code: str = ""
    message: str = ""
    errors: list[FieldError] = []


class BulkAnswer(Struct, frozen=True):
    """Outcomes in the order of the request. All accepted items are durable."""

    accepted: int
    rejected: int
    unknown: int
    items: list[BulkItem]


class QueueView(Struct, frozen=True):
    """A queue that has, or had, jobs. ``states`` has only states with jobs."""

    name: str
    jobs: int
    states: dict[str, int]


class Queues(Struct, frozen=True):
    """All queues by name."""

    items: list[QueueView]


class Unhandled(Struct, frozen=True):
    """Ready jobs of a type that no live worker of their pool handles. They wait; nothing is dropped."""

    type: str
    pool: str
    ready: int


class Counts(Struct, frozen=True):
    """Exact counts. ``rows`` has each combination of state, queue, pool and type that has jobs."""

    total: int
    states: dict[str, int]
    queues: dict[str, int]
    types: dict[str, int]
    rows: list[CountRow]
    unhandled: list[Unhandled]


class WorkerView(Struct, frozen=True, kw_only=True):
    """A worker as its heartbeats tell. ``via`` is the gateway that speaks for it, empty when it is on the log."""

    id: str
    pool: str
    types: list[str]
    concurrency: int
    busy: int
    holding: int
    incarnation: str
    via: str
    host: str
    version: str
    leaving: bool
    last_seen: str


class Workers(Struct, frozen=True):
    """Live workers by id."""

    items: list[WorkerView]


class Quarantine(Struct, frozen=True):
    """Lines that could not be decoded."""

    items: list[QuarantinedItem]
    next_cursor: str | None


class PartitionReadiness(Struct, frozen=True, kw_only=True):
    """How far a partition is folded, and who leads it (empty: nobody yet)."""

    partition: int
    next_offset: int
    end_offset: int
    lag: int
    leader: str
    digest: str


class Readiness(Struct, frozen=True):
    """``problems`` is empty when ready."""

    status: Literal["ready", "unready"]
    problems: list[str]
    partitions: list[PartitionReadiness]


class Health(Struct, frozen=True):
    """The process answers."""

    status: Literal["ok"]
    version: str
    uptime_ms: int
