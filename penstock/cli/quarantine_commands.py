"""``penstock quarantine``: lines that could not be decoded, and putting them back."""

from __future__ import annotations

import sys
from base64 import b64decode
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.context import Cli, DataFolder, LogUrl, Output, Server, cli_of
from penstock.cli.opening import on_log_or_server
from penstock.client.calls import API, Call, Json
from penstock.client.redrive import line_at, redriven
from penstock.log.bundler import Bundler
from penstock.log.namespace import Namespace
from penstock.log.port import Log
from penstock.schemas.position import Position, parse

app = typer.Typer(help="Lines that could not be decoded.", no_args_is_help=True)

STDIN = "-"


@app.command("list")
def list_lines(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many.")] = 50,
    cursor: Annotated[str, typer.Option(help="Go on where an earlier page ended.")] = "",
    output: Output = None,
    server: Server = None,
) -> None:
    """List quarantined lines, newest first."""
    cli = cli_of(ctx, output, server=server)
    with cli.client() as client:
        page = client.resource("quarantine", limit=str(limit), cursor=cursor)
    if cli.printer.json:
        cli.printer.value(page)
        return
    cli.printer.table(
        ("position", "at", "reason", "size", "begins with"),
        (
            [item["position"], item["at"], item["reason"], item["size_bytes"], _head(item)]
            for item in page["items"]
        ),
        "nothing in quarantine",
    )
    if page["next_cursor"]:
        cli.printer.text(f"more with --cursor {page['next_cursor']}")


def _head(item: Json) -> str:
    text = b64decode(item["head"])[:60].decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


@app.command()
def redrive(
    ctx: typer.Context,
    position: Annotated[str, typer.Argument(metavar="POSITION", help="partition:offset:line, as listed.")],
    edit: Annotated[
        str,
        typer.Option(
            metavar="FILE|-", help="The corrected line: a file, or - for stdin; else the line as it is."
        ),
    ] = "",
    output: Output = None,
    server: Server = None,
    log: LogUrl = None,
    data: DataFolder = None,
) -> None:
    """Put a line back on the log, as it is or corrected."""
    cli = cli_of(ctx, output, server=server, log=log, data=data)
    wanted = parse(position)
    edited = _edited(edit)

    async def on_log(opened: Log, namespace: Namespace) -> Json:
        topics = namespace.topics
        line = edited if edited is not None else await line_at(opened, topics, wanted)
        partition, line = redriven(line, topics.partitions)
        async with Bundler(opened, topics.jobs) as bundler:
            place = await bundler.append(partition, line)
        return {"position": str(Position(partition, place.offset, place.line_no)), "line": line.decode()}

    found = on_log_or_server(cli, on_log, lambda: _redrive_on_server(cli, wanted, edited))
    if cli.printer.json:
        cli.printer.value(found)
    else:
        cli.printer.text(f"{position} stands at {found['position']} again")


def _edited(edit: str) -> bytes | None:
    if not edit:
        return None
    return sys.stdin.buffer.read() if edit == STDIN else Path(edit).read_bytes()


def _redrive_on_server(cli: Cli, position: Position, edited: bytes | None) -> Json:
    call = Call("POST", f"{API}/quarantine/{position}/redrive", body=edited or b"")
    with cli.client() as client:
        return client.sent(call)
