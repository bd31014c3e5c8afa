"""The protocol's rules on leases, delivery and credits: each test builds the schedule that its rule stops."""
# ruff: noqa: N802  # tests bear the names of the rules

from __future__ import annotations

import pytest

from penstock.schemas import events as ev
from penstock.schemas.codec import split
from penstock.schemas.limits import MAX_BUNDLE_LINES
from penstock.schemas.messages import CancelJob
from penstock.schemas.position import fence, ordinal
from tests.orchestrator.desk import Desk, deliveries, echoes, gone, lines, signals


def desk_with(*jobs: str, **fields: object) -> Desk:
    desk = Desk()
    desk.leader()
    for job in jobs:
        desk.enqueue(job, **fields)
    return desk


def running(*jobs: str, **fields: object) -> Desk:
    """Jobs leased to worker `w`, incarnation `a`, and delivered."""
    desk = desk_with(*jobs, **fields)
    desk.settle("o", desk.heartbeat())
    assert all(desk.job(job).state == "active" for job in jobs)
    return desk


def cancel(desk: Desk, job: str, verb: str = "c") -> str:
    not_after = desk.now().log_ms + 60_000
    return desk.write(0, ev.CancelRequested(id=verb, job=job, of=f"enq.{job}", not_after=not_after))[0]


def test_a_job_is_leased_in_the_step_that_sees_it_when_there_is_credit() -> None:
    desk = Desk()
    desk.leader()
    desk.settle("o", desk.heartbeat())
    desk.enqueue("j")
    out = desk.step()
    assert [type(line) for line in lines(out)] == [ev.Leased]
    desk.carry_out(out)
    assert [delivery.job for delivery in deliveries(desk.step())] == ["j"]


def test_D1_grants_and_deliveries_name_the_incarnation() -> None:
    desk = desk_with("j")
    outs = desk.settle("o", desk.heartbeat(incarnation="a"))
    assert [(delivery.worker, delivery.incarnation) for delivery in deliveries(*outs)] == [("w", "a")]
    assert (desk.job("j").worker, desk.job("j").incarnation) == ("w", "a")


def test_D1_a_grant_to_an_incarnation_that_is_gone_is_not_delivered_to_the_next() -> None:
    desk = desk_with("j")
    out = desk.step("o", desk.heartbeat(incarnation="a"))
    desk.step("o", desk.heartbeat(incarnation="b", credits=0))
    desk.carry_out(out)
    assert desk.job("j").incarnation == "a"
    assert deliveries(desk.step()) == []


def test_D2_a_lease_that_two_heartbeats_do_not_name_is_delivered_again_as_it_was() -> None:
    desk = desk_with("j")
    first = deliveries(*desk.settle("o", desk.heartbeat()))
    assert deliveries(*desk.settle("o", desk.heartbeat())) == []
    again = deliveries(*desk.settle("o", desk.heartbeat()))
    assert [(one.lease, one.fence, one.attempt) for one in again] == [
        (one.lease, one.fence, one.attempt) for one in first
    ]


def test_D2_partial_heartbeats_neither_renew_nor_count_as_missing() -> None:
    desk = running("j")
    for _ in range(5):
        assert deliveries(*desk.settle("o", desk.heartbeat(partial=True))) == []
    for _ in range(28):
        desk.pass_ms(250, "o", desk.heartbeat(partial=True))
    assert ("LeaseExpired", "j", "applied") in desk.outcomes


def test_D2_heartbeats_renew_what_they_name_and_nothing_else() -> None:
    desk = running("j", "k")
    for _ in range(40):
        desk.pass_ms(500, "o", desk.heartbeat(holding=[("j", 0)], credits=0))
    assert ("LeaseExpired", "j", "applied") not in desk.outcomes
    assert ("LeaseExpired", "k", "applied") in desk.outcomes


def test_D2_a_stale_outcome_changes_nothing() -> None:
    desk = running("j")
    stale = desk.job("j").lease
    desk.pass_ms(6_000)
    desk.settle("o", desk.heartbeat("w2"))
    held = desk.job("j")
    assert held.lease != stale
    assert desk.succeed("j", stale) == "stale"
    assert desk.job("j") is held


def test_D3_a_newer_incarnation_ends_the_leases_of_the_older_at_once_and_free_of_charge() -> None:
    desk = running("j")
    desk.settle("o", desk.heartbeat(incarnation="b", credits=0))
    assert (desk.job("j").state, desk.job("j").attempt) == ("ready", 0)


def test_D3_a_job_that_had_begun_is_charged() -> None:
    desk = running("j")
    desk.settle("o", desk.heartbeat(holding=[("j", 1)]))
    desk.settle("o", desk.heartbeat(incarnation="b", credits=0))
    assert (desk.job("j").state, desk.job("j").attempt) == ("ready", 1)


def test_D3_a_job_that_kills_every_worker_before_it_begins_is_charged_in_the_end() -> None:
    desk = running("j", max_attempts=1)
    for incarnation in "bcdefgh":
        desk.settle("o", desk.heartbeat(incarnation=incarnation))
    assert desk.job("j").state == "dead"


def test_D3_the_one_that_lost_its_lease_is_told_and_not_its_successor() -> None:
    desk = running("j")
    lease = desk.job("j").lease
    outs = desk.settle("o", desk.heartbeat(incarnation="b", credits=0))
    assert gone(*outs) == [(lease, "expired")]
    told = [
        signal
        for out in outs
        for some in out.signals.values()
        for signal in some
        if getattr(signal, "lease", "") == lease
    ]
    assert [signal.incarnation for signal in told] == ["a"]


def test_D3_an_older_incarnation_renews_nothing() -> None:
    desk = running("j")
    desk.settle("o", desk.heartbeat("w", incarnation="b", credits=0))
    assert echoes(*desk.settle("o", desk.heartbeat("w", incarnation="a", holding=[("j", 5)]))) == []


def test_D3_an_older_incarnation_is_not_told_before_the_end_of_its_lease_is_folded() -> None:
    desk = Desk()
    desk.leader()
    desk.enqueue("j")
    desk.settle("o", desk.heartbeat("w", incarnation="a"))
    lease = desk.job("j").lease
    asleep = [desk.heartbeat("w", incarnation="a", holding=[("j", 5)]) for _ in range(2)]
    out = desk.step("o", desk.heartbeat("w", credits=0, incarnation="b"), asleep[0])
    assert gone(out) == []
    desk.carry_out(out)
    desk.settle("o")
    assert gone(*desk.settle("o", asleep[1])) == [(lease, "expired")]


def test_D3_an_older_incarnation_that_wakes_is_told_again_and_again_that_its_lease_is_gone() -> None:
    desk = running("j")
    lease = desk.job("j").lease
    asleep = [desk.heartbeat("w", incarnation="a", holding=[("j", 5)]) for _ in range(2)]
    desk.settle("o", desk.heartbeat("w", incarnation="b", credits=0))
    for beat in asleep:
        assert gone(*desk.settle("o", beat)) == [(lease, "expired")]


def test_D3_what_was_leased_to_one_that_leaves_is_free_at_once_and_free_of_charge() -> None:
    desk = running("j")
    desk.settle("o", desk.heartbeat(credits=0, leaving=True))
    assert (desk.job("j").state, desk.job("j").attempt) == ("ready", 0)


def test_D3_what_it_still_names_while_it_leaves_stays_its_own() -> None:
    desk = running("j")
    desk.settle("o", desk.heartbeat(credits=0, leaving=True, holding=[("j", 5)]))
    assert desk.job("j").state == "active"


def test_D3_a_lease_that_comes_back_after_its_worker_left_is_free_at_once() -> None:
    desk = desk_with("j")
    proposed = desk.step("o", desk.heartbeat(credits=1))
    desk.carry_out(proposed)
    desk.step("o", desk.heartbeat(credits=0, leaving=True), read=False)
    assert deliveries(*desk.settle("o")) == []
    assert (desk.job("j").state, desk.job("j").attempt) == ("ready", 0)


def test_D3_a_deaf_leader_ends_no_lease_and_grants_all_anew_when_it_hears() -> None:
    desk = running("j")
    desk.pass_ms(3_000)
    desk.pass_ms(60_000, hearing=False)
    assert desk.job("j").state == "active"
    desk.pass_ms(4_500)
    assert desk.job("j").state == "active"
    desk.pass_ms(1_000)
    assert desk.job("j").state == "ready"


def test_D3_one_that_was_stopped_grants_all_anew() -> None:
    desk = running("j")
    desk.time_ms += 120_000
    desk.pass_ms(4_500)
    assert desk.job("j").state == "active"
    desk.pass_ms(1_000)
    assert desk.job("j").state == "ready"


def test_D3_takeover_grants_a_full_lease_anew() -> None:
    desk = running("j")
    desk.pass_ms(4_900)
    desk.orchestrator("new")
    desk.settle("new")
    desk.pass_ms(4_500, "new")
    assert desk.job("j").state == "active"
    desk.pass_ms(1_000, "new")
    assert desk.job("j").state == "ready"


def test_D4_progress_must_grow_and_moves_nothing_that_others_compare_with() -> None:
    desk = running("j")
    seen, lease = desk.job("j").seen, desk.job("j").lease

    def progress(seq: int, checkpoint: bytes) -> str:
        event = ev.Progressed(
            id=f"{lease}.p{seq}", job="j", lease=lease, seq=seq, checkpoint=ev.Raw(checkpoint)
        )
        return desk.write(0, event)[0]

    assert [progress(2, b'"new"'), progress(1, b'"old"'), progress(2, b'"new"')] == [
        "applied",
        "stale",
        "duplicate",
    ]
    assert desk.job("j").seen == seen
    desk.settle()
    again = [one for _ in range(3) for one in deliveries(*desk.settle("o", desk.heartbeat()))]
    assert bytes(again[0].checkpoint) == b'"new"'


def test_D5_the_timeout_counts_running_and_not_waiting() -> None:
    desk = running("j", "k", timeout_ms=4_000)
    for _ in range(40):
        desk.pass_ms(
            500,
            "o",
            desk.heartbeat(
                holding=[("j", 0)] + ([("k", 7_000)] if desk.job("k").state == "active" else []), credits=0
            ),
        )
    assert desk.job("j").state == "active"
    assert ("LeaseExpired", "k", "applied") in desk.outcomes
    assert desk.job("k").error_code == "timeout"


@pytest.mark.parametrize("end", ["failed", "returned", "expired"])
def test_D6_with_a_cancel_pending_every_end_but_success_is_cancelled(end: str) -> None:
    desk = running("j")
    cancel(desk, "j")
    lease = desk.job("j").lease
    if end == "failed":
        desk.write(0, ev.Failed(id=f"{lease}.f", job="j", lease=lease, error=ev.JobError(code="boom")))
    elif end == "returned":
        desk.write(0, ev.Returned(id=f"{lease}.r", job="j", lease=lease))
    else:
        desk.settle()
        desk.pass_ms(6_000)
    assert desk.job("j").state == "cancelled"


def test_D6_success_wins_over_a_pending_cancel() -> None:
    desk = running("j")
    cancel(desk, "j")
    assert desk.succeed("j") == "applied"
    assert desk.job("j").state == "succeeded"


def test_D6_a_lease_with_a_cancel_pending_is_never_delivered() -> None:
    desk = desk_with("j")
    desk.carry_out(desk.step("o", desk.heartbeat()))
    cancel(desk, "j")
    # The grant and the cancel are folded in one step: there is nobody whose answer would have to be awaited.
    outs = desk.settle()
    assert desk.job("j").state == "cancelled"
    assert signals(CancelJob, *outs) == []
    for _ in range(6):
        outs += desk.settle("o", desk.heartbeat())
    assert deliveries(*outs) == []


def test_D6_a_cancelled_lease_whose_delivery_was_lost_ends_without_the_grace() -> None:
    desk = running("j")
    cancel(desk, "j")
    assert len(signals(CancelJob, *desk.settle())) == 1
    outs = desk.settle("o", desk.heartbeat())
    assert desk.job("j").state == "active"
    outs += desk.settle("o", desk.heartbeat())
    assert desk.job("j").state == "cancelled"
    assert deliveries(*outs) == []


def test_D6_a_holder_that_once_named_its_lease_has_the_whole_grace() -> None:
    desk = running("j")
    desk.settle("o", desk.heartbeat(holding=[("j", 9)]))
    cancel(desk, "j")
    desk.settle()
    for _ in range(4):
        desk.settle("o", desk.heartbeat())
    assert desk.job("j").state == "active"


def test_D6_the_signal_repeats_with_every_heartbeat_that_names_the_lease() -> None:
    desk = running("j")
    cancel(desk, "j")
    assert len(signals(CancelJob, *desk.settle())) == 1
    for _ in range(3):
        assert len(signals(CancelJob, *desk.settle("o", desk.heartbeat(holding=[("j", 9)])))) == 1


def test_D6_a_cancel_that_nobody_acknowledges_ends_the_job_in_time() -> None:
    desk = running("j")
    cancel(desk, "j")
    desk.settle()
    for _ in range(64):
        desk.pass_ms(500, "o", desk.heartbeat(holding=[("j", 9)] if desk.job("j").state == "active" else []))
    assert desk.job("j").state == "cancelled"
    assert ("Cancelled", "j", "applied") in desk.outcomes


def test_D6_a_cancel_of_a_waiting_job_is_done_by_the_fold() -> None:
    desk = desk_with("j")
    assert cancel(desk, "j") == "applied"
    assert desk.job("j").state == "cancelled"
    assert deliveries(*desk.settle("o", desk.heartbeat())) == []


def test_D7_the_fence_is_the_position_of_the_grant_and_grows() -> None:
    desk = desk_with("j")
    fences: list[int] = []
    for incarnation in "abcd":
        outs = desk.settle("o", desk.heartbeat(incarnation=incarnation))
        (delivery,) = deliveries(*outs)
        assert delivery.fence == fence(desk.job("j").leased_at)
        fences.append(int(delivery.fence))
    assert fences == sorted(set(fences))
    assert int(fence(ordinal(255, (1 << 55) - 1))) < 1 << 63


def test_D7_a_bundle_has_at_most_32768_lines() -> None:
    assert MAX_BUNDLE_LINES == 1 << 15
    assert len(split(b"\n" * 40_000 + b"x")) == MAX_BUNDLE_LINES


def test_C1_proposals_count_and_credits_are_never_exceeded() -> None:
    desk = desk_with(*(f"j{n}" for n in range(9)))
    out = desk.step("o", desk.heartbeat(credits=4))
    assert len(lines(out)) == 4
    # The proposals are still under way: nothing more, whatever is heard meanwhile.
    assert lines(desk.step("o", desk.heartbeat(credits=4))) == []
    desk.carry_out(out)
    outs = desk.settle("o", desk.heartbeat(credits=4))
    assert len(deliveries(*outs)) == 4
    assert [desk.job(f"j{n}").state for n in range(9)].count("active") == 4


def test_C1_the_echo_counts_proposals_too() -> None:
    desk = desk_with(*(f"j{n}" for n in range(3)))
    desk.step("o", desk.heartbeat(credits=2))
    assert echoes(desk.step("o", desk.heartbeat(credits=0))) == [(2, 2)]


def test_C1_who_is_not_named_has_no_credit() -> None:
    desk = desk_with("j")
    assert deliveries(*desk.settle("o", desk.heartbeat(leads=("somebody-else",)))) == []


def test_C1_a_late_heartbeat_gives_back_no_credit_that_was_taken() -> None:
    desk = desk_with("j")
    early, late = desk.heartbeat(credits=5), desk.heartbeat(credits=0)
    assert deliveries(*desk.settle("o", late)) == []
    assert deliveries(*desk.settle("o", early)) == []


@pytest.mark.parametrize("reason", ["surplus", "shutdown", "drained"])
def test_C1_surplus_closes_the_credit_until_a_newer_heartbeat(reason: str) -> None:
    desk = running("j")
    lease = desk.job("j").lease
    desk.write(0, ev.Returned(id=f"{lease}.r", job="j", lease=lease, reason=reason))
    assert deliveries(*desk.settle()) == []
    assert (desk.job("j").state, desk.job("j").attempt) == ("ready", 0)
    assert len(deliveries(*desk.settle("o", desk.heartbeat()))) == 1


def test_C2_urgent_jobs_may_exceed_the_credit_by_one_concurrency_where_others_can_yield() -> None:
    desk = desk_with(*(f"low{n}" for n in range(9)), priority="low")
    desk.settle("o", desk.heartbeat(credits=6, concurrency=2))
    for n in range(9):
        desk.enqueue(f"high{n}", priority="high")
    given = deliveries(*desk.settle())
    assert [delivery.job for delivery in given] == ["high0", "high1"]


def test_C2_urgent_jobs_do_not_chase_each_other_out_of_a_full_worker() -> None:
    desk = desk_with(*(f"high{n}" for n in range(9)), priority="high")
    given = deliveries(*desk.settle("o", desk.heartbeat(credits=6, concurrency=2)))
    assert len(given) == 6
    assert deliveries(*desk.settle("o", desk.heartbeat(credits=6, concurrency=2))) == []


def test_C2_the_most_urgent_is_leased_first() -> None:
    desk = Desk()
    desk.leader()
    for priority in ("low", "normal", "critical", "high"):
        desk.enqueue(priority, priority=priority)
    given: list[str] = []
    for worker in "abcd":
        given += [one.job for one in deliveries(*desk.settle("o", desk.heartbeat(worker, credits=1)))]
    assert given == ["critical", "high", "normal", "low"]
