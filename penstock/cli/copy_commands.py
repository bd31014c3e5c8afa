"""``penstock log copy`` and ``penstock log compare``: a log taken elsewhere, and proof that nothing was lost."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.context import Cli, Output, cli_of
from penstock.cli.settings import Settings, log_url
from penstock.schemas.errors import SettingsInvalid

if TYPE_CHECKING:
    from penstock.cli.copy_running import CopyReport, Side
    from penstock.state.copy_compare import Comparison, JobTotals

FOLDER = "folder:"


def _log(value: str) -> str:
    try:
        return log_url(value)
    except ValueError as error:
        raise typer.BadParameter(f"{value!r} {error}") from error


def _log_or_folder(value: str) -> str:
    return value if value.startswith(FOLDER) else _log(value)


Namespace = Annotated[str | None, typer.Option(metavar="NAME", show_default=False)]
Work = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where to fold meanwhile; else the system's folder for such files."),
]


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``, which is ``penstock log``."""
    app.command()(copy)
    app.command()(compare)


def _settings(ctx: typer.Context, log: str, namespace: str | None, partitions: int | None = None) -> Settings:
    return cli_of(ctx, log=log, namespace=namespace, partitions=partitions).settings


def copy(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Option("--from", metavar="URL", callback=_log, help="embedded:PATH or kafka://host:port,..."),
    ],
    target: Annotated[
        str, typer.Option("--to", metavar="URL", callback=_log, help="As --from; may be the same log.")
    ],
    partitions: Annotated[
        int | None, typer.Option(min=1, max=1_024, help="Of the copy's jobs topic.", show_default=False)
    ] = None,
    from_namespace: Namespace = None,
    to_namespace: Namespace = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on copying what comes, until stopped; do not seal.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be copied.")] = False,
    work: Work = None,
    output: Output = None,
) -> None:
    """Copy a log to another number of partitions, another namespace, or another kind of log.

    Stop all roles of the source first, or copy with --follow until they are. Started again, it goes on where it was.
    """
    from penstock.cli.copy_running import Wanted, copy_log, must_be_same, working_folder

    cli = cli_of(ctx, output)
    one = _settings(ctx, source, from_namespace)
    other = _settings(ctx, target, to_namespace, partitions)
    if follow and one.is_embedded:
        raise SettingsInvalid(
            "--follow is for a log on a cluster: nobody can write to an embedded log meanwhile"
        )
    if follow and dry_run:
        raise SettingsInvalid("--follow and --dry-run: give one of them")
    with working_folder(work) as folder:
        report = asyncio.run(copy_log(one, other, folder, Wanted(dry_run=dry_run, follow=follow)))
    _print_copy(cli, report, dry_run)
    if report.comparison is not None:
        must_be_same(report.comparison)


def _print_copy(cli: Cli, report: CopyReport, dry_run: bool) -> None:
    comparison = report.comparison
    if cli.printer.json:
        cli.printer.value(
            {
                "sealed": report.sealed,
                "generation": report.generation,
                "behind_records": report.behind,
                "partitions": [
                    {
                        "partition": n,
                        "found": report.found[n],
                        "lines": report.lines[n],
                        "records": report.records[n],
                    }
                    for n in sorted(report.lines)
                ],
                "source": _plain(report.source),
                "copy": None if comparison is None else _plain(comparison.b),
            }
        )
        return
    columns = ("partition", "lines there before", "lines copied", "in records")
    rows = [(n, report.found[n], report.lines[n], report.records[n]) for n in sorted(report.lines)]
    cli.printer.table(columns, rows)
    if comparison is not None:
        _print_states(cli, comparison, "source", "copy")
    if report.sealed:
        cli.printer.text(f"Sealed as generation {report.generation}: the copy is complete, and can be used.")
    elif dry_run:
        cli.printer.text(f"{report.source.jobs} jobs. Nothing was written.")
    elif comparison is None:
        cli.printer.text(
            f"{report.behind} records behind. Not sealed: stop all roles of the source, and copy without --follow."
        )


def _plain(totals: JobTotals) -> dict[str, Any]:
    groups = [
        {"state": state, "queue": queue, "type": kind, "jobs": jobs}
        for (state, queue, kind), jobs in totals.groups.items()
    ]
    return {"jobs": totals.jobs, "digest": totals.digest, "states": totals.by_state(), "groups": groups}


def _print_states(cli: Cli, comparison: Comparison, a: str, b: str) -> None:
    one, other = comparison.a.by_state(), comparison.b.by_state()
    rows: list[tuple[str, int, int]] = [(state, one[state], other[state]) for state in sorted({*one, *other})]
    cli.printer.table(("state", a, b), [*rows, ("all", comparison.a.jobs, comparison.b.jobs)])
    cli.printer.fields([(f"digest of {a}", comparison.a.digest), (f"digest of {b}", comparison.b.digest)])


def compare(
    ctx: typer.Context,
    a: Annotated[
        str,
        typer.Option(
            "--a",
            metavar="WHAT",
            callback=_log_or_folder,
            help="embedded:PATH, kafka://host:port,... or folder:DIR of a role.",
        ),
    ],
    b: Annotated[str, typer.Option("--b", metavar="WHAT", callback=_log_or_folder, help="As --a.")],
    a_namespace: Namespace = None,
    b_namespace: Namespace = None,
    work: Work = None,
    output: Output = None,
) -> None:
    """Compare all jobs of two logs or read models, however many partitions they have. Exit code 7 where they differ."""
    from penstock.cli.copy_running import must_be_same, working_folder

    cli = cli_of(ctx, output)
    with working_folder(work) as folder:
        comparison, offsets = asyncio.run(_compared(ctx, (a, a_namespace), (b, b_namespace), folder))
    _print_comparison(cli, comparison, offsets)
    must_be_same(comparison)


async def _compared(
    ctx: typer.Context, a: tuple[str, str | None], b: tuple[str, str | None], folder: Path
) -> tuple[Comparison, list[dict[int, int]]]:
    from penstock.state.copy_compare import compare as compare_jobs

    async with contextlib.AsyncExitStack() as stack:
        sides: list[Side] = []
        for number, (what, namespace) in enumerate((a, b)):
            sides.append(await _enter(stack, ctx, what, namespace, folder / str(number)))
        return compare_jobs(sides[0].parts, sides[1].parts), [side.offsets for side in sides]


async def _enter(
    stack: contextlib.AsyncExitStack, ctx: typer.Context, what: str, namespace: str | None, folder: Path
) -> Side:
    from penstock.cli.copy_running import side_of, stored_side

    if what.startswith(FOLDER):
        return stack.enter_context(stored_side(Path(what.removeprefix(FOLDER))))
    return await stack.enter_async_context(side_of(_settings(ctx, what, namespace), folder))


def _print_comparison(cli: Cli, comparison: Comparison, offsets: list[dict[int, int]]) -> None:
    difference = comparison.difference
    if cli.printer.json:
        first = None
        if difference is not None:
            first = {
                "job": difference.key,
                "a": difference.a is not None,
                "b": difference.b is not None,
                "fields": {name: [str(a), str(b)] for name, (a, b) in difference.fields().items()},
            }
        cli.printer.value(
            {
                "same": comparison.same,
                "a": {**_plain(comparison.a), "next_offsets": offsets[0]},
                "b": {**_plain(comparison.b), "next_offsets": offsets[1]},
                "first_difference": first,
            }
        )
        return
    _print_states(cli, comparison, "a", "b")
    one, other = comparison.a.groups, comparison.b.groups
    groups = [group for group in sorted({*one, *other}) if one.get(group) != other.get(group)]
    if groups:
        rows = [(*group, one.get(group, 0), other.get(group, 0)) for group in groups]
        cli.printer.table(("state", "queue", "type", "a", "b"), rows)
    if offsets[0] != offsets[1] and not comparison.same and len(offsets[0]) == len(offsets[1]):
        cli.printer.text("They do not stand at the same offsets, which may be all that differs.")
    if comparison.same:
        cli.printer.text("All jobs are the same.")
