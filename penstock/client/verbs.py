"""What can be asked of a job that is there: one row a verb, its request's shape, and the event that it becomes.

A verb is a proposal: whoever folds the log decides whether the job's state allows it. The API answers with that
verdict; who writes such a line to the log reads it in the job's history.
"""

# No `from __future__ import annotations`: msgspec reads these hints at run time.

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct

from penstock.client.enqueued import time_ms
from penstock.client.requests import VERB_AGE_MS, Moment
from penstock.schemas import events as ev
from penstock.schemas.changes import Changes
from penstock.schemas.errors import InvalidField
from penstock.schemas.events import Count, DurationMs, Priority, Short
from penstock.schemas.names import CheckedName

__all__ = ["VERBS", "VERB_AGE_MS", "Verb"]


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


class Verb(NamedTuple):
    """``own`` gives what the event has besides its envelope and ``of`` and ``not_after``; it raises InvalidField."""

    name: str
    request: type[Struct]
    event: type[ev.Verb]
    own: Callable[[Any], Mapping[str, Any]]
    summary: str
    needs_body: bool = False


def _reason(asked: ReasonRequest) -> Mapping[str, Any]:
    return {"reason": asked.reason or ""}


def _attempts(asked: RetryRequest) -> Mapping[str, Any]:
    return {"attempts": asked.attempts or 0}


def _nothing(asked: NoRequest) -> Mapping[str, Any]:
    return {}


def _time(asked: RescheduleRequest) -> Mapping[str, Any]:
    if (asked.run_at is None) == (asked.delay_ms is None):
        raise InvalidField("run_at: give either run_at or delay_ms", field="run_at")
    run_at = None if asked.run_at is None else time_ms("run_at", asked.run_at)
    return _changes(run_at=run_at, delay_ms=asked.delay_ms)


def _priority(asked: PriorityRequest) -> Mapping[str, Any]:
    return _changes(priority=asked.priority)


def _place(asked: MoveRequest) -> Mapping[str, Any]:
    if asked.queue is None and asked.pool is None:
        raise InvalidField("queue: give a queue or a pool", field="queue")
    return _changes(queue=asked.queue, pool=asked.pool)


def _changes(**changes: Any) -> Mapping[str, Any]:
    given = {name: UNSET if value is None else value for name, value in changes.items()}
    return {"changes": Raw(msgspec.json.encode(Changes(**given)))}


_ROWS = (
    Verb(
        "cancel", ReasonRequest, ev.CancelRequested, _reason,
        "Cancel a job: at once while it waits; one that runs is told to stop",
    ),
    Verb(
        "retry", RetryRequest, ev.RetryRequested, _attempts,
        "Run a job again, or make the attempt that it waits for now",
    ),
    Verb(
        "reschedule", RescheduleRequest, ev.Edited, _time,
        "Let a waiting job run at another time", needs_body=True,
    ),
    Verb("priority", PriorityRequest, ev.Edited, _priority, "Give a waiting job another priority", needs_body=True),
    Verb("move", MoveRequest, ev.Edited, _place, "Move a waiting job to another queue or pool", needs_body=True),
    Verb("hold", ReasonRequest, ev.Held, _reason, "Keep a waiting job from running"),
    Verb("unhold", NoRequest, ev.Unheld, _nothing, "Let a held job run again"),
    Verb("delete", NoRequest, ev.Deleted, _nothing, "Take a job that does not run out of lists and counts"),
)  # fmt: skip

VERBS: Mapping[str, Verb] = {verb.name: verb for verb in _ROWS}
