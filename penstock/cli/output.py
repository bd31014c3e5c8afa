"""Printing results: tables for people, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_WIDE = 400
"""Columns where the output is no terminal: nothing is cut off that a program or a person may look for."""

_STATE_STYLES = {
    "succeeded": "green",
    "active": "cyan",
    "retrying": "yellow",
    "dead": "red",
    "cancelled": "magenta",
    "expired": "magenta",
    "MISMATCH": "bold red",
    "OK": "green",
}


class Printer:
    """Prints to stdout as asked for. What lays out tables is loaded by the first that is printed."""

    def __init__(self, style: Literal["table", "json"]) -> None:
        self.style = style

    @property
    def json(self) -> bool:
        return self.style == "json"

    def value(self, value: Any) -> None:
        """Any value as indented JSON."""
        text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
        sys.stdout.write(text + "\n")

    def line(self, value: Any) -> None:
        """Any value as one line of JSON, at once."""
        sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
        sys.stdout.flush()

    def raw(self, text: str) -> None:
        """One line as it is, at once."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def text(self, text: str) -> None:
        """A sentence for people; nothing when printing JSON."""
        from rich.text import Text

        if not self.json:
            self._print(Text(text))

    def fields(self, rows: Iterable[tuple[str, Any]]) -> None:
        """Names and values, one pair a line."""
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, _cell(value))
        self._print(table)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str = "nothing") -> None:
        """Rows under headings; ``empty`` is said when there are none."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name in columns:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        if table.row_count:
            self._print(table)
        else:
            self._print(Text(empty))

    def _print(self, what: Table | Text) -> None:
        from rich.console import Console

        console = Console(
            file=sys.stdout, width=None if sys.stdout.isatty() else _WIDE, highlight=False, soft_wrap=False
        )
        with console.capture() as captured:
            console.print(what)
        # Cells are padded to their column's width; spaces at the end help nobody.
        lines = (line.rstrip() for line in captured.get().splitlines())
        sys.stdout.write("\n".join(lines) + "\n")


def _cell(value: Any) -> Text:
    from rich.text import Text

    match value:
        case None:
            return Text("")
        case str():
            return Text(value, style=_STATE_STYLES.get(value, ""))
        case bool():
            return Text("yes" if value else "no")
        case Mapping() | list():
            return Text(msgspec.json.encode(value).decode())
        case _:
            return Text(str(value))
