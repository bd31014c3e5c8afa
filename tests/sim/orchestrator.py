"""An orchestrator process around the real machine: it reads, steps, carries out, crashes, sleeps, and comes back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from penstock.core.rows import decode_job_row
from penstock.core.rules import RULES, newest
from penstock.log.store_memory import MemoryStore
from penstock.orchestrator.machine import Inputs, OrchestratorMachine
from penstock.orchestrator.outputs import Forward, Now, Outputs
from penstock.orchestrator.rows import FAMILIES
from penstock.schemas.ids import ulid
from penstock.schemas.messages import Report, Signal, decode_reports, decode_signals
from penstock.schemas.topics import BROADCAST
from penstock.state.partition_store import BODIES, FOLD, META, PartitionStore, StoreIdentity
from tests.sim import checks
from tests.sim.referee import Referee
from tests.sim.scale import retention_of
from tests.sim.vault import Dump
from tests.sim.world import Cursor, World
from tests.sim.writer import Writer

READ_BACK_MS = 5_000


class OrchestratorProcess:
    """One name, many lives. Its stores survive a crash as they were at some commit, or not at all."""

    def __init__(self, world: World, referee: Referee, name: str) -> None:
        self.world, self.referee, self.name = world, referee, name
        self.machine: OrchestratorMachine | None = None
        self.paused = False
        self.deaf_until_ms = self.blind_until_ms = -1
        self._disks: list[Dump | None] = [None] * world.names.partitions
        self._older: list[Dump | None] = [None] * world.names.partitions
        self._stores: list[PartitionStore] = []
        self._lives = 0
        self._waking = False
        self._timer = 0
        self._jobs: list[Cursor] = []
        self._workers: list[Cursor] = []
        self._signals: Cursor
        self._quarantine: Cursor
        self._ends: dict[int, int] = {}
        self._forwarded: list[Forward] = []
        self._writer: Writer

    # Life and death

    def start(self) -> None:
        world, names = self.world, self.world.names
        self._lives += 1
        # A step that the last life had planned comes to nothing, and would never clear this.
        self._waking = False
        self.paused = False
        self.deaf_until_ms = self.blind_until_ms = -1
        self.incarnation = ulid(world.now_ms, world.random.getrandbits(80))
        self._stores = []
        for number in range(names.partitions):
            dump = self._disks[number]
            dump = world.vault.newer_than("orchestrator", str(number), dump) or dump
            kv = MemoryStore((FOLD, BODIES, META, *FAMILIES)) if dump is None else MemoryStore.load(dump)
            self._stores.append(
                PartitionStore(kv, StoreIdentity("sim", names.jobs, number, names.partitions))
            )
        self._jobs = [Cursor(world, names.jobs, store.partition, store.next_offset) for store in self._stores]
        self._ends = {
            number: world.topics.bounds(names.jobs, number).end for number in range(names.partitions)
        }
        since_ms = world.now_ms - READ_BACK_MS
        self._workers = [
            Cursor(world, names.workers, number, world.topics.offset_at(names.workers, number, since_ms))
            for number in range(names.worker_partitions)
        ]
        self._signals = Cursor(world, names.signals, BROADCAST)
        self._quarantine = Cursor(world, names.quarantine, 0, 0)
        self._forwarded = []
        self._writer = Writer(world, self.name, patient=False)
        self.machine = OrchestratorMachine(
            self.name, self.incarnation, self._stores, self.now(),
            worker_partitions=names.worker_partitions, settle_ms=world.random.choice((0, 1_200)),
            retention=retention_of(world.weather), made_with=newest(RULES),
        )  # fmt: skip
        world.note(
            f"{self.name} starts as {self.incarnation[-5:]} from {[s.next_offset for s in self._stores]}"
        )
        world.listen(self, *((names.jobs, number) for number in range(names.partitions)))
        world.listen(self, *((names.workers, number) for number in range(names.worker_partitions)))
        world.listen(self, (names.signals, BROADCAST), (names.quarantine, 0))
        self._note_caught_up()
        self.wake()

    def crash(self) -> None:
        """Die. What was committed stays, or a part of it (nothing is synced), or nothing."""
        if self.machine is None:
            return
        world = self.world
        world.stats["orchestrator crashes"] += 1
        for number, store in enumerate(self._stores):
            luck = world.random.random()
            if luck < 0.6:
                self._disks[number] = _dump(store)
            elif luck < 0.8:
                self._disks[number] = self._older[number]
            else:
                self._disks[number] = self._older[number] = None
        world.note(f"{self.name} crashes")
        self.machine = None
        self._writer.alive = False
        world.deafen(self)
        world.after(world.between(20, 6_000), self.start)

    def pause(self, for_ms: int) -> None:
        """Stop in the middle of whatever it believes, and go on later as if nothing had been."""
        if self.machine is None or self.paused:
            return
        self.world.stats["orchestrator pauses"] += 1
        self.world.note(f"{self.name} pauses for {for_ms} ms")
        self.paused = True
        life = self._lives

        def resume() -> None:
            if self._lives == life:
                self.paused = False
                self.wake()

        self.world.after(for_ms, resume)

    def take_snapshots(self) -> None:
        """Of some partitions, as they were committed last; then the log is trimmed."""
        world = self.world
        if self.machine is None or self.paused:
            return
        for store in self._stores:
            if world.random.random() < 0.7:
                world.vault.take("orchestrator", str(store.partition), _dump(store))
        world.vault.trim({"orchestrator"})

    def usurp(self) -> None:
        """Claim some partition, whoever leads it, and however well."""
        machine = self.machine
        if machine is None or self.paused:
            return
        number = self.world.between(0, self.world.names.partitions - 1)
        out = Outputs()
        machine.partitions[number].announce(self.now(), out)
        self.world.note(f"{self.name} claims {number}")
        for action in self._actions(out):
            action()

    def now(self) -> Now:
        return Now(self.world.now_ms, self.world.mono_ms + 5_000_000 + self._lives, self.world.now_ms)

    # Running

    def wake(self) -> None:
        if self._waking or self.machine is None or self.paused:
            return
        self._waking = True
        delay_ms = self.world.between(0, 300) if self.world.chance(0.03) else self.world.between(0, 6)
        self.world.after(delay_ms, partial(self._step, self._lives))

    def _wake_at(self, delay_ms: int) -> None:
        self._timer += 1
        timer = self._timer
        self.world.after(delay_ms, lambda: self.wake() if timer == self._timer else None)

    def _step(self, life: int) -> None:
        if life != self._lives:
            return
        self._waking = False
        machine = self.machine
        if machine is None or self.paused:
            return
        if any(cursor.overtaken for cursor in self._jobs):
            # The log was trimmed past this one: it ends, and comes back with what is kept.
            self.crash()
            return
        inputs = self._inputs()
        led = {number for number, one in machine.partitions.items() if one.role == "leading"}
        out = machine.step(inputs, self.now())
        self._note_caught_up()
        for number, one in machine.partitions.items():
            if one.role == "leading" and number not in led:
                self.world.stats["takeovers"] += 1
                self.world.note(f"{self.name} leads {number}")
        checks.check_machine(self.world, self.referee, machine)
        self.referee.check_outputs(self.name, out)
        self._keep_older()
        for action in self._actions(out):
            if self.world.chance(self.world.weather.crash_in_outputs):
                self.crash()
                return
            action()
        if any(cursor.behind for cursor in self._jobs) and self.world.mono_ms >= self.blind_until_ms:
            self.wake()
        else:
            self._wake_at(max(1, machine.next_wakeup_ms(self.now())))

    def _inputs(self) -> Inputs:
        world = self.world
        records = [
            record
            for cursor in self._jobs
            if world.mono_ms >= self.blind_until_ms
            for record in cursor.read(world.random.choice((1, 3, 64)))
        ]
        reports: list[tuple[int, Report]] = []
        if world.mono_ms >= self.deaf_until_ms:
            for cursor in self._workers:
                for record in cursor.read():
                    reports.extend((cursor.partition, report) for report in decode_reports(record.value))
        signals: list[Signal] = []
        for record in self._signals.read():
            signals.extend(decode_signals(record.value))
        for record in self._quarantine.read():
            self._noted(record.value)
        forwarded, self._forwarded = self._forwarded, []
        return Inputs(records, reports, signals, forwarded)

    def _noted(self, value: bytes) -> None:
        """The quarantine topic's records are simply partition and position here."""
        number, position = map(int, value.split(b":"))
        assert self.machine is not None
        one = self.machine.partitions[number]
        one.noted(position)

    def _note_caught_up(self) -> None:
        assert self.machine is not None
        for number, end in list(self._ends.items()):
            if self._stores[number].next_offset >= end:
                del self._ends[number]
                self.machine.caught_up(number)

    def _keep_older(self) -> None:
        if self.world.chance(0.01):
            for number, store in enumerate(self._stores):
                self._older[number] = _dump(store)

    def _actions(self, out: Outputs) -> list[Callable[[], Any]]:
        """Everything that the step wants done, each to be done or not."""
        world, names = self.world, self.world.names
        actions: list[Callable[[], Any]] = []
        for number, lines in out.lines.items():
            if lines:
                actions.append(partial(self._writer.put, number, lines))
        for (priority, route, _), deliveries in out.deliveries.items():
            actions.append(partial(world.send, names.work(priority), route, list(deliveries)))
        for route, signals in out.signals.items():
            actions.append(partial(world.send, names.signals, route, list(signals)))
        if out.beats:
            actions.append(partial(world.send, names.signals, BROADCAST, list(out.beats)))
        if out.echo is not None:
            for number in range(names.worker_partitions):
                actions.append(partial(world.send, names.workers, number, [out.echo]))
        for forward in out.forwards:
            actions.append(partial(self._forward, forward))
        for note in out.quarantine:
            value = b"%d:%d" % (note.partition, note.position)
            actions.append(partial(world.topics.append, names.quarantine, 0, value))
        for notice in out.notices:
            world.note(f"{self.name}: {notice}")
        return actions

    def _forward(self, forward: Forward) -> None:
        def landed() -> None:
            self._forwarded.append(forward)
            self.wake()

        def again() -> None:
            self.world.after(1_000, partial(self._forward, forward))

        if self._writer.alive:
            self._writer.put(forward.target, forward.lines, landed, again)

    # For whoever looks at the end

    def jobs_of(self, number: int) -> dict[str, Any]:
        store = self._stores[number]
        return {row[1:].decode(): decode_job_row(data) for row, data in store.store.scan(FOLD, b"j", b"k")}


def _dump(store: PartitionStore) -> Dump:
    assert isinstance(store.store, MemoryStore)
    return store.store.dump()
