"""``penstock log``: look at the jobs log itself."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import typer

from penstock.cli import copy_commands, trim_command
from penstock.cli.context import Cli, DataFolder, LogUrl, Output, Server, cli_of
from penstock.cli.opening import on_log_or_server
from penstock.cli.server_log import exported_lines, partition_ends, partition_start
from penstock.client.redrive import record_at
from penstock.log.namespace import Namespace
from penstock.log.port import Log, Record
from penstock.schemas.codec import decode_line, split
from penstock.schemas.errors import NotFound, ReadBehind, ReadModelUnavailable, ServerUnreachable, Undecodable
from penstock.schemas.events import JobEvent
from penstock.schemas.position import Position, parse
from penstock.schemas.times import time_text

if TYPE_CHECKING:
    from penstock.client.http import Client

FOLLOW_PAUSE_S = 0.3

log_app = typer.Typer(help="Look at the log itself.", no_args_is_help=True)


class LogLine(NamedTuple):
    """A line of the jobs log. ``time_ms`` is its record's."""

    position: Position
    time_ms: int
    data: bytes


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    log_app.command()(trim_command.trim)
    copy_commands.register(log_app)
    app.add_typer(log_app, name="log")


@log_app.command()
def tail(
    ctx: typer.Context,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=100_000, help="How many of the last lines.")
    ] = 20,
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition.")] = None,
    job: Annotated[str, typer.Option(help="Only lines of this job.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing what comes.")] = False,
    output: Output = None,
    server: Server = None,
    log: LogUrl = None,
    data: DataFolder = None,
) -> None:
    """Print the last lines of the jobs log."""
    cli = cli_of(ctx, output, server=server, log=log, data=data)

    async def on_log(opened: Log, namespace: Namespace) -> None:
        await _tail_log(cli, opened, namespace, lines, partition, job, follow)

    on_log_or_server(cli, on_log, lambda: _tail_server(cli, lines, partition, job, follow))


async def _tail_log(
    cli: Cli, log: Log, namespace: Namespace, count: int, only: int | None, job: str, follow: bool
) -> None:
    topic = namespace.topics.jobs
    found: list[LogLine] = []
    starts: dict[tuple[str, int], int] = {}
    for partition in _chosen(range(namespace.topics.partitions), only):
        bounds = await log.bounds(topic, partition)
        starts[topic, partition] = bounds.end
        if count and bounds.end > bounds.start:
            begin = max(bounds.start, bounds.end - count)
            async with log.tail({(topic, partition): begin}) as reading:
                while begin < bounds.end:
                    records = await reading.poll(1_000)
                    found.extend(line for record in records for line in lines_of(record))
                    begin = records[-1].offset + 1 if records else begin
    _show_last(cli, found, count, job)
    if follow:
        async with log.tail(starts) as reading:
            while True:
                records = await reading.poll(1_000)
                _show(cli, (line for record in records for line in lines_of(record)), job)


def _tail_server(cli: Cli, count: int, only: int | None, job: str, follow: bool) -> None:
    with cli.client() as client:
        ends = partition_ends(client)
        chosen = _chosen(ends, only)
        found: list[LogLine] = []
        next_offsets: dict[int, int] = {}
        for partition in chosen:
            start = (
                max(partition_start(client, partition), ends[partition] - count) if count else ends[partition]
            )
            next_offsets[partition] = start
            found.extend(_new_lines(client, partition, next_offsets))
        _show_last(cli, found, count, job)
        while follow:
            time.sleep(FOLLOW_PAUSE_S)
            for partition in chosen:
                _show(cli, _new_lines(client, partition, next_offsets), job)


def _chosen(partitions: Iterable[int], only: int | None) -> list[int]:
    known = sorted(partitions)
    if only is None:
        return known
    if only not in known:
        raise NotFound(f"there is no partition {only}")
    return [only]


def _new_lines(client: Client, partition: int, next_offsets: dict[int, int]) -> Iterator[LogLine]:
    for position, time_ms, data in exported_lines(client, partition, next_offsets[partition]):
        next_offsets[partition] = position.offset + 1
        yield LogLine(position, time_ms, data)


def lines_of(record: Record) -> Iterator[LogLine]:
    """The lines of a record that are not blank."""
    for number, data in enumerate(split(record.value)):
        if data.strip():
            yield LogLine(Position(record.partition, record.offset, number), record.time_ms, data)


def _show_last(cli: Cli, found: list[LogLine], count: int, job: str) -> None:
    found.sort(key=lambda line: (line.time_ms, line.position))
    wanted = [line for line in found if not job or _job_of(line.data) == job]
    _show(cli, wanted[-count:] if count else [], "")


def _show(cli: Cli, lines: Iterable[LogLine], job: str) -> None:
    for line in lines:
        if job and _job_of(line.data) != job:
            continue
        if cli.printer.json:
            cli.printer.line(
                {
                    "position": str(line.position),
                    "time": time_text(line.time_ms),
                    "event": _readable(line.data),
                }
            )
        else:
            cli.printer.raw(f"{line.position!s:<12} {time_text(line.time_ms)} {_one_line(line.data)}")


class _Job(msgspec.Struct):
    job: str = ""


_job_decoder = msgspec.json.Decoder(_Job)


def _job_of(data: bytes) -> str:
    try:
        return _job_decoder.decode(data).job
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _readable(data: bytes) -> Any:
    """The line as JSON, or as text where it is none."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return data.decode("utf-8", "backslashreplace")


def _one_line(data: bytes) -> str:
    text = data.decode("utf-8", "backslashreplace")
    # What somebody wrote to the log must not steer the terminal.
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


@log_app.command()
def inspect(
    ctx: typer.Context,
    position: Annotated[
        str,
        typer.Argument(
            metavar="POSITION", help="partition:offset:line, or partition:offset for a whole record."
        ),
    ],
    output: Output = None,
    server: Server = None,
    log: LogUrl = None,
    data: DataFolder = None,
) -> None:
    """Show what stands at a position, and what became of it."""
    cli = cli_of(ctx, output, server=server, log=log, data=data)
    whole = position.count(":") == 1
    wanted = parse(f"{position}:0" if whole else position)

    async def on_log(opened: Log, namespace: Namespace) -> list[LogLine]:
        record = await record_at(opened, namespace.topics, wanted.partition, wanted.offset)
        return list(lines_of(record))

    found = on_log_or_server(cli, on_log, lambda: _inspect_server(cli, wanted))
    chosen = [line for line in found if whole or line.position == wanted]
    if not chosen:
        raise NotFound(f"there is no line at {position}")
    shown = [_description(cli, line) for line in chosen]
    if cli.printer.json:
        cli.printer.value(shown if whole else shown[0])
        return
    for fields in shown:
        cli.printer.fields(fields.items())


def _inspect_server(cli: Cli, wanted: Position) -> list[LogLine]:
    with cli.client() as client:
        lines = exported_lines(client, wanted.partition, wanted.offset, wanted.offset + 1)
        return [LogLine(*line) for line in lines]


def _description(cli: Cli, line: LogLine) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "position": str(line.position),
        "time": time_text(line.time_ms),
        "size_bytes": len(line.data),
        "sha256": sha256(line.data).hexdigest(),
    }
    try:
        event = decode_line(line.data)
    except Undecodable as error:
        fields |= {"outcome": "quarantined", "reason": error.reason, "message": error.message}
    else:
        fields["type"] = type(event).__name__
        if isinstance(event, JobEvent):
            fields |= {"job": event.job, **_outcome(cli, event.job, line.position)}
    fields["event"] = _readable(line.data)
    return fields


def _outcome(cli: Cli, job: str, position: Position) -> dict[str, Any]:
    """What the fold made of the line, if a server is there to ask and the line is in its job's history."""
    try:
        from penstock.client.http import Client

        with Client(cli.settings.server, patience_ms=0) as client:
            for item in client.history(job):
                if item["position"] == str(position):
                    refusal = item.get("refusal") or item.get("reason")
                    return {"outcome": item.get("outcome"), **({"refusal": refusal} if refusal else {})}
    except (NotFound, ServerUnreachable, ReadBehind, ReadModelUnavailable):
        # The outcome is an addition: a log can be read where nothing runs.
        return {}
    return {}
