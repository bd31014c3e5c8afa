"""Asking workers over HTTP to take no more jobs, or to leave."""

from __future__ import annotations

import asyncio
import time

import pytest

from penstock import App, task
from penstock.api import workers
from penstock.api.remote_worker import RemoteWorker
from penstock.workers.log_transport import LogTransport
from penstock.workers.runtime import Worker
from tests.api.harness import Bench, held_up
from tests.waiting import until


@pytest.mark.parametrize("stop", [False, True], ids=["drain", "stop"])
async def test_a_worker_is_drained_and_stopped(whole: Bench, stop: bool) -> None:
    noop, begun, go_on = held_up()
    transport = LogTransport(whole.log, whole.topics)
    async with Worker(App(noop), transport, concurrency=1, name="w1") as worker:
        await until(lambda: [seen.heartbeat.worker for seen in whole.deps.registry.live()] == ["w1"])
        job = await whole.enqueue()
        await asyncio.wait_for(begun.wait(), 20)
        answer = await whole.http.post(f"/api/v1/workers/w1/{'stop' if stop else 'drain'}")
        assert answer.status_code == 200, answer.text
        assert answer.json()["leaving"]
        assert worker.left.is_set() == stop
        waiting = await whole.enqueue()
        go_on.set()
        assert (await whole.until(job["id"], "succeeded"))["result"] == "done"
        await asyncio.sleep(0.5)
        assert (await whole.job(waiting["id"]))["state"] == "ready"
        there = [
            (one["id"], one["leaving"]) for one in (await whole.http.get("/api/v1/workers")).json()["items"]
        ]
        assert stop or there == [("w1", True)], "one that was only drained is still there"
    assert not whole.deps.registry.live()


async def test_one_that_speaks_http_is_drained_at_once_and_keeps_what_it_has(whole: Bench) -> None:
    job = await whole.enqueue()
    [held] = await whole.fetch()
    waiting = asyncio.create_task(whole.fetch(wait_ms=30_000))
    remote = whole.deps.gateway.worker("w1", "")
    assert isinstance(remote, RemoteWorker)
    await until(lambda: remote.parked)
    answer = await whole.http.post("/api/v1/workers/w1/drain")
    assert answer.status_code == 200, answer.text
    assert answer.json()["leaving"]
    assert await asyncio.wait_for(waiting, 5) == []
    late = await whole.enqueue()
    begun_s = time.monotonic()
    body = {"worker": "w1", "types": ["noop"], "max": 1, "wait_ms": 500}
    fetched = (await whole.http.post("/api/v1/worker/fetch", json=body)).json()
    assert fetched == {"jobs": [], "signals": [{"type": "Drain"}]}
    assert time.monotonic() - begun_s >= 0.5, "it is not asked for again without a pause"
    assert {"type": "Drain"} in await whole.heartbeat({"lease": held["lease"], "job": held["id"]})
    outcome = {"type": "Succeeded", "job": job["id"], "lease": held["lease"], "result": 1}
    assert [item["outcome"] for item in await whole.report(outcome)] == ["applied"]
    assert (await whole.job(late["id"]))["state"] == "ready"
    [shown] = (await whole.http.get("/api/v1/workers")).json()["items"]
    assert shown["leaving"]
    assert not whole.deps.registry.handled()


async def test_one_that_is_not_there_is_404(whole: Bench) -> None:
    for verb in ("drain", "stop"):
        answer = await whole.http.post(f"/api/v1/workers/nobody/{verb}")
        assert answer.status_code == 404
        assert answer.json()["code"] == "not_found"


async def test_one_that_does_not_hear_is_202(whole: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "HEARD_S", 0.3)

    @task
    async def noop() -> None: ...

    transport = LogTransport(whole.log, whole.topics)
    async with Worker(App(noop), transport, concurrency=1, name="deaf") as worker:
        await until(whole.deps.registry.live)
        monkeypatch.setattr(type(worker), "drain", lambda self, stop: None)
        monkeypatch.setattr(type(transport), "stop_taking", lambda self: None)
        monkeypatch.setattr(type(transport.session), "say_draining", lambda self: None)
        answer = await whole.http.post("/api/v1/workers/deaf/drain")
        assert answer.status_code == 202
        assert not answer.json()["leaving"]
