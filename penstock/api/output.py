"""What handlers log, by attempt: read, also while it is written, and taken in from workers over HTTP.

Parts are stored a second after they were logged, and the last one a moment after the attempt has ended: so ``ended``
says that no more will be logged, and not yet that all of it is here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta, Raw, Struct
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.deps import ApiDeps, deps_of
from penstock.api.gateway_models import Kept, OutputLevel, OutputReport
from penstock.api.http import Answer, Operation, answer, query, read_json
from penstock.api.intake import TENANT
from penstock.api.jobs import READ_HEADERS, wait_for
from penstock.api.lookup import find_job
from penstock.api.models import ReadQuery, ShortText
from penstock.api.remote_worker import partition_of_lease
from penstock.projections.port import JobView
from penstock.schemas.errors import InvalidField, NotFound
from penstock.schemas.ids import partition_of
from penstock.schemas.limits import MAX_OUTPUT_BYTES

LOOK_EVERY_S = 0.3
LEVELS = get_args(OutputLevel)

_encode = msgspec.json.Encoder().encode


class LogQuery(ReadQuery, frozen=True):
    """``from``: begin with this line, counted from 0 among those that are asked for. ``wait_ms``: wait for one so long.

    ``contains`` is looked for in messages, logger names and fields, whatever its case.
    """

    contains: ShortText | None = None
    level: OutputLevel = "debug"
    first: Annotated[int, Meta(ge=0, lt=1 << 31)] = msgspec.field(default=0, name="from")
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1_000


class LogLine(Struct, frozen=True):
    """A record as it was logged. ``at`` is the worker's clock, RFC 3339."""

    at: str
    level: str
    logger: str
    message: str
    fields: dict[str, Any] = {}


class AttemptLog(Struct, frozen=True):
    """``next`` is what ``from`` goes on with; ``ended`` whether the attempt has."""

    items: list[Raw]
    next: int
    ended: bool


class AttemptLogShape(Struct, frozen=True):
    """For the document: lines pass through as they were written."""

    items: list[LogLine]
    next: int
    ended: bool


class _Head(Struct):
    level: str = ""


_head = msgspec.json.Decoder(_Head).decode


async def attempt_log(request: Request) -> Response:
    deps = deps_of(request)
    asked = query(request, LogQuery)
    await wait_for(request, deps, ReadQuery(asked.after))
    job_id, number = str(request.path_params["id"]), str(request.path_params["n"])
    job = await find_job(deps, job_id)
    attempt = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 0
    # One that was given back costs no attempt, and is not counted; what it logged is there all the same.
    uncounted = attempt > job.attempt and deps.claims is not None and await _stored(deps, job, attempt)
    if not (1 <= attempt <= job.attempt or uncounted):
        raise NotFound(f"The job {job_id!r} has had no attempt {number[:20]!r}; it has had {job.attempt}.")
    until_s = time.monotonic() + (asked.wait_ms or 0) / 1_000
    while True:
        ended = _has_ended(job, attempt)
        lines = _wanted(await _stored(deps, job, attempt), asked)
        found = lines[asked.first : asked.first + asked.limit]
        left_s = until_s - time.monotonic()
        if found or ended or left_s <= 0:
            return answer(AttemptLog([Raw(line) for line in found], asked.first + len(found), ended))
        async with deps.parked.wait():
            await asyncio.sleep(min(LOOK_EVERY_S, left_s))
        job = await find_job(deps, job_id)


def _has_ended(job: JobView, attempt: int) -> bool:
    return attempt < job.attempt or job.state != "active"


async def _stored(deps: ApiDeps, job: JobView, attempt: int) -> list[bytes]:
    return (await deps.claim_store().output(job.tenant, job.id, attempt)).splitlines()


def _wanted(lines: Sequence[bytes], asked: LogQuery) -> list[bytes]:
    least = LEVELS.index(asked.level)
    text = (asked.contains or "").casefold()
    return [
        line
        for line in lines
        if (not text or text in _text_of(line)) and (not least or _rank(_head(line).level) >= least)
    ]


def _text_of(line: bytes) -> str:
    """What is searched of a line, without the marks of JSON."""
    found: LogLine = msgspec.json.decode(line, type=LogLine)
    values = " ".join(f"{name}={value}" for name, value in found.fields.items())
    return f"{found.message}\n{found.logger}\n{values}".casefold()


def _rank(level: str) -> int:
    return LEVELS.index(level) if level in LEVELS else len(LEVELS)


async def keep_output(request: Request) -> Response:
    """From a worker over HTTP."""
    deps = deps_of(request)
    asked = await read_json(request, OutputReport, MAX_OUTPUT_BYTES + 64 * 1024)
    store = deps.claim_store()
    partitions = deps.topics.partitions
    if partition_of_lease(asked.lease, partitions) != partition_of(asked.job, partitions):
        raise InvalidField("lease: not a lease of this job", field="lease")
    lines = b"".join(_encode(item) + b"\n" for item in asked.items)
    await store.keep_output(TENANT, asked.job, asked.attempt, int(asked.fence), asked.number, lines)
    return answer(Kept(len(asked.items)))


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/jobs/{id}/attempts/{n}/log",
        endpoint=attempt_log,
        summary="What an attempt has logged, while it runs and afterwards",
        tag="jobs",
        query=LogQuery,
        headers=READ_HEADERS,
        answers={200: Answer("Its lines in the order in which they were logged.", AttemptLogShape)},
        problems=(404, 422, 503),
    ),
    Operation(
        method="POST",
        path="/api/v1/worker/log",
        endpoint=keep_output,
        summary="Keep what an attempt has logged",
        tag="worker protocol",
        body=OutputReport,
        answers={200: Answer("It is stored.", Kept)},
        problems=(400, 413, 415, 422, 503),
    ),
)
