"""What operations have done, as the log tells it: counted once, listed by job, and let go with their age."""

from __future__ import annotations

import pytest

from penstock.log.port import Record
from penstock.projections.operated import remove_operated
from penstock.projections.rows import OPERATED
from penstock.schemas import events as ev
from penstock.schemas.codec import bundle, encode_line
from penstock.schemas.ids import operation_event, operation_of
from tests.projections.model import OnePartition
from tests.state.writing import TOPIC

NOW_MS = 1_700_000_000_000


def asked(job: str, operation: str = "o1", *, of: str = "") -> ev.CancelRequested:
    return ev.CancelRequested(
        id=operation_event(operation), job=job, of=of or f"enq.{job}", not_after=NOW_MS + 60_000
    )


def begun(job: str) -> ev.Enqueued:
    return ev.Enqueued(id=f"enq.{job}", job=job, job_type="t")


def folded(*records: list[ev.Event], commit_after: int = 1, every_ms: int = 1_000) -> OnePartition:
    one = OnePartition()
    one.fold(
        [
            Record(
                TOPIC,
                0,
                offset,
                NOW_MS + offset * every_ms,
                True,
                None,
                bundle(list(map(encode_line, lines))),
            )
            for offset, lines in enumerate(records)
        ],
        commit_after,
    )
    return one


@pytest.mark.parametrize("commit_after", [1, 100])
def test_each_jobs_outcome_is_counted_once(commit_after: int) -> None:
    one = folded(
        [begun("a"), begun("b"), begun("c")],
        [asked("a"), asked("b"), asked("nobody")],
        # A page that is asked for again, and one job that another had cancelled.
        [asked("a"), asked("b"), asked("c", "other"), asked("c")],
        commit_after=commit_after,
    )
    page = one.reads.operated("o1", 10, "")
    assert page.counts == {"applied": 2, "unknown_job": 1, "illegal": 1}
    assert [(item.job, item.outcome) for item in page.items] == [
        ("a", "applied"), ("b", "applied"), ("c", "illegal"), ("nobody", "unknown_job")
    ]  # fmt: skip
    assert page.items[2].reason
    first = one.reads.operated("o1", 3, "")
    assert [item.job for item in first.items] == ["a", "b", "c"]
    assert [item.job for item in one.reads.operated("o1", 3, first.next_cursor or "").items] == ["nobody"]
    assert one.reads.operated("other", 10, "").counts == {"applied": 1}
    assert one.reads.operated("none", 10, "").counts == {}


def test_one_that_is_refused_first_and_done_later_counts_as_done() -> None:
    late = asked("a")
    one = folded(
        [begun("a")],
        [ev.CancelRequested(id=late.id, job="a", of="enq.a", not_after=1)],
        [late],
    )
    assert one.reads.operated("o1", 10, "").counts == {"applied": 1}


def test_rows_go_with_their_age_some_at_a_time() -> None:
    jobs = [f"j{number}" for number in range(7)]
    one = folded([begun(job) for job in jobs], [asked(job, "old") for job in jobs], [asked("j0", "new")])
    kv = one.kv
    assert remove_operated(kv, NOW_MS + 1_000, 3) == 0
    removed = 0
    while found := remove_operated(kv, NOW_MS + 1_500, 3):
        removed += found
    assert removed == len(jobs) + 2
    assert one.reads.operated("old", 10, "").items == []
    assert one.reads.operated("new", 10, "").counts == {"illegal": 1}
    while remove_operated(kv, NOW_MS + 10_000, 3):
        pass
    assert list(kv.scan(OPERATED)) == []


@pytest.mark.parametrize("event_id", ["op.", "op.a\0b", "op.a b", "op.é", "xop.a", "op." + "a" * 200])
def test_what_names_no_operation_is_none(event_id: str) -> None:
    assert operation_of(event_id) == ""
    one = folded(
        [begun("a")], [ev.CancelRequested(id=event_id, job="a", of="enq.a", not_after=NOW_MS + 60_000)]
    )
    assert list(one.kv.scan(OPERATED)) == []
    assert one.reads.job("default", "a").state == "cancelled"  # type: ignore[union-attr]  # it is there
