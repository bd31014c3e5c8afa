"""One partition's fold kept on disk: rows, bodies, how far it is folded, and the digests that prove it.

::

    record ─▶ PartitionFold ─▶ touched rows, bodies ─┐
                  │                                  ├─▶ commit: one batch ─▶ store
                  └─▶ the owner, which derives ──────┘     with next offset, digests, hash of the last record

Records are folded in memory, many at a time; :meth:`PartitionStore.commit` then writes each touched row once, together
with the next offset, the digests and whatever rows the owner derives, in one batch. However the process dies, what is
found again is the state at some offset, whole. The state is disposable: another version of the fold has a folder of
its own and is folded anew, beside what the earlier one left. The state of another *log* is not: that is a mistake
somebody must look at.

Families: ``fold`` (rows of :class:`~penstock.core.partition.PartitionFold`), ``bodies``, ``meta``, and the owner's.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import msgspec

from penstock.core.job import Job
from penstock.core.partition import Folded, PartitionFold
from penstock.core.rows import (
    DIGEST_MODULUS,
    STATE_KEY,
    Changes,
    PartitionState,
    decode_job_row,
    decode_state_row,
    row_digest,
)
from penstock.core.rules import RULES, RulesTable
from penstock.log.kv import Batch, KeyValueStore
from penstock.log.port import Log, Record
from penstock.log.store import Store, Tuning
from penstock.schemas.copies import copy_header
from penstock.schemas.errors import HistoryChanged, LogCorrupt, LogError
from penstock.schemas.limits import DIGEST_EVERY_OFFSETS
from penstock.state.bodies import BODIES, Bodies, BodyKind
from penstock.state.chain import FIRST_LINK, next_link
from penstock.state.last_record import check_last_record
from penstock.state.versions import fold_folder, remove_superseded

FOLD, META = "fold", "meta"
_IDENTITY, _PROGRESS, _DIGEST = b"identity", b"progress", b"d"
_DIGESTS_IN_MEMORY = 8

_MIB = 1024 * 1024

StoreFactory = Callable[[str, Sequence[str]], KeyValueStore]
"""Opens a store: folder, names of families."""


class StoreIdentity(msgspec.Struct, frozen=True):
    """Of which log, and of which part of it, a store is the fold."""

    cluster_id: str
    topic: str
    partition: int
    partitions: int
    generation: int = 0


class Progress(msgspec.Struct, array_like=True):
    """How far a partition is folded. Hashes are SHA-256; ``state_digest`` is big-endian."""

    next_offset: int = 0
    last_offset: int = -1
    """Offset of the last folded record; -1: none yet."""
    last_hash: bytes = b""
    """Of the last folded record's value."""
    log_digest: bytes = FIRST_LINK
    state_digest: bytes = bytes(32)


class RecordedDigests(msgspec.Struct, frozen=True, array_like=True):
    """Digests of everything below an offset."""

    state: bytes
    log: bytes


class View(Protocol):
    """Rows that somebody derives from each folded line, in families of its own, written with the fold itself."""

    def take(self, folded: Sequence[Folded]) -> None:
        """Lines were folded: those of one record, in order."""
        ...

    def write(self, batch: Batch) -> None:
        """A commit comes: put the rows of all that was taken into it."""
        ...

    def written(self) -> None:
        """What was put into the batch is stored."""
        ...

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for the commit of what was taken."""
        ...


_log = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode_identity = msgspec.msgpack.Decoder(StoreIdentity).decode
_decode_progress = msgspec.msgpack.Decoder(Progress).decode
_decode_recorded = msgspec.msgpack.Decoder(RecordedDigests).decode


def families_of(extra: Sequence[str]) -> tuple[str, ...]:
    """All families of a store whose owner has ``extra`` ones."""
    return (FOLD, BODIES, META, *extra)


def rocks_store(path: str, families: Sequence[str]) -> KeyValueStore:
    """RocksDB with a write-ahead log that is never synced.

    A process that is killed finds all its commits again, and folds on from the last one within a second. A machine
    that loses power may lose the newest of them, or the whole store: the log brings both back.
    """
    return Store(path, families, tuning=Tuning(write_buffer_bytes=16 * _MIB, max_wal_bytes=64 * _MIB))


class PartitionStore:
    """One partition's fold in a key-value store. Use from one thread; closes itself as a context manager."""

    def __init__(self, store: KeyValueStore, identity: StoreIdentity, rules: RulesTable = RULES) -> None:
        """Take over an open store; :meth:`open` is the usual way. Raises HistoryChanged like it."""
        self.identity = identity
        self.rules = rules
        """Those that this program has."""
        self.store = store
        self.folder: Path | None = None
        """Where it is kept; None if it was not opened by :meth:`open`."""
        self.layout = 1
        _check_identity(store, identity)
        data = store.get(META, _PROGRESS)
        self._progress = Progress() if data is None else _decode_progress(data)
        self._committed_offset = self._progress.next_offset
        self._read_stored = store.family(FOLD).get
        self._bodies = Bodies(store.family(BODIES))
        self._rows: dict[bytes, bytes | None] = {}
        self._digests = _newest_digests(store)
        self._digests_pending: dict[int, RecordedDigests] = {}
        self._last_value: bytes | None = None
        self._views: dict[str, View] = {}
        self._broken = False
        self._fold = PartitionFold(
            identity.partition,
            identity.partitions,
            self._read_row,
            int.from_bytes(self._progress.state_digest, "big"),
            rules,
            self._read_rows,
        )

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        identity: StoreIdentity,
        extra: Sequence[str] = (),
        layout: int = 1,
        store_factory: StoreFactory = rocks_store,
        rules: RulesTable = RULES,
    ) -> PartitionStore:
        """Open the store in folder ``path``, or begin an empty one.

        Args:
            extra: further families, for the owner's rows.
            layout: version of the owner's rows. Each version, and each of the fold, has a folder of its own below
                ``path``; what earlier ones left stays until :meth:`remove_superseded`.
            rules: those that this program has.

        Raises:
            HistoryChanged: the store is the fold of another log, or of one with other partitions.
            StoreLocked: another process has it.
            UnknownRules: what is stored follows rules that are not among them.
        """
        folder = fold_folder(Path(path), layout)
        families = families_of(extra)
        try:
            store = store_factory(str(folder), families)
        except LogCorrupt as error:
            _log.warning("the state in %s is damaged and is folded anew: %s", folder, error.message)
            shutil.rmtree(folder)
            store = store_factory(str(folder), families)
        try:
            opened = cls(store, identity, rules)
            opened.folder, opened.layout = folder, layout
            return opened
        except BaseException:
            store.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def remove_superseded(self) -> bool:
        """Remove the folders of earlier versions: to be called when this one has caught up with the log.

        Returns whether all are gone; one that a process still serves stays, to be asked for again.
        """
        return self.folder is None or not remove_superseded(self.folder.parent, self.layout)

    def close(self) -> None:
        """Release the folder. What is not committed is lost, and folded again after the next opening."""
        self.store.close()

    # How far

    @property
    def partition(self) -> int:
        return self.identity.partition

    @property
    def next_offset(self) -> int:
        """What is to be folded next; records below it are ignored."""
        return self._progress.next_offset

    @property
    def committed_offset(self) -> int:
        """As :attr:`next_offset`, of the last commit."""
        return self._committed_offset

    @property
    def committed(self) -> Progress:
        """How far the last commit is, with its digests."""
        data = self.store.get(META, _PROGRESS)
        return Progress() if data is None else _decode_progress(data)

    @property
    def committed_rules(self) -> int:
        """Version of the rules that the last commit follows."""
        data = self._read_stored(STATE_KEY)
        return PartitionState().rules if data is None else decode_state_row(data).rules

    @property
    def state(self) -> PartitionState:
        """The partition as a whole, as of the last folded line. Not to be changed."""
        return self._fold.state

    @property
    def behind(self) -> bool:
        """Whether anything is folded that is not committed, so that those who read the store do not see it."""
        return self.next_offset != self._committed_offset

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for a commit of what is folded."""
        return self.behind and any(view.awaited for view in self._views.values())

    @property
    def touched(self) -> int:
        """Rows that wait for a commit: the owner commits before these fill its memory."""
        return self._fold.touched + len(self._rows)

    @property
    def pending_bytes(self) -> int:
        """Bytes of bodies that wait for a commit."""
        return self._bodies.pending_bytes

    @property
    def digest(self) -> str:
        """State digest as of the last commit, hex."""
        return self._progress.state_digest.hex()

    @property
    def log_digest(self) -> str:
        """Log digest as of the last folded record, hex."""
        return self._progress.log_digest.hex()

    @property
    def recorded_digests(self) -> dict[int, str]:
        """The newest recorded state digests, hex, by the offset below which everything is covered."""
        return {offset: digests.state.hex() for offset, digests in self._digests.items()}

    def all_recorded_digests(self) -> Iterator[tuple[int, RecordedDigests]]:
        """Every committed pair of digests by offset, ascending."""
        for key, data in self.store.scan(META, _DIGEST, _DIGEST + b"\xff"):
            if len(key) == 9:
                yield int.from_bytes(key[1:], "big"), _decode_recorded(data)

    # Folding

    def attach(self, name: str, view: View) -> None:
        """From the next fold on, ``view`` takes part; it replaces one of the same name.

        All views stand at the same offset as the fold, however the process ends.
        """
        self._views[name] = view

    def fold(self, record: Record) -> list[Folded]:
        """Fold one record in memory; a record below :attr:`next_offset` gives nothing.

        After an error the store folds and commits no more, for its memory may hold half a record: open it anew.

        Raises:
            UnknownRules: the record activates rules that this version does not have.
        """
        progress = self._progress
        if record.offset < progress.next_offset:
            return []
        self._check_whole()
        self._broken = True
        boundary = record.offset - record.offset % DIGEST_EVERY_OFFSETS
        if boundary > progress.last_offset and boundary > 0:
            self._record_digests(boundary)
        copied = copy_header(record.headers) if record.headers else None
        folded = self._fold.fold(record.offset, record.time_ms, record.append_time, record.value, copied)
        self._bodies.take(folded)
        for view in self._views.values():
            view.take(folded)
        progress.log_digest = next_link(progress.log_digest, record.offset, record.value)
        progress.last_offset = record.offset
        progress.next_offset = record.offset + 1
        self._last_value = record.value
        self._broken = False
        return folded

    def commit(self) -> None:
        """Write everything since the last commit, and what the views add to it, all or none."""
        self._check_whole()
        self._broken = True
        changes = self._take_changes()
        progress = self._progress
        if self._last_value is not None:
            progress.last_hash = sha256(self._last_value).digest()
        progress.state_digest = changes.digest.to_bytes(32, "big")
        batch = self.store.batch()
        for row, data in self._rows.items():
            if data is None:
                batch.delete(FOLD, row)
            else:
                batch.put(FOLD, row, data)
        self._bodies.write(batch)
        for offset, digests in self._digests_pending.items():
            batch.put(META, _DIGEST + offset.to_bytes(8, "big"), _encode(digests))
        batch.put(META, _PROGRESS, _encode(progress))
        for view in self._views.values():
            view.write(batch)
        self.store.write(batch)
        self._rows.clear()
        self._bodies.written()
        self._digests_pending.clear()
        self._last_value = None
        self._committed_offset = progress.next_offset
        self._broken = False
        for view in self._views.values():
            view.written()

    def _check_whole(self) -> None:
        if self._broken:
            raise RuntimeError("an earlier fold or commit failed: open the store anew")

    def _record_digests(self, offset: int) -> None:
        """Digests of what is below ``offset``: rows changed so far are counted in, and wait for the commit."""
        changes = self._take_changes()
        recorded = RecordedDigests(changes.digest.to_bytes(32, "big"), self._progress.log_digest)
        self._digests[offset] = self._digests_pending[offset] = recorded
        while len(self._digests) > _DIGESTS_IN_MEMORY:
            del self._digests[next(iter(self._digests))]

    def _take_changes(self) -> Changes:
        changes = self._fold.take_changes()
        self._rows.update(changes.rows)
        return changes

    def _read_row(self, row: bytes) -> bytes | None:
        if row in self._rows:
            return self._rows[row]
        return self._read_stored(row)

    def _read_rows(self, rows: Sequence[bytes]) -> list[bytes | None]:
        """Jobs that wait side by side were often put in side by side: one scan finds them for a quarter of the price,
        if not too many others stand between them."""
        found = dict(self.store.scan(FOLD, rows[0], rows[-1] + b"\0", limit=2 * len(rows)))
        pending = self._rows
        return [found[row] if row in found and row not in pending else self._read_row(row) for row in rows]

    # Reading

    def job(self, key: str) -> Job | None:
        """The job as of the last folded line."""
        return self._fold.job(key)

    def prepare(self, keys: Sequence[str]) -> None:
        """These jobs are going to be asked for: they are read together."""
        self._fold.prepare(keys)

    def body(self, key: str, kind: BodyKind) -> bytes | None:
        """A job's body as raw JSON as of the last folded line; None where it is null."""
        return self._bodies.get(key, kind)

    def bodies(self, wanted: Sequence[tuple[str, BodyKind]]) -> list[bytes | None]:
        """Many bodies at once, in order."""
        return self._bodies.get_many(wanted)

    def committed_jobs(self) -> Iterator[tuple[str, Job]]:
        """Every job as of the last commit, by key. A scan of all: for recovery and checks."""
        for row, data in self.store.scan(FOLD, b"j", b"k"):
            yield row[1:].decode(), decode_job_row(data)

    def committed_misrouted(self, limit: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Lines that wait to be forwarded, as of the last commit: packed position and raw line, in log order."""
        for row, data in self.store.scan(FOLD, b"m", b"n", limit=limit):
            yield int.from_bytes(row[1:], "big"), data

    # Proof

    def recompute_digest(self) -> str:
        """The state digest from all committed rows, hex: equal to :attr:`digest` unless the store is damaged."""
        total = sum(row_digest(row, data) for row, data in self.store.scan(FOLD))
        return (total % DIGEST_MODULUS).to_bytes(32, "big").hex()

    async def verify_last_record(self, log: Log, *, timeout_ms: int = 30_000) -> None:
        """Check that the last folded record still stands on the log. To be called before the first fold.

        Raises:
            HistoryChanged: another log, or another record stands there.
            OffsetBeyondEnd: the log ends before it.
            OffsetTrimmed: the log begins after the next record to fold.
            LogUnavailable: the log does not answer within ``timeout_ms``.
        """
        if log.cluster_id != self.identity.cluster_id:
            raise HistoryChanged(f"The log is {log.cluster_id}; {self.identity.cluster_id} was folded.")
        progress = self._progress
        await check_last_record(
            log, self.identity.topic, self.partition, progress.last_offset, progress.last_hash, timeout_ms
        )


def _check_identity(store: KeyValueStore, identity: StoreIdentity) -> None:
    data = store.get(META, _IDENTITY)
    if data is None:
        batch = store.batch()
        batch.put(META, _IDENTITY, _encode(identity))
        store.write(batch)
        return
    try:
        found = _decode_identity(data)
    except msgspec.MsgspecError as error:
        raise LogError("The store does not say which log it was folded from.") from error
    if found != identity:
        differences = ", ".join(
            f"{name} {getattr(found, name)!r} is now {getattr(identity, name)!r}"
            for name in identity.__struct_fields__
            if getattr(found, name) != getattr(identity, name)
        )
        raise HistoryChanged(
            f"The data folder was folded from another log: {differences}. Use another folder, or remove this one.",
            found=msgspec.structs.asdict(found),
            wanted=msgspec.structs.asdict(identity),
        )


def stored_fold(store: KeyValueStore) -> tuple[StoreIdentity, Progress]:
    """Of which log a store is the fold, and how far it was committed. Raises LogError where it does not say so."""
    identity, progress = store.get(META, _IDENTITY), store.get(META, _PROGRESS)
    try:
        return _decode_identity(identity or b""), Progress() if progress is None else _decode_progress(
            progress
        )
    except msgspec.MsgspecError as error:
        raise LogError("The store does not say which log it was folded from.") from error


def _newest_digests(store: KeyValueStore) -> dict[int, RecordedDigests]:
    rows = list(store.scan(META, _DIGEST, _DIGEST + b"\xff", reverse=True, limit=_DIGESTS_IN_MEMORY))
    return {int.from_bytes(key[1:], "big"): _decode_recorded(data) for key, data in reversed(rows)}
