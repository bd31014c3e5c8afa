"""The text index beside a fold: searches find what they find without it, whatever is indexed, lost or in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.projections import indexing, text_index
from penstock.projections.filters import passes_inside, row_test
from penstock.projections.indexing import IndexedPart, Indexer
from penstock.projections.port import JobFilter, SearchQuery
from penstock.projections.search import Search
from penstock.projections.sources import Present
from penstock.schemas.errors import ReadModelUnavailable
from penstock.schemas.ids import job_key
from tests.projections.model import OnePartition
from tests.state.strategies import cuts, ops
from tests.state.writing import Op, Writer
from tests.waiting import PATIENCE_S, until

FILTERS = (
    JobFilter(text="resize"),
    JobFilter(text="mail timeout"),
    JobFilter(payload_contains='"n":1'),
    JobFilter(payload_contains='{"n":'),
    JobFilter(error_contains="boom"),
    JobFilter(id_prefix="job-1"),
    JobFilter(text="resize", state=("ready", "retrying")),
    JobFilter(has_errors=True),
    JobFilter(has_errors=True, text="report"),
)


@pytest.fixture(autouse=True)
def ask_the_index_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where most jobs have what is looked for."""
    monkeypatch.setattr(text_index, "COMMON", 0)
    monkeypatch.setattr(indexing, "IDLE_S", 0.005)
    monkeypatch.setattr(indexing, "COMMIT_AFTER_S", 0.0)
    monkeypatch.setattr(indexing, "AGAIN_S", 0.01)


class Indexed:
    """A partition and its text index."""

    def __init__(self, one: OnePartition, indexer: Indexer) -> None:
        self.one = one
        self.part = IndexedPart(one.store, one.queries, one.projector.unindexed)
        self.indexer = indexer
        indexer.attach(self.part)

    async def settled(self) -> None:
        await until(lambda: self.part.whole and not self.part.unindexed.jobs)

    async def found(self, wanted: JobFilter) -> list[str]:
        page = await Search(SearchQuery(filter=wanted, limit=1_000), {0: Present(self.one.queries)}).page()
        assert page.next_cursor is None
        return [job.id for job in page.items]

    def expected(self, wanted: JobFilter) -> list[str]:
        """By looking at every job."""
        jobs = [job for _, job in self.one.store.committed_jobs() if row_test(wanted)(job)]
        inside = [one.job for one in self.one.queries.insides(jobs) if passes_inside(wanted, one)]
        inside.sort(key=lambda job: (job.created_at_ms, job.id), reverse=True)
        return [job.id for job in inside]

    async def check(self) -> None:
        for wanted in FILTERS:
            assert await self.found(wanted) == self.expected(wanted), wanted


@asynccontextmanager
async def indexing_of(one: OnePartition, folder: Path) -> AsyncIterator[Indexed]:
    indexer = Indexer(folder, lambda: one.projector.numbers.lines)
    task = asyncio.create_task(indexer.run())
    try:
        yield Indexed(one, indexer)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def folded(number: int = 200) -> OnePartition:
    one = OnePartition(indexed=True)
    one.fold(Writer().play([("enqueue", job, job % 7) for job in range(number)]))
    return one


@settings(max_examples=25, deadline=None)
@given(
    ops,
    cuts,
    st.lists(st.sampled_from(["go on", "settle", "restart", "lose the index"]), min_size=1, max_size=9),
)
def test_searches_find_what_there_is(
    tmp_path_factory: pytest.TempPathFactory, played: list[Op], commit_after: list[int], events: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("index")
    records = Writer().play(played)

    async def story() -> None:
        one = OnePartition(indexed=True)
        rest = iter(records)
        for cut, event in zip(commit_after * 40, events * 40, strict=False):
            some = [record for _, record in zip(range(cut), rest, strict=False)]
            if not some:
                return
            async with indexing_of(one, folder) as indexed:
                one.fold(some, commit_after=2)
                await indexed.check()
                if event == "settle":
                    await indexed.settled()
                    await indexed.check()
            if event == "restart":
                one = one.reopened(indexed=True)
            elif event == "lose the index":
                text_index.remove_index(folder)

    asyncio.run(story())


async def test_what_is_indexed_is_found_without_looking_at_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with indexing_of(folded(), tmp_path) as indexed:
        await indexed.settled()
        looked_at: list[str] = []
        jobs = indexed.one.queries.jobs

        def looking(keys: list[str]) -> object:
            looked_at.extend(keys)
            return jobs(keys)

        monkeypatch.setattr(indexed.one.queries, "jobs", looking)
        assert (
            await indexed.found(JobFilter(id_prefix="job-", payload_contains='"n":6', type=("mail",))) == []
        )
        looked_at.clear()
        assert await indexed.found(JobFilter(text="nothing-like-it")) == []
        assert looked_at == []


async def test_it_goes_on_where_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = folded()
    async with indexing_of(one, tmp_path) as indexed:
        await indexed.settled()
    caplog.set_level("INFO", logger=indexing.__name__)
    async with indexing_of(one.reopened(indexed=True), tmp_path) as indexed:
        await indexed.settled()
        await indexed.check()
    assert "is whole" not in caplog.text
    text_index.remove_index(tmp_path)
    async with indexing_of(one.reopened(indexed=True), tmp_path) as indexed:
        await indexed.settled()
        await indexed.check()
    assert "partition 0 is whole in the text index" in caplog.text


async def test_notes_that_an_index_has_already_do_no_harm(tmp_path: Path) -> None:
    """Killed between the index's commit and the letting go of notes; and a store from before, as from a snapshot."""
    one = folded()
    before = one.kv.dump()
    async with indexing_of(one, tmp_path) as indexed:
        await indexed.settled()
    for kv in (one.kv, type(one.kv).load(before)):
        again = OnePartition(kv, indexed=True)
        async with indexing_of(again, tmp_path) as indexed:
            await indexed.settled()
            await indexed.check()


async def test_switched_off_it_forgets_what_an_index_had(tmp_path: Path) -> None:
    writer, one = Writer(), OnePartition(indexed=True)
    one.fold(writer.play([("enqueue", 1, 1)]))
    async with indexing_of(one, tmp_path) as indexed:
        await indexed.settled()
    assert one.projector.unindexed.taken is not None
    off = one.reopened()
    off.fold(writer.play([("enqueue", 2, 2), ("end_record", 0, 0)]))
    assert off.projector.unindexed.taken is None
    async with indexing_of(off.reopened(indexed=True), tmp_path) as indexed:
        await indexed.settled()
        assert await indexed.found(JobFilter(payload_contains='"n":2')) == ["job-2"]


async def test_with_much_waiting_a_search_looks_at_jobs_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "MOST_WAITING", 10)
    async with indexing_of(folded(0), tmp_path) as indexed:
        await indexed.settled()
        for number in (10, 11):
            indexed.part.index, whole = None, indexed.part.index
            indexed.one.fold(Writer().play([("enqueue", job, 1) for job in range(number)]))
            indexed.part.index = whole
            if indexed.part.unindexed.jobs > 10:
                break
        terms = JobFilter(text="resize")
        places = indexed.one.queries.candidates.of("default", terms)
        assert len(list(places)) == indexed.part.unindexed.jobs
        await indexed.check()


@pytest.mark.parametrize("suffix", ["term", "idx", "store", "fast"])
async def test_a_damaged_index_is_made_anew(tmp_path: Path, suffix: str) -> None:
    one = folded()
    async with indexing_of(one, tmp_path) as indexed:
        await indexed.settled()
    for file in tmp_path.glob(f"*/*.{suffix}"):
        file.write_bytes(b"damaged")
    async with indexing_of(one.reopened(indexed=True), tmp_path) as indexed:
        told: list[str] = []
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await indexed.check()
                except ReadModelUnavailable as error:
                    told.append(str(error))
                else:
                    if indexed.part.whole and not indexed.part.unindexed.jobs:
                        break
                await asyncio.sleep(0.02)
        assert all("made anew" in error for error in told)


async def test_a_folder_that_cannot_be_written_costs_speed_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text-index-1").write_text("not a folder")
    async with indexing_of(folded(), tmp_path) as indexed:
        await until(lambda: "searches do without it" in caplog.text)
        await indexed.check()
        await indexed.settled()
        await indexed.check()


async def test_a_partition_that_goes_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = folded(2_000)
    async with indexing_of(one, tmp_path) as indexed:
        await until(lambda: indexed.part.added > 0 or indexed.part.whole)
        indexed.indexer.detach()
        indexed.part.index = None

        def closed(*_: object, **__: object) -> object:
            raise AssertionError("the store is closed")

        for read in ("jobs", "insides", "jobs_behind"):
            monkeypatch.setattr(one.queries, read, closed)
        await asyncio.sleep(0.2)


def test_a_note_is_made_of_what_changes_texts_and_of_nothing_else() -> None:
    writer, one = Writer(), OnePartition(indexed=True)
    unindexed = one.projector.unindexed

    def notes(*played: Op) -> list[str]:
        before = max([row.offset for row in unindexed.rows()], default=0)
        one.fold(writer.play(played)[len(one_records) :])
        one_records.extend(writer.records[len(one_records) :])
        return [key for row in unindexed.rows(before) for key, _ in row.notes]

    one_records: list[object] = []
    key = job_key("default", "job-1")
    assert notes(("enqueue", 1, 5)) == [key]
    assert notes(("lease", 1, 0)) == []
    assert notes(("progress", 1, 0)) == []
    assert notes(("fail", 1, 0)) == [key]
