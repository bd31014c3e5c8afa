"""In which order a worker runs what it holds, and what it has no room for."""

from __future__ import annotations

import asyncio
import time

from penstock.schemas.events import Returned
from penstock.workers.task import task
from tests.waiting import until
from tests.workers.bench import AtOnce, job, roomy, running


@task
async def double(n: int) -> int:
    return 2 * n


@task
async def sleeps() -> None:
    await asyncio.sleep(3_600)


async def test_the_most_urgent_runs_first_then_the_oldest() -> None:
    release = asyncio.Event()

    @task
    async def first() -> None:
        await release.wait()

    async with running(first, double, concurrency=1) as (transport, worker):
        roomy(worker, *worker.profile.types)
        transport.give(job("first", "gate"))
        await until(lambda: worker.busy)
        order = [("low", "low"), ("n1", "normal"), ("n2", "normal"), ("crit", "critical"), ("high", "high")]
        transport.give(*(job("double", name, {"n": 1}, priority=priority) for name, priority in order))
        release.set()
        await until(lambda: len(transport.order) == 6)
        assert transport.order == ["gate", "crit", "high", "n1", "n2", "low"]


async def test_c2_what_there_is_no_room_for_goes_back_the_least_urgent_and_newest_first() -> None:
    async with running(sleeps, concurrency=1) as (transport, worker):
        transport.give(job("sleeps", "running"))
        await until(lambda: worker.busy)
        roomy(worker, "sleeps")
        room = worker.capacity - 1
        transport.give(*(job("sleeps", f"low{number}", priority="low") for number in range(room)))
        assert transport.outcomes == {}
        transport.give(job("sleeps", "urgent", priority="critical"))
        assert await transport.returned(f"low{room - 1}") == "surplus"
        transport.give(job("sleeps", "newest", priority="low"))
        assert await transport.returned("newest") == "surplus"
        assert len(transport.outcomes) == 2


async def test_a_job_of_a_type_without_handler_goes_back() -> None:
    async with running(double) as (transport, _):
        transport.give(job("unknown"))
        assert await transport.returned("0.1.1") == "no_handler"


async def test_c2_capacity_grows_with_short_jobs_and_shrinks_when_they_get_stuck() -> None:
    async with running(double, sleeps, concurrency=2) as (transport, worker):
        for number in range(40):
            transport.give(job("double", f"0.1.{number}", {"n": number}))
            await transport.succeeded(f"0.1.{number}")
        many = [job("sleeps", f"1.1.{number}") for number in range(50)]
        assert worker.capacity > len(many)
        transport.give(*many)
        await until(lambda: len(transport.outcomes) == 40 + 48)
        assert {event.reason for event in transport.outcomes.values() if isinstance(event, Returned)} == {
            "surplus"
        }
        assert worker.busy == 2


async def test_concurrency_is_the_most_that_runs_at_once() -> None:
    at_once = AtOnce()

    @task
    async def counted() -> None:
        with at_once:
            await asyncio.sleep(0.001)

    async with running(counted, concurrency=3) as (transport, worker):
        roomy(worker, *worker.profile.types)
        transport.give(*(job("counted", f"0.1.{number}") for number in range(30)))
        await until(lambda: len(transport.outcomes) == 30)
    assert at_once.most == 3


async def test_every_slot_is_used_when_handlers_wait() -> None:
    async with running(sleeps, concurrency=30) as (transport, worker):
        transport.give(*(job("sleeps", f"0.1.{number}") for number in range(30)))
        await until(lambda: worker.busy == 30)
        assert transport.outcomes == {}


async def test_a_free_slot_takes_over_while_a_handler_waits() -> None:
    release = asyncio.Event()

    @task
    async def waits() -> None:
        await release.wait()

    async with running(waits, double, concurrency=2) as (transport, worker):
        roomy(worker, *worker.profile.types)
        transport.give(job("waits", "gate"), *(job("double", f"0.1.{n}", {"n": n}) for n in range(20)))
        await until(lambda: len(transport.outcomes) == 20)
        assert "gate" not in transport.outcomes
        release.set()
        await transport.succeeded("gate")


async def test_handlers_that_wait_for_nothing_are_run_one_after_the_other_by_the_same_runner() -> None:
    runners: set[object] = set()

    @task
    async def who() -> None:
        runners.add(asyncio.current_task())

    async with running(who, concurrency=20) as (transport, worker):
        roomy(worker, "who")
        transport.give(*(job("who", f"0.1.{number}") for number in range(500)))
        await until(lambda: len(transport.outcomes) == 500)
    assert len(runners) == 1


async def test_slots_are_found_again_after_the_time_of_a_round_was_used_up() -> None:
    """Handlers that keep the loop and then wait: who steps back for the others must not be forgotten."""
    at_once = AtOnce()

    @task
    async def heavy() -> None:
        with at_once:
            until_s = time.monotonic() + 0.006
            while time.monotonic() < until_s:
                pass
            await asyncio.sleep(0.05)

    async with running(heavy, concurrency=4) as (transport, worker):
        roomy(worker, "heavy")
        transport.give(*(job("heavy", f"0.1.{number}") for number in range(24)))
        await until(lambda: len(transport.outcomes) == 24)
    assert at_once.most == 4
