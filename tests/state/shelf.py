"""Stores in memory that outlive their closing, as folders do."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.log.kv import KeyValueStore
from penstock.log.store_memory import MemoryStore


class Shelf:
    """A store factory: one store for each path."""

    def __init__(self) -> None:
        self.stores: dict[str, MemoryStore] = {}

    def __call__(self, path: str, families: Sequence[str]) -> KeyValueStore:
        return self.stores.setdefault(path, MemoryStore(families))
