"""A model worker: it speaks the protocol as the real one does, and its handlers do what each job's payload says."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from msgspec import Raw, Struct

from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line
from penstock.schemas.ids import ulid
from penstock.schemas.messages import (
    Beat,
    CancelJob,
    Delivery,
    Heartbeat,
    Holding,
    LeaseGone,
    decode_deliveries,
    decode_signals,
)
from penstock.schemas.topics import BROADCAST
from tests.sim.producer import STEPS
from tests.sim.world import Cursor, World
from tests.sim.writer import Writer

LIVE_MS = 3_000


class Held(Struct):
    """A lease in the worker's hands. ``line`` is its outcome, once it has one."""

    delivery: Delivery
    started_ms: int = -1
    line: bytes = b""
    seq: int = 0


MODEL_STEPS = (*STEPS, "snooze", "part", "quit")


class ModelWorker:
    """One worker id; each start is a new incarnation. ``stubborn`` ones hear no cancels or lost leases in rain."""

    def __init__(self, world: World, name: str, types: tuple[str, ...], *, stubborn: bool = False) -> None:
        self.world, self.name, self.types, self.stubborn = world, name, types, stubborn
        self.route = world.names.route_of(name)
        self.concurrency = world.random.choice((1, 2, 4))
        self.prefetch = world.random.choice((0, 0, 3))
        self.lease_ms = world.random.choice((3_000, 6_000))
        self.alive = self.paused = False
        self._lives = 0
        self._waking = False
        self._writer: Writer

    @property
    def capacity(self) -> int:
        return self.concurrency + self.prefetch

    # Life and death

    def start(self) -> None:
        world, names = self.world, self.world.names
        self.alive, self.paused = True, False
        self._waking = False
        self._lives += 1
        self.incarnation = ulid(world.now_ms, world.random.getrandbits(80))
        self.seq = 0
        self.held: dict[str, Held] = {}
        self.finished: dict[str, bytes] = {}
        self.tombstones: dict[str, str] = {}
        self.leaders: dict[str, int] = {}
        self._writer = Writer(world, self.name, patient=True)
        # From the end: what was sent to a predecessor is not this one's.
        self._work = [Cursor(world, topic, self.route) for topic in names.work_topics]
        self._signals = [Cursor(world, names.signals, number) for number in (BROADCAST, self.route)]
        world.listen(self, *((topic, self.route) for topic in names.work_topics))
        world.listen(self, (names.signals, BROADCAST), (names.signals, self.route))
        world.note(f"{self.name} starts as {self.incarnation[-5:]}")
        self._beat(self._lives)

    def crash(self) -> None:
        if not self.alive:
            return
        world = self.world
        world.stats["worker crashes"] += 1
        world.note(f"{self.name} crashes")
        self.alive = False
        self._writer.alive = False
        world.deafen(self)
        world.after(world.between(20, 10_000), self.start)

    def pause(self, for_ms: int) -> None:
        """Freeze with everything it holds; it wakes long after its leases have ended, and does not know."""
        if not self.alive or self.paused:
            return
        self.world.stats["worker pauses"] += 1
        self.world.note(f"{self.name} pauses for {for_ms} ms")
        self.paused = True
        life = self._lives

        def resume() -> None:
            if life == self._lives:
                self.paused = False
                self.world.note(f"{self.name} wakes")
                self.wake()

        self.world.after(for_ms, resume)

    def replace(self) -> None:
        """Start a new process under the same name while the old one runs on, as a zombie that still reports."""
        if self.alive and not self.paused:
            self.world.stats["zombies"] += 1
            ghost = ModelWorker.__new__(ModelWorker)
            ghost.__dict__.update(self.__dict__)
            self.world.note(f"{self.name} becomes a zombie")
            self.world.deafen(self)
            for lease in list(self.held.values()):
                self.world.after(self.world.between(500, 25_000), partial(ghost._finish, lease, self._lives))
            self.alive = False
            ghost._lives = self._lives
            self.world.after(self.world.between(0, 500), self.start)

    # Reading

    def wake(self) -> None:
        if self._waking or not self.alive or self.paused:
            return
        self._waking = True
        self.world.after(self.world.between(0, 4), partial(self._read, self._lives))

    def _read(self, life: int) -> None:
        if life != self._lives:
            return
        self._waking = False
        if not self.alive or self.paused:
            return
        for cursor in self._signals:
            for record in cursor.read():
                for signal in decode_signals(record.value):
                    self._signal(signal)
        for cursor in self._work:
            for record in cursor.read():
                for delivery in decode_deliveries(record.value):
                    self._deliver(delivery)
        self._start_handlers()

    def _signal(self, signal: Any) -> None:
        if isinstance(signal, Beat):
            new = signal.incarnation not in self.leaders
            self.leaders[signal.incarnation] = self.world.mono_ms
            if new:
                self._send(full=False)
        elif isinstance(signal, CancelJob | LeaseGone):
            if signal.worker != self.name or signal.incarnation != self.incarnation:
                return
            if self.stubborn and self.world.raining:
                return
            held = self.held.get(signal.lease)
            gone = isinstance(signal, LeaseGone)
            if held is None:
                if signal.lease not in self.finished:
                    self.tombstones[signal.lease] = "gone" if gone else "cancel"
            elif gone:
                del self.held[signal.lease]
                self.tombstones[signal.lease] = "gone"
                self.world.stats["leases gone"] += 1
            elif not held.line and self.world.random.random() < 0.8:
                self._outcome(held, "back")

    def _deliver(self, delivery: Delivery) -> None:
        lease = delivery.lease
        if delivery.worker != self.name or delivery.incarnation != self.incarnation or lease in self.held:
            return
        if lease in self.finished:
            self.world.stats["delivered again after the end"] += 1
            self._writer.put(delivery.partition, [self.finished[lease]])
            return
        known = self.tombstones.get(lease)
        if known == "gone":
            return
        held = self.held[lease] = Held(delivery)
        if known == "cancel":
            self._outcome(held, "back")
        elif sum(not one.line for one in self.held.values()) > self.capacity + self.concurrency:
            self.world.stats["surplus"] += 1
            self._outcome(held, "surplus")

    # Running

    def _start_handlers(self) -> None:
        running = sum(held.started_ms >= 0 and not held.line for held in self.held.values())
        for held in self.held.values():
            if running >= self.concurrency:
                return
            if held.started_ms < 0 and not held.line:
                running += 1
                held.started_ms = self.world.mono_ms
                self._run(held)

    def _run(self, held: Held) -> None:
        plan = json.loads(bytes(held.delivery.payload))
        steps: list[str] = plan["plan"]
        # By runs, not attempts: a job that is given back would be given back for ever.
        run = self.world.runs[held.delivery.job]
        self.world.runs[held.delivery.job] += 1
        what = steps[min(run, len(steps) - 1)]
        self.world.stats[f"handler {what}"] += 1
        if what == "hang":
            return
        if what == "slow":
            for part in range(1, 4):
                self.world.after(plan["ms"] * part // 4, partial(self._progress, held, part, self._lives))
        self.world.after(
            plan["ms"], partial(self._finish, held, self._lives, "ok" if what == "slow" else what)
        )

    def _progress(self, held: Held, part: int, life: int) -> None:
        if life != self._lives or held.line:
            return
        if self.paused:
            self.world.after(500, partial(self._progress, held, part, life))
            return
        held.seq += 1
        delivery = held.delivery
        event = ev.Progressed(
            id=f"{delivery.lease}.p{held.seq}", job=delivery.job, lease=delivery.lease, seq=held.seq,
            percent=25.0 * part, checkpoint=Raw(b"%d" % part),
        )  # fmt: skip
        self._writer.put(delivery.partition, [encode_line(event)])

    def _finish(self, held: Held, life: int, what: str = "ok") -> None:
        if life != self._lives or held.line:
            return
        if self.paused:
            # The zombie's handler ends right after it wakes, before anything else.
            self.world.after(200, partial(self._finish, held, life, what))
            return
        self._outcome(held, what)

    def _outcome(self, held: Held, what: str) -> None:
        delivery, lease = held.delivery, held.delivery.lease
        run_ms = max(0, self.world.mono_ms - held.started_ms) if held.started_ms >= 0 else 0
        about: dict[str, Any] = {"job": delivery.job, "lease": lease}
        event: ev.Event
        if what == "ok":
            event = ev.Succeeded(id=f"{lease}.s", result=Raw(b'"done"'), run_ms=run_ms, **about)
        elif what in ("fail", "fatal"):
            error = ev.JobError(code="boom", retryable=what == "fail")
            event = ev.Failed(id=f"{lease}.f", error=error, run_ms=run_ms, **about)
        elif what == "snooze":
            event = ev.Snoozed(id=f"{lease}.z", delay_ms=self.world.random.choice((0, 700)), **about)
        elif what == "part":
            errors = (ev.JobError(code="part"),)
            event = ev.Succeeded(id=f"{lease}.s", result=Raw(b'"half"'), errors=errors, **about)
        else:
            event = ev.Returned(
                id=f"{lease}.r", reason="surplus" if what == "surplus" else "handed back",
                cancel=what == "quit", **about,
            )  # fmt: skip
        held.line = encode_line(event)
        self._writer.put(delivery.partition, [held.line], partial(self._written, held))

    def _written(self, held: Held) -> None:
        lease = held.delivery.lease
        self.finished[lease] = held.line
        if self.held.get(lease) is held:
            del self.held[lease]
        self._start_handlers()
        self._send(full=False)

    # Heartbeats

    def _beat(self, life: int) -> None:
        if life != self._lives or not self.alive:
            return
        if not self.paused:
            self._send(full=True)
            self._start_handlers()
        self.world.after(self.lease_ms // 6, partial(self._beat, life))

    def _send(self, *, full: bool) -> None:
        if not self.alive or self.paused:
            return
        now_ms = self.world.mono_ms
        live = [leader for leader, heard_ms in self.leaders.items() if now_ms - heard_ms < LIVE_MS]
        share = max(1, self.capacity // max(1, len(live)))
        self.seq += 1
        holding = tuple(
            Holding(
                held.delivery.partition, f"{held.delivery.tenant}/{held.delivery.job}", lease,
                max(1, now_ms - held.started_ms) if held.started_ms >= 0 else 0,
            )
            for lease, held in self.held.items()
        )  # fmt: skip
        beat = Heartbeat(
            worker=self.name, incarnation=self.incarnation, seq=self.seq, types=self.types,
            concurrency=self.concurrency, credits=dict.fromkeys(live, share), route=self.route,
            holding=holding if full else (), partial=not full, lease_ms=self.lease_ms,
        )  # fmt: skip
        names = self.world.names
        self.world.send(names.workers, names.reports_partition_of(self.name), [beat])
