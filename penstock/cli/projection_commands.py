"""``penstock projection rebuild``: the read model's folder built anew from the log."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from penstock.cli.context import Cli, DataFolder, LogUrl, Output, cli_of
from penstock.cli.opening import existing_log
from penstock.schemas.errors import Conflict, InvalidField

if TYPE_CHECKING:
    from penstock.cli.folders import FolderKind


def rebuild(
    ctx: typer.Context,
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="An empty folder; else the one that the projection uses is replaced."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is served even if its digests are not the log's.")
    ] = False,
    output: Output = None,
    log: LogUrl = None,
    data: DataFolder = None,
) -> None:
    """Fold the whole log anew, compare with what is served, and replace it. An embedded log must not be in use.

    A projection that runs goes on with what it has and takes the rebuilt one when it starts again.
    """
    from penstock.cli.folders import NODE, PROJECTION

    cli = cli_of(ctx, output, log=log, data=data)
    kind = NODE if into is None and NODE.path(cli.settings.data).is_dir() else PROJECTION
    folder = into or kind.path(cli.settings.data)
    if into is not None and into.exists() and any(into.iterdir()):
        raise Conflict(f"{into} is not empty")
    if into is not None and force:
        raise InvalidField("--into and --force: nothing is replaced there", field="force")
    rows = asyncio.run(_fold_into(cli, kind, folder) if into else _replace(cli, kind, folder, force=force))
    if cli.printer.json:
        cli.printer.value({"folder": str(folder), "partitions": rows})
        return
    columns = ["partition", "next_offset", "accepted", "refused", "quarantined", "digest"]
    columns += ["compared", "swapped"] if into is None else []
    cli.printer.table(columns, ([row[name] for name in columns] for row in rows))
    waiting = any(row.get("swapped") == "at_next_start" for row in rows)
    later = ", which its process takes when it starts again" if waiting else ""
    cli.printer.text(f"rebuilt into {folder}{later}")


async def _fold_into(cli: Cli, kind: FolderKind, folder: Path) -> list[dict[str, Any]]:
    from penstock.projections.rebuild import rebuild_partition

    async with existing_log(cli.settings) as (log, namespace):
        return [
            msgspec.structs.asdict(
                await rebuild_partition(
                    log,
                    namespace.topics,
                    partition,
                    folder,
                    generation=namespace.generation,
                    open_store=kind.open,
                )
            )
            for partition in cli.settings.folded
        ]


async def _replace(cli: Cli, kind: FolderKind, folder: Path, *, force: bool) -> list[dict[str, Any]]:
    from penstock.projections.beside import Rebuild
    from penstock.state.snapshots_restoring import StateKind

    async with existing_log(cli.settings) as (log, namespace):
        replaced = await Rebuild(
            log,
            namespace.topics,
            folder,
            StateKind(kind.name, kind.families, kind.layout),
            lambda below, partition: below / f"{kind.prefix}{partition}",
            kind.open,
            partitions=cli.settings.folded,
            generation=namespace.generation,
            force=force,
        ).run()
    return [
        {**msgspec.structs.asdict(one.rebuilt), "compared": one.compared, "swapped": one.swapped}
        for one in replaced
    ]
