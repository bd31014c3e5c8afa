"""Lists, searches and counts as of a moment: what was answered at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.log.port import Record
from penstock.projections import candidates, forgotten
from penstock.projections.port import CountRow, JobFilter, JobView, Moment, SearchPage, SearchQuery, Sort
from penstock.schemas import events as ev
from penstock.schemas.errors import InvalidField
from penstock.schemas.limits import MAX_BUNDLE_LINES
from penstock.schemas.position import pack
from tests.projections.model import OnePartition
from tests.state.strategies import cuts, ops
from tests.state.writing import Op, Writer

FILTERS = (
    JobFilter(),
    JobFilter(state=("ready",)),
    JobFilter(state=("dead", "succeeded"), queue=("bulk",)),
    JobFilter(type=("mail",), attempt_min=1),
    JobFilter(id_prefix="job-2"),
    JobFilter(tags=("red",)),
    JobFilter(tags_any=("big", "none"), state=("ready", "active")),
    JobFilter(has_errors=True),
    JobFilter(payload_contains='"n":1'),
    JobFilter(text="report"),
)


def folded(records: Sequence[Record], commit_after: list[int] | None = None) -> OnePartition:
    one = OnePartition()
    rest = iter(records)
    for cut in (commit_after or [1]) * (len(records) + 1):
        one.fold([record for _, record in zip(range(cut), rest, strict=False)], commit_after=99)
    return one


def searched(one: OnePartition, query: SearchQuery) -> SearchPage:
    return asyncio.run(one.reads.search(query))


def plain(view: JobView) -> tuple[object, ...]:
    return (
        view.id,
        view.state,
        view.attempt,
        view.created_at,
        view.updated_at,
        bytes(view.payload),
        view.errors,
    )


def counts_of(rows: Sequence[CountRow]) -> dict[tuple[str, str, str, str], int]:
    return {(row.state, row.queue, row.pool, row.type): row.jobs for row in rows}


def check(now: OnePartition, then: OnePartition, at: Moment) -> None:
    for wanted in FILTERS:
        for sort in ("-created_at", "created_at", "-updated_at"):
            query = SearchQuery(filter=wanted, limit=1_000, sort=sort)
            was = searched(now, SearchQuery(filter=wanted, limit=1_000, sort=sort, at=at))
            assert [plain(view) for view in was.items] == [
                plain(view) for view in searched(then, query).items
            ]
            assert was.total is None
    counted = asyncio.run(now.reads.counts_at("default", at))
    assert counts_of(counted) == counts_of(then.reads.counts("default"))


@settings(deadline=None)
@given(ops, cuts, st.data())
def test_at_a_time_and_at_a_position(played: list[Op], commit_after: list[int], data: st.DataObject) -> None:
    records = Writer().play(played)
    number = data.draw(st.integers(0, len(records) - 1))
    last = records[number]
    now = folded(records, commit_after)
    exactly = Moment(last.time_ms, 0, pack(last.offset, MAX_BUNDLE_LINES - 1))
    check(now, folded(records[: number + 1]), exactly)
    moment = Moment(last.time_ms)
    check(now, folded([record for record in records if record.time_ms <= last.time_ms]), moment)


@settings(deadline=None)
@given(ops, st.integers(1, 3), st.sampled_from(["created_at", "-created_at"]))
def test_pages_put_together_are_the_list(played: list[Op], limit: int, sort: Sort) -> None:
    records = Writer().play(played)
    one = folded(records)
    at = Moment(records[len(records) // 2].time_ms)
    whole = searched(one, SearchQuery(limit=1_000, sort=sort, at=at)).items
    found: list[JobView] = []
    cursor = ""
    while True:
        page = searched(one, SearchQuery(limit=limit, sort=sort, at=at, cursor=cursor))
        found += page.items
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
    assert found == whole


@pytest.mark.parametrize("few", [0, 1_000])
@pytest.mark.parametrize(
    "wanted",
    [
        JobFilter(batch=("b1",)),
        JobFilter(batch=("b1", "b2"), state=("ready",)),
        JobFilter(workflow=("w",), batch=("b2",)),
        JobFilter(unique_key="k"),
        JobFilter(concurrency_key="k"),
    ],
)
def test_what_a_job_was_put_in_with(monkeypatch: pytest.MonkeyPatch, wanted: JobFilter, few: int) -> None:
    """Also of those that are gone by now, and of ids that lived twice."""
    monkeypatch.setattr(candidates, "FEW_IN_GROUPS", few)
    writer = Writer()
    writer.activate_rules()
    writer.enqueue("a~k", batch="b1", concurrency_key="k", unique=ev.Unique("k"))
    writer.enqueue("b~k", batch="b2", workflow="w", concurrency_key="k")
    writer.enqueue("job-1", batch="b1")
    writer.enqueue("job-2", batch="b1", workflow="w")
    writer.enqueue("c")
    writer.end_record()
    moments = [len(writer.records) - 1]
    writer.run("a~k")
    writer.play(
        [("end_record", 0, 0), ("cancel", 1, 0), ("cancel", 2, 0), ("end_record", 0, 0), ("age", 0, 0)]
    )
    writer.play([("forget", 1, 0), ("end_record", 0, 0)])
    moments.append(len(writer.records) - 1)
    writer.enqueue("job-1", batch="b2")
    not_after = writer.time_ms + 60_000
    writer.write(ev.Deleted(id="d", job="job-2", of="enq.job-2", not_after=not_after))
    writer.end_record()
    moments.append(len(writer.records) - 1)
    writer.lease("b~k")
    writer.end_record()
    now = folded(writer.records)
    for number in moments:
        last = writer.records[number]
        then = folded(writer.records[: number + 1])
        at = Moment(last.time_ms, 0, pack(last.offset, MAX_BUNDLE_LINES - 1))
        was = [plain(view) for view in searched(now, SearchQuery(filter=wanted, at=at)).items]
        assert was == [plain(view) for view in searched(then, SearchQuery(filter=wanted)).items]
        assert was or number != moments[0], "there are such jobs at first"


def test_more_forgotten_jobs_than_are_looked_through_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgotten, "MOST_FORGOTTEN", 3)
    writer = Writer()
    for number in range(4):
        writer.play(
            [("enqueue", number, 1), ("end_record", 0, 0), ("cancel", number, 0), ("end_record", 0, 0)]
        )
        writer.play([("age", 0, 0), ("forget", number, 0), ("end_record", 0, 0)])
    one = folded(writer.records)
    assert searched(one, SearchQuery()).items == []
    with pytest.raises(InvalidField, match="more than 3 jobs were forgotten"):
        searched(one, SearchQuery(at=Moment(writer.records[0].time_ms)))
    last = writer.records[-2].time_ms
    assert [view.id for view in searched(one, SearchQuery(at=Moment(last))).items] == ["job-3"]


def test_jobs_forgotten_between_two_pages_stay_in_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgotten, "SLICE_JOBS", 2)
    writer, one = Writer(), OnePartition()
    for number in range(7):
        writer.play(
            [("enqueue", number, 1), ("end_record", 0, 0), ("cancel", number, 0), ("end_record", 0, 0)]
        )
    at = Moment(writer.time_ms)
    whole = [f"job-{number}" for number in range(6, -1, -1)]
    seen: list[str] = []
    cursor, folded_so_far = "", 0
    for number in range(8):
        one.fold(writer.records[folded_so_far:])
        folded_so_far = len(writer.records)
        page = searched(one, SearchQuery(limit=1, cursor=cursor, at=at))
        seen += [view.id for view in page.items]
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
        writer.play([("age", 0, 0), ("forget", number, 0), ("end_record", 0, 0)])
    assert seen == whole
