"""Sessions on a memory log, with a scripted leader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from penstock.log.memory import Fault, MemoryLog
from penstock.schemas.errors import ServerUnreachable
from penstock.schemas.events import Progressed, Returned, Succeeded
from penstock.schemas.messages import Beat, Heartbeat, LeaseGone
from penstock.workers.hub import SessionHub
from penstock.workers.roster import SILENT_MS, Roster
from penstock.workers.session import Session
from tests.waiting import until
from tests.workers.fakes import TOPICS, FakeRecipient, Leader, delivery, memory_log, profile, succeeded


class World:
    def __init__(self, log: MemoryLog, stack: AsyncExitStack) -> None:
        self.log, self._stack = log, stack
        self.leader = Leader(log)

    async def hub(self, **fields: object) -> SessionHub:
        return await self._stack.enter_async_context(SessionHub(self.log, TOPICS, **fields))  # pyright: ignore[reportArgumentType]  # fields of any type

    async def session(self, hub: SessionHub, **fields: object) -> tuple[Session, FakeRecipient]:
        recipient = FakeRecipient()
        return await hub.open(profile(**fields), recipient), recipient


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(memory_log())
        yield World(log, stack)


async def test_d1_a_session_reads_its_topics_from_their_ends_before_its_first_credit(world: World) -> None:
    await world.leader.deliver([delivery("0.1.1")])
    await world.leader.beat()
    hub = await world.hub()
    session, recipient = await world.session(hub)
    await world.leader.beat()
    beat = await world.leader.heartbeat(lambda beat: beat.credits)
    assert beat.credits == {"o1": 4}
    assert beat.route == TOPICS.route_of("w") == session.route
    await world.leader.deliver([delivery("0.1.2")])
    await until(lambda: recipient.received)
    assert recipient.received == ["0.1.2"]


async def test_a_job_s_way_over_the_log(world: World) -> None:
    hub = await world.hub()
    session, recipient = await world.session(hub)
    await world.leader.beat()
    beat = await world.leader.heartbeat(lambda beat: beat.credits)
    given = await world.leader.lease(beat, "one")
    await world.leader.deliver([given])
    await until(lambda: recipient.leases)
    lease = recipient.leases[given.lease]
    await session.report(lease, Progressed(id=f"{lease.id}.p1", job="one", lease=lease.id, seq=1, percent=50))
    session.finish(lease, succeeded(lease, {"ok": True}))
    assert await hub.flush(5_000) == 0
    lines = world.leader.lines(Progressed, Succeeded)
    assert [(type(line).__name__, line.id) for line in lines] == [
        ("Progressed", f"{given.lease}.p1"),
        ("Succeeded", f"{given.lease}.s"),
    ]
    assert session.held == {}


async def test_outcomes_are_bundled(world: World) -> None:
    hub = await world.hub()
    session, recipient = await world.session(hub)
    await world.leader.deliver([delivery(f"0.1.{number}") for number in range(300)])
    await until(lambda: len(recipient.received) == 300)
    before = world.log.topics.bounds(TOPICS.jobs, 0).end
    for lease in recipient.leases.values():
        session.finish(lease, succeeded(lease))
    assert await hub.flush(5_000) == 0
    assert len(world.leader.lines(Succeeded)) == 300
    assert world.log.topics.bounds(TOPICS.jobs, 0).end - before < 10


async def test_records_of_others_on_the_same_partition_are_skipped(world: World) -> None:
    hub = await world.hub()
    _, recipient = await world.session(hub)
    await world.leader.deliver([delivery("0.1.1", worker="stranger")], route="w")
    await world.leader.deliver([delivery("0.1.2")])
    await until(lambda: recipient.received)
    assert recipient.received == ["0.1.2"]


async def test_g1_a_gateway_is_reached_by_its_own_route_and_incarnation(world: World) -> None:
    hub = await world.hub(via="g1", route_name="gateway")
    _, first = await world.session(hub, worker="a")
    _, second = await world.session(hub, worker="b")
    await world.leader.beat()
    beats = [await world.leader.heartbeat(lambda beat: beat.credits and beat.via == "g1")]
    assert beats[0].route == TOPICS.route_of("gateway")
    await world.leader.deliver(
        [
            delivery("0.1.1", worker="a", via="g1"),
            delivery("0.1.2", worker="b", via="g1"),
            delivery("0.1.3", worker="b", via="g0"),
            delivery("0.1.4", worker="b", via="g1"),
        ],
        route="gateway",
    )
    await until(lambda: "0.1.4" in second.received)
    assert (first.received, second.received) == (["0.1.1"], ["0.1.2", "0.1.4"])
    gone = LeaseGone(worker="a", incarnation="i1", via="g1", job="j", lease="0.1.1", reason="ended")
    await world.leader.signal("a", gone, route="gateway")
    await until(lambda: first.lost)


async def test_an_outcome_whose_write_fails_is_written_again(world: World) -> None:
    hub = await world.hub()
    session, recipient = await world.session(hub)
    await world.leader.deliver([delivery("0.1.1")])
    await until(lambda: recipient.leases)
    world.log.topics.arm(
        Fault.REFUSED, Fault.WRITTEN_UNKNOWN, Fault.LOST_UNKNOWN, topic=TOPICS.jobs, partition=0
    )
    lease = recipient.leases["0.1.1"]
    session.finish(lease, succeeded(lease))
    assert await hub.flush(10_000) == 0
    assert [line.id for line in world.leader.lines(Succeeded)] == ["0.1.1.s"] * 2, (
        "the same id, so one is a duplicate"
    )
    assert session.held == {}


async def test_a_last_heartbeat_says_good_bye(world: World) -> None:
    hub = await world.hub()
    session, _ = await world.session(hub)
    await world.leader.heartbeat()
    await hub.close(session)
    assert (await world.leader.heartbeat()).leaving
    await world.leader.deliver([delivery("0.1.1")])
    await world.leader.beat()
    await asyncio.sleep(0.05)
    assert world.leader.heartbeats() == []
    assert hub.sessions == {}


async def test_trimmed_hints_do_no_harm(world: World) -> None:
    hub = await world.hub()
    _, recipient = await world.session(hub)
    topic, partition = TOPICS.work("normal"), TOPICS.route_of("w")
    await world.leader.deliver([delivery("0.1.1")])
    await until(lambda: recipient.received)
    world.log.topics.forget(topic)
    await world.leader.deliver([delivery("0.1.2")])
    await until(lambda: world.log.topics.bounds(topic, partition).end == 1)
    # Reading begins again at the end; what was missed comes again, as a lease that no heartbeat names.
    while "0.1.3" not in recipient.received:
        await world.leader.deliver([delivery("0.1.3")])
        await asyncio.sleep(0.05)
    assert not hub.failure.done()


async def test_what_is_left_of_trimmed_hints_is_read(world: World) -> None:
    hub = await world.hub()
    _, recipient = await world.session(hub)
    topic, partition = TOPICS.work("normal"), TOPICS.route_of("w")
    for number in range(1, 6):
        await world.leader.deliver([delivery(f"0.1.{number}")])
    assert not recipient.received
    world.log.topics.truncate(topic, partition, world.log.topics.bounds(topic, partition).end - 2)
    await until(lambda: recipient.received)
    assert list(recipient.received) == ["0.1.4", "0.1.5"]


async def test_heartbeats_that_cannot_be_written_are_tried_again(world: World) -> None:
    hub = await world.hub()
    partition = TOPICS.reports_partition_of("w")
    world.log.topics.arm(Fault.REFUSED, Fault.LOST_UNKNOWN, topic=TOPICS.workers, partition=partition)
    _, _ = await world.session(hub)
    assert (await world.leader.heartbeat()).worker == "w"


async def test_a_log_that_is_gone_for_long_is_a_failure() -> None:
    log = memory_log()
    async with SessionHub(log, TOPICS, give_up_ms=50) as hub:
        await log.__aexit__(None, None, None)
        with pytest.raises(ServerUnreachable):
            await asyncio.wait_for(hub.failure, 10)


async def test_a_line_about_a_lease_that_nobody_holds_can_be_written(world: World) -> None:
    hub = await world.hub()
    position = await hub.append(Returned(id="0.1.1.r", job="j", lease="0.1.1"))
    assert position.offset == 0
    assert [line.job for line in world.leader.lines(Returned)] == ["j"]


async def test_an_orchestrator_that_falls_silent_loses_its_credits(world: World) -> None:
    clock = [1_000.0]
    hub = await world.hub(now_ms=lambda: clock[0])
    _, _ = await world.session(hub)
    other = Leader(world.log, name="o2")
    await world.leader.beat()
    await other.beat()
    while True:
        clock[0] += 25
        beat = next(iter(reversed(world.leader.heartbeats())), None)
        if beat is not None and set(beat.credits) == {"o1", "o2"}:
            break
        await asyncio.sleep(0.005)
    beat = Heartbeat(worker="", seq=0)
    for _ in range(1_000):
        clock[0] += 50
        await other.beat()
        await asyncio.sleep(0.005)
        beat = next(iter(reversed(world.leader.heartbeats())), beat)
        if beat.credits == {"o2": 4}:
            return
    pytest.fail(f"still {beat.credits}")


def test_the_roster_keeps_the_newest_incarnation_of_each_orchestrator() -> None:
    roster = Roster()
    assert roster.hear(Beat(orchestrator="a", incarnation="1", backlog={"x": 1}), 0) == []
    assert roster.hear(Beat(orchestrator="a", incarnation="2"), 10) == ["1"]
    assert roster.hear(Beat(orchestrator="a", incarnation="1"), 20) == []
    assert set(roster.backlogs()) == {"2"}
    assert roster.silent(10 + SILENT_MS) == []
    assert roster.silent(11 + SILENT_MS) == ["2"]
    roster.hear(Beat(orchestrator="b", incarnation="3"), 0)
    assert roster.hear(Beat(orchestrator="b", incarnation="3", leaving=True), 0) == ["3"]
    assert roster.hear(Beat(orchestrator="b", incarnation="3", leaving=True), 0) == []
    assert roster.backlogs() == {}
