"""The life of a job: which transitions are legal, and what each event does.

Rules of the machine:

1. Every event is a *proposal*. :func:`apply` accepts it and returns the job's next state, or refuses it and
   returns why. It looks at nothing but the job, the event and the line's place and time, so all who fold the same
   lines agree.
2. :data:`TRANSITIONS` is the whole of what is legal. A job state that is not a key of an event's row refuses the event;
   an accepted event leads to one of the states listed. The documentation's diagram is drawn from this table.
3. Whoever decides on a state says on which. Holder events (``Progressed``, ``Succeeded``, ``Failed``,
   ``Returned``) name the lease. A leader's name the lease, or ``seen``: the position of the job's last accepted
   change, and carry its epoch (checked in :mod:`penstock.core.partition`). Verbs name the ``Enqueued`` they mean.
   A mismatch is ``stale``.
4. An event id that was already accepted is a ``duplicate``: no effect.
5. Attempts are counted at ``Leased``. What gives a job back before it could fail gives the attempt back too.
6. A job's time never runs backwards: it is the later of its last time and the record's.
7. ``Progressed`` changes no position that others compare with (``seen``), or frequent progress would starve them.
8. With a cancel pending, success still wins; every other end of the lease is ``cancelled``.
9. A job that waits for its time is ``scheduled`` before its first attempt counts, and ``retrying`` after.
10. Older rules know less: which types and fields is said in :mod:`penstock.core.rules`, which rows in :data:`SINCE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

from msgspec import Struct

from penstock.core import effects, verbs
from penstock.core.effects import LEASE_ENDS, body_hash, request_hash
from penstock.core.job_state import TERMINAL, WAITING, Job, Place, State, Verdict
from penstock.core.verbs import MAX_VERDICTS
from penstock.schemas import events as ev
from penstock.schemas.changes import decode_changes
from penstock.schemas.ids import home_of, home_of_key

__all__ = [
    "Job", "State", "WAITING", "TERMINAL", "Verdict", "Place",
    "TRANSITIONS", "SINCE", "Table", "apply", "decider", "Applied", "Refused", "Decision", "Decide", "Outcome",
    "LEASE_ENDS", "MAX_VERB_AGE_MS", "MAX_VERDICTS", "body_hash", "request_hash",
]  # fmt: skip

Table = Mapping[str, Mapping[State | None, frozenset[State | None]]]


def _to(*states: State | None) -> frozenset[State | None]:
    return frozenset(states)


TRANSITIONS: Table = {
    "Enqueued": {
        None: _to("scheduled", "ready"),
        # Of another job, which takes the place of this one: see penstock.core.unique.
        "scheduled": _to("cancelled"), "held": _to("cancelled"), "ready": _to("cancelled"),
        "retrying": _to("cancelled"),
    },
    "Due": {"scheduled": _to("ready"), "retrying": _to("ready")},
    "Leased": {"ready": _to("active")},
    "Progressed": {"active": _to("active")},
    "Succeeded": {"active": _to("succeeded", "partial")},
    "Failed": {"active": _to("retrying", "ready", "dead", "cancelled")},
    "Returned": {"active": _to("ready", "cancelled")},
    "Snoozed": {"active": _to("scheduled", "retrying", "ready", "cancelled")},
    "LeaseExpired": {"active": _to("ready", "retrying", "dead", "cancelled")},
    "CancelRequested": {
        "scheduled": _to("cancelled"), "ready": _to("cancelled"), "retrying": _to("cancelled"),
        "held": _to("cancelled"), "active": _to("active"),
    },
    "Cancelled": {"active": _to("cancelled")},
    "RetryRequested": {
        "dead": _to("ready"), "cancelled": _to("ready"), "expired": _to("ready"), "partial": _to("ready"),
        "retrying": _to("ready"),
    },
    "Held": {"scheduled": _to("held"), "ready": _to("held"), "retrying": _to("held")},
    "Unheld": {"held": _to("scheduled", "ready", "retrying")},
    "Edited": {
        "scheduled": _to("scheduled", "ready"), "ready": _to("ready", "scheduled", "retrying"),
        "retrying": _to("retrying", "ready"), "held": _to("held"),
    },
    "Deleted": {
        state: _to("deleted") for state in (
            "scheduled", "held", "ready", "retrying", "succeeded", "partial", "dead", "cancelled", "expired"
        )
    },
    "DeadLettered": {"dead": _to("dead")},
    "Expired": {
        "scheduled": _to("expired"), "held": _to("expired"), "ready": _to("expired"), "retrying": _to("expired"),
    },
    "Forgotten": {
        state: _to(None) for state in ("succeeded", "partial", "dead", "cancelled", "expired", "deleted")
    },
}  # fmt: skip
"""Event type → state before (None: no such job) → states it may lead to (None: the job is gone)."""

SINCE: Mapping[tuple[str, State], int] = {("RetryRequested", "retrying"): 2}
"""Rows (event type, state before) that only these rules and later ones have, where older ones know both."""


Outcome = Literal[
    "applied", "duplicate", "stale", "illegal", "conflict", "too_late", "too_early", "unknown_job"
]


class Applied(Struct, frozen=True, gc=False):
    """The event is accepted; ``job`` is the next state, None when the job is gone."""

    job: Job | None
    outcome: Outcome = "applied"


class Refused(Struct, frozen=True, gc=False):
    """The event has no effect. ``job`` is set only where the refusal itself must be remembered."""

    outcome: Outcome
    reason: str
    job: Job | None = None


Decision = Applied | Refused
Decide = Callable[["Job | None", ev.AnyEvent, Place], Decision]


def decider(rules: Mapping[type, _Rule]) -> Decide:
    """What decides on one event of one job by these rules. Pure and total: any event on any state gives a decision."""

    def apply(job: Job | None, event: ev.AnyEvent, place: Place) -> Decision:
        kind = type(event)
        if kind is ev.Enqueued:
            return _enqueued(job, cast(ev.Enqueued, event), place)
        if job is None:
            return _NO_SUCH_JOB
        event_id = event.id
        if event_id and event_id in (job.last_event, job.lease, job.outcome_id, job.enqueued_id):
            return Refused("duplicate", "already applied")
        rule = rules.get(kind)
        if rule is None:
            return Refused("illegal", f"{kind.__name__} is not in force")
        refusal = rule.refuses(job, event, place)
        if refusal is not None:
            return refusal
        leads_to = rule.row.get(job.state)
        if leads_to is None:
            return _not_now(job, event)
        if kind is ev.Forgotten:
            return Applied(None)
        after = rule.body(effects.next_of(job, event, place), event, place)
        assert after.state in leads_to, f"{kind.__name__} led from {job.state} to {after.state}"
        return Applied(after)

    return apply


def _enqueued(job: Job | None, event: ev.Enqueued, place: Place) -> Decision:
    hashed = event.request_hash or request_hash(event)
    if job is None:
        key = event.concurrency_key
        if key and home_of(event.job) != home_of_key(key):
            return Refused("illegal", f"the home of its concurrency key is {home_of_key(key)}")
        return Applied(effects.enqueued(event, place, hashed))
    if hashed == job.request_hash:
        return Refused("duplicate", "the job is already there")
    return Refused("conflict", "another job with this id is already there")


_NO_SUCH_JOB = Refused("unknown_job", "there is no such job")
_NOT_HELD = Refused("stale", "the lease is no longer held")
_CHANGED = Refused("stale", "the job has changed since")


def _not_the_lease(job: Job, event: Any, place: Place) -> Refused | None:
    """Compare and set for what speaks of a lease."""
    return None if job.lease == event.lease and job.state == "active" else _NOT_HELD


def _not_newer(job: Job, event: ev.Progressed, place: Place) -> Refused | None:
    refusal = _not_the_lease(job, event, place)
    if refusal is not None or event.seq > job.progress_seq:
        return refusal
    outcome: Outcome = "duplicate" if event.seq == job.progress_seq else "stale"
    return Refused(outcome, "progress is no newer than what is known")


def _no_cancel(job: Job, event: ev.Cancelled, place: Place) -> Refused | None:
    refusal = _not_the_lease(job, event, place)
    return Refused("illegal", "nobody asked for a cancel") if refusal is None and not job.cancel else refusal


def _not_seen(job: Job, event: Any, place: Place) -> Refused | None:
    """Compare and set for what speaks of the job's last change."""
    return None if event.seen == job.seen else _CHANGED


def _too_early(job: Job, event: ev.Forgotten, place: Place) -> Refused | None:
    """A job is forgotten only once no late copy of a line about it can still be meant for it."""
    if event.seen != job.seen or job.state not in TERMINAL:
        return _not_seen(job, event, place)
    now_ms = max(job.time_ms, place.time_ms)
    if now_ms < job.finished_at_ms + 2 * MAX_VERB_AGE_MS or any(
        v.not_after_ms >= now_ms for v in job.verdicts
    ):
        return Refused("too_early", "late copies of verbs may still arrive")
    return None


MAX_VERB_AGE_MS = 600_000
"""How far ahead of log time a verb's ``not_after`` may lie."""


def _not_meant(job: Job, event: ev.Verb, place: Place) -> Refused | None:
    """Compare and set for verbs: once only, for this life of the job, and in time."""
    for verdict in job.verdicts:
        if verdict.event_id == event.id:
            return Refused("duplicate", f"already decided: {verdict.outcome}")
    if event.of != job.enqueued_id:
        return Refused("stale", "this job began with another event")
    ahead_ms = event.not_after - max(job.time_ms, place.time_ms)
    if ahead_ms < 0:
        return Refused("too_late", "not_after has passed")
    if ahead_ms > MAX_VERB_AGE_MS:
        # A late copy may come when not_after is near enough; what was refused must stay so. Nobody retries for longer.
        memory = verbs.remember(job, event, "illegal") if ahead_ms <= 2 * MAX_VERB_AGE_MS else None
        return Refused("illegal", f"not_after is more than {MAX_VERB_AGE_MS} ms ahead", memory)
    return None


def _cancels_already(job: Job, event: ev.CancelRequested, place: Place) -> Refused | None:
    refusal = _not_meant(job, event, place)
    return _not_now(job, event) if refusal is None and job.cancel else refusal


def _changes_nothing(job: Job, event: ev.Edited, place: Place) -> Refused | None:
    refusal = _not_meant(job, event, place)
    if refusal is None and decode_changes(event.changes) is None:
        return Refused(
            "illegal", "changes: nothing that can be changed", verbs.remember(job, event, "illegal")
        )
    return refusal


def _not_now(job: Job, event: ev.AnyEvent) -> Refused:
    """The table has no such transition. A verb's refusal is remembered: its late copy must find the same answer."""
    kind, state = type(event).__name__, "being cancelled" if job.cancel else job.state
    memory = verbs.remember(job, event, "illegal") if isinstance(event, ev.Verb) else None
    return Refused("illegal", f"{kind} does not apply to a job that is {state}", memory)


# One rule a type


def _gone(job: Job, event: ev.Forgotten, place: Place) -> Job:
    raise AssertionError("a job that is gone has no next state")


class _Rule(NamedTuple):
    """What one event type needs and does, looked up once a line."""

    row: Mapping[State | None, frozenset[State | None]]
    refuses: Callable[[Job, Any, Place], Refused | None]
    body: Callable[[Job, Any, Place], Job]


_RULES: Mapping[type, _Rule] = {
    kind: _Rule(TRANSITIONS[kind.__name__], refuses, body)
    for kind, refuses, body in (
        (ev.Due, _not_seen, effects.due),
        (ev.Expired, _not_seen, effects.expired),
        (ev.Leased, _not_seen, effects.leased),
        (ev.Progressed, _not_newer, effects.progressed),
        (ev.Succeeded, _not_the_lease, effects.succeeded),
        (ev.Failed, _not_the_lease, effects.failed),
        (ev.Returned, _not_the_lease, effects.returned),
        (ev.Snoozed, _not_the_lease, effects.snoozed),
        (ev.LeaseExpired, _not_the_lease, effects.lease_expired),
        (ev.CancelRequested, _cancels_already, verbs.cancel_requested),
        (ev.RetryRequested, _not_meant, verbs.retry_requested),
        (ev.Held, _not_meant, verbs.hold),
        (ev.Unheld, _not_meant, verbs.unhold),
        (ev.Edited, _changes_nothing, verbs.edited),
        (ev.Deleted, _not_meant, verbs.deleted),
        (ev.Cancelled, _no_cancel, effects.cancelled),
        (ev.DeadLettered, _not_seen, effects.dead_lettered),
        (ev.Forgotten, _too_early, _gone),
    )
}

apply = decider(_RULES)
"""As of the newest rules."""


def _as_of(version: int) -> Mapping[type, _Rule]:
    """The rules without the rows that came later."""
    return {
        kind: rule._replace(
            row={
                state: leads_to
                for state, leads_to in rule.row.items()
                if state is None or SINCE.get((kind.__name__, state), 1) <= version
            }
        )
        for kind, rule in _RULES.items()
    }


apply_1 = decider(_as_of(1))
"""As of rules 1."""
