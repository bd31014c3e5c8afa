"""``penstock audit``: take the log out with its hash chain, and check such an export."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from penstock.cli.context import Cli, DataFolder, LogUrl, Output, Server, cli_of
from penstock.cli.opening import TRIMMED, on_log_or_server
from penstock.cli.server_log import ExportCut, export_call
from penstock.cli.times import time_ms_of
from penstock.log.namespace import Namespace
from penstock.log.port import Log
from penstock.schemas.errors import DigestMismatch, InvalidField, NotFound
from penstock.schemas.ids import partition_of
from penstock.state.audit import export, verify_export

app = typer.Typer(help="Audit the log.", no_args_is_help=True)

STDIN = "-"


@app.command("export")
def export_log(
    ctx: typer.Context,
    file: Annotated[
        Path | None, typer.Option("-o", "--file", help="Write to this file; else to stdout.")
    ] = None,
    since: Annotated[str, typer.Option(metavar="TIME", help="From this time on (RFC 3339).")] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="Before this time (RFC 3339).")] = "",
    job: Annotated[
        str, typer.Option(help="Only the partition of this job: whole, so that its chain can be checked.")
    ] = "",
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition.")] = None,
    server: Server = None,
    log: LogUrl = None,
    data: DataFolder = None,
) -> None:
    """Write the jobs log as NDJSON with a hash chain that anybody can check."""
    cli = cli_of(ctx, None, server=server, log=log, data=data)
    if job and partition is not None:
        raise InvalidField("--job and --partition: give one of them", field="partition")
    times = (time_ms_of("since", since), time_ms_of("until", until))

    async def on_log(opened: Log, namespace: Namespace) -> None:
        ranges = await _ranges(opened, namespace, job, partition, times)
        if not since:
            await _tell_of_a_missing_beginning(opened, namespace, ranges)
        with _writing(file) as write:
            async for chunk in export(
                opened, namespace.topics, ranges=ranges, generation=namespace.generation
            ):
                write.write(chunk)

    on_log_or_server(cli, on_log, lambda: _from_server(cli, file, job, partition, times))


async def _tell_of_a_missing_beginning(
    log: Log, namespace: Namespace, ranges: dict[int, tuple[int, int]] | None
) -> None:
    """On stderr: what is written is right, and not all there was."""
    topics = namespace.topics
    for number in range(topics.partitions) if ranges is None else ranges:
        start = (await log.bounds(topics.jobs, number)).start
        if start > 0:
            typer.echo(
                f"penstock: partition {number} begins at offset {start}: what came before is not in this export"
                f" ({TRIMMED})",
                err=True,
            )


async def _ranges(
    log: Log, namespace: Namespace, job: str, partition: int | None, times: tuple[int | None, int | None]
) -> dict[int, tuple[int, int]] | None:
    topics = namespace.topics
    if partition is not None and partition >= topics.partitions:
        raise InvalidField(
            f"--partition: there are partitions 0 to {topics.partitions - 1}", field="partition"
        )
    if job:
        partition = partition_of(job, topics.partitions)
    since_ms, until_ms = times
    if partition is None and since_ms is None and until_ms is None:
        return None
    ranges: dict[int, tuple[int, int]] = {}
    for number in range(topics.partitions) if partition is None else (partition,):
        bounds = await log.bounds(topics.jobs, number)
        start = bounds.start if since_ms is None else await log.offset_at(topics.jobs, number, since_ms)
        stop = bounds.end if until_ms is None else await log.offset_at(topics.jobs, number, until_ms)
        ranges[number] = (max(start, bounds.start), max(stop, start, bounds.start))
    return ranges


def _from_server(
    cli: Cli, file: Path | None, job: str, partition: int | None, times: tuple[int | None, int | None]
) -> None:
    since_ms, until_ms = times
    with cli.client() as client:
        if job:
            partition = partition_of(job, len(client.resource("partitions")["items"]))
        call = export_call(partition=partition, since_ms=since_ms, until_ms=until_ms)
        last = b""
        with _writing(file) as write:
            for last in client.stream_lines(call):
                write.write(last + b"\n")
            if not last.startswith(b'{"audit":"end"'):
                raise ExportCut


@contextmanager
def _writing(file: Path | None) -> Generator[IO[bytes], None, None]:
    """Stdout, or a file that gets its name only when it is whole."""
    if file is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if not file.parent.is_dir():
        raise NotFound(f"There is no folder {str(file.parent)!r}.")
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


@app.command("verify")
def verify_file(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="An export; - reads stdin.")],
    output: Output = None,
) -> None:
    """Compute an export's hash chain anew. Exit code 7 when it is not whole or was changed."""
    cli = cli_of(ctx, output)
    if file != STDIN and not Path(file).is_file():
        raise NotFound(f"There is no file {file!r}.")
    if file == STDIN:
        report = verify_export(sys.stdin.buffer)
    else:
        with Path(file).open("rb") as stream:
            report = verify_export(stream)
    fields: dict[str, Any] = {"ok": report.ok, "lines": report.lines}
    if report.header is not None:
        header = report.header
        fields |= {"cluster_id": header.cluster_id, "topic": header.topic, "ranges": header.ranges}
    fields |= {"final": report.final}
    if cli.printer.json:
        cli.printer.value({**fields, "problem": report.problem, "line": report.line})
    else:
        cli.printer.fields(fields.items())
    if not report.ok:
        raise DigestMismatch(f"{file}, line {report.line}: {report.problem}")
