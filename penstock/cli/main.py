"""The ``penstock`` command: its options, its groups of commands, and how every error ends.

Exit codes: 0 done, 1 failed, 2 wrong input or settings, 3 the data folder is in use, 4 no such thing, 5 the state
does not allow it, 6 log or server unreachable, 7 the log, or a fold or copy of it, is not what was recorded, 8 the log
follows rules that this version does not have, 130 interrupted.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from penstock.cli import (
    archive_commands,
    audit_commands,
    claim_commands,
    event_commands,
    job_commands,
    leaving,
    log_commands,
    operation_commands,
    quarantine_commands,
    role_commands,
    rules_commands,
    search_commands,
    snapshot_commands,
    verb_commands,
    verify_command,
    worker_commands,
)
from penstock.cli.context import Globals, Output, Server
from penstock.schemas.errors import PenstockError, ServerUnreachable, StoreLocked, UnknownRules

app = typer.Typer(
    name="penstock",
    help="A distributed job platform on an append-only log: queryable, replayable, auditable.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
verb_commands.register(job_commands.jobs_app)
search_commands.register(job_commands.jobs_app)
for module in (role_commands, job_commands, event_commands, log_commands, verify_command):
    module.register(app)
app.add_typer(archive_commands.app, name="archive")
app.add_typer(audit_commands.app, name="audit")
app.add_typer(claim_commands.app, name="claims")
app.add_typer(operation_commands.app, name="operations")
app.add_typer(quarantine_commands.app, name="quarantine")
app.add_typer(rules_commands.app, name="rules")
app.add_typer(snapshot_commands.app, name="snapshot")
app.add_typer(worker_commands.app, name="workers")

INTERRUPTED = 130


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"penstock {importlib.metadata.version('penstock')}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Settings; else ./penstock.toml if it is there."),
    ] = None,
    output: Output = None,
    server: Server = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error.", show_default=False)
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.", show_default=False)] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that hold for every command."""
    flags = {"server": server, "log_level": log_level, "log_format": log_format}
    ctx.obj = Globals(config, output, {name: value for name, value in flags.items() if value is not None})


def advice(error: PenstockError) -> str:
    """What to do about an error, where that is known."""
    if isinstance(error, ServerUnreachable):
        return (
            "Is the server running? `penstock dev` starts one; --server or PENSTOCK_SERVER says where it is."
        )
    if isinstance(error, UnknownRules):
        return (
            "Nothing is lost, and nothing is wrong with the data:"
            " an upgraded Penstock goes on where this one stopped."
        )
    if isinstance(error, StoreLocked):
        return "Another process has it open: stop that one, or ask it, where the command takes --server."
    return ""


def complain(message: str) -> None:
    """One message on stderr."""
    try:
        sys.stderr.write(f"penstock: {message}\n")
        sys.stderr.flush()
    except OSError:
        return


def _give_up(error: PenstockError) -> NoReturn:
    complain(error.message)
    hint = advice(error)
    if hint:
        complain(hint)
    sys.exit(error.exit_code)


def entry() -> NoReturn:
    """The program: run the command line, and end the process."""
    try:
        main()
    except SystemExit as error:
        leaving.end(error.code)
    leaving.end(0)


def main() -> None:
    """Run the command line. Errors become a message and an exit code (SystemExit), never a traceback."""
    try:
        app()
    except PenstockError as error:
        _give_up(error)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Who read our output has had enough. What Python still holds for stdout must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(1)
    except Exception as error:
        logging.getLogger("penstock.cli").debug("unexpected error", exc_info=error)
        complain(f"unexpected error: {type(error).__name__}: {error} (--log-level debug shows where)")
        sys.exit(1)


if __name__ == "__main__":
    entry()
