"""``penstock workers``: who is alive, and asking one to take no more jobs, or to leave."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.context import Cli, Output, Server, cli_of
from penstock.client.calls import Json

app = typer.Typer(help="Show live workers; drain or stop one.", invoke_without_command=True)

WorkerArgument = Annotated[str, typer.Argument(metavar="WORKER", help="Id of the worker.")]

_COLUMNS = (
    "id",
    "pool",
    "types",
    "concurrency",
    "busy",
    "holding",
    "host",
    "version",
    "leaving",
    "last_seen",
)


@app.callback()
def workers(ctx: typer.Context, output: Output = None, server: Server = None) -> None:
    """Show live workers."""
    if ctx.invoked_subcommand is not None:
        return
    cli = cli_of(ctx, output, server=server)
    with cli.client() as client:
        found = client.workers()
    if cli.printer.json:
        cli.printer.value(found)
    else:
        _print(cli, found["items"])


@app.command()
def drain(ctx: typer.Context, worker: WorkerArgument, output: Output = None, server: Server = None) -> None:
    """Let a worker take no more jobs, and finish what it has."""
    cli = cli_of(ctx, output, server=server)
    with cli.client() as client:
        _told(cli, client.drain_worker(worker))


@app.command()
def stop(ctx: typer.Context, worker: WorkerArgument, output: Output = None, server: Server = None) -> None:
    """Let a worker finish or give back what it has, and leave."""
    cli = cli_of(ctx, output, server=server)
    with cli.client() as client:
        _told(cli, client.stop_worker(worker))


def _told(cli: Cli, found: Json) -> None:
    if cli.printer.json:
        cli.printer.value(found)
    else:
        _print(cli, [found])


def _print(cli: Cli, rows: list[Json]) -> None:
    cli.printer.table(
        _COLUMNS,
        ([" ".join(row[name]) if name == "types" else row[name] for name in _COLUMNS] for row in rows),
        "no workers",
    )
