"""``penstock jobs cancel | retry | clone | ...``: changing jobs that are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from penstock.cli.context import Cli, Output, Server, cli_of
from penstock.cli.job_commands import JobIdArgument, payload_of, print_job
from penstock.client.calls import Json
from penstock.client.requests import CloneOptions
from penstock.schemas.errors import PenstockError
from penstock.schemas.events import Priority

if TYPE_CHECKING:
    from penstock.client.http import Client

JobIds = Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids of the jobs.")]
Reason = Annotated[str, typer.Option(help="Why, for the history.")]


def register(jobs: typer.Typer) -> None:
    """Add these commands to the group ``jobs``."""
    for command in (cancel, retry, reschedule, priority, move, hold, unhold, delete, clone):
        jobs.command()(command)


def _change(cli: Cli, job_ids: list[str], change: Callable[[Client, str], Json]) -> None:
    """Change each job; every one is tried, and the first error is raised at the end."""
    changed: list[Json] = []
    failed: list[tuple[str, PenstockError]] = []
    with cli.client() as client:
        for job_id in job_ids:
            try:
                changed.append(change(client, job_id))
            except PenstockError as error:
                if len(job_ids) == 1:
                    raise
                failed.append((job_id, error))
    if len(job_ids) == 1:
        print_job(cli, changed[0])
        return
    if cli.printer.json:
        told = [{"id": job_id, "code": error.code, "message": error.message} for job_id, error in failed]
        cli.printer.value({"changed": changed, "failed": told})
    else:
        cli.printer.table(
            ("id", "state", ""),
            [
                *((job["id"], job["state"], "done") for job in changed),
                *((job_id, "", error.message) for job_id, error in failed),
            ],
        )
    if failed:
        first = failed[0][1]
        raise type(first)(f"{len(failed)} of {len(job_ids)} jobs were not changed: {first.message}")


def cancel(
    ctx: typer.Context, jobs: JobIds, reason: Reason = "", output: Output = None, server: Server = None
) -> None:
    """Cancel jobs: at once while they wait; running ones are told to stop."""
    _change(cli_of(ctx, output, server=server), jobs, lambda client, job: client.cancel(job, reason))


def retry(
    ctx: typer.Context,
    jobs: JobIds,
    attempts: Annotated[
        int | None, typer.Option(min=1, help="How many more; as many as they began with otherwise.")
    ] = None,
    output: Output = None,
    server: Server = None,
) -> None:
    """Run jobs again that ended without success, or make the attempt that they wait for now."""
    _change(cli_of(ctx, output, server=server), jobs, lambda client, job: client.retry(job, attempts))


def reschedule(
    ctx: typer.Context,
    jobs: JobIds,
    run_at: Annotated[str | None, typer.Option(metavar="TIME", help="At this time (RFC 3339).")] = None,
    delay_ms: Annotated[int | None, typer.Option(min=0, help="So many ms from now.")] = None,
    output: Output = None,
    server: Server = None,
) -> None:
    """Let waiting jobs run at another time."""
    _change(
        cli_of(ctx, output, server=server),
        jobs,
        lambda client, job: client.reschedule(job, run_at=run_at, delay_ms=delay_ms),
    )


def priority(
    ctx: typer.Context,
    priority: Annotated[str, typer.Argument(metavar="PRIORITY", help="critical, high, normal or low.")],
    jobs: JobIds,
    output: Output = None,
    server: Server = None,
) -> None:
    """Give waiting jobs another priority."""
    wanted = cast("Priority", priority)
    _change(cli_of(ctx, output, server=server), jobs, lambda client, job: client.prioritise(job, wanted))


def move(
    ctx: typer.Context,
    jobs: JobIds,
    queue: Annotated[str | None, typer.Option(help="To this queue.")] = None,
    pool: Annotated[str | None, typer.Option(help="To this pool of workers.")] = None,
    output: Output = None,
    server: Server = None,
) -> None:
    """Move waiting jobs to another queue or pool."""
    _change(
        cli_of(ctx, output, server=server),
        jobs,
        lambda client, job: client.move(job, queue=queue, pool=pool),
    )


def hold(
    ctx: typer.Context, jobs: JobIds, reason: Reason = "", output: Output = None, server: Server = None
) -> None:
    """Keep waiting jobs from running."""
    _change(cli_of(ctx, output, server=server), jobs, lambda client, job: client.hold(job, reason))


def unhold(ctx: typer.Context, jobs: JobIds, output: Output = None, server: Server = None) -> None:
    """Let held jobs run again."""
    _change(cli_of(ctx, output, server=server), jobs, lambda client, job: client.unhold(job))


def delete(ctx: typer.Context, jobs: JobIds, output: Output = None, server: Server = None) -> None:
    """Take jobs that do not run out of lists and counts. Their history stays."""
    _change(cli_of(ctx, output, server=server), jobs, lambda client, job: client.delete(job))


def clone(
    ctx: typer.Context,
    job: JobIdArgument,
    payload: Annotated[
        str | None, typer.Argument(metavar="JSON|-", help="Another payload as JSON; - reads it from stdin.")
    ] = None,
    job_type: Annotated[str | None, typer.Option("--type", help="Another type.")] = None,
    queue: Annotated[str | None, typer.Option()] = None,
    pool: Annotated[str | None, typer.Option()] = None,
    priority: Annotated[str | None, typer.Option(help="critical, high, normal or low.")] = None,
    batch: Annotated[str | None, typer.Option(help="Put it in with another batch.")] = None,
    workflow: Annotated[str | None, typer.Option(help="Make it a step of another workflow.")] = None,
    delay_ms: Annotated[int | None, typer.Option(min=0, help="Run it so many ms from now.")] = None,
    job_id: Annotated[str | None, typer.Option("--id", help="Id of the clone.")] = None,
    output: Output = None,
    server: Server = None,
) -> None:
    """Put the same job in anew, with changes."""
    cli = cli_of(ctx, output, server=server)
    options: dict[str, Any] = {
        "type": job_type, "queue": queue, "pool": pool, "priority": priority, "batch": batch, "workflow": workflow,
        "delay_ms": delay_ms, "id": job_id,
    }  # fmt: skip
    changes = {name: value for name, value in options.items() if value is not None}
    if payload is not None:
        # It may be null, which is not as none given.
        changes["payload"] = payload_of(payload)
    with cli.client() as client:
        print_job(cli, client.clone(job, **cast("CloneOptions", changes)))
