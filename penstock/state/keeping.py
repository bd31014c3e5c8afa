"""What runs beside the folding of a role's partitions: snapshots, and letting go of what earlier versions left."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from penstock.state.partition_store import PartitionStore
from penstock.state.snapshots import Snapshots
from penstock.state.snapshots_taking import SnapshotTaker
from penstock.state.versions import superseded

_log = logging.getLogger(__name__)

TURN_EVERY_S = 1.0


class StateKeeper:
    """Looks after the stores of one role. :meth:`run` is a task beside those that fold.

    Args:
        kind: the role, as its snapshots are called.
        stores: all that are open.
        caught_up: whether one is folded to the end of the log, and can stand for what earlier versions left.
        mine: whether its snapshots are this process's business.
        snapshots: where they go; None takes none.
    """

    def __init__(
        self,
        kind: str,
        stores: Iterable[PartitionStore],
        *,
        caught_up: Callable[[PartitionStore], bool],
        mine: Callable[[PartitionStore], bool] = lambda _: True,
        snapshots: Snapshots | None = None,
    ) -> None:
        self._stores = list(stores)
        self._caught_up = caught_up
        self._taker = (
            None
            if snapshots is None
            else SnapshotTaker(snapshots, kind, lambda: [store for store in self._stores if mine(store)])
        )
        self._left = [store for store in self._stores if _has_superseded(store)]

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for store in list(self._left):
                # What an earlier program still serves stays, and is asked for again.
                if self._caught_up(store) and await asyncio.to_thread(store.remove_superseded):
                    _log.info(
                        "partition %d has caught up; what earlier versions left is removed", store.partition
                    )
                    self._left.remove(store)
            if self._taker is not None:
                await self._taker.turns()
            await asyncio.sleep(TURN_EVERY_S)

    def numbers(self) -> Mapping[str, float]:
        """For metrics: of each partition's last known snapshot, its next offset and age; and what was done."""
        if self._taker is None:
            return {}
        now_ms = time.time_ns() // 1_000_000
        counted = self._taker.numbers
        found: dict[str, float] = {
            "penstock_snapshots_taken": counted.taken,
            "penstock_snapshots_failed": counted.failed,
            "penstock_snapshot_uploaded_bytes": counted.uploaded_bytes,
            "penstock_snapshot_reused_bytes": counted.reused_bytes,
        }
        for partition, (next_offset, created_at_ms) in sorted(self._taker.last.items()):
            label = f'{{partition="{partition}"}}'
            found[f"penstock_snapshot_next_offset{label}"] = next_offset
            found[f"penstock_snapshot_age_seconds{label}"] = max(0, now_ms - created_at_ms) / 1_000
        return found


def _has_superseded(store: PartitionStore) -> bool:
    return store.folder is not None and bool(superseded(store.folder.parent, store.layout))
