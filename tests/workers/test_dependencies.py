"""What handlers are provided with, once per worker or for each job; middleware; lifespans."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest

from penstock.workers.app import App
from penstock.workers.around import Call
from penstock.workers.context import Context
from penstock.workers.dependencies import Depends, Scope
from penstock.workers.errors import AppInvalid, DependencyFailed, TaskInvalid
from penstock.workers.runtime import Worker
from penstock.workers.task import Task, task
from tests.waiting import until
from tests.workers.bench import job, running
from tests.workers.fakes import FakeTransport

seen: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


async def settings() -> str:
    seen.append("settings")
    return "dsn"


async def pool(dsn: Annotated[str, Depends(settings)]) -> AsyncIterator[str]:
    seen.append("open")
    yield f"pool of {dsn}"
    seen.append("close")


def session(db: Annotated[str, Depends(pool)], ctx: Context) -> Iterator[str]:
    seen.append(f"begin {ctx.job_id} {threading.current_thread() is threading.main_thread()}")
    try:
        yield f"session of {db}"
    except ValueError:
        seen.append("rollback")
        raise
    seen.append("commit")


Pool = Annotated[str, Depends(pool)]
Session = Annotated[str, Depends(session, scope="job")]


def needing(function: Any, provider: Any, scope: Scope) -> Task[..., Any]:
    """A task whose parameter ``one`` is provided. (Names of a test's own are in no annotation that can be read.)"""
    function.__annotations__["one"] = Annotated[Any, Depends(provider, scope)]
    return task(function)


@task
async def reads(n: int, db: Pool) -> list[Any]:
    return [n, db]


@task
def writes(n: int, db: Pool, to: Session) -> list[Any]:
    if n < 0:
        raise ValueError("n is negative")
    return [n, db, to]


async def test_once_per_worker_and_for_each_job() -> None:
    async with running(reads, writes) as (transport, _):
        assert seen == ["settings", "open"]
        transport.give(job("reads", "0.1.1", {"n": 1}))
        assert await transport.succeeded("0.1.1") == [1, "pool of dsn"]
        transport.give(job("writes", "0.1.2", {"n": 2}))
        assert await transport.succeeded("0.1.2") == [2, "pool of dsn", "session of pool of dsn"]
        transport.give(job("writes", "0.1.3", {"n": -1}))
        error = (await transport.failed("0.1.3")).error
        assert error.code == "ValueError"
        assert b"penstock/workers" not in bytes(error.details)
    assert seen == [
        "settings", "open", "begin job-0.1.2 False", "commit", "begin job-0.1.3 False", "rollback", "close"
    ]  # fmt: skip


async def test_it_is_no_part_of_the_payload_and_can_be_given_by_hand() -> None:
    assert await reads(1, db="mine") == [1, "mine"]
    assert reads.payload_of(1) == {"n": 1}
    async with running(reads) as (transport, _):
        transport.give(job("reads", payload={"n": 1, "db": "theirs"}))
        assert (await transport.failed("0.1.1")).error.code == "invalid_payload"


async def test_stand_ins() -> None:
    async with running(reads, overrides={pool: lambda: "fake"}) as (transport, _):
        transport.give(job("reads", payload={"n": 1}))
        assert await transport.succeeded("0.1.1") == [1, "fake"]
    assert not seen


async def test_what_cannot_be_opened_ends_the_worker_before_it_takes_a_job() -> None:
    async def broken(db: Pool) -> str:
        raise ConnectionError("no such host")

    async def needs(one: Any) -> None: ...

    transport = FakeTransport()
    with pytest.raises(DependencyFailed, match="broken cannot be opened: ConnectionError: no such host"):
        async with Worker([needing(needs, broken, "worker")], transport):
            pass
    assert transport.recipient is None
    assert transport.closed
    assert seen == ["settings", "open", "close"]


async def test_what_cannot_be_closed_keeps_nobody_from_leaving(caplog: pytest.LogCaptureFixture) -> None:
    async def sticky(db: Pool) -> AsyncIterator[str]:
        yield db
        raise ConnectionError("it is gone already")

    async def needs(one: Any) -> str:
        return str(one)

    async with running(needing(needs, sticky, "worker")) as (transport, _):
        transport.give(job("needs"))
        assert await transport.succeeded("0.1.1") == "pool of dsn"
    assert transport.closed
    assert seen == ["settings", "open", "close"]
    assert "a dependency cannot be closed" in caplog.text


async def test_one_for_a_job_that_cannot_be_opened_fails_the_attempt() -> None:
    def broken() -> str:
        raise ConnectionError("gone")

    async def needs(one: Any) -> None: ...

    async with running(needing(needs, broken, "job")) as (transport, _):
        transport.give(job("needs"))
        error = (await transport.failed("0.1.1")).error
        assert (error.code, error.message, error.retryable) == ("ConnectionError", "gone", True)


async def test_one_that_swallows_an_exception_hides_nothing() -> None:
    async def swallows() -> AsyncIterator[int]:
        try:
            yield 1
        except ValueError:
            seen.append("swallowed")

    async def fails(one: Any) -> None:
        raise ValueError("it failed")

    async with running(needing(fails, swallows, "job")) as (transport, _):
        transport.give(job("fails"))
        assert (await transport.failed("0.1.1")).error.message == "it failed"
        assert seen == ["swallowed"]


async def test_a_timeout_puts_away_what_was_opened() -> None:
    async def opened() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            seen.append("closed")

    async def hangs(one: Any) -> None:
        await asyncio.Event().wait()

    async with running(needing(hangs, opened, "job")) as (transport, _):
        transport.give(job("hangs", timeout_ms=50))
        assert (await transport.failed("0.1.1")).error.code == "timeout"
        assert seen == ["closed"]


async def test_a_def_handlers_dependency_that_hangs_is_cancelled() -> None:
    async def hangs() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    def needs(one: Any) -> None: ...

    async with running(needing(needs, hangs, "job")) as (transport, worker):
        (lease,) = transport.give(job("needs"))
        await until(lambda: worker.busy == 1)
        transport.cancel(lease)
        assert await transport.returned("0.1.1") == "cancelled"


def _a(b: Annotated[int, Depends(lambda: 1)], ctx: Context) -> int:
    return b


def _needs_job(one: Annotated[int, Depends(_a, scope="job")]) -> int:
    return one


def _circle(again: Annotated[int, Depends(lambda: 0)]) -> int:
    return again


_circle.__annotations__["again"] = Annotated[int, Depends(_circle)]


def _unfilled(number: int) -> int:
    return number


@pytest.mark.parametrize(
    ("provider", "text"),
    [
        (_a, "opened once per worker, where there is no job's context"),
        (_needs_job, "cannot depend on a job's 'one'"),
        (_circle, "go in a circle: _circle -> _circle"),
        (_unfilled, "its parameter 'number' is no dependency"),
    ],
)
async def test_what_cannot_be_filled_is_refused_when_the_worker_is_made(provider: Any, text: str) -> None:
    async def needs(one: Any) -> None: ...

    with pytest.raises(TaskInvalid, match=text):
        Worker([needing(needs, provider, "worker")], FakeTransport())


# Middleware


async def test_middleware_sees_the_job_its_result_and_its_failure() -> None:
    inner, outer = App(), App()

    @inner.task
    async def inside(n: int) -> int:
        if n < 0:
            raise ValueError("n is negative")
        return n

    @outer.task
    def outside(n: int) -> int:
        return n

    outer.include(inner)

    @outer.middleware
    async def outermost(ctx: Context, call: Call) -> Any:
        seen.append(f"outer {ctx.job_type}")
        try:
            return [await call()]
        except ValueError as error:
            raise LookupError("another") from error

    @inner.middleware
    async def innermost(ctx: Context, call: Call) -> Any:
        seen.append(f"inner {ctx.job_type}")
        return await call()

    transport = FakeTransport()
    async with Worker(outer, transport):
        transport.give(job("inside", "0.1.1", {"n": 1}))
        assert await transport.succeeded("0.1.1") == [1]
        transport.give(job("inside", "0.1.2", {"n": -1}))
        assert (await transport.failed("0.1.2")).error.code == "LookupError"
        transport.give(job("outside", "0.1.3", {"n": 3}))
        assert await transport.succeeded("0.1.3") == [3]
    assert seen == ["outer inside", "inner inside", "outer inside", "inner inside", "outer outside"]


async def test_middleware_that_answers_by_itself_and_one_that_fails() -> None:
    app = App()

    @app.task
    async def never(how: str) -> None:
        raise AssertionError("it was called")

    @app.middleware
    async def answers(ctx: Context, call: Call) -> str:
        if ctx.attempt > 1:
            raise RuntimeError("broken")
        return "cached"

    transport = FakeTransport()
    async with Worker(app, transport):
        transport.give(job("never", "0.1.1", {"how": ""}))
        assert await transport.succeeded("0.1.1") == "cached"
        transport.give(job("never", "0.1.2", {"how": ""}, attempt=2))
        assert (await transport.failed("0.1.2")).error.message == "broken"


def test_middleware_is_a_coroutine_function() -> None:
    with pytest.raises(AppInvalid, match="async def"):
        App().middleware(lambda ctx, call: call())  # pyright: ignore[reportUnknownLambdaType]  # wrong on purpose


async def test_a_task_that_a_module_has_beside_its_app_keeps_the_apps_middleware() -> None:
    app = App()
    handler = app.task(reads.function)

    @app.middleware
    async def around(ctx: Context, call: Call) -> Any:
        return await call()

    for together in (App(handler, app), App(app, handler), App(App(app), app)):
        assert together.middleware_of("reads") == (around,)
    assert not App(handler).middleware_of("reads")


async def test_lifespans_of_all_apps_are_entered_once() -> None:
    inner, outer = App(reads), App()

    @inner.lifespan
    async def first(dsn: Annotated[str, Depends(settings)]) -> AsyncIterator[None]:
        seen.append(f"first {dsn}")
        yield
        seen.append("first ends")

    @outer.lifespan
    def second() -> Iterator[None]:
        seen.append("second")
        yield
        seen.append("second ends")

    outer.include(inner, inner)
    async with Worker(outer, FakeTransport()):
        assert seen == ["second", "settings", "first dsn", "open"]
    assert seen[4:] == ["close", "first ends", "second ends"]
