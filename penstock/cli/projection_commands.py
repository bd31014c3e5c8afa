"""``penstock projection rebuild``: the read model's folder built anew from the log."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from penstock.cli.context import Cli, DataFolder, LogUrl, Output, cli_of
from penstock.cli.opening import existing_log
from penstock.schemas.errors import Conflict
from penstock.state.partition_store import StoreIdentity

if TYPE_CHECKING:
    from penstock.projections.rebuild import Rebuilt


def rebuild(
    ctx: typer.Context,
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="An empty folder; else the one that the projection uses is replaced."
        ),
    ] = None,
    output: Output = None,
    log: LogUrl = None,
    data: DataFolder = None,
) -> None:
    """Fold the whole log into a folder anew, and print the digests. An embedded log must not be in use."""
    from penstock.cli.folders import PROJECTION

    cli = cli_of(ctx, output, log=log, data=data)
    folder = into or PROJECTION.path(cli.settings.data)
    if into is not None and into.exists() and any(into.iterdir()):
        raise Conflict(f"{into} is not empty")
    found = asyncio.run(_rebuild(cli, folder, replace=into is None))
    if cli.printer.json:
        cli.printer.value(
            {"folder": str(folder), "partitions": [msgspec.structs.asdict(part) for part in found]}
        )
        return
    columns = ("partition", "next_offset", "accepted", "refused", "quarantined", "digest")
    cli.printer.table(columns, ([getattr(part, name) for name in columns] for part in found))
    cli.printer.text(f"rebuilt into {folder}")


async def _rebuild(cli: Cli, folder: Path, *, replace: bool) -> list[Rebuilt]:
    from penstock.cli.folders import PROJECTION
    from penstock.projections.rebuild import rebuild_partition
    from penstock.projections.service import projection_store

    target = folder.with_name(f"{folder.name}.rebuilding") if replace else folder
    async with existing_log(cli.settings) as (log, namespace):
        topics = namespace.topics
        if replace:
            for partition in range(topics.partitions):
                # A projection that runs on the folder holds its lock: it must not lose it under its feet.
                identity = StoreIdentity(
                    log.cluster_id, topics.jobs, partition, topics.partitions, namespace.generation
                )
                if PROJECTION.exists(cli.settings.data, partition):
                    projection_store(folder, identity).close()
            shutil.rmtree(target, ignore_errors=True)
        found = [
            await rebuild_partition(log, topics, partition, target, generation=namespace.generation)
            for partition in range(topics.partitions)
        ]
    if replace:
        shutil.rmtree(folder, ignore_errors=True)
        target.rename(folder)
    return found
