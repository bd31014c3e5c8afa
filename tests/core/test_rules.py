"""Rules that change on a log that is already there: what was decided stays, and every program decides alike."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.core.partition import PartitionFold
from penstock.core.rules import RULES, RulesTable, newest
from penstock.schemas.errors import UnknownRules
from penstock.schemas.position import pack
from tests.core.newer_rules import NEWER, NEXT

EPOCH = pack(0, 0)


def line(kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, **fields}).encode()


def bumped(job: str, **fields: Any) -> bytes:
    return line(
        "Bumped", **{"id": f"bump.{job}", "job": job, "of": f"enq.{job}", "not_after": 5_000} | fields
    )


def activated(version: int, **fields: Any) -> bytes:
    return line("RulesActivated", **{"id": f"r{version}", "epoch": EPOCH, "version": version} | fields)


def failed(job: str, **fields: Any) -> bytes:
    error = {"code": "boom"}
    return line("Failed", **{"id": f"{job}.f", "job": job, "lease": f"{job}.l", "error": error} | fields)


def leased(job: str, seen: int) -> bytes:
    more = {"worker": "w", "attempt": 1, "lease_ms": 9}
    return line("Leased", id=f"{job}.l", job=job, epoch=EPOCH, seen=seen, **more)


LEADER = line("LeaderAnnounced", id="a", orchestrator="o", incarnation="i", supersedes=-1)
BEFORE = [
    LEADER,
    *(line("Enqueued", id=f"enq.{job}", job=job, job_type="t") for job in ("a", "b", "c", "d")),
    leased("a", pack(0, 1)),
    leased("b", pack(0, 2)),
    # What later rules bring is unknown yet: a type, and a field of whatever value.
    bumped("c"),
    line("Bumped"),
    failed("a", pause_ms=77),
    failed("b", pause_ms={"not": "a number"}, retry_after_ms=5),
    line("Snoozed", id="s", job="c", lease="l"),
    b'{"type": "Bumped", "broken"',
    failed("a", pause_ms=1, error=1),
    b'{"type":"Failed","type":"Bumped","pause_ms":1}',
]
AFTER = [
    bumped("c"),
    bumped("c"),
    leased("d", pack(0, 4)),
    failed("d", pause_ms=77),
    failed("d", pause_ms="x"),
]


NEWEST = [activated(version) for version in range(2, NEXT)]
"""To the newest rules of this program."""


def fold(rules: RulesTable, *records: list[bytes]) -> tuple[PartitionFold, list[str]]:
    found = PartitionFold(0, 1, lambda _: None, rules=rules)
    outcomes: list[str] = []
    for offset, lines in enumerate(records):
        outcomes += [one.outcome for one in found.fold(offset, 1_000, True, b"\n".join(lines))]
    return found, outcomes


def test_under_old_rules_a_newer_program_does_as_an_older_one() -> None:
    older, older_outcomes = fold(RULES, BEFORE)
    newer, newer_outcomes = fold(NEWER, BEFORE)
    assert newer_outcomes == older_outcomes
    assert newer.take_changes() == older.take_changes()
    assert older_outcomes.count("quarantined") == 5
    assert older_outcomes[9:11] == ["applied", "applied"]


def test_line_by_line_it_is_the_same_as_at_once() -> None:
    lines = [one for one in BEFORE if b"broken" not in one]
    at_once, _ = fold(NEWER, [LEADER], lines[1:])
    singly, _ = fold(NEWER, [LEADER])
    for number, one in enumerate(lines[1:]):
        singly.fold(1, 1_000, True, b"\n" * number + one)
    assert at_once.take_changes() == singly.take_changes()


@pytest.mark.parametrize("together", [True, False], ids=["in one record", "in two"])
def test_newer_rules_hold_from_their_line_on_and_what_was_decided_stays(together: bool) -> None:
    after = [*NEWEST, activated(NEXT), *AFTER]
    records = [[*BEFORE, *after]] if together else [BEFORE, after]
    found, outcomes = fold(NEWER, *records)
    assert outcomes[-6:] == ["applied", "applied", "duplicate", "applied", "applied", "quarantined"]
    jobs: dict[str, Any] = {key: found.job(f"default/{key}") for key in "abcd"}
    assert jobs["c"].priority == "critical"
    assert jobs["d"].due_at_ms == 1_077
    # They failed below it, and wait as the older rules had it.
    assert jobs["b"].due_at_ms == 1_005
    assert jobs["a"].due_at_ms != 1_077


def test_an_older_program_stops_where_newer_rules_begin() -> None:
    after = [*NEWEST, activated(NEXT)]
    with pytest.raises(
        UnknownRules, match=f"rules {NEXT}, and this program knows none above {NEXT - 1}: upgrade"
    ) as caught:
        fold(RULES, BEFORE, after)
    assert caught.value.exit_code == 8
    newer, _ = fold(NEWER, BEFORE, after)
    with pytest.raises(UnknownRules):
        PartitionFold(0, 1, dict(newer.take_changes().rows).get)


def test_no_version_is_left_out() -> None:
    found, outcomes = fold(NEWER, [LEADER], [activated(3), activated(2, epoch=5), activated(2), activated(2)])
    assert outcomes[1:] == ["stale", "stale", "applied", "stale"]
    assert found.state.rules == 2 < newest(NEWER)
