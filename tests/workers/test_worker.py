"""The runtime on a transport that the test drives: handlers, stopping, order, surplus, shutdown."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from penstock.schemas.events import Failed, Succeeded
from penstock.schemas.limits import MAX_RESULT_BYTES
from penstock.workers.context import Context
from penstock.workers.errors import AppInvalid, JobStopped, NonRetryable, RetryLater
from penstock.workers.runtime import Worker
from penstock.workers.task import task
from tests.waiting import until
from tests.workers.bench import job, roomy, running
from tests.workers.fakes import FakeTransport

TICK_S = 0.05


# Results


@task
async def double(n: int) -> int:
    return 2 * n


@task
def shout(text: str) -> dict[str, str]:
    return {"text": text.upper(), "thread": threading.current_thread().name}


@task
async def returns(what: str) -> Any:
    return {"nothing": None, "huge": "x" * MAX_RESULT_BYTES, "function": test_results, "nan": float("nan")}[
        what
    ]


async def test_results() -> None:
    async with running(double, shout, returns) as (transport, _):
        transport.give(job("double", "0.1.1", {"n": 21}), job("shout", "0.1.2", {"text": "hi"}))
        assert await transport.succeeded("0.1.1") == 42
        answer = await transport.succeeded("0.1.2")
        assert answer["text"] == "HI"
        assert answer["thread"].startswith("penstock-handler")
        transport.give(job("returns", "0.1.3", {"what": "nothing"}))
        assert await transport.succeeded("0.1.3") is None


@pytest.mark.parametrize(("what", "code"), [("huge", "result_too_large"), ("function", "invalid_result")])
async def test_b2_a_result_that_cannot_be_written_is_a_failure_for_good(what: str, code: str) -> None:
    async with running(returns) as (transport, _):
        transport.give(job("returns", payload={"what": what}))
        error = (await transport.failed("0.1.1")).error
        assert (error.code, error.retryable) == (code, False)


async def test_a_wrong_payload_fails_the_job_for_good_and_names_the_field() -> None:
    async with running(double) as (transport, _):
        transport.give(job("double", payload={"n": "many"}))
        error = (await transport.failed("0.1.1")).error
        assert (error.code, error.retryable) == ("invalid_payload", False)
        assert error.message.startswith("n: ")
        assert b'"field":"n"' in bytes(error.details)


# Failures


@task
async def fails(how: str) -> None:
    match how:
        case "plain":
            raise KeyError("missing")
        case "fatal":
            raise NonRetryable("never", code="no_such_user", details={"user": 7})
        case "later":
            raise RetryLater(1_500, "busy")
        case "surrogate":
            raise ValueError("bad \ud800 text")
        case "exit":
            raise SystemExit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "cancelled":
            raise asyncio.CancelledError
        case _:
            raise ValueError("x" * 10_000)


async def failure(how: str) -> Failed:
    async with running(fails) as (transport, worker):
        transport.give(job("fails", payload={"how": how}))
        event = await transport.failed("0.1.1")
        transport.give(job("fails", "0.1.2", payload={"how": "plain"}))
        assert (await transport.failed("0.1.2")).error.code == "KeyError", "the worker goes on"
        assert not worker.failure.done()
        return event


async def test_an_exception_is_a_failure_with_its_class_and_where_it_was_raised() -> None:
    error = (await failure("plain")).error
    assert (error.code, error.message, error.retryable) == ("KeyError", "'missing'", True)
    assert b"test_worker.py" in bytes(error.details)
    assert b"executor.py" not in bytes(error.details)


async def test_a_handler_says_that_no_retry_helps() -> None:
    error = (await failure("fatal")).error
    assert (error.code, error.message, error.retryable) == ("no_such_user", "never", False)
    assert b'{"user":7}' in bytes(error.details)


async def test_a_handler_says_when_to_try_again() -> None:
    event = await failure("later")
    assert (event.retry_after_ms, event.error.code, event.error.retryable) == (1_500, "RetryLater", True)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("surrogate", "ValueError"),
        ("exit", "SystemExit"),
        ("interrupt", "KeyboardInterrupt"),
        ("cancelled", "CancelledError"),
        ("long", "ValueError"),
    ],
)
async def test_whatever_is_raised_becomes_a_line_that_can_be_written(how: str, code: str) -> None:
    assert (await failure(how)).error.code == code


# Stopping


@task
async def sleeps(ctx: Context) -> str:
    try:
        await asyncio.sleep(3_600)
    except asyncio.CancelledError:
        STOPPED.append(str(ctx.stop_reason))
        raise
    return "slept"


@task
def waits(ctx: Context) -> str:
    try:
        ctx.sleep(3_600)
    except JobStopped:
        STOPPED.append(str(ctx.stop_reason))
        raise
    return "waited"


STOPPED: list[str] = []
DEAF = threading.Event()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    STOPPED.clear()
    DEAF.clear()


@task
def deaf() -> str:
    DEAF.wait(60)
    return "late"


both = pytest.mark.parametrize("name", ["sleeps", "waits"])


@both
async def test_b6_a_handler_that_runs_too_long_is_stopped_and_fails_with_timeout(name: str) -> None:
    async with running(sleeps, waits) as (transport, _):
        transport.give(job(name, timeout_ms=30))
        event = await transport.failed("0.1.1")
        assert (event.error.code, event.error.retryable) == ("timeout", True)
        assert event.run_ms >= 30
    assert STOPPED == ["timeout"]


async def test_d5_the_timeout_counts_from_the_start_of_the_handler() -> None:
    release = asyncio.Event()

    @task
    async def first() -> None:
        await release.wait()

    async with running(first, double, concurrency=1) as (transport, worker):
        transport.give(job("first"))
        roomy(worker, *worker.profile.types)
        transport.give(job("double", "0.1.2", {"n": 1}, timeout_ms=40))
        await asyncio.sleep(0.1)
        release.set()
        assert await transport.succeeded("0.1.2") == 2


@both
async def test_a_cancelled_job_stops_and_is_given_back(name: str) -> None:
    async with running(sleeps, waits) as (transport, worker):
        (lease,) = transport.give(job(name))
        await until(lambda: worker.busy)
        transport.cancel(lease, "not needed")
        transport.cancel(lease, "not needed")
        assert await transport.returned("0.1.1") == "cancelled"
    assert STOPPED == ["cancelled"]


async def test_success_wins_over_cancel() -> None:
    @task
    async def finishes() -> str:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            return "done in time"
        return ""

    async with running(finishes) as (transport, worker):
        (lease,) = transport.give(job("finishes"))
        await until(lambda: worker.busy)
        transport.cancel(lease)
        assert await transport.succeeded("0.1.1") == "done in time"


async def test_a_job_that_waits_is_cancelled_at_once() -> None:
    async with running(sleeps, double, concurrency=1) as (transport, worker):
        roomy(worker, *worker.profile.types)
        _, waiting = transport.give(job("sleeps"), job("double", "0.1.2", {"n": 1}))
        await until(lambda: worker.busy)
        transport.cancel(waiting)
        assert await transport.returned("0.1.2") == "cancelled"


@both
async def test_a_lost_lease_stops_its_handler_and_has_no_outcome(name: str) -> None:
    async with running(sleeps, waits, double) as (transport, worker):
        (lease,) = transport.give(job(name))
        await until(lambda: worker.busy)
        transport.lose(lease)
        await until(lambda: not worker.busy)
        assert transport.outcomes == {}
        transport.give(job("double", "0.1.2", {"n": 1}))
        assert await transport.succeeded("0.1.2") == 2
    assert STOPPED == ["lost"]


async def test_a_thread_that_cannot_be_stopped_keeps_its_slot_and_its_late_result_is_dropped() -> None:
    async with running(deaf, double, concurrency=2) as (transport, worker):
        (lease,) = transport.give(job("deaf"))
        await until(lambda: worker.busy)
        transport.lose(lease)
        await until(lambda: transport.capacities and transport.capacities[-1] == 1)
        assert worker.busy == 1
        transport.give(job("deaf"))
        assert await transport.returned("0.1.1") == "still_running", "not beside its own zombie"
        transport.give(job("double", "0.1.2", {"n": 1}))
        assert await transport.succeeded("0.1.2") == 2
        DEAF.set()
        await until(lambda: not worker.busy)
        await until(lambda: transport.capacities[-1] == 2)
        assert set(transport.outcomes) == {"0.1.1", "0.1.2"}


async def test_a_stuck_handler_costs_its_slot_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.workers.runtime.SHRUNK_MS", 0)
    async with running(deaf, double, concurrency=2) as (transport, worker):
        transport.give(job("deaf", timeout_ms=20))
        assert (await transport.failed("0.1.1")).error.code == "timeout"
        # Until what was leased under the larger capacity would be surplus.
        await until(lambda: worker._limit == 1)  # pyright: ignore[reportPrivateUsage]  # nothing tells of it
        assert (transport.capacities[-1], worker.busy) == (1, 1)
        for number in range(2, 5):
            transport.give(job("double", f"0.1.{number}", {"n": number}))
            assert await transport.succeeded(f"0.1.{number}") == 2 * number
        DEAF.set()
        await until(lambda: not worker.busy)


async def test_a_thread_that_runs_past_its_timeout_is_spoken_for() -> None:
    async with running(deaf) as (transport, worker):
        transport.give(job("deaf", timeout_ms=20))
        assert (await transport.failed("0.1.1")).error.code == "timeout"
        assert worker.busy == 1
        DEAF.set()
        await until(lambda: not worker.busy)
        assert len(transport.outcomes) == 1


async def test_a_coroutine_that_swallows_its_cancellation_is_spoken_for() -> None:
    release = asyncio.Event()

    @task
    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with running(stubborn, double) as (transport, worker):
        transport.give(job("stubborn", timeout_ms=20))
        assert (await transport.failed("0.1.1")).error.code == "timeout"
        release.set()
        await until(lambda: not worker.busy)
        transport.give(job("double", "0.1.2", {"n": 4}))
        assert await transport.succeeded("0.1.2") == 8


async def test_a_coroutine_that_swallows_every_cancellation_does_not_keep_its_worker_from_leaving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("penstock.workers.executor.LAST_WAIT_S", 0.05)
    release = asyncio.Event()

    @task
    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with asyncio.timeout(20):
        async with running(stubborn, grace_ms=0) as (transport, worker):
            transport.give(job("stubborn"))
            await until(lambda: worker.busy)
    assert await transport.returned("0.1.1") == "shutdown"
    release.set()


async def test_a_handler_s_own_timeouts_work_after_another_was_stopped() -> None:
    @task
    async def inner() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        except TimeoutError:
            return "timed out inside"
        return ""

    async with running(sleeps, inner, concurrency=1) as (transport, _):
        transport.give(job("sleeps", timeout_ms=10))
        await transport.failed("0.1.1")
        transport.give(job("inner", "0.1.2"))
        assert await transport.succeeded("0.1.2") == "timed out inside"


async def test_context_variables_do_not_leak_from_job_to_job() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="clean")

    @task
    async def stains() -> str:
        before = variable.get()
        variable.set("stained")
        return before

    async with running(stains, concurrency=1) as (transport, _):
        for number in range(3):
            transport.give(job("stains", f"0.1.{number}"))
            assert await transport.succeeded(f"0.1.{number}") == "clean"


# Leaving


async def test_b7_leaving_lets_running_handlers_finish_and_gives_back_the_rest() -> None:
    async def slow() -> str:
        await asyncio.sleep(0.05)
        return "finished"

    async with running(task(slow), concurrency=1, grace_ms=5_000) as (transport, worker):
        roomy(worker, *worker.profile.types)
        transport.give(job("slow"), job("slow", "0.1.2"))
        await until(lambda: worker.busy)
    assert isinstance(transport.outcomes["0.1.1"], Succeeded)
    assert await transport.returned("0.1.2") == "shutdown"
    assert transport.closed
    assert not transport.taking


@both
async def test_b7_a_handler_that_does_not_finish_in_time_is_stopped_and_given_back(name: str) -> None:
    async with running(sleeps, waits, grace_ms=20) as (transport, worker):
        transport.give(job(name))
        await until(lambda: worker.busy)
    assert await transport.returned("0.1.1") == "shutdown"
    assert STOPPED == ["shutdown"]


async def test_b7_what_comes_while_leaving_goes_back() -> None:
    async with running(sleeps, grace_ms=300) as (transport, worker):
        transport.give(job("sleeps"))
        await until(lambda: worker.busy)
        leaving = asyncio.create_task(worker._leave(200))  # pyright: ignore[reportPrivateUsage]  # in its middle
        await until(lambda: not transport.taking)
        transport.give(job("sleeps", "0.1.2"))
        assert await transport.returned("0.1.2") == "shutdown"
        await leaving


async def test_a_signal_to_drain_stops_taking_and_tells_whoever_runs_the_worker() -> None:
    async with running(double) as (transport, worker):
        worker.drain(stop=False)
        assert not worker.left.is_set()
        assert not transport.taking
        transport.give(job("double", payload={"n": 1}))
        assert await transport.returned("0.1.1") == "shutdown"
        worker.drain(stop=True)
        assert worker.left.is_set()


async def test_a_transport_that_fails_fails_the_worker() -> None:
    async with running(double) as (transport, worker):
        transport.failure.set_exception(RuntimeError("gone"))
        with pytest.raises(RuntimeError, match="gone"):
            await asyncio.wait_for(worker.failure, 5)


async def test_a_transport_that_does_not_start_leaves_nothing_behind() -> None:
    class Broken(FakeTransport):
        async def start(self, profile: Any, recipient: Any) -> None:
            raise RuntimeError("no log")

    transport = Broken()
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:
        with pytest.raises(RuntimeError, match="no log"):
            await stack.enter_async_context(Worker([double], transport))
    assert transport.closed
    assert asyncio.all_tasks() == before


async def test_a_worker_needs_tasks_and_room() -> None:
    transport = FakeTransport()
    with pytest.raises(AppInvalid):
        Worker([], transport)
    with pytest.raises(ValueError, match="concurrency"):
        Worker([double], transport, concurrency=0)


async def test_a_validator_that_breaks_fails_only_its_job() -> None:
    class Picky(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def _check(cls, n: int) -> int:
            raise LookupError("broken validator")

    async def pick(payload) -> None:  # type: ignore[no-untyped-def]  # the annotation is set below
        pass

    pick.__annotations__["payload"] = Picky
    async with running(task(pick), double, concurrency=1) as (transport, _):
        transport.give(job("pick", payload={"n": 1}))
        error = (await transport.failed("0.1.1")).error
        assert (error.code, error.retryable) == ("invalid_payload", False)
        transport.give(job("double", "0.1.2", {"n": 1}))
        assert await transport.succeeded("0.1.2") == 2


async def test_a_runner_lets_others_have_the_loop_however_short_its_jobs_are() -> None:
    turns = 0

    @task
    async def short() -> None:
        until_s = time.perf_counter() + 0.002
        while time.perf_counter() < until_s:
            pass

    async def ticker() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with running(short, concurrency=30) as (transport, _):
        ticking = asyncio.create_task(ticker())
        transport.give(*(job("short", f"0.1.{number}") for number in range(30)))
        before = turns
        await until(lambda: len(transport.outcomes) == 30)
        assert turns - before > 3
        ticking.cancel()
