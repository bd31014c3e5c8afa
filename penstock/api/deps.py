"""What the API stands on: the log it writes to, the read model it asks, and its settings."""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from penstock.log.bundler import LinePosition
from penstock.log.port import Log
from penstock.projections.port import ReadModel
from penstock.schemas.errors import ClaimsOff, ReadModelUnavailable
from penstock.schemas.limits import DEFAULT_PAYLOAD_BYTES, MAX_METADATA_BYTES
from penstock.schemas.topics import Topics

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from penstock.api.gateway import Gateway
    from penstock.api.metrics import ApiMetrics
    from penstock.api.registry import WorkerRegistry
    from penstock.log.archive import Archive
    from penstock.log.claims import ClaimStore


class JobsWriter(Protocol):
    """Appends lines to partitions of the jobs topic; :class:`penstock.log.bundler.Bundler` is one."""

    async def append(self, partition: int, line: bytes) -> LinePosition: ...

    async def append_many(self, partition: int, lines: Sequence[bytes]) -> Sequence[LinePosition]: ...


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


def package_version() -> str:
    """Version of the installed package."""
    return importlib.metadata.version("penstock")


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """Limits and waits. Sizes in bytes, times in milliseconds."""

    max_payload_bytes: int = DEFAULT_PAYLOAD_BYTES
    """Larger payloads go to the store of claims, where there is one."""
    bulk_max_items: int = 100_000
    bulk_max_bytes: int = 64 * 1024 * 1024
    read_wait_ms: int = 5_000
    """How long a read waits for the position it asks for, unless it says itself."""
    append_wait_ms: int = 10_000
    """How long a write waits for the log; a bulk call six times as long."""
    verdict_wait_ms: int = 10_000
    """How long a write waits for what the fold makes of it."""
    stalled_ms: int = 10_000
    """A partition that is behind and was not folded for so long makes the service unready."""
    cors_origins: tuple[str, ...] = ()
    """Origins that browsers may call from; none by default."""


class Parked:
    """Reads that wait for a position. They end when the server stops, which would wait for them otherwise."""

    def __init__(self) -> None:
        self._scopes: set[asyncio.Timeout] = set()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._scopes)

    def stop(self) -> None:
        """Let none wait from now on."""
        self._stopped = True
        for scope in self._scopes:
            scope.reschedule(0)

    @asynccontextmanager
    async def wait(self) -> AsyncGenerator[None]:
        """Around the waiting. Raises ReadModelUnavailable when the server stops meanwhile."""
        scope = asyncio.timeout_at(0 if self._stopped else None)
        try:
            async with scope:
                self._scopes.add(scope)
                try:
                    yield
                finally:
                    self._scopes.discard(scope)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise ReadModelUnavailable("The server stops.") from error


@dataclass(slots=True)
class ApiDeps:
    """Everything the routes use. ``now_ms`` is Unix time, ``generation`` the log's."""

    log: Log
    topics: Topics
    writer: JobsWriter
    read_model: ReadModel
    registry: WorkerRegistry
    gateway: Gateway
    metrics: ApiMetrics
    options: ApiOptions = field(default_factory=ApiOptions)
    now_ms: Callable[[], int] = wall_clock_ms
    generation: int = 0
    made_with: int = 1
    """The rules that the log was made with: each partition comes to them by itself."""
    version: str = field(default_factory=package_version)
    parked: Parked = field(default_factory=Parked)
    operations: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there is a new operation to work on."""
    known_rules: dict[int, int] = field(default_factory=dict[int, int])
    """The rules that partitions were last seen to follow; none ever goes back."""
    archive: Archive | None = None
    """Of the jobs log, for what the read model no longer has."""
    claims: ClaimStore | None = None
    """For payloads and results that are too large for the log."""

    @property
    def payload_max_bytes(self) -> int:
        """Largest payload, on the log or beside it."""
        return max(self.options.max_payload_bytes, 0 if self.claims is None else self.claims.max_bytes)

    @property
    def job_max_bytes(self) -> int:
        """Largest body of one job: its payload, metadata and room for the other fields."""
        return self.payload_max_bytes + MAX_METADATA_BYTES + 32 * 1024

    def claim_store(self) -> ClaimStore:
        """The store of large bodies. Raises ClaimsOff where there is none."""
        if self.claims is None:
            raise ClaimsOff
        return self.claims

    def stop(self) -> None:
        """Answer everything that only waits: to be called before the server is asked to stop."""
        self.gateway.stop()
        self.parked.stop()


def deps_of(request: HTTPConnection) -> ApiDeps:
    """The deps of the app that serves this request, or this WebSocket."""
    return request.scope["app"].state.penstock
