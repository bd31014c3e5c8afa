"""A job as it was: its accepted lines applied again, up to a moment.

What became of each line is known, so nothing is decided anew; each has the effect that it had under the rules of its
time. Bodies are those of the lines themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from msgspec import Raw

from penstock.core.job import Applied
from penstock.core.job_state import Job, Place
from penstock.core.partition import Folded
from penstock.core.rules import RuleSet
from penstock.core.unique import replaced
from penstock.projections.rows import Line
from penstock.projections.views import NO_BODIES, SHOWN_ERRORS, ErrorRow, JobBodies, errors_of
from penstock.schemas import events as ev
from penstock.schemas.ids import job_key


class Life(NamedTuple):
    """A job, its bodies, and its errors as far as they are kept."""

    job: Job
    bodies: JobBodies
    errors: Sequence[ErrorRow]


def life_after(
    key: str, lines: Iterable[Line], decided_by: Callable[[Line], tuple[int, RuleSet]]
) -> Life | None:
    """The job after these lines, in log order; None where there was none.

    Args:
        decided_by: the ordinal and the rules by which a line was decided.
    """
    job: Job | None = None
    bodies = NO_BODIES
    errors: list[ErrorRow] = []
    for line in lines:
        ordinal, rules = decided_by(line)
        event = rules.decode_line(line.data)
        before = job
        job = _after(key, before, event, Place(ordinal, line.time_ms), rules)
        if before is None or job is None:
            bodies, errors = NO_BODIES, []
        bodies = _bodies_after(bodies, event)
        errors += errors_of(
            Folded(line.position, line.time_ms, line.data, event, "applied", "", before, job, key)
        )
    return None if job is None else Life(job, bodies, errors[-SHOWN_ERRORS:])


def _after(key: str, job: Job | None, event: ev.AnyEvent, place: Place, rules: RuleSet) -> Job | None:
    if isinstance(event, ev.Enqueued) and job is not None and job_key(event.tenant, event.job) != key:
        return replaced(job, event, place)
    decision = rules.decide(job, event, place)
    assert isinstance(decision, Applied), f"a line about {key} was accepted, and is not any more: {decision}"
    return decision.job


def _bodies_after(bodies: JobBodies, event: ev.AnyEvent) -> JobBodies:
    match event:
        case ev.Enqueued() if bodies is NO_BODIES:
            return JobBodies(payload=_body(event.payload), metadata=_body(event.metadata))
        case ev.Progressed() if event.checkpoint is not None:
            return bodies._replace(checkpoint=_body(event.checkpoint))
        case ev.Succeeded() if event.result is not ev.NULL:
            return bodies._replace(result=_body(event.result))
        case _:
            return bodies


def _body(raw: Raw) -> bytes | None:
    data = bytes(raw)
    return None if data == b"null" else data
