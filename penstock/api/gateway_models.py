"""The worker protocol's requests and answers. docs/worker-protocol.md walks through them."""

# No `from __future__ import annotations`: msgspec reads these hints at run time.

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct

from penstock.schemas.events import DurationMs, EventId, Short
from penstock.schemas.limits import MAX_OUTPUT_MESSAGE_CHARS, MAX_PARTIAL_ERRORS
from penstock.schemas.names import CheckedJobId, CheckedName

WorkerName = Annotated[str, Meta(min_length=1, max_length=128)]
LeaseMs = Annotated[int, Meta(ge=1_000, le=86_400_000)]
Types = Annotated[list[CheckedName], Meta(min_length=1, max_length=1_000)]


class NamedLease(Struct, frozen=True, forbid_unknown_fields=True):
    """A lease that the worker holds; with its job, any gateway can renew it."""

    lease: EventId
    job: str = ""


Leases = Annotated[list[EventId | NamedLease], Meta(max_length=10_000)]


class FetchRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask for jobs. ``incarnation`` (a ulid) tells a worker from its earlier lives; ``leases`` are those it holds."""

    worker: WorkerName
    types: Types
    pool: CheckedName = "default"
    max: Annotated[int, Meta(ge=1, le=1_000)] = 1
    limits: dict[CheckedName, Annotated[int, Meta(ge=1, le=1_000_000)]] = {}
    """By type, how many jobs of it the worker takes at most, those included that it holds."""
    wait_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 10_000
    lease_ms: LeaseMs = 30_000
    incarnation: Short = ""
    leases: Leases = []
    host: Short = ""
    version: Short = ""


class FetchedJob(Struct, frozen=True, kw_only=True):
    """A job to run. ``fence`` only grows from holder to holder; ``deadline`` is when this attempt must be done."""

    id: str
    type: str
    queue: str
    priority: str
    payload: Raw
    payload_url: str | None
    """Where the payload is to be fetched if it lies beside the log; ``payload`` then has its size and hash."""
    metadata: Raw
    attempt: int
    max_attempts: int
    lease: str
    lease_ms: int
    fence: str
    checkpoint: Raw
    timeout_ms: int | None
    deadline: str | None
    trace: str
    rules: int
    """Version of the rules that the job's partition follows; ``Snoozed`` and outcomes in part need 2."""


class GatewaySignal(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``CancelJob``: stop it and report. ``LeaseGone``: stop it, its outcome would be refused. ``Drain``: fetch no
    more; with ``stop``, leave."""

    type: str
    job: str = ""
    lease: str = ""
    reason: str = ""
    stop: bool = False


class Fetched(Struct, frozen=True):
    """The jobs granted; empty when none came in time. Of ``signals`` it has ``Drain`` only."""

    jobs: list[FetchedJob]
    signals: list[GatewaySignal] = []


class ProgressedReport(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="Progressed"
):
    """How far the job is. ``seq`` must grow within a lease; it is filled in when left out."""

    job: CheckedJobId
    lease: EventId
    percent: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    message: str = ""
    checkpoint: Any = None
    seq: Annotated[int, Meta(ge=1, lt=1 << 53)] | None = None


class PartErrorReport(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of the work failed."""

    code: Annotated[str, Meta(min_length=1, max_length=256)]
    message: str = ""
    details: Any = None


class SucceededReport(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="Succeeded"
):
    """The job is done; in part, where ``errors`` say what of it failed."""

    job: CheckedJobId
    lease: EventId
    result: Any = None
    run_ms: DurationMs | None = None
    errors: Annotated[list[PartErrorReport], Meta(max_length=MAX_PARTIAL_ERRORS)] = []


class ErrorReport(PartErrorReport, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why an attempt failed. With ``retryable`` false the job is dead at once."""

    retryable: bool = True


class FailedReport(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="Failed"
):
    """The attempt failed. ``retry_after_ms`` overrides the job's backoff."""

    job: CheckedJobId
    lease: EventId
    error: ErrorReport
    retry_after_ms: DurationMs | None = None
    run_ms: DurationMs | None = None


class ReturnedReport(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="Returned"
):
    """The job is given back unfinished; it costs no attempt. With ``cancel`` it is cancelled."""

    job: CheckedJobId
    lease: EventId
    reason: Short = ""
    cancel: bool = False


class SnoozedReport(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="Snoozed"
):
    """The job is put off by ``delay_ms``; it costs no attempt."""

    job: CheckedJobId
    lease: EventId
    delay_ms: DurationMs
    reason: Short = ""


AnyReport = ProgressedReport | SucceededReport | FailedReport | ReturnedReport | SnoozedReport


class ReportEnvelope(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A report before its events are looked at, each for itself."""

    worker: WorkerName
    events: Annotated[list[Raw], Meta(min_length=1, max_length=10_000)]
    incarnation: Short = ""


class ReportRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of jobs. One event that is wrong leaves the others alone."""

    worker: WorkerName
    events: Annotated[list[AnyReport], Meta(min_length=1, max_length=10_000)]
    incarnation: Short = ""


OutputLevel = Literal["debug", "info", "warning", "error", "critical"]


class OutputItem(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record that a handler logged. ``at`` is RFC 3339, by the worker's clock."""

    at: Annotated[str, Meta(max_length=40)]
    level: OutputLevel = "info"
    logger: Annotated[str, Meta(max_length=256)] = ""
    message: Annotated[str, Meta(max_length=MAX_OUTPUT_MESSAGE_CHARS)]
    fields: dict[str, Any] = {}


class OutputReport(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of what an attempt has logged. Parts are numbered from 0; the same number again replaces its part."""

    worker: WorkerName
    job: CheckedJobId
    lease: EventId
    fence: Annotated[str, Meta(pattern=r"^[0-9]{1,20}\Z")]
    attempt: Annotated[int, Meta(ge=1, le=1_000_000)]
    number: Annotated[int, Meta(ge=0, le=999_999)]
    items: Annotated[list[OutputItem], Meta(min_length=1, max_length=100_000)]


class Kept(Struct, frozen=True):
    """How many records of the part are stored."""

    records: int


class ReportItem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one event: ``applied``, ``duplicate``, ``stale`` (the lease is no longer held), ``illegal``,
    ``unknown_job``, ``invalid`` (not written, ``message`` says why), or ``unknown`` (report it again)."""

    job: str
    outcome: str
    lease: str = ""
    message: str = ""


class Reported(Struct, frozen=True):
    """Outcomes in the order of the events."""

    items: list[ReportItem]


class HeartbeatRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The leases a worker holds. Only these are renewed. ``leaving``: it fetches no more, and is gone once it holds
    nothing; a fetch takes that back.
    """

    worker: WorkerName
    leases: Leases = []
    incarnation: Short = ""
    leaving: bool = False


class HeartbeatAnswer(Struct, frozen=True):
    """What the worker has to know."""

    signals: list[GatewaySignal]
