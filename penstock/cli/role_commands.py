"""Commands that run roles: ``dev`` runs all of them in one process, the others one each."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli import projection_commands
from penstock.cli.context import Cli, DataFolder, LogUrl, Server, cli_of
from penstock.cli.logs import set_up
from penstock.cli.settings import Settings
from penstock.schemas.errors import SettingsInvalid

App = Annotated[
    list[str] | None,
    typer.Option(
        "--app", metavar="MODULE", help="Module (or .py file) with handlers; may be given more than once."
    ),
]
Command = Annotated[
    list[str] | None,
    typer.Option(
        "--command",
        metavar="TYPE=PROGRAM",
        help="Program that handles jobs of a type, like 'thumb=./thumb.sh --fast'; may be given more than once.",
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
ProjectionAddress = Annotated[
    str | None,
    typer.Option(
        "--projection-address",
        metavar="HOST:PORT",
        help="Where it answers, as others reach it.",
        show_default=False,
    ),
]
Share = Annotated[
    str | None,
    typer.Option(
        "--share",
        metavar="PART/PARTS",
        help="Which part of the partitions it folds, like 1/2; all by default.",
        show_default=False,
    ),
]
Name = Annotated[
    str | None, typer.Option("--name", help="Name of this process among its like.", show_default=False)
]
Concurrency = Annotated[
    int | None, typer.Option("--concurrency", help="Handlers running at once.", show_default=False)
]
Processes = Annotated[
    str | None,
    typer.Option(
        "--processes",
        metavar="N|MIN..MAX",
        help="Worker processes: so many, or as many as there is work for.",
        show_default=False,
    ),
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
    app.command()(node)
    app.command()(orchestrator)
    app.add_typer(projection_app, name="projection")
    app.command()(worker)


def _role(cli: Cli) -> Settings:
    """Settings of a process that stays, with its logging set up."""
    set_up(cli.settings.log_level, cli.settings.log_format)
    return cli.settings


def _cluster_role(cli: Cli, role: str) -> Settings:
    """An embedded log belongs to one process, so a role alone would have nobody to talk to."""
    if cli.settings.is_embedded:
        raise SettingsInvalid(
            f"{role} alone needs a cluster: PENSTOCK_LOG=kafka://host:port (the embedded log is for `penstock dev`)"
        )
    return _role(cli)


def dev(
    ctx: typer.Context,
    data: DataFolder = None,
    host: Host = None,
    port: Port = None,
    app: App = None,
    command: Command = None,
    concurrency: Concurrency = None,
    temp: Annotated[
        bool, typer.Option("--temp", help="Keep data in a folder that is removed at the end.")
    ] = False,
) -> None:
    """Run everything in one process on the embedded log: service, read model, and handlers (--app, --command)."""
    from penstock.cli.role_running import run_dev

    with contextlib.ExitStack() as stack:
        if temp and data is not None:
            raise SettingsInvalid("--temp and --data: give one of them")
        if temp:
            data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-")))
        log = f"embedded:{data}" if temp else None
        flags: dict[str, Any] = {"app": app, "command": command, "concurrency": concurrency}
        cli = cli_of(ctx, data=data, log=log, host=host, port=port, **flags)
        settings = _role(cli)
        if not settings.is_embedded:
            raise SettingsInvalid(
                f"dev runs on the embedded log, not on {settings.log_url}: run the roles alone"
            )
        run_dev(settings)


def api(ctx: typer.Context, log: LogUrl = None, host: Host = None, port: Port = None) -> None:
    """Run the API and the gateway for HTTP workers."""
    from penstock.cli.role_running import run_api

    run_api(_cluster_role(cli_of(ctx, log=log, host=host, port=port), "api"))


def orchestrator(
    ctx: typer.Context,
    log: LogUrl = None,
    data: DataFolder = None,
    name: Name = None,
    host: Host = None,
    health_port: HealthPort = None,
    share: Share = None,
) -> None:
    """Run an orchestrator: it leads partitions, leases jobs to workers, and keeps timers."""
    from penstock.cli.role_running import run_orchestrator

    cli = cli_of(ctx, log=log, data=data, name=name, host=host, health_port=health_port, share=share)
    run_orchestrator(_cluster_role(cli, "orchestrator"))


def node(
    ctx: typer.Context,
    log: LogUrl = None,
    data: DataFolder = None,
    name: Name = None,
    host: Host = None,
    health_port: HealthPort = None,
    address: ProjectionAddress = None,
    share: Share = None,
) -> None:
    """Run an orchestrator and a projection in one process: the log is folded once for both."""
    from penstock.cli.role_running import run_node

    flags: dict[str, Any] = {
        "name": name,
        "host": host,
        "health_port": health_port,
        "projection_address": address,
        "share": share,
    }
    run_node(_cluster_role(cli_of(ctx, log=log, data=data, **flags), "node"))


@projection_app.callback()
def projection(
    ctx: typer.Context,
    log: LogUrl = None,
    data: DataFolder = None,
    name: Name = None,
    host: Host = None,
    health_port: HealthPort = None,
    address: ProjectionAddress = None,
    share: Share = None,
) -> None:
    """Run a projection: it folds the log into the read model and answers the API's questions."""
    if ctx.invoked_subcommand is not None:
        return
    from penstock.cli.role_running import run_projection

    flags: dict[str, Any] = {
        "name": name,
        "host": host,
        "health_port": health_port,
        "projection_address": address,
        "share": share,
    }
    run_projection(_cluster_role(cli_of(ctx, log=log, data=data, **flags), "projection"))


def worker(
    ctx: typer.Context,
    app: App = None,
    command: Command = None,
    server: Server = None,
    log: LogUrl = None,
    concurrency: Concurrency = None,
    processes: Processes = None,
    pool: Pool = None,
    name: Name = None,
    host: Host = None,
    health_port: HealthPort = None,
) -> None:
    """Run handlers: with --server over HTTP, else on the log."""
    from penstock.cli.role_running import run_workers

    flags: dict[str, Any] = {
        "concurrency": concurrency, "processes": processes, "pool": pool, "name": name, "host": host
    }  # fmt: skip
    cli = cli_of(ctx, app=app, command=command, server=server, log=log, health_port=health_port, **flags)
    if not cli.settings.app and not cli.settings.command:
        raise SettingsInvalid(
            "a worker needs handlers: --app MODULE (or PENSTOCK_APP), or --command TYPE=PROGRAM"
        )
    # An embedded log has an owner already: its server is the way to it.
    over_http = "log" not in cli.flags and ("server" in cli.flags or cli.settings.is_embedded)
    run_workers(_role(cli) if over_http else _cluster_role(cli, "worker"), over_http=over_http)
