"""Trimming: only what is archived, old enough and folded into every kept snapshot; and nothing is missed afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.cli.verify_command import verify_log
from penstock.log.archive import Archive
from penstock.log.archive_log import ArchivedLog
from penstock.log.archiver import Archiver
from penstock.log.blobs import Blobs, open_blobs
from penstock.log.namespace import Namespace, open_namespace
from penstock.log.opening import open_log
from penstock.log.port import Log
from penstock.projections.rebuild import rebuild_partition
from penstock.projections.service import ProjectionService
from penstock.schemas.errors import ArchiveDamaged, BlobsUnavailable, OffsetTrimmed
from penstock.schemas.ids import partition_of
from penstock.schemas.topics import Topics
from penstock.state import trimming as trimming_module
from penstock.state.audit import export, verify_export
from penstock.state.snapshots import Manifest, Snapshots, encode_manifest, manifest_key
from penstock.state.trimming import Trimmer, Trimming, TrimPlan
from tests.state.writing import Writer
from tests.waiting import until

FAR_FUTURE_MS = 4_000_000_000_000


@pytest.fixture(params=["memory", "embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Log]:
    spec = {"memory": "memory:", "embedded": f"embedded:{tmp_path / 'log'}"}.get(request.param)
    if spec is None:
        spec = f"kafka://{request.getfixturevalue('kafka_bootstrap')}"
    async with open_log(spec) as opened:
        yield opened


@pytest.fixture
async def namespace(log: Log, unique_namespace: str) -> Namespace:
    return await open_namespace(log, Topics(namespace=unique_namespace, partitions=2, work_partitions=2))


@pytest.fixture
async def both(log: Log, namespace: Namespace, tmp_path: Path) -> ArchivedLog:
    """A log with jobs in both partitions, all of them archived."""
    for partition in range(2):
        writer = Writer(partition=partition, partitions=2, topic=namespace.topics.jobs)
        for number in range(80):
            name = f"job-{number}"
            if writer.job(name) is None and _partition(name) == partition:
                writer.enqueue(name)
                writer.fail(name)
                writer.write(b"garbage")
                writer.run(name, b'"done"')
                writer.end_record()
            if number == 40:
                writer.announce()
        for record in writer.play([]):
            await log.append(namespace.topics.jobs, partition, record.value, key=b"k")
    archive = Archive(open_blobs(str(tmp_path / "archive")), namespace.topics.jobs, cluster_id=log.cluster_id)
    both = ArchivedLog(log, archive)
    await archived(both, namespace)
    return both


def _partition(name: str) -> int:
    return partition_of(name, 2)


async def archived(both: ArchivedLog, namespace: Namespace) -> None:
    await Archiver(both, namespace, segment_bytes=4_000).round(everything=True)


async def exported(log: Log, namespace: Namespace) -> bytes:
    return b"".join([chunk async for chunk in export(log, namespace.topics)])


async def trim_all(trimming: Trimming) -> list[TrimPlan]:
    plans = [await trimming.plan(partition) for partition in range(2)]
    for plan in plans:
        assert await trimming.trim(plan) == plan.records
    return plans


async def test_after_a_trim_everything_is_answered_as_before(
    both: ArchivedLog, namespace: Namespace, tmp_path: Path
) -> None:
    topics = namespace.topics
    before = await exported(both.live, namespace)
    folds = [
        await rebuild_partition(both.live, topics, partition, tmp_path / "before") for partition in range(2)
    ]
    plans = await trim_all(Trimming(both, topics))
    assert all(plan.records > 90 for plan in plans)
    for plan in plans:
        assert (await both.live.bounds(topics.jobs, plan.partition)).start == plan.before
    # The log alone has no beginning any more; with its archive it is what it was.
    with pytest.raises(OffsetTrimmed):
        await rebuild_partition(both.live, topics, 0, tmp_path / "broken")
    assert await exported(both, namespace) == before
    assert verify_export(before.splitlines()).ok
    proofs = await verify_log(both, namespace, tmp_path / "nothing")
    assert [proof.problems for proof in proofs] == [[], []]
    again = [await rebuild_partition(both, topics, partition, tmp_path / "after") for partition in range(2)]
    assert again == folds
    async with ProjectionService(both, topics, tmp_path / "fresh") as projection:
        await until(lambda: all(lag == 0 for lag in projection.lags.values()), projection)
        status = {one.partition: one.digest for one in await projection.status()}
    assert status == {fold.partition: fold.digest for fold in folds}


async def test_a_projection_that_stood_still_while_its_records_were_trimmed_goes_on(
    both: ArchivedLog, namespace: Namespace, tmp_path: Path
) -> None:
    topics = namespace.topics
    half = (await both.bounds(topics.jobs, 0)).end // 2
    whole = await rebuild_partition(both, topics, 0, tmp_path / "whole")
    await rebuild_partition(both, topics, 0, tmp_path / "slow", until_offset=half)
    await trim_all(Trimming(both, topics))
    caught_up = await rebuild_partition(both, topics, 0, tmp_path / "slow")
    assert (caught_up.digest, caught_up.log_digest) == (whole.digest, whole.log_digest)


# What stands in the way


def obstacles(plan: TrimPlan) -> list[str]:
    return [limit.name for limit in plan.obstacles]


async def test_nothing_goes_that_is_not_archived(
    log: Log, namespace: Namespace, both: ArchivedLog, tmp_path: Path
) -> None:
    topics = namespace.topics
    empty = ArchivedLog(log, Archive(open_blobs(str(tmp_path / "empty")), topics.jobs))
    plan = await Trimming(empty, topics).plan(0)
    assert (plan.records, obstacles(plan)) == (0, ["archive"])
    assert plan.obstacles[0].reason == "nothing is archived"
    assert await Trimming(empty, topics).trim(plan) == 0
    # The record archived last stays, for the log to be known again by it.
    end = (await log.bounds(topics.jobs, 0)).end
    await log.append(topics.jobs, 0, b"new")
    plan = await Trimming(both, topics).plan(0)
    assert plan.before < end
    assert obstacles(plan) == ["archive"]
    await trim_all(Trimming(both, topics))
    await archived(both, namespace)
    assert (await both.archive.bounds(0)) == (0, (await log.bounds(topics.jobs, 0)).end)


async def test_nothing_goes_that_is_younger_than_asked_for(both: ArchivedLog, namespace: Namespace) -> None:
    trimming = Trimming(both, namespace.topics)
    assert (await trimming.plan(0, before_ms=FAR_FUTURE_MS)).records > 90
    plan = await trimming.plan(0, before_ms=0)
    assert (plan.records, obstacles(plan)) == (0, ["age"])


@pytest.fixture
def store(tmp_path: Path) -> Blobs:
    return open_blobs(str(tmp_path / "snapshots"))


async def put_snapshot(store: Blobs, kind: str, partition: int, next_offset: int) -> None:
    name = f"{next_offset:020d}-{kind[:4]}"
    manifest = Manifest(
        name=name, kind=kind, cluster_id="c", topic="t", partitions=2, partition=partition, generation=0,
        next_offset=next_offset, last_offset=next_offset - 1, last_hash="", fold_version=1, layout=1, rules=1,
        state_digest="", log_digest="", created_at_ms=next_offset, files=(),
    )  # fmt: skip
    await store.put(manifest_key(kind, partition, name), encode_manifest(manifest))


async def test_nothing_goes_that_the_oldest_kept_snapshot_of_any_kind_has_not_folded(
    both: ArchivedLog, namespace: Namespace, store: Blobs
) -> None:
    trimming = Trimming(both, namespace.topics, Snapshots(store))
    plan = await trimming.plan(0)
    assert (plan.records, obstacles(plan)) == (0, ["snapshot"])
    assert "no snapshot" in plan.obstacles[0].reason
    await put_snapshot(store, "projection", 0, 90)
    await put_snapshot(store, "projection", 0, 60)
    plan = await trimming.plan(0)
    assert (plan.before, obstacles(plan)) == (59, ["snapshot"])
    assert "projection" in plan.obstacles[0].reason
    # Another kind is in use, but has none of this partition.
    await put_snapshot(store, "orchestrator", 1, 100)
    plan = await trimming.plan(0)
    assert (plan.records, obstacles(plan)) == (0, ["snapshot"])
    assert "orchestrator" in plan.obstacles[0].reason
    await put_snapshot(store, "orchestrator", 0, 40)
    plan = await trimming.plan(0)
    assert plan.before == 39
    assert await trimming.trim(plan) == 39
    assert (await both.live.bounds(namespace.topics.jobs, 0)).start == 39
    assert (await trimming.plan(0)).records == 0


async def test_nothing_goes_whose_archive_cannot_be_read_back(
    both: ArchivedLog, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimming = Trimming(both, namespace.topics)
    plan = await trimming.plan(0)
    blobs = both.archive.blobs
    key = [
        info.key for info in await blobs.list() if info.key.endswith(".records") and "/00000/" in info.key
    ][1]
    data = await blobs.get(key)
    await blobs.put(key, data[:-1])
    with pytest.raises(ArchiveDamaged):
        await trimming.trim(plan)
    assert (await both.live.bounds(namespace.topics.jobs, 0)).start == 0
    await blobs.put(key, data)

    async def gone(key: str) -> bytes:
        raise BlobsUnavailable("nobody there")

    monkeypatch.setattr(blobs, "get", gone)
    with pytest.raises(BlobsUnavailable):
        await trimming.trim(plan)
    assert (await both.live.bounds(namespace.topics.jobs, 0)).start == 0


async def test_the_service_trims_by_itself_and_outlives_failures(
    both: ArchivedLog, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trimming_module, "ROUND_EVERY_S", 0.02)
    topics = namespace.topics
    ends = [(await both.bounds(topics.jobs, partition)).end for partition in range(2)]
    get = both.archive.blobs.get

    async def gone(key: str) -> bytes:
        raise BlobsUnavailable("nobody there")

    monkeypatch.setattr(both.archive.blobs, "get", gone)
    both.archive._manifests.clear()
    async with Trimmer(Trimming(both, topics), topics, after_ms=0) as trimmer:
        await until(lambda: trimmer.numbers.failures > 2, trimmer)
        assert trimmer.numbers.trimmed_offsets == 0
        monkeypatch.setattr(both.archive.blobs, "get", get)
        await until(lambda: trimmer.numbers.trimmed_offsets == sum(ends) - 2, trimmer)
    assert [(await both.live.bounds(topics.jobs, partition)).start for partition in range(2)] == [
        end - 1 for end in ends
    ]
    async with Trimmer(Trimming(both, topics), topics, after_ms=FAR_FUTURE_MS) as idle:
        assert await idle.round() == 0
