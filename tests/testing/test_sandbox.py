"""The test kit, used as its users do: jobs of code under test, run, failed, crashed, and time that passes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from penstock import (
    App,
    AsyncClient,
    Cancel,
    Client,
    Context,
    Depends,
    NonRetryable,
    PartError,
    Partial,
    Retry,
    Snooze,
    task,
)
from penstock.schemas.errors import Conflict, InvalidField, JobNotFound, UniqueConflict
from penstock.testing import ANYTHING, HandlerFailed, Sandbox
from tests.waiting import PATIENCE_S

sent: list[str] = []
threads: set[str] = set()


@dataclass
class Mail:
    to: str
    subject: str = "hello"


@task(queue="mail", max_attempts=3, backoff={"kind": "fixed", "base_ms": 60_000, "jitter": 0})
async def send_mail(mail: Mail) -> str:
    sent.append(mail.to)
    return f"sent to {mail.to}"


@task
def in_a_thread(number: int, ctx: Context) -> int:
    threads.add(threading.current_thread().name)
    ctx.progress(50, "half", checkpoint={"done": number})
    return number + 1


@task
async def explode() -> None:
    raise NonRetryable("boom")


@task
async def stubborn(ctx: Context) -> str:
    if ctx.attempt < 3:
        raise RuntimeError(f"attempt {ctx.attempt}")
    return "at last"


@task
async def outcome(kind: str) -> object:
    match kind:
        case "retry":
            return Retry(1_000, "later")
        case "snooze":
            return Snooze(5_000)
        case "cancel":
            return Cancel("not wanted")
        case _:
            return Partial("half", [PartError("row", "3")])


@task
async def fan_out(count: int) -> None:
    async with AsyncClient() as client:
        for number in range(count):
            await client.enqueue("send_mail", {"to": f"user-{number}"}, queue="mail")


@task
async def again() -> None:
    async with AsyncClient() as client:
        await client.enqueue("again")


@task
async def cancels_itself(ctx: Context) -> None:
    async with AsyncClient() as client:
        await client.cancel(ctx.job_id)
    await asyncio.sleep(30)


app = App(send_mail, in_a_thread, explode, stubborn, outcome, fan_out, again, cancels_itself)


def sign_up(name: str) -> None:
    """The code under test."""
    send_mail.enqueue_sync(Mail(name), priority="high")


@pytest.fixture(autouse=True)
def nothing_sent() -> None:
    sent.clear()


def test_what_the_code_under_test_puts_in_is_seen_and_run() -> None:
    with Sandbox(app) as sandbox:
        sign_up("ada")
        [job] = sandbox.assert_enqueued("send_mail", {"to": "ada"}, queue="mail", priority="high")
        assert sent == []
        assert sandbox.drain() == 1
        assert sent == ["ada"]
        found = sandbox.job(job["id"])
        assert (found["state"], found["result"], found["attempt"]) == ("succeeded", "sent to ada", 1)
        assert [item["type"] for item in sandbox.history(job["id"])] == ["Enqueued", "Leased", "Succeeded"]
        sandbox.assert_enqueued("send_mail", Mail("ada"), count=1)
        sandbox.assert_enqueued("send_mail", ANYTHING, count=1)
        sandbox.assert_not_enqueued("send_mail", {"to": "grace"})


def test_what_is_missing_is_told_with_what_is_there() -> None:
    with Sandbox(app) as sandbox:
        sign_up("ada")
        with pytest.raises(AssertionError, match=r"expected a job send_mail .*grace(.|\n)*'to': 'ada'"):
            sandbox.assert_enqueued("send_mail", {"to": "grace"})
        with pytest.raises(AssertionError, match="found 1"):
            sandbox.assert_enqueued("send_mail", count=2)
        with pytest.raises(AssertionError, match="found 1"):
            sandbox.assert_not_enqueued("send_mail")
        with pytest.raises(AssertionError, match=r"priority='low'"):
            sandbox.assert_enqueued("send_mail", priority="low")


class Order(BaseModel):
    number: int
    customer: str
    lines: list[Any]


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        ({"customer": ANYTHING}, True),
        ({"customer": ANYTHING, "lines": [ANYTHING, {"sku": ANYTHING, "count": 2}]}, True),
        ({"lines": ANYTHING}, True),
        (Order(number=7, customer=ANYTHING, lines=[1, ANYTHING]), True),
        (Mail(ANYTHING, ANYTHING), False),
        ({"lines": [ANYTHING]}, False),
        ({"lines": [ANYTHING, {"sku": ANYTHING, "count": 3}]}, False),
        ({"customer": {"name": ANYTHING}}, False),
    ],
)
def test_anything_may_stand_at_any_depth(payload: Any, found: bool) -> None:
    with Sandbox() as sandbox:
        sandbox.client.enqueue(
            "order", {"number": 7, "customer": "ada", "lines": [1, {"sku": "x", "count": 2}]}
        )
        if found:
            sandbox.assert_enqueued("order", payload, count=1)
            return
        sandbox.assert_not_enqueued("order", payload)
        with pytest.raises(AssertionError, match=r"expected a job order with .*ANYTHING"):
            sandbox.assert_enqueued("order", payload)


def test_anything_is_no_different_from_anything() -> None:
    found: list[Any] = ["a", None, 1]
    assert found == [ANYTHING] * 3
    assert [one for one in found if one != ANYTHING] == []


def test_numbers_as_names_are_what_they_are_in_json() -> None:
    with Sandbox() as sandbox:
        sandbox.client.enqueue("count", {1: "a"})
        sandbox.assert_enqueued("count", {1: ANYTHING}, count=1)


def test_inline_runs_each_job_before_going_on() -> None:
    with Sandbox(app, inline=True):
        sign_up("ada")
        assert sent == ["ada"]
        sign_up("grace")
        assert sent == ["ada", "grace"]


def test_jobs_that_come_of_jobs_are_drained_too() -> None:
    with Sandbox(app) as sandbox:
        fan_out.enqueue_sync(3)
        assert sandbox.drain() == 4
        assert sent == ["user-0", "user-1", "user-2"]
    with Sandbox(app, inline=True):
        fan_out.enqueue_sync(2)
        assert sent[3:] == ["user-0", "user-1"]


def test_one_that_never_ends_is_an_error() -> None:
    with Sandbox(app) as sandbox:
        again.enqueue_sync()
        with pytest.raises(AssertionError, match="does one put itself in again"):
            sandbox.drain(most=20)


def test_threads_checkpoints_and_progress() -> None:
    with Sandbox(app) as sandbox:
        job = in_a_thread.enqueue_sync(7)
        sandbox.drain()
        found = sandbox.job(job["id"])
        assert (found["result"], found["checkpoint"]) == (8, {"done": 7})
        assert threading.current_thread().name not in threads


def test_time_stands_still_until_it_is_let_go() -> None:
    began = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
    with Sandbox(app, now=began) as sandbox:
        sandbox.client.enqueue("send_mail", {"to": "later"}, delay_ms=3_600_000)
        expires_at = began + timedelta(hours=1, minutes=30)
        sandbox.client.enqueue("send_mail", {"to": "never"}, delay_ms=7_200_000, expires_at=expires_at)
        assert sandbox.drain() == 0
        sandbox.advance(3_599)
        assert sandbox.drain() == 0
        sandbox.advance(1)
        assert sandbox.drain() == 1
        assert sent == ["later"]
        assert sandbox.now == began + timedelta(hours=1)
        sandbox.advance(7_200)
        assert sandbox.drain() == 0
        assert [job["state"] for job in sandbox.jobs()] == ["succeeded", "expired"]


def test_retries_wait_for_their_time() -> None:
    with Sandbox(app) as sandbox:
        job = stubborn.enqueue_sync()
        assert sandbox.drain() == 1
        assert sandbox.job(job["id"])["state"] == "retrying"
        before = sandbox.now
        assert sandbox.drain(skip_time=True) == 2
        found = sandbox.job(job["id"])
        assert (found["state"], found["attempt"], len(found["errors"])) == ("succeeded", 3, 2)
        assert sandbox.now > before


@pytest.mark.parametrize(
    ("kind", "state"),
    [("retry", "retrying"), ("snooze", "scheduled"), ("cancel", "cancelled"), ("partial", "partial")],
)
def test_every_outcome(kind: str, state: str) -> None:
    with Sandbox(app) as sandbox:
        job = outcome.enqueue_sync(kind)
        sandbox.drain()
        assert sandbox.job(job["id"])["state"] == state


def test_a_dead_job_has_its_dead_letter() -> None:
    with Sandbox(app) as sandbox:
        job = explode.enqueue_sync()
        sandbox.drain()
        assert sandbox.job(job["id"])["errors"][0]["message"] == "boom"
        assert sandbox.history(job["id"])[-1]["type"] == "DeadLettered"


def test_failures_can_be_made_to_raise() -> None:
    with Sandbox(app, raises="dead") as sandbox:
        explode.enqueue_sync()
        with pytest.raises(HandlerFailed, match=r"explode \w+ is dead: .*boom"):
            sandbox.drain()
        stubborn.enqueue_sync()
        assert sandbox.drain(skip_time=True) == 3
    with Sandbox(app, raises="always") as sandbox:
        stubborn.enqueue_sync()
        with pytest.raises(HandlerFailed, match=r"retrying: .*attempt 1"):
            sandbox.drain()


def test_failures_on_purpose() -> None:
    with Sandbox(app) as sandbox:
        sandbox.fail_next("send_mail", "smtp_down", "no route", times=2)
        sign_up("ada")
        assert sandbox.drain(skip_time=True) == 3
        [job] = sandbox.jobs("send_mail")
        assert [error["code"] for error in job["errors"]] == ["smtp_down", "smtp_down"]
        assert (job["state"], sent) == ("succeeded", ["ada"])
        sandbox.fail_next("send_mail", retryable=False)
        sign_up("grace")
        sandbox.drain()
        assert sandbox.jobs("send_mail", state="dead")[0]["errors"][0]["code"] == "failed_on_purpose"


def test_a_worker_that_is_lost_runs_the_handler_again() -> None:
    with Sandbox(app) as sandbox:
        sandbox.crash_next("send_mail")
        sign_up("ada")
        assert sandbox.drain() == 2
        assert sent == ["ada", "ada"]
        [job] = sandbox.jobs()
        assert (job["state"], job["attempt"]) == ("succeeded", 2)
        types = [item["type"] for item in sandbox.history(job["id"])]
        assert types == ["Enqueued", "Leased", "LeaseExpired", "Leased", "Succeeded"]


def test_a_handler_is_told_to_stop() -> None:
    with Sandbox(app) as sandbox:
        job = cancels_itself.enqueue_sync()
        sandbox.drain()
        assert sandbox.job(job["id"])["state"] == "cancelled"


def test_the_whole_api_is_there() -> None:
    with Sandbox(app) as sandbox:
        client = sandbox.client
        with pytest.raises(InvalidField):
            client.enqueue("send_mail", priority="now")  # type: ignore[arg-type]  # what is refused is wrong on purpose
        with pytest.raises(JobNotFound):
            client.get("unknown")
        job = client.enqueue("send_mail", unique={"key": "k"}, tags=["a"])
        with pytest.raises(UniqueConflict):
            client.enqueue("send_mail", unique={"key": "k"})
        assert [one["id"] for one in client.search(tags="a")] == [job["id"]]
        client.hold(job["id"])
        with pytest.raises(Conflict):
            client.hold(job["id"])
        assert sandbox.drain() == 0
        client.unhold(job["id"])
        assert client.enqueue_many([{"type": "a"}, {"type": "b"}]).accepted == 2
        assert client.counts()["total"] == 3
        assert client.enqueue("send_mail", idempotency_key="x")["id"] == client.enqueue(
            "send_mail", idempotency_key="x"
        )["id"]  # fmt: skip
        assert client.queues()["items"]


def test_jobs_of_other_types_wait() -> None:
    with Sandbox([send_mail]) as sandbox:
        in_a_thread.enqueue_sync(1)
        sign_up("ada")
        assert sandbox.drain() == 1
        assert [job["state"] for job in sandbox.jobs("in_a_thread")] == ["ready"]
        assert sandbox.drain(type="in_a_thread") == 0


async def test_in_a_coroutine_handlers_run_in_the_tests_own_loop() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    @task
    async def where() -> None:
        loops.append(asyncio.get_running_loop())

    with Sandbox([where, send_mail]) as sandbox:
        await where.enqueue()
        async with sandbox.async_client() as client:
            await client.enqueue("where")
        Client().enqueue("where")
        assert await sandbox.adrain() == 3
        assert loops == [asyncio.get_running_loop()] * 3
    with Sandbox([where], inline=True):
        await where.enqueue()
        assert len(loops) == 4


def test_outside_nobody_speaks_to_it() -> None:
    with Sandbox() as outer:
        with Sandbox() as inner:
            Client().enqueue("a")
            assert (len(inner.jobs()), len(outer.jobs())) == (1, 0)
        Client().enqueue("b")
        assert len(outer.jobs()) == 1
    from penstock.client.sending import stand_in

    assert stand_in() is None


pytest_plugins = ["pytester"]


def test_the_plugin(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        tasks="""
        from penstock import task

        @task
        def double(number: int) -> int:
            return 2 * number
        """,
        test_shop="""
        import pytest
        from tasks import double

        def test_drained(penstock_sandbox):
            job = double.enqueue_sync(4)
            penstock_sandbox.drain()
            assert penstock_sandbox.job(job["id"])["result"] == 8

        @pytest.mark.penstock([double], inline=True)
        def test_inline(penstock_sandbox):
            job = double.enqueue_sync(5)
            assert penstock_sandbox.job(job["id"])["result"] == 10
        """,
    )
    pytester.makeini("[pytest]\npenstock_app = tasks")
    outcome = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    outcome.assert_outcomes(passed=2)


def the_pool() -> str:
    raise ConnectionError("tests have no database")


@task(process=True)
def query(sql: str, ctx: Context, db: Annotated[str, Depends(the_pool)]) -> str:
    threads.add(threading.current_thread().name)
    return ctx.step("query", lambda: f"{sql} on {db}")


def test_dependencies_have_stand_ins_and_processes_are_threads() -> None:
    with Sandbox([query], overrides={the_pool: lambda: "a fake"}) as sandbox:
        job = query.enqueue_sync("select 1")
        sandbox.drain()
        assert sandbox.job(job["id"])["result"] == "select 1 on a fake"
    assert any(name.startswith("penstock-handler") for name in threads)


def test_a_program_that_used_it_ends_in_good_order(tmp_path: Path) -> None:
    # With this allocator whoever uses memory that is not there any more dies of it, every time.
    (tmp_path / "uses.py").write_text(
        "from penstock import App, task\n"
        "from penstock.testing import Sandbox\n"
        "@task\n"
        "def hello(name: str) -> str:\n"
        "    return name\n"
        "with Sandbox(App(hello)) as sandbox:\n"
        "    sandbox.client.enqueue('hello', {'name': 'a'})\n"
        "    print(sandbox.drain(), len(sandbox.jobs(state=['succeeded'])))\n"
    )
    done = subprocess.run(
        [sys.executable, "uses.py"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S,
        env={**os.environ, "PYTHONMALLOC": "debug"}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "1 1\n"), done.stderr[-2_000:]
