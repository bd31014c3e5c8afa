"""Unique keys: at most one job of a tenant holds a key at a time. Since rules 3.

Jobs of one key share a home, and so a partition: who holds the key is a row of that partition's fold, and decided in
log order like everything else. How a line about a keyed job goes::

    Enqueued ── its home is the key's? ── refused before? ── does another hold the key?
       no: illegal ◀──┘      conflict, as then ◀──┘            │ no: the job begins, and takes the key
                                                               │ yes, and it waits, and `replace`: it is cancelled,
                                                               │     and the job begins in its place, at this line
                                                               └ yes: conflict; remembered, for a late copy

A job holds its key until it is started, until it has ended, or until a time (its ``scope``); a deleted one holds
nothing. One that is asked to run again takes its key again, or is refused while another holds it. A job that still
holds its key, or whose key still remembers whom it refused, is not forgotten.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from penstock.core import effects, verbs
from penstock.core import job as verb_ages
from penstock.core.job import Applied, Decision, Refused
from penstock.core.job_state import TERMINAL, WAITING, Job, KeyedJob, Place, Verdict
from penstock.core.rows import encode_row
from penstock.core.verbs import MAX_VERDICTS
from penstock.core.working import Held, WorkingRows
from penstock.schemas import events as ev
from penstock.schemas.ids import home_of, home_of_key, job_key


class KeyRow(msgspec.Struct, array_like=True):
    """Who took a key last, and whom it was refused to since, oldest first.

    A refusal is a verdict on a job: its outcome is the id of the job that held the key.
    """

    holder: str
    refused: tuple[Verdict, ...] = ()


decode_key_row = msgspec.msgpack.Decoder(KeyRow).decode


def key_row_key(tenant: str, key: str) -> bytes:
    """Where the row of a key stands."""
    return b"u" + job_key(tenant, key).encode("utf-8", "surrogatepass")


def holds(job: Job, now_ms: int) -> bool:
    """Whether the job holds its key, if it has one, at a log time."""
    if not job.unique_key or job.state == "deleted":
        return False
    match job.unique_scope:
        case "until_started":
            return job.state in WAITING and job.leased_at < 0
        case "until_finished":
            return job.state not in TERMINAL
        case "period":
            return now_ms < job.unique_until_ms


def held_by(job_id: str) -> str:
    """Why a job does not get its key, for people."""
    return f"its unique key is held by the job {job_id}"


class Other(NamedTuple):
    """The job that holds the key which a line asks for, and what the line is to it."""

    before: Job
    after: Job
    """The same where it keeps the key."""
    outcome: Literal["applied", "conflict"]
    reason: str = ""


Judged = tuple[Decision, Other | None]


class UniqueKeys:
    """The keys of one partition, as rows among those that its fold works on."""

    def __init__(self, rows: WorkingRows) -> None:
        self._rows = rows

    def judge(self, decision: Applied, before: Job | None, event: ev.AnyEvent, place: Place) -> Judged:
        """What becomes of a line about a keyed job that would else be accepted.

        Args:
            decision: what was decided by the job alone, which is ``before``.
        """
        after = decision.job
        match event:
            case ev.Enqueued() if event.unique is not None and after is not None:
                return self._begin(decision, after, event, event.unique, place)
            case ev.RetryRequested() if before is not None and after is not None:
                return self._run_again(decision, before, after, event), None
            case ev.Forgotten() if before is not None:
                return self._forget(decision, before, place), None
            case _:
                return decision, None

    def _begin(
        self, decision: Applied, job: Job, event: ev.Enqueued, unique: ev.Unique, place: Place
    ) -> Judged:
        refusal = _misses(event, unique, place)
        if refusal is not None:
            return refusal, None
        row = self._row(job.tenant, unique.key)
        if row is None:
            self._put(job, KeyRow(job.id))
            return decision, None
        for verdict in _unexpired(row, place.time_ms):
            if verdict.event_id == job.id:
                return self._conflict(self._held(job.tenant, verdict.outcome), verdict.outcome)
        holder = self._held(job.tenant, row.holder)
        other = None
        if holder.job is not None and holds(holder.job, place.time_ms):
            if unique.on_conflict != "replace" or holder.job.state not in WAITING:
                self._put(job, KeyRow(row.holder, _with_one_more(row, job, unique, place)))
                return self._conflict(holder, row.holder)
            other = Other(holder.job, replaced(holder.job, event, place), "applied")
            self._rows.put(holder, other.after)
        self._put(job, KeyRow(job.id, _unexpired(row, place.time_ms)))
        return decision, other

    @staticmethod
    def _conflict(holder: Held, holder_id: str) -> Judged:
        reason = held_by(holder_id)
        job = holder.job
        return Refused("conflict", reason), None if job is None else Other(job, job, "conflict", reason)

    def _run_again(self, decision: Applied, before: Job, after: Job, event: ev.RetryRequested) -> Decision:
        if not holds(after, after.time_ms):
            return decision
        row = self._row(before.tenant, before.unique_key)
        if row is not None and row.holder != before.id:
            holder = self._held(before.tenant, row.holder).job
            if holder is not None and holds(holder, after.time_ms):
                memory = verbs.remember(before, event, "conflict")
                return Refused("conflict", held_by(row.holder), memory)
        kept = () if row is None else _unexpired(row, after.time_ms)
        self._put(after, KeyRow(after.id, kept))
        return decision

    def _forget(self, decision: Applied, job: Job, place: Place) -> Decision:
        row = self._row(job.tenant, job.unique_key)
        if row is None or row.holder != job.id:
            return decision
        now_ms = max(job.time_ms, place.time_ms)
        if holds(job, now_ms):
            return Refused("too_early", "it still holds its unique key")
        if _unexpired(row, now_ms):
            return Refused("too_early", "late copies of jobs that its unique key refused may still arrive")
        self._rows.set(key_row_key(job.tenant, job.unique_key), None)
        return decision

    # Rows

    def _held(self, tenant: str, job_id: str) -> Held:
        return self._rows.hold(job_key(tenant, job_id))

    def _row(self, tenant: str, key: str) -> KeyRow | None:
        data = self._rows.get(key_row_key(tenant, key))
        return decode_key_row(data) if isinstance(data, bytes) else None

    def _put(self, job: Job, row: KeyRow) -> None:
        self._rows.set(key_row_key(job.tenant, job.unique_key), encode_row(row))


def _misses(event: ev.Enqueued, unique: ev.Unique, place: Place) -> Refused | None:
    """Why a job with such a key cannot begin, whoever holds the key."""
    home = home_of_key(unique.key)
    if home_of(event.job) != home:
        return Refused("illegal", f"the home of its unique key is {home}")
    if unique.scope == "period" and not unique.period_ms:
        return Refused("illegal", "a period of nothing is no scope")
    if unique.not_after and place.time_ms > unique.not_after:
        return Refused("too_late", "not_after has passed")
    return None


def replaced(holder: Job, event: ev.Enqueued, place: Place) -> Job:
    """What is left of a job whose place another took."""
    after = effects.next_of(holder, event, place)
    after.last_event = event.id or event.job
    after.error_code, after.error_message = "replaced", f"the job {event.job} took its place"
    if isinstance(after, KeyedJob):
        # It has given its key away, whatever period that was for.
        after.unique_until_ms = 0
    return effects.finish(after, "cancelled")


def _with_one_more(row: KeyRow, job: Job, unique: ev.Unique, place: Place) -> tuple[Verdict, ...]:
    """The memory of a key that is refused once more: as long as a verb's, and twice that if the line counts so long."""
    least_ms = verb_ages.MAX_VERB_AGE_MS
    until_ms = place.time_ms + max(least_ms, min(unique.not_after - place.time_ms, 2 * least_ms))
    return (*_unexpired(row, place.time_ms), Verdict(job.id, row.holder, until_ms))[-MAX_VERDICTS:]


def _unexpired(row: KeyRow, now_ms: int) -> tuple[Verdict, ...]:
    return tuple(verdict for verdict in row.refused if verdict.not_after_ms >= now_ms)
