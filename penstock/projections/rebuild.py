"""Fold a partition anew from the log, and prove that what is served is what the log says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from penstock.log.port import Log
from penstock.projections.port import PartitionStatus
from penstock.projections.projector import Projector
from penstock.projections.service import COMMIT_BYTES, projection_store
from penstock.schemas.errors import DigestMismatch
from penstock.schemas.topics import Topics
from penstock.state.partition_store import PartitionStore, StoreIdentity

POLL_MS = 500
SLICE_S = 0.02
COMMIT_ROWS = 20_000
"""Nobody reads meanwhile: a job whose life is over within so many rows is written once."""

EMPTY_POLLS = 6
"""After so many, with the log answering otherwise, what is left of its offsets were never records."""


class Rebuilt(Struct, frozen=True, kw_only=True):
    """What folding a partition gave. ``digests`` are the newest recorded state digests by offset."""

    partition: int
    next_offset: int
    digest: str
    log_digest: str
    digests: dict[int, str]
    accepted: int
    refused: int
    quarantined: int


async def rebuild_partition(
    log: Log,
    topics: Topics,
    partition: int,
    folder: Path | str,
    *,
    until_offset: int | None = None,
    generation: int = 0,
    open_store: Callable[[Path, StoreIdentity], PartitionStore] = projection_store,
    on_progress: Callable[[int, int], None] | None = None,
) -> Rebuilt:
    """Fold a partition into the projection's folder ``folder``, from where that stands (nowhere, if it is new).

    Args:
        open_store: opens the partition's store below the folder, with views of others in it where it has them.
        until_offset: fold what is below it; up to the log's end as of now where None.
        on_progress: called after each commit with the next offset and the one to reach.

    Raises:
        HistoryChanged, OffsetTrimmed, OffsetBeyondEnd: the log no longer holds the history that is needed.
        StoreLocked: a projection is running on the folder.
        LogUnavailable: the log does not answer.
    """
    identity = StoreIdentity(log.cluster_id, topics.jobs, partition, topics.partitions, generation)
    end = (await log.bounds(topics.jobs, partition)).end
    goal = end if until_offset is None else min(until_offset, end)
    with open_store(Path(folder), identity) as store:
        await store.verify_last_record(log)
        await _fold_until(log, store, goal, on_progress)
        return _result(store)


async def _fold_until(
    log: Log, store: PartitionStore, goal: int, on_progress: Callable[[int, int], None] | None
) -> None:
    """Fold every record below ``goal``. Offsets have gaps: the last record may stand well below it."""
    projector = Projector(store)

    def commit() -> None:
        projector.commit()
        if on_progress is not None:
            on_progress(store.next_offset, goal)

    topic, partition = store.identity.topic, store.partition
    offset = store.next_offset
    empty = 0
    slice_began = time.monotonic()
    async with log.tail({(topic, partition): offset}) as tail:
        while offset < goal:
            records = await tail.poll(POLL_MS, 256)
            empty = 0 if records else empty + 1
            if empty == EMPTY_POLLS:
                await log.bounds(topic, partition)
                break
            for record in records:
                offset = record.offset + 1
                if record.offset >= goal:
                    break
                projector.fold(record)
                if store.touched >= COMMIT_ROWS or store.pending_bytes >= COMMIT_BYTES:
                    commit()
                if time.monotonic() - slice_began > SLICE_S:
                    await asyncio.sleep(0)
                    slice_began = time.monotonic()
    if projector.dirty:
        commit()


def _result(store: PartitionStore) -> Rebuilt:
    state = store.state
    return Rebuilt(
        partition=store.partition,
        next_offset=store.committed_offset,
        digest=store.digest,
        log_digest=store.log_digest,
        digests=store.recorded_digests,
        accepted=state.accepted,
        refused=state.refused,
        quarantined=state.quarantined,
    )


def check_same(rebuilt: Rebuilt, live: PartitionStatus) -> int:
    """Compare with what a projection serves; returns how many digests were found equal.

    Compared are the digests at the same offset: the recorded ones that both have, and the current ones if both stand at
    one offset.

    Raises:
        DigestMismatch: they differ somewhere.
    """
    pairs = {
        offset: (digest, live.digests[offset])
        for offset, digest in rebuilt.digests.items()
        if offset in live.digests
    }
    if rebuilt.next_offset == live.next_offset:
        pairs[live.next_offset] = (rebuilt.digest, live.digest)
    for offset, (mine, served) in sorted(pairs.items()):
        if mine != served:
            raise DigestMismatch(
                f"Partition {live.partition} below offset {offset}: the log gives {mine}, served is {served}.",
                partition=live.partition,
                offset=offset,
                rebuilt=mine,
                served=served,
            )
    return len(pairs)


def verify_rows(store: PartitionStore) -> str:
    """The store's digest, after counting it again from all its rows. Raises DigestMismatch when they differ."""
    counted = store.recompute_digest()
    if counted != store.digest:
        raise DigestMismatch(
            f"Partition {store.partition}: rows add up to {counted}, recorded is {store.digest}.",
            partition=store.partition,
        )
    return counted
