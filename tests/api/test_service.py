"""The server itself: its address, its end, and what a client's going away does."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from penstock.api.app import create_app
from penstock.api.service import ApiService
from penstock.schemas.errors import SettingsInvalid
from tests.api.harness import Bench
from tests.waiting import until


async def test_it_serves_on_a_free_port_and_is_gone_afterwards(api: Bench) -> None:
    async with ApiService(create_app(api.deps), port=0) as service:
        assert service.address.startswith("http://127.0.0.1:")
        async with httpx.AsyncClient(base_url=service.address) as http:
            answer = await http.post("/api/v1/jobs", json={"type": "noop"})
            assert answer.status_code == 201
            assert "server" not in answer.headers
        assert not service.failure.done()
    with pytest.raises(httpx.ConnectError):
        async with httpx.AsyncClient() as http:
            await http.get(f"{service.address}/healthz")


async def test_an_address_in_use_is_a_clear_error(api: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsInvalid, match=str(port)):
            async with ApiService(create_app(api.deps), port=port):
                pass


async def test_its_failure_is_told(api: Bench) -> None:
    async with ApiService(create_app(api.deps), port=0) as service:
        assert service._task is not None
        server: Any = service._server
        server.force_exit = True

        async def explode(counter: int) -> bool:
            raise RuntimeError("the loop of the server broke")

        server.on_tick = explode
        async with asyncio.timeout(10):
            with pytest.raises(RuntimeError, match="broke"):
                await asyncio.shield(service.failure)


async def test_an_answer_that_is_left_unfinished_is_still_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def forgetful(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async with ApiService(forgetful, port=0) as service, httpx.AsyncClient() as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(service.address)
    assert "without completing response" in caplog.text


async def test_a_client_that_disconnects_while_it_waits_gives_its_place_up(whole: Bench) -> None:
    """G1: nothing is granted to a client that has gone; what comes is another's."""
    async with ApiService(create_app(whole.deps), port=0) as service:
        body = {"worker": "w1", "types": ["noop"], "max": 1, "wait_ms": 30_000}
        async with httpx.AsyncClient(base_url=service.address) as http:
            waiting = asyncio.create_task(http.post("/api/v1/worker/fetch", json=body))
            await until(lambda: whole.deps.gateway.parked == 1)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: whole.deps.gateway.parked == 0)
        job = await whole.enqueue()
        [fetched] = await whole.fetch(worker="w2", wait_ms=15_000)
        assert (fetched["id"], fetched["attempt"]) == (job["id"], 1)


async def test_nothing_that_only_waits_holds_up_the_end(whole: Bench) -> None:
    """Fetches and reads may wait for a minute; the server answers them when it is to stop."""
    async with ApiService(create_app(whole.deps), port=0) as service, httpx.AsyncClient(timeout=60) as http:
        body = {"worker": "w1", "types": ["noop"], "max": 1, "wait_ms": 60_000}
        fetching = asyncio.create_task(http.post(f"{service.address}/api/v1/worker/fetch", json=body))
        ahead = {"after": "0:100:0", "wait_ms": 60_000}
        reading = asyncio.create_task(http.get(f"{service.address}/api/v1/jobs/x", params=ahead))
        await until(lambda: whole.deps.gateway.parked == 1 and len(whole.deps.parked) == 1)
        whole.deps.stop()
        fetched, read = await asyncio.wait_for(asyncio.gather(fetching, reading), 20)
        assert (fetched.status_code, fetched.json()) == (200, {"jobs": [], "signals": []})
        assert (read.status_code, read.json()["code"]) == (503, "read_model_unavailable")
        late = await http.get(f"{service.address}/api/v1/jobs/x", params=ahead)
        assert late.status_code == 503
        assert len(whole.deps.parked) == 0
