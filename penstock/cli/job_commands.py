"""Commands that ask the API: enqueue, jobs, queues, counts."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Annotated, Any, cast

import msgspec
import typer

from penstock.cli.context import Cli, Output, Server, cli_of
from penstock.client.calls import Json
from penstock.client.identity import with_id
from penstock.client.refusals import malformed
from penstock.client.requests import JobOptions
from penstock.schemas.errors import InvalidField, MalformedJson, PenstockError, ServerUnreachable

JobIdArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]

STDIN = "-"


class JobDidNotSucceed(PenstockError):
    """The job ended without success."""


class SomeRejected(PenstockError):
    """Some of the jobs were not accepted."""


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command()(enqueue)
    app.add_typer(jobs_app, name="jobs")
    app.command()(queues)
    app.command()(counts)


def enqueue(
    ctx: typer.Context,
    job_type: Annotated[
        str | None, typer.Argument(metavar="TYPE", help="Type of the job: the name of its handler.")
    ] = None,
    payload: Annotated[
        str | None, typer.Argument(metavar="JSON|-", help="Payload as JSON; - reads it from stdin.")
    ] = None,
    queue: Annotated[str | None, typer.Option()] = None,
    pool: Annotated[str | None, typer.Option(help="Pool of workers that may run it.")] = None,
    priority: Annotated[str | None, typer.Option(help="critical, high, normal or low.")] = None,
    delay_ms: Annotated[int | None, typer.Option(help="Run it no sooner than so many ms from now.")] = None,
    run_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Run it no sooner than at this time (RFC 3339).")
    ] = None,
    expires_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Do not start it after this time (RFC 3339).")
    ] = None,
    job_id: Annotated[
        str | None,
        typer.Option(
            "--id", help="Id of the job: sent twice it is one job, another job under it is refused."
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Stands for an id: the same key again is no second job.")
    ] = None,
    unique_key: Annotated[
        str | None, typer.Option(help="At most one job holds this key at a time, until it has ended.")
    ] = None,
    unique_scope: Annotated[
        str | None, typer.Option(help="until_started, until_finished or period: how long it holds the key.")
    ] = None,
    unique_period_ms: Annotated[int | None, typer.Option(help="Hold the key for so long.")] = None,
    on_conflict: Annotated[
        str | None, typer.Option(help="Where another holds the key: reject, return_existing or replace.")
    ] = None,
    concurrency_key: Annotated[
        str | None, typer.Option(help="Of the jobs with this key one runs at a time, the others wait.")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Name of what it is put in with.")] = None,
    workflow: Annotated[str | None, typer.Option(help="Name of what it is a step of.")] = None,
    max_attempts: Annotated[int | None, typer.Option()] = None,
    timeout_ms: Annotated[int | None, typer.Option(help="Longest run of one attempt.")] = None,
    backoff: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='Between attempts: {"kind": "fixed", "base_ms": 1000}, ...'),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; may be given more than once.")] = None,
    metadata: Annotated[
        str | None, typer.Option(metavar="JSON", help="An object that goes along with the job.")
    ] = None,
    bulk: Annotated[
        bool,
        typer.Option(
            "--bulk", help="Read many jobs from stdin, one JSON object a line, with type and payload."
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the job has ended; exit 1 unless it succeeded.")
    ] = False,
    wait_timeout_ms: Annotated[int, typer.Option(min=0, help="How long --wait waits.")] = 60_000,
    output: Output = None,
    server: Server = None,
) -> None:
    """Put a job on the log, or many with --bulk."""
    cli = cli_of(ctx, output, server=server)
    options = {
        "id": job_id, "queue": queue, "pool": pool, "priority": priority, "delay_ms": delay_ms, "run_at": run_at,
        "expires_at": expires_at, "max_attempts": max_attempts, "timeout_ms": timeout_ms, "tags": tag,
        "backoff": json_of(backoff, "--backoff"), "metadata": json_of(metadata, "--metadata"),
        "idempotency_key": idempotency_key, "concurrency_key": concurrency_key,
        "batch": batch, "workflow": workflow,
        "unique": _unique(unique_key, scope=unique_scope, period_ms=unique_period_ms, on_conflict=on_conflict),
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    if bulk:
        _enqueue_bulk(cli, job_type, given)
        return
    if job_type is None:
        raise typer.BadParameter("the job's type is missing", param_hint="TYPE")
    body = payload_of(payload)
    given = with_id(given)
    with cli.client() as client:
        try:
            job = client.enqueue(job_type, body, **cast("JobOptions", given))
        except PenstockError as error:
            raise _told_what_is_open(error, given) from error
        if wait:
            job = client.wait(job["id"], wait_timeout_ms)
    print_job(cli, job)
    if wait and job["state"] != "succeeded":
        raise JobDidNotSucceed(f"job {job['id']} is {job['state']}")


def _told_what_is_open(error: PenstockError, given: Mapping[str, Any]) -> PenstockError:
    """Where nobody can say whether the job was taken: how to find out, and how to send it again as the same job."""
    nobody_there = isinstance(error, ServerUnreachable) and "refused" in error.message
    if error.status not in (500, 503) or nobody_there:
        return error
    job_id = given.get("id") or error.details.get("job_id")
    if job_id is None:
        again = f"sent again with --idempotency-key {given['idempotency_key']} it is the same job"
    else:
        again = f"`penstock jobs get {job_id}` tells, and sent again with --id {job_id} it is the same job"
    return type(error)(f"{error.message} The job may have been taken all the same: {again}.", **error.details)


def _unique(key: str | None, **options: Any) -> dict[str, Any] | None:
    given = {name: value for name, value in options.items() if value is not None}
    if key is None:
        if given:
            raise typer.BadParameter("is missing: the other options are about it", param_hint="--unique-key")
        return None
    return {"key": key, **given}


def payload_of(text: str | None) -> Any:
    """A payload as it was typed, or from stdin. Raises MalformedJson."""
    return json_of(sys.stdin.buffer.read() if text == STDIN else text, "the payload")


def json_of(text: str | bytes | None, what: str) -> Any:
    """A value as it was typed; None if none was. Raises MalformedJson."""
    if text is None:
        return None
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(what, data, error) from error


def _enqueue_bulk(cli: Cli, job_type: str | None, options: dict[str, Any]) -> None:
    defaults = options if job_type is None else {"type": job_type, **options}
    for name in ("id", "idempotency_key"):
        if name in options:
            raise InvalidField(
                f"--{name.replace('_', '-')} names one job: it does not go with --bulk", field=name
            )
    unread: list[Json] = []
    numbers: list[int] = []
    with cli.client() as client:
        result = client.enqueue_many(_bulk_requests(sys.stdin.buffer, defaults, numbers, unread))
    items: list[Json] = [{**item, "line": numbers[item["index"]]} for item in result.items]
    items += unread
    items.sort(key=lambda item: item["line"])
    others = [item for item in items if item.get("status") != "accepted"]
    if cli.printer.json:
        rejected = result.rejected + len(unread)
        cli.printer.value({"accepted": result.accepted, "rejected": rejected, "items": items})
    else:
        unknown = f", of {result.unknown} it is not known" if result.unknown else ""
        cli.printer.text(f"{result.accepted} accepted, {len(others) - result.unknown} not{unknown}")
        for item in others[:20]:
            cli.printer.text(
                f"line {item['line']}, {item.get('id') or 'no id'}: {item['status']}: {item.get('message', '')}"
            )
    if others:
        if result.unknown == len(others):
            raise SomeRejected(
                f"of {len(others)} of {len(items)} jobs it is not known whether they were taken:"
                " sent again under their ids they are the same jobs"
            )
        raise SomeRejected(f"{len(others)} of {len(items)} jobs were not accepted, or may not have been")


def _bulk_requests(
    stream: IO[bytes], defaults: dict[str, Any], numbers: list[int], unread: list[Json]
) -> Iterator[Json]:
    """The requests of an input, a line each, whose number goes to ``numbers``. A line that is none goes to ``unread``,
    and stops no other."""
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            request = {**defaults, **msgspec.json.decode(line, type=dict[str, Any])}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            other = isinstance(error, msgspec.ValidationError)
            message = f"not a JSON object: {error}" if other else malformed("the line", line, error).message
            unread.append(
                {"line": number, "status": "rejected", "code": MalformedJson.code, "message": message}
            )
        else:
            numbers.append(number)
            yield request


# Jobs

jobs_app = typer.Typer(help="Look at jobs, and change them.", no_args_is_help=True)

AtOption = Annotated[str, typer.Option("--at", metavar="TIME|POSITION", help="As it was then.")]

_LIST_COLUMNS = ("id", "type", "queue", "priority", "state", "attempt", "progress", "worker", "created_at")


@jobs_app.command("list")
def list_jobs(
    ctx: typer.Context,
    state: Annotated[str, typer.Option(help="Only jobs in this state.")] = "",
    queue: Annotated[str, typer.Option(help="Only jobs of this queue.")] = "",
    job_type: Annotated[str, typer.Option("--type", help="Only jobs of this type.")] = "",
    batch: Annotated[str, typer.Option(help="Only jobs of this batch.")] = "",
    workflow: Annotated[str, typer.Option(help="Only jobs of this workflow.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many.")] = 50,
    cursor: Annotated[str, typer.Option(help="Go on where an earlier page ended.")] = "",
    at: AtOption = "",
    output: Output = None,
    server: Server = None,
) -> None:
    """List jobs, newest first."""
    cli = cli_of(ctx, output, server=server)
    with cli.client() as client:
        page = client.jobs_page(
            cursor=cursor, limit=limit, state=state, queue=queue, type=job_type, batch=batch, workflow=workflow, at=at
        )  # fmt: skip
    print_jobs(cli, page)


def print_jobs(cli: Cli, page: Json) -> None:
    """A page of a list or a search."""
    if cli.printer.json:
        cli.printer.value(page)
        return
    cli.printer.table(_LIST_COLUMNS, (_row(job) for job in page["items"]), "no jobs")
    more = f"; more with --cursor {page['next_cursor']}" if page["next_cursor"] else ""
    of_all = "" if page["total"] is None else f" of {page['total']}"
    cli.printer.text(f"{len(page['items'])}{of_all}{more}")


def _row(job: Json) -> list[Any]:
    attempt = f"{job['attempt']}/{job['max_attempts']}"
    values = {**job, "attempt": attempt, "progress": _progress(job)}
    return [values[name] for name in _LIST_COLUMNS]


def _progress(job: Json) -> str:
    progress = job.get("progress")
    if not progress:
        return ""
    percent = "" if progress["percent"] is None else f"{progress['percent']:g} %"
    return f"{percent} {progress['message']}".strip()


@jobs_app.command()
def get(
    ctx: typer.Context,
    job: JobIdArgument,
    at: AtOption = "",
    output: Output = None,
    server: Server = None,
) -> None:
    """Show one job, as it is or as it was."""
    cli = cli_of(ctx, output, server=server)
    with cli.client() as client:
        found = client.get(job, at)
    print_job(cli, found)


@jobs_app.command()
def result(
    ctx: typer.Context,
    job: JobIdArgument,
    wait_timeout_ms: Annotated[int, typer.Option(min=0, help="How long to wait for the job's end.")] = 0,
    server: Server = None,
) -> None:
    """Print what a job returned, as JSON. Exit code 5 where it has not succeeded."""
    cli = cli_of(ctx, None, server=server)
    with cli.client() as client:
        cli.printer.value(client.result(job, wait_timeout_ms))


@jobs_app.command()
def payload(ctx: typer.Context, job: JobIdArgument, server: Server = None) -> None:
    """Print a job's payload, as JSON, also one that lies beside the log."""
    cli = cli_of(ctx, None, server=server)
    with cli.client() as client:
        cli.printer.value(client.payload(job))


@jobs_app.command("log")
def job_log(
    ctx: typer.Context,
    job: JobIdArgument,
    attempt: Annotated[int | None, typer.Option(min=1, help="Which; the last if not given.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the attempt has ended.")
    ] = False,
    grep: Annotated[str, typer.Option(help="Only lines that contain this, whatever its case.")] = "",
    level: Annotated[
        str, typer.Option(help="debug, info, warning, error or critical, and what is above.")
    ] = "",
    output: Output = None,
    server: Server = None,
) -> None:
    """Print what a job's handler has logged."""
    cli = cli_of(ctx, output, server=server)
    with cli.client() as client:
        wanted = attempt or max(1, client.get(job)["attempt"])
        line = last = 0
        while True:
            page = client.log_page(
                job, wanted, first=line, wait_ms=LOG_WAIT_MS if follow else 0, contains=grep, level=level
            )
            for item in page["items"]:
                _print_line(cli, item)
            line = page["next"]
            if page["items"]:
                continue
            # What was logged last is stored a moment after the attempt has ended.
            if not follow or (page["ended"] and (last := last + 1) > LAST_LOOKS):
                return
            if page["ended"]:
                time.sleep(LAST_LOOK_S)


def _print_line(cli: Cli, item: Json) -> None:
    if cli.printer.json:
        cli.printer.line(item)
        return
    fields = " ".join(f"{name}={value}" for name, value in item.get("fields", {}).items())
    cli.printer.raw(f"{item['at']} {item['level']:<8}{item['message']}{f'  {fields}' if fields else ''}")


def print_job(cli: Cli, job: Json) -> None:
    """A job's fields that say something, and its errors."""
    if cli.printer.json:
        cli.printer.value(job)
        return
    shown = {**job, "progress": _progress(job)}
    errors = cast("list[Json]", shown.pop("errors", []))
    cli.printer.fields((name, value) for name, value in shown.items() if value not in (None, "", [], {}))
    if errors:
        cli.printer.table(
            ("attempt", "code", "message", "at"),
            ([error["attempt"], error["code"], error["message"], error["at"]] for error in errors),
        )


LOG_WAIT_MS = 20_000
LAST_LOOKS = 4
LAST_LOOK_S = 0.4

_ENVELOPE = frozenset({"type", "actor", "at", "position", "outcome", "refusal", "job", "id", "v", "tenant"})


@jobs_app.command()
def history(ctx: typer.Context, job: JobIdArgument, output: Output = None, server: Server = None) -> None:
    """Show everything that happened to a job, refused lines included."""
    cli = cli_of(ctx, output, server=server)
    with cli.client() as client:
        items = client.history(job)
    if cli.printer.json:
        cli.printer.value(items)
        return
    cli.printer.table(
        ("position", "at", "event", "actor", "outcome", "details"), (history_row(item) for item in items)
    )


def history_row(item: Json) -> list[Any]:
    """Cells of one line of a job's history, under position, at, event, actor, outcome and details."""
    refusal = item.get("refusal", "")
    outcome = f"{item.get('outcome', '')}{f': {refusal}' if refusal else ''}"
    rest = {name: value for name, value in item.items() if name not in _ENVELOPE}
    details = " ".join(
        f"{name}={_short(value)}" for name, value in rest.items() if value not in (None, "", {}, [])
    )
    return [item["position"], item["at"], item["type"], item["actor"], outcome, details]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


# Queues, counts


def queues(ctx: typer.Context, output: Output = None, server: Server = None) -> None:
    """Show queues and how many jobs each has."""
    cli = cli_of(ctx, output, server=server)
    with cli.client() as client:
        found = client.queues()
    if cli.printer.json:
        cli.printer.value(found)
    else:
        cli.printer.table(
            ("queue", "jobs", "states"),
            ([queue["name"], queue["jobs"], _states(queue["states"].items())] for queue in found["items"]),
            "no queues yet",
        )


def _states(states: Iterable[tuple[str, int]]) -> str:
    return " ".join(f"{state}={jobs}" for state, jobs in states)


def counts(
    ctx: typer.Context,
    batch: Annotated[str | None, typer.Option(help="Only jobs of this batch.")] = None,
    workflow: Annotated[str | None, typer.Option(help="Only jobs of this workflow.")] = None,
    at: AtOption = "",
    output: Output = None,
    server: Server = None,
) -> None:
    """Show exact numbers of jobs by state, queue, pool and type."""
    cli = cli_of(ctx, output, server=server)
    with cli.client() as client:
        found = client.counts(at, batch=batch, workflow=workflow)
    if cli.printer.json:
        cli.printer.value(found)
        return
    columns = ("state", "queue", "pool", "type", "jobs")
    cli.printer.table(columns, ([row[name] for name in columns] for row in found["rows"]), "no jobs")
    cli.printer.text(f"{found['total']} jobs: {_states(found['states'].items())}")
    for row in found["unhandled"]:
        cli.printer.text(
            f"no worker of pool {row['pool']} handles {row['type']}: {row['ready']} ready jobs wait"
        )
