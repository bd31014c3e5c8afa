"""Both kinds of store, and every kind of log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.log.namespace import open_namespace
from penstock.log.opening import open_log
from penstock.log.port import Log
from penstock.schemas.topics import Topics
from penstock.state.partition_store import StoreFactory, rocks_store
from tests.state.shelf import Shelf


@pytest.fixture(params=["memory", "rocks"])
def store_factory(request: pytest.FixtureRequest) -> StoreFactory:
    return Shelf() if request.param == "memory" else rocks_store


@pytest.fixture
def topics(unique_namespace: str) -> Topics:
    return Topics(namespace=unique_namespace, partitions=4, work_partitions=2)


@pytest.fixture(params=["memory", "embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
async def log(request: pytest.FixtureRequest, tmp_path: Path, topics: Topics) -> AsyncIterator[Log]:
    """A log with a namespace's topics."""
    spec = {"memory": "memory:", "embedded": f"embedded:{tmp_path / 'log'}"}.get(request.param)
    if spec is None:
        spec = f"kafka://{request.getfixturevalue('kafka_bootstrap')}"
    async with open_log(spec) as opened:
        await open_namespace(opened, topics)
        yield opened
