"""Both kinds of store, under the same tests."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from penstock.log.port import TopicSpec
from penstock.state.partition_store import StoreFactory, rocks_store
from tests.state.shelf import Shelf
from tests.state.snapshot_scene import PARTITIONS, Scene
from tests.state.writing import TOPIC


@pytest.fixture(params=["memory", "rocks"])
def store_factory(request: pytest.FixtureRequest) -> StoreFactory:
    return Shelf() if request.param == "memory" else rocks_store


@pytest.fixture(params=["memory", "bucket"])
async def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    """Two partitions, each with the line of its leader."""
    url = request.getfixturevalue("s3_url") if request.param == "bucket" else f"memory://{uuid.uuid4()}"
    found = Scene(tmp_path, url)
    await found.log.ensure_topics([TopicSpec(TOPIC, PARTITIONS)])
    for partition in range(PARTITIONS):
        await found.write(0, partition)
    return found
