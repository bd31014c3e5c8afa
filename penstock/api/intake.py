"""From a request to a durable line: ids are fixed first, then the line is appended, then its outcome is told.

A job whose id we made is surely new: its view is what :func:`penstock.core.job.apply` makes of the line at its
acknowledged place, and nobody has to be asked. A job that came with an id may be there already: only the fold knows, so
its verdict is waited for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from msgspec import Struct
from starlette.requests import Request

from penstock.api.appending import append_line
from penstock.api.deps import ApiDeps
from penstock.api.http import header
from penstock.client.enqueued import enqueued_fields, event_of, line_of
from penstock.client.idgen import new_id, new_id_in
from penstock.client.requests import JobRequest
from penstock.projections.port import JobView, VerdictView
from penstock.projections.views import enqueued_view
from penstock.schemas.errors import IdInUse, ReadBehind, ReadModelUnavailable
from penstock.schemas.ids import partition_of
from penstock.schemas.position import Position

TENANT = "default"
ACTOR = "api"
"""Whom the lines say they are from."""

STEERED_NS = 4_000_000
STEERED_PARTITIONS = 32
"""With more partitions, finding an id for a given one costs more than bundles save."""

TRACEPARENT = re.compile(r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")


class Prepared(Struct, frozen=True, gc=False):
    """A line that is ready to be appended. ``given``: its job's id came with the request."""

    job: str
    partition: int
    line: bytes
    given: bool
    fields: dict[str, Any]
    """Of the event, see :func:`penstock.client.enqueued.enqueued_fields`."""


class Taken(NamedTuple):
    """A durable job. ``created`` is false when the same job was there before; ``view`` is the first one's then."""

    view: JobView
    position: Position
    created: bool


class Intake:
    """Takes jobs in."""

    def __init__(self, deps: ApiDeps) -> None:
        self._deps = deps
        self._partitions = deps.topics.partitions
        self._max_payload_bytes = deps.options.max_payload_bytes

    def prepare(
        self, request: JobRequest, hashed: str, at_ms: int, trace: str, spare: tuple[str, int] | None = None,
        cause: str = "",
    ) -> Prepared:  # fmt: skip
        """Fix a job's id and make its line.

        Args:
            at_ms: this process's clock, Unix ms.
            trace: of the call, for a job that brings none itself.
            spare: a new id and its partition, for a job that comes without one.
            cause: the event that led to it.

        Raises:
            TooLarge: payload or metadata is.
            InvalidField: a time is out of range.
        """
        given = request.id is not None
        if request.id is None:
            job_id, partition = spare or self._new_id()
        else:
            job_id, partition = request.id, partition_of(request.id, self._partitions)
        fields = enqueued_fields(
            request, job_id, hashed, at_ms, TENANT, ACTOR, request.trace or trace, self._max_payload_bytes
        )
        if cause:
            fields["cause"] = cause
        return Prepared(job_id, partition, line_of(fields), given, fields)

    def _new_id(self) -> tuple[str, int]:
        """An id of our own making and its partition. Those of the same few milliseconds live in one partition.

        So a middling rate makes full bundles, from here through leasing to outcomes, and not one line in each record.
        """
        partitions = self._partitions
        if partitions > STEERED_PARTITIONS:
            job_id = new_id()
            return job_id, partition_of(job_id, partitions)
        partition = time.monotonic_ns() // STEERED_NS % partitions
        return new_id_in(partition, partitions), partition

    async def take(self, prepared: Prepared) -> Taken:
        """Append one job and tell what became of it.

        Raises:
            LogError: it was not acknowledged; ``details["job_id"]`` has the id with which to try again.
            IdInUse: another job has this id.
            ReadBehind, ReadModelUnavailable: it is durable, but what the fold makes of its id is not known yet.
        """
        place = await append_line(self._deps, prepared.job, prepared.partition, prepared.line)
        position = Position(prepared.partition, place.offset, place.line_no)
        if not prepared.given:
            return Taken(enqueued_view(event_of(prepared.fields), position, place.time_ms), position, True)
        try:
            [verdict] = await self.verdicts([(prepared, position)])
        except (ReadBehind, ReadModelUnavailable) as error:
            error.details["job_id"] = prepared.job
            raise
        return _taken(prepared.job, position, verdict)

    async def verdicts(self, written: Sequence[tuple[Prepared, Position]]) -> list[VerdictView]:
        """What the fold made of lines, in order."""
        wanted = [
            (position, TENANT, prepared.job, str(prepared.fields["id"])) for prepared, position in written
        ]
        return await self._deps.read_model.verdicts(wanted, self._deps.options.verdict_wait_ms)


def _taken(job_id: str, position: Position, verdict: VerdictView) -> Taken:
    outcome = settle(verdict)
    if verdict.job is not None and verdict.job.state == "deleted":
        raise IdInUse(f"the job {job_id!r} was deleted, and is not forgotten yet", job_id=job_id)
    if outcome == "conflict" or verdict.job is None:
        raise IdInUse(
            f"another job with the id {job_id!r} is already there"
            if outcome == "conflict"
            else verdict.reason,
            job_id=job_id,
        )
    return Taken(verdict.job, position, outcome == "created")


def settle(verdict: VerdictView) -> Literal["created", "duplicate", "conflict"]:
    """What a verdict on an ``Enqueued`` means for who sent it."""
    if verdict.outcome == "applied":
        return "created"
    return "duplicate" if verdict.outcome == "duplicate" else "conflict"


def trace_of(request: Request) -> str:
    """The call's W3C traceparent, if it is well-formed: another is to be ignored."""
    traceparent = header(request, b"traceparent")
    return traceparent if TRACEPARENT.match(traceparent) else ""
