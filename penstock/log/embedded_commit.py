"""Group commit: appends from many tasks become one batch, one sync, and are then acknowledged together.

What arrives while a sync runs forms the next group, so that a lone append pays one sync and a flood shares it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from penstock.log import embedded_format as fmt
from penstock.log.embedded_partition import RECORDS, TIMES, DurablePartition
from penstock.log.embedded_sync import AcknowledgedMark, WalSync
from penstock.log.port import Appended, Headers
from penstock.log.store import RocksBatch, Store
from penstock.schemas.errors import AppendRefused, AppendUnknown

_logger = logging.getLogger(__name__)

_GROUP_BYTES = 4 * 1024 * 1024
"""A batch holds the GIL while it is written: this keeps that to some milliseconds."""
_QUEUE_BYTES = 256 * 1024 * 1024
_SPACE_CHECK_BYTES = 16 * 1024 * 1024
_SPACE_CHECK_S = 1.0
"""The disk may be filled by others too, so it is looked at this often however little is appended."""


class _Pending(NamedTuple):
    partition: DurablePartition
    value: bytes
    key: bytes | None
    headers: Headers
    future: asyncio.Future[Appended]


class GroupCommit:
    """The one writer of an embedded log. ``wal_sync`` None acknowledges without waiting for the disk."""

    def __init__(
        self,
        store: Store,
        *,
        now_ms: Callable[[], int],
        wal_sync: WalSync | None,
        mark: AcknowledgedMark,
        record_count: int,
        reserve_bytes: int,
        on_synced: Callable[[], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._now_ms = now_ms
        self._wal_sync = wal_sync
        self._mark = mark
        self._record_count = record_count
        self._reserve_bytes = reserve_bytes
        self._on_synced = on_synced
        self._on_fatal = on_fatal
        self._pending: deque[_Pending] = deque()
        self._pending_bytes = 0
        self._unchecked_bytes = _SPACE_CHECK_BYTES
        self._check_again_s = 0.0
        self._full = False
        self._wanted = asyncio.Event()
        self._closing = False
        self.fatal: BaseException | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log-sync")
        self._task = asyncio.create_task(self._run(), name="log-group-commit")

    def append(
        self, partition: DurablePartition, value: bytes, key: bytes | None, headers: Headers
    ) -> asyncio.Future[Appended]:
        """Queue a record; the future is done when it is durable.

        Raises:
            AppendRefused: closed, failed, no space left, or too much is queued.
        """
        if self.fatal is not None:
            raise AppendRefused(f"The log has failed and takes nothing more: {self.fatal}")
        if self._closing:
            raise AppendRefused("The log is closed.")
        if self._pending_bytes > _QUEUE_BYTES:
            raise AppendRefused("Too much is waiting for the disk.", transient=True)
        self._check_space(len(value))
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(partition, value, key, headers, future))
        self._pending_bytes += len(value)
        self._wanted.set()
        return future

    async def close(self) -> None:
        """Commit what is queued, then stop."""
        self._closing = True
        self._wanted.set()
        await asyncio.wait((self._task,))
        self._thread.shutdown(wait=True)

    def _check_space(self, size: int) -> None:
        """Refuse before the disk is full: a write that fails half-way ends the log."""
        self._unchecked_bytes += size
        now_s = asyncio.get_running_loop().time()
        if self._unchecked_bytes < _SPACE_CHECK_BYTES and now_s < self._check_again_s:
            return
        stat = os.statvfs(self._store.path)
        if stat.f_bavail * stat.f_frsize < self._reserve_bytes:
            text = (
                f"The disk of {self._store.path} is full: less than {self._reserve_bytes >> 20} MiB are free."
            )
            if not self._full:
                _logger.error("%s Nothing is appended until there is room.", text)
            # The next append looks again.
            self._full, self._check_again_s = True, 0.0
            raise AppendRefused(text, transient=True)
        if self._full:
            _logger.info("The disk of %s has room again.", self._store.path)
        self._full = False
        self._unchecked_bytes = 0
        self._check_again_s = now_s + _SPACE_CHECK_S

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            if not self._pending:
                if self._closing:
                    return
                self._wanted.clear()
                continue
            group = self._take_group()
            try:
                appended = self._write(group)
                if self._wal_sync is not None:
                    await loop.run_in_executor(self._thread, self._sync)
            except BaseException as error:
                self._fail(group, error)
                if not isinstance(error, Exception):
                    raise
                return
            self._acknowledge(group, appended)

    def _take_group(self) -> list[_Pending]:
        group: list[_Pending] = []
        size = 0
        while self._pending and size < _GROUP_BYTES:
            entry = self._pending.popleft()
            group.append(entry)
            size += len(entry.value)
        self._pending_bytes -= size
        return group

    def _write(self, group: list[_Pending]) -> list[Appended]:
        batch = self._store.batch()
        now_ms = self._now_ms()
        appended: list[Appended] = []
        for entry in group:
            partition = entry.partition
            offset = partition.next_offset
            key = partition.key(offset)
            batch.put(RECORDS, key, fmt.encode(key, now_ms, entry.key, entry.value, entry.headers))
            partition.next_offset = offset + 1
            partition.block_time_ms = max(partition.block_time_ms, now_ms)
            if not partition.next_offset & ((1 << fmt.BLOCK_SHIFT) - 1):
                _close_block(batch, partition, offset >> fmt.BLOCK_SHIFT)
            appended.append(Appended(offset, now_ms))
        self._store.write(batch)
        self._record_count += len(group)
        return appended

    def _sync(self) -> None:
        assert self._wal_sync is not None
        self._wal_sync.sync()
        self._mark.write(self._record_count)

    def _acknowledge(self, group: list[_Pending], appended: list[Appended]) -> None:
        for entry, position in zip(group, appended, strict=True):
            entry.partition.end = position.offset + 1
            if not entry.future.done():
                entry.future.set_result(position)
        self._on_synced()

    def _fail(self, group: list[_Pending], error: BaseException) -> None:
        self.fatal = error
        _logger.critical("The embedded log in %s failed and is closed for good: %s", self._store.path, error)
        for entry in group:
            if not entry.future.done():
                entry.future.set_exception(AppendUnknown(f"The log failed while it wrote: {error}"))
        while self._pending:
            entry = self._pending.popleft()
            if not entry.future.done():
                entry.future.set_exception(
                    AppendRefused(f"The log has failed and takes nothing more: {error}")
                )
        self._on_synced()
        self._on_fatal(error)


def _close_block(batch: RocksBatch, partition: DurablePartition, block: int) -> None:
    """Note the latest time of a block of offsets that is now full."""
    batch.put(TIMES, partition.key(block), fmt.pack_i64(partition.block_time_ms))
    partition.block_time_ms = 0
