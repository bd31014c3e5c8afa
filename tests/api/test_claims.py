"""Payloads and results too large for the log: taken in, given out, copied and swept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock.api.deps import ApiOptions
from penstock.log.blobs import open_blobs
from penstock.log.claims import ClaimStore
from penstock.schemas.errors import BlobsUnavailable
from tests.api.harness import Bench, bench

LARGE = "x" * 400_000
TOO_LARGE = "x" * 1_100_000


@pytest.fixture
async def stored(tmp_path: Path) -> AsyncIterator[Bench]:
    """The API with an orchestrator and a store of large bodies."""
    async with bench(tmp_path, orchestrate=True) as found:
        found.deps.claims = ClaimStore(open_blobs(str(tmp_path / "claims")), max_bytes=1_000_000)
        yield found


def claim(value: Any) -> dict[str, Any]:
    body = json.dumps(value, separators=(",", ":")).encode()
    return {"$claim": {"sha256": hashlib.sha256(body).hexdigest(), "size_bytes": len(body)}}


async def bodies(api: Bench) -> list[str]:
    assert api.deps.claims is not None
    return [one.job for one in await api.deps.claims.objects()]


async def test_a_large_payload_lies_beside_the_log(stored: Bench) -> None:
    job = await stored.enqueue(id="large~home", payload=LARGE)
    address = "/api/v1/jobs/large~home/payload"
    assert (job["payload"], job["payload_url"], job["result_url"]) == (claim(LARGE), address, None)
    assert await stored.job(job["id"]) == job
    assert (await stored.http.get(address)).json() == LARGE
    small = await stored.enqueue(payload=[1])
    assert small["payload_url"] is None
    assert (await stored.http.get(f"/api/v1/jobs/{small['id']}/payload")).json() == [1]
    history = (await stored.http.get(f"/api/v1/jobs/{job['id']}/history")).json()
    assert history["items"][0]["payload"] == claim(LARGE)


async def test_the_same_again_is_the_first_job_and_another_body_is_refused(stored: Bench) -> None:
    await stored.enqueue(id="mine", payload=LARGE)
    again = await stored.http.post("/api/v1/jobs", json={"type": "noop", "id": "mine", "payload": LARGE})
    assert (again.status_code, again.json()["payload"]) == (200, claim(LARGE))
    other = await stored.http.post(
        "/api/v1/jobs", json={"type": "noop", "id": "mine", "payload": LARGE + "y"}
    )
    assert (other.status_code, other.json()["code"]) == (409, "id_in_use")


async def test_a_worker_fetches_the_payload_and_reports_a_large_result(stored: Bench) -> None:
    job = await stored.enqueue(payload=LARGE)
    [given] = await stored.fetch()
    assert (given["payload"], given["payload_url"]) == (claim(LARGE), f"/api/v1/jobs/{job['id']}/payload")
    about = {"type": "Succeeded", "job": job["id"], "lease": given["lease"]}
    for _ in range(2):
        [item] = await stored.report({**about, "result": {"found": LARGE}})
        assert item["outcome"] in ("applied", "duplicate")
    done = await stored.until(job["id"], "succeeded")
    address = f"/api/v1/jobs/{job['id']}/result"
    assert (done["result"], done["result_url"]) == (claim({"found": LARGE}), address)
    assert (await stored.http.get(address)).json() == {"found": LARGE}


async def test_a_result_beyond_the_limit_fails_the_job_for_good(stored: Bench) -> None:
    job = await stored.enqueue()
    [given] = await stored.fetch()
    about = {"type": "Succeeded", "job": job["id"], "lease": given["lease"]}
    [item] = await stored.report({**about, "result": TOO_LARGE})
    assert "at most 1000000" in item["message"]
    dead = await stored.until(job["id"], "dead")
    assert dead["errors"][0]["code"] == "result_too_large"


async def test_of_many_only_those_that_fit_nowhere_are_refused(stored: Bench) -> None:
    lines = [LARGE, 1, TOO_LARGE, LARGE + "y"]
    text = "\n".join(json.dumps({"type": "noop", "payload": payload}) for payload in lines)
    answer = await stored.http.post(
        "/api/v1/jobs/bulk", content=text, headers={"content-type": "application/x-ndjson"}
    )
    items = answer.json()["items"]
    assert [item["status"] for item in items] == ["accepted", "accepted", "rejected", "accepted"]
    assert items[2]["code"] == "too_large"
    after = answer.headers["penstock-position"]
    shown = [await stored.job(item["id"], after) for item in items if "id" in item]
    assert [job["payload"] for job in shown] == [claim(LARGE), 1, claim(LARGE + "y")]


async def test_without_a_store_it_is_413(tmp_path: Path) -> None:
    async with bench(tmp_path) as api:
        answer = await api.http.post("/api/v1/jobs", json={"type": "noop", "payload": LARGE})
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        swept = await api.http.post("/api/v1/claims/sweep")
        assert (swept.status_code, swept.json()["code"]) == (503, "claims_off")


async def test_a_store_that_does_not_answer_loses_nothing(
    stored: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stored.deps.claims is not None

    async def fails(*_: object) -> None:
        raise BlobsUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(stored.deps.claims.blobs, "put", fails)
        asked = {"type": "noop", "payload": LARGE}
        answer = await stored.http.post("/api/v1/jobs", json=asked)
        assert (answer.status_code, answer.json()["code"]) == (503, "blobs_unavailable")
        job_id = answer.json()["job_id"]
        assert (await stored.http.get(f"/api/v1/jobs/{job_id}")).status_code == 404
        bulk = await stored.http.post("/api/v1/jobs/bulk", json=[asked, {"type": "noop"}])
        assert [item["status"] for item in bulk.json()["items"]] == ["rejected", "accepted"]
        assert bulk.json()["items"][0]["code"] == "blobs_unavailable"
        # A result that is not stored is not reported, and can be again.
        [given] = await stored.fetch()
        report = {"type": "Succeeded", "job": given["id"], "lease": given["lease"], "result": LARGE}
        assert (await stored.report(report))[0]["outcome"] == "unknown"
    assert (await stored.report(report))[0]["outcome"] == "applied"
    again = await stored.enqueue(id=job_id, payload=LARGE)
    assert again["payload"] == claim(LARGE)


async def test_what_is_missing_or_damaged_is_said(
    stored: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = await stored.enqueue(payload=LARGE)
    [path] = [path for path in (tmp_path / "claims").rglob("*") if path.is_file()]
    for damaged, told in ((b'"' + b"y" * len(LARGE) + b'"', "its SHA-256 is "), (b"{}", "it has 2 bytes")):
        path.write_bytes(damaged)
        caplog.clear()
        answer = await stored.http.get(job["payload_url"])
        assert (answer.status_code, answer.json()["code"]) == (500, "claim_damaged")
        [line] = caplog.records
        assert (line.levelname, line.exc_info) == ("WARNING", None)
        for part in (f"job {job['id']} of the tenant default", told):
            assert part in line.message
    path.unlink()
    answer = await stored.http.get(job["payload_url"])
    assert (answer.status_code, answer.json()["code"], answer.json()["job_id"]) == (
        404,
        "claim_missing",
        job["id"],
    )


async def test_a_clone_has_a_body_of_its_own(stored: Bench) -> None:
    job = await stored.enqueue(payload=LARGE)
    answer = await stored.http.post(f"/api/v1/jobs/{job['id']}/clone")
    clone = answer.json()
    assert (answer.status_code, clone["payload"]) == (201, claim(LARGE))
    assert sorted(await bodies(stored)) == sorted([job["id"], clone["id"]])
    assert (await stored.http.get(clone["payload_url"])).json() == LARGE


async def test_a_clone_with_another_payload_does_not_need_the_first_one(stored: Bench) -> None:
    job = await stored.enqueue(payload=LARGE)
    store = stored.deps.claim_store()
    await store.delete(await store.objects())
    path = f"/api/v1/jobs/{job['id']}/clone"
    assert (await stored.http.post(path)).json()["code"] == "claim_missing"
    for payload in (None, "small"):
        answer = await stored.http.post(path, json={"payload": payload})
        assert (answer.status_code, answer.json()["payload"]) == (201, payload)


async def test_only_old_bodies_of_no_job_are_swept(stored: Bench) -> None:
    assert stored.deps.claims is not None
    job = await stored.enqueue(payload=LARGE)
    await stored.deps.claims.keep("default", "never-began", b'"body"')

    async def sweep(**fields: Any) -> dict[str, Any]:
        answer = await stored.http.post("/api/v1/claims/sweep", json=fields)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    nothing = {"jobs": 0, "objects": 0, "size_bytes": 0, "deleted": True}
    assert await sweep(dry_run=False) == nothing
    now_ms = stored.deps.now_ms()
    stored.deps.now_ms = lambda: now_ms + 8 * 86_400_000
    found = {"jobs": 1, "objects": 1, "size_bytes": 6}
    assert await sweep() == {**found, "deleted": False}
    assert sorted(await bodies(stored)) == sorted([job["id"], "never-began"])
    assert await sweep(dry_run=False) == {**found, "deleted": True}
    assert await bodies(stored) == [job["id"]]
    too_young = await stored.http.post("/api/v1/claims/sweep", json={"older_than_ms": 3_599_999})
    assert too_young.status_code == 422


async def test_the_smaller_limit_is_that_of_the_log(tmp_path: Path) -> None:
    async with bench(tmp_path, options=ApiOptions(max_payload_bytes=1_000)) as api:
        api.deps.claims = ClaimStore(open_blobs(str(tmp_path / "claims")), max_bytes=1_000_000)
        for size, beside in ((998, False), (999, True)):
            answer = await api.http.post("/api/v1/jobs", json={"type": "x", "payload": "x" * size})
            assert (answer.status_code, answer.json()["payload_url"] is not None) == (201, beside)
