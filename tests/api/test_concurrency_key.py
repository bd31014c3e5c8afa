"""Concurrency keys over HTTP: of the jobs with one key no two run at once, and none is turned away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx

from penstock.api.deps import ApiOptions
from penstock.schemas.ids import home_of
from tests.api.harness import Bench, bench

KEY = "account 7"


async def post(found: Bench, **fields: Any) -> httpx.Response:
    return await found.http.post("/api/v1/jobs", json={"type": "noop", **fields})


async def begun(found: Bench, key: str = KEY, **fields: Any) -> dict[str, Any]:
    answer = await post(found, concurrency_key=key, **fields)
    assert answer.status_code == 201, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def succeed(found: Bench, job: dict[str, Any]) -> None:
    await found.report({"type": "Succeeded", "job": job["id"], "lease": job["lease"]})


async def test_one_runs_at_a_time_and_the_others_follow(whole: Bench) -> None:
    first, second = await begun(whole), await begun(whole, queue="other")
    elsewhere = await begun(whole, "account 8")
    assert (first["concurrency_key"], first["state"]) == (KEY, "ready")
    assert home_of(first["id"]) == home_of(second["id"]) != home_of(elsewhere["id"])
    given: list[dict[str, Any]] = []
    while len(given) < 2:
        given += await whole.fetch(max=5)
    assert {job["id"] for job in given} == {first["id"], elsewhere["id"]}
    assert await whole.fetch(max=5, wait_ms=300) == []
    assert (await whole.job(second["id"]))["state"] == "ready"
    waiting = asyncio.create_task(whole.fetch(max=5))
    await succeed(whole, next(job for job in given if job["id"] == first["id"]))
    assert [job["id"] for job in await waiting] == [second["id"]]


async def test_of_many_at_most_one_runs_whoever_asks(whole: Bench) -> None:
    """Two workers at once, a bulk call, three keys."""
    items = [{"type": "noop", "id": f"j{n}~k{n % 3}", "concurrency_key": f"k{n % 3}"} for n in range(45)]
    answer = await whole.http.post("/api/v1/jobs/bulk", json=items)
    assert answer.json()["accepted"] == 45
    running: dict[str, str] = {}
    done: list[str] = []

    async def work(worker: str) -> None:
        while len(done) < 45:
            for job in await whole.fetch(worker, max=4, wait_ms=200):
                key = home_of(job["id"])
                assert key not in running, f"{job['id']} runs beside {running[key]}"
                running[key] = job["id"]
                await asyncio.sleep(0)
                del running[key]
                await whole.report(
                    {"type": "Succeeded", "job": job["id"], "lease": job["lease"]}, worker=worker
                )
                done.append(job["id"])

    async with asyncio.timeout(60):
        await asyncio.gather(work("w1"), work("w2"))
    assert sorted(done) == sorted(item["id"] for item in items)


async def test_it_is_found_by_its_key(whole: Bench) -> None:
    job = await whole.enqueue(concurrency_key=KEY)
    await whole.enqueue(concurrency_key="account 8")
    page = await whole.http.get("/api/v1/jobs", params={"concurrency_key": KEY})
    assert [item["id"] for item in page.json()["items"]] == [job["id"]]
    page = await whole.http.post("/api/v1/jobs/search", json={"filter": {"concurrency_key": "none"}})
    assert page.json()["items"] == []


async def test_a_clone_has_the_key_too(whole: Bench) -> None:
    job = await begun(whole)
    answer = await whole.http.post(f"/api/v1/jobs/{job['id']}/clone")
    assert answer.status_code == 201, answer.text
    clone = answer.json()
    assert (clone["concurrency_key"], home_of(clone["id"])) == (KEY, home_of(job["id"]))


async def test_it_goes_with_an_idempotency_key_and_with_a_unique_key_of_the_same_text(whole: Bench) -> None:
    first = await begun(whole, "k", unique={"key": "k"}, idempotency_key="once")
    answer = await post(whole, concurrency_key="k", unique={"key": "k"}, idempotency_key="once")
    assert (answer.status_code, answer.json()["id"]) == (200, first["id"])
    assert first["unique"]["key"] == first["concurrency_key"] == "k"


async def test_what_does_not_go_together_is_told(whole: Bench) -> None:
    for fields, field in (
        ({"concurrency_key": "a", "unique": {"key": "b"}}, "concurrency_key"),
        ({"concurrency_key": "a", "id": "j"}, "id"),
        ({"concurrency_key": ""}, "concurrency_key"),
        ({"concurrency_key": "x" * 257}, "concurrency_key"),
        ({"concurrency_key": 7}, "concurrency_key"),
    ):
        answer = await post(whole, **fields)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"] == field


async def test_rules_that_do_not_know_it_refuse_it(tmp_path: Path) -> None:
    # Nobody leads, so the log stays at rules 1.
    async with bench(tmp_path, options=ApiOptions(read_wait_ms=100)) as found:
        answer = await post(found, concurrency_key=KEY)
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert "concurrency keys need rules 4" in answer.json()["detail"]
        assert "penstock rules activate" in answer.json()["detail"]
        items = [
            {"type": "noop"},
            {"type": "noop", "concurrency_key": KEY},
            {"type": "noop", "unique": {"key": "k"}},
        ]
        bulk = (await found.http.post("/api/v1/jobs/bulk", json=items)).json()
        assert (bulk["accepted"], bulk["rejected"]) == (1, 2)
        assert "unique keys need rules 3" in str(bulk)
