"""Parts of a handler that are done once, however many attempts it takes."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from penstock.schemas.limits import MAX_CHECKPOINT_BYTES
from penstock.workers.context import Context
from penstock.workers.steps import Saved
from penstock.workers.task import task
from tests.waiting import until
from tests.workers.bench import job, running
from tests.workers.fakes import FakeTransport

calls: list[str] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


async def _fetch(page: int) -> dict[str, Any]:
    calls.append(f"fetch {page}")
    return {"page": page, "rows": (1, 2)}


def _store(rows: int) -> int:
    calls.append(f"store {rows}")
    if rows < 0:
        raise ValueError("there are no rows")
    return rows


def _checkpoints(transport: FakeTransport) -> list[Any]:
    return [msgspec.json.decode(event.checkpoint) for event in transport.told if event.checkpoint is not None]


@task
async def imports(ctx: Context, rows: int) -> Any:
    fetched = await ctx.step("fetch", _fetch, 7)
    stored = await ctx.step("store", _store, rows)
    return [fetched, stored, ctx.checkpoint]


@task
def imports_in_thread(ctx: Context, rows: int) -> Any:
    return [
        ctx.step("fetch", lambda: {"page": 7, "rows": (1, 2)}),
        ctx.step("store", _store, rows),
        ctx.checkpoint,
    ]


@pytest.mark.parametrize("handler", [imports, imports_in_thread])
async def test_what_was_done_is_not_done_again(handler: Any) -> None:
    async with running(handler) as (transport, _):
        transport.give(job(handler.name, payload={"rows": -1}))
        assert (await transport.failed("0.1.1")).error.message == "there are no rows"
        saved = _checkpoints(transport)[-1]
        assert saved == {"penstock.steps": {"fetch": {"page": 7, "rows": [1, 2]}}}
        assert transport.told[-1].message == "step fetch"
        calls.clear()
        transport.give(job(handler.name, "0.1.2", {"rows": 2}, attempt=2, checkpoint=saved))
        assert await transport.succeeded("0.1.2") == [{"page": 7, "rows": [1, 2]}, 2, None]
        assert calls == ["store 2"]


async def test_steps_and_a_checkpoint_of_ones_own_stand_side_by_side() -> None:
    @task
    async def both(ctx: Context) -> Any:
        before = ctx.checkpoint
        await ctx.step("a", _store, 1)
        await ctx.save({"row": 5})
        await ctx.step("b", _store, 2)
        return [before, ctx.checkpoint]

    async with running(both) as (transport, _):
        transport.give(job("both", checkpoint={"row": 4}))
        assert await transport.succeeded("0.1.1") == [{"row": 4}, {"row": 5}]
        assert _checkpoints(transport) == [
            {"penstock.steps": {"a": 1}, "checkpoint": {"row": 4}},
            {"penstock.steps": {"a": 1}, "checkpoint": {"row": 5}},
            {"penstock.steps": {"a": 1, "b": 2}, "checkpoint": {"row": 5}},
        ]


async def test_side_by_side() -> None:
    @task
    async def many(ctx: Context) -> Any:
        return await asyncio.gather(*(ctx.step(f"page-{n}", _fetch, n) for n in range(5)))

    async with running(many) as (transport, _):
        transport.give(job("many"))
        assert [page["page"] for page in await transport.succeeded("0.1.1")] == [0, 1, 2, 3, 4]
        last = _checkpoints(transport)[-1]["penstock.steps"]
        assert set(last) == {f"page-{n}" for n in range(5)}, "the last that was told has them all"


async def test_a_result_is_a_copy() -> None:
    @task
    async def changes(ctx: Context) -> Any:
        got = await ctx.step("a", lambda: {"n": 1})
        got["n"] = 2
        await ctx.save("later")
        return _checkpoints(transport)[-1]

    async with running(changes) as (transport, _):
        transport.give(job("changes"))
        assert await transport.succeeded("0.1.1") == {
            "penstock.steps": {"a": {"n": 1}},
            "checkpoint": "later",
        }


@task
async def wrong(ctx: Context, how: str) -> Any:
    match how:
        case "twice":
            await ctx.step("a", _store, 1)
            await ctx.step("a", _store, 1)
        case "nameless":
            await ctx.step("", _store, 1)
        case "large":
            await ctx.step("a", lambda: "x" * MAX_CHECKPOINT_BYTES)
        case _:
            await ctx.step("a", object)


@pytest.mark.parametrize(
    ("how", "code", "text"),
    [
        ("twice", "step_invalid", "two steps called 'a'"),
        ("nameless", "step_invalid", "1 to 256 characters"),
        ("large", "TooLarge", "room for 131072 bytes together"),
        ("no JSON", "InvalidField", "step 'a' cannot be said in JSON"),
    ],
)
async def test_what_is_wrong_is_said(how: str, code: str, text: str) -> None:
    async with running(wrong) as (transport, _):
        transport.give(job("wrong", payload={"how": how}))
        error = (await transport.failed("0.1.1")).error
        assert error.code == code
        assert text in error.message


async def test_a_coroutine_is_no_step_of_a_thread() -> None:
    @task
    def threaded(ctx: Context) -> None:
        ctx.step("a", _fetch, 1)

    async with running(threaded) as (transport, _):
        transport.give(job("threaded"))
        assert "make the handler async def" in (await transport.failed("0.1.1")).error.message


async def test_a_lost_lease_ends_the_handler_between_steps() -> None:
    async with running(imports) as (transport, worker):
        transport.hold_progress.clear()
        (lease,) = transport.give(job("imports", payload={"rows": 1}))
        await until(lambda: calls)
        transport.lose(lease)
        transport.hold_progress.set()
        await until(lambda: not worker.busy)
        assert calls == ["fetch 7"]
        assert not transport.outcomes


@pytest.mark.parametrize(
    "stored", [b"null", b"5", b'{"penstock.steps":3}', b'{"penstock.steps":{},"other":1}', b'{"a":1}']
)
def test_what_no_step_saved_is_the_handlers_own(stored: bytes) -> None:
    assert Saved(stored).checkpoint == msgspec.json.decode(stored)
    assert Saved(stored).with_checkpoint(1) == 1
