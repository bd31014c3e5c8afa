from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec import Raw

from penstock.log.memory import MemoryLog
from penstock.log.namespace import open_namespace
from penstock.log.port import Log
from penstock.projections.port import JobsQuery, ReadModel
from penstock.projections.rebuild import check_same, rebuild_partition, verify_rows
from penstock.projections.service import ProjectionService, projection_store
from penstock.projections.views import enqueued_view
from penstock.schemas import events as ev
from penstock.schemas.codec import bundle, encode_line
from penstock.schemas.errors import (
    DigestMismatch,
    HistoryChanged,
    OffsetTrimmed,
    ReadBehind,
    ReadModelUnavailable,
    UnknownRules,
)
from penstock.schemas.ids import partition_of
from penstock.schemas.position import Position
from penstock.schemas.topics import Topics
from penstock.state.partition_store import PartitionStore, StoreFactory, StoreIdentity
from tests.core.newer_rules import NEXT, activations
from tests.state.shelf import Shelf
from tests.state.writing import Writer

WAIT_MS = 20_000


async def enqueue(log: Log, topics: Topics, job_id: str, **fields: object) -> Position:
    partition = partition_of(job_id, topics.partitions)
    event = ev.Enqueued(id=f"enq.{job_id}", job=job_id, job_type="resize", **fields)  # pyright: ignore[reportArgumentType]  # any field
    appended = await log.append(topics.jobs, partition, encode_line(event))
    return Position(partition, appended.offset, 0)


def highest(positions: list[Position]) -> dict[int, Position]:
    return {position.partition: position for position in sorted(positions)}


def opening(factory: StoreFactory) -> Callable[[Path, StoreIdentity], PartitionStore]:
    return lambda folder, identity: projection_store(folder, identity, factory)


@asynccontextmanager
async def serving(
    log: Log, topics: Topics, folder: Path, factory: StoreFactory | None = None
) -> AsyncIterator[ProjectionService]:
    async with ProjectionService(log, topics, folder, store_factory=factory or Shelf()) as service:
        yield service


async def test_a_write_is_read_once_its_position_was_waited_for(
    log: Log, topics: Topics, tmp_path: Path, store_factory: StoreFactory
) -> None:
    async with serving(log, topics, tmp_path / "views", store_factory) as service:
        model: ReadModel = service
        positions = [await enqueue(log, topics, f"j{number}", payload=Raw(b"[1]")) for number in range(40)]
        await model.wait(highest(positions), WAIT_MS)
        page = await model.list_jobs(JobsQuery(limit=1_000))
        assert {job.id for job in page.items} == {f"j{number}" for number in range(40)}
        assert page.total == 40
        assert {row.state: row.jobs for row in await model.counts()} == {"ready": 40}
        view = await model.job("default", "j7")
        assert view is not None
        assert bytes(view.payload) == b"[1]"
        assert view.position == str(positions[7])
        assert await model.job("other", "j7") is None
        history = await model.history("default", "j7")
        assert history is not None
        assert [item.type for item in history.items] == ["Enqueued"]
        status = await model.status()
        assert [one.partition for one in status] == [0, 1, 2, 3]
        assert sum(one.accepted for one in status) == 40
        assert all(one.next_offset == one.end_offset for one in status)
        assert set(service.lags.values()) == {0}
        assert service.numbers.lines == 40


async def test_the_view_answered_without_waiting_is_the_one_that_is_read_later(
    log: Log, topics: Topics, tmp_path: Path
) -> None:
    event = ev.Enqueued(
        id="e", job="j", job_type="resize", payload=Raw(b'{"a":1}'), delay_ms=50, tags=("x",), timeout_ms=5
    )
    partition = partition_of("j", topics.partitions)
    appended = await log.append(topics.jobs, partition, encode_line(event))
    position = Position(partition, appended.offset, 0)
    async with serving(log, topics, tmp_path) as service:
        await service.wait({partition: position}, WAIT_MS)
        assert enqueued_view(event, position, appended.time_ms) == await service.job("default", "j")


async def test_waiting_ends_with_how_far_behind_it_is(log: Log, topics: Topics, tmp_path: Path) -> None:
    async with serving(log, topics, tmp_path) as service:
        with pytest.raises(ReadBehind) as caught:
            await service.wait({0: Position(0, 6, 3), 1: Position(1, 0, 0)}, 1)
        assert caught.value.details["behind"][0] == {
            "partition": 0,
            "wanted": "0:6:3",
            "folded": 0,
            "lag_records": 7,
        }
        assert len(caught.value.details["behind"]) == 2
        assert service.numbers.waits_behind == 1
        with pytest.raises(ReadModelUnavailable):
            await service.wait({9: Position(9, 0, 0)}, 1)


async def test_verdicts_are_found_by_event(log: Log, topics: Topics, tmp_path: Path) -> None:
    async with serving(log, topics, tmp_path) as service:
        first = await enqueue(log, topics, "j")
        again = await enqueue(log, topics, "j")
        other = await enqueue(log, topics, "j", queue="bulk")

        async def cancel(event_id: str) -> Position:
            event = ev.CancelRequested(id=event_id, job="j", of="enq.j", not_after=4_000_000_000_000)
            late = await log.append(topics.jobs, first.partition, encode_line(event))
            in_time = encode_line(
                ev.CancelRequested(id=event_id, job="j", of="enq.j", not_after=late.time_ms + 60_000)
            )
            appended = await log.append(topics.jobs, first.partition, in_time)
            return Position(first.partition, appended.offset, 0)

        cancelled = await cancel("c1")
        repeated = await cancel("c1")
        refused = await cancel("c2")
        missing = Position(first.partition, refused.offset, 0)
        wanted = [
            (first, "enq.j"),
            (again, "enq.j"),
            (other, "enq.j"),
            (cancelled, "c1"),
            (repeated, "c1"),
            (refused, "c2"),
            (missing, "c1"),
            (missing, "never"),
        ]
        found = await service.verdicts(
            [(position, "default", "j", event_id) for position, event_id in wanted], WAIT_MS
        )
        assert [verdict.outcome for verdict in found] == [
            "applied",
            "duplicate",
            "conflict",
            "applied",
            "applied",
            "illegal",
            "applied",
            "unknown",
        ]
        assert all(verdict.job is not None and verdict.job.state == "cancelled" for verdict in found)
        wrong = ev.Succeeded(id="s", job="j", lease="none")
        late = await log.append(topics.jobs, first.partition, bundle([encode_line(wrong)] * 2))
        stale = [(Position(first.partition, late.offset, line), "default", "j", "s") for line in range(2)]
        assert [verdict.outcome for verdict in await service.verdicts(stale, WAIT_MS)] == ["stale"] * 2
        stranger = await enqueue(log, topics, "k")
        [verdict] = await service.verdicts([(stranger, "default", "nobody", "x")], WAIT_MS)
        assert (verdict.outcome, verdict.job) == ("unknown_job", None)


async def test_it_goes_on_where_it_stopped(
    log: Log, topics: Topics, tmp_path: Path, store_factory: StoreFactory
) -> None:
    digests: set[str] = set()
    for number in range(3):
        async with serving(log, topics, tmp_path / "views", store_factory) as service:
            position = await enqueue(log, topics, f"j{number}~home")
            await service.wait({position.partition: position}, WAIT_MS)
            assert service.numbers.records == 1
            status = (await service.status())[position.partition]
            digests.add(status.digest)
    assert len(digests) == 3
    rebuilt = await rebuild_partition(log, topics, position.partition, tmp_path / "anew")
    assert rebuilt.digest == status.digest
    assert check_same(rebuilt, status) == 1


async def test_another_history_ends_the_start(topics: Topics, tmp_path: Path) -> None:
    shelf = Shelf()
    async with MemoryLog() as log:
        await open_namespace(log, topics)
        async with serving(log, topics, tmp_path, shelf) as service:
            position = await enqueue(log, topics, "j")
            await service.wait({position.partition: position}, WAIT_MS)
        log.topics.forget(topics.jobs)
        for _ in range(2):
            await enqueue(log, topics, "j", queue="bulk")
        with pytest.raises(HistoryChanged):
            await ProjectionService(log, topics, tmp_path, store_factory=shelf).__aenter__()
    async with MemoryLog(cluster_id="another") as log:
        await open_namespace(log, topics)
        with pytest.raises(HistoryChanged):
            await ProjectionService(log, topics, tmp_path, store_factory=shelf).__aenter__()


async def test_it_ends_loudly_when_history_is_trimmed_away(topics: Topics, tmp_path: Path) -> None:
    async with MemoryLog() as log:
        await open_namespace(log, topics)
        log.topics.skip_offsets(topics.jobs, 0, 5)
        await log.append(topics.jobs, 0, b"{}")
        log.topics.truncate(topics.jobs, 0, 3)
        with pytest.raises(OffsetTrimmed):
            await ProjectionService(log, topics, tmp_path, store_factory=Shelf()).__aenter__()


async def test_its_failure_reaches_those_who_wait(topics: Topics, tmp_path: Path) -> None:
    async with MemoryLog() as log:
        await open_namespace(log, topics)
        writer = Writer()
        lines = [line for record in writer.records for line in (record.value,)]
        lines += map(encode_line, activations(NEXT))
        async with serving(log, topics, tmp_path) as service:
            waiting = asyncio.gather(
                service.wait({0: Position(0, 5, 0)}, WAIT_MS),
                service.wait({0: Position(0, 5, 0), 1: Position(1, 5, 0)}, WAIT_MS),
                return_exceptions=True,
            )
            await asyncio.sleep(0)
            await log.append(topics.jobs, 0, bundle(lines))
            with pytest.raises(UnknownRules):
                await asyncio.wait_for(asyncio.shield(service.failure), 20)
            assert [type(error) for error in await waiting] == [ReadModelUnavailable] * 2
            with pytest.raises(ReadModelUnavailable):
                await service.wait({0: Position(0, 5, 0)}, WAIT_MS)


async def test_waiters_who_give_up_are_forgotten(topics: Topics, tmp_path: Path) -> None:
    async with MemoryLog() as log:
        await open_namespace(log, topics)
        async with serving(log, topics, tmp_path) as service:
            part = service._parts[0]  # pyright: ignore[reportPrivateUsage]  # what it keeps is not to be seen
            for _ in range(500):
                with pytest.raises(ReadBehind):
                    await service.wait({0: Position(0, 1_000_000, 0)}, 0)
            await asyncio.sleep(0)
            assert len(part.waiters) == 0
            assert len(part.waiters._heap) < 200  # pyright: ignore[reportPrivateUsage]  # as above
            patient = asyncio.create_task(service.wait({0: Position(0, 0, 0)}, WAIT_MS))
            await asyncio.sleep(0)
            await log.append(topics.jobs, 0, b"{}")
            await patient


async def test_readers_run_while_much_is_folded(topics: Topics, tmp_path: Path) -> None:
    """A long fetch is folded in slices; each answer in between stands at one offset, with its counts."""
    async with MemoryLog() as log:
        await open_namespace(log, topics)
        home = "x~home"
        partition = partition_of(home, topics.partitions)
        for record in range(100):
            lines = [
                encode_line(ev.Enqueued(job=f"j{record}-{line}~home", job_type="t")) for line in range(100)
            ]
            await log.append(topics.jobs, partition, bundle(lines))
        totals: list[int] = []
        async with serving(log, topics, tmp_path) as service:
            while not totals or totals[-1] < 10_000:
                page = await service.list_jobs(JobsQuery(limit=3))
                assert page.total == sum(row.jobs for row in await service.counts())
                assert page.total % 100 == 0
                totals.append(page.total)
                await asyncio.sleep(0)
        assert totals == sorted(totals)
        assert len(set(totals)) > 2


async def test_a_page_ends_early_where_bodies_are_large(topics: Topics, tmp_path: Path) -> None:
    async with MemoryLog() as log:
        await open_namespace(log, topics)
        body = Raw(b'"' + b"x" * 250_000 + b'"')
        async with serving(log, topics, tmp_path) as service:
            positions = [await enqueue(log, topics, f"j{number:02}", payload=body) for number in range(50)]
            await service.wait(highest(positions), WAIT_MS)
            found: list[str] = []
            cursor = ""
            pages = 0
            while True:
                page = await service.list_jobs(JobsQuery(limit=50, cursor=cursor))
                found.extend(job.id for job in page.items)
                pages += 1
                if page.next_cursor is None:
                    break
                cursor = page.next_cursor
            assert (len(found), len(set(found)), pages) == (50, 50, 2)


async def test_a_rebuilt_projection_has_the_live_ones_digest(
    log: Log, topics: Topics, tmp_path: Path, store_factory: StoreFactory
) -> None:
    writer = Writer(topic=topics.jobs)
    for number in range(30):
        writer.enqueue(f"j{number}~x", max_attempts=2)
        if number % 3 == 0:
            writer.run(f"j{number}~x")
        elif number % 3 == 1:
            writer.fail(f"j{number}~x")
    writer.write(b"not json")
    writer.end_record()
    partition = partition_of("j0~x", topics.partitions)
    for record in writer.records:
        await log.append(topics.jobs, partition, record.value)
    last = Position(partition, len(writer.records) - 1, 0)
    async with serving(log, topics, tmp_path / "live", store_factory) as service:
        await service.wait({partition: last}, WAIT_MS)
        live = (await service.status())[partition]
    progress: list[tuple[int, int]] = []
    rebuilt = await rebuild_partition(
        log,
        topics,
        partition,
        tmp_path / "anew",
        on_progress=lambda done, goal: progress.append((done, goal)),
    )
    assert check_same(rebuilt, live) == 1
    assert progress[-1] == (len(writer.records), len(writer.records))
    assert (rebuilt.quarantined, rebuilt.next_offset) == (1, live.next_offset)
    half = await rebuild_partition(log, topics, partition, tmp_path / "half", until_offset=7)
    assert half.next_offset == 7
    assert check_same(half, live) == 0
    lied = type(rebuilt)(
        **{name: getattr(rebuilt, name) for name in rebuilt.__struct_fields__} | {"digest": "0" * 64}
    )
    with pytest.raises(DigestMismatch, match="the log gives 0000"):
        check_same(lied, live)


async def test_a_damaged_store_is_noticed(topics: Topics, tmp_path: Path) -> None:
    async with MemoryLog() as log:
        await open_namespace(log, topics)
        await enqueue(log, topics, "j")
        partition = partition_of("j", topics.partitions)
        shelf = Shelf()
        await rebuild_partition(log, topics, partition, tmp_path, open_store=opening(shelf))
        identity = StoreIdentity(log.cluster_id, topics.jobs, partition, topics.partitions)
        store = projection_store(tmp_path, identity, shelf)
        assert verify_rows(store) == store.digest
        batch = store.store.batch()
        batch.put("fold", b"jdefault/j", b"damage")
        store.store.write(batch)
        with pytest.raises(DigestMismatch, match="rows add up to"):
            verify_rows(store)


async def test_a_rebuild_ends_where_a_log_ends_in_a_gap(
    topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.projections.rebuild.POLL_MS", 1)
    async with MemoryLog() as log:
        await open_namespace(log, topics)
        await log.append(topics.jobs, 0, b"{}")
        log.topics.skip_offsets(topics.jobs, 0, 5)
        rebuilt = await rebuild_partition(log, topics, 0, tmp_path, open_store=opening(Shelf()))
        assert rebuilt.next_offset == 1
