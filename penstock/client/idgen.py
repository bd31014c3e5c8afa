"""Ids that this process makes: ULIDs from the clock and the system's entropy, each greater than the one before.

Two ids of one process sort in the order they were made, also within a millisecond and when the clock steps
back: then the time of the last id is kept and its entropy counted up. A forked child begins with entropy of its own.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from penstock.schemas.ids import beginning_hash, ending_in, home_of_key, partitions_of_endings

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = tuple(first + second for first in _CROCKFORD for second in _CROCKFORD)
_LOW_BITS = 40
_HIGH_BITS = 40


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


class UlidSource:
    """Makes ids, from any thread. About one microsecond each.

    Args:
        clock_ms: Unix milliseconds.
        entropy: that many random bytes.
    """

    def __init__(
        self, clock_ms: Callable[[], int] = _clock_ms, entropy: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._clock_ms = clock_ms
        self._entropy = entropy
        self._lock = threading.Lock()
        self._time_ms = -1
        self._head = ""
        self._low = 0
        self._block = -1
        self._beginning = ""
        self._block_hash = 0

    def next(self) -> str:
        """A 26-character ULID in lower case, as :func:`penstock.schemas.ids.ulid` writes it."""
        with self._lock:
            now_ms = self._clock_ms()
            if now_ms > self._time_ms:
                self._begin(now_ms)
            else:
                self._low += 1
            head, low = self._head, self._low
        pairs = _PAIRS
        return head + pairs[low >> 30] + pairs[low >> 20 & 1023] + pairs[low >> 10 & 1023] + pairs[low & 1023]

    def next_many(self, count: int, partitions: int) -> list[tuple[str, int]]:
        """``count`` ids as :meth:`next` would give, each with the partition of ``partitions`` that its job lives in."""
        found: list[tuple[str, int]] = []
        pairs = _PAIRS
        with self._lock:
            now_ms = self._clock_ms()
            if now_ms > self._time_ms:
                self._begin(now_ms)
            else:
                self._low += 1
            low = self._low
            while len(found) < count:
                beginning = self._head + pairs[low >> 30] + pairs[low >> 20 & 1023] + pairs[low >> 10 & 1023]
                first = low & 1023
                part = partitions_of_endings(beginning, first, count - len(found), partitions)
                found += zip(
                    [beginning + pair for pair in pairs[first : first + len(part)]], part, strict=True
                )
                low += len(part)
            self._low = low - 1
        return found

    def next_in(self, partition: int, partitions: int) -> str:
        """As :meth:`next`, an id whose job lives in ``partition`` of ``partitions``.

        Its last ten bits are chosen for that, as few above the last id's as there are.
        """
        with self._lock:
            now_ms = self._clock_ms()
            if now_ms > self._time_ms:
                self._begin(now_ms)
            else:
                self._low += 1
            while True:
                low = self._low
                if low >> 10 != self._block:
                    self._enter(low >> 10)
                ending = ending_in(self._block_hash, low & 1023, partition, partitions)
                if ending is not None:
                    self._low = low & ~1023 | ending
                    return self._beginning + _PAIRS[ending]
                self._low = (low | 1023) + 1

    def _enter(self, block: int) -> None:
        """Remember the 1,024 ids that differ in their last two characters only."""
        pairs = _PAIRS
        self._block = block
        self._beginning = self._head + pairs[block >> 20] + pairs[block >> 10 & 1023] + pairs[block & 1023]
        self._block_hash = beginning_hash(self._beginning)

    def _begin(self, now_ms: int) -> None:
        drawn = int.from_bytes(self._entropy(10), "big")
        # The low part starts in its lower half, so counting up within a millisecond never runs over.
        self._low = drawn & ((1 << (_LOW_BITS - 1)) - 1)
        self._time_ms = now_ms
        self._block = -1
        head = (now_ms & 0xFFFFFFFFFFFF) << _HIGH_BITS | drawn >> _LOW_BITS
        # 48 bits of time and 40 of entropy are 88 bits; with two zero bits in front, 18 digits of five bits.
        self._head = "".join(_PAIRS[head >> shift & 1023] for shift in range(80, -10, -10))


_source = UlidSource()


def _renew() -> None:
    global _source  # noqa: PLW0603 - a forked child must not go on with its parent's entropy
    _source = UlidSource()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def new_id_in(partition: int, partitions: int) -> str:
    """A new ULID of this process for a job that is to live in a given partition."""
    return _source.next_in(partition, partitions)


def new_ids(count: int, partitions: int) -> list[tuple[str, int]]:
    """New ULIDs of this process, ascending, each with the partition that its job lives in."""
    return _source.next_many(count, partitions)


def new_id() -> str:
    """A new ULID of this process: job ids, incarnations, event ids."""
    return _source.next()


def new_id_of_key(key: str) -> str:
    """An id whose job lives where the jobs of a unique or concurrency key do."""
    return f"{new_id()}~{home_of_key(key)}"
