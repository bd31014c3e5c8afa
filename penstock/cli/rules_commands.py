"""``penstock rules``: which rules the log follows, and bringing it to newer ones once every process has them."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
import typer

from penstock.cli.context import Cli, DataFolder, LogUrl, Output, Server, cli_of
from penstock.cli.opening import on_log_or_server
from penstock.client.calls import API, Call
from penstock.client.rules import RulesStatus, rules_status, want_rules
from penstock.log.namespace import Namespace
from penstock.log.port import Log
from penstock.schemas.errors import NotReady

app = typer.Typer(help="The rules by which the log is folded.", no_args_is_help=True)

ACTIVATION_S = 60.0
POLL_S = 0.5


@app.command()
def status(
    ctx: typer.Context,
    output: Output = None,
    server: Server = None,
    log: LogUrl = None,
    data: DataFolder = None,
) -> None:
    """Show the version in force in each partition, and which versions the live processes have."""
    cli = cli_of(ctx, output, server=server, log=log, data=data)
    _print(cli, _status(cli))


@app.command()
def activate(
    ctx: typer.Context,
    version: Annotated[int, typer.Argument(min=1, max=1_000, help="Of the rules.")],
    output: Output = None,
    server: Server = None,
    log: LogUrl = None,
    data: DataFolder = None,
) -> None:
    """Let all partitions follow newer rules. Refused, naming who, unless every live process has them.

    Waits until they are in force. There is no way back: older versions of Penstock stop when they meet newer rules.
    """
    cli = cli_of(ctx, output, server=server, log=log, data=data)

    async def on_log(opened: Log, namespace: Namespace) -> RulesStatus:
        return await want_rules(opened, namespace.topics, version, "cli")

    found = on_log_or_server(cli, on_log, lambda: _ask(cli, version))
    partitions = len(found.partitions)
    until_s = time.monotonic() + ACTIVATION_S
    while not found.all_at(version, partitions):
        if time.monotonic() > until_s:
            raise NotReady(
                f"rules {version} are asked for, and not in force everywhere after {ACTIVATION_S:g} s: `penstock rules"
                " status` shows where"
            )
        time.sleep(POLL_S)
        found = _status(cli)
        partitions = max(partitions, len(found.partitions))
    _print(cli, found)


def _status(cli: Cli) -> RulesStatus:
    async def on_log(opened: Log, namespace: Namespace) -> RulesStatus:
        return await rules_status(opened, namespace.topics)

    return on_log_or_server(cli, on_log, lambda: _ask(cli, None))


def _ask(cli: Cli, version: int | None) -> RulesStatus:
    with cli.client() as client:
        call = Call("GET", f"{API}/rules")
        if version is not None:
            call = Call("POST", f"{API}/rules", body=msgspec.json.encode({"version": version}))
        return msgspec.convert(client.sent(call), RulesStatus, strict=False)


def _print(cli: Cli, found: RulesStatus) -> None:
    if cli.printer.json:
        cli.printer.value(found)
        return
    by_version: dict[int, list[int]] = {}
    for partition, version in found.partitions.items():
        by_version.setdefault(version, []).append(partition)
    rows: list[tuple[Any, ...]] = [
        (version, ", ".join(map(str, partitions))) for version, partitions in sorted(by_version.items())
    ]
    cli.printer.table(("rules in force", "partitions"), rows, "nobody leads a partition")
    processes = [(process.kind, process.name, process.rules) for process in found.processes]
    cli.printer.table(("process", "name", "has rules up to"), processes, "nobody is alive")
    if found.wanted > max(found.partitions.values(), default=found.wanted):
        cli.printer.text(f"Rules {found.wanted} are asked for.")
