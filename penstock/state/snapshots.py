"""Snapshots: copies of partitions' states outside the machine, so that who starts anew folds a tail, not the whole log.

::

    <kind>/<partition>/files/<sha256>                       content, once however many snapshots have it
    <kind>/<partition>/<next offset>-<id>/manifest.json     a snapshot: of what, how far, and which files
    <kind>/<partition>/latest.json                          the newest manifest once more

A snapshot is there when its manifest is: files are written first, the manifest after them, ``latest.json`` last, each
whole or not at all. Whoever dies in between leaves files that nobody names, and :meth:`Snapshots.prune` removes them
once they are so old that no upload can still be on its way to name them.

``kind`` is the role that owns the state: ``projection``, ``orchestrator``, or ``node``, which is both.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from hashlib import sha256

import msgspec

from penstock.log.blobs import BlobInfo, Blobs
from penstock.schemas.errors import BlobMissing, HistoryChanged, SnapshotDamaged
from penstock.state.partition_store import StoreIdentity

KINDS = ("projection", "orchestrator", "node")

UPLOAD_LIMIT_S = 1_800
GRACE_MS = 2 * UPLOAD_LIMIT_S * 1_000
"""Files that no manifest names are left alone for so long: an upload, which ends before that, may be about to."""

_FORMAT = 1
_NAME = re.compile(r"\d{20}-[0-9a-z]{1,40}", re.IGNORECASE)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_log = logging.getLogger(__name__)


class SnapshotFile(msgspec.Struct, frozen=True):
    """A file of a store's folder. ``sha256`` is hex, and says where its content is."""

    name: str
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One partition's state at one offset. Digests and hashes are hex; times are Unix milliseconds."""

    format: int = _FORMAT
    name: str
    """``<next offset, 20 digits>-<id>``."""
    kind: str
    cluster_id: str
    topic: str
    partitions: int
    partition: int
    generation: int
    next_offset: int
    last_offset: int
    last_hash: str
    """SHA-256 of the last folded record's value."""
    fold_version: int
    layout: int
    rules: int
    state_digest: str
    log_digest: str
    created_at_ms: int
    files: tuple[SnapshotFile, ...]
    check: str = ""
    """SHA-256 of this manifest's encoding without it."""

    @property
    def identity(self) -> StoreIdentity:
        """Of which log, and which part of it."""
        return StoreIdentity(self.cluster_id, self.topic, self.partition, self.partitions, self.generation)

    @property
    def version(self) -> tuple[int, int]:
        """Of the fold and of the owner's rows: what another program version can read."""
        return self.fold_version, self.layout

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum(file.size_bytes for file in self.files)


_decode = msgspec.json.Decoder(Manifest).decode


def seal(manifest: Manifest) -> Manifest:
    """The manifest with its check filled in."""
    return msgspec.structs.replace(manifest, check=_check_of(manifest))


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as it is stored."""
    return msgspec.json.encode(seal(manifest))


def decode_manifest(data: bytes) -> Manifest:
    """Raises SnapshotDamaged: these are not the bytes that were written, or they name what no store has."""
    try:
        manifest = _decode(data)
    except msgspec.MsgspecError as error:
        raise SnapshotDamaged(f"A snapshot's manifest cannot be read: {error}") from error
    if _check_of(manifest) != manifest.check:
        raise SnapshotDamaged(f"The manifest of snapshot {manifest.name} was changed.")
    names = [file.name for file in manifest.files]
    sound = manifest.format == _FORMAT and _NAME.fullmatch(manifest.name) and len(set(names)) == len(names)
    if not sound or not all(
        _FILE_NAME.fullmatch(file.name) and _SHA256.fullmatch(file.sha256) for file in manifest.files
    ):
        raise SnapshotDamaged(f"The manifest of snapshot {manifest.name} is of another format.")
    return manifest


def _check_of(manifest: Manifest) -> str:
    return sha256(msgspec.json.encode(msgspec.structs.replace(manifest, check=""))).hexdigest()


def check_same_log(manifest: Manifest, identity: StoreIdentity, url: str) -> None:
    """Raises HistoryChanged: the snapshot is of another log than ``identity``; the message names the difference."""
    found = manifest.identity
    if found == identity:
        return
    differences = ", ".join(
        f"{name} {getattr(found, name)!r} is here {getattr(identity, name)!r}"
        for name in identity.__struct_fields__
        if getattr(found, name) != getattr(identity, name)
    )
    raise HistoryChanged(
        f"Snapshot {manifest.name} in {url} is of another log: {differences}. Use another place, or remove it.",
        found=msgspec.structs.asdict(found),
        wanted=msgspec.structs.asdict(identity),
    )


class Pruned(msgspec.Struct, frozen=True):
    """What :meth:`Snapshots.prune` removed."""

    snapshots: tuple[str, ...]
    files: int
    freed_bytes: int


class Snapshots:
    """The snapshots in one store of objects.

    Args:
        every_s: how often roles take one of each partition.
        keep: how many of each partition are kept, at least 1.
    """

    def __init__(self, blobs: Blobs, *, every_s: int = 300, keep: int = 3) -> None:
        self.blobs = blobs
        self.every_s = every_s
        self.keep = keep

    # Reading

    async def latest(self, kind: str, partition: int) -> Manifest | None:
        """What ``latest.json`` says; None where there is none.

        Raises:
            SnapshotDamaged: it cannot be read.
            BlobsUnavailable: the store does not answer.
        """
        try:
            return decode_manifest(await self.blobs.get(latest_key(kind, partition)))
        except BlobMissing:
            return None

    async def names(self, kind: str, partition: int) -> list[str]:
        """Names of all snapshots of a partition, the newest first. Raises BlobsUnavailable."""
        return _names(await self.blobs.list(_place(kind, partition)))

    async def read(self, kind: str, partition: int, name: str) -> Manifest:
        """The manifest of a snapshot.

        Raises:
            BlobMissing: there is none of this name.
            SnapshotDamaged: it cannot be read, or it is another's.
            BlobsUnavailable: the store does not answer.
        """
        manifest = decode_manifest(await self.blobs.get(manifest_key(kind, partition, name)))
        if (manifest.kind, manifest.partition, manifest.name) != (kind, partition, name):
            raise SnapshotDamaged(f"Under the name of snapshot {name} stands {manifest.name}.")
        return manifest

    async def newest_first(self, kind: str, partition: int) -> AsyncIterator[Manifest]:
        """Every manifest that can be read, the newest first; one that cannot is passed over with a warning."""
        told: str | None = None
        try:
            manifest = await self.latest(kind, partition)
        except SnapshotDamaged as error:
            _log.warning("the latest snapshot of %s %d is passed over: %s", kind, partition, error.message)
            manifest = None
        if manifest is not None:
            told = manifest.name
            yield manifest
        for name in await self.names(kind, partition):
            if name == told:
                continue
            try:
                yield await self.read(kind, partition, name)
            except (SnapshotDamaged, BlobMissing) as error:
                _log.warning("snapshot %s of %s %d is passed over: %s", name, kind, partition, error.message)

    async def kept(self, kind: str, partition: int) -> list[Manifest]:
        """All that can be read, the newest first. What the log keeps must reach back to the last of them."""
        return [manifest async for manifest in self.newest_first(kind, partition)]

    async def partitions(self, kind: str) -> list[int]:
        """Partitions of which there is anything. Raises BlobsUnavailable."""
        found = {info.key.split("/")[1] for info in await self.blobs.list(kind)}
        return sorted(int(part) for part in found if part.isdecimal())

    # Pruning

    async def prune(
        self, kind: str, partition: int, now_ms: int, *, keep: int | None = None, grace_ms: int = GRACE_MS
    ) -> Pruned:
        """Remove all but the newest ``keep`` snapshots of each version, and files that no kept one names.

        A version that is left behind, whose newest snapshot is older than all that are kept of the newest version,
        goes altogether. What cannot be read names nothing that could be restored, and goes when it is old.

        Raises:
            BlobsUnavailable: the store does not answer; it may have removed some.
        """
        stored = await self.blobs.list(_place(kind, partition))
        manifests: list[Manifest] = []
        unreadable: list[str] = []
        for name in _names(stored):
            try:
                manifests.append(await self.read(kind, partition, name))
            except (SnapshotDamaged, BlobMissing):
                unreadable.append(name)
        kept = _kept(manifests, max(1, self.keep if keep is None else keep))
        names = {manifest.name for manifest in kept}
        old = {info.key for info in stored if now_ms - info.modified_ms > grace_ms}
        dropped = [manifest.name for manifest in manifests if manifest.name not in names]
        dropped += [name for name in unreadable if manifest_key(kind, partition, name) in old]
        await self.blobs.delete([manifest_key(kind, partition, name) for name in dropped])
        named = {file.sha256 for manifest in kept for file in manifest.files}
        prefix = f"{_place(kind, partition)}/files/"
        unnamed = [
            info
            for info in stored
            if info.key.startswith(prefix) and info.key in old and info.key.removeprefix(prefix) not in named
        ]
        await self.blobs.delete([info.key for info in unnamed])
        await self.blobs.clear_staged()
        return Pruned(tuple(dropped), len(unnamed), sum(info.size_bytes for info in unnamed))

    async def remove_all(self, kind: str, partition: int) -> Pruned:
        """Remove every snapshot of a partition, for a role that runs no more. Raises BlobsUnavailable."""
        stored = await self.blobs.list(_place(kind, partition))
        names = _names(stored)
        # What makes a snapshot goes before what it is made of.
        await self.blobs.delete([latest_key(kind, partition)])
        await self.blobs.delete([manifest_key(kind, partition, name) for name in names])
        files = [info for info in stored if info.key.startswith(f"{_place(kind, partition)}/files/")]
        await self.blobs.delete([info.key for info in files])
        return Pruned(tuple(names), len(files), sum(info.size_bytes for info in files))


def _kept(manifests: Sequence[Manifest], keep: int) -> list[Manifest]:
    """Those to keep of ``manifests``, which come the newest first."""
    by_version: dict[tuple[int, int], list[Manifest]] = {}
    for manifest in manifests:
        by_version.setdefault(manifest.version, []).append(manifest)
    kept: list[Manifest] = []
    since_ms: int | None = None
    for version in sorted(by_version, reverse=True):
        mine = by_version[version][:keep]
        if since_ms is not None and max(manifest.created_at_ms for manifest in mine) < since_ms:
            continue
        if since_ms is None and len(mine) == keep:
            since_ms = min(manifest.created_at_ms for manifest in mine)
        kept += mine
    return kept


# Keys


def _place(kind: str, partition: int) -> str:
    return f"{kind}/{partition}"


def latest_key(kind: str, partition: int) -> str:
    """Where the newest manifest stands once more."""
    return f"{_place(kind, partition)}/latest.json"


def manifest_key(kind: str, partition: int, name: str) -> str:
    """Where a snapshot's manifest stands."""
    return f"{_place(kind, partition)}/{name}/manifest.json"


def file_key(kind: str, partition: int, sha256_hex: str) -> str:
    """Where a file's content stands."""
    return f"{_place(kind, partition)}/files/{sha256_hex}"


def _names(stored: Iterable[BlobInfo]) -> list[str]:
    parts = (info.key.split("/") for info in stored)
    return sorted(
        (found[2] for found in parts if len(found) == 4 and found[3] == "manifest.json"), reverse=True
    )
