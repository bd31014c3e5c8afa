"""Reads of one partition's views. They see what is committed: a whole number of records, the same in every answer."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from penstock.core.job import Job
from penstock.core.rows import decode_job_row, job_row_key
from penstock.core.rules import RuleSet
from penstock.core.unique import decode_key_row, held_by, key_row_key
from penstock.projections.as_of import Life, life_after
from penstock.projections.batch_counts import BatchCounts
from penstock.projections.candidates import Candidates, ListKey
from penstock.projections.filters import Inside, passes_inside, row_test
from penstock.projections.forgotten import ForgottenJobs
from penstock.projections.groups import Groups
from penstock.projections.operated import Operated
from penstock.projections.port import (
    ALL,
    NULL,
    CountRow,
    HistoryItem,
    HistoryPage,
    JobFilter,
    JobsQuery,
    JobView,
    Moment,
    PartitionStatus,
    QuarantinedItem,
    VerdictView,
)
from penstock.projections.rows import (
    ACTIVATED,
    ERRORS,
    HISTORY,
    QUARANTINE,
    REFUSED,
    Line,
    RefusedSummary,
    after_prefix,
    behind,
    decode_errors,
    decode_lines,
    decode_quarantine,
    decode_refused,
    decode_summary,
    decode_version,
    job_prefix,
    number,
)
from penstock.projections.views import JobBodies, event_id_in, event_id_of, history_item, job_view
from penstock.schemas import events as ev
from penstock.schemas.errors import ReadModelUnavailable
from penstock.schemas.ids import job_key
from penstock.schemas.position import ordinal, parse, unpack
from penstock.schemas.times import time_text
from penstock.state.bodies import BODIES, BODY_KINDS, body_row_key
from penstock.state.partition_store import FOLD, PartitionStore

PAGE_BYTES = 8 * 1024 * 1024
"""A page ends early, with a cursor, once what is in it is this large."""

MAX_PACKED = (1 << 55) - 1

_VERBS = frozenset(kind.__name__ for kind in ev.Verb.__subclasses__())

_BEGINS = ev.Enqueued.__name__

_SEARCHED_ROWS = 1_000
"""How far around its supposed place an event is looked for."""


class Asked(NamedTuple):
    """What is asked of an event: where it was written, its job's key, its id, and the unique key of its job, if any."""

    packed: int
    key: str
    event_id: str
    unique_key: str = ""

    def is_first(self, row: bytes) -> bool:
        """Whether it is the first of a row of accepted lines: most are, since most are of jobs that begin."""
        first = decode_lines(row)[0]
        return first.position == self.packed and event_id_in(first.data) == self.event_id


class PartitionQueries:
    """Answers from one partition's store."""

    def __init__(self, store: PartitionStore, groups: Groups) -> None:
        self._store = store
        self._groups = groups
        self._kv = store.store
        self.candidates = Candidates(self._kv, groups)
        self.operated = Operated(self._kv)
        self._batches = BatchCounts(self._kv)
        self.forgotten = ForgottenJobs(self._kv, self.life_at)
        self.partition = store.partition

    # Jobs

    def views(self, keys: Sequence[str]) -> list[JobView | None]:
        """Views of the jobs with these keys, in order; None where there is none."""
        jobs = self.jobs(keys)
        bodies = self._bodies(keys, jobs)
        errors = self._kv.multi_get(ERRORS, [key.encode() for key in keys])
        log = self._store.state
        return [
            None
            if job is None
            else job_view(
                job,
                self.partition,
                found,
                () if failed is None else decode_errors(failed),
                generation=log.generation,
                sealed_at=log.sealed_at,
            )
            for job, found, failed in zip(jobs, bodies, errors, strict=True)
        ]

    def jobs(self, keys: Sequence[str]) -> list[Job | None]:
        """The fold's own rows of these jobs, in order."""
        rows = self._kv.multi_get(FOLD, [job_row_key(key) for key in keys])
        return [None if row is None else decode_job_row(row) for row in rows]

    def jobs_behind(self, key: str, limit: int) -> list[Job]:
        """The fold's rows of the first jobs behind a job's key, by key; of all jobs behind an empty one."""
        start = job_row_key(key)
        rows = self._kv.scan(FOLD, start + b"\0" if key else start, behind(job_row_key("")), limit=limit)
        return [decode_job_row(data) for _, data in rows]

    def insides(self, jobs: Sequence[Job]) -> list[Inside]:
        """What can be searched inside of jobs."""
        keys = [job_key(job.tenant, job.id) for job in jobs]
        payloads = self._kv.multi_get(BODIES, [body_row_key(key, BODY_KINDS[0]) for key in keys])
        errors = self._kv.multi_get(ERRORS, [key.encode() for key in keys])
        return [
            Inside(
                job,
                payload if payload and job.payload_hash else bytes(NULL),
                () if failed is None else decode_errors(failed),
            )
            for job, payload, failed in zip(jobs, payloads, errors, strict=True)
        ]

    def passing(self, jobs: Sequence[Job], wanted: JobFilter) -> list[Job]:
        """Those of them that match; inside is looked only where that is asked for, and the row passes."""
        passed = list(filter(row_test(wanted), jobs))
        if not wanted.looks_inside:
            return passed
        return [inside.job for inside in self.insides(passed) if passes_inside(wanted, inside)]

    def view(self, key: str) -> JobView | None:
        return self.views([key])[0]

    def _bodies(self, keys: Sequence[str], jobs: Sequence[Job | None]) -> list[JobBodies]:
        """Four bodies a job; only those that the job's row has a hash of are asked for."""
        wanted: list[bytes] = []
        places: list[tuple[int, int]] = []
        for index, (key, job) in enumerate(zip(keys, jobs, strict=True)):
            if job is None:
                continue
            hashes = (job.payload_hash, job.metadata_hash, job.checkpoint_hash, job.result_hash)
            for kind, present in enumerate(hashes):
                if present:
                    wanted.append(body_row_key(key, BODY_KINDS[kind]))
                    places.append((index, kind))
        found: list[list[bytes | None]] = [[None] * len(BODY_KINDS) for _ in keys]
        for (index, kind), body in zip(places, self._kv.multi_get(BODIES, wanted), strict=True):
            found[index][kind] = body
        return [JobBodies(*four) for four in found]

    # Lists and counts

    def newest(self, query: JobsQuery, below: ListKey | None, limit: int) -> list[ListKey]:
        """The first ``limit`` matching jobs, newest first, of those that sort after ``below``."""
        return list(islice(self.candidates.of(query.tenant, query.filter, below), limit))

    def number_of(self, tenant: str, wanted: JobFilter) -> int:
        """Exact number of jobs with the state, queue, type and pool that are asked for."""
        if wanted.batch or wanted.workflow:
            rows = self._batches.rows(tenant, wanted)
            return sum(row.jobs for row in rows if wanted.takes(row.state, row.queue, row.pool, row.type))
        return sum(group.jobs for group in self._groups.matching(tenant, wanted))

    def counts(self, tenant: str, among: JobFilter = ALL) -> list[CountRow]:
        """Of all jobs, or among those of one batch or workflow."""
        if among != ALL:
            return list(self._batches.rows(tenant, among))
        return [
            CountRow(group.name.state, group.name.queue, group.name.pool, group.name.job_type, group.jobs)
            for group in self._groups.matching(tenant)
        ]

    # History

    def history(self, key: str, limit: int, cursor: str) -> HistoryPage | None:
        """Lines about a job after the position ``cursor``, in log order. Raises InvalidCursor."""
        after = parse(cursor).packed if cursor else -1
        prefix = job_prefix(key)
        summary, refused = self._refused(prefix)
        items: list[tuple[int, HistoryItem]] = []
        size, more = 0, False
        for item in self._accepted(prefix, after):
            if len(items) == limit or size > PAGE_BYTES:
                more = True
                break
            items.append(item)
            size += len(item[1].event)
        last = items[-1][0] if more else MAX_PACKED
        items.extend(item for item in refused if after < item[0] <= last)
        items.sort(key=lambda item: item[0])
        if not items and not summary.count and self._known_nothing_of(key, prefix):
            return None
        page = [item for _, item in items[:limit]]
        next_cursor = page[-1].position if more or len(items) > limit else None
        return HistoryPage(page, summary.count, next_cursor)

    def _accepted(self, prefix: bytes, after: int) -> Iterator[tuple[int, HistoryItem]]:
        start = prefix if after < 0 else self._row_of(prefix, after)
        for _, data in self._kv.scan(HISTORY, start, after_prefix(prefix)):
            for line in decode_lines(data):
                if line.position > after:
                    yield line.position, self._told(line)

    def _row_of(self, prefix: bytes, position: int) -> bytes:
        """Key of the history row in which ``position`` stands, if it stands in one: its first line may be before it."""
        stop = prefix + number(position + 1)
        for key, _ in self._kv.scan(HISTORY, prefix, stop, reverse=True, limit=1):
            return key
        return stop

    def _refused(self, prefix: bytes) -> tuple[RefusedSummary, list[tuple[int, HistoryItem]]]:
        data = self._kv.get(REFUSED, prefix)
        if data is None:
            return RefusedSummary(), []
        summary = decode_summary(data)
        items: list[tuple[int, HistoryItem]] = []
        for position in summary.positions:
            data = self._kv.get(REFUSED, prefix + number(position))
            if data is not None:
                row = decode_refused(data)
                item = history_item(self.partition, position, row.time_ms, row.line, row.outcome, row.reason)
                items.append((position, item))
        return summary, items

    def _known_nothing_of(self, key: str, prefix: bytes) -> bool:
        if self._kv.get(FOLD, job_row_key(key)) is not None:
            return False
        return next(self._kv.scan(HISTORY, prefix, after_prefix(prefix), limit=1), None) is None

    # Verdicts

    def verdicts(self, asked: Sequence[Asked]) -> list[VerdictView]:
        """What became of events of jobs: of the line at ``packed`` if it is that, else of any line with its id.

        A verb that repeats one already decided has its verdict: done or not is what its sender wants to know. Other
        repeats are told as ``duplicate``. Outcome ``unknown`` where nothing is known of such an event.

        Of a job that did not begin since another holds its unique key, that other job is told.
        """
        rows = self._kv.multi_get(HISTORY, [job_prefix(one.key) + number(one.packed) for one in asked])
        plain = [
            one for one, data in zip(asked, rows, strict=True) if data is not None and one.is_first(data)
        ]
        views = dict(zip(plain, self.views([one.key for one in plain]), strict=True))
        return [
            VerdictView("applied", "", views[one]) if one in views else self._verdict(*one) for one in asked
        ]

    def _verdict(self, packed: int, key: str, event_id: str, unique_key: str) -> VerdictView:
        outcome, reason = self._line_verdict(packed, key, event_id)
        if outcome == "unknown_job" and unique_key:
            return self._turned_away(key, unique_key)
        return VerdictView(outcome, reason, self.view(key))

    def _line_verdict(self, packed: int, key: str, event_id: str) -> tuple[str, str]:
        prefix = job_prefix(key)
        refused = self._refused(prefix)[1]
        named = [(position, item) for position, item in refused if event_id_of(item) == event_id]
        exact = next((item for position, item in named if position == packed), None)
        if exact is not None and not (exact.outcome == "duplicate" and exact.type in _VERBS):
            return exact.outcome, exact.reason
        for item in self._accepted_backwards(prefix, packed):
            if event_id_of(item) == event_id:
                # Of many repeats only the last are kept: another one's line is a first one's all the same.
                repeats = item.type == _BEGINS and parse(item.position).packed != packed
                return ("duplicate", "the job is already there") if repeats else ("applied", "")
        if named:
            first = next((item for _, item in named if item.outcome != "duplicate"), named[0][1])
            return first.outcome, first.reason
        if self._kv.get(FOLD, job_row_key(key)) is None:
            return "unknown_job", "there is no such job"
        return "unknown", "nothing is known of such an event"

    def _turned_away(self, key: str, unique_key: str) -> VerdictView:
        tenant, _, job_id = key.partition("/")
        data = self._kv.get(FOLD, key_row_key(tenant, unique_key))
        if data is None:
            return VerdictView("unknown_job", "there is no such job", None)
        row = decode_key_row(data)
        # More than the key remembers may have been turned away: then whoever has it now is told.
        refused = (verdict.outcome for verdict in row.refused if verdict.event_id == job_id)
        holder = next(refused, row.holder)
        return VerdictView("conflict", held_by(holder), self.view(job_key(tenant, holder)))

    def _accepted_backwards(self, prefix: bytes, packed: int) -> Iterator[HistoryItem]:
        """Accepted lines from the row of ``packed`` backwards, then those behind it."""
        middle = prefix + number(packed + 1)
        before = self._kv.scan(HISTORY, prefix, middle, reverse=True, limit=_SEARCHED_ROWS)
        after = self._kv.scan(HISTORY, middle, after_prefix(prefix), limit=_SEARCHED_ROWS)
        for scan in (before, after):
            for _, data in scan:
                yield from map(self._told, reversed(decode_lines(data)))

    def _told(self, line: Line) -> HistoryItem:
        return history_item(self.partition, line.position, line.time_ms, line.data)

    def life_as_of(self, key: str, moment: int | None, packed: int) -> Life | None:
        """The job as it was once the lines up to a log time (Unix ms), or a packed position, were folded."""
        lines = self._lines_until(job_prefix(key), moment, packed)
        return life_after(key, lines, self._decided_by)

    def view_of(self, life: Life) -> JobView:
        """A job as it was, as it is shown."""
        log = self._store.state
        return job_view(
            life.job,
            self.partition,
            life.bodies,
            life.errors,
            generation=log.generation,
            sealed_at=log.sealed_at,
        )

    def view_as_of(self, key: str, moment: int | None, packed: int) -> JobView | None:
        """As :meth:`life_as_of`, as it is shown."""
        life = self.life_as_of(key, moment, packed)
        return None if life is None else self.view_of(life)

    def life_at(self, key: str, at: Moment) -> Life | None:
        """The job as it was at a moment of the whole log."""
        exactly = at.partition == self.partition
        return self.life_as_of(key, None if exactly else at.time_ms, at.packed)

    def _lines_until(self, prefix: bytes, moment: int | None, packed: int) -> Iterator[Line]:
        stop = after_prefix(prefix) if moment is not None else prefix + number(packed + 1)
        for _, data in self._kv.scan(HISTORY, prefix, stop):
            for line in decode_lines(data):
                if line.time_ms > moment if moment is not None else line.position > packed:
                    return
                yield line

    def _decided_by(self, line: Line) -> tuple[int, RuleSet]:
        """The ordinal and the rules by which a line was decided."""
        if line.ordinal >= 0:
            return line.ordinal, self._store.rules[line.rules]
        log = self._store.state
        if line.position < log.sealed_at:
            raise ReadModelUnavailable(
                "An older version folded this copy of a log, and did not keep what the past needs:"
                " penstock projection rebuild."
            )
        return ordinal(log.generation, line.position), self._rules_at(line.position)

    def _rules_at(self, position: int) -> RuleSet:
        for _, data in self._kv.scan(ACTIVATED, b"", number(position), reverse=True, limit=1):
            return self._store.rules[decode_version(data)]
        return self._store.rules[1]

    def outcomes(self, lines: Sequence[tuple[int, str]], wanted: JobFilter) -> list[str]:
        """For each line (packed position, job key): whether it was applied or refused; empty for a job that is not
        asked for."""
        keys = list(dict.fromkeys(key for _, key in lines))
        there = [job for job in self.jobs(keys) if job is not None]
        matching = {job_key(job.tenant, job.id) for job in self.passing(there, wanted)}
        return [
            "" if key not in matching else "applied" if self._is_accepted(key, packed) else "refused"
            for packed, key in lines
        ]

    def _is_accepted(self, key: str, packed: int) -> bool:
        prefix = job_prefix(key)
        for _, data in self._kv.scan(HISTORY, prefix, prefix + number(packed + 1), reverse=True, limit=1):
            return any(line.position == packed for line in decode_lines(data))
        return False

    # The partition

    def quarantined(self, below: int | None, limit: int) -> list[QuarantinedItem]:
        """The newest undecodable lines below a packed position, newest first."""
        stop = None if below is None else number(below)
        found: list[QuarantinedItem] = []
        for key, data in self._kv.scan(QUARANTINE, b"", stop, reverse=True, limit=limit):
            row = decode_quarantine(data)
            packed = int.from_bytes(key, "big")
            found.append(
                QuarantinedItem(
                    position=str(unpack(self.partition, packed)),
                    at=time_text(row.time_ms),
                    reason=row.reason,
                    message=row.message,
                    sha256=row.sha256.hex(),
                    size_bytes=row.size_bytes,
                    head=base64.b64encode(row.head).decode(),
                )
            )
        return found

    @property
    def text_indexed(self) -> bool:
        """Whether a text index has the partition whole."""
        texts = self.candidates.texts
        return texts is not None and texts.whole

    def status(self, end_offset: int, applied_at_ms: int, *, unindexed_jobs: int = 0) -> PartitionStatus:
        store, state = self._store, self._store.state
        return PartitionStatus(
            partition=self.partition,
            next_offset=store.committed_offset,
            end_offset=max(end_offset, store.committed_offset),
            applied_at_ms=applied_at_ms,
            digest=store.digest,
            digests=store.recorded_digests,
            accepted=state.accepted,
            refused=state.refused,
            unknown_jobs=state.unknown_jobs,
            quarantined=state.quarantined,
            misrouted=state.misrouted,
            epoch=state.epoch,
            leader=state.leader,
            rules=state.rules,
            text_indexed=self.text_indexed,
            unindexed_jobs=unindexed_jobs,
        )
