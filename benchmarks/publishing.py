"""Figures into docs/performance.md, each part between its own markers, and a plot beside it."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from collections.abc import Mapping, Sequence

from benchmarks import machine
from benchmarks.installing import HERE, PEER_PYTHON
from benchmarks.report import Table

PAGE = HERE.parent / "docs" / "performance.md"
PLOT = HERE.parent / "docs" / "performance.svg"
FIGURES = HERE.parent / "docs" / "performance.json"
"""The plain numbers of the last run of each part, which the plot is drawn from."""


def write(tables: Sequence[Table], versions: Mapping[str, str]) -> None:
    """Replace what the page says of these parts, and of the machine. KeyError when the page has no place for one."""
    page = PAGE.read_text(encoding="utf-8")
    for table in tables:
        page = _replaced(page, table.part, table.markdown())
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    page = _replaced(page, "machine", f"Measured on {today}: {machine.description()}.\n")
    if versions:
        lines = "\n".join(f"- {name} {version}" for name, version in versions.items())
        page = _replaced(page, "versions", lines + "\n")
    PAGE.write_text(page, encoding="utf-8")


def _replaced(page: str, part: str, text: str) -> str:
    begin, end = f"<!-- {part} -->\n", f"<!-- end of {part} -->"
    found = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not found.search(page):
        raise KeyError(f"{PAGE.name} has no place for {part}")
    return found.sub(lambda _: f"{begin}\n{text}\n{end}", page, count=1)


def plot(tables: Sequence[Table]) -> None:
    """Draw those parts of all runs so far that have a picture."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    for table in tables:
        if table.figures:
            names = dict.fromkeys(name for name, _ in table.figures)
            figures[table.part] = {
                name: {
                    column: round(value, 3) for (row, column), value in table.figures.items() if row == name
                }
                for name in names
            }
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    subprocess.run([str(PEER_PYTHON), str(HERE / "plot.py"), str(FIGURES), str(PLOT)], check=True)
