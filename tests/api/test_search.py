"""Searching over HTTP: every filter alone and together, orders, pages that stay right while jobs come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from penstock.projections import candidates, search, text_index
from tests.api.harness import Bench, bench


async def found(api: Bench, filter: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    answer = await api.http.post("/api/v1/jobs/search", json={"filter": filter or {}, **more})
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


async def ids(api: Bench, filter: dict[str, Any] | None = None, **more: Any) -> list[str]:
    return [job["id"] for job in (await found(api, filter, **more))["items"]]


async def walked(api: Bench, filter: dict[str, Any], limit: int, **more: Any) -> list[str]:
    """All pages, one after another."""
    jobs: list[str] = []
    cursor = ""
    while True:
        page = await found(api, filter, limit=limit, cursor=cursor, **more)
        assert len(page["items"]) <= limit
        jobs += [job["id"] for job in page["items"]]
        if page["next_cursor"] is None:
            return jobs
        cursor = page["next_cursor"]


@pytest.fixture(params=["row by row", "by marks", "by the text index"])
async def stocked(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    """A few jobs of all sorts; indexes are asked even where they do not narrow the search down."""
    monkeypatch.setattr(text_index, "COMMON", 0)
    if request.param != "row by row":
        monkeypatch.setattr(candidates, "FEW_IN_GROUPS", 0)
    indexed = request.param == "by the text index"
    async with bench(tmp_path, orchestrate=True, text_index=indexed) as api:
        await stock(api)
        while indexed:
            partitions = (await api.http.get("/api/v1/partitions")).json()["items"]
            if all(one["text_indexed"] and not one["unindexed_jobs"] for one in partitions):
                break
            await asyncio.sleep(0.02)
        yield api


async def stock(whole: Bench) -> None:
    await whole.enqueue(id="plain", workflow="w/1")
    await whole.enqueue(id="tagged", tags=["red", "big"], priority="high", batch="b1")
    await whole.enqueue(
        id="blue", tags=["blue"], queue="slow", payload={"city": "Zürich", "n": 12}, batch="b2", workflow="b1"
    )
    await whole.enqueue(id="later", delay_ms=60_000, pool="gpu", type="resize")
    await whole.enqueue(id="keyed~k", unique={"key": "k"}, expires_at="2100-01-01T00:00:00Z")
    await whole.enqueue(id="failing", type="boom", max_attempts=1)
    [job] = await whole.fetch(types=["boom"])
    error = {"code": "http_503", "message": "The upstream is Away"}
    await whole.report({"type": "Failed", "job": job["id"], "lease": job["lease"], "error": error})
    await whole.until("failing", "dead")


ALL = ["failing", "keyed~k", "later", "blue", "tagged", "plain"]


class TestFilters:
    @pytest.mark.parametrize(
        ("filter", "wanted"),
        [
            ({}, ALL),
            ({"state": "dead"}, ["failing"]),
            ({"state": ["dead", "scheduled"]}, ["failing", "later"]),
            ({"queue": "slow"}, ["blue"]),
            ({"queue": ["slow", "nowhere"]}, ["blue"]),
            ({"type": ["boom", "resize"]}, ["failing", "later"]),
            ({"pool": "gpu"}, ["later"]),
            ({"priority": "high"}, ["tagged"]),
            ({"tags": "red"}, ["tagged"]),
            ({"tags": ["red", "big"]}, ["tagged"]),
            ({"tags": ["red", "blue"]}, []),
            ({"tags_any": ["red", "blue"]}, ["blue", "tagged"]),
            ({"tags_any": ["red", "big"]}, ["tagged"]),
            ({"worker": "w1"}, ["failing"]),
            ({"batch": "b1"}, ["tagged"]),
            ({"batch": ["b1", "b2", "b3"]}, ["blue", "tagged"]),
            ({"batch": "w/1"}, []),
            ({"workflow": "w/1"}, ["plain"]),
            ({"workflow": ["b1", "w/1"], "queue": "slow"}, ["blue"]),
            ({"batch": "b1", "workflow": "b1"}, []),
            ({"batch": "b2", "workflow": "b1", "tags": "blue"}, ["blue"]),
            ({"unique_key": "k"}, ["keyed~k"]),
            ({"unique_key": "other"}, []),
            ({"id_prefix": "k"}, ["keyed~k"]),
            ({"id_prefix": "failing"}, ["failing"]),
            ({"attempt_min": 1}, ["failing"]),
            ({"attempt_max": 0, "queue": "slow"}, ["blue"]),
            ({"has_errors": True}, ["failing"]),
            ({"has_errors": False, "type": ["boom", "resize"]}, ["later"]),
            ({"error_contains": "503"}, ["failing"]),
            ({"error_contains": "away"}, []),
            ({"error_contains": "Away"}, ["failing"]),
            ({"payload_contains": '"n":12'}, ["blue"]),
            ({"payload_contains": "zürich"}, []),
            ({"text": "zürich"}, ["blue"]),
            ({"text": "AWAY upstream"}, ["failing"]),
            ({"text": "upstream zürich"}, []),
            ({"text": "red"}, ["tagged"]),
            ({"expires_after": "2099-01-01T00:00:00Z"}, ["keyed~k"]),
            ({"expires_before": "2099-01-01T00:00:00Z"}, []),
            ({"finished_after": "2020-01-01T00:00:00Z"}, ["failing"]),
            ({"started_before": "2100-01-01T00:00:00Z"}, ["failing"]),
            ({"created_after": "2100-01-01T00:00:00Z"}, []),
            ({"tenant": "default", "state": "dead", "has_errors": True, "text": "boom"}, ["failing"]),
        ],
    )
    async def test_each(self, stocked: Bench, filter: dict[str, Any], wanted: Sequence[str]) -> None:
        assert await ids(stocked, filter) == list(wanted)
        assert await ids(stocked, filter, sort="created_at") == list(reversed(wanted))
        assert sorted(await ids(stocked, filter, sort="-updated_at")) == sorted(wanted)

    async def test_times_of_creation_bound_what_is_looked_at(self, stocked: Bench) -> None:
        middle = (await stocked.job("later"))["created_at"]
        before = await ids(stocked, {"created_before": middle})
        after = await ids(stocked, {"created_after": middle})
        assert after == ["failing", "keyed~k", "later"]
        assert before == ["blue", "tagged", "plain"]
        assert await ids(stocked, {"created_before": middle, "tags_any": ["red", "blue"]}) == [
            "blue",
            "tagged",
        ]

    async def test_a_total_where_counters_know_it(self, stocked: Bench) -> None:
        assert (await found(stocked))["total"] == 6
        assert (await found(stocked, {"state": ["dead", "scheduled"], "pool": "gpu"}))["total"] == 1
        assert (await found(stocked, {"tags": "red"}))["total"] is None

    async def test_what_was_deleted_is_not_found(self, stocked: Bench) -> None:
        for job in ("tagged", "keyed~k"):
            await stocked.http.delete(f"/api/v1/jobs/{job}")
        for filter in ({"tags": "red"}, {"unique_key": "k"}, {"id_prefix": "tag"}, {"priority": "high"}):
            assert await ids(stocked, filter) == []

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"filter": {"state": "gone"}}, "filter.state"),
            ({"filter": {"colour": "red"}}, "filter.colour"),
            ({"filter": {"created_after": "yesterday"}}, "filter.created_after"),
            ({"filter": {"attempt_min": -1}}, "filter.attempt_min"),
            ({"filter": {"tenant": "other"}}, "filter.tenant"),
            ({"filter": {"queue": ["a b"]}}, "filter.queue[0]"),
            ({"sort": "size"}, "sort"),
            ({"limit": 0}, "limit"),
            ({"cursor": "nonsense"}, None),
            ({"colour": "red"}, "colour"),
        ],
    )
    async def test_what_cannot_be_asked_is_422(
        self, api: Bench, body: dict[str, Any], field: str | None
    ) -> None:
        answer = await api.http.post("/api/v1/jobs/search", json=body)
        assert answer.status_code == 422, answer.text
        if field is not None:
            assert answer.json()["errors"][0]["field"] == field

    @pytest.mark.parametrize(
        ("params", "wanted"),
        [
            ({"tags": "red"}, ["tagged"]),
            ({"priority": "high", "sort": "created_at"}, ["tagged"]),
            ({"has_errors": "true"}, ["failing"]),
            ({"text": "zürich"}, ["blue"]),
            ({"sort": "created_at"}, ALL[::-1]),
            ({"unique_key": "k"}, ["keyed~k"]),
            ({"finished_after": "2020-01-01T00:00:00Z", "worker": "w1"}, ["failing"]),
        ],
    )
    async def test_the_list_takes_the_simple_ones(
        self, stocked: Bench, params: dict[str, str], wanted: Sequence[str]
    ) -> None:
        answer = await stocked.http.get("/api/v1/jobs", params=params)
        assert answer.status_code == 200, answer.text
        assert [job["id"] for job in answer.json()["items"]] == list(wanted)


class TestPages:
    @pytest.mark.parametrize(
        "sort", ["-created_at", "created_at", "-scheduled_at", "scheduled_at", "updated_at"]
    )
    @pytest.mark.parametrize("filter", [{}, {"tags": "even"}, {"priority": "high"}, {"id_prefix": "j1"}])
    async def test_they_are_one_list(self, api: Bench, sort: str, filter: dict[str, Any]) -> None:
        for number in range(30):
            await api.enqueue(
                id=f"j{number:02d}",
                tags=["even"] if number % 2 == 0 else [],
                priority="high" if number % 3 == 0 else "low",
                queue=f"q{number % 4}",
            )
        whole = await ids(api, filter, limit=100, sort=sort)
        assert len(whole) == {"tags": 15, "priority": 10, "id_prefix": 10}.get(next(iter(filter), ""), 30)
        for limit in (1, 4, 15):
            assert await walked(api, filter, limit, sort=sort) == whole

    async def test_nothing_is_skipped_or_repeated_while_jobs_come_and_go(self, whole: Bench) -> None:
        for number in range(40):
            await whole.enqueue(id=f"j{number:02d}", tags=["t"])
        cursor, seen = "", []
        for turn in range(20):
            page = await found(whole, {"tags": "t"}, limit=3, cursor=cursor)
            seen += [job["id"] for job in page["items"]]
            # What is changed stays where it is, what comes is newer, and what goes was seen or is not.
            await whole.http.post(f"/api/v1/jobs/{seen[-1]}/hold")
            await whole.enqueue(id=f"new{turn:02d}", tags=["t"])
            await whole.http.delete(f"/api/v1/jobs/{seen[0]}")
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == [f"j{number:02d}" for number in reversed(range(40))]

    async def test_a_rare_match_among_many_is_found_page_by_page(
        self, api: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(search, "EXAMINED_ROWS", 16)
        monkeypatch.setattr(search, "SLICE_ROWS", 4)
        monkeypatch.setattr(search, "FIRST_ROWS", 4)
        items = [{"type": "noop", "id": f"j{n:03d}", "payload": {"n": n}} for n in range(300)]
        answer = await api.http.post("/api/v1/jobs/bulk", json=items)
        await api.job("j000", answer.headers["penstock-position"])
        assert await walked(api, {"payload_contains": '"n":7}'}, 10) == ["j007"]
        assert await walked(api, {"attempt_min": 1}, 10) == []
        assert sorted(await walked(api, {"id_prefix": "j00"}, 3)) == [f"j00{n}" for n in range(10)]

    async def test_a_page_that_takes_long_is_answered_short(
        self, api: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from penstock.api import search as api_search

        monkeypatch.setattr(search, "EXAMINED_ROWS", 4)
        monkeypatch.setattr(search, "SLICE_ROWS", 1)
        monkeypatch.setattr(search, "FIRST_ROWS", 1)
        monkeypatch.setattr(api_search, "LOOKING_S", 0.0)
        for number in range(12):
            await api.enqueue(id=f"j{number}", priority="low" if number else "high")
        page = await found(api, {"priority": "high"})
        assert page["items"] == []
        assert page["next_cursor"] is not None
        assert await walked(api, {"priority": "high"}, 50) == ["j0"]

    async def test_a_cursor_is_of_its_sort(self, api: Bench) -> None:
        for _ in range(3):
            await api.enqueue()
        cursor = (await found(api, sort="created_at", limit=1, cursor=None))["next_cursor"]
        answer = await api.http.post("/api/v1/jobs/search", json={"sort": "-created_at", "cursor": cursor})
        assert answer.status_code == 422
        assert answer.json()["code"] == "invalid_cursor"

    async def test_too_many_to_sort_is_said(self, api: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(search, "MOST_SORTED", 5)
        for _ in range(6):
            await api.enqueue()
        answer = await api.http.post("/api/v1/jobs/search", json={"sort": "-updated_at"})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "sort"
        assert len(await ids(api, sort="-created_at")) == 6

    async def test_writes_go_on_meanwhile(self, api: Bench) -> None:
        searches = [walked(api, {}, 5) for _ in range(5)]
        await asyncio.gather(*searches, *(api.enqueue() for _ in range(50)))
        assert len(await walked(api, {}, 7)) == 50
