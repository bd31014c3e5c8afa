"""What the ``snapshot`` commands do, apart from them, so that other commands do not load what it takes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import msgspec

from penstock.cli.archiving import snapshots_of
from penstock.cli.folders import KINDS as FOLDERS
from penstock.cli.folders import FolderKind
from penstock.cli.opening import existing_log
from penstock.cli.settings import Settings
from penstock.log.namespace import Namespace
from penstock.log.port import Log
from penstock.schemas.errors import BlobMissing, InvalidField, SettingsInvalid, SnapshotDamaged
from penstock.schemas.times import time_text
from penstock.state.partition_store import StoreIdentity
from penstock.state.snapshots import KINDS, Manifest, Snapshots
from penstock.state.snapshots_restoring import Restore, StateKind, open_partition
from penstock.state.snapshots_taking import SnapshotTaker


class SnapshotRow(msgspec.Struct, kw_only=True):
    """What is known of one snapshot, or was done about it."""

    kind: str
    partition: int
    outcome: str
    snapshot: str = ""
    reason: str = ""
    next_offset: int | None = None
    created_at: str = ""
    files: int | None = None
    size_bytes: int | None = None
    version: str = ""
    digest: str = ""

    @classmethod
    def of(cls, manifest: Manifest, outcome: str) -> SnapshotRow:
        """A row with what the manifest says."""
        return cls(
            kind=manifest.kind,
            partition=manifest.partition,
            snapshot=manifest.name,
            outcome=outcome,
            next_offset=manifest.next_offset,
            created_at=time_text(manifest.created_at_ms) or "",
            files=len(manifest.files),
            size_bytes=manifest.size_bytes,
            version=f"{manifest.fold_version}-{manifest.layout}",
            digest=manifest.state_digest,
        )


def opened(settings: Settings, *, must_exist: bool = True) -> Snapshots:
    """The snapshots in the settings. Raises SettingsInvalid without any, NotFound where the folder must exist."""
    found = snapshots_of(settings, must_exist=must_exist)
    if found is None:
        raise SettingsInvalid("there are no snapshots: PENSTOCK_SNAPSHOTS is a folder or s3://bucket/prefix")
    return found


async def _stored(snapshots: Snapshots, kind: str | None, partition: int | None) -> list[tuple[str, int]]:
    """Every kind and partition of which there is anything, as far as wanted."""
    return [
        (name, number)
        for name in (KINDS if kind is None else (kind,))
        for number in await snapshots.partitions(name)
        if partition in (None, number)
    ]


async def list_all(settings: Settings, kind: str | None, partition: int | None) -> list[SnapshotRow]:
    """Every snapshot, the newest first within a partition."""
    snapshots = opened(settings)
    rows: list[SnapshotRow] = []
    for name, number in await _stored(snapshots, kind, partition):
        try:
            latest = await snapshots.latest(name, number)
        except SnapshotDamaged:
            rows.append(SnapshotRow(kind=name, partition=number, snapshot="latest.json", outcome="damaged"))
            latest = None
        for snapshot in await snapshots.names(name, number):
            try:
                manifest = await snapshots.read(name, number, snapshot)
            except (SnapshotDamaged, BlobMissing):
                rows.append(SnapshotRow(kind=name, partition=number, snapshot=snapshot, outcome="damaged"))
            else:
                is_latest = latest is not None and latest.name == snapshot
                rows.append(SnapshotRow.of(manifest, "latest" if is_latest else "kept"))
    return rows


async def create(settings: Settings, kind: str | None, partition: int | None) -> list[SnapshotRow]:
    """Take one of every folder that is there. Raises StoreLocked: a role runs on it."""
    snapshots = opened(settings, must_exist=False)
    rows: list[SnapshotRow] = []
    async with existing_log(settings) as (log, namespace):
        for folder, identity in _places(log, namespace, kind, partition):
            if not folder.exists(settings.data, identity.partition):
                continue
            path = folder.store(settings.data, identity.partition)
            store = await open_partition(log, path, identity, _state_kind(folder))
            try:
                if store.committed_offset == 0:
                    continue
                taker = SnapshotTaker(snapshots, folder.name, lambda: ())
                manifest = await taker.take(store, await _latest(snapshots, folder.name, identity.partition))
            finally:
                store.close()
            rows.append(SnapshotRow.of(manifest, "taken"))
    return rows


async def _latest(snapshots: Snapshots, kind: str, partition: int) -> Manifest | None:
    try:
        return await snapshots.latest(kind, partition)
    except SnapshotDamaged:
        return None


def _places(
    log: Log, namespace: Namespace, kind: str | None, partition: int | None
) -> Iterable[tuple[FolderKind, StoreIdentity]]:
    topics = namespace.topics
    if partition is not None and partition >= topics.partitions:
        raise InvalidField(
            f"--partition: there are partitions 0 to {topics.partitions - 1}", field="partition"
        )
    for folder in FOLDERS:
        for number in range(topics.partitions):
            if kind in (None, folder.name) and partition in (None, number):
                yield (
                    folder,
                    StoreIdentity(
                        log.cluster_id, topics.jobs, number, topics.partitions, namespace.generation
                    ),
                )


def _state_kind(folder: FolderKind) -> StateKind:
    return StateKind(folder.name, folder.families, folder.layout)


async def restore(
    settings: Settings, kind: str | None, partition: int | None, name: str, *, force: bool
) -> list[SnapshotRow]:
    """Restore one of every partition of which there is any. Raises like ``Restore.newest``."""
    snapshots = opened(settings)
    rows: list[SnapshotRow] = []
    async with existing_log(settings) as (log, namespace):
        stored = await _stored(snapshots, kind, partition)
        for folder, identity in _places(log, namespace, kind, partition):
            number = identity.partition
            if (folder.name, number) not in stored or (partition is None and number not in settings.folded):
                continue
            path = folder.store(settings.data, identity.partition)
            fetch = Restore(log, path, identity, _state_kind(folder), snapshots)
            above = -1 if force else _next_offset(settings, folder, identity)
            if name:
                manifest = await snapshots.read(folder.name, identity.partition, name)
                done = await fetch.one(manifest, above=above)
            else:
                start = (await log.bounds(identity.topic, identity.partition)).start
                done = await fetch.newest(above=above, log_start=start)
            if done is not None:
                rows.append(SnapshotRow.of(done, "restored"))
            else:
                # Where there is something already, it may well be what is wanted; where there is nothing, it is not.
                rows.append(
                    SnapshotRow(
                        kind=folder.name,
                        partition=identity.partition,
                        outcome="kept" if above > 0 else "refused",
                        reason="; ".join(fetch.refused),
                    )
                )
    return rows


def _next_offset(settings: Settings, folder: FolderKind, identity: StoreIdentity) -> int:
    """How far the folder is that is there; 0 where there is none."""
    if not folder.exists(settings.data, identity.partition):
        return 0
    with folder.open(folder.path(settings.data), identity) as store:
        return store.next_offset


async def prune(
    settings: Settings, kind: str | None, partition: int | None, keep: int | None, *, everything: bool
) -> list[dict[str, Any]]:
    """Prune every partition of which there is any."""
    snapshots = opened(settings)
    found: list[dict[str, Any]] = []
    now_ms = time.time_ns() // 1_000_000
    for name, number in await _stored(snapshots, kind, partition):
        if everything:
            pruned = await snapshots.remove_all(name, number)
        else:
            pruned = await snapshots.prune(name, number, now_ms, keep=keep)
        found.append({"kind": name, "partition": number, **msgspec.structs.asdict(pruned)})
    return found
