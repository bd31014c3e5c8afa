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

While a copy of another log is written into the partition, its lines are decided by the time and place that they had
there (:mod:`penstock.core.copying`), and by their jobs alone: what the source's partition refused was not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Literal

import msgspec

from penstock.core import copying
from penstock.core.job import Applied, Job, Place
from penstock.core.rows import Changes, PartitionState, Quarantined, position_row_key
from penstock.core.rules import RULES, RuleSet, RulesTable, newest
from penstock.core.unique import Other, UniqueKeys
from penstock.core.working import Held, ReadMany, WorkingRows
from penstock.schemas import events as ev
from penstock.schemas.codec import split
from penstock.schemas.errors import InvalidCursor, Undecodable, UnknownRules
from penstock.schemas.ids import job_key, partition_of
from penstock.schemas.limits import MAX_LINE_BYTES
from penstock.schemas.position import ordinal, pack, parse

FORWARD_ROOM_BYTES = 4_096
"""What a forwarded copy may be longer than the line, for its origin and defaults: it must be a line itself."""

NOT_A_POSITION = "origin is not a position"
NOT_ANOTHER = "origin is not another partition of this log"
ALREADY_FORWARDED = "already forwarded"

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
    """The log's time of its record, Unix ms; of a copied line, that of the record in which it first stood."""
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
    copied: tuple[int, int] | None = None
    """Of a copied line: the ordinal, and the version of the rules, by which it was decided."""
    also: Folded | None = None
    """The same line as another job has it: the one whose unique key it asks for. That job was cancelled, for this one
    took its place, or keeps the key, and the line was refused."""


class PartitionFold:
    """Folds the records of one partition in order. Not thread-safe; owns no disk.

    Args:
        partition: number of the partition, below ``partitions``.
        partitions: how many the jobs topic has.
        read: the stored value of a row key, as of the last changes taken; None where there is none.
        digest: the digest of the stored rows.
        rules: those that this program has.
        read_many: as ``read``, for many keys in ascending order.

    Raises:
        UnknownRules: the stored rows were folded under rules that this program does not have.
    """

    def __init__(
        self,
        partition: int,
        partitions: int,
        read: Callable[[bytes], bytes | None],
        digest: int = 0,
        rules: RulesTable = RULES,
        read_many: ReadMany | None = None,
    ) -> None:
        self.partition = partition
        self.partitions = partitions
        self._rows = WorkingRows(read, digest, read_many)
        self._keys = UniqueKeys(self._rows)
        self._table = rules
        self._rules = self._rules_of(self.state.rules)
        self._base = ordinal(self.state.generation, 0)

    # Reading

    @property
    def state(self) -> PartitionState:
        """The partition as a whole, as of the last folded line. Not to be changed."""
        return self._rows.state

    def job(self, key: str) -> Job | None:
        """The job as of the last folded line."""
        return self._rows.job(key)

    def prepare(self, keys: Sequence[str]) -> None:
        """These jobs are going to be asked for."""
        self._rows.prepare(keys)

    # Folding

    def fold(
        self, offset: int, time_ms: int, append_time: bool, value: bytes, copied: bytes | None = None
    ) -> list[Folded]:
        """Fold one record; one result a line that is not blank.

        Args:
            copied: content of the record's header of a copied one, if it has it.

        Raises:
            UnknownRules: the record activates rules that this program does not have.
        """
        if append_time:
            self.state.time_ms = time_ms
        else:
            time_ms = self.state.time_ms
        first = pack(offset, 0)
        lines = split(value)
        if copied is not None:
            return self._copied_record(first, time_ms, lines, copied)
        if self.state.copying:
            return [self._foreign(first + number, time_ms, line) for number, line in _not_blank(lines)]
        events = self._rules.decode_bundle(value, lines)
        if events is not None:
            return [
                self._event(first + number, time_ms, line, event)
                for number, (line, event) in enumerate(zip(lines, events, strict=True))
            ]
        return [self._line(first + number, time_ms, line) for number, line in _not_blank(lines)]

    def _line(self, position: int, time_ms: int, line: bytes) -> Folded:
        event = self._decoded(position, time_ms, line, self._rules)
        return event if isinstance(event, Folded) else self._event(position, time_ms, line, event)

    def _decoded(self, position: int, time_ms: int, line: bytes, rules: RuleSet) -> ev.AnyEvent | Folded:
        """The line's event, or that it was quarantined."""
        try:
            return rules.decode_line(line)
        except Undecodable as error:
            self.state.quarantined += 1
            row = position_row_key(b"q", position)
            self._rows.set(row, Quarantined(error.reason, sha256(line).digest(), len(line)))
            return Folded(position, time_ms, line, None, "quarantined", f"{error.reason}: {error.message}")

    def _event(self, position: int, time_ms: int, line: bytes, event: ev.AnyEvent) -> Folded:
        folded = Folded(position, time_ms, line, event, "illegal")
        rules, state, kind = self._rules, self._rows.state, type(event)
        if kind not in rules.types:
            folded.reason = f"{kind.__name__} is not in force under rules {state.rules}"
        elif not event.id and kind is not ev.Enqueued:
            folded.reason = "the event has no id"
        elif kind in rules.leader_types and (event.epoch != state.epoch or event.epoch < 0):
            folded.outcome, folded.reason = "stale", "written by one that does not lead"
        elif kind in rules.job_types:
            key = folded.key = job_key(event.tenant, event.job)
            held = self._rows.hold(key)
            # What is known here belongs here, and needs no second look.
            if (held.job is not None or not self._elsewhere(event, folded)) and (
                not event.origin or self._first_copy(event.origin, folded)
            ):
                self._decide(event, folded, held, Place(self._base + position, time_ms), rules)
        else:
            self._partition_event(event, folded)
        if folded.outcome == "applied":
            state.accepted += 1
        else:
            state.refused += 1
        return folded

    def _decide(self, event: ev.AnyEvent, folded: Folded, held: Held, place: Place, rules: RuleSet) -> None:
        folded.before = folded.after = before = held.job
        decision = rules.decide(before, event, place)
        if isinstance(decision, Applied):
            subject = before or decision.job
            if subject is not None and subject.unique_key:
                decision, other = self._keys.judge(decision, before, event, place)
                if other is not None:
                    folded.also = _as_another_has_it(folded, other)
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
            folded.reason = NOT_A_POSITION
            return False
        if source.partition >= self.partitions or source.partition == self.partition:
            folded.reason = NOT_ANOTHER
            return False
        if source.packed <= self.state.origins.get(source.partition, -1):
            folded.outcome, folded.reason = "duplicate", ALREADY_FORWARDED
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
                state.epoch = self._base + folded.position
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
                self._rules = self._rules_of(event.version)
                state.rules = event.version
            case ev.CopySealed():
                folded.reason = copying.seals(state, event)
                if folded.reason:
                    return
                self._seal(event, folded.position)
            case _:
                folded.reason = "not an event of a partition"
                return
        folded.outcome = "applied"

    def _rules_of(self, version: int) -> RuleSet:
        found = self._table.get(version)
        if found is None:
            raise UnknownRules(
                f"The log follows rules {version}, and this program knows none above {newest(self._table)}:"
                " upgrade Penstock here, then start it again."
            )
        return found

    # Copies

    def _copied_record(self, first: int, time_ms: int, lines: list[bytes], header: bytes) -> list[Folded]:
        state = self.state
        copied = copying.opened(state, header, len(lines))
        if isinstance(copied, str):
            return [
                self._refused(first + number, time_ms, line, copied) for number, line in _not_blank(lines)
            ]
        source = copied.source
        rules = self._rules_of(source.rules)
        state.copying = source.copy
        taken = state.copied.get(source.partition, -1)
        results = [
            self._copied_line(
                first + number, line, Place(place.ordinal, place.time_ms), rules, place.position <= taken
            )
            for number, (line, place) in enumerate(zip(lines, copied.places, strict=True))
        ]
        for folded, place in zip(results, copied.places, strict=True):
            folded.copied = (place.ordinal, source.rules)
            if folded.also is not None:
                folded.also.copied = folded.copied
        state.copied = {**state.copied, source.partition: max(taken, copied.places[-1].position)}
        state.copied_generation = max(state.copied_generation, copied.generation)
        return results

    def _copied_line(self, position: int, line: bytes, place: Place, rules: RuleSet, again: bool) -> Folded:
        event = self._decoded(position, place.time_ms, line, rules)
        if isinstance(event, Folded):
            return event
        folded = Folded(position, place.time_ms, line, event, "illegal")
        if again:
            folded.outcome, folded.reason = "duplicate", copying.ALREADY_COPIED
        elif not isinstance(event, ev.JobEvent) or type(event) not in rules.types:
            folded.reason = copying.NOT_ABOUT_A_JOB
        elif (target := partition_of(event.job, self.partitions)) != self.partition:
            folded.reason = f"belongs to partition {target}"
        else:
            key = folded.key = job_key(event.tenant, event.job)
            self._decide(event, folded, self._rows.hold(key), place, rules)
        if folded.outcome == "applied":
            self.state.accepted += 1
        else:
            self.state.refused += 1
        return folded

    def _foreign(self, position: int, time_ms: int, line: bytes) -> Folded:
        """A line that came while a copy is being written: only the seal counts."""
        event = self._decoded(position, time_ms, line, self._rules)
        if isinstance(event, Folded):
            return event
        if isinstance(event, ev.CopySealed) or not self.state.copying:
            return self._event(position, time_ms, line, event)
        self.state.refused += 1
        return Folded(position, time_ms, line, event, "illegal", copying.FOREIGN)

    def _refused(self, position: int, time_ms: int, line: bytes, reason: str) -> Folded:
        event = self._decoded(position, time_ms, line, self._rules)
        if isinstance(event, Folded):
            return event
        self.state.refused += 1
        return Folded(position, time_ms, line, event, "illegal", reason)

    def _seal(self, event: ev.CopySealed, position: int) -> None:
        state = self.state
        self._rules = self._rules_of(event.rules)
        self._base = ordinal(event.generation, 0)
        state.rules, state.generation = event.rules, event.generation
        state.copying, state.sealed_at = "", position

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


def _as_another_has_it(line: Folded, other: Other) -> Folded:
    """A line about one job, as it stands with another that it touches."""
    return Folded(
        line.position, line.time_ms, line.line, line.event, other.outcome, other.reason, other.before, other.after,
        other.after.key,
    )  # fmt: skip


def _not_blank(lines: list[bytes]) -> list[tuple[int, bytes]]:
    return [(number, line) for number, line in enumerate(lines) if line and not line.isspace()]


_NOT_DECIDED = copying.COPY_REFUSALS | {NOT_A_POSITION, NOT_ANOTHER, ALREADY_FORWARDED}


def decided_by_its_job(folded: Folded, partition: int, partitions: int) -> bool:
    """Whether a line got as far as its job, whatever that made of it: not stopped by the partition before."""
    event = folded.event
    return (
        bool(folded.key)
        and event is not None
        and folded.reason not in _NOT_DECIDED
        and partition_of(event.job, partitions) == partition
    )
