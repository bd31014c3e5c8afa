"""The text index by itself: whatever contains what is asked for is found, in order, each once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.projections import text_index
from penstock.projections.candidates import ListKey, Window
from penstock.projections.port import JobFilter
from penstock.projections.text_index import (
    Covered,
    Entry,
    TextIndex,
    TextIndexFailed,
    open_index,
    remove_index,
    terms_of,
)
from penstock.state.partition_store import StoreIdentity

WHOLE = Window(JobFilter(), None, descending=True)


def entry(job_id: str, text: str, created_at_ms: int = 1, tenant: str = "default") -> Entry:
    return Entry(tenant, f"{tenant}/{job_id}", job_id, created_at_ms, text.casefold())


def found(index: TextIndex, wanted: JobFilter, window: Window = WHOLE, partition: int = 0) -> list[ListKey]:
    terms = terms_of(wanted)
    assert terms
    return list(index.finder(partition, "default", terms, descending=window.descending).places(window))


words = st.text(st.sampled_from("abß ÄÉ語.\U0001f600"), min_size=3, max_size=6)


@settings(deadline=None)
@given(st.lists(st.tuples(words, words, st.integers(1, 5)), max_size=30), words, st.booleans())
def test_what_contains_it_is_found_in_order(
    tmp_path_factory: pytest.TempPathFactory, jobs: list[tuple[str, str, int]], asked: str, descending: bool
) -> None:
    index = open_index(tmp_path_factory.mktemp("index"))
    for number, (first, second, created_at_ms) in enumerate(jobs):
        index.add(0, entry(f"j{number}", first + second, created_at_ms), fresh=True)
    index.commit()
    wanted = JobFilter(payload_contains=asked, created_after=2, created_before=5)
    places = found(index, wanted, Window(wanted, None, descending=descending))
    assert places == sorted(set(places), reverse=descending)
    assert all(2 <= created_at_ms < 5 for created_at_ms, _ in places)
    must = {
        (created_at_ms, f"j{number}")
        for number, (first, second, created_at_ms) in enumerate(jobs)
        if 2 <= created_at_ms < 5 and asked in first + second
    }
    assert must <= set(places)


@pytest.mark.parametrize("descending", [True, False])
def test_jobs_of_one_millisecond_are_all_told_however_many(tmp_path: Path, descending: bool) -> None:
    index = open_index(tmp_path)
    jobs = [(7, f"j{number:04d}") for number in range(3_000)] + [(6, "before"), (8, "after")]
    for created_at_ms, job_id in jobs:
        index.add(0, entry(job_id, "needle", created_at_ms), fresh=True)
    index.commit()
    wanted = JobFilter(text="needle")
    assert found(index, wanted, Window(wanted, None, descending=descending)) == sorted(
        jobs, reverse=descending
    )
    behind = Window(wanted, (7, "j1500"), descending=descending)
    expected = [place for place in jobs if (place < (7, "j1500") if descending else place > (7, "j1500"))]
    assert found(index, wanted, behind) == sorted(expected, reverse=descending)


def test_a_job_is_known_by_its_last_text(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    index.add(0, entry("j", "first"), fresh=True)
    index.commit()
    index.add(0, entry("j", "second"), fresh=False)
    index.add(0, entry("gone", "second"), fresh=True)
    index.remove(0, "default/gone")
    index.commit()
    assert found(index, JobFilter(text="first")) == []
    assert found(index, JobFilter(text="second")) == [(1, "j")]


def test_tenants_and_partitions_are_kept_apart(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    index.add(0, entry("mine", "text"), fresh=True)
    index.add(0, entry("theirs", "text", tenant="other"), fresh=True)
    index.add(1, entry("elsewhere", "text"), fresh=True)
    index.commit()
    assert found(index, JobFilter(text="text")) == [(1, "mine")]
    index.remove_partition(0)
    index.commit()
    assert found(index, JobFilter(text="text")) == []
    assert found(index, JobFilter(text="text"), partition=1) == [(1, "elsewhere")]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (JobFilter(text="ab c"), []),
        (JobFilter(text="ab Abcd"), ["abc", "bcd"]),
        (JobFilter(payload_contains="STRASSE"), ["str", "tra", "ras", "ass", "sse"]),
        (JobFilter(payload_contains="\ud800ab"), []),
        (JobFilter(id_prefix="ab"), []),
        (JobFilter(id_prefix="abc"), ["abc"]),
        (JobFilter(id_prefix="abcde"), ["abcd"]),
        (JobFilter(id_prefix="x" * 99), ["x" * 32]),
        (JobFilter(state=("dead",), has_errors=True), []),
    ],
)
def test_what_is_asked_of_it(wanted: JobFilter, expected: list[str]) -> None:
    assert [term.text for term in terms_of(wanted)] == expected


def test_terms_that_many_have_do_not_narrow_a_search_down(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    assert index.narrows(terms_of(JobFilter(text="anything")))
    assert not index.narrows([])
    for number in range(40):
        index.add(
            0,
            entry(f"j{number}", "common" + (" rare" if number % text_index.COMMON == 0 else "")),
            fresh=True,
        )
    index.commit()
    assert index.narrows(terms_of(JobFilter(text="rare")))
    assert index.narrows(terms_of(JobFilter(text="common rare")))
    assert not index.narrows(terms_of(JobFilter(text="common")))


def test_what_it_covers_is_of_one_fold(tmp_path: Path) -> None:
    identity = StoreIdentity("cluster", "jobs", 0, 4)
    index = open_index(tmp_path)
    assert index.covered(identity) == -1
    index.cover(Covered(identity, 5))
    index.commit()
    index.cover(Covered(identity, 9))
    index.commit()
    assert index.covered(identity) == 9
    assert index.covered(StoreIdentity("cluster", "jobs", 1, 4)) == -1
    assert index.covered(StoreIdentity("another", "jobs", 0, 4)) == -1
    index.close()
    again = open_index(tmp_path)
    assert again.covered(identity) == 9
    again.remove_partition(0)
    again.commit()
    assert again.covered(identity) == -1


def test_one_of_another_format_is_removed(tmp_path: Path) -> None:
    old = tmp_path / "text-index-0"
    old.mkdir()
    (old / "meta.json").write_text("{}")
    open_index(tmp_path)
    assert not old.exists()


def test_nobody_takes_away_an_index_that_is_open(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    with pytest.raises(TextIndexFailed, match="LockBusy"):
        open_index(tmp_path)
    remove_index(tmp_path)
    index.add(0, entry("j", "text"), fresh=True)
    index.commit()
    assert found(index, JobFilter(text="text")) == [(1, "j")]
    index.close()
    remove_index(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_one_says_so_and_can_be_removed(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    index.commit()
    index.close()
    (place,) = tmp_path.iterdir()
    (place / "meta.json").write_text("{")
    with pytest.raises(TextIndexFailed, match="corrupt"):
        open_index(tmp_path)
    remove_index(tmp_path)
    open_index(tmp_path)
