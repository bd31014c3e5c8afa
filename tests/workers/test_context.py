"""What a handler knows of its job, and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from penstock.schemas.errors import LeaseLost, TooLarge
from penstock.workers.context import Context
from penstock.workers.task import task
from tests.waiting import until
from tests.workers.bench import job, running
from tests.workers.fakes import FakeTransport


async def seen(handler: Callable[..., Any], **fields: Any) -> tuple[FakeTransport, Any]:
    made = task(name="it")(handler)
    async with running(made) as (transport, _):
        transport.give(job("it", **fields))
        return transport, await transport.succeeded("0.1.1")


async def test_what_a_handler_knows() -> None:
    async def look(ctx: Context) -> Any:
        return [
            ctx.job_id, ctx.job_type, ctx.queue, ctx.attempt, ctx.max_attempts, ctx.lease, ctx.fence, ctx.metadata,
            ctx.checkpoint, ctx.cancelled, ctx.tenant, ctx.priority, ctx.trace, ctx.deadline is None,
        ]  # fmt: skip

    _, answer = await seen(look, attempt=2, metadata={"a": 1}, checkpoint={"row": 5})
    assert answer == [
        "job-0.1.1", "it", "default", 2, 3, "0.1.1", "17", {"a": 1}, {"row": 5}, False, "default", "normal", "", True,
    ]  # fmt: skip


async def test_the_deadline_is_the_start_plus_the_timeout() -> None:
    async def look(ctx: Context) -> float:
        assert ctx.deadline is not None
        return (ctx.deadline - ctx.started_at).total_seconds()

    _, answer = await seen(look, timeout_ms=90_000)
    assert answer == 90


async def _saves(ctx: Context) -> Any:
    await ctx.progress(10, "begun", checkpoint={"row": 1})
    await ctx.save(None)
    return ctx.checkpoint


def _saves_in_thread(ctx: Context) -> Any:
    ctx.progress(10, "begun", checkpoint={"row": 1})
    ctx.save(None)
    return ctx.checkpoint


@pytest.mark.parametrize("handler", [_saves, _saves_in_thread])
async def test_d4_progress_with_a_checkpoint_is_written_before_the_handler_goes_on(handler: Any) -> None:
    transport, answer = await seen(handler)
    assert answer is None
    first, second = transport.told
    assert (first.id, first.seq, first.percent, first.message) == ("0.1.1.p1", 1, 10, "begun")
    assert bytes(first.checkpoint or b"") == b'{"row":1}'
    assert (second.seq, second.percent, bytes(second.checkpoint or b"")) == (2, None, b"null")


async def test_progress_without_a_checkpoint_is_told_now_and_then() -> None:
    async def counts(ctx: Context) -> None:
        for number in range(1_000):
            ctx.progress(number / 10)
        await until(lambda: len(transport.told) == 2)

    made = task(name="counts")(counts)
    async with running(made) as (transport, _):
        transport.give(job("counts"))
        await transport.succeeded("0.1.1")
    assert [event.percent for event in transport.told] == [0.0, 99.9]


async def test_progress_is_kept_within_its_bounds() -> None:
    async def odd(ctx: Context) -> None:
        await ctx.progress(150, "m" * 1_000, checkpoint=0)

    transport, _ = await seen(odd)
    assert (transport.told[0].percent, len(transport.told[0].message)) == (100, 500)


async def test_a_checkpoint_that_is_too_large_is_refused() -> None:
    async def large(ctx: Context) -> str:
        with pytest.raises(TooLarge):
            await ctx.save("x" * 200_000)
        return "refused"

    assert (await seen(large))[1] == "refused"


async def test_a_handler_that_saves_with_a_lost_lease_is_told_so() -> None:
    told: list[str] = []

    def saves(ctx: Context) -> None:
        while not ctx.cancelled:
            pass
        try:
            ctx.save(1)
        except LeaseLost:
            told.append("lost")
            raise

    made = task(name="saves")(saves)
    async with running(made) as (transport, worker):
        (lease,) = transport.give(job("saves"))
        await until(lambda: worker.busy)
        transport.lose(lease)
        await until(lambda: told)


async def test_a_save_that_waits_for_the_log_ends_when_the_lease_is_lost() -> None:
    told: list[str] = []

    def saves(ctx: Context) -> None:
        try:
            ctx.save(1)
        except LeaseLost:
            told.append("lost")

    made = task(name="saves")(saves)
    async with running(made) as (transport, worker):
        transport.hold_progress.clear()
        (lease,) = transport.give(job("saves"))
        await until(lambda: worker.busy)
        transport.lose(lease)
        await until(lambda: told)
        transport.hold_progress.set()


async def test_the_job_s_logger_carries_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    async def logs(ctx: Context) -> None:
        ctx.log.warning("row %d", 5, extra={"row": 5})

    await seen(logs)
    record = next(record for record in caplog.records if record.name == "penstock.job")
    assert record.getMessage() == "row 5"
    assert (record.__dict__["job"], record.__dict__["attempt"], record.__dict__["row"]) == ("job-0.1.1", 1, 5)
