"""What an attempt has logged: taken in over HTTP, read, searched and waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock.log.blobs import open_blobs
from penstock.log.claims import ClaimStore
from tests.api.harness import Bench, bench


@pytest.fixture
async def stored(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path, orchestrate=True) as found:
        found.deps.claims = ClaimStore(open_blobs(str(tmp_path / "claims")))
        yield found


async def started(api: Bench) -> dict[str, Any]:
    """A job that a worker holds: what a part of its output names it by."""
    await api.enqueue(id="mine")
    [given] = await api.fetch()
    await api.until("mine", "active")
    return {"worker": "w1", "job": "mine", "lease": given["lease"], "fence": given["fence"], "attempt": 1}


async def tell(api: Bench, about: dict[str, Any], number: int, *items: dict[str, Any]) -> None:
    told = [{"at": "2026-01-01T00:00:00Z", **item} for item in items]
    answer = await api.http.post("/api/v1/worker/log", json={**about, "number": number, "items": told})
    assert (answer.status_code, answer.json()) == (200, {"records": len(items)})


async def read(api: Bench, attempt: int = 1, **params: Any) -> dict[str, Any]:
    answer = await api.http.get(f"/api/v1/jobs/mine/attempts/{attempt}/log", params=params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def said(page: dict[str, Any]) -> list[str]:
    return [item["message"] for item in page["items"]]


async def test_it_is_read_in_parts_searched_and_told_apart_by_level(stored: Bench) -> None:
    about = await started(stored)
    assert await read(stored) == {"items": [], "next": 0, "ended": False}
    await tell(stored, about, 1, {"message": "Third", "level": "error", "fields": {"row": 7}})
    await tell(
        stored, about, 0, {"message": "first"}, {"message": "second", "level": "warning", "logger": "own"}
    )
    # The same part again is no second one.
    await tell(
        stored, about, 0, {"message": "first"}, {"message": "second", "level": "warning", "logger": "own"}
    )
    page = await read(stored)
    assert (said(page), page["next"], page["ended"]) == (["first", "second", "Third"], 3, False)
    assert page["items"][0] == {
        "at": "2026-01-01T00:00:00Z", "level": "info", "logger": "", "message": "first", "fields": {}
    }  # fmt: skip
    assert said(await read(stored, limit=2)) == ["first", "second"]
    assert said(await read(stored, **{"from": 2})) == ["Third"]
    for text, found in (("third", ["Third"]), ("row=7", ["Third"]), ("OWN", ["second"]), ("info", [])):
        assert said(await read(stored, contains=text)) == found
    assert said(await read(stored, level="warning")) == ["second", "Third"]


async def test_it_is_waited_for_until_the_attempt_ends(stored: Bench) -> None:
    about = await started(stored)
    waiting = asyncio.create_task(read(stored, wait_ms=20_000))
    await asyncio.sleep(0.1)
    await tell(stored, about, 0, {"message": "at last"})
    assert said(await waiting) == ["at last"]
    waiting = asyncio.create_task(read(stored, wait_ms=20_000, **{"from": 1}))
    await stored.report({"type": "Succeeded", "job": "mine", "lease": about["lease"]})
    assert await waiting == {"items": [], "next": 1, "ended": True}


async def test_an_attempt_that_was_given_back_is_read_though_it_is_not_counted(stored: Bench) -> None:
    about = await started(stored)
    await tell(stored, about, 0, {"message": "not now"})
    snoozed = {"type": "Snoozed", "job": "mine", "lease": about["lease"], "delay_ms": 60_000}
    await stored.report(snoozed)
    assert (await stored.job("mine"))["attempt"] == 0
    assert said(await read(stored)) == ["not now"]


async def test_what_there_is_none_of(stored: Bench, tmp_path: Path) -> None:
    await stored.enqueue(id="mine")
    for address, code in (
        ("mine/attempts/1/log", "not_found"), ("mine/attempts/0/log", "not_found"),
        ("mine/attempts/x/log", "not_found"), ("other/attempts/1/log", "job_not_found"),
    ):  # fmt: skip
        answer = await stored.http.get(f"/api/v1/jobs/{address}")
        assert (answer.status_code, answer.json()["code"]) == (404, code)
    about = {"worker": "w1", "job": "mine", "lease": "9.1.1", "fence": "1", "attempt": 1, "number": 0}
    wrong = await stored.http.post(
        "/api/v1/worker/log", json={**about, "items": [{"at": "", "message": "m"}]}
    )
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "lease")
    about = await started(stored)
    stored.deps.claims = None
    off = await stored.http.get("/api/v1/jobs/mine/attempts/1/log")
    assert (off.status_code, off.json()["code"]) == (503, "claims_off")


async def test_it_goes_when_its_job_goes(stored: Bench) -> None:
    assert stored.deps.claims is not None
    await tell(stored, await started(stored), 0, {"message": "kept"})
    await stored.deps.claims.keep_output("default", "gone", 1, 1, 0, b'{"message":"of a job that is gone"}\n')
    now_ms = stored.deps.now_ms()
    stored.deps.now_ms = lambda: now_ms + 8 * 86_400_000
    swept = await stored.http.post("/api/v1/claims/sweep", json={"dry_run": False})
    assert (swept.json()["jobs"], swept.json()["objects"]) == (1, 1)
    assert said(await read(stored)) == ["kept"]
