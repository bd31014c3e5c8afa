"""Stand-ins for what a worker speaks to: a transport driven by the test, and a scripted leader on a memory log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from penstock.log.memory import MemoryLog
from penstock.log.namespace import topic_specs
from penstock.schemas.codec import decode_line, encode_line, split
from penstock.schemas.errors import LeaseLost
from penstock.schemas.events import Enqueued, Failed, JobEvent, Leased, Progressed, Returned, Succeeded
from penstock.schemas.ids import partition_of
from penstock.schemas.messages import (
    Acknowledged,
    Beat,
    Delivery,
    Heartbeat,
    Signal,
    decode_reports,
    encode_messages,
)
from penstock.schemas.topics import BROADCAST, Topics
from penstock.workers.bodies import Bodies, InlineBodies
from penstock.workers.lease import HeldLease
from penstock.workers.session import Session
from penstock.workers.transport import OutcomeEvent, Recipient, WorkerProfile
from tests.waiting import PATIENCE_S, until

TOPICS = Topics(partitions=2, work_partitions=8)


def delivery(lease: str = "0.1.1", *, worker: str = "w", payload: object = None, **fields: Any) -> Delivery:
    """A delivery of job ``job-<lease>`` of type ``noop``, other fields as given."""
    given: dict[str, Any] = {
        "incarnation": "i1", "partition": 0, "job": f"job-{lease}", "job_type": "noop", "queue": "default",
        "attempt": 1, "max_attempts": 3, "lease_ms": 30_000, "fence": "17",
    }  # fmt: skip
    if "checkpoint" in fields:
        fields["checkpoint"] = Raw(msgspec.json.encode(fields["checkpoint"]))
    if "metadata" in fields:
        fields["metadata"] = Raw(msgspec.json.encode(fields["metadata"]))
    return Delivery(
        worker=worker, lease=lease, payload=Raw(msgspec.json.encode(payload)), **{**given, **fields}
    )


class FakeTransport:
    """Hands the test's deliveries to a worker and keeps what comes back."""

    def __init__(self, bodies: Bodies | None = None) -> None:
        self.bodies = bodies or InlineBodies()
        self.outcomes: dict[str, OutcomeEvent] = {}
        self.order: list[str] = []
        self.told: list[Progressed] = []
        self.capacities: list[int] = []
        self.limits: list[dict[str, int]] = []
        self.wanted: frozenset[str] = frozenset()
        self.hold_progress = asyncio.Event()
        self.hold_progress.set()
        self.taking = True
        self.closed = False
        self.recipient: Recipient | None = None
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def failure(self) -> asyncio.Future[None]:
        return self._failure

    async def start(self, profile: WorkerProfile, recipient: Recipient) -> None:
        self.profile, self.recipient = profile, recipient

    def give(self, *deliveries: Delivery) -> list[HeldLease]:
        assert self.recipient is not None
        leases = [HeldLease(item, 0.0) for item in deliveries]
        self.recipient.receive(leases)
        return leases

    def cancel(self, lease: HeldLease, reason: str = "") -> None:
        assert self.recipient is not None
        lease.cancel_reason = reason
        self.recipient.cancel(lease)

    def lose(self, lease: HeldLease, reason: str = "ended") -> None:
        assert self.recipient is not None
        lease.lost_reason = reason
        self.recipient.lose(lease)

    def resize(self, capacity: int, busy: int) -> None:
        self.capacities.append(capacity)

    def limit(self, limits: Mapping[str, int]) -> None:
        self.limits.append(dict(limits))

    def demand(self) -> frozenset[str]:
        return self.wanted

    def waiting(self) -> int:
        return len(self.wanted)

    def finish(self, lease: HeldLease, event: OutcomeEvent) -> None:
        assert lease.id not in self.outcomes, "two outcomes for one lease"
        lease.line = encode_line(event)
        decode_line(lease.line)
        self.outcomes[lease.id] = event
        self.order.append(lease.id)

    async def progress(self, lease: HeldLease, event: Progressed) -> None:
        await self.hold_progress.wait()
        if lease.lost_reason:
            raise LeaseLost(lease.lost_reason)
        decode_line(encode_line(event))
        self.told.append(event)

    def stop_taking(self) -> None:
        self.taking = False

    async def flush(self, timeout_ms: int) -> int:
        return 0

    async def close(self) -> None:
        self.closed = True
        if not self._failure.done():
            self._failure.cancel()

    # What the test asks

    async def outcome(self, lease: str) -> OutcomeEvent:
        await until(lambda: lease in self.outcomes)
        return self.outcomes[lease]

    async def succeeded(self, lease: str) -> Any:
        """The result of a lease that must succeed."""
        event = await self.outcome(lease)
        assert isinstance(event, Succeeded), event
        return msgspec.json.decode(event.result)

    async def failed(self, lease: str) -> Failed:
        event = await self.outcome(lease)
        assert isinstance(event, Failed), event
        return event

    async def returned(self, lease: str) -> str:
        event = await self.outcome(lease)
        assert isinstance(event, Returned), event
        return event.reason


class FakeRecipient:
    """Keeps what a session or transport brings."""

    def __init__(self) -> None:
        self.leases: dict[str, HeldLease] = {}
        self.received: list[str] = []
        self.cancelled: list[str] = []
        self.lost: dict[str, str] = {}
        self.drained: list[bool] = []

    def receive(self, leases: Sequence[HeldLease]) -> None:
        for lease in leases:
            self.leases[lease.id] = lease
            self.received.append(lease.id)

    def cancel(self, lease: HeldLease) -> None:
        self.cancelled.append(lease.id)

    def lose(self, lease: HeldLease) -> None:
        self.lost[lease.id] = lease.lost_reason

    def drain(self, stop: bool) -> None:
        self.drained.append(stop)


def profile(**fields: Any) -> WorkerProfile:
    given: dict[str, Any] = {"worker": "w", "incarnation": "i1", "types": ("noop",), "concurrency": 4}
    return WorkerProfile(**{**given, **fields})


def succeeded(lease: HeldLease, result: object = None) -> Succeeded:
    item = lease.delivery
    return Succeeded(
        id=f"{item.lease}.s", job=item.job, lease=item.lease, result=Raw(msgspec.json.encode(result))
    )


class Leader:
    """A scripted leader: leases what the test says and records what workers tell. It follows no rules of its own."""

    def __init__(self, log: MemoryLog, topics: Topics = TOPICS, name: str = "o1") -> None:
        self.log, self.topics, self.name = log, topics, name
        self._heard: dict[int, int] = {}
        self._leases = 0

    async def beat(self, backlog: dict[str, int] | None = None, **fields: Any) -> None:
        beat = Beat(
            orchestrator=self.name,
            incarnation=fields.pop("incarnation", self.name),
            backlog=backlog or {},
            **fields,
        )
        await self.log.append(self.topics.signals, BROADCAST, encode_messages([beat]))

    async def signal(self, worker: str, *signals: Signal, route: str = "") -> None:
        partition = self.topics.route_of(route or worker)
        await self.log.append(self.topics.signals, partition, encode_messages(list(signals)))

    async def acknowledge(self, beat: Heartbeat, outstanding: int, *, route: str = "") -> None:
        signal = Acknowledged(
            worker=beat.worker, incarnation=beat.incarnation, via=beat.via, orchestrator=self.name,
            orchestrator_incarnation=self.name, seq=beat.seq, outstanding=outstanding,
        )  # fmt: skip
        await self.signal(beat.worker, signal, route=route)

    def heartbeats(self) -> list[Heartbeat]:
        """Heartbeats not seen by an earlier call."""
        found: list[Heartbeat] = []
        for partition in range(self.topics.worker_partitions):
            records = self.log.topics.read(self.topics.workers, partition, self._heard.get(partition, 0))
            for record in records:
                self._heard[partition] = record.offset + 1
                found += [item for item in decode_reports(record.value) if isinstance(item, Heartbeat)]
        return found

    async def heartbeat(self, wanted: Callable[[Heartbeat], object] = lambda beat: True) -> Heartbeat:
        """The next heartbeat that is as wanted."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for beat in self.heartbeats():
                    if wanted(beat):
                        return beat
                await asyncio.sleep(0.002)

    async def lease(self, beat: Heartbeat, job: str, **fields: Any) -> Delivery:
        """Write ``Enqueued`` and ``Leased`` of a job, and make its delivery (not sent)."""
        partition = partition_of(job, self.topics.partitions)
        self._leases += 1
        lease = f"{partition}.1.{self._leases}"
        lines = [
            Enqueued(id=f"enq.{job}", job=job, job_type="noop"),
            Leased(id=lease, job=job, epoch=1, worker=beat.worker, attempt=1, lease_ms=30_000, seen=0),
        ]
        await self.log.append(self.topics.jobs, partition, b"\n".join(encode_line(line) for line in lines))
        return delivery(
            lease,
            worker=beat.worker,
            job=job,
            partition=partition,
            incarnation=beat.incarnation,
            via=beat.via,
            **fields,
        )

    async def deliver(self, deliveries: Iterable[Delivery], *, route: str = "") -> None:
        for item in deliveries:
            partition = self.topics.route_of(route or item.worker)
            await self.log.append(
                self.topics.work(item.priority), partition, encode_messages([item]), key=item.worker.encode()
            )

    def lines(self, *kinds: type[JobEvent]) -> list[Any]:
        """What stands on the jobs topic, of these types, by partition and position."""
        found: list[Any] = []
        for partition in range(self.topics.partitions):
            for record in self.log.topics.read(self.topics.jobs, partition, 0, 1_000_000):
                found += [decode_line(line) for line in split(record.value)]
        return [event for event in found if isinstance(event, kinds)]


def memory_log(topics: Topics = TOPICS) -> MemoryLog:
    log = MemoryLog()
    log.topics.ensure(topic_specs(topics))
    return log


class FakeOutlet:
    """A session's hub, driven by hand."""

    def __init__(self) -> None:
        self.time_ms = 1_000.0
        self.lines: list[tuple[int, Any]] = []
        self.changes = 0

    def put(self, partition: int, pending: Any) -> None:
        self.lines.append((partition, pending))

    def changed(self, session: Session) -> None:
        self.changes += 1

    def now_ms(self) -> float:
        return self.time_ms
