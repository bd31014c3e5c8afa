"""Jobs straight onto the log, without an API between: for producers that reach Kafka themselves.

What the API would answer after the fold (that an id is in use by another job, or a unique key is held by one) a
producer doesn't learn: such a line is refused by the fold and stands in the other job's history.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, Unpack, cast

from msgspec import Raw, structs

from penstock.client.enqueued import enqueued_event
from penstock.client.identity import own_id
from penstock.client.requests import JobOptions, fields_of, request_fields, request_from
from penstock.log.bundler import Bundler
from penstock.log.port import Log
from penstock.schemas.codec import encode_line
from penstock.schemas.events import Enqueued
from penstock.schemas.ids import partition_of
from penstock.schemas.limits import DEFAULT_PAYLOAD_BYTES
from penstock.schemas.position import Position
from penstock.schemas.topics import Topics

if TYPE_CHECKING:
    # Its client of object stores takes a while to load.
    from penstock.log.claims import ClaimStore


class Produced(NamedTuple):
    """A job that is on the log. A read that waits for ``position`` sees it."""

    id: str
    position: Position


class _Prepared(NamedTuple):
    id: str
    partition: int
    line: bytes
    large: Enqueued | None = None
    """The event, while its payload is yet to be put beside the log: there is no line then."""


class LogProducer:
    """Appends ``Enqueued`` lines. Use as an async context manager; the log is the caller's, its topics exist.

    Args:
        actor: who the lines say they are from.
        max_payload_bytes: larger payloads are refused, or put into ``claims``.
        claims: for payloads that are too large for the log; workers and the API must be told of the same store.
        clock_ms: Unix ms, written as the producer's own time.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        *,
        tenant: str = "default",
        actor: str = "producer",
        max_payload_bytes: int = DEFAULT_PAYLOAD_BYTES,
        claims: ClaimStore | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._topics = topics
        self._bundler = Bundler(log, topics.jobs)
        self._tenant = tenant
        self._actor = actor
        self._max_payload_bytes = max_payload_bytes
        self._claims = claims
        self._clock_ms = clock_ms

    async def __aenter__(self) -> Self:
        await self._bundler.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._bundler.__aexit__(kind, error, trace)

    async def enqueue(self, job_type: str, payload: Any = None, /, **options: Unpack[JobOptions]) -> Produced:
        """Put a job on the log; returns once it is durable. Without ``id`` it gets one here.

        Raises:
            InvalidField, TooLarge: the request is not allowed; nothing was written.
            BlobsUnavailable: a large payload could not be stored; nothing was written.
            LogError: the log did not take it, or did not say so. The same ``id`` again is no second job.
        """
        prepared = await self._stored(self._prepare(request_fields(job_type, payload, options)))
        place = await self._bundler.append(prepared.partition, prepared.line)
        return Produced(prepared.id, Position(prepared.partition, place.offset, place.line_no))

    async def enqueue_many(self, requests: Iterable[Mapping[str, Any]]) -> list[Produced]:
        """Put many jobs on the log, each a mapping with ``type``, ``payload`` and options. Raises as :meth:`enqueue`.

        All are checked before the first is written.
        """
        prepared = [self._prepare(fields_of(request)) for request in requests]
        if any(job.large is not None for job in prepared):
            prepared = await asyncio.gather(*map(self._stored, prepared))
        by_partition: dict[int, list[int]] = {}
        for number, job in enumerate(prepared):
            by_partition.setdefault(job.partition, []).append(number)
        produced: dict[int, Produced] = {}
        for partition, numbers in by_partition.items():
            places = await self._bundler.append_many(partition, [prepared[number].line for number in numbers])
            for number, place in zip(numbers, places, strict=True):
                produced[number] = Produced(
                    prepared[number].id, Position(partition, place.offset, place.line_no)
                )
        return [produced[number] for number in range(len(prepared))]

    def _prepare(self, fields: dict[str, Any]) -> _Prepared:
        request, hashed = request_from(fields)
        job_id = own_id(request, self._tenant)
        event = enqueued_event(
            request,
            job_id=job_id,
            hashed=hashed,
            at_ms=self._clock_ms(),
            tenant=self._tenant,
            actor=self._actor,
            max_payload_bytes=max(
                self._max_payload_bytes, 0 if self._claims is None else self._claims.max_bytes
            ),
        )
        partition = partition_of(job_id, self._topics.partitions)
        if len(event.payload) > self._max_payload_bytes:
            return _Prepared(job_id, partition, b"", event)
        return _Prepared(job_id, partition, encode_line(event))

    async def _stored(self, prepared: _Prepared) -> _Prepared:
        """The same with a line: a large payload is put beside the log, and its claim on the line."""
        event = prepared.large
        if event is None or self._claims is None:
            return prepared
        claim = await self._claims.keep(self._tenant, prepared.id, bytes(cast("Any", event.payload)))
        return prepared._replace(line=encode_line(structs.replace(event, payload=Raw(claim))), large=None)
