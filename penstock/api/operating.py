"""Working on an operation: asking a verb of each job that is meant, page by page, as a job among jobs.

::

    POST /operations ──▶ a job of type ``penstock.operation`` ──lease──▶ any API process that is alive
                                                                            │ page of jobs ─▶ a verb each ─▶ verdicts
                                                                            └── checkpoint ◀──────┘   ... until no more

So an operation is durable when it is answered, is taken up again where its checkpoint stands if the process that works
on it dies, shows its progress, and is cancelled like any job. A page that was asked for twice changes nothing twice:
each job is asked under an event id that is the operation's own.

Jobs are walked newest first and each is met once: those that come meanwhile are newer than where the walk stands. What
the operation itself changes does not move a job in that order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Raw, Struct

from penstock.api.deps import ApiDeps
from penstock.api.intake import TENANT
from penstock.api.lookup import log_ends
from penstock.api.orders import OPERATION, OPERATION_TYPES, Order
from penstock.client.requests import VERB_AGE_MS
from penstock.client.verbs import VERBS
from penstock.core.job import TRANSITIONS
from penstock.core.job_state import TERMINAL, State
from penstock.log.supervision import supervise
from penstock.projections.port import JobFilter, JobView, SearchQuery
from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line
from penstock.schemas.errors import PenstockError, ReadBehind, ReadModelUnavailable
from penstock.schemas.ids import operation_event, partition_of
from penstock.schemas.position import Position
from penstock.workers.app import App
from penstock.workers.context import Context
from penstock.workers.errors import NonRetryable
from penstock.workers.log_transport import LogTransport
from penstock.workers.runtime import Worker
from penstock.workers.task import Task

PAGE_JOBS = 500
LOOK_EVERY_S = 2.0
IDLE_LOOKS = 15
"""So often nothing was found to do, and the worker leaves."""

ATTEMPT_AFTER_MS = 1_000
"""How soon another attempt is made where one failed."""

LEASE_MS = 10_000
CONCURRENCY = 2
AGAIN_S = 1.0

_log = logging.getLogger("penstock.operations")


class Tally(Struct, kw_only=True):
    """How far it is: the checkpoint of its job, and in the end its result.

    ``matched`` jobs were asked, or would be; ``outcomes`` counts what became of those that were told while this very
    count went on.
    """

    cursor: str = ""
    matched: int = 0
    total: int | None = None
    outcomes: dict[str, int] = {}


class Operator:
    """Works on one operation.

    Args:
        operation: id of its job.
        resumed: whether somebody has worked on it before, and may have done a page that no checkpoint tells of.
    """

    def __init__(
        self, deps: ApiDeps, operation: str, order: Order, tally: Tally, *, resumed: bool = False
    ) -> None:
        self._deps = deps
        self._operation = operation
        self._order = order
        self._resumed = resumed
        self._ends: dict[int, Position] | None = None if tally.cursor else {}
        """Where the log ended as it began; None once the read model is that far."""
        self.tally = tally

    async def step(self) -> bool:
        """Do the next page; whether there may be more."""
        if self._ends is not None:
            await self._catch_up(self._ends)
            self._ends = None
        jobs, unknown, cursor = await (self._named() if self._order.ids is not None else self._found())
        if self._order.dry_run:
            outcomes = Counter(self._would_be(job) for job in jobs)
        else:
            left = await self._not_asked_yet(jobs) if self._resumed else jobs
            outcomes = await self._asked(left)
            outcomes["applied"] += len(jobs) - len(left)
        self._resumed = False
        if unknown:
            outcomes["unknown_job"] += unknown
        tally = self.tally
        tally.matched += len(jobs) + unknown
        tally.outcomes = dict(outcomes + Counter(tally.outcomes))
        tally.cursor = cursor or ""
        return cursor is not None

    async def _catch_up(self, ends: dict[int, Position]) -> None:
        """Before the first page: whatever was acknowledged before the operation was is among what it meets."""
        if not ends:
            ends.update(await log_ends(self._deps, range(self._deps.topics.partitions)))
        await self._deps.read_model.wait(ends, self._deps.options.verdict_wait_ms)

    async def _named(self) -> tuple[list[JobView], int, str | None]:
        assert self._order.ids is not None
        first = int(self.tally.cursor or 0)
        names = self._order.ids[first : first + PAGE_JOBS]
        self.tally.total = len(self._order.ids)
        found = [await self._deps.read_model.job(TENANT, name) for name in names]
        jobs = [job for job in found if job is not None and job.state != "deleted"]
        behind = first + len(names)
        cursor = str(behind) if behind < len(self._order.ids) else None
        return jobs, len(names) - len(jobs), cursor

    async def _found(self) -> tuple[list[JobView], int, str | None]:
        query = SearchQuery(
            tenant=TENANT, filter=self._order.filter or JobFilter(), limit=PAGE_JOBS, cursor=self.tally.cursor
        )
        page = await self._deps.read_model.search(query)
        if self.tally.total is None and not self.tally.cursor:
            self.tally.total = page.total
        return [job for job in page.items if job.type not in OPERATION_TYPES], 0, page.next_cursor

    # Asking

    def _verb_for(self, job: JobView) -> str:
        """The verb that the action is to this job."""
        if self._order.action != "requeue":
            return self._order.action
        return "reschedule" if job.state == "scheduled" else "retry"

    def _event(self, job: JobView, now_ms: int) -> ev.Verb:
        name = self._verb_for(job)
        changes: Mapping[str, Any] = self._order.changes
        if self._order.action == "requeue":
            changes = {"changes": Raw(b'{"delay_ms":0}')} if name == "reschedule" else {}
        elif "changes" in changes:
            changes = {**changes, "changes": Raw(msgspec.json.encode(changes["changes"]))}
        return VERBS[name].event(
            id=operation_event(self._operation),
            job=job.id,
            tenant=TENANT,
            actor="operation",
            cause=f"enq.{self._operation}",
            at=now_ms,
            of=job.enqueued_event,
            not_after=now_ms + VERB_AGE_MS,
            **changes,
        )

    def _would_be(self, job: JobView) -> str:
        row = TRANSITIONS[VERBS[self._verb_for(job)].event.__name__]
        return "applied" if _state(job) in row else "illegal"

    async def _not_asked_yet(self, jobs: Sequence[JobView]) -> Sequence[JobView]:
        """Those that this operation has not changed: the fold knows its verbs for minutes, the history for ever."""
        count, event_id = self._deps.topics.partitions, operation_event(self._operation)
        wanted = [(Position(partition_of(job.id, count), 0, 0), TENANT, job.id, event_id) for job in jobs]
        verdicts = await self._deps.read_model.verdicts(wanted, self._deps.options.verdict_wait_ms)
        return [job for job, verdict in zip(jobs, verdicts, strict=True) if verdict.outcome != "applied"]

    async def _asked(self, jobs: Sequence[JobView]) -> Counter[str]:
        """Put a verb for each on the log; what became of them."""
        now_ms, count = self._deps.now_ms(), self._deps.topics.partitions
        by_partition: dict[int, list[ev.Verb]] = {}
        for job in jobs:
            by_partition.setdefault(partition_of(job.id, count), []).append(self._event(job, now_ms))
        written = await asyncio.gather(*(self._append(*part) for part in by_partition.items()))
        wanted = [place for part in written for place in part]
        verdicts = await self._deps.read_model.verdicts(wanted, self._deps.options.verdict_wait_ms)
        return Counter(verdict.outcome for verdict in verdicts)

    async def _append(
        self, partition: int, events: Sequence[ev.Verb]
    ) -> list[tuple[Position, str, str, str]]:
        places = await self._deps.writer.append_many(partition, list(map(encode_line, events)))
        self._deps.metrics.appended(len(events))
        return [
            (Position(partition, place.offset, place.line_no), TENANT, event.job, event.id)
            for event, place in zip(events, places, strict=True)
        ]


def _state(job: JobView) -> State:
    state: Any = job.state
    return state


class OperationWorker:
    """Runs the operations that are there, in this process, for as long as there are any."""

    def __init__(self, deps: ApiDeps, name: str) -> None:
        self._deps = deps
        self._name = name
        self._watching: asyncio.Task[None] | None = None
        self._worker: Worker | None = None
        self._idle = 0
        self.failure: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.tasks = [Task(self.operate, name, {}) for name in OPERATION_TYPES]

    async def __aenter__(self) -> Self:
        self._watching = supervise(self._watch(), "operations", self._fail)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._leave()
        self.failure.cancel()

    def _fail(self, error: BaseException) -> None:
        if not self.failure.done():
            self.failure.set_exception(error)

    async def operate(
        self, ctx: Context, action: str, changes: dict[str, Any] | None = None, dry_run: bool = False,
        ids: list[str] | None = None, filter: dict[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The handler of such a job: its arguments are the fields of an :class:`Order`."""
        asked = {"action": action, "changes": changes or {}, "dry_run": dry_run, "ids": ids, "filter": filter}
        try:
            order = msgspec.convert(asked, Order)
        except msgspec.ValidationError as error:
            raise NonRetryable(f"this is no operation: {error}") from error
        tally = msgspec.convert(ctx.checkpoint, Tally) if ctx.checkpoint else Tally()
        operator = Operator(self._deps, ctx.job_id, order, tally, resumed=ctx.attempt > 1)
        while await self._stepped(operator):
            percent = 100 * tally.matched / tally.total if tally.total else None
            await ctx.progress(percent, f"{tally.matched} jobs", msgspec.to_builtins(tally))
        return {"matched": tally.matched, "outcomes": tally.outcomes}

    @staticmethod
    async def _stepped(operator: Operator) -> bool:
        """One page, however often that has to be tried: the log and the read model may be away for a while."""
        while True:
            try:
                return await operator.step()
            except PenstockError as error:
                if error.status != 503:
                    raise
                _log.warning("an operation waits: %s", error.message)
                await asyncio.sleep(AGAIN_S)

    # Being there only while there is something to do

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._deps.operations.wait(), LOOK_EVERY_S)
            self._deps.operations.clear()
            try:
                waiting = await self._open_operations()
            except (ReadBehind, ReadModelUnavailable):
                continue
            if waiting and self._worker is None:
                await self._arrive()
            elif waiting or (self._worker is not None and self._worker.busy):
                self._idle = 0
            else:
                self._idle += 1
                if self._idle >= IDLE_LOOKS:
                    await self._leave()

    async def _open_operations(self) -> int:
        rows = await self._deps.read_model.counts(TENANT)
        return sum(row.jobs for row in rows if row.type in OPERATION_TYPES and row.state not in TERMINAL)

    async def _arrive(self) -> None:
        self._idle = 0
        worker = Worker(
            App(*self.tasks),
            LogTransport(self._deps.log, self._deps.topics),
            concurrency=CONCURRENCY,
            pool=OPERATION,
            name=f"{self._name}-operations",
            lease_ms=LEASE_MS,
            grace_ms=1_000,
        )
        await worker.__aenter__()
        self._worker = worker
        worker.failure.add_done_callback(self._worker_ended)

    def _worker_ended(self, failure: asyncio.Future[None]) -> None:
        if not failure.cancelled() and (error := failure.exception()) is not None:
            self._fail(error)

    async def _leave(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.__aexit__(None, None, None)
