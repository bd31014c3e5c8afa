"""The simulator bites: each of these mistakes, made on purpose, is found within a few seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from penstock.core import effects, job, unique, verbs
from penstock.core import partition as core_partition
from penstock.core.job_state import WAITING
from penstock.core.partition import Folded, PartitionFold
from penstock.core.rules import RULES
from penstock.orchestrator import partition
from penstock.orchestrator.backlog import Backlog
from penstock.orchestrator.partition import PartitionMachine
from penstock.orchestrator.rows import Index
from penstock.orchestrator.timers import Timers
from penstock.orchestrator.turns import Turns
from penstock.schemas import events as ev
from tests.sim import run
from tests.sim.run import simulate
from tests.sim.weather import Weather

# Mistakes are made inside of modules.

SEEDS = range(5_000, 5_100)
STORM = Weather(
    storm_ms=12_000, orchestrators=3, workers=3, jobs=30, append_fault=0.15, hint_lost=0.1, hint_doubled=0.1,
    hint_late=0.15, crash_in_outputs=0.002, orchestrator_trouble_ms=2_000, worker_trouble_ms=3_000, odd_lines=0.6,
    verbs=0.6, clock_steps=0.05, foreign_stamps=0.1, give_up=0.2,
)  # fmt: skip

VERBS = Weather(storm_ms=6_000, orchestrators=1, workers=3, jobs=80, verbs=1.0, append_fault=0.1)
"""Whoever wants a job cancels it and wants it again, with luck just while it is being leased; and nobody takes over."""


def accept_stale_leases(patch: pytest.MonkeyPatch) -> None:
    for kind in (ev.Succeeded, ev.Failed, ev.Returned):
        patch.setitem(job._RULES, kind, job._RULES[kind]._replace(refuses=lambda *_: None))


def compare_with_nothing(patch: pytest.MonkeyPatch) -> None:
    for kind in (ev.Leased, ev.Due, ev.Expired):
        patch.setitem(job._RULES, kind, job._RULES[kind]._replace(refuses=lambda *_: None))


def forget_verbs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verbs, "remember", lambda job, event, outcome: effects.copy_of(job))


def believe_any_leader(patch: pytest.MonkeyPatch) -> None:
    believed = {ev.Leased, ev.Due, ev.Expired, ev.LeaseExpired, ev.DeadLettered, ev.Cancelled}
    for rules in RULES.values():
        patch.setattr(rules, "leader_types", rules.leader_types - believed)


def ask_the_clock_in_the_fold(patch: pytest.MonkeyPatch) -> None:
    fold = PartitionFold.fold

    def at_once(
        self: PartitionFold, offset: int, time_ms: int, append_time: bool, value: bytes, *copied: Any
    ) -> Any:
        return fold(self, offset, time.monotonic_ns() // 1_000, True, value, *copied)

    patch.setattr(PartitionFold, "fold", at_once)


def lead_before_the_epoch_is_folded(patch: pytest.MonkeyPatch) -> None:
    def at_once(self: PartitionMachine, now: Any, out: Any) -> None:
        self._take_over(self.store.state.epoch, now, out)

    patch.setattr(PartitionMachine, "announce", at_once)
    # Nothing ever gets done: no need to wait long for it.
    patch.setattr(run, "CLEAR_SKY_MS", 1_000)
    patch.setattr(run, "LATEST_MS", 1_000)


def deliver_before_the_lease_is_folded(patch: pytest.MonkeyPatch) -> None:
    leased = PartitionMachine.lease

    def at_once(self: PartitionMachine, lanes: Any, session: Any, limit: int, now: Any, out: Any) -> int:
        known = {key for key, _ in self._proposals}
        given = leased(self, lanes, session, limit, now, out)
        for key in {key for key, _ in self._proposals} - known:
            waiting = self.store.job(key)
            assert waiting is not None
            granted = effects.copy_of(waiting)
            granted.lease, granted.incarnation = self._proposals.get(key).lease, session.incarnation
            self._courier.deliver(granted, session, 0, out)
        return given

    patch.setattr(PartitionMachine, "lease", at_once)


def owe_no_dead_letters_after_takeover(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(partition, "DEAD", b"\xfe")


def drop_refused_proposals(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run, "CLEAR_SKY_MS", 60_000)
    patch.setattr(Backlog, "put_back", lambda self, key, job: None)


def load_no_timers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run, "CLEAR_SKY_MS", 60_000)
    patch.setattr(Timers, "_extend", lambda self, now_ms: None)


def judge_a_successors_leases(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PartitionMachine, "_not_folded_yet", lambda self, key, lease: False)


def take_over_within_a_record(patch: pytest.MonkeyPatch) -> None:
    """Rows of some lines miss the batch that holds their offset."""
    take = Index.take

    def until_the_claim(self: Index, folded: Sequence[Folded]) -> None:
        kinds = [type(line.event) for line in folded]
        take(self, folded[: kinds.index(ev.LeaderAnnounced)] if ev.LeaderAnnounced in kinds else folded)

    patch.setattr(Index, "take", until_the_claim)


def overlook_what_was_changed(patch: pytest.MonkeyPatch) -> None:
    """A rescheduled job waits for a timer that nobody has, and one that was moved in a lane that it left."""
    patch.setattr(run, "CLEAR_SKY_MS", 60_000)
    patch.setattr(PartitionMachine, "_waits_on", lambda *_: None)


def delete_what_runs(patch: pytest.MonkeyPatch) -> None:
    rule = job._RULES[ev.Deleted]
    patch.setitem(job._RULES, ev.Deleted, rule._replace(row={**rule.row, "active": frozenset({"deleted"})}))


def let_two_hold_a_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(unique, "holds", lambda job, now_ms: False)


def replace_what_runs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(unique, "WAITING", WAITING | {"active"})


def tell_nobody_what_was_replaced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(core_partition, "_as_another_has_it", lambda line, other: None)


def let_two_run_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Turns, "take", lambda *_: True)


def call_nobody_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Turns, "called", lambda _: [])


def forget_whose_turn_it_is(patch: pytest.MonkeyPatch) -> None:
    """A new leader does not look whether one of them runs."""
    take = Turns.take
    patch.setattr(Turns, "take", lambda self, job: job.state == "active" or take(self, job))


MISTAKES: list[Callable[[pytest.MonkeyPatch], None]] = [
    accept_stale_leases,
    compare_with_nothing,
    forget_verbs,
    believe_any_leader,
    ask_the_clock_in_the_fold,
    lead_before_the_epoch_is_folded,
    deliver_before_the_lease_is_folded,
    owe_no_dead_letters_after_takeover,
    drop_refused_proposals,
    load_no_timers,
    judge_a_successors_leases,
    take_over_within_a_record,
    overlook_what_was_changed,
    delete_what_runs,
    let_two_hold_a_key,
    replace_what_runs,
    tell_nobody_what_was_replaced,
    let_two_run_at_once,
    call_nobody_back,
    forget_whose_turn_it_is,
]


OTHER_WEATHER = {drop_refused_proposals: VERBS}


def finds_something(seed: int, weather: Weather = STORM) -> bool:
    try:
        simulate(seed, weather)
    except (AssertionError, KeyError):
        return True
    return False


def test_without_a_mistake_nothing_is_found() -> None:
    for seed in SEEDS[:10]:
        simulate(seed, STORM)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_found(
    mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    weather = OTHER_WEATHER.get(mistake, STORM)
    assert any(finds_something(seed, weather) for seed in SEEDS)
