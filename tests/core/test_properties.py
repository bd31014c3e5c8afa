"""What holds for any log whatever: hypothesis writes the lines, valid and not, and looks for one that breaks a law."""

from __future__ import annotations

import json
from typing import Any, get_args

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.core.job import TERMINAL, TRANSITIONS, WAITING, Job
from penstock.core.partition import Folded, PartitionFold
from penstock.core.rows import DIGEST_MODULUS, STATE_KEY, decode_job_row, job_row_key, row_digest
from penstock.schemas.codec import decode_line, encode_line
from penstock.schemas.events import AnyEvent
from penstock.schemas.ids import partition_of

PARTITIONS = 2
HERE = partition_of("x~a", PARTITIONS)
AWAY = next(home for home in "bcdefgh" if partition_of(f"x~{home}", PARTITIONS) != HERE)
JOBS = ["0~a", "1~a", f"2~{AWAY}"]
EPOCHS = st.sampled_from([-1, 32_768, 32_768, 32_768, 65_536])

Record = tuple[int, bool, bytes]
common = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


LEADERS = ["Due", "Leased", "Expired", "DeadLettered", "Forgotten", "LeaseExpired", "Cancelled"]
OF_LEADER = {
    "scheduled": ["Due", "Expired"], "ready": ["Leased"], "retrying": ["Due"],
    "dead": ["DeadLettered", "Forgotten"], "active": ["LeaseExpired", "Cancelled"], "held": ["Expired"],
}  # fmt: skip
"""What a leader would write about a job in a state."""


def _leader(draw: Any, fold: PartitionFold, job: Job | None, number: int) -> dict[str, Any]:
    stale = draw(st.integers(0, 5)) == 0
    kind = draw(st.sampled_from(LEADERS if stale or not job else OF_LEADER.get(job.state, ["Forgotten"])))
    epoch = draw(EPOCHS) if stale else fold.state.epoch
    return {
        "type": kind, "id": f"L{number}", "epoch": epoch,
        "seen": draw(st.integers(-1, 99)) if stale or not job else job.seen,
        "lease": draw(st.sampled_from(["L1", "L2", "L3", "x"])) if stale or not job else job.lease,
        "worker": "w", "attempt": 1, "lease_ms": 5,
        "reason": draw(st.sampled_from(["silent", "timeout", "superseded"])),
        "refund": draw(st.booleans()),
    }  # fmt: skip


def _holder(draw: Any, fold: PartitionFold, job: Job | None, number: int) -> dict[str, Any]:
    kind = draw(st.sampled_from(["Progressed", "Succeeded", "Failed", "Failed", "Returned", "Snoozed"]))
    lease = (
        job.lease if job and draw(st.integers(0, 4)) else draw(st.sampled_from(["", "L1", "L2", "zombie"]))
    )
    error = {"code": "boom", "retryable": draw(st.booleans())}
    line = {"type": kind, "id": f"{lease}.{kind}.{draw(st.integers(0, 2))}", "lease": lease, "error": error}
    line["seq"] = draw(st.integers(1, 5))
    if draw(st.booleans()):
        line |= {"percent": draw(st.floats(0, 100)), "checkpoint": [number]}
        line["retry_after_ms"] = draw(st.sampled_from([0, 7]))
        line["delay_ms"] = draw(st.sampled_from([0, 7]))
        line["errors"] = draw(st.sampled_from([[], [error]]))
        line["cancel"] = draw(st.booleans())
    return line


VERBS = ["CancelRequested", "RetryRequested", "Held", "Unheld", "Edited", "Deleted"]
OF_PEOPLE = {
    "held": ["Unheld"],
    "dead": ["RetryRequested"],
    "cancelled": ["RetryRequested"],
    "ready": ["Held", "Edited"],
}
"""What somebody would want of a job in a state."""

CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.sampled_from(["critical", "low", "urgent"]),
        "queue": st.sampled_from(["q", "q/1", "no!name"]),
        "pool": st.just("p"),
        "run_at": st.integers(0, 3_000),
        "delay_ms": st.sampled_from([0, 7]),
        "expires_at": st.integers(0, 3_000),
        "max_attempts": st.integers(0, 3),
        "other": st.just(1),
    },
)


def _verb(draw: Any, fold: PartitionFold, job: Job | None, number: int) -> dict[str, Any]:
    kind = draw(st.sampled_from(VERBS + OF_PEOPLE.get(job.state, []) * 3 if job else VERBS))
    of = job.enqueued_id if job and draw(st.integers(0, 5)) else "other"
    now_ms = max(job.time_ms, fold.state.time_ms) if job else 0
    ahead_ms = draw(st.sampled_from([-1, 0, 5, 600_000, 600_001]))
    return {
        "type": kind,
        "id": f"v{draw(st.integers(0, 9))}",
        "of": of,
        "not_after": max(0, now_ms + ahead_ms),
        "attempts": draw(st.integers(0, 2)),
        "changes": draw(CHANGES),
    }


def _enqueued(draw: Any, fold: PartitionFold, job: Job | None, number: int) -> dict[str, Any]:
    return {
        "type": "Enqueued", "job_type": draw(st.sampled_from(["t", "t", "t", "u"])),
        "max_attempts": draw(st.integers(1, 3)),
        "delay_ms": draw(st.sampled_from([0, 0, 10])), "id": draw(st.sampled_from(["", "E1", "E2"])),
        "payload": draw(st.sampled_from([None, {"a": [1, "é"]}])), "request_hash": draw(st.sampled_from(["", "h"])),
        "origin": draw(st.sampled_from([*[""] * 12, f"{1 - HERE}:2:3", f"{1 - HERE}:2:4", "9:9:9", "junk"])),
    }  # fmt: skip


def _of_the_partition(draw: Any, fold: PartitionFold, job: Job | None, number: int) -> dict[str, Any]:
    kind = draw(st.sampled_from(["LeaderAnnounced", "Configured", "Forwarded", "RulesActivated"]))
    return {
        "type": kind, "id": f"P{number}", "orchestrator": "o", "incarnation": "i",
        "supersedes": fold.state.epoch if draw(st.booleans()) else draw(EPOCHS),
        "epoch": fold.state.epoch if draw(st.booleans()) else draw(EPOCHS),
        "previous": fold.state.config_position, "control_position": draw(st.integers(-1, 9)),
        "line_position": (draw(st.integers(1, 25)) << 15) - draw(st.sampled_from([-1, 0, 0, 0, 32_769])),
        "target": 1, "version": draw(st.sampled_from([0, 1, 4])),
    }  # fmt: skip


WRITERS = [_leader, _holder, _verb, _enqueued, _of_the_partition]
MOSTLY = {
    "active": [_holder, _holder, _leader],
    "held": [_verb],
    "partial": [_verb],
    "dead": [_leader, _verb],
    "cancelled": [_verb],
    "expired": [_verb],
}
"""Who would write about a job in a state; the leader, where nobody else is named."""


def _writer(draw: Any, job: Job | None) -> Any:
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(WRITERS))
    return draw(st.sampled_from(MOSTLY.get(job.state, [_leader, _leader, _verb]))) if job else _enqueued


@st.composite
def logs(draw: st.DrawFn, records: int = 25) -> list[Record]:
    """Records as they might stand on a log: mostly what writers who look would write; some stale or broken."""
    fold = PartitionFold(HERE, PARTITIONS, lambda _: None)
    written: list[bytes] = []
    found: list[Record] = []
    for offset in range(1, draw(st.integers(1, records)) + 1):
        lines: list[bytes] = []
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
            choice = draw(st.integers(0, 15))
            if choice == 0 and written:
                lines.append(draw(st.sampled_from(written)))
            elif choice == 1:
                lines.append(draw(st.binary(max_size=12).map(lambda junk: junk.replace(b"\n", b""))))
            else:
                job_id = draw(st.sampled_from(JOBS))
                job = fold.job(f"default/{job_id}")
                line = _writer(draw, job)(draw, fold, job, 10 * offset + len(lines))
                lines.append(json.dumps({"job": job_id} | line).encode())
        written += lines
        record = (
            draw(st.sampled_from([0, 5, 100, 100, 100, 700_000])) * offset,
            draw(st.integers(0, 9)) > 0,
            b"\n".join(lines),
        )
        if offset == 1:
            announced = (
                b'{"type":"LeaderAnnounced","id":"A","orchestrator":"o","incarnation":"i","supersedes":-1}\n'
            )
            newest = b'{"type":"RulesActivated","id":"R2","epoch":32768,"version":2}\n'
            record = (0, True, announced + (newest if draw(st.integers(0, 4)) else b"") + record[2])
        fold.fold(offset, *record)
        found.append(record)
    return found


class Folder:
    """A fold with rows in a dict, as a projection keeps them in a store."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.digest = 0
        self.fold = self._opened()

    def _opened(self) -> PartitionFold:
        return PartitionFold(HERE, PARTITIONS, self.rows.get, self.digest)

    def commit(self) -> None:
        changes = self.fold.take_changes()
        for key, value in changes.rows:
            assert self.rows.get(key) != value
            if value is None:
                del self.rows[key]
            else:
                self.rows[key] = value
        self.digest = changes.digest

    def restart(self) -> None:
        self.fold = self._opened()


def folded(log: list[Record]) -> Folder:
    folder = Folder()
    for offset, record in enumerate(log, 1):
        folder.fold.fold(offset, *record)
    folder.commit()
    return folder


@common
@given(logs(), st.data())
def test_all_folders_agree_whatever_the_batching_and_however_often_they_restart(
    log: list[Record], data: st.DataObject
) -> None:
    folder = Folder()
    for offset, record in enumerate(log, 1):
        folder.fold.fold(offset, *record)
        match data.draw(st.sampled_from(["go on", "commit", "restart"])):
            case "commit":
                folder.commit()
            case "restart":
                folder.commit()
                folder.restart()
            case _:
                pass
    folder.commit()
    replayed = folded(log)
    assert (folder.rows, folder.digest) == (replayed.rows, replayed.digest)
    assert folder.digest == sum(row_digest(*row) for row in folder.rows.items()) % DIGEST_MODULUS


@common
@given(logs())
def test_no_event_leaves_the_table_or_makes_an_impossible_job(log: list[Record]) -> None:
    fold = PartitionFold(HERE, PARTITIONS, lambda _: None)
    for offset, record in enumerate(log, 1):
        for one in fold.fold(offset, *record):
            if one.outcome == "applied" and one.key:
                before = one.before.state if one.before else None
                after = one.after.state if one.after else None
                assert after in TRANSITIONS[type(one.event).__name__][before]
            if one.after is not None:
                _possible(one)


def _possible(one: Folded) -> None:
    job = one.after
    assert job is not None
    assert 0 <= job.attempt <= job.attempts_allowed
    if one.before is not None:
        assert job.time_ms >= one.before.time_ms
        assert job.seen >= one.before.seen
    if job.state == "active":
        assert job.lease
        assert job.attempt >= 1
    else:
        assert job.cancel == ""
    if job.state in WAITING:
        assert job.attempt < job.attempts_allowed
    assert (job.finished_at_ms > 0) <= (job.state in TERMINAL)
    assert (job.due_at_ms > 0) <= (job.state in ("scheduled", "retrying", "held"))
    if job.state == "scheduled":
        assert job.attempt == 0
    assert job.leased_at <= one.position


@common
@given(logs())
def test_what_is_refused_changes_no_job(log: list[Record]) -> None:
    """Duplicates, stale leases and stale epochs above all; only a verb's refusal is remembered."""
    folder = Folder()
    for offset, (time_ms, append_time, value) in enumerate(log, 1):
        for number, line in enumerate(value.split(b"\n")):
            # One line a record here, so that the rows can be compared around each; positions differ, and that is fine.
            rows = dict(folder.rows)
            results = folder.fold.fold(offset * 10 + number, time_ms, append_time, line)
            folder.commit()
            if results and results[0].outcome in (
                "duplicate",
                "stale",
                "conflict",
                "unknown_job",
                "too_early",
                "too_late",
            ):
                assert _jobs(rows) == _jobs(folder.rows)
            elif results and results[0].outcome == "illegal":
                assert _bare(rows) == _bare(folder.rows)


def _jobs(rows: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {key: value for key, value in rows.items() if key != STATE_KEY}


def _bare(rows: dict[bytes, bytes]) -> dict[bytes, Any]:
    found: dict[bytes, Any] = {}
    for key, value in _jobs(rows).items():
        job = decode_job_row(value) if key[:1] == b"j" else None
        found[key] = (
            [getattr(job, name) for name in job.__struct_fields__ if name != "verdicts"] if job else value
        )
    return found


@common
@given(logs())
def test_a_whole_log_written_twice_over_is_the_same_jobs(log: list[Record]) -> None:
    """Every line an ambiguous write retried at once: no second effect."""
    once, twice = Folder(), Folder()
    for offset, (time_ms, append_time, value) in enumerate(log, 1):
        lines = [line for line in value.split(b"\n") if line]
        once.fold.fold(
            offset, time_ms, append_time, b"\n".join(each for line in lines for each in (line, b""))
        )
        results = twice.fold.fold(
            offset, time_ms, append_time, b"\n".join(each for line in lines for each in (line, line))
        )
        for first, second in zip(results[::2], results[1::2], strict=True):
            if first.outcome == "applied" and first.key:
                assert second.outcome in ("duplicate", "stale", "unknown_job")
    for job_id in JOBS:
        key = f"default/{job_id}"
        assert once.fold.job(key) == twice.fold.job(key)


@common
@given(logs(records=10), st.lists(st.binary(max_size=40), max_size=4))
def test_a_poison_line_stops_nothing_behind_it(log: list[Record], poison: list[bytes]) -> None:
    junk = b"\n".join(b"\xfe" + text.replace(b"\n", b"") for text in poison)
    clean, poisoned = Folder(), Folder()
    for offset, (time_ms, append_time, value) in enumerate(log, 1):
        clean.fold.fold(offset, time_ms, append_time, value)
        poisoned.fold.fold(offset, time_ms, append_time, value + b"\n" + junk)
    quarantined = poisoned.fold.state.quarantined - clean.fold.state.quarantined
    assert quarantined == len(log) * len(poison)
    for job_id in JOBS:
        assert clean.fold.job(f"default/{job_id}") == poisoned.fold.job(f"default/{job_id}")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_nothing_that_a_line_says_escapes_as_an_exception(data: st.DataObject) -> None:
    folder = Folder()
    folder.fold.fold(1, 0, True, b'{"type":"Enqueued","id":"E","job":"%s","job_type":"t"}' % JOBS[0].encode())
    for offset in range(2, data.draw(st.integers(3, 5))):
        kind = data.draw(st.sampled_from(get_args(AnyEvent)))
        line: dict[str, Any] = {
            "type": kind.__name__,
            "id": "i",
            "job": JOBS[0],
            "epoch": -1,
            "job_type": "t",
            "of": "E",
        }
        line |= {
            "seen": pack_of(folder),
            "lease": "i",
            "worker": "w",
            "attempt": 1,
            "lease_ms": 1,
            "not_after": 9,
            "seq": 1,
        }
        line |= {
            "orchestrator": "o",
            "incarnation": "i",
            "supersedes": -1,
            "previous": -1,
            "control_position": 5,
        }
        line |= {"line_position": -1, "target": 0, "version": 1, "error": {"code": "c"}, "reason": "silent"}
        for name in data.draw(st.lists(st.sampled_from(kind.__struct_fields__), max_size=2)):
            line[name] = data.draw(json_values | st.integers(-1, 1 << 70))
        folder.fold.fold(offset, data.draw(st.integers(-1, 1 << 50)), True, json.dumps(line).encode())
        folder.commit()
    assert folder.digest == sum(row_digest(*row) for row in folder.rows.items()) % DIGEST_MODULUS


def pack_of(folder: Folder) -> int:
    job = folder.fold.job(f"default/{JOBS[0]}")
    return job.seen if job else -1


@common
@given(logs())
def test_every_line_that_can_be_read_can_be_written_and_read_again(log: list[Record]) -> None:
    fold = PartitionFold(HERE, PARTITIONS, lambda _: None)
    for offset, record in enumerate(log, 1):
        for one in fold.fold(offset, *record):
            if one.event is not None:
                again = encode_line(one.event)
                assert encode_line(decode_line(again)) == again
            if one.after is not None:
                assert one.key == one.after.key
                assert job_row_key(one.key).startswith(b"jdefault/")
