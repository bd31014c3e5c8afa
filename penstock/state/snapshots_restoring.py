"""Opening a partition's state: what is there, what was rebuilt beside it, or else a snapshot.

::

    a rebuilt folder waits? ──▶ it takes its place
    the folder is missing, damaged, or ends before the log begins? ──▶ the newest snapshot that fits takes its place
    the log still has what comes next, and the record that was folded last? ──▶ open, else an error that says why not

A snapshot is fetched into a folder beside and becomes the state by one rename, after every file's hash, the identity of
log and program, and the digests within have been compared with what its manifest says.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from penstock.core.rows import FOLD_VERSION
from penstock.core.rules import RULES, RulesTable
from penstock.log.archive_log import ArchivedLog
from penstock.log.port import Log
from penstock.log.store_lock import hold_folder
from penstock.schemas.errors import (
    BlobMissing,
    BlobsUnavailable,
    HistoryChanged,
    LogError,
    OffsetTrimmed,
    SnapshotDamaged,
    UnknownRules,
)
from penstock.state.last_record import check_last_record
from penstock.state.partition_store import (
    PartitionStore,
    StoreFactory,
    StoreIdentity,
    families_of,
    rocks_store,
)
from penstock.state.snapshots import Manifest, SnapshotFile, Snapshots, check_same_log, file_key
from penstock.state.snapshots_taking import together
from penstock.state.versions import fold_folder, put_in_place, ready, tidy

_log = logging.getLogger(__name__)

OPENINGS = 4
"""Partitions that are opened, and restored, at once."""

DOWNLOADS = 4
"""Files of one of them on their way at once."""

VERIFY_TIMEOUT_MS = 30_000


class StateKind(NamedTuple):
    """Whose state it is: the role's name, the families of its own rows, and their version."""

    name: str
    families: tuple[str, ...]
    layout: int
    store_factory: StoreFactory = rocks_store
    rules: RulesTable = RULES


async def open_partition(
    log: Log, path: Path, identity: StoreIdentity, kind: StateKind, snapshots: Snapshots | None = None
) -> PartitionStore:
    """Open the state of one partition below ``path`` and check it against the log: it can be folded on from there.

    Raises:
        HistoryChanged, OffsetBeyondEnd: the folder, or the snapshot, is of another log or of another history of it.
        OffsetTrimmed: the log begins after what is to be folded next, and no snapshot reaches so far.
        StoreLocked: another process has the folder.
        LogUnavailable, BlobsUnavailable: what is needed does not answer.
    """
    bounds = await log.bounds(identity.topic, identity.partition)
    place = fold_folder(path, kind.layout)
    if ready(place) is not None:
        adopt_rebuilt(path, identity, kind, bounds.start)
    store = _open(path, identity, kind)
    reasons: list[str] = []
    try:
        tidy(place)
        live_start = await _live_start(log, identity)
        lacking = store.next_offset == 0 or store.next_offset < live_start
        if snapshots is not None and lacking and store.next_offset < bounds.end:
            above = store.next_offset
            store.close()
            fetch = Restore(log, path, identity, kind, snapshots)
            try:
                await fetch.newest(above=above, log_start=bounds.start)
            except BlobsUnavailable as error:
                if above < bounds.start:
                    raise
                _log.warning("no snapshot can be had, and the log is folded instead: %s", error.message)
            reasons = fetch.refused
            store = _open(path, identity, kind)
        if store.next_offset < bounds.start:
            raise OffsetTrimmed(
                f"{identity.topic}-{identity.partition} begins at offset {bounds.start}; {store.next_offset} is the"
                f" next to fold, and {_no_snapshot(snapshots, reasons)}."
            )
        await store.verify_last_record(log)
    except BaseException:
        store.close()
        raise
    return store


async def _live_start(log: Log, identity: StoreIdentity) -> int:
    """Where the log itself begins: what is read from an archive before that is slow, and a snapshot is quicker."""
    live = log.live if isinstance(log, ArchivedLog) else log
    return (await live.bounds(identity.topic, identity.partition)).start


async def open_partitions(
    log: Log,
    places: Sequence[tuple[Path, StoreIdentity]],
    kind: StateKind,
    snapshots: Snapshots | None = None,
) -> list[PartitionStore]:
    """:func:`open_partition` for each place, some at a time; all of them or none. Raises like it."""
    room = asyncio.Semaphore(OPENINGS)
    opened: dict[int, PartitionStore] = {}

    async def open_one(number: int, path: Path, identity: StoreIdentity) -> None:
        async with room:
            opened[number] = await open_partition(log, path, identity, kind, snapshots)

    try:
        await together(open_one(number, *place) for number, place in enumerate(places))
    except BaseException:
        for store in opened.values():
            store.close()
        raise
    return [opened[number] for number in range(len(places))]


def _no_snapshot(snapshots: Snapshots | None, reasons: Sequence[str]) -> str:
    if snapshots is None:
        return "there are no snapshots (PENSTOCK_SNAPSHOTS is empty)"
    return f"no snapshot in {snapshots.blobs.url} helps: {'; '.join(reasons) or 'there is none'}"


def _open(path: Path, identity: StoreIdentity, kind: StateKind) -> PartitionStore:
    return PartitionStore.open(
        path,
        identity=identity,
        extra=kind.families,
        layout=kind.layout,
        store_factory=kind.store_factory,
        rules=kind.rules,
    )


def adopt_rebuilt(path: Path, identity: StoreIdentity, kind: StateKind, log_start: int) -> bool:
    """Put a rebuilt folder that waits below ``path`` in its place, unless the log no longer has what follows it.

    Raises:
        StoreLocked: a process has the one that it is to replace open.
    """
    place = fold_folder(path, kind.layout)
    fresh = ready(place)
    if fresh is None:
        return False
    try:
        store = kind.store_factory(str(fresh), families_of(kind.families))
        try:
            next_offset = PartitionStore(store, identity, kind.rules).next_offset
        finally:
            store.close()
    except LogError as error:
        _log.warning("the rebuilt state in %s is thrown away: %s", fresh, error.message)
        shutil.rmtree(fresh)
        return False
    if next_offset < log_start:
        _log.warning("the rebuilt state in %s is thrown away: the log begins after it", fresh)
        shutil.rmtree(fresh)
        return False
    put_in_place(fresh, place)
    _log.info("the rebuilt state of %s is in its place", place)
    return True


class Restore:
    """Fetching one partition's snapshot into its place below ``path``. ``refused`` says why others were passed over."""

    def __init__(
        self, log: Log, path: Path, identity: StoreIdentity, kind: StateKind, snapshots: Snapshots
    ) -> None:
        self.refused: list[str] = []
        self._log = log
        self._place = fold_folder(path, kind.layout)
        self._identity = identity
        self._kind = kind
        self._snapshots = snapshots

    async def newest(self, *, above: int = 0, log_start: int = 0) -> Manifest | None:
        """Restore the newest snapshot that fits, if one is ahead of offset ``above``; returns it.

        Raises:
            HistoryChanged, OffsetBeyondEnd: a snapshot is of another log, or of another history of this one.
            StoreLocked: a process has the folder open.
            BlobsUnavailable, LogUnavailable: what is needed does not answer.
        """
        async for manifest in self._snapshots.newest_first(self._kind.name, self._identity.partition):
            if await self.one(manifest, above=above, log_start=log_start):
                return manifest
        return None

    async def one(self, manifest: Manifest, *, above: int = 0, log_start: int = 0) -> Manifest | None:
        """Restore this snapshot, if it fits and is ahead; returns it. Raises like :meth:`newest`."""
        check_same_log(manifest, self._identity, self._snapshots.blobs.url)
        reason = self._unfit(manifest, above, log_start)
        if not reason:
            try:
                await self.fetch(manifest)
            except (SnapshotDamaged, BlobMissing) as error:
                reason = error.message
            else:
                return manifest
        self.refused.append(f"{manifest.name}: {reason}")
        _log.warning("snapshot %s of %s is passed over: %s", manifest.name, self._kind.name, reason)
        return None

    def _unfit(self, manifest: Manifest, above: int, log_start: int) -> str:
        mine = FOLD_VERSION, self._kind.layout
        if manifest.version != mine:
            found, wanted = (
                f"fold {version[0]}, layout {version[1]}" for version in (manifest.version, mine)
            )
            return f"it was written by another version ({found}; here {wanted})"
        if manifest.rules not in self._kind.rules:
            return f"it follows rules {manifest.rules}, which this version does not have"
        if manifest.next_offset <= above:
            return f"it ends at offset {manifest.next_offset}, and what is here at {above}"
        if manifest.next_offset < log_start:
            return f"it ends at offset {manifest.next_offset}, and the log begins at {log_start}"
        return ""

    async def fetch(self, manifest: Manifest) -> None:
        """Restore this one, whatever is there now.

        Raises:
            SnapshotDamaged, BlobMissing: it is not whole; nothing is changed.
            HistoryChanged, OffsetBeyondEnd: the log is not the one that it was folded from.
            OffsetTrimmed: the log begins after it.
            StoreLocked: a process has the folder open.
            BlobsUnavailable, LogUnavailable: what is needed does not answer.
        """
        began = time.monotonic()
        await check_last_record(
            self._log,
            self._identity.topic,
            self._identity.partition,
            manifest.last_offset,
            bytes.fromhex(manifest.last_hash),
            VERIFY_TIMEOUT_MS,
        )
        beside = self._place.with_name(f"restoring-{self._place.name}")
        beside.mkdir(parents=True, exist_ok=True)
        with hold_folder(beside):
            try:
                fresh = beside / "state"
                shutil.rmtree(fresh, ignore_errors=True)
                fresh.mkdir()
                await self._download(manifest, fresh)
                self._check(manifest, fresh)
                put_in_place(fresh, self._place)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        _log.info(
            "restored %s %d from snapshot %s: %d bytes in %d ms",
            self._kind.name,
            manifest.partition,
            manifest.name,
            manifest.size_bytes,
            (time.monotonic() - began) * 1_000,
        )

    async def _download(self, manifest: Manifest, fresh: Path) -> None:
        room = asyncio.Semaphore(DOWNLOADS)

        async def download(file: SnapshotFile) -> None:
            async with room:
                key = file_key(manifest.kind, manifest.partition, file.sha256)
                await self._snapshots.blobs.get_file(key, fresh / file.name)
                if await asyncio.to_thread(_sha256, fresh / file.name) != file.sha256:
                    raise SnapshotDamaged(f"its file {file.name} is not what was written")

        await together(download(file) for file in manifest.files)

    def _check(self, manifest: Manifest, fresh: Path) -> None:
        """Open it and compare what stands in it with the manifest."""
        try:
            store = self._kind.store_factory(str(fresh), families_of(self._kind.families))
            try:
                committed = PartitionStore(store, self._identity, self._kind.rules).committed
            finally:
                store.close()
        except HistoryChanged as error:
            raise SnapshotDamaged(f"it holds the state of another log: {error.message}") from error
        except (LogError, UnknownRules) as error:
            raise SnapshotDamaged(f"it cannot be opened: {error.message}") from error
        found = committed.next_offset, committed.state_digest.hex(), committed.log_digest.hex()
        if found != (manifest.next_offset, manifest.state_digest, manifest.log_digest):
            raise SnapshotDamaged(
                f"it holds offset {found[0]} and digest {found[1]}, which its manifest does not say"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
