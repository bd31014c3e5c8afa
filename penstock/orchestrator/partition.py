"""One partition as its orchestrator sees it: following the log, and, while it leads, deciding what comes next.

::

    following ──nominated──▶ announced ──own LeaderAnnounced folded, accepted──▶ leading
        ▲                        │ refused: another was first                        │
        └────────────────────────┴──────── a higher epoch is folded ─────────────────┘

Whatever it does as a leader it derives from folded state: what it proposes counts only when it comes back from the log,
accepted. So a leader that was deposed without knowing it writes lines that everyone drops, and one that dies owes
nothing that its successor would not find. A line that it wrote and that never comes back is written again: a lease
after 45 s, everything else after 5 s.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Literal

from penstock.core.job import WAITING, Job
from penstock.core.partition import Folded
from penstock.log.port import Record
from penstock.orchestrator.backlog import Backlog
from penstock.orchestrator.courier import Courier
from penstock.orchestrator.fleet import Fleet, Session
from penstock.orchestrator.forwarder import Forwarder
from penstock.orchestrator.leases import CANCEL_GRACE_MS, Lease, LeaseKeeper
from penstock.orchestrator.lines import LeaderLines, lease_order
from penstock.orchestrator.outputs import Forward, Now, Outputs, QuarantineNote
from penstock.orchestrator.proposals import Proposals
from penstock.orchestrator.rows import ACTIVE, DEAD, DUE, Index, Lane, lane_of, quarantine_note
from penstock.orchestrator.timers import Timers
from penstock.schemas import events as ev
from penstock.schemas.ids import job_key
from penstock.schemas.messages import Holding
from penstock.schemas.position import ordinal, unpack
from penstock.state.partition_store import PartitionStore

COMMIT_TOUCHED = 20_000
COMMIT_BYTES = 32 * 1024 * 1024
COMMIT_EVERY_MS = 2_000

AGAIN_MS = 5_000

NO_MORE = frozenset({"surplus", "shutdown", "drained"})
"""Who gives a job back for one of these reasons is given no other in its place."""

Role = Literal["following", "announced", "leading"]


class PartitionMachine:
    """Sans-I/O; driven by :class:`penstock.orchestrator.machine.OrchestratorMachine`.

    Args:
        store: the durable fold of the partition.
        fleet: the workers that this orchestrator hears, shared by all of its partitions.
        orchestrator: its name, for people.
        incarnation: of its process.
        generation: of the log; the high bits of every fence. It leads no partition that is of another, for that is
            still being copied.
    """

    def __init__(
        self, store: PartitionStore, fleet: Fleet, orchestrator: str, incarnation: str, generation: int
    ) -> None:
        self.store = store
        self.number = store.identity.partition
        self.role: Role = "following"
        self.epoch = -1
        self.caught_up = False
        self.announced_ms = -(10**9)
        self._fleet = fleet
        self._incarnation = incarnation
        self._lines = LeaderLines(self.number, orchestrator, incarnation)
        self._generation = generation
        self._courier = Courier(store)
        self._index = Index.of(store)
        self.committed_ms = 0
        """When it was last committed, by monotonic time."""
        self._batches = count(1)
        self._reset()

    def _reset(self) -> None:
        self._backlog = Backlog(self._index, self.commit, self.store.job, self.store.prepare)
        self._timers = Timers(self._index, self.commit)
        self._leases = LeaseKeeper(self.number)
        self._forwarder = Forwarder(self.number, self.store.identity.partitions, self._batches)
        self._proposals = Proposals()
        self._owed: dict[str, int] = {}
        """Keys of dead jobs whose record is owed, and when it was last written, ms; 0 is never."""

    # Storing

    def commit(self) -> None:
        """Write what was folded, and the rows derived from it, in one batch."""
        self.store.commit()
        self._backlog.committed()

    def commit_if_due(self, now: Now) -> None:
        store = self.store
        full = store.touched >= COMMIT_TOUCHED or store.pending_bytes >= COMMIT_BYTES
        if full or (store.touched and now.mono_ms - self.committed_ms >= COMMIT_EVERY_MS):
            self.commit_at(now)

    def commit_at(self, now: Now) -> None:
        """As :meth:`commit`, and note when."""
        self.commit()
        self.committed_ms = now.mono_ms

    # Folding

    def fold(self, record: Record, now: Now, out: Outputs) -> None:
        """Fold a record of this partition and react to each of its lines."""
        claimed: int | None = None
        for folded in self.store.fold(record):
            if self.role == "leading":
                self._react(folded, now, out)
                if folded.also is not None:
                    self._react(folded.also, now, out)
            if type(folded.event) is ev.LeaderAnnounced:
                claimed = self._announcement(folded.event, folded, claimed, out)
        # Only now: taking over commits, and what is committed must hold the rows of every line of the record.
        if claimed is not None:
            self._take_over(claimed, now, out)

    def _announcement(
        self, event: ev.LeaderAnnounced, folded: Folded, claimed: int | None, out: Outputs
    ) -> int | None:
        """The epoch to lead with once the whole record is folded, if this line leaves one."""
        mine = event.incarnation == self._incarnation
        if folded.outcome != "applied":
            if mine and self.role == "announced":
                self.role = "following"
            return claimed
        if self.role == "leading":
            self._step_down(out)
        self.role = "following"
        return ordinal(self._generation, folded.position) if mine else None

    @property
    def may_be_led(self) -> bool:
        """Whether it is folded to where the log ended at the start, and is no copy that is not sealed yet."""
        state = self.store.state
        return self.caught_up and state.generation == self._generation and not state.copying

    def announce(self, now: Now, out: Outputs) -> None:
        """Claim the partition. It leads once the claim is folded and accepted."""
        self.announced_ms = now.mono_ms
        if self.role == "following":
            self.role = "announced"
        out.lines[self.number].append(self._lines.announced(self.store.state.epoch, now))

    def _step_down(self, out: Outputs) -> None:
        out.notices.append(f"partition {self.number}: another leads, stepping down")
        self.role = "following"
        self._leases.release()
        self._proposals.take_all()
        self._reset()

    def _take_over(self, epoch: int, now: Now, out: Outputs) -> None:
        """Find again all that the partition's leader owes. Every running lease is granted anew in full."""
        self.role, self.epoch, self._lines.epoch = "leading", epoch, epoch
        self.commit()
        self._reset()
        self._backlog.load()
        for key in self._index.keys(ACTIVE):
            job = self.store.job(key)
            if job is not None and job.state == "active":
                self._leases.grant(key, job, self._fleet.session(job.worker, job.via), now.mono_ms)
                if job.concurrency_key:
                    self._backlog.turns.take(job)
        self._owed = dict.fromkeys(self._index.keys(DEAD), 0)
        self._forwarder.load(self.store.committed_misrouted())
        out.quarantine.extend(QuarantineNote(self.number, *note) for note in self._index.not_noted())
        out.notices.append(
            f"partition {self.number}: leading with epoch {unpack(self.number, epoch)},"
            f" {sum(self.ready.values())} jobs ready, {len(self._leases)} leased"
        )

    # Reacting as the leader

    def _react(self, folded: Folded, now: Now, out: Outputs) -> None:
        event, before, after = folded.event, folded.before, folded.after
        if type(event) is ev.Forwarded:
            # A deposed leader's is refused by the fold: the line still waits to be struck off.
            if folded.outcome in ("applied", "duplicate"):
                self._forwarder.struck_off(event.line_position)
        elif folded.outcome == "applied":
            if type(event) is ev.Leased and after is not None:
                self._granted(folded.key, after, now, folded.time_ms, out)
                return
            if before is not None and before.state == "active":
                self._held(folded, before, after, now, out)
            elif before is not None and before.concurrency_key and (after is None or after.state != "ready"):
                self._backlog.turns.gone(before)
            if after is not None:
                if before is None or before.state != after.state:
                    self._moved(folded.key, after)
                elif after.state in WAITING:
                    self._waits_on(folded.key, before, after)
        elif type(event) is ev.Leased:
            self._lease_refused(event)
        elif folded.outcome == "misrouted":
            self._forwarder.add(folded.position, folded.line)
        elif folded.outcome == "quarantined":
            out.quarantine.append(QuarantineNote(self.number, *quarantine_note(folded)))

    def _moved(self, key: str, job: Job) -> None:
        """A job has come into another state: remember what has to happen next."""
        if job.state == "ready":
            self._backlog.push(key, job)
        elif job.state == "dead" and not job.dead_lettered:
            self._owed[key] = 0
        self._timers.add(key, job)

    def _waits_on(self, key: str, before: Job, after: Job) -> None:
        """A waiting job was changed: it may wait in another lane now, or for another time."""
        if after.state == "ready" and lane_of(before) != lane_of(after):
            self._backlog.push(key, after)
            if after.concurrency_key:
                self._backlog.turns.gone(before)
        self._timers.add(key, after)

    def _held(self, folded: Folded, before: Job, after: Job | None, now: Now, out: Outputs) -> None:
        """A line about a job that was running."""
        if after is not None and after.state == "active":
            lease = self._leases.get(folded.key)
            if after.cancel and not before.cancel and lease is not None:
                if self._courier.withdraw(after, lease.session, out):
                    self._cancel_unheld(after, lease, now, out)
                else:
                    lease.cancel_ms = now.mono_ms + CANCEL_GRACE_MS
                    self._courier.cancel(after, lease.session, out)
            return
        lease = self._leases.end(folded.key)
        if before.concurrency_key:
            self._backlog.turns.let_go(before, waits=after is not None and after.state == "ready")
        event = folded.event
        if lease is None:
            return
        if type(event) is ev.Returned and event.reason in NO_MORE:
            lease.session.close_surplus()
        elif type(event) is ev.LeaseExpired or type(event) is ev.Cancelled:
            reason = "timeout" if type(event) is ev.LeaseExpired and event.reason == "timeout" else "expired"
            self._courier.lease_gone(
                lease.session, before.incarnation, before.id, before.tenant, before.lease, reason, out
            )

    def _granted(self, key: str, job: Job, now: Now, time_ms: int, out: Outputs) -> None:
        self._proposals.take(key)
        session = self._fleet.session(job.worker, job.via)
        self._leases.grant(key, job, session, now.mono_ms)
        # Another job may have had the turn meanwhile, if this line was given up and came all the same.
        out_of_turn = bool(job.concurrency_key) and not self._backlog.turns.take(job)
        if session.leaving or out_of_turn:
            self.supersede([key], now, out)
        else:
            self._courier.deliver(job, session, time_ms, out)

    def _cancel_unheld(self, job: Job, lease: Lease, now: Now, out: Outputs) -> None:
        """A job is to be stopped that nobody was given: no need to wait for a holder's answer."""
        if now.mono_ms >= lease.ending_ms:
            lease.cancel_ms, lease.ending_ms = now.mono_ms, now.mono_ms + AGAIN_MS
            out.lines[self.number].append(self._lines.cancelled(job, now))

    def _lease_refused(self, event: ev.Leased) -> None:
        """One's own proposal came too late, for the job has changed: should it be ready again, it waits again."""
        key = job_key(event.tenant, event.job)
        proposal = self._proposals.get(key)
        if proposal is None or proposal.lease != event.id:
            return
        self._give_up(key)

    def _give_up(self, key: str) -> None:
        """A proposal came to nothing: if its job is still ready, it waits again."""
        self._proposals.take(key)
        job = self.store.job(key)
        if job is None:
            return
        waits = job.state == "ready"
        if waits:
            self._backlog.put_back(key, job)
        if job.concurrency_key and job.state != "active":
            self._backlog.turns.let_go(job, waits=waits)

    # Leasing

    @property
    def ready(self) -> dict[Lane, int]:
        """Ready jobs by lane."""
        return self._index.ready

    def call(self) -> None:
        """Jobs that were passed over for another of their concurrency key wait for a worker again, if they may run."""
        self._backlog.call()

    def waiting(self, lanes: Iterable[Lane]) -> int:
        """Ready jobs of these lanes that are not proposed to anybody."""
        proposed = self._proposals.in_lane
        return sum(self.ready.get(lane, 0) - proposed[lane] for lane in lanes)

    @property
    def owes(self) -> bool:
        """Whether a dead job's record is yet to be written, or a misrouted line yet to be forwarded and struck off."""
        return bool(self._owed) or bool(self._forwarder)

    @property
    def leases(self) -> int:
        """How many are running."""
        return len(self._leases)

    def lanes(self, rank: int) -> list[Lane]:
        """Lanes of one urgency that have jobs to give."""
        return self._backlog.lanes(rank)

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return self._backlog.empty

    def lease(self, lanes: list[Lane], session: Session, limit: int, now: Now, out: Outputs) -> int:
        """Propose leases of up to ``limit`` jobs of these lanes to a session; how many were proposed."""
        taken = self._backlog.take(lanes, limit, self._proposals.__contains__)
        if not taken:
            return 0
        lines, leases = out.lines[self.number], self._lines.leases(session, now)
        for key, lane, job in taken:
            lease, line = leases.leased(job)
            lines.append(line)
            self._proposals.add(key, lane, lease, session, now.mono_ms)
        return len(taken)

    # Hearing from holders

    def hear(self, session: Session, holding: Iterable[Holding], now: Now, out: Outputs) -> set[str]:
        """Renew the leases that a full heartbeat names; keys of those that are its."""
        named: set[str] = set()
        for held in holding:
            key = held.job_key
            lease = self._leases.get(key)
            if lease is None or lease.lease != held.lease or lease.session.worker != session.worker:
                if self._not_folded_yet(key, held.lease):
                    continue
                tenant, _, job_id = key.partition("/")
                self._courier.lease_gone(
                    session, session.incarnation, job_id, tenant, held.lease, "ended", out
                )
                continue
            self._leases.renew(lease, key, session, held.run_ms, now.mono_ms)
            named.add(key)
            if lease.cancel_ms:
                job = self.store.job(key)
                if job is not None:
                    self._courier.cancel(job, lease.session, out)
        return named

    def is_gone(self, held: Holding) -> bool:
        """Whether a lease that somebody believes in is known to be over."""
        lease = self._leases.get(held.job_key)
        in_force = lease is not None and lease.lease == held.lease
        return not in_force and not self._not_folded_yet(held.job_key, held.lease)

    def _not_folded_yet(self, key: str, lease: str) -> bool:
        """Whether a lease may be in force without this leader's knowing: it is behind the log and must not judge.

        A successor granted it, or a successor delivered what this one had proposed.
        """
        granted = lease_order(lease)
        if granted[0] != self.epoch:
            return granted[0] > self.epoch
        job = self.store.job(key)
        return job is not None and granted > lease_order(job.lease)

    def not_named(self, key: str, session: Session, now: Now, out: Outputs) -> None:
        """The holder's full heartbeat left out a lease: after two of these it is delivered again.

        Not so if its job is to be stopped: what its holder never named it never got, and it ends.
        """
        if session.leaving:
            # It was leased just before this was known, and nobody will take it: no need to wait until it runs out.
            self.supersede([key], now, out)
        elif self._leases.missed(key):
            job, lease = self.store.job(key), self._leases.get(key)
            if job is None or lease is None or job.state != "active":
                return
            if not job.cancel:
                self._courier.deliver(job, session, now.log_ms, out)
            elif not lease.named:
                self._cancel_unheld(job, lease, now, out)

    def lease_of(self, key: str) -> Lease | None:
        """The running lease of a job."""
        return self._leases.get(key)

    def supersede(self, keys: list[str], now: Now, out: Outputs) -> None:
        """The holder was restarted: end these leases at once."""
        for key in keys:
            lease = self._leases.get(key)
            if lease is not None and now.mono_ms >= lease.ending_ms:
                lease.ending_ms = now.mono_ms + AGAIN_MS
                out.lines[self.number].append(self._lines.lease_expired(key, lease, "superseded", now))

    # Time

    def next_timer_ms(self) -> int | None:
        """Log time at which a timer fires."""
        return self._timers.next_ms() if self.role == "leading" else None

    def tick(self, now: Now, out: Outputs) -> None:
        """Fire timers; write what is owed."""
        if self.role != "leading":
            return
        for kind, job in self._timers.fire(now.log_ms, self.store.job):
            line = self._lines.due(job, now) if kind == DUE else self._lines.expired(job, now)
            out.lines[self.number].append(line)
        for key, written_ms in list(self._owed.items()):
            job = self.store.job(key)
            if job is None or job.state != "dead" or job.dead_lettered:
                del self._owed[key]
            elif not written_ms or now.mono_ms - written_ms >= AGAIN_MS:
                self._owed[key] = max(1, now.mono_ms)
                out.lines[self.number].append(self._lines.dead_lettered(job, now))
        self._forward(now, out)

    def sweep(self, now: Now, hearing: bool, out: Outputs) -> None:
        """Now and then: end overdue leases, unless heartbeats could not be heard; give up lost proposals."""
        if self.role != "leading":
            return
        if hearing:
            for key, lease, reason in self._leases.overdue(now.mono_ms):
                if reason == "silent":
                    lease.session.silence()
                if reason != "cancel":
                    out.lines[self.number].append(self._lines.lease_expired(key, lease, reason, now))
                elif (job := self.store.job(key)) is not None:
                    out.lines[self.number].append(self._lines.cancelled(job, now))
        for key in self._proposals.lost(now.mono_ms):
            self._give_up(key)

    def forget(self, job: Job, now: Now, out: Outputs) -> None:
        """Propose that an ended job leave the state."""
        out.lines[self.number].append(self._lines.forgotten(job, now))

    def activate_rules(self, version: int, now: Now, out: Outputs) -> None:
        """Propose that the partition follow these rules from here on."""
        out.lines[self.number].append(self._lines.rules_activated(version, now))

    def noted(self, position: int) -> None:
        """The refused line at a packed position stands on the quarantine topic: it is owed no longer."""
        self._index.noted(position)

    def grant_anew(self, now: Now) -> None:
        """Heartbeats can be heard again after a time in which they could not."""
        self._leases.grant_anew(now.mono_ms)

    # Forwarding

    def forwarded(self, forward: Forward, now: Now, out: Outputs) -> None:
        """The lines of ``forward`` stand in their partition: strike them off here."""
        self._forwarder.landed(forward.batch)
        self._forward(now, out)

    def _forward(self, now: Now, out: Outputs) -> None:
        for position, target in self._forwarder.to_strike_off(now.mono_ms):
            out.lines[self.number].append(self._lines.forwarded(position, target, now))
        out.forwards.extend(self._forwarder.next())
