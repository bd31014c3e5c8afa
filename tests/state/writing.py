"""Writes one partition's log as a leader, workers and clients would, and now and then as nobody should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Raw

from penstock.core.job import TERMINAL, Job
from penstock.core.partition import PartitionFold
from penstock.core.rules import RULES, newest
from penstock.log.port import Record
from penstock.schemas import events as ev
from penstock.schemas.codec import bundle, encode_line
from penstock.schemas.ids import job_key

TOPIC = "penstock.jobs"
START_MS = 1_700_000_000_000
TYPES = ("resize", "report", "mail")
QUEUES = ("default", "bulk")
TAGS = ("red", "big")

Op = tuple[str, int, int]
"""What to write, about which job (a small number), and a number that varies it."""

OPS = (
    "enqueue", "enqueue", "lease", "lease", "succeed", "fail", "progress", "give_back", "expire_lease", "cancel",
    "retry", "forget", "repeat", "garbage", "stranger", "end_record", "end_record", "age", "gap",
)  # fmt: skip


class Writer:
    """Appends lines to a record, records to a log, and folds along so that it knows what may be written."""

    def __init__(self, *, partition: int = 0, partitions: int = 1, topic: str = TOPIC) -> None:
        self.records: list[Record] = []
        self.time_ms = START_MS
        self._topic = topic
        self._partition = partition
        self._offset = 0
        self._lines: list[bytes] = []
        self._last_line = b""
        self._serial = 0
        self._fold = PartitionFold(partition, partitions, lambda _: None)
        self.announce()

    def announce(self) -> None:
        epoch = self._fold.state.epoch
        self.write(
            ev.LeaderAnnounced(id=self._id("lead"), orchestrator="o", incarnation="i", supersedes=epoch)
        )
        self.end_record()

    def activate_rules(self) -> None:
        """All that there are."""
        for version in range(2, newest(RULES) + 1):
            epoch = self._fold.state.epoch
            self.write(ev.RulesActivated(id=self._id("rules"), epoch=epoch, version=version))
            self.end_record()

    def write(self, event: ev.Event | bytes) -> None:
        self._last_line = event if isinstance(event, bytes) else encode_line(event)
        self._lines.append(self._last_line)

    def end_record(self) -> None:
        """Whoever decides after this has folded it."""
        if not self._lines:
            return
        value = bundle(self._lines)
        record = Record(self._topic, self._partition, self._offset, self.time_ms, True, None, value)
        self._fold.fold(record.offset, record.time_ms, True, value)
        self.records.append(record)
        self._offset += 1
        self._lines = []

    def play(self, ops: Sequence[Op]) -> list[Record]:
        for name, number, variant in ops:
            self.time_ms += variant % 50
            getattr(self, f"_{name}")(f"job-{number}", variant)
        self.end_record()
        return self.records

    def job(self, job_id: str) -> Job | None:
        return self._fold.job(job_key("default", job_id))

    # What is asked for

    def enqueue(self, job_id: str, **fields: Any) -> str:
        """Returns the event's id."""
        fields = {"id": f"enq.{job_id}", "job_type": "resize", **fields}
        self.write(ev.Enqueued(job=job_id, **fields))
        return str(fields["id"])

    def lease(self, job_id: str, worker: str = "w1") -> str:
        """Lease a job as it is after the last ended record. Returns the lease."""
        self.end_record()
        job = self.job(job_id)
        assert job is not None
        lease = self._id("lease")
        self.write(
            ev.Leased(
                id=lease, job=job_id, epoch=self._fold.state.epoch, worker=worker, attempt=job.attempt + 1,
                lease_ms=30_000, seen=job.seen,
            )
        )  # fmt: skip
        return lease

    def run(self, job_id: str, result: bytes = b"null") -> None:
        """Lease a job and let it succeed."""
        lease = self.lease(job_id)
        self.write(ev.Succeeded(id=f"{lease}.s", job=job_id, lease=lease, result=Raw(result)))

    def fail(
        self, job_id: str, code: str = "boom", *, retryable: bool = True, details: bytes = b"null"
    ) -> None:
        """Lease a job and let it fail."""
        lease = self.lease(job_id)
        error = ev.JobError(code, f"{code} happened", Raw(details), retryable)
        self.write(ev.Failed(id=f"{lease}.f", job=job_id, lease=lease, error=error, retry_after_ms=0))

    def forget(self, job_id: str) -> None:
        """Make a finished job leave the fold."""
        self.end_record()
        job = self.job(job_id)
        assert job is not None
        self.time_ms += 3_600_000
        self.write(
            ev.Forgotten(id=self._id("forget"), job=job_id, epoch=self._fold.state.epoch, seen=job.seen)
        )

    # Random play: each may turn out illegal, late or stale, as on a real log

    def _enqueue(self, job_id: str, variant: int) -> None:
        self.enqueue(
            job_id,
            job_type=TYPES[variant % 3],
            queue=QUEUES[variant % 2],
            payload=Raw(b"null" if variant % 5 == 0 else b'{"n":%d}' % variant),
            metadata=Raw(b'{"m":1}' if variant % 4 == 0 else b"null"),
            max_attempts=1 + variant % 3,
            tags=TAGS[: variant % 3],
            batch=("", "b1", "b2")[variant % 3],
            workflow=("", "w")[variant % 2],
        )

    def _lease(self, job_id: str, variant: int) -> None:
        if self.job(job_id) is not None:
            self.lease(job_id)

    def _held(self, job_id: str, write: Callable[[str], ev.Event]) -> None:
        job = self.job(job_id)
        if job is not None and job.lease:
            self.write(write(job.lease))

    def _succeed(self, job_id: str, variant: int) -> None:
        body = Raw(b"null" if variant % 2 else b'"done"')
        self._held(job_id, lambda lease: ev.Succeeded(id=f"{lease}.s", job=job_id, lease=lease, result=body))

    def _fail(self, job_id: str, variant: int) -> None:
        error = ev.JobError("boom", "it broke", Raw(b'{"n":1}'), variant % 3 != 0)
        self._held(
            job_id,
            lambda lease: ev.Failed(id=f"{lease}.f", job=job_id, lease=lease, error=error, retry_after_ms=0),
        )

    def _progress(self, job_id: str, variant: int) -> None:
        checkpoint = (None, Raw(b"null"), Raw(b'{"at":%d}' % variant))[variant % 3]
        self._held(
            job_id,
            lambda lease: ev.Progressed(
                id=self._id("p"), job=job_id, lease=lease, seq=1 + variant, percent=1.0, checkpoint=checkpoint
            ),
        )

    def _give_back(self, job_id: str, variant: int) -> None:
        self._held(job_id, lambda lease: ev.Returned(id=f"{lease}.r", job=job_id, lease=lease))

    def _expire_lease(self, job_id: str, variant: int) -> None:
        epoch = self._fold.state.epoch - (variant % 7 == 0)
        self._held(
            job_id,
            lambda lease: ev.LeaseExpired(
                id=f"{lease}.x", job=job_id, lease=lease, epoch=epoch, refund=variant % 2 == 0
            ),
        )

    def _verb(self, kind: type[ev.Verb], job_id: str) -> None:
        self.write(kind(id=self._id("verb"), job=job_id, of=f"enq.{job_id}", not_after=self.time_ms + 60_000))

    def _cancel(self, job_id: str, variant: int) -> None:
        self._verb(ev.CancelRequested, job_id)

    def _retry(self, job_id: str, variant: int) -> None:
        self._verb(ev.RetryRequested, job_id)

    def _forget(self, job_id: str, variant: int) -> None:
        self.end_record()
        job = self.job(job_id)
        if job is not None and job.state in TERMINAL:
            self.forget(job_id)

    def _repeat(self, job_id: str, variant: int) -> None:
        if self._last_line:
            self.write(self._last_line)

    def _garbage(self, job_id: str, variant: int) -> None:
        self.write((b"{", b"\xff\xfe", b'{"type":"Nonsense"}', b'{"type":"Due"}', b"[" * 200)[variant % 5])

    def _stranger(self, job_id: str, variant: int) -> None:
        self.write(ev.Succeeded(id=self._id("s"), job=f"{job_id}-unknown", lease="none"))

    def _end_record(self, job_id: str, variant: int) -> None:
        self.end_record()

    def _age(self, job_id: str, variant: int) -> None:
        self.end_record()
        self.time_ms += 1_800_000

    def _gap(self, job_id: str, variant: int) -> None:
        """Offsets that never were records, sometimes over a digest boundary."""
        self.end_record()
        self._offset += variant * 20

    def _id(self, prefix: str) -> str:
        self._serial += 1
        return f"{prefix}-{self._serial}"
