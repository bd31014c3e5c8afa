"""Whose turn it is among the jobs of one concurrency key: no two of them run at once.

::

    taken from the backlog: has anybody the turn?
       no: has it until its lease has ended, or came to nothing ──▶ the first of each lane is called
       yes: passed over, and waits in the store, by its key ───────────────┘ back into the backlog

Jobs of one key share a home, and so a partition, and only its leader gives them out: once it has folded its own
announcement it knows every lease that counts, for those of a deposed leader are refused. So nothing about turns has to
be on the log, and a new leader finds them again in what is leased.

Of each lane the first is called, and whichever is taken first has the turn: a job that no worker takes holds up
nobody. Memory has the keys of which a job runs or was passed over. Those that were passed over are found again by rows
in the store, so a million that wait for one key cost no memory.
"""

from __future__ import annotations

from collections.abc import Callable

from penstock.core.job import Job
from penstock.orchestrator.rows import Index, Lane, lane_of, turn_of, turn_row_of

STALE_ROWS = 256
"""Rows of jobs that are no longer ready there to look at, before what was folded is committed and they are gone."""


class Turns:
    """Of one led partition.

    Args:
        index: committed rows of the partition.
        commit: makes the index complete up to the last folded line.
        job: the job of a key as of the last folded line.
    """

    def __init__(self, index: Index, commit: Callable[[], None], job: Callable[[str], Job | None]) -> None:
        self._index = index
        self._commit = commit
        self._job = job
        self._has: dict[bytes, str] = {}
        """Key of the job whose turn it is, by the turn's name."""
        self._passed: dict[bytes, set[str]] = {}
        """Turns for which jobs wait that are not in the backlog, with the keys of those called back into it."""
        self._fresh: dict[bytes, dict[str, None]] = {}
        """Keys of jobs that were passed over and have no row yet, or not where they are now."""
        self._free: dict[bytes, None] = {}
        """Turns that nobody has, of those for which jobs wait."""

    def committed(self) -> None:
        """Every job that was passed over has its row."""
        self._fresh.clear()

    def take(self, job: Job) -> bool:
        """Give the job the turn if nobody else has it. Else it is passed over, and called later."""
        name, key = turn_of(job), job.key
        called = self._passed.get(name)
        if called is not None:
            called.discard(key)
        if self._has.setdefault(name, key) == key:
            return True
        if called is None:
            self._passed[name] = set()
        if self._index.is_changed(key):
            self._fresh.setdefault(name, {})[key] = None
        return False

    def let_go(self, job: Job, *, waits: bool) -> None:
        """It runs no longer, or its lease came to nothing. ``waits``: it is in the backlog again."""
        name = turn_of(job)
        if self._has.get(name) != job.key:
            return
        del self._has[name]
        called = self._passed.get(name)
        if called is not None:
            self._free[name] = None
            if waits:
                called.add(job.key)

    def gone(self, job: Job) -> None:
        """A job that was ready is neither that nor leased any more, or waits in another lane: not in its place."""
        name = turn_of(job)
        called = self._passed.get(name)
        if called is not None and job.key in called:
            called.discard(job.key)
            self._free[name] = None

    def called(self) -> list[Job]:
        """Jobs that were passed over, and may be taken now. What was folded may be committed."""
        found: list[Job] = []
        for name in self._free:
            if name in self._has:
                # Another was taken meanwhile, and calls them when it has ended.
                continue
            called = self._passed[name]
            first = self._first_of_lanes(name)
            if not first:
                del self._passed[name]
            again = [job for job in first if job.key not in called]
            called.update(job.key for job in again)
            found += again
        self._free.clear()
        return found

    def _first_of_lanes(self, name: bytes) -> list[Job]:
        rows = self._by_rows(name)
        if rows is None:
            self._commit()
            rows = self._by_rows(name) or {}
        for key in self._fresh.get(name, ()):
            job = self._job(key)
            if job is not None and job.state == "ready":
                lane = lane_of(job)
                known = rows.get(lane)
                if known is None or job.order < known.order:
                    rows[lane] = job
        return list(rows.values())

    def _by_rows(self, name: bytes) -> dict[Lane, Job] | None:
        """The first ready job of each lane by the committed rows; None where too many of these are stale."""
        found: dict[Lane, Job] = {}
        stale, after = 0, b""
        while stale < STALE_ROWS:
            row = self._index.next_turn(name, after)
            if row is None:
                return found
            key, place, lane_end = row
            job = self._job(key)
            if job is not None and job.state == "ready" and turn_row_of(job) == place:
                found[lane_of(job)] = job
                after = lane_end
            else:
                stale += 1
                after = place
        return None
