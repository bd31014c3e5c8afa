"""The simulator's own ground: virtual time, loops that keep asyncio's order, processes that die without a word."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from penstock.client.idgen import new_id
from penstock.log.namespace import topic_specs
from penstock.schemas.errors import LogUnavailable
from tests.sim.clocks import Clock, virtual_clocks
from tests.sim.loop import ProcessLoop
from tests.sim.simlog import Senses, SimLog
from tests.sim.weather import Weather
from tests.sim.world import START_MS, Violation, World


@pytest.fixture
def world() -> Iterator[World]:
    world = World(1, Weather())
    with virtual_clocks(world):
        yield world


def process(world: World, work: Callable[[], Coroutine[Any, Any, Any]], **clock: Any) -> ProcessLoop:
    loop = ProcessLoop(world, "p", Clock(world, **clock))
    loop.call_soon(lambda: loop.create_task(work()))
    return loop


def test_an_hour_passes_in_no_time(world: World) -> None:
    seen: list[tuple[float, int]] = []

    async def work() -> None:
        await asyncio.sleep(3_600)
        seen.append((time.monotonic(), time.time_ns() // 1_000_000))

    process(world, work)
    world.run(4_000_000)
    [(mono_s, wall_ms)] = seen
    assert 3_600 <= mono_s < 3_600.01
    assert 3_600_000 <= wall_ms - START_MS < 3_600_010


def test_each_host_has_clocks_of_its_own(world: World) -> None:
    seen: list[tuple[float, float]] = []

    async def work() -> None:
        await asyncio.sleep(10)
        seen.append((time.monotonic() * 1_000 - 5_000, time.time() * 1_000 - START_MS))

    process(world, work, skew_ms=-7_000, rate=1.01, up_ms=5_000)
    world.run(20_000)
    [(mono_ms, wall_ms)] = seen
    assert 10_000 <= mono_ms < 10_010
    assert 3_000 <= wall_ms < 3_010


def test_callbacks_of_a_loop_keep_their_order(world: World) -> None:
    seen: list[int] = []

    async def work() -> None:
        for number in range(100):
            asyncio.get_running_loop().call_soon(seen.append, number)

    process(world, work)
    world.run(1_000)
    assert seen == list(range(100))


def test_the_dead_run_no_finally(world: World) -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            seen.append("finally")

    loop = process(world, work)
    world.run(1_000)
    loop.kill()
    world.run(20_000)
    assert seen == []


def test_what_sleeps_wakes_late_and_does_not_know(world: World) -> None:
    seen: list[int] = []

    async def work() -> None:
        await asyncio.sleep(1)
        seen.append(world.mono_ms)

    loop = process(world, work)
    world.run(500)
    loop.pause()
    world.after(9_500, loop.resume)
    world.run(20_000)
    assert seen[0] >= 10_000


def test_ids_of_a_process_follow_from_the_seed() -> None:
    def ids(seed: int) -> list[str]:
        found: list[str] = []
        world = World(seed, Weather())

        async def work() -> None:
            found.extend((new_id(), new_id()))

        with virtual_clocks(world):
            process(world, work)
            world.run(100)
        return found

    assert ids(3) == ids(3)
    assert ids(3) != ids(4)


def test_what_nobody_caught_is_a_finding(world: World) -> None:
    async def work() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)

    process(world, work)
    with pytest.raises(Violation, match="ZeroDivisionError"):
        world.run(1_000)


def test_an_append_on_its_way_lands_though_its_process_is_dead(world: World) -> None:
    world.topics.ensure(topic_specs(world.names))

    async def work() -> None:
        log = SimLog(world, loop, Senses())
        await log.append(world.names.jobs, 0, b"x")

    loop = process(world, work)
    loop.fuse = 2  # the task is made, has run up to its append, and is never heard of again
    world.run(1_000)
    assert loop.dead
    assert world.topics.bounds(world.names.jobs, 0).end == 1


def test_who_is_cut_off_is_told_that_the_log_does_not_answer(world: World) -> None:
    told: list[BaseException] = []
    senses = Senses()
    senses.cut_until_ms = 60_000

    async def work() -> None:
        log = SimLog(world, loop, senses)
        async with log.tail({(world.names.jobs, 0): 0}) as tail:
            try:
                while True:
                    await tail.poll(1_000)
            except LogUnavailable as error:
                told.append(error)

    loop = process(world, work)
    world.run(20_000)
    assert told
