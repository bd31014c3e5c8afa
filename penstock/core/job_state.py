"""What the fold knows of one job: the row that state digests cover."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, cast

from msgspec import Struct

from penstock.schemas import events as ev
from penstock.schemas.ids import job_key

State = Literal[
    "scheduled",
    "blocked",
    "held",
    "ready",
    "active",
    "retrying",
    "succeeded",
    "partial",
    "dead",
    "cancelled",
    "expired",
    "deleted",
]

WAITING: frozenset[State] = frozenset({"scheduled", "blocked", "held", "ready", "retrying"})
TERMINAL: frozenset[State] = frozenset({"succeeded", "partial", "dead", "cancelled", "expired", "deleted"})


class Verdict(Struct, array_like=True, frozen=True, gc=False):
    """What became of a verb, kept until a late copy of it can no longer arrive."""

    event_id: str
    outcome: str
    not_after_ms: int


class Job(Struct, array_like=True, kw_only=True, gc=False):
    """Everything the fold knows of a job. Bodies stand here by SHA-256 of their bytes as written.

    Encoded (msgpack, fields in this order) this is the row that state digests cover: only ever append fields,
    with defaults. Treat as immutable: :func:`apply` returns a changed copy.
    """

    id: str
    tenant: str
    job_type: str
    queue: str
    pool: str
    priority: ev.Priority
    enqueued_id: str
    request_hash: str
    payload_hash: bytes
    metadata_hash: bytes = b""
    tags: tuple[str, ...] = ()
    max_attempts: int
    backoff: ev.Backoff
    timeout_ms: int = 0
    expires_at_ms: int = 0

    state: State
    seen: int
    """Position (packed) of the last accepted change that counts for compare-and-set."""
    order: int
    """Position (packed) that ranks the job in its backlog; kept when the job is given back."""
    last_event: str
    time_ms: int
    """Log time of the last accepted line, never before the one before it."""

    attempt: int = 0
    attempts_allowed: int = 0
    """``max_attempts``, and more after a retry was asked for."""
    due_at_ms: int = 0
    """When a scheduled or retrying job may run."""
    lease: str = ""
    leased_at: int = -1
    """Position (packed) of the lease: the fence."""
    lease_ms: int = 0
    worker: str = ""
    incarnation: str = ""
    via: str = ""
    progress_seq: int = 0
    percent: float | None = None
    message: str = ""
    checkpoint_hash: bytes = b""
    cancel: str = ""
    """Event id of the pending ``CancelRequested``."""
    outcome_id: str = ""
    """Event id that ended the last lease."""
    result_hash: bytes = b""
    error_code: str = ""
    error_message: str = ""
    dead_lettered: bool = False
    created_at_ms: int = 0
    scheduled_at_ms: int = 0
    started_at_ms: int = 0
    finished_at_ms: int = 0
    verdicts: tuple[Verdict, ...] = ()
    last_run_ms: int = 0
    refunds: int = 0
    """Attempts given back in a row because their holder vanished before it started; bounds a job that kills its
    workers."""
    unique_key: ClassVar[str] = ""
    unique_scope: ClassVar[ev.UniqueScope] = "until_finished"
    unique_until_ms: ClassVar[int] = 0
    concurrency_key: ClassVar[str] = ""
    batch: ClassVar[str] = ""
    workflow: ClassVar[str] = ""

    @property
    def key(self) -> str:
        """The job's name among all tenants."""
        return job_key(self.tenant, self.id)


class KeyedJob(Job, array_like=True, kw_only=True, gc=False):
    """A job with a unique key. Its row has these fields behind the others, so rows of other jobs stay as they were."""

    unique_key: str  # pyright: ignore[reportIncompatibleVariableOverride]  # others have an answer and no field
    unique_scope: ev.UniqueScope  # pyright: ignore[reportIncompatibleVariableOverride]  # as above
    unique_until_ms: int = 0  # pyright: ignore[reportIncompatibleVariableOverride]  # as above
    """Log time until which it holds its key, where that is a period."""


class SerialJob(KeyedJob, array_like=True, kw_only=True, gc=False):
    """A job with a concurrency key, and perhaps with a unique one too."""

    unique_key: str = ""
    unique_scope: ev.UniqueScope = "until_finished"
    concurrency_key: str  # pyright: ignore[reportIncompatibleVariableOverride]  # as above


class GroupedJob(SerialJob, array_like=True, kw_only=True, gc=False):
    """A job of a batch or of a workflow, perhaps with keys too."""

    concurrency_key: str = ""
    batch: str = ""  # pyright: ignore[reportIncompatibleVariableOverride]  # as above
    workflow: str = ""  # pyright: ignore[reportIncompatibleVariableOverride]  # as above


class Place(Struct, frozen=True, gc=False):
    """Where and when a line stands: packed position and the log's time in Unix ms."""

    position: int
    time_ms: int


copy_of = cast("Callable[[Job], Job]", cast(Any, Job).__copy__)
"""A job's shallow copy; nothing in a job is mutable."""
