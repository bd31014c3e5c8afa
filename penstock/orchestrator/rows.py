"""What a leader must find again after a restart: rows derived from each job, written in the batch that writes the job.

===========  =====================  ===================================================================
family       key                    value
===========  =====================  ===================================================================
``backlog``  ``r`` lane, place      none; a ready job: its place is its order, then its job key
``backlog``  ``k`` turn, place      none; a ready job with a concurrency key once more: hashes of that key and its lane,
                                    its place
``backlog``  ``a`` job key          none; a leased job
``backlog``  ``d`` job key          none; a dead job whose record is still owed
``backlog``  ``q`` position         a refused line, until it was read back from the quarantine topic
``backlog``  ``c``                  ready jobs by lane, counted
``timers``   time, kind, job key    none; ``d`` when it is due, ``x`` when it expires
===========  =====================  ===================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import NamedTuple, Self

import msgspec

from penstock.core.job import WAITING, Job
from penstock.core.partition import Folded
from penstock.log.kv import Batch, KeyValueStore
from penstock.schemas.events import PRIORITIES
from penstock.schemas.ids import job_key
from penstock.schemas.limits import QUARANTINE_HEAD_BYTES
from penstock.schemas.position import pack
from penstock.state.partition_store import PartitionStore

BACKLOG = "backlog"
TIMERS = "timers"
FAMILIES = (BACKLOG, TIMERS)

READY, TURN, ACTIVE, DEAD, COUNTS, REFUSED = b"r", b"k", b"a", b"d", b"c", b"q"
DUE, EXPIRY = b"d", b"x"

_ORDER_BYTES = 8
_LANE_HASH_BYTES = 8

RANK = {priority: rank for rank, priority in enumerate(PRIORITIES)}

_encode = msgspec.msgpack.Encoder().encode
_decode_note = msgspec.msgpack.Decoder(tuple[int, int, str, int, bytes, bytes]).decode
_Row = tuple[str, bytes, bytes]
_NO_ROWS: list[_Row] = []


class Lane(NamedTuple):
    """Ready jobs that are alike to a dispatcher. ``rank`` 0 is the most urgent."""

    pool: str
    rank: int
    queue: str
    job_type: str
    tenant: str = "default"

    @property
    def owner(self) -> tuple[str, str]:
        """Who has a turn of its own among those of one urgency, however many lanes it has: a queue of a tenant."""
        return self.tenant, self.queue

    @property
    def prefix(self) -> bytes:
        """What the keys of its rows begin with."""
        return _lane_prefix(self)


_decode_counts = msgspec.msgpack.Decoder(list[tuple[Lane, int]]).decode


@lru_cache(maxsize=1_024)
def _lane_prefix(lane: Lane) -> bytes:
    return b"%s%s\0%c%s\0%s\0%s\0" % (
        READY, lane.pool.encode(), lane.rank, lane.queue.encode(), lane.job_type.encode(), lane.tenant.encode()
    )  # fmt: skip


_lanes: dict[tuple[str, str, str, str, str], Lane] = {}
_MOST_LANES = 10_000


def lane_of(job: Job) -> Lane:
    """The job's lane. Asked for several times a job, so the same ones are handed out again."""
    name = (job.pool, job.priority, job.queue, job.job_type, job.tenant)
    lane = _lanes.get(name)
    if lane is None:
        if len(_lanes) >= _MOST_LANES:
            _lanes.clear()
        lane = _lanes[name] = Lane(job.pool, RANK[job.priority], job.queue, job.job_type, job.tenant)
    return lane


def rows_of(job: Job | None) -> tuple[_Row, ...]:
    """The rows a job must have: family, key, value."""
    return () if job is None else tuple(_rows(job, job.key.encode()))


def _rows(job: Job, key: bytes) -> list[_Row]:
    state = job.state
    if state == "succeeded":
        return _NO_ROWS
    rows: list[_Row] = []
    if state == "ready":
        rows.append((BACKLOG, lane_of(job).prefix + place_of(job.order) + key, b""))
        if job.concurrency_key:
            rows.append((BACKLOG, turn_row_of(job), b""))
    elif state == "active":
        rows.append((BACKLOG, ACTIVE + key, b""))
    elif state == "dead" and not job.dead_lettered:
        rows.append((BACKLOG, DEAD + key, b""))
    elif state in ("scheduled", "retrying"):
        rows.append((TIMERS, timer_key(job.due_at_ms, DUE, key), b""))
    if job.expires_at_ms and state in WAITING:
        rows.append((TIMERS, timer_key(job.expires_at_ms, EXPIRY, key), b""))
    return rows


def place_of(order: int, key: str = "") -> bytes:
    """Where a ready job stands in its lane; without a key, where jobs of that order begin.

    Two jobs may have one order: those that a copied log brought together from several partitions.
    """
    return order.to_bytes(_ORDER_BYTES, "big") + key.encode()


def turn_of(job: Job) -> bytes:
    """Names the turn that the jobs of one concurrency key share, and begins their rows. A key may be any text."""
    name = job_key(job.tenant, job.concurrency_key)
    return TURN + blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def turn_row_of(job: Job) -> bytes:
    """The key of its row below its turn."""
    return turn_of(job) + _lane_hash(lane_of(job)) + place_of(job.order, job.key)


@lru_cache(maxsize=1_024)
def _lane_hash(lane: Lane) -> bytes:
    return blake2b(lane.prefix, digest_size=_LANE_HASH_BYTES).digest()


def timer_key(time_ms: int, kind: bytes, key: bytes) -> bytes:
    return time_ms.to_bytes(8, "big") + kind + key


Note = tuple[int, int, str, int, bytes, bytes]
"""Of a refused line: packed position, log time in ms, reason, size in bytes, SHA-256, first 4 KiB."""


def quarantine_note(folded: Folded) -> Note:
    """What is told of a line that could not be decoded."""
    line = folded.line
    return (
        folded.position, folded.time_ms, folded.reason, len(line), sha256(line).digest(), line[:QUARANTINE_HEAD_BYTES]
    )  # fmt: skip


class Index:
    """Keeps the rows of one partition in step with its fold, and counts ready jobs by lane."""

    def __init__(self, kv: KeyValueStore, folded_until: Callable[[], int]) -> None:
        """``folded_until`` tells the packed position below which everything is folded."""
        self._kv = kv
        self._folded_until = folded_until
        self._changed: dict[str, tuple[Job | None, Job | None]] = {}
        self._refused: dict[int, Note] = {}
        self._noted: set[int] = set()
        stored = kv.get(BACKLOG, COUNTS)
        self.ready: dict[Lane, int] = {} if stored is None else dict(_decode_counts(stored))

    @classmethod
    def of(cls, store: PartitionStore) -> Self:
        """The index of a store, kept from now on with all that is folded into it."""
        index = cls(store.store, lambda: pack(store.next_offset, 0))
        store.attach("orchestrator", index)
        return index

    def take(self, folded: Sequence[Folded]) -> None:
        """Take folded lines into account."""
        for line in folded:
            if line.before is not line.after:
                self._take(line.key, line.before, line.after)
                other = line.also
                if other is not None:
                    self._take(other.key, other.before, other.after)
            elif line.outcome == "quarantined":
                self._refused[line.position] = quarantine_note(line)

    def _take(self, key: str, before: Job | None, after: Job | None) -> None:
        known = self._changed.get(key)
        self._changed[key] = (before if known is None else known[0], after)
        if before is not None and before.state == "ready":
            if after is not None and after.state == "ready" and lane_of(after) is lane_of(before):
                return
            self._count(lane_of(before), -1)
        if after is not None and after.state == "ready":
            self._count(lane_of(after), 1)

    def _count(self, lane: Lane, change: int) -> None:
        jobs = self.ready.get(lane, 0) + change
        if jobs:
            self.ready[lane] = jobs
        else:
            self.ready.pop(lane, None)

    def write(self, batch: Batch) -> None:
        """Put what has changed since the last call into the commit."""
        for key, (before, after) in self._changed.items():
            row_key = key.encode()
            old = _NO_ROWS if before is None else _rows(before, row_key)
            new = _NO_ROWS if after is None else _rows(after, row_key)
            if old == new:
                continue
            for row in old:
                if row not in new:
                    batch.delete(row[0], row[1])
            for row in new:
                if row not in old:
                    batch.put(*row)
        if self._changed:
            batch.put(BACKLOG, COUNTS, _encode(list(self.ready.items())))
        for position, note in self._refused.items():
            if position not in self._noted:
                batch.put(BACKLOG, REFUSED + position.to_bytes(8, "big"), _encode(note))
        folded_until = self._folded_until()
        for position in [position for position in self._noted if position < folded_until]:
            batch.delete(BACKLOG, REFUSED + position.to_bytes(8, "big"))
            self._noted.discard(position)

    def written(self) -> None:
        """What was taken is stored."""
        self._changed.clear()
        self._refused.clear()

    @property
    def awaited(self) -> bool:
        """A leader decides by what is in memory."""
        return False

    # Reading: only what was committed

    def ready_from(self, lane: Lane, place: bytes, limit: int) -> Iterator[tuple[int, str]]:
        """Order and key of a lane's committed jobs that stand at ``place`` or behind it."""
        prefix = lane.prefix
        begin = len(prefix) + _ORDER_BYTES
        for key, _ in self._kv.scan(BACKLOG, prefix + place, prefix + b"\xff" * _ORDER_BYTES, limit=limit):
            yield int.from_bytes(key[begin - _ORDER_BYTES : begin], "big"), key[begin:].decode()

    def next_turn(self, turn: bytes, after: bytes) -> tuple[str, bytes, bytes] | None:
        """The first committed ready job of a concurrency key (see :func:`turn_of`) behind a place, lane by lane: its
        key, its place, and one behind all of its lane."""
        lane_end = len(turn) + _LANE_HASH_BYTES
        start = after + b"\0" if after else turn
        for row, _ in self._kv.scan(
            BACKLOG, start, turn + b"\xff" * (_LANE_HASH_BYTES + _ORDER_BYTES), limit=1
        ):
            return row[lane_end + _ORDER_BYTES :].decode(), row, row[:lane_end] + b"\xff" * _ORDER_BYTES
        return None

    def is_changed(self, key: str) -> bool:
        """Whether the job changed since the last commit."""
        return key in self._changed

    def noted(self, position: int) -> None:
        """A refused line stands on the quarantine topic; perhaps it is not folded here yet."""
        self._noted.add(position)

    def not_noted(self) -> Iterator[Note]:
        """Committed refused lines that the quarantine topic is not known to have, in log order."""
        for key, value in self._kv.scan(BACKLOG, REFUSED, bytes([REFUSED[0] + 1])):
            if int.from_bytes(key[1:], "big") not in self._noted:
                yield _decode_note(value)

    def keys(self, prefix: bytes) -> Iterator[str]:
        """Keys of the committed ``ACTIVE`` or ``DEAD`` jobs."""
        for key, _ in self._kv.scan(BACKLOG, prefix, bytes([prefix[0] + 1])):
            yield key[1:].decode()

    def timers_between(self, start_ms: int, stop_ms: int) -> Iterator[tuple[int, bytes, str]]:
        """Time, kind and job key of committed timers with ``start_ms <= time < stop_ms``."""
        for key, _ in self._kv.scan(TIMERS, start_ms.to_bytes(8, "big"), stop_ms.to_bytes(8, "big")):
            yield int.from_bytes(key[:8], "big"), key[8:9], key[9:].decode()
