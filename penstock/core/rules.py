"""What is in force under each version of the rules: types of events, fields of them, and who decides.

A version of Penstock follows every version of the rules up to its newest, and a line is folded under those that were
active where it stands. So a fold never changes its mind about what it has decided, whatever program folds it, and an
older program that meets rules it does not have stops instead of guessing. Under older rules a newer program does as
an older one did: it does not know the types, and ignores the fields, that came later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from penstock.core import job
from penstock.core.job import Decide
from penstock.schemas import events as ev
from penstock.schemas.codec import LineDecoder


class RuleSet:
    """One version of the rules.

    Args:
        in_force: names of the types that may have an effect. A known type that is not in force is refused.
        kinds: the types that are known. A line of another cannot be decoded.
        later_fields: fields, by type, that only later versions know.
        decide: what a line does to its job.
    """

    __slots__ = (
        "decide", "decode_bundle", "decode_line", "in_force", "job_types", "later_fields", "leader_types", "types"
    )  # fmt: skip

    def __init__(
        self,
        in_force: Iterable[str],
        *,
        kinds: Sequence[type[ev.Event]] = get_args(ev.AnyEvent),
        later_fields: Mapping[type[ev.Event], frozenset[str]] | None = None,
        decide: Decide = job.apply,
    ) -> None:
        self.later_fields = later_fields or {}
        decoder = LineDecoder(kinds, later_fields)
        self.in_force = frozenset(in_force)
        self.types = frozenset(kind for kind in kinds if kind.__struct_config__.tag in self.in_force)
        self.job_types = frozenset(kind for kind in self.types if issubclass(kind, ev.JobEvent))
        self.leader_types = frozenset(kind for kind in self.types if kind.leader_only)
        self.decode_line = decoder.decode_line
        self.decode_bundle = decoder.decode_bundle
        self.decide = decide


RulesTable = Mapping[int, RuleSet]
"""Rules by version: 1 and up, without gaps."""

_IN_FORCE_1 = frozenset({
    "Enqueued", "Due", "Leased", "Progressed", "Succeeded", "Failed", "Returned", "LeaseExpired",
    "CancelRequested", "Cancelled", "RetryRequested", "DeadLettered", "Expired", "Forgotten",
    "LeaderAnnounced", "Configured", "Forwarded", "RulesActivated", "CopySealed",
})  # fmt: skip

_IN_FORCE_2 = _IN_FORCE_1 | {"Held", "Unheld", "Edited", "Deleted", "Snoozed"}

_LATER_THAN_4: Mapping[type[ev.Event], frozenset[str]] = {ev.Enqueued: frozenset({"batch", "workflow"})}

_LATER_THAN_3: Mapping[type[ev.Event], frozenset[str]] = {
    ev.Enqueued: frozenset({"concurrency_key"}) | _LATER_THAN_4[ev.Enqueued]
}

_LATER_THAN_2: Mapping[type[ev.Event], frozenset[str]] = {
    ev.Enqueued: frozenset({"unique"}) | _LATER_THAN_3[ev.Enqueued]
}

_LATER_THAN_1: Mapping[type[ev.Event], frozenset[str]] = {
    ev.Succeeded: frozenset({"errors"}),
    ev.Returned: frozenset({"cancel"}),
    ev.Snoozed: frozenset({"reason"}),
    ev.Held: frozenset({"reason"}),
    ev.Deleted: frozenset({"reason"}),
    **_LATER_THAN_2,
}

RULES: RulesTable = {
    1: RuleSet(_IN_FORCE_1, later_fields=_LATER_THAN_1, decide=job.apply_1),
    2: RuleSet(_IN_FORCE_2, later_fields=_LATER_THAN_2),
    3: RuleSet(_IN_FORCE_2, later_fields=_LATER_THAN_3),
    4: RuleSet(_IN_FORCE_2, later_fields=_LATER_THAN_4),
    5: RuleSet(_IN_FORCE_2),
}
"""The rules of this version of Penstock.

2: every verb of a single job, outcomes in part, jobs that are put off. 3: jobs with a unique key. 4: jobs with a
concurrency key. 5: jobs of a batch or a workflow.
"""


def newest(rules: RulesTable) -> int:
    """The highest version that is supported."""
    return max(rules)
