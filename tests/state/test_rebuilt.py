"""A folder that was rebuilt somewhere else and waits for its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from penstock.schemas.errors import (
    StoreLocked,
)
from penstock.state.partition_store import PartitionStore, StoreIdentity
from tests.state.snapshot_scene import KIND, PARTITIONS, PLACE, Scene, identity
from tests.state.writing import TOPIC

# Rebuilt beside


def rebuilt(scene: Scene, records: int) -> Path:
    """A folder folded somewhere else, as far as told, that waits to take the place of replica one's."""
    fresh = scene.folder / "fresh"
    with PartitionStore.open(fresh, identity=identity(), extra=KIND.families, layout=3) as store:
        for record in scene.writers[0].records[:records]:
            store.fold(record)
        store.commit()
    ready = scene.folder / "one" / "0" / f"ready-{PLACE}"
    ready.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(fresh / PLACE, ready)
    return ready


async def test_a_rebuilt_folder_takes_its_place_at_the_start(scene: Scene) -> None:
    await scene.write(20)
    store = await scene.open("one")
    await scene.fold(store)
    ready = rebuilt(scene, 11)
    with pytest.raises(StoreLocked):
        await scene.open("one")
    store.close()
    store = await scene.open("one")
    assert store.next_offset == 11
    assert not ready.exists()
    await scene.fold(store)
    assert store.digest == await scene.digest()
    store.close()


async def test_a_rebuilt_folder_is_taken_where_a_swap_was_cut_short(scene: Scene) -> None:
    await scene.write(20)
    rebuilt(scene, 11)
    left = scene.folder / "one" / "0" / f"replaced-{PLACE}"
    left.mkdir()
    store = await scene.open("one")
    assert store.next_offset == 11
    assert not left.exists()
    store.close()


@pytest.mark.parametrize("why", ["trimmed", "damaged", "another log"])
async def test_a_rebuilt_folder_that_is_of_no_use_is_thrown_away(
    scene: Scene, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    await scene.write(20)
    store = await scene.open("one")
    await scene.fold(store)
    store.close()
    ready = rebuilt(scene, 11)
    if why == "trimmed":
        await scene.log.truncate(TOPIC, 0, 15)
    elif why == "damaged":
        (ready / "CURRENT").write_text("")
    else:
        other = StoreIdentity("another", TOPIC, 0, PARTITIONS)
        shutil.rmtree(ready)
        with PartitionStore.open(scene.folder / "x", identity=other, extra=KIND.families, layout=3):
            pass
        shutil.move(scene.folder / "x" / PLACE, ready)
    store = await scene.open("one")
    assert store.next_offset == 21
    assert "thrown away" in caplog.text
    assert not ready.exists()
    store.close()
