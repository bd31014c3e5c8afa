"""Tables of what was measured: on the console, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Table:
    """What one part found. ``figures`` are the plain numbers behind the cells, by row and column, for plots."""

    part: str
    title: str
    columns: Sequence[str]
    note: str = ""
    rows: list[tuple[str, list[str]]] = field(default_factory=list[tuple[str, list[str]]])
    figures: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])

    def add(self, name: str, cells: Iterable[str], figures: Iterable[float] = ()) -> None:
        """A row; figures go with the first columns."""
        self.rows.append((name, list(cells)))
        self.figures |= {
            (name, column): figure for column, figure in zip(self.columns, figures, strict=False)
        }

    def markdown(self) -> str:
        """Aligned, for people who read it as it is."""
        lines = [["", *self.columns], *([name, *cells] for name, cells in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        lines.insert(1, ["---", *("---:" for _ in self.columns)])

        def text(line: Sequence[str]) -> str:
            return (
                "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            )

        parts = [f"### {self.title}", "\n".join(map(text, lines))]
        if self.note:
            parts.append(self.note)
        return "\n\n".join(parts) + "\n"


def rate(values: Sequence[float]) -> str:
    """The median, and how far the rounds were apart."""
    if len(values) == 1:
        return f"{values[0]:,.0f}"
    return f"{median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def millis(value: float) -> str:
    """With as many digits as mean something."""
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 1_000 else f"{value:,.0f}"
