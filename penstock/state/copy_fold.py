"""One partition's rows, folded from a log into a store of its own: to copy it, and to compare it with another.

No bodies and no views: only what decides. The store is made for one run and thrown away after it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path

from penstock.core.copying import COPY_REFUSALS
from penstock.core.partition import Folded, PartitionFold
from penstock.core.rows import PartitionState
from penstock.core.rules import RULES, RulesTable
from penstock.log.port import Log, Record
from penstock.schemas.copies import copy_header
from penstock.schemas.errors import LogUnavailable, OffsetTrimmed
from penstock.state.partition_store import FOLD, StoreFactory, rocks_store

_POLL_MS = 500
_POLL_RECORDS = 1_000
_SILENT_POLLS = 6
COMMIT_TOUCHED = 20_000


class RowFold:
    """The fold of one partition. Close it, or the folder stays locked."""

    def __init__(
        self,
        folder: Path,
        partition: int,
        partitions: int,
        *,
        rules: RulesTable = RULES,
        store_factory: StoreFactory = rocks_store,
    ) -> None:
        self.partition = partition
        self.partitions = partitions
        self.next_offset = 0
        self.lines = 0
        self.foreign: list[int] = []
        """Packed positions of lines that a copy did not take, although it had not had them before."""
        self._store = store_factory(str(folder), (FOLD,))
        self._fold = PartitionFold(partition, partitions, self._store.family(FOLD).get, rules=rules)

    def close(self) -> None:
        self._store.close()

    @property
    def state(self) -> PartitionState:
        return self._fold.state

    def fold(self, record: Record) -> list[Folded]:
        """Fold the next record. Raises UnknownRules."""
        place = (record.offset, record.time_ms, record.append_time, record.value)
        copying = bool(self._fold.state.copying)
        folded = self._fold.fold(*place, copy_header(record.headers))
        self.next_offset = record.offset + 1
        self.lines += len(folded)
        if copying or self._fold.state.copying:
            self.foreign.extend(line.position for line in folded if _is_foreign(line))
        if self._fold.touched >= COMMIT_TOUCHED:
            self.commit()
        return folded

    def commit(self) -> None:
        """Put what was folded into the store."""
        batch = self._store.batch()
        for row, data in self._fold.take_changes().rows:
            if data is None:
                batch.delete(FOLD, row)
            else:
                batch.put(FOLD, row, data)
        self._store.write(batch)

    def job_rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and bytes of each job's row as of the last commit, by key."""
        return self._store.scan(FOLD, b"j", b"k")

    async def follow(self, log: Log, topic: str) -> None:
        """Fold what the log has beyond the last folded record. Raises like :func:`records_between`."""
        end = (await log.bounds(topic, self.partition)).end
        async with aclosing(records_between(log, topic, self.partition, self.next_offset, end)) as portions:
            async for records in portions:
                for record in records:
                    self.fold(record)
        self.reached(end)

    def reached(self, end: int) -> None:
        """Everything below ``end`` is folded: offsets have gaps, and the last of them may be no record."""
        self.next_offset = max(self.next_offset, end)
        self.commit()


def _is_foreign(line: Folded) -> bool:
    again = line.outcome == "duplicate"
    return line.outcome == "quarantined" or (line.reason in COPY_REFUSALS and not again)


async def records_between(
    log: Log, topic: str, partition: int, start: int, end: int
) -> AsyncGenerator[list[Record], None]:
    """The records from offset ``start`` up to ``end``, in portions.

    Raises:
        OffsetTrimmed: history is missing.
        LogUnavailable: the log does not give them.
    """
    begin = (await log.bounds(topic, partition)).start
    if start < begin:
        raise OffsetTrimmed(
            f"{topic}-{partition} begins at offset {begin}; {start} is needed: history is missing. What was trimmed is"
            " read from the archive (PENSTOCK_ARCHIVE)."
        )
    next_offset, silent = start, 0
    async with log.tail({(topic, partition): start}) as tail:
        while next_offset < end:
            records = [record for record in await tail.poll(_POLL_MS, _POLL_RECORDS) if record.offset < end]
            if records:
                next_offset, silent = records[-1].offset + 1, 0
                yield records
                continue
            silent += 1
            if silent == _SILENT_POLLS:
                # Offsets have gaps: with the log answering otherwise, what is left were never records.
                if (await log.bounds(topic, partition)).end < end:
                    raise LogUnavailable(f"{topic}-{partition} ends before offset {end}")
                return
