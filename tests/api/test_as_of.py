"""A job as it was: at each line of its life it is what it was shown as when that line was the last."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.projections.service import ProjectionService
from tests.api.harness import Bench


async def as_of(found: Bench, job_id: str, at: str) -> dict[str, Any]:
    answer = await found.http.get(f"/api/v1/jobs/{job_id}", params={"at": at})
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def history(found: Bench, job_id: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await found.http.get(f"/api/v1/jobs/{job_id}/history")).json()["items"]
    return items


async def test_every_moment_of_a_life(whole: Bench) -> None:
    """Lines are replayed one by one, and compared with what the job was seen to be just then."""
    job_id = (await whole.enqueue(payload={"n": 1}, tags=["a"], max_attempts=3, backoff={"kind": "none"}))[
        "id"
    ]
    seen: list[dict[str, Any]] = [await whole.job(job_id)]

    async def see() -> None:
        seen.append(await whole.job(job_id))

    for verb, body in (("hold", {}), ("unhold", {}), ("priority", {"priority": "high"}), ("cancel", {})):
        answer = await whole.http.post(f"/api/v1/jobs/{job_id}/{verb}", json=body)
        assert answer.status_code == 200
        await see()
    await whole.http.post(f"/api/v1/jobs/{job_id}/retry", json={})
    for _ in range(2):
        [leased] = await whole.fetch()
        await see()
        event = {"job": job_id, "lease": leased["lease"]}
        await whole.report({"type": "Progressed", "seq": 1, "percent": 50, "checkpoint": {"at": 7}, **event})
        await see()
        error = {"code": "boom", "message": "no luck", "details": {"x": 1}}
        await whole.report({"type": "Failed", "error": error, **event})
    [leased] = await whole.fetch()
    event = {"job": job_id, "lease": leased["lease"]}
    await whole.report({"type": "Succeeded", "result": {"done": True}, **event})
    await see()
    items = [item for item in await history(whole, job_id) if item["outcome"] == "applied"]
    assert len(items) == 14
    replayed = [await as_of(whole, job_id, item["position"]) for item in items]
    # Each was seen at some line; progress moves no position, so whole views are compared.
    for one in seen:
        assert one in replayed
    assert replayed[-1] == await whole.job(job_id)
    assert [one["state"] for one in replayed[:6]] == ["ready", "held", "ready", "ready", "cancelled", "ready"]
    assert len(replayed[-1]["errors"]) == 2


async def test_at_times(whole: Bench) -> None:
    job = await whole.enqueue()
    await asyncio.sleep(0.05)
    await whole.http.post(f"/api/v1/jobs/{job['id']}/hold")
    held_at = (await history(whole, job["id"]))[-1]["at"]
    assert (await as_of(whole, job["id"], job["created_at"]))["state"] == "ready"
    assert (await as_of(whole, job["id"], held_at))["state"] == "held"
    assert (await as_of(whole, job["id"], "2100-01-01T00:00:00+01:00"))["state"] == "held"


async def test_one_whose_place_was_taken(whole: Bench) -> None:
    unique = {"key": "k", "on_conflict": "replace"}
    first = await whole.enqueue(unique=unique, delay_ms=60_000)
    await whole.enqueue(unique=unique, payload=2)
    items = await history(whole, first["id"])
    assert (await as_of(whole, first["id"], items[0]["position"]))["state"] == "scheduled"
    last = await as_of(whole, first["id"], items[-1]["position"])
    assert last == await whole.job(first["id"])
    assert last["state"] == "cancelled"


async def test_one_that_was_deleted_is_still_told(whole: Bench) -> None:
    job = await whole.enqueue(payload="kept")
    await whole.http.delete(f"/api/v1/jobs/{job['id']}")
    assert (await whole.http.get(f"/api/v1/jobs/{job['id']}")).status_code == 404
    assert (await as_of(whole, job["id"], job["created_at"]))["payload"] == "kept"


async def test_before_it_began_there_was_none(whole: Bench) -> None:
    job = await whole.enqueue()
    answer = await whole.http.get(f"/api/v1/jobs/{job['id']}", params={"at": "2020-01-01T00:00:00Z"})
    assert answer.status_code == 404
    assert answer.json()["code"] == "job_not_found"
    assert (await whole.http.get("/api/v1/jobs/unknown", params={"at": job["created_at"]})).status_code == 404


@pytest.mark.parametrize("at", ["yesterday", "2020-01-01T00:00:00", "99:0:0", "1:2"])
async def test_what_is_no_moment_is_422(api: Bench, at: str) -> None:
    answer = await api.http.get("/api/v1/jobs/some", params={"at": at})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "at"


async def test_it_does_not_go_with_waiting(api: Bench) -> None:
    answer = await api.http.get(
        "/api/v1/jobs/some", params={"at": "2020-01-01T00:00:00Z", "until": "finished"}
    )
    assert answer.status_code == 422


async def ids_at(api: Bench, at: str, **filter: Any) -> list[str]:
    listed = await api.http.get("/api/v1/jobs", params={"at": at, **filter})
    assert listed.status_code == 200, listed.text
    found = await api.http.post("/api/v1/jobs/search", json={"at": at, "filter": filter})
    assert found.json()["items"] == listed.json()["items"]
    assert listed.json()["total"] is None
    return [job["id"] for job in listed.json()["items"]]


async def test_lists_searches_and_counts_as_they_were(whole: Bench) -> None:
    moments: list[str] = []

    async def moment() -> None:
        moments.append((await whole.enqueue(queue="clock"))["position"])

    await moment()
    await whole.enqueue(id="a")
    await moment()
    await whole.enqueue(id="b")
    await whole.http.post("/api/v1/jobs/a/cancel", json={})
    await moment()
    await whole.http.delete("/api/v1/jobs/a")
    await whole.http.post("/api/v1/jobs/b/hold", json={})
    await moment()
    others = [
        {job for job in await ids_at(whole, at, queue="default") if job in ("a", "b")} for at in moments
    ]
    assert others == [set(), {"a"}, {"a", "b"}, {"b"}]
    assert await ids_at(whole, moments[2], state="cancelled") == ["a"]
    assert await ids_at(whole, moments[3], state="held") == ["b"]
    states: list[dict[str, int]] = []
    for at in moments:
        counts = (await whole.http.get("/api/v1/counts", params={"at": at})).json()
        assert counts["total"] == sum(row["jobs"] for row in counts["rows"])
        assert counts["unhandled"] == []
        states.append({state: jobs for state, jobs in counts["states"].items() if state != "ready"})
    assert states == [{}, {}, {"cancelled": 1}, {"held": 1}]
    long_ago = "2020-01-01T00:00:00Z"
    assert await ids_at(whole, long_ago) == []
    assert (await whole.http.get("/api/v1/counts", params={"at": long_ago})).json()["total"] == 0
    ahead = (await whole.http.get("/api/v1/counts", params={"at": "2100-01-01T00:00:00Z"})).json()
    assert ahead["rows"] == (await whole.http.get("/api/v1/counts")).json()["rows"]


@pytest.mark.parametrize("at", ["yesterday", "2020-01-01T00:00:00", "0:1", "99:0:0", "0:99999:0", "x" * 65])
async def test_no_moment_at_all(api: Bench, at: str) -> None:
    asked = [
        await api.http.get("/api/v1/jobs", params={"at": at}),
        await api.http.get("/api/v1/counts", params={"at": at}),
        await api.http.post("/api/v1/jobs/search", json={"at": at}),
    ]
    for answer in asked:
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"] == "at"


async def test_before_what_is_remembered_it_says_so(api: Bench) -> None:
    assert isinstance(api.deps.read_model, ProjectionService)
    api.deps.read_model.history_age_ms = 60_000
    for path in ("jobs", "counts"):
        answer = await api.http.get(f"/api/v1/{path}", params={"at": "2020-01-01T00:00:00Z"})
        assert answer.status_code == 422
        assert "remembered since" in answer.json()["errors"][0]["message"]
