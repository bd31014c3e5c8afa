"""Sessions and their room; leases, how they are renewed and how they run out."""

from __future__ import annotations

import pytest
from msgspec import structs

from penstock.core.job import Job
from penstock.orchestrator.fleet import FORGET_MS, LONGEST_LEASE_MS, SILENT_MS, Fleet, Session
from penstock.orchestrator.leases import AGAIN_MS, CANCEL_GRACE_MS, TIMEOUT_MARGIN_MS, LeaseKeeper
from penstock.orchestrator.rows import Lane
from penstock.schemas.messages import Heartbeat
from tests.orchestrator.desk import Desk

URGENT, NORMAL = 0, 2


def beat(seq: int = 1, **more: object) -> Heartbeat:
    fields: dict[str, object] = {
        "worker": "w",
        "incarnation": "a",
        "types": ("noop",),
        "credits": {"o": 5},
        "route": 3,
    }
    return Heartbeat(seq=seq, **{**fields, **more})


def session_of(*, credits: int, concurrency: int, low: int = 0, high: int = 0, proposed: int = 0) -> Session:
    session = Session(("w", ""))
    session.credits, session.concurrency, session.proposed = credits, concurrency, proposed
    for number in range(low + high):
        session.hold((0, f"default/j{number}"), "noop", yields=number < low)
    return session


@pytest.mark.parametrize(
    ("credits", "concurrency", "low", "high", "proposed", "room", "urgent_room"),
    [
        (0, 4, 0, 0, 0, 0, 0),
        (5, 5, 0, 0, 0, 5, 5),
        (5, 5, 2, 1, 1, 1, 1),
        (5, 5, 5, 0, 0, 0, 0),  # it does not prefetch: nothing of it waits and could yield
        (8, 4, 8, 0, 0, 0, 4),
        (8, 4, 2, 6, 0, 0, 2),  # only two can yield
        (8, 4, 0, 8, 0, 0, 0),
        (6, 4, 6, 0, 0, 0, 2),  # two of six are prefetched
        (8, 4, 8, 2, 0, 0, 2),
        (3, 4, 8, 0, 0, 0, 0),  # credits were taken back meanwhile
    ],
)
def test_room(
    credits: int, concurrency: int, low: int, high: int, proposed: int, room: int, urgent_room: int
) -> None:
    session = session_of(credits=credits, concurrency=concurrency, low=low, high=high, proposed=proposed)
    assert session.room(NORMAL) == room
    assert session.room(URGENT) == urgent_room
    session.leaving = True
    assert session.room(URGENT) == 0


def test_surplus_closes_what_urgent_jobs_may_take_too() -> None:
    session = session_of(credits=8, concurrency=4, low=8)
    session.let_go((0, "default/j0"))
    session.close_surplus()
    assert (session.room(NORMAL), session.room(URGENT)) == (0, 0)


def test_a_session_takes_its_pool_and_types() -> None:
    session = Fleet("o").hear(beat(pool="gpu", types=("a", "b")), 0)
    assert session is not None
    assert [session.takes(Lane(pool, 1, "q", kind)) for pool, kind in (("gpu", "a"), ("gpu", "c"), ("cpu", "a"))] == [
        True, False, False,
    ]  # fmt: skip


def test_old_news_are_dropped() -> None:
    fleet = Fleet("o")
    assert fleet.hear(beat(5, incarnation="b"), 0) is not None
    assert fleet.hear(beat(5, incarnation="b"), 0) is None
    assert fleet.hear(beat(4, incarnation="b"), 0) is None
    assert fleet.hear(beat(9, incarnation="a"), 0) is None
    assert fleet.hear(beat(1, incarnation="c"), 0) is not None


@pytest.mark.parametrize(
    "odd", [{"worker": ""}, {"worker": "w" * 257}, {"incarnation": "i" * 257}, {"via": "v" * 257}], ids=str
)
def test_names_that_no_line_could_carry_are_no_workers(odd: dict[str, str]) -> None:
    assert Fleet("o").hear(beat(**odd), 0) is None


@pytest.mark.parametrize(("asked", "given"), [(-5, 1_000), (30_000, 30_000), (1 << 62, LONGEST_LEASE_MS)])
def test_a_lease_is_as_long_as_the_worker_wants_within_bounds(asked: int, given: int) -> None:
    session = Fleet("o").hear(beat(lease_ms=asked), 0)
    assert session is not None
    assert session.lease_ms == given


def test_the_silent_get_nothing_and_the_gone_are_forgotten() -> None:
    fleet = Fleet("o")
    session = fleet.hear(beat(), 0)
    assert session is not None
    fleet.rest(SILENT_MS)
    assert session.room(NORMAL) == 5
    fleet.rest(SILENT_MS + 1)
    assert session.room(NORMAL) == 0
    session.proposed = 1
    fleet.rest(FORGET_MS + 1)
    assert list(fleet) == [session]
    session.proposed = 0
    fleet.rest(FORGET_MS + 1)
    assert list(fleet) == []


def test_those_with_most_room_come_first() -> None:
    fleet = Fleet("o")
    for worker, credits in (("a", 2), ("b", 7), ("c", 0), ("d", 7)):
        fleet.hear(beat(worker=worker, credits={"o": credits}), 0)
    assert [session.worker for session in fleet.with_room(NORMAL)] == ["b", "d", "a"]


# Leases


def active(key: str = "j", **fields: object) -> Job:
    desk = Desk()
    desk.enqueue(key)
    fields = {
        "state": "active",
        "lease": f"0.1.{key}",
        "lease_ms": 5_000,
        "worker": "w",
        "incarnation": "a",
        **fields,
    }
    return structs.replace(desk.job(key), **fields)


def test_a_lease_runs_out_when_nobody_names_it_and_is_ended_once() -> None:
    keeper, session = LeaseKeeper(0), Session(("w", ""))
    lease = keeper.grant("default/j", active(), session, 1_000)
    assert keeper.overdue(5_999) == []
    assert keeper.overdue(6_000) == [("default/j", lease, "silent")]
    assert keeper.overdue(6_001) == []
    assert keeper.overdue(6_000 + AGAIN_MS) == [("default/j", lease, "silent")]
    keeper.end("default/j")
    assert (len(keeper), session.outstanding, session.yielding) == (0, 0, 0)


def test_a_named_lease_is_renewed_by_whatever_way_it_is_reached() -> None:
    keeper, direct, gateway = LeaseKeeper(0), Session(("w", "")), Session(("w", "g"))
    lease = keeper.grant("default/j", active(), direct, 0)
    keeper.renew(lease, "default/j", gateway, 700, 4_000)
    assert (lease.expires_ms, lease.run_ms) == (9_000, 700)
    assert (direct.outstanding, gateway.outstanding) == (0, 1)
    assert (direct.yielding, gateway.yielding) == (0, 1)
    keeper.release()
    assert gateway.outstanding == 0


@pytest.mark.parametrize(
    ("fields", "run_ms", "at_ms", "reason"),
    [
        ({"timeout_ms": 100}, 100 + TIMEOUT_MARGIN_MS, 0, None),
        ({"timeout_ms": 100}, 101 + TIMEOUT_MARGIN_MS, 0, "timeout"),
        ({"timeout_ms": 0}, 10**9, 0, None),
        ({"cancel": "c", "lease_ms": 10**6}, 0, CANCEL_GRACE_MS - 1, None),
        ({"cancel": "c", "lease_ms": 10**6}, 0, CANCEL_GRACE_MS, "cancel"),
        ({"cancel": "c", "timeout_ms": 100}, 10_000, CANCEL_GRACE_MS, "timeout"),
    ],
)
def test_why_a_lease_is_ended(fields: dict[str, object], run_ms: int, at_ms: int, reason: str | None) -> None:
    keeper, session = LeaseKeeper(0), Session(("w", ""))
    lease = keeper.grant("default/j", active(**fields), session, 0)
    lease.run_ms = run_ms
    assert [why for _, _, why in keeper.overdue(at_ms)] == ([] if reason is None else [reason])


def test_what_two_heartbeats_leave_out_is_missed_and_then_counted_anew() -> None:
    keeper, session = LeaseKeeper(0), Session(("w", ""))
    lease = keeper.grant("default/j", active(), session, 0)
    assert [keeper.missed("default/j") for _ in range(4)] == [False, True, False, True]
    keeper.missed("default/j")
    keeper.renew(lease, "default/j", session, 0, 0)
    assert keeper.missed("default/j") is False


def test_granting_anew_never_shortens() -> None:
    keeper, session = LeaseKeeper(0), Session(("w", ""))
    lease = keeper.grant("default/j", active(), session, 10_000)
    keeper.grant_anew(2_000)
    assert lease.expires_ms == 15_000
    keeper.grant_anew(60_000)
    assert lease.expires_ms == 65_000


def test_leases_of_a_limited_type_are_counted_from_their_proposal_to_their_end() -> None:
    fleet = Fleet("o")
    session = fleet.hear(beat(types=("noop", "slow"), limits={"slow": {"o": 2, "p": 5}}), 0)
    assert session is not None
    assert (session.room_for("slow"), session.room_for("noop")) == (2, None)
    slow, noop = (Lane("default", NORMAL, "default", name) for name in ("slow", "noop"))
    session.propose("slow")
    session.propose("noop")
    session.hold((0, "default/a"), "slow", yields=True)
    session.retract("slow")
    session.hold((0, "default/b"), "slow", yields=True)
    assert (session.room_for("slow"), session.outstanding_limited()) == (0, {"slow": 2})
    assert (session.takes(slow), session.takes(noop)) == (False, True)
    session.let_go((0, "default/a"))
    assert session.takes(slow)
    # Another way to the same worker, where its limit is not known, and back.
    other = fleet.session("w", "gateway")
    other.hold((0, "default/b"), "slow", yields=session.let_go((0, "default/b")))
    assert (session.outstanding_limited(), other.outstanding_limited()) == ({"slow": 0}, {})
    other.let_go((0, "default/b"))
    session.retract("slow")
    assert session.outstanding_limited() == {"slow": 0}, (
        "what was proposed before the limit was known is not counted out"
    )
