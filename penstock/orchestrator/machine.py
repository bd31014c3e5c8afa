"""The orchestrator without its surroundings: everything it decides, and nothing that it waits for.

What the machine owns: the fold of each partition, who leads, which worker gets which job, leases, timers, what is owed.
What the shell (:mod:`penstock.orchestrator.service`) owns: the log, the clocks, the disk's folder, retrying appends. A
simulator drives the same machine through any schedule.

::

    records of the jobs topic ─┐                        ┌─▶ lines for the jobs topic
    reports of workers ────────┤  step(inputs, now)     ├─▶ deliveries, signals, beats, echoes
    beats of others ───────────┘                        └─▶ forwards, quarantine notes, notices

A round trip: an ``Enqueued`` is folded and enters the backlog; with credit, ``Leased`` is proposed; when it comes back,
accepted, the job is delivered to a worker that was granted it before it ever saw it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from penstock.core.rules import RULES, RulesTable, newest
from penstock.log.port import Record
from penstock.orchestrator.dispatcher import Dispatcher
from penstock.orchestrator.fleet import Fleet, Session
from penstock.orchestrator.leadership import BEAT_EVERY_MS, Peers
from penstock.orchestrator.outputs import Forward, Now, Outputs
from penstock.orchestrator.partition import PartitionMachine
from penstock.orchestrator.retention import KEEP_FOR_EVER, Forgetting, Retention
from penstock.orchestrator.upgrade import RulesUpgrade
from penstock.schemas.messages import Acknowledged, Beat, Echo, Heartbeat, LeaseGone, Report, Serving, Signal
from penstock.state.pacing import MOST_ROWS, QUIET_MS, quiet_ms
from penstock.state.partition_store import PartitionStore

SWEEP_EVERY_MS = 250
ECHO_EVERY_MS = 500
DEAF_AFTER_MS = 2_000
"""Without its own echo for so long, an orchestrator does not know whether workers are silent or itself deaf."""

STALL_MS = 1_000
"""A step is due four times as often: after a longer gap, this process was stopped, and heard nobody meanwhile."""

BEAT_AT_ONCE_MS = 20
UNHANDLED_EVERY_MS = 60_000


class Inputs(Struct):
    """What has arrived since the last step."""

    records: Sequence[Record] = ()
    """Of the jobs topic, in order by partition."""
    reports: Sequence[tuple[int, Report]] = ()
    """Of the workers topic, each with its partition."""
    signals: Sequence[Signal] = ()
    """Broadcast ones."""
    forwarded: Sequence[Forward] = ()
    """Forwards that are acknowledged by the log."""


class OrchestratorMachine:
    """Decides for every partition it is given. Not thread-safe; use from one loop.

    Args:
        name: of the orchestrator, for people.
        incarnation: of this process, unique.
        stores: the durable fold of each partition, made with the families of
            :data:`penstock.orchestrator.rows.FAMILIES`.
        now: when it begins; monotonic time in every later step is at least this.
        generation: of the log; the high bits of every fence.
        worker_partitions: how many the workers topic has.
        settle_ms: how long to listen for others before claiming anything.
        retention: when jobs that have ended are forgotten.
        rules: those that this program has.
        made_with: version of the rules that the namespace was made with.
    """

    def __init__(
        self,
        name: str,
        incarnation: str,
        stores: Sequence[PartitionStore],
        now: Now,
        *,
        generation: int = 0,
        worker_partitions: int = 1,
        settle_ms: int = 0,
        retention: Retention = KEEP_FOR_EVER,
        rules: RulesTable = RULES,
        made_with: int = 1,
    ) -> None:
        self.name, self.incarnation = name, incarnation
        self.fleet = Fleet(incarnation)
        self.peers = Peers(incarnation)
        self._dispatcher = Dispatcher(self.fleet)
        self.forgetting = Forgetting(retention)
        self.upgrade = RulesUpgrade(newest(rules), now.mono_ms, made_with)
        self.partitions = {
            store.identity.partition: PartitionMachine(store, self.fleet, name, incarnation, generation)
            for store in stores
        }
        self._settled_ms = now.mono_ms + settle_ms
        self._echoes = dict.fromkeys(range(worker_partitions), now.mono_ms)
        self._hearing = True
        self._swept_ms = self._echoed_ms = self._beat_ms = now.mono_ms - 10**6
        self._stepped_ms = now.mono_ms
        self._folded, self._folded_ms = False, now.mono_ms
        """Whether anything was folded since readers were last thought of, and when that was last so."""
        self._backlog_told: frozenset[str] = frozenset()
        self._unhandled_told_ms: dict[str, int] = {}

    def caught_up(self, partition: int) -> None:
        """The shell has read the partition to the end it had at the start: it may be led."""
        self.partitions[partition].caught_up = True

    def step(self, inputs: Inputs, now: Now) -> Outputs:
        """Take in what has arrived, decide, and say what is to be done."""
        out = Outputs()
        if now.mono_ms - self._stepped_ms > STALL_MS:
            self.peers.unheard(now.mono_ms)
            self.upgrade.unheard(now.mono_ms)
        self._stepped_ms = now.mono_ms
        self._folded |= bool(inputs.records)
        for record in inputs.records:
            self.partitions[record.partition].fold(record, now, out)
        for partition, report in inputs.reports:
            self._hear(partition, report, now, out)
        for signal in inputs.signals:
            if type(signal) is Beat:
                self.peers.hear(signal, now.mono_ms)
            elif type(signal) is Serving:
                self.upgrade.hear(signal, now.mono_ms)
        for forward in inputs.forwarded:
            machine = self.partitions[forward.source]
            if machine.role == "leading":
                machine.forwarded(forward, now, out)
        # Before anything else is written by one that has just begun to lead.
        self.upgrade.turn(self.leading, self.peers.live(now.mono_ms), now, out)
        self._lead(now, out)
        for machine in self.partitions.values():
            machine.tick(now, out)
        self._dispatcher.dispatch(self.leading, now, out)
        self.forgetting.turn(self.leading, now, out)
        self._sweep(now, out)
        self._beat(now, out)
        for machine in self.partitions.values():
            machine.commit_if_due(now)
        return out

    def commit_for_readers(self, now: Now, wait_ms: int) -> int:
        """To be called after each step where others read the stores: let them see what was folded.

        At once where somebody waits or much has changed. Else one partition at a time, so that the step stays short:
        the one that was committed longest ago, if that is ``wait_ms`` or more, or if nothing comes any more. Returns
        how many were committed.
        """
        if self._folded:
            self._folded, self._folded_ms = False, now.mono_ms
        behind = [machine for machine in self.partitions.values() if machine.store.behind]
        due = [machine for machine in behind if machine.store.awaited or machine.store.touched >= MOST_ROWS]
        if not due and behind:
            oldest = min(behind, key=lambda machine: machine.committed_ms)
            if now.mono_ms >= self._readers_due_ms(oldest, wait_ms):
                due.append(oldest)
        for machine in due:
            machine.commit_at(now)
        return len(due)

    def _readers_due_ms(self, machine: PartitionMachine, wait_ms: int) -> int:
        # While jobs are running more will come, even where the machine makes this process wait for it.
        quiet = quiet_ms(wait_ms) if machine.leases else QUIET_MS
        return min(machine.committed_ms + wait_ms, self._folded_ms + quiet)

    def next_wakeup_ms(self, now: Now, *, readers_wait_ms: int | None = None) -> int:
        """Milliseconds after which a step is due even if nothing arrives, or a commit for readers if there are any."""
        wait = (
            min(
                self._beat_ms + BEAT_EVERY_MS,
                self._echoed_ms + ECHO_EVERY_MS,
                self._swept_ms + SWEEP_EVERY_MS,
            )
            - now.mono_ms
        )
        turn_ms = self.forgetting.next_turn_ms()
        if turn_ms is not None:
            wait = min(wait, turn_ms - now.mono_ms)
        for machine in self.partitions.values():
            if readers_wait_ms is not None and machine.store.behind:
                wait = min(wait, self._readers_due_ms(machine, readers_wait_ms) - now.mono_ms)
            timer_ms = machine.next_timer_ms()
            if timer_ms is not None:
                wait = min(wait, timer_ms - now.log_ms)
        return max(0, wait)

    @property
    def leading(self) -> list[PartitionMachine]:
        return [machine for machine in self.partitions.values() if machine.role == "leading"]

    def leave(self, now: Now) -> Outputs:
        """Say goodbye, so that others take over at once."""
        out = Outputs()
        out.beats.append(
            Beat(orchestrator=self.name, incarnation=self.incarnation, leaving=True, at=now.log_ms)
        )
        for machine in self.partitions.values():
            machine.commit()
        return out

    # Leadership

    def _lead(self, now: Now, out: Outputs) -> None:
        if now.mono_ms < self._settled_ms or self.peers.deaf(now.mono_ms, since_ms=self._settled_ms):
            return
        live = self.peers.live(now.mono_ms)
        for number, machine in self.partitions.items():
            if machine.role == "leading" or not machine.may_be_led:
                continue
            if now.mono_ms - machine.announced_ms < self.peers.announce_again_ms(number):
                continue
            if self.peers.nominated(number, live):
                machine.announce(now, out)

    # Workers

    def _hear(self, partition: int, report: Report, now: Now, out: Outputs) -> None:
        if isinstance(report, Echo):
            if report.incarnation == self.incarnation:
                self._echoes[partition] = now.mono_ms
                self.forgetting.clock_known = True
            return
        session = self.fleet.hear(report, now.mono_ms)
        if session is None:
            self._tell_late(report, out)
            return
        if report.incarnation:
            self._supersede(session, now, out)
        if not report.partial:
            self._hear_leases(session, report, now, out)
        out.signals[session.route].append(
            Acknowledged(
                worker=session.worker,
                incarnation=session.incarnation,
                via=session.via,
                orchestrator=self.name,
                orchestrator_incarnation=self.incarnation,
                seq=session.seq,
                outstanding=session.outstanding,
                limited=session.outstanding_limited(),
            )
        )

    def _tell_late(self, beat: Heartbeat, out: Outputs) -> None:
        """A worker that was replaced while it slept still thinks that it holds something."""
        if beat.incarnation >= self.fleet.newest(beat.worker):
            return
        for held in beat.holding:
            machine = self.partitions.get(held.partition)
            # While its end is not folded the lease is in force; the heartbeat after that is early enough.
            if machine is not None and machine.role == "leading" and machine.is_gone(held):
                tenant, _, job_id = held.job_key.partition("/")
                out.signals[beat.route].append(
                    LeaseGone(
                        worker=beat.worker,
                        incarnation=beat.incarnation,
                        via=beat.via,
                        job=job_id,
                        tenant=tenant,
                        lease=held.lease,
                        reason="expired",
                    )
                )

    def _hear_leases(self, session: Session, beat: Heartbeat, now: Now, out: Outputs) -> None:
        by_partition: dict[int, list[int]] = {}
        for index, held in enumerate(beat.holding):
            by_partition.setdefault(held.partition, []).append(index)
        named: set[tuple[int, str]] = set()
        for number, indexes in by_partition.items():
            machine = self.partitions.get(number)
            if machine is not None and machine.role == "leading":
                keys = machine.hear(session, [beat.holding[index] for index in indexes], now, out)
                named.update((number, key) for key in keys)
        for lease in list(session.leases):
            if lease not in named:
                self.partitions[lease[0]].not_named(lease[1], session, now, out)

    def _supersede(self, session: Session, now: Now, out: Outputs) -> None:
        """End the leases of the worker's older incarnations."""
        for other in self.fleet.of_worker(session.worker):
            by_partition: dict[int, list[str]] = {}
            for number, key in other.leases:
                lease = self.partitions[number].lease_of(key)
                if lease is not None and lease.incarnation < session.incarnation:
                    by_partition.setdefault(number, []).append(key)
            for number, keys in by_partition.items():
                self.partitions[number].supersede(keys, now, out)

    # Now and then

    def _sweep(self, now: Now, out: Outputs) -> None:
        if now.mono_ms - self._echoed_ms >= ECHO_EVERY_MS:
            self._echoed_ms = now.mono_ms
            out.echo = Echo(orchestrator=self.name, incarnation=self.incarnation, at=now.wall_ms)
        if now.mono_ms - self._swept_ms < SWEEP_EVERY_MS:
            return
        stalled = now.mono_ms - self._swept_ms > DEAF_AFTER_MS and self._swept_ms > 0
        self._swept_ms = now.mono_ms
        hearing = not stalled and now.mono_ms - min(self._echoes.values()) <= DEAF_AFTER_MS
        if hearing and not self._hearing:
            for machine in self.leading:
                machine.grant_anew(now)
        self._hearing = hearing
        for machine in self.partitions.values():
            machine.sweep(now, hearing, out)
        self.fleet.rest(now.mono_ms)
        self._tell_unhandled(now, out)

    def backlog(self) -> Counter[str]:
        """Ready jobs of the partitions led, by ``pool/type``."""
        found: Counter[str] = Counter()
        for machine in self.leading:
            for lane, jobs in machine.ready.items():
                found[f"{lane.pool}/{lane.job_type}"] += jobs
        return found

    def _beat(self, now: Now, out: Outputs) -> None:
        due_ms = now.mono_ms - self._beat_ms
        if due_ms < BEAT_AT_ONCE_MS:
            return
        backlog = self.backlog()
        kinds = frozenset(backlog)
        if due_ms < BEAT_EVERY_MS and kinds <= self._backlog_told:
            return
        self._beat_ms = now.mono_ms
        self._backlog_told = kinds
        out.beats.append(
            Beat(
                orchestrator=self.name,
                incarnation=self.incarnation,
                leads={machine.number: machine.epoch for machine in self.leading},
                caught_up=tuple(number for number, machine in self.partitions.items() if machine.may_be_led),
                backlog=dict(backlog),
                at=now.log_ms,
                rules=self.upgrade.supported,
                active_rules={machine.number: machine.store.state.rules for machine in self.leading},
            )
        )

    def unhandled(self) -> dict[str, int]:
        """Ready jobs by ``pool/type`` that no worker heard of lately handles."""
        handled = {
            f"{session.pool}/{kind}"
            for session in self.fleet
            if not session.leaving
            for kind in session.types
        }
        return {kind: jobs for kind, jobs in self.backlog().items() if kind not in handled}

    def _tell_unhandled(self, now: Now, out: Outputs) -> None:
        for kind, jobs in self.unhandled().items():
            told_ms = self._unhandled_told_ms.get(kind)
            if told_ms is None:
                self._unhandled_told_ms[kind] = now.mono_ms - UNHANDLED_EVERY_MS + 5_000
            elif now.mono_ms - told_ms >= UNHANDLED_EVERY_MS:
                self._unhandled_told_ms[kind] = now.mono_ms
                out.notices.append(f"{jobs} jobs of {kind} wait: no worker handles that pool and type")
