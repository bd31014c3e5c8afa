"""One worker's session: which messages are for it, what it tells and remembers. Named after the rules."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from msgspec import structs

from penstock.schemas.codec import decode_line
from penstock.schemas.events import Returned
from penstock.schemas.messages import Acknowledged, CancelJob, Drain, Heartbeat, LeaseGone
from penstock.workers.session import Session
from penstock.workers.writer import AwaitedLine
from tests.workers.fakes import FakeOutlet, FakeRecipient, delivery, profile, succeeded


class World:
    def __init__(self, **fields: object) -> None:
        self.outlet = FakeOutlet()
        self.recipient = FakeRecipient()
        via = str(fields.pop("via", ""))
        self.session = Session(
            profile(**fields),
            self.recipient,
            self.outlet,
            via=via,
            route=3,
            wall_ms=lambda: 1_700_000_000_000,
        )

    def beat(self, after_ms: float = 2_000) -> Heartbeat:
        """The next heartbeat, a full one, certainly written."""
        self.outlet.time_ms += after_ms
        beat = self.session.heartbeat()
        self.session.heard(beat, self.outlet.time_ms)
        return beat

    def write(self) -> None:
        """The log takes everything."""
        for _, pending in self.outlet.lines:
            pending.written((7, 0, 0))
        self.outlet.lines.clear()

    def finish(self, lease: str, result: object = None) -> None:
        self.session.finish(self.recipient.leases[lease], succeeded(self.recipient.leases[lease], result))


@pytest.mark.parametrize("other", [{"worker": "v"}, {"incarnation": "i0"}, {"via": "g1"}])
def test_d1_what_is_for_another_worker_incarnation_or_gateway_is_dropped(other: dict[str, str]) -> None:
    world = World()
    world.session.deliver([delivery("0.1.1", **other), delivery("0.1.2")])
    assert world.recipient.received == ["0.1.2"]
    world.session.signal(
        CancelJob(job="j", lease="0.1.2", **{"worker": "w", "incarnation": "i1", "via": "", **other})
    )
    assert world.recipient.cancelled == ([] if "worker" not in other else ["0.1.2"])


def test_d2_every_heartbeat_names_a_lease_until_the_log_has_its_outcome() -> None:
    world = World()
    world.session.deliver([delivery("0.1.1"), delivery("1.1.1", partition=1)])
    assert {held.lease for held in world.beat().holding} == {"0.1.1", "1.1.1"}
    world.finish("0.1.1")
    assert {held.lease for held in world.beat().holding} == {"0.1.1", "1.1.1"}
    world.write()
    holding = world.beat().holding
    assert [(held.partition, held.job_key, held.lease) for held in holding] == [
        (1, "default/job-1.1.1", "1.1.1")
    ]


def test_d2_a_lease_that_comes_twice_is_run_once() -> None:
    world = World()
    world.session.deliver([delivery("0.1.1"), delivery("0.1.1")])
    world.session.deliver([delivery("0.1.1")])
    assert world.recipient.received == ["0.1.1"]


def test_d2_a_finished_lease_that_comes_again_gets_its_old_outcome_and_is_not_rerun() -> None:
    world = World()
    world.session.deliver([delivery("0.1.1", partition=1)])
    world.finish("0.1.1", result=42)
    first = world.outlet.lines[0][1].line
    world.write()
    world.session.deliver([delivery("0.1.1", partition=1)])
    assert world.recipient.received == ["0.1.1"]
    assert [(partition, pending.line) for partition, pending in world.outlet.lines] == [(1, first)]


def test_d2_an_outcome_is_taken_once() -> None:
    world = World()
    world.session.deliver([delivery("0.1.1")])
    world.finish("0.1.1", result=1)
    world.finish("0.1.1", result=2)
    assert len(world.outlet.lines) == 1


def test_d5_run_time_is_told_and_waiting_is_not_run_time() -> None:
    world = World()
    world.session.deliver([delivery("0.1.1")])
    assert world.beat().holding[0].run_ms == 0
    world.recipient.leases["0.1.1"].started_ms = world.outlet.time_ms
    assert world.beat(2_000).holding[0].run_ms == 2_000


def test_a_start_is_told_soon_for_the_attempt_counts_only_from_then_on() -> None:
    world = World()
    world.session.deliver([delivery("0.1.1"), delivery("0.1.2")])
    world.beat()
    world.outlet.time_ms += 300
    world.session.tick(world.outlet.time_ms)
    assert world.session.due_ms() > world.outlet.time_ms, "nothing was started"
    world.recipient.leases["0.1.1"].started_ms = world.outlet.time_ms
    world.outlet.time_ms += 100
    world.session.tick(world.outlet.time_ms)
    assert world.session.due_ms() <= world.outlet.time_ms
    beat = world.beat(0)
    assert not beat.partial
    assert [held.run_ms for held in beat.holding] == [100, 0]
    world.outlet.time_ms += 300
    world.session.tick(world.outlet.time_ms)
    assert world.session.due_ms() > world.outlet.time_ms, "once is enough"


def test_a_heartbeat_fits_into_a_record_whatever_is_held() -> None:
    world = World()
    long = "j" * 128 + "~" + "h" * 60
    world.session.deliver([delivery(f"0.1.{number}", job=f"{long}{number % 10}") for number in range(6_000)])
    world.recipient.leases["0.1.5999"].started_ms = world.outlet.time_ms
    beat = world.beat()
    assert len(msgspec.json.encode(beat)) < 900_000
    assert beat.holding[0].lease == "0.1.5999", "what runs is always named"
    assert beat.holding[1].lease == "0.1.0", "then what came first"
    assert len(beat.holding) > 1_000


def test_d6_a_cancel_that_comes_before_its_delivery_is_kept() -> None:
    world = World()
    world.session.signal(CancelJob(worker="w", incarnation="i1", job="job-0.1.1", lease="0.1.1"))
    world.session.deliver([delivery("0.1.1")])
    assert world.recipient.received == []
    event = decode_line(world.outlet.lines[0][1].line)
    assert isinstance(event, Returned)
    assert (event.lease, event.reason, event.id) == ("0.1.1", "cancelled", "0.1.1.r")


def test_d6_a_lease_that_is_gone_before_its_delivery_is_never_run() -> None:
    world = World()
    world.session.signal(LeaseGone(worker="w", incarnation="i1", job="j", lease="0.1.1", reason="expired"))
    world.session.deliver([delivery("0.1.1")])
    assert world.recipient.received == []
    assert world.outlet.lines == []


def test_d6_a_cancel_reaches_the_recipient_each_time_until_there_is_an_outcome() -> None:
    world = World()
    world.session.deliver([delivery("0.1.1")])
    signal = CancelJob(worker="w", incarnation="i1", job="j", lease="0.1.1", reason="why")
    world.session.signal(signal)
    world.session.signal(signal)
    world.finish("0.1.1")
    world.session.signal(signal)
    assert world.recipient.cancelled == ["0.1.1", "0.1.1"]
    assert world.recipient.leases["0.1.1"].cancel_reason == "why"


def test_a_lease_that_is_gone_is_lost_once_and_takes_no_outcome() -> None:
    world = World()
    world.session.deliver([delivery("0.1.1")])
    signal = LeaseGone(worker="w", incarnation="i1", job="j", lease="0.1.1", reason="timeout")
    world.session.signal(signal)
    world.session.signal(signal)
    assert world.recipient.lost == {"0.1.1": "timeout"}
    world.finish("0.1.1")
    assert world.outlet.lines == []
    assert world.beat().holding == ()


def test_an_outcome_on_its_way_is_not_stopped_by_news_that_the_lease_has_ended() -> None:
    world = World()
    world.session.deliver([delivery("0.1.1")])
    world.finish("0.1.1")
    world.session.signal(LeaseGone(worker="w", incarnation="i1", job="j", lease="0.1.1", reason="ended"))
    assert world.recipient.lost == {}
    world.write()
    world.session.deliver([delivery("0.1.1")])
    assert world.recipient.received == ["0.1.1"]


def test_c1_a_change_of_credits_goes_out_at_once_but_not_more_often_than_each_20_ms() -> None:
    world = World()
    world.session.orchestrators({"o1": {}}, ())
    assert world.outlet.changes == 1
    first = world.beat()
    assert first.credits == {"o1": 4}
    assert world.session.due_ms() == world.outlet.time_ms + 2_000
    world.session.resize(8, busy=0)
    assert world.session.due_ms() == world.outlet.time_ms + 20
    second = world.beat(20)
    assert (second.seq, second.credits) == (first.seq + 1, {"o1": 8})


def test_heartbeats_between_the_intervals_are_partial_and_do_not_count_as_heard() -> None:
    world = World()
    world.session.deliver([delivery("0.1.1")])
    assert not world.beat().partial
    world.session.touch()
    partial = world.beat(100)
    assert partial.partial
    assert partial.holding == ()
    assert not world.beat(1_900).partial


def test_shares_move_with_acknowledgements() -> None:
    world = World()
    world.session.orchestrators({"o1": {}, "o2": {}}, ())
    assert world.beat().credits == {"o1": 2, "o2": 2}
    world.session.orchestrators({"o1": {}, "o2": {"default/noop": 9, "default/other": 9, "gpu/noop": 9}}, ())
    beat = world.beat()
    assert beat.credits == {"o1": 1, "o2": 2}
    assert world.session.demand() == frozenset({"noop"})
    world.session.signal(
        Acknowledged(
            worker="w",
            incarnation="i1",
            orchestrator="a",
            orchestrator_incarnation="o1",
            seq=beat.seq,
            outstanding=0,
        )
    )
    assert world.beat().credits == {"o1": 1, "o2": 3}
    world.session.orchestrators({"o2": {}}, ["o1"])
    assert world.beat().credits == {"o2": 4}


def test_a_limit_is_shared_out_like_all_credits_and_never_exceeded_in_sum() -> None:
    world = World(types=("noop", "slow"), limits={"slow": 3}, concurrency=8)
    world.session.orchestrators({"o1": {"default/slow": 9}, "o2": {"default/noop": 9}}, ())
    beat = world.beat()
    assert beat.limits == {"slow": {"o1": 3}}, "an idle one keeps nothing of so little"
    assert sum(beat.credits.values()) == 8
    world.session.orchestrators({"o1": {"default/noop": 9}, "o2": {"default/slow": 9}}, ())
    beat = world.beat()
    assert beat.limits == {"slow": {}}, "o1 may hold three until it has heard of none"
    acknowledged = Acknowledged(
        worker="w", incarnation="i1", orchestrator="a", orchestrator_incarnation="o1", seq=beat.seq, outstanding=7,
        limited={"slow": 2},
    )  # fmt: skip
    world.session.signal(acknowledged)
    assert world.beat().limits == {"slow": {"o2": 1}}, "it holds two still"
    world.session.signal(structs.replace(acknowledged, limited={"slow": 1}))
    assert world.beat().limits == {"slow": {"o2": 2}}
    world.session.orchestrators({"o2": {}}, ["o1"])
    assert world.beat().limits == {"slow": {"o2": 3}}


def test_limits_may_change_and_end() -> None:
    world = World(types=("noop", "slow"))
    world.session.orchestrators({"o1": {"default/slow": 9}}, ())
    assert world.beat().limits == {}
    world.session.set_limits({"slow": 2})
    assert world.beat(20).limits == {"slow": {"o1": 2}}
    world.session.set_limits({"slow": 1, "noop": 3})
    assert world.beat(20).limits == {"slow": {"o1": 1}, "noop": {"o1": 3}}
    world.session.set_limits({})
    assert world.beat(20).limits == {}


def test_backlogs_of_other_types_and_pools_count_for_nothing() -> None:
    world = World(pool="gpu", types=("train",))
    world.session.orchestrators({"o1": {"default/train": 5}, "o2": {"gpu/train": 5}}, ())
    credits = world.beat().credits
    assert credits["o2"] > credits["o1"]


def test_a_worker_that_is_not_heard_lets_go_before_its_leases_end() -> None:
    world = World(lease_ms=30_000)
    world.session.deliver([delivery("0.1.1"), delivery("0.1.2")])
    world.beat()
    world.finish("0.1.2")
    world.outlet.time_ms += 24_900
    world.session.tick(world.outlet.time_ms)
    assert world.recipient.lost == {}
    world.outlet.time_ms += 200
    world.session.tick(world.outlet.time_ms)
    assert world.recipient.lost == {"0.1.1": "unheard"}
    assert list(world.session.held) == ["0.1.2"], "an outcome on its way still goes"


def test_a_lease_lost_by_silence_may_come_again() -> None:
    world = World()
    world.session.deliver([delivery("0.1.1")])
    world.session.lose_all("unheard")
    world.session.deliver([delivery("0.1.1")])
    assert world.recipient.received == ["0.1.1", "0.1.1"]


def test_who_leaves_gives_no_credits_and_says_so() -> None:
    world = World()
    world.session.orchestrators({"o1": {}}, ())
    world.session.stop_taking()
    beat = world.beat(20)
    assert beat.leaving
    assert beat.credits == {}
    assert not beat.partial


def test_drain_is_handed_on() -> None:
    world = World()
    world.session.signal(Drain(worker="w", stop=True))
    assert world.recipient.drained == [True]


def test_g1_a_gateway_renews_only_what_its_clients_named() -> None:
    world = World(via="g1")
    world.session.renews_all = False
    world.session.deliver([delivery("0.1.1", via="g1"), delivery("0.1.2", via="g1")])
    for lease in world.recipient.leases.values():
        lease.renew_until_ms = world.outlet.time_ms
    assert world.session.renew("0.1.2", world.outlet.time_ms + 5_000)
    assert not world.session.renew("9.9.9", world.outlet.time_ms + 5_000)
    assert [held.lease for held in world.beat().holding] == ["0.1.2"]


async def test_a_report_that_is_waited_for_tells_where_it_stands() -> None:
    world = World()
    world.session.deliver([delivery("0.1.1")])
    lease = world.recipient.leases["0.1.1"]

    report = asyncio.create_task(world.session.report(lease, succeeded(lease)))
    await asyncio.sleep(0)
    pending = world.outlet.lines[0][1]
    assert isinstance(pending, AwaitedLine)
    pending.written((7, 1, 5))  # pyright: ignore[reportArgumentType]  # a plain tuple will do
    assert await report == (7, 1, 5)
    assert world.session.held == {}
    assert "0.1.1" in world.session.finished
