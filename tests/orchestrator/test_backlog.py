"""The backlog's window and what lies beyond it, timers and their horizon, and the rows that both are found again by."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from msgspec import structs

from penstock.orchestrator import backlog, timers
from penstock.orchestrator.backlog import Backlog
from penstock.orchestrator.rows import (
    ACTIVE,
    BACKLOG,
    DEAD,
    DUE,
    EXPIRY,
    TIMERS,
    Index,
    Lane,
    lane_of,
    rows_of,
)
from penstock.orchestrator.timers import AGAIN_MS, Timers
from penstock.schemas import events as ev
from penstock.state.partition_store import PartitionStore
from tests.orchestrator.desk import START_MS, Desk, memory_store

NOOP = Lane("default", 2, "default", "noop")


class Ledger:
    """A partition's fold, its index and its backlog, without a machine: everybody sees each record as it is written."""

    def __init__(self) -> None:
        self.desk = Desk()
        self.store: PartitionStore = memory_store()
        self.index = Index(self.store.store, lambda: self.store.next_offset << 15)
        self.store.attach("orchestrator", self.index)
        self.backlog = Backlog(self.index, self.commit, self.store.job)
        self.timers = Timers(self.index, self.commit)
        self.commits = 0

    def commit(self) -> None:
        self.commits += 1
        self.store.commit()

    def follow(self) -> None:
        for record in self.desk.records[0][self.store.next_offset :]:
            for folded in self.store.fold(record):
                after = folded.after
                if after is not None and (folded.before is None or folded.before.state != after.state):
                    self.timers.add(folded.key, after)
                    if after.state == "ready":
                        self.backlog.push(folded.key, after)

    def enqueue(self, *jobs: str, **fields: object) -> None:
        for job in jobs:
            self.desk.enqueue(job, **fields)
        self.follow()

    def take(self, limit: int, lanes: list[Lane] | None = None) -> list[str]:
        return [job.id for _, _, job in self.backlog.take(lanes or [NOOP], limit, lambda key: False)]


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "WINDOW", 4)
    monkeypatch.setattr(backlog, "REFILL_BELOW", 2)


@pytest.mark.usefixtures("small_window")
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_many_jobs_come_out_in_order_once_each(at_once: int) -> None:
    ledger = Ledger()
    jobs = [f"j{number}" for number in range(23)]
    ledger.enqueue(*jobs[:15])
    window = ledger.backlog._windows[NOOP]
    assert len(window.entries) == 4
    taken: list[str] = []
    while len(taken) < 23:
        taken += ledger.take(at_once)
        if len(taken) >= 6 and len(ledger.desk.records[0]) == 15:
            ledger.enqueue(*jobs[15:])
    assert taken == jobs
    assert ledger.take(5) == []


@pytest.mark.usefixtures("small_window")
def test_a_window_is_filled_without_a_commit_where_the_store_has_all_that_was_left_to_it() -> None:
    ledger = Ledger()
    ledger.enqueue(*(f"j{number}" for number in range(9)))
    ledger.commit()
    ledger.backlog.committed()
    assert ledger.take(6) == [f"j{number}" for number in range(6)]
    assert ledger.commits == 1
    ledger.enqueue("j9")
    assert ledger.take(6) == ["j6", "j7", "j8", "j9"]
    assert ledger.commits == 2


@pytest.mark.usefixtures("small_window")
def test_a_backlog_is_found_again_from_its_rows() -> None:
    ledger = Ledger()
    jobs = [f"j{number}" for number in range(9)]
    ledger.enqueue(*jobs)
    ledger.commit()
    found = Backlog(ledger.index, ledger.commit, ledger.store.job)
    found.load()
    assert [job.id for _, _, job in found.take([NOOP], 100, lambda key: False)] == jobs


@pytest.mark.usefixtures("small_window")
def test_a_job_that_came_back_stands_first_and_is_given_once() -> None:
    """It is at the head of the window, and among the rows that the window is filled from."""
    ledger = Ledger()
    jobs = [f"j{number}" for number in range(8)]
    ledger.enqueue(*jobs)
    last = ledger.store.job("default/j7")
    assert last is not None
    ledger.backlog.put_back(last.key, last)
    assert ledger.take(100) == ["j7", *jobs[:7]]


def test_a_job_put_back_twice_is_given_once() -> None:
    ledger = Ledger()
    ledger.enqueue("j")
    job = ledger.store.job("default/j")
    assert job is not None
    ledger.backlog.put_back(job.key, job)
    assert ledger.take(10) == ["j"]


def test_what_is_proposed_is_skipped_and_what_is_gone_is_dropped() -> None:
    ledger = Ledger()
    ledger.enqueue("a", "b", "c")
    not_after = START_MS + 1_000
    ledger.desk.write(0, ev.CancelRequested(id="c1", job="b", of="enq.b", not_after=not_after))
    ledger.follow()
    given = ledger.backlog.take([NOOP], 10, lambda key: key == "default/a")
    assert [job.id for _, _, job in given] == ["c"]
    assert ledger.backlog.empty


def test_lanes_take_turns() -> None:
    ledger = Ledger()
    for number in range(6):
        ledger.enqueue(f"a{number}", queue="a")
        ledger.enqueue(f"b{number}", queue="b")
    lanes = ledger.backlog.lanes(2)
    taken = ledger.take(6, lanes)
    assert Counter(job[0] for job in taken) == {"a": 3, "b": 3}
    assert ledger.backlog.lanes(0) == []


# Timers


def test_only_what_falls_due_soon_is_in_memory_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "HORIZON_MS", 1_000)
    ledger = Ledger()
    delays = {f"j{number}": number * 130 for number in range(1, 60)}
    half = list(delays)[::2]
    for job in half:
        ledger.enqueue(job, delay_ms=delays[job])
    fired: dict[str, int] = {}
    for now_ms in range(0, 9_000, 10):
        if now_ms == 100:
            ledger.desk.time_ms = 0
            for job in list(delays)[1::2]:
                ledger.enqueue(job, delay_ms=delays[job])
        for _, job in ledger.timers.fire(START_MS + now_ms, ledger.store.job):
            fired.setdefault(job.id, now_ms)
        assert len(ledger.timers._heap) < 70
    assert fired == delays


def test_a_timer_reminds_until_the_job_has_moved_on() -> None:
    ledger = Ledger()
    ledger.enqueue("j", delay_ms=100)
    at_ms = START_MS + 100
    assert ledger.timers.fire(at_ms - 1, ledger.store.job) == []
    assert [kind for kind, _ in ledger.timers.fire(at_ms, ledger.store.job)] == [DUE]
    assert ledger.timers.fire(at_ms + AGAIN_MS - 1, ledger.store.job) == []
    assert [kind for kind, _ in ledger.timers.fire(at_ms + AGAIN_MS, ledger.store.job)] == [DUE]
    not_after = START_MS + 1_000
    ledger.desk.write(0, ev.CancelRequested(id="c", job="j", of="enq.j", not_after=not_after))
    ledger.follow()
    assert ledger.timers.fire(at_ms + 2 * AGAIN_MS, ledger.store.job) == []


def test_a_job_may_wait_for_two_things() -> None:
    ledger = Ledger()
    ledger.enqueue("j", delay_ms=500, expires_at=START_MS + 300)
    assert [kind for kind, _ in ledger.timers.fire(START_MS + 600, ledger.store.job)] == [EXPIRY, DUE]


# Rows


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({"state": "ready"}, [(BACKLOG, b"r")]),
        ({"state": "ready", "expires_at_ms": 9}, [(BACKLOG, b"r"), (TIMERS, None)]),
        ({"state": "active", "expires_at_ms": 9}, [(BACKLOG, ACTIVE)]),
        ({"state": "scheduled", "due_at_ms": 5}, [(TIMERS, None)]),
        ({"state": "retrying", "due_at_ms": 5, "expires_at_ms": 9}, [(TIMERS, None), (TIMERS, None)]),
        ({"state": "dead"}, [(BACKLOG, DEAD)]),
        ({"state": "dead", "dead_lettered": True}, []),
        ({"state": "succeeded", "expires_at_ms": 9}, []),
        ({"state": "cancelled"}, []),
    ],
    ids=str,
)
def test_rows_of_a_job(fields: dict[str, object], rows: list[tuple[str, bytes | None]]) -> None:
    desk = Desk()
    desk.enqueue("j")
    found = rows_of(structs.replace(desk.job("j"), **fields))
    assert [(family, None if family == TIMERS else key[:1]) for family, key, _ in found] == rows
    assert rows_of(None) == ()


def test_lanes_do_not_share_rows() -> None:
    lanes = [
        Lane(pool, rank, queue, kind)
        for pool in ("a", "ab")
        for rank in (0, 3)
        for queue in ("q", "qa")
        for kind in ("t", "ta")
    ]
    prefixes = [lane.prefix for lane in lanes]
    assert not [(a, b) for a in prefixes for b in prefixes if a != b and b.startswith(a)]


@pytest.mark.parametrize("seed", range(4))
def test_counts_and_rows_follow_the_jobs_whatever_the_commits(seed: int) -> None:
    random = Random(seed)
    ledger = Ledger()
    for number in range(120):
        job = f"j{random.randrange(20)}"
        not_after = START_MS + 60_000
        kind = random.randrange(4)
        if kind < 2:
            ledger.desk.enqueue(
                job, queue=random.choice("ab"), delay_ms=random.choice((0, 50)), expires_at=START_MS + 10**6
            )
        elif kind == 2:
            ledger.desk.write(
                0, ev.CancelRequested(id=f"c{number}", job=job, of=f"enq.{job}", not_after=not_after)
            )
        else:
            ledger.desk.write(
                0, ev.RetryRequested(id=f"r{number}", job=job, of=f"enq.{job}", not_after=not_after)
            )
        ledger.follow()
        if random.random() < 0.2:
            ledger.commit()
    ledger.commit()
    jobs = dict(ledger.store.committed_jobs())
    wanted = {(family, key): value for job in jobs.values() for family, key, value in rows_of(job)}
    kv = ledger.store.store
    found = {
        (family, key): value for family in (BACKLOG, TIMERS) for key, value in kv.scan(family) if key != b"c"
    }
    assert found == wanted
    ready = Counter(lane_of(job) for job in jobs.values() if job.state == "ready")
    assert ledger.index.ready == ready
    assert Index(kv, lambda: 0).ready == ready


def shares(ledger: Ledger, lanes: list[Lane], limit: int, times: int) -> Counter[str]:
    """How many jobs of each queue (or tenant) the next calls take, by the first letter of their ids."""
    return Counter(job[0] for _ in range(times) for job in ledger.take(limit, lanes))


@pytest.mark.parametrize("limit", [1, 2, 7, 30])
def test_a_queue_with_many_types_gets_no_more_than_one_with_one(limit: int) -> None:
    ledger = Ledger()
    for kind in range(5):
        ledger.enqueue(*(f"many-{kind}-{number}" for number in range(60)), queue="many", job_type=f"t{kind}")
    ledger.enqueue(*(f"few-{number}" for number in range(60)), queue="few")
    lanes = ledger.backlog.lanes(2)
    assert len(lanes) == 6
    taken = shares(ledger, lanes, limit, 60 // limit)
    assert abs(taken["m"] - taken["f"]) <= limit, taken
    kinds = Counter(
        job[:6] for _ in range(60 // limit) for job in ledger.take(limit, lanes) if job.startswith("many")
    )
    assert len(kinds) == 5
    assert max(kinds.values()) - min(kinds.values()) <= max(2, limit), kinds


@pytest.mark.parametrize("limit", [1, 3, 16])
def test_a_flood_of_one_tenant_starves_no_other(limit: int) -> None:
    ledger = Ledger()
    ledger.enqueue(*(f"flood-{number}" for number in range(300)), tenant="loud")
    ledger.enqueue(*(f"quiet-{number}" for number in range(8)), tenant="still")
    lanes = ledger.backlog.lanes(2)
    assert {lane.tenant for lane in lanes} == {"loud", "still"}
    taken = shares(ledger, lanes, limit, -(-16 // limit))
    assert taken["q"] == 8
    # Nobody's share is left lying: what one does not want the other has.
    assert len(ledger.take(64, ledger.backlog.lanes(2))) == 64
