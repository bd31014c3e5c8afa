"""What every command is given: settings, a printer, and the options that every command takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from penstock.cli.logs import set_up
from penstock.cli.output import Printer
from penstock.cli.settings import Settings, load

if TYPE_CHECKING:
    from penstock.client.http import Client

OutputFormat = Literal["table", "json"]

Output = Annotated[
    OutputFormat | None,
    typer.Option("--output", help="How to print: table (the default) or json.", show_default=False),
]
Server = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="The server to ask.", show_default=False)
]
LogUrl = Annotated[
    str | None,
    typer.Option("--log", metavar="URL", help="embedded:PATH or kafka://host:port,...", show_default=False),
]
DataFolder = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Folder for data.", show_default=False)
]

CLIENT_PATIENCE_MS = 1_500
"""Somebody is waiting at the terminal: rather say soon that nothing answers."""


@dataclass(frozen=True, slots=True)
class Globals:
    """Options given before the command."""

    config: Path | None = None
    output: OutputFormat | None = None
    flags: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Cli:
    """What a command works with."""

    settings: Settings
    printer: Printer
    flags: frozenset[str] = frozenset()
    """Names of the settings that were given as flags."""

    def client(self) -> Client:
        """A client of the server in the settings."""
        from penstock.client.http import Client

        return Client(self.settings.server, patience_ms=CLIENT_PATIENCE_MS)


def cli_of(ctx: typer.Context, output: OutputFormat | None = None, **flags: Any) -> Cli:
    """Settings and printer of a command; its own options come before those that stand in front of it.

    Raises:
        SettingsInvalid: see :func:`penstock.cli.settings.load`.
    """
    given = cast("Globals", ctx.find_root().obj or Globals())
    own = {name: value for name, value in flags.items() if value not in (None, [], ())}
    all_flags = {**given.flags, **own}
    settings = load(given.config, **all_flags)
    # A command says itself what went wrong; what libraries log on the way is for those who ask.
    set_up(
        settings.log_level if "log_level" in settings.model_fields_set else "critical", settings.log_format
    )
    return Cli(settings, Printer(output or given.output or "table"), frozenset(all_flags))
