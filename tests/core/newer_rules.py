"""Rules as the next version of Penstock may have them: one more type, and one more field of a type that is there.

What an older program does with them is what :data:`penstock.core.rules.RULES` does: it knows neither.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from penstock.core.effects import next_of
from penstock.core.job import WAITING, Applied, Decide, Decision, Job, Place, Refused, apply
from penstock.core.rules import RULES, RuleSet, RulesTable, newest
from penstock.schemas import events as ev


class PausingFailed(ev.Failed, frozen=True, kw_only=True, omit_defaults=True, tag="Failed"):
    """``Failed`` with a field more: how long to pause, whatever else is said."""

    pause_ms: ev.DurationMs | None = None


class Bumped(ev.Verb, frozen=True, kw_only=True, omit_defaults=True):
    """A new type: a waiting job becomes critical."""


_OLD = get_args(ev.AnyEvent)
_KINDS = tuple(PausingFailed if kind is ev.Failed else kind for kind in _OLD)


def _as_before(event: Any, **changes: Any) -> Any:
    """A ``Failed`` as the older program has it, for all its rules are found by type."""
    if not isinstance(event, PausingFailed):
        return event
    fields = {name: getattr(event, name) for name in ev.Failed.__struct_fields__}
    return ev.Failed(**fields | changes)


def _as_it_was(decide: Decide) -> Decide:
    return lambda job, event, place: decide(job, _as_before(event), place)


def _decide(job: Job | None, event: Any, place: Place) -> Decision:
    if isinstance(event, Bumped) and job is not None:
        if job.last_event == event.id:
            return Refused("duplicate", "already applied")
        if job.state not in WAITING:
            return Refused("illegal", "it does not wait")
        return Applied(msgspec.structs.replace(next_of(job, event, place), priority="critical"))
    pause_ms = getattr(event, "pause_ms", None)
    return apply(job, _as_before(event, **({} if pause_ms is None else {"retry_after_ms": pause_ms})), place)


def activations(until: int, epoch: int = 0) -> list[ev.RulesActivated]:
    """What a leader writes to bring a partition from rules 1 to these."""
    return [
        ev.RulesActivated(id=f"rules.{version}", epoch=epoch, version=version)
        for version in range(2, until + 1)
    ]


NEXT = newest(RULES) + 1
"""The version that the next program brings."""

NEWER: RulesTable = {
    version: RuleSet(
        rules.in_force,
        kinds=_KINDS,
        later_fields={**rules.later_fields, PausingFailed: frozenset({"pause_ms"})},
        decide=_as_it_was(rules.decide),
    )
    for version, rules in RULES.items()
} | {NEXT: RuleSet(RULES[newest(RULES)].in_force | {"Bumped"}, kinds=(*_KINDS, Bumped), decide=_decide)}
