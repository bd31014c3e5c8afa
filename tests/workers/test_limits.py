"""How many of one type a worker runs at once, and what waits for that."""

from __future__ import annotations

import asyncio

import pytest

from penstock.workers.backlog import Backlog
from penstock.workers.errors import TaskInvalid
from penstock.workers.lease import HeldLease
from penstock.workers.task import task
from tests.waiting import until
from tests.workers.bench import job, running

go = asyncio.Event()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    global go  # noqa: PLW0603 - each test's loop needs one of its own
    go = asyncio.Event()


@task(concurrency=2)
async def slow(n: int) -> int:
    if n < 0:
        raise ValueError("n is negative")
    await go.wait()
    return n


@task
async def quick(n: int) -> int:
    return n


def slow_job(number: int, **fields: object) -> HeldLease:
    return HeldLease(job("slow", f"0.1.{number}", {"n": number}, **fields), 0.0)


async def test_others_go_past_those_that_wait_for_their_types_turn() -> None:
    async with running(slow, quick, concurrency=5) as (transport, worker):
        assert transport.profile.limits == {"slow": 2}
        transport.give(*(job("slow", f"0.1.{n}", {"n": n}) for n in range(4)))
        transport.give(job("quick", "0.2.1", {"n": 7}))
        assert await transport.succeeded("0.2.1") == 7
        assert worker.busy == 2
        assert len(worker.executor.backlog) == 2
        go.set()
        assert [await transport.succeeded(f"0.1.{n}") for n in range(4)] == [0, 1, 2, 3]


async def test_one_that_fails_or_does_not_fit_makes_room_as_well() -> None:
    async with running(slow, concurrency=10) as (transport, _):
        transport.give(
            *(job("slow", f"0.1.{n}", {"n": -1}) for n in range(3)),
            *(job("slow", f"0.2.{n}", {"n": "no number"}) for n in range(3)),
            *(job("slow", f"0.3.{n}", {"n": n}) for n in range(3)),
        )
        go.set()
        assert [await transport.succeeded(f"0.3.{n}") for n in range(3)] == [0, 1, 2]


async def test_those_that_wait_are_cancelled_and_given_back() -> None:
    async with running(slow, concurrency=4) as (transport, worker):
        leases = transport.give(*(job("slow", f"0.1.{n}", {"n": n}) for n in range(4)))
        await until(lambda: worker.busy == 2)
        transport.cancel(leases[2])
        assert await transport.returned("0.1.2") == "cancelled"
        worker.drain(stop=False)
        assert await transport.returned("0.1.3") == "drained"
        go.set()
        assert [await transport.succeeded(f"0.1.{n}") for n in range(2)] == [0, 1]


async def test_a_handler_that_does_not_stop_costs_a_slot_of_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.workers.runtime.SHRUNK_MS", 50)

    @task(concurrency=2)
    async def stubborn(n: int) -> int:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        return n

    async with running(stubborn, quick, concurrency=5) as (transport, _):
        transport.give(*(job("stubborn", f"0.1.{n}", {"n": n}, timeout_ms=20) for n in range(2)))
        for n in range(2):
            assert (await transport.failed(f"0.1.{n}")).error.code == "timeout"
        await until(lambda: transport.limits and transport.limits[-1] == {"stubborn": 0})
        # What was on its way is not left to wait for handlers that may never end.
        transport.give(job("stubborn", "0.1.2", {"n": 2}))
        assert await transport.returned("0.1.2") == "surplus"
        transport.give(job("quick", "0.2.1", {"n": 7}))
        assert await transport.succeeded("0.2.1") == 7
        go.set()
        await until(lambda: transport.limits[-1] == {"stubborn": 2})
        transport.give(job("stubborn", "0.1.3", {"n": 3}))
        assert await transport.succeeded("0.1.3") == 3


def test_the_most_urgent_that_is_parked_goes_first() -> None:
    backlog = Backlog({"slow": 1})
    first, low, high, other = (
        slow_job(1),
        slow_job(2, priority="low"),
        slow_job(3, priority="high"),
        HeldLease(job("quick"), 0.0),
    )
    backlog.put([first, low, high, other])
    assert (backlog.count, len(backlog)) == (2, 4)
    assert [backlog.take(), backlog.take(), backlog.take()] == [first, other, None]
    assert not backlog.ended("quick")
    assert backlog.ended("slow")
    assert backlog.take() is high
    assert backlog.take_last() is low
    assert not backlog.ended("slow")
    assert len(backlog) == 0


def test_what_is_taken_out_of_the_queue_lets_another_in() -> None:
    backlog = Backlog({"slow": 1})
    leases = [slow_job(number) for number in range(3)]
    backlog.put(leases)
    assert backlog.remove(leases[0])
    assert not backlog.remove(leases[0])
    assert backlog.remove(leases[2])
    assert (backlog.count, backlog.take()) == (1, leases[1])


async def test_a_limit_as_large_as_the_worker_is_none() -> None:
    async with running(slow, concurrency=2) as (transport, _):
        assert transport.profile.limits == {}


def test_at_least_one() -> None:
    with pytest.raises(TaskInvalid, match="concurrency is at least 1"):
        task(concurrency=0)(quick.function)
