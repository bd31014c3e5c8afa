"""The protocol's rules on leadership: each test builds the schedule that its rule stops."""
# ruff: noqa: N802  # tests bear the names of the rules

from __future__ import annotations

import pytest

from penstock.log.store_memory import MemoryStore
from penstock.orchestrator.leadership import Peers
from penstock.schemas import events as ev
from penstock.schemas.ids import partition_of
from penstock.schemas.messages import Beat, CancelJob
from penstock.state.partition_store import PartitionStore
from tests.orchestrator.desk import Desk, deliveries, gone, lines, memory_store, signals


def _worse_first() -> tuple[str, str]:
    """Two names, the one first that would not lead while it hears the other."""
    heard = [Beat(orchestrator="y", incarnation="inc-y", caught_up=(0,))]
    return ("y", "x") if Peers("inc-x").nominated(0, heard) else ("x", "y")


WORSE, BETTER = _worse_first()


def beat_of(name: str, *, leads: bool = False) -> Beat:
    return Beat(orchestrator=name, incarnation=f"inc-{name}", caught_up=(0,), leads={0: 1} if leads else {})


def announced(supersedes: int, name: str = "late") -> ev.LeaderAnnounced:
    return ev.LeaderAnnounced(
        id=f"{name}.{supersedes}", orchestrator=name, incarnation=f"inc-{name}", supersedes=supersedes
    )


def test_L1_a_late_announcement_does_not_unseat_the_leader() -> None:
    desk = Desk()
    machine = desk.leader()
    epoch = machine.partitions[0].epoch
    assert desk.write(0, announced(-1)) == ["stale"]
    desk.settle()
    assert machine.partitions[0].role == "leading"
    assert desk.fold[0].state.epoch == epoch


def test_L1_nobody_leads_before_the_first_announcement() -> None:
    desk = Desk()
    desk.enqueue("j")
    seen = desk.job("j").seen
    lease = ev.Leased(id="forged", job="j", worker="w", attempt=1, lease_ms=1_000, seen=seen)
    assert desk.write(0, lease) == ["stale"]


def test_L1_of_two_that_announce_one_leads_and_the_other_rests() -> None:
    desk = Desk()
    for name in (BETTER, WORSE):
        desk.orchestrator(name)
    claims = [desk.step(name) for name in (WORSE, BETTER)]
    for out in claims:
        desk.carry_out(out)
    assert [outcome for _, _, outcome in desk.outcomes] == ["applied", "stale"]
    for name in (BETTER, WORSE):
        desk.settle(
            name,
        )
    assert [name for name in (BETTER, WORSE) if desk.machines[name].leading] == [WORSE]
    # The better one claims it once more, in its time; then both are content for good.
    for _ in range(20):
        desk.time_ms += 500
        for name, other in ((BETTER, WORSE), (WORSE, BETTER)):
            desk.carry_out(
                desk.step(name, signals=[beat_of(other, leads=bool(desk.machines[other].leading))])
            )
    assert [outcome for kind, _, outcome in desk.outcomes if kind == "LeaderAnnounced"] == [
        "applied",
        "stale",
        "applied",
    ]
    assert desk.fold[0].state.leader == BETTER


def test_L1_a_lost_announcement_is_repeated_after_a_second_or_two() -> None:
    desk = Desk()
    desk.orchestrator()
    assert [type(line) for line in lines(desk.step())] == [ev.LeaderAnnounced]
    times: list[int] = []
    for _ in range(80):
        desk.time_ms += 50
        times += [desk.time_ms for line in lines(desk.step()) if isinstance(line, ev.LeaderAnnounced)]
    pauses = [after - before for before, after in zip([0, *times], times, strict=False)]
    assert pauses
    assert all(1_000 <= pause <= 2_050 for pause in pauses)


def test_L2_silence_of_the_leader_nominates_the_standby() -> None:
    desk = Desk()
    desk.orchestrator(WORSE)
    assert 2_500 < _claims(desk, hears_itself=True)[0] <= 2_700


def test_L2_one_that_does_not_even_hear_itself_nominates_nobody() -> None:
    desk = Desk()
    desk.orchestrator(WORSE)
    assert _claims(desk, hears_itself=False) == []


def _claims(desk: Desk, *, hears_itself: bool) -> list[int]:
    """When, in four seconds after the leader's last beat, the standby announces itself."""
    claimed: list[int] = []
    out = desk.step(WORSE, signals=[beat_of(BETTER, leads=True)])
    for _ in range(40):
        desk.time_ms += 100
        out = desk.step(WORSE, signals=out.beats if hears_itself else [])
        if any(isinstance(line, ev.LeaderAnnounced) for line in lines(out)):
            claimed.append(desk.time_ms)
    return claimed


def test_L2_one_that_slept_does_not_take_its_own_silence_for_that_of_others() -> None:
    desk = Desk()
    desk.orchestrator(WORSE)
    desk.step(WORSE, signals=[beat_of(BETTER, leads=True)])
    desk.time_ms += 60_000
    assert lines(desk.step(WORSE)) == []
    desk.time_ms += 100
    assert lines(desk.step(WORSE, signals=[beat_of(BETTER, leads=True)])) == []


def test_L2_beats_go_out_twice_a_second() -> None:
    desk = Desk()
    desk.leader()
    beats = [beat for out in desk.pass_ms(5_000) for beat in out.beats]
    assert len(beats) == 10
    assert all(beat.leads == {0: desk.fold[0].state.epoch} for beat in beats)


def owing_desk() -> Desk:
    """A leader has died that owed a dead letter, a forward and a quarantine note."""
    desk = Desk(partitions=2)
    desk.leader("old")
    dead = next(name for name in (f"dead{n}" for n in range(99)) if partition_of(name, 2) == 0)
    lost = next(name for name in (f"lost{n}" for n in range(99)) if partition_of(name, 2) == 1)
    desk.enqueue(dead)
    desk.settle("old", desk.heartbeat(leads=("old",)))
    lease = desk.job(dead).lease
    error = ev.JobError(code="boom", retryable=False)
    desk.write(0, ev.Failed(id=f"{lease}.f", job=dead, lease=lease, error=error))
    desk.write(0, ev.Enqueued(id="e", job=lost, job_type="noop"), b"{garbage")
    # It folds all that, decides, and dies before it has done anything.
    desk.step("old")
    return desk


@pytest.mark.parametrize("survives", [True, False])
def test_L3_what_a_leader_owes_is_found_by_the_next(survives: bool) -> None:
    desk = owing_desk()
    stores: list[PartitionStore] | None = None
    if survives:
        stores = []
        for number, one in desk.machines["old"].partitions.items():
            one.commit()
            kv = one.store.store
            assert isinstance(kv, MemoryStore)
            stores.append(memory_store(number, 2, MemoryStore.load(kv.dump())))
    desk.orchestrator("new", stores)
    outs = desk.settle("new")
    kinds = [kind for kind, _, outcome in desk.outcomes if outcome == "applied"]
    assert "DeadLettered" in kinds
    assert "Forwarded" in kinds
    assert [note.reason.split(":")[0] for out in outs for note in out.quarantine] == ["not_json"]
    assert not any(one.owes for one in desk.machines["new"].partitions.values())


def test_L3_a_cancel_is_signalled_by_the_next_leader() -> None:
    desk = Desk()
    desk.leader("old")
    desk.enqueue("j")
    desk.settle("old", desk.heartbeat(leads=("old",)))
    desk.write(0, ev.CancelRequested(id="c", job="j", of="enq.j", not_after=desk.now().log_ms + 1_000))
    desk.orchestrator("new")
    desk.settle("new")
    for _ in range(2):
        outs = desk.settle("new", desk.heartbeat(leads=("new",), holding=[("j", 5)]))
        assert [signal.job for signal in signals(CancelJob, *outs)] == ["j"]


def test_L3_a_grant_that_was_never_delivered_is_delivered_by_the_next_leader() -> None:
    desk = Desk()
    desk.leader("old")
    desk.enqueue("j")
    out = desk.step("old", desk.heartbeat(leads=("old",)))
    desk.carry_out(out)
    desk.orchestrator("new")
    outs = desk.settle("new", desk.heartbeat(leads=("new",)))
    assert deliveries(*outs) == []
    outs = desk.settle("new", desk.heartbeat(leads=("new",))) + desk.settle(
        "new", desk.heartbeat(leads=("new",))
    )
    assert [delivery.lease for delivery in deliveries(*outs)] == [desk.job("j").lease]
    assert desk.job("j").attempt == 1


def test_L3_rows_share_the_batch_of_the_offset_even_when_leadership_changes_within_a_record() -> None:
    """Taking over commits; a crash right after it must not lose the rows of what stands behind the announcement."""
    desk = Desk()
    desk.orchestrator()
    desk.write(
        0, ev.LeaderAnnounced(id="a", orchestrator="o", incarnation="inc-o", supersedes=-1),
        ev.Enqueued(id="e", job="j", job_type="noop"),
    )  # fmt: skip
    desk.step()
    kv = desk.stores["o"][0].store
    assert isinstance(kv, MemoryStore)
    desk.orchestrator("next", [memory_store(kv=MemoryStore.load(kv.dump()))])
    outs = desk.settle("next") + desk.settle("next", desk.heartbeat(leads=("next",)))
    assert [delivery.job for delivery in deliveries(*outs)] == ["j"]


def test_L3_nothing_is_decided_before_the_own_epoch_is_folded() -> None:
    desk = Desk()
    desk.orchestrator()
    desk.enqueue("j")
    out = desk.step("o", desk.heartbeat())
    assert [type(line) for line in lines(out)] == [ev.LeaderAnnounced]


def test_L4_a_refused_proposal_is_made_anew_and_leaves_no_trace() -> None:
    desk = Desk()
    machine = desk.leader()
    desk.enqueue("j")
    out = desk.step("o", desk.heartbeat())
    not_after = desk.now().log_ms + 1_000
    # While the lease is under way the job is cancelled and wanted again: `seen` no longer holds.
    desk.write(
        0,
        ev.CancelRequested(id="c", job="j", of="enq.j", not_after=not_after),
        ev.RetryRequested(id="r", job="j", of="enq.j", not_after=not_after),
    )
    desk.carry_out(out)
    assert desk.outcomes[-1] == ("Leased", "j", "stale")
    outs = desk.settle()
    assert [delivery.job for delivery in deliveries(*outs)] == ["j"]
    session = machine.fleet.session("w", "")
    assert (session.proposed, session.outstanding) == (0, 1)
    assert [entry[2] for entry in desk.outcomes if entry[0] == "Leased"] == ["stale", "applied"]


def test_L4_a_duplicate_of_an_accepted_line_is_no_refusal() -> None:
    desk = Desk()
    machine = desk.leader()
    desk.enqueue("j")
    out = desk.step("o", desk.heartbeat())
    desk.carry_out(out)
    desk.carry_out(out)
    assert [entry[2] for entry in desk.outcomes if entry[0] == "Leased"] == ["applied", "duplicate"]
    outs = desk.settle()
    assert len(deliveries(*outs)) == 1
    session = machine.fleet.session("w", "")
    assert (session.proposed, session.outstanding) == (0, 1)
    desk.succeed("j")
    desk.carry_out(out)
    desk.settle()
    assert session.outstanding == 0
    assert desk.job("j").state == "succeeded"


def test_a_leader_that_does_not_know_its_successor_says_nothing_of_its_leases() -> None:
    """It slept; another granted the job; the holder's heartbeat reaches both."""
    desk = Desk()
    desk.leader("old")
    desk.orchestrator("new")
    desk.write(0, announced(desk.fold[0].state.epoch, "new"))
    desk.settle("new")
    desk.enqueue("j")
    desk.settle("new", desk.heartbeat(leads=("new",)))
    beat = desk.heartbeat(leads=("new",), holding=[("j", 5)])
    out = desk.step("old", beat, read=False)
    assert desk.machines["old"].leading
    assert all(type(signal).__name__ == "Acknowledged" for some in out.signals.values() for signal in some)


def test_a_leader_that_has_not_folded_its_own_grant_says_nothing_of_it() -> None:
    """It proposed, and read no more; a successor found the grant and delivered it."""
    desk = Desk()
    desk.leader("old")
    desk.enqueue("j")
    desk.carry_out(desk.step("old", desk.heartbeat(leads=("old",))))
    out = desk.step("old", desk.heartbeat(leads=("old",), holding=[("j", 5)]), read=False)
    assert gone(out) == []
    assert gone(desk.step("old", desk.heartbeat(leads=("old",), holding=[("j", 5)]))) == []
    held = desk.heartbeat(leads=("old",), holding=[("j", 5)])
    desk.succeed("j")
    assert len(gone(*desk.settle("old", held))) == 1
