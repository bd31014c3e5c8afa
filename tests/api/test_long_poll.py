"""Waiting for a job over HTTP: it answers when there is something to tell, and not later."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from penstock.schemas.codec import encode_line
from penstock.schemas.events import Enqueued, Raw
from penstock.schemas.ids import partition_of
from tests.api.harness import Bench

LONG_MS = 20_000


def waiting(found: Bench, job_id: str, until: str, wait_ms: int = LONG_MS, **params: str) -> Any:
    asked = {"until": until, "wait_ms": str(wait_ms), **params}
    return asyncio.create_task(found.http.get(f"/api/v1/jobs/{job_id}", params=asked))


async def answer_of(asking: Any) -> dict[str, Any]:
    answer: httpx.Response = await asking
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def still_waits(asking: Any) -> bool:
    await asyncio.sleep(0.15)
    return not asking.done()


async def test_until_it_has_ended(whole: Bench) -> None:
    job = await whole.enqueue()
    asking = waiting(whole, job["id"], "finished")
    [given] = await whole.fetch()
    assert await still_waits(asking)
    await whole.report({"type": "Succeeded", "job": job["id"], "lease": given["lease"], "result": 7})
    done = await answer_of(asking)
    assert (done["state"], done["result"]) == ("succeeded", 7)
    # What has ended is told at once.
    began = time.monotonic()
    assert (await answer_of(waiting(whole, job["id"], "finished")))["state"] == "succeeded"
    assert time.monotonic() - began < LONG_MS / 2_000


async def test_until_it_changes(whole: Bench) -> None:
    job = await whole.enqueue(delay_ms=600_000)
    asking = waiting(whole, job["id"], "changed")
    assert await still_waits(asking)
    await whole.http.post(f"/api/v1/jobs/{job['id']}/hold")
    held = await answer_of(asking)
    assert held["state"] == "held"
    # From a place on: what has changed since is told at once, and nothing else is.
    assert (await answer_of(waiting(whole, job["id"], "changed", after=job["position"])))["state"] == "held"
    asking = waiting(whole, job["id"], "changed", after=held["position"])
    assert await still_waits(asking)
    await whole.http.post(f"/api/v1/jobs/{job['id']}/unhold")
    assert (await answer_of(asking))["state"] == "scheduled"


async def test_progress_is_a_change(whole: Bench) -> None:
    job = await whole.enqueue()
    [given] = await whole.fetch()
    await whole.until(job["id"], "active")
    asking = waiting(whole, job["id"], "changed")
    await asyncio.sleep(0.05)
    await whole.report({"type": "Progressed", "job": job["id"], "lease": given["lease"], "percent": 40})
    assert (await answer_of(asking))["progress"] == {"percent": 40, "message": ""}


async def test_when_the_time_is_up_it_is_told_as_it_is(whole: Bench) -> None:
    job = await whole.enqueue(delay_ms=600_000)
    began = time.monotonic()
    assert (await answer_of(waiting(whole, job["id"], "finished", 300)))["state"] == "scheduled"
    assert time.monotonic() - began >= 0.25
    assert (await answer_of(waiting(whole, job["id"], "finished", 0)))["state"] == "scheduled"


async def test_what_others_do_in_its_partition_is_not_told(whole: Bench) -> None:
    job = await whole.enqueue(id="a~home", delay_ms=600_000)
    asking = waiting(whole, job["id"], "changed", 1_500)
    for number in range(10):
        await whole.enqueue(id=f"b{number}~home", delay_ms=600_000)
    assert not asking.done()
    assert (await answer_of(asking))["position"] == job["position"]


async def test_a_job_that_is_deleted_meanwhile(whole: Bench) -> None:
    job = await whole.enqueue(delay_ms=600_000)
    asking = waiting(whole, job["id"], "finished")
    assert await still_waits(asking)
    await whole.http.delete(f"/api/v1/jobs/{job['id']}")
    answer = await asking
    assert (answer.status_code, answer.json()["code"]) == (404, "job_deleted")


async def test_hundreds_wait_and_the_server_stops(whole: Bench) -> None:
    job = await whole.enqueue(delay_ms=600_000)
    asking = [waiting(whole, job["id"], "finished") for _ in range(200)]
    await asyncio.sleep(0.3)
    whole.deps.stop()
    answers = await asyncio.wait_for(asyncio.gather(*asking), 10)
    assert {answer.status_code for answer in answers} == {503}


async def test_the_result_alone(whole: Bench) -> None:
    job = await whole.enqueue()
    path = f"/api/v1/jobs/{job['id']}/result"
    early = await whole.http.get(path)
    assert (early.status_code, early.json()["code"], early.json()["job_state"]) == (409, "conflict", "ready")
    asking = asyncio.create_task(whole.http.get(path, params={"until": "finished", "wait_ms": str(LONG_MS)}))
    [given] = await whole.fetch()
    done = {"type": "Succeeded", "job": job["id"], "lease": given["lease"], "result": {"rows": [1, None]}}
    await whole.report(done)
    answer = await asking
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {"rows": [1, None]}
    other = await whole.enqueue(delay_ms=600_000)
    await whole.http.post(f"/api/v1/jobs/{other['id']}/cancel")
    assert (await whole.http.get(f"/api/v1/jobs/{other['id']}/result")).json()["job_state"] == "cancelled"
    assert (await whole.http.get("/api/v1/jobs/nobody/result")).status_code == 404


@pytest.mark.parametrize("params", [{"until": "later"}, {"until": "finished", "wait_ms": "60001"}])
async def test_bad_questions(api: Bench, params: dict[str, str]) -> None:
    assert (await api.http.get("/api/v1/jobs/x", params=params)).status_code == 422


async def test_nobody_to_wait_for(api: Bench) -> None:
    asked = {"until": "finished", "wait_ms": "10000"}
    assert (await api.http.get("/api/v1/jobs/x", params=asked)).status_code == 404


@pytest.mark.parametrize("rest", ["", "?until=finished&wait_ms=20000", "/result", "/history"])
async def test_a_job_that_the_read_model_has_yet_to_fold_is_there(whole: Bench, rest: str) -> None:
    for number in range(5):
        job_id = f"early-{number}"
        line = encode_line(Enqueued(id=f"e{number}", job=job_id, job_type="noop", payload=Raw(b"{}")))
        await whole.log.append(whole.topics.jobs, partition_of(job_id, whole.topics.partitions), line)
        asked = f"/api/v1/jobs/{job_id}{rest}".replace("20000", "1")
        assert (await whole.http.get(asked)).status_code == (409 if rest == "/result" else 200)
