"""The read model by brute force: everything folded in memory, every answer a scan of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from penstock.core.job import Job
from penstock.core.partition import Folded, PartitionFold
from penstock.log.port import Record
from penstock.log.store_memory import MemoryStore
from penstock.projections.projector import Projector
from penstock.projections.queries import PartitionQueries
from penstock.projections.reads import LocalReads
from penstock.projections.rows import FAMILIES
from penstock.schemas.ids import job_key
from penstock.state.partition_store import PartitionStore, StoreIdentity
from tests.state.writing import TOPIC

IDENTITY = StoreIdentity("memory", TOPIC, 0, 1)


class Model:
    """One partition, folded whole."""

    def __init__(self, records: Iterable[Record]) -> None:
        fold = PartitionFold(0, 1, lambda _: None)
        self.lines: list[Folded] = []
        for record in records:
            self.lines.extend(fold.fold(record.offset, record.time_ms, True, record.value))
        self.jobs: dict[str, Job] = {
            key: job for key, job in dict(fold.touched_jobs()).items() if job is not None
        }

    def listed(self, state: str = "", queue: str = "", job_type: str = "") -> list[str]:
        """Job ids, newest first."""
        found = [
            job
            for job in self.jobs.values()
            if state in ("", job.state) and queue in ("", job.queue) and job_type in ("", job.job_type)
        ]
        return [job.id for job in sorted(found, key=lambda job: (job.created_at_ms, job.id), reverse=True)]

    def counts(self) -> dict[tuple[str, str, str, str], int]:
        return dict(Counter((job.state, job.queue, job.pool, job.job_type) for job in self.jobs.values()))

    def accepted(self, job_id: str) -> list[Folded]:
        key = job_key("default", job_id)
        return [line for line in self.lines if line.key == key and line.outcome == "applied"]


class OnePartition:
    """A projector in memory and its reads."""

    def __init__(self, store: MemoryStore | None = None, *, indexed: bool = False) -> None:
        self.kv = store or MemoryStore(("fold", "bodies", "meta", *FAMILIES))
        self.store = PartitionStore(self.kv, IDENTITY)
        self.projector = Projector(self.store, indexed=indexed)
        self.queries = PartitionQueries(self.store, self.projector.groups)
        self.reads = LocalReads({0: self.queries}, 1)

    def fold(self, records: Iterable[Record], commit_after: int = 1) -> None:
        for number, record in enumerate(records, 1):
            self.projector.fold(record)
            if number % commit_after == 0:
                self.projector.commit()
        self.projector.commit()

    def reopened(self, *, indexed: bool = False) -> OnePartition:
        """As found by a process that starts after this one was killed."""
        return OnePartition(MemoryStore.load(self.kv.dump()), indexed=indexed)
