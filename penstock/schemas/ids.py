"""Names of jobs and of what belongs to them, and the partition that a job lives in.

A job id is 1 to 128 characters of ``A-Za-z0-9._:-``, optionally followed by ``~`` and a *home* of the same alphabet.
The home (the whole id where there is none) decides the partition, so jobs that must be decided together share one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256
from struct import Struct

# A pattern's ``$`` also matches before a newline at the end; who searches with Python's ``re`` says
# ``exactly(pattern)``.
JOB_ID_PATTERN = r"^[A-Za-z0-9._:\-]{1,128}(~[A-Za-z0-9._:\-]{1,64})?$"
NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.:/\-]{0,127}$"
"""Queues, pools, job types, tenants, tags, batches and workflows."""
IDEMPOTENCY_KEY_PATTERN = r"^[\x21-\x7e]{1,200}$"


def exactly(pattern: str) -> str:
    """The same pattern for Python's ``re``, not fooled by a newline at the end."""
    return pattern.removesuffix("$") + r"\Z"


_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_MASK = 0xFFFFFFFF


def ulid(time_ms: int, entropy: int) -> str:
    """A 26-character id that sorts by time: 48 bits of Unix milliseconds and 80 bits of the caller's entropy."""
    number = (time_ms & 0xFFFFFFFFFFFF) << 80 | (entropy & ((1 << 80) - 1))
    digits = [""] * 26
    for index in range(25, -1, -1):
        digits[index] = _CROCKFORD[number & 31]
        number >>= 5
    return "".join(digits)


def home_of(job_id: str) -> str:
    """The part of a job id that decides its partition."""
    _, mark, home = job_id.rpartition("~")
    return home if mark else job_id


_is_home = re.compile(r"[A-Za-z0-9._:\-]{1,64}\Z").match


def home_of_key(key: str) -> str:
    """The home of the jobs that share a key: the key itself, where it may stand in an id, else 44 characters that
    stand for it."""
    return key if _is_home(key) else "key:" + sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:40]


@lru_cache(maxsize=8_192)
def _partition_of_home(home: str, partitions: int) -> int:
    return (murmur2(home.encode()) & 0x7FFFFFFF) % partitions


def partition_of(job_id: str, partitions: int) -> int:
    """Partition of a job among ``partitions``: what Kafka's Java client computes for its home as key."""
    return _partition_of_home(home_of(job_id), partitions)


_OPERATION = "op."
_is_job_id = re.compile(exactly(JOB_ID_PATTERN)).match


def operation_event(operation: str) -> str:
    """Id of the event by which an operation on many jobs asks each of them."""
    return _OPERATION + operation


def operation_of(event_id: str) -> str:
    """The operation that an event is of; empty if of none. An operation is a job, and has the id of one."""
    operation = event_id.removeprefix(_OPERATION)
    return operation if event_id.startswith(_OPERATION) and _is_job_id(operation) else ""


def job_key(tenant: str, job_id: str) -> str:
    """A job's name among all tenants. A tenant's name has no ``/`` in first place to confuse with an id."""
    return f"{tenant}/{job_id}"


@lru_cache(maxsize=256)
def _words(count: int) -> Struct:
    """How to read ``count`` little-endian 32-bit words."""
    return Struct(f"<{count}I")


_SEED = 0x9747B28C
_MULTIPLIER = 0x5BD1E995


def murmur2(data: bytes) -> int:
    """Murmur2 as Kafka's Java client computes it, seed 0x9747b28c; an unsigned 32-bit number."""
    length = len(data)
    # Ids that were made together differ in their last two characters only.
    h = _beginning_of_ulid(data[:24]) if length == 26 else _whole_words(data, length)
    if length & 3:
        h = (h ^ int.from_bytes(data[length & ~3 :], "little")) * _MULTIPLIER & _MASK
    h = (h ^ h >> 13) * _MULTIPLIER & _MASK
    return h ^ h >> 15


def _whole_words(data: bytes, length: int) -> int:
    """The hash before the last ``length % 4`` bytes of data that is ``length`` bytes long."""
    m, mask = _MULTIPLIER, _MASK
    h = _SEED ^ length
    for word in _words(length >> 2).unpack_from(data):
        k = word * m & mask
        h = (h * m ^ (k ^ k >> 24) * m) & mask
    return h


@lru_cache(maxsize=1_024)
def _beginning_of_ulid(data: bytes) -> int:
    return _whole_words(data, 26)


_ENDINGS = tuple(int.from_bytes((a + b).encode(), "little") for a in _CROCKFORD for b in _CROCKFORD)
"""The last two characters of a ULID, by their ten bits, as the last half word of the hash."""


def partitions_of_endings(beginning: str, first: int, count: int, partitions: int) -> list[int]:
    """Partitions of ULIDs whose first 24 characters are ``beginning`` and whose last ten bits are ``first`` and the
    ``count - 1`` that follow, at most 1,024 in all. A fraction of a microsecond each."""
    start = _whole_words(beginning.encode(), 26)
    m, mask = _MULTIPLIER, _MASK
    found: list[int] = []
    for ending in _ENDINGS[first : first + count]:
        h = (start ^ ending) * m & mask
        h = (h ^ h >> 13) * m & mask
        found.append(((h ^ h >> 15) & 0x7FFFFFFF) % partitions)
    return found


def beginning_hash(beginning: str) -> int:
    """What :func:`ending_in` needs to know of a ULID's first 24 characters."""
    return _whole_words(beginning.encode(), 26)


def ending_in(start: int, first: int, partition: int, partitions: int) -> int | None:
    """The last ten bits, ``first`` or more, that put a ULID into ``partition``.

    ``start`` is the :func:`beginning_hash` of its first 24 characters. None if none of those bits does, which from 0
    on and with fewer than a hundred partitions hardly ever happens. About ``partitions`` tries of a third of a
    microsecond.
    """
    m, mask = _MULTIPLIER, _MASK
    for bits in range(first, 1024):
        h = (start ^ _ENDINGS[bits]) * m & mask
        h = (h ^ h >> 13) * m & mask
        if ((h ^ h >> 15) & 0x7FFFFFFF) % partitions == partition:
            return bits
    return None
