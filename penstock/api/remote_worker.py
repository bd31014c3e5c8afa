"""One worker that speaks HTTP: its session on the log, its waiting fetches, and its grants on their way.

:mod:`penstock.api.gateway` says which rules hold.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from msgspec import Struct

from penstock.api.gateway_models import GatewaySignal
from penstock.schemas.messages import Delivery
from penstock.workers.hub import SessionHub
from penstock.workers.lease import HeldLease
from penstock.workers.session import Session, returned

REPEAT_MS = 1_000
"""How long after a grant was handed out, and not named since, a fetch may hand it out again."""

LATE_MS = 1_000
"""How long a grant that nobody waits for is kept for a fetch."""

LAPSE_EVERY_MS = 1_000

MAX_GONE = 10_000


class Named(Struct, frozen=True):
    """A lease that a client says it holds. With ``job`` a gateway that does not know the lease can renew it too."""

    lease: str
    job: str = ""


class Fetch:
    """A fetch that waits. ``granted`` gets its leases, an empty list when there is nothing to wait for any more."""

    __slots__ = ("granted", "most", "types")

    def __init__(self, types: frozenset[str], most: int) -> None:
        self.types = types
        self.most = most
        self.granted: asyncio.Future[list[HeldLease]] = asyncio.get_running_loop().create_future()


class RemoteWorker:
    """A worker that speaks HTTP: its session, its waiting fetches, and its grants on their way. See the module."""

    def __init__(self, hub: SessionHub) -> None:
        self._hub = hub
        self._session: Session | None = None
        self._parked: list[Fetch] = []
        self._late: dict[str, tuple[HeldLease, float]] = {}
        """Granted, not handed out: with the time they came."""
        self._unnamed: dict[str, tuple[HeldLease, float]] = {}
        """Handed out, not named by the client since: with the time they were last handed out."""
        self._gone: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._returning: dict[str, HeldLease] = {}
        """Given back here, and not yet written: held, but by nobody who would want another when it is gone."""
        self._types: frozenset[str] = frozenset()
        self._drain: bool | None = None
        self._closed = False
        self.leaving = False
        """Whether its client has said that it leaves. Its session ends once nothing is held."""
        self.heard_ms = hub.now_ms()
        self.progress_seqs: dict[str, int] = {}
        self._lapse_ms = 0.0

    @property
    def session(self) -> Session:
        assert self._session is not None, "the session is not open"
        return self._session

    @session.setter
    def session(self, session: Session) -> None:
        self._session = session
        session.renews_all = False

    @property
    def parked(self) -> int:
        return len(self._parked)

    @property
    def idle(self) -> bool:
        """Whether nothing is held, on its way, or waited for."""
        return not (self._parked or self._late or self.session.held)

    # What the session tells

    def receive(self, leases: Sequence[HeldLease]) -> None:
        now_ms = self._hub.now_ms()
        for lease in leases:
            lease.renew_until_ms = now_ms + self.naming_ms
            self._late[lease.id] = (lease, now_ms)
        self._assign()

    def cancel(self, lease: HeldLease) -> None:
        if lease.id in self._late:
            self._give_back(lease, "cancelled")

    def lose(self, lease: HeldLease) -> None:
        self._late.pop(lease.id, None)
        self._unnamed.pop(lease.id, None)
        self._gone[lease.id] = (lease.delivery.job, lease.lost_reason)
        if len(self._gone) > MAX_GONE:
            self._gone.popitem(last=False)
        self._resize()

    def drain(self, stop: bool) -> None:
        self._drain = stop
        # Also where it is to leave: only its client knows when it has.
        self.session.say_draining()
        self._take_no_more("drained")
        self._resize()

    # What the client says of itself

    def leave(self) -> None:
        """It fetches no more.

        Its session does not leave yet: of one that does, whatever it does not name is given to others at once, and this
        client may be late to name what it still holds.
        """
        self.leaving = True
        self.session.say_draining()
        self._take_no_more("surplus")
        self._resize()

    def stay(self) -> None:
        """It fetches, whatever it said before."""
        if self.leaving:
            self.leaving = False
            self.session.say_draining(self._drain is not None)

    # Fetching

    @property
    def naming_ms(self) -> float:
        """How long a lease is renewed after the client named it."""
        return self.session.profile.lease_ms * 2 / 5

    def take(self, types: frozenset[str], most: int) -> list[HeldLease]:
        """What can be handed out at once: grants whose answer may have been lost, and late ones."""
        now_ms = self._hub.now_ms()
        found = [
            lease
            for lease, handed_ms in self._unnamed.values()
            if now_ms - handed_ms >= REPEAT_MS and lease.delivery.job_type in types
        ][:most]
        found += self._take_late(types, most - len(found))
        self._hand_out(found, now_ms)
        return found

    async def wait(self, types: frozenset[str], most: int, wait_ms: int) -> list[HeldLease]:
        """Wait for grants; an empty list when none came in time."""
        if self._closed:
            return []
        # A drained one waits all the same, for nothing: its client would ask without a pause.
        fetch = Fetch(types, most if self._drain is None else 0)
        self._parked.append(fetch)
        self.wants(types)
        self._resize()
        try:
            await asyncio.wait({fetch.granted}, timeout=wait_ms / 1_000)
            leases = fetch.granted.result() if fetch.granted.done() else []
        except BaseException:
            if fetch.granted.done():
                self._put_back(fetch.granted.result())
            raise
        finally:
            if fetch in self._parked:
                self._parked.remove(fetch)
            self._resize()
        self._hand_out(leases, self._hub.now_ms())
        return leases

    def wants(self, types: Iterable[str]) -> None:
        """Types that fetches ask for: what the worker is known to take."""
        wanted = frozenset(types).union(*(fetch.types for fetch in self._parked))
        if wanted != self._types:
            self._types = wanted
            self.session.set_types(tuple(sorted(wanted)))

    def _take_late(self, types: frozenset[str], most: int) -> list[HeldLease]:
        found: list[HeldLease] = []
        for lease, _ in self._late.values():
            if len(found) >= most:
                break
            if lease.delivery.job_type in types:
                found.append(lease)
        for lease in found:
            del self._late[lease.id]
        return found

    def _assign(self) -> None:
        """Give what is there to the fetches that wait, the longest waiting first; of one that leaves, back."""
        if self.leaving:
            self._take_no_more("surplus")
        for fetch in list(self._parked):
            leases = self._take_late(fetch.types, fetch.most)
            if leases:
                self._parked.remove(fetch)
                fetch.granted.set_result(leases)
        self._resize()

    def _hand_out(self, leases: Iterable[HeldLease], now_ms: float) -> None:
        for lease in leases:
            lease.started_ms = lease.started_ms or now_ms
            lease.renew_until_ms = now_ms + self.naming_ms
            self._unnamed[lease.id] = (lease, now_ms)

    def _put_back(self, leases: Iterable[HeldLease]) -> None:
        now_ms = self._hub.now_ms()
        for lease in leases:
            if not lease.lost_reason:
                self._late[lease.id] = (lease, now_ms)
        self._assign()

    def _resize(self) -> None:
        held = self.session.held
        self._returning = {name: lease for name, lease in self._returning.items() if held.get(name) is lease}
        kept = len(held) - len(self._returning)
        wanted = sum(fetch.most for fetch in self._parked)
        capacity = kept + wanted
        self.session.resize(capacity, kept - len(self._late), concurrency=max(1, capacity))

    # Naming

    def name(self, leases: Iterable[Named]) -> None:
        """The client has these leases: keep them for a while."""
        until_ms = self._hub.now_ms() + self.naming_ms
        for item in leases:
            self._unnamed.pop(item.lease, None)
            if not self.session.renew(item.lease, until_ms):
                self._adopt(item, until_ms)

    def _adopt(self, item: Named, until_ms: float) -> None:
        """A lease that came through another gateway, or before a restart: name it, and let its leader judge."""
        session = self.session
        partition = partition_of_lease(item.lease, self._hub.topics.partitions)
        known = item.lease in session.finished or item.lease in self._gone
        if not item.job or partition is None or known or session.tombstones.kind(item.lease) == "gone":
            return
        delivery = Delivery(
            worker=session.worker, incarnation=session.incarnation, via=session.via, partition=partition,
            job=item.job, job_type="", queue="", attempt=0, max_attempts=0, lease=item.lease,
            lease_ms=session.profile.lease_ms, fence="",
        )  # fmt: skip
        lease = HeldLease(delivery, self._hub.now_ms())
        lease.started_ms = lease.received_ms
        lease.renew_until_ms = until_ms
        session.held[item.lease] = lease
        self._resize()

    def reported(self, lease_id: str) -> None:
        """A report named this lease."""
        self._unnamed.pop(lease_id, None)
        self.session.renew(lease_id, self._hub.now_ms() + self.naming_ms)

    def written(self, lease_id: str) -> None:
        """The lease has an outcome on the log."""
        self.progress_seqs.pop(lease_id, None)
        self._unnamed.pop(lease_id, None)
        self._resize()

    def signals(self, leases: Iterable[Named]) -> list[GatewaySignal]:
        """What the client has to know about the leases it named, and about those it lost meanwhile."""
        session = self.session
        found: list[GatewaySignal] = []
        told: set[str] = set()
        for item in leases:
            lease = session.held.get(item.lease)
            told.add(item.lease)
            if lease is not None:
                if lease.cancel_reason is not None:
                    found.append(_signal("CancelJob", lease.delivery.job, item.lease, lease.cancel_reason))
            elif item.lease not in session.finished:
                job, reason = self._gone.get(item.lease, (item.job, "unknown"))
                found.append(_signal("LeaseGone", job, item.lease, reason))
        for lease_id in [lease_id for lease_id in self._gone if lease_id not in told]:
            job, reason = self._gone.pop(lease_id)
            found.append(_signal("LeaseGone", job, lease_id, reason))
        return found + self.drained

    @property
    def drained(self) -> list[GatewaySignal]:
        """The signal that it is to take no more, once somebody has said so."""
        return [] if self._drain is None else [GatewaySignal(type="Drain", stop=self._drain)]

    # Time

    def tick(self, now_ms: float) -> None:
        """What only time brings about: grants handed out again and given back, and leases that ran out."""
        if now_ms >= self._lapse_ms:
            self._lapse_ms = now_ms + LAPSE_EVERY_MS
            self.session.lapse(now_ms)
            held = self.session.held
            self.progress_seqs = {name: seq for name, seq in self.progress_seqs.items() if name in held}
        for lease_id in [
            name for name, (lease, _) in self._unnamed.items() if lease.lost_reason or lease.line
        ]:
            del self._unnamed[lease_id]
        for fetch in list(self._parked):
            leases = self.take(fetch.types, fetch.most)
            if leases:
                self._parked.remove(fetch)
                fetch.granted.set_result(leases)
        for lease, came_ms in list(self._late.values()):
            if now_ms - came_ms >= LATE_MS:
                self._give_back(lease)

    def close(self) -> None:
        """Answer every waiting fetch, and give back what was not handed out."""
        self._closed = True
        self._take_no_more("surplus")

    def _take_no_more(self, reason: str) -> None:
        for fetch in self._parked:
            if not fetch.granted.done():
                fetch.granted.set_result([])
        self._parked.clear()
        for lease, _ in list(self._late.values()):
            self._give_back(lease, reason)

    def _give_back(self, lease: HeldLease, reason: str = "surplus") -> None:
        self._late.pop(lease.id, None)
        self._returning[lease.id] = lease
        self.session.finish(lease, returned(lease.delivery, reason))
        # Types that no fetch waits for any more would bring the same job again.
        self.wants(())
        self._resize()


def partition_of_lease(lease: str, partitions: int) -> int | None:
    """The partition in a lease's id (``partition.epoch.number``); None if it is not one."""
    parts = lease.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) <= 20 for part in parts):
        return None
    partition = int(parts[0])
    return partition if partition < partitions else None


def _signal(kind: str, job: str, lease: str, reason: str) -> GatewaySignal:
    return GatewaySignal(type=kind, job=job, lease=lease, reason=reason)
