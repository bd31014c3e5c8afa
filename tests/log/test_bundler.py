"""Lines become bundles: nothing lost, nothing reordered, errors to whom they belong."""

from __future__ import annotations

import asyncio

import pytest

from penstock.log.bundler import Bundler, LinePosition
from penstock.log.memory import MemoryLog
from penstock.log.memory_topics import Fault
from penstock.log.port import Record, TopicSpec
from penstock.schemas.errors import AppendRefused, AppendUnknown, RecordTooLarge
from penstock.schemas.limits import MAX_LINE_BYTES


@pytest.fixture
async def log() -> MemoryLog:
    log = MemoryLog()
    await log.ensure_topics([TopicSpec("jobs", 2)])
    return log


def records(log: MemoryLog, partition: int = 0) -> list[Record]:
    return list(log.topics.read("jobs", partition, log.topics.bounds("jobs", partition).start))


def lines(log: MemoryLog, partition: int = 0) -> list[bytes]:
    return [line for record in records(log, partition) for line in record.value.split(b"\n")]


def at(log: MemoryLog, position: LinePosition, partition: int = 0) -> bytes:
    record = next(record for record in records(log, partition) if record.offset == position.offset)
    assert record.time_ms == position.time_ms
    return record.value.split(b"\n")[position.line_no]


async def test_an_idle_line_goes_at_once_and_alone(log: MemoryLog) -> None:
    async with Bundler(log, "jobs", key=b"home", headers=(("h", b"v"),)) as bundler:
        position = await bundler.append(1, b"one")
        assert at(log, position, 1) == b"one"
        record = records(log, 1)[0]
        assert (record.key, record.headers) == (b"home", (("h", b"v"),))
        assert bundler.queued_bytes == 0


async def test_lines_that_arrive_meanwhile_share_a_record(log: MemoryLog) -> None:
    async with Bundler(log, "jobs") as bundler:
        log.topics.arm(None, delay_ms=5)
        first = asyncio.create_task(bundler.append(0, b"first"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rest = [bundler.append(0, b"%d" % number) for number in range(50)]
        positions = await asyncio.gather(first, *rest)
    assert len(records(log)) == 2
    assert lines(log) == [b"first", *(b"%d" % number for number in range(50))]
    assert [at(log, position) for position in positions] == lines(log)


async def test_bundles_stay_within_bytes_and_lines(log: MemoryLog) -> None:
    given = [b"%03d" % number for number in range(100)]
    async with Bundler(log, "jobs", max_bundle_bytes=100, max_bundle_lines=7) as bundler:
        positions = await bundler.append_many(0, given)
        assert [at(log, position) for position in positions] == given
        await asyncio.gather(*(bundler.append(1, b"x" * 30) for _ in range(10)))
    assert lines(log) == given
    assert max(len(record.value.split(b"\n")) for record in records(log)) == 7
    assert {len(record.value) for record in records(log, 1)} <= {30, 61, 92}


async def test_a_line_that_is_too_large_or_broken_fails_before_anything_is_written(log: MemoryLog) -> None:
    async with Bundler(log, "jobs") as bundler:
        with pytest.raises(RecordTooLarge):
            await bundler.append_many(0, [b"fine", b"x" * (MAX_LINE_BYTES + 1)])
        with pytest.raises(ValueError, match="newline"):
            await bundler.append(0, b"a\nb")
        assert await bundler.append_many(0, []) == []
    assert records(log) == []


async def test_a_topic_that_takes_less_fails_only_the_large_line(log: MemoryLog) -> None:
    await log.ensure_topics([TopicSpec("small", 1, max_record_bytes=50)])
    async with Bundler(log, "small") as bundler:
        given = [[b"a" * 20, b"b" * 20, b"c" * 20], [b"d" * 60], [b"e" * 20]]
        outcomes = await asyncio.gather(
            *(bundler.append_many(0, call) for call in given), return_exceptions=True
        )
    assert isinstance(outcomes[1], RecordTooLarge)
    written = log.topics.read("small", 0, 0)
    assert b"\n".join(record.value for record in written).split(b"\n") == [*given[0], *given[2]]
    assert isinstance(outcomes[0], list)
    assert [
        written[position.offset].value.split(b"\n")[position.line_no] for position in outcomes[0]
    ] == given[0]


async def test_an_unknown_write_is_repeated_with_the_same_lines(log: MemoryLog) -> None:
    async with Bundler(log, "jobs") as bundler:
        log.topics.arm(Fault.WRITTEN_UNKNOWN, Fault.LOST_UNKNOWN, Fault.REFUSED)
        positions = await bundler.append_many(0, [b"one", b"two"])
        assert lines(log) == [b"one", b"two", b"one", b"two"]
        assert positions[1] == LinePosition(1, 1, positions[1].time_ms)


async def test_it_gives_up_and_says_that_it_does_not_know(log: MemoryLog) -> None:
    async with Bundler(log, "jobs", give_up_ms=50) as bundler:
        log.topics.arm(*[Fault.LOST_UNKNOWN] * 20, Fault.REFUSED)
        outcomes = await asyncio.gather(
            *(bundler.append(0, b"%d" % number) for number in range(3)), return_exceptions=True
        )
        assert all(isinstance(outcome, AppendUnknown) for outcome in outcomes)
        assert outcomes[0] is not outcomes[1]


async def test_a_refusal_that_lasts_is_a_refusal(log: MemoryLog) -> None:
    async with Bundler(log, "no.such.topic") as bundler:
        with pytest.raises(AppendRefused):
            await bundler.append(0, b"x")
    async with Bundler(log, "jobs", give_up_ms=50) as bundler:
        log.topics.arm(*[Fault.REFUSED] * 20)
        with pytest.raises(AppendRefused):
            await bundler.append(0, b"x")
    assert records(log) == []


async def test_an_unknown_offset_becomes_the_end_asked_afterwards(log: MemoryLog) -> None:
    async with Bundler(log, "jobs") as bundler:
        await bundler.append(0, b"before")
        log.topics.arm(Fault.OFFSET_UNKNOWN)
        positions = await bundler.append_many(0, [b"a", b"b"])
        assert [(position.offset, position.line_no) for position in positions] == [(1, 0), (1, 0)]


async def test_too_much_waiting_holds_callers_back(log: MemoryLog) -> None:
    async with Bundler(log, "jobs", queue_bytes=1_000) as bundler:
        log.topics.arm(None, delay_ms=5)
        first = bundler.submit(0, [b"x" * 2_000])
        assert bundler.queued_bytes == 2_000
        with pytest.raises(AppendRefused, match="waiting"):
            bundler.submit(0, [b"y"])
        waiting = asyncio.create_task(bundler.append(0, b"z"))
        await asyncio.sleep(0)
        assert not waiting.done()
        await waiting
        assert first.done()
    assert [len(record.value) for record in records(log)] == [2_000, 1]


async def test_leaving_flushes_and_then_refuses(log: MemoryLog) -> None:
    bundler = Bundler(log, "jobs")
    async with bundler:
        futures = [bundler.submit(number % 2, [b"%d" % number]) for number in range(10)]
    assert all(future.done() for future in futures)
    assert sorted(lines(log) + lines(log, 1)) == [b"%d" % number for number in range(10)]
    with pytest.raises(AppendRefused, match="closed"):
        await bundler.append(0, b"late")


async def test_a_caller_that_goes_away_leaves_its_lines_and_the_others(log: MemoryLog) -> None:
    async with Bundler(log, "jobs") as bundler:
        log.topics.arm(None, delay_ms=5)
        gone = asyncio.create_task(bundler.append(0, b"gone"))
        stays = asyncio.create_task(bundler.append(0, b"stays"))
        await asyncio.sleep(0)
        gone.cancel()
        assert at(log, await stays) == b"stays"
    assert lines(log) == [b"gone", b"stays"]
