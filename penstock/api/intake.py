"""From a request to a durable line: ids are fixed first, then the line is appended, then its outcome is told.

A job whose id we made is surely new: its view is what :func:`penstock.core.job.apply` makes of the line at its
acknowledged place, and nobody has to be asked. A job that came with an id may be there already: only the fold knows, so
its verdict is waited for.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, Struct
from starlette.requests import Request

from penstock.api.appending import append_line
from penstock.api.deps import ApiDeps
from penstock.api.http import header
from penstock.client.enqueued import enqueued_fields, event_of, line_of
from penstock.client.identity import own_id
from penstock.client.idgen import new_id, new_id_in
from penstock.client.requests import JobRequest
from penstock.projections.port import JobFilter, JobView, SearchQuery, VerdictView
from penstock.projections.views import enqueued_view
from penstock.schemas.errors import (
    BlobsUnavailable,
    Conflict,
    IdempotencyKeyReused,
    IdInUse,
    ReadBehind,
    ReadModelUnavailable,
    UniqueConflict,
)
from penstock.schemas.events import Unique
from penstock.schemas.ids import partition_of
from penstock.schemas.position import Position

TENANT = "default"
ACTOR = "api"
"""Whom the lines say they are from."""

_BROUGHT = {
    5: ("batches and workflows", ("batch", "workflow")),
    4: ("concurrency keys", ("concurrency_key",)),
    3: ("unique keys", ("unique",)),
}
"""What versions of the rules brought, and its fields, newest first: under older ones it would be passed over in
silence."""
_SINCE = [(name, version) for version, (_, names) in _BROUGHT.items() for name in names]

RULES_EVERY_S = 0.05

STEERED_NS = 4_000_000
STEERED_PARTITIONS = 32
"""With more partitions, finding an id for a given one costs more than bundles save."""

TRACEPARENT = re.compile(r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")


class Prepared(Struct, frozen=True, gc=False):
    """A line that is ready to be appended."""

    job: str
    partition: int
    line: bytes
    """Empty while its payload, too large for the log, is yet to be put beside it."""
    given: bool
    """Whether its job may be there already, or not begin: only the fold knows."""
    fields: dict[str, Any]
    """Of the event, see :func:`penstock.client.enqueued.enqueued_fields`."""
    keyed: bool = False
    """Whether its id was made of an idempotency key."""

    @property
    def unique(self) -> Unique | None:
        """Of the event."""
        return self.fields.get("unique")

    @property
    def needs_rules(self) -> int:
        """The lowest version of the rules that knows what is asked for."""
        return next((version for name, version in _SINCE if name in self.fields), 1)


class Taken(NamedTuple):
    """A durable job. ``created`` is false where another is answered: the same job, which was there before, or the one
    that holds its unique key."""

    view: JobView
    position: Position
    created: bool


class Intake:
    """Takes jobs in."""

    def __init__(self, deps: ApiDeps, max_payload_bytes: int | None = None) -> None:
        """``max_payload_bytes``: as the options say, if None."""
        self._deps = deps
        self._partitions = deps.topics.partitions
        self._max_payload_bytes = max_payload_bytes or deps.payload_max_bytes
        self._inline_bytes = max_payload_bytes or deps.options.max_payload_bytes

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
            InvalidField: a time is out of range, or the id does not go with the request's keys.
        """
        given = request.id is not None or request.unique is not None or request.idempotency_key is not None
        if given or request.concurrency_key is not None:
            job_id = own_id(request, TENANT)
            partition = partition_of(job_id, self._partitions)
        else:
            job_id, partition = spare or self._new_id()
        fields = enqueued_fields(
            request, job_id, hashed, at_ms, TENANT, ACTOR, request.trace or trace, self._max_payload_bytes
        )
        if cause:
            fields["cause"] = cause
        keyed = request.idempotency_key is not None
        large = len(fields.get("payload", b"")) > self._inline_bytes
        return Prepared(job_id, partition, b"" if large else line_of(fields), given, fields, keyed)

    async def stored(self, prepared: Prepared) -> Prepared:
        """The same with a line: a payload that is too large for the log is put beside it, and its claim on the line.

        Raises:
            BlobsUnavailable: it is not stored, and the job did not begin; ``details["job_id"]`` has the id with which
                to try again.
        """
        claims = self._deps.claims
        if prepared.line or claims is None:
            return prepared
        payload = bytes(prepared.fields["payload"])
        try:
            claim = await claims.keep(TENANT, prepared.job, payload)
        except BlobsUnavailable as error:
            error.details["job_id"] = prepared.job
            raise
        fields = {**prepared.fields, "payload": Raw(claim)}
        return msgspec.structs.replace(prepared, line=line_of(fields), fields=fields)

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
            LogError, BlobsUnavailable: it was not acknowledged; ``details["job_id"]`` has the id with which to try
                again.
            Conflict: another job has its id, its unique key or its idempotency key.
            ReadBehind, ReadModelUnavailable: it is durable, but what the fold makes of its id is not known yet.
        """
        await self.require_rules({prepared.partition: prepared.needs_rules})
        prepared = await self.stored(prepared)
        if prepared.keyed:
            await self._not_at_home_elsewhere(prepared)
        place = await append_line(self._deps, prepared.job, prepared.partition, prepared.line)
        position = Position(prepared.partition, place.offset, place.line_no)
        if not prepared.given:
            return Taken(enqueued_view(event_of(prepared.fields), position, place.time_ms), position, True)
        try:
            [verdict] = await self.verdicts([(prepared, position)])
        except (ReadBehind, ReadModelUnavailable) as error:
            error.details["job_id"] = prepared.job
            raise
        return settled(prepared, position, verdict)

    async def _not_at_home_elsewhere(self, prepared: Prepared) -> None:
        """An idempotency key names one job whatever its home; the fold of a partition knows its own homes only.

        Of two that race with different homes both may begin: then neither was there for the other to see.
        """
        wanted = JobFilter(id_prefix=prepared.job.partition("~")[0])
        page = await self._deps.read_model.search(SearchQuery(tenant=TENANT, filter=wanted, limit=2))
        for other in page.items:
            if other.id != prepared.job:
                raise IdempotencyKeyReused(
                    f"the idempotency key was used for the job {other.id}, which is at home elsewhere",
                    existing_id=other.id,
                )

    async def require_rules(self, needed: Mapping[int, int]) -> None:
        """Wait a moment until partitions follow the rules that are needed there (version by partition).

        Raises:
            Conflict: one does not follow them yet.
            ReadModelUnavailable: nobody can tell.
        """
        until_s = time.monotonic() + self._deps.options.read_wait_ms / 1_000
        while lacking := await self._lacking(needed):
            partition, version = lacking
            # A log that was made with them comes to them as soon as somebody leads.
            if self._deps.made_with < needed[partition] or time.monotonic() >= until_s:
                wanted = needed[partition]
                raise Conflict(
                    f"{_BROUGHT[wanted][0]} need rules {wanted}, and partition {partition} follows rules {version}:"
                    f" see penstock rules activate {wanted}"
                )
            await asyncio.sleep(RULES_EVERY_S)

    async def _lacking(self, needed: Mapping[int, int]) -> tuple[int, int] | None:
        """One of these partitions that does not follow what is needed, and the rules that it follows."""
        known = self._deps.known_rules

        def lacking() -> tuple[int, int] | None:
            followed = ((partition, known.get(partition, 1)) for partition in needed)
            return next((one for one in followed if one[1] < needed[one[0]]), None)

        if lacking() is None:
            return None
        known.update({status.partition: status.rules for status in await self._deps.read_model.status()})
        return lacking()

    async def verdicts(self, written: Sequence[tuple[Prepared, Position]]) -> list[VerdictView]:
        """What the fold made of lines, in order."""
        wanted = [
            (position, TENANT, prepared.job, str(prepared.fields["id"])) for prepared, position in written
        ]
        uniques = [prepared.unique for prepared, _ in written]
        keys = ["" if unique is None else unique.key for unique in uniques] if any(uniques) else []
        return await self._deps.read_model.verdicts(wanted, self._deps.options.verdict_wait_ms, keys)


def settled(prepared: Prepared, position: Position, verdict: VerdictView) -> Taken:
    """What a verdict on an ``Enqueued`` means for whoever sent it.

    Raises:
        Conflict: its job did not begin: another has its id, its unique key or its idempotency key.
    """
    job_id, job, unique = prepared.job, verdict.job, prepared.unique
    if unique is not None and verdict.outcome == "conflict" and (job is None or job.id != job_id):
        if unique.on_conflict == "return_existing" and job is not None:
            return Taken(job, position, False)
        existing = {} if job is None else {"existing_id": job.id, "job_state": job.state}
        raise UniqueConflict(verdict.reason, job_id=job_id, **existing)
    if job is None:
        raise IdInUse(verdict.reason, job_id=job_id)
    if job.state == "deleted":
        raise IdInUse(f"the job {job_id!r} was deleted, and is not forgotten yet", job_id=job_id)
    if verdict.outcome not in ("applied", "duplicate"):
        if prepared.keyed:
            raise IdempotencyKeyReused("the idempotency key was used for another request", job_id=job_id)
        raise IdInUse(f"another job with the id {job_id!r} is already there", job_id=job_id)
    return Taken(job, position, verdict.outcome == "applied")


def trace_of(request: Request) -> str:
    """The call's W3C traceparent, if it is well-formed: another is to be ignored."""
    traceparent = header(request, b"traceparent")
    return traceparent if TRACEPARENT.match(traceparent) else ""
