"""What stays of forgotten jobs, how long, and that it leaves whole."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.log.kv import KeyValueStore
from penstock.log.memory import MemoryLog
from penstock.log.namespace import open_namespace
from penstock.projections import read_model
from penstock.projections.port import JobsQuery
from penstock.projections.retention import remove_histories
from penstock.projections.rows import FORGOTTEN, HISTORY, REFUSED, job_prefix
from penstock.projections.service import ProjectionService
from penstock.schemas import events as ev
from penstock.schemas.topics import Topics
from tests.projections.model import OnePartition
from tests.state.shelf import Shelf
from tests.state.strategies import cuts, ops
from tests.state.writing import START_MS, Op, Writer
from tests.waiting import PATIENCE_S, until

FAR_MS = START_MS * 2


def one_life(writer: Writer, job_id: str, result: bytes = b"1") -> None:
    writer.enqueue(job_id)
    writer.run(job_id, result)
    writer.write(ev.Succeeded(id="nobody", job=job_id, lease="no-such-lease"))
    writer.forget(job_id)


def rows(kv: KeyValueStore, family: str) -> int:
    return sum(1 for _ in kv.scan(family))


def types(one: OnePartition, job_id: str) -> list[str]:
    page = one.reads.history("default", job_id, 100, "")
    return [] if page is None else [item.type for item in page.items]


def test_a_forgotten_job_leaves_lists_and_look_ups_and_keeps_its_history() -> None:
    writer, one = Writer(), OnePartition()
    one_life(writer, "a")
    one.fold(writer.play([]))
    assert one.reads.job("default", "a") is None
    assert one.reads.list_jobs(JobsQuery()).total == 0
    assert [row for row in one.reads.counts("default") if row.jobs] == []
    assert types(one, "a") == ["Enqueued", "Leased", "Succeeded", "Succeeded", "Forgotten"]


def test_histories_go_at_their_age_oldest_first_and_leave_nothing() -> None:
    writer, one = Writer(), OnePartition()
    for job_id in ("a", "b", "c"):
        one_life(writer, job_id)
    records = writer.play([])
    one.fold(records)
    ends = sorted(record.time_ms for record in records if b'"Forgotten"' in record.value)
    assert remove_histories(one.kv, ends[0]) == 0
    assert remove_histories(one.kv, ends[0] + 1) == 1
    assert [bool(types(one, job_id)) for job_id in ("a", "b", "c")] == [False, True, True]
    assert remove_histories(one.kv, FAR_MS, 1) == 1
    assert remove_histories(one.kv, FAR_MS, 1) == 1
    assert remove_histories(one.kv, FAR_MS, 1) == 0
    assert [rows(one.kv, family) for family in (HISTORY, REFUSED, FORGOTTEN)] == [0, 0, 0]


@pytest.mark.parametrize("commit_after", [1, 1_000])
def test_a_later_life_under_the_same_id_keeps_its_own_history(commit_after: int) -> None:
    writer, one = Writer(), OnePartition()
    one_life(writer, "a")
    one_life(writer, "a")
    writer.enqueue("a", id="third")
    writer.run("a")
    writer.write(ev.Succeeded(id="late", job="a", lease="of-an-earlier-life"))
    one.fold(writer.play([]), commit_after)
    before = one.reads.history("default", "a", 100, "")
    assert before is not None
    assert before.refused == 3
    assert remove_histories(one.kv, FAR_MS) == 2
    page = one.reads.history("default", "a", 100, "")
    assert page is not None
    assert page.items == before.items[-4:]
    assert page.refused == 1
    assert [item.type for item in page.items] == ["Enqueued", "Leased", "Succeeded", "Succeeded"]
    # And it goes on.
    writer.write(ev.Succeeded(id="later", job="a", lease="of-an-earlier-life"))
    writer.forget("a")
    one.fold(writer.play([])[one.store.next_offset :])
    page = one.reads.history("default", "a", 100, "")
    assert page is not None
    assert page.refused == 2
    remove_histories(one.kv, FAR_MS)
    assert types(one, "a") == []
    assert list(one.kv.scan(REFUSED, job_prefix("default/a"))) == []


@given(ops, cuts, st.integers(1, 5))
def test_removing_never_touches_what_is_not_forgotten(
    played: list[Op], commit_after: list[int], limit: int
) -> None:
    records = Writer().play(played)
    one = OnePartition()
    one.fold(records, commit_after[0] + 1)
    ids = [f"job-{number}" for number in range(5)]
    digest, listed = one.store.digest, one.reads.list_jobs(JobsQuery(limit=100))
    before = {job_id: one.reads.history("default", job_id, 1_000, "") for job_id in ids}
    while remove_histories(one.kv, FAR_MS, limit):
        pass
    assert one.store.recompute_digest() == digest
    assert one.reads.list_jobs(JobsQuery(limit=100)) == listed
    alive = {job.id for job in listed.items}
    for job_id in ids:
        page, old = one.reads.history("default", job_id, 1_000, ""), before[job_id]
        if job_id not in alive:
            assert page is None
            continue
        assert page is not None
        assert old is not None
        last = max((index for index, item in enumerate(old.items) if _ends_a_life(item)), default=-1)
        assert page.items == old.items[last + 1 :]


def _ends_a_life(item: object) -> bool:
    return getattr(item, "type", "") == "Forgotten" and getattr(item, "outcome", "") == "applied"


async def test_the_projection_removes_them_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_model, "SWEEP_EVERY_S", 0.02)
    writer = Writer()
    one_life(writer, "a")
    records = writer.play([])
    clock = [0]
    log = MemoryLog(now_ms=lambda: clock[0])
    topics = (await open_namespace(log, Topics(partitions=1, work_partitions=2))).topics
    began_ms = time.time_ns() // 1_000_000 - 24 * 3_600_000
    ages_ms = {"young": 30 * 24 * 3_600_000, "old": 3_600_000, "ever": None}
    services = {
        name: ProjectionService(log, topics, tmp_path / name, history_age_ms=age_ms, store_factory=Shelf())
        for name, age_ms in ages_ms.items()
    }
    async with services["young"], services["old"], services["ever"]:
        for record in records:
            clock[0] = began_ms + record.time_ms - START_MS
            await log.append(topics.jobs, 0, record.value)
        for one in services.values():
            await until(lambda one=one: one.offsets[0] == len(records), one)
        gone = services["old"]
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if await gone.history("default", "a") is None:
                    break
                await asyncio.sleep(0.01)
        for name in ("young", "ever"):
            page = await services[name].history("default", "a")
            assert page is not None
            assert page.items[-1].type == "Forgotten"
