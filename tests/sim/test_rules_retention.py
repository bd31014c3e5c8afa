"""The rules of forgetting: whom a leader forgets, when, and that nothing old strikes afterwards."""
# ruff: noqa: N802  # tests bear the names of the rules

from __future__ import annotations

from typing import Any

import pytest

from penstock.core.job import MAX_VERB_AGE_MS, State
from penstock.log.store_memory import MemoryStore
from penstock.orchestrator import retention
from penstock.orchestrator.retention import MIN_AGE_MS, Forgetting, Retention
from penstock.orchestrator.rows import FAMILIES
from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line
from penstock.schemas.ids import partition_of
from penstock.schemas.messages import Echo
from penstock.state.partition_store import BODIES, FOLD, META, PartitionStore
from tests.orchestrator.desk import START_MS, Desk, lines, memory_store

HOUR_MS = 3_600_000


def forgetful(desk: Desk, name: str = "o", **ages_ms: int) -> None:
    """An orchestrator that leads, with these ages by state."""
    machine = desk.leader(name)
    machine.forgetting = Forgetting(Retention(dict(ages_ms.items())))
    desk.settle(name, Echo(orchestrator=name, incarnation=f"inc-{name}", at=0))


def cancel(desk: Desk, job: str) -> str:
    not_after = desk.now().log_ms + 60_000
    event = ev.CancelRequested(id=f"cancel.{job}", job=job, of=f"enq.{job}", not_after=not_after)
    return desk.write(partition_of(job, desk.partitions), event)[0]


def settle_for(desk: Desk, duration_ms: int, name: str = "o") -> None:
    """Let time pass in the steps of retention's turns."""
    for _ in range(0, duration_ms, retention.TURN_EVERY_MS):
        desk.time_ms += retention.TURN_EVERY_MS
        desk.settle(name)


def is_known(desk: Desk, job: str) -> bool:
    return desk.fold[partition_of(job, desk.partitions)].job(f"default/{job}") is not None


def forgotten(desk: Desk) -> list[tuple[str, str]]:
    return [(job, outcome) for kind, job, outcome in desk.outcomes if kind == "Forgotten"]


def run_to_the_end(desk: Desk, job: str) -> None:
    desk.enqueue(job)
    desk.settle("o", desk.heartbeat())
    assert desk.succeed(job) == "applied"
    desk.settle()


def test_only_what_has_ended_long_enough_ago_is_forgotten_each_state_at_its_own_age() -> None:
    desk = Desk()
    forgetful(desk, succeeded=HOUR_MS, cancelled=2 * HOUR_MS)
    run_to_the_end(desk, "done")
    desk.enqueue("stopped")
    cancel(desk, "stopped")
    desk.enqueue("waiting", job_type="nobody")
    desk.time_ms += HOUR_MS - 60_000
    settle_for(desk, 1_000)
    assert forgotten(desk) == []
    desk.time_ms += HOUR_MS // 5
    settle_for(desk, 1_000)
    assert forgotten(desk) == [("done", "applied")]
    desk.time_ms += HOUR_MS
    settle_for(desk, 1_000)
    assert forgotten(desk) == [("done", "applied"), ("stopped", "applied")]
    assert [is_known(desk, job) for job in ("done", "stopped", "waiting")] == [False, False, True]


def test_the_age_counts_by_the_log_s_time_and_not_by_this_machine_s_clock() -> None:
    desk = Desk()
    forgetful(desk, succeeded=HOUR_MS)
    run_to_the_end(desk, "j")
    desk.now = lambda: (lambda now: now._replace(wall_ms=now.wall_ms + 10 * HOUR_MS))(Desk.now(desk))
    settle_for(desk, 2_000)
    assert forgotten(desk) == []


def test_a_dead_job_keeps_its_record_before_it_goes() -> None:
    desk = Desk()
    forgetful(desk, dead=HOUR_MS)
    desk.enqueue("j", max_attempts=1)
    desk.settle("o", desk.heartbeat())
    lease = desk.job("j").lease
    error = ev.JobError(code="broken", message="it broke")
    desk.write(0, ev.Failed(id=f"{lease}.f", job="j", lease=lease, error=error, run_ms=1))
    desk.settle()
    desk.time_ms += 2 * HOUR_MS
    settle_for(desk, 1_000)
    kinds = [kind for kind, job, _ in desk.outcomes if job == "j"]
    assert kinds[-2:] == ["DeadLettered", "Forgotten"]


def test_nobody_is_forgotten_before_the_log_s_time_is_known() -> None:
    desk = Desk()
    forgetful(desk, succeeded=HOUR_MS)
    run_to_the_end(desk, "j")
    desk.machines["o"].forgetting.clock_known = False
    desk.time_ms += 2 * HOUR_MS
    settle_for(desk, 1_000)
    assert forgotten(desk) == []
    desk.settle("o", Echo(orchestrator="o", incarnation="inc-o", at=0))
    settle_for(desk, 1_000)
    assert forgotten(desk) == [("j", "applied")]


def test_nobody_is_forgotten_where_no_age_is_set() -> None:
    desk = Desk()
    forgetful(desk)
    run_to_the_end(desk, "j")
    desk.time_ms += 1_000 * HOUR_MS
    settle_for(desk, 1_000)
    assert forgotten(desk) == []


def test_V1_an_age_below_what_the_fold_allows_is_refused() -> None:
    with pytest.raises(ValueError, match="1199999 ms is less than"):
        Retention({"succeeded": MIN_AGE_MS - 1})
    with pytest.raises(ValueError, match="ready have not ended"):
        Retention({"ready": MIN_AGE_MS})


def test_V1_late_copies_of_every_line_of_a_forgotten_job_change_nothing() -> None:
    """Only its `Enqueued` would, once the job's age is over: that is how long an id is protected from being reused."""
    desk = Desk()
    forgetful(desk, succeeded=MIN_AGE_MS)
    run_to_the_end(desk, "j")
    enqueued, *later = [record.value for record in desk.records[0]][1:]
    not_after = desk.now().log_ms + MAX_VERB_AGE_MS
    verbs = [
        kind(id=f"late.{kind.__name__}", job="j", of="enq.j", not_after=not_after)
        for kind in (ev.CancelRequested, ev.RetryRequested)
    ]
    assert desk.write(0, enqueued) == ["duplicate"]
    desk.time_ms += MIN_AGE_MS - 1_000
    assert desk.write(0, enqueued) == ["duplicate"]
    desk.time_ms += HOUR_MS
    settle_for(desk, 1_000)
    assert not is_known(desk, "j")
    outcomes = [outcome for value in later for outcome in desk.write(0, value)]
    outcomes += desk.write(0, *verbs)
    assert len(outcomes) >= 4
    assert set(outcomes) == {"unknown_job"}
    assert not is_known(desk, "j")
    # A new life under the old id hears nothing of the old one's lines.
    assert desk.enqueue("j", payload=b"2") == "applied"
    assert {outcome for value in later for outcome in desk.write(0, value)} <= {"stale", "illegal"}
    assert desk.job("j").state == "ready"


def test_L3_what_a_leader_had_not_forgotten_its_successor_does() -> None:
    desk = Desk()
    forgetful(desk, succeeded=HOUR_MS)
    for number in range(5):
        run_to_the_end(desk, f"j{number}")
    desk.time_ms += 2 * HOUR_MS
    out = desk.step()
    proposed = [event.job for event in lines(out) if isinstance(event, ev.Forgotten)]
    assert len(proposed) == 5
    # It dies with its lines unwritten.
    desk.time_ms += 60_000
    forgetful(desk, "p", succeeded=HOUR_MS)
    settle_for(desk, 1_000, "p")
    assert sorted(forgotten(desk)) == [(f"j{number}", "applied") for number in range(5)]
    # The first one wakes, and writes them after all.
    desk.carry_out(out)
    assert {outcome for _, outcome in forgotten(desk)[5:]} == {"stale"}


def test_L3_lines_that_were_lost_are_written_again_in_the_next_round() -> None:
    desk = Desk()
    forgetful(desk, succeeded=HOUR_MS)
    run_to_the_end(desk, "j")
    desk.time_ms += 2 * HOUR_MS
    lost = desk.step()
    assert [type(event).__name__ for event in lines(lost)] == ["Forgotten"]
    settle_for(desk, retention.AGAIN_MS)
    assert forgotten(desk) == []
    desk.time_ms += HOUR_MS // 10
    settle_for(desk, 1_000)
    assert forgotten(desk) == [("j", "applied")]


def test_a_job_that_was_retried_meanwhile_stays() -> None:
    desk = Desk()
    forgetful(desk, cancelled=HOUR_MS)
    desk.enqueue("j", job_type="nobody")
    cancel(desk, "j")
    desk.time_ms += 2 * HOUR_MS
    out = desk.step()
    assert [type(event).__name__ for event in lines(out)] == ["Forgotten"]
    not_after = desk.now().log_ms + 60_000
    desk.write(0, ev.RetryRequested(id="again", job="j", of="enq.j", not_after=not_after))
    desk.carry_out(out)
    assert forgotten(desk) == [("j", "stale")]
    assert desk.job("j").state == "ready"


def test_turns_are_bounded_and_wait_for_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "ROWS_A_TURN", 10)
    desk = Desk(partitions=2)
    forgetful(desk, cancelled=HOUR_MS)
    for number in range(60):
        desk.enqueue(f"j{number}", job_type="nobody")
        cancel(desk, f"j{number}")
    desk.time_ms += 2 * HOUR_MS
    written: list[int] = []
    kept: list[Any] = []
    for _ in range(8):
        desk.time_ms += retention.TURN_EVERY_MS
        out = desk.step()
        kept.append(out)
        written.append(sum(isinstance(event, ev.Forgotten) for event in lines(out)))
    # A turn for each partition, and then none until the log has brought back what was written.
    assert sum(1 for count in written if count) == 2
    assert max(written) <= 10
    for out in kept:
        desk.carry_out(out)
    settle_for(desk, 1_000)
    assert len(forgotten(desk)) == 60
    assert {outcome for _, outcome in forgotten(desk)} == {"applied"}
    assert len(set(forgotten(desk))) == 60


def test_rounds_end_and_begin_again_after_their_pause() -> None:
    desk = Desk()
    forgetful(desk, succeeded=HOUR_MS)
    run_to_the_end(desk, "a")
    settle_for(desk, 1_000)
    machine = desk.machines["o"]
    due_ms = machine.forgetting.next_turn_ms()
    assert due_ms is not None
    assert 0 < due_ms - desk.now().mono_ms <= HOUR_MS // 10
    assert machine.next_wakeup_ms(desk.now()) > 0


def test_every_folder_has_the_same_digest_when_jobs_are_forgotten() -> None:
    desk = Desk()
    forgetful(desk, succeeded=HOUR_MS, cancelled=HOUR_MS)
    for number in range(20):
        desk.enqueue(f"c{number}", job_type="nobody")
        cancel(desk, f"c{number}")
    run_to_the_end(desk, "s")
    desk.time_ms += 2 * HOUR_MS
    settle_for(desk, 1_000)
    assert len(forgotten(desk)) == 21
    leaders = desk.stores["o"][0]
    leaders.commit()
    assert leaders.recompute_digest() == leaders.digest
    for every in (1, 7, 10_000):
        store = _folded(desk, every)
        assert store.digest == leaders.digest
        assert list(store.committed_jobs()) == []
        assert list(store.store.scan(BODIES)) == []


def _folded(desk: Desk, commit_every: int) -> PartitionStore:
    store = memory_store(kv=MemoryStore((FOLD, BODIES, META, *FAMILIES)))
    for number, record in enumerate(desk.records[0], 1):
        store.fold(record)
        if number % commit_every == 0:
            store.commit()
    store.commit()
    return store


def test_a_record_stamped_by_somebody_else_forgets_nobody_early() -> None:
    """The time of a foreign stamp is not the log's: the leader may be wrong about the time, the fold is not."""
    desk = Desk()
    forgetful(desk)
    desk.enqueue("j", job_type="nobody")
    cancel(desk, "j")
    epoch, seen = desk.fold[0].state.epoch, desk.job("j").seen
    line = encode_line(ev.Forgotten(id="f", job="j", epoch=epoch, seen=seen))
    assert desk.write(0, line, time_ms=START_MS + 100 * HOUR_MS, append_time=False) == ["too_early"]


def test_ages_decide_by_state() -> None:
    states: list[State] = ["succeeded", "cancelled", "expired", "dead", "partial"]
    assert Retention(dict.fromkeys(states, MIN_AGE_MS)).pause_ms == MIN_AGE_MS // 10
    assert Retention({"dead": 365 * 24 * HOUR_MS}).pause_ms == retention.LONGEST_PAUSE_MS
