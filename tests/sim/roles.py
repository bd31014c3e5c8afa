"""Penstock's processes as hosts of the simulation: the real orchestrator, projection, API with gateway, and workers."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from penstock.api.app import create_app
from penstock.api.deps import ApiDeps
from penstock.api.gateway import Gateway
from penstock.api.metrics import ApiMetrics
from penstock.api.operating import OperationWorker
from penstock.api.registry import WorkerRegistry
from penstock.client.idgen import new_id
from penstock.core.rules import RULES
from penstock.log.bundler import Bundler
from penstock.log.namespace import Namespace, open_namespace
from penstock.orchestrator.machine import Inputs
from penstock.orchestrator.outputs import Now, Outputs
from penstock.orchestrator.service import Orchestrator
from penstock.projections.read_model import ReadModelService, SharedReadModel
from penstock.projections.remote import RemoteReadModel
from penstock.projections.server import ReadServer
from penstock.projections.service import ProjectionService
from penstock.schemas.errors import Conflict, UnknownRules
from penstock.workers.http_transport import HttpTransport
from penstock.workers.log_transport import LogTransport
from penstock.workers.runtime import Worker
from penstock.workers.transport import Transport
from tests.core.newer_rules import NEWER
from tests.sim import checks
from tests.sim.handlers import LIMITS, Witness, app_of
from tests.sim.host import Host
from tests.sim.network import Exchange, SimHttp
from tests.sim.referee import Referee
from tests.sim.scale import retention_of
from tests.sim.simlog import SimLog
from tests.sim.world import World


class FoldingHost(Host):
    """A process that folds the jobs log, by the rules that its program has."""

    def __init__(self, world: World, name: str, referee: Referee) -> None:
        super().__init__(world, name)
        self._referee = referee
        self.rules = RULES
        self._running = RULES
        """Those of the program that runs now, or ran last."""

    def start(self) -> None:
        if not self.alive:
            self._running = self.rules
        super().start()

    def upgrade(self) -> None:
        """A newer program takes the place of the older one."""
        if self.rules is not NEWER:
            self.rules = NEWER
            self.world.stats["programs upgraded"] += 1
            self._replace_program(self.lives)

    def _replace_program(self, life: int) -> None:
        """One that sleeps, or is leaving already, is asked again."""
        if self.alive and self.lives == life:
            self.leave()
            self.world.after(1_000, partial(self._replace_program, life))

    def may_end_with(self, error: BaseException) -> bool:
        if isinstance(error, UnknownRules) and self._running is not NEWER:
            # It was away when all were asked whether they can follow.
            self.world.stats["older programs stopped"] += 1
            self.rules = NEWER
            return True
        return super().may_end_with(error)


class OrchestratorHost(FoldingHost):
    """``penstock orchestrator``."""

    role = "orchestrator"

    def __init__(self, world: World, name: str, referee: Referee) -> None:
        super().__init__(world, name, referee)
        self.service: Orchestrator | None = None

    async def live(self, log: SimLog) -> None:
        namespace = await open_namespace(log, self.world.names)
        async with self._orchestrator(log, namespace) as service:
            self._watch(service)
            await self.until_end(service.failure)

    def _orchestrator(
        self, log: SimLog, namespace: Namespace, readers: SharedReadModel | None = None
    ) -> Orchestrator:
        world = self.world
        alone = world.weather.orchestrators == 1 and world.random.random() < 0.5
        self.service = Orchestrator(
            log, namespace, f"sim/{self.name}", name=self.name, settle_ms=0 if alone else 1_200, readers=readers,
            store_factory=self.disk.open, retention=retention_of(world.weather), rules=self.rules,
        )  # fmt: skip
        return self.service

    def forget(self) -> None:
        self.service = None

    def usurp(self) -> None:
        """Claim some partition, whoever leads it, and however well."""
        service, loop = self.service, self.loop
        if service is None or loop is None or loop.dead or not hasattr(service, "machine"):
            return
        number = self.world.random.randrange(self.world.names.partitions)

        def claim() -> None:
            out = Outputs()
            service.machine.partitions[number].announce(service._clock.now(), out)
            service._outbox.carry_out(out)

        self.world.note(f"{loop.name} claims {number}")
        loop.call_soon(claim)

    def _watch(self, service: Orchestrator) -> None:
        """See every step: what it does, and that the machine is in order after it."""
        world, machine, step = self.world, service.machine, service.machine.step
        name = f"{self.name}.{self.lives}"

        def watched(inputs: Inputs, now: Now) -> Outputs:
            led = {number for number, one in machine.partitions.items() if one.role == "leading"}
            out = step(inputs, now)
            for number, one in machine.partitions.items():
                if one.role == "leading" and number not in led:
                    world.stats["takeovers"] += 1
                    world.last_takeover_ms = world.mono_ms
                    world.note(f"{name} leads {number}")
            checks.check_machine(world, self._referee, machine)
            self._referee.check_outputs(name, out)
            self.after_step()
            return out

        machine.step = watched

    def after_step(self) -> None:
        """Look at what else there is."""


class NodeHost(OrchestratorHost):
    """An orchestrator and a read model over one fold, as ``penstock dev`` runs them; here there may be several."""

    role = "node"

    def __init__(self, world: World, name: str, referee: Referee) -> None:
        super().__init__(world, name, referee)
        self.reads: SharedReadModel | None = None

    async def live(self, log: SimLog) -> None:
        namespace = await open_namespace(log, self.world.names)
        reads = SharedReadModel(log, namespace.topics)
        async with reads, self._orchestrator(log, namespace, reads) as service:
            self._watch(service)
            self.reads = reads
            async with ReadServer(
                reads, log, name=self.name, incarnation=new_id(), rules=self.rules
            ) as server:
                await self.until_end(service.failure, reads.failure, server.failure)

    def forget(self) -> None:
        super().forget()
        self.reads = None

    def after_step(self) -> None:
        if self.reads is not None and self.world.random.random() < 0.01:
            for part in self.reads._parts.values():
                if part.store.committed_offset == part.store.next_offset:
                    checks.check_views(self.world, part, self.name)


class ProjectionHost(FoldingHost):
    """``penstock projection``."""

    role = "projection"

    def __init__(self, world: World, name: str, referee: Referee) -> None:
        super().__init__(world, name, referee)
        self.reads: ReadModelService | None = None

    async def live(self, log: SimLog) -> None:
        namespace = await open_namespace(log, self.world.names)
        service = ProjectionService(
            log,
            namespace.topics,
            f"sim/{self.name}",
            generation=namespace.generation,
            store_factory=self.disk.open,
            rules=self.rules,
        )
        self._watch(service)
        async with service:
            self.reads = service
            async with ReadServer(
                service, log, name=self.name, incarnation=new_id(), rules=self.rules
            ) as server:
                await self.until_end(service.failure, server.failure)

    def forget(self) -> None:
        self.reads = None

    def _watch(self, service: ProjectionService) -> None:
        commit = service._commit

        def watched(part: Any) -> None:
            commit(part)
            store = part.store
            self._referee.compare(store.partition, store.committed_offset, store.digest, self.name)
            if self.world.random.random() < 0.02:
                checks.check_views(self.world, part, self.name)

        service._commit = watched


class ApiHost(Host):
    """``penstock api``: intake, reads and the gateway."""

    role = "api"

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.exchange = Exchange()

    async def live(self, log: SimLog) -> None:
        namespace = await open_namespace(log, self.world.names)
        topics = namespace.topics
        gateway = Gateway(log, topics, incarnation=new_id())
        registry = WorkerRegistry(log, topics)
        reads = RemoteReadModel(log, topics)
        async with Bundler(log, topics.jobs) as writer, reads, registry, gateway:
            deps = ApiDeps(
                log, topics, writer, reads, registry, gateway, ApiMetrics(), generation=namespace.generation,
                version="sim",
            )  # fmt: skip
            async with AsyncExitStack() as stack:
                failures = [gateway.failure, registry.failure, reads.failure]
                if self.world.weather.operations_ms:
                    operations = await stack.enter_async_context(OperationWorker(deps, self.name))
                    failures.append(operations.failure)
                self.exchange.serve(log.loop, create_app(deps))
                try:
                    await self.until_end(*failures)
                finally:
                    self.exchange.close()
                    deps.stop()

    def forget(self) -> None:
        self.exchange.close()


MOST_CONCURRENCY = 4
"""Of workers; those with so many slots have limits of types as well."""


class WorkerHost(Host):
    """``penstock worker``, on the log or over HTTP."""

    role = "worker"

    def __init__(
        self,
        world: World,
        name: str,
        types: tuple[str, ...],
        witness: Witness,
        apis: list[Exchange] | None = None,
    ) -> None:
        super().__init__(world, name)
        self._types, self._witness, self._apis = types, witness, apis
        if apis is not None:
            self.role = "http worker"
        self._concurrency = world.random.choice((1, 2, MOST_CONCURRENCY))
        self.lease_ms = world.random.choice((3_000, 6_000))
        self.died_ms: dict[str, int] = {}
        """When each incarnation ended, virtual ms."""

    async def live(self, log: SimLog) -> None:
        world = self.world
        transport: Transport
        if self._apis is None:
            await open_namespace(log, world.names)
            transport = LogTransport(log, world.names)
        else:
            transport = HttpTransport(
                "http://api", wait_ms=world.random.choice((500, 2_000, 10_000)),
                http_transport=SimHttp(world, log.loop, self._apis, self.senses),
            )  # fmt: skip
        limited = world.weather.type_limits and self._concurrency == MOST_CONCURRENCY
        worker = Worker(
            app_of(self._types, limited=limited), transport, concurrency=self._concurrency, name=self.name,
            lease_ms=self.lease_ms, grace_ms=world.random.choice((0, 3_000)),
        )  # fmt: skip
        incarnation = worker.profile.incarnation
        self._witness.identities[log.loop.name] = (self.name, incarnation)
        self._witness.limits[log.loop.name] = LIMITS if limited else {}
        world.note(f"{log.loop.name} is {incarnation[-5:]}")
        log.loop.on_death.append(lambda: self.died_ms.setdefault(incarnation, world.mono_ms))
        async with worker:
            left = asyncio.ensure_future(worker.left.wait())
            try:
                await self.until_end(worker.failure, left)
            finally:
                left.cancel()

    def down_ms(self) -> int:
        # Some do not come back for long, and nobody takes their place.
        return 60_000 if self.world.random.random() < 0.15 else super().down_ms()

    def may_end_with(self, error: BaseException) -> bool:
        # A newer process of this name is there.
        return super().may_end_with(error) or isinstance(error, Conflict)


def handled(stats: Counter[str]) -> int:
    """Handlers started."""
    return sum(count for name, count in stats.items() if name.startswith("handler "))
