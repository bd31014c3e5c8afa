"""``penstock jobs search``: jobs by anything that can be asked about them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from penstock.cli.context import Output, Server, cli_of
from penstock.cli.job_commands import AtOption, print_jobs
from penstock.schemas.errors import MalformedJson

Several = Annotated[list[str] | None, typer.Option(help="May be given more than once: any of them.")]
Time = Annotated[str | None, typer.Option(metavar="TIME", help="RFC 3339.")]
FilterOption = Annotated[
    str | None,
    typer.Option(
        "--filter", metavar="JSON", help="Any filter as POST /jobs/search takes it; options add to it."
    ),
]


def register(jobs: typer.Typer) -> None:
    """Add the command to the group ``jobs``."""
    jobs.command()(search)


def filter_of(filter_json: str | None, /, **options: Any) -> dict[str, Any]:
    """A filter from JSON and options that were given. Raises MalformedJson."""
    given: dict[str, Any] = {}
    if filter_json is not None:
        try:
            given = msgspec.json.decode(filter_json, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise MalformedJson(f"--filter is not a JSON object: {error}") from error
    given.update((name, value) for name, value in options.items() if value not in (None, []))
    return given


def search(
    ctx: typer.Context,
    state: Several = None,
    queue: Several = None,
    job_type: Annotated[list[str] | None, typer.Option("--type", help="May be given more than once.")] = None,
    priority: Annotated[
        list[str] | None, typer.Option(help="critical, high, normal or low; may be given more than once.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; all that are given must be there.")] = None,
    worker: Several = None,
    unique_key: Annotated[str | None, typer.Option(help="Jobs with this unique key.")] = None,
    concurrency_key: Annotated[str | None, typer.Option(help="Jobs with this concurrency key.")] = None,
    batch: Several = None,
    workflow: Several = None,
    id_prefix: Annotated[str | None, typer.Option(help="Jobs whose id begins so.")] = None,
    text: Annotated[str | None, typer.Option(help="Words in payload, errors, type and tags.")] = None,
    error: Annotated[str | None, typer.Option(help="What an error's code or message contains.")] = None,
    created_after: Time = None,
    created_before: Time = None,
    finished_after: Time = None,
    finished_before: Time = None,
    filter_json: FilterOption = None,
    sort: Annotated[
        str,
        typer.Option(
            help="By created_at, scheduled_at, started_at, finished_at or updated_at; with - the latest first."
        ),
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many.")] = 50,
    cursor: Annotated[str, typer.Option(help="Go on where an earlier page ended.")] = "",
    at: AtOption = "",
    output: Output = None,
    server: Server = None,
) -> None:
    """Search jobs, newest first unless --sort says otherwise."""
    cli = cli_of(ctx, output, server=server)
    wanted = filter_of(
        filter_json, state=state, queue=queue, type=job_type, priority=priority, tags=tag, worker=worker,
        unique_key=unique_key, concurrency_key=concurrency_key, batch=batch, workflow=workflow, id_prefix=id_prefix,
        text=text, error_contains=error, created_after=created_after, created_before=created_before,
        finished_after=finished_after, finished_before=finished_before,
    )  # fmt: skip
    with cli.client() as client:
        page = client.search_page(wanted, sort=sort, cursor=cursor, limit=limit, at=at)
    print_jobs(cli, page)
