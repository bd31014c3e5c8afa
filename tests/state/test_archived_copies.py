"""The archive of a log that was copied from another: its jobs' histories are what a fold of all of it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.core.partition import Folded, PartitionFold
from penstock.log import archive_format
from penstock.log.archive import Archive
from penstock.log.archive_history import archived_history
from penstock.log.archive_log import ArchivedLog
from penstock.log.archiver import Archiver
from penstock.log.blobs import open_blobs
from penstock.log.namespace import open_namespace
from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line
from penstock.schemas.copies import copy_header
from penstock.schemas.ids import partition_of
from penstock.schemas.topics import Topics
from tests.state.copying import World, random_world, target_topics


async def lives_on(world: World, target: Topics) -> None:
    """After the seal: a leader, and a new job that it leases."""
    for number in range(target.partitions):
        fold, _ = folded(world, target, number)
        name = next(f"new-{n}" for n in range(1_000) if partition_of(f"new-{n}", target.partitions) == number)
        lines: list[ev.Event] = [
            ev.LeaderAnnounced(id="lead", orchestrator="o", incarnation="i", supersedes=fold.state.epoch),
            ev.Enqueued(id=f"enq.{name}", job=name, job_type="t"),
        ]
        for line in lines:
            await world.log.append(target.jobs, number, encode_line(line))
        fold, _ = folded(world, target, number)
        job = fold.job(f"default/{name}")
        assert job is not None
        lease = ev.Leased(
            id="lease", job=name, epoch=fold.state.epoch, worker="w", attempt=1, lease_ms=1, seen=job.seen
        )
        await world.log.append(target.jobs, number, encode_line(lease))


def folded(world: World, topics: Topics, number: int) -> tuple[PartitionFold, list[Folded]]:
    fold = PartitionFold(number, topics.partitions, lambda _: None)
    lines: list[Folded] = []
    for one in world.log.topics.read(topics.jobs, number, 0, 10**6):
        lines += fold.fold(one.offset, one.time_ms, True, one.value, copy_header(one.headers))
    return fold, lines


@pytest.mark.parametrize("seed", range(3))
async def test_copied_jobs_and_those_that_came_after(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_format, "BLOCK_BYTES", 1)
    world, target = await random_world(seed), target_topics(2)
    async with world.copier(target) as copier:
        await copier.copy()
        # Too early: the partition is still being copied, and takes nothing else.
        for number in range(2):
            name = next(f"early-{n}" for n in range(1_000) if partition_of(f"early-{n}", 2) == number)
            await world.log.append(
                target.jobs, number, encode_line(ev.Enqueued(id="e", job=name, job_type="t"))
            )
        await copier.seal()
    namespace = await open_namespace(world.log, target)
    await lives_on(world, target)
    archive = Archive(open_blobs(str(tmp_path)), target.jobs, cluster_id=world.log.cluster_id)
    await Archiver(ArchivedLog(world.log, archive), namespace, segment_bytes=5_000).round(everything=True)
    checked = leased = 0
    for number in range(2):
        _, lines = folded(world, target, number)
        early = next(f"early-{n}" for n in range(1_000) if partition_of(f"early-{n}", 2) == number)
        assert await archived_history(archive, number, 2, f"default/{early}") is None
        for key in {line.key for line in lines if line.key}:
            found = await archived_history(archive, number, 2, key)
            assert found is not None
            expected = [line for line in lines if line.key == key]
            assert [_told(line) for line in found.lines] == [_told(line) for line in expected]
            checked += 1
            leased += expected[-1].outcome == "applied" and isinstance(expected[-1].event, ev.Leased)
    assert checked > 10
    assert leased >= 2


def _told(line: Folded) -> tuple[int, int, str, str, bytes]:
    return line.position, line.time_ms, line.outcome, line.reason, line.line
