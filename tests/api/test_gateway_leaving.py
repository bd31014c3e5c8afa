"""Workers that speak HTTP and say that they leave: gone at once, and no lease of theirs ends early."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from penstock import App, task
from penstock.api.app import create_app
from penstock.api.service import ApiService
from penstock.workers.http_transport import HttpTransport
from penstock.workers.runtime import Worker
from tests.api.harness import Bench, held_up
from tests.waiting import until

SOON_S = 5.0
"""A silent worker is shown for much longer."""


async def leave(api: Bench, *leases: dict[str, str], worker: str = "w1") -> list[dict[str, Any]]:
    body = {"worker": worker, "leases": list(leases), "leaving": True}
    answer = await api.http.post("/api/v1/worker/heartbeat", json=body)
    assert answer.status_code == 200, answer.text
    signals: list[dict[str, Any]] = answer.json()["signals"]
    return signals


async def listed(api: Bench) -> list[tuple[str, bool]]:
    items = (await api.http.get("/api/v1/workers")).json()["items"]
    return [(item["id"], item["leaving"]) for item in items]


async def is_listed(api: Bench, *expected: tuple[str, bool]) -> None:
    """Soon."""
    live = api.deps.registry.live
    workers = [(name, not leaving) for name, leaving in expected]
    await asyncio.wait_for(
        until(lambda: [(seen.heartbeat.worker, seen.heartbeat.takes_more) for seen in live()] == workers),
        SOON_S,
    )
    assert await listed(api) == list(expected)


def named(job: dict[str, Any]) -> dict[str, str]:
    return {"lease": job["lease"], "job": job["id"]}


async def test_one_that_holds_nothing_is_gone_at_once(whole: Bench) -> None:
    assert await whole.fetch(wait_ms=250) == []
    await is_listed(whole, ("w1", False))
    assert await leave(whole) == []
    await is_listed(whole)
    assert whole.deps.gateway.sessions == 0


async def test_one_that_holds_a_job_takes_no_more_and_is_gone_when_that_is_done(whole: Bench) -> None:
    job = await whole.enqueue()
    [held] = await whole.fetch()
    waiting = asyncio.create_task(whole.fetch(wait_ms=30_000))
    remote = whole.deps.gateway.worker("w1", "")
    assert remote is not None
    await until(lambda: remote.parked)
    assert await leave(whole, named(held)) == []
    assert await asyncio.wait_for(waiting, SOON_S) == []
    later = await whole.enqueue()
    await is_listed(whole, ("w1", True))
    # A client that does not say it again has not changed its mind.
    assert await whole.heartbeat(named(held)) == []
    await asyncio.sleep(0.6)
    assert (await whole.job(later["id"]))["state"] == "ready"
    assert await listed(whole) == [("w1", True)]
    outcome = {"type": "Succeeded", "job": job["id"], "lease": held["lease"], "result": 1}
    assert [item["outcome"] for item in await whole.report(outcome)] == ["applied"]
    await is_listed(whole)


async def test_what_it_holds_lasts_as_long_as_ever(whole: Bench) -> None:
    job = await whole.enqueue()
    [held] = await whole.fetch(lease_ms=4_000)
    begun_s = time.monotonic()
    await leave(whole, named(held))
    # It is late: two fifths of the lease are over, and the heartbeats on the log no longer name it.
    await asyncio.sleep(2.6)
    assert time.monotonic() - begun_s < 4.0, "this machine is too slow to tell"
    assert (await whole.job(job["id"]))["state"] == "active"
    assert await leave(whole, named(held)) == []
    outcome = {"type": "Succeeded", "job": job["id"], "lease": held["lease"], "result": 1}
    assert [item["outcome"] for item in await whole.report(outcome)] == ["applied"]
    assert (await whole.until(job["id"], "succeeded"))["attempt"] == 1


async def test_one_whose_server_was_started_anew_keeps_what_it_names(whole: Bench) -> None:
    job = await whole.enqueue()
    [held] = await whole.fetch()
    # As after a restart: this gateway has never heard of the worker.
    del whole.deps.gateway._workers["w1"]  # pyright: ignore[reportPrivateUsage]  # nothing public forgets one
    assert await leave(whole, named(held)) == []
    await is_listed(whole, ("w1", True))
    outcome = {"type": "Succeeded", "job": job["id"], "lease": held["lease"], "result": 1}
    assert [item["outcome"] for item in await whole.report(outcome)] == ["applied"]
    await is_listed(whole)


async def test_one_that_fetches_again_is_back(whole: Bench) -> None:
    await whole.enqueue()
    [held] = await whole.fetch()
    await leave(whole, named(held))
    await is_listed(whole, ("w1", True))
    second = await whole.enqueue()
    assert [job["id"] for job in await whole.fetch(leases=[named(held)])] == [second["id"]]
    await is_listed(whole, ("w1", False))


async def test_a_worker_over_http_is_gone_when_it_has_left(whole: Bench) -> None:
    noop, begun, go_on = held_up()
    async with ApiService(create_app(whole.deps), port=0) as service:
        transport = HttpTransport(service.address)
        worker = Worker(App(noop), transport, concurrency=1, name="w1", grace_ms=20_000)
        await worker.__aenter__()
        job = await whole.enqueue()
        await asyncio.wait_for(begun.wait(), 20)
        leaving = asyncio.create_task(worker.__aexit__(None, None, None))
        # It has told before its next heartbeat is due, and lets its handler end.
        await is_listed(whole, ("w1", True))
        go_on.set()
        await leaving
        await is_listed(whole)
        assert (await whole.job(job["id"]))["result"] == "done"


async def test_a_drained_worker_over_http_stays_until_it_leaves(whole: Bench) -> None:
    @task
    async def noop() -> None: ...

    async with ApiService(create_app(whole.deps), port=0) as service:
        transport = HttpTransport(service.address)
        async with Worker(App(noop), transport, concurrency=1, name="w1", lease_ms=1_000) as worker:
            await is_listed(whole, ("w1", False))
            assert (await whole.http.post("/api/v1/workers/w1/drain")).status_code == 200
            # Several heartbeats, each of which is answered that it is drained.
            await asyncio.sleep(1.5)
            assert await listed(whole) == [("w1", True)]
            assert not worker.left.is_set()
        await is_listed(whole)
