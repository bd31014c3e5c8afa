"""What a producer asks for, whichever way it goes: one request shape, its hash, and the event it becomes.

The API decodes bodies into :class:`JobRequest`, clients build them with :func:`request_fields`, and both the API and
:class:`~penstock.client.producer.LogProducer` turn them into the same ``Enqueued`` with
:mod:`penstock.client.enqueued`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Any, TypedDict, cast

import msgspec
from msgspec import Meta, Struct
from pydantic_core import PydanticSerializationError, to_jsonable_python

from penstock.client.refusals import malformed, told_better, unread_in
from penstock.schemas.codec import check_utf8, depth_of
from penstock.schemas.errors import InvalidField, MalformedJson, Undecodable
from penstock.schemas.events import (
    Backoff,
    DurationMs,
    OnConflict,
    Priority,
    Short,
    Unique,
    UniqueScope,
)
from penstock.schemas.ids import IDEMPOTENCY_KEY_PATTERN, exactly
from penstock.schemas.limits import MAX_DEPTH, MAX_DURATION_MS, MAX_TAGS
from penstock.schemas.names import CheckedJobId, CheckedName

NOT_HASHED = frozenset({"id", "idempotency_key", "trace", "at"})
"""Fields that two sendings of one request may differ in."""

VERB_AGE_MS = 300_000
"""How long after it was sent a verb, or a job with a unique key, may still have an effect."""

_NAMED_FIELD = re.compile(r"field `([^`]*)`")
_canonical = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder().decode
_NO_ADDRESS = frozenset({".", ".."})
OWN_TYPES = "penstock."
"""What types begin with that Penstock itself gives to jobs: operations, for one."""
_DEFAULT_BACKOFF = Backoff()

Moment = Annotated[datetime, Meta(tz=True)]
Attempts = Annotated[int, Meta(ge=1, le=1_000)]


class UniqueOptions(TypedDict, total=False):
    """At most one job holds ``key`` at a time: until it has ended, where ``scope`` says nothing else.

    ``on_conflict``: whether a job that finds its key held is refused (``reject``), is answered with the one that has it
    (``return_existing``), or takes its place if it waits (``replace``).
    """

    key: str
    scope: UniqueScope
    period_ms: int
    on_conflict: OnConflict


class OwnOptions(TypedDict, total=False):
    """What a job has for itself, and a clone of it does not take over.

    ``run_at`` and ``expires_at`` are aware datetimes or RFC 3339 text; ``_ms`` fields are milliseconds.
    ``idempotency_key`` stands for an id: the same key again is no second job.
    """

    id: str
    idempotency_key: str
    run_at: datetime | str
    delay_ms: int
    expires_at: datetime | str
    unique: UniqueOptions
    trace: str


class JobOptions(OwnOptions, total=False):
    """Everything a producer may say about a job besides its type and payload."""

    queue: str
    pool: str
    priority: Priority
    tags: Sequence[str]
    metadata: Mapping[str, Any]
    timeout_ms: int
    max_attempts: int
    backoff: Backoff | Mapping[str, Any]
    concurrency_key: str
    batch: str
    workflow: str


class CloneOptions(OwnOptions, total=False):
    """What a clone is to have otherwise than the job that it is made of. None: not what that one has, but what a
    new job has where nothing is said."""

    type: str
    payload: Any
    queue: str | None
    pool: str | None
    priority: Priority | None
    tags: Sequence[str] | None
    metadata: Mapping[str, Any] | None
    timeout_ms: int | None
    max_attempts: int | None
    backoff: Backoff | Mapping[str, Any] | None
    concurrency_key: str | None
    batch: str | None
    workflow: str | None


class BackoffRequest(Backoff, frozen=True, forbid_unknown_fields=True):
    """A job's backoff as a producer writes it; fields not given have :class:`Backoff`'s defaults.

    ``max_ms`` is at least ``base_ms`` where it is not given; one that is given and less is refused.
    """

    max_ms: DurationMs | None = None  # type: ignore[assignment]  # read by policy()

    def __post_init__(self) -> None:
        if self.max_ms is not None and self.base_ms > self.max_ms:
            raise ValueError("field `base_ms` is larger than max_ms")

    def policy(self) -> Backoff:
        """With all its fields, as it stands on the log."""
        max_ms = max(_DEFAULT_BACKOFF.max_ms, self.base_ms) if self.max_ms is None else self.max_ms
        return Backoff(self.kind, self.base_ms, self.factor, max_ms, self.jitter)


SharedKey = Annotated[str, Meta(min_length=1, max_length=256)]
"""What several jobs name, and are at home with."""


class UniqueRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job's unique key as a producer writes it. With ``period_ms`` it is held for that long, else until the job has
    ended, unless ``scope`` says otherwise."""

    key: SharedKey
    scope: UniqueScope | None = None
    period_ms: Annotated[int, Meta(ge=1, le=MAX_DURATION_MS)] | None = None
    on_conflict: OnConflict | None = None

    def __post_init__(self) -> None:
        if self.scope not in (None, "period") and self.period_ms is not None:
            raise ValueError("field `period_ms` goes with the scope period only")
        if self.scope == "period" and self.period_ms is None:
            raise ValueError("field `period_ms` is missing: how long the key is held")

    def event(self, not_after_ms: int) -> Unique:
        """With all that it says, as it stands on the log."""
        if self.period_ms is not None:
            return Unique(self.key, "period", self.period_ms, self.on_conflict or "reject", not_after_ms)
        return Unique(self.key, self.scope or "until_finished", 0, self.on_conflict or "reject", not_after_ms)


IdempotencyKey = Annotated[str, Meta(pattern=exactly(IDEMPOTENCY_KEY_PATTERN))]


class JobRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /api/v1/jobs``, one line of a bulk call, and what a producer on the log takes.

    A field that is null is as one not given.
    """

    type: CheckedName
    payload: Any = None
    id: CheckedJobId | None = None
    queue: CheckedName | None = None
    pool: CheckedName | None = None
    priority: Priority | None = None
    tags: Annotated[tuple[CheckedName, ...], Meta(max_length=MAX_TAGS)] | None = None
    metadata: dict[str, Any] | None = None
    run_at: Moment | None = None
    delay_ms: DurationMs | None = None
    timeout_ms: DurationMs | None = None
    expires_at: Moment | None = None
    max_attempts: Attempts | None = None
    backoff: BackoffRequest | None = None
    unique: UniqueRequest | None = None
    concurrency_key: SharedKey | None = None
    batch: CheckedName | None = None
    workflow: CheckedName | None = None
    idempotency_key: IdempotencyKey | None = None
    trace: Short | None = None


def request_hash(fields: Mapping[str, Any]) -> str:
    """SHA-256 (first 32 hex digits) of a request as sent, before defaults: canonical JSON, keys sorted.

    ``id``, ``idempotency_key``, ``trace`` and ``at`` do not count: an id that the server made is sent back by a client
    that retries.
    """
    if not NOT_HASHED.isdisjoint(fields):
        fields = {name: value for name, value in fields.items() if name not in NOT_HASHED}
    return sha256(_canonical(fields)).hexdigest()[:32]


def check_json(body: bytes) -> None:
    """Strict UTF-8 and bounded depth, which decoders that keep raw parts do not check.

    Raises:
        MalformedJson: it is not.
    """
    check_encoding(body)
    if not _shallow(body, MAX_DEPTH):
        check_depth(body)


def check_encoding(body: bytes) -> None:
    """Strict UTF-8. Raises MalformedJson."""
    if not body.isascii():
        try:
            check_utf8(body)
        except Undecodable as error:
            raise MalformedJson(f"the body is {error.message}") from error


def check_depth(body: bytes) -> None:
    """Bounded depth, bracket by bracket. Raises MalformedJson."""
    if depth_of(body) > MAX_DEPTH:
        raise MalformedJson(f"the body is nested deeper than {MAX_DEPTH}")


def all_shallow(items: Iterable[bytes]) -> bool:
    """Whether an array of these JSON values is certainly not nested too deep, at a glance."""
    return all(_shallow(item, MAX_DEPTH - 1) for item in items)


def _shallow(body: bytes, most: int) -> bool:
    # What is shorter and nested deeper cannot close its brackets, and is refused as JSON.
    return len(body) <= 2 * most or body.count(b"{") + body.count(b"[") <= most


def decode_request(body: bytes) -> tuple[JobRequest, str]:
    """A request and its hash from one JSON object.

    Raises:
        MalformedJson: not UTF-8, not JSON, or nested too deep.
        InvalidField: an unknown field or a value that is not allowed; ``details["field"]`` names it.
    """
    check_json(body)
    try:
        fields = _decode(body)
    except msgspec.ValidationError as error:
        raise invalid_field(error, unread_in(body)) from error
    except msgspec.DecodeError as error:
        raise malformed("the body", body, error) from error
    except RecursionError as error:
        raise MalformedJson("the body is nested too deep") from error
    return request_from(fields)


def decode_requests(bodies: Sequence[bytes]) -> list[tuple[JobRequest, str]] | None:
    """What :func:`decode_request` gives for each body, for a fraction of its price; None where it refuses any of them.

    Then they have to be looked at one by one.
    """
    # At a glance first: short ASCII is what most are.
    glance = all(map(bytes.isascii, bodies)) and max(map(len, bodies), default=0) <= 2 * MAX_DEPTH
    try:
        for body in () if glance else bodies:
            check_json(body)
        fields = [_decode(body) for body in bodies]
        requests = _convert_all(fields)
    except (MalformedJson, msgspec.DecodeError, RecursionError):
        return None
    if any(map(_refusal, requests)):
        return None
    return [(request, request_hash(sent)) for request, sent in zip(requests, fields, strict=True)]


def _convert_all(fields: list[Any]) -> list[JobRequest]:
    return msgspec.convert(fields, list[JobRequest])


def request_from(fields: Any, *, ours: bool = False) -> tuple[JobRequest, str]:
    """A request and its hash from decoded JSON.

    Args:
        ours: its type may be one of Penstock's own.

    Raises:
        InvalidField: as for :func:`decode_request`.
    """
    if not isinstance(fields, dict):
        raise InvalidField("a job is a JSON object", field="$")
    try:
        request = msgspec.convert(fields, JobRequest)
    except msgspec.ValidationError as error:
        raise invalid_field(error) from error
    refusal = _refusal(request, ours=ours)
    if refusal is not None:
        raise refusal
    return request, request_hash(cast("dict[str, Any]", fields))


def _refusal(request: JobRequest, *, ours: bool = False) -> InvalidField | None:
    """What is not allowed though each field is well formed."""
    if request.id in _NO_ADDRESS:
        return InvalidField("id: as a part of an address it would mean another one", field="id")
    if not ours and request.type.startswith(OWN_TYPES):
        return InvalidField(f"type: names that begin with {OWN_TYPES} are Penstock's own", field="type")
    return None


def invalid_field(error: msgspec.ValidationError, within: str = "", kind: Any = JobRequest) -> InvalidField:
    """What msgspec says about a value, with the field in ``details["field"]``.

    Args:
        within: the field that the value is of; empty if it is a whole body.
        kind: the type of the whole body.
    """
    reason, _, path = str(error).partition(" - at `")
    # What a producer calls its fields below one of ours is no name of a field.
    field = (within + path.rstrip("`").removeprefix("$")).lstrip(".").partition("[...]")[0]
    reason = told_better(reason, field, kind)
    # An unknown or missing field is named in the reason; the path then leads to the object around it.
    message = f"{field}: {reason}" if field else reason
    named = _NAMED_FIELD.search(reason)
    if named is not None:
        field = f"{field}.{named[1]}" if field else named[1]
    return InvalidField(message, field=field or "$")


def request_fields(
    job_type: str, payload: Any = None, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A request as plain JSON values, with only the fields that were given.

    The payload may be anything JSON can say, or a dataclass, msgspec struct or pydantic model.

    Raises:
        InvalidField: an option that does not exist or a value that JSON cannot say.
    """
    fields: dict[str, Any] = {"type": job_type}
    given = {name: value for name, value in (options or {}).items() if value is not None}
    unknown = sorted(given.keys() - JobOptions.__annotations__.keys())
    if unknown:
        raise InvalidField(f"unknown option {unknown[0]!r}", field=unknown[0])
    if payload is not None:
        given["payload"] = payload
    backoff = given.get("backoff")
    if isinstance(backoff, Backoff) and backoff.base_ms > backoff.max_ms == _DEFAULT_BACKOFF.max_ms:
        # It cannot say that its max_ms was not given.
        fields_given = msgspec.structs.asdict(backoff)
        given["backoff"] = {name: value for name, value in fields_given.items() if name != "max_ms"}
    for name, value in given.items():
        try:
            fields[name] = msgspec.to_builtins(value, str_keys=True, enc_hook=plain)
            if not _is_finite(fields[name]):
                raise ValueError("NaN and infinite numbers are no JSON")
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidField(f"{name}: {error}", field=name) from error
    return fields


def _is_finite(value: Any) -> bool:
    """Whether plain values have numbers that JSON can say, and no NaN or infinity, which would be written as null."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_finite, cast("dict[Any, Any]", value).values()))
    if isinstance(value, list):
        return all(map(_is_finite, cast("list[Any]", value)))
    return True


def fields_of(request: object) -> dict[str, Any]:
    """:func:`request_fields` of one mapping with ``type``, ``payload`` and options. Raises InvalidField."""
    if not isinstance(request, Mapping):
        raise InvalidField("a job is a mapping with type and payload", field="$")
    given = cast("Mapping[str, Any]", request)
    options = {name: value for name, value in given.items() if name not in ("type", "payload")}
    return request_fields(str(given.get("type", "")), given.get("payload"), options)


def plain(value: Any) -> Any:
    """What msgspec does not know by itself, in the way that pydantic reads it back: models by their aliases, paths,
    addresses, URLs and the like.

    Raises:
        TypeError: JSON has nothing for it.
    """
    kind = type(value).__name__
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return dump(mode="json", by_alias=True)
    if isinstance(value, os.PathLike):
        return os.fsdecode(cast("os.PathLike[str]", value))
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    if isinstance(value, Sequence):
        return list(cast("Sequence[Any]", value))
    # A generator would be used up, and a secret would arrive as asterisks.
    lost = isinstance(value, Iterator) or hasattr(value, "get_secret_value")
    try:
        if not lost:
            return to_jsonable_python(value)
    except PydanticSerializationError:
        pass
    raise TypeError(f"a {kind} is not JSON")
