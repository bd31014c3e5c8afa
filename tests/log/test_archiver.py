"""The archiver: when it writes, what a crash leaves, what it refuses; damage is found, and so is a job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.core.partition import PartitionFold
from penstock.log import archive_format, archiver
from penstock.log.archive import Archive
from penstock.log.archive_format import Index, SegmentBuilder, encode_block, key_hash, manifest_key
from penstock.log.archive_history import archived_history, whole_history
from penstock.log.archive_log import ArchivedLog
from penstock.log.blobs import Blobs, open_blobs
from penstock.log.chain import FIRST_LINK
from penstock.log.memory import MemoryLog
from penstock.log.namespace import Namespace, open_namespace
from penstock.log.port import Record
from penstock.schemas import events as ev
from penstock.schemas.codec import bundle, encode_line
from penstock.schemas.errors import (
    ArchiveDamaged,
    BlobsUnavailable,
    HistoryChanged,
    LogUnavailable,
    OffsetBeyondEnd,
)
from penstock.schemas.ids import partition_of
from penstock.schemas.topics import Topics
from tests.log.archiving import fill, worker_of
from tests.log.reading import take
from tests.state.writing import Writer
from tests.waiting import until


@pytest.fixture(params=["folder", "bucket"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return open_blobs(
        str(tmp_path / "archive") if request.param == "folder" else request.getfixturevalue("s3_url")
    )


@pytest.fixture
async def namespace_in_memory(blobs: Blobs) -> AsyncIterator[tuple[ArchivedLog, Namespace, list[int]]]:
    clock = [1_700_000_000_000]
    async with MemoryLog(now_ms=lambda: clock[0]) as log:
        namespace = await open_namespace(log, Topics(partitions=2, work_partitions=2))
        yield ArchivedLog(log, Archive(blobs, namespace.topics.jobs, cluster_id="memory")), namespace, clock


# The archiver


async def test_what_is_young_is_left_until_it_is_old_or_a_segment_is_full(
    namespace_in_memory: tuple[ArchivedLog, Namespace, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, namespace, clock = namespace_in_memory
    monkeypatch.setattr(archiver.time, "time_ns", lambda: clock[0] * 1_000_000)
    records = await fill(both.live, namespace.topics.jobs)
    archiving = worker_of(both, namespace, after_ms=60_000)
    assert await archiving.round() == 0
    clock[0] += 60_001
    young = await both.append(namespace.topics.jobs, 0, b"young")
    assert await archiving.round() == 1
    # Once its first record is old, a segment takes all there is.
    assert await both.archive.bounds(0) == (0, young.offset + 1)
    await both.append(namespace.topics.jobs, 0, b"x" * 700)
    assert await archiving.round() == 0
    each = sum(len(record.value) for record in records) // 21
    full = worker_of(both, namespace, after_ms=60_000, segment_bytes=each)
    assert await full.round() == 1


class Crash(Exception):
    """The process dies here."""


class Mortal:
    """A store that dies before or after its n-th write."""

    def __init__(self, blobs: Blobs, at: int, *, after: bool) -> None:
        self._blobs = blobs
        self._left = at
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    async def put(self, key: str, data: bytes) -> None:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise Crash
        await self._blobs.put(key, data)
        if self._left == 0:
            raise Crash


@pytest.mark.parametrize("after", [False, True])
async def test_a_crash_at_any_write_leaves_neither_gap_nor_double(
    namespace_in_memory: tuple[ArchivedLog, Namespace, list[int]], tmp_path: Path, after: bool
) -> None:
    both, namespace, _ = namespace_in_memory
    records = await fill(both.live, namespace.topics.jobs)
    for at in range(1, 13):
        blobs = open_blobs(str(tmp_path / f"a{at}{after}"))
        mortal: Any = Mortal(blobs, at, after=after)
        dying = ArchivedLog(both.live, Archive(mortal, namespace.topics.jobs, cluster_id="memory"))
        with pytest.raises(Crash):
            await worker_of(dying, namespace, segment_bytes=200).round(everything=True)
        again = ArchivedLog(both.live, Archive(blobs, namespace.topics.jobs, cluster_id="memory"))
        await worker_of(again, namespace, segment_bytes=200).round(everything=True)
        found: list[Record] = []
        cursor = again.archive.read(0, 0)
        while more := await cursor.next():
            found.extend(more)
        assert found == records
        verified = await again.archive.verify(0)
        assert verified is not None
        assert verified.records == len(records)


async def test_two_archivers_at_once_leave_one_readable_archive(
    namespace_in_memory: tuple[ArchivedLog, Namespace, list[int]], blobs: Blobs
) -> None:
    both, namespace, _ = namespace_in_memory
    records = await fill(both.live, namespace.topics.jobs, 60)
    others = [
        ArchivedLog(both.live, Archive(blobs, namespace.topics.jobs, cluster_id="memory")) for _ in range(2)
    ]
    sizes = (150, 430)
    await asyncio.gather(
        *(
            worker_of(other, namespace, segment_bytes=size).round(everything=True)
            for other, size in zip(others, sizes, strict=True)
        )
    )
    found: list[Record] = []
    cursor = both.archive.read(0, 0)
    while more := await cursor.next():
        found.extend(more)
    assert found == records
    assert await both.archive.verify(0) is not None


async def test_the_service_archives_by_itself_and_outlives_a_store_that_does_not_answer(
    namespace_in_memory: tuple[ArchivedLog, Namespace, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, namespace, _ = namespace_in_memory
    monkeypatch.setattr(archiver, "ROUND_EVERY_S", 0.01)
    records = await fill(both.live, namespace.topics.jobs)
    put, broken = both.archive.blobs.put, [True]

    async def flaky(key: str, data: bytes) -> None:
        if broken[0]:
            raise BlobsUnavailable("nobody there")
        await put(key, data)

    monkeypatch.setattr(both.archive.blobs, "put", flaky)
    async with worker_of(both, namespace, after_ms=0) as archiving:
        await until(lambda: archiving.numbers.failures > 2, archiving)
        broken[0] = False
        await until(lambda: archiving.numbers.records == len(records), archiving)


async def test_an_archive_of_another_log_is_refused(
    namespace_in_memory: tuple[ArchivedLog, Namespace, list[int]], blobs: Blobs
) -> None:
    both, namespace, clock = namespace_in_memory
    topic = namespace.topics.jobs
    await fill(both.live, topic)
    await worker_of(both, namespace).round(everything=True)
    async with MemoryLog(now_ms=lambda: clock[0], cluster_id="another") as log:
        other = await open_namespace(log, namespace.topics)
        wrong = ArchivedLog(log, Archive(blobs, topic, cluster_id="another"))
        with pytest.raises(HistoryChanged, match="memory"):
            async with worker_of(wrong, other):
                pass
    async with MemoryLog(now_ms=lambda: clock[0]) as log:
        anew = await open_namespace(log, namespace.topics)
        same = ArchivedLog(log, Archive(blobs, topic, cluster_id="memory"))
        with pytest.raises(OffsetBeyondEnd, match="made anew"):
            await worker_of(same, anew).round(everything=True)
        for _ in range(30):
            await log.append(topic, 0, b"of another history")
        with pytest.raises(HistoryChanged, match="not the one that was archived"):
            await worker_of(same, anew).round(everything=True)
        moved = Namespace(topics=namespace.topics, generation=1)
        with pytest.raises(HistoryChanged, match="generation"):
            await worker_of(same, moved).round(everything=True)


# Damage


@pytest.mark.parametrize("suffix", [".records", ".index", ".manifest"])
@pytest.mark.parametrize("how", ["change", "lose", "cut"])
async def test_verify_finds_every_change(
    namespace_in_memory: tuple[ArchivedLog, Namespace, list[int]], blobs: Blobs, suffix: str, how: str
) -> None:
    both, namespace, _ = namespace_in_memory
    await fill(both.live, namespace.topics.jobs)
    await worker_of(both, namespace, segment_bytes=300).round(everything=True)
    infos = [info for info in await blobs.list() if info.key.endswith(suffix)]
    key = infos[1].key
    data = await blobs.get(key)
    if how == "lose":
        await blobs.delete([key])
    elif how == "cut":
        await blobs.put(key, data[:-3])
    elif suffix == ".manifest":
        await blobs.put(key, data.replace(b'"records": ', b'"records": 1'))
    else:
        await blobs.put(key, data[:20] + bytes([data[20] ^ 1]) + data[21:])
    fresh = Archive(blobs, namespace.topics.jobs, cluster_id="memory")
    if how == "lose" and suffix == ".manifest":
        # Then the archive ends before it: nothing behind it counts any more.
        found = await fresh.verify(0)
        assert found is not None
        assert found.segments == 1
    else:
        with pytest.raises(ArchiveDamaged):
            await fresh.verify(0)


async def test_a_manifest_that_was_forged_whole_breaks_the_chain(
    namespace_in_memory: tuple[ArchivedLog, Namespace, list[int]], blobs: Blobs
) -> None:
    both, namespace, _ = namespace_in_memory
    topic = namespace.topics.jobs
    await fill(both.live, topic)
    await worker_of(both, namespace, segment_bytes=300).round(everything=True)
    segment = (await both.archive.segments(0))[1]
    true = await both.archive.manifest(segment)
    data = await both.archive.object(true.data)
    builder = SegmentBuilder(bytes.fromhex(true.digest_before), true.blocks[0].log_time_ms)
    for block in true.blocks:
        for record in archive_format.decode_block(topic, 0, data[block.at : block.at + block.size_bytes]):
            builder.add(msgspec.structs.replace(record, value=b"forged"))
    builder.close_block(encode_block(builder.unfinished))
    forged, index = b"".join(builder.data), archive_format.compressed(builder.index())
    where, name = archive_format.folder(topic, 0), archive_format.stem(true.first_offset, true.next_offset)
    manifest = msgspec.structs.replace(
        true, digest_after=builder.digest.hex(), blocks=builder.blocks, lines=builder.lines,
        value_bytes=builder.value_bytes, last_hash=archive_format.sha256(b"forged").hexdigest(),
        data=archive_format.records_reference(where, name, forged),
        index=archive_format.index_reference(where, name, index),
    )  # fmt: skip
    await blobs.put(manifest.data.key, forged)
    await blobs.put(manifest.index.key, index)
    await blobs.put(
        manifest_key(topic, 0, true.first_offset, true.next_offset), archive_format.encode_manifest(manifest)
    )
    with pytest.raises(ArchiveDamaged, match=f"do not join at offset {true.next_offset}"):
        await Archive(blobs, topic).verify(0)


async def test_a_store_that_is_gone_is_a_log_that_does_not_answer(
    namespace_in_memory: tuple[ArchivedLog, Namespace, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, namespace, _ = namespace_in_memory
    topic = namespace.topics.jobs
    records = await fill(both.live, topic)
    await worker_of(both, namespace).round(everything=True)
    await both.truncate(topic, 0, records[10].offset)

    async def gone(key: str) -> bytes:
        raise BlobsUnavailable("nobody there")

    both.archive._manifests.clear()
    monkeypatch.setattr(both.archive.blobs, "get", gone)
    async with both.tail({(topic, 0): 0}) as tail:
        with pytest.raises(LogUnavailable, match="nobody there"):
            await take(tail, 1)


# Looking for a job


def test_an_index_finds_all_blocks_of_a_job_and_no_others() -> None:
    builder = SegmentBuilder(FIRST_LINK, 0)
    for block in range(5):
        for job in range(block, 50):
            value = f'{{"type":"X","job":"j{job}"}}\nnot json\n{{"job":7}}\n[]\n'.encode()
            builder.add(Record("t", 0, block * 100 + job, 1, True, None, value))
        builder.close_block(b"")
    index = Index.decode(archive_format.compressed(builder.index()))
    for job in range(50):
        assert index.blocks_of(f"default/j{job}") == list(range(min(job, 4) + 1))
    assert index.blocks_of("default/j50") == []
    assert index.blocks_of("other/j1") == []
    assert len(key_hash("x")) == 8


async def test_the_history_of_a_job_is_what_a_fold_of_the_whole_log_says(
    namespace_in_memory: tuple[ArchivedLog, Namespace, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_format, "BLOCK_BYTES", 400)
    both, namespace, clock = namespace_in_memory
    topic = namespace.topics.jobs
    writer = Writer(partitions=2, topic=topic)
    names = [name for name in (f"job-{number}" for number in range(40)) if _lives_in_0(name)][:6]
    for name in names:
        writer.enqueue(name)
        writer.fail(name)
        writer.end_record()
    writer.announce()
    for name in names:
        writer.run(name, b"1")
        writer.write(b"garbage")
        writer.forget(name)
    writer.enqueue(names[0], id="again")
    records = list(writer.play([]))
    expected: dict[str, list[tuple[int, str, bytes]]] = {}
    fold = PartitionFold(0, 2, lambda _: None)
    for record in records:
        clock[0] = record.time_ms
        appended = await both.append(topic, 0, record.value)
        for line in fold.fold(appended.offset, appended.time_ms, True, record.value):
            expected.setdefault(line.key, []).append((line.position, line.outcome, line.line))
    await worker_of(both, namespace, segment_bytes=1_500).round(everything=True)
    assert len(await both.archive.segments(0)) > 2
    for name in names:
        key = f"default/{name}"
        history = await archived_history(both.archive, 0, 2, key)
        assert history is not None
        assert [(one.position, one.outcome, one.line) for one in history.lines] == expected[key]
        assert history.gone is (name != names[0])
    assert await archived_history(both.archive, 0, 2, "default/nobody") is None
    # What came since is found on the log.
    writer.run(names[0])
    for record in writer.play([])[len(records) :]:
        await both.append(topic, 0, record.value)
    older = await archived_history(both.archive, 0, 2, f"default/{names[0]}")
    newer = await whole_history(both, 0, 2, f"default/{names[0]}")
    assert older is not None
    assert newer is not None
    assert [line.outcome for line in newer.lines[len(older.lines) :]] == ["applied", "applied"]


async def test_who_had_a_unique_key_is_judged_with_all_who_wanted_it(
    namespace_in_memory: tuple[ArchivedLog, Namespace, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job's lines alone would not tell: whether it began depends on who held the key, in lines of other jobs."""
    monkeypatch.setattr(archive_format, "BLOCK_BYTES", 1)
    both, namespace, _ = namespace_in_memory
    homes = [home for home in (f"key-{number}" for number in range(20)) if _lives_in_0(f"a~{home}")][:3]
    fold = PartitionFold(0, 2, lambda _: None)
    expected: dict[str, list[tuple[int, str, str]]] = {}

    async def write(*events: ev.Event) -> None:
        value = bundle([encode_line(event) for event in events])
        appended = await both.append(namespace.topics.jobs, 0, value)
        for line in fold.fold(appended.offset, appended.time_ms, True, value):
            for one in (line, line.also):
                if one is not None:
                    expected.setdefault(one.key, []).append((one.position, one.outcome, one.reason))

    def wants(name: str, home: str, on_conflict: ev.OnConflict) -> ev.Event:
        unique = ev.Unique(home, on_conflict=on_conflict)
        return ev.Enqueued(id=f"enq.{name}", job=f"{name}~{home}", job_type="t", unique=unique)

    def cancels(name: str, home: str) -> ev.Event:
        return ev.CancelRequested(id="cancel", job=f"{name}~{home}", of=f"enq.{name}", not_after=1 << 50)

    await write(ev.LeaderAnnounced(id="lead", orchestrator="o", incarnation="i", supersedes=fold.state.epoch))
    for version in (2, 3):
        await write(ev.RulesActivated(id=f"rules-{version}", epoch=fold.state.epoch, version=version))
    for home in homes:
        await write(wants("a", home, "reject"))
        await write(wants("b", home, "reject"))
        await write(wants("c", home, "replace"))
        await write(cancels("c", home), wants("d", home, "reject"))
        await write(cancels("a", home))
    await worker_of(both, namespace, segment_bytes=400).round(everything=True)
    assert len(await both.archive.segments(0)) > 3
    outcomes: set[str] = set()
    for home in homes:
        for name in "abcd":
            key = f"default/{name}~{home}"
            history = await archived_history(both.archive, 0, 2, key)
            assert history is not None
            assert [(one.position, one.outcome, one.reason) for one in history.lines] == expected[key]
            outcomes.update(one.outcome for one in history.lines)
    assert outcomes == {"applied", "conflict"}
    first = await archived_history(both.archive, 0, 2, f"default/a~{homes[0]}")
    assert first is not None
    assert len(first.lines) == 3, (
        "it begins, is replaced by a line of another job, and its cancel comes too late"
    )


def _lives_in_0(name: str) -> bool:
    return partition_of(name, 2) == 0


async def test_an_archiver_takes_over_from_another_that_archived_and_trimmed(
    namespace_in_memory: tuple[ArchivedLog, Namespace, list[int]], blobs: Blobs
) -> None:
    both, namespace, _ = namespace_in_memory
    topic = namespace.topics.jobs
    first, second = (
        worker_of(ArchivedLog(both.live, Archive(blobs, topic, cluster_id="memory")), namespace, after_ms=0)
        for _ in range(2)
    )
    assert await first.round() == await second.round() == 0
    records = await fill(both.live, topic)
    assert await first.round() == 1
    await both.live.truncate(topic, 0, records[-1].offset + 1)
    assert await second.round() == 0
    assert second.numbers.failures == 0
    await both.live.append(topic, 0, b"more")
    assert await second.round() == 1
    found = await both.archive.verify(0)
    assert found is not None
    assert found.records == len(records) + 1


async def test_a_store_that_does_not_answer_yet_does_not_keep_a_role_from_starting(
    namespace_in_memory: tuple[ArchivedLog, Namespace, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, namespace, _ = namespace_in_memory
    monkeypatch.setattr(archiver, "ROUND_EVERY_S", 0.01)
    listing = both.archive.blobs.list

    async def gone(prefix: str = "") -> Any:
        raise BlobsUnavailable("nobody there")

    monkeypatch.setattr(both.archive.blobs, "list", gone)
    records = await fill(both.live, namespace.topics.jobs)
    async with worker_of(both, namespace, after_ms=0) as archiving:
        await until(lambda: archiving.numbers.failures > 1, archiving)
        monkeypatch.setattr(both.archive.blobs, "list", listing)
        await until(lambda: archiving.numbers.records == len(records), archiving)
