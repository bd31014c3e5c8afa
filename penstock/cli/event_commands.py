"""``penstock events``: what happens to jobs, as it happens."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.context import Output, Server, cli_of
from penstock.cli.job_commands import history_row


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(events)


def events(
    ctx: typer.Context,
    types: Annotated[str, typer.Option(help="Names of events, comma separated.")] = "",
    job: Annotated[str, typer.Option(help="Only events of this job.")] = "",
    queue: Annotated[str, typer.Option(help="Only of jobs of this queue.")] = "",
    job_type: Annotated[str, typer.Option("--type", help="Only of jobs of this type.")] = "",
    tag: Annotated[str, typer.Option(help="Only of jobs with this tag.")] = "",
    batch: Annotated[str, typer.Option(help="Only of jobs of this batch.")] = "",
    workflow: Annotated[str, typer.Option(help="Only of jobs of this workflow.")] = "",
    after: Annotated[
        str, typer.Option(metavar="TOKEN", help="Go on behind this event or write; from now on if empty.")
    ] = "",
    count: Annotated[int, typer.Option(min=0, help="Leave after so many; 0 goes on.")] = 0,
    output: Output = None,
    server: Server = None,
) -> None:
    """Follow what happens to jobs; the connection is taken up again where it was cut. JSON has each event's token."""
    cli = cli_of(ctx, output, server=server)
    told = 0
    with cli.client() as client:
        filters = {
            "types": types, "job": job, "queue": queue, "type": job_type, "tags": tag, "batch": batch,
            "workflow": workflow,
        }  # fmt: skip
        for event in client.events(after=after, reconnect=True, **filters):
            if cli.printer.json:
                cli.printer.line(event)
            else:
                position, at, kind, actor, outcome, details = history_row({"actor": "", **event})
                told_by = f" by {actor}" if actor else ""
                mark = "" if outcome == "applied" else f" [{outcome}]"
                cli.printer.raw(f"{at} {position} {event['job']} {kind}{told_by}{mark} {details}".rstrip())
            told += 1
            if count and told >= count:
                return
