"""Folding one partition of the jobs log: from raw records to the state of its jobs, and the digest that proves it.

:class:`PartitionFold` is what everybody runs: orchestrators to decide, projections to answer, ``verify`` to compare. It
reads nothing but the partition's own lines and its own rows (:mod:`penstock.core.rows`). Rows are bytes under bytes, so
that the digest (the sum, mod 2^256, of SHA-256 over every row) is the same in every folder at the same offset, however
the lines were batched. How a line goes::

    decode ──▶ type in force? ──▶ leader's epoch? ──▶ its partition? ──▶ first copy? ──▶ job.apply ──▶ applied
      │              │                  │                  │                 │               │
      ▼              ▼                  ▼                  ▼                 ▼               ▼
    quarantined   illegal             stale            misrouted         duplicate   stale, illegal, duplicate, ...

Each line comes to one of these ends, and what is refused never stops what is behind it. Only two things stop a fold:
rules that this version does not have (:class:`~penstock.schemas.errors.UnknownRules`), since to guess would be to
differ from everybody else for ever; and what is no fact of the log, such as a lack of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import Literal, get_args

import msgspec

from penstock.core.job import Applied, Job, Place, apply
from penstock.core.rows import Changes, PartitionState, Quarantined, position_row_key
from penstock.core.working import WorkingRows
from penstock.schemas import events as ev
from penstock.schemas.codec import decode_bundle, decode_line, split
from penstock.schemas.errors import InvalidCursor, Undecodable, UnknownRules
from penstock.schemas.ids import job_key, partition_of
from penstock.schemas.limits import MAX_LINE_BYTES
from penstock.schemas.position import pack, parse

RULES: Mapping[int, frozenset[str]] = {
    1: frozenset(
        {
            "Enqueued", "Due", "Leased", "Progressed", "Succeeded", "Failed", "Returned", "LeaseExpired",
            "CancelRequested", "Cancelled", "RetryRequested", "DeadLettered", "Expired", "Forgotten",
            "LeaderAnnounced", "Configured", "Forwarded", "RulesActivated",
        }
    )
}  # fmt: skip
"""Event types in force, by rules version. A line of another type is refused until its version is activated."""

_TYPES_IN_FORCE: Mapping[int, frozenset[type]] = {
    version: frozenset(kind for kind in get_args(ev.AnyEvent) if kind.__name__ in names)
    for version, names in RULES.items()
}

FORWARD_ROOM_BYTES = 4_096
"""What a forwarded copy may be longer than the line, for its origin and defaults: it must be a line itself."""

LineOutcome = Literal[
    "applied",
    "duplicate",
    "stale",
    "illegal",
    "conflict",
    "too_late",
    "too_early",
    "unknown_job",
    "misrouted",
    "quarantined",
]


class Folded(msgspec.Struct, gc=False):
    """One line after folding: what it was, what became of it, and its job before and after."""

    position: int
    """Packed."""
    time_ms: int
    """The log's time of its record, Unix ms."""
    line: bytes
    event: ev.AnyEvent | None
    """None when it could not be decoded."""
    outcome: LineOutcome
    reason: str = ""
    """Why it had no effect, for people."""
    before: Job | None = None
    after: Job | None = None
    """The same object as ``before`` when the line changed nothing."""
    key: str = ""
    """Of its job; empty for a line that is about no job."""


class PartitionFold:
    """Folds the records of one partition in order. Not thread-safe; owns no disk.

    Args:
        partition: number of the partition, below ``partitions``.
        partitions: how many the jobs topic has.
        read: the stored value of a row key, as of the last changes taken; None where there is none.
        digest: the digest of the stored rows.

    Raises:
        UnknownRules: the stored rows were folded under rules that this version does not have.
    """

    def __init__(
        self, partition: int, partitions: int, read: Callable[[bytes], bytes | None], digest: int = 0
    ) -> None:
        self.partition = partition
        self.partitions = partitions
        self._rows = WorkingRows(read, digest)
        if self.state.rules not in RULES:
            raise UnknownRules(f"the state follows rules {self.state.rules}; this version knows {max(RULES)}")

    # Reading

    @property
    def state(self) -> PartitionState:
        """The partition as a whole, as of the last folded line. Not to be changed."""
        return self._rows.state

    def job(self, key: str) -> Job | None:
        """The job as of the last folded line."""
        return self._rows.job(key)

    # Folding

    def fold(self, offset: int, time_ms: int, append_time: bool, value: bytes) -> list[Folded]:
        """Fold one record; one result a line that is not blank.

        Raises:
            UnknownRules: the record activates rules that this version does not have.
        """
        if append_time:
            self.state.time_ms = time_ms
        else:
            time_ms = self.state.time_ms
        first = pack(offset, 0)
        lines = split(value)
        events = decode_bundle(value, lines)
        if events is not None:
            return [
                self._event(first + number, time_ms, line, event)
                for number, (line, event) in enumerate(zip(lines, events, strict=True))
            ]
        return [
            self._line(first + number, time_ms, line)
            for number, line in enumerate(lines)
            if line and not line.isspace()
        ]

    def _line(self, position: int, time_ms: int, line: bytes) -> Folded:
        try:
            event = decode_line(line)
        except Undecodable as error:
            self.state.quarantined += 1
            row = position_row_key(b"q", position)
            self._rows.set(row, Quarantined(error.reason, sha256(line).digest(), len(line)))
            return Folded(position, time_ms, line, None, "quarantined", f"{error.reason}: {error.message}")
        return self._event(position, time_ms, line, event)

    def _event(self, position: int, time_ms: int, line: bytes, event: ev.AnyEvent) -> Folded:
        folded = Folded(position, time_ms, line, event, "illegal")
        state = self._rows.state
        self._decide(event, folded, state)
        if folded.outcome == "applied":
            state.accepted += 1
        else:
            state.refused += 1
        return folded

    def _decide(self, event: ev.AnyEvent, folded: Folded, state: PartitionState) -> None:
        kind = type(event)
        if kind not in _TYPES_IN_FORCE[state.rules]:
            folded.reason = f"{kind.__name__} is not in force under rules {state.rules}"
        elif not event.id and kind is not ev.Enqueued:
            folded.reason = "the event has no id"
        elif event.leader_only and (event.epoch != state.epoch or event.epoch < 0):
            folded.outcome, folded.reason = "stale", "written by one that does not lead"
        elif isinstance(event, ev.JobEvent):
            self._job_event(event, folded)
        else:
            self._partition_event(event, folded)

    def _job_event(self, event: ev.AnyEvent, folded: Folded) -> None:
        key = folded.key = job_key(event.tenant, event.job)
        held = self._rows.hold(key)
        before = held.job
        if before is None and self._elsewhere(event, folded):
            return
        if event.origin and not self._first_copy(event.origin, folded):
            return
        folded.before = folded.after = before
        decision = apply(before, event, Place(folded.position, folded.time_ms))
        folded.outcome = decision.outcome
        if isinstance(decision, Applied):
            folded.after = decision.job
            self._rows.put(held, decision.job)
            return
        folded.reason = decision.reason
        if decision.job is not None:
            folded.after = decision.job
            self._rows.put(held, decision.job)
        elif decision.outcome == "unknown_job":
            self.state.unknown_jobs += 1

    def _elsewhere(self, event: ev.AnyEvent, folded: Folded) -> bool:
        """Whether the line belongs to another partition; then it is kept to be forwarded, if it may be."""
        target = partition_of(event.job, self.partitions)
        if target == self.partition:
            return False
        if event.leader_only or event.origin:
            folded.reason = f"belongs to partition {target}, and such a line is never forwarded"
            return True
        if len(folded.line) > MAX_LINE_BYTES - FORWARD_ROOM_BYTES:
            folded.reason = f"belongs to partition {target}, and is too long to be forwarded"
            return True
        folded.outcome, folded.reason = "misrouted", f"belongs to partition {target}"
        self.state.misrouted += 1
        self._rows.set(position_row_key(b"m", folded.position), folded.line)
        return True

    def _first_copy(self, origin: str, folded: Folded) -> bool:
        try:
            source = parse(origin)
        except InvalidCursor:
            folded.reason = "origin is not a position"
            return False
        if source.partition >= self.partitions or source.partition == self.partition:
            folded.reason = "origin is not another partition of this log"
            return False
        if source.packed <= self.state.origins.get(source.partition, -1):
            folded.outcome, folded.reason = "duplicate", "already forwarded"
            return False
        self.state.origins = {**self.state.origins, source.partition: source.packed}
        return True

    def _partition_event(self, event: ev.AnyEvent, folded: Folded) -> None:
        state = self.state
        match event:
            case ev.LeaderAnnounced():
                if event.supersedes != state.epoch:
                    folded.outcome, folded.reason = "stale", "the epoch to supersede is another"
                    return
                state.epoch = folded.position
                state.leader, state.incarnation = event.orchestrator, event.incarnation
            case ev.Configured():
                if event.previous != state.config_position or event.control_position <= event.previous:
                    folded.outcome, folded.reason = "stale", "configuration is copied in order, without gaps"
                    return
                state.config_position = event.control_position
            case ev.Forwarded():
                row = position_row_key(b"m", max(0, event.line_position))
                if event.line_position < 0 or self._rows.get(row) is None:
                    folded.outcome, folded.reason = "duplicate", "nothing waits to be forwarded from there"
                    return
                self._rows.set(row, None)
                state.misrouted -= 1
            case ev.RulesActivated():
                if event.version != state.rules + 1:
                    folded.outcome, folded.reason = "stale", "rules are activated one by one"
                    return
                if event.version not in RULES:
                    raise UnknownRules(
                        f"the log activates rules {event.version}; this version knows {max(RULES)}"
                    )
                state.rules = event.version
            case _:
                folded.reason = "not an event of a partition"
                return
        folded.outcome = "applied"

    # Changes

    @property
    def touched(self) -> int:
        """How many rows have changed since changes were last taken."""
        return self._rows.changed

    def touched_jobs(self) -> Iterable[tuple[str, Job | None]]:
        """Keys and states of the jobs changed since changes were last taken."""
        return self._rows.changed_jobs()

    def take_changes(self) -> Changes:
        """The rows changed since the last call, each once, with the digest they lead to. The caller must store them."""
        return self._rows.take()
