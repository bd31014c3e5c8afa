"""The read model asked from another process: finds who serves each partition, asks, and merges the answers.

Read-your-writes holds across a change of process: what was waited for at one is waited for at its successor before it
answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from msgspec import Raw

from penstock.log.hearing import go_on_behind
from penstock.log.port import Log, Tail
from penstock.log.supervision import supervise, tell
from penstock.projections import protocol
from penstock.projections.connection import Connection
from penstock.projections.directory import Directory
from penstock.projections.merge import (
    QuarantinePage,
    check_limit,
    merge_counts,
    merge_job_pages,
    merge_operated,
    merge_quarantine,
)
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
from penstock.projections.search import merge_search_pages
from penstock.schemas.errors import OffsetBeyondEnd, OffsetTrimmed, ReadModelUnavailable
from penstock.schemas.ids import partition_of
from penstock.schemas.messages import Serving, decode_signals
from penstock.schemas.position import Position
from penstock.schemas.topics import BROADCAST, Topics

_log = logging.getLogger(__name__)

POLL_MS = 1_000
_LOOK_AGAIN_S = 0.05

T = TypeVar("T")

_view = msgspec.json.Decoder(JobView | None)
_history = msgspec.json.Decoder(HistoryPage | None)
_found = msgspec.json.Decoder(SearchPage)
_outcomes = msgspec.json.Decoder(list[str])
_operated = msgspec.json.Decoder(OperatedPage)
_verdicts = msgspec.json.Decoder(list[VerdictView])
_jobs = msgspec.json.Decoder(JobsPage)
_counts = msgspec.json.Decoder(list[CountRow])
_quarantined = msgspec.json.Decoder(tuple[list[QuarantinedItem], str | None])
_status = msgspec.json.Decoder(list[PartitionStatus])


class RemoteReadModel:
    """A :class:`~penstock.projections.port.ReadModel` over all partitions. Use as an async context manager.

    Args:
        patience_ms: how long a call looks for a process that serves what it needs.
        timeout_ms: how long an answer may take, beyond what the call itself waits.
    """

    failure: asyncio.Future[None]
    """Gets the exception that ended it: the signals topic could not be followed."""

    def __init__(
        self, log: Log, topics: Topics, *, patience_ms: int = 1_500, timeout_ms: int = 10_000
    ) -> None:
        self._log = log
        self._topics = topics
        self._patience_s = patience_ms / 1000
        self._timeout_s = timeout_ms / 1000
        self._hello = protocol.Hello(protocol.VERSION, log.cluster_id, topics.jobs)
        self._directory = Directory()
        self._connections: dict[str, Connection] = {}
        self._connecting: dict[str, asyncio.Lock] = {}
        self._reached: dict[int, Position] = {}
        self._asked: dict[int, str] = {}
        self._listener: asyncio.Task[None] | None = None
        self._tails = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.failure = asyncio.get_running_loop().create_future()
        bounds = await self._log.bounds(self._topics.signals, BROADCAST)
        signals = self._log.tail({(self._topics.signals, BROADCAST): bounds.end})
        tail = await self._tails.enter_async_context(signals)
        self._listener = supervise(
            self._listen(tail), "read-model-listener", lambda error: tell(self.failure, error)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._listener is not None
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        await self._tails.aclose()
        for connection in list(self._connections.values()):
            await connection.close()
        self._connections.clear()
        if self.failure.done():
            self.failure.exception()
        else:
            self.failure.cancel()

    async def _listen(self, tail: Tail) -> None:
        while True:
            try:
                records = await tail.poll(POLL_MS)
            except (OffsetTrimmed, OffsetBeyondEnd) as error:
                # Who serves says so each second: what was missed, while this process slept, does no harm.
                await go_on_behind(self._log, tail, error)
                continue
            for record in records:
                for signal in decode_signals(record.value):
                    if isinstance(signal, Serving):
                        self._directory.heard(signal, time.monotonic())

    # Asking

    async def _spread(
        self, partitions: Collection[int], ask: Callable[[str, list[int]], Awaitable[T]]
    ) -> list[T]:
        """``ask`` each process that serves some of these partitions, all at once; others, once, for those that fail."""
        left = list[int](partitions)
        found: list[T] = []
        for last in (False, True):
            covers = await self._cover(left)
            answers = await asyncio.gather(
                *(ask(address, cover) for address, cover in covers.items()), return_exceptions=True
            )
            left = list[int]()
            for (address, cover), answer in zip(covers.items(), answers, strict=True):
                if not isinstance(answer, BaseException):
                    found.append(answer)
                elif last or not isinstance(answer, (ConnectionError, ReadModelUnavailable)):
                    raise _as_unavailable(answer, cover)
                else:
                    _log.warning("the projection at %s is lost: %s", address, answer)
                    self._directory.gone(address)
                    left.extend(cover)
            if not left:
                break
        return found

    async def _ask_home(self, job_id: str, call: protocol.Call) -> Raw:
        """Ask whoever serves the job's partition."""

        async def ask(address: str, partitions: list[int]) -> Raw:
            return await self._ask(address, partitions, call)

        return (await self._spread([partition_of(job_id, self._topics.partitions)], ask))[0]

    async def _cover(self, partitions: Collection[int]) -> dict[str, list[int]]:
        deadline = time.monotonic() + self._patience_s
        while True:
            now_s = time.monotonic()
            found, missing = self._directory.cover(partitions, now_s)
            if not missing:
                return found
            if now_s >= deadline or self.failure.done():
                raise ReadModelUnavailable(partitions=missing)
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _ask(
        self, address: str, partitions: Collection[int], call: protocol.Call, wait_ms: int = 0
    ) -> Raw:
        connection = await self._connection(address)
        reached = {
            number: self._reached[number]
            for number in partitions
            if number in self._reached and self._asked.get(number) != address
        }
        if reached:
            await connection.call(protocol.Wait(reached, int(self._timeout_s * 1000)), 2 * self._timeout_s)
        for number in partitions:
            self._asked[number] = address
        return await connection.call(call, self._timeout_s + wait_ms / 1000)

    async def _connection(self, address: str) -> Connection:
        lock = self._connecting.setdefault(address, asyncio.Lock())
        async with lock:
            connection = self._connections.get(address)
            if connection is None or connection.closed:
                self._forget_closed()
                connection = self._connections[address] = await Connection.open(address, self._hello)
        return connection

    def _forget_closed(self) -> None:
        """Processes come back at other addresses; those of the past must not pile up."""
        for address in [name for name, connection in self._connections.items() if connection.closed]:
            del self._connections[address]
            if not self._connecting[address].locked():
                del self._connecting[address]

    @property
    def _all(self) -> range:
        return range(self._topics.partitions)

    # The read model; see the port

    async def wait(self, positions: Mapping[int, Position], timeout_ms: int) -> None:
        async def ask(address: str, partitions: list[int]) -> Any:
            wanted = {number: positions[number] for number in partitions}
            return await self._ask(address, partitions, protocol.Wait(wanted, timeout_ms), timeout_ms)

        self._check_partitions(positions)
        await self._spread(list(positions), ask)
        for number, position in positions.items():
            self._reached[number] = max(position, self._reached.get(number, position))

    async def job(self, tenant: str, job_id: str) -> JobView | None:
        return _view.decode(await self._ask_home(job_id, protocol.GetJob(tenant, job_id)))

    async def job_as_of(self, tenant: str, job_id: str, moment: int | None, packed: int) -> JobView | None:
        call = protocol.GetJobAsOf(tenant, job_id, moment, packed)
        return _view.decode(await self._ask_home(job_id, call))

    async def history(
        self, tenant: str, job_id: str, limit: int = 1_000, cursor: str = ""
    ) -> HistoryPage | None:
        call = protocol.GetHistory(tenant, job_id, limit, cursor)
        return _history.decode(await self._ask_home(job_id, call))

    async def verdicts(
        self,
        wanted: Sequence[tuple[Position, str, str, str]],
        timeout_ms: int,
        unique_keys: Sequence[str] = (),
    ) -> list[VerdictView]:
        by_partition: dict[int, list[int]] = {}
        for number, (position, *_) in enumerate(wanted):
            by_partition.setdefault(position.partition, []).append(number)
        found: dict[int, VerdictView] = {}

        async def ask(address: str, partitions: list[int]) -> None:
            numbers = [number for partition in partitions for number in by_partition[partition]]
            keys = [unique_keys[number] for number in numbers] if unique_keys else []
            call = protocol.GetVerdicts([wanted[number] for number in numbers], timeout_ms, keys)
            answers = _verdicts.decode(await self._ask(address, partitions, call, timeout_ms))
            found.update(zip(numbers, answers, strict=True))

        self._check_partitions(by_partition)
        await self._spread(list(by_partition), ask)
        for position, *_ in wanted:
            number = position.partition
            self._reached[number] = max(position, self._reached.get(number, position))
        return [found[number] for number in range(len(wanted))]

    async def outcomes(self, lines: Sequence[tuple[Position, str, str]], wanted: JobFilter) -> list[str]:
        by_partition: dict[int, list[int]] = {}
        for number, (position, _, _) in enumerate(lines):
            by_partition.setdefault(position.partition, []).append(number)
        found: dict[int, str] = {}

        async def ask(address: str, partitions: list[int]) -> None:
            numbers = [number for partition in partitions for number in by_partition[partition]]
            kind = protocol.GetOutcomesNewer if wanted.is_newer else protocol.GetOutcomes
            call = kind([lines[number] for number in numbers], wanted)
            answers = _outcomes.decode(await self._ask(address, partitions, call))
            found.update(zip(numbers, answers, strict=True))

        self._check_partitions(by_partition)
        await self._spread(list(by_partition), ask)
        return [found[number] for number in range(len(lines))]

    async def list_jobs(self, query: JobsQuery) -> JobsPage:
        async def ask(address: str, partitions: list[int]) -> JobsPage:
            return _jobs.decode(await self._ask(address, partitions, protocol.ListJobs(query, partitions)))

        check_limit(query.limit)
        return merge_job_pages(await self._spread(self._all, ask), query.limit)

    async def search(self, query: SearchQuery) -> SearchPage:
        async def ask(address: str, partitions: list[int]) -> SearchPage:
            call = protocol.SearchJobs if query.at is None else protocol.SearchJobsAt
            if query.filter.is_newer:
                call = protocol.SearchNewer
            return _found.decode(await self._ask(address, partitions, call(query, partitions)))

        check_limit(query.limit)
        return merge_search_pages(await self._spread(self._all, ask), query)

    async def operated(self, operation: str, limit: int = 100, cursor: str = "") -> OperatedPage:
        async def ask(address: str, partitions: list[int]) -> OperatedPage:
            call = protocol.ListOperated(operation, limit, cursor, partitions)
            return _operated.decode(await self._ask(address, partitions, call))

        check_limit(limit)
        return merge_operated(await self._spread(self._all, ask), limit)

    async def counts(
        self, tenant: str = "default", at: Moment | None = None, *, among: JobFilter = ALL
    ) -> list[CountRow]:
        def call_for(partitions: list[int]) -> protocol.Call:
            if among != ALL:
                return protocol.GetCountsAmong(tenant, at, among, partitions)
            if at is None:
                return protocol.GetCounts(tenant, partitions)
            return protocol.GetCountsAt(tenant, at, partitions)

        async def ask(address: str, partitions: list[int]) -> list[CountRow]:
            call = call_for(partitions)
            return _counts.decode(await self._ask(address, partitions, call))

        answers = await self._spread(self._all, ask)
        return merge_counts(row for rows in answers for row in rows)

    async def quarantined(self, limit: int = 100, cursor: str = "") -> QuarantinePage:
        async def ask(address: str, partitions: list[int]) -> QuarantinePage:
            call = protocol.ListQuarantined(limit, cursor, partitions)
            return _quarantined.decode(await self._ask(address, partitions, call))

        check_limit(limit)
        return merge_quarantine(await self._spread(self._all, ask), limit, cursor)

    async def status(self) -> list[PartitionStatus]:
        async def ask(address: str, partitions: list[int]) -> list[PartitionStatus]:
            return _status.decode(await self._ask(address, partitions, protocol.GetStatus(partitions)))

        answers = await self._spread(self._all, ask)
        return sorted((status for found in answers for status in found), key=lambda status: status.partition)

    def _check_partitions(self, partitions: Collection[int]) -> None:
        unknown = [number for number in partitions if number >= self._topics.partitions]
        if unknown:
            raise ReadModelUnavailable(f"There is no partition {unknown[0]}.", partitions=unknown)


def _as_unavailable(error: BaseException, partitions: list[int]) -> BaseException:
    if isinstance(error, ConnectionError):
        return ReadModelUnavailable(str(error), partitions=partitions)
    return error
