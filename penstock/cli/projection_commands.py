"""``penstock projection``: the role itself, and building its folder anew from the log."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli.context import Cli, DataFolder, LogUrl, Output, cli_of
from penstock.cli.folders import PROJECTION
from penstock.cli.opening import existing_log
from penstock.log.namespace import Namespace
from penstock.log.port import Log
from penstock.projections.service import ProjectionService
from penstock.schemas.errors import Conflict, PenstockError
from penstock.schemas.position import Position

CATCH_UP_MS = 2_000


def rebuild(
    ctx: typer.Context,
    into: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="An empty folder; else the one that the projection uses."),
    ] = None,
    output: Output = None,
    log: LogUrl = None,
    data: DataFolder = None,
) -> None:
    """Fold the whole log into a folder anew, and print the digests.

    An embedded log must not be in use. Without --into the projection's own folder is replaced when the new one is whole.
    """
    cli = cli_of(ctx, output, log=log, data=data)
    folder = into or PROJECTION.path(cli.settings.data)
    if into is not None and into.exists() and any(into.iterdir()):
        raise Conflict(f"{into} is not empty")
    target = folder if into is not None else folder.with_name(f"{folder.name}.rebuilding")
    statuses = asyncio.run(_rebuild(cli, target))
    if into is None:
        _replace(folder, target)
    if cli.printer.json:
        cli.printer.value({"folder": str(folder), "partitions": statuses})
        return
    columns = ("partition", "next_offset", "accepted", "refused", "quarantined", "digest")
    cli.printer.table(columns, ([status[name] for name in columns] for status in statuses))
    cli.printer.text(f"rebuilt into {folder}")


async def _rebuild(cli: Cli, folder: Path) -> list[dict[str, Any]]:
    async with existing_log(cli.settings) as (log, namespace):
        _remove(folder)
        return await fold_into(log, namespace, folder)


async def fold_into(log: Log, namespace: Namespace, folder: Path) -> list[dict[str, Any]]:
    """Fold all that the log has now into ``folder``; status by partition.

    Raises:
        PenstockError: why the fold ended early.
    """
    topics = namespace.topics
    ends = {
        partition: (await log.bounds(topics.jobs, partition)).end for partition in range(topics.partitions)
    }
    positions = {partition: Position(partition, end - 1, 0) for partition, end in ends.items() if end > 0}
    async with ProjectionService(log, topics, folder, generation=namespace.generation) as service:
        while positions:
            if service.failure.done():
                raise service.failure.exception() or PenstockError("The fold ended by itself.")
            if all(service.offsets[partition] > position.offset for partition, position in positions.items()):
                break
            await asyncio.sleep(0.02)
        found = await service.status()
    return [{name: getattr(status, name) for name in status.__struct_fields__} for status in found]


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _replace(folder: Path, rebuilt: Path) -> None:
    _remove(folder)
    rebuilt.rename(folder)
