"""A log of two partitions, replicas that fold it, and a store of objects for their snapshots."""

from __future__ import annotations

import uuid
from pathlib import Path

import msgspec

from penstock.core.rows import FOLD_VERSION
from penstock.log.blobs import Blobs, open_blobs
from penstock.log.memory import MemoryLog
from penstock.log.port import Record
from penstock.state.partition_store import PartitionStore, StoreIdentity
from penstock.state.snapshots import (
    Manifest,
    Snapshots,
    encode_manifest,
)
from penstock.state.snapshots_restoring import StateKind, open_partition
from penstock.state.snapshots_taking import SnapshotTaker
from tests.state.writing import START_MS, TOPIC, Writer

KIND = StateKind("projection", ("views",), 3)
PARTITIONS = 2
PLACE = f"fold-{FOLD_VERSION}-3"


def identity(partition: int = 0) -> StoreIdentity:
    return StoreIdentity("memory", TOPIC, partition, PARTITIONS)


class Scene:
    """A log of two partitions, a store of objects, and replicas that fold into folders of their own."""

    def __init__(self, folder: Path, blobs_url: str) -> None:
        self.folder = folder
        self.log = MemoryLog(now_ms=lambda: START_MS)
        self.blobs = open_blobs(blobs_url)
        self.snapshots = Snapshots(self.blobs, every_s=300, keep=3)
        self.writers = [Writer(partition=number, partitions=PARTITIONS) for number in range(PARTITIONS)]
        self._written = [0] * PARTITIONS

    async def write(self, jobs: int, partition: int = 0) -> None:
        """So many records, each of one job that is enqueued."""
        writer = self.writers[partition]
        for number in range(jobs):
            writer.enqueue(f"job-{len(writer.records)}-{number}", payload=msgspec.Raw(b'"%s"' % (b"x" * 200)))
            writer.end_record()
        for record in writer.records[self._written[partition] :]:
            await self.log.append(TOPIC, partition, record.value)
        self._written[partition] = len(writer.records)

    async def records(self, partition: int, start: int) -> list[Record]:
        end = (await self.log.bounds(TOPIC, partition)).end
        found: list[Record] = []
        async with self.log.tail({(TOPIC, partition): start}) as tail:
            while len(found) < end - start:
                found += await tail.poll(100)
        return found

    async def open(
        self, replica: str, partition: int = 0, *, kind: StateKind = KIND, snapshots: bool = True
    ) -> PartitionStore:
        path = self.folder / replica / str(partition)
        return await open_partition(
            self.log, path, identity(partition), kind, self.snapshots if snapshots else None
        )

    async def fold(self, store: PartitionStore) -> int:
        """Fold what the log has; returns how many records that were."""
        records = await self.records(store.partition, store.next_offset)
        for record in records:
            store.fold(record)
        store.commit()
        return len(records)

    def taker(self, *stores: PartitionStore) -> SnapshotTaker:
        return SnapshotTaker(self.snapshots, KIND.name, lambda: stores)

    async def take(self, replica: str = "one", jobs: int = 30, partition: int = 0) -> Manifest:
        """Write, fold and take a snapshot."""
        await self.write(jobs, partition)
        store = await self.open(replica, partition, snapshots=False)
        try:
            await self.fold(store)
            latest = await self.snapshots.latest(KIND.name, partition)
            return await self.taker(store).take(store, latest)
        finally:
            store.close()

    async def digest(self, partition: int = 0, *, below: int | None = None) -> str:
        """Of a fold from the very beginning."""
        writer = self.writers[partition]
        with PartitionStore.open(
            self.folder / f"reference-{uuid.uuid4()}", identity=identity(partition), extra=KIND.families
        ) as store:
            for record in writer.records[:below]:
                store.fold(record)
            store.commit()
            assert store.recompute_digest() == store.digest
            return store.digest


async def spoil(blobs: Blobs, key: str) -> None:
    data = bytearray(await blobs.get(key))
    data[len(data) // 2] ^= 0x20
    await blobs.put(key, bytes(data))


def edited(manifest: Manifest, **changes: object) -> bytes:
    return encode_manifest(msgspec.structs.replace(manifest, **changes))
