"""The archive read as if it were the log: exact, whole, joined."""

from __future__ import annotations

import asyncio
import uuid
from itertools import pairwise
from pathlib import Path

import pytest

from penstock.log import archive_format
from penstock.log.archive import Archive, Segment, cover
from penstock.log.archive_log import ArchivedLog
from penstock.log.blobs import Blobs, open_blobs
from penstock.log.chain import FIRST_LINK, next_link
from penstock.log.namespace import Namespace, open_namespace
from penstock.log.port import Log, Record
from penstock.schemas.errors import (
    OffsetBeyondEnd,
    OffsetTrimmed,
)
from penstock.schemas.topics import Topics
from tests.log.archiving import fill, worker_of
from tests.log.reading import read, take
from tests.waiting import PATIENCE_S


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return open_blobs(str(tmp_path / "archive"))


@pytest.fixture
async def namespace(log: Log, unique_namespace: str) -> Namespace:
    return await open_namespace(log, Topics(namespace=unique_namespace, partitions=2, work_partitions=2))


@pytest.fixture
async def both(log: Log, namespace: Namespace, blobs: Blobs) -> ArchivedLog:
    """The log with its archive; the log itself is entered already."""
    return ArchivedLog(log, Archive(blobs, namespace.topics.jobs, cluster_id=log.cluster_id))


async def test_records_come_out_of_the_archive_exactly_as_they_were(
    both: ArchivedLog, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_format, "BLOCK_BYTES", 150)
    topic = namespace.topics.jobs
    records = await fill(both.live, topic)
    archiving = worker_of(both, namespace, segment_bytes=300)
    written = await archiving.round(everything=True)
    assert written >= 2
    assert archiving.numbers.records == 20
    cursor = both.archive.read(0, 0)
    found: list[Record] = []
    while more := await cursor.next(3):
        assert len(more) <= 3
        found.extend(more)
    assert found == records
    assert cursor.offset == records[-1].offset + 1
    middle = both.archive.read(0, records[11].offset)
    assert (await middle.next())[0] == records[11]
    assert await archiving.round(everything=True) == 0


async def test_manifests_join_into_the_chain_that_folders_of_the_log_keep(
    both: ArchivedLog, namespace: Namespace
) -> None:
    records = await fill(both.live, namespace.topics.jobs)
    await worker_of(both, namespace, segment_bytes=300).round(everything=True)
    link = FIRST_LINK
    for record in records:
        link = next_link(link, record.offset, record.value)
    found = await both.archive.verify(0)
    assert found is not None
    assert (found.first_offset, found.next_offset, found.records) == (0, records[-1].offset + 1, 20)
    assert found.digest == link.hex()
    segments = await both.archive.segments(0)
    assert len(segments) == found.segments > 2
    manifests = [await both.archive.manifest(segment) for segment in segments]
    for before, after in pairwise(manifests):
        assert (before.next_offset, before.digest_after) == (after.first_offset, after.digest_before)
    assert await both.archive.verify(1) is None


async def test_after_a_trim_the_log_reads_on_as_before(both: ArchivedLog, namespace: Namespace) -> None:
    topic = namespace.topics.jobs
    records = await fill(both.live, topic)
    other = await fill(both.live, topic, 3, partition=1)
    await worker_of(both, namespace, segment_bytes=300).round(everything=True)
    later = [await both.append(topic, 0, b"later") for _ in range(3)]
    await both.truncate(topic, 0, records[13].offset)
    assert (await both.live.bounds(topic, 0)).start == records[13].offset
    assert await both.bounds(topic, 0) == (0, later[-1].offset + 1)
    found = await read(both, {(topic, 0): 0, (topic, 1): 0})
    assert [record for record in found if record.partition == 0][:20] == records
    assert [record.value for record in found if record.partition == 0][20:] == [b"later"] * 3
    assert [record for record in found if record.partition == 1] == other
    assert (await read(both, {(topic, 0): records[5].offset}))[:15] == records[5:]
    for record in (records[4], records[12], records[13], records[19]):
        assert await both.offset_at(topic, 0, record.time_ms) == await _first_at(records, record.time_ms)
    assert await both.offset_at(topic, 0, 0) == 0
    assert await both.offset_at(topic, 0, later[-1].time_ms + 60_000) == later[-1].offset + 1


async def _first_at(records: list[Record], time_ms: int) -> int:
    return next(record.offset for record in records if record.time_ms >= time_ms)


async def test_everything_trimmed_and_new_records_behind(both: ArchivedLog, namespace: Namespace) -> None:
    topic = namespace.topics.jobs
    records = await fill(both.live, topic)
    await worker_of(both, namespace).round(everything=True)
    await both.truncate(topic, 0, records[-1].offset + 1)
    async with both.tail({(topic, 0): 0}) as tail:
        assert await take(tail, 20) == records
        assert list(await tail.poll(10)) == []
        await both.append(topic, 0, b"new")
        assert [record.value for record in await take(tail, 1)] == [b"new"]
        tail.follow(topic, 0, records[2].offset)
        assert (await take(tail, 18))[0] == records[2]
        tail.drop(topic, 0)
        assert list(await tail.poll(10)) == []


async def test_a_slow_reader_is_overtaken_by_a_trim_and_goes_on_in_the_archive(
    both: ArchivedLog, namespace: Namespace
) -> None:
    topic = namespace.topics.jobs
    records = await fill(both.live, topic)
    await worker_of(both, namespace).round(everything=True)
    async with both.tail({(topic, 0): 0}) as tail:
        async with asyncio.timeout(PATIENCE_S):
            first: list[Record] = []
            while not first:
                first.extend(await tail.poll(500, 4))
        tail.follow(topic, 0, first[-1].offset + 1)
        assert list(await tail.poll(0, 1)) in ([], [records[len(first)]])
        tail.follow(topic, 0, first[-1].offset + 1)
        await both.truncate(topic, 0, records[15].offset)
        assert await take(tail, 20 - len(first)) == records[len(first) :]


async def test_what_neither_has_is_an_error_and_not_a_gap(both: ArchivedLog, namespace: Namespace) -> None:
    topic = namespace.topics.jobs
    records = await fill(both.live, topic)
    archiving = worker_of(both, namespace)
    await archiving.round(everything=True)
    for _ in range(3):
        last = await both.append(topic, 0, b"not archived")
    await both.truncate(topic, 0, last.offset)
    assert (await both.bounds(topic, 0)).start == last.offset
    async with both.tail({(topic, 0): records[2].offset}) as tail:
        with pytest.raises(OffsetTrimmed, match=str(last.offset)):
            await take(tail, 1)
    with pytest.raises(OffsetTrimmed, match="what lies between is lost"):
        await archiving.archive(0, everything=True)
    with pytest.raises(OffsetTrimmed):
        async with worker_of(both, namespace):
            pass


async def test_an_offset_beyond_the_end_is_an_error(both: ArchivedLog, namespace: Namespace) -> None:
    topic = namespace.topics.jobs
    await fill(both.live, topic)
    async with both.tail({(topic, 0): 99}) as tail:
        with pytest.raises(OffsetBeyondEnd):
            await take(tail, 1)


async def test_other_topics_are_the_log_s_own(both: ArchivedLog, namespace: Namespace) -> None:
    control = namespace.topics.control
    await both.append(control, 0, b"x")
    assert len(await read(both, {(control, 0): 0})) == 2
    assert await both.offset_at(control, 0, 0) == 0


# Which segments are read


@pytest.mark.parametrize(
    ("listed", "chosen"),
    [
        ([], []),
        ([(0, 5), (5, 9)], [(0, 5), (5, 9)]),
        ([(5, 9), (0, 5), (0, 7)], [(0, 7), (5, 9)]),
        ([(0, 5), (6, 9)], [(0, 5)]),
        ([(0, 5), (1, 3), (2, 4), (5, 6)], [(0, 5), (5, 6)]),
        ([(0, 10), (10, 12), (0, 4), (4, 11), (11, 20), (12, 13)], [(0, 10), (10, 12), (11, 20)]),
        ([(3, 5), (5, 9)], [(3, 5), (5, 9)]),
    ],
)
def test_the_cover_reaches_as_far_as_it_can(
    listed: list[tuple[int, int]], chosen: list[tuple[int, int]]
) -> None:
    found = cover([Segment(first, behind, uuid.uuid4().hex) for first, behind in listed])
    assert [(segment.first, segment.next) for segment in found] == chosen
