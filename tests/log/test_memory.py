"""The memory log's clock and its faults."""

from __future__ import annotations

import asyncio

import pytest

from penstock.log.memory import MemoryLog
from penstock.log.memory_topics import Fault, MemoryTopics
from penstock.log.port import TopicSpec
from penstock.schemas.errors import AppendRefused, AppendUnknown, OffsetBeyondEnd
from tests.log.reading import take


def topics(clock: list[int] | None = None) -> MemoryTopics:
    times = clock or [7]
    made = MemoryTopics(lambda: times[0])
    made.ensure([TopicSpec("jobs", 2)])
    return made


def values(made: MemoryTopics, partition: int = 0) -> list[bytes]:
    return [record.value for record in made.read("jobs", partition, 0)]


def test_time_is_the_given_clock_s_and_may_step_back() -> None:
    clock = [100]
    made = topics(clock)
    made.append("jobs", 0, b"a")
    clock[0] = 50
    assert made.append("jobs", 0, b"b") == (1, 50)
    assert [record.time_ms for record in made.read("jobs", 0, 0)] == [100, 50]
    assert made.offset_at("jobs", 0, 60) == 0


def test_each_fault_does_what_it_says() -> None:
    made = topics()
    made.arm(Fault.REFUSED, Fault.WRITTEN_UNKNOWN, Fault.LOST_UNKNOWN, Fault.OFFSET_UNKNOWN, None)
    with pytest.raises(AppendRefused):
        made.append("jobs", 0, b"refused")
    with pytest.raises(AppendUnknown):
        made.append("jobs", 0, b"written")
    with pytest.raises(AppendUnknown):
        made.append("jobs", 0, b"lost")
    assert made.append("jobs", 0, b"unnamed").offset == -1
    made.append("jobs", 0, b"good")
    assert values(made) == [b"written", b"unnamed", b"good"]


def test_a_late_record_lands_behind_later_ones() -> None:
    made = topics()
    made.arm(Fault.LATE_UNKNOWN)
    with pytest.raises(AppendUnknown):
        made.append("jobs", 0, b"late")
    made.append("jobs", 0, b"later")
    assert made.land_late() == 1
    assert made.land_late() == 0
    assert values(made) == [b"later", b"late"]


def test_faults_wait_for_their_partition() -> None:
    made = topics()
    made.arm(Fault.REFUSED, topic="jobs", partition=1)
    made.append("jobs", 0, b"good")
    with pytest.raises(AppendRefused):
        made.append("jobs", 1, b"bad")
    made.append("jobs", 1, b"good")


def test_offsets_may_have_gaps_and_a_topic_may_be_made_anew() -> None:
    made = topics()
    made.append("jobs", 0, b"a")
    made.skip_offsets("jobs", 0, 10)
    made.append("jobs", 0, b"b")
    assert [record.offset for record in made.read("jobs", 0, 0)] == [0, 11]
    assert [record.offset for record in made.read("jobs", 0, 5)] == [11]
    made.forget("jobs")
    with pytest.raises(OffsetBeyondEnd):
        made.read("jobs", 0, 12)


async def test_a_tail_goes_over_gaps_and_wakes_for_whoever_writes() -> None:
    made = topics()
    async with MemoryLog(topics=made) as log, log.tail({("jobs", 0): 0}) as tail:
        polling = asyncio.create_task(take(tail, 2))
        await asyncio.sleep(0)
        made.append("jobs", 0, b"a")
        made.skip_offsets("jobs", 0, 3)
        async with MemoryLog(topics=made) as other:
            await other.append("jobs", 0, b"b")
        assert [record.offset for record in await polling] == [0, 4]
    assert made.listeners == []


async def test_a_delayed_append_is_acknowledged_later() -> None:
    async with MemoryLog(topics=topics()) as log:
        log.topics.arm(None, delay_ms=5)
        slow = asyncio.create_task(log.append("jobs", 0, b"slow"))
        await asyncio.sleep(0)
        await log.append("jobs", 0, b"quick")
        await slow
        assert values(log.topics) == [b"quick", b"slow"]
