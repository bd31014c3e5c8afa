"""Sharing out capacity: never more than there is, nobody with work left out."""

from __future__ import annotations

import random

import pytest

from penstock.workers.credits import TURN_MS, Credits, divide


class Leaderships:
    """Orchestrators that use every credit they believe in, to drive Credits to its limits."""

    def __init__(self, credits: Credits, **backlogs: int) -> None:
        self.credits = credits
        self.backlog = dict(backlogs)
        self.believed = dict.fromkeys(backlogs, 0)
        self.held = dict.fromkeys(backlogs, 0)
        self.seq = 0
        self.now_ms = 0.0
        for name, backlog in backlogs.items():
            credits.observe(name, backlog)

    def settle(self) -> None:
        self.now_ms += 25
        for name, backlog in self.backlog.items():
            self.credits.observe(name, backlog)
        self.credits.settle(self.now_ms)

    def heartbeat(self, *hear: str) -> None:
        """Publish; those named hear it, lease all they may, and acknowledge."""
        self.seq += 1
        shares = self.credits.publish(self.seq)
        for name in hear or tuple(self.backlog):
            self.believed[name] = shares.get(name, 0)
            self.lease(name)
            self.credits.acknowledged(name, self.seq, self.held[name])

    def lease(self, name: str) -> None:
        more = min(self.backlog[name], max(0, self.believed[name] - self.held[name]))
        self.backlog[name] -= more
        self.held[name] += more

    def finish(self, name: str, jobs: int = 1_000_000) -> int:
        jobs = min(jobs, self.held[name])
        self.held[name] -= jobs
        return jobs

    @property
    def outstanding(self) -> int:
        return sum(self.held.values())


def test_one_orchestrator_gets_everything() -> None:
    world = Leaderships(Credits(10), a=3)
    world.settle()
    assert world.credits.publish(1) == {"a": 10}


def test_idle_orchestrators_share_alike() -> None:
    world = Leaderships(Credits(10), a=0, b=0)
    world.settle()
    assert world.credits.publish(1) == {"a": 5, "b": 5}


def test_shares_follow_the_backlog_and_leave_the_idle_a_little() -> None:
    world = Leaderships(Credits(100), a=900, b=100, c=0)
    world.settle()
    shares = world.credits.publish(1)
    assert sum(shares.values()) == 100
    assert shares["c"] >= 1
    assert shares["a"] > 7 * shares["b"] > 0


def test_a_share_is_moved_only_after_its_loss_was_acknowledged() -> None:
    world = Leaderships(Credits(10), a=0, b=0)
    world.settle()
    world.heartbeat()
    world.backlog["b"] = 50
    world.settle()
    assert world.credits.unpublished
    before = world.credits.publish(world.seq + 1)
    assert before["a"] < 5
    assert before["b"] == 5, "nothing is b's before a has heard"
    # a had leased under its old share before it heard of the new one.
    world.held["a"] = 5
    world.credits.acknowledged("a", world.seq, 5)
    world.settle()
    assert world.credits.publish(world.seq + 2)["b"] == 5, (
        "an acknowledgement of an older heartbeat says nothing"
    )
    world.credits.acknowledged("a", world.seq + 1, 5)
    world.settle()
    assert world.credits.publish(world.seq + 3)["b"] == 5, "a still holds five"
    world.credits.acknowledged("a", world.seq + 3, 2)
    world.settle()
    assert world.credits.publish(world.seq + 4)["b"] == 8


def test_one_slot_and_two_orchestrators_take_turns() -> None:
    world = Leaderships(Credits(1), a=100, b=100)
    done = {"a": 0, "b": 0}
    for _ in range(200):
        world.settle()
        world.heartbeat()
        assert world.outstanding <= 1
        for name in ("a", "b"):
            done[name] += world.finish(name)
    assert done["a"] + done["b"] > 100
    assert min(done.values()) > 30


def test_one_slot_goes_to_the_one_that_has_work() -> None:
    world = Leaderships(Credits(1), a=0, b=0)
    world.settle()
    world.heartbeat()
    assert sum(world.believed.values()) == 1
    idle = "a" if world.believed["a"] == 0 else "b"
    world.backlog[idle] = 1
    for _ in range(3):
        world.settle()
        world.heartbeat()
    assert world.held[idle] == 1


def test_a_turn_lasts_a_while() -> None:
    world = Leaderships(Credits(1), a=100, b=100)
    world.settle()
    world.heartbeat()
    first = next(name for name, share in world.believed.items() if share)
    begin_ms = world.now_ms
    while world.believed[first]:
        world.settle()
        world.heartbeat()
        world.finish(first)
    assert world.now_ms - begin_ms >= TURN_MS - 50


def test_an_orchestrator_that_never_acknowledges_leaves_no_trail() -> None:
    world = Leaderships(Credits(8), a=0, b=0)
    for turn in range(500):
        world.backlog = {"a": 100 * (turn % 2), "b": 100 * ((turn + 1) % 2)}
        world.settle()
        world.credits.publish(turn + 1)
    assert all(len(account.superseded) <= 8 for account in world.credits._accounts.values())  # pyright: ignore[reportPrivateUsage]  # nobody else can tell
    assert world.credits.total_charged() <= 8


def test_one_that_is_gone_frees_its_share() -> None:
    world = Leaderships(Credits(10), a=5, b=5)
    world.settle()
    world.heartbeat()
    world.credits.remove("a")
    del world.backlog["a"]
    world.settle()
    assert world.credits.publish(99) == {"b": 10}


def test_what_is_acknowledged_by_a_stranger_is_ignored() -> None:
    credits = Credits(3)
    credits.acknowledged("x", 1, 5)
    credits.settle(0)
    assert credits.publish(1) == {}


def test_small_changes_of_backlog_change_nothing() -> None:
    world = Leaderships(Credits(80), a=1_000, b=1_000)
    world.settle()
    world.heartbeat()
    world.backlog.update(a=1_040, b=960)
    world.settle()
    assert not world.credits.unpublished


def test_a_smaller_capacity_is_taken_back() -> None:
    world = Leaderships(Credits(10), a=100, b=100)
    world.settle()
    world.heartbeat()
    world.credits.capacity = 4
    world.settle()
    shares = world.credits.publish(world.seq + 1)
    assert sum(shares.values()) == 4


@pytest.mark.parametrize("seed", range(30))
def test_c1_credits_never_exceed_capacity_and_nobody_starves(seed: int) -> None:
    """Whatever is lost, late or unequal: together they never hold more than the capacity, and all work gets done."""
    dice = random.Random(seed)
    capacity = dice.choice([1, 2, 3, 10, 64])
    names = ["a", "b", "c"][: dice.choice([2, 3])]
    world = Leaderships(Credits(capacity), **dict.fromkeys(names, 0))
    for _ in range(300):
        if dice.random() < 0.1:
            world.backlog[dice.choice(names)] += dice.randint(1, 40)
        world.settle()
        world.heartbeat(*([name for name in names if dice.random() < 0.7] or names[:1]))
        for name in names:
            world.lease(name)
            world.finish(name, dice.randint(0, 5))
        assert world.outstanding <= capacity
    for _ in range(5_000):
        world.settle()
        world.heartbeat()
        for name in names:
            world.finish(name)
        if not any(world.backlog.values()):
            break
    assert world.backlog == dict.fromkeys(names, 0)


@pytest.mark.parametrize(
    ("amount", "weights", "parts"),
    [
        (10, {"a": 1}, {"a": 10}),
        (10, {"a": 1, "b": 1}, {"a": 5, "b": 5}),
        (11, {"a": 1, "b": 1}, {"a": 6, "b": 5}),
        (2, {"a": 1_000_000, "b": 1}, {"a": 1, "b": 1}),
        (10, {"a": 3, "b": 1}, {"a": 7, "b": 3}),
    ],
)
def test_divide(amount: int, weights: dict[str, int], parts: dict[str, int]) -> None:
    assert divide(amount, weights) == parts
