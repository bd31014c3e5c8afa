"""How many jobs each batch and each workflow has, by state, queue, pool and type: counted as they change.

A row for each, so that what a batch of a hundred thousand comes to is one read. A commit changes each row at most once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec

from penstock.core.job_state import Job
from penstock.log.kv import Batch, KeyValueStore
from penstock.projections.candidates import batch_marks, batch_marks_of
from penstock.projections.port import CountRow, JobFilter
from penstock.projections.rows import MARKS, encode

_COUNTS = b"n"
"""Begins their keys: no mark begins so."""

_Name = tuple[str, str, str, str]
"""State, queue, pool and type."""

_decode = msgspec.msgpack.Decoder(list[tuple[str, str, str, str, int]]).decode


class BatchCounts:
    """Those of one partition. Changes wait in memory for the commit."""

    def __init__(self, kv: KeyValueStore) -> None:
        self._kv = kv
        self._changed: dict[bytes, Counter[_Name]] = {}

    def add(self, job: Job, jobs: int = 1) -> None:
        """One job more; with -1 one less."""
        for mark in batch_marks_of(job):
            changes = self._changed.setdefault(mark, Counter())
            changes[job.state, job.queue, job.pool, job.job_type] += jobs

    def write(self, batch: Batch) -> None:
        """Put what has changed into a commit."""
        for mark, changes in self._changed.items():
            counts = self._counts(mark)
            counts.update(changes)
            rows = [(*name, jobs) for name, jobs in sorted(counts.items()) if jobs]
            if rows:
                batch.put(MARKS, _COUNTS + mark, encode(rows))
            else:
                batch.delete(MARKS, _COUNTS + mark)

    def written(self) -> None:
        """What has changed is stored."""
        self._changed.clear()

    def rows(self, tenant: str, among: JobFilter) -> Iterator[CountRow]:
        """Of the batch or the workflow that a filter names."""
        for mark in batch_marks(tenant, among.batch, among.workflow):
            for name, jobs in self._counts(mark).items():
                yield CountRow(*name, jobs)

    def _counts(self, mark: bytes) -> Counter[_Name]:
        data = self._kv.get(MARKS, _COUNTS + mark)
        return Counter() if data is None else Counter({row[:4]: row[4] for row in _decode(data)})
