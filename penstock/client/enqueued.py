"""From a request to the ``Enqueued`` that it becomes, and to the line that this stands on.

Who writes many lines needs no event: a line is made of its fields, at half the price.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Raw

from penstock.client.requests import VERB_AGE_MS, JobRequest
from penstock.schemas.errors import InvalidField, TooLarge
from penstock.schemas.events import Enqueued
from penstock.schemas.limits import DEFAULT_PAYLOAD_BYTES, MAX_METADATA_BYTES, MAX_TIME_MS

_encode = msgspec.json.Encoder().encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def enqueued_event(
    request: JobRequest,
    *,
    job_id: str,
    hashed: str,
    at_ms: int,
    tenant: str = "default",
    actor: str = "",
    trace: str = "",
    max_payload_bytes: int = DEFAULT_PAYLOAD_BYTES,
) -> Enqueued:
    """The event that a request becomes. ``hashed`` is its :func:`request_hash`, ``at_ms`` the producer's clock.

    Raises:
        TooLarge: the payload or the metadata has more bytes than allowed.
        InvalidField: a time lies outside the years 1970 to 9999.
    """
    fields = enqueued_fields(
        request, job_id, hashed, at_ms, tenant, actor, request.trace or trace, max_payload_bytes
    )
    return event_of(fields)


def event_of(fields: Mapping[str, Any]) -> Enqueued:
    """The event that has these fields, as :func:`enqueued_fields` gives them."""
    return Enqueued(**{name: value for name, value in fields.items() if name != "type"})


def enqueued_fields(
    request: JobRequest,
    job_id: str,
    hashed: str,
    at_ms: int,
    tenant: str,
    actor: str,
    trace: str,
    max_payload_bytes: int,
) -> dict[str, Any]:
    """What stands on the line of :func:`enqueued_event`, in that order and without what is as by default.

    For who writes many: the line made of this (see :func:`line_of`) is the event's, without the event.
    Raises as that function.
    """
    fields: dict[str, Any] = {"type": "Enqueued", "id": "enq." + job_id}
    if tenant != "default":
        fields["tenant"] = tenant
    if actor:
        fields["actor"] = actor
    if trace:
        fields["trace"] = trace
    fields["at"] = at_ms
    fields["job"] = job_id
    fields["job_type"] = request.type
    if request.queue is not None:
        fields["queue"] = request.queue
    if request.pool is not None:
        fields["pool"] = request.pool
    if request.priority is not None:
        fields["priority"] = request.priority
    if request.payload is not None:
        fields["payload"] = _body("payload", request.payload, max_payload_bytes)
    if request.tags:
        fields["tags"] = request.tags
    if request.metadata is not None:
        fields["metadata"] = _body("metadata", request.metadata, MAX_METADATA_BYTES)
    _add_timing(fields, request)
    fields["request_hash"] = hashed
    if request.unique is not None:
        fields["unique"] = request.unique.event(at_ms + VERB_AGE_MS)
    if request.concurrency_key is not None:
        fields["concurrency_key"] = request.concurrency_key
    if request.batch is not None:
        fields["batch"] = request.batch
    if request.workflow is not None:
        fields["workflow"] = request.workflow
    return fields


def _add_timing(fields: dict[str, Any], request: JobRequest) -> None:
    if request.run_at is not None:
        fields["run_at"] = time_ms("run_at", request.run_at)
    if request.delay_ms:
        fields["delay_ms"] = request.delay_ms
    if request.timeout_ms:
        fields["timeout_ms"] = request.timeout_ms
    if request.expires_at is not None:
        fields["expires_at"] = time_ms("expires_at", request.expires_at)
    if request.max_attempts is not None:
        fields["max_attempts"] = request.max_attempts
    if request.backoff is not None:
        fields["backoff"] = request.backoff.policy()


def line_of(fields: Mapping[str, Any]) -> bytes:
    """The line of an event with these fields, as :func:`enqueued_fields` gives them."""
    # Bodies were encoded anew, so there is no newline in it.
    return _encode(fields)


def _body(field: str, value: Any, most_bytes: int) -> Raw:
    # Encoded anew, so that a pretty-printed payload brings no newline into the line.
    raw = _encode(value)
    if len(raw) > most_bytes:
        raise TooLarge(f"{field} has {len(raw)} bytes, at most {most_bytes} are allowed", field=field)
    return Raw(raw)


def time_ms(field: str, moment: datetime) -> int:
    """Unix ms of a moment. Raises InvalidField, naming ``field``, outside the years 1970 to 9999."""
    time_ms = round((moment - _EPOCH).total_seconds() * 1_000)
    if not 0 <= time_ms <= MAX_TIME_MS:
        raise InvalidField(f"{field} lies outside the years 1970 to 9999", field=field)
    return time_ms
