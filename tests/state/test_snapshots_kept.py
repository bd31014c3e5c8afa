"""Snapshots over time: pruned, and taken again and again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from penstock.log.blobs import open_blobs
from penstock.schemas.errors import (
    BlobsUnavailable,
)
from penstock.state import keeping, snapshots_taking
from penstock.state.keeping import StateKeeper
from penstock.state.partition_store import PartitionStore
from penstock.state.snapshots import (
    GRACE_MS,
    Snapshots,
    encode_manifest,
    file_key,
    manifest_key,
)
from penstock.state.snapshots_restoring import Restore
from penstock.state.snapshots_taking import SnapshotTaker
from tests.state.snapshot_scene import KIND, PARTITIONS, Scene, identity, spoil
from tests.waiting import until

FAR_MS = 4_000_000_000_000

# Pruning


async def test_as_many_are_kept_as_are_wanted(scene: Scene) -> None:
    manifests = [await scene.take(jobs=20) for _ in range(5)]
    names = [manifest.name for manifest in manifests]
    assert await scene.snapshots.names("projection", 0) == names[:1:-1]
    pruned = await scene.snapshots.prune("projection", 0, FAR_MS, keep=2)
    assert pruned.snapshots == (names[2],)
    assert pruned.files > 0
    assert pruned.freed_bytes > 0
    assert await scene.snapshots.names("projection", 0) == [names[4], names[3]]
    for manifest in manifests[3:]:
        path = scene.folder / manifest.name
        fetch = Restore(scene.log, path, identity(), KIND, scene.snapshots)
        await fetch.fetch(manifest)
        with PartitionStore.open(path, identity=identity(), extra=KIND.families, layout=3) as store:
            assert store.recompute_digest() == manifest.state_digest
    named = {file.sha256 for manifest in manifests[3:] for file in manifest.files}
    stored = {info.key.rpartition("/")[2] for info in await scene.blobs.list("projection/0/files")}
    assert stored == named
    assert (await scene.snapshots.prune("projection", 0, FAR_MS, keep=2)).files == 0


async def test_the_newest_always_stays(scene: Scene) -> None:
    manifest = await scene.take()
    await scene.snapshots.prune("projection", 0, FAR_MS, keep=0)
    assert [kept.name for kept in await scene.snapshots.kept("projection", 0)] == [manifest.name]


async def test_files_of_an_upload_on_its_way_are_left_alone(scene: Scene) -> None:
    await scene.take()
    key = file_key("projection", 0, "ab" * 32)
    await scene.blobs.put(key, b"its manifest comes later")
    [info] = [info for info in await scene.blobs.list() if info.key == key]
    assert (await scene.snapshots.prune("projection", 0, info.modified_ms + GRACE_MS)).files == 0
    assert (await scene.snapshots.prune("projection", 0, info.modified_ms + GRACE_MS + 1)).files == 1
    assert key not in [info.key for info in await scene.blobs.list()]


async def test_what_cannot_be_read_goes_when_it_is_old(scene: Scene) -> None:
    old, new = await scene.take(), await scene.take()
    await spoil(scene.blobs, manifest_key("projection", 0, old.name))
    now_ms = time.time_ns() // 1_000_000
    assert (await scene.snapshots.prune("projection", 0, now_ms)).snapshots == ()
    assert (await scene.snapshots.prune("projection", 0, FAR_MS)).snapshots == (old.name,)
    assert await scene.snapshots.names("projection", 0) == [new.name]


async def test_another_versions_snapshots_stay_until_they_are_left_behind(scene: Scene) -> None:
    mine = [await scene.take(jobs=5) for _ in range(3)]
    for number, manifest in enumerate(mine):
        other = msgspec.structs.replace(
            manifest,
            layout=2,
            name=f"{manifest.next_offset:020d}-older{number}",
            created_at_ms=manifest.created_at_ms,
        )
        await scene.blobs.put(manifest_key("projection", 0, other.name), encode_manifest(other))
    await scene.snapshots.prune("projection", 0, FAR_MS)
    assert len(await scene.snapshots.names("projection", 0)) == 6
    for number in range(3):
        await scene.take(jobs=5)
        left = await scene.snapshots.names("projection", 0)
        assert len(left) == (6 if number < 2 else 3)
    assert all("older" not in name for name in left)


async def test_files_removed_under_an_upload_end_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    await scene.write(100)
    store = await scene.open("one")
    await scene.fold(store)
    taker = scene.taker(store)
    first = await taker.take(store)
    await scene.write(1)
    await scene.fold(store)
    put = scene.blobs.put

    async def prune_first(key: str, data: bytes) -> None:
        if key.endswith("manifest.json"):
            await scene.blobs.delete([file_key("projection", 0, file.sha256) for file in first.files])
        await put(key, data)

    monkeypatch.setattr(scene.blobs, "put", prune_first)
    await taker._turn(store)
    assert taker.numbers.failed == 0, "the first snapshot is young: it was not this one's turn"
    scene.snapshots.every_s = 0
    await taker._turn(store)
    assert (taker.numbers.failed, taker.numbers.taken) == (1, 1)
    assert await scene.snapshots.names("projection", 0) == [first.name]
    store.close()


# The loop


async def test_each_partition_has_its_turn_again_and_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "TURN_EVERY_S", 0.001)
    scene.snapshots.every_s = 0
    stores = [await scene.open("one", number) for number in range(PARTITIONS)]
    for store in stores:
        await scene.write(3, store.partition)
        await scene.fold(store)
    keeper = StateKeeper(KIND.name, stores, caught_up=lambda _: True, snapshots=scene.snapshots)
    running = asyncio.create_task(keeper.run())
    await until(lambda: keeper.numbers()["penstock_snapshots_taken"] == 2)
    assert [
        keeper.numbers()[f'penstock_snapshot_next_offset{{partition="{number}"}}'] for number in (0, 1)
    ] == [4, 4]
    await scene.write(2, 1)
    await scene.fold(stores[1])
    await until(lambda: keeper.numbers()['penstock_snapshot_next_offset{partition="1"}'] == 6)
    numbers = keeper.numbers()
    assert (numbers["penstock_snapshots_taken"], numbers["penstock_snapshots_failed"]) == (3, 0), (
        "nothing new"
    )
    assert 0 <= numbers['penstock_snapshot_age_seconds{partition="0"}'] < 60
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    for store in stores:
        store.close()


async def test_one_of_several_processes_does_it_for_all(scene: Scene) -> None:
    manifest = await scene.take("one", jobs=20)
    await scene.write(5)
    two = await scene.open("two")
    await scene.fold(two)
    taker = scene.taker(two)
    await taker._turn(two)
    assert taker.numbers.taken == 0
    assert taker.last == {0: (manifest.next_offset, manifest.created_at_ms)}
    scene.snapshots.every_s = 0
    await taker._turn(two)
    assert taker.numbers.taken == 1
    two.close()


async def test_a_replica_that_is_behind_does_not_set_the_latest_back(scene: Scene) -> None:
    await scene.write(3)
    behind = await scene.open("behind", snapshots=False)
    await scene.fold(behind)
    manifest = await scene.take("one", jobs=20)
    scene.snapshots.every_s = 0
    taker = scene.taker(behind)
    await taker._turn(behind)
    assert taker.numbers.taken == 0
    assert await scene.snapshots.latest("projection", 0) == manifest
    behind.close()


async def test_a_failure_is_told_and_made_good(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await scene.write(3)
    store = await scene.open("one")
    await scene.fold(store)
    taker = scene.taker(store)
    with monkeypatch.context() as patch:

        async def down(key: str, path: Path) -> None:
            raise BlobsUnavailable("it is down")

        patch.setattr(scene.blobs, "put_file", down)
        await taker._turn(store)
    assert (taker.numbers.taken, taker.numbers.failed) == (0, 1)
    assert "no snapshot of projection 0 was taken: it is down" in caplog.text
    await taker._turn(store)
    assert taker.numbers.taken == 1
    store.close()


async def test_an_empty_partition_has_no_snapshot(scene: Scene) -> None:
    store = await scene.open("one")
    assert store.next_offset == 0
    taker = scene.taker(store)
    await taker._turn(store)
    assert (taker.numbers, await scene.blobs.list()) == (snapshots_taking.SnapshotNumbers(), [])
    store.close()


async def test_a_store_in_memory_has_none() -> None:
    from penstock.log.store_memory import MemoryStore

    store = PartitionStore(MemoryStore(("fold", "bodies", "meta")), identity())
    with pytest.raises(ValueError, match="opened in a folder"):
        await SnapshotTaker(Snapshots(open_blobs("memory://none")), "projection", lambda: ()).take(store)
