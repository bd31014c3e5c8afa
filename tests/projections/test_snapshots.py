"""A projection that loses its folder, with its log whole and with its log trimmed: on every kind of log."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest

from penstock.log.blobs import open_blobs
from penstock.log.port import Log
from penstock.projections.port import JobsQuery
from penstock.projections.rebuild import rebuild_partition
from penstock.projections.service import ProjectionService
from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line
from penstock.schemas.errors import OffsetTrimmed
from penstock.schemas.ids import partition_of
from penstock.schemas.position import Position
from penstock.schemas.topics import Topics
from penstock.state import keeping
from penstock.state.snapshots import Snapshots
from tests.waiting import until

WAIT_MS = 20_000


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> Snapshots:
    monkeypatch.setattr(keeping, "TURN_EVERY_S", 0.01)
    return Snapshots(open_blobs(f"memory://{uuid.uuid4()}"), every_s=0, keep=2)


async def enqueue(log: Log, topics: Topics, job_ids: list[str]) -> dict[int, Position]:
    """One record each; returns the last position of each partition."""
    last: dict[int, Position] = {}
    for job_id in job_ids:
        partition = partition_of(job_id, topics.partitions)
        event = ev.Enqueued(id=f"enq.{job_id}", job=job_id, job_type="resize")
        appended = await log.append(topics.jobs, partition, encode_line(event))
        last[partition] = Position(partition, appended.offset, 0)
    return last


async def test_a_folder_is_restored_and_the_tail_folded(
    log: Log, topics: Topics, tmp_path: Path, snapshots: Snapshots
) -> None:
    folder = tmp_path / "views"
    async with ProjectionService(log, topics, folder, snapshots=snapshots) as service:
        await service.wait(await enqueue(log, topics, [f"a{number}" for number in range(40)]), WAIT_MS)
        offsets = service.offsets
        used = {number for number, offset in offsets.items() if offset}

        def taken() -> set[int]:
            numbers = service.snapshot_numbers()
            return {
                number
                for number in used
                if numbers.get(f'penstock_snapshot_next_offset{{partition="{number}"}}') == offsets[number]
            }

        await until(lambda: taken() == used, service)
    shutil.rmtree(folder)
    last = await enqueue(log, topics, [f"b{number}" for number in range(9)])
    whole = {
        number: await rebuild_partition(log, topics, number, tmp_path / "anew")
        for number in range(topics.partitions)
    }
    for number in used:
        await log.truncate(topics.jobs, number, offsets[number] - 1)
    with pytest.raises(OffsetTrimmed):
        async with ProjectionService(log, topics, tmp_path / "none"):
            pass
    async with ProjectionService(log, topics, folder, snapshots=snapshots) as service:
        # Some partitions may have stayed empty, and have nothing to be restored.
        assert {number: service.offsets[number] >= offsets[number] for number in used} == dict.fromkeys(
            used, True
        )
        await service.wait(last, WAIT_MS)
        status = {part.partition: part for part in await service.status()}
        assert {number: part.digest for number, part in status.items()} == {
            number: rebuilt.digest for number, rebuilt in whole.items()
        }
        page = await service.list_jobs(JobsQuery(limit=1_000))
        assert page.total == 49
        history = await service.history("default", "a7")
        assert history is not None
        assert [item.type for item in history.items] == ["Enqueued"]


async def test_without_snapshots_none_are_made(log: Log, topics: Topics, tmp_path: Path) -> None:
    async with ProjectionService(log, topics, tmp_path / "views") as service:
        await service.wait(await enqueue(log, topics, ["a"]), WAIT_MS)
        assert service.snapshot_numbers() == {}


async def test_a_later_version_lets_go_of_the_earlier_once_it_has_caught_up(
    log: Log, topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "TURN_EVERY_S", 0.01)
    folder = tmp_path / "views"
    last = await enqueue(log, topics, [f"a{number}" for number in range(20)])
    with monkeypatch.context() as patch:
        patch.setattr("penstock.projections.service.LAYOUT", 0)
        async with ProjectionService(log, topics, folder) as service:
            await service.wait(last, WAIT_MS)
    old = sorted(folder.glob("partition-*/fold-*"))
    assert len(old) == topics.partitions
    async with ProjectionService(log, topics, folder) as service:
        await service.wait(last, WAIT_MS)
        await until(lambda: not any(path.exists() for path in old), service)
        assert len(list(folder.glob("partition-*/fold-*"))) == topics.partitions
        assert (await service.list_jobs(JobsQuery(limit=1_000))).total == 20
