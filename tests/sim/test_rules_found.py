"""Schedules that the simulator found: each is told here in its shortest form, named after the rule that it broke."""
# ruff: noqa: N802  # tests bear the names of the rules

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from penstock.log.hearing import listen
from penstock.log.memory import MemoryLog
from penstock.log.namespace import open_namespace
from penstock.log.store_memory import MemoryStore
from penstock.orchestrator.service import Orchestrator
from penstock.projections.remote import RemoteReadModel
from penstock.schemas import events as ev
from penstock.schemas.ids import partition_of
from penstock.schemas.messages import Heartbeat, Serving, encode_messages
from penstock.schemas.position import pack
from penstock.schemas.topics import BROADCAST, Topics
from tests.orchestrator.desk import Desk, deliveries
from tests.waiting import until


def test_F1_what_a_deposed_leader_strikes_off_is_still_owed() -> None:
    """Its late ``Forwarded`` is refused by the fold, so the line waits until the leader of now strikes it off."""
    desk = Desk(partitions=2)
    desk.leader()
    job = next(f"j{n}" for n in range(99) if partition_of(f"j{n}", 2) == 1)
    assert desk.write(0, ev.Enqueued(id="e", job=job, job_type="noop")) == ["misrouted"]
    position = pack(len(desk.records[0]) - 1, 0)
    (forward,) = desk.step().forwards
    desk.write(1, *forward.lines)
    desk.step("o", forwarded=[forward])  # its own Forwarded is lost on the way
    assert desk.write(0, ev.Forwarded(id="late", line_position=position, target=1, epoch=-1)) == ["stale"]
    desk.pass_ms(6_000)
    assert desk.fold[0].state.misrouted == 0


@pytest.mark.parametrize("leaves", [True, False])
def test_D3_a_worker_whose_clock_was_set_back_is_heard_once_its_earlier_life_is_over(leaves: bool) -> None:
    """Its new incarnation looks older than the one before; nothing is left that could be mistaken for it."""
    desk = Desk()
    desk.leader()
    desk.settle("o", desk.heartbeat(incarnation="b", credits=0, leaving=leaves))
    desk.enqueue("j")
    if not leaves:
        assert deliveries(*desk.settle("o", desk.heartbeat(incarnation="a"))) == []
        desk.pass_ms(6_000)
    assert [one.incarnation for one in deliveries(*desk.settle("o", desk.heartbeat(incarnation="a")))] == [
        "a"
    ]


async def test_hints_that_were_trimmed_while_a_process_slept_end_neither_orchestrator_nor_api(
    tmp_path: Path,
) -> None:
    """Hints are not truth: whoever missed them goes on behind them."""
    log, topics = MemoryLog(), Topics("t", partitions=1, work_partitions=2, worker_partitions=1)
    namespace = await open_namespace(log, topics)
    serving = Serving(projection="p", incarnation="i", address="p:1", partitions={0: 0}, at=0)
    async with (
        Orchestrator(log, namespace, tmp_path, settle_ms=0, store_factory=memory_store) as orchestrator,
        RemoteReadModel(log, topics) as reads,
    ):
        await until(lambda: len(orchestrator.machine.leading) == 1, orchestrator, reads)
        for topic in (topics.signals, topics.workers):
            log.topics.append(topic, BROADCAST, encode_messages([serving]))
            log.topics.truncate(topic, BROADCAST, log.topics.bounds(topic, BROADCAST).end)
        beat = Heartbeat(worker="w", incarnation="a", seq=1, types=("noop",), route=1)

        def heard() -> bool:
            """What comes behind the gap; said again and again, as it is."""
            log.topics.append(topics.signals, BROADCAST, encode_messages([serving]))
            log.topics.append(topics.workers, 0, encode_messages([beat]))
            served = reads._directory.address_of(0, time.monotonic()) == "p:1"
            return served and orchestrator.machine.fleet.newest("w") == "a"

        await until(heard, orchestrator, reads)
        assert not orchestrator.failure.done()
        assert not reads.failure.done()


async def test_who_listens_for_the_living_hears_them_over_a_gap() -> None:
    log, topics = MemoryLog(), Topics("t", partitions=1, work_partitions=2, worker_partitions=1)
    await open_namespace(log, topics)
    listening = asyncio.ensure_future(listen(log, topics, 500))
    serving = Serving(projection="p", incarnation="i", address="p:1", partitions={0: 0}, at=0)
    for _ in range(3):
        await asyncio.sleep(0.05)
        log.topics.append(topics.signals, BROADCAST, encode_messages([serving]))
        log.topics.truncate(topics.signals, BROADCAST, log.topics.bounds(topics.signals, BROADCAST).end)
        await asyncio.sleep(0.05)
    log.topics.append(topics.signals, BROADCAST, encode_messages([serving]))
    assert (await listening).names() == ["projection p"]


def memory_store(path: str, families: Sequence[str]) -> MemoryStore:
    return MemoryStore(families)
