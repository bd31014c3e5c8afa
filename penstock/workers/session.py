"""One worker on the log: what it holds, what it tells, and which messages are for it.

A session does no I/O of its own. :class:`~penstock.workers.hub.SessionHub` feeds it what comes from the log and
asks it for heartbeats; the runtime (or the gateway) is its recipient. These rules are kept here:

* Messages for another worker, incarnation or gateway are dropped.
* Every full heartbeat names each lease until the log has its outcome, so that a lease not named is one that
never came.
* A lease delivered twice is run once; one that was finished here gets its old outcome again and is not rerun.
* A signal about a lease that is not known yet is kept for when the delivery comes.
* Credits are shared out among the live orchestrators by :class:`~penstock.workers.credits.Credits`.
* A worker whose heartbeats are not written for nearly the length of its leases lets go of them by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from penstock.log.bundler import LinePosition
from penstock.schemas.codec import encode_line
from penstock.schemas.errors import LeaseLost
from penstock.schemas.events import Progressed, Returned
from penstock.schemas.ids import job_key
from penstock.schemas.messages import Acknowledged, CancelJob, Delivery, Drain, Heartbeat, Holding, LeaseGone
from penstock.workers.credits import Credits
from penstock.workers.lease import HeldLease
from penstock.workers.memory import FinishedLeases, Tombstones
from penstock.workers.transport import OutcomeEvent, Recipient, WorkerProfile
from penstock.workers.writer import AwaitedLine, Pending

LONGEST_INTERVAL_MS = 2_000
"""Heartbeats go out at least this often, and six times in a lease."""

SHORTEST_INTERVAL_MS = 20
"""And, on change, at most this often."""

TOLD_AFTER_MS = 100
"""A handler that has run for so long is told of soon: its attempt counts once the leader knows that it was started."""

FULL_APART_MS = 250
"""But not by more full heartbeats than four a second."""

MAX_HOLDING_BYTES = 700_000
"""Of leases named in one heartbeat, so that it fits into a record."""

LONGEST_HOLDING_BYTES = 400
HOLDING_FRAME_BYTES = 32

WorkerSignal = Acknowledged | CancelJob | LeaseGone | Drain


class Outlet(Protocol):
    """What a session needs of its hub."""

    def put(self, partition: int, pending: Pending) -> None: ...

    def changed(self, session: Session) -> None: ...

    def now_ms(self) -> float: ...


class AgainLine:
    """An outcome written before, written again for a leader that does not seem to have seen it."""

    wanted = False

    def __init__(self, line: bytes) -> None:
        self.line = line

    def written(self, position: LinePosition) -> None:
        """Nobody waits for it."""

    def gave_up(self, error: Exception) -> None:
        """The next delivery asks for it again."""


class Session:
    """A worker's presence on the log. Made by :meth:`penstock.workers.hub.SessionHub.open`.

    ``held`` maps lease ids to what is held. A gateway sets ``renews_all`` false and :meth:`renew`\\ s each
    lease as its client names it.
    """

    def __init__(
        self,
        profile: WorkerProfile,
        recipient: Recipient,
        outlet: Outlet,
        *,
        via: str,
        route: int,
        wall_ms: Callable[[], int],
    ) -> None:
        self.profile = profile
        self.recipient = recipient
        self.via = via
        self.route = route
        self.renews_all = True
        self.held: dict[str, HeldLease] = {}
        self.credits = Credits(profile.concurrency)
        self._limits = {
            job_type: Credits(limit, reserves=False) for job_type, limit in profile.limits.items()
        }
        """Shares of what may be held of single types."""
        self.finished = FinishedLeases()
        self.tombstones = Tombstones()
        self.types = profile.types
        self.concurrency = profile.concurrency
        self.busy = 0
        self.leaving = False
        self.draining = False
        self.closed = False
        self._outlet = outlet
        self._wall_ms = wall_ms
        self._seq = wall_ms()
        """Begins with the clock: a session that is opened again under its old incarnation is no late news."""
        self._dirty = True
        self._sent_ms = -math.inf
        self._full_ms = -math.inf
        """When the last heartbeat that named all leases was sent."""
        self._full_wanted = False
        self._heard_ms = outlet.now_ms()
        """When the last one of these that was certainly written was sent."""
        self._ticked_ms = self._heard_ms
        """The time at the last tick: near enough for what is kept for minutes."""
        self._backlogs: Mapping[str, int] = {}
        self._live: Mapping[str, Mapping[str, int]] = {}
        self._pool_types = frozenset(f"{profile.pool}/{job_type}" for job_type in profile.types)

    @property
    def worker(self) -> str:
        return self.profile.worker

    @property
    def incarnation(self) -> str:
        return self.profile.incarnation

    # What the recipient does

    def resize(self, capacity: int, busy: int, *, concurrency: int | None = None) -> None:
        """How many leases the worker wants at once, and how many handlers run now."""
        self.busy = busy
        if concurrency is not None:
            self.concurrency = concurrency
        if capacity != self.credits.capacity:
            self.credits.capacity = capacity
            self.settle()

    def set_types(self, types: tuple[str, ...]) -> None:
        """Change what the worker can run."""
        if types != self.types:
            self.types = types
            self._pool_types = frozenset(f"{self.profile.pool}/{job_type}" for job_type in types)
            self.touch()

    def set_limits(self, limits: Mapping[str, int]) -> None:
        """Change how many leases of single types the worker may hold; those not named have no limit of their own."""
        if {job_type: credits.capacity for job_type, credits in self._limits.items()} == limits:
            return
        self._limits = {
            job_type: self._limits.get(job_type, Credits(limit, reserves=False))
            for job_type, limit in limits.items()
        }
        for job_type, credits in self._limits.items():
            credits.capacity = limits[job_type]
        self._observe_limits(self._live)
        self.settle()
        self.touch()

    def stop_taking(self) -> None:
        """No more credits; what is held goes on."""
        if not self.leaving or self.draining:
            self.leaving, self.draining = True, False
            self.touch()

    def say_draining(self, draining: bool = True) -> None:
        """Tell that no more is taken, while whoever works here stays; or that more is taken after all."""
        if self.draining != draining:
            self.draining = draining
            self.touch()

    def finish(self, lease: HeldLease, event: OutcomeEvent) -> None:
        """Take a lease's outcome. Ignored if it has one, or is no longer held."""
        if lease.line or self.held.get(lease.delivery.lease) is not lease:
            return
        lease.line = encode_line(event)
        lease.on_written = self._written
        self._outlet.put(lease.delivery.partition, lease)

    async def report(self, lease: HeldLease, event: OutcomeEvent | Progressed) -> LinePosition:
        """Write a holder's line of whatever kind and return where it stands.

        Raises:
            LeaseLost: the lease is no longer held (an outcome may be written all the same).
        """
        if lease.lost_reason or self.closed:
            raise LeaseLost
        if not isinstance(event, Progressed):
            lease.line = lease.line or encode_line(event)
            pending = AwaitedLine(lease.line)
        else:
            pending = AwaitedLine(encode_line(event))
        self._outlet.put(lease.delivery.partition, pending)
        position = await pending.done
        if lease.line is pending.line:
            self._written(lease, position)
        return position

    def renew(self, lease_id: str, until_ms: float) -> bool:
        """Name a lease in heartbeats until then (monotonic ms); false if it is not held."""
        lease = self.held.get(lease_id)
        if lease is None:
            return False
        lease.renew_until_ms = until_ms
        return True

    def demand(self) -> frozenset[str]:
        """Types of this worker that have jobs waiting somewhere."""
        prefix = len(self.profile.pool) + 1
        return frozenset(name[prefix:] for name in self._backlogs if name in self._pool_types)

    def waiting(self) -> int:
        """Jobs that are ready for a worker of this pool and these types, as the orchestrators last said."""
        return sum(ready for name, ready in self._backlogs.items() if name in self._pool_types)

    def settle(self) -> None:
        """Look at the credits anew."""
        now_ms = self._outlet.now_ms()
        unpublished = False
        for credits in self._every_credits:
            credits.settle(now_ms)
            unpublished = unpublished or credits.unpublished
        if unpublished:
            self.touch()

    @property
    def _every_credits(self) -> tuple[Credits, ...]:
        return (self.credits, *self._limits.values()) if self._limits else (self.credits,)

    @property
    def _settling(self) -> bool:
        if self._limits and any(credits.settling for credits in self._limits.values()):
            return True
        return self.credits.settling

    def touch(self) -> None:
        """Something changed that the next heartbeat should say soon."""
        self._dirty = True
        self._outlet.changed(self)

    # What comes from the log

    def deliver(self, deliveries: Iterable[Delivery]) -> None:
        """Take what is new and for this session; hand it to the recipient in one go."""
        now_ms = self._outlet.now_ms()
        worker, incarnation, via, held = self.worker, self.incarnation, self.via, self.held
        finished_line = self.finished.line
        tombstone = self.tombstones.kind if len(self.tombstones) else None
        fresh: list[HeldLease] = []
        for delivery in deliveries:
            lease_id = delivery.lease
            if (
                delivery.worker != worker
                or delivery.incarnation != incarnation
                or delivery.via != via
                or lease_id in held
            ):
                continue
            old = finished_line(lease_id)
            if old is not None:
                if old:
                    self._outlet.put(delivery.partition, AgainLine(old))
                continue
            kind = tombstone(lease_id) if tombstone else ""
            if kind == "gone":
                continue
            lease = held[lease_id] = HeldLease(delivery, now_ms)
            if kind == "cancel":
                self.tombstones.forget(lease_id)
                self.finish(lease, returned(delivery, "cancelled"))
                continue
            fresh.append(lease)
        if fresh:
            self.recipient.receive(fresh)

    def signal(self, signal: WorkerSignal) -> None:
        """Take a signal to this worker."""
        if isinstance(signal, Drain):
            self.recipient.drain(signal.stop)
            if not signal.stop:
                self.say_draining()
            return
        if signal.incarnation != self.profile.incarnation or signal.via != self.via:
            return
        match signal:
            case Acknowledged():
                incarnation = signal.orchestrator_incarnation
                self.credits.acknowledged(incarnation, signal.seq, signal.outstanding)
                for job_type, credits in self._limits.items():
                    credits.acknowledged(incarnation, signal.seq, signal.limited.get(job_type, 0))
                self.settle()
            case CancelJob():
                self._cancel(signal)
            case LeaseGone():
                self._gone(signal)

    def orchestrators(self, live: Mapping[str, Mapping[str, int]], gone: Iterable[str]) -> None:
        """The live orchestrators' backlogs (``pool/type`` → ready jobs) by incarnation, and who is gone."""
        for incarnation in gone:
            for credits in self._every_credits:
                credits.remove(incarnation)
        self._live = live
        self._observe_limits(live)
        total: dict[str, int] = {}
        for incarnation, backlog in live.items():
            mine = 0
            for name, ready in backlog.items():
                if name in self._pool_types and ready > 0:
                    mine += ready
                    total[name] = total.get(name, 0) + ready
            self.credits.observe(incarnation, mine)
        self._backlogs = total
        self.settle()

    def _observe_limits(self, live: Mapping[str, Mapping[str, int]]) -> None:
        for job_type, credits in self._limits.items():
            name = f"{self.profile.pool}/{job_type}"
            for incarnation, backlog in live.items():
                credits.observe(incarnation, max(0, backlog.get(name, 0)))

    def lapse(self, now_ms: float) -> None:
        """Let go of what was not :meth:`renew`\\ ed for two leases: it has run out, even if nobody could say so."""
        for lease in list(self.held.values()):
            lasts_ms = 2 * max(self.profile.lease_ms, lease.delivery.lease_ms)
            if not lease.line and now_ms - lease.renew_until_ms > lasts_ms:
                self._lose(lease, "expired")

    def lose_all(self, reason: str) -> None:
        """Let go of everything that runs or waits. Outcomes on their way still go."""
        for lease in list(self.held.values()):
            if not lease.line:
                self._lose(lease, reason)

    # Heartbeats

    @property
    def interval_ms(self) -> float:
        return min(LONGEST_INTERVAL_MS, self.profile.lease_ms / 6)

    @property
    def margin_ms(self) -> float:
        """How long before the end of its leases an unheard worker stops."""
        return max(min(1_000.0, self.profile.lease_ms / 3), self.profile.lease_ms / 6)

    def due_ms(self) -> float:
        """When the next heartbeat is to go out."""
        full_ms = self._full_ms + self.interval_ms
        return min(full_ms, self._sent_ms + SHORTEST_INTERVAL_MS) if self._dirty else full_ms

    def heartbeat(self) -> Heartbeat:
        """The next heartbeat: a full one at each interval, between them partial ones that tell only of credits.

        The caller writes it, and tells :meth:`heard` when that is done.
        """
        now_ms = self._outlet.now_ms()
        full = self.leaving or self._full_wanted or now_ms >= self._full_ms + self.interval_ms
        self._dirty = False
        self._sent_ms = now_ms
        self._seq += 1
        granted = self.credits.publish(self._seq)
        limits = {job_type: credits.publish(self._seq) for job_type, credits in self._limits.items()}
        if full:
            self._full_ms = now_ms
            self._full_wanted = False
        return Heartbeat(
            worker=self.worker, incarnation=self.incarnation, via=self.via, seq=self._seq, pool=self.profile.pool,
            types=self.types, concurrency=self.concurrency, credits={} if self.leaving else granted, limits=limits,
            route=self.route, holding=tuple(self._holding(now_ms)) if full else (), partial=not full,
            lease_ms=self.profile.lease_ms, leaving=self.leaving, draining=self.draining,
            host=self.profile.host, version=self.profile.version, busy=self.busy, at=self._wall_ms(),
        )  # fmt: skip

    def heard(self, beat: Heartbeat, sent_ms: float) -> None:
        """A heartbeat sent then stands on the log."""
        if not beat.partial:
            self._heard_ms = max(self._heard_ms, sent_ms)

    def tick(self, now_ms: float) -> None:
        """Once in a while: what only time brings about."""
        self._ticked_ms = now_ms
        self.finished.prune(now_ms)
        self.tombstones.prune(now_ms)
        self.settle()
        if self.held and now_ms - self._heard_ms > self.profile.lease_ms - self.margin_ms:
            self.lose_all("unheard")
        if not self._full_wanted and now_ms - self._full_ms >= FULL_APART_MS:
            begun_ms = now_ms - TOLD_AFTER_MS
            if any(self._full_ms < lease.started_ms <= begun_ms for lease in self.held.values()):
                self._full_wanted = True
                self.touch()

    def _holding(self, now_ms: float) -> list[Holding]:
        """What is held, as far as a record has room for it: what waits to start yields, for it is soon done."""
        found = [
            Holding(
                lease.delivery.partition, job_key(lease.delivery.tenant, lease.delivery.job), lease_id,
                lease.run_ms(now_ms),
            )
            for lease_id, lease in self.held.items()
            if self._renews(lease, now_ms)
        ]  # fmt: skip
        if len(found) * LONGEST_HOLDING_BYTES <= MAX_HOLDING_BYTES:
            return found
        found.sort(key=lambda held: held.run_ms == 0)
        size = 0
        for number, held in enumerate(found):
            size += len(held.job_key) + len(held.lease) + HOLDING_FRAME_BYTES
            if size > MAX_HOLDING_BYTES:
                return found[:number]
        return found

    def _renews(self, lease: HeldLease, now_ms: float) -> bool:
        if lease.renew_until_ms == -math.inf:
            return False
        return self.renews_all or lease.finished or lease.renew_until_ms > now_ms

    # Ends of leases

    def _written(self, lease: HeldLease, position: LinePosition) -> None:
        lease_id = lease.delivery.lease
        if self.held.get(lease_id) is lease:
            del self.held[lease_id]
        self.finished.remember(lease_id, lease.line, self._ticked_ms)
        if self._settling:
            self.touch()

    def _cancel(self, signal: CancelJob) -> None:
        lease = self.held.get(signal.lease)
        if lease is None:
            if signal.lease not in self.finished:
                self.tombstones.put(signal.lease, "cancel", signal.reason, self._outlet.now_ms())
        elif not lease.line:
            lease.cancel_reason = signal.reason
            self.recipient.cancel(lease)

    def _gone(self, signal: LeaseGone) -> None:
        lease = self.held.get(signal.lease)
        if lease is None:
            if signal.lease not in self.finished:
                self.tombstones.put(signal.lease, "gone", signal.reason, self._outlet.now_ms())
            return
        self._lose(lease, signal.reason)
        self.tombstones.put(signal.lease, "gone", signal.reason, self._outlet.now_ms())
        if self._settling:
            self.touch()

    def _lose(self, lease: HeldLease, reason: str) -> None:
        del self.held[lease.delivery.lease]
        lease.lost_reason = reason
        if not lease.line:
            self.recipient.lose(lease)


def returned(delivery: Delivery, reason: str) -> Returned:
    """The line that gives a job back without costing an attempt."""
    return Returned(
        id=f"{delivery.lease}.r", job=delivery.job, tenant=delivery.tenant, actor=f"worker:{delivery.worker}",
        trace=delivery.trace, lease=delivery.lease, reason=reason,
    )  # fmt: skip
