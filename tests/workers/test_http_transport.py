"""A worker over HTTP, against a small server in this process that speaks the worker protocol."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penstock.schemas.errors import Conflict
from penstock.workers.app import AnyTask
from penstock.workers.context import Context
from penstock.workers.http_transport import HttpTransport
from penstock.workers.runtime import Worker
from penstock.workers.task import task
from tests.waiting import until


class Server:
    """Grants what the test queues, and keeps what it is told."""

    def __init__(self) -> None:
        self.queue: list[dict[str, Any]] = []
        self.fetches: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.heartbeats: list[dict[str, Any]] = []
        self.signals: list[dict[str, Any]] = []
        self.outcome: Callable[[dict[str, Any]], str] = lambda event: "applied"
        self.down: int | None = None
        self.knows_no_leaving = False
        self.refuses: Callable[[list[dict[str, Any]]], bool] = lambda events: False
        self.came = asyncio.Event()
        routes = [
            Route(f"/api/v1/worker/{name}", getattr(self, name), methods=["POST"])
            for name in ("fetch", "report", "heartbeat")
        ]
        self.app = Starlette(routes=routes)

    def put(self, job: str, job_type: str = "echo", **fields: Any) -> None:
        self.queue.append(
            {"id": job, "type": job_type, "queue": "default", "lease": f"lease-{job}", "attempt": 1, **fields}
        )
        self.came.set()

    async def fetch(self, request: Request) -> Response:
        if self.down:
            return Response(status_code=self.down)
        asked = await request.json()
        self.fetches.append(asked)
        try:
            async with asyncio.timeout(asked["wait_ms"] / 1000):
                while not self.queue:
                    self.came.clear()
                    await self.came.wait()
        except TimeoutError:
            return JSONResponse({"jobs": []})
        granted, self.queue[:] = self.queue[: asked["max"]], self.queue[asked["max"] :]
        return JSONResponse({"jobs": granted})

    async def report(self, request: Request) -> Response:
        if self.down:
            return Response(status_code=self.down)
        events = (await request.json())["events"]
        if self.refuses(events):
            return Response("no", status_code=422)
        self.events += events
        return JSONResponse(
            {"items": [{"job": item["job"], "outcome": self.outcome(item)} for item in events]}
        )

    async def heartbeat(self, request: Request) -> Response:
        if self.down:
            return Response(status_code=self.down)
        asked = await request.json()
        if self.knows_no_leaving and "leaving" in asked:
            return Response("unknown field", status_code=422)
        self.heartbeats.append(asked)
        signals, self.signals = self.signals, []
        return JSONResponse({"signals": signals})

    def event(self, job: str, kind: str = "") -> dict[str, Any] | None:
        found = [
            item
            for item in self.events
            if (item["job"] == job and item["type"] != "Progressed") or item["type"] == kind
        ]
        return found[0] if found else None


@task
async def echo(payload: Any) -> Any:
    return payload


@task
async def fail() -> None:
    raise ValueError("no")


@task
async def forever() -> None:
    await asyncio.sleep(3_600)


@task
async def saves(ctx: Context) -> Any:
    await ctx.progress(40, "far", checkpoint={"row": 4})
    return ctx.checkpoint


@asynccontextmanager
async def running(
    server: Server,
    *tasks: AnyTask,
    wait_ms: int = 200,
    http: httpx.AsyncBaseTransport | None = None,
    **options: Any,
) -> AsyncIterator[tuple[Worker, HttpTransport]]:
    transport = HttpTransport(
        "http://penstock", wait_ms=wait_ms, http_transport=http or httpx.ASGITransport(app=server.app)
    )
    options = {"lease_ms": 300, "grace_ms": 0, "name": "w", **options}
    async with Worker(tasks, transport, **options) as worker:
        yield worker, transport


async def test_jobs_are_fetched_run_and_reported() -> None:
    server = Server()
    async with running(server, echo, fail, concurrency=3) as (worker, transport):
        server.put("one", payload={"a": 1}, max_attempts=3, fence="5", timeout_ms=None)
        server.put("two", "fail")
        await until(lambda: server.event("one") and server.event("two"))
        await until(lambda: not transport.held)
    one, two = server.event("one"), server.event("two")
    assert one is not None
    assert two is not None
    assert (one["type"], one["lease"], one["result"]) == ("Succeeded", "lease-one", {"a": 1})
    assert (two["type"], two["error"]["code"], two["error"]["retryable"]) == ("Failed", "ValueError", True)
    asked = server.fetches[0]
    assert (asked["worker"], asked["incarnation"], asked["pool"]) == (
        "w",
        worker.profile.incarnation,
        "default",
    )
    assert (asked["types"], asked["max"], asked["lease_ms"]) == (["echo", "fail"], 3, 300)


async def test_progress_is_reported_and_the_checkpoint_restored() -> None:
    server = Server()
    async with running(server, saves) as (_, _):
        server.put("one", "saves", checkpoint={"row": 1})
        await until(lambda: server.event("one"))
    told = server.events[0]
    assert (told["type"], told["percent"], told["message"], told["checkpoint"]) == (
        "Progressed",
        40,
        "far",
        {"row": 4},
    )
    assert server.events[1]["result"] == {"row": 4}


async def test_a_save_is_refused_when_the_lease_is_stale() -> None:
    server = Server()
    server.outcome = lambda event: "stale" if event["type"] == "Progressed" else "applied"
    async with running(server, saves) as (_, _):
        server.put("one", "saves")
        await until(lambda: server.event("one"))
        event = server.event("one")
        assert event is not None
        assert event["error"]["code"] == "LeaseLost"


async def test_g1_a_grant_that_comes_again_runs_once_and_gets_its_old_outcome() -> None:
    server = Server()
    async with running(server, echo, forever) as (_, transport):
        server.put("one", payload=1)
        await until(lambda: server.event("one") and not transport.held)
        server.put("two", "forever")
        await until(lambda: "lease-two" in transport.held)
        server.put("two", "forever")
        server.put("one", payload=2)
        await until(lambda: len(server.events) == 2)
        assert server.events[0] == server.events[1]
        assert len(transport.held) == 1


async def test_heartbeats_name_what_is_held_and_bring_signals() -> None:
    server = Server()
    async with running(server, forever, concurrency=3) as (_, transport):
        server.put("one", "forever")
        server.put("two", "forever")
        await until(lambda: len(transport.held) == 2)
        await until(lambda: server.heartbeats and len(server.heartbeats[-1]["leases"]) == 2)
        assert {"lease": "lease-one", "job": "one"} in server.heartbeats[-1]["leases"]
        server.signals = [
            {"type": "CancelJob", "job": "one", "lease": "lease-one", "reason": "unwanted"},
            {"type": "LeaseGone", "job": "two", "lease": "lease-two", "reason": "ended"},
            {"type": "LeaseGone", "job": "x", "lease": "lease-x", "reason": "ended"},
            {"type": "Invented"},
        ]
        await until(lambda: not transport.held)
        event = server.event("one")
        assert event is not None
        assert (event["type"], event["reason"]) == ("Returned", "cancelled")
        assert server.event("two") is None


async def test_a_drain_signal_reaches_whoever_runs_the_worker() -> None:
    server = Server()
    async with running(server, echo) as (worker, _):
        server.signals = [{"type": "Drain", "stop": True}]
        await asyncio.wait_for(worker.left.wait(), 10)


async def test_while_the_server_is_away_handlers_go_on_and_outcomes_are_kept() -> None:
    server = Server()
    release = asyncio.Event()

    @task
    async def gated() -> str:
        await release.wait()
        return "done"

    async with running(server, gated, echo, lease_ms=60_000) as (worker, transport):
        server.put("one", "gated")
        await until(lambda: worker.busy)
        server.down = 503
        release.set()
        await until(lambda: not worker.busy)
        await asyncio.sleep(0.15)
        assert transport.held
        server.down = None
        await until(lambda: server.event("one"))
        server.put("two", payload=2)
        await until(lambda: server.event("two"))
        assert not worker.failure.done()


async def test_a_worker_that_is_not_heard_stops_its_handlers() -> None:
    server = Server()
    async with running(server, forever) as (worker, transport):
        server.put("one", "forever")
        await until(lambda: worker.busy)
        server.down = 500
        await until(lambda: not worker.busy)
        assert transport.held == {}
        assert server.event("one") is None


async def test_a_job_that_comes_after_a_long_silence_is_not_given_up_at_once() -> None:
    server = Server()
    release = asyncio.Event()

    @task
    async def gated() -> str:
        await release.wait()
        return "done"

    async with running(server, gated, lease_ms=900) as (worker, transport):
        await until(lambda: server.heartbeats)
        # A heartbeat that hangs tells nothing for longer than a lease; then the server is back.
        transport._heard_ms -= 60_000  # pyright: ignore[reportPrivateUsage]  # instead of waiting for a minute
        server.put("one", "gated")
        await until(lambda: worker.busy)
        seen = len(server.heartbeats)
        await until(lambda: len(server.heartbeats) > seen)
        assert worker.busy
        release.set()
        await until(lambda: server.event("one"))


async def test_outcomes_not_known_yet_are_reported_again() -> None:
    server = Server()
    server.outcome = lambda event: "applied" if len(server.events) > 1 else "unknown"
    async with running(server, echo) as (_, transport):
        server.put("one", payload=1)
        await until(lambda: len(server.events) == 2)
        await until(lambda: not transport.held)
        assert server.events[0] == server.events[1]


async def test_one_report_that_is_refused_leaves_the_others_alone() -> None:
    server = Server()
    server.refuses = lambda events: any(event["job"] == "bad" for event in events)
    async with running(server, echo, concurrency=8) as (_, transport):
        for name in ("a", "b", "bad", "c", "d"):
            server.put(name, payload=name)
        await until(lambda: len(server.events) == 4 and not transport.held)
        assert {event["job"] for event in server.events} == {"a", "b", "c", "d"}


async def test_a_newer_incarnation_ends_the_worker() -> None:
    server = Server()
    server.down = 409
    async with running(server, echo) as (worker, _):
        with pytest.raises(Conflict):
            await asyncio.wait_for(worker.failure, 10)


@pytest.mark.parametrize("content", [b"not json", b'{"jobs": [{"id": 1}]}', b"\xff"])
async def test_answers_that_cannot_be_read_are_asked_for_again(content: bytes) -> None:
    server = Server()
    calls = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise httpx.ConnectError("refused")
        if calls <= 3:
            return httpx.Response(200, content=content)
        return await httpx.ASGITransport(app=server.app).handle_async_request(request)

    async with running(server, echo, http=httpx.MockTransport(answer)) as (_, _):
        server.put("one", payload=1)
        await until(lambda: server.event("one"))


async def test_b7_leaving_gives_back_over_http_too() -> None:
    server = Server()
    async with running(server, forever, lease_ms=60_000) as (worker, _):
        server.put("one", "forever")
        await until(lambda: worker.busy)
    event = server.event("one")
    assert event is not None
    assert (event["type"], event["reason"]) == ("Returned", "shutdown")


async def test_one_that_leaves_says_so_at_once_and_when_it_goes() -> None:
    server = Server()
    async with running(server, forever, lease_ms=60_000) as (worker, transport):
        server.put("one", "forever")
        await until(lambda: worker.busy)
        transport.stop_taking()
        # Its next heartbeat would be seconds away.
        await asyncio.wait_for(until(lambda: any(beat.get("leaving") for beat in server.heartbeats)), 2)
        assert [item["job"] for item in server.heartbeats[-1]["leases"]] == ["one"]
    assert server.heartbeats[-1] == {
        "worker": "w",
        "incarnation": worker.profile.incarnation,
        "leaving": True,
    }


async def test_one_that_leaves_an_older_server_keeps_its_leases_there() -> None:
    server = Server()
    server.knows_no_leaving = True
    async with running(server, forever, lease_ms=300) as (worker, transport):
        server.put("one", "forever")
        await until(lambda: worker.busy)
        transport.stop_taking()
        beats = len(server.heartbeats)
        await until(lambda: len(server.heartbeats) > beats + 5)
        assert worker.busy, "it was heard"
        assert not any("leaving" in beat for beat in server.heartbeats)


async def test_one_that_is_drained_does_not_say_that_it_leaves() -> None:
    server = Server()
    async with running(server, echo) as (worker, _):
        for _ in range(3):
            server.signals = [{"type": "Drain"}]
            await until(lambda: not server.signals)
        beats = len(server.heartbeats)
        await until(lambda: len(server.heartbeats) > beats + 1)
        assert not any("leaving" in beat for beat in server.heartbeats)
        assert not worker.left.is_set()
    assert server.heartbeats[-1]["leaving"]


async def test_a_worker_whose_slots_are_all_stuck_asks_for_nothing_until_one_is_free() -> None:
    server, release = Server(), threading.Event()

    @task
    def stuck() -> None:
        release.wait(60)

    async with running(server, stuck, echo, concurrency=1, wait_ms=20, lease_ms=60_000) as (
        worker,
        transport,
    ):
        server.put("one", "stuck", timeout_ms=20)
        await until(lambda: server.event("one") and not transport.held)
        await until(lambda: not worker.capacity)
        server.put("two", payload=2)
        asked = len(server.fetches)
        # The fetch that was under way may still bring the job; what goes back then is not asked for again.
        await asyncio.sleep(0.3)
        assert len(server.fetches) <= asked + 1
        release.set()
        server.put("three", payload=3)
        await until(lambda: (event := server.event("three")) and event["type"] == "Succeeded")


async def test_a_type_whose_slots_are_all_stuck_is_not_asked_for() -> None:
    server, release = Server(), threading.Event()

    @task(concurrency=1)
    def stuck() -> None:
        release.wait(60)

    async with running(server, stuck, echo, concurrency=4, wait_ms=20, lease_ms=60_000) as (_, transport):
        server.put("one", "stuck", timeout_ms=20)
        await until(lambda: server.event("one") and not transport.held)
        await until(lambda: "stuck" not in server.fetches[-1]["types"])
        assert "limits" not in server.fetches[-1]
        server.put("two", payload=2)
        await until(lambda: (event := server.event("two")) and event["type"] == "Succeeded")
        release.set()
        await until(lambda: server.fetches[-1].get("limits") == {"stuck": 1})
        assert set(server.fetches[-1]["types"]) == {"echo", "stuck"}


async def test_many_short_jobs_are_fetched_and_reported_in_batches() -> None:
    server = Server()
    async with running(server, echo, concurrency=8, lease_ms=60_000) as (_, transport):
        for number in range(2_000):
            server.put(f"job{number}", payload=number)
        await until(lambda: len(server.events) == 2_000 and not transport.held)
        assert len(server.fetches) < 400
    assert {event["result"] for event in server.events} == set(range(2_000))
    assert msgspec.json.encode(server.events[0])
