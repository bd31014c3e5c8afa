"""Jobs of one concurrency key: no two run at once, and none waits for longer than it has to."""

from __future__ import annotations

from random import Random
from typing import Any, cast

import pytest
from msgspec import Raw

from penstock.core.rules import RULES, newest
from penstock.log.store_memory import MemoryStore
from penstock.orchestrator import backlog, turns
from penstock.orchestrator.proposals import LOST_MS
from penstock.schemas import events as ev
from tests.orchestrator.desk import Desk, deliveries, lines, memory_store

KEY = "account-1"


def desk_with(*jobs: str, **fields: object) -> Desk:
    desk = Desk(made_with=newest(RULES))
    desk.leader()
    for job in jobs:
        enqueue(desk, job, **fields)
    return desk


def enqueue(desk: Desk, job: str, key: str = KEY, **fields: object) -> None:
    assert desk.enqueue(f"{job}~{key}", concurrency_key=key, **fields) == "applied"


def state(desk: Desk, job: str, key: str = KEY) -> str:
    return desk.job(f"{job}~{key}").state


def active(desk: Desk, *jobs: str, key: str = KEY) -> list[str]:
    return [job for job in jobs if state(desk, job, key) == "active"]


def cancel(desk: Desk, job: str) -> None:
    not_after = desk.now().log_ms + 1_000
    event = ev.CancelRequested(id=f"c.{job}", job=f"{job}~{KEY}", of=f"enq.{job}~{KEY}", not_after=not_after)
    assert desk.write(0, event) == ["applied"]


def test_they_run_one_after_the_other_in_their_order() -> None:
    desk = desk_with("a", "b", "c")
    for job in ("a", "b", "c"):
        out = desk.settle("o", desk.heartbeat())
        assert active(desk, "a", "b", "c") == [job]
        assert [delivery.job for delivery in deliveries(*out)] in ([f"{job}~{KEY}"], [])
        desk.succeed(f"{job}~{KEY}")


def test_the_end_of_one_brings_the_next_without_another_heartbeat() -> None:
    desk = desk_with("a", "b")
    desk.settle("o", desk.heartbeat())
    desk.succeed(f"a~{KEY}")
    assert [delivery.job for delivery in deliveries(*desk.settle())] == [f"b~{KEY}"]


def test_other_keys_and_jobs_without_one_go_on() -> None:
    desk = desk_with("a", "b")
    enqueue(desk, "c", "account-2")
    desk.enqueue("plain")
    desk.settle("o", desk.heartbeat())
    assert active(desk, "a", "b") == ["a"]
    assert state(desk, "c", "account-2") == desk.job("plain").state == "active"


def test_the_more_urgent_one_comes_first() -> None:
    desk = desk_with("a", "b", "c")
    desk.settle("o", desk.heartbeat())
    enqueue(desk, "urgent", priority="high")
    desk.settle()
    desk.succeed(f"a~{KEY}")
    desk.settle()
    assert active(desk, "b", "c", "urgent") == ["urgent"]


@pytest.mark.parametrize("committed", [True, False])
def test_one_that_failed_lets_others_pass_while_it_waits(committed: bool) -> None:
    desk = desk_with("a", "b", backoff=ev.Backoff("fixed", 60_000))
    desk.settle("o", desk.heartbeat())
    if committed:
        desk.machines["o"].partitions[0].commit()
    lease = desk.job(f"a~{KEY}").lease
    desk.write(0, ev.Failed(id=f"{lease}.f", job=f"a~{KEY}", lease=lease, error=ev.JobError(code="boom")))
    desk.settle()
    assert (state(desk, "a"), state(desk, "b")) == ("retrying", "active")


def test_one_that_was_given_back_takes_its_turn_again_or_another_does() -> None:
    desk = desk_with("a", "b")
    desk.settle("o", desk.heartbeat())
    lease = desk.job(f"a~{KEY}").lease
    desk.write(0, ev.Returned(id=f"{lease}.r", job=f"a~{KEY}", lease=lease))
    desk.settle("o", desk.heartbeat())
    assert len(active(desk, "a", "b")) == 1


def test_one_that_no_worker_takes_holds_up_nobody() -> None:
    desk = desk_with()
    enqueue(desk, "nobodys-1", job_type="unknown")
    enqueue(desk, "a")
    enqueue(desk, "nobodys-2", job_type="unknown")
    enqueue(desk, "b")
    for job in ("a", "b"):
        desk.settle("o", desk.heartbeat())
        assert active(desk, "a", "b", "nobodys-1", "nobodys-2") == [job]
        desk.succeed(f"{job}~{KEY}")
    desk.settle("o", desk.heartbeat(types=("unknown",)))
    assert active(desk, "nobodys-1", "nobodys-2") == ["nobodys-1"]


def desk_with_b_called() -> Desk:
    """a has ended, b is called and not taken, for nobody has room, and c is passed over."""
    desk = desk_with("a", "b", "c")
    desk.settle("o", desk.heartbeat())
    desk.succeed(f"a~{KEY}")
    desk.settle("o", desk.heartbeat(credits=0))
    assert state(desk, "b") == "ready"
    return desk


def test_one_that_is_cancelled_when_its_turn_has_come_passes_it_on() -> None:
    desk = desk_with_b_called()
    cancel(desk, "b")
    desk.settle("o", desk.heartbeat())
    assert active(desk, "b", "c") == ["c"]


def test_one_that_is_moved_where_no_worker_is_passes_its_turn_on() -> None:
    desk = desk_with_b_called()
    about = {"job": f"b~{KEY}", "of": f"enq.b~{KEY}", "not_after": desk.now().log_ms + 1_000}
    assert desk.write(0, ev.Edited(id="m", changes=Raw(b'{"pool":"gpu"}'), **about)) == ["applied"]
    desk.settle("o", desk.heartbeat())
    assert active(desk, "b", "c") == ["c"]


def test_the_next_leader_knows_whose_turn_it_is() -> None:
    desk = desk_with("a", "b")
    desk.settle("o", desk.heartbeat())
    desk.orchestrator("new")
    desk.settle("new")
    desk.settle("new", desk.heartbeat(leads=("new",), holding=[(f"a~{KEY}", 5)]))
    assert active(desk, "a", "b") == ["a"]
    desk.succeed(f"a~{KEY}")
    desk.settle("new", desk.heartbeat(leads=("new",)))
    assert active(desk, "a", "b") == ["b"]


def test_a_lease_that_comes_when_another_has_the_turn_is_taken_back_undelivered() -> None:
    desk = desk_with("a")
    enqueue(desk, "b", job_type="other")
    lost = desk.step("o", desk.heartbeat(credits=1))
    assert [event.job for event in lines(lost)] == [f"a~{KEY}"]
    desk.time_ms += LOST_MS
    desk.pass_ms(1_000, "o", desk.heartbeat("w2", types=("other",)))
    assert active(desk, "a", "b") == ["b"]
    desk.carry_out(lost)
    out = desk.settle("o")
    assert deliveries(*out) == []
    assert active(desk, "a", "b") == ["b"]
    assert ("LeaseExpired", f"a~{KEY}", "applied") in desk.outcomes


def test_under_older_rules_there_are_no_concurrency_keys() -> None:
    desk = Desk(made_with=3)
    desk.leader()
    for job in ("a", "b"):
        enqueue(desk, job)
    desk.settle("o", desk.heartbeat())
    assert active(desk, "a", "b") == ["a", "b"]
    assert desk.job(f"a~{KEY}").concurrency_key == ""


def test_a_job_that_is_not_at_home_with_its_key_does_not_begin() -> None:
    desk = desk_with()
    desk.settle()
    assert desk.enqueue("elsewhere", concurrency_key=KEY) == "illegal"


class Crowd:
    """Jobs of few keys, and everything that may happen to them."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.desk = desk_with()
        self.leader, self.lives = "o", 0
        self.keys: dict[str, str] = {}
        """Key by job."""

    def of_state(self, wanted: str) -> list[str]:
        return [job for job in self.keys if self.desk.job(job).state == wanted]

    def verb(self, kind: type[Any], job: str, **fields: Any) -> None:
        not_after, name = self.desk.now().log_ms + 1_000, f"v{self.random.getrandbits(40):x}"
        self.desk.write(0, kind(id=name, job=job, of=f"enq.{job}", not_after=not_after, **fields))

    def begin(self) -> None:
        random, key = self.random, f"key-{self.random.randrange(4)}"
        job = f"j{len(self.keys)}~{key}"
        self.keys[job] = key
        self.desk.enqueue(
            job, concurrency_key=key, priority=random.choice(("high", "normal")), backoff=ev.Backoff("none"),
            job_type=random.choice(("noop", "other")),
        )  # fmt: skip

    def end(self, job: str) -> None:
        lease = self.desk.job(job).lease
        kind = self.random.choice((ev.Succeeded, ev.Failed, ev.Returned))
        error = {"error": ev.JobError(code="boom")} if kind is ev.Failed else {}
        self.desk.write(0, kind(id=f"{lease}.e", job=job, lease=lease, **error))

    def change(self, job: str) -> None:
        edits = (b'{"priority":"high"}', b'{"priority":"low"}', b'{"queue":"q"}')
        kind = self.random.choice((ev.CancelRequested, ev.Held, ev.Unheld, ev.Edited))
        self.verb(kind, job, **({"changes": Raw(self.random.choice(edits))} if kind is ev.Edited else {}))

    def change_leaders(self) -> None:
        """With what the one before had committed, or with nothing."""
        kept = memory_store(kv=cast("MemoryStore", self.desk.stores[self.leader][0].store))
        self.lives += 1
        self.leader = f"o{self.lives}"
        self.desk.orchestrator(self.leader, self.random.choice(([kept], None)))

    def something(self) -> None:
        random, roll = self.random, self.random.random()
        if roll < 0.4 and len(self.keys) < 120:
            self.begin()
        elif roll < 0.75 and (running := self.of_state("active")):
            self.end(random.choice(running))
        elif roll < 0.8 and (waiting := self.of_state("ready")):
            self.change(random.choice(waiting))
        elif roll < 0.84:
            self.change_leaders()
        elif roll < 0.88:
            self.desk.machines[self.leader].partitions[0].commit()
        self.work(random.randrange(4), random.choice((("noop",), ("other",), ("noop", "other"))))

    def work(self, credits: int, types: tuple[str, ...]) -> None:
        holding = [(job, 1) for job in self.of_state("active")]
        beat = self.desk.heartbeat(credits=credits, leads=(self.leader,), holding=holding, types=types)
        self.desk.settle(self.leader, beat)
        keys = [self.keys[job] for job in self.of_state("active")]
        assert len(keys) == len(set(keys))
        self.desk.time_ms += 20


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_no_two_run_at_once_and_all_come_to_an_end(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(seed)
    monkeypatch.setattr(backlog, "WINDOW", crowd.random.choice((4, 64)))
    monkeypatch.setattr(backlog, "REFILL_BELOW", 2)
    monkeypatch.setattr(backlog, "MOST_PASSED", crowd.random.choice((1, 3, 1_000)))
    monkeypatch.setattr(turns, "STALE_ROWS", crowd.random.choice((1, 3, 256)))
    for _ in range(400):
        crowd.something()
    for job in crowd.of_state("held"):
        crowd.verb(ev.Unheld, job)
    for _ in range(5 * len(crowd.keys)):
        for job in crowd.of_state("active"):
            crowd.desk.succeed(job)
        crowd.work(10, ("noop", "other"))
    assert crowd.keys
    assert not crowd.of_state("ready")
    assert not crowd.of_state("active")
