"""Snapshots of the states of a world, and the trimming of its log that they allow.

A snapshot is a store as it was at some commit. The two newest of each kind and partition are kept; the log is trimmed
as far as every kind has a kept snapshot that folded it. Who comes back with less than the log still has, or with
nothing, goes on from the newest. So everybody meets logs that do not begin at their beginning.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from penstock.state.partition_store import META, Progress, StoreIdentity

if TYPE_CHECKING:
    from tests.sim.world import World

KEPT = 2

Dump = dict[str, dict[bytes, bytes]]
"""All rows of a store, by family."""


class Snapshot(NamedTuple):
    """``partition`` and the rest as the store itself says."""

    partition: int
    progress: Progress
    dump: Dump


def progress_of(dump: Dump | None) -> Progress:
    """How far a store is folded; not at all where there is none, or nothing was committed."""
    data = {} if dump is None else dump.get(META, {})
    return msgspec.msgpack.decode(data[b"progress"], type=Progress) if b"progress" in data else Progress()


class Vault:
    """Kept by (kind of state, place below its host)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kept: dict[tuple[str, str], list[Snapshot]] = defaultdict(list)

    def take(self, kind: str, place: str, dump: Dump) -> None:
        """Keep a store as it is."""
        progress = progress_of(dump)
        kept = self._kept[kind, place]
        if progress.next_offset == 0 or (kept and kept[-1].progress.next_offset >= progress.next_offset):
            return
        identity = msgspec.msgpack.decode(dump[META][b"identity"], type=StoreIdentity)
        kept.append(Snapshot(identity.partition, progress, dump))
        del kept[:-KEPT]
        self._world.stats["snapshots taken"] += 1
        self._world.note(f"snapshot of {kind} {place} at {progress.next_offset}")

    def trim(self, kinds: set[str]) -> None:
        """Let go of what the kept snapshots of all these kinds have folded, but for the record folded last."""
        world, topic = self._world, self._world.names.jobs
        for number in range(world.names.partitions):
            oldest = {
                kind: kept[0].progress.last_offset
                for (kind, _), kept in self._kept.items()
                if kept and kept[0].partition == number
            }
            if oldest.keys() >= kinds:
                start, before = world.topics.bounds(topic, number).start, min(oldest.values())
                if before > start:
                    world.stats["offsets trimmed"] += before - start
                    world.note(f"partition {number} is trimmed below {before}")
                    world.topics.truncate(topic, number, before)

    def newer_than(self, kind: str, place: str, dump: Dump | None) -> Dump | None:
        """What to go on from instead of a state that is empty, or ends before the log begins; None: from that state."""
        kept = self._kept.get((kind, place))
        if not kept:
            return None
        newest, have = kept[-1], progress_of(dump).next_offset
        start = self._world.topics.bounds(self._world.names.jobs, newest.partition).start
        if have >= newest.progress.next_offset or (have > 0 and have >= start):
            return None
        self._world.stats["restored from a snapshot"] += 1
        self._world.note(f"{kind} {place} goes on from a snapshot at {newest.progress.next_offset}")
        return newest.dump
