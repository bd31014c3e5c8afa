"""What batches and workflows come to: counted along, whatever happens to their jobs and however it is committed."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.job_state import Job
from penstock.projections.port import CountRow, JobFilter, Moment
from penstock.schemas.limits import MAX_BUNDLE_LINES
from penstock.schemas.position import pack
from tests.projections.model import Model
from tests.projections.test_past import folded
from tests.state.strategies import cuts, ops
from tests.state.writing import Op, Writer

AMONG = (
    JobFilter(batch=("b1",)),
    JobFilter(batch=("b2",)),
    JobFilter(batch=("none",)),
    JobFilter(workflow=("w",)),
)


def recounted(jobs: list[Job], among: JobFilter) -> dict[tuple[str, str, str, str], int]:
    mine = [
        job for job in jobs if (job.batch in among.batch if among.batch else job.workflow in among.workflow)
    ]
    return dict(
        Counter((job.state, job.queue, job.pool, job.job_type) for job in mine if job.state != "deleted")
    )


def plain(rows: list[CountRow]) -> dict[tuple[str, str, str, str], int]:
    return {(row.state, row.queue, row.pool, row.type): row.jobs for row in rows if row.jobs}


@settings(deadline=None)
@given(ops, cuts, st.data())
def test_they_are_those_of_a_recount(played: list[Op], commit_after: list[int], data: st.DataObject) -> None:
    writer = Writer()
    writer.activate_rules()
    records = writer.play(played)
    one = folded(records, commit_after)
    jobs = list(Model(records).jobs.values())
    for among in AMONG:
        assert plain(one.reads.counts("default", among=among)) == recounted(jobs, among)
    number = data.draw(st.integers(0, len(records) - 1))
    last = records[number]
    at = Moment(last.time_ms, 0, pack(last.offset, MAX_BUNDLE_LINES - 1))
    then = list(Model(records[: number + 1]).jobs.values())
    for among in AMONG:
        found = asyncio.run(one.reads.counts_at("default", at, among=among))
        assert plain(found) == recounted(then, among)


def test_nothing_is_left_of_a_batch_whose_jobs_are_forgotten() -> None:
    writer = Writer()
    writer.activate_rules()
    writer.enqueue("a", batch="b", workflow="w")
    writer.play([("end_record", 0, 0), ("age", 0, 0)])
    writer.enqueue("job-1", batch="b", workflow="w")
    writer.play([("end_record", 0, 0), ("cancel", 1, 0), ("end_record", 0, 0), ("age", 0, 0)])
    writer.play([("forget", 1, 0), ("end_record", 0, 0)])
    one = folded(writer.records)
    assert plain(one.reads.counts("default", among=JobFilter(batch=("b",)))) == {
        ("ready", "default", "default", "resize"): 1
    }
    assert one.queries.number_of("default", JobFilter(workflow=("w",), state=("ready",))) == 1
    assert one.queries.number_of("default", JobFilter(workflow=("w",), state=("cancelled",))) == 0
