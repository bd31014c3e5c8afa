"""Sorted bytes on disk: a thin wrapper of RocksDB behind the key-value port.

It exists to keep four habits of the binding away from everyone else: a batch is spent by a write even when the write
fails; whoever still holds an iterator, a family or its handle after ``close`` holds the folder's lock; a second process
gets an unreadable error; and bounds of a scan are only half supported. A key costs a few microseconds in RocksDB
itself, so :meth:`Store.family` hands out bound methods without a Python layer in between.

The binding holds the GIL while it works: call it from the event loop's thread and keep batches to milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Self, cast

import rocksdict as rocks

from penstock.log import kv, store_lock
from penstock.schemas.errors import DiskFailed, LogCorrupt, StoreLocked

_MIB = 1024 * 1024
_FLUSH_FOLDER = "flushing"


class Tuning:
    """Sizes of one store, in bytes; the defaults suit tens of stores in a process."""

    __slots__ = ("background_jobs", "block_cache_bytes", "max_wal_bytes", "write_buffer_bytes")

    def __init__(
        self,
        *,
        write_buffer_bytes: int = 32 * _MIB,
        block_cache_bytes: int = 64 * _MIB,
        max_wal_bytes: int = 256 * _MIB,
        background_jobs: int = 2,
    ) -> None:
        self.write_buffer_bytes = write_buffer_bytes
        self.block_cache_bytes = block_cache_bytes
        self.max_wal_bytes = max_wal_bytes
        self.background_jobs = background_jobs


_caches: dict[int, rocks.Cache] = {}


def _shared_cache(capacity_bytes: int) -> rocks.Cache:
    """One block cache for all stores of a process: many partitions must not each take their own."""
    if capacity_bytes not in _caches:
        _caches[capacity_bytes] = rocks.Cache(capacity_bytes)
    return _caches[capacity_bytes]


def _options(tuning: Tuning, *, wal: bool) -> rocks.Options:
    table = rocks.BlockBasedOptions()
    table.set_block_cache(_shared_cache(tuning.block_cache_bytes))
    table.set_bloom_filter(10, False)
    table.set_block_size(16 * 1024)
    # A large file's index and filter in one block each would be larger than a shard of the cache, and read anew for
    # every key that is asked for: in parts they stay.
    table.set_index_type(rocks.BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)
    table.set_metadata_block_size(4 * 1024)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    options = rocks.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(tuning.write_buffer_bytes)
    options.set_max_write_buffer_number(3)
    options.set_max_total_wal_size(tuning.max_wal_bytes)
    options.set_max_background_jobs(tuning.background_jobs)
    options.set_compression_type(rocks.DBCompressionType.lz4())
    options.set_keep_log_file_num(2)
    options.set_max_open_files(512)
    options.set_paranoid_checks(True)
    # Point-in-time recovery would drop everything behind a damaged record in silence; this mode forgives only a
    # record that is cut off at the very end of the last file.
    options.set_wal_recovery_mode(rocks.DBRecoveryMode.tolerate_corrupted_tail_records())
    # Without a WAL, families flushed at different moments would recover to different moments.
    options.set_atomic_flush(not wal)
    return options


def _read_options(stop: bytes | None) -> rocks.ReadOptions | None:
    if stop is None:
        return None
    options = rocks.ReadOptions()
    options.set_iterate_upper_bound(stop)
    return options


class RocksBatch:
    """Changes for one :meth:`Store.write`."""

    __slots__ = ("_delete", "_handles", "_put", "_raw")

    def __init__(self, handles: Mapping[str, rocks.ColumnFamily]) -> None:
        raw = rocks.WriteBatch(raw_mode=True)
        self._raw: rocks.WriteBatch | None = raw
        self._put = raw.put
        self._delete = raw.delete
        # The store's own mapping, not a copy: closing the store empties it, else a forgotten batch keeps the lock.
        self._handles = handles

    def put(self, family: str, key: bytes, value: bytes) -> None:
        self._put(key, value, self._handles[family])

    def delete(self, family: str, key: bytes) -> None:
        self._delete(key, self._handles[family])

    def delete_range(self, family: str, start: bytes, stop: bytes) -> None:
        self._open().delete_range(start, stop, self._handles[family])

    def __len__(self) -> int:
        return 0 if self._raw is None else len(self._raw)

    @property
    def size_bytes(self) -> int:
        return 0 if self._raw is None else self._raw.size_in_bytes()

    def spend(self) -> rocks.WriteBatch:
        """Hand out the raw batch, once."""
        raw = self._open()
        self._raw = None
        return raw

    def _open(self) -> rocks.WriteBatch:
        if self._raw is None:
            raise ValueError("this batch is already written")
        return self._raw


class RocksFamily:
    """One column family. ``get`` and ``multi_get`` are RocksDB's own bound methods."""

    def __init__(
        self, rdict: rocks.Rdict, open_scans: weakref.WeakSet[Generator[tuple[bytes, bytes]]]
    ) -> None:
        self._rdict = rdict
        self._open_scans = open_scans
        self.get = cast("Callable[[bytes], bytes | None]", rdict.get)
        self.multi_get = cast("Callable[[Sequence[bytes]], list[bytes | None]]", rdict.get)

    def scan(
        self,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        """See :meth:`penstock.log.kv.KeyValueStore.scan`."""
        pairs = self._backward(start, stop, limit) if reverse else self._forward(start, stop, limit)
        self._open_scans.add(pairs)
        return pairs

    # The binding's lower bound sets the upper one, so a scan starts by seeking and, backwards, stops by comparing.
    # And its iterator ends at a damaged block as if nothing followed: a scan that ran out asks for the reason.

    def _forward(self, start: bytes, stop: bytes | None, limit: int | None) -> Generator[tuple[bytes, bytes]]:
        if limit is not None and limit <= 0:
            return
        options = _read_options(stop)
        items = cast("Iterator[tuple[bytes, bytes]]", self._rdict.items(from_key=start, read_opt=options))
        pair: tuple[bytes, bytes] | None = None
        try:
            for pair in items if limit is None else islice(items, limit):
                yield pair
                if limit is not None:
                    limit -= 1
            if limit is None or limit:
                self._check_end(start if pair is None else pair[0], stop, reverse=False)
        finally:
            del items

    def _backward(
        self, start: bytes, stop: bytes | None, limit: int | None
    ) -> Generator[tuple[bytes, bytes]]:
        options = _read_options(stop)
        items = cast("Iterator[tuple[bytes, bytes]]", self._rdict.items(backwards=True, read_opt=options))
        count = 0
        last: bytes | None = None
        try:
            while limit is None or count < limit:
                pair = next(items, None)
                if pair is None:
                    self._check_end(last, stop, reverse=True)
                    return
                last = pair[0]
                if last < start:
                    return
                yield pair
                count += 1
        finally:
            del items

    def _check_end(self, last: bytes | None, stop: bytes | None, *, reverse: bool) -> None:
        """Step once over the end of a scan with an iterator that tells why it stops."""
        cursor = self._rdict.iter(_read_options(stop))
        try:
            if last is None:
                cursor.seek_to_last()
            elif reverse:
                cursor.seek_for_prev(last)
            else:
                cursor.seek(last)
            if cursor.valid():
                if reverse:
                    cursor.prev()
                else:
                    cursor.next()
            cursor.status()
        except Exception as error:
            raise LogCorrupt(f"The store in {self._rdict.path()} is damaged: {error}") from error
        finally:
            del cursor

    def flush(self) -> None:
        self._rdict.flush(True)

    def start_flush(self) -> None:
        self._rdict.flush(False)

    def flushing(self) -> bool:
        return bool(self._rdict.property_int_value("rocksdb.num-immutable-mem-table"))

    def approximate_keys(self) -> int:
        return self._rdict.property_int_value("rocksdb.estimate-num-keys") or 0

    def release(self) -> None:
        # After `cancel_all_background` the binding's last flush is refused; what was to be flushed has been.
        with contextlib.suppress(Exception):
            self._rdict.close()


class Store:
    """A RocksDB folder with column families. Use from one thread; closes itself as a context manager.

    ``wal=False`` is for state that is folded anew from the log: a crash loses the unflushed tail of *all* families
    alike, an orderly close loses nothing. ``read_only`` takes no lock and looks at a folder as it is now, while its
    owner goes on; a scan may then fail when the owner removes files.

    Raises:
        StoreLocked: another process, or another Store of this one, has the folder.
        LogCorrupt: RocksDB found its files damaged.
        DiskFailed: the folder cannot be read, or not be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        families: Sequence[str],
        *,
        wal: bool = True,
        tuning: Tuning | None = None,
        read_only: bool = False,
    ) -> None:
        self.path = os.fspath(path)
        self._wal = wal
        self._read_only = read_only
        tuning = tuning or Tuning()
        if not read_only:
            os.makedirs(self.path, exist_ok=True)
        self._db: rocks.Rdict | None = _open(self.path, families, tuning, wal=wal, read_only=read_only)
        if not read_only:
            store_lock.opened(self.path)
        self._scans: weakref.WeakSet[Generator[tuple[bytes, bytes]]] = weakref.WeakSet()
        self._handles = {name: self._db.get_column_family_handle(name) for name in families}
        self._families = {
            name: RocksFamily(self._db.get_column_family(name), self._scans) for name in families
        }
        self._write_options = rocks.WriteOptions()
        self._write_options.disable_wal = not wal  # pyright: ignore[reportAttributeAccessIssue] a property at run time, a method in its stub
        self._sync_options = rocks.WriteOptions()
        if wal:
            self._sync_options.sync = True
        else:
            self._sync_options.disable_wal = True  # pyright: ignore[reportAttributeAccessIssue] a property at run time, a method in its stub

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def family(self, name: str) -> RocksFamily:
        return self._families[name]

    def get(self, family: str, key: bytes) -> bytes | None:
        return self._families[family].get(key)

    def multi_get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._families[family].multi_get(keys if isinstance(keys, list) else list(keys))

    def scan(
        self,
        family: str,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        return self._families[family].scan(start, stop, reverse=reverse, limit=limit)

    def batch(self) -> RocksBatch:
        return RocksBatch(self._handles)

    def write(self, batch: kv.Batch, *, sync: bool = False) -> None:
        """Apply a batch made by :meth:`batch`. ``sync`` holds the GIL until the disk has it.

        Raises:
            DiskFailed: it could not be written, for want of space above all; the store takes nothing more.
        """
        assert isinstance(batch, RocksBatch)
        with self._writing():
            self._opened().write(batch.spend(), self._sync_options if sync else self._write_options)
        if sync and not self._wal:
            self.flush()

    def delete_range(self, family: str, start: bytes, stop: bytes) -> None:
        batch = self.batch()
        batch.delete_range(family, start, stop)
        self.write(batch)

    def flush(self) -> None:
        """Put on the disk what was written.

        Raises:
            DiskFailed: as :meth:`write`.
        """
        with self._writing():
            self._flush()

    def _flush(self) -> None:
        if self._wal:
            for family in self._families.values():
                family.flush()
            return
        # The binding flushes one family at a time, and a crash between two would leave them at different moments.
        # A checkpoint flushes all of them atomically; the copy, made of hard links, is then thrown away.
        folder = os.path.join(self.path, _FLUSH_FOLDER)
        shutil.rmtree(folder, ignore_errors=True)
        self.checkpoint(folder)
        shutil.rmtree(folder)

    def start_flush(self) -> None:
        if not self._wal:
            # One family at a time, and without a log that would make them whole: only `checkpoint` flushes all alike.
            return
        with self._writing():
            for family in self._families.values():
                family.start_flush()

    @property
    def flushing(self) -> bool:
        return any(family.flushing() for family in self._families.values())

    def checkpoint(self, path: str) -> None:
        """See the port. Made of hard links where the file system is the same; holds the GIL while it flushes."""
        maker = rocks.Checkpoint(self._opened())
        try:
            with self._writing():
                maker.create_checkpoint(path)
        finally:
            del maker

    def approximate_keys(self, family: str) -> int:
        """RocksDB's own estimate, for metrics."""
        return self._families[family].approximate_keys()

    def close(self) -> None:
        """Release the folder. The order matters: whatever outlives it keeps the lock."""
        if self._db is None:
            return
        db, self._db = self._db, None
        if not self._read_only:
            store_lock.closed(self.path)
        for scan in list(self._scans):
            scan.close()
        self._handles.clear()
        # Flushes what was written without a WAL, all families at once, before it stops the background.
        db.cancel_all_background(True)
        for family in self._families.values():
            family.release()
        self._families.clear()
        with contextlib.suppress(Exception):
            db.close()

    @contextlib.contextmanager
    def _writing(self) -> Generator[None]:
        """The binding's errors are all of one class: what the disk did not do is told by its words."""
        try:
            yield
        except Exception as error:
            if "io error" not in str(error).lower():
                raise
            raise DiskFailed(
                f"The store in {self.path} cannot be written: {error}", path=self.path
            ) from error

    def _opened(self) -> rocks.Rdict:
        if self._db is None:
            raise ValueError(f"the store {self.path} is closed")
        return self._db


def _open(path: str, families: Sequence[str], tuning: Tuning, *, wal: bool, read_only: bool) -> rocks.Rdict:
    options = _options(tuning, wal=wal)
    columns: dict[str, Any] = {name: _options(tuning, wal=wal) for name in families}
    try:
        access = rocks.AccessType.read_only() if read_only else rocks.AccessType.read_write()
        return rocks.Rdict(path, options, column_families=columns, access_type=access)
    except Exception as error:
        text = str(error)
        lowered = text.lower()
        if "lock" in lowered and (
            "unavailable" in lowered or "lock hold" in lowered or "no locks" in lowered
        ):
            raise StoreLocked(f"The data folder {path} is in use by another process.", path=path) from error
        if "corruption" in lowered or "checksum" in lowered or "no such file" in lowered:
            raise LogCorrupt(f"The store in {path} is damaged: {text}", path=path) from error
        if isinstance(error, OSError) or "io error" in lowered:
            raise DiskFailed(f"The store in {path} cannot be opened: {text}", path=path) from error
        raise
