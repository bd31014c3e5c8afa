"""Rebuilding what is served, beside it: folded anew from the log, compared, and only then put in its place.

::

    served ──looked at, without its lock──▶ offset and digests as of now
    log ──▶ a folder beside ──folded to that offset──▶ equal? ──folded to the end──▶ ready ──▶ in its place
                                                       no: an error, both folders stay

Where a process serves the present folder, the rebuilt one stays ready beside it, and takes its place when that process
starts again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from penstock.log.port import Log
from penstock.log.store import Store
from penstock.log.store_lock import hold_folder
from penstock.projections.rebuild import Rebuilt, rebuild_partition
from penstock.schemas.errors import DigestMismatch, DiskFailed, LogCorrupt, StoreLocked
from penstock.schemas.topics import Topics
from penstock.state.partition_store import PartitionStore, StoreIdentity, families_of
from penstock.state.snapshots_restoring import StateKind, adopt_rebuilt
from penstock.state.versions import fold_folder, make_ready

LOOKS = 5
LOOK_AGAIN_S = 0.1


class Served(Struct, frozen=True):
    """What a folder says of itself: the next offset, the state digest there, and recorded ones by offset."""

    next_offset: int
    digest: str
    digests: dict[int, str]


class Replaced(Struct, frozen=True, kw_only=True):
    """What was rebuilt, at how many offsets it was compared, and whether it is served: ``now`` or ``at_next_start``."""

    rebuilt: Rebuilt
    compared: int
    swapped: str


def look_at(place: Path, identity: StoreIdentity, families: Sequence[str]) -> Served | None:
    """Read a folder's digests while its owner may go on; None where there is none, or it is damaged.

    Raises:
        HistoryChanged: it is the fold of another log.
        DiskFailed, LogCorrupt: a process has it open, and it cannot be read beside it.
    """
    if not (place / "CURRENT").exists():
        return None
    for attempt in range(LOOKS):
        try:
            return _look(place, identity, families)
        except (DiskFailed, LogCorrupt):
            # Its owner may have removed a file just as it was to be read. Whoever has it open knows it to be sound.
            if _in_use(place) and attempt == LOOKS - 1:
                raise
            time.sleep(LOOK_AGAIN_S)
    return None


def _look(place: Path, identity: StoreIdentity, families: Sequence[str]) -> Served:
    with Store(place, families_of(families), read_only=True) as raw:
        store = PartitionStore(raw, identity)
        digests = {offset: recorded.state.hex() for offset, recorded in store.all_recorded_digests()}
        return Served(store.next_offset, store.digest, digests)


def _in_use(place: Path) -> bool:
    try:
        with hold_folder(place):
            return False
    except StoreLocked:
        return True


class Rebuild:
    """Rebuilds a role's partitions below ``folder`` from the log.

    Args:
        path_of: where below a folder a partition's states are.
        open_store: opens one below a folder, ready to be folded with all the rows that belong in it.
        partitions: which; all of the topic's where None.
        force: put it in place even where the digests differ.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        folder: Path,
        kind: StateKind,
        path_of: Callable[[Path, int], Path],
        open_store: Callable[[Path, StoreIdentity], PartitionStore],
        *,
        partitions: Sequence[int] | None = None,
        generation: int = 0,
        force: bool = False,
    ) -> None:
        self._log = log
        self._topics = topics
        self._partitions = range(topics.partitions) if partitions is None else partitions
        self._folder = folder
        self._work = folder / "rebuilding"
        self._kind = kind
        self._path_of = path_of
        self._open_store = open_store
        self._generation = generation
        self._force = force

    async def run(self) -> list[Replaced]:
        """Rebuild, compare and swap all partitions.

        Raises:
            DigestMismatch: what is served is not what the log says; nothing is replaced.
            HistoryChanged, OffsetTrimmed, OffsetBeyondEnd: the log no longer holds the history that is needed.
            StoreLocked: another rebuild is going on.
            LogUnavailable: the log does not answer.
        """
        self._work.mkdir(parents=True, exist_ok=True)
        with hold_folder(self._work):
            for left in self._work.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
            built = [await self._build(number) for number in self._partitions]
            replaced = [
                Replaced(rebuilt=rebuilt, compared=compared, swapped=self._put_in_place(rebuilt.partition))
                for rebuilt, compared in built
            ]
            shutil.rmtree(self._work, ignore_errors=True)
        return replaced

    def _place(self, folder: Path, partition: int) -> Path:
        return fold_folder(self._path_of(folder, partition), self._kind.layout)

    def _identity(self, partition: int) -> StoreIdentity:
        topics = self._topics
        return StoreIdentity(
            self._log.cluster_id, topics.jobs, partition, topics.partitions, self._generation
        )

    async def _build(self, partition: int) -> tuple[Rebuilt, int]:
        served = look_at(self._place(self._folder, partition), self._identity(partition), self._kind.families)
        compared = 0
        if served is not None and served.next_offset:
            until = await self._fold(partition, served.next_offset)
            compared = self._compare(until, served)
        return await self._fold(partition, None), compared

    async def _fold(self, partition: int, until_offset: int | None) -> Rebuilt:
        return await rebuild_partition(
            self._log,
            self._topics,
            partition,
            self._work,
            until_offset=until_offset,
            generation=self._generation,
            open_store=self._open_store,
        )

    def _compare(self, rebuilt: Rebuilt, served: Served) -> int:
        pairs = {
            offset: (digest, served.digests[offset])
            for offset, digest in rebuilt.digests.items()
            if offset in served.digests
        }
        if rebuilt.next_offset == served.next_offset:
            pairs[served.next_offset] = rebuilt.digest, served.digest
        for offset, (mine, theirs) in sorted(pairs.items()):
            if mine != theirs and not self._force:
                raise DigestMismatch(
                    f"Partition {rebuilt.partition} below offset {offset}: the log gives {mine}, served is {theirs}."
                    f" Both folders are kept, the rebuilt one in {self._work}; --force replaces the served one.",
                    partition=rebuilt.partition,
                    offset=offset,
                    rebuilt=mine,
                    served=theirs,
                )
        return len(pairs)

    def _put_in_place(self, partition: int) -> str:
        make_ready(self._place(self._work, partition), self._place(self._folder, partition))
        path = self._path_of(self._folder, partition)
        try:
            adopt_rebuilt(path, self._identity(partition), self._kind, 0)
        except StoreLocked:
            return "at_next_start"
        return "now"
