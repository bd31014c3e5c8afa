"""``penstock archive``: keep the archive of the jobs log, look at it, and prove it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from penstock.cli.context import Cli, DataFolder, LogUrl, Output, cli_of
from penstock.cli.job_commands import history_row
from penstock.cli.logs import set_up
from penstock.cli.opening import archive_of, existing_log
from penstock.schemas.errors import JobNotFound, NotFound
from penstock.schemas.ids import job_key, partition_of
from penstock.schemas.times import time_text

if TYPE_CHECKING:
    from penstock.cli.roles import Service
    from penstock.log.archive import Verified
    from penstock.log.archive_format import Manifest
    from penstock.log.archive_history import ArchivedHistory

app = typer.Typer(help="The archive of the jobs log in a store of objects.", no_args_is_help=True)

ArchiveUrl = Annotated[
    str | None,
    typer.Option(
        "--archive",
        metavar="URL",
        help="A folder, or s3://bucket/prefix; else PENSTOCK_ARCHIVE.",
        show_default=False,
    ),
]
OnePartition = Annotated[int | None, typer.Option("--partition", min=0, help="Only this partition.")]
TENANT = "default"


@app.command("run")
def run_archiver(
    ctx: typer.Context,
    once: Annotated[
        bool, typer.Option("--once", help="Archive all there is, however young, and end.")
    ] = False,
    archive: ArchiveUrl = None,
    output: Output = None,
    log: LogUrl = None,
    data: DataFolder = None,
) -> None:
    """Copy the jobs log into the archive. Roles with a read model do so by themselves where PENSTOCK_ARCHIVE is set."""
    cli = cli_of(ctx, output, archive=archive, log=log, data=data)
    if once:
        asyncio.run(_archive_all(cli))
        return
    from penstock.cli import composition
    from penstock.cli.archiving import archived, archiver_of
    from penstock.cli.roles import run

    set_up(cli.settings.log_level, cli.settings.log_format)

    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        opened = await composition.start_log(stack, cli.settings)
        archiver = archiver_of(cli.settings, archived(opened.log), opened.namespace, alone=True)
        await stack.enter_async_context(archiver)
        sys.stdout.write(f"archiving into {cli.settings.archive}\n")
        sys.stdout.flush()
        return [opened.watch, archiver]

    run(compose)


async def _archive_all(cli: Cli) -> None:
    from penstock.cli.archiving import archived, archiver_of

    async with existing_log(cli.settings) as (log, namespace):
        archiver = archiver_of(cli.settings, archived(log), namespace, alone=True)
        await archiver.round(everything=True)
    numbers = archiver.numbers
    if cli.printer.json:
        cli.printer.value(msgspec.structs.asdict(numbers))
    else:
        cli.printer.text(
            f"{numbers.records} records in {numbers.segments} segments, {numbers.stored_bytes} bytes"
        )


@app.command("list")
def list_segments(
    ctx: typer.Context, partition: OnePartition = None, archive: ArchiveUrl = None, output: Output = None
) -> None:
    """List what is archived, segment by segment."""
    cli = cli_of(ctx, output, archive=archive)
    found = asyncio.run(_manifests(cli, partition))
    if cli.printer.json:
        cli.printer.value([_described(manifest) for manifest in found])
        return
    columns = ("partition", "from", "to", "records", "lines", "bytes", "stored", "first", "last")
    cli.printer.table(columns, (_row(manifest) for manifest in found), "nothing is archived")


async def _manifests(cli: Cli, partition: int | None) -> list[Manifest]:
    archive = archive_of(cli.settings, must_exist=True)
    return [
        await archive.manifest(segment)
        for number in _partitions(cli, partition)
        for segment in await archive.segments(number)
    ]


def _partitions(cli: Cli, only: int | None) -> Sequence[int]:
    return range(cli.settings.topics.partitions) if only is None else [only]


def _row(manifest: Manifest) -> list[Any]:
    return [
        manifest.partition,
        manifest.first_offset,
        manifest.next_offset,
        manifest.records,
        manifest.lines,
        manifest.value_bytes,
        manifest.data.size_bytes + manifest.index.size_bytes,
        time_text(manifest.first_time_ms),
        time_text(manifest.last_time_ms),
    ]


def _described(manifest: Manifest) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(manifest)
    fields["blocks"] = len(manifest.blocks)
    return fields


@app.command("verify")
def verify_archive(
    ctx: typer.Context, partition: OnePartition = None, archive: ArchiveUrl = None, output: Output = None
) -> None:
    """Read the archive back whole and compute its hash chain anew. Exit code 7 when it is not what was written, 4 when
    nothing is archived."""
    cli = cli_of(ctx, output, archive=archive)
    found = asyncio.run(_verify(cli, partition))
    if not found:
        what = cli.settings.topics.jobs if partition is None else f"{cli.settings.topics.jobs}-{partition}"
        raise NotFound(f"Nothing of {what} is archived in {cli.settings.archive!r}.")
    if cli.printer.json:
        cli.printer.value([msgspec.structs.asdict(one) for one in found])
        return
    columns = ("partition", "from", "to", "segments", "records", "lines", "log digest")
    cli.printer.table(
        columns,
        (
            [
                one.partition,
                one.first_offset,
                one.next_offset,
                one.segments,
                one.records,
                one.lines,
                one.digest,
            ]
            for one in found
        ),
    )


async def _verify(cli: Cli, partition: int | None) -> list[Verified]:
    archive = archive_of(cli.settings, must_exist=True)
    found = [await archive.verify(number) for number in _partitions(cli, partition)]
    return [one for one in found if one is not None]


@app.command("history")
def archived_history(
    ctx: typer.Context,
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    archive: ArchiveUrl = None,
    output: Output = None,
    log: LogUrl = None,
    data: DataFolder = None,
) -> None:
    """Show every archived line about a job, also of one that was forgotten long ago, and what became of each.

    With --log or --data, also what stands on the log and is not archived yet.
    """
    cli = cli_of(ctx, output, archive=archive, log=log, data=data)
    items = asyncio.run(_history(cli, job))
    if cli.printer.json:
        cli.printer.value(items)
        return
    cli.printer.table(
        ("position", "at", "event", "actor", "outcome", "details"),
        (history_row(msgspec.json.decode(item)) for item in items),
    )


async def _history(cli: Cli, job: str) -> list[msgspec.Raw]:
    from penstock.api.jobs import flat_item
    from penstock.projections.archived import archived_items

    partition = partition_of(job, cli.settings.topics.partitions)
    found = await _lines(cli, partition, job_key(TENANT, job))
    if found is None:
        raise JobNotFound(f"there is nothing about the job {job!r} in the archive")
    return [flat_item(item) for item in archived_items(found.lines, partition)]


async def _lines(cli: Cli, partition: int, key: str) -> ArchivedHistory | None:
    from penstock.log import archive_history

    partitions = cli.settings.topics.partitions
    if not cli.flags & {"log", "data"}:
        return await archive_history.archived_history(
            archive_of(cli.settings, must_exist=True), partition, partitions, key
        )
    from penstock.cli.archiving import archived

    async with existing_log(cli.settings) as (log, _):
        return await archive_history.whole_history(archived(log), partition, partitions, key)
