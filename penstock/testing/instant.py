"""A log of one partition that is folded the moment something is written to it, and its leader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from penstock.core.job import WAITING, Job
from penstock.core.partition import Folded
from penstock.core.rules import RULES, newest
from penstock.log.bundler import LinePosition
from penstock.log.port import Bounds, Record
from penstock.log.store_memory import MemoryStore
from penstock.orchestrator.courier import Courier
from penstock.orchestrator.fleet import Session
from penstock.orchestrator.lines import LeaderLines
from penstock.orchestrator.outputs import Now, Outputs
from penstock.orchestrator.rows import RANK
from penstock.projections.port import (
    ALL,
    CountRow,
    HistoryPage,
    JobFilter,
    JobsPage,
    JobsQuery,
    JobView,
    Moment,
    OperatedPage,
    PartitionStatus,
    QuarantinedItem,
    SearchPage,
    SearchQuery,
    VerdictView,
)
from penstock.projections.projector import Projector
from penstock.projections.queries import PartitionQueries
from penstock.projections.reads import LocalReads
from penstock.projections.rows import FAMILIES
from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line
from penstock.schemas.errors import PenstockError, ReadBehind
from penstock.schemas.messages import Delivery
from penstock.schemas.position import Position
from penstock.state.partition_store import PartitionStore, StoreIdentity, families_of

TOPIC = "sandbox.jobs"
WORKER = "sandbox"
INCARNATION = "1"
LEASE_MS = 30_000


class InstantLog:
    """Everything that is known, changed by :meth:`write` and nothing else. Usable from any thread.

    Args:
        now_ms: the time that stands still, Unix.
    """

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.lock = threading.RLock()
        """Held while something is read or written."""
        self.on_write: Callable[[Folded], None] | None = None
        """Is told of each line that was folded."""
        self._store = PartitionStore(
            MemoryStore(families_of(FAMILIES)), StoreIdentity("sandbox", TOPIC, 0, 1)
        )
        self._projector = Projector(self._store)
        self.queries = PartitionQueries(self._store, self._projector.groups)
        self.reads = LocalReads({0: self.queries}, 1)
        self._lines = LeaderLines(0, "sandbox", INCARNATION)
        self._courier = Courier(self._store)
        self._session = Session((WORKER, ""))
        self._session.incarnation, self._session.seq = INCARNATION, 1
        self.write(self._lines.announced(-1, self._now))
        self._lines.epoch = self._store.state.epoch
        for version in range(2, newest(RULES) + 1):
            self.write(self._lines.rules_activated(version, self._now))

    @property
    def _now(self) -> Now:
        return Now(self.now_ms, self.now_ms, self.now_ms)

    @property
    def end_offset(self) -> int:
        return self._store.next_offset

    # Writing

    def write(self, line: bytes) -> Folded:
        """Put a line on the log and fold it, and whatever a leader owes for it."""
        with self.lock:
            record = Record(TOPIC, 0, self._store.next_offset, self.now_ms, True, None, line, ())
            [folded] = self._store.fold(record)
            self._store.commit()
            if self.on_write is not None:
                self.on_write(folded)
            after = folded.after
            died = folded.outcome == "applied" and after is not None and after.state == "dead"
            if died and after is not None and not after.dead_lettered:
                self.write(self._lines.dead_lettered(after, self._now))
            return folded

    # Leading

    def jobs(self) -> Iterator[Job]:
        """Every job, as the fold has it."""
        with self.lock:
            yield from [job for _, job in self._store.committed_jobs()]

    def ready(self, types: Collection[str]) -> list[Job]:
        """Jobs of these types that a worker would be given now, the first one first."""
        found = [job for job in self.jobs() if job.state == "ready" and job.job_type in types]
        return sorted(found, key=lambda job: (RANK[job.priority], job.order))

    def lease(self, job: Job) -> Delivery | None:
        """Give a job to the sandbox's worker; None where it is not to be had."""
        with self.lock:
            _, line = self._lines.leases(self._session, self._now).leased(job)
            granted = self.write(line).after
            if granted is None or granted.state != "active":
                return None
            out = Outputs()
            self._courier.deliver(granted, self._session, self.now_ms, out)
            [[delivery]] = out.deliveries.values()
            return delivery

    def lose(self, delivery: Delivery) -> None:
        """The worker that had it is gone: its lease runs out."""
        expired = ev.LeaseExpired(
            id=f"{delivery.lease}.lost",
            job=delivery.job,
            epoch=self._store.state.epoch,
            lease=delivery.lease,
            actor="sandbox",
        )
        self.write(encode_line(expired))

    def next_time_ms(self) -> int | None:
        """When something is due next; None where nothing waits for a time."""
        times = [time_ms for job in self.jobs() for time_ms in _times(job)]
        return min(times, default=None)

    def pass_to(self, now_ms: int) -> None:
        """Let the time come, and everything that was waiting for it, in order."""
        with self.lock:
            while (due_ms := self.next_time_ms()) is not None and due_ms <= now_ms:
                self.now_ms = max(self.now_ms, due_ms)
                for job in list(self.jobs()):
                    if job.expires_at_ms and job.state in WAITING and job.expires_at_ms <= self.now_ms:
                        self.write(self._lines.expired(job, self._now))
                    elif job.state in ("scheduled", "retrying") and job.due_at_ms <= self.now_ms:
                        self.write(self._lines.due(job, self._now))
            self.now_ms = max(self.now_ms, now_ms)


def _times(job: Job) -> Iterator[int]:
    if job.state in ("scheduled", "retrying"):
        yield job.due_at_ms
    if job.expires_at_ms and job.state in WAITING:
        yield job.expires_at_ms


class InstantWriter:
    """See :class:`penstock.api.deps.JobsWriter`."""

    def __init__(self, log: InstantLog) -> None:
        self._log = log

    async def append(self, partition: int, line: bytes) -> LinePosition:
        folded = self._log.write(line)
        return LinePosition(folded.position >> 15, 0, self._log.now_ms)

    async def append_many(self, partition: int, lines: Sequence[bytes]) -> Sequence[LinePosition]:
        return [await self.append(partition, line) for line in lines]


class InstantTopics:
    """What is asked of a log itself: how far it goes."""

    def __init__(self, log: InstantLog) -> None:
        self._log = log

    async def bounds(self, topic: str, partition: int) -> Bounds:
        return Bounds(0, self._log.end_offset)

    def __getattr__(self, name: str) -> Any:
        raise PenstockError(f"a sandbox has no log of its own to {name}: that takes a server")


class InstantReadModel:
    """See :class:`penstock.projections.port.ReadModel`: it is never behind."""

    def __init__(self, log: InstantLog) -> None:
        self._log = log

    async def wait(self, positions: Mapping[int, Position], timeout_ms: int) -> None:
        if any(position.offset >= self._log.end_offset for position in positions.values()):
            raise ReadBehind("The sandbox has no such position.")

    async def job(self, tenant: str, job_id: str) -> JobView | None:
        with self._log.lock:
            return self._log.reads.job(tenant, job_id)

    async def job_as_of(self, tenant: str, job_id: str, moment: int | None, packed: int) -> JobView | None:
        with self._log.lock:
            return self._log.reads.job_as_of(tenant, job_id, moment, packed)

    async def history(
        self, tenant: str, job_id: str, limit: int = 1_000, cursor: str = ""
    ) -> HistoryPage | None:
        with self._log.lock:
            return self._log.reads.history(tenant, job_id, limit, cursor)

    async def verdicts(
        self,
        wanted: Sequence[tuple[Position, str, str, str]],
        timeout_ms: int,
        unique_keys: Sequence[str] = (),
    ) -> list[VerdictView]:
        with self._log.lock:
            return self._log.reads.verdicts(wanted, unique_keys)

    async def outcomes(self, lines: Sequence[tuple[Position, str, str]], wanted: JobFilter) -> list[str]:
        with self._log.lock:
            return self._log.reads.outcomes(lines, wanted)

    async def list_jobs(self, query: JobsQuery) -> JobsPage:
        with self._log.lock:
            return self._log.reads.list_jobs(query)

    async def search(self, query: SearchQuery) -> SearchPage:
        return await self._log.reads.search(query)

    async def operated(self, operation: str, limit: int = 100, cursor: str = "") -> OperatedPage:
        with self._log.lock:
            return self._log.reads.operated(operation, limit, cursor)

    async def counts(
        self, tenant: str = "default", at: Moment | None = None, *, among: JobFilter = ALL
    ) -> list[CountRow]:
        if at is not None:
            return await self._log.reads.counts_at(tenant, at, among=among)
        with self._log.lock:
            return self._log.reads.counts(tenant, among=among)

    async def quarantined(
        self, limit: int = 100, cursor: str = ""
    ) -> tuple[list[QuarantinedItem], str | None]:
        with self._log.lock:
            return self._log.reads.quarantined(limit, cursor)

    async def status(self) -> list[PartitionStatus]:
        with self._log.lock:
            return [self._log.queries.status(self._log.end_offset, self._log.now_ms)]
