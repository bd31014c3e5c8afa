"""What one partition's read model keeps of each folded line: history, failures, index, counts, quarantine.

Lines are gathered in memory by job; a commit writes each touched job once, in the same batch as the fold's rows, so the
views can never be at another offset than the state.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import sha256

from msgspec import Struct

from penstock.core.job import Job
from penstock.core.partition import Folded
from penstock.log.kv import Batch
from penstock.log.port import Record
from penstock.projections.batch_counts import BatchCounts
from penstock.projections.candidates import errors_mark, marks_of
from penstock.projections.groups import Groups
from penstock.projections.operated import Operated
from penstock.projections.retention import forgotten_key
from penstock.projections.rows import (
    ACTIVATED,
    ERRORS,
    FORGOTTEN,
    HISTORY,
    INDEX,
    KEPT_REFUSED,
    MARKS,
    QUARANTINE,
    REFUSED,
    LineRow,
    QuarantineRow,
    RefusedRow,
    RefusedSummary,
    decode_errors,
    decode_summary,
    encode,
    index_key,
    job_prefix,
    number,
)
from penstock.projections.unindexed import Unindexed
from penstock.projections.views import SHOWN_ERRORS, ErrorRow, errors_of
from penstock.projections.waiting import OffsetWaiters
from penstock.schemas import events as ev
from penstock.schemas.ids import job_key
from penstock.schemas.limits import QUARANTINE_HEAD_BYTES
from penstock.state.partition_store import PartitionStore

_VERBS = frozenset(ev.Verb.__subclasses__())
_TELLS_OF_FAILURE = frozenset({ev.Failed, ev.LeaseExpired, ev.Expired})


class _Touched:
    """A job in this commit: as it was before, as it is now, and the accepted lines between."""

    __slots__ = ("after", "before", "lines")

    def __init__(self, before: Job | None, after: Job | None, line: LineRow) -> None:
        self.before = before
        self.after = after
        self.lines = [line]


class ProjectionNumbers(Struct, kw_only=True):
    """What a projection has done since it started, for metrics."""

    records: int = 0
    lines: int = 0
    commits: int = 0
    fold_s: float = 0.0
    commit_s: float = 0.0
    waits: int = 0
    waits_behind: int = 0


class Projector:
    """Folds one partition into its store and views. Use from one thread.

    Args:
        indexed: whether a text index takes in what is folded.
    """

    def __init__(
        self, store: PartitionStore, numbers: ProjectionNumbers | None = None, *, indexed: bool = False
    ) -> None:
        self.store = store
        self.numbers = numbers or ProjectionNumbers()
        self.groups = Groups(store.store)
        self.batches = BatchCounts(store.store)
        self.operated = Operated(store.store)
        self.unindexed = Unindexed(store.store, kept=indexed)
        self._touched: dict[str, _Touched] = {}
        self._refused: dict[str, list[tuple[int, RefusedRow]]] = {}
        self._refused_counts: dict[str, int] = {}
        self._errors: dict[str, list[ErrorRow]] = {}
        self._quarantined: list[tuple[int, QuarantineRow]] = []
        self._forgotten: list[tuple[bytes, str]] = []
        self._activated: list[tuple[int, int]] = []
        self.waiters = OffsetWaiters()
        """Who waits for a position of this partition."""
        self.applied_at_ms = 0
        """When the last commit was made, Unix ms."""
        store.attach("read model", self)

    @property
    def dirty(self) -> bool:
        """Whether anything is folded that is not committed."""
        return self.store.behind

    def fold(self, record: Record) -> None:
        """Fold one record in memory. Raises UnknownRules."""
        self.store.fold(record)

    def take(self, folded: Sequence[Folded]) -> None:
        """Lines were folded."""
        self.numbers.records += 1
        self.numbers.lines += len(folded)
        for line in folded:
            self._take(line)
            if type(line.event) in _VERBS:
                self.operated.take(line)
            if line.also is not None:
                self._take(line.also)

    def _take(self, line: Folded) -> None:
        if line.outcome != "applied":
            self._keep_refused(line)
            return
        key = line.key
        if not key:
            if isinstance(line.event, ev.RulesActivated | ev.CopySealed):
                version = (
                    line.event.version if isinstance(line.event, ev.RulesActivated) else line.event.rules
                )
                self._activated.append((line.position, version))
            return
        entry = self._touched.get(key)
        item: LineRow = (line.position, line.time_ms, line.line)
        if line.copied is not None:
            item = (*item, *line.copied)
        if entry is None:
            self._touched[key] = _Touched(line.before, line.after, item)
        else:
            entry.after = line.after
            entry.lines.append(item)
        after = line.after
        if type(line.event) in _TELLS_OF_FAILURE:
            self._keep_errors(line)
        elif after is None:
            self._errors[key] = []
            self._forgotten.append((forgotten_key(line.time_ms, line.position), key))
        elif after.state == "partial":
            self._keep_errors(line)

    def commit(self) -> None:
        """Write all that was folded."""
        self.store.commit()

    def written(self) -> None:
        """What was taken is stored: tell those who wait for it."""
        self._touched.clear()
        self._refused.clear()
        self._refused_counts.clear()
        self._errors.clear()
        self._quarantined.clear()
        self._forgotten.clear()
        self._activated.clear()
        self.batches.written()
        self.operated.written()
        self.unindexed.written()
        self.numbers.commits += 1
        self.applied_at_ms = time.time_ns() // 1_000_000
        self.waiters.reached(self.store.committed_offset)

    @property
    def awaited(self) -> bool:
        """Whether a reader waits for what is folded."""
        return self.waiters.awaits(self.store.next_offset)

    # What is rare

    def _keep_errors(self, line: Folded) -> None:
        found = errors_of(line)
        if not found:
            return
        errors = self._errors.get(line.key)
        if errors is None:
            data = self.store.store.get(ERRORS, line.key.encode())
            errors = self._errors[line.key] = [] if data is None else decode_errors(data)
        errors.extend(found)
        del errors[:-SHOWN_ERRORS]

    def _keep_refused(self, line: Folded) -> None:
        """A refused line stays with the job it spoke of; one of no known job leaves only the fold's counters."""
        if line.outcome == "quarantined":
            self._quarantine(line)
            return
        key = line.key
        if not key and isinstance(line.event, ev.JobEvent):
            key = job_key(line.event.tenant, line.event.job)
        if not key or line.outcome in ("misrouted", "unknown_job") or self.store.job(key) is None:
            return
        rows = self._refused.setdefault(key, [])
        rows.append((line.position, RefusedRow(line.time_ms, line.outcome, line.reason, line.line)))
        del rows[:-KEPT_REFUSED]
        self._refused_counts[key] = self._refused_counts.get(key, 0) + 1

    def _quarantine(self, line: Folded) -> None:
        reason, _, message = line.reason.partition(": ")
        head, size_bytes = line.line[:QUARANTINE_HEAD_BYTES], len(line.line)
        row = QuarantineRow(
            line.time_ms, reason, message, sha256(line.line).digest(), size_bytes, bytes(head)
        )
        self._quarantined.append((line.position, row))

    # Writing

    def write(self, batch: Batch) -> None:
        """Put the rows of what was taken into a commit."""
        put = batch.put
        for key, touched in self._touched.items():
            lines = touched.lines
            put(HISTORY, job_prefix(key) + number(lines[0][0]), encode(lines))
            self._write_index(batch, key, touched.before, touched.after)
            self.unindexed.note(key, touched.before, touched.after, failed=key in self._errors)
        for key, errors in self._errors.items():
            after = self._touched[key].after
            if after is not None:
                put(ERRORS, key.encode(), encode(errors))
                if errors and after.state != "deleted":
                    put(MARKS, index_key(errors_mark(after.tenant), after.created_at_ms, after.id), b"")
        for key, rows in self._refused.items():
            self._write_refused(batch, key, rows)
        for position, row in self._quarantined:
            put(QUARANTINE, number(position), encode(row))
        for row, key in self._forgotten:
            put(FORGOTTEN, row, key.encode())
        for position, version in self._activated:
            put(ACTIVATED, number(position), encode(version))
        self.groups.write(batch)
        self.batches.write(batch)
        self.operated.write(batch)
        self.unindexed.write(batch, self.store.next_offset)

    def _write_index(self, batch: Batch, key: str, before: Job | None, after: Job | None) -> None:
        groups = self.groups
        if after is None:
            batch.delete(ERRORS, key.encode())
        if (
            before is None
            or after is None
            or (after.state == "deleted") != (before.state == "deleted")
            or before.created_at_ms != after.created_at_ms
        ):
            self._write_marks(batch, key, before, after)
        old = None if before is None or before.state == "deleted" else groups.of(before)
        new = None if after is None or after.state == "deleted" else groups.of(after)
        if old is new and (before is None or after is None or before.created_at_ms == after.created_at_ms):
            return
        if old is not None and before is not None:
            batch.delete(INDEX, index_key(old.prefix, before.created_at_ms, before.id))
            groups.remove(old)
            self.batches.add(before, -1)
        if new is not None and after is not None:
            batch.put(INDEX, index_key(new.prefix, after.created_at_ms, after.id), b"")
            groups.add(new, after.created_at_ms)
            self.batches.add(after)

    def _write_marks(self, batch: Batch, key: str, before: Job | None, after: Job | None) -> None:
        """Most jobs have none. They stay alike until a job is deleted or gone, but for that of its first error."""
        had_errors = before is not None and self.store.store.get(ERRORS, key.encode()) is not None
        if before is not None:
            for mark in marks_of(before, has_errors=had_errors):
                batch.delete(MARKS, index_key(mark, before.created_at_ms, before.id))
        if after is not None:
            has_errors = bool(self._errors[key]) if key in self._errors else had_errors
            for mark in marks_of(after, has_errors=has_errors):
                batch.put(MARKS, index_key(mark, after.created_at_ms, after.id), b"")

    def _write_refused(self, batch: Batch, key: str, rows: list[tuple[int, RefusedRow]]) -> None:
        prefix = job_prefix(key)
        data = self.store.store.get(REFUSED, prefix)
        summary = RefusedSummary() if data is None else decode_summary(data)
        positions = summary.positions + [position for position, _ in rows]
        for position in positions[:-KEPT_REFUSED]:
            batch.delete(REFUSED, prefix + number(position))
        for position, row in rows:
            batch.put(REFUSED, prefix + number(position), encode(row))
        count = summary.count + self._refused_counts[key]
        batch.put(REFUSED, prefix, encode(RefusedSummary(count, positions[-KEPT_REFUSED:])))
