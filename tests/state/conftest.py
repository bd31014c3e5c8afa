"""Both kinds of store, under the same tests."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from penstock.log.kv import KeyValueStore
from penstock.log.store_memory import MemoryStore
from penstock.state.partition_store import StoreFactory, rocks_store


class Shelf:
    """Stores in memory that outlive their closing, by path."""

    def __init__(self) -> None:
        self.stores: dict[str, MemoryStore] = {}

    def __call__(self, path: str, families: Sequence[str]) -> KeyValueStore:
        return self.stores.setdefault(path, MemoryStore(families))


@pytest.fixture(params=["memory", "rocks"])
def store_factory(request: pytest.FixtureRequest) -> StoreFactory:
    return Shelf() if request.param == "memory" else rocks_store
