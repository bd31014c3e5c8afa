"""Taking snapshots while the owner goes on folding.

::

    flush, in the background ──▶ checkpoint at a commit: links ──▶ hash, upload what is new ──▶ manifest ──▶ latest
                                 (all that holds the loop)          (threads)

A snapshot that fails is told and tried again later: nothing that is lost with it is not on the log.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path

import msgspec

from penstock.core.rows import FOLD_VERSION
from penstock.schemas.errors import BlobMissing, PenstockError, SnapshotDamaged
from penstock.schemas.ids import ulid
from penstock.state.partition_store import PartitionStore
from penstock.state.snapshots import (
    UPLOAD_LIMIT_S,
    Manifest,
    SnapshotFile,
    Snapshots,
    check_same_log,
    encode_manifest,
    file_key,
    latest_key,
    manifest_key,
    seal,
)

_log = logging.getLogger(__name__)

UPLOADS = 4
"""Files on their way at once."""

FLUSH_POLL_S = 0.01
FLUSH_POLLS = 1_000
_FOLDER = "snapshot-"

FileStamp = tuple[int, int, int]
"""Inode, time of the last change (ns) and size: files of a store that have them in common are one and the same."""


class SnapshotNumbers(msgspec.Struct, kw_only=True):
    """What a role has done about snapshots since it started, for metrics."""

    taken: int = 0
    failed: int = 0
    uploaded_bytes: int = 0
    reused_bytes: int = 0


class SnapshotTaker:
    """Takes the snapshots of one role's partitions, one at a time.

    Of several processes that hold the same partition, whoever comes first in an interval does it for all.

    Args:
        stores: the open stores whose snapshots are this process's business, asked at each turn.
    """

    def __init__(
        self, snapshots: Snapshots, kind: str, stores: Callable[[], Iterable[PartitionStore]]
    ) -> None:
        self.numbers = SnapshotNumbers()
        self._snapshots = snapshots
        self._kind = kind
        self._stores = stores
        self._due_s: dict[int, float] = {}
        self._last: dict[int, tuple[int, int]] = {}
        self._hashes: dict[int, dict[FileStamp, str]] = {}

    @property
    def last(self) -> dict[int, tuple[int, int]]:
        """Of the last known snapshot by partition: its next offset, and when it was taken, Unix ms."""
        return dict(self._last)

    async def turns(self) -> None:
        """Take the snapshot of each partition for which it is time."""
        for store in list(self._stores()):
            if time.monotonic() >= self._due_s.get(store.partition, 0.0):
                self._due_s[store.partition] = time.monotonic() + self._snapshots.every_s
                await self._turn(store)

    async def _turn(self, store: PartitionStore) -> None:
        try:
            async with asyncio.timeout(UPLOAD_LIMIT_S):
                await self._take_if_wanted(store)
        except (PenstockError, OSError, TimeoutError) as error:
            self.numbers.failed += 1
            reason = error.message if isinstance(error, PenstockError) else str(error) or "it took too long"
            _log.warning("no snapshot of %s %d was taken: %s", self._kind, store.partition, reason)

    async def _take_if_wanted(self, store: PartitionStore) -> None:
        latest = await self._latest(store)
        if latest is not None and latest.version == (FOLD_VERSION, store.layout):
            self._last[store.partition] = latest.next_offset, latest.created_at_ms
            age_s = time.time() - latest.created_at_ms / 1_000
            if latest.next_offset >= store.committed_offset:
                return
            # A little earlier than the interval, or two clocks that differ by a moment would halve the rate.
            if 0 <= age_s < self._snapshots.every_s * 0.9:
                self._due_s[store.partition] = time.monotonic() + self._snapshots.every_s - age_s
                return
        if store.committed_offset > 0:
            await self.take(store, latest)

    async def _latest(self, store: PartitionStore) -> Manifest | None:
        try:
            latest = await self._snapshots.latest(self._kind, store.partition)
        except SnapshotDamaged as error:
            _log.warning("the latest snapshot of %s %d: %s", self._kind, store.partition, error.message)
            return None
        if latest is not None:
            check_same_log(latest, store.identity, self._snapshots.blobs.url)
        return latest

    async def take(self, store: PartitionStore, latest: Manifest | None = None) -> Manifest:
        """Take a snapshot now, and prune. ``latest`` is the one before: what it holds is not uploaded again.

        Raises:
            HistoryChanged: ``latest`` is of another log.
            BlobsUnavailable: the store of objects does not answer.
            OSError: the disk does not take the checkpoint.
        """
        if latest is not None:
            check_same_log(latest, store.identity, self._snapshots.blobs.url)
        began = time.monotonic()
        folder = _folder_for(store)
        try:
            await _flush(store)
            manifest = _describe(self._kind, store)
            store.store.checkpoint(str(folder))
            manifest = await self._upload(manifest, folder, latest)
        finally:
            # Not awaited: a task that is being cancelled must not leave the links behind.
            shutil.rmtree(folder, ignore_errors=True)
        self.numbers.taken += 1
        self._last[store.partition] = manifest.next_offset, manifest.created_at_ms
        _log.info(
            "snapshot %s of %s %d: %d bytes in %d ms",
            manifest.name,
            self._kind,
            store.partition,
            manifest.size_bytes,
            (time.monotonic() - began) * 1_000,
        )
        await self._snapshots.prune(self._kind, store.partition, _now_ms())
        return manifest

    async def _upload(self, manifest: Manifest, folder: Path, latest: Manifest | None) -> Manifest:
        kind, partition, blobs = self._kind, manifest.partition, self._snapshots.blobs
        files = await asyncio.to_thread(self._hash, partition, folder)
        there: dict[str, int] = {}
        if latest is not None:
            # Only what the newest snapshot names is sure to stay until this one is written.
            prefix = file_key(kind, partition, "")
            stored = {
                info.key.removeprefix(prefix): info.size_bytes
                for info in await blobs.list(prefix.rstrip("/"))
            }
            there = {file.sha256: stored.get(file.sha256, -1) for file in latest.files}
        room = asyncio.Semaphore(UPLOADS)

        async def upload(file: SnapshotFile) -> None:
            async with room:
                await blobs.put_file(file_key(kind, partition, file.sha256), folder / file.name)

        new = {file.sha256: file for file in files if there.get(file.sha256) != file.size_bytes}
        await together(upload(file) for file in new.values())
        manifest = seal(msgspec.structs.replace(manifest, files=files))
        data = encode_manifest(manifest)
        await blobs.put(manifest_key(kind, partition, manifest.name), data)
        await self._check_kept(manifest, [file for file in files if file.sha256 not in new])
        await blobs.put(latest_key(kind, partition), data)
        uploaded = sum(file.size_bytes for file in new.values())
        self.numbers.uploaded_bytes += uploaded
        self.numbers.reused_bytes += manifest.size_bytes - uploaded
        return manifest

    async def _check_kept(self, manifest: Manifest, reused: list[SnapshotFile]) -> None:
        """Another process may have pruned what was not uploaded again, before the manifest named it."""
        blobs = self._snapshots.blobs
        prefix = file_key(self._kind, manifest.partition, "")
        if reused:
            stored = {info.key for info in await blobs.list(prefix.rstrip("/"))}
            if any(prefix + file.sha256 not in stored for file in reused):
                await blobs.delete([manifest_key(self._kind, manifest.partition, manifest.name)])
                raise BlobMissing(f"files of {manifest.name} were removed while it was written")

    def _hash(self, partition: int, folder: Path) -> tuple[SnapshotFile, ...]:
        """The files of a checkpoint. What was hashed for the one before, through another link, is not read again."""
        found: list[SnapshotFile] = []
        before = self._hashes.get(partition, {})
        known: dict[FileStamp, str] = {}
        for path in sorted(folder.iterdir()):
            stat = path.stat()
            stamp = stat.st_ino, stat.st_mtime_ns, stat.st_size
            digest = before.get(stamp)
            if digest is None:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            if path.suffix == ".sst":
                known[stamp] = digest
            found.append(SnapshotFile(path.name, stat.st_size, digest))
        self._hashes[partition] = known
        return tuple(found)


def _folder_for(store: PartitionStore) -> Path:
    """Where the checkpoint goes: beside the store's own files, for links do not reach over file systems."""
    if store.folder is None:
        raise ValueError("only a store that was opened in a folder has snapshots")
    for left in store.folder.glob(f"{_FOLDER}*"):
        shutil.rmtree(left, ignore_errors=True)
    return store.folder / f"{_FOLDER}{os.urandom(6).hex()}"


async def _flush(store: PartitionStore) -> None:
    """Have what is in memory written by RocksDB's own threads, so that the checkpoint finds little left to write."""
    store.store.start_flush()
    for _ in range(FLUSH_POLLS):
        if not store.store.flushing:
            return
        await asyncio.sleep(FLUSH_POLL_S)


def _describe(kind: str, store: PartitionStore) -> Manifest:
    """Everything but the files, as of the last commit: the checkpoint must follow without a turn of the loop."""
    committed, identity, now_ms = store.committed, store.identity, _now_ms()
    unique = ulid(now_ms, int.from_bytes(os.urandom(10), "big"))
    return Manifest(
        name=f"{committed.next_offset:020d}-{unique}",
        kind=kind,
        cluster_id=identity.cluster_id,
        topic=identity.topic,
        partitions=identity.partitions,
        partition=identity.partition,
        generation=identity.generation,
        next_offset=committed.next_offset,
        last_offset=committed.last_offset,
        last_hash=committed.last_hash.hex(),
        fold_version=FOLD_VERSION,
        layout=store.layout,
        rules=store.committed_rules,
        state_digest=committed.state_digest.hex(),
        log_digest=committed.log_digest.hex(),
        created_at_ms=now_ms,
        files=(),
    )


async def together(work: Iterable[Coroutine[object, object, None]]) -> None:
    """Wait for all; the first that fails ends the others, and is the error."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    for task in tasks:
        # A group takes a cancelled task for done, whoever cancelled it.
        task.result()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
