"""Making writes durable: fsync of the write-ahead files, from a thread, and the mark of what was acknowledged.

RocksDB could sync by itself, but its binding holds the GIL for the whole of it: a few milliseconds in which nothing
else in the process runs. So batches are written without sync, which hands them to the operating system before ``write``
returns, and the files are synced here with the GIL released. That is sound because

* nothing is buffered in the process (manual WAL flush is off), so a file's sync covers every batch written before it;
* RocksDB may move on to a new file in any write: every file not known to be complete *and* synced is synced, and the
  folder too when a file is new;
* files are not recycled, and one that has vanished was removed because its records stand in a synced table file.

A failed sync is never tried again: the kernel may have dropped the dirty pages and would report success (fsyncgate).

The mark counts the records known to be synced. It is written after each sync and not synced itself, so it is never
ahead of the truth; a log that recovers to fewer records than it says has lost acknowledged ones.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

SyncFile = Callable[[int], None]

_MARK = struct.Struct(">QI")


class WalSync:
    """Syncs the write-ahead files of one RocksDB folder. Call :meth:`sync` from one thread at a time."""

    def __init__(self, folder: str, sync_file: SyncFile) -> None:
        self._folder = folder
        self._sync_file = sync_file
        self._folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._fds: dict[str, int] = {}
        self._complete: set[str] = set()

    def sync(self) -> None:
        """Return when every batch written before the call is on the disk. OSError when that is not certain."""
        names = sorted(name for name in os.listdir(self._folder) if name.endswith(".log"))
        self._complete.intersection_update(names)
        fresh = False
        for name in names:
            if name in self._complete:
                continue
            fd = self._fds.get(name)
            if fd is None:
                try:
                    fd = self._fds[name] = os.open(os.path.join(self._folder, name), os.O_RDONLY)
                except FileNotFoundError:
                    continue
                fresh = True
            self._sync_file(fd)
        if fresh:
            self._sync_file(self._folder_fd)
        for name in names[:-1]:
            # Numbered upwards, and only the last one is written to: the others are complete, and synced by now.
            self._complete.add(name)
        for name in [name for name in self._fds if name not in names[-1:]]:
            os.close(self._fds.pop(name))

    def close(self) -> None:
        for fd in (*self._fds.values(), self._folder_fd):
            os.close(fd)
        self._fds.clear()


class AcknowledgedMark:
    """How many records were acknowledged, in a small file beside the store."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def read(self) -> int:
        """The count; 0 when there is none or it was torn."""
        content = os.pread(self._fd, _MARK.size, 0)
        if len(content) != _MARK.size:
            return 0
        count, crc = _MARK.unpack(content)
        return int(count) if crc == zlib.crc32(content[:8]) else 0

    def write(self, count: int) -> None:
        packed = count.to_bytes(8, "big")
        os.pwrite(self._fd, packed + zlib.crc32(packed).to_bytes(4, "big"), 0)

    def close(self) -> None:
        os.close(self._fd)
