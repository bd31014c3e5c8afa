"""Snapshots: taken, restored, interrupted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from penstock.core.rows import FOLD_VERSION
from penstock.schemas.errors import (
    BlobsUnavailable,
    OffsetTrimmed,
)
from penstock.state.snapshots import (
    file_key,
)
from tests.state.snapshot_scene import PLACE, Scene, identity
from tests.state.writing import TOPIC

# Taking and restoring


async def test_a_restored_state_is_the_one_that_was_taken(scene: Scene) -> None:
    manifest = await scene.take(jobs=40)
    assert manifest.next_offset == 41
    await scene.write(7)
    store = await scene.open("two")
    assert (store.next_offset, store.digest) == (41, await scene.digest(below=41))
    assert store.recompute_digest() == store.digest
    assert await scene.fold(store) == 7
    assert (store.digest, store.log_digest) != (manifest.state_digest, manifest.log_digest)
    assert store.digest == await scene.digest()
    store.close()
    assert [path.name for path in (scene.folder / "two" / "0").iterdir()] == [PLACE]
    assert not list((scene.folder / "one" / "0" / PLACE).glob("snapshot-*"))


async def test_what_the_manifest_says(scene: Scene) -> None:
    before_ms = time.time_ns() // 1_000_000
    manifest = await scene.take(jobs=5)
    assert manifest == await scene.snapshots.latest("projection", 0)
    assert manifest == await scene.snapshots.read("projection", 0, manifest.name)
    assert (manifest.identity, manifest.version, manifest.rules) == (identity(), (FOLD_VERSION, 3), 1)
    assert manifest.name.startswith("00000000000000000006-")
    assert manifest.state_digest == await scene.digest()
    assert before_ms <= manifest.created_at_ms < before_ms + 60_000
    stored = {info.key: info.size_bytes for info in await scene.blobs.list("projection/0/files")}
    assert {file_key("projection", 0, file.sha256): file.size_bytes for file in manifest.files} == stored


async def test_the_log_may_have_lost_its_beginning(scene: Scene) -> None:
    manifest = await scene.take(jobs=40)
    await scene.write(5)
    whole = await scene.digest()
    await scene.log.truncate(TOPIC, 0, manifest.next_offset - 10)
    store = await scene.open("two")
    await scene.fold(store)
    assert (store.digest, store.recompute_digest()) == (whole, whole)
    store.close()
    await scene.log.truncate(TOPIC, 0, manifest.next_offset + 2)
    with pytest.raises(OffsetTrimmed, match=r"ends at offset 41, and the log begins at 43"):
        await scene.open("three")
    with pytest.raises(OffsetTrimmed, match="PENSTOCK_SNAPSHOTS is empty"):
        await scene.open("four", snapshots=False)


async def test_a_folder_behind_the_beginning_of_the_log_is_replaced(scene: Scene) -> None:
    await scene.write(5)
    late = await scene.open("late")
    await scene.fold(late)
    late.close()
    manifest = await scene.take(jobs=40)
    await scene.log.truncate(TOPIC, 0, 20)
    store = await scene.open("late")
    assert store.next_offset == manifest.next_offset
    store.close()


async def test_a_damaged_folder_is_replaced(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    manifest = await scene.take()
    for left in (scene.folder / "one" / "0" / PLACE).glob("MANIFEST-*"):
        left.write_bytes(b"not one")
    store = await scene.open("one")
    assert "damaged" in caplog.text
    assert (store.next_offset, store.digest) == (manifest.next_offset, manifest.state_digest)
    store.close()


async def test_a_folder_that_is_well_is_left_alone(scene: Scene) -> None:
    await scene.write(5)
    store = await scene.open("behind")
    await scene.fold(store)
    store.close()
    await scene.take(jobs=30)
    store = await scene.open("behind")
    assert store.next_offset == 6
    store.close()


async def test_partitions_do_not_meet(scene: Scene) -> None:
    first, second = await scene.take(jobs=20), await scene.take(jobs=31, partition=1)
    assert (first.next_offset, second.next_offset) == (21, 32)
    for manifest in (first, second):
        store = await scene.open("two", manifest.partition)
        assert store.digest == manifest.state_digest == await scene.digest(manifest.partition)
        store.close()
    assert await scene.snapshots.partitions("projection") == [0, 1]
    assert await scene.snapshots.partitions("orchestrator") == []


async def test_what_did_not_change_is_not_uploaded_again(scene: Scene) -> None:
    await scene.write(400)
    store = await scene.open("one")
    await scene.fold(store)
    taker = scene.taker(store)
    first = await taker.take(store)
    uploaded = taker.numbers.uploaded_bytes
    assert uploaded == first.size_bytes
    await scene.write(1)
    await scene.fold(store)
    second = await taker.take(store, first)
    assert {file.sha256 for file in first.files} & {file.sha256 for file in second.files}
    assert taker.numbers.uploaded_bytes - uploaded < uploaded / 2
    assert taker.numbers.reused_bytes > uploaded / 2
    store.close()
    (restored := await scene.open("two")).close()
    assert restored.identity == identity()


async def test_folding_goes_on_while_a_snapshot_is_uploaded(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.write(20)
    store = await scene.open("one")
    await scene.fold(store)
    whole = await scene.digest()
    uploading, go_on = asyncio.Event(), asyncio.Event()
    put_file = scene.blobs.put_file

    async def slowly(key: str, path: Path) -> None:
        uploading.set()
        await go_on.wait()
        await put_file(key, path)

    monkeypatch.setattr(scene.blobs, "put_file", slowly)
    taking = asyncio.create_task(scene.taker(store).take(store))
    await uploading.wait()
    await scene.write(50)
    await scene.fold(store)
    store.store.flush()
    go_on.set()
    manifest = await taking
    assert (manifest.next_offset, manifest.state_digest) == (21, whole)
    store.close()
    store = await scene.open("two")
    assert (store.digest, store.recompute_digest()) == (whole, whole)
    store.close()


# Interrupted


async def test_a_crash_anywhere_leaves_the_old_or_the_new(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await scene.take(jobs=30)
    await scene.write(30)
    put, puts = scene.blobs.put, 0
    put_file = scene.blobs.put_file
    crash_at = 0

    async def count(call: Callable[[], Awaitable[None]]) -> None:
        nonlocal puts
        puts += 1
        if puts == crash_at:
            raise BlobsUnavailable("the process died here")
        await call()

    monkeypatch.setattr(scene.blobs, "put", lambda key, data: count(lambda: put(key, data)))
    monkeypatch.setattr(scene.blobs, "put_file", lambda key, path: count(lambda: put_file(key, path)))
    seen: set[int] = set()
    for crash_at in range(1, 100):
        puts = 0
        store = await scene.open("one")
        await scene.fold(store)
        try:
            new = await scene.taker(store).take(store, await scene.snapshots.latest("projection", 0))
        except BlobsUnavailable:
            new = None
        store.close()
        latest = await scene.snapshots.latest("projection", 0)
        assert latest is not None
        assert latest in (old, new)
        restored = await scene.open(f"after-{crash_at}")
        assert restored.digest == await scene.digest(below=restored.next_offset)
        seen.add(restored.next_offset)
        restored.close()
        if new is not None:
            assert latest == new
            break
    else:
        pytest.fail("it never came to an end")
    assert crash_at > 4
    assert seen == {31, 61}


async def test_a_crash_while_restoring_is_made_good(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = await scene.take()
    get_file, done = scene.blobs.get_file, 0

    async def dies(key: str, path: Path) -> int:
        nonlocal done
        done += 1
        if done == 3:
            raise asyncio.CancelledError
        return await get_file(key, path)

    monkeypatch.setattr(scene.blobs, "get_file", dies)
    with pytest.raises(asyncio.CancelledError):
        await scene.open("two")
    half = scene.folder / "two" / "0" / f"restoring-{PLACE}" / "state"
    half.mkdir(parents=True)
    (half / "CURRENT").write_text("left by one that was killed")
    store = await scene.open("two")
    assert store.digest == manifest.state_digest
    store.close()
    assert [path.name for path in (scene.folder / "two" / "0").iterdir()] == [PLACE]


async def test_a_cancelled_snapshot_leaves_no_links(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    await scene.write(5)
    store = await scene.open("one")
    await scene.fold(store)
    uploading = asyncio.Event()

    async def never(key: str, path: Path) -> None:
        uploading.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(scene.blobs, "put_file", never)
    taking = asyncio.create_task(scene.taker(store).take(store))
    await uploading.wait()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert store.folder is not None
    assert not list(store.folder.glob("snapshot-*"))
    store.close()
