"""Commands that run roles: ``dev`` runs all of them in one process, the others one each."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli import composition, projection_commands
from penstock.cli.context import Cli, DataFolder, LogUrl, Server, cli_of
from penstock.cli.logs import set_up
from penstock.cli.roles import Service, run
from penstock.cli.settings import Settings
from penstock.cli.worker_role import start_http_worker, start_log_worker, worker_health
from penstock.projections.remote import RemoteReadModel
from penstock.schemas.errors import SettingsInvalid
from penstock.workers.app import App as Tasks
from penstock.workers.loading import load_apps

App = Annotated[
    list[str] | None,
    typer.Option(
        "--app", metavar="MODULE", help="Module (or .py file) with handlers; may be given more than once."
    ),
]
Host = Annotated[str | None, typer.Option("--host", help="Address to listen on.", show_default=False)]
Port = Annotated[
    int | None, typer.Option("--port", help="Port to listen on; 0 takes a free one.", show_default=False)
]
HealthPort = Annotated[
    int | None,
    typer.Option("--health-port", help="Serve /healthz, /readyz and /metrics here.", show_default=False),
]
Name = Annotated[
    str | None, typer.Option("--name", help="Name of this process among its like.", show_default=False)
]
Concurrency = Annotated[
    int | None, typer.Option("--concurrency", help="Handlers running at once.", show_default=False)
]
Pool = Annotated[
    str | None, typer.Option("--pool", help="Pool that the worker belongs to.", show_default=False)
]

projection_app = typer.Typer(
    help="The read model: run it, or rebuild it from the log.", invoke_without_command=True
)
projection_app.command("rebuild")(projection_commands.rebuild)


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command()(dev)
    app.command()(api)
    app.command()(orchestrator)
    app.add_typer(projection_app, name="projection")
    app.command()(worker)


def _role(cli: Cli) -> Settings:
    """Settings of a process that stays, with its logging set up."""
    set_up(cli.settings.log_level, cli.settings.log_format)
    return cli.settings


def dev(
    ctx: typer.Context,
    data: DataFolder = None,
    host: Host = None,
    port: Port = None,
    app: App = None,
    concurrency: Concurrency = None,
    temp: Annotated[
        bool, typer.Option("--temp", help="Keep data in a folder that is removed at the end.")
    ] = False,
) -> None:
    """Run everything in one process on the embedded log: service, read model, and the handlers of --app."""
    with contextlib.ExitStack() as stack:
        if temp:
            if data is not None:
                raise SettingsInvalid("--temp and --data: give one of them")
            data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-")))
        log = f"embedded:{data}" if temp else None
        cli = cli_of(ctx, data=data, log=log, host=host, port=port, app=app, concurrency=concurrency)
        settings = _role(cli)
        if not settings.is_embedded:
            raise SettingsInvalid(
                f"dev runs on the embedded log, not on {settings.log_url}; run the roles by themselves"
            )
        tasks = load_apps(settings.app)
        _run_dev(settings, tasks)


def _run_dev(settings: Settings, tasks: Tasks) -> None:
    address = ""

    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        nonlocal address
        opened = await composition.start_log(stack, settings)
        orchestrator = await composition.start_orchestrator(stack, settings, opened, alone=True)
        projection = await composition.start_projection(stack, settings, opened)
        service, parts = await composition.start_api(stack, settings, opened, projection)
        address = service.address
        worker = [await start_log_worker(stack, settings, opened, tasks, name="dev")] if len(tasks) else []
        return [opened.watch, orchestrator, projection, *parts, *worker]

    def on_ready() -> None:
        handlers = ", ".join(sorted(task.name for task in tasks)) or "none (--app MODULE runs some)"
        _say(
            f"Penstock is ready.\n"
            f"  API       {address}/api/v1\n"
            f"  docs      {address}/docs\n"
            f"  metrics   {address}/metrics\n"
            f"  data      {settings.data}\n"
            f"  handlers  {handlers}\n"
            f"Ctrl-C stops it."
        )

    run(compose, on_ready=on_ready)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def api(
    ctx: typer.Context,
    log: LogUrl = None,
    host: Host = None,
    port: Port = None,
) -> None:
    """Run the API and the gateway for HTTP workers."""
    settings = _role(cli_of(ctx, log=log, host=host, port=port))
    _needs_cluster(settings, "api")

    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        opened = await composition.start_log(stack, settings)
        reads = await stack.enter_async_context(RemoteReadModel(opened.log, opened.namespace.topics))
        service, parts = await composition.start_api(stack, settings, opened, reads)
        _say(f"API on {service.address}")
        return [opened.watch, reads, *parts]

    run(compose)


def orchestrator(
    ctx: typer.Context,
    log: LogUrl = None,
    data: DataFolder = None,
    name: Name = None,
    host: Host = None,
    health_port: HealthPort = None,
) -> None:
    """Run an orchestrator: it leads partitions, leases jobs to workers, and keeps timers."""
    settings = _role(cli_of(ctx, log=log, data=data, name=name, host=host, health_port=health_port))
    _needs_cluster(settings, "orchestrator")

    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        opened = await composition.start_log(stack, settings)
        role = await composition.start_orchestrator(stack, settings, opened)
        health = await composition.start_health(
            stack, settings, "orchestrator", *composition.orchestrator_health(role)
        )
        _say(f"orchestrator {role.name} is running")
        return [opened.watch, role, *health]

    run(compose)


@projection_app.callback()
def projection(
    ctx: typer.Context,
    log: LogUrl = None,
    data: DataFolder = None,
    name: Name = None,
    host: Host = None,
    health_port: HealthPort = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--projection-address", metavar="HOST:PORT", help="Where it answers, as others reach it."
        ),
    ] = None,
) -> None:
    """Run a projection: it folds the log into the read model and answers the API's questions."""
    if ctx.invoked_subcommand is not None:
        return
    flags: dict[str, Any] = {
        "name": name,
        "host": host,
        "health_port": health_port,
        "projection_address": address,
    }
    settings = _role(cli_of(ctx, log=log, data=data, **flags))
    _needs_cluster(settings, "projection")

    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        opened = await composition.start_log(stack, settings)
        reads = await composition.start_projection(stack, settings, opened)
        server = await composition.start_read_server(stack, settings, opened, reads)
        health = await composition.start_health(
            stack, settings, "projection", *composition.projection_health(reads)
        )
        _say(f"projection answers on {server.address}")
        return [opened.watch, reads, server, *health]

    run(compose)


def worker(
    ctx: typer.Context,
    app: App = None,
    server: Server = None,
    log: LogUrl = None,
    concurrency: Concurrency = None,
    pool: Pool = None,
    name: Name = None,
    host: Host = None,
    health_port: HealthPort = None,
) -> None:
    """Run handlers: with --server over HTTP, else on the log."""
    flags: dict[str, Any] = {
        "concurrency": concurrency,
        "pool": pool,
        "name": name,
        "host": host,
        "health_port": health_port,
    }
    cli = cli_of(ctx, app=app, server=server, log=log, **flags)
    settings = _role(cli)
    if not settings.app:
        raise SettingsInvalid("a worker needs handlers: --app MODULE, or PENSTOCK_APP")
    over_http = "log" not in cli.flags and ("server" in cli.flags or settings.is_embedded)
    tasks = load_apps(settings.app)

    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        parts: list[Service] = []
        if over_http:
            role = await start_http_worker(stack, settings, tasks)
        else:
            opened = await composition.start_log(stack, settings)
            role = await start_log_worker(stack, settings, opened, tasks)
            parts.append(opened.watch)
        health = await composition.start_health(stack, settings, "worker", *worker_health(role))
        handlers = ", ".join(sorted(task.name for task in tasks))
        _say(f"worker runs {handlers}")
        return [*parts, role, *health]

    if not over_http:
        _needs_cluster(settings, "worker")
    run(compose)


def _needs_cluster(settings: Settings, role: str) -> None:
    """An embedded log belongs to one process, so a role alone has nobody to talk to."""
    if settings.is_embedded:
        raise SettingsInvalid(
            f"{role} alone needs a cluster: PENSTOCK_LOG=kafka://host:port (the embedded log is for `penstock dev`)"
        )
