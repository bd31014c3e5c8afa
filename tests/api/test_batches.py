"""Batches and workflows over HTTP: names that jobs share, and by which they are found, followed and changed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from penstock.api.deps import ApiOptions
from tests.api.harness import Bench, bench


async def put_in(found: Bench, *items: dict[str, Any]) -> dict[str, Any]:
    answer = await found.http.post("/api/v1/jobs/bulk", json=[{"type": "noop", **item} for item in items])
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def finds(found: Bench, wanted: set[str], **filter: Any) -> None:
    """A search with this filter has these jobs, as soon as the read model is that far."""
    async with asyncio.timeout(10):
        while True:
            answer = await found.http.post("/api/v1/jobs/search", json={"filter": filter})
            assert answer.status_code == 200, answer.text
            if {job["id"] for job in answer.json()["items"]} == wanted:
                return
            await asyncio.sleep(0.02)


async def ended(found: Bench, operation: dict[str, Any]) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while operation["state"] not in ("succeeded", "failed", "cancelled"):
            operation = (await found.http.get(f"/api/v1/operations/{operation['id']}")).json()
            await asyncio.sleep(0.02)
    return operation


async def test_a_batch_is_found_followed_and_changed_as_one(whole: Bench) -> None:
    items = [{"id": f"i{n}", "batch": "import/7", "workflow": "nightly"} for n in range(30)]
    told = await put_in(whole, *items, {"id": "alone"}, {"id": "other", "batch": "import/8"})
    assert told["accepted"] == 32
    mine = {item["id"] for item in items}
    job = await whole.job("i0")
    assert (job["batch"], job["workflow"]) == ("import/7", "nightly")
    alone = await whole.job("alone")
    assert (alone["batch"], alone["workflow"]) == (None, None)
    await finds(whole, mine, batch="import/7")
    await finds(whole, {"other"}, batch=["import/8", "none"])
    page = await whole.http.get("/api/v1/jobs", params={"workflow": "nightly", "limit": 100})
    assert {job["id"] for job in page.json()["items"]} == mine

    asked = {"action": "cancel", "filter": {"batch": "import/7"}}
    counted = await whole.http.post("/api/v1/operations", json={**asked, "dry_run": True})
    assert (await ended(whole, counted.json()))["matched"] == 30
    done = await ended(whole, (await whole.http.post("/api/v1/operations", json=asked)).json())
    assert (done["state"], done["outcomes"]) == ("succeeded", {"applied": 30})
    await finds(whole, mine, batch="import/7", state="cancelled")
    assert {(await whole.job(name))["state"] for name in ("alone", "other")} == {"ready"}


async def test_what_a_batch_comes_to(whole: Bench) -> None:
    """Exact, now and as it was, without looking at its jobs one by one."""
    await put_in(
        whole, *({"id": f"i{n}", "batch": "b", "queue": ("q1", "q2")[n % 2]} for n in range(10)), {"id": "no"}
    )
    await put_in(whole, {"id": "w", "workflow": "b"})
    for n in (0, 1, 2):
        answer = await whole.http.post(f"/api/v1/jobs/i{n}/cancel")
    position = answer.headers["penstock-position"]
    await whole.http.delete("/api/v1/jobs/i0")
    deleted = await whole.http.delete("/api/v1/jobs/i9")

    async def counted(**params: str) -> dict[str, Any]:
        found = await whole.http.get(
            "/api/v1/counts", params={"after": deleted.headers["penstock-position"], **params}
        )
        assert found.status_code == 200, found.text
        told: dict[str, Any] = found.json()
        return told

    told = await counted(batch="b")
    assert (told["total"], told["states"], told["queues"]) == (
        8,
        {"cancelled": 2, "ready": 6},
        {"q1": 4, "q2": 4},
    )
    assert (await counted(workflow="b"))["states"] == {"ready": 1}
    assert (await counted(batch="none"))["total"] == 0
    for job in ("i0", "i9"):
        assert (await whole.http.get(f"/api/v1/jobs/{job}")).status_code == 404
    was = await counted(batch="b", at=(await whole.job("i2"))["finished_at"])
    assert (was["total"], was["states"]["cancelled"]) == (10, 3)
    assert (await counted(batch="b", at=position))["total"] == 10
    page = await whole.http.post("/api/v1/jobs/search", json={"filter": {"batch": "b", "state": "cancelled"}})
    assert page.json()["total"] == 2
    both = await whole.http.get("/api/v1/counts", params={"batch": "b", "workflow": "b"})
    assert (both.status_code, both.json()["errors"][0]["field"]) == (422, "workflow")


async def test_they_go_with_keys_and_a_clone_has_them_too(whole: Bench) -> None:
    first = await whole.enqueue(
        batch="b", workflow="w", unique={"key": "k"}, concurrency_key="k", idempotency_key="once"
    )
    again = await whole.enqueue(
        batch="b", workflow="w", unique={"key": "k"}, concurrency_key="k", idempotency_key="once"
    )
    assert again["id"] == first["id"]
    plain = await whole.enqueue(batch="b")
    clone = (await whole.http.post(f"/api/v1/jobs/{plain['id']}/clone")).json()
    assert (clone["batch"], clone["workflow"]) == ("b", None)
    moved = (await whole.http.post(f"/api/v1/jobs/{plain['id']}/clone", json={"batch": "c"})).json()
    assert moved["batch"] == "c"
    await finds(whole, {first["id"], plain["id"], clone["id"]}, batch="b")


async def test_they_are_part_of_the_request(whole: Bench) -> None:
    await whole.enqueue(id="j", batch="b")
    answer = await whole.http.post("/api/v1/jobs", json={"type": "noop", "id": "j", "batch": "c"})
    assert (answer.status_code, answer.json()["code"]) == (409, "id_in_use")


@pytest.mark.parametrize("field", ["batch", "workflow"])
@pytest.mark.parametrize("name", ["", "two words", "x" * 129, 7, ["b"]])
async def test_what_is_no_name_is_told(whole: Bench, field: str, name: Any) -> None:
    answer = await whole.http.post("/api/v1/jobs", json={"type": "noop", field: name})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field
    if not isinstance(name, list):
        answer = await whole.http.post("/api/v1/jobs/search", json={"filter": {field: name}})
        assert answer.status_code == 422, answer.text


async def test_rules_that_do_not_know_them_refuse_them(tmp_path: Path) -> None:
    # Nobody leads, so the log stays at rules 1.
    async with bench(tmp_path, options=ApiOptions(read_wait_ms=100)) as found:
        answer = await found.http.post("/api/v1/jobs", json={"type": "noop", "batch": "b"})
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert "batches and workflows need rules 5" in answer.json()["detail"]
        assert "penstock rules activate 5" in answer.json()["detail"]
        told = await put_in(found, {}, {"workflow": "w"}, {"concurrency_key": "k"}, {"unique": {"key": "k"}})
        assert (told["accepted"], told["rejected"]) == (1, 3)
        for needs in (
            "batches and workflows need rules 5",
            "concurrency keys need rules 4",
            "unique keys need rules 3",
        ):
            assert needs in str(told)
