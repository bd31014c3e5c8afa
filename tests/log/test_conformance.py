"""What the port promises, of every log alike."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest

from penstock.log.port import Log, TopicSpec
from penstock.schemas.errors import (
    AppendRefused,
    LogUnavailable,
    OffsetBeyondEnd,
    OffsetTrimmed,
    RecordTooLarge,
    TopicMismatch,
)
from tests.log.reading import read, take
from tests.waiting import PATIENCE_S


@pytest.fixture
async def topic(log: Log) -> str:
    name = f"t{uuid.uuid4().hex[:10]}.jobs"
    await log.ensure_topics([TopicSpec(name, 4)])
    return name


async def test_records_come_back_in_order_with_all_that_was_given(log: Log, topic: str) -> None:
    headers = (("origin", b"\x00\xff"), ("grün", b""))
    before_ms = time.time_ns() // 1_000_000
    first = await log.append(topic, 1, b"one", key=b"home", headers=headers)
    second = await log.append(topic, 1, b"two", key=b"")
    third = await log.append(topic, 1, b"")
    after_ms = time.time_ns() // 1_000_000

    records = await read(log, {(topic, 1): 0})

    assert [record.value for record in records] == [b"one", b"two", b""]
    assert [record.key for record in records] == [b"home", b"", None]
    assert [record.headers for record in records] == [headers, (), ()]
    assert [record.offset for record in records] == [first.offset, second.offset, third.offset]
    assert first.offset < second.offset < third.offset
    assert [record.time_ms for record in records] == [first.time_ms, second.time_ms, third.time_ms]
    assert all(record.append_time and before_ms <= record.time_ms <= after_ms for record in records)
    assert {(record.topic, record.partition) for record in records} == {(topic, 1)}


async def test_topics_are_named(log: Log, topic: str) -> None:
    names = await log.topic_names()
    assert topic in names
    assert f"{topic}.not" not in names


async def test_bounds_begin_empty_and_follow_appends(log: Log, topic: str) -> None:
    assert await log.bounds(topic, 0) == (0, 0)
    appended = await log.append(topic, 0, b"x")
    assert await log.bounds(topic, 0) == (0, appended.offset + 1)
    assert await log.bounds(topic, 1) == (0, 0)


async def test_large_records_pass_and_larger_ones_are_refused(log: Log, topic: str) -> None:
    large = bytes(range(256)) * 3_515
    await log.append(topic, 0, large)
    with pytest.raises(RecordTooLarge):
        await log.append(topic, 0, b"x" * 1_100_000)
    await log.append(topic, 0, b"small")
    assert [record.value for record in await read(log, {(topic, 0): 0})] == [large, b"small"]


async def test_a_topic_s_own_limit_counts_key_and_headers(log: Log, topic: str) -> None:
    small = f"{topic}.small"
    await log.ensure_topics([TopicSpec(small, 1, max_record_bytes=100)])
    await log.append(small, 0, b"v" * 90, key=b"k" * 5, headers=(("h", b"1234"),))
    with pytest.raises(RecordTooLarge):
        await log.append(small, 0, b"v" * 90, key=b"k" * 5, headers=(("h", b"12345"),))


async def test_poll_waits_and_wakes(log: Log, topic: str) -> None:
    async with log.tail({(topic, 0): 0}) as tail:
        assert await tail.poll(20) == []
        polling = asyncio.create_task(take(tail, 1))
        await asyncio.sleep(0)
        await log.append(topic, 0, b"wake")
        assert [record.value for record in await polling] == [b"wake"]
        assert list(await tail.poll(0)) == []


async def test_one_tail_follows_many_partitions_and_topics(log: Log, topic: str) -> None:
    other = f"{topic}.signals"
    await log.ensure_topics([TopicSpec(other, 3, durable=False, retention_ms=600_000)])
    places = [(topic, number) for number in range(4)] + [(other, number) for number in range(3)]
    starts = {place: (await log.bounds(*place)).end for place in places}
    async with log.tail(starts) as tail:
        for turn in range(3):
            for name, number in places:
                await log.append(name, number, f"{name}/{number}/{turn}".encode())
        records = await take(tail, 21)
    for name, number in places:
        values = [record.value for record in records if (record.topic, record.partition) == (name, number)]
        assert values == [f"{name}/{number}/{turn}".encode() for turn in range(3)]


async def test_poll_returns_no_more_than_asked_for_and_loses_nothing(log: Log, topic: str) -> None:
    for number in range(10):
        await log.append(topic, number % 2, str(number).encode())
    values: list[bytes] = []
    async with log.tail({(topic, 0): 0, (topic, 1): 0}) as tail, asyncio.timeout(PATIENCE_S):
        while len(values) < 10:
            records = await tail.poll(500, 3)
            assert len(records) <= 3
            values += [record.value for record in records]
    assert sorted(values) == [str(number).encode() for number in range(10)]


async def test_two_tails_read_alike(log: Log, topic: str) -> None:
    async with log.tail({(topic, 0): 0}) as one, log.tail({(topic, 0): 0}) as two:
        for number in range(5):
            await log.append(topic, 0, str(number).encode())
        assert await take(one, 5) == await take(two, 5)


async def test_follow_drop_and_seek(log: Log, topic: str) -> None:
    offsets = [(await log.append(topic, 0, str(number).encode())).offset for number in range(4)]
    await log.append(topic, 1, b"other")
    async with log.tail({(topic, 0): offsets[2]}) as tail:
        assert [record.value for record in await take(tail, 2)] == [b"2", b"3"]
        tail.follow(topic, 1, 0)
        assert [record.value for record in await take(tail, 1)] == [b"other"]
        tail.follow(topic, 0, offsets[1])
        assert [record.value for record in await take(tail, 3)] == [b"1", b"2", b"3"]
        tail.drop(topic, 0)
        await log.append(topic, 0, b"unseen")
        await log.append(topic, 1, b"seen")
        assert [record.value for record in await take(tail, 1)] == [b"seen"]
        tail.drop(topic, 1)
        assert list(await tail.poll(10)) == []


async def test_offset_at_a_time(log: Log, topic: str) -> None:
    assert await log.offset_at(topic, 0, 0) == 0
    first = await log.append(topic, 0, b"a")
    second = first
    while second.time_ms == first.time_ms:
        second = await log.append(topic, 0, b"b")
    assert await log.offset_at(topic, 0, 0) == first.offset
    assert await log.offset_at(topic, 0, first.time_ms) == first.offset
    assert await log.offset_at(topic, 0, first.time_ms + 1) == second.offset
    assert await log.offset_at(topic, 0, second.time_ms + 60_000) == second.offset + 1


async def test_truncated_history_is_an_error_and_not_a_gap(log: Log, topic: str) -> None:
    offsets = [(await log.append(topic, 0, str(number).encode())).offset for number in range(5)]
    await log.truncate(topic, 0, offsets[3])
    assert await log.bounds(topic, 0) == (offsets[3], offsets[4] + 1)
    assert [record.value for record in await read(log, {(topic, 0): offsets[3]})] == [b"3", b"4"]
    async with log.tail({(topic, 0): offsets[2]}) as tail:
        with pytest.raises(OffsetTrimmed, match=rf"{offsets[3]}.*{offsets[2]}"):
            await take(tail, 1)
    await log.truncate(topic, 0, offsets[1])
    assert (await log.bounds(topic, 0)).start == offsets[3]
    with pytest.raises(OffsetBeyondEnd):
        await log.truncate(topic, 0, offsets[4] + 10)


async def test_an_error_about_one_partition_loses_nothing_of_the_others(log: Log, topic: str) -> None:
    for number in range(3):
        for partition in (0, 1, 2):
            last = await log.append(topic, partition, f"{partition}:{number}".encode())
    await log.truncate(topic, 1, last.offset)
    found: list[bytes] = []
    async with (
        asyncio.timeout(PATIENCE_S),
        log.tail({(topic, partition): 0 for partition in (0, 1, 2)}) as tail,
    ):
        trimmed = None
        while trimmed is None or len(found) < 7:
            try:
                found += [record.value for record in await tail.poll(100)]
            except OffsetTrimmed as error:
                trimmed = error
                tail.follow(topic, 1, error.details["start"])
    assert sorted(found) == [b"0:0", b"0:1", b"0:2", b"1:2", b"2:0", b"2:1", b"2:2"]


async def test_everything_can_be_truncated_and_offsets_still_grow(log: Log, topic: str) -> None:
    last = [await log.append(topic, 0, b"x") for _ in range(3)][-1]
    await log.truncate(topic, 0, last.offset + 1)
    assert await log.bounds(topic, 0) == (last.offset + 1, last.offset + 1)
    assert (await log.append(topic, 0, b"y")).offset > last.offset


async def test_an_offset_beyond_the_end_is_an_error(log: Log, topic: str) -> None:
    end = (await log.append(topic, 0, b"x")).offset + 1
    async with log.tail({(topic, 0): end + 5}) as tail:
        with pytest.raises(OffsetBeyondEnd, match=rf"{end}.*{end + 5}"):
            await take(tail, 1)
        tail.follow(topic, 0, end)
        await log.append(topic, 0, b"y")
        assert [record.value for record in await take(tail, 1)] == [b"y"]


async def test_unknown_topics_and_partitions(log: Log, topic: str) -> None:
    for name, number in (("no.such.topic", 0), (topic, 4), (topic, -1)):
        with pytest.raises(AppendRefused):
            await log.append(name, number, b"x")
        with pytest.raises(TopicMismatch):
            await log.bounds(name, number)
        with pytest.raises(TopicMismatch):
            await log.offset_at(name, number, 0)


async def test_a_topic_that_differs_is_refused_by_name(log: Log, topic: str) -> None:
    await log.ensure_topics([TopicSpec(topic, 4)])
    with pytest.raises(TopicMismatch, match=rf"{topic}.*partitions is 4, wanted 5"):
        await log.ensure_topics([TopicSpec(topic, 5)])
    with pytest.raises(TopicMismatch, match=r"retention.*60000"):
        await log.ensure_topics([TopicSpec(topic, 4, retention_ms=60_000)])


async def test_concurrent_appends_are_each_readable_once(log: Log, topic: str) -> None:
    async def write(writer: int) -> None:
        for number in range(20):
            await log.append(topic, writer % 4, f"{writer}:{number}".encode())

    await asyncio.gather(*(write(writer) for writer in range(12)))
    records = await read(log, {(topic, number): 0 for number in range(4)})
    assert sorted(record.value for record in records) == sorted(
        f"{writer}:{number}".encode() for writer in range(12) for number in range(20)
    )
    for writer in range(12):
        own = [record.value for record in records if record.value.startswith(f"{writer}:".encode())]
        assert own == [f"{writer}:{number}".encode() for number in range(20)]


async def test_a_cancelled_append_leaves_the_log_usable(log: Log, topic: str) -> None:
    tasks = [asyncio.create_task(log.append(topic, 0, b"cancelled")) for _ in range(5)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await log.append(topic, 0, b"kept")
    values = [record.value for record in await read(log, {(topic, 0): 0})]
    assert values.count(b"kept") == 1
    assert set(values) <= {b"kept", b"cancelled"}


async def test_closing_a_tail_ends_its_poll(log: Log, topic: str) -> None:
    tail = log.tail({(topic, 0): 0})
    await tail.__aenter__()
    polling = asyncio.create_task(tail.poll(60_000))
    await asyncio.sleep(0.01)
    await tail.__aexit__(None, None, None)
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(LogUnavailable):
            await polling


async def test_a_closed_log_refuses(log: Log, topic: str) -> None:
    await log.__aexit__(None, None, None)
    with pytest.raises(AppendRefused):
        await log.append(topic, 0, b"x")
    with pytest.raises(LogUnavailable):
        await log.bounds(topic, 0)


async def test_the_cluster_has_an_identity(log: Log) -> None:
    assert log.cluster_id
