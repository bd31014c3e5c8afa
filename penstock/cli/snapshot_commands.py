"""``penstock snapshot``: copies of the roles' states outside the machine; looked at, taken and restored by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from penstock.cli.context import Cli, DataFolder, LogUrl, Output, cli_of
from penstock.schemas.errors import InvalidField, NotFound

if TYPE_CHECKING:
    from penstock.cli.snapshotting import SnapshotRow

app = typer.Typer(help="Snapshots of the roles' states in a store of objects.", no_args_is_help=True)

KindName = Literal["projection", "orchestrator", "node"]

SnapshotsUrl = Annotated[
    str | None,
    typer.Option(
        "--snapshots",
        metavar="URL",
        help="A folder, or s3://bucket/prefix; else PENSTOCK_SNAPSHOTS.",
        show_default=False,
    ),
]
OneKind = Annotated[KindName | None, typer.Option("--kind", help="Only this role's.", show_default=False)]
OnePartition = Annotated[
    int | None, typer.Option("--partition", min=0, help="Only this partition's.", show_default=False)
]


_COLUMNS = (
    "kind", "partition", "snapshot", "outcome", "next_offset", "created_at", "size_bytes", "version", "reason",
)  # fmt: skip


def _show(cli: Cli, rows: Sequence[SnapshotRow], empty: str) -> None:
    if cli.printer.json:
        cli.printer.value({"snapshots": [msgspec.structs.asdict(row) for row in rows]})
    else:
        cli.printer.table(_COLUMNS, ([getattr(row, name) for name in _COLUMNS] for row in rows), empty)


@app.command("list")
def list_snapshots(
    ctx: typer.Context,
    kind: OneKind = None,
    partition: OnePartition = None,
    snapshots: SnapshotsUrl = None,
    output: Output = None,
) -> None:
    """List what is there. ``latest`` is restored first; what is ``damaged`` is passed over."""
    from penstock.cli.snapshotting import list_all

    cli = cli_of(ctx, output, snapshots=snapshots)
    _show(cli, asyncio.run(list_all(cli.settings, kind, partition)), "there are no snapshots")


@app.command("create")
def create_snapshots(
    ctx: typer.Context,
    kind: OneKind = None,
    partition: OnePartition = None,
    snapshots: SnapshotsUrl = None,
    output: Output = None,
    log: LogUrl = None,
    data: DataFolder = None,
) -> None:
    """Take snapshots of the folders under PENSTOCK_DATA, whose roles must be stopped: running ones take their own."""
    from penstock.cli.snapshotting import create

    cli = cli_of(ctx, output, snapshots=snapshots, log=log, data=data)
    rows = asyncio.run(create(cli.settings, kind, partition))
    if not rows:
        raise NotFound(f"there is no state to take a snapshot of in {cli.settings.data}")
    _show(cli, rows, "")


@app.command("restore")
def restore_snapshots(
    ctx: typer.Context,
    kind: OneKind = None,
    partition: OnePartition = None,
    snapshot: Annotated[
        str, typer.Option("--snapshot", metavar="NAME", help="This one, and not the newest that fits.")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also where the folder is as far as the snapshot, or further.")
    ] = False,
    snapshots: SnapshotsUrl = None,
    output: Output = None,
    log: LogUrl = None,
    data: DataFolder = None,
) -> None:
    """Put snapshots into the folders under PENSTOCK_DATA. Roles that start without a folder do so by themselves."""
    from penstock.cli.snapshotting import restore

    cli = cli_of(ctx, output, snapshots=snapshots, log=log, data=data)
    if snapshot and (kind is None or partition is None):
        raise InvalidField("--snapshot names one of one --kind and --partition", field="snapshot")
    rows = asyncio.run(restore(cli.settings, kind, partition, snapshot, force=force))
    if not rows:
        raise NotFound("there is no snapshot to restore")
    _show(cli, rows, "")
    refused = [row for row in rows if row.outcome == "refused"]
    if refused:
        reasons = "; ".join(f"{row.kind} {row.partition}: {row.reason or 'none is whole'}" for row in refused)
        raise NotFound(f"no snapshot fits: {reasons}")


@app.command("prune")
def prune_snapshots(
    ctx: typer.Context,
    kind: OneKind = None,
    partition: OnePartition = None,
    keep: Annotated[
        int | None, typer.Option(min=1, help="How many to keep of each; else PENSTOCK_SNAPSHOT_KEEP.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Keep none: for a --kind of role that runs no more.")
    ] = False,
    snapshots: SnapshotsUrl = None,
    output: Output = None,
) -> None:
    """Remove the oldest snapshots, and files that none names any more and no upload can be about to name."""
    from penstock.cli.snapshotting import prune

    cli = cli_of(ctx, output, snapshots=snapshots)
    if everything and (kind is None or keep is not None):
        raise InvalidField("--all needs a --kind, and no --keep", field="all")
    found = asyncio.run(prune(cli.settings, kind, partition, keep, everything=everything))
    if cli.printer.json:
        cli.printer.value({"partitions": found})
        return
    columns = ("kind", "partition", "snapshots", "files", "freed_bytes")
    rows = ([len(row[name]) if name == "snapshots" else row[name] for name in columns] for row in found)
    cli.printer.table(columns, rows, "there are no snapshots")
