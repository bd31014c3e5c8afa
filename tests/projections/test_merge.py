from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.projections.merge import (
    check_limit,
    list_cursor,
    merge_counts,
    merge_newest,
    parse_list_cursor,
)
from penstock.projections.port import CountRow
from penstock.schemas.errors import InvalidCursor, InvalidField
from penstock.schemas.times import time_text


@given(
    st.lists(st.integers(0, 30), unique=True, max_size=30),
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_merged_pages_leave_nothing_out(items: list[int], limit: int, held: int, sources: int) -> None:
    """Each source tells ``held`` items at a time: whatever it holds back, the pages joined are the whole."""
    found: list[int] = []
    while True:
        last = found[-1] if found else 99
        pages: list[tuple[list[int], bool]] = []
        for number in range(sources):
            mine = sorted((item for item in items if item % sources == number and item < last), reverse=True)
            pages.append((mine[:held], len(mine) > held))
        page, more = merge_newest(pages, lambda item: item, limit)
        assert len(page) <= limit
        found.extend(page)
        if not more:
            break
        assert page
    assert found == sorted(items, reverse=True)


@given(
    st.integers(0, 253_402_300_799_999),
    st.from_regex(r"[A-Za-z0-9._:\-]{1,20}(~[a-z]{1,5})?", fullmatch=True),
)
def test_a_cursor_names_the_job_to_go_on_after(created_at_ms: int, job_id: str) -> None:
    assert parse_list_cursor(list_cursor(created_at_ms, job_id)) == (created_at_ms, job_id)


@pytest.mark.parametrize("cursor", ["!", "é", "YQ", "MS", "OTk5OTk5OTk5OTk5OTk5OTk5LmE", "LmE", "wqA", "A"])
def test_a_cursor_of_another_make_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        parse_list_cursor(cursor)


def test_no_cursor_is_the_beginning() -> None:
    assert parse_list_cursor("") is None


@pytest.mark.parametrize("limit", [0, -1, 1_001])
def test_pages_have_a_size(limit: int) -> None:
    with pytest.raises(InvalidField):
        check_limit(limit)


def test_counts_of_partitions_add_up() -> None:
    rows = [
        CountRow("ready", "q", "p", "t", 2),
        CountRow("dead", "q", "p", "t", 1),
        CountRow("ready", "q", "p", "t", 3),
    ]
    assert merge_counts(rows) == [CountRow("dead", "q", "p", "t", 1), CountRow("ready", "q", "p", "t", 5)]


@given(st.lists(st.integers(0, 253_402_300_799_999), max_size=20))
def test_times_as_text_sort_like_times(times: list[int]) -> None:
    assert sorted(map(time_text, times)) == list(map(time_text, sorted(times)))


def test_times_have_milliseconds() -> None:
    assert time_text(0) == "1970-01-01T00:00:00.000Z"
    assert time_text(1_700_000_000_007) == "2023-11-14T22:13:20.007Z"
    assert time_text(253_402_300_799_999) == "9999-12-31T23:59:59.999Z"
