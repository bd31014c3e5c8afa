"""The rows that a fold is working on: read once, changed in memory, handed out to be written once.

Each row in hand knows its share of the state digest as it is stored, so that a job that comes back soon is neither
read, nor decoded, nor hashed again. What was handed out last stays in hand for that reason, within bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from penstock.core.job_state import TERMINAL, Job
from penstock.core.rows import (
    DIGEST_MODULUS,
    STATE_KEY,
    Changes,
    PartitionState,
    Quarantined,
    decode_job_row,
    decode_state_row,
    encode_row,
    job_row_key,
    row_digest,
)

RECENT_JOBS = 4_096
"""Unchanged jobs kept in hand at most, so that idle memory stays small."""

MOST_ASKED_FOR = 4 * RECENT_JOBS
"""With so many used, what is only asked for is not kept."""

FEWEST_TOGETHER = 8
"""Rows that are worth to be read together."""

ReadMany = Callable[[Sequence[bytes]], "Sequence[bytes | None]"]

_UNKNOWN = -1


class Held:
    """A job in hand. ``job`` is its state now, None where there is none; changed by :meth:`WorkingRows.put` only."""

    __slots__ = ("changed", "job", "row", "share", "stored")

    def __init__(self, row: bytes, job: Job | None, stored: bytes | None) -> None:
        self.row = row
        """Its key."""
        self.job = job
        self.stored = stored
        self.share = 0 if stored is None else _UNKNOWN
        """Of the digest, as stored; computed only if the row is to be replaced."""
        self.changed = False


class WorkingRows:
    """Rows of one partition in memory, over those that are stored.

    Args:
        read: the stored value of a row key, as of the last changes taken; None where there is none.
        digest: the digest of the stored rows.
        read_many: as ``read``, for many keys in ascending order.
    """

    def __init__(
        self, read: Callable[[bytes], bytes | None], digest: int, read_many: ReadMany | None = None
    ) -> None:
        self._read = read
        self._read_many: ReadMany = read_many or (lambda rows: list(map(read, rows)))
        self._digest = digest
        self.jobs: dict[str, Held] = {}
        """By job key: those used since changes were last taken."""
        self._recent: dict[str, Held] = {}
        self._others: dict[bytes, Quarantined | bytes | None] = {}
        self._stored_others: dict[bytes, bytes | None] = {}
        self._stored_state = read(STATE_KEY)
        self.state = PartitionState() if self._stored_state is None else decode_state_row(self._stored_state)
        self.changed = 0
        """How many rows have changed since changes were last taken."""

    # Jobs

    def hold(self, key: str) -> Held:
        """A job to decide about, in hand until changes are taken."""
        held = self.jobs.get(key)
        if held is None:
            held = self.jobs[key] = self._recent.pop(key, None) or self._load(key)
        return held

    def put(self, held: Held, job: Job | None) -> None:
        """The job's next state."""
        held.job = job
        if not held.changed:
            held.changed = True
            self.changed += 1

    def job(self, key: str) -> Job | None:
        """The job as it is now; nothing is going to change."""
        held = self.jobs.get(key) or self._recent.get(key)
        if held is None:
            held = self._load(key)
            if len(self.jobs) < MOST_ASKED_FOR:
                # Who asks is about to write a line about it, more often than not: it counts as used.
                self.jobs[key] = held
        return held.job

    def prepare(self, keys: Sequence[str]) -> None:
        """These jobs are going to be asked for: read together what is not in hand."""
        jobs, recent = self.jobs, self._recent
        missing = sorted(key for key in keys if key not in jobs and key not in recent)
        if len(missing) < FEWEST_TOGETHER or len(jobs) >= MOST_ASKED_FOR:
            return
        rows = list(map(job_row_key, missing))
        for key, row, data in zip(missing, rows, self._read_many(rows), strict=True):
            jobs[key] = _held(row, data)

    def _load(self, key: str) -> Held:
        row = job_row_key(key)
        return _held(row, self._read(row))

    def changed_jobs(self) -> Iterator[tuple[str, Job | None]]:
        """Keys and states of the jobs changed since changes were last taken."""
        return ((key, held.job) for key, held in self.jobs.items() if held.changed)

    # Other rows

    def get(self, row: bytes) -> Quarantined | bytes | None:
        """A row that is not a job's; as bytes where it is not changed."""
        if row not in self._others:
            stored = self._stored_others[row] = self._others[row] = self._read(row)
            return stored
        return self._others[row]

    def set(self, row: bytes, value: Quarantined | bytes | None) -> None:
        """Change a row that is not a job's."""
        self.get(row)
        self._others[row] = value
        self.changed += 1

    # Changes

    def take(self) -> Changes:
        """Rows changed since the last call, each once, with the digest they lead to. The caller must store them."""
        rows: list[tuple[bytes, bytes | None]] = []
        digest = self._digest
        for held in self.jobs.values():
            if held.changed:
                digest += self._take_job(held, rows)
        for row, value in self._others.items():
            encoded = encode_row(value) if isinstance(value, Quarantined) else value
            digest += _replace(row, self._stored_others[row], encoded, rows)
        state = encode_row(self.state)
        digest += _replace(STATE_KEY, self._stored_state, state, rows)
        self._stored_state = state
        self._digest = digest % DIGEST_MODULUS
        self._keep_recent()
        self._others.clear()
        self._stored_others.clear()
        self.changed = 0
        return Changes(rows, self._digest)

    @staticmethod
    def _take_job(held: Held, rows: list[tuple[bytes, bytes | None]]) -> int:
        row = held.row
        encoded = None if held.job is None else encode_row(held.job)
        share = 0 if encoded is None else row_digest(row, encoded)
        stored = held.share
        if stored == _UNKNOWN and held.stored is not None:
            stored = row_digest(row, held.stored)
        held.changed, held.stored, held.share = False, None, share
        if share != stored:
            rows.append((row, encoded))
        return share - stored

    def _keep_recent(self) -> None:
        """What was used goes behind what was not; of those that have ended hardly a line will come."""
        recent = self._recent
        for key, held in self.jobs.items():
            if held.job is not None and held.job.state not in TERMINAL:
                recent[key] = held
        if len(recent) > RECENT_JOBS:
            self._recent = dict(islice(recent.items(), len(recent) - RECENT_JOBS, None))
        self.jobs = {}


def _held(row: bytes, data: bytes | None) -> Held:
    return Held(row, None if data is None else decode_job_row(data), data)


def _replace(
    row: bytes, stored: bytes | None, encoded: bytes | None, rows: list[tuple[bytes, bytes | None]]
) -> int:
    """Note a changed row; what it adds to the digest."""
    if stored == encoded:
        return 0
    rows.append((row, encoded))
    share = 0 if encoded is None else row_digest(row, encoded)
    return share - (0 if stored is None else row_digest(row, stored))
