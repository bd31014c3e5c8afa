"""What each role's command runs, once its settings are known.

Apart from the commands, so that those which only ask a server do not load what a server is made of. Each function
imports what only its role needs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from penstock.cli import composition
from penstock.cli.roles import Service, run
from penstock.cli.settings import Settings

if TYPE_CHECKING:
    from penstock.cli.supervising import Tie
    from penstock.workers.app import App


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _tasks_of(settings: Settings) -> App:
    """The handlers that were asked for.

    Raises:
        AppInvalid, TaskInvalid: they cannot be had.
    """
    from penstock.workers.loading import load_apps

    tasks = load_apps(settings.app)
    if settings.command:
        from penstock.workers.command import parse_commands

        tasks.include(*parse_commands(settings.command))
    return tasks


def run_dev(settings: Settings) -> None:
    """Everything in one process."""
    from penstock.cli.worker_role import start_dev_worker

    tasks = _tasks_of(settings)
    address = ""

    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        nonlocal address
        opened = await composition.start_log(stack, settings)
        orchestrator, reads = await composition.start_node(stack, settings, opened, alone=True)
        keepers, _ = await composition.start_archiving(stack, settings, opened)
        service, parts = await composition.start_api(stack, settings, opened, reads)
        address = service.address
        worker = [await start_dev_worker(stack, settings, opened, tasks)] if len(tasks) else []
        return [opened.watch, orchestrator, reads, *keepers, *parts, *worker]

    def on_ready() -> None:
        _say(
            f"Penstock is ready.\n"
            f"  API       {address}/api/v1\n"
            f"  docs      {address}/docs\n"
            f"  metrics   {address}/metrics\n"
            f"  data      {settings.data}\n"
            f"  handlers  {_names(tasks) or 'none (--app MODULE runs some)'}\n"
            f"Ctrl-C stops it."
        )

    run(compose, on_ready=on_ready, grace_ms=settings.grace_ms)


def _names(tasks: App) -> str:
    return ", ".join(sorted(task.name for task in tasks))


def run_api(settings: Settings) -> None:
    """The API, its gateway, and a read model that asks projection processes."""
    from penstock.projections.remote import RemoteReadModel

    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        opened = await composition.start_log(stack, settings)
        reads = await stack.enter_async_context(RemoteReadModel(opened.log, opened.namespace.topics))
        service, parts = await composition.start_api(stack, settings, opened, reads)
        _say(f"API on {service.address}")
        return [opened.watch, reads, *parts]

    run(compose)


def run_orchestrator(settings: Settings) -> None:
    """An orchestrator, with its health where that is wanted."""

    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        opened = await composition.start_log(stack, settings)
        role = await composition.start_orchestrator(stack, settings, opened)
        health = await composition.start_health(
            stack, settings, "orchestrator", *composition.orchestrator_health(role)
        )
        _say(f"orchestrator {role.name} is running")
        return [opened.watch, role, *health]

    run(compose)


def run_node(settings: Settings) -> None:
    """An orchestrator and a projection over one fold, and the server that answers."""

    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        opened = await composition.start_log(stack, settings)
        role, reads = await composition.start_node(stack, settings, opened)
        server = await composition.start_read_server(stack, settings, opened, reads)
        keepers, kept = await composition.start_archiving(stack, settings, opened)
        health = await composition.start_health(
            stack, settings, "node", *composition.with_numbers(composition.node_health(role, reads), kept)
        )
        _say(f"node {role.name} is running, and answers on {server.address}")
        return [opened.watch, role, reads, server, *keepers, *health]

    run(compose)


def run_projection(settings: Settings) -> None:
    """A projection and the server that answers for it."""

    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        opened = await composition.start_log(stack, settings)
        reads = await composition.start_projection(stack, settings, opened)
        server = await composition.start_read_server(stack, settings, opened, reads)
        keepers, kept = await composition.start_archiving(stack, settings, opened)
        health = await composition.start_health(
            stack,
            settings,
            "projection",
            *composition.with_numbers(composition.projection_health(reads), kept),
        )
        _say(f"projection answers on {server.address}")
        return [opened.watch, reads, server, *keepers, *health]

    run(compose)


def run_workers(settings: Settings, *, over_http: bool) -> None:
    """Handlers in one process, or in as many as the settings want."""
    if settings.processes == "1":
        run_worker(settings, over_http=over_http)
        return
    from penstock.cli.supervising import supervise

    supervise(settings, lambda own, tie: run_worker(own, over_http=over_http, tie=tie))


def run_worker(settings: Settings, *, over_http: bool, tie: Tie | None = None) -> None:
    """Handlers, on the log or through a server. ``tie``: to the process that watches this one."""
    from penstock.cli.worker_role import start_http_worker, start_log_worker, worker_health

    tasks = _tasks_of(settings)

    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        parts: list[Service] = []
        if over_http:
            role = await start_http_worker(stack, settings, tasks)
        else:
            opened = await composition.start_log(stack, settings)
            role = await start_log_worker(stack, settings, opened, tasks)
            parts.append(opened.watch)
        if tie is not None:
            from penstock.cli.supervising import Telling

            await stack.enter_async_context(Telling(role, tie))
        health = await composition.start_health(stack, settings, "worker", *worker_health(role))
        _say(f"worker {role.profile.worker} runs {_names(tasks)}")
        return [*parts, role, *health]

    run(compose, grace_ms=settings.grace_ms)
