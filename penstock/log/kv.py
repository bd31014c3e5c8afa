"""The key-value port: sorted bytes in named families, changed by atomic batches.

Backlogs, timers, read models and the embedded log stand on it. :class:`penstock.log.store.Store` keeps it in RocksDB,
:class:`penstock.log.store_memory.MemoryStore` in memory for tests and simulation; both sort keys as bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol


class Batch(Protocol):
    """Changes that are written all or none. Spent by :meth:`KeyValueStore.write`, even when that fails."""

    def put(self, family: str, key: bytes, value: bytes) -> None: ...

    def delete(self, family: str, key: bytes) -> None: ...

    def delete_range(self, family: str, start: bytes, stop: bytes) -> None:
        """Delete ``start <= key < stop``."""
        ...

    def __len__(self) -> int: ...

    @property
    def size_bytes(self) -> int: ...


class Family(Protocol):
    """One family of a store, for hot paths: no look-up by name for each key."""

    def get(self, key: bytes, /) -> bytes | None: ...

    def multi_get(self, keys: Sequence[bytes], /) -> list[bytes | None]:
        """Values in the order of ``keys``; None where there is none."""
        ...

    def scan(
        self,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]: ...


class KeyValueStore(Protocol):
    """Sorted bytes in families. Not thread-safe unless the implementation says so."""

    def family(self, name: str) -> Family:
        """The family itself; valid until the store is closed. KeyError for a name not given at opening."""
        ...

    def get(self, family: str, key: bytes) -> bytes | None: ...

    def multi_get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def scan(
        self,
        family: str,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with ``start <= key < stop``, at most ``limit``, ascending unless ``reverse``.

        What is written during a scan may or may not be seen by it. Closing the store ends open scans.
        """
        ...

    def batch(self) -> Batch: ...

    def write(self, batch: Batch, *, sync: bool = False) -> None:
        """Apply a batch atomically. ``sync`` also waits until it is on the disk."""
        ...

    def delete_range(self, family: str, start: bytes, stop: bytes) -> None: ...

    def flush(self) -> None:
        """Bring everything written so far to the disk."""
        ...

    def start_flush(self) -> None:
        """Begin to bring what is written to the disk, and return: a :meth:`checkpoint` soon after is then short."""
        ...

    @property
    def flushing(self) -> bool:
        """Whether what :meth:`start_flush` began is still going on."""
        ...

    def checkpoint(self, path: str) -> None:
        """Write a consistent copy, openable by itself, to ``path``, which must not exist."""
        ...

    def close(self) -> None:
        """Release everything. A second call does nothing."""
        ...
