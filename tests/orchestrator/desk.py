"""Machines driven by hand: a log as a list of records, time that stands still, and outputs that are done when told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from msgspec import Raw

from penstock.core.job import Job
from penstock.core.partition import PartitionFold
from penstock.log.port import Record
from penstock.log.store_memory import MemoryStore
from penstock.orchestrator.machine import Inputs, OrchestratorMachine
from penstock.orchestrator.outputs import Forward, Now, Outputs
from penstock.orchestrator.rows import FAMILIES
from penstock.schemas import events as ev
from penstock.schemas.codec import bundle, decode_line, encode_line
from penstock.schemas.ids import partition_of
from penstock.schemas.messages import (
    Acknowledged,
    Delivery,
    Echo,
    Heartbeat,
    Holding,
    LeaseGone,
    Report,
    Signal,
)
from penstock.state.partition_store import BODIES, FOLD, META, PartitionStore, StoreIdentity

START_MS = 1_700_000_000_000


def memory_store(partition: int = 0, partitions: int = 1, kv: MemoryStore | None = None) -> PartitionStore:
    kv = kv or MemoryStore((FOLD, BODIES, META, *FAMILIES))
    return PartitionStore(kv, StoreIdentity("desk", "jobs", partition, partitions))


class Desk:
    """One log of ``partitions`` and any number of orchestrators. Times are ms since the desk was set up.

    Args:
        made_with: the version of the rules that the log was made with.
    """

    def __init__(self, partitions: int = 1, made_with: int = 1) -> None:
        self.partitions = partitions
        self.made_with = made_with
        self.time_ms = 0
        self.records: list[list[Record]] = [[] for _ in range(partitions)]
        self.machines: dict[str, OrchestratorMachine] = {}
        self.stores: dict[str, list[PartitionStore]] = {}
        self.fold = [PartitionFold(number, partitions, lambda row: None) for number in range(partitions)]
        self.outcomes: list[tuple[str, str, str]] = []
        """Of every line, in order: type, job, outcome; by a folder that belongs to nobody."""
        self._seq: dict[str, int] = defaultdict(int)

    # Orchestrators

    def orchestrator(
        self, name: str = "o", stores: list[PartitionStore] | None = None
    ) -> OrchestratorMachine:
        """A machine that has read nothing yet, but may lead once it has."""
        stores = stores or [memory_store(number, self.partitions) for number in range(self.partitions)]
        self.stores[name] = stores
        machine = self.machines[name] = OrchestratorMachine(
            name, f"inc-{name}", stores, self.now(), made_with=self.made_with
        )
        for number in range(self.partitions):
            machine.caught_up(number)
        return machine

    def leader(self, name: str = "o") -> OrchestratorMachine:
        """A machine that leads every partition."""
        machine = self.orchestrator(name)
        self.settle(name)
        assert len(machine.leading) == self.partitions
        return machine

    def now(self) -> Now:
        return Now(START_MS + self.time_ms, 10_000_000 + self.time_ms, START_MS + self.time_ms)

    def step(
        self,
        name: str = "o",
        *reports: Report,
        signals: Iterable[Signal] = (),
        forwarded: Iterable[Forward] = (),
        read: bool = True,
    ) -> Outputs:
        """One step, with everything on the log that it has not read (unless told not to); nothing is carried out."""
        records = [
            record
            for number, store in enumerate(self.stores[name])
            if read
            for record in self.records[number][store.next_offset :]
        ]
        told = [(0, report) for report in reports]
        return self.machines[name].step(Inputs(records, told, list(signals), list(forwarded)), self.now())

    def carry_out(self, out: Outputs) -> None:
        """Write the lines; hints go nowhere."""
        for number, lines in out.lines.items():
            if lines:
                self.write(number, *lines)

    def settle(self, name: str = "o", *reports: Report) -> list[Outputs]:
        """Steps, with their lines carried out, until there are no more lines; what the steps gave."""
        done = [self.step(name, *reports)]
        while any(done[-1].lines.values()) or done[-1].forwards:
            self.carry_out(done[-1])
            for forward in done[-1].forwards:
                self.write(forward.target, *forward.lines)
            done.append(self.step(name, forwarded=done[-1].forwards))
        return done

    def pass_ms(
        self, duration_ms: int, name: str = "o", *reports: Report, hearing: bool = True
    ) -> list[Outputs]:
        """Let time go by in steps of 250 ms, with the orchestrator's echo unless it is deaf."""
        done: list[Outputs] = []
        for _ in range(0, duration_ms, 250):
            self.time_ms += 250
            echo = Echo(orchestrator=name, incarnation=f"inc-{name}", at=0)
            done += self.settle(name, *([echo] if hearing else []), *reports)
        return done

    # The log

    def write(
        self, number: int, *lines: bytes | ev.Event, time_ms: int | None = None, append_time: bool = True
    ) -> list[str]:
        """One record with these lines; what became of each."""
        value = bundle([line if isinstance(line, bytes) else encode_line(line) for line in lines])
        offset = len(self.records[number])
        stamp_ms = START_MS + self.time_ms if time_ms is None else time_ms
        self.records[number].append(Record("jobs", number, offset, stamp_ms, append_time, None, value))
        outcomes: list[str] = []
        for folded in self.fold[number].fold(offset, stamp_ms, append_time, value):
            kind = "" if folded.event is None else type(folded.event).__name__
            self.outcomes.append((kind, "" if folded.event is None else folded.event.job, folded.outcome))
            outcomes.append(folded.outcome)
        return outcomes

    def enqueue(self, job: str, **fields: Any) -> str:
        fields.setdefault("payload", Raw(b'{"n":1}'))
        event = ev.Enqueued(id=f"enq.{job}", job=job, job_type=fields.pop("job_type", "noop"), **fields)
        return self.write(partition_of(job, self.partitions), event)[0]

    def job(self, job: str) -> Job:
        found = self.fold[partition_of(job, self.partitions)].job(f"default/{job}")
        assert found is not None, f"no job {job}"
        return found

    # Workers

    def heartbeat(
        self, worker: str = "w", credits: int = 10, holding: Iterable[tuple[str, int]] = (), **more: Any
    ) -> Heartbeat:
        """The next heartbeat; ``holding`` are jobs whose present lease it names, each with its ``run_ms``."""
        self._seq[worker] += 1
        names = more.pop("leads", ("o",))
        more.setdefault("incarnation", "a")
        more.setdefault("types", ("noop",))
        more.setdefault("lease_ms", 5_000)
        more.setdefault("seq", self._seq[worker])
        held = tuple(
            Holding(partition_of(job, self.partitions), f"default/{job}", self.job(job).lease, run_ms)
            for job, run_ms in holding
        )
        return Heartbeat(
            worker=worker, credits={f"inc-{name}": credits for name in names}, holding=held, route=3, **more
        )  # fmt: skip

    def succeed(self, job: str, lease: str | None = None) -> str:
        lease = lease or self.job(job).lease
        return self.write(
            partition_of(job, self.partitions), ev.Succeeded(id=f"{lease}.s", job=job, lease=lease, run_ms=1)
        )[0]


def deliveries(*outputs: Outputs) -> list[Delivery]:
    return [delivery for out in outputs for some in out.deliveries.values() for delivery in some]


def signals(kind: type[Any], *outputs: Outputs) -> list[Any]:
    return [
        signal
        for out in outputs
        for some in out.signals.values()
        for signal in some
        if isinstance(signal, kind)
    ]


def gone(*outputs: Outputs) -> list[tuple[str, str]]:
    """Lease and reason of every lease that was told to be gone."""
    return [(signal.lease, signal.reason) for signal in signals(LeaseGone, *outputs)]


def echoes(*outputs: Outputs) -> list[tuple[int, int]]:
    """Sequence number and outstanding leases of every acknowledgement."""
    return [(signal.seq, signal.outstanding) for signal in signals(Acknowledged, *outputs)]


def lines(out: Outputs) -> list[ev.AnyEvent]:
    """What a step wants written."""
    return [decode_line(line) for some in out.lines.values() for line in some]
