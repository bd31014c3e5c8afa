"""Job stories as tables: each row is a line on the log, and what the fold is expected to make of it.

    time | event                    | outcome | state  | more
    0    | Enqueued max_attempts=2  | applied | ready  | attempt=0
    10   | Leased L1                | applied | active | attempt=1

Time is the record's, in ms. An event is its type, optionally its id, and fields; what a row leaves out is filled in
as a well-behaved writer would: the epoch in force, the job's `seen`, its lease, its `Enqueued`. `seen=#2` is the
position of the story's second row, `not_after=+5` is 5 ms after the row's time. State `-` is no job. More: fields of
the job afterwards; `@x` is the hash of the body x. State and more are of the job J, whatever job a row's event is
about. A refused event must leave the job's row as it was, but for the remembered verdicts of verbs.
"""

from __future__ import annotations

import json
from typing import Any

from penstock.core.job import Job, body_hash
from penstock.core.partition import Folded, PartitionFold
from penstock.core.rules import RULES, newest
from penstock.schemas import events as ev
from penstock.schemas.codec import bundle, encode_line
from penstock.schemas.position import pack
from tests.core.newer_rules import activations

JOB = "J"
EPOCH_OFFSET = 1
LEADER_TYPES = {"Due", "Expired", "Leased", "LeaseExpired", "Cancelled", "DeadLettered", "Forgotten"}
SEEN_TYPES = {"Due", "Expired", "Leased", "DeadLettered", "Forgotten"}
HOLDER_TYPES = {"Progressed", "Succeeded", "Failed", "Returned", "Snoozed", "LeaseExpired", "Cancelled"}
VERB_TYPES = {"CancelRequested", "RetryRequested", "Held", "Unheld", "Edited", "Deleted"}


class Story:
    """Plays rows on a fold of one partition that has a leader, and follows these rules."""

    def __init__(self, rules: int = newest(RULES)) -> None:
        self.fold = PartitionFold(0, 1, lambda _: None)
        leader = ev.LeaderAnnounced(id="A", orchestrator="o", incarnation="i", supersedes=-1)
        lines = map(encode_line, [leader, *activations(rules, pack(EPOCH_OFFSET, 0))])
        self.fold.fold(EPOCH_OFFSET, 0, True, bundle(list(lines)))
        assert self.fold.state.rules == rules
        self.rows = 0
        self.last: Folded | None = None

    @property
    def job(self) -> Job | None:
        return self.fold.job(f"default/{JOB}")

    def play(self, table: str) -> None:
        for text in table.strip().splitlines():
            if text.strip() and not text.strip().startswith("#"):
                self._row(text)

    def _row(self, text: str) -> None:
        time_ms, event, outcome, state, more = ([*(cell.strip() for cell in text.split("|")), ""])[:5]
        self.rows += 1
        before = self.job
        line = self._line(event.split(), int(time_ms), before)
        [folded] = self.fold.fold(EPOCH_OFFSET + self.rows, int(time_ms), True, json.dumps(line).encode())
        self.last = folded
        after = self.job
        found = (folded.outcome, after.state if after else "-")
        assert found == (outcome, state), f"row {self.rows}: {text.strip()!r} gave {found}: {folded.reason}"
        for check in more.split():
            name, _, wanted = check.partition("=")
            value = getattr(after, name)
            same = value == body_hash(wanted[1:].encode()) if wanted[:1] == "@" else str(value) == wanted
            assert same, f"row {self.rows}: {name} is {value!r}: {text}"
        if outcome != "applied":
            assert folded.reason
            assert _without_verdicts(before) == _without_verdicts(after), (
                f"row {self.rows} changed a job: {text}"
            )

    def _line(self, words: list[str], time_ms: int, job: Job | None) -> dict[str, Any]:
        kind, *rest = words
        named = rest.pop(0) if rest and "=" not in rest[0] else f"{kind}-{self.rows}"
        line: dict[str, Any] = {
            "type": kind,
            "id": named,
            "job": JOB,
            **_defaults(kind, job, self.fold.state.epoch),
        }
        if kind in VERB_TYPES:
            line["not_after"] = time_ms + 60_000
        for field in rest:
            name, _, value = field.partition("=")
            _set(line, name, value, time_ms)
        return line


def play(table: str, rules: int = newest(RULES)) -> Story:
    """Play a whole story and return it as it ended."""
    story = Story(rules)
    story.play(table)
    return story


def _defaults(kind: str, job: Job | None, epoch: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if kind in LEADER_TYPES:
        found["epoch"] = epoch
    if kind in SEEN_TYPES:
        found["seen"] = job.seen if job else 0
    if kind in HOLDER_TYPES:
        found["lease"] = job.lease if job else "none"
    if kind in VERB_TYPES:
        found["of"] = job.enqueued_id if job else "none"
    own: dict[str, dict[str, Any]] = {
        "Enqueued": {"job_type": "t", "backoff": {"kind": "fixed", "base_ms": 100, "jitter": 0}},
        "Leased": {"worker": "w", "attempt": job.attempt + 1 if job else 1, "lease_ms": 30_000},
        "Progressed": {"seq": job.progress_seq + 1 if job else 1},
        "Failed": {"error": {"code": "boom"}},
        "DeadLettered": {"reason": "r"},
        "Edited": {"changes": {}},
    }
    return found | own.get(kind, {})


def _set(line: dict[str, Any], name: str, value: str, time_ms: int) -> None:
    if name == "retryable":
        line["error"] = {"code": "boom", "retryable": value == "yes"}
    elif name == "backoff":
        line["backoff"] = {"kind": value, "base_ms": 100, "jitter": 0}
    elif name == "errors":
        line["errors"] = [{"code": code} for code in value.split(",")]
    elif name.startswith(("changes.", "unique.")):
        field, _, inner = name.partition(".")
        parts: dict[str, Any] = {}
        _set(parts, inner, value, time_ms)
        line[field] = line.get(field, {}) | parts
    elif value.startswith("#"):
        line[name] = pack(EPOCH_OFFSET + int(value[1:]), 0)
    elif value.startswith("+"):
        line[name] = time_ms + int(value[1:])
    elif value in ("true", "false", "null") or value.lstrip("-").isdigit():
        line[name] = json.loads(value)
    else:
        line[name] = value


def _without_verdicts(job: Job | None) -> dict[str, Any] | None:
    if job is None:
        return None
    return {name: getattr(job, name) for name in job.__struct_fields__ if name != "verdicts"}
