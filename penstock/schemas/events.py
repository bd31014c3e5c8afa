"""Every event that can stand on the jobs log, one frozen struct each.

A line is one of these as JSON, told apart by ``type``. The smallest line a person can type is::

    {"type": "Enqueued", "job": "my-first-job", "job_type": "resize", "payload": {"width": 200}}

The envelope, alike on all: ``id`` names the event (a repeat with the same id has no effect; an ``Enqueued`` without one
takes its job's id), ``job`` and ``tenant`` the job, ``actor`` who did it, ``cause`` the event id that led to it,
``trace`` a W3C traceparent, ``at`` the producer's clock in Unix ms (informative only), ``v`` the version of the
type's fields.

Bodies (payload, result, checkpoint, error details) are plain JSON, or sealed: then the field holds the base64
ciphertext as a JSON string and ``sealed`` names the field and the key it was encrypted with.

Fields are only ever added, with defaults. Times are Unix ms, durations ms. Positions inside the partition are packed
integers (see :mod:`penstock.schemas.position`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from msgspec import Meta, Raw, Struct

from penstock.schemas.ids import exactly
from penstock.schemas.limits import (
    MAX_DURATION_MS,
    MAX_ERROR_MESSAGE_CHARS,
    MAX_PARTIAL_ERRORS,
    MAX_PROGRESS_MESSAGE_CHARS,
    MAX_TAGS,
    MAX_TIME_MS,
)

Priority = Literal["critical", "high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("critical", "high", "normal", "low")
"""Most urgent first."""

# Their patterns are checked by the codec, for a fraction of the price: see :mod:`penstock.schemas.names`.
JobId = Annotated[str, Meta(max_length=193)]
Name = Annotated[str, Meta(max_length=128)]
Tenant = Annotated[str, Meta(pattern=exactly(r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,63}$"))]
EventId = Annotated[str, Meta(max_length=256)]
TimeMs = Annotated[int, Meta(ge=0, le=MAX_TIME_MS)]
DurationMs = Annotated[int, Meta(ge=0, le=MAX_DURATION_MS)]
Packed = Annotated[int, Meta(ge=-1, le=(1 << 63) - 1)]
"""A packed position, with the log's generation in front where the log is a copy."""
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Short = Annotated[str, Meta(max_length=256)]

NULL = Raw(b"null")

# A field that may be left out, which is not the same as null. msgspec would refuse every body if it saw `Raw | None`.
if TYPE_CHECKING:
    BodyOrNone = Raw | None
else:
    BodyOrNone = Raw


class Backoff(Struct, frozen=True, gc=False):
    """How long to wait before the next attempt. ``jitter`` is the fraction by which a delay is spread, 0 to 1.

    Written with all its fields, for it stands in the fold's rows: msgspec tells a default by the object's
    identity, which is a matter of the Python version for numbers, and no two folders may differ.
    """

    kind: Literal["none", "fixed", "linear", "exponential"] = "exponential"
    base_ms: DurationMs = 1_000
    factor: Annotated[float, Meta(ge=1.0, le=100.0)] = 2.0
    max_ms: DurationMs = 600_000
    jitter: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.1


class JobError(Struct, frozen=True, omit_defaults=True, gc=False):
    """Why an attempt failed. ``retryable`` false makes the job dead at once."""

    code: Short
    message: Annotated[str, Meta(max_length=MAX_ERROR_MESSAGE_CHARS)] = ""
    details: Raw = NULL
    retryable: bool = True


UniqueScope = Literal["until_started", "until_finished", "period"]
OnConflict = Literal["reject", "return_existing", "replace"]


class Unique(Struct, frozen=True, omit_defaults=True, gc=False):
    """At most one job holds ``key`` at a time.

    ``scope`` says how long this job holds it: until it is started, until it has ended, or for ``period_ms`` from its
    beginning on, whatever becomes of it. ``on_conflict`` says what to do where another job holds it: ``reject`` and
    ``return_existing`` both leave that job alone, and differ in what whoever asked is told; ``replace`` takes its
    place if it waits.
    """

    key: Annotated[str, Meta(min_length=1, max_length=256)]
    scope: UniqueScope = "until_finished"
    period_ms: DurationMs = 0
    on_conflict: OnConflict = "reject"
    not_after: TimeMs = 0
    """Later, by log time, it is no longer decided anew, so that a late copy of a line that was refused has no effect;
    0 is never."""


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", gc=False):
    """The envelope. See the module."""

    id: EventId = ""
    tenant: Tenant = "default"
    actor: Short = ""
    cause: EventId = ""
    trace: Short = ""
    at: TimeMs = 0
    v: Count = 1
    origin: Short = ""
    """Where a forwarded line first stood, ``partition:offset:line``; only leaders write it."""
    sealed: dict[str, Short] | None = None
    """Names of this event's encrypted body fields, each with its key id."""

    job: Annotated[str, Meta(max_length=193)] = ""
    epoch: Packed = -1
    """On lines that only a leader may write: the position of its ``LeaderAnnounced``."""

    leader_only: ClassVar[bool] = False


class JobEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """An event of one job."""

    job: JobId  # pyright: ignore[reportGeneralTypeIssues] keyword-only fields may lose their default in a subclass


class LeaderJobEvent(JobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """An event of one job that only the partition's leader may write."""

    leader_only: ClassVar[bool] = True


class LeaderEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """An event of the partition that only its leader may write."""

    leader_only: ClassVar[bool] = True


# A job begins and waits


class Enqueued(JobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """Somebody wants a job done. ``request_hash`` is of the request as sent, before defaults were filled in."""

    job_type: Name
    queue: Name = "default"
    pool: Name = "default"
    priority: Priority = "normal"
    payload: Raw = NULL
    tags: Annotated[tuple[Name, ...], Meta(max_length=MAX_TAGS)] = ()
    metadata: Raw = NULL
    run_at: TimeMs = 0
    delay_ms: DurationMs = 0
    """Counted from the record's own time; the later of it and ``run_at`` holds."""
    timeout_ms: DurationMs = 0
    """Longest run of one attempt; 0 is no limit."""
    expires_at: TimeMs = 0
    """A job still waiting then is never started; 0 is never."""
    max_attempts: Annotated[int, Meta(ge=1, le=1_000)] = 5
    backoff: Backoff = Backoff()
    request_hash: Short = ""
    unique: Unique | None = None
    """Its job's home is that of the key. Since rules 3."""
    concurrency_key: Short = ""
    """Of the jobs with one key no two run at once. The job's home is that of the key. Since rules 4."""
    batch: Name = ""
    """What it was put in with: others have the same, and are found by it. Since rules 5."""
    workflow: Name = ""
    """What it is a step of: others have the same, and are found by it. Since rules 5."""


class Due(LeaderJobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The time that a job waited for has come."""

    seen: Packed


class Expired(LeaderJobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The job was not started before ``expires_at``."""

    seen: Packed


# Running


class Leased(LeaderJobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The job is given to a worker. This event's id names the lease; its position is the fence."""

    worker: Short
    incarnation: Short = ""
    via: Short = ""
    """Incarnation of the gateway through which the worker is reached, if through one."""
    attempt: Count
    lease_ms: DurationMs
    seen: Packed


class Progressed(JobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The holder tells how far it is. ``seq`` grows within a lease."""

    lease: EventId
    seq: Annotated[int, Meta(ge=1, lt=1 << 53)]
    percent: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    message: Annotated[str, Meta(max_length=MAX_PROGRESS_MESSAGE_CHARS)] = ""
    checkpoint: BodyOrNone = None
    """Replaces the one before, and null takes it away; without one the last stays."""


class Succeeded(JobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The holder finished the job: in part, where ``errors`` say what of it failed."""

    lease: EventId
    result: Raw = NULL
    run_ms: DurationMs = 0
    errors: Annotated[tuple[JobError, ...], Meta(max_length=MAX_PARTIAL_ERRORS)] = ()
    """Since rules 2."""


class Failed(JobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The holder's attempt failed. ``retry_after_ms`` overrides the job's backoff."""

    lease: EventId
    error: JobError
    run_ms: DurationMs = 0
    retry_after_ms: DurationMs | None = None


class Returned(JobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The holder gives the job back unfinished; it costs no attempt. ``surplus`` when it never had room for it."""

    lease: EventId
    reason: Short = ""
    cancel: bool = False
    """The handler itself wants the job cancelled. Since rules 2."""


class Snoozed(JobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The holder puts the job off without a failure; it costs no attempt. Since rules 2."""

    lease: EventId
    delay_ms: DurationMs = 0
    reason: Short = ""


class LeaseExpired(LeaderJobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The leader ends a lease: its holder fell silent, was replaced, or ran past the job's ``timeout_ms``.

    ``refund`` gives the attempt back: the holder is gone and never started the job.
    """

    lease: EventId
    reason: Literal["silent", "superseded", "timeout"] = "silent"
    refund: bool = False


# Verbs


class Verb(JobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """A person's or program's wish about a job. ``of`` is the event id of the ``Enqueued`` it means.

    After ``not_after`` (log time, Unix ms) it has no effect, so a late copy cannot hit a later life of the job.
    """

    of: EventId
    not_after: TimeMs


class CancelRequested(Verb, frozen=True, kw_only=True, omit_defaults=True):
    """Stop the job: at once while it waits; while it runs, its holder is told."""

    reason: Short = ""


class RetryRequested(Verb, frozen=True, kw_only=True, omit_defaults=True):
    """Run a finished, unsuccessful job again with ``attempts`` more attempts (0: as many as it began with).

    One that waits for its next attempt makes it at once; 0 leaves it the attempts that it has. Since rules 2.
    """

    attempts: Count = 0


class Held(Verb, frozen=True, kw_only=True, omit_defaults=True):
    """Keep a waiting job from running. Since rules 2."""

    reason: Short = ""


class Unheld(Verb, frozen=True, kw_only=True, omit_defaults=True):
    """Let a held job run again: when its time comes, or in the place that it had. Since rules 2."""


class Edited(Verb, frozen=True, kw_only=True, omit_defaults=True):
    """Change a waiting job. ``changes``: :class:`penstock.schemas.changes.Changes`. Since rules 2."""

    changes: Raw = NULL


class Deleted(Verb, frozen=True, kw_only=True, omit_defaults=True):
    """Take a job that does not run out of lists and counts. Its history stays. Since rules 2."""

    reason: Short = ""


# Ends


class Cancelled(LeaderJobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The leader ends a job whose cancel its holder did not acknowledge in time."""

    lease: EventId


class DeadLettered(LeaderJobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The leader's record of why a dead job is dead."""

    seen: Packed
    reason: Short


class Forgotten(LeaderJobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """A finished job leaves the fold's state; its history stays."""

    seen: Packed


# Types that later rules bring to life: decoded, and refused until their rules are active


class Replaced(Verb, frozen=True, kw_only=True, omit_defaults=True):
    """Never written: a job that takes the place of another does so by its own ``Enqueued``, at one line."""


class Unblocked(JobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """What the job depended on is done."""


class Erased(JobEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The key of a job's sealed bodies was destroyed."""


# The log itself


class LeaderAnnounced(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A nominee claims a partition. Its position is the new epoch, if ``supersedes`` is the current one (-1: none)."""

    orchestrator: Short
    incarnation: Short
    supersedes: Packed


class Configured(LeaderEvent, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the control topic, copied in: in force from here on. ``previous`` is the control position before it."""

    control_position: Packed
    previous: Packed
    settings: Raw = NULL


class Forwarded(LeaderEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The misrouted line at ``line_position`` of this partition now stands in its own partition, ``target``."""

    line_position: Packed
    target: Count


class RulesActivated(LeaderEvent, frozen=True, kw_only=True, omit_defaults=True):
    """From here on the fold follows rules ``version``."""

    version: Count


class CopySealed(Event, frozen=True, kw_only=True, omit_defaults=True):
    """End of a copy: copied times and positions count below it only. ``copy`` names the copy, ``copied_from`` its
    source for people; ``generation`` is this log's, and ``rules`` those that it goes on with."""

    copy: Short = ""
    generation: Annotated[int, Meta(ge=0, le=255)] = 0
    rules: Count = 1
    copied_from: Short = ""


AnyEvent = (
    Enqueued | Due | Leased | Progressed | Succeeded | Failed | Returned | LeaseExpired | CancelRequested | Cancelled
    | RetryRequested | DeadLettered | Expired | Snoozed | Held | Unheld | Edited | Replaced | Unblocked | Deleted
    | Erased | Forgotten | LeaderAnnounced | Configured | Forwarded | RulesActivated | CopySealed
)  # fmt: skip
