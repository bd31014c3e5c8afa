"""The key-value port in memory, for tests and simulation: same order, same atomicity, no disk."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import msgspec

from penstock.log import kv

_PUT, _DELETE, _DELETE_RANGE = 0, 1, 2


class MemoryFamily:
    """A dict and its sorted keys. New keys are gathered and sorted in when an ordered read needs them."""

    __slots__ = ("_fresh", "_sorted", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self._sorted: list[bytes] = []
        self._fresh = True

    def get(self, key: bytes, /) -> bytes | None:
        return self.values.get(key)

    def multi_get(self, keys: Sequence[bytes], /) -> list[bytes | None]:
        return [self.values.get(key) for key in keys]

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self.values:
            self._fresh = False
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        if self.values.pop(key, None) is not None:
            self._fresh = False

    def delete_range(self, start: bytes, stop: bytes) -> None:
        for key in self._slice(start, stop):
            del self.values[key]
            self._fresh = False

    def scan(
        self,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        keys = self._slice(start, stop)
        if reverse:
            keys.reverse()
        for key in keys if limit is None else keys[: max(limit, 0)]:
            value = self.values.get(key)
            if value is not None:
                yield key, value

    def _slice(self, start: bytes, stop: bytes | None) -> list[bytes]:
        if not self._fresh:
            # Timsort merges the already sorted run with what came since: near linear.
            known = [key for key in self._sorted if key in self.values]
            if len(known) != len(self.values):
                seen = set(known)
                known.extend(key for key in self.values if key not in seen)
                known.sort()
            self._sorted = known
            self._fresh = True
        low = bisect_left(self._sorted, start)
        high = len(self._sorted) if stop is None else bisect_left(self._sorted, stop)
        return self._sorted[low:high]


class MemoryBatch:
    """Changes for one :meth:`MemoryStore.write`."""

    __slots__ = ("_known", "changes", "size_bytes", "spent")

    def __init__(self, known: dict[str, MemoryFamily]) -> None:
        self._known = known
        self.changes: list[tuple[int, MemoryFamily, bytes, bytes]] = []
        self.size_bytes = 0
        self.spent = False

    def put(self, family: str, key: bytes, value: bytes) -> None:
        self._add(_PUT, family, key, value)

    def delete(self, family: str, key: bytes) -> None:
        self._add(_DELETE, family, key, b"")

    def delete_range(self, family: str, start: bytes, stop: bytes) -> None:
        self._add(_DELETE_RANGE, family, start, stop)

    def __len__(self) -> int:
        return len(self.changes)

    def _add(self, kind: int, family: str, key: bytes, value: bytes) -> None:
        if self.spent:
            raise ValueError("this batch is already written")
        self.changes.append((kind, self._known[family], key, value))
        self.size_bytes += len(key) + len(value)


class MemoryStore:
    """A store that forgets when it goes. :meth:`dump` and :meth:`load` let a simulator crash and restart it."""

    def __init__(self, families: Sequence[str]) -> None:
        self._families = {name: MemoryFamily() for name in families}

    def family(self, name: str) -> MemoryFamily:
        return self._families[name]

    def get(self, family: str, key: bytes) -> bytes | None:
        return self._families[family].get(key)

    def multi_get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._families[family].multi_get(keys)

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

    def batch(self) -> MemoryBatch:
        return MemoryBatch(self._families)

    def write(self, batch: kv.Batch, *, sync: bool = False) -> None:
        assert isinstance(batch, MemoryBatch)
        if batch.spent:
            raise ValueError("this batch is already written")
        batch.spent = True
        for kind, family, key, value in batch.changes:
            if kind == _PUT:
                family.put(key, value)
            elif kind == _DELETE:
                family.delete(key)
            else:
                family.delete_range(key, value)

    def delete_range(self, family: str, start: bytes, stop: bytes) -> None:
        self._families[family].delete_range(start, stop)

    def flush(self) -> None:
        """Nothing to do: there is no disk."""

    def start_flush(self) -> None:
        """Nothing to do, as above."""

    @property
    def flushing(self) -> bool:
        return False

    def checkpoint(self, path: str) -> None:
        """Write everything to the file ``path`` (MessagePack); :meth:`load` takes its content."""
        with open(path, "xb") as file:
            file.write(msgspec.msgpack.encode(self.dump()))

    def dump(self) -> dict[str, dict[bytes, bytes]]:
        """A copy of everything."""
        return {name: dict(family.values) for name, family in self._families.items()}

    @classmethod
    def load(cls, content: dict[str, dict[bytes, bytes]]) -> MemoryStore:
        store = cls(list(content))
        for name, pairs in content.items():
            for key, value in pairs.items():
                store._families[name].put(key, value)
        return store

    def close(self) -> None:
        """Nothing to release."""
