"""The roles put together from their parts. Each function starts one on the stack and returns what may fail of it.

What a role is made of is imported by the function that starts it: a process loads its own roles, and no others.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from penstock.cli.opening import claims_of, log_of
from penstock.cli.roles import Part, Service
from penstock.cli.settings import Settings
from penstock.client.idgen import new_id
from penstock.log.namespace import Namespace, open_namespace
from penstock.log.port import Log

if TYPE_CHECKING:
    from penstock.api.service import ApiService
    from penstock.cli.health import Numbers, Problems
    from penstock.core.job import State
    from penstock.orchestrator.service import Orchestrator
    from penstock.projections.port import ReadModel
    from penstock.projections.read_model import ReadModelService, SharedReadModel
    from penstock.projections.server import ReadServer
    from penstock.projections.service import ProjectionService

SETTLE_MS = 1_200
"""How long an orchestrator listens for others before it leads."""

STEP_SILENCE_MS = 5_000
"""An orchestrator that has not stepped for so long is stuck: it beats each half second."""


@dataclass(slots=True)
class LogFailure:
    """Hears from an embedded log that it cannot go on (a failed fsync, a full disk)."""

    failure: asyncio.Future[Any]

    def on_fatal(self, error: BaseException) -> None:
        if not self.failure.done():
            self.failure.set_exception(error)


@dataclass(frozen=True, slots=True)
class OpenedLog:
    """An open log and its namespace."""

    log: Log
    namespace: Namespace
    watch: LogFailure


async def start_log(stack: AsyncExitStack, settings: Settings) -> OpenedLog:
    """Open the log and make or check its topics.

    Raises:
        LogError: it cannot be reached or is not as it must be.
        StoreLocked: another process has the embedded log.
    """
    watch = LogFailure(asyncio.get_running_loop().create_future())
    log = await stack.enter_async_context(log_of(settings, watch.on_fatal))
    return OpenedLog(log, await open_namespace(log, settings.topics), watch)


def process_name(settings: Settings) -> str:
    """Name of this process among its like."""
    return settings.name or f"{socket.gethostname()}-{os.getpid()}"


async def start_orchestrator(
    stack: AsyncExitStack,
    settings: Settings,
    opened: OpenedLog,
    *,
    alone: bool = False,
    readers: SharedReadModel | None = None,
) -> Orchestrator:
    """Start one.

    Args:
        alone: no other orchestrator can be there, so none is waited for.
        readers: the read model that shares its stores.
    """
    from penstock.cli import archiving
    from penstock.cli.folders import NODE, ORCHESTRATOR
    from penstock.orchestrator.retention import Retention
    from penstock.orchestrator.service import Orchestrator

    orchestrator = Orchestrator(
        opened.log,
        opened.namespace,
        (NODE if readers else ORCHESTRATOR).path(settings.data),
        name=process_name(settings),
        settle_ms=0 if alone else SETTLE_MS,
        retention=Retention(cast("Mapping[State, int]", settings.retention_ms)),
        readers=readers,
        snapshots=archiving.snapshots_of(settings),
        partitions=settings.folded,
    )
    return await stack.enter_async_context(orchestrator)


async def start_node(
    stack: AsyncExitStack, settings: Settings, opened: OpenedLog, *, alone: bool = False
) -> tuple[Orchestrator, SharedReadModel]:
    """An orchestrator and the read model of its partitions, over one fold."""
    from penstock.cli.folders import NODE
    from penstock.projections.read_model import SharedReadModel

    reads = await stack.enter_async_context(
        SharedReadModel(
            opened.log,
            opened.namespace.topics,
            partitions=settings.folded,
            history_age_ms=settings.retention_history,
            text_index=NODE.path(settings.data) if settings.text_index else None,
        )
    )
    return await start_orchestrator(stack, settings, opened, alone=alone, readers=reads), reads


async def start_projection(stack: AsyncExitStack, settings: Settings, opened: OpenedLog) -> ProjectionService:
    """The read model of the partitions that this process has."""
    from penstock.cli import archiving
    from penstock.cli.folders import PROJECTION
    from penstock.projections.service import ProjectionService

    namespace = opened.namespace
    return await stack.enter_async_context(
        ProjectionService(
            opened.log,
            namespace.topics,
            PROJECTION.path(settings.data),
            partitions=settings.folded,
            generation=namespace.generation,
            history_age_ms=settings.retention_history,
            snapshots=archiving.snapshots_of(settings),
            text_index=settings.text_index,
        )
    )


async def start_read_server(
    stack: AsyncExitStack, settings: Settings, opened: OpenedLog, projection: ReadModelService
) -> ReadServer:
    """Answers other processes' reads. It listens where ``projection_address`` says, and tells others that address."""
    from penstock.projections.server import ReadServer

    host, _, port = settings.projection_address.rpartition(":")
    # A name in the network is for others; inside a container it may be bound as any address.
    bind = host if host in ("", "127.0.0.1", "localhost") else "0.0.0.0"
    return await stack.enter_async_context(
        ReadServer(
            projection,
            opened.log,
            name=process_name(settings),
            incarnation=new_id(),
            host=bind or settings.host,
            port=int(port or 0),
            advertise=settings.projection_address if port and port != "0" else "",
        )
    )


async def start_api(
    stack: AsyncExitStack, settings: Settings, opened: OpenedLog, read_model: ReadModel
) -> tuple[ApiService, list[Service]]:
    """The API with its gateway; returns it and everything of it that may fail."""
    from penstock.api.app import create_app
    from penstock.api.deps import ApiDeps, ApiOptions
    from penstock.api.gateway import Gateway
    from penstock.api.metrics import ApiMetrics
    from penstock.api.operating import OperationWorker
    from penstock.api.registry import WorkerRegistry
    from penstock.api.service import ApiService
    from penstock.log.archive_log import ArchivedLog
    from penstock.log.bundler import Bundler

    log, namespace = opened.log, opened.namespace
    registry = await stack.enter_async_context(WorkerRegistry(log, namespace.topics))
    gateway = await stack.enter_async_context(Gateway(log, namespace.topics, new_id()))
    writer = await stack.enter_async_context(Bundler(log, namespace.topics.jobs))
    deps = ApiDeps(
        log=log,
        topics=namespace.topics,
        writer=writer,
        read_model=read_model,
        registry=registry,
        gateway=gateway,
        metrics=ApiMetrics(),
        options=ApiOptions(
            max_payload_bytes=settings.max_payload_bytes, cors_origins=tuple(settings.cors_origins)
        ),
        generation=namespace.generation,
        made_with=namespace.rules,
        archive=log.archive if isinstance(log, ArchivedLog) else None,
        claims=claims_of(settings),
    )
    operations = await stack.enter_async_context(OperationWorker(deps, process_name(settings)))
    service = ApiService(create_app(deps), host=settings.host, port=settings.port)
    await stack.enter_async_context(service)
    # Before the server stops: it waits for open requests, and a parked fetch or read would hold it up.
    stack.callback(deps.stop)
    assert registry.failure is not None
    return service, [Part(registry.failure), Part(gateway.failure), operations, service]


async def start_archiving(
    stack: AsyncExitStack, settings: Settings, opened: OpenedLog
) -> tuple[list[Service], Numbers]:
    """What keeps the archive and trims the log, as far as the settings say so; and its numbers."""
    from penstock.cli import archiving

    return await archiving.start_archiving(stack, settings, opened.log, opened.namespace)


def with_numbers(health: tuple[Problems, Numbers], more: Numbers) -> tuple[Problems, Numbers]:
    """A role's health, with the numbers of something that runs beside it."""
    problems, numbers = health
    return problems, lambda: {**numbers(), **more()}


async def start_health(
    stack: AsyncExitStack, settings: Settings, role: str, problems: Problems, numbers: Numbers
) -> Sequence[Service]:
    """Health and metrics on ``health_port``, if one is set."""
    if settings.health_port is None:
        return ()
    from penstock.api.service import ApiService
    from penstock.cli.health import health_app

    app = health_app(role, problems, numbers)
    return (await stack.enter_async_context(ApiService(app, host=settings.host, port=settings.health_port)),)


def orchestrator_health(orchestrator: Orchestrator) -> tuple[Problems, Numbers]:
    """Ready while it steps."""

    def problems() -> list[str]:
        silent_ms = time.monotonic_ns() // 1_000_000 - orchestrator.stepped_ms
        return [] if silent_ms < STEP_SILENCE_MS else [f"nothing decided for {silent_ms} ms"]

    def numbers() -> dict[str, float]:
        machine = orchestrator.machine
        found: dict[str, float] = {"penstock_partitions_led": len(machine.leading)}
        for name, jobs in machine.backlog().items():
            found[f'penstock_backlog_jobs{{type="{name}"}}'] = jobs
        for name, jobs in machine.unhandled().items():
            found[f'penstock_unhandled_jobs{{type="{name}"}}'] = jobs
        return {**found, **orchestrator.snapshot_numbers()}

    return problems, numbers


def node_health(orchestrator: Orchestrator, reads: ReadModelService) -> tuple[Problems, Numbers]:
    """Ready while both are."""
    deciding, decided = orchestrator_health(orchestrator)
    answering, answered = projection_health(reads)
    return lambda: [*deciding(), *answering()], lambda: {**decided(), **answered()}


def projection_health(projection: ReadModelService) -> tuple[Problems, Numbers]:
    """Ready while every partition that is behind moves."""
    from penstock.cli.health import ProgressCheck
    from penstock.projections.service import ProjectionService

    def numbers() -> dict[str, float]:
        counted = projection.numbers
        found: dict[str, float] = {
            f"penstock_projection_{name}": getattr(counted, name) for name in counted.__struct_fields__
        }
        for partition, offset in projection.offsets.items():
            found[f'penstock_projection_next_offset{{partition="{partition}"}}'] = offset
        for partition, lag in projection.lags.items():
            found[f'penstock_projection_lag_records{{partition="{partition}"}}'] = lag
        if isinstance(projection, ProjectionService):
            found.update(projection.snapshot_numbers())
        for partition, jobs in projection.unindexed.items():
            found[f'penstock_text_index_waiting_jobs{{partition="{partition}"}}'] = jobs
        return found

    return ProgressCheck(lambda: projection.lags, lambda: projection.offsets), numbers
