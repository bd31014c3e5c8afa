"""What can be asked of a job that is there: one row a verb, its request's shape, and the event that it becomes.

A verb is a proposal: whoever folds the log decides whether the job's state allows it. The API answers with that
verdict; who writes such a line to the log reads it in the job's history.
"""

# No `from __future__ import annotations`: msgspec reads these hints at run time.

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct

from penstock.client.enqueued import time_ms
from penstock.client.requests import Moment
from penstock.schemas import events as ev
from penstock.schemas.changes import Changes
from penstock.schemas.errors import InvalidField
from penstock.schemas.events import Count, DurationMs, Priority, Short
from penstock.schemas.names import CheckedName

VERB_AGE_MS = 300_000
"""How long after it was sent a verb may still have an effect."""


class ReasonRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """``reason``: why, for the history; at most 256 characters."""

    reason: Short | None = None


class NoRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing to say besides."""


class RetryRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """``attempts``: how many more. As many as the job began with where it is not given; a job that waits for a retry
    keeps those that it has."""

    attempts: Count | None = None


class RescheduleRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """When to run: at ``run_at`` or ``delay_ms`` from now. A time that has passed is now."""

    run_at: Moment | None = None
    delay_ms: DurationMs | None = None


class PriorityRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The new ``priority``."""

    priority: Priority


class MoveRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Where to: another ``queue``, another ``pool``, or both."""

    queue: CheckedName | None = None
    pool: CheckedName | None = None


Envelope = Mapping[str, Any]
"""What every verb's event has: id, job, tenant, actor, at, of, not_after."""


class Verb(NamedTuple):
    """``event`` makes the event of a request and the envelope; it raises InvalidField."""

    name: str
    request: type[Struct]
    event: Callable[[Any, Envelope], ev.Verb]
    summary: str
    needs_body: bool = False


def _cancelled(asked: ReasonRequest, about: Envelope) -> ev.Verb:
    return ev.CancelRequested(reason=asked.reason or "", **about)


def _retried(asked: RetryRequest, about: Envelope) -> ev.Verb:
    return ev.RetryRequested(attempts=asked.attempts or 0, **about)


def _held(asked: ReasonRequest, about: Envelope) -> ev.Verb:
    return ev.Held(reason=asked.reason or "", **about)


def _unheld(asked: NoRequest, about: Envelope) -> ev.Verb:
    return ev.Unheld(**about)


def _deleted(asked: NoRequest, about: Envelope) -> ev.Verb:
    return ev.Deleted(**about)


def _rescheduled(asked: RescheduleRequest, about: Envelope) -> ev.Verb:
    if (asked.run_at is None) == (asked.delay_ms is None):
        raise InvalidField("run_at: give either run_at or delay_ms", field="run_at")
    return _edited(about, run_at=_ms("run_at", asked.run_at), delay_ms=asked.delay_ms)


def _put_first(asked: PriorityRequest, about: Envelope) -> ev.Verb:
    return _edited(about, priority=asked.priority)


def _moved(asked: MoveRequest, about: Envelope) -> ev.Verb:
    if asked.queue is None and asked.pool is None:
        raise InvalidField("queue: give a queue or a pool", field="queue")
    return _edited(about, queue=asked.queue, pool=asked.pool)


def _ms(field: str, moment: datetime | None) -> int | None:
    return None if moment is None else time_ms(field, moment)


def _edited(about: Envelope, **changes: Any) -> ev.Verb:
    given = {name: UNSET if value is None else value for name, value in changes.items()}
    return ev.Edited(changes=Raw(msgspec.json.encode(Changes(**given))), **about)


VERBS: Mapping[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb("cancel", ReasonRequest, _cancelled, "Cancel: at once while it waits; a running one is told to stop"),
        Verb("retry", RetryRequest, _retried, "Run it again, or make the attempt that it waits for now"),
        Verb("reschedule", RescheduleRequest, _rescheduled, "Let a waiting job run at another time", needs_body=True),
        Verb("priority", PriorityRequest, _put_first, "Give a waiting job another priority", needs_body=True),
        Verb("move", MoveRequest, _moved, "Move a waiting job to another queue or pool", needs_body=True),
        Verb("hold", ReasonRequest, _held, "Keep a waiting job from running"),
        Verb("unhold", NoRequest, _unheld, "Let a held job run again"),
        Verb("delete", NoRequest, _deleted, "Take a job that does not run out of lists and counts"),
    )
}  # fmt: skip
