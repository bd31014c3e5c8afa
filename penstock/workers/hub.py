"""Sessions on the log: one tail for what comes to many workers, one pulse for what they tell.

A worker process has a hub with one session; the API's gateway has one with a session for every worker that it
speaks for, all reached by the gateway's own route. Work records are keyed by worker id, so those of others that
share the partition are skipped undecoded.

Nothing read here is truth, so a gap in it does no harm: where the log no longer has what was to be read,
reading goes on at its end, and what was missed is sent again because heartbeats do not name it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from penstock.log.bundler import Bundler, LinePosition
from penstock.log.port import Log, Record, Tail, TopicPartition
from penstock.log.supervision import supervise, tell
from penstock.schemas.codec import encode_line
from penstock.schemas.errors import LogError, OffsetBeyondEnd, OffsetTrimmed, ServerUnreachable
from penstock.schemas.events import JobEvent
from penstock.schemas.ids import partition_of
from penstock.schemas.messages import (
    Acknowledged,
    Beat,
    CancelJob,
    Delivery,
    Drain,
    LeaseGone,
    decode_deliveries,
    decode_signals,
)
from penstock.schemas.topics import BROADCAST, Topics
from penstock.workers.pulse import Pulse
from penstock.workers.roster import Roster
from penstock.workers.session import Session
from penstock.workers.transport import Recipient, WorkerProfile
from penstock.workers.writer import OutcomeWriter, Pending

POLL_MS = 1_000
TICK_MS = 100
FIRST_PAUSE_MS = 100
LONGEST_PAUSE_MS = 2_000

_log = logging.getLogger(__name__)


def monotonic_ms() -> float:
    return time.monotonic() * 1_000


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class SessionHub:
    """Workers' sessions on one log. Use as an async context manager.

    Args:
        log: the open log.
        topics: its topics, which exist.
        via: the gateway's incarnation, if this is one: then every session is reached through it.
        route_name: whose route reaches the sessions: the gateway's name; empty for each worker's own.
        give_up_ms: when the log has not answered for so long, :attr:`failure` says so.
        now_ms: the monotonic clock.
    """

    def __init__(
        self, log: Log, topics: Topics, *, via: str = "", route_name: str = "", give_up_ms: int = 120_000,
        now_ms: Callable[[], float] = monotonic_ms, wall_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:  # fmt: skip
        self.topics = topics
        self.via = via
        self.sessions: dict[str, list[Session]] = {}
        """By worker id; several incarnations of one may overlap for a while."""
        self._log = log
        self._route_name = route_name
        self._give_up_ms = give_up_ms
        self._now_ms = now_ms
        self._wall_ms = wall_ms
        self._roster = Roster()
        self._writer = OutcomeWriter(Bundler(log, topics.jobs))
        self._pulses = [Pulse(log, topics, number, now_ms) for number in range(topics.worker_partitions)]
        self._opened: Tail | None = None
        self._routes: dict[int, int] = {}
        self._next: dict[TopicPartition, int] = {}
        """Where reading stands in each partition that is followed."""
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: asyncio.Future[None] | None = None

    # Service

    async def __aenter__(self) -> Self:
        self._failure = asyncio.get_running_loop().create_future()
        end = (await self._log.bounds(self.topics.signals, BROADCAST)).end
        self._next[self.topics.signals, BROADCAST] = end
        tail = self._log.tail(self._next)
        self._opened = await tail.__aenter__()
        self._spawn("hub-tail", self._read())
        self._spawn("hub-tick", self._tick())
        for pulse in self._pulses:
            self._spawn("hub-pulse", pulse.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in self._every_session():
            session.closed = True
        self.sessions.clear()
        await self._writer.close()
        if self._opened is not None:
            await self._opened.__aexit__(None, None, None)
        if not self.failure.done():
            self.failure.cancel()

    @property
    def failure(self) -> asyncio.Future[None]:
        """Gets an exception when the hub cannot go on."""
        assert self._failure is not None, "the hub is not entered"
        return self._failure

    # Sessions

    async def open(self, profile: WorkerProfile, recipient: Recipient) -> Session:
        """Begin a session: read its topics from their ends on, then let the first heartbeat go out.

        Raises:
            LogError: the log does not answer.
        """
        route = self.topics.route_of(self._route_name or profile.worker)
        await self._follow(route)
        session = Session(profile, recipient, self, via=self.via, route=route, wall_ms=self._wall_ms)
        self.sessions.setdefault(profile.worker, []).append(session)
        session.orchestrators(self._roster.backlogs(), ())
        self._pulse_of(session).add(session)
        return session

    async def close(self, session: Session) -> None:
        """End a session: a last heartbeat says that the worker leaves, then nothing is heard of it any more."""
        session.stop_taking()
        pulse = self._pulse_of(session)
        pulse.remove(session)
        with suppress(LogError, TimeoutError):
            async with asyncio.timeout(5.0):
                await pulse.send([session])
        session.closed = True
        others = self.sessions.get(session.worker, [])
        if session in others:
            others.remove(session)
            if not others:
                del self.sessions[session.worker]
            self._unfollow(session.route)

    async def append(self, event: JobEvent) -> LinePosition:
        """Write a holder's line about a lease that no session holds; the fold decides about it."""
        partition = partition_of(event.job, self.topics.partitions)
        return await self._writer.append(partition, encode_line(event))

    async def flush(self, timeout_ms: int) -> int:
        """Wait for the outcomes on their way; returns how many are not written after ``timeout_ms``."""
        return await self._writer.flush(timeout_ms)

    # What sessions ask for

    def put(self, partition: int, pending: Pending) -> None:
        self._writer.put(partition, pending)

    def changed(self, session: Session) -> None:
        self._pulse_of(session).wake()

    def now_ms(self) -> float:
        return self._now_ms()

    # Reading

    @property
    def _tail(self) -> Tail:
        assert self._opened is not None, "the hub is not entered"
        return self._opened

    async def _follow(self, route: int) -> None:
        users = self._routes.get(route, 0)
        if users == 0:
            for topic, partition in self._partitions(route):
                end = self._next[topic, partition] = (await self._log.bounds(topic, partition)).end
                self._tail.follow(topic, partition, end)
        self._routes[route] = self._routes.get(route, 0) + 1

    def _unfollow(self, route: int) -> None:
        self._routes[route] -= 1
        if self._routes[route] == 0:
            del self._routes[route]
            for topic, partition in self._partitions(route):
                self._tail.drop(topic, partition)
                self._next.pop((topic, partition), None)

    def _partitions(self, route: int) -> list[TopicPartition]:
        return [*((topic, route) for topic in self.topics.work_topics), (self.topics.signals, route)]

    async def _read(self) -> None:
        pause_ms, failing_since_ms = FIRST_PAUSE_MS, 0.0
        while True:
            try:
                records = await self._tail.poll(POLL_MS)
            except (OffsetTrimmed, OffsetBeyondEnd):
                await self._seek_on()
                continue
            except LogError as error:
                failing_since_ms = failing_since_ms or self._now_ms()
                if self._now_ms() - failing_since_ms > self._give_up_ms:
                    raise ServerUnreachable(f"the log has not answered for long: {error.message}") from error
                await asyncio.sleep(pause_ms / 1000)
                pause_ms = min(2 * pause_ms, LONGEST_PAUSE_MS)
                continue
            pause_ms, failing_since_ms = FIRST_PAUSE_MS, 0.0
            for record in records:
                self._next[record.topic, record.partition] = record.offset + 1
            self.take(records)

    async def _seek_on(self) -> None:
        """Something was forgotten before it was read: go on with the oldest that is left.

        To skip the rest as well would have all of it sent again, and as likely lost again.
        """
        with suppress(LogError):
            for (topic, partition), offset in list(self._next.items()):
                start, end = await self._log.bounds(topic, partition)
                if (topic, partition) in self._next:
                    offset = self._next[topic, partition] = min(max(offset, start), end)
                    self._tail.follow(topic, partition, offset)
            return
        await asyncio.sleep(FIRST_PAUSE_MS / 1000)

    def take(self, records: Iterable[Record]) -> None:
        """Hand records of the work and signals topics to the sessions they are for, deliveries in one go each."""
        deliveries: dict[str, list[Delivery]] = {}
        beats: dict[str, Beat] = {}
        for record in records:
            if record.topic != self.topics.signals:
                worker = (record.key or b"").decode("utf-8", "replace")
                if worker in self.sessions:
                    deliveries.setdefault(worker, []).extend(decode_deliveries(record.value))
                continue
            for signal in decode_signals(record.value):
                match signal:
                    case Beat():
                        beats[signal.incarnation] = signal
                    case Acknowledged() | CancelJob() | LeaseGone() | Drain():
                        for session in self.sessions.get(signal.worker, ()):
                            session.signal(signal)
                    case _:
                        pass
        for worker, found in deliveries.items():
            for session in self.sessions[worker]:
                session.deliver(found)
        if beats:
            gone = [name for beat in beats.values() for name in self._roster.hear(beat, self._now_ms())]
            self._tell_orchestrators(gone)

    def _tell_orchestrators(self, gone: Iterable[str]) -> None:
        backlogs = self._roster.backlogs()
        for session in self._every_session():
            session.orchestrators(backlogs, gone)

    # Time

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_MS / 1000)
            now_ms = self._now_ms()
            gone = self._roster.silent(now_ms)
            if gone:
                self._tell_orchestrators(gone)
            for session in self._every_session():
                session.tick(now_ms)

    def _every_session(self) -> list[Session]:
        return [session for sessions in self.sessions.values() for session in sessions]

    def _pulse_of(self, session: Session) -> Pulse:
        return self._pulses[self.topics.reports_partition_of(session.worker)]

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(supervise(work, name, self.fail))

    def fail(self, error: BaseException) -> None:
        """Whatever ends one of the hub's loops, or of those around it, ends the hub, loudly."""
        _log.error("the sessions end: %r", error)
        tell(self.failure, error)
