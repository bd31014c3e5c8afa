"""Payloads and results that lie beside the log, on the worker's side."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import httpx
import pytest

from penstock.log.blobs import open_blobs
from penstock.log.claims import ClaimStore
from penstock.schemas.claims import claim_of
from penstock.schemas.errors import BlobsUnavailable
from penstock.schemas.events import Failed, Succeeded
from penstock.schemas.messages import Delivery
from penstock.workers.bodies import StoredBodies
from penstock.workers.task import task
from penstock.workers.values import PartError, Partial
from tests.waiting import until
from tests.workers import test_http_transport as over_http
from tests.workers import test_processes as in_processes
from tests.workers.bench import job, running
from tests.workers.fakes import FakeTransport

LARGE = "x" * 400_000


@pytest.fixture
def store() -> ClaimStore:
    return ClaimStore(open_blobs(f"memory://{uuid.uuid4()}"), max_bytes=1_000_000)


async def claimed(store: ClaimStore, name: str, lease: str, payload: Any) -> Delivery:
    """A job whose payload lies in the store."""
    whole = job(name, lease, payload)
    body = bytes(whole.payload)
    return job(name, lease, whole.payload.__class__(await store.keep("default", whole.job, body)))


@task
async def echo(payload: Any) -> Any:
    return payload


@task
def typed(text: str) -> int:
    return len(text)


@task
async def partly(size: int) -> Partial:
    return Partial({"text": "x" * size}, [PartError("odd", "a row")])


async def ended(transport: FakeTransport, lease: str) -> Succeeded | Failed:
    await until(lambda: lease in transport.outcomes)
    outcome = transport.outcomes[lease]
    assert isinstance(outcome, Succeeded | Failed)
    return outcome


async def result_of(store: ClaimStore, outcome: Succeeded | Failed) -> bytes:
    """What the handler returned, from where it lies."""
    assert isinstance(outcome, Succeeded), outcome
    claim = claim_of(outcome.result)
    assert claim is not None
    return await store.read(outcome.tenant, outcome.job, claim)


async def test_they_are_brought_and_taken_away(store: ClaimStore) -> None:
    async with running(echo, typed, partly, bodies=StoredBodies(store)) as (transport, _):
        transport.give(
            await claimed(store, "echo", "0.1.1", LARGE),
            await claimed(store, "typed", "0.1.2", {"text": LARGE}),
            job("partly", "0.1.3", {"size": 300_000}),
            job("echo", "0.1.4", "x" * 60_000),
        )
        assert await result_of(store, await ended(transport, "0.1.1")) == b'"' + LARGE.encode() + b'"'
        assert await transport.succeeded("0.1.2") == len(LARGE)
        partial = await ended(transport, "0.1.3")
        assert isinstance(partial, Succeeded)
        assert [error.code for error in partial.errors] == ["odd"]
        assert len(await result_of(store, partial)) == 300_011
        assert await transport.succeeded("0.1.4") == "x" * 60_000


async def test_in_a_process_as_well(store: ClaimStore) -> None:
    async with in_processes.working(bodies=StoredBodies(store)) as (transport, _):
        transport.give(await claimed(store, "whoami", "0.1.1", {"text": LARGE}))
        assert f'"text":"{LARGE.upper()}"'.encode() in await result_of(store, await ended(transport, "0.1.1"))
        transport.give(await claimed(store, "whoami", "0.1.2", {"text": "y" * 999_980}))
        failed = await ended(transport, "0.1.2")
        assert isinstance(failed, Failed)
        assert (failed.error.code, failed.error.retryable) == ("result_too_large", False)


async def test_what_cannot_be_had_fails_the_attempt_and_says_whether_another_may_help(
    store: ClaimStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ClaimStore(open_blobs(f"memory://{uuid.uuid4()}"))
    async with running(echo, bodies=StoredBodies(store)) as (transport, _):
        transport.give(await claimed(other, "echo", "0.1.1", LARGE))
        missing = await ended(transport, "0.1.1")
        assert isinstance(missing, Failed)
        assert (missing.error.code, missing.error.retryable) == ("claim_missing", False)

        async def fails(*_: object) -> bytes:
            raise BlobsUnavailable

        monkeypatch.setattr(store.blobs, "get", fails)
        monkeypatch.setattr(store.blobs, "put", fails)
        transport.give(await claimed(other, "echo", "0.1.2", LARGE), job("echo", "0.1.3", LARGE))
        for lease in ("0.1.2", "0.1.3"):
            failed = await ended(transport, lease)
            assert isinstance(failed, Failed)
            assert (failed.error.code, failed.error.retryable) == ("blobs_unavailable", True)
    async with running(echo) as (transport, _):
        transport.give(await claimed(other, "echo", "0.1.1", LARGE))
        off = await ended(transport, "0.1.1")
        assert isinstance(off, Failed)
        assert (off.error.code, off.error.retryable) == ("claims_off", True)


async def test_a_job_is_cancelled_while_its_payload_is_on_its_way(
    store: ClaimStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def hangs(*_: object) -> bytes:
        asked.set()
        await asyncio.sleep(3_600)
        return b""

    async with running(echo, concurrency=1, bodies=StoredBodies(store)) as (transport, worker):
        given = await claimed(store, "echo", "0.1.1", LARGE)
        with monkeypatch.context() as patched:
            patched.setattr(store.blobs, "get", hangs)
            [lease] = transport.give(given)
            await asked.wait()
            transport.cancel(lease)
            await until(lambda: "0.1.1" in transport.outcomes)
        assert type(transport.outcomes["0.1.1"]).__name__ == "Returned"
        # The only slot is free again.
        transport.give(job("echo", "0.1.2", 5))
        assert await transport.succeeded("0.1.2") == 5
        assert not worker.busy


async def test_over_http_the_server_has_them() -> None:
    server = over_http.Server()

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/v1/jobs/one/payload":
            return httpx.Response(200, content=b'"' + LARGE.encode() + b'"')
        if request.url.path.endswith("/payload"):
            return httpx.Response(404, json={"code": "claim_missing"})
        return await own.handle_async_request(request)

    own = httpx.ASGITransport(app=server.app)
    claim = {"$claim": {"sha256": "0" * 64, "size_bytes": len(LARGE) + 2}}
    async with over_http.running(server, echo, http=httpx.MockTransport(answer)) as (_, transport):
        for name in ("one", "two"):
            server.put(name, "echo", payload=claim, max_attempts=3, fence="5", timeout_ms=None)
        await until(lambda: server.event("one") and server.event("two"))
        await until(lambda: not transport.held)
    one, two = server.event("one"), server.event("two")
    assert one is not None
    assert two is not None
    assert one["type"] == "Succeeded", one
    assert one["result"] == LARGE
    assert (two["type"], two["error"]["code"], two["error"]["retryable"]) == (
        "Failed",
        "claim_missing",
        False,
    )
