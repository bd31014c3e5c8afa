"""What an archive of the jobs log is made of: segments, each of three objects below ``<topic>/<partition>/``.

=========================================  =========================================================================
``<first>-<next>-<hash>.records``          every record of a stretch of offsets, in blocks, exactly as it was read
``<first>-<next>-<hash>.index``            which blocks speak of which job, and the lines about the partition itself
``<first>-<next>.manifest``                :class:`Manifest`: what the others must be, and how the segment joins
=========================================  =========================================================================

``first`` and ``next`` are offsets, 16 digits; the segment holds every record with ``first <= offset < next``. The
manifest comes last: a segment without one does not count, and what a crash left behind is never read. The other two
bear their own SHA-256 in their names, so two writers can never mix theirs.

A block is the zstd-compressed msgpack of a list of records. Its row in the manifest also has the time that the log had
told before it, since records that somebody else stamped take the last time that the log itself gave.

A manifest holds the log digest before its first and after its last record (:mod:`penstock.log.chain`). Segments join
where one ends with the digest that the next begins with: an archive is one chain from the log's first record on, and
whoever has only the archive can compute it anew.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from hashlib import blake2b, sha256
from typing import Any, cast

import msgspec
from cramjam import DecompressionError, zstd  # pyright: ignore[reportMissingModuleSource]  # an extension; its stubs are beside it
from msgspec import Struct

from penstock.log.chain import next_link
from penstock.log.port import Headers, Record
from penstock.schemas.codec import split
from penstock.schemas.copies import copy_header
from penstock.schemas.errors import ArchiveDamaged
from penstock.schemas.ids import home_of, job_key

FORMAT = 1
BLOCK_BYTES = 1024 * 1024
"""A block is closed once the values in it have so many bytes."""

ZSTD_LEVEL = 3
_MANIFEST, _RECORDS, _INDEX = ".manifest", ".records", ".index"
_ENTRY_BYTES = 12

_Row = tuple[int, int, bool, bytes | None, Headers, bytes]
"""Offset, time in ms, whether the log stamped it, key, headers, value."""


class Block(Struct, frozen=True, array_like=True):
    """Some records of a segment: the first one's offset, how many, and where their bytes stand in the object."""

    first_offset: int
    records: int
    at: int
    size_bytes: int
    log_time_ms: int
    """The last time that the log itself had stamped before this block."""


class ObjectRef(Struct, frozen=True):
    """An object of the store and what it must hold. ``sha256`` is hex."""

    key: str
    size_bytes: int
    sha256: str


class Manifest(Struct, frozen=True, kw_only=True):
    """What a segment is. Times are the records' own, Unix ms; digests and hashes SHA-256, hex."""

    archive: str = "penstock"
    format: int = FORMAT
    cluster_id: str
    topic: str
    partition: int
    partitions: int
    generation: int
    first_offset: int
    next_offset: int
    last_offset: int
    """Of its last record: offsets may have gaps."""
    first_time_ms: int
    last_time_ms: int
    highest_time_ms: int
    log_time_ms: int
    """The last time that the log itself stamped, up to its end."""
    records: int
    lines: int
    value_bytes: int
    digest_before: str
    digest_after: str
    last_hash: str
    """Of its last record's value."""
    data: ObjectRef
    index: ObjectRef
    blocks: list[Block]


class Landmark(Struct, frozen=True, array_like=True):
    """A line about the partition itself, without which no job's lines can be judged: who leads, which rules hold."""

    offset: int
    line: int
    time_ms: int
    """The log's time of its record."""
    data: bytes


class _IndexBody(Struct, frozen=True, array_like=True):
    entries: bytes
    landmarks: list[Landmark]


class _About(Struct):
    """As much of a line as tells whom it is about: laxer than what a fold decodes, so it misses nobody."""

    type: Any = ""
    job: Any = ""
    tenant: Any = "default"


_encode = msgspec.msgpack.Encoder().encode
_decode_rows = msgspec.msgpack.Decoder(list[_Row]).decode
_decode_index = msgspec.msgpack.Decoder(_IndexBody).decode
_decode_manifest = msgspec.json.Decoder(Manifest).decode
_decode_about = msgspec.json.Decoder(_About).decode

COPIES = "\0copies"
"""In place of a job's key in an index: blocks with records that were copied from another log. They decide with what
generation the log goes on, so who judges any of its lines has to see that they are there."""

_NO_LANDMARKS = frozenset({"Configured", "Forwarded"})
"""About the partition, but without effect on what becomes of a job's lines."""


def about(line: bytes) -> tuple[str, str]:
    """Type of a line and key of the job it is about; either may be empty."""
    try:
        found = _decode_about(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", ""
    kind, job, tenant = found.type, found.job, found.tenant
    if not isinstance(kind, str) or not isinstance(job, str) or not isinstance(tenant, str):
        return "", ""
    return kind, job_key(tenant, job) if job else ""


def family_of(key: str) -> str:
    """What stands in an index for all jobs of a home, besides the one that is named like it.

    Who holds a unique key is decided among them, so each one's lines are judged with those of the others.
    """
    tenant, _, job_id = key.partition("/")
    return job_key(tenant, "~" + home_of(job_id))


def named_like_its_home(key: str) -> str:
    """Key of the job whose id is the home of this one."""
    tenant, _, job_id = key.partition("/")
    return job_key(tenant, home_of(job_id))


def is_landmark(kind: str, key: str) -> bool:
    """Whether a line of this type and key is one of the partition's own."""
    return bool(kind) and not key and kind not in _NO_LANDMARKS


def key_hash(key: str) -> bytes:
    """Eight bytes that stand for a job's key in an index."""
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def compressed(data: bytes) -> bytes:
    return bytes(cast("Any", zstd.compress(data, level=ZSTD_LEVEL)))


def decompressed(data: bytes) -> bytes:
    """Raises ArchiveDamaged."""
    try:
        return bytes(cast("Any", zstd.decompress(data)))
    except DecompressionError as error:
        raise ArchiveDamaged(f"A block of an archive cannot be decompressed: {error}") from error


def encode_block(records: Sequence[Record]) -> bytes:
    """The compressed bytes of a block."""
    rows: list[_Row] = [
        (one.offset, one.time_ms, one.append_time, one.key, one.headers, one.value) for one in records
    ]
    return compressed(_encode(rows))


def decode_block(topic: str, partition: int, data: bytes) -> list[Record]:
    """The records of a block, as they were read. Raises ArchiveDamaged."""
    try:
        rows = _decode_rows(decompressed(data))
    except msgspec.DecodeError as error:
        raise ArchiveDamaged(f"A block of the archive of {topic}-{partition} cannot be read.") from error
    return [
        Record(topic, partition, offset, time_ms, append_time, key, value, headers)
        for offset, time_ms, append_time, key, headers, value in rows
    ]


class Index:
    """Which blocks of a segment have lines about a job."""

    def __init__(self, entries: bytes, landmarks: Sequence[Landmark]) -> None:
        self._entries = entries
        self.landmarks = landmarks

    @classmethod
    def decode(cls, data: bytes) -> Index:
        """Raises ArchiveDamaged."""
        try:
            body = _decode_index(decompressed(data))
        except msgspec.DecodeError as error:
            raise ArchiveDamaged("An index of the archive cannot be read.") from error
        return cls(body.entries, body.landmarks)

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, about."""
        return len(self._entries) + sum(len(landmark.data) + 200 for landmark in self.landmarks) + 200

    def blocks_of(self, key: str) -> list[int]:
        """Numbers of the blocks with lines about a job, ascending; now and then one too many, never one too few."""
        wanted = key_hash(key)
        places = range(len(self._entries) // _ENTRY_BYTES)
        entries = self._entries
        at = bisect_left(
            places, wanted, key=lambda place: entries[place * _ENTRY_BYTES : place * _ENTRY_BYTES + 8]
        )
        found: list[int] = []
        for place in places[at:]:
            entry = entries[place * _ENTRY_BYTES : (place + 1) * _ENTRY_BYTES]
            if entry[:8] != wanted:
                break
            found.append(int.from_bytes(entry[8:], "big"))
        return found


class SegmentBuilder:
    """Takes the records of a segment in order; :meth:`close_block` is to be called where :attr:`block_full` says so.

    Args:
        digest: the log digest before the first record.
        log_time_ms: the last time that the log itself stamped before it.
    """

    def __init__(self, digest: bytes, log_time_ms: int) -> None:
        self.digest = self.digest_before = digest
        self.log_time_ms = self._block_time_ms = log_time_ms
        self.records = self.lines = self.value_bytes = 0
        self.first_time_ms = self.highest_time_ms = 0
        self.last: Record | None = None
        self.blocks: list[Block] = []
        self.data: list[bytes] = []
        self._at = 0
        self._open: list[Record] = []
        self._open_bytes = 0
        self._keys: set[str] = set()
        self._entries: list[bytes] = []
        self._landmarks: list[Landmark] = []

    @property
    def block_full(self) -> bool:
        return self._open_bytes >= BLOCK_BYTES

    @property
    def unfinished(self) -> list[Record]:
        """Records since the last block was closed."""
        return self._open

    def add(self, record: Record) -> None:
        """Take the next record."""
        if record.append_time:
            self.log_time_ms = record.time_ms
        if self.last is None:
            self.first_time_ms = record.time_ms
        self.highest_time_ms = max(self.highest_time_ms, record.time_ms)
        self.digest = next_link(self.digest, record.offset, record.value)
        self.last = record
        self.records += 1
        self.value_bytes += len(record.value)
        self._open.append(record)
        if record.headers and copy_header(record.headers) is not None:
            self._keys.add(COPIES)
        self._open_bytes += len(record.value) + 64
        for number, line in enumerate(split(record.value)):
            self.lines += 1
            kind, key = about(line)
            if key:
                self._keys.add(key)
                if "~" in key:
                    self._keys.add(family_of(key))
            elif is_landmark(kind, key):
                landmark = Landmark(record.offset, number, self.log_time_ms, line)
                self._landmarks.append(landmark)

    def close_block(self, encoded: bytes) -> None:
        """End a block: ``encoded`` is what :func:`encode_block` gave for :attr:`unfinished`."""
        number = len(self.blocks).to_bytes(4, "big")
        self._entries.extend(key_hash(key) + number for key in self._keys)
        first = self._open[0].offset
        self.blocks.append(Block(first, len(self._open), self._at, len(encoded), self._block_time_ms))
        self.data.append(encoded)
        self._at += len(encoded)
        self._block_time_ms = self.log_time_ms
        self._open, self._open_bytes, self._keys = [], 0, set()

    def index(self) -> bytes:
        """What the index object holds, not yet compressed."""
        return _encode(_IndexBody(b"".join(sorted(self._entries)), self._landmarks))


def stem(first_offset: int, next_offset: int) -> str:
    return f"{first_offset:016d}-{next_offset:016d}"


def folder(topic: str, partition: int) -> str:
    """Where a partition's objects stand."""
    return f"{topic}/{partition:05d}"


def reference(where: str, name: str, suffix: str, data: bytes) -> ObjectRef:
    """How an object of these bytes is called, and what it must hold."""
    digest = sha256(data).hexdigest()
    return ObjectRef(f"{where}/{name}-{digest[:12]}{suffix}", len(data), digest)


def records_reference(where: str, name: str, data: bytes) -> ObjectRef:
    return reference(where, name, _RECORDS, data)


def index_reference(where: str, name: str, data: bytes) -> ObjectRef:
    return reference(where, name, _INDEX, data)


def manifest_key(topic: str, partition: int, first_offset: int, next_offset: int) -> str:
    return f"{folder(topic, partition)}/{stem(first_offset, next_offset)}{_MANIFEST}"


def offsets_of(key: str) -> tuple[int, int] | None:
    """First and next offset that the key of a manifest tells; None for any other object's."""
    name = key.rpartition("/")[2]
    if not name.endswith(_MANIFEST):
        return None
    first, dash, behind = name.removesuffix(_MANIFEST).partition("-")
    return (int(first), int(behind)) if dash and first.isdigit() and behind.isdigit() else None


def encode_manifest(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode_manifest(key: str, data: bytes) -> Manifest:
    """Raises ArchiveDamaged."""
    try:
        manifest = _decode_manifest(data)
    except msgspec.DecodeError as error:
        raise ArchiveDamaged(f"The manifest {key} cannot be read: {error}") from error
    if manifest.archive != "penstock" or manifest.format != FORMAT:
        raise ArchiveDamaged(f"{key} is no manifest of format {FORMAT}.")
    if (manifest.first_offset, manifest.next_offset) != offsets_of(key):
        raise ArchiveDamaged(f"{key} speaks of other offsets than its name.")
    return manifest


def blocks_from(manifest: Manifest, offset: int) -> Iterator[tuple[int, Block]]:
    """The blocks in which records with ``offset`` or later stand, with their numbers."""
    for number, block in enumerate(manifest.blocks):
        behind = manifest.blocks[number + 1].first_offset if number + 1 < len(manifest.blocks) else None
        if behind is None or behind > offset:
            yield number, block
