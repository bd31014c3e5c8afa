"""The embedded log: durable, one process, nothing to install. It stands on RocksDB; hints live in memory.

::

    append ─▶ queue ─▶ one batch ─▶ WAL file (operating system) ─▶ fsync in a thread ─▶ mark ─▶ end moves, callers wake
                └────────── what arrives meanwhile is the next group ──────────┘

How it may fail, and what then holds:

* **The process dies.** Acknowledged records are on the disk. Unacknowledged ones are there whole or not at all.
* **A sync fails.** What reached the disk is unknown and cannot be known: appenders get AppendUnknown, everything later
  is refused, readers have never seen those records, and ``on_fatal`` is called, which must end the process.
* **The file's end is torn.** RocksDB drops an incomplete last batch. If acknowledged records are missing after that
  (the mark says how many there were), or anything else is damaged, the log is not opened: LogCorrupt.
* **Another process has the folder.** StoreLocked.
* **The disk fills up.** Appends are refused while a reserve is left, before a write can fail half-way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from penstock.log import embedded_format as fmt
from penstock.log.embedded_commit import GroupCommit
from penstock.log.embedded_partition import FAMILIES, META, RECORDS, TIMES, DurablePartition, RingPartition
from penstock.log.embedded_sync import AcknowledgedMark, SyncFile, WalSync
from penstock.log.memory_topics import check_same_spec
from penstock.log.port import Appended, Bounds, Headers, Record, TopicPartition, TopicSpec
from penstock.log.sizes import check_size
from penstock.log.store import Store, Tuning
from penstock.log.wakeup import Wakeup
from penstock.schemas.errors import (
    AppendRefused,
    LogCorrupt,
    LogUnavailable,
    OffsetBeyondEnd,
    OffsetTrimmed,
    TopicMismatch,
)

_logger = logging.getLogger(__name__)

Fsync = Literal["group", "none"]

_MIB = 1024 * 1024
_TOPIC_PREFIX = b"topic:"


class _StoredTopic(msgspec.Struct, frozen=True):
    number: int
    spec: TopicSpec


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class EmbeddedLog:
    """A log in the folder ``path``. Use as an async context manager; one process, one event loop.

    ``fsync`` "group" acknowledges when the disk has the record; "none" when the operating system has it: that
    survives the death of the process, not of the machine.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fsync: Fsync = "group",
        on_fatal: Callable[[BaseException], None] | None = None,
        now_ms: Callable[[], int] = _wall_clock_ms,
        sync_file: SyncFile = os.fsync,
        reserve_bytes: int = 64 * _MIB,
        ring_bytes: int = 32 * _MIB,
    ) -> None:
        self._path = Path(path)
        self._fsync: Fsync = fsync
        self._on_fatal = on_fatal
        self._now_ms = now_ms
        self._sync_file = sync_file
        self._reserve_bytes = reserve_bytes
        self._ring_bytes = ring_bytes
        self._wakeup = Wakeup()
        self._topics: dict[str, _StoredTopic] = {}
        self._durable: dict[TopicPartition, DurablePartition] = {}
        self._rings: dict[TopicPartition, RingPartition] = {}
        self._store: Store | None = None
        self._commit: GroupCommit | None = None
        self._wal_sync: WalSync | None = None
        self._mark: AcknowledgedMark | None = None
        self._cluster_id = ""

    async def __aenter__(self) -> Self:
        """Open the folder, creating it where it is missing.

        Raises:
            StoreLocked: another process has it.
            LogCorrupt: it is damaged.
        """
        folder = self._path / "log"
        folder.mkdir(parents=True, exist_ok=True)
        tuning = Tuning(write_buffer_bytes=64 * _MIB, block_cache_bytes=64 * _MIB)
        self._store = Store(folder, FAMILIES, tuning=tuning)
        try:
            self._open(self._store)
        except BaseException:
            self._release()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._commit is not None:
            await self._commit.close()
        self._release()
        self._wakeup.fire()

    @property
    def cluster_id(self) -> str:
        return self._cluster_id

    @property
    def closed(self) -> bool:
        """True before opening, after closing and after a failure."""
        return self._store is None or self._commit is None or self._commit.fatal is not None

    @property
    def wakeup(self) -> Wakeup:
        return self._wakeup

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        store = self._opened()
        batch = store.batch()
        fresh: list[_StoredTopic] = []
        for spec in specs:
            known = self._topics.get(spec.name)
            if known is not None:
                check_same_spec(known.spec, spec)
                if known.spec != spec:
                    self._topics[spec.name] = changed = _StoredTopic(known.number, spec)
                    batch.put(META, _TOPIC_PREFIX + spec.name.encode(), msgspec.json.encode(changed))
                continue
            topic = _StoredTopic(len(self._topics), spec)
            self._topics[spec.name] = topic
            batch.put(META, _TOPIC_PREFIX + spec.name.encode(), msgspec.json.encode(topic))
            fresh.append(topic)
        if len(batch):
            store.write(batch, sync=True)
        for topic in fresh:
            self._load_partitions(store, topic)

    async def topic_names(self) -> frozenset[str]:
        self._opened()
        return frozenset(self._topics)

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> Appended:
        commit = self._commit
        if commit is None:
            raise AppendRefused("The log is closed.")
        durable = self._durable.get((topic, partition))
        if durable is not None:
            check_size(self._topics[topic].spec.max_record_bytes, topic, value, key, headers)
            return await commit.append(durable, value, key, headers)
        ring = self._rings.get((topic, partition))
        if ring is None:
            raise AppendRefused(f"There is no partition {partition} of topic {topic!r}.")
        if commit.fatal is not None:
            raise AppendRefused(f"The log has failed and takes nothing more: {commit.fatal}")
        check_size(self._topics[topic].spec.max_record_bytes, topic, value, key, headers)
        appended = ring.append(self._now_ms(), value, key, headers)
        self._wakeup.fire()
        return appended

    async def bounds(self, topic: str, partition: int) -> Bounds:
        return self.partition(topic, partition).bounds

    async def offset_at(self, topic: str, partition: int, time_ms: int) -> int:
        return self.partition(topic, partition).offset_at(time_ms)

    async def truncate(self, topic: str, partition: int, before_offset: int) -> None:
        found = self.partition(topic, partition)
        if before_offset > found.end:
            raise OffsetBeyondEnd(f"{topic}-{partition} ends at {found.end}, before {before_offset}.")
        if isinstance(found, RingPartition):
            found.truncate(before_offset)
            return
        if before_offset <= found.start:
            return
        store = self._opened()
        batch = store.batch()
        batch.put(META, found.start_key, fmt.pack_i64(before_offset))
        batch.delete_range(RECORDS, found.key(0), found.key(before_offset))
        batch.delete_range(TIMES, found.key(0), found.key(before_offset >> fmt.BLOCK_SHIFT))
        store.write(batch, sync=True)
        found.start = before_offset

    def tail(self, starts: Mapping[TopicPartition, int]) -> EmbeddedTail:
        return EmbeddedTail(self, starts)

    def partition(self, topic: str, partition: int) -> DurablePartition | RingPartition:
        """The partition itself, for reading.

        Raises:
            LogUnavailable: the log is closed or has failed.
            TopicMismatch: there is no such partition.
        """
        if self.closed:
            raise LogUnavailable("The log is closed.")
        where = (topic, partition)
        found = self._durable.get(where) or self._rings.get(where)
        if found is None:
            raise TopicMismatch(f"There is no partition {partition} of topic {topic!r} on the log.")
        return found

    # Opening and closing

    def _open(self, store: Store) -> None:
        self._cluster_id = self._identify(store)
        for name, content in store.scan(META, _TOPIC_PREFIX, _TOPIC_PREFIX + b"\xff"):
            topic = msgspec.json.decode(content, type=_StoredTopic)
            self._topics[name[len(_TOPIC_PREFIX) :].decode()] = topic
        for topic in self._topics.values():
            self._load_partitions(store, topic)
        self._mark = AcknowledgedMark(self._path / "acknowledged")
        count = sum(partition.next_offset for partition in self._durable.values())
        acknowledged = self._mark.read()
        if count < acknowledged:
            raise LogCorrupt(
                f"The log in {self._path} has {count} records but acknowledged {acknowledged}: some are lost.",
                path=str(self._path),
            )
        self._wal_sync = WalSync(store.path, self._sync_file) if self._fsync == "group" else None
        self._commit = GroupCommit(
            store,
            now_ms=self._now_ms,
            wal_sync=self._wal_sync,
            mark=self._mark,
            record_count=count,
            reserve_bytes=self._reserve_bytes,
            on_synced=self._wakeup.fire,
            on_fatal=self._fail,
        )

    def _identify(self, store: Store) -> str:
        version = store.get(META, b"format")
        if version is None:
            batch = store.batch()
            batch.put(META, b"format", str(fmt.FORMAT_VERSION).encode())
            batch.put(META, b"cluster_id", uuid.uuid4().hex.encode())
            store.write(batch, sync=True)
        elif version != str(fmt.FORMAT_VERSION).encode():
            raise LogCorrupt(
                f"The log in {self._path} has format {version!r}, which this version cannot read."
            )
        cluster_id = store.get(META, b"cluster_id")
        assert cluster_id is not None
        return cluster_id.decode()

    def _load_partitions(self, store: Store, topic: _StoredTopic) -> None:
        spec = topic.spec
        for number in range(spec.partitions):
            if spec.durable:
                self._durable[spec.name, number] = DurablePartition(store, spec.name, topic.number, number)
            else:
                # The clock makes offsets grow over restarts: a thousand for each millisecond that passed.
                first_offset = self._now_ms() * 1_000
                ring = RingPartition(spec, number, first_offset, max_bytes=self._ring_bytes)
                self._rings[spec.name, number] = ring

    def _opened(self) -> Store:
        if self._store is None or self.closed:
            raise LogUnavailable("The log is closed.")
        return self._store

    def _fail(self, error: BaseException) -> None:
        if self._on_fatal is not None:
            self._on_fatal(error)

    def _release(self) -> None:
        self._commit = None
        self._durable.clear()
        self._rings.clear()
        for part in (self._wal_sync, self._mark):
            if part is not None:
                part.close()
        self._wal_sync = self._mark = None
        if self._store is not None:
            store, self._store = self._store, None
            store.close()


class EmbeddedTail:
    """See :class:`penstock.log.port.Tail`."""

    def __init__(self, log: EmbeddedLog, starts: Mapping[TopicPartition, int]) -> None:
        self._log = log
        self._positions = dict(starts)
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._log.wakeup.fire()
        await asyncio.sleep(0)

    def follow(self, topic: str, partition: int, offset: int) -> None:
        self._positions[topic, partition] = offset
        self._log.wakeup.fire()

    def drop(self, topic: str, partition: int) -> None:
        self._positions.pop((topic, partition), None)

    async def poll(self, max_wait_ms: int, max_records: int = 5_000) -> Sequence[Record]:
        return await self._log.wakeup.poll(
            lambda: self._take(max_records), max_wait_ms, lambda: self._closed or self._log.closed
        )

    def _take(self, max_records: int) -> list[Record]:
        taken: list[Record] = []
        for (topic, partition), offset in list(self._positions.items()):
            found = self._log.partition(topic, partition)
            if offset == found.end:
                continue
            try:
                records = found.read(offset, max_records - len(taken))
            except (OffsetTrimmed, OffsetBeyondEnd):
                if taken:
                    break
                raise
            taken.extend(records)
            # Behind the others for the next poll, so that one busy partition does not starve them.
            del self._positions[topic, partition]
            self._positions[topic, partition] = offset + len(records)
            if len(taken) >= max_records:
                break
        return taken
