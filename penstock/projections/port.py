"""What can be asked of the read model, and the shapes of its answers.

Two things answer it: :class:`~penstock.projections.service.ProjectionService` in its own process (in ``dev`` a plain
call), and :class:`~penstock.projections.remote.RemoteReadModel`, which asks projection processes over their protocol
and merges what the partitions say. Times in views are RFC 3339 UTC with milliseconds; positions
``partition:offset:line``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from msgspec import Raw, Struct

from penstock.schemas.position import Position

NULL = Raw(b"null")


class ProgressView(Struct, frozen=True):
    percent: float | None
    message: str


class ErrorView(Struct, frozen=True):
    """One failed attempt."""

    attempt: int
    code: str
    message: str
    details: Raw
    at: str


class UniqueView(Struct, frozen=True):
    """A job's unique key. ``until`` is when its period ends, where it is held for one."""

    key: str
    scope: str
    until: str | None


class JobView(Struct, frozen=True, kw_only=True):
    """A job as the API shows it. Fields and order are the public contract."""

    id: str
    type: str
    queue: str
    pool: str
    priority: str
    state: str
    attempt: int
    max_attempts: int
    progress: ProgressView | None
    checkpoint: Raw
    payload: Raw
    result: Raw
    errors: list[ErrorView]
    tags: list[str]
    metadata: Raw
    tenant: str
    worker: str | None
    timeout_ms: int | None
    expires_at: str | None
    backoff: dict[str, Any]
    created_at: str
    updated_at: str
    scheduled_at: str | None
    started_at: str | None
    finished_at: str | None
    cancel_requested: bool
    enqueued_event: str
    """Id of the event that it began with: what a verb's ``of`` has to name."""
    unique: UniqueView | None = None
    concurrency_key: str | None = None
    batch: str | None = None
    workflow: str | None = None
    payload_url: str | None = None
    """Where the payload lies beside the log: then ``payload`` is only its claim, size and hash."""
    result_url: str | None = None
    """As ``payload_url``, of the result."""
    position: str


class HistoryItem(Struct, frozen=True, kw_only=True):
    """One line about a job.

    ``event`` is the line as written; ``outcome`` what became of it, ``reason`` why if refused.
    """

    type: str
    actor: str
    at: str
    position: str
    outcome: str
    reason: str
    event: Raw


class HistoryPage(Struct, frozen=True):
    """History in log order. ``refused`` counts refused lines, of which the last 20 are kept."""

    items: list[HistoryItem]
    refused: int
    next_cursor: str | None


class JobFilter(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A job matches when every field that is not empty does; where one has several values, any of them will do.

    Whoever does not know one of its fields, being older, refuses all of it: else it would find jobs that nobody meant.

    ``tags`` have to be there all, of ``tags_any`` one. Times are log times, Unix ms: ``_after`` includes the moment
    itself, ``_before`` does not, and a time that a job does not have matches neither. ``error_contains`` is looked for
    in codes and messages of its errors, ``payload_contains`` in the payload as it was written, and each word of
    ``text`` in either, in the type and in the tags, whatever its case.
    """

    state: tuple[str, ...] = ()
    queue: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()
    type: tuple[str, ...] = ()
    priority: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    tags_any: tuple[str, ...] = ()
    worker: tuple[str, ...] = ()
    batch: tuple[str, ...] = ()
    workflow: tuple[str, ...] = ()
    unique_key: str = ""
    concurrency_key: str = ""
    id_prefix: str = ""
    attempt_min: int | None = None
    attempt_max: int | None = None
    has_errors: bool | None = None
    error_contains: str = ""
    payload_contains: str = ""
    text: str = ""
    created_after: int | None = None
    created_before: int | None = None
    scheduled_after: int | None = None
    scheduled_before: int | None = None
    started_after: int | None = None
    started_before: int | None = None
    finished_after: int | None = None
    finished_before: int | None = None
    expires_after: int | None = None
    expires_before: int | None = None

    @property
    def counted(self) -> bool:
        """Whether counters alone answer it, so that how many match is known without looking at any."""
        alone = JobFilter(
            state=self.state, queue=self.queue, pool=self.pool, type=self.type, batch=self.batch,
            workflow=self.workflow,
        )  # fmt: skip
        return self == alone and len(self.batch) + len(self.workflow) <= 1

    def takes(self, state: str, queue: str, pool: str, job_type: str) -> bool:
        """Whether these are asked for, as far as any are."""
        return (
            (not self.state or state in self.state)
            and (not self.queue or queue in self.queue)
            and (not self.pool or pool in self.pool)
            and (not self.type or job_type in self.type)
        )

    @property
    def is_newer(self) -> bool:
        """Whether it asks for what versions from before rules 5 do not know, and would pass over."""
        return bool(self.batch or self.workflow)

    @property
    def looks_inside(self) -> bool:
        """Whether errors or bodies are asked for."""
        return bool(self.error_contains or self.payload_contains or self.text or self.has_errors is not None)


ALL = JobFilter()
"""All jobs."""


class JobsQuery(Struct, frozen=True, kw_only=True):
    """Newest first by ``(created_at, id)``. Empty filter fields do not filter. ``cursor``: from the page before."""

    tenant: str = "default"
    state: str = ""
    queue: str = ""
    type: str = ""
    limit: int = 50
    cursor: str = ""

    @property
    def filter(self) -> JobFilter:
        """The same as a search has it."""
        state, queue, job_type = ((name,) if name else () for name in (self.state, self.queue, self.type))
        return JobFilter(state=state, queue=queue, type=job_type)


class JobsPage(Struct, frozen=True):
    """``total`` is exact for the query's filters."""

    items: list[JobView]
    next_cursor: str | None
    total: int


Sort = Literal[
    "created_at", "-created_at", "scheduled_at", "-scheduled_at", "started_at", "-started_at", "finished_at",
    "-finished_at", "updated_at", "-updated_at",
]  # fmt: skip
"""Field to sort by, and then by id; ``-`` the highest first."""


class Moment(Struct, frozen=True):
    """Everything up to a log time (Unix ms) on each partition; on ``partition``, if one is named, up to the packed
    position ``packed``, which has that time."""

    time_ms: int
    partition: int = -1
    packed: int = 0


class SearchQuery(Struct, frozen=True, kw_only=True):
    """``cursor``: from the page before, of the same sort. ``at``: what was asked for is what was so then."""

    tenant: str = "default"
    filter: JobFilter = JobFilter()
    sort: Sort = "-created_at"
    limit: int = 50
    cursor: str = ""
    at: Moment | None = None


class SearchPage(Struct, frozen=True):
    """``total`` is known where groups alone answer the filter; else None."""

    items: list[JobView]
    next_cursor: str | None
    total: int | None


class CountRow(Struct, frozen=True):
    """Exact number of jobs of one tenant in one state, queue, pool and type."""

    state: str
    queue: str
    pool: str
    type: str
    jobs: int


class QuarantinedItem(Struct, frozen=True, kw_only=True):
    """A line that could not be decoded. ``head`` is its first 4 KiB, base64."""

    position: str
    at: str
    reason: str
    message: str
    sha256: str
    size_bytes: int
    head: str


class PartitionStatus(Struct, frozen=True, kw_only=True):
    """How far a partition is folded: ``next_offset`` comes next, ``end_offset`` was the log's end when last seen."""

    partition: int
    next_offset: int
    end_offset: int
    applied_at_ms: int
    digest: str
    digests: dict[int, str] = {}
    """Recorded state digests by the offset before which they were taken (the newest few)."""
    accepted: int = 0
    refused: int = 0
    unknown_jobs: int = 0
    quarantined: int = 0
    misrouted: int = 0
    epoch: int = -1
    leader: str = ""
    rules: int = 1
    """Version of the rules that it follows."""
    text_indexed: bool = False
    """Whether the text index has it whole; without that, searches inside jobs look at one job after another."""
    unindexed_jobs: int = 0
    """Jobs whose texts changed and wait for the text index; searches look at them as well."""


class OperatedItem(Struct, frozen=True):
    """What became of one job of an operation on many: ``applied``, ``illegal``, ... ``reason`` says why it was not."""

    job: str
    outcome: str
    reason: str
    at: str


class OperatedPage(Struct, frozen=True):
    """Items by job id. ``counts`` are jobs by outcome, of the whole operation as far as it is folded."""

    items: list[OperatedItem]
    next_cursor: str | None
    counts: dict[str, int]


class VerdictView(Struct, frozen=True):
    """What the fold made of one event of a job: ``applied``, ``duplicate``, ``stale``, ... and the job after it."""

    outcome: str
    reason: str
    job: JobView | None


class ReadModel(Protocol):
    """Reads over all partitions. Each call may raise ReadModelUnavailable; waiting ones ReadBehind (with the lag)."""

    async def wait(self, positions: Mapping[int, Position], timeout_ms: int) -> None:
        """Return once every partition named is folded past its position. Raises ReadBehind after ``timeout_ms``."""
        ...

    async def job(self, tenant: str, job_id: str) -> JobView | None: ...

    async def job_as_of(self, tenant: str, job_id: str, moment: int | None, packed: int) -> JobView | None:
        """The job as it was at a log time (Unix ms), or else at a packed position of its partition."""
        ...

    async def history(
        self, tenant: str, job_id: str, limit: int = 1_000, cursor: str = ""
    ) -> HistoryPage | None: ...

    async def verdicts(
        self,
        wanted: Sequence[tuple[Position, str, str, str]],
        timeout_ms: int,
        unique_keys: Sequence[str] = (),
    ) -> list[VerdictView]:
        """For each (position of the write, tenant, job id, event id): wait until folded that far; what became of it.

        Args:
            unique_keys: of each, where any job has one: then whoever holds the key can be told.
        """
        ...

    async def outcomes(self, lines: Sequence[tuple[Position, str, str]], wanted: JobFilter) -> list[str]:
        """For each line that is folded (position, tenant, job id): ``applied`` or ``refused``.

        Empty where its job does not match as it is now, or is not known.
        """
        ...

    async def list_jobs(self, query: JobsQuery) -> JobsPage: ...

    async def search(self, query: SearchQuery) -> SearchPage: ...

    async def operated(self, operation: str, limit: int = 100, cursor: str = "") -> OperatedPage:
        """What an operation has done. ``cursor``: the last job id of the page before."""
        ...

    async def counts(
        self, tenant: str = "default", at: Moment | None = None, *, among: JobFilter = ALL
    ) -> list[CountRow]:
        """Exact numbers, now or as they were: these are counted job by job. ``among``: of one batch, or workflow."""
        ...

    async def quarantined(
        self, limit: int = 100, cursor: str = ""
    ) -> tuple[list[QuarantinedItem], str | None]: ...

    async def status(self) -> list[PartitionStatus]: ...
