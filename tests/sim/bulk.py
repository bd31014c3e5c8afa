"""Somebody who changes many jobs at once, over the API, while all of it is under fire."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from penstock.schemas.codec import split
from penstock.schemas.ids import operation_event
from tests.sim.host import Host
from tests.sim.network import Exchange, SimHttp
from tests.sim.referee import Referee
from tests.sim.simlog import SimLog
from tests.sim.world import World

ACTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("cancel", {}), ("retry", {}), ("requeue", {}), ("priority", {"priority": "high"}), ("delete", {})
)  # fmt: skip
ASK_WITHIN_S = 30.0


class Wish(Struct):
    """An operation that is wanted; ``operation`` is its id, once that is known."""

    key: str
    asked: dict[str, Any]
    operation: str = ""


class _Line(Struct):
    id: str = ""
    job: str = ""


_decode = msgspec.json.Decoder(_Line).decode


class BulkHost(Host):
    """Keeps on its disk what it wants, and asks for it under one key until it was told that it is on the log."""

    role = "bulk"

    def __init__(self, world: World, doors: list[Exchange], jobs: Callable[[], list[str]]) -> None:
        super().__init__(world, "bulk")
        self._doors, self._jobs = doors, jobs
        self.wishes: list[Wish] = []

    def plan(self) -> None:
        """Want something now and then."""
        for at_ms in self.world.moments(self.world.weather.operations_ms):
            self.world.after(at_ms, self._want)

    def _want(self) -> None:
        random = self.world.random
        action, args = random.choice(ACTIONS)
        asked: dict[str, Any] = {"action": action, "args": args, "dry_run": random.random() < 0.1}
        names = sorted(self._jobs())
        if random.random() < 0.5:
            asked["ids"] = [*random.sample(names, min(len(names), random.choice((6, 60)))), "never-was"]
        else:
            asked["filter"] = {"state": random.choice((["ready"], ["dead", "retrying"], ["succeeded"]))}
        self.wishes.append(Wish(f"wish-{self.world.next_number()}", asked))

    async def live(self, log: SimLog) -> None:
        transport = SimHttp(self.world, log.loop, self._doors, self.senses)
        async with httpx.AsyncClient(
            base_url="http://api", transport=transport, timeout=ASK_WITHIN_S
        ) as http:
            asking = asyncio.ensure_future(self._ask_on(http))
            try:
                await self.until_end(asking)
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    async def _ask_on(self, http: httpx.AsyncClient) -> None:
        while True:
            for wish in [wish for wish in self.wishes if not wish.operation]:
                await self._ask(http, wish)
            await asyncio.sleep(0.5)

    async def _ask(self, http: httpx.AsyncClient, wish: Wish) -> None:
        world = self.world
        try:
            answer = await http.post(
                "/api/v1/operations", json=wish.asked, headers={"Idempotency-Key": wish.key}
            )
        except httpx.HTTPError:
            world.stats["operations without an answer"] += 1
            return
        if answer.status_code == 503:
            world.stats[f"operations {answer.json()['code']}"] += 1
            return
        world.require(answer.status_code == 202, lambda: f"{wish.asked} was answered {answer.text}")
        wish.operation = answer.json()["id"]
        world.note(f"operation {wish.operation}: {wish.asked}")

    # At the end

    def unfinished(self) -> list[str]:
        return [f"{self.name} has not asked for {wish.key}" for wish in self.wishes if not wish.operation]

    def reckon(self, referee: Referee, result_of: Callable[[str], bytes]) -> None:
        """Each operation came to its end, and passed over none of the jobs that it was given."""
        lines = set(self._lines())
        for wish in self.wishes:
            job = referee.jobs.get(f"default/{wish.operation}")
            self.world.require(
                job is not None and job.state == "succeeded",
                lambda job=job, wish=wish: f"operation {wish.operation} is {job and job.state}",
            )
            asked = [job for event, job in lines if event == operation_event(wish.operation)]
            self.world.stats["jobs changed by operations"] += len(asked)
            self.world.stats["operations done"] += 1
            if wish.asked["dry_run"]:
                self.world.require(
                    not asked, lambda wish=wish, asked=asked: f"{wish.operation}, a dry run, asked {asked}"
                )
            elif ids := wish.asked.get("ids"):
                result = msgspec.json.decode(result_of(wish.operation))
                told = len(set(asked)) + result["outcomes"].get("unknown_job", 0)
                self.world.require(
                    told >= len(ids) == result["matched"],
                    lambda wish=wish, told=told, result=result: f"{wish} has {result}, and asked {told}",
                )

    def _lines(self) -> list[tuple[str, str]]:
        topics, names = self.world.topics, self.world.names
        return [
            (line.id, line.job)
            for number in range(names.partitions)
            for record in topics.read(names.jobs, number, 0, 1_000_000)
            for line in map(_read, split(record.value))
            if line is not None
        ]


def _read(line: bytes) -> _Line | None:
    try:
        return _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
