"""A host's disk: stores that outlive their process, whole, as they were some commits ago, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.log import kv
from penstock.log.store_memory import MemoryStore
from tests.sim.vault import Dump
from tests.sim.world import World


class PowerCut(BaseException):
    """The process is dead; what its code still does while this passes through it reaches nothing any more."""


class DiskStore(MemoryStore):
    """A store on a disk that now and then remembers how it was."""

    def __init__(self, world: World, path: str, families: Sequence[str], older: dict[str, Dump]) -> None:
        super().__init__(families)
        self._world, self._path, self._older = world, path, older

    def write(self, batch: kv.Batch, *, sync: bool = False) -> None:
        world, loop = self._world, self._world.current
        if loop is not None and loop.dead:
            return
        dies = loop is not None and world.chance(world.weather.crash_in_writes)
        if dies and world.random.random() < 0.5:
            self._die(loop)
        super().write(batch, sync=sync)
        if dies:
            self._die(loop)
        if world.chance(0.02):
            self._older[self._path] = self.dump()

    def _die(self, loop: Any) -> None:
        self._world.stats["crashes in a write"] += 1
        loop.killer()
        raise PowerCut

    def restore(self, content: Dump) -> None:
        for name, pairs in content.items():
            for key, value in pairs.items():
                self.family(name).put(key, value)


class Disk:
    """The folders of one host, whose states are of this kind."""

    def __init__(self, world: World, kind: str = "") -> None:
        self._world = world
        self._kind = kind
        self._stores: dict[str, DiskStore] = {}
        self._older: dict[str, Dump] = {}

    def open(self, path: str, families: Sequence[str]) -> DiskStore:
        """As a store factory. What is missing, or too old for the log, comes from a snapshot."""
        store = self._stores.get(path)
        kept = self._world.vault.newer_than(
            self._kind, _below_host(path), None if store is None else store.dump()
        )
        if kept is not None:
            store = self._stores[path] = DiskStore(self._world, path, families, self._older)
            store.restore(kept)
        elif store is None:
            store = self._stores[path] = DiskStore(self._world, path, families, self._older)
        return store

    def take_snapshots(self) -> None:
        """Of some folders, as they were committed last."""
        for path, store in self._stores.items():
            if self._world.random.random() < 0.7:
                self._world.vault.take(self._kind, _below_host(path), store.dump())

    def lose_power(self) -> None:
        """Nothing is synced: the newest commits of a store may be gone, or the whole folder."""
        for path, store in list(self._stores.items()):
            luck = self._world.random.random()
            if luck < 0.6:
                continue
            del self._stores[path]
            older = self._older.get(path)
            if luck < 0.8 and older is not None:
                found = self._stores[path] = DiskStore(self._world, path, list(older), self._older)
                found.restore(older)
                self._world.stats["stores set back"] += 1
            else:
                self._older.pop(path, None)
                self._world.stats["stores lost"] += 1
            # Whoever had it open is dead, and may not write any more.
            del store


def _below_host(path: str) -> str:
    """Where a folder is, the same on each host."""
    return path.split("/", 2)[2]
