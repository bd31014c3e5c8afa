"""A worker where the log is out of reach: it speaks the worker protocol to a server's gateway.

Three loops: fetch (a long poll for as many jobs as there is room for), report (everything that waits, in one
request at a time) and heartbeat (all leases, and what the server has to say about them). While the server does
not answer, handlers go on and outcomes are kept; after nearly the length of a lease without a heartbeat the
handlers are stopped.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import httpx
from msgspec import Raw

from penstock.log.supervision import supervise, tell
from penstock.schemas.claims import Claim
from penstock.schemas.errors import ClaimsOff, Conflict, InvalidField, LeaseLost, ServerUnreachable
from penstock.schemas.events import Progressed
from penstock.schemas.limits import DEFAULT_CLAIM_BYTES
from penstock.schemas.messages import Delivery
from penstock.workers import http_protocol as protocol
from penstock.workers.bodies import Bodies
from penstock.workers.http_calls import Calls, Refused, decoded
from penstock.workers.hub import monotonic_ms
from penstock.workers.lease import HeldLease
from penstock.workers.memory import FinishedLeases
from penstock.workers.scaling import MANY
from penstock.workers.transport import OutcomeEvent, Recipient, WorkerProfile

MOST_JOBS = 1_000
MOST_EVENTS = 2_000
MOST_BYTES = 4_000_000
LONGEST_BEAT_MS = 5_000
FIRST_PAUSE_MS = 100
LONGEST_PAUSE_MS = 5_000
GOOD_BYE_S = 2.0

_log = logging.getLogger(__name__)


class Report:
    """An event on its way to the server; of a lease's outcome, or awaited by a handler."""

    __slots__ = ("body", "done", "lease")

    def __init__(
        self, body: bytes, lease: HeldLease | None = None, done: asyncio.Future[str] | None = None
    ) -> None:
        self.body = body
        self.lease = lease
        self.done = done


class HttpTransport:
    """See :class:`penstock.workers.transport.Transport`.

    Args:
        server: the server's URL.
        headers: sent with every request.
        wait_ms: how long a fetch waits for jobs.
        http_transport: an httpx transport to send through, for tests.
    """

    def __init__(
        self, server: str, *, headers: Mapping[str, str] | None = None, wait_ms: int = 10_000,
        http_transport: httpx.AsyncBaseTransport | None = None, now_ms: Callable[[], float] = monotonic_ms,
    ) -> None:  # fmt: skip
        self.held: dict[str, HeldLease] = {}
        self._calls = Calls(server, headers, http_transport)
        self._wait_ms = wait_ms
        self._now_ms = now_ms
        self._finished = FinishedLeases()
        self._profile = WorkerProfile(worker="", incarnation="")
        self._recipient: Recipient | None = None
        self._capacity = 0
        self._limits: dict[str, int] = {}
        self._reports: list[Report] = []
        self._has_reports = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        self._has_room = asyncio.Event()
        self._more = False
        self._heard_ms = math.inf
        self._leaving = False
        self._stays = False
        """Whether it is being drained: that takes no more, and does not leave."""
        self._beats_now = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failure: asyncio.Future[None] | None = None

    # Bodies, see penstock.workers.bodies

    @property
    def bodies(self) -> Bodies:
        return self

    @property
    def max_result_bytes(self) -> int:
        """The server has the last word; this is how much it can be told."""
        return DEFAULT_CLAIM_BYTES

    async def payload(self, delivery: Delivery, claim: Claim) -> bytes:
        """From the server."""
        return await self._calls.payload(delivery.job, claim)

    async def result(self, delivery: Delivery, result: bytes) -> bytes:
        """The server takes it away, if that has to be."""
        return result

    @property
    def keeps_output(self) -> bool:
        """As far as is known: a server that does not says so when it is given the first."""
        return True

    async def output(self, delivery: Delivery, number: int, lines: bytes) -> None:
        """To the server."""
        try:
            await self._calls.post(
                "log",
                {
                    "worker": self._profile.worker, "job": delivery.job, "lease": delivery.lease,
                    "fence": delivery.fence or "0", "attempt": delivery.attempt, "number": number,
                    "items": [Raw(line) for line in lines.splitlines()],
                },
            )  # fmt: skip
        except Refused as refused:
            # One that is older than this worker, or that takes this for something else.
            raise ClaimsOff(f"the server does not keep what handlers log: {refused}") from refused

    # Transport

    @property
    def failure(self) -> asyncio.Future[None]:
        assert self._failure is not None, "the transport is not started"
        return self._failure

    async def start(self, profile: WorkerProfile, recipient: Recipient) -> None:
        self._failure = asyncio.get_running_loop().create_future()
        self._profile, self._recipient, self._capacity = profile, recipient, profile.concurrency
        self._limits = dict(profile.limits)
        self._heard_ms = self._now_ms()
        for name, loop in (("fetch", self._fetch), ("report", self._report), ("heartbeat", self._heartbeat)):
            self._tasks[name] = supervise(self._repeat(name, loop), f"worker-{name}", self._fail)
        self._tasks["watch"] = supervise(self._watch(), "worker-watch", self._fail)

    def resize(self, capacity: int, busy: int) -> None:
        if capacity > self._capacity:
            self._has_room.set()
        self._capacity = capacity

    def limit(self, limits: Mapping[str, int]) -> None:
        self._limits = dict(limits)
        self._has_room.set()

    def demand(self) -> frozenset[str]:
        return frozenset()

    def waiting(self) -> int:
        # With room that stays free there is nothing to fill it, whatever the last answer was.
        return MANY if self._more and self._room() <= 0 else 0

    def _room(self) -> int:
        return self._capacity - sum(1 for lease in self.held.values() if not lease.line)

    def finish(self, lease: HeldLease, event: OutcomeEvent) -> None:
        if lease.line or self.held.get(lease.id) is not lease:
            return
        lease.line = protocol.report_of(event)
        self._put(Report(lease.line, lease))
        self._has_room.set()

    async def progress(self, lease: HeldLease, event: Progressed) -> None:
        if lease.lost_reason:
            raise LeaseLost(lease.lost_reason)
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._put(Report(protocol.report_of(event), None, done))
        outcome = await done
        if outcome in ("stale", "unknown_job", "illegal"):
            raise LeaseLost
        if outcome == "invalid":
            raise InvalidField("the server refused this progress", field="progress")

    def stop_taking(self) -> None:
        fetch = self._tasks.get("fetch")
        if fetch is not None:
            fetch.cancel()
        if not (self._leaving or self._stays):
            self._leaving = True
            self._beats_now.set()

    async def flush(self, timeout_ms: int) -> int:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._written.wait()
        except TimeoutError:
            return len(self._reports)
        return 0

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._tasks:
            await self._say_good_bye()
        for report in self._reports:
            if report.done is not None and not report.done.done():
                report.done.set_exception(LeaseLost("the worker has stopped"))
        await self._calls.close()
        if self._failure is not None and not self._failure.done():
            self._failure.cancel()

    # Fetching

    async def _fetch(self) -> None:
        """One round: wait for room, fetch, hand on."""
        room = self._room()
        unfinished = self._capacity - room
        types = [job_type for job_type in self._profile.types if self._limits.get(job_type) != 0]
        # A few free places of many are not worth a request yet; without any, all slots are with stuck handlers.
        if not types or (room < max(1, self._capacity // 4) and (unfinished or not self._capacity)):
            self._has_room.clear()
            await self._has_room.wait()
            return
        profile = self._profile
        limits = {job_type: limit for job_type, limit in self._limits.items() if limit}
        answer = await self._calls.post(
            "fetch",
            {
                "worker": profile.worker, "incarnation": profile.incarnation, "pool": profile.pool,
                "types": types, "max": max(1, min(room, MOST_JOBS)), "wait_ms": self._wait_ms,
                "lease_ms": profile.lease_ms, "host": profile.host, "version": profile.version,
                "leases": self._named(),
                # Not said by most, and not known to servers that are older.
                **({"limits": limits} if limits else {}),
            },
            wait_s=self._wait_ms / 1000,
        )  # fmt: skip
        jobs = decoded(protocol.decode_grants, answer).jobs
        # As many as there was room for: there are more where these came from, as far as one can tell.
        self._more = len(jobs) >= max(1, min(room, MOST_JOBS))
        self._take(jobs)

    def _take(self, jobs: list[protocol.GrantedJob]) -> None:
        now_ms = self._now_ms()
        fresh: list[HeldLease] = []
        for job in jobs:
            if job.lease in self.held:
                continue
            old = self._finished.line(job.lease)
            if old is not None:
                if old:
                    self._put(Report(old))
                continue
            lease = HeldLease(protocol.delivery_of(job, self._profile.worker), now_ms)
            if not self.held:
                # Heartbeats may not have got through for long, but nothing was at stake.
                self._heard_ms = now_ms
            self.held[job.lease] = lease
            fresh.append(lease)
        if fresh and self._recipient is not None:
            self._recipient.receive(fresh)

    # Reporting

    def _put(self, report: Report) -> None:
        self._reports.append(report)
        self._written.clear()
        self._has_reports.set()

    async def _report(self) -> None:
        """One round: send what waits, and settle what the server has decided."""
        if not self._reports:
            self._has_reports.clear()
            self._written.set()
            await self._has_reports.wait()
            # What else ends in this round of the loop shall go along.
            await asyncio.sleep(0)
        batch = self._batch()
        await self._send_reports(batch)
        if not self._reports:
            self._written.set()

    def _batch(self) -> list[Report]:
        batch: list[Report] = []
        size = 0
        for report in self._reports[:MOST_EVENTS]:
            size += len(report.body)
            if batch and size > MOST_BYTES:
                break
            batch.append(report)
        return batch

    async def _send_reports(self, batch: list[Report]) -> None:
        profile = self._profile
        events = [Raw(report.body) for report in batch]
        try:
            answer = await self._calls.post(
                "report", {"worker": profile.worker, "incarnation": profile.incarnation, "events": events}
            )
        except Refused as refused:
            if refused.status not in (400, 413, 422):
                raise
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._send_reports(batch[:middle])
                await self._send_reports(batch[middle:])
                return
            _log.error("the server refused a report: %s", refused)
            self._settle(batch[0], "invalid")
            return
        items = decoded(protocol.decode_report_answer, answer).items
        if len(items) != len(batch):
            raise ServerUnreachable(f"the server answered {len(items)} outcomes for {len(batch)} reports")
        for report, item in zip(batch, items, strict=True):
            if item.outcome in protocol.SETTLED:
                if item.outcome == "invalid":
                    _log.error("the report of job %s is invalid: %s", item.job, item.message)
                self._settle(report, item.outcome)
        if any(item.outcome not in protocol.SETTLED for item in items):
            raise ServerUnreachable("the server does not know yet what became of some reports")

    def _settle(self, report: Report, outcome: str) -> None:
        self._reports.remove(report)
        if report.done is not None and not report.done.done():
            report.done.set_result(outcome)
        lease = report.lease
        if lease is not None:
            self._finished.remember(lease.id, lease.line, self._now_ms())
            if self.held.get(lease.id) is lease:
                del self.held[lease.id]
            self._has_room.set()

    # Heartbeats

    @property
    def interval_ms(self) -> float:
        return min(LONGEST_BEAT_MS, self._profile.lease_ms / 3)

    async def _heartbeat(self) -> None:
        """One round: rest, name all leases, and do what the server says."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.interval_ms / 1000):
                await self._beats_now.wait()
        self._beats_now.clear()
        if not self.held:
            self._heard_ms = self._now_ms()
        sent_ms = self._now_ms()
        answer = await self._beat()
        self._heard_ms = sent_ms
        self._finished.prune(sent_ms)
        for signal in decoded(protocol.decode_heartbeat_answer, answer).signals:
            self._signal(signal)

    async def _beat(self) -> bytes:
        profile = self._profile
        body = {"worker": profile.worker, "incarnation": profile.incarnation, "leases": self._named()}
        if self._leaving:
            try:
                return await self._calls.post("heartbeat", {**body, "leaving": True})
            except Refused as refused:
                if refused.status != InvalidField.status:
                    raise
                # A server that is older does not know the word, and the leases are to be kept there too.
        return await self._calls.post("heartbeat", body)

    async def _say_good_bye(self) -> None:
        """Else it would be taken for one that is there until it was silent for long enough."""
        profile = self._profile
        with suppress(ServerUnreachable, Refused, TimeoutError):
            async with asyncio.timeout(GOOD_BYE_S):
                await self._calls.post(
                    "heartbeat",
                    {"worker": profile.worker, "incarnation": profile.incarnation, "leaving": True},
                )

    def _named(self) -> list[dict[str, str]]:
        return [{"lease": lease_id, "job": lease.delivery.job} for lease_id, lease in self.held.items()]

    def _signal(self, signal: protocol.SignalItem) -> None:
        assert self._recipient is not None
        lease = self.held.get(signal.lease)
        if signal.type == "Drain":
            self._stays = not signal.stop
            self._recipient.drain(signal.stop)
            self._stays = False
        elif lease is None or lease.line:
            # Its outcome is on its way; the answer to that says whether it still counts.
            return
        elif signal.type == "CancelJob":
            lease.cancel_reason = signal.reason
            self._recipient.cancel(lease)
        elif signal.type == "LeaseGone":
            self._lose(lease, signal.reason or "unknown")

    def _lose(self, lease: HeldLease, reason: str) -> None:
        assert self._recipient is not None
        del self.held[lease.id]
        lease.lost_reason = reason
        self._recipient.lose(lease)
        self._has_room.set()

    async def _watch(self) -> None:
        """Let go of everything when no heartbeat went through for nearly the length of a lease."""
        lease_ms = self._profile.lease_ms
        limit_ms = lease_ms - max(min(1_000.0, lease_ms / 3), lease_ms / 6)
        while True:
            await asyncio.sleep(0.1)
            if self._now_ms() - self._heard_ms > limit_ms:
                for lease in [lease for lease in self.held.values() if not lease.line]:
                    self._lose(lease, "unheard")

    # Requests

    async def _repeat(self, name: str, round_of: Callable[[], Awaitable[None]]) -> None:
        """Round after round, with pauses while the server does not answer. A newer incarnation ends the worker."""
        pause_ms = FIRST_PAUSE_MS
        while True:
            try:
                await round_of()
                pause_ms = FIRST_PAUSE_MS
                continue
            except (ServerUnreachable, Refused) as error:
                if isinstance(error, Refused) and error.status == 409:
                    raise Conflict(f"the server refused this worker: {error}") from error
                _log.warning("worker %s: %s, again in %d ms", name, error, pause_ms)
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, LONGEST_PAUSE_MS)

    def _fail(self, error: BaseException) -> None:
        tell(self.failure, error)
