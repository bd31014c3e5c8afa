"""The protocol's rules on verbs, repeats, time, forwarding, rules and bytes."""
# ruff: noqa: N802  # tests bear the names of the rules

from __future__ import annotations

import pytest

from penstock.core.job import MAX_VERB_AGE_MS
from penstock.core.partition import FORWARD_ROOM_BYTES, PartitionFold
from penstock.orchestrator.forwarder import Forwarder
from penstock.schemas import events as ev
from penstock.schemas.errors import UnknownRules
from penstock.schemas.ids import partition_of
from penstock.schemas.limits import DIGEST_EVERY_OFFSETS, MAX_BUNDLE_BYTES, MAX_LINE_BYTES
from penstock.state.partition_store import PartitionStore
from tests.core.newer_rules import NEXT, activations
from tests.orchestrator.desk import START_MS, Desk, deliveries, memory_store

FAR_FUTURE_MS = 4_070_908_800_000


def verb(desk: Desk, kind: type[ev.Verb], verb_id: str, *, of: str = "enq.j", ahead_ms: int = 60_000) -> str:
    return desk.write(0, kind(id=verb_id, job="j", of=of, not_after=desk.now().log_ms + ahead_ms))[0]


def test_V1_a_late_copy_of_a_cancel_does_not_hit_the_retried_job() -> None:
    desk = Desk()
    desk.enqueue("j")
    outcomes = [
        verb(desk, ev.CancelRequested, "c"),
        verb(desk, ev.RetryRequested, "r"),
        verb(desk, ev.CancelRequested, "c"),
    ]
    assert outcomes == ["applied", "applied", "duplicate"]
    assert desk.job("j").state == "ready"


def test_V1_what_was_refused_stays_refused() -> None:
    desk = Desk()
    desk.enqueue("j")
    assert verb(desk, ev.RetryRequested, "r") == "illegal"
    verb(desk, ev.CancelRequested, "c")
    assert verb(desk, ev.RetryRequested, "r") == "duplicate"
    assert desk.job("j").state == "cancelled"


def test_V1_a_verb_is_for_one_life_of_the_job_and_for_its_time() -> None:
    desk = Desk()
    desk.enqueue("j")
    assert verb(desk, ev.CancelRequested, "a", of="enq.another") == "stale"
    assert verb(desk, ev.CancelRequested, "b", ahead_ms=-1) == "too_late"
    assert verb(desk, ev.CancelRequested, "c", ahead_ms=MAX_VERB_AGE_MS + 1) == "illegal"
    assert desk.job("j").state == "ready"


def test_V1_a_job_is_not_forgotten_while_late_copies_may_come() -> None:
    desk = Desk()
    desk.leader()
    desk.enqueue("j")
    verb(desk, ev.CancelRequested, "c")
    forget = {"job": "j", "epoch": desk.fold[0].state.epoch, "seen": desk.job("j").seen}
    desk.time_ms += 2 * MAX_VERB_AGE_MS - 1
    assert desk.write(0, ev.Forgotten(id="f1", **forget)) == ["too_early"]
    desk.time_ms += 1
    assert desk.write(0, ev.Forgotten(id="f2", **forget)) == ["applied"]


def test_V2_the_same_id_twice_is_a_duplicate_or_a_conflict_by_what_was_asked() -> None:
    desk = Desk()
    assert desk.enqueue("j", request_hash="asked", max_attempts=5) == "applied"
    # Defaults were changed between the two writes of one request.
    assert desk.enqueue("j", request_hash="asked", max_attempts=7) == "duplicate"
    assert desk.enqueue("j", request_hash="asked otherwise") == "conflict"
    assert desk.enqueue("k", trace="00-1", at=1) == "applied"
    assert desk.enqueue("k", trace="00-2", at=2) == "duplicate"


def test_V3_lines_about_nobody_leave_a_counter_and_no_rows() -> None:
    desk = Desk()
    rows = desk.fold[0].touched
    for number in range(50):
        assert desk.succeed(f"nobody{number}", "0.0.1") == "unknown_job"
    assert desk.fold[0].state.unknown_jobs == 50
    assert desk.fold[0].touched == rows


def test_T1_a_record_from_the_far_future_does_not_poison_the_partition() -> None:
    desk = Desk()
    desk.enqueue("a")
    desk.write(0, ev.Enqueued(id="e", job="b", job_type="noop"), time_ms=FAR_FUTURE_MS, append_time=False)
    desk.enqueue("c")
    assert [desk.job(job).created_at_ms for job in "abc"] == [START_MS] * 3


def test_T1_time_is_clamped_for_each_job_and_not_for_all() -> None:
    desk = Desk()
    desk.enqueue("a")
    desk.write(0, ev.Enqueued(id="e", job="b", job_type="noop"), time_ms=FAR_FUTURE_MS)
    desk.time_ms += 10
    desk.enqueue("c")
    assert desk.job("c").created_at_ms == START_MS + 10
    not_after = FAR_FUTURE_MS + 1_000
    desk.write(0, ev.CancelRequested(id="c", job="b", of="e", not_after=not_after))
    assert desk.job("b").finished_at_ms == FAR_FUTURE_MS


def test_T1_the_fold_asks_no_clock_about_timers() -> None:
    desk = Desk()
    desk.leader()
    desk.enqueue("j", delay_ms=60_000)
    due = ev.Due(id="d", job="j", epoch=desk.fold[0].state.epoch, seen=desk.job("j").seen)
    assert desk.write(0, due) == ["applied"]
    assert desk.write(0, ev.Due(id="d2", job="j", epoch=desk.fold[0].state.epoch, seen=0)) == ["stale"]


def misrouted_desk() -> tuple[Desk, str]:
    desk = Desk(partitions=2)
    desk.leader()
    job = next(f"j{n}" for n in range(99) if partition_of(f"j{n}", 2) == 1)
    assert desk.write(0, ev.Enqueued(id="e", job=job, job_type="noop")) == ["misrouted"]
    return desk, job


def test_F1_a_misrouted_line_gets_to_its_partition_once() -> None:
    desk, job = misrouted_desk()
    out = desk.step()
    (forward,) = out.forwards
    assert (forward.source, forward.target) == (0, 1)
    assert desk.write(1, *forward.lines) == ["applied"]
    assert desk.write(1, *forward.lines) == ["duplicate"]
    desk.settle(
        "o",
    )
    out = desk.step("o", forwarded=[forward])
    desk.carry_out(out)
    assert desk.outcomes[-1] == ("Forwarded", "", "applied")
    assert desk.fold[0].state.misrouted == 0
    assert [one.job for one in deliveries(*desk.settle("o", desk.heartbeat()))] == [job]


def test_F1_a_line_is_not_taken_twice_even_after_its_job_is_forgotten() -> None:
    desk, job = misrouted_desk()
    (forward,) = desk.step().forwards
    desk.write(1, *forward.lines)
    epoch = desk.fold[1].state.epoch
    desk.write(1, ev.CancelRequested(id="c", job=job, of="e", not_after=desk.now().log_ms + 1))
    desk.time_ms += 2 * MAX_VERB_AGE_MS
    assert desk.write(1, ev.Forgotten(id="f", job=job, epoch=epoch, seen=desk.job(job).seen)) == ["applied"]
    assert desk.write(1, *forward.lines) == ["duplicate"]


def test_F1_what_was_forwarded_or_comes_from_a_leader_is_never_forwarded() -> None:
    desk, job = misrouted_desk()
    (forward,) = desk.step().forwards
    assert desk.write(0, *forward.lines) == ["illegal"]
    due = ev.Due(id="d", job=job, epoch=desk.fold[0].state.epoch, seen=0)
    assert desk.write(0, due) == ["illegal"]
    assert desk.fold[0].state.misrouted == 1


def test_F1_a_line_too_long_to_be_forwarded_does_not_hold_up_the_others() -> None:
    desk, job = misrouted_desk()
    room = MAX_LINE_BYTES - FORWARD_ROOM_BYTES

    def line(length: int) -> bytes:
        head, tail = b'{"type":"Enqueued","job":"%s","job_type":"noop","payload":"' % job.encode(), b'"}'
        return head + b"x" * (length - len(head) - len(tail)) + tail

    assert desk.write(0, line(room + 1)) == ["illegal"]
    assert desk.write(0, line(room)) == ["misrouted"]
    forwards = desk.step().forwards
    while forwards:
        assert all(len(one) <= MAX_LINE_BYTES for forward in forwards for one in forward.lines)
        desk.write(1, *forwards[0].lines)
        out = desk.step("o", forwarded=forwards)
        desk.carry_out(out)
        forwards = out.forwards
    desk.step()
    assert desk.fold[0].state.misrouted == 0


def test_F1_one_batch_is_in_flight_and_fits_into_a_record() -> None:
    desk = Desk(partitions=2)
    desk.leader()
    jobs = [job for job in (f"j{n}" for n in range(40)) if partition_of(job, 2) == 1]
    body = ev.Raw(b'"' + b"x" * 200_000 + b'"')
    for job in jobs[:6]:
        desk.write(0, ev.Enqueued(id=f"e{job}", job=job, job_type="noop", payload=body))
    arrived: list[str] = []
    forwards = desk.step().forwards
    while forwards:
        assert len(forwards) == 1
        assert sum(map(len, forwards[0].lines)) < MAX_BUNDLE_BYTES
        assert desk.step().forwards == []
        arrived += desk.write(1, *forwards[0].lines)
        out = desk.step("o", forwarded=forwards)
        desk.carry_out(out)
        forwards = out.forwards
    assert arrived == ["applied"] * 6


def test_F1_the_landing_of_an_earlier_tenures_batch_strikes_nothing_off() -> None:
    """It led, sent a batch, lost the partition and won it back while that was still under way."""
    desk, _ = misrouted_desk()
    (first,) = desk.step().forwards
    other = ev.LeaderAnnounced(
        id="x", orchestrator="x", incarnation="inc-x", supersedes=desk.fold[0].state.epoch
    )
    desk.write(0, other)
    desk.step()
    desk.time_ms += 3_000
    # The claim, and then the batch is sent again; what became of the first one is still unknown.
    desk.carry_out(desk.step())
    desk.step()
    assert desk.machines["o"].partitions[0].role == "leading"
    (second,) = desk.machines["o"].partitions[0]._forwarder._in_flight
    assert second != first.batch
    desk.settle("o")
    out = desk.step("o", forwarded=[first])
    assert not any(out.lines.values())


def test_F1_striking_off_is_written_again_until_the_fold_knows_it() -> None:
    desk, _ = misrouted_desk()
    (forward,) = desk.step().forwards
    desk.write(1, *forward.lines)
    lost = desk.step("o", forwarded=[forward])
    assert any(lost.lines.values())
    desk.pass_ms(6_000)
    assert desk.fold[0].state.misrouted == 0
    assert not desk.machines["o"].partitions[0].owes


def test_F2_configuration_is_copied_in_order_without_gaps() -> None:
    desk = Desk()
    desk.leader()
    epoch = desk.fold[0].state.epoch

    def configured(position: int, previous: int) -> str:
        event = ev.Configured(
            id=f"c{position}.{previous}", epoch=epoch, control_position=position, previous=previous
        )
        return desk.write(0, event)[0]

    outcomes = [configured(5, -1), configured(9, 7), configured(3, 5), configured(9, 5), configured(9, 5)]
    assert outcomes == ["applied", "stale", "stale", "applied", "stale"]


def test_F3_rules_are_activated_by_the_leader_one_by_one() -> None:
    desk = Desk()
    desk.leader()
    epoch = desk.fold[0].state.epoch
    assert desk.write(0, ev.RulesActivated(id="r", epoch=epoch - 1, version=2)) == ["stale"]
    assert desk.write(0, ev.RulesActivated(id="r", epoch=epoch, version=3)) == ["stale"]
    *known, unknown = activations(NEXT, epoch)
    for activated in known:
        assert desk.write(0, activated) == ["applied"]
    with pytest.raises(UnknownRules):
        desk.write(0, unknown)


def test_F3_a_type_whose_rules_are_not_active_is_refused() -> None:
    desk = Desk()
    desk.enqueue("j")
    held = ev.Held(id="h", job="j", of="enq.j", not_after=desk.now().log_ms + 1_000)
    assert desk.write(0, held) == ["illegal"]
    assert desk.job("j").state == "ready"


def test_B1_bytes_that_are_not_utf8_are_refused_and_what_is_behind_them_goes_on() -> None:
    desk = Desk()
    bad = b'{"type":"Enqueued","job":"j","job_type":"noop","payload":"\xff"}'
    assert desk.write(0, bad, ev.Enqueued(id="e", job="k", job_type="noop")) == ["quarantined", "applied"]


def test_B3_digests_are_recorded_at_boundaries_and_do_not_depend_on_batches() -> None:
    desk = Desk()
    for number in range(DIGEST_EVERY_OFFSETS + 3):
        desk.enqueue(f"j{number % 50}", trace=str(number))

    def recorded(batch: int) -> tuple[dict[int, str], str]:
        store: PartitionStore = memory_store()
        for index, record in enumerate(desk.records[0]):
            store.fold(record)
            if index % batch == 0:
                store.commit()
        store.commit()
        assert store.recompute_digest() == store.digest
        return store.recorded_digests, store.digest

    assert recorded(1) == recorded(777) == recorded(10**6)
    assert list(recorded(10**6)[0]) == [DIGEST_EVERY_OFFSETS]


def test_B3_the_digest_covers_repeat_memory() -> None:
    def digest(verbs: int) -> int:
        desk = Desk()
        desk.enqueue("j")
        for number in range(verbs):
            verb(desk, ev.RetryRequested, f"r{number}")
        fold: PartitionFold = desk.fold[0]
        fold.state.refused = fold.state.accepted = 0
        return fold.take_changes().digest

    assert digest(1) != digest(2)


def test_forwarder_batches_are_numbered_once_in_a_process() -> None:
    desk, _ = misrouted_desk()
    numbers = iter((1, 2, 3))
    line = desk.records[0][-1].value
    batches: list[int] = []
    for _ in range(2):
        forwarder = Forwarder(0, 2, numbers)
        forwarder.add(1 << 15, line)
        batches += [forward.batch for forward in forwarder.next()]
    assert batches == [1, 2]
