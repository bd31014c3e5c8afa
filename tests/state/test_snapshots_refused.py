"""Snapshots that are damaged, or of something else; and what a restored state is worth without them."""

from __future__ import annotations

import msgspec
import pytest

from penstock.log.memory import MemoryLog
from penstock.log.port import TopicSpec
from penstock.schemas.errors import (
    BlobsUnavailable,
    HistoryChanged,
    OffsetBeyondEnd,
    OffsetTrimmed,
    SnapshotDamaged,
    StoreLocked,
)
from penstock.state.snapshots import (
    decode_manifest,
    encode_manifest,
    file_key,
    latest_key,
    manifest_key,
)
from penstock.state.snapshots_restoring import Restore
from tests.state.snapshot_scene import KIND, PARTITIONS, PLACE, Scene, edited, identity, spoil
from tests.state.writing import TOPIC

# Damaged


async def test_a_damaged_file_means_the_snapshot_before(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    old = await scene.take(jobs=30)
    new = await scene.take(jobs=30)
    mine = {file.sha256 for file in new.files} - {file.sha256 for file in old.files}
    table = next(file for file in new.files if file.sha256 in mine and file.name.endswith(".sst"))
    await spoil(scene.blobs, file_key("projection", 0, table.sha256))
    store = await scene.open("two")
    assert (store.next_offset, store.digest) == (old.next_offset, old.state_digest)
    assert f"snapshot {new.name} of projection is passed over" in caplog.text
    assert table.name in caplog.text
    await scene.fold(store)
    assert store.digest == await scene.digest()
    store.close()


async def test_nothing_whole_and_no_beginning_is_no_start(scene: Scene) -> None:
    manifest = await scene.take()
    await scene.blobs.delete([file_key("projection", 0, manifest.files[0].sha256)])
    await scene.log.truncate(TOPIC, 0, 5)
    with pytest.raises(
        OffsetTrimmed, match=f"no snapshot in .* helps: {manifest.name}: There is no"
    ) as caught:
        await scene.open("two")
    assert caught.value.exit_code == 7
    assert "begins at offset 5; 0 is the next to fold" in caught.value.message


@pytest.mark.parametrize("what", ["latest", "manifest", "both"])
async def test_a_damaged_manifest_is_passed_over(scene: Scene, what: str) -> None:
    old = await scene.take(jobs=30)
    new = await scene.take(jobs=30)
    if what != "manifest":
        await spoil(scene.blobs, latest_key("projection", 0))
    if what != "latest":
        await spoil(scene.blobs, manifest_key("projection", 0, new.name))
    store = await scene.open("two")
    assert store.next_offset == (old if what == "both" else new).next_offset
    store.close()
    assert [found.name for found in await scene.snapshots.kept("projection", 0)] == (
        [old.name] if what == "both" else [new.name, old.name]
    )


async def test_a_manifest_that_lies_about_its_state_is_found_out(scene: Scene) -> None:
    manifest = await scene.take()
    lie = edited(manifest, state_digest="00" * 32)
    for key in (latest_key("projection", 0), manifest_key("projection", 0, manifest.name)):
        await scene.blobs.put(key, lie)
    fetch = Restore(scene.log, scene.folder / "two", identity(), KIND, scene.snapshots)
    assert await fetch.newest() is None
    assert "which its manifest does not say" in fetch.refused[0]


async def test_manifests_that_are_none(scene: Scene) -> None:
    manifest = await scene.take()
    bad_file = msgspec.structs.replace(manifest.files[0], name="../../etc/passwd")
    for data in (
        b"",
        b"{}",
        encode_manifest(manifest).replace(b'"partition":0', b'"partition":1'),
        edited(manifest, files=(bad_file,)),
        edited(manifest, files=(manifest.files[0], manifest.files[0])),
        edited(manifest, name="../x"),
        edited(manifest, format=2),
    ):
        with pytest.raises(SnapshotDamaged):
            decode_manifest(data)
    await scene.blobs.put(manifest_key("projection", 1, manifest.name), encode_manifest(manifest))
    with pytest.raises(SnapshotDamaged, match="Under the name"):
        await scene.snapshots.read("projection", 1, manifest.name)


# Of something else


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cluster_id": "another"}, "cluster_id 'another' is here 'memory'"),
        ({"topic": "other.jobs"}, "topic 'other.jobs' is here 'penstock.jobs'"),
        ({"partitions": 4}, "partitions 4 is here 2"),
        ({"generation": 1}, "generation 1 is here 0"),
    ],
)
async def test_a_snapshot_of_another_log_is_refused(
    scene: Scene, changes: dict[str, object], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = await scene.take()
    other = edited(manifest, **changes)
    await scene.blobs.put(latest_key("projection", 0), other)
    with pytest.raises(HistoryChanged, match=message):
        await scene.open("two")
    await scene.write(3)
    store = await scene.open("one")
    await scene.fold(store)
    taker = scene.taker(store)
    await taker._turn(store)
    assert (taker.numbers.failed, taker.numbers.taken) == (1, 0)
    assert message in caplog.text
    assert await scene.blobs.get(latest_key("projection", 0)) == other
    store.close()


async def test_a_log_that_was_made_anew_is_refused(scene: Scene) -> None:
    await scene.take(jobs=30)
    anew = MemoryLog()
    await anew.ensure_topics([TopicSpec(TOPIC, PARTITIONS)])
    scene.log = anew
    await anew.append(TOPIC, 0, b"{}")
    with pytest.raises(OffsetBeyondEnd):
        await scene.open("two")
    for _ in range(40):
        await anew.append(TOPIC, 0, b"{}")
    with pytest.raises(HistoryChanged):
        await scene.open("two")
    assert not (scene.folder / "two" / "0" / f"restoring-{PLACE}").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold_version": 99}, r"fold 99, layout 3; here fold \d+, layout 3"),
        ({"layout": 1}, r"fold \d+, layout 1; here fold \d+, layout 3"),
        ({"rules": 77}, r"rules 77"),
    ],
)
async def test_a_snapshot_of_another_version_is_passed_over(
    scene: Scene, changes: dict[str, object], message: str
) -> None:
    old = await scene.take(jobs=30)
    new = await scene.take(jobs=10)
    for key in (latest_key("projection", 0), manifest_key("projection", 0, new.name)):
        await scene.blobs.put(key, edited(new, **changes))
    store = await scene.open("two")
    assert store.next_offset == old.next_offset
    store.close()
    await scene.log.truncate(TOPIC, 0, 35)
    with pytest.raises(OffsetTrimmed, match=message):
        await scene.open("three")


async def test_a_store_that_does_not_answer_matters_only_if_it_is_needed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await scene.take(jobs=30)

    async def down(key: str) -> bytes:
        raise BlobsUnavailable("it is down")

    monkeypatch.setattr(scene.blobs, "get", down)
    store = await scene.open("two")
    assert store.next_offset == 0
    assert "folded instead: it is down" in caplog.text
    store.close()
    await scene.log.truncate(TOPIC, 0, 5)
    with pytest.raises(BlobsUnavailable):
        await scene.open("three")


async def test_a_folder_in_use_is_not_replaced(scene: Scene) -> None:
    manifest = await scene.take()
    store = await scene.open("one")
    fetch = Restore(scene.log, scene.folder / "one" / "0", identity(), KIND, scene.snapshots)
    with pytest.raises(StoreLocked):
        await fetch.fetch(manifest)
    assert store.recompute_digest() == manifest.state_digest
    store.close()
