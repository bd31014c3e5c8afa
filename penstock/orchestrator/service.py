"""The orchestrator's shell: reads the log, drives the machine, carries out what it decides.

One task reads the jobs topic, one the hints (workers, broadcast signals, quarantine), and one steps the machine
whenever something arrived or a timer is due. What ends one of them ends the service, loudly: ``failure`` gets
the exception.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import msgspec

from penstock.core.rules import RULES, RulesTable
from penstock.log.bundler import Bundler
from penstock.log.hearing import go_on_behind
from penstock.log.namespace import Namespace, wanted_rules
from penstock.log.port import Log, Record, Tail
from penstock.log.supervision import supervise, tell
from penstock.orchestrator.clock import LogClock
from penstock.orchestrator.machine import Inputs, OrchestratorMachine
from penstock.orchestrator.outbox import Outbox, QuarantineLine
from penstock.orchestrator.outputs import Forward
from penstock.orchestrator.retention import KEEP_FOR_EVER, Retention
from penstock.orchestrator.rows import FAMILIES
from penstock.schemas.errors import InvalidCursor, OffsetBeyondEnd, OffsetTrimmed, PenstockError
from penstock.schemas.ids import ulid
from penstock.schemas.messages import Echo, Report, Signal, decode_reports, decode_signals
from penstock.schemas.position import parse
from penstock.schemas.topics import BROADCAST
from penstock.state.keeping import StateKeeper
from penstock.state.pacing import CommitPace
from penstock.state.partition_store import PartitionStore, StoreFactory, StoreIdentity, rocks_store
from penstock.state.snapshots import Snapshots
from penstock.state.snapshots_restoring import StateKind, open_partitions

_log = logging.getLogger("penstock.orchestrator")

LAYOUT = 3
"""Version of the rows that the orchestrator derives."""

READ_BACK_MS = 5_000
"""How far back the workers topic is read at the start: more than two heartbeats."""

STEP_RECORDS = 64
"""Records folded in one step at most, so that the loop is never held for long."""

INBOX_RECORDS = 512
TURNS = 4
"""Of the event loop, until an append is on its way."""


def shared_layout(readers: int) -> int:
    """Version of the rows in stores that have an orchestrator's and its readers'."""
    return LAYOUT * 1_000 + readers


_decode_quarantined = msgspec.json.Decoder(QuarantineLine).decode


class Readers(Protocol):
    """Those who read the orchestrator's own stores: one fold, one commit, for deciding and for answering."""

    @property
    def families(self) -> Sequence[str]:
        """Families of their rows."""
        ...

    @property
    def layout(self) -> int:
        """Version of their rows."""
        ...

    def attach(self, store: PartitionStore) -> None:
        """A store is open, and about to be folded."""
        ...

    def detach(self) -> None:
        """The stores are about to be closed."""
        ...


class Orchestrator:
    """Follows partitions and leads those it is nominated for. Use as an async context manager.

    Args:
        log: an open log.
        namespace: its opened topics.
        data_dir: folder of its state, one sub-folder a partition; may be deleted at any time while it is stopped.
        name: shown to people; the host and process by default.
        settle_ms: how long to listen for other orchestrators before leading; 0 where there can be none.
        retention: when jobs that have ended are forgotten; never by default.
        readers: whoever answers from the same stores.
        snapshots: taken of the partitions that it leads, and restored from where a folder is missing or too old.
        rules: those that this program has.
        partitions: those that it follows; all of them where None. Of the others it knows nothing.
    """

    def __init__(
        self,
        log: Log,
        namespace: Namespace,
        data_dir: str | Path,
        *,
        name: str = "",
        settle_ms: int = 1_200,
        retention: Retention = KEEP_FOR_EVER,
        readers: Readers | None = None,
        snapshots: Snapshots | None = None,
        store_factory: StoreFactory = rocks_store,
        rules: RulesTable = RULES,
        partitions: Sequence[int] | None = None,
    ) -> None:
        self.name = name or f"{socket.gethostname()}-{os.getpid()}"
        self.incarnation = ulid(time.time_ns() // 1_000_000, int.from_bytes(os.urandom(10), "big"))
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._log = log
        self._namespace = namespace
        self._topics = namespace.topics
        self._data_dir = Path(data_dir)
        self._settle_ms = settle_ms
        self._partitions = range(self._topics.partitions) if partitions is None else partitions
        self._retention = retention
        self._readers = readers
        self._snapshots = snapshots
        self._kind = (
            StateKind("orchestrator", FAMILIES, LAYOUT, store_factory, rules)
            if readers is None
            else StateKind(
                "node", (*FAMILIES, *readers.families), shared_layout(readers.layout), store_factory, rules
            )
        )
        self._keeper: StateKeeper | None = None
        self._pace = CommitPace(len(self._partitions))
        self._clock = LogClock()
        self._bundler = Bundler(log, self._topics.jobs)
        self._outbox = Outbox(log, self._topics, self._bundler, self._forward_landed)
        self._records: deque[Record] = deque()
        self._reports: list[tuple[int, Report]] = []
        self._signals: list[Signal] = []
        self._forwarded: list[Forward] = []
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._ends: dict[int, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stores: list[PartitionStore] = []
        self.stepped_ms = 0
        """Monotonic time of the last step, for health."""

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        self._keeper = StateKeeper(
            self._kind.name,
            self._stores,
            caught_up=lambda store: store.partition not in self._ends,
            mine=lambda store: self.machine.partitions[store.partition].role == "leading",
            snapshots=self._snapshots,
        )
        for name, work in (
            ("jobs", self._read_jobs),
            ("hints", self._read_hints),
            ("steps", self._run),
            ("keeper", self._keeper.run),
        ):
            self._tasks.append(supervise(work(), f"orchestrator-{name}", self._ended))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.failure.done() and not self.failure.cancelled():
            self.failure.exception()
        else:
            self._outbox.carry_out(self.machine.leave(self._clock.now()))
        await self._outbox.drain()
        await self._close()

    async def _open(self) -> None:
        topics = self._topics
        places: list[tuple[Path, StoreIdentity]] = []
        for partition in self._partitions:
            identity = StoreIdentity(
                self._log.cluster_id, topics.jobs, partition, topics.partitions, self._namespace.generation
            )
            places.append((self._data_dir / str(partition), identity))
        self._stores = await open_partitions(self._log, places, self._kind, self._snapshots)
        for store in self._stores:
            if self._readers is not None:
                self._readers.attach(store)
            self._ends[store.partition] = (await self._log.bounds(topics.jobs, store.partition)).end
        await self._bundler.__aenter__()
        self.machine = OrchestratorMachine(
            self.name,
            self.incarnation,
            self._stores,
            self._clock.now(),
            generation=self._namespace.generation,
            worker_partitions=topics.worker_partitions,
            settle_ms=self._settle_ms,
            retention=self._retention,
            rules=self._kind.rules,
            made_with=self._namespace.rules,
        )
        self._note_caught_up()

    async def _close(self) -> None:
        await self._bundler.__aexit__(None, None, None)
        if self._readers is not None:
            self._readers.detach()
        for store in self._stores:
            store.close()
        self._stores.clear()

    def snapshot_numbers(self) -> Mapping[str, float]:
        """About the snapshots of this process, for metrics."""
        return {} if self._keeper is None else self._keeper.numbers()

    def _ended(self, error: BaseException) -> None:
        """Whatever ends a loop ends the service, and is handed on."""
        _log.error("the orchestrator stops: %s", error, exc_info=None if _expected(error) else error)
        tell(self.failure, error)

    # Reading

    async def _read_jobs(self) -> None:
        topic = self._topics.jobs
        starts = {(topic, store.partition): store.next_offset for store in self._stores}
        async with self._log.tail(starts) as tail:
            while True:
                await self._room.wait()
                records = await tail.poll(1_000, INBOX_RECORDS)
                if records:
                    self._records.extend(records)
                    if len(self._records) >= INBOX_RECORDS:
                        self._room.clear()
                    self._arrived.set()
                elif self._ends and not self._records:
                    self._ends.clear()
                    for store in self._stores:
                        self.machine.caught_up(store.partition)
                    self._arrived.set()

    async def _read_hints(self) -> None:
        topics = self._topics
        since_ms = self._clock.now().log_ms - READ_BACK_MS
        starts = {(topics.signals, BROADCAST): (await self._log.bounds(topics.signals, BROADCAST)).end}
        for partition in range(topics.worker_partitions):
            starts[topics.workers, partition] = await self._log.offset_at(topics.workers, partition, since_ms)
        for topic in (topics.quarantine, topics.control):
            starts[topic, 0] = (await self._log.bounds(topic, 0)).start
        async with self._log.tail(starts) as tail:
            while True:
                try:
                    records = await tail.poll(1_000)
                except (OffsetTrimmed, OffsetBeyondEnd) as error:
                    await self._pass_over(tail, error)
                    continue
                for record in records:
                    self._take_hint(record)
                if records:
                    self._arrived.set()

    async def _pass_over(self, tail: Tail, error: OffsetTrimmed | OffsetBeyondEnd) -> None:
        """Heartbeats and beats that this process slept through: it goes on behind them, as one that was deaf."""
        if error.details.get("topic") not in (self._topics.signals, self._topics.workers):
            raise error
        await go_on_behind(self._log, tail, error)

    def _take_hint(self, record: Record) -> None:
        if record.topic == self._topics.workers:
            for report in decode_reports(record.value):
                if isinstance(report, Echo) and report.incarnation == self.incarnation and record.append_time:
                    self._clock.observe(record.time_ms, report.at)
                self._reports.append((record.partition, report))
        elif record.topic == self._topics.signals:
            self._signals.extend(decode_signals(record.value))
        elif record.topic == self._topics.control:
            self.machine.upgrade.want(wanted_rules(record.value))
        else:
            self._take_quarantined(record.value)

    def _take_quarantined(self, value: bytes) -> None:
        for line in value.split(b"\n"):
            try:
                position = parse(_decode_quarantined(line).position)
            except (msgspec.DecodeError, InvalidCursor):
                continue
            machine = self.machine.partitions.get(position.partition)
            if machine is not None:
                machine.noted(position.packed)

    def _forward_landed(self, forward: Forward) -> None:
        self._forwarded.append(forward)
        self._arrived.set()

    # Stepping

    async def _run(self) -> None:
        while True:
            readers_wait_ms = None if self._readers is None else self._pace.wait_ms
            wait_ms = self.machine.next_wakeup_ms(self._clock.now(), readers_wait_ms=readers_wait_ms)
            if not self._records and not self._arrived.is_set() and wait_ms > 0:
                try:
                    async with asyncio.timeout(wait_ms / 1_000):
                        await self._arrived.wait()
                except TimeoutError:
                    pass
            else:
                await asyncio.sleep(0)
            self._arrived.clear()
            self._step()
            if readers_wait_ms is not None:
                # What was decided is on its way first, and who asked for something meanwhile is heard.
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                self._commit_for_readers(readers_wait_ms)

    def _commit_for_readers(self, wait_ms: int) -> None:
        began = time.perf_counter()
        committed = self.machine.commit_for_readers(self._clock.now(), wait_ms)
        if committed:
            self._pace.took((time.perf_counter() - began) * 1_000 / committed)

    def _step(self) -> None:
        records = self._next_records()
        inputs = Inputs(records, self._reports, self._signals, self._forwarded)
        self._reports, self._signals, self._forwarded = [], [], []
        now = self._clock.now()
        self._outbox.carry_out(self.machine.step(inputs, now))
        self.stepped_ms = now.mono_ms
        if self._ends:
            self._note_caught_up()

    def _next_records(self) -> Sequence[Record]:
        count = min(STEP_RECORDS, len(self._records))
        records = [self._records.popleft() for _ in range(count)]
        if not self._room.is_set() and len(self._records) < INBOX_RECORDS // 2:
            self._room.set()
        return records

    def _note_caught_up(self) -> None:
        for store in self._stores:
            end = self._ends.get(store.partition)
            if end is not None and store.next_offset >= end:
                del self._ends[store.partition]
                self.machine.caught_up(store.partition)


def _expected(error: BaseException) -> bool:
    """Whether the message says it all: no traceback is needed for what Penstock or the system says on purpose."""
    return isinstance(error, (PenstockError, OSError))
