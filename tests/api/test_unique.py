"""Unique keys and idempotency keys over HTTP: who holds a key, what whoever else asks is told, and what is one job."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.api.deps import ApiOptions
from penstock.schemas.ids import home_of
from tests.api.harness import Bench, bench


async def post(found: Bench, key: str = "", **fields: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await found.http.post("/api/v1/jobs", json={"type": "noop", **fields}, headers=headers)


async def begun(found: Bench, **fields: Any) -> dict[str, Any]:
    answer = await post(found, **fields)
    assert answer.status_code == 201, answer.text
    job: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    return job


async def run(found: Bench) -> None:
    [job] = await found.fetch()
    await found.report({"type": "Succeeded", "job": job["id"], "lease": job["lease"]})


class TestUnique:
    async def test_a_second_one_is_refused_with_the_first_until_that_has_ended(self, whole: Bench) -> None:
        first = await begun(whole, unique={"key": "user 42"})
        assert first["unique"] == {"key": "user 42", "scope": "until_finished", "until": None}
        assert home_of(first["id"]).startswith("key:")
        answer = await post(whole, unique={"key": "user 42"}, payload=2)
        assert answer.status_code == 409, answer.text
        problem = answer.json()
        assert (problem["code"], problem["existing_id"]) == ("unique_conflict", first["id"])
        assert first["id"] in problem["detail"]
        await begun(whole, unique={"key": "user 43"})
        await whole.http.post(f"/api/v1/jobs/{first['id']}/cancel")
        await begun(whole, unique={"key": "user 42"}, payload=2)

    async def test_the_first_ones_history_tells_of_those_that_were_refused(self, whole: Bench) -> None:
        first = await begun(whole, unique={"key": "k"})
        answer = await post(whole, unique={"key": "k"}, id="other~k")
        assert answer.status_code == 409
        items = (await whole.http.get(f"/api/v1/jobs/{first['id']}/history")).json()["items"]
        assert [(item["type"], item["job"], item["outcome"]) for item in items] == [
            ("Enqueued", first["id"], "applied"),
            ("Enqueued", "other~k", "conflict"),
        ]
        assert (await whole.http.get("/api/v1/jobs/other~k")).status_code == 404

    async def test_the_existing_one_is_returned(self, whole: Bench) -> None:
        first = await begun(whole, unique={"key": "k"})
        answer = await post(whole, unique={"key": "k", "on_conflict": "return_existing"}, payload=2)
        assert answer.status_code == 200, answer.text
        assert answer.json()["id"] == first["id"]
        assert answer.headers["location"].endswith(first["id"])

    async def test_what_waits_is_replaced_and_what_runs_is_not(self, whole: Bench) -> None:
        unique = {"key": "k", "on_conflict": "replace"}
        first = await begun(whole, unique=unique, delay_ms=60_000)
        second = await begun(whole, unique=unique, payload=2)
        replaced = await whole.job(first["id"])
        assert replaced["state"] == "cancelled"
        items = (await whole.http.get(f"/api/v1/jobs/{first['id']}/history")).json()["items"]
        assert [(item["type"], item["job"]) for item in items] == [
            ("Enqueued", first["id"]),
            ("Enqueued", second["id"]),
        ]
        [job] = await whole.fetch()
        assert job["id"] == second["id"]
        answer = await post(whole, unique=unique, payload=3)
        assert answer.status_code == 409
        assert answer.json()["existing_id"] == second["id"]
        assert answer.json()["job_state"] == "active"

    async def test_until_it_is_started(self, whole: Bench) -> None:
        unique = {"key": "k", "scope": "until_started"}
        await begun(whole, unique=unique)
        assert (await post(whole, unique=unique, payload=2)).status_code == 409
        assert await whole.fetch()
        await begun(whole, unique=unique, payload=2)

    async def test_for_a_period(self, whole: Bench) -> None:
        first = await begun(whole, unique={"key": "k", "period_ms": 1_500})
        assert first["unique"]["scope"] == "period"
        assert first["unique"]["until"] > first["created_at"]
        await run(whole)
        assert (await post(whole, unique={"key": "k"}, payload=2)).status_code == 409
        await asyncio.sleep(1.6)
        await begun(whole, unique={"key": "k"}, payload=3)

    async def test_a_retry_finds_its_key_taken(self, whole: Bench) -> None:
        first = await begun(whole, unique={"key": "k"})
        await whole.http.post(f"/api/v1/jobs/{first['id']}/cancel")
        second = await begun(whole, unique={"key": "k"}, payload=2)
        answer = await whole.http.post(f"/api/v1/jobs/{first['id']}/retry")
        assert answer.status_code == 409, answer.text
        assert second["id"] in answer.json()["detail"]

    @pytest.mark.parametrize(
        ("unique", "field"),
        [
            ({}, "unique.key"),
            ({"key": ""}, "unique.key"),
            ({"key": "k", "scope": "for_ever"}, "unique.scope"),
            ({"key": "k", "scope": "period"}, "unique.period_ms"),
            ({"key": "k", "scope": "until_started", "period_ms": 5}, "unique.period_ms"),
            ({"key": "k", "on_conflict": "ignore"}, "unique.on_conflict"),
            ({"key": "k", "other": 1}, "unique.other"),
            (7, "unique"),
        ],
    )
    async def test_bad_values_name_their_field(self, api: Bench, unique: Any, field: str) -> None:
        answer = await post(api, unique=unique)
        assert answer.status_code == 422, answer.text
        assert [error["field"] for error in answer.json()["errors"]] == [field]

    async def test_an_id_with_another_home_is_refused_and_told_the_right_one(self, whole: Bench) -> None:
        answer = await post(whole, id="mine", unique={"key": "k"})
        assert answer.status_code == 422
        assert "~k" in answer.json()["detail"]
        await begun(whole, id="mine~k", unique={"key": "k"})

    async def test_bulk_tells_each_one_what_became_of_it(self, whole: Bench) -> None:
        first = await begun(whole, unique={"key": "k"})
        items = [
            {"type": "noop", "unique": {"key": "k"}, "payload": 1},
            {"type": "noop", "unique": {"key": "k", "on_conflict": "return_existing"}, "payload": 2},
            {"type": "noop", "unique": {"key": "other"}},
            {"type": "noop"},
            {"type": "noop", "unique": {"key": "k", "on_conflict": "replace"}, "payload": 3},
        ]
        answer = (await whole.http.post("/api/v1/jobs/bulk", json=items)).json()
        assert (answer["accepted"], answer["rejected"]) == (4, 1)
        told = [(item["status"], item.get("code", "")) for item in answer["items"]]
        assert told == [
            ("rejected", "unique_conflict"),
            ("accepted", "existing"),
            ("accepted", ""),
            ("accepted", ""),
            ("accepted", ""),
        ]
        assert answer["items"][1]["id"] == first["id"]

    async def test_of_many_that_race_one_begins_and_all_hear_the_truth(self, whole: Bench) -> None:
        answers = await asyncio.gather(
            *(post(whole, unique={"key": "k"}, payload=number) for number in range(60))
        )
        told = Counter(answer.status_code for answer in answers)
        assert told == {201: 1, 409: 59}
        [winner] = [answer.json()["id"] for answer in answers if answer.status_code == 201]
        assert {answer.json()["existing_id"] for answer in answers if answer.status_code == 409} == {winner}

    async def test_of_many_that_replace_each_other_the_last_is_left(self, whole: Bench) -> None:
        unique = {"key": "k", "on_conflict": "replace"}
        later = {"delay_ms": 60_000}
        answers = await asyncio.gather(
            *(post(whole, unique=unique, payload=number, **later) for number in range(60))
        )
        assert {answer.status_code for answer in answers} == {201}
        jobs = [await whole.job(answer.json()["id"]) for answer in answers]
        assert Counter(job["state"] for job in jobs) == {"scheduled": 1, "cancelled": 59}

    async def test_before_the_rules_are_active_it_is_refused_and_nothing_is_written(self, api: Bench) -> None:
        # Nobody leads, so the log still follows the first rules.
        api.deps.options = ApiOptions(read_wait_ms=100)
        answer = await post(api, unique={"key": "k"})
        assert answer.status_code == 409, answer.text
        assert "rules 3" in answer.json()["detail"]
        bulk = await api.http.post(
            "/api/v1/jobs/bulk", json=[{"type": "noop", "unique": {"key": "k"}}, {"type": "noop"}]
        )
        told = [(item["status"], item.get("code", "")) for item in bulk.json()["items"]]
        assert told == [("rejected", "conflict"), ("accepted", "")]
        assert (await api.http.get("/api/v1/jobs")).json()["total"] == 1


class TestIdempotencyKey:
    async def test_the_same_request_is_one_job(self, whole: Bench) -> None:
        first = await post(whole, "order-7", payload={"n": 1})
        again = await post(whole, "order-7", payload={"n": 1})
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json()["id"] == again.json()["id"]
        assert "order-7" not in first.json()["id"]
        in_the_body = await post(whole, idempotency_key="order-7", payload={"n": 1})
        assert in_the_body.json()["id"] == first.json()["id"]

    async def test_another_request_is_refused(self, whole: Bench) -> None:
        first = await post(whole, "order-7", payload={"n": 1})
        other = await post(whole, "order-7", payload={"n": 2})
        assert other.status_code == 422
        assert other.json()["code"] == "idempotency_key_reused"
        assert (await whole.job(first.json()["id"]))["payload"] == {"n": 1}

    @pytest.mark.parametrize("uniques", [(None, "a"), ("a", None), ("a", "b")])
    async def test_so_is_one_whose_job_would_be_at_home_elsewhere(
        self, whole: Bench, uniques: tuple[str | None, str | None]
    ) -> None:
        bodies = [{} if key is None else {"unique": {"key": key}} for key in uniques]
        first = await post(whole, "order-7", **bodies[0])
        assert first.status_code == 201, first.text
        other = await post(whole, "order-7", **bodies[1])
        assert other.status_code == 422, other.text
        assert other.json()["code"] == "idempotency_key_reused"
        assert "home" in other.json()["detail"]
        assert other.json()["existing_id"] == first.json()["id"]

    async def test_with_a_unique_key_a_repeat_is_no_conflict(self, whole: Bench) -> None:
        first = await post(whole, "order-7", unique={"key": "k"})
        again = await post(whole, "order-7", unique={"key": "k"})
        assert (first.status_code, again.status_code) == (201, 200)
        assert (await post(whole, "order-8", unique={"key": "k"})).status_code == 409
        assert (await post(whole, "order-8", unique={"key": "k"})).status_code == 409

    async def test_it_stands_for_an_id_and_does_not_go_with_one(self, api: Bench) -> None:
        answer = await post(api, "order-7", id="mine")
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "idempotency_key"
        answer = await post(api, "order-7", idempotency_key="order-8")
        assert answer.status_code == 422
        for key in ("with space", "", "x" * 201):
            answer = await post(api, idempotency_key=key)
            assert (answer.status_code, "visible ASCII" in answer.text) == (422, True)
            headers = {"Idempotency-Key": key}
            answer = await api.http.post("/api/v1/jobs", json={"type": "noop"}, headers=headers)
            assert (answer.status_code, "visible ASCII" in answer.text) == (422, True)

    async def test_a_clone_is_made_once(self, whole: Bench) -> None:
        job = await whole.enqueue()
        path, headers = f"/api/v1/jobs/{job['id']}/clone", {"Idempotency-Key": "again"}
        first = await whole.http.post(path, headers=headers)
        again = await whole.http.post(path, headers=headers)
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json()["id"] == again.json()["id"]

    async def test_of_many_that_race_one_begins(self, tmp_path: Path) -> None:
        async with bench(tmp_path, orchestrate=True) as found:
            answers = await asyncio.gather(*(post(found, "once", payload=1) for _ in range(40)))
            assert Counter(answer.status_code for answer in answers) == {201: 1, 200: 39}
            assert len({answer.json()["id"] for answer in answers}) == 1
