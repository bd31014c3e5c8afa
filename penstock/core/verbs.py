"""What the verbs do to a job: people's and programs' wishes about it, and the memory of what became of them.

As in :mod:`penstock.core.effects`: a job is changed in place, and is always the copy that ``next_of`` made.
"""

from __future__ import annotations

from msgspec import UNSET

from penstock.core.effects import finish, make_ready, unexpired, wait_until
from penstock.core.job_state import Job, Place, Verdict, copy_of
from penstock.schemas import events as ev
from penstock.schemas.changes import Changes, decode_changes

MAX_VERDICTS = 64
"""Verdicts kept at once; beyond, the oldest goes (a flood of verbs on one job must not grow its row without end)."""


def remember(job: Job, event: ev.Verb, outcome: str) -> Job:
    """The job with one more verdict, and without those of which no copy can have an effect any more."""
    kept = unexpired(job)
    if len(kept) >= MAX_VERDICTS:
        # A refused verb that strikes late does less harm than an accepted one that strikes twice.
        kept.remove(next((verdict for verdict in kept if verdict.outcome != "applied"), kept[0]))
    after = copy_of(job)
    after.verdicts = (*kept, Verdict(event.id, outcome, event.not_after))
    return after


def cancel_requested(job: Job, event: ev.CancelRequested, place: Place) -> Job:
    job = remember(job, event, "applied")
    if job.state == "active":
        job.cancel = event.id
        return job
    return finish(job, "cancelled")


def retry_requested(job: Job, event: ev.RetryRequested, place: Place) -> Job:
    job = remember(job, event, "applied")
    if job.state == "retrying":
        if event.attempts:
            job.attempts_allowed = job.attempt + event.attempts
        return make_ready(job, place)
    job.attempts_allowed = job.attempt + (event.attempts or job.max_attempts)
    job.finished_at_ms = 0
    job.expires_at_ms = 0
    job.dead_lettered = False
    job.error_code = job.error_message = ""
    return make_ready(job, place)


def hold(job: Job, event: ev.Held, place: Place) -> Job:
    job = remember(job, event, "applied")
    job.state = "held"
    return job


def unhold(job: Job, event: ev.Unheld, place: Place) -> Job:
    job = remember(job, event, "applied")
    if job.due_at_ms:
        return wait_until(job, job.due_at_ms, place)
    job.state = "ready"
    return job


def edited(job: Job, event: ev.Edited, place: Place) -> Job:
    job = remember(job, event, "applied")
    changes = decode_changes(event.changes)
    assert changes is not None
    if changes.priority is not UNSET:
        job.priority = changes.priority
    if changes.queue is not UNSET:
        job.queue = changes.queue
    if changes.pool is not UNSET:
        job.pool = changes.pool
    if changes.expires_at is not UNSET:
        job.expires_at_ms = changes.expires_at
    if changes.timeout_ms is not UNSET:
        job.timeout_ms = changes.timeout_ms
    if changes.max_attempts is not UNSET:
        job.max_attempts = changes.max_attempts
        job.attempts_allowed = max(job.attempt + 1, changes.max_attempts)
    return _reschedule(job, changes, place) if changes.reschedules else job


def _reschedule(job: Job, changes: Changes, place: Place) -> Job:
    run_at = 0 if changes.run_at is UNSET else changes.run_at
    delay_ms = 0 if changes.delay_ms is UNSET else changes.delay_ms
    due_at_ms = max(run_at, job.time_ms + delay_ms)
    job.scheduled_at_ms = due_at_ms
    if job.state == "held":
        job.due_at_ms = due_at_ms
    elif job.state != "ready" or due_at_ms > job.time_ms:
        return wait_until(job, due_at_ms, place)
    return job


def deleted(job: Job, event: ev.Deleted, place: Place) -> Job:
    job = remember(job, event, "applied")
    if not job.finished_at_ms:
        return finish(job, "deleted")
    job.state = "deleted"
    return job
