"""What handlers log, kept with their attempt."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

import httpx
import msgspec
import pytest

from penstock.log.blobs import open_blobs
from penstock.log.claims import ClaimStore
from penstock.schemas.errors import BlobsUnavailable
from penstock.schemas.limits import MAX_OUTPUT_BYTES
from penstock.workers.bodies import StoredBodies
from penstock.workers.command import command_task
from penstock.workers.context import Context
from penstock.workers.task import task
from tests.waiting import until
from tests.workers import test_http_transport as over_http
from tests.workers import test_processes as in_processes
from tests.workers.bench import job, running

_users = logging.getLogger("users.own")


@pytest.fixture
def store() -> ClaimStore:
    return ClaimStore(open_blobs(f"memory://{uuid.uuid4()}"))


async def lines(store: ClaimStore, lease: str, attempt: int = 1) -> list[dict[str, Any]]:
    stored = await store.output("default", f"job-{lease}", attempt)
    return [msgspec.json.decode(line) for line in stored.splitlines()]


async def messages(store: ClaimStore, lease: str, least: int = 1) -> list[str]:
    """As soon as there are so many."""
    found: list[str] = []
    async with asyncio.timeout(20):
        while len(found) < least:
            found = [line["message"] for line in await lines(store, lease)]
            await asyncio.sleep(0.02)
    return found


@task
async def says(text: str, ctx: Context) -> None:
    ctx.log.info("begins with %s", text, extra={"row": 4, "what": ["a"]})
    await asyncio.gather(asyncio.to_thread(_users.warning, "in a thread"), asyncio.sleep(0))
    _users.debug("not kept")
    logging.getLogger("penstock.workers").warning("not the handler's")
    try:
        raise ValueError(text)
    except ValueError:
        _users.exception("went wrong")


@task
def blocking(text: str) -> None:
    _users.info("blocking %s", text)


@task
async def silent() -> None: ...


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:  # pyright: ignore[reportUnusedFunction]  # used by all tests
    caplog.set_level(logging.INFO)


async def test_whatever_a_handler_logs_is_its_attempts(store: ClaimStore) -> None:
    async with running(says, blocking, silent, bodies=StoredBodies(store)) as (transport, _):
        transport.give(
            job("says", "0.1.1", {"text": "one"}),
            job("blocking", "0.1.2", {"text": "two"}),
            job("silent", "0.1.3"),
        )
        for lease in ("0.1.1", "0.1.2", "0.1.3"):
            await transport.succeeded(lease)
        logging.getLogger("users.own").warning("of no handler")
        assert await messages(store, "0.1.2") == ["blocking two"]
    first, second, third = await lines(store, "0.1.1")
    assert (first["level"], first["logger"], first["message"]) == ("info", "penstock.job", "begins with one")
    assert first["fields"] == {"row": 4, "what": "['a']"}
    assert (second["level"], second["logger"], second["message"]) == ("warning", "users.own", "in a thread")
    assert third["message"].startswith("went wrong\nTraceback")
    assert third["message"].endswith("ValueError: one")
    assert await lines(store, "0.1.3") == []


async def test_it_can_be_read_while_the_handler_runs(store: ClaimStore) -> None:
    go_on = asyncio.Event()

    @task
    async def waits(ctx: Context) -> None:
        ctx.log.info("before")
        await go_on.wait()
        ctx.log.info("after")

    async with running(waits, bodies=StoredBodies(store)) as (transport, worker):
        transport.give(job("waits", "0.1.1"))
        assert await messages(store, "0.1.1") == ["before"]
        assert worker.busy
        go_on.set()
        assert await messages(store, "0.1.1", 2) == ["before", "after"]


async def test_of_processes_and_programs_too(store: ClaimStore) -> None:
    async with in_processes.working(bodies=StoredBodies(store)) as (transport, _):
        transport.give(job("whoami", "0.1.1", {"text": "a"}))
        await transport.succeeded("0.1.1")
    assert [line["message"] for line in await lines(store, "0.1.1")] == ["logged by a handler"]
    program = command_task("program", ["/bin/sh", "-c", "echo one >&2; echo two >&2; echo 3"])
    async with running(program, bodies=StoredBodies(store)) as (transport, _):
        transport.give(job("program", "0.1.2"))
        await transport.succeeded("0.1.2")
    assert [line["message"] for line in await lines(store, "0.1.2")] == ["one", "two"]


async def test_there_is_a_limit_and_what_is_beyond_is_counted(store: ClaimStore) -> None:
    @task
    async def talks() -> None:
        for _ in range(MAX_OUTPUT_BYTES // 5_000):
            _users.info("x" * 6_000)

    async with running(talks, bodies=StoredBodies(store)) as (transport, _):
        transport.give(job("talks", "0.1.1"))
        await transport.succeeded("0.1.1")
    found = await lines(store, "0.1.1")
    lacking = MAX_OUTPUT_BYTES // 5_000 - (len(found) - 1)
    assert 0 < lacking < len(found)
    assert found[-1]["message"].startswith(f"{lacking} more records")


async def test_a_store_that_does_not_answer_is_tried_again(
    store: ClaimStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def fails(key: str, _: bytes) -> None:
        asked.append(key)
        raise BlobsUnavailable

    async with running(blocking, bodies=StoredBodies(store)) as (transport, _):
        with monkeypatch.context() as patched:
            patched.setattr(store.blobs, "put", fails)
            transport.give(job("blocking", "0.1.1", {"text": "one"}))
            # Its outcome does not wait for that.
            await transport.succeeded("0.1.1")
            await until(lambda: bool(asked))
        assert await messages(store, "0.1.1") == ["blocking one"]


async def test_two_holders_of_one_attempt_stand_one_after_the_other(store: ClaimStore) -> None:
    async with running(blocking, bodies=StoredBodies(store)) as (transport, _):
        for lease, fence, text in (("0.1.1", "9", "a"), ("0.1.2", "10", "b")):
            transport.give(job("blocking", lease, {"text": text}, job="mine", fence=fence))
            await transport.succeeded(lease)
    stored = await store.output("default", "mine", 1)
    assert [msgspec.json.decode(line)["message"] for line in stored.splitlines()] == [
        "blocking a",
        "blocking b",
    ]


async def test_nothing_is_kept_below_the_level_or_without_a_place(store: ClaimStore) -> None:
    async with running(blocking, bodies=StoredBodies(store), output_level=logging.WARNING) as (transport, _):
        transport.give(job("blocking", "0.1.1", {"text": "one"}))
        await transport.succeeded("0.1.1")
    async with running(blocking) as (transport, _):
        transport.give(job("blocking", "0.1.2", {"text": "one"}))
        await transport.succeeded("0.1.2")
    assert await store.blobs.list() == []


@pytest.mark.parametrize("status", [200, 404, 503])
async def test_over_http_the_server_keeps_it_or_says_that_nobody_does(status: int) -> None:
    server = over_http.Server()
    told: list[dict[str, Any]] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/v1/worker/log":
            told.append(msgspec.json.decode(request.content))
            return httpx.Response(status, json={"code": "claims_off"})
        return await own.handle_async_request(request)

    own = httpx.ASGITransport(app=server.app)
    async with over_http.running(server, blocking, http=httpx.MockTransport(answer)):
        for name in ("one", "two"):
            server.put(name, "blocking", payload={"text": name}, max_attempts=3, fence="5", timeout_ms=None)
            await until(lambda name=name: server.event(name))
            await until(lambda: bool(told))
    assert len(told) == (2 if status == 200 else 1)
    assert (told[0]["job"], told[0]["lease"], told[0]["fence"], told[0]["number"]) == (
        "one",
        "lease-one",
        "5",
        0,
    )
    assert told[0]["items"][0]["message"] == "blocking one"
