"""What the machine decides for all partitions together: sharing jobs out, and what a new leader still owes."""

from __future__ import annotations

from collections import Counter

from penstock.schemas import events as ev
from penstock.schemas.messages import Acknowledged
from penstock.state.pacing import QUIET_MS, quiet_ms
from tests.orchestrator.desk import Desk, deliveries, lines, memory_store, signals

GARBAGE = b"no json at all"


def test_workers_with_room_share_what_waits_evenly() -> None:
    desk = Desk(partitions=2)
    desk.leader()
    for number in range(90):
        desk.enqueue(f"j{number}")
    beats = [desk.heartbeat(worker, credits=90) for worker in ("u", "v", "w")]
    given = Counter(delivery.worker for delivery in deliveries(*desk.settle("o", *beats)))
    assert sorted(given.values()) == [30, 30, 30]


def test_those_who_take_other_jobs_have_no_share_of_what_waits() -> None:
    desk = Desk()
    desk.leader()
    for number in range(10):
        desk.enqueue(f"j{number}")
    desk.settle("o", *(desk.heartbeat(worker, credits=5, types=("other",)) for worker in ("u", "v", "w")))
    assert len(lines(desk.step("o", desk.heartbeat("x", credits=20)))) == 10


def test_no_more_of_a_limited_type_than_its_limit_and_the_rest_of_the_room_for_others() -> None:
    desk = Desk(partitions=2)
    desk.leader()
    for number in range(20):
        desk.enqueue(f"s{number}", job_type="slow")
        desk.enqueue(f"j{number}")
    limited = {"credits": 10, "types": ("slow", "noop"), "limits": {"slow": {"inc-o": 3, "inc-p": 4}}}
    given = Counter(
        delivery.job_type for delivery in deliveries(*desk.settle("o", desk.heartbeat(**limited)))
    )
    assert given == {"slow": 3, "noop": 7}
    done = next(f"s{number}" for number in range(20) if desk.job(f"s{number}").lease)
    holding = [
        (f"{kind}{number}", 1) for kind in "sj" for number in range(20) if desk.job(f"{kind}{number}").lease
    ]
    desk.succeed(done)
    [first, *more] = deliveries(
        *desk.settle("o", desk.heartbeat(holding=[one for one in holding if one[0] != done], **limited))
    )
    assert (first.job_type, more) == ("slow", [])
    [acknowledged] = signals(Acknowledged, *desk.settle("o", desk.heartbeat(holding=[], **limited)))[-1:]
    assert acknowledged.limited == {"slow": 3}


def test_a_refused_line_is_noted_by_whoever_leads_until_the_note_is_read_back() -> None:
    desk = Desk()
    desk.leader("o")
    desk.write(0, GARBAGE)
    [first] = desk.step("o").quarantine
    # The note was lost with the leader that made it: its successor, from the same store, makes it again.
    desk.machines["o"].partitions[0].commit()
    desk.orchestrator("o", desk.stores["o"])
    [again] = [note for out in desk.settle("o") for note in out.quarantine]
    assert (again.position, again.sha256) == (first.position, first.sha256)
    # Once it stands on the topic nobody owes it, not even one that reads of it before it folds the line.
    fresh = desk.orchestrator("p", [memory_store()])
    for machine in (desk.machines["o"], fresh):
        machine.partitions[0].noted(first.position)
        machine.partitions[0].commit()
    successor = desk.orchestrator("o", desk.stores["o"])
    assert [note for out in desk.settle("o") for note in out.quarantine] == []
    assert [note for out in desk.settle("p") for note in out.quarantine] == []
    assert successor.leading or fresh.leading


def test_an_announcement_that_came_too_late_makes_no_leader() -> None:
    desk = Desk()
    desk.orchestrator("o")
    desk.orchestrator("p")
    claims = {name: desk.step(name) for name in ("o", "p")}
    assert all(isinstance(line, ev.LeaderAnnounced) for out in claims.values() for line in lines(out))
    for out in claims.values():
        desk.carry_out(out)
    for name in ("o", "p"):
        desk.step(name)
    assert [name for name in ("o", "p") if desk.machines[name].leading] == ["o"]


class Watching:
    """A view that somebody may wait for."""

    awaited = False

    def take(self, folded: object) -> None: ...

    def write(self, batch: object) -> None: ...

    def written(self) -> None: ...


def test_readers_see_what_was_folded_once_nothing_more_comes() -> None:
    desk = Desk()
    machine = desk.leader()
    partition = machine.partitions[0]
    machine.commit_for_readers(desk.now(), 1_000)
    partition.commit_at(desk.now())
    desk.enqueue("a")
    desk.step()
    assert machine.commit_for_readers(desk.now(), 1_000) == 0
    assert machine.next_wakeup_ms(desk.now(), readers_wait_ms=1_000) <= QUIET_MS
    desk.time_ms += QUIET_MS - 1
    assert machine.commit_for_readers(desk.now(), 1_000) == 0
    desk.time_ms += 1
    assert machine.commit_for_readers(desk.now(), 1_000) == 1
    assert not partition.store.behind


def test_while_jobs_run_a_pause_is_no_end() -> None:
    """On a busy machine the next lines are late, and what is written for each pause is written twice."""
    desk = Desk()
    machine = desk.leader()
    desk.enqueue("a")
    desk.settle("o", desk.heartbeat())
    machine.partitions[0].commit_at(desk.now())
    desk.enqueue("b", job_type="nobody-runs")
    desk.step()
    machine.commit_for_readers(desk.now(), 1_000)
    desk.time_ms += QUIET_MS
    assert machine.commit_for_readers(desk.now(), 1_000) == 0
    desk.time_ms += quiet_ms(1_000) - QUIET_MS
    assert machine.commit_for_readers(desk.now(), 1_000) == 1
    desk.succeed("a")
    desk.step()
    machine.commit_for_readers(desk.now(), 1_000)
    desk.time_ms += QUIET_MS
    assert machine.commit_for_readers(desk.now(), 1_000) == 1


def test_where_more_and_more_comes_they_see_it_after_a_while() -> None:
    desk = Desk()
    machine = desk.leader()
    machine.partitions[0].commit_at(desk.now())
    committed = 0
    for number in range(10):
        desk.time_ms += QUIET_MS - 5
        desk.enqueue(f"j{number}")
        desk.step()
        committed += machine.commit_for_readers(desk.now(), 100)
    assert committed == 2


def test_who_waits_is_served_at_once() -> None:
    desk = Desk()
    machine = desk.leader()
    partition, view = machine.partitions[0], Watching()
    partition.store.attach("watching", view)
    partition.commit_at(desk.now())
    desk.enqueue("a")
    desk.step()
    assert machine.commit_for_readers(desk.now(), 1_000) == 0
    view.awaited = True
    assert machine.commit_for_readers(desk.now(), 1_000) == 1


def test_partitions_are_committed_one_by_one_the_oldest_first() -> None:
    desk = Desk(partitions=3)
    machine = desk.leader()
    for number in range(3):
        desk.time_ms += 1
        machine.partitions[number].commit_at(desk.now())
        desk.write(number, b"{}")
    desk.step()
    desk.time_ms += 1_000
    order: list[int] = []
    for _ in range(3):
        before = {number for number, one in machine.partitions.items() if one.store.behind}
        assert machine.commit_for_readers(desk.now(), 500) == 1
        order += before - {number for number, one in machine.partitions.items() if one.store.behind}
    assert order == [0, 1, 2]
    assert machine.commit_for_readers(desk.now(), 500) == 0
