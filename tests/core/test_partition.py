"""The partition around its jobs: leadership, configuration, rules, strangers, poison, time, line numbers."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from penstock.core.partition import Folded, PartitionFold
from penstock.core.rows import (
    DIGEST_MODULUS,
    FOLD_VERSION,
    STATE_KEY,
    decode_quarantined_row,
    position_row_key,
    row_digest,
)
from penstock.core.rules import RULES, newest
from penstock.schemas import events as ev
from penstock.schemas.errors import UnknownRules
from penstock.schemas.ids import partition_of
from penstock.schemas.limits import MAX_BUNDLE_BYTES, MAX_BUNDLE_LINES, MAX_LINE_BYTES
from penstock.schemas.position import pack

PARTITIONS = 4
HERE, ELSEWHERE = (
    next(f"job-{number}" for number in range(100) if (partition_of(f"job-{number}", PARTITIONS) == 0) == here)
    for here in (True, False)
)


def line(kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, **fields}).encode()


def enqueued(job: str = HERE, **fields: Any) -> bytes:
    return line("Enqueued", **{"job": job, "job_type": "t"} | fields)


def announced(supersedes: int = -1, **fields: Any) -> bytes:
    return line(
        "LeaderAnnounced",
        **{"id": "a", "orchestrator": "o", "incarnation": "i", "supersedes": supersedes} | fields,
    )


class Log:
    """A fold and the next offset."""

    def __init__(self) -> None:
        self.fold = PartitionFold(0, PARTITIONS, lambda _: None)
        self.offset = 0

    def add(self, *lines: bytes, time_ms: int = 1_000, append_time: bool = True) -> list[Folded]:
        self.offset += 1
        return self.fold.fold(self.offset, time_ms, append_time, b"\n".join(lines))

    def one(self, text: bytes, **more: Any) -> Folded:
        [folded] = self.add(text, **more)
        return folded

    def outcome(self, text: bytes) -> str:
        return self.one(text).outcome

    def rows(self) -> dict[bytes, bytes | None]:
        return dict(self.fold.take_changes().rows)


@pytest.fixture
def log() -> Log:
    return Log()


# Leadership


def test_l1_the_position_of_an_accepted_announcement_is_the_epoch(log: Log) -> None:
    assert log.one(announced(orchestrator="first")).outcome == "applied"
    first = log.fold.state.epoch
    assert (first, log.fold.state.leader, log.fold.state.incarnation) == (pack(1, 0), "first", "i")
    assert log.one(announced(first, orchestrator="second")).outcome == "applied"
    assert (log.fold.state.epoch, log.fold.state.leader) == (pack(2, 0), "second")


@pytest.mark.parametrize("supersedes", [-1, 0, 1 << 54])
def test_l1_a_late_announcement_unseats_nobody(log: Log, supersedes: int) -> None:
    log.add(announced())
    assert log.outcome(announced(supersedes, orchestrator="late")) == "stale"
    assert (log.fold.state.epoch, log.fold.state.leader) == (pack(1, 0), "o")


def test_l1_of_two_announcements_in_one_record_the_first_wins(log: Log) -> None:
    assert [one.outcome for one in log.add(announced(), announced(id="b"))] == ["applied", "stale"]


def test_lines_of_a_deposed_leader_are_dropped(log: Log) -> None:
    log.add(announced())
    epoch = log.fold.state.epoch
    log.add(announced(epoch, id="b"), enqueued())
    lease = {"job": HERE, "worker": "w", "attempt": 1, "lease_ms": 1, "seen": pack(2, 1)}
    assert log.outcome(line("Leased", id="L", epoch=epoch, **lease)) == "stale"
    assert log.outcome(line("Leased", id="L", epoch=log.fold.state.epoch, **lease)) == "applied"


# Configuration and rules


def test_f2_configuration_is_copied_in_order_without_gaps(log: Log) -> None:
    log.add(announced())

    def copied(previous: int, position: int, epoch: int = log.fold.state.epoch) -> str:
        return log.outcome(
            line("Configured", id="c", epoch=epoch, previous=previous, control_position=position)
        )

    assert copied(5, 9) == "stale"
    assert copied(-1, -1) == "stale"
    assert copied(-1, 5, epoch=-1) == "stale"
    assert copied(-1, 5) == "applied"
    assert copied(-1, 5) == "stale"
    assert copied(5, 4) == "stale"
    assert copied(5, 9) == "applied"
    assert log.fold.state.config_position == 9


def test_f3_rules_that_nobody_knows_stop_the_folder(log: Log) -> None:
    log.add(announced())
    known, epoch = newest(RULES), log.fold.state.epoch
    for version in range(2, known + 1):
        assert (
            log.outcome(line("RulesActivated", id=f"r{version}", epoch=epoch, version=version)) == "applied"
        )
    with pytest.raises(UnknownRules, match=f"rules {known + 1}"):
        log.add(line("RulesActivated", id="r", epoch=epoch, version=known + 1))


@pytest.mark.parametrize("version", [0, 1, 3])
def test_f3_rules_are_activated_one_by_one(log: Log, version: int) -> None:
    log.add(announced())
    assert log.outcome(line("RulesActivated", id="r", epoch=log.fold.state.epoch, version=version)) == "stale"


def test_f3_only_the_leader_activates_rules(log: Log) -> None:
    log.add(announced())
    assert log.outcome(line("RulesActivated", id="r", version=2)) == "stale"


def test_f3_rows_of_rules_that_nobody_knows_are_not_opened(log: Log) -> None:
    log.fold.state.rules = newest(RULES) + 1
    rows = log.rows()
    with pytest.raises(UnknownRules):
        PartitionFold(0, PARTITIONS, rows.get)


@pytest.mark.parametrize("text", [
    line("Deleted", id="x", job=HERE, of="e", not_after=1), line("Erased", id="x", job=HERE)
])  # fmt: skip
def test_f3_types_not_in_force_are_refused(log: Log, text: bytes) -> None:
    log.add(enqueued())
    folded = log.one(text)
    assert (folded.outcome, "not in force" in folded.reason) == ("illegal", True)


def test_f3_fields_of_later_versions_are_ignored(log: Log) -> None:
    assert log.outcome(enqueued(from_the_future={"a": [1]})) == "applied"


def test_events_need_an_id_except_enqueued(log: Log) -> None:
    log.add(announced())
    for text in (announced(1 << 15, id=""), line("Succeeded", job=HERE, lease="l")):
        assert "no id" in log.one(text).reason


def test_the_tables_of_rules_name_events_that_exist() -> None:
    known = {kind.__name__ for kind in ev.AnyEvent.__args__}
    for rules in RULES.values():
        assert {kind.__name__ for kind in rules.types} == rules.in_force <= known
    assert sorted(RULES) == list(range(1, len(RULES) + 1))


# Other partitions


def test_a_misrouted_line_waits_to_be_forwarded_and_then_is_gone(log: Log) -> None:
    log.add(announced())
    text = enqueued(ELSEWHERE)
    folded = log.one(text)
    row = position_row_key(b"m", folded.position)
    assert folded.outcome == "misrouted"
    assert (log.fold.state.misrouted, log.rows()[row]) == (1, text)
    forwarded = {"epoch": log.fold.state.epoch, "line_position": folded.position, "target": 1}

    log.fold = PartitionFold(
        0, PARTITIONS, {row: text, STATE_KEY: msgspec.msgpack.encode(log.fold.state)}.get
    )
    assert log.outcome(line("Forwarded", id="f", **forwarded | {"epoch": -1})) == "stale"
    assert log.outcome(line("Forwarded", id="f", **forwarded)) == "applied"
    assert log.outcome(line("Forwarded", id="f", **forwarded)) == "duplicate"
    assert (log.fold.state.misrouted, log.rows()[row]) == (0, None)


@pytest.mark.parametrize("position", [-1, 0, (1 << 55) - 1])
def test_nothing_waits_at_such_a_position(log: Log, position: int) -> None:
    log.add(announced())
    text = line("Forwarded", id="f", epoch=log.fold.state.epoch, line_position=position, target=1)
    assert log.outcome(text) == "duplicate"


def test_f1_lines_with_an_origin_and_leaders_lines_are_never_forwarded(log: Log) -> None:
    log.add(announced())
    leaders = line("Due", id="d", job=ELSEWHERE, seen=0, epoch=log.fold.state.epoch)
    assert [log.outcome(text) for text in (enqueued(ELSEWHERE, origin="1:5:0"), leaders)] == ["illegal"] * 2
    assert log.fold.state.misrouted == 0


def test_f1_only_what_is_above_the_highest_origin_of_its_source_is_taken(log: Log) -> None:
    def forwarded(origin: str, job: str = HERE) -> str:
        return log.outcome(enqueued(job, origin=origin))

    assert forwarded("1:5:2") == "applied"
    assert [forwarded(origin) for origin in ("1:5:2", "1:5:1", "1:4:9")] == ["duplicate"] * 3
    assert forwarded("2:1:0") == "duplicate"  # the job is there already, but its origin counts
    assert forwarded("1:6:0", HERE) == "duplicate"
    assert log.fold.state.origins == {1: pack(6, 0), 2: pack(1, 0)}


@pytest.mark.parametrize(
    "origin", ["nonsense", "1:5", "0:5:0", f"{PARTITIONS}:5:0", "1:999999999999999:0", "1:5:99999", "-1:5:0", "1:5:0:0"]
)  # fmt: skip
def test_f1_an_impossible_origin_is_refused_and_leaves_no_trace(log: Log, origin: str) -> None:
    assert log.outcome(enqueued(origin=origin)) == "illegal"
    assert log.fold.state.origins == {}
    assert set(log.rows()) == {STATE_KEY}


def test_v3_lines_for_jobs_that_do_not_exist_leave_a_counter(log: Log) -> None:
    for _ in range(3):
        assert log.outcome(line("Succeeded", id="s", job=HERE, lease="l")) == "unknown_job"
    assert log.fold.state.unknown_jobs == 3
    assert set(log.rows()) == {STATE_KEY}


def test_tenants_do_not_see_each_others_jobs(log: Log) -> None:
    assert [log.outcome(enqueued(tenant=tenant)) for tenant in ("a", "b", "a")] == [
        "applied",
        "applied",
        "duplicate",
    ]


# Poison


POISON = {
    b"\xff": "not_utf8",
    b'{"type":"Enqueued","job":"j","job_type":"t","payload":"\xed\xa0\x80"}': "not_utf8",
    b"hello": "not_json",
    b"{}": "unknown_type",
    b'{"type":"Launched"}': "unknown_type",
    b'{"type":"Enqueued"}': "invalid",
    b"[" * 100_000: "too_deep",
    b'{"type":"Enqueued","job":"j","job_type":"t","payload":' + b"[" * 65 + b"]" * 65 + b"}": "too_deep",
    b"{" * 70 + b'"' + b'\\"' * 200_000: "too_deep",
    b'"' + b"x" * MAX_LINE_BYTES: "too_large",
    b"\x00": "not_json",
    b'{"type":"Enqueued","job":"j","job_type":"t","at":' + b"9" * 5_000 + b"}": "invalid",
    b'{"type":"Enqueued","job":"j","job_type":"t","payload":NaN}': "not_json",
    b"\xef\xbb\xbf" + enqueued(): "not_json",
}


@pytest.mark.parametrize(("text", "reason"), POISON.items(), ids=range(len(POISON)))
def test_a_poison_line_is_kept_by_hash_and_stops_nothing(log: Log, text: bytes, reason: str) -> None:
    before, poison, behind = log.add(enqueued(id="1"), text, enqueued(id="2"))
    assert [before.outcome, poison.outcome, behind.outcome] == ["applied", "quarantined", "duplicate"]
    assert poison.reason.startswith(f"{reason}: ")
    kept = decode_quarantined_row(log.rows()[position_row_key(b"q", poison.position)] or b"")
    assert (kept.reason, kept.size_bytes, len(kept.sha256)) == (reason, len(text), 32)
    assert log.fold.state.quarantined == 1


def test_a_line_of_5_mb_is_one_quarantined_line(log: Log) -> None:
    assert log.outcome(b'{"payload":"' + b"x" * 5_000_000 + b'"}') == "quarantined"
    assert log.outcome(enqueued()) == "applied"


def test_a_record_that_is_too_large_is_refused_whole(log: Log) -> None:
    lines = [enqueued(metadata="x" * 1_000)] * (MAX_BUNDLE_BYTES // 1_000)
    assert [folded.outcome for folded in log.add(*lines)] == ["quarantined"]


def test_what_is_beyond_the_most_lines_of_a_record_is_quarantined(log: Log) -> None:
    folded = log.add(*[b"1"] * (MAX_BUNDLE_LINES + 2))
    assert len(folded) == MAX_BUNDLE_LINES
    assert (folded[-1].line, folded[-1].position) == (b"1\n1\n1", pack(1, MAX_BUNDLE_LINES - 1))


def test_lines_are_numbered_as_in_an_editor(log: Log) -> None:
    folded = log.add(b"", enqueued("a1"), b"", b"  \t", enqueued("a2") + b"\r", b"\r", b"")
    assert [one.position for one in folded] == [pack(1, 1), pack(1, 4)]
    assert {one.outcome for one in folded} <= {"applied", "misrouted"}


def test_of_a_key_given_twice_the_last_counts(log: Log) -> None:
    text = b'{"type":"Enqueued","job":"%s","job":"%s","job_type":"t"}' % (ELSEWHERE.encode(), HERE.encode())
    assert log.one(text).key == f"default/{HERE}"


@pytest.mark.parametrize("field", ["job", "job_type", "queue", "pool", "tenant"])
def test_names_do_not_end_in_a_newline(log: Log, field: str) -> None:
    assert log.outcome(line("Enqueued", **{"job": HERE, "job_type": "t", field: "abc\n"})) == "quarantined"


# Time


def test_t1_a_record_not_stamped_by_the_log_takes_the_last_time_that_was(log: Log) -> None:
    assert log.one(enqueued("x1~" + HERE), time_ms=5_000).time_ms == 5_000
    stranger = log.one(enqueued("x2~" + HERE), time_ms=4_070_908_800_000, append_time=False)
    assert stranger.time_ms == 5_000
    assert stranger.after is not None
    assert stranger.after.created_at_ms == 5_000
    assert log.one(enqueued("x3~" + HERE), time_ms=5_001).time_ms == 5_001


def test_t1_one_record_from_the_far_future_poisons_only_the_jobs_that_it_touches(log: Log) -> None:
    far = 4_070_908_800_000
    log.add(enqueued("x1~" + HERE), time_ms=far)
    later = log.one(enqueued("x2~" + HERE), time_ms=2_000).after
    assert later is not None
    assert later.time_ms == 2_000


# Rows


def test_digest_is_the_sum_over_rows(log: Log) -> None:
    log.add(announced(), enqueued(), b"junk", enqueued(ELSEWHERE))
    changes = log.fold.take_changes()
    total = sum(row_digest(key, value or b"") for key, value in changes.rows)
    assert changes.digest == total % DIGEST_MODULUS
    assert log.fold.take_changes().rows == []


def test_refused_lines_change_no_row_of_the_job() -> None:
    log = Log()
    log.add(enqueued())
    rows = log.rows()
    log.fold = PartitionFold(0, PARTITIONS, rows.get)
    refused = log.add(enqueued(), enqueued(job_type="u"), line("Succeeded", id="s", job=HERE, lease="l"))
    assert [one.outcome for one in refused] == ["duplicate", "conflict", "stale"]
    assert log.fold.touched == 0
    assert set(log.rows()) == {STATE_KEY}


def test_a_job_that_came_and_went_between_commits_leaves_no_row(log: Log) -> None:
    log.add(announced())
    log.rows()
    log.add(enqueued(id="E"))
    log.add(line("CancelRequested", id="c", job=HERE, of="E", not_after=2_000))
    gone = line("Forgotten", id="g", job=HERE, seen=pack(3, 0), epoch=log.fold.state.epoch)
    assert log.one(gone, time_ms=2_000_000).outcome == "applied"
    assert dict(log.fold.touched_jobs()) == {f"default/{HERE}": None}
    assert set(log.rows()) == {STATE_KEY}


def test_the_golden_digest_of_a_small_log(log: Log) -> None:
    """Rows' bytes and what is hashed are for ever: a change of either needs a new FOLD_VERSION."""
    log.add(
        announced(),
        enqueued(id="E", payload={"a": 1}, backoff={"base_ms": 1000, "factor": 1.5}, tags=["x"]),
        b"junk",
    )
    log.add(
        line("Leased", id="L", job=HERE, worker="w", attempt=1, lease_ms=9, seen=pack(1, 1), epoch=pack(1, 0))
    )
    progressed = line("Progressed", id="P", job=HERE, lease="L", seq=1, percent=12.5, checkpoint=[1])
    assert log.outcome(progressed) == "applied"
    log.add(enqueued(ELSEWHERE))
    assert f"{log.fold.take_changes().digest:064x}" == GOLDEN_DIGEST
    assert FOLD_VERSION == 2


GOLDEN_DIGEST = "084759f3d7e5f3f5067e9c685bedb72c1baa9d2915c604b8315025f4011df213"
