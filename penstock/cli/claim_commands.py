"""``penstock claims``: bodies that lie beside the log."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.context import Output, Server, cli_of
from penstock.cli.settings import duration_ms
from penstock.schemas.errors import InvalidField
from penstock.schemas.limits import MAX_DURATION_MS, MIN_SWEPT_AGE_MS

app = typer.Typer(help="Payloads and results that lie beside the log.", no_args_is_help=True)


@app.callback()
def claims() -> None:
    """Payloads and results that lie beside the log."""


@app.command()
def sweep(
    ctx: typer.Context,
    older_than: Annotated[
        str, typer.Option(help="Look at what is at least so old: 7d, 12h. No less than an hour.")
    ] = "7d",
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; else it is only counted.")] = False,
    output: Output = None,
    server: Server = None,
) -> None:
    """Find bodies of jobs that are forgotten or never began, and delete them."""
    try:
        age_ms = duration_ms(older_than)
    except ValueError as error:
        raise InvalidField(f"--older-than: {error}", field="older_than") from error
    if age_ms is None:
        raise InvalidField("--older-than: give an age", field="older_than")
    if not MIN_SWEPT_AGE_MS <= age_ms <= MAX_DURATION_MS:
        least_h, most_d = MIN_SWEPT_AGE_MS // 3_600_000, MAX_DURATION_MS // 86_400_000
        raise InvalidField(
            f"--older-than: must be {least_h}h to {most_d}d: a job may yet begin with what is younger",
            field="older_than",
        )
    cli = cli_of(ctx, output, server=server)
    with cli.client() as client:
        swept = client.sweep_claims(age_ms, dry_run=not delete)
    if cli.printer.json:
        cli.printer.value(swept)
        return
    done = "deleted" if swept["deleted"] else "to be deleted with --delete"
    cli.printer.text(
        f"{swept['objects']} bodies of {swept['jobs']} jobs, {swept['size_bytes']} bytes: {done}"
    )
