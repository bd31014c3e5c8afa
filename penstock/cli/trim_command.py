"""``penstock log trim``: let go, on the log, of what the archive has."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.context import Cli, DataFolder, LogUrl, Output, cli_of
from penstock.cli.opening import existing_log
from penstock.cli.times import time_ms_of
from penstock.schemas.errors import InvalidField, SettingsInvalid, TrimRefused

if TYPE_CHECKING:
    from penstock.state.trimming import TrimPlan


def trim(
    ctx: typer.Context,
    before: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Only what is older than this (RFC 3339); else PENSTOCK_TRIM_AFTER. With neither, age is no limit.",
        ),
    ] = "",
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    output: Output = None,
    log: LogUrl = None,
    data: DataFolder = None,
) -> None:
    """Remove from the jobs log what is archived, old enough (--before), and folded into every kept snapshot.

    What goes is first read back from the archive, whole. History, exports and folds go on to find it there. Exit code 5
    when nothing may go, and --dry-run was not given.
    """
    import asyncio

    cli = cli_of(ctx, output, log=log, data=data)
    if not cli.settings.archive:
        raise SettingsInvalid("nothing is trimmed without an archive: PENSTOCK_ARCHIVE says where it is")
    before_ms = time_ms_of("before", before)
    if before_ms is None and cli.settings.trim_after is not None:
        before_ms = time.time_ns() // 1_000_000 - cli.settings.trim_after
    plans = asyncio.run(_trim(cli, partition, before_ms, dry_run=dry_run))
    _show(cli, plans, dry_run=dry_run)
    if not any(plan.records for plan in plans) and not dry_run:
        reasons = "; ".join(f"partition {plan.partition}: {_reasons(plan)}" for plan in plans)
        raise TrimRefused(f"nothing was trimmed: {reasons}")


async def _trim(cli: Cli, only: int | None, before_ms: int | None, *, dry_run: bool) -> list[TrimPlan]:
    from penstock.cli.archiving import archived, snapshots_of
    from penstock.state.trimming import Trimming

    plans: list[TrimPlan] = []
    async with existing_log(cli.settings) as (log, namespace):
        topics = namespace.topics
        if only is not None and only >= topics.partitions:
            raise InvalidField(
                f"--partition: there are partitions 0 to {topics.partitions - 1}", field="partition"
            )
        trimming = Trimming(archived(log), topics, snapshots_of(cli.settings))
        for number in range(topics.partitions) if only is None else (only,):
            plan = await trimming.plan(number, before_ms=before_ms)
            plans.append(plan)
            if plan.records and not dry_run:
                _say(f"partition {number}: reading {plan.records} offsets back from the archive")
                await trimming.trim(plan)
    return plans


def _say(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"penstock: {text}\n")


def _reasons(plan: TrimPlan) -> str:
    return "; ".join(limit.reason for limit in plan.obstacles) or "there is nothing"


def _show(cli: Cli, plans: list[TrimPlan], *, dry_run: bool) -> None:
    if cli.printer.json:
        cli.printer.value({"dry_run": dry_run, "partitions": [_plain(plan) for plan in plans]})
        return
    columns = ("partition", "from", "to", "offsets", "the rest stays because")
    cli.printer.table(
        columns,
        ([plan.partition, plan.start, plan.before, plan.records, _reasons(plan)] for plan in plans),
    )
    total = sum(plan.records for plan in plans)
    cli.printer.text(f"{total} offsets {'would go' if dry_run else 'went'}")


def _plain(plan: TrimPlan) -> dict[str, Any]:
    return {
        "partition": plan.partition,
        "start": plan.start,
        "before": plan.before,
        "end": plan.end,
        "offsets": plan.records,
        "limits": [
            {"name": limit.name, "offset": limit.offset, "reason": limit.reason} for limit in plan.limits
        ],
    }
