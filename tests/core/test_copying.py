"""A copy of a log, line by line: what a partition believes of where lines stood, and until when."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from penstock.core import copying
from penstock.core.partition import Folded, PartitionFold, decided_by_its_job
from penstock.core.rows import STATE_KEY
from penstock.core.rules import RULES, RuleSet, newest
from penstock.schemas.copies import CopiedPlace, encode_copied_from
from penstock.schemas.errors import UnknownRules
from penstock.schemas.ids import partition_of
from penstock.schemas.position import ordinal, pack

COPY = "cluster/penstock.jobs"
TWO = encode_copied_from(COPY, 0, 1, 0, [CopiedPlace(5, 5, 1), CopiedPlace(6, 6, 1)])
TARGETS = 3
JOBS = [f"job-{number}" for number in range(40)]
HERE = next(job for job in JOBS if partition_of(job, TARGETS) == 0)
OTHER = next(job for job in JOBS if partition_of(job, TARGETS) == 0 and job != HERE)
ELSEWHERE = next(job for job in JOBS if partition_of(job, TARGETS) == 1)


def line(kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, **fields}).encode()


def enqueued(job: str = HERE, **fields: Any) -> bytes:
    return line("Enqueued", **{"job": job, "job_type": "t", "id": f"enq.{job}"} | fields)


def sealed(**fields: Any) -> bytes:
    return line("CopySealed", **{"id": "seal", "copy": COPY, "generation": 1} | fields)


class Target:
    """One partition of the copy."""

    def __init__(self, rules: Any = RULES) -> None:
        self.rows: dict[bytes, bytes | None] = {}
        self.rules = rules
        self.fold = PartitionFold(0, TARGETS, self.rows.get, rules=rules)
        self.offset = -1

    def add(self, *lines: bytes, time_ms: int = 9_000_000, copied: bytes | None = None) -> list[Folded]:
        self.offset += 1
        return self.fold.fold(self.offset, time_ms, True, b"\n".join(lines), copied)

    def copy(
        self, *lines: bytes, at: list[int], times: list[int] | None = None, source: int = 0, **more: Any
    ) -> list[Folded]:
        ordinals = more.get("ordinals", at)
        places = list(map(CopiedPlace, at, ordinals, times or [1_000] * len(at)))
        header = encode_copied_from(more.get("copy", COPY), source, more.get("rules", 1), 0, places)
        return self.add(*lines, copied=header)

    def reopened(self) -> None:
        """As another process finds it."""
        changes = self.fold.take_changes()
        self.rows.update(changes.rows)
        self.fold = PartitionFold(0, TARGETS, self.rows.get, changes.digest, self.rules)

    def job(self, job: str = HERE) -> Any:
        return self.fold.job(f"default/{job}")


@pytest.fixture
def target() -> Target:
    return Target()


def outcomes(folded: list[Folded]) -> list[str]:
    return [one.outcome for one in folded]


def reasons(folded: list[Folded]) -> set[str]:
    return {one.reason for one in folded}


def test_a_copied_line_counts_with_its_own_place_and_time(target: Target) -> None:
    [folded] = target.copy(enqueued(), at=[pack(700, 3)], times=[1_234])
    job = target.job()
    assert (job.seen, job.order, job.created_at_ms, job.time_ms) == (pack(700, 3), pack(700, 3), 1_234, 1_234)
    assert (folded.position, folded.time_ms, folded.outcome) == (pack(0, 0), 1_234, "applied")


def test_a_leaders_line_needs_no_epoch_and_an_origin_is_not_asked_again(target: Target) -> None:
    target.copy(enqueued(origin="7:1:1"), at=[pack(5, 0)], source=2)
    leased = line(
        "Leased", id="L", job=HERE, worker="w", attempt=1, lease_ms=9, seen=pack(5, 0), epoch=pack(3, 0)
    )
    assert outcomes(target.copy(leased, at=[pack(9, 0)], source=2)) == ["applied"]
    assert (target.job().leased_at, target.fold.state.epoch, target.fold.state.origins) == (
        pack(9, 0),
        -1,
        {},
    )


def test_what_comes_twice_or_late_is_a_duplicate(target: Target) -> None:
    target.copy(enqueued(), enqueued(OTHER), at=[pack(5, 0), pack(6, 0)])
    again = target.copy(enqueued(), enqueued(OTHER, job_type="u"), at=[pack(5, 0), pack(6, 0)])
    assert (outcomes(again), reasons(again)) == (["duplicate"] * 2, {copying.ALREADY_COPIED})
    # Half of it new, as after a copier that died and cut its records otherwise.
    cancel = line("CancelRequested", id="c", job=HERE, of=f"enq.{HERE}", not_after=2_000)
    assert outcomes(target.copy(enqueued(OTHER), cancel, at=[pack(6, 0), pack(7, 0)])) == [
        "duplicate",
        "applied",
    ]


def test_each_partition_of_the_source_has_its_own_mark(target: Target) -> None:
    target.copy(enqueued(), at=[pack(500, 0)], source=0)
    assert outcomes(target.copy(enqueued(OTHER), at=[pack(2, 0)], source=1)) == ["applied"]
    assert target.fold.state.copied == {0: pack(500, 0), 1: pack(2, 0)}


def test_nothing_else_is_taken_while_it_is_copied(target: Target) -> None:
    target.copy(enqueued(), at=[pack(5, 0)])
    announced = line("LeaderAnnounced", id="a", orchestrator="o", incarnation="i", supersedes=-1)
    foreign = target.add(announced, enqueued(OTHER), sealed(copy="another"), b"junk", b"")
    assert outcomes(foreign) == ["illegal", "illegal", "illegal", "quarantined"]
    other = target.copy(enqueued(OTHER), at=[pack(9, 0)], copy="another")
    assert (outcomes(other), reasons(other)) == (["illegal"], {copying.FOREIGN})
    assert (target.job(OTHER), target.fold.state.epoch) == (None, -1)


@pytest.mark.parametrize("text", [enqueued(), b"junk", line("Succeeded", id="s", job=HERE, lease="l")])
def test_a_partition_that_has_had_a_line_never_becomes_a_copy(target: Target, text: bytes) -> None:
    target.add(text)
    late = target.copy(enqueued(OTHER), at=[pack(5, 0)])
    assert (outcomes(late), reasons(late)) == (["illegal"], {copying.NOT_COPYING})
    assert outcomes(target.add(sealed())) == ["illegal"]
    assert (target.fold.state.copying, target.fold.state.generation) == ("", 0)


def test_blank_records_are_no_lines(target: Target) -> None:
    assert target.add(b"") == target.add(b"\n \n") == []
    assert outcomes(target.copy(enqueued(), at=[pack(5, 0)])) == ["applied"]


@pytest.mark.parametrize("header", [b"", b"\xc1", b"junk", TWO])
def test_a_header_that_says_nothing_of_the_lines_is_not_believed(target: Target, header: bytes) -> None:
    folded = target.add(enqueued(), copied=header)
    assert (outcomes(folded), reasons(folded)) == (["illegal"], {copying.UNREADABLE})
    assert target.fold.state.copying == ""


@pytest.mark.parametrize(("steps", "times", "ordinals"), [
    ((1 << 55,), (), ()), ((1,), (5, 5), ()), ((1,), (-2_000,), ()), ((1,), (1 << 62,), ()), ((1,), (), (1,)),
    ((0,), (), ()), ((1,), (), (1, 1 << 63)), ((1,), (), (-1, 1)),
])  # fmt: skip
def test_places_that_no_log_has_are_not_believed(
    target: Target, steps: Any, times: Any, ordinals: Any
) -> None:
    header = msgspec.msgpack.encode((COPY, 0, 1, 0, 5, 1_000, steps, times, ordinals))
    assert reasons(target.add(enqueued(), enqueued(OTHER), copied=header)) == {copying.UNREADABLE}


def test_only_lines_of_its_own_jobs_are_taken(target: Target) -> None:
    announced = line("LeaderAnnounced", id="a", orchestrator="o", incarnation="i", supersedes=-1)
    known = line("Deleted", id="d", job=HERE, of="e", not_after=1)
    folded = target.copy(enqueued(ELSEWHERE), announced, known, at=[5, 6, 7])
    assert [one.reason for one in folded] == [
        "belongs to partition 1",
        copying.NOT_ABOUT_A_JOB,
        copying.NOT_ABOUT_A_JOB,
    ]


# The seal


def test_above_the_seal_places_are_this_logs_own_and_above_every_copied_one(target: Target) -> None:
    target.copy(enqueued(), at=[pack(70_000, 0)])
    assert outcomes(target.add(sealed(), enqueued(OTHER))) == ["applied", "applied"]
    state = target.fold.state
    assert (state.generation, state.copying, state.sealed_at) == (1, "", pack(1, 0))
    assert target.job(OTHER).seen == ordinal(1, pack(1, 1)) > target.job().seen


def test_the_epoch_after_a_seal_is_above_every_epoch_of_the_source(target: Target) -> None:
    target.add(sealed())
    target.add(line("LeaderAnnounced", id="a", orchestrator="o", incarnation="i", supersedes=-1))
    epoch = ordinal(1, pack(1, 0))
    assert target.fold.state.epoch == epoch
    target.add(enqueued())
    lease = {"job": HERE, "worker": "w", "attempt": 1, "lease_ms": 1, "seen": ordinal(1, pack(2, 0))}
    assert outcomes(target.add(line("Leased", id="L", epoch=epoch, **lease))) == ["applied"]
    assert target.job().leased_at == ordinal(1, pack(3, 0))


def test_what_arrives_after_the_seal_changes_nothing(target: Target) -> None:
    target.copy(enqueued(), at=[pack(5, 0)])
    target.add(sealed())
    late = target.copy(enqueued(OTHER), at=[pack(6, 0)])
    assert (outcomes(late), reasons(late)) == (["illegal"], {copying.NOT_COPYING})
    assert outcomes(target.add(sealed(id="again"))) == ["illegal"]


@pytest.mark.parametrize("fields", [{"copy": ""}, {"generation": 0}, {"copy": "another"}])
def test_a_seal_of_something_else_seals_nothing(target: Target, fields: dict[str, Any]) -> None:
    target.copy(enqueued(), at=[pack(5, 0)])
    assert outcomes(target.add(sealed(**fields))) == ["illegal"]
    assert target.fold.state.copying == COPY


def test_a_copy_of_a_copy_has_a_higher_generation(target: Target) -> None:
    # The source's lines were copied from several partitions themselves: only their positions ascend.
    target.copy(enqueued(), enqueued(OTHER), at=[5, 6], ordinals=[ordinal(1, pack(2, 0)), pack(9, 0)])
    assert outcomes(target.add(sealed(generation=1))) == ["illegal"]
    assert outcomes(target.add(sealed(generation=2))) == ["applied"]
    assert (target.job().seen, target.job(OTHER).order) == (ordinal(1, pack(2, 0)), pack(9, 0))
    assert target.fold.state.copied == {0: 6}


def test_it_goes_on_where_another_process_left_it(target: Target) -> None:
    target.copy(enqueued(), at=[pack(5, 0)])
    target.reopened()
    assert outcomes(target.copy(enqueued(), at=[pack(5, 0)])) == ["duplicate"]
    target.add(sealed())
    target.reopened()
    target.add(enqueued(OTHER))
    assert target.job(OTHER).seen == ordinal(1, pack(3, 0))


def test_state_rows_do_not_depend_on_how_it_was_batched() -> None:
    once, often = Target(), Target()
    for one in (once, often):
        for number, job in enumerate(job for job in JOBS if partition_of(job, TARGETS) == 0):
            one.copy(enqueued(job), at=[pack(number, 0)], source=number % 3)
            if one is often:
                one.reopened()
        one.add(sealed())
        one.reopened()
    assert once.rows == often.rows
    assert STATE_KEY in once.rows


# Rules


def test_copied_lines_keep_the_rules_that_they_were_folded_under() -> None:
    table = {
        1: RULES[1],
        2: RuleSet(RULES[1].in_force | {"Unblocked"}, decide=lambda *_: pytest.fail("of rules 2")),
    }
    target = Target(table)
    target.copy(enqueued(), at=[pack(5, 0)], rules=1)
    assert target.fold.state.rules == 1
    target.add(sealed(rules=2))
    assert target.fold.state.rules == 2
    with pytest.raises(pytest.fail.Exception, match="of rules 2"):
        target.add(enqueued(OTHER))


def test_rules_that_this_program_lacks_stop_it(target: Target) -> None:
    with pytest.raises(UnknownRules, match="upgrade"):
        target.copy(enqueued(), at=[pack(5, 0)], rules=newest(RULES) + 1)
    with pytest.raises(UnknownRules, match="upgrade"):
        Target().add(sealed(rules=newest(RULES) + 1))


# What is worth copying


def test_what_the_partition_stopped_is_told_from_what_its_job_decided() -> None:
    fold = PartitionFold(0, TARGETS, lambda _: None)
    lines = {
        enqueued(): True,
        enqueued(job_type="u"): True,
        line("Succeeded", id="s", job=OTHER, lease="l"): True,
        line("Succeeded", id="s", job=HERE, lease="l"): True,
        enqueued(ELSEWHERE): False,
        enqueued(OTHER, origin="1:5:0"): True,
        enqueued(OTHER, id="again", origin="1:5:0"): False,
        enqueued(OTHER, id="o", origin="here"): False,
        enqueued(OTHER, id="o", origin="0:5:0"): False,
        enqueued(ELSEWHERE, origin="1:9:0"): False,
        line("Due", id="d", job=HERE, seen=1, epoch=5): False,
        line("LeaderAnnounced", id="a", orchestrator="o", incarnation="i", supersedes=-1): False,
        line("Deleted", id="d", job=HERE, of="e", not_after=1): False,
        b"junk": False,
    }
    folded = fold.fold(0, 1_000, True, b"\n".join(lines))
    assert [decided_by_its_job(one, 0, TARGETS) for one in folded] == list(lines.values())
