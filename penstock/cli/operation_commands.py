"""``penstock operations``: changing many jobs at once."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from penstock.cli.context import Cli, Output, Server, cli_of
from penstock.cli.search_commands import FilterOption, Several, filter_of
from penstock.client.calls import Json
from penstock.schemas.errors import PenstockError

app = typer.Typer(help="Change many jobs at once.", no_args_is_help=True)

OperationArgument = Annotated[str, typer.Argument(metavar="OPERATION", help="Id of the operation.")]
_COLUMNS = ("id", "action", "state", "matched", "total", "outcomes", "created_at", "finished_at")


class OperationFailed(PenstockError):
    """The operation did not come to its end."""


@app.command()
def start(
    ctx: typer.Context,
    action: Annotated[
        str, typer.Argument(help="retry, cancel, delete, move, hold, unhold, priority or requeue.")
    ],
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[JOB]...", help="Ids of the jobs, or a filter.")
    ] = None,
    state: Several = None,
    queue: Several = None,
    job_type: Annotated[list[str] | None, typer.Option("--type", help="May be given more than once.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; all that are given must be there.")] = None,
    batch: Several = None,
    workflow: Several = None,
    error: Annotated[str | None, typer.Option(help="What an error's code or message contains.")] = None,
    filter_json: FilterOption = None,
    all_jobs: Annotated[bool, typer.Option("--all", help="Every job; else a filter must say which.")] = False,
    to_queue: Annotated[str | None, typer.Option(help="move: into this queue.")] = None,
    to_pool: Annotated[str | None, typer.Option(help="move: into this pool.")] = None,
    to_priority: Annotated[str | None, typer.Option(help="priority: critical, high, normal or low.")] = None,
    attempts: Annotated[int | None, typer.Option(help="retry: how many more.")] = None,
    reason: Annotated[str | None, typer.Option(help="cancel, hold: why, for the history.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be changed.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    wait_timeout_ms: Annotated[int, typer.Option(min=0, help="How long --wait waits.")] = 600_000,
    output: Output = None,
    server: Server = None,
) -> None:
    """Begin to change many jobs: by their ids, or by a filter."""
    cli = cli_of(ctx, output, server=server)
    wanted = filter_of(
        filter_json, state=state, queue=queue, type=job_type, tags=tag, batch=batch, workflow=workflow,
        error_contains=error,
    )  # fmt: skip
    if not ids and not wanted and not all_jobs:
        raise typer.BadParameter("say which jobs: ids, a filter, or --all")
    if ids and (wanted or all_jobs):
        raise typer.BadParameter("give either ids or a filter")
    args = {
        "queue": to_queue, "pool": to_pool, "priority": to_priority, "attempts": attempts, "reason": reason
    }  # fmt: skip
    with cli.client() as client:
        found = client.operate(
            action, ids=ids or None, filter=None if ids else wanted, args=args, dry_run=dry_run
        )
        if wait:
            found = client.operation(found["id"], wait_timeout_ms)
    _print(cli, found)
    if wait and found["state"] != "succeeded":
        raise OperationFailed(f"operation {found['id']} is {found['state']}")


@app.command("list")
def list_operations(ctx: typer.Context, output: Output = None, server: Server = None) -> None:
    """The newest operations."""
    cli = cli_of(ctx, output, server=server)
    with cli.client() as client:
        found = client.resource("operations")
    if cli.printer.json:
        cli.printer.value(found)
        return
    cli.printer.table(_COLUMNS, (_row(one) for one in found["items"]), "no operations")


@app.command()
def get(
    ctx: typer.Context,
    operation: OperationArgument,
    wait_timeout_ms: Annotated[int, typer.Option(min=0, help="How long to wait for its end.")] = 0,
    output: Output = None,
    server: Server = None,
) -> None:
    """Show an operation and how far it is."""
    cli = cli_of(ctx, output, server=server)
    with cli.client() as client:
        _print(cli, client.operation(operation, wait_timeout_ms))


@app.command()
def items(
    ctx: typer.Context,
    operation: OperationArgument,
    outcome: Annotated[str, typer.Option(help="Only jobs with this outcome.")] = "",
    output: Output = None,
    server: Server = None,
) -> None:
    """What became of each job of an operation, by job id."""
    cli = cli_of(ctx, output, server=server)
    with cli.client() as client:
        found = [item for item in client.operation_items(operation) if outcome in ("", item["outcome"])]
    if cli.printer.json:
        cli.printer.value(found)
        return
    columns = ("job", "outcome", "reason", "at")
    cli.printer.table(columns, ([item[name] for name in columns] for item in found), "no jobs")


@app.command()
def cancel(
    ctx: typer.Context, operation: OperationArgument, output: Output = None, server: Server = None
) -> None:
    """Stop an operation; what it has changed stays."""
    cli = cli_of(ctx, output, server=server)
    with cli.client() as client:
        _print(cli, client.cancel_operation(operation))


def _print(cli: Cli, found: Json) -> None:
    if cli.printer.json:
        cli.printer.value(found)
    else:
        cli.printer.fields((name, _cell(found[name])) for name in _COLUMNS)


def _row(found: Json) -> list[Any]:
    return [_cell(found[name]) for name in _COLUMNS]


def _cell(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return " ".join(f"{name}={jobs}" for name, jobs in sorted(cast("dict[str, int]", value).items()))
