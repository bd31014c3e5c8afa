"""What can be asked of the read model, and the shapes of its answers.

Two things answer it: :class:`~penstock.projections.service.ProjectionService` in its own process (in ``dev`` a plain
call), and :class:`~penstock.projections.remote.RemoteReadModel`, which asks projection processes over their protocol
and merges what the partitions say. Times in views are RFC 3339 UTC with milliseconds; positions
``partition:offset:line``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

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


class JobsQuery(Struct, frozen=True, kw_only=True):
    """Newest first by ``(created_at, id)``. Empty filter fields do not filter. ``cursor``: from the page before."""

    tenant: str = "default"
    state: str = ""
    queue: str = ""
    type: str = ""
    limit: int = 50
    cursor: str = ""


class JobsPage(Struct, frozen=True):
    """``total`` is exact for the query's filters."""

    items: list[JobView]
    next_cursor: str | None
    total: int


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

    async def history(
        self, tenant: str, job_id: str, limit: int = 1_000, cursor: str = ""
    ) -> HistoryPage | None: ...

    async def verdicts(
        self, wanted: Sequence[tuple[Position, str, str, str]], timeout_ms: int
    ) -> list[VerdictView]:
        """For each (position of the write, tenant, job id, event id): wait until folded that far; what became of it."""
        ...

    async def list_jobs(self, query: JobsQuery) -> JobsPage: ...

    async def counts(self, tenant: str = "default") -> list[CountRow]: ...

    async def quarantined(
        self, limit: int = 100, cursor: str = ""
    ) -> tuple[list[QuarantinedItem], str | None]: ...

    async def status(self) -> list[PartitionStatus]: ...
