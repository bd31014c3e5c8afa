"""Producers that are programs of their own: one beside the log, with the bundler, and one that speaks to the API.

Each keeps on its disk what it has to send, and sends it again under the same id until it is told that it is durable,
in as many lives as that takes. What it was told is written down, to be held against the log.
"""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import msgspec

from penstock.client.http_async import AsyncClient
from penstock.client.producer import LogProducer
from penstock.log.namespace import open_namespace
from penstock.projections.remote import RemoteReadModel
from penstock.schemas import events as ev
from penstock.schemas.errors import (
    Conflict,
    IdInUse,
    JobDeleted,
    JobNotFound,
    LogError,
    ReadBehind,
    ReadModelUnavailable,
    ServerUnreachable,
    UniqueConflict,
)
from penstock.schemas.position import Position
from tests.sim.host import Host
from tests.sim.network import Exchange, SimHttp
from tests.sim.simlog import SimLog
from tests.sim.world import World


class ProducerHost(Host):
    """Sends what :meth:`take` was given."""

    role = "producer"

    def __init__(
        self, world: World, name: str, turned_away: Callable[[str], bool], apis: list[Exchange] | None = None
    ) -> None:
        super().__init__(world, name)
        self._apis = apis
        self._turned_away = turned_away
        self._waiting: dict[str, ev.Enqueued] = {}
        self._sender: Any = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.told: dict[str, Position | None] = {}
        """Jobs that are durable, as it was told, and where."""
        self.refused: set[str] = set()
        """Jobs whose id another had."""

    def take(self, event: ev.Enqueued) -> None:
        self._waiting[event.job] = event
        loop = self.loop
        if self._sender is not None and loop is not None and not loop.dead:
            loop.call_soon(self._begin_sending, event)

    def unsent(self) -> list[str]:
        return list(self._waiting)

    def forget(self) -> None:
        self._sender = None

    async def live(self, log: SimLog) -> None:
        self._tasks = set()
        async with AsyncExitStack() as stack:
            ends: list[asyncio.Future[None]] = []
            if self._apis is None:
                await open_namespace(log, self.world.names)
                self._reads = await stack.enter_async_context(RemoteReadModel(log, self.world.names))
                ends.append(self._reads.failure)
                sender: Any = LogProducer(log, self.world.names)
            else:
                transport = SimHttp(self.world, log.loop, self._apis, self.senses)
                sender = AsyncClient("http://api", transport=transport)
            self._sender = await stack.enter_async_context(sender)
            for event in list(self._waiting.values()):
                self._begin_sending(event)
            try:
                await self.until_end(*ends)
            finally:
                self._sender = None
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin_sending(self, event: ev.Enqueued) -> None:
        if self._sender is not None:
            sending = asyncio.ensure_future(self._send(self._sender, event))
            self._tasks.add(sending)
            sending.add_done_callback(self._sent)

    def _sent(self, sending: asyncio.Task[None]) -> None:
        if not sending.cancelled() and (error := sending.exception()) is not None:
            self.world.complaints.append("".join(traceback.format_exception(error)))

    async def _send(self, sender: Any, event: ev.Enqueued) -> None:
        world = self.world
        while True:
            try:
                produced = await sender.enqueue(
                    event.job_type, json.loads(bytes(event.payload)), **_options(event)
                )
            except UniqueConflict:
                world.stats["keys in use"] += 1
                self._waiting.pop(event.job, None)
                return
            except IdInUse:
                self.refused.add(event.job)
                self._waiting.pop(event.job, None)
                world.stats["ids in use"] += 1
                return
            except (LogError, ServerUnreachable, ReadBehind, ReadModelUnavailable, Conflict) as error:
                # A conflict is left where the log does not follow the rules of such keys yet.
                world.stats[f"enqueue {error.code}"] += 1
                await asyncio.sleep(world.between(50, 2_000) / 1_000)
            else:
                break
        if self._apis is not None and produced["id"] != event.job:
            world.stats["others returned"] += 1
            self._waiting.pop(event.job, None)
            return
        world.stats[f"enqueued by {self.name}"] += 1
        self.told[event.job] = getattr(produced, "position", None)
        self._waiting.pop(event.job, None)
        await self._read_back(sender, event.job)

    async def _read_back(self, sender: Any, job: str) -> None:
        """A read that names the write sees it, or says that it cannot."""
        try:
            if self._apis is None:
                position = self.told[job]
                assert position is not None
                await self._reads.wait({position.partition: position}, 5_000)
                found = await self._reads.job("default", job)
            else:
                found = await sender.get(job)
        except (ReadBehind, ReadModelUnavailable):
            self.world.stats["reads behind"] += 1
        except JobDeleted:
            self.world.stats["reads of the deleted"] += 1
        except JobNotFound:
            self._not_found(job)
        except ServerUnreachable:
            self.world.stats["reads without an answer"] += 1
        else:
            self.world.stats["reads of own writes"] += 1
            if found is None:
                self._not_found(job)

    def _not_found(self, job: str) -> None:
        if self._turned_away(f"default/{job}"):
            self.world.stats["reads of the turned away"] += 1
        elif f"default/{job}" in self.world.forgotten:
            self.world.stats["reads of the forgotten"] += 1
        else:
            self.world.complaints.append(f"{self.name} does not find {job}, which it had written")


def _options(event: ev.Enqueued) -> dict[str, Any]:
    options: dict[str, Any] = {
        "id": event.job, "priority": event.priority, "max_attempts": event.max_attempts,
        "backoff": msgspec.structs.asdict(event.backoff),
    }  # fmt: skip
    if event.timeout_ms:
        options["timeout_ms"] = event.timeout_ms
    if event.run_at:
        options["run_at"] = _text(event.run_at)
    elif event.delay_ms:
        options["delay_ms"] = event.delay_ms
    if event.expires_at:
        options["expires_at"] = _text(event.expires_at)
    if event.unique is not None:
        unique = event.unique
        options["unique"] = {"key": unique.key, "scope": unique.scope, "on_conflict": unique.on_conflict}
        if unique.period_ms:
            options["unique"]["period_ms"] = unique.period_ms
    if event.concurrency_key:
        options["concurrency_key"] = event.concurrency_key
    if event.batch:
        options["batch"] = event.batch
    if event.workflow:
        options["workflow"] = event.workflow
    return options


def _text(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat()
